//! One test's corner of both servers: a queue, a subscription's claims, and what handlers saw.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use redeliver::config::Config;
use redeliver::{ClaimStatus, Delivery, IntoHandlers, Message, Service};
use tokio::time::{Instant, sleep};

use crate::common::rabbitmq::{delete_queues, url};

/// How long anything may take before a test fails: long, because the machine may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// Failed attempts wait in the process, shortly.
pub(crate) const SHORT_WAITS: &str = "[retry.standard]\nbackoff = \"fixed\"\njitter = \"none\"\n\
    delay_min = \"100ms\"\nattempts_max = 4\n";

/// Failed attempts wait at the broker, shortly.
pub(crate) const BROKER_WAITS: &str = "[retry.standard]\nbackoff = \"fixed\"\njitter = \"none\"\n\
    delay_min = \"300ms\"\nattempts_max = 4\nin_process_max = \"0s\"\n";

/// What a handler was given.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Seen {
    pub(crate) id: String,
    pub(crate) attempt: u32,
    pub(crate) claim: Option<ClaimStatus>,
}

/// What handlers were given, in order.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<Seen>>>);

impl Log {
    pub(crate) fn note<T>(&self, delivery: &Delivery<T>) {
        let claim = delivery.claim().map(redeliver::Claim::status);
        let id = delivery.id().unwrap_or_default().to_owned();
        let seen = Seen { id, attempt: delivery.attempt(), claim };
        self.0.lock().expect("no handler panics in here").push(seen);
    }

    pub(crate) fn all(&self) -> Vec<Seen> {
        self.0.lock().expect("no handler panics in here").clone()
    }

    pub(crate) fn ids(&self) -> Vec<String> {
        self.all().into_iter().map(|seen| seen.id).collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.all().len()
    }
}

/// A queue and a subscription that nobody else uses; the queues are deleted in the end.
pub(crate) struct Lab {
    /// The queue, and the subscription, whose name is in every key of its claims.
    pub(crate) name: String,
    redis: String,
    made: Mutex<BTreeSet<String>>,
}

impl Lab {
    /// On the servers under test.
    pub(crate) fn new() -> Self {
        Self::on(&redis_url())
    }

    /// On a Redis of the test's own.
    pub(crate) fn on(redis: &str) -> Self {
        let name = format!("once-{}", uuid::Uuid::now_v7().simple());
        let made = BTreeSet::from([name.clone(), format!("{name}.dead")]);
        Self { name, redis: redis.to_owned(), made: made.into() }
    }

    /// The same with a store that may take `deadline` for an answer.
    pub(crate) fn patient_toml(&self, deadline: &str, keys: &str, tables: &str) -> String {
        let store = format!("kind = \"redis\"\ndeadline = \"{deadline}\"");
        self.toml(keys, tables).replace("kind = \"redis\"", &store)
    }

    /// A configuration; `keys` are more of the subscription's, `tables` further tables.
    pub(crate) fn toml(&self, keys: &str, tables: &str) -> String {
        let (name, redis, rabbitmq) = (&self.name, &self.redis, url());
        format!(
            "[service]\nshutdown_grace = \"5s\"\n\
             [brokers.main]\nkind = \"rabbitmq\"\nurl = \"{rabbitmq}\"\n\
             [stores.main]\nkind = \"redis\"\nurl = \"{redis}\"\n\
             [subscriptions.{name}]\nbroker = \"main\"\nqueue = \"{name}\"\n{keys}\n{tables}"
        )
    }

    pub(crate) async fn start<M>(&self, toml: &str, handlers: impl IntoHandlers<M>) -> Service {
        let config = Config::from_toml(toml).unwrap_or_else(|error| panic!("{error}"));
        let service = Service::builder(config).subscribe(&self.name, handlers).signals(false);
        let service = service.start().await.unwrap_or_else(|error| panic!("it starts: {error}"));
        self.delete_later(&service);
        service
    }

    /// Prepares the queues, and consumes nothing.
    pub(crate) async fn idle(&self, toml: &str) -> Service {
        let config = Config::from_toml(toml).unwrap_or_else(|error| panic!("{error}"));
        let service = Service::builder(config).without_handler(&self.name).signals(false);
        let service = service.start().await.unwrap_or_else(|error| panic!("it starts: {error}"));
        self.delete_later(&service);
        service
    }

    fn delete_later(&self, service: &Service) {
        let topology = service.topology(&self.name).expect("it has this subscription");
        let names = topology.iter().filter_map(|line| {
            line.strip_prefix("queue `")?.split_once('`').map(|(name, _)| name.to_owned())
        });
        self.made.lock().expect("no test panics in here").extend(names);
    }

    /// A message of this id to the queue.
    pub(crate) fn message(&self, id: &str, payload: &serde_json::Value) -> Message {
        Message::json(payload).expect("it is JSON").to_queue(&self.name).id(id)
    }

    pub(crate) async fn send(&self, service: &Service, id: &str, payload: serde_json::Value) {
        let publisher = service.publisher("main").expect("it is configured");
        publisher.send(self.message(id, &payload)).await.expect("it is confirmed");
    }

    /// Waits until nothing is ready, waiting or in anybody's hands of this one service.
    pub(crate) async fn drained(&self, service: &Service) {
        self.eventually("an empty queue", async || {
            // The queues are asked one after another, and a message may move behind our back.
            for _ in 0..20 {
                let Ok(depth) = service.depth(&self.name).await else { return false };
                if [depth.ready, depth.unsettled, depth.waiting] != [Some(0); 3] {
                    return false;
                }
                sleep(Duration::from_millis(25)).await;
            }
            true
        })
        .await;
    }

    pub(crate) async fn eventually(&self, what: &str, mut check: impl AsyncFnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !check().await {
            assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
            sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) async fn dead(&self, service: &Service) -> Option<u64> {
        service.depth(&self.name).await.expect("the broker answers").dead
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let names = self.made.lock().expect("no test panics in here").iter().cloned().collect();
        delete_queues(&url(), names);
    }
}

/// The server's url, from the environment.
pub(crate) fn redis_url() -> String {
    std::env::var("REDIS_URL")
        .expect("REDIS_URL names the server under test; tests/servers/redis.sh starts one")
}

/// Where that server listens, on this machine.
pub(crate) fn redis_port() -> u16 {
    let url = redis_url();
    let port = url.trim_end_matches('/').rsplit(':').next().and_then(|port| port.parse().ok());
    port.expect("REDIS_URL ends in a port")
}

/// The value of a counter in the text of all metrics.
pub(crate) fn metric(text: &str, name: &str) -> u64 {
    let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
    line.rsplit(' ').next().and_then(|value| value.parse().ok()).unwrap_or(u64::MAX)
}

/// Of a counter that is not there before it counts.
pub(crate) async fn count(service: &Service, name: &str) -> u64 {
    match metric(&service.metrics().await, name) {
        u64::MAX => 0,
        count => count,
    }
}
