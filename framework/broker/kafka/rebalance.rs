//! What happens when the group's partitions are dealt anew.
//!
//! Owns the partitions that are ours. Runs on the thread that polls, between two polls. What is revoked is drained
//! first, within a bound that the group tolerates, and committed before it is given up; what was lost is not ours
//! to commit any more.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::consumer::{Consumer as _, RebalanceProtocol};
use rdkafka::error::KafkaResult;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::connection::ANSWER_MAX;
use super::fault;
use super::group::{Kind, Member};
use super::marks::Mark;
use super::offsets::Offsets;
use super::partition::{Alarm, Consumer, Name, Partition, Queue};
use crate::broker::LaneId;
use crate::telemetry;

/// The partitions of one member of a group.
pub(super) struct Assignment {
    pub(super) member: Arc<Member>,
    /// How long what is in flight may take when its partition is revoked.
    drain_max: Duration,
    partitions: Mutex<BTreeMap<Name, Arc<Partition>>>,
    alarms: Mutex<HashMap<Name, Arc<Alarm>>>,
    /// Up to where each partition was delivered to this process, whoever has it now.
    seen_to: Mutex<HashMap<Name, i64>>,
    /// What is committed is not known, and must be.
    is_given_up: AtomicBool,
}

/// What stays ours is not committed more often than this while something else is drained.
const COMMIT_GAP_MIN: Duration = Duration::from_millis(100);
/// How long a transaction that somebody left open may keep offsets from being known.
const STABLE_MAX: Duration = Duration::from_secs(90);

impl Assignment {
    pub(super) fn new(member: Arc<Member>, drain_max: Duration) -> Self {
        Self {
            member,
            drain_max,
            partitions: Mutex::default(),
            alarms: Mutex::default(),
            seen_to: Mutex::default(),
            is_given_up: AtomicBool::new(false),
        }
    }

    /// The consumer is of no use any more: it does not know what is committed.
    pub(super) fn give_up(&self) {
        self.is_given_up.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_given_up(&self) -> bool {
        self.is_given_up.load(Ordering::Relaxed)
    }

    /// Every partition that is ours.
    pub(super) fn partitions(&self) -> Vec<Arc<Partition>> {
        lock(&self.partitions).values().cloned().collect()
    }

    /// The partition of this name, if it is ours.
    pub(super) fn of_name(&self, name: &Name) -> Option<Arc<Partition>> {
        lock(&self.partitions).get(name).cloned()
    }

    /// The partition whose lane has this id, if it is ours.
    pub(super) fn find(&self, id: &LaneId) -> Option<Arc<Partition>> {
        lock(&self.partitions).values().find(|partition| partition.id == *id).cloned()
    }

    /// Partitions are ours from now on.
    pub(super) fn assign(&self, consumer: &Arc<Consumer>, list: &mut TopicPartitionList) {
        let committed = self.committed(consumer, list);
        if committed.is_none() && self.member.transactions.is_some() {
            // What was finished ahead would be written a second time.
            self.give_up();
        }
        let foreign = self.foreign(consumer, list).unwrap_or_else(|error| {
            telemetry::assignment_failed(&self.member.group, &fault::said(&error));
            self.give_up();
            TopicPartitionList::new()
        });
        let is_ours = |name: &Name| foreign.find_partition(&name.topic, name.number).is_none();
        let mut fresh = Vec::new();
        for name in names(list).filter(|name| !self.is_given_up() && is_ours(name)) {
            fresh.extend(self.partition(consumer, list, committed.as_ref(), name));
        }
        let assigned = match consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => consumer.incremental_assign(list),
            RebalanceProtocol::Eager | RebalanceProtocol::None => consumer.assign(list),
        };
        if let Err(error) = assigned {
            telemetry::assignment_failed(&self.member.group, &fault::said(&error));
            // Else they would be ours by the group's books, and read by nobody.
            self.give_up();
            return;
        }
        // Nobody reads them here, and nothing of them is ever committed.
        if foreign.count() > 0
            && let Err(error) = consumer.pause(&foreign)
        {
            telemetry::assignment_failed(&self.member.group, &fault::said(&error));
        }
        self.member.cluster.watch.reached();
        self.member.cluster.watch.admitted(&self.member.group);
        let mut partitions = lock(&self.partitions);
        for partition in &fresh {
            partitions.insert(partition.name.clone(), Arc::clone(partition));
        }
        drop(partitions);
        fresh.iter().for_each(|partition| self.member.open(partition));
    }

    /// One of the partitions in `list`, with what was committed of it.
    fn partition(
        &self,
        consumer: &Arc<Consumer>,
        list: &mut TopicPartitionList,
        committed: Option<&TopicPartitionList>,
        name: Name,
    ) -> Option<Arc<Partition>> {
        let elem = committed.and_then(|list| list.find_partition(&name.topic, name.number));
        let base = elem.as_ref().and_then(|elem| match elem.offset() {
            Offset::Offset(offset) => Some(offset),
            _ => None,
        });
        let mark = elem.zip(base).and_then(|(elem, base)| {
            Mark::from_text(elem.metadata(), base, &self.member.place(&name))
        });
        let queue = self.queue(consumer, &name)?;
        let seen_to = lock(&self.seen_to).get(&name).copied().unwrap_or(i64::MIN);
        let id = self.member.lane_id(&name);
        if let Some(base) = base {
            // Just what the list says otherwise, without asking again.
            let _ = list.set_partition_offset(&name.topic, name.number, Offset::Offset(base));
        }
        let is_transactional = self.member.transactions.is_some();
        let offsets = Offsets::new(base, mark).kept_by(process(), is_transactional);
        Some(Arc::new(Partition::new(name, id, queue, offsets, seen_to)))
    }

    /// Those of these that only read like ours: the expression that finds the waits of a pattern's topics also finds
    /// those of a group whose name ends like ours.
    fn foreign(
        &self,
        consumer: &Arc<Consumer>,
        list: &TopicPartitionList,
    ) -> KafkaResult<TopicPartitionList> {
        let (names_of, mut foreign) = (&self.member.names, TopicPartitionList::new());
        if self.member.kind != Kind::Waits || !names_of.has_pattern() {
            return Ok(foreign);
        }
        let metadata = consumer.fetch_metadata(None, ANSWER_MAX)?;
        let known = metadata.topics().iter().map(|topic| topic.name().to_owned()).collect();
        for name in names(list).filter(|name| names_of.is_foreign(&name.topic, &known)) {
            foreign.add_partition(&name.topic, name.number);
        }
        Ok(foreign)
    }

    /// Partitions are not ours any more when this returns.
    pub(super) fn revoke(&self, consumer: &Arc<Consumer>, list: &TopicPartitionList) {
        let mut ours = lock(&self.partitions);
        let revoked: Vec<_> = names(list).filter_map(|name| ours.remove(&name)).collect();
        drop(ours);
        if !consumer.assignment_lost() && !self.is_given_up() {
            self.drain(consumer, &revoked);
            self.member.commit_at_last(consumer, &revoked);
        }
        self.lose(&revoked);
        let unassigned = match consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => consumer.incremental_unassign(list),
            RebalanceProtocol::Eager | RebalanceProtocol::None => consumer.unassign(),
        };
        if let Err(error) = unassigned {
            telemetry::assignment_failed(&self.member.group, &fault::said(&error));
        }
    }

    /// Every partition is gone, because the consumer is.
    pub(super) fn lose_all(&self) {
        let partitions: Vec<_> =
            std::mem::take(&mut *lock(&self.partitions)).into_values().collect();
        self.lose(&partitions);
        lock(&self.alarms).drain().for_each(|(_, alarm)| alarm.take_down());
    }

    fn lose(&self, partitions: &[Arc<Partition>]) {
        let mut seen_to = lock(&self.seen_to);
        for partition in partitions {
            if let Some(next) = partition.lock().offsets.next() {
                seen_to.insert(partition.name.clone(), next);
            }
            partition.lose();
        }
    }

    /// Lets the lanes finish what is in flight.
    fn drain(&self, consumer: &Consumer, partitions: &[Arc<Partition>]) {
        let deadline = Instant::now() + self.drain_max;
        partitions.iter().for_each(|partition| partition.recall(deadline));
        // A little longer than the lanes were told: closing takes a moment too.
        let patience = deadline + Duration::from_secs(1);
        let interval = self.member.source.settings.commit_interval.max(COMMIT_GAP_MIN);
        for partition in partitions {
            // What is not moved is committed meanwhile, as always.
            while !partition.wait_closed(patience.min(Instant::now() + interval))
                && Instant::now() < patience
            {
                self.member.commit(consumer, &self.partitions());
            }
            if !partition.wait_closed(Instant::now()) {
                telemetry::revoked_in_hand(&partition.id);
            }
        }
    }

    /// What was committed; `None` if nobody says, and then what was finished ahead is done again.
    fn committed(
        &self,
        consumer: &Arc<Consumer>,
        list: &TopicPartitionList,
    ) -> Option<TopicPartitionList> {
        let ask = || -> KafkaResult<_> { consumer.committed_offsets(list.clone(), ANSWER_MAX) };
        let mut answer = ask().or_else(|_| ask());
        if self.member.transactions.is_some() {
            let deadline = Instant::now() + STABLE_MAX;
            while answer.is_err() && Instant::now() < deadline {
                answer = ask();
            }
        }
        answer
            .inspect_err(|error| {
                telemetry::committed_unknown(&self.member.group, &fault::said(error));
            })
            .ok()
    }

    /// The partition's own queue: split off before anything is fetched into the common one.
    fn queue(&self, consumer: &Arc<Consumer>, name: &Name) -> Option<Arc<Queue>> {
        let split = || consumer.split_partition_queue(&name.topic, name.number);
        let alarm = Arc::clone(lock(&self.alarms).entry(name.clone()).or_default());
        let (records, bell) = (split()?, split()?);
        alarm.hang(bell);
        Some(Arc::new(Queue::new(Arc::clone(consumer.context()), records, alarm)))
    }
}

/// A number of this process, which no other has.
fn process() -> u64 {
    static NUMBER: OnceLock<u64> = OnceLock::new();
    *NUMBER.get_or_init(|| uuid::Uuid::now_v7().as_u64_pair().1)
}

fn names(list: &TopicPartitionList) -> impl Iterator<Item = Name> + use<> {
    let elements = list.elements();
    let names: Vec<_> = elements
        .iter()
        .map(|elem| Name { topic: elem.topic().into(), number: elem.partition() })
        .collect();
    names.into_iter()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
