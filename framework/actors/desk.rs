//! A consumer's work in hand: what its lane delivered and nobody settled yet.
//!
//! Owns the permits and the places where messages wait for one. What is done with a verdict is in
//! `conclude`.

use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::bells::Bells;
use super::conclude::STORE_PAUSE;
use super::consumer::Down;
use super::inquiry::{Asking, Inquiry, gone};
use super::ledger::Ledger;
use super::letter::{Letter, undecided};
use super::links::Links;
use super::load::Errand;
use super::parking::Parking;
use super::shared::{News, Peer, Shared, Suspected};
use super::supervisor::Holding;
use super::tenure::Tenure;
use crate::broker::{Lane, LaneId, Received, Settlement};
use crate::config;
use crate::pipeline::{Epitaph, Fault, Outcome, Reason, Scope, Verdict, Work, kind_of};
use crate::telemetry;

/// How long the broker may take to say whether a silent lane should be silent.
const STALL_QUERY_MAX: Duration = Duration::from_secs(5);
/// How old what inspectors see of the oldest message may be.
const SHOWN_AGE_MAX: Duration = Duration::from_millis(100);
/// How often a lane is looked at that there is no permit to ask.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// A consumer's work in hand.
pub(super) struct Desk {
    pub(super) index: u32,
    pub(super) lane: LaneId,
    pub(super) shared: Rc<Shared>,
    pub(super) links: Links,
    pub(super) ledger: Ledger,
    pub(super) tenure: Arc<Tenure>,
    /// Received, or due again, and waiting for a permit.
    pub(super) ready: VecDeque<Work>,
    pub(super) parked: Parking,
    pub(super) bells: Bells,
    pub(super) running: usize,
    pub(super) carrying: usize,
    /// Redeliveries that wait for what comes of a run that went on when its lane was lost.
    pub(super) awaited: usize,
    /// What was received waits for answers of the other consumers.
    pub(super) asking: Option<Asking>,
    /// Whom to answer when the loss of the lane was seen to.
    pub(super) asked: Vec<Arc<Inquiry>>,
    pub(super) received: Vec<Received>,
    /// A letter that came back empty, to be written anew.
    pub(super) paper: Letter,
    pub(super) settlements: Vec<Settlement>,
    /// When they are told at the latest.
    pub(super) settle_by: Option<Instant>,
    pub(super) outcomes: mpsc::Receiver<Letter>,
    pub(super) outcomes_to: mpsc::Sender<Letter>,
    pub(super) news: mpsc::UnboundedReceiver<News>,
    pub(super) news_to: mpsc::UnboundedSender<News>,
    pub(super) errands: Vec<(Work, Errand)>,
    pub(super) last_delivery: Instant,
    /// Read once a batch: a clock read for each message would cost more than its settlement.
    pub(super) now: Instant,
    pub(super) winding_down: bool,
    /// Nothing was asked of the lane, so that it is to be looked at.
    is_watching: bool,
    /// It drains the suspects: one at a time, and nothing else beside.
    pub(super) suspects: bool,
    /// Its suspect waits since then for what the others run.
    pub(super) waits_alone_since: Option<Instant>,
    /// It handed out the breaker's probe, and does not know yet what came of it.
    pub(super) probing: bool,
    shown_at: Instant,
    /// What is shown of the oldest message may be out of date.
    shown_is_old: bool,
    /// What an inspector sees.
    pub(super) holding: Rc<Cell<Holding>>,
}

impl Desk {
    pub(super) fn new(
        index: u32,
        lane: LaneId,
        shared: Rc<Shared>,
        links: Links,
        holding: Rc<Cell<Holding>>,
    ) -> Self {
        let settings = &shared.scope.settings;
        let prefetch = settings.in_flight_max.get() + settings.parked_max.get();
        // Room for every message that can be out, so that nobody ever waits to answer.
        let (outcomes_to, outcomes) = mpsc::channel(prefetch);
        let (news_to, news) = mpsc::unbounded_channel();
        if !lane.is_suspects() {
            let peer = Peer { news: news_to.clone(), can_be_asked: false };
            shared.peers.borrow_mut().insert(index, peer);
        }
        Self {
            index,
            suspects: lane.is_suspects(),
            lane,
            shared,
            links,
            ledger: Ledger::default(),
            tenure: Arc::default(),
            ready: VecDeque::new(),
            parked: Parking::default(),
            bells: Bells::default(),
            running: 0,
            carrying: 0,
            awaited: 0,
            asking: None,
            asked: Vec::new(),
            received: Vec::new(),
            paper: Letter::new(),
            settlements: Vec::new(),
            settle_by: None,
            outcomes,
            outcomes_to,
            news,
            news_to,
            errands: Vec::new(),
            last_delivery: Instant::now(),
            now: Instant::now(),
            winding_down: false,
            is_watching: false,
            waits_alone_since: None,
            probing: false,
            shown_at: Instant::now(),
            shown_is_old: false,
            holding,
        }
    }

    pub(super) fn settings(&self) -> &config::Subscription {
        &self.shared.scope.settings
    }

    /// A lane is open.
    pub(super) fn open(&mut self, lane: &dyn Lane) {
        self.ledger.open(lane.generation());
        if let Some(peer) = self.shared.peers.borrow_mut().get_mut(&self.index) {
            peer.can_be_asked = lane.is_lost().is_some();
        }
        self.tenure = Arc::default();
        self.last_delivery = Instant::now();
    }

    pub(super) fn is_ordered(&self) -> bool {
        self.settings().ordering != config::Ordering::None
    }

    /// Shows to inspectors all that is held, to the last.
    pub(super) fn show_all(&mut self) {
        self.now = Instant::now();
        self.show_with_age(true);
    }

    /// Shows to inspectors what is held; of the oldest message not more often than anybody can tell.
    pub(super) fn show(&mut self) {
        self.show_with_age(self.now.duration_since(self.shown_at) >= SHOWN_AGE_MAX);
    }

    fn show_with_age(&mut self, is_due: bool) {
        let mut shown = self.holding.get();
        if is_due {
            self.shown_at = self.now;
            self.shared.orphans.borrow_mut().forget_old(self.now);
            shown.oldest = self.ledger.oldest();
            self.shown_is_old = false;
        } else {
            self.shown_is_old = true;
        }
        let oldest = shown.oldest;
        let (running, parked, carrying) = (self.running, self.parked.len(), self.leaving());
        self.holding.set(Holding { running, parked, carrying, oldest });
    }

    /// Enters what was received.
    pub(super) fn receive(&mut self) {
        self.now = Instant::now();
        self.last_delivery = self.now;
        telemetry::received(self.shared.scope.name(), &self.lane, self.received.len());
        if !self.ask_first() {
            self.take_in();
        }
    }

    /// Takes in what was received: a redelivery of what is in hand here goes on where that is.
    pub(super) fn take_in(&mut self) {
        let shared = Rc::clone(&self.shared);
        let mut batch = std::mem::take(&mut self.received);
        // What only changes from one wait to the next was received before, or is later.
        let mut counted = batch.len() as u64;
        let received_at = shared.scope.tick(self.now);
        let has_orphans = !shared.orphans.borrow().is_empty();
        // A whole batch of messages that nothing keeps back is put into a letter at once: to let each wait in line for its
        // permit would be 80 instructions more.
        let mut letter = std::mem::take(&mut self.paper);
        letter.reserve(batch.len());
        let looks_into_all = shared.scope.looks_into_messages();
        let mut goes_straight = self.may_go_straight(batch.len());
        for received in batch.drain(..) {
            if has_orphans && received.envelope.is_redelivered() && self.adopt(&received) {
                continue;
            }
            let envelope = received.envelope.as_ref();
            let (size, returns) = (envelope.body().len(), envelope.returns());
            let is_bare = !looks_into_all && !envelope.may_be_stamped();
            let slot = self.ledger.enter(received.clone(), size, self.now);
            if is_bare && returns == 0 && goes_straight {
                // Most messages: nothing is known of them, and nobody is before them.
                letter.push(undecided(Work::bare(received, received_at, self.index, slot)));
                continue;
            }
            let at = (received_at, self.index, slot);
            let work = Work::new_on(&mut shared.blanks.borrow_mut(), received, at, &shared.scope);
            let is_news = work.is_known_by_key_alone() && returns == 0;
            if is_news && goes_straight {
                letter.extend(shared.keys.borrow_mut().enter(work).map(undecided));
                continue;
            }
            counted -= u64::from(work.carried.rest.is_some());
            // In the order in which they came.
            goes_straight = false;
            self.ready.extend(letter.drain(..).flatten().map(|outcome| outcome.work));
            match is_news && work.is_bare() {
                true => self.ready.push_back(work),
                false => self.admit(work),
            }
        }
        self.received = batch;
        shared.scope.metrics.received.inc_by(counted);
        self.send_straight(letter);
        self.run_errands();
    }

    /// Takes in a message: to the handlers, unless it came back from crashes too often.
    pub(super) fn admit(&mut self, mut work: Work) {
        if let Some(rest) = work.carried.rest {
            work.carried.rest = None;
            return self.wait_on(work, rest);
        }
        let scope = &self.shared.scope;
        // One that is delivered again was late when it came first, if at all.
        let due = work.carried.due.filter(|_| !work.received.envelope.is_redelivered());
        if let Some(due) = due {
            let late = scope.clock.now().duration_since(due).unwrap_or_default();
            scope.metrics.lateness.observe(late.as_secs_f64());
        }
        let returns = work.received.envelope.returns();
        let crashes_max = self.settings().crashes_max.get();
        if self.suspects && returns > 0 && work.carried.alone == 0 {
            // Once may have been a stop that came in between: it is put behind the others.
            work.key = None;
            work.carried.alone = 1;
            self.errands.push((work, Errand::Suspect));
        } else if self.suspects && returns > 0 {
            // It was out on its own when the process that handled it ended, again.
            work.key = None;
            let error = format!("it ended {returns} process(es) that handled nothing else");
            let epitaph = Epitaph::new(Reason::Poison, error);
            match self.settings().idempotency {
                // It may have ended the process after it was handled.
                Some(_) => {
                    work.doom = Some(Box::new(epitaph));
                    self.ready.push_back(work);
                }
                None => self.bury(work, epitaph),
            }
        } else if !self.suspects && returns >= crashes_max {
            work.key = None;
            self.errands.push((work, Errand::Suspect));
            self.shared.suspected.do_send(Suspected);
        } else if let Some(work) = self.shared.keys.borrow_mut().enter(work) {
            self.ready.push_back(work);
        }
    }

    /// Hands out what has a permit, in one letter for each handler.
    pub(super) fn hand_out(&mut self) {
        self.now = Instant::now();
        self.ask_on();
        let now = self.now;
        while let Some((work, late)) = self.parked.take_due(now) {
            self.shared.scope.metrics.lateness.observe(late.as_secs_f64());
            self.ready.push_back(work);
        }
        if self.is_ordered() {
            self.take_turns();
        }
        self.look_at_store();
        let may_go = !self.ready.is_empty() && !self.store_is_down(now) && self.may_hand_out();
        if self.suspects {
            self.note_waiting_alone();
        }
        if !may_go {
            return;
        }
        let shared = Rc::clone(&self.shared);
        let permits = self.permits().min(self.ready.len());
        let granted = shared.gate.borrow_mut().grant(permits, now);
        self.probing |= granted.is_probe;
        let works = self.ready.drain(..granted.count);
        let unknown = self.links.enqueue_all(works, granted.is_probe, &shared.scope);
        self.running += granted.count;
        shared.running.set(shared.running.get() + granted.count);
        self.links.dispatch(&self.outcomes_to, &self.tenure);
        for work in unknown {
            let verdict = unknown_type(&work, &shared.scope);
            self.conclude(Outcome { work, verdict });
        }
        self.run_errands();
    }

    /// When something is due by time: a parked message, the breaker, settlements that wait for more, a look at a silent
    /// lane, or at the oldest message for those who want to see it; and at whether a lane is still there that nothing is
    /// asked for.
    pub(super) fn wake_at(&mut self, lane: &dyn Lane, room: usize) -> Instant {
        self.is_watching = room == 0 && lane.is_lost().is_some();
        let stall = self.last_delivery + self.settings().stall_after;
        // Once its pause is over, the breaker waits for a message to probe with, not for time.
        let gate = self.shared.gate.borrow();
        let opens_at = if self.suspects { gate.lets_suspect_at() } else { gate.opens_at() };
        let gate = opens_at.filter(|at| *at > self.now);
        // Nothing is handed out while a suspect runs; the end of that wakes us.
        let parked = self.parked.next_due().filter(|_| !self.shared.alone.get());
        let store = self.shared.store_down_until.get();
        let parked = parked.map(|due| due.max(store.unwrap_or(due)));
        // When it is over and the store is not back, it is looked at again.
        let store =
            store.map(|until| if until > self.now { until } else { self.now + STORE_PAUSE });
        let look = self.shown_is_old.then(|| self.shown_at + SHOWN_AGE_MAX);
        let watch = self.is_watching.then(|| self.now + LOOK_EVERY);
        let alone = self.waits_alone_since.map(|since| since + self.settings().stall_after);
        let alone = alone.filter(|at| *at > self.now);
        [parked, gate, store, look, watch, alone, self.settle_by, self.ask_on_at()]
            .into_iter()
            .flatten()
            .fold(stall, Instant::min)
    }

    /// Whether the lane is gone, where nothing was asked for and so nothing was told.
    pub(super) fn is_gone(&self, lane: &dyn Lane) -> bool {
        self.is_watching && lane.is_lost() == Some(true)
    }

    /// Looks at a lane that was silent for a while.
    pub(super) async fn look_at(&mut self, lane: &dyn Lane) -> Option<Down> {
        if self.is_gone(lane) {
            return Some(Down::Ended(gone()));
        }
        self.is_suspicious(lane).await.then_some(Down::Stalled)
    }

    /// Whether the lane is silent though the broker has something for it.
    async fn is_suspicious(&mut self, lane: &dyn Lane) -> bool {
        let silent = self.last_delivery.elapsed() >= self.settings().stall_after;
        if !silent {
            return false;
        }
        // Whatever the answer, the next look is due after as long again.
        self.last_delivery = Instant::now();
        if self.room() == 0 {
            return false;
        }
        let is_behind = async {
            if let Some(is_behind) = lane.is_behind().await {
                return is_behind;
            }
            let source = self.shared.scope.source.load_full();
            let depth = self.shared.broker.depth(&source).await;
            lane.is_active() && depth.is_ok_and(|depth| depth.ready.is_some_and(|ready| ready > 0))
        };
        // No answer: what ails the broker is found elsewhere.
        tokio::time::timeout(STALL_QUERY_MAX, is_behind).await.unwrap_or(false)
    }
}

fn unknown_type(work: &Work, scope: &Scope) -> Verdict {
    let kind = kind_of(work, scope);
    let shown: String = kind.as_deref().unwrap_or("(none)").chars().take(100).collect();
    let error = format!("no handler is for messages of type `{shown}`; see `on_unknown_type`");
    match scope.settings.on_unknown_type {
        config::OnUnknownType::DeadLetter => {
            Verdict::Dead(Box::new(Epitaph::new(Reason::UnknownType, error)))
        }
        config::OnUnknownType::Ignore => Verdict::Ignore(Box::new(Fault { error, class: None })),
    }
}

/// Whoever waits for what this one knew waits in vain: it goes back to the broker. What it had of all that the consumers
/// share is for the others again: if it broke with messages in hand, nobody else would ever give that back.
impl Drop for Desk {
    fn drop(&mut self) {
        self.tenure.end();
        let shared = Rc::clone(&self.shared);
        shared.peers.borrow_mut().remove(&self.index);
        shared.orphans.borrow_mut().forget_lane(self.index);
        self.ask_no_more();
        shared.running.set(shared.running.get().saturating_sub(self.running));
        shared.keys.borrow_mut().forget_lane(self.index);
        shared.starved.borrow_mut().retain(|lane| *lane != self.index);
        if self.probing {
            shared.gate.borrow_mut().abandon_probe();
        }
        if self.suspects {
            shared.leave_alone();
        }
        shared.changed.notify_waiters();
    }
}
