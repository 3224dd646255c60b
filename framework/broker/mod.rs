//! The seam to message brokers: what an adapter must do, and nothing of how.
//!
//! Owns the contract and the types that cross it. Knows no policy, no handler and no actor: an
//! adapter never decides whether a message is retried, it only moves messages and tells the truth
//! about them.
//!
//! # The contract
//!
//! 1. [`Broker::prepare`] declares or verifies everything a source needs, and reports every
//!    difference between what is there and what is wanted.
//! 2. [`Lanes::next`] hands out lanes one by one; a lane that ended is handed out again after
//!    [`Lanes::release`], and every time under a higher generation.
//! 3. [`Lane::next`] appends between one message and `limit` messages, in the broker's order, and
//!    is cancel safe: a message is either appended or still inside the lane.
//! 4. A message that was handed out stays unsettled at the broker until [`Lane::settle`] names it.
//! 5. [`Settlement::Ack`] removes it for good; [`Settlement::Return`] gives it back without
//!    counting an attempt of ours.
//! 6. A settlement is applied to the delivery it was made for or to none: a lane never settles a
//!    delivery of an earlier generation.
//! 7. Settling a message never waits for another message that is slower.
//! 8. [`Lane::close`] leaves nothing unsettled: what was settled is known to the broker before the
//!    lane is gone, or, where one commit is for many lanes, before anybody else has it; what was not
//!    goes back.
//!    A broker that moves lanes between consumers asks for one back through [`Lane::recalled`] and
//!    waits for its close until the moment it names; what closes later is as lost as by a crash.
//! 9. [`Publisher::send`] and [`Publisher::copy`] return `Ok` only when the broker has confirmed
//!    that the message is stored in at least one queue or log.
//! 10. A copy carries body, key, content type and the user's headers byte for byte, the stamps it
//!     was given, and none of the broker's own headers. Where the broker would not take that much,
//!     texts of ours are cut, and in the end headers of the user's are left out, which
//!     [`Copied`] tells: a copy is never refused for its headers.
//! 11. A copy to [`Place::Wait`] becomes deliverable from the source's lanes no earlier than its
//!     step says, and survives a restart of this process and (where the broker is durable) of the
//!     broker.
//! 12. A copy to [`Place::Suspects`] is delivered by the lane [`LaneId::suspects`] alone, one at a
//!     time: nothing else is out on that lane while one of its messages is unsettled. The lane is
//!     handed out when there are such messages, at the start or left behind by another process
//!     later, and when it is released; there is one at most.
//! 13. A dead letter that is read stays where it is until [`DeadLetterReader::remove`].
//! 14. After [`Broker::close`], sending, counting and reading dead letters fail with
//!     [`Fault::Closed`]: nobody is told what there was as if it were what there is.
//!
//! `testing::broker_conformance` turns these sentences into tests that every adapter runs (12 and 14 by tests of
//! their own: not every broker outlives a process, and none its close).

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::config;
use crate::wire::Stamps;

pub use crate::envelope::{Envelope, Envelopes, HeaderValue, SharedEnvelope};

#[cfg(feature = "kafka")]
pub mod kafka;
pub mod memory;
#[cfg(feature = "rabbitmq")]
pub mod rabbitmq;
mod turn;

/// A connection to one broker, shared by every subscription and publisher that names it.
///
/// ```
/// use std::sync::Arc;
/// use redeliver::broker::{Broker, BrokerState, Depth, LaneEvent, Source, memory::MemoryBroker};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let broker = MemoryBroker::new();
/// broker.connect().await?;
/// assert_eq!((broker.kind(), broker.state()), ("memory", BrokerState::Connected));
///
/// let (settings, service) = (Arc::default(), Arc::from("shop"));
/// let source = Arc::new(Source { name: "orders".into(), settings, waits: vec![], service });
/// assert_eq!(broker.topology(&source), ["queue orders", "queue orders.dead"]);
/// assert!(broker.prepare(&source).await?.is_empty(), "nothing to warn of");
///
/// let mut lanes = broker.lanes(source.clone());
/// assert!(matches!(lanes.next().await, LaneEvent::Opened(..)));
/// assert_eq!(broker.depth(&source).await?, Depth { ready: Some(0), unsettled: Some(0), waiting: Some(0), dead: Some(0) });
/// broker.close().await;
/// # Ok(())
/// # }
/// ```
#[async_trait]
pub trait Broker: Send + Sync {
    /// What kind it is, as in the configuration: `"memory"`, `"rabbitmq"`, `"kafka"`.
    fn kind(&self) -> &'static str;

    /// Connects, once; later losses are healed by the adapter for ever.
    ///
    /// # Errors
    /// [`Fault::Refused`] must not be tried again; anything else may be.
    async fn connect(&self) -> Result<(), BrokerError>;

    /// Declares or verifies what `source` needs, as its `topology` says.
    ///
    /// Returns warnings: what works but should be looked at by a human.
    ///
    /// # Errors
    /// [`Fault::Missing`], [`Fault::Mismatch`] (both sides shown) or a lost connection.
    async fn prepare(&self, source: &Source) -> Result<Vec<String>, BrokerError>;

    /// Everything [`prepare`](Self::prepare) would declare, a line each, without connecting.
    fn topology(&self, source: &Source) -> Vec<String>;

    /// Starts handing out the lanes of `source`.
    fn lanes(&self, source: Arc<Source>) -> Box<dyn Lanes>;

    /// The publisher of this connection.
    fn publisher(&self) -> Arc<dyn Publisher>;

    /// Reads the dead letters of `source` without consuming them.
    async fn dead_letters(
        &self,
        source: Arc<Source>,
    ) -> Result<Box<dyn DeadLetterReader>, BrokerError>;

    /// How many messages are where, for gauges and for "is anything still to come".
    async fn depth(&self, source: &Source) -> Result<Depth, BrokerError>;

    /// Whether it is connected, and what keeps it from working.
    fn state(&self) -> BrokerState;

    /// Closes the connections after everything that was sent has arrived.
    async fn close(&self);
}

/// Hands out the lanes of one source.
///
/// RabbitMQ: as many as the subscription has `consumers`. Kafka: one for each assigned partition.
///
/// ```
/// # use std::sync::Arc;
/// # use redeliver::broker::{Broker, Source, memory::MemoryBroker};
/// use redeliver::broker::LaneEvent;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let broker = MemoryBroker::new();
/// # let (settings, service) = (Arc::default(), Arc::from("shop"));
/// # let source = Arc::new(Source { name: "orders".into(), settings, waits: vec![], service });
/// # broker.prepare(&source).await?;
/// let mut lanes = broker.lanes(source);
/// let LaneEvent::Opened(id, mut lane) = lanes.next().await else { panic!("a lane in memory opens") };
/// let generation = lane.generation();
///
/// lane.close().await?;
/// lanes.release(id);
/// let LaneEvent::Opened(_, again) = lanes.next().await else { panic!("a lane in memory opens") };
/// assert!(again.generation() > generation);
/// lanes.close().await;
/// # Ok(())
/// # }
/// ```
#[async_trait]
pub trait Lanes: Send {
    /// Waits for the next thing to happen.
    ///
    /// # Cancel safety
    /// Cancel safe: an event is returned or still to come.
    async fn next(&mut self) -> LaneEvent;

    /// Tells that the lane is gone and may be opened again.
    fn release(&mut self, lane: LaneId);

    /// Stops handing out lanes; those that are out are closed by their owners beforehand.
    async fn close(&mut self);
}

/// What can happen to the lanes of a source.
///
/// ```
/// # use std::sync::Arc;
/// # use redeliver::broker::{Broker, Source, memory::MemoryBroker};
/// use redeliver::broker::LaneEvent;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let broker = MemoryBroker::new();
/// # let (settings, service) = (Arc::default(), Arc::from("shop"));
/// # let source = Arc::new(Source { name: "orders".into(), settings, waits: vec![], service });
/// # broker.prepare(&source).await?;
/// match broker.lanes(source).next().await {
///     LaneEvent::Opened(id, lane) => assert!(lane.is_active() && !id.is_suspects()),
///     LaneEvent::Failed(id, error) => panic!("lane {id} must be released, to be tried again: {error}"),
/// }
/// # Ok(())
/// # }
/// ```
pub enum LaneEvent {
    /// A lane is open and delivers.
    Opened(LaneId, Box<dyn Lane>),
    /// A lane could not be opened; it is tried again after [`Lanes::release`].
    Failed(LaneId, BrokerError),
}

/// Names a lane within its source: a channel's number, or `topic/partition`.
///
/// ```
/// use redeliver::broker::LaneId;
///
/// assert_eq!(LaneId("orders/3".into()).to_string(), "orders/3");
/// assert!(LaneId::suspects().is_suspects());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LaneId(pub Arc<str>);

impl LaneId {
    /// The lane of the messages that may have ended a process.
    ///
    /// ```
    /// use redeliver::broker::LaneId;
    ///
    /// assert_eq!(LaneId::suspects(), LaneId::suspects(), "there is one for each source");
    /// assert_eq!(LaneId::suspects().to_string(), "suspects");
    /// ```
    pub fn suspects() -> Self {
        Self("suspects".into())
    }

    /// Whether it is the lane of the suspects.
    ///
    /// ```
    /// use redeliver::broker::LaneId;
    ///
    /// /// Of the lane of the suspects no second message is out.
    /// fn in_flight_max(lane: &LaneId, told: usize) -> usize {
    ///     if lane.is_suspects() { 1 } else { told }
    /// }
    /// assert_eq!(in_flight_max(&LaneId("orders/3".into()), 64), 64);
    /// assert_eq!(in_flight_max(&LaneId::suspects(), 64), 1);
    /// ```
    pub fn is_suspects(&self) -> bool {
        &*self.0 == "suspects"
    }
}

impl fmt::Display for LaneId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What one consumer drains: a RabbitMQ queue through one channel, one Kafka partition.
///
/// ```
/// # use std::sync::Arc;
/// # use redeliver::broker::{Broker, LaneEvent, Outgoing, Source, Target, memory::MemoryBroker};
/// use redeliver::broker::Settlement;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let broker = MemoryBroker::new();
/// # let (settings, service) = (Arc::default(), Arc::from("shop"));
/// # let source = Arc::new(Source { name: "orders".into(), settings, waits: vec![], service });
/// # broker.prepare(&source).await?;
/// # for number in 1..=2 {
/// #     let (target, id) = (Target::Queue("orders".to_owned()), format!("order-{number}"));
/// #     let body = format!("{number}").into();
/// #     broker.publisher().send(&Outgoing {
/// #         target, id, body, headers: vec![("tenant".into(), "acme".into())], content_type: None, kind: None,
/// #         key: None, time_to_live: None, priority: None,
/// #     }).await?;
/// # }
/// # let mut lanes = broker.lanes(source.clone());
/// # let LaneEvent::Opened(_, mut lane) = lanes.next().await else { panic!("a lane in memory opens") };
/// let mut batch = Vec::new();
/// lane.next(&mut batch, 64).await?;
/// assert_eq!(batch.len(), 2, "no more than there are");
///
/// let mut settlements = vec![Settlement::Ack(batch[0].token), Settlement::Return(batch[1].token)];
/// lane.settle(&mut settlements).await?;
/// assert!(settlements.is_empty());
///
/// lane.next(&mut batch, 64).await?;
/// assert!(batch[2].envelope.is_redelivered());
/// lane.close().await?;                        // gives back what is not settled
/// assert_eq!(broker.depth(&source).await?.ready, Some(1));
/// # Ok(())
/// # }
/// ```
#[async_trait(?Send)]
pub trait Lane: Send {
    /// Waits until at least one message is there and appends at most `limit` of them.
    ///
    /// # Cancel safety
    /// Cancel safe: a message is appended or still inside the lane.
    async fn next(&mut self, batch: &mut Vec<Received>, limit: usize) -> Result<(), LaneEnd>;

    /// Settles, and empties `settlements`. Returns as soon as the broker's client has taken them.
    async fn settle(&mut self, settlements: &mut Vec<Settlement>) -> Result<(), LaneEnd>;

    /// So many settlements are better told at once, where each telling costs the broker something: fewer are kept back for
    /// some milliseconds, and never so many that a crash would repeat more than may be in flight.
    fn settlements_at_once(&self) -> usize {
        1
    }

    /// Stops delivering, returns what is unsettled, and lets every settlement arrive.
    async fn close(&mut self) -> Result<(), LaneEnd>;

    /// False for a standby that is not meant to receive (single active consumer).
    fn is_active(&self) -> bool {
        true
    }

    /// Whether the broker has something that this lane itself should have been given by now, which is false for a standby;
    /// `None` where no lane can tell: then an active one is, if its source has anything ready.
    async fn is_behind(&self) -> Option<bool> {
        None
    }

    /// Whether its connection or channel is known to be gone, though [`next`](Self::next) was not asked since; `None`
    /// where only `next` knows, or where what was out comes again over no other lane.
    fn is_lost(&self) -> Option<bool> {
        None
    }

    /// Resolves when the broker asks for the lane back; never where a broker does not ask.
    fn recalled(&self) -> BoxFuture<'static, Recall> {
        Box::pin(std::future::pending())
    }

    /// Raised each time the lane is opened again; part of what makes a redelivery recognisable.
    fn generation(&self) -> u64;
}

/// A broker wants a lane back, to give it to another consumer.
///
/// ```
/// # use std::sync::Arc;
/// # use redeliver::broker::{Broker, LaneEvent, Outgoing, Source, Target, memory::MemoryBroker};
/// use redeliver::broker::Recall;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let broker = MemoryBroker::new();
/// # let (settings, service) = (Arc::default(), Arc::from("shop"));
/// # let source = Arc::new(Source { name: "orders".into(), settings, waits: vec![], service });
/// # broker.prepare(&source).await?;
/// # for number in 1..=1 {
/// #     let (target, id) = (Target::Queue("orders".to_owned()), format!("order-{number}"));
/// #     let body = format!("{number}").into();
/// #     broker.publisher().send(&Outgoing {
/// #         target, id, body, headers: vec![("tenant".into(), "acme".into())], content_type: None, kind: None,
/// #         key: None, time_to_live: None, priority: None,
/// #     }).await?;
/// # }
/// # let mut lanes = broker.lanes(source.clone());
/// # let LaneEvent::Opened(_, mut lane) = lanes.next().await else { panic!("a lane in memory opens") };
/// // What a consumer does beside waiting for messages:
/// let (recalled, mut batch) = (lane.recalled(), Vec::new());
/// tokio::select! {
///     next = lane.next(&mut batch, 1) => next?,
///     recall = recalled => match recall {
///         Recall::Until(end) => println!("settle what is finished, and close before {end:?}"),
///         Recall::Gone => println!("close: nothing that is settled now counts"),
///     },
/// }
/// assert_eq!(batch.len(), 1, "a broker in memory asks for nothing back");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recall {
    /// What is settled and closed by then is not delivered again.
    Until(Instant),
    /// It is with somebody else already: no settlement counts any more.
    Gone,
}

/// Why a lane delivers no more.
///
/// ```
/// use redeliver::broker::{BrokerError, Fault, LaneEnd};
///
/// let lost = LaneEnd::Lost(BrokerError::new(Fault::Unreachable, "the connection was reset"));
/// assert_eq!(lost.to_string(), "the lane was lost: the connection was reset");
/// ```
#[derive(Debug, thiserror::Error)]
pub enum LaneEnd {
    /// The broker gave it to somebody else; finish nothing, settle nothing more.
    #[error("the lane was revoked")]
    Revoked,
    /// The broker cancelled the consumer: its queue was deleted or moved.
    #[error("the broker cancelled the consumer")]
    Cancelled,
    /// The channel or connection is gone.
    #[error("the lane was lost: {0}")]
    Lost(BrokerError),
}

/// One message in our hands, not settled yet.
///
/// ```
/// # use std::sync::Arc;
/// # use redeliver::broker::{Broker, LaneEvent, Outgoing, Source, Target, memory::MemoryBroker};
/// use redeliver::broker::Received;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let broker = MemoryBroker::new();
/// # let (settings, service) = (Arc::default(), Arc::from("shop"));
/// # let source = Arc::new(Source { name: "orders".into(), settings, waits: vec![], service });
/// # broker.prepare(&source).await?;
/// # for number in 1..=1 {
/// #     let (target, id) = (Target::Queue("orders".to_owned()), format!("order-{number}"));
/// #     let body = format!("{number}").into();
/// #     broker.publisher().send(&Outgoing {
/// #         target, id, body, headers: vec![("tenant".into(), "acme".into())], content_type: None, kind: None,
/// #         key: None, time_to_live: None, priority: None,
/// #     }).await?;
/// # }
/// # let mut lanes = broker.lanes(source.clone());
/// # let LaneEvent::Opened(_, mut lane) = lanes.next().await else { panic!("a lane in memory opens") };
/// let mut batch: Vec<Received> = Vec::new();
/// lane.next(&mut batch, 1).await?;
/// assert_eq!(batch[0].envelope.id(), Some("order-1"));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Received {
    /// What the broker delivered, as it delivered it.
    pub envelope: SharedEnvelope,
    /// How the lane that delivered it calls it.
    pub token: Token,
}

/// A lane's own name for a delivery: a delivery tag, an offset.
///
/// ```
/// # use std::sync::Arc;
/// # use redeliver::broker::{Broker, LaneEvent, Outgoing, Source, Target, memory::MemoryBroker};
/// use redeliver::broker::{Settlement, Token};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let broker = MemoryBroker::new();
/// # let (settings, service) = (Arc::default(), Arc::from("shop"));
/// # let source = Arc::new(Source { name: "orders".into(), settings, waits: vec![], service });
/// # broker.prepare(&source).await?;
/// # for number in 1..=1 {
/// #     let (target, id) = (Target::Queue("orders".to_owned()), format!("order-{number}"));
/// #     let body = format!("{number}").into();
/// #     broker.publisher().send(&Outgoing {
/// #         target, id, body, headers: vec![("tenant".into(), "acme".into())], content_type: None, kind: None,
/// #         key: None, time_to_live: None, priority: None,
/// #     }).await?;
/// # }
/// # let mut lanes = broker.lanes(source.clone());
/// # let LaneEvent::Opened(_, mut lane) = lanes.next().await else { panic!("a lane in memory opens") };
/// let foreign = Token(0);
/// lane.settle(&mut vec![Settlement::Ack(foreign)]).await?;
/// assert_eq!(broker.depth(&source).await?.ready, Some(1), "it settled nothing");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token(pub u64);

/// What the broker is told about a delivery.
///
/// ```
/// # use std::sync::Arc;
/// # use redeliver::broker::{Broker, LaneEvent, Outgoing, Source, Target, memory::MemoryBroker};
/// use redeliver::broker::Settlement;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let broker = MemoryBroker::new();
/// # let (settings, service) = (Arc::default(), Arc::from("shop"));
/// # let source = Arc::new(Source { name: "orders".into(), settings, waits: vec![], service });
/// # broker.prepare(&source).await?;
/// # for number in 1..=1 {
/// #     let (target, id) = (Target::Queue("orders".to_owned()), format!("order-{number}"));
/// #     let body = format!("{number}").into();
/// #     broker.publisher().send(&Outgoing {
/// #         target, id, body, headers: vec![("tenant".into(), "acme".into())], content_type: None, kind: None,
/// #         key: None, time_to_live: None, priority: None,
/// #     }).await?;
/// # }
/// # let mut lanes = broker.lanes(source.clone());
/// # let LaneEvent::Opened(_, mut lane) = lanes.next().await else { panic!("a lane in memory opens") };
/// let mut batch = Vec::new();
/// lane.next(&mut batch, 1).await?;
/// lane.settle(&mut vec![Settlement::Ack(batch[0].token)]).await?;
/// let depth = broker.depth(&source).await?;
/// assert_eq!((depth.ready, depth.unsettled), (Some(0), Some(0)), "it is gone for good");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settlement {
    /// It is done with.
    Ack(Token),
    /// It comes back, to us or to another consumer, without an attempt counted.
    Return(Token),
}

/// Sends messages and waits until the broker has them.
///
/// ```
/// # use std::sync::Arc;
/// # use redeliver::broker::{Broker, LaneEvent, Outgoing, Source, Target, memory::MemoryBroker};
/// use redeliver::broker::{Copy, Place};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let broker = MemoryBroker::new();
/// # let (settings, service) = (Arc::default(), Arc::from("shop"));
/// # let source = Arc::new(Source { name: "orders".into(), settings, waits: vec![], service });
/// # broker.prepare(&source).await?;
/// # for number in 1..=1 {
/// #     let (target, id) = (Target::Queue("orders".to_owned()), format!("order-{number}"));
/// #     let body = format!("{number}").into();
/// #     broker.publisher().send(&Outgoing {
/// #         target, id, body, headers: vec![("tenant".into(), "acme".into())], content_type: None, kind: None,
/// #         key: None, time_to_live: None, priority: None,
/// #     }).await?;
/// # }
/// # let mut lanes = broker.lanes(source.clone());
/// # let LaneEvent::Opened(_, mut lane) = lanes.next().await else { panic!("a lane in memory opens") };
/// # let mut batch = Vec::new();
/// # lane.next(&mut batch, 1).await?;
/// let publisher = broker.publisher();
/// let stamps = vec![(redeliver::wire::REASON, "rejected".to_owned())];
/// let copy = Copy { source: source.clone(), envelope: batch[0].envelope.clone(), place: Place::Dead, stamps };
/// publisher.copy(&copy).await?;               // stored: now the original may be acknowledged
/// assert_eq!(broker.depth(&source).await?.dead, Some(1));
/// # Ok(())
/// # }
/// ```
#[async_trait]
pub trait Publisher: Send + Sync {
    /// Sends a message of the user's.
    ///
    /// # Errors
    /// Whatever is not confirmed is an error; the message may or may not have arrived.
    ///
    /// # Cancel safety
    /// A cancelled call leaves the outcome unknown.
    async fn send(&self, message: &Outgoing) -> Result<(), BrokerError>;

    /// A publisher for one run of a handler over a message, where the message asks for one: what is sent through it
    /// is stored together with the message's settlement, or never. What earlier runs of it sent is forgotten.
    fn within(&self, message: &dyn Envelope) -> Option<Arc<dyn Publisher>> {
        let _ = message;
        None
    }

    /// Copies a message to another place of its own subscription.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    async fn copy(&self, copy: &Copy) -> Result<Copied, BrokerError>;

    /// How many connections were made so far, where the adapter knows: copies that failed are made again as soon as there
    /// is one more, and not when their backoff ends.
    fn connections(&self) -> Option<watch::Receiver<u64>> {
        None
    }
}

/// A copy that the broker has confirmed.
///
/// ```
/// use redeliver::broker::Copied;
///
/// let whole = Copied::default();
/// assert_eq!(whole.headers_left_out, 0, "nothing had to give way");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// How many of the user's headers it lacks, because the broker would not have taken it with them.
    pub headers_left_out: usize,
}

/// A message that a user publishes.
///
/// ```
/// # use std::sync::Arc;
/// # use redeliver::broker::{Broker, Source, memory::MemoryBroker};
/// use redeliver::broker::{Outgoing, Target};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let broker = MemoryBroker::new();
/// # let (settings, service) = (Arc::default(), Arc::from("shop"));
/// # let source = Arc::new(Source { name: "orders".into(), settings, waits: vec![], service });
/// # broker.prepare(&source).await?;
/// let order = Outgoing {
///     target: Target::Queue("orders".to_owned()),
///     id: "order-7".to_owned(),
///     body: "{}".into(),
///     headers: vec![("tenant".to_owned(), "acme".to_owned())],
///     content_type: Some("application/json".to_owned()),
///     kind: Some("placed".to_owned()),
///     key: None,
///     time_to_live: None,
///     priority: None,
/// };
/// broker.publisher().send(&order).await?;
/// let lost = Outgoing { target: Target::Queue("ordres".to_owned()), ..order };
/// assert!(broker.publisher().send(&lost).await.is_err(), "there is no such queue");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// Where it goes.
    pub target: Target,
    /// Its id: the same at every resend.
    pub id: String,
    /// Its payload.
    pub body: Bytes,
    /// Its headers, the user's and the stamps.
    pub headers: Vec<(String, String)>,
    /// Its content type.
    pub content_type: Option<String>,
    /// Its type.
    pub kind: Option<String>,
    /// Its key (Kafka), where the target does not tell.
    pub key: Option<Bytes>,
    /// When it expires, counted from now; in a century at the latest.
    pub time_to_live: Option<Duration>,
    /// Its priority (RabbitMQ).
    pub priority: Option<u8>,
}

/// Where a published message goes.
///
/// ```
/// use redeliver::broker::Target;
///
/// let target = Target::Exchange { exchange: "shop".into(), routing_key: "order.placed".into() };
/// assert_eq!(target.to_string(), "exchange `shop` with routing key `order.placed`");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Target {
    /// Straight into a queue.
    Queue(String),
    /// Through an exchange.
    Exchange {
        /// The exchange's name.
        exchange: String,
        /// The routing key.
        routing_key: String,
    },
    /// Into a topic.
    Topic(String),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Queue(queue) => write!(f, "queue `{queue}`"),
            Self::Exchange { exchange, routing_key } => {
                write!(f, "exchange `{exchange}` with routing key `{routing_key}`")
            }
            Self::Topic(topic) => write!(f, "topic `{topic}`"),
        }
    }
}

/// A message on its way to another place of its subscription.
///
/// ```
/// # use std::sync::Arc;
/// # use redeliver::broker::{Broker, LaneEvent, Outgoing, Source, Target, memory::MemoryBroker};
/// use redeliver::broker::{Copy, Place};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let broker = MemoryBroker::new();
/// # let (settings, service) = (Arc::default(), Arc::from("shop"));
/// # let source = Arc::new(Source { name: "orders".into(), settings, waits: vec![], service });
/// # broker.prepare(&source).await?;
/// # for number in 1..=1 {
/// #     let (target, id) = (Target::Queue("orders".to_owned()), format!("order-{number}"));
/// #     let body = format!("{number}").into();
/// #     broker.publisher().send(&Outgoing {
/// #         target, id, body, headers: vec![("tenant".into(), "acme".into())], content_type: None, kind: None,
/// #         key: None, time_to_live: None, priority: None,
/// #     }).await?;
/// # }
/// # let mut lanes = broker.lanes(source.clone());
/// # let LaneEvent::Opened(_, mut lane) = lanes.next().await else { panic!("a lane in memory opens") };
/// # let mut batch = Vec::new();
/// # lane.next(&mut batch, 1).await?;
/// let stamps = vec![(redeliver::wire::ATTEMPT, "1".to_owned())];
/// let copy = Copy { source: source.clone(), envelope: batch[0].envelope.clone(), place: Place::Source, stamps };
/// broker.publisher().copy(&copy).await?;
///
/// lane.next(&mut batch, 1).await?;
/// let (original, copy) = (&batch[0].envelope, &batch[1].envelope);
/// assert_eq!((copy.id(), copy.body()), (original.id(), original.body()));
/// assert!(copy.header("tenant").is_some() && copy.header("redeliver-attempt").is_some());
/// # Ok(())
/// # }
/// ```
pub struct Copy {
    /// The subscription it belongs to.
    pub source: Arc<Source>,
    /// What is copied.
    pub envelope: SharedEnvelope,
    /// Where to.
    pub place: Place,
    /// Our own headers, replacing all that it carried (but `redeliver-original-*`).
    pub stamps: Stamps,
}

/// The places that belong to a subscription.
///
/// ```
/// # use std::sync::Arc;
/// # use redeliver::broker::{Broker, LaneEvent, Outgoing, Source, Target, memory::MemoryBroker};
/// use redeliver::broker::{Copy, Place};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let broker = MemoryBroker::new();
/// # let (settings, service) = (Arc::default(), Arc::from("shop"));
/// # let source = Arc::new(Source { name: "orders".into(), settings, waits: vec![], service });
/// # broker.prepare(&source).await?;
/// # for number in 1..=1 {
/// #     let (target, id) = (Target::Queue("orders".to_owned()), format!("order-{number}"));
/// #     let body = format!("{number}").into();
/// #     broker.publisher().send(&Outgoing {
/// #         target, id, body, headers: vec![("tenant".into(), "acme".into())], content_type: None, kind: None,
/// #         key: None, time_to_live: None, priority: None,
/// #     }).await?;
/// # }
/// # let mut lanes = broker.lanes(source.clone());
/// # let LaneEvent::Opened(_, mut lane) = lanes.next().await else { panic!("a lane in memory opens") };
/// # broker.connect().await?;
/// # let mut batch = Vec::new();
/// # lane.next(&mut batch, 1).await?;
/// let place = Place::Wait(std::time::Duration::from_millis(20));
/// let copy = Copy { source: source.clone(), envelope: batch[0].envelope.clone(), place, stamps: vec![] };
/// broker.publisher().copy(&copy).await?;
/// assert_eq!(broker.depth(&source).await?.waiting, Some(1));
/// lane.next(&mut batch, 1).await?;            // no earlier than 20 ms later
/// assert_eq!(broker.depth(&source).await?.waiting, Some(0));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The wait of exactly this length; one of [`Source::waits`].
    Wait(Duration),
    /// The dead letters.
    Dead,
    /// Back to where it is consumed from, at once.
    Source,
    /// Where messages wait that may have ended a process, to be handled alone.
    Suspects,
}

/// What an adapter must know of a subscription.
///
/// ```
/// use std::{sync::Arc, time::Duration};
/// use redeliver::{broker::Source, config::Config};
///
/// let config = Config::from_toml(r#"
///     [brokers.main]
///     kind = "memory"
///     [subscriptions.orders]
///     broker = "main"
///     queue = "shop.orders"
/// "#)?;
/// let source = Source {
///     name: "orders".into(),
///     settings: Arc::new(config.subscriptions["orders"].clone()),
///     waits: vec![Duration::from_secs(5), Duration::from_secs(60)],
///     service: config.service.name().into(),
/// };
/// assert_eq!(source.settings.queue.as_deref(), Some("shop.orders"));
/// # Ok::<(), redeliver::config::Problems>(())
/// ```
#[derive(Clone, Debug)]
pub struct Source {
    /// The subscription's name.
    pub name: Arc<str>,
    /// Its table of the configuration.
    pub settings: Arc<config::Subscription>,
    /// The lengths of the waits at the broker, ascending; names are made of them.
    pub waits: Vec<Duration>,
    /// The service's name, for consumer tags and client ids.
    pub service: Arc<str>,
}

/// How many messages are where; `None` where the broker does not tell.
///
/// ```
/// # use std::sync::Arc;
/// # use redeliver::broker::{Broker, Outgoing, Source, Target, memory::MemoryBroker};
/// use redeliver::broker::Depth;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let broker = MemoryBroker::new();
/// # let (settings, service) = (Arc::default(), Arc::from("shop"));
/// # let source = Arc::new(Source { name: "orders".into(), settings, waits: vec![], service });
/// # broker.prepare(&source).await?;
/// # for number in 1..=2 {
/// #     let (target, id) = (Target::Queue("orders".to_owned()), format!("order-{number}"));
/// #     let body = format!("{number}").into();
/// #     broker.publisher().send(&Outgoing {
/// #         target, id, body, headers: vec![("tenant".into(), "acme".into())], content_type: None, kind: None,
/// #         key: None, time_to_live: None, priority: None,
/// #     }).await?;
/// # }
/// let depth = broker.depth(&source).await?;
/// assert_eq!(depth, Depth { ready: Some(2), unsettled: Some(0), waiting: Some(0), dead: Some(0) });
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Depth {
    /// Ready to be delivered.
    pub ready: Option<u64>,
    /// Delivered to anyone, not settled. On RabbitMQ it is known only while all consumers are of this process.
    pub unsettled: Option<u64>,
    /// In the waits.
    pub waiting: Option<u64>,
    /// In the dead letters.
    pub dead: Option<u64>,
}

/// What a connection is up to.
///
/// ```
/// use redeliver::broker::BrokerState;
///
/// fn may_publish(state: &BrokerState) -> bool {
///     matches!(state, BrokerState::Connected)
/// }
/// assert!(!may_publish(&BrokerState::Blocked("low on memory".to_owned())));
/// assert!(!may_publish(&BrokerState::Disconnected("127.0.0.1:5672: connection refused".to_owned())));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BrokerState {
    /// Works.
    Connected,
    /// The broker takes no messages for now (an alarm); with its reason.
    Blocked(String),
    /// Not connected; with what was last tried.
    Disconnected(String),
}

/// Reads dead letters one by one without consuming them.
///
/// What was read is held by the reader until it is removed or the reader is closed or dropped;
/// then it is back where it was.
///
/// Where what is held is hidden from others (memory, RabbitMQ), readers of one process take turns: a second one waits
/// for a few seconds, and then is an error rather than one that sees too little. What readers of other processes hold,
/// and up to 32 letters beyond, nobody can see or count.
///
/// ```
/// # use std::sync::Arc;
/// # use redeliver::broker::{Broker, LaneEvent, Outgoing, Source, Target, memory::MemoryBroker};
/// # use redeliver::broker::{Copy, Place};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let broker = MemoryBroker::new();
/// # let (settings, service) = (Arc::default(), Arc::from("shop"));
/// # let source = Arc::new(Source { name: "orders".into(), settings, waits: vec![], service });
/// # broker.prepare(&source).await?;
/// # for number in 1..=2 {
/// #     let (target, id) = (Target::Queue("orders".to_owned()), format!("order-{number}"));
/// #     let body = format!("{number}").into();
/// #     broker.publisher().send(&Outgoing {
/// #         target, id, body, headers: vec![("tenant".into(), "acme".into())], content_type: None, kind: None,
/// #         key: None, time_to_live: None, priority: None,
/// #     }).await?;
/// # }
/// # let mut lanes = broker.lanes(source.clone());
/// # let LaneEvent::Opened(_, mut lane) = lanes.next().await else { panic!("a lane in memory opens") };
/// # let mut batch = Vec::new();
/// # lane.next(&mut batch, 2).await?;
/// # for received in &batch {
/// #     let envelope = received.envelope.clone();
/// #     let copy = Copy { source: source.clone(), envelope, place: Place::Dead, stamps: vec![] };
/// #     broker.publisher().copy(&copy).await?;
/// # }
/// let mut reader = broker.dead_letters(source.clone()).await?;
/// let first = reader.next().await?.expect("there are two");
/// let second = reader.next().await?.expect("there are two");
/// assert!(reader.next().await?.is_none());
///
/// reader.remove(first.token).await?;
/// reader.close().await?;                      // the second is back where it was
/// assert_eq!(broker.depth(&source).await?.dead, Some(1));
/// # let _ = second;
/// # Ok(())
/// # }
/// ```
#[async_trait]
pub trait DeadLetterReader: Send {
    /// The next dead letter, or `None` when all of them have been read.
    async fn next(&mut self) -> Result<Option<Received>, BrokerError>;

    /// Removes one that was read.
    async fn remove(&mut self, token: Token) -> Result<(), BrokerError>;

    /// Gives back everything that is held, and waits until the broker knows.
    async fn close(&mut self) -> Result<(), BrokerError>;
}

/// What a broker could not do.
///
/// ```
/// use redeliver::broker::{BrokerError, Fault};
///
/// let error = BrokerError::new(Fault::Missing, "queue `orders` is not there; create it, or say topology = \"declare\"");
/// assert_eq!(error.fault, Fault::Missing);
/// assert!(error.to_string().starts_with("queue `orders` is not there"));
/// ```
#[derive(Clone, Debug, thiserror::Error)]
#[error("{text}")]
pub struct BrokerError {
    /// What kind of fault it was, for code that decides.
    pub fault: Fault,
    /// What was attempted, on which object, what came back and what to do; never a secret.
    pub text: String,
    is_unsent: bool,
}

impl BrokerError {
    /// An error of the kind `fault` that reads `text`.
    ///
    /// ```
    /// use redeliver::broker::{BrokerError, Fault};
    ///
    /// /// What an adapter makes of an error of its client.
    /// fn told(queue: &str, said: std::io::Error) -> BrokerError {
    ///     BrokerError::new(Fault::Unreachable, format!("cannot count queue `{queue}`: {said}; is it reachable?"))
    /// }
    /// let error = told("orders", std::io::Error::other("reset by peer"));
    /// assert_eq!(error.to_string(), "cannot count queue `orders`: reset by peer; is it reachable?");
    /// assert_eq!(error.fault, Fault::Unreachable, "so it is tried again");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn new(fault: Fault, text: impl Into<String>) -> Self {
        Self { fault, text: text.into(), is_unsent: false }
    }

    /// The same, of a message of which nothing was sent: it cannot have arrived.
    ///
    /// ```
    /// use redeliver::broker::{BrokerError, Fault};
    ///
    /// let error = BrokerError::new(Fault::Unreachable, "connecting to rabbit:5672: connection refused");
    /// assert!(!error.is_unsent(), "a publisher that says no more may have sent something before");
    /// assert!(error.unsent().is_unsent());
    /// ```
    #[must_use]
    pub fn unsent(mut self) -> Self {
        self.is_unsent = true;
        self
    }

    /// Whether it is known that nothing was sent.
    ///
    /// ```
    /// use redeliver::broker::{BrokerError, Fault};
    ///
    /// let unanswered = BrokerError::new(Fault::Unconfirmed, "no confirm within 30 s");
    /// assert!(!unanswered.is_unsent(), "it may be stored all the same");
    /// ```
    pub fn is_unsent(&self) -> bool {
        self.is_unsent
    }
}

/// The kinds of faults that anyone decides on.
///
/// ```
/// # use std::sync::Arc;
/// # use redeliver::broker::{Broker, Source, memory::MemoryBroker};
/// use redeliver::broker::Fault;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let broker = MemoryBroker::new();
/// # let (settings, service) = (Arc::default(), Arc::from("shop"));
/// # let source = Arc::new(Source { name: "orders".into(), settings, waits: vec![], service });
/// # broker.prepare(&source).await?;
/// # use redeliver::broker::{Outgoing, Target};
/// let nowhere = Target::Exchange { exchange: "shop".into(), routing_key: "nobody".into() };
/// # let message = Outgoing {
/// #     target: nowhere, id: "order-7".into(), body: "{}".into(), headers: vec![], content_type: None,
/// #     kind: None, key: None, time_to_live: None, priority: None,
/// # };
/// let error = broker.publisher().send(&message).await.expect_err("nobody is bound there");
/// assert_eq!(error.fault, Fault::Unroutable, "sending it again would not help");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Fault {
    /// Credentials, permissions or a virtual host refused: trying again is of no use.
    Refused,
    /// Not reachable, or lost: trying again may help.
    Unreachable,
    /// A queue, exchange or topic that should be there is not.
    Missing,
    /// It is there, but with other properties.
    Mismatch,
    /// No queue took the message.
    Unroutable,
    /// The broker did not confirm in time, or refused to store it.
    Unconfirmed,
    /// Larger than the broker takes.
    TooLarge,
    /// The message cannot be sent as it is, wherever and whenever: an id, a name or a key that is too long, a target
    /// that this broker does not know. Nothing was sent.
    Invalid,
    /// This process has closed the connection: the service stops or has stopped. Nothing was sent.
    Closed,
    /// Anything else.
    Other,
}
