//! Whether the service works, and why not: what `/healthz` and `/readyz` answer.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;

/// A picture of the service's health.
///
/// ```
/// # actix::System::new().block_on(async {
/// # use redeliver::{Service, config::Config};
/// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
/// # let service = Service::builder(config).without_handler("orders").start().await?;
///
/// let health = service.health();
/// let status = if health.ready { 200 } else { 503 };
/// println!("{status} {}", serde_json::to_string(&health)?);
/// assert_eq!(health.reasons, Vec::<String>::new());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
#[derive(Clone, Debug, Serialize)]
pub struct Health {
    /// The process is worth keeping: false when only a restart can help.
    pub live: bool,
    /// Every subscription consumes, is paused because somebody said so, or has no handler here.
    pub ready: bool,
    /// Why it is not ready, a sentence each.
    pub reasons: Vec<String>,
    /// Every subscription by name.
    pub subscriptions: BTreeMap<String, SubscriptionHealth>,
    /// Every broker by name, and what is wrong with it.
    pub brokers: BTreeMap<String, Option<String>>,
    /// Every store by name, and what is wrong with it.
    pub stores: BTreeMap<String, Option<String>>,
}

/// The health of one subscription.
///
/// ```
/// use redeliver::{Delivery, Handled, SubscriptionState};
///
/// async fn ship(_: Delivery<u32>) -> Handled { Ok(()) }
/// # use redeliver::{Service, config::Config, testing::TestService};
/// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
/// let test = TestService::start(Service::builder(config).subscribe("orders", ship))?;
/// let health = test.service().health();
/// let orders = &health.subscriptions["orders"];
/// assert_eq!((&orders.state, orders.breaker_open), (&SubscriptionState::Running, false));
/// assert!(orders.lanes.values().all(Option::is_none), "nothing is wrong with any lane");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default, Serialize)]
pub struct SubscriptionHealth {
    /// What it is doing.
    pub state: SubscriptionState,
    /// Every lane by name, and what is wrong with it.
    pub lanes: BTreeMap<String, Option<String>>,
    /// Its breaker is open: nearly everything failed, and it waits for its dependency.
    pub breaker_open: bool,
    /// The store of its guards does not answer, and consuming waits for it; with what it said.
    pub store: Option<String>,
    /// What was last wrong with copies to its waits and dead letters.
    pub copies: Option<String>,
}

/// What a subscription is doing.
///
/// ```
/// use redeliver::SubscriptionState;
///
/// let given_up = SubscriptionState::Failed("more than 5 restarts in 30s".to_owned());
/// assert_eq!(serde_json::to_string(&given_up)?, r#"{"failed":"more than 5 restarts in 30s"}"#);
/// assert_eq!(serde_json::to_string(&SubscriptionState::Running)?, r#""running""#);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SubscriptionState {
    /// Not consuming yet.
    #[default]
    Starting,
    /// Consuming.
    Running,
    /// Held by `pause`.
    Paused,
    /// Prepared, and left to others: `without_handler` says that nothing of it is consumed here.
    Unhandled,
    /// Given up until it is resumed; with the reason.
    Failed(String),
    /// Stopped with the service.
    Stopped,
}

/// Where the actors write a subscription's health.
#[derive(Clone, Default)]
pub(crate) struct HealthCell(Arc<Mutex<SubscriptionHealth>>);

impl HealthCell {
    pub(crate) fn update(&self, change: impl FnOnce(&mut SubscriptionHealth)) {
        change(&mut self.lock());
    }

    pub(crate) fn read(&self) -> SubscriptionHealth {
        self.lock().clone()
    }

    pub(crate) fn has_failed_copies(&self) -> bool {
        self.lock().copies.is_some()
    }

    fn lock(&self) -> MutexGuard<'_, SubscriptionHealth> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SubscriptionHealth {
    /// Notes what is wrong with a lane, if that is known at all.
    pub(crate) fn note_lane(&mut self, lane: &str, wrong: Option<String>) {
        if let Some(known) = self.lanes.get_mut(lane) {
            *known = wrong;
        }
    }

    /// Why it does not consume, if it should.
    fn complaint(&self) -> Option<String> {
        match &self.state {
            SubscriptionState::Starting => Some(String::from("is starting")),
            SubscriptionState::Failed(why) => Some(why.clone()),
            SubscriptionState::Stopped => Some(String::from("is stopped")),
            SubscriptionState::Paused | SubscriptionState::Unhandled => None,
            SubscriptionState::Running if self.breaker_open => {
                Some(String::from("nearly everything fails: its breaker is open"))
            }
            SubscriptionState::Running => {
                let down = |(lane, wrong): (&String, &Option<String>)| {
                    wrong.as_ref().map(|wrong| format!("lane {lane} is down: {wrong}"))
                };
                let store = || self.store.as_ref().map(|why| format!("its store is down: {why}"));
                let copies = || self.copies.clone();
                self.lanes.iter().find_map(down).or_else(store).or_else(copies)
            }
        }
    }
}

impl Health {
    pub(crate) fn of(
        subscriptions: BTreeMap<String, SubscriptionHealth>,
        brokers: BTreeMap<String, Option<String>>,
        stores: BTreeMap<String, Option<String>>,
        live: bool,
    ) -> Self {
        let brokers_down = brokers
            .iter()
            .filter_map(|(name, wrong)| Some(format!("broker {name}: {}", wrong.as_ref()?)));
        let stores_down = stores
            .iter()
            .filter_map(|(name, wrong)| Some(format!("store {name}: {}", wrong.as_ref()?)));
        let complaints = subscriptions
            .iter()
            .filter_map(|(name, health)| Some(format!("{name}: {}", health.complaint()?)));
        let reasons: Vec<String> = brokers_down.chain(stores_down).chain(complaints).collect();
        Self { live, ready: live && reasons.is_empty(), reasons, subscriptions, brokers, stores }
    }
}
