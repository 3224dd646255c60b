//! One assigned partition: what its lane and the owner of its group share.
//!
//! Owns the offsets from assignment to loss, and the signals between the two sides: records arrived, give it back
//! until then, it is gone. Made anew at every assignment, so that nothing done for an earlier one can reach it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::consumer::base_consumer::{BaseConsumer, PartitionQueue};
use tokio::sync::{Notify, watch};

use super::connection::Context;
use super::marks::Mark;
use super::offsets::Offsets;
use super::outbox::Output;
use crate::broker::{LaneId, Recall};

/// A consumer of a group.
pub(super) type Consumer = BaseConsumer<Context>;

/// Names a partition.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Name {
    pub(super) topic: Arc<str>,
    pub(super) number: i32,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.topic, self.number)
    }
}

/// An assigned partition.
pub(super) struct Partition {
    pub(super) name: Name,
    pub(super) id: LaneId,
    pub(super) queue: Arc<Queue>,
    state: Mutex<State>,
    /// Told when its lane has closed.
    closed: Condvar,
    recall: watch::Sender<Option<Recall>>,
    /// Told after each commit, for a lane that had to wait for one.
    pub(super) committed: Notify,
}

/// What both sides change.
pub(super) struct State {
    pub(super) offsets: Offsets,
    pub(super) lane: LaneState,
    /// The offset and text that were committed last.
    pub(super) committed: Option<(i64, String)>,
    /// What was finished when they were.
    pub(super) finished_at_commit: u64,
    /// Behind the highest offset that the last commit knew of.
    pub(super) recorded_to: Option<i64>,
    /// Should be committed without waiting for the interval.
    pub(super) is_urgent: bool,
    /// It was refused, and is not tried before this but with others.
    pub(super) commit_after: Option<Instant>,
    /// Records below this were delivered to this process in an earlier assignment.
    pub(super) seen_to: i64,
    /// Done with, and waiting for their transaction.
    pub(super) settled: BTreeMap<i64, Settled>,
    settled_bytes: usize,
    /// What the lane does while it has nothing to read.
    pub(super) rest: Rest,
    /// Below this something was read that the lane has not noted.
    pub(super) strayed_to: Option<i64>,
    /// The first record that a resting lane has not received, and since when it has been that one.
    behind: Option<(i64, Instant)>,
    pub(super) is_behind: bool,
    /// When the client is told to read from the lowest unfinished record on once more.
    rewind_at: Option<Instant>,
    /// It is to go back, and has not yet: what is read until then would be taken for what comes after what is missing.
    pub(super) goes_back: bool,
    /// A lane is to be handed out, once the client has gone back.
    is_wanted: bool,
}

/// Whether a lane's queue was found empty, with everything that was in it noted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rest {
    /// No: it reads, or holds what it read.
    No,
    /// Since then.
    Since(Instant),
    /// Yes, and everything below the consumer's position was noted then.
    Passed(Instant),
}

/// A record that is done with, and what is to be written when that is committed.
pub(super) struct Settled {
    pub(super) offset: i64,
    pub(super) outputs: Arc<Vec<Output>>,
    /// It kept a transaction from being written.
    pub(super) trouble: Option<Trouble>,
}

/// When something is tried again that failed by its own fault.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trouble {
    tries: u32,
    until: Instant,
}

impl Trouble {
    /// At once for the first time, then later and later.
    pub(super) fn again(before: Option<Self>, now: Instant) -> Self {
        let tries = before.map_or(0, |trouble| trouble.tries.saturating_add(1));
        let wait = match tries {
            0 => Duration::ZERO,
            tries => Duration::from_secs(1 << (tries - 1).min(16)).min(TROUBLE_MAX),
        };
        Self { tries, until: now + wait }
    }

    pub(super) fn is_due(self, now: Instant) -> bool {
        self.until <= now
    }
}

/// So many settled records, or bytes of them, are worth a transaction of their own.
const TRANSACTION_RECORDS: usize = 1_000;
const TRANSACTION_BYTES: usize = 4 << 20;
/// Nothing is read on while more is to be written.
const SETTLED_BYTES_MAX: usize = 64 << 20;
/// How long a lane must have had nothing to read before its position is looked at.
const REST_MIN: Duration = Duration::from_millis(300);
/// While it rests on, it is looked at again after this.
const PASS_AGAIN_AFTER: Duration = Duration::from_secs(2);
/// A client that could not go back is asked again after this.
const REWIND_AGAIN_AFTER: Duration = Duration::from_millis(500);
/// The longest wait before a record that is refused is written once more.
const TROUBLE_MAX: Duration = Duration::from_secs(60);

/// What has become of the lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LaneState {
    /// Open, under this generation.
    Open(u64),
    /// Closed by whoever had it; opened again when that is asked for.
    Closed,
    /// Dropped by somebody who could not take it; offered again.
    Dropped(Instant),
    /// The partition is not ours any more.
    Gone,
}

impl Partition {
    pub(super) fn new(
        name: Name,
        id: LaneId,
        queue: Arc<Queue>,
        offsets: Offsets,
        seen_to: i64,
    ) -> Self {
        Self {
            name,
            id,
            queue,
            state: Mutex::new(State::new(offsets, seen_to)),
            closed: Condvar::new(),
            recall: watch::Sender::new(None),
            committed: Notify::new(),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whoever waits for the partition to be asked back.
    pub(super) fn recalls(&self) -> watch::Receiver<Option<Recall>> {
        self.recall.subscribe()
    }

    /// Asks the lane to close until `deadline`.
    pub(super) fn recall(&self, deadline: Instant) {
        self.recall.send_replace(Some(Recall::Until(deadline.into())));
        self.queue.tell();
    }

    /// It belongs to somebody else from now on.
    pub(super) fn lose(&self) {
        self.lock().lane = LaneState::Gone;
        self.recall.send_replace(Some(Recall::Gone));
        self.queue.tell();
        self.committed.notify_waiters();
    }

    /// Its lane of this generation is done with it.
    pub(super) fn close(&self, generation: u64, left: LaneState) {
        let mut state = self.lock();
        if state.lane == LaneState::Open(generation) {
            state.lane = left;
            state.offsets.give_back_all();
            self.closed.notify_all();
        }
    }

    /// Waits until its lane is closed; false if it is still open at the deadline.
    pub(super) fn wait_closed(&self, deadline: Instant) -> bool {
        let mut state = self.lock();
        while matches!(state.lane, LaneState::Open(_)) {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else { return false };
            let waited = self.closed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

impl State {
    pub(super) fn new(offsets: Offsets, seen_to: i64) -> Self {
        Self {
            committed: None,
            offsets,
            lane: LaneState::Closed,
            finished_at_commit: 0,
            recorded_to: None,
            is_urgent: false,
            commit_after: None,
            seen_to,
            settled: BTreeMap::new(),
            settled_bytes: 0,
            rest: Rest::No,
            strayed_to: None,
            behind: None,
            is_behind: false,
            rewind_at: None,
            goes_back: false,
            is_wanted: false,
        }
    }

    /// A lane is wanted where there is none; it begins with the lowest unfinished record.
    pub(super) fn reopen(&mut self, now: Instant) {
        if matches!(self.lane, LaneState::Closed | LaneState::Dropped(_)) {
            self.lane = LaneState::Closed;
            self.is_wanted = true;
            self.read_again(now);
        }
    }

    /// What was given back is to be read again.
    pub(super) fn read_again(&mut self, now: Instant) {
        self.rewind_at = Some(now);
        self.goes_back = true;
    }

    /// What was read of these is dropped without having been noted: the first of them, and behind the last.
    pub(super) fn stray(&mut self, first: Option<i64>, end: i64) {
        self.strayed_to = self.strayed_to.max(Some(end));
        if let Some(first) = first.filter(|_| self.offsets.base().is_none()) {
            // Nothing was noted at all, and the client is to go back nevertheless.
            self.offsets.pass(first);
        }
    }

    /// Where the client is to go now, if it has to go back.
    pub(super) fn rewind(&mut self, now: Instant) -> Option<i64> {
        self.rewind_at.take_if(|at| *at <= now)?;
        let base = self.offsets.rewind();
        self.goes_back = base.is_some();
        base
    }

    /// The client has gone back, or is asked once more after a while.
    pub(super) fn rewound(&mut self, is_done: bool, now: Instant) {
        match is_done {
            true => {
                self.offsets.rewound();
                self.goes_back = self.rewind_at.is_some();
            }
            false => self.rewind_at = Some(now + REWIND_AGAIN_AFTER),
        }
    }

    /// Whether a lane is to be handed out now; says so once.
    pub(super) fn opens(&mut self) -> bool {
        self.rewind_at.is_none() && std::mem::take(&mut self.is_wanted)
    }

    /// What was known of this and later offsets was about records that are not there any more.
    pub(super) fn cut(&mut self, offset: i64) {
        self.settled.split_off(&offset);
        let settled = self.settled.values();
        self.settled_bytes =
            settled.flat_map(|it| it.outputs.iter()).map(Output::size).sum::<usize>();
        (self.committed, self.recorded_to) = (None, None);
        (self.strayed_to, self.seen_to) = (None, i64::MIN);
    }

    /// What should be committed now.
    pub(super) fn mark(&self) -> Option<Mark> {
        self.mark_with(&BTreeSet::new())
    }

    /// As [`mark`](Self::mark), in a transaction that finishes these.
    pub(super) fn mark_with(&self, settled: &BTreeSet<i64>) -> Option<Mark> {
        self.offsets.mark_with(settled, !matches!(self.lane, LaneState::Open(_)))
    }

    /// How much a crash would repeat, beside what is in flight.
    pub(super) fn uncommitted(&self) -> u64 {
        let finished = self.offsets.finished_count() - self.finished_at_commit;
        finished + self.settled.len() as u64
    }

    /// A record is done with, and `outputs` are to be written when that is committed.
    pub(super) fn settle(&mut self, offset: i64, outputs: Vec<Output>) {
        if !self.offsets.settle(offset) {
            return;
        }
        self.settled_bytes += outputs.iter().map(Output::size).sum::<usize>();
        let outputs = Arc::new(outputs);
        self.settled.insert(offset, Settled { offset, outputs, trouble: None });
        self.is_urgent |=
            self.settled.len() >= TRANSACTION_RECORDS || self.settled_bytes >= TRANSACTION_BYTES;
    }

    /// They are committed.
    pub(super) fn finish_all(&mut self, offsets: &BTreeSet<i64>) {
        for offset in offsets {
            self.offsets.finish(*offset);
            let Some(settled) = self.settled.remove(offset) else { continue };
            self.settled_bytes -= settled.outputs.iter().map(Output::size).sum::<usize>();
        }
    }

    /// Its outputs are refused: it is tried alone from now on, later and later.
    pub(super) fn put_aside(&mut self, offset: i64, now: Instant) {
        let Some(settled) = self.settled.get_mut(&offset) else { return };
        settled.trouble = Some(Trouble::again(settled.trouble, now));
    }

    /// Those that were put aside and are due.
    pub(super) fn troubled(&self, now: Instant) -> Vec<i64> {
        let is_due = |settled: &&Settled| settled.trouble.is_some_and(|it| it.is_due(now));
        self.settled.values().filter(is_due).map(|settled| settled.offset).collect()
    }

    /// The lane rests with nothing in hand: what lies below the consumer's `position` is received, or no record.
    pub(super) fn pass(&mut self, position: i64, now: Instant) {
        let is_whole = self.strayed_to.is_none_or(|strayed| self.offsets.next() >= Some(strayed));
        if is_whole && matches!(self.lane, LaneState::Open(_)) {
            self.offsets.pass(position);
        }
        self.rest = Rest::Passed(now);
    }

    /// Whether the lane has rested for long enough to have a look at the consumer's position; once more after a while,
    /// because the end of a transaction may come when nothing else does.
    pub(super) fn is_to_pass(&self, now: Instant) -> bool {
        match self.rest {
            Rest::No => false,
            Rest::Since(at) => now.saturating_duration_since(at) >= REST_MIN,
            Rest::Passed(at) => now.saturating_duration_since(at) >= PASS_AGAIN_AFTER,
        }
    }

    /// Notes where the log of a resting lane begins and ends, or that it does not rest.
    ///
    /// Behind is a lane for which the same record has been waiting for `patience`: what has just been written is
    /// still on its way.
    pub(super) fn look(&mut self, ends: Option<(i64, i64)>, patience: Duration, now: Instant) {
        let next = ends.and_then(|(low, end)| {
            let next = self.offsets.next().unwrap_or(low);
            (next < end).then_some(next)
        });
        self.behind = match (self.behind, next) {
            (Some((noted, since)), Some(next)) if noted == next => Some((noted, since)),
            (_, next) => next.map(|next| (next, now)),
        };
        self.is_behind = self.behind.is_some_and(|(_, since)| now - since >= patience);
    }

    /// Whether a transaction has room for more, in memory and in what it commits.
    pub(super) fn has_room(&self) -> bool {
        self.settled_bytes < SETTLED_BYTES_MAX && self.offsets.has_room(self.held_up())
    }

    fn held_up(&self) -> usize {
        self.settled.values().filter(|settled| settled.trouble.is_some()).count()
    }
}

/// The queue that librdkafka puts a partition's records into.
pub(super) struct Queue {
    pub(super) context: Arc<Context>,
    records: PartitionQueue<Context>,
    // After `records`: fields are dropped in this order.
    alarm: Rearming,
}

impl Queue {
    pub(super) fn new(
        context: Arc<Context>,
        records: PartitionQueue<Context>,
        alarm: Arc<Alarm>,
    ) -> Self {
        Self { context, records, alarm: Rearming(alarm) }
    }

    pub(super) fn records(&self) -> &PartitionQueue<Context> {
        &self.records
    }

    /// Tells whoever waits for records to look again.
    pub(super) fn tell(&self) {
        self.alarm.arrived.notify_one();
    }

    /// Waits until records have arrived since this was called last.
    pub(super) async fn arrived(&self) {
        self.alarm.arrived.notified().await;
    }
}

/// Sets the alarm again.
///
/// All queues of a partition are one queue to librdkafka. A batch that is held keeps the one it was read from,
/// which may belong to an earlier assignment; when it goes at last, it takes the alarm of its successor along.
struct Rearming(Arc<Alarm>);

impl std::ops::Deref for Rearming {
    type Target = Alarm;

    fn deref(&self) -> &Alarm {
        &self.0
    }
}

impl Drop for Rearming {
    fn drop(&mut self) {
        self.0.set();
    }
}

/// Tells when records arrive in a partition's queue; as long-lived as the consumer.
#[derive(Default)]
pub(super) struct Alarm {
    arrived: Arc<Notify>,
    /// A queue of its own, because only its owner can set what it calls.
    bell: Mutex<Option<PartitionQueue<Context>>>,
}

impl Alarm {
    /// Hangs up the bell of the present assignment.
    pub(super) fn hang(&self, bell: PartitionQueue<Context>) {
        // The old one goes first: going silences the queue.
        *self.lock() = None;
        *self.lock() = Some(bell);
        self.set();
    }

    /// Takes it down for good: it keeps the consumer alive.
    pub(super) fn take_down(&self) {
        *self.lock() = None;
    }

    fn set(&self) {
        if let Some(bell) = &mut *self.lock() {
            let arrived = Arc::clone(&self.arrived);
            bell.set_nonempty_callback(move || arrived.notify_one());
            self.arrived.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<PartitionQueue<Context>>> {
        self.bell.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::kafka::offsets::Receipt;

    #[test]
    fn a_client_that_cannot_go_back_is_asked_again_and_no_lane_opens_before() {
        let now = Instant::now();
        let mut state = State::new(Offsets::default(), i64::MIN);
        for offset in 0..3 {
            state.offsets.receive(offset, 0);
        }
        state.lane = LaneState::Dropped(now);
        state.offsets.give_back_all();
        state.reopen(now);
        assert_eq!(state.rewind(now), Some(0));
        state.rewound(false, now);
        assert_eq!((state.rewind(now), state.opens()), (None, false), "not at once");
        let later = now + REWIND_AGAIN_AFTER;
        assert_eq!(state.rewind(later), Some(0));
        state.rewound(true, later);
        assert_eq!((state.rewind(later), state.opens(), state.opens()), (None, true, false));
        assert_eq!(state.offsets.receive(0, 0), Receipt::Deliver { crashes: 0, again: true });
    }

    #[test]
    fn a_lane_reads_nothing_from_a_return_until_the_client_has_gone_back() {
        let now = Instant::now();
        let mut state = State::new(Offsets::new(Some(5), None), i64::MIN);
        state.offsets.receive(5, 0);
        state.offsets.give_back(5);
        state.read_again(now);
        assert!(state.goes_back);
        assert_eq!(state.rewind(now), Some(5));
        state.rewound(false, now);
        assert!(state.goes_back, "it could not");
        assert_eq!(state.rewind(now + REWIND_AGAIN_AFTER), Some(5));
        state.rewound(true, now);
        assert!(!state.goes_back);
    }

    #[test]
    fn what_was_read_and_dropped_before_anything_was_noted_is_where_the_client_goes_back_to() {
        let now = Instant::now();
        let mut state = State::new(Offsets::default(), i64::MIN);
        state.stray(Some(7), 9);
        state.read_again(now);
        assert_eq!((state.rewind(now), state.strayed_to), (Some(7), Some(9)));
    }

    #[test]
    fn the_end_of_a_transaction_that_comes_while_a_lane_rests_is_passed_too() {
        let now = Instant::now();
        let mut state = State::new(Offsets::new(Some(5), None), i64::MIN);
        state.lane = LaneState::Open(1);
        state.rest = Rest::Since(now);
        assert!(!state.is_to_pass(now) && state.is_to_pass(now + REST_MIN));
        state.pass(6, now + REST_MIN);
        assert_eq!(state.offsets.base(), Some(6));
        let later = now + REST_MIN + PASS_AGAIN_AFTER;
        assert!(!state.is_to_pass(now + REST_MIN) && state.is_to_pass(later));
        state.pass(9, later);
        assert_eq!(state.offsets.base(), Some(9));
    }

    #[test]
    fn what_is_given_back_while_the_client_goes_back_is_asked_for_too() {
        let now = Instant::now();
        let mut state = State::new(Offsets::new(Some(5), None), i64::MIN);
        state.read_again(now);
        assert_eq!(state.rewind(now), Some(5));
        state.read_again(now);
        state.rewound(true, now);
        assert_eq!(state.rewind(now), Some(5));
    }
}
