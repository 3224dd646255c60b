//! The broker under test: names of our own on it, and a client beside ours.

use std::env;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::{ClientConfig, Message as _, Offset, TopicPartitionList};
use redeliver::broker::kafka::KafkaBroker;
use redeliver::broker::{Broker, LaneId, Source, Target};
use redeliver::config::{self, Subscription, Url};
use redeliver::testing::broker_conformance::Subject;

/// How long the broker may take to answer before a test fails: long, because the machine may be busy with others.
const PATIENCE: Duration = Duration::from_secs(60);

/// The broker's address, from the environment.
pub(crate) fn url() -> String {
    env::var("KAFKA_URL").expect(
        "KAFKA_URL names the broker under test; tests/servers/kafka.sh starts one and prints it",
    )
}

/// A name that nobody else uses.
pub(crate) fn unique(name: &str) -> String {
    format!("redeliver-test.{}.{name}", uuid::Uuid::now_v7().simple())
}

pub(crate) fn admin() -> AdminClient<DefaultClientContext> {
    ClientConfig::new().set("bootstrap.servers", url()).create().expect("the url can be read")
}

/// Creates a topic and waits until it is there.
pub(crate) async fn create(topic: &str, partitions: i32) {
    let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(1));
    let created = admin().create_topics([&new], &AdminOptions::new()).await;
    created.expect("the broker answers").remove(0).expect("the topic is created");
    loop {
        let known = admin().inner().fetch_metadata(Some(topic), PATIENCE);
        let known = known.expect("the broker answers");
        let found = known.topics().iter().flat_map(|topic| topic.partitions());
        if found.filter(|partition| partition.leader() >= 0).count() == partitions as usize {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The ends of a topic's partitions for a reader of committed records, or of all.
fn ends(topic: &str, isolation: &str, count: i32) -> Vec<i64> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", url())
        .set("isolation.level", isolation)
        .create()
        .expect("the url can be read");
    let ends = (0..count).map(|number| {
        let ends = consumer.fetch_watermarks(topic, number, PATIENCE);
        ends.expect("the broker answers").1
    });
    ends.collect()
}

/// Waits for the end of transactions that are open: what was committed behind one is hidden until then, and the one of
/// a process that was killed ends when it has timed out.
fn wait_for_open_transactions(topic: &str, count: i32) {
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        let all = ends(topic, "read_uncommitted", count);
        let committed = ends(topic, "read_committed", count);
        if committed.iter().zip(all).all(|(committed, end)| *committed >= end) {
            return;
        }
        assert!(Instant::now() < deadline, "{topic}: a transaction stays open");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// What a reader of committed records finds in a topic, from its beginning to its end.
pub(crate) fn committed(topic: &str) -> Vec<String> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", url())
        .set("group.id", unique("reader"))
        .set("isolation.level", "read_committed")
        .set("enable.partition.eof", "true")
        .set("enable.auto.commit", "false")
        .create()
        .expect("the url can be read");
    let known = consumer.fetch_metadata(Some(topic), PATIENCE);
    let known = known.expect("the broker answers");
    let count = known.topics()[0].partitions().len();
    wait_for_open_transactions(topic, count as i32);
    let mut list = TopicPartitionList::new();
    list.add_partition_range(topic, 0, count as i32 - 1);
    list.set_all_offsets(Offset::Beginning).expect("an offset");
    consumer.assign(&list).expect("it is there");
    let (mut found, mut ended) = (Vec::new(), std::collections::BTreeSet::new());
    while ended.len() < count {
        match consumer.poll(PATIENCE).expect("the broker answers") {
            Ok(record) => {
                let payload = record.payload().unwrap_or_default();
                found.push(String::from_utf8_lossy(payload).into_owned());
            }
            Err(KafkaError::PartitionEOF(partition)) => {
                ended.insert(partition);
            }
            Err(error) => panic!("{error}"),
        }
    }
    found
}

/// Changes a setting of a topic.
pub(crate) async fn alter(topic: &str, setting: &str, value: &str) {
    let change = AlterConfig::new(ResourceSpecifier::Topic(topic)).set(setting, value);
    let altered = admin().alter_configs([&change], &AdminOptions::new()).await;
    altered.expect("the broker answers").remove(0).expect("the setting is taken");
}

/// A broker of ours.
pub(crate) struct Lab {
    pub(crate) broker: KafkaBroker,
}

impl Lab {
    pub(crate) async fn connect() -> Self {
        let settings = config::Broker {
            kind: config::BrokerKind::Kafka,
            url: Some(Url::new(url())),
            ..config::Broker::default()
        };
        let broker = KafkaBroker::new("main", &settings, "tests").expect("the url can be read");
        broker.connect().await.expect("the broker can be reached");
        Self { broker }
    }
}

impl Subject for Lab {
    fn broker(&self) -> &dyn Broker {
        &self.broker
    }

    fn source(&self, waits: &[Duration]) -> Arc<Source> {
        let topic = unique("orders");
        let created = topic.clone();
        // A thread and a runtime of its own: this is called from within one.
        let creating = std::thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().expect("a runtime");
            runtime.block_on(create(&created, 1));
        });
        creating.join().expect("the topic is created");
        let settings = Subscription {
            broker: "main".to_owned(),
            group: Some("billing".to_owned() + &topic),
            topics: vec![topic],
            commit_interval: Duration::from_millis(200),
            ..Subscription::default()
        };
        Arc::new(Source {
            name: "orders".into(),
            settings: settings.into(),
            waits: waits.to_vec(),
            service: "tests".into(),
        })
    }

    fn target(&self, source: &Source) -> Target {
        Target::Topic(source.settings.topics[0].clone())
    }

    fn nowhere(&self) -> Target {
        Target::Topic(unique("nowhere"))
    }

    fn is_main(&self, lane: &LaneId) -> bool {
        lane.0.ends_with(".orders/0")
    }

    fn has_lanes_for_copies(&self) -> bool {
        true
    }
}
