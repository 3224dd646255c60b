//! Lanes: a queue drained through a channel each.
//!
//! Owns what is handed out, and how settlements become frames; which of them are open is `lanes`' to know. Publishes nothing, and never
//! settles anything that it did not hand out itself.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::{FutureExt, Stream};
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions,
};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Consumer};
use tokio::time::timeout;

use super::connection::{Link, Live, answer};
use super::dead_letters::Fetches;
use super::envelope::AmqpEnvelope;
use super::fault;
use super::give_way::give_way;
use super::ledger::Ledger;
use super::topology;
use crate::broker::{
    BrokerError, Fault, Lane, LaneEnd, LaneId, Received, Settlement, SharedEnvelope, Source, Token,
};
use crate::config::Topology;

/// How long each step of closing may take before the channel is simply dropped.
pub(super) const CLOSE_STEP_MAX: Duration = Duration::from_secs(5);
/// So many acknowledgements make one frame where they may wait for each other, as each frame is an entry in a quorum queue's
/// log: of 20,000 messages on 4 queues 320 frames instead of 700 (counted; the raw loop that waits as long sends 400).
const ACKS_AT_ONCE: usize = 64;
/// A token is a generation and a delivery tag: 24 bits and 40.
const TAG_BITS: u32 = 40;

/// Generations of all lanes of a connection: a new one is higher than any before, whoever asks.
pub(super) type Generations = Arc<AtomicU64>;

/// What is out at one queue, over all lanes of this process.
#[derive(Default)]
pub(super) struct Tally {
    pub(super) lanes: AtomicUsize,
    /// Those of them that were served: of a single active consumer's lanes one at the most.
    pub(super) served_lanes: AtomicUsize,
    pub(super) suspect_lanes: AtomicUsize,
    pub(super) unsettled: AtomicUsize,
    /// Dead letters that are held by who reads them.
    pub(super) dead: AtomicUsize,
    /// One for each fetch of a reader that is under way: what the server has handed out then is on nobody's count.
    pub(super) fetches: Fetches,
    /// Whoever reads its dead letters.
    pub(super) reading: Arc<tokio::sync::Mutex<()>>,
}

/// The tallies by queue.
pub(super) type Tallies = std::sync::Mutex<BTreeMap<String, Arc<Tally>>>;

/// A channel with one consumer.
pub(super) struct RabbitLane {
    /// To ask about the queue, over a channel of its own.
    link: Arc<Link>,
    /// Keeps the connection alive as long as the lane.
    _live: Arc<Live>,
    channel: Channel,
    consumer: Consumer,
    tag: ShortString,
    /// What the consumer was registered with.
    arguments: FieldTable,
    queue: Arc<str>,
    generation: u64,
    ledger: Ledger,
    /// How many acknowledgements are better sent together.
    acks_at_once: usize,
    /// What ended the lane, once something has; told after everything delivered before it.
    end: Option<BrokerEnd>,
    single_active: bool,
    /// Nothing was there when it last looked.
    ran_dry: bool,
    tally: Out,
    returned: Vec<u64>,
    acked: Vec<u64>,
}

/// An end that can be told more than once.
#[derive(Clone)]
pub(super) enum BrokerEnd {
    Cancelled,
    Lost(BrokerError),
}

impl From<BrokerEnd> for LaneEnd {
    fn from(end: BrokerEnd) -> Self {
        match end {
            BrokerEnd::Cancelled => Self::Cancelled,
            BrokerEnd::Lost(error) => Self::Lost(error),
        }
    }
}

impl RabbitLane {
    pub(super) async fn open(
        link: &Arc<Link>,
        source: &Source,
        lane: &LaneId,
        generations: &AtomicU64,
        tally: Arc<Tally>,
    ) -> Result<Self, BrokerError> {
        match Self::consume(link, source, lane, generations, tally.clone()).await {
            // Deleted while we were away. Where declaring is ours to do, it comes back with its bindings.
            Err(error)
                if error.fault == Fault::Missing
                    && source.settings.topology == Topology::Declare =>
            {
                topology::prepare(link, source).await?;
                Self::consume(link, source, lane, generations, tally).await
            }
            opened => opened,
        }
    }

    async fn consume(
        link: &Arc<Link>,
        source: &Source,
        lane: &LaneId,
        generations: &AtomicU64,
        tally: Arc<Tally>,
    ) -> Result<Self, BrokerError> {
        let settings = &*source.settings;
        let queue: Arc<str> = match lane.is_suspects() {
            true => topology::suspects_name(settings).into(),
            false => topology::queue_name(settings).into(),
        };
        let attempt = format!("subscription `{}`: consuming queue `{queue}`", source.name);
        let (live, channel) = link.channel().await?;
        // One at a time, so that only the one that is handled can be charged with a crash.
        let window = if lane.is_suspects() { 1 } else { topology::prefetch(settings) };
        let limiting = channel.basic_qos(window, BasicQosOptions::default());
        answer(&attempt, limiting).await?;
        let tag = consumer_tag(&source.service);
        let arguments = topology::consumer_arguments(settings);
        let consuming = channel.basic_consume(
            topology::short(&queue)?,
            tag.clone(),
            BasicConsumeOptions::default(),
            arguments.clone(),
        );
        let consumer = answer(&attempt, consuming).await?;
        Ok(Self {
            link: Arc::clone(link),
            _live: live,
            channel,
            consumer,
            tag,
            arguments,
            queue,
            generation: generations.fetch_add(1, Ordering::Relaxed) + 1,
            ledger: Ledger::default(),
            // The server goes on delivering meanwhile.
            acks_at_once: usize::from(window / 4).clamp(1, ACKS_AT_ONCE),
            end: None,
            single_active: !lane.is_suspects() && topology::is_single_active(settings),
            ran_dry: false,
            tally: Out::new(tally, lane.is_suspects()),
            returned: Vec::new(),
            acked: Vec::new(),
        })
    }

    fn poll_batch(
        &mut self,
        context: &mut Context<'_>,
        batch: &mut Vec<Received>,
        limit: usize,
    ) -> Poll<Result<(), LaneEnd>> {
        let before = batch.len();
        if std::mem::take(&mut self.ran_dry) {
            give_way();
        }
        while self.end.is_none() && batch.len() - before < limit.max(1) {
            match Pin::new(&mut self.consumer).poll_next(context) {
                Poll::Ready(Some(Ok(delivery))) => {
                    self.ledger.deliver(delivery.delivery_tag);
                    let token = self.token(delivery.delivery_tag);
                    let envelope = SharedEnvelope::new(AmqpEnvelope {
                        delivery,
                        queue: self.queue.clone(),
                        dead_of: None,
                    });
                    batch.push(Received { envelope, token });
                }
                Poll::Ready(Some(Err(error))) => self.end = Some(self.lost(&error)),
                Poll::Ready(None) => self.end = Some(self.cancelled()),
                Poll::Pending => {
                    self.ran_dry = batch.len() == before;
                    break;
                }
            }
        }
        self.tally.set(self.ledger.open_count());
        match (&self.end, batch.len() > before) {
            (_, true) => Poll::Ready(Ok(())),
            (Some(end), false) => Poll::Ready(Err(end.clone().into())),
            (None, false) => Poll::Pending,
        }
    }

    /// A stream that ends without an error was cancelled by the server, if there still is a channel.
    fn cancelled(&self) -> BrokerEnd {
        match self.channel.status().connected() {
            true => BrokerEnd::Cancelled,
            false => BrokerEnd::Lost(BrokerError::new(
                Fault::Unreachable,
                format!("consuming queue `{}`: the channel is closed", self.queue),
            )),
        }
    }

    fn lost(&self, error: &lapin::Error) -> BrokerEnd {
        BrokerEnd::Lost(fault::fault(&format!("consuming queue `{}`", self.queue), error))
    }

    fn token(&self, tag: u64) -> Token {
        Token((self.generation << TAG_BITS) | tag)
    }

    /// The delivery tag, if the token is of this generation.
    fn tag_of(&self, token: Token) -> Option<u64> {
        let tag = token.0 & ((1 << TAG_BITS) - 1);
        (self.token(tag) == token).then_some(tag)
    }

    /// Sorts settlements of this lane's own open deliveries; all others settle nothing.
    fn sort(&mut self, settlements: &mut Vec<Settlement>) {
        for settlement in settlements.drain(..) {
            let (Settlement::Ack(token) | Settlement::Return(token)) = settlement;
            let Some(tag) = self.tag_of(token).filter(|tag| self.ledger.settle(*tag)) else {
                continue;
            };
            match settlement {
                Settlement::Ack(_) => self.acked.push(tag),
                Settlement::Return(_) => self.returned.push(tag),
            }
        }
    }

    /// Hands the frames to lapin, in order. It writes them by itself; there is no answer to wait for.
    fn write(&mut self) -> Result<(), BrokerEnd> {
        let mut written = Ok(());
        // Returns first: an acknowledgement by `multiple` would take them along.
        for tag in self.returned.drain(..) {
            let options = BasicNackOptions { requeue: true, ..BasicNackOptions::default() };
            written = written.and(begun(self.channel.basic_nack(tag, options)));
        }
        let acks = self.ledger.acks(&mut self.acked);
        if let Some(tag) = acks.up_to {
            written =
                written.and(begun(self.channel.basic_ack(tag, BasicAckOptions { multiple: true })));
        }
        for tag in acks.singles {
            written = written.and(begun(self.channel.basic_ack(tag, BasicAckOptions::default())));
        }
        self.tally.set(self.ledger.open_count());
        written.map_err(|error| self.lost(&error))
    }

    /// Lets every acknowledgement arrive, and gives the rest back.
    ///
    /// An acknowledgement has no answer, and a channel that closes right after the last one loses some in most
    /// runs (measured). It loses none after a cancel that was answered: that goes the same way to the queue.
    pub(super) async fn wind_down(&mut self) -> Result<(), BrokerEnd> {
        match (self.single_active, &self.end) {
            (true, None) => self.settle_in_order().await?,
            _ => self.settle_and_return().await?,
        }
        self.step(self.channel.close(200, "closed".into())).await
    }

    async fn settle_and_return(&self) -> Result<(), BrokerEnd> {
        let cancel = self.channel.basic_cancel(self.tag.clone(), BasicCancelOptions::default());
        self.step(cancel).await?;
        // Tag 0 and `multiple` are everything that is out, handed on by us or not.
        let everything = BasicNackOptions { multiple: true, requeue: true };
        begun(self.channel.basic_nack(0, everything)).map_err(|error| self.lost(&error))
    }

    /// Cancelling the active consumer would serve the next one before ours are back, out of order (measured:
    /// always). So a standby of our own is registered and cancelled in its place; closing the channel then
    /// returns everything at once, in its place, before anyone else is served.
    async fn settle_in_order(&self) -> Result<(), BrokerEnd> {
        let tag = ShortString::from("standby");
        let (queue, options) = (ShortString::from(&*self.queue), BasicConsumeOptions::default());
        let standby =
            self.channel.basic_consume(queue, tag.clone(), options, self.arguments.clone());
        self.step(async { standby.await.map(drop) }).await?;
        self.step(self.channel.basic_cancel(tag, BasicCancelOptions::default())).await
    }

    async fn step(&self, step: impl Future<Output = lapin::Result<()>>) -> Result<(), BrokerEnd> {
        match timeout(CLOSE_STEP_MAX, step).await {
            Ok(done) => done.map_err(|error| self.lost(&error)),
            Err(_) => {
                let text = format!(
                    "closing the lane of queue `{}`: no answer within {} s",
                    self.queue,
                    CLOSE_STEP_MAX.as_secs()
                );
                Err(BrokerEnd::Lost(BrokerError::new(Fault::Unreachable, text)))
            }
        }
    }
}

#[async_trait(?Send)]
impl Lane for RabbitLane {
    async fn next(&mut self, batch: &mut Vec<Received>, limit: usize) -> Result<(), LaneEnd> {
        poll_fn(|context| self.poll_batch(context, batch, limit)).await
    }

    async fn settle(&mut self, settlements: &mut Vec<Settlement>) -> Result<(), LaneEnd> {
        self.sort(settlements);
        self.write().map_err(LaneEnd::from)
    }

    fn settlements_at_once(&self) -> usize {
        self.acks_at_once
    }

    async fn close(&mut self) -> Result<(), LaneEnd> {
        if let Some(BrokerEnd::Lost(error)) = &self.end {
            return Err(LaneEnd::Lost(error.clone()));
        }
        let wound_down = self.wind_down().await;
        self.tally.set(0);
        let closed = BrokerError::new(
            Fault::Other,
            format!("the lane of queue `{}` was closed", self.queue),
        );
        self.end = Some(BrokerEnd::Lost(closed));
        wound_down.map_err(LaneEnd::from)
    }

    /// AMQP 0-9-1 does not tell a consumer that it became the active one: a standby is answered as the active
    /// one is, and then receives nothing. So a lane counts as active from its first delivery on. An active
    /// lane whose queue is empty counts as standby, which does no harm: it has nothing to be late with.
    fn is_active(&self) -> bool {
        !self.single_active || self.ledger.has_delivered()
    }

    /// Of its own queue alone: what else the source has ready, the suspects, is not its to deliver. Where no consumer of
    /// a queue is active, the server has forgotten this one, that was served or not: a standby would be active by now.
    async fn is_behind(&self) -> Option<bool> {
        let counted = topology::count(&self.link, &self.queue).await;
        let is_behind = |(ready, consumers)| ready > 0 && (self.is_active() || consumers == 0);
        Some(counted.is_ok_and(is_behind))
    }

    fn is_lost(&self) -> Option<bool> {
        Some(!self.channel.status().connected())
    }

    fn generation(&self) -> u64 {
        self.generation
    }
}

/// Polls once, which puts the frame into lapin's queue; dropping the rest only gives up the news that it was written.
fn begun(writing: impl Future<Output = lapin::Result<()>>) -> lapin::Result<()> {
    writing.now_or_never().unwrap_or(Ok(()))
}

/// Whose consumer it is, for whoever looks at the server: service, host, process; and a part by chance.
fn consumer_tag(service: &str) -> ShortString {
    let full = format!("{}.{:08x}", super::label(service), fastrand::u32(..));
    let mut end = full.len().min(255);
    while !full.is_char_boundary(end) {
        end -= 1;
    }
    ShortString::from(&full[..end])
}

/// One lane's share of its queue's tally, taken back when the lane is gone.
struct Out {
    tally: Arc<Tally>,
    suspects: bool,
    /// It was delivered something.
    is_served: bool,
    counted: usize,
}

impl Out {
    fn new(tally: Arc<Tally>, suspects: bool) -> Self {
        let out = Self { tally, suspects, is_served: false, counted: 0 };
        out.lanes().fetch_add(1, Ordering::Relaxed);
        out
    }

    fn lanes(&self) -> &AtomicUsize {
        if self.suspects { &self.tally.suspect_lanes } else { &self.tally.lanes }
    }

    fn set(&mut self, count: usize) {
        if count > 0 && !self.suspects && !std::mem::replace(&mut self.is_served, true) {
            self.tally.served_lanes.fetch_add(1, Ordering::Relaxed);
        }
        self.tally.unsettled.fetch_add(count, Ordering::Relaxed);
        self.tally.unsettled.fetch_sub(self.counted, Ordering::Relaxed);
        self.counted = count;
    }
}

impl Drop for Out {
    fn drop(&mut self) {
        self.lanes().fetch_sub(1, Ordering::Relaxed);
        self.tally.served_lanes.fetch_sub(usize::from(self.is_served), Ordering::Relaxed);
        self.tally.unsettled.fetch_sub(self.counted, Ordering::Relaxed);
    }
}
