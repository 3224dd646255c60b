//! The tables inside a subscription: `batch`, `breaker`, `idempotency`, `lock`.

use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

use serde::Deserialize;

use super::{KeySource, units};
use crate::retry::BreakerPolicy;

/// Messages taken together: a batch is handed on when it has `size` messages or is `wait` old.
///
/// ```
/// use redeliver::config::Config;
///
/// let config = Config::from_toml(r#"
///     [brokers.main]
///     kind = "memory"
///     [subscriptions.rows]
///     broker = "main"
///     batch = { size = 32, wait = "1s" }
/// "#)?;
/// assert_eq!(config.subscriptions["rows"].batch.as_ref().map(|batch| batch.size.get()), Some(32));
/// # Ok::<(), redeliver::config::Problems>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Batch {
    /// The most messages of a batch; 64.
    #[serde(deserialize_with = "units::count")]
    pub size: NonZeroUsize,
    /// The longest that its first message waits for others; 100ms.
    #[serde(deserialize_with = "units::duration")]
    pub wait: Duration,
}

impl Default for Batch {
    fn default() -> Self {
        Self {
            size: const { NonZeroUsize::new(64).expect("64 is not zero") },
            wait: Duration::from_millis(100),
        }
    }
}

/// When a subscription pauses because too much of it fails. Rejected messages do not count.
///
/// ```
/// use redeliver::config::Config;
///
/// let config = Config::from_toml(r#"
///     [brokers.main]
///     kind = "memory"
///     [subscriptions.orders]
///     broker = "main"
///     breaker = { failure_rate = 0.5, pause = "1s" }
/// "#)?;
/// let breaker = &config.subscriptions["orders"].breaker;
/// assert_eq!((breaker.failure_rate, breaker.attempts_min.get()), (0.5, 20));
/// # Ok::<(), redeliver::config::Problems>(())
/// ```
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Breaker {
    /// With fewer attempts in the window it does not judge; 20.
    #[serde(deserialize_with = "units::count_u32")]
    pub attempts_min: NonZeroU32,
    /// The share of failed attempts, above 0 and up to 1, from which on it pauses; 0.9.
    pub failure_rate: f64,
    /// The time in which attempts are counted; 10s.
    #[serde(deserialize_with = "units::duration")]
    pub window: Duration,
    /// The first pause before a message is tried again; 5s.
    #[serde(deserialize_with = "units::duration")]
    pub pause: Duration,
    /// The longest pause, to which it grows while the tries fail; 5m.
    #[serde(deserialize_with = "units::duration")]
    pub pause_max: Duration,
}

impl Default for Breaker {
    fn default() -> Self {
        Self {
            attempts_min: const { NonZeroU32::new(20).expect("20 is not zero") },
            failure_rate: 0.9,
            window: Duration::from_secs(10),
            pause: Duration::from_secs(5),
            pause_max: Duration::from_secs(5 * 60),
        }
    }
}

impl Breaker {
    /// The thresholds that this table describes.
    pub(crate) fn policy(&self) -> BreakerPolicy {
        BreakerPolicy {
            attempts_min: self.attempts_min.get(),
            failure_rate: self.failure_rate,
            window: self.window,
            pause: self.pause,
            pause_max: self.pause_max,
        }
    }
}

/// How a message id is handled once.
///
/// ```
/// use std::time::Duration;
/// use redeliver::config::Config;
///
/// let config = Config::from_toml(r#"
///     [brokers.main]
///     kind = "memory"
///     [stores.main]
///     kind = "memory"
///     [subscriptions.payments]
///     broker = "main"
///     idempotency = { store = "main", keep = "30d" }
/// "#)?;
/// let once = config.subscriptions["payments"].idempotency.as_ref().expect("it was given");
/// assert_eq!(once.keep, Duration::from_secs(30 * 86_400));
/// # Ok::<(), redeliver::config::Problems>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Idempotency {
    /// The name of a table `[stores.NAME]`; must be given.
    pub store: String,
    /// How long a claim outlives a process that died holding it; 60s. It is renewed while the handler runs.
    #[serde(deserialize_with = "units::duration")]
    pub lease: Duration,
    /// How long an id is remembered; 7d.
    #[serde(deserialize_with = "units::duration")]
    pub keep: Duration,
    /// What happens to a message whose id was handled before; ack.
    pub on_duplicate: OnDuplicate,
}

impl Default for Idempotency {
    fn default() -> Self {
        Self {
            store: String::new(),
            lease: Duration::from_secs(60),
            keep: Duration::from_secs(7 * 86_400),
            on_duplicate: OnDuplicate::default(),
        }
    }
}

/// What happens to a message whose id was handled before.
///
/// ```
/// use redeliver::config::{Config, OnDuplicate};
///
/// let config = Config::from_toml(r#"
///     [brokers.main]
///     kind = "memory"
///     [stores.main]
///     kind = "memory"
///     [subscriptions.payments]
///     broker = "main"
///     idempotency = { store = "main", on_duplicate = "call" }
/// "#)?;
/// let once = config.subscriptions["payments"].idempotency.as_ref().expect("it was given");
/// assert_eq!(once.on_duplicate, OnDuplicate::Call);
/// # Ok::<(), redeliver::config::Problems>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnDuplicate {
    /// It is acknowledged, and the handler does not see it.
    #[default]
    Ack,
    /// The handler is called and can read what it stored the first time.
    Call,
}

/// How one message of a key is handled at a time, in all processes.
///
/// ```
/// use redeliver::config::{Config, KeySource};
///
/// let config = Config::from_toml(r#"
///     [brokers.main]
///     kind = "memory"
///     [stores.main]
///     kind = "memory"
///     [subscriptions.payments]
///     broker = "main"
///     lock = { store = "main", key = "header:account", fair = true }
/// "#)?;
/// let lock = config.subscriptions["payments"].lock.as_ref().expect("it was given");
/// assert_eq!(lock.key, KeySource::Header("account".to_owned()));
/// # Ok::<(), redeliver::config::Problems>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Lock {
    /// The name of a table `[stores.NAME]`; must be given.
    pub store: String,
    /// Where the key is that is locked; a file must say so.
    pub key: KeySource,
    /// How long a lock outlives a process that died holding it; 30s. It is renewed while the handler runs.
    #[serde(deserialize_with = "units::duration")]
    pub lease: Duration,
    /// How long a message waits for a lock that another holds, before it is deferred; 2s.
    #[serde(deserialize_with = "units::duration")]
    pub wait: Duration,
    /// Keeps first-come order among those that wait; false.
    pub fair: bool,
    /// How long one handler may hold a lock; 10m.
    #[serde(deserialize_with = "units::duration")]
    pub hold_max: Duration,
}

impl Default for Lock {
    fn default() -> Self {
        Self {
            store: String::new(),
            key: KeySource::RoutingKey,
            lease: Duration::from_secs(30),
            wait: Duration::from_secs(2),
            fair: false,
            hold_max: Duration::from_secs(10 * 60),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_and_a_policy_have_the_same_defaults() {
        assert_eq!(Breaker::default().policy(), BreakerPolicy::default());
    }
}
