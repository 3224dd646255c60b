//! The contract of [`LockStore`](crate::store::LockStore) as tests.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::runtime::Handle;
use tokio::time::{Instant, sleep, timeout};

use super::{Sentence, sentences, unique};
use crate::store::{Fence, Keeper, LockAnswer, LockAsk, LockError, Locks, Owner, Renewed, Store};

/// Every sentence.
///
/// ```
/// use redeliver::testing::lock_conformance::SENTENCES;
///
/// assert!(SENTENCES.len() > 10, "an adapter runs each of them");
/// ```
pub const SENTENCES: &[Sentence] = sentences![
    1 "a free key is had by who asks first" a_free_key_is_had_by_who_asks_first,
    1 "one of many who ask at once has it" one_of_many_has_it,
    2 "fences only grow" fences_only_grow,
    2 "a fence is larger than any the asker has seen" a_fence_is_larger_than_any_seen,
    3 "asking again as the same owner gives the same hold" asking_again_gives_the_same_hold,
    4 "only the owner renews" only_the_owner_renews,
    5 "only the owner releases, and twice changes nothing" only_the_owner_releases,
    6 "a lease that ended is free" a_lease_that_ended_is_free,
    6 "a lease that ended cannot be renewed" an_ended_lease_is_not_renewed,
    7 "who waits is woken by the release" who_waits_is_woken,
    7 "who waits has it soon after its holder died" who_waits_outlives_the_holder,
    8 "in fair mode the first to wait is the first to have" first_come_first_served,
    9 "a waiter that died is skipped" a_dead_waiter_is_skipped,
    9 "a waiter that was cancelled is forgotten at once" a_cancelled_waiter_is_forgotten,
    9 "who waited and has it waits no more" who_has_it_waits_no_more,
    9 "of a lock that was released nothing remains" nothing_remains_of_what_was_released,
    10 "leaving gives back a hold that came too late" leaving_gives_back,
    11 "force release frees the key and the holder learns of it" force_is_told,
    12 "inspection tells who, since when, until when, how many wait" inspection_tells,
    13 "no key is taken for another" keys_are_bytes,
];

const LEASE: Duration = Duration::from_secs(30);
const SHORT: Duration = Duration::from_millis(600);

fn ask<'a>(key: &'a str, owner: &'a Owner, lease: Duration) -> LockAsk<'a> {
    LockAsk { key, owner, lease, holder: "test", fair: false, waits: false, seen: Fence(0) }
}

async fn held(store: &dyn Store, key: &str, owner: &Owner, lease: Duration) -> Option<Fence> {
    match store.acquire(&ask(key, owner, lease)).await.expect("an answer") {
        LockAnswer::Held(fence) => Some(fence),
        LockAnswer::Busy { .. } => None,
    }
}

/// Stands in the queue without being waited for, as a process that died does.
async fn queue(store: &dyn Store, key: &str, owner: &Owner, fair: bool) -> LockAnswer {
    let ask = LockAsk { fair, waits: true, ..ask(key, owner, LEASE) };
    store.acquire(&ask).await.expect("an answer")
}

fn locks(store: &Arc<dyn Store>) -> Locks {
    Locks::new(store.clone(), Keeper::new(Handle::current(), store.clock()), "test")
}

async fn a_free_key_is_had_by_who_asks_first(store: Arc<dyn Store>) {
    let (key, first, second) = (unique("free"), Owner::new(), Owner::new());
    assert!(held(&*store, &key, &first, LEASE).await.is_some());
    let answer = store.acquire(&ask(&key, &second, LEASE)).await.expect("an answer");
    let LockAnswer::Busy { remaining, .. } = answer else { panic!("{answer:?}") };
    assert!(remaining <= LEASE && remaining > LEASE / 2, "{remaining:?}");
}

async fn one_of_many_has_it(store: Arc<dyn Store>) {
    let key = Arc::new(unique("many"));
    let asking: Vec<_> = (0..50)
        .map(|_| {
            let (store, key) = (store.clone(), key.clone());
            tokio::spawn(async move { held(&*store, &key, &Owner::new(), LEASE).await.is_some() })
        })
        .collect();
    let mut holders = 0;
    for asked in asking {
        holders += u32::from(asked.await.expect("no panic"));
    }
    assert_eq!(holders, 1);
}

async fn fences_only_grow(store: Arc<dyn Store>) {
    let key = unique("fence");
    let mut last = Fence(0);
    for _ in 0..100 {
        let owner = Owner::new();
        let fence = held(&*store, &key, &owner, LEASE).await.expect("a free key");
        assert!(fence > last, "{fence} after {last}");
        last = fence;
        store.release(&key, &owner).await.expect("an answer");
    }
}

async fn a_fence_is_larger_than_any_seen(store: Arc<dyn Store>) {
    let (key, owner) = (unique("seen"), Owner::new());
    let tomorrow = SystemTime::now() + Duration::from_secs(86_400);
    let micros = tomorrow.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_micros();
    let seen = Fence(u64::try_from(micros).expect("before 500000"));
    let ask = LockAsk { seen, ..ask(&key, &owner, LEASE) };
    let answer = store.acquire(&ask).await.expect("an answer");
    assert!(matches!(answer, LockAnswer::Held(fence) if fence > seen), "{answer:?}");
}

async fn asking_again_gives_the_same_hold(store: Arc<dyn Store>) {
    let (key, owner) = (unique("again"), Owner::new());
    let first = held(&*store, &key, &owner, SHORT).await;
    sleep(SHORT / 2).await;
    assert_eq!(held(&*store, &key, &owner, LEASE).await, first);
    sleep(SHORT).await;
    assert_eq!(held(&*store, &key, &Owner::new(), LEASE).await, None);
}

async fn only_the_owner_renews(store: Arc<dyn Store>) {
    let (key, owner) = (unique("renew"), Owner::new());
    held(&*store, &key, &owner, SHORT).await.expect("a free key");
    assert_eq!(store.renew(&key, &Owner::new(), LEASE).await.expect("an answer"), Renewed::Lost);
    assert_eq!(store.renew(&key, &owner, LEASE).await.expect("an answer"), Renewed::Kept);
    sleep(SHORT * 2).await;
    assert_eq!(held(&*store, &key, &Owner::new(), LEASE).await, None);
}

async fn only_the_owner_releases(store: Arc<dyn Store>) {
    let (key, first, second) = (unique("release"), Owner::new(), Owner::new());
    held(&*store, &key, &first, LEASE).await.expect("a free key");
    assert!(!store.release(&key, &second).await.expect("an answer"));
    assert!(store.release(&key, &first).await.expect("an answer"));
    held(&*store, &key, &second, LEASE).await.expect("a free key");
    assert!(!store.release(&key, &first).await.expect("an answer"));
    assert_eq!(held(&*store, &key, &first, LEASE).await, None);
}

async fn a_lease_that_ended_is_free(store: Arc<dyn Store>) {
    let key = unique("ended");
    let first = held(&*store, &key, &Owner::new(), SHORT).await.expect("a free key");
    sleep(SHORT + Duration::from_millis(20)).await;
    let second = held(&*store, &key, &Owner::new(), LEASE).await.expect("a free key");
    assert!(second > first);
}

async fn an_ended_lease_is_not_renewed(store: Arc<dyn Store>) {
    let (key, owner) = (unique("late"), Owner::new());
    held(&*store, &key, &owner, SHORT).await.expect("a free key");
    sleep(SHORT + Duration::from_millis(20)).await;
    assert_eq!(store.renew(&key, &owner, LEASE).await.expect("an answer"), Renewed::Lost);
}

async fn who_waits_is_woken(store: Arc<dyn Store>) {
    let (key, locks) = (unique("woken"), locks(&store));
    // The first wait opens the subscription; the second shows what it is good for.
    for limit in [Duration::from_secs(2), Duration::from_millis(300)] {
        let guard = locks.acquire(&key).await.expect("a free key");
        let (asking, name) = (locks.clone(), key.clone());
        let waiter = tokio::spawn(async move { asking.acquire(name).await });
        sleep(Duration::from_millis(250)).await;
        let released = Instant::now();
        guard.release().await.expect("an answer");
        let next = waiter.await.expect("no panic").expect("the lock");
        assert!(released.elapsed() < limit, "{:?}", released.elapsed());
        next.release().await.expect("an answer");
    }
}

async fn who_waits_outlives_the_holder(store: Arc<dyn Store>) {
    let key = unique("died");
    held(&*store, &key, &Owner::new(), SHORT).await.expect("a free key");
    let asked = Instant::now();
    drop(locks(&store).acquire(&key).await.expect("the lock"));
    assert!(asked.elapsed() < SHORT + Duration::from_secs(1), "{:?}", asked.elapsed());
}

async fn first_come_first_served(store: Arc<dyn Store>) {
    let (key, locks) = (unique("fair"), locks(&store));
    let guard = locks.acquire(&key).fair(true).await.expect("a free key");
    let (order, mut served) = tokio::sync::mpsc::channel(8);
    for number in 0..5 {
        let (locks, key, order) = (locks.clone(), key.clone(), order.clone());
        tokio::spawn(async move {
            let guard = locks.acquire(key).fair(true).wait(LEASE).await.expect("the lock");
            order.send(number).await.expect("somebody counts");
            guard.release().await.expect("an answer");
        });
        sleep(Duration::from_millis(20)).await;
    }
    guard.release().await.expect("an answer");
    for number in 0..5 {
        assert_eq!(served.recv().await, Some(number));
    }
}

async fn a_dead_waiter_is_skipped(store: Arc<dyn Store>) {
    let (key, holder, dead) = (unique("skip"), Owner::new(), Owner::new());
    held(&*store, &key, &holder, LEASE).await.expect("a free key");
    queue(&*store, &key, &dead, true).await;
    let (locks, name) = (locks(&store), key.clone());
    let waiter = tokio::spawn(async move { locks.acquire(name).fair(true).wait(LEASE).await });
    sleep(Duration::from_millis(50)).await;
    store.release(&key, &holder).await.expect("an answer");
    let next = timeout(Duration::from_secs(10), waiter).await.expect("not for ever");
    drop(next.expect("no panic").expect("the lock"));
}

async fn a_cancelled_waiter_is_forgotten(store: Arc<dyn Store>) {
    let (key, locks) = (unique("cancelled"), locks(&store));
    let guard = locks.acquire(&key).fair(true).await.expect("a free key");
    let waiting = locks.acquire(&key).fair(true).wait(LEASE).into_future();
    timeout(Duration::from_millis(100), waiting).await.expect_err("it is held");
    sleep(Duration::from_millis(100)).await;
    let state = locks.inspect(&key).await.expect("an answer").expect("a holder");
    assert_eq!(state.waiting, 0);
    guard.release().await.expect("an answer");
    let at_once = locks.acquire(&key).fair(true).wait(Duration::ZERO).await;
    drop(at_once.expect("nobody is in front"));
}

async fn who_has_it_waits_no_more(store: Arc<dyn Store>) {
    let (key, waiter) = (unique("waited"), Owner::new());
    held(&*store, &key, &Owner::new(), SHORT).await.expect("a free key");
    let answer = queue(&*store, &key, &waiter, true).await;
    assert!(matches!(answer, LockAnswer::Busy { .. }), "{answer:?}");
    sleep(SHORT + Duration::from_millis(20)).await;
    // Its last question, which asks for no place in the queue any more.
    let ask_last = LockAsk { fair: true, ..ask(&key, &waiter, LEASE) };
    let answer = store.acquire(&ask_last).await.expect("an answer");
    assert!(matches!(answer, LockAnswer::Held(_)), "{answer:?}");
    let state = store.inspect(&key).await.expect("an answer").expect("a holder");
    assert_eq!(state.waiting, 0);
    assert!(store.release(&key, &waiter).await.expect("an answer"));
    let next = queue(&*store, &key, &Owner::new(), true).await;
    assert!(matches!(next, LockAnswer::Held(_)), "{next:?}");
}

async fn nothing_remains_of_what_was_released(store: Arc<dyn Store>) {
    let (key, holder, first) = (unique("remains"), Owner::new(), Owner::new());
    held(&*store, &key, &holder, LEASE).await.expect("a free key");
    queue(&*store, &key, &first, true).await;
    assert!(store.release(&key, &holder).await.expect("an answer"));
    let answer = queue(&*store, &key, &Owner::new(), true).await;
    assert_eq!(answer, LockAnswer::Busy { remaining: Duration::ZERO, ahead: 1 });
}

async fn leaving_gives_back(store: Arc<dyn Store>) {
    let (key, owner) = (unique("leave"), Owner::new());
    let answer = queue(&*store, &key, &owner, false).await;
    assert!(matches!(answer, LockAnswer::Held(_)), "{answer:?}");
    store.leave(&key, &owner).await.expect("an answer");
    held(&*store, &key, &Owner::new(), LEASE).await.expect("a free key");
}

async fn force_is_told(store: Arc<dyn Store>) {
    let (key, owner) = (unique("force"), Owner::new());
    assert!(!store.force_release(&key).await.expect("an answer"));
    held(&*store, &key, &owner, LEASE).await.expect("a free key");
    assert!(store.force_release(&key).await.expect("an answer"));
    assert_eq!(store.renew(&key, &owner, LEASE).await.expect("an answer"), Renewed::Forced);
    held(&*store, &key, &Owner::new(), LEASE).await.expect("a free key");
    assert_ne!(store.renew(&key, &owner, LEASE).await.expect("an answer"), Renewed::Kept);
}

async fn inspection_tells(store: Arc<dyn Store>) {
    let (key, owner) = (unique("inspect"), Owner::new());
    assert_eq!(store.inspect(&key).await.expect("an answer"), None);
    let fence = held(&*store, &key, &owner, LEASE).await.expect("a free key");
    queue(&*store, &key, &Owner::new(), false).await;
    let state = store.inspect(&key).await.expect("an answer").expect("a holder");
    assert_eq!(state.holder.as_deref(), Some("test"));
    assert_eq!((state.fence, state.waiting), (fence, 1));
    assert_eq!(state.until.duration_since(state.since).expect("later"), LEASE);
    let busy = locks(&store).acquire(&key).wait(Duration::ZERO).await;
    assert!(matches!(busy, Err(LockError::Busy { .. })), "{busy:?}");
}

/// Keys that a careless mapping would mix up or cut off.
pub(super) fn odd_names() -> Vec<String> {
    let long = "x".repeat(1 << 20);
    let odd =
        ["", "\0", "\n", "{", "}", "{}", "{a}b", "{a}c", "a%00", "a\0", "%", "é", "|", "a|", "a"];
    let mut names: Vec<String> = odd.iter().map(ToString::to_string).collect();
    names.extend([format!("{long}a"), format!("{long}b"), long]);
    names
}

async fn keys_are_bytes(store: Arc<dyn Store>) {
    let unique = unique("odd");
    let owners: Vec<_> =
        odd_names()
            .into_iter()
            // The empty key itself is as good as any, but is shared by all runs.
            .map(|name| {
                if name.is_empty() { (name, Owner::new()) } else { (name + &unique, Owner::new()) }
            })
            .collect();
    for (key, owner) in &owners {
        assert!(held(&*store, key, owner, LEASE).await.is_some(), "{:.20}", key);
    }
    for (key, owner) in &owners {
        assert!(store.release(key, owner).await.expect("an answer"), "{:.20}", key);
    }
}
