//! A [`Policy`] as the `backoff` crate wants it, for loops that reconnect.
//!
//! The one file that touches that crate, and the one place in this folder that draws a chance. Messages never use it:
//! their delays must outlive the process, so they come from [`Policy::delay_before`].

use std::num::NonZeroU32;
use std::time::Duration;

use super::{Attempt, Backoff, Jitter, Policy};

/// Delays without end: a lost connection is sought for ever, so `attempts_max` and `age_max` do not matter here.
///
/// The default is for reconnecting: exponential from 100 ms to 30 s with full jitter, so that a server that comes
/// back is not met by all its clients at once.
///
/// ```
/// use std::time::Duration;
/// use redeliver::retry::{Policy, Schedule};
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
/// let quick = Policy { delay_min: Duration::from_millis(1), ..Policy::default() };
/// let mut refusals = 2;
/// let connected = backoff::future::retry(Schedule::new(quick), || {
///     let refused = refusals > 0;
///     refusals -= 1;
///     async move {
///         if refused { Err(backoff::Error::transient("connection refused")) } else { Ok("connected") }
///     }
/// });
/// assert_eq!(connected.await, Ok("connected"));
/// # });
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Schedule {
    policy: Policy,
    attempt: Attempt,
    previous: Option<Duration>,
    chances: fastrand::Rng,
}

impl Default for Schedule {
    fn default() -> Schedule {
        Schedule::new(Policy {
            backoff: Backoff::Exponential,
            jitter: Jitter::Full,
            delay_min: Duration::from_millis(100),
            delay_max: Duration::from_secs(30),
            multiplier: 2.0,
            delays: Vec::new(),
            attempts_max: NonZeroU32::MAX,
            age_max: Duration::MAX,
            immediate: 0,
            in_process_max: Duration::MAX,
        })
    }
}

impl Schedule {
    /// The schedule of this policy from its first step.
    ///
    /// ```
    /// use std::time::Duration;
    /// use redeliver::retry::{Jitter, Policy, Schedule};
    ///
    /// let policy = Policy { delay_min: Duration::from_secs(1), jitter: Jitter::None, ..Policy::default() };
    /// let mut schedule = Schedule::new(policy);
    /// let delays: Vec<u64> = (0..4).map(|_| schedule.next_delay().as_secs()).collect();
    /// assert_eq!(delays, [1, 2, 4, 8]);
    /// ```
    pub fn new(policy: Policy) -> Schedule {
        Schedule { policy, attempt: Attempt::FIRST, previous: None, chances: fastrand::Rng::new() }
    }

    /// The delay before the next attempt; each call goes one step on.
    ///
    /// ```
    /// use std::time::Duration;
    /// use redeliver::retry::Schedule;
    ///
    /// let mut schedule = Schedule::default();
    /// assert!(schedule.next_delay() <= Duration::from_millis(100));
    /// assert!(schedule.next_delay() <= Duration::from_millis(200));
    /// schedule.restart();
    /// assert!(schedule.next_delay() <= Duration::from_millis(100));
    /// ```
    pub fn next_delay(&mut self) -> Duration {
        self.attempt = self.attempt.next();
        let delay = self.policy.delay_before(self.attempt, self.previous, self.chances.f64());
        self.previous = Some(delay);
        delay
    }

    /// Back to the first step: call it when a connection has held, not when it was merely made, or a server that
    /// accepts and drops is met by a hot loop.
    ///
    /// ```
    /// # use std::time::Duration;
    /// use redeliver::retry::{Jitter, Policy, Schedule};
    ///
    /// # let policy = Policy { delay_min: Duration::from_secs(1), jitter: Jitter::None, ..Policy::default() };
    /// let mut schedule = Schedule::new(policy);
    /// let first = schedule.next_delay();
    /// assert!(schedule.next_delay() > first);
    /// schedule.restart();                         // the connection has held for a while
    /// assert_eq!(schedule.next_delay(), first);
    /// ```
    pub fn restart(&mut self) {
        self.attempt = Attempt::FIRST;
        self.previous = None;
    }
}

impl backoff::backoff::Backoff for Schedule {
    fn reset(&mut self) {
        self.restart();
    }

    fn next_backoff(&mut self) -> Option<Duration> {
        Some(self.next_delay())
    }
}

#[cfg(test)]
mod tests;
