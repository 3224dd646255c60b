//! The four kinds of answers an actix handler can give, as something a pump can drive.

use std::pin::Pin;
use std::task::{Context as TaskContext, Poll};

use actix::dev::MessageResponse;
use actix::prelude::*;
use tokio::sync::oneshot;

use crate::message::{Delivery, Handled};
use crate::pipeline::{Running, caught};

/// What a handler of deliveries may return: [`Handled`] itself, or one of actix's
/// `ResponseFuture`, `ResponseActFuture` and `AtomicResponse` of it.
///
/// A plain value and a `ResponseFuture` are the fast ones. An `AtomicResponse` keeps everything
/// else of its actor waiting, other deliveries included; one that panics or takes longer than the
/// subscription's `timeout` ends its actor, which is made anew.
pub trait IntoRunning<A: Actor> {
    #[doc(hidden)]
    fn into_running(self, ctx: &mut A::Context) -> Begun;
}

/// A handler at work, as a pump drives it.
#[doc(hidden)]
pub struct Begun(pub(super) Running);

impl<A: Actor> IntoRunning<A> for Handled {
    fn into_running(self, _: &mut A::Context) -> Begun {
        Begun(Running::Done(self))
    }
}

impl<A: Actor> IntoRunning<A> for ResponseFuture<Handled> {
    fn into_running(self, _: &mut A::Context) -> Begun {
        Begun(Running::Future(self))
    }
}

impl<A: Actor> IntoRunning<A> for ResponseActFuture<A, Handled>
where
    A::Context: AsyncContext<A>,
{
    fn into_running(self, ctx: &mut A::Context) -> Begun {
        let (reply, answer) = oneshot::channel();
        ctx.spawn(Watched { future: self, reply: Some(reply) });
        Begun(Running::Watched(answer))
    }
}

impl<A: Actor> IntoRunning<A> for AtomicResponse<A, Handled>
where
    A::Context: AsyncContext<A>,
{
    fn into_running(self, ctx: &mut A::Context) -> Begun {
        let (reply, answer) = oneshot::channel();
        MessageResponse::<A, Delivery<()>>::handle(self, ctx, Some(reply));
        Begun(Running::Reply(answer))
    }
}

/// A future that needs the actor: polled in its context, caught when it panics, gone when nobody
/// waits for its answer any more (its time was up).
struct Watched<A: Actor> {
    future: ResponseActFuture<A, Handled>,
    reply: Option<oneshot::Sender<Result<Handled, String>>>,
}

impl<A: Actor> ActorFuture<A> for Watched<A> {
    type Output = ();

    fn poll(
        mut self: Pin<&mut Self>,
        actor: &mut A,
        ctx: &mut A::Context,
        cx: &mut TaskContext<'_>,
    ) -> Poll<()> {
        let Watched { future, reply } = &mut *self;
        let nobody_waits = reply.as_mut().is_none_or(|reply| reply.poll_closed(cx).is_ready());
        if nobody_waits {
            return Poll::Ready(());
        }
        let answer = match caught(|| future.as_mut().poll(actor, ctx, cx)) {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(handled)) => Ok(handled),
            Err(panic) => Err(panic),
        };
        if let Some(reply) = reply.take() {
            // Nobody listens when the time is up: the attempt was counted then.
            let _ = reply.send(answer);
        }
        Poll::Ready(())
    }
}
