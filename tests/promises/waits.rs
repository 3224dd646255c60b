//! Where a message waits for its next attempt, and who goes on meanwhile.

use std::time::Duration;

use redeliver::testing::{Fate, WaitedAt};

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
