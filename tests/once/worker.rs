//! A service as a process: it can be killed, and writes down what it did where that survives.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use redeliver::config::Config;
use redeliver::{ClaimStatus, Delivery, Failure, Handled, Service};
use serde_json::Value;

use crate::lab::metric;

/// Starts one with this configuration; its effects go to `folder`.
pub(crate) fn start(toml: &str, folder: &Path) -> Child {
    Command::new(std::env::current_exe().expect("a path"))
        .args(["--exact", "worker::worker", "--nocapture"])
        .env("REDELIVER_TEST_ONCE", toml)
        .env("REDELIVER_TEST_FOLDER", folder)
        .stdout(Stdio::null())
        .stderr(File::options().create(true).append(true).open(folder.join("log")).expect("a file"))
        .spawn()
        .expect("it starts itself")
}

/// Not a test of its own: what the processes run until they are told to stop.
#[tokio::test(flavor = "multi_thread")]
async fn worker() {
    let Ok(toml) = std::env::var("REDELIVER_TEST_ONCE") else { return };
    let log = tracing_subscriber::fmt().with_ansi(false).with_writer(std::io::stderr);
    log.with_max_level(tracing::Level::WARN).init();
    let folder = std::env::var("REDELIVER_TEST_FOLDER").expect("a folder");
    let config = Config::from_toml(&toml).expect("a configuration");
    let subscription = config.subscriptions.keys().next().expect("one").clone();
    let effects = OpenOptions::new().create(true).append(true).open(format!("{folder}/effects"));
    let effects = std::sync::Arc::new(effects.expect("a file"));
    let handler = move |delivery: Delivery<Value>| {
        let effects = std::sync::Arc::clone(&effects);
        async move { handle(&delivery, &effects).await }
    };
    let service = Service::builder(config).subscribe(subscription, handler);
    let service = service.start().await.expect("the servers are there");
    let metrics = format!("{folder}/metrics.{}", std::process::id());
    loop {
        let has_stopped = tokio::select! {
            _ = service.stopped() => true,
            () = tokio::time::sleep(Duration::from_millis(100)) => false,
        };
        std::fs::write(&metrics, service.metrics().await).expect("a file");
        if has_stopped {
            return;
        }
        let health = service.health();
        if !health.reasons.is_empty() {
            // All of them: the last may be of something else.
            let all = format!("{folder}/complaints");
            let all = OpenOptions::new().create(true).append(true).open(all);
            writeln!(all.expect("a file"), "{}", health.reasons.join("\n")).expect("it is written");
        }
    }
}

/// An effect a message, and every fifth id fails on its first attempt; what `fails` says so does
/// after each effect.
async fn handle(delivery: &Delivery<Value>, mut effects: &std::fs::File) -> Handled {
    let id = delivery.id().ok_or_else(|| Failure::reject("no id"))?;
    let sum = id.bytes().fold(0u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
    tokio::time::sleep(Duration::from_millis(u64::from(sum % 7) * 5)).await;
    let fails = delivery.payload["fails"] == true;
    if sum % 5 == 0 && delivery.attempt() == 1 && !fails {
        return Err(Failure::retry("every fifth fails once"));
    }
    let taken = delivery.claim().map(redeliver::Claim::status) == Some(ClaimStatus::TakenOver);
    let mark = if taken { "taken" } else { "fresh" };
    // One write, so that no kill leaves half a line.
    let line = format!("{id} {} {} {mark}\n", delivery.attempt(), std::process::id());
    effects.write_all(line.as_bytes())?;
    if fails { Err(Failure::retry("never works")) } else { Ok(()) }
}

/// What a line of the effects says: the id, and whether its handler was told of a takeover.
pub(crate) fn effects(folder: &Path) -> Vec<(String, bool)> {
    let line = |words: Vec<String>| (words[0].clone(), words[3] == "taken");
    lines(folder).into_iter().map(line).collect()
}

/// The attempts that had an effect, in order, each with whether its handler was told of a takeover.
pub(crate) fn attempts(folder: &Path) -> Vec<(u32, bool)> {
    let line = |words: Vec<String>| (words[1].parse().expect("a number"), words[3] == "taken");
    lines(folder).into_iter().map(line).collect()
}

/// Effects by id: how many, and how many of them were told of a takeover.
pub(crate) fn by_id(folder: &Path) -> BTreeMap<String, (usize, usize)> {
    let mut by_id = BTreeMap::<String, (usize, usize)>::new();
    for (id, is_taken) in effects(folder) {
        let (all, taken) = by_id.entry(id).or_default();
        *all += 1;
        *taken += usize::from(is_taken);
    }
    by_id
}

/// The sum of a counter over all processes that lived long enough to write it.
pub(crate) fn counted(folder: &Path, name: &str) -> u64 {
    let files = std::fs::read_dir(folder).expect("a folder");
    let texts = files.filter_map(|file| {
        let path = file.ok()?.path();
        let is_metrics = path.file_name()?.to_string_lossy().starts_with("metrics.");
        is_metrics.then(|| std::fs::read_to_string(path).unwrap_or_default())
    });
    texts.map(|text| metric(&text, name)).filter(|count| *count != u64::MAX).sum()
}

fn lines(folder: &Path) -> Vec<Vec<String>> {
    let text = std::fs::read_to_string(folder.join("effects")).unwrap_or_default();
    // A process that writes right now may have come to the middle of a line.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| line.split(' ').map(str::to_owned).collect()).collect()
}
