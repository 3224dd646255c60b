//! Gathers deliveries into batches for handlers that want several at once.
//!
//! Owns the deliveries of a batch that is not full yet, and when it is handed over all the same.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use actix::dev::MessageResponse;
use actix::prelude::*;
use tokio::sync::oneshot;
use tokio::time::Sleep;

use super::panics::Note;
use super::pump::{Seat, Station};
use crate::message::{Batch, Delivery, Handled};
use crate::pipeline::{Running, caught, unanswered};

type Reply = oneshot::Sender<Result<Handled, String>>;

/// A batch in the making.
pub(super) struct Batches<T> {
    size: usize,
    wait: Duration,
    deliveries: Vec<Delivery<T>>,
    replies: Vec<Reply>,
    /// What a panic in a batch's future said.
    note: Note,
    /// Ends the wait for more.
    due: Option<Pin<Box<Sleep>>>,
}

impl<T> Batches<T> {
    pub(super) fn new(seat: &Arc<Seat>) -> Self {
        let batch = seat.scope.settings.batch.clone().unwrap_or_default();
        Self {
            size: batch.size.get(),
            wait: batch.wait,
            deliveries: Vec::new(),
            replies: Vec::new(),
            note: Note::default(),
            due: None,
        }
    }

    fn hand_over<A>(&mut self, actor: &mut A, ctx: &mut A::Context)
    where
        A: Actor<Context = Context<A>> + Handler<Batch<T>>,
        A::Result: MessageResponse<A, Batch<T>>,
        T: 'static,
    {
        self.due = None;
        let deliveries = std::mem::take(&mut self.deliveries);
        let replies = std::mem::take(&mut self.replies);
        let (reply, answers) = oneshot::channel();
        let note = self.note.clone();
        note.watch_this_thread();
        // What was said about an earlier batch.
        note.take();
        let begun = caught(|| {
            let response = actor.handle(Batch { deliveries }, ctx);
            MessageResponse::handle(response, ctx, Some(reply));
        });
        match begun {
            Err(panic) => distribute(replies, Err(panic)),
            Ok(()) => {
                actix_rt::spawn(async move {
                    // Dropped unanswered: it panicked in its future. Where its actor ended, nobody
                    // waits for these replies any more.
                    let answers = answers.await.map_err(|_| {
                        let panic = note.take();
                        panic.unwrap_or_else(|| String::from("the handler of the batch gave up"))
                    });
                    distribute(replies, answers);
                });
            }
        }
    }
}

/// Gives each delivery its own answer; what was not answered failed.
fn distribute(replies: Vec<Reply>, answers: Result<Vec<Handled>, String>) {
    match answers {
        Err(panic) => {
            for reply in replies {
                let _ = reply.send(Err(panic.clone()));
            }
        }
        Ok(answers) => {
            let missing = std::iter::repeat_with(|| Err(unanswered()));
            for (reply, answer) in replies.into_iter().zip(answers.into_iter().chain(missing)) {
                let _ = reply.send(Ok(answer));
            }
        }
    }
}

impl<A, T> Station<A, T> for Batches<T>
where
    A: Actor<Context = Context<A>> + Handler<Batch<T>>,
    A::Result: MessageResponse<A, Batch<T>>,
    T: 'static,
{
    fn call(&mut self, actor: &mut A, ctx: &mut A::Context, delivery: Delivery<T>) -> Running {
        let (reply, answer) = oneshot::channel();
        if self.deliveries.is_empty() {
            self.due = Some(Box::pin(tokio::time::sleep(self.wait)));
        }
        self.deliveries.push(delivery);
        self.replies.push(reply);
        if self.deliveries.len() >= self.size {
            self.hand_over(actor, ctx);
        }
        Running::Watched(answer)
    }

    fn poll(&mut self, actor: &mut A, ctx: &mut A::Context, cx: &mut TaskContext<'_>) {
        let due = self.due.as_mut().is_some_and(|due| due.as_mut().poll(cx) == Poll::Ready(()));
        if due {
            self.hand_over(actor, ctx);
        }
    }
}
