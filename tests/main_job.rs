//! The main job, on RabbitMQ and Kafka and on real deliveries (those in the file that
//! `REDELIVER_WEBHOOKS` names; without it, made-up ones of the same shape): nothing is lost, whoever
//! is killed.

#![cfg(feature = "rabbitmq")]

mod programs;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use programs::{
    Place, Queue, count_lines, folder, job, last_line, run, summary, told, wait_for, webhooks,
};
use redeliver::config::{BrokerKind, Config, Url};
use redeliver::{DeadLetter, Delivery, Handled, Message, Reason, Service};
use serde_json::{Value, json};
use tokio::sync::Notify;

/// What the example runs with.
const CONFIG: &str = include_str!("../config/webhooks.toml");
/// What a consumer can hold: in_flight_max and parked_max.
const WINDOW: usize = 64 + 128;

#[test]
fn without_a_flag_and_without_a_server_everything_is_accounted_for_within_ten_seconds() {
    let output = run("webhooks", [""; 0]);
    let summary = summary(&output);
    assert_eq!(output.status.code(), Some(0), "{}", told(&output));
    let fields =
        ["published", "distinct", "handled", "retried", "dead_lettered", "lost", "seconds"];
    let line = last_line(&output);
    let places: Vec<_> = fields.iter().map(|field| line.find(&format!("\"{field}\":"))).collect();
    assert!(places.is_sorted() && places[0].is_some(), "{line}");
    assert_eq!(summary["lost"], 0);
    assert_eq!(sum(&summary, ["handled", "dead_lettered"]), summary["distinct"]);
    assert!(summary["seconds"].as_f64().is_some_and(|seconds| seconds < 10.0), "{line}");
    assert_eq!(outline(&shown_by_readme()), outline(&format!("{}{line}", said(&output))));
}

/// What README's first screen shows of it.
fn shown_by_readme() -> String {
    let (_, rest) =
        include_str!("../README.md").split_once("prints\n\n```text\n").expect("it shows it");
    rest.split_once("\n```").expect("it ends").0.to_owned()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The lines without what depends on the machine: how much was done after each second, and how long it took.
fn outline(lines: &str) -> Vec<String> {
    let count = lines.lines().count();
    let outline = lines.lines().enumerate().filter_map(|(number, line)| {
        let is_on_the_way = number > 0 && number + 2 < count;
        let line = line.split_once(",\"seconds\"").map_or(line, |(line, _)| line);
        (!is_on_the_way || !line.starts_with("handled ")).then(|| line.to_owned())
    });
    outline.collect()
}

#[test]
fn the_same_program_on_rabbitmq_accounts_for_everything() {
    accounts_for_everything(&Queue::unique("run", CONFIG).place());
}

#[cfg(feature = "kafka")]
#[test]
fn the_same_program_on_kafka_accounts_for_everything() {
    accounts_for_everything(&Place::topic("run"));
}

fn accounts_for_everything(place: &Place) {
    let folder = folder();
    let file = webhooks(&folder);
    let effects = folder.path().join("effects");
    let mut job = job("run", place);
    let output = job.arg("--input").arg(&file).arg("--effects").arg(&effects).output();
    let output = output.expect("the program can be started");
    assert_eq!(output.status.code(), Some(0), "{}", told(&output));
    let (summary, ids) = (summary(&output), ids(&file));
    assert_eq!(summary["published"], lines(&file).len());
    assert_eq!(summary["distinct"], ids.len());
    assert_eq!(sum(&summary, ["handled", "dead_lettered"]), json!(ids.len()));
    assert_eq!(summary["lost"], 0);
    let handled: BTreeSet<String> = read_effects(&effects).into_keys().collect();
    assert_eq!(summary["handled"], handled.len());
    let share = |part: &Value| part.as_f64().unwrap_or_default() / ids.len() as f64;
    assert!((0.001..0.03).contains(&share(&summary["dead_lettered"])), "about 1 %: {summary}");
    assert!(
        (0.1..0.35).contains(&share(&summary["retried"])),
        "about 20 %, and the dead: {summary}"
    );
}

#[tokio::test]
async fn killed_five_times_on_rabbitmq_it_still_loses_nothing_and_repeats_little() {
    let queue = Queue::unique("killed", CONFIG);
    let twice = killed_five_times(&queue.place(), 20).await;
    assert!(twice <= 5 * WINDOW, "{twice} effects were repeated by five kills");
}

/// What is repeated is counted where the rate is known: tests/kafka/rebalances.rs.
#[cfg(feature = "kafka")]
#[tokio::test]
async fn killed_five_times_on_kafka_it_still_loses_nothing() {
    killed_five_times(&Place::topic("killed"), 40).await;
}

/// How many effects were repeated.
async fn killed_five_times(place: &Place, repeat: usize) -> usize {
    let folder = folder();
    let file = webhooks(&folder);
    let effects = folder.path().join("effects");
    let total = lines(&file).len() * repeat;
    let mut publish = job("publish", place);
    let published = publish.arg("--input").arg(&file).args(["--repeat", &repeat.to_string()]);
    let published = published.output().expect("the program can be started");
    assert_eq!(summary(&published)["published"], total, "{}", told(&published));
    assert_eq!(summary(&published)["handled"], Value::Null);

    for kill in 1..=5 {
        let mut consume = job("consume", place);
        let consume = consume.arg("--effects").arg(&effects).stderr(Stdio::null());
        let mut consume = consume.spawn().expect("the program can be started");
        let (enough, own) = (total * kill / 7, consume.id());
        wait_for("effects of a process that is to be killed", || {
            (count_lines(&effects) >= enough && has_effects_of(own, &effects)).then_some(())
        });
        assert!(consume.try_wait().expect("it can be asked").is_none(), "it ended before the kill");
        consume.kill().expect("it can be killed");
        consume.wait().expect("it can be waited for");
    }
    let output = job("consume", place).arg("--effects").arg(&effects).output();
    let output = output.expect("the program can be started");
    assert_eq!(output.status.code(), Some(0), "{}", told(&output));
    assert_eq!(summary(&output)["published"], Value::Null);

    let done = read_effects(&effects);
    let letters = dead_letters(place).await;
    let dead: BTreeSet<String> = letters.iter().filter_map(|letter| letter.id.clone()).collect();
    let handled: BTreeSet<String> = done.keys().cloned().collect();
    assert!(handled.is_disjoint(&dead), "both handled and dead");
    assert_eq!(&handled | &dead, ids(&file), "every id is one or the other");
    assert!(!dead.is_empty());
    for letter in &letters {
        assert_eq!((letter.reason, letter.attempts), (Some(Reason::Exhausted), 4), "{letter:?}");
    }
    let times = times(&file);
    for (id, processes) in &done {
        assert!(processes.len() >= times[id] * repeat, "{id} had only {processes:?}");
    }
    let alive: usize = handled.iter().map(|id| times[id] * repeat).sum();
    count_lines(&effects) - alive
}

#[tokio::test]
async fn consume_waits_for_a_message_that_another_consumer_holds() {
    let queue = Queue::unique("held", CONFIG);
    let (begun, release) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let handler = {
        let (begun, release) = (Arc::clone(&begun), Arc::clone(&release));
        move |_: Delivery<Value>| {
            let (begun, release) = (Arc::clone(&begun), Arc::clone(&release));
            async move {
                begun.notify_one();
                release.notified().await;
                Handled::Ok(())
            }
        }
    };
    let other =
        Service::builder(config(&queue.place())).subscribe("webhooks", handler).signals(false);
    let other = other.start().await.expect("the server is there");
    let message = Message::bytes("{}").to_queue(&queue.name).id("held");
    let publisher = other.publisher("main").expect("it is configured");
    publisher.send(message).await.expect("it is confirmed");
    begun.notified().await;

    let mut consume = job("consume", &queue.place());
    let mut consume = consume.args(["--idle-exit", "500ms"]).spawn().expect("it can be started");
    // Six times as long as it would take if nobody held anything.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(consume.try_wait().expect("it can be asked").is_none(), "it did not wait");
    release.notify_one();
    other.stop().await;
    let ended = wait_for("the end of `consume`", || consume.try_wait().expect("it can be asked"));
    assert!(ended.success(), "{ended}");
}

#[test]
fn two_consumers_that_are_idle_do_not_wait_for_each_other() {
    let queue = Queue::unique("idle", CONFIG);
    let spawn = || {
        let mut consume = job("consume", &queue.place());
        consume.args(["--idle-exit", "500ms"]).spawn().expect("the program can be started")
    };
    for mut consume in [spawn(), spawn()] {
        let ended = wait_for("the end of both", || consume.try_wait().expect("it can be asked"));
        assert!(ended.success(), "{ended}");
    }
}

#[tokio::test]
async fn a_dead_letter_that_does_not_belong_there_fails_the_run() {
    let queue = Queue::unique("stranger", CONFIG);
    let stranger =
        Service::builder(config(&queue.place())).without_handler("webhooks").start().await;
    let stranger = stranger.expect("the server is there");
    let publisher = stranger.publisher("main").expect("it is configured");
    let letter = Message::bytes("{}").to_queue(format!("{}.dead", queue.name)).id("stranger");
    publisher.send(letter).await.expect("it is confirmed");
    stranger.stop().await;
    let output = job("run", &queue.place()).args(["--idle-exit", "500ms"]).output();
    let output = output.expect("the program can be started");
    assert_eq!(output.status.code(), Some(1), "{}", told(&output));
    assert!(String::from_utf8_lossy(&output.stderr).contains("stranger"), "{}", told(&output));
}

fn config(place: &Place) -> Config {
    let mut config = Config::from_toml(CONFIG).expect("the example runs with it");
    let main = config.brokers.get_mut("main").expect("it is configured");
    main.url = Some(Url::new(place.url.as_str()));
    let subscription = config.subscriptions.get_mut("webhooks").expect("it is configured");
    subscription.queue = None;
    if place.broker == "kafka" {
        main.kind = BrokerKind::Kafka;
        subscription.topics = vec![place.name.clone()];
        subscription.group = Some(place.name.clone());
    } else {
        main.kind = BrokerKind::Rabbitmq;
        subscription.queue = Some(place.name.clone());
    }
    config
}

async fn dead_letters(place: &Place) -> Vec<DeadLetter> {
    let service = Service::builder(config(place)).without_handler("webhooks").start().await;
    let service = service.expect("the server is there");
    let all = async {
        let mut letters = Vec::new();
        let mut pages = service.dead_letters("webhooks")?.pages(100).await?;
        while let Some(page) = pages.next().await? {
            letters.extend(page);
        }
        pages.close().await.map(|()| letters)
    };
    let letters = all.await.expect("they can be read");
    service.stop().await;
    letters
}

fn sum(summary: &Value, fields: [&str; 2]) -> Value {
    json!(fields.iter().filter_map(|field| summary[*field].as_u64()).sum::<u64>())
}

fn lines(file: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(file).expect("the input can be read");
    text.lines().map(|line| serde_json::from_str(line).expect("a line is JSON")).collect()
}

/// How often each id is in the input.
fn times(file: &Path) -> BTreeMap<String, usize> {
    let mut times = BTreeMap::new();
    for line in lines(file) {
        let id = line["delivery"].as_str().expect("a line has an id");
        *times.entry(id.to_owned()).or_default() += 1;
    }
    times
}

fn ids(file: &Path) -> BTreeSet<String> {
    times(file).into_keys().collect()
}

fn has_effects_of(process: u32, file: &Path) -> bool {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let process = process.to_string();
    text.lines().any(|line| line.split(' ').nth(2) == Some(&process))
}

/// The process of each effect, by id. A line that is not whole is an error.
fn read_effects(file: &Path) -> BTreeMap<String, Vec<u32>> {
    let mut effects = BTreeMap::<String, Vec<u32>>::new();
    for line in std::fs::read_to_string(file).expect("there are effects").lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let [id, attempt, process, at] = words[..] else { panic!("not an effect: {line}") };
        assert!(attempt.parse::<u32>().is_ok_and(|attempt| attempt >= 1), "{line}");
        assert!(at.parse::<u64>().is_ok_and(|at| at > 1_700_000_000_000), "{line}");
        effects.entry(id.to_owned()).or_default().push(process.parse().expect("a process id"));
    }
    effects
}
