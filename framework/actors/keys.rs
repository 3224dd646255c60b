//! Order: messages of one key run one after another, whatever their lanes.
//!
//! Owns who is next. A key is busy from the moment its first message is let in until that message
//! is done with, its waits in this process included; its followers wait here, unsettled.
//!
//! Pure: knows neither handlers nor time.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};

use crate::pipeline::{ByOrder, OrderKey, Work};

/// The keys that are busy, with what waits for them.
#[derive(Default)]
pub(super) struct Keys {
    busy: ByOrder<Busy>,
    /// Whose turn came while another lane was at work, by lane.
    turns: HashMap<u32, Vec<Work>>,
    waiting: usize,
}

/// One key that is busy.
struct Busy {
    /// The consumer whose message it is busy with.
    lane: u32,
    followers: VecDeque<Work>,
}

impl Busy {
    fn with(lane: u32) -> Self {
        Self { lane, followers: VecDeque::new() }
    }
}

impl Keys {
    /// Lets a message in, or keeps it behind the others of its key.
    pub(super) fn enter(&mut self, work: Work) -> Option<Work> {
        let Some(key) = work.key.clone() else { return Some(work) };
        match self.busy.entry(key) {
            Entry::Vacant(place) => {
                place.insert(Busy::with(work.lane));
                Some(work)
            }
            Entry::Occupied(mut busy) => {
                busy.get_mut().followers.push_back(work);
                self.waiting += 1;
                None
            }
        }
    }

    /// Keeps a key busy for a message of `lane` that runs elsewhere; false if it is busy.
    pub(super) fn hold(&mut self, key: &OrderKey, lane: u32) -> bool {
        let is_free = !self.busy.contains_key(key);
        if is_free {
            self.busy.insert(key.clone(), Busy::with(lane));
        }
        is_free
    }

    /// The message that a key is busy with is another consumer's now.
    pub(super) fn pass(&mut self, key: &OrderKey, lane: u32) {
        if let Some(busy) = self.busy.get_mut(key) {
            busy.lane = lane;
        }
    }

    /// A message of this key is done with: the next one's turn. True if there is one.
    pub(super) fn leave(&mut self, key: &OrderKey) -> bool {
        let Some(busy) = self.busy.get_mut(key) else { return false };
        match busy.followers.pop_front() {
            Some(next) => {
                self.waiting -= 1;
                busy.lane = next.lane;
                self.turns.entry(next.lane).or_default().push(next);
                true
            }
            None => {
                self.busy.remove(key);
                false
            }
        }
    }

    /// The messages of `lane` whose turn came.
    pub(super) fn take_turns(&mut self, lane: u32) -> Vec<Work> {
        self.turns.remove(&lane).unwrap_or_default()
    }

    /// Takes out everything of `lane` that waits for a turn or has one; its lane is gone.
    pub(super) fn forget(&mut self, lane: u32) -> Vec<Work> {
        let mut forgotten = Vec::new();
        for Busy { followers, .. } in self.busy.values_mut() {
            let (gone, kept): (VecDeque<Work>, VecDeque<Work>) =
                followers.drain(..).partition(|work| work.lane == lane);
            self.waiting -= gone.len();
            forgotten.extend(gone);
            *followers = kept;
        }
        for work in self.take_turns(lane) {
            if let Some(key) = &work.key {
                self.leave(&key.clone());
            }
            forgotten.push(work);
        }
        forgotten
    }

    /// The consumer `lane` broke: nobody will ever say that a message of it is done with.
    pub(super) fn forget_lane(&mut self, lane: u32) {
        drop(self.forget(lane));
        let busy = self.busy.iter().filter(|(_, busy)| busy.lane == lane);
        let held: Vec<OrderKey> = busy.map(|(key, _)| key.clone()).collect();
        for key in held {
            self.leave(&key);
        }
    }

    /// How many wait behind another of their key.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }
}
