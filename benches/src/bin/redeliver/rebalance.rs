//! Two members of one group, and a writer that never rests: how long a partition stands still that does not move.

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord};
use redeliver::{Delivery, Handled, Service};
use redeliver_benches::shared::order::{self, Order};
use redeliver_benches::shared::task::Task;

use super::config;

/// A record for each partition so often.
const WRITES_EVERY: Duration = Duration::from_millis(5);
/// How long the members have been alone, or together, before the next change.
const SETTLES_IN: Duration = Duration::from_secs(5);

/// When the first member had which partition's messages.
static SEEN: Mutex<BTreeMap<u64, Vec<Instant>>> = Mutex::new(BTreeMap::new());
static WRITES: AtomicBool = AtomicBool::new(true);
static PARTITIONS: Mutex<u64> = Mutex::new(1);

async fn first(delivery: Delivery<Order>) -> Handled {
    let partitions = *PARTITIONS.lock().expect("nobody panics with it");
    let mut seen = SEEN.lock().expect("nobody panics with it");
    seen.entry(delivery.payload.id % partitions).or_default().push(Instant::now());
    Ok(())
}

async fn second(_: Delivery<Order>) -> Handled {
    Ok(())
}

/// `stall MS`: the longest time between two messages of a partition that the first member had throughout.
pub(crate) async fn run(task: &Task) -> Result<(), Box<dyn Error>> {
    let partitions = task.queues as u64;
    *PARTITIONS.lock().expect("nobody panics with it") = partitions;
    let of = || config::of(task, "plain", 0);
    let one = Service::builder(of()?).signals(false).subscribe("measured", first).start().await?;
    let (url, topic) = (task.url.clone(), task.prefix.clone());
    let writer = std::thread::spawn(move || write(&url, &topic, partitions));
    tokio::time::sleep(SETTLES_IN).await;
    let joins = Instant::now();
    let other = Service::builder(of()?).signals(false).subscribe("measured", second);
    let other = other.start().await?;
    tokio::time::sleep(SETTLES_IN).await;
    let joined = Instant::now();
    other.stop().await;
    tokio::time::sleep(SETTLES_IN).await;
    WRITES.store(false, Ordering::Relaxed);
    writer.join().expect("the writer does not panic")?;
    one.stop().await;
    println!("stall {:.1}", longest(joins, joined).as_secs_f64() * 1e3);
    Ok(())
}

/// Of those partitions that the first member still had when both had settled.
fn longest(joins: Instant, joined: Instant) -> Duration {
    let seen = SEEN.lock().expect("nobody panics with it");
    let lately = joined - Duration::from_secs(1);
    let stayed = seen.values().filter(|times| times.iter().any(|at| (lately..joined).contains(at)));
    let gaps = stayed.flat_map(|times| times.windows(2).filter(|pair| pair[1] > joins));
    gaps.map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
}

fn write(url: &str, topic: &str, partitions: u64) -> Result<(), rdkafka::error::KafkaError> {
    let producer: BaseProducer =
        ClientConfig::new().set("bootstrap.servers", url).set("linger.ms", "0").create()?;
    let mut number = 0;
    while WRITES.load(Ordering::Relaxed) {
        for _ in 0..partitions {
            let (body, key) = (order::body(number), order::key(number));
            let partition = (number % partitions) as i32;
            let record = BaseRecord::to(topic).partition(partition).key(&key).payload(&body);
            producer.send(record).map_err(|(error, _)| error)?;
            number += 1;
        }
        producer.poll(WRITES_EVERY);
        std::thread::sleep(WRITES_EVERY);
    }
    Ok(())
}
