//! What a consumer does with its messages when their lane is gone, and when they come again.
//!
//! Owns nothing: the subscription's orphans are known to all its consumers, this says what becomes of them. The broker
//! delivers them again, here or elsewhere, over whichever lane; what comes here again goes on where it was.

use std::rc::Rc;
use std::time::Duration;

use tokio::time::Instant;

use super::desk::Desk;
use super::ledger::{Lost, Slot};
use super::load::Errand;
use super::orphans::{Heir, Identity, OrphanId};
use super::shared::News;
use crate::broker::Received;
use crate::config;
use crate::pipeline::{Epitaph, OrderKey, Outcome, Verdict, Waiting, Work};
use crate::telemetry;
use crate::wire::Carried;

impl Desk {
    /// The lane is gone: what is in hand comes again from the broker, and is recognised then.
    pub(super) fn lose(&mut self) {
        let now = Instant::now();
        self.tenure.end();
        if let Some(peer) = self.shared.peers.borrow_mut().get_mut(&self.index) {
            // All that it has is among the orphans from here on, and nobody may be here to answer.
            peer.can_be_asked = false;
        }
        self.lose_ledger(now);
        self.settlements.clear();
        self.settle_by = None;
        self.received.clear();
        let followers = self.shared.keys.borrow_mut().forget(self.index);
        let ordered = self.is_ordered();
        self.keep_errands();
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
            self.keep(work, verdict);
        }
        for work in std::mem::take(&mut self.ready) {
            self.next_turn(&work);
            self.keep(work, Verdict::Again);
        }
        for work in followers {
            self.keep(work, Verdict::Again);
        }
        if std::mem::take(&mut self.probing) {
            self.shared.gate.borrow_mut().abandon_probe();
        }
        self.note_starved();
        self.ask_no_more();
        // What it held of keys and of permits is for the others now.
        self.shared.changed.notify_waiters();
        if self.suspects {
            self.shared.leave_alone();
        }
        self.run_errands();
    }

    /// Makes orphans of what was in hand; what waited here for an orphan waits no more.
    fn lose_ledger(&mut self, now: Instant) {
        self.awaited = 0;
        let shared = Rc::clone(&self.shared);
        for lost in self.ledger.lose() {
            match lost {
                Lost::Own(slot, received, received_at) => {
                    let identity = Identity::of(&received, &shared.scope.settings.id);
                    let orphan = identity.map(|identity| {
                        let mut orphans = shared.orphans.borrow_mut();
                        orphans.add(received, identity, received_at, self.index, now)
                    });
                    self.ledger.mark(slot, orphan);
                }
                Lost::Awaited(slot, orphan) => {
                    let disowned = shared.orphans.borrow_mut().disown(orphan, now);
                    self.end_order(disowned.order.as_ref());
                    match disowned.fate {
                        // It was on its way here: what becomes of it is ours to see to.
                        Some(outcome) => {
                            let Outcome { work, verdict } = self.relabelled(*outcome, slot);
                            self.keep_fate(work, verdict);
                        }
                        None => drop(self.ledger.settle(slot)),
                    }
                }
            }
        }
    }

    /// Keeps what came of a message whose lane is gone for its redelivery; its place here is free.
    fn keep(&mut self, work: Work, verdict: Verdict) {
        let orphan = self.ledger.orphan(work.slot);
        let _ = self.ledger.settle(work.slot);
        if let Some(orphan) = orphan {
            let shared = &self.shared;
            // As much as all lanes may hold: that all are lost at once is no reason to forget anything.
            let lanes = shared.peers.borrow().len().max(1) as u64;
            let bytes_max = self.settings().in_flight_bytes_max.saturating_mul(lanes);
            let mut orphans = shared.orphans.borrow_mut();
            orphans.keep(orphan, Outcome { work, verdict }, Instant::now());
            orphans.forget_beyond(bytes_max);
        }
    }

    /// Takes in the redelivery of a message that is in hand in this process, whichever lane it came over first.
    pub(super) fn adopt(&mut self, received: &Received) -> bool {
        let shared = Rc::clone(&self.shared);
        let identity = Identity::of(received, &shared.scope.settings.id);
        let found = identity
            .and_then(|identity| shared.orphans.borrow_mut().find(received, &identity, self.now));
        let Some((orphan, received_at)) = found else { return false };
        shared.scope.metrics.adopted.inc();
        telemetry::adopted(shared.scope.name(), &self.lane);
        let slot = self.ledger.enter_again(received.clone(), received_at, orphan);
        let home = shared.orphans.borrow().home(orphan);
        let order = self.begin_order(home);
        let heir = Heir { lane: self.index, slot, order: order.clone() };
        let adopted = shared.orphans.borrow_mut().adopt(orphan, heir);
        match adopted {
            None => self.awaited += 1,
            Some(outcome) => {
                self.end_order(order.as_ref());
                self.ledger.inherit(slot, orphan);
                let mut outcome = self.relabelled(outcome, slot);
                if self.is_in_lane_order() && outcome.work.key.is_some() {
                    outcome.work.key = Some(OrderKey::of_lane(self.index));
                }
                self.resume(outcome);
            }
        }
        true
    }

    /// What came of a message whose lane is gone: for whoever has its redelivery, or until somebody has.
    pub(super) fn pass_on(&mut self, mut work: Work, verdict: Verdict) {
        let orphan = self.ledger.orphan(work.slot);
        let heir = orphan.and_then(|orphan| self.shared.orphans.borrow().heir(orphan).cloned());
        let (Some(orphan), Some(heir)) = (orphan, heir) else {
            return self.keep_fate(work, verdict);
        };
        let _ = self.ledger.settle(work.slot);
        let verdict = match std::mem::take(&mut work.is_probe) {
            // A probe costs no attempt, and this one was given up with its lane.
            true if verdict.may_be_spared() => Verdict::Again,
            _ => verdict,
        };
        let outcome = Outcome { work, verdict };
        self.shared.orphans.borrow_mut().keep(orphan, outcome, Instant::now());
        match heir.lane == self.index {
            true => self.inherit(orphan),
            false => self.shared.tell(heir.lane, News::CameOut(orphan)),
        }
    }

    /// Concludes what came of an orphan whose redelivery is here.
    pub(super) fn inherit(&mut self, orphan: OrphanId) {
        let shared = Rc::clone(&self.shared);
        let heir = shared.orphans.borrow().heir(orphan).cloned();
        // Not ours any more if this lane was lost meanwhile: the loss saw to it.
        let Some(heir) = heir.filter(|heir| heir.lane == self.index) else { return };
        let taken = shared.orphans.borrow_mut().take(orphan);
        let Some(outcome) = taken else { return };
        if !self.ledger.inherit(heir.slot, orphan) {
            // It was put back meanwhile, as a copy.
            return self.next_turn(&outcome.work);
        }
        self.awaited -= 1;
        let comes_from_afar = outcome.work.lane != self.index;
        let mut outcome = self.relabelled(outcome, heir.slot);
        if comes_from_afar && self.is_in_lane_order() {
            self.next_turn(&outcome.work);
            outcome.work.key = heir.order;
        } else if let Some(key) = &outcome.work.key {
            shared.keys.borrow_mut().pass(key, self.index);
        }
        self.conclude_anew(outcome);
    }

    /// The same work as this consumer's own.
    fn relabelled(&self, Outcome { mut work, verdict }: Outcome, slot: Slot) -> Outcome {
        (work.lane, work.slot) = (self.index, slot);
        Outcome { work, verdict }
    }

    fn is_in_lane_order(&self) -> bool {
        self.settings().ordering == config::Ordering::Lane
    }

    /// Where each lane keeps its own order, nothing of this one begins while a message of it runs for another.
    fn begin_order(&self, home: Option<u32>) -> Option<OrderKey> {
        if !self.is_in_lane_order() || home == Some(self.index) {
            return None;
        }
        let order = OrderKey::of_lane(self.index);
        self.shared.keys.borrow_mut().hold(&order, self.index).then_some(order)
    }

    fn end_order(&self, order: Option<&OrderKey>) {
        if let Some(order) = order
            && self.shared.keys.borrow_mut().leave(order)
        {
            self.shared.changed.notify_waiters();
        }
    }

    /// Keeps what came of a message whose lane is gone; the next of its key may begin, as this one
    /// comes back in its old place, if it comes back here at all.
    fn keep_fate(&mut self, mut work: Work, verdict: Verdict) {
        self.next_turn(&work);
        if let Verdict::Dead(epitaph) = &verdict
            && !self.is_dropped(epitaph)
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
        self.keep(work, verdict);
    }

    /// Nobody carries what was to be carried, and its lane is gone: what it comes to if it comes again here.
    pub(super) fn keep_errands(&mut self) {
        let (lost, own): (Vec<_>, Vec<_>) = std::mem::take(&mut self.errands)
            .into_iter()
            .partition(|(work, _)| self.ledger.is_orphan(work.slot));
        self.errands = own;
        for (mut work, errand) in lost {
            self.next_turn(&work);
            let sent = Carried::read(work.received.envelope.as_ref());
            // Whoever gets it now must not wait for us.
            (work.held, work.woken, work.key) = (None, None, None);
            let verdict = match errand {
                // Its attempt is counted already.
                Errand::Retry(delay, _) | Errand::Defer(delay) => {
                    Verdict::Defer(Waiting::Broker(delay))
                }
                Errand::WaitOn(rest) => {
                    work.carried.rest = Some(rest);
                    Verdict::Again
                }
                Errand::Bury(epitaph) => {
                    Verdict::Dead(Box::new(Epitaph { attempted: false, ..epitaph }))
                }
                Errand::Suspect => {
                    // It was not out alone for having been on its way.
                    work.carried.alone = sent.alone;
                    Verdict::Again
                }
            };
            self.keep(work, verdict);
        }
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
            verdict => self.conclude_anew(Outcome { work, verdict }),
        }
    }

    /// Concludes what ran with another permit, or with one that was given back.
    fn conclude_anew(&mut self, outcome: Outcome) {
        self.running += 1;
        self.shared.running.set(self.shared.running.get() + 1);
        self.conclude(outcome);
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
