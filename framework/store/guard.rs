//! A lock that is held.
//!
//! Owns its release: by hand, together with a claim, or when the last guard is dropped.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::locks::{Shared, shown};
use super::{Fence, Lease, Loss, Owner, Renew, Renewed, Store, StoreError};
use crate::outside;

/// A lock that is held. Dropping the last guard of a hold releases it.
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
/// assert_eq!(guard.key(), "customer:42");
/// let fence = guard.fence();
/// guard.release().await?;
///
/// let next = locks.acquire("customer:42").await?;
/// assert!(next.fence() > fence);
/// assert_eq!(next.loss(), None, "surely held: go on and write");
/// drop(next);                                 // released in the background
/// # Ok(())
/// # }
/// ```
#[must_use = "a lock is released when its guard is dropped"]
pub struct Guard(pub(super) Arc<Held>);

pub(super) struct Held {
    pub(super) shared: Arc<Shared>,
    pub(super) key: String,
    pub(super) owner: Owner,
    pub(super) fence: Fence,
    pub(super) lease: Lease,
    pub(super) is_released: bool,
}

impl Guard {
    /// What is locked.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use redeliver::store::{Keeper, LockStore, Locks, memory::MemoryStore};
    /// use redeliver::store::Guard;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let store = Arc::new(MemoryStore::new());
    /// # let keeper = Keeper::new(tokio::runtime::Handle::current(), store.clock());
    /// # let locks = Locks::new(store, keeper, "billing@host");
    /// /// Only who has the customer's lock can call it.
    /// fn charge(customer: &Guard, cents: u32) -> String {
    ///     format!("{} pays {cents} cents", customer.key())
    /// }
    /// assert_eq!(charge(&locks.acquire("customer:42").await?, 500), "customer:42 pays 500 cents");
    /// # Ok(())
    /// # }
    /// ```
    pub fn key(&self) -> &str {
        &self.0.key
    }

    /// A number larger than that of every hold before: a resource that refuses smaller ones is
    /// safe from a holder that slept. It does not make an effect happen once.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use redeliver::store::{Keeper, LockStore, Locks, memory::MemoryStore};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let store = Arc::new(MemoryStore::new());
    /// # let keeper = Keeper::new(tokio::runtime::Handle::current(), store.clock());
    /// # let locks = Locks::new(store, keeper, "billing@host");
    /// let slept = locks.acquire("customer:42").await?;
    /// locks.force_release("customer:42").await?;          // or its lease ended meanwhile
    /// let next = locks.acquire("customer:42").await?;
    ///
    /// let mut row = (next.fence(), 500);                  // written by whoever has it now
    /// if slept.fence() >= row.0 {
    ///     row = (slept.fence(), 900);
    /// }
    /// assert_eq!(row, (next.fence(), 500), "who slept is refused");
    /// # Ok(())
    /// # }
    /// ```
    pub fn fence(&self) -> Fence {
        self.0.fence
    }

    /// Completes when the lock is lost, no later than anybody else can have it.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use redeliver::store::{Keeper, LockStore, Locks, memory::MemoryStore};
    /// use std::time::Duration;
    /// use redeliver::store::Loss;
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let store = Arc::new(MemoryStore::new());
    /// # let keeper = Keeper::new(tokio::runtime::Handle::current(), store.clock());
    /// # let locks = Locks::new(store, keeper, "billing@host");
    /// let guard = locks.acquire("report").hold_max(Duration::from_secs(60)).await?;
    /// let report = tokio::time::sleep(Duration::from_secs(90));     // what needs the lock
    /// let done = tokio::select! {
    ///     () = report => Ok(()),
    ///     loss = guard.lost() => Err(loss),
    /// };
    /// assert_eq!(done, Err(Loss::HoldMax));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Cancel safety
    /// Cancel safe; a lock that is lost stays lost.
    pub fn lost(&self) -> impl Future<Output = Loss> + Send + 'static + use<> {
        outside::in_context(self.0.lease.lost())
    }

    /// Why it is lost, or `None` while it is surely held: ask before every guarded write.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use redeliver::store::{Keeper, LockStore, Locks, memory::MemoryStore};
    /// use std::time::Duration;
    /// use redeliver::store::Loss;
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let store = Arc::new(MemoryStore::new());
    /// # let keeper = Keeper::new(tokio::runtime::Handle::current(), store.clock());
    /// # let locks = Locks::new(store, keeper, "billing@host");
    /// let guard = locks.acquire("report").lease(Duration::from_secs(30)).await?;
    /// assert_eq!(guard.loss(), None);
    /// tokio::time::advance(Duration::from_secs(40)).await;          // the whole process stood still
    /// assert_eq!(guard.loss(), Some(Loss::Expired), "write nothing more");
    /// # Ok(())
    /// # }
    /// ```
    pub fn loss(&self) -> Option<Loss> {
        self.0.lease.loss()
    }

    /// Releases it, unless others of the same handler or batch still hold it.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use redeliver::store::{Keeper, LockStore, Locks, memory::MemoryStore};
    /// use std::time::Duration;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let store = Arc::new(MemoryStore::new());
    /// # let keeper = Keeper::new(tokio::runtime::Handle::current(), store.clock());
    /// # let locks = Locks::new(store, keeper, "billing@host");
    /// let guard = locks.acquire("report").await?;
    /// assert!(locks.acquire("report").wait(Duration::ZERO).await.is_err());
    /// guard.release().await?;
    /// assert!(locks.acquire("report").wait(Duration::ZERO).await.is_ok(), "free when it returns");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The store did not answer; then it is free when its lease ends.
    pub async fn release(self) -> Result<(), StoreError> {
        let Some(mut held) = Arc::into_inner(self.0) else { return Ok(()) };
        held.lease.stop().await;
        let released = held.shared.store.release(&held.key, &held.owner).await;
        // After an error the drop tries once more.
        held.is_released = released.is_ok();
        released.map(drop)
    }

    /// For an end that releases it together with something else: the owner to name, once no
    /// renewal can come any more. `None` while others hold it.
    pub(crate) async fn ending(self) -> Option<EndingGuard> {
        let held = Arc::into_inner(self.0)?;
        held.lease.stop().await;
        Some(EndingGuard(held))
    }
}

/// A lock that is about to be released.
pub(crate) struct EndingGuard(Held);

impl EndingGuard {
    pub(crate) fn key(&self) -> &str {
        &self.0.key
    }

    pub(crate) fn owner(&self) -> &Owner {
        &self.0.owner
    }

    pub(crate) fn store(&self) -> &Arc<dyn Store> {
        &self.0.shared.store
    }

    /// Releases it alone; true if it was still held.
    pub(crate) async fn release(mut self) -> Result<bool, StoreError> {
        let released = self.0.shared.store.release(&self.0.key, &self.0.owner).await;
        self.0.is_released = released.is_ok();
        released
    }

    /// It was released by its owner's name.
    pub(crate) fn released(mut self) {
        self.0.is_released = true;
    }
}

impl std::fmt::Debug for Guard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guard")
            .field("key", &shown(self.key()))
            .field("fence", &self.fence())
            .finish()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if !self.is_released {
            let (shared, key) = (self.shared.clone(), std::mem::take(&mut self.key));
            let owner = self.owner.clone();
            self.shared.keeper.spawn(async move {
                // Best effort: the lease ends by itself.
                let _ = shared.store.release(&key, &owner).await;
            });
        }
    }
}

pub(super) struct LockRenewal {
    pub(super) store: Arc<dyn Store>,
    pub(super) key: String,
    pub(super) owner: Owner,
}

#[async_trait]
impl Renew for LockRenewal {
    async fn renew(&self, lease: Duration) -> Result<Renewed, StoreError> {
        self.store.renew(&self.key, &self.owner, lease).await
    }
}
