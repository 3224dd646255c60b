//! What loops that reconnect rely on.

use backoff::backoff::Backoff as _;

use super::*;

#[test]
fn it_never_ends_and_never_exceeds_its_maximum() {
    let mut schedule = Schedule::new(Policy { attempts_max: NonZeroU32::MIN, ..Policy::default() });
    let longest = Policy::default().delay_max;
    assert!((0..10_000).all(|_| { schedule.next_backoff().is_some_and(|delay| delay <= longest) }));
}

#[test]
fn it_goes_step_by_step_and_starts_again_after_a_reset() {
    let mut schedule = Schedule::new(Policy { jitter: Jitter::None, ..Policy::default() });
    let mut three = || -> Vec<u128> {
        schedule.reset();
        (0..3).filter_map(|_| schedule.next_backoff()).map(|delay| delay.as_millis()).collect()
    };
    assert_eq!(three(), [200, 400, 800]);
    assert_eq!(three(), [200, 400, 800]);
}

#[test]
fn two_schedules_draw_different_delays() {
    let draw = || {
        let mut schedule = Schedule::default();
        (0..20).map(|_| schedule.next_delay()).collect::<Vec<_>>()
    };
    assert_ne!(draw(), draw());
}

#[test]
fn decorrelated_jitter_is_fed_with_its_own_last_delay() {
    let policy = Policy { jitter: Jitter::Decorrelated, ..Policy::default() };
    let (shortest, mut previous) = (policy.delay_min, policy.delay_min);
    let mut schedule = Schedule::new(policy);
    for _ in 0..100 {
        let delay = schedule.next_delay();
        assert!((shortest..=previous * 3).contains(&delay), "{delay:?} after {previous:?}");
        previous = delay;
    }
}
