//! The tables `[retry.NAME]`: when a failed message is tried again, and when no more.

use std::num::NonZeroU32;
use std::time::Duration;

use serde::Deserialize;

use super::{table, units};
use crate::retry::{Backoff, Jitter, Policy};

/// One retry policy.
///
/// ```
/// use std::time::Duration;
/// use redeliver::config::Config;
/// use redeliver::retry::Attempt;
///
/// let config = Config::from_toml(r#"
///     [retry.patient]
///     backoff = "list"
///     jitter = "none"
///     delays = ["1s", "1m", "5m"]
///     attempts_max = 4
/// "#)?;
/// let policy = config.retry["patient"].policy();
/// let third = Attempt::FIRST.next().next();
/// assert_eq!(policy.delay_before(third, None, 0.5), Duration::from_secs(60));
/// # Ok::<(), redeliver::config::Problems>(())
/// ```
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
    #[serde(deserialize_with = "table::list")]
    pub rules: Vec<Rule>,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            backoff: Backoff::Exponential,
            jitter: Jitter::Full,
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

/// An exception from a policy: for failures of one class, or for messages of one type.
///
/// ```
/// use redeliver::config::{Config, Then};
///
/// let config = Config::from_toml(r#"
///     [[retry.standard.rules]]
///     class = "validation"          # what Failure::class said
///     then = "reject"
///     [[retry.standard.rules]]
///     type = "heartbeat"
///     then = "ignore"
/// "#)?;
/// let rules = &config.retry["standard"].rules;
/// assert_eq!((rules[0].class.as_deref(), rules[0].then), (Some("validation"), Then::Reject));
/// assert_eq!((rules[1].kind.as_deref(), rules[1].then), (Some("heartbeat"), Then::Ignore));
/// # Ok::<(), redeliver::config::Problems>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rule {
    /// The error class that a failure must have; this or `type` must be given.
    pub class: Option<String>,
    /// The type that a message must have; this or `class` must be given.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// What then happens; retry, which must be said unless `retry` is given.
    pub then: Then,
    /// With `then = "retry"`: the name of the policy that takes over; the one the rule stands in.
    pub retry: Option<String>,
}

/// What a rule decides.
///
/// ```
/// use redeliver::config::{Config, Then};
///
/// let config = Config::from_toml(r#"
///     [retry.slow]
///     delay_min = "1m"
///     [[retry.standard.rules]]
///     class = "rate-limited"
///     retry = "slow"
/// "#)?;
/// let rule = &config.retry["standard"].rules[0];
/// assert_eq!((rule.then, rule.retry.as_deref()), (Then::Retry, Some("slow")));
/// # Ok::<(), redeliver::config::Problems>(())
/// ```
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
    /// The schedule that this table describes, without its rules.
    ///
    /// ```
    /// use std::time::Duration;
    /// use redeliver::config::Retry;
    /// use redeliver::retry::{Attempt, Jitter};
    ///
    /// let table = Retry { delay_min: Duration::from_secs(1), multiplier: 3.0, jitter: Jitter::None, ..Retry::default() };
    /// let third = Attempt::FIRST.next().next();
    /// assert_eq!(table.policy().delay_before(third, None, 0.5), Duration::from_secs(3));
    /// ```
    pub fn policy(&self) -> Policy {
        Policy {
            backoff: self.backoff,
            jitter: self.jitter,
            delay_min: self.delay_min,
            delay_max: self.delay_max,
            multiplier: self.multiplier,
            delays: self.delays.clone(),
            attempts_max: self.attempts_max,
            age_max: self.age_max,
            immediate: self.immediate,
            in_process_max: self.in_process_max,
        }
    }

    /// The longest that a message can be under way: every wait and every attempt at its longest.
    pub(super) fn longest_schedule(&self, timeout: Duration) -> Duration {
        let policy = self.policy();
        // Where jitter is drawn a wait may be rounded up to the next step of the grid: twice is a safe bound.
        let rounding = if self.jitter == Jitter::None { 1 } else { 2 };
        let waits = policy.waits_longest_total().saturating_mul(rounding);
        let attempts = timeout.saturating_mul(self.attempts_max.get() - 1);
        // The age is looked at when a wait has ended, and the attempt after it may still be made.
        let aged = self.age_max.saturating_add(policy.wait_longest());
        waits.saturating_add(attempts).min(aged).saturating_add(timeout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_schedule_is_longer_than_its_age_and_one_wait() {
        let minute = Duration::from_secs(60);
        let endless = Retry {
            attempts_max: NonZeroU32::MAX,
            delay_min: minute * 10,
            age_max: minute,
            ..Retry::default()
        };
        assert_eq!(endless.longest_schedule(Duration::ZERO), minute + endless.delay_max);
    }

    #[test]
    fn a_table_and_a_policy_have_the_same_defaults() {
        assert_eq!(Retry::default().policy(), Policy::default());
    }
}
