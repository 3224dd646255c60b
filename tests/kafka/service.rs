//! Whole services: consumed, retried, waited, dead-lettered, redriven, through the public API.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use rdkafka::ClientConfig;
use rdkafka::producer::{FutureProducer, FutureRecord};
use redeliver::config::Config;
use redeliver::{Delivery, Failure, Filter, Handled, Message, Service};

use super::lab::{committed, create, unique, url};

/// What a handler saw: each id with the moments of its attempts.
#[derive(Clone, Default)]
pub(crate) struct Seen(Arc<Mutex<BTreeMap<String, Vec<Instant>>>>);

impl Seen {
    pub(crate) fn note(&self, id: &str) {
        let mut seen = self.0.lock().expect("no handler panics in here");
        seen.entry(id.to_owned()).or_default().push(Instant::now());
    }

    pub(crate) fn attempts(&self, id: &str) -> usize {
        self.0.lock().expect("no handler panics in here").get(id).map_or(0, Vec::len)
    }

    pub(crate) fn times(&self, id: &str) -> Vec<Instant> {
        self.0.lock().expect("no handler panics in here").get(id).cloned().unwrap_or_default()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.lock().expect("no handler panics in here").len()
    }
}

/// A configuration for one topic.
pub(crate) fn config(topic: &str, subscription: &str, retry: &str) -> Config {
    let text = format!(
        "[brokers.main]\nkind = \"kafka\"\nurl = \"{}\"\n[subscriptions.orders]\nbroker = \"main\"\ntopics = [\"{topic}\"]\ngroup = \"g-{topic}\"\ncommit_interval = \"100ms\"\n{subscription}\n[retry.standard]\n{retry}",
        url()
    );
    Config::from_toml(&text).unwrap_or_else(|problems| panic!("{problems}"))
}

/// Waits until `condition` holds.
pub(crate) async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !condition().await {
        assert!(Instant::now() < deadline, "{what}: not within two minutes");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Nothing is left in the source or the waits.
pub(crate) async fn drained(service: &Service) {
    until("the topics are drained", async || {
        // A broker that is asked in the middle of an election may be late.
        let depth = service.depth("orders").await;
        depth.is_ok_and(|depth| depth.ready == Some(0) && depth.waiting == Some(0))
    })
    .await;
}

const RETRY: &str =
    "backoff = \"fixed\"\njitter = \"none\"\ndelay_min = \"1500ms\"\nattempts_max = 3\n";

/// Publishes the numbers below `count`, each with an id and a key of its own.
async fn publish(service: &Service, topic: &str, count: u32) {
    let publisher = service.publisher("main").expect("it is configured");
    for number in 0..count {
        let message = Message::json(&number.to_string()).expect("text is JSON");
        let message = message.to_topic(topic).id(format!("id-{number}")).key(format!("k{number}"));
        publisher.send(message).await.expect("the broker stores it");
    }
}

#[tokio::test]
async fn messages_are_handled_waited_for_and_dead_lettered() {
    let topic = unique("orders");
    create(&topic, 3).await;
    let seen = Seen::default();
    let at = seen.clone();
    let handler = move |delivery: Delivery<String>| {
        let at = at.clone();
        async move {
            at.note(&delivery.payload);
            let number: u32 = delivery.payload.parse().map_err(Failure::reject)?;
            match (number % 10, delivery.attempt()) {
                (0, _) => Err(Failure::reject("a round number")),
                (5, _) => Err(Failure::retry("never")),
                (3, 1) => Err(Failure::retry("not yet")),
                _ => Handled::Ok(()),
            }
        }
    };
    let service = Service::builder(config(&topic, "", RETRY)).subscribe("orders", handler);
    let service = service.signals(false).start().await.expect("it starts");
    publish(&service, &topic, 100).await;
    until("everything was handled", async || {
        seen.len() == 100 && seen.attempts("95") == 3 && seen.attempts("93") == 2
    })
    .await;
    drained(&service).await;
    for number in 0..100_u32 {
        let attempts = match number % 10 {
            5 => 3,
            3 => 2,
            _ => 1,
        };
        assert_eq!(seen.attempts(&number.to_string()), attempts, "{number}");
    }
    let times = seen.times("93");
    let waited = times[1] - times[0];
    assert!(waited >= Duration::from_millis(1500), "early: {waited:?}");
    // How late is the machine's affair, but not for as long as a lane is looked at only now and then.
    assert!(waited < Duration::from_secs(60), "late: {waited:?}");
    let depth = service.depth("orders").await.expect("the broker answers");
    assert_eq!(depth.dead, Some(20));

    // Redriven to a topic of its own: they fail again, and are dead letters again.
    let dead = service.dead_letters("orders").expect("it is configured");
    let letter = dead.show("id-95").await.expect("it can be read").expect("it is there");
    assert_eq!((letter.attempts, letter.error.as_deref()), (3, Some("never")));
    let redriven = dead.redrive(&redeliver::Redrive::default()).await.expect("it works");
    assert_eq!(redriven.moved, 20);
    until("what was redriven was handled", async || seen.attempts("95") == 6).await;
    drained(&service).await;
    assert_eq!(seen.attempts("90"), 2);
    assert_eq!(service.stop().await.left, 0);
}

#[tokio::test]
async fn a_delay_beyond_the_steps_of_the_policy_is_one_hop_through_a_wait_made_for_it() {
    let topic = unique("beyond");
    create(&topic, 2).await;
    let seen = Seen::default();
    let at = seen.clone();
    let handler = move |delivery: Delivery<String>| {
        at.note(&delivery.payload);
        async move {
            match delivery.attempt() {
                1 => Err(Failure::retry_after(Duration::from_millis(4500), "come back later")),
                _ => Handled::Ok(()),
            }
        }
    };
    let service = Service::builder(config(&topic, "", RETRY)).subscribe("orders", handler);
    let service = service.signals(false).start().await.expect("it starts");
    publish(&service, &topic, 5).await;
    until("each was tried twice", async || {
        (0..5).all(|number| seen.attempts(&number.to_string()) == 2)
    })
    .await;
    drained(&service).await;
    for number in 0..5 {
        let times = seen.times(&number.to_string());
        assert!(times[1] - times[0] >= Duration::from_secs(5), "in the wait of 5 s: {times:?}");
    }
    let waited = |milliseconds: u32| {
        let wait = format!("{topic}.g-{topic}.wait.{milliseconds}");
        tokio::task::spawn_blocking(move || committed(&wait).len())
    };
    assert_eq!(waited(5000).await.expect("it is read"), 5, "one hop each");
    assert_eq!(waited(1500).await.expect("it is read"), 0, "and none through the policy's own");
    assert_eq!(service.stop().await.left, 0);
}

#[tokio::test]
async fn readers_of_one_process_take_turns_and_none_undoes_what_another_removed() {
    let topic = unique("orders");
    create(&topic, 1).await;
    let never = |_: Delivery<String>| async { Handled::Err(Failure::reject("never")) };
    let builder = Service::builder(config(&topic, "", RETRY)).subscribe("orders", never);
    let service = builder.signals(false).start().await.expect("it starts");
    publish(&service, &topic, 10).await;
    drained(&service).await;
    let dead = service.dead_letters("orders").expect("it is configured");
    let mut pages = dead.pages(5).await.expect("they can be read");
    pages.next().await.expect("it can be read").expect("there is a page");
    let error = dead.purge(&Filter::default()).await.expect_err("a page is open").to_string();
    assert!(error.contains("open in another reader"), "{error}");
    pages.close().await.expect("it can be closed");
    let one = Filter { id: Some("id-3".to_owned()), ..Filter::default() };
    assert_eq!(dead.purge(&one).await.expect("nobody reads them"), 1);
    // Counting notes again what is gone, and forgets none of it.
    for _ in 0..2 {
        let depth = service.depth("orders").await.expect("the broker answers");
        assert_eq!(
            depth.dead,
            Some(10),
            "what is removed between others is counted until those are"
        );
    }
    assert_eq!(dead.purge(&one).await.expect("nobody reads them"), 0);
    assert_eq!(dead.purge(&Filter::default()).await.expect("nobody reads them"), 9);
    service.stop().await;
}

#[tokio::test]
async fn a_record_from_a_clock_that_is_ahead_holds_up_no_wait() {
    let topic = unique("orders");
    create(&topic, 1).await;
    let seen = Seen::default();
    let noted = seen.clone();
    let handler = move |delivery: Delivery<String>| {
        noted.note(&delivery.payload);
        async move { if delivery.attempt() == 1 { Err(Failure::retry("not yet")) } else { Ok(()) } }
    };
    let builder = Service::builder(config(&topic, "", RETRY)).subscribe("orders", handler);
    let service = builder.signals(false).start().await.expect("it starts");
    // Kafka 4 takes none that is more than an hour ahead.
    let later = SystemTime::now() + Duration::from_secs(50 * 60);
    let later = later.duration_since(SystemTime::UNIX_EPOCH).expect("it is later");
    let producer: FutureProducer =
        ClientConfig::new().set("bootstrap.servers", url()).create().expect("a client");
    let wait = format!("{topic}.g-{topic}.wait.1500");
    let record = FutureRecord::<(), _>::to(&wait).payload("\"from later on\"").partition(0);
    let record = record.timestamp(later.as_millis() as i64);
    producer.send(record, Duration::from_secs(60)).await.expect("the broker stores it");
    publish(&service, &topic, 5).await;
    until("those behind it are handled", async || {
        (0..5).all(|number| seen.attempts(&number.to_string()) == 2)
    })
    .await;
    drained(&service).await;
    assert_eq!(seen.attempts("from later on"), 2);
    service.stop().await;
}
