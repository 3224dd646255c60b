//! The handler actor, and the tally of what it did.

use std::collections::{BTreeSet, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use actix::prelude::*;
use redeliver::{Claim, ClaimStatus, Delivery, Failure, Handled};
use serde::Deserialize;

use crate::chosen::{Chosen, Fate};
use crate::effects::Effects;

/// What a webhook's line says, as far as anybody here wants to know.
#[derive(Deserialize)]
pub(crate) struct Notice {
    event: String,
    repository: Option<String>,
}

/// How long a webhook is put off whose effect could not be written: one of the waits that its retries have anyway.
const DEFERRED: Duration = Duration::from_millis(400);

/// Tells whom it concerns about webhooks; at times that does not work.
pub(crate) struct Notifier {
    chosen: Chosen,
    effects: Option<Arc<Effects>>,
    tally: Arc<Tally>,
}

impl Notifier {
    pub(crate) fn new(chosen: Chosen, effects: Option<Arc<Effects>>, tally: Arc<Tally>) -> Self {
        Self { chosen, effects, tally }
    }
}

impl Actor for Notifier {
    type Context = Context<Self>;
}

impl Handler<Delivery<Notice>> for Notifier {
    type Result = ResponseFuture<Handled>;

    fn handle(&mut self, delivery: Delivery<Notice>, _: &mut Context<Self>) -> Self::Result {
        let (chosen, effects) = (self.chosen, self.effects.clone());
        let tally = Arc::clone(&self.tally);
        Box::pin(async move {
            let id = delivery.id().ok_or_else(|| Failure::reject("a webhook without an id"))?;
            if id.contains(|c: char| c.is_whitespace() || c.is_control()) {
                // A stranger's: it would forge lines of the effects.
                return Err(Failure::reject(
                    "a webhook whose id has a space or a control character",
                ));
            }
            if delivery.claim().map(Claim::status) == Some(ClaimStatus::Done) {
                tally.note(id);
                return Ok(());
            }
            if delivery.attempt() > 1 {
                tally.retried.fetch_add(1, Ordering::Relaxed);
            }
            let Notice { event, repository } = &delivery.payload;
            let repository = repository.as_deref().unwrap_or("nobody's repository");
            match (chosen.fate(id), delivery.attempt()) {
                (Fate::FailsForEver, _) => {
                    return Err(Failure::retry(format!(
                        "nobody is told of {event} in {repository}"
                    )));
                }
                (Fate::FailsFirst, 1) => return Err(Failure::retry("everybody is at lunch")),
                (Fate::FailsFirst | Fate::Works, _) => {}
            }
            // The effect, and then at once the answer: a kill in between repeats it.
            if let Some(effects) = effects {
                // Ends the program; whoever comes after it has every attempt left.
                let appended = effects.append(id, delivery.attempt());
                appended.map_err(|error| Failure::defer(DEFERRED, error))?;
            }
            tally.note(id);
            Ok(())
        })
    }
}

/// What this process did.
#[derive(Default)]
pub(crate) struct Tally {
    handled: Mutex<HashSet<String>>,
    retried: AtomicU64,
    /// The ids that the job is about, where that is known.
    own: Option<HashSet<String>>,
    /// How many others were handled: an earlier job left them there.
    others: AtomicU64,
}

impl Tally {
    /// Of a job that is about these ids.
    pub(crate) fn of(ids: &BTreeSet<&str>) -> Self {
        let own = ids.iter().map(|id| String::from(*id)).collect();
        Self { own: Some(own), ..Self::default() }
    }

    fn note(&self, id: &str) {
        let is_new = self.lock().insert(id.to_owned());
        if is_new && self.own.as_ref().is_some_and(|own| !own.contains(id)) {
            self.others.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The ids that were handled.
    pub(crate) fn handled(&self) -> HashSet<String> {
        self.lock().clone()
    }

    /// How many ids of the job were handled, and how many others.
    pub(crate) fn counts(&self) -> (u64, u64) {
        // Counted after it was noted: the other order could take away one too many.
        let others = self.others.load(Ordering::Relaxed);
        (self.lock().len() as u64 - others, others)
    }

    /// The attempts beyond the first.
    pub(crate) fn retried(&self) -> u64 {
        self.retried.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<String>> {
        self.handled.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_other_runs_are_counted_apart() {
        let tally = Tally::of(&BTreeSet::from(["a", "b"]));
        ["a", "stranger", "a", "stranger", "b"].iter().for_each(|id| tally.note(id));
        assert_eq!((tally.counts(), tally.handled().len()), ((2, 1), 3));
        let unknown = Tally::default();
        unknown.note("a");
        assert_eq!(unknown.counts(), (1, 0));
    }
}
