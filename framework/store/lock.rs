//! The seam to locks: what is asked of a store and what it answers.

use std::fmt;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;

use super::{Clock, Owner, StoreError, Wakes};

/// Keeps exclusive holds of keys. The contract stands at the head of [`store`](super).
///
/// ```
/// use std::time::Duration;
/// use redeliver::store::{Fence, LockAnswer, LockAsk, LockStore, Owner, Renewed, memory::MemoryStore};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), redeliver::store::StoreError> {
/// let (store, owner, lease) = (MemoryStore::new(), Owner::new(), Duration::from_secs(30));
/// let ask = LockAsk { key: "customer:42", owner: &owner, lease, holder: "billing@host", fair: true, waits: false, seen: Fence(0) };
/// assert!(matches!(store.acquire(&ask).await?, LockAnswer::Held(_)));
/// assert_eq!(store.renew("customer:42", &owner, lease).await?, Renewed::Kept);
///
/// let second = Owner::new();
/// let queued = LockAsk { owner: &second, waits: true, ..ask };
/// assert!(matches!(store.acquire(&queued).await?, LockAnswer::Busy { .. }));
/// assert_eq!(store.inspect("customer:42").await?.map(|state| state.waiting), Some(1));
/// store.leave("customer:42", &second).await?;
///
/// assert!(store.release("customer:42", &owner).await?);
/// assert!(!store.force_release("customer:42").await?, "it was free");
/// store.wakes().wake_all();                                  // what an adapter does after a gap
/// # Ok(())
/// # }
/// ```
#[async_trait]
pub trait LockStore: Send + Sync {
    /// Asks for a key.
    ///
    /// # Errors
    /// After an error the key may be held all the same, until the lease ends.
    async fn acquire(&self, ask: &LockAsk<'_>) -> Result<LockAnswer, StoreError>;

    /// Prolongs a hold: `lease` from now on.
    ///
    /// # Errors
    /// Nothing is known then: the hold lasts at least as long as it did before.
    async fn renew(&self, key: &str, owner: &Owner, lease: Duration)
    -> Result<Renewed, StoreError>;

    /// Gives a hold back; true if it was held by `owner`. Safe to repeat.
    ///
    /// # Errors
    /// The key is free when its lease ends.
    async fn release(&self, key: &str, owner: &Owner) -> Result<bool, StoreError>;

    /// Leaves the queue, and gives back what was had meanwhile.
    ///
    /// # Errors
    /// The place in the queue is skipped after a few seconds.
    async fn leave(&self, key: &str, owner: &Owner) -> Result<(), StoreError>;

    /// Takes a key from whoever holds it; true if somebody did.
    ///
    /// # Errors
    /// Nothing is known then; look with [`inspect`](Self::inspect).
    async fn force_release(&self, key: &str) -> Result<bool, StoreError>;

    /// Who holds a key; `None` if nobody holds it or waits for it.
    ///
    /// # Errors
    /// The store did not answer.
    async fn inspect(&self, key: &str) -> Result<Option<LockState>, StoreError>;

    /// Those of this process who wait for keys of this store.
    fn wakes(&self) -> &Wakes;

    /// The clock that deadlines of its leases are measured on.
    fn clock(&self) -> Clock;
}

/// What is asked for.
///
/// ```
/// # use redeliver::store::{Fence, LockStore, Owner, memory::MemoryStore};
/// # use std::time::Duration;
/// use redeliver::store::{LockAnswer, LockAsk};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), redeliver::store::StoreError> {
/// # let (store, owner) = (MemoryStore::new(), Owner::new());
/// # let ask = LockAsk {
/// #     key: "customer:42", owner: &owner, lease: Duration::from_secs(30), holder: "billing@host",
/// #     fair: false, waits: false, seen: Fence(0),
/// # };
/// let ask = LockAsk { seen: Fence(u64::MAX - 1), ..ask };
/// assert_eq!(store.acquire(&ask).await?, LockAnswer::Held(Fence(u64::MAX)), "larger than what was seen");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct LockAsk<'a> {
    /// Which key.
    pub key: &'a str,
    /// For whom.
    pub owner: &'a Owner,
    /// For how long, unless renewed.
    pub lease: Duration,
    /// Who that is, for humans.
    pub holder: &'a str,
    /// First come, first served.
    pub fair: bool,
    /// A place in the queue is wanted if somebody else has it.
    pub waits: bool,
    /// The largest fence that this process has seen; the new one is larger.
    pub seen: Fence,
}

/// What a store says to [`LockStore::acquire`].
///
/// ```
/// # use redeliver::store::{Fence, LockStore, memory::MemoryStore};
/// # use std::time::Duration;
/// use redeliver::store::{LockAnswer, LockAsk, Owner};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), redeliver::store::StoreError> {
/// # let (store, owner) = (MemoryStore::new(), Owner::new());
/// # let ask = LockAsk {
/// #     key: "customer:42", owner: &owner, lease: Duration::from_secs(30), holder: "billing@host",
/// #     fair: false, waits: false, seen: Fence(0),
/// # };
/// store.acquire(&ask).await?;
/// match store.acquire(&LockAsk { owner: &Owner::new(), ..ask }).await? {
///     LockAnswer::Held(_) => panic!("somebody has it"),
///     LockAnswer::Busy { remaining, ahead } => assert!(remaining <= ask.lease && ahead == 0),
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockAnswer {
    /// Held from now on.
    Held(Fence),
    /// Somebody else has it, or comes first.
    Busy {
        /// How long its lease lasts if it is not renewed.
        remaining: Duration,
        /// How many wait in front.
        ahead: u32,
    },
}

/// What a store says to [`LockStore::renew`].
///
/// ```
/// # use redeliver::store::{Fence, LockAsk, LockStore, memory::MemoryStore};
/// # use std::time::Duration;
/// use redeliver::store::{Owner, Renewed};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), redeliver::store::StoreError> {
/// # let (store, owner) = (MemoryStore::new(), Owner::new());
/// # let ask = LockAsk {
/// #     key: "customer:42", owner: &owner, lease: Duration::from_secs(30), holder: "billing@host",
/// #     fair: false, waits: false, seen: Fence(0),
/// # };
/// store.acquire(&ask).await?;
/// assert_eq!(store.renew(ask.key, &owner, ask.lease).await?, Renewed::Kept);
/// assert_eq!(store.renew(ask.key, &Owner::new(), ask.lease).await?, Renewed::Lost);
/// store.force_release(ask.key).await?;
/// assert_eq!(store.renew(ask.key, &owner, ask.lease).await?, Renewed::Forced);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewed {
    /// The lease is counted from now on.
    Kept,
    /// It ended, and may be somebody else's now.
    Lost,
    /// It was released by force.
    Forced,
}

/// A number that only grows from hold to hold of a key.
///
/// A resource that remembers the largest fence it has seen, and refuses smaller ones, is safe from
/// a holder that slept through the end of its lease. It does not make an effect happen once.
///
/// ```
/// use redeliver::store::Fence;
///
/// /// What is written to: a row with the largest fence it has seen.
/// struct Account { fence: Fence, cents: i64 }
///
/// impl Account {
///     fn write(&mut self, fence: Fence, cents: i64) -> Result<(), String> {
///         if fence < self.fence {
///             return Err(format!("{fence} is older than {}", self.fence));
///         }
///         (self.fence, self.cents) = (fence, cents);
///         Ok(())
///     }
/// }
///
/// let mut account = Account { fence: Fence(0), cents: 0 };
/// account.write(Fence(2), 500)?;
/// assert!(account.write(Fence(1), 900).is_err(), "whoever held it before slept too long");
/// assert_eq!(account.cents, 500);
/// # Ok::<(), String>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fence(pub u64);

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Who holds a key.
///
/// ```
/// # use std::sync::Arc;
/// # use redeliver::store::{Keeper, LockStore, Locks, memory::MemoryStore};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let store = Arc::new(MemoryStore::new());
/// # let keeper = Keeper::new(tokio::runtime::Handle::current(), store.clock());
/// # let locks = Locks::new(store, keeper, "billing@host");
/// let guard = locks.acquire("customer:42").await?;
/// let state = locks.inspect("customer:42").await?.expect("it is held");
/// assert_eq!(state.holder.as_deref(), Some("billing@host"));
/// assert_eq!((state.fence, state.waiting), (guard.fence(), 0));
/// assert!(state.until > state.since);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockState {
    /// Who, as they called themselves; `None` if it is free.
    pub holder: Option<String>,
    /// Since when, on the store's clock.
    pub since: SystemTime,
    /// Until when unless renewed, on the store's clock.
    pub until: SystemTime,
    /// The last fence.
    pub fence: Fence,
    /// How many wait.
    pub waiting: u32,
}
