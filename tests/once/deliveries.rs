//! Real deliveries (those in the file that `REDELIVER_WEBHOOKS` names; without it, made-up ones of
//! the same shape), five times each from five publishers, to three processes.

use std::collections::BTreeMap;
use std::process::Child;
use std::time::Duration;

use redeliver::Service;
use tokio::time::sleep;

use crate::lab::{BROKER_WAITS, Lab};
use crate::worker::{by_id, counted};
use crate::{programs, worker};

const PUBLISHERS: usize = 5;
const PROCESSES: usize = 3;
const GUARDED: &str = "idempotency = { store = \"main\", lease = \"3s\", keep = \"1h\" }\ncrashes_max = 1000000\n\
     breaker = { attempts_min = 1000000 }\nin_flight_max = 16\nparked_max = 16";

/// Ids with how often they are in the input, each published once by each publisher.
async fn publish_all(lab: &Lab, toml: &str, folder: &tempfile::TempDir) -> BTreeMap<String, usize> {
    let file = programs::webhooks(folder);
    let text = std::fs::read_to_string(&file).expect("the input can be read");
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("a line is JSON")).collect();
    let mut ids = BTreeMap::new();
    for line in &lines {
        *ids.entry(id_of(line)).or_default() += 1;
    }
    let service = lab.idle(toml).await;
    let one = async || {
        let publisher = service.publisher("main").expect("it is configured");
        for line in &lines {
            publisher.send(lab.message(&id_of(line), line)).await.expect("it is confirmed");
        }
    };
    tokio::join!(one(), one(), one(), one(), one());
    service.stop().await;
    ids
}

fn id_of(line: &serde_json::Value) -> String {
    line["delivery"].as_str().expect("a line has an id").to_owned()
}

/// Waits until nothing is left, with the processes stopped one after another so that what they
/// hold is seen.
async fn finish(lab: &Lab, toml: &str, processes: Vec<Child>) -> Service {
    let idle = lab.idle(toml).await;
    lab.eventually("an empty queue", async || {
        // What consumers hold is not seen from here: it must be empty for a while.
        for _ in 0..100 {
            let depth = idle.depth(&lab.name).await.unwrap_or_default();
            if (depth.ready, depth.waiting) != (Some(0), Some(0)) {
                return false;
            }
            sleep(Duration::from_millis(50)).await;
        }
        true
    })
    .await;
    for mut process in processes {
        crate::support::redis::send_signal(process.id(), "TERM");
        process.wait().expect("it ends");
    }
    let depth = idle.depth(&lab.name).await.expect("an answer");
    assert_eq!((depth.ready, depth.waiting), (Some(0), Some(0)), "nothing was given back");
    idle
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_kill_every_id_has_exactly_one_effect() {
    let (lab, folder) = (Lab::new(), programs::folder());
    let toml = lab.toml(GUARDED, BROKER_WAITS);
    lab.idle(&toml).await.stop().await;
    let processes = (0..PROCESSES).map(|_| worker::start(&toml, folder.path())).collect();
    let ids = publish_all(&lab, &toml, &folder).await;
    let idle = finish(&lab, &toml, processes).await;
    let effects = by_id(folder.path());
    assert_eq!(effects.keys().collect::<Vec<_>>(), ids.keys().collect::<Vec<_>>());
    let twice: Vec<_> = effects.iter().filter(|(_, (all, _))| *all != 1).collect();
    assert!(twice.is_empty(), "{twice:?}");
    assert_eq!(lab.dead(&idle).await, Some(0));
    assert_eq!(counted(folder.path(), "redeliver_possible_duplicates_total"), 0);
    let copies: usize = ids.values().map(|times| times * PUBLISHERS - 1).sum();
    assert_eq!(counted(folder.path(), "redeliver_duplicates_total"), copies as u64);
    idle.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_kills_every_id_is_handled_and_every_extra_effect_was_told_of_a_takeover() {
    let (lab, folder) = (Lab::new(), programs::folder());
    let toml = lab.toml(GUARDED, BROKER_WAITS);
    lab.idle(&toml).await.stop().await;
    let mut processes: Vec<Child> =
        (0..PROCESSES).map(|_| worker::start(&toml, folder.path())).collect();
    let killing = async {
        for kill in 0..8 {
            sleep(Duration::from_millis(fastrand::u64(300..1500))).await;
            let process = &mut processes[kill % PROCESSES];
            process.kill().expect("it can be killed");
            process.wait().expect("it can be waited for");
            *process = worker::start(&toml, folder.path());
        }
    };
    let (ids, ()) = tokio::join!(publish_all(&lab, &toml, &folder), killing);
    let idle = finish(&lab, &toml, processes).await;
    let effects = by_id(folder.path());
    assert_eq!(effects.keys().collect::<Vec<_>>(), ids.keys().collect::<Vec<_>>());
    let silent: Vec<_> = effects.iter().filter(|(_, (all, taken))| all - 1 > *taken).collect();
    assert!(silent.is_empty(), "repeated without a word: {silent:?}");
    assert_eq!(lab.dead(&idle).await, Some(0));
    let extra: usize = effects.values().map(|(all, _)| all - 1).sum();
    println!("{extra} extra effects after 8 kills, each told of a takeover");
    idle.stop().await;
}
