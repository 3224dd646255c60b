//! Every message that one consumer holds unsettled, and what becomes of it when its lane is lost.
//!
//! A lane that is lost takes its settlements with it: the broker delivers the messages again,
//! while their handlers may still run here. The ledger keeps those as orphans, and recognises the
//! redelivery of one, so that the outcome of the handler that runs settles the new delivery.
//!
//! Pure: knows neither the broker nor the handlers.

use tokio::time::Instant;

use crate::broker::{Received, Token};
use crate::message::message_id;
use crate::pipeline::Outcome;
use crate::wire::Carried;

/// An orphan that nobody delivered again for so long is with another process, or gone.
const ORPHAN_AGE_MAX: std::time::Duration = std::time::Duration::from_secs(15 * 60);

/// A message's place in the ledger.
pub(crate) type Slot = u32;

#[derive(Default)]
pub(crate) struct Ledger {
    entries: Vec<Option<Entry>>,
    free: Vec<Slot>,
    generation: u64,
    bytes: usize,
    orphans: usize,
}

struct Entry {
    received: Received,
    generation: u64,
    received_at: Instant,
    /// Set when its lane was lost.
    orphaned: Option<Instant>,
    /// What came of it while it was an orphan.
    fate: Option<Box<Outcome>>,
}

/// What a redelivery turned out to be.
pub(super) enum Adopted {
    /// Its handler still runs, or it still waits: nothing to do.
    Running,
    /// What came of it is known: to be concluded now.
    Done(Box<Outcome>),
}

impl Ledger {
    /// Enters a message that was received.
    pub(crate) fn enter(&mut self, received: Received, received_at: Instant) -> Slot {
        self.bytes += received.envelope.body().len();
        let generation = self.generation;
        let entry = Some(Entry { received, generation, received_at, orphaned: None, fate: None });
        match self.free.pop() {
            Some(slot) => {
                self.entries[slot as usize] = entry;
                slot
            }
            None => {
                self.entries.push(entry);
                (self.entries.len() - 1) as Slot
            }
        }
    }

    /// Takes a message out because it is done with; its token, if its lane still knows it.
    pub(crate) fn settle(&mut self, slot: Slot) -> Option<Token> {
        let entry = self.remove(slot)?;
        (entry.generation == self.generation).then_some(entry.received.token)
    }

    /// Whether the message's lane is gone.
    pub(super) fn is_orphan(&self, slot: Slot) -> bool {
        self.entry(slot).is_none_or(|entry| entry.generation != self.generation)
    }

    /// Keeps what came of an orphan for its redelivery.
    pub(super) fn keep_fate(&mut self, slot: Slot, outcome: Outcome) {
        if let Some(Some(entry)) = self.entries.get_mut(slot as usize) {
            entry.fate = Some(Box::new(outcome));
        }
    }

    /// The lane is gone: all that is held becomes an orphan of the next `generation`.
    pub(super) fn lose(&mut self, generation: u64, now: Instant) {
        self.generation = generation;
        for entry in self.entries.iter_mut().flatten() {
            entry.orphaned.get_or_insert(now);
        }
        self.orphans = self.entries.iter().flatten().count();
        self.bytes = 0;
        self.forget_old(now);
    }

    /// Lets go of orphans that nobody delivered again for too long.
    pub(super) fn forget_old(&mut self, now: Instant) {
        if self.orphans == 0 {
            return;
        }
        for slot in 0..self.entries.len() {
            if self.entries[slot].as_ref().is_some_and(|entry| entry.is_old(now)) {
                self.remove(slot as Slot);
            }
        }
    }

    /// Recognises the redelivery of an orphan: flagged as redelivered, of equal id, payload, attempts and generation.
    pub(super) fn adopt(&mut self, received: &Received, now: Instant) -> Option<Adopted> {
        if self.orphans == 0 || !received.envelope.is_redelivered() {
            return None;
        }
        self.forget_old(now);
        let generation = self.generation;
        let entry =
            self.entries.iter_mut().flatten().find(|entry| {
                entry.generation != generation && is_same(&entry.received, received)
            })?;
        entry.received.token = received.token;
        entry.generation = generation;
        entry.orphaned = None;
        self.bytes += received.envelope.body().len();
        self.orphans -= 1;
        Some(entry.fate.take().map_or(Adopted::Running, Adopted::Done))
    }

    /// When the oldest that is held for the lane that is open was received.
    pub(super) fn oldest(&self) -> Option<Instant> {
        let entries = self.entries.iter().flatten();
        let held = entries.filter(|entry| entry.generation == self.generation);
        held.map(|entry| entry.received_at).min()
    }

    /// What is held for the lane that is open.
    pub(super) fn held(&self) -> Vec<(Slot, Received)> {
        let entries = self.entries.iter().enumerate();
        let held = entries.filter_map(|(slot, entry)| Some((slot as Slot, entry.as_ref()?)));
        held.filter(|(_, entry)| entry.generation == self.generation)
            .map(|(slot, entry)| (slot, entry.received.clone()))
            .collect()
    }

    /// How many bytes of payload are held for the lane that is open.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    fn entry(&self, slot: Slot) -> Option<&Entry> {
        self.entries.get(slot as usize)?.as_ref()
    }

    fn remove(&mut self, slot: Slot) -> Option<Entry> {
        let entry = self.entries.get_mut(slot as usize)?.take()?;
        self.free.push(slot);
        if entry.generation == self.generation {
            self.bytes -= entry.received.envelope.body().len();
        } else {
            self.orphans = self.orphans.saturating_sub(1);
        }
        Some(entry)
    }
}

impl Entry {
    /// One that still runs comes back with its place, which must not be another's by then.
    fn is_old(&self, now: Instant) -> bool {
        let age = self.orphaned.map(|since| now.duration_since(since));
        self.fate.is_some() && age.is_some_and(|age| age > ORPHAN_AGE_MAX)
    }
}

/// Whether a delivery is the same message again, and not a later copy of it: a retry, or a redriven dead letter.
fn is_same(held: &Received, again: &Received) -> bool {
    let id = |received: &Received| {
        let envelope = received.envelope.as_ref();
        let carried = Carried::read(envelope);
        let id = message_id(None, &carried, envelope)?.to_owned();
        Some((id, carried.attempts, carried.generation))
    };
    held.envelope.body() == again.envelope.body()
        && id(held).is_some_and(|held| Some(held) == id(again))
}

#[cfg(test)]
mod tests;
