//! Drains one lane: receives, hands out, settles.
//!
//! Owns the messages that its lane delivered until they are settled, and the permits: nothing is
//! pulled that could not be worked on. Never publishes (the retrier does) and never decides what
//! becomes of a message (the pipeline does).
//!
//! The actor outlives its lanes: when one is lost, it waits for the next and knows what still runs.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use actix::prelude::*;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Instant;

use super::breaker::Gate;
use super::keys::Keys;
use super::ledger::{Adopted, Ledger};
use super::links::Links;
use super::parking::Parking;
use super::retrier::{Carry, Errand, Retrier};
use super::supervisor::Holding;
use crate::broker::{Broker, Lane, LaneEnd, LaneId, Received, Settlement};
use crate::config;
use crate::health::HealthCell;
use crate::pipeline::{Epitaph, Event, Fault, Outcome, Reason, Scope, Verdict, Waiting, Work};
use crate::telemetry;

/// How often an idle lane asks the broker whether it should be idle, at the most.
const STALL_QUERY_MAX: Duration = Duration::from_secs(5);

/// How long nothing is handed out after a store did not answer.
const STORE_PAUSE: Duration = Duration::from_secs(1);

/// How long a stopping process may take to put back a suspect whose handler is not done.
const PUT_BACK_MAX: Duration = Duration::from_secs(2);

/// A lane was lost, or found to stall; the supervisor opens it again.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct LaneDown {
    pub(super) lane: LaneId,
    pub(super) why: Down,
}

/// Why a consumer has no lane any more.
#[derive(Debug)]
pub(super) enum Down {
    /// It ended by itself.
    Ended(LaneEnd),
    /// It delivered nothing though the broker has something.
    Stalled,
}

/// An open lane for this consumer to drain.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Attach(pub(super) Box<dyn Lane>);

/// Receive no more, finish what runs until `deadline`, close the lane; answers how many messages
/// were given back with their handlers still running.
#[derive(Message)]
#[rtype(result = "usize")]
pub(super) struct WindDown {
    pub(super) deadline: Instant,
}

/// The actor.
pub(super) struct Consumer {
    lane: LaneId,
    supervisor: Recipient<LaneDown>,
    /// Away while a lane is drained.
    desk: Option<Desk>,
    commands: Option<mpsc::Sender<(Instant, oneshot::Sender<usize>)>>,
    holding: Rc<Cell<Holding>>,
}

/// What all consumers of a subscription share; they live on one arbiter.
pub(super) struct Shared {
    pub(super) scope: Arc<Scope>,
    pub(super) broker: Arc<dyn Broker>,
    pub(super) retrier: Addr<Retrier>,
    pub(super) gate: RefCell<Gate>,
    /// Handlers that run, over all lanes.
    pub(super) running: Cell<usize>,
    pub(super) health: HealthCell,
    /// Who is next of each key, where an order is kept.
    pub(super) keys: RefCell<Keys>,
    /// Told when a message's turn came that another lane holds.
    pub(super) turns_changed: Notify,
    /// Nothing is handed out before: the store of the guards did not answer.
    pub(super) store_down_until: Cell<Option<Instant>>,
    /// A suspect is to run, or runs, and nothing else may.
    pub(super) alone: Cell<bool>,
    /// Told when that changes, and when the last handler before it is done.
    pub(super) alone_changed: Notify,
    /// Asks for the lane of the suspects.
    pub(super) suspected: Recipient<Suspected>,
}

/// A message was put among the suspects: their lane is needed.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Suspected;

/// What the consumer holds right now.
#[derive(Message)]
#[rtype(result = "Holding")]
pub(super) struct Count;

impl Consumer {
    pub(super) fn new(
        index: u32,
        lane: LaneId,
        shared: Rc<Shared>,
        links: Links,
        supervisor: Recipient<LaneDown>,
    ) -> Self {
        let holding = Rc::new(Cell::new(Holding::default()));
        let desk = Desk::new(index, lane.clone(), shared, links, Rc::clone(&holding));
        Self { lane, supervisor, desk: Some(desk), commands: None, holding }
    }
}

impl Actor for Consumer {
    type Context = Context<Self>;
}

impl Handler<Attach> for Consumer {
    type Result = ();

    fn handle(&mut self, Attach(lane): Attach, ctx: &mut Context<Self>) {
        let Some(desk) = self.desk.take() else { return };
        let (commands, orders) = mpsc::channel(1);
        self.commands = Some(commands);
        let drained = drain(lane, desk, orders).into_actor(self);
        ctx.spawn(drained.map(|(desk, down), consumer, _| {
            consumer.desk = Some(desk);
            consumer.commands = None;
            if let Some(why) = down {
                let lane = consumer.lane.clone();
                consumer.supervisor.do_send(LaneDown { lane, why });
            }
        }));
    }
}

impl Handler<WindDown> for Consumer {
    type Result = ResponseFuture<usize>;

    fn handle(&mut self, WindDown { deadline }: WindDown, _: &mut Context<Self>) -> Self::Result {
        let commands = self.commands.clone();
        Box::pin(async move {
            let (reply, left) = oneshot::channel();
            match commands {
                Some(commands) if commands.send((deadline, reply)).await.is_ok() => {
                    left.await.unwrap_or(0)
                }
                _ => 0,
            }
        })
    }
}

impl Handler<Count> for Consumer {
    type Result = ResponseFuture<Holding>;

    fn handle(&mut self, Count: Count, _: &mut Context<Self>) -> Self::Result {
        let holding = Rc::clone(&self.holding);
        Box::pin(async move { holding.get() })
    }
}

type Orders = mpsc::Receiver<(Instant, oneshot::Sender<usize>)>;

/// Drains `lane` until it ends or is told to wind down. The whole life of a consumer in one place.
async fn drain(
    mut lane: Box<dyn Lane>,
    mut desk: Desk,
    mut orders: Orders,
) -> (Desk, Option<Down>) {
    desk.open(lane.generation());
    let shared = Rc::clone(&desk.shared);
    let end = loop {
        desk.hand_out();
        desk.show();
        if let Err(end) = desk.settle_at(lane.as_mut()).await {
            break Down::Ended(end);
        }
        let room = desk.room();
        let wake_at = desk.wake_at();
        tokio::select! {
            biased;
            Some((deadline, reply)) = orders.recv() => {
                let left = wind_down(lane.as_mut(), &mut desk, deadline).await;
                desk.lose();
                let _ = reply.send(left);
                return (desk, None);
            }
            outcomes = desk.outcomes.recv() => desk.conclude_all(outcomes),
            Some(work) = desk.carried.recv() => desk.is_carried(work),
            () = shared.alone_changed.notified(), if desk.minds_alone() => {}
            () = shared.turns_changed.notified(), if desk.is_ordered() => {}
            received = lane.next(&mut desk.received, room), if room > 0 => match received {
                Ok(()) => desk.receive(),
                Err(end) => break Down::Ended(end),
            },
            () = tokio::time::sleep_until(wake_at) => {
                if desk.is_suspicious(lane.as_ref()).await {
                    break Down::Stalled;
                }
            }
        }
    };
    desk.lose();
    // What the channel still knows goes back now, not when it times out.
    let _ = lane.close().await;
    (desk, Some(end))
}

/// Finishes what runs, as far as the time allows; the number of handlers that were left running.
async fn wind_down(lane: &mut dyn Lane, desk: &mut Desk, deadline: Instant) -> usize {
    desk.winding_down = true;
    desk.send_parked_away();
    let mut left = loop {
        let settled = desk.settle_at(lane).await;
        let busy = desk.running + desk.carrying;
        if busy == 0 || settled.is_err() {
            break busy;
        }
        tokio::select! {
            biased;
            outcomes = desk.outcomes.recv() => desk.conclude_all(outcomes),
            Some(work) = desk.carried.recv() => desk.is_carried(work),
            () = tokio::time::sleep_until(deadline) => break busy,
        }
    };
    if desk.suspects && desk.running > 0 {
        // Given back as it is, it would look as if the process had died of it.
        left = put_back_suspect(lane, desk).await;
    }
    desk.winding_down = false;
    if let Err(end) = lane.close().await {
        telemetry::close_failed(desk.shared.scope.name(), &desk.lane, &end);
    }
    left
}

/// Copies a suspect whose handler is not done to where it came from, so that nothing is held
/// against it.
async fn put_back_suspect(lane: &mut dyn Lane, desk: &mut Desk) -> usize {
    let left = desk.running;
    for (slot, received) in desk.ledger.held() {
        let work = Work::new(received, desk.index, slot, &desk.shared.scope);
        desk.errands.push((work, Errand::Suspect));
    }
    desk.run_errands();
    let deadline = Instant::now() + PUT_BACK_MAX;
    while desk.carrying > 0 {
        tokio::select! {
            Some(work) = desk.carried.recv() => desk.is_carried(work),
            () = tokio::time::sleep_until(deadline) => break,
        }
    }
    let _ = lane.settle(&mut desk.settlements).await;
    left
}

/// A consumer's work in hand.
struct Desk {
    index: u32,
    lane: LaneId,
    shared: Rc<Shared>,
    links: Links,
    ledger: Ledger,
    /// False once the lane is gone, so that nothing queued for a handler is begun any more.
    alive: Arc<AtomicBool>,
    /// Received, or due again, and waiting for a permit.
    ready: VecDeque<Work>,
    parked: Parking,
    running: usize,
    carrying: usize,
    received: Vec<Received>,
    settlements: Vec<Settlement>,
    outcomes: mpsc::Receiver<Vec<Outcome>>,
    outcomes_to: mpsc::Sender<Vec<Outcome>>,
    carried: mpsc::Receiver<Work>,
    carried_to: mpsc::Sender<Work>,
    errands: Vec<(Work, Errand)>,
    last_delivery: Instant,
    /// Read once a batch: a clock read for each message would cost more than its settlement.
    now: Instant,
    winding_down: bool,
    /// It drains the suspects: one at a time, and nothing else beside.
    suspects: bool,
    /// What an inspector sees.
    holding: Rc<Cell<Holding>>,
}

impl Desk {
    fn new(
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
        let (carried_to, carried) = mpsc::channel(prefetch);
        Self {
            index,
            suspects: lane.is_suspects(),
            lane,
            shared,
            links,
            ledger: Ledger::default(),
            alive: Arc::new(AtomicBool::new(false)),
            ready: VecDeque::new(),
            parked: Parking::default(),
            running: 0,
            carrying: 0,
            received: Vec::new(),
            settlements: Vec::new(),
            outcomes,
            outcomes_to,
            carried,
            carried_to,
            errands: Vec::new(),
            last_delivery: Instant::now(),
            now: Instant::now(),
            winding_down: false,
            holding,
        }
    }

    fn settings(&self) -> &config::Subscription {
        &self.shared.scope.settings
    }

    /// A lane is open: what was held for an earlier one is an orphan from now on.
    fn open(&mut self, generation: u64) {
        self.ledger.lose(generation, Instant::now());
        self.alive = Arc::new(AtomicBool::new(true));
        self.last_delivery = Instant::now();
    }

    /// The lane is gone: what waits here comes again from the broker, and is recognised then.
    fn lose(&mut self) {
        self.alive.store(false, Ordering::Release);
        self.settlements.clear();
        let followers = self.shared.keys.borrow_mut().forget(self.index);
        let parked = self.parked.drain().map(|(work, _)| work).collect::<Vec<_>>();
        for work in parked.into_iter().chain(std::mem::take(&mut self.ready)) {
            self.next_turn(&work);
            self.keep(work);
        }
        for work in followers {
            self.keep(work);
        }
    }

    /// Keeps a message of a lane that is gone for its redelivery.
    fn keep(&mut self, work: Work) {
        let verdict = Verdict::Again;
        self.ledger.keep_fate(work.slot, Outcome { work, verdict });
    }

    fn is_ordered(&self) -> bool {
        self.settings().ordering != config::Ordering::None
    }

    /// A message is done with here: the next one of its key may begin.
    fn next_turn(&self, work: &Work) {
        if let Some(key) = &work.key
            && self.shared.keys.borrow_mut().leave(key)
        {
            self.shared.turns_changed.notify_waiters();
        }
    }

    /// How many messages may be pulled now.
    fn room(&self) -> usize {
        let settings = self.settings();
        let shared = self.shared.as_ref();
        let parked = self.parked.len() + shared.keys.borrow().waiting() + self.carrying;
        let full = parked >= settings.parked_max.get()
            || self.ledger.bytes() as u64 >= settings.in_flight_bytes_max;
        let now = self.now;
        if full
            || self.winding_down
            || self.store_is_down(now)
            || (shared.alone.get() && !self.suspects)
        {
            return 0;
        }
        if self.suspects {
            return usize::from(self.running + self.ready.len() + self.carrying == 0);
        }
        let busy = self.running + self.ready.len();
        let mut room = settings.in_flight_max.get().saturating_sub(busy);
        if let Some(total) = settings.in_flight_total_max {
            room = room.min(total.get().saturating_sub(shared.running.get() + self.ready.len()));
        }
        shared.gate.borrow().room(room, self.now)
    }

    /// Shows to inspectors what is held.
    fn show(&self) {
        let oldest = self.ledger.oldest();
        let (running, parked, carrying) = (self.running, self.parked.len(), self.carrying);
        self.holding.set(Holding { running, parked, carrying, oldest });
    }

    /// Enters what was received.
    fn receive(&mut self) {
        self.now = Instant::now();
        self.last_delivery = self.now;
        let shared = Rc::clone(&self.shared);
        let mut received = std::mem::take(&mut self.received);
        shared.scope.metrics.received.inc_by(received.len() as u64);
        telemetry::received(shared.scope.name(), &self.lane, received.len());
        for received in received.drain(..) {
            match self.ledger.adopt(&received) {
                None => {
                    let slot = self.ledger.enter(received.clone(), self.last_delivery);
                    let work = Work::new(received, self.index, slot, &shared.scope);
                    self.admit(work);
                }
                Some(Adopted::Running) => self.note_adopted(),
                Some(Adopted::Done(outcome)) => {
                    self.note_adopted();
                    self.resume(*outcome);
                }
            }
        }
        self.received = received;
        self.run_errands();
    }

    /// Goes on with a message whose lane was lost while it was here.
    fn resume(&mut self, outcome: Outcome) {
        if outcome.verdict == Verdict::Again {
            return self.admit(outcome.work);
        }
        self.running += 1;
        self.shared.running.set(self.shared.running.get() + 1);
        self.conclude(outcome);
    }

    /// Takes in a message: to the handlers, unless it came back from crashes too often.
    fn admit(&mut self, mut work: Work) {
        let scope = &self.shared.scope;
        if let Some(rest) = work.carried.rest {
            let rest = scope.retries.load().wait_elsewhere(rest).delay();
            work.key = None;
            self.errands.push((work, Errand::Defer(rest)));
            return;
        }
        if let Some(due) = work.carried.due {
            let late = scope.clock.now().duration_since(due).unwrap_or_default();
            scope.metrics.lateness.observe(late.as_secs_f64());
        }
        let returns = work.received.envelope.returns();
        let crashes_max = self.settings().crashes_max.get();
        if self.suspects && returns > 0 {
            // It was out on its own when the process that handled it ended.
            work.key = None;
            let error = format!("it ended {returns} process(es) that handled nothing else");
            self.bury(work, Epitaph::new(Reason::Poison, error));
        } else if !self.suspects && returns >= crashes_max {
            work.key = None;
            self.errands.push((work, Errand::Suspect));
            self.shared.suspected.do_send(Suspected);
        } else if let Some(work) = self.shared.keys.borrow_mut().enter(work) {
            self.ready.push_back(work);
        }
    }

    /// Whether it matters to this lane that a suspect runs, or is done.
    fn minds_alone(&self) -> bool {
        self.suspects || self.shared.alone.get()
    }

    /// Whether it may hand out now, with regard to suspects.
    fn may_hand_out(&self) -> bool {
        if !self.suspects {
            return !self.shared.alone.get();
        }
        if !self.ready.is_empty() {
            self.shared.alone.set(true);
        }
        self.shared.running.get() == 0
    }

    fn note_adopted(&self) {
        let scope = &self.shared.scope;
        scope.metrics.adopted.inc();
        telemetry::adopted(scope.name(), &self.lane);
    }

    /// Hands out what has a permit, in one letter for each handler.
    fn hand_out(&mut self) {
        self.now = Instant::now();
        let now = self.now;
        while let Some(work) = self.parked.take_due(now) {
            self.ready.push_back(work);
        }
        if self.is_ordered() {
            self.ready.extend(self.shared.keys.borrow_mut().take_turns(self.index));
        }
        if self.ready.is_empty() || self.store_is_down(now) || !self.may_hand_out() {
            return;
        }
        let shared = Rc::clone(&self.shared);
        let permits = self.settings().in_flight_max.get().saturating_sub(self.running);
        let permits = permits.min(self.ready.len());
        let granted = shared.gate.borrow_mut().grant(permits, now);
        let mut unknown = Vec::new();
        for mut work in self.ready.drain(..granted.count) {
            work.is_probe = granted.is_probe;
            match self.links.route_of(&work, &shared.scope) {
                Some(route) => self.links.enqueue(route, work),
                None => unknown.push(work),
            }
        }
        self.running += granted.count;
        shared.running.set(shared.running.get() + granted.count);
        self.links.dispatch(&self.outcomes_to, &self.alive);
        for work in unknown {
            let verdict = unknown_type(self.settings(), &work);
            self.conclude(Outcome { work, verdict });
        }
        self.run_errands();
    }

    fn conclude_all(&mut self, outcomes: Option<Vec<Outcome>>) {
        self.now = Instant::now();
        for outcome in outcomes.into_iter().flatten() {
            self.conclude(outcome);
        }
        while let Ok(outcomes) = self.outcomes.try_recv() {
            for outcome in outcomes {
                self.conclude(outcome);
            }
        }
        self.run_errands();
    }

    /// Acts on a verdict.
    fn conclude(&mut self, Outcome { mut work, verdict }: Outcome) {
        self.running -= 1;
        let shared = Rc::clone(&self.shared);
        shared.running.set(shared.running.get() - 1);
        if self.suspects {
            shared.alone.set(false);
            shared.alone_changed.notify_waiters();
        } else if shared.alone.get() && shared.running.get() == 0 {
            shared.alone_changed.notify_waiters();
        }
        if self.ledger.is_orphan(work.slot) {
            return self.keep_fate(work, verdict);
        }
        let probe_failed = work.is_probe && verdict.is_failure();
        let changed = shared.gate.borrow_mut().record(&work, &verdict, &shared.scope, self.now);
        if changed {
            let open = shared.gate.borrow().is_open();
            shared.health.update(|health| health.breaker_open = open);
        }
        if probe_failed {
            // A probe costs no attempt: it goes back to the head.
            if let Some(fault) = verdict.fault() {
                shared.scope.observe(&work, Event::ProbeFailed(fault));
            }
            work.is_probe = false;
            self.ready.push_front(work);
            return;
        }
        let now = shared.scope.clock;
        let metrics = &shared.scope.metrics;
        match verdict {
            Verdict::Ack => {
                if shared.store_down_until.take().is_some() {
                    shared.scope.note_store(false);
                    shared.health.update(|health| health.store = None);
                }
                metrics.handled.inc();
                shared.scope.observe(&work, Event::Handled);
                self.settle(work);
            }
            Verdict::Ignore(fault) => {
                metrics.ignored.inc();
                shared.scope.observe(&work, Event::Ignored(&fault));
                self.settle(work);
            }
            Verdict::Again => {
                shared.scope.observe(&work, Event::Interrupted);
                self.ready.push_front(work);
            }
            Verdict::StoreDown(why) => self.hold_for_store(work, why),
            Verdict::Retry(waiting, fault) => {
                metrics.retried.inc();
                let attempts_max = shared.scope.attempts_max();
                work.count_attempt(Some(waiting.delay()), attempts_max, now.now());
                self.wait(work, waiting, Some(fault));
            }
            Verdict::Defer(waiting) => {
                work.set_first_seen(now.now());
                metrics.deferred.inc();
                self.wait(work, waiting, None);
            }
            Verdict::Dead(epitaph) => self.bury(work, epitaph),
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

    /// Whether the store of the guards did not answer a moment ago.
    fn store_is_down(&self, now: Instant) -> bool {
        self.shared.store_down_until.get().is_some_and(|until| until > now)
    }

    /// Keeps what came of a message whose lane is gone; the next of its key may begin, as this one
    /// comes back in its old place, if it comes back here at all.
    fn keep_fate(&mut self, mut work: Work, verdict: Verdict) {
        self.next_turn(&work);
        let verdict = match verdict {
            Verdict::Retry(..) if work.key.is_some() => {
                let scope = &self.shared.scope;
                work.count_attempt(None, scope.attempts_max(), scope.clock.now());
                Verdict::Again
            }
            verdict => verdict,
        };
        if verdict != Verdict::Again {
            // Its turn is over; what is left to do needs none.
            work.key = None;
        }
        self.ledger.keep_fate(work.slot, Outcome { work, verdict });
    }

    fn wait(&mut self, work: Work, waiting: Waiting, fault: Option<Fault>) {
        let crowded = self.parked.len() >= self.settings().parked_max.get();
        let may_leave = self.settings().ordering == config::Ordering::None;
        let waiting = match waiting {
            Waiting::Here(delay)
                if may_leave && (crowded || self.winding_down || self.suspects) =>
            {
                self.shared.scope.retries.load().wait_elsewhere(delay)
            }
            waiting => waiting,
        };
        let event =
            fault.as_ref().map_or(Event::Defers(waiting), |fault| Event::Retries(waiting, fault));
        self.shared.scope.observe(&work, event);
        match waiting {
            Waiting::Here(delay) => self.parked.park(work, Instant::now() + delay),
            Waiting::Broker(delay) => {
                let errand = match fault {
                    Some(fault) => Errand::Retry(delay, fault),
                    None => Errand::Defer(delay),
                };
                self.errands.push((work, errand));
            }
        }
    }

    fn bury(&mut self, mut work: Work, epitaph: Epitaph) {
        let scope = Arc::clone(&self.shared.scope);
        if epitaph.reason == Reason::Expired
            && self.settings().on_expired == config::OnExpired::Drop
        {
            scope.metrics.dropped.inc();
            scope.observe(&work, Event::Dropped(&epitaph));
            self.settle(work);
            return;
        }
        if epitaph.attempted {
            work.count_attempt(None, scope.attempts_max(), scope.clock.now());
        }
        self.errands.push((work, Errand::Bury(epitaph)));
    }

    fn settle(&mut self, work: Work) {
        self.next_turn(&work);
        if let Some(token) = self.ledger.settle(work.slot) {
            self.settlements.push(Settlement::Ack(token));
        }
    }

    /// Tells the broker what is settled.
    async fn settle_at(&mut self, lane: &mut dyn Lane) -> Result<(), LaneEnd> {
        if self.settlements.is_empty() {
            return Ok(());
        }
        telemetry::settled(self.shared.scope.name(), &self.lane, self.settlements.len());
        lane.settle(&mut self.settlements).await
    }

    /// Gives the retrier what it has to carry.
    fn run_errands(&mut self) {
        if self.errands.is_empty() {
            return;
        }
        let errands = std::mem::take(&mut self.errands);
        self.carrying += errands.len();
        let done = self.carried_to.clone();
        // Bounded by the messages that this lane may hold: each is in one letter at most.
        self.shared.retrier.do_send(Carry { errands, done });
    }

    /// The broker has the copy: the original can go.
    fn is_carried(&mut self, work: Work) {
        self.carrying -= 1;
        if self.ledger.is_orphan(work.slot) {
            self.keep_fate(work, Verdict::Ack);
        } else {
            self.settle(work);
        }
    }

    /// Sends what waits here to the broker's waits with the rest of its delay, so that no attempt
    /// is forgotten; where an order is kept it goes back in place instead.
    fn send_parked_away(&mut self) {
        let suspects = self.ready.drain(..).filter(|_| self.suspects);
        self.errands.extend(suspects.map(|work| (work, Errand::Suspect)));
        if self.settings().ordering != config::Ordering::None {
            return self.run_errands();
        }
        let now = self.now;
        let retries = self.shared.scope.retries.load();
        for (work, due) in self.parked.drain() {
            let rest = due.saturating_duration_since(now);
            let delay = retries.wait_elsewhere(rest).delay();
            self.errands.push((work, Errand::Defer(delay)));
        }
        drop(retries);
        self.run_errands();
    }

    /// When something is due by time: a parked message, the breaker, a look at a silent lane.
    fn wake_at(&self) -> Instant {
        let stall = self.last_delivery + self.settings().stall_after;
        let gate = self.shared.gate.borrow().opens_at();
        // Nothing is handed out while a suspect runs; the end of that wakes us.
        let parked = self.parked.next_due().filter(|_| !self.shared.alone.get());
        let store = self.shared.store_down_until.get();
        let parked = parked.map(|due| due.max(store.unwrap_or(due)));
        let store = store.filter(|until| !self.ready.is_empty() && *until > Instant::now());
        [parked, gate, store].into_iter().flatten().fold(stall, Instant::min)
    }

    /// Whether the lane is silent though the broker has something for it.
    async fn is_suspicious(&mut self, lane: &dyn Lane) -> bool {
        let silent = self.last_delivery.elapsed() >= self.settings().stall_after;
        if !silent || self.room() == 0 || !lane.is_active() {
            return false;
        }
        self.last_delivery = Instant::now();
        let scope = &self.shared.scope;
        let source = scope.source.load_full();
        let depth = self.shared.broker.depth(&source);
        let depth = tokio::time::timeout(STALL_QUERY_MAX, depth).await;
        matches!(depth, Ok(Ok(depth)) if depth.ready.is_some_and(|ready| ready > 0))
    }
}

fn unknown_type(settings: &config::Subscription, work: &Work) -> Verdict {
    let kind = work.received.envelope.kind().unwrap_or("(none)");
    let shown: String = kind.chars().take(100).collect();
    let error = format!("no handler is for messages of type `{shown}`; see `on_unknown_type`");
    match settings.on_unknown_type {
        config::OnUnknownType::DeadLetter => {
            Verdict::Dead(Epitaph::new(Reason::UnknownType, error))
        }
        config::OnUnknownType::Ignore => Verdict::Ignore(Fault { error, class: None }),
    }
}
