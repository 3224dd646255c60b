//! Changes retry policies while the service runs.
//!
//! Owns what may change: the retry tables. A policy is swapped as a whole after the same
//! validation as at start, and after every wait it needs is there; else the old one stays.

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
    with(inner, &config).await
}

/// Puts the retry tables of `config` in force: all of them, or none.
pub(crate) async fn with(inner: &Inner, config: &Config) -> Result<(), Error> {
    let mut swaps = Vec::new();
    for (name, subscription) in &inner.subscriptions {
        // What else changed in the subscription's table needs a restart; its policy may be another.
        let mut settings = subscription.scope.settings.as_ref().clone();
        if let Some(changed) = config.subscriptions.get(name) {
            settings.retry.clone_from(&changed.retry);
        }
        let retries = Retries::of(&settings, config);
        let source = prepare(inner, name, subscription, &retries).await?;
        swaps.push((subscription, retries, source));
    }
    for (subscription, retries, source) in swaps {
        subscription.scope.source.store(Arc::new(source));
        subscription.scope.retries.store(Arc::new(retries));
    }
    Ok(())
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

/// Watches the folders of the service's files, and reloads when one of them changed. Ends when
/// what it returns is dropped.
pub(crate) fn watch(inner: &Arc<Inner>) -> Option<RecommendedWatcher> {
    let (changed, changes) = mpsc::channel(1);
    let names: Vec<PathBuf> =
        inner.files.iter().filter_map(|file| file.file_name().map(Into::into)).collect();
    let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // A Kubernetes volume changes a link beside the file, so any event without a known name counts too.
        let ours = event.is_ok_and(|event| {
            !event.kind.is_access()
                && event.paths.iter().any(|path| {
                    path.file_name().is_some_and(|name| {
                        names.iter().any(|ours| ours == Path::new(name)) || name == "..data"
                    })
                })
        });
        if ours {
            // One change that is waiting stands for all.
            let _ = changed.try_send(());
        }
    });
    let mut watcher = watcher.ok()?;
    for file in &inner.files {
        let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
        watcher.watch(folder.unwrap_or(Path::new(".")), RecursiveMode::NonRecursive).ok()?;
    }
    actix_rt::spawn(follow(Arc::downgrade(inner), changes));
    Some(watcher)
}

async fn follow(inner: Weak<Inner>, mut changes: mpsc::Receiver<()>) {
    while changes.recv().await.is_some() {
        tokio::time::sleep(QUIET).await;
        while changes.try_recv().is_ok() {}
        let Some(inner) = inner.upgrade() else { return };
        let files: Vec<String> =
            inner.files.iter().map(|file| file.display().to_string()).collect();
        match from_files(&inner).await {
            Ok(()) => telemetry::reloaded(&files.join(", ")),
            Err(error) => telemetry::reload_refused(&files.join(", "), &error),
        }
    }
}
