//! Claims in Redis.

use std::time::{Duration, Instant};

use ::redis::cmd;
use async_trait::async_trait;

use super::lock::milliseconds;
use super::part::{Part, Said};
use super::replicas::Replicas;
use super::rounds::Rounds;
use super::scripts::{SCRIPTS, call};
use super::{RedisStore, reply};
use crate::store::{
    ClaimAnswer, ClaimAsk, ClaimKey, ClaimState, Ending, IdempotencyStore, Owner, Renewed,
    StoreError,
};

impl RedisStore {
    /// Asks for a claim, as part of a call that ends at `until`.
    pub(super) async fn claim_until(
        &self,
        until: Instant,
        ask: &ClaimAsk<'_>,
    ) -> Result<ClaimAnswer, StoreError> {
        let answer = self.rounds.claims.ask(until, Part::claim(&self.keys, ask)).await?;
        let answer = reply::claim(answer, ask.attempts)?;
        self.listen_for_end(ask, &answer);
        if let (ClaimAnswer::Granted(_), Some(replicas)) = (&answer, &self.replicas) {
            // In a box, so that those without replicas carry no room for it.
            Box::pin(self.confirm_claim(replicas, until, ask)).await?;
        }
        Ok(answer)
    }

    async fn confirm_claim(
        &self,
        replicas: &Replicas,
        until: Instant,
        ask: &ClaimAsk<'_>,
    ) -> Result<(), StoreError> {
        let key = self.keys.of_claim(ask.key);
        let confirmed = replicas.confirm(until, &self.keys, &key, ask.owner).await;
        if confirmed.is_err() {
            // If there is no time left for that, whoever asked gives it back in the background.
            let _ = self.end_until(until, ask.key, ask.owner, &Ending::Release, ask.keep).await;
        }
        confirmed
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
        let keep = milliseconds(keep);
        let part = |said| Part::end(&self.keys, (key, owner), ending, keep, said);
        ask_to_end("end a claim", &self.rounds.ends, until, part).await
    }

    /// Whoever waits for the end of a run is told of it by publish/subscribe.
    pub(super) fn listen_for_end(&self, ask: &ClaimAsk<'_>, answer: &ClaimAnswer) {
        if ask.waits && matches!(answer, ClaimAnswer::Running { .. }) {
            self.listener.listen();
        }
    }
}

/// Names the owner alone, and says everything where the record is gone: a third less to say, and to read for Redis.
pub(super) async fn ask_to_end(
    what: &str,
    rounds: &Rounds,
    until: Instant,
    part: impl Fn(Said) -> Part,
) -> Result<bool, StoreError> {
    match reply::ended(what, rounds.ask(until, part(Said::Owner)).await?)? {
        Some(ended) => Ok(ended),
        None => reply::truth(what, rounds.ask(until, part(Said::Whole)).await?),
    }
}

#[async_trait]
impl IdempotencyStore for RedisStore {
    async fn claim(&self, ask: &ClaimAsk<'_>) -> Result<ClaimAnswer, StoreError> {
        self.claim_until(self.link.until(), ask).await
    }

    async fn claim_all(&self, asks: &[ClaimAsk<'_>]) -> Vec<Result<ClaimAnswer, StoreError>> {
        self.claim_together(asks).await
    }

    async fn complete_all(
        &self,
        claims: &[(&ClaimKey, &Owner)],
        keep: Duration,
    ) -> Vec<Result<bool, StoreError>> {
        self.complete_together(claims, keep).await
    }

    async fn renew_claim(
        &self,
        key: &ClaimKey,
        owner: &Owner,
        lease: Duration,
    ) -> Result<Renewed, StoreError> {
        let mut command = call(&SCRIPTS.renew_claim, 1);
        command.arg(self.keys.of_claim(key)).arg(owner.as_str()).arg(milliseconds(lease));
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
        command.arg(self.keys.of_claim(key));
        reply::claim_state(self.link.run("look at a claim", &SCRIPTS.peek, command).await?)
    }

    async fn reset(&self, key: &ClaimKey) -> Result<bool, StoreError> {
        let mut command = cmd("DEL");
        command.arg(self.keys.of_claim(key));
        let what = "reset a claim";
        reply::truth(what, self.link.send(what, &command).await?)
    }
}
