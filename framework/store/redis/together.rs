//! Claims of several ids in Redis: one question for all of them, and one for their ends.
//!
//! Owns when that cannot be, and what is asked one by one then. What a claim is, and how one ends, stands in
//! idempotency.rs.

use std::time::Duration;

use ::redis::Value;
use futures_util::future::join_all;

use super::lock::milliseconds;
use super::part::{Part, claim_rules};
use super::rounds::ROUND_MAX;
use super::{RedisStore, reply};
use crate::store::{
    ClaimAnswer, ClaimAsk, ClaimKey, Ending, IdempotencyStore, Owner, StoreError, StoreFault,
};

impl RedisStore {
    pub(super) async fn claim_together(
        &self,
        asks: &[ClaimAsk<'_>],
    ) -> Vec<Result<ClaimAnswer, StoreError>> {
        // What replicas do not have is taken back: one by one.
        if !self.is_one_server() || self.replicas.is_some() {
            return join_all(asks.iter().map(|ask| self.claim(ask))).await;
        }
        let are_alike =
            |one: &ClaimAsk<'_>, other: &ClaimAsk<'_>| claim_rules(one) == claim_rules(other);
        let rounds = asks.chunk_by(are_alike).flat_map(|asks| asks.chunks(ROUND_MAX));
        join_all(rounds.map(|asks| self.claim_in_one_round(asks))).await.concat()
    }

    pub(super) async fn complete_together(
        &self,
        claims: &[(&ClaimKey, &Owner)],
        keep: Duration,
    ) -> Vec<Result<bool, StoreError>> {
        let rounds = claims.chunks(ROUND_MAX);
        join_all(rounds.map(|claims| self.complete_in_one_round(claims, keep))).await.concat()
    }

    async fn claim_in_one_round(
        &self,
        asks: &[ClaimAsk<'_>],
    ) -> Vec<Result<ClaimAnswer, StoreError>> {
        let what = "claim a message id";
        let part = Part::claims(&self.keys, asks);
        let said = self.rounds.claims.ask(self.link.until(), part).await;
        let Some(said) = each(what, said, asks.len()) else {
            return join_all(asks.iter().map(|ask| self.claim(ask))).await;
        };
        let read = |(ask, said): (&ClaimAsk<'_>, Result<Value, StoreError>)| {
            let answer = reply::claim(said?, ask.attempts)?;
            self.listen_for_end(ask, &answer);
            Ok(answer)
        };
        asks.iter().zip(said).map(read).collect()
    }

    async fn complete_in_one_round(
        &self,
        claims: &[(&ClaimKey, &Owner)],
        keep: Duration,
    ) -> Vec<Result<bool, StoreError>> {
        let what = "end a claim";
        let alone = |(key, owner)| self.end(key, owner, &Ending::Complete(None), keep);
        let said = match self.is_one_server() {
            true => {
                let part = Part::completions(&self.keys, claims, milliseconds(keep));
                each(what, self.rounds.ends.ask(self.link.until(), part).await, claims.len())
            }
            false => None,
        };
        let Some(said) = said else { return join_all(claims.iter().copied().map(alone)).await };
        let mut gone = Vec::new();
        let mut ended: Vec<_> = said
            .into_iter()
            .enumerate()
            .map(|(place, said)| match reply::ended(what, said?)? {
                Some(is_ours) => Ok(is_ours),
                None => {
                    gone.push(place);
                    Ok(false)
                }
            })
            .collect();
        // Of those whose record is gone the whole of it is said.
        let said_whole = join_all(gone.iter().map(|place| alone(claims[*place]))).await;
        for (place, said) in gone.into_iter().zip(said_whole) {
            ended[place] = said;
        }
        ended
    }
}

/// What was answered to each of `count`. `None`: they are to be asked one by one, because one of them is perhaps what
/// could not be answered.
fn each(
    what: &str,
    said: Result<Value, StoreError>,
    count: usize,
) -> Option<Vec<Result<Value, StoreError>>> {
    match said {
        // Said once for all, or the only one.
        Ok(said @ Value::Int(_)) => Some(vec![Ok(said); count]),
        Ok(said) if count == 1 => Some(vec![Ok(said)]),
        Ok(Value::Array(said)) if said.len() == count => Some(said.into_iter().map(Ok).collect()),
        Ok(other) => Some(vec![Err(reply::strange(what, &other)); count]),
        Err(error) if error.fault == StoreFault::Other && count > 1 => None,
        Err(error) => Some(vec![Err(error); count]),
    }
}
