//! How long a message waits before its next attempt.
//!
//! Owns the policy and the arithmetic of one delay (that of a whole schedule is in `extent`). Never reads a clock, never draws a random number and never sleeps:
//! the attempt, the previous delay and a chance are handed in, so that one input has one answer.
//! Every sum saturates: no configuration and no header, however absurd, can make it panic or wrap.

use std::num::NonZeroU32;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Attempt;

/// How the base delay grows from one step of the schedule to the next.
///
/// ```
/// use redeliver::retry::Backoff;
///
/// let read: Backoff = serde_json::from_str(r#""fibonacci""#)?;
/// assert_eq!(read, Backoff::Fibonacci);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backoff {
    /// No wait at all; jitter changes nothing.
    None,
    /// `delay_min` each time.
    Fixed,
    /// `delay_min` times the step: 1, 2, 3, 4.
    Linear,
    /// `delay_min` times `multiplier` to the power of the step less one: 1, 2, 4, 8.
    Exponential,
    /// `delay_min` times the Fibonacci number of the step: 1, 1, 2, 3, 5.
    Fibonacci,
    /// The entries of `delays` in turn, then the last one again and again; an empty list is `Fixed`.
    List,
}

/// How chance spreads the delays, so that messages that failed together do not come back together.
///
/// The names and formulas are those of Marc Brooker's "Exponential Backoff And Jitter" (AWS Architecture Blog,
/// 2015), whose simulation found that full jitter finishes contending work with the fewest calls.
///
/// ```
/// use redeliver::retry::Jitter;
///
/// assert_eq!(serde_json::to_string(&Jitter::Decorrelated)?, r#""decorrelated""#);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Jitter {
    /// The base delay as it is.
    None,
    /// Uniform between half the base delay and the whole.
    Equal,
    /// Uniform between nothing and the base delay.
    Full,
    /// Uniform between `delay_min` and three times the previous delay. It grows by itself, so the kind of backoff
    /// does not matter (but for [`Backoff::None`], which never waits).
    Decorrelated,
}

/// When a failed message is tried again, and when it has been tried enough.
///
/// ```
/// use std::time::Duration;
/// use redeliver::retry::{Attempt, Jitter, Policy};
///
/// let policy = Policy { jitter: Jitter::None, ..Policy::default() };
/// let second = Attempt::FIRST.next();
/// assert_eq!(policy.delay_before(second, None, 0.5), Duration::from_millis(200));
/// assert_eq!(policy.delay_before(second.next(), None, 0.5), Duration::from_millis(400));
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// How the base delay grows.
    pub backoff: Backoff,
    /// How chance spreads it.
    pub jitter: Jitter,
    /// The first base delay, and the least that decorrelated jitter draws.
    pub delay_min: Duration,
    /// No delay is longer, whatever the backoff, the list or the jitter says.
    pub delay_max: Duration,
    /// Growth of the exponential backoff. Less than 1 and not-a-number count as 1: delays never shrink.
    pub multiplier: f64,
    /// The base delays of [`Backoff::List`].
    pub delays: Vec<Duration>,
    /// Executions in all, the first and the immediate ones included.
    pub attempts_max: NonZeroU32,
    /// Time since the first delivery after which a failure is the last.
    pub age_max: Duration,
    /// How many attempts follow the first without a wait, before the schedule begins.
    pub immediate: u32,
    /// Waits up to this long stay in the process; longer ones wait at the broker.
    pub in_process_max: Duration,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy {
            backoff: Backoff::Exponential,
            jitter: Jitter::Full,
            delay_min: Duration::from_millis(200),
            delay_max: Duration::from_secs(10 * 60),
            multiplier: 2.0,
            delays: Vec::new(),
            attempts_max: NonZeroU32::MIN.saturating_add(7),
            age_max: Duration::from_secs(24 * 60 * 60),
            immediate: 0,
            in_process_max: Duration::from_secs(1),
        }
    }
}

impl Policy {
    /// The delay before `attempt`, given the delay that was drawn before (`None` at the first retry) and a chance
    /// in `[0, 1)`.
    ///
    /// There is none before the first attempt and before the `immediate` ones; the attempt after those begins the
    /// schedule at its first step. The caller compares with `attempts_max`: a delay is told for any attempt.
    ///
    /// ```
    /// use std::time::Duration;
    /// use redeliver::retry::{Attempt, Policy};
    ///
    /// let policy = Policy { immediate: 1, ..Policy::default() };
    /// let second = Attempt::FIRST.next();
    /// assert_eq!(policy.delay_before(second, None, 0.5), Duration::ZERO);
    /// assert_eq!(policy.delay_before(second.next(), None, 0.5), Duration::from_millis(100));
    /// ```
    pub fn delay_before(
        &self,
        attempt: Attempt,
        previous: Option<Duration>,
        chance: f64,
    ) -> Duration {
        match self.step_before(attempt) {
            None => Duration::ZERO,
            Some(step) => self.draw(step, previous, chance),
        }
    }

    /// The delay of one step of the schedule, counted from 1, before jitter.
    ///
    /// ```
    /// use std::{num::NonZeroU32, time::Duration};
    /// use redeliver::retry::Policy;
    ///
    /// assert_eq!(Policy::default().base_delay(NonZeroU32::MIN), Duration::from_millis(200));
    /// assert_eq!(Policy::default().base_delay(NonZeroU32::MAX), Duration::from_secs(600));
    /// ```
    pub fn base_delay(&self, step: NonZeroU32) -> Duration {
        let delay = match self.backoff {
            Backoff::None => Duration::ZERO,
            Backoff::Fixed => self.delay_min,
            Backoff::Linear => self.delay_min.saturating_mul(step.get()),
            Backoff::Exponential => grown(self.delay_min, self.multiplier, step.get() - 1),
            Backoff::Fibonacci => self.fibonacci(step),
            Backoff::List => self.listed(step),
        };
        delay.min(self.delay_max)
    }

    /// The step of the schedule whose delay comes before `attempt`; `None` if there is no wait.
    pub(super) fn step_before(&self, attempt: Attempt) -> Option<NonZeroU32> {
        NonZeroU32::new((attempt.get() - 1).saturating_sub(self.immediate))
    }

    fn draw(&self, step: NonZeroU32, previous: Option<Duration>, chance: f64) -> Duration {
        let base = self.base_delay(step);
        match self.jitter {
            Jitter::None => base,
            Jitter::Equal => base / 2 + share(base - base / 2, chance),
            Jitter::Full => share(base, chance),
            Jitter::Decorrelated => self.decorrelated(previous, chance),
        }
    }

    fn decorrelated(&self, previous: Option<Duration>, chance: f64) -> Duration {
        if self.backoff == Backoff::None {
            return Duration::ZERO;
        }
        // A previous delay below the minimum (an immediate attempt, an old policy, a forged header) would empty
        // the interval.
        let previous = previous.unwrap_or(self.delay_min).max(self.delay_min);
        let width = previous.saturating_mul(3) - self.delay_min;
        self.delay_min.saturating_add(share(width, chance)).min(self.delay_max)
    }

    fn fibonacci(&self, step: NonZeroU32) -> Duration {
        if self.delay_min.is_zero() {
            return Duration::ZERO;
        }
        let (mut delay, mut following) = (self.delay_min, self.delay_min);
        for _ in 1..step.get() {
            // Under 140 rounds even from a nanosecond to the longest duration there is.
            if delay >= self.delay_max {
                break;
            }
            (delay, following) = (following, delay.saturating_add(following));
        }
        delay
    }

    fn listed(&self, step: NonZeroU32) -> Duration {
        let index = usize::try_from(step.get() - 1).unwrap_or(usize::MAX);
        self.delays.get(index).or(self.delays.last()).copied().unwrap_or(self.delay_min)
    }
}

/// `delay` times `factor` to the power of `times`; never shorter than `delay`, at most the longest duration.
fn grown(delay: Duration, factor: f64, times: u32) -> Duration {
    // Nothing times infinity is not a number.
    if delay.is_zero() {
        return delay;
    }
    // `max` takes the other side when one is not a number.
    let seconds = delay.as_secs_f64() * factor.max(1.0).powf(f64::from(times));
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX).max(delay)
}

/// The part of `delay` that `chance` picks, between nothing and the whole.
fn share(delay: Duration, chance: f64) -> Duration {
    // A chance that is not a number gives the whole: late is safer than early.
    let seconds = delay.as_secs_f64() * chance.clamp(0.0, 1.0);
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX).min(delay)
}

#[cfg(test)]
pub(super) mod tests;
