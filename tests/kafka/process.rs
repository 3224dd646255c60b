//! Services in processes of their own, which a test can kill and freeze.
//!
//! The test binary runs itself again with a role in its environment. What a child's handler did is appended to a
//! file, one line in one write, so that nothing is lost with the process.

use std::env;
use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};

use redeliver::config::Config;
use redeliver::{Delivery, Failure, Handled, Message, Service};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use super::service::until;

const ROLE: &str = "REDELIVER_TEST_ROLE";

/// What the handler of a child does with every message.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Role {
    pub(crate) config: String,
    pub(crate) effects: PathBuf,
    /// How long it takes.
    pub(crate) milliseconds: u64,
    /// It ends the process over this payload.
    pub(crate) dies_of: Option<String>,
    /// It takes 20 seconds over this payload.
    pub(crate) slow_over: Option<String>,
    /// It publishes every payload here, through the delivery's publisher.
    pub(crate) forwards_to: Option<String>,
    /// Its payloads are the milliseconds after which they want to be tried once more; effects say when each try was.
    pub(crate) retries: bool,
}

/// Children that share a file.
pub(crate) struct Stage {
    pub(crate) role: Role,
    _folder: TempDir,
}

/// A child; killed at the end of the test.
pub(crate) struct Process(Child);

impl Stage {
    pub(crate) fn new(config: String, milliseconds: u64, dies_of: Option<&str>) -> Self {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let effects = folder.path().join("effects");
        let dies_of = dies_of.map(str::to_owned);
        let role = Role {
            config,
            effects,
            milliseconds,
            dies_of,
            slow_over: None,
            forwards_to: None,
            retries: false,
        };
        Self { role, _folder: folder }
    }

    pub(crate) fn start(&self) -> Process {
        let role = serde_json::to_string(&self.role).expect("a role is text");
        let child = Command::new(env::current_exe().expect("this binary has a path"))
            .args(["--exact", "process::a_child_handles_what_it_is_sent", "--nocapture"])
            .env(ROLE, role)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("this binary can be run again");
        Process(child)
    }

    /// The payloads that were handled, in order, repetitions too.
    pub(crate) fn effects(&self) -> Vec<String> {
        let text = fs::read_to_string(&self.role.effects).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

impl Process {
    /// Tells it to stop, and waits until it has.
    pub(crate) async fn stop(mut self) {
        drop(self.0.stdin.take());
        until("the child has stopped", async || self.0.try_wait().expect("it is ours").is_some())
            .await;
    }

    pub(crate) fn kill(mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }

    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.0.id().to_string();
        let sent = Command::new("kill").args([signal, &pid]).status().expect("kill is there");
        assert!(sent.success(), "process {pid} takes {signal}");
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.0.try_wait().expect("it is ours").is_some()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn note(role: &Role, effect: &str) -> Handled {
    let mut effects = OpenOptions::new().create(true).append(true).open(&role.effects)?;
    effects.write_all(format!("{effect}\n").as_bytes())?;
    Ok(())
}

/// Notes when a payload `NAME MILLISECONDS` is tried, and wants it back after so long.
fn retry_once(delivery: &Delivery<String>, role: &Role) -> Handled {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_millis();
    note(role, &format!("{} {} {now}", delivery.payload, delivery.attempt()))?;
    let (_, wait) = delivery.payload.split_once(' ').unwrap_or_default();
    match delivery.attempt() {
        1 => Err(Failure::retry_after(Duration::from_millis(wait.parse()?), "once more")),
        _ => Ok(()),
    }
}

/// Publishes the payload, and fails one in ten after that, at its first attempt.
async fn forward(delivery: &Delivery<String>, topic: &str) -> Handled {
    let fails = delivery.attempt() == 1 && delivery.payload.ends_with('7');
    let payload = if fails { "half done" } else { delivery.payload.as_str() };
    let message = Message::bytes(payload.to_owned()).to_topic(topic).key(payload.to_owned());
    delivery.publisher().send(message).await?;
    if fails { Err(Failure::retry("not yet")) } else { Ok(()) }
}

/// Run by a parent with a role, it is a service; else there is nothing to do.
#[test]
fn a_child_handles_what_it_is_sent() {
    let Ok(role) = env::var(ROLE) else { return };
    let role: Role = serde_json::from_str(&role).expect("the parent wrote it");
    let config = Config::from_toml(&role.config).unwrap_or_else(|problems| panic!("{problems}"));
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let handler = move |delivery: Delivery<String>| {
            let role = role.clone();
            async move {
                if role.dies_of.as_ref() == Some(&delivery.payload) {
                    std::process::abort();
                }
                let is_slow = role.slow_over.as_ref() == Some(&delivery.payload);
                let milliseconds = if is_slow { 20_000 } else { role.milliseconds };
                tokio::time::sleep(Duration::from_millis(milliseconds)).await;
                if let Some(topic) = &role.forwards_to {
                    forward(&delivery, topic).await?;
                }
                if role.retries {
                    return retry_once(&delivery, &role);
                }
                note(&role, &delivery.payload)
            }
        };
        let service = Service::builder(config).subscribe("orders", handler).signals(false);
        let service = service.start().await.expect("it starts");
        let parent = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new()));
        let _ = parent.await;
        service.stop().await;
    });
    std::process::exit(0);
}
