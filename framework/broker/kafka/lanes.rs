//! Hands out the lanes of a subscription: those of its topics, of its waits, and of its suspects.
//!
//! Owns which groups it is a member of. The groups are apart from one another: a wait that is added or a suspect
//! that turns up moves no partition of the source.

use std::collections::HashMap;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::connection::Cluster;
use super::group::{self, Command, Kind, Member};
use super::marks::TEXT_LENGTH_MAX;
use super::topology::Names;
use super::transaction::Transactions;
use crate::broker::{BrokerError, LaneEvent, LaneId, Lanes, Source};
use crate::config::DeliveryGuarantee;
use crate::telemetry;

/// Lanes that are open and not fetched yet; more are offered again.
const EVENTS_MAX: usize = 4096;
/// Commands that the thread has not seen yet.
const COMMANDS_MAX: usize = 4096;
/// How long leaving the groups may take.
const LEAVE_MAX: Duration = Duration::from_secs(15);

/// The lanes of one subscription.
pub(super) struct KafkaLanes {
    cluster: Cluster,
    source: Arc<Source>,
    generations: Arc<AtomicU64>,
    groups: HashMap<u8, SyncSender<Command>>,
    events: mpsc::Receiver<LaneEvent>,
    events_to: mpsc::Sender<LaneEvent>,
    /// Groups that could not be joined, to be told.
    failed: Vec<(LaneId, BrokerError)>,
}

impl KafkaLanes {
    pub(super) fn new(cluster: Cluster, source: Arc<Source>, generations: Arc<AtomicU64>) -> Self {
        let (events_to, events) = mpsc::channel(EVENTS_MAX);
        let mut lanes = Self {
            cluster,
            source,
            generations,
            groups: HashMap::new(),
            events,
            events_to,
            failed: Vec::new(),
        };
        // Suspects from the start: there may be some from before a crash.
        for kind in [Kind::Source, Kind::Waits, Kind::Suspects] {
            lanes.join(kind);
        }
        lanes
    }

    fn join(&mut self, kind: Kind) {
        let (commands, orders) = sync_channel(COMMANDS_MAX);
        let names = Names::of(&self.source.settings);
        let is_transactional =
            self.source.settings.delivery_guarantee == DeliveryGuarantee::Transactional;
        let id = self.cluster.clients.transactional_id(&names.group_of(kind));
        let member = Member {
            cluster: self.cluster.clone(),
            kind,
            group: names.group_of(kind),
            source: Arc::clone(&self.source),
            names,
            generations: Arc::clone(&self.generations),
            events: self.events_to.clone(),
            text_length_max: TEXT_LENGTH_MAX.into(),
            transactions: is_transactional.then(|| Mutex::new(Transactions::new(id))),
        };
        let id = LaneId(format!("group {}", member.group).into());
        match group::start(Arc::new(member), orders) {
            Ok(()) => {
                self.groups.insert(kind as u8, commands);
            }
            Err(error) => self.failed.push((id, error)),
        }
    }
}

#[async_trait]
impl Lanes for KafkaLanes {
    async fn next(&mut self) -> LaneEvent {
        if let Some((id, error)) = self.failed.pop() {
            return LaneEvent::Failed(id, error);
        }
        match self.events.recv().await {
            Some(event) => event,
            // Not while `self` has a sender.
            None => std::future::pending().await,
        }
    }

    fn release(&mut self, lane: LaneId) {
        for group in self.groups.values() {
            // Only the group that has the partition finds it. A full channel means a thread that waits for a
            // broker; the supervisor asks again.
            let _ = group.try_send(Command::Open(lane.clone()));
        }
    }

    async fn close(&mut self) {
        self.events.close();
        while self.events.try_recv().is_ok() {}
        let mut leaving = Vec::new();
        for (_, group) in self.groups.drain() {
            let (left, leave) = oneshot::channel();
            if group.try_send(Command::Leave(left)).is_ok() {
                leaving.push(leave);
            }
        }
        let left = futures_util::future::join_all(leaving);
        if timeout(LEAVE_MAX, left).await.is_err() {
            telemetry::leaving_unanswered(&self.source.name);
        }
    }
}

impl Drop for KafkaLanes {
    fn drop(&mut self) {
        for (_, group) in self.groups.drain() {
            let (left, _) = oneshot::channel();
            let _ = group.try_send(Command::Leave(left));
        }
    }
}

/// One who reads topics of a subscription without being a member of any of its groups.
pub(super) fn onlooker(cluster: &Cluster, source: Arc<Source>) -> Arc<Member> {
    let names = Names::of(&source.settings);
    Arc::new(Member {
        cluster: cluster.clone(),
        kind: Kind::Source,
        group: names.group_of(Kind::Source),
        source,
        names,
        generations: Arc::default(),
        events: mpsc::channel(1).0,
        text_length_max: TEXT_LENGTH_MAX.into(),
        transactions: None,
    })
}
