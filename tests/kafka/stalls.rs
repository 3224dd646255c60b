//! Silence that is none of a lane's fault: nothing to read is no stall.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use redeliver::{Delivery, Handled, Service};

use super::lab::{create, unique, url};
use super::service::{Seen, config, drained, until};

/// Writes a record in a transaction, which is left open.
fn begin(producer: &BaseProducer, topic: &str, payload: &str) {
    producer.begin_transaction().expect("there is no other");
    let record = BaseRecord::to(topic).partition(1).key("key").payload(payload);
    producer.send(record).map_err(|(error, _)| error).expect("there is room");
    producer.flush(Duration::from_secs(30)).expect("the broker stores it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lanes_that_have_nothing_to_read_are_not_taken_for_stalled() {
    let topic = unique("orders");
    create(&topic, 2).await;
    let seen = Seen::default();
    let at = seen.clone();
    let handler = move |delivery: Delivery<String>| {
        at.note(&delivery.payload);
        async { Handled::Ok(()) }
    };
    let config = config(&topic, "stall_after = \"1s\"", "");
    let service = Service::builder(config).subscribe("orders", handler).signals(false);
    let service = service.start().await.expect("it starts");
    let lanes = || service.health().subscriptions["orders"].lanes.clone();
    until("the lanes are open", async || lanes().len() >= 2).await;
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", url())
        .set("transactional.id", &topic)
        .create()
        .expect("the url can be read");
    producer.init_transactions(Duration::from_secs(30)).expect("the broker answers");
    // An empty partition, one with aborted records alone, and one whose end is a transaction that is open.
    begin(&producer, &topic, "\"aborted\"");
    producer.abort_transaction(Duration::from_secs(30)).expect("the broker answers");
    begin(&producer, &topic, "\"held back\"");
    for _ in 0..60 {
        let down: Vec<_> = lanes().into_iter().filter(|(_, why)| why.is_some()).collect();
        assert!(down.is_empty(), "{down:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    producer.commit_transaction(Duration::from_secs(30)).expect("the broker answers");
    until("what was held back is handled", async || seen.attempts("held back") == 1).await;
    drained(&service).await;
    assert_eq!((service.stop().await.left, seen.len()), (0, 1));
}
