//! How much a consumer may pull from its lane and hand to the handlers, with regard to all the others.
//!
//! Owns nothing: the permits are the desk's, and what all consumers share says who comes first.

use tokio::time::Instant;

use super::desk::Desk;

impl Desk {
    /// How many messages may be pulled now.
    pub(super) fn room(&self) -> usize {
        let settings = self.settings();
        let shared = self.shared.as_ref();
        // Without an order, what finds no place to wait here waits at the broker.
        let held = match self.is_ordered() {
            true => self.parked.len() + shared.keys.borrow().waiting(),
            false => 0,
        };
        let full = held + self.leaving() >= settings.parked_max.get()
            || self.ledger.bytes() as u64 >= settings.in_flight_bytes_max;
        let now = self.now;
        if full
            || self.winding_down
            || self.asking.is_some()
            || self.store_is_down(now)
            || (shared.alone.get() && !self.suspects)
        {
            return 0;
        }
        if self.suspects {
            let is_free = self.running + self.ready.len() + self.leaving() == 0;
            return usize::from(is_free && shared.gate.borrow().lets_suspect(now));
        }
        let busy = self.running + self.ready.len();
        let mut room = settings.in_flight_max.get().saturating_sub(busy);
        if let Some(total) = settings.in_flight_total_max {
            let free = total.get().saturating_sub(shared.running.get() + self.ready.len());
            // A lane with nothing in hand takes one: it could not be starved of what it does not know.
            room = room.min(free.max(usize::from(busy == 0)));
        }
        shared.gate.borrow().room(room, self.ready.len(), self.now)
    }

    /// Whether what other lanes do may let this one go on.
    pub(super) fn waits_for_others(&self) -> bool {
        // Also with nothing ready: what it runs may never end, and others may leave it a permit to pull with.
        let shares = self.settings().in_flight_total_max.is_some();
        let waits = !self.ready.is_empty() || !self.errands.is_empty();
        let waits = waits || self.suspects || self.is_ordered();
        // While a probe is out nothing is pulled, and its end is no news of this lane.
        let waits = waits || self.shared.gate.borrow().is_open();
        waits || shares || self.shared.alone.get() || self.asking.is_some()
    }

    /// Whether it may hand out now, with regard to suspects.
    pub(super) fn may_hand_out(&self) -> bool {
        if !self.suspects {
            return !self.shared.alone.get();
        }
        if !self.shared.gate.borrow().lets_suspect(self.now) {
            // The others find out whether what all depend on is back.
            self.shared.leave_alone();
            return false;
        }
        if !self.ready.is_empty() {
            self.shared.alone.set(true);
        }
        self.shared.running.get() == 0
    }

    /// Tells health when a suspect waits for too long to be alone: while a handler does not answer, no lane goes on.
    pub(super) fn note_waiting_alone(&mut self) {
        let others = self.shared.running.get() - self.running;
        let waits = self.shared.alone.get() && !self.ready.is_empty() && others > 0;
        let health = &self.shared.health;
        if !waits {
            if self.waits_alone_since.take().is_some() {
                health.update(|health| health.note_lane(&self.lane.0, None));
            }
            return;
        }
        let since = *self.waits_alone_since.get_or_insert(self.now);
        if self.now.duration_since(since) >= self.settings().stall_after {
            let why = format!(
                "a suspect waits to run alone, and every lane with it, until what runs has answered: {others} handler(s)"
            );
            health.update(|health| health.note_lane(&self.lane.0, Some(why)));
        }
    }

    /// How many may be handed out. Of the permits of all lanes together the lanes that have none get one each
    /// first, in the order in which they came to want one: a lane with much to do would keep them all otherwise.
    pub(super) fn permits(&self) -> usize {
        let own = self.settings().in_flight_max.get().saturating_sub(self.running);
        if self.suspects {
            // It runs when nothing else does, and those that wait for a permit wait for it.
            return own;
        }
        let Some(total) = self.settings().in_flight_total_max else { return own };
        let free = total.get().saturating_sub(self.shared.running.get());
        let starved = self.shared.starved.borrow();
        match starved.iter().position(|lane| *lane == self.index) {
            Some(place) if place < free => own.min((free - starved.len().min(free)).max(1)),
            Some(_) => 0,
            None => own.min(free.saturating_sub(starved.len())),
        }
    }

    /// Queues this lane up for a permit of all lanes together while it has work and runs none of it.
    pub(super) fn note_starved(&self) {
        if self.suspects || self.settings().in_flight_total_max.is_none() {
            return;
        }
        let mut starved = self.shared.starved.borrow_mut();
        let is_starved = self.running == 0 && !self.ready.is_empty();
        match starved.iter().position(|lane| *lane == self.index) {
            None if is_starved => starved.push_back(self.index),
            Some(place) if !is_starved => drop(starved.remove(place)),
            _ => {}
        }
    }

    /// Whether the store of the guards did not answer a moment ago.
    pub(super) fn store_is_down(&self, now: Instant) -> bool {
        self.shared.store_down_until.get().is_some_and(|until| until > now)
    }

    /// With nothing to hand out, no message finds out that the store is back.
    pub(super) fn look_at_store(&self) {
        let is_over = self.shared.store_down_until.get().is_some_and(|until| until <= self.now);
        if is_over && self.ready.is_empty() {
            self.shared.store_is_back();
        }
    }
}
