//! Drives deliveries through a handler actor, from within the actor's own context.
//!
//! A mailbox envelope for each message would cost ten times the rest of the path (3,700
//! instructions against 370, measured with actix 0.13). So the consumer sends work in batches over
//! a channel, and this future, which lives in the user's actor, takes it from there: it runs
//! `process()` for each message and, when that asks for the handler, calls `Handler::handle` with
//! the actor and its context at hand. The actor's mailbox and timers are served in between.
//!
//! Owns the messages that run on one actor, and its seat: an actor that a panic may have broken
//! gives that up at once, and ends when what it runs is done.

mod guarded;
mod plain;

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use actix::{Actor, ActorContext, ActorFuture};
use tokio::sync::mpsc;

use guarded::Guarded;
use plain::Progress;

use super::calls::Calls;
use super::letter::Opened;
use super::life::Life;
use super::seat::{Dispatch, ExitReason, Seat};
use super::slots::Slots;
use super::tenure::Tenure;
use super::ticket::{Caller, Start, Ticket, Workplace, run};
use crate::message::Delivery;
use crate::pipeline::{Running, SharedCodecs, Work, caught, may_ask_together};
use crate::store::Gathering;
use crate::telemetry;

/// After so many messages the pump gives way to the actor's mailbox and timers. Letters are no longer than that.
const TURN_MAX: usize = 256;

/// How a delivery is put to an actor; what differs between single, batched and blocking handlers.
pub(super) trait Station<A: Actor, T> {
    /// Begins with one delivery; a panic of the user's code may come through.
    fn call(&mut self, actor: &mut A, ctx: &mut A::Context, delivery: Delivery<T>) -> Running;

    /// Does what is due by time.
    fn poll(&mut self, actor: &mut A, ctx: &mut A::Context, cx: &mut Context<'_>);

    /// Whether what was begun keeps everything else of the actor waiting, the pump included.
    fn blocks(&self) -> bool {
        false
    }

    /// Where deliveries are gathered: the batch that the next call will be in.
    fn gathering(&self) -> Option<Gathering> {
        None
    }

    /// Whether a handler that takes too long can be aborted.
    const CAN_ABORT: bool = true;

    /// Whether a panic of a handler may have broken the state of the actor that the pump lives in.
    const BREAKS: bool = true;
}

/// The future that lives in a handler actor's context.
struct Pump<T, S, F, M> {
    seat: Arc<Seat>,
    inbox: Option<mpsc::UnboundedReceiver<Dispatch>>,
    workplace: Rc<Workplace<T>>,
    station: S,
    slots: Slots<F>,
    /// Letters whose messages ask for their claims, or end them, together.
    guarded: Vec<Guarded>,
    /// Makes the future of a message.
    make: M,
    woken: Vec<usize>,
    finished: bool,
}

/// What is pinned in it is pinned in boxes.
impl<T, S, F, M> Unpin for Pump<T, S, F, M> {}

/// A pump for the actor that is about to sit in `seat`; `None` if the seat is taken.
pub(super) fn pump<A: Actor, T: 'static, S: Station<A, T> + 'static>(
    seat: Arc<Seat>,
    codecs: SharedCodecs<T>,
    station: S,
) -> Option<(impl ActorFuture<A, Output = ()> + 'static, Rc<Life>)> {
    let inbox = seat.take()?;
    let life = Rc::new(Life::default());
    let workplace = Rc::new(Workplace {
        scope: Arc::clone(&seat.scope),
        codecs,
        calls: Calls::default(),
        gathering: station.gathering(),
        outbox: RefCell::default(),
        breaks: S::BREAKS,
        broken: Cell::new(false),
        life: Rc::clone(&life),
    });
    let at = Rc::clone(&workplace);
    let make = move |slot, ticket, start, tenure| {
        let caller = Caller { workplace: Rc::clone(&at), slot, can_abort: S::CAN_ABORT, tenure };
        run(ticket, caller, start)
    };
    let (slots, guarded, woken) = (Slots::new(), Vec::new(), Vec::new());
    let (inbox, finished) = (Some(inbox), false);
    let pump = Pump { seat, inbox, workplace, station, slots, guarded, make, woken, finished };
    Some((pump, life))
}

impl<A, T, S, F, M> ActorFuture<A> for Pump<T, S, F, M>
where
    A: Actor,
    T: 'static,
    S: Station<A, T>,
    F: Future<Output = ()>,
    M: Fn(usize, Ticket<T>, Start, Arc<Tenure>) -> F,
{
    type Output = ();

    fn poll(
        mut self: Pin<&mut Self>,
        actor: &mut A,
        ctx: &mut A::Context,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        let pump = &mut *self;
        pump.slots.register(cx.waker());
        // What this turn asks for leaves together.
        let gathers = pump.workplace.scope.guards.gather();
        let given_way = pump.turn(actor, ctx, cx);
        drop(gathers);
        pump.station.poll(actor, ctx, cx);
        pump.note_blocking::<A>();
        pump.workplace.outbox.borrow_mut().flush();
        if given_way {
            cx.waker().wake_by_ref();
        }
        if pump.workplace.broken.get() {
            // Whatever else it runs goes on here; what comes next is for the actor that is made now.
            pump.leave(ExitReason::Panicked);
        }
        let leaves = pump.finished || pump.inbox.is_none();
        if leaves && pump.slots.running() == 0 && pump.guarded.is_empty() {
            ctx.stop();
            return Poll::Ready(());
        }
        Poll::Pending
    }
}

impl<T, S, F, M> Pump<T, S, F, M>
where
    T: 'static,
    F: Future<Output = ()>,
    M: Fn(usize, Ticket<T>, Start, Arc<Tenure>) -> F,
{
    /// Goes on with what was woken and begins what has come; true if there is more to do.
    fn turn<A: Actor>(&mut self, actor: &mut A, ctx: &mut A::Context, cx: &mut Context<'_>) -> bool
    where
        S: Station<A, T>,
    {
        let mut woken = std::mem::take(&mut self.woken);
        self.slots.take_woken(&mut woken);
        for slot in woken.drain(..) {
            self.slots.poll(slot);
            self.serve(actor, ctx);
        }
        self.woken = woken;
        self.poll_guarded((&mut *actor, &mut *ctx, &mut *cx));
        let mut turns = 0;
        while turns < TURN_MAX {
            // A broken actor finishes what it has and takes nothing new.
            if self.finished || self.workplace.broken.get() {
                return false;
            }
            let Some(inbox) = &mut self.inbox else { return false };
            match inbox.poll_recv(cx) {
                Poll::Pending => return false,
                Poll::Ready(None) => self.finished = true,
                Poll::Ready(Some(dispatch)) => {
                    turns += dispatch.letter.len();
                    self.begin(dispatch, actor, ctx, cx);
                }
            }
        }
        true
    }

    fn begin<A: Actor>(
        &mut self,
        Dispatch { letter, reply, tenure }: Dispatch,
        actor: &mut A,
        ctx: &mut A::Context,
        cx: &mut Context<'_>,
    ) where
        S: Station<A, T>,
    {
        if let Some(Some(first)) = letter.first() {
            self.workplace.outbox.borrow_mut().address(first.work.lane, &reply);
        }
        let scope = &self.workplace.scope;
        let is_followed = telemetry::follows();
        let is_plain = scope.guards.is_empty() && !is_followed;
        let asks_together =
            may_ask_together(scope) && self.workplace.gathering.is_none() && !is_followed;
        let began = Instant::now();
        let mut letter = Opened::new(letter, reply);
        if asks_together {
            return self.ask_together(letter, tenure, (actor, ctx, cx));
        }
        let mut progress = Progress::default();
        while progress.place < letter.len() {
            let mut begun = None;
            if is_plain && !self.workplace.life.is_blocked() {
                let at = (&mut *actor, &mut *ctx, &mut *cx);
                begun = self.handle_at_once(&mut letter, &mut progress, &tenure, at);
            }
            if begun.is_none() && (self.workplace.broken.get() || !tenure.is_open()) {
                // The rest goes to the next actor, or came from a lane that is gone.
                break;
            }
            if let Some(work) = letter.take(progress.place) {
                let start = begun.map_or(Start::Anew, |running| Start::Begun(running, None));
                self.go_on_in_a_slot(work, start, &tenure, (&mut *actor, &mut *ctx));
            }
            progress.place += 1;
        }
        self.observe(&progress, began);
        self.workplace.outbox.borrow_mut().keep(letter.close());
    }

    /// Those that were answered at once share the time of their letter evenly; what runs in a slot is timed by itself.
    fn observe(&self, progress: &Progress, began: Instant) {
        if progress.at_once > 0 {
            let each = began.elapsed() / progress.at_once;
            self.workplace.scope.metrics.handler_time.observe(each, progress.at_once);
        }
    }

    /// Gives a message a future of its own, from where it is, and serves it.
    fn go_on_in_a_slot<A: Actor>(
        &mut self,
        work: Work,
        start: Start,
        tenure: &Arc<Tenure>,
        (actor, ctx): (&mut A, &mut A::Context),
    ) where
        S: Station<A, T>,
    {
        let ticket = Ticket { work: Some(work), slot: None, workplace: Rc::clone(&self.workplace) };
        let way = match &start {
            Start::Begun(running, _) => Way::of(running),
            Start::Anew | Start::Admitted(_) | Start::Answered(..) => Way::Alone,
        };
        let make = &self.make;
        let slot = self.slots.insert(|slot| make(slot, ticket, start, Arc::clone(tenure)));
        self.note_begun::<A>(slot, way);
        self.slots.poll(slot);
        self.serve(actor, ctx);
    }

    /// Notes whom the actor's end would be charged to.
    fn note_begun<A: Actor>(&self, slot: usize, way: Way)
    where
        S: Station<A, T>,
    {
        match way {
            Way::Alone => {}
            Way::Together => {
                self.workplace.life.join(slot);
                self.note_blocking::<A>();
            }
            Way::Blocking => {
                self.workplace.life.join(slot);
                self.workplace.life.block(self.workplace.scope.settings.timeout);
            }
        }
    }

    /// Keeps the time of a batch whose answer blocks the actor, from the moment it does.
    fn note_blocking<A: Actor>(&self)
    where
        S: Station<A, T>,
    {
        if self.station.blocks() && !self.workplace.life.is_blocked() {
            self.workplace.life.block(self.workplace.scope.settings.timeout);
        }
    }

    /// Puts to the handler what is to be put to it.
    fn serve<A: Actor>(&mut self, actor: &mut A, ctx: &mut A::Context)
    where
        S: Station<A, T>,
    {
        // An answer that blocks the actor is the only one under way, so that it is known whose
        // panic ends the actor.
        while !self.workplace.life.is_blocked() {
            let Some((slot, delivery)) = self.workplace.calls.next() else { return };
            let running = caught(|| self.station.call(actor, ctx, delivery));
            let running = running.unwrap_or_else(Running::Panicked);
            self.note_begun::<A>(slot, Way::of(&running));
            self.workplace.calls.answer(slot, running);
            self.slots.poll(slot);
        }
    }
}

/// The actor is gone, by whatever way: every message comes out, the next actor gets the queue.
impl<T, S, F, M> Drop for Pump<T, S, F, M> {
    fn drop(&mut self) {
        self.slots.clear();
        self.guarded.clear();
        self.workplace.outbox.borrow_mut().flush();
        self.leave(if self.finished {
            ExitReason::Finished
        } else if self.workplace.broken.get() {
            ExitReason::Panicked
        } else {
            ExitReason::Died(String::from("the handler actor stopped by itself"))
        });
    }
}

impl<T, S, F, M> Pump<T, S, F, M> {
    /// Gives up the seat, once: the queue goes to the next actor.
    fn leave(&mut self, why: ExitReason) {
        if let Some(inbox) = self.inbox.take() {
            self.seat.give_back(inbox);
            self.seat.report(why);
        }
    }
}

/// How a handler answers, as far as it matters when its actor ends.
#[derive(Clone, Copy)]
enum Way {
    /// For its own message, while the actor goes on.
    Alone,
    /// For several messages.
    Together,
    /// For its own message, and the actor waits for it.
    Blocking,
}

impl Way {
    fn of(running: &Running) -> Self {
        match running {
            Running::Reply(_) => Self::Blocking,
            Running::Gathered(_) => Self::Together,
            Running::Done(_) | Running::Future(_) | Running::Watched(_) | Running::Panicked(_) => {
                Self::Alone
            }
        }
    }
}
