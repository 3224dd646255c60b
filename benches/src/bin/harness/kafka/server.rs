//! A Kafka server with the topics of this run: filled once each, and read by a group of its own in each run.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::env;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use redeliver_benches::shared::order;
use tokio::runtime::Runtime;

use crate::Outcome;
use crate::runs::{Ground, Setting};

/// How long the broker may take for an answer.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// How long a contender's last commit may take to be seen.
const COMMIT_MAX: Duration = Duration::from_secs(5);

pub(crate) struct Server {
    url: String,
    prefix: String,
    runtime: Runtime,
    admin: AdminClient<DefaultClientContext>,
    filled: RefCell<HashSet<String>>,
    /// How many runs there were: each is a group of its own, which has seen nothing yet.
    runs: Cell<u32>,
}

impl Server {
    pub(crate) fn connect() -> Outcome<Self> {
        let url = env::var("KAFKA_URL").map_err(|_| "KAFKA_URL names no server")?;
        let admin = ClientConfig::new().set("bootstrap.servers", &url).create()?;
        let prefix = format!("redeliver-bench-{}", std::process::id());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (filled, runs) = (RefCell::default(), Cell::new(0));
        Ok(Self { url, prefix, runtime, admin, filled, runs })
    }

    fn is_filled(&self, topic: &str) -> bool {
        !self.filled.borrow_mut().insert(topic.to_owned())
    }

    fn create(&self, topic: &str, partitions: usize) -> Outcome {
        let topic = NewTopic::new(topic, partitions as i32, TopicReplication::Fixed(1));
        let created = self.admin.create_topics([&topic], &AdminOptions::new());
        self.runtime
            .block_on(created)?
            .remove(0)
            .map_err(|(topic, code)| format!("topic `{topic}` could not be created: {code}"))?;
        Ok(())
    }

    /// Writes all messages, those of one key to one partition.
    fn produce(&self, topic: &str, setting: &Setting) -> Outcome {
        let producer: BaseProducer = ClientConfig::new()
            .set("bootstrap.servers", &self.url)
            .set("linger.ms", "20")
            .set("batch.size", "1000000")
            .set("acks", "all")
            .create()?;
        for number in 0..setting.messages {
            let (body, key) = (order::body(number), order::key(number));
            let partition = order::partition(number, setting.queues as u64);
            let mut record = BaseRecord::to(topic).partition(partition).key(&key).payload(&body);
            while let Err((error, again)) = producer.send(record) {
                if error != KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull) {
                    return Err(error.into());
                }
                producer.poll(Duration::from_millis(5));
                record = again;
            }
        }
        Ok(producer.flush(ANSWER_MAX * 4)?)
    }

    /// What the group has not committed yet.
    fn lag(&self, consumer: &BaseConsumer, setting: &Setting) -> Outcome<u64> {
        let topic = self.prefix(setting);
        let mut asked = TopicPartitionList::new();
        for partition in 0..setting.queues as i32 {
            asked.add_partition(&topic, partition);
        }
        let committed = consumer.committed_offsets(asked, ANSWER_MAX)?;
        let mut lag = 0;
        for partition in committed.elements() {
            let (_, end) = consumer.fetch_watermarks(&topic, partition.partition(), ANSWER_MAX)?;
            let done = match partition.offset() {
                Offset::Offset(offset) => offset,
                _ => 0,
            };
            lag += u64::try_from(end - done).unwrap_or_default();
        }
        Ok(lag)
    }

    pub(crate) fn delete(&self, setting: &Setting) -> Outcome {
        let topic = self.prefix(setting);
        self.filled.borrow_mut().remove(&topic);
        let deleted = self.admin.delete_topics(&[&topic], &AdminOptions::new());
        self.runtime.block_on(deleted)?;
        Ok(())
    }
}

impl Ground for Server {
    fn url(&self) -> &str {
        &self.url
    }

    /// A topic for each number of partitions and messages.
    fn prefix(&self, setting: &Setting) -> String {
        format!("{}-{}-{}", self.prefix, setting.queues, setting.messages)
    }

    fn group(&self) -> String {
        format!("{}-{}", self.prefix, self.runs.get())
    }

    fn fill(&self, setting: &Setting) -> Outcome {
        self.runs.set(self.runs.get() + 1);
        let topic = self.prefix(setting);
        if !self.is_filled(&topic) {
            self.create(&topic, setting.queues)?;
            self.produce(&topic, setting)?;
        }
        Ok(())
    }

    fn left(&self, setting: &Setting) -> Outcome<u64> {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &self.url)
            .set("group.id", self.group())
            .create()?;
        let end = Instant::now() + COMMIT_MAX;
        loop {
            let lag = self.lag(&consumer, setting)?;
            if lag == 0 || Instant::now() > end {
                return Ok(lag);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Nothing: the next run is another group.
    fn clear(&self, _: &Setting) -> Outcome {
        Ok(())
    }
}
