//! A letter: messages on their way to a handler actor, and the same block on its way back with what came of each.
//!
//! Owns that every message in it comes out again: nothing is moved from one list to another for each message, and what
//! nobody decided on is to run once more, because that is what is written on it from the start.

use tokio::sync::mpsc;

use crate::pipeline::{Outcome, Verdict, Work};

/// Messages with what is to become of them; empty places are those that went on in a slot.
pub(crate) type Letter = Vec<Option<Outcome>>;

/// A message that nobody decided on yet.
pub(super) fn undecided(work: Work) -> Option<Outcome> {
    Some(Outcome { work, verdict: Verdict::Again })
}

/// A letter in the hands of a handler actor; goes back when it is put down, by whatever way.
pub(super) struct Opened {
    letter: Letter,
    reply: mpsc::Sender<Letter>,
}

impl Opened {
    pub(super) fn new(letter: Letter, reply: mpsc::Sender<Letter>) -> Self {
        Self { letter, reply }
    }

    #[inline]
    pub(super) fn len(&self) -> usize {
        self.letter.len()
    }

    /// The message at a place, if it is still there.
    #[inline]
    pub(super) fn at(&self, place: usize) -> Option<&Work> {
        Some(&self.letter.get(place)?.as_ref()?.work)
    }

    /// The same, to note something about it.
    pub(super) fn at_mut(&mut self, place: usize) -> Option<&mut Work> {
        Some(&mut self.letter.get_mut(place)?.as_mut()?.work)
    }

    /// What is left in it, by places.
    pub(super) fn works(&self) -> impl Iterator<Item = (usize, &Work)> {
        let places = self.letter.iter().enumerate();
        places.filter_map(|(place, outcome)| Some((place, &outcome.as_ref()?.work)))
    }

    /// What is to become of it.
    pub(super) fn verdict(&self, place: usize) -> Option<&Verdict> {
        Some(&self.letter.get(place)?.as_ref()?.verdict)
    }

    /// Writes down what is to become of it.
    #[inline]
    pub(super) fn decide(&mut self, place: usize, verdict: Verdict) {
        if let Some(Some(outcome)) = self.letter.get_mut(place) {
            let before = std::mem::replace(&mut outcome.verdict, verdict);
            if matches!(before, Verdict::Again) {
                // Nothing is in it; to drop it would be a call for each message.
                std::mem::forget(before);
            }
        }
    }

    /// Takes it out: it goes back another way.
    pub(super) fn take(&mut self, place: usize) -> Option<Work> {
        Some(self.take_decided(place)?.work)
    }

    /// The same, with what is to become of it.
    pub(super) fn take_decided(&mut self, place: usize) -> Option<Outcome> {
        self.letter.get_mut(place)?.take()
    }
}

impl Opened {
    /// Puts back what was taken out.
    pub(super) fn put_back(&mut self, place: usize, work: Work) {
        if let Some(empty) = self.letter.get_mut(place) {
            *empty = undecided(work);
        }
    }

    /// Sends it back; what nothing is left of may be written anew.
    pub(super) fn close(&mut self) -> Letter {
        let mut letter = std::mem::take(&mut self.letter);
        if letter.iter().any(Option::is_some) {
            // The channel has room for every message that the consumer has out. It is closed when the consumer is
            // gone; then the broker delivers them again.
            let _ = self.reply.try_send(letter);
            return Letter::new();
        }
        letter.clear();
        letter
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.close();
    }
}
