//! All that the author of a handler needs: [`Delivery`], [`Handled`] and [`Failure`].
//!
//! Knows nothing of brokers, policies and actors beyond the fact that a delivery is an actix
//! message.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use crate::envelope::{Envelope, HeaderValue, SharedEnvelope};
use crate::publisher::{Cause, Publisher};
use crate::store::Locks;
use crate::trace::{TRACEPARENT, TRACESTATE, TraceContext};
use crate::wire::{self, Carried, Luggage};

/// What a handler answers: it worked, or a [`Failure`].
///
/// ```
/// use redeliver::{Failure, Handled};
///
/// fn ship(order: u32) -> Handled {
///     if order == 0 { Err(Failure::reject("there is no order 0")) } else { Ok(()) }
/// }
/// assert!(ship(7).is_ok() && ship(0).is_err());
/// ```
pub type Handled = Result<(), Failure>;

/// One message, decoded, handed to a handler once.
///
/// Everything known about the message beside its payload is behind [`Deref`] to [`Metadata`].
///
/// ```
/// use actix::prelude::*;
/// use redeliver::{Delivery, Handled};
///
/// #[derive(serde::Deserialize)]
/// struct Order { id: u64 }
///
/// struct Shipping;
/// impl Actor for Shipping { type Context = Context<Self>; }
///
/// impl Handler<Delivery<Order>> for Shipping {
///     type Result = ResponseFuture<Handled>;
///
///     fn handle(&mut self, delivery: Delivery<Order>, _: &mut Context<Self>) -> Self::Result {
///         Box::pin(async move {
///             println!("order {}, attempt {}", delivery.payload.id, delivery.attempt());
///             Ok(())
///         })
///     }
/// }
/// # use redeliver::{Message, Service, config::Config, testing::TestService};
/// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
/// let mut test = TestService::start(Service::builder(config).subscribe("orders", || Shipping))?;
/// test.publish("orders", Message::bytes(r#"{"id": 7}"#));
/// assert_eq!(test.log(), ["orders-1: attempt 1 handled"]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Delivery<T> {
    /// The decoded payload.
    pub payload: T,
    metadata: Metadata,
}

impl<T> Delivery<T> {
    pub(crate) fn new(payload: T, metadata: Metadata) -> Self {
        Self { payload, metadata }
    }

    /// Gives the payload and what was known about it.
    ///
    /// ```
    /// use redeliver::{Delivery, Handled};
    ///
    /// async fn book(order: Delivery<Vec<u32>>) -> Handled {
    ///     let (prices, metadata) = order.into_parts();
    ///     let sum: u32 = prices.into_iter().sum();           // owned, and its id is still at hand
    ///     assert_eq!((sum, metadata.id()), (9, Some("order-7")));
    ///     Ok(())
    /// }
    /// # use redeliver::{Message, Service, config::Config, testing::TestService};
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
    /// let mut test = TestService::start(Service::builder(config).subscribe("orders", book))?;
    /// test.publish("orders", Message::json(&[4, 5])?.id("order-7"));
    /// assert_eq!(test.log(), ["order-7: attempt 1 handled"]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn into_parts(self) -> (T, Metadata) {
        (self.payload, self.metadata)
    }
}

impl<T> Deref for Delivery<T> {
    type Target = Metadata;

    fn deref(&self) -> &Metadata {
        &self.metadata
    }
}

impl<T: 'static> actix::Message for Delivery<T> {
    type Result = Handled;
}

/// Several deliveries of one subscription, answered one by one.
///
/// A handler of batches returns one [`Handled`] for each delivery, in the batch's order; what is
/// missing at the end counts as a failure.
///
/// ```
/// use actix::prelude::*;
/// use redeliver::{Batch, Handled, in_batches};
///
/// struct Import;
/// impl Actor for Import { type Context = Context<Self>; }
///
/// impl Handler<Batch<u32>> for Import {
///     type Result = Vec<Handled>;
///
///     fn handle(&mut self, batch: Batch<u32>, _: &mut Context<Self>) -> Vec<Handled> {
///         batch.deliveries.iter().map(|_| Ok(())).collect()
///     }
/// }
///
/// let handlers = in_batches(|| Import);
/// # use redeliver::{Message, Service, config::Config, testing::TestService};
/// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"\nbatch = { size = 2 }")?;
/// let mut test = TestService::start(Service::builder(config).subscribe("orders", handlers))?;
/// test.publish("orders", Message::json(&1)?);
/// test.publish("orders", Message::json(&2)?);
/// test.finish();
/// assert_eq!(test.log(), ["orders-1: attempt 1 handled", "orders-2: attempt 1 handled"]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Batch<T> {
    /// The deliveries, in the order in which they were received.
    pub deliveries: Vec<Delivery<T>>,
}

impl<T: 'static> actix::Message for Batch<T> {
    type Result = Vec<Handled>;
}

/// What is known about a delivery beside its payload.
///
/// ```
/// use redeliver::{Delivery, Handled, broker::HeaderValue};
///
/// async fn ship(order: Delivery<u32>) -> Handled {
///     assert_eq!((order.id(), order.subscription(), order.attempt()), (Some("order-7"), "orders", 1));
///     assert_eq!((order.kind(), order.content_type()), (Some("placed"), Some("application/json")));
///     assert_eq!(order.header("tenant"), Some(HeaderValue::Text("acme")));
///     assert_eq!((order.key(), order.body()), (None, &b"7"[..]));
///     // Never redriven, sent by no other handler, seen for the first time, under no guard.
///     assert_eq!((order.generation(), order.hops(), order.first_seen()), (0, 0, None));
///     assert!(!order.is_redelivered() && order.claim().is_none() && order.locks().is_none());
///
///     // Carries on the trace, names this order as its cause, and counts a hop.
///     let invoice = Message::json(&order.payload)?.to_queue("invoices");
///     order.publisher().send(invoice).await?;
///
///     let (number, metadata) = order.into_parts();
///     assert_eq!((number, metadata.attempt()), (7, 1));
///     Ok(())
/// }
/// async fn bill(invoice: Delivery<u32>) -> Handled {
///     assert_eq!(invoice.header("redeliver-causation"), Some(HeaderValue::Text("order-7")));
///     assert_eq!(invoice.hops(), 1);
///     Ok(())
/// }
/// # use redeliver::{Message, Service, config::Config, testing::TestService};
/// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"\n[subscriptions.invoices]\nbroker = \"main\"")?;
/// let builder = Service::builder(config).subscribe("orders", ship).subscribe("invoices", bill);
/// let mut test = TestService::start(builder)?;
/// test.publish("orders", Message::json(&7)?.id("order-7").kind("placed").header("tenant", "acme"));
/// test.finish();
/// assert!(test.log().iter().all(|line| line.ends_with("attempt 1 handled")), "{:?}", test.log());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Metadata {
    pub(crate) envelope: SharedEnvelope,
    scope: Arc<DeliveryScope>,
    /// In a box, because most deliveries have none and each is moved several times.
    known: Option<Box<Known>>,
    attempt: u32,
}

/// What is known of a delivery beyond what the broker says.
#[derive(Clone)]
pub(crate) struct Known {
    pub(crate) carried: Luggage,
    pub(crate) id: FoundId,
    pub(crate) claim: Option<Arc<Claim>>,
    pub(crate) locks: Option<Locks>,
    /// Of this run alone, where what it publishes is stored with the settlement.
    pub(crate) outbox: Option<Publisher>,
}

/// How a message's id was claimed, on subscriptions with `idempotency` or `lock`.
///
/// ```
/// use redeliver::{ClaimStatus, Delivery, Handled};
///
/// async fn pay(payment: Delivery<u64>) -> Handled {
///     let claim = payment.claim().expect("this subscription has idempotency");
///     match claim.status() {
///         ClaimStatus::Fresh => claim.keep("receipt 9"),
///         ClaimStatus::TakenOver => println!("{} began with it: ask the bank before paying", claim.takeovers()),
///         ClaimStatus::Done => assert_eq!(claim.result().map(|kept| &kept[..]), Some(&b"receipt 9"[..])),
///     }
///     if let Some(fence) = claim.fence() {
///         println!("{fence} goes with every write");
///     }
///     Ok(())
/// }
/// # use redeliver::{Message, Service, config::Config, testing::TestService};
/// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"\nidempotency = { store = \"main\", on_duplicate = \"call\" }\n[stores.main]\nkind = \"memory\"")?;
/// let mut test = TestService::start(Service::builder(config).subscribe("orders", pay))?;
/// test.publish("orders", Message::json(&100)?.id("payment-7"));
/// test.publish("orders", Message::json(&100)?.id("payment-7"));
/// assert_eq!(test.log(), ["payment-7: attempt 1 handled", "payment-7: attempt 1 handled"]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Claim {
    status: ClaimStatus,
    fence: Option<u64>,
    takeovers: u32,
    result: Option<Bytes>,
    kept: Mutex<Option<Bytes>>,
}

/// What is known of earlier runs of the same id.
///
/// ```
/// use redeliver::{ClaimStatus, Delivery, Failure, Handled};
///
/// async fn pay(payment: Delivery<u64>) -> Handled {
///     match payment.claim().map(|claim| claim.status()) {
///         Some(ClaimStatus::Fresh) => Ok(()),
///         Some(ClaimStatus::TakenOver) => Err(Failure::reject("half paid, perhaps: a human must look")),
///         Some(ClaimStatus::Done) | None => Err(Failure::reject("not with this configuration")),
///     }
/// }
/// # use redeliver::{Message, Service, config::Config, testing::TestService};
/// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"\nidempotency = { store = \"main\" }\n[stores.main]\nkind = \"memory\"")?;
/// let mut test = TestService::start(Service::builder(config).subscribe("orders", pay))?;
/// test.publish("orders", Message::json(&100)?.id("payment-7"));
/// test.publish("orders", Message::json(&100)?.id("payment-7"));
/// assert_eq!(test.log()[0], "payment-7: attempt 1 handled", "and its duplicate is not shown to anyone");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClaimStatus {
    /// Nobody ran this attempt before.
    Fresh,
    /// Somebody ran it and vanished: what they did before that is unknown. Look before you act.
    TakenOver,
    /// It was handled before; only with `on_duplicate = "call"`.
    Done,
}

impl Claim {
    pub(crate) fn new(
        status: ClaimStatus,
        fence: Option<u64>,
        takeovers: u32,
        result: Option<Bytes>,
    ) -> Self {
        Self { status, fence, takeovers, result, kept: Mutex::default() }
    }

    /// How many owners vanished in a row while they ran it.
    ///
    /// ```
    /// use std::time::Duration;
    /// use redeliver::{Claim, Delivery, Failure, Handled};
    ///
    /// async fn pay(payment: Delivery<u64>) -> Handled {
    ///     if payment.claim().map_or(0, Claim::takeovers) > 0 {
    ///         return Err(Failure::reject("half paid, perhaps: a human must look"));
    ///     }
    ///     tokio::time::sleep(Duration::from_secs(20)).await;      // the bank takes its time
    ///     Ok(())
    /// }
    /// # use redeliver::{Message, Service, config::Config, testing::TestService};
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"\nidempotency = { store = \"main\" }\nlock = { store = \"main\", key = \"header:account\" }\n[stores.main]\nkind = \"memory\"")?;
    /// let mut test = TestService::start(Service::builder(config).subscribe("orders", pay))?;
    /// test.publish("orders", Message::json(&100)?.id("payment-7").header("account", "4"));
    /// # let locks = test.service().locks("main")?;
    /// assert!(test.run(async move { locks.force_release("4").await })?, "it loses its lock on the way");
    /// test.finish();
    /// assert!(test.log()[1].starts_with("payment-7: attempt 1 dead-lettered: rejected: half paid"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn takeovers(&self) -> u32 {
        self.takeovers
    }

    /// What is known of earlier runs.
    ///
    /// ```
    /// use std::sync::atomic::{AtomicU64, Ordering};
    /// use redeliver::{Claim, ClaimStatus, Delivery, Handled};
    ///
    /// static PAID: AtomicU64 = AtomicU64::new(0);
    ///
    /// async fn pay(payment: Delivery<u64>) -> Handled {
    ///     if payment.claim().map(Claim::status) != Some(ClaimStatus::Done) {
    ///         PAID.fetch_add(payment.payload, Ordering::Relaxed);
    ///     }
    ///     Ok(())
    /// }
    /// # use redeliver::{Message, Service, config::Config, testing::TestService};
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"\nidempotency = { store = \"main\", on_duplicate = \"call\" }\n[stores.main]\nkind = \"memory\"")?;
    /// let mut test = TestService::start(Service::builder(config).subscribe("orders", pay))?;
    /// test.publish("orders", Message::json(&100)?.id("payment-7"));
    /// test.publish("orders", Message::json(&100)?.id("payment-7"));
    /// assert_eq!((test.log().len(), PAID.load(Ordering::Relaxed)), (2, 100), "called twice, paid once");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn status(&self) -> ClaimStatus {
        self.status
    }

    /// A number that only grows: hand it to what you write to, so that it can refuse a holder that
    /// slept through the end of its lease.
    ///
    /// ```
    /// use std::sync::atomic::{AtomicU64, Ordering};
    /// use redeliver::{Claim, Delivery, Failure, Handled};
    ///
    /// static SEEN: AtomicU64 = AtomicU64::new(0);             // of the account, in earnest a column
    ///
    /// async fn pay(payment: Delivery<u64>) -> Handled {
    ///     let fence = payment.claim().and_then(Claim::fence).expect("this subscription has a lock");
    ///     if SEEN.fetch_max(fence, Ordering::Relaxed) >= fence {
    ///         return Err(Failure::reject("a later holder wrote before"));
    ///     }
    ///     Ok(())
    /// }
    /// # use redeliver::{Message, Service, config::Config, testing::TestService};
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"\nlock = { store = \"main\", key = \"header:account\" }\n[stores.main]\nkind = \"memory\"")?;
    /// let mut test = TestService::start(Service::builder(config).subscribe("orders", pay))?;
    /// test.publish("orders", Message::json(&100)?.header("account", "4"));
    /// test.publish("orders", Message::json(&100)?.header("account", "4"));
    /// assert_eq!(test.log(), ["orders-1: attempt 1 handled", "orders-2: attempt 1 handled"]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn fence(&self) -> Option<u64> {
        self.fence
    }

    /// What an earlier run [kept](Self::keep).
    ///
    /// ```
    /// use redeliver::{Delivery, Handled};
    ///
    /// async fn pay(payment: Delivery<u64>) -> Handled {
    ///     let claim = payment.claim().expect("this subscription has idempotency");
    ///     match claim.result() {
    ///         Some(receipt) => assert_eq!(&receipt[..], b"receipt 9", "a duplicate has the first one's receipt"),
    ///         None => claim.keep("receipt 9"),
    ///     }
    ///     Ok(())
    /// }
    /// # use redeliver::{Message, Service, config::Config, testing::TestService};
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"\nidempotency = { store = \"main\", on_duplicate = \"call\" }\n[stores.main]\nkind = \"memory\"")?;
    /// let mut test = TestService::start(Service::builder(config).subscribe("orders", pay))?;
    /// test.publish("orders", Message::json(&100)?.id("payment-7"));
    /// test.publish("orders", Message::json(&100)?.id("payment-7"));
    /// assert_eq!(test.log(), ["payment-7: attempt 1 handled", "payment-7: attempt 1 handled"]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn result(&self) -> Option<&Bytes> {
        self.result.as_ref()
    }

    /// Keeps a small result with the message's completion, for its duplicates.
    ///
    /// ```
    /// use redeliver::{Delivery, Failure, Handled};
    ///
    /// async fn pay(payment: Delivery<u64>) -> Handled {
    ///     let claim = payment.claim().expect("this subscription has idempotency");
    ///     assert_eq!(claim.result(), None, "what a failed attempt kept is gone with it");
    ///     claim.keep(format!("receipt of attempt {}", payment.attempt()));
    ///     if payment.attempt() == 1 { Err(Failure::retry("the bank hung up")) } else { Ok(()) }
    /// }
    /// # use redeliver::{Message, Service, config::Config, testing::TestService};
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"\nidempotency = { store = \"main\" }\n[stores.main]\nkind = \"memory\"")?;
    /// let mut test = TestService::start(Service::builder(config).subscribe("orders", pay))?;
    /// test.publish("orders", Message::json(&100)?.id("payment-7"));
    /// test.finish();
    /// assert_eq!(test.log()[1], "payment-7: attempt 2 handled");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn keep(&self, result: impl Into<Bytes>) {
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(result.into());
    }

    pub(crate) fn has_kept(&self) -> bool {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    pub(crate) fn take_kept(&self) -> Option<Bytes> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// What all deliveries of a subscription share.
pub(crate) struct DeliveryScope {
    pub(crate) subscription: Arc<str>,
    pub(crate) publisher: Publisher,
    /// What is published over a delivery is stored with its settlement.
    pub(crate) is_transactional: bool,
}

impl DeliveryScope {
    /// The publisher of one run over this message, where what it publishes is stored with the settlement.
    pub(crate) fn outbox(&self, message: &dyn Envelope) -> Option<Publisher> {
        let publisher = self.is_transactional.then(|| self.publisher.within(message));
        publisher.flatten()
    }
}

impl Metadata {
    pub(crate) fn new(
        envelope: SharedEnvelope,
        scope: Arc<DeliveryScope>,
        attempt: u32,
        known: Known,
    ) -> Self {
        Self { envelope, scope, known: Some(Box::new(known)), attempt }
    }

    /// Of the first delivery of a message that carries nothing of ours.
    #[inline]
    pub(crate) fn bare(envelope: SharedEnvelope, scope: Arc<DeliveryScope>) -> Self {
        Self { envelope, scope, known: None, attempt: 1 }
    }

    fn carried(&self) -> &Carried {
        self.known.as_ref().map_or(&wire::NOTHING, |known| &known.carried)
    }

    /// The message's id, if it has one: the same at every delivery and every attempt.
    ///
    /// ```
    /// use redeliver::{Delivery, Failure, Handled};
    ///
    /// async fn pay(payment: Delivery<u64>) -> Handled {
    ///     // The same at every attempt: what the bank knows the payment by.
    ///     let key = payment.id().unwrap_or("no id");
    ///     Err(match payment.attempt() {
    ///         1 => Failure::retry(format!("no answer to {key}")),
    ///         _ => Failure::reject(format!("{key} was refused")),
    ///     })
    /// }
    /// # use redeliver::{Message, Service, config::Config, testing::TestService};
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"\n[retry.standard]\njitter = \"none\"")?;
    /// let mut test = TestService::start(Service::builder(config).subscribe("orders", pay))?;
    /// test.publish("orders", Message::json(&100)?.id("payment-7"));
    /// test.finish();
    /// assert_eq!(test.log()[0], "payment-7: attempt 1 retry after 200ms: no answer to payment-7");
    /// assert_eq!(test.log()[1], "payment-7: attempt 2 dead-lettered: rejected: payment-7 was refused");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn id(&self) -> Option<&str> {
        let found = self.known.as_ref().map_or(&FoundId::Unsought, |known| &known.id);
        message_id(found, self.carried(), self.envelope.as_ref())
    }

    /// The how-many-eth execution this is, from 1.
    ///
    /// ```
    /// use redeliver::{Delivery, Failure, Handled};
    ///
    /// async fn ship(order: Delivery<u32>) -> Handled {
    ///     let carrier = if order.attempt() == 1 { "bicycle" } else { "lorry" };
    ///     if carrier == "bicycle" { Err(Failure::retry("no bicycle is free")) } else { Ok(()) }
    /// }
    /// # use redeliver::{Message, Service, config::Config, testing::TestService};
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"\n[retry.standard]\njitter = \"none\"")?;
    /// let mut test = TestService::start(Service::builder(config).subscribe("orders", ship))?;
    /// test.publish("orders", Message::json(&7)?);
    /// test.finish();
    /// assert_eq!(test.log(), ["orders-1: attempt 1 retry after 200ms: no bicycle is free", "orders-1: attempt 2 handled"]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// How its id was claimed; `None` on subscriptions without guards.
    ///
    /// ```
    /// use redeliver::{Delivery, Failure, Handled};
    ///
    /// async fn pay(payment: Delivery<u64>) -> Handled {
    ///     match payment.claim() {
    ///         Some(_) => Ok(()),
    ///         None => Err(Failure::reject("`idempotency` is missing: nothing would keep it from being paid twice")),
    ///     }
    /// }
    /// # use redeliver::{Message, Service, config::Config, testing::TestService};
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
    /// let mut test = TestService::start(Service::builder(config).subscribe("orders", pay))?;
    /// test.publish("orders", Message::json(&100)?);
    /// assert!(test.log()[0].starts_with("orders-1: attempt 1 dead-lettered: rejected: `idempotency` is missing"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn claim(&self) -> Option<&Claim> {
        self.known.as_ref()?.claim.as_deref()
    }

    /// Locks of the store of the subscription's `lock`; asking for the key that this delivery
    /// holds shares it. `None` on subscriptions without `lock`.
    ///
    /// ```
    /// use redeliver::{Delivery, Handled};
    ///
    /// async fn pay(payment: Delivery<u64>) -> Handled {
    ///     let locks = payment.locks().expect("this subscription has a lock, by account");
    ///     let account = locks.acquire("4").await?;        // held by this delivery: it does not wait for itself
    ///     let till = locks.acquire("till").await?;        // another one, for as long as it is needed
    ///     assert_eq!((account.key(), till.key()), ("4", "till"));
    ///     Ok(till.release().await?)
    /// }
    /// # use redeliver::{Message, Service, config::Config, testing::TestService};
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"\nlock = { store = \"main\", key = \"header:account\" }\n[stores.main]\nkind = \"memory\"")?;
    /// let mut test = TestService::start(Service::builder(config).subscribe("orders", pay))?;
    /// test.publish("orders", Message::json(&100)?.header("account", "4"));
    /// assert_eq!(test.log(), ["orders-1: attempt 1 handled"]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn locks(&self) -> Option<&Locks> {
        self.known.as_ref()?.locks.as_ref()
    }

    /// The subscription that received it.
    ///
    /// ```
    /// use redeliver::{Delivery, Failure, Handled};
    ///
    /// async fn book(entry: Delivery<u32>) -> Handled {
    ///     match entry.subscription() {
    ///         "orders" => Ok(()),
    ///         other => Err(Failure::reject(format!("{other} are booked by hand"))),
    ///     }
    /// }
    /// # use redeliver::{Message, Service, config::Config, testing::TestService};
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"\n[subscriptions.refunds]\nbroker = \"main\"")?;
    /// let builder = Service::builder(config).subscribe("orders", book).subscribe("refunds", book);
    /// let mut test = TestService::start(builder)?;
    /// test.publish("orders", Message::json(&7)?);
    /// test.publish("refunds", Message::json(&7)?);
    /// assert_eq!(test.log()[1], "refunds-2: attempt 1 dead-lettered: rejected: refunds are booked by hand");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn subscription(&self) -> &str {
        &self.scope.subscription
    }

    /// How often it was redriven from the dead letters.
    ///
    /// ```
    /// use redeliver::{Delivery, Failure, Handled, Redrive};
    ///
    /// async fn ship(order: Delivery<u32>) -> Handled {
    ///     // Whoever redrives it has mended the address.
    ///     if order.generation() == 0 { Err(Failure::reject("no such house")) } else { Ok(()) }
    /// }
    /// # use redeliver::{Message, Service, config::Config, testing::TestService};
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
    /// let mut test = TestService::start(Service::builder(config).subscribe("orders", ship))?;
    /// test.publish("orders", Message::json(&7)?.id("order-7"));
    /// let letters = test.service().dead_letters("orders")?;
    /// test.run(async move { letters.redrive(&Redrive::default()).await })?;
    /// assert_eq!(test.log()[1], "order-7: attempt 1 handled", "and its attempts began anew");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn generation(&self) -> u32 {
        self.carried().generation
    }

    /// How many handlers sent it on before.
    ///
    /// ```
    /// use redeliver::{Delivery, Handled, Message};
    ///
    /// async fn ship(order: Delivery<u32>) -> Handled {
    ///     println!("sent on {} times", order.hops());
    ///     // A mistake: it sends to itself, without end.
    ///     order.publisher().send(Message::json(&7)?.to_queue("orders")).await?;
    ///     Ok(())
    /// }
    /// # use redeliver::{Service, config::Config, testing::TestService};
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"\nhops_max = 3")?;
    /// let mut test = TestService::start(Service::builder(config).subscribe("orders", ship))?;
    /// test.publish("orders", Message::json(&7)?);
    /// test.finish();
    /// assert!(test.log()[4].ends_with("dead-lettered: loop: 4 handlers sent it on; hops_max is 3"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn hops(&self) -> u32 {
        self.carried().hops
    }

    /// When it was first delivered to this subscription, if this is not the first time.
    ///
    /// ```
    /// use redeliver::{Delivery, Failure, Handled};
    ///
    /// async fn ship(order: Delivery<u32>) -> Handled {
    ///     match order.first_seen() {
    ///         None => Err(Failure::retry("no answer")),            // it comes for the first time
    ///         Some(_) => Err(Failure::reject("nor the second time")),
    ///     }
    /// }
    /// # use redeliver::{Message, Service, config::Config, testing::TestService};
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
    /// let mut test = TestService::start(Service::builder(config).subscribe("orders", ship))?;
    /// test.publish("orders", Message::json(&7)?);
    /// test.finish();
    /// assert_eq!(test.log()[1], "orders-1: attempt 2 dead-lettered: rejected: nor the second time");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn first_seen(&self) -> Option<SystemTime> {
        self.carried().first_seen
    }

    /// The message's type, if its publisher told one as the broker's type property.
    ///
    /// ```
    /// use redeliver::{Delivery, Failure, Handled};
    ///
    /// async fn ship(order: Delivery<u32>) -> Handled {
    ///     match order.kind() {
    ///         Some("placed") => Ok(()),
    ///         Some(other) => Err(Failure::reject(format!("an order cannot be {other}"))),
    ///         None => Err(Failure::reject("what became of the order?")),
    ///     }
    /// }
    /// # use redeliver::{Message, Service, config::Config, testing::TestService};
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
    /// let mut test = TestService::start(Service::builder(config).subscribe("orders", ship))?;
    /// test.publish("orders", Message::json(&7)?.kind("placed"));
    /// test.publish("orders", Message::json(&7)?);
    /// assert_eq!(test.log()[1], "orders-2: attempt 1 dead-lettered: rejected: what became of the order?");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn kind(&self) -> Option<&str> {
        self.envelope.kind()
    }

    /// The routing key (RabbitMQ) or the record's key (Kafka).
    ///
    /// ```
    /// use redeliver::{Delivery, Failure, Handled};
    ///
    /// async fn ship(order: Delivery<u32>) -> Handled {
    ///     // Bytes: nobody promised that they are text.
    ///     let customer = order.key().map(str::from_utf8).transpose()?;
    ///     customer.map(drop).ok_or_else(|| Failure::reject("an order of nobody"))
    /// }
    /// # use redeliver::{Message, Service, config::Config, testing::TestService};
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
    /// let mut test = TestService::start(Service::builder(config).subscribe("orders", ship))?;
    /// test.publish("orders", Message::json(&7)?.key("customer-42"));
    /// test.publish("orders", Message::json(&7)?);
    /// assert_eq!(test.log(), ["orders-1: attempt 1 handled", "orders-2: attempt 1 dead-lettered: rejected: an order of nobody"]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn key(&self) -> Option<&[u8]> {
        self.envelope.key()
    }

    /// The content type, if its publisher told one.
    ///
    /// ```
    /// use redeliver::{Delivery, Handled};
    ///
    /// async fn ship(order: Delivery<u32>) -> Handled {
    ///     let expected = if order.payload == 7 { Some("application/json") } else { None };
    ///     assert_eq!(order.content_type(), expected);
    ///     Ok(())
    /// }
    /// # use redeliver::{Message, Service, config::Config, testing::TestService};
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
    /// let mut test = TestService::start(Service::builder(config).subscribe("orders", ship))?;
    /// test.publish("orders", Message::json(&7)?);
    /// test.publish("orders", Message::bytes("8"));            // says nothing, and is tried as JSON
    /// assert_eq!(test.log(), ["orders-1: attempt 1 handled", "orders-2: attempt 1 handled"]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn content_type(&self) -> Option<&str> {
        self.envelope.content_type()
    }

    /// The broker says that somebody received it before.
    ///
    /// ```
    /// use redeliver::{Delivery, Failure, Handled};
    ///
    /// async fn ship(order: Delivery<u32>) -> Handled {
    ///     if order.is_redelivered() {
    ///         return Err(Failure::reject("whoever had it died, or lost its connection: is it shipped?"));
    ///     }
    ///     if order.attempt() == 1 { Err(Failure::retry("no answer")) } else { Ok(()) }
    /// }
    /// # use redeliver::{Message, Service, config::Config, testing::TestService};
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
    /// let mut test = TestService::start(Service::builder(config).subscribe("orders", ship))?;
    /// test.publish("orders", Message::json(&7)?);
    /// test.finish();
    /// assert_eq!(test.log()[1], "orders-1: attempt 2 handled", "one attempt more is not that");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn is_redelivered(&self) -> bool {
        self.envelope.is_redelivered()
    }

    /// The value of a header.
    ///
    /// ```
    /// use redeliver::{Delivery, Failure, Handled, broker::HeaderValue};
    ///
    /// async fn ship(order: Delivery<u32>) -> Handled {
    ///     match order.header("tenant") {
    ///         Some(HeaderValue::Text("acme")) => Ok(()),
    ///         Some(other) => Err(Failure::reject(format!("unknown tenant {other:?}"))),
    ///         None => Err(Failure::reject("no tenant")),
    ///     }
    /// }
    /// # use redeliver::{Message, Service, config::Config, testing::TestService};
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
    /// let mut test = TestService::start(Service::builder(config).subscribe("orders", ship))?;
    /// test.publish("orders", Message::json(&7)?.header("tenant", "acme"));
    /// test.publish("orders", Message::json(&7)?.header("Tenant", "acme"));
    /// assert_eq!(test.log()[1], "orders-2: attempt 1 dead-lettered: rejected: no tenant", "names are told apart by case");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn header(&self, name: &str) -> Option<HeaderValue<'_>> {
        self.envelope.header(name)
    }

    /// The payload's bytes as they were received.
    ///
    /// ```
    /// use redeliver::{Delivery, Handled};
    ///
    /// async fn ship(order: Delivery<Vec<u32>>) -> Handled {
    ///     assert_eq!(order.payload, [4, 5]);
    ///     assert_eq!(order.body(), b"[4,  5]", "what a signature is of, spaces and all");
    ///     Ok(())
    /// }
    /// # use redeliver::{Message, Service, config::Config, testing::TestService};
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
    /// let mut test = TestService::start(Service::builder(config).subscribe("orders", ship))?;
    /// test.publish("orders", Message::bytes("[4,  5]"));
    /// assert_eq!(test.log(), ["orders-1: attempt 1 handled"]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn body(&self) -> &[u8] {
        self.envelope.body()
    }

    /// A publisher whose messages carry on this delivery's trace, name it as their cause, and
    /// count one hop more, so that nothing circles for ever.
    ///
    /// Where the subscription's `delivery_guarantee` is `"transactional"`, what it sends is stored together with
    /// this delivery's settlement: once, when the handler has answered `Ok`, and never when it fails.
    ///
    /// ```
    /// use redeliver::{Delivery, Handled, Message, broker::HeaderValue};
    ///
    /// async fn ship(order: Delivery<u32>) -> Handled {
    ///     order.publisher().send(Message::json(&order.payload)?.to_queue("invoices")).await?;
    ///     Ok(())
    /// }
    /// async fn bill(invoice: Delivery<u32>) -> Handled {
    ///     assert_eq!(invoice.header("redeliver-causation"), Some(HeaderValue::Text("order-7")));
    ///     Ok(())
    /// }
    /// # use redeliver::{Service, config::Config, testing::TestService};
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"\n[subscriptions.invoices]\nbroker = \"main\"")?;
    /// # let builder = Service::builder(config).subscribe("orders", ship).subscribe("invoices", bill);
    /// let mut test = TestService::start(builder)?;
    /// test.publish("orders", Message::json(&7)?.id("order-7"));
    /// assert!(test.log().iter().all(|line| line.ends_with("attempt 1 handled")), "{:?}", test.log());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn publisher(&self) -> Publisher {
        let outbox = self.known.as_ref().and_then(|known| known.outbox.as_ref());
        let publisher = outbox.unwrap_or(&self.scope.publisher);
        publisher.caused_by(Cause {
            id: self.id().map(Into::into),
            hops: self.hops(),
            trace: trace_of(self.envelope.as_ref()),
            tracestate: self.header(TRACESTATE).and_then(text),
        })
    }
}

impl fmt::Debug for Metadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metadata")
            .field("id", &self.id())
            .field("attempt", &self.attempt)
            .field("subscription", &self.scope.subscription)
            .finish_non_exhaustive()
    }
}

/// The trace that a message belongs to.
pub(crate) fn trace_of(envelope: &dyn Envelope) -> Option<TraceContext> {
    match envelope.header(TRACEPARENT)? {
        HeaderValue::Text(text) => TraceContext::parse(text),
        _ => None,
    }
}

fn text(value: HeaderValue<'_>) -> Option<String> {
    match value {
        HeaderValue::Text(text) if text.len() <= wire::TEXT_LENGTH_MAX => Some(text.to_owned()),
        _ => None,
    }
}

/// What came of looking for a message's id.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum FoundId {
    /// The subscription names no place for it.
    #[default]
    Unsought,
    /// It is not where the subscription says, or it is empty.
    Nowhere,
    /// Where the subscription says.
    Here(Arc<str>),
}

/// The id a message goes by. Where the subscription names a place, that place alone counts, or two kinds of ids would be
/// taken for one; of a copy of ours, what it was found to be before, because a copy may have had to leave that header out.
/// Without a place: what it carries as ours, else the broker's own.
pub(crate) fn message_id<'a>(
    found: &'a FoundId,
    carried: &'a Carried,
    envelope: &'a dyn Envelope,
) -> Option<&'a str> {
    let plain = |id: &&str| !id.is_empty() && id.len() <= wire::ID_LENGTH_MAX;
    let carried_id = carried.id.as_deref().filter(plain);
    match found {
        FoundId::Here(id) => Some(id),
        FoundId::Nowhere => carried_id.filter(|_| carried.is_of_a_copy()),
        FoundId::Unsought => carried_id.or_else(|| envelope.id().filter(plain)),
    }
}

/// What a handler answers when it did not work.
///
/// Any type that implements [`std::error::Error`] converts into "try again" with `?` (what does not, such as
/// `Box<dyn Error>`, `anyhow::Error` or a `String`, does so by [`or_retry`](OrFailure::or_retry)):
///
/// ```
/// use redeliver::{Failure, Handled};
///
/// fn ship(address: &str) -> Handled {
///     let house: u32 = address.parse()?;                       // retry, by the policy
///     if house == 0 {
///         return Err(Failure::reject("there is no house 0"));  // dead-letter now
///     }
///     Ok(())
/// }
/// # assert!(ship("x").is_err() && ship("1").is_ok());
/// ```
///
/// The other ways to fail, and what becomes of the message:
///
/// ```
/// use std::time::Duration;
/// use redeliver::{Delivery, Failure, Handled};
///
/// async fn ship(order: Delivery<u32>) -> Handled {
///     Err(match order.attempt() {
///         1 => Failure::retry("no answer from the warehouse").class("warehouse"),
///         2 => Failure::retry_after(Duration::from_secs(60), "429 Too Many Requests"),
///         _ if order.payload == 0 => Failure::defer(Duration::from_secs(3600), "closed on Sundays"),
///         _ => Failure::reject("sold out").class("stock"),
///     })
/// }
/// # use redeliver::{Message, Service, config::Config, testing::TestService};
/// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"\n[retry.standard]\njitter = \"none\"")?;
/// let mut test = TestService::start(Service::builder(config).subscribe("orders", ship))?;
/// test.publish("orders", Message::json(&7)?.id("order-7"));
/// test.finish();
/// assert_eq!(test.log(), [
///     "order-7: attempt 1 retry after 200ms: no answer from the warehouse",
///     "order-7: attempt 2 retry after 1m: 429 Too Many Requests",
///     "order-7: attempt 3 dead-lettered: rejected: sold out",
/// ]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// One word long, so that an answer that is none costs nothing to hand on.
pub struct Failure(Box<Inner>);

/// The shortest time for which a message is deferred: no attempts end what comes back at once, again and again.
const DEFER_MIN: Duration = Duration::from_millis(10);

struct Inner {
    wish: Wish,
    class: Option<Cow<'static, str>>,
    error: Box<dyn StdError + Send + Sync>,
}

/// What the author of a failure wants to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// Again, when the policy says.
    Retry,
    /// Again, but not earlier than this.
    RetryAfter(Duration),
    /// Again after this, and this time does not count.
    Defer(Duration),
    /// Never again.
    Reject,
}

impl Failure {
    /// It may work later: tried again when the policy says.
    ///
    /// ```
    /// use redeliver::{Delivery, Failure, Handled};
    ///
    /// async fn ship(order: Delivery<u32>) -> Handled {
    ///     Err(Failure::retry(format!("no answer to order {}", order.payload)))
    /// }
    /// # use redeliver::{Message, Service, config::Config, testing::TestService};
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"\n[retry.standard]\njitter = \"none\"\nattempts_max = 2")?;
    /// let mut test = TestService::start(Service::builder(config).subscribe("orders", ship))?;     // attempts_max = 2
    /// test.publish("orders", Message::json(&7)?);
    /// test.finish();
    /// assert_eq!(test.log(), [
    ///     "orders-1: attempt 1 retry after 200ms: no answer to order 7",
    ///     "orders-1: attempt 2 dead-lettered: exhausted: no answer to order 7",
    /// ]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn retry(error: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::new(Wish::Retry, error)
    }

    /// It may work after `delay` (a `Retry-After`, a rate limit): counts an attempt, comes back
    /// no earlier than that. A delay of more than a century counts as one.
    ///
    /// ```
    /// use std::time::Duration;
    /// use redeliver::{Delivery, Failure, Handled};
    ///
    /// async fn ship(order: Delivery<u64>) -> Handled {
    ///     let delay = Duration::from_millis(order.payload);
    ///     if order.attempt() == 1 { Err(Failure::retry_after(delay, "503")) } else { Ok(()) }
    /// }
    /// # use redeliver::{Message, Service, config::Config, testing::TestService};
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"\n[retry.standard]\njitter = \"none\"")?;
    /// let mut test = TestService::start(Service::builder(config).subscribe("orders", ship))?;
    /// test.publish("orders", Message::json(&60_000)?);
    /// test.publish("orders", Message::json(&1)?);
    /// assert_eq!(test.log(), [
    ///     "orders-1: attempt 1 retry after 1m: 503",
    ///     "orders-2: attempt 1 retry after 1ms: 503",         // and where the policy would wait for longer
    /// ]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn retry_after(delay: Duration, error: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::new(Wish::RetryAfter(delay.min(wire::WAIT_MAX)), error)
    }

    /// Nothing was tried: comes back after `delay` (10 ms at the least, so that it circles in no tight loop; a century
    /// at the most) without an attempt counted, until `age_max`.
    ///
    /// ```
    /// use std::time::Duration;
    /// use redeliver::{Delivery, Failure, Handled};
    ///
    /// async fn ship(order: Delivery<u32>) -> Handled {
    ///     let closed = order.first_seen().is_none();
    ///     if closed { Err(Failure::defer(Duration::from_secs(3600), "closed until noon")) } else { Ok(()) }
    /// }
    /// # use redeliver::{Message, Service, config::Config, testing::TestService};
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
    /// let mut test = TestService::start(Service::builder(config).subscribe("orders", ship))?;
    /// test.publish("orders", Message::json(&7)?);
    /// test.finish();
    /// assert_eq!(test.log(), ["orders-1: attempt 1 deferred for 1h", "orders-1: attempt 1 handled"]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn defer(delay: Duration, why: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::new(Wish::Defer(delay.clamp(DEFER_MIN, wire::WAIT_MAX)), why)
    }

    /// It will never work: dead-lettered now.
    ///
    /// ```
    /// use redeliver::{Delivery, Failure, Handled};
    ///
    /// async fn ship(order: Delivery<u32>) -> Handled {
    ///     Err(Failure::reject(format!("there is no order {}", order.payload)))
    /// }
    /// # use redeliver::{Message, Service, config::Config, testing::TestService};
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
    /// let mut test = TestService::start(Service::builder(config).subscribe("orders", ship))?;
    /// test.publish("orders", Message::json(&7)?);
    /// assert_eq!(test.log(), ["orders-1: attempt 1 dead-lettered: rejected: there is no order 7"]);
    /// assert_eq!(test.dead_letters("orders")[0].attempts, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn reject(error: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::new(Wish::Reject, error)
    }

    fn new(wish: Wish, error: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self(Box::new(Inner { wish, class: None, error: error.into() }))
    }

    /// Names the kind of error, for the rules of the retry policy and for the dead letter.
    ///
    /// ```
    /// use redeliver::{Delivery, Failure, Handled};
    ///
    /// async fn ship(_: Delivery<u32>) -> Handled {
    ///     Err(Failure::retry("sold out").class("stock"))
    /// }
    /// # use redeliver::{Message, Service, config::Config, testing::TestService};
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"\n[retry.standard]\nrules = [{ class = \"stock\", then = \"ignore\" }]")?;
    /// // rules = [{ class = "stock", then = "ignore" }]
    /// let mut test = TestService::start(Service::builder(config).subscribe("orders", ship))?;
    /// test.publish("orders", Message::json(&7)?);
    /// assert_eq!(test.log(), ["orders-1: attempt 1 ignored: sold out"]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn class(mut self, class: impl Into<Cow<'static, str>>) -> Self {
        self.0.class = Some(class.into());
        self
    }

    pub(crate) fn wish(&self) -> Wish {
        self.0.wish
    }

    pub(crate) fn class_name(&self) -> Option<&str> {
        self.0.class.as_deref()
    }

    /// The error and its sources in one line.
    pub(crate) fn text(&self) -> String {
        let mut text = self.0.error.to_string();
        let mut source = self.0.error.source();
        while let Some(error) = source {
            text.push_str(": ");
            text.push_str(&error.to_string());
            source = error.source();
        }
        text
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Failure")
            .field("wish", &self.0.wish)
            .field("class", &self.0.class)
            .field("error", &self.text())
            .finish()
    }
}

impl<E: StdError + Send + Sync + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::retry(error)
    }
}

/// Says on a `Result` what its error means to the message.
///
/// ```
/// use redeliver::{Handled, OrFailure};
///
/// fn refund(cents: &str) -> Handled {
///     let cents: u32 = cents.parse().or_reject("validation")?;
///     # let _ = cents;
///     Ok(())
/// }
/// assert!(refund("1.5").is_err());
/// let lent: Result<std::fs::File, _> = std::fs::File::open("/no/such/file").or_retry("disk");
/// assert!(format!("{:?}", lent.unwrap_err()).contains("disk"));
/// ```
pub trait OrFailure<T> {
    /// An error is tried again, and is of this class for the policy's rules.
    ///
    /// # Errors
    /// The error, as a [`Failure`] that retries.
    fn or_retry(self, class: &'static str) -> Result<T, Failure>;

    /// An error makes a dead letter of this class.
    ///
    /// # Errors
    /// The error, as a [`Failure`] that rejects.
    fn or_reject(self, class: &'static str) -> Result<T, Failure>;
}

impl<T, E: Into<Box<dyn StdError + Send + Sync>>> OrFailure<T> for Result<T, E> {
    fn or_retry(self, class: &'static str) -> Result<T, Failure> {
        self.map_err(|error| Failure::retry(error).class(class))
    }

    fn or_reject(self, class: &'static str) -> Result<T, Failure> {
        self.map_err(|error| Failure::reject(error).class(class))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_delay_brings_a_deferred_message_back_at_once_or_never() {
        let delays = [Duration::ZERO, Duration::from_secs(7), Duration::MAX];
        let wishes = delays.map(|delay| Failure::defer(delay, "closed").wish());
        let expected = [DEFER_MIN, Duration::from_secs(7), wire::WAIT_MAX];
        assert_eq!(wishes, expected.map(Wish::Defer));
    }
}
