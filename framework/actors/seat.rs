//! A handler's place in its subscription: the queue of its work, and who is told when it is vacant.
//!
//! Owns the queue while no actor has it; outlives the actors that sit in it one after another. Runs
//! nothing.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc;

use super::letter::{Letter, Opened};
use super::tenure::Tenure;
use crate::pipeline::Scope;

/// Work on its way from a consumer to a handler actor, and the way back.
pub(crate) struct Dispatch {
    pub(crate) letter: Letter,
    pub(crate) reply: mpsc::Sender<Letter>,
    /// Of the lane that delivered it.
    pub(crate) tenure: Arc<Tenure>,
}

/// A handler's place: outlives the actors that sit in it one after another.
pub(crate) struct Seat {
    /// Which of the subscription's seats it is.
    pub(crate) index: usize,
    pub(crate) scope: Arc<Scope>,
    /// The queue of work, while no actor has it.
    inbox: Mutex<Option<mpsc::UnboundedReceiver<Dispatch>>>,
    /// Told when an actor has left the seat.
    exits: mpsc::Sender<Exit>,
    /// The supervisor has yet to hear that a thread of the seat could not make its actor.
    tells_not_made: AtomicBool,
}

/// How many exits of one seat the channel has room for: one actor leaves at a time, and beside that one was not made.
pub(super) const EXITS_MAX: usize = 2;

/// An actor left its seat.
#[derive(Debug)]
pub(crate) struct Exit {
    pub(crate) seat: usize,
    pub(crate) why: ExitReason,
}

/// Why an actor left its seat.
#[derive(Debug)]
pub(crate) enum ExitReason {
    /// Its handler panicked over a message, which was charged with it.
    Panicked,
    /// It stopped, or died, by itself; or could not be made at all.
    Died(String),
    /// One of its threads could not make its actor; it tries again by itself, and the others go on.
    NotMade(String),
    /// No more work will come.
    Finished,
}

impl Seat {
    pub(crate) fn new(
        index: usize,
        scope: Arc<Scope>,
        inbox: mpsc::UnboundedReceiver<Dispatch>,
        exits: mpsc::Sender<Exit>,
    ) -> Self {
        Self {
            index,
            scope,
            inbox: Mutex::new(Some(inbox)),
            exits,
            tells_not_made: AtomicBool::new(false),
        }
    }

    /// The queue of work, for the actor that sits down; `None` if another has it.
    pub(super) fn take(&self) -> Option<mpsc::UnboundedReceiver<Dispatch>> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The queue of work, for the next actor.
    pub(super) fn give_back(&self, inbox: mpsc::UnboundedReceiver<Dispatch>) {
        *self.inbox.lock().unwrap_or_else(PoisonError::into_inner) = Some(inbox);
    }

    /// Hands back what waits in the queue, undecided, if no actor has it and none will.
    pub(super) fn put_all_down(&self) {
        let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(inbox) = inbox.as_mut() else { return };
        while let Ok(Dispatch { letter, reply, .. }) = inbox.try_recv() {
            drop(Opened::new(letter, reply));
        }
    }

    /// The supervisor has heard that an actor could not be made.
    pub(super) fn is_heard(&self) {
        self.tells_not_made.store(false, Ordering::Release);
    }

    /// Tells the supervisor. The channel always has room: however many threads cannot make their actors, it hears of one
    /// of them at a time, and another seat's exit is never lost for them.
    pub(crate) fn report(&self, why: ExitReason) {
        if matches!(why, ExitReason::NotMade(_)) && self.tells_not_made.swap(true, Ordering::AcqRel)
        {
            return;
        }
        let _ = self.exits.try_send(Exit { seat: self.index, why });
    }
}
