//! SIGTERM and Ctrl-C, in processes of their own: this very program, told by a variable to be one.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use redeliver::{Delivery, Handled, Service};
use tokio::signal::unix::{SignalKind, signal};

use crate::bench::{THRICE, config};
use crate::runtimes::{blocking_on, publish};

const ROLE: &str = "REDELIVER_TEST_HANDLER_TAKES";
/// Signals are the program's own business.
const EMBEDDED: &str = "REDELIVER_TEST_EMBEDDED";
/// The program hangs after its service has stopped.
const HANGS: &str = "REDELIVER_TEST_HANGS";

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
        let ours = std::env::var_os(EMBEDDED).is_none();
        let builder = Service::builder(config("in_flight_max = 1", THRICE)).signals(ours);
        let service = builder.subscribe("orders", handler).start().await.expect("it starts");
        let mut terminate = signal(SignalKind::terminate()).expect("it can be listened to");
        if !ours {
            let service = service.clone();
            tokio::spawn(async move {
                terminate.recv().await;
                println!("live {}", service.health().live);
                service.stop().await;
            });
        }
        publish(&service, 0..3).await;
        let stop = service.stopped().await;
        println!("left {}", stop.left);
        if std::env::var_os(HANGS).is_some() {
            tokio::time::sleep(Duration::from_secs(60)).await;
        }
    });
    std::process::exit(0);
}

/// A child whose handler is at work on its first message.
fn start(takes: Duration) -> (Child, BufReader<std::process::ChildStdout>) {
    start_with(takes, &[])
}

fn start_with(
    takes: Duration,
    variables: &[(&str, &str)],
) -> (Child, BufReader<std::process::ChildStdout>) {
    let mut child = Command::new(std::env::current_exe().expect("this program"))
        .args(["signals::child", "--exact", "--nocapture"])
        .env(ROLE, takes.as_millis().to_string())
        .envs(variables.iter().copied())
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

fn send(child: &Child, name: &str) {
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
        send(&child, name);
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
    send(&child, "TERM");
    // The first one has to be taken before the second is one.
    std::thread::sleep(Duration::from_millis(200));
    send(&child, "TERM");
    let (status, said) = end(child, lines);
    assert_eq!(status.code(), Some(128 + 15), "{said:?}");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[test]
fn a_second_signal_ends_a_program_that_hangs_after_its_service_has_stopped() {
    let (child, mut lines) = start_with(Duration::from_millis(100), &[(HANGS, "yes")]);
    let began = Instant::now();
    send(&child, "TERM");
    let mut line = String::new();
    while !line.contains("left 0") {
        line.clear();
        assert!(lines.read_line(&mut line).expect("a line") > 0, "the child ended");
    }
    send(&child, "INT");
    let (status, said) = end(child, lines);
    assert_eq!(status.code(), Some(128 + 2), "{said:?}");
    assert!(began.elapsed() < Duration::from_secs(50), "{:?}", began.elapsed());
}

#[test]
fn signals_that_are_left_to_the_program_do_not_stop_the_service() {
    let (child, lines) = start_with(Duration::from_millis(300), &[(EMBEDDED, "yes")]);
    send(&child, "TERM");
    let (status, said) = end(child, lines);
    assert_eq!(status.code(), Some(0), "{said:?}");
    assert!(said.iter().any(|line| line == "live true"), "the program stops it: {said:?}");
    assert!(said.iter().any(|line| line == "left 0"), "{said:?}");
}

/// Not a promise: what the child process runs. Does nothing when nobody asks for it.
#[cfg(feature = "rabbitmq")]
#[test]
fn starting_child() {
    let Ok(url) = std::env::var(STARTS) else { return };
    let text = format!(
        "[service]\nstartup_max = \"1h\"\n[brokers.main]\nkind = \"rabbitmq\"\nurl = \"{url}\"\n\
         [subscriptions.orders]\nbroker = \"main\"\nqueue = \"orders\"\n"
    );
    let config = redeliver::config::Config::from_toml(&text).expect("it is usable");
    blocking_on(async {
        let builder = Service::builder(config);
        let builder = builder.subscribe("orders", |_: Delivery<u32>| async { Handled::Ok(()) });
        if std::env::var_os(RUNS).is_some() {
            println!("ran: {:?}", builder.run().await.map(|stop| stop.left));
        } else {
            println!("started: {:?}", builder.start().await.map(drop));
        }
    });
    std::process::exit(0);
}

/// Where the broker is that the child waits for.
#[cfg(feature = "rabbitmq")]
const STARTS: &str = "REDELIVER_TEST_STARTS";
/// It waits in `run`, and not in `start`.
#[cfg(feature = "rabbitmq")]
const RUNS: &str = "REDELIVER_TEST_RUNS";

#[cfg(feature = "rabbitmq")]
#[test]
fn a_signal_before_the_start_is_done_ends_it_well() {
    for (name, runs, ended) in [
        ("TERM", false, "started: Err(Interrupted)"),
        ("INT", false, "started: Err(Interrupted)"),
        ("TERM", true, "ran: Ok(0)"),
    ] {
        // It takes connections and never says a word.
        let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = silent.local_addr().expect("it listens");
        silent.set_nonblocking(true).expect("it can be asked");
        let mut child = Command::new(std::env::current_exe().expect("this program"));
        child.args(["signals::starting_child", "--exact", "--nocapture"]);
        child.env(STARTS, format!("amqp://{address}/%2f")).stdout(Stdio::piped());
        if runs {
            child.env(RUNS, "yes");
        }
        let mut child = child.stderr(Stdio::null()).spawn().expect("it starts");
        let lines = BufReader::new(child.stdout.take().expect("a pipe"));
        let begun = Instant::now();
        let connected = loop {
            match silent.accept() {
                Ok(connected) => break connected,
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "it seeks no broker");
        };
        send(&child, name);
        let (status, said) = end(child, lines);
        assert_eq!(status.code(), Some(0), "{name}: {said:?}");
        assert!(said.iter().any(|line| line == ended), "{name}: {said:?}");
        drop(connected);
    }
}

/// Not a promise: what the child process runs. Does nothing when nobody asks for it.
#[test]
fn dying_child() {
    if std::env::var_os(DIES).is_none() {
        return;
    }
    struct Never;
    impl actix::Actor for Never {
        type Context = actix::Context<Self>;
    }
    impl actix::Handler<Delivery<u32>> for Never {
        type Result = Handled;
        fn handle(&mut self, _: Delivery<u32>, _: &mut Self::Context) -> Handled {
            Ok(())
        }
    }
    let settings = "[service]\nrestarts_max = 0\non_restarts_spent = \"exit\"\n[brokers.main]\n\
                    kind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"\n";
    let config = redeliver::config::Config::from_toml(settings).expect("it is usable");
    blocking_on(async {
        let builder = Service::builder(config);
        let builder = builder.subscribe("orders", || -> Never { panic!("no database") });
        let service = builder.start().await.expect("it starts");
        service.stopped().await;
    });
}

const DIES: &str = "REDELIVER_TEST_DIES";

#[test]
fn when_the_restarts_are_spent_the_process_exits_with_70_if_told_to() {
    let child = Command::new(std::env::current_exe().expect("this program"))
        .args(["signals::dying_child", "--exact", "--nocapture"])
        .env(DIES, "yes")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    assert_eq!(child.expect("it runs").code(), Some(70));
}
