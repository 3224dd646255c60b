//! The seam to locks: what is asked of a store and what it answers.

use std::fmt;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;

use super::{Clock, Owner, StoreError, Wakes};

/// Keeps exclusive holds of keys. The contract stands at the head of [`store`](super).
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fence(pub u64);

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Who holds a key.
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
