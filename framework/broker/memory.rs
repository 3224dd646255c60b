//! A broker in this process: queues, waits and dead letters with the semantics of a real one, and
//! nothing that outlives the process.
//!
//! For first steps, for users' own tests and for measuring what the framework itself costs. Owns
//! its queues; shares them with nobody.

mod bindings;
mod ready;
mod texts;

use std::any::Any;
use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::turn::{Turn, turn};
use super::{
    Broker, BrokerError, BrokerState, Copied, Copy, DeadLetterReader, Depth, Envelope, Fault,
    HeaderValue, Lane, LaneEnd, LaneEvent, LaneId, Lanes, Outgoing, Place, Publisher, Received,
    Settlement, Source, Target, Token,
};
use crate::clock::Clock;
use crate::config::BrokerKind;
use crate::wire;
use ready::{Ready, Stored};
use texts::{Page, Texts};

/// The largest body that is copied, in bytes, rather than shared with its publisher.
const COPIED_MAX: usize = 1024;

/// The broker. Clones share their queues. An exchange is what its bindings make of it: each matches as on a topic
/// exchange.
///
/// ```
/// use redeliver::broker::{Broker, Fault, Outgoing, Target, memory::MemoryBroker};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// # let message = Outgoing {
/// #     target: Target::Queue("orders".to_owned()), id: "order-7".to_owned(), body: "{}".into(), headers: vec![],
/// #     content_type: None, kind: None, key: None, time_to_live: None, priority: None,
/// # };
/// let broker = MemoryBroker::new();
/// let sent = broker.publisher().send(&message).await;
/// assert_eq!(sent.unwrap_err().fault, Fault::Unroutable, "a queue begins with the source that is prepared");
/// # }
/// ```
#[derive(Clone)]
pub struct MemoryBroker {
    shared: Arc<Shared>,
}

struct Shared {
    queues: Mutex<Queues>,
    closed: AtomicBool,
    /// Something began to wait that is due before everything else.
    earlier: Notify,
    ticking: AtomicBool,
    generations: AtomicU64,
    clock: Clock,
}

#[derive(Default)]
struct Queues {
    by_name: HashMap<String, Queue>,
    bindings: Vec<(String, String, String)>,
    page: Page,
    waits: BinaryHeap<Reverse<Waiting>>,
    count: u64,
}

#[derive(Default)]
struct Queue {
    ready: Ready,
    unsettled: u64,
    waiting: u64,
    arrived: Arc<Notify>,
    /// Whoever reads it as dead letters.
    reading: Arc<tokio::sync::Mutex<()>>,
}

struct Waiting {
    due: Instant,
    number: u64,
    queue: String,
    message: Message,
}

/// A stored message.
#[derive(Clone, Debug)]
struct Message {
    texts: Texts,
    published_at: SystemTime,
    extras: Option<Box<Extras>>,
    returns: u32,
}

/// What hardly any message has.
#[derive(Clone, Debug, Default)]
struct Extras {
    /// A payload that is too large to be copied.
    body: Option<Bytes>,
    key: Option<Bytes>,
    time_to_live: Option<Duration>,
}

impl MemoryBroker {
    /// An empty broker.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use redeliver::broker::{Outgoing, Source, Target};
    /// use redeliver::broker::{Broker, memory::MemoryBroker};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let (settings, service) = (Arc::default(), Arc::from("shop"));
    /// # let source = Source { name: "orders".into(), settings, waits: vec![], service };
    /// # let message = Outgoing {
    /// #     target: Target::Queue("orders".to_owned()), id: "order-7".to_owned(), body: "{}".into(), headers: vec![],
    /// #     content_type: None, kind: None, key: None, time_to_live: None, priority: None,
    /// # };
    /// let (broker, other) = (MemoryBroker::new(), MemoryBroker::new());
    /// broker.prepare(&source).await?;
    /// broker.clone().publisher().send(&message).await?;
    /// assert_eq!(broker.depth(&source).await?.ready, Some(1), "a clone has the same queues");
    /// other.prepare(&source).await?;
    /// assert_eq!(other.depth(&source).await?.ready, Some(0), "another broker has its own");
    /// # Ok(())
    /// # }
    /// ```
    pub fn new() -> Self {
        Self::with_clock(Clock::System)
    }

    /// An empty broker that takes the time of publishing from `clock`.
    pub(crate) fn with_clock(clock: Clock) -> Self {
        Self {
            shared: Arc::new(Shared {
                queues: Mutex::default(),
                closed: AtomicBool::new(false),
                earlier: Notify::new(),
                ticking: AtomicBool::new(false),
                generations: AtomicU64::new(0),
                clock,
            }),
        }
    }
}

impl Default for MemoryBroker {
    fn default() -> Self {
        Self::new()
    }
}

impl Shared {
    /// As a real one, whose connection is gone: what is asked after a stop is an error, not what there was.
    fn check_open(&self, doing: &str, name: &str) -> Result<(), BrokerError> {
        if self.closed.load(Ordering::Acquire) {
            let text = format!("{doing} `{name}`: the memory broker was closed by this process");
            return Err(BrokerError::new(Fault::Closed, text));
        }
        Ok(())
    }

    /// The same, but that a test with a clock of its own may look at what a stop has left.
    fn check_readable(&self, doing: &str, name: &str) -> Result<(), BrokerError> {
        match self.clock {
            Clock::System => self.check_open(doing, name),
            Clock::Virtual(_) => Ok(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves what is due to its queue, for as long as the broker lives.
    async fn tick(shared: std::sync::Weak<Self>) {
        loop {
            let Some(strong) = shared.upgrade() else { return };
            let next = strong.lock().release_due(Instant::now());
            let changed = strong.earlier.notified();
            match next {
                Some(due) => {
                    tokio::select! {
                        () = tokio::time::sleep_until(due) => {}
                        () = changed => {}
                    }
                }
                None => changed.await,
            }
        }
    }
}

impl Queues {
    fn push(&mut self, name: &str, message: Message) -> Result<(), BrokerError> {
        let Some(queue) = self.by_name.get_mut(name) else {
            return Err(BrokerError::new(
                Fault::Unroutable,
                format!("there is no queue `{name}` in the memory broker; subscribe to it first"),
            ));
        };
        queue.ready.push(message);
        queue.arrived.notify_one();
        Ok(())
    }

    fn release_due(&mut self, now: Instant) -> Option<Instant> {
        while let Some(Reverse(first)) = self.waits.peek() {
            if first.due > now {
                return Some(first.due);
            }
            if let Some(Reverse(Waiting { queue, message, .. })) = self.waits.pop() {
                if let Some(queue) = self.by_name.get_mut(&queue) {
                    queue.waiting -= 1;
                }
                let _ = self.push(&queue, message);
            }
        }
        None
    }
}

#[async_trait]
impl Broker for MemoryBroker {
    fn kind(&self) -> &'static str {
        "memory"
    }

    async fn connect(&self) -> Result<(), BrokerError> {
        if !self.shared.ticking.swap(true, Ordering::AcqRel) {
            tokio::spawn(Shared::tick(Arc::downgrade(&self.shared)));
        }
        Ok(())
    }

    async fn prepare(&self, source: &Source) -> Result<Vec<String>, BrokerError> {
        let mut queues = self.shared.lock();
        for name in [source_queue(source), dead_queue(source)] {
            queues.by_name.entry(name).or_default();
        }
        for binding in &source.settings.bindings {
            let bound =
                (binding.exchange.clone(), binding.routing_key.clone(), source_queue(source));
            if !queues.bindings.contains(&bound) {
                queues.bindings.push(bound);
            }
        }
        Ok(Vec::new())
    }

    fn topology(&self, source: &Source) -> Vec<String> {
        vec![format!("queue {}", source_queue(source)), format!("queue {}", dead_queue(source))]
    }

    fn lanes(&self, source: Arc<Source>) -> Box<dyn Lanes> {
        let closed = (0..source.settings.consumers.get()).rev().collect();
        Box::new(MemoryLanes { shared: Arc::clone(&self.shared), source, closed })
    }

    fn publisher(&self) -> Arc<dyn Publisher> {
        Arc::new(MemoryPublisher { shared: Arc::clone(&self.shared) })
    }

    async fn dead_letters(
        &self,
        source: Arc<Source>,
    ) -> Result<Box<dyn DeadLetterReader>, BrokerError> {
        let name = dead_queue(&source);
        self.shared.check_readable("reading the dead letters in queue", &name)?;
        let reading = {
            let mut queues = self.shared.lock();
            Arc::clone(&queues.by_name.entry(name.clone()).or_default().reading)
        };
        let turn = Some(turn(reading, &name).await?);
        Ok(Box::new(MemoryDeadLetters {
            shared: Arc::clone(&self.shared),
            turn,
            name,
            held: VecDeque::new(),
            next: 0,
        }))
    }

    async fn depth(&self, source: &Source) -> Result<Depth, BrokerError> {
        self.shared.check_readable("counting what is in", &source_queue(source))?;
        let queues = self.shared.lock();
        let queue = queues.by_name.get(&source_queue(source));
        let dead = queues.by_name.get(&dead_queue(source));
        Ok(Depth {
            ready: queue.map(|queue| queue.ready.len() as u64),
            unsettled: queue.map(|queue| queue.unsettled),
            waiting: queue.map(|queue| queue.waiting),
            dead: dead.map(|dead| dead.ready.len() as u64 + dead.unsettled),
        })
    }

    fn state(&self) -> BrokerState {
        let closed = || BrokerState::Disconnected("closed by this process".to_owned());
        self.shared.closed.load(Ordering::Acquire).then(closed).unwrap_or(BrokerState::Connected)
    }

    async fn close(&self) {
        self.shared.closed.store(true, Ordering::Release);
    }
}

fn source_queue(source: &Source) -> String {
    source.settings.queue.clone().unwrap_or_else(|| source.name.to_string())
}

fn dead_queue(source: &Source) -> String {
    let queue = source_queue(source);
    source.settings.dead_template(BrokerKind::Memory).fill(&[("queue", &queue)])
}

struct MemoryLanes {
    shared: Arc<Shared>,
    source: Arc<Source>,
    closed: Vec<usize>,
}

#[async_trait]
impl Lanes for MemoryLanes {
    async fn next(&mut self) -> LaneEvent {
        let Some(number) = self.closed.pop() else { return std::future::pending().await };
        let queue = source_queue(&self.source);
        let arrived = {
            let mut queues = self.shared.lock();
            Arc::clone(&queues.by_name.entry(queue.clone()).or_default().arrived)
        };
        let generation = self.shared.generations.fetch_add(1, Ordering::Relaxed) + 1;
        let lane = MemoryLane {
            shared: Arc::clone(&self.shared),
            queue,
            arrived,
            generation,
            // No token of one lane is ever one of another.
            first: generation << 40,
            unsettled: VecDeque::new(),
        };
        LaneEvent::Opened(LaneId(number.to_string().into()), Box::new(lane))
    }

    fn release(&mut self, lane: LaneId) {
        // The lane of the suspects has no number: there are none.
        if let Ok(number) = lane.0.parse() {
            self.closed.push(number);
        }
    }

    async fn close(&mut self) {
        self.closed.clear();
    }
}

struct MemoryLane {
    shared: Arc<Shared>,
    queue: String,
    arrived: Arc<Notify>,
    generation: u64,
    /// The token of the oldest entry of `unsettled`.
    first: u64,
    unsettled: VecDeque<Option<Stored>>,
}

impl MemoryLane {
    fn take(&mut self, batch: &mut Vec<Received>, limit: usize) -> bool {
        let shared = Arc::clone(&self.shared);
        let mut queues = shared.lock();
        let Some(queue) = queues.by_name.get_mut(&self.queue) else { return false };
        let taken = queue.ready.take(limit);
        let count = taken.len();
        let mut token = Token(self.first + self.unsettled.len() as u64);
        self.unsettled.reserve(count);
        batch.reserve(count);
        for stored in taken {
            batch.push(Received { envelope: stored.envelope(), token });
            self.unsettled.push_back(Some(stored));
            token.0 += 1;
        }
        queue.unsettled += count as u64;
        if !queue.ready.is_empty() {
            // Another lane may have slept through the same notice.
            queue.arrived.notify_one();
        }
        count > 0
    }

    /// Removes what is acknowledged in the order in which it was delivered, as nearly everything is; how many there were.
    fn remove_oldest(&mut self, settlements: &mut Vec<Settlement>) -> u64 {
        let oldest = (self.first..).map(Token).take(self.unsettled.len());
        let acks = settlements.iter().zip(oldest);
        let count =
            acks.take_while(|(settled, token)| **settled == Settlement::Ack(*token)).count();
        settlements.drain(..count);
        self.first += count as u64;
        let removed = self.unsettled.drain(..count).flatten().count();
        self.forget_removed();
        removed as u64
    }

    fn remove(&mut self, token: Token) -> Option<Stored> {
        let place = usize::try_from(token.0.checked_sub(self.first)?).ok()?;
        let message = self.unsettled.get_mut(place)?.take();
        self.forget_removed();
        message
    }

    fn forget_removed(&mut self) {
        while let Some(None) = self.unsettled.front() {
            self.unsettled.pop_front();
            self.first += 1;
        }
    }

    fn give_back(&mut self, messages: impl DoubleEndedIterator<Item = Stored>) {
        let mut queues = self.shared.lock();
        let Some(queue) = queues.by_name.get_mut(&self.queue) else { return };
        for message in messages.rev() {
            queue.ready.push_first(message.returned());
            queue.unsettled -= 1;
            queue.arrived.notify_one();
        }
    }
}

#[async_trait(?Send)]
impl Lane for MemoryLane {
    async fn next(&mut self, batch: &mut Vec<Received>, limit: usize) -> Result<(), LaneEnd> {
        let arrived = Arc::clone(&self.arrived);
        loop {
            let notice = arrived.notified();
            if self.take(batch, limit) {
                return Ok(());
            }
            notice.await;
        }
    }

    async fn settle(&mut self, settlements: &mut Vec<Settlement>) -> Result<(), LaneEnd> {
        let mut acked = self.remove_oldest(settlements);
        let mut returned = Vec::new();
        for settlement in settlements.drain(..) {
            match settlement {
                Settlement::Ack(token) => acked += u64::from(self.remove(token).is_some()),
                Settlement::Return(token) => returned.extend(self.remove(token)),
            }
        }
        if acked > 0
            && let Some(queue) = self.shared.lock().by_name.get_mut(&self.queue)
        {
            queue.unsettled -= acked;
        }
        if !returned.is_empty() {
            self.give_back(returned.into_iter());
        }
        Ok(())
    }

    async fn close(&mut self) -> Result<(), LaneEnd> {
        let unsettled = std::mem::take(&mut self.unsettled);
        self.give_back(unsettled.into_iter().flatten());
        Ok(())
    }

    fn generation(&self) -> u64 {
        self.generation
    }
}

/// A lane that is dropped gives back what it holds, as a closed connection does.
impl Drop for MemoryLane {
    fn drop(&mut self) {
        let unsettled = std::mem::take(&mut self.unsettled);
        self.give_back(unsettled.into_iter().flatten());
    }
}

struct MemoryPublisher {
    shared: Arc<Shared>,
}

#[async_trait]
impl Publisher for MemoryPublisher {
    async fn send(&self, outgoing: &Outgoing) -> Result<(), BrokerError> {
        self.shared.check_open("message", &outgoing.id)?;
        let mut queues = self.shared.lock();
        let names = match &outgoing.target {
            Target::Queue(name) | Target::Topic(name) => vec![name.clone()],
            Target::Exchange { exchange, routing_key } => queues
                .bindings
                .iter()
                .filter(|(from, key, _)| from == exchange && bindings::takes(key, routing_key))
                .map(|(_, _, queue)| queue.clone())
                // Once, however many of its bindings take it.
                .collect::<BTreeSet<_>>()
                .into_iter()
                .collect(),
        };
        if names.is_empty() {
            let error =
                format!("message `{}`: no queue is bound to {}", outgoing.id, outgoing.target);
            return Err(BrokerError::new(Fault::Unroutable, error));
        }
        for name in names {
            let message = stored(&mut queues.page, outgoing, &name, self.shared.clock.now());
            queues.push(&name, message).map_err(|error| {
                let text = format!("message `{}`: {error}", outgoing.id);
                BrokerError::new(error.fault, text)
            })?;
        }
        Ok(())
    }

    async fn copy(&self, copy: &Copy) -> Result<Copied, BrokerError> {
        let source = source_queue(&copy.source);
        self.shared.check_open("copying a message of queue", &source)?;
        let original = copy.envelope.as_any().downcast_ref::<Message>().ok_or_else(|| {
            BrokerError::new(Fault::Other, "a message of another broker cannot be copied here")
        })?;
        let mut queues = self.shared.lock();
        match copy.place {
            // A message here never outlives a process, so none is ever suspected.
            Place::Source | Place::Suspects => {
                let message = original.copied(&mut queues.page, copy, &source);
                queues.push(&source, message)?;
            }
            Place::Dead => {
                let dead = dead_queue(&copy.source);
                let message = original.copied(&mut queues.page, copy, &dead);
                queues.push(&dead, message)?;
            }
            Place::Wait(delay) => {
                queues.count += 1;
                let due = Instant::now() + delay;
                let message = original.copied(&mut queues.page, copy, &source);
                let first = queues.waits.peek().is_none_or(|Reverse(first)| due < first.due);
                let number = queues.count;
                queues.by_name.entry(source.clone()).or_default().waiting += 1;
                queues.waits.push(Reverse(Waiting { due, number, queue: source, message }));
                if first {
                    self.shared.earlier.notify_one();
                }
            }
        }
        Ok(Copied::default())
    }
}

fn stored(page: &mut Page, outgoing: &Outgoing, queue: &str, published_at: SystemTime) -> Message {
    let id = Some(outgoing.id.as_str()).filter(|id| !id.is_empty());
    let (content_type, kind) = (outgoing.content_type.as_deref(), outgoing.kind.as_deref());
    let headers = outgoing.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let is_copied = outgoing.body.len() <= COPIED_MAX;
    let payload = if is_copied { &outgoing.body[..] } else { &[] };
    let texts = Texts::new(page, queue, [id, content_type, kind], payload, headers);
    let extras = Extras {
        body: (!is_copied).then(|| outgoing.body.clone()),
        key: outgoing.key.clone(),
        time_to_live: outgoing.time_to_live,
    };
    Message { texts, published_at, extras: extras.boxed(), returns: 0 }
}

impl Extras {
    /// Nothing at all, where there are none.
    fn boxed(self) -> Option<Box<Self>> {
        let is_some = self.body.is_some() || self.key.is_some() || self.time_to_live.is_some();
        is_some.then(|| Box::new(self))
    }
}

impl Message {
    /// Whether it has a payload that is not copied.
    fn is_large(&self) -> bool {
        self.extras.as_ref().is_some_and(|extras| extras.body.is_some())
    }

    /// The same, come back once more.
    fn returned(&self) -> Self {
        Self { returns: self.returns + 1, ..self.clone() }
    }

    /// What another place gets: everything but our own headers, which the stamps replace.
    fn copied(&self, page: &mut Page, copy: &Copy, queue: &str) -> Self {
        let own =
            |name: &str| name.starts_with(wire::PREFIX) && !name.starts_with(wire::ORIGINAL_PREFIX);
        let kept = self.texts.headers().filter(|(name, _)| !own(name));
        let stamps = copy.stamps.iter().map(|(name, value)| (*name, value.as_str()));
        let texts = [self.texts.id(), self.texts.content_type(), self.texts.kind()];
        let texts = Texts::new(page, queue, texts, self.texts.payload(), kept.chain(stamps));
        let extras = self.extras.as_deref().cloned().unwrap_or_default();
        let extras = Extras { time_to_live: None, ..extras }.boxed();
        Self { texts, published_at: self.published_at, extras, returns: 0 }
    }
}

impl Envelope for Message {
    fn body(&self) -> &[u8] {
        let shared = self.extras.as_ref().and_then(|extras| extras.body.as_deref());
        shared.unwrap_or_else(|| self.texts.payload())
    }

    fn header(&self, name: &str) -> Option<HeaderValue<'_>> {
        let (_, value) = self.texts.headers().find(|(known, _)| *known == name)?;
        Some(HeaderValue::Text(value))
    }

    fn visit_headers(&self, visit: &mut dyn FnMut(&str, HeaderValue<'_>)) {
        for (name, value) in self.texts.headers() {
            visit(name, HeaderValue::Text(value));
        }
    }

    fn has_headers(&self) -> bool {
        self.texts.has_headers()
    }

    fn may_be_stamped(&self) -> bool {
        self.texts.is_stamped()
    }

    fn id(&self) -> Option<&str> {
        self.texts.id()
    }

    fn content_type(&self) -> Option<&str> {
        self.texts.content_type()
    }

    fn kind(&self) -> Option<&str> {
        self.texts.kind()
    }

    fn key(&self) -> Option<&[u8]> {
        self.extras.as_ref()?.key.as_deref()
    }

    fn published_at(&self) -> Option<SystemTime> {
        Some(self.published_at)
    }

    fn time_to_live(&self) -> Option<Duration> {
        self.extras.as_ref()?.time_to_live
    }

    fn is_redelivered(&self) -> bool {
        self.returns > 0
    }

    /// What came back did so because it was returned, never because a process died.
    fn returns(&self) -> u32 {
        0
    }

    fn origin(&self) -> String {
        format!("memory/{}", self.texts.queue())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

struct MemoryDeadLetters {
    shared: Arc<Shared>,
    /// Until it is closed.
    turn: Option<Turn>,
    name: String,
    held: VecDeque<(Token, Stored)>,
    next: u64,
}

#[async_trait]
impl DeadLetterReader for MemoryDeadLetters {
    async fn next(&mut self) -> Result<Option<Received>, BrokerError> {
        self.shared.check_readable("reading the dead letters in queue", &self.name)?;
        let mut queues = self.shared.lock();
        let Some(queue) = queues.by_name.get_mut(&self.name) else { return Ok(None) };
        let Some(message) = queue.ready.take(1).next() else { return Ok(None) };
        queue.unsettled += 1;
        self.next += 1;
        let token = Token(self.next);
        let envelope = message.envelope();
        self.held.push_back((token, message));
        Ok(Some(Received { envelope, token }))
    }

    async fn remove(&mut self, token: Token) -> Result<(), BrokerError> {
        self.shared.check_readable("removing a dead letter from queue", &self.name)?;
        if let Some(place) = self.held.iter().position(|(held, _)| *held == token) {
            self.held.remove(place);
            if let Some(queue) = self.shared.lock().by_name.get_mut(&self.name) {
                queue.unsettled -= 1;
            }
        }
        Ok(())
    }

    async fn close(&mut self) -> Result<(), BrokerError> {
        self.give_back();
        self.turn = None;
        Ok(())
    }
}

impl MemoryDeadLetters {
    fn give_back(&mut self) {
        let mut queues = self.shared.lock();
        let Some(queue) = queues.by_name.get_mut(&self.name) else { return };
        queue.unsettled -= self.held.len() as u64;
        queue.ready.put_back(self.held.drain(..).map(|(_, message)| message));
    }
}

impl Drop for MemoryDeadLetters {
    fn drop(&mut self) {
        self.give_back();
    }
}

impl PartialEq for Waiting {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Waiting {}

impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Waiting {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.due, self.number).cmp(&(other.due, other.number))
    }
}
