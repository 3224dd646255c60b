//! Ends of claims that did not get through, and go on in the background.
//!
//! Owns which they are, so that a message never claims what it has done itself: a store that comes
//! back empty would say that the id is fresh.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::store::ClaimKey;
use crate::telemetry::Counter;

/// Those of one subscription.
#[derive(Clone)]
pub(crate) struct LateEnds(Arc<Inner>);

struct Inner {
    /// How many of each: a run that lost its claim and the one that took over may both be late.
    ids: Mutex<HashMap<Box<str>, usize>>,
    /// How many ids. Nearly always none: then nobody takes the lock.
    count: AtomicUsize,
    /// Counts the ends that found another owner.
    repeats: Counter,
}

impl LateEnds {
    /// None; an end that finds another owner will count in `repeats`.
    pub(crate) fn new(repeats: Counter) -> Self {
        Self(Arc::new(Inner { ids: Mutex::default(), count: AtomicUsize::new(0), repeats }))
    }

    /// Whether the end of this id is still on its way.
    pub(super) fn has(&self, id: &str) -> bool {
        self.0.count.load(Ordering::Acquire) > 0 && self.ids().contains_key(id)
    }

    /// Notes that the end of a run is on its way, until the answer is dropped.
    pub(super) fn begin(&self, key: Arc<ClaimKey>) -> LateEnd {
        let mut ids = self.ids();
        *ids.entry(key.id.clone()).or_default() += 1;
        self.0.count.store(ids.len(), Ordering::Release);
        drop(ids);
        LateEnd { ends: self.clone(), key }
    }

    fn ids(&self) -> MutexGuard<'_, HashMap<Box<str>, usize>> {
        // A map is whole whatever panicked beside it.
        self.0.ids.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One of them.
pub(super) struct LateEnd {
    ends: LateEnds,
    key: Arc<ClaimKey>,
}

impl LateEnd {
    /// Somebody took over while we worked: both may have had an effect.
    pub(super) fn note_taken_over(&self) {
        self.ends.0.repeats.inc();
    }
}

impl Drop for LateEnd {
    fn drop(&mut self) {
        let mut ids = self.ends.ids();
        if let Some(count) = ids.get_mut(&self.key.id) {
            *count -= 1;
            if *count == 0 {
                ids.remove(&self.key.id);
            }
        }
        self.ends.0.count.store(ids.len(), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Fingerprint;

    #[test]
    fn an_id_is_late_until_the_last_of_its_ends_is_told() {
        let (id, fingerprint) = ("7".into(), Fingerprint::of(b""));
        let key = Arc::new(ClaimKey { scope: "orders".into(), id, fingerprint, generation: 0 });
        let ends = LateEnds::new(Counter::default());
        let (first, second) = (ends.begin(key.clone()), ends.begin(key));
        drop(first);
        assert!(ends.has("7"));
        drop(second);
        assert!(!ends.has("7"));
    }
}
