//! Reads the dead letters of a source and leaves them where they are.
//!
//! Owns a channel on which messages are fetched without being acknowledged: the server holds them for it, and
//! puts them back when it closes: at the head of the queue, but (3.10) no longer in their order if they are
//! many. Whoever pages through them keeps one reader, and others of this process wait until it is closed.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::{FuturesOrdered, StreamExt};
use lapin::Channel;
use lapin::message::BasicGetMessage;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicGetOptions, BasicNackOptions,
    BasicQosOptions,
};
use lapin::types::{FieldTable, ShortString};
use tokio::runtime::Handle;
use tokio::sync::mpsc::{self, OwnedPermit};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::connection::{Link, Live, answer};
use super::envelope::AmqpEnvelope;
use super::fault;
use super::lane::Tally;
use super::ledger::Ledger;
use super::topology::{dead_name, short};
use crate::broker::turn::{Turn, turn};
use crate::broker::{
    BrokerError, DeadLetterReader, Fault, Received, SharedEnvelope, Source, Token,
};

/// How many fetches are under way at once, so that reading is not one round trip a message.
const FETCHES_MAX: usize = 32;
/// How long closing may take before the channel is dropped, which gives everything back too.
const CLOSE_MAX: Duration = Duration::from_secs(10);
/// How long whoever counts waits for the fetches that are under way; then it counts without what they bring.
const QUIET_MAX: Duration = Duration::from_secs(5);

/// A permit for each fetch of a queue that may be under way.
pub(super) struct Fetches(Arc<Semaphore>);

impl Default for Fetches {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(FETCHES_MAX)))
    }
}

impl Fetches {
    /// Waits until none is under way, and lets none begin while what this returns is held: what is out is counted then,
    /// either by the server or here.
    pub(super) async fn quiet(&self) -> Option<SemaphorePermit<'_>> {
        let all = self.0.acquire_many(FETCHES_MAX as u32);
        // The semaphore is never closed.
        timeout(QUIET_MAX, all).await.ok()?.ok()
    }
}

/// A reader of one queue of dead letters.
pub(super) struct RabbitDeadLetters {
    live: Arc<Live>,
    channel: Channel,
    source: Arc<Source>,
    queue: Arc<str>,
    /// What was fetched, in the order of its tags; begun when it is first asked for, and ends with the queue.
    fetched: Option<mpsc::Receiver<Fetched>>,
    /// The task that fetches.
    fetcher: JoinSet<()>,
    ledger: Ledger,
    removed: bool,
    /// Until it is closed.
    held: Option<Arc<Held>>,
}

/// What a reader has of a queue, which nobody else can see: counted for this process, and let go with the reader.
struct Held {
    tally: Arc<Tally>,
    count: AtomicUsize,
    _turn: Turn,
}

impl Held {
    fn add(&self) {
        self.count.fetch_add(1, Relaxed);
        self.tally.dead.fetch_add(1, Relaxed);
    }

    fn remove(&self) {
        self.count.fetch_sub(1, Relaxed);
        self.tally.dead.fetch_sub(1, Relaxed);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.tally.dead.fetch_sub(self.count.load(Relaxed), Relaxed);
    }
}

/// Opens a channel for reading the dead letters of `source`.
pub(super) async fn open(
    link: &Link,
    source: Arc<Source>,
    tally: Arc<Tally>,
) -> Result<RabbitDeadLetters, BrokerError> {
    let queue: Arc<str> = dead_name(&source.settings).into();
    let turn = turn(Arc::clone(&tally.reading), &queue).await?;
    let (live, channel) = link.channel().await?;
    Ok(RabbitDeadLetters {
        live,
        channel,
        source,
        queue,
        fetched: None,
        fetcher: JoinSet::new(),
        ledger: Ledger::default(),
        removed: false,
        held: Some(Arc::new(Held { tally, count: AtomicUsize::new(0), _turn: turn })),
    })
}

impl RabbitDeadLetters {
    fn attempt(&self) -> String {
        format!("reading the dead letters in queue `{}`", self.queue)
    }

    /// Begins to fetch, unless that was begun.
    fn fetched(&mut self) -> Result<&mut mpsc::Receiver<Fetched>, BrokerError> {
        if self.fetched.is_none() {
            let (to, fetched) = mpsc::channel(FETCHES_MAX);
            let (channel, queue) = (self.channel.clone(), short(&self.queue)?);
            if let Some(held) = self.held.clone() {
                self.fetcher.spawn(fetch_all(channel, queue, held, to));
            }
            self.fetched = Some(fetched);
        }
        Ok(self.fetched.as_mut().expect("it was begun above"))
    }
}

type Fetched = lapin::Result<BasicGetMessage>;

/// Fetches until the queue is found empty (later arrivals are not ours to chase), as much ahead as `to` has room for. One
/// task, so that fetches are sent, and counted, in the order in which they are answered.
async fn fetch_all(
    channel: Channel,
    queue: ShortString,
    held: Arc<Held>,
    to: mpsc::Sender<Fetched>,
) {
    let (mut fetches, mut reached_end) = (FuturesOrdered::new(), false);
    loop {
        let may_wait = fetches.is_empty();
        let leave = if reached_end { None } else { leave_to_fetch(&to, &held, may_wait).await };
        if let Some((place, permit)) = leave {
            let (channel, queue) = (channel.clone(), queue.clone());
            fetches.push_back(async move {
                (place, permit, channel.basic_get(queue, BasicGetOptions::default()).await)
            });
            continue;
        }
        // The permit goes when what was fetched is counted, or there was nothing.
        match fetches.next().await {
            Some((place, _permit, Ok(Some(message)))) => {
                held.add();
                place.send(Ok(message));
            }
            Some((_, _, Ok(None))) => reached_end = true,
            Some((place, _, Err(error))) => {
                place.send(Err(error));
                return;
            }
            None => return,
        }
    }
}

/// Room for one more, and a permit to ask for it; waits for them only where nothing is under way.
async fn leave_to_fetch(
    to: &mpsc::Sender<Fetched>,
    held: &Held,
    may_wait: bool,
) -> Option<(OwnedPermit<Fetched>, OwnedSemaphorePermit)> {
    let (to, permits) = (to.clone(), Arc::clone(&held.tally.fetches.0));
    match may_wait {
        true => Some((to.reserve_owned().await.ok()?, permits.acquire_owned().await.ok()?)),
        false => Some((to.try_reserve_owned().ok()?, permits.try_acquire_owned().ok()?)),
    }
}

/// Gives back what is held and closes the channel.
async fn wind_down(channel: Channel, queue: ShortString, removed: bool) -> lapin::Result<()> {
    if removed {
        settle_removals(&channel, queue).await?;
    }
    channel.basic_nack(0, BasicNackOptions { multiple: true, requeue: true }).await?;
    channel.close(200, "read".into()).await
}

impl Drop for RabbitDeadLetters {
    /// Who was cancelled half way has removed some: that is settled all the same, or they would come back.
    fn drop(&mut self) {
        let Some(held) = self.held.take().filter(|_| self.removed) else { return };
        let (Ok(runtime), Ok(queue)) = (Handle::try_current(), short(&self.queue)) else { return };
        let (live, channel) = (Arc::clone(&self.live), self.channel.clone());
        runtime.spawn(async move {
            // Nobody is left to be told.
            let _ = timeout(CLOSE_MAX, wind_down(channel, queue, true)).await;
            drop((held, live));
        });
    }
}

/// Removals must be known before the channel is gone, or the dead letters come back. An acknowledgement has no
/// answer; a cancel that was answered went the same way through the server to the queue.
async fn settle_removals(channel: &Channel, queue: ShortString) -> lapin::Result<()> {
    let tag = ShortString::from("settled");
    let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
    channel.basic_qos(1, BasicQosOptions::default()).await?;
    let consumer = channel.basic_consume(queue, tag, options, arguments).await?;
    channel.basic_cancel(consumer.tag(), BasicCancelOptions::default()).await
}

#[async_trait]
impl DeadLetterReader for RabbitDeadLetters {
    async fn next(&mut self) -> Result<Option<Received>, BrokerError> {
        let attempt = self.attempt();
        let fetched = self.fetched()?;
        let Some(message) = answer(&attempt, async { fetched.recv().await.transpose() }).await?
        else {
            return Ok(None);
        };
        let tag = message.delivery.delivery_tag;
        self.ledger.deliver(tag);
        let envelope = SharedEnvelope::new(AmqpEnvelope {
            delivery: message.delivery,
            queue: self.queue.clone(),
            dead_of: Some(Arc::clone(&self.source)),
        });
        Ok(Some(Received { envelope, token: Token(tag) }))
    }

    async fn remove(&mut self, token: Token) -> Result<(), BrokerError> {
        if !self.ledger.settle(token.0) {
            let text = format!(
                "{}: this one is not held by the reader, or was removed before",
                self.attempt()
            );
            return Err(BrokerError::new(Fault::Other, text));
        }
        self.removed = true;
        let (attempt, channel) = (self.attempt(), self.channel.clone());
        answer(&attempt, channel.basic_ack(token.0, BasicAckOptions::default())).await?;
        if let Some(held) = &self.held {
            held.remove();
        }
        Ok(())
    }

    async fn close(&mut self) -> Result<(), BrokerError> {
        let attempt = format!("giving back the dead letters of queue `{}`", self.queue);
        let (channel, queue) = (self.channel.clone(), short(&self.queue)?);
        let closing = wind_down(channel, queue, self.removed);
        let closed = timeout(CLOSE_MAX, closing).await;
        self.fetcher.shutdown().await;
        self.held = None;
        match closed {
            Ok(wound_down) => wound_down.map_err(|error| fault::fault(&attempt, &error)),
            Err(_) => Err(BrokerError::new(
                Fault::Unreachable,
                format!("{attempt}: no answer within {} s", CLOSE_MAX.as_secs()),
            )),
        }
    }
}
