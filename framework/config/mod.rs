//! The configuration: TOML files, the environment over them, one struct a table, plain data.
//!
//! Owns which keys there are, their defaults, and every complaint about them. Starts nothing, connects to
//! nothing, and reads only the files it is given and those whose text is a secret.
//!
//! ```text
//!  file ──strictly──┐
//!  file ──strictly──┼─ layered ── Config ── secrets read ── checked as a whole ──> Config, or all Problems
//!  variable ────────┘  (config)
//! ```

mod broker;
mod choices;
mod guard;
mod retry;
mod service;
mod store;
mod subscription;

mod secret;
mod source;
mod template;
pub mod units;

mod check;
mod env;
mod file;
mod layer;
mod load;
mod nearest;
mod problem;
mod table;
mod text;
mod words;

use std::collections::BTreeMap;

use serde::Deserialize;

pub use broker::{Broker, BrokerKind, Tls};
pub use choices::{
    DeliveryGuarantee, IdMissing, OnExpired, OnLongWait, OnStoreDown, OnUnknownType, OrderScope,
    Ordering, QueueType, Topology,
};
pub use guard::{Batch, Breaker, Idempotency, Lock, OnDuplicate};
pub use problem::{Origin, Problem, Problems};
pub use retry::{Retry, Rule, Then};
pub use secret::{Properties, Secret, Url};
pub use service::{OnRestartsSpent, Service};
pub use source::{IdSource, KeySource, Pointer, TypeSource};
pub use store::{Store, StoreKind};
pub(crate) use subscription::HOPS_COUNTED_MAX;
pub use subscription::{Binding, Subscription};
pub use template::Template;

/// The whole configuration. `Config::default()` has no broker and no subscription.
///
/// ```
/// use redeliver::config::{BrokerKind, Config};
///
/// let config = Config::from_toml(r#"
///     [brokers.main]
///     kind = "memory"
///     [subscriptions.orders]
///     broker = "main"
/// "#)?;
/// assert_eq!(config.brokers["main"].kind, BrokerKind::Memory);
/// assert_eq!(config.retry_of(&config.subscriptions["orders"]).attempts_max.get(), 8);
/// # Ok::<(), redeliver::config::Problems>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// `[service]`: the process as a whole.
    #[serde(deserialize_with = "table::one")]
    pub service: Service,
    /// `[brokers.NAME]`: connections to brokers.
    #[serde(deserialize_with = "table::named")]
    pub brokers: BTreeMap<String, Broker>,
    /// `[stores.NAME]`: where locks and claims are kept.
    #[serde(deserialize_with = "table::named")]
    pub stores: BTreeMap<String, Store>,
    /// `[subscriptions.NAME]`: what is consumed, and the policies around it.
    #[serde(deserialize_with = "table::named")]
    pub subscriptions: BTreeMap<String, Subscription>,
    /// `[retry.NAME]`: when failed messages are tried again.
    #[serde(deserialize_with = "table::named")]
    pub retry: BTreeMap<String, Retry>,
}

/// The policy of a subscription that names none, and one that is there without a table.
const STANDARD: &str = "standard";

impl Config {
    /// The retry table of a subscription: the one it names, else `standard`.
    ///
    /// ```
    /// use redeliver::config::{Config, Retry};
    ///
    /// let config = Config::from_toml(r#"
    ///     [brokers.main]
    ///     kind = "memory"
    ///     [subscriptions]
    ///     orders = { broker = "main" }
    ///     mails = { broker = "main", retry = "patient" }
    ///     [retry.patient]
    ///     attempts_max = 20
    /// "#)?;
    /// assert_eq!(config.retry_of(&config.subscriptions["mails"]).attempts_max.get(), 20);
    /// assert_eq!(config.retry_of(&config.subscriptions["orders"]), Retry::default(), "no table is needed");
    /// # Ok::<(), redeliver::config::Problems>(())
    /// ```
    pub fn retry_of(&self, subscription: &Subscription) -> Retry {
        let name = subscription.retry.as_deref().unwrap_or(STANDARD);
        self.retry.get(name).cloned().unwrap_or_default()
    }
}
