//! Commits of a member of a group: what is done with in its partitions, one commit at a time.
//!
//! Owns what is asked again and when. A partition whose commit is refused holds up no other: each is then committed
//! alone. Never called but on the thread that polls.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::consumer::{CommitMode, Consumer as _};
use rdkafka::error::KafkaResult;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::fault;
use super::group::Member;
use super::partition::{Consumer, Name, Partition};
use crate::telemetry;

/// How long the last commit of a partition may take where the group's coordinator moves.
const COMMIT_AT_LAST_MAX: Duration = Duration::from_secs(5);
/// What could not be committed is tried again after this.
const COMMIT_AGAIN_AFTER: Duration = Duration::from_millis(250);

impl Member {
    /// The longest text that the broker takes beside an offset, as far as we know.
    pub(super) fn text_length_max(&self) -> usize {
        self.text_length_max.load(Ordering::Relaxed)
    }

    /// It refused one of this length.
    pub(super) fn shorten_texts(&self, length: usize) {
        let length_max = length / 2;
        self.text_length_max.fetch_min(length_max, Ordering::Relaxed);
        telemetry::mark_refused(&self.group, length_max);
    }

    /// As [`commit`](Self::commit), and once more for a while when the group's coordinator is about to move: nobody
    /// commits these after us.
    pub(super) fn commit_at_last(&self, consumer: &Consumer, partitions: &[Arc<Partition>]) {
        let deadline = Instant::now() + COMMIT_AT_LAST_MAX;
        while !self.commit(consumer, partitions) && Instant::now() < deadline {
            thread::sleep(COMMIT_AGAIN_AFTER);
        }
    }

    /// Commits what is done with in these partitions, and waits for the answer. False if it would be another in a
    /// moment.
    pub(super) fn commit(&self, consumer: &Consumer, partitions: &[Arc<Partition>]) -> bool {
        let Some(transactions) = &self.transactions else {
            return self.commit_offsets(consumer, partitions);
        };
        let mut transactions = transactions.lock().unwrap_or_else(PoisonError::into_inner);
        if transactions.commit(self, consumer, partitions).is_err() {
            consumer.context().assignment.give_up();
        }
        true
    }

    fn commit_offsets(&self, consumer: &Consumer, partitions: &[Arc<Partition>]) -> bool {
        let due: Vec<Due<'_>> = partitions.iter().filter_map(|it| self.due(it)).collect();
        let Err(error) = self.commit_together(consumer, &due) else { return true };
        if fault::is_of_one(&error) && due.len() > 1 {
            // Who is refused holds nobody else up.
            return due
                .iter()
                .all(|one| self.commit_offsets(consumer, std::slice::from_ref(one.partition)));
        }
        if fault::is_too_long(&error)
            && let [one] = &*due
            && !one.mark.1.is_empty()
        {
            self.shorten_texts(one.mark.1.len());
            return self.commit_offsets(consumer, partitions);
        }
        let said = fault::said(&error);
        match fault::is_later(&error) {
            true => telemetry::commit_later(&self.group, &said),
            false => telemetry::commit_failed(&self.group, &said),
        }
        for one in &due {
            one.partition.lock().commit_after = Some(Instant::now() + COMMIT_AGAIN_AFTER);
        }
        !fault::is_soon(&error)
    }

    /// What is to be committed of a partition, if that is anything new.
    fn due<'a>(&self, partition: &'a Arc<Partition>) -> Option<Due<'a>> {
        let mut state = partition.lock();
        state.is_urgent = false;
        let mark = state.mark()?;
        let text = mark.to_text(&self.place(&partition.name), self.text_length_max());
        let committed = state.committed.as_ref();
        if committed.is_some_and(|(base, known)| *base == mark.base && *known == text) {
            // Nothing more fits beside the offset: whoever waits for that would wait for ever.
            state.recorded_to = Some(mark.next);
            drop(state);
            partition.committed.notify_waiters();
            return None;
        }
        let finished = state.offsets.finished_count();
        Some(Due { partition, mark: (mark.base, text), finished, next: mark.next })
    }

    fn commit_together(&self, consumer: &Consumer, due: &[Due<'_>]) -> KafkaResult<()> {
        if due.is_empty() {
            return Ok(());
        }
        let mut list = TopicPartitionList::new();
        for Due { partition, mark: (base, text), .. } in due {
            let Name { topic, number } = &partition.name;
            note(&mut list, (topic, *number), *base, text)?;
        }
        consumer.commit(&list, CommitMode::Sync)?;
        for Due { partition, mark, finished, next } in due {
            let mut state = partition.lock();
            state.committed = Some(mark.clone());
            state.finished_at_commit = *finished;
            state.recorded_to = Some(*next);
            drop(state);
            partition.committed.notify_waiters();
        }
        self.cluster.watch.reached();
        self.cluster.watch.admitted(&self.group);
        Ok(())
    }
}

/// Adds what is to be committed of a partition: its offset, and the text beside it.
pub(super) fn note(
    list: &mut TopicPartitionList,
    (topic, number): (&str, i32),
    offset: i64,
    text: &str,
) -> KafkaResult<()> {
    let mut elem = list.add_partition(topic, number);
    elem.set_offset(Offset::Offset(offset))?;
    elem.set_metadata(text);
    Ok(())
}

/// What is committed of one partition.
struct Due<'a> {
    partition: &'a Arc<Partition>,
    mark: (i64, String),
    finished: u64,
    next: i64,
}
