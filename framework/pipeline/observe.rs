//! What a test is told: what became of each message, in the order in which it became so.
//!
//! Owns the words of that. Nobody listens in a service that is not tested, and nothing is done
//! then.

use super::{Epitaph, Fault, Scope, Waiting, Work};

/// Somebody who is told.
pub(crate) trait Observer: Send + Sync {
    /// Something became of a message.
    fn saw(&self, scope: &Scope, work: &Work, event: Event<'_>);

    /// A message went to a thread of its own (true), or came back from there: meanwhile no time
    /// may pass on a clock that is not the thread's.
    fn is_away(&self, away: bool);
}

/// What became of a message.
#[derive(Clone, Copy)]
// Only tests listen.
#[cfg_attr(not(feature = "testing"), allow(dead_code))]
pub(crate) enum Event<'a> {
    /// It was handled.
    Handled,
    /// A rule said that its failure does not matter.
    Ignored(&'a Fault),
    /// An attempt failed; the next one after this wait.
    Retries(Waiting, &'a Fault),
    /// It comes back after this wait; nothing counts.
    Defers(Waiting),
    /// Nobody knows whether it was handled; once more, nothing counts.
    Interrupted,
    /// A probe of the breaker failed; nothing counts.
    ProbeFailed(&'a Fault),
    /// It failed while the breaker held messages back; nothing counts.
    Spared(&'a Fault),
    /// It was done with before.
    Duplicate,
    /// It had expired and was dropped.
    Dropped,
    /// The dead letters have it, confirmed.
    Dead(&'a Epitaph),
}

impl Scope {
    /// Tells whoever listens.
    pub(crate) fn observe(&self, work: &Work, event: Event<'_>) {
        if let Some(observer) = &self.observer {
            observer.saw(self, work, event);
        }
    }
}
