//! Redis stopped, paused, flushed, full, read-only, slow, without its scripts, without its
//! connections, while services consume: one that pauses then and one that runs on.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Child;
use std::time::Duration;

use redeliver::{Delivery, Handled, Service};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::sleep;

use crate::lab::{BROKER_WAITS, Lab, Log, SHORT_WAITS, redis_port};
use crate::proxy::Proxy;
use crate::support::redis::{Server, aside, cli, replica_of, send_signal};
use crate::{programs, worker};

/// How many messages a consumer is given before it recovers.
pub(crate) const COUNT: usize = 300;

/// A service as a process, and what it leaves behind.
pub(crate) struct Consumer {
    pub(crate) lab: Lab,
    folder: TempDir,
    idle: Service,
    process: Child,
}

impl Consumer {
    pub(crate) async fn start(redis: &str, policy: &str) -> Self {
        Self::start_with(redis, policy, "").await
    }

    /// `of_store`: more keys of its store.
    async fn start_with(redis: &str, policy: &str, of_store: &str) -> Self {
        let (lab, folder) = (Lab::on(redis), programs::folder());
        let keys = format!(
            "idempotency = {{ store = \"main\", lease = \"3s\" }}\n\
             lock = {{ store = \"main\", key = \"/key\", lease = \"3s\" }}\nin_flight_max = 8\n\
             crashes_max = 1000000\nbreaker = {{ attempts_min = 1000000 }}\n\
             on_store_down = \"{policy}\""
        );
        let toml = lab.toml(&keys, BROKER_WAITS);
        let toml = toml.replace("kind = \"redis\"", &format!("kind = \"redis\"\n{of_store}"));
        let idle = lab.idle(&toml).await;
        let process = worker::start(&toml, folder.path());
        Self { lab, folder, idle, process }
    }

    pub(crate) async fn publish(&self, numbers: std::ops::Range<usize>) {
        for number in numbers {
            let payload = json!({ "key": format!("{}-{}", self.lab.name, number % 50) });
            self.lab.send(&self.idle, &number.to_string(), payload).await;
        }
    }

    pub(crate) fn handled(&self) -> BTreeSet<String> {
        worker::effects(self.folder.path()).into_iter().map(|(id, _)| id).collect()
    }

    /// What is in another process's hands cannot be asked for.
    async fn emptied(&self) {
        self.lab
            .eventually("an empty queue", async || {
                let depth = self.idle.depth(&self.lab.name).await.unwrap_or_default();
                (depth.ready, depth.waiting) == (Some(0), Some(0))
            })
            .await;
    }

    /// Nothing is lost or given up, no lane is stuck, few words were made, and every effect too many is counted as possible.
    pub(crate) async fn recovers(self, outage: Duration) {
        self.lab.eventually("all effects", async || self.handled().len() == COUNT).await;
        self.publish(COUNT..COUNT + 1).await;
        self.lab.eventually("the next one", async || self.handled().len() == COUNT + 1).await;
        self.emptied().await;
        let Self { lab, folder, idle, mut process } = self;
        send_signal(process.id(), "TERM");
        aside(move || process.wait().expect("it ends")).await;
        assert_eq!(lab.dead(&idle).await, Some(0), "nothing is given up");
        let effects = worker::by_id(folder.path());
        let extra: usize = effects.values().map(|(all, _)| all - 1).sum();
        let possible = worker::counted(folder.path(), "redeliver_possible_duplicates_total");
        assert!(extra as u64 <= possible, "{extra} extra effects, {possible} told: {effects:?}");
        if outage >= OUTAGE {
            let complaints = folder.path().join("complaints");
            let complaints = std::fs::read_to_string(complaints).unwrap_or_default();
            assert!(complaints.contains("main"), "health said nothing of the store: {complaints}");
        }
        let log = std::fs::read_to_string(folder.path().join("log")).expect("a log");
        assert!(!log.contains("handler actor made anew"), "{log}");
        warned_once_a_second(&log);
        idle.stop().await;
    }
}

/// One warning a second of the store at the most, and few of anything else. What the client of a Cluster says under its own
/// name is off where `docs/observability.md` is followed.
fn warned_once_a_second(log: &str) {
    let ours = |line: &&str| line.contains(" WARN ") && !line.contains(" WARN redis::");
    let warnings: Vec<&str> = log.lines().filter(ours).collect();
    let mut seconds = BTreeMap::<&str, usize>::new();
    for line in warnings.iter().filter(|line| line.contains("store did not answer")) {
        // 2026-01-01T00:00:00
        *seconds.entry(&line[..19]).or_default() += 1;
    }
    assert!(seconds.values().all(|count| *count <= 2), "a second of ours may begin in theirs");
    assert!(seconds.values().sum::<usize>() <= seconds.len() + 1, "{seconds:?}");
    assert!(warnings.len() <= seconds.len() + 8, "and little else: {log}");
}

/// How long Redis is harmed, unless that takes but a moment.
pub(crate) const OUTAGE: Duration = Duration::from_secs(3);
const MOMENT: Duration = Duration::from_millis(200);

/// Harms the server in the middle, and heals it after `outage`.
async fn check(outage: Duration, harm: fn(&mut Server), heal: fn(&mut Server)) {
    let mut server = aside(Server::start).await;
    let url = server.url();
    let begun = tokio::join!(Consumer::start(&url, "pause"), Consumer::start(&url, "run"));
    let both = <[Consumer; 2]>::from(begun);
    let server = harmed(&both, async {
        server = aside(move || {
            harm(&mut server);
            server
        })
        .await;
        sleep(outage).await;
        aside(move || {
            heal(&mut server);
            server
        })
        .await
    })
    .await;
    let [one, other] = both;
    tokio::join!(one.recovers(outage), other.recovers(outage));
    drop(server);
}

/// Publishes half of it before, and half of it during the harm.
async fn harmed<T>(both: &[Consumer; 2], harm: impl Future<Output = T>) -> T {
    let half = COUNT / 2;
    tokio::join!(both[0].publish(0..half), both[1].publish(0..half));
    for consumer in both {
        consumer.lab.eventually("a start", async || consumer.handled().len() > 10).await;
    }
    let publishing = [both[0].publish(half..COUNT), both[1].publish(half..COUNT)];
    tokio::join!(futures_util::future::join_all(publishing), harm).1
}

#[tokio::test(flavor = "multi_thread")]
async fn r20_a_redis_that_was_killed_loses_nothing() {
    check(OUTAGE, Server::kill, Server::restart).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r20_a_redis_that_stood_still_loses_nothing() {
    check(OUTAGE, |server| server.signal("STOP"), |server| server.signal("CONT")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r12_a_redis_that_was_flushed_loses_nothing() {
    check(MOMENT, |server| drop(server.cli(&["FLUSHALL"])), |_| {}).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r12_a_flush_repeats_what_comes_again_after_it_and_nothing_else() {
    let server = aside(Server::start).await;
    let consumer = Consumer::start(&server.url(), "pause").await;
    let half = COUNT / 2;
    // Each id twice on either side, and those from before once more.
    consumer.publish(0..half).await;
    consumer.publish(0..half).await;
    let first = async || consumer.handled().len() == half;
    consumer.lab.eventually("the first half", first).await;
    consumer.emptied().await;
    let before = worker::by_id(consumer.folder.path());
    assert!(before.values().all(|(all, _)| *all == 1), "{before:?}");
    server.cli(&["FLUSHALL"]);
    for _ in 0..2 {
        consumer.publish(0..COUNT).await;
    }
    consumer.lab.eventually("all ids", async || consumer.handled().len() == COUNT).await;
    consumer.emptied().await;
    for (id, (all, _)) in worker::by_id(consumer.folder.path()) {
        let is_old = id.parse::<usize>().expect("a number") < half;
        assert_eq!(all, if is_old { 2 } else { 1 }, "{id}");
    }
    let Consumer { mut process, idle, .. } = consumer;
    send_signal(process.id(), "TERM");
    aside(move || process.wait().expect("it ends")).await;
    idle.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_stands_still_loses_nothing_and_ends_no_handler() {
    let (master, replica) = aside(|| {
        let master = Server::start();
        let replica = replica_of(&master);
        (master, replica)
    })
    .await;
    let consumer = Consumer::start_with(&master.url(), "pause", "replicas_min = 1").await;
    let half = COUNT / 2;
    consumer.publish(0..half).await;
    consumer.lab.eventually("a start", async || consumer.handled().len() > 10).await;
    replica.signal("STOP");
    tokio::join!(consumer.publish(half..COUNT), sleep(OUTAGE * 3));
    replica.signal("CONT");
    consumer.recovers(OUTAGE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_redis_loses_nothing() {
    let full = |server: &mut Server| drop(server.cli(&["CONFIG", "SET", "maxmemory", "1"]));
    let roomy = |server: &mut Server| drop(server.cli(&["CONFIG", "SET", "maxmemory", "0"]));
    check(OUTAGE, full, roomy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_became_a_replica_loses_nothing() {
    let replica = |server: &mut Server| drop(server.cli(&["REPLICAOF", "127.0.0.1", "1"]));
    let master = |server: &mut Server| drop(server.cli(&["REPLICAOF", "NO", "ONE"]));
    check(OUTAGE, replica, master).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_whose_scripts_are_flushed_again_and_again_loses_nothing() {
    let flush = |server: &mut Server| {
        for _ in 0..20 {
            server.cli(&["SCRIPT", "FLUSH"]);
        }
    };
    check(MOMENT, flush, flush).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_drops_its_connections_again_and_again_loses_nothing() {
    let cut = |server: &mut Server| {
        for _ in 0..10 {
            server.cli(&["CLIENT", "KILL", "TYPE", "normal"]);
            server.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        }
    };
    check(MOMENT, cut, cut).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_answers_after_a_second_loses_nothing() {
    let server = aside(Server::start).await;
    let proxy = Proxy::to(server.port).await;
    let url = proxy.redis_url();
    let begun = tokio::join!(Consumer::start(&url, "pause"), Consumer::start(&url, "run"));
    let both = <[Consumer; 2]>::from(begun);
    harmed(&both, async {
        proxy.delay_answers(Duration::from_millis(1100));
        sleep(OUTAGE * 2).await;
        proxy.delay_answers(Duration::ZERO);
    })
    .await;
    let [one, other] = both;
    tokio::join!(one.recovers(OUTAGE), other.recovers(OUTAGE));
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
    for number in 0..50 {
        lab.send(&service, &number.to_string(), json!(number)).await;
    }
    lab.drained(&service).await;
    assert_eq!(log.len(), 50);
    assert!(log.all().iter().all(|seen| seen.claim.is_none()), "and each can see it");
    assert!(service.health().stores["main"].is_some(), "health says why");
    drop(server);
    service.stop().await;
}

/// A service with nothing but a lock, of which each run is noted.
async fn locked_alone(server: &Server, deadline: &str) -> (Lab, Log, Service) {
    let (lab, log) = (Lab::on(&server.url()), Log::default());
    let noting = log.clone();
    let handler = move |delivery: Delivery<Value>| {
        let noting = noting.clone();
        async move {
            noting.note(&delivery);
            sleep(Duration::from_millis(700)).await;
            Handled::Ok(())
        }
    };
    let keys = "lock = { store = \"main\", key = \"/key\" }";
    let service = lab.start(&lab.patient_toml(deadline, keys, BROKER_WAITS), handler).await;
    (lab, log, service)
}

#[tokio::test(flavor = "multi_thread")]
async fn without_claims_a_redis_that_dies_before_the_release_repeats_nothing() {
    let mut server = aside(Server::start).await;
    let (lab, log, service) = locked_alone(&server, "300ms").await;
    lab.send(&service, "m", json!({ "key": "a" })).await;
    lab.eventually("a run", async || log.len() == 1).await;
    server = aside(move || {
        server.kill();
        server
    })
    .await;
    // With its store down a subscription hands nothing out: what is asked is whether this one is done.
    lab.drained(&service).await;
    drop(
        aside(move || {
            server.restart();
            server
        })
        .await,
    );
    assert_eq!(log.len(), 1);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_claims_a_lost_answer_to_the_release_repeats_nothing() {
    let server = aside(Server::start).await;
    let (lab, log, service) = locked_alone(&server, "5s").await;
    // The scripts are there; the release that the key has no owner for says that it was not held.
    lab.send(&service, "m", json!({ "key": "a" })).await;
    lab.eventually("a run", async || log.len() == 1).await;
    server.cli(&["flushall"]);
    lab.drained(&service).await;
    assert_eq!(log.len(), 1, "what was done stays done");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_key_that_cannot_be_read_does_not_stop_the_others() {
    unreadable("pause").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_cannot_be_read_is_not_handled_without_its_claim() {
    unreadable("run").await;
}

/// Somebody else wrote where the claim of one id is kept.
async fn unreadable(policy: &str) {
    let (lab, log) = (Lab::new(), Log::default());
    let noting = log.clone();
    let handler = move |delivery: Delivery<Value>| {
        noting.note(&delivery);
        async { Handled::Ok(()) }
    };
    let keys = format!("idempotency = {{ store = \"main\" }}\non_store_down = \"{policy}\"");
    let service = lab.start(&lab.toml(&keys, SHORT_WAITS), handler).await;
    let broken = format!("redeliver:claim:{{{}|broken}}", lab.name);
    assert_eq!(cli(redis_port(), &["set", &broken, "a string", "px", "60000"]), "OK");
    for id in ["broken", "a", "b", "c"] {
        lab.send(&service, id, json!(1)).await;
    }
    lab.eventually("a dead letter", async || lab.dead(&service).await == Some(1)).await;
    lab.drained(&service).await;
    assert_eq!(
        log.ids().into_iter().collect::<BTreeSet<_>>(),
        ["a", "b", "c"].map(String::from).into()
    );
    assert_eq!(service.health().stores["main"], None, "the store is well");
    service.stop().await;
}
