//! Order per key on RabbitMQ, over failures and deferrals.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use redeliver::{Delivery, Failure, Handled, Service};
use serde_json::{Value, json};

use crate::lab::{Lab, Log, SHORT_WAITS};

const ORDERED: &str = "ordering = \"key\"\nkey = \"/key\"\norder_on_long_wait = \"dead-letter\"\n\
     idempotency = { store = \"main\" }";

/// Sixty messages over six keys; each seventh fails once, each eleventh defers once.
async fn publish(lab: &Lab, service: &Service) {
    for number in 0..60u32 {
        let payload = json!({ "key": number % 6, "number": number });
        lab.send(service, &format!("{number:02}"), payload).await;
    }
}

async fn run(lab: &Lab, service: &Service, log: &Log) {
    publish(lab, service).await;
    lab.drained(service).await;
    let ids = log.ids();
    let worked: BTreeSet<&String> = ids.iter().collect();
    assert_eq!(worked.len(), 60);
    for key in 0..6u32 {
        let of_key: Vec<&String> =
            ids.iter().filter(|id| id.parse::<u32>().is_ok_and(|id| id % 6 == key)).collect();
        assert!(of_key.is_sorted(), "key {key}: {of_key:?}");
    }
    assert!(!ids.is_sorted(), "keys went on beside one another");
}

async fn check(keys: &str) {
    let (lab, log) = (Lab::new(), Log::default());
    let (noting, deferred) = (log.clone(), Arc::new(Mutex::new(BTreeSet::new())));
    let handler = move |delivery: Delivery<Value>| {
        let (noting, deferred) = (noting.clone(), Arc::clone(&deferred));
        async move {
            tokio::time::sleep(Duration::from_millis(3)).await;
            noting.note(&delivery);
            let number = delivery.payload["number"].as_u64().unwrap_or_default();
            if number.is_multiple_of(7) && delivery.attempt() == 1 {
                return Handled::Err(Failure::retry("not yet"));
            }
            if number.is_multiple_of(11) && deferred.lock().expect("no panic").insert(number) {
                return Err(Failure::defer(Duration::from_millis(300), "not now"));
            }
            Ok(())
        }
    };
    let service = lab.start(&lab.toml(&format!("{ORDERED}\n{keys}"), SHORT_WAITS), handler).await;
    run(&lab, &service, &log).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_active_consumer_keeps_the_order_of_each_key_over_failures_and_deferrals() {
    check("").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_process_keeps_the_order_of_each_key_on_a_queue_without_a_single_active_consumer() {
    check("order_scope = \"process\"").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_process_stands_by_while_one_keeps_the_order() {
    let (lab, log) = (Lab::new(), Log::default());
    let handler = || {
        let noting = log.clone();
        move |delivery: Delivery<Value>| {
            noting.note(&delivery);
            async { Handled::Ok(()) }
        }
    };
    let toml = lab.toml(ORDERED, SHORT_WAITS);
    let first = lab.start(&toml, handler()).await;
    let second = lab.start(&toml, handler()).await;
    publish(&lab, &first).await;
    lab.eventually("all of them", async || log.len() >= 60).await;
    assert_eq!(log.len(), 60);
    for key in 0..6u32 {
        let ids = log.ids();
        let of_key = ids.iter().filter(|id| id.parse::<u32>().is_ok_and(|id| id % 6 == key));
        assert!(of_key.is_sorted(), "key {key}");
    }
    first.stop().await;
    second.stop().await;
}
