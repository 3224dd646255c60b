//! Claims, locks and order around a handler, through the public API.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use actix::prelude::*;
use redeliver::config::Config;
use redeliver::{
    Batch, Claim, Delivery, Failure, Handled, IntoHandlers, Message, Redrive, Service, blocking,
    in_batches,
};

/// What handlers did, in order: id, key, attempt.
type Log = Arc<Mutex<Vec<(String, u64, u32)>>>;

#[derive(serde::Deserialize)]
struct Transfer {
    account: u64,
    fails: u32,
    millis: u64,
}

async fn service(more: &str, log: Log) -> Service {
    let handler = move |delivery: Delivery<Transfer>| {
        let log = Arc::clone(&log);
        async move {
            tokio::time::sleep(Duration::from_millis(delivery.payload.millis)).await;
            let (id, attempt) = (delivery.id().unwrap_or("?").to_owned(), delivery.attempt());
            log.lock().unwrap().push((id, delivery.payload.account, attempt));
            if attempt <= delivery.payload.fails {
                return Err(Failure::retry("not yet"));
            }
            Handled::Ok(())
        }
    };
    service_of(more, handler).await
}

async fn service_of<M>(more: &str, handlers: impl IntoHandlers<M>) -> Service {
    let text = format!(
        r#"
        [brokers.main]
        kind = "memory"
        [stores.main]
        kind = "memory"
        [subscriptions.transfers]
        broker = "main"
        queue = "transfers"
        {more}
        [retry.standard]
        backoff = "fixed"
        delay_min = "30ms"
        jitter = "none"
        attempts_max = 4
        "#
    );
    let config = Config::from_toml(&text).unwrap();
    Service::builder(config).subscribe("transfers", handlers).signals(false).start().await.unwrap()
}

async fn publish(service: &Service, id: &str, account: u64, fails: u32, millis: u64) {
    let payload = serde_json::json!({ "account": account, "fails": fails, "millis": millis });
    let message = Message::json(&payload).unwrap().to_queue("transfers").id(id);
    service.publisher("main").unwrap().send(message).await.unwrap();
}

async fn drained(service: &Service) {
    let empty = async {
        loop {
            let depth = service.depth("transfers").await.unwrap();
            if [depth.ready, depth.unsettled, depth.waiting] == [Some(0); 3] {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), empty).await.expect("everything is settled");
}

fn metric(text: &str, name: &str) -> u64 {
    let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
    line.rsplit(' ').next().and_then(|value| value.parse().ok()).unwrap_or(u64::MAX)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_that_comes_ten_times_is_handled_once() {
    let log = Log::default();
    let service = service(r#"idempotency = { store = "main" }"#, Arc::clone(&log)).await;
    for _ in 0..10 {
        for id in 0..20 {
            publish(&service, &format!("t-{id}"), id, u32::from(id.is_multiple_of(4)), 2).await;
        }
    }
    drained(&service).await;
    let mut worked = HashMap::<String, u32>::new();
    for (id, account, attempt) in log.lock().unwrap().iter() {
        if *attempt > u32::from(account.is_multiple_of(4)) {
            *worked.entry(id.clone()).or_default() += 1;
        }
    }
    assert_eq!(worked.len(), 20);
    assert!(worked.values().all(|count| *count == 1), "{worked:?}");
    assert_eq!(metric(&service.metrics().await, "redeliver_duplicates_total"), 180);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exhausted_id_stays_dead_and_its_copies_are_acknowledged() {
    let log = Log::default();
    let service = service(r#"idempotency = { store = "main" }"#, Arc::clone(&log)).await;
    for _ in 0..3 {
        publish(&service, "bad", 1, u32::MAX, 0).await;
    }
    drained(&service).await;
    assert_eq!(log.lock().unwrap().len(), 4, "attempts_max counts over all copies");
    assert_eq!(service.depth("transfers").await.unwrap().dead, Some(1));
    let done =
        service.dead_letters("transfers").unwrap().redrive(&Default::default()).await.unwrap();
    assert_eq!((done.matched, done.moved), (1, 1));
    drained(&service).await;
    assert_eq!(log.lock().unwrap().len(), 8, "a redrive opens it again");
    assert_eq!(service.depth("transfers").await.unwrap().dead, Some(1));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_id_with_another_payload_is_a_dead_letter() {
    let service = service(r#"idempotency = { store = "main" }"#, Log::default()).await;
    publish(&service, "t", 1, 0, 0).await;
    drained(&service).await;
    publish(&service, "t", 2, 0, 0).await;
    drained(&service).await;
    let mut pages = service.dead_letters("transfers").unwrap().pages(10).await.unwrap();
    let page = pages.next().await.unwrap().expect("a dead letter");
    assert_eq!(page[0].reason, Some(redeliver::Reason::Mismatch));
    pages.close().await.unwrap();
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_one_key_keep_their_order_over_failures_and_others_go_on() {
    let log = Log::default();
    let more = "ordering = \"key\"\nkey = \"/account\"\norder_wait_max = \"30s\"\norder_on_long_wait = \"reorder\"";
    let service = service(more, Arc::clone(&log)).await;
    for number in 0..60u64 {
        publish(
            &service,
            &format!("{number:02}"),
            number % 6,
            u32::from(number.is_multiple_of(7)),
            1,
        )
        .await;
    }
    drained(&service).await;
    let log = log.lock().unwrap().clone();
    for account in 0..6 {
        let of_key: Vec<&String> =
            log.iter().filter(|(_, key, _)| *key == account).map(|(id, ..)| id).collect();
        assert!(of_key.is_sorted(), "account {account}: {of_key:?}");
    }
    assert!(!log.iter().map(|(id, ..)| id).is_sorted(), "keys went on beside one another");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_lane_takes_one_message_after_the_other() {
    let log = Log::default();
    let more = "ordering = \"lane\"\norder_wait_max = \"30s\"\norder_on_long_wait = \"reorder\"";
    let service = service(more, Arc::clone(&log)).await;
    for number in 0..30u64 {
        publish(&service, &format!("{number:02}"), number, u32::from(number.is_multiple_of(7)), 0)
            .await;
    }
    drained(&service).await;
    assert!(log.lock().unwrap().iter().map(|(id, ..)| id).is_sorted());
    assert_eq!(log.lock().unwrap().len(), 35);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_lets_one_handler_of_its_key_run_at_a_time() {
    let log = Log::default();
    let service = service(r#"lock = { store = "main", key = "/account" }"#, Arc::clone(&log)).await;
    let begun = std::time::Instant::now();
    for number in 0..5 {
        publish(&service, &format!("{number}"), 7, 0, 40).await;
    }
    drained(&service).await;
    assert_eq!(log.lock().unwrap().len(), 5);
    assert!(begun.elapsed() >= Duration::from_millis(200), "they ran one after another");
    service.stop().await;
}

/// Dead letters of one id that was handled with another payload.
async fn mismatched(service: &Service) {
    publish(service, "t", 2, 0, 0).await;
    drained(service).await;
    assert_eq!(service.depth("transfers").await.unwrap().dead, Some(1));
}

async fn redrive(service: &Service, force: bool) {
    let redrive = Redrive { force, ..Redrive::default() };
    let done = service.dead_letters("transfers").unwrap().redrive(&redrive).await.unwrap();
    assert_eq!(done.moved, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_redrive_by_force_handles_an_id_again_that_is_done_and_only_once() {
    let log = Log::default();
    let service = service(r#"idempotency = { store = "main" }"#, Arc::clone(&log)).await;
    publish(&service, "t", 1, 0, 0).await;
    drained(&service).await;
    mismatched(&service).await;
    redrive(&service, false).await;
    drained(&service).await;
    assert_eq!(log.lock().unwrap().len(), 1, "it is done");
    mismatched(&service).await;
    redrive(&service, true).await;
    drained(&service).await;
    let accounts = || log.lock().unwrap().iter().map(|seen| seen.1).collect::<Vec<_>>();
    assert_eq!(accounts(), [1, 2], "by force it is handled again");
    publish(&service, "t", 2, 0, 0).await;
    drained(&service).await;
    assert_eq!(accounts(), [1, 2], "and is done");
    assert_eq!(metric(&service.metrics().await, "redeliver_duplicates_total"), 2);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redrive_by_force_stays_one_while_it_is_deferred_and_fails() {
    let log = Log::default();
    let keys =
        "idempotency = { store = \"main\" }\nlock = { store = \"main\", key = \"/account\" }";
    let service = service(keys, Arc::clone(&log)).await;
    publish(&service, "t", 1, 0, 0).await;
    drained(&service).await;
    publish(&service, "t", 2, 2, 0).await;
    drained(&service).await;
    let locks = service.locks("main").unwrap();
    let guard = locks.acquire("2").await.unwrap();
    redrive(&service, true).await;
    let deferred = async {
        while metric(&service.metrics().await, "redeliver_deferred_total") < 1 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), deferred).await.expect("its lock is held");
    guard.release().await.unwrap();
    drained(&service).await;
    let seen: Vec<_> = log.lock().unwrap().iter().map(|seen| (seen.1, seen.2)).collect();
    assert_eq!(seen, [(1, 1), (2, 1), (2, 2), (2, 3)]);
    service.stop().await;
}

/// Notes the fences of each batch, and how many batches were at work at once at the most.
#[derive(Clone, Default)]
struct Bookkeeper {
    batches: Arc<Mutex<Vec<Vec<u64>>>>,
    at_work: Arc<AtomicUsize>,
    at_once: Arc<AtomicUsize>,
}

impl Actor for Bookkeeper {
    type Context = Context<Self>;
}

impl Handler<Batch<Transfer>> for Bookkeeper {
    type Result = ResponseFuture<Vec<Handled>>;

    fn handle(&mut self, batch: Batch<Transfer>, _: &mut Context<Self>) -> Self::Result {
        let own = self.clone();
        Box::pin(async move {
            let at_work = own.at_work.fetch_add(1, Ordering::SeqCst) + 1;
            own.at_once.fetch_max(at_work, Ordering::SeqCst);
            let locks = batch.deliveries[0].locks().unwrap();
            let account = batch.deliveries[0].payload.account.to_string();
            let own_fence = locks.acquire(account).wait(Duration::ZERO).await.unwrap().fence().0;
            tokio::time::sleep(Duration::from_millis(20)).await;
            own.at_work.fetch_sub(1, Ordering::SeqCst);
            let fence = |delivery: &Delivery<Transfer>| delivery.claim().and_then(Claim::fence);
            let fences: Vec<u64> = batch.deliveries.iter().filter_map(fence).collect();
            assert!(fences.iter().all(|fence| *fence == own_fence), "{fences:?}, {own_fence}");
            own.batches.lock().unwrap().push(fences);
            batch.deliveries.iter().map(|_| Ok(())).collect()
        })
    }
}

async fn check_batches(guards: &str) {
    let books = Bookkeeper::default();
    // Nobody waits that long: each batch is full, or the test fails.
    let more = format!("{guards}\nbatch = {{ size = 4, wait = \"10m\" }}\ntimeout = \"20m\"");
    let own = books.clone();
    let service = service_of(&more, in_batches(move || own.clone())).await;
    for number in 0..12 {
        publish(&service, &number.to_string(), 7, 0, 0).await;
    }
    drained(&service).await;
    let batches = books.batches.lock().unwrap().clone();
    assert_eq!(batches.iter().map(Vec::len).collect::<Vec<_>>(), [4, 4, 4]);
    assert!(batches.iter().all(|fences| fences.iter().all(|fence| *fence == fences[0])));
    assert!(batches.is_sorted(), "each batch has a hold of its own: {batches:?}");
    assert_eq!(books.at_once.load(Ordering::SeqCst), 1, "two batches held one key");
    assert_eq!(service.locks("main").unwrap().inspect("7").await.unwrap(), None, "released");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_one_key_share_the_lock_of_their_batch_and_the_next_batch_waits() {
    check_batches(r#"lock = { store = "main", key = "/account" }"#).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn so_they_do_with_claims() {
    let guards =
        "lock = { store = \"main\", key = \"/account\" }\nidempotency = { store = \"main\" }";
    check_batches(guards).await;
}

/// Counts what its batches held.
struct Counter(Arc<AtomicUsize>);

impl Actor for Counter {
    type Context = Context<Self>;
}

impl Handler<Batch<Transfer>> for Counter {
    type Result = Vec<Handled>;

    fn handle(&mut self, batch: Batch<Transfer>, _: &mut Context<Self>) -> Self::Result {
        self.0.fetch_add(batch.deliveries.len(), Ordering::SeqCst);
        batch.deliveries.iter().map(|_| Ok(())).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_holds_none_of_those_whose_lock_was_lost_while_it_gathered() {
    let given = Arc::new(AtomicUsize::new(0));
    let counting = Arc::clone(&given);
    // Each attempt loses its lock long before the batch is handed over.
    let guards = "lock = { store = \"main\", key = \"/account\", lease = \"200ms\", hold_max = \"200ms\" }\n\
                  batch = { size = 50, wait = \"5s\" }";
    let service = service_of(guards, in_batches(move || Counter(Arc::clone(&counting)))).await;
    publish(&service, "t", 7, 0, 0).await;
    drained(&service).await;
    assert_eq!(service.depth("transfers").await.unwrap().dead, Some(1), "every attempt was spent");
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(given.load(Ordering::SeqCst), 0);
    service.stop().await;
}

/// How many handlers were at work at once at the most, of two messages of one key.
async fn most_at_once(guards: &str, publish: impl AsyncFn(&Service)) -> usize {
    let (at_work, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (working, highest) = (Arc::clone(&at_work), Arc::clone(&most));
    let handler = move |delivery: Delivery<Transfer>| {
        let (working, highest) = (Arc::clone(&working), Arc::clone(&highest));
        async move {
            highest.fetch_max(working.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(delivery.payload.millis)).await;
            working.fetch_sub(1, Ordering::SeqCst);
            Handled::Ok(())
        }
    };
    let service = service_of(guards, handler).await;
    publish(&service).await;
    drained(&service).await;
    service.stop().await;
    most.load(Ordering::SeqCst)
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_without_ids_are_locked_all_the_same() {
    let guards = "idempotency = { store = \"main\" }\nid_missing = \"run\"\n\
        lock = { store = \"main\", key = \"/account\" }";
    let publish = async |service: &Service| {
        for _ in 0..3 {
            // As a property it is too long to be one.
            publish(service, &"x".repeat(5000), 7, 0, 60).await;
        }
    };
    assert_eq!(most_at_once(guards, publish).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn duplicates_that_the_handler_is_called_for_are_locked_all_the_same() {
    let guards = "idempotency = { store = \"main\", on_duplicate = \"call\" }\n\
        lock = { store = \"main\", key = \"/account\" }";
    let publish_three = async |service: &Service| {
        publish(service, "t", 7, 0, 60).await;
        drained(service).await;
        for _ in 0..3 {
            publish(service, "t", 7, 0, 60).await;
        }
    };
    assert_eq!(most_at_once(guards, publish_three).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_that_the_breaker_spares_cost_no_attempt_with_claims_either() {
    for guards in ["", "idempotency = { store = \"main\" }"] {
        let (attempts, works) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicUsize::new(0)));
        let (seen, calls) = (Arc::clone(&attempts), Arc::clone(&works));
        let handler = move |delivery: Delivery<Transfer>| {
            let (seen, calls) = (Arc::clone(&seen), Arc::clone(&calls));
            async move {
                seen.lock().unwrap().push(delivery.attempt());
                // Three failures open it; what it lets through then works.
                match calls.fetch_add(1, Ordering::SeqCst) {
                    0..3 => Handled::Err(Failure::retry("not yet")),
                    _ => Ok(()),
                }
            }
        };
        let more = format!(
            "{guards}\nin_flight_max = 1\n\
             breaker = {{ attempts_min = 3, failure_rate = 0.9, window = \"10m\", pause = \"300ms\", pause_max = \"300ms\" }}"
        );
        let service = service_of(&more, handler).await;
        publish(&service, "t", 1, 0, 0).await;
        drained(&service).await;
        service.stop().await;
        assert_eq!(*attempts.lock().unwrap(), [1, 2, 3, 3], "with {guards:?}");
    }
}

/// Blocks its thread for longer than it may hold a lock.
struct Slow(Arc<AtomicUsize>);

impl Actor for Slow {
    type Context = SyncContext<Self>;
}

impl Handler<Delivery<Transfer>> for Slow {
    type Result = Handled;

    fn handle(&mut self, delivery: Delivery<Transfer>, _: &mut SyncContext<Self>) -> Handled {
        std::thread::sleep(Duration::from_millis(delivery.payload.millis));
        self.0.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_claims_a_blocking_handler_past_hold_max_that_ends_well_runs_once() {
    let runs = Arc::new(AtomicUsize::new(0));
    let counting = Arc::clone(&runs);
    let guards =
        "lock = { store = \"main\", key = \"/account\", lease = \"200ms\", hold_max = \"200ms\" }";
    let service = service_of(guards, blocking(1, move || Slow(Arc::clone(&counting)))).await;
    publish(&service, "t", 7, 0, 600).await;
    drained(&service).await;
    assert_eq!(runs.load(Ordering::SeqCst), 1);
    let metrics = service.metrics().await;
    assert_eq!(
        metric(&metrics, "redeliver_possible_duplicates_total"),
        1,
        "another may have had it"
    );
    service.stop().await;
}
