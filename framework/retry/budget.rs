//! How often something may be restarted before that is given up.
//!
//! Owns the count only; who restarts, and what giving up means, is the supervisor's.
//! The rule is that of Erlang/OTP's supervisor (its intensity and period, OTP Design Principles, "Supervisor
//! Behaviour"): so many restarts within the time are borne, one more is a fault that restarting does not cure.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// At most `restarts_max` restarts in any `window`.
#[derive(Debug, Clone)]
pub(crate) struct RestartBudget {
    restarts_max: u32,
    window: Duration,
    /// When those still in the window were made, oldest first; never more than `restarts_max`.
    spent: VecDeque<Instant>,
}

impl RestartBudget {
    /// A budget of which nothing is spent. With `restarts_max` 0 nothing is ever restarted.
    pub(crate) fn new(restarts_max: u32, window: Duration) -> RestartBudget {
        RestartBudget { restarts_max, window, spent: VecDeque::new() }
    }

    /// Takes one restart from the budget and answers whether there was one. A refusal costs nothing.
    pub(crate) fn try_spend(&mut self, now: Instant) -> bool {
        while self
            .spent
            .front()
            .is_some_and(|then| now.saturating_duration_since(*then) > self.window)
        {
            self.spent.pop_front();
        }
        let allowed = self.spent.len() < usize::try_from(self.restarts_max).unwrap_or(usize::MAX);
        if allowed {
            self.spent.push_back(now);
        }
        allowed
    }
}

#[cfg(test)]
mod tests;
