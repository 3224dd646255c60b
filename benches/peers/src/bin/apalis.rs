//! apalis-amqp 1.0. Styles: `plain` (its default: tasks run in the worker's own task) and
//! `parallel` (each on a task of the runtime).

#[path = "../../../src/shared/mod.rs"]
mod shared;

use std::error::Error;
use std::hint::black_box;
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
    for queue in run.names() {
        let config =
            Config::default().queue(queue.as_str()).prefetch_count(run.prefetch).quorum(true);
        let backend = AmqpBackend::<Order>::new_from_addr(&run.url)?.with_config(config);
        let worker = WorkerBuilder::new(queue).backend(backend);
        match run.style.as_str() {
            "parallel" => {
                let worker = worker.parallelize(tokio::spawn).build(handle);
                tokio::spawn(async move { worker.run().await.map_err(|error| error.to_string()) });
            }
            _ => {
                let worker = worker.build(handle);
                tokio::spawn(async move { worker.run().await.map_err(|error| error.to_string()) });
            }
        }
    }
    gauge.wait().await;
    gauge.report();
    // It has no orderly close of its channel: time for the last acknowledgements to be written.
    tokio::time::sleep(Duration::from_millis(500)).await;
    Ok(())
}
