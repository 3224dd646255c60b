//! What building, starting or asking a service can fail with.

use crate::broker::BrokerError;
use crate::config::Problems;

/// Why a service could not be built, started or asked.
///
/// ```
/// use redeliver::{Error, Service, config::Config};
///
/// # actix::System::new().block_on(async {
/// let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
/// match Service::builder(config).start().await {
///     Err(Error::Mismatch(what)) => assert!(what.starts_with("subscription `orders` has no handler")),
///     _ => panic!("nobody handles `orders`"),
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The configuration is not usable.
    #[error(transparent)]
    Config(#[from] Problems),
    /// The code and the configuration do not fit each other.
    #[error("{0}")]
    Mismatch(String),
    /// A broker or one of its sources is not usable.
    #[error("{0}")]
    Broker(String),
    /// A store of locks and claims is not usable.
    #[error("{0}")]
    Store(String),
    /// There is no such thing in the configuration.
    #[error("there is no {what} `{name}` in the configuration; there is {known}")]
    Unknown {
        /// What was asked for: a broker, a store, a subscription.
        what: &'static str,
        /// How it was called.
        name: String,
        /// What there is.
        known: String,
    },
    /// Nothing of this subscription is consumed here, so that there is nothing to hold or to let go on.
    #[error(
        "subscription `{subscription}` has no handler in this service, so nothing of it is consumed here; \
         pause and resume it in the service that has .subscribe(\"{subscription}\", ..)"
    )]
    NoHandler {
        /// Its name.
        subscription: String,
    },
    /// What was asked for can never be done as it was asked.
    #[error("{0}")]
    Invalid(String),
    /// SIGTERM or Ctrl-C came before the service had started. What it had opened is closed again, and nothing was consumed: a
    /// program that ends now has done as it was told, and may exit with 0.
    #[error("a signal stopped the service before it had started; nothing was consumed")]
    Interrupted,
    /// The service is stopping, or has stopped.
    #[error("the service is stopping, or has stopped; build and start another one")]
    Stopped,
}

impl Error {
    pub(crate) fn unknown<'a>(
        what: &'static str,
        name: &str,
        known: impl Iterator<Item = &'a String>,
    ) -> Self {
        let known: Vec<String> = known.map(|name| format!("`{name}`")).collect();
        let known = if known.is_empty() { String::from("none") } else { known.join(", ") };
        Self::Unknown { what, name: name.to_owned(), known }
    }

    pub(crate) fn starting(subscription: &str, error: &BrokerError) -> Self {
        let (subject, error) = (format!("subscription `{subscription}`: "), error.to_string());
        // What an adapter attempted may be said with its subject.
        let subject = if error.starts_with(&subject) { "" } else { &subject };
        Self::Broker(format!("{subject}{error}"))
    }
}
