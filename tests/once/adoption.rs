//! What runs or waits while its connection is lost, twice, goes on: in its order, under its claim, under its lock.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use redeliver::{Delivery, Handled, Service};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::broker_proxy::Proxy;
use crate::common::rabbitmq::url;
use crate::lab::{Lab, SHORT_WAITS, count};

const COUNT: usize = 6;

/// What handlers began (true) and ended, in order, by id.
type Steps = Arc<Mutex<Vec<(bool, usize)>>>;

struct Interrupted {
    lab: Lab,
    idle: Service,
    service: Service,
    steps: Steps,
    // Cuts its connections when it is dropped.
    _proxy: Proxy,
}

fn keyed(id: usize) -> Value {
    json!({ "key": id % 2 })
}

/// Six messages of two keys, of which `running` run and the others wait when the connection is lost, and lost again; then
/// all may end.
async fn interrupted(keys: &str, running: usize) -> Interrupted {
    let (lab, steps, gate) = (Lab::new(), Steps::default(), Arc::new(Semaphore::new(0)));
    let proxy = Proxy::to(&url()).await;
    let (noting, passing) = (Arc::clone(&steps), Arc::clone(&gate));
    let handler = move |delivery: Delivery<Value>| {
        let (noting, passing) = (Arc::clone(&noting), Arc::clone(&passing));
        async move {
            let id = delivery.id().and_then(|id| id.parse().ok()).expect("a number");
            noting.lock().expect("no handler panics in here").push((true, id));
            passing.acquire().await.expect("it is never closed").forget();
            noting.lock().expect("no handler panics in here").push((false, id));
            Handled::Ok(())
        }
    };
    let toml = lab.toml(&format!("timeout = \"10m\"\n{keys}"), SHORT_WAITS);
    let idle = lab.idle(&toml).await;
    let service = lab.start(&toml.replace(&url(), &proxy.url), handler).await;
    for id in 0..COUNT {
        lab.send(&idle, &id.to_string(), keyed(id)).await;
    }
    let begun = || steps.lock().expect("no handler panics in here").len();
    lab.eventually("all are in hand", async || {
        let received = count(&service, "redeliver_received_total").await;
        received >= COUNT as u64 && begun() == running
    })
    .await;
    for round in 1..=2 {
        proxy.cut();
        lab.eventually("all came again", async || {
            count(&service, "redeliver_adopted_total").await >= round * COUNT as u64
        })
        .await;
    }
    assert_eq!(begun(), running, "nothing began for having come again");
    gate.add_permits(1000);
    lab.eventually("all have ended", async || {
        begun() >= 2 * COUNT && count(&service, "redeliver_handled_total").await >= COUNT as u64
    })
    .await;
    lab.drained(&service).await;
    Interrupted { lab, idle, service, steps, _proxy: proxy }
}

impl Interrupted {
    /// What was begun, in order: each once, settled once, and none given up.
    async fn begun(&self) -> Vec<usize> {
        assert_eq!(count(&self.service, "redeliver_handled_total").await, COUNT as u64);
        assert_eq!(count(&self.service, "redeliver_possible_duplicates_total").await, 0);
        assert_eq!(self.lab.dead(&self.idle).await, Some(0));
        let steps = self.steps.lock().expect("no handler panics in here").clone();
        let begun: Vec<_> = steps.iter().filter(|(begins, _)| *begins).map(|(_, id)| *id).collect();
        let distinct: BTreeSet<_> = begun.iter().copied().collect();
        assert_eq!((begun.len(), distinct.len()), (COUNT, COUNT), "each ran once: {steps:?}");
        begun
    }

    /// Of each of these sets never two ran at once.
    fn assert_one_at_a_time(&self, is_of: impl Fn(usize) -> bool) {
        let steps = self.steps.lock().expect("no handler panics in here").clone();
        let of_it = steps.iter().filter(|(_, id)| is_of(*id));
        let alternates = of_it.enumerate().all(|(place, (begins, _))| *begins == (place % 2 == 0));
        assert!(alternates, "two ran at once: {steps:?}");
    }

    async fn stop(self) {
        self.service.stop().await;
        self.idle.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_order_of_a_lane_outlives_its_connection() {
    let interrupted = interrupted("ordering = \"lane\"", 1).await;
    assert_eq!(interrupted.begun().await, (0..COUNT).collect::<Vec<_>>());
    interrupted.assert_one_at_a_time(|_| true);
    interrupted.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_order_of_each_key_outlives_its_connection() {
    let interrupted = interrupted("ordering = \"key\"\nkey = \"/key\"", 2).await;
    let begun = interrupted.begun().await;
    for key in 0..2 {
        let of_key: Vec<_> = begun.iter().copied().filter(|id| id % 2 == key).collect();
        assert_eq!(of_key, (key..COUNT).step_by(2).collect::<Vec<_>>());
        interrupted.assert_one_at_a_time(|id| id % 2 == key);
    }
    interrupted.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_is_held_when_the_connection_is_lost_is_that_of_the_run_that_goes_on() {
    let interrupted = interrupted("idempotency = { store = \"main\" }", COUNT).await;
    interrupted.begun().await;
    let Interrupted { lab, idle, service, .. } = &interrupted;
    assert_eq!(count(service, "redeliver_duplicates_total").await, 0, "it was no other's");
    for id in 0..COUNT {
        lab.send(idle, &id.to_string(), keyed(id)).await;
    }
    lab.eventually("each is known to be done", async || {
        count(service, "redeliver_duplicates_total").await == COUNT as u64
    })
    .await;
    interrupted.begun().await;
    interrupted.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_that_is_held_when_the_connection_is_lost_goes_on_keeping_others_out() {
    let interrupted = interrupted("lock = { store = \"main\", key = \"/key\" }", 2).await;
    interrupted.begun().await;
    for key in 0..2 {
        interrupted.assert_one_at_a_time(|id| id % 2 == key);
    }
    interrupted.stop().await;
}
