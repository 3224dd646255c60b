//! Runs the programs in `examples/` as a user does: as processes, by their flags.

#![allow(dead_code, reason = "each test crate uses its own part of this")]

pub(crate) mod road;

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use lapin::options::QueueDeleteOptions;
use lapin::{Connection, ConnectionProperties};
use redeliver::config::Config;
use redeliver::retry::WaitSteps;
use serde_json::Value;

/// How long anything may take that is waited for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The program of this name, as `cargo test` built it.
pub(crate) fn program(name: &str) -> Command {
    let test = env::current_exe().expect("a test knows where it is");
    // target/PROFILE/deps/TEST and target/PROFILE/examples/NAME
    let profile =
        test.parent().and_then(|deps| deps.parent()).expect("tests are in target/PROFILE/deps");
    let path = profile.join("examples").join(format!("{name}{}", env::consts::EXE_SUFFIX));
    assert!(path.exists(), "{} is missing; build it by `cargo build --examples`", path.display());
    Command::new(path)
}

/// Runs it to its end.
pub(crate) fn run<A: AsRef<OsStr>>(name: &str, arguments: impl IntoIterator<Item = A>) -> Output {
    program(name).args(arguments).output().expect("the program can be started")
}

/// The last line of what a program said on standard output.
pub(crate) fn last_line(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stdout);
    said.lines().next_back().unwrap_or_default().to_owned()
}

/// Everything a program said, for a test that failed.
pub(crate) fn told(output: &Output) -> String {
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    format!("{}\n{out}\n{err}", output.status)
}

/// The server's url, from the environment.
pub(crate) fn rabbitmq() -> String {
    env::var("RABBITMQ_URL").expect("RABBITMQ_URL names the server under test; tests/servers/rabbitmq.sh starts one and prints it")
}

/// The Kafka broker's url, from the environment.
pub(crate) fn kafka() -> String {
    env::var("KAFKA_URL").expect(
        "KAFKA_URL names the broker under test; tests/servers/kafka.sh starts one and prints it",
    )
}

/// Where a program's messages lie, as its flags say it.
pub(crate) struct Place {
    pub(crate) broker: &'static str,
    pub(crate) url: String,
    pub(crate) name: String,
}

impl Place {
    /// A topic that nobody else uses; the program creates it.
    pub(crate) fn topic(name: &str) -> Self {
        let name = format!("redeliver-test.{}.{name}", std::process::id());
        Self { broker: "kafka", url: kafka(), name }
    }

    pub(crate) fn flags(&self) -> [&str; 6] {
        ["--broker", self.broker, "--url", &self.url, "--name", &self.name]
    }
}

/// A queue that nobody else uses; it and what belongs to it are deleted in the end.
pub(crate) struct Queue {
    pub(crate) name: String,
    waits: Vec<Duration>,
}

impl Queue {
    /// For a program that runs with the subscription `webhooks` of this configuration.
    pub(crate) fn unique(name: &str, config: &str) -> Self {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let count = COUNTER.fetch_add(1, Ordering::Relaxed);
        let config = Config::from_toml(config).expect("an example runs with it");
        let subscription = &config.subscriptions["webhooks"];
        let policy = config.retry_of(subscription).policy();
        let steps = WaitSteps::for_policies(&[&policy], subscription.wait_steps_max.get());
        let name = format!("redeliver-test.{}.{count}.{name}", std::process::id());
        Self { name, waits: steps.as_slice().to_vec() }
    }

    pub(crate) fn place(&self) -> Place {
        Place { broker: "rabbitmq", url: rabbitmq(), name: self.name.clone() }
    }

    fn all(&self) -> Vec<String> {
        let waits = self.waits.iter().map(|wait| format!(".wait.{}", wait.as_millis()));
        let belongings = ["", ".dead", ".suspects"].map(String::from).into_iter().chain(waits);
        belongings.map(|ending| format!("{}{ending}", self.name)).collect()
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        let names = self.all();
        // A thread of its own: a test's runtime may be panicking, and cannot be waited on from here.
        let deleted = std::thread::spawn(move || {
            tokio::runtime::Runtime::new().map(|runtime| runtime.block_on(delete(names)))
        });
        let _ = deleted.join();
    }
}

async fn delete(names: Vec<String>) {
    let url = rabbitmq();
    let connected = Connection::connect(&url, ConnectionProperties::default()).await;
    let Ok(connection) = connected else { return };
    let Ok(channel) = connection.create_channel().await else { return };
    for name in names {
        let _ = channel.queue_delete(name.into(), QueueDeleteOptions::default()).await;
    }
}

/// The example `webhooks`, told to work there.
pub(crate) fn job(part: &str, place: &Place) -> Command {
    let mut command = program("webhooks");
    command.arg(part).args(place.flags()).stdout(Stdio::piped());
    command
}

/// What `webhooks` says in the end.
pub(crate) fn summary(output: &Output) -> Value {
    let line = last_line(output);
    serde_json::from_str(&line).unwrap_or_else(|_| panic!("no summary: {}", told(output)))
}

pub(crate) fn count_lines(file: &Path) -> usize {
    std::fs::read(file).unwrap_or_default().iter().filter(|byte| **byte == b'\n').count()
}

/// Looks again and again until `look` finds something.
pub(crate) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A folder for the files of one test, gone with it.
pub(crate) fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder can be made")
}

/// A file of deliveries: the one that `REDELIVER_WEBHOOKS` names, or one of the same shape.
pub(crate) fn webhooks(folder: &tempfile::TempDir) -> PathBuf {
    if let Some(file) = env::var_os("REDELIVER_WEBHOOKS") {
        return file.into();
    }
    let lines: Vec<String> = (0..329).map(webhook).collect();
    let file = folder.path().join("webhooks.jsonl");
    std::fs::write(&file, lines.join("\n")).expect("the folder can be written");
    file
}

/// 324 ids, and five of them twice.
fn webhook(number: usize) -> String {
    let number = if number >= 324 { number - 324 } else { number };
    let repository = if number % 7 == 0 { None } else { Some("octo-org/octo-repo") };
    let event = ["push", "issues", "ping"][number % 3];
    let line = serde_json::json!({
        "delivery": format!("00000000-0000-8000-8000-{number:012}"),
        "event": event,
        "action": null,
        "repository": repository,
        "payload": { "text": "x".repeat(1000 + number * 20) },
    });
    line.to_string()
}
