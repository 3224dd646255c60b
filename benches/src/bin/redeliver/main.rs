//! redeliver as a user would run it: one subscription a queue, an async function as the handler.
//!
//! | style | |
//! |---|---|
//! | `plain` | consumes; the queues are taken as they are (`topology = "none"`) |
//! | `failing-P` | P percent of the messages fail once and wait a second at the broker |
//! | `steady-R` | publishes R messages a second and consumes them at the same time; each fails once and waits a second at the broker |
//! | `waiting` | as `plain`, with a wait of an hour at the broker declared |
//! | `lanes-N` | as `plain`, with N consumers of each queue |
//! | `idle-N` | N consumers with nothing to do |
//! | `publish-W` | publishes with W unconfirmed |
//! | `idempotent`, `locked` | as `plain`, with claims, and with claims and locks, in the Redis that `REDIS_URL` names |
//! | `handlers-N` | Kafka: as `plain`, with N handler actors, a thread each |
//! | `key` | Kafka: in order by key |
//! | `keyhandlers-N` | the same, with N handler actors |
//! | `key-M` | the same, with handlers that take M milliseconds |
//! | `rebalance` | Kafka: a second member joins and leaves while messages come |
//!
//! The URL says which broker it is.

mod config;
mod rebalance;

use std::error::Error;
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use futures_util::StreamExt;
use futures_util::future::try_join_all;
use futures_util::stream::FuturesUnordered;
use redeliver::broker::HeaderValue;
use redeliver::{Delivery, Failure, Handled, Message, Service, wire};
use redeliver_benches::shared::gauge::{Gauge, cpu_time, memory_now, wake_ups};
use redeliver_benches::shared::order::{self, Order, fails};
use redeliver_benches::shared::task::Task;

/// How long an idle process is looked at, after how long.
const IDLE_AFTER: Duration = Duration::from_secs(3);
const IDLE_FOR: Duration = Duration::from_secs(10);

static GAUGE: OnceLock<Gauge> = OnceLock::new();
static PERCENT: OnceLock<u64> = OnceLock::new();
/// How long a handler takes, and how long they took all told, in microseconds.
static TAKES: OnceLock<Duration> = OnceLock::new();
static TOOK: AtomicU64 = AtomicU64::new(0);
/// How much later than due messages came back, in milliseconds.
static LATENESS: Mutex<Vec<f64>> = Mutex::new(Vec::new());

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let task = Task::from_arguments()?;
    let (style, number) = task.style.split_once('-').unwrap_or((&task.style, "0"));
    let number: u64 = number.parse()?;
    let _ = PERCENT.set(match style {
        "failing" => number,
        "steady" => 100,
        _ => 0,
    });
    if style == "rebalance" {
        return rebalance::run(&task).await;
    }
    let config = config::of(&task, style, number)?;
    let mut builder = Service::builder(config).signals(false);
    if style == "key" && number > 0 {
        let _ = TAKES.set(Duration::from_millis(number));
        builder = builder.subscribe("measured", handle_slowly);
    } else if config::is_kafka(&task) {
        builder = builder.subscribe("measured", handle);
    } else if style != "publish" {
        for queue in task.names() {
            builder = builder.subscribe(queue.replace('.', "_"), handle);
        }
    }
    let gauge = GAUGE.get_or_init(|| Gauge::new(task.messages));
    let service = builder.start().await?;
    match style {
        "idle" => idle().await,
        "publish" => publish(&service, &task, gauge, number as usize).await?,
        "steady" => {
            publish_steadily(&service, &task, number).await?;
            gauge.wait().await;
        }
        _ if task.messages == 0 => {}
        _ => gauge.wait().await,
    }
    gauge.report();
    report_lateness();
    if TAKES.get().is_some() {
        let took = TOOK.load(Ordering::Relaxed) as f64 / 1e3;
        println!("handler {:.4}", took / task.messages as f64);
    }
    service.stop().await;
    Ok(())
}

async fn handle(delivery: Delivery<Order>) -> Handled {
    black_box(&delivery.payload);
    let percent = *PERCENT.get().expect("set before anything is consumed");
    if percent > 0 && fails(delivery.payload.id, percent) {
        if delivery.attempt() == 1 {
            return Err(Failure::retry("it fails once"));
        }
        note_lateness(&delivery);
    }
    GAUGE.get().expect("set before anything is consumed").handled();
    Ok(())
}

/// `handler MEAN`, in milliseconds, is what they took in truth: timers are late.
async fn handle_slowly(delivery: Delivery<Order>) -> Handled {
    black_box(&delivery.payload);
    let began = Instant::now();
    tokio::time::sleep(*TAKES.get().expect("set before anything is consumed")).await;
    TOOK.fetch_add(began.elapsed().as_micros() as u64, Ordering::Relaxed);
    GAUGE.get().expect("set before anything is consumed").handled();
    Ok(())
}

/// Publishes so many a second, in a hundred parts, so that their waits end one after another.
async fn publish_steadily(service: &Service, task: &Task, rate: u64) -> Result<(), Box<dyn Error>> {
    let publisher = service.publisher("main")?;
    let queue = task.names().next().ok_or("there is no queue")?;
    let mut parts = tokio::time::interval(Duration::from_millis(10));
    let part = (rate / 100).max(1);
    for first in (0..task.messages).step_by(part as usize) {
        parts.tick().await;
        let numbers = first..(first + part).min(task.messages);
        try_join_all(numbers.map(|number| publisher.send(message(number, &queue)))).await?;
    }
    Ok(())
}

fn message(number: u64, queue: &str) -> Message {
    Message::bytes(order::body(number))
        .content_type("application/json")
        .to_queue(queue)
        .id(format!("order-{number}"))
}

fn note_lateness(delivery: &Delivery<Order>) {
    let Some(HeaderValue::Text(due)) = delivery.header(wire::DUE) else { return };
    let Some(due) = wire::parse_time(due) else { return };
    let since = |time: SystemTime| {
        time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
    };
    let late = (since(SystemTime::now()) - since(due)) * 1e3;
    LATENESS.lock().expect("nobody panics with it").push(late);
}

/// `lateness COUNT LEAST MEDIAN P99`, in milliseconds.
fn report_lateness() {
    let mut late = LATENESS.lock().expect("nobody panics with it");
    if late.is_empty() {
        return;
    }
    late.sort_by(f64::total_cmp);
    let part = |part: f64| late[((late.len() - 1) as f64 * part) as usize];
    println!("lateness {} {:.3} {:.3} {:.3}", late.len(), part(0.0), part(0.5), part(0.99));
}

/// `idle MEMORY_KIB CPU_MS WAKE_UPS`.
async fn idle() {
    tokio::time::sleep(IDLE_AFTER).await;
    let (cpu, woken) = (cpu_time(), wake_ups());
    tokio::time::sleep(IDLE_FOR).await;
    let cpu = (cpu_time() - cpu).as_millis();
    println!("idle {} {cpu} {}", memory_now(), wake_ups() - woken);
}

async fn publish(
    service: &Service,
    task: &Task,
    gauge: &Gauge,
    window: usize,
) -> Result<(), Box<dyn Error>> {
    let publisher = service.publisher("main")?;
    let queue = task.names().next().ok_or("there is no queue")?;
    let mut unconfirmed = FuturesUnordered::new();
    for number in 0..task.messages {
        unconfirmed.push(publisher.send(message(number, &queue)));
        while unconfirmed.len() >= window {
            unconfirmed.next().await.transpose()?;
            gauge.handled();
        }
    }
    while unconfirmed.next().await.transpose()?.is_some() {
        gauge.handled();
    }
    Ok(())
}
