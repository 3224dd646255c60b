//! Waits beyond those of a policy, which are declared when a message first needs one.
//!
//! Owns which of them are there, as far as this process knows: what it used, and what it found when it first looked.
//!
//! To look for a queue that is not there is an error in the logs of server and client, and most sources have none of
//! these. So each is bound to an exchange that nobody publishes to: as long as that is not in use, there is none. AMQP
//! tells whether it is by whether it may be deleted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use lapin::ExchangeKind;
use lapin::options::{ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions};
use lapin::types::FieldTable;

use super::connection::{Link, answer};
use super::topology::{self, short};
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
    /// Notes that this wait is there, which is none of the policies'.
    pub(super) fn note(&self, source: &Source, wait: Duration) {
        self.with(source, |known| known.waits.extend([wait]));
    }

    /// Whether this wait is none of the policies', and not known to be there.
    pub(super) fn is_new(&self, source: &Source, wait: Duration) -> bool {
        !source.waits.contains(&wait) && !self.with(source, |known| known.waits.contains(&wait))
    }

    /// Those that are known; looked for once.
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

/// The exchange that all of these are bound to.
fn mark(source: &Source) -> String {
    format!("{}.waits", topology::queue_name(&source.settings))
}

/// Declares one wait more, which no policy names.
pub(super) async fn declare(
    link: &Link,
    source: &Source,
    wait: Duration,
) -> Result<(), BrokerError> {
    let queue = topology::wait_queue(&source.settings, wait);
    topology::declare(link, source, &queue).await?;
    match bind(link, source, &queue.name).await {
        // Somebody looked in between, and it was not in use.
        Err(error) if error.fault == Fault::Missing => bind(link, source, &queue.name).await,
        bound => bound,
    }
}

async fn bind(link: &Link, source: &Source, queue: &str) -> Result<(), BrokerError> {
    let mark = mark(source);
    let attempt =
        format!("subscription `{}`: binding queue `{queue}` to exchange `{mark}`", source.name);
    let (_live, channel) = link.channel().await?;
    let (nothing, durable) = (FieldTable::default(), true);
    let options = ExchangeDeclareOptions { durable, ..ExchangeDeclareOptions::default() };
    let declaring =
        channel.exchange_declare(short(&mark)?, ExchangeKind::Direct, options, nothing.clone());
    answer(&attempt, declaring).await?;
    let (queue, key, options) = (short(queue)?, short(queue)?, QueueBindOptions::default());
    answer(&attempt, channel.queue_bind(queue, short(&mark)?, key, options, nothing)).await?;
    let _ = channel.close(200, "done".into()).await;
    Ok(())
}

async fn find(link: &Link, source: &Source) -> Result<Vec<Duration>, BrokerError> {
    let mut found = Vec::new();
    let steps = WaitSteps::of(source.waits.iter().copied());
    let Some(steps) = steps.filter(|_| source.settings.topology == Topology::Declare) else {
        return Ok(found);
    };
    if !is_marked(link, source).await? {
        return Ok(found);
    }
    for wait in steps.standard_beyond() {
        match topology::count(link, &topology::wait_name(&source.settings, wait)).await {
            Ok(_) => found.push(wait),
            Err(error) if error.fault == Fault::Missing => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// Whether anything is bound to the exchange. It is not there for anything else, and one that is not there is deleted
/// as well as any.
async fn is_marked(link: &Link, source: &Source) -> Result<bool, BrokerError> {
    let mark = mark(source);
    let attempt =
        format!("subscription `{}`: looking whether exchange `{mark}` is used", source.name);
    let (_live, channel) = link.channel().await?;
    let options = ExchangeDeleteOptions { if_unused: true, ..ExchangeDeleteOptions::default() };
    match answer(&attempt, channel.exchange_delete(short(&mark)?, options)).await {
        Ok(()) => {
            let _ = channel.close(200, "done".into()).await;
            Ok(false)
        }
        Err(error) if error.fault == Fault::Mismatch => Ok(true),
        // Whoever may not delete it has to look at each.
        Err(error) if error.fault == Fault::Refused => Ok(true),
        Err(error) => Err(error),
    }
}
