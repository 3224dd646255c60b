//! Several lanes of one subscription: what one of them does never leaves another asleep.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use redeliver::Failure;
use redeliver::testing::TestService;

use crate::bench::{THRICE, obey, orders, text};

fn ids(test: &TestService) -> Vec<usize> {
    let records = test.records();
    records.iter().map(|record| record.id.as_ref().unwrap().parse().unwrap()).collect()
}

#[test]
fn a_lane_with_much_to_do_leaves_a_permit_to_one_that_has_none() {
    let keys = "consumers = 3\nin_flight_max = 2\nin_flight_total_max = 2\n";
    let mut test = orders(keys, THRICE, obey);
    for id in 0..60 {
        test.publish("orders", text(&id.to_string(), "slow"));
    }
    test.finish();
    let overtaken = ids(&test).into_iter().enumerate().map(|(turn, id)| turn.saturating_sub(id));
    let most = overtaken.max().unwrap();
    assert!(most <= 6, "a message was overtaken by {most} others");
    assert!(test.elapsed() <= Duration::from_secs(31), "two at a time: {:?}", test.elapsed());
}

#[test]
fn a_probe_that_works_wakes_the_lanes_that_held_back() {
    let up = Arc::new(AtomicBool::new(false));
    let dependency = Arc::clone(&up);
    let handler = move |delivery: redeliver::Delivery<String>| {
        let up = dependency.load(Ordering::SeqCst);
        async move {
            tokio::time::sleep(Duration::from_millis(100)).await;
            if up { obey(delivery).await } else { Err(Failure::retry("connection refused")) }
        }
    };
    let keys = "consumers = 3\nbreaker = { attempts_min = 5, pause = \"5s\", pause_max = \"5s\" }";
    let mut test = orders(keys, "attempts_max = 8\n", handler);
    for id in 0..200 {
        test.publish("orders", text(&id.to_string(), "ok"));
    }
    test.advance(Duration::from_secs(60));
    assert!(test.service().health().subscriptions["orders"].breaker_open);
    up.store(true, Ordering::SeqCst);
    test.advance(Duration::from_secs(60));
    let handled = test.log().iter().filter(|line| line.ends_with("handled")).count();
    assert_eq!(handled, 200, "all of them, in all lanes");
}
