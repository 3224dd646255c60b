//! The seam to claims: what is asked of a store about a message id, and what it answers.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::join_all;
use sha2::{Digest, Sha256};

use super::{Fence, Owner, Renewed, StoreError};

/// The largest result that is kept with a claim, in bytes.
///
/// ```
/// use redeliver::store::RESULT_BYTES_MAX;
///
/// assert!(b"receipt 9".len() <= RESULT_BYTES_MAX);
/// ```
pub const RESULT_BYTES_MAX: usize = 64 * 1024;

/// Remembers which message ids run, wait, are done or dead. The contract stands at the head of
/// [`store`](super).
///
/// ```
/// use std::time::Duration;
/// use redeliver::store::{ClaimAnswer, ClaimAsk, ClaimKey, Ending, Fence, Fingerprint, IdempotencyStore, Owner, Renewed};
/// use redeliver::store::memory::MemoryStore;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), redeliver::store::StoreError> {
/// let (store, owner) = (MemoryStore::new(), Owner::new());
/// let (lease, keep) = (Duration::from_secs(60), Duration::from_secs(3600));
/// let fingerprint = Fingerprint::of(b"{}");
/// let key = ClaimKey { scope: "payments".into(), id: "payment-7".into(), fingerprint, generation: 0 };
/// let ask = ClaimAsk { key: &key, owner: &owner, lease, keep, attempts: 0, holder: "billing@host", force: false, waits: false, seen: Fence(0) };
///
/// assert!(matches!(store.claim(&ask).await?, ClaimAnswer::Granted(_)));
/// assert_eq!(store.renew_claim(&key, &owner, lease).await?, Renewed::Kept);
/// assert!(store.end(&key, &owner, &Ending::Complete(Some(b"receipt 9")), keep).await?);
///
/// let duplicate = store.claim(&ClaimAsk { owner: &Owner::new(), ..ask }).await?;
/// assert_eq!(duplicate, ClaimAnswer::Done(Some("receipt 9".into())));
/// assert_eq!(store.peek(&key).await?.map(|known| known.state), Some("done"));
/// assert!(store.reset(&key).await?, "an operator wants it handled again");
/// # Ok(())
/// # }
/// ```
#[async_trait]
pub trait IdempotencyStore: Send + Sync {
    /// Asks to run an id.
    ///
    /// # Errors
    /// After an error the id may be claimed all the same, until the lease ends.
    async fn claim(&self, ask: &ClaimAsk<'_>) -> Result<ClaimAnswer, StoreError>;

    /// Prolongs a claim: `lease` from now on.
    ///
    /// # Errors
    /// Nothing is known then: the claim lasts at least as long as it did before.
    async fn renew_claim(
        &self,
        key: &ClaimKey,
        owner: &Owner,
        lease: Duration,
    ) -> Result<Renewed, StoreError>;

    /// Ends a claim; false if somebody else took it over. Safe to repeat.
    ///
    /// # Errors
    /// Nothing is known then; repeat it, or let the lease end.
    async fn end(
        &self,
        key: &ClaimKey,
        owner: &Owner,
        ending: &Ending<'_>,
        keep: Duration,
    ) -> Result<bool, StoreError>;

    /// Asks to run several ids, which may be of different rules and one may come twice: an answer for each, in their order,
    /// as [`claim`](Self::claim) would give it. A store that can ask for all of them in one call has its own.
    async fn claim_all(&self, asks: &[ClaimAsk<'_>]) -> Vec<Result<ClaimAnswer, StoreError>> {
        join_all(asks.iter().map(|ask| self.claim(ask))).await
    }

    /// Completes several claims without a result: an answer for each, in their order, as [`end`](Self::end) would give it.
    async fn complete_all(
        &self,
        claims: &[(&ClaimKey, &Owner)],
        keep: Duration,
    ) -> Vec<Result<bool, StoreError>> {
        let complete = |&(key, owner)| self.end(key, owner, &Ending::Complete(None), keep);
        join_all(claims.iter().map(complete)).await
    }

    /// What is known of an id.
    ///
    /// # Errors
    /// The store did not answer.
    async fn peek(&self, key: &ClaimKey) -> Result<Option<ClaimState>, StoreError>;

    /// Forgets an id; true if it was known.
    ///
    /// # Errors
    /// The store did not answer.
    async fn reset(&self, key: &ClaimKey) -> Result<bool, StoreError>;
}

/// A message id within its subscription, with what a late end needs to write the record anew.
///
/// ```
/// use redeliver::store::{ClaimKey, Fingerprint};
///
/// let fingerprint = Fingerprint::of(br#"{"cents": 100}"#);
/// let key = ClaimKey { scope: "payments".into(), id: "7".into(), fingerprint, generation: 0 };
/// assert_ne!(key, ClaimKey { scope: "refunds".into(), ..key.clone() });
/// assert_eq!(format!("{key:?}"), "ClaimKey(payments/7 generation 0)");
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct ClaimKey {
    /// The subscription, behind its service's name if it was given one: the same id means another message in another one.
    pub scope: Arc<str>,
    /// The message's id.
    pub id: Box<str>,
    /// What its payload is recognised by.
    pub fingerprint: Fingerprint,
    /// How often the message was redriven.
    pub generation: u32,
}

impl fmt::Debug for ClaimKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClaimKey({}/{} generation {})", self.scope, self.id, self.generation)
    }
}

/// What is asked for.
///
/// ```
/// # use redeliver::store::{ClaimKey, Fence, Fingerprint, IdempotencyStore, Owner, memory::MemoryStore};
/// # use std::time::Duration;
/// use redeliver::store::{ClaimAnswer, ClaimAsk, Ending};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), redeliver::store::StoreError> {
/// # let (store, owner) = (MemoryStore::new(), Owner::new());
/// # let key = ClaimKey { scope: "payments".into(), id: "payment-7".into(), fingerprint: Fingerprint::of(b"{}"), generation: 0 };
/// # let ask = ClaimAsk {
/// #     key: &key, owner: &owner, lease: Duration::from_secs(60), keep: Duration::from_secs(3600),
/// #     attempts: 0, holder: "billing@host", force: false, waits: false, seen: Fence(0),
/// # };
/// assert!(matches!(store.claim(&ask).await?, ClaimAnswer::Granted(_)));
/// store.end(&key, &owner, &Ending::Complete(None), ask.keep).await?;
/// assert_eq!(store.claim(&ask).await?, ClaimAnswer::Done(None));
/// let redriven = ClaimKey { generation: 1, ..key.clone() };
/// let forced = ClaimAsk { key: &redriven, force: true, ..ask };
/// assert!(matches!(store.claim(&forced).await?, ClaimAnswer::Granted(_)));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct ClaimAsk<'a> {
    /// Which id, payload and generation.
    pub key: &'a ClaimKey,
    /// For whom.
    pub owner: &'a Owner,
    /// For how long, unless renewed.
    pub lease: Duration,
    /// How long the record is kept after its last change.
    pub keep: Duration,
    /// Attempts that the message itself says it has used.
    pub attempts: u32,
    /// Who asks, for humans.
    pub holder: &'a str,
    /// A redrive by force: a higher generation opens what is done as well.
    pub force: bool,
    /// Wants to be woken, through [`LockStore::wakes`](super::LockStore::wakes), by the end of
    /// whoever runs it now.
    pub waits: bool,
    /// The largest fence that this process has seen; the new one is larger.
    pub seen: Fence,
}

/// What a store says to [`IdempotencyStore::claim`].
///
/// ```
/// # use redeliver::store::{Fence, IdempotencyStore, memory::MemoryStore};
/// # use std::time::Duration;
/// use redeliver::store::{ClaimAnswer, ClaimAsk, ClaimKey, Fingerprint, Owner};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), redeliver::store::StoreError> {
/// # let (store, owner) = (MemoryStore::new(), Owner::new());
/// # let key = ClaimKey { scope: "payments".into(), id: "payment-7".into(), fingerprint: Fingerprint::of(b"{}"), generation: 0 };
/// # let ask = ClaimAsk {
/// #     key: &key, owner: &owner, lease: Duration::from_secs(60), keep: Duration::from_secs(3600),
/// #     attempts: 0, holder: "billing@host", force: false, waits: false, seen: Fence(0),
/// # };
/// store.claim(&ask).await?;
/// let other = ClaimAsk { owner: &Owner::new(), ..ask };
/// assert!(matches!(store.claim(&other).await?, ClaimAnswer::Running { .. }));
/// let changed = ClaimKey { fingerprint: Fingerprint::of(b"[]"), ..key.clone() };
/// assert_eq!(store.claim(&ClaimAsk { key: &changed, ..other }).await?, ClaimAnswer::Mismatch);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClaimAnswer {
    /// Run it.
    Granted(Claim),
    /// It was handled; with the result that was kept, if any.
    Done(Option<Bytes>),
    /// It was given up; with the reason.
    Dead(String),
    /// Somebody runs it.
    Running {
        /// How long their lease lasts if it is not renewed.
        remaining: Duration,
    },
    /// Its next attempt is not due yet, and waits in some process.
    Waiting {
        /// How long that takes.
        remaining: Duration,
    },
    /// A copy of it with more attempts is alive at the broker: this delivery is not needed.
    Superseded,
    /// The id was seen with another payload.
    Mismatch,
}

/// A claim that was granted.
///
/// ```
/// # use redeliver::store::{ClaimKey, Fence, Fingerprint, IdempotencyStore, Owner, memory::MemoryStore};
/// # use std::time::Duration;
/// use redeliver::store::{ClaimAnswer, ClaimAsk};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), redeliver::store::StoreError> {
/// # let (store, owner) = (MemoryStore::new(), Owner::new());
/// # let key = ClaimKey { scope: "payments".into(), id: "payment-7".into(), fingerprint: Fingerprint::of(b"{}"), generation: 0 };
/// # let ask = ClaimAsk {
/// #     key: &key, owner: &owner, lease: Duration::from_secs(60), keep: Duration::from_secs(3600),
/// #     attempts: 0, holder: "billing@host", force: false, waits: false, seen: Fence(0),
/// # };
/// let second_copy = ClaimAsk { attempts: 1, ..ask };
/// let ClaimAnswer::Granted(claim) = store.claim(&second_copy).await? else { panic!("nobody has it") };
/// assert_eq!((claim.attempts, claim.takeovers), (1, 0));
/// assert!(claim.fence > ask.seen);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Whether anybody may have run it halfway.
    pub kind: ClaimKind,
    /// Attempts already used: the larger of what the message says and what the store counted.
    pub attempts: u32,
    /// How many owners vanished in a row while they ran it.
    pub takeovers: u32,
    /// A number that only grows from claim to claim of this id.
    pub fence: Fence,
}

/// How a claim was had.
///
/// ```
/// # use redeliver::store::{ClaimAsk, ClaimKey, Fence, Fingerprint, IdempotencyStore, Owner, memory::MemoryStore};
/// # use std::time::Duration;
/// use redeliver::store::{ClaimAnswer, ClaimKind, Ending};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), redeliver::store::StoreError> {
/// # let (store, owner) = (MemoryStore::new(), Owner::new());
/// # let key = ClaimKey { scope: "payments".into(), id: "payment-7".into(), fingerprint: Fingerprint::of(b"{}"), generation: 0 };
/// # let ask = ClaimAsk {
/// #     key: &key, owner: &owner, lease: Duration::from_secs(60), keep: Duration::from_secs(3600),
/// #     attempts: 0, holder: "billing@host", force: false, waits: false, seen: Fence(0),
/// # };
/// let ClaimAnswer::Granted(first) = store.claim(&ask).await? else { panic!("nobody has it") };
/// assert_eq!(first.kind, ClaimKind::Fresh);
/// store.end(&key, &owner, &Ending::Abandon, ask.keep).await?;
/// let ClaimAnswer::Granted(second) = store.claim(&ask).await? else { panic!("it was abandoned") };
/// assert_eq!(second.kind, ClaimKind::TakenOver);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ClaimKind {
    /// Nobody ran this attempt before.
    Fresh,
    /// Somebody ran it and vanished: what they did before that is unknown.
    TakenOver,
}

/// How a claim ends.
///
/// ```
/// # use redeliver::store::{ClaimKey, Fence, Fingerprint, IdempotencyStore, memory::MemoryStore};
/// # use std::time::Duration;
/// use redeliver::store::{ClaimAnswer, ClaimAsk, Ending, Owner};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), redeliver::store::StoreError> {
/// # let (store, owner) = (MemoryStore::new(), Owner::new());
/// # let key = ClaimKey { scope: "payments".into(), id: "payment-7".into(), fingerprint: Fingerprint::of(b"{}"), generation: 0 };
/// # let ask = ClaimAsk {
/// #     key: &key, owner: &owner, lease: Duration::from_secs(60), keep: Duration::from_secs(3600),
/// #     attempts: 0, holder: "billing@host", force: false, waits: false, seen: Fence(0),
/// # };
/// store.claim(&ask).await?;
/// let failed = Ending::Failed { attempts: 1, due_in: Duration::from_secs(30), copied: true };
/// store.end(&key, &owner, &failed, ask.keep).await?;
///
/// // The original, which came again because the process died before it acknowledged, is not needed ...
/// let original = ClaimAsk { owner: &Owner::new(), ..ask };
/// assert_eq!(store.claim(&original).await?, ClaimAnswer::Superseded);
/// // ... the copy, which says that an attempt was made, may run.
/// let copy = ClaimAsk { attempts: 1, ..original };
/// assert!(matches!(store.claim(&copy).await?, ClaimAnswer::Granted(_)));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending<'a> {
    /// Handled. With a small result for those who ask again.
    Complete(Option<&'a [u8]>),
    /// An attempt failed.
    Failed {
        /// Attempts used up, this one included.
        attempts: u32,
        /// How long until the next one is due.
        due_in: Duration,
        /// A copy that carries `attempts` was confirmed by the broker, so older ones are not
        /// needed. False: the delivery waits in this process.
        copied: bool,
    },
    /// Given up, and the dead letter confirmed; with the reason.
    Dead(&'a str),
    /// Given back before the handler was called.
    Release,
    /// Given back while the handler may have done something.
    Abandon,
}

/// What is known of an id.
///
/// ```
/// # use redeliver::store::{ClaimAsk, ClaimKey, Fence, Fingerprint, IdempotencyStore, Owner, memory::MemoryStore};
/// # use std::time::Duration;
/// use redeliver::store::Ending;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), redeliver::store::StoreError> {
/// # let (store, owner) = (MemoryStore::new(), Owner::new());
/// # let key = ClaimKey { scope: "payments".into(), id: "payment-7".into(), fingerprint: Fingerprint::of(b"{}"), generation: 0 };
/// # let ask = ClaimAsk {
/// #     key: &key, owner: &owner, lease: Duration::from_secs(60), keep: Duration::from_secs(3600),
/// #     attempts: 0, holder: "billing@host", force: false, waits: false, seen: Fence(0),
/// # };
/// assert_eq!(store.peek(&key).await?, None);
/// store.claim(&ask).await?;
/// store.end(&key, &owner, &Ending::Dead("rejected"), ask.keep).await?;
/// let known = store.peek(&key).await?.expect("it was claimed");
/// assert_eq!((known.state, known.holder.as_str()), ("dead", "billing@host"));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimState {
    /// `"running"`, `"failed"`, `"done"` or `"dead"`.
    pub state: &'static str,
    /// Attempts used.
    pub attempts: u32,
    /// The generation.
    pub generation: u32,
    /// Who had it last, as they called themselves.
    pub holder: String,
    /// Running: how long the lease lasts. Failed: how long until it is due. Else zero.
    pub remaining: Duration,
}

/// The first 128 bits of a payload's SHA-256.
///
/// ```
/// use redeliver::store::Fingerprint;
///
/// assert_eq!(Fingerprint::of(b"{}"), Fingerprint::of(b"{}"));
/// assert_ne!(Fingerprint::of(b"{}"), Fingerprint::of(b"{ }"));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 16]);

impl Fingerprint {
    /// Of these bytes.
    ///
    /// ```
    /// use redeliver::store::Fingerprint;
    ///
    /// // As `sha256sum` begins for an empty file.
    /// let empty = format!("{:?}", Fingerprint::of(b""));
    /// assert_eq!(empty, "Fingerprint(e3b0c44298fc1c149afbf4c8996fb924)");
    /// ```
    pub fn of(payload: &[u8]) -> Self {
        let mut first = [0; 16];
        first.copy_from_slice(&Sha256::digest(payload)[..16]);
        Self(first)
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({:032x})", u128::from_be_bytes(self.0))
    }
}
