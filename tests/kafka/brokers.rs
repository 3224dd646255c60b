//! Brokers that go away and come back, alone and among three.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use redeliver::config::Config;
use redeliver::{Delivery, Failure, Handled, Message, Publisher, Service};

use super::nodes::Node;
use super::service::{Seen, drained, until};

/// A service that lets every seventh fail once, and what it saw.
async fn consume(url: &str, keys: &str) -> (Service, Seen) {
    let text = format!(
        "[brokers.main]\nkind = \"kafka\"\nurl = \"{url}\"\n{keys}\n[subscriptions.orders]\nbroker = \"main\"\ntopics = [\"orders\"]\ngroup = \"billing\"\n[retry.standard]\nbackoff = \"fixed\"\njitter = \"none\"\ndelay_min = \"2s\"\n"
    );
    let seen = Seen::default();
    let at = seen.clone();
    let handler = move |delivery: Delivery<u32>| {
        let at = at.clone();
        async move {
            tokio::time::sleep(Duration::from_millis(5)).await;
            at.note(&delivery.payload.to_string());
            match (delivery.payload % 7, delivery.attempt()) {
                (0, 1) => Err(Failure::retry("not yet")),
                _ => Handled::Ok(()),
            }
        }
    };
    let config = Config::from_toml(&text).unwrap_or_else(|problems| panic!("{problems}"));
    let service = Service::builder(config).subscribe("orders", handler).signals(false);
    (service.start().await.expect("it starts"), seen)
}

/// Publishes numbers until it is told to stop, each again until it is confirmed; how many there were.
async fn load(publisher: Publisher, stop: Arc<AtomicBool>) -> u32 {
    let mut number = 0_u32;
    while !stop.load(Ordering::Relaxed) {
        let message = || Message::json(&number).expect("a number is JSON").to_topic("orders");
        while publisher.send(message().id(number.to_string())).await.is_err() {}
        number += 1;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    number
}

/// A client of these brokers, which have a topic `orders` from now on.
pub(crate) async fn create(
    url: &str,
    partitions: i32,
    replicas: i32,
) -> AdminClient<DefaultClientContext> {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", url).create().expect("a client");
    until("the brokers are there", async || {
        let known = admin.inner().fetch_metadata(None, Duration::from_secs(10));
        known.is_ok_and(|known| known.brokers().len() >= replicas as usize)
    })
    .await;
    let topic = NewTopic::new("orders", partitions, TopicReplication::Fixed(replicas));
    let created = admin.create_topics([&topic], &AdminOptions::new()).await;
    created.expect("the broker answers").remove(0).expect("the topic is created");
    until("it has leaders", async || leader(&admin).is_some()).await;
    admin
}

/// The port that the leader of the first partition listens on.
fn leader(admin: &AdminClient<DefaultClientContext>) -> Option<i32> {
    let known = admin.inner().fetch_metadata(Some("orders"), Duration::from_secs(10)).ok()?;
    let partitions = known.topics().first()?.partitions();
    let first = partitions.iter().find(|partition| partition.id() == 0)?.leader();
    let brokers = known.brokers().iter();
    partitions.iter().all(|partition| partition.leader() >= 0).then_some(())?;
    brokers.into_iter().find(|broker| broker.id() == first).map(|broker| broker.port())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_killed_and_started_again_loses_nothing() {
    let node = tokio::task::block_in_place(|| Node::start("restarted"));
    create(&node.url, 3, 1).await;
    let (service, seen) = consume(&node.url, "").await;
    let stop = Arc::new(AtomicBool::new(false));
    let publisher = service.publisher("main").expect("it is configured");
    let publishing = tokio::spawn(load(publisher, stop.clone()));
    tokio::time::sleep(Duration::from_secs(2)).await;
    tokio::task::block_in_place(|| node.kill());
    until("the loss is seen", async || !service.health().ready).await;
    tokio::task::block_in_place(|| node.start_again());
    tokio::time::sleep(Duration::from_secs(3)).await;
    stop.store(true, Ordering::Relaxed);
    assert_nothing_lost(&service, &seen, publishing.await.expect("it publishes")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_brokers_lose_nothing_when_the_leader_is_killed_and_consuming_goes_on() {
    let nodes = tokio::task::block_in_place(Node::cluster);
    let url = nodes.iter().map(|node| node.url.clone()).collect::<Vec<_>>().join(",");
    let admin = create(&url, 6, 3).await;
    let (service, seen) = consume(&url, "replication_min = 3\nin_sync_min = 2").await;
    let stop = Arc::new(AtomicBool::new(false));
    let publisher = service.publisher("main").expect("it is configured");
    let publishing = tokio::spawn(load(publisher, stop.clone()));
    until("it consumes", async || seen.len() > 100).await;
    let port = leader(&admin).expect("it has one").to_string();
    let led = nodes.iter().find(|node| node.url.ends_with(&format!(":{port}")));
    let led = led.expect("it is one of ours");
    tokio::task::block_in_place(|| led.kill());
    let before = seen.len();
    until("it consumes without it", async || seen.len() > before + 300).await;
    tokio::task::block_in_place(|| led.start_again());
    let before = seen.len();
    until("it consumes with it", async || seen.len() > before + 100).await;
    stop.store(true, Ordering::Relaxed);
    assert_nothing_lost(&service, &seen, publishing.await.expect("it publishes")).await;
}

async fn assert_nothing_lost(service: &Service, seen: &Seen, count: u32) {
    until("everything was handled", async || seen.len() == count as usize).await;
    drained(service).await;
    until("it is healthy again", async || service.health().ready).await;
    assert!((0..count).step_by(7).all(|number| seen.attempts(&number.to_string()) >= 2));
    let depth = service.depth("orders").await.expect("the broker answers");
    assert_eq!(depth.dead, Some(0));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_takes_no_text_beside_an_offset_is_consumed_from_all_the_same() {
    let node = Node::configured("texts", "offset.metadata.max.bytes=30\n");
    drop(create(&node.url, 2, 1).await);
    let (service, seen) = consume(&node.url, "").await;
    let publisher = service.publisher("main").expect("it is configured");
    for number in 1..7_u32 {
        let message = Message::json(&number).expect("a number is JSON").to_topic("orders");
        publisher.send(message.key(number.to_string())).await.expect("it is stored");
    }
    drained(&service).await;
    assert_eq!(seen.len(), 6, "the first batch is handed out when it is recorded");
    assert_eq!(service.stop().await.left, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_letter_topic_is_made_by_us_where_the_broker_would_make_it_too() {
    let node = Node::configured("makes", "auto.create.topics.enable=true\n");
    let admin = create(&node.url, 2, 1).await;
    let text = format!(
        "[brokers.main]\nkind = \"kafka\"\nurl = \"{}\"\n[subscriptions.orders]\nbroker = \"main\"\npattern = \"^orders\"\ngroup = \"billing\"\n",
        node.url
    );
    let config = Config::from_toml(&text).unwrap_or_else(|problems| panic!("{problems}"));
    let handler = |_: Delivery<u32>| async { Handled::Err(Failure::reject("no")) };
    let service = Service::builder(config).subscribe("orders", handler).signals(false);
    let service = service.start().await.expect("it starts");
    let publisher = service.publisher("main").expect("it is configured");
    let message = Message::json(&7_u32).expect("a number is JSON").to_topic("orders");
    publisher.send(message).await.expect("it is stored");
    until("it is a dead letter", async || {
        service.depth("orders").await.is_ok_and(|depth| depth.dead == Some(1))
    })
    .await;
    let dead = ResourceSpecifier::Topic("orders.billing.dead");
    let described = admin.describe_configs([&dead], &AdminOptions::new()).await;
    let described = described.expect("the broker answers").remove(0).expect("it is there");
    let kept = described.get("retention.ms").and_then(|entry| entry.value.clone());
    assert_eq!(kept.as_deref(), Some("-1"), "kept until somebody decides");
    service.stop().await;
}
