//! The memory broker: the contract of the seam, and the whole path through the public API.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use actix::prelude::*;
use redeliver::broker::memory::MemoryBroker;
use redeliver::broker::{Broker, Source, Target};
use redeliver::config::{Config, Subscription};
use redeliver::testing::broker_conformance::{self, Subject};
use redeliver::{Delivery, Failure, Handled, Message, Service};

#[derive(serde::Deserialize)]
struct Order {
    id: u32,
}

#[derive(Clone, Default)]
struct Seen(Arc<AtomicU32>, Arc<AtomicU32>);

struct Shipping(Seen);

impl Actor for Shipping {
    type Context = Context<Self>;
}

impl Handler<Delivery<Order>> for Shipping {
    type Result = ResponseFuture<Handled>;

    fn handle(&mut self, delivery: Delivery<Order>, _: &mut Context<Self>) -> Self::Result {
        let seen = self.0.clone();
        Box::pin(async move {
            seen.0.fetch_add(1, Ordering::SeqCst);
            if delivery.payload.id.is_multiple_of(10) {
                return Err(Failure::reject("a round number"));
            }
            if delivery.payload.id.is_multiple_of(3) && delivery.attempt() < 3 {
                return Err(Failure::retry("not yet"));
            }
            seen.1.fetch_add(1, Ordering::SeqCst);
            Ok(())
        })
    }
}

const CONFIG: &str = r#"
[brokers.main]
kind = "memory"
[subscriptions.orders]
broker = "main"
queue = "orders"
[retry.standard]
backoff = "fixed"
delay_min = "20ms"
jitter = "none"
in_process_max = "0s"
"#;

#[test]
fn messages_are_handled_retried_and_dead_lettered() {
    System::new().block_on(async {
        let seen = Seen::default();
        let for_actors = seen.clone();
        let service = Service::builder(Config::from_toml(CONFIG).unwrap())
            .subscribe("orders", move || Shipping(for_actors.clone()))
            .signals(false)
            .start()
            .await
            .unwrap();
        let publisher = service.publisher("main").unwrap();
        for id in 1..=1000u32 {
            let message = Message::json(&serde_json::json!({ "id": id })).unwrap();
            publisher.send(message.to_queue("orders").id(format!("order-{id}"))).await.unwrap();
        }
        let done = async {
            loop {
                let depth = service.depth("orders").await.unwrap();
                if depth.ready == Some(0) && depth.unsettled == Some(0) && depth.waiting == Some(0)
                {
                    break depth.dead;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let dead = tokio::time::timeout(Duration::from_secs(20), done).await.unwrap();
        assert_eq!(dead, Some(100));
        assert_eq!(seen.1.load(Ordering::SeqCst), 900);
        assert_eq!(seen.0.load(Ordering::SeqCst), 100 + 600 + 300 * 3);
        println!("{}", service.metrics().await);
        let stop = service.stop().await;
        assert_eq!(stop.left, 0);
    });
}

/// Sources of names of their own on one broker.
struct Memory {
    broker: MemoryBroker,
    sources: AtomicU32,
}

impl Subject for Memory {
    fn broker(&self) -> &dyn Broker {
        &self.broker
    }

    fn source(&self, waits: &[Duration]) -> Arc<Source> {
        let name = format!("source-{}", self.sources.fetch_add(1, Ordering::Relaxed));
        let settings = Subscription { queue: Some(name.clone()), ..Subscription::default() };
        Arc::new(Source {
            name: name.into(),
            settings: Arc::new(settings),
            waits: waits.to_vec(),
            service: "conformance".into(),
        })
    }

    fn target(&self, source: &Source) -> Target {
        Target::Queue(source.settings.queue.clone().unwrap())
    }

    fn nowhere(&self) -> Target {
        Target::Queue("nowhere".to_owned())
    }
}

#[tokio::test(start_paused = true)]
async fn the_memory_broker_keeps_every_sentence_of_the_contract() {
    let memory = Memory { broker: MemoryBroker::new(), sources: AtomicU32::new(0) };
    memory.broker.connect().await.unwrap();
    broker_conformance::every_sentence(&memory).await;
}
