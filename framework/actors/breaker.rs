//! The breaker of a subscription: whether its consumers may hand anything out.
//!
//! Owns the counting of what failed; the arithmetic is `retry::Breaker`'s.

use std::sync::atomic::Ordering;

use tokio::time::Instant;

use crate::pipeline::{Scope, Verdict, Work};
use crate::retry::{Breaker, BreakerPolicy, BreakerState, Change, Permit};
use crate::telemetry;

/// Stands between what is ready and the handlers.
pub(super) struct Gate {
    breaker: Breaker,
    /// When the pause of an open breaker ends.
    open_until: Option<Instant>,
    /// From when on a suspect may probe, if nothing else did.
    suspects_from: Option<Instant>,
}

/// What may be handed out.
#[derive(Clone, Copy)]
pub(super) struct Granted {
    pub(super) count: usize,
    /// The one that is handed out tells whether the dependency is back.
    pub(super) is_probe: bool,
}

impl Gate {
    pub(super) fn new(policy: BreakerPolicy) -> Self {
        Self { breaker: Breaker::new(policy), open_until: None, suspects_from: None }
    }

    /// How many may be pulled, where `room` would be without a breaker, and so many are held that could probe.
    pub(super) fn room(&self, room: usize, ready: usize, now: Instant) -> usize {
        match self.breaker.state() {
            BreakerState::Closed => room,
            BreakerState::Open if self.open_until.is_some_and(|until| until > now) => 0,
            // To probe with, where there is nothing; what is pulled beside a probe would only be held.
            BreakerState::Open | BreakerState::HalfOpen
                if ready > 0 || self.breaker.is_probing() =>
            {
                0
            }
            BreakerState::Open | BreakerState::HalfOpen => room.min(1),
        }
    }

    /// How many of `wanted` may be handed out.
    pub(super) fn grant(&mut self, wanted: usize, now: Instant) -> Granted {
        if wanted == 0 {
            return Granted { count: 0, is_probe: false };
        }
        match self.breaker.permit(now.into_std()) {
            Permit::Go => Granted { count: wanted, is_probe: false },
            Permit::Probe => Granted { count: 1, is_probe: true },
            Permit::Wait(_) => Granted { count: 0, is_probe: false },
        }
    }

    /// When it lets the next probe through, while it is open.
    pub(super) fn opens_at(&self) -> Option<Instant> {
        match self.breaker.state() {
            BreakerState::Open => self.open_until,
            BreakerState::Closed | BreakerState::HalfOpen => None,
        }
    }

    /// Whether a suspect may be taken and handed out.
    ///
    /// What runs alone keeps every other message from probing, and a suspect may be one that always fails. So it
    /// probes only when there was nothing else to probe with for as long as the pause once more.
    pub(super) fn lets_suspect(&self, now: Instant) -> bool {
        !self.is_open() || self.suspects_from.is_some_and(|from| from <= now)
    }

    /// When a suspect may probe, while it is open.
    pub(super) fn lets_suspect_at(&self) -> Option<Instant> {
        self.suspects_from
    }

    /// Whether it holds messages back.
    pub(super) fn is_open(&self) -> bool {
        self.breaker.state() != BreakerState::Closed
    }

    /// Counts so many messages that were handled, none of them a probe.
    pub(super) fn record_handled(&mut self, count: usize, now: Instant) {
        self.breaker.record_successes(now.into_std(), u32::try_from(count).unwrap_or(u32::MAX));
    }

    /// Counts what came of a message; true if the breaker opened or closed over it.
    pub(super) fn record(
        &mut self,
        work: &Work,
        verdict: &Verdict,
        scope: &Scope,
        instant: Instant,
    ) -> bool {
        let now = instant.into_std();
        let change = match (work.is_probe, verdict.is_judged()) {
            (true, true) => self.breaker.probe_result(now, !verdict.is_failure()),
            (true, false) => {
                self.breaker.probe_abandoned();
                None
            }
            (false, true) => self.breaker.record(now, !verdict.is_failure()),
            (false, false) => None,
        };
        if let Some(change) = change {
            self.note(change, instant, scope);
        }
        change.is_some()
    }

    /// The probe's lane is gone, and its outcome may never come: another message may probe.
    pub(super) fn abandon_probe(&mut self) {
        self.breaker.probe_abandoned();
    }

    fn note(&mut self, change: Change, now: Instant, scope: &Scope) {
        scope.metrics.breaker.set(i64::from(self.is_open()));
        scope.is_held_back.store(self.is_open(), Ordering::Relaxed);
        match change {
            Change::Opened { pause } => {
                self.open_until = Some(now + pause);
                self.suspects_from = now.checked_add(pause.saturating_mul(2));
                telemetry::breaker_opened(scope.name(), pause);
            }
            Change::Closed => {
                self.open_until = None;
                self.suspects_from = None;
                telemetry::breaker_closed(scope.name());
            }
        }
    }
}

impl Verdict {
    /// Says something about the dependency: it worked, or it failed in a way that may pass.
    /// Rejects do not count: they are the message's own fault.
    fn is_judged(&self) -> bool {
        matches!(self, Self::Ack) || self.is_failure()
    }
}
