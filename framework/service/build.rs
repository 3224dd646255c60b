//! A service in the making: what it is told, and how its parts are put together and started.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use actix::prelude::*;
use futures_util::future::{LocalBoxFuture, join_all};
use tokio::sync::{oneshot, watch};

use super::{Inner, Service, Stop, Subscription, adapters};
use crate::actors::{Handlers, IntoHandlers, KeeperSeat, Plan, Root, attend_all};
use crate::broker::Broker;
use crate::clock::Clock;
use crate::config::Config;
use crate::error::Error;
use crate::health::{HealthCell, SubscriptionState};
use crate::pipeline::Observer;
use crate::reload;
use crate::signals::{self, Heed};
use crate::store::Locks;
use crate::telemetry::{self, Metrics};

type Brokers = BTreeMap<String, Arc<dyn Broker>>;

/// What a start has made of the configuration.
struct Begun {
    /// Brokers that are still to be sought.
    away: Vec<String>,
    keepers: BTreeMap<String, Arc<KeeperSeat>>,
    subscriptions: BTreeMap<String, Subscription>,
    plans: Vec<Plan>,
}

#[cfg(all(test, feature = "testing"))]
type Wrap = Box<dyn Fn(Arc<dyn Broker>) -> Arc<dyn Broker> + Send>;

/// A service in the making.
///
/// ```
/// use redeliver::{Delivery, Handled, Service};
///
/// async fn ship(order: Delivery<serde_json::Value>) -> Handled {
///     Ok(println!("{}", order.payload))
/// }
///
/// #[tokio::main]
/// async fn main() -> Result<(), Box<dyn std::error::Error>> {
///     # let file = std::env::temp_dir().join(format!("redeliver-run-{}.toml", std::process::id()));
///     # std::fs::write(&file, "[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
///     # let sigterm = tokio::time::sleep(std::time::Duration::from_millis(100));
///     // In earnest "config/orders.toml", and `service.run().await?` alone, which ends at SIGTERM and Ctrl-C.
///     let service = Service::from_file(&file)?.subscribe("orders", ship).watch();
///     tokio::select! {
///         stop = service.run() => std::process::exit(i32::from(stop?.left > 0)),
///         () = sigterm => println!("it consumed until now"),
///     }
///     # std::fs::remove_file(file)?;
///     Ok(())
/// }
/// ```
pub struct ServiceBuilder {
    config: Config,
    handlers: BTreeMap<String, Handlers>,
    /// Subscriptions that are prepared and not consumed.
    unhandled: BTreeSet<String>,
    /// Subscriptions that were given handlers more than once.
    repeated: BTreeSet<String>,
    signals: bool,
    watch: bool,
    files: Vec<PathBuf>,
    clock: Clock,
    threads: bool,
    observer: Option<Arc<dyn Observer>>,
    #[cfg(all(test, feature = "testing"))]
    wrap: Option<Wrap>,
}

impl ServiceBuilder {
    pub(super) fn new(config: Config, files: Vec<PathBuf>) -> Self {
        Self {
            config,
            handlers: BTreeMap::new(),
            unhandled: BTreeSet::new(),
            repeated: BTreeSet::new(),
            signals: true,
            watch: false,
            files,
            clock: Clock::System,
            threads: true,
            observer: None,
            #[cfg(all(test, feature = "testing"))]
            wrap: None,
        }
    }

    /// Puts something of a test's between the service and its brokers.
    #[cfg(all(test, feature = "testing"))]
    pub(crate) fn on_brokers(
        mut self,
        wrap: impl Fn(Arc<dyn Broker>) -> Arc<dyn Broker> + Send + 'static,
    ) -> Self {
        self.wrap = Some(Box::new(wrap));
        self
    }

    /// Gives a subscription of the configuration its handler: a factory of an actor, an async
    /// function, or what [`by_type`](crate::by_type), [`in_batches`](crate::in_batches),
    /// [`blocking`](crate::blocking) and [`with_codec`](crate::with_codec) make.
    ///
    /// ```
    /// use redeliver::{Delivery, Error, Handled, Service, config::Config};
    ///
    /// async fn ship(_: Delivery<u32>) -> Handled { Ok(()) }
    ///
    /// # actix::System::new().block_on(async {
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
    /// let twice = Service::builder(config).subscribe("orders", ship).subscribe("orders", ship);
    /// match twice.start().await {
    ///     Err(Error::Mismatch(why)) => assert!(why.contains("was given a handler more than once"), "{why}"),
    ///     _ => panic!("which of them would be called?"),
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    #[must_use]
    pub fn subscribe<M>(
        mut self,
        subscription: impl Into<String>,
        handlers: impl IntoHandlers<M>,
    ) -> Self {
        let subscription = subscription.into();
        if self.handlers.insert(subscription.clone(), handlers.into_handlers()).is_some() {
            self.repeated.insert(subscription);
        }
        self
    }

    /// Declares or verifies a subscription of the configuration, and consumes nothing of it: for a
    /// process that only publishes to it, or looks after its dead letters.
    ///
    /// ```
    /// use redeliver::{Message, Service, config::Config};
    ///
    /// # actix::System::new().block_on(async {
    /// let config = "[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"";
    /// let service = Service::builder(Config::from_toml(config)?).without_handler("orders").start().await?;
    /// service.publisher("main")?.send(Message::bytes("{}").to_queue("orders")).await?;
    /// assert_eq!(service.depth("orders").await?.ready, Some(1));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    #[must_use]
    pub fn without_handler(mut self, subscription: impl Into<String>) -> Self {
        self.unhandled.insert(subscription.into());
        self
    }

    /// Whether SIGTERM and Ctrl-C stop the service (they do unless this is false), from the beginning of its
    /// [`start`](Self::start) on. A second one ends the process at once, and so does the first after the service has stopped.
    ///
    /// ```
    /// use redeliver::{Service, config::Config};
    ///
    /// # actix::System::new().block_on(async {
    /// // For a program, or a test, that has a way of its own to end.
    /// let service = Service::builder(Config::default()).signals(false).start().await?;
    /// assert_eq!(service.stop().await.left, 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    #[must_use]
    pub fn signals(mut self, signals: bool) -> Self {
        self.signals = signals;
        self
    }

    /// Watches the configuration's files and puts changed retry tables in force; what else changed
    /// needs a restart, and is named in the log. A service without files does not start with it.
    ///
    /// ```
    /// use redeliver::{Error, Service, config::Config};
    ///
    /// # actix::System::new().block_on(async {
    /// match Service::builder(Config::default()).watch().start().await {
    ///     Err(Error::Mismatch(why)) => assert!(why.starts_with("the service was not made from files"), "{why}"),
    ///     _ => panic!("there is nothing to watch"),
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    #[must_use]
    pub fn watch(mut self) -> Self {
        self.watch = true;
        self
    }

    #[cfg(feature = "testing")]
    pub(crate) fn on_one_thread(
        mut self,
        clock: Clock,
        observer: Arc<dyn Observer>,
        change: impl FnOnce(&mut Config),
    ) -> Self {
        change(&mut self.config);
        self.clock = clock;
        self.observer = Some(observer);
        self.threads = false;
        self.signals = false;
        self
    }

    /// Starts it: connects, declares or verifies what is needed, and consumes. Returns when every
    /// subscription is on its way.
    ///
    /// ```
    /// use redeliver::{Service, config::Config};
    ///
    /// # actix::System::new().block_on(async {
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"\n[subscriptions.refunds]\nbroker = \"main\"")?;
    /// let error = Service::builder(config).start().await.err().expect("nobody handles them").to_string();
    /// assert!(error.contains("subscription `orders` has no handler"), "{error}");
    /// assert!(error.contains("subscription `refunds` has no handler"), "all that is wrong, not the first alone");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    ///
    /// A program that may be told to stop while a broker is away ends well by this:
    ///
    /// ```
    /// use redeliver::{Error, Service, config::Config};
    ///
    /// # actix::System::new().block_on(async {
    /// # let config = Config::default();
    /// let service = match Service::builder(config).start().await {
    ///     Err(Error::Interrupted) => return Ok(()),
    ///     started => started?,
    /// };
    /// # service.stop().await;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    ///
    /// # Cancel safety
    /// A start that is dropped on the way is undone in the background: what it had opened is closed. So a program with
    /// `.signals(false)` may put it beside its own signals in a `select!`.
    ///
    /// # Errors
    /// [`Error::Interrupted`] where SIGTERM or Ctrl-C came first, unless `.signals(false)`; what was opened is closed by then.
    /// Every subscription without a handler or with more than one, and every handler without a subscription; files that
    /// are to be [watched](Self::watch) and cannot be; brokers that
    /// refuse, or that a subscription needs and that cannot be reached within `service.startup_max`;
    /// every source that is missing or different.
    pub async fn start(self) -> Result<Service, Error> {
        let (mut started, starting) = oneshot::channel();
        let name = self.config.service.name();
        let thread = std::thread::Builder::new().name(format!("{name}-service"));
        let spawned = thread.spawn(move || {
            System::new().block_on(async move {
                let booted = self.boot(Box::pin(started.closed())).await;
                match booted {
                    Ok((service, life)) => {
                        if let Err(Ok(nobodys)) = started.send(Ok(service)) {
                            nobodys.inner.stop.send_replace(true);
                        }
                        life.await;
                    }
                    Err(error) => {
                        let _ = started.send(Err(error));
                    }
                }
            });
        });
        spawned.map_err(|error| Error::Broker(format!("no thread for the service: {error}")))?;
        starting.await.map_err(|_| Error::Stopped)?
    }

    /// Starts it, and waits until it has stopped.
    ///
    /// ```
    /// use std::time::Duration;
    /// use redeliver::{Delivery, Handled, Service, config::Config};
    ///
    /// async fn ship(_: Delivery<u32>) -> Handled { Ok(()) }
    ///
    /// # actix::System::new().block_on(async {
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
    /// // In earnest `let stop = service.run().await?;`, the last line of the program.
    /// let run = Service::builder(config).subscribe("orders", ship).signals(false).run();
    /// let stop = tokio::time::timeout(Duration::from_millis(20), run).await;
    /// assert!(stop.is_err(), "it runs until it is stopped");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    ///
    /// # Errors
    /// As [`start`](Self::start), but that a signal which comes before it is done is no error: it has stopped as it was told to.
    pub async fn run(self) -> Result<Stop, Error> {
        match self.start().await {
            Ok(service) => Ok(service.stopped().await),
            Err(Error::Interrupted) => Ok(Stop::default()),
            Err(error) => Err(error),
        }
    }

    /// Puts everything together on the calling thread's actix system; the future is the service's
    /// life. It is undone if it fails, at a signal, and when it is `given_up`.
    pub(crate) async fn boot(
        mut self,
        given_up: LocalBoxFuture<'_, ()>,
    ) -> Result<(Service, impl Future<Output = ()> + use<>), Error> {
        self.config.check()?;
        self.check_handlers()?;
        let watch = self.watch.then(|| reload::watch(&self.files)).transpose()?;
        let brokers = self.make_brokers()?;
        let heed = self.signals.then(Heed::begin).flatten();
        let metrics = Metrics::new();
        let begun = tokio::select! {
            begun = self.begin(&brokers, &metrics) => begun,
            () = signals::wait_for_stop(given_up, heed.clone()) => Err(Error::Interrupted),
        };
        let begun = match begun {
            Ok(begun) => begun,
            Err(error) => {
                super::close_all(&brokers).await;
                if let Error::Interrupted = error {
                    telemetry::interrupted();
                }
                return Err(error);
            }
        };
        Ok(self.live(begun, brokers, metrics, watch, heed))
    }

    fn make_brokers(&self) -> Result<Brokers, Error> {
        let brokers = adapters::make_brokers(&self.config, self.clock)?;
        #[cfg(all(test, feature = "testing"))]
        let brokers = match &self.wrap {
            Some(wrap) => brokers.into_iter().map(|(name, broker)| (name, wrap(broker))).collect(),
            None => brokers,
        };
        Ok(brokers)
    }

    /// Connects, and prepares what is needed. Dropped on the way, it leaves nothing but the connections of `brokers`.
    async fn begin(&mut self, brokers: &Brokers, metrics: &Metrics) -> Result<Begun, Error> {
        let away = adapters::connect_all(brokers, &self.config).await?;
        let keepers = adapters::start_stores(&self.config, self.threads).await?;
        let stores: BTreeMap<String, Locks> =
            keepers.iter().map(|(name, seat)| (name.clone(), seat.locks().clone())).collect();
        let (subscriptions, plans) = self.make_subscriptions(brokers, &stores, metrics).await?;
        Ok(Begun { away, keepers, subscriptions, plans })
    }

    /// The service, and its life.
    fn live(
        self,
        begun: Begun,
        brokers: Brokers,
        metrics: Metrics,
        watch: Option<reload::Watch>,
        heed: Option<Heed>,
    ) -> (Service, impl Future<Output = ()> + use<>) {
        let Begun { away, keepers, subscriptions, plans } = begun;
        let (stop, mut stopping) = watch::channel(false);
        let (end, ended) = watch::channel(None);
        adapters::seek_all(away, &brokers, &stopping);
        let Self { config, files, clock, .. } = self;
        let root = Root::new(plans).start();
        let inner = Arc::new(Inner {
            config,
            subscriptions,
            brokers,
            keepers: keepers.clone(),
            metrics,
            clock,
            root,
            stop,
            ended,
            files,
        });
        if let Some(watch) = watch {
            actix_rt::spawn(reload::follow(Arc::downgrade(&inner), watch));
        }
        let service = Service { inner: Arc::clone(&inner) };
        let life = async move {
            let attended = attend_all(keepers.values().cloned().collect());
            // The sender lives as long as the service: this ends only by the word.
            let told = async { drop(stopping.wait_for(|stop| *stop).await) };
            tokio::select! {
                () = attended => {}
                () = signals::wait_for_stop(told, heed.clone()) => {}
            }
            let left = inner.shut_down().await;
            let stores = &inner.config.stores;
            join_all(keepers.iter().map(|(name, seat)| seat.finish(stores[name].deadline))).await;
            keepers.values().for_each(|seat| seat.stop());
            telemetry::stopped(left);
            end.send_replace(Some(Stop { left }));
            drop(heed);
        };
        (service, life)
    }

    /// Prepares the source of every subscription, and plans the actors of those with a handler.
    async fn make_subscriptions(
        &mut self,
        brokers: &Brokers,
        stores: &BTreeMap<String, Locks>,
        metrics: &Metrics,
    ) -> Result<(BTreeMap<String, Subscription>, Vec<Plan>), Error> {
        let (mut subscriptions, mut plans, mut wrong) = (BTreeMap::new(), Vec::new(), Vec::new());
        for (name, settings) in &self.config.subscriptions {
            let broker = &brokers[&settings.broker];
            let mut scope =
                adapters::scope_of(name, &self.config, broker, stores, metrics, self.clock);
            scope.observer.clone_from(&self.observer);
            if let Err(error) = adapters::prepare(&scope, broker).await {
                wrong.push(error.to_string());
            }
            let (scope, health) = (Arc::new(scope), HealthCell::default());
            let handlers = self.handlers.remove(name);
            let is_consumed = handlers.is_some();
            if let Some(handlers) = handlers {
                plans.push(Plan {
                    scope: Arc::clone(&scope),
                    broker: Arc::clone(broker),
                    handlers,
                    service: self.config.service.clone(),
                    health: health.clone(),
                    threads: self.threads,
                });
            } else {
                health.update(|health| health.state = SubscriptionState::Unhandled);
            }
            let broker = Arc::clone(broker);
            let subscription = Subscription { scope, broker, health, is_consumed };
            subscriptions.insert(name.clone(), subscription);
        }
        if wrong.is_empty() {
            Ok((subscriptions, plans))
        } else {
            Err(Error::Broker(wrong.join("\n")))
        }
    }

    fn check_handlers(&self) -> Result<(), Error> {
        let missing =
            self.config.subscriptions.keys().filter(|name| {
                !self.handlers.contains_key(*name) && !self.unhandled.contains(*name)
            });
        let missing = missing.map(|name| {
            format!(
                "subscription `{name}` has no handler; add .subscribe(\"{name}\", ..) or \
                 .without_handler(\"{name}\"), or remove it from the configuration"
            )
        });
        let named = self.handlers.keys().chain(&self.unhandled);
        let unknown = named.filter(|name| !self.config.subscriptions.contains_key(*name));
        let unknown = unknown.map(|name| {
            format!(
                "handler `{name}` has no subscription; add [subscriptions.{name}] to the \
                 configuration or remove it from the builder"
            )
        });
        let both = self.unhandled.iter().filter(|name| self.handlers.contains_key(*name));
        let both = both.map(|name| {
            format!("subscription `{name}` has a handler, and .without_handler(\"{name}\") too; remove one of them")
        });
        let repeated = self.repeated.iter().map(|name| {
            format!("subscription `{name}` was given a handler more than once; by_type() gives it several, each for a type")
        });
        let kinds = self.handlers.iter().flat_map(|(name, handlers)| {
            handlers.repeated().into_iter().map(move |what| {
                format!("subscription `{name}` has more than one handler for {what}; keep one")
            })
        });
        let problems: Vec<String> =
            missing.chain(unknown).chain(both).chain(repeated).chain(kinds).collect();
        if problems.is_empty() { Ok(()) } else { Err(Error::Mismatch(problems.join("\n"))) }
    }
}
