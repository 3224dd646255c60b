//! Gathers deliveries into batches for handlers that want several at once.
//!
//! Owns the deliveries of a batch that is not full yet, when it is handed over all the same, and
//! the handlers of batches at work, with their time. Never decides what becomes of a delivery.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use actix::prelude::*;
use futures_util::StreamExt;
use futures_util::future::{Either, join_all, select};
use futures_util::stream::FuturesUnordered;
use tokio::sync::oneshot;
use tokio::time::Sleep;

use super::answer::IntoRunning;
use super::pump::Station;
use super::seat::Seat;
use crate::message::{Batch, Delivery, Handled};
use crate::pipeline::{Answer, Running, caught, unanswered};
use crate::store::Gathering;

/// A batch in the making, and those at work.
pub(super) struct Batches<T> {
    size: usize,
    wait: Duration,
    timeout: Duration,
    deliveries: Vec<Delivery<T>>,
    replies: Vec<oneshot::Sender<Answer>>,
    /// Ends the wait for more.
    due: Option<Pin<Box<Sleep>>>,
    /// Dropped with the actor, or at their timeout.
    at_work: FuturesUnordered<Pin<Box<dyn Future<Output = ()>>>>,
    /// The batch at work keeps everything else of its actor waiting.
    blocks: bool,
    /// Those of the batch that is in the making share the locks they have.
    gathering: Gathering,
}

impl<T> Batches<T> {
    pub(super) fn new(seat: &Arc<Seat>) -> Self {
        let batch = seat.scope.settings.batch.clone().unwrap_or_default();
        Self {
            size: batch.size.get(),
            wait: batch.wait,
            timeout: seat.scope.settings.timeout,
            deliveries: Vec::new(),
            replies: Vec::new(),
            due: None,
            at_work: FuturesUnordered::new(),
            blocks: false,
            gathering: Gathering::default(),
        }
    }

    /// Those that somebody waits for: whose lock or claim was lost while the batch gathered, or whose lane went to
    /// somebody else, comes another time.
    fn wanted(&mut self) -> (Vec<Delivery<T>>, Vec<oneshot::Sender<Answer>>) {
        let gathered = self.deliveries.drain(..).zip(self.replies.drain(..));
        gathered.filter(|(_, reply)| !reply.is_closed()).unzip()
    }

    fn hand_over<A>(&mut self, actor: &mut A, ctx: &mut A::Context)
    where
        A: Actor<Context = Context<A>> + Handler<Batch<T>>,
        A::Result: IntoRunning<A, Vec<Handled>>,
        T: 'static,
    {
        self.due = None;
        self.gathering.begin_anew();
        let (deliveries, replies) = self.wanted();
        if deliveries.is_empty() {
            return;
        }
        let begun = caught(|| actor.handle(Batch { deliveries }, ctx).into_running(ctx).0);
        let running = begun.unwrap_or_else(Running::Panicked);
        self.blocks = matches!(running, Running::Reply(_));
        self.at_work.push(Box::pin(at_work(running, replies, self.timeout)));
    }
}

/// Drives a batch to its answers, or as long as anybody waits for one: those whose claim or lock
/// was lost do not.
async fn at_work(
    running: Running<Vec<Handled>>,
    mut replies: Vec<oneshot::Sender<Answer>>,
    timeout: Duration,
) {
    let answers = {
        let unwanted = join_all(replies.iter_mut().map(oneshot::Sender::closed));
        match select(pin!(answers_of(running, timeout)), pin!(unwanted)).await {
            Either::Left((answers, _)) => answers,
            Either::Right(_) => return,
        }
    };
    distribute(replies, answers);
}

/// What came of a batch as a whole.
enum Answers {
    Each(Vec<Handled>),
    Panicked(String),
    TimedOut(Duration),
    /// Its actor was gone before it answered.
    Interrupted,
}

/// Waits for a batch to be handled, for at most `timeout`; then what is dropped is its handler.
async fn answers_of(running: Running<Vec<Handled>>, timeout: Duration) -> Answers {
    match running {
        Running::Done(answers) => Answers::Each(answers),
        Running::Panicked(panic) => Answers::Panicked(panic),
        Running::Future(future) => match tokio::time::timeout(timeout, future).await {
            Ok(Ok(answers)) => Answers::Each(answers),
            Ok(Err(panic)) => Answers::Panicked(panic),
            Err(_) => Answers::TimedOut(timeout),
        },
        Running::Watched(reply) => match tokio::time::timeout(timeout, reply).await {
            Ok(Ok(Ok(answers))) => Answers::Each(answers),
            Ok(Ok(Err(panic))) => Answers::Panicked(panic),
            Ok(Err(_)) => Answers::Interrupted,
            Err(_) => Answers::TimedOut(timeout),
        },
        // Nothing here is polled while it runs: `Life` keeps its time.
        Running::Reply(reply) => reply.await.map_or(Answers::Interrupted, Answers::Each),
        // No handler of batches is gathered into another.
        Running::Gathered(_) => Answers::Interrupted,
    }
}

/// Gives each delivery its own answer; what was not answered failed.
fn distribute(replies: Vec<oneshot::Sender<Answer>>, answers: Answers) {
    let answer_of_each: Vec<Answer> = match answers {
        Answers::Each(answers) => {
            let missing = std::iter::repeat_with(|| Err(unanswered()));
            answers.into_iter().chain(missing).take(replies.len()).map(Answer::from).collect()
        }
        Answers::Panicked(panic) => {
            replies.iter().map(|_| Answer::Panicked(panic.clone())).collect()
        }
        Answers::TimedOut(limit) => replies.iter().map(|_| Answer::TimedOut(limit)).collect(),
        Answers::Interrupted => replies.iter().map(|_| Answer::Interrupted).collect(),
    };
    for (reply, answer) in replies.into_iter().zip(answer_of_each) {
        // Nobody waits for it where its claim or its lock was lost.
        let _ = reply.send(answer);
    }
}

impl<A, T> Station<A, T> for Batches<T>
where
    A: Actor<Context = Context<A>> + Handler<Batch<T>>,
    A::Result: IntoRunning<A, Vec<Handled>>,
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
        Running::Gathered(answer)
    }

    fn poll(&mut self, actor: &mut A, ctx: &mut A::Context, cx: &mut TaskContext<'_>) {
        let due = self.due.as_mut().is_some_and(|due| due.as_mut().poll(cx) == Poll::Ready(()));
        if due {
            self.hand_over(actor, ctx);
        }
        while let Poll::Ready(Some(())) = self.at_work.poll_next_unpin(cx) {}
        self.blocks &= !self.at_work.is_empty();
    }

    fn blocks(&self) -> bool {
        self.blocks
    }

    fn gathering(&self) -> Option<Gathering> {
        Some(self.gathering.clone())
    }
}
