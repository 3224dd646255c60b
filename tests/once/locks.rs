//! One at a time per key: lost locks, handlers that hang, keys that are busy.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use redeliver::config::Config;
use redeliver::lock_keeper::{AcquireLock, InspectLock};
use redeliver::store::redis::{RedisSettings, RedisStore};
use redeliver::store::{ClaimAnswer, ClaimAsk, ClaimKey, Ending, Fence, Fingerprint};
use redeliver::store::{IdempotencyStore, LockPolicy, Owner};
use redeliver::{ClaimStatus, Delivery, Failure, Handled, Service};
use serde_json::{Value, json};

use crate::lab::{BROKER_WAITS, Lab, Log, SHORT_WAITS, redis_url};
use crate::support::redis::{Server, aside};

const GUARDED: &str = "idempotency = { store = \"main\" }\n\
    lock = { store = \"main\", key = \"/key\", lease = \"3s\", wait = \"200ms\" }";

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_lock_cancels_its_handler_and_costs_no_attempt() {
    let (lab, log) = (Lab::new(), Log::default());
    let (noting, finished) = (log.clone(), Arc::new(AtomicUsize::new(0)));
    let done = Arc::clone(&finished);
    let handler = move |delivery: Delivery<Value>| {
        let (noting, done) = (noting.clone(), Arc::clone(&done));
        async move {
            noting.note(&delivery);
            if noting.len() == 1 {
                tokio::time::sleep(Duration::from_secs(20)).await;
            }
            done.fetch_add(1, Ordering::Relaxed);
            Handled::Ok(())
        }
    };
    let service = lab.start(&lab.toml(GUARDED, SHORT_WAITS), handler).await;
    let key = format!("{}:a", lab.name);
    lab.send(&service, "m", json!({ "key": key })).await;
    lab.eventually("the first run", async || log.len() == 1).await;
    let locks = service.locks("main").expect("it is configured");
    assert!(locks.force_release(&key).await.expect("an answer"));
    let began = Instant::now();
    lab.eventually("the second run", async || log.len() == 2).await;
    assert!(began.elapsed() < Duration::from_secs(15), "the first was cancelled");
    lab.drained(&service).await;
    let seen = log.all();
    assert_eq!(seen[1].attempt, 1, "no attempt was lost");
    assert_eq!(seen[1].claim, Some(ClaimStatus::TakenOver), "the second is told of the first");
    assert_eq!(finished.load(Ordering::Relaxed), 1, "the first never went on");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_hangs_is_ended_by_hold_max_and_costs_an_attempt() {
    let (lab, log) = (Lab::new(), Log::default());
    let noting = log.clone();
    let handler = move |delivery: Delivery<Value>| {
        let noting = noting.clone();
        async move {
            noting.note(&delivery);
            if delivery.attempt() == 1 {
                std::future::pending::<()>().await;
            }
            Handled::Ok(())
        }
    };
    let keys = "lock = { store = \"main\", key = \"/key\", lease = \"3s\", hold_max = \"3s\" }";
    let service = lab.start(&lab.toml(keys, SHORT_WAITS), handler).await;
    lab.send(&service, "m", json!({ "key": lab.name })).await;
    lab.eventually("the second attempt", async || log.len() == 2).await;
    assert_eq!(log.all()[1].attempt, 2);
    lab.drained(&service).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_key_is_deferred_while_other_keys_go_on() {
    let (lab, log) = (Lab::new(), Log::default());
    let noting = log.clone();
    let handler = move |delivery: Delivery<Value>| {
        noting.note(&delivery);
        async { Handled::Ok(()) }
    };
    let keys = format!("{GUARDED}\nin_flight_max = 2");
    let service = lab.start(&lab.toml(&keys, SHORT_WAITS), handler).await;
    let busy = format!("{}:busy", lab.name);
    let locks = service.locks("main").expect("it is configured");
    let guard = locks.acquire(busy.as_str()).await.expect("it is free");
    for number in 0..4 {
        lab.send(&service, &format!("busy-{number}"), json!({ "key": busy })).await;
    }
    for number in 0..20 {
        let key = format!("{}:{number}", lab.name);
        lab.send(&service, &format!("free-{number}"), json!({ "key": key })).await;
    }
    lab.eventually("the other keys", async || log.len() == 20).await;
    assert!(log.ids().iter().all(|id| id.starts_with("free")));
    guard.release().await.expect("an answer");
    lab.drained(&service).await;
    assert_eq!(log.len(), 24);
    assert!(log.all().iter().all(|seen| seen.attempt == 1), "no attempt was counted");
    assert!(log.all().iter().all(|seen| seen.claim == Some(ClaimStatus::Fresh)));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_asks_for_the_key_it_holds_shares_it() {
    let (lab, log) = (Lab::new(), Log::default());
    let noting = log.clone();
    let handler = move |delivery: Delivery<Value>| {
        let noting = noting.clone();
        async move {
            let locks = delivery.locks().ok_or_else(|| Failure::reject("no locks"))?;
            let key = delivery.payload["key"].as_str().unwrap_or_default();
            let guard = locks.acquire(key).wait(Duration::ZERO).await?;
            let fence = delivery.claim().and_then(redeliver::Claim::fence);
            assert_eq!(Some(guard.fence().0), fence, "it is the same lock");
            noting.note(&delivery);
            Handled::Ok(())
        }
    };
    let service = lab.start(&lab.toml(GUARDED, BROKER_WAITS), handler).await;
    for number in 0..5 {
        lab.send(&service, &number.to_string(), json!({ "key": lab.name })).await;
    }
    lab.drained(&service).await;
    assert_eq!(log.len(), 5);
    assert_eq!(lab.dead(&service).await, Some(0));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn actors_ask_the_keeper_by_messages() {
    let lab = Lab::new();
    let toml = lab.toml(GUARDED, SHORT_WAITS);
    let service = lab.idle(&toml).await;
    let keeper = service.lock_keeper("main").expect("it is configured");
    let ask = AcquireLock { key: lab.name.clone(), policy: LockPolicy::default() };
    let guard = keeper.send(ask).await.expect("it lives").expect("it is free");
    let state = keeper.send(InspectLock(lab.name.clone())).await.expect("it lives");
    assert_eq!(state.expect("an answer").expect("a holder").fence, guard.fence());
    guard.release().await.expect("an answer");
    let unknown = service.lock_keeper("mian").expect_err("there is none").to_string();
    assert!(unknown.contains("mian"), "{unknown}");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_strict_store_that_could_forget_what_is_locked_refuses_to_start() {
    let server = aside(Server::start).await;
    let lab = Lab::on(&server.url());
    let strict = "kind = \"redis\"\nstrict = true";
    let toml = lab.toml(GUARDED, SHORT_WAITS).replace("kind = \"redis\"", strict);
    let config = Config::from_toml(&toml).expect("a configuration");
    let service = Service::builder(config).without_handler(&lab.name).signals(false);
    let error = service.start().await.err().expect("it is refused").to_string();
    assert!(error.contains("appendonly") && error.contains("strict"), "{error}");
}

/// A claim as somebody has it who took it over.
async fn taken_over(lab: &Lab, body: &[u8]) {
    let store = RedisStore::new(RedisSettings::new("main", redis_url())).expect("settings");
    let key = ClaimKey {
        scope: lab.name.as_str().into(),
        id: "m".into(),
        fingerprint: Fingerprint::of(body),
        generation: 0,
    };
    assert!(store.reset(&key).await.expect("an answer"), "it is claimed");
    let (owner, lease) = (Owner::new(), Duration::from_secs(30));
    let ask = ClaimAsk {
        key: &key,
        owner: &owner,
        lease,
        keep: lease * 2,
        attempts: 0,
        holder: "another",
        force: false,
        waits: false,
        seen: Fence(0),
    };
    assert!(matches!(store.claim(&ask).await.expect("an answer"), ClaimAnswer::Granted(_)));
    // Longer than the first owner takes to renew.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(store.end(&key, &owner, &Ending::Complete(None), lease * 2).await.expect("an answer"));
}

#[tokio::test(flavor = "multi_thread")]
async fn r6_a_handler_whose_claim_was_taken_over_is_cancelled_and_what_it_did_is_not_written_over()
{
    let (lab, log) = (Lab::new(), Log::default());
    let (noting, finished) = (log.clone(), Arc::new(AtomicUsize::new(0)));
    let counting = Arc::clone(&finished);
    let handler = move |delivery: Delivery<Value>| {
        let (noting, counting) = (noting.clone(), Arc::clone(&counting));
        async move {
            noting.note(&delivery);
            tokio::time::sleep(Duration::from_secs(60)).await;
            counting.fetch_add(1, Ordering::Relaxed);
            Handled::Ok(())
        }
    };
    let keys = "idempotency = { store = \"main\", lease = \"3s\" }\ntimeout = \"2m\"";
    let service = lab.start(&lab.toml(keys, SHORT_WAITS), handler).await;
    lab.send(&service, "m", json!(7)).await;
    lab.eventually("a run", async || log.len() == 1).await;
    taken_over(&lab, b"7").await;
    lab.drained(&service).await;
    assert_eq!((log.len(), finished.load(Ordering::Relaxed)), (1, 0));
    assert_eq!(lab.dead(&service).await, Some(0));
    service.stop().await;
}
