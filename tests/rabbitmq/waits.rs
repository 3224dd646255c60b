//! Waits at the broker: never early, in steps that are declared.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use redeliver::broker::HeaderValue;
use redeliver::{Delivery, Failure};
use tokio::time::Instant;

use crate::lab::{Lab, Seen, drained, metric, until};

/// All fail here at first, and that is not what a breaker should find.
const UNBROKEN: &str = "breaker = { attempts_min = 100000 }\n";

/// The times between the attempts on each number.
fn gaps(seen: &Seen) -> BTreeMap<u32, Vec<Duration>> {
    let mut last = BTreeMap::<u32, Instant>::new();
    let mut gaps = BTreeMap::<u32, Vec<Duration>>::new();
    for run in seen.runs() {
        if let Some(before) = last.insert(run.number, run.at) {
            gaps.entry(run.number).or_default().push(run.at - before);
        }
    }
    gaps
}

#[tokio::test]
async fn retry_after_is_never_early_however_long_or_short_the_steps_are() {
    let lab = Lab::new().await;
    let after = [150, 700, 2000, 2900].map(Duration::from_millis);
    for wait in [2000, 5000] {
        lab.beside(&format!("wait.{wait}"));
    }
    let policy = r#"
[retry.standard]
backoff = "list"
jitter = "none"
delays = ["200ms", "1s"]
in_process_max = "0s"
"#;
    let seen = Seen::default();
    let handler = seen.clone();
    let service = lab
        .start(&lab.toml(UNBROKEN, policy), move |delivery: Delivery<u32>| {
            handler.note(&delivery);
            async move {
                let (delay, error) = (after[delivery.payload as usize % 4], "busy");
                match (delivery.attempt(), delivery.payload < 4) {
                    (1, true) => Err(Failure::retry_after(delay, error)),
                    (1, false) if delivery.first_seen().is_none() => {
                        Err(Failure::defer(delay, error))
                    }
                    _ => Ok(()),
                }
            }
        })
        .await;
    lab.publish(0..8).await;
    until("all are handled", || async { seen.count() == 16 }).await;
    drained(&service).await;
    service.stop().await;
    lab.forget_waits().await;
    for (number, gaps) in gaps(&seen) {
        let asked = after[number as usize % 4];
        assert!(gaps[0] >= asked, "number {number} was early: {gaps:?} instead of {asked:?}");
    }
    for (number, attempts) in seen.attempts() {
        let expected = if number < 4 { [1, 2] } else { [1, 1] };
        assert_eq!(attempts, expected, "only a retry counts an attempt: {number}");
    }
}

#[tokio::test]
async fn drawn_delays_are_waited_in_steps_of_a_declared_grid() {
    let lab = Lab::new().await;
    let policy = r#"
[retry.standard]
backoff = "exponential"
jitter = "full"
delay_min = "400ms"
delay_max = "3s"
in_process_max = "150ms"
attempts_max = 6
"#;
    let waited = Arc::new(Mutex::new(Vec::new()));
    let seen = Seen::default();
    let (handler, note) = (seen.clone(), waited.clone());
    let service = lab
        .start(&lab.toml(UNBROKEN, policy), move |delivery: Delivery<u32>| {
            handler.note(&delivery);
            let header = |name: &str| match delivery.header(name) {
                Some(HeaderValue::Text(text)) => text.parse::<u64>().ok(),
                _ => None,
            };
            // A wait in the process leaves the headers as they came from the broker.
            let waited_there = header("redeliver-attempt") == Some(delivery.attempt() as u64 - 1);
            if let Some(delay) = header("redeliver-delay").filter(|_| waited_there) {
                let run = (delivery.payload, delivery.attempt(), Duration::from_millis(delay));
                note.lock().expect("no test panics in here").push(run);
            }
            async move {
                if delivery.attempt() < 4 { Err(Failure::retry("not yet")) } else { Ok(()) }
            }
        })
        .await;
    let prefix = format!("queue `{}.wait.", lab.queue);
    let topology = service.topology("orders").expect("it has this subscription");
    let steps: Vec<u64> = topology
        .iter()
        .filter_map(|line| line.strip_prefix(&prefix)?.split_once('`')?.0.parse().ok())
        .collect();
    assert!((2..=16).contains(&steps.len()), "{steps:?}");
    lab.publish(0..60).await;
    drained(&service).await;
    service.stop().await;
    let waited = waited.lock().expect("no test panics in here").clone();
    let gaps = gaps(&seen);
    let mut used = std::collections::BTreeSet::new();
    for (number, attempt, delay) in &waited {
        let step = delay.as_millis() as u64;
        let gap = gaps[number][*attempt as usize - 2];
        assert!(gap >= *delay, "number {number} was early: {gap:?} instead of {delay:?}");
        assert!(steps.contains(&step), "{delay:?} is no step of {steps:?}");
        used.insert(step);
    }
    assert!(used.len() > 2, "delays are spread over the steps: {used:?}");
}

#[tokio::test]
async fn delays_from_100_ms_to_a_day_are_queues_of_their_own() {
    let lab = Lab::new().await;
    let policy = r#"
[retry.standard]
backoff = "list"
jitter = "none"
delays = ["100ms", "2s", "10m", "24h"]
delay_max = "24h"
in_process_max = "0s"
"#;
    let toml = lab.toml(UNBROKEN, policy);
    let service = lab
        .start(&toml, |delivery: Delivery<u32>| async move {
            let day = Duration::from_secs(24 * 3600);
            Err(if delivery.payload == 1 {
                Failure::retry_after(day, "tomorrow")
            } else {
                Failure::retry("not yet")
            })
        })
        .await;
    let topology = service.topology("orders").expect("it has this subscription").join("\n");
    for milliseconds in [100, 2_000, 600_000, 86_400_000] {
        let name = format!("{}.wait.{milliseconds}", lab.queue);
        assert_eq!(lab.raw.count(&name).await, 0, "it was declared");
        assert!(topology.contains(&format!("x-message-ttl={milliseconds},")), "{topology}");
    }
    lab.publish(0..2).await;
    until("one waits a day, one ten minutes", || async {
        let waiting = |ms: u32| format!("{}.wait.{ms}", lab.queue);
        lab.raw.count(&waiting(86_400_000)).await == 1
            && lab.raw.count(&waiting(600_000)).await == 1
    })
    .await;
    service.stop().await;
}

/// A single step, far below what handlers ask for.
const ONE_STEP: &str = r#"
[retry.standard]
backoff = "fixed"
jitter = "none"
delay_min = "100ms"
in_process_max = "0s"
"#;

#[tokio::test]
async fn a_retry_after_beyond_the_policy_takes_one_hop_through_a_wait_made_for_it() {
    let lab = Lab::new().await;
    for wait in ["2000", "86400000"] {
        lab.beside(&format!("wait.{wait}"));
    }
    let seen = Seen::default();
    let handler = seen.clone();
    let toml = lab.toml(UNBROKEN, ONE_STEP);
    let start = || {
        let handler = handler.clone();
        lab.start(&toml, move |delivery: Delivery<u32>| {
            handler.note(&delivery);
            async move {
                match (delivery.payload, delivery.attempt()) {
                    (0, 1) => Err(Failure::retry_after(Duration::from_millis(1500), "busy")),
                    (1, _) => Err(Failure::retry_after(Duration::from_secs(86_000), "tomorrow")),
                    _ => Ok(()),
                }
            }
        })
    };
    let service = start().await;
    lab.publish(0..2).await;
    until("one is handled and one waits", || async {
        let depth = service.depth("orders").await.expect("the server answers");
        seen.count() == 3 && depth.waiting == Some(1)
    })
    .await;
    assert!(gaps(&seen)[&0][0] >= Duration::from_millis(1500));
    assert_eq!(metric(&service, "received_total").await, 3.0, "a delivery for each run");
    assert_eq!(metric(&service, "wait_seconds_count").await, 2.0, "a wait for each failure");
    service.stop().await;
    // Another process, which declared none of them, finds what waits.
    let service = start().await;
    assert_eq!(service.depth("orders").await.expect("the server answers").waiting, Some(1));
    service.stop().await;
    lab.forget_waits().await;
}

#[tokio::test]
async fn the_hops_of_one_wait_are_no_deliveries_and_no_waits() {
    let lab = Lab::new().await;
    lab.prepare(&lab.toml("", ONE_STEP)).await;
    let seen = Seen::default();
    let handler = seen.clone();
    // Nothing may be declared, so that the longest step that is there is taken again and again.
    let toml = lab.toml(&format!("topology = \"verify\"\n{UNBROKEN}"), ONE_STEP);
    let service = lab
        .start(&toml, move |delivery: Delivery<u32>| {
            handler.note(&delivery);
            async move {
                match delivery.attempt() {
                    1 => Err(Failure::retry_after(Duration::from_secs(1), "busy")),
                    _ => Ok(()),
                }
            }
        })
        .await;
    lab.publish(0..1).await;
    until("it is handled", || async { seen.count() == 2 }).await;
    drained(&service).await;
    assert!(gaps(&seen)[&0][0] >= Duration::from_secs(1));
    assert_eq!(metric(&service, "received_total").await, 2.0);
    assert_eq!(metric(&service, "wait_seconds_count").await, 1.0);
    service.stop().await;
}
