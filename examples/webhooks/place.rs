//! Where the deliveries lie: a queue in memory or on RabbitMQ, or a topic of Kafka's.
//!
//! All that differs between brokers is here; the rest of this program knows none of them.

use std::fmt;
use std::path::PathBuf;

use redeliver::Message;
use redeliver::config::{Broker, BrokerKind, Config, Subscription, Url};

use crate::Error;
use crate::options::{Part, SUBSCRIPTION};

/// How soon a group on Kafka gives a killed member's partitions to the next; the least that its
/// servers allow unless they are told otherwise.
const SESSION: (&str, &str) = ("session.timeout.ms", "6000");

/// What the command line says about it; the rest stands in the configuration.
pub(crate) struct Asked {
    pub(crate) kind: Option<BrokerKind>,
    pub(crate) url: Option<String>,
    pub(crate) name: Option<String>,
    /// The file in which the rest stands.
    pub(crate) config: Option<PathBuf>,
}

/// A queue or a topic.
pub(crate) struct Place {
    /// The broker's name in the configuration.
    pub(crate) broker: String,
    pub(crate) kind: BrokerKind,
    name: String,
    url: Option<Url>,
}

impl Place {
    /// Puts what was asked for into the configuration, and refuses what cannot be.
    pub(crate) fn choose(asked: Asked, part: Part, config: &mut Config) -> Result<Self, Error> {
        let known = config.subscriptions.get_mut(SUBSCRIPTION);
        let subscription = known.ok_or("the configuration has no [subscriptions.webhooks]")?;
        let name = subscription.broker.clone();
        let broker = config.brokers.entry(name.clone()).or_default();
        refuse(&asked, &name, broker, part)?;
        broker.kind = asked.kind.unwrap_or(broker.kind);
        if let Some(url) = asked.url {
            broker.url = Some(Url::new(url));
        }
        let at = match broker.kind {
            BrokerKind::Memory | BrokerKind::Rabbitmq => queue(subscription, asked.name),
            BrokerKind::Kafka => topic(subscription, asked.name)?,
        };
        let default = match broker.kind {
            BrokerKind::Memory => None,
            BrokerKind::Rabbitmq => Some("amqp://127.0.0.1:5672/%2f"),
            BrokerKind::Kafka => Some("127.0.0.1:9092"),
        };
        broker.url = broker.url.take().or(default.map(Url::new));
        if broker.kind == BrokerKind::Kafka && broker.properties.expose(SESSION.0).is_none() {
            broker.properties.set(SESSION.0, SESSION.1);
        }
        Ok(Self { broker: name, kind: broker.kind, name: at, url: broker.url.clone() })
    }

    /// The message, addressed to it.
    pub(crate) fn address(&self, message: Message) -> Message {
        match self.kind {
            BrokerKind::Memory | BrokerKind::Rabbitmq => message.to_queue(&self.name),
            BrokerKind::Kafka => message.to_topic(&self.name),
        }
    }

    /// Makes it where the service does not: a topic is its owner's, and not the consumers'.
    pub(crate) async fn create(&self, config: &Config) -> Result<(), Error> {
        match self.kind {
            BrokerKind::Memory | BrokerKind::Rabbitmq => Ok(()),
            #[cfg(feature = "kafka")]
            BrokerKind::Kafka => {
                crate::topic::create(&self.name, &config.brokers[&self.broker]).await
            }
            #[cfg(not(feature = "kafka"))]
            BrokerKind::Kafka => {
                let _ = config;
                Err("built without Kafka; add --features kafka".into())
            }
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.url, self.kind) {
            (Some(url), BrokerKind::Kafka) => write!(f, "topic {} at {url}", self.name),
            (Some(url), _) => write!(f, "queue {} at {url}", self.name),
            (None, _) => write!(f, "queue {} in memory", self.name),
        }
    }
}

/// What contradicts what, by the names under which it was said.
fn refuse(asked: &Asked, name: &str, broker: &Broker, part: Part) -> Result<(), Error> {
    if asked.kind.unwrap_or(broker.kind) != BrokerKind::Memory {
        return Ok(());
    }
    if asked.url.is_some() {
        return Err("--url names a server, and the memory broker has none; add --broker rabbitmq or kafka, or take --url away".into());
    }
    if let (Some(url), Some(file)) = (&broker.url, &asked.config) {
        let file = file.display();
        return Err(format!(
            "--broker memory contradicts {file}, whose [brokers.{name}] is at {url}; take --broker away, or the url out of that file"
        )
        .into());
    }
    if part != Part::Run {
        return Err(
            "the memory broker ends with its process, so that half of the job has no other \
                    half; use `run`, or --broker rabbitmq or kafka"
                .into(),
        );
    }
    Ok(())
}

fn queue(subscription: &mut Subscription, asked: Option<String>) -> String {
    let queue = asked.or_else(|| subscription.queue.take());
    let queue = queue.unwrap_or_else(|| SUBSCRIPTION.to_owned());
    subscription.queue = Some(queue.clone());
    queue
}

/// A group of its own, unless the configuration says one: jobs with other names are not disturbed.
fn topic(subscription: &mut Subscription, asked: Option<String>) -> Result<String, Error> {
    if let Some(pattern) = &subscription.pattern {
        return Err(format!(
            "the job publishes to one topic, and pattern = \"{pattern}\" may name many; put topics = [\"...\"] in its place"
        )
        .into());
    }
    let known = subscription.topics.first().cloned().or(subscription.queue.take());
    let topic = asked.or(known).unwrap_or_else(|| SUBSCRIPTION.to_owned());
    subscription.topics = vec![topic.clone()];
    subscription.group.get_or_insert_with(|| topic.clone());
    Ok(topic)
}
