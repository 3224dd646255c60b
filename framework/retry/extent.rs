//! What a whole schedule can come to: which delays, how long at most, how long together.
//!
//! Owns the questions that are asked once, at start, to lay out waits and to refuse contradictions. Never in the path
//! of a message, and never slow: a policy may allow four thousand million attempts.

use std::iter;
use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::{Attempt, Backoff, Jitter, Policy};

impl Policy {
    /// The distinct delays of the schedule without jitter, shortest first, as far as `attempts_max` lets it go.
    ///
    /// Lazy, because a slow schedule with many attempts has millions; take as many as you can use.
    ///
    /// ```
    /// use redeliver::retry::{Backoff, Policy};
    ///
    /// let policy = Policy { backoff: Backoff::Fibonacci, ..Policy::default() };
    /// let millis: Vec<u128> = policy.delays_nominal().map(|delay| delay.as_millis()).collect();
    /// assert_eq!(millis, [200, 400, 600, 1000, 1600, 2600]);
    /// ```
    pub fn delays_nominal(&self) -> impl Iterator<Item = Duration> + '_ {
        iter::successors(self.delay_longer_than(Duration::ZERO), |delay| {
            self.delay_longer_than(*delay)
        })
    }

    /// The shortest and the longest delay that can be drawn.
    ///
    /// A schedule that grows is taken up to its cap, not up to the last attempt, so that raising `attempts_max` in
    /// a running service needs no wait that was not declared. A policy without any delayed attempt has `0..=0`.
    ///
    /// ```
    /// use std::time::Duration;
    /// use redeliver::retry::{Jitter, Policy};
    ///
    /// let policy = Policy { jitter: Jitter::Equal, ..Policy::default() };
    /// assert_eq!(policy.range(), Duration::from_millis(100)..=Duration::from_secs(600));
    /// ```
    pub fn range(&self) -> RangeInclusive<Duration> {
        if self.steps_count().is_none() || self.backoff == Backoff::None {
            return Duration::ZERO..=Duration::ZERO;
        }
        let (shortest, longest) = self.base_bounds(NonZeroU32::MAX);
        match self.jitter {
            Jitter::None => shortest..=longest,
            Jitter::Equal => shortest / 2..=longest,
            Jitter::Full => Duration::ZERO..=longest,
            Jitter::Decorrelated => {
                self.delay_min.min(self.delay_max)..=self.decorrelated_bound(NonZeroU32::MAX)
            }
        }
    }

    /// The longest wait that one message can meet, as far as `attempts_max` lets the schedule go.
    ///
    /// ```
    /// use std::time::Duration;
    /// use redeliver::retry::Policy;
    ///
    /// assert_eq!(Policy::default().wait_longest(), Duration::from_millis(12_800));
    /// ```
    pub fn wait_longest(&self) -> Duration {
        let Some(count) = self.steps_count() else {
            return Duration::ZERO;
        };
        match self.jitter {
            Jitter::None | Jitter::Equal | Jitter::Full => self.base_bounds(count).1,
            Jitter::Decorrelated => self.decorrelated_bound(count),
        }
    }

    /// An upper bound of all waits of one message together, whatever chance says.
    ///
    /// Exact for the first 10,000 steps; beyond those each step counts as the longest. The time that handlers take,
    /// waits that a handler asked for itself, and `age_max` are not in it.
    ///
    /// ```
    /// use std::time::Duration;
    /// use redeliver::retry::Policy;
    ///
    /// // 0.2 + 0.4 + 0.8 + 1.6 + 3.2 + 6.4 + 12.8 seconds
    /// assert_eq!(Policy::default().waits_longest_total(), Duration::from_millis(25_400));
    /// ```
    pub fn waits_longest_total(&self) -> Duration {
        let Some(count) = self.steps_count() else {
            return Duration::ZERO;
        };
        let added = count.get().min(STEPS_ADDED_MAX);
        let sum = (1..=added)
            .filter_map(NonZeroU32::new)
            .map(|step| self.longest_at(step))
            .fold(Duration::ZERO, Duration::saturating_add);
        let rest = self.range().end().saturating_mul(count.get() - added);
        sum.saturating_add(rest)
    }

    /// The shortest delay of the schedule that is longer than `floor`.
    ///
    /// Found by halving, as every backoff but the list grows with the step: a schedule of four thousand million
    /// steps must not cost as many look-ups at start.
    pub(super) fn delay_longer_than(&self, floor: Duration) -> Option<Duration> {
        let count = self.steps_count()?;
        if self.backoff == Backoff::List {
            return self.list(count).filter(|delay| *delay > floor).min();
        }
        let (mut low, mut high) = (NonZeroU32::MIN, count);
        while low < high {
            let middle = low.saturating_add((high.get() - low.get()) / 2);
            if self.base_delay(middle) > floor {
                high = middle
            } else {
                low = middle.saturating_add(1)
            }
        }
        Some(self.base_delay(high)).filter(|delay| *delay > floor)
    }

    /// The longest delay of the schedule without jitter, as far as `attempts_max` lets it go.
    pub(super) fn delay_nominal_longest(&self) -> Duration {
        self.steps_count().map_or(Duration::ZERO, |count| self.base_bounds(count).1)
    }

    /// How many delayed attempts there are; `None` when all of them are immediate.
    fn steps_count(&self) -> Option<NonZeroU32> {
        self.step_before(Attempt::from(self.attempts_max))
    }

    fn longest_at(&self, step: NonZeroU32) -> Duration {
        match self.jitter {
            Jitter::None | Jitter::Equal | Jitter::Full => self.base_delay(step),
            Jitter::Decorrelated => self.decorrelated_bound(step),
        }
    }

    /// What decorrelated jitter can reach at this step: every draw before it was the longest, too.
    fn decorrelated_bound(&self, step: NonZeroU32) -> Duration {
        if self.backoff == Backoff::None || self.delay_min.is_zero() {
            return Duration::ZERO;
        }
        let mut bound = self.delay_min;
        for _ in 0..step.get() {
            // Under 70 rounds even from a nanosecond to the longest duration there is.
            if bound >= self.delay_max {
                break;
            }
            bound = bound.saturating_mul(3);
        }
        bound.min(self.delay_max)
    }

    /// The shortest and the longest base delay of the first `count` steps.
    fn base_bounds(&self, count: NonZeroU32) -> (Duration, Duration) {
        if self.backoff == Backoff::List {
            let shortest = self.list(count).min().unwrap_or_default();
            return (shortest, self.list(count).max().unwrap_or_default());
        }
        (self.base_delay(NonZeroU32::MIN), self.base_delay(count))
    }

    /// The entries of the list that the first `count` steps use, capped.
    fn list(&self, count: NonZeroU32) -> impl Iterator<Item = Duration> + '_ {
        let entries = u32::try_from(self.delays.len().max(1)).unwrap_or(u32::MAX);
        (1..=count.get().min(entries)).filter_map(NonZeroU32::new).map(|step| self.base_delay(step))
    }
}

/// How many steps are added one by one; a policy may allow four thousand million attempts.
const STEPS_ADDED_MAX: u32 = 10_000;
