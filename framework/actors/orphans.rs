//! Messages whose lane was lost while they were in hand, over all lanes of a subscription.
//!
//! A lane that is lost takes its settlements with it: the broker delivers the messages again, over whichever lane,
//! while their handlers may still run here. Owns which of them are to be recognised, who runs each, and who got its
//! redelivery: that one settles it when the run is over.
//!
//! Pure: knows neither the broker nor the handlers.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::ledger::Slot;
use crate::broker::Received;
use crate::config::IdSource;
use crate::pipeline::{OrderKey, Outcome, id_of};
use crate::wire::Carried;

/// What came of an orphan that nobody delivered again for so long is with another process, or gone.
const FATE_AGE_MAX: Duration = Duration::from_secs(15 * 60);

/// The orphans of one subscription.
#[derive(Default)]
pub(super) struct Orphans {
    held: HashMap<OrphanId, Orphan>,
    /// Those that nobody adopted yet.
    alone: HashMap<Identity, Vec<OrphanId>>,
    count: u64,
    /// The payloads of those whose fate is known.
    bytes: usize,
}

/// Tells an orphan from all others of its subscription, before and after.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct OrphanId(u64);

/// What one message and its redelivery have in common, and a later copy of it (a retry, a redriven dead letter) or the
/// same message in another place (among the suspects) has not. The payload is compared beside it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Identity {
    id: String,
    attempts: u32,
    generation: u32,
    origin: String,
}

/// Who got an orphan's redelivery, and settles it.
#[derive(Clone, Debug)]
pub(super) struct Heir {
    /// The consumer, and the place in its ledger.
    pub(super) lane: u32,
    pub(super) slot: Slot,
    /// The order that waits for the run there, where each lane has one.
    pub(super) order: Option<OrderKey>,
}

struct Orphan {
    received: Received,
    identity: Identity,
    received_at: Instant,
    /// The consumer whose lane it came over first.
    home: u32,
    /// Nobody has it since then, or what came of it is known since then.
    since: Instant,
    heir: Option<Heir>,
    /// What came of it.
    fate: Option<Box<Outcome>>,
}

impl Identity {
    /// `None` for a message without an id: nothing would tell it from another one.
    pub(super) fn of(received: &Received, source: &IdSource) -> Option<Self> {
        let envelope = received.envelope.as_ref();
        let carried = Carried::read(envelope);
        Some(Self {
            id: id_of(envelope, &carried, source)?,
            attempts: carried.attempts,
            generation: carried.generation,
            origin: envelope.origin(),
        })
    }
}

impl Orphans {
    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// The lane of `home` is gone, and it was in hand there.
    pub(super) fn add(
        &mut self,
        received: Received,
        identity: Identity,
        received_at: Instant,
        home: u32,
        now: Instant,
    ) -> OrphanId {
        let id = OrphanId(self.count);
        self.count += 1;
        self.alone.entry(identity.clone()).or_default().push(id);
        let (heir, fate, since) = (None, None, now);
        self.held.insert(id, Orphan { received, identity, received_at, home, since, heir, fate });
        id
    }

    /// Which orphan this is the redelivery of, and when that came first.
    pub(super) fn find(
        &mut self,
        received: &Received,
        identity: &Identity,
        now: Instant,
    ) -> Option<(OrphanId, Instant)> {
        self.forget_old(now);
        let same = self.alone.get(identity)?.iter().find(|id| {
            let orphan = self.held.get(id);
            orphan.is_some_and(|orphan| orphan.has_payload_of(received))
        })?;
        Some((*same, self.held.get(same)?.received_at))
    }

    /// Its redelivery is with `heir` now; what came of it, if that is known, and then it is no orphan any more.
    pub(super) fn adopt(&mut self, id: OrphanId, heir: Heir) -> Option<Outcome> {
        self.hide(id);
        let orphan = self.held.get_mut(&id)?;
        if orphan.fate.is_some() {
            return self.take(id);
        }
        orphan.heir = Some(heir);
        None
    }

    /// The consumer whose lane it came over first.
    pub(super) fn home(&self, id: OrphanId) -> Option<u32> {
        Some(self.held.get(&id)?.home)
    }

    /// Who waits for what comes of it.
    pub(super) fn heir(&self, id: OrphanId) -> Option<&Heir> {
        self.held.get(&id)?.heir.as_ref()
    }

    /// Keeps what came of it, for its heir or for its redelivery.
    pub(super) fn keep(&mut self, id: OrphanId, outcome: Outcome, now: Instant) {
        if let Some(orphan) = self.held.get_mut(&id) {
            orphan.since = now;
            self.bytes += if orphan.fate.is_none() { orphan.size() } else { 0 };
            orphan.fate = Some(Box::new(outcome));
        }
    }

    /// What came of it, for its heir.
    pub(super) fn take(&mut self, id: OrphanId) -> Option<Outcome> {
        self.held.get(&id)?.fate.as_ref()?;
        let orphan = self.held.remove(&id)?;
        self.bytes -= orphan.size();
        orphan.fate.map(|fate| *fate)
    }

    /// The lane of its heir is gone as well; returns the order that waited for it there.
    ///
    /// If what came of it was on the way there, it is that consumer's own from now on.
    pub(super) fn disown(&mut self, id: OrphanId, now: Instant) -> Disowned {
        let Some(orphan) = self.held.get_mut(&id) else { return Disowned::default() };
        let heir = orphan.heir.take();
        orphan.since = now;
        let fate = orphan.fate.take();
        self.bytes -= if fate.is_some() { orphan.size() } else { 0 };
        if let (Some(_), Some(heir)) = (&fate, &heir) {
            orphan.home = heir.lane;
        }
        self.alone.entry(orphan.identity.clone()).or_default().push(id);
        Disowned { order: heir.and_then(|heir| heir.order), fate }
    }

    /// The consumer `lane` broke, and whatever it knew is gone with it.
    pub(super) fn forget_lane(&mut self, lane: u32) {
        let gone: Vec<OrphanId> = self
            .held
            .iter()
            .filter_map(|(id, orphan)| {
                let is_heir = orphan.heir.as_ref().is_some_and(|heir| heir.lane == lane);
                (orphan.home == lane || is_heir).then_some(*id)
            })
            .collect();
        gone.into_iter().for_each(|id| self.remove(id));
    }

    /// Lets go of what came of those that nobody delivered again for too long. One that still runs is kept: it has a
    /// place with its consumer. So is one with an heir, who is about to take it.
    pub(super) fn forget_old(&mut self, now: Instant) {
        if self.held.is_empty() {
            return;
        }
        let is_old = |orphan: &Orphan| {
            !orphan.is_awaited() && now.duration_since(orphan.since) > FATE_AGE_MAX
        };
        let old = self.held.iter().filter(|(_, orphan)| is_old(orphan)).map(|(id, _)| *id);
        for id in old.collect::<Vec<_>>() {
            self.remove(id);
        }
    }

    /// Lets go of what came of the oldest until the payloads of those that nobody has are no longer than this together:
    /// with another process, they would be held for nothing.
    pub(super) fn forget_beyond(&mut self, bytes_max: u64) {
        while self.bytes as u64 > bytes_max {
            let alone = self.held.iter().filter(|(_, orphan)| !orphan.is_awaited());
            let oldest = alone.min_by_key(|(id, orphan)| (orphan.since, id.0)).map(|(id, _)| *id);
            let Some(oldest) = oldest else { return };
            self.remove(oldest);
        }
    }

    fn remove(&mut self, id: OrphanId) {
        self.hide(id);
        let removed = self.held.remove(&id);
        if let Some(orphan) = removed.filter(|orphan| orphan.fate.is_some()) {
            self.bytes -= orphan.size();
        }
    }

    /// Nobody else finds it.
    fn hide(&mut self, id: OrphanId) {
        let Some(orphan) = self.held.get(&id) else { return };
        if let Some(alone) = self.alone.get_mut(&orphan.identity) {
            alone.retain(|other| *other != id);
            if alone.is_empty() {
                self.alone.remove(&orphan.identity);
            }
        }
    }
}

/// What was left with an heir whose lane is gone.
#[derive(Default)]
pub(super) struct Disowned {
    /// The order that waited there.
    pub(super) order: Option<OrderKey>,
    /// What came of it, and was on its way.
    pub(super) fate: Option<Box<Outcome>>,
}

impl Orphan {
    /// It runs, or its heir is about to take what came of it.
    fn is_awaited(&self) -> bool {
        self.fate.is_none() || self.heir.is_some()
    }

    fn size(&self) -> usize {
        self.received.envelope.body().len()
    }

    fn has_payload_of(&self, received: &Received) -> bool {
        self.received.envelope.body() == received.envelope.body()
    }
}

#[cfg(test)]
mod tests;
