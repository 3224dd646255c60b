//! What `--idempotent` and `--lock` put into the configuration.

use std::time::Duration;

use redeliver::config::{Config, Idempotency, Lock, OnDuplicate, Store, StoreKind, Url};

use crate::options::SUBSCRIPTION;

/// The store's name in the configuration.
const STORE: &str = "guards";

/// How long the messages of a process that was killed are held back.
const LEASE: Duration = Duration::from_secs(5);

/// The guards that were asked for.
pub(crate) struct Guards {
    pub(crate) idempotent: bool,
    pub(crate) lock: bool,
    pub(crate) redis: Option<String>,
}

impl Guards {
    pub(crate) fn put_into(self, config: &mut Config, is_in_memory: bool) {
        let Some(subscription) = config.subscriptions.get_mut(SUBSCRIPTION) else { return };
        if self.idempotent {
            let store = STORE.to_owned();
            subscription.idempotency = Some(Idempotency {
                store,
                // An id that another process, or an earlier run, handled is accounted for too.
                on_duplicate: OnDuplicate::Call,
                lease: LEASE,
                ..Idempotency::default()
            });
        }
        if self.lock {
            let (store, key) = (STORE.to_owned(), "/repository".parse().expect("a pointer"));
            subscription.lock = Some(Lock { store, key, lease: LEASE, ..Lock::default() });
        }
        if self.idempotent || self.lock {
            config.stores.insert(STORE.to_owned(), store(self.redis, is_in_memory));
        }
    }
}

/// Several processes need one Redis; within one process its memory will do.
fn store(redis: Option<String>, is_in_memory: bool) -> Store {
    match redis {
        None if is_in_memory => Store { kind: StoreKind::Memory, ..Store::default() },
        redis => {
            let url = redis.unwrap_or_else(|| String::from("redis://127.0.0.1:6379"));
            Store { kind: StoreKind::Redis, url: Some(Url::new(url)), ..Store::default() }
        }
    }
}
