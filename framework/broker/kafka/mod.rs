//! Apache Kafka through rdkafka.
//!
//! ```text
//! KafkaLanes ── one for each group ──> a thread of its own: polls, commits, opens lanes      group.rs
//!   commit.rs: one commit at a time, and none holds another up
//!   source: the subscription's topics      rebalance.rs: what is dealt anew, drained and committed first
//!   waits:  TOPIC.GROUP.wait.MS, .redrive  partition.rs: one assignment of one partition
//!   suspects: one partition                lane.rs: drains librdkafka's queue of it, on its consumer's thread
//!                                          reader.rs: batches of records, and the thread that reads them ahead
//!   outbox.rs, transaction.rs: where offsets and what handlers publish are one transaction
//! KafkaPublisher ── one producer: acks=all, idempotent                                       publisher.rs
//! ```
//!
//! Knows no policy. `offsets.rs` (what is finished) and `marks.rs` (what is written beside a committed offset) are
//! pure; everything that promises something about offsets is there.

mod commit;
mod connection;
mod dead_letters;
mod depth;
mod envelope;
mod fault;
mod group;
mod inspect;
mod lane;
mod lanes;
mod limits;
mod marks;
mod offsets;
mod outbox;
mod partition;
mod prepare;
mod properties;
mod publisher;
mod reader;
mod rebalance;
mod topology;
mod transaction;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use async_trait::async_trait;

use self::connection::Cluster;
use self::inspect::Durability;
use self::lanes::KafkaLanes;
use self::properties::Clients;
use self::publisher::KafkaPublisher;
use self::topology::Names;
use super::turn::{Turn, Turns, turn};
use super::{Broker, BrokerError, BrokerState, DeadLetterReader, Depth, Lanes, Publisher, Source};
use crate::config::{self, DeliveryGuarantee::Transactional};

/// A Kafka cluster.
///
/// ```
/// use std::{sync::Arc, time::Duration};
/// use redeliver::broker::{Broker, Source, kafka::KafkaBroker};
/// use redeliver::config::Config;
///
/// let config = Config::from_toml(r#"
///     [brokers.events]
///     kind = "kafka"
///     url = "127.0.0.1:9092"
///     [subscriptions.orders]
///     broker = "events"
///     topics = ["orders"]
///     group = "billing"
/// "#)?;
/// let broker = KafkaBroker::new("events", &config.brokers["events"], "shop")?;
/// let settings = Arc::new(config.subscriptions["orders"].clone());
/// let waits = vec![Duration::from_secs(5)];
/// let source = Source { name: "orders".into(), settings, waits, service: "shop".into() };
///
/// // What would be created, without a connection.
/// let lines = broker.topology(&source);
/// assert!(lines.iter().any(|line| line.contains("orders.billing.wait.5000")), "{lines:?}");
/// assert!(lines.iter().any(|line| line.contains("orders.billing.dead")), "{lines:?}");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct KafkaBroker {
    cluster: Cluster,
    durability: Durability,
    publisher: Arc<KafkaPublisher>,
    generations: Arc<AtomicU64>,
    depths: depth::Depths,
    /// Who reads the dead letters of which group.
    turns: Turns,
}

impl KafkaBroker {
    /// Reads the table `[brokers.name]` for the service `service`; connects to nothing yet.
    ///
    /// ```
    /// use redeliver::broker::{Fault, kafka::KafkaBroker};
    /// use redeliver::config::{Broker, BrokerKind, Url};
    ///
    /// let mut settings = Broker { kind: BrokerKind::Kafka, url: Some(Url::new("127.0.0.1:9092")), ..Broker::default() };
    /// settings.properties.set("enable.auto.commit", "true");
    /// let error = KafkaBroker::new("events", &settings, "shop").err().expect("it would lose messages");
    /// assert_eq!(error.fault, Fault::Refused);
    /// assert!(error.text.starts_with("brokers.events.properties.\"enable.auto.commit\" "), "{error}");
    /// ```
    ///
    /// # Errors
    /// No url, or a property that would lose messages; every one of them.
    pub fn new(name: &str, settings: &config::Broker, service: &str) -> Result<Self, BrokerError> {
        let clients = Clients::read(name, settings, service)?;
        let url = settings.url.as_ref().map(|url| url.expose().to_owned()).unwrap_or_default();
        let cluster = Cluster::new(clients, &url);
        let count = |told: Option<std::num::NonZeroUsize>| {
            told.map(|told| u32::try_from(told.get()).unwrap_or(u32::MAX))
        };
        Ok(Self {
            durability: Durability {
                replication_min: count(settings.replication_min),
                in_sync_min: count(settings.in_sync_min),
                is_loopback: url.split(',').all(is_loopback),
            },
            publisher: Arc::new(KafkaPublisher::new(cluster.clone())),
            generations: Arc::default(),
            depths: depth::Depths::default(),
            turns: Turns::default(),
            cluster,
        })
    }
}

impl KafkaBroker {
    async fn read_dead_letters(
        &self,
        source: Arc<Source>,
        turn: Option<Turn>,
    ) -> Result<Box<dyn DeadLetterReader>, BrokerError> {
        let member = lanes::onlooker(&self.cluster, source);
        let attempt = format!("looking for the dead letters of group `{}`", member.group);
        self.publisher.check_open(&attempt)?;
        let known = self.cluster.topics(&attempt).await?;
        let sources = member.names.sources(&known);
        let topics = sources.iter().map(|topic| member.names.dead(topic)).collect();
        Ok(Box::new(dead_letters::open(&self.cluster, member, topics, turn).await?))
    }
}

/// Whether a server of the url is on this machine.
fn is_loopback(server: &str) -> bool {
    let host = server.trim().rsplit_once(':').map_or(server, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let is_address = |host: &str| host.parse::<std::net::IpAddr>().is_ok_and(|it| it.is_loopback());
    host == "localhost" || is_address(host)
}

#[async_trait]
impl Broker for KafkaBroker {
    fn kind(&self) -> &'static str {
        "kafka"
    }

    async fn connect(&self) -> Result<(), BrokerError> {
        self.publisher.make_client()?;
        self.cluster.connect().await
    }

    async fn prepare(&self, source: &Source) -> Result<Vec<String>, BrokerError> {
        prepare::prepare(&self.cluster, source, self.durability).await
    }

    fn topology(&self, source: &Source) -> Vec<String> {
        prepare::lines(source)
    }

    fn lanes(&self, source: Arc<Source>) -> Box<dyn Lanes> {
        let generations = Arc::clone(&self.generations);
        Box::new(KafkaLanes::new(self.cluster.clone(), source, generations))
    }

    fn publisher(&self) -> Arc<dyn Publisher> {
        self.publisher.clone()
    }

    async fn dead_letters(
        &self,
        source: Arc<Source>,
    ) -> Result<Box<dyn DeadLetterReader>, BrokerError> {
        let group = Names::of(&source.settings).dead_group();
        let turn = turn(self.turns.of(&group), &group).await?;
        self.read_dead_letters(source, Some(turn)).await
    }

    async fn depth(&self, source: &Source) -> Result<Depth, BrokerError> {
        self.publisher
            .check_open(&format!("counting what is in subscription `{}`", source.name))?;
        let turn = self.turns.of(&Names::of(&source.settings).dead_group()).try_lock_owned().ok();
        let mut depth = self.depths.of(&self.cluster, source, turn).await?;
        let is_transactional = source.settings.delivery_guarantee == Transactional;
        if is_transactional && depth.dead > Some(0) {
            // Every transaction left a marker beside its dead letters. Whoever counts removes nothing and needs no turn.
            let mut dead = self.read_dead_letters(Arc::new(source.clone()), None).await?;
            let counted = depth::count(dead.as_mut()).await;
            dead.close().await?;
            depth.dead = Some(counted?);
        }
        Ok(depth)
    }

    fn state(&self) -> BrokerState {
        self.cluster.watch.state()
    }

    async fn close(&self) {
        self.publisher.close().await;
    }
}
