//! Whose turn it is to read the dead letters of a queue or a group: a second reader would take what the first one holds for
//! what is not there, or note as there what the first one removes.
//!
//! Owns how long anyone waits for it.

#[cfg(feature = "kafka")]
use std::collections::BTreeMap;
use std::sync::Arc;
#[cfg(feature = "kafka")]
use std::sync::PoisonError;
use std::time::Duration;

use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::time::timeout;

use super::{BrokerError, Fault};

/// How long a reader waits for the one before it: what reads to the end is soon done with a few letters, and a page
/// that somebody looks at is not.
const TURN_MAX: Duration = Duration::from_secs(5);

/// Held by whoever reads.
pub(super) type Turn = OwnedMutexGuard<()>;

/// Waits until nobody else of this process reads the dead letters in `queue`.
pub(super) async fn turn(reading: Arc<Mutex<()>>, queue: &str) -> Result<Turn, BrokerError> {
    timeout(TURN_MAX, reading.lock_owned()).await.map_err(|_| {
        let text = format!(
            "the dead letters in `{queue}` are open in another reader of this process, and two would not know what the other \
             one holds or removes; close its pages, or wait until the redrive or purge is done"
        );
        BrokerError::new(Fault::Other, text)
    })
}

/// The turns of all groups of a connection.
#[cfg(feature = "kafka")]
#[derive(Default)]
pub(super) struct Turns(std::sync::Mutex<BTreeMap<String, Arc<Mutex<()>>>>);

#[cfg(feature = "kafka")]
impl Turns {
    pub(super) fn of(&self, name: &str) -> Arc<Mutex<()>> {
        let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(turns.entry(name.to_owned()).or_default())
    }
}
