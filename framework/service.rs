//! A running service: the composition root.
//!
//! Owns how the parts are put together, started, asked and stopped; it alone names adapters.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use futures_util::future::join_all;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::actors::lock_keeper::LockKeeper;
use crate::actors::{KeeperSeat, Pause, ResumeOne, Root, StopAll};
use crate::broker::{Broker, BrokerState};
use crate::clock::Clock;
use crate::config::{Config, Topology};
use crate::dead_letters::DeadLetters;
use crate::error::Error;
use crate::health::{Health, HealthCell};
use crate::outside;
use crate::pipeline::Scope;
use crate::publisher::Publisher;
use crate::reload;
use crate::store::{Locks, StoreState};
use crate::telemetry::{self, Metrics};

mod adapters;
mod build;
mod sample;

pub use build::ServiceBuilder;

/// How long the connections may take to close, after the subscriptions have stopped.
const CLOSE_MAX: Duration = Duration::from_secs(5);

/// A running service. Cheap to clone; usable from any thread.
///
/// It runs on threads of its own until it is stopped, whether or not a handle is kept: **dropping the last one stops nothing**,
/// so that a program which needs none may let it go, and it goes on consuming. What ends it is [`stop`](Self::stop), which needs a
/// handle, or a signal, unless `.signals(false)`; whoever drops the last handle without signals can end it only with the
/// process, as by a crash: what ran comes again. Its async methods, and those of its
/// publishers and [`DeadLetters`], work in every runtime and in none, such as a plain `block_on`; within Tokio they take what is
/// there, whose timers must be enabled. Code that is not async publishes by
/// [`send_blocking`](crate::Publisher::send_blocking).
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
/// println!("{:?} messages are ready", service.depth("orders").await?.ready);
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
    /// It has a handler here.
    is_consumed: bool,
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
    /// went back to the broker. One that blocks its thread stands for all that run on it.
    pub left: usize,
}

impl Service {
    /// Begins a service with a configuration made by code.
    ///
    /// ```
    /// use redeliver::{Error, Service, config::Config};
    ///
    /// # actix::System::new().block_on(async {
    /// let ship = |_: redeliver::Delivery<u32>| async { Ok(()) };
    /// match Service::builder(Config::default()).subscribe("orders", ship).start().await {
    ///     Err(Error::Mismatch(why)) => assert!(why.starts_with("handler `orders` has no subscription"), "{why}"),
    ///     _ => panic!("an empty configuration has no `orders`"),
    /// }
    /// # });
    /// ```
    pub fn builder(config: Config) -> ServiceBuilder {
        ServiceBuilder::new(config, Vec::new())
    }

    /// Begins a service with the configuration in this file, and the environment over it.
    ///
    /// ```
    /// use redeliver::{Error, Service};
    ///
    /// # let path = std::env::temp_dir().join(format!("redeliver-from-file-{}.toml", std::process::id()));
    /// std::fs::write(&path, "[service]\nshutdown_grace = \"soon\"\n[subscriptions.orders]\nbroker = \"mian\"")?;
    /// match Service::from_file(&path) {
    ///     Err(Error::Config(problems)) => assert_eq!(problems.list().len(), 2, "{problems}"),
    ///     _ => panic!("there is no such time, and no such broker"),
    /// }
    /// # std::fs::remove_file(path)?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    /// Every problem of the configuration at once.
    pub fn from_file(path: impl AsRef<Path>) -> Result<ServiceBuilder, Error> {
        let path = path.as_ref();
        Ok(ServiceBuilder::new(Config::load(path)?, vec![path.to_owned()]))
    }

    /// A publisher to this broker of the configuration.
    ///
    /// ```
    /// # actix::System::new().block_on(async {
    /// # use redeliver::{Message, Service, config::Config};
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
    /// # let service = Service::builder(config).without_handler("orders").start().await?;
    ///
    /// service.publisher("main")?.send(Message::bytes("{}").to_queue("orders")).await?;
    /// let error = service.publisher("mian").err().expect("there is no such broker");
    /// assert_eq!(error.to_string(), "there is no broker `mian` in the configuration; there is `main`");
    /// # service.stop().await;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
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
    /// ```
    /// # actix::System::new().block_on(async {
    /// # use redeliver::{Service, config::Config};
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
    /// # let service = Service::builder(config).without_handler("orders").start().await?;
    ///
    /// assert!(service.dead_letters("orders")?.show("order-7").await?.is_none(), "it did not fail");
    /// assert!(service.dead_letters("ordres").is_err(), "there is no such subscription");
    /// # service.stop().await;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
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
    /// # let ship = |_: redeliver::Delivery<u32>| async { redeliver::Handled::Ok(()) };
    /// # let service = Service::builder(config).subscribe("orders", ship).start().await?;
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
    /// There is no such subscription, it has no handler here, or the service is stopping.
    pub async fn pause(&self, subscription: &str) -> Result<(), Error> {
        let grace = self.find_consumed(subscription)?.scope.settings.timeout;
        let pause = Pause { subscription: subscription.to_owned(), grace };
        match self.inner.root.send(pause).await {
            Ok(true) => Ok(()),
            Ok(false) | Err(_) => Err(Error::Stopped),
        }
    }

    /// Lets a subscription go on that was paused, or given up. A pause that is under way comes to its end first.
    ///
    /// ```
    /// use redeliver::{Delivery, Handled};
    ///
    /// async fn ship(_: Delivery<u32>) -> Handled { Ok(()) }
    /// # use redeliver::{Message, Service, config::Config, testing::TestService};
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
    /// let mut test = TestService::start(Service::builder(config).subscribe("orders", ship))?;
    /// let service = test.service();
    /// test.run(async move { service.pause("orders").await })?;
    /// test.publish("orders", Message::json(&7)?);
    /// assert!(test.log().is_empty(), "it waits at the broker");
    ///
    /// let service = test.service();
    /// test.run(async move { service.resume("orders").await })?;
    /// assert_eq!(test.log(), ["orders-1: attempt 1 handled"]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// There is no such subscription, it has no handler here, or the service is stopping.
    pub async fn resume(&self, subscription: &str) -> Result<(), Error> {
        self.find_consumed(subscription)?;
        match self.inner.root.send(ResumeOne(subscription.to_owned())).await {
            Ok(true) => Ok(()),
            Ok(false) | Err(_) => Err(Error::Stopped),
        }
    }

    /// Reads the configuration's files again and puts their retry tables in force.
    ///
    /// ```
    /// # actix::System::new().block_on(async {
    /// # use redeliver::Service;
    /// let path = std::env::temp_dir().join(format!("redeliver-reload-{}.toml", std::process::id()));
    /// std::fs::write(&path, "retry.standard = { delay_min = \"1s\" }")?;
    /// let service = Service::from_file(&path)?.signals(false).start().await?;
    ///
    /// std::fs::write(&path, "retry.standard = { delay_min = \"2s\" }")?;
    /// service.reload().await?;
    /// std::fs::write(&path, "retry.standard = { delay_min = \"1h\" }")?;
    /// let refused = service.reload().await.expect_err("it is above delay_max");
    /// assert!(refused.to_string().contains("retry.standard.delay_min"), "{refused}");
    /// # service.stop().await;
    /// # std::fs::remove_file(path)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    ///
    /// # Errors
    /// The new policy is not usable, or needs waits at the broker that may not be declared; the
    /// old one stays.
    pub async fn reload(&self) -> Result<(), Error> {
        outside::in_context(reload::from_files(&self.inner)).await
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
        outside::in_context(reload::with(&self.inner, config)).await
    }

    /// Whether it works, and why not.
    ///
    /// ```
    /// # actix::System::new().block_on(async {
    /// # use redeliver::{Service, config::Config};
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
    /// # let service = Service::builder(config).without_handler("orders").start().await?;
    ///
    /// use redeliver::SubscriptionState;
    ///
    /// let health = service.health();
    /// assert_eq!(health.subscriptions["orders"].state, SubscriptionState::Unhandled, "left to others");
    /// assert!(health.ready && health.brokers["main"].is_none(), "nothing is wrong with it");
    /// service.stop().await;
    /// assert!(!service.health().live);
    /// # service.stop().await;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
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
    /// waits, for at most a second, and at the same time each subscription what it holds, for at most 250 ms.
    ///
    /// What is not told in that time stays as it was: so `redeliver_in_flight`, `redeliver_parked`, `redeliver_carrying` and
    /// `redeliver_oldest_delivery_seconds` of a subscription whose handler blocks its thread, which answers nobody meanwhile.
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
        outside::in_context(sample::all(&self.inner)).await;
        self.inner.metrics.text()
    }

    /// How many messages of this subscription are where.
    ///
    /// ```
    /// use redeliver::{Delivery, Failure, Handled};
    ///
    /// async fn ship(order: Delivery<u32>) -> Handled {
    ///     if order.payload == 0 { Err(Failure::reject("no order 0")) } else { Err(Failure::retry("not yet")) }
    /// }
    /// # use redeliver::{Message, Service, config::Config, testing::TestService};
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"\n[retry.standard]\nin_process_max = \"0s\"")?;
    /// let mut test = TestService::start(Service::builder(config).subscribe("orders", ship))?;
    /// test.publish("orders", Message::json(&0)?);
    /// test.publish("orders", Message::json(&7)?);
    /// let service = test.service();
    /// let depth = test.run(async move { service.depth("orders").await })?;
    /// assert_eq!((depth.ready, depth.waiting, depth.dead), (Some(0), Some(1), Some(1)));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// There is no such subscription, or what the broker says.
    pub async fn depth(&self, subscription: &str) -> Result<crate::broker::Depth, Error> {
        let Subscription { broker, scope, .. } = self.find(subscription)?;
        let source = scope.source.load_full();
        let depth = outside::in_context(broker.depth(&source)).await;
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
    ///
    /// ```
    /// # actix::System::new().block_on(async {
    /// # use redeliver::{Service, config::Config};
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
    /// # let service = Service::builder(config).without_handler("orders").start().await?;
    ///
    /// use redeliver::Stop;
    ///
    /// assert_eq!(service.stop().await, Stop { left: 0 });
    /// assert_eq!(service.stop().await, Stop { left: 0 }, "as the first time");
    /// assert!(service.depth("orders").await.is_err(), "its connections are closed");
    /// # service.stop().await;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    pub async fn stop(&self) -> Stop {
        self.inner.stop.send_replace(true);
        self.stopped().await
    }

    /// Waits until the service has stopped, by [`stop`](Self::stop) or by a signal.
    ///
    /// ```
    /// # actix::System::new().block_on(async {
    /// # use redeliver::{Service, Stop, config::Config};
    /// # let service = Service::builder(Config::default()).start().await?;
    /// let handle = service.clone();
    /// actix::spawn(async move { handle.stop().await });        // in earnest: SIGTERM
    /// assert_eq!(service.stopped().await, Stop { left: 0 });
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
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

    /// A subscription that this service consumes.
    fn find_consumed(&self, name: &str) -> Result<&Subscription, Error> {
        let found = self.find(name)?;
        let none = || Error::NoHandler { subscription: name.to_owned() };
        found.is_consumed.then_some(found).ok_or_else(none)
    }

    #[cfg(feature = "testing")]
    pub(crate) fn inner(&self) -> &Inner {
        &self.inner
    }
}

/// All at once, and none for ever: one that is not there must not keep the process.
async fn close_all(brokers: &BTreeMap<String, Arc<dyn Broker>>) {
    join_all(brokers.values().map(|broker| timeout(CLOSE_MAX, broker.close()))).await;
}

impl Inner {
    /// Stops the subscriptions, then the connections; how many handlers were left running.
    async fn shut_down(&self) -> usize {
        let grace = self.config.service.shutdown_grace;
        telemetry::stopping(grace);
        let left = self.root.send(StopAll { grace }).await.unwrap_or(0);
        close_all(&self.brokers).await;
        left
    }

    /// Whether waits that are missing may be declared for a subscription.
    pub(crate) fn may_declare(&self, subscription: &str) -> bool {
        let settings = self.config.subscriptions.get(subscription);
        settings.is_some_and(|settings| settings.topology == Topology::Declare)
    }
}
