//! Order by key where it is hard: many keys, some of them hot, failures, and partitions that move.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::{ClientConfig, TopicPartitionList};
use redeliver::config::Config;
use redeliver::{Delivery, Failure, Handled, Service};

use super::lab::{create, unique, url};
use super::process::Stage;
use super::service::{drained, until};

/// The numbers that had an effect, by key, in the order of their effects.
type Effects = Arc<Mutex<BTreeMap<String, Vec<u32>>>>;

/// Every other message has a key of its own; the others draw one of those by Zipf's law.
fn keys(count: u32) -> impl Iterator<Item = String> {
    let mut random = fastrand::Rng::with_seed(7);
    let distinct = f64::from(count / 2);
    (0..count).map(move |number| match number % 2 {
        0 => format!("key-{}", number / 2),
        // The inverse of the distribution with exponent 1.
        _ => format!("key-{}", distinct.powf(random.f64()) as u32 - 1),
    })
}

/// In order by key, which futures that are sent at once would not promise.
async fn publish(topic: &str, count: u32) {
    let producer: FutureProducer = ClientConfig::new()
        .set("bootstrap.servers", url())
        .set("enable.idempotence", "true")
        .create()
        .expect("the url can be read");
    let mut confirms = Vec::new();
    for (number, key) in keys(count).enumerate() {
        let body = number.to_string();
        let record = FutureRecord::to(topic).key(&key).payload(&body);
        confirms
            .push(producer.send_result(record).map_err(|(error, _)| error).expect("it is sent"));
        if confirms.len() == 10_000 {
            for confirm in confirms.drain(..) {
                confirm.await.expect("it is answered").expect("it is stored");
            }
        }
    }
    for confirm in confirms {
        confirm.await.expect("it is answered").expect("it is stored");
    }
}

async fn member(topic: &str, effects: &Effects) -> Service {
    let text = format!(
        "[brokers.main]\nkind = \"kafka\"\nurl = \"{}\"\n[subscriptions.orders]\nbroker = \"main\"\ntopics = [\"{topic}\"]\n\
         group = \"g-{topic}\"\nordering = \"key\"\norder_wait_max = \"5m\"\norder_on_long_wait = \"dead-letter\"\n\
         [retry.standard]\nbackoff = \"fixed\"\njitter = \"none\"\ndelay_min = \"20ms\"\n",
        url()
    );
    let effects = Arc::clone(effects);
    let handler = move |delivery: Delivery<u32>| {
        let effects = Arc::clone(&effects);
        async move {
            tokio::time::sleep(Duration::from_millis(u64::from(delivery.payload % 3))).await;
            if delivery.payload % 10 == 3 && delivery.attempt() == 1 {
                return Err(Failure::retry("not yet"));
            }
            let key = String::from_utf8_lossy(delivery.key().unwrap_or_default()).into_owned();
            let mut effects = effects.lock().expect("no handler panics in here");
            effects.entry(key).or_default().push(delivery.payload);
            Handled::Ok(())
        }
    };
    let config = Config::from_toml(&text).unwrap_or_else(|problems| panic!("{problems}"));
    let builder = Service::builder(config).subscribe("orders", handler).signals(false);
    builder.start().await.expect("it starts")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_of_many_keys_keeps_its_order_over_failures_and_moves() {
    let is_full = std::env::var_os("REDELIVER_TEST_FULL").is_some();
    // 10^5 distinct keys, and as many messages more.
    let count = if is_full { 200_000 } else { 6_000 };
    let topic = unique("orders");
    create(&topic, 6).await;
    let effects = Effects::default();
    let first = member(&topic, &effects).await;
    publish(&topic, count).await;
    let handled = || {
        let effects = effects.lock().expect("no handler panics in here");
        effects.values().map(|numbers| numbers.iter().collect::<BTreeSet<_>>().len()).sum::<usize>()
    };
    until("it is on the way", async || handled() >= count as usize / 10).await;
    let second = member(&topic, &effects).await;
    until("partitions have moved", async || {
        !second.health().subscriptions["orders"].lanes.is_empty()
    })
    .await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(second.stop().await.left, 0);
    while handled() < count as usize {
        let before = handled();
        until("more are handled", async || handled() > before).await;
    }
    drained(&first).await;
    assert_eq!(handled(), count as usize, "each has its effect");
    let effects = effects.lock().expect("no handler panics in here").clone();
    for (key, numbers) in effects {
        let mut known = BTreeSet::new();
        let first_ones: Vec<_> = numbers.iter().filter(|number| known.insert(**number)).collect();
        assert!(first_ones.is_sorted(), "{key}: {numbers:?}");
    }
    assert_eq!(first.stop().await.left, 0);
}

/// A subscription in order by key, for processes that are killed.
fn mortal(topic: &str) -> String {
    format!(
        "[brokers.main]\nkind = \"kafka\"\nurl = \"{}\"\n[subscriptions.orders]\nbroker = \"main\"\ntopics = [\"{topic}\"]\n\
         group = \"g-{topic}\"\nordering = \"key\"\norder_wait_max = \"5m\"\norder_on_long_wait = \"dead-letter\"\n\
         commit_interval = \"100ms\"\ncrashes_max = 100\n[brokers.main.properties]\n\"session.timeout.ms\" = 6000\n\
         \"heartbeat.interval.ms\" = 500\n",
        url()
    )
}

/// Writes `KEY-NUMBER MILLISECONDS` for each key in turn, in order.
async fn publish_in_turn(topic: &str, keys: &[&str], count: u32, wait: impl Fn(&str, u32) -> u32) {
    let producer: FutureProducer = ClientConfig::new()
        .set("bootstrap.servers", url())
        .set("enable.idempotence", "true")
        .create()
        .expect("the url can be read");
    for number in 0..count {
        for key in keys {
            let body = format!("\"{key}-{number} {}\"", wait(key, number));
            let record = FutureRecord::to(topic).key(*key).payload(&body);
            producer.send(record, Duration::from_secs(30)).await.expect("it is stored");
        }
    }
}

/// What is committed of the only partition of a topic.
fn committed_offset(topic: &str) -> Option<i64> {
    let asker: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", url())
        .set("group.id", format!("g-{topic}"))
        .create()
        .expect("the url can be read");
    let mut list = TopicPartitionList::new();
    list.add_partition(topic, 0);
    let committed = asker.committed_offsets(list, Duration::from_secs(30));
    committed.expect("the broker answers").elements()[0].offset().to_raw()
}

/// The effects of `KEY-NUMBER MILLISECONDS`: key, number, and the rest of the line.
fn parsed(effect: &str) -> (String, u32, String) {
    let (name, rest) = effect.split_once(' ').expect("a name and a wait");
    let (key, number) = name.split_once('-').expect("a key and a number");
    (key.to_owned(), number.parse().expect("a number"), rest.to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_owner_begins_with_the_head_that_a_killed_one_was_waiting_over() {
    let topic = unique("orders");
    create(&topic, 1).await;
    // The first of `a` and `b` fails and waits for longer than its process lives; `c` goes on.
    let waits = |key: &str, number: u32| if key != "c" && number == 0 { 200_000 } else { 0 };
    publish_in_turn(&topic, &["a", "b", "c"], 10, waits).await;
    let mut stage = Stage::new(mortal(&topic), 0, None);
    stage.role.retries = true;
    let child = stage.start();
    // Two heads once, and the others twice each.
    until("the others are handled", async || stage.effects().len() >= 2 + 20).await;
    // Ten commit intervals.
    tokio::time::sleep(Duration::from_secs(1)).await;
    child.kill();
    let before: Vec<_> = stage.effects().iter().map(|effect| parsed(effect)).collect();
    assert_eq!(before.len(), 22, "nothing overtakes a head: {before:?}");
    assert!(before.iter().all(|(key, number, _)| key == "c" || *number == 0), "{before:?}");
    assert_eq!(committed_offset(&topic), Some(0), "the first head's offset is unfinished");
    stage.role.retries = false;
    let child = stage.start();
    until("the rest is handled", async || stage.effects().len() >= 22 + 20).await;
    child.stop().await;
    for key in ["a", "b"] {
        let after = stage.effects();
        let after = after[22..].iter().map(|effect| parsed(effect));
        let numbers: Vec<u32> =
            after.filter(|(of, ..)| of == key).map(|(_, number, _)| number).collect();
        assert_eq!(numbers, (0..10).collect::<Vec<_>>(), "{key}: from its head on");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_key_keeps_its_order_over_kills() {
    let topic = unique("orders");
    create(&topic, 2).await;
    let keys = ["a", "b", "c", "d", "e", "f"];
    // Each fails once, and waits in the process.
    publish_in_turn(&topic, &keys, 40, |_, number| number % 3 * 20).await;
    let mut stage = Stage::new(mortal(&topic), 5, None);
    stage.role.retries = true;
    // The second attempt has the effect.
    let first_effects = || {
        let mut known = BTreeSet::new();
        let effects = stage.effects().into_iter().map(|effect| parsed(&effect));
        let had = effects.filter(|(.., rest)| rest.split(' ').nth(1) == Some("2"));
        let had = had.map(|(key, number, _)| (key, number));
        had.filter(|one| known.insert(one.clone())).collect::<Vec<_>>()
    };
    let mut child = stage.start();
    for kill in 1..=3 {
        until("it is under way", async || first_effects().len() >= kill * 50).await;
        child.kill();
        child = stage.start();
    }
    until("all are handled", async || first_effects().len() == keys.len() * 40).await;
    child.stop().await;
    for key in keys {
        let effects = first_effects();
        let of_key = effects.iter().filter(|(of, _)| of == key).map(|(_, number)| *number);
        assert_eq!(of_key.collect::<Vec<_>>(), (0..40).collect::<Vec<_>>(), "{key}");
    }
}
