//! The time of day: the system's, or a test's.

use std::time::{Duration, SystemTime};

/// Where the time of day comes from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Clock {
    /// From the system.
    System,
    /// From a runtime whose clock can be paused, counted from a moment of its start.
    #[cfg_attr(not(feature = "testing"), allow(dead_code))]
    Virtual(tokio::time::Instant),
}

impl Clock {
    pub(crate) fn now(self) -> SystemTime {
        match self {
            Self::System => SystemTime::now(),
            // A day in 2026, so that what is printed looks like a time.
            Self::Virtual(start) => {
                SystemTime::UNIX_EPOCH + Duration::from_secs(1_780_000_000) + start.elapsed()
            }
        }
    }
}
