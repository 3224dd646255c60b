//! How many messages are where, by the cluster's own books.
//!
//! Counts offsets: from what the group has committed to the end of each partition. Records that were compacted
//! away and the markers of transactions are counted too; what is finished ahead is counted until what lies below it
//! is.
//!
//! Owns as well that what was noted of dead letters is not forgotten.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::error::KafkaResult;
use rdkafka::metadata::MetadataTopic;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio::task::spawn_blocking;

use super::commit::note;
use super::connection::{ANSWER_MAX, Cluster, Quiet};
use super::fault;
use super::group::Kind;
use super::topology::Names;
use crate::broker::turn::Turn;
use crate::broker::{BrokerError, DeadLetterReader, Depth, Fault, Source};

/// Where they have to be read, no more are counted.
const COUNT_MAX: u64 = 10_000;
/// How often it is committed again which dead letters are gone: Kafka forgets what a group without members committed
/// `offsets.retention.minutes` (7 days by default) ago, and all of them would be there again.
const NOTE_AGAIN_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// Clients that ask for committed offsets, one for each group; members of none.
#[derive(Default)]
pub(super) struct Depths {
    askers: Mutex<BTreeMap<String, Arc<BaseConsumer<Quiet>>>>,
    noted: Arc<Noted>,
}

/// When it was last noted again, by group, which dead letters are gone.
#[derive(Default)]
struct Noted(Mutex<BTreeMap<String, Instant>>);

impl Depths {
    /// `turn`: nobody else of this process reads these dead letters now.
    pub(super) async fn of(
        &self,
        cluster: &Cluster,
        source: &Source,
        turn: Option<Turn>,
    ) -> Result<Depth, BrokerError> {
        let attempt = format!("counting the messages of subscription `{}`", source.name);
        let names = Names::of(&source.settings);
        let said = |error| fault::fault(&attempt, &error);
        let main = self.asker(cluster, &names.group_of(Kind::Source)).map_err(said)?;
        let waits = self.asker(cluster, &names.group_of(Kind::Waits)).map_err(said)?;
        let dead = self.asker(cluster, &names.dead_group()).map_err(said)?;
        let noted = Arc::clone(&self.noted);
        let suspects = self.asker(cluster, &names.group_of(Kind::Suspects)).map_err(said)?;
        let counted = spawn_blocking(move || {
            let partitions = partitions(&main)?;
            // What nobody of the group ever drained is not matched by its pattern, or was not found yet.
            let unseen = if names.topics.is_empty() { Unseen::Nothing } else { Unseen::Everything };
            let committed_of = |asker: &BaseConsumer<Quiet>, is_meant: &dyn Fn(&str) -> bool| {
                committed(asker, partitions.iter().filter(|(topic, _)| is_meant(topic)))
            };
            let lag_of = |asker: &BaseConsumer<Quiet>, is_meant: &dyn Fn(&str) -> bool| {
                lag(asker, Unseen::Everything, &committed_of(asker, is_meant)?)
            };
            let known = partitions.iter().map(|(topic, _)| topic.clone()).collect();
            let sources = names.sources(&known);
            let redrives: BTreeSet<String> =
                sources.iter().map(|topic| names.redrive(topic)).collect();
            let dead_topics: BTreeSet<String> =
                sources.iter().map(|topic| names.dead(topic)).collect();
            let of_source = committed_of(&main, &|topic| names.may_be_source(topic))?;
            let ready = lag(&main, unseen, &of_source)?
                + lag_of(&suspects, &|topic| topic == names.suspects())?;
            let waiting = lag_of(&waits, &|topic| {
                let is_wait = names.wait_of(topic).is_some() && !names.is_foreign(topic, &known);
                is_wait || redrives.contains(topic)
            })?;
            let of_dead = committed_of(&dead, &|topic| dead_topics.contains(topic))?;
            let letters = lag(&dead, Unseen::Everything, &of_dead)?;
            if turn.is_some() {
                noted.note_again(&dead, &names.dead_group(), &of_dead);
            }
            drop(turn);
            Ok(Depth {
                ready: Some(ready),
                unsettled: Some(0),
                waiting: Some(waiting),
                dead: Some(letters),
            })
        });
        match counted.await {
            Ok(counted) => counted.map_err(|error| fault::fault(&attempt, &error)),
            Err(error) => Err(BrokerError::new(Fault::Other, format!("{attempt}: {error}"))),
        }
    }

    fn asker(&self, cluster: &Cluster, group: &str) -> KafkaResult<Arc<BaseConsumer<Quiet>>> {
        let mut askers = self.askers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(asker) = askers.get(group) {
            return Ok(Arc::clone(asker));
        }
        let mut config = cluster.clients.consumer(group);
        config.remove("group.instance.id");
        config.remove("group.protocol");
        let context = Quiet(Arc::clone(&cluster.watch));
        let asker = Arc::new(BaseConsumer::from_config_and_context(&config, context)?);
        askers.insert(group.to_owned(), Arc::clone(&asker));
        Ok(asker)
    }
}

/// How many there are, up to a bound.
pub(super) async fn count(dead: &mut dyn DeadLetterReader) -> Result<u64, BrokerError> {
    let mut count = 0;
    while count < COUNT_MAX && dead.next().await?.is_some() {
        count += 1;
    }
    Ok(count)
}

/// What to count of a partition of which nothing is committed.
#[derive(Clone, Copy)]
enum Unseen {
    Everything,
    Nothing,
}

impl Noted {
    /// Commits the same again, if that was long ago. Not now is no harm: it is asked for again.
    fn note_again(&self, asker: &BaseConsumer<Quiet>, group: &str, known: &TopicPartitionList) {
        let mut noted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if noted.get(group).is_some_and(|at| at.elapsed() < NOTE_AGAIN_AFTER) {
            return;
        }
        if commit_again(asker, known).is_ok() {
            noted.insert(group.to_owned(), Instant::now());
        }
    }
}

fn commit_again(asker: &BaseConsumer<Quiet>, known: &TopicPartitionList) -> KafkaResult<()> {
    let mut list = TopicPartitionList::new();
    for elem in known.elements() {
        if let Offset::Offset(offset) = elem.offset() {
            note(&mut list, (elem.topic(), elem.partition()), offset, elem.metadata())?;
        }
    }
    if list.count() == 0 {
        return Ok(());
    }
    asker.commit(&list, CommitMode::Sync)
}

/// All there are in the cluster.
fn partitions(asker: &BaseConsumer<Quiet>) -> KafkaResult<Vec<(String, i32)>> {
    let metadata = asker.fetch_metadata(None, ANSWER_MAX)?;
    let of_topic = |topic: &MetadataTopic| {
        let numbers = topic.partitions().iter().map(|it| it.id());
        numbers.map(|number| (topic.name().to_owned(), number)).collect::<Vec<_>>()
    };
    Ok(metadata.topics().iter().flat_map(of_topic).collect())
}

/// What is committed of these partitions.
fn committed<'a>(
    asker: &BaseConsumer<Quiet>,
    partitions: impl Iterator<Item = &'a (String, i32)>,
) -> KafkaResult<TopicPartitionList> {
    let mut list = TopicPartitionList::new();
    for (topic, partition) in partitions {
        list.add_partition(topic, *partition);
    }
    match list.count() {
        0 => Ok(list),
        _ => asker.committed_offsets(list, ANSWER_MAX),
    }
}

/// From what is committed to the end, over all of these partitions.
fn lag(
    asker: &BaseConsumer<Quiet>,
    unseen: Unseen,
    committed: &TopicPartitionList,
) -> KafkaResult<u64> {
    let mut lag = 0;
    for elem in committed.elements() {
        let committed = match (elem.offset(), unseen) {
            (Offset::Offset(offset), _) => offset,
            (_, Unseen::Everything) => 0,
            (_, Unseen::Nothing) => continue,
        };
        let (low, end) = asker.fetch_watermarks(elem.topic(), elem.partition(), ANSWER_MAX)?;
        let from = committed.max(low);
        lag += u64::try_from(end - from).unwrap_or(0);
    }
    Ok(lag)
}
