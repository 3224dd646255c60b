//! The seam to state that processes share: locks and claims, as contracts of numbered sentences.
//!
//! Owns the contracts, the types that cross them, and what both adapters need around them: a clock,
//! the renewal of leases, the waking of those who wait. Knows no broker and no message, and never
//! decides what happens to a delivery.
//!
//! # The contract of [`LockStore`]
//!
//! 1. A free key is had by who asks first; until its lease ends nobody else has it.
//! 2. Every hold has a fence greater than every fence the key had before.
//! 3. Asking again as the same owner gives the same hold with a fresh lease.
//! 4. Only the owner renews; a lease that was renewed is counted from the renewal.
//! 5. Only the owner releases; releasing twice, or what is not held, changes nothing.
//! 6. A lease that ended is free, without anybody cleaning up.
//! 7. Who waits is woken by the release, and no later than the poll behind it.
//! 8. In fair mode the first to wait is the first to have.
//! 9. A waiter that died is skipped, one that left is forgotten at once.
//! 10. Leaving the queue gives back a hold that came too late to be seen.
//! 11. Force release frees the key, and the holder's next renewal says so.
//! 12. Inspection tells who holds a key, since when, until when, and how many wait.
//! 13. Keys are bytes: empty, long, with NUL, newline or braces, none is taken for another.
//!
//! # The contract of [`IdempotencyStore`]
//!
//! 1. An id that nobody claimed is fresh, for one of those who ask at once.
//! 2. While it runs, others are told how much of the lease remains, and nothing changes.
//! 3. A lease that ended is taken over, and who takes over is told.
//! 4. Asking again as the same owner gives the same claim with a fresh lease.
//! 5. Only the owner renews, and only while nobody took over.
//! 6. An id that is done stays done, with its result, whatever the generation; a higher one that
//!    comes by force opens it, once.
//! 7. Only the owner ends a claim; a late end is accepted when nobody took over.
//! 8. A record that is gone accepts the end of who held it.
//! 9. A failed attempt is counted, and the id is claimable from its due time on; who waits for that in
//!    its process may count anew until then.
//! 10. Before that, the copy that carries the attempt may run, an older delivery is superseded.
//! 11. Before that, an attempt that waits in its process lets nobody in.
//! 12. Of two counts of attempts the larger one counts, within a generation.
//! 13. An id that ended dead stays dead until a higher generation, which counts anew.
//! 14. The same id with another payload is a mismatch, but for a higher generation.
//! 15. A release counts nothing; an abandoned run makes the next one a takeover.
//! 16. Ids are bytes, and belong to their scope: none is taken for another.
//! 17. A reset forgets the id; a peek changes nothing.
//! 18. A claim and a lock are had, and ended, together.
//! 19. Whoever was told that it runs, and waits, is woken by its end.
//! 20. A redrive that is given back keeps older generations out, and may come again.
//! 21. Several ids are claimed, and completed, together: each is answered as if it were alone.
//!
//! Both: time is the store's own, one clock for all processes. Every call ends within the store's
//! deadline. [`testing`](crate::testing) turns these sentences into tests that every adapter runs.

use std::time::Duration;

use async_trait::async_trait;

mod claim;
mod clock;
mod guard;
mod lease;
mod lock;
mod locks;
pub mod memory;
mod owner;
#[cfg(feature = "redis")]
pub mod redis;
mod scope;
mod wake;

pub use claim::{
    Claim, ClaimAnswer, ClaimAsk, ClaimKey, ClaimKind, ClaimState, Ending, Fingerprint,
    IdempotencyStore, RESULT_BYTES_MAX,
};
pub use clock::Clock;
pub(crate) use clock::Moment;
pub(crate) use guard::EndingGuard;
pub use guard::Guard;
pub use lease::{Keeper, Loss};
pub(crate) use lease::{Lease, Renew};
pub use lock::{Fence, LockAnswer, LockAsk, LockState, LockStore, Renewed};
pub use locks::{Acquire, LockError, LockPolicy, Locks};
pub use owner::Owner;
pub(crate) use scope::{Gathering, Scope, Sharing};
pub use wake::Wakes;
pub(crate) use wake::Woken;

/// Locks and claims in one place, so that a message's guards can be had in one round trip.
///
/// ```
/// use std::time::Duration;
/// use redeliver::store::{ClaimAnswer, ClaimAsk, ClaimKey, Ending, Fence, Fingerprint, LockAnswer, LockAsk, Owner, Store, StoreState};
/// use redeliver::store::memory::MemoryStore;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), redeliver::store::StoreError> {
/// let store = MemoryStore::new();
/// store.drive_on(&tokio::runtime::Handle::current());
/// assert!(store.check().await?.is_empty(), "no setting loses anything");
///
/// let (owner, lock_owner) = (Owner::new(), Owner::new());
/// let (lease, keep) = (Duration::from_secs(60), Duration::from_secs(3600));
/// let fingerprint = Fingerprint::of(b"{}");
/// let key = ClaimKey { scope: "payments".into(), id: "payment-7".into(), fingerprint, generation: 0 };
/// let claim = ClaimAsk { key: &key, owner: &owner, lease, keep, attempts: 0, holder: "billing@host", force: false, waits: false, seen: Fence(0) };
/// let lock = LockAsk { key: "customer:42", owner: &lock_owner, lease, holder: "billing@host", fair: false, waits: false, seen: Fence(0) };
///
/// let both = store.claim_and_acquire(&claim, &lock).await?;
/// assert!(matches!(both, (ClaimAnswer::Granted(_), Some(LockAnswer::Held(_)))));
/// assert!(store.end_and_release(&key, &owner, &Ending::Complete(None), keep, lock.key, &lock_owner).await?);
/// assert_eq!((store.state(), store.kind()), (StoreState::Up, "memory"));
/// # Ok(())
/// # }
/// ```
#[async_trait]
pub trait Store: LockStore + IdempotencyStore {
    /// Claims, and where that is granted asks for the lock.
    ///
    /// The lock's answer is `None` when the claim was not granted.
    ///
    /// # Errors
    /// After an error either may be held all the same until its lease ends.
    async fn claim_and_acquire(
        &self,
        claim: &ClaimAsk<'_>,
        lock: &LockAsk<'_>,
    ) -> Result<(ClaimAnswer, Option<LockAnswer>), StoreError> {
        let answer = self.claim(claim).await?;
        let locked = match answer {
            ClaimAnswer::Granted(_) => Some(self.acquire(lock).await?),
            _ => None,
        };
        Ok((answer, locked))
    }

    /// Ends the claim, then releases the lock; true if the claim was ours to end.
    ///
    /// # Errors
    /// After an error both may be ended, or neither.
    async fn end_and_release(
        &self,
        claim: &ClaimKey,
        claim_owner: &Owner,
        ending: &Ending<'_>,
        keep: Duration,
        lock: &str,
        lock_owner: &Owner,
    ) -> Result<bool, StoreError> {
        let ours = self.end(claim, claim_owner, ending, keep).await?;
        self.release(lock, lock_owner).await?;
        Ok(ours)
    }

    /// Questions of several messages follow right behind one another, until what is returned is dropped: a store that can
    /// send them together may wait for that, but not for long, because a handler may keep whoever asks.
    fn gather(&self) -> Box<dyn Send> {
        Box::new(())
    }

    /// Connects and looks for settings that lose locks or claims; returns a warning for each.
    ///
    /// # Errors
    /// [`StoreFault::Unsafe`] with all of them where the store is strict; what keeps it from
    /// connecting.
    async fn check(&self) -> Result<Vec<String>, StoreError>;

    /// Finds out whether it keeps what it is told, for [`state`](Self::state).
    ///
    /// # Errors
    /// What keeps it from that.
    async fn probe(&self) -> Result<(), StoreError> {
        self.inspect("").await.map(drop)
    }

    /// Whether it answers, and what keeps it from answering.
    fn state(&self) -> StoreState;

    /// Where connections are driven from now on: a thread that no handler blocks.
    fn drive_on(&self, _runtime: &tokio::runtime::Handle) {}

    /// What kind it is, as in the configuration: `"memory"`, `"redis"`.
    fn kind(&self) -> &'static str;
}

/// What a store is up to.
///
/// ```
/// use redeliver::store::{Store, StoreState};
///
/// fn shown(store: &dyn Store) -> String {
///     match store.state() {
///         StoreState::Up => format!("{} answers", store.kind()),
///         StoreState::Down(why) => format!("{} is down: {why}", store.kind()),
///     }
/// }
/// assert_eq!(shown(&redeliver::store::memory::MemoryStore::new()), "memory answers");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreState {
    /// The last call was answered, or none was made yet.
    Up,
    /// The last call was not answered; with what it said.
    Down(String),
}

/// What a store could not do.
///
/// ```
/// use redeliver::store::{LockError, StoreError, StoreFault};
///
/// let text = "cannot ask store `main` for a lock: no answer within 1s; is it reachable?";
/// let error = LockError::from(StoreError::new(StoreFault::Down, text));
/// assert_eq!(error.to_string(), text);
/// ```
#[derive(Clone, Debug, thiserror::Error)]
#[error("{text}")]
pub struct StoreError {
    /// What kind of fault it was, for code that decides.
    pub fault: StoreFault,
    /// What was attempted, on which object, what came back and what to do; never a secret.
    pub text: String,
}

impl StoreError {
    /// An error of the kind `fault` that reads `text`.
    ///
    /// ```
    /// use redeliver::store::{StoreError, StoreFault};
    ///
    /// let said = "cannot claim payment-7 in store `main`: out of memory; give the server more";
    /// let error = StoreError::new(StoreFault::Full, said);
    /// assert_eq!((error.fault, error.to_string().as_str()), (StoreFault::Full, said));
    /// ```
    pub fn new(fault: StoreFault, text: impl Into<String>) -> Self {
        Self { fault, text: text.into() }
    }

    /// Whether it says something about the store, and not about the one key that was asked for.
    pub(crate) fn is_outage(&self) -> bool {
        match self.fault {
            StoreFault::Down
            | StoreFault::Refused
            | StoreFault::Full
            | StoreFault::Unreplicated => true,
            StoreFault::Unsafe | StoreFault::Invalid | StoreFault::Other => false,
        }
    }
}

/// The kinds of faults that anyone decides on.
///
/// ```
/// use redeliver::store::{LockError, StoreError, StoreFault};
/// use redeliver::Failure;
///
/// /// A lock that is busy, or whose store is away for now, is no fault of the message.
/// fn failure(error: LockError) -> Failure {
///     match &error {
///         LockError::Store(StoreError { fault: StoreFault::Refused, .. }) => Failure::reject(error),
///         _ => Failure::retry(error),
///     }
/// }
/// let refused = StoreError::new(StoreFault::Refused, "WRONGPASS");
/// assert!(format!("{:?}", failure(refused.into())).contains("Reject"));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StoreFault {
    /// No answer within the deadline, or an answer that says "not now": trying again may help.
    Down,
    /// Credentials or permissions refused: trying again is of no use.
    Refused,
    /// The server takes no more data.
    Full,
    /// Fewer replicas than configured have the write; it was taken back.
    Unreplicated,
    /// Settings that lose locks or claims, and the store is strict.
    Unsafe,
    /// An address, setting or server that cannot be used.
    Invalid,
    /// Of the one key that was asked for: what is stored there is not ours. A message that asks for it loses an attempt.
    Other,
}
