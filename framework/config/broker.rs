//! The tables `[brokers.NAME]`: connections to brokers.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use serde::Deserialize;

use super::{Properties, Secret, Url, units};

/// One connection to a broker.
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
