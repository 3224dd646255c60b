//! apalis-amqp 1.0. Styles: `plain` (its default: tasks run in the worker's own task) and
//! `parallel` (each on a task of the runtime).

#[path = "../../../src/shared/mod.rs"]
mod shared;

use std::error::Error;
use std::hint::black_box;
use std::pin::Pin;
use std::sync::OnceLock;
use std::time::Duration;

use apalis::prelude::*;
use apalis_amqp::{AmqpBackend, Config};

use shared::gauge::Gauge;
use shared::order::Order;
use shared::task::Task as Run;

static GAUGE: OnceLock<Gauge> = OnceLock::new();

async fn handle(order: Order) -> Result<(), BoxDynError> {
    black_box(&order);
    GAUGE.get().expect("set before anything is consumed").handled();
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let run = Run::from_arguments()?;
    let gauge = GAUGE.get_or_init(|| Gauge::new(run.messages));
    let mut workers: Vec<Pin<Box<dyn Future<Output = ()>>>> = Vec::new();
    for queue in run.names() {
        let config =
            Config::default().queue(queue.as_str()).prefetch_count(run.prefetch).quorum(true);
        let mut backend = AmqpBackend::<Order>::new_from_addr(&run.url)?.with_config(config);
        // As released, its worker asks for a message before there is a consumer, and panics; so
        // what it does at its start is done here: a channel, a consumer, ready.
        let context = WorkerContext::new(&queue);
        for _ in 0..3 {
            std::future::poll_fn(|cx| Backend::poll_ready(&mut backend, cx, &context)).await?;
        }
        let worker = WorkerBuilder::new(queue).backend(backend);
        if run.style == "parallel" {
            let worker = worker.parallelize(tokio::spawn).build(handle);
            workers.push(Box::pin(async move { worker.run().await.expect("the worker runs") }));
        } else {
            let worker = worker.build(handle);
            workers.push(Box::pin(async move { worker.run().await.expect("the worker runs") }));
        }
    }
    let mut all = std::pin::pin!(futures_util::future::join_all(workers));
    tokio::select! {
        _ = &mut all => {}
        () = gauge.wait() => {}
    }
    gauge.report();
    // It has no orderly close of its channel: time for the last acknowledgements to be written.
    let _ = tokio::time::timeout(Duration::from_millis(500), all).await;
    Ok(())
}
