//! What all consumers of a subscription share.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use actix::prelude::*;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use super::breaker::Gate;
use super::inquiry::Inquiry;
use super::keys::Keys;
use super::load::Parcel;
use super::orphans::{OrphanId, Orphans};
use super::retrier::Retrier;
use crate::broker::{Broker, BrokerState};
use crate::health::HealthCell;
use crate::pipeline::{Blanks, Scope};

/// Shared by the consumers of a subscription, which live on one arbiter.
pub(super) struct Shared {
    pub(super) scope: Arc<Scope>,
    pub(super) broker: Arc<dyn Broker>,
    pub(super) carrier: RefCell<Carrier>,
    pub(super) gate: RefCell<Gate>,
    /// What was in hand when its lane was lost, over all lanes.
    pub(super) orphans: RefCell<Orphans>,
    /// The consumers, but the one of the suspects: no redelivery of another lane goes there.
    pub(super) peers: RefCell<HashMap<u32, Peer>>,
    /// Handlers that run, over all lanes.
    pub(super) running: Cell<usize>,
    pub(super) health: HealthCell,
    /// Who is next of each key, where an order is kept.
    pub(super) keys: RefCell<Keys>,
    /// What is left of messages that are done with, for the next ones.
    pub(super) blanks: RefCell<Blanks>,
    /// Nothing is handed out before: the store of the guards did not answer.
    pub(super) store_down_until: Cell<Option<Instant>>,
    /// A suspect is to run, or runs, and nothing else may.
    pub(super) alone: Cell<bool>,
    /// Lanes that run nothing for want of a permit of all lanes together; the first is the next to get one.
    pub(super) starved: RefCell<VecDeque<u32>>,
    /// Told when something changed that holds other lanes back: a permit of all lanes together came
    /// free, a probe is over, a turn came, a suspect or the last handler before it is done.
    ///
    /// A lane's own news wake only that lane: what is not told here, the others never hear of.
    pub(super) changed: Notify,
    /// Asks for the lane of the suspects.
    pub(super) suspected: Recipient<Suspected>,
}

/// Who carries messages to waits and dead letters.
pub(super) enum Carrier {
    Here(Addr<Retrier>),
    /// It ended, and there will be another: what is to be carried waits for that.
    Away,
    /// It ended too often: nothing is carried before somebody resumes the subscription.
    GivenUp,
}

/// A message was put among the suspects: their lane is needed.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Suspected;

/// How to reach a consumer.
pub(super) struct Peer {
    /// Bounded by the messages that the consumers hold: each is told of once for each time it is carried or comes out.
    pub(super) news: mpsc::UnboundedSender<News>,
    /// It has a lane that could be lost unnoticed.
    pub(super) can_be_asked: bool,
}

/// What a consumer hears of its messages from others than the handlers.
pub(super) enum News {
    /// The broker has the copy of this one.
    Carried(Parcel),
    /// The retrier ended before it knew whether the broker has the copy of this one.
    NotCarried(Parcel),
    /// What came of an orphan that it adopted is known.
    CameOut(OrphanId),
    /// Another consumer asks whether these are in hand here.
    Asked(Arc<Inquiry>),
}

impl Shared {
    /// Whether nobody else could have what comes again.
    pub(super) fn has_one_consumer(&self) -> bool {
        self.peers.borrow().len() < 2
    }

    /// Asks all consumers but this one; how many there are to answer.
    pub(super) fn ask_others(&self, lane: u32, inquiry: &Arc<Inquiry>) -> usize {
        let mut count = 0;
        for (_, peer) in self.peers.borrow().iter().filter(|(other, _)| **other != lane) {
            if peer.can_be_asked && peer.news.send(News::Asked(Arc::clone(inquiry))).is_ok() {
                inquiry.note_asked();
                count += 1;
            }
        }
        count
    }

    /// One that was asked has answered.
    pub(super) fn answered(&self, inquiry: &Inquiry) {
        if inquiry.note_answered() {
            self.changed.notify_waiters();
        }
    }

    /// Tells a consumer.
    pub(super) fn tell(&self, lane: u32, news: News) {
        if let Some(peer) = self.peers.borrow().get(&lane) {
            let _ = peer.news.send(news);
        }
    }

    /// Whether copies are made.
    pub(super) fn has_retrier(&self) -> bool {
        matches!(*self.carrier.borrow(), Carrier::Here(_))
    }

    /// No suspect runs any more, nor wants to: the others go on.
    pub(super) fn leave_alone(&self) {
        if self.alone.replace(false) {
            self.changed.notify_waiters();
        }
    }

    /// Copies fail because the broker is away. Where the lane of their originals is gone too, waiting for a confirm is of
    /// no use: the originals come again whatever becomes of the copies.
    pub(super) fn confirms_nothing(&self) -> bool {
        matches!(self.broker.state(), BrokerState::Disconnected(_))
            && self.health.has_failed_copies()
    }

    /// A message's guards were had, but perhaps before their store went away.
    pub(super) fn store_is_back(&self) {
        let is_held = self.store_down_until.get().is_some();
        if is_held && self.scope.guards.are_up() {
            self.store_down_until.set(None);
            self.scope.note_store(false);
            self.health.update(|health| health.store = None);
        }
    }
}
