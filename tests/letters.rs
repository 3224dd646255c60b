//! Messages that are claimed together, on a real Redis: each ends as if it had been claimed alone.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use actix::prelude::*;
use redeliver::config::Config;
use redeliver::store::redis::RedisStore;
use redeliver::store::{
    ClaimAnswer, ClaimAsk, ClaimKey, Ending, Fence, Fingerprint, IdempotencyStore, Owner,
};
use redeliver::{Delivery, Failure, Handled, IntoHandlers, Message, Service};
use support::redis::{Server, aside, settings};

const LEASE: Duration = Duration::from_secs(30);
const KEEP: Duration = Duration::from_secs(600);
const MANY: usize = 60;

/// How often a handler ran for each id.
type Runs = Arc<Mutex<BTreeMap<String, u32>>>;

fn note(runs: &Runs, delivery: &Delivery<String>) -> u32 {
    let mut runs = runs.lock().unwrap();
    let count = runs.entry(delivery.payload.clone()).or_default();
    *count += 1;
    *count
}

async fn service<M>(server: &Server, prefix: &str, handler: impl IntoHandlers<M>) -> Service {
    service_at(&server.url(), prefix, handler).await
}

async fn service_at<M>(url: &str, prefix: &str, handler: impl IntoHandlers<M>) -> Service {
    let text = format!(
        r#"
        [brokers.main]
        kind = "memory"
        [stores.main]
        kind = "redis"
        url = "{url}"
        prefix = "{prefix}"
        [subscriptions.orders]
        broker = "main"
        queue = "orders"
        idempotency = {{ store = "main" }}
        [retry.standard]
        backoff = "fixed"
        delay_min = "30ms"
        jitter = "none"
        "#
    );
    let config = Config::from_toml(&text).unwrap();
    Service::builder(config).subscribe("orders", handler).signals(false).start().await.unwrap()
}

/// All at once, so that many are in a letter.
async fn publish(service: &Service, ids: impl Iterator<Item = String>) {
    let publisher = service.publisher("main").unwrap();
    let sent = ids.map(|id| {
        let message = Message::json(&id).unwrap().to_queue("orders").id(&*id);
        publisher.send(message)
    });
    for sent in futures_util::future::join_all(sent).await {
        sent.unwrap();
    }
}

async fn drained(service: &Service) {
    let empty = async {
        loop {
            let depth = service.depth("orders").await.unwrap();
            if [depth.ready, depth.unsettled, depth.waiting] == [Some(0); 3] {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), empty).await.expect("everything is settled");
}

fn ids() -> impl Iterator<Item = String> {
    (0..MANY).map(|number| format!("id-{number}"))
}

fn key(id: &str, payload: &str) -> ClaimKey {
    let payload = serde_json::to_vec(payload).unwrap();
    let fingerprint = Fingerprint::of(&payload);
    ClaimKey { scope: "orders".into(), id: id.into(), fingerprint, generation: 0 }
}

async fn claim(store: &RedisStore, key: &ClaimKey, owner: &Owner) -> ClaimAnswer {
    let (attempts, holder, seen) = (0, "elsewhere", Fence(0));
    let (lease, keep, force, waits) = (LEASE, KEEP, false, false);
    let ask = ClaimAsk { key, owner, lease, keep, attempts, holder, force, waits, seen };
    store.claim(&ask).await.unwrap()
}

/// Ids that no longer run, and how they ended.
async fn states(store: &RedisStore) -> BTreeMap<&'static str, usize> {
    let mut states = BTreeMap::new();
    for id in ids() {
        let known = store.peek(&key(&id, &id)).await.unwrap();
        *states.entry(known.map_or("unknown", |known| known.state)).or_default() += 1;
    }
    states
}

#[tokio::test(flavor = "multi_thread")]
async fn each_message_of_a_letter_goes_its_own_way() {
    let server = Server::start();
    let settings = settings(&server.url());
    let prefix = settings.prefix.clone();
    let store = RedisStore::new(settings).unwrap();
    let owner = Owner::new();
    for (id, payload) in [("id-1", "id-1"), ("id-2", "id-2"), ("id-3", "another")] {
        let answer = claim(&store, &key(id, payload), &owner).await;
        assert!(matches!(answer, ClaimAnswer::Granted(_)), "{answer:?}");
    }
    let done = Ending::Complete(None);
    assert!(store.end(&key("id-1", "id-1"), &owner, &done, KEEP).await.unwrap());
    let runs = Runs::default();
    let noted = Arc::clone(&runs);
    let handler = move |delivery: Delivery<String>| {
        let count = note(&noted, &delivery);
        async move {
            match (delivery.payload.as_str(), count) {
                ("id-4", 1) => return Err(Failure::retry("not yet")),
                ("id-5", _) => return Err(Failure::reject("never")),
                ("id-6", 1) => panic!("in the middle of a letter"),
                ("id-7", _) => delivery.claim().unwrap().keep("receipt"),
                ("id-8", _) => tokio::time::sleep(Duration::from_millis(50)).await,
                // Those behind it go on one by one.
                ("id-9", _) => std::thread::sleep(Duration::from_millis(20)),
                _ => {}
            }
            Handled::Ok(())
        }
    };
    let service = service(&server, &prefix, handler).await;
    // Each twice, and both often in one letter.
    publish(&service, ids().chain(ids())).await;
    let others_run = || async { runs.lock().unwrap().len() == MANY - 3 };
    let patience = std::time::Instant::now() + Duration::from_secs(60);
    while !others_run().await && std::time::Instant::now() < patience {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(!runs.lock().unwrap().contains_key("id-2"), "it runs elsewhere");
    assert!(store.end(&key("id-2", "id-2"), &owner, &Ending::Release, KEEP).await.unwrap());
    drained(&service).await;
    let runs = runs.lock().unwrap().clone();
    let expected = ids().filter(|id| !["id-1", "id-3"].contains(&&**id)).map(|id| {
        let again = ["id-4", "id-6"].contains(&&*id);
        (id, 1 + u32::from(again))
    });
    assert_eq!(runs, expected.collect());
    assert_eq!(service.depth("orders").await.unwrap().dead, Some(3), "id-3 twice, and id-5");
    let states = states(&store).await;
    assert_eq!(states, BTreeMap::from([("dead", 1), ("done", MANY - 2), ("running", 1)]));
    let kept = claim(&store, &key("id-7", "id-7"), &Owner::new()).await;
    assert_eq!(kept, ClaimAnswer::Done(Some("receipt".into())));
    service.stop().await;
}

/// The store is gone when the letter is to be completed, and forgets all of it.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_handled_when_the_store_died_is_not_handled_again() {
    let server = Arc::new(Mutex::new(Server::start()));
    let prefix = settings("redis://any").prefix;
    let (runs, is_dead) = (Runs::default(), Arc::new(AtomicBool::new(false)));
    let (noted, dies, killed) = (Arc::clone(&runs), Arc::clone(&server), Arc::clone(&is_dead));
    let handler = move |delivery: Delivery<String>| {
        note(&noted, &delivery);
        if delivery.payload == "id-20" {
            dies.lock().unwrap().kill();
            killed.store(true, Ordering::SeqCst);
        }
        async { Handled::Ok(()) }
    };
    let service = {
        let url_of = server.lock().unwrap().url();
        service_at(&url_of, &prefix, handler).await
    };
    publish(&service, ids()).await;
    while !is_dead.load(Ordering::SeqCst) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let back = Arc::clone(&server);
    aside(move || back.lock().unwrap().restart()).await;
    drained(&service).await;
    let runs = runs.lock().unwrap().clone();
    assert_eq!(runs, ids().map(|id| (id, 1)).collect(), "each once");
    let url = server.lock().unwrap().url();
    let mut settings = settings(&url);
    settings.prefix = prefix;
    let store = RedisStore::new(settings).unwrap();
    assert_eq!(states(&store).await, BTreeMap::from([("done", MANY)]), "the late ends as well");
    service.stop().await;
}

/// Ends itself in the middle of a letter, once.
struct Ends(Runs);

impl Actor for Ends {
    type Context = Context<Self>;
}

impl Handler<Delivery<String>> for Ends {
    type Result = ResponseFuture<Handled>;

    fn handle(&mut self, delivery: Delivery<String>, ctx: &mut Context<Self>) -> Self::Result {
        let is_first = note(&self.0, &delivery) == 1;
        if delivery.payload == "id-20" && is_first {
            ctx.stop();
            return Box::pin(std::future::pending());
        }
        Box::pin(async { Ok(()) })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_actor_that_ends_in_the_middle_of_a_letter_leaves_nothing_claimed_and_nothing_twice() {
    let server = Server::start();
    let settings = settings(&server.url());
    let prefix = settings.prefix.clone();
    let store = RedisStore::new(settings).unwrap();
    let runs = Runs::default();
    let noted = Arc::clone(&runs);
    let service = service(&server, &prefix, move || Ends(Arc::clone(&noted))).await;
    publish(&service, ids()).await;
    drained(&service).await;
    let runs = runs.lock().unwrap().clone();
    let expected = ids().map(|id| {
        let again = u32::from(id == "id-20");
        (id, 1 + again)
    });
    assert_eq!(runs, expected.collect());
    assert_eq!(states(&store).await, BTreeMap::from([("done", MANY)]));
    service.stop().await;
}
