//! A dead dependency does not drain the queue into the dead letters.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use redeliver::{Delivery, Failure};
use tokio::time::sleep;

use crate::lab::{Lab, SHORT_WAITS, Seen, dead_letters, drained, until};

const KEYS: &str = "in_flight_max = 8\n\
    breaker = { attempts_min = 20, failure_rate = 0.9, window = \"10s\", pause = \"300ms\", pause_max = \"600ms\" }\n";

#[tokio::test]
async fn while_everything_fails_the_queue_is_kept_and_no_attempt_is_burnt() {
    let lab = Lab::new().await;
    let (down, seen) = (Arc::new(AtomicBool::new(true)), Seen::default());
    let (is_down, handler) = (down.clone(), seen.clone());
    let returned = Arc::new(AtomicU32::new(0));
    let came_back = returned.clone();
    // Two attempts: whatever were burnt twice would be dead.
    let policy = SHORT_WAITS.replace("attempts_max = 4", "attempts_max = 3");
    let service = lab
        .start(&lab.toml(KEYS, &policy), move |delivery: Delivery<u32>| {
            handler.note(&delivery);
            if delivery.is_redelivered() || delivery.header("x-delivery-count").is_some() {
                came_back.fetch_add(1, Ordering::SeqCst);
            }
            let fails = is_down.load(Ordering::SeqCst);
            async move {
                sleep(Duration::from_millis(5)).await;
                if fails { Err(Failure::retry("the dependency is down")) } else { Ok(()) }
            }
        })
        .await;
    lab.publish(0..400).await;
    until("the breaker opens", || async { service.health().subscriptions["orders"].breaker_open })
        .await;
    assert!(!service.health().ready, "health tells");
    // Several pauses long; only probes run.
    let (before, began) = (seen.count(), tokio::time::Instant::now());
    assert!(before <= 20 + 8, "{before} ran before it opened");
    sleep(Duration::from_secs(3)).await;
    let probes = seen.count() - before;
    let most = began.elapsed().as_millis() / 300 + 2;
    assert!(probes >= 2 && probes as u128 <= most + 8, "{probes} probes in {:?}", began.elapsed());
    assert_eq!(lab.raw.count(&lab.dead()).await, 0, "nothing is dead-lettered");
    let unfinished = lab.ready().await + lab.raw.count(&format!("{}.wait.200", lab.queue)).await;
    assert!(unfinished >= 400 - 8 - 128, "the messages stay with the broker: {unfinished}");

    down.store(false, Ordering::SeqCst);
    drained(&service).await;
    until("the breaker closes", || async { service.health().ready }).await;
    assert_eq!(dead_letters(&service).await.len(), 0);
    service.stop().await;
    let attempts = seen.attempts();
    assert_eq!(attempts.len(), 400);
    let burnt: u32 = attempts.values().map(|runs| runs.last().expect("at least one") - 1).sum();
    assert!(burnt <= 20 + 8, "{burnt} attempts were counted while the dependency was down");
    assert_eq!(returned.load(Ordering::SeqCst), 0, "what was held back was never returned");
}
