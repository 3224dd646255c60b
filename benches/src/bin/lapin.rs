//! Raw lapin: the least code that acknowledges after handling, in several ways.
//!
//! | style | |
//! |---|---|
//! | `each` | one task a queue, each acknowledgement awaited before the next message |
//! | `tasks` | 16 tasks a queue, each awaiting its acknowledgements |
//! | `multiple` | one task a queue, one acknowledgement every 64 messages or 5 ms |
//! | `failing-P` | P percent of the messages fail once: republished to the wait of a second, confirmed, then acknowledged; each such message a task |
//! | `failing-tasks-P` | the same in 16 tasks, each finishing its message |
//! | `publish-W` | publishes with W unconfirmed |
//!
//! `-1` behind a style runs it on one thread instead of two.

use std::error::Error;
use std::hint::black_box;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
    ConfirmSelectOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, Consumer};
use redeliver_benches::shared::gauge::Gauge;
use redeliver_benches::shared::order::{self, Order, fails};
use redeliver_benches::shared::task::Task;
use tokio::sync::Semaphore;

/// Messages and time after which `multiple` acknowledges.
const ACK_EVERY: usize = 64;
const ACK_AFTER: Duration = Duration::from_millis(5);

static GAUGE: OnceLock<Gauge> = OnceLock::new();

type Outcome = Result<(), Box<dyn Error + Send + Sync>>;

fn main() -> Outcome {
    let task = Task::from_arguments().map_err(|error| error.to_string())?;
    let single =
        task.style.ends_with("e-1") || task.style.ends_with("h-1") || task.style.ends_with("s-1");
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
    if let Some(window) = task.style.strip_prefix("publish-") {
        publish(&connection, &task, gauge, window.parse()?).await?;
        gauge.report();
        connection.close(200, "done".into()).await?;
        return Ok(());
    }
    if let Some((style, percent)) = task.style.split_once("failing-") {
        debug_assert!(style.is_empty());
        let (tasks, percent) = match percent.strip_prefix("tasks-") {
            Some(percent) => (16, percent),
            None => (1, percent),
        };
        failing(&connection, &task, tasks, percent.parse()?).await?;
        gauge.report();
        connection.close(200, "done".into()).await?;
        return Ok(());
    }
    let style = task.style.trim_end_matches("-1").to_owned();
    let mut loops = Vec::new();
    for queue in task.names() {
        let channel = connection.create_channel().await?;
        channel.basic_qos(task.prefetch, BasicQosOptions::default()).await?;
        let options = BasicConsumeOptions::default();
        let tag = queue.as_str().into();
        let consumer = channel
            .basic_consume(queue.as_str().into(), tag, options, FieldTable::default())
            .await?;
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
            let tasks: Vec<_> = (0..16).map(|_| tokio::spawn(each(consumer.clone()))).collect();
            for task in tasks {
                task.await??;
            }
        }
        "multiple" => multiple(&channel, consumer).await?,
        other => return Err(format!("there is no style `{other}`").into()),
    }
    // The cancel goes through the queue, so that no acknowledgement before it is lost.
    channel.basic_cancel(tag.as_str().into(), BasicCancelOptions::default()).await?;
    channel.close(200, "done".into()).await?;
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

/// Which messages fail, and where they wait.
struct Failing {
    publish: Channel,
    wait: String,
    percent: u64,
    /// As many copies at once as may be unsettled.
    copies: Arc<Semaphore>,
    /// One task a copy, or the task that received it does it.
    spawns: bool,
}

async fn failing(connection: &Connection, task: &Task, tasks: usize, percent: u64) -> Outcome {
    let queue = task.names().next().ok_or("there is no queue")?;
    let publish = connection.create_channel().await?;
    publish.confirm_select(ConfirmSelectOptions::default()).await?;
    let failing = Arc::new(Failing {
        publish,
        wait: format!("{queue}.wait.1000"),
        percent,
        copies: Arc::new(Semaphore::new(task.prefetch.into())),
        spawns: tasks == 1,
    });
    let channel = connection.create_channel().await?;
    channel.basic_qos(task.prefetch, BasicQosOptions::default()).await?;
    let name = ShortString::from(queue.as_str());
    let options = BasicConsumeOptions::default();
    let consumer =
        channel.basic_consume(name.clone(), name.clone(), options, FieldTable::default()).await?;
    let loops: Vec<_> = (0..tasks)
        .map(|_| tokio::spawn(drain_failing(consumer.clone(), Arc::clone(&failing))))
        .collect();
    for ended in loops {
        ended.await??;
    }
    // Every copy's original is acknowledged before the cancel.
    let _all = failing.copies.acquire_many(task.prefetch.into()).await?;
    channel.basic_cancel(name, BasicCancelOptions::default()).await?;
    channel.close(200, "done".into()).await?;
    failing.publish.close(200, "done".into()).await?;
    Ok(())
}

async fn drain_failing(mut consumer: Consumer, failing: Arc<Failing>) -> Outcome {
    while let Some(delivery) = next(&mut consumer).await? {
        let order: Order = serde_json::from_slice(&delivery.data)?;
        let first = delivery
            .properties
            .headers()
            .as_ref()
            .is_none_or(|headers| !headers.inner().contains_key("attempt"));
        if !(first && fails(black_box(&order).id, failing.percent)) {
            GAUGE.get().expect("set before anything is consumed").handled();
            delivery.ack(BasicAckOptions::default()).await?;
        } else if failing.spawns {
            let permit = Arc::clone(&failing.copies).acquire_owned().await?;
            let failing = Arc::clone(&failing);
            tokio::spawn(async move {
                let carried = carry(delivery, &failing).await;
                drop(permit);
                carried.expect("a copy is confirmed")
            });
        } else {
            carry(delivery, &failing).await?;
        }
    }
    Ok(())
}

/// Copies to the wait, waits for the confirm, acknowledges.
async fn carry(delivery: Delivery, failing: &Failing) -> Outcome {
    let mut headers = FieldTable::default();
    headers.insert("attempt".into(), AMQPValue::LongInt(1));
    let properties = delivery.properties.clone().with_headers(headers);
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let wait = ShortString::from(failing.wait.as_str());
    let confirm = failing
        .publish
        .basic_publish("".into(), wait, options, &delivery.data, properties)
        .await?
        .await?;
    if !matches!(confirm, Confirmation::Ack(None)) {
        return Err("the copy was not stored".into());
    }
    delivery.ack(BasicAckOptions::default()).await?;
    Ok(())
}

async fn publish(connection: &Connection, task: &Task, gauge: &Gauge, window: usize) -> Outcome {
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let queue = ShortString::from(task.names().next().ok_or("there is no queue")?);
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let mut unconfirmed = FuturesUnordered::new();
    for number in 0..task.messages {
        let properties = BasicProperties::default()
            .with_delivery_mode(2)
            .with_content_type("application/json".into())
            .with_message_id(format!("order-{number}").into());
        let body = order::body(number);
        let sent = channel.basic_publish("".into(), queue.clone(), options, &body, properties);
        unconfirmed.push(sent.await?);
        while unconfirmed.len() >= window {
            confirmed(unconfirmed.next().await.transpose()?)?;
            gauge.handled();
        }
    }
    while let Some(confirmation) = unconfirmed.next().await.transpose()? {
        confirmed(Some(confirmation))?;
        gauge.handled();
    }
    channel.close(200, "done".into()).await?;
    Ok(())
}

fn confirmed(confirmation: Option<Confirmation>) -> Outcome {
    match confirmation {
        Some(Confirmation::Ack(None)) => Ok(()),
        other => Err(format!("not stored: {other:?}").into()),
    }
}
