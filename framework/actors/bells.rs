//! Wakes parked messages before they are due.
//!
//! Owns the waiting for what they wait for. Whoever is never woken comes out when it is due.

use tokio::task::{AbortHandle, JoinSet};

use super::parking::Number;
use crate::store::Woken;

/// The bells of one consumer's parked messages.
#[derive(Default)]
pub(super) struct Bells(JoinSet<Number>);

/// Rings for one parked message, until it is dropped.
pub(super) struct Bell(AbortHandle);

impl Bells {
    /// Rings for `number` when `woken` completes.
    pub(super) fn hang(&mut self, number: Number, woken: Woken) -> Bell {
        Bell(self.0.spawn_local(async move {
            woken.woken().await;
            number
        }))
    }

    /// The next that is rung for; `None` while there are no bells.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn rung(&mut self) -> Option<Number> {
        loop {
            // One that was taken down says nothing.
            if let Ok(number) = self.0.join_next().await? {
                return Some(number);
            }
        }
    }
}

impl Drop for Bell {
    fn drop(&mut self) {
        self.0.abort();
    }
}
