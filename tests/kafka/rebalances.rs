//! Members that come and go: in order, by death, and frozen until the group has given them up.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{ClientConfig, TopicPartitionList};
use redeliver::config::Config;
use redeliver::{Delivery, Handled, Message, Publisher, Service};

use super::lab::{create, unique, url};
use super::process::{Process, Stage};
use super::service::{Seen, until};

const PARTITIONS: i32 = 6;

/// Where members die: how many messages of a partition are handled at a time, and for how many milliseconds each.
const IN_FLIGHT_MAX: u32 = 4;
const HANDLER: u64 = 20;
/// In milliseconds.
const COMMIT_INTERVAL: u64 = 100;
/// How often such a commit may be made, at the least, in milliseconds: it takes a while itself on a busy machine.
const COMMITTED_AFTER: u64 = 2 * COMMIT_INTERVAL;
/// What the death of a member of all partitions may repeat: what was in flight, and what can have been finished since
/// its last commit.
const REPEATED_MAX: u32 =
    PARTITIONS.cast_unsigned() * IN_FLIGHT_MAX * (1 + (COMMITTED_AFTER / HANDLER) as u32);

fn config(topic: &str, properties: &str, subscription: &str) -> String {
    format!(
        "[brokers.main]\nkind = \"kafka\"\nurl = \"{}\"\n[brokers.main.properties]\n{properties}\n[subscriptions.orders]\nbroker = \"main\"\ntopics = [\"{topic}\"]\ngroup = \"g-{topic}\"\n{subscription}",
        url()
    )
}

fn is_full() -> bool {
    std::env::var_os("REDELIVER_TEST_FULL").is_some()
}

/// Publishes numbers until it is told to stop; how many there were.
async fn load(publisher: Publisher, topic: String, pause: Duration, stop: Arc<AtomicBool>) -> u32 {
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        let messages = (number..number + 8).map(|number| {
            let message = Message::json(&number.to_string()).expect("text is JSON");
            let message = message.to_topic(&topic).key(format!("key-{}", number % 101));
            publisher.send(message.id(number.to_string()))
        });
        for sent in futures_util::future::join_all(messages).await {
            sent.expect("the broker stores it");
        }
        number += 8;
        tokio::time::sleep(pause).await;
    }
    number
}

async fn publisher(topic: &str) -> (Service, Publisher) {
    let text = format!("[brokers.main]\nkind = \"kafka\"\nurl = \"{}\"", url());
    let config = Config::from_toml(&text).unwrap_or_else(|problems| panic!("{problems}"));
    let service = Service::builder(config).signals(false).start().await.expect("it starts");
    let publisher = service.publisher("main").expect("it is configured");
    let _ = topic;
    (service, publisher)
}

/// Follows the committed offsets of a group, which must never go back.
fn watch(topic: String, stop: Arc<AtomicBool>) -> std::thread::JoinHandle<usize> {
    std::thread::spawn(move || {
        let asker: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", url())
            .set("group.id", format!("g-{topic}"))
            .create()
            .expect("the url can be read");
        let mut last = BTreeMap::new();
        let mut looks = 0;
        while !stop.load(Ordering::Relaxed) {
            let mut list = TopicPartitionList::new();
            list.add_partition_range(&topic, 0, PARTITIONS - 1);
            if let Ok(list) = asker.committed_offsets(list, Duration::from_secs(5)) {
                for elem in list.elements() {
                    let now = elem.offset().to_raw().unwrap_or(-1);
                    let before = last.insert(elem.partition(), now).unwrap_or(-1001);
                    assert!(now >= before, "{} went back from {before} to {now}", elem.partition());
                }
                looks += 1;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        looks
    })
}

/// One that notes what it handles.
async fn member(topic: &str, properties: &str, seen: &Seen) -> Service {
    let seen = seen.clone();
    let handler = move |delivery: Delivery<String>| {
        let seen = seen.clone();
        async move {
            tokio::time::sleep(Duration::from_millis(20)).await;
            seen.note(&delivery.payload);
            Handled::Ok(())
        }
    };
    let subscription = "commit_interval = \"200ms\"\nin_flight_max = 16\n";
    let text = config(topic, properties, subscription);
    let config = Config::from_toml(&text).expect("it is right");
    let builder = Service::builder(config).subscribe("orders", handler).signals(false);
    builder.start().await.expect("it starts")
}

async fn clean_moves(properties: &str, rounds: usize) {
    let topic = unique("orders");
    create(&topic, PARTITIONS).await;
    let seen = Seen::default();
    let (_service, publisher) = publisher(&topic).await;
    let member = || member(&topic, properties, &seen);
    let stop = Arc::new(AtomicBool::new(false));
    let watched = watch(topic.clone(), stop.clone());
    let first = member().await;
    let publishing = load(publisher, topic.clone(), Duration::from_millis(10), stop.clone());
    let publishing = tokio::spawn(publishing);
    for _ in 0..rounds {
        let second = member().await;
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(second.stop().await.left, 0);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    stop.store(true, Ordering::Relaxed);
    let count = publishing.await.expect("it publishes");
    until("everything was handled", async || seen.len() == count as usize).await;
    assert!(watched.join().expect("offsets never go back") > 10);
    let twice = (0..count).filter(|number| seen.attempts(&number.to_string()) > 1).count();
    assert_eq!(twice, 0, "of {count} messages so many were handled twice");
    assert_eq!(first.stop().await.left, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clean_moves_repeat_nothing_when_only_what_moves_stops() {
    clean_moves("", if is_full() { 30 } else { 2 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clean_moves_repeat_nothing_when_everything_stops() {
    let eager = "\"partition.assignment.strategy\" = \"range\"";
    clean_moves(eager, if is_full() { 30 } else { 2 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clean_moves_repeat_nothing_under_the_new_protocol() {
    clean_moves("\"group.protocol\" = \"consumer\"", if is_full() { 30 } else { 2 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn suspects_are_handled_when_their_partition_comes_back() {
    let topic = unique("orders");
    create(&topic, PARTITIONS).await;
    let seen = Seen::default();
    let (_service, publisher) = publisher(&topic).await;
    // So that whoever comes or goes, all partitions are taken from everybody and dealt anew.
    let eager = "\"partition.assignment.strategy\" = \"range\"";
    let first = member(&topic, eager, &seen).await;
    for round in 0..3 {
        let second = member(&topic, eager, &seen).await;
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(second.stop().await.left, 0);
        let id = format!("suspect-{round}");
        let message = Message::json(&id).expect("text is JSON").id(id.clone());
        let suspects = format!("{topic}.g-{topic}.suspects");
        publisher.send(message.to_topic(&suspects)).await.expect("the broker stores it");
        until("the suspect was handled", async || seen.attempts(&id) == 1).await;
    }
    assert_eq!(first.stop().await.left, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_that_die_or_freeze_lose_nothing_and_repeat_little() {
    let rounds = if is_full() { 100 } else { 8 };
    let topic = unique("orders");
    create(&topic, PARTITIONS).await;
    let (_service, publisher) = publisher(&topic).await;
    let session = "\"session.timeout.ms\" = 6000\n\"heartbeat.interval.ms\" = 500";
    let subscription =
        format!("commit_interval = \"{COMMIT_INTERVAL}ms\"\nin_flight_max = {IN_FLIGHT_MAX}\n");
    let stage = Stage::new(config(&topic, session, &subscription), HANDLER, None);
    let stop = Arc::new(AtomicBool::new(false));
    let watched = watch(topic.clone(), stop.clone());
    let mut members: Vec<Process> = vec![stage.start(), stage.start()];
    let publishing = load(publisher, topic.clone(), Duration::from_millis(20), stop.clone());
    let publishing = tokio::spawn(publishing);
    let (mut deaths, mut frozen) = (0, 0);
    for round in 0..rounds {
        match round % 4 {
            0 => members.push(stage.start()),
            1 => {
                members.remove(0).kill();
                deaths += 1;
            }
            2 => members.remove(0).stop().await,
            _ => {
                members.push(stage.start());
                members[0].signal("-STOP");
                tokio::time::sleep(Duration::from_secs(9)).await;
                members[0].signal("-CONT");
                frozen += 1;
            }
        }
        tokio::time::sleep(Duration::from_millis(1500)).await;
    }
    stop.store(true, Ordering::Relaxed);
    let count = publishing.await.expect("it publishes");
    let counted = || {
        let mut seen: BTreeMap<String, u32> = BTreeMap::new();
        stage.effects().into_iter().for_each(|effect| *seen.entry(effect).or_default() += 1);
        seen
    };
    until("everything was handled", async || counted().len() == count as usize).await;
    assert!(watched.join().expect("offsets never go back") > 10);
    let repeated: u32 = counted().values().map(|times| times - 1).sum();
    assert!(repeated <= (deaths + frozen) * REPEATED_MAX, "{repeated} of {count} were repeated");
    println!("{count} messages, {deaths} deaths, {frozen} freezes: {repeated} repeated");
    for member in members {
        member.stop().await;
    }
}
