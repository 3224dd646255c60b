//! How often something is worth a line of the log.
//!
//! Owns when the last one was said, and the count of those that were not. Never says one itself.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Of something that may happen many times a second: at most one line in so long; the others are counted.
pub(crate) struct Seldom {
    pause: Duration,
    last: Mutex<Option<Instant>>,
    unsaid: AtomicU64,
}

impl Default for Seldom {
    /// Once a second.
    fn default() -> Self {
        Self::new(Duration::from_secs(1))
    }
}

impl Seldom {
    pub(crate) fn new(pause: Duration) -> Self {
        Self { pause, last: Mutex::default(), unsaid: AtomicU64::new(0) }
    }

    /// How many were not said since the last, if one may be said now.
    pub(crate) fn may_say(&self) -> Option<u64> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_some_and(|last| last.elapsed() < self.pause) {
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
        let failures = Seldom::new(Duration::from_secs(3600));
        let said = (0..1000).filter(|_| failures.may_say().is_some()).count();
        assert_eq!((said, failures.unsaid.load(Ordering::Relaxed)), (1, 999));
        let always = Seldom::new(Duration::ZERO);
        assert_eq!((always.may_say(), always.may_say()), (Some(0), Some(0)));
    }
}
