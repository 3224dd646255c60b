//! Partitions that are taken away while a handler works on them.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use redeliver::config::Config;
use redeliver::{Delivery, Handled, Message, Service};

use super::lab::{create, unique, url};
use super::service::{drained, until};

/// What happened in which member, in order.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    fn note(&self, what: String) {
        self.0.lock().expect("nobody panics in here").push(what);
    }

    fn count(&self, what: &str) -> usize {
        let log = self.0.lock().expect("nobody panics in here");
        log.iter().filter(|line| line.starts_with(what)).count()
    }
}

/// Noted when a handler ends before it is done.
struct Unless(Option<(Log, String)>);

impl Drop for Unless {
    fn drop(&mut self) {
        if let Some((log, what)) = self.0.take() {
            log.note(what);
        }
    }
}

/// A member whose handlers work until they may end, and end at once when `hurry` is set.
async fn member(name: &'static str, topic: &str, log: &Log, hurry: bool) -> Service {
    let text = format!(
        "[service]\nshutdown_grace = \"2s\"\n[brokers.main]\nkind = \"kafka\"\nurl = \"{}\"\n[subscriptions.orders]\nbroker = \"main\"\ntopics = [\"{topic}\"]\ngroup = \"g-{topic}\"\ncommit_interval = \"100ms\"\ntimeout = \"10m\"\nin_flight_total_max = 8\n[brokers.main.properties]\n\"session.timeout.ms\" = 8000\n\"heartbeat.interval.ms\" = 500\n",
        url()
    );
    let log = log.clone();
    let handler = move |delivery: Delivery<String>| {
        let log = log.clone();
        let what = delivery.payload.clone();
        log.note(format!("{name} began {what}"));
        async move {
            let mut unless = Unless(Some((log.clone(), format!("{name} gave up {what}"))));
            while what.starts_with("slow") && !hurry {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            unless.0 = None;
            log.note(format!("{name} handled {what}"));
            Handled::Ok(())
        }
    };
    let config = Config::from_toml(&text).unwrap_or_else(|problems| panic!("{problems}"));
    let builder = Service::builder(config).subscribe("orders", handler).signals(false);
    builder.start().await.expect("it starts")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r18_a_handler_that_outlasts_the_drain_is_cancelled_and_the_new_owner_handles_its_record() {
    let topic = unique("orders");
    create(&topic, 2).await;
    let log = Log::default();
    let first = member("first", &topic, &log, false).await;
    let publisher = first.publisher("main").expect("it is configured");
    let send = async |payload: String| {
        let message = Message::json(&payload).expect("text is JSON").to_topic(&topic);
        publisher.send(message.key(payload.clone()).id(payload)).await.expect("it is stored");
    };
    for number in 0..8 {
        send(format!("slow-{number}")).await;
    }
    until("all run at the first member", async || log.count("first began slow") == 8).await;
    // Of both partitions one moves; whichever it is, what runs there is given up.
    let second = member("second", &topic, &log, true).await;
    until("what moved was given up", async || log.count("first gave up") > 0).await;
    let moved = log.count("first gave up");
    until("the new owner handled it", async || log.count("second handled slow") == moved).await;
    // The permits of what was cancelled are free again: more than are left without them.
    for number in 0..40 {
        send(format!("quick-{number}")).await;
    }
    let handled = || log.count("first handled quick") + log.count("second handled quick");
    until("the others are handled", async || handled() == 40).await;
    assert_eq!(log.count("first handled slow"), 0, "nothing that is late counts: {log:?}");
    assert_eq!(log.count("first gave up"), moved, "what did not move goes on");
    // The end of the first one cancels the rest, and nothing is lost.
    first.stop().await;
    drained(&second).await;
    assert_eq!(log.count("second handled slow"), 8);
    second.stop().await;
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.lock().expect("nobody panics in here").fmt(f)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clean_stop_repeats_nothing() {
    let topic = unique("orders");
    create(&topic, 3).await;
    let log = Log::default();
    let first = member("first", &topic, &log, true).await;
    let publisher = first.publisher("main").expect("it is configured");
    for number in 0..300 {
        let payload = format!("quick-{number}.");
        let message = Message::json(&payload).expect("text is JSON").to_topic(&topic);
        publisher.send(message.key(payload.clone()).id(payload)).await.expect("it is stored");
    }
    let stopped = first.stop().await;
    assert_eq!(stopped.left, 0);
    let by_first = log.count("first handled");
    let second = member("second", &topic, &log, true).await;
    drained(&second).await;
    let by_second = log.count("second handled");
    assert_eq!(by_first + by_second, 300, "{by_first} before the stop, {by_second} after");
    second.stop().await;
}
