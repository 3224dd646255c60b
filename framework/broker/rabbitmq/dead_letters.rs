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
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::connection::{Link, Live, answer};
use super::envelope::AmqpEnvelope;
use super::fault;
use super::lane::Tally;
use super::ledger::Ledger;
use super::topology::{dead_name, short};
use crate::broker::turn::{Turn, turn};
use crate::broker::{BrokerError, DeadLetterReader, Fault, Received, Source, Token};

/// How many fetches are under way at once, so that reading is not one round trip a message.
const FETCHES_MAX: usize = 32;
/// How long closing may take before the channel is dropped, which gives everything back too.
const CLOSE_MAX: Duration = Duration::from_secs(10);

/// A reader of one queue of dead letters.
pub(super) struct RabbitDeadLetters {
    _live: Arc<Live>,
    channel: Channel,
    queue: Arc<str>,
    fetches: FuturesOrdered<JoinHandle<lapin::Result<Option<BasicGetMessage>>>>,
    /// No more fetches: one of them found the queue empty, and later arrivals are not ours to chase.
    reached_end: bool,
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
    source: &Source,
    tally: Arc<Tally>,
) -> Result<RabbitDeadLetters, BrokerError> {
    let queue: Arc<str> = dead_name(&source.settings).into();
    let turn = turn(Arc::clone(&tally.reading), &queue).await?;
    let (live, channel) = link.channel().await?;
    Ok(RabbitDeadLetters {
        _live: live,
        channel,
        queue,
        fetches: FuturesOrdered::new(),
        reached_end: false,
        ledger: Ledger::default(),
        removed: false,
        held: Some(Arc::new(Held { tally, count: AtomicUsize::new(0), _turn: turn })),
    })
}

impl RabbitDeadLetters {
    fn attempt(&self) -> String {
        format!("reading the dead letters in queue `{}`", self.queue)
    }

    fn fetch(&mut self) -> Result<(), BrokerError> {
        while !self.reached_end && self.fetches.len() < FETCHES_MAX {
            let (channel, queue) = (self.channel.clone(), short(&self.queue)?);
            let held = self.held.clone();
            // A task each, so that it is counted when it comes and not when it is looked at.
            let fetch = tokio::spawn(async move {
                let fetched = channel.basic_get(queue, BasicGetOptions::default()).await;
                if let (Ok(Some(_)), Some(held)) = (&fetched, held) {
                    held.add();
                }
                fetched
            });
            self.fetches.push_back(fetch);
        }
        Ok(())
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
        loop {
            self.fetch()?;
            let attempt = self.attempt();
            let fetched = async {
                match self.fetches.next().await {
                    Some(Ok(fetched)) => fetched,
                    // The runtime ends, and whoever reads with it.
                    Some(Err(_)) => std::future::pending().await,
                    None => Ok(None),
                }
            };
            match answer(&attempt, fetched).await? {
                Some(message) => {
                    let tag = message.delivery.delivery_tag;
                    self.ledger.deliver(tag);
                    let envelope = Arc::new(AmqpEnvelope {
                        delivery: message.delivery,
                        queue: self.queue.clone(),
                    });
                    return Ok(Some(Received { envelope, token: Token(tag) }));
                }
                None => self.reached_end = true,
            }
            if self.fetches.is_empty() {
                return Ok(None);
            }
        }
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
        self.reached_end = true;
        self.fetches.clear();
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
