//! Reads the dead letters of a source and leaves them where they are.
//!
//! A log lets nothing be taken out of its middle. So what was removed is noted as offsets are: by a group of its
//! own, whose committed offset and mark say which records are gone; `depth.rs` keeps that from being forgotten. The records
//! themselves stay for as long as the topic keeps them.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{CommitMode, Consumer as _};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio::task::spawn_blocking;

use super::commit::note;
use super::connection::{ANSWER_MAX, Cluster, Context};
use super::envelope::KafkaEnvelope;
use super::fault;
use super::group::Member;
use super::marks::{Mark, Place, TEXT_LENGTH_MAX};
use super::offsets::{Offsets, Receipt};
use super::partition::{Alarm, Consumer, Name, Queue};
use super::reader::{Batch, Record};
use super::rebalance::Assignment;
use crate::broker::turn::Turn;
use crate::broker::{BrokerError, DeadLetterReader, Fault, Received, SharedEnvelope, Token};

/// How long one look for the next record may take.
const READ_MAX: Duration = Duration::from_secs(10);

/// A reader of all topics of dead letters of a subscription.
pub(super) struct KafkaDeadLetters {
    cluster: Cluster,
    consumer: Arc<Consumer>,
    group: String,
    logs: Vec<Log>,
    /// What was read, by token: which log, and its offset.
    read: Vec<(usize, i64)>,
    /// Held by whoever may remove.
    _turn: Option<Turn>,
}

/// One partition.
struct Log {
    name: Name,
    queue: Arc<Queue>,
    offsets: Offsets,
    /// Behind the last record there was when reading began.
    end: i64,
    position: i64,
    /// What was committed here, after a removal.
    committed: Option<i64>,
}

/// Opens a reader that begins at the first dead letter that was not removed.
pub(super) async fn open(
    cluster: &Cluster,
    member: Arc<Member>,
    topics: Vec<String>,
    turn: Option<Turn>,
) -> Result<KafkaDeadLetters, BrokerError> {
    let attempt = format!("reading the dead letters in {}", topics.join(", "));
    let (cluster, said) = (cluster.clone(), attempt.clone());
    let opened = spawn_blocking(move || read_logs(&cluster, member, &topics, turn));
    match opened.await {
        Ok(opened) => opened.map_err(|error| fault::fault(&said, &error)),
        Err(error) => Err(BrokerError::new(Fault::Other, format!("{attempt}: {error}"))),
    }
}

fn read_logs(
    cluster: &Cluster,
    member: Arc<Member>,
    topics: &[String],
    turn: Option<Turn>,
) -> KafkaResult<KafkaDeadLetters> {
    let group = member.names.dead_group();
    let mut config = cluster.clients.consumer(&group);
    config.set("auto.offset.reset", "earliest");
    // The end may lie behind the markers of transactions, where there is nothing to read.
    config.set("enable.partition.eof", "true");
    config.remove("group.instance.id");
    config.remove("group.protocol");
    let context = Context {
        watch: Arc::clone(&cluster.watch),
        assignment: Assignment::new(member, Duration::ZERO),
        consumer: OnceLock::new(),
        reader: None,
    };
    let consumer = Arc::new(Consumer::from_config_and_context(&config, context)?);
    let mut list = TopicPartitionList::new();
    for topic in topics {
        let metadata = consumer.fetch_metadata(Some(topic), ANSWER_MAX)?;
        for partition in metadata.topics().iter().flat_map(|topic| topic.partitions()) {
            list.add_partition(topic, partition.id());
        }
    }
    let list = consumer.committed_offsets(list, ANSWER_MAX)?;
    let mut start = TopicPartitionList::new();
    let mut logs = Vec::new();
    for elem in list.elements() {
        let name = Name { topic: elem.topic().into(), number: elem.partition() };
        let (low, end) = consumer.fetch_watermarks(&name.topic, name.number, ANSWER_MAX)?;
        let committed = match elem.offset() {
            // Anything else was committed for an earlier topic of this name, or is gone.
            Offset::Offset(offset) if (low..=end).contains(&offset) => Some(offset),
            _ => None,
        };
        let place = Place {
            cluster: cluster.id(),
            group: &group,
            topic: &name.topic,
            partition: name.number,
        };
        let mark = committed.and_then(|base| Mark::from_text(elem.metadata(), base, &place));
        let position = committed.unwrap_or(low);
        let split = consumer.split_partition_queue(&name.topic, name.number);
        let Some(records) = split else { continue };
        let queue = Queue::new(Arc::clone(consumer.context()), records, Arc::new(Alarm::default()));
        start.add_partition_offset(&name.topic, name.number, Offset::Offset(position))?;
        let offsets = Offsets::new(Some(position), mark);
        logs.push(Log { name, queue: Arc::new(queue), offsets, end, position, committed: None });
    }
    consumer.assign(&start)?;
    let (cluster, read, _turn) = (cluster.clone(), Vec::new(), turn);
    Ok(KafkaDeadLetters { cluster, consumer, group, logs, read, _turn })
}

impl KafkaDeadLetters {
    fn attempt(&self) -> String {
        format!("reading the dead letters of group `{}`", self.group)
    }

    /// The next record of a log that was not removed; `None` at its end.
    async fn next_of(&mut self, index: usize) -> Result<Option<Received>, BrokerError> {
        loop {
            let log = &self.logs[index];
            if log.position >= log.end {
                return Ok(None);
            }
            let (queue, consumer) = (Arc::clone(&log.queue), Arc::clone(&self.consumer));
            let read = spawn_blocking(move || {
                let _ = consumer.poll(Duration::ZERO);
                Batch::of_one(queue, |queue| match queue.records().poll(READ_MAX) {
                    Some(record) => record.map(Record::of),
                    None => Err(KafkaError::NoMessageReceived),
                })
            });
            let read = read.await.map_err(|error| {
                BrokerError::new(Fault::Other, format!("{}: {error}", self.attempt()))
            })?;
            let batch = match read {
                Ok(batch) => Arc::new(batch),
                // Only the markers of transactions, or records that were deleted meanwhile.
                Err(KafkaError::PartitionEOF(_)) => {
                    self.logs[index].position = self.logs[index].end;
                    return Ok(None);
                }
                // Silence is no end: what was not read would be taken for what is not there.
                Err(KafkaError::NoMessageReceived) => {
                    let text = format!("{}: nothing was read for {READ_MAX:?}", self.attempt());
                    return Err(BrokerError::new(Fault::Unreachable, text));
                }
                Err(error) => return Err(fault::fault(&self.attempt(), &error)),
            };
            let log = &mut self.logs[index];
            let (offset, time) = (batch.offset(0), batch.millis(0).unwrap_or(-1));
            log.position = offset + 1;
            if offset >= log.end {
                return Ok(None);
            }
            match log.offsets.receive(offset, time) {
                Receipt::Deliver { .. } => {}
                Receipt::Skip => continue,
                // What was known was about an earlier topic of this name.
                Receipt::Cut => {
                    log.offsets.receive(offset, time);
                }
            }
            let token = Token(self.read.len() as u64);
            self.read.push((index, offset));
            let envelope = SharedEnvelope::new(KafkaEnvelope::new(batch, 0, (0, false), None));
            return Ok(Some(Received { envelope, token }));
        }
    }

    /// Notes what was removed, so that every other reader knows.
    async fn commit(&mut self, index: usize) -> Result<(), BrokerError> {
        let log = &self.logs[index];
        let Some(mark) = log.offsets.mark(true) else { return Ok(()) };
        let base = mark.base;
        if !mark.fits(TEXT_LENGTH_MAX) {
            return Err(BrokerError::new(
                Fault::Other,
                format!(
                    "{}: too many single ones are removed between others; remove or redrive older ones first",
                    self.attempt()
                ),
            ));
        }
        let place = Place {
            cluster: self.cluster.id(),
            group: &self.group,
            topic: &log.name.topic,
            partition: log.name.number,
        };
        let text = mark.to_text(&place, TEXT_LENGTH_MAX);
        let (consumer, name) = (Arc::clone(&self.consumer), log.name.clone());
        let committed = spawn_blocking(move || {
            let mut list = TopicPartitionList::new();
            note(&mut list, (&name.topic, name.number), mark.base, &text)?;
            consumer.commit(&list, CommitMode::Sync)
        });
        match committed.await {
            Ok(committed) => committed.map_err(|error| fault::fault(&self.attempt(), &error))?,
            Err(error) => {
                return Err(BrokerError::new(Fault::Other, format!("{}: {error}", self.attempt())));
            }
        }
        self.logs[index].committed = Some(base);
        Ok(())
    }

    /// What was removed earlier, and read after our last removal, is done with too: else the lag of the group would
    /// count it for ever. A reader that removed nothing commits nothing, because another may be removing.
    async fn commit_the_rest(&mut self) -> Result<(), BrokerError> {
        for index in 0..self.logs.len() {
            let log = &self.logs[index];
            if log.committed.is_some() && log.committed < log.offsets.base() {
                self.commit(index).await?;
            }
        }
        Ok(())
    }
}

#[async_trait]
impl DeadLetterReader for KafkaDeadLetters {
    async fn next(&mut self) -> Result<Option<Received>, BrokerError> {
        for index in 0..self.logs.len() {
            if let Some(received) = self.next_of(index).await? {
                return Ok(Some(received));
            }
        }
        Ok(None)
    }

    async fn remove(&mut self, token: Token) -> Result<(), BrokerError> {
        let found = usize::try_from(token.0).ok().and_then(|index| self.read.get(index)).copied();
        let removed = found.filter(|(index, offset)| self.logs[*index].offsets.finish(*offset));
        match removed {
            Some((index, _)) => self.commit(index).await,
            None => Err(BrokerError::new(
                Fault::Other,
                format!(
                    "{}: this one is not held by the reader, or was removed before",
                    self.attempt()
                ),
            )),
        }
    }

    async fn close(&mut self) -> Result<(), BrokerError> {
        let rest = self.commit_the_rest().await;
        let (consumer, logs) = (Arc::clone(&self.consumer), std::mem::take(&mut self.logs));
        // On a thread that may wait: ending a consumer takes a moment.
        let closed = spawn_blocking(move || {
            drop(logs);
            let closed = consumer.unassign();
            drop(consumer);
            closed
        });
        match closed.await {
            Ok(Ok(())) => rest,
            Ok(Err(error)) => Err(fault::fault(&self.attempt(), &error)),
            Err(error) => {
                Err(BrokerError::new(Fault::Other, format!("{}: {error}", self.attempt())))
            }
        }
    }
}
