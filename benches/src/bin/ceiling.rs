//! No broker and no framework: so many tasks on one thread, each parses a message, sleeps, and takes the next.
//!
//! What nobody can surpass who has so many handlers of that length at a time, and whose handlers get what was parsed.
//! The style is how long they take, in milliseconds.

use std::error::Error;
use std::hint::black_box;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use redeliver_benches::shared::gauge::Gauge;
use redeliver_benches::shared::order::{self, Order};
use redeliver_benches::shared::task::Task;
use tokio::task::LocalSet;

fn main() -> Result<(), Box<dyn Error>> {
    let task = Task::from_arguments()?;
    let takes = Duration::from_millis(task.style.parse()?);
    let gauge = Rc::new(Gauge::new(task.messages));
    let next = Rc::new(AtomicU64::new(0));
    let body: Rc<[u8]> = order::body(0).into();
    let workers = LocalSet::new();
    for _ in 0..task.prefetch {
        let (gauge, next, body) = (Rc::clone(&gauge), Rc::clone(&next), Rc::clone(&body));
        workers.spawn_local(async move {
            while next.fetch_add(1, Ordering::Relaxed) < task.messages {
                let order: Order = serde_json::from_slice(&body).expect("an order");
                black_box(order);
                tokio::time::sleep(takes).await;
                gauge.handled();
            }
        });
    }
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(workers);
    gauge.report();
    Ok(())
}
