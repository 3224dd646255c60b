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
            let lag = |asker: &BaseConsumer<Quiet>, is_meant: &dyn Fn(&str) -> bool| {
                lag(asker, partitions.iter().filter(|(topic, _)| is_meant(topic)))
            };
            let sources: BTreeSet<&str> = names.topics.iter().map(String::as_str).collect();
            let redrives: BTreeSet<String> =
                names.topics.iter().map(|topic| names.redrive(topic)).collect();
            let dead_topics: BTreeSet<String> =
                names.topics.iter().map(|topic| names.dead(topic)).collect();
            let ready = lag(&main, &|topic| sources.contains(topic))?
                + lag(&suspects, &|topic| topic == names.suspects())?;
            let waiting =
                lag(&waits, &|topic| names.wait_of(topic).is_some() || redrives.contains(topic))?;
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

/// From what is committed to the end, over all of these partitions.
fn lag<'a>(
    asker: &BaseConsumer<Quiet>,
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
        let (low, end) = asker.fetch_watermarks(elem.topic(), elem.partition(), ANSWER_MAX)?;
        let from = match elem.offset() {
            Offset::Offset(offset) => offset.max(low),
            _ => low,
        };
        lag += u64::try_from(end - from).unwrap_or(0);
    }
    Ok(lag)
}
