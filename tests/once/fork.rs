//! The fork: a crash between the confirm of a copy and the end of its original leaves both alive.

use std::time::Duration;

use redeliver::store::redis::{RedisSettings, RedisStore};
use redeliver::store::{ClaimAnswer, ClaimAsk, ClaimKey, Ending, Fence, Fingerprint};
use redeliver::store::{IdempotencyStore, Owner};
use redeliver::{Delivery, Failure, Handled};
use serde_json::{Value, json};

use crate::lab::{BROKER_WAITS, Lab, Log, redis_url};

/// The claim of one id as a process leaves it that failed its first attempt and died.
async fn crashed(lab: &Lab, payload: &[u8], due_in: Duration) {
    let store = RedisStore::new(RedisSettings::new("main", redis_url())).expect("settings");
    let key = ClaimKey {
        scope: lab.name.as_str().into(),
        id: "forked".into(),
        fingerprint: Fingerprint::of(payload),
        generation: 0,
    };
    let (owner, keep) = (Owner::new(), Duration::from_secs(3600));
    let lease = Duration::from_secs(60);
    let (holder, seen) = ("the dead", Fence(0));
    let ask =
        ClaimAsk { key: &key, owner: &owner, lease, keep, attempts: 0, holder, force: false, waits: false, seen };
    let claimed = store.claim(&ask).await.expect("an answer");
    assert!(matches!(claimed, ClaimAnswer::Granted(_)));
    let failed = Ending::Failed { attempts: 1, due_in, copied: true };
    assert!(store.end(&key, &owner, &failed, keep).await.expect("an answer"));
}

/// The original is redelivered, and its copy comes out of its wait: `copy_first` or after it.
async fn check(due_in: Duration, copy_first: bool) {
    let (lab, log) = (Lab::new(), Log::default());
    let toml = lab.toml("idempotency = { store = \"main\" }", BROKER_WAITS);
    let payload = json!({ "amount": 5 });
    let body = serde_json::to_vec(&payload).expect("it is JSON");
    crashed(&lab, &body, due_in).await;
    let idle = lab.idle(&toml).await;
    let original = || lab.message("forked", &payload);
    let copy = || lab.message("forked", &payload).header("redeliver-attempt", "1");
    let both = if copy_first { [copy(), original()] } else { [original(), copy()] };
    for message in both {
        idle.publisher("main").expect("it is configured").send(message).await.expect("confirmed");
    }
    idle.stop().await;
    let noting = log.clone();
    let handler = move |delivery: Delivery<Value>| {
        let noting = noting.clone();
        async move {
            noting.note(&delivery);
            Handled::Err(Failure::retry("never works"))
        }
    };
    let service = lab.start(&toml, handler).await;
    lab.drained(&service).await;
    let attempts: Vec<u32> = log.all().iter().map(|seen| seen.attempt).collect();
    assert_eq!(attempts, [2, 3, 4], "each of the attempts that were left, once");
    assert_eq!(lab.dead(&service).await, Some(1));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_and_its_original_make_each_attempt_once_and_one_dead_letter() {
    check(Duration::from_secs(1), false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn so_they_do_when_the_copy_comes_first() {
    check(Duration::from_secs(1), true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn so_they_do_when_the_original_comes_after_the_wait_is_over() {
    check(Duration::ZERO, false).await;
    check(Duration::ZERO, true).await;
}
