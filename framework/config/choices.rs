//! The words that a key of `[subscriptions.NAME]` can be given: one enum a key.
//!
//! Owns which words there are and which one is the default. What each does is done elsewhere.

use serde::Deserialize;

/// The kind of queue that is declared (RabbitMQ).
///
/// ```
/// use redeliver::config::{Config, QueueType};
///
/// let config = Config::from_toml(r#"
///     [brokers.main]
///     kind = "memory"
///     [subscriptions.orders]
///     broker = "main"
///     queue_type = "classic"
/// "#)?;
/// assert_eq!(config.subscriptions["orders"].queue_type, QueueType::Classic);
/// # Ok::<(), redeliver::config::Problems>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum QueueType {
    /// Replicated, survives the loss of a minority of nodes.
    #[default]
    Quorum,
    /// On one node.
    Classic,
}

/// What a crash may repeat (Kafka).
///
/// ```
/// use redeliver::config::{Config, DeliveryGuarantee};
///
/// let config = Config::from_toml(r#"
///     [brokers.main]
///     kind = "memory"
///     [subscriptions.orders]
///     broker = "main"
///     delivery_guarantee = "at-least-once"
/// "#)?;
/// assert_eq!(config.subscriptions["orders"].delivery_guarantee, DeliveryGuarantee::AtLeastOnce);
/// # Ok::<(), redeliver::config::Problems>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeliveryGuarantee {
    /// Effects may be repeated, never left out.
    #[default]
    AtLeastOnce,
    /// Output and offsets are one Kafka transaction.
    Transactional,
}

/// Whether queues and topics are created, checked, or left alone.
///
/// ```
/// use redeliver::config::{Config, Topology};
///
/// let config = Config::from_toml(r#"
///     [brokers.main]
///     kind = "memory"
///     [subscriptions.orders]
///     broker = "main"
///     topology = "verify"
/// "#)?;
/// assert_eq!(config.subscriptions["orders"].topology, Topology::Verify);
/// # Ok::<(), redeliver::config::Problems>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Topology {
    /// Created where they are missing.
    #[default]
    Declare,
    /// Checked at start; a missing one is an error.
    Verify,
    /// Neither; for users who may do nothing but consume and publish.
    None,
}

/// What keeps its order.
///
/// ```
/// use redeliver::config::{Config, Ordering};
///
/// let config = Config::from_toml(r#"
///     [brokers.main]
///     kind = "memory"
///     [subscriptions.orders]
///     broker = "main"
///     key = "/customer_id"
///     order_on_long_wait = "reorder"
///     ordering = "key"
/// "#)?;
/// assert_eq!(config.subscriptions["orders"].ordering, Ordering::Key);
/// # Ok::<(), redeliver::config::Problems>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ordering {
    /// Nothing.
    #[default]
    None,
    /// Messages of one key.
    Key,
    /// Messages of one lane.
    Lane,
}

/// What happens under order to a message whose wait is longer than `order_wait_max`.
///
/// ```
/// use redeliver::config::{Config, OnLongWait};
///
/// let config = Config::from_toml(r#"
///     [brokers.main]
///     kind = "memory"
///     [subscriptions.orders]
///     broker = "main"
///     ordering = "lane"
///     order_on_long_wait = "dead-letter"
/// "#)?;
/// assert_eq!(config.subscriptions["orders"].order_on_long_wait, Some(OnLongWait::DeadLetter));
/// # Ok::<(), redeliver::config::Problems>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnLongWait {
    /// It waits at the broker, and those behind it go first.
    #[default]
    Reorder,
    /// It becomes a dead letter.
    DeadLetter,
}

/// Among whom order is kept (RabbitMQ).
///
/// ```
/// use redeliver::config::{Config, OrderScope};
///
/// let config = Config::from_toml(r#"
///     [brokers.main]
///     kind = "memory"
///     [subscriptions.orders]
///     broker = "main"
///     ordering = "lane"
///     order_on_long_wait = "reorder"
///     order_scope = "process"
/// "#)?;
/// assert_eq!(config.subscriptions["orders"].order_scope, OrderScope::Process);
/// # Ok::<(), redeliver::config::Problems>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OrderScope {
    /// Among all processes: one consumer at a time is served.
    #[default]
    Queue,
    /// Within each process.
    Process,
}

/// What happens to a message whose type no handler takes.
///
/// ```
/// use redeliver::config::{Config, OnUnknownType};
///
/// let config = Config::from_toml(r#"
///     [brokers.main]
///     kind = "memory"
///     [subscriptions.orders]
///     broker = "main"
///     on_unknown_type = "ignore"
/// "#)?;
/// assert_eq!(config.subscriptions["orders"].on_unknown_type, OnUnknownType::Ignore);
/// # Ok::<(), redeliver::config::Problems>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnUnknownType {
    /// It becomes a dead letter.
    #[default]
    DeadLetter,
    /// It is acknowledged and counted.
    Ignore,
}

/// What happens to a message that is older than it may be.
///
/// ```
/// use redeliver::config::{Config, OnExpired};
///
/// let config = Config::from_toml(r#"
///     [brokers.main]
///     kind = "memory"
///     [subscriptions.orders]
///     broker = "main"
///     on_expired = "drop"
/// "#)?;
/// assert_eq!(config.subscriptions["orders"].on_expired, OnExpired::Drop);
/// # Ok::<(), redeliver::config::Problems>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnExpired {
    /// It becomes a dead letter.
    #[default]
    DeadLetter,
    /// It is acknowledged and counted.
    Drop,
}

/// What happens to a message without an id.
///
/// ```
/// use redeliver::config::{Config, IdMissing};
///
/// let config = Config::from_toml(r#"
///     [brokers.main]
///     kind = "memory"
///     [subscriptions.orders]
///     broker = "main"
///     id_missing = "reject"
/// "#)?;
/// assert_eq!(config.subscriptions["orders"].id_missing, Some(IdMissing::Reject));
/// # Ok::<(), redeliver::config::Problems>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IdMissing {
    /// It is handled; nothing can recognise its copies.
    #[default]
    Run,
    /// It becomes a dead letter.
    Reject,
}

/// What happens while the store of locks and claims cannot be reached.
///
/// ```
/// use redeliver::config::{Config, OnStoreDown};
///
/// let config = Config::from_toml(r#"
///     [brokers.main]
///     kind = "memory"
///     [subscriptions.orders]
///     broker = "main"
///     on_store_down = "run"
/// "#)?;
/// assert_eq!(config.subscriptions["orders"].on_store_down, OnStoreDown::Run);
/// # Ok::<(), redeliver::config::Problems>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnStoreDown {
    /// The subscription pauses; its messages stay with the broker.
    #[default]
    Pause,
    /// Messages are handled without lock and claim.
    Run,
}
