//! The tables `[brokers.NAME]`: connections to brokers.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use serde::Deserialize;

use super::{Properties, Secret, Url, table, units};

/// One connection to a broker.
///
/// ```
/// use redeliver::config::Config;
///
/// let config = Config::from_toml(r#"
///     [brokers.main]
///     kind = "rabbitmq"
///     url = "amqps://orders@rabbit:5671/%2f"
///     password = "hunter2"      # or password_file
///     tls = { ca = "/etc/ssl/ours.pem" }
/// "#)?;
/// let url = config.brokers["main"].url.as_ref().expect("it was given");
/// assert_eq!(url.expose(), "amqps://orders:hunter2@rabbit:5671/%2f");
/// assert_eq!(url.to_string(), "amqps://rabbit:5671/%2f");
/// # Ok::<(), redeliver::config::Problems>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Broker {
    /// Which kind of broker it is; a file must say so.
    pub kind: BrokerKind,
    /// `amqp://user@host:port/vhost` or `amqps://...` for RabbitMQ, `host:port,host:port` for Kafka.
    pub url: Option<Url>,
    /// A file whose text is the url; read once, when the configuration is loaded, into `url`.
    pub url_file: Option<PathBuf>,
    /// The password of the url's user (RabbitMQ); loading puts it into `url`.
    pub password: Option<Secret>,
    /// A file whose text is the password; loading puts it into `url`.
    pub password_file: Option<PathBuf>,
    /// Certificates; without it the system's roots serve `amqps` and `ssl`.
    #[serde(deserialize_with = "table::option")]
    pub tls: Option<Tls>,
    /// How many replicas the topics must have (Kafka); 2, and on a loopback address a warning if there are fewer.
    #[serde(deserialize_with = "units::count_option")]
    pub replication_min: Option<NonZeroUsize>,
    /// What `min.insync.replicas` of the topics must be (Kafka); 2, and on a loopback address a warning.
    #[serde(deserialize_with = "units::count_option")]
    pub in_sync_min: Option<NonZeroUsize>,
    /// librdkafka's own settings (Kafka). A name that ends in `_file` is the file that holds the value.
    pub properties: Properties,
}

/// The brokers that can be consumed from.
///
/// ```
/// use redeliver::config::{BrokerKind, Config};
///
/// let config = Config::from_toml(r#"
///     [brokers.events]
///     kind = "kafka"
///     url = "kafka-1:9092,kafka-2:9092"
/// "#)?;
/// assert_eq!(config.brokers["events"].kind, BrokerKind::Kafka);
/// # Ok::<(), redeliver::config::Problems>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BrokerKind {
    /// In this process, without a server: for tests and first steps.
    #[default]
    Memory,
    /// RabbitMQ, 3.10 or later.
    Rabbitmq,
    /// Apache Kafka and what speaks its protocol.
    Kafka,
}

/// How a connection is encrypted. All files are PEM.
///
/// ```
/// use redeliver::config::Config;
///
/// let half = Config::from_toml(r#"
///     [stores.main]
///     kind = "redis"
///     url = "rediss://redis:6379"
///     tls = { cert = "/etc/ssl/orders.pem" }
/// "#);
/// let problems = half.expect_err("a certificate serves nobody without its key");
/// assert_eq!(problems.list()[0].path(), "stores.main.tls.cert");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tls {
    /// The authorities to trust instead of the system's.
    pub ca: Option<PathBuf>,
    /// Our certificate, with `key`, where the server asks for one.
    pub cert: Option<PathBuf>,
    /// The private key of `cert`.
    pub key: Option<PathBuf>,
    /// Accepts any certificate of the server, so that anyone in between can read and change everything; false.
    pub insecure: bool,
}
