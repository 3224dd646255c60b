//! Claims in Redis.

use std::time::{Duration, Instant};

use ::redis::{Cmd, cmd};
use async_trait::async_trait;

use super::lock::{exact, milliseconds};
use super::scripts::{SCRIPTS, call};
use super::{RedisStore, reply};
use crate::store::{
    ClaimAnswer, ClaimAsk, ClaimKey, ClaimState, Ending, IdempotencyStore, Owner, Renewed,
    StoreError,
};

impl RedisStore {
    pub(super) fn add_claim(&self, command: &mut Cmd, ask: &ClaimAsk<'_>) {
        command
            .arg(ask.owner.as_str())
            .arg(milliseconds(ask.lease))
            .arg(milliseconds(ask.keep))
            .arg(&ask.key.fingerprint.0[..])
            .arg(ask.key.generation)
            .arg(ask.attempts)
            .arg(ask.holder)
            .arg(u8::from(ask.force))
            .arg(exact(ask.seen.0))
            .arg(u8::from(ask.waits));
    }

    pub(super) fn add_ending(
        &self,
        command: &mut Cmd,
        key: &ClaimKey,
        owner: &Owner,
        ending: &Ending<'_>,
        keep: Duration,
    ) {
        let nothing: Option<&[u8]> = None;
        let (name, attempts, due_in, copied, text) = match *ending {
            Ending::Complete(result) => ("complete", 0, Duration::ZERO, false, result),
            Ending::Failed { attempts, due_in, copied } => {
                ("failed", attempts, due_in, copied, nothing)
            }
            Ending::Dead(reason) => ("dead", 0, Duration::ZERO, false, Some(reason.as_bytes())),
            Ending::Release => ("release", 0, Duration::ZERO, false, nothing),
            Ending::Abandon => ("abandon", 0, Duration::ZERO, false, nothing),
        };
        command
            .arg(owner.as_str())
            .arg(name)
            .arg(milliseconds(keep))
            .arg(&key.fingerprint.0[..])
            .arg(key.generation)
            .arg(attempts)
            .arg(u64::try_from(due_in.as_millis()).unwrap_or(u64::MAX).min(1 << 42))
            .arg(u8::from(copied))
            .arg(u8::from(text.is_some()))
            .arg(text.unwrap_or_default())
            .arg(self.keys.channels());
    }

    /// Asks for a claim, as part of a call that ends at `until`.
    pub(super) async fn claim_until(
        &self,
        until: Instant,
        ask: &ClaimAsk<'_>,
    ) -> Result<ClaimAnswer, StoreError> {
        let key = self.keys.claim(ask.key);
        let mut command = call(&SCRIPTS.claim, 1);
        command.arg(&key);
        self.add_claim(&mut command, ask);
        let what = "claim a message id";
        let answer = self.link.run_until(until, what, &SCRIPTS.claim, command).await?;
        let answer = reply::claim(answer)?;
        self.listen_for_end(ask, &answer);
        if let (ClaimAnswer::Granted(_), Some(replicas)) = (&answer, &self.replicas)
            && let Err(error) = replicas.confirm(until, &self.keys, &key, ask.owner).await
        {
            // If there is no time left for that, whoever asked gives it back in the background.
            let _ = self.end_until(until, ask.key, ask.owner, &Ending::Release, ask.keep).await;
            return Err(error);
        }
        Ok(answer)
    }

    /// Ends a claim, as part of a call that ends at `until`.
    pub(super) async fn end_until(
        &self,
        until: Instant,
        key: &ClaimKey,
        owner: &Owner,
        ending: &Ending<'_>,
        keep: Duration,
    ) -> Result<bool, StoreError> {
        let mut command = call(&SCRIPTS.end, 1);
        command.arg(self.keys.claim(key));
        self.add_ending(&mut command, key, owner, ending, keep);
        let what = "end a claim";
        reply::truth(what, self.link.run_until(until, what, &SCRIPTS.end, command).await?)
    }

    /// Whoever waits for the end of a run is told of it by publish/subscribe.
    pub(super) fn listen_for_end(&self, ask: &ClaimAsk<'_>, answer: &ClaimAnswer) {
        if ask.waits && matches!(answer, ClaimAnswer::Running { .. }) {
            self.listener.listen();
        }
    }
}

#[async_trait]
impl IdempotencyStore for RedisStore {
    async fn claim(&self, ask: &ClaimAsk<'_>) -> Result<ClaimAnswer, StoreError> {
        self.claim_until(self.link.until(), ask).await
    }

    async fn renew_claim(
        &self,
        key: &ClaimKey,
        owner: &Owner,
        lease: Duration,
    ) -> Result<Renewed, StoreError> {
        let mut command = call(&SCRIPTS.renew_claim, 1);
        command.arg(self.keys.claim(key)).arg(owner.as_str()).arg(milliseconds(lease));
        let what = "renew a claim";
        let answer = self.link.run(what, &SCRIPTS.renew_claim, command).await?;
        Ok(if reply::truth(what, answer)? { Renewed::Kept } else { Renewed::Lost })
    }

    async fn end(
        &self,
        key: &ClaimKey,
        owner: &Owner,
        ending: &Ending<'_>,
        keep: Duration,
    ) -> Result<bool, StoreError> {
        self.end_until(self.link.until(), key, owner, ending, keep).await
    }

    async fn peek(&self, key: &ClaimKey) -> Result<Option<ClaimState>, StoreError> {
        let mut command = call(&SCRIPTS.peek, 1);
        command.arg(self.keys.claim(key));
        reply::claim_state(self.link.run("look at a claim", &SCRIPTS.peek, command).await?)
    }

    async fn reset(&self, key: &ClaimKey) -> Result<bool, StoreError> {
        let mut command = cmd("DEL");
        command.arg(self.keys.claim(key));
        let what = "reset a claim";
        reply::truth(what, self.link.send(what, &command).await?)
    }
}
