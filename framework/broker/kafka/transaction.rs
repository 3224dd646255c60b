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
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer as _, ProducerContext};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::connection::{ANSWER_MAX, Watch};
use super::fault;
use super::group::Member;
use super::outbox::Output;
use super::partition::{Consumer, Name, Partition, Settled};
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
}

/// Hears which records were not written.
struct Reports {
    watch: Arc<Watch>,
    failed: Mutex<Vec<(usize, RDKafkaErrorCode)>>,
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
        if let Err((error, _)) = delivered {
            self.note(index, error);
        }
    }
}

impl Reports {
    fn note(&self, index: usize, error: &KafkaError) {
        if let Some(code) = error.rdkafka_error_code() {
            self.failed.lock().unwrap_or_else(PoisonError::into_inner).push((index, code));
        }
    }
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
        Self { id, producer: None }
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
        let together = Batch::of(member, partitions, |settled| settled.trouble.is_none());
        self.transact(member, consumer, together)?;
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

    fn transact(&self, member: &Member, consumer: &Consumer, batch: Batch) -> KafkaResult<()> {
        // Without the group's metadata we are no member: what is settled is somebody else's to do.
        let Some(group) = consumer.group_metadata().filter(|_| !batch.parts.is_empty()) else {
            return Ok(());
        };
        let Some(producer) = &self.producer else { return Ok(()) };
        match write(producer, &batch, &group) {
            Ok(()) => {
                batch.finish();
                member.cluster.watch.reached();
                Ok(())
            }
            Err(Failed::Aborted(error)) => {
                telemetry::transaction_aborted(&member.group, &fault::said(&error));
                batch.put_aside(&producer.context().failed, &member.group);
                Ok(())
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
    /// What is written, with the part and the offset that it belongs to.
    outputs: Vec<(usize, i64, Arc<Vec<Output>>)>,
}

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
            let Some(mut mark) = state.mark_with(&settled) else { continue };
            // Never left out: what is finished ahead was written. The lower half may leave fewer gaps.
            while !mark.fits() && !settled.is_empty() {
                let half = settled.iter().copied().nth(settled.len() / 2).unwrap_or(i64::MIN);
                settled.split_off(&half);
                let Some(smaller) = state.mark_with(&settled) else { break };
                mark = smaller;
            }
            let text = mark.to_text(&member.place(&partition.name));
            let committed = (mark.base, text);
            if settled.is_empty() && state.committed.as_ref() == Some(&committed) {
                continue;
            }
            let part = batch.parts.len();
            for offset in &settled {
                let outputs = state.settled.get(offset).map(|settled| Arc::clone(&settled.outputs));
                batch.outputs.extend(outputs.map(|outputs| (part, *offset, outputs)));
            }
            drop(state);
            let Name { topic, number } = &partition.name;
            let mut elem = batch.offsets.add_partition(topic, *number);
            if elem.set_offset(Offset::Offset(mark.base)).is_ok() {
                elem.set_metadata(&committed.1);
            }
            let partition = Arc::clone(partition);
            batch.parts.push(Part { partition, settled, committed, next: mark.next });
        }
        batch
    }

    fn send(&self, producer: &Client) -> KafkaResult<()> {
        for (index, (.., outputs)) in self.outputs.iter().enumerate() {
            for output in outputs.iter() {
                send(producer, output, index)
                    .inspect_err(|error| producer.context().note(index, error))?;
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
    fn put_aside(&self, failed: &Mutex<Vec<(usize, RDKafkaErrorCode)>>, group: &str) {
        let failed = std::mem::take(&mut *failed.lock().unwrap_or_else(PoisonError::into_inner));
        let faults: BTreeMap<usize, RDKafkaErrorCode> =
            failed.into_iter().filter(|(_, code)| is_its_own_fault(*code)).collect();
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
