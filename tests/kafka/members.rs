//! Static membership: a member that is away for a moment keeps its partitions.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use redeliver::config::Config;
use redeliver::{Delivery, Handled, Message, Service};

use super::lab::{create, unique, url};
use super::service::{Seen, drained, until};

const PARTITIONS: i32 = 6;

/// A member with a name of its own, that is given up only after a minute.
async fn member(topic: &str, name: &str, seen: &Seen) -> Service {
    let text = format!(
        "[brokers.main]\nkind = \"kafka\"\nurl = \"{}\"\n[brokers.main.properties]\n\"group.instance.id\" = \"{name}\"\n\
         \"session.timeout.ms\" = 60000\n[subscriptions.orders]\nbroker = \"main\"\ntopics = [\"{topic}\"]\n\
         group = \"g-{topic}\"\ncommit_interval = \"100ms\"\n",
        url()
    );
    let at = seen.clone();
    let handler = move |delivery: Delivery<String>| {
        at.note(&delivery.payload);
        async { Handled::Ok(()) }
    };
    let config = Config::from_toml(&text).unwrap_or_else(|problems| panic!("{problems}"));
    let builder = Service::builder(config).subscribe("orders", handler).signals(false);
    builder.start().await.expect("it starts")
}

/// The partitions of the source that it has.
fn lanes(service: &Service, topic: &str) -> BTreeSet<String> {
    let health = service.health();
    let lanes = health.subscriptions["orders"].lanes.keys();
    lanes.filter(|lane| lane.starts_with(&format!("{topic}/"))).cloned().collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_named_member_that_is_away_for_a_moment_keeps_its_partitions() {
    let topic = unique("orders");
    create(&topic, PARTITIONS).await;
    let seen = Seen::default();
    let first = member(&topic, "first", &seen).await;
    let second = member(&topic, "second", &seen).await;
    until("both have half of it", async || {
        [&first, &second].iter().all(|it| lanes(it, &topic).len() == PARTITIONS as usize / 2)
    })
    .await;
    let (of_first, of_second) = (lanes(&first, &topic), lanes(&second, &topic));
    let moved = Arc::new(AtomicBool::new(false));
    let watch = {
        let (moved, second, topic) = (moved.clone(), second.clone(), topic.clone());
        let of_second = of_second.clone();
        tokio::spawn(async move {
            loop {
                moved.fetch_or(lanes(&second, &topic) != of_second, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
    };
    let publisher = second.publisher("main").expect("it is configured");
    let publish = async |from: u32| {
        for number in from..from + 60 {
            let message = Message::json(&number.to_string()).expect("text is JSON");
            let message = message.to_topic(&topic).key(format!("key-{number}"));
            publisher.send(message.id(number.to_string())).await.expect("it is confirmed");
        }
    };
    publish(0).await;
    until("they are handled", async || seen.len() == 60).await;
    assert_eq!(first.stop().await.left, 0);
    publish(60).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(seen.len() < 120, "what is the first one's waits for it");
    let first = member(&topic, "first", &seen).await;
    until("all are handled", async || seen.len() == 120).await;
    drained(&first).await;
    watch.abort();
    assert!(!moved.load(Ordering::Relaxed), "the other member kept its partitions all along");
    assert_eq!(lanes(&first, &topic), of_first);
    assert!((0..120).all(|number| seen.attempts(&number.to_string()) == 1), "none is repeated");
    assert_eq!(first.stop().await.left + second.stop().await.left, 0);
}
