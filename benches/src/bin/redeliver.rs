//! redeliver as a user would run it: one subscription a queue, an async function as the handler.
//!
//! Settings other than the defaults: `in_flight_max` and `parked_max` come to the prefetch of the
//! others together, and the queues are taken as they are (`topology = "none"`).

use std::error::Error;
use std::fmt::Write as _;
use std::hint::black_box;
use std::sync::OnceLock;

use redeliver::config::Config;
use redeliver::{Delivery, Handled, Service};
use redeliver_benches::shared::gauge::Gauge;
use redeliver_benches::shared::order::Order;
use redeliver_benches::shared::task::Task;

static GAUGE: OnceLock<Gauge> = OnceLock::new();

async fn handle(delivery: Delivery<Order>) -> Handled {
    black_box(&delivery.payload);
    GAUGE.get().expect("set before anything is consumed").handled();
    Ok(())
}

fn config(task: &Task) -> Result<Config, Box<dyn Error>> {
    let mut text = format!("[brokers.main]\nkind = \"rabbitmq\"\nurl = \"{}\"\n", task.url);
    let parked = task.prefetch / 4;
    let in_flight = task.prefetch - parked;
    for queue in task.names() {
        writeln!(
            text,
            "[subscriptions.{}]\nbroker = \"main\"\nqueue = \"{queue}\"\ntopology = \"none\"\n\
             in_flight_max = {in_flight}\nparked_max = {parked}",
            queue.replace('.', "_"),
        )?;
    }
    Ok(Config::from_toml(&text)?)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let task = Task::from_arguments()?;
    let gauge = GAUGE.get_or_init(|| Gauge::new(task.messages));
    let mut builder = Service::builder(config(&task)?).signals(false);
    for queue in task.names() {
        builder = builder.subscribe(queue.replace('.', "_"), handle);
    }
    let service = builder.start().await?;
    gauge.wait().await;
    gauge.report();
    service.stop().await;
    Ok(())
}
