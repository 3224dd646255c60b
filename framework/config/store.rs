//! The tables `[stores.NAME]`: where locks and claims are kept.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::{Secret, Tls, Url, table, units};

/// One store of shared state.
///
/// ```
/// use std::time::Duration;
/// use redeliver::config::{Config, StoreKind};
///
/// let config = Config::from_toml(r#"
///     [stores.main]
///     kind = "redis"
///     url = "redis-sentinel://redis-1:26379,redis-2:26379/main"
///     deadline = "500ms"
///     strict = true
///     prefix = "shop"
/// "#)?;
/// let store = &config.stores["main"];
/// assert_eq!((store.kind, store.deadline), (StoreKind::Redis, Duration::from_millis(500)));
/// assert_eq!(store.prefix, "shop");
/// # Ok::<(), redeliver::config::Problems>(())
/// ```
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Store {
    /// Which kind of store it is; a file must say so.
    pub kind: StoreKind,
    /// `redis://host:port/db`, `redis-sentinel://host,host/master` or `redis-cluster://host,host`;
    /// `rediss` in place of `redis` for TLS.
    pub url: Option<Url>,
    /// A file whose text is the url; read once, when the configuration is loaded, into `url`.
    pub url_file: Option<PathBuf>,
    /// The password of the url's user; loading puts it into `url`.
    pub password: Option<Secret>,
    /// A file whose text is the password; loading puts it into `url`.
    pub password_file: Option<PathBuf>,
    /// Certificates; without it the system's roots serve `rediss`.
    #[serde(deserialize_with = "table::option")]
    pub tls: Option<Tls>,
    /// How long one call may take before the store counts as down; 1s.
    #[serde(deserialize_with = "units::duration")]
    pub deadline: Duration,
    /// Refuses to start on settings of the server that lose locks or claims, instead of warning; false.
    pub strict: bool,
    /// How many replicas must have a lock or claim before it is believed; 0.
    pub replicas_min: u32,
    /// What every key of it begins with: services that share a server and nothing else have their own; redeliver.
    pub prefix: String,
}

/// The stores that can keep locks and claims.
///
/// ```
/// use redeliver::config::{Config, StoreKind};
///
/// let config = Config::from_toml("stores.main = { kind = \"memory\" }")?;
/// assert_eq!(config.stores["main"].kind, StoreKind::Memory);
/// # Ok::<(), redeliver::config::Problems>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StoreKind {
    /// In this process: shared with no other, and lost with it.
    #[default]
    Memory,
    /// Redis, 7 or later.
    Redis,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            kind: StoreKind::default(),
            url: None,
            url_file: None,
            password: None,
            password_file: None,
            tls: None,
            deadline: Duration::from_secs(1),
            strict: false,
            replicas_min: 0,
            prefix: String::from("redeliver"),
        }
    }
}
