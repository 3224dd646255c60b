//! Redis stopped, paused, flushed, full and read-only while a service consumes.

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use redeliver::{Delivery, Handled, Service};
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::lab::{BROKER_WAITS, Lab, Log};
use crate::support::redis::{Server, aside};

const COUNT: usize = 400;

/// Publishes, harms the server in the middle, and heals it after `outage`; everything is handled.
async fn check(policy: &str, outage: Duration, harm: fn(&mut Server), heal: fn(&mut Server)) -> Log {
    let mut server = aside(Server::start).await;
    let (lab, log) = (Lab::on(&server.url()), Log::default());
    let noting = log.clone();
    let handler = move |delivery: Delivery<Value>| {
        let noting = noting.clone();
        async move {
            sleep(Duration::from_millis(2)).await;
            noting.note(&delivery);
            Handled::Ok(())
        }
    };
    let keys = format!(
        "idempotency = {{ store = \"main\", lease = \"2s\" }}\n\
         lock = {{ store = \"main\", key = \"/key\", lease = \"2s\" }}\nin_flight_max = 8\n\
         on_store_down = \"{policy}\""
    );
    let service = lab.start(&lab.toml(&keys, BROKER_WAITS), handler).await;
    publish(&lab, &service, 0..COUNT / 2).await;
    lab.eventually("a start", async || log.len() > 20).await;
    server = aside(move || {
        harm(&mut server);
        server
    })
    .await;
    publish(&lab, &service, COUNT / 2..COUNT).await;
    sleep(outage).await;
    aside(move || {
        heal(&mut server);
        server
    })
    .await_kept(&lab, &service, &log)
    .await;
    log
}

/// Keeps the server until everything is handled.
trait AwaitKept {
    async fn await_kept(self, lab: &Lab, service: &Service, log: &Log);
}

impl<F: Future<Output = Server>> AwaitKept for F {
    async fn await_kept(self, lab: &Lab, service: &Service, log: &Log) {
        let _server = self.await;
        let began = Instant::now();
        lab.drained(service).await;
        let handled: std::collections::BTreeSet<String> = log.ids().into_iter().collect();
        assert_eq!(handled.len(), COUNT, "nothing is lost, after {:?}", began.elapsed());
        assert_eq!(lab.dead(service).await, Some(0), "and nothing given up");
        service.stop().await;
    }
}

async fn publish(lab: &Lab, service: &Service, numbers: std::ops::Range<usize>) {
    for number in numbers {
        let payload = json!({ "key": number % 50 });
        lab.send(service, &number.to_string(), payload).await;
    }
}

const OUTAGE: Duration = Duration::from_secs(4);

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_was_killed_is_waited_for() {
    check("pause", OUTAGE, Server::kill, Server::restart).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_stood_still_is_waited_for() {
    check("pause", OUTAGE, |server| server.signal("STOP"), |server| server.signal("CONT")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_was_flushed_goes_on() {
    let flush = |server: &mut Server| drop(server.cli(&["FLUSHALL"]));
    check("pause", Duration::from_millis(200), flush, |_| {}).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_redis_is_waited_for() {
    let full = |server: &mut Server| drop(server.cli(&["CONFIG", "SET", "maxmemory", "1"]));
    let roomy = |server: &mut Server| drop(server.cli(&["CONFIG", "SET", "maxmemory", "0"]));
    check("pause", OUTAGE, full, roomy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_became_a_replica_is_waited_for() {
    let replica = |server: &mut Server| drop(server.cli(&["REPLICAOF", "127.0.0.1", "1"]));
    let master = |server: &mut Server| drop(server.cli(&["REPLICAOF", "NO", "ONE"]));
    check("pause", OUTAGE, replica, master).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_redis_run_handles_messages_unguarded() {
    let mut server = aside(Server::start).await;
    let (lab, log) = (Lab::on(&server.url()), Log::default());
    let noting = log.clone();
    let handler = move |delivery: Delivery<Value>| {
        noting.note(&delivery);
        async { Handled::Ok(()) }
    };
    let keys = "idempotency = { store = \"main\" }\non_store_down = \"run\"";
    let service = lab.start(&lab.toml(keys, BROKER_WAITS), handler).await;
    server = aside(move || {
        server.kill();
        server
    })
    .await;
    publish(&lab, &service, 0..50).await;
    lab.drained(&service).await;
    assert_eq!(log.len(), 50);
    assert!(log.all().iter().all(|seen| seen.claim.is_none()), "and each can see it");
    assert!(!service.health().is_ready() || service.health().stores["main"].is_some());
    drop(server);
    service.stop().await;
}

/// What is logged, line by line.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no panic").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_down_is_warned_of_once_a_second_at_the_most() {
    let lines = Lines::default();
    let sink = lines.clone();
    let subscriber = tracing_subscriber::fmt().with_max_level(tracing::Level::WARN);
    let subscriber = subscriber.with_ansi(false).with_writer(move || sink.clone()).finish();
    // Other tests of this process log here too: only lines of this test's store are counted.
    let _ = tracing::subscriber::set_global_default(subscriber);
    let began = Instant::now();
    check("pause", Duration::from_secs(8), Server::kill, Server::restart).await;
    let text = String::from_utf8(lines.0.lock().expect("no panic").clone()).expect("text");
    let warnings = text.lines().filter(|line| line.contains("store did not answer")).count();
    let seconds = began.elapsed().as_secs() as usize + 1;
    assert!(warnings >= 1, "{text}");
    // Seven tests of this file have a store that is down.
    assert!(warnings <= seconds * 7, "{warnings} warnings in {seconds} s");
}
