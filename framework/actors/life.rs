//! The life of a handler actor, held from outside its context.
//!
//! An `AtomicResponse` runs where nothing of ours can catch its panic or end it: in the context
//! itself, before everything else that lives there, the pump included. So the context is driven
//! from here, where both can be seen. Owns what the message under way is charged with when its
//! actor ends for it. Knows no message.

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
    /// The slot of the message whose answer blocks the actor.
    blocking: Cell<Option<usize>>,
    /// Ends the actor when that takes too long.
    timer: RefCell<Option<AbortHandle>>,
    /// What the message is charged with.
    charge: RefCell<Option<Answer>>,
    cut: Notify,
}

impl Life {
    /// A message's answer blocks the actor from now on, and may do so for `limit`.
    pub(super) fn block(self: &Rc<Self>, slot: usize, limit: Duration) {
        self.blocking.set(Some(slot));
        let life = Rc::clone(self);
        let timer = actix_rt::spawn(async move {
            tokio::time::sleep(limit).await;
            *life.charge.borrow_mut() = Some(Answer::TimedOut(limit));
            life.cut.notify_one();
        });
        *self.timer.borrow_mut() = Some(timer.abort_handle());
    }

    pub(super) fn is_blocked(&self) -> bool {
        self.blocking.get().is_some()
    }

    /// The message in `slot` is answered.
    pub(super) fn unblock(&self, slot: usize) {
        if self.blocking.get() == Some(slot) {
            self.blocking.set(None);
            self.stop_timer();
        }
    }

    /// What the message in `slot` is charged with, if its actor ended for it.
    pub(super) fn charge_of(&self, slot: usize) -> Option<Answer> {
        (self.blocking.get() == Some(slot)).then(|| self.charge.borrow_mut().take()).flatten()
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
            *life.charge.borrow_mut() = Some(Answer::Panicked(panic_message(panic.as_ref())));
        },
        () = life.cut.notified() => {}
    }
    // The context polls itself once more when it is dropped, and a future that panicked may panic
    // again at that.
    let _ = std::panic::catch_unwind(AssertUnwindSafe(move || drop(context)));
    life.stop_timer();
}
