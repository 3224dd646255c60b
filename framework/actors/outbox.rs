//! What came of messages that went on in slots, on its way back to the consumers: a letter a turn.

use tokio::sync::mpsc;

use super::letter::Letter;
use crate::pipeline::Outcome;

/// The way back to one lane's consumer, and what is about to take it.
type Way = (mpsc::Sender<Letter>, Letter);

/// Verdicts on their way back, by lane.
#[derive(Default)]
pub(super) struct Outbox {
    lanes: Vec<Option<Way>>,
    /// A letter that nothing is left of, for the next one: memory of that size is 30,000 instructions to get and give back.
    paper: Letter,
}

impl Outbox {
    pub(super) fn address(&mut self, lane: u32, reply: &mpsc::Sender<Letter>) {
        let lane = lane as usize;
        if self.lanes.len() <= lane {
            self.lanes.resize_with(lane + 1, || None);
        }
        match &mut self.lanes[lane] {
            Some((known, _)) if known.same_channel(reply) => {}
            place => *place = Some((reply.clone(), Vec::new())),
        }
    }

    pub(super) fn push(&mut self, outcome: Outcome) {
        if let Some(Some((_, outcomes))) = self.lanes.get_mut(outcome.work.lane as usize) {
            outcomes.push(Some(outcome));
        }
    }

    /// Keeps an empty letter to be written anew.
    pub(super) fn keep(&mut self, paper: Letter) {
        if paper.capacity() > self.paper.capacity() {
            self.paper = paper;
        }
    }

    pub(super) fn flush(&mut self) {
        for (reply, outcomes) in self.lanes.iter_mut().flatten() {
            if !outcomes.is_empty() {
                let mut paper = std::mem::take(&mut self.paper);
                paper.reserve(outcomes.len());
                let outcomes = std::mem::replace(outcomes, paper);
                // The channel has room for every message that the consumer has out. It is closed
                // when the consumer is gone; then the broker delivers them again.
                let _ = reply.try_send(outcomes);
            }
        }
    }
}
