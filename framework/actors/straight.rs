//! A batch that goes from its lane to the handlers as it comes, without a wait in line for each message.
//!
//! Owns when it may; what a message is, and whether anything is known of it, the desk says.

use super::desk::Desk;
use super::letter::Letter;

impl Desk {
    /// Whether so many messages could be handed out as they come.
    pub(super) fn may_go_straight(&self, count: usize) -> bool {
        let shared = &self.shared;
        let is_held = self.suspects || shared.alone.get() || self.store_is_down(self.now);
        self.ready.is_empty()
            && !is_held
            && !shared.gate.borrow().is_open()
            && self.permits() >= count
            && self.links.have_one_seat()
    }

    /// Hands out what has its permits.
    pub(super) fn send_straight(&mut self, letter: Letter) {
        if letter.is_empty() {
            self.paper = letter;
            return;
        }
        self.running += letter.len();
        self.shared.running.set(self.shared.running.get() + letter.len());
        self.links.send_straight(letter, &self.outcomes_to, &self.tenure);
    }
}
