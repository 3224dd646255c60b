//! A message on its way to the retrier, or in its hands.
//!
//! Owns that its consumer hears of it exactly once: that it was carried, or that it was not, whatever becomes of the
//! retrier. Carries nothing itself.

use std::time::Duration;

use actix::prelude::*;
use tokio::sync::mpsc;

use super::shared::News;
use crate::pipeline::{Epitaph, Fault, Work};

/// Why a message is carried away.
#[derive(Clone)]
pub(super) enum Errand {
    /// An attempt was made and counts; the next one after this wait.
    Retry(Duration, Fault),
    /// Nothing counts; back after this wait.
    Defer(Duration),
    /// The rest of a wait that was told before.
    WaitOn(Duration),
    /// To the dead letters.
    Bury(Epitaph),
    /// It may have ended a process: to be handled alone.
    Suspect,
}

/// Messages to carry.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Carry {
    pub(super) loads: Vec<Load>,
}

/// A message and why it is carried; in a box until its consumer hears of it. A channel makes room for 32 of what it
/// carries when it is made, which without the box would be 3 KiB more for each lane.
pub(super) type Parcel = Box<(Work, Errand)>;

/// A message to carry, and who hears of it.
pub(super) struct Load {
    /// Until its consumer was told.
    held: Option<Parcel>,
    is_confirmed: bool,
    done: mpsc::UnboundedSender<News>,
}

impl Load {
    pub(super) fn new(work: Work, errand: Errand, done: mpsc::UnboundedSender<News>) -> Self {
        Self { held: Some(Box::new((work, errand))), is_confirmed: false, done }
    }

    /// What is carried, and why.
    pub(super) fn held(&mut self) -> (&mut Work, &Errand) {
        let (work, errand) = &mut **self.held.as_mut().expect("only its end takes it");
        (work, errand)
    }

    /// The broker has the copy: whatever happens from here on, the original can go.
    pub(super) fn confirm(&mut self) {
        self.is_confirmed = true;
    }

    /// Waits until nobody wants to hear of it any more.
    pub(super) async fn forgotten(&self) {
        self.done.closed().await;
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        if let Some(held) = self.held.take() {
            let news = match self.is_confirmed {
                true => News::Carried(held),
                false => News::NotCarried(held),
            };
            let _ = self.done.send(news);
        }
    }
}
