//! What a handler learns of earlier runs of the same id.

use std::time::Duration;

use redeliver::{ClaimStatus, Delivery, Handled};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};

use crate::lab::{Lab, Log, SHORT_WAITS};
use crate::{programs, worker};

#[tokio::test(flavor = "multi_thread")]
async fn a_duplicate_is_given_the_result_of_the_first_run() {
    let (lab, results) = (Lab::new(), Arc::new(Mutex::new(Vec::new())));
    let noting = Arc::clone(&results);
    let handler = move |delivery: Delivery<Value>| {
        let noting = Arc::clone(&noting);
        async move {
            let claim = delivery.claim().expect("it has claims");
            if claim.status() != ClaimStatus::Done {
                claim.keep("receipt 7");
            }
            let result = claim.result().map(|result| String::from_utf8_lossy(result).into_owned());
            noting.lock().expect("no panic").push((claim.status(), result));
            Handled::Ok(())
        }
    };
    let keys = "idempotency = { store = \"main\", on_duplicate = \"call\" }";
    let service = lab.start(&lab.toml(keys, SHORT_WAITS), handler).await;
    lab.send(&service, "m", json!(1)).await;
    lab.drained(&service).await;
    lab.send(&service, "m", json!(1)).await;
    lab.drained(&service).await;
    let expected =
        [(ClaimStatus::Fresh, None), (ClaimStatus::Done, Some(String::from("receipt 7")))];
    assert_eq!(*results.lock().expect("no panic"), expected);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_sigkill_the_next_run_is_told_of_the_takeover() {
    let (lab, folder, log) = (Lab::new(), programs::folder(), Log::default());
    let keys = "idempotency = { store = \"main\", lease = \"3s\" }";
    // The first process holds everything for long: the lock of its handlers is with us.
    let first = format!(
        "{keys}\nlock = {{ store = \"main\", key = \"/key\", lease = \"3s\", wait = \"60s\" }}"
    );
    let idle = lab.idle(&lab.toml(keys, SHORT_WAITS)).await;
    let locks = idle.locks("main").expect("it is configured");
    let guard = locks.acquire(lab.name.as_str()).await.expect("it is free");
    lab.send(&idle, "m", json!({ "key": lab.name })).await;
    let mut process = worker::start(&lab.toml(&first, SHORT_WAITS), folder.path());
    lab.eventually("a waiter", async || {
        let state = locks.inspect(&lab.name).await.expect("an answer");
        state.is_some_and(|state| state.waiting > 0)
    })
    .await;
    process.kill().expect("it can be killed");
    process.wait().expect("it can be waited for");
    drop(guard);
    let noting = log.clone();
    let handler = move |delivery: Delivery<Value>| {
        noting.note(&delivery);
        async { Handled::Ok(()) }
    };
    let began = tokio::time::Instant::now();
    let service = lab.start(&lab.toml(keys, SHORT_WAITS), handler).await;
    lab.eventually("a run", async || log.len() == 1).await;
    assert!(began.elapsed() < Duration::from_secs(15), "within its lease and little more");
    assert_eq!(log.all()[0].claim, Some(ClaimStatus::TakenOver));
    lab.drained(&service).await;
    service.stop().await;
    idle.stop().await;
}
