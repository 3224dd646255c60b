//! What one handler, or one batch, holds: asking again for a key in it shares the guard.
//!
//! Owns who shares with whom. Never asks a store.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use super::guard::{Guard, Held};

/// What one handler, or one batch, holds: asking again for a key in it shares the guard.
#[derive(Clone, Default)]
pub(crate) struct Scope(Arc<Holds>);

#[derive(Default)]
struct Holds {
    guards: Mutex<HashMap<String, Weak<Held>>>,
    /// Told when something is added, and when nothing will be any more.
    changed: Notify,
}

impl Scope {
    /// With nothing held.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// The guard of `key`, unless it is lost.
    pub(super) fn guard(&self, key: &str) -> Option<Guard> {
        let held = self.guards().get(key)?.upgrade()?;
        held.lease.loss().is_none().then(|| Guard(held))
    }

    /// Whether [`guard`](Self::guard) has one of `key` to share.
    pub(super) fn holds(&self, key: &str) -> bool {
        self.guard(key).is_some()
    }

    pub(super) fn add(&self, held: &Arc<Held>) {
        self.guards().insert(held.key.clone(), Arc::downgrade(held));
        self.0.changed.notify_waiters();
    }

    /// Completes when something is added after this is enabled.
    pub(super) fn changed(&self) -> Notified<'_> {
        self.0.changed.notified()
    }

    /// Whether both are the same handler's or batch's.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    fn guards(&self) -> MutexGuard<'_, HashMap<String, Weak<Held>>> {
        self.0.guards.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The batch that is being gathered. Whoever has a lock by sharing it will be in this batch: what
/// is in the next one must wait until the lock is released.
#[derive(Clone, Default)]
pub(crate) struct Gathering(Arc<Mutex<Scope>>);

impl Gathering {
    /// Of the batch that whoever comes now will be in.
    pub(crate) fn scope(&self) -> Scope {
        self.current().clone()
    }

    /// The batch is handed over: who comes from now on is in the next.
    pub(crate) fn begin_anew(&self) {
        let handed_over = std::mem::take(&mut *self.current());
        handed_over.0.changed.notify_waiters();
    }

    fn current(&self) -> MutexGuard<'_, Scope> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// With whom the locks of a message are shared.
#[derive(Clone)]
pub(crate) enum Sharing {
    /// With what its own handler asks for.
    Alone(Scope),
    /// With the batch that is being gathered when the lock is had.
    Batch(Gathering),
}

impl Sharing {
    /// As it is now.
    pub(crate) fn scope(&self) -> Scope {
        match self {
            Self::Alone(scope) => scope.clone(),
            Self::Batch(gathering) => gathering.scope(),
        }
    }
}
