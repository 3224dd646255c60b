//! Order by key where it is hard: many keys, some of them hot, failures, and partitions that move.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::producer::{FutureProducer, FutureRecord};
use redeliver::config::Config;
use redeliver::{Delivery, Failure, Handled, Service};

use super::lab::{create, unique, url};
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
