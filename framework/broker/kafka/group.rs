//! One member of a consumer group: the thread that polls, commits, and opens lanes.
//!
//! Owns the consumer. Nothing it waits for depends on a handler, but for the bounded drain of what is revoked, so
//! that `max.poll.interval.ms` is kept however slow the handlers are. Commits are made here, one at a time and each
//! waited for: they cannot overtake one another.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{CommitMode, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio::sync::{mpsc, oneshot};

use super::connection::{ANSWER_MAX, Cluster, Context};
use super::fault;
use super::lane::{Care, KafkaLane, Pace};
use super::marks::Place;
use super::partition::{Consumer, LaneState, Name, Partition, Rest};
use super::rebalance::Assignment;
use super::topology::Names;
use super::transaction::Transactions;
use crate::broker::{BrokerError, LaneEvent, LaneId, Source};
use crate::retry::Schedule;
use crate::telemetry;

/// How long one poll waits; commands and due commits wait as long at the most.
const POLL_MAX: Duration = Duration::from_millis(20);
/// When more is finished and not committed, the interval is not waited for.
const UNCOMMITTED_MAX: u64 = 10_000;
/// A lane that nobody could take is offered again after this.
const OFFER_AGAIN_AFTER: Duration = Duration::from_millis(500);
/// How long a lane must have had nothing to read before its position is looked at.
const REST_MIN: Duration = Duration::from_millis(300);
/// How long a question about the end of a partition may keep the thread.
const LOOK_MAX: Duration = Duration::from_secs(1);
/// How long the group is given to take note that we leave.
const LEAVE_MAX: Duration = Duration::from_secs(10);
/// How long the last messages in hand may keep a consumer that has left.
const LINGER_MAX: Duration = Duration::from_secs(600);

/// What a group drains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The topics of the subscription.
    Source,
    /// Its waits and what was redriven.
    Waits,
    /// What may have ended a process.
    Suspects,
}

/// Who we are in a group, and whom we tell.
pub(super) struct Member {
    pub(super) cluster: Cluster,
    pub(super) kind: Kind,
    pub(super) group: String,
    pub(super) source: Arc<Source>,
    pub(super) names: Names,
    /// Generations of all lanes of a connection: a new one is higher than any before.
    pub(super) generations: Arc<AtomicU64>,
    pub(super) events: mpsc::Sender<LaneEvent>,
    pub(super) commands: SyncSender<Command>,
    /// Where what handlers publish is written together with the offsets.
    pub(super) transactions: Option<Mutex<Transactions>>,
}

/// What the thread is asked to do.
pub(super) enum Command {
    /// Open this lane again.
    Open(LaneId),
    /// Read from the lowest unfinished record on once more.
    Rewind(LaneId),
    /// Commit what is finished, leave the group, and end.
    Leave(oneshot::Sender<()>),
}

impl Member {
    /// Where this group's marks are valid.
    pub(super) fn place<'a>(&'a self, name: &'a Name) -> Place<'a> {
        Place {
            cluster: self.cluster.id(),
            group: &self.group,
            topic: &name.topic,
            partition: name.number,
        }
    }

    pub(super) fn lane_id(&self, name: &Name) -> LaneId {
        match self.kind {
            Kind::Suspects => LaneId::suspects(),
            Kind::Source | Kind::Waits => LaneId(name.to_string().into()),
        }
    }

    /// Hands out a lane of this partition.
    pub(super) fn open(&self, partition: &Arc<Partition>) {
        let mut state = partition.lock();
        if matches!(state.lane, LaneState::Open(_) | LaneState::Gone) {
            return;
        }
        let generation = self.generations.fetch_add(1, Ordering::Relaxed) + 1;
        state.lane = LaneState::Open(generation);
        drop(state);
        let pace = match self.kind {
            Kind::Source | Kind::Suspects => Pace::Now,
            Kind::Waits => self.names.wait_of(&partition.name.topic).map_or(Pace::Now, Pace::After),
        };
        let care = match self.kind {
            Kind::Suspects => Care::Always,
            Kind::Source | Kind::Waits => Care::First,
        };
        let commands = self.commands.clone();
        let partition_of_it = Arc::clone(partition);
        let is_transactional = self.transactions.is_some();
        let lane =
            KafkaLane::new(partition_of_it, generation, pace, commands, care, is_transactional);
        let opened = LaneEvent::Opened(partition.id.clone(), Box::new(lane));
        // A full channel, or one that nobody reads any more, drops the lane, which is then offered again.
        let _ = self.events.try_send(opened);
    }

    /// Commits what is done with in these partitions, and waits for the answer.
    pub(super) fn commit(&self, consumer: &Consumer, partitions: &[Arc<Partition>]) {
        let Some(transactions) = &self.transactions else {
            return self.commit_offsets(consumer, partitions);
        };
        let mut transactions = transactions.lock().unwrap_or_else(PoisonError::into_inner);
        if transactions.commit(self, consumer, partitions).is_err() {
            consumer.context().assignment.give_up();
        }
    }

    fn commit_offsets(&self, consumer: &Consumer, partitions: &[Arc<Partition>]) {
        let mut list = TopicPartitionList::new();
        let mut sent = Vec::new();
        for partition in partitions {
            let mut state = partition.lock();
            state.is_urgent = false;
            let Some(mark) = state.mark() else { continue };
            let text = mark.to_text(&self.place(&partition.name));
            let unchanged = state
                .committed
                .as_ref()
                .is_some_and(|(base, known)| *base == mark.base && *known == text);
            if unchanged {
                continue;
            }
            let (finished, next) = (state.offsets.finished_count(), mark.next);
            drop(state);
            let mut elem = list.add_partition(&partition.name.topic, partition.name.number);
            if elem.set_offset(Offset::Offset(mark.base)).is_ok() {
                elem.set_metadata(&text);
                sent.push((partition, (mark.base, text), finished, next));
            }
        }
        if sent.is_empty() {
            return;
        }
        match consumer.commit(&list, CommitMode::Sync) {
            Ok(()) => {
                for (partition, committed, finished, next) in sent {
                    let mut state = partition.lock();
                    state.committed = Some(committed);
                    state.finished_at_commit = finished;
                    state.recorded_to = Some(next);
                    drop(state);
                    partition.committed.notify_waiters();
                }
                self.cluster.watch.reached();
            }
            Err(error) if fault::is_later(&error) => {
                telemetry::commit_later(&self.group, &fault::said(&error));
            }
            Err(error) => {
                telemetry::commit_failed(&self.group, &fault::said(&error));
            }
        }
    }
}

/// Starts the thread of a member.
pub(super) fn start(member: Arc<Member>, commands: Receiver<Command>) -> Result<(), BrokerError> {
    let name = format!("redeliver-{}", member.group);
    let spawned = thread::Builder::new().name(name).spawn(move || live(&member, &commands));
    spawned.map(drop).map_err(|error| {
        BrokerError::new(
            crate::broker::Fault::Other,
            format!("starting the thread of a Kafka consumer: {error}"),
        )
    })
}

/// Is a member for as long as that is wanted; a consumer that died is followed by another.
fn live(member: &Arc<Member>, commands: &Receiver<Command>) {
    let mut schedule = Schedule::default();
    loop {
        match consumer(member) {
            Ok(consumer) => {
                let left = attend(member, &consumer, commands);
                consumer.context().assignment.lose_all();
                if left.is_continue() {
                    abandon(&consumer);
                }
                if let ControlFlow::Break(left) = left {
                    if let Some(left) = left {
                        let _ = left.send(());
                    }
                    return linger(&consumer);
                }
            }
            Err(error) => {
                let attempt = format!("consuming as group `{}`", member.group);
                member.cluster.watch.lost(&fault::fault(&attempt, &error).text);
            }
        }
        thread::sleep(schedule.next_delay());
        if matches!(commands.try_recv(), Ok(Command::Leave(_)) | Err(TryRecvError::Disconnected)) {
            return;
        }
    }
}

fn consumer(member: &Arc<Member>) -> Result<Arc<Consumer>, KafkaError> {
    if let Some(transactions) = &member.transactions {
        transactions.lock().unwrap_or_else(PoisonError::into_inner).open(member)?;
    }
    let mut config = member.cluster.clients.consumer(&member.group);
    if member.kind == Kind::Source && member.source.settings.pattern.is_some() {
        config.set("topic.blacklist", super::topology::OURS);
    }
    if member.kind != Kind::Source {
        // Few records at a time, many partitions, and none may be missed.
        config.set("queued.max.messages.kbytes", "1024");
        config.set("queued.min.messages", "1000");
        config.set("auto.offset.reset", "earliest");
        // Waits that are made later, by a reload or a pattern, are found within this.
        config.set("topic.metadata.refresh.interval.ms", "10000");
    }
    let context = Context {
        watch: Arc::clone(&member.cluster.watch),
        assignment: Assignment::new(Arc::clone(member), drain_max(member)),
        consumer: OnceLock::new(),
    };
    let consumer = Arc::new(Consumer::from_config_and_context(&config, context)?);
    let _ = consumer.context().consumer.set(Arc::downgrade(&consumer));
    let topics = member.names.subscription(member.kind);
    consumer.subscribe(&topics.iter().map(String::as_str).collect::<Vec<_>>())?;
    Ok(consumer)
}

/// Half of what the group would wait for us.
fn drain_max(member: &Member) -> Duration {
    let clients = &member.cluster.clients;
    let session = clients.millis("session.timeout.ms", 45_000);
    let rebalance = clients.millis("max.poll.interval.ms", 300_000);
    Duration::from_millis(session.min(rebalance) / 2)
}

type Left = Option<oneshot::Sender<()>>;

/// Polls until it is told to leave (`Break`), or the consumer is of no use any more (`Continue`).
fn attend(
    member: &Member,
    consumer: &Arc<Consumer>,
    commands: &Receiver<Command>,
) -> ControlFlow<Left> {
    let assignment = &consumer.context().assignment;
    let (mut committed_at, mut looked_at) = (Instant::now(), Instant::now());
    loop {
        match consumer.poll(POLL_MAX) {
            Some(Ok(record)) => stray(consumer, &record),
            Some(Err(KafkaError::MessageConsumptionFatal(code))) => {
                let attempt = format!("consuming as group `{}`", member.group);
                member.cluster.watch.lost(&fault::fault_of_code(&attempt, code).text);
                return ControlFlow::Continue(());
            }
            Some(Err(_)) | None => {}
        }
        if assignment.is_given_up() {
            return ControlFlow::Continue(());
        }
        if let ControlFlow::Break(left) = obey(member, consumer, commands) {
            leave(member, consumer);
            return ControlFlow::Break(left);
        }
        let partitions = assignment.partitions();
        offer_again(member, &partitions);
        pass_markers(consumer, &partitions);
        let stall_after = member.source.settings.stall_after;
        if looked_at.elapsed() >= stall_after / 4 {
            look_at_resting(consumer, &partitions, stall_after);
            looked_at = Instant::now();
        }
        let is_due = committed_at.elapsed() >= member.source.settings.commit_interval;
        if is_due || partitions.iter().any(|partition| is_urgent(partition)) {
            member.commit(consumer, &partitions);
            committed_at = Instant::now();
        }
        if member.cluster.watch.is_lost()
            && consumer.fetch_metadata(Some("__consumer_offsets"), POLL_MAX).is_ok()
        {
            member.cluster.watch.reached();
        }
    }
}

fn is_urgent(partition: &Partition) -> bool {
    let state = partition.lock();
    state.is_urgent || state.uncommitted() >= UNCOMMITTED_MAX
}

fn obey(
    member: &Member,
    consumer: &Arc<Consumer>,
    commands: &Receiver<Command>,
) -> ControlFlow<Left> {
    loop {
        let (id, opens) = match commands.try_recv() {
            Ok(Command::Open(id)) => (id, true),
            Ok(Command::Rewind(id)) => (id, false),
            Ok(Command::Leave(left)) => return ControlFlow::Break(Some(left)),
            Err(TryRecvError::Empty) => return ControlFlow::Continue(()),
            Err(TryRecvError::Disconnected) => return ControlFlow::Break(None),
        };
        let Some(partition) = consumer.context().assignment.find(&id) else { continue };
        let is_open = matches!(partition.lock().lane, LaneState::Open(_));
        if is_open != opens {
            rewind(consumer, &partition);
        }
        if opens {
            member.open(&partition);
        }
    }
}

/// Reads from the lowest unfinished record on once more.
fn rewind(consumer: &Consumer, partition: &Partition) {
    let Some(base) = partition.lock().offsets.base() else { return };
    let Name { topic, number } = &partition.name;
    if let Err(error) = consumer.seek(topic, *number, Offset::Offset(base), ANSWER_MAX) {
        telemetry::rewind_failed(&partition.id, &fault::said(&error));
    }
}

/// Offers lanes again that somebody dropped without closing them.
fn offer_again(member: &Member, partitions: &[Arc<Partition>]) {
    for partition in partitions {
        let state = partition.lock().lane;
        if matches!(state, LaneState::Dropped(at) if at.elapsed() >= OFFER_AGAIN_AFTER) {
            let _ = member.commands.try_send(Command::Open(partition.id.clone()));
            partition.lock().lane = LaneState::Closed;
        }
    }
}

/// Looks whether lanes that have nothing to read should have: their consumers ask when they have been silent for long.
fn look_at_resting(consumer: &Consumer, partitions: &[Arc<Partition>], patience: Duration) {
    for partition in partitions {
        let rests = partition.lock().rest != Rest::No;
        let Name { topic, number } = &partition.name;
        let ends = rests.then(|| consumer.fetch_watermarks(topic, *number, LOOK_MAX));
        partition.lock().look(ends.and_then(Result::ok), patience, Instant::now());
    }
}

/// Lets lanes that rest go past what is no record, so that what is committed reaches the end of the log.
fn pass_markers(consumer: &Consumer, partitions: &[Arc<Partition>]) {
    for partition in partitions {
        // Held while the position is asked for: the lane says so before it reads on.
        let mut state = partition.lock();
        if !matches!(state.rest, Rest::Since(at) if at.elapsed() >= REST_MIN) {
            continue;
        }
        let Ok(positions) = consumer.position() else { return };
        let Name { topic, number } = &partition.name;
        let position = positions.find_partition(topic, *number);
        match position.map(|elem| elem.offset()) {
            Some(Offset::Offset(position)) => state.pass(position),
            _ => state.rest = Rest::Passed,
        }
    }
}

/// A record in the common queue: fetched before its partition had a queue of its own. Read again from there.
fn stray(consumer: &Consumer, record: &rdkafka::message::BorrowedMessage<'_>) {
    telemetry::stray_record(record.topic(), record.partition());
    let name = Name { topic: record.topic().into(), number: record.partition() };
    if let Some(partition) = consumer.context().assignment.of_name(&name) {
        let mut state = partition.lock();
        state.strayed_to = state.strayed_to.max(Some(record.offset() + 1));
    }
    let offset = Offset::Offset(record.offset());
    let _ = consumer.seek(record.topic(), record.partition(), offset, ANSWER_MAX);
}

/// Gives everything up: the lanes are drained and committed, then the group is told.
///
/// A member with a name of its own (`group.instance.id`) says nothing: its partitions wait for it, until its session
/// times out.
fn leave(member: &Member, consumer: &Arc<Consumer>) {
    member.commit(consumer, &consumer.context().assignment.partitions());
    if member.cluster.clients.consumer(&member.group).get("group.instance.id").is_some() {
        return;
    }
    consumer.unsubscribe();
    let deadline = Instant::now() + LEAVE_MAX;
    while !consumer.context().assignment.partitions().is_empty() && Instant::now() < deadline {
        let _ = consumer.poll(POLL_MAX);
    }
    // The request to leave goes out with the next polls; what comes of it is the group's business.
    let _ = consumer.poll(Duration::ZERO);
}

/// Leaves the group without another word: what is committed will be asked for anew.
fn abandon(consumer: &Consumer) {
    consumer.unsubscribe();
    let deadline = Instant::now() + LEAVE_MAX;
    while consumer.assignment().is_ok_and(|list| list.count() > 0) && Instant::now() < deadline {
        let _ = consumer.poll(POLL_MAX);
    }
}

/// Ends the consumer here, and not on the thread of whoever drops the last message that lies in its memory.
fn linger(consumer: &Arc<Consumer>) {
    let deadline = Instant::now() + LINGER_MAX;
    while Arc::strong_count(consumer) > 1 && Instant::now() < deadline {
        thread::sleep(POLL_MAX);
    }
}
