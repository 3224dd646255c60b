//! How soon the copies of a message that runs are done with when its run is over.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use redeliver::{ClaimStatus, Delivery, Handled};
use serde_json::{Value, json};

use crate::lab::{Lab, SHORT_WAITS};

const IDS: usize = 40;
const COPIES: usize = 4;

#[tokio::test(flavor = "multi_thread")]
async fn r7_a_copy_is_woken_by_the_end_of_the_run_that_it_waits_for() {
    let lab = Lab::new();
    let ended = Arc::new(Mutex::new(BTreeMap::<String, Instant>::new()));
    let late = Arc::new(Mutex::new(Vec::<Duration>::new()));
    let handler = || {
        let (ended, late) = (Arc::clone(&ended), Arc::clone(&late));
        move |delivery: Delivery<Value>| {
            let (ended, late) = (Arc::clone(&ended), Arc::clone(&late));
            async move {
                let id = delivery.id().expect("it has one").to_owned();
                let status = delivery.claim().expect("it has claims").status();
                if status != ClaimStatus::Done {
                    tokio::time::sleep(Duration::from_secs(30)).await;
                    ended.lock().expect("no panic").insert(id, Instant::now());
                } else {
                    let since = ended.lock().expect("no panic")[&id].elapsed();
                    late.lock().expect("no panic").push(since);
                }
                Handled::Ok(())
            }
        }
    };
    let keys = "idempotency = { store = \"main\", on_duplicate = \"call\" }\n\
                in_flight_max = 256\nparked_max = 256";
    // Who waits at the broker is woken by nobody.
    let toml = lab.toml(keys, &format!("{SHORT_WAITS}in_process_max = \"1m\"\n"));
    let (one, other) = (lab.start(&toml, handler()).await, lab.start(&toml, handler()).await);
    for copy in 0..=COPIES {
        for id in 0..IDS {
            lab.send(&one, &id.to_string(), json!(1)).await;
        }
        if copy == 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    lab.eventually("all copies", async || late.lock().expect("no panic").len() == IDS * COPIES)
        .await;
    let mut late = late.lock().expect("no panic").clone();
    late.sort();
    let of = |share: usize| late[(late.len() - 1) * share / 100];
    println!("after the end: median {:?}, p90 {:?}, p99 {:?}", of(50), of(90), of(99));
    // The poll behind the wake-up asks again after half the time: 5 s late on average after thirty.
    assert!(of(50) < Duration::from_millis(2500), "{:?}", of(50));
    one.stop().await;
    other.stop().await;
}
