//! Examples in milliseconds, then what must hold for every set of policies.

use std::num::NonZeroU32;

use proptest::prelude::*;

use super::super::Backoff;
use super::super::policy::tests::policies;
use super::*;

const MILLISECOND: Duration = Duration::from_millis(1);

fn exact(backoff: Backoff) -> Policy {
    Policy { backoff, jitter: Jitter::None, ..Policy::default() }
}

fn listed(millis: &[u64]) -> Policy {
    let delays = millis.iter().map(|delay| Duration::from_millis(*delay)).collect();
    let delay_max = Duration::MAX;
    Policy { delays, delay_max, ..exact(Backoff::List) }
}

fn attempts(count: u32) -> NonZeroU32 {
    NonZeroU32::new(count).expect("at least one attempt is made")
}

fn millis(steps: &WaitSteps) -> Vec<u128> {
    steps.as_slice().iter().map(|step| step.as_millis()).collect()
}

fn check(policies: &[&Policy], steps_max: usize, expected: &[u128]) {
    assert_eq!(millis(&WaitSteps::for_policies(policies, steps_max)), expected);
}

#[test]
fn a_schedule_without_jitter_gets_exactly_the_delays_that_leave_the_process() {
    check(&[&exact(Backoff::Exponential)], 16, &[1600, 3200, 6400, 12_800]);
    check(&[&listed(&[30_000, 500, 5000])], 16, &[5000, 30_000]);
}

#[test]
fn the_schedules_of_several_policies_are_merged() {
    check(&[&listed(&[5000, 30_000]), &listed(&[5000, 60_000])], 16, &[5000, 30_000, 60_000]);
}

#[test]
fn a_jittered_policy_gets_a_geometric_grid_over_its_range() {
    let policy = Policy { delay_max: Duration::from_secs(8), ..Policy::default() };
    check(&[&policy], 16, &[1000, 1500, 2000, 2900, 4000, 5700, 8000]);
    check(&[&policy], 4, &[1000, 2000, 4000, 8000]);
    check(&[&policy], 1, &[8000]);
}

#[test]
fn exact_delays_stand_on_the_grid_beside_those_of_a_jittered_policy() {
    let jittered = Policy { delay_max: Duration::from_secs(4), ..Policy::default() };
    check(&[&jittered, &listed(&[3333])], 4, &[1000, 2000, 3333, 4000]);
}

#[test]
fn too_many_exact_delays_give_way_to_a_grid_and_are_rounded_up() {
    let policy = Policy { attempts_max: attempts(30), ..exact(Backoff::Linear) };
    let steps = WaitSteps::for_policies(&[&policy], 4);
    assert_eq!(millis(&steps), [1200, 2100, 3500, 5800]);
    assert_eq!(steps.exact(Duration::from_millis(1400)), None);
    assert_eq!(steps.round_up(Duration::from_millis(1400)), Duration::from_millis(2100));
}

#[test]
fn a_wait_is_a_whole_millisecond_and_never_shorter_than_the_delay() {
    let policy = Policy { delay_min: Duration::from_micros(1_000_100), ..exact(Backoff::Fixed) };
    check(&[&policy], 16, &[1001]);
}

#[test]
fn waits_are_held_between_a_tenth_of_a_second_and_a_day() {
    let policy = Policy { in_process_max: Duration::ZERO, ..listed(&[3, 250, 90_000_000]) };
    check(&[&policy], 16, &[100, 250, 86_400_000]);
}

#[test]
fn policies_that_never_leave_the_process_still_have_one_place_to_wait() {
    let quick = Policy { delay_max: Duration::from_millis(900), ..Policy::default() };
    check(&[&quick], 16, &[1000]);
    check(&[&exact(Backoff::None)], 16, &[1000]);
    check(&[&Policy { attempts_max: attempts(1), ..Policy::default() }], 16, &[1000]);
    check(&[], 16, &[100]);
}

#[test]
fn raising_the_attempts_of_a_jittered_policy_needs_no_new_wait() {
    let more = Policy { attempts_max: attempts(50), ..Policy::default() };
    let before = WaitSteps::for_policies(&[&Policy::default()], 16);
    assert_eq!(before, WaitSteps::for_policies(&[&more], 16));
}

#[test]
fn what_exists_is_taken_as_it_is() {
    let existing = WaitSteps::of([90_000_000, 50, 0].map(Duration::from_millis));
    assert_eq!(existing.map(|steps| millis(&steps)), Some(vec![50, 90_000_000]));
    assert_eq!(WaitSteps::of([Duration::ZERO]), None);
}

fn any_steps() -> impl Strategy<Value = WaitSteps> {
    prop::collection::vec(1..86_400_000_u64, 1..16)
        .prop_map(|millis| WaitSteps::of(millis.into_iter().map(Duration::from_millis)))
        .prop_map(|steps| steps.expect("at least one step is drawn"))
}

proptest! {
    #[test]
    fn steps_are_whole_rising_few_and_within_the_bounds(
        policies in prop::collection::vec(policies(), 0..4), steps_max in 0..40_usize,
    ) {
        let steps = WaitSteps::for_policies(&policies.iter().collect::<Vec<_>>(), steps_max);
        let steps = steps.as_slice();
        prop_assert!(!steps.is_empty() && steps.len() <= steps_max.max(1));
        prop_assert!(steps.windows(2).all(|pair| pair[0] < pair[1]));
        prop_assert!(steps.iter().all(|step| (WAIT_MIN..=WAIT_MAX).contains(step)));
        prop_assert!(steps.iter().all(|step| step.subsec_nanos() % 1_000_000 == 0));
    }

    #[test]
    fn steps_cover_every_delay_that_leaves_the_process(
        policies in prop::collection::vec(policies(), 1..4), steps_max in 2..40_usize,
    ) {
        let steps = WaitSteps::for_policies(&policies.iter().collect::<Vec<_>>(), steps_max);
        for policy in &policies {
            let (shortest, longest) = policy.range().into_inner();
            if policy.jitter != Jitter::None && longest > policy.in_process_max {
                prop_assert!(steps.longest() >= longest.min(WAIT_MAX));
                let lowest = shortest.max(policy.in_process_max).clamp(WAIT_MIN, WAIT_MAX);
                prop_assert!(steps.shortest() < lowest + MILLISECOND);
            }
            if policy.jitter == Jitter::None && policy.delay_nominal_longest() > policy.in_process_max {
                prop_assert!(steps.longest() >= policy.delay_nominal_longest().min(WAIT_MAX));
            }
        }
    }

    #[test]
    fn exact_delays_are_steps_unless_they_are_too_many(policy in policies()) {
        let policy = Policy { jitter: Jitter::None, ..policy };
        // Not `delays_nominal().skip_while(..)`: a slow schedule has millions of delays in the process.
        let floor = policy.in_process_max.max(WAIT_MIN - Duration::from_nanos(1));
        let first = policy.delay_longer_than(floor);
        let leaving = std::iter::successors(first, |delay| policy.delay_longer_than(*delay));
        let leaving: Vec<Duration> = leaving.take(16).take_while(|delay| *delay <= WAIT_MAX).collect();
        let steps = WaitSteps::for_policies(&[&policy], 17);
        // One step for all that is below the shortest, one for all above the longest: 15 of our own always fit.
        for delay in leaving.iter().copied().filter(|_| leaving.len() <= 15) {
            prop_assert_eq!(steps.exact(delay).map(|step| step.saturating_sub(delay) < MILLISECOND), Some(true));
        }
    }

    #[test]
    fn rounding_up_is_never_early_and_takes_the_next_step(steps in any_steps(), delay in 0..90_000_000_u64) {
        let delay = Duration::from_millis(delay);
        let step = steps.round_up(delay);
        prop_assert!(step >= delay || step == steps.longest());
        prop_assert!(!steps.as_slice().iter().any(|other| *other >= delay && *other < step));
    }

    #[test]
    fn rounding_by_chance_takes_a_neighbour(steps in any_steps(), delay in 0..90_000_000_u64, chance in 0.0..1.0) {
        let delay = Duration::from_millis(delay);
        let step = steps.round_by_chance(delay, chance);
        let (low, high) = (delay.min(step), delay.max(step));
        prop_assert!(steps.exact(step).is_some());
        prop_assert!(!steps.as_slice().iter().any(|other| low < *other && *other < high));
    }

    #[test]
    fn rounding_by_chance_keeps_the_mean(steps in any_steps(), place in 0.0..1.0) {
        const CHANCES: u32 = 10_000;
        let delay = steps.shortest() + (steps.longest() - steps.shortest()).mul_f64(place);
        let sum: f64 = (0..CHANCES)
            .map(|part| f64::from(part) / f64::from(CHANCES))
            .map(|chance| steps.round_by_chance(delay, chance).as_secs_f64())
            .sum();
        let mean = sum / f64::from(CHANCES);
        // A chance grid of 10,000 points can miss by one point of the gap, which counts where a gap is wide.
        let tolerance = 0.01 * delay.as_secs_f64() + steps.longest().as_secs_f64() / f64::from(CHANCES);
        prop_assert!((mean - delay.as_secs_f64()).abs() <= tolerance, "{mean} for {delay:?}");
    }
}

#[test]
fn the_default_policy_keeps_its_mean_within_one_percent() {
    let steps = WaitSteps::for_policies(&[&Policy::default()], 16);
    for seconds in [1, 2, 7, 33, 100, 444, 600] {
        let delay = Duration::from_secs(seconds);
        let chances = (0..1000).map(|part| f64::from(part) / 1000.0);
        let sum: f64 =
            chances.map(|chance| steps.round_by_chance(delay, chance).as_secs_f64()).sum();
        let error = (sum / 1000.0 / delay.as_secs_f64() - 1.0).abs();
        assert!(error < 0.01, "{delay:?} is off by {error}");
    }
}
