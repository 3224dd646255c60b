//! Records as other producers compress them: every codec is read, and a copy finds room where the original did.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::producer::{FutureProducer, FutureRecord};
use redeliver::{Delivery, Failure, Handled, Service};

use super::lab::{create, unique, url};
use super::service::{config, drained, until};

const RETRY: &str = "backoff = \"fixed\"\njitter = \"none\"\ndelay_min = \"1500ms\"\nattempts_max = 2\nin_process_max = \"0s\"\n";

async fn produce(topic: &str, codec: &str, payload: &str) {
    let producer: FutureProducer = ClientConfig::new()
        .set("bootstrap.servers", url())
        .set("compression.type", codec)
        .set("message.max.bytes", "20000000")
        .create()
        .expect("the settings are right");
    let record = FutureRecord::<(), _>::to(topic).payload(payload);
    producer.send(record, Duration::from_secs(60)).await.expect("the broker stores it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_codec_is_read() {
    let topic = unique("orders");
    create(&topic, 1).await;
    for codec in ["none", "gzip", "snappy", "lz4", "zstd"] {
        produce(&topic, codec, &format!("\"{}\"", codec.repeat(100))).await;
    }
    let handled = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&handled);
    let handler = move |_: Delivery<String>| {
        counter.fetch_add(1, Ordering::Relaxed);
        async { Handled::Ok(()) }
    };
    let service = Service::builder(config(&topic, "", RETRY)).subscribe("orders", handler);
    let service = service.signals(false).start().await.expect("it starts");
    until("each is handled", async || handled.load(Ordering::Relaxed) == 5).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_only_its_compression_made_small_enough_is_retried_and_dead_lettered() {
    let topic = unique("orders");
    create(&topic, 1).await;
    // Three times what the topic takes.
    produce(&topic, "gzip", &format!("\"{}\"", "order ".repeat(500_000))).await;
    let attempts = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&attempts);
    let handler = move |_: Delivery<String>| {
        counter.fetch_add(1, Ordering::Relaxed);
        async { Handled::Err(Failure::retry("never")) }
    };
    let config = config(&topic, "", RETRY);
    let service = Service::builder(config).subscribe("orders", handler);
    let service = service.signals(false).start().await.expect("it starts");
    until("it is a dead letter", async || {
        service.depth("orders").await.is_ok_and(|depth| depth.dead == Some(1))
    })
    .await;
    drained(&service).await;
    assert_eq!(attempts.load(Ordering::Relaxed), 2, "it waited at the broker in between");
    service.stop().await;
}
