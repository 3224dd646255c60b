//! What all consumers of a subscription share.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::sync::Arc;

use actix::prelude::*;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::breaker::Gate;
use super::keys::Keys;
use super::retrier::Retrier;
use crate::broker::Broker;
use crate::health::HealthCell;
use crate::pipeline::Scope;

/// Shared by the consumers of a subscription, which live on one arbiter.
pub(super) struct Shared {
    pub(super) scope: Arc<Scope>,
    pub(super) broker: Arc<dyn Broker>,
    pub(super) retrier: Addr<Retrier>,
    pub(super) gate: RefCell<Gate>,
    /// Handlers that run, over all lanes.
    pub(super) running: Cell<usize>,
    pub(super) health: HealthCell,
    /// Who is next of each key, where an order is kept.
    pub(super) keys: RefCell<Keys>,
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

/// A message was put among the suspects: their lane is needed.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Suspected;

impl Shared {
    /// No suspect runs any more, nor wants to: the others go on.
    pub(super) fn leave_alone(&self) {
        if self.alone.replace(false) {
            self.changed.notify_waiters();
        }
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
