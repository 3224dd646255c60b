//! The life of a handler actor, held from outside its context.
//!
//! An `AtomicResponse` runs where nothing of ours can catch its panic or end it: in the context
//! itself, before everything else that lives there, the pump included. So the context is driven
//! from here, where both can be seen. Owns what the messages under way are charged with when their
//! actor ends for them. Knows no message.

use std::cell::{Cell, RefCell};
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::time::Duration;

use actix::dev::ContextFut;
use actix::prelude::*;
use futures_util::FutureExt;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use crate::pipeline::{Answer, panic_message};

/// Held by the pump and by whatever drives the actor.
#[derive(Default)]
pub(super) struct Life {
    /// The slots of the messages whose handler has begun and is charged if the actor ends for it.
    members: RefCell<Vec<usize>>,
    /// Their answer keeps everything else of the actor waiting.
    blocked: Cell<bool>,
    /// Ends the actor when that takes too long.
    timer: RefCell<Option<AbortHandle>>,
    /// What the messages are charged with.
    charge: RefCell<Option<Charge>>,
    cut: Notify,
}

/// Why an actor ended for the messages whose answer blocked it.
#[derive(Clone)]
enum Charge {
    Panicked(String),
    TimedOut(Duration),
}

impl Life {
    /// The message in `slot` is one of those that the handler answers together.
    pub(super) fn join(&self, slot: usize) {
        self.members.borrow_mut().push(slot);
    }

    /// The answer to those that have joined blocks the actor from now on, and may do so for `limit`.
    pub(super) fn block(self: &Rc<Self>, limit: Duration) {
        self.blocked.set(true);
        let life = Rc::clone(self);
        let timer = actix_rt::spawn(async move {
            tokio::time::sleep(limit).await;
            *life.charge.borrow_mut() = Some(Charge::TimedOut(limit));
            life.cut.notify_one();
        });
        *self.timer.borrow_mut() = Some(timer.abort_handle());
    }

    pub(super) fn is_blocked(&self) -> bool {
        self.blocked.get()
    }

    /// Whether it is the answer to the message in `slot` that blocks the actor.
    pub(super) fn blocks(&self, slot: usize) -> bool {
        self.blocked.get() && self.members.borrow().contains(&slot)
    }

    /// The message in `slot` is answered; when all that have joined are, nothing is blocked.
    pub(super) fn answered(&self, slot: usize) {
        let mut members = self.members.borrow_mut();
        let Some(place) = members.iter().position(|member| *member == slot) else { return };
        members.swap_remove(place);
        if members.is_empty() && self.blocked.replace(false) {
            self.stop_timer();
        }
    }

    /// What the message in `slot` is charged with, if its actor ended for it.
    pub(super) fn charge_of(&self, slot: usize) -> Option<Answer> {
        let is_charged = self.blocked.get() && self.members.borrow().contains(&slot);
        let charge = is_charged.then(|| self.charge.borrow().clone()).flatten()?;
        Some(match charge {
            Charge::Panicked(panic) => Answer::Panicked(panic),
            Charge::TimedOut(limit) => Answer::TimedOut(limit),
        })
    }

    fn stop_timer(&self) {
        if let Some(timer) = self.timer.borrow_mut().take() {
            timer.abort();
        }
    }
}

/// Lives an actor's life to its end.
pub(super) async fn live<A: Actor<Context = Context<A>>>(
    context: ContextFut<A, Context<A>>,
    life: Rc<Life>,
) {
    let mut context = Box::pin(AssertUnwindSafe(context).catch_unwind());
    tokio::select! {
        ended = &mut context => if let Err(panic) = ended {
            *life.charge.borrow_mut() = Some(Charge::Panicked(panic_message(panic.as_ref())));
        },
        () = life.cut.notified() => {}
    }
    // The context polls itself once more when it is dropped, and a future that panicked may panic
    // again at that.
    let _ = std::panic::catch_unwind(AssertUnwindSafe(move || drop(context)));
    life.stop_timer();
}
