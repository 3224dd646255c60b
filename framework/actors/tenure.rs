//! For how long the work that a lane brought counts.
//!
//! Shared by a consumer and the pumps that work for it. Knows no message and no lane.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

/// From a lane's opening to its end.
#[derive(Debug, Default)]
pub(crate) struct Tenure {
    is_over: AtomicBool,
    is_revoked: AtomicBool,
    revoked: Notify,
}

impl Tenure {
    /// False once the lane is gone: nothing queued for a handler is begun any more.
    #[inline]
    pub(crate) fn is_open(&self) -> bool {
        !self.is_over.load(Ordering::Acquire)
    }

    /// The lane is gone; its messages come again, perhaps to this process: handlers go on.
    pub(super) fn end(&self) {
        self.is_over.store(true, Ordering::Release);
    }

    /// Somebody else has the lane: what its handlers still do, they do twice.
    pub(super) fn revoke(&self) {
        self.end();
        self.is_revoked.store(true, Ordering::Release);
        self.revoked.notify_waiters();
    }

    /// Waits until somebody else has the lane.
    pub(super) async fn revoked(&self) {
        let mut revoked = std::pin::pin!(self.revoked.notified());
        // Before the look, so that a revocation in between is not missed.
        revoked.as_mut().enable();
        if !self.is_revoked.load(Ordering::Acquire) {
            revoked.await;
        }
    }
}
