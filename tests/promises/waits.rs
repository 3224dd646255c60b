//! Where a message waits for its next attempt, and who goes on meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use redeliver::testing::{Fate, TestService, WaitedAt};
use redeliver::{Delivery, Failure};

use crate::bench::{obey, orders, text};

fn waited(retry: &str) -> Vec<(Duration, WaitedAt)> {
    let mut test = orders("", retry, obey);
    test.publish("orders", text("7", "retry"));
    test.finish();
    let records = test.records().into_iter();
    records
        .filter_map(|record| match record.fate {
            Fate::Retried { after, at, .. } => Some((after, at)),
            _ => None,
        })
        .collect()
}

#[test]
fn short_waits_stay_in_the_process_and_long_ones_go_to_the_broker() {
    let retry =
        "jitter = \"none\"\ndelay_min = \"400ms\"\nattempts_max = 5\nin_process_max = \"1s\"\n";
    let ms = Duration::from_millis;
    assert_eq!(
        waited(retry),
        [
            (ms(400), WaitedAt::Process),
            (ms(800), WaitedAt::Process),
            (ms(1600), WaitedAt::Broker),
            (ms(3200), WaitedAt::Broker),
        ]
    );
}

#[test]
fn a_waiting_message_holds_nobody_back() {
    for place in ["0s", "1m"] {
        let retry = format!(
            "backoff = \"fixed\"\njitter = \"none\"\ndelay_min = \"30s\"\nin_process_max = \"{place}\"\n"
        );
        let mut test = orders("in_flight_max = 1", &retry, obey);
        test.publish("orders", text("7", "retry once"));
        test.publish("orders", text("8", "ok"));
        assert_eq!(test.log()[1], "8: attempt 1 handled", "waits in process up to {place}");
        test.advance(Duration::from_secs(30));
        assert_eq!(test.log()[2], "7: attempt 2 handled");
    }
}

#[test]
fn when_too_many_wait_in_the_process_the_rest_waits_at_the_broker() {
    let retry =
        "backoff = \"fixed\"\njitter = \"none\"\ndelay_min = \"10s\"\nin_process_max = \"1m\"\n";
    let mut test = orders("parked_max = 2", retry, obey);
    for id in 0..5 {
        test.publish("orders", text(&id.to_string(), "retry once"));
    }
    assert_eq!(test.log().len(), 5, "nobody waits for a place: {:?}", test.log());
    let places: Vec<_> = test.records().into_iter().map(|record| record.fate).collect();
    let at_broker = places
        .iter()
        .filter(|fate| matches!(fate, Fate::Retried { at: WaitedAt::Broker, .. }))
        .count();
    assert_eq!(at_broker, 3, "{places:?}");
    test.finish();
    let handled = test.records().iter().filter(|record| record.fate == Fate::Handled).count();
    assert_eq!(handled, 5);
}

#[test]
fn no_retry_comes_earlier_than_its_policy_says_and_none_is_forgotten() {
    for (jitter, in_process) in
        [("none", "0s"), ("full", "1s"), ("equal", "0s"), ("decorrelated", "500ms")]
    {
        let retry =
            format!("jitter = \"{jitter}\"\nin_process_max = \"{in_process}\"\nattempts_max = 4\n");
        let mut test = orders("", &retry, obey);
        for id in 0..50 {
            test.publish("orders", text(&id.to_string(), "retry"));
        }
        test.finish();
        assert_eq!(test.dead_letters("orders").len(), 50);
        for id in 0..50 {
            let records = test.records().into_iter();
            let of_one: Vec<_> =
                records.filter(|record| record.id.as_deref() == Some(&id.to_string())).collect();
            assert_eq!(of_one.len(), 4, "{of_one:?}");
            for pair in of_one.windows(2) {
                let Fate::Retried { after, .. } = pair[0].fate else { panic!("{pair:?}") };
                assert!(pair[1].at >= pair[0].at + after, "too early: {pair:?}");
            }
        }
    }
}

const HOUR: Duration = Duration::from_secs(3600);

/// A service whose handler answers the first delivery with `failure`, and every later one with `Ok`.
fn once(failure: fn() -> Failure) -> TestService {
    let runs = Arc::new(AtomicU32::new(0));
    let mut test = orders("", "jitter = \"none\"", move |_: Delivery<String>| {
        let is_first = runs.fetch_add(1, Ordering::SeqCst) == 0;
        async move { if is_first { Err(failure()) } else { Ok(()) } }
    });
    test.publish("orders", text("7", "go"));
    test
}

#[test]
fn a_wait_of_two_days_ends_after_two_days() {
    for (failure, lines) in [
        (
            (|| Failure::retry_after(48 * HOUR, "closed")) as fn() -> Failure,
            ["7: attempt 1 retry after 2d: closed", "7: attempt 2 handled"],
        ),
        (
            || Failure::defer(48 * HOUR, "closed"),
            ["7: attempt 1 deferred for 2d", "7: attempt 1 handled"],
        ),
    ] {
        let mut test = once(failure);
        test.advance(47 * HOUR);
        assert_eq!(test.log(), lines[..1]);
        test.advance(2 * HOUR);
        assert_eq!(test.log(), lines);
    }
}

#[test]
fn a_wait_without_an_end_is_a_wait_at_the_broker_and_keeps_no_place_here() {
    for failure in [(|| Failure::retry_after(Duration::MAX, "never")) as fn() -> Failure, || {
        Failure::defer(Duration::MAX, "never")
    }] {
        let mut test = once(failure);
        test.advance(72 * HOUR);
        assert_eq!(test.log().len(), 1, "{:?}", test.log());
        let service = test.service();
        let depth = test.run(async move { service.depth("orders").await }).expect("it tells");
        assert_eq!((depth.ready, depth.unsettled, depth.waiting), (Some(0), Some(0), Some(1)));
    }
}
