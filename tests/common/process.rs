//! Services in processes of their own, which a test can kill.
//!
//! The test binary runs itself again with a role in its environment. What the child's handler does it appends to a
//! file, one line in one write, so that nothing is lost with the process.

use std::collections::BTreeMap;
use std::env;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use redeliver::config::Config;
use redeliver::{IntoHandlers, Service};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;
use tokio::time::sleep;

use super::rabbitmq::PATIENCE;

const ROLE: &str = "REDELIVER_TEST_ROLE";

/// What a child is told.
#[derive(Serialize, Deserialize)]
struct Part<R> {
    config: String,
    folder: PathBuf,
    role: R,
}

/// Where the queues of a child belong.
pub(crate) trait Home {
    /// Notes what these lines of a topology name, to be deleted in the end.
    fn note_topology(&self, topology: &[String]);
}

/// One line of a child's file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Line {
    pub(crate) number: u32,
    pub(crate) attempt: u32,
    pub(crate) handled: bool,
}

/// Children that share a file, and the role of their handler.
pub(crate) struct Stage<R> {
    pub(crate) config: String,
    role: R,
    folder: TempDir,
}

/// A running child; killed at the end of the test.
pub(crate) struct Process(Child);

impl<R: Clone + Serialize> Stage<R> {
    pub(crate) fn new(config: String, role: R) -> Self {
        let folder = tempfile::tempdir().expect("a folder can be made");
        Self { config, role, folder }
    }

    /// Starts a child and waits until its service runs.
    pub(crate) async fn start(&self, home: &impl Home) -> Process {
        let mut process = self.start_doomed(home).await;
        assert!(process.is_running(), "it ended by itself");
        process
    }

    /// Starts a child and waits until its service runs, or until it has ended over its first message.
    pub(crate) async fn start_doomed(&self, home: &impl Home) -> Process {
        let folder = self.folder.path().to_owned();
        let ready = folder.join("ready");
        let _ = fs::remove_file(&ready);
        let part = Part { config: self.config.clone(), folder, role: self.role.clone() };
        let child = Command::new(env::current_exe().expect("this binary has a path"))
            .args(["--exact", "process::a_child_handles_what_it_is_sent", "--nocapture"])
            .env(ROLE, serde_json::to_string(&part).expect("a role is text"))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("this binary can be run again");
        let mut process = Process(child);
        let deadline = Instant::now() + PATIENCE;
        while process.is_running() && !ready.exists() {
            assert!(Instant::now() < deadline, "the child's service runs: not within {PATIENCE:?}");
            sleep(Duration::from_millis(25)).await;
        }
        let topology = fs::read_to_string(&ready).unwrap_or_default();
        home.note_topology(&topology.lines().map(str::to_owned).collect::<Vec<_>>());
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

    /// Waits for so many lines.
    pub(crate) async fn wait_for_lines(&self, count: usize) {
        let deadline = Instant::now() + PATIENCE;
        while self.lines().len() < count {
            assert!(Instant::now() < deadline, "{count} lines: not within {PATIENCE:?}");
            sleep(Duration::from_millis(25)).await;
        }
    }
}

impl Process {
    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }

    /// Ends it as a crash of the machine would.
    pub(crate) fn kill(mut self) {
        self.0.kill().expect("it can be killed");
        self.0.wait().expect("it ends");
    }

    /// Asks it to stop, and waits until it has.
    pub(crate) async fn terminate(self) -> ExitStatus {
        let id = self.id().to_string();
        let sent = Command::new("kill").args(["-TERM", &id]).status().expect("kill can be run");
        assert!(sent.success());
        self.ended().await
    }

    /// Waits until it has ended by itself.
    pub(crate) async fn ended(mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.0.try_wait().expect("it is ours") {
                return status;
            }
            assert!(Instant::now() < deadline, "the child did not end within {PATIENCE:?}");
            sleep(Duration::from_millis(25)).await;
        }
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.0.try_wait().expect("it is ours").is_none()
    }

    /// What it holds of its own, in bytes.
    pub(crate) fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id()))
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

/// The file of a child.
pub(crate) struct Effects(File);

impl Effects {
    pub(crate) fn note(&self, number: &str, attempt: u32, handled: bool) -> io::Result<()> {
        let what = if handled { "handled" } else { "failed" };
        (&self.0).write_all(format!("{number} {attempt} {what}\n").as_bytes())
    }
}

/// The life of a child, if this process is one: until it is told to stop, is killed, or its parent is gone.
pub(crate) async fn play<R: DeserializeOwned, H: IntoHandlers<M>, M>(
    handler: impl FnOnce(R, Effects) -> H,
) {
    let Ok(part) = env::var(ROLE) else { return };
    let part: Part<R> = serde_json::from_str(&part).expect("the parent wrote it");
    std::thread::spawn(|| {
        let _ = io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(1);
    });
    let config = Config::from_toml(&part.config).unwrap_or_else(|problems| panic!("{problems}"));
    let effects = OpenOptions::new().create(true).append(true).open(part.folder.join("effects"));
    let effects = Effects(effects.expect("the folder is there"));
    let service = Service::builder(config).subscribe("orders", handler(part.role, effects));
    let service = service.start().await.unwrap_or_else(|error| panic!("{error}"));
    let topology = service.topology("orders").expect("it has this subscription").join("\n");
    let (ready, half) = (part.folder.join("ready"), part.folder.join("ready.half"));
    fs::write(&half, topology).and_then(|()| fs::rename(half, ready)).expect("it can be written");
    let stop = service.stopped().await;
    std::process::exit(i32::from(stop.left > 0));
}
