//! Publishing: every message confirmed by the broker, or an error that names it.
//!
//! Owns ids, trace context, causation and hops of what is sent, and the bounded resend. Never
//! fire and forget.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::broker::{self, BrokerError, Envelope, Fault, Outgoing, Target};
use crate::outside;
use crate::telemetry;
use crate::trace::{TRACEPARENT, TRACESTATE, TraceContext};
use crate::wire;

/// How often a message is sent at most before its confirm is given up.
const SENDS_MAX: u32 = 3;
/// How long the first resend waits; each next one twice as long.
const RESEND_DELAY: Duration = Duration::from_millis(100);

/// Sends messages through one broker of the configuration. Cheap to clone.
///
/// ```
/// # actix::System::new().block_on(async {
/// # use redeliver::{Message, Service, config::Config};
/// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
/// # let service = Service::builder(config).without_handler("orders").start().await?;
///
/// let publisher = service.publisher("main")?;
/// let id = publisher.send(Message::bytes("{}").to_queue("orders").id("order-7")).await?;
/// assert_eq!(id.as_str(), "order-7");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
#[derive(Clone)]
pub struct Publisher {
    broker: Arc<dyn broker::Publisher>,
    cause: Option<Arc<Cause>>,
}

/// What caused the messages of a publisher.
#[derive(Debug, Default)]
pub(crate) struct Cause {
    pub(crate) id: Option<String>,
    pub(crate) hops: u32,
    pub(crate) trace: Option<TraceContext>,
    pub(crate) tracestate: Option<String>,
}

impl Publisher {
    pub(crate) fn new(broker: Arc<dyn broker::Publisher>) -> Self {
        Self { broker, cause: None }
    }

    pub(crate) fn caused_by(&self, cause: Cause) -> Self {
        Self { broker: Arc::clone(&self.broker), cause: Some(Arc::new(cause)) }
    }

    /// As [`broker::Publisher::within`].
    pub(crate) fn within(&self, message: &dyn Envelope) -> Option<Self> {
        Some(Self { broker: self.broker.within(message)?, cause: None })
    }

    /// Sends `message` and waits until the broker has stored it.
    ///
    /// A message without an id gets one (UUID version 7). Where no confirm comes, it is sent again
    /// under the same id, three times in all.
    ///
    /// ```
    /// # actix::System::new().block_on(async {
    /// # use redeliver::{Message, Service, config::Config};
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
    /// # let service = Service::builder(config).without_handler("orders").start().await?;
    ///
    /// let publisher = service.publisher("main")?;
    /// publisher.send(Message::bytes("{}").to_queue("orders")).await?;
    /// assert_eq!(service.depth("orders").await?.ready, Some(1), "stored, before `send` returned");
    ///
    /// let lost = publisher.send(Message::bytes("{}").to_queue("ordres").id("order-7")).await;
    /// let error = lost.expect_err("no such queue").to_string();
    /// assert!(error.starts_with("message `order-7` to queue `ordres` was not confirmed: "), "{error}");
    /// # service.stop().await;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    ///
    /// # Errors
    /// [`PublishError`] names the message that was not confirmed, and tells whether it may have arrived all the same.
    ///
    /// # Cancel safety
    /// Not cancel safe: whether a message whose `send` was dropped arrived is unknown.
    pub async fn send(&self, message: Message) -> Result<MessageId, PublishError> {
        outside::in_context(self.send_or_resend(message)).await
    }

    /// As [`send`](Self::send), for code that is not async: waits on this thread until the broker has stored it.
    ///
    /// ```
    /// use actix::prelude::*;
    /// use redeliver::{Delivery, Handled, Message, blocking};
    ///
    /// struct Warehouse;
    /// impl Actor for Warehouse { type Context = SyncContext<Self>; }
    ///
    /// impl Handler<Delivery<u32>> for Warehouse {
    ///     type Result = Handled;
    ///
    ///     fn handle(&mut self, order: Delivery<u32>, _: &mut SyncContext<Self>) -> Handled {
    ///         let parcel = Message::json(&order.payload)?.to_queue("parcels");
    ///         order.publisher().send_blocking(parcel)?;
    ///         Ok(())
    ///     }
    /// }
    /// # use redeliver::{Service, config::Config, testing::TestService};
    /// # let config = "[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"\n[subscriptions.parcels]\nbroker = \"main\"";
    /// # let pack = |_: Delivery<u32>| async { Handled::Ok(()) };
    /// let service = Service::builder(Config::from_toml(config)?).subscribe("orders", blocking(2, || Warehouse));
    /// # let mut test = TestService::start(service.subscribe("parcels", pack))?;
    /// test.publish("orders", Message::json(&7)?.id("order-7"));
    /// test.finish();
    /// assert!(test.log().contains(&"order-7: attempt 1 handled".to_owned()));
    /// # assert_eq!(test.log().len(), 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`send`](Self::send).
    ///
    /// # Panics
    /// In async code: the thread would drive no other future meanwhile, perhaps not the one that is waited for.
    pub fn send_blocking(&self, message: Message) -> Result<MessageId, PublishError> {
        outside::block_on(self.send_or_resend(message))
    }

    async fn send_or_resend(&self, message: Message) -> Result<MessageId, PublishError> {
        let outgoing = self.stamp(message);
        let (mut delay, mut may_have_arrived) = (RESEND_DELAY, false);
        for send in 1.. {
            match self.broker.send(&outgoing).await {
                Ok(()) => break,
                Err(error) if send < SENDS_MAX && may_pass(error.fault) => {
                    telemetry::resending(&outgoing.target, &error);
                    may_have_arrived |= !error.is_unsent();
                    tokio::time::sleep(delay).await;
                    delay *= 2;
                }
                Err(cause) => {
                    may_have_arrived |= !cause.is_unsent() && !is_known_to_be_lost(cause.fault);
                    let target = outgoing.target.to_string();
                    return Err(PublishError { id: outgoing.id, target, cause, may_have_arrived });
                }
            }
        }
        Ok(MessageId(outgoing.id))
    }

    fn stamp(&self, message: Message) -> Outgoing {
        let Message { mut outgoing } = message;
        if outgoing.id.is_empty() {
            outgoing.id = uuid::Uuid::now_v7().to_string();
        }
        if self.cause.is_some() {
            // A handler that sends on all headers of what it got must not send on ours: hops that stand still
            // would let the message circle for ever, and attempts would be used up before the first.
            outgoing.headers.retain(|(name, _)| !name.starts_with(wire::PREFIX));
        }
        let mut set = |name: &str, value: Option<String>| {
            if let Some(value) = value
                && !outgoing.headers.iter().any(|(known, _)| known == name)
            {
                outgoing.headers.push((name.to_owned(), value));
            }
        };
        let parent = self.cause.as_ref().and_then(|cause| cause.trace);
        let context = parent.map_or_else(TraceContext::begin, TraceContext::child);
        set(TRACEPARENT, Some(context.to_string()));
        if let Some(cause) = self.cause.as_deref() {
            set(TRACESTATE, cause.tracestate.clone());
            set(wire::CAUSATION, cause.id.clone());
            set(wire::HOPS, Some(cause.hops.saturating_add(1).to_string()));
        }
        outgoing
    }
}

/// A resend can help where the message itself was not at fault.
fn may_pass(fault: Fault) -> bool {
    match fault {
        Fault::Unreachable | Fault::Unconfirmed => true,
        Fault::Refused
        | Fault::Missing
        | Fault::Mismatch
        | Fault::Unroutable
        | Fault::TooLarge
        | Fault::Invalid
        | Fault::Closed
        | Fault::Other => false,
    }
}

/// The broker said no, or was never asked.
fn is_known_to_be_lost(fault: Fault) -> bool {
    match fault {
        Fault::Refused
        | Fault::Missing
        | Fault::Mismatch
        | Fault::Unroutable
        | Fault::TooLarge
        | Fault::Invalid
        | Fault::Closed => true,
        Fault::Unreachable | Fault::Unconfirmed | Fault::Other => false,
    }
}

/// The id of a message that was confirmed.
///
/// ```
/// use redeliver::{Delivery, Handled, MessageId};
///
/// async fn ship(_: Delivery<u32>) -> Handled { Ok(()) }
/// # use redeliver::{Message, Service, config::Config, testing::TestService};
/// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
/// let mut test = TestService::start(Service::builder(config).subscribe("orders", ship))?;
/// let id: MessageId = test.publish("orders", Message::json(&7)?.id("order-7"));
/// assert_eq!((id.as_str(), id.to_string()), ("order-7", "order-7".to_owned()));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MessageId(pub(crate) String);

impl MessageId {
    /// The id's text.
    ///
    /// ```
    /// # actix::System::new().block_on(async {
    /// # use redeliver::{Message, Service, config::Config};
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
    /// # let service = Service::builder(config).without_handler("orders").start().await?;
    ///
    /// let publisher = service.publisher("main")?;
    /// let ours = publisher.send(Message::bytes("{}").to_queue("orders").id("order-7")).await?;
    /// let made = publisher.send(Message::bytes("{}").to_queue("orders")).await?;
    /// assert_eq!((ours.as_str(), made.as_str().len()), ("order-7", 36), "without an id it gets a UUID");
    /// # service.stop().await;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for MessageId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// A message that was not confirmed.
///
/// ```
/// # actix::System::new().block_on(async {
/// # use redeliver::{Message, Service, config::Config};
/// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
/// # let service = Service::builder(config).without_handler("orders").start().await?;
///
/// use redeliver::broker::Fault;
///
/// let lost = service.publisher("main")?.send(Message::bytes("{}").to_queue("ordres")).await;
/// let error = lost.expect_err("there is no such queue");
/// assert_eq!(error.fault(), Fault::Unroutable);
/// match error {
///     error if error.is_invalid() => println!("refuse whoever wants to send {}: {error}", error.id()),
///     error if error.may_have_arrived() => println!("send {} again under its id: {error}", error.id()),
///     error => println!("mend what it says, then send {}: {error}", error.id()),
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
#[derive(Debug, thiserror::Error)]
#[error("message `{id}` to {target} was not confirmed: {}; {}", self.why(), self.advice())]
pub struct PublishError {
    id: String,
    target: String,
    cause: BrokerError,
    may_have_arrived: bool,
}

impl PublishError {
    /// The id of the message.
    ///
    /// ```
    /// # actix::System::new().block_on(async {
    /// # use redeliver::{Message, Service, config::Config};
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
    /// # let service = Service::builder(config).without_handler("orders").start().await?;
    ///
    /// let (publisher, order) = (service.publisher("main")?, Message::bytes("{}"));
    /// let lost = publisher.send(order.clone().to_queue("ordres")).await.expect_err("no such queue");
    /// let again = publisher.send(order.to_queue("orders").id(lost.id())).await?;
    /// assert_eq!(again.as_str(), lost.id(), "also where the id was made by the first `send`");
    /// # service.stop().await;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What kind of fault it was.
    ///
    /// ```
    /// # actix::System::new().block_on(async {
    /// # use redeliver::{Message, Service, config::Config};
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
    /// # let service = Service::builder(config).without_handler("orders").start().await?;
    ///
    /// use redeliver::broker::Fault;
    ///
    /// let publisher = service.publisher("main")?;
    /// service.stop().await;
    /// let lost = publisher.send(Message::bytes("{}").to_queue("orders")).await;
    /// assert_eq!(lost.expect_err("nobody sends it any more").fault(), Fault::Closed);
    /// # service.stop().await;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    pub fn fault(&self) -> Fault {
        self.cause.fault
    }

    /// Whether it may be stored all the same: no answer came. Send it again under the same id, so that whoever handles
    /// each id once handles it once.
    ///
    /// ```
    /// # actix::System::new().block_on(async {
    /// # use redeliver::{Message, Service, config::Config};
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
    /// # let service = Service::builder(config).without_handler("orders").start().await?;
    ///
    /// let (publisher, order) = (service.publisher("main")?, Message::bytes("{}").id("order-7"));
    /// let lost = publisher.send(order.clone().to_queue("ordres")).await.expect_err("no such queue");
    /// // True where a broker was asked and gave no answer; this one said no, so that nobody has it.
    /// assert!(!lost.may_have_arrived());
    /// assert!(lost.to_string().ends_with("it is not stored: mend that, then send it again"), "{lost}");
    /// # service.stop().await;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    pub fn may_have_arrived(&self) -> bool {
        self.may_have_arrived
    }

    /// Whether the message itself is at fault (an id, a header or a key that is too long, a target that the broker does
    /// not know, too large), so that it was not sent and never can be as it is.
    ///
    /// ```
    /// # actix::System::new().block_on(async {
    /// # use redeliver::{Message, Service, config::Config};
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
    /// # let service = Service::builder(config).without_handler("orders").start().await?;
    ///
    /// let publisher = service.publisher("main")?;
    /// let lost = publisher.send(Message::bytes("{}").to_queue("ordres")).await.expect_err("no such queue");
    /// assert!(!lost.is_invalid(), "where there is such a queue, it can be sent as it is");
    /// # service.stop().await;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    pub fn is_invalid(&self) -> bool {
        matches!(self.cause.fault, Fault::Invalid | Fault::TooLarge) && !self.may_have_arrived
    }

    /// What the broker says, without what is said here anyway.
    fn why(&self) -> &str {
        let Self { id, target, cause, .. } = self;
        let said = cause.text.strip_prefix(&format!("publishing message `{id}` to {target}: "));
        said.unwrap_or(&cause.text)
    }

    fn advice(&self) -> &'static str {
        match self.cause.fault {
            _ if self.may_have_arrived => "it may have arrived: send it again under the same id",
            Fault::Invalid | Fault::TooLarge => "it is not stored, and never will be as it is",
            Fault::Closed => "it was not sent: the service stops, or has stopped",
            Fault::Unreachable | Fault::Unconfirmed => {
                "it was not sent: send it again once the broker is there"
            }
            _ => "it is not stored: mend that, then send it again",
        }
    }
}

/// A message to publish.
///
/// ```
/// use std::time::Duration;
/// use redeliver::Message;
///
/// let order = Message::json(&serde_json::json!({ "order": 7 }))?
///     .to_queue("orders")
///     .id("order-7")
///     .kind("placed")
///     .header("tenant", "acme")
///     .expires_in(Duration::from_secs(3600));
/// assert!(format!("{order:?}").contains("application/json"));
///
/// // RabbitMQ, through an exchange; Kafka, where the key keeps the order.
/// let urgent = Message::bytes("7").content_type("text/plain").to_exchange("shop", "order.placed").priority(9);
/// let event = Message::bytes("7").to_topic("orders").key("customer-42");
/// assert!(format!("{urgent:?} {event:?}").contains("order.placed"));
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Message {
    outgoing: Outgoing,
}

impl Message {
    /// A message with `value` as JSON.
    ///
    /// ```
    /// use std::collections::BTreeMap;
    /// use redeliver::Message;
    ///
    /// let prices = BTreeMap::from([("tea", 3)]);
    /// assert!(format!("{:?}", Message::json(&prices)?).contains("application/json"));
    /// let seats = BTreeMap::from([((4, 'a'), "Ada")]);
    /// assert_eq!(Message::json(&seats).unwrap_err().to_string(), "key must be a string");
    /// # Ok::<(), serde_json::Error>(())
    /// ```
    ///
    /// # Errors
    /// What serde says when `value` cannot be JSON.
    pub fn json(value: &impl serde::Serialize) -> serde_json::Result<Self> {
        Ok(Self::bytes(serde_json::to_vec(value)?).content_type("application/json"))
    }

    /// A message with these bytes.
    ///
    /// ```
    /// use redeliver::{Delivery, Handled};
    ///
    /// async fn ship(_: Delivery<u32>) -> Handled { Ok(()) }
    /// # use redeliver::{Message, Service, config::Config, testing::TestService};
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
    /// let mut test = TestService::start(Service::builder(config).subscribe("orders", ship))?;
    /// test.publish("orders", Message::bytes("7"));
    /// test.publish("orders", Message::bytes(vec![0xff]));     // sent as it is: who decodes it refuses it
    /// assert_eq!(test.log()[0], "orders-1: attempt 1 handled");
    /// assert!(test.log()[1].starts_with("orders-2: dead-lettered: undecodable"), "{:?}", test.log());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn bytes(body: impl Into<Bytes>) -> Self {
        Self {
            outgoing: Outgoing {
                target: Target::Queue(String::new()),
                id: String::new(),
                body: body.into(),
                headers: Vec::new(),
                content_type: None,
                kind: None,
                key: None,
                time_to_live: None,
                priority: None,
            },
        }
    }

    /// Straight into the queue (RabbitMQ, memory) or topic (Kafka) of this name.
    ///
    /// ```
    /// # actix::System::new().block_on(async {
    /// # use redeliver::{Message, Service, config::Config};
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
    /// # let service = Service::builder(config).without_handler("orders").start().await?;
    ///
    /// let publisher = service.publisher("main")?;
    /// publisher.send(Message::bytes("{}").to_queue("orders")).await?;
    /// assert!(publisher.send(Message::bytes("{}")).await.is_err(), "to nobody");
    /// assert_eq!(service.depth("orders").await?.ready, Some(1));
    /// # service.stop().await;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    #[must_use]
    pub fn to_queue(mut self, queue: impl Into<String>) -> Self {
        self.outgoing.target = Target::Queue(queue.into());
        self
    }

    /// Into a topic (Kafka).
    ///
    /// ```
    /// # actix::System::new().block_on(async {
    /// # use redeliver::{Message, Service, config::Config};
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
    /// # let service = Service::builder(config).without_handler("orders").start().await?;
    ///
    /// // In memory a topic is the queue of its name, so that a test needs no Kafka.
    /// let placed = Message::bytes("{}").to_topic("orders").key("customer-42");
    /// service.publisher("main")?.send(placed).await?;
    /// assert_eq!(service.depth("orders").await?.ready, Some(1));
    /// # service.stop().await;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    #[must_use]
    pub fn to_topic(mut self, topic: impl Into<String>) -> Self {
        self.outgoing.target = Target::Topic(topic.into());
        self
    }

    /// Through an exchange (RabbitMQ).
    ///
    /// ```
    /// # actix::System::new().block_on(async {
    /// # use redeliver::{Message, Service, config::Config};
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"\nbindings = [{ exchange = \"shop\", routing_key = \"order.*\" }]")?;
    /// # let service = Service::builder(config).without_handler("orders").start().await?;
    ///
    /// let publisher = service.publisher("main")?;             // bound to "order.*" of "shop"
    /// publisher.send(Message::bytes("{}").to_exchange("shop", "order.placed")).await?;
    /// let lost = publisher.send(Message::bytes("{}").to_exchange("shop", "invoice.sent")).await;
    /// assert!(lost.is_err(), "an exchange that leads it nowhere is an error, not silence");
    /// # service.stop().await;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    #[must_use]
    pub fn to_exchange(
        mut self,
        exchange: impl Into<String>,
        routing_key: impl Into<String>,
    ) -> Self {
        self.outgoing.target =
            Target::Exchange { exchange: exchange.into(), routing_key: routing_key.into() };
        self
    }

    /// Into this queue under this id, where the message does not say otherwise.
    #[cfg(feature = "testing")]
    pub(crate) fn or_to(mut self, queue: &str, id: &str) -> Self {
        if matches!(&self.outgoing.target, Target::Queue(told) if told.is_empty()) {
            self.outgoing.target = Target::Queue(queue.to_owned());
        }
        if self.outgoing.id.is_empty() {
            id.clone_into(&mut self.outgoing.id);
        }
        self
    }

    /// Its id; a new UUID without it.
    ///
    /// ```
    /// use redeliver::{Delivery, Handled};
    ///
    /// async fn ship(_: Delivery<u32>) -> Handled { Ok(()) }
    /// # use redeliver::{Message, Service, config::Config, testing::TestService};
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"\nidempotency = { store = \"main\" }\n[stores.main]\nkind = \"memory\"")?;
    /// let mut test = TestService::start(Service::builder(config).subscribe("orders", ship))?;
    /// test.publish("orders", Message::json(&7)?.id("order-7"));
    /// test.publish("orders", Message::json(&7)?.id("order-7"));      // where ids are kept, the same message
    /// assert_eq!(test.log(), ["order-7: attempt 1 handled", "order-7: duplicate"]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.outgoing.id = id.into();
        self
    }

    /// Its type, by which a subscription can choose a handler.
    ///
    /// ```
    /// use redeliver::{Delivery, Failure, Handled, by_type};
    ///
    /// async fn placed(_: Delivery<u32>) -> Handled { Ok(()) }
    /// async fn cancelled(_: Delivery<u32>) -> Handled { Err(Failure::reject("it is on its way")) }
    /// # use redeliver::{Message, Service, config::Config, testing::TestService};
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
    /// let handlers = by_type().on("placed", placed).on("cancelled", cancelled);
    /// let mut test = TestService::start(Service::builder(config).subscribe("orders", handlers))?;
    /// test.publish("orders", Message::json(&7)?.kind("cancelled"));
    /// assert_eq!(test.log(), ["orders-1: attempt 1 dead-lettered: rejected: it is on its way"]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn kind(mut self, kind: impl Into<String>) -> Self {
        self.outgoing.kind = Some(kind.into());
        self
    }

    /// Its content type.
    ///
    /// ```
    /// use redeliver::{Delivery, Handled};
    ///
    /// async fn ship(_: Delivery<u32>) -> Handled { Ok(()) }           // takes JSON
    /// # use redeliver::{Message, Service, config::Config, testing::TestService};
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
    /// let mut test = TestService::start(Service::builder(config).subscribe("orders", ship))?;
    /// test.publish("orders", Message::bytes("7").content_type("application/json"));
    /// test.publish("orders", Message::bytes("7").content_type("text/csv"));
    /// assert_eq!(test.log()[0], "orders-1: attempt 1 handled");
    /// assert!(test.log()[1].starts_with("orders-2: dead-lettered: undecodable: no codec takes"), "{:?}", test.log());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn content_type(mut self, content_type: impl Into<String>) -> Self {
        self.outgoing.content_type = Some(content_type.into());
        self
    }

    /// A header more. Names that begin with `redeliver-` are the framework's: what
    /// [`delivery.publisher()`](crate::message::Metadata::publisher) sends goes without those that are set here.
    ///
    /// ```
    /// use redeliver::{Delivery, Handled, Message, broker::HeaderValue};
    ///
    /// async fn ship(order: Delivery<u32>) -> Handled {
    ///     let parcel = Message::json(&7)?.to_queue("parcels").header("tenant", "acme");
    ///     order.publisher().send(parcel.header("redeliver-hops", "-99")).await?;
    ///     Ok(())
    /// }
    /// async fn pack(parcel: Delivery<u32>) -> Handled {
    ///     assert_eq!((parcel.header("tenant"), parcel.hops()), (Some(HeaderValue::Text("acme")), 1));
    ///     Ok(())
    /// }
    /// # use redeliver::{Service, config::Config, testing::TestService};
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"\n[subscriptions.parcels]\nbroker = \"main\"")?;
    /// # let builder = Service::builder(config).subscribe("orders", ship).subscribe("parcels", pack);
    /// # let mut test = TestService::start(builder)?;
    /// # test.publish("orders", Message::json(&7)?.id("order-7"));
    /// assert!(test.log().iter().all(|line| line.ends_with("attempt 1 handled")), "{:?}", test.log());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.outgoing.headers.push((name.into(), value.into()));
        self
    }

    /// Its key (Kafka): messages of one key keep their order.
    ///
    /// ```
    /// use redeliver::{Delivery, Handled};
    ///
    /// async fn ship(order: Delivery<u32>) -> Handled {
    ///     assert_eq!(order.key(), Some(&b"customer-42"[..]));
    ///     Ok(())
    /// }
    /// # use redeliver::{Message, Service, config::Config, testing::TestService};
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
    /// let mut test = TestService::start(Service::builder(config).subscribe("orders", ship))?;
    /// test.publish("orders", Message::json(&7)?.to_topic("orders").key("customer-42"));
    /// assert_eq!(test.log(), ["orders-1: attempt 1 handled"]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn key(mut self, key: impl Into<Bytes>) -> Self {
        self.outgoing.key = Some(key.into());
        self
    }

    /// Expires after this long, a century at the most; an expired message is dead-lettered or dropped as the
    /// subscription says.
    ///
    /// ```
    /// use std::time::Duration;
    /// use redeliver::{Delivery, Handled};
    ///
    /// async fn ship(_: Delivery<u32>) -> Handled { Ok(()) }
    /// # use redeliver::{Message, Service, config::Config, testing::TestService};
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"\non_expired = \"drop\"")?;
    /// let mut test = TestService::start(Service::builder(config).subscribe("orders", ship))?;
    /// # let service = test.service();
    /// test.run(async move { service.pause("orders").await })?;
    /// test.publish("orders", Message::json(&7)?.expires_in(Duration::from_secs(60)));
    /// test.advance(Duration::from_secs(61));
    /// # let service = test.service();
    /// test.run(async move { service.resume("orders").await })?;
    /// test.finish();
    /// assert_eq!(test.log(), ["orders-1: dropped: expired"], "with on_expired = \"drop\"");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn expires_in(mut self, time_to_live: Duration) -> Self {
        self.outgoing.time_to_live = Some(time_to_live.min(wire::WAIT_MAX));
        self
    }

    /// Its priority (RabbitMQ).
    ///
    /// ```
    /// use redeliver::Message;
    ///
    /// let (plain, urgent) = (Message::bytes("7"), Message::bytes("7").priority(9));
    /// assert!(format!("{plain:?}").contains("priority: None"), "as 0, of a queue with x-max-priority");
    /// assert!(format!("{urgent:?}").contains("priority: Some(9)"));
    /// ```
    #[must_use]
    pub fn priority(mut self, priority: u8) -> Self {
        self.outgoing.priority = Some(priority);
        self
    }
}
