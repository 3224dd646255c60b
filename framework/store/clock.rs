//! The clock that local deadlines are measured on.
//!
//! Owns the choice between a clock that counts suspended time and one that a test can pause. Never
//! tells the time of day: that is the store's own.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// A point in time on this machine; only differences mean something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Moment(Duration);

impl Moment {
    /// How long it is from `earlier` to here; zero if it is not earlier.
    pub(crate) fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl std::ops::Add<Duration> for Moment {
    type Output = Self;

    fn add(self, span: Duration) -> Self {
        Self(self.0.saturating_add(span))
    }
}

/// Which clock.
///
/// ```
/// use redeliver::store::{Clock, LockStore, memory::MemoryStore};
///
/// assert_eq!(MemoryStore::new().clock(), Clock::Tokio);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// `CLOCK_BOOTTIME`: goes on while the machine is suspended, as the server's clock does. What
    /// `Instant` reads stands still then, and a lease would seem to live on.
    Boot,
    /// Tokio's clock, which a test can pause; for stores that live in this process.
    Tokio,
}

/// A timer does not count suspended time, so no sleep is longer than this before the clock is read.
const SLEEP_MAX: Duration = Duration::from_millis(500);

impl Clock {
    /// Now.
    pub(crate) fn now(self) -> Moment {
        match self {
            Self::Boot => Moment(boot_time()),
            Self::Tokio => {
                Moment(tokio::time::Instant::now().into_std().saturating_duration_since(origin()))
            }
        }
    }

    /// Completes at `moment`, or at once if it has passed.
    pub(crate) async fn sleep_until(self, moment: Moment) {
        loop {
            let left = moment.since(self.now());
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(match self {
                Self::Boot => left.min(SLEEP_MAX),
                Self::Tokio => left,
            })
            .await;
        }
    }
}

/// Where tokio's moments are counted from; an hour back, because a paused clock may lag behind.
fn origin() -> Instant {
    static ORIGIN: OnceLock<Instant> = OnceLock::new();
    *ORIGIN.get_or_init(|| {
        let now = Instant::now();
        now.checked_sub(Duration::from_secs(3600)).unwrap_or(now)
    })
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn boot_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Elsewhere `Instant` is the best there is; a suspended laptop may believe in a lease too long.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn boot_time() -> Duration {
    Instant::now().saturating_duration_since(origin())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_paused_clock_is_followed() {
        let before = Clock::Tokio.now();
        Clock::Tokio.sleep_until(before + Duration::from_secs(60)).await;
        assert_eq!(Clock::Tokio.now().since(before), Duration::from_secs(60));
    }

    #[tokio::test]
    async fn boot_time_goes_on() {
        let before = Clock::Boot.now();
        Clock::Boot.sleep_until(before + Duration::from_millis(2)).await;
        assert!(Clock::Boot.now().since(before) >= Duration::from_millis(2));
    }
}
