//! A delivery under its guards: what their answers mean to the message.
//!
//! Owns when a claim or a lock is asked for, and how it ends. How they work is the store's.

use std::sync::Arc;
use std::sync::atomic;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::guards::{Admission, AdmitRequest, Held, LetterClaims, LetterRequest, Lost};
use super::work::find_key;
use super::{Answer, Epitaph, Reason, Scope, Verdict, Waiting, Work, judge};
use crate::config::{IdMissing, OnDuplicate, OnStoreDown};
use crate::message::{Claim, ClaimStatus, Failure};
use crate::store::{
    Claim as Granted, ClaimKind, Fence, Loss, Scope as Holding, Sharing, StoreError,
};
use crate::telemetry;
use crate::wire::ID_LENGTH_MAX;

/// After so long another copy asks again whether the one that runs is done.
const ASK_AGAIN_MAX: Duration = Duration::from_secs(30);
/// The soonest that another copy asks again.
const ASK_AGAIN_MIN: Duration = Duration::from_millis(50);
/// How soon a message comes back whose guard was lost.
const LOST_DELAY: Duration = Duration::from_secs(1);

/// Whether the messages of a letter may ask for their claims together. Not where the answer to a duplicate is to call
/// its handler.
pub(crate) fn may_ask_together(scope: &Scope) -> bool {
    scope.guards.may_ask_together() && !calls_duplicates(scope)
}

/// The claims of those messages of a letter that ask together, by their places. Who comes by force, has no id or is to be
/// given up unseen asks alone.
pub(crate) fn claims_together<'a>(
    works: impl Iterator<Item = (usize, &'a Work)>,
    scope: &Scope,
) -> Option<LetterClaims> {
    let requests = works.filter_map(|(place, work)| {
        let is_usual = !work.is_doomed() && !work.carried.is_forced;
        let id = work.id().filter(|id| is_usual && id.len() <= ID_LENGTH_MAX)?;
        let (generation, attempts) = (work.carried.generation, work.carried.attempts);
        let payload = work.received.envelope.body();
        Some((place, LetterRequest { id, generation, payload, attempts }))
    });
    scope.guards.claims_together(requests)
}

/// Notes what was granted to a message that asked with its letter.
pub(crate) fn note_granted(granted: &Granted, work: &mut Work, scope: &Scope) {
    work.asks_since = None;
    share_locks(work, scope);
    note_claim(Some(granted), Some(granted.fence), work, scope);
}

/// What becomes of a message that asked with its letter and was not granted; `None`: it is handled without its claim.
pub(crate) fn verdict_on_refusal(
    refusal: Admission,
    work: &mut Work,
    scope: &Scope,
) -> Option<Verdict> {
    match answer_of(refusal, work, scope) {
        Ok(_) => {
            share_locks(work, scope);
            None
        }
        Err(Refusal::Verdict(verdict)) => Some(verdict),
        Err(Refusal::Answer(answer)) => Some(judge(answer, work, scope)),
    }
}

/// Of a message without a lock of its own: what its handler asks for it shares with nobody else.
fn share_locks(work: &mut Work, scope: &Scope) {
    if scope.locks.is_some() {
        work.sharing = Some(Sharing::Alone(Holding::new()));
    }
}

/// What becomes of a message whose claim was lost before its handler began.
pub(crate) fn verdict_on_loss(lost: Lost, work: &Work, scope: &Scope) -> Verdict {
    judge(answer_to_loss(lost), work, scope)
}

/// What becomes of a message that was handled, by what the completion of its claim was answered.
pub(crate) fn verdict_on_completion(
    ended: Result<bool, StoreError>,
    work: &Work,
    scope: &Scope,
) -> Verdict {
    match ended {
        Ok(true) => Verdict::Ack,
        Ok(false) => {
            // Somebody took over while we worked: both may have had an effect.
            scope.metrics.possible_duplicates.inc();
            Verdict::Defer(Waiting::Here(LOST_DELAY))
        }
        Err(error) => {
            telemetry::completion_delayed(scope.name(), work.id(), &error);
            match scope.settings.on_store_down {
                // What was done stays done, and nobody waits for the store here.
                OnStoreDown::Run if error.is_outage() => Verdict::Ack,
                // The completion goes on in the background; the message asks again whether it is done.
                OnStoreDown::Run | OnStoreDown::Pause => Verdict::Defer(Waiting::Here(LOST_DELAY)),
            }
        }
    }
}

/// Asks for what guards a message. `Err`: it is not handled now, for that reason.
///
/// Nothing is awaited between having the last guard and returning: see `Locks::wait_for`.
pub(super) async fn admit(
    work: &mut Work,
    scope: &Scope,
    sharing: impl FnOnce() -> Sharing,
) -> Result<Option<Box<Held>>, Refusal> {
    if scope.guards.is_empty() {
        return Ok(None);
    }
    let sharing = sharing();
    work.sharing = Some(sharing.clone());
    let (admission, done) = {
        let envelope = work.received.envelope.as_ref();
        let lock = scope.settings.lock.as_ref();
        let lock_key = lock.and_then(|lock| find_key(envelope, &lock.key));
        let id = work.id();
        let is_refused = id.is_none() && scope.settings.on_id_missing() == IdMissing::Reject;
        if is_refused || (id.is_none() && lock_key.is_none()) {
            // Nothing to ask for, or for nothing: the screen gives it up.
            return Ok(None);
        }
        let request = AdmitRequest {
            id,
            generation: work.carried.generation,
            payload: envelope.body(),
            attempts: work.carried.attempts,
            lock_key: lock_key.as_deref(),
            is_forced: work.carried.is_forced,
            sharing: &sharing,
        };
        match scope.guards.admit(request).await {
            // Its handler is called again, so the lock is needed for that.
            Admission::Done { result } if calls_duplicates(scope) => {
                (scope.guards.admit(AdmitRequest { id: None, ..request }).await, Some(result))
            }
            admission => (admission, None),
        }
    };
    let held = answer_of(admission, work, scope)?;
    if let Some(result) = done {
        note_done(result, held.as_deref(), work, scope);
    }
    Ok(held)
}

fn calls_duplicates(scope: &Scope) -> bool {
    let on_duplicate = scope.settings.idempotency.as_ref().map(|it| it.on_duplicate);
    on_duplicate == Some(OnDuplicate::Call)
}

/// Why a message is not handled now.
pub(super) enum Refusal {
    Verdict(Verdict),
    Answer(Answer),
}

fn answer_of(
    admission: Admission,
    work: &mut Work,
    scope: &Scope,
) -> Result<Option<Box<Held>>, Refusal> {
    let metrics = &scope.metrics;
    if !matches!(admission, Admission::Running { .. }) {
        work.asks_since = None;
    }
    match admission {
        Admission::Run(held) => {
            note_claim(held.granted(), held.fence(), work, scope);
            Ok(Some(held))
        }
        Admission::Done { .. } => {
            metrics.duplicates.inc();
            telemetry::duplicate(scope.name(), work.id(), "done");
            Err(Refusal::Verdict(Verdict::Duplicate))
        }
        Admission::Superseded => {
            metrics.duplicates.inc();
            telemetry::duplicate(scope.name(), work.id(), "superseded");
            Err(Refusal::Verdict(Verdict::Duplicate))
        }
        Admission::Dead { reason } => {
            metrics.duplicates.inc();
            telemetry::duplicate(scope.name(), work.id(), &reason);
            Err(Refusal::Verdict(Verdict::Duplicate))
        }
        Admission::Running { remaining, woken } => {
            work.woken = Some(Box::new(woken));
            let wait = remaining.min(ask_again_after(work, scope));
            Err(later(wait, "the same id is being handled"))
        }
        Admission::Waiting { remaining } => Err(later(remaining, "the same id waits for a retry")),
        Admission::LockBusy { retry_in } => Err(later(retry_in, "its lock is held by another")),
        Admission::Mismatch => {
            let error = String::from("its id was used before with another payload");
            let epitaph = Epitaph::new(Reason::Mismatch, error);
            Err(Refusal::Answer(Answer::Refused(Box::new(epitaph))))
        }
        // Of this key alone: the others can go on, and it is not to be handled without what guards it.
        Admission::Failed(error) if !error.is_outage() => {
            Err(Refusal::Answer(Answer::Unguarded(error.to_string())))
        }
        Admission::Failed(error) => match scope.settings.on_store_down {
            OnStoreDown::Pause => Err(Refusal::Verdict(Verdict::StoreDown(error.to_string()))),
            OnStoreDown::Run => {
                metrics.possible_duplicates.inc();
                telemetry::unguarded(scope.name(), work.id(), &error);
                Ok(None)
            }
        },
    }
}

/// Tells the handler how its message was claimed, and counts with the larger count of attempts.
fn note_claim(granted: Option<&Granted>, fence: Option<Fence>, work: &mut Work, scope: &Scope) {
    let (attempts, takeovers) = granted.map_or((0, 0), |it| (it.attempts, it.takeovers));
    if attempts > work.carried.attempts {
        // Not for every message: what most carry is nothing, and takes no memory.
        work.carried.attempts = attempts;
    }
    let status = match granted.map(|granted| granted.kind) {
        Some(ClaimKind::TakenOver) => {
            scope.metrics.possible_duplicates.inc();
            ClaimStatus::TakenOver
        }
        Some(ClaimKind::Fresh) | None => ClaimStatus::Fresh,
    };
    work.claim = Some(Arc::new(Claim::new(status, fence.map(|it| it.0), takeovers, None)));
}

/// Tells the handler that its message is done already, and under which lock it is called all the same.
fn note_done(result: Option<Bytes>, held: Option<&Held>, work: &mut Work, scope: &Scope) {
    scope.metrics.duplicates.inc();
    telemetry::duplicate(scope.name(), work.id(), "done");
    let fence = held.and_then(Held::fence).map(|fence| fence.0);
    work.claim = Some(Arc::new(Claim::new(ClaimStatus::Done, fence, 0, result)));
}

/// Comes back without an attempt counted; jittered, because others wait for the same moment.
fn later(wait: Duration, why: &'static str) -> Refusal {
    let wait = wait.min(ASK_AGAIN_MAX).max(Duration::from_millis(10));
    let wait = wait.mul_f64(1.0 + fastrand::f64() * 0.2);
    Refusal::Answer(Answer::Later(wait, why.into()))
}

/// The poll behind the wake-up. Soon at first, because most handlers are quick and a wake-up may go
/// unheard; then half as long again each time, because a slow one must not be asked for every
/// moment.
fn ask_again_after(work: &mut Work, scope: &Scope) -> Duration {
    let now = scope.tick(Instant::now());
    let asks_for = work.asks_since.get_or_insert(now).elapsed(now);
    let asks_for = match work.carried.attempts {
        // All it ever did was wait, some of that at the broker.
        0 => asks_for.max(scope.age(work)),
        _ => asks_for,
    };
    (asks_for / 2).max(ASK_AGAIN_MIN)
}

/// Whether a message that would be given up unseen was handled, or given up, before. `Err`: the
/// store does not answer.
pub(super) async fn is_over(work: &Work, scope: &Scope) -> Result<bool, Verdict> {
    let Some(id) = work.id() else { return Ok(false) };
    let generation = work.carried.generation;
    let (is_forced, body) = (work.carried.is_forced, work.received.envelope.body());
    let is_over = scope.guards.is_over(id, generation, is_forced, body).await;
    match (is_over, scope.settings.on_store_down) {
        (Ok(is_over), _) => Ok(is_over),
        (Err(error), OnStoreDown::Pause) if error.is_outage() => {
            Err(Verdict::StoreDown(error.to_string()))
        }
        (Err(_), OnStoreDown::Pause | OnStoreDown::Run) => Ok(false),
    }
}

/// What the loss of a guard means to the handler that ran under it.
pub(super) fn answer_to_loss(lost: Lost) -> Answer {
    match lost {
        // The handler hung: that is its own doing.
        Lost::Lock(Loss::HoldMax) => {
            let error = Failure::retry("the handler held its lock for hold_max");
            Answer::Failed(error.class(super::decide::CLASS_TIMEOUT))
        }
        Lost::Lock(loss) => Answer::Later(LOST_DELAY, format!("the lock was lost: {loss}").into()),
        Lost::Claim(loss) => {
            Answer::Later(LOST_DELAY, format!("the claim was lost: {loss}").into())
        }
    }
}

/// Ends the guards as the verdict asks; those of a message that is to be copied first stay with
/// it, and end when the copy is confirmed.
pub(crate) async fn conclude(
    mut held: Box<Held>,
    verdict: Verdict,
    work: &mut Work,
    scope: &Scope,
) -> Verdict {
    match &verdict {
        // Nobody knows what was done: who runs it next is told.
        Verdict::Again => {
            let _ = held.abandon().await;
            verdict
        }
        Verdict::Ack | Verdict::Ignore(_) => complete(held, verdict, work, scope).await,
        failed if failed.may_be_spared() && (work.is_probe || scope.holds_back()) => {
            // A probe costs no attempt, nor does what fails while everything does.
            let _ = held.release().await;
            verdict
        }
        Verdict::Retry(Waiting::Here(delay), _) => {
            let attempts = work.attempt(scope.attempts_max()).get();
            // If the breaker opens over it, it will not have counted.
            let recorded = held.recorded(work.carried.attempts);
            match held.failed(*delay, attempts, false).await {
                Ok(true) => work.recorded = recorded.map(Box::new),
                // Somebody took over while we worked: both may have had an effect.
                Ok(false) => {
                    scope.metrics.possible_duplicates.inc();
                }
                // What cannot be written ends with its lease; the attempt is kept here.
                Err(_) => {}
            }
            verdict
        }
        Verdict::Defer(_) | Verdict::StoreDown(_) | Verdict::Duplicate | Verdict::Carried => {
            let _ = held.release().await;
            verdict
        }
        Verdict::Retry(Waiting::Broker(delay), _) => {
            // No handler runs, and the copy may take long to be confirmed.
            held.free_lock();
            // The attempt is over, whether or not there is ever a copy of it.
            held.failed_if_dropped(*delay, work.attempt(scope.attempts_max()).get());
            work.held = Some(held);
            verdict
        }
        Verdict::Dead(_) => {
            held.free_lock();
            held.released_if_dropped();
            work.held = Some(held);
            verdict
        }
    }
}

async fn complete(held: Box<Held>, verdict: Verdict, work: &Work, scope: &Scope) -> Verdict {
    let result = work.claim.as_ref().and_then(|claim| claim.take_kept());
    let is_claimed = held.is_claimed();
    match held.complete(result).await {
        // Nobody could say of it that it was handled: it would run again, perhaps for ever.
        Ok(false) if !is_claimed => {
            scope.metrics.possible_duplicates.inc();
            verdict
        }
        // An ignored failure stays one.
        ended => match verdict_on_completion(ended, work, scope) {
            Verdict::Ack => verdict,
            other => other,
        },
    }
}

impl Scope {
    /// Whether the breaker holds messages back.
    pub(crate) fn holds_back(&self) -> bool {
        self.is_held_back.load(atomic::Ordering::Relaxed)
    }

    /// Notes that the store answers, or not; true if that is news.
    pub(crate) fn note_store(&self, is_down: bool) -> bool {
        self.store_is_down.swap(is_down, atomic::Ordering::Relaxed) != is_down
    }
}
