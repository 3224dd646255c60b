//! RustStream 0.7 on `ruststream-rdkafka`, tracked commits, with our settings of librdkafka.
//!
//! Styles: `workers-1`, `workers-16` (how many handlers run at once; 1 is its default), `batch-256` (a handler of
//! batches), `key-8`, `key-64` (so many lanes by record key), `key-8-10` (the same, each handler 10 ms).

#[path = "../../../src/shared/mod.rs"]
mod shared;

use std::error::Error;
use std::hint::black_box;
use std::sync::OnceLock;
use std::time::Duration;

use ruststream_rdkafka::prelude::*;

use shared::gauge::Gauge;
use shared::order::Order;
use shared::task::Task;

/// What ours tells librdkafka, as `framework/broker/kafka/properties.rs` has it.
const SETTINGS: [(&str, &str); 9] = [
    ("socket.keepalive.enable", "true"),
    ("reconnect.backoff.max.ms", "5000"),
    ("topic.metadata.refresh.interval.ms", "60000"),
    ("fetch.queue.backoff.ms", "10"),
    ("fetch.wait.max.ms", "100"),
    ("queued.max.messages.kbytes", "4096"),
    ("queued.min.messages", "50000"),
    ("check.crcs", "true"),
    ("partition.assignment.strategy", "cooperative-sticky"),
];

static GAUGE: OnceLock<Gauge> = OnceLock::new();

fn count(order: &Order) {
    black_box(order);
    GAUGE.get().expect("set before anything is consumed").handled();
}

#[subscriber(KafkaTopic::new("orders"))]
async fn one(order: &Order) -> HandlerOutcome {
    count(order);
    HandlerOutcome::ack()
}

#[subscriber(KafkaTopic::new("orders"), workers(16))]
async fn sixteen(order: &Order) -> HandlerOutcome {
    count(order);
    HandlerOutcome::ack()
}

#[subscriber(KafkaTopic::new("orders"), workers(8, by_key))]
async fn eight_lanes(order: &Order) -> HandlerOutcome {
    count(order);
    HandlerOutcome::ack()
}

#[subscriber(KafkaTopic::new("orders"), workers(64, by_key))]
async fn many_lanes(order: &Order) -> HandlerOutcome {
    count(order);
    HandlerOutcome::ack()
}

#[subscriber(KafkaTopic::new("orders"), workers(8, by_key))]
async fn slow_lanes(order: &Order) -> HandlerOutcome {
    tokio::time::sleep(Duration::from_millis(10)).await;
    count(order);
    HandlerOutcome::ack()
}

#[subscriber(KafkaTopic::new("orders"))]
async fn batch(orders: &[Order]) -> HandlerOutcome {
    orders.iter().for_each(count);
    HandlerOutcome::ack()
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let task = Task::from_arguments()?;
    let gauge = GAUGE.get_or_init(|| Gauge::new(task.messages));
    let mut topic = KafkaTopic::new(task.prefix.clone())
        .group(task.group.clone())
        .commit(Commit::Tracked)
        .start(StartOffset::Earliest);
    for (name, value) in SETTINGS {
        topic = topic.config(name, value);
    }
    if task.style.starts_with("key") {
        topic = topic.lane_key(LaneKey::RecordKey);
    }
    let broker = KafkaBroker::new([task.url.clone()]);
    let app = RustStream::new(AppInfo::new("bench", "0.0.0")).with_broker(broker, |b| {
        match task.style.as_str() {
            "workers-1" => drop(b.include(one.map_source(|_| topic))),
            "workers-16" => drop(b.include(sixteen.map_source(|_| topic))),
            "key-8" => drop(b.include(eight_lanes.map_source(|_| topic))),
            "key-64" => drop(b.include(many_lanes.map_source(|_| topic))),
            "key-8-10" => drop(b.include(slow_lanes.map_source(|_| topic))),
            _ => drop(b.include(batch.map_source(|_| topic).batch(nonzero!(256)))),
        }
    });
    let running = app.start().await?;
    gauge.wait().await;
    gauge.report();
    running.shutdown().await?;
    Ok(())
}
