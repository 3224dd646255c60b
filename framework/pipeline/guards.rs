//! The two guards around a handler: the claim of a message's id, and the lock of its key.
//!
//! Owns how they are had, held and ended together. Decides nothing about the message: it says what
//! the stores say. What was had and is dropped without an ending is given back in the background.

mod held;
mod late;
mod letter;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bytes::Bytes;

use crate::store::{
    Claim, ClaimAnswer, ClaimAsk, ClaimKey, Fingerprint, Guard, LockAnswer, LockAsk, LockError,
    LockPolicy, Locks, Moment, Owner, Sharing, Store, StoreError, StoreState, Woken,
};
use held::{End, HeldClaim, REPEAT_PAUSE, end_in_background};
pub(crate) use held::{Held, Lost, Recorded};
pub(crate) use late::LateEnds;
pub(crate) use letter::LetterClaims;
use letter::OneClaim;

/// The guards of one subscription.
#[derive(Clone)]
pub(crate) struct Guards {
    /// What its claims are kept under.
    claims_of: Arc<str>,
    claims: Option<ClaimRules>,
    locks: Option<(Locks, LockPolicy)>,
}

/// How ids are claimed.
#[derive(Clone)]
pub(crate) struct ClaimRules {
    /// The store, with what renews its leases.
    pub(crate) store: Locks,
    /// How long a claim outlives a process that died holding it.
    pub(crate) lease: Duration,
    /// How long an id is remembered.
    pub(crate) keep: Duration,
    /// Ends that are still on their way.
    pub(crate) late: LateEnds,
}

/// What is known of a delivery before it is admitted.
#[derive(Clone, Copy)]
pub(crate) struct AdmitRequest<'a> {
    /// The message's id; without one nothing is claimed.
    pub(crate) id: Option<&'a str>,
    /// How often it was redriven.
    pub(crate) generation: u32,
    /// Its payload, which a repeated id must share.
    pub(crate) payload: &'a [u8],
    /// Attempts that the message says it has used.
    pub(crate) attempts: u32,
    /// What must not be handled at the same time by anybody else.
    pub(crate) lock_key: Option<&'a str>,
    /// A redrive that runs what is done as well.
    pub(crate) is_forced: bool,
    /// Whose locks it shares.
    pub(crate) sharing: &'a Sharing,
}

/// What is known of a delivery that asks for its claim with others.
pub(crate) struct LetterRequest<'a> {
    pub(crate) id: &'a str,
    pub(crate) generation: u32,
    pub(crate) payload: &'a [u8],
    pub(crate) attempts: u32,
}

/// Whether a delivery may be handled now.
pub(crate) enum Admission {
    /// It may, and ends with the ending of what is held.
    Run(Box<Held>),
    /// It was handled: acknowledge it and count it. With what was stored then.
    Done { result: Option<Bytes> },
    /// Somebody handles it: never acknowledge it; it costs no attempt.
    Running {
        /// How long their lease lasts if it is not renewed.
        remaining: Duration,
        /// Completes when they are done, unless that goes unheard.
        woken: Woken,
    },
    /// Its next attempt waits in some process: never acknowledge it; it costs no attempt.
    Waiting { remaining: Duration },
    /// A copy with more attempts is alive at the broker: acknowledge it and count it.
    Superseded,
    /// It was given up, and its dead letter is confirmed: acknowledge it and count it.
    Dead { reason: String },
    /// Its id was seen with another payload.
    Mismatch,
    /// Somebody else has the lock; the claim is released.
    LockBusy { retry_in: Duration },
    /// The store could not say.
    Failed(StoreError),
}

impl Guards {
    /// Of a subscription with claims, locks, both or neither; `claims_of` tells its claims from those of others.
    pub(crate) fn new(
        claims_of: Arc<str>,
        claims: Option<ClaimRules>,
        locks: Option<(Locks, LockPolicy)>,
    ) -> Self {
        Self { claims_of, claims, locks }
    }

    /// True where [`admit`](Self::admit) would ask nobody.
    pub(crate) fn is_empty(&self) -> bool {
        self.claims.is_none() && self.locks.is_none()
    }

    /// Whether the last call to each store was answered.
    pub(crate) fn are_up(&self) -> bool {
        let stores =
            [self.claims.as_ref().map(|it| &it.store), self.locks.as_ref().map(|it| &it.0)];
        stores.into_iter().flatten().all(|store| store.state() == StoreState::Up)
    }

    /// Until what is returned is dropped, messages ask for their guards and end them one right behind the other.
    pub(crate) fn gather(&self) -> Option<Box<dyn Send>> {
        let store =
            self.claims.as_ref().map(|it| &it.store).or(self.locks.as_ref().map(|it| &it.0));
        store.map(|store| store.store().gather())
    }

    /// Whether the messages of a letter may ask together: where the claim is all that guards them.
    pub(crate) fn may_ask_together(&self) -> bool {
        self.claims.is_some() && self.locks.is_none()
    }

    /// The claims of the messages of a letter that are asked for together, with their places; the others ask alone.
    pub(crate) fn claims_together<'a>(
        &self,
        requests: impl Iterator<Item = (usize, LetterRequest<'a>)>,
    ) -> Option<LetterClaims> {
        let rules = self.claims.as_ref()?;
        let requests = requests.filter(|(_, request)| !rules.late.has(request.id));
        let claims = requests.map(|(place, request)| OneClaim {
            place,
            key: self.key(request.id, request.generation, request.payload),
            owner: Owner::new(),
            attempts: request.attempts,
            is_renewed: AtomicBool::new(true),
        });
        Some(LetterClaims::new(rules, claims.collect()))
    }

    /// Asks for the claim and the lock of a delivery: in one round trip where they share a store.
    ///
    /// # Cancel safety
    /// What was asked for and not handed out is given back in the background.
    pub(crate) async fn admit(&self, request: AdmitRequest<'_>) -> Admission {
        let lock = self.locks.as_ref().zip(request.lock_key);
        let claims = self.claims.as_ref().filter(|_| request.id.is_some());
        let is_late = |claims: &&ClaimRules| request.id.is_some_and(|id| claims.late.has(id));
        if let Some(claims) = claims.filter(is_late) {
            // We ran it ourselves, and the store does not know yet.
            let woken = claims.store.store().wakes().wait_as(&Owner::new());
            return Admission::Running { remaining: REPEAT_PAUSE, woken };
        }
        let admitted = match (claims, lock) {
            (Some(claims), Some(((locks, policy), key))) => {
                self.admit_both(claims, &locks.sharing(request.sharing), policy, key, &request)
                    .await
            }
            (Some(claims), None) => self.admit_claim(claims, &request).await,
            (None, Some(((locks, policy), key))) => {
                let asks = Asks { locks: &locks.sharing(request.sharing), policy, key };
                Box::pin(asks.wait(Owner::new(), false, None)).await
            }
            (None, None) => Ok(held(None, None)),
        };
        admitted.unwrap_or_else(Admission::Failed)
    }

    /// Whether the store knows that an id was handled or given up, without claiming it. A higher
    /// generation opens what was given up, and by force what was handled.
    pub(crate) async fn is_over(
        &self,
        id: &str,
        generation: u32,
        is_forced: bool,
        payload: &[u8],
    ) -> Result<bool, StoreError> {
        let Some(claims) = &self.claims else { return Ok(false) };
        let key = self.key(id, generation, payload);
        let known = claims.store.store().peek(&key).await?;
        Ok(known.is_some_and(|known| match known.state {
            "done" => !is_forced || generation <= known.generation,
            "dead" => generation <= known.generation,
            _ => false,
        }))
    }

    async fn admit_claim(
        &self,
        claims: &ClaimRules,
        request: &AdmitRequest<'_>,
    ) -> Result<Admission, StoreError> {
        let asked = self.asked(claims, request);
        let answer = asked.store().claim(&asked.ask(request)).await?;
        Ok(match asked.granted(answer) {
            Ok(claim) => held(Some(claim), None),
            Err(refusal) => refusal,
        })
    }

    async fn admit_both(
        &self,
        claims: &ClaimRules,
        locks: &Locks,
        policy: &LockPolicy,
        key: &str,
        request: &AdmitRequest<'_>,
    ) -> Result<Admission, StoreError> {
        let shares_a_store = Arc::ptr_eq(claims.store.store(), locks.store());
        if !shares_a_store || locks.is_shared(key) {
            let claim = match self.admit_claim(claims, request).await? {
                Admission::Run(held) => held.claim,
                refusal => return Ok(refusal),
            };
            // Waiting takes much room, and most never wait: a box for those who do.
            return Box::pin(Asks { locks, policy, key }.wait(Owner::new(), false, claim)).await;
        }
        let mut asked = self.asked(claims, request);
        let owner = Owner::new();
        asked.lock = Some((key.to_owned(), owner.clone()));
        let lock_ask = LockAsk {
            key,
            owner: &owner,
            lease: policy.lease,
            holder: locks.holder(),
            fair: policy.fair,
            waits: !policy.wait.is_zero(),
            seen: locks.seen(),
        };
        let asked_at = asked.asked_at;
        let both = asked.store().claim_and_acquire(&asked.ask(request), &lock_ask).await?;
        let (answer, locked) = both;
        if let Some(LockAnswer::Held(fence)) = locked {
            // Before anything else: from here on it is released by its own drop.
            asked.lock = None;
            let guard = locks.hold(key, owner, fence, policy, asked_at);
            return Ok(match asked.granted(answer) {
                Ok(claim) => held(Some(claim), Some(guard)),
                Err(refusal) => refusal,
            });
        }
        let is_busy = locked.is_some();
        if !is_busy {
            asked.lock = None;
        }
        match asked.granted(answer) {
            Ok(claim) if is_busy => {
                Box::pin(Asks { locks, policy, key }.wait(owner, true, Some(claim))).await
            }
            Ok(claim) => Ok(held(Some(claim), None)),
            Err(refusal) => Ok(refusal),
        }
    }

    fn asked(&self, claims: &ClaimRules, request: &AdmitRequest<'_>) -> Asked {
        let id = request.id.unwrap_or_default();
        let key = Arc::new(self.key(id, request.generation, request.payload));
        let asked_at = claims.store.store().clock().now();
        let (rules, owner) = (claims.clone(), Owner::new());
        Asked { rules, key, owner, asked_at, lock: None, is_open: true }
    }

    fn key(&self, id: &str, generation: u32, payload: &[u8]) -> ClaimKey {
        let (scope, fingerprint) = (self.claims_of.clone(), Fingerprint::of(payload));
        ClaimKey { scope, id: id.into(), fingerprint, generation }
    }
}

fn held(claim: Option<HeldClaim>, lock: Option<Guard>) -> Admission {
    Admission::Run(Box::new(Held { claim, lock }))
}

/// A question for a lock.
struct Asks<'a> {
    locks: &'a Locks,
    policy: &'a LockPolicy,
    key: &'a str,
}

impl Asks<'_> {
    /// Waits for the lock while the claim, if any, is kept alive; released if it does not come.
    /// `is_queued`: `owner` has asked before.
    async fn wait(
        &self,
        owner: Owner,
        is_queued: bool,
        mut claim: Option<HeldClaim>,
    ) -> Result<Admission, StoreError> {
        // The handler has not been called yet.
        let on_drop =
            claim.as_mut().map(|claim| std::mem::replace(&mut claim.on_drop, End::Release));
        let refusal = match self.locks.wait_for(self.key, owner, self.policy, is_queued).await {
            Ok(guard) => {
                if let (Some(claim), Some(on_drop)) = (&mut claim, on_drop) {
                    claim.on_drop = on_drop;
                }
                return Ok(held(claim, Some(guard)));
            }
            Err(LockError::Busy { .. }) => {
                Ok(Admission::LockBusy { retry_in: retry_in(self.policy) })
            }
            Err(LockError::Store(error)) => Err(error),
        };
        if let Some(claim) = claim {
            claim.end_by(End::Release).await?;
        }
        refusal
    }
}

/// Half to one and a half times what was waited in vain: those who were turned away together come
/// back one by one.
fn retry_in(policy: &LockPolicy) -> Duration {
    policy.wait.max(Duration::from_secs(1)).mul_f64(0.5 + fastrand::f64())
}

/// A claim that was asked for; until it is answered, it may be held without anybody knowing.
struct Asked {
    rules: ClaimRules,
    key: Arc<ClaimKey>,
    owner: Owner,
    asked_at: Moment,
    lock: Option<(String, Owner)>,
    is_open: bool,
}

impl Asked {
    fn store(&self) -> Arc<dyn Store> {
        self.rules.store.store().clone()
    }

    fn ask<'a>(&'a self, request: &AdmitRequest<'_>) -> ClaimAsk<'a> {
        ClaimAsk {
            key: &self.key,
            owner: &self.owner,
            lease: self.rules.lease,
            keep: self.rules.keep,
            attempts: request.attempts,
            holder: self.rules.store.holder(),
            force: request.is_forced,
            waits: true,
            seen: self.rules.store.seen(),
        }
    }

    /// The claim, or what is to be done without it.
    fn granted(mut self, answer: ClaimAnswer) -> Result<HeldClaim, Admission> {
        self.is_open = false;
        let claim = granted(answer, &self.rules, &self.owner)?;
        self.rules.store.see(claim.fence);
        let (key, owner) = (self.key.clone(), self.owner.clone());
        Ok(HeldClaim::start(&self.rules, key, owner, claim, self.asked_at))
    }
}

/// The claim, or what is to be done without it.
fn granted(answer: ClaimAnswer, rules: &ClaimRules, owner: &Owner) -> Result<Claim, Admission> {
    Err(match answer {
        ClaimAnswer::Granted(claim) => return Ok(claim),
        ClaimAnswer::Done(result) => Admission::Done { result },
        ClaimAnswer::Dead(reason) => Admission::Dead { reason },
        ClaimAnswer::Running { remaining } => {
            let woken = rules.store.store().wakes().wait_as(owner);
            Admission::Running { remaining, woken }
        }
        ClaimAnswer::Waiting { remaining } => Admission::Waiting { remaining },
        ClaimAnswer::Superseded => Admission::Superseded,
        ClaimAnswer::Mismatch => Admission::Mismatch,
    })
}

impl Drop for Asked {
    fn drop(&mut self) {
        if self.is_open {
            let (rules, key, owner) = (&self.rules, self.key.clone(), self.owner.clone());
            let until = self.asked_at + rules.lease;
            end_in_background(rules, key, owner, End::Release, until, None);
        }
        if let Some((key, owner)) = self.lock.take().filter(|_| self.is_open) {
            let store = self.store();
            self.rules.store.keeper().spawn(async move {
                // Best effort: the lease ends by itself.
                let _ = store.leave(&key, &owner).await;
            });
        }
    }
}

#[cfg(test)]
mod tests;
