//! All cores are used, and nobody's handler stalls another's.

use std::collections::BTreeSet;
use std::future::{Ready, ready};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use redeliver::config::Config;
use redeliver::{Delivery, Handled, Message, Service};

use crate::bench::{THRICE, config};
use crate::runtimes::{blocking_on, drained, publish};

/// The threads on which handlers ran.
fn threads_used(handlers: usize) -> usize {
    let seen: Arc<Mutex<Vec<ThreadId>>> = Arc::default();
    let sink = Arc::clone(&seen);
    let handler = move |_: Delivery<u32>| {
        sink.lock().unwrap().push(std::thread::current().id());
        async { Handled::Ok(()) }
    };
    let builder = Service::builder(config(&format!("handlers = {handlers}"), THRICE));
    blocking_on(async {
        let builder = builder.subscribe("orders", handler).signals(false);
        let service = builder.start().await.expect("it starts");
        publish(&service, 0..200).await;
        drained(&service).await;
        assert_eq!(service.stop().await.left, 0);
    });
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), 200);
    seen.iter().map(|thread| format!("{thread:?}")).collect::<BTreeSet<_>>().len()
}

#[test]
fn several_handlers_use_as_many_threads() {
    assert_eq!(threads_used(1), 1);
    assert_eq!(threads_used(3), 3);
}

/// A handler that blocks its thread until the last value is sent to or dropped, and says so when it begins.
fn blocking_its_thread() -> (
    impl Fn(Delivery<u32>) -> Ready<Handled> + Clone + Send + Sync + 'static,
    Receiver<()>,
    Sender<()>,
) {
    let (release, released) = channel::<()>();
    let (begun, has_begun) = channel::<()>();
    let released = Arc::new(Mutex::new(released));
    let block = move |_: Delivery<u32>| {
        let _ = begun.send(());
        let _ = released.lock().unwrap().recv();
        ready(Ok(()))
    };
    (block, has_begun, release)
}

#[test]
fn a_handler_that_blocks_its_thread_for_ever_does_not_keep_the_service_from_stopping() {
    let (block, has_begun, release) = blocking_its_thread();
    let short = format!("{THRICE}\n[service]\nshutdown_grace = \"200ms\"");
    blocking_on(async {
        let builder = Service::builder(config("", &short));
        let service = builder.subscribe("orders", block).signals(false).start().await;
        let service = service.expect("it starts");
        publish(&service, 0..3).await;
        has_begun.recv().expect("it is called");
        let stopped = tokio::time::timeout(Duration::from_secs(120), service.stop()).await;
        assert_eq!(stopped.expect("it stops").left, 1);
        assert!(!service.health().live);
    });
    drop(release);
}

#[test]
fn a_handler_that_blocks_its_thread_hides_no_count_but_its_own() {
    let two = r#"
        [service]
        shutdown_grace = "100ms"
        [brokers.main]
        kind = "memory"
        [subscriptions.orders]
        broker = "main"
        in_flight_max = 1
        parked_max = 1
        [subscriptions.refunds]
        broker = "main"
    "#;
    let (block, has_begun, release) = blocking_its_thread();
    let run = |_: Delivery<u32>| std::future::pending::<Handled>();
    blocking_on(async {
        let builder = Service::builder(Config::from_toml(two).expect("it is right"));
        let builder = builder.subscribe("orders", block).subscribe("refunds", run).signals(false);
        let service = builder.start().await.expect("it starts");
        let publisher = service.publisher("main").expect("it is configured");
        for (queue, count) in [("orders", 10), ("refunds", 3)] {
            for number in 0..count {
                let message = Message::json(&number).expect("a number is JSON");
                publisher.send(message.to_queue(queue)).await.expect("it is stored");
            }
        }
        has_begun.recv().expect("it is called");
        // Orders holds at most one that runs and one that is parked, whatever its thread does.
        let told = |metrics: &str| {
            let line =
                |count| format!("redeliver_source_ready{{subscription=\"orders\"}} {count}\n");
            [8, 9].iter().any(|count| metrics.contains(&line(*count)))
                && metrics.contains("redeliver_in_flight{subscription=\"refunds\"} 3\n")
        };
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut metrics = service.metrics().await;
        while !told(&metrics) {
            assert!(Instant::now() < deadline, "{metrics}");
            metrics = service.metrics().await;
        }
        drop(release);
        service.stop().await;
    });
}

const COUNTS_THREADS: &str = "REDELIVER_TEST_COUNTS_THREADS";

/// Not a promise: what the child process runs, whose threads are nobody else's. Does nothing when nobody asks for it.
#[test]
fn child() {
    if std::env::var_os(COUNTS_THREADS).is_none() {
        return;
    }
    let threads = || std::fs::read_dir("/proc/self/task").expect("Linux tells").count();
    let start_and_stop = async || {
        let handler = |_: Delivery<u32>| async { Handled::Ok(()) };
        let builder = Service::builder(config("handlers = 3", THRICE)).signals(false);
        let service = builder.subscribe("orders", handler).start().await.expect("it starts");
        publish(&service, 0..20).await;
        drained(&service).await;
        assert_eq!(service.stop().await.left, 0);
    };
    blocking_on(async {
        start_and_stop().await;
        let first = threads();
        for _ in 0..20 {
            start_and_stop().await;
        }
        // What ended a moment ago may still be counted; one kept by each would be twenty.
        println!("threads kept: {}", threads().saturating_sub(first) > 15);
    });
}

#[test]
#[cfg(target_os = "linux")]
fn services_that_are_started_and_stopped_again_and_again_leave_no_threads_behind() {
    let this = std::env::current_exe().expect("a test knows its program");
    let output = std::process::Command::new(this)
        .args(["--exact", "threads::child", "--nocapture"])
        .env(COUNTS_THREADS, "1")
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("threads kept: false"), "{said}");
}

#[test]
fn a_handler_that_computes_for_long_does_not_stall_another_subscription() {
    let text = "[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"\nqueue = \
                \"orders\"\n[subscriptions.reports]\nbroker = \"main\"\nqueue = \"reports\"\n";
    let config = redeliver::config::Config::from_toml(text).expect("it is usable");
    let (release, wait) = std::sync::mpsc::channel::<()>();
    let wait = Arc::new(Mutex::new(wait));
    let compute = move |_: Delivery<u32>| {
        // Holds its thread until all orders are through.
        let released = wait.lock().unwrap().recv_timeout(Duration::from_secs(20));
        async move { released.map_err(|_| redeliver::Failure::reject("orders were stalled")) }
    };
    let quick = |_: Delivery<u32>| async { Handled::Ok(()) };
    blocking_on(async {
        let builder = Service::builder(config).subscribe("reports", compute);
        let builder = builder.subscribe("orders", quick).signals(false);
        let service = builder.start().await.expect("it starts");
        let publisher = service.publisher("main").expect("it is configured");
        let report = redeliver::Message::bytes("1").to_queue("reports");
        publisher.send(report).await.expect("it is confirmed");
        let computes = async {
            while service.depth("reports").await.expect("it tells").unsettled != Some(1) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(15), computes).await.expect("it computes");
        let began = Instant::now();
        publish(&service, 0..100).await;
        drained(&service).await;
        assert!(began.elapsed() < Duration::from_secs(15));
        release.send(()).expect("the report still waits");
        let stop = service.stop().await;
        assert_eq!(stop.left, 0);
        let metrics = service.metrics().await;
        assert!(
            metrics.contains("redeliver_handled_total{subscription=\"reports\"} 1\n"),
            "{metrics}"
        );
    });
}

/// Whether a thread of this process is called so.
#[cfg(all(feature = "rabbitmq", target_os = "linux"))]
fn is_running(thread: &str) -> bool {
    let threads = std::fs::read_dir("/proc/self/task").expect("this system has /proc");
    let names = threads.flatten().map(|task| std::fs::read_to_string(task.path().join("comm")));
    names.flatten().any(|name| name.trim() == thread)
}

#[cfg(all(feature = "rabbitmq", target_os = "linux"))]
#[test]
fn a_start_that_is_dropped_on_the_way_is_undone() {
    // It takes connections and never says a word.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
    silent.set_nonblocking(true).expect("it can be asked");
    let address = silent.local_addr().expect("it listens");
    let text = format!(
        "[service]\nname = \"undone\"\nstartup_max = \"1h\"\n[brokers.main]\nkind = \"rabbitmq\"\n\
         url = \"amqp://{address}/%2f\"\n[subscriptions.orders]\nbroker = \"main\"\nqueue = \"orders\"\n"
    );
    let config = Config::from_toml(&text).expect("it is right");
    blocking_on(async {
        let builder = Service::builder(config).signals(false);
        let builder = builder.subscribe("orders", |_: Delivery<u32>| async { Handled::Ok(()) });
        let silent = tokio::net::TcpListener::from_std(silent).expect("it listens");
        let _connected = tokio::select! {
            started = builder.start() => panic!("nobody said a word: {:?}", started.map(drop)),
            connected = silent.accept() => connected.expect("it comes"),
        };
        let since = Instant::now();
        while is_running("undone-service") {
            assert!(since.elapsed() < Duration::from_secs(60), "it goes on seeking its broker");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
}
