//! Services in processes of their own, which a test can kill.
//!
//! The test binary runs itself again with a role in its environment. What the child's handler does it appends to a file,
//! one line in one write, so that nothing is lost with the process.

use std::collections::BTreeMap;
use std::env;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use redeliver::config::Config;
use redeliver::{Delivery, Failure, Handled, Service};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;
use tokio::time::sleep;

use crate::ground::{Ground, until};

const ROLE: &str = "REDELIVER_TEST_ROLE";

#[derive(Clone, Serialize, Deserialize)]
struct Role {
    config: String,
    folder: PathBuf,
    /// How long its handler takes.
    milliseconds: u64,
}

/// One line of a child's file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Line {
    pub(crate) number: u32,
    pub(crate) attempt: u32,
    pub(crate) handled: bool,
}

/// Children that share a file.
pub(crate) struct Stage {
    role: Role,
    folder: TempDir,
}

/// A running child; killed at the end of the test.
pub(crate) struct Process(Child);

impl Stage {
    pub(crate) fn new(config: String, milliseconds: u64) -> Self {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let role = Role { config, folder: folder.path().to_owned(), milliseconds };
        Self { role, folder }
    }

    /// Starts a child and waits until its service runs.
    pub(crate) async fn start(&self, ground: &Ground) -> Process {
        let ready = self.folder.path().join("ready");
        let _ = fs::remove_file(&ready);
        let child = Command::new(env::current_exe().expect("this binary has a path"))
            .args(["--exact", "process::a_child_handles_what_it_is_sent", "--nocapture"])
            .env(ROLE, serde_json::to_string(&self.role).expect("a role is text"))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("this binary can be run again");
        let mut process = Process(child);
        until("the child's service runs", async || {
            let status = process.0.try_wait().expect("it is ours");
            assert!(status.is_none(), "it ended: {status:?}");
            ready.exists()
        })
        .await;
        let topology = fs::read_to_string(&ready).unwrap_or_default();
        ground.note(&topology.lines().map(str::to_owned).collect::<Vec<_>>());
        process
    }

    /// What all children did, in order.
    pub(crate) fn lines(&self) -> Vec<Line> {
        let text = fs::read_to_string(self.folder.path().join("effects")).unwrap_or_default();
        let line = |line: &str| {
            let words: Vec<_> = line.split(' ').collect();
            let [number, attempt, what] = words[..] else { panic!("half a line: {line}") };
            let number = number.parse().expect("a number");
            let attempt = attempt.parse().expect("a number");
            Line { number, attempt, handled: what == "handled" }
        };
        text.lines().map(line).collect()
    }

    /// How often each number was handled.
    pub(crate) fn handled(&self) -> BTreeMap<u32, u32> {
        let mut handled = BTreeMap::new();
        for line in self.lines().iter().filter(|line| line.handled) {
            *handled.entry(line.number).or_default() += 1;
        }
        handled
    }
}

impl Process {
    /// Ends it as a crash of the machine would.
    pub(crate) fn kill(mut self) {
        self.0.kill().expect("it can be killed");
        self.0.wait().expect("it ends");
    }

    /// Asks it to stop, and waits until it has.
    pub(crate) async fn terminate(mut self) -> ExitStatus {
        let id = self.0.id().to_string();
        let sent = Command::new("kill").args(["-TERM", &id]).status().expect("kill can be run");
        assert!(sent.success());
        let mut status = None;
        until("the child ends", async || {
            status = self.0.try_wait().expect("it is ours");
            status.is_some()
        })
        .await;
        status.expect("it has ended")
    }
}

impl Process {
    /// What it holds of its own, in bytes.
    pub(crate) fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.id()))
            .expect("this system has /proc");
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let kilobytes = line.expect("the kernel counts it").trim().trim_end_matches(" kB");
        kilobytes.parse::<u64>().expect("a number") * 1024
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Run by a parent with a role, it is a service; else there is nothing to do.
#[tokio::test]
async fn a_child_handles_what_it_is_sent() {
    let Ok(role) = env::var(ROLE) else { return };
    play(serde_json::from_str(&role).expect("the parent wrote it")).await;
}

/// The life of a child: until it is told to stop, is killed, or its parent is gone.
async fn play(role: Role) {
    std::thread::spawn(|| {
        let _ = io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(1);
    });
    let config = Config::from_toml(&role.config).unwrap_or_else(|problems| panic!("{problems}"));
    let effects = OpenOptions::new().create(true).append(true).open(role.folder.join("effects"));
    let effects = Arc::new(effects.expect("the folder is there"));
    let (ready, milliseconds) = (role.folder.join("ready"), role.milliseconds);
    let handler = move |delivery| handle(delivery, milliseconds, Arc::clone(&effects));
    let service = Service::builder(config).subscribe("orders", handler).start().await;
    let service = service.unwrap_or_else(|error| panic!("{error}"));
    let topology = service.topology("orders").expect("it has this subscription").join("\n");
    let half = ready.with_extension("half");
    fs::write(&half, topology).and_then(|()| fs::rename(half, ready)).expect("it can be written");
    let stop = service.stopped().await;
    std::process::exit(i32::from(stop.left > 0));
}

async fn handle(delivery: Delivery<String>, milliseconds: u64, effects: Arc<File>) -> Handled {
    sleep(Duration::from_millis(milliseconds)).await;
    let fails = match delivery.payload.as_str() {
        "retry" => true,
        "retry once" => delivery.attempt() == 1,
        _ => false,
    };
    let what = if fails { "failed" } else { "handled" };
    let id = delivery.id().unwrap_or_default();
    let line = format!("{id} {} {what}\n", delivery.attempt());
    (&*effects).write_all(line.as_bytes())?;
    if fails { Err(Failure::retry("told to fail")) } else { Ok(()) }
}
