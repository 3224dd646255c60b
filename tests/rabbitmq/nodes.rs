//! What would disturb other tests, on servers of their own: stops, crashes, alarms, timeouts.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use redeliver::{Delivery, Failure, Message};
use tokio::sync::Semaphore;
use tokio::time::sleep;

use crate::common::rabbitmq::Node;
use crate::lab::{Lab, SHORT_WAITS, Seen, drained, held, metric, until};

/// A handler that fails once on every fifth message.
fn working(
    seen: &Seen,
) -> impl Fn(Delivery<u32>) -> std::pin::Pin<Box<dyn Future<Output = redeliver::Handled>>>
+ Clone
+ Send
+ Sync
+ 'static {
    let seen = seen.clone();
    move |delivery| {
        seen.note(&delivery);
        Box::pin(async move {
            sleep(Duration::from_millis(3)).await;
            if delivery.payload % 5 == 0 && delivery.attempt() == 1 {
                return Err(Failure::retry("once"));
            }
            Ok(())
        })
    }
}

#[tokio::test]
async fn a_broker_that_is_stopped_killed_and_started_loses_nothing_and_waits_survive() {
    let node = Node::start("promises", "").await;
    let mut lab = Lab::on(&node.url).await;
    let seen = Seen::default();
    let toml = lab.toml("in_flight_max = 16\n", &SHORT_WAITS.replace("200ms", "8s"));
    let service = lab.start(&toml, working(&seen)).await;
    let wait = format!("{}.wait.8000", lab.queue);
    for (round, kills) in [(0, false), (1, true)] {
        let first = round * 400;
        lab.publish(first..first + 400).await;
        // 80 of them wait at the broker when it goes.
        until("they wait", || async { lab.raw.count(&wait).await == 80 }).await;
        lab.publish(first + 200..first + 200).await;
        if kills {
            node.kill()
        } else {
            node.stop()
        }
        until("health tells", || async { !service.health().ready }).await;
        node.start_again();
        lab.raw = crate::common::rabbitmq::Raw::connect_to(&node.url).await;
        until("it consumes again", || async { service.health().ready }).await;
        drained(&service).await;
        let distinct = seen.attempts().len() as u32;
        assert_eq!(distinct, first + 400, "every message was seen");
        let retried = seen.runs().iter().filter(|run| run.attempt == 2).count() as u32;
        assert!(retried >= (round + 1) * 80, "waits were lost: {retried} came back");
    }
    let mut last = std::collections::BTreeMap::new();
    for run in seen.runs() {
        if let Some(before) = last.insert(run.number, run).filter(|_| run.attempt == 2) {
            let gap = run.at - before.at;
            assert!(gap >= Duration::from_secs(8) || before.attempt == 2, "early: {gap:?}");
        }
    }
    assert_eq!(lab.raw.count(&lab.dead()).await, 0);
    service.stop().await;
}

#[tokio::test]
async fn all_connections_closed_from_outside_lose_nothing_in_the_middle_of_work() {
    let node = Node::start("promises", "").await;
    let mut lab = Lab::on(&node.url).await;
    let seen = Seen::default();
    let toml = lab.toml("in_flight_max = 16\n", SHORT_WAITS);
    let service = lab.start(&toml, working(&seen)).await;
    lab.publish(0..1000).await;
    for close in 1..=3 {
        until("some are handled", || async { seen.count() >= close * 200 }).await;
        node.control(&["close_all_connections", "closed by a test"]);
        until("it is opened again", || async {
            metric(&service, "lanes_reopened").await >= close as f64 && service.health().ready
        })
        .await;
    }
    lab.raw = crate::common::rabbitmq::Raw::connect_to(&node.url).await;
    drained(&service).await;
    assert_eq!(seen.attempts().len(), 1000);
    assert_eq!(lab.raw.count(&lab.dead()).await, 0);
    service.stop().await;
}

#[tokio::test]
async fn a_channel_closed_by_a_precondition_failure_is_healed_and_nothing_runs_twice() {
    let node = Node::start("promises", "consumer_timeout = 1000\n").await;
    let lab = Lab::on(&node.url).await;
    let (seen, gate) = (Seen::default(), Arc::new(Semaphore::new(0)));
    let service = lab.start(&lab.toml("", ""), held(&seen, &gate)).await;
    lab.publish(0..5).await;
    until("all run", || async { seen.count() == 5 }).await;
    sleep(Duration::from_millis(1200)).await;
    until("the server closes the channel", || async {
        node.control(&["eval", "[Channel ! tick || Channel <- rabbit_channel:list()]."]);
        metric(&service, "lanes_reopened").await >= 1.0
    })
    .await;
    until("all came again", || async { metric(&service, "adopted").await >= 5.0 }).await;
    gate.add_permits(100);
    drained(&service).await;
    lab.publish(5..10).await;
    until("it consumes", || async { seen.count() == 10 }).await;
    drained(&service).await;
    service.stop().await;
    seen.assert_each_once(0..10);
}

#[tokio::test]
async fn a_broker_without_memory_is_told_by_health_and_work_goes_on_when_it_has_some() {
    let node = Node::start("promises", "").await;
    let lab = Lab::on(&node.url).await;
    let (seen, held) = (Seen::default(), Arc::new(AtomicBool::new(false)));
    let handler = seen.clone();
    // Nearly everything fails once here, and that is not what a breaker should find.
    let keys = "breaker = { attempts_min = 1000 }\n";
    let service = lab
        .start(&lab.toml(keys, SHORT_WAITS), move |delivery: Delivery<u32>| {
            handler.note(&delivery);
            async move {
                match (delivery.payload, delivery.attempt()) {
                    (1.., 1) => Err(Failure::retry("once")),
                    _ => Ok(()),
                }
            }
        })
        .await;
    lab.publish(0..1).await;
    drained(&service).await;
    lab.publish(1..20).await;
    node.control(&["set_vm_memory_high_watermark", "0.0001"]);
    let publisher = service.publisher("main").expect("there is this broker");
    let (queue, done) = (lab.queue.clone(), held.clone());
    let sending = tokio::spawn(async move {
        let sent = publisher.send(Message::bytes("20").to_queue(queue).id("20")).await;
        done.store(true, Ordering::SeqCst);
        sent
    });
    until("health tells", || async {
        let health = service.health();
        let reason = health.brokers["main"].clone().unwrap_or_default();
        !health.ready && reason.contains("memory")
    })
    .await;
    assert!(!held.load(Ordering::SeqCst), "nothing is confirmed during an alarm");
    node.control(&["set_vm_memory_high_watermark", "0.4"]);
    let sent = sending.await.expect("no task panics");
    // A confirm that took too long is an error that names the message; it may have arrived.
    assert!(sent.is_ok(), "{sent:?}");
    until("it is well again", || async { service.health().ready }).await;
    drained(&service).await;
    service.stop().await;
    let attempts = seen.attempts();
    assert_eq!(attempts.len(), 21);
    assert!((1..=20).all(|number| attempts[&number] == [1, 2]), "{attempts:?}");
}
