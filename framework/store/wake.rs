//! Wakes those of this process who wait for a lock.
//!
//! Owns who waits here. A wake-up is a hint: whoever is woken asks the store again, and whoever is
//! not woken asks again after a while all the same.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::Owner;

/// Everybody of this process who waits for a lock of one store.
///
/// ```
/// use redeliver::store::{LockStore, memory::MemoryStore};
///
/// let store = MemoryStore::new();
/// // What an adapter does when its server says that a lock is free for this waiter of ours:
/// store.wakes().wake("0190b2.1");
/// // and when it was not connected for a while:
/// store.wakes().wake_all();
/// ```
#[derive(Clone, Default)]
pub struct Wakes(Arc<Mutex<HashMap<Owner, Arc<Notify>>>>);

impl Wakes {
    /// Waits as `owner` until the returned value is dropped.
    pub(crate) fn wait_as(&self, owner: &Owner) -> Woken {
        let notify = Arc::new(Notify::new());
        self.waiters().insert(owner.clone(), notify.clone());
        Woken { wakes: self.clone(), owner: owner.clone(), notify }
    }

    /// Wakes one; a wake-up that comes before the wait is not lost.
    pub fn wake(&self, owner: &str) {
        if let Some(notify) = self.waiters().get(owner) {
            notify.notify_one();
        }
    }

    /// Wakes all: after a gap in which wake-ups may have been lost.
    pub fn wake_all(&self) {
        for notify in self.waiters().values() {
            notify.notify_one();
        }
    }

    fn waiters(&self) -> MutexGuard<'_, HashMap<Owner, Arc<Notify>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place among those who wait.
pub(crate) struct Woken {
    wakes: Wakes,
    owner: Owner,
    notify: Arc<Notify>,
}

impl Woken {
    /// Completes at the next wake-up.
    ///
    /// # Cancel safety
    /// Cancel safe: a wake-up is kept until somebody waits for it.
    pub(crate) async fn woken(&self) {
        self.notify.notified().await;
    }
}

impl Drop for Woken {
    fn drop(&mut self) {
        self.wakes.waiters().remove(&self.owner);
    }
}
