//! One test's corner of a broker: a source of its own there, and services on it.

use std::collections::BTreeSet;
use std::env;
use std::ops::Range;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use redeliver::config::Config;
use redeliver::{DeadLetter, IntoHandlers, Message, Service};
use tokio::time::{Instant, sleep};

use crate::common;
use crate::common::rabbitmq::{delete_queues, unique, url};

/// How long anything may take before a test fails: long, because the machine may be busy with others.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
/// How long nothing may be anywhere before it counts as worked off.
const QUIET: Duration = Duration::from_millis(600);

/// `few` of something, or all of it where the large counts were asked for.
pub(crate) fn sample(few: u32, all: u32) -> u32 {
    if env::var("REDELIVER_TEST_FULL").is_ok_and(|full| full == "1") { all } else { few }
}

/// Which broker a promise is tried on.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Kind {
    Memory,
    Rabbitmq,
    Kafka,
}

impl Kind {
    pub(crate) fn memory() -> Self {
        Self::Memory
    }

    pub(crate) fn rabbitmq() -> Self {
        Self::Rabbitmq
    }

    pub(crate) fn kafka() -> Self {
        Self::Kafka
    }
}

/// A source, and everything around it.
pub(crate) struct Ground {
    pub(crate) kind: Kind,
    name: String,
    /// RabbitMQ's queues, deleted in the end.
    queues: Mutex<BTreeSet<String>>,
}

impl Ground {
    pub(crate) async fn new(kind: Kind) -> Self {
        Self::with_lanes(kind, 3).await
    }

    /// With so many partitions, where there are such.
    pub(crate) async fn with_lanes(kind: Kind, lanes: i32) -> Self {
        let name = unique("orders");
        if kind == Kind::Kafka {
            create_topic(&name, lanes).await;
        }
        Self { kind, name, queues: Mutex::default() }
    }

    /// The configuration of a service with the subscription `orders`: `keys` are more of its keys, `retry` those of its
    /// policy. Its breaker stays closed, because most tests let everything fail, unless `keys` say otherwise.
    pub(crate) fn toml(&self, keys: &str, retry: &str) -> String {
        let name = &self.name;
        let (broker, source) = match self.kind {
            Kind::Memory => ("kind = \"memory\"".to_owned(), format!("queue = \"{name}\"")),
            Kind::Rabbitmq => {
                (format!("kind = \"rabbitmq\"\nurl = \"{}\"", url()), format!("queue = \"{name}\""))
            }
            Kind::Kafka => (
                format!(
                    "kind = \"kafka\"\nurl = \"{}\"\n[brokers.main.properties]\n\
                     \"session.timeout.ms\" = 6000\n\"heartbeat.interval.ms\" = 500",
                    kafka()
                ),
                format!("topics = [\"{name}\"]\ngroup = \"{name}\"\ncommit_interval = \"100ms\""),
            ),
        };
        let breaker =
            if keys.contains("breaker") { "" } else { "breaker = { attempts_min = 1000000 }" };
        format!(
            "[service]\nshutdown_grace = \"20s\"\n[brokers.main]\n{broker}\n[stores.main]\n\
             kind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"\n{source}\n{breaker}\n\
             {keys}\n[retry.standard]\n{retry}"
        )
    }

    /// Starts a service in this process.
    pub(crate) async fn start<M>(&self, toml: &str, handlers: impl IntoHandlers<M>) -> Service {
        let config = Config::from_toml(toml).unwrap_or_else(|problems| panic!("{problems}"));
        let builder = Service::builder(config).subscribe("orders", handlers).signals(false);
        let service = builder.start().await.unwrap_or_else(|error| panic!("it starts: {error}"));
        self.note(&service.topology("orders").expect("it has this subscription"));
        service
    }

    /// Starts a service that declares everything, publishes and asks, but consumes nothing.
    pub(crate) async fn onlook(&self, toml: &str) -> Service {
        let config = Config::from_toml(toml).unwrap_or_else(|problems| panic!("{problems}"));
        let service = Service::builder(config).without_handler("orders").signals(false);
        let service = service.start().await.unwrap_or_else(|error| panic!("it starts: {error}"));
        self.note(&service.topology("orders").expect("it has this subscription"));
        service
    }

    /// Notes the queues that these lines of a topology name.
    pub(crate) fn note(&self, topology: &[String]) {
        let names = topology.iter().filter_map(|line| {
            line.strip_prefix("queue `")?.split_once('`').map(|(name, _)| name.to_owned())
        });
        self.queues.lock().expect("no test panics in here").extend(names);
    }

    /// The message, addressed to the source.
    pub(crate) fn address(&self, message: Message) -> Message {
        match self.kind {
            Kind::Memory | Kind::Rabbitmq => message.to_queue(&self.name),
            Kind::Kafka => message.to_topic(&self.name),
        }
    }

    /// Publishes this message, confirmed.
    pub(crate) async fn send(&self, service: &Service, message: Message) {
        let publisher = service.publisher("main").expect("it is configured");
        publisher.send(self.address(message)).await.expect("it is confirmed");
    }

    /// Publishes these words, each with an id and a key of its own that begin with it.
    pub(crate) async fn send_words(&self, service: &Service, words: &[&str]) {
        for word in words {
            self.send(service, text(word, word)).await;
        }
    }

    /// Publishes these numbers as `ok`, each with itself as its id.
    pub(crate) async fn send_numbers(&self, service: &Service, numbers: Range<u32>) {
        let publisher = service.publisher("main").expect("it is configured");
        let sends = numbers.map(|number| {
            let message = self.address(text(&number.to_string(), "ok"));
            publisher.send(message)
        });
        for sent in futures_util::future::join_all(sends).await {
            sent.expect("it is confirmed");
        }
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        let queues = std::mem::take(self.queues.get_mut().expect("no test panics in here"));
        match self.kind {
            Kind::Memory => {}
            Kind::Rabbitmq => delete_queues(&url(), queues.into_iter().collect()),
            Kind::Kafka => delete_topics(self.name.clone()),
        }
    }
}

/// A message with `text` as its JSON, and its id as its key.
pub(crate) fn text(id: &str, text: &str) -> Message {
    Message::json(&text).expect("text is JSON").id(id).key(id.to_owned())
}

fn kafka() -> String {
    env::var("KAFKA_URL").expect(
        "KAFKA_URL names the broker under test; tests/servers/kafka.sh starts one and prints it",
    )
}

async fn create_topic(name: &str, partitions: i32) {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", kafka());
    let admin: AdminClient<DefaultClientContext> = config.create().expect("the url can be read");
    let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
    let created = admin.create_topics([&topic], &AdminOptions::new()).await;
    created.expect("the broker answers").remove(0).expect("the topic is created");
    until("the topic can be used", async || {
        let known = admin.inner().fetch_metadata(Some(name), Duration::from_secs(10));
        let known = known.expect("the broker answers");
        let found = known.topics().iter().flat_map(|topic| topic.partitions());
        found.filter(|partition| partition.leader() >= 0).count() == partitions as usize
    })
    .await;
}

/// Deletes a topic and those that a service made beside it, whatever state the caller is in.
fn delete_topics(name: String) {
    let deleted = thread::spawn(move || {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", kafka());
        let admin: AdminClient<DefaultClientContext> = config.create().ok()?;
        let known = admin.inner().fetch_metadata(None, Duration::from_secs(10)).ok()?;
        let ours = known.topics().iter().map(|it| it.name()).filter(|it| it.starts_with(&name));
        let ours: Vec<_> = ours.collect();
        let runtime = tokio::runtime::Runtime::new().ok()?;
        runtime.block_on(admin.delete_topics(&ours, &AdminOptions::new())).ok()
    });
    let _ = deleted.join();
}

/// Asks until the answer is yes.
pub(crate) async fn until(what: &str, mut ask: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !ask().await {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        sleep(Duration::from_millis(25)).await;
    }
}

/// Nothing is ready, held or waiting any more, for a while: what RabbitMQ moves out of a wait is counted nowhere until it
/// has arrived.
pub(crate) async fn drained(service: &Service) {
    let deadline = Instant::now() + PATIENCE;
    let mut quiet_since = None;
    while quiet_since.is_none_or(|since: Instant| since.elapsed() <= QUIET) {
        let depth = service.depth("orders").await;
        let is_quiet = depth.as_ref().is_ok_and(|depth| {
            (depth.ready, depth.unsettled, depth.waiting) == (Some(0), Some(0), Some(0))
        });
        quiet_since = is_quiet.then(|| quiet_since.unwrap_or_else(Instant::now));
        let health = service.health();
        assert!(Instant::now() < deadline, "not worked off: {depth:?}, {health:?}");
        sleep(Duration::from_millis(25)).await;
    }
}

/// All dead letters, by id.
pub(crate) async fn dead_letters(service: &Service) -> Vec<DeadLetter> {
    let mut letters = common::dead_letters(service).await;
    letters.sort_by(|one, other| one.id.cmp(&other.id));
    letters
}
