//! The tables `[subscriptions.NAME]`: a source on a broker, a handler, and the policies around it.

use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

use serde::Deserialize;

use super::{
    Batch, Breaker, BrokerKind, DeliveryGuarantee, IdMissing, IdSource, Idempotency, KeySource,
    Lock, OnExpired, OnLongWait, OnStoreDown, OnUnknownType, OrderScope, Ordering, QueueType,
    Template, Topology, TypeSource, table, units,
};

const MIB: u64 = 1 << 20;
/// A higher count of hops is not read, so that what circles would never be found.
pub(crate) const HOPS_COUNTED_MAX: u32 = 1_000_000;

const fn count(number: usize) -> NonZeroUsize {
    NonZeroUsize::new(number).expect("a default count is not zero")
}

/// One subscription.
///
/// ```
/// use redeliver::config::Config;
///
/// let config = Config::from_toml(r#"
///     [brokers.main]
///     kind = "rabbitmq"
///     url = "amqp://rabbit:5672/%2f"
///     [subscriptions.orders]
///     broker = "main"
///     queue = "orders"
///     in_flight_max = 16
///     timeout = "5s"
/// "#)?;
/// let orders = &config.subscriptions["orders"];
/// assert_eq!((orders.queue.as_deref(), orders.in_flight_max.get()), (Some("orders"), 16));
/// assert_eq!((orders.handlers.get(), orders.parked_max.get()), (1, 128), "the defaults");
/// # Ok::<(), redeliver::config::Problems>(())
/// ```
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Subscription {
    /// The name of a table `[brokers.NAME]`; must be given.
    pub broker: String,

    /// The queue to consume (RabbitMQ); must be given there.
    pub queue: Option<String>,
    /// What is bound to the queue (RabbitMQ); none.
    #[serde(deserialize_with = "table::list")]
    pub bindings: Vec<Binding>,
    /// The kind of queue that is declared (RabbitMQ); quorum.
    pub queue_type: QueueType,
    /// Further arguments of the queue's declaration (RabbitMQ); none.
    pub arguments: toml::Table,
    /// Arguments of the consumer, such as `x-priority` (RabbitMQ); none.
    pub consumer_arguments: toml::Table,
    /// Declares the queue so that one consumer at a time is served (RabbitMQ); false. Order in a queue implies it.
    pub single_active_consumer: bool,
    /// Lanes of the queue, each a channel (RabbitMQ); 1.
    #[serde(deserialize_with = "units::count")]
    pub consumers: NonZeroUsize,

    /// The topics to consume (Kafka); these or `pattern` must be given there.
    pub topics: Vec<String>,
    /// A regular expression, beginning with `^`, of the topics to consume (Kafka).
    pub pattern: Option<String>,
    /// The consumer group (Kafka); must be given there.
    pub group: Option<String>,
    /// How often finished offsets are committed (Kafka); 1s.
    #[serde(deserialize_with = "units::duration")]
    pub commit_interval: Duration,
    /// What a crash may repeat (Kafka); at-least-once.
    pub delivery_guarantee: DeliveryGuarantee,

    /// Whether queues and topics are created, checked, or left alone; declare.
    pub topology: Topology,
    /// Where dead letters go; `{queue}.dead`, on Kafka `{topic}.{group}.dead`.
    pub dead: Option<Template>,
    /// Where messages wait for their next attempt; `{queue}.wait.{ms}`, on Kafka
    /// `{topic}.{group}.wait.{ms}`.
    pub wait: Option<Template>,
    /// At most so many wait queues or topics where jitter is drawn; 16.
    #[serde(deserialize_with = "units::count")]
    pub wait_steps_max: NonZeroUsize,

    /// Handler actors, each on an arbiter of its own when more than 1; 1.
    #[serde(deserialize_with = "units::count")]
    pub handlers: NonZeroUsize,
    /// How many messages of a lane are handled at once; 64.
    #[serde(deserialize_with = "units::count")]
    pub in_flight_max: NonZeroUsize,
    /// How many messages of all lanes are handled at once; no limit but that of the lanes.
    #[serde(deserialize_with = "units::count_option")]
    pub in_flight_total_max: Option<NonZeroUsize>,
    /// How many bytes the messages in the process may have together; 64MiB.
    #[serde(deserialize_with = "units::size")]
    pub in_flight_bytes_max: u64,
    /// How many deliveries of a lane may wait in the process for their next attempt or their turn; 128.
    #[serde(deserialize_with = "units::count")]
    pub parked_max: NonZeroUsize,
    /// The longest body, in bytes, that a handler is given; longer ones are dead-lettered as `too-large`; 16MiB.
    #[serde(deserialize_with = "units::size")]
    pub body_max: u64,
    /// How long a handler may take for one message; 30s.
    #[serde(deserialize_with = "units::duration")]
    pub timeout: Duration,
    /// Takes messages together; off.
    #[serde(deserialize_with = "table::option")]
    pub batch: Option<Batch>,
    /// How long a lane may neither deliver nor be empty before it is opened again; 5m.
    #[serde(deserialize_with = "units::duration")]
    pub stall_after: Duration,

    /// What keeps its order; none.
    pub ordering: Ordering,
    /// Where the key is that order is kept by; on Kafka the record's key by default.
    pub key: Option<KeySource>,
    /// The longest wait, in the process, that a key or lane is held for; 30s.
    #[serde(deserialize_with = "units::duration")]
    pub order_wait_max: Duration,
    /// What happens to a message whose wait is longer; must be chosen if the retry policy has such waits.
    pub order_on_long_wait: Option<OnLongWait>,
    /// Among whom order is kept (RabbitMQ); queue.
    pub order_scope: OrderScope,
    /// How long all waits and attempts of one message can hold up its key or lane. Worked out from
    /// the retry policies when the service is built; nothing that a file could say.
    #[serde(skip)]
    pub order_hold_max: Duration,

    /// Where the type of a message is; property, on Kafka `header:type`.
    #[serde(rename = "type")]
    pub message_type: Option<TypeSource>,
    /// What happens to a message whose type no handler takes; dead-letter.
    pub on_unknown_type: OnUnknownType,
    /// What happens to a message that is older than it may be; dead-letter.
    pub on_expired: OnExpired,
    /// Where the id of a message is; message-id.
    pub id: IdSource,
    /// What happens to a message without an id; run, with idempotency reject.
    pub id_missing: Option<IdMissing>,
    /// After how many crashes a message is suspected of causing them, and handled alone; 5.
    #[serde(deserialize_with = "units::count_u32")]
    pub crashes_max: NonZeroU32,
    /// How many handlers may send a message on before it is dead-lettered as `loop`; 32.
    #[serde(deserialize_with = "units::count_u32")]
    pub hops_max: NonZeroU32,

    /// The name of a table `[retry.NAME]`; the policy `standard`, which is there without a table.
    pub retry: Option<String>,
    /// Pauses the subscription when too much of it fails.
    #[serde(deserialize_with = "table::one")]
    pub breaker: Breaker,
    /// Handles each message id once; off.
    #[serde(deserialize_with = "table::option")]
    pub idempotency: Option<Idempotency>,
    /// Handles one message of a key at a time, in all processes; off.
    #[serde(deserialize_with = "table::option")]
    pub lock: Option<Lock>,
    /// What happens while the store of locks and claims cannot be reached, or refuses everybody; pause.
    pub on_store_down: OnStoreDown,
}

impl Default for Subscription {
    fn default() -> Self {
        Self {
            broker: String::new(),
            queue: None,
            bindings: Vec::new(),
            queue_type: QueueType::default(),
            arguments: toml::Table::new(),
            consumer_arguments: toml::Table::new(),
            single_active_consumer: false,
            consumers: NonZeroUsize::MIN,
            topics: Vec::new(),
            pattern: None,
            group: None,
            commit_interval: Duration::from_secs(1),
            delivery_guarantee: DeliveryGuarantee::default(),
            topology: Topology::default(),
            dead: None,
            wait: None,
            wait_steps_max: count(16),
            handlers: NonZeroUsize::MIN,
            in_flight_max: count(64),
            in_flight_total_max: None,
            in_flight_bytes_max: 64 * MIB,
            parked_max: count(128),
            body_max: 16 * MIB,
            timeout: Duration::from_secs(30),
            batch: None,
            stall_after: Duration::from_secs(5 * 60),
            ordering: Ordering::default(),
            key: None,
            order_wait_max: Duration::from_secs(30),
            order_on_long_wait: None,
            order_scope: OrderScope::default(),
            order_hold_max: Duration::ZERO,
            message_type: None,
            on_unknown_type: OnUnknownType::default(),
            on_expired: OnExpired::default(),
            id: IdSource::default(),
            id_missing: None,
            crashes_max: const { NonZeroU32::new(5).expect("5 is not zero") },
            hops_max: const { NonZeroU32::new(32).expect("32 is not zero") },
            retry: None,
            breaker: Breaker::default(),
            idempotency: None,
            lock: None,
            on_store_down: OnStoreDown::default(),
        }
    }
}

/// What depends on the broker or on another key when it is not given.
impl Subscription {
    /// Where the key is: `key`, or on Kafka the record's key.
    pub(crate) fn key_source(&self, kind: BrokerKind) -> Option<KeySource> {
        self.key.clone().or_else(|| (kind == BrokerKind::Kafka).then_some(KeySource::RoutingKey))
    }

    /// Where the type is: `type`, or the broker's property, or on Kafka the header `type`.
    pub(crate) fn type_source(&self, kind: BrokerKind) -> TypeSource {
        self.message_type.clone().unwrap_or_else(|| match kind {
            BrokerKind::Kafka => TypeSource::Header("type".to_owned()),
            BrokerKind::Memory | BrokerKind::Rabbitmq => TypeSource::Property,
        })
    }

    /// What a missing id leads to: `id_missing`, or running it, or with idempotency rejecting it.
    pub(crate) fn on_id_missing(&self) -> IdMissing {
        self.id_missing.unwrap_or(match self.idempotency {
            Some(_) => IdMissing::Reject,
            None => IdMissing::Run,
        })
    }

    /// Where dead letters go: `dead`, or `{queue}.dead`, or on Kafka `{topic}.{group}.dead`.
    pub(crate) fn dead_template(&self, kind: BrokerKind) -> Template {
        self.dead.clone().unwrap_or_else(|| match kind {
            BrokerKind::Kafka => Template::new("{topic}.{group}.dead"),
            BrokerKind::Memory | BrokerKind::Rabbitmq => Template::new("{queue}.dead"),
        })
    }

    /// Where messages wait: `wait`, or `{queue}.wait.{ms}`, or on Kafka `{topic}.{group}.wait.{ms}`.
    #[cfg(any(feature = "rabbitmq", feature = "kafka"))]
    pub(crate) fn wait_template(&self, kind: BrokerKind) -> Template {
        self.wait.clone().unwrap_or_else(|| match kind {
            BrokerKind::Kafka => Template::new("{topic}.{group}.wait.{ms}"),
            BrokerKind::Memory | BrokerKind::Rabbitmq => Template::new("{queue}.wait.{ms}"),
        })
    }
}

/// A binding of the queue to an exchange (RabbitMQ).
///
/// ```
/// use redeliver::config::Config;
///
/// let config = Config::from_toml(r#"
///     [brokers.main]
///     kind = "memory"
///     [subscriptions.orders]
///     broker = "main"
///     bindings = [{ exchange = "shop", routing_key = "order.*" }]
/// "#)?;
/// assert_eq!(config.subscriptions["orders"].bindings[0].routing_key, "order.*");
/// # Ok::<(), redeliver::config::Problems>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Binding {
    /// The exchange, which must exist; must be given.
    pub exchange: String,
    /// The routing key or pattern; empty.
    pub routing_key: String,
}
