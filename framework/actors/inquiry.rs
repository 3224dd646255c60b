//! Asks the other consumers before a redelivery is taken for a message that nobody has.
//!
//! A lane that is gone is not always known to be: its consumer may have no permit to ask it with, or the broker may
//! deliver its messages over another lane before it says why. Owns the batch that waits for the answers, for a moment
//! at the most. Only redeliveries are asked for, and only where another consumer could have them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::desk::Desk;
use super::orphans::Identity;
use super::shared::News;
use crate::broker::{BrokerError, Fault, Lane, LaneEnd, Received};

/// For how long it is asked at the most. What is not an orphan then is a message of its own.
const ASKED_MAX: Duration = Duration::from_secs(2);
/// How soon it is asked again while another consumer has the message in hand.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(50);

/// Whether one of these is in hand elsewhere.
pub(super) struct Inquiry {
    redelivered: Vec<Received>,
    unanswered: AtomicUsize,
    in_hand: AtomicBool,
}

/// A batch that waits for an answer; it is with the desk.
pub(super) struct Asking {
    inquiry: Arc<Inquiry>,
    until: Instant,
    again_at: Option<Instant>,
}

impl Desk {
    /// Whether what was received waits until the other consumers were asked.
    pub(super) fn ask_first(&mut self) -> bool {
        if self.suspects || self.shared.has_one_consumer() {
            return false;
        }
        let until = self.now + ASKED_MAX;
        self.asking = self.ask(until);
        self.asking.is_some()
    }

    fn ask(&self, until: Instant) -> Option<Asking> {
        // Hardly ever any: nothing is copied before one is found.
        let redelivered = self
            .received
            .iter()
            .filter(|received| received.envelope.is_redelivered() && !self.knows(received));
        let redelivered: Vec<Received> = redelivered.cloned().collect();
        if redelivered.is_empty() {
            return None;
        }
        let (unanswered, in_hand) = (AtomicUsize::new(0), AtomicBool::new(false));
        let inquiry = Arc::new(Inquiry { redelivered, unanswered, in_hand });
        let asked = self.shared.ask_others(self.index, &inquiry);
        (asked > 0).then_some(Asking { inquiry, until, again_at: None })
    }

    fn knows(&self, received: &Received) -> bool {
        let mut orphans = self.shared.orphans.borrow_mut();
        let identity = Identity::of(received, &self.shared.scope.settings.id);
        identity.is_some_and(|identity| orphans.find(received, &identity, self.now).is_some())
    }

    /// Takes in what waited, as soon as the answers are there.
    pub(super) fn ask_on(&mut self) {
        let Some(asking) = &mut self.asking else { return };
        let is_late = self.now >= asking.until;
        if !is_late && asking.inquiry.unanswered.load(Ordering::Relaxed) > 0 {
            return;
        }
        if !is_late && asking.inquiry.in_hand.load(Ordering::Relaxed) {
            let again_at = *asking.again_at.get_or_insert(self.now + ASK_AGAIN_AFTER);
            if self.now < again_at {
                return;
            }
            let until = asking.until;
            self.asking = self.ask(until);
            if self.asking.is_some() {
                return;
            }
        }
        self.asking = None;
        self.take_in();
    }

    /// When to look again at what waits for answers.
    pub(super) fn ask_on_at(&self) -> Option<Instant> {
        self.asking.as_ref().map(|asking| asking.again_at.unwrap_or(asking.until))
    }

    /// What others than the handlers have to say; why the lane is gone, if that is found out over it.
    pub(super) fn hear(&mut self, news: News, lane: Option<&dyn Lane>) -> Option<LaneEnd> {
        match news {
            News::Carried(held) => self.is_carried(held.0),
            News::NotCarried(held) => {
                let (work, errand) = *held;
                self.is_not_carried(work, errand);
            }
            News::CameOut(orphan) => {
                self.now = Instant::now();
                self.inherit(orphan);
                self.run_errands();
            }
            News::Asked(inquiry) => return self.answer(inquiry, lane).then(gone),
        }
        None
    }

    /// Answers another consumer; true if this one's lane is gone, and the answer waits until that was seen to.
    fn answer(&mut self, inquiry: Arc<Inquiry>, lane: Option<&dyn Lane>) -> bool {
        if lane.is_some_and(|lane| lane.is_lost() == Some(true)) {
            self.asked.push(inquiry);
            return true;
        }
        let source = &self.shared.scope.settings.id;
        let identity = |received: &Received| Identity::of(received, source);
        let held: Vec<Received> = match lane {
            // Also what waits for answers itself, and is in nobody's ledger yet.
            Some(_) => {
                let waiting = self.received.iter().cloned();
                self.ledger
                    .held()
                    .into_iter()
                    .map(|(_, received)| received)
                    .chain(waiting)
                    .collect()
            }
            None => Vec::new(),
        };
        let is_held = |asked: &Received| {
            let same_body = |held: &&Received| held.envelope.body() == asked.envelope.body();
            let mut alike = held.iter().filter(same_body);
            alike.any(|held| identity(held).is_some_and(|held| Some(held) == identity(asked)))
        };
        if inquiry.redelivered.iter().any(is_held) {
            inquiry.in_hand.store(true, Ordering::Relaxed);
        }
        self.shared.answered(&inquiry);
        false
    }

    /// Its lane is gone: nothing waits for answers, and those who asked find orphans.
    pub(super) fn ask_no_more(&mut self) {
        self.asking = None;
        for inquiry in std::mem::take(&mut self.asked) {
            self.shared.answered(&inquiry);
        }
    }
}

/// Why a lane ended that was found to be gone.
pub(super) fn gone() -> LaneEnd {
    let text = "its connection or channel is closed";
    LaneEnd::Lost(BrokerError::new(Fault::Unreachable, text))
}

impl Inquiry {
    /// Another consumer was asked.
    pub(super) fn note_asked(&self) {
        self.unanswered.fetch_add(1, Ordering::Relaxed);
    }

    /// An answer came; true if it was the last.
    pub(super) fn note_answered(&self) -> bool {
        self.unanswered.fetch_sub(1, Ordering::Relaxed) == 1
    }
}
