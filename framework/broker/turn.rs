//! Whose turn it is to read the dead letters of a queue, where a reader hides what it holds from all others.
//!
//! Owns how long anyone waits for it: a second reader would take what it does not see for what is not there.

use std::sync::Arc;
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
            "the dead letters in `{queue}` are open in another reader of this process, which hides what it has read \
             from everybody; close its pages, or wait until the redrive or purge is done"
        );
        BrokerError::new(Fault::Other, text)
    })
}
