//! Raw rdkafka: the least code that stores an offset after handling, with the settings of ours.
//!
//! | style | |
//! |---|---|
//! | `stream` | a `StreamConsumer`, message by message, on two threads |
//! | `stream-1` | the same on one thread |
//! | `base` | `BaseConsumer::poll` on a thread of its own |

use std::error::Error;
use std::hint::black_box;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, StreamConsumer};
use rdkafka::message::{BorrowedMessage, Message};
use redeliver_benches::shared::gauge::Gauge;
use redeliver_benches::shared::order::Order;
use redeliver_benches::shared::task::Task;

/// What ours tells librdkafka, as `framework/broker/kafka/properties.rs` has it.
const SETTINGS: [(&str, &str); 11] = [
    ("socket.keepalive.enable", "true"),
    ("reconnect.backoff.max.ms", "5000"),
    ("topic.metadata.refresh.interval.ms", "60000"),
    ("auto.offset.reset", "earliest"),
    ("fetch.queue.backoff.ms", "10"),
    ("fetch.wait.max.ms", "100"),
    ("queued.max.messages.kbytes", "4096"),
    ("queued.min.messages", "50000"),
    ("check.crcs", "true"),
    ("enable.auto.offset.store", "false"),
    ("partition.assignment.strategy", "cooperative-sticky"),
];

type Outcome = Result<(), Box<dyn Error>>;

fn main() -> Outcome {
    let task = Task::from_arguments()?;
    let gauge = Gauge::new(task.messages);
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", &task.url).set("group.id", &task.group);
    for (name, value) in SETTINGS {
        config.set(name, value);
    }
    let mut builder = match task.style.as_str() {
        "base" => return base(&config, &task, &gauge),
        "stream-1" => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    builder.enable_all().build()?.block_on(stream(&config, &task, &gauge))
}

fn handle(message: &BorrowedMessage<'_>, gauge: &Gauge) -> Outcome {
    let order: Order =
        serde_json::from_slice(message.payload().ok_or("a record without a value")?)?;
    black_box(order);
    gauge.handled();
    Ok(())
}

async fn stream(config: &ClientConfig, task: &Task, gauge: &Gauge) -> Outcome {
    let consumer: StreamConsumer = config.create()?;
    consumer.subscribe(&[&task.prefix])?;
    while !gauge.is_done() {
        let message = consumer.recv().await?;
        handle(&message, gauge)?;
        consumer.store_offset_from_message(&message)?;
    }
    gauge.report();
    Ok(consumer.commit_consumer_state(CommitMode::Sync)?)
}

fn base(config: &ClientConfig, task: &Task, gauge: &Gauge) -> Outcome {
    let consumer: BaseConsumer = config.create()?;
    consumer.subscribe(&[&task.prefix])?;
    while !gauge.is_done() {
        let Some(message) = consumer.poll(Duration::from_millis(100)) else { continue };
        let message = message?;
        handle(&message, gauge)?;
        consumer.store_offset_from_message(&message)?;
    }
    gauge.report();
    Ok(consumer.commit_consumer_state(CommitMode::Sync)?)
}
