//! Handlers that panic, stop, cannot be made, or block: what it costs, and whom.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use actix::prelude::*;
use redeliver::testing::TestService;
use redeliver::{Delivery, Failure, Handled, SubscriptionState, blocking};

use crate::bench::{THRICE, config, obey, orders, text};

struct Counted(Arc<AtomicU32>);

impl Actor for Counted {
    type Context = Context<Self>;
}

impl Handler<Delivery<String>> for Counted {
    type Result = ResponseFuture<Handled>;

    fn handle(&mut self, delivery: Delivery<String>, ctx: &mut Context<Self>) -> Self::Result {
        if delivery.payload == "stop once" && self.0.load(Ordering::SeqCst) == 1 {
            ctx.stop();
        }
        Box::pin(obey(delivery))
    }
}

fn counted(subscription: &str) -> (TestService, Arc<AtomicU32>) {
    let made = Arc::new(AtomicU32::new(0));
    let factory = Arc::clone(&made);
    let test = orders(subscription, THRICE, move || {
        factory.fetch_add(1, Ordering::SeqCst);
        Counted(Arc::clone(&factory))
    });
    (test, made)
}

#[test]
fn a_panic_loses_no_neighbour_counts_none_and_the_actor_is_made_anew() {
    let (mut test, made) = counted("");
    test.publish("orders", text("running", "slow"));
    test.publish("orders", text("7", "panic once"));
    test.publish("orders", text("behind", "ok"));
    test.finish();
    let log = test.log();
    for line in [
        "running: attempt 1 handled",
        "behind: attempt 1 handled",
        "7: attempt 1 retry after 200ms: panicked: the handler has a bug",
        "7: attempt 2 handled",
    ] {
        assert_eq!(log.iter().filter(|said| *said == line).count(), 1, "{line}: {log:?}");
    }
    assert_eq!(made.load(Ordering::SeqCst), 2);
}

#[test]
fn after_a_panic_the_next_message_has_a_new_actor_at_once_and_the_neighbours_run_on() {
    let (mut test, made) = counted("timeout = \"1h\"\nin_flight_max = 8");
    test.publish("orders", text("running", "hang"));
    test.publish("orders", text("slow", "slow"));
    test.publish("orders", text("7", "panic once"));
    test.publish("orders", text("8", "panic once"));
    assert_eq!(made.load(Ordering::SeqCst), 3, "no time has passed, and both were replaced");
    test.publish("orders", text("next", "ok"));
    assert_eq!(test.log()[2], "next: attempt 1 handled", "{:?}", test.log());
    test.advance(Duration::from_secs(1));
    let mut log = test.log();
    log.sort();
    assert_eq!(
        log,
        [
            "7: attempt 1 retry after 200ms: panicked: the handler has a bug",
            "7: attempt 2 handled",
            "8: attempt 1 retry after 200ms: panicked: the handler has a bug",
            "8: attempt 2 handled",
            "next: attempt 1 handled",
            "slow: attempt 1 handled",
        ],
        "the first actor finishes what it runs, and nothing is counted twice"
    );
    let depth = depth(&mut test);
    assert_eq!(depth.unsettled, Some(1), "the one that hangs is still in hand");
}

#[test]
fn a_handler_actor_that_stops_loses_nothing_and_costs_no_attempt() {
    let (mut test, made) = counted("");
    test.publish("orders", text("running", "slow"));
    test.publish("orders", text("7", "stop once"));
    test.finish();
    let handled: Vec<_> =
        test.log().into_iter().filter(|line| !line.ends_with("interrupted")).collect();
    assert_eq!(handled.len(), 2, "{:?}", test.log());
    assert!(handled.contains(&"running: attempt 1 handled".to_owned()), "{handled:?}");
    let rejected = "7: attempt 1 dead-lettered: rejected: cannot stop".to_owned();
    assert!(handled.contains(&rejected), "{handled:?}");
    assert_eq!(made.load(Ordering::SeqCst), 2);
}

#[test]
fn a_factory_that_panics_spends_the_restarts_and_then_the_subscription_waits_for_a_human() {
    let broken = Arc::new(AtomicU32::new(1));
    let switch = Arc::clone(&broken);
    let mut test = orders("", THRICE, move || {
        assert!(switch.load(Ordering::SeqCst) == 0, "no database");
        Counted(Arc::new(AtomicU32::new(0)))
    });
    test.publish("orders", text("7", "ok"));
    test.advance(Duration::from_secs(60));
    let health = test.service().health();
    assert!(!health.ready, "{health:?}");
    let SubscriptionState::Failed(why) = &health.subscriptions["orders"].state else {
        panic!("{health:?}");
    };
    assert!(why.contains("no database"), "{why}");
    let depth = depth(&mut test);
    assert_eq!(
        (depth.ready, depth.unsettled),
        (Some(1), Some(0)),
        "the message is with the broker"
    );

    broken.store(0, Ordering::SeqCst);
    let service = test.service();
    test.run(async move { service.resume("orders").await }).expect("it resumes");
    test.finish();
    assert_eq!(test.log().last().map(String::as_str), Some("7: attempt 1 handled"));
    assert!(test.service().health().ready);
}

#[test]
fn a_stop_after_the_restarts_are_spent_waits_for_nobody() {
    let mut test = orders("", THRICE, || -> Counted { panic!("never") });
    for number in 0..20 {
        test.publish("orders", text(&number.to_string(), "ok"));
    }
    test.advance(Duration::from_secs(60));
    assert_eq!(depth(&mut test).ready, Some(20), "all are with the broker");
    let service = test.service();
    let stop = test.run(async move {
        let began = tokio::time::Instant::now();
        (service.stop().await.left, began.elapsed())
    });
    assert!(stop.0 == 0 && stop.1 < Duration::from_secs(5), "{stop:?}");
}

#[test]
fn the_restarts_of_a_dead_factory_are_bounded() {
    let made = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&made);
    let mut test = orders("", THRICE, move || -> Counted {
        counter.fetch_add(1, Ordering::SeqCst);
        panic!("never")
    });
    test.advance(Duration::from_secs(600));
    let made = made.load(Ordering::SeqCst);
    assert!((2..=40).contains(&made), "made {made} times in ten minutes");
}

/// Blocks, in real time.
struct Driver;

impl Actor for Driver {
    type Context = SyncContext<Self>;
}

impl Handler<Delivery<String>> for Driver {
    type Result = Handled;

    fn handle(&mut self, delivery: Delivery<String>, _: &mut SyncContext<Self>) -> Handled {
        std::thread::sleep(Duration::from_millis(5));
        match (delivery.payload.as_str(), delivery.attempt()) {
            ("panic", 1) => panic!("the driver has a bug"),
            ("retry", 1) => Err(Failure::retry("deadlock found")),
            _ => Ok(()),
        }
    }
}

#[test]
fn a_blocking_handler_can_fail_and_panic_like_any_other() {
    let mut test = orders("", THRICE, blocking(2, || Driver));
    for word in ["ok", "retry", "panic"] {
        test.publish("orders", text(word, word));
    }
    test.finish();
    let mut log = test.log();
    log.sort();
    assert_eq!(
        log,
        [
            "ok: attempt 1 handled",
            "panic: attempt 1 retry after 200ms: panicked: the driver has a bug",
            "panic: attempt 2 handled",
            "retry: attempt 1 retry after 200ms: deadlock found",
            "retry: attempt 2 handled",
        ]
    );
}

#[test]
fn a_blocking_factory_that_panics_charges_no_message_and_spends_the_restarts() {
    let (broken, made) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicU32::new(0)));
    let (switch, counter) = (Arc::clone(&broken), Arc::clone(&made));
    let handlers = blocking(1, move || {
        counter.fetch_add(1, Ordering::SeqCst);
        assert!(!switch.load(Ordering::SeqCst), "no database");
        Driver
    });
    let mut test = orders("", "attempts_max = 1", handlers);
    test.publish("orders", text("7", "ok"));
    test.publish("orders", text("8", "ok"));
    test.advance(Duration::from_secs(300));
    let health = test.service().health();
    let SubscriptionState::Failed(why) = &health.subscriptions["orders"].state else {
        panic!("{health:?}: {:?}", test.log());
    };
    assert!(why.contains("factory panicked: no database"), "{why}");
    assert!(!health.ready);
    let depth = depth(&mut test);
    assert_eq!((depth.ready, depth.unsettled), (Some(2), Some(0)), "both are with the broker");
    let made = made.load(Ordering::SeqCst);
    assert!((2..=40).contains(&made), "made {made} times in five minutes");

    broken.store(false, Ordering::SeqCst);
    let service = test.service();
    test.run(async move { service.resume("orders").await }).expect("it resumes");
    test.finish();
    let log: Vec<_> =
        test.log().into_iter().filter(|line| !line.ends_with("interrupted")).collect();
    assert_eq!(log, ["7: attempt 1 handled", "8: attempt 1 handled"]);
    assert!(test.service().health().ready);
}

#[test]
fn a_panic_of_one_blocking_thread_holds_up_no_other() {
    struct Held(Arc<Mutex<std::sync::mpsc::Receiver<()>>>, std::sync::mpsc::Sender<()>);
    impl Actor for Held {
        type Context = SyncContext<Self>;
    }
    impl Handler<Delivery<String>> for Held {
        type Result = Handled;
        fn handle(&mut self, delivery: Delivery<String>, _: &mut SyncContext<Self>) -> Handled {
            match (delivery.payload.as_str(), delivery.attempt()) {
                ("held", _) => {
                    let released = self.0.lock().unwrap().recv_timeout(Duration::from_secs(20));
                    released.map_err(|_| Failure::reject("nobody came"))
                }
                ("panic", 1) => panic!("the driver has a bug"),
                ("panic", _) => {
                    self.1.send(()).expect("somebody waits");
                    Ok(())
                }
                _ => Ok(()),
            }
        }
    }
    let (release, released) = std::sync::mpsc::channel();
    let released = Arc::new(Mutex::new(released));
    let handlers = blocking(2, move || Held(Arc::clone(&released), release.clone()));
    let builder = redeliver::Service::builder(config("", THRICE)).subscribe("orders", handlers);
    crate::runtimes::blocking_on(async {
        let service = builder.signals(false).start().await.expect("it starts");
        crate::runtimes::publish(&service, ["held", "panic"]).await;
        crate::runtimes::drained(&service).await;
        let metrics = service.metrics().await;
        for line in [
            "redeliver_handled_total{subscription=\"orders\"} 2\n",
            "redeliver_retried_total{subscription=\"orders\"} 1\n",
            "redeliver_restarts_total{subscription=\"orders\"} 1\n",
        ] {
            assert!(metrics.contains(line), "{line}: {metrics}");
        }
        assert_eq!(service.stop().await.left, 0);
    });
}

#[test]
fn a_blocking_handler_past_its_timeout_keeps_its_permit_and_its_answer_counts() {
    struct Slow(Arc<AtomicU32>);
    impl Actor for Slow {
        type Context = SyncContext<Self>;
    }
    impl Handler<Delivery<u32>> for Slow {
        type Result = Handled;
        fn handle(&mut self, _: Delivery<u32>, _: &mut SyncContext<Self>) -> Handled {
            let beside = self.0.fetch_add(1, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(60));
            self.0.fetch_sub(1, Ordering::SeqCst);
            assert_eq!(beside, 0, "a permit was given twice");
            Ok(())
        }
    }
    let running = Arc::new(AtomicU32::new(0));
    let handlers = blocking(4, move || Slow(Arc::clone(&running)));
    let config = config("timeout = \"10ms\"\nin_flight_max = 1", THRICE);
    let builder = redeliver::Service::builder(config).subscribe("orders", handlers).signals(false);
    crate::runtimes::blocking_on(async {
        let service = builder.start().await.expect("it starts");
        crate::runtimes::publish(&service, 0..5).await;
        crate::runtimes::drained(&service).await;
        let metrics = service.metrics().await;
        assert!(
            metrics.contains("redeliver_handled_total{subscription=\"orders\"} 5\n"),
            "{metrics}"
        );
        assert!(
            metrics.contains("redeliver_retried_total{subscription=\"orders\"} 0\n"),
            "{metrics}"
        );
        assert_eq!(service.stop().await.left, 0);
    });
}

fn depth(test: &mut TestService) -> redeliver::broker::Depth {
    let service = test.service();
    test.run(async move { service.depth("orders").await }).expect("the broker tells")
}

/// An error, and something held, that break when they are looked at or let go.
#[derive(Debug)]
struct Fragile;

impl std::fmt::Display for Fragile {
    fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        panic!("the text has a bug");
    }
}

impl std::error::Error for Fragile {}

struct Breaks;

impl Drop for Breaks {
    fn drop(&mut self) {
        panic!("the drop has a bug");
    }
}

async fn fragile(delivery: Delivery<String>) -> Handled {
    match delivery.payload.as_str() {
        "text" => Err(Failure::retry(Fragile)),
        "drop" => {
            let _breaks = Breaks;
            std::future::pending().await
        }
        _ => obey(delivery).await,
    }
}

struct FragileActor;

impl Actor for FragileActor {
    type Context = Context<Self>;
}

impl Handler<Delivery<String>> for FragileActor {
    type Result = ResponseActFuture<Self, Handled>;

    fn handle(&mut self, delivery: Delivery<String>, _: &mut Context<Self>) -> Self::Result {
        Box::pin(fragile(delivery).into_actor(self))
    }
}

struct FragileCodec;

impl redeliver::Codec<String> for FragileCodec {
    fn accepts(&self, _: Option<&str>) -> bool {
        true
    }

    fn decode(&self, body: Option<&[u8]>) -> Result<String, redeliver::DecodeError> {
        match body {
            Some(b"\"undecodable\"") => Err(Box::new(Fragile)),
            body => redeliver::Json.decode(body),
        }
    }
}

#[test]
fn a_panic_in_the_text_or_the_drop_of_what_is_the_users_costs_its_message_and_nobody_else() {
    for mut test in [
        orders("timeout = \"300ms\"", THRICE, fragile),
        orders("timeout = \"300ms\"", THRICE, || FragileActor),
    ] {
        test.publish("orders", text("neighbour", "slow once"));
        test.publish("orders", text("text", "text"));
        test.publish("orders", text("drop", "drop"));
        test.finish();
        test.publish("orders", text("next", "ok"));
        let log = test.log();
        for line in [
            "text: attempt 1 retry after 200ms: its text panicked: the text has a bug",
            "text: attempt 2 retry after 200ms: its text panicked: the text has a bug",
            "text: attempt 3 dead-lettered: exhausted: its text panicked: the text has a bug",
            "drop: attempt 1 retry after 200ms: took longer than 300ms",
            "drop: attempt 2 retry after 200ms: took longer than 300ms",
            "drop: attempt 3 dead-lettered: exhausted: took longer than 300ms",
            "neighbour: attempt 2 handled",
            "next: attempt 1 handled",
        ] {
            assert_eq!(log.iter().filter(|said| *said == line).count(), 1, "{line}: {log:#?}");
        }
        assert!(log.iter().all(|line| !line.contains("interrupted")), "{log:#?}");
    }
}

#[test]
fn an_undecodable_message_whose_error_has_no_text_is_dead_lettered() {
    let handler = redeliver::with_codec(FragileCodec, || FragileActor);
    let mut test = orders("", THRICE, handler);
    test.publish("orders", text("7", "undecodable"));
    test.publish("orders", text("8", "ok"));
    test.finish();
    assert_eq!(
        test.log(),
        [
            "7: dead-lettered: undecodable: the codec panicked: the text has a bug",
            "8: attempt 1 handled",
        ]
    );
}
