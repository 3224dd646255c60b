//! Examples as a table, then what must hold for every policy there can be.

use proptest::prelude::*;

use super::*;

const NANOSECOND: Duration = Duration::from_nanos(1);

fn attempt(number: u32) -> Attempt {
    Attempt::new(number).expect("attempts count from 1")
}

fn step(number: u32) -> NonZeroU32 {
    NonZeroU32::new(number).expect("steps count from 1")
}

fn plain(backoff: Backoff) -> Policy {
    Policy { backoff, jitter: Jitter::None, ..Policy::default() }
}

/// The delays before attempts 2, 3, 4, .. in milliseconds, each fed with the one before.
fn check(policy: &Policy, chance: f64, expected: &[u128]) {
    let mut previous = None;
    let mut delays = Vec::new();
    for number in (2..).take(expected.len()) {
        let delay = policy.delay_before(attempt(number), previous, chance);
        previous = Some(delay);
        delays.push(delay.as_millis());
    }
    assert_eq!(delays, expected, "{policy:?}");
}

#[test]
fn the_first_attempt_never_waits() {
    let policy = Policy { immediate: 0, ..plain(Backoff::Fixed) };
    assert_eq!(policy.delay_before(Attempt::FIRST, None, 0.9), Duration::ZERO);
}

#[test]
fn each_backoff_grows_as_its_name_says() {
    check(&plain(Backoff::None), 0.0, &[0, 0, 0]);
    check(&plain(Backoff::Fixed), 0.0, &[200, 200, 200]);
    check(&plain(Backoff::Linear), 0.0, &[200, 400, 600, 800]);
    check(&plain(Backoff::Exponential), 0.0, &[200, 400, 800, 1600, 3200]);
    check(&plain(Backoff::Fibonacci), 0.0, &[200, 200, 400, 600, 1000, 1600]);
}

#[test]
fn a_multiplier_need_not_be_whole() {
    let policy = Policy { multiplier: 1.5, ..plain(Backoff::Exponential) };
    check(&policy, 0.0, &[200, 300, 450, 675]);
}

#[test]
fn a_list_ends_with_its_last_entry_again_and_again() {
    let delays = [5, 1, 30].map(Duration::from_secs).to_vec();
    check(&Policy { delays, ..plain(Backoff::List) }, 0.0, &[5000, 1000, 30_000, 30_000]);
}

#[test]
fn an_empty_list_waits_the_minimum_rather_than_not_at_all() {
    check(&plain(Backoff::List), 0.0, &[200, 200]);
}

#[test]
fn the_maximum_cuts_every_backoff() {
    let delays = vec![Duration::from_secs(3600)];
    for backoff in [Backoff::Linear, Backoff::Exponential, Backoff::Fibonacci, Backoff::List] {
        let delay_max = Duration::from_millis(500);
        let policy = Policy { delay_max, delays: delays.clone(), ..plain(backoff) };
        assert_eq!(policy.delay_before(attempt(100), None, 0.0), delay_max, "{backoff:?}");
    }
}

#[test]
fn immediate_attempts_come_first_and_the_schedule_starts_at_its_first_step() {
    check(&Policy { immediate: 2, ..plain(Backoff::Exponential) }, 0.0, &[0, 0, 200, 400]);
}

#[test]
fn jitter_spreads_as_its_name_says() {
    let with = |jitter| Policy { jitter, ..Policy::default() };
    check(&with(Jitter::Full), 0.0, &[0, 0, 0]);
    check(&with(Jitter::Full), 0.5, &[100, 200, 400]);
    check(&with(Jitter::Equal), 0.0, &[100, 200, 400]);
    check(&with(Jitter::Equal), 0.5, &[150, 300, 600]);
    check(&with(Jitter::Decorrelated), 0.0, &[200, 200, 200]);
    check(&with(Jitter::Decorrelated), 0.5, &[400, 700, 1150]);
}

#[test]
fn jitter_does_not_make_a_policy_without_waits_wait() {
    for jitter in [Jitter::None, Jitter::Equal, Jitter::Full, Jitter::Decorrelated] {
        check(&Policy { backoff: Backoff::None, jitter, ..Policy::default() }, 0.9, &[0, 0]);
    }
}

#[test]
fn absurd_multipliers_are_borne() {
    let delay = |multiplier, number| {
        let policy = Policy { multiplier, ..plain(Backoff::Exponential) };
        policy.delay_before(attempt(number), None, 0.0)
    };
    let (shortest, longest) = (Duration::from_millis(200), Duration::from_secs(600));
    assert_eq!(delay(1e300, u32::MAX), longest);
    assert_eq!(delay(f64::INFINITY, 2), shortest);
    assert_eq!(delay(f64::INFINITY, 3), longest);
    assert_eq!(delay(f64::NAN, u32::MAX), shortest);
    assert_eq!(delay(-2.0, 5), shortest);
}

#[test]
fn a_chance_that_is_not_a_number_gives_the_longest_delay() {
    check(&Policy::default(), f64::NAN, &[200, 400]);
}

#[test]
fn the_delays_without_jitter_are_told_once_each_and_end_with_the_attempts() {
    let millis = |policy: &Policy| -> Vec<u128> {
        policy.delays_nominal().map(|delay| delay.as_millis()).collect()
    };
    assert_eq!(millis(&plain(Backoff::None)), []);
    assert_eq!(millis(&plain(Backoff::Fixed)), [200]);
    assert_eq!(millis(&plain(Backoff::Exponential)), [200, 400, 800, 1600, 3200, 6400, 12_800]);
    let delays = [5, 1, 5].map(Duration::from_secs).to_vec();
    assert_eq!(millis(&Policy { delays, ..plain(Backoff::List) }), [1000, 5000]);
    let attempts_max = step(3);
    assert_eq!(millis(&Policy { attempts_max, ..plain(Backoff::Linear) }), [200, 400]);
    assert_eq!(millis(&Policy { attempts_max, immediate: 5, ..plain(Backoff::Linear) }), []);
}

#[test]
fn a_schedule_of_four_thousand_million_steps_is_answered_at_once() {
    let policy =
        Policy { delay_min: NANOSECOND, attempts_max: NonZeroU32::MAX, ..plain(Backoff::Linear) };
    assert_eq!(
        policy.delay_longer_than(Duration::from_secs(1)),
        Some(Duration::from_secs(1) + NANOSECOND)
    );
    assert_eq!(policy.delay_nominal_longest(), NANOSECOND * (u32::MAX - 1));
    assert!(policy.waits_longest_total() >= Duration::from_secs(3600));
}

fn backoffs() -> impl Strategy<Value = Backoff> {
    use Backoff::{Exponential, Fibonacci, Fixed, Linear, List, None};
    prop::sample::select(vec![None, Fixed, Linear, Exponential, Fibonacci, List])
}

fn jitters() -> impl Strategy<Value = Jitter> {
    use Jitter::{Decorrelated, Equal, Full, None};
    prop::sample::select(vec![None, Equal, Full, Decorrelated])
}

/// Likely durations, and all that there are.
fn durations() -> impl Strategy<Value = Duration> {
    prop_oneof![
        4 => (0..86_400_000_u64).prop_map(Duration::from_millis),
        1 => any::<u64>().prop_map(Duration::from_nanos),
        1 => (any::<u64>(), 0..1_000_000_000_u32).prop_map(|(secs, nanos)| Duration::new(secs, nanos)),
        1 => prop::sample::select(vec![Duration::ZERO, Duration::MAX]),
    ]
}

fn multipliers() -> impl Strategy<Value = f64> {
    prop_oneof![3 => 1.0..10.0, 1 => any::<f64>(), 1 => Just(1e300), 1 => Just(f64::NAN)]
}

/// Few or any number.
fn counts() -> impl Strategy<Value = NonZeroU32> {
    prop_oneof![3 => 1..30_u32, 1 => 1..=u32::MAX].prop_map(step)
}

prop_compose! {
    /// Any policy, sane or not.
    pub(in crate::retry) fn policies()(
        backoff in backoffs(),
        jitter in jitters(),
        delay_min in durations(),
        delay_max in durations(),
        multiplier in multipliers(),
        delays in prop::collection::vec(durations(), 0..6),
        attempts_max in counts(),
        immediate in prop_oneof![3 => 0..3_u32, 1 => any::<u32>()],
        in_process_max in durations(),
    ) -> Policy {
        let age_max = Duration::from_secs(86_400);
        Policy {
            backoff, jitter, delay_min, delay_max, multiplier, delays, attempts_max, age_max, immediate, in_process_max,
        }
    }
}

proptest! {
    #[test]
    fn no_delay_is_longer_than_the_maximum(
        policy in policies(),
        number in counts(),
        previous in prop::option::of(durations()),
        chance in any::<f64>(),
    ) {
        let delay = policy.delay_before(Attempt::from(number), previous, chance);
        prop_assert!(delay <= policy.delay_max);
    }

    #[test]
    fn full_jitter_stays_between_nothing_and_the_base(policy in policies(), number in counts(), chance in 0.0..1.0) {
        let policy = Policy { jitter: Jitter::Full, immediate: 0, ..policy };
        let delay = policy.delay_before(Attempt::from(number).next(), None, chance);
        prop_assert!(delay <= policy.base_delay(number));
    }

    #[test]
    fn equal_jitter_stays_between_half_the_base_and_the_base(
        policy in policies(), number in 1..u32::MAX, chance in 0.0..1.0,
    ) {
        let policy = Policy { jitter: Jitter::Equal, immediate: 0, ..policy };
        let base = policy.base_delay(step(number));
        let delay = policy.delay_before(attempt(number).next(), None, chance);
        prop_assert!(base / 2 <= delay && delay <= base, "{delay:?} of {base:?}");
    }

    #[test]
    fn decorrelated_jitter_stays_between_the_minimum_and_three_times_the_previous(
        policy in policies(), previous in durations(), chance in 0.0..1.0,
    ) {
        prop_assume!(policy.backoff != Backoff::None);
        let policy = Policy { jitter: Jitter::Decorrelated, immediate: 0, ..policy };
        let delay = policy.delay_before(attempt(3), Some(previous), chance);
        let upper = previous.max(policy.delay_min).saturating_mul(3).min(policy.delay_max);
        prop_assert!(policy.delay_min.min(policy.delay_max) <= delay && delay <= upper);
    }

    #[test]
    fn a_greater_chance_never_shortens_a_delay(policy in policies(), number in counts(), one in 0.0..1.0, other in 0.0..1.0) {
        let delay = |chance: f64| policy.delay_before(Attempt::from(number), Some(policy.delay_min), chance);
        prop_assert!(delay(f64::min(one, other)) <= delay(f64::max(one, other)));
    }

    #[test]
    fn the_base_never_shrinks_from_step_to_step(policy in policies(), number in 1..u32::MAX) {
        prop_assume!(policy.backoff != Backoff::List);
        prop_assert!(policy.base_delay(step(number)) <= policy.base_delay(step(number + 1)));
        prop_assert!(policy.base_delay(step(1)) <= policy.base_delay(step(number)));
    }

    #[test]
    fn the_delays_without_jitter_are_those_of_the_steps(policy in policies(), few in 1..20_u32) {
        let policy = Policy { attempts_max: step(few), immediate: 0, ..policy };
        let mut by_step: Vec<Duration> = (1..few).map(|number| policy.base_delay(step(number))).collect();
        by_step.retain(|delay| !delay.is_zero());
        by_step.sort();
        by_step.dedup();
        prop_assert_eq!(policy.delays_nominal().collect::<Vec<_>>(), by_step);
    }

    #[test]
    fn every_message_stays_within_the_range_and_the_total(
        policy in policies(), few in 1..40_u32, chances in prop::collection::vec(0.0..1.0, 40),
    ) {
        let policy = Policy { attempts_max: step(few), ..policy };
        let mut previous = None;
        let mut total = Duration::ZERO;
        for (number, chance) in (2..=few).zip(chances) {
            let delay = policy.delay_before(attempt(number), previous, chance);
            let is_immediate = number - 1 <= policy.immediate;
            prop_assert!(is_immediate || policy.range().contains(&delay), "{delay:?} in {:?}", policy.range());
            total = total.saturating_add(delay);
            previous = Some(delay);
        }
        prop_assert!(total <= policy.waits_longest_total());
    }
}
