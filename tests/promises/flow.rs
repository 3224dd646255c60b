//! Pausing, resuming, stopping, and the breaker: no message and no attempt is lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use redeliver::broker::Depth;
use redeliver::testing::{Fate, TestService};
use redeliver::{Delivery, Failure, Handled, Service, SubscriptionState};

use crate::bench::{THRICE, config, obey, orders, text};

fn pause(test: &mut TestService) {
    let service = test.service();
    test.run(async move { service.pause("orders").await }).expect("it pauses");
}

fn resume(test: &mut TestService) {
    let service = test.service();
    test.run(async move { service.resume("orders").await }).expect("it resumes");
}

fn depth(test: &mut TestService) -> Depth {
    let service = test.service();
    test.run(async move { service.depth("orders").await }).expect("the broker tells")
}

fn handled(test: &TestService) -> usize {
    test.records().iter().filter(|record| record.fate == Fate::Handled).count()
}

#[test]
fn a_paused_subscription_takes_nothing_and_goes_on_when_it_is_resumed() {
    let mut test = orders("", THRICE, obey);
    pause(&mut test);
    assert_eq!(test.service().health().subscriptions["orders"].state, SubscriptionState::Paused);
    for id in 0..10 {
        test.publish("orders", text(&id.to_string(), "ok"));
    }
    test.advance(Duration::from_secs(3600));
    assert_eq!((handled(&test), depth(&mut test).ready), (0, Some(10)));
    resume(&mut test);
    assert_eq!(handled(&test), 10);
    assert!(test.log().iter().all(|line| line.ends_with("attempt 1 handled")), "{:?}", test.log());
}

#[test]
fn a_subscription_without_a_handler_is_told_from_one_that_is_paused() {
    let builder = Service::builder(config("", THRICE)).without_handler("orders");
    let test = TestService::start(builder).expect("it starts");
    let health = test.service().health();
    assert_eq!(health.subscriptions["orders"].state, SubscriptionState::Unhandled);
    assert!(health.ready, "{:?}", health.reasons);
    let told = serde_json::to_value(&health).expect("it is JSON");
    assert_eq!(told["subscriptions"]["orders"]["state"], "unhandled");
}

#[test]
fn a_pause_finishes_what_runs_and_keeps_the_attempts_of_what_waits() {
    let mut test = orders("", THRICE, obey);
    test.publish("orders", text("running", "slow"));
    test.publish("orders", text("waiting", "retry once"));
    pause(&mut test);
    assert!(test.log().contains(&"running: attempt 1 handled".to_owned()), "{:?}", test.log());
    test.advance(Duration::from_secs(60));
    assert_eq!(handled(&test), 1);
    resume(&mut test);
    test.finish();
    assert_eq!(test.log().last().map(String::as_str), Some("waiting: attempt 2 handled"));
}

#[test]
fn pausing_twice_and_resuming_twice_does_no_harm() {
    let mut test = orders("", THRICE, obey);
    pause(&mut test);
    pause(&mut test);
    test.publish("orders", text("7", "ok"));
    resume(&mut test);
    resume(&mut test);
    test.publish("orders", text("8", "ok"));
    test.finish();
    assert_eq!(test.log(), ["7: attempt 1 handled", "8: attempt 1 handled"]);
}

/// Begins a pause and does not wait for its end.
fn begin_to_pause(test: &mut TestService) {
    let service = test.service();
    test.run(async move {
        actix::spawn(async move { service.pause("orders").await });
    });
}

#[test]
fn a_resume_in_the_middle_of_a_pause_is_heeded_when_what_runs_is_finished() {
    let mut test = orders("consumers = 2\nin_flight_max = 4", THRICE, obey);
    for id in 0..4 {
        test.publish("orders", text(&id.to_string(), "slow"));
    }
    begin_to_pause(&mut test);
    resume(&mut test);
    for id in 4..8 {
        test.publish("orders", text(&id.to_string(), "slow"));
    }
    test.finish();
    let state = test.service().health().subscriptions["orders"].state.clone();
    assert_eq!(state, SubscriptionState::Running);
    assert_eq!((handled(&test), test.records().len()), (8, 8), "{:?}", test.log());
    begin_to_pause(&mut test);
    resume(&mut test);
    pause(&mut test);
    let state = test.service().health().subscriptions["orders"].state.clone();
    assert_eq!(state, SubscriptionState::Paused, "the last word counts");
}

#[test]
fn a_stop_in_the_middle_of_a_long_pause_ends_within_the_grace() {
    let mut test = orders("timeout = \"1h\"", THRICE, obey);
    test.publish("orders", text("7", "hang"));
    begin_to_pause(&mut test);
    assert_eq!(test.stop().left, 1);
    assert_eq!(test.elapsed(), Duration::from_secs(25), "the default grace");
    assert_eq!(depth(&mut test).ready, Some(1));
}

#[test]
fn while_it_is_held_nothing_is_shown_that_is_not_in_hand() {
    let retry =
        "backoff = \"fixed\"\njitter = \"none\"\ndelay_min = \"30s\"\nin_process_max = \"1m\"\n";
    let mut test = orders("timeout = \"10s\"", retry, obey);
    for id in 0..5 {
        test.publish("orders", text(&id.to_string(), "retry"));
    }
    test.publish("orders", text("7", "hang"));
    test.advance(Duration::from_secs(1));
    let shown = |test: &mut TestService, name: &str| {
        let service = test.service();
        let metrics = test.run(async move { service.metrics().await });
        let line = metrics.lines().find(|line| line.starts_with(&format!("redeliver_{name}{{")));
        line.and_then(|line| line.rsplit(' ').next().map(str::to_owned)).expect("it is there")
    };
    assert_eq!((&*shown(&mut test, "in_flight"), &*shown(&mut test, "parked")), ("1", "5"));
    pause(&mut test);
    test.advance(Duration::from_secs(60));
    for name in ["in_flight", "parked", "oldest_delivery_seconds"] {
        let value: f64 = shown(&mut test, name).parse().expect("a number");
        assert_eq!(value, 0.0, "{name}");
    }
}

#[test]
fn a_stop_in_the_middle_loses_nothing_and_what_waits_keeps_its_attempts() {
    let mut test = orders("in_flight_max = 2", THRICE, obey);
    for id in 0..20 {
        test.publish("orders", text(&format!("slow-{id}"), "slow"));
    }
    test.clear_log();
    let before = depth(&mut test);
    let handled_before = 20 - (before.ready.unwrap_or(0) + before.unsettled.unwrap_or(0)) as usize;
    let stop = test.stop();
    assert_eq!(stop.left, 0, "what runs is finished within the grace");
    let after = depth(&mut test);
    assert_eq!(after.unsettled, Some(0));
    assert_eq!(handled(&test) + handled_before + after.ready.unwrap_or(0) as usize, 20);
    assert!(after.ready > Some(0), "nothing new was begun");
}

#[test]
fn a_stop_puts_what_waits_in_the_process_at_the_broker_with_its_attempts() {
    let retry =
        "backoff = \"fixed\"\njitter = \"none\"\ndelay_min = \"30s\"\nin_process_max = \"1m\"\n";
    let mut test = orders("", retry, obey);
    for id in 0..5 {
        test.publish("orders", text(&id.to_string(), "retry"));
    }
    test.stop();
    let depth = depth(&mut test);
    assert_eq!((depth.ready, depth.unsettled, depth.waiting), (Some(0), Some(0), Some(5)));
}

#[test]
fn a_handler_that_does_not_end_in_time_is_left_and_its_message_goes_back() {
    let mut test = orders("timeout = \"1h\"", THRICE, obey);
    test.publish("orders", text("7", "hang"));
    let stop = test.stop();
    assert_eq!(stop.left, 1);
    assert_eq!(test.elapsed(), Duration::from_secs(25), "the default grace");
    assert_eq!(depth(&mut test).ready, Some(1));
    assert!(test.log().is_empty(), "{:?}", test.log());
}

#[test]
fn stopping_twice_answers_the_same() {
    let mut test = orders("", THRICE, obey);
    assert_eq!(test.stop(), test.stop());
    let health = test.service().health();
    assert!(!health.live && !health.ready);
}

#[test]
fn a_dead_dependency_does_not_drain_the_queue_into_the_dead_letters() {
    let up = Arc::new(AtomicBool::new(false));
    let dependency = Arc::clone(&up);
    let handler = move |_: Delivery<String>| {
        let up = dependency.load(Ordering::SeqCst);
        async move { if up { Handled::Ok(()) } else { Err(Failure::retry("connection refused")) } }
    };
    let breaker = "breaker = { attempts_min = 5, failure_rate = 0.9, window = \"10s\", pause = \"5s\", \
                   pause_max = \"20s\" }";
    let mut test = orders(breaker, "attempts_max = 8\n", handler);
    for id in 0..200 {
        test.publish("orders", text(&id.to_string(), "ok"));
    }
    test.advance(Duration::from_secs(30));
    assert!(test.service().health().subscriptions["orders"].breaker_open);
    assert!(!test.service().health().ready);
    let probes = |test: &TestService| {
        let failed = |fate: &Fate| matches!(fate, Fate::ProbeFailed { .. });
        test.records().iter().filter(|record| failed(&record.fate)).count()
    };
    test.clear_log();
    test.advance(Duration::from_secs(3600));
    assert!((150..=182).contains(&probes(&test)), "one probe every 20 s: {}", probes(&test));
    assert_eq!(probes(&test), test.log().len(), "nothing but probes: {:?}", test.log());
    assert!(test.dead_letters("orders").is_empty());

    up.store(true, Ordering::SeqCst);
    test.clear_log();
    test.finish();
    assert_eq!(handled(&test), 200, "none is lost");
    assert!(
        test.records().iter().all(|record| record.attempt <= 7),
        "no attempt was burnt by probes"
    );
    assert!(!test.service().health().subscriptions["orders"].breaker_open);
    assert!(test.service().health().ready);
}

#[test]
fn rejects_never_open_the_breaker() {
    let mut test = orders("breaker = {}", THRICE, obey);
    for id in 0..200 {
        test.publish("orders", text(&id.to_string(), "reject"));
    }
    test.finish();
    assert_eq!(test.dead_letters("orders").len(), 200);
    assert!(!test.service().health().subscriptions["orders"].breaker_open);
}

/// Everything takes a second and fails, until the switch is turned.
fn failing(subscription: &str, retry: &str) -> (TestService, Arc<AtomicBool>) {
    let up = Arc::new(AtomicBool::new(false));
    let dependency = Arc::clone(&up);
    let handler = move |_: Delivery<String>| {
        let up = Arc::clone(&dependency);
        async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            match up.load(Ordering::SeqCst) {
                true => Handled::Ok(()),
                false => Err(Failure::retry("connection refused")),
            }
        }
    };
    (orders(subscription, retry, handler), up)
}

const OPENS_AT_FIVE: &str = "breaker = { attempts_min = 5, failure_rate = 0.9, window = \"10s\", \
                             pause = \"5s\", pause_max = \"20s\" }\n";

fn fates(test: &TestService, fits: fn(&Fate) -> bool) -> usize {
    test.records().iter().filter(|record| fits(&record.fate)).count()
}

#[test]
fn what_is_in_flight_when_the_breaker_opens_loses_no_attempt_not_even_its_last() {
    // Each of an order runs alone, so there only probes are in flight.
    let order = "ordering = \"lane\"\norder_on_long_wait = \"dead-letter\"";
    let claims = "idempotency = { store = \"main\" }";
    for ordering in ["", order, claims] {
        let settings = format!("{OPENS_AT_FIVE}in_flight_max = 20\n{ordering}");
        let retry = "attempts_max = 1\n[stores.main]\nkind = \"memory\"\n";
        let (mut test, up) = failing(&settings, retry);
        for id in 0..50 {
            test.publish("orders", text(&id.to_string(), "ok"));
        }
        test.advance(Duration::from_secs(60));
        assert_eq!(test.dead_letters("orders").len(), 4, "those before it opened: {ordering}");
        up.store(true, Ordering::SeqCst);
        test.finish();
        assert_eq!(handled(&test), 46, "{ordering}");
        assert!(test.records().iter().all(|record| record.attempt == 1), "{ordering}");
    }
}

#[test]
fn what_is_spared_waits_as_if_it_had_failed_and_counts_as_deferred() {
    let retry = "backoff = \"fixed\"\njitter = \"none\"\ndelay_min = \"30s\"\nattempts_max = 2\n";
    let settings = format!("{OPENS_AT_FIVE}in_flight_max = 20");
    let (mut test, up) = failing(&settings, retry);
    for id in 0..20 {
        test.publish("orders", text(&id.to_string(), "ok"));
    }
    test.advance(Duration::from_millis(1_001));
    let spared = |fate: &Fate| matches!(fate, Fate::Spared { .. });
    assert_eq!(fates(&test, spared), 16, "{:?}", test.log());
    let held = depth(&mut test);
    assert_eq!((held.waiting, held.unsettled), (Some(20), Some(0)), "any process may have them");
    up.store(true, Ordering::SeqCst);
    test.finish();
    let attempts: Vec<u32> = test
        .records()
        .iter()
        .filter(|record| record.fate == Fate::Handled)
        .map(|record| record.attempt)
        .collect();
    assert_eq!(attempts.iter().filter(|attempt| **attempt == 2).count(), 4, "{attempts:?}");
    assert_eq!(attempts.iter().filter(|attempt| **attempt == 1).count(), 16, "{attempts:?}");
}

#[test]
fn while_the_breaker_is_open_one_probe_runs_at_a_time_and_the_rest_stays_with_the_broker() {
    let settings = format!("{OPENS_AT_FIVE}in_flight_max = 8");
    let (mut test, up) = failing(&settings, THRICE);
    for id in 0..200 {
        test.publish("orders", text(&id.to_string(), "ok"));
    }
    test.advance(Duration::from_secs(2));
    for _ in 0..100 {
        let service = test.service();
        let running = test.run(async move { service.metrics().await });
        let line = running.lines().find(|line| line.starts_with("redeliver_in_flight{"));
        let line = line.expect("it is there");
        assert!(line.ends_with(" 0") || line.ends_with(" 1"), "{line}");
        assert!(depth(&mut test).unsettled <= Some(16), "{:?}", depth(&mut test));
        test.advance(Duration::from_millis(700));
    }
    up.store(true, Ordering::SeqCst);
    test.finish();
    assert_eq!(handled(&test), 200);
}

#[test]
fn a_pause_gives_up_at_once_what_an_open_breaker_holds_and_no_attempt_with_it() {
    let settings = format!("{OPENS_AT_FIVE}in_flight_max = 20");
    let (mut test, up) = failing(&settings, "attempts_max = 1\n");
    for id in 0..50 {
        test.publish("orders", text(&id.to_string(), "ok"));
    }
    test.advance(Duration::from_secs(3));
    assert_eq!(depth(&mut test).unsettled, Some(16), "what was in flight is held");
    pause(&mut test);
    let given_up = depth(&mut test);
    assert_eq!((given_up.unsettled, given_up.dead), (Some(0), Some(4)));
    up.store(true, Ordering::SeqCst);
    resume(&mut test);
    test.finish();
    assert_eq!(handled(&test), 46);
    assert!(test.records().iter().all(|record| record.attempt == 1), "{:?}", test.log());
}

#[test]
fn probes_of_one_message_end_at_its_age() {
    // Alone, and bad: no other message would ever close the breaker.
    let retry = "backoff = \"none\"\nattempts_max = 100\nage_max = \"1h\"\n";
    let (mut test, _) = failing(&format!("{OPENS_AT_FIVE}in_flight_max = 1"), retry);
    test.publish("orders", text("7", "ok"));
    test.finish();
    let last = test.records().pop().expect("it ended");
    let over = Duration::from_secs(3600)..Duration::from_secs(3600 + 60);
    assert!(over.contains(&last.at), "{last}");
    assert!(last.to_string().contains("expired: older than age_max (3600s)"), "{last}");
}

#[test]
fn an_ordered_message_that_waits_comes_back_to_its_place_and_no_earlier() {
    let settings = "ordering = \"key\"\nkey = \"header:customer\"";
    let retry = "backoff = \"fixed\"\njitter = \"none\"\ndelay_min = \"10s\"\nattempts_max = 3\n";
    let mut test = orders(settings, retry, obey);
    test.publish("orders", text("1", "retry once").header("customer", "acme"));
    test.publish("orders", text("2", "ok").header("customer", "acme"));
    test.advance(Duration::from_secs(3));
    // The lane goes away and comes back, as after a lost connection.
    pause(&mut test);
    resume(&mut test);
    test.finish();
    assert_eq!(
        test.log(),
        ["1: attempt 1 retry after 10s: not yet", "1: attempt 2 handled", "2: attempt 1 handled",]
    );
    assert!(test.records()[1].at >= Duration::from_secs(10), "{:?}", test.records());
}

#[test]
fn what_cannot_be_paused_or_resumed_is_an_error_that_says_what_to_do() {
    let text = "[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"\n\
                [subscriptions.refunds]\nbroker = \"main\"\n";
    let config = redeliver::config::Config::from_toml(text).expect("it is usable");
    let builder = redeliver::Service::builder(config).subscribe("orders", obey);
    let mut test = TestService::start(builder.without_handler("refunds")).expect("it starts");
    let service = test.service();
    let answers = test.run(async move {
        let mut answers = Vec::new();
        for name in ["ordres", "refunds"] {
            for answer in [service.pause(name).await, service.resume(name).await] {
                answers.push(answer.expect_err("nothing was done").to_string());
            }
        }
        service.stop().await;
        for answer in [service.pause("orders").await, service.resume("orders").await] {
            answers.push(answer.expect_err("nothing was done").to_string());
        }
        answers
    });
    let parts = ["no subscription `ordres`", ".subscribe(\"refunds\", ..)", "start another one"];
    for (place, answer) in answers.iter().enumerate() {
        assert!(answer.contains(parts[place / 2]), "{answer}");
    }
    assert_eq!(answers.len(), 6);
}
