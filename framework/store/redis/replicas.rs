//! Waits until replicas have a lock or claim.
//!
//! Owns a connection of its own, because `WAIT` blocks whatever comes behind it, and the rounds on
//! it: who comes while a round is on its way shares the next one. `WAIT` speaks of what its own
//! connection wrote, so a key is touched first: replication is one stream, and replicas that have
//! the touch have everything before it. That the record is on this server is looked at as well: a
//! failover in between would else go unnoticed.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use ::redis::{Pipeline, Value, pipe};
use futures_util::future::join_all;
use tokio::runtime::Handle;
use tokio::sync::oneshot::{self, error::TryRecvError};

use super::RedisSettings;
use super::keys::Keys;
use super::link::{Failed, Link};
use super::part::is_of;
use super::reply;
use crate::store::{Owner, StoreError, StoreFault, StoreState};

const WHAT: &str = "wait for replicas";
/// A touched key is worth nothing afterwards.
const TOUCH_MILLISECONDS: u64 = 10_000;

pub(super) struct Replicas {
    link: Link,
    name: String,
    min: u32,
    patience: Duration,
    queue: Mutex<Vec<Request>>,
    round: tokio::sync::Mutex<()>,
}

struct Request {
    key: Vec<u8>,
    touch: Vec<u8>,
    owner: Owner,
    until: Instant,
    done: oneshot::Sender<Result<(), StoreError>>,
}

impl Replicas {
    /// `link` must be a connection that nobody else uses.
    pub(super) fn new(settings: &RedisSettings, link: Link) -> Self {
        Self {
            link,
            name: settings.name.clone(),
            min: settings.replicas_min,
            patience: settings.deadline.mul_f64(0.7),
            queue: Mutex::default(),
            round: tokio::sync::Mutex::default(),
        }
    }

    pub(super) fn drive_on(&self, runtime: &Handle) {
        self.link.drive_on(runtime);
    }

    /// Completes when enough replicas have the record at `key`, which `owner` wrote before; at `until` at the latest.
    pub(super) async fn confirm(
        &self,
        until: Instant,
        keys: &Keys,
        key: &[u8],
        owner: &Owner,
    ) -> Result<(), StoreError> {
        let confirmed = self.confirmed(until, keys, key, owner);
        let confirmed = tokio::time::timeout_at(until.into(), confirmed).await;
        confirmed.unwrap_or_else(|_| Err(self.unreplicated("no time is left for that")))
    }

    /// Whether enough of them are there, whatever was written before.
    pub(super) async fn probe(&self, until: Instant, touch: &[u8]) -> Result<(), StoreError> {
        let probed = async {
            let _round = self.round.lock().await;
            let pipeline = self.pipeline(touch, &[]);
            let answers = self.link.send_all(until, WHAT, touch, &pipeline).await?;
            let count = self.acknowledged(&answers)?;
            if self.are_enough(count) { Ok(()) } else { Err(self.unreplicated(&self.few(count))) }
        };
        let probed = tokio::time::timeout_at(until.into(), probed).await;
        probed.unwrap_or_else(|_| Err(self.unreplicated("no time is left for that")))
    }

    /// Whether they were there when they were last asked.
    pub(super) fn state(&self) -> StoreState {
        self.link.fault()
    }

    async fn confirmed(
        &self,
        until: Instant,
        keys: &Keys,
        key: &[u8],
        owner: &Owner,
    ) -> Result<(), StoreError> {
        loop {
            let (done, mut told) = oneshot::channel();
            let (key, touch, owner) = (key.to_owned(), keys.touch(key), owner.clone());
            self.queue().push(Request { key, touch, owner, until, done });
            let result = tokio::select! {
                result = &mut told => result,
                _round = self.round.lock() => {
                    match told.try_recv() {
                        // Whoever had the round before took this request along.
                        Ok(result) => return result,
                        // The same, and was cancelled: nothing comes from there any more.
                        Err(TryRecvError::Closed) => continue,
                        Err(TryRecvError::Empty) => {}
                    }
                    let requests = std::mem::take(&mut *self.queue());
                    self.round(requests).await;
                    told.await
                }
            };
            if let Ok(result) = result {
                return result;
            }
            // Whoever led the round was cancelled: once more.
        }
    }

    fn queue(&self) -> std::sync::MutexGuard<'_, Vec<Request>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn round(&self, requests: Vec<Request>) {
        let waiting = requests.into_iter().filter(|request| !request.done.is_closed());
        if self.link.is_cluster() {
            // Each key has a master of its own, as far as is known here.
            join_all(waiting.map(|request| self.ask(vec![request]))).await;
        } else {
            self.ask(waiting.collect()).await;
        }
    }

    async fn ask(&self, requests: Vec<Request>) {
        let Some(first) = requests.first() else { return };
        let pipeline = self.pipeline(&first.touch, &requests);
        // Those who joined have more time left than who came first, and ask again if they must.
        let until = requests.iter().map(|request| request.until).max().unwrap_or(first.until);
        match self.link.send_all(until, WHAT, &first.touch, &pipeline).await {
            Ok(answers) => {
                let acknowledged = self.acknowledged(&answers);
                for (request, held) in requests.into_iter().zip(answers.into_iter().skip(2)) {
                    let result = acknowledged.clone();
                    let result = result.and_then(|count| self.judge(&request, count, &held));
                    // Whoever asked may be gone.
                    let _ = request.done.send(result);
                }
            }
            Err(error) => {
                for request in requests {
                    let _ = request.done.send(Err(error.clone()));
                }
            }
        }
    }

    fn pipeline(&self, touch: &[u8], requests: &[Request]) -> Pipeline {
        let patience = u64::try_from(self.patience.as_millis()).unwrap_or(1000).max(1);
        let mut pipeline = pipe();
        pipeline.cmd("SET").arg(touch).arg(1).arg("PX").arg(TOUCH_MILLISECONDS);
        pipeline.cmd("WAIT").arg(self.min).arg(patience);
        for request in requests {
            pipeline.cmd("GET").arg(&request.key);
        }
        pipeline
    }

    fn judge(&self, request: &Request, count: u64, held: &Value) -> Result<(), StoreError> {
        let ours = matches!(held, Value::BulkString(record) if is_of(record, &request.owner));
        match (ours, self.are_enough(count)) {
            (true, true) => Ok(()),
            (true, false) => Err(self.unreplicated(&self.few(count))),
            (false, _) => Err(self.unreplicated("another server is the master now")),
        }
    }

    /// How many had the touch; that they are enough is what makes the store whole again.
    fn acknowledged(&self, answers: &[Value]) -> Result<u64, StoreError> {
        let count = answers.get(1).map_or(Ok(0), |count| reply::number(WHAT, count))?;
        if self.are_enough(count) {
            self.link.is_well();
        }
        Ok(count)
    }

    fn are_enough(&self, count: u64) -> bool {
        count >= u64::from(self.min)
    }

    fn few(&self, count: u64) -> String {
        format!("{count} of {} replicas have it after {:?}", self.min, self.patience)
    }

    /// Says so as of a server that is silent: no message gets through meanwhile.
    fn unreplicated(&self, found: &str) -> StoreError {
        let text = format!("cannot {WHAT} in store `{}`: {found}; look at its replicas", self.name);
        let error = StoreError::new(StoreFault::Unreplicated, text);
        self.link.down(WHAT, Failed::ForGood(error))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::address::Address;
    use super::*;

    /// Of a server that nobody can reach.
    fn replicas() -> Arc<Replicas> {
        let nowhere = RedisSettings::new("main", "redis://127.0.0.1:1");
        let address = Address::parse(&nowhere).expect("an address");
        let link = Link::new(&nowhere, Arc::new(address));
        Arc::new(Replicas::new(&nowhere, link))
    }

    #[tokio::test]
    async fn whoever_joined_a_round_whose_leader_was_cancelled_gets_an_answer() {
        let replicas = replicas();
        let ask = |name: String| {
            let (replicas, until) = (replicas.clone(), Instant::now() + Duration::from_millis(300));
            async move {
                let owner = Owner::from(name.as_str());
                replicas.confirm(until, &Keys::new("p"), b"p:lock:{a}", &owner).await
            }
        };
        let round = replicas.round.lock().await;
        let askers: Vec<_> =
            (0..32).map(|number| tokio::spawn(ask(format!("owner-{number}")))).collect();
        while replicas.queue().len() < askers.len() {
            tokio::task::yield_now().await;
        }
        drop(round);
        while !replicas.queue().is_empty() {
            tokio::task::yield_now().await;
        }
        // The first in the queue for the round leads it.
        askers[0].abort();
        for asker in askers.into_iter().skip(1) {
            let error = asker.await.expect("no panic").expect_err("nobody answers");
            assert!(error.is_outage(), "{error}");
        }
    }
}
