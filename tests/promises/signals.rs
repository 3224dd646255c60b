//! SIGTERM and Ctrl-C, in processes of their own: this very program, told by a variable to be one.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use redeliver::{Delivery, Handled, Service};

use crate::bench::{THRICE, config};
use crate::runtimes::{blocking_on, publish};

const ROLE: &str = "REDELIVER_TEST_HANDLER_TAKES";

/// Not a promise: what the child process runs. Does nothing when nobody asks for it.
#[test]
fn child() {
    let Ok(takes) = std::env::var(ROLE) else { return };
    let takes = Duration::from_millis(takes.parse().expect("milliseconds"));
    let handler = move |delivery: Delivery<u32>| async move {
        println!("began {}", delivery.payload);
        tokio::time::sleep(takes).await;
        println!("ended {}", delivery.payload);
        Handled::Ok(())
    };
    blocking_on(async {
        let builder = Service::builder(config("in_flight_max = 1", THRICE));
        let service = builder.subscribe("orders", handler).start().await.expect("it starts");
        publish(&service, 0..3).await;
        let stop = service.stopped().await;
        println!("left {}", stop.left);
    });
    std::process::exit(0);
}

/// A child whose handler is at work on its first message.
fn start(takes: Duration) -> (Child, BufReader<std::process::ChildStdout>) {
    let mut child = Command::new(std::env::current_exe().expect("this program"))
        .args(["signals::child", "--exact", "--nocapture"])
        .env(ROLE, takes.as_millis().to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe"));
    let mut line = String::new();
    while !line.contains("began 0") {
        line.clear();
        assert!(lines.read_line(&mut line).expect("a line") > 0, "the child ended");
    }
    (child, lines)
}

fn signal(child: &Child, name: &str) {
    let kill = Command::new("kill").args([format!("-{name}"), child.id().to_string()]).status();
    assert!(kill.expect("kill runs").success());
}

/// How it ended, and what else it said.
fn end(mut child: Child, lines: BufReader<std::process::ChildStdout>) -> (ExitStatus, Vec<String>) {
    let said = lines.lines().map_while(Result::ok).collect();
    (child.wait().expect("it ends"), said)
}

#[test]
fn sigterm_and_ctrl_c_finish_what_runs_begin_nothing_new_and_exit_0() {
    for name in ["TERM", "INT"] {
        let (child, lines) = start(Duration::from_millis(500));
        signal(&child, name);
        let (status, said) = end(child, lines);
        assert_eq!(status.code(), Some(0), "{name}: {said:?}");
        let said: Vec<_> = said
            .iter()
            .filter(|line| ["began", "ended", "left"].iter().any(|word| line.starts_with(word)))
            .collect();
        assert_eq!(said, ["ended 0", "left 0"], "{name}");
    }
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let (child, lines) = start(Duration::from_secs(20));
    let began = Instant::now();
    signal(&child, "TERM");
    // The first one has to be taken before the second is one.
    std::thread::sleep(Duration::from_millis(200));
    signal(&child, "TERM");
    let (status, said) = end(child, lines);
    assert_eq!(status.code(), Some(128 + 15), "{said:?}");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}
