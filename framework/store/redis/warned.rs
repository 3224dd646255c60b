//! How often a failure is worth a warning.
//!
//! Owns when the last one was said, and the count of those that were not. Never says one itself.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// At most one warning a second; the others are counted.
#[derive(Default)]
pub(super) struct Warned {
    last: Mutex<Option<Instant>>,
    unsaid: AtomicU64,
}

impl Warned {
    /// How many were not said since the last, if one may be said now.
    pub(super) fn may_warn(&self) -> Option<u64> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_some_and(|last| last.elapsed() < Duration::from_secs(1)) {
            self.unsaid.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        *last = Some(Instant::now());
        Some(self.unsaid.swap(0, Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thousand_failures_are_one_warning() {
        let warned = Warned::default();
        let said = (0..1000).filter(|_| warned.may_warn().is_some()).count();
        assert_eq!((said, warned.unsaid.load(Ordering::Relaxed)), (1, 999));
    }
}
