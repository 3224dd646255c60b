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
use std::sync::Arc;
use std::time::{Duration, Instant};

use redeliver::config::Config;
use redeliver::{Delivery, Failure, Handled, Service};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;
use tokio::time::sleep;

use crate::lab::{Lab, PATIENCE, until};

const ROLE: &str = "REDELIVER_TEST_ROLE";

/// What the handler of a child does with every message.
#[derive(Clone, Default, Serialize, Deserialize)]
pub(crate) struct Role {
    pub(crate) config: String,
    pub(crate) folder: PathBuf,
    /// How long it takes.
    pub(crate) milliseconds: u64,
    /// It fails on so many attempts of every message whose number divides by `fails_every`.
    pub(crate) fails: u32,
    pub(crate) fails_every: u32,
    /// It ends the process over this number.
    pub(crate) aborts_on: Option<u32>,
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
    pub(crate) role: Role,
    folder: TempDir,
}

/// A running child; killed at the end of the test.
pub(crate) struct Process(Child);

impl Stage {
    pub(crate) fn new(config: String, role: Role) -> Self {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let role = Role { config, folder: folder.path().to_owned(), ..role };
        Self { role, folder }
    }

    /// Starts a child and waits until its service runs.
    pub(crate) async fn start(&self, lab: &Lab) -> Process {
        let ready = self.folder.path().join("ready");
        let _ = fs::remove_file(&ready);
        let role = serde_json::to_string(&self.role).expect("a role is text");
        let child = Command::new(env::current_exe().expect("this binary has a path"))
            .args(["--exact", "process::a_child_process_handles_what_it_is_sent", "--nocapture"])
            .env(ROLE, role)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("this binary can be run again");
        let mut process = Process(child);
        until("the child's service runs", || {
            let status = process.0.try_wait().expect("it is ours");
            assert!(status.is_none() || self.role.aborts_on.is_some(), "it ended: {status:?}");
            let done = status.is_some() || ready.exists();
            async move { done }
        })
        .await;
        let topology = fs::read_to_string(&ready).unwrap_or_default();
        lab.delete_later(&topology.lines().map(str::to_owned).collect::<Vec<_>>());
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
        until(&format!("{count} lines"), || async { self.lines().len() >= count }).await;
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
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn a_child_process_handles_what_it_is_sent() {
    if let Ok(role) = env::var(ROLE) {
        let role = serde_json::from_str(&role).expect("a role that a test wrote");
        return play(role).await;
    }
    let lab = Lab::new().await;
    let stage = Stage::new(lab.toml("", ""), Role::default());
    let child = stage.start(&lab).await;
    lab.publish(0..3).await;
    stage.wait_for_lines(3).await;
    assert!(child.terminate().await.success());
    assert_eq!((stage.handled().len(), lab.ready().await), (3, 0));
}

/// The life of a child: until it is told to stop, is killed, or its parent is gone.
async fn play(role: Role) {
    std::thread::spawn(|| {
        let _ = io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(1);
    });
    let config = Config::from_toml(&role.config).unwrap_or_else(|error| panic!("{error}"));
    let effects = OpenOptions::new().create(true).append(true).open(role.folder.join("effects"));
    let effects = Arc::new(effects.expect("the folder is there"));
    let ready = role.folder.join("ready");
    let service = Service::builder(config)
        .subscribe("orders", move |delivery| handle(delivery, role.clone(), effects.clone()))
        .start()
        .await
        .unwrap_or_else(|error| panic!("{error}"));
    let topology = service.topology("orders").expect("it has this subscription").join("\n");
    let half = ready.with_extension("half");
    fs::write(&half, topology).and_then(|()| fs::rename(half, ready)).expect("it can be written");
    let stop = service.stopped().await;
    std::process::exit(i32::from(stop.left > 0));
}

async fn handle(delivery: Delivery<u32>, role: Role, effects: Arc<File>) -> Handled {
    let (number, attempt) = (delivery.payload, delivery.attempt());
    if role.aborts_on == Some(number) {
        std::process::abort();
    }
    sleep(Duration::from_millis(role.milliseconds)).await;
    let fails = role.fails_every > 0 && number % role.fails_every == 0 && attempt <= role.fails;
    let what = if fails { "failed" } else { "handled" };
    let line = format!("{number} {attempt} {what}\n");
    (&*effects).write_all(line.as_bytes())?;
    if fails { Err(Failure::retry("told to fail")) } else { Ok(()) }
}
