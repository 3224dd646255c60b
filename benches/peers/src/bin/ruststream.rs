//! RustStream 0.7 on `ruststream-lapin`. Styles: `workers-1`, `workers-16`, `workers-64` (how many
//! handlers run at once; 1 is its default) and `batch-64` (a handler of batches).

#[path = "../../../src/shared/mod.rs"]
mod shared;

use std::error::Error;
use std::hint::black_box;
use std::num::NonZero;
use std::sync::OnceLock;

use ruststream_lapin::prelude::*;

use shared::gauge::Gauge;
use shared::order::Order;
use shared::task::Task;

static GAUGE: OnceLock<Gauge> = OnceLock::new();

fn count(order: &Order) {
    black_box(order);
    GAUGE.get().expect("set before anything is consumed").handled();
}

#[subscriber(RabbitQueue::new("orders"))]
async fn one(order: &Order) -> HandlerOutcome {
    count(order);
    HandlerOutcome::ack()
}

#[subscriber(RabbitQueue::new("orders"), workers(16))]
async fn sixteen(order: &Order) -> HandlerOutcome {
    count(order);
    HandlerOutcome::ack()
}

#[subscriber(RabbitQueue::new("orders"), workers(64))]
async fn sixtyfour(order: &Order) -> HandlerOutcome {
    count(order);
    HandlerOutcome::ack()
}

#[subscriber(RabbitQueue::new("orders"))]
async fn batch(orders: &[Order]) -> HandlerOutcome {
    orders.iter().for_each(count);
    HandlerOutcome::ack()
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let task = Task::from_arguments()?;
    let gauge = GAUGE.get_or_init(|| Gauge::new(task.messages));
    let prefetch = NonZero::new(task.prefetch).ok_or("the prefetch is 0")?;
    let broker = LapinBroker::new(task.url.clone()).prefetch(prefetch);
    let app = RustStream::new(AppInfo::new("bench", "0.0.0")).with_broker(broker, |b| {
        for queue in task.names() {
            let source = RabbitQueue::new(queue);
            match task.style.as_str() {
                "workers-1" => drop(b.include(one.map_source(|_| source))),
                "workers-16" => drop(b.include(sixteen.map_source(|_| source))),
                "workers-64" => drop(b.include(sixtyfour.map_source(|_| source))),
                _ => drop(b.include(batch.map_source(|_| source).batch(nonzero!(64)))),
            }
        }
    });
    let running = app.start().await?;
    gauge.wait().await;
    gauge.report();
    running.shutdown().await?;
    Ok(())
}
