//! The path of one message: from the broker's hands to a verdict.
//!
//! Knows no broker, no clock and no actor: that is what makes it testable. What became of the
//! verdict (acknowledged, copied, parked) is the business of the consumer and the retrier, which
//! hold the lane.

mod caught;
mod codec;
mod decide;
mod guarding;
pub(crate) mod guards;
mod lookup;
mod observe;
mod order;
mod retries;
mod screen;
mod work;

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use futures_util::future::{Either, select};
use futures_util::{FutureExt, TryFutureExt};
use tokio::sync::oneshot;

pub(crate) use caught::{Caught, caught, panic_message};
pub use codec::{Codec, Codecs, DecodeError, Json, Raw};
pub use decide::Reason;
pub(crate) use decide::{Answer, Epitaph, Fault, Verdict, Waiting, decide};
pub(crate) use observe::{Event, Observer};
pub(crate) use order::{ByOrder, OrderKey};
pub(crate) use retries::Retries;
pub(crate) use screen::{expires_at, screen};
#[cfg(feature = "__bench")]
pub(crate) use work::Tick;
pub(crate) use work::{Blanks, Outcome, Scope, Work, id_of};

use crate::config::TypeSource;
use crate::message::{Delivery, Failure, Handled};
use crate::store::{Scope as Holding, Sharing};
use crate::telemetry;
use guarding::Refusal;
pub(crate) use guarding::{
    claims_together, conclude, may_ask_together, note_granted, verdict_on_completion,
    verdict_on_loss, verdict_on_refusal,
};
use guards::Lost;
pub(crate) use guards::{Held, LetterClaims};

/// Takes one message from its receipt to the verdict on it.
///
/// Dropping the future gives the message up without a verdict: it was not handled, and no attempt
/// is counted.
pub(crate) async fn process<T: 'static, C: Call<T>>(
    work: &mut Work,
    scope: &Scope,
    codecs: &Codecs<T>,
    call: &C,
) -> Verdict {
    if let Some(epitaph) = work.doom.clone() {
        return match guarding::is_over(work, scope).await {
            Ok(true) => Verdict::Duplicate,
            Ok(false) => judge(Answer::Refused(epitaph), work, scope),
            Err(verdict) => verdict,
        };
    }
    let held = match guarding::admit(work, scope, || call.sharing()).await {
        Ok(held) => held,
        Err(Refusal::Verdict(verdict)) => return verdict,
        Err(Refusal::Answer(answer)) => return judge(answer, work, scope),
    };
    handle_under(held, work, scope, codecs, call).await
}

/// What is left of [`process`] for a message that may be handled now, under what it holds.
pub(crate) async fn handle_under<T: 'static, C: Call<T>>(
    held: Option<Box<Held>>,
    work: &mut Work,
    scope: &Scope,
    codecs: &Codecs<T>,
    call: &C,
) -> Verdict {
    let answer = match prepare(work, scope, codecs) {
        Ok(delivery) => {
            let handled = handle(delivery, work, scope, call);
            answer_under(held.as_deref(), handled, scope, call.can_abort()).await
        }
        Err(refusal) => Ok(refusal),
    };
    verdict_under(held, answer, work, scope).await
}

/// What is left of [`process`] for a message whose handler has begun and waits.
pub(crate) async fn await_verdict(
    running: Running,
    held: Option<Box<Held>>,
    work: &mut Work,
    scope: &Scope,
    can_abort: bool,
) -> Verdict {
    let handled = answer_in_time(running, work, scope, can_abort);
    let answer = answer_under(held.as_deref(), handled, scope, can_abort).await;
    verdict_under(held, answer, work, scope).await
}

/// The answer of a handler, timed; or what was lost meanwhile.
async fn answer_under(
    held: Option<&Held>,
    handled: impl Future<Output = Answer>,
    scope: &Scope,
    can_abort: bool,
) -> Result<Answer, Lost> {
    let began = Instant::now();
    let answer = unless_lost(handled, held, can_abort).await;
    scope.metrics.handler_time.observe(began.elapsed(), 1);
    answer
}

/// What becomes of a message after this answer, and its guards with it.
async fn verdict_under(
    held: Option<Box<Held>>,
    answer: Result<Answer, Lost>,
    work: &mut Work,
    scope: &Scope,
) -> Verdict {
    let is_lost = answer.is_err();
    let verdict = verdict_on(answer.unwrap_or_else(guarding::answer_to_loss), work, scope);
    match held {
        // It was cut off in the middle: whoever runs it next is told.
        Some(held) if is_lost && matches!(verdict, Verdict::Defer(_)) => {
            let _ = held.abandon().await;
            verdict
        }
        Some(held) => guarding::conclude(held, verdict, work, scope).await,
        None => verdict,
    }
}

/// A delivery for the handler, or why it gets none.
fn prepare<T: 'static>(
    work: &Work,
    scope: &Scope,
    codecs: &Codecs<T>,
) -> Result<Delivery<T>, Answer> {
    let envelope = work.received.envelope.as_ref();
    let body = envelope.body();
    screen(work, (envelope, body), scope).map_err(Answer::Refused)?;
    // Left here by the closure: as its answer, a large payload would be moved half a dozen times.
    let mut payload = None;
    // A codec is the user's code and meets hostile input, and so is its error: uncaught, a panic would end
    // the actor at each try, until the restarts are spent.
    let decode = || {
        codecs.decode(envelope, body).map(|decoded| payload = Some(decoded)).map_err(undecodable)
    };
    caught(decode)
        .unwrap_or_else(|panic| Err(panicked_in_codec(&panic)))
        .map_err(Answer::Refused)?;
    let payload = payload.expect("a codec without an error has left it there");
    let delivery = work.delivery(payload, scope);
    telemetry::handling(scope.name(), || work.id(), delivery.attempt());
    Ok(delivery)
}

/// What becomes of a message after this answer.
fn verdict_on(answer: Answer, work: &Work, scope: &Scope) -> Verdict {
    match answer {
        Answer::Handled => {
            telemetry::handled(scope.name(), || work.id());
            Verdict::Ack
        }
        answer => judge(answer, work, scope),
    }
}

/// Cancels the handler when its claim or its lock is lost, if it can be cancelled.
async fn unless_lost(
    handled: impl Future<Output = Answer>,
    held: Option<&Held>,
    can_abort: bool,
) -> Result<Answer, Lost> {
    match held {
        // Not tokio's `select!`, which may give way before the handler has begun: a message that
        // shares the lock of a batch has to be in it before anybody else does anything.
        Some(held) if can_abort => {
            let lost = async {
                give_way().await;
                held.lost().await
            };
            match select(pin!(handled), pin!(lost)).await {
                Either::Left((answer, _)) => Ok(answer),
                Either::Right((lost, _)) => Err(lost),
            }
        }
        _ => Ok(handled.await),
    }
}

/// Ready when it is polled for the second time, which is soon: a handler that answers at once costs no timer for what
/// it may lose.
async fn give_way() {
    let mut is_second = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut is_second, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// How a delivery gets to the user's handler and its answer back.
pub(crate) trait Call<T> {
    /// Hands the delivery over; returns as soon as the handler has begun.
    fn begin(&self, delivery: Delivery<T>) -> impl Future<Output = Running>;

    /// Whether dropping what runs ends it; a thread goes on.
    fn can_abort(&self) -> bool {
        true
    }

    /// With whom the next delivery to begin shares its locks.
    fn sharing(&self) -> Sharing {
        Sharing::Alone(Holding::new())
    }
}

/// A handler at work.
pub(crate) enum Running<O = Handled> {
    /// It answered at once.
    Done(O),
    /// It answers when this is polled to its end.
    Future(Caught<Pin<Box<dyn Future<Output = O>>>>),
    /// It answers through this; nothing comes when its actor dies.
    Reply(oneshot::Receiver<O>),
    /// It answers through this, or tells that it panicked.
    Watched(oneshot::Receiver<Result<O, String>>),
    /// It is one of several; whoever gathered them keeps the time, and answers through this.
    Gathered(oneshot::Receiver<Answer>),
    /// It panicked while it began.
    Panicked(String),
}

/// Of a message whose codec says that it is no such payload. The error is the user's, and its text may panic.
#[cold]
pub(crate) fn undecodable(error: DecodeError) -> Box<Epitaph> {
    Box::new(Epitaph::new(Reason::Undecodable, error.to_string()))
}

/// Of a message over which its codec panicked.
#[cold]
pub(crate) fn panicked_in_codec(panic: &str) -> Box<Epitaph> {
    Box::new(Epitaph::new(Reason::Undecodable, format!("the codec panicked: {panic}")))
}

async fn handle<T, C: Call<T>>(
    delivery: Delivery<T>,
    work: &Work,
    scope: &Scope,
    call: &C,
) -> Answer {
    let running = call.begin(delivery).await;
    // A handler that waits for nothing is done here, and costs no timer.
    let mut running = Some(running);
    let polled = poll_fn(|cx| Poll::Ready(running.take().map(|it| answer_at_once(it, cx))));
    match polled.await {
        Some(Ok(answer)) => answer,
        Some(Err(running)) => answer_in_time(running, work, scope, call.can_abort()).await,
        None => Answer::Interrupted,
    }
}

/// The answer of a handler that has nothing to wait for; else the handler, at work.
fn answer_at_once(running: Running, cx: &mut Context<'_>) -> Result<Answer, Running> {
    match running {
        Running::Done(handled) => Ok(handled.into()),
        Running::Panicked(message) => Ok(Answer::Panicked(message)),
        Running::Future(mut future) => match Pin::new(&mut future).poll(cx) {
            Poll::Ready(Ok(handled)) => Ok(handled.into()),
            Poll::Ready(Err(message)) => Ok(Answer::Panicked(message)),
            Poll::Pending => Err(Running::Future(future)),
        },
        waits @ (Running::Reply(_) | Running::Watched(_) | Running::Gathered(_)) => Err(waits),
    }
}

/// The answer of a handler that waits.
async fn answer_in_time(running: Running, work: &Work, scope: &Scope, can_abort: bool) -> Answer {
    match running {
        Running::Done(handled) => handled.into(),
        Running::Panicked(message) => Answer::Panicked(message),
        Running::Future(future) => {
            let answer = future.map_ok_or_else(Answer::Panicked, Answer::from);
            within(answer, work, scope, can_abort).await
        }
        Running::Reply(reply) => {
            let reply = reply.map_ok_or_else(|_| Answer::Interrupted, Answer::from);
            within(reply, work, scope, can_abort).await
        }
        Running::Watched(reply) => {
            let reply = reply.map(|reply| match reply {
                Ok(Ok(handled)) => handled.into(),
                Ok(Err(message)) => Answer::Panicked(message),
                Err(_) => Answer::Interrupted,
            });
            within(reply, work, scope, can_abort).await
        }
        Running::Gathered(answer) => answer.await.unwrap_or(Answer::Interrupted),
    }
}

/// Aborts what takes longer than the subscription's `timeout`, if it can be aborted.
async fn within(
    running: impl Future<Output = Answer>,
    work: &Work,
    scope: &Scope,
    can_abort: bool,
) -> Answer {
    let limit = scope.settings.timeout;
    let mut running = pin!(running);
    match tokio::time::timeout(limit, &mut running).await {
        Ok(answer) => answer,
        Err(_) if can_abort => Answer::TimedOut(limit),
        Err(_) => {
            telemetry::overrunning(scope.name(), work.id(), limit);
            running.await
        }
    }
}

/// The verdict on a message that was not simply handled.
#[cold]
pub(crate) fn judge(answer: Answer, work: &Work, scope: &Scope) -> Verdict {
    let retries = scope.retries.load();
    let kind = kind_of(work, scope);
    let age = scope.age(work);
    let verdict = decide(answer, work, kind.as_deref(), &retries, age, &mut fastrand::f64);
    if let Some(error) = verdict.error() {
        let attempt = work.attempt(retries.attempts_max()).get();
        telemetry::attempt_failed(scope.name(), work.id(), attempt, error);
    }
    verdict
}

impl From<Handled> for Answer {
    fn from(handled: Handled) -> Self {
        match handled {
            Ok(()) => Self::Handled,
            Err(failure) => Self::Failed(failure),
        }
    }
}

/// The failure of an item of a batch that its handler left unanswered.
pub(crate) fn unanswered() -> Failure {
    Failure::retry("the handler of the batch gave no answer for this delivery")
}

/// The message's type, where the subscription says it is.
pub(crate) fn kind_of<'a>(work: &'a Work, scope: &Scope) -> Option<std::borrow::Cow<'a, str>> {
    let envelope = work.received.envelope.as_ref();
    match &scope.type_source {
        TypeSource::Property => envelope.kind().map(Into::into),
        TypeSource::Header(name) => lookup::header(envelope, name).map(Into::into),
        TypeSource::Pointer(pointer) => lookup::pointer(envelope, pointer).map(Into::into),
    }
}

/// Shares the codecs of a route between its actors.
pub(crate) type SharedCodecs<T> = Arc<Codecs<T>>;
