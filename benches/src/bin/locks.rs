//! Locks in Redis, one at a time.
//!
//! | style | |
//! |---|---|
//! | `raw` | the least that excludes and is safe to release: `SET key owner NX PX`, and a script that compares the owner |
//! | `ours` | `locks.acquire(key).await`, `guard.release().await` |
//! | `handover` | two services in turns: how long from a release to the acquisition that waited for it |

use std::error::Error;
use std::time::{Duration, Instant};

use redeliver::Service;
use redeliver::config::Config;
use redeliver::store::Locks;
use redeliver_benches::shared::gauge::Gauge;
use redeliver_benches::shared::task::Task;
use redis::Script;

const LEASE: Duration = Duration::from_secs(30);
/// How long a waiter gets to queue before the lock is released.
const QUEUES_WITHIN: Duration = Duration::from_millis(5);
/// So many keys are taken in turns.
const KEYS: u64 = 100;

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcome {
    let task = Task::from_arguments()?;
    let gauge = Gauge::new(task.messages);
    match task.style.as_str() {
        "raw" => raw(&task, &gauge).await?,
        "ours" => ours(&task, &gauge).await?,
        "handover" => handover(&task).await?,
        other => return Err(format!("there is no style `{other}`").into()),
    }
    gauge.report();
    Ok(())
}

async fn raw(task: &Task, gauge: &Gauge) -> Outcome {
    let client = redis::Client::open(task.url.as_str())?;
    let mut connection = client.get_multiplexed_async_connection().await?;
    let release = Script::new(
        "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end return 0",
    );
    for number in 0..task.messages {
        let key = format!("raw:{}", number % KEYS);
        let taken: Option<String> = redis::cmd("SET")
            .arg(&key)
            .arg("owner")
            .arg("NX")
            .arg("PX")
            .arg(LEASE.as_millis() as u64)
            .query_async(&mut connection)
            .await?;
        taken.ok_or("the lock is somebody else's")?;
        let _: i64 = release.key(&key).arg("owner").invoke_async(&mut connection).await?;
        gauge.handled();
    }
    Ok(())
}

async fn ours(task: &Task, gauge: &Gauge) -> Outcome {
    let service = service(task).await?;
    let locks = service.locks("main")?;
    for number in 0..task.messages {
        let guard = locks.acquire(format!("ours:{}", number % KEYS)).lease(LEASE).await?;
        guard.release().await?;
        gauge.handled();
    }
    service.stop().await;
    Ok(())
}

async fn service(task: &Task) -> Outcome<Service> {
    let config = format!("[stores.main]\nkind = \"redis\"\nurl = \"{}\"", task.url);
    Ok(Service::builder(Config::from_toml(&config)?).signals(false).start().await?)
}

/// `handover MEDIAN P99`, in milliseconds.
async fn handover(task: &Task) -> Outcome {
    let (one, other) = (service(task).await?, service(task).await?);
    let (mut holds, mut waits): (Locks, Locks) = (one.locks("main")?, other.locks("main")?);
    let mut guard = holds.acquire("handed over").lease(LEASE).await?;
    let mut times = Vec::new();
    for _ in 0..task.messages {
        let waiting = waits.acquire("handed over").lease(LEASE).wait(LEASE);
        let waiting = tokio::spawn(async move {
            let guard = waiting.await;
            (guard, Instant::now())
        });
        tokio::time::sleep(QUEUES_WITHIN).await;
        let released = Instant::now();
        guard.release().await?;
        let (next, at) = waiting.await?;
        guard = next?;
        times.push(at.duration_since(released).as_secs_f64() * 1e3);
        std::mem::swap(&mut holds, &mut waits);
    }
    guard.release().await?;
    times.sort_by(f64::total_cmp);
    let part = |part: f64| times[((times.len() - 1) as f64 * part) as usize];
    println!("handover {:.3} {:.3}", part(0.5), part(0.99));
    one.stop().await;
    other.stop().await;
    Ok(())
}
