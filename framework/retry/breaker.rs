//! When to stop trying because everything fails.
//!
//! Owns the state of one circuit breaker (the pattern of Michael Nygard's "Release It!"). Pauses nothing itself: it
//! says go, wait or probe, and the subscription does it. What says nothing about the dependency (a reject, a defer)
//! is not recorded by callers.
//!
//! ```text
//!              enough failures                       pause is over
//!   closed ─────────────────────> open, for a pause ───────────────> half-open, one probe at a time
//!     ^                              ^                                  │          │
//!     │                              └── the probe failed, pause x 2 ───┘          │
//!     └────────────────── the probe worked ────────────────────────────────────────┘
//! ```

use std::time::{Duration, Instant};

/// When a breaker opens, and for how long.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct BreakerPolicy {
    /// Attempts in the window before their failures are judged.
    pub(crate) attempts_min: u32,
    /// The share of failures, 0 to 1, at which it opens; above 1 it never does.
    pub(crate) failure_rate: f64,
    /// How far back attempts are looked at; the oldest tenth is forgotten at once.
    pub(crate) window: Duration,
    /// How long it stays open the first time.
    pub(crate) pause: Duration,
    /// What the pause, doubled with each failed probe, never exceeds.
    pub(crate) pause_max: Duration,
}

impl Default for BreakerPolicy {
    fn default() -> BreakerPolicy {
        BreakerPolicy {
            attempts_min: 20,
            failure_rate: 0.9,
            window: Duration::from_secs(10),
            pause: Duration::from_secs(5),
            pause_max: Duration::from_secs(5 * 60),
        }
    }
}

/// What the breaker lets a caller do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Permit {
    /// Work as usual, and [`record`](Breaker::record) each outcome.
    Go,
    /// Try one message, and tell its outcome to [`probe_result`](Breaker::probe_result), or
    /// [`probe_abandoned`](Breaker::probe_abandoned) if there is none to tell.
    Probe,
    /// Ask again after this time. While a probe runs this is a guess: ask again when it ends.
    Wait(Duration),
}

/// What an outcome changed, for the log and the subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// It opened, now or once more, and stays so for `pause`.
    Opened {
        /// Time until a probe is allowed.
        pause: Duration,
    },
    /// The dependency is back.
    Closed,
}

/// Where a breaker is, for health and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BreakerState {
    /// All goes.
    Closed,
    /// Nothing goes.
    Open,
    /// A probe runs, or may.
    HalfOpen,
}

/// A circuit breaker: closed, open until some time, or half-open with one probe at a time.
#[derive(Debug, Clone)]
pub(crate) struct Breaker {
    policy: BreakerPolicy,
    state: State,
}

#[derive(Debug, Clone)]
enum State {
    Closed(Outcomes),
    /// `since` and `pause` rather than the end, which may be past what an `Instant` can hold.
    Open {
        since: Instant,
        pause: Duration,
    },
    HalfOpen {
        probing: bool,
        pause: Duration,
    },
}

impl Breaker {
    /// A closed breaker that has seen nothing.
    pub(crate) fn new(policy: BreakerPolicy) -> Breaker {
        let state = State::Closed(Outcomes::new(policy.window));
        Breaker { policy, state }
    }

    /// Notes the outcome of an attempt that was allowed by [`Permit::Go`].
    ///
    /// Outcomes that come in after it opened are of attempts begun before: they tell nothing new and are ignored.
    pub(crate) fn record(&mut self, now: Instant, ok: bool) -> Option<Change> {
        let State::Closed(outcomes) = &mut self.state else {
            return None;
        };
        outcomes.add(now, 1, u32::from(!ok));
        // A success never opens it, even where a rate of 0 is configured, so nothing is counted for one.
        if ok {
            return None;
        }
        let (attempts, failures) = outcomes.count();
        let judged = attempts >= u64::from(self.policy.attempts_min);
        let too_many = failures as f64 >= self.policy.failure_rate * attempts as f64;
        (judged && too_many).then(|| self.open(now, self.policy.pause))
    }

    /// Notes so many attempts at once that worked, as [`record`](Breaker::record) does with each.
    pub(crate) fn record_successes(&mut self, now: Instant, count: u32) {
        if let State::Closed(outcomes) = &mut self.state {
            outcomes.add(now, count, 0);
        }
    }

    /// Asks what may be done now. Answering [`Permit::Probe`] hands out the one probe.
    pub(crate) fn permit(&mut self, now: Instant) -> Permit {
        match &mut self.state {
            State::Closed(_) => Permit::Go,
            State::Open { since, pause } => {
                let rest = pause.saturating_sub(now.saturating_duration_since(*since));
                if !rest.is_zero() {
                    return Permit::Wait(rest);
                }
                self.state = State::HalfOpen { probing: true, pause: *pause };
                Permit::Probe
            }
            State::HalfOpen { probing: true, pause } => Permit::Wait(*pause),
            State::HalfOpen { probing, .. } => {
                *probing = true;
                Permit::Probe
            }
        }
    }

    /// Tells how the probe ended; ignored if none runs.
    pub(crate) fn probe_result(&mut self, now: Instant, ok: bool) -> Option<Change> {
        let State::HalfOpen { probing: true, pause } = self.state else {
            return None;
        };
        if ok {
            self.state = State::Closed(Outcomes::new(self.policy.window));
            return Some(Change::Closed);
        }
        Some(self.open(now, pause.saturating_mul(2)))
    }

    /// Gives the probe back without an outcome: there was no message, or it was rejected or deferred. The next
    /// [`permit`](Breaker::permit) may probe at once; without this call the breaker would wait for ever.
    pub(crate) fn probe_abandoned(&mut self) {
        if let State::HalfOpen { probing, .. } = &mut self.state {
            *probing = false;
        }
    }

    /// Where it is now. An open breaker whose pause is over stays open until somebody asks for a permit.
    pub(crate) fn state(&self) -> BreakerState {
        match self.state {
            State::Closed(_) => BreakerState::Closed,
            State::Open { .. } => BreakerState::Open,
            State::HalfOpen { .. } => BreakerState::HalfOpen,
        }
    }

    /// Whether the one probe is out.
    pub(crate) fn is_probing(&self) -> bool {
        matches!(self.state, State::HalfOpen { probing: true, .. })
    }

    fn open(&mut self, now: Instant, pause: Duration) -> Change {
        let pause = pause.min(self.policy.pause_max);
        self.state = State::Open { since: now, pause };
        Change::Opened { pause }
    }
}

/// In how many parts the window is counted: the memory of it, whatever the rate of messages.
const BUCKETS: usize = 10;

/// Attempts and failures of the last window.
#[derive(Debug, Clone)]
struct Outcomes {
    bucket_width: Duration,
    /// When the first outcome came; buckets are counted from there.
    start: Option<Instant>,
    /// The number of the newest bucket.
    newest: u64,
    /// When it ends: before that, an outcome is counted without a division.
    newest_until: Option<Instant>,
    buckets: [Bucket; BUCKETS],
}

#[derive(Debug, Clone, Copy, Default)]
struct Bucket {
    number: u64,
    attempts: u32,
    failures: u32,
}

impl Outcomes {
    fn new(window: Duration) -> Outcomes {
        let bucket_width = (window / BUCKETS as u32).max(Duration::from_nanos(1));
        Outcomes {
            bucket_width,
            start: None,
            newest: 0,
            newest_until: None,
            buckets: Default::default(),
        }
    }

    fn add(&mut self, now: Instant, attempts: u32, failures: u32) {
        if self.newest_until.is_none_or(|until| now >= until) {
            self.advance(now);
        }
        let bucket = &mut self.buckets[(self.newest % BUCKETS as u64) as usize];
        bucket.attempts = bucket.attempts.saturating_add(attempts);
        bucket.failures = bucket.failures.saturating_add(failures);
    }

    /// Goes on to the bucket of `now`.
    fn advance(&mut self, now: Instant) {
        let start = *self.start.get_or_insert(now);
        let age = now.saturating_duration_since(start);
        let number =
            u64::try_from(age.as_nanos() / self.bucket_width.as_nanos()).unwrap_or(u64::MAX);
        // A caller whose clock reading is a little old must not wipe a newer bucket.
        self.newest = self.newest.max(number);
        let bucket = &mut self.buckets[(self.newest % BUCKETS as u64) as usize];
        if bucket.number != self.newest {
            *bucket = Bucket { number: self.newest, ..Bucket::default() };
        }
        let buckets = u32::try_from(self.newest).ok().and_then(|newest| newest.checked_add(1));
        let length = buckets.and_then(|buckets| self.bucket_width.checked_mul(buckets));
        self.newest_until = length.and_then(|length| start.checked_add(length));
    }

    /// Attempts and failures in the window that ends with the newest bucket.
    fn count(&self) -> (u64, u64) {
        let recent =
            self.buckets.iter().filter(|bucket| self.newest - bucket.number < BUCKETS as u64);
        recent.fold((0, 0), |(attempts, failures), bucket| {
            (attempts + u64::from(bucket.attempts), failures + u64::from(bucket.failures))
        })
    }
}

#[cfg(test)]
mod tests;
