//! The four kinds of answers an actix handler can give, as something a pump can drive.
//!
//! Owns nothing that runs: what it makes of an answer is polled, timed and dropped by its holder.

use std::pin::Pin;
use std::task::{Context as TaskContext, Poll};

use actix::dev::MessageResponse;
use actix::prelude::*;
use tokio::sync::oneshot;

use crate::message::Handled;
use crate::pipeline::{Caught, Running};

/// What a handler of deliveries may return: [`Handled`] itself, or one of actix's
/// `ResponseFuture`, `ResponseActFuture` and `AtomicResponse` of it; what a handler of batches may
/// return: the same with a `Vec<Handled>`.
///
/// A plain value and a `ResponseFuture` are the fast ones. An `AtomicResponse` keeps everything
/// else of its actor waiting, other deliveries included; one that panics or takes longer than the
/// subscription's `timeout` ends its actor, which is made anew.
///
/// ```
/// use actix::prelude::*;
/// use redeliver::{Delivery, Handled};
///
/// struct Counter(u32);
/// impl Actor for Counter { type Context = Context<Self>; }
///
/// impl Handler<Delivery<u32>> for Counter {
///     type Result = ResponseActFuture<Self, Handled>;
///
///     fn handle(&mut self, delivery: Delivery<u32>, _: &mut Context<Self>) -> Self::Result {
///         let looked_up = async move { delivery.payload * 2 };
///         Box::pin(looked_up.into_actor(self).map(|number, counter, _| {
///             counter.0 += number;             // the actor's own state, after the await
///             Ok(())
///         }))
///     }
/// }
/// # use redeliver::{Message, Service, config::Config, testing::TestService};
/// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
/// let mut test = TestService::start(Service::builder(config).subscribe("orders", || Counter(0)))?;
/// test.publish("orders", Message::json(&7)?);
/// assert_eq!(test.log(), ["orders-1: attempt 1 handled"]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait IntoRunning<A: Actor, O = Handled> {
    #[doc(hidden)]
    fn into_running(self, ctx: &mut A::Context) -> Begun<O>;
}

/// A handler at work, as a pump drives it.
#[doc(hidden)]
pub struct Begun<O = Handled>(pub(super) Running<O>);

impl<A: Actor> IntoRunning<A> for Handled {
    fn into_running(self, _: &mut A::Context) -> Begun {
        Begun(Running::Done(self))
    }
}

impl<A: Actor> IntoRunning<A, Vec<Handled>> for Vec<Handled> {
    fn into_running(self, _: &mut A::Context) -> Begun<Vec<Handled>> {
        Begun(Running::Done(self))
    }
}

impl<A: Actor, O: 'static> IntoRunning<A, O> for ResponseFuture<O> {
    fn into_running(self, _: &mut A::Context) -> Begun<O> {
        Begun(Running::Future(Caught::new(self)))
    }
}

impl<A: Actor, O: 'static> IntoRunning<A, O> for ResponseActFuture<A, O>
where
    A::Context: AsyncContext<A>,
{
    fn into_running(self, ctx: &mut A::Context) -> Begun<O> {
        let (reply, answer) = oneshot::channel();
        ctx.spawn(Watched { future: Caught::new(self), reply: Some(reply) });
        Begun(Running::Watched(answer))
    }
}

impl<A: Actor, O: 'static> IntoRunning<A, O> for AtomicResponse<A, O>
where
    A::Context: AsyncContext<A>,
{
    fn into_running(self, ctx: &mut A::Context) -> Begun<O> {
        let (reply, answer) = oneshot::channel();
        MessageResponse::<A, Asked<O>>::handle(self, ctx, Some(reply));
        Begun(Running::Reply(answer))
    }
}

/// Stands for the message that was answered: actix asks for one with this result.
struct Asked<O>(std::marker::PhantomData<O>);

impl<O: 'static> Message for Asked<O> {
    type Result = O;
}

/// A future that needs the actor: polled in its context, caught when it panics, gone when nobody
/// waits for its answer any more (its time was up).
struct Watched<A: Actor, O> {
    future: Caught<ResponseActFuture<A, O>>,
    reply: Option<oneshot::Sender<Result<O, String>>>,
}

impl<A: Actor, O> ActorFuture<A> for Watched<A, O> {
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
        let polled = future.poll_by(|future| future.as_mut().poll(actor, ctx, cx));
        let Poll::Ready(answer) = polled else { return Poll::Pending };
        if let Some(reply) = reply.take() {
            // Nobody listens when the time is up: the attempt was counted then.
            let _ = reply.send(answer);
        }
        Poll::Ready(())
    }
}
