//! Locks and claims within one process: for tests, and for a service that runs once.
//!
//! Owns the same rules as the scripts of [`redis`](super::redis), in Rust. Nothing survives the
//! process. Time is tokio's, so that a test can pause it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use super::{Clock, Moment, Owner, Store, StoreError, StoreState, Wakes};

mod idempotency;
mod lock;

/// A store in this process.
///
/// ```
/// use redeliver::store::{Store, memory::MemoryStore};
///
/// assert_eq!(MemoryStore::new().kind(), "memory");
/// ```
#[derive(Default)]
pub struct MemoryStore {
    state: Mutex<State>,
    wakes: Wakes,
}

#[derive(Default)]
struct State {
    locks: HashMap<String, lock::Record>,
    /// The last fence of all keys, so that a free key needs no record.
    fence: u64,
    claims: HashMap<String, idempotency::Record>,
    expiries: BTreeMap<Moment, BTreeSet<String>>,
    epoch: Option<(Moment, SystemTime)>,
}

impl MemoryStore {
    /// An empty one.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use redeliver::store::Fence;
    /// use redeliver::store::{LockAnswer, LockAsk, LockStore, Owner, memory::MemoryStore};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let (owner, lease) = (Owner::new(), Duration::from_secs(30));
    /// # let ask = LockAsk { key: "report", owner: &owner, lease, holder: "billing@host", fair: false, waits: false, seen: Fence(0) };
    /// let (one, other) = (MemoryStore::new(), MemoryStore::new());
    /// assert!(matches!(one.acquire(&ask).await?, LockAnswer::Held(_)));
    ///
    /// let second = LockAsk { owner: &Owner::new(), ..ask };
    /// assert!(matches!(one.acquire(&second).await?, LockAnswer::Busy { .. }));
    /// assert!(matches!(other.acquire(&second).await?, LockAnswer::Held(_)), "it knows nothing of the first");
    /// # Ok(())
    /// # }
    /// ```
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The time of day that belongs to a moment.
    fn time_of(&mut self, moment: Moment) -> SystemTime {
        let (origin, time) =
            *self.epoch.get_or_insert_with(|| (Clock::Tokio.now(), SystemTime::now()));
        match moment.since(origin) {
            Duration::ZERO => time - origin.since(moment),
            span => time + span,
        }
    }

    /// Microseconds since 1970, for fences that grow over a restart of the process too.
    fn micros(&mut self, now: Moment) -> u64 {
        let since = self.time_of(now).duration_since(SystemTime::UNIX_EPOCH);
        since.map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
    }
}

/// No span is longer: moments that are made of it have a time of day. The same as with Redis.
fn bounded(span: Duration) -> Duration {
    span.min(Duration::from_millis(1 << 42))
}

/// The process's part of an owner is the same for all; the store is never shared.
fn same(held: Option<&Owner>, owner: &Owner) -> bool {
    held == Some(owner)
}

#[async_trait::async_trait]
impl Store for MemoryStore {
    async fn check(&self) -> Result<Vec<String>, StoreError> {
        Ok(Vec::new())
    }

    fn state(&self) -> StoreState {
        StoreState::Up
    }

    fn kind(&self) -> &'static str {
        "memory"
    }
}
