//! Lanes that deliver nothing though their partition has more.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use redeliver::{Delivery, Handled, Service};

use super::lab::{create, unique, url};
use super::service::{Seen, config, drained, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_that_is_silent_though_there_is_more_is_seen_and_opened_again() {
    let topic = unique("orders");
    create(&topic, 2).await;
    let seen = Seen::default();
    let at = seen.clone();
    let handler = move |delivery: Delivery<String>| {
        at.note(&delivery.payload);
        async { Handled::Ok(()) }
    };
    let config = config(&topic, "stall_after = \"2s\"", "");
    let service = Service::builder(config).subscribe("orders", handler).signals(false);
    let service = service.start().await.expect("it starts");
    // Readers of committed records stop before a transaction that is still open.
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", url())
        .set("transactional.id", &topic)
        .create()
        .expect("the url can be read");
    producer.init_transactions(Duration::from_secs(30)).expect("the broker answers");
    producer.begin_transaction().expect("it is the first");
    let record = BaseRecord::to(&topic).partition(1).key("key").payload("\"held back\"");
    producer.send(record).map_err(|(error, _)| error).expect("there is room");
    producer.flush(Duration::from_secs(30)).expect("the broker stores it");
    let lanes = || service.health().subscriptions["orders"].lanes.clone();
    until("the silence is seen", async || lanes().values().any(Option::is_some)).await;
    let silent: Vec<String> =
        lanes().into_iter().filter_map(|(lane, why)| why.map(|_| lane)).collect();
    assert!(
        silent.iter().all(|lane| lane.ends_with("/1")),
        "an empty partition is no stall: {silent:?}"
    );
    producer.commit_transaction(Duration::from_secs(30)).expect("the broker answers");
    until("what was held back is handled", async || seen.attempts("held back") == 1).await;
    drained(&service).await;
    assert_eq!(service.stop().await.left, 0);
}
