//! Locks in Redis.

use std::time::{Duration, Instant};

use ::redis::Cmd;
use async_trait::async_trait;

use super::part::{Part, sized};
use super::replicas::Replicas;
use super::scripts::{SCRIPTS, call};
use super::{RedisStore, reply};
use crate::store::{
    Clock, LockAnswer, LockAsk, LockState, LockStore, Owner, Renewed, StoreError, StoreFault, Wakes,
};

impl RedisStore {
    fn add_lock_keys(&self, command: &mut Cmd, key: &str) {
        for key in self.keys.of_lock(key) {
            command.arg(key);
        }
    }

    /// Asks for a lock, as part of a call that ends at `until`.
    pub(super) async fn acquire_until(
        &self,
        until: Instant,
        ask: &LockAsk<'_>,
    ) -> Result<LockAnswer, StoreError> {
        if ask.waits {
            self.listener.listen();
        }
        let answer = self.rounds.acquires.ask(until, Part::acquire(&self.keys, ask)).await?;
        let answer = reply::lock(answer)?;
        if let (LockAnswer::Held(_), Some(replicas)) = (answer, &self.replicas) {
            // In a box, so that those without replicas carry no room for it.
            Box::pin(self.confirm_lock(replicas, until, ask)).await?;
        }
        Ok(answer)
    }

    async fn confirm_lock(
        &self,
        replicas: &Replicas,
        until: Instant,
        ask: &LockAsk<'_>,
    ) -> Result<(), StoreError> {
        let [lock, ..] = self.keys.of_lock(ask.key);
        let confirmed = replicas.confirm(until, &self.keys, &lock, ask.owner).await;
        if confirmed.is_err() {
            // A failover could give it to somebody else: better not to have it at all.
            // If there is no time left for that, whoever asked leaves the queue, and the hold with it.
            let _ = self.release_until(until, ask.key, ask.owner).await;
        }
        confirmed
    }

    async fn release_until(
        &self,
        until: Instant,
        key: &str,
        owner: &Owner,
    ) -> Result<bool, StoreError> {
        let part = Part::release(&self.keys, key, owner);
        reply::truth("release a lock", self.rounds.releases.ask(until, part).await?)
    }
}

/// Lua's numbers are exact up to here; a larger fence was not made by us and is not believed.
pub(super) fn exact(fence: u64) -> u64 {
    if fence < 1 << 53 { fence } else { 0 }
}

/// At least one: a lease of nothing would be a lock that never was.
pub(super) fn milliseconds(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX).clamp(1, 1 << 42)
}

#[async_trait]
impl LockStore for RedisStore {
    async fn acquire(&self, ask: &LockAsk<'_>) -> Result<LockAnswer, StoreError> {
        self.acquire_until(self.link.until(), ask).await
    }

    async fn renew(
        &self,
        key: &str,
        owner: &Owner,
        lease: Duration,
    ) -> Result<Renewed, StoreError> {
        let [lock, ..] = self.keys.of_lock(key);
        let mut command = call(&SCRIPTS.renew_lock, 1);
        command.arg(lock).arg(owner.as_str()).arg(milliseconds(lease));
        let what = "renew a lock";
        let answer = self.link.run(what, &SCRIPTS.renew_lock, command).await?;
        match reply::number(what, &answer)? {
            1 => Ok(Renewed::Kept),
            2 => Ok(Renewed::Forced),
            0 => Ok(Renewed::Lost),
            other => Err(StoreError::new(
                StoreFault::Other,
                format!("cannot {what}: the script answered {other}; this is a fault of ours"),
            )),
        }
    }

    async fn release(&self, key: &str, owner: &Owner) -> Result<bool, StoreError> {
        self.release_until(self.link.until(), key, owner).await
    }

    async fn leave(&self, key: &str, owner: &Owner) -> Result<(), StoreError> {
        let mut command = call(&SCRIPTS.leave, 3);
        self.add_lock_keys(&mut command, key);
        let mut who = Vec::new();
        sized(&mut who, owner.as_str());
        command.arg(who).arg(self.keys.channels());
        self.link.run("leave the queue of a lock", &SCRIPTS.leave, command).await?;
        Ok(())
    }

    async fn force_release(&self, key: &str) -> Result<bool, StoreError> {
        let mut command = call(&SCRIPTS.force, 3);
        self.add_lock_keys(&mut command, key);
        command.arg(self.keys.channels());
        let what = "release a lock by force";
        reply::truth(what, self.link.run(what, &SCRIPTS.force, command).await?)
    }

    async fn inspect(&self, key: &str) -> Result<Option<LockState>, StoreError> {
        let mut command = call(&SCRIPTS.inspect, 3);
        self.add_lock_keys(&mut command, key);
        reply::lock_state(self.link.run("inspect a lock", &SCRIPTS.inspect, command).await?)
    }

    fn wakes(&self) -> &Wakes {
        &self.wakes
    }

    fn clock(&self) -> Clock {
        Clock::Boot
    }
}
