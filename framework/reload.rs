//! Changes retry policies while the service runs.
//!
//! Owns what may change: the retry tables. A policy is swapped as a whole after the same
//! validation as at start, and after every wait it needs is there; else the old one stays.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;

use crate::broker::Source;
use crate::config::Config;
use crate::error::Error;
use crate::pipeline::Retries;
use crate::service::{Inner, Subscription};
use crate::telemetry;

/// Editors and orchestrators replace a file in several steps; after so long it is whole.
const QUIET: Duration = Duration::from_millis(200);

/// Puts the retry tables in the service's files in force.
pub(crate) async fn from_files(inner: &Inner) -> Result<(), Error> {
    if inner.files.is_empty() {
        return Err(Error::Mismatch(String::from(
            "the service was not made from files; hand the new configuration to `reload_with`",
        )));
    }
    let config = Config::load_all(&inner.files)?;
    with(inner, &config).await?;
    let tables = waiting_for_restart(&inner.config, &config);
    if !tables.is_empty() {
        telemetry::reload_incomplete(&tables.join(", "));
    }
    Ok(())
}

/// Puts the retry tables of `config` in force: all of them, or none.
pub(crate) async fn with(inner: &Inner, config: &Config) -> Result<(), Error> {
    let config = merged(&inner.config, config);
    // As a whole: a policy that is sound by itself may not fit the subscription that runs.
    config.check()?;
    let mut swaps = Vec::new();
    for (name, subscription) in &inner.subscriptions {
        let Some(settings) = config.subscriptions.get(name) else { continue };
        let retries = Retries::of(settings, &config);
        let source = prepare(inner, name, subscription, &retries).await?;
        swaps.push((subscription, retries, source));
    }
    for (subscription, retries, source) in swaps {
        subscription.scope.source.store(Arc::new(source));
        subscription.scope.retries.store(Arc::new(retries));
    }
    Ok(())
}

/// The configuration that runs with the retry tables of `new`, and the policies that its subscriptions name there.
fn merged(running: &Config, new: &Config) -> Config {
    let mut config = Config { retry: new.retry.clone(), ..running.clone() };
    for (name, settings) in &mut config.subscriptions {
        if let Some(changed) = new.subscriptions.get(name) {
            settings.retry.clone_from(&changed.retry);
        }
    }
    config
}

/// The tables that differ otherwise, which a reload leaves as they are.
fn waiting_for_restart(running: &Config, new: &Config) -> Vec<String> {
    let now = merged(running, new);
    let service = (now.service != new.service).then(|| String::from("service"));
    service
        .into_iter()
        .chain(differing("brokers", &now.brokers, &new.brokers))
        .chain(differing("stores", &now.stores, &new.stores))
        .chain(differing("subscriptions", &now.subscriptions, &new.subscriptions))
        .collect()
}

fn differing<T: PartialEq>(
    kind: &str,
    now: &BTreeMap<String, T>,
    new: &BTreeMap<String, T>,
) -> Vec<String> {
    let names: BTreeSet<&String> = now.keys().chain(new.keys()).collect();
    let differing = names.into_iter().filter(|name| now.get(*name) != new.get(*name));
    differing.map(|name| format!("{kind}.{name}")).collect()
}

/// Sees to it that every wait which `retries` needs is there.
async fn prepare(
    inner: &Inner,
    name: &str,
    subscription: &Subscription,
    retries: &Retries,
) -> Result<Source, Error> {
    let old = subscription.scope.source.load_full();
    let missing = |wait: &&Duration| !old.waits.contains(wait);
    let missing: Vec<Duration> =
        retries.steps().as_slice().iter().filter(missing).copied().collect();
    // Messages may still be in waits that the new policy does not use.
    let mut waits: Vec<Duration> = old.waits.iter().chain(&missing).copied().collect();
    waits.sort_unstable();
    let source = Source { waits, ..Source::clone(&old) };
    if missing.is_empty() {
        return Ok(source);
    }
    if !inner.may_declare(name) {
        return Err(Error::Mismatch(format!(
            "subscription `{name}`: the new policy needs waits of {missing:?} at the broker, which \
             may not be declared (topology); create them and restart, or keep to {:?}",
            old.waits
        )));
    }
    let prepared = subscription.broker.prepare(&source).await;
    prepared.map_err(|error| Error::starting(name, &error))?;
    Ok(source)
}

/// What tells that a file changed; dropped, it tells no more.
pub(crate) struct Watch {
    _watcher: RecommendedWatcher,
    changes: mpsc::Receiver<()>,
}

/// Watches the folders of these files.
pub(crate) fn watch(files: &[PathBuf]) -> Result<Watch, Error> {
    if files.is_empty() {
        return Err(Error::Mismatch(String::from(
            "the service was not made from files, so there is nothing to watch; make it by \
             `Service::from_file`, or leave .watch() out and call `reload_with`",
        )));
    }
    let failed = |error: notify::Error| {
        let files: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
        Error::Mismatch(format!(
            "watching {}: {error}; raise the system's limit of watches (fs.inotify), or leave .watch() out and call \
             `reload`",
            files.join(", ")
        ))
    };
    let (changed, changes) = mpsc::channel(1);
    let names: Vec<PathBuf> =
        files.iter().filter_map(|file| file.file_name().map(Into::into)).collect();
    let mut watcher = notify::recommended_watcher(move |event| {
        if concerns(event, &names) {
            // One change that is waiting stands for all.
            let _ = changed.try_send(());
        }
    })
    .map_err(failed)?;
    for file in files {
        let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new("."));
        watcher.watch(folder, RecursiveMode::NonRecursive).map_err(failed)?;
    }
    Ok(Watch { _watcher: watcher, changes })
}

/// Whether an event is about one of these files. A Kubernetes volume changes a link beside the file.
fn concerns(event: notify::Result<notify::Event>, names: &[PathBuf]) -> bool {
    let is_ours = |path: &PathBuf| {
        let ours = |name: &OsStr| name == "..data" || names.iter().any(|ours| ours == name);
        path.file_name().is_some_and(ours)
    };
    event.is_ok_and(|event| !event.kind.is_access() && event.paths.iter().any(is_ours))
}

/// Reloads the service's files whenever one of them changed, for as long as the service is there.
pub(crate) async fn follow(inner: Weak<Inner>, mut watch: Watch) {
    while watch.changes.recv().await.is_some() {
        tokio::time::sleep(QUIET).await;
        while watch.changes.try_recv().is_ok() {}
        let Some(inner) = inner.upgrade() else { return };
        let files: Vec<String> =
            inner.files.iter().map(|file| file.display().to_string()).collect();
        match from_files(&inner).await {
            Ok(()) => telemetry::reloaded(&files.join(", ")),
            Err(error) => telemetry::reload_refused(&files.join(", "), &error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUNS: &str = "[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"\n\
                        [retry.standard]\ndelay_min = \"1s\"\n";

    fn check(change: impl FnOnce(String) -> String, tables: &[&str]) {
        let read = |text: &str| Config::from_toml(text).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(waiting_for_restart(&read(RUNS), &read(&change(RUNS.to_owned()))), tables);
    }

    #[test]
    fn what_needs_a_restart_is_named_by_its_table() {
        check(|text| text, &[]);
        check(|text| text.replace("\"1s\"", "\"2s\"") + "[retry.slow]\n", &[]);
        let other_policy = |text: String| {
            text.replace("broker = \"main\"", "broker = \"main\"\nretry = \"slow\"")
                + "[retry.slow]\n"
        };
        check(other_policy, &[]);
        let more = |text: String| {
            let text =
                text.replace("[subscriptions.orders]", "[subscriptions.orders]\nin_flight_max = 7");
            text + "[service]\nname = \"other\"\n[stores.main]\nkind = \"memory\"\n"
        };
        check(more, &["service", "stores.main", "subscriptions.orders"]);
        let renamed = |text: String| text.replace("subscriptions.orders", "subscriptions.bills");
        check(renamed, &["subscriptions.bills", "subscriptions.orders"]);
    }
}
