//! Makes the adapters and what each subscription shares. The only file that names an adapter.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::actors::KeeperSeat;
use crate::broker::memory::MemoryBroker;
use crate::broker::{Broker, BrokerError, BrokerState, Fault, Source};
use crate::clock::Clock;
use crate::config::{self, BrokerKind, Config, StoreKind};
use crate::error::Error;
use crate::message::DeliveryScope;
use crate::pipeline::guards::{ClaimRules, Guards, LateEnds};
use crate::pipeline::{Reason, Retries, Scope};
use crate::publisher::Publisher;
use crate::retry::Schedule;
use crate::store::memory::MemoryStore;
#[cfg(feature = "redis")]
use crate::store::redis::{RedisSettings, RedisStore};
use crate::store::{LockPolicy, Locks, Store, StoreError, StoreFault};
use crate::telemetry::{self, Counter, Metrics};

/// How long the start waits for a broker that no subscription needs.
const UNNEEDED_MAX: Duration = Duration::from_secs(3);

/// Every broker that is configured, by its name; none is connected yet.
pub(super) fn make_brokers(
    config: &Config,
    clock: Clock,
) -> Result<BTreeMap<String, Arc<dyn Broker>>, Error> {
    let brokers = config.brokers.iter();
    let made = brokers
        .map(|(name, settings)| Ok((name.clone(), broker_of(name, settings, config, clock)?)));
    made.collect()
}

/// Connects them; the names of those that are still to be sought. One of a subscription is tried for
/// `service.startup_max`, another once: without it only what publishes there fails, and is told so.
pub(super) async fn connect_all(
    brokers: &BTreeMap<String, Arc<dyn Broker>>,
    config: &Config,
) -> Result<Vec<String>, Error> {
    let mut away = Vec::new();
    let patience = config.service.startup_max;
    for (name, broker) in brokers {
        let is_needed = config.subscriptions.values().any(|it| it.broker == *name);
        let connected = match is_needed {
            true => connect_within(patience, name, broker.as_ref()).await.map(|()| true),
            false => connect_once(patience.min(UNNEEDED_MAX), broker.as_ref()).await,
        };
        if !connected.map_err(|why| unusable(name, config, &why))? {
            away.push(name.clone());
        }
    }
    Ok(away)
}

async fn connect_within(patience: Duration, name: &str, broker: &dyn Broker) -> Result<(), String> {
    let Ok(connected) = timeout(patience, connect(name, broker)).await else {
        let last = match broker.state() {
            BrokerState::Disconnected(why) => why,
            BrokerState::Connected | BrokerState::Blocked(_) => String::from("no answer"),
        };
        return Err(format!(
            "not reached within service.startup_max ({patience:?}): {last}; start it, correct brokers.{name}.url, or wait longer by service.startup_max"
        ));
    };
    connected.map_err(|error| error.to_string())
}

/// False if it is away; what it refuses, it will refuse again.
async fn connect_once(patience: Duration, broker: &dyn Broker) -> Result<bool, String> {
    match timeout(patience, broker.connect()).await {
        Ok(Err(error)) if error.fault == Fault::Refused => Err(error.to_string()),
        Ok(Err(_)) | Err(_) => Ok(false),
        Ok(Ok(())) => Ok(true),
    }
}

/// Seeks each broker that was away at the start, until it is there or the service stops.
pub(super) fn seek_all(
    away: Vec<String>,
    brokers: &BTreeMap<String, Arc<dyn Broker>>,
    stop: &watch::Receiver<bool>,
) {
    for name in away {
        let broker = Arc::clone(&brokers[&name]);
        actix_rt::spawn(seek(name, broker, stop.clone()));
    }
}

async fn seek(name: String, broker: Arc<dyn Broker>, mut stop: watch::Receiver<bool>) {
    let mut delays = Schedule::default();
    let sought = async {
        while let Err(error) = broker.connect().await {
            telemetry::connecting(&name, &error);
            tokio::time::sleep(delays.next_delay()).await;
        }
    };
    tokio::select! {
        // An error means that nobody can stop it any more: the service is gone.
        _ = stop.wait_for(|stop| *stop) => {}
        () = sought => {}
    }
}

/// An error that says whom it concerns.
fn unusable(broker: &str, config: &Config, why: &str) -> Error {
    let users = config.subscriptions.iter().filter(|(_, settings)| settings.broker == broker);
    let users: Vec<String> = users.map(|(name, _)| format!("`{name}`")).collect();
    let of = match users.as_slice() {
        [] => String::new(),
        [user] => format!(" (of subscription {user})"),
        users => format!(" (of subscriptions {})", users.join(", ")),
    };
    Error::Broker(format!("broker `{broker}`{of}: {why}"))
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
            let service = &config.service.name();
            let broker = crate::broker::rabbitmq::RabbitBroker::new(name, settings, service);
            Ok(Arc::new(broker.map_err(|error| unusable(name, config, &error.to_string()))?))
        }
        #[cfg(feature = "kafka")]
        BrokerKind::Kafka => {
            let service = &config.service.name();
            let broker = crate::broker::kafka::KafkaBroker::new(name, settings, service);
            Ok(Arc::new(broker.map_err(|error| unusable(name, config, &error.to_string()))?))
        }
        #[allow(unreachable_patterns)]
        kind => Err(Error::Mismatch(format!(
            "broker `{name}` is of kind {kind:?}, which this build does not contain; enable the \
             feature of that name"
        ))),
    }
}

pub(super) fn scope_of(
    name: &str,
    config: &Config,
    broker: &Arc<dyn Broker>,
    stores: &BTreeMap<String, Locks>,
    metrics: &Metrics,
    clock: Clock,
) -> Scope {
    let settings = &config.subscriptions[name];
    let retries = Retries::of(settings, config);
    let kind = config.brokers.get(&settings.broker).map(|broker| broker.kind).unwrap_or_default();
    let order_hold_max = retries.order_hold_max(settings.timeout);
    let settings = Arc::new(config::Subscription { order_hold_max, ..settings.clone() });
    let name: Arc<str> = name.into();
    let source = Source {
        name: Arc::clone(&name),
        settings: Arc::clone(&settings),
        waits: retries.steps().as_slice().to_vec(),
        service: config.service.name().into(),
    };
    let publisher = Publisher::new(broker.publisher());
    let locks = settings.lock.as_ref().and_then(|lock| stores.get(&lock.store)).cloned();
    let claims_of = config.service.claims_of(&name).into();
    let metrics = metrics.of(&name, Reason::ALL.map(Reason::as_str));
    let repeats = metrics.possible_duplicates.clone();
    let guards = guards_of(claims_of, &settings, stores, repeats);
    Scope {
        metrics,
        delivery: Arc::new(DeliveryScope {
            subscription: Arc::clone(&name),
            publisher,
            is_transactional: settings.delivery_guarantee
                == config::DeliveryGuarantee::Transactional,
        }),
        name,
        source: ArcSwap::from_pointee(source),
        key_source: settings.key_source(kind),
        type_source: settings.type_source(kind),
        settings,
        retries: ArcSwap::from_pointee(retries),
        clock,
        began: tokio::time::Instant::now(),
        consumer: consumer_name(&config.service.name()).into(),
        guards,
        locks,
        is_held_back: AtomicBool::new(false),
        store_is_down: AtomicBool::new(false),
        observer: None,
    }
}

fn guards_of(
    claims_of: Arc<str>,
    settings: &config::Subscription,
    stores: &BTreeMap<String, Locks>,
    repeats: Counter,
) -> Guards {
    let claims = settings.idempotency.as_ref().and_then(|claims| {
        let store = stores.get(&claims.store)?.clone();
        let late = LateEnds::new(repeats);
        Some(ClaimRules { store, lease: claims.lease, keep: claims.keep, late })
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
    Guards::new(claims_of, claims, locks)
}

/// Starts the keeper of every store that is configured; each is tried for `service.startup_max`.
pub(super) async fn start_stores(
    config: &Config,
    threads: bool,
) -> Result<BTreeMap<String, Arc<KeeperSeat>>, Error> {
    let mut keepers = BTreeMap::new();
    let holder = consumer_name(&config.service.name());
    let patience = config.service.startup_max;
    for (name, settings) in &config.stores {
        let failed = |error: StoreError| {
            let tried = match error.fault {
                StoreFault::Down => {
                    format!("not reached within service.startup_max ({patience:?}): ")
                }
                _ => String::new(),
            };
            Error::Store(format!("store `{name}`: {tried}{error}"))
        };
        let store = store_of(name, settings)?;
        let seat = KeeperSeat::start(name, store, &holder, patience, threads);
        keepers.insert(name.clone(), Arc::new(seat.await.map_err(failed)?));
    }
    Ok(keepers)
}

fn store_of(name: &str, settings: &config::Store) -> Result<Arc<dyn Store>, Error> {
    match settings.kind {
        StoreKind::Memory => Ok(Arc::new(MemoryStore::new())),
        #[cfg(feature = "redis")]
        StoreKind::Redis => {
            let failed = |error: StoreError| Error::Store(format!("store `{name}`: {error}"));
            let store =
                RedisSettings::of(name, settings).and_then(RedisStore::new).map_err(failed)?;
            Ok(Arc::new(store))
        }
        #[cfg(not(feature = "redis"))]
        StoreKind::Redis => Err(Error::Mismatch(format!(
            "store `{name}` is in Redis, which this build does not contain; enable the feature `redis`"
        ))),
    }
}

pub(super) async fn prepare(scope: &Scope, broker: &Arc<dyn Broker>) -> Result<(), Error> {
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
