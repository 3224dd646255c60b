//! Locks in this process.

use std::time::Duration;

use async_trait::async_trait;

use super::{MemoryStore, State, bounded, same};
use crate::store::{
    Clock, Fence, LockAnswer, LockAsk, LockState, LockStore, Moment, Owner, Renewed, StoreError,
    Wakes,
};

/// How long a waiter that asks no more is believed to wait.
const WAITER_SILENT_MAX: Duration = Duration::from_secs(5);

pub(super) struct Record {
    owner: Option<Owner>,
    forced: Option<Owner>,
    holder: String,
    since: Moment,
    until: Moment,
    fence: u64,
    queue: Vec<(Owner, Moment)>,
}

impl Record {
    fn new(now: Moment) -> Self {
        Self {
            owner: None,
            forced: None,
            holder: String::new(),
            since: now,
            until: now,
            fence: 0,
            queue: Vec::new(),
        }
    }

    fn skip_the_dead(&mut self, now: Moment) {
        self.queue.retain(|(_, heard)| now.since(*heard) < WAITER_SILENT_MAX);
    }

    fn leave(&mut self, owner: &Owner) {
        self.queue.retain(|(waiting, _)| waiting != owner);
    }

    fn enqueue(&mut self, owner: &Owner, now: Moment) -> u32 {
        match self.queue.iter().position(|(waiting, _)| waiting == owner) {
            Some(place) => {
                self.queue[place].1 = now;
                place as u32
            }
            None => {
                self.queue.push((owner.clone(), now));
                self.queue.len() as u32 - 1
            }
        }
    }

    /// Whether `owner` may have it now.
    fn is_free_for(&self, ask: &LockAsk<'_>, now: Moment) -> bool {
        let held = self.owner.is_some() && self.until > now;
        let comes_first = !ask.fair || self.queue.first().is_none_or(|head| head.0 == *ask.owner);
        !held && comes_first
    }

    /// Whoever gives it back need not be told any more that it was taken.
    fn forget_forced(&mut self, owner: &Owner) {
        if same(self.forced.as_ref(), owner) {
            self.forced = None;
        }
    }

    fn free(&mut self, now: Moment, wakes: &Wakes) {
        self.owner = None;
        self.skip_the_dead(now);
        if let Some((head, _)) = self.queue.first() {
            wakes.wake(head.as_str());
        }
    }
}

impl State {
    /// A key that nobody holds or waits for needs no record.
    fn forget_free(&mut self, key: &str) {
        let is_free = |record: &Record| {
            record.owner.is_none() && record.forced.is_none() && record.queue.is_empty()
        };
        if self.locks.get(key).is_some_and(is_free) {
            self.locks.remove(key);
        }
    }
}

#[async_trait]
impl LockStore for MemoryStore {
    async fn acquire(&self, ask: &LockAsk<'_>) -> Result<LockAnswer, StoreError> {
        let now = Clock::Tokio.now();
        let mut state = self.state();
        let fence = state.fence.saturating_add(1).max(state.micros(now));
        let fence = fence.max(ask.seen.0.saturating_add(1));
        let record = state.locks.entry(ask.key.to_owned()).or_insert_with(|| Record::new(now));
        record.skip_the_dead(now);
        if same(record.owner.as_ref(), ask.owner) && record.until > now {
            record.until = now + bounded(ask.lease);
            return Ok(LockAnswer::Held(Fence(record.fence)));
        }
        if !record.is_free_for(ask, now) {
            let ahead = match ask.waits {
                true => record.enqueue(ask.owner, now),
                false => record.queue.len() as u32,
            };
            // Of a lock that was released nothing remains, whatever its lease was.
            let until = if record.owner.is_some() { record.until } else { now };
            return Ok(LockAnswer::Busy { remaining: until.since(now), ahead });
        }
        record.leave(ask.owner);
        record.fence = fence;
        record.owner = Some(ask.owner.clone());
        record.forced = None;
        ask.holder.clone_into(&mut record.holder);
        record.since = now;
        record.until = now + bounded(ask.lease);
        state.fence = fence;
        Ok(LockAnswer::Held(Fence(fence)))
    }

    async fn renew(
        &self,
        key: &str,
        owner: &Owner,
        lease: Duration,
    ) -> Result<Renewed, StoreError> {
        let now = Clock::Tokio.now();
        let mut state = self.state();
        Ok(match state.locks.get_mut(key) {
            Some(record) if same(record.owner.as_ref(), owner) && record.until > now => {
                record.until = now + bounded(lease);
                Renewed::Kept
            }
            Some(record) if same(record.forced.as_ref(), owner) => Renewed::Forced,
            _ => Renewed::Lost,
        })
    }

    async fn release(&self, key: &str, owner: &Owner) -> Result<bool, StoreError> {
        let now = Clock::Tokio.now();
        let mut state = self.state();
        let held = match state.locks.get_mut(key) {
            Some(record) if same(record.owner.as_ref(), owner) => {
                let held = record.until > now;
                record.free(now, &self.wakes);
                held
            }
            Some(record) => {
                record.forget_forced(owner);
                false
            }
            None => false,
        };
        state.forget_free(key);
        Ok(held)
    }

    async fn leave(&self, key: &str, owner: &Owner) -> Result<(), StoreError> {
        let now = Clock::Tokio.now();
        let mut state = self.state();
        if let Some(record) = state.locks.get_mut(key) {
            record.leave(owner);
            record.forget_forced(owner);
            let held = record.owner.is_some() && record.until > now;
            if !held || same(record.owner.as_ref(), owner) {
                record.free(now, &self.wakes);
            }
        }
        state.forget_free(key);
        Ok(())
    }

    async fn force_release(&self, key: &str) -> Result<bool, StoreError> {
        let now = Clock::Tokio.now();
        let mut state = self.state();
        Ok(match state.locks.get_mut(key) {
            Some(record) if record.owner.is_some() && record.until > now => {
                record.forced = record.owner.take();
                record.free(now, &self.wakes);
                true
            }
            _ => false,
        })
    }

    async fn inspect(&self, key: &str) -> Result<Option<LockState>, StoreError> {
        let now = Clock::Tokio.now();
        let mut state = self.state();
        Ok(look(&mut state, key, now))
    }

    fn wakes(&self) -> &Wakes {
        &self.wakes
    }

    fn clock(&self) -> Clock {
        Clock::Tokio
    }
}

fn look(state: &mut State, key: &str, now: Moment) -> Option<LockState> {
    let record = state.locks.get_mut(key)?;
    record.skip_the_dead(now);
    let held = record.owner.is_some() && record.until > now;
    if !held && record.queue.is_empty() {
        return None;
    }
    let (since, until) = (record.since, record.until);
    let (holder, fence) = (held.then(|| record.holder.clone()), Fence(record.fence));
    let waiting = record.queue.len() as u32;
    Some(LockState {
        holder,
        since: state.time_of(since),
        until: state.time_of(until),
        fence,
        waiting,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask<'a>(key: &'a str, owner: &'a Owner, lease: Duration) -> LockAsk<'a> {
        LockAsk { key, owner, lease, holder: "test", fair: false, waits: false, seen: Fence(0) }
    }

    #[tokio::test(start_paused = true)]
    async fn ten_thousand_keys_leave_nothing_behind() {
        let store = MemoryStore::new();
        for number in 0..10_000 {
            let (key, owner) = (format!("key-{number}"), Owner::new());
            let ask = ask(&key, &owner, Duration::from_secs(30));
            store.acquire(&ask).await.expect("an answer");
            let is_forced = number % 2 == 0;
            if is_forced {
                assert!(store.force_release(&key).await.expect("an answer"));
            }
            assert_eq!(store.release(&key, &owner).await.expect("an answer"), !is_forced);
        }
        assert!(store.state().locks.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_without_end_can_be_looked_at() {
        let (store, owner) = (MemoryStore::new(), Owner::new());
        let ask = ask("a", &owner, Duration::MAX);
        for _ in 0..2 {
            store.acquire(&ask).await.expect("an answer");
            let kept = store.renew("a", &owner, Duration::MAX).await.expect("an answer");
            assert_eq!(kept, Renewed::Kept);
        }
        let state = store.inspect("a").await.expect("an answer").expect("it is held");
        assert!(state.until > state.since);
    }
}
