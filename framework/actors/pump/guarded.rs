//! The way of a letter whose messages ask for their claims together.
//!
//! One question a letter and one for the ends: a future for each message that asks and ends by itself is 12,000 instructions
//! more. Between them its messages go the shortest way (plain.rs). Owns the letters that wait for an answer, and that no message
//! goes back as handled before its completion is known. What is not simply handled goes on in a slot, with what it
//! holds: who waits, who failed, who kept a result, and those behind a handler that takes long.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use actix::Actor;

use super::plain::Progress;
use super::{Pump, Station};
use crate::actors::letter::Opened;
use crate::actors::tenure::Tenure;
use crate::actors::ticket::{Start, Ticket};
use crate::pipeline::{
    LetterClaims, Outcome, Verdict, Work, claims_together, note_granted, verdict_on_completion,
    verdict_on_loss, verdict_on_refusal,
};
use crate::store::{ClaimAnswer, StoreError};

/// After so long what was handled is completed, and the rest of the letter goes on message by message: after a crash it is
/// run again.
const TOGETHER_MAX: Duration = Duration::from_millis(10);

/// A letter that waits for an answer of the store. Dropped, its messages go back undecided.
pub(super) struct Guarded {
    waits: Waits,
    /// Dropped before the letter goes back, so that what was asked is given back as early as that.
    claims: LetterClaims,
    letter: Opened,
    tenure: Arc<Tenure>,
}

enum Waits {
    /// For its claims, before its messages begin.
    ForClaims(Answers<ClaimAnswer>),
    /// For the completions of what was handled.
    ForCompletions(Answers<bool>),
}

/// An answer for each claim; `None`: somebody else has the lane meanwhile.
type Answers<O> = Pin<Box<dyn Future<Output = Option<Vec<Result<O, StoreError>>>>>>;

/// Waits for answers, unless somebody else has the lane first.
fn while_open<O: 'static>(
    tenure: &Arc<Tenure>,
    answers: impl Future<Output = Vec<Result<O, StoreError>>> + 'static,
) -> Answers<O> {
    let tenure = Arc::clone(tenure);
    Box::pin(async move {
        tokio::select! {
            biased;
            answers = answers => Some(answers),
            () = tenure.revoked() => None,
        }
    })
}

impl<T, S, F, M> Pump<T, S, F, M>
where
    T: 'static,
    F: Future<Output = ()>,
    M: Fn(usize, Ticket<T>, Start, Arc<Tenure>) -> F,
{
    /// Asks for the claims of a letter; who asks alone does that in a slot.
    pub(super) fn ask_together<A: Actor>(
        &mut self,
        mut letter: Opened,
        tenure: Arc<Tenure>,
        (actor, ctx, cx): (&mut A, &mut A::Context, &mut Context<'_>),
    ) where
        S: Station<A, T>,
    {
        let claims = claims_together(letter.works(), &self.workplace.scope);
        for place in 0..letter.len() {
            if self.workplace.broken.get() || !tenure.is_open() {
                break;
            }
            if !claims.as_ref().is_some_and(|claims| claims.has(place))
                && let Some(work) = letter.take(place)
            {
                self.go_on_in_a_slot(work, Start::Anew, &tenure, (&mut *actor, &mut *ctx));
            }
        }
        match claims {
            Some(claims) if !claims.is_empty() && tenure.is_open() => {
                let waits = Waits::ForClaims(while_open(&tenure, claims.ask()));
                let guarded = Guarded { waits, claims, letter, tenure };
                self.go_on_with(guarded, (actor, ctx, cx));
            }
            _ => self.workplace.outbox.borrow_mut().keep(letter.close()),
        }
    }

    /// Goes on with the letters that were answered.
    pub(super) fn poll_guarded<A: Actor>(
        &mut self,
        (actor, ctx, cx): (&mut A, &mut A::Context, &mut Context<'_>),
    ) where
        S: Station<A, T>,
    {
        for guarded in std::mem::take(&mut self.guarded) {
            self.go_on_with(guarded, (&mut *actor, &mut *ctx, &mut *cx));
        }
    }

    fn go_on_with<A: Actor>(
        &mut self,
        mut guarded: Guarded,
        (actor, ctx, cx): (&mut A, &mut A::Context, &mut Context<'_>),
    ) where
        S: Station<A, T>,
    {
        match &mut guarded.waits {
            Waits::ForClaims(answers) => match answers.as_mut().poll(cx) {
                Poll::Pending => self.guarded.push(guarded),
                Poll::Ready(None) => {}
                Poll::Ready(Some(answers)) => {
                    self.note_answers(&mut guarded, answers);
                    self.handle(guarded, (actor, ctx, cx));
                }
            },
            Waits::ForCompletions(answers) => match answers.as_mut().poll(cx) {
                Poll::Pending => self.guarded.push(guarded),
                Poll::Ready(None) => {}
                Poll::Ready(Some(answers)) => self.close(guarded, answers),
            },
        }
    }

    /// Tells messages what they were granted; those that were not go back.
    fn note_answers(&self, guarded: &mut Guarded, answers: Vec<Result<ClaimAnswer, StoreError>>) {
        let Guarded { claims, letter, .. } = guarded;
        let scope = &self.workplace.scope;
        for (place, refusal) in claims.note_answers(answers) {
            let Some(mut work) = letter.take(place) else { continue };
            match verdict_on_refusal(refusal, &mut work, scope) {
                Some(verdict) => {
                    self.workplace.outbox.borrow_mut().push(Outcome { work, verdict });
                }
                None => letter.put_back(place, work),
            }
        }
        for (place, granted) in claims.granted() {
            if let Some(work) = letter.at_mut(place) {
                note_granted(granted, work, scope);
            }
        }
    }

    /// Puts its messages to the handler, and has those completed that were handled at once.
    fn handle<A: Actor>(
        &mut self,
        mut guarded: Guarded,
        (actor, ctx, cx): (&mut A, &mut A::Context, &mut Context<'_>),
    ) where
        S: Station<A, T>,
    {
        let Guarded { claims, letter, tenure, .. } = &mut guarded;
        let began = Instant::now();
        let until = if claims.loss().is_some() { began } else { began + TOGETHER_MAX };
        let mut progress = Progress::until(until);
        while progress.place < letter.len() {
            let mut begun = None;
            if !self.workplace.life.is_blocked() && !self.workplace.broken.get() {
                let at = (&mut *actor, &mut *ctx, &mut *cx);
                begun = self.handle_at_once(letter, &mut progress, tenure, at);
            }
            let may_begin = !self.workplace.broken.get() && tenure.is_open();
            if begun.is_none() && (!may_begin || progress.is_late()) {
                break;
            }
            if let Some(work) = letter.take(progress.place) {
                let held = claims.hand_over(progress.place);
                let start = match begun {
                    Some(running) => Start::Begun(running, held),
                    None => Start::Admitted(held),
                };
                self.go_on_in_a_slot(work, start, tenure, (&mut *actor, &mut *ctx));
            }
            progress.place += 1;
        }
        self.observe(&progress, began);
        let begun = progress.place;
        let failed = set_aside(claims, letter, begun);
        let tenure = Arc::clone(tenure);
        let rest = self.rest_of(&mut guarded, begun);
        self.complete(guarded, cx);
        for (work, start) in failed.into_iter().chain(rest) {
            self.go_on_in_a_slot(work, start, &tenure, (&mut *actor, &mut *ctx));
        }
    }

    /// What has not begun because those before it took long. What may not begin at all any more is given back.
    fn rest_of(&self, guarded: &mut Guarded, begun: usize) -> Vec<(Work, Start)> {
        let Guarded { claims, letter, tenure, .. } = guarded;
        if self.workplace.broken.get() || !tenure.is_open() {
            claims.give_back();
            return Vec::new();
        }
        let scope = &self.workplace.scope;
        let (loss, places) = (claims.loss(), begun..letter.len());
        let rest = places.filter_map(|place| {
            let work = letter.take(place)?;
            let start = match (claims.hand_over(place), loss) {
                (Some(held), Some(lost)) => {
                    Start::Answered(verdict_on_loss(lost, &work, scope), held)
                }
                (held, _) => Start::Admitted(held),
            };
            Some((work, start))
        });
        rest.collect()
    }

    /// Asks that what was handled be completed; a letter without such goes back.
    fn complete(&mut self, mut guarded: Guarded, cx: &mut Context<'_>) {
        let Some(completions) = guarded.claims.complete() else {
            return self.close(guarded, Vec::new());
        };
        let mut completions = while_open(&guarded.tenure, completions);
        match completions.as_mut().poll(cx) {
            Poll::Pending => {
                guarded.waits = Waits::ForCompletions(completions);
                self.guarded.push(guarded);
            }
            Poll::Ready(None) => {}
            Poll::Ready(Some(answers)) => self.close(guarded, answers),
        }
    }

    /// Sends it back with what came of its messages.
    fn close(&self, mut guarded: Guarded, answers: Vec<Result<bool, StoreError>>) {
        let Guarded { claims, letter, .. } = &mut guarded;
        for (place, ended) in claims.note_completions(answers) {
            if let Some(work) = letter.at(place) {
                let verdict = verdict_on_completion(ended, work, &self.workplace.scope);
                letter.decide(place, verdict);
            }
        }
        self.workplace.outbox.borrow_mut().keep(letter.close());
    }
}

/// Notes which of the messages that have begun were handled: they are undecided again until that is completed. Takes out
/// those of another verdict, and those that kept a result.
fn set_aside(claims: &mut LetterClaims, letter: &mut Opened, begun: usize) -> Vec<(Work, Start)> {
    let mut aside = Vec::new();
    for place in 0..begun {
        let is_handled = matches!(letter.verdict(place), Some(Verdict::Ack))
            && letter.at(place).is_some_and(|work| !work.kept_a_result());
        if is_handled {
            if claims.note_handled(place) {
                letter.decide(place, Verdict::Again);
            }
        } else if let Some(held) = claims.hand_over(place)
            && let Some(Outcome { work, verdict }) = letter.take_decided(place)
        {
            aside.push((work, Start::Answered(verdict, held)));
        }
    }
    aside
}
