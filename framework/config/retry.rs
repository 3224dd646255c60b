//! The tables `[retry.NAME]`: when a failed message is tried again, and when no more.

use std::num::NonZeroU32;
use std::time::Duration;

use serde::Deserialize;

use super::units;

/// One retry policy.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Retry {
    /// How the delay grows; exponential.
    pub backoff: Backoff,
    /// How chance spreads the delay; full.
    pub jitter: Jitter,
    /// The first delay; 200ms.
    #[serde(deserialize_with = "units::duration")]
    pub delay_min: Duration,
    /// The longest delay; 10m.
    #[serde(deserialize_with = "units::duration")]
    pub delay_max: Duration,
    /// What each delay is multiplied by to give the next (exponential), 1 or more; 2.0.
    pub multiplier: f64,
    /// The delays one by one (list); the last one is repeated. None.
    #[serde(deserialize_with = "units::durations")]
    pub delays: Vec<Duration>,
    /// How many attempts a message has in all; 8.
    #[serde(deserialize_with = "units::count_u32")]
    pub attempts_max: NonZeroU32,
    /// How old a message may be and still be tried; 24h.
    #[serde(deserialize_with = "units::duration")]
    pub age_max: Duration,
    /// How many of the first retries come without a delay; 0. They count towards `attempts_max`.
    #[serde(deserialize_with = "units::whole")]
    pub immediate: u32,
    /// Delays up to this wait in the process, longer ones at the broker; 1s.
    #[serde(deserialize_with = "units::duration")]
    pub in_process_max: Duration,
    /// Exceptions by error class or message type; the first that fits decides. None.
    pub rules: Vec<Rule>,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            backoff: Backoff::default(),
            jitter: Jitter::default(),
            delay_min: Duration::from_millis(200),
            delay_max: Duration::from_secs(10 * 60),
            multiplier: 2.0,
            delays: Vec::new(),
            attempts_max: const { NonZeroU32::new(8).expect("8 is not zero") },
            age_max: Duration::from_secs(86_400),
            immediate: 0,
            in_process_max: Duration::from_secs(1),
            rules: Vec::new(),
        }
    }
}

/// How the delay grows from attempt to attempt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backoff {
    /// No delay.
    None,
    /// Always `delay_min`.
    Fixed,
    /// `delay_min` more each time.
    Linear,
    /// `multiplier` times the one before.
    #[default]
    Exponential,
    /// The sum of the two before.
    Fibonacci,
    /// As `delays` says.
    List,
}

/// How chance spreads the delay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Jitter {
    /// Not at all.
    None,
    /// Between half the delay and the whole.
    Equal,
    /// Between nothing and the whole.
    #[default]
    Full,
    /// Between `delay_min` and three times the delay before.
    Decorrelated,
}

/// An exception from a policy: for failures of one class, or for messages of one type.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rule {
    /// The error class that a failure must have; this or `type` must be given.
    pub class: Option<String>,
    /// The type that a message must have; this or `class` must be given.
    #[serde(rename = "type")]
    pub message_type: Option<String>,
    /// What then happens; retry, which must be said unless `retry` is given.
    pub then: Then,
    /// With `then = "retry"`: the name of the policy that takes over; the one the rule stands in.
    pub retry: Option<String>,
}

/// What a rule decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Then {
    /// The message becomes a dead letter at once.
    Reject,
    /// The message is acknowledged and counted.
    Ignore,
    /// The message is tried again.
    #[default]
    Retry,
}

impl Retry {
    /// The longest that this policy can let a message wait before one retry, before rounding to a step.
    ///
    /// Only the bound: what a wait is, chance decides. Rules are not looked at.
    pub(super) fn longest_wait(&self) -> Duration {
        self.waits().max().unwrap_or_default()
    }

    /// The longest that a message can be under way: every wait and every attempt at its longest.
    pub(super) fn longest_schedule(&self, timeout: Duration) -> Duration {
        // Where jitter is drawn a wait may be rounded up to the next step of the grid: twice is a safe bound.
        let rounding = if self.jitter == Jitter::None { 1 } else { 2 };
        let mut total = Duration::ZERO;
        for wait in self.waits() {
            total = total.saturating_add(wait.saturating_mul(rounding)).saturating_add(timeout);
            if total > self.age_max {
                break;
            }
        }
        // The age is looked at when a wait has ended, and the attempt before it may still be made.
        total.min(self.age_max.saturating_add(self.longest_wait())).saturating_add(timeout)
    }

    /// The longest wait before each retry, the first one first; equal ones at the end are given once per retry.
    fn waits(&self) -> impl Iterator<Item = Duration> {
        // More retries than fit in a day of milliseconds cannot happen; the cap only bounds this loop.
        let retries = (self.attempts_max.get() - 1).saturating_sub(self.immediate).min(10_000);
        let (mut before, mut last) = (0.0, 0.0);
        (0..retries).map(move |n| {
            let min = self.delay_min.as_secs_f64();
            let wait = match (self.backoff, self.jitter) {
                (Backoff::None, _) => 0.0,
                (Backoff::List, _) => {
                    let at = (n as usize).min(self.delays.len().saturating_sub(1));
                    self.delays.get(at).copied().unwrap_or_default().as_secs_f64()
                }
                (_, Jitter::Decorrelated) => min * 3_f64.powf(f64::from(n) + 1.0),
                (Backoff::Fixed, _) => min,
                (Backoff::Linear, _) => min * (f64::from(n) + 1.0),
                (Backoff::Exponential, _) => min * self.multiplier.max(1.0).powf(f64::from(n)),
                (Backoff::Fibonacci, _) => if n == 0 { min } else { before + last },
            };
            (before, last) = (last, wait);
            Duration::try_from_secs_f64(wait).unwrap_or(self.delay_max).min(self.delay_max)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_wait_grows_with_the_backoff() {
        let policy = |backoff, jitter| Retry { backoff, jitter, ..Retry::default() }.longest_wait();
        assert_eq!(policy(Backoff::None, Jitter::Full), Duration::ZERO);
        assert_eq!(policy(Backoff::Fixed, Jitter::None), Duration::from_millis(200));
        assert_eq!(policy(Backoff::Linear, Jitter::None), Duration::from_millis(1_400));
        assert_eq!(policy(Backoff::Fibonacci, Jitter::None), Duration::from_millis(2_600));
        assert_eq!(policy(Backoff::Exponential, Jitter::Full), Duration::from_millis(12_800));
        assert_eq!(policy(Backoff::Exponential, Jitter::Decorrelated), Duration::from_millis(437_400));
    }

    #[test]
    fn no_schedule_is_longer_than_its_age_and_one_wait() {
        let policy = Retry { attempts_max: NonZeroU32::MAX, age_max: Duration::from_secs(60), ..Retry::default() };
        let minute = Duration::from_secs(60);
        assert_eq!(policy.longest_schedule(Duration::ZERO), minute + policy.delay_max);
    }
}
