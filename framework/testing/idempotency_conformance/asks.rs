//! What the sentences ask of a store, with what does not matter to them filled in.

use std::time::Duration;

use super::unique;
use crate::store::{
    Claim, ClaimAnswer, ClaimAsk, ClaimKey, ClaimKind, Ending, Fence, Fingerprint, Owner, Store,
};

pub(super) const LEASE: Duration = Duration::from_secs(30);
pub(super) const SHORT: Duration = Duration::from_millis(200);
pub(super) const KEEP: Duration = Duration::from_secs(3600);

pub(super) fn key(id: &str) -> ClaimKey {
    ClaimKey {
        scope: "orders".into(),
        id: id.into(),
        fingerprint: Fingerprint::of(b"payload"),
        generation: 0,
    }
}

pub(super) fn fresh_key(name: &str) -> ClaimKey {
    key(&unique(name))
}

pub(super) fn ask<'a>(
    key: &'a ClaimKey,
    owner: &'a Owner,
    lease: Duration,
    attempts: u32,
) -> ClaimAsk<'a> {
    ClaimAsk {
        key,
        owner,
        lease,
        keep: KEEP,
        attempts,
        holder: "test",
        force: false,
        waits: false,
        seen: Fence(0),
    }
}

pub(super) async fn claim(store: &dyn Store, key: &ClaimKey, owner: &Owner) -> ClaimAnswer {
    store.claim(&ask(key, owner, LEASE, 0)).await.expect("an answer")
}

pub(super) async fn claim_carrying(
    store: &dyn Store,
    key: &ClaimKey,
    attempts: u32,
) -> ClaimAnswer {
    store.claim(&ask(key, &Owner::new(), LEASE, attempts)).await.expect("an answer")
}

pub(super) async fn granted(store: &dyn Store, key: &ClaimKey, owner: &Owner) -> Claim {
    match claim(store, key, owner).await {
        ClaimAnswer::Granted(claim) => claim,
        other => panic!("{key:?}: {other:?}"),
    }
}

pub(super) async fn end(
    store: &dyn Store,
    key: &ClaimKey,
    owner: &Owner,
    ending: Ending<'_>,
) -> bool {
    store.end(key, owner, &ending, KEEP).await.expect("an answer")
}

pub(super) fn failed(attempts: u32, due_in: Duration, copied: bool) -> Ending<'static> {
    Ending::Failed { attempts, due_in, copied }
}

pub(super) fn kind_and_attempts(answer: ClaimAnswer) -> (ClaimKind, u32) {
    match answer {
        ClaimAnswer::Granted(claim) => (claim.kind, claim.attempts),
        other => panic!("{other:?}"),
    }
}
