//! What waits in this process: messages whose next attempt is due soon.
//!
//! Owns their order by time, and the bells of those that may be woken before. Pure: the time is
//! handed in.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::bells::Bell;
use crate::pipeline::Work;

/// Messages by the moment they are due; those of one moment in the order they came.
#[derive(Default)]
pub(super) struct Parking {
    places: BTreeMap<(Instant, Number), Parked>,
    number_next: u64,
}

/// Tells one that is parked from all others, before and after.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Number(u64);

struct Parked {
    work: Work,
    /// Kept while it is here: nobody rings for what has gone.
    _bell: Option<Bell>,
}

impl Parking {
    /// The number of the next to be parked.
    pub(super) fn number_next(&self) -> Number {
        Number(self.number_next)
    }

    pub(super) fn park(&mut self, work: Work, due: Instant, bell: Option<Bell>) {
        let place = (due, self.number_next());
        self.number_next += 1;
        self.places.insert(place, Parked { work, _bell: bell });
    }

    /// When the next one is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.places.keys().next().map(|place| place.0)
    }

    /// The next one, if it is due, and how late it is.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<(Work, Duration)> {
        let due = self.next_due().filter(|due| *due <= now)?;
        self.places.pop_first().map(|(_, parked)| (parked.work, now - due))
    }

    /// This one, whenever it is due.
    pub(super) fn take(&mut self, number: Number) -> Option<Work> {
        let place = *self.places.keys().find(|place| place.1 == number)?;
        self.places.remove(&place).map(|parked| parked.work)
    }

    /// Everything, with when it is due.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = (Work, Instant)> + use<> {
        let places = std::mem::take(&mut self.places);
        places.into_iter().map(|((due, _), parked)| (parked.work, due))
    }

    pub(super) fn len(&self) -> usize {
        self.places.len()
    }
}

#[cfg(test)]
mod tests;
