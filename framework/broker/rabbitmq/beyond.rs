//! Waits beyond those of a policy, which are declared when a message first needs one.
//!
//! Owns which of them are there, as far as this process knows: what it made, and what it found when it first looked.
//! Declares and counts nothing itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::connection::Link;
use super::topology;
use crate::broker::{BrokerError, Fault, Source};
use crate::config::Topology;
use crate::retry::WaitSteps;

/// The waits that are known, by the queue that they lead to.
#[derive(Default)]
pub(super) struct Beyond(Mutex<BTreeMap<String, Known>>);

#[derive(Clone, Default)]
struct Known {
    waits: BTreeSet<Duration>,
    /// It was looked for those that other processes made, and ours before a restart.
    looked: bool,
}

impl Beyond {
    /// Notes that this wait is there, where that is news.
    pub(super) fn note(&self, source: &Source, wait: Duration) {
        if source.waits.contains(&wait) {
            return;
        }
        self.with(source, |known| known.waits.extend([wait]));
    }

    /// Those that are known; looked for once, as the server writes a line for each that is not there.
    pub(super) async fn known(
        &self,
        link: &Link,
        source: &Source,
    ) -> Result<Vec<Duration>, BrokerError> {
        if !self.with(source, |known| known.looked) {
            let found = find(link, source).await?;
            self.with(source, |known| {
                known.looked = true;
                known.waits.extend(found);
            });
        }
        let known = self.with(source, |known| known.waits.clone());
        // A new policy may have made it one of its own.
        Ok(known.into_iter().filter(|wait| !source.waits.contains(wait)).collect())
    }

    fn with<T>(&self, source: &Source, work: impl FnOnce(&mut Known) -> T) -> T {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        work(known.entry(topology::queue_name(&source.settings).to_owned()).or_default())
    }
}

async fn find(link: &Link, source: &Source) -> Result<Vec<Duration>, BrokerError> {
    let mut found = Vec::new();
    let steps = WaitSteps::of(source.waits.iter().copied());
    let Some(steps) = steps.filter(|_| source.settings.topology == Topology::Declare) else {
        return Ok(found);
    };
    for wait in steps.standard_beyond() {
        match topology::count(link, &topology::wait_name(&source.settings, wait)).await {
            Ok(_) => found.push(wait),
            Err(error) if error.fault == Fault::Missing => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}
