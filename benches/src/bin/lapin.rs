//! Raw lapin: the least code that acknowledges after handling, in three ways.
//!
//! | style | |
//! |---|---|
//! | `each` | one task a queue, each acknowledgement awaited before the next message |
//! | `tasks` | 16 tasks a queue, each awaiting its acknowledgements |
//! | `multiple` | one task a queue, one acknowledgement every 64 messages or 5 ms |
//!
//! `-1` behind a style runs it on one thread instead of two.

use std::error::Error;
use std::hint::black_box;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicQosOptions,
};
use lapin::types::FieldTable;
use lapin::{Channel, Connection, ConnectionProperties, Consumer};
use redeliver_benches::shared::gauge::Gauge;
use redeliver_benches::shared::order::Order;
use redeliver_benches::shared::task::Task;

/// Messages and time after which `multiple` acknowledges.
const ACK_EVERY: usize = 64;
const ACK_AFTER: Duration = Duration::from_millis(5);

static GAUGE: OnceLock<Gauge> = OnceLock::new();

type Outcome = Result<(), Box<dyn Error + Send + Sync>>;

fn main() -> Outcome {
    let task = Task::from_arguments().map_err(|error| error.to_string())?;
    let single = task.style.ends_with("-1");
    let mut builder = match single {
        true => tokio::runtime::Builder::new_current_thread(),
        false => tokio::runtime::Builder::new_multi_thread(),
    };
    builder.enable_all().build()?.block_on(run(task))
}

async fn run(task: Task) -> Outcome {
    let gauge = GAUGE.get_or_init(|| Gauge::new(task.messages));
    let connection =
        Arc::new(Connection::connect(&task.url, ConnectionProperties::default()).await?);
    let style = task.style.trim_end_matches("-1").to_owned();
    let mut loops = Vec::new();
    for queue in task.names() {
        let channel = connection.create_channel().await?;
        channel.basic_qos(task.prefetch, BasicQosOptions::default()).await?;
        let options = BasicConsumeOptions::default();
        let tag = queue.as_str().into();
        let consumer =
            channel.basic_consume(queue.as_str().into(), tag, options, FieldTable::default()).await?;
        let style = style.clone();
        loops.push(tokio::spawn(async move { drain(&style, channel, consumer, queue).await }));
    }
    for ended in loops {
        ended.await??;
    }
    gauge.report();
    connection.close(200, "done".into()).await?;
    Ok(())
}

async fn drain(style: &str, channel: Channel, consumer: Consumer, tag: String) -> Outcome {
    match style {
        "each" => each(consumer).await?,
        "tasks" => {
            let tasks: Vec<_> =
                (0..16).map(|_| tokio::spawn(each(consumer.clone()))).collect();
            for task in tasks {
                task.await??;
            }
        }
        "multiple" => multiple(&channel, consumer).await?,
        other => return Err(format!("there is no style `{other}`").into()),
    }
    // The cancel goes through the queue, so that no acknowledgement before it is lost.
    channel.basic_cancel(tag.as_str().into(), BasicCancelOptions::default()).await?;
    Ok(())
}

fn handle(delivery: &Delivery) -> Outcome {
    let order: Order = serde_json::from_slice(&delivery.data)?;
    black_box(order);
    GAUGE.get().expect("set before anything is consumed").handled();
    Ok(())
}

/// The next message, or `None` once all queues are done.
async fn next(consumer: &mut Consumer) -> Result<Option<Delivery>, lapin::Error> {
    let gauge = GAUGE.get().expect("set before anything is consumed");
    tokio::select! {
        biased;
        delivery = consumer.next() => delivery.transpose(),
        () = gauge.wait() => Ok(None),
    }
}

async fn each(mut consumer: Consumer) -> Outcome {
    while let Some(delivery) = next(&mut consumer).await? {
        handle(&delivery)?;
        delivery.ack(BasicAckOptions::default()).await?;
    }
    Ok(())
}

async fn multiple(channel: &Channel, mut consumer: Consumer) -> Outcome {
    let (mut unacked, mut last) = (0, 0);
    let mut ticks = tokio::time::interval(ACK_AFTER);
    let gauge = GAUGE.get().expect("set before anything is consumed");
    loop {
        tokio::select! {
            biased;
            delivery = consumer.next() => {
                let Some(delivery) = delivery.transpose()? else { return Ok(()) };
                handle(&delivery)?;
                last = delivery.delivery_tag;
                unacked += 1;
                if unacked < ACK_EVERY {
                    continue;
                }
            }
            _ = ticks.tick() => {}
        }
        if unacked > 0 {
            channel.basic_ack(last, BasicAckOptions { multiple: true }).await?;
            unacked = 0;
        }
        if gauge.is_done() {
            return Ok(());
        }
    }
}
