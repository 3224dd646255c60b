//! One member of a consumer group: the thread that polls, commits, and opens lanes.
//!
//! Owns the consumer. Nothing it waits for depends on a handler, but for the bounded drain of what is revoked, so
//! that `max.poll.interval.ms` is kept however slow the handlers are. Commits are made here, one at a time and each
//! waited for: they cannot overtake one another.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::Consumer as _;
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::topic_partition_list::Offset;
use tokio::sync::{mpsc, oneshot};

use super::connection::{ANSWER_MAX, Cluster, Context};
use super::fault;
use super::lane::{Care, KafkaLane, Pace};
use super::marks::Place;
use super::partition::{Consumer, LaneState, Name, Partition, Rest};
use super::reader::Reader;
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
/// How long a question about the end of a partition may keep the thread.
const LOOK_MAX: Duration = Duration::from_secs(1);
/// How long the group is given to take note that we leave.
const LEAVE_MAX: Duration = Duration::from_secs(10);
/// A consumer that lived for so long has nothing to do with the one before.
const LIFE_MIN: Duration = Duration::from_secs(60);
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
    pub(super) text_length_max: AtomicUsize,
    /// Where what handlers publish is written together with the offsets.
    pub(super) transactions: Option<Mutex<Transactions>>,
}

/// What the thread is asked to do.
pub(super) enum Command {
    /// Open this lane again.
    Open(LaneId),
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
        let is_transactional = self.transactions.is_some();
        let lane = KafkaLane::new(Arc::clone(partition), generation, pace, care, is_transactional);
        let opened = LaneEvent::Opened(partition.id.clone(), Box::new(lane));
        // A full channel, or one that nobody reads any more, drops the lane, which is then offered again.
        let _ = self.events.try_send(opened);
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
                let since = Instant::now();
                let left = attend(member, &consumer, commands);
                if since.elapsed() >= LIFE_MIN {
                    schedule = Schedule::default();
                }
                consumer.context().assignment.lose_all();
                if let Some(reader) = &consumer.context().reader {
                    reader.end();
                }
                match left {
                    ControlFlow::Break(left) => {
                        if let Some(left) = left {
                            let _ = left.send(());
                        }
                        return linger(&consumer);
                    }
                    ControlFlow::Continue(()) => {
                        abandon(&consumer);
                        linger_aside(consumer);
                    }
                }
            }
            Err(error) => {
                let attempt = format!("consuming as group `{}`", member.group);
                member.cluster.watch.lost(&fault::fault(&attempt, &error).text);
            }
        }
        if is_to_leave(commands, schedule.next_delay()) {
            return;
        }
    }
}

/// Waits while there is no consumer; true if nobody wants one any more.
fn is_to_leave(commands: &Receiver<Command>, wait: Duration) -> bool {
    let until = Instant::now() + wait;
    loop {
        match commands.recv_timeout(until.saturating_duration_since(Instant::now())) {
            // There is nothing to open it from yet; the next consumer offers all of them.
            Ok(Command::Open(_)) => {}
            Ok(Command::Leave(_)) | Err(RecvTimeoutError::Disconnected) => return true,
            Err(RecvTimeoutError::Timeout) => return false,
        }
    }
}

fn consumer(member: &Arc<Member>) -> Result<Arc<Consumer>, KafkaError> {
    if let Some(transactions) = &member.transactions {
        transactions.lock().unwrap_or_else(PoisonError::into_inner).open(member)?;
    }
    let mut config = member.cluster.clients.consumer(&member.group);
    if member.kind == Kind::Source && member.source.settings.pattern.is_some() {
        config.set("topic.blacklist", member.names.never_matched());
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
        reader: reader(member),
    };
    let consumer = Arc::new(Consumer::from_config_and_context(&config, context)?);
    let _ = consumer.context().consumer.set(Arc::downgrade(&consumer));
    let topics = member.names.subscription(member.kind);
    consumer.subscribe(&topics.iter().map(String::as_str).collect::<Vec<_>>())?;
    Ok(consumer)
}

/// Who reads ahead. Waits come one by one, and suspects alone.
fn reader(member: &Member) -> Option<Reader> {
    let reads_much = member.kind == Kind::Source;
    // Without it the lanes read for themselves.
    reads_much.then(|| Reader::start(&member.group).ok()).flatten()
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
    let mut unseen = Vec::new();
    loop {
        match consumer.poll(POLL_MAX) {
            Some(Ok(record)) => stray(consumer, &record),
            Some(Err(error @ KafkaError::MessageConsumptionFatal(code))) => {
                consumer.context().note_error(&error);
                let attempt = format!("consuming as group `{}`", member.group);
                member.cluster.watch.lost(&fault::fault_of_code(&attempt, code).text);
                return ControlFlow::Continue(());
            }
            Some(Err(error)) => consumer.context().note_error(&error),
            None => {}
        }
        if assignment.is_given_up() {
            return ControlFlow::Continue(());
        }
        if let ControlFlow::Break(left) = obey(consumer, commands) {
            leave(member, consumer);
            return ControlFlow::Break(left);
        }
        let partitions = assignment.partitions();
        serve(member, consumer, &partitions);
        pass_markers(consumer, &partitions);
        let stall_after = member.source.settings.stall_after;
        if unseen.is_empty() && looked_at.elapsed() >= stall_after / 4 {
            (unseen, looked_at) = (partitions.clone(), Instant::now());
        }
        look_at_resting(consumer, &mut unseen, stall_after);
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
    // What was refused is not asked for in every round.
    state.commit_after.is_none_or(|after| after <= Instant::now())
        && (state.is_urgent || state.uncommitted() >= UNCOMMITTED_MAX)
}

fn obey(consumer: &Consumer, commands: &Receiver<Command>) -> ControlFlow<Left> {
    loop {
        match commands.try_recv() {
            Ok(Command::Open(id)) => {
                if let Some(partition) = consumer.context().assignment.find(&id) {
                    partition.lock().reopen(Instant::now());
                }
            }
            Ok(Command::Leave(left)) => return ControlFlow::Break(Some(left)),
            Err(TryRecvError::Empty) => return ControlFlow::Continue(()),
            Err(TryRecvError::Disconnected) => return ControlFlow::Break(None),
        }
    }
}

/// Goes back where something was given back, and hands out the lanes that are wanted, or that somebody dropped.
fn serve(member: &Member, consumer: &Consumer, partitions: &[Arc<Partition>]) {
    for partition in partitions {
        let now = Instant::now();
        let mut state = partition.lock();
        if matches!(state.lane, LaneState::Dropped(at) if now - at >= OFFER_AGAIN_AFTER) {
            state.reopen(now);
        }
        if let Some(base) = state.rewind(now) {
            drop(state);
            let is_done = seek(consumer, partition, base);
            state = partition.lock();
            state.rewound(is_done, Instant::now());
            partition.queue.tell();
        }
        if state.opens() {
            drop(state);
            member.open(partition);
        }
    }
}

fn seek(consumer: &Consumer, partition: &Partition, offset: i64) -> bool {
    let Name { topic, number } = &partition.name;
    let sought = consumer.seek(topic, *number, Offset::Offset(offset), ANSWER_MAX);
    sought.inspect_err(|error| telemetry::rewind_failed(&partition.id, &fault::said(error))).is_ok()
}

/// Looks whether lanes that have nothing to read should have: their consumers ask when they have been silent for long.
///
/// Asks for one of them at a time: where nobody answers, commits wait for one question and not for a hundred.
fn look_at_resting(consumer: &Consumer, unseen: &mut Vec<Arc<Partition>>, patience: Duration) {
    while let Some(partition) = unseen.pop() {
        let rests = partition.lock().rest != Rest::No;
        let Name { topic, number } = &partition.name;
        let ends = rests.then(|| consumer.fetch_watermarks(topic, *number, LOOK_MAX));
        partition.lock().look(ends.and_then(Result::ok), patience, Instant::now());
        if rests {
            return;
        }
    }
}

/// Lets lanes that rest go past what is no record, so that what is committed reaches the end of the log.
fn pass_markers(consumer: &Consumer, partitions: &[Arc<Partition>]) {
    for partition in partitions {
        // Held while the position is asked for: the lane says so before it reads on.
        let mut state = partition.lock();
        let now = Instant::now();
        if !state.is_to_pass(now) {
            continue;
        }
        let Ok(positions) = consumer.position() else { return };
        let Name { topic, number } = &partition.name;
        let position = positions.find_partition(topic, *number);
        match position.map(|elem| elem.offset()) {
            Some(Offset::Offset(position)) => state.pass(position, now),
            _ => state.rest = Rest::Passed(now),
        }
    }
}

/// A record in the common queue: fetched before its partition had a queue of its own. Read again from there.
fn stray(consumer: &Consumer, record: &rdkafka::message::BorrowedMessage<'_>) {
    telemetry::stray_record(record.topic(), record.partition());
    let name = Name { topic: record.topic().into(), number: record.partition() };
    if let Some(partition) = consumer.context().assignment.of_name(&name) {
        let mut state = partition.lock();
        state.stray(None, record.offset() + 1);
        state.offsets.expect_again(record.offset());
    }
    let offset = Offset::Offset(record.offset());
    let _ = consumer.seek(record.topic(), record.partition(), offset, ANSWER_MAX);
}

/// Gives everything up: the lanes are drained and committed, then the group is told.
///
/// A member with a name of its own (`group.instance.id`) says nothing: its partitions wait for it, until its session
/// times out.
fn leave(member: &Member, consumer: &Arc<Consumer>) {
    member.commit_at_last(consumer, &consumer.context().assignment.partitions());
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

/// The same on a thread of its own: the next consumer does not wait for it.
fn linger_aside(consumer: Arc<Consumer>) {
    if Arc::strong_count(&consumer) > 1 {
        // Without a thread it ends where the last message is dropped, which blocks that thread for a moment.
        let _ = thread::Builder::new().spawn(move || linger(&consumer));
    }
}

/// Ends the consumer here, and not on the thread of whoever drops the last message that lies in its memory.
fn linger(consumer: &Arc<Consumer>) {
    let deadline = Instant::now() + LINGER_MAX;
    while Arc::strong_count(consumer) > 1 && Instant::now() < deadline {
        thread::sleep(POLL_MAX);
    }
}
