//! What must hold for every policy, every message and every answer there can be.

use std::num::NonZeroU32;
use std::time::SystemTime;

use proptest::prelude::*;

use super::*;
use crate::broker::{Received, SharedEnvelope, Token};
use crate::config::{Config, Ordering, Retry, Rule as RuleTable, Subscription, Then};
use crate::envelope::tests::Bare;
use crate::retry::{Backoff, Jitter};

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_780_000_000)
}

fn work(attempts: u32, age: Option<Duration>, delay: Option<Duration>) -> Work {
    let received = Received { envelope: SharedEnvelope::new(Bare::default()), token: Token(1) };
    let mut work = Work::of(received, 0);
    work.carried.attempts = attempts;
    work.carried.first_seen = age.map(|age| now() - age);
    work.carried.delay = delay;
    work
}

fn retries(table: Retry) -> Retries {
    let retry = [(String::from("standard"), table)].into();
    Retries::of(&Subscription::default(), &Config { retry, ..Config::default() })
}

fn ms(range: std::ops::Range<u64>) -> impl Strategy<Value = Duration> {
    range.prop_map(Duration::from_millis)
}

prop_compose! {
    fn table()(
        backoff in prop::sample::select(vec![
            Backoff::None, Backoff::Fixed, Backoff::Linear, Backoff::Exponential, Backoff::Fibonacci,
        ]),
        jitter in prop::sample::select(vec![
            Jitter::None, Jitter::Equal, Jitter::Full, Jitter::Decorrelated,
        ]),
        delay_min in ms(0..20_000),
        wider in ms(0..200_000),
        attempts_max in 1..30_u32,
        age_max in ms(1..1_000_000),
        immediate in 0..6_u32,
        in_process_max in ms(0..10_000),
    ) -> Retry {
        Retry {
            backoff,
            jitter,
            delay_min,
            delay_max: delay_min + wider,
            attempts_max: NonZeroU32::new(attempts_max).expect("from 1"),
            age_max,
            immediate,
            in_process_max,
            ..Retry::default()
        }
    }
}

prop_compose! {
    fn message()(
        attempts in prop_oneof![0..40_u32, Just(u32::MAX), any::<u32>()],
        age in prop::option::of(ms(0..2_000_000)),
        delay in prop::option::of(ms(0..400_000)),
    ) -> (u32, Option<Duration>, Option<Duration>) {
        (attempts, age, delay)
    }
}

fn wish() -> impl Strategy<Value = Wish> {
    prop_oneof![
        Just(Wish::Retry),
        ms(0..90_000_000).prop_map(Wish::RetryAfter),
        ms(0..90_000_000).prop_map(Wish::Defer),
        Just(Wish::Reject),
    ]
}

fn failure(wish: Wish) -> Failure {
    match wish {
        Wish::Retry => Failure::retry("no"),
        Wish::RetryAfter(delay) => Failure::retry_after(delay, "no"),
        Wish::Defer(delay) => Failure::defer(delay, "no"),
        Wish::Reject => Failure::reject("no"),
    }
}

fn decided(answer: Answer, work: &Work, table: Retry, chance: f64) -> Verdict {
    let age = work.carried.first_seen.and_then(|seen| now().duration_since(seen).ok());
    decide(answer, work, None, &retries(table), age.unwrap_or_default(), &mut || chance)
}

proptest! {
    #[test]
    fn the_caps_always_hold(
        table in table(), (attempts, age, delay) in message(), wish in wish(), chance in 0.0..1.0,
    ) {
        let work = work(attempts, age, delay);
        let (attempts_max, age_max) = (table.attempts_max.get(), table.age_max);
        let verdict = decided(Answer::Failed(failure(wish)), &work, table, chance);
        let made = attempts.saturating_add(1);
        let aged = age.unwrap_or_default() >= age_max;
        match verdict {
            Verdict::Retry(..) => prop_assert!(made < attempts_max && !aged),
            Verdict::Defer(_) => prop_assert!(!aged && matches!(wish, Wish::Defer(_))),
            Verdict::Dead(epitaph) => {
                let expected = match wish {
                    Wish::Reject => Reason::Rejected,
                    Wish::Retry | Wish::RetryAfter(_) if made >= attempts_max => Reason::Exhausted,
                    Wish::Retry | Wish::RetryAfter(_) | Wish::Defer(_) => {
                        prop_assert!(aged);
                        Reason::Expired
                    }
                };
                prop_assert_eq!(epitaph.reason, expected);
                prop_assert!(epitaph.attempted);
            }
            other => prop_assert!(false, "{other:?}"),
        }
    }

    #[test]
    fn no_wait_is_shorter_than_asked(
        table in table(), (attempts, age, delay) in message(), wish in wish(), chance in 0.0..1.0,
    ) {
        let work = work(attempts, age, delay);
        let (policy, jitter) = (table.policy(), table.jitter);
        let attempt = work.attempt(table.attempts_max.get());
        let verdict = decided(Answer::Failed(failure(wish)), &work, table, chance);
        let (Verdict::Retry(waiting, _) | Verdict::Defer(waiting)) = verdict else { return Ok(()) };
        let asked = match wish {
            Wish::RetryAfter(delay) | Wish::Defer(delay) => delay,
            // Where jitter is drawn, the delay is rounded by chance so that the mean is kept.
            Wish::Retry if jitter == Jitter::None => {
                policy.delay_before(attempt.next(), delay, chance)
            }
            Wish::Retry | Wish::Reject => Duration::ZERO,
        };
        prop_assert!(waiting.delay() >= asked, "{waiting:?} is shorter than {asked:?}");
        if let Waiting::Here(delay) = waiting {
            prop_assert!(delay <= policy.in_process_max);
        }
    }

    #[test]
    fn a_panic_and_a_timeout_count_as_a_failure_that_retries(
        table in table(), (attempts, age, delay) in message(), chance in 0.0..1.0,
    ) {
        let work = work(attempts, age, delay);
        let plain = decided(Answer::Failed(failure(Wish::Retry)), &work, table.clone(), chance);
        let limit = Duration::from_secs(3);
        for answer in [Answer::Panicked(String::from("no")), Answer::TimedOut(limit)] {
            let verdict = decided(answer, &work, table.clone(), chance);
            let same = match (&verdict, &plain) {
                (Verdict::Retry(waits, _), Verdict::Retry(plain, _)) => waits == plain,
                (Verdict::Dead(dead), Verdict::Dead(plain)) => dead.reason == plain.reason,
                _ => false,
            };
            prop_assert!(same, "{verdict:?} is not like {plain:?}");
        }
    }

    #[test]
    fn a_rule_that_rejects_or_ignores_does_so_whatever_else_is_true(
        table in table(), (attempts, age, delay) in message(), wish in wish(), chance in 0.0..1.0,
        reject: bool,
    ) {
        let then = if reject { Then::Reject } else { Then::Ignore };
        let class = Some(String::from("validation"));
        let rules = vec![RuleTable { class, then, ..RuleTable::default() }];
        let failed = Answer::Failed(failure(wish).class("validation"));
        let work = work(attempts, age, delay);
        match decided(failed, &work, Retry { rules, ..table }, chance) {
            Verdict::Ignore(_) => prop_assert!(!reject),
            Verdict::Dead(epitaph) => prop_assert!(reject && epitaph.reason == Reason::Rejected),
            other => prop_assert!(false, "{other:?}"),
        }
    }

    #[test]
    fn a_rule_for_its_type_neither_acknowledges_nor_gives_up_what_no_handler_has_seen(
        table in table(), (attempts, age, delay) in message(), wait in ms(0..90_000), chance in 0.0..1.0,
        reject: bool,
    ) {
        let then = if reject { Then::Reject } else { Then::Ignore };
        let kind = Some(String::from("heartbeat"));
        let rules = vec![RuleTable { kind, then, ..RuleTable::default() }];
        let (attempts_max, age_max) = (table.attempts_max.get(), table.age_max);
        let retries = retries(Retry { rules, ..table });
        let (work, age) = (work(attempts, age, delay), age.unwrap_or_default());
        let decided =
            |answer| decide(answer, &work, Some("heartbeat"), &retries, age, &mut || chance);
        let aged = age >= age_max;
        match decided(Answer::Later(wait, "its lock is held by another".into())) {
            Verdict::Defer(waiting) => prop_assert!(!aged && waiting.delay() >= wait),
            Verdict::Dead(epitaph) => {
                prop_assert!(aged && epitaph.reason == Reason::Expired && !epitaph.attempted);
            }
            other => prop_assert!(false, "{other:?}"),
        }
        let spent = attempts.saturating_add(1) >= attempts_max;
        match decided(Answer::Unguarded(String::from("the record is not ours"))) {
            Verdict::Retry(..) => prop_assert!(!spent && !aged),
            Verdict::Dead(epitaph) => match epitaph.reason {
                Reason::Exhausted => prop_assert!(spent),
                reason => prop_assert!(aged && reason == Reason::Expired),
            },
            other => prop_assert!(false, "{other:?}"),
        }
    }

    #[test]
    fn a_wait_of_ours_never_takes_a_message_out_of_its_order(
        table in table(), wait in ms(0..90_000), wait_max in ms(1..60_000),
    ) {
        let retry = [(String::from("standard"), Retry { age_max: Duration::MAX, ..table })].into();
        let settings = Subscription {
            ordering: Ordering::Lane, order_wait_max: wait_max, ..Subscription::default()
        };
        let retries = Retries::of(&settings, &Config { retry, ..Config::default() });
        let answer = Answer::Later(wait, "the lock was lost".into());
        let verdict = decide(answer, &work(0, None, None), None, &retries, Duration::ZERO, &mut || 0.5);
        prop_assert_eq!(verdict, Verdict::Defer(Waiting::Here(wait.min(wait_max))));
    }

    #[test]
    fn what_worked_is_done_and_what_nobody_knows_begins_again(
        table in table(), (attempts, age, delay) in message(), chance in 0.0..1.0,
    ) {
        let work = work(attempts, age, delay);
        prop_assert_eq!(decided(Answer::Handled, &work, table.clone(), chance), Verdict::Ack);
        prop_assert_eq!(decided(Answer::Interrupted, &work, table, chance), Verdict::Again);
    }
}

#[test]
fn a_wait_of_ours_never_becomes_the_minutes_of_the_brokers_shortest_step() {
    let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
    let (short, second) = (Duration::from_secs(20), Duration::from_secs(1));
    let table = |broker| Retry {
        backoff: Backoff::List,
        jitter: Jitter::None,
        delays: vec![second, broker, minutes(60)],
        in_process_max: second,
        ..Retry::default()
    };
    let decided = |broker, wait| {
        let answer = Answer::Later(wait, "its lock is held by another".into());
        let work = work(0, None, None);
        decide(answer, &work, None, &retries(table(broker)), Duration::ZERO, &mut || 0.5)
    };
    for wait in [second * 2, short, Duration::from_secs(36)] {
        assert_eq!(decided(minutes(5), wait), Verdict::Defer(Waiting::Here(wait)));
    }
    assert_eq!(decided(short, second * 2), Verdict::Defer(Waiting::Broker(short)));
}
