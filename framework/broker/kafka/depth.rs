//! How many messages are where, by the cluster's own books.
//!
//! Counts offsets: from what the group has committed to the end of each partition. Records that were compacted
//! away and the markers of transactions are counted too; what is finished ahead is counted until what lies below it
//! is.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaResult;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio::task::spawn_blocking;

use super::connection::{ANSWER_MAX, Cluster, Quiet};
use super::fault;
use super::group::Kind;
use super::topology::Names;
use crate::broker::{BrokerError, DeadLetterReader, Depth, Fault, Source};

/// Where they have to be read, no more are counted.
const COUNT_MAX: u64 = 10_000;

/// Clients that ask for committed offsets, one for each group; members of none.
#[derive(Default)]
pub(super) struct Depths {
    askers: Mutex<std::collections::BTreeMap<String, Arc<BaseConsumer<Quiet>>>>,
}

impl Depths {
    pub(super) async fn of(
        &self,
        cluster: &Cluster,
        source: &Source,
    ) -> Result<Depth, BrokerError> {
        let attempt = format!("counting the messages of subscription `{}`", source.name);
        let names = Names::of(&source.settings);
        let said = |error| fault::fault(&attempt, &error);
        let main = self.asker(cluster, &names.group_of(Kind::Source)).map_err(said)?;
        let waits = self.asker(cluster, &names.group_of(Kind::Waits)).map_err(said)?;
        let dead = self.asker(cluster, &format!("{}.dead", names.group)).map_err(said)?;
        let suspects = self.asker(cluster, &names.group_of(Kind::Suspects)).map_err(said)?;
        let counted = spawn_blocking(move || {
            let metadata = main.fetch_metadata(None, ANSWER_MAX)?;
            let partitions: Vec<(String, i32)> = metadata
                .topics()
                .iter()
                .flat_map(|topic| {
                    topic.partitions().iter().map(|it| (topic.name().to_owned(), it.id()))
                })
                .collect();
            // What nobody of the group ever drained is not matched by its pattern, or was not found yet.
            let unseen = if names.topics.is_empty() { Unseen::Nothing } else { Unseen::Everything };
            let lag_of =
                |asker: &BaseConsumer<Quiet>, unseen: Unseen, is_meant: &dyn Fn(&str) -> bool| {
                    lag(asker, unseen, partitions.iter().filter(|(topic, _)| is_meant(topic)))
                };
            let lag = |asker: &BaseConsumer<Quiet>, is_meant: &dyn Fn(&str) -> bool| {
                lag_of(asker, Unseen::Everything, is_meant)
            };
            let known = partitions.iter().map(|(topic, _)| topic.clone()).collect();
            let sources = names.sources(&known);
            let redrives: BTreeSet<String> =
                sources.iter().map(|topic| names.redrive(topic)).collect();
            let dead_topics: BTreeSet<String> =
                sources.iter().map(|topic| names.dead(topic)).collect();
            let ready = lag_of(&main, unseen, &|topic| names.may_be_source(topic))?
                + lag(&suspects, &|topic| topic == names.suspects())?;
            let waiting = lag(&waits, &|topic| {
                let is_wait = names.wait_of(topic).is_some() && !names.is_foreign(topic, &known);
                is_wait || redrives.contains(topic)
            })?;
            let dead = lag(&dead, &|topic| dead_topics.contains(topic))?;
            Ok(Depth {
                ready: Some(ready),
                unsettled: Some(0),
                waiting: Some(waiting),
                dead: Some(dead),
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

/// From what is committed to the end, over all of these partitions.
fn lag<'a>(
    asker: &BaseConsumer<Quiet>,
    unseen: Unseen,
    partitions: impl Iterator<Item = &'a (String, i32)>,
) -> KafkaResult<u64> {
    let mut list = TopicPartitionList::new();
    for (topic, partition) in partitions {
        list.add_partition(topic, *partition);
    }
    if list.count() == 0 {
        return Ok(0);
    }
    let committed = asker.committed_offsets(list, ANSWER_MAX)?;
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
