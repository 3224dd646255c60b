//! Many questions at once are few calls of Redis, and each is answered as if it had been asked alone.

mod support;

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use redeliver::store::redis::RedisStore;
use redeliver::store::{
    ClaimAnswer, ClaimAsk, ClaimKey, Ending, Fence, Fingerprint, IdempotencyStore, LockAnswer,
    LockAsk, LockStore, Owner, Store, StoreError, StoreFault,
};
use support::redis::{Server, settings};

const LEASE: Duration = Duration::from_secs(30);
const KEEP: Duration = Duration::from_secs(600);
/// More than fit into one call.
const MANY: usize = 300;

fn key(id: &str) -> ClaimKey {
    let fingerprint = Fingerprint::of(b"payload");
    ClaimKey { scope: "orders".into(), id: id.into(), fingerprint, generation: 0 }
}

fn ask<'a>(key: &'a ClaimKey, owner: &'a Owner) -> ClaimAsk<'a> {
    let (attempts, holder, seen) = (0, "test", Fence(0));
    let (force, waits) = (false, true);
    ClaimAsk { key, owner, lease: LEASE, keep: KEEP, attempts, holder, force, waits, seen }
}

fn ids(count: usize) -> Vec<(ClaimKey, Owner)> {
    (0..count).map(|number| (key(&format!("id-{number}")), Owner::new())).collect()
}

async fn claim_all(
    store: &RedisStore,
    ids: &[(ClaimKey, Owner)],
) -> Vec<Result<ClaimAnswer, StoreError>> {
    join_all(ids.iter().map(|(key, owner)| async { store.claim(&ask(key, owner)).await })).await
}

fn is_granted(answer: &Result<ClaimAnswer, StoreError>) -> bool {
    matches!(answer, Ok(ClaimAnswer::Granted(_)))
}

/// How often scripts were called.
fn calls(server: &Server) -> u64 {
    let stats = server.cli(&["info", "commandstats"]);
    let count = |line: &str| -> Option<u64> {
        line.split_once("calls=")?.1.split(',').next()?.parse().ok()
    };
    let scripts = stats.lines().filter(|line| line.starts_with("cmdstat_eval"));
    scripts.filter_map(count).sum()
}

#[tokio::test]
async fn claims_of_one_moment_share_calls_and_so_do_their_ends() {
    let server = Server::start();
    let (store, ids) = (server.store(), ids(MANY));
    assert!(claim_all(&store, &ids).await.iter().all(is_granted));
    let ends = ids.iter().map(|(key, owner)| async {
        store.end(key, owner, &Ending::Complete(None), KEEP).await.expect("an answer")
    });
    assert!(join_all(ends).await.into_iter().all(|ours| ours));
    for answer in claim_all(&store, &ids).await {
        assert_eq!(answer.expect("an answer"), ClaimAnswer::Done(None));
    }
    let calls = calls(&server);
    assert!(calls < MANY as u64 / 2, "{calls} calls");
}

#[tokio::test]
async fn what_is_asked_together_is_as_many_calls_as_it_has_to_be() {
    let server = Server::start();
    let (store, ids) = (server.store(), ids(MANY));
    let asks: Vec<_> = ids.iter().map(|(key, owner)| ask(key, owner)).collect();
    let named: Vec<_> = ids.iter().map(|(key, owner)| (key, owner)).collect();
    assert!(store.claim_all(&asks).await.iter().all(is_granted));
    // Each in a record of its own, in its own place.
    let (key, owner) = &ids[200];
    assert!(store.end(key, owner, &Ending::Release, KEEP).await.expect("an answer"));
    let again = Owner::new();
    assert!(is_granted(&store.claim(&ask(key, &again)).await));
    let ended = store.complete_all(&named, KEEP).await;
    for (place, ours) in ended.into_iter().enumerate() {
        assert_eq!(ours.expect("an answer"), place != 200);
    }
    for (place, answer) in store.claim_all(&asks).await.into_iter().enumerate() {
        let is_done = matches!(answer, Ok(ClaimAnswer::Done(None)));
        assert_eq!(is_done, place != 200, "{answer:?}");
    }
    let calls = calls(&server);
    assert!(
        calls < 20,
        "{calls} calls: three for each that asked together, and each script sent once"
    );
}

#[tokio::test]
async fn claims_and_locks_of_one_moment_share_calls_and_each_is_answered() {
    let server = Server::start();
    let (store, ids) = (server.store(), ids(MANY));
    // Ten messages a customer.
    let both = ids.iter().enumerate().map(|(number, (key, owner))| {
        let (store, lock) = (&store, format!("customer-{}", number % (MANY / 10)));
        async move {
            let claim = ask(key, owner);
            let (lease, holder, seen) = (LEASE, "test", Fence(0));
            let (fair, waits) = (false, false);
            let lock = LockAsk { key: &lock, owner, lease, holder, fair, waits, seen };
            store.claim_and_acquire(&claim, &lock).await.expect("an answer")
        }
    });
    let answers = join_all(both).await;
    assert!(answers.iter().all(|(claim, _)| matches!(claim, ClaimAnswer::Granted(_))));
    let held = |lock: &Option<LockAnswer>| matches!(lock, Some(LockAnswer::Held(_)));
    assert_eq!(answers.iter().filter(|(_, lock)| held(lock)).count(), MANY / 10);
    assert!(calls(&server) < MANY as u64 / 2);
}

/// Somebody else wrote to the key of the first id.
async fn neighbours_of(command: &str, value: &str) {
    let server = Server::start();
    let settings = settings(&server.url());
    let foreign = format!("{}:claim:{{orders|id-0}}", settings.prefix);
    server.cli(&[command, &foreign, value]);
    let (store, ids) = (RedisStore::new(settings).expect("settings"), ids(MANY));
    let asks: Vec<_> = ids.iter().map(|(key, owner)| ask(key, owner)).collect();
    let together = store.claim_all(&asks).await;
    let answers = claim_all(&store, &ids).await;
    for answers in [together, answers] {
        let error = answers[0].as_ref().expect_err("it is no record of ours");
        assert_eq!(error.fault, StoreFault::Other, "{error}");
        assert!(answers[1..].iter().all(is_granted));
    }
    let (key, owner) = &ids[0];
    let ended = store.end(key, owner, &Ending::Release, KEEP);
    let (key, owner) = &ids[1];
    let other = store.end(key, owner, &Ending::Release, KEEP);
    let (ended, other) = tokio::join!(ended, other);
    assert!(ended.is_err() || ended.is_ok_and(|ours| !ours));
    assert!(other.expect("an answer"));
}

#[tokio::test]
async fn a_key_of_another_type_fails_alone() {
    neighbours_of("rpush", "one").await;
}

#[tokio::test]
async fn a_record_of_another_shape_fails_alone() {
    neighbours_of("set", "no record").await;
}

#[tokio::test]
async fn an_id_of_a_megabyte_and_a_result_of_64_kilobytes_leave_with_the_others() {
    let server = Server::start();
    let store = server.store();
    let mut ids = ids(MANY);
    ids[7].0 = key(&"\0x{".repeat(350_000));
    assert!(claim_all(&store, &ids).await.iter().all(is_granted));
    let result = vec![0; 64 * 1024];
    let ends = ids.iter().map(|(key, owner)| async {
        store.end(key, owner, &Ending::Complete(Some(&result)), KEEP).await.expect("an answer")
    });
    assert!(join_all(ends).await.into_iter().all(|ours| ours));
    let again = store.claim(&ask(&ids[7].0, &Owner::new())).await.expect("an answer");
    assert_eq!(again, ClaimAnswer::Done(Some(result.into())));
}

#[tokio::test]
async fn connections_that_die_in_between_cost_nobody_an_answer() {
    let server = Server::start();
    let (store, ids) = (server.store(), ids(20 * MANY));
    let killing = async {
        for _ in 0..5 {
            server.cli(&["client", "kill", "type", "normal"]);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let (answers, ()) = tokio::join!(claim_all(&store, &ids), killing);
    assert!(answers.iter().all(is_granted));
}

#[tokio::test]
async fn on_a_server_that_stands_still_everybody_is_answered_within_the_deadline() {
    let server = Server::start();
    let (store, ids) = (server.store(), ids(20 * MANY));
    store.claim(&ask(&key("first"), &Owner::new())).await.expect("an answer");
    server.signal("STOP");
    let began = Instant::now();
    for answer in claim_all(&store, &ids).await {
        assert_eq!(answer.expect_err("nobody answers").fault, StoreFault::Down);
    }
    // The deadline is a second; the rest is for a busy machine.
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    server.signal("CONT");
}

#[tokio::test]
async fn what_nobody_wants_any_more_is_not_asked() {
    let server = Server::start();
    let store = server.store();
    store.claim(&ask(&key("first"), &Owner::new())).await.expect("an answer");
    let (key, owner) = (key("dropped"), Owner::new());
    {
        let question = ask(&key, &owner);
        let mut asking = std::pin::pin!(store.claim(&question));
        assert!(futures_util::poll!(asking.as_mut()).is_pending());
    }
    store.claim(&ask(&self::key("next"), &Owner::new())).await.expect("an answer");
    assert_eq!(store.peek(&key).await.expect("an answer"), None);
}

#[tokio::test]
async fn who_gathers_and_is_kept_by_a_handler_keeps_nobody_else() {
    let server = Server::start();
    let (store, ids) = (server.store(), ids(MANY));
    let gathers = store.gather();
    assert!(claim_all(&store, &ids).await.iter().all(is_granted), "though the handler goes on");
    drop(gathers);
}

#[tokio::test]
async fn a_lock_that_nobody_wants_any_more_holds_up_nobody_else() {
    let server = Server::start();
    let store = server.store();
    let held = |answer| matches!(answer, Ok(LockAnswer::Held(_)));
    let (owner, seen) = (Owner::new(), Fence(0));
    let ask = |key| LockAsk {
        key,
        owner: &owner,
        lease: LEASE,
        holder: "test",
        fair: false,
        waits: false,
        seen,
    };
    assert!(held(store.acquire(&ask("first")).await));
    {
        let question = ask("dropped");
        let mut asking = std::pin::pin!(store.acquire(&question));
        assert!(futures_util::poll!(asking.as_mut()).is_pending());
    }
    // So that its round is over before the next one, which would take it along.
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert!(held(store.acquire(&ask("next")).await));
    assert_eq!(store.inspect("dropped").await.expect("an answer"), None);
    {
        let mut releasing = std::pin::pin!(store.release("next", &owner));
        assert!(futures_util::poll!(releasing.as_mut()).is_pending());
    }
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert!(store.release("first", &owner).await.expect("an answer"));
}
