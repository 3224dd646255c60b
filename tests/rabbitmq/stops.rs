//! Clean stops: what ran is finished and acknowledged, the rest is untouched.

use std::sync::Arc;
use std::time::Duration;

use redeliver::{Delivery, Failure, Service};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use crate::lab::{Lab, PATIENCE, SHORT_WAITS, Seen, drained, metric, sample, until};
use crate::proxy::Proxy;

#[tokio::test]
async fn twenty_stops_among_20000_messages_repeat_none_and_leave_none_unacknowledged() {
    const STOPS: u32 = 20;
    let total = sample(4_000, 20_000);
    let lab = Lab::new().await;
    let toml = lab.toml("in_flight_max = 128\n", "");
    lab.prepare(&toml).await;
    lab.publish(0..total).await;
    let seen = Seen::default();
    for stop in 1..=STOPS {
        let handler = seen.clone();
        let service = lab
            .start(&toml, move |delivery: Delivery<u32>| {
                handler.note(&delivery);
                async move {
                    sleep(Duration::from_millis(2)).await;
                    Ok(())
                }
            })
            .await;
        // The last one works off what is left.
        let least = if stop == STOPS { total } else { total * stop / STOPS };
        until(&format!("{least} are handled"), || async { seen.count() >= least as usize }).await;
        assert_eq!(service.stop().await.left, 0);
    }
    seen.assert_each_once(0..total);
    // Whatever had not been acknowledged would be ready again, now that nobody consumes.
    sleep(Duration::from_millis(200)).await;
    assert_eq!(lab.ready().await, 0);
}

#[tokio::test]
async fn a_stop_gives_back_what_is_not_done_in_time() {
    let lab = Lab::new().await;
    let toml = lab
        .toml("in_flight_max = 4\n", "")
        .replace("[brokers.main]", "shutdown_grace = \"300ms\"\n[brokers.main]");
    lab.prepare(&toml).await;
    lab.publish(0..10).await;
    let seen = Seen::default();
    let handler = seen.clone();
    let service = lab
        .start(&toml, move |delivery: Delivery<u32>| {
            handler.note(&delivery);
            async {
                sleep(Duration::from_secs(3600)).await;
                Ok(())
            }
        })
        .await;
    until("four run", || async { seen.count() == 4 }).await;
    assert_eq!(service.stop().await.left, 4);
    until("all ten are back", || async { lab.ready().await == 10 }).await;
}

/// A service behind a proxy, with an hour for its stop and three handlers that run: each permit lets one of them fail.
async fn three_that_will_fail(lab: &Lab) -> (Proxy, Service, Arc<Semaphore>) {
    let proxy = Proxy::to(&lab.url).await;
    let toml = lab
        .toml_at(&proxy.url, "", SHORT_WAITS)
        .replace("[brokers.main]", "shutdown_grace = \"1h\"\n[brokers.main]");
    let (gate, seen) = (Arc::new(Semaphore::new(0)), Seen::default());
    let (open, handler) = (Arc::clone(&gate), seen.clone());
    let service = lab
        .start(&toml, move |delivery: Delivery<u32>| {
            handler.note(&delivery);
            let open = Arc::clone(&open);
            async move {
                open.acquire().await?.forget();
                Err(Failure::retry("it waits at the broker"))
            }
        })
        .await;
    lab.publish(0..3).await;
    until("three run", || async { seen.count() == 3 }).await;
    (proxy, service, gate)
}

#[tokio::test]
async fn a_stop_while_the_server_is_away_waits_for_no_copy_that_nobody_can_confirm() {
    let lab = Lab::new().await;
    let (proxy, service, gate) = three_that_will_fail(&lab).await;
    drop(proxy);
    gate.add_permits(3);
    until("no copy is made", || async { metric(&service, "copies_failed").await >= 3.0 }).await;
    let stop = timeout(PATIENCE, service.stop()).await.expect("it does not wait for an hour");
    assert_eq!(stop.left, 0, "no handler ran any more");
    until("all three are back", || async { lab.ready().await == 3 }).await;
}

#[tokio::test]
async fn a_stop_that_loses_the_server_on_its_way_waits_for_no_copy_that_nobody_can_confirm() {
    let lab = Lab::new().await;
    let (proxy, service, gate) = three_that_will_fail(&lab).await;
    proxy.hold_back(true);
    gate.add_permits(3);
    until("their copies are under way", || async { metric(&service, "carrying").await >= 3.0 })
        .await;
    let stopping = tokio::spawn({
        let service = service.clone();
        async move { service.stop().await }
    });
    // Should it not have begun by then, this is the case above.
    sleep(Duration::from_millis(500)).await;
    drop(proxy);
    let stop = timeout(PATIENCE, stopping).await.expect("it does not wait for an hour");
    assert_eq!(stop.expect("no panic").left, 0, "no handler ran any more");
    until("all three are back", || async { lab.ready().await == 3 }).await;
}

#[tokio::test]
async fn a_pause_right_after_the_start_holds_everything() {
    for _ in 0..sample(10, 50) {
        let lab = Lab::new().await;
        let seen = Seen::default();
        let handler = seen.clone();
        let service = lab
            .start(&lab.toml("", ""), move |delivery: Delivery<u32>| {
                handler.note(&delivery);
                async { Ok(()) }
            })
            .await;
        service.pause("orders").await.expect("it can be paused");
        lab.publish(0..3).await;
        sleep(Duration::from_millis(100)).await;
        until("all three are there", || async { lab.ready().await == 3 }).await;
        assert_eq!(seen.count(), 0, "nothing is handled in a pause");
        service.resume("orders").await.expect("it goes on");
        until("all three are handled", || async { seen.count() == 3 }).await;
        service.stop().await;
    }
}

#[tokio::test]
async fn a_pause_holds_everything_and_counts_no_attempt() {
    let lab = Lab::new().await;
    let seen = Seen::default();
    let handler = seen.clone();
    let service = lab
        .start(&lab.toml("in_flight_max = 8\n", SHORT_WAITS), move |delivery: Delivery<u32>| {
            handler.note(&delivery);
            async move {
                sleep(Duration::from_millis(5)).await;
                if delivery.payload.is_multiple_of(7) && delivery.attempt() == 1 {
                    return Err(Failure::retry("once"));
                }
                Ok(())
            }
        })
        .await;
    lab.publish(0..500).await;
    for pause in 1..=4 {
        until("some are handled", || async { seen.count() >= pause * 80 }).await;
        service.pause("orders").await.expect("it can be paused");
        let held = seen.count();
        sleep(Duration::from_millis(300)).await;
        assert_eq!(seen.count(), held, "nothing is handled in a pause");
        assert!(service.health().ready, "a pause on purpose is not ill");
        service.resume("orders").await.expect("it goes on");
    }
    drained(&service).await;
    service.stop().await;
    for (number, attempts) in seen.attempts() {
        let expected: &[u32] = if number % 7 == 0 { &[1, 2] } else { &[1] };
        assert_eq!(attempts, expected, "attempts of {number}");
    }
    assert_eq!(seen.attempts().len(), 500);
}
