//! The sentences about what is asked for at once: a claim and a lock, and several ids.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::asks::{KEEP, LEASE, ask, claim, end, failed, fresh_key, granted, kind_and_attempts};
use super::unique;
use crate::store::{
    ClaimAnswer, ClaimKey, ClaimKind, Ending, Fence, Fingerprint, LockAnswer, LockAsk, Owner, Store,
};

pub(super) async fn claim_and_lock_together(store: Arc<dyn Store>) {
    let (key, owner, lock) = (fresh_key("both"), Owner::new(), unique("both"));
    let lock_owner = Owner::new();
    let lock_ask = |owner| LockAsk {
        key: &lock,
        owner,
        lease: LEASE,
        holder: "test",
        fair: false,
        waits: false,
        seen: Fence(0),
    };
    let both = store.claim_and_acquire(&ask(&key, &owner, LEASE, 0), &lock_ask(&lock_owner)).await;
    let (claimed, locked) = both.expect("an answer");
    assert!(matches!(claimed, ClaimAnswer::Granted(_)), "{claimed:?}");
    assert!(matches!(locked, Some(LockAnswer::Held(_))), "{locked:?}");
    // Refused the claim, nobody asks for the lock; granted it, the lock may be busy.
    let (other, another) = (Owner::new(), fresh_key("both"));
    let both = store.claim_and_acquire(&ask(&key, &other, LEASE, 0), &lock_ask(&other)).await;
    assert_eq!(both.expect("an answer").1, None);
    let both = store.claim_and_acquire(&ask(&another, &other, LEASE, 0), &lock_ask(&other)).await;
    assert!(
        matches!(both, Ok((ClaimAnswer::Granted(_), Some(LockAnswer::Busy { .. })))),
        "{both:?}"
    );
    let ending = Ending::Complete(Some(b"result"));
    let ended = store.end_and_release(&key, &owner, &ending, KEEP, &lock, &lock_owner).await;
    assert!(ended.expect("an answer"));
    let result = Some(Bytes::from_static(b"result"));
    assert_eq!(claim(&*store, &key, &Owner::new()).await, ClaimAnswer::Done(result));
    let free = store.acquire(&lock_ask(&other)).await.expect("an answer");
    assert!(matches!(free, LockAnswer::Held(_)), "{free:?}");
}

pub(super) async fn each_of_several_is_claimed(store: Arc<dyn Store>) {
    let keys: Vec<ClaimKey> = ["new", "done", "running", "changed", "failed"].map(fresh_key).into();
    let (before, owners) = (Owner::new(), Vec::from_iter((0..6).map(|_| Owner::new())));
    for key in &keys[1..] {
        granted(&*store, key, &before).await;
    }
    assert!(end(&*store, &keys[1], &before, Ending::Complete(None)).await);
    assert!(end(&*store, &keys[4], &before, failed(2, Duration::ZERO, true)).await);
    let changed = ClaimKey { fingerprint: Fingerprint::of(b"other"), ..keys[3].clone() };
    // The new one comes twice, the last one has another lease than its neighbours.
    let asked = [&keys[0], &keys[1], &keys[2], &changed, &keys[0], &keys[4]];
    let mut asks: Vec<_> =
        asked.iter().zip(&owners).map(|(key, owner)| ask(key, owner, LEASE, 1)).collect();
    asks[5].lease = LEASE * 2;
    let answers = store.claim_all(&asks).await;
    let said: Vec<_> = answers.iter().map(|answer| answer.as_ref().expect("an answer")).collect();
    assert_eq!(kind_and_attempts(said[0].clone()), (ClaimKind::Fresh, 1));
    assert_eq!(*said[1], ClaimAnswer::Done(None));
    assert!(matches!(said[2], ClaimAnswer::Running { .. }), "{said:?}");
    assert_eq!(*said[3], ClaimAnswer::Mismatch);
    assert!(matches!(said[4], ClaimAnswer::Running { .. }), "{said:?}");
    assert_eq!(kind_and_attempts(said[5].clone()), (ClaimKind::Fresh, 2));
    assert_eq!(store.claim_all(&[]).await.len(), 0);
}

pub(super) async fn each_of_several_is_completed(store: Arc<dyn Store>) {
    let keys: Vec<ClaimKey> = ["ours", "theirs", "forgotten", "ours too"].map(fresh_key).into();
    let (owner, other) = (Owner::new(), Owner::new());
    for key in &keys {
        granted(&*store, key, &owner).await;
    }
    assert!(end(&*store, &keys[1], &owner, Ending::Abandon).await);
    granted(&*store, &keys[1], &other).await;
    assert!(store.reset(&keys[2]).await.expect("an answer"));
    let named: Vec<_> = keys.iter().map(|key| (key, &owner)).collect();
    for _ in 0..2 {
        let ended = store.complete_all(&named, KEEP).await;
        let ours: Vec<_> = ended.into_iter().map(|ours| ours.expect("an answer")).collect();
        assert_eq!(ours, [true, false, true, true], "and it is safe to repeat");
    }
    for key in [&keys[0], &keys[2], &keys[3]] {
        assert_eq!(claim(&*store, key, &Owner::new()).await, ClaimAnswer::Done(None));
    }
    assert!(end(&*store, &keys[1], &other, Ending::Complete(None)).await);
}
