//! Claims in this process.

use std::collections::btree_map::Entry;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::{MemoryStore, State, bounded};
use crate::store::{
    Claim, ClaimAnswer, ClaimAsk, ClaimKey, ClaimKind, ClaimState, Clock, Ending, Fence,
    Fingerprint, IdempotencyStore, Moment, Owner, Renewed, StoreError,
};

/// How many who wait for the end of one run are remembered.
const WAITING_MAX: usize = 64;

#[derive(Clone)]
pub(super) struct Record {
    phase: Phase,
    owner: Owner,
    holder: String,
    attempts: u32,
    takeovers: u32,
    generation: u32,
    fingerprint: Fingerprint,
    fence: u64,
    expires: Moment,
    /// Who asked in vain while it ran, and is to be woken by its end.
    waiting: Vec<Owner>,
}

#[derive(Clone)]
enum Phase {
    Running { until: Moment },
    Failed { due: Moment, copied: bool },
    Done(Option<Bytes>),
    Dead(String),
}

/// What a record makes of a question.
enum Admits {
    /// The owner asks again.
    Again,
    /// Run it, with the attempts and takeovers before it.
    Run { attempts: u32, takeovers: u32 },
    /// No.
    Not(ClaimAnswer),
}

impl Record {
    /// The rules of a claim; `claim.lua` has the same in the same order.
    fn admits(&self, ask: &ClaimAsk<'_>, now: Moment) -> Admits {
        let redriven = ask.key.generation > self.generation;
        let attempts = if redriven { ask.attempts } else { ask.attempts.max(self.attempts) };
        if self.fingerprint != ask.key.fingerprint && !redriven {
            return Admits::Not(ClaimAnswer::Mismatch);
        }
        match &self.phase {
            Phase::Done(_) if redriven && ask.force => Admits::Run { attempts, takeovers: 0 },
            Phase::Done(result) => Admits::Not(ClaimAnswer::Done(result.clone())),
            Phase::Dead(_) if redriven => Admits::Run { attempts, takeovers: 0 },
            Phase::Dead(reason) => Admits::Not(ClaimAnswer::Dead(reason.clone())),
            Phase::Running { .. } if self.owner == *ask.owner => Admits::Again,
            Phase::Running { until } if *until > now => {
                Admits::Not(ClaimAnswer::Running { remaining: until.since(now) })
            }
            Phase::Running { .. } => Admits::Run { attempts, takeovers: self.takeovers + 1 },
            Phase::Failed { due, copied } => {
                let remaining = due.since(now);
                let older = ask.attempts < self.attempts;
                match (remaining.is_zero() || redriven, copied) {
                    _ if ask.key.generation < self.generation => {
                        Admits::Not(ClaimAnswer::Superseded)
                    }
                    (false, true) if older => Admits::Not(ClaimAnswer::Superseded),
                    (false, false) => Admits::Not(ClaimAnswer::Waiting { remaining }),
                    _ => Admits::Run { attempts, takeovers: self.takeovers },
                }
            }
        }
    }

    /// Whether it may be forgotten when it is given back. Of a redrive it stands in place of what was known before.
    fn says_nothing(&self) -> bool {
        self.attempts == 0 && self.takeovers == 0 && self.generation == 0
    }
}

impl State {
    fn expire_claims(&mut self, now: Moment) {
        while let Some(entry) = self.expiries.first_entry().filter(|entry| *entry.key() <= now) {
            for name in entry.remove() {
                if self.claims.get(&name).is_some_and(|record| record.expires <= now) {
                    self.claims.remove(&name);
                }
            }
        }
    }

    /// Notes who waits for the end of a run; the oldest, who will ask again anyway, give way.
    fn awaits(&mut self, name: &str, owner: &Owner) {
        if let Some(record) = self.claims.get_mut(name) {
            if record.waiting.len() >= WAITING_MAX {
                record.waiting.remove(0);
            }
            record.waiting.push(owner.clone());
        }
    }

    fn put(&mut self, name: String, record: Record) {
        self.forget(&name);
        self.expiries.entry(record.expires).or_default().insert(name.clone());
        self.claims.insert(name, record);
    }

    /// Its record, and when that was to be forgotten: nobody could find the latter without the former. True if it was known.
    fn forget(&mut self, name: &str) -> bool {
        let Some(record) = self.claims.remove(name) else { return false };
        if let Entry::Occupied(mut names) = self.expiries.entry(record.expires) {
            names.get_mut().remove(name);
            if names.get().is_empty() {
                names.remove();
            }
        }
        true
    }
}

fn name(key: &ClaimKey) -> String {
    // The length tells where the scope ends, whatever either is made of.
    format!("{}:{}{}", key.scope.len(), key.scope, key.id)
}

#[async_trait]
impl IdempotencyStore for MemoryStore {
    async fn claim(&self, ask: &ClaimAsk<'_>) -> Result<ClaimAnswer, StoreError> {
        let (now, lease) = (Clock::Tokio.now(), bounded(ask.lease));
        let mut state = self.state();
        state.expire_claims(now);
        let name = name(ask.key);
        let last = state.claims.get(&name).cloned();
        let admits = match &last {
            Some(record) => record.admits(ask, now),
            None => Admits::Run { attempts: ask.attempts, takeovers: 0 },
        };
        let (attempts, takeovers, fence) = match (admits, &last) {
            (Admits::Not(answer), _) => {
                if ask.waits && matches!(answer, ClaimAnswer::Running { .. }) {
                    state.awaits(&name, ask.owner);
                }
                return Ok(answer);
            }
            (Admits::Again, Some(record)) => (record.attempts, record.takeovers, record.fence),
            (Admits::Again, None) => (ask.attempts, 0, 0),
            (Admits::Run { attempts, takeovers }, last) => {
                let least = last.as_ref().map_or(0, |record| record.fence + 1);
                let fence = state.micros(now).max(least).max(ask.seen.0.saturating_add(1));
                (attempts, takeovers, fence)
            }
        };
        let generation = last.as_ref().map_or(0, |last| last.generation).max(ask.key.generation);
        let waiting = last.map_or_else(Vec::new, |last| last.waiting);
        let record = Record {
            phase: Phase::Running { until: now + lease },
            owner: ask.owner.clone(),
            holder: ask.holder.to_owned(),
            attempts,
            takeovers,
            generation,
            fingerprint: ask.key.fingerprint,
            fence,
            expires: now + ask.keep.max(lease * 2),
            waiting,
        };
        state.put(name, record);
        let kind = if takeovers > 0 { ClaimKind::TakenOver } else { ClaimKind::Fresh };
        Ok(ClaimAnswer::Granted(Claim { kind, attempts, takeovers, fence: Fence(fence) }))
    }

    async fn renew_claim(
        &self,
        key: &ClaimKey,
        owner: &Owner,
        lease: Duration,
    ) -> Result<Renewed, StoreError> {
        let (now, lease) = (Clock::Tokio.now(), bounded(lease));
        let mut state = self.state();
        state.expire_claims(now);
        let name = name(key);
        let known = state.claims.get(&name).filter(|record| record.owner == *owner).cloned();
        Ok(match known {
            Some(record @ Record { phase: Phase::Running { .. }, .. }) => {
                let phase = Phase::Running { until: now + lease };
                // A record that is forgotten while it is held would be fresh for the next who asks.
                let expires = record.expires.max(now + lease * 2);
                state.put(name, Record { phase, expires, ..record });
                Renewed::Kept
            }
            _ => Renewed::Lost,
        })
    }

    async fn end(
        &self,
        key: &ClaimKey,
        owner: &Owner,
        ending: &Ending<'_>,
        keep: Duration,
    ) -> Result<bool, StoreError> {
        let now = Clock::Tokio.now();
        let mut state = self.state();
        state.expire_claims(now);
        let name = name(key);
        let mut known = state.claims.get(&name).cloned();
        if known.as_ref().is_some_and(|record| record.owner != *owner) {
            return Ok(false);
        }
        for waiting in
            known.as_mut().map(|record| std::mem::take(&mut record.waiting)).unwrap_or_default()
        {
            self.wakes.wake(waiting.as_str());
        }
        let record = match (known, ending) {
            // Who waits in its process for its next attempt may find that the last one does not count.
            (
                Some(record @ Record { phase: Phase::Failed { copied: false, .. }, .. }),
                Ending::Failed { copied: false, .. },
            ) => record,
            (Some(record), _) if !matches!(record.phase, Phase::Running { .. }) => return Ok(true),
            (None, Ending::Release | Ending::Abandon) => return Ok(true),
            (Some(record), Ending::Release) if record.says_nothing() => {
                state.forget(&name);
                return Ok(true);
            }
            (Some(record), _) => record,
            (None, _) => empty(key, owner, now),
        };
        state.put(name, ended(record, ending, now, keep));
        Ok(true)
    }

    async fn peek(&self, key: &ClaimKey) -> Result<Option<ClaimState>, StoreError> {
        let now = Clock::Tokio.now();
        let mut state = self.state();
        state.expire_claims(now);
        Ok(state.claims.get(&name(key)).map(|record| {
            let (phase, remaining) = match &record.phase {
                Phase::Running { until } => ("running", until.since(now)),
                Phase::Failed { due, .. } => ("failed", due.since(now)),
                Phase::Done(_) => ("done", Duration::ZERO),
                Phase::Dead(_) => ("dead", Duration::ZERO),
            };
            ClaimState {
                state: phase,
                attempts: record.attempts,
                generation: record.generation,
                holder: record.holder.clone(),
                remaining,
            }
        }))
    }

    async fn reset(&self, key: &ClaimKey) -> Result<bool, StoreError> {
        Ok(self.state().forget(&name(key)))
    }
}

/// What is written for a claim whose record is gone.
fn empty(key: &ClaimKey, owner: &Owner, now: Moment) -> Record {
    Record {
        phase: Phase::Running { until: now },
        owner: owner.clone(),
        holder: String::new(),
        attempts: 0,
        takeovers: 0,
        generation: key.generation,
        fingerprint: key.fingerprint,
        fence: 0,
        expires: now,
        waiting: Vec::new(),
    }
}

fn ended(mut record: Record, ending: &Ending<'_>, now: Moment, keep: Duration) -> Record {
    record.expires = now + keep;
    record.phase = match *ending {
        Ending::Complete(result) => Phase::Done(result.map(Bytes::copy_from_slice)),
        Ending::Dead(reason) => Phase::Dead(reason.to_owned()),
        Ending::Failed { attempts, due_in, copied } => {
            record.attempts = attempts;
            record.takeovers = 0;
            record.expires = now + keep + due_in;
            Phase::Failed { due: now + due_in, copied }
        }
        Ending::Release => Phase::Failed { due: now, copied: false },
        Ending::Abandon => {
            record.takeovers += 1;
            Phase::Failed { due: now, copied: false }
        }
    };
    record
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEEP: Duration = Duration::from_secs(3600);

    fn key(id: u32) -> ClaimKey {
        let (id, fingerprint) = (format!("id-{id}").into(), Fingerprint::of(b"payload"));
        ClaimKey { scope: "orders".into(), id, fingerprint, generation: 0 }
    }

    async fn claim(store: &MemoryStore, key: &ClaimKey, owner: &Owner, lease: Duration) {
        let (keep, seen) = (KEEP, Fence(0));
        let (attempts, holder, force, waits) = (0, "test", false, false);
        let ask = ClaimAsk { key, owner, lease, keep, attempts, holder, force, waits, seen };
        store.claim(&ask).await.expect("an answer");
    }

    #[tokio::test(start_paused = true)]
    async fn ten_thousand_claims_that_are_given_back_leave_nothing_behind() {
        let store = MemoryStore::new();
        for number in 0..10_000 {
            let (key, owner) = (key(number % 100), Owner::new());
            claim(&store, &key, &owner, Duration::from_secs(30)).await;
            let known = match number % 2 {
                0 => store.end(&key, &owner, &Ending::Release, KEEP).await,
                _ => store.reset(&key).await,
            };
            assert!(known.expect("an answer"));
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        let state = store.state();
        assert!(state.claims.is_empty() && state.expiries.is_empty(), "{}", state.expiries.len());
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_without_end_is_renewed() {
        let (store, key, owner) = (MemoryStore::new(), key(1), Owner::new());
        claim(&store, &key, &owner, Duration::MAX).await;
        let kept = store.renew_claim(&key, &owner, Duration::MAX).await.expect("an answer");
        assert_eq!(kept, Renewed::Kept);
    }
}
