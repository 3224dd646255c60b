//! The documents and sample configurations say what is so.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use redeliver::config::{
    Batch, Broker, Config, Idempotency, Lock, Retry, Service, Store, Subscription,
};

const FULL: &str = include_str!("../config/full.toml");
const REFERENCE: &str = include_str!("../docs/configuration.md");

#[test]
fn every_sample_configuration_can_be_read() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
    let mut read = 0;
    for entry in folder.read_dir().expect("config/ is there") {
        let path = entry.expect("config/ can be listed").path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            let no_environment: [(&str, &str); 0] = [];
            Config::load_all_with(&[&path], no_environment)
                .unwrap_or_else(|problems| panic!("{problems}"));
            read += 1;
        }
    }
    assert!(read >= 2, "only {read} files in config/");
}

#[test]
fn the_full_configuration_says_the_defaults() {
    let config = Config::from_toml(FULL).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(config.service, Service::default());
    assert_eq!(config.retry["standard"], Retry::default());
    for broker in config.brokers.into_values() {
        let required = Broker {
            kind: broker.kind,
            url: broker.url.clone(),
            tls: broker.tls.clone(),
            ..Broker::default()
        };
        assert_eq!(broker.tls.clone().unwrap_or_default(), Default::default());
        assert_eq!(broker, required);
    }
    for store in config.stores.into_values() {
        assert_eq!(store, Store { kind: store.kind, url: store.url.clone(), ..Store::default() });
    }
    for subscription in config.subscriptions.into_values() {
        let idempotency = subscription
            .idempotency
            .clone()
            .map(|given| Idempotency { store: given.store, ..Idempotency::default() });
        let lock = subscription.lock.clone().map(|given| Lock {
            store: given.store,
            key: given.key,
            ..Lock::default()
        });
        let required = Subscription {
            broker: subscription.broker.clone(),
            queue: subscription.queue.clone(),
            topics: subscription.topics.clone(),
            group: subscription.group.clone(),
            idempotency,
            lock,
            ..Subscription::default()
        };
        assert_eq!(subscription, required);
    }
    assert_eq!(
        Batch::default(),
        Batch { size: 64.try_into().expect("64 is not zero"), wait: Duration::from_millis(100) }
    );
}

#[test]
fn what_is_commented_out_in_the_full_configuration_can_be_said() {
    // Each pair excludes the other, so each is tried alone.
    for line in FULL.lines().filter(|line| line.starts_with("# ") && key_of(line).is_some()) {
        let key = key_of(line).expect("a line with a key was chosen");
        if key.ends_with("_file") || ["password", "pattern", "cert", "key"].contains(&key) {
            continue;
        }
        let text = FULL.replace(line, &line[2..]);
        Config::from_toml(&text).unwrap_or_else(|problems| panic!("{key}: {problems}"));
    }
}

#[test]
fn every_key_of_the_full_configuration_is_in_the_reference() {
    let keys: BTreeSet<&str> = FULL.lines().filter_map(key_of).collect();
    assert!(keys.len() > 70, "only {} keys were found", keys.len());
    let missing: Vec<&&str> =
        keys.iter().filter(|key| !REFERENCE.contains(&format!("`{key}`"))).collect();
    assert!(missing.is_empty(), "docs/configuration.md does not explain {missing:?}");
}

#[test]
fn every_key_of_the_structs_is_in_the_full_configuration() {
    // A wrong key makes the loader list all that a table knows.
    let keys: BTreeSet<&str> = FULL.lines().filter_map(key_of).collect();
    for table in ["service", "brokers.a", "brokers.a.tls", "stores.a", "subscriptions.a", "retry.a"]
    {
        let problems = Config::from_toml(&format!("[{table}]\nzzzzzzzzzzzz = 1\n"))
            .expect_err("the key is unknown")
            .to_string();
        let line = problems
            .lines()
            .find(|line| line.contains("is no key of this table"))
            .expect("the key is refused");
        for known in line.split('`').skip(1).step_by(2) {
            let in_one_line = [
                "brokers",
                "stores",
                "subscriptions",
                "tls",
                "properties",
                "batch",
                "breaker",
                "idempotency",
                "lock",
            ];
            assert!(
                keys.contains(known) || in_one_line.contains(&known),
                "config/full.toml lacks {known} of [{table}]"
            );
        }
    }
}

#[test]
fn the_sample_of_an_error_is_what_is_printed() {
    let sample = |fence: &str| {
        let (_, rest) = REFERENCE
            .split_once(fence)
            .unwrap_or_else(|| panic!("docs/configuration.md lacks {fence}"));
        rest.split_once("\n```").map(|(sample, _)| sample.to_owned()).expect("the sample ends")
    };
    let folder = tempfile::tempdir().expect("a folder can be made");
    let path = folder.path().join("orders.toml");
    std::fs::write(&path, sample("<!-- wrong -->\n```toml\n")).expect("a file can be written");
    let problems =
        Config::load_all_with(&[&path], [("REDELIVER__SUBSCRIPTIONS__ORDERS__TIMEOUT", "30")])
            .expect_err("it is wrong");
    let printed = problems.to_string().replace(&path.display().to_string(), "orders.toml");
    assert_eq!(printed, sample("<!-- printed -->\n```text\n"), "\n{printed}\n");
}

/// The key that a line of TOML sets, also behind a `#`.
fn key_of(line: &str) -> Option<&str> {
    let line = line.strip_prefix("# ").unwrap_or(line);
    let (key, _) = line.split_once(" = ")?;
    let plain = !key.is_empty() && key.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    plain.then_some(key)
}
