//! The shortest way of a letter whose messages nobody traces, and nothing guards or they hold what does.
//!
//! It is `process()` of the pipeline without a future for each message, which would cost more than a thousand
//! instructions, and with panics caught once a letter instead of three times a message and nobody asked at each whether
//! he listens, which is 350 less again. That is paid for here and nowhere else. What does not answer at once goes on in
//! a slot, and is timed there by itself.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use actix::Actor;

use super::{Pump, Station};
use crate::actors::letter::Opened;
use crate::actors::tenure::Tenure;
use crate::actors::ticket::{Start, Ticket};
use crate::pipeline::{
    Answer, Running, Verdict, caught, judge, panicked_in_codec, screen, undecodable,
};

/// How far a letter is, outside of what a panic unwinds.
#[derive(Default)]
pub(super) struct Progress {
    /// The message whose turn it is.
    pub(super) place: usize,
    /// How many were answered at once.
    pub(super) at_once: u32,
    /// When it goes on message by message.
    until: Option<Instant>,
    step: Step,
}

/// Whose code runs.
#[derive(Clone, Copy, Default)]
enum Step {
    #[default]
    Codec,
    Handler,
}

impl<T, S, F, M> Pump<T, S, F, M>
where
    T: 'static,
    F: Future<Output = ()>,
    M: Fn(usize, Ticket<T>, Start, Arc<Tenure>) -> F,
{
    /// Puts messages to the handler, one after another, up to the first that does not answer at once: what that runs.
    pub(super) fn handle_at_once<A: Actor>(
        &mut self,
        letter: &mut Opened,
        progress: &mut Progress,
        tenure: &Tenure,
        (actor, ctx, cx): (&mut A, &mut A::Context, &mut Context<'_>),
    ) -> Option<Running>
    where
        S: Station<A, T>,
    {
        loop {
            let run = || self.run(letter, progress, tenure, (&mut *actor, &mut *ctx, &mut *cx));
            let panic = match caught(run) {
                Ok(begun) => return begun,
                Err(panic) => panic,
            };
            let answer = match progress.step {
                Step::Codec => Answer::Refused(panicked_in_codec(&panic)),
                Step::Handler => Answer::Panicked(panic),
            };
            if let Some(work) = letter.at(progress.place) {
                let verdict = judge(answer, work, &self.workplace.scope);
                self.workplace.note_panic(&verdict);
                progress.decide(letter, verdict);
            }
            if self.workplace.broken.get() {
                return None;
            }
        }
    }

    /// The same, less the panics.
    fn run<A: Actor>(
        &mut self,
        letter: &mut Opened,
        progress: &mut Progress,
        tenure: &Tenure,
        (actor, ctx, cx): (&mut A, &mut A::Context, &mut Context<'_>),
    ) -> Option<Running>
    where
        S: Station<A, T>,
    {
        let scope = self.workplace.scope.as_ref();
        while let Some(work) = letter.at(progress.place) {
            if !tenure.is_open() || work.is_doomed() || progress.is_late() {
                return None;
            }
            progress.step = Step::Codec;
            let envelope = work.received.envelope.as_ref();
            let body = envelope.body();
            let decoded = match screen(work, (envelope, body), scope) {
                Ok(()) => self.workplace.codecs.decode(envelope, body).map_err(undecodable),
                Err(epitaph) => Err(epitaph),
            };
            let handled = match decoded {
                Err(epitaph) => Err(Answer::Refused(epitaph)),
                Ok(payload) => {
                    progress.step = Step::Handler;
                    let delivery = work.delivery(payload, scope);
                    match self.station.call(actor, ctx, delivery) {
                        Running::Done(handled) => handled.map_err(Answer::Failed),
                        Running::Future(mut future) => match future.poll_through(cx) {
                            Poll::Ready(handled) => handled.map_err(Answer::Failed),
                            Poll::Pending => return Some(Running::Future(future)),
                        },
                        waits @ (Running::Reply(_)
                        | Running::Watched(_)
                        | Running::Gathered(_)
                        | Running::Panicked(_)) => return Some(waits),
                    }
                }
            };
            let verdict = match handled {
                Ok(()) => Verdict::Ack,
                Err(answer) => judge(answer, work, scope),
            };
            progress.decide(letter, verdict);
        }
        None
    }
}

impl Progress {
    /// From the first message on, until then.
    pub(super) fn until(moment: Instant) -> Self {
        Self { until: Some(moment), ..Self::default() }
    }

    /// Whether it has taken longer than it may.
    #[inline]
    pub(super) fn is_late(&self) -> bool {
        self.until.is_some_and(|until| Instant::now() >= until)
    }

    #[inline]
    fn decide(&mut self, letter: &mut Opened, verdict: Verdict) {
        letter.decide(self.place, verdict);
        self.place += 1;
        self.at_once += 1;
    }
}
