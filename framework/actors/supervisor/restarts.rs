//! What the supervisor of a subscription does when a handler actor or the retrier ends: another one, after a while, as long
//! as the restart budget lasts.
//!
//! Owns nothing of its own. Lanes are not counted here: they are opened again for ever.

use std::sync::Arc;

use actix::prelude::*;
use tokio::time::Instant;

use super::{Halt, Supervisor};
use crate::actors::retrier::Retrier;
use crate::actors::seat::{Exit, ExitReason};
use crate::actors::shared::Carrier;
use crate::config::OnRestartsSpent;
use crate::health::SubscriptionState;
use crate::telemetry;

/// The exit code of a process whose `on_restarts_spent` is `"exit"`.
const EXIT_RESTARTS_SPENT: i32 = 70;

impl Supervisor {
    /// Starts an actor in a seat.
    pub(super) fn fill(&mut self, index: usize) {
        let place = &mut self.seats[index];
        place.patience.note_made();
        let (host, seat) =
            (Arc::clone(&self.handlers.routes[place.route].host), Arc::clone(&place.seat));
        match &place.arbiter {
            Some(arbiter) => {
                arbiter.spawn_fn(move || host.start(seat));
            }
            None => host.start(seat),
        }
    }

    /// An actor left its seat.
    pub(super) fn handler_left(&mut self, Exit { seat, why }: Exit, ctx: &mut Context<Self>) {
        let (why, is_vacant) = match why {
            ExitReason::Finished => return,
            // Charged to its message; caps and the breaker bound it.
            ExitReason::Panicked => {
                self.scope.metrics.restarts.inc();
                telemetry::handler_restarted(self.scope.name(), "it panicked over a message");
                self.fill(seat);
                return;
            }
            ExitReason::Died(why) => (why, true),
            ExitReason::NotMade(why) => {
                self.seats[seat].seat.is_heard();
                (why, false)
            }
        };
        self.scope.metrics.restarts.inc();
        if !self.budget.try_spend(Instant::now().into_std()) {
            if is_vacant {
                self.vacant.push(seat);
            }
            return self.note_spent(&format!("handler actors keep dying: {why}"), ctx);
        }
        telemetry::handler_restarted(self.scope.name(), &why);
        if is_vacant {
            let delay = self.seats[seat].patience.next_delay();
            ctx.run_later(delay, move |supervisor, _| supervisor.fill(seat));
        }
    }

    /// The retrier ended. What it had is with the consumers again, unsettled, and waits for the next one.
    pub(super) fn retrier_left(&mut self, why: &str, ctx: &mut Context<Self>) {
        let Some(shared) = self.shared.clone() else { return };
        self.scope.metrics.restarts.inc();
        if !self.budget.try_spend(Instant::now().into_std()) {
            shared.carrier.replace(Carrier::GivenUp);
            shared.changed.notify_waiters();
            return self.note_spent(&format!("the retrier keeps dying: {why}"), ctx);
        }
        shared.carrier.replace(Carrier::Away);
        let delay = self.retrier.next_delay();
        telemetry::retrier_restarted(self.scope.name(), why, delay);
        let reason = format!("nothing is copied until the retrier is made anew: {why}");
        self.health.update(|health| health.copies = Some(reason));
        ctx.run_later(delay, Self::start_retrier);
    }

    pub(super) fn start_retrier(&mut self, ctx: &mut Context<Self>) {
        self.retrier.note_made();
        let retrier = self.retrier_for(ctx);
        if let Some(shared) = &self.shared {
            shared.carrier.replace(Carrier::Here(retrier));
            shared.changed.notify_waiters();
        }
        self.health.update(|health| health.copies = None);
    }

    pub(super) fn retrier_for(&self, ctx: &Context<Self>) -> Addr<Retrier> {
        let scope = Arc::clone(&self.scope);
        let retrier = Retrier::new(scope, self.broker.publisher(), self.health.clone());
        retrier.start_for(ctx.address().recipient())
    }

    /// The restart budget is spent: the subscription is held, or the process ends.
    fn note_spent(&mut self, why: &str, ctx: &mut Context<Self>) {
        if self.scope.metrics.given_up.get() > 0 {
            // It was said, and the subscription is held already.
            return;
        }
        self.scope.metrics.given_up.set(1);
        telemetry::restarts_spent(self.scope.name(), why);
        if self.service.on_restarts_spent == OnRestartsSpent::Exit {
            std::process::exit(EXIT_RESTARTS_SPENT);
        }
        let state = SubscriptionState::Failed(why.to_owned());
        ctx.notify(Halt { deadline: Instant::now(), state });
    }
}
