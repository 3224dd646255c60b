//! Which records of one partition are done with, and from where its group would have to begin again.
//!
//! Pure: knows offsets and no consumer. Only offsets that were really received are held, so that the gaps of
//! compaction and of transaction markers cost nothing; the offset to commit is the lowest that is not finished,
//! whatever is finished above it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::marks::{Mark, Run};

/// With so many that are not finished, and gaps between what is finished ahead, a mark might not hold all of them.
const OPEN_MAX: usize = 400;
/// At most so many records are held from the lowest unfinished one on, of 24 bytes each.
const WINDOW_MAX: usize = 1 << 20;
/// At most so many records are remembered as having been in flight when a process died.
const SUSPECTS_MAX: usize = 1024;

/// The offsets of one partition, from its assignment to its loss.
#[derive(Debug, Default)]
pub(super) struct Offsets {
    /// What was received, ascending, from the lowest that is not finished.
    window: VecDeque<Entry>,
    /// Behind the highest that was received; `None` until there is any.
    next: Option<i64>,
    /// Finished by an earlier owner, and not received here yet; ascending.
    ahead: VecDeque<Run>,
    /// How many processes died while they had a record, for those that are not received here yet.
    crashes: BTreeMap<i64, u32>,
    /// What an earlier owner left, until the first record shows that it was about this log.
    unproven: Option<Mark>,
    follows_a_death: bool,
    finished_count: u64,
    /// Those that somebody has, or that were given back.
    open_count: usize,
    /// What comes again because it was asked for.
    again: Option<Again>,
    /// Which process this is; 0 if nobody says.
    process: u64,
    /// What is finished was written somewhere, and must not be written again.
    is_transactional: bool,
}

/// Records that were received before and are read once more.
#[derive(Clone, Copy, Debug)]
struct Again {
    from: i64,
    /// The client was not told yet, or has not said that it goes there.
    is_asked: bool,
    has_begun: bool,
}

#[derive(Debug)]
struct Entry {
    offset: i64,
    time: i64,
    crashes: u32,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Somebody has it.
    Out,
    /// Given back: to be delivered when it is read again.
    Back,
    /// Done with here; finished when its transaction is.
    Settled,
    Done,
}

/// What to do with a record that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Receipt {
    /// Deliver it.
    Deliver {
        /// How many processes died while they had it.
        crashes: u32,
        /// It was out before, from this assignment.
        again: bool,
    },
    /// It is finished, or out already.
    Skip,
    /// The log begins again here, though nobody asked for it: what was known of this and later offsets was about
    /// other records, and is forgotten. What is out must not be settled any more; this record is to be read again.
    Cut,
}

impl Offsets {
    /// Begins at the committed offset `base`, with what was written beside it.
    pub(super) fn new(base: Option<i64>, mark: Option<Mark>) -> Self {
        Self {
            next: base,
            unproven: mark.filter(|mark| base == Some(mark.base)),
            ..Self::default()
        }
    }

    /// As they are kept by this process, and with or without transactions.
    pub(super) fn kept_by(self, process: u64, is_transactional: bool) -> Self {
        Self { process, is_transactional, ..self }
    }

    /// Notes a record that was read; `time` is its timestamp.
    pub(super) fn receive(&mut self, offset: i64, time: i64) -> Receipt {
        self.prove(offset, time);
        if self.next.is_some_and(|next| offset < next) {
            return self.receive_again(offset);
        }
        // What was fetched before the client went back may still come first.
        self.again = self.again.filter(|again| again.is_asked || !again.has_begun);
        self.next = Some(offset + 1);
        let crashes = self.crashes.remove(&offset).unwrap_or(0);
        if self.was_finished(offset) {
            // Nothing to hold: it moves the base if nothing below it is open, and else counts as finished.
            if !self.window.is_empty() {
                self.window.push_back(Entry { offset, time, crashes, state: State::Done });
            }
            return Receipt::Skip;
        }
        self.window.push_back(Entry { offset, time, crashes, state: State::Out });
        self.open_count += 1;
        Receipt::Deliver { crashes, again: false }
    }

    /// There is no record between the last one received and `position`: markers of transactions take offsets too.
    pub(super) fn pass(&mut self, position: i64) {
        // An earlier owner's mark waits to be proven by the first record.
        if self.unproven.is_none() {
            self.next = self.next.max(Some(position));
        }
    }

    /// Where to read from once more: the lowest that is not finished. Until [`rewound`](Self::rewound) nobody knows
    /// whether what is read comes from before or after.
    pub(super) fn rewind(&mut self) -> Option<i64> {
        let base = self.base()?;
        self.expect_again(base);
        Some(base)
    }

    /// Records from `from` on may be read again.
    pub(super) fn expect_again(&mut self, from: i64) {
        let from = self.again.map_or(from, |again| again.from.min(from));
        self.again = Some(Again { from, is_asked: true, has_begun: false });
    }

    /// The client has gone back.
    pub(super) fn rewound(&mut self) {
        if let Some(again) = &mut self.again {
            (again.is_asked, again.has_begun) = (false, false);
        }
    }

    /// A record below the next one: it was asked for, or the log was cut, or deleted and made again.
    fn receive_again(&mut self, offset: i64) -> Receipt {
        let Some(again) = self.again.as_mut().filter(|again| offset >= again.from) else {
            self.cut(offset);
            return Receipt::Cut;
        };
        again.has_begun = true;
        let Some(entry) = self.entry(offset) else { return Receipt::Skip };
        if entry.state != State::Back {
            return Receipt::Skip;
        }
        entry.state = State::Out;
        Receipt::Deliver { crashes: entry.crashes, again: true }
    }

    /// What an earlier owner left is about this log only if the record at its base is the one it saw: a topic
    /// that was deleted and created again, or a log that was cut, has another one there.
    ///
    /// Where nothing stands there any more, or nothing was, nobody can tell: what would be written twice is then
    /// believed to be done, and what would only be handled twice is not.
    fn prove(&mut self, offset: i64, time: i64) {
        let Some(mark) = self.unproven.take() else { return };
        let is_believed = match mark.base_time {
            Some(base_time) if offset == mark.base => time == base_time,
            Some(_) => self.is_transactional && offset > mark.base,
            None => self.is_transactional || mark.done.is_empty(),
        };
        if !is_believed {
            return;
        }
        let in_flight = mark.in_flight().take(SUSPECTS_MAX);
        // Whoever reads what it wrote itself was away, and did not die.
        let is_own = mark.owner != 0 && mark.owner == self.process;
        self.follows_a_death = !mark.is_clean && !is_own;
        let died = u32::from(self.follows_a_death);
        self.crashes = mark.crashes.iter().copied().collect();
        for offset in in_flight {
            let crashes = self.crashes.get(&offset).copied().unwrap_or(0) + died;
            if crashes > 0 {
                self.crashes.insert(offset, crashes);
            }
        }
        self.ahead = mark.done.into();
    }

    fn cut(&mut self, offset: i64) {
        while self.window.back().is_some_and(|entry| entry.offset >= offset) {
            let entry = self.window.pop_back();
            let was_open = entry.is_some_and(|it| matches!(it.state, State::Out | State::Back));
            self.open_count -= usize::from(was_open);
        }
        // All of these are about offsets from `next` on.
        self.ahead.clear();
        self.crashes.clear();
        self.again = None;
        self.next = Some(offset);
    }

    fn was_finished(&mut self, offset: i64) -> bool {
        while self.ahead.front().is_some_and(|run| run.last < offset) {
            self.ahead.pop_front();
        }
        // Those in between are not there any more.
        self.crashes = self.crashes.split_off(&offset);
        self.ahead.front().is_some_and(|run| run.first <= offset)
    }

    /// Notes that a record is done with, but for the transaction that it is part of. False if it is not out.
    pub(super) fn settle(&mut self, offset: i64) -> bool {
        let Some(entry) = self.entry(offset).filter(|entry| entry.state == State::Out) else {
            return false;
        };
        entry.state = State::Settled;
        self.open_count -= 1;
        true
    }

    /// Notes that a record is done with. False if it is neither out nor settled.
    pub(super) fn finish(&mut self, offset: i64) -> bool {
        let Some(entry) = self.entry(offset) else { return false };
        match entry.state {
            State::Out => {
                entry.state = State::Done;
                self.open_count -= 1;
            }
            State::Settled => entry.state = State::Done,
            State::Back | State::Done => return false,
        }
        self.finished_count += 1;
        while self.window.front().is_some_and(|entry| entry.state == State::Done) {
            self.window.pop_front();
        }
        true
    }

    /// Notes that a record that is out was given back. False if it is not out.
    pub(super) fn give_back(&mut self, offset: i64) -> bool {
        let entry = self.entry(offset).filter(|entry| entry.state == State::Out);
        entry.map(|entry| entry.state = State::Back).is_some()
    }

    /// Everything that is out was given back.
    pub(super) fn give_back_all(&mut self) {
        for entry in self.window.iter_mut().filter(|entry| entry.state == State::Out) {
            entry.state = State::Back;
        }
    }

    /// The offset to commit, and to read from after a seek: the lowest that is not finished.
    pub(super) fn base(&self) -> Option<i64> {
        self.window.front().map(|entry| entry.offset).or(self.next)
    }

    /// Behind the highest that was received.
    pub(super) fn next(&self) -> Option<i64> {
        self.next
    }

    /// How many were finished since the assignment.
    pub(super) fn finished_count(&self) -> u64 {
        self.finished_count
    }

    /// Whether the last owner died with records in flight.
    pub(super) fn follows_a_death(&self) -> bool {
        self.follows_a_death
    }

    /// Whether more may be received behind the lowest that is not finished.
    pub(super) fn is_short(&self) -> bool {
        self.window.len() < WINDOW_MAX
    }

    /// Whether a mark holds everything still if one more is received, beside `held_up` that are settled.
    pub(super) fn has_room(&self, held_up: usize) -> bool {
        let open = self.open_count + held_up;
        // With nothing open nothing could make room either.
        open == 0 || open + self.ahead.len() < OPEN_MAX
    }

    /// What to commit; `is_clean` when nobody works on what is not finished.
    pub(super) fn mark(&self, is_clean: bool) -> Option<Mark> {
        self.mark_with(&BTreeSet::new(), is_clean)
    }

    /// What to commit in a transaction that finishes these, which are settled.
    pub(super) fn mark_with(&self, settled: &BTreeSet<i64>, is_clean: bool) -> Option<Mark> {
        if let Some(unproven) = &self.unproven {
            return Some(unproven.clone());
        }
        let is_done = |entry: &Entry| match entry.state {
            State::Done => true,
            State::Settled => settled.contains(&entry.offset),
            State::Out | State::Back => false,
        };
        let first = self.window.iter().position(|entry| !is_done(entry));
        let window = self.window.range(first.unwrap_or(self.window.len())..);
        let head = window.clone().next();
        let base = head.map(|entry| entry.offset).or(self.next)?;
        let mut done: Vec<Run> = Vec::new();
        let mut joins = false;
        for entry in window.clone() {
            match (is_done(entry), done.last_mut()) {
                (true, Some(run)) if joins => run.last = entry.offset,
                (true, _) => done.push(Run { first: entry.offset, last: entry.offset }),
                (false, _) => {}
            }
            joins = is_done(entry);
        }
        let next = self.next.unwrap_or(base);
        let unread = self.ahead.iter().filter(|run| run.last >= next);
        done.extend(unread.map(|run| Run { first: run.first.max(next), last: run.last }));
        let held = window.filter(|entry| entry.crashes > 0 && !is_done(entry));
        let crashes = held.map(|entry| (entry.offset, entry.crashes));
        let crashes = crashes.chain(self.crashes.iter().map(|(offset, count)| (*offset, *count)));
        Some(Mark {
            base,
            base_time: head.map(|entry| entry.time),
            next,
            is_clean,
            owner: self.process,
            done,
            crashes: crashes.collect(),
        })
    }

    /// Constant work where the log has no gaps, and a binary search where it has.
    fn entry(&mut self, offset: i64) -> Option<&mut Entry> {
        let first = self.window.front()?.offset;
        let guess = usize::try_from(offset.checked_sub(first)?).ok()?;
        let index = match self.window.get(guess) {
            Some(entry) if entry.offset == offset => guess,
            _ => self.window.binary_search_by_key(&offset, |entry| entry.offset).ok()?,
        };
        self.window.get_mut(index)
    }
}

#[cfg(test)]
mod tests;
