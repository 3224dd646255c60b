//! What a handler runs under, and how it ends.
//!
//! Owns the endings, and what happens when there is none. An ending that was begun is carried on
//! in the background if its caller goes away.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::ClaimRules;
use super::late::LateEnd;
use crate::store::{
    Claim, ClaimKey, Ending, EndingGuard, Fence, Guard, Lease, Loss, Moment, Owner,
    RESULT_BYTES_MAX, Renew, Renewed, Store, StoreError,
};

/// The pause of a background end that did not get through.
pub(super) const REPEAT_PAUSE: Duration = Duration::from_millis(500);

/// What a handler runs under. Dropped without an ending, the claim is abandoned (the next to run
/// the message is told) and the lock released.
pub(crate) struct Held {
    pub(super) claim: Option<HeldClaim>,
    pub(super) lock: Option<Guard>,
}

/// What was lost while the handler ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lost {
    /// The claim: another process may run the same message now.
    Claim(Loss),
    /// The lock: another process may have it now.
    Lock(Loss),
}

impl Held {
    /// What was granted; `None` without claims.
    pub(crate) fn granted(&self) -> Option<&Claim> {
        self.claim.as_ref().map(|held| &held.claim)
    }

    /// The lock's fence, else the claim's.
    pub(crate) fn fence(&self) -> Option<Fence> {
        let claim = || self.claim.as_ref().map(|held| held.claim.fence);
        self.lock.as_ref().map(Guard::fence).or_else(claim)
    }

    /// Whether there is a record of the message that others ask. A lock alone says nothing about it.
    pub(crate) fn is_claimed(&self) -> bool {
        self.claim.is_some()
    }

    /// Completes when the claim or the lock is lost; never without either.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(crate) fn lost(&self) -> impl Future<Output = Lost> + Send + 'static + use<> {
        let claim = self.claim.as_ref().and_then(|held| held.lease.as_ref()).map(Lease::lost);
        let lock = self.lock.as_ref().map(Guard::lost);
        async move {
            tokio::select! {
                loss = maybe(claim) => Lost::Claim(loss),
                loss = maybe(lock) => Lost::Lock(loss),
            }
        }
    }

    /// Handled. False: somebody took over, or had the lock meanwhile, so an effect may have happened twice.
    ///
    /// A result over [`RESULT_BYTES_MAX`] is not kept.
    ///
    /// # Errors
    /// Nobody is told yet: it goes on in the background until the store answers, or until the lease ends where the fault is
    /// of this claim alone.
    pub(crate) async fn complete(self, result: Option<Bytes>) -> Result<bool, StoreError> {
        let result = result.filter(|result| result.len() <= RESULT_BYTES_MAX);
        self.end(End::Complete(result)).await
    }

    /// An attempt failed. `is_copied`: the broker has confirmed a copy that carries `attempts`;
    /// else the delivery waits in this process. False: somebody took over.
    ///
    /// # Errors
    /// As [`complete`](Self::complete).
    pub(crate) async fn failed(
        self,
        due_in: Duration,
        attempts: u32,
        is_copied: bool,
    ) -> Result<bool, StoreError> {
        self.end(End::Failed { attempts, due_in, is_copied }).await
    }

    /// Given up, after the dead letter was confirmed. False: somebody took over.
    ///
    /// # Errors
    /// As [`complete`](Self::complete).
    pub(crate) async fn dead(self, reason: &str) -> Result<bool, StoreError> {
        self.end(End::Dead(reason.to_owned())).await
    }

    /// Given back before the handler did anything. False: somebody took over.
    ///
    /// # Errors
    /// As [`complete`](Self::complete).
    pub(crate) async fn release(self) -> Result<bool, StoreError> {
        self.end(End::Release).await
    }

    /// Cut off while it ran: whoever runs it next is told. False: somebody took over.
    ///
    /// # Errors
    /// As [`complete`](Self::complete).
    pub(crate) async fn abandon(self) -> Result<bool, StoreError> {
        self.end(End::Abandon).await
    }

    /// What takes a failed attempt back that is recorded next; `attempts` were made before it. `None` without claims.
    pub(crate) fn recorded(&self, attempts: u32) -> Option<Recorded> {
        let HeldClaim { rules, key, owner, .. } = self.claim.as_ref()?;
        Some(Recorded { rules: rules.clone(), key: key.clone(), owner: owner.clone(), attempts })
    }

    /// Releases the lock in the background, for what takes long and needs it no more; the claim stays.
    pub(crate) fn free_lock(&mut self) {
        self.lock = None;
    }

    /// From here on a drop says that an attempt failed, and that no copy of it is known.
    pub(crate) fn failed_if_dropped(&mut self, due_in: Duration, attempts: u32) {
        if let Some(claim) = &mut self.claim {
            claim.on_drop = End::Failed { attempts, due_in, is_copied: false };
        }
    }

    /// From here on a drop gives the claim back.
    pub(crate) fn released_if_dropped(&mut self) {
        if let Some(claim) = &mut self.claim {
            claim.on_drop = End::Release;
        }
    }

    async fn end(mut self, end: End) -> Result<bool, StoreError> {
        let was_lost = self.lock.as_ref().is_some_and(|guard| guard.loss().is_some());
        if let Some(claim) = &mut self.claim {
            // From here on a drop ends it in the same way: a handler's effect is not forgotten because
            // its completion was cancelled.
            claim.on_drop = end;
        }
        let lock = match self.lock {
            Some(guard) => guard.ending().await,
            None => None,
        };
        let Some(claim) = self.claim else {
            if let Some(lock) = lock {
                // What was done stays done. A release that did not get through is tried once more by
                // the drop, and then the lease ends by itself.
                let _ = lock.release().await;
            }
            return Ok(!was_lost);
        };
        let Some(lock) = lock else { return claim.end().await };
        if !Arc::ptr_eq(claim.rules.store.store(), lock.store()) {
            let ended = claim.end().await;
            // The claim decides; the lock's lease ends by itself.
            let _ = lock.release().await;
            return ended;
        }
        claim.end_with(lock).await
    }
}

/// A failed attempt as the store has it while its message waits in this process.
pub(crate) struct Recorded {
    rules: ClaimRules,
    key: Arc<ClaimKey>,
    owner: Owner,
    /// Those made before it.
    attempts: u32,
}

impl Recorded {
    /// It does not count, and the message need not wait; in the background.
    pub(crate) fn take_back(self) {
        let Self { rules, key, owner, attempts } = self;
        let end = End::Failed { attempts, due_in: Duration::ZERO, is_copied: false };
        let until = rules.store.store().clock().now() + rules.lease;
        end_in_background(&rules, key, owner, end, until, None);
    }
}

async fn maybe<F: Future>(future: Option<F>) -> F::Output {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

pub(super) struct HeldClaim {
    pub(super) rules: ClaimRules,
    pub(super) key: Arc<ClaimKey>,
    pub(super) owner: Owner,
    pub(super) claim: Claim,
    /// `None` once it ended.
    pub(super) lease: Option<Lease>,
    /// How it ends, also when it is dropped.
    pub(super) on_drop: End,
}

impl HeldClaim {
    /// Keeps what was asked for at `asked_at` and granted.
    pub(super) fn start(
        rules: &ClaimRules,
        key: Arc<ClaimKey>,
        owner: Owner,
        claim: Claim,
        asked_at: Moment,
    ) -> Self {
        let store = rules.store.store().clone();
        let renewal = ClaimRenewal { store, key: key.clone(), owner: owner.clone() };
        let (keeper, length) = (rules.store.keeper(), rules.lease);
        let lease = Lease::start(keeper, Box::new(renewal), asked_at, length, None);
        let (rules, on_drop) = (rules.clone(), End::Abandon);
        Self { rules, key, owner, claim, lease: Some(lease), on_drop }
    }

    pub(super) async fn end_by(mut self, end: End) -> Result<bool, StoreError> {
        self.on_drop = end;
        self.end().await
    }

    /// Ends it as `on_drop` says.
    async fn end(self) -> Result<bool, StoreError> {
        self.stop().await;
        let (store, keep) = (self.rules.store.store().clone(), self.rules.keep);
        let ended = store.end(&self.key, &self.owner, &self.on_drop.ending(), keep).await;
        self.close(ended)
    }

    async fn end_with(self, lock: EndingGuard) -> Result<bool, StoreError> {
        self.stop().await;
        let (store, keep) = (self.rules.store.store().clone(), self.rules.keep);
        let (key, owner, ending) = (&self.key, &self.owner, self.on_drop.ending());
        let ended =
            store.end_and_release(key, owner, &ending, keep, lock.key(), lock.owner()).await;
        if ended.is_ok() {
            lock.released();
        }
        self.close(ended)
    }

    async fn stop(&self) {
        if let Some(lease) = &self.lease {
            lease.stop().await;
        }
    }

    fn close(mut self, ended: Result<bool, StoreError>) -> Result<bool, StoreError> {
        if ended.is_ok() {
            self.lease = None;
        }
        ended
    }
}

impl Drop for HeldClaim {
    fn drop(&mut self) {
        if self.lease.take().is_some() {
            let (rules, key, owner) = (&self.rules, self.key.clone(), self.owner.clone());
            let end = std::mem::replace(&mut self.on_drop, End::Abandon);
            let until = rules.store.store().clock().now() + rules.lease;
            let late = end.is_of_a_run().then(|| rules.late.begin(Arc::clone(&key)));
            end_in_background(rules, key, owner, end, until, late);
        }
    }
}

/// Ends a claim, trying again until somebody else may have it. `late`: it is the end of a run, which its message waits for;
/// that one is told for as long as the store is away, because a store that comes back empty would have the run again.
pub(super) fn end_in_background(
    rules: &ClaimRules,
    key: Arc<ClaimKey>,
    owner: Owner,
    end: End,
    until: Moment,
    late: Option<LateEnd>,
) {
    let (store, keep) = (rules.store.store().clone(), rules.keep);
    rules.store.keeper().spawn(async move {
        loop {
            match (store.end(&key, &owner, &end.ending(), keep).await, &late) {
                (Ok(false), Some(late)) => return late.note_taken_over(),
                (Ok(_), _) => return,
                (Err(error), late) => {
                    let is_awaited = late.is_some() && error.is_outage();
                    if !is_awaited && store.clock().now() >= until {
                        return;
                    }
                    tokio::time::sleep(REPEAT_PAUSE).await;
                }
            }
        }
    });
}

/// An [`Ending`] that can be kept for later.
pub(super) enum End {
    Complete(Option<Bytes>),
    Failed { attempts: u32, due_in: Duration, is_copied: bool },
    Dead(String),
    Release,
    Abandon,
}

impl End {
    /// Whether a handler ran to its end before it.
    pub(super) fn is_of_a_run(&self) -> bool {
        match self {
            Self::Complete(_) | Self::Failed { .. } | Self::Dead(_) => true,
            Self::Release | Self::Abandon => false,
        }
    }

    fn ending(&self) -> Ending<'_> {
        match self {
            Self::Complete(result) => Ending::Complete(result.as_deref()),
            Self::Failed { attempts, due_in, is_copied } => {
                Ending::Failed { attempts: *attempts, due_in: *due_in, copied: *is_copied }
            }
            Self::Dead(reason) => Ending::Dead(reason),
            Self::Release => Ending::Release,
            Self::Abandon => Ending::Abandon,
        }
    }
}

pub(super) struct ClaimRenewal {
    pub(super) store: Arc<dyn Store>,
    pub(super) key: Arc<ClaimKey>,
    pub(super) owner: Owner,
}

#[async_trait]
impl Renew for ClaimRenewal {
    async fn renew(&self, lease: Duration) -> Result<Renewed, StoreError> {
        self.store.renew_claim(&self.key, &self.owner, lease).await
    }
}
