//! One message in the hands of a handler actor: its way through `process()`, and out again.
//!
//! Owns that each comes out exactly once: with a verdict, or as [`Verdict::Again`], whatever becomes of the future
//! that runs it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::calls::Calls;
use super::life::Life;
use super::outbox::Outbox;
use super::tenure::Tenure;
use crate::message::{Delivery, trace_of};
use crate::pipeline::{
    Answer, Call, Held, Outcome, Running, Scope, SharedCodecs, Verdict, Work, await_verdict,
    conclude, handle_under, judge, process,
};
use crate::store::{Gathering, Scope as Holding, Sharing};
use crate::telemetry::{self, Instrument};

/// How soon a message comes back that was late for its batch.
const LATE_DELAY: Duration = Duration::from_millis(50);

/// What a pump and the messages that run in it share.
pub(super) struct Workplace<T> {
    pub(super) scope: Arc<Scope>,
    pub(super) codecs: SharedCodecs<T>,
    pub(super) calls: Calls<Delivery<T>, Running>,
    /// The batch that the next call will be in, where there are batches.
    pub(super) gathering: Option<Gathering>,
    pub(super) outbox: RefCell<Outbox>,
    /// Whether a panic breaks the actor's state.
    pub(super) breaks: bool,
    /// A handler panicked: this actor's state may be broken.
    pub(super) broken: Cell<bool>,
    pub(super) life: Rc<Life>,
}

/// One message's way to the handler.
pub(super) struct Caller<T> {
    pub(super) workplace: Rc<Workplace<T>>,
    pub(super) slot: usize,
    pub(super) can_abort: bool,
    pub(super) tenure: Arc<Tenure>,
}

impl<T> Call<T> for Caller<T> {
    async fn begin(&self, delivery: Delivery<T>) -> Running {
        if !self.workplace.is_in_time(&delivery) {
            let why = "its batch began without it, with the lock that it would have shared";
            let (answer, answered) = oneshot::channel();
            let _ = answer.send(Answer::Later(LATE_DELAY, why.into()));
            return Running::Gathered(answered);
        }
        self.workplace.calls.ask(self.slot, delivery).await
    }

    fn can_abort(&self) -> bool {
        self.can_abort
    }

    fn sharing(&self) -> Sharing {
        match &self.workplace.gathering {
            Some(gathering) => Sharing::Batch(gathering.clone()),
            None => Sharing::Alone(Holding::new()),
        }
    }
}

impl<T> Workplace<T> {
    /// After a panic nothing more is begun on this actor, where its state may be broken.
    pub(super) fn note_panic(&self, verdict: &Verdict) {
        if self.breaks && verdict.is_panic() {
            self.broken.set(true);
        }
    }

    /// Whether a delivery comes into the batch that it had its lock in. It always does, as nothing
    /// is awaited in between; if that ever changed, two batches would run under one lock.
    fn is_in_time(&self, delivery: &Delivery<T>) -> bool {
        match (&self.gathering, delivery.locks()) {
            (Some(gathering), Some(locks)) => locks.are_within(&gathering.scope()),
            _ => true,
        }
    }
}

/// Sees to it that a message comes out again, whatever becomes of the future that runs it.
pub(super) struct Ticket<T> {
    pub(super) work: Option<Work>,
    /// Where its future is, once it has one.
    pub(super) slot: Option<usize>,
    pub(super) workplace: Rc<Workplace<T>>,
}

impl<T> Drop for Ticket<T> {
    fn drop(&mut self) {
        let Some(work) = self.work.take() else { return };
        let charge = self.slot.and_then(|slot| self.workplace.life.charge_of(slot));
        let verdict = match charge {
            Some(answer) => {
                self.workplace.broken.set(true);
                judge(answer, &work, &self.workplace.scope)
            }
            None => Verdict::Again,
        };
        self.workplace.outbox.borrow_mut().push(Outcome { work, verdict });
    }
}

impl<T> Ticket<T> {
    fn conclude(mut self, verdict: Verdict) {
        self.workplace.note_panic(&verdict);
        if let Some(slot) = self.slot {
            self.workplace.life.answered(slot);
        }
        if let Some(work) = self.work.take() {
            self.workplace.outbox.borrow_mut().push(Outcome { work, verdict });
        }
    }
}

/// From where a message goes on that has a future of its own.
pub(super) enum Start {
    /// From the beginning.
    Anew,
    /// It may be handled now; its guards were asked for with those of its letter.
    Admitted(Option<Box<Held>>),
    /// Its handler has begun and waits.
    Begun(Running, Option<Box<Held>>),
    /// Its handler has answered, and it was no simple success: what it holds is to be ended.
    Answered(Verdict, Box<Held>),
}

/// One message's way, from where it is.
pub(super) async fn run<T: 'static>(mut ticket: Ticket<T>, caller: Caller<T>, start: Start) {
    let workplace = Rc::clone(&ticket.workplace);
    ticket.slot = Some(caller.slot);
    let Some(work) = ticket.work.as_mut() else { return };
    let scope = &*workplace.scope;
    let decided = async {
        match start {
            Start::Answered(verdict, held) => conclude(held, verdict, work, scope).await,
            Start::Begun(running, held) => {
                await_verdict(running, held, work, scope, caller.can_abort).await
            }
            Start::Admitted(held) => {
                handle_under(held, work, scope, &workplace.codecs, &caller).await
            }
            Start::Anew => {
                let span = {
                    let envelope = work.received.envelope.as_ref();
                    let trace = || trace_of(envelope).map(|trace| trace.to_string());
                    telemetry::processing(scope.name(), || work.id(), trace)
                };
                process(work, scope, &workplace.codecs, &caller).instrument(span).await
            }
        }
    };
    let verdict = tokio::select! {
        biased;
        verdict = decided => verdict,
        // Whoever has its lane now has it too.
        () = cancelled(&caller) => Verdict::Again,
    };
    ticket.conclude(verdict);
}

/// Waits until a message is somebody else's; for ever where what runs cannot be ended.
async fn cancelled<T>(caller: &Caller<T>) {
    caller.tenure.revoked().await;
    // A thread goes on, and so does an answer that blocks its actor.
    if !caller.can_abort || caller.workplace.life.blocks(caller.slot) {
        std::future::pending::<()>().await;
    }
}
