//! Records that are unlike others: without a value, not decodable, as large as the topic takes.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::producer::{FutureProducer, FutureRecord};
use redeliver::{Delivery, Failure, Handled, Reason, Service};
use serde::Deserialize;

use super::lab::{create, unique, url};
use super::raw;
use super::service::{config, drained};

/// Writes a record as somebody else would.
async fn produce(topic: &str, key: &str, payload: Option<&[u8]>) {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", url()).set("message.max.bytes", "10000000");
    let producer: FutureProducer = config.create().expect("the url can be read");
    let mut record = FutureRecord::to(topic).key(key);
    if let Some(payload) = payload {
        record = record.payload(payload);
    }
    producer.send(record, Duration::from_secs(30)).await.expect("the broker stores it");
}

/// The reasons of the dead letters with the lengths of their payloads, sorted.
async fn dead(service: &Service) -> Vec<(Option<Reason>, usize)> {
    let dead = service.dead_letters("orders").expect("it is configured");
    let mut pages = dead.pages(100).await.expect("they can be read");
    let mut letters = Vec::new();
    while let Some(page) = pages.next().await.expect("they can be read") {
        letters.extend(page.into_iter().map(|letter| (letter.reason, letter.body.len())));
    }
    pages.close().await.expect("the broker answers");
    letters.sort_by_key(|(_, length)| *length);
    letters
}

#[derive(Debug, Deserialize)]
struct Order {
    id: u32,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tombstone_is_none_to_a_handler_of_options_and_what_cannot_be_decoded_a_dead_letter() {
    let topic = unique("orders");
    create(&topic, 1).await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let at = seen.clone();
    let handler = move |delivery: Delivery<Option<Order>>| {
        let key = String::from_utf8_lossy(delivery.key().unwrap_or_default()).into_owned();
        let id = delivery.payload.as_ref().map(|order| order.id);
        at.lock().expect("nobody panics in here").push((key, id));
        async { Handled::Ok(()) }
    };
    let service = Service::builder(config(&topic, "", "")).subscribe("orders", handler);
    let service = service.signals(false).start().await.expect("it starts");
    produce(&topic, "made", Some(b"{\"id\":7}")).await;
    produce(&topic, "deleted", None).await;
    produce(&topic, "empty", Some(b"")).await;
    produce(&topic, "bad", Some(b"{\"id\":\xff")).await;
    produce(&topic, "last", Some(b"{\"id\":8}")).await;
    drained(&service).await;
    let seen = seen.lock().expect("nobody panics in here").clone();
    let as_text = |(key, id): &(String, Option<u32>)| format!("{key} {id:?}");
    let seen: Vec<_> = seen.iter().map(as_text).collect();
    assert_eq!(seen, ["made Some(7)", "deleted None", "last Some(8)"]);
    let undecodable = Some(Reason::Undecodable);
    assert_eq!(dead(&service).await, [(undecodable, 0), (undecodable, 7)]);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tombstone_is_undecodable_to_a_handler_that_wants_a_value() {
    let topic = unique("orders");
    create(&topic, 1).await;
    let handler = |_: Delivery<Order>| async { Handled::Ok(()) };
    let service = Service::builder(config(&topic, "", "")).subscribe("orders", handler);
    let service = service.signals(false).start().await.expect("it starts");
    produce(&topic, "deleted", None).await;
    drained(&service).await;
    assert_eq!(dead(&service).await, [(Some(Reason::Undecodable), 0)]);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_largest_record_that_the_topic_takes_can_wait_and_be_a_dead_letter() {
    let topic = unique("orders");
    create(&topic, 1).await;
    let handler = |delivery: Delivery<String>| async move {
        match delivery.attempt() {
            1 => Err(Failure::retry("once more")),
            _ => Handled::Err(Failure::reject("no")),
        }
    };
    let retry = "backoff = \"fixed\"\njitter = \"none\"\ndelay_min = \"1500ms\"\n";
    let config = config(&topic, "body_max = \"1100KiB\"", retry);
    let service = Service::builder(config).subscribe("orders", handler).signals(false);
    let service = service.start().await.expect("it starts");
    // A little below the 1,048,588 bytes that a topic takes with the batch around it, more than a client sends.
    let largest = format!("\"{}\"", "x".repeat(1_048_400));
    produce(&topic, "largest", Some(largest.as_bytes())).await;
    drained(&service).await;
    assert_eq!(dead(&service).await, [(Some(Reason::Rejected), largest.len())]);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_larger_than_the_subscription_takes_is_a_dead_letter() {
    let topic = unique("orders");
    create(&topic, 1).await;
    let handler = |_: Delivery<String>| async { Handled::Ok(()) };
    let config = config(&topic, "body_max = \"1KiB\"", "");
    let service = Service::builder(config).subscribe("orders", handler).signals(false);
    let service = service.start().await.expect("it starts");
    let large = format!("\"{}\"", "x".repeat(2_000));
    produce(&topic, "large", Some(large.as_bytes())).await;
    produce(&topic, "small", Some(b"\"x\"")).await;
    drained(&service).await;
    assert_eq!(dead(&service).await, [(Some(Reason::TooLarge), large.len())]);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_header_whose_name_nobody_can_read_stops_nothing_and_a_copy_says_that_it_lacks_it() {
    let topic = unique("orders");
    create(&topic, 1).await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let at = seen.clone();
    let handler = move |delivery: Delivery<String>| {
        let tenant = format!("{:?}", delivery.header("tenant"));
        at.lock().expect("nobody panics in here").push((delivery.payload.clone(), tenant));
        async move {
            match (delivery.payload.as_str(), delivery.attempt()) {
                ("odd", 1) => Err(Failure::retry("once more")),
                ("odd", _) => Err(Failure::reject("no")),
                _ => Handled::Ok(()),
            }
        }
    };
    let retry = "backoff = \"fixed\"\njitter = \"none\"\ndelay_min = \"1500ms\"\n";
    let service = Service::builder(config(&topic, "", retry)).subscribe("orders", handler);
    let service = service.signals(false).start().await.expect("it starts");
    let headers: [(&[u8], &[u8]); 3] = [(b"one", b"1"), (b"\xffname", b"x"), (b"tenant", b"acme")];
    let to = topic.clone();
    let sent = tokio::task::spawn_blocking(move || raw::produce(&to, b"\"odd\"", &headers));
    sent.await.expect("it is stored");
    produce(&topic, "good", Some(b"\"good\"")).await;
    drained(&service).await;
    let mut seen = seen.lock().expect("nobody panics in here").clone();
    seen.sort();
    let acme = "Some(Text(\"acme\"))".to_owned();
    let odd = ("odd".to_owned(), acme);
    assert_eq!(seen, [("good".to_owned(), "None".to_owned()), odd.clone(), odd]);
    let letters = service.dead_letters("orders").expect("it is configured");
    let mut pages = letters.pages(10).await.expect("they can be read");
    let page = pages.next().await.expect("they can be read").expect("it is there");
    pages.close().await.expect("the broker answers");
    let has = |name: &str, value: &str| page[0].headers.contains(&(name.into(), value.into()));
    assert!(has("one", "1") && has("tenant", "acme"), "{:?}", page[0].headers);
    assert!(has("redeliver-original-unread", "1"), "{:?}", page[0].headers);
    service.stop().await;
}
