//! How a user's handler becomes actors: what `subscribe` takes, and what starts in a seat.
//!
//! Owns the ways of writing a handler: an actor, an async function, an actor of batches, a
//! blocking actor on threads. Never an address: a handler that panicked is made anew, so what is
//! kept is how to make it.

use std::collections::BTreeSet;
use std::marker::PhantomData;
use std::sync::Arc;
use std::task::Context as TaskContext;

use actix::prelude::*;
use serde::de::DeserializeOwned;

use super::answer::IntoRunning;
use super::batches::Batches;
use super::blocking::BlockingHost;
use super::life::live;
use super::pump::{Station, pump};
use super::seat::{ExitReason, Seat};
use crate::message::{Batch, Delivery, Handled};
use crate::pipeline::{Codec, Codecs, Json, Running, SharedCodecs, caught};

/// The handlers of one subscription.
///
/// ```
/// use redeliver::{Delivery, Handled, by_type};
///
/// async fn placed(_: Delivery<u32>) -> Handled { Ok(()) }
/// async fn other(_: Delivery<serde_json::Value>) -> Handled { Ok(()) }
///
/// let handlers = by_type().on("placed", placed).otherwise(other);
/// # use redeliver::{Message, Service, config::Config, testing::TestService};
/// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
/// let mut test = TestService::start(Service::builder(config).subscribe("orders", handlers))?;
/// test.publish("orders", Message::json(&7)?.kind("placed"));
/// test.publish("orders", Message::json(&"7")?.kind("cancelled"));
/// assert_eq!(test.log(), ["orders-1: attempt 1 handled", "orders-2: attempt 1 handled"]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Handlers {
    pub(crate) routes: Vec<Route>,
}

/// One handler, and the type of the messages it is for.
pub(crate) struct Route {
    /// `None`: every type.
    pub(crate) kind: Option<String>,
    pub(crate) host: Arc<dyn Host>,
}

/// Makes the actor of a handler, again and again.
pub(crate) trait Host: Send + Sync {
    /// Starts an actor in `seat`, on the arbiter of the calling thread.
    fn start(&self, seat: Arc<Seat>);
}

/// What a subscription can be given as its handler.
///
/// - a factory of an actor that implements `Handler<Delivery<T>>`: `|| Notifier::new()`
/// - an async function of a delivery: `async fn notify(delivery: Delivery<Push>) -> Handled`
/// - [`with_codec`], [`in_batches`], [`blocking`], [`by_type`] for everything else
///
/// `M` only tells the compiler which of these it is.
///
/// ```
/// use redeliver::{Delivery, Handled, Handlers, IntoHandlers};
///
/// async fn ship(_: Delivery<u32>) -> Handled { Ok(()) }
///
/// let handlers: Handlers = ship.into_handlers();
/// # use redeliver::{Message, Service, config::Config, testing::TestService};
/// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
/// let mut test = TestService::start(Service::builder(config).subscribe("orders", handlers))?;
/// test.publish("orders", Message::json(&7)?);
/// assert_eq!(test.log(), ["orders-1: attempt 1 handled"]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait IntoHandlers<M> {
    /// Makes the handlers.
    fn into_handlers(self) -> Handlers;
}

impl IntoHandlers<()> for Handlers {
    fn into_handlers(self) -> Handlers {
        self
    }
}

/// Tells a factory of actors from a function of deliveries.
#[doc(hidden)]
pub struct ByActor<A, T>(PhantomData<fn() -> (A, T)>);
/// Tells a function of deliveries from a factory of actors.
#[doc(hidden)]
pub struct ByFunction<T, R>(PhantomData<fn() -> (T, R)>);

impl<F, A, T> IntoHandlers<ByActor<A, T>> for F
where
    F: Fn() -> A + Send + Sync + 'static,
    A: Actor<Context = Context<A>> + Handler<Delivery<T>>,
    A::Result: IntoRunning<A>,
    T: DeserializeOwned + 'static,
{
    fn into_handlers(self) -> Handlers {
        with_codec(Json, self)
    }
}

impl<F, T, R> IntoHandlers<ByFunction<T, R>> for F
where
    F: Fn(Delivery<T>) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Handled> + 'static,
    T: DeserializeOwned + 'static,
{
    fn into_handlers(self) -> Handlers {
        let make = move || FunctionActor { function: self.clone(), types: PhantomData };
        with_codec(Json, make)
    }
}

/// An actor whose payloads are decoded by `codec`.
///
/// ```
/// use redeliver::{Raw, Delivery, Handled, with_codec};
/// # use actix::prelude::*;
/// struct Archive;
/// # impl Actor for Archive { type Context = Context<Self>; }
/// impl Handler<Delivery<Vec<u8>>> for Archive {
///     type Result = Handled;
///     fn handle(&mut self, _: Delivery<Vec<u8>>, _: &mut Context<Self>) -> Handled { Ok(()) }
/// }
/// let handlers = with_codec(Raw, || Archive);
/// # use redeliver::{Message, Service, config::Config, testing::TestService};
/// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
/// let mut test = TestService::start(Service::builder(config).subscribe("orders", handlers))?;
/// test.publish("orders", Message::bytes(&b"\xff"[..]));
/// assert_eq!(test.log(), ["orders-1: attempt 1 handled"]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn with_codec<A, T, F>(codec: impl Codec<T>, factory: F) -> Handlers
where
    F: Fn() -> A + Send + Sync + 'static,
    A: Actor<Context = Context<A>> + Handler<Delivery<T>>,
    A::Result: IntoRunning<A>,
    T: 'static,
{
    with_codecs(Codecs::new(codec), factory)
}

/// An actor whose payloads are decoded by the first of several codecs that takes the message's
/// content type.
///
/// ```
/// use redeliver::{Codecs, Delivery, Handled, Json, with_codecs};
/// # use actix::prelude::*;
/// # struct Count;
/// # impl Actor for Count { type Context = Context<Self>; }
/// # impl Handler<Delivery<u32>> for Count {
/// #     type Result = Handled;
/// #     fn handle(&mut self, _: Delivery<u32>, _: &mut Context<Self>) -> Handled { Ok(()) }
/// # }
/// let handlers = with_codecs(Codecs::new(Json), || Count);
/// # use redeliver::{Message, Service, config::Config, testing::TestService};
/// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
/// let mut test = TestService::start(Service::builder(config).subscribe("orders", handlers))?;
/// test.publish("orders", Message::json(&7)?);
/// test.publish("orders", Message::bytes("7").content_type("text/csv"));
/// assert!(test.log()[1].starts_with("orders-2: dead-lettered: undecodable: no codec takes"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn with_codecs<A, T, F>(codecs: Codecs<T>, factory: F) -> Handlers
where
    F: Fn() -> A + Send + Sync + 'static,
    A: Actor<Context = Context<A>> + Handler<Delivery<T>>,
    A::Result: IntoRunning<A>,
    T: 'static,
{
    single(ActorHost { factory, codecs: Arc::new(codecs), types: PhantomData })
}

/// An actor that takes [`Batch`]es, as large and as long waited for as `batch = { size, wait }` of
/// the subscription says, and answers for each delivery of a batch.
///
/// A batch may take as long as the subscription's `timeout` from the moment it is handed over; then
/// it is aborted, and each of its deliveries has failed once.
///
/// ```
/// use redeliver::{Batch, Handled, in_batches};
/// # use actix::prelude::*;
/// # struct Import;
/// # impl Actor for Import { type Context = Context<Self>; }
/// impl Handler<Batch<u32>> for Import {
///     type Result = Vec<Handled>;
///
///     fn handle(&mut self, batch: Batch<u32>, _: &mut Context<Self>) -> Vec<Handled> {
///         println!("{} rows at once", batch.deliveries.len());
///         batch.deliveries.iter().map(|_| Ok(())).collect()
///     }
/// }
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
pub fn in_batches<A, T, F>(factory: F) -> Handlers
where
    F: Fn() -> A + Send + Sync + 'static,
    A: Actor<Context = Context<A>> + Handler<Batch<T>>,
    A::Result: IntoRunning<A, Vec<Handled>>,
    T: DeserializeOwned + 'static,
{
    single(BatchHost { factory, codecs: Arc::new(Codecs::new(Json)), types: PhantomData })
}

/// An actor on `threads` threads of its own (actix's `SyncArbiter`), for drivers that block.
///
/// A blocking handler cannot be aborted: one that exceeds its `timeout` is logged, keeps its
/// permit until it returns, and what it returns then counts. It sends messages on by
/// [`send_blocking`](crate::Publisher::send_blocking).
///
/// ```
/// use actix::prelude::*;
/// use redeliver::{Delivery, Handled, blocking};
///
/// struct Ledger;
/// impl Actor for Ledger { type Context = SyncContext<Self>; }
///
/// impl Handler<Delivery<u32>> for Ledger {
///     type Result = Handled;
///
///     fn handle(&mut self, entry: Delivery<u32>, _: &mut SyncContext<Self>) -> Handled {
///         std::thread::sleep(std::time::Duration::from_millis(1));      // a driver that blocks
///         Ok(println!("booked {}", entry.payload))
///     }
/// }
///
/// let handlers = blocking(4, || Ledger);
/// # use redeliver::{Message, Service, config::Config, testing::TestService};
/// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
/// let mut test = TestService::start(Service::builder(config).subscribe("orders", handlers))?;
/// test.publish("orders", Message::json(&7)?);
/// assert_eq!(test.log(), ["orders-1: attempt 1 handled"]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn blocking<A, T, F>(threads: usize, factory: F) -> Handlers
where
    F: Fn() -> A + Send + Sync + 'static,
    A: Actor<Context = SyncContext<A>> + Handler<Delivery<T>, Result = Handled>,
    T: DeserializeOwned + Send + 'static,
{
    single(BlockingHost::new(threads, factory, Arc::new(Codecs::new(Json))))
}

/// Several handlers, chosen by the message's type.
///
/// ```
/// use redeliver::{Delivery, Handled, by_type};
///
/// #[derive(serde::Deserialize)]
/// struct Push {}
/// #[derive(serde::Deserialize)]
/// struct Issue {}
///
/// async fn pushed(_: Delivery<Push>) -> Handled { Ok(()) }
/// async fn opened(_: Delivery<Issue>) -> Handled { Ok(()) }
///
/// let handlers = by_type().on("push", pushed).on("issues", opened);
/// # use redeliver::{Message, Service, config::Config, testing::TestService};
/// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
/// let mut test = TestService::start(Service::builder(config).subscribe("orders", handlers))?;
/// test.publish("orders", Message::bytes("{}").kind("push"));
/// test.publish("orders", Message::bytes("{}").kind("star"));
/// assert_eq!(test.log()[0], "orders-1: attempt 1 handled");
/// assert!(test.log()[1].starts_with("orders-2: dead-lettered: unknown-type"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn by_type() -> Handlers {
    Handlers { routes: Vec::new() }
}

impl Handlers {
    /// Adds the handler for messages of type `kind`.
    ///
    /// ```
    /// use redeliver::{Delivery, Handled, Service, by_type, config::Config};
    ///
    /// async fn placed(_: Delivery<u32>) -> Handled { Ok(()) }
    /// async fn stored(_: Delivery<u32>) -> Handled { Ok(()) }
    ///
    /// # actix::System::new().block_on(async {
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
    /// let handlers = by_type().on("placed", placed).on("placed", stored);
    /// let error = Service::builder(config).subscribe("orders", handlers).start().await.err();
    /// let why = error.expect("only one of them could ever be called").to_string();
    /// assert_eq!(why, "subscription `orders` has more than one handler for type `placed`; keep one");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    #[must_use]
    pub fn on<M>(mut self, kind: impl Into<String>, handlers: impl IntoHandlers<M>) -> Self {
        let kind = kind.into();
        let routes = handlers.into_handlers().routes;
        self.routes
            .extend(routes.into_iter().map(|route| Route { kind: Some(kind.clone()), ..route }));
        self
    }

    /// Adds the handler for every other type; without one, `on_unknown_type` of the subscription
    /// says what happens.
    ///
    /// ```
    /// use redeliver::{Delivery, Failure, Handled, by_type};
    ///
    /// async fn placed(_: Delivery<u32>) -> Handled { Ok(()) }
    /// async fn other(event: Delivery<serde_json::Value>) -> Handled {
    ///     Err(Failure::reject(format!("{:?}", event.kind())))
    /// }
    /// # use redeliver::{Message, Service, config::Config, testing::TestService};
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
    /// let handlers = by_type().on("placed", placed).otherwise(other);
    /// let mut test = TestService::start(Service::builder(config).subscribe("orders", handlers))?;
    /// test.publish("orders", Message::json(&7)?.kind("cancelled"));
    /// test.publish("orders", Message::json(&7)?);             // of no type at all
    /// assert_eq!(test.log()[0], "orders-1: attempt 1 dead-lettered: rejected: Some(\"cancelled\")");
    /// assert_eq!(test.log()[1], "orders-2: attempt 1 dead-lettered: rejected: None");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn otherwise<M>(mut self, handlers: impl IntoHandlers<M>) -> Self {
        self.routes.extend(handlers.into_handlers().routes);
        self
    }

    /// What has more than one handler, of which only one could ever be called.
    pub(crate) fn repeated(&self) -> BTreeSet<String> {
        let kinds = || self.routes.iter().map(|route| route.kind.as_deref());
        let repeated = kinds().filter(|kind| kinds().filter(|other| other == kind).count() > 1);
        let named = repeated.map(|kind| match kind {
            Some(kind) => format!("type `{kind}`"),
            None => String::from("every other type"),
        });
        named.collect()
    }
}

fn single(host: impl Host + 'static) -> Handlers {
    Handlers { routes: vec![Route { kind: None, host: Arc::new(host) }] }
}

struct ActorHost<F, A, T> {
    factory: F,
    codecs: SharedCodecs<T>,
    types: PhantomData<fn() -> A>,
}

impl<F, A, T> Host for ActorHost<F, A, T>
where
    F: Fn() -> A + Send + Sync,
    A: Actor<Context = Context<A>> + Handler<Delivery<T>>,
    A::Result: IntoRunning<A>,
    T: 'static,
{
    fn start(&self, seat: Arc<Seat>) {
        sit_down(seat, &self.factory, Arc::clone(&self.codecs), Single);
    }
}

/// Makes an actor and lets a pump run in it; a factory that panics is an actor that died.
pub(super) fn sit_down<A, T>(
    seat: Arc<Seat>,
    factory: &impl Fn() -> A,
    codecs: SharedCodecs<T>,
    station: impl Station<A, T> + 'static,
) where
    A: Actor<Context = Context<A>>,
    T: 'static,
{
    match caught(factory) {
        Ok(actor) => {
            let Some((pump, life)) = pump(seat, codecs, station) else { return };
            let mut ctx = Context::new();
            ctx.spawn(pump);
            actix_rt::spawn(live(ctx.into_future(actor), life));
        }
        Err(panic) => {
            seat.report(ExitReason::Died(format!("the handler's factory panicked: {panic}")));
        }
    }
}

/// One delivery, one call.
struct Single;

impl<A, T> Station<A, T> for Single
where
    A: Actor<Context = Context<A>> + Handler<Delivery<T>>,
    A::Result: IntoRunning<A>,
    T: 'static,
{
    fn call(&mut self, actor: &mut A, ctx: &mut A::Context, delivery: Delivery<T>) -> Running {
        actor.handle(delivery, ctx).into_running(ctx).0
    }

    fn poll(&mut self, _: &mut A, _: &mut A::Context, _: &mut TaskContext<'_>) {}
}

struct BatchHost<F, A, T> {
    factory: F,
    codecs: SharedCodecs<T>,
    types: PhantomData<fn() -> A>,
}

impl<F, A, T> Host for BatchHost<F, A, T>
where
    F: Fn() -> A + Send + Sync,
    A: Actor<Context = Context<A>> + Handler<Batch<T>>,
    A::Result: IntoRunning<A, Vec<Handled>>,
    T: 'static,
{
    fn start(&self, seat: Arc<Seat>) {
        let station = Batches::new(&seat);
        sit_down(seat, &self.factory, Arc::clone(&self.codecs), station);
    }
}

/// An actor around an async function.
struct FunctionActor<F, T, R> {
    function: F,
    types: PhantomData<fn() -> (T, R)>,
}

/// Never pinned: the function is only called.
impl<F, T, R> Unpin for FunctionActor<F, T, R> {}

impl<F: 'static, T: 'static, R: 'static> Actor for FunctionActor<F, T, R> {
    type Context = Context<Self>;
}

impl<F, T, R> Handler<Delivery<T>> for FunctionActor<F, T, R>
where
    F: Fn(Delivery<T>) -> R + 'static,
    R: Future<Output = Handled> + 'static,
    T: 'static,
{
    type Result = ResponseFuture<Handled>;

    fn handle(&mut self, delivery: Delivery<T>, _: &mut Context<Self>) -> Self::Result {
        Box::pin((self.function)(delivery))
    }
}
