//! What a supervisor relies on.

use proptest::prelude::*;

use super::*;

/// Asks at each of these seconds and compares the answers, `+` for yes and `-` for no.
fn check(restarts_max: u32, window: u64, seconds: &[u64], expected: &str) {
    let start = Instant::now();
    let mut budget = RestartBudget::new(restarts_max, Duration::from_secs(window));
    let answers: String = seconds
        .iter()
        .map(|second| budget.try_spend(start + Duration::from_secs(*second)))
        .map(|allowed| if allowed { '+' } else { '-' })
        .collect();
    assert_eq!(answers, expected);
}

#[test]
fn a_spent_budget_refuses_until_the_oldest_restart_has_left_the_window() {
    check(3, 10, &[0, 1, 2, 3, 10, 11, 11, 12], "+++--+-+");
}

#[test]
fn no_restarts_means_none() {
    check(0, 10, &[0, 100], "--");
}

#[test]
fn a_refusal_costs_nothing() {
    check(1, 10, &[0, 5, 9, 11], "+--+");
}

#[test]
fn a_clock_reading_that_is_a_little_old_is_borne() {
    check(2, 10, &[5, 4, 3], "++-");
}

proptest! {
    #[test]
    fn no_window_ever_holds_more_restarts_than_allowed(
        restarts_max in 0..6_u32, window in 0..1000_u64, gaps in prop::collection::vec(0..400_u64, 0..100),
    ) {
        let start = Instant::now();
        let window = Duration::from_millis(window);
        let mut budget = RestartBudget::new(restarts_max, window);
        let mut now = start;
        let mut spent = Vec::new();
        for gap in gaps {
            now += Duration::from_millis(gap);
            let before = spent.iter().filter(|then| now - **then <= window).count();
            let allowed = budget.try_spend(now);
            prop_assert_eq!(allowed, before < restarts_max as usize);
            if allowed {
                spent.push(now);
            }
        }
    }
}
