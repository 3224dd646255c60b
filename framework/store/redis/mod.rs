//! Locks and claims in Redis: one server, Sentinel, or Cluster, with or without TLS.
//!
//! Owns the mapping of the seam to scripts. Each question is one script, so that reading, deciding
//! and writing are one step; each is safe to repeat, so that a lost answer can be asked for again.
//! Never trusts a local clock for a lease: the scripts read the server's.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ::redis::Value;
use async_trait::async_trait;

use super::{
    ClaimAnswer, ClaimAsk, ClaimKey, Ending, LockAnswer, LockAsk, Owner, Store, StoreError,
    StoreFault, StoreState, Wakes,
};
use crate::config;

mod address;
mod beat;
mod check;
mod faults;
mod idempotency;
mod keys;
mod link;
mod lock;
mod part;
mod replicas;
mod reply;
mod rounds;
mod scripts;
mod sentinels;
mod together;
mod wakes;

use address::Address;
use beat::Beat;
use idempotency::ask_to_end;
use keys::Keys;
use link::Link;
use lock::milliseconds;
use part::Part;
use replicas::Replicas;
use rounds::{First, Form, Lone, Rounds};
use scripts::SCRIPTS;

/// A probe is worth nothing afterwards.
const PROBE_MILLISECONDS: u64 = 10_000;

/// What a Redis store is made of.
///
/// ```
/// use std::time::Duration;
/// use redeliver::config::Config;
/// use redeliver::store::redis::RedisSettings;
///
/// let config = Config::from_toml(r#"
///     [stores.main]
///     kind = "redis"
///     url = "redis://:hunter2@127.0.0.1:6379"
///     deadline = "300ms"
///     prefix = "shop"
/// "#)?;
/// let settings = RedisSettings::of("main", &config.stores["main"])?;
/// assert_eq!((settings.deadline, settings.prefix.as_str()), (Duration::from_millis(300), "shop"));
/// assert!(!format!("{settings:?}").contains("hunter2"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct RedisSettings {
    /// The store's name, for messages.
    pub name: String,
    /// `redis://`, `redis-sentinel://HOST,HOST/MASTER`, `redis-cluster://HOST,HOST`, each with
    /// `rediss` for TLS and `USER:PASSWORD@` in front of the hosts.
    pub url: String,
    /// The certificate authority, in PEM; the system's without it.
    pub ca: Option<Vec<u8>>,
    /// Our own certificate and its key, in PEM.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
    /// Whoever answers is believed to be the server.
    pub insecure: bool,
    /// No call takes longer.
    pub deadline: Duration,
    /// Settings that lose locks or claims are an error.
    pub strict: bool,
    /// How many replicas must have a lock or claim before it is believed.
    pub replicas_min: u32,
    /// What every key begins with.
    pub prefix: String,
}

impl RedisSettings {
    /// With the defaults for everything but the address.
    ///
    /// ```
    /// use std::time::Duration;
    /// use redeliver::store::redis::RedisSettings;
    ///
    /// let settings = RedisSettings::new("main", "redis://127.0.0.1:6379");
    /// assert_eq!((settings.deadline, settings.replicas_min), (Duration::from_secs(1), 0));
    /// assert_eq!(settings.prefix, "redeliver", "services with one prefix share their locks");
    /// ```
    pub fn new(name: impl Into<String>, url: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            url: url.into(),
            ca: None,
            identity: None,
            insecure: false,
            deadline: Duration::from_secs(1),
            strict: false,
            replicas_min: 0,
            prefix: "redeliver".into(),
        }
    }

    /// From the table `[stores.NAME]`; reads its certificates.
    ///
    /// ```
    /// use redeliver::config::{Store, StoreKind, Url};
    /// use redeliver::store::redis::RedisSettings;
    ///
    /// let mut store = Store { kind: StoreKind::Redis, strict: true, ..Store::default() };
    /// let error = RedisSettings::of("main", &store).expect_err("nobody knows where it is");
    /// assert_eq!(error.to_string(), "cannot use store `main`: it has no url; add one");
    ///
    /// store.url = Some(Url::new("redis://127.0.0.1:6379"));
    /// assert!(RedisSettings::of("main", &store).is_ok_and(|settings| settings.strict));
    /// ```
    ///
    /// # Errors
    /// [`StoreFault::Invalid`] for an address that is missing or a file that cannot be read.
    pub fn of(name: &str, store: &config::Store) -> Result<Self, StoreError> {
        let invalid = |what: String| {
            StoreError::new(StoreFault::Invalid, format!("cannot use store `{name}`: {what}"))
        };
        let url = store.url.as_ref().ok_or_else(|| invalid("it has no url; add one".into()))?;
        let read = |key: &str, file: &Option<PathBuf>| {
            let text = file.as_ref().map(|file| {
                std::fs::read(file).map_err(|error| {
                    invalid(format!("tls.{key} `{}` cannot be read: {error}", file.display()))
                })
            });
            text.transpose()
        };
        let mut settings = Self::new(name, url.expose());
        if let Some(tls) = &store.tls {
            settings.ca = read("ca", &tls.ca)?;
            settings.identity = read("cert", &tls.cert)?.zip(read("key", &tls.key)?);
            settings.insecure = tls.insecure;
        }
        settings.deadline = store.deadline;
        settings.strict = store.strict;
        settings.replicas_min = store.replicas_min;
        settings.prefix.clone_from(&store.prefix);
        Ok(settings)
    }
}

impl std::fmt::Debug for RedisSettings {
    /// The address may hold a password, the identity is a key: neither is shown.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisSettings")
            .field("name", &self.name)
            .field("deadline", &self.deadline)
            .field("strict", &self.strict)
            .field("replicas_min", &self.replicas_min)
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

/// A store in Redis; connects at its first use, and again for ever.
///
/// ```
/// use redeliver::store::redis::{RedisSettings, RedisStore};
/// use redeliver::store::{Store, StoreFault};
///
/// let store = RedisStore::new(RedisSettings::new("main", "redis://127.0.0.1:6379"))?;
/// assert_eq!(store.kind(), "redis");         // not connected before its first use
///
/// let wrong = RedisStore::new(RedisSettings::new("main", "http://127.0.0.1:6379"));
/// assert_eq!(wrong.err().map(|error| error.fault), Some(StoreFault::Invalid));
/// # Ok::<(), redeliver::store::StoreError>(())
/// ```
pub struct RedisStore {
    link: Link,
    rounds: AllRounds,
    keys: Keys,
    wakes: Wakes,
    listener: wakes::Listener,
    replicas: Option<Replicas>,
    name: String,
    strict: bool,
    replicas_min: u32,
}

/// What every message asks for, of as many as ask at the same time. What messages ask keeps one beat; locks that are asked for
/// alone wait for nobody.
struct AllRounds {
    beat: Beat,
    claims: Rounds,
    ends: Rounds,
    admits: Rounds,
    finishes: Rounds,
    acquires: Rounds,
    releases: Rounds,
}

impl AllRounds {
    fn new(link: &Link, keys: &Keys) -> Self {
        let beat = Beat::new();
        let beat_of = |lone: &Option<Lone>| lone.as_ref().map_or(beat.clone(), |_| Beat::new());
        let asks = |what, code, keys, rules, lone| {
            let beat = beat_of(&lone);
            let form = Form { what, code, keys, rules, first: First::Seen, lone };
            Rounds::new(link.clone(), form, beat)
        };
        let ends = |what, code, of, rules, lone| {
            let beat = beat_of(&lone);
            let first = First::Channels(keys.channels().to_owned());
            Rounds::new(link.clone(), Form { what, code, keys: of, rules, first, lone }, beat)
        };
        let acquire = Lone { code: &SCRIPTS.acquire_lone, has_rules: true };
        let release = Lone { code: &SCRIPTS.release_lone, has_rules: false };
        Self {
            claims: asks("claim a message id", &SCRIPTS.claims, 1, 4, None),
            ends: ends("end a claim", &SCRIPTS.ends, 1, 3, None),
            admits: asks("ask for a claim and a lock", &SCRIPTS.admits, 2, 7, None),
            finishes: ends("end a claim and release a lock", &SCRIPTS.finishes, 2, 3, None),
            acquires: asks("acquire a lock", &SCRIPTS.acquires, 3, 3, Some(acquire)),
            releases: ends("release a lock", &SCRIPTS.releases, 3, 0, Some(release)),
            beat: beat.clone(),
        }
    }
}

impl RedisStore {
    /// Reads the settings; does not connect.
    ///
    /// ```
    /// use redeliver::store::redis::{RedisSettings, RedisStore};
    ///
    /// let opened = |url: &str| RedisStore::new(RedisSettings::new("main", url)).map(drop);
    /// assert!(opened("redis-sentinel://one:26379,two:26379/main").is_ok());
    /// assert!(opened("redis-cluster://one:6379,two:6379").is_ok());
    /// let error = opened("redis-sentinel://one:26379,two:26379").expect_err("no master is named");
    /// assert!(error.text.contains("store `main`"), "{error}");
    /// ```
    ///
    /// # Errors
    /// [`StoreFault::Invalid`] for an address or certificate that
    /// cannot be used.
    pub fn new(settings: RedisSettings) -> Result<Self, StoreError> {
        let address = Arc::new(Address::parse(&settings)?);
        let link = Link::new(&settings, address.clone());
        let wakes = Wakes::default();
        let replicas =
            (settings.replicas_min > 0).then(|| Replicas::new(&settings, link.another()));
        let keys = Keys::new(&settings.prefix);
        Ok(Self {
            rounds: AllRounds::new(&link, &keys),
            keys,
            listener: wakes::Listener::new(address, &settings.prefix, wakes.clone()),
            link,
            wakes,
            replicas,
            strict: settings.strict,
            replicas_min: settings.replicas_min,
            name: settings.name,
        })
    }

    /// True where two keys may be in one script.
    fn is_one_server(&self) -> bool {
        !self.link.is_cluster()
    }
}

#[async_trait]
impl Store for RedisStore {
    async fn claim_and_acquire(
        &self,
        claim: &ClaimAsk<'_>,
        lock: &LockAsk<'_>,
    ) -> Result<(ClaimAnswer, Option<LockAnswer>), StoreError> {
        if !self.is_one_server() || self.replicas.is_some() {
            return self.one_after_the_other(claim, lock).await;
        }
        if lock.waits {
            self.listener.listen();
        }
        let part = Part::admit(&self.keys, claim, lock);
        let answer = self.rounds.admits.ask(self.link.until(), part).await?;
        let (claimed, locked) = match answer {
            // Both are new, and have one fence.
            Value::Int(fence) => (Value::Int(fence), Value::Int(fence)),
            both => reply::array("ask for a claim and a lock", both).map(<(_, _)>::from)?,
        };
        let locked = match locked {
            Value::Nil => None,
            locked => Some(reply::lock(locked)?),
        };
        let claimed = reply::claim(claimed, claim.attempts)?;
        self.listen_for_end(claim, &claimed);
        Ok((claimed, locked))
    }

    async fn end_and_release(
        &self,
        claim: &ClaimKey,
        claim_owner: &Owner,
        ending: &Ending<'_>,
        keep: Duration,
        lock: &str,
        lock_owner: &Owner,
    ) -> Result<bool, StoreError> {
        if !self.is_one_server() {
            use super::{IdempotencyStore, LockStore};
            let (ended, released) = tokio::join!(
                self.end(claim, claim_owner, ending, keep),
                self.release(lock, lock_owner)
            );
            return released.and(ended);
        }
        let (claim, lock) = ((claim, claim_owner), (lock, lock_owner));
        let keep = milliseconds(keep);
        let part = |said| Part::finish(&self.keys, claim, ending, keep, lock, said);
        let what = "end a claim and release a lock";
        ask_to_end(what, &self.rounds.finishes, self.link.until(), part).await
    }

    fn gather(&self) -> Box<dyn Send> {
        Box::new(self.rounds.beat.gather())
    }

    async fn check(&self) -> Result<Vec<String>, StoreError> {
        check::check(self).await
    }

    /// By a write: a server that is full, or became a replica, still answers questions. By what every message asks for. And by
    /// its replicas, where they count.
    async fn probe(&self) -> Result<(), StoreError> {
        let mut command = ::redis::cmd("SET");
        command.arg(self.keys.probe()).arg(1).arg("PX").arg(PROBE_MILLISECONDS);
        self.link.send("write a probe", &command).await?;
        check::try_scripts(self).await?;
        self.link.is_well();
        match &self.replicas {
            Some(replicas) => replicas.probe(self.link.until(), self.keys.probe().as_bytes()).await,
            None => Ok(()),
        }
    }

    fn state(&self) -> StoreState {
        match (self.link.state(), &self.replicas) {
            (StoreState::Up, Some(replicas)) => replicas.state(),
            (state, _) => state,
        }
    }

    fn drive_on(&self, runtime: &tokio::runtime::Handle) {
        self.link.drive_on(runtime);
        self.listener.drive_on(runtime);
        if let Some(replicas) = &self.replicas {
            replicas.drive_on(runtime);
        }
    }

    fn kind(&self) -> &'static str {
        "redis"
    }
}

impl RedisStore {
    /// Cluster keeps the two keys on different servers, and a claim that replicas do not have must
    /// not be followed by a lock.
    async fn one_after_the_other(
        &self,
        claim: &ClaimAsk<'_>,
        lock: &LockAsk<'_>,
    ) -> Result<(ClaimAnswer, Option<LockAnswer>), StoreError> {
        let until = self.link.until();
        let answer = self.claim_until(until, claim).await?;
        if !matches!(answer, ClaimAnswer::Granted(_)) {
            return Ok((answer, None));
        }
        match self.acquire_until(until, lock).await {
            Ok(locked) => Ok((answer, Some(locked))),
            Err(error) => {
                // Best effort: whoever asked gives it back in the background as well.
                let (key, owner, keep) = (claim.key, claim.owner, claim.keep);
                let _ = self.end_until(until, key, owner, &Ending::Release, keep).await;
                Err(error)
            }
        }
    }
}
