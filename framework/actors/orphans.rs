//! What a consumer does with its messages when their lane is gone, and when they come again.
//!
//! Owns nothing: the ledger knows the orphans, this says what becomes of them. The broker delivers
//! them again, here or elsewhere; what comes here again goes on where it was.

use std::time::Duration;

use tokio::time::Instant;

use super::desk::Desk;
use crate::pipeline::{Outcome, Verdict, Waiting, Work};

/// No lane has it: what is held while none is open belongs to none.
const NO_GENERATION: u64 = 0;

impl Desk {
    /// The lane is gone: what waits here comes again from the broker, and is recognised then.
    pub(super) fn lose(&mut self) {
        let now = Instant::now();
        self.tenure.end();
        self.ledger.lose(NO_GENERATION, now);
        self.settlements.clear();
        let followers = self.shared.keys.borrow_mut().forget(self.index);
        let ordered = self.is_ordered();
        for (mut work, due) in self.parked.drain().collect::<Vec<_>>() {
            let rest = due.saturating_duration_since(now);
            self.next_turn(&work);
            // Not earlier for having lost its lane.
            let verdict = match ordered {
                true => Verdict::Defer(Waiting::Here(rest)),
                false => {
                    work.carried.rest = Some(rest);
                    Verdict::Again
                }
            };
            self.ledger.keep_fate(work.slot, Outcome { work, verdict });
        }
        for work in std::mem::take(&mut self.ready) {
            self.next_turn(&work);
            self.keep(work);
        }
        for work in followers {
            self.keep(work);
        }
        if std::mem::take(&mut self.probing) {
            self.shared.gate.borrow_mut().abandon_probe();
        }
        self.note_starved();
        // What it held of keys and of permits is for the others now.
        self.shared.changed.notify_waiters();
        if self.suspects {
            self.shared.leave_alone();
        }
    }

    /// Keeps a message of a lane that is gone for its redelivery.
    fn keep(&mut self, work: Work) {
        let verdict = Verdict::Again;
        self.ledger.keep_fate(work.slot, Outcome { work, verdict });
    }

    /// Keeps what came of a message whose lane is gone; the next of its key may begin, as this one
    /// comes back in its old place, if it comes back here at all.
    pub(super) fn keep_fate(&mut self, mut work: Work, verdict: Verdict) {
        self.next_turn(&work);
        if let Verdict::Dead(epitaph) = &verdict
            && self.is_buried_unseen(&work, &verdict)
        {
            work.key = None;
            work.woken = None;
            let epitaph = epitaph.as_ref().clone();
            return self.bury(work, epitaph);
        }
        // Whoever gets it now must not wait for us.
        work.held = None;
        work.woken = None;
        let was_probe = std::mem::take(&mut work.is_probe);
        let verdict = match verdict {
            // A probe costs no attempt.
            probed if was_probe && probed.may_be_spared() => Verdict::Again,
            Verdict::Retry(waiting @ Waiting::Here(delay), _) if work.key.is_some() => {
                work.count_attempt(Some(delay), &self.shared.scope);
                Verdict::Defer(waiting)
            }
            verdict => verdict,
        };
        if !matches!(verdict, Verdict::Again | Verdict::Defer(Waiting::Here(_))) {
            // Its turn is over; what is left to do needs none.
            work.key = None;
        }
        self.ledger.keep_fate(work.slot, Outcome { work, verdict });
    }

    /// Whether an orphan is given up at once and for all: its claim is still held, so that nobody else has run it, and whoever
    /// gets it or a copy of it after the dead letter finds that on record. A later one would be run again, and given up twice.
    fn is_buried_unseen(&self, work: &Work, verdict: &Verdict) -> bool {
        let is_spared =
            verdict.may_be_spared() && (work.is_probe || self.shared.gate.borrow().is_open());
        work.held.as_ref().is_some_and(|held| held.is_claimed()) && !is_spared
    }

    /// Goes on with a message whose lane was lost while it was here.
    pub(super) fn resume(&mut self, Outcome { work, verdict }: Outcome) {
        match verdict {
            Verdict::Again => self.admit(work),
            Verdict::Defer(Waiting::Here(rest)) if self.is_ordered() => {
                self.wait_in_order(work, rest);
            }
            verdict => {
                self.running += 1;
                self.shared.running.set(self.shared.running.get() + 1);
                self.conclude(Outcome { work, verdict });
            }
        }
    }

    /// Takes its old place in the order again and waits there.
    fn wait_in_order(&mut self, mut work: Work, rest: Duration) {
        work.carried.rest = Some(rest);
        let entered = self.shared.keys.borrow_mut().enter(work);
        if let Some(work) = entered {
            self.take_turn(work);
        }
    }

    /// Takes the messages of this lane whose turn came.
    pub(super) fn take_turns(&mut self) {
        let turns = self.shared.keys.borrow_mut().take_turns(self.index);
        for work in turns {
            self.take_turn(work);
        }
    }

    fn take_turn(&mut self, mut work: Work) {
        match work.carried.rest {
            Some(rest) => {
                work.carried.rest = None;
                self.park(work, rest);
            }
            None => self.ready.push_back(work),
        }
    }
}
