//! All cores are used, and nobody's handler stalls another's.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use redeliver::{Delivery, Handled, Service};

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
