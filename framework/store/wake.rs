//! Wakes those of this process who wait for a lock, or for the end of a run.
//!
//! Owns who waits here. A wake-up is a hint: whoever is woken asks the store again, and whoever is
//! not woken asks again after a while all the same.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::Owner;

/// How many wake-ups are kept for those who begin to wait only then.
const EARLY_MAX: usize = 1024;

/// Everybody of this process who waits for something of one store.
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
pub struct Wakes(Arc<Mutex<Waiters>>);

#[derive(Default)]
struct Waiters {
    waiting: HashMap<Owner, Arc<Notify>>,
    early: HashSet<Owner>,
    /// The same, the oldest first.
    early_in_order: VecDeque<Owner>,
}

impl Waiters {
    /// A wake-up may overtake the answer that says what to wait for: they come over two connections.
    fn keep(&mut self, owner: Owner) {
        if self.early_in_order.len() >= EARLY_MAX
            && let Some(oldest) = self.early_in_order.pop_front()
        {
            self.early.remove(&oldest);
        }
        if self.early.insert(owner.clone()) {
            self.early_in_order.push_back(owner);
        }
    }
}

impl Wakes {
    /// Waits as `owner` until the returned value is dropped.
    pub(crate) fn wait_as(&self, owner: &Owner) -> Woken {
        let notify = Arc::new(Notify::new());
        let mut waiters = self.waiters();
        if waiters.early.remove(owner) {
            notify.notify_one();
        }
        waiters.waiting.insert(owner.clone(), notify.clone());
        drop(waiters);
        Woken { wakes: self.clone(), owner: owner.clone(), notify }
    }

    /// Wakes one; a wake-up that comes before the wait is not lost.
    ///
    /// ```
    /// use redeliver::store::{LockStore, Owner, memory::MemoryStore};
    ///
    /// /// What an adapter does with what its server says: the payload names whose turn it is.
    /// fn on_message(store: &dyn LockStore, payload: &[u8]) -> Result<(), std::str::Utf8Error> {
    ///     store.wakes().wake(std::str::from_utf8(payload)?);
    ///     Ok(())
    /// }
    /// let store = MemoryStore::new();
    /// on_message(&store, Owner::new().as_str().as_bytes())?;        // does not wait yet: kept for then
    /// assert!(on_message(&store, b"\xff").is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn wake(&self, owner: &str) {
        let mut waiters = self.waiters();
        match waiters.waiting.get(owner) {
            Some(notify) => notify.notify_one(),
            None => waiters.keep(owner.into()),
        }
    }

    /// Wakes all: after a gap in which wake-ups may have been lost.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use redeliver::store::{Keeper, LockStore, Locks, memory::MemoryStore};
    /// use std::time::Duration;
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let store = Arc::new(MemoryStore::new());
    /// # let keeper = Keeper::new(tokio::runtime::Handle::current(), store.clock());
    /// # let locks = Locks::new(store.clone(), keeper, "billing@host");
    /// let _guard = locks.acquire("report").await?;
    /// let waits = locks.acquire("report").wait(Duration::from_secs(5));
    /// let reconnected = async { store.wakes().wake_all() };
    /// let (answer, ()) = tokio::join!(waits.into_future(), reconnected);
    /// assert!(answer.is_err(), "who is woken asks again, and somebody still has it");
    /// # Ok(())
    /// # }
    /// ```
    pub fn wake_all(&self) {
        for notify in self.waiters().waiting.values() {
            notify.notify_one();
        }
    }

    fn waiters(&self) -> MutexGuard<'_, Waiters> {
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
        self.wakes.waiters().waiting.remove(&self.owner);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn a_wake_up_that_came_before_the_wait_is_not_lost() {
        let (wakes, owner) = (Wakes::default(), Owner::new());
        wakes.wake(owner.as_str());
        let woken = wakes.wait_as(&owner);
        assert!(woken.woken().now_or_never().is_some());
        assert!(woken.woken().now_or_never().is_none(), "once");
    }

    #[test]
    fn what_nobody_ever_waits_for_is_forgotten() {
        let wakes = Wakes::default();
        for _ in 0..3 * EARLY_MAX {
            wakes.wake(Owner::new().as_str());
        }
        let waiters = wakes.waiters();
        assert_eq!((waiters.early.len(), waiters.early_in_order.len()), (EARLY_MAX, EARLY_MAX));
    }
}
