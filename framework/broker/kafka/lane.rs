//! Lanes: a partition drained straight from librdkafka's queue of it.
//!
//! Owns what is handed out, and how settlements become offsets. Polls no broker and commits nothing: the owner of
//! the group does. Back-pressure is not to read on: librdkafka stops fetching when its queue of the partition is
//! full, nothing is paused and nothing that was fetched is thrown away.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::time::{sleep, timeout};

use super::envelope::{KafkaEnvelope, Page};
use super::offsets::Receipt;
use super::outbox::Outbox;
use super::partition::{LaneState, Partition, Rest};
use super::reader::{Ahead, BATCH_MAX, Batch, Found};
use crate::broker::{
    BrokerError, Envelope, Fault, Lane, LaneEnd, Recall, Received, Settlement, SharedEnvelope,
    Token,
};
use crate::wire::Carried;

/// How long a lane trusts that it is told about records (librdkafka tells only of an empty queue that fills).
const LOOK_MAX: Duration = Duration::from_secs(1);
/// How long a commit that is waited for may have been missed.
const LOOK_SOON: Duration = Duration::from_millis(50);
/// At most so many finished records may be uncommitted; a crash repeats them.
const UNCOMMITTED_MAX: u64 = 50_000;
/// How long after a death every batch is recorded before it is handed out.
const CARE_AFTER_DEATH: Duration = Duration::from_secs(10);
/// A token is a generation and a distance from the lane's first offset: 20 bits and 44.
const DISTANCE_BITS: u32 = 44;

/// How a lane's records become due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pace {
    /// At once.
    Now,
    /// This long after they were written, or when their header says, if that is earlier; and never longer than this after they
    /// were read.
    After(Duration),
}

/// For how long it matters which record is in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Care {
    /// Each is handled alone.
    Always,
    /// Nothing has been handed out yet.
    First,
    /// The last owner died.
    Until(Instant),
    Over,
}

impl Care {
    /// Whether what is handed out must be known to the group first; always while something noted was not handed out
    /// yet, which nothing may overtake.
    fn applies(self, has_pending: bool, now: Instant) -> bool {
        has_pending
            || match self {
                Self::Always | Self::First => true,
                Self::Until(end) => now < end,
                Self::Over => false,
            }
    }
}

/// One partition.
pub(super) struct KafkaLane {
    partition: Arc<Partition>,
    generation: u64,
    pace: Pace,
    /// What is read ahead; by nobody but where much is read at once.
    ahead: Arc<Ahead>,
    /// Read and not due yet, or not asked for yet; no offset of them is noted.
    held: VecDeque<(Arc<Batch>, usize)>,
    /// When those were read.
    read_at: Instant,
    /// The offset that tokens count from.
    origin: Option<i64>,
    /// Noted, and not handed out before that is committed.
    pending: Vec<Received>,
    /// Whether a death must be counted whatever it costs.
    care: Care,
    /// What is written over each record that is out, by offset, where that and its offset are one transaction.
    outboxes: Option<BTreeMap<i64, Arc<Outbox>>>,
    /// It said that it rests.
    rests: bool,
}

impl KafkaLane {
    pub(super) fn new(
        partition: Arc<Partition>,
        generation: u64,
        pace: Pace,
        care: Care,
        is_transactional: bool,
    ) -> Self {
        Self {
            ahead: Ahead::of(&partition.queue),
            partition,
            generation,
            pace,
            held: VecDeque::new(),
            read_at: Instant::now(),
            origin: None,
            pending: Vec::new(),
            care,
            outboxes: is_transactional.then(BTreeMap::new),
            rests: false,
        }
    }

    /// As [`take`](Self::take), after what is taken was committed as being in flight.
    async fn take_carefully(
        &mut self,
        batch: &mut Vec<Received>,
        limit: usize,
    ) -> Result<bool, LaneEnd> {
        // Kept in the lane while it waits: a cancelled call loses nothing.
        let mut pending = std::mem::take(&mut self.pending);
        let taken = if pending.is_empty() { self.take(&mut pending, limit) } else { Ok(true) };
        self.pending = pending;
        if !taken? {
            return Ok(false);
        }
        while !self.is_recorded()? {
            let _ = timeout(LOOK_SOON, self.partition.committed.notified()).await;
        }
        let count = self.pending.len().min(limit.max(1));
        batch.extend(self.pending.drain(..count));
        Ok(true)
    }

    /// Whether the last commit knew of all that was noted; if not, asks for one.
    fn is_recorded(&self) -> Result<bool, LaneEnd> {
        let mut state = self.partition.lock();
        if state.lane != LaneState::Open(self.generation) {
            return Err(LaneEnd::Revoked);
        }
        let is_recorded = state.recorded_to >= state.offsets.next();
        state.is_urgent |= !is_recorded;
        Ok(is_recorded)
    }

    /// Whether what is handed out must be known to the group first.
    ///
    /// A message that ends the process at once would otherwise do so for ever: nobody would know that it was in
    /// flight. So the first batch after an opening is recorded, and after a death every batch for a while.
    fn is_careful(&self) -> bool {
        self.care.applies(!self.pending.is_empty(), Instant::now())
    }

    /// Appends what is there; false if that is nothing.
    fn take(&mut self, batch: &mut Vec<Received>, limit: usize) -> Result<bool, LaneEnd> {
        let before = batch.len();
        while batch.len() == before {
            if self.held.is_empty() && !self.read(limit) {
                return Ok(false);
            }
            let count = self.due(limit);
            if count == 0 {
                return Ok(false);
            }
            self.hand_out(batch, count)?;
        }
        Ok(true)
    }

    /// Takes records that were read ahead, or reads some; false if there are none, or none yet.
    fn read(&mut self, limit: usize) -> bool {
        self.rest(false);
        if self.partition.lock().goes_back {
            return false;
        }
        let batch = match self.ahead.take() {
            Found::Batch(batch) => Some(batch),
            Found::Soon => None,
            Found::Nothing => self.ahead.read(limit.clamp(1, BATCH_MAX)),
        };
        let Some(batch) = batch else { return false };
        let batch = Arc::new(batch);
        self.read_at = Instant::now();
        self.held.extend((0..batch.len()).map(|index| (Arc::clone(&batch), index)));
        true
    }

    /// How many of those that are held may be handed out.
    fn due(&self, limit: usize) -> usize {
        let count = self.held.len().min(limit.max(1));
        match self.pace {
            Pace::Now => count,
            Pace::After(wait) => {
                let is_due = |held: &&(Arc<Batch>, usize)| self.left(held, wait).is_zero();
                self.held.iter().take(count).take_while(is_due).count()
            }
        }
    }

    /// How long it waits from now on. Never longer than `wait` from when it was read, which was after it was written: a clock
    /// that is ahead where it was written would hold up all behind it.
    fn left(&self, held: &(Arc<Batch>, usize), wait: Duration) -> Duration {
        let left = self.due_at(held, wait).duration_since(SystemTime::now()).unwrap_or_default();
        left.min(wait.saturating_sub(self.read_at.elapsed()))
    }

    fn due_at(&self, (batch, index): &(Arc<Batch>, usize), wait: Duration) -> SystemTime {
        let (batch, index) = (Arc::clone(batch), *index);
        let envelope = KafkaEnvelope::new(batch, index, (0, false), None);
        let written = envelope.published_at().unwrap_or(SystemTime::UNIX_EPOCH);
        let nominal = written + wait;
        // A header may shorten the wait, as a crash between two steps does, but never make it longer.
        let due = Carried::read(&envelope).due.map_or(nominal, |due| due.min(nominal));
        // Both were cut to whole milliseconds on their way.
        due + Duration::from_millis(1)
    }

    /// Notes the first `count` of those that are held, and hands out those that are not finished.
    fn hand_out(&mut self, batch: &mut Vec<Received>, count: usize) -> Result<(), LaneEnd> {
        let mut state = self.partition.lock();
        if state.lane != LaneState::Open(self.generation) {
            return Err(LaneEnd::Revoked);
        }
        let mut page = Vec::with_capacity(count);
        for (records, index) in self.held.drain(..count) {
            let offset = records.offset(index);
            let time = records.millis(index).unwrap_or(-1);
            let (crashes, again) = match state.offsets.receive(offset, time) {
                Receipt::Deliver { crashes, again } => (crashes, again),
                Receipt::Skip => continue,
                Receipt::Cut => {
                    state.cut(offset);
                    return Err(LaneEnd::Lost(begins_again(&self.partition, offset)));
                }
            };
            self.origin.get_or_insert_with(|| state.offsets.base().unwrap_or(offset));
            let again = again || offset < state.seen_to;
            let outbox = self.outboxes.as_mut().map(|outboxes| {
                let outbox = Arc::<Outbox>::default();
                outboxes.insert(offset, Arc::clone(&outbox));
                outbox
            });
            page.push(KafkaEnvelope::new(records, index, (crashes, again), outbox));
        }
        if self.care == Care::First {
            self.care = match state.offsets.follows_a_death() {
                true => Care::Until(Instant::now() + CARE_AFTER_DEATH),
                false => Care::Over,
            };
        }
        drop(state);
        self.deliver(page, batch);
        Ok(())
    }

    /// Appends the messages of a page, which is one allocation.
    fn deliver(&self, page: Vec<KafkaEnvelope>, batch: &mut Vec<Received>) {
        let origin = self.origin.unwrap_or_default();
        let page = Arc::new(Page(page));
        batch.extend(page.0.iter().enumerate().map(|(place, envelope)| Received {
            token: token(self.generation, envelope.offset() - origin),
            envelope: SharedEnvelope::among(Arc::<Page>::clone(&page), place),
        }));
    }

    /// Forgets what was read and not noted: it is read again, and until then the consumer's position lies.
    fn drop_held(&mut self) {
        let ahead = std::mem::replace(&mut self.ahead, Ahead::of(&self.partition.queue)).end();
        let offset = |held: &(Arc<Batch>, usize)| held.0.offset(held.1);
        let first = self.held.front().map(offset);
        let end = ahead.or(self.held.back().map(|held| offset(held) + 1));
        if let Some(end) = end {
            self.partition.lock().stray(first, end);
        }
        self.held.clear();
    }

    /// Tells the owner of the group whether the consumer's position is what was noted.
    fn rest(&mut self, rests: bool) {
        if self.rests != rests {
            self.rests = rests;
            let since = Rest::Since(Instant::now());
            self.partition.lock().rest = if rests { since } else { Rest::No };
        }
    }

    /// Waits until there may be more.
    async fn wait(&mut self) {
        self.rest(self.held.is_empty() && self.pending.is_empty() && self.ahead.is_idle());
        let mut look = LOOK_MAX;
        if let (Some(head), Pace::After(wait)) = (self.held.front(), self.pace) {
            let left = self.left(head, wait);
            // Timers of the runtime are a millisecond coarse; and a clock that is set is noticed within a second.
            look = look.min(left + Duration::from_millis(1));
        }
        tokio::select! {
            () = self.partition.queue.arrived() => {}
            () = sleep(look) => {}
        }
    }

    /// Whether a crash would repeat less than it may, and what is known of the partition takes no more memory than it
    /// may; if not, asks for a commit.
    fn is_committed(&self) -> Result<bool, LaneEnd> {
        let mut state = self.partition.lock();
        if state.lane != LaneState::Open(self.generation) {
            return Err(LaneEnd::Revoked);
        }
        let is_committed =
            state.uncommitted() < UNCOMMITTED_MAX && (self.outboxes.is_none() || state.has_room());
        state.is_urgent |= !is_committed;
        Ok(is_committed && state.offsets.is_short())
    }

    fn offset_of(&self, token: Token) -> Option<i64> {
        let distance = i64::try_from(token.0 & ((1 << DISTANCE_BITS) - 1)).ok()?;
        let ours = self::token(self.generation, distance) == token;
        self.origin.filter(|_| ours).map(|origin| origin + distance)
    }
}

/// The next lane of the partition reads it from here.
fn begins_again(partition: &Partition, offset: i64) -> BrokerError {
    let text = format!(
        "the log of {} begins again at offset {offset}: its topic was deleted and created again, or lost its end with a leader",
        partition.name
    );
    BrokerError::new(Fault::Other, text)
}

fn token(generation: u64, distance: i64) -> Token {
    Token(generation << DISTANCE_BITS | distance.cast_unsigned() & ((1 << DISTANCE_BITS) - 1))
}

#[async_trait(?Send)]
impl Lane for KafkaLane {
    async fn next(&mut self, batch: &mut Vec<Received>, limit: usize) -> Result<(), LaneEnd> {
        loop {
            while !self.is_committed()? {
                // Looked at again after a while: the commit may have come in between.
                let _ = timeout(LOOK_SOON, self.partition.committed.notified()).await;
            }
            let taken = match self.is_careful() {
                true => self.take_carefully(batch, limit).await?,
                false => self.take(batch, limit)?,
            };
            if taken {
                return Ok(());
            }
            self.wait().await;
        }
    }

    async fn settle(&mut self, settlements: &mut Vec<Settlement>) -> Result<(), LaneEnd> {
        if settlements.is_empty() {
            return Ok(());
        }
        let mut state = self.partition.lock();
        if state.lane != LaneState::Open(self.generation) {
            return Err(LaneEnd::Revoked);
        }
        let mut is_returned = false;
        for settlement in settlements.drain(..) {
            let (Settlement::Ack(token) | Settlement::Return(token)) = settlement;
            let Some(offset) = self.offset_of(token) else { continue };
            match settlement {
                Settlement::Ack(_) => match &mut self.outboxes {
                    None => {
                        state.offsets.finish(offset);
                    }
                    Some(outboxes) => {
                        let outbox = outboxes.remove(&offset);
                        state.settle(offset, outbox.map_or_else(Vec::new, |outbox| outbox.take()));
                    }
                },
                Settlement::Return(_) => is_returned |= state.offsets.give_back(offset),
            }
        }
        drop(state);
        if is_returned {
            self.drop_held();
            self.partition.lock().read_again(Instant::now());
        }
        Ok(())
    }

    async fn close(&mut self) -> Result<(), LaneEnd> {
        self.drop_held();
        self.pending.clear();
        self.rest(false);
        self.partition.close(self.generation, LaneState::Closed);
        Ok(())
    }

    async fn is_behind(&self) -> Option<bool> {
        Some(self.partition.lock().is_behind)
    }

    fn recalled(&self) -> BoxFuture<'static, Recall> {
        let mut recalls = self.partition.recalls();
        async move {
            let recall = recalls.wait_for(Option::is_some).await;
            recall.ok().and_then(|recall| *recall).unwrap_or(Recall::Gone)
        }
        .boxed()
    }

    fn generation(&self) -> u64 {
        self.generation
    }
}

impl Drop for KafkaLane {
    fn drop(&mut self) {
        self.drop_held();
        self.partition.close(self.generation, LaneState::Dropped(Instant::now()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_noted_is_handed_out_though_the_care_has_ended_meanwhile() {
        let (now, later) = (Instant::now(), Instant::now() + Duration::from_secs(1));
        assert!(Care::Until(later).applies(false, now));
        assert!(!Care::Until(now).applies(false, later));
        assert!(Care::Until(now).applies(true, later));
        assert!(Care::Over.applies(true, now));
    }
}
