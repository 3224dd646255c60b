//! Offsets, and what was published over the records they finish, in one transaction (KIP-447).
//!
//! Owns the producer of one member of a group, and runs on its thread. Everything is in memory before a transaction
//! begins, so that one is short, and one that was aborted is made again without running a handler. What keeps a
//! transaction from being written is put aside and tried alone: it never holds its neighbours up.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{Consumer as _, ConsumerGroupMetadata};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::Message as _;
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer as _, ProducerContext};
use rdkafka::topic_partition_list::TopicPartitionList;

use super::commit::note;
use super::connection::{ANSWER_MAX, Watch};
use super::fault;
use super::group::Member;
use super::marks::Mark;
use super::outbox::Output;
use super::partition::{Consumer, Name, Partition, Settled, State, Trouble};
use crate::telemetry;

/// How long the end of a transaction may stay unknown.
const END_MAX: Duration = Duration::from_secs(60);
/// How long a record may wait for room in librdkafka's queue.
const QUEUE_MAX: Duration = Duration::from_secs(10);

type Client = rdkafka::producer::ThreadedProducer<Reports>;

/// The transactions of one member.
pub(super) struct Transactions {
    /// The same for as long as the member lives, so that a new producer ends what its predecessor left open.
    id: String,
    producer: Option<Client>,
    stuck: Stuck,
}

/// Topics that take nothing at the moment, such as one whose partition has no leader: what is for them is written
/// apart from the rest.
#[derive(Default)]
struct Stuck {
    topics: BTreeMap<String, Trouble>,
    /// Those that kept the last transaction from being written.
    late: BTreeSet<String>,
}

impl Stuck {
    /// The transaction of everything else was written, or kept from it by these topics.
    fn note(&mut self, late: BTreeSet<String>, now: Instant) {
        // Once may be an election.
        for topic in late.intersection(&self.late) {
            self.topics.insert(topic.clone(), Trouble::again(None, now));
        }
        self.late = late;
    }

    /// One that was put apart was tried again.
    fn tried(&mut self, topic: &str, is_written: bool, now: Instant) {
        let before = self.topics.remove(topic);
        if !is_written {
            self.topics.insert(topic.to_owned(), Trouble::again(before, now));
        }
    }

    fn holds(&self, settled: &Settled) -> bool {
        !self.topics.is_empty()
            && settled.outputs.iter().any(|output| self.topics.contains_key(&output.topic))
    }

    fn due(&self, now: Instant) -> Option<String> {
        let mut topics = self.topics.iter();
        topics.find(|(_, trouble)| trouble.is_due(now)).map(|(topic, _)| topic.clone())
    }
}

/// A record that was not written: which of the transaction's, to which topic, and why.
type NotWritten = (usize, String, RDKafkaErrorCode);

/// Hears which records were not written.
struct Reports {
    watch: Arc<Watch>,
    failed: Mutex<Vec<NotWritten>>,
}

impl ClientContext for Reports {
    fn error(&self, error: KafkaError, reason: &str) {
        self.watch.hear(&error, reason);
    }
}

impl ProducerContext for Reports {
    /// Which of the transaction's records it is.
    type DeliveryOpaque = usize;

    fn delivery(&self, delivered: &DeliveryResult<'_>, index: usize) {
        if let Err((error, record)) = delivered {
            self.note(index, record.topic(), error);
        }
    }
}

impl Reports {
    fn note(&self, index: usize, topic: &str, error: &KafkaError) {
        if let Some(code) = error.rdkafka_error_code() {
            let failed = (index, topic.to_owned(), code);
            self.failed.lock().unwrap_or_else(PoisonError::into_inner).push(failed);
        }
    }
}

/// What became of a transaction.
enum Outcome {
    /// There was nothing to write.
    Nothing,
    Written,
    /// It was aborted; these topics are to blame.
    Aborted(BTreeSet<String>),
}

/// Why a transaction was not committed.
enum Failed {
    /// Nothing of it counts; it may be made again.
    Aborted(KafkaError),
    /// Nobody knows whether it counts: the group has to be asked, by a new consumer.
    Unknown(KafkaError),
}

impl Transactions {
    pub(super) fn new(id: String) -> Self {
        Self { id, producer: None, stuck: Stuck::default() }
    }

    /// Makes the producer, and ends what an earlier one left open: before any offset is asked for.
    pub(super) fn open(&mut self, member: &Member) -> KafkaResult<()> {
        self.producer = None;
        let config = member.cluster.clients.transactional(&self.id);
        let reports =
            Reports { watch: Arc::clone(&member.cluster.watch), failed: Mutex::default() };
        let producer = Client::from_config_and_context(&config, reports)?;
        producer.init_transactions(ANSWER_MAX)?;
        self.producer = Some(producer);
        Ok(())
    }

    /// Commits what is settled in these partitions.
    ///
    /// # Errors
    /// The consumer is of no use any more: what is committed has to be asked for again.
    pub(super) fn commit(
        &mut self,
        member: &Member,
        consumer: &Consumer,
        partitions: &[Arc<Partition>],
    ) -> KafkaResult<()> {
        let is_free = |settled: &Settled| settled.trouble.is_none() && !self.stuck.holds(settled);
        let together = Batch::of(member, partitions, is_free);
        match self.transact(member, consumer, together)? {
            Outcome::Nothing => {}
            Outcome::Written => self.stuck.note(BTreeSet::new(), Instant::now()),
            Outcome::Aborted(late) => self.stuck.note(late, Instant::now()),
        }
        if let Some(topic) = self.stuck.due(Instant::now()) {
            let is_for = |settled: &Settled| {
                let mut topics = settled.outputs.iter().map(|output| &output.topic);
                settled.trouble.is_none() && topics.any(|it| *it == topic)
            };
            let apart = Batch::of(member, partitions, is_for);
            let outcome = self.transact(member, consumer, apart)?;
            let is_written = !matches!(outcome, Outcome::Aborted(_));
            self.stuck.tried(&topic, is_written, Instant::now());
        }
        for partition in partitions {
            let troubled = partition.lock().troubled(Instant::now());
            for offset in troubled {
                let one = |settled: &Settled| settled.offset == offset;
                let alone = Batch::of(member, std::slice::from_ref(partition), one);
                self.transact(member, consumer, alone)?;
            }
        }
        Ok(())
    }

    /// Writes these.
    fn transact(&self, member: &Member, consumer: &Consumer, batch: Batch) -> KafkaResult<Outcome> {
        // Without the group's metadata we are no member: what is settled is somebody else's to do.
        let Some(group) = consumer.group_metadata().filter(|_| !batch.parts.is_empty()) else {
            return Ok(Outcome::Nothing);
        };
        let Some(producer) = &self.producer else { return Ok(Outcome::Nothing) };
        match write(producer, &batch, &group) {
            Ok(()) => {
                batch.finish();
                member.cluster.watch.reached();
                Ok(Outcome::Written)
            }
            Err(Failed::Aborted(error)) => {
                telemetry::transaction_aborted(&member.group, &fault::said(&error));
                if fault::is_too_long(&error) {
                    let lengths = batch.parts.iter().map(|part| part.committed.1.len());
                    member.shorten_texts(lengths.max().unwrap_or(0));
                }
                let failed = &producer.context().failed;
                let failed =
                    std::mem::take(&mut *failed.lock().unwrap_or_else(PoisonError::into_inner));
                let late = late_topics(&batch.outputs, &failed);
                batch.put_aside(failed, &member.group);
                Ok(Outcome::Aborted(late))
            }
            Err(Failed::Unknown(error)) => {
                telemetry::transaction_unknown(&member.group, &fault::said(&error));
                Err(error)
            }
        }
    }
}

/// Writes one transaction from its beginning to its end.
fn write(producer: &Client, batch: &Batch, group: &ConsumerGroupMetadata) -> Result<(), Failed> {
    producer.context().failed.lock().unwrap_or_else(PoisonError::into_inner).clear();
    producer.begin_transaction().map_err(Failed::Unknown)?;
    let sent = batch
        .send(producer)
        .and_then(|()| producer.send_offsets_to_transaction(&batch.offsets, group, ANSWER_MAX));
    match sent {
        Ok(()) => end(producer, |producer| producer.commit_transaction(ANSWER_MAX)),
        Err(error) => Err(aborted(producer, error)),
    }
}

/// Brings a transaction to its end; a question without an answer is asked again.
fn end(producer: &Client, ask: impl Fn(&Client) -> KafkaResult<()>) -> Result<(), Failed> {
    let deadline = Instant::now() + END_MAX;
    loop {
        let error = match ask(producer) {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        match &error {
            KafkaError::Transaction(why) if why.txn_requires_abort() => {
                return Err(aborted(producer, error));
            }
            KafkaError::Transaction(why) if !why.is_retriable() => {
                return Err(Failed::Unknown(error));
            }
            _ if Instant::now() >= deadline => return Err(Failed::Unknown(error)),
            _ => {}
        }
    }
}

fn aborted(producer: &Client, why: KafkaError) -> Failed {
    if matches!(&why, KafkaError::Transaction(error) if error.is_fatal()) {
        return Failed::Unknown(why);
    }
    let deadline = Instant::now() + END_MAX;
    loop {
        match producer.abort_transaction(ANSWER_MAX) {
            Ok(()) => return Failed::Aborted(why),
            Err(KafkaError::Transaction(error))
                if error.is_retriable() && Instant::now() < deadline => {}
            Err(_) => return Failed::Unknown(why),
        }
    }
}

/// What goes into one transaction.
struct Batch {
    offsets: TopicPartitionList,
    parts: Vec<Part>,
    outputs: Vec<Written>,
}

/// The part and the offset that it belongs to, and what is written over it.
type Written = (usize, i64, Arc<Vec<Output>>);

/// What a transaction finishes of one partition.
struct Part {
    partition: Arc<Partition>,
    settled: BTreeSet<i64>,
    committed: (i64, String),
    next: i64,
}

impl Batch {
    /// Those that are settled and chosen, with the offsets to commit when they are finished.
    fn of(
        member: &Member,
        partitions: &[Arc<Partition>],
        is_chosen: impl Fn(&Settled) -> bool,
    ) -> Self {
        let mut batch =
            Self { offsets: TopicPartitionList::new(), parts: Vec::new(), outputs: Vec::new() };
        for partition in partitions {
            let mut state = partition.lock();
            state.is_urgent = false;
            let chosen = state.settled.values().filter(|settled| is_chosen(settled));
            let mut settled: BTreeSet<i64> = chosen.map(|settled| settled.offset).collect();
            let length_max = member.text_length_max();
            let Some(mark) = mark_that_fits(&state, &mut settled, length_max) else { continue };
            let text = mark.to_text(&member.place(&partition.name), length_max);
            let committed = (mark.base, text);
            if settled.is_empty() && state.committed.as_ref() == Some(&committed) {
                // Nothing more fits beside the offset: whoever waits for that would wait for ever.
                state.recorded_to = Some(mark.next);
                partition.committed.notify_waiters();
                continue;
            }
            let part = batch.parts.len();
            for offset in &settled {
                let outputs = state.settled.get(offset).map(|settled| Arc::clone(&settled.outputs));
                batch.outputs.extend(outputs.map(|outputs| (part, *offset, outputs)));
            }
            drop(state);
            let Name { topic, number } = &partition.name;
            // A plain offset is never refused.
            let _ = note(&mut batch.offsets, (topic, *number), mark.base, &committed.1);
            let partition = Arc::clone(partition);
            batch.parts.push(Part { partition, settled, committed, next: mark.next });
        }
        batch
    }

    fn send(&self, producer: &Client) -> KafkaResult<()> {
        for (index, (.., outputs)) in self.outputs.iter().enumerate() {
            for output in outputs.iter() {
                send(producer, output, index)
                    .inspect_err(|error| producer.context().note(index, &output.topic, error))?;
            }
        }
        Ok(())
    }

    /// It is committed: what was settled is finished.
    fn finish(self) {
        for Part { partition, settled, committed, next } in self.parts {
            let mut state = partition.lock();
            state.finish_all(&settled);
            state.committed = Some(committed);
            state.finished_at_commit = state.offsets.finished_count();
            state.recorded_to = Some(next);
            drop(state);
            partition.committed.notify_waiters();
        }
    }

    /// Those whose own fault it may be that nothing was written are tried alone: at once, then later and later.
    fn put_aside(&self, failed: Vec<NotWritten>, group: &str) {
        let faults = failed.into_iter().filter(|(.., code)| is_its_own_fault(*code));
        let faults: BTreeMap<usize, RDKafkaErrorCode> =
            faults.map(|(index, _, code)| (index, code)).collect();
        for (index, code) in faults {
            let Some((part, offset, outputs)) = self.outputs.get(index) else { continue };
            // Together with others it may be one of these: the broker refuses whole batches.
            if let ([_], Some(output)) = (self.outputs.as_slice(), outputs.first()) {
                telemetry::output_refused(group, &output.topic, &code);
            }
            self.parts[*part].partition.lock().put_aside(*offset, Instant::now());
        }
    }
}

/// What to commit with as many of these as it can hold. None if there is nothing that could be: what is finished ahead
/// was written, and is never left out.
fn mark_that_fits(state: &State, settled: &mut BTreeSet<i64>, length_max: usize) -> Option<Mark> {
    loop {
        let mut mark = state.mark_with(settled)?;
        if !mark.fits(length_max) {
            mark.crashes.clear();
        }
        if mark.fits(length_max) {
            return Some(mark);
        }
        // The lower half may leave fewer gaps.
        let half = *settled.iter().nth(settled.len() / 2)?;
        settled.split_off(&half);
    }
}

/// Hands one record to librdkafka, which copies it.
fn send(producer: &Client, output: &Output, index: usize) -> KafkaResult<()> {
    let deadline = Instant::now() + QUEUE_MAX;
    loop {
        let mut record = BaseRecord::<[u8], [u8], usize>::with_opaque_to(&output.topic, index)
            .headers(output.headers.clone());
        record.payload = output.payload.as_deref();
        record.key = output.key.as_deref();
        match producer.send(record) {
            Ok(()) => return Ok(()),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _))
                if Instant::now() < deadline =>
            {
                producer.poll(Duration::from_millis(10));
            }
            Err((error, _)) => return Err(error),
        }
    }
}

/// The topics that did not answer in time, or had nobody to answer, where others did: with all of them it is the
/// cluster, and nothing would be won by writing them apart.
fn late_topics(outputs: &[Written], failed: &[NotWritten]) -> BTreeSet<String> {
    use RDKafkaErrorCode as Code;
    let is_late = |code: Code| {
        matches!(
            code,
            Code::MessageTimedOut
                | Code::NotEnoughReplicas
                | Code::NotEnoughReplicasAfterAppend
                | Code::LeaderNotAvailable
                | Code::NotLeaderForPartition
        )
    };
    let late: BTreeSet<String> = failed
        .iter()
        .filter(|(.., code)| is_late(*code))
        .map(|(_, topic, _)| topic.clone())
        .collect();
    let mut topics = outputs.iter().flat_map(|(.., outputs)| outputs.iter());
    let is_part = topics.any(|output| !late.contains(&output.topic));
    if is_part { late } else { BTreeSet::new() }
}

/// Whether it is this record that is refused, and not the cluster that is in trouble.
fn is_its_own_fault(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        code,
        Code::MessageSizeTooLarge
            | Code::InvalidMessageSize
            | Code::InvalidMessage
            | Code::InvalidRecord
            | Code::UnknownTopic
            | Code::UnknownTopicOrPartition
            | Code::UnknownPartition
            | Code::InvalidTopic
            | Code::TopicAuthorizationFailed
            | Code::PolicyViolation
    )
}

#[cfg(test)]
mod tests {
    use super::super::marks::TEXT_LENGTH_MAX;
    use super::super::offsets::Offsets;
    use super::*;

    /// Records of which every second one is settled.
    fn gaps(count: i64) -> (State, BTreeSet<i64>) {
        let mut state = State::new(Offsets::default(), i64::MIN);
        for index in 0..2 * count {
            state.offsets.receive(index * 500, 0);
        }
        let settled: BTreeSet<i64> = (0..count).map(|it| (2 * it + 1) * 500).collect();
        settled.iter().for_each(|offset| state.settle(*offset, Vec::new()));
        (state, settled)
    }

    #[test]
    fn a_transaction_holds_what_can_be_written_beside_its_offset() {
        let (mut state, mut settled) = gaps(1_600);
        let mark = mark_that_fits(&state, &mut settled, TEXT_LENGTH_MAX).expect("some of it fits");
        assert!(mark.fits(TEXT_LENGTH_MAX) && mark.done.len() == settled.len());
        assert!(settled.len() >= 200, "{}", settled.len());
        // Finished by an earlier transaction, which may be left out of no later one.
        let (_, all) = gaps(1_600);
        state.finish_all(&all);
        let none = mark_that_fits(&state, &mut BTreeSet::new(), TEXT_LENGTH_MAX);
        assert!(none.is_none(), "nothing is committed that would be written again");
    }

    fn output(topic: &str) -> Output {
        let headers = rdkafka::message::OwnedHeaders::new();
        Output { topic: topic.to_owned(), key: None, payload: None, headers }
    }

    #[test]
    fn a_topic_without_a_leader_is_written_apart_after_the_second_time() {
        let outputs: Vec<Written> = ["sick", "well"]
            .iter()
            .zip(0..)
            .map(|(topic, offset)| (0, offset, Arc::new(vec![output(topic)])))
            .collect();
        let timed_out = |topic: &str| (0, topic.to_owned(), RDKafkaErrorCode::MessageTimedOut);
        let late = late_topics(&outputs, &[timed_out("sick")]);
        assert_eq!(late, BTreeSet::from(["sick".to_owned()]));
        let all = late_topics(&outputs, &[timed_out("sick"), timed_out("well")]);
        assert!(all.is_empty(), "the cluster is away, and no topic is to blame");

        let (now, mut stuck) = (Instant::now(), Stuck::default());
        let of = |topic: &str| Settled {
            offset: 0,
            outputs: Arc::new(vec![output(topic)]),
            trouble: None,
        };
        stuck.note(late.clone(), now);
        assert!(!stuck.holds(&of("sick")), "once may be an election");
        stuck.note(late, now);
        assert!(stuck.holds(&of("sick")) && !stuck.holds(&of("well")));
        assert_eq!(stuck.due(now).as_deref(), Some("sick"));
        stuck.tried("sick", false, now);
        assert_eq!(stuck.due(now), None, "later and later");
        stuck.tried("sick", true, now);
        assert!(!stuck.holds(&of("sick")));
    }

    #[test]
    fn a_partition_whose_gaps_are_many_is_not_read_on() {
        let (state, _) = gaps(399);
        assert!(state.has_room());
        let (mut state, settled) = gaps(400);
        assert!(!state.has_room());
        state.finish_all(&settled);
        assert!(
            !state.has_room(),
            "what is open still counts when all that was settled is committed"
        );
    }
}
