//! Every message that one consumer holds unsettled.
//!
//! A lane that is lost takes its settlements with it. What it delivered is among the subscription's orphans from then
//! on, and keeps its place here until its handler is done: the place must not be another's by then. The redelivery of
//! an orphan is entered like any message, and waits for what comes of the run that goes on.
//!
//! Pure: knows neither the broker nor the handlers.

use tokio::time::Instant;

use super::orphans::OrphanId;
use crate::broker::{Received, Token};

/// A message's place in the ledger.
pub(crate) type Slot = u32;

/// No lane has it: what is held while none is open belongs to none.
const NO_GENERATION: u64 = 0;

#[derive(Default)]
pub(crate) struct Ledger {
    entries: Vec<Option<Entry>>,
    free: Vec<Slot>,
    generation: u64,
    bytes: usize,
}

struct Entry {
    received: Received,
    /// How long its payload is: counted once, and taken off again without asking the broker's message.
    size: usize,
    generation: u64,
    received_at: Instant,
    /// Of one whose lane is gone, which orphan it became; of one that the lane delivered, which one it waits for.
    orphan: Option<OrphanId>,
}

/// A message that was in hand when its lane was lost.
pub(super) enum Lost {
    /// Its handler runs, or it waits here.
    Own(Slot, Received, Instant),
    /// It waited for what comes of an orphan.
    Awaited(Slot, OrphanId),
}

impl Ledger {
    /// A lane is open.
    pub(super) fn open(&mut self, generation: u64) {
        self.generation = generation;
    }

    /// Enters a message that was received, with a payload of `size` bytes.
    #[inline]
    pub(crate) fn enter(&mut self, received: Received, size: usize, received_at: Instant) -> Slot {
        self.insert(received, size, received_at, None)
    }

    /// Enters the redelivery of an orphan that was received first at `received_at`.
    pub(super) fn enter_again(
        &mut self,
        received: Received,
        received_at: Instant,
        orphan: OrphanId,
    ) -> Slot {
        let size = received.envelope.body().len();
        self.insert(received, size, received_at, Some(orphan))
    }

    // Always: where the compiler makes a call of it, that is 20 instructions more for each message.
    #[inline(always)]
    fn insert(
        &mut self,
        received: Received,
        size: usize,
        received_at: Instant,
        orphan: Option<OrphanId>,
    ) -> Slot {
        self.bytes += size;
        let generation = self.generation;
        let entry = Some(Entry { received, size, generation, received_at, orphan });
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
        self.settle_held(slot).or_else(|| {
            self.remove(slot);
            None
        })
    }

    /// The same, and nothing at all where its lane is gone.
    #[inline]
    pub(super) fn settle_held(&mut self, slot: Slot) -> Option<Token> {
        let place = self.entries.get_mut(slot as usize)?;
        let entry = place.as_ref().filter(|entry| entry.generation == self.generation)?;
        let token = entry.received.token;
        self.bytes -= entry.size;
        self.free.push(slot);
        *place = None;
        Some(token)
    }

    /// Whether the message's lane is gone.
    pub(super) fn is_orphan(&self, slot: Slot) -> bool {
        self.entry(slot).is_none_or(|entry| entry.generation != self.generation)
    }

    /// Which orphan a message became whose lane is gone; `None` if it cannot be recognised.
    pub(super) fn orphan(&self, slot: Slot) -> Option<OrphanId> {
        self.entry(slot).filter(|entry| entry.generation != self.generation)?.orphan
    }

    /// What came of the orphan is known, and is this one's from now on; false if it does not wait for it any more.
    pub(super) fn inherit(&mut self, slot: Slot, orphan: OrphanId) -> bool {
        let generation = self.generation;
        let entry = self.entries.get_mut(slot as usize).and_then(Option::as_mut);
        let entry = entry.filter(|entry| entry.generation == generation);
        match entry.filter(|entry| entry.orphan == Some(orphan)) {
            Some(entry) => {
                entry.orphan = None;
                true
            }
            None => false,
        }
    }

    /// The lane is gone, with all that is held for it.
    pub(super) fn lose(&mut self) -> Vec<Lost> {
        let generation = std::mem::replace(&mut self.generation, NO_GENERATION);
        self.bytes = 0;
        let entries = self.entries.iter().enumerate();
        let entries = entries.filter_map(|(slot, entry)| Some((slot as Slot, entry.as_ref()?)));
        let held = entries.filter(|(_, entry)| entry.generation == generation);
        held.map(|(slot, entry)| match entry.orphan {
            None => Lost::Own(slot, entry.received.clone(), entry.received_at),
            Some(orphan) => Lost::Awaited(slot, orphan),
        })
        .collect()
    }

    /// One whose lane is gone is this orphan now.
    pub(super) fn mark(&mut self, slot: Slot, orphan: Option<OrphanId>) {
        if let Some(Some(entry)) = self.entries.get_mut(slot as usize) {
            entry.orphan = orphan;
        }
    }

    /// When the oldest that is held for the lane that is open was received.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.present().map(|(_, entry)| entry.received_at).min()
    }

    /// What is held for the lane that is open.
    pub(super) fn held(&self) -> Vec<(Slot, Received)> {
        self.present().map(|(slot, entry)| (slot, entry.received.clone())).collect()
    }

    fn present(&self) -> impl Iterator<Item = (Slot, &Entry)> {
        let entries = self.entries.iter().enumerate();
        let entries = entries.filter_map(|(slot, entry)| Some((slot as Slot, entry.as_ref()?)));
        entries.filter(|(_, entry)| entry.generation == self.generation)
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
            self.bytes -= entry.size;
        }
        Some(entry)
    }
}
