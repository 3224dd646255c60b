//! What waits in this process: messages whose next attempt is due soon.
//!
//! Owns their order by time. Pure: the time is handed in.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use tokio::time::Instant;

use crate::pipeline::Work;

/// Messages by the moment they are due; those of one moment in the order they came.
#[derive(Default)]
pub(super) struct Parking {
    heap: BinaryHeap<Reverse<Parked>>,
    count: u64,
}

struct Parked {
    due: Instant,
    number: u64,
    work: Work,
}

impl Parking {
    pub(super) fn park(&mut self, work: Work, due: Instant) {
        self.count += 1;
        self.heap.push(Reverse(Parked { due, number: self.count, work }));
    }

    /// When the next one is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse(parked)| parked.due)
    }

    /// The next one, if it is due, and how late it is.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<(Work, Duration)> {
        let due = self.next_due().filter(|due| *due <= now)?;
        self.heap.pop().map(|Reverse(parked)| (parked.work, now - due))
    }

    /// Everything, with when it is due.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = (Work, Instant)> {
        self.heap.drain().map(|Reverse(parked)| (parked.work, parked.due))
    }

    pub(super) fn len(&self) -> usize {
        self.heap.len()
    }
}

impl PartialEq for Parked {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Parked {}

impl PartialOrd for Parked {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Parked {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.due, self.number).cmp(&(other.due, other.number))
    }
}

#[cfg(test)]
mod tests;
