//! Connections, channels and queues that go away under a running service: it heals, and nothing is lost.

use std::sync::Arc;
use std::time::Duration;

use redeliver::{Delivery, Failure};
use tokio::sync::Semaphore;
use tokio::time::sleep;

use crate::lab::{Lab, SHORT_WAITS, Seen, drained, held, metric, until};

#[tokio::test]
async fn closed_connections_lose_nothing_and_the_same_process_goes_on() {
    let lab = Lab::new().await;
    let seen = Seen::default();
    let handler = seen.clone();
    let toml = lab.toml("in_flight_max = 16\n", SHORT_WAITS);
    let service = lab
        .start(&toml, move |delivery: Delivery<u32>| {
            handler.note(&delivery);
            async move {
                sleep(Duration::from_millis(4)).await;
                if delivery.payload.is_multiple_of(10) && delivery.attempt() == 1 {
                    return Err(Failure::retry("once"));
                }
                Ok(())
            }
        })
        .await;
    lab.publish(0..1000).await;
    for close in 1..=3 {
        until("some are handled", || async { seen.count() >= close * 200 }).await;
        assert_eq!(lab.close_connections(), 2, "one to consume and one to publish");
        // Both are needed again: one for what is left, one for what fails.
        until("it consumes again", || async {
            metric(&service, "lanes_reopened").await >= close as f64
        })
        .await;
        until("it is well again", || async { service.health().ready }).await;
    }
    drained(&service).await;
    service.stop().await;
    assert_eq!(seen.attempts().len(), 1000, "none is lost");
    assert_eq!(lab.raw.count(&lab.dead()).await, 0);
}

#[tokio::test]
async fn what_runs_while_the_connection_is_lost_is_not_run_again() {
    let lab = Lab::new().await;
    let (seen, gate) = (Seen::default(), Arc::new(Semaphore::new(0)));
    let service = lab.start(&lab.toml("", ""), held(&seen, &gate)).await;
    lab.publish(0..10).await;
    until("all run", || async { seen.count() == 10 }).await;
    lab.close_connections();
    until("all came again", || async { metric(&service, "adopted").await >= 10.0 }).await;
    gate.add_permits(10);
    drained(&service).await;
    service.stop().await;
    seen.assert_each_once(0..10);
    assert_eq!(lab.ready().await, 0, "the outcome of the first delivery settled the second");
}

#[tokio::test]
async fn what_runs_in_several_lanes_is_run_once_whichever_of_them_gets_it_again() {
    // With permits to spare, and with lanes that are too busy to ask for more.
    for in_flight_max in [64, 5] {
        let lab = Lab::new().await;
        let (seen, gate) = (Seen::default(), Arc::new(Semaphore::new(0)));
        let keys = format!(
            "consumers = 3\nin_flight_max = {in_flight_max}\nparked_max = 1\ntimeout = \"10m\"\n"
        );
        let service = lab.start(&lab.toml(&keys, ""), held(&seen, &gate)).await;
        lab.publish(0..15).await;
        // The server fills one window after another: 6, 6 and 3 where a lane runs 5 and parks 1.
        let running = if in_flight_max > 5 { 15 } else { 13 };
        until("they run", || async { seen.count() >= running }).await;
        for round in 1..=2 {
            lab.close_connections();
            until("its lanes are open again", || async {
                metric(&service, "lanes_reopened").await >= f64::from(round * 3)
                    && service.health().ready
            })
            .await;
            // Those without a permit learn what came again when the first handler is done.
            let known = if in_flight_max > 5 { f64::from(round * 15) } else { 0.0 };
            until("all came again", || async { metric(&service, "adopted").await >= known }).await;
        }
        gate.add_permits(15);
        drained(&service).await;
        service.stop().await;
        seen.assert_each_once(0..15);
        assert_eq!(lab.ready().await, 0, "the outcome of the first delivery settled the last");
    }
}

#[tokio::test]
async fn what_was_done_while_the_connection_was_lost_is_settled_and_not_run_again() {
    let lab = Lab::new().await;
    let proxy = crate::proxy::Proxy::to(&lab.url).await;
    let (seen, gate) = (Seen::default(), Arc::new(Semaphore::new(0)));
    let service = lab.start(&lab.toml_at(&proxy.url, "", ""), held(&seen, &gate)).await;
    lab.publish(0..10).await;
    until("all run", || async { seen.count() == 10 }).await;
    // New connections stay silent, so the outcomes come while there is no lane.
    proxy.hold_back(true);
    proxy.cut();
    until("the loss is noticed", || async { !service.health().ready }).await;
    gate.add_permits(10);
    until("the server has them back", || async { lab.ready().await == 10 }).await;
    proxy.hold_back(false);
    until("all are settled", || async {
        // More where a new connection was lost again before it had settled them.
        metric(&service, "adopted").await >= 10.0 && lab.ready().await == 0
    })
    .await;
    service.stop().await;
    seen.assert_each_once(0..10);
    assert_eq!(lab.ready().await, 0);
}

#[tokio::test]
async fn a_queue_deleted_under_its_consumer_is_declared_and_consumed_again() {
    let lab = Lab::new().await;
    let seen = Seen::default();
    let handler = seen.clone();
    let service = lab
        .start(&lab.toml("", ""), move |delivery: Delivery<u32>| {
            handler.note(&delivery);
            async { Ok(()) }
        })
        .await;
    for round in 0..3 {
        lab.publish(round * 10..(round + 1) * 10).await;
        until("they are handled", || async { seen.count() as u32 == (round + 1) * 10 }).await;
        lab.raw.delete(&lab.queue).await;
        until("it consumes again", || async {
            metric(&service, "lanes_reopened").await >= f64::from(round + 1)
                && service.health().ready
        })
        .await;
    }
    service.stop().await;
    seen.assert_each_once(0..30);
}

#[tokio::test]
async fn a_queue_that_nobody_may_declare_is_waited_for() {
    let lab = Lab::new().await;
    let quorum = [("x-queue-type", lapin::types::AMQPValue::LongString("quorum".into()))];
    lab.raw.declare(&lab.queue, &quorum).await;
    let seen = Seen::default();
    let handler = seen.clone();
    let service = lab
        .start(&lab.toml("topology = \"none\"\n", ""), move |delivery: Delivery<u32>| {
            handler.note(&delivery);
            async { Ok(()) }
        })
        .await;
    lab.publish(0..5).await;
    until("they are handled", || async { seen.count() == 5 }).await;
    lab.raw.delete(&lab.queue).await;
    until("health names the queue", || async {
        service
            .health()
            .reasons
            .iter()
            .any(|reason| reason.contains("NOT_FOUND") && reason.contains(&lab.queue))
    })
    .await;
    lab.raw.declare(&lab.queue, &quorum).await;
    lab.publish(5..10).await;
    until("they are handled", || async { seen.count() == 10 }).await;
    assert!(service.health().ready, "{:?}", service.health().reasons);
    service.stop().await;
}

#[tokio::test]
async fn a_server_that_falls_silent_on_an_open_connection_is_noticed_by_its_heartbeats() {
    let lab = Lab::new().await;
    let proxy = crate::proxy::Proxy::to(&lab.url).await;
    let seen = Seen::default();
    let handler = seen.clone();
    let toml = lab.toml_at(&format!("{}?heartbeat=1", proxy.url), "", "");
    let service = lab
        .start(&toml, move |delivery: Delivery<u32>| {
            handler.note(&delivery);
            async { Ok(()) }
        })
        .await;
    lab.publish(0..10).await;
    drained(&service).await;
    assert!(service.health().ready, "{:?}", service.health().reasons);
    // Nothing is cut: only heartbeats that do not come can tell.
    proxy.hold_back(true);
    until("the silence is noticed", || async { !service.health().ready }).await;
    lab.publish(10..20).await;
    proxy.hold_back(false);
    until("all are handled", || async { seen.attempts().len() == 20 }).await;
    drained(&service).await;
    service.stop().await;
    assert_eq!(lab.ready().await, 0);
}
