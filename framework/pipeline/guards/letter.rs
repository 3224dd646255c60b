//! The claims of a letter: asked for in one question, and completed in one.
//!
//! Owns what became of each, and that none is forgotten: what was asked and not begun is given back in the background,
//! and what was handled is completed there. One lease keeps all of them until they are handled or handed over. How a
//! claim ends whose message was not simply handled is the business of [`Held`], to which it is handed over.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;

use super::held::{ClaimRenewal, End, Held, HeldClaim, Lost, end_in_background};
use super::{Admission, ClaimRules, granted};
use crate::store::{
    Claim, ClaimAnswer, ClaimAsk, ClaimKey, Lease, Moment, Owner, Renew, Renewed, StoreError,
    StoreFault,
};

/// The claims of a letter, in the order of its messages.
pub(crate) struct LetterClaims {
    rules: ClaimRules,
    claims: Arc<[OneClaim]>,
    stages: Vec<Stage>,
    asked_at: Moment,
    /// Of all that were granted; those that are handed over have their own.
    lease: Option<Lease>,
}

/// What is asked for one message of a letter.
pub(super) struct OneClaim {
    /// The message's place in its letter.
    pub(super) place: usize,
    pub(super) key: ClaimKey,
    pub(super) owner: Owner,
    pub(super) attempts: u32,
    pub(super) is_renewed: AtomicBool,
}

#[derive(Clone, Copy)]
enum Stage {
    /// It may be had without anybody knowing.
    Asked,
    Granted(Claim),
    /// The handler is done; the store does not know yet.
    Handled,
    /// The store knows, or somebody else sees to it.
    Over,
}

impl LetterClaims {
    pub(super) fn new(rules: &ClaimRules, claims: Vec<OneClaim>) -> Self {
        let (stages, claims) = (vec![Stage::Asked; claims.len()], claims.into());
        let asked_at = rules.store.store().clock().now();
        Self { rules: rules.clone(), claims, stages, asked_at, lease: None }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.claims.is_empty()
    }

    /// Whether it asks for the message at this place.
    pub(crate) fn has(&self, place: usize) -> bool {
        self.number_of(place).is_some()
    }

    /// Asks for all of them.
    pub(crate) fn ask(
        &self,
    ) -> impl Future<Output = Vec<Result<ClaimAnswer, StoreError>>> + Send + 'static + use<> {
        let (rules, claims) = (self.rules.clone(), Arc::clone(&self.claims));
        async move {
            let asks: Vec<_> = claims.iter().map(|claim| claim.ask(&rules)).collect();
            rules.store.store().claim_all(&asks).await
        }
    }

    /// Notes the answers; passes on those that grant nothing, with the place of their message.
    pub(crate) fn note_answers(
        &mut self,
        answers: Vec<Result<ClaimAnswer, StoreError>>,
    ) -> Vec<(usize, Admission)> {
        let mut refusals = Vec::new();
        let mut answers = answers.into_iter();
        for (claim, stage) in self.claims.iter().zip(&mut self.stages) {
            let answer = answers.next().unwrap_or_else(|| Err(unanswered()));
            match answer.map(|answer| granted(answer, &self.rules, &claim.owner)) {
                Ok(Ok(granted)) => {
                    self.rules.store.see(granted.fence);
                    *stage = Stage::Granted(granted);
                }
                Ok(Err(refusal)) => {
                    *stage = Stage::Over;
                    refusals.push((claim.place, refusal));
                }
                Err(error) => {
                    claim.end_in_background(&self.rules, End::Release);
                    *stage = Stage::Over;
                    refusals.push((claim.place, Admission::Failed(error)));
                }
            }
        }
        let renewal = LetterRenewal { rules: self.rules.clone(), claims: Arc::clone(&self.claims) };
        let (keeper, length) = (self.rules.store.keeper(), self.rules.lease);
        self.lease = Some(Lease::start(keeper, Box::new(renewal), self.asked_at, length, None));
        refusals
    }

    /// What was granted to the messages that have not begun, with their places.
    pub(crate) fn granted(&self) -> impl Iterator<Item = (usize, &Claim)> {
        self.claims.iter().zip(&self.stages).filter_map(|(claim, stage)| match stage {
            Stage::Granted(granted) => Some((claim.place, granted)),
            Stage::Asked | Stage::Handled | Stage::Over => None,
        })
    }

    /// Why none of them is surely ours any more.
    pub(crate) fn loss(&self) -> Option<Lost> {
        self.lease.as_ref().and_then(Lease::loss).map(Lost::Claim)
    }

    /// Hands over what was granted to the message at `place`, with a lease of its own.
    pub(crate) fn hand_over(&mut self, place: usize) -> Option<Box<Held>> {
        let number = self.number_of(place)?;
        let Stage::Granted(granted) = self.stages[number] else { return None };
        self.stages[number] = Stage::Over;
        let claim = &self.claims[number];
        let asked_at = self.lease.as_ref().map_or(self.asked_at, Lease::asked_at);
        let (key, owner) = (Arc::new(claim.key.clone()), claim.owner.clone());
        let held = HeldClaim::start(&self.rules, key, owner, granted, asked_at);
        claim.is_renewed.store(false, Ordering::Relaxed);
        Some(Box::new(Held { claim: Some(held), lock: None }))
    }

    /// The message at `place` was handled: true if there is a claim of it to complete.
    pub(crate) fn note_handled(&mut self, place: usize) -> bool {
        let Some(number) = self.number_of(place) else { return false };
        let is_ours = matches!(self.stages[number], Stage::Granted(_));
        if is_ours {
            self.stages[number] = Stage::Handled;
        }
        is_ours
    }

    /// Gives back what was granted and is not begun here.
    pub(crate) fn give_back(&mut self) {
        for (claim, stage) in self.claims.iter().zip(&mut self.stages) {
            if matches!(stage, Stage::Granted(_)) {
                *stage = Stage::Over;
                claim.end_in_background(&self.rules, End::Release);
            }
        }
    }

    /// Completes what was handled; `None` where nothing was.
    pub(crate) fn complete(
        &mut self,
    ) -> Option<impl Future<Output = Vec<Result<bool, StoreError>>> + Send + 'static + use<>> {
        let lease = self.lease.take();
        let is_handled = |stage: &Stage| matches!(stage, Stage::Handled);
        let handled: Vec<bool> = self.stages.iter().map(is_handled).collect();
        if !handled.contains(&true) {
            return None;
        }
        let (rules, claims) = (self.rules.clone(), Arc::clone(&self.claims));
        Some(async move {
            if let Some(lease) = lease {
                lease.stop().await;
            }
            let handled = claims.iter().zip(handled).filter(|(_, is_handled)| *is_handled);
            let named: Vec<_> = handled.map(|(claim, _)| (&claim.key, &claim.owner)).collect();
            rules.store.store().complete_all(&named, rules.keep).await
        })
    }

    /// Notes how the completions ended; what did not get through goes on in the background. With the places of their messages.
    pub(crate) fn note_completions(
        &mut self,
        ended: Vec<Result<bool, StoreError>>,
    ) -> Vec<(usize, Result<bool, StoreError>)> {
        let mut ended = ended.into_iter();
        let mut noted = Vec::with_capacity(ended.len());
        for (claim, stage) in self.claims.iter().zip(&mut self.stages) {
            if !matches!(stage, Stage::Handled) {
                continue;
            }
            *stage = Stage::Over;
            let ended = ended.next().unwrap_or_else(|| Err(unanswered()));
            if ended.is_err() {
                claim.end_in_background(&self.rules, End::Complete(None));
            }
            noted.push((claim.place, ended));
        }
        noted
    }

    fn number_of(&self, place: usize) -> Option<usize> {
        match self.claims.get(place) {
            // Mostly every message of the letter is in it.
            Some(claim) if claim.place == place => Some(place),
            _ => self.claims.binary_search_by_key(&place, |claim| claim.place).ok(),
        }
    }
}

impl Drop for LetterClaims {
    fn drop(&mut self) {
        for (claim, stage) in self.claims.iter().zip(&self.stages) {
            match stage {
                Stage::Asked | Stage::Granted(_) => {
                    claim.end_in_background(&self.rules, End::Release);
                }
                Stage::Handled => claim.end_in_background(&self.rules, End::Complete(None)),
                Stage::Over => {}
            }
        }
    }
}

impl OneClaim {
    fn ask<'a>(&'a self, rules: &'a ClaimRules) -> ClaimAsk<'a> {
        ClaimAsk {
            key: &self.key,
            owner: &self.owner,
            lease: rules.lease,
            keep: rules.keep,
            attempts: self.attempts,
            holder: rules.store.holder(),
            force: false,
            waits: true,
            seen: rules.store.seen(),
        }
    }

    fn end_in_background(&self, rules: &ClaimRules, end: End) {
        self.is_renewed.store(false, Ordering::Relaxed);
        let key = Arc::new(self.key.clone());
        let until = rules.store.store().clock().now() + rules.lease;
        let late = end.is_of_a_run().then(|| rules.late.begin(Arc::clone(&key)));
        end_in_background(rules, key, self.owner.clone(), end, until, late);
    }
}

/// Renews what is neither handed over nor given back. If one of them is lost so is the lease: what has not begun comes
/// back a moment later.
struct LetterRenewal {
    rules: ClaimRules,
    claims: Arc<[OneClaim]>,
}

#[async_trait]
impl Renew for LetterRenewal {
    async fn renew(&self, lease: Duration) -> Result<Renewed, StoreError> {
        let store = self.rules.store.store();
        let is_renewed = |claim: &&OneClaim| claim.is_renewed.load(Ordering::Relaxed);
        let renewals = self.claims.iter().filter(is_renewed).map(async |claim| {
            let renewal = ClaimRenewal {
                store: Arc::clone(store),
                key: Arc::new(claim.key.clone()),
                owner: claim.owner.clone(),
            };
            renewal.renew(lease).await
        });
        for renewed in join_all(renewals).await {
            match renewed? {
                Renewed::Kept => {}
                lost => return Ok(lost),
            }
        }
        Ok(Renewed::Kept)
    }
}

fn unanswered() -> StoreError {
    let text = "cannot claim the ids of a letter: the store answered fewer than were asked for; \
                see that it answers each";
    StoreError::new(StoreFault::Other, text)
}

#[cfg(test)]
mod tests;
