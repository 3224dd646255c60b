//! What a handler answers, and what becomes of its message.

use std::time::Duration;

use redeliver::testing::Fate;
use redeliver::{Delivery, Failure, Handled};

use crate::bench::{THRICE, check, obey, orders, text};

#[test]
fn what_worked_is_acknowledged() {
    check("", THRICE, "ok", &["7: attempt 1 handled"]);
}

#[test]
fn a_failure_is_tried_again_after_the_policy_s_delay() {
    check(
        "",
        THRICE,
        "retry once",
        &["7: attempt 1 retry after 200ms: not yet", "7: attempt 2 handled"],
    );
}

#[test]
fn attempts_run_out() {
    check(
        "",
        THRICE,
        "retry",
        &[
            "7: attempt 1 retry after 200ms: not yet",
            "7: attempt 2 retry after 200ms: not yet",
            "7: attempt 3 dead-lettered: exhausted: not yet",
        ],
    );
}

#[test]
fn with_one_attempt_the_first_failure_is_the_last() {
    let once = "attempts_max = 1\n";
    check("", once, "retry", &["7: attempt 1 dead-lettered: exhausted: not yet"]);
    check("", once, "later", &["7: attempt 1 dead-lettered: exhausted: too many requests"]);
}

#[test]
fn a_reject_is_a_dead_letter_at_once() {
    check("", THRICE, "reject", &["7: attempt 1 dead-lettered: rejected: no such customer"]);
}

#[test]
fn immediate_attempts_come_first_and_count() {
    check(
        "",
        &format!("{THRICE}immediate = 1\n"),
        "retry",
        &[
            "7: attempt 1 retry at once: not yet",
            "7: attempt 2 retry after 200ms: not yet",
            "7: attempt 3 dead-lettered: exhausted: not yet",
        ],
    );
}

#[test]
fn retry_after_is_never_earlier_than_asked_and_counts() {
    for retry in [THRICE, "jitter = \"none\"\nattempts_max = 3\n", "attempts_max = 3\n"] {
        let mut test = orders("", retry, obey);
        test.publish("orders", text("7", "later once"));
        test.advance(Duration::from_millis(4_999));
        assert_eq!(handled(&test), 0, "earlier than asked: {:?}", test.log());
        test.finish();
        let last = test.records().pop().expect("it was handled");
        assert_eq!((last.fate, last.attempt), (Fate::Handled, 2), "{retry}");
    }
}

#[test]
fn a_defer_costs_no_attempt_and_comes_back_no_earlier_than_asked() {
    let mut test = orders("", &format!("{THRICE}age_max = \"1m\"\n"), obey);
    test.publish("orders", text("7", "defer"));
    test.advance(Duration::from_millis(1_999));
    assert_eq!(test.log(), ["7: attempt 1 deferred for 2s"]);
    test.advance(Duration::from_secs(20));
    assert!(test.log().len() >= 10, "{:?}", test.log());
    assert!(test.log().iter().all(|line| line == "7: attempt 1 deferred for 2s"));
}

#[test]
fn what_is_deferred_for_ever_ends_at_its_age() {
    let mut test = orders("", &format!("{THRICE}age_max = \"10s\"\n"), obey);
    test.publish("orders", text("7", "defer"));
    test.finish();
    let log = test.log();
    let last = log.last().expect("there are lines");
    assert_eq!(
        last,
        "7: attempt 1 dead-lettered: expired: older than age_max (10s): somebody else has the lock"
    );
    assert_eq!(test.records().pop().map(|record| record.at), Some(Duration::from_secs(10)));
}

#[test]
fn retries_end_at_the_age_too() {
    let retry = "backoff = \"fixed\"\njitter = \"none\"\ndelay_min = \"4s\"\nage_max = \"10s\"\n\
                 attempts_max = 100\n";
    let mut test = orders("", retry, obey);
    test.publish("orders", text("7", "retry"));
    test.finish();
    assert_eq!(test.log().len(), 4, "{:?}", test.log());
    assert!(test.log()[3].contains("expired: older than age_max (10s): not yet"));
    assert_eq!(test.records()[3].at, Duration::from_secs(12));
}

#[test]
fn any_error_converts_into_a_retry_and_can_be_given_a_class_for_the_rules() {
    async fn count(delivery: Delivery<String>) -> Handled {
        match delivery.id() {
            Some("plain") => {
                delivery.payload.parse::<u32>()?;
            }
            Some("io") => {
                std::fs::read("/there/is/no/such/file")?;
            }
            _ => {
                let number = delivery.payload.parse::<u32>();
                number.map_err(|error| Failure::from(error).class("validation"))?;
            }
        }
        Ok(())
    }
    let retry = format!("{THRICE}rules = [{{ class = \"validation\", then = \"reject\" }}]\n");
    let mut test = orders("", &retry, count);
    for id in ["plain", "io", "classed"] {
        test.publish("orders", text(id, "many"));
    }
    let log = test.log();
    assert_eq!(log[0], "plain: attempt 1 retry after 200ms: invalid digit found in string");
    assert!(log[1].starts_with("io: attempt 1 retry after 200ms: No such file"), "{log:?}");
    assert_eq!(log[2], "classed: attempt 1 dead-lettered: rejected: invalid digit found in string");
}

#[test]
fn age_is_counted_from_the_first_delivery_not_from_the_first_failure() {
    let late = |_: Delivery<String>| async {
        tokio::time::sleep(Duration::from_secs(11)).await;
        Handled::Err(Failure::retry("not yet"))
    };
    for (way, line) in [
        ("dead-letter", "7: attempt 1 dead-lettered: expired: older than age_max (10s): not yet"),
        ("drop", "7: dropped: expired"),
    ] {
        let settings = format!("timeout = \"1m\"\non_expired = \"{way}\"");
        let mut test = orders(&settings, &format!("{THRICE}age_max = \"10s\"\n"), late);
        test.advance(Duration::from_secs(100));
        test.publish("orders", text("7", "ok"));
        test.finish();
        assert_eq!(test.log(), [line]);
        for letter in test.dead_letters("orders") {
            let (first, end) = (letter.first_seen.expect("kept"), letter.dead_at.expect("kept"));
            assert_eq!(end.duration_since(first).ok(), Some(Duration::from_secs(11)));
        }
    }
}

#[test]
fn a_rule_can_reject_ignore_or_choose_another_policy_by_class() {
    let reject = format!("{THRICE}rules = [{{ class = \"validation\", then = \"reject\" }}]\n");
    check("", &reject, "invalid", &["7: attempt 1 dead-lettered: rejected: not a number"]);
    let ignore = format!("{THRICE}rules = [{{ class = \"validation\", then = \"ignore\" }}]\n");
    check("", &ignore, "invalid", &["7: attempt 1 ignored: not a number"]);
    let other = format!(
        "{THRICE}rules = [{{ class = \"validation\", then = \"retry\", retry = \"slow\" }}]\n\
         [retry.slow]\nbackoff = \"fixed\"\njitter = \"none\"\ndelay_min = \"3s\"\nattempts_max = 2\n"
    );
    check(
        "",
        &other,
        "invalid",
        &[
            "7: attempt 1 retry after 3s: not a number",
            "7: attempt 2 dead-lettered: exhausted: not a number",
        ],
    );
    // A failure of no class does not fit.
    check(
        "",
        &ignore,
        "retry once",
        &["7: attempt 1 retry after 200ms: not yet", "7: attempt 2 handled"],
    );
}

#[test]
fn a_rule_with_a_cap_above_the_subscription_s_own_has_its_own() {
    let longer = format!(
        "{THRICE}rules = [{{ class = \"validation\", then = \"retry\", retry = \"long\" }}]\n\
         [retry.long]\nbackoff = \"fixed\"\njitter = \"none\"\ndelay_min = \"100ms\"\nattempts_max = 5\n"
    );
    check(
        "",
        &longer,
        "invalid",
        &[
            "7: attempt 1 retry after 100ms: not a number",
            "7: attempt 2 retry after 100ms: not a number",
            "7: attempt 3 retry after 100ms: not a number",
            "7: attempt 4 retry after 100ms: not a number",
            "7: attempt 5 dead-lettered: exhausted: not a number",
        ],
    );
}

#[test]
fn a_rule_can_go_by_the_message_s_type() {
    let retry = format!("{THRICE}rules = [{{ type = \"hint\", then = \"ignore\" }}]\n");
    let mut test = orders("", &retry, obey);
    test.publish("orders", text("7", "retry").kind("hint"));
    test.publish("orders", text("8", "retry").kind("order"));
    assert_eq!(
        test.log(),
        ["7: attempt 1 ignored: not yet", "8: attempt 1 retry after 200ms: not yet",]
    );
}

#[test]
fn a_handler_past_its_timeout_is_aborted_and_costs_one_attempt() {
    check(
        "timeout = \"3s\"",
        THRICE,
        "hang once",
        &["7: attempt 1 retry after 200ms: took longer than 3s", "7: attempt 2 handled"],
    );
}

fn handled(test: &redeliver::testing::TestService) -> usize {
    test.records().iter().filter(|record| record.fate == Fate::Handled).count()
}
