//! Redis stopped, paused, flushed, full and read-only while a service consumes.

use std::time::Duration;

use redeliver::{Delivery, Handled, Service};
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::lab::{BROKER_WAITS, Lab, Log};
use crate::support::redis::{Server, aside};
use crate::{programs, worker};

const COUNT: usize = 400;

/// Publishes, harms the server in the middle, and heals it after `outage`; everything is handled.
async fn check(policy: &str, outage: Duration, harm: fn(&mut Server), heal: fn(&mut Server)) {
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
    server = aside(move || {
        heal(&mut server);
        server
    })
    .await;
    lab.drained(&service).await;
    let handled: std::collections::BTreeSet<String> = log.ids().into_iter().collect();
    assert_eq!(handled.len(), COUNT, "nothing is lost");
    assert_eq!(lab.dead(&service).await, Some(0), "and nothing given up");
    assert!(service.health().ready, "{:?}", service.health().reasons);
    service.stop().await;
    drop(server);
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
    assert!(service.health().stores["main"].is_some(), "health says why");
    drop(server);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_down_is_warned_of_once_a_second_at_the_most() {
    let mut server = aside(Server::start).await;
    let (lab, folder) = (Lab::on(&server.url()), programs::folder());
    let toml = lab.toml("idempotency = { store = \"main\", lease = \"2s\" }", BROKER_WAITS);
    let idle = lab.idle(&toml).await;
    publish(&lab, &idle, 0..COUNT / 2).await;
    let mut process = worker::start(&toml, folder.path());
    lab.eventually("a start", async || !worker::effects(folder.path()).is_empty()).await;
    let _server = aside(move || {
        server.kill();
        server
    })
    .await;
    publish(&lab, &idle, COUNT / 2..COUNT).await;
    sleep(Duration::from_secs(8)).await;
    let text = std::fs::read_to_string(folder.path().join("log")).expect("a log");
    let warnings: Vec<&str> = text.lines().filter(|line| line.contains(" WARN ")).collect();
    let mut seconds = std::collections::BTreeMap::<&str, usize>::new();
    for line in warnings.iter().filter(|line| line.contains("store did not answer")) {
        // 2026-01-01T00:00:00
        *seconds.entry(&line[..19]).or_default() += 1;
    }
    assert!((4..=12).contains(&seconds.len()), "{text}");
    assert!(seconds.values().all(|count| *count <= 2), "a second of ours may begin in theirs");
    assert!(seconds.values().sum::<usize>() <= seconds.len() + 1, "{seconds:?}");
    assert!(warnings.len() <= seconds.len() + 8, "and of little else: {text}");
    process.kill().expect("it can be killed");
    process.wait().expect("it can be waited for");
    idle.stop().await;
}
