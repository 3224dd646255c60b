//! What a consumer does with a verdict: settle, park, or have it carried away.
//!
//! Matches every verdict; decides none.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::desk::Desk;
use super::inquiry::gone;
use super::letter::Letter;
use super::load::{Carry, Errand, Load};
use super::parking::Number;
use super::shared::Carrier;
use crate::broker::{Lane, LaneEnd, Settlement};
use crate::config;
use crate::pipeline::{Epitaph, Event, Fault, Outcome, Reason, Verdict, Waiting, Work};
use crate::telemetry;
use crate::wire::Carried;

/// How long nothing is handed out after a store did not answer.
pub(super) const STORE_PAUSE: Duration = Duration::from_secs(1);
/// How long a settlement may wait for others.
const SETTLE_AFTER: Duration = Duration::from_millis(5);

impl Desk {
    /// Acts on what came of messages of this lane; why it is gone, if it is.
    pub(super) fn conclude_at(
        &mut self,
        lane: &dyn Lane,
        letter: Option<Letter>,
    ) -> Option<LaneEnd> {
        let is_gone = self.is_gone(lane);
        if is_gone {
            // First: what is settled at a lane that is gone comes again, and would run again.
            self.lose();
        }
        self.conclude_all(letter);
        is_gone.then(gone)
    }

    pub(super) fn conclude_all(&mut self, letter: Option<Letter>) {
        self.now = Instant::now();
        let mut next = letter;
        while let Some(mut letter) = next {
            if self.settle_handled(&mut letter) < letter.len() {
                letter.drain(..).flatten().for_each(|outcome| self.conclude(outcome));
            }
            letter.clear();
            self.paper = letter;
            next = self.outcomes.try_recv().ok();
        }
        self.run_errands();
    }

    /// Settles what was simply handled, counted all at once; leaves the rest in the letter. How many there were.
    ///
    /// What [`conclude`](Self::conclude) does, less what does not concern a message that worked: half the cost.
    fn settle_handled(&mut self, letter: &mut Letter) -> usize {
        let shared = Rc::clone(&self.shared);
        let is_watched = shared.scope.observer.is_some() || shared.store_down_until.get().is_some();
        if self.suspects || shared.alone.get() || is_watched {
            return 0;
        }
        let mut handled = 0;
        self.settlements.reserve(letter.len());
        let mut blanks = shared.blanks.borrow_mut();
        for place in letter {
            let Some(Outcome { work, verdict: Verdict::Ack }) = place else { continue };
            if work.is_probe {
                continue;
            }
            // An orphan is concluded otherwise.
            let Some(token) = self.ledger.settle_held(work.slot) else { continue };
            self.settlements.push(Settlement::Ack(token));
            self.next_turn(work);
            if let Some(Outcome { work, verdict }) = place.take() {
                // Nothing is in it; to drop it would be a call for each message.
                std::mem::forget(verdict);
                work.put_down(&mut blanks);
            }
            handled += 1;
        }
        drop(blanks);
        if handled > 0 {
            self.free_permits(handled);
            shared.scope.metrics.handled.inc_by(handled as u64);
            shared.gate.borrow_mut().record_handled(handled, self.now);
        }
        handled
    }

    /// Acts on what came of a message.
    pub(super) fn conclude(&mut self, Outcome { mut work, verdict }: Outcome) {
        self.free_permits(1);
        if self.ledger.is_orphan(work.slot) {
            return self.pass_on(work, verdict);
        }
        self.record(&work, &verdict);
        let is_probe = std::mem::take(&mut work.is_probe);
        if is_probe {
            self.probing = false;
        }
        if verdict.may_be_spared() && (is_probe || self.shared.gate.borrow().is_open()) {
            return self.spare(work, verdict, is_probe);
        }
        self.carry_out(work, verdict);
    }

    /// Takes a failure back that says nothing about its message, because everything fails: its
    /// attempt does not count, even if it was the last.
    fn spare(&mut self, mut work: Work, verdict: Verdict, is_probe: bool) {
        if let Some(fault) = verdict.fault() {
            let event = if is_probe { Event::ProbeFailed(fault) } else { Event::Spared(fault) };
            self.shared.scope.observe(&work, event);
        }
        let leaves = self.winding_down && !self.is_ordered();
        work.uncount_attempt();
        match verdict {
            // It waits as if it had counted; what waits at the broker any process may have then.
            Verdict::Retry(waiting, _) if leaves || (!is_probe && self.may_leave(waiting)) => {
                self.shared.scope.metrics.deferred.inc();
                work.keep_first_seen(&self.shared.scope);
                self.wait(work, waiting, None);
            }
            _ => {
                // Whoever runs it next asks for its guards anew.
                work.held = None;
                self.put_back(work);
            }
        }
    }

    /// Whether a wait of this kind takes a message away from here, and from no order.
    fn may_leave(&self, waiting: Waiting) -> bool {
        matches!(waiting, Waiting::Broker(_)) && !self.is_ordered()
    }

    /// Puts a message back until the breaker lets it through: behind the others, since it may be
    /// the message that is bad and not what all depend on; but to the head where an order is kept.
    fn put_back(&mut self, work: Work) {
        match self.is_ordered() {
            true => self.ready.push_front(work),
            false => self.ready.push_back(work),
        }
    }

    fn free_permits(&mut self, count: usize) {
        self.running -= count;
        let shared = &self.shared;
        shared.running.set(shared.running.get() - count);
        if self.suspects {
            shared.leave_alone();
        }
        let is_last = shared.alone.get() && shared.running.get() == 0;
        if is_last || self.settings().in_flight_total_max.is_some() {
            shared.changed.notify_waiters();
        }
    }

    /// Tells the breaker.
    fn record(&self, work: &Work, verdict: &Verdict) {
        let shared = &self.shared;
        let changed = shared.gate.borrow_mut().record(work, verdict, &shared.scope, self.now);
        if changed {
            let open = shared.gate.borrow().is_open();
            shared.health.update(|health| health.breaker_open = open);
        }
        if changed || work.is_probe {
            shared.changed.notify_waiters();
        }
    }

    fn carry_out(&mut self, mut work: Work, verdict: Verdict) {
        let scope = Arc::clone(&self.shared.scope);
        if !matches!(verdict, Verdict::StoreDown(_) | Verdict::Again) {
            self.shared.store_is_back();
        }
        match verdict {
            Verdict::Ack => {
                scope.metrics.handled.inc();
                scope.observe(&work, Event::Handled);
                self.settle(&work);
            }
            Verdict::Duplicate => {
                scope.observe(&work, Event::Duplicate);
                self.settle(&work);
            }
            Verdict::Carried => self.settle(&work),
            Verdict::Ignore(fault) => {
                scope.metrics.ignored.inc();
                scope.observe(&work, Event::Ignored(&fault));
                self.settle(&work);
            }
            Verdict::Again => {
                scope.observe(&work, Event::Interrupted);
                self.ready.push_front(work);
            }
            Verdict::StoreDown(why) => self.hold_for_store(work, why),
            Verdict::Retry(waiting, fault) => {
                scope.metrics.retried.inc();
                work.count_attempt(Some(waiting.delay()), &scope);
                self.wait(work, waiting, Some(*fault));
            }
            Verdict::Defer(waiting) => {
                work.keep_first_seen(&scope);
                scope.metrics.deferred.inc();
                self.wait(work, waiting, None);
            }
            Verdict::Dead(epitaph) => self.bury(work, *epitaph),
        }
    }

    /// Its store does not answer: nothing is handed out for a moment, and nothing counts.
    fn hold_for_store(&mut self, work: Work, why: String) {
        let shared = &self.shared;
        shared.store_down_until.set(Some(Instant::now() + STORE_PAUSE));
        if shared.scope.note_store(true) {
            telemetry::held_for_store(shared.scope.name(), &why);
        }
        shared.health.update(|health| health.store = Some(why));
        self.ready.push_front(work);
    }

    fn wait(&mut self, mut work: Work, waiting: Waiting, fault: Option<Fault>) {
        let waiting = self.with_room(waiting);
        let event =
            fault.as_ref().map_or(Event::Defers(waiting), |fault| Event::Retries(waiting, fault));
        self.shared.scope.observe(&work, event);
        match waiting {
            Waiting::Here(delay) => {
                if !delay.is_zero() {
                    self.shared.scope.metrics.wait_time.observe(delay.as_secs_f64());
                }
                self.park(work, delay);
            }
            Waiting::Broker(delay) => {
                // Nobody can wake what waits at the broker.
                work.woken = None;
                let errand = match fault {
                    Some(fault) => Errand::Retry(delay, fault),
                    None => Errand::Defer(delay),
                };
                self.errands.push((work, errand));
            }
        }
    }

    /// Waits here for `delay`, or until what it waits for has come about.
    pub(super) fn park(&mut self, mut work: Work, delay: Duration) {
        let number = self.parked.number_next();
        let bell = work.woken.take().map(|woken| self.bells.hang(number, *woken));
        self.parked.park(work, Instant::now() + delay, bell);
    }

    /// What this one waits for has come about.
    pub(super) fn is_rung_for(&mut self, number: Number) {
        self.ready.extend(self.parked.take(number));
    }

    /// The same wait where there is room for it.
    fn with_room(&self, waiting: Waiting) -> Waiting {
        let crowded = self.parked.len() >= self.settings().parked_max.get();
        let must_leave = crowded || self.winding_down || self.suspects;
        match waiting {
            Waiting::Here(delay) if must_leave && !self.is_ordered() => {
                self.shared.scope.retries.load().wait_elsewhere(delay)
            }
            waiting => waiting,
        }
    }

    /// Waits on with a message that came before its wait was over.
    pub(super) fn wait_on(&mut self, mut work: Work, rest: Duration) {
        let retries = self.shared.scope.retries.load();
        let waiting = match self.is_ordered() {
            // It left its order when its wait began.
            true => retries.wait_elsewhere(rest),
            false => retries.wait_rest(rest),
        };
        drop(retries);
        match self.with_room(waiting) {
            Waiting::Here(rest) => self.park(work, rest),
            Waiting::Broker(rest) => {
                work.key = None;
                self.errands.push((work, Errand::WaitOn(rest)));
            }
        }
    }

    pub(super) fn bury(&mut self, mut work: Work, epitaph: Epitaph) {
        let scope = Arc::clone(&self.shared.scope);
        if self.is_dropped(&epitaph) {
            scope.metrics.dropped.inc();
            scope.observe(&work, Event::Dropped);
            self.settle(&work);
            return;
        }
        if epitaph.attempted {
            work.count_attempt(None, &scope);
        }
        self.errands.push((work, Errand::Bury(epitaph)));
    }

    /// Whether it is given up without a dead letter.
    pub(super) fn is_dropped(&self, epitaph: &Epitaph) -> bool {
        let drops = self.settings().on_expired == config::OnExpired::Drop;
        epitaph.reason == Reason::Expired && drops
    }

    fn settle(&mut self, work: &Work) {
        self.next_turn(work);
        if let Some(token) = self.ledger.settle(work.slot) {
            self.settlements.push(Settlement::Ack(token));
        }
    }

    /// A message is done with here: the next one of its key may begin.
    pub(super) fn next_turn(&self, work: &Work) {
        if !work.is_bare()
            && let Some(key) = &work.key
            && self.shared.keys.borrow_mut().leave(key)
        {
            self.shared.changed.notify_waiters();
        }
    }

    /// Tells the broker what is settled, or waits a moment for more where that is cheaper for it.
    pub(super) async fn settle_at(&mut self, lane: &mut dyn Lane) -> Result<(), LaneEnd> {
        match self.may_settle_later(lane) {
            true => Ok(()),
            false => self.settle_all_at(lane).await,
        }
    }

    fn may_settle_later(&mut self, lane: &dyn Lane) -> bool {
        let count = self.settlements.len();
        // After a crash what was handled and not acknowledged runs again, like what runs: together no more than may run.
        let could_be_repeated = count + self.running;
        if count == 0
            || count >= lane.settlements_at_once()
            || could_be_repeated > self.settings().in_flight_max.get()
        {
            return false;
        }
        self.now < *self.settle_by.get_or_insert(self.now + SETTLE_AFTER)
    }

    /// Tells the broker what is settled.
    pub(super) async fn settle_all_at(&mut self, lane: &mut dyn Lane) -> Result<(), LaneEnd> {
        self.settle_by = None;
        if self.settlements.is_empty() {
            return Ok(());
        }
        telemetry::settled(self.shared.scope.name(), &self.lane, self.settlements.len());
        lane.settle(&mut self.settlements).await
    }

    /// Gives the retrier what it has to carry; while there is none, that waits here.
    pub(super) fn run_errands(&mut self) {
        if self.errands.is_empty() {
            return;
        }
        let shared = Rc::clone(&self.shared);
        match &*shared.carrier.borrow() {
            Carrier::Here(retrier) if retrier.connected() => {
                self.carrying += self.errands.len();
                let loads = self
                    .errands
                    .drain(..)
                    .map(|(work, errand)| Load::new(work, errand, self.news_to.clone()));
                // Bounded by the messages that this lane may hold: each is in one letter at most.
                retrier.do_send(Carry { loads: loads.collect() });
            }
            Carrier::Here(_) | Carrier::Away => {}
            Carrier::GivenUp => self.keep_errands(),
        }
    }

    /// How many messages are on the way to another place, or wait for somebody to carry them.
    pub(super) fn leaving(&self) -> usize {
        self.carrying + self.errands.len()
    }

    /// The retrier ended with it: the next one carries it. If the broker has the copy already, there will be two.
    pub(super) fn is_not_carried(&mut self, work: Work, errand: Errand) {
        self.carrying -= 1;
        self.errands.push((work, errand));
        self.run_errands();
    }

    /// The broker has the copy: the original can go.
    pub(super) fn is_carried(&mut self, work: Work) {
        self.carrying -= 1;
        if self.ledger.is_orphan(work.slot) {
            self.pass_on(work, Verdict::Carried);
        } else {
            self.settle(&work);
        }
    }

    /// Sends what waits here to the broker's waits with the rest of its delay, so that no attempt
    /// is forgotten; where an order is kept it goes back in place instead.
    pub(super) fn send_parked_away(&mut self) {
        if self.suspects {
            let suspects = self.ready.drain(..).map(|work| (work, Errand::Suspect));
            self.errands.extend(suspects);
        } else if !self.is_ordered() {
            let retries = self.shared.scope.retries.load();
            for (work, due) in self.parked.drain() {
                let rest = due.saturating_duration_since(self.now);
                self.errands.push((work, Errand::WaitOn(retries.wait_elsewhere(rest).delay())));
            }
            // What was never tried here goes back as it came.
            let (tried, untried): (VecDeque<Work>, VecDeque<Work>) =
                self.ready.drain(..).partition(was_tried_here);
            self.ready = untried;
            let soon = retries.wait_elsewhere(Duration::ZERO).delay();
            self.errands.extend(tried.into_iter().map(|work| (work, Errand::Defer(soon))));
        }
        self.run_errands();
    }
}

/// Whether attempts were made in this process that the message at the broker does not carry.
fn was_tried_here(work: &Work) -> bool {
    work.carried.attempts > Carried::read(work.received.envelope.as_ref()).attempts
}
