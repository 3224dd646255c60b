//! The pure parts of the path, opened to the benchmark of this repository and to nobody else.
//!
//! Owns nothing and is no part of the API: each function runs one part once, on inputs that the
//! compiler cannot see through.

use std::hint::black_box;
use std::time::Duration;

use tokio::time::Instant;

use crate::actors::Ledger;
use crate::broker::{Envelope, Received, SharedEnvelope, Token};
use crate::config::{Config, Subscription};
use crate::message::Failure;
use crate::pipeline::{Answer, Retries, Tick, Work, decide};
use crate::retry::{Attempt, Policy};
use crate::wire::{Carried, Luggage};

/// Inputs of the parts.
pub struct Parts {
    policy: Policy,
    retries: Retries,
    work: Work,
    ledger: Ledger,
    instant: Instant,
}

impl Parts {
    /// For a message as it came from the broker.
    pub fn new(envelope: impl Envelope) -> Self {
        let envelope = SharedEnvelope::new(envelope);
        let received = Received { envelope, token: Token(1) };
        let mut work = Work::bare(received, Tick::default(), 0, 0);
        work.carried = Luggage::read(work.received.envelope.as_ref());
        Self {
            policy: Policy::default(),
            retries: Retries::of(&Subscription::default(), &Config::default()),
            work,
            ledger: Ledger::default(),
            instant: Instant::now(),
        }
    }

    /// The delay before the fourth attempt.
    pub fn delay_before(&self) -> Duration {
        let attempt = Attempt::new(black_box(4)).unwrap_or(Attempt::FIRST);
        black_box(&self.policy).delay_before(attempt, None, black_box(0.5))
    }

    /// The verdict on an attempt that failed, the error's text included.
    pub fn decide(&self) {
        let answer = Answer::Failed(Failure::retry("the dependency is down"));
        let mut chance = || black_box(0.5);
        let (work, retries) = (black_box(&self.work), &self.retries);
        black_box(decide(answer, work, None, retries, black_box(Duration::ZERO), &mut chance));
    }

    /// What a message carries of ours.
    pub fn read(&self) {
        black_box(Carried::read(black_box(self.work.received.envelope.as_ref())));
    }

    /// Enters a message into a consumer's ledger and takes it out again.
    pub fn enter_and_settle(&mut self) {
        let received = black_box(self.work.received.clone());
        let size = received.envelope.body().len();
        let slot = self.ledger.enter(received, size, self.instant);
        black_box(self.ledger.settle(black_box(slot)));
    }
}
