//! The table `[service]`: the process as a whole.

use std::time::Duration;

use serde::Deserialize;

use super::units;

/// The process: its name, how long it may take to start and stop, and its budget of restarts.
///
/// ```
/// use std::time::Duration;
/// use redeliver::config::Config;
///
/// let config = Config::from_toml(r#"
///     [service]
///     name = "billing"
///     shutdown_grace = "10s"
/// "#)?;
/// assert_eq!(config.service.name(), "billing");
/// assert_eq!(config.service.shutdown_grace, Duration::from_secs(10));
/// assert_eq!(Config::default().service.shutdown_grace, Duration::from_secs(25));
/// # Ok::<(), redeliver::config::Problems>(())
/// ```
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Service {
    /// What logs, dead letters and brokers call this service, if not by the executable's name. Also part of what names its
    /// claims.
    pub name: Option<String>,
    /// How long a stop waits for handlers that run, before they are cancelled and their messages returned; 25s.
    #[serde(deserialize_with = "units::duration")]
    pub shutdown_grace: Duration,
    /// How long an unreachable broker or store is tried at start before that is an error; 30s. Once connected: for ever.
    #[serde(deserialize_with = "units::duration")]
    pub startup_max: Duration,
    /// How many restarts within `restarts_window` are borne; 5.
    #[serde(deserialize_with = "units::whole")]
    pub restarts_max: u32,
    /// The time in which restarts are counted; 30s.
    #[serde(deserialize_with = "units::duration")]
    pub restarts_window: Duration,
    /// What happens when the budget of restarts is spent; pause.
    pub on_restarts_spent: OnRestartsSpent,
}

/// What happens when an actor dies more often than `restarts_max` allows.
///
/// ```
/// use redeliver::config::{Config, OnRestartsSpent};
///
/// let config = Config::from_toml("service = { restarts_max = 3, on_restarts_spent = \"exit\" }")?;
/// assert_eq!(config.service.on_restarts_spent, OnRestartsSpent::Exit);
/// # Ok::<(), redeliver::config::Problems>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnRestartsSpent {
    /// The subscription turns unhealthy and pauses; its messages stay with the broker.
    #[default]
    Pause,
    /// The process stops, so that whatever started it can start it anew.
    Exit,
}

impl Service {
    /// What logs, dead letters and brokers call this service: its name, or the executable's.
    ///
    /// ```
    /// use redeliver::config::Service;
    ///
    /// let named = Service { name: Some("billing".to_owned()), ..Service::default() };
    /// assert_eq!(named.name(), "billing");
    /// assert!(!Service::default().name().is_empty(), "what the executable is called");
    /// ```
    pub fn name(&self) -> String {
        self.name.clone().unwrap_or_else(executable)
    }

    /// What this service's claims are kept under: `subscription` alone, unless the service was named.
    ///
    /// An executable's name is not taken for one: it changes with a new build or deployment, which must not forget what was
    /// handled.
    pub(crate) fn claims_of(&self, subscription: &str) -> String {
        match &self.name {
            None => subscription.to_owned(),
            // No subscription has a slash in its name, so no two pairs are taken for one.
            Some(name) => format!("{name}/{subscription}"),
        }
    }
}

impl Default for Service {
    fn default() -> Self {
        Self {
            name: None,
            shutdown_grace: Duration::from_secs(25),
            startup_max: Duration::from_secs(30),
            restarts_max: 5,
            restarts_window: Duration::from_secs(30),
            on_restarts_spent: OnRestartsSpent::default(),
        }
    }
}

fn executable() -> String {
    let path = std::env::current_exe().ok();
    let stem = path.as_deref().and_then(|path| path.file_stem()).and_then(|stem| stem.to_str());
    stem.unwrap_or("redeliver").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_name_that_was_given_is_in_the_scope_of_claims() {
        let named = |name: &str| Service { name: Some(name.to_owned()), ..Service::default() };
        assert_eq!(Service::default().claims_of("orders"), "orders");
        assert_eq!(named("billing").claims_of("orders"), "billing/orders");
        // The executable may get another name later; the one that was given stays.
        let same = executable();
        assert_eq!(named(&same).claims_of("orders"), format!("{same}/orders"));
        assert_eq!(Service::default().name(), same);
    }
}
