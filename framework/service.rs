//! A running service: the composition root.
//!
//! Owns how the parts are put together, started, asked and stopped; it alone names adapters.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use tokio::sync::watch;

<<<<<<< HEAD
use crate::actors::{InspectAll, Pause, ResumeOne, Root, StopAll};
use crate::broker::{Broker, BrokerState};
=======
use crate::actors::lock_keeper::LockKeeper;
use crate::actors::{
    Handlers, InspectAll, IntoHandlers, KeeperSeat, Pause, Plan, ResumeOne, Root, StopAll,
    attend_all,
};
use crate::broker::memory::MemoryBroker;
use crate::broker::{Broker, BrokerError, BrokerState, Fault, Source};
>>>>>>> b2f4adf (Guards end when their lane is lost, a doomed message asks its claim first, and the lock keeper has an address)
use crate::clock::Clock;
use crate::config::{Config, Topology};
use crate::dead_letters::DeadLetters;
use crate::error::Error;
use crate::health::{Health, HealthCell};
use crate::pipeline::Scope;
use crate::publisher::Publisher;
use crate::reload;
use crate::store::{Locks, StoreState};
use crate::telemetry::{self, Metrics};

mod adapters;
mod build;

pub use build::ServiceBuilder;

/// A running service. Cheap to clone; usable from any thread and runtime.
///
/// It runs on threads of its own until it is stopped, whether or not a handle is kept.
///
/// ```
/// # actix::System::new().block_on(async {
/// # use redeliver::{Message, Service, config::Config};
/// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
/// let service = Service::builder(config)
///     .subscribe("orders", |_: redeliver::Delivery<serde_json::Value>| async { Ok(()) })
///     .start()
///     .await?;
/// let publisher = service.publisher("main")?;
/// publisher.send(Message::bytes("{}").to_queue("orders")).await?;
/// assert!(service.health().live);
/// assert_eq!(service.stop().await.left, 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
#[derive(Clone)]
pub struct Service {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) config: Config,
    pub(crate) subscriptions: BTreeMap<String, Subscription>,
    brokers: BTreeMap<String, Arc<dyn Broker>>,
    keepers: BTreeMap<String, Arc<KeeperSeat>>,
    metrics: Metrics,
    clock: Clock,
    root: Addr<Root>,
    stop: watch::Sender<bool>,
    ended: watch::Receiver<Option<Stop>>,
    /// Where the configuration came from.
    pub(crate) files: Vec<PathBuf>,
}

pub(crate) struct Subscription {
    pub(crate) scope: Arc<Scope>,
    pub(crate) broker: Arc<dyn Broker>,
    health: HealthCell,
}

/// How a service ended.
///
/// ```
/// # actix::System::new().block_on(async {
/// # use redeliver::{Service, config::Config};
/// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
/// # let service = Service::builder(config).without_handler("orders").start().await?;
///
/// let stop = service.stop().await;
/// if stop.left > 0 {
///     eprintln!("{} handlers were left running", stop.left);
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stop {
    /// Handlers that were still running when `service.shutdown_grace` was over; their messages
    /// went back to the broker.
    pub left: usize,
}

impl Service {
    /// Begins a service with a configuration made by code.
    pub fn builder(config: Config) -> ServiceBuilder {
        ServiceBuilder::new(config, Vec::new())
    }

    /// Begins a service with the configuration in this file, and the environment over it.
    ///
    /// # Errors
    /// Every problem of the configuration at once.
    pub fn from_file(path: impl AsRef<Path>) -> Result<ServiceBuilder, Error> {
        let path = path.as_ref();
        Ok(ServiceBuilder::new(Config::load(path)?, vec![path.to_owned()]))
    }

    /// A publisher to this broker of the configuration.
    ///
    /// # Errors
    /// There is no such broker.
    pub fn publisher(&self, broker: &str) -> Result<Publisher, Error> {
        let brokers = &self.inner.brokers;
        let found = brokers.get(broker);
        let found = found.ok_or_else(|| Error::unknown("broker", broker, brokers.keys()))?;
        Ok(Publisher::new(found.publisher()))
    }

    /// The locks of this store of the configuration.
    ///
    /// ```
    /// # actix::System::new().block_on(async {
    /// # use redeliver::{Service, config::Config};
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[stores.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
    /// # let service = Service::builder(config).without_handler("orders").start().await?;
    ///
    /// let locks = service.locks("main")?;
    /// let guard = locks.acquire("customer:42").await?;
    /// println!("fence {} goes with every write", guard.fence());
    /// guard.release().await?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    ///
    /// # Errors
    /// There is no such store.
    pub fn locks(&self, store: &str) -> Result<Locks, Error> {
        Ok(self.seat(store)?.locks().clone())
    }

    /// The lock keeper of this store of the configuration, for actors that ask by messages; ask
    /// again for the address of one that died and was made anew.
    ///
    /// ```
    /// use redeliver::lock_keeper::AcquireLock;
    /// use redeliver::{Service, config::Config, store::LockPolicy};
    ///
    /// # actix::System::new().block_on(async {
    /// let config = Config::from_toml("[stores.main]\nkind = \"memory\"")?;
    /// let service = Service::builder(config).start().await?;
    /// let ask = AcquireLock { key: "customer:42".into(), policy: LockPolicy::default() };
    /// let guard = service.lock_keeper("main")?.send(ask).await??;
    /// guard.release().await?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    ///
    /// # Errors
    /// There is no such store.
    pub fn lock_keeper(&self, store: &str) -> Result<Addr<LockKeeper>, Error> {
        Ok(self.seat(store)?.keeper())
    }

    fn seat(&self, store: &str) -> Result<&KeeperSeat, Error> {
        let keepers = &self.inner.keepers;
        let found = keepers.get(store).map(AsRef::as_ref);
        found.ok_or_else(|| Error::unknown("store", store, keepers.keys()))
    }

    /// The dead letters of this subscription.
    ///
    /// # Errors
    /// There is no such subscription.
    pub fn dead_letters(&self, subscription: &str) -> Result<DeadLetters, Error> {
        let Subscription { broker, scope, .. } = self.find(subscription)?;
        Ok(DeadLetters::new(Arc::clone(broker), scope.source.load_full(), self.inner.clock))
    }

    /// Holds a subscription: what runs is finished (for at most the handlers' timeout), everything
    /// else goes back to the broker. Nothing is lost and no attempt is counted.
    ///
    /// ```
    /// # actix::System::new().block_on(async {
    /// # use redeliver::{Service, config::Config};
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
    /// # let service = Service::builder(config).without_handler("orders").start().await?;
    ///
    /// service.pause("orders").await?;
    /// assert!(service.health().ready, "somebody wants it so");
    /// service.resume("orders").await?;
    /// assert!(service.pause("ordres").await.is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    ///
    /// # Errors
    /// There is no such subscription, or the service has stopped.
    pub async fn pause(&self, subscription: &str) -> Result<(), Error> {
        let grace = self.find(subscription)?.scope.settings.timeout;
        let pause = Pause { subscription: subscription.to_owned(), grace };
        self.inner.root.send(pause).await.map_err(|_| Error::Stopped)?;
        Ok(())
    }

    /// Lets a subscription go on that was paused, or given up.
    ///
    /// # Errors
    /// There is no such subscription, or the service has stopped.
    pub async fn resume(&self, subscription: &str) -> Result<(), Error> {
        self.find(subscription)?;
        let resume = ResumeOne(subscription.to_owned());
        self.inner.root.send(resume).await.map_err(|_| Error::Stopped)?;
        Ok(())
    }

    /// Reads the configuration's files again and puts their retry tables in force.
    ///
    /// # Errors
    /// The new policy is not usable, or needs waits at the broker that may not be declared; the
    /// old one stays.
    pub async fn reload(&self) -> Result<(), Error> {
        reload::from_files(&self.inner).await
    }

    /// Puts the retry tables of `config` in force.
    ///
    /// ```
    /// # actix::System::new().block_on(async {
    /// # use redeliver::{Service, config::Config};
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
    /// # let service = Service::builder(config).without_handler("orders").start().await?;
    ///
    /// let slower = format!("{}\n[retry.standard]\ndelay_min = \"1s\"", "[brokers.main]\nkind = \"memory\"");
    /// service.reload_with(&Config::from_toml(&slower)?).await?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    ///
    /// # Errors
    /// As [`reload`](Self::reload).
    pub async fn reload_with(&self, config: &Config) -> Result<(), Error> {
        reload::with(&self.inner, config).await
    }

    /// Whether it works, and why not.
    pub fn health(&self) -> Health {
        let inner = &self.inner;
        let subscriptions = inner.subscriptions.iter();
        let subscriptions = subscriptions.map(|(name, it)| (name.clone(), it.health.read()));
        let brokers = inner.brokers.iter().map(|(name, broker)| {
            let wrong = match broker.state() {
                BrokerState::Connected => None,
                BrokerState::Blocked(why) => Some(format!("takes no messages for now: {why}")),
                BrokerState::Disconnected(why) => Some(format!("not connected: {why}")),
            };
            (name.clone(), wrong)
        });
        let stores = inner.keepers.iter().map(|(name, seat)| {
            let wrong = match seat.locks().state() {
                StoreState::Up => None,
                StoreState::Down(why) => Some(why),
            };
            (name.clone(), wrong)
        });
        let live = inner.ended.borrow().is_none();
        Health::of(subscriptions.collect(), brokers.collect(), stores.collect(), live)
    }

    /// Every metric in the OpenMetrics text format, for Prometheus; asks the brokers how much
    /// waits, for at most a second.
    ///
    /// ```
    /// # actix::System::new().block_on(async {
    /// # use redeliver::{Service, config::Config};
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
    /// # let service = Service::builder(config).without_handler("orders").start().await?;
    ///
    /// assert!(service.metrics().await.contains("redeliver_received_total{subscription=\"orders\"} 0"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    pub async fn metrics(&self) -> String {
        let sample = self.sample();
        // What cannot be had in time stays as it was.
        let _ = tokio::time::timeout(Duration::from_secs(1), sample).await;
        self.inner.metrics.text()
    }

    async fn sample(&self) {
        let holdings = self.inner.root.send(InspectAll).await.unwrap_or_default();
        for (name, Subscription { scope, broker, .. }) in &self.inner.subscriptions {
            let metrics = &scope.metrics;
            let holdings = holdings.get(name).map(Vec::as_slice).unwrap_or_default();
            let sum = |count: fn(&crate::actors::Holding) -> usize| {
                holdings.iter().map(count).sum::<usize>() as i64
            };
            metrics.in_flight.set(sum(|holding| holding.running));
            metrics.parked.set(sum(|holding| holding.parked));
            metrics.carrying.set(sum(|holding| holding.carrying));
            let oldest = holdings.iter().filter_map(|holding| holding.oldest).min();
            metrics.oldest.set(oldest.map_or(0.0, |oldest| oldest.elapsed().as_secs_f64()));
            if let Ok(depth) = broker.depth(&scope.source.load()).await {
                let gauges = [&metrics.ready, &metrics.waiting, &metrics.dead_letters];
                for (gauge, count) in
                    gauges.into_iter().zip([depth.ready, depth.waiting, depth.dead])
                {
                    if let Some(count) = count {
                        gauge.set(count as i64);
                    }
                }
            }
        }
    }

    /// How many messages of this subscription are where.
    ///
    /// # Errors
    /// There is no such subscription, or what the broker says.
    pub async fn depth(&self, subscription: &str) -> Result<crate::broker::Depth, Error> {
        let Subscription { broker, scope, .. } = self.find(subscription)?;
        let depth = broker.depth(&scope.source.load()).await;
        depth.map_err(|error| Error::Broker(error.to_string()))
    }

    /// Everything that is declared, or has to be, for a subscription; a line each.
    ///
    /// ```
    /// # actix::System::new().block_on(async {
    /// # use redeliver::{Service, config::Config};
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"\nqueue = \"orders\"")?;
    /// # let service = Service::builder(config).without_handler("orders").start().await?;
    ///
    /// assert_eq!(service.topology("orders")?, ["queue orders", "queue orders.dead"]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    ///
    /// # Errors
    /// There is no such subscription.
    pub fn topology(&self, subscription: &str) -> Result<Vec<String>, Error> {
        let Subscription { broker, scope, .. } = self.find(subscription)?;
        Ok(broker.topology(&scope.source.load()))
    }

    /// Stops: no new deliveries; what runs is finished or, after `service.shutdown_grace`, given
    /// back. Returns when everything is down. Safe to call twice.
    pub async fn stop(&self) -> Stop {
        self.inner.stop.send_replace(true);
        self.stopped().await
    }

    /// Waits until the service has stopped, by [`stop`](Self::stop) or by a signal.
    pub async fn stopped(&self) -> Stop {
        let mut ended = self.inner.ended.clone();
        let stop = ended.wait_for(Option::is_some).await;
        stop.ok().and_then(|stop| *stop).unwrap_or_default()
    }

    fn find(&self, name: &str) -> Result<&Subscription, Error> {
        let subscriptions = &self.inner.subscriptions;
        let found = subscriptions.get(name);
        found.ok_or_else(|| Error::unknown("subscription", name, subscriptions.keys()))
    }

    #[cfg(feature = "testing")]
    pub(crate) fn inner(&self) -> &Inner {
        &self.inner
    }
}

<<<<<<< HEAD
=======
impl ServiceBuilder {
    /// Gives a subscription of the configuration its handler: a factory of an actor, an async
    /// function, or what [`by_type`](crate::by_type), [`in_batches`](crate::in_batches),
    /// [`blocking`](crate::blocking) and [`with_codec`](crate::with_codec) make.
    #[must_use]
    pub fn subscribe<M>(
        mut self,
        subscription: impl Into<String>,
        handlers: impl IntoHandlers<M>,
    ) -> Self {
        self.handlers.insert(subscription.into(), handlers.into_handlers());
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

    /// Whether SIGTERM and Ctrl-C stop the service (they do unless this is false). A second one
    /// ends the process at once.
    #[must_use]
    pub fn signals(mut self, signals: bool) -> Self {
        self.signals = signals;
        self
    }

    /// Watches the configuration's files and puts changed retry tables in force.
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
    /// # Errors
    /// Every subscription without a handler and every handler without a subscription; brokers that
    /// refuse, or cannot be reached within `service.startup_max`; every source that is missing or
    /// different.
    pub async fn start(self) -> Result<Service, Error> {
        let (started, starting) = oneshot::channel();
        let name = self.config.service.name.clone();
        let thread = std::thread::Builder::new().name(format!("{name}-service"));
        let spawned = thread.spawn(move || {
            System::new().block_on(async move {
                match self.boot().await {
                    Ok((service, life)) => {
                        let _ = started.send(Ok(service));
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
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn run(self) -> Result<Stop, Error> {
        Ok(self.start().await?.stopped().await)
    }

    /// Puts everything together on the calling thread's actix system; the future is the service's
    /// life.
    pub(crate) async fn boot(self) -> Result<(Service, impl Future<Output = ()>), Error> {
        self.config.check()?;
        self.check_handlers()?;
        let Self {
            config,
            mut handlers,
            unhandled,
            signals,
            watch,
            files,
            clock,
            threads,
            observer,
        } = self;
        let brokers = connect_all(&config, clock).await?;
        let keepers = start_stores(&config, threads).await?;
        let stores: BTreeMap<String, Locks> =
            keepers.iter().map(|(name, seat)| (name.clone(), seat.locks().clone())).collect();
        let metrics = Metrics::new();
        let mut plans = Vec::new();
        let mut subscriptions = BTreeMap::new();
        let mut wrong = Vec::new();
        for (name, settings) in &config.subscriptions {
            let broker = &brokers[&settings.broker];
            let mut scope = scope_of(name, settings, &config, broker, &stores, &metrics, clock);
            scope.observer.clone_from(&observer);
            let scope = Arc::new(scope);
            match prepare(&scope, broker).await {
                Ok(()) => {}
                Err(error) => wrong.push(error.to_string()),
            }
            let health = HealthCell::default();
            if unhandled.contains(name) {
                health.update(|health| health.state = SubscriptionState::Paused);
            }
            if let Some(handlers) = handlers.remove(name) {
                plans.push(Plan {
                    scope: Arc::clone(&scope),
                    broker: Arc::clone(broker),
                    handlers,
                    service: config.service.clone(),
                    health: health.clone(),
                    threads,
                });
            }
            let broker = Arc::clone(broker);
            subscriptions.insert(name.clone(), Subscription { scope, broker, health });
        }
        if !wrong.is_empty() {
            return Err(Error::Broker(wrong.join("\n")));
        }
        let root = Root::new(plans).start();
        let (stop, stopping) = watch::channel(false);
        let (end, ended) = watch::channel(None);
        let grace = config.service.shutdown_grace;
        let inner = Inner {
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
        };
        let service = Service { inner: Arc::new(inner) };
        let watcher = watch.then(|| reload::watch(&service.inner)).flatten();
        let inner = Arc::clone(&service.inner);
        let life = async move {
            let _watcher = watcher;
            let attended = attend_all(keepers.values().cloned().collect());
            tokio::select! {
                () = attended => {}
                () = signals::wait_for_stop(stopping, signals) => {}
            }
            telemetry::stopping(grace);
            let left = inner.root.send(StopAll { grace }).await.unwrap_or(0);
            for broker in inner.brokers.values() {
                broker.close().await;
            }
            keepers.values().for_each(|seat| seat.stop());
            telemetry::stopped(left);
            end.send_replace(Some(Stop { left }));
        };
        Ok((service, life))
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
        let problems: Vec<String> = missing.chain(unknown).collect();
        if problems.is_empty() { Ok(()) } else { Err(Error::Mismatch(problems.join("\n"))) }
    }
}

/// Connects every broker that is configured; each is tried for `service.startup_max`.
async fn connect_all(
    config: &Config,
    clock: Clock,
) -> Result<BTreeMap<String, Arc<dyn Broker>>, Error> {
    let mut brokers = BTreeMap::new();
    for (name, settings) in &config.brokers {
        let broker = broker_of(name, settings, config, clock)?;
        let patience = config.service.startup_max;
        let connected = tokio::time::timeout(patience, connect(name, broker.as_ref())).await;
        let failed = match connected {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => {
                let last = match broker.state() {
                    BrokerState::Disconnected(why) => why,
                    BrokerState::Connected | BrokerState::Blocked(_) => String::from("no answer"),
                };
                Some(format!("not reached within service.startup_max ({patience:?}): {last}"))
            }
        };
        if let Some(failed) = failed {
            let users: Vec<&str> = config
                .subscriptions
                .iter()
                .filter(|(_, settings)| settings.broker == *name)
                .map(|(name, _)| name.as_str())
                .collect();
            let users = users.join(", ");
            return Err(Error::Broker(format!(
                "broker `{name}` (of subscription {users}): {failed}"
            )));
        }
        brokers.insert(name.clone(), broker);
    }
    Ok(brokers)
}

async fn connect(name: &str, broker: &dyn Broker) -> Result<(), BrokerError> {
    let mut delays = Schedule::default();
    loop {
        match broker.connect().await {
            Ok(()) => return Ok(()),
            Err(error) if error.fault == Fault::Refused => return Err(error),
            Err(error) => telemetry::connecting(name, &error),
        }
        tokio::time::sleep(delays.next_delay()).await;
    }
}

fn broker_of(
    name: &str,
    settings: &config::Broker,
    config: &Config,
    clock: Clock,
) -> Result<Arc<dyn Broker>, Error> {
    let _ = (name, config);
    match settings.kind {
        BrokerKind::Memory => Ok(Arc::new(MemoryBroker::with_clock(clock))),
        #[cfg(feature = "rabbitmq")]
        BrokerKind::Rabbitmq => {
            let service = &config.service.name;
            let broker = crate::broker::rabbitmq::RabbitBroker::new(name, settings, service);
            let broker =
                broker.map_err(|error| Error::Broker(format!("broker `{name}`: {error}")))?;
            Ok(Arc::new(broker))
        }
        #[allow(unreachable_patterns)]
        kind => Err(Error::Mismatch(format!(
            "broker `{name}` is of kind {kind:?}, which this build does not contain; enable the \
             feature of that name"
        ))),
    }
}

fn scope_of(
    name: &str,
    settings: &config::Subscription,
    config: &Config,
    broker: &Arc<dyn Broker>,
    stores: &BTreeMap<String, Locks>,
    metrics: &Metrics,
    clock: Clock,
) -> Scope {
    let retries = Retries::of(settings, config);
    let kind = config.brokers.get(&settings.broker).map(|broker| broker.kind).unwrap_or_default();
    let settings = Arc::new(settings.clone());
    let name: Arc<str> = name.into();
    let source = Source {
        name: Arc::clone(&name),
        settings: Arc::clone(&settings),
        waits: retries.steps().as_slice().to_vec(),
        service: config.service.name.as_str().into(),
    };
    let publisher = Publisher::new(broker.publisher());
    let locks = settings.lock.as_ref().and_then(|lock| stores.get(&lock.store)).cloned();
    let guards = guards_of(&name, &settings, stores);
    Scope {
        metrics: metrics.of(&name),
        delivery: Arc::new(DeliveryScope { subscription: Arc::clone(&name), publisher }),
        name,
        source: ArcSwap::from_pointee(source),
        key_source: settings.key_source(kind),
        type_source: settings.type_source(kind),
        settings,
        retries: ArcSwap::from_pointee(retries),
        clock,
        consumer: consumer_name(&config.service.name).into(),
        guards,
        locks,
        store_is_down: AtomicBool::new(false),
        observer: None,
    }
}

fn guards_of(
    name: &Arc<str>,
    settings: &config::Subscription,
    stores: &BTreeMap<String, Locks>,
) -> Guards {
    let claims = settings.idempotency.as_ref().and_then(|claims| {
        let store = stores.get(&claims.store)?.clone();
        Some(ClaimRules { store, lease: claims.lease, keep: claims.keep })
    });
    let locks = settings.lock.as_ref().and_then(|lock| {
        let policy = LockPolicy {
            lease: lock.lease,
            wait: lock.wait,
            fair: lock.fair,
            hold_max: Some(lock.hold_max),
        };
        Some((stores.get(&lock.store)?.clone(), policy))
    });
    Guards::new(Arc::clone(name), claims, locks)
}

/// Starts the keeper of every store that is configured.
async fn start_stores(
    config: &Config,
    threads: bool,
) -> Result<BTreeMap<String, Arc<KeeperSeat>>, Error> {
    let mut keepers = BTreeMap::new();
    let holder = consumer_name(&config.service.name);
    for (name, settings) in &config.stores {
        let failed = |error: StoreError| Error::Store(format!("store `{name}`: {error}"));
        let store = store_of(name, settings)?;
        let seat = KeeperSeat::start(name, store, &holder, threads).await.map_err(failed)?;
        keepers.insert(name.clone(), Arc::new(seat));
    }
    Ok(keepers)
}

fn store_of(name: &str, settings: &config::Store) -> Result<Arc<dyn Store>, Error> {
    match settings.kind {
        StoreKind::Memory => Ok(Arc::new(MemoryStore::new())),
        #[cfg(feature = "redis")]
        StoreKind::Redis => {
            let failed = |error: StoreError| Error::Store(format!("store `{name}`: {error}"));
            let store = RedisStore::new(redis_settings(name, settings)?).map_err(failed)?;
            Ok(Arc::new(store))
        }
        #[cfg(not(feature = "redis"))]
        StoreKind::Redis => Err(Error::Mismatch(format!(
            "store `{name}` is in Redis, which this build does not contain; enable the feature `redis`"
        ))),
    }
}

#[cfg(feature = "redis")]
fn redis_settings(name: &str, settings: &config::Store) -> Result<RedisSettings, Error> {
    let url = settings.url.as_ref().map(config::Url::expose).unwrap_or_default();
    let read = |file: &PathBuf| {
        std::fs::read(file).map_err(|error| {
            Error::Store(format!("store `{name}`: reading {}: {error}", file.display()))
        })
    };
    let tls = settings.tls.clone().unwrap_or_default();
    let identity = match (&tls.cert, &tls.key) {
        (Some(cert), Some(key)) => Some((read(cert)?, read(key)?)),
        _ => None,
    };
    Ok(RedisSettings {
        ca: tls.ca.as_ref().map(read).transpose()?,
        identity,
        insecure: tls.insecure,
        deadline: settings.deadline,
        strict: settings.strict,
        ..RedisSettings::new(name, url)
    })
}

async fn prepare(scope: &Scope, broker: &Arc<dyn Broker>) -> Result<(), Error> {
    let source = scope.source.load_full();
    let findings = broker.prepare(&source).await;
    let findings = findings.map_err(|error| Error::starting(scope.name(), &error))?;
    for finding in findings {
        telemetry::finding(scope.name(), &finding);
    }
    Ok(())
}

/// Service, host and process, for whoever reads a dead letter.
fn consumer_name(service: &str) -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname");
    let host = host.ok().or_else(|| std::env::var("HOSTNAME").ok()).unwrap_or_default();
    format!("{service}@{}/{}", host.trim(), std::process::id())
}

>>>>>>> b2f4adf (Guards end when their lane is lost, a doomed message asks its claim first, and the lock keeper has an address)
impl Inner {
    /// Stops the subscriptions, then the connections; how many handlers were left running.
    async fn shut_down(&self) -> usize {
        let grace = self.config.service.shutdown_grace;
        telemetry::stopping(grace);
        let left = self.root.send(StopAll { grace }).await.unwrap_or(0);
        for broker in self.brokers.values() {
            broker.close().await;
        }
        left
    }

    /// Whether waits that are missing may be declared for a subscription.
    pub(crate) fn may_declare(&self, subscription: &str) -> bool {
        let settings = self.config.subscriptions.get(subscription);
        settings.is_some_and(|settings| settings.topology == Topology::Declare)
    }
}
