//! Carries messages to another place of their subscription: to a wait, or to the dead letters.
//!
//! Owns the copies that are under way. A message is reported back when the broker has confirmed its copy; until then its
//! original stays unsettled, and a copy that cannot be confirmed is made again for as long as it takes. Never settles
//! anything itself. Should it end, what it had goes back to the consumers, for the retrier that the supervisor makes next.

use std::any::Any;
use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{self, Poll};
use std::time::Duration;

use actix::prelude::*;
use futures_util::FutureExt;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::load::{Carry, Errand, Load};
use crate::broker::{self, BrokerError, Copied, Copy, Place, Publisher, Received};
use crate::health::HealthCell;
use crate::pipeline::{Event, Scope, Work, expires_at, panic_message};
use crate::retry::{Policy, Schedule};
use crate::telemetry;
use crate::wire::{self, Stamps};

/// One for each subscription.
pub(super) struct Retrier {
    scope: Arc<Scope>,
    publisher: Arc<dyn Publisher>,
    health: HealthCell,
    /// Aborted with the actor, and their messages go back.
    carried: JoinSet<()>,
}

/// The retrier ended though it is wanted; with the reason.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct RetrierLeft(pub(super) String);

impl Retrier {
    pub(super) fn new(
        scope: Arc<Scope>,
        publisher: Arc<dyn Publisher>,
        health: HealthCell,
    ) -> Self {
        Self { scope, publisher, health, carried: JoinSet::new() }
    }

    /// Starts it; `supervisor` is told when it ends. Driven from outside its context, where its panic can be seen.
    pub(super) fn start_for(self, supervisor: Recipient<RetrierLeft>) -> Addr<Self> {
        let context = Context::new();
        let address = context.address();
        let mut life = Box::pin(AssertUnwindSafe(context.into_future(self)).catch_unwind());
        actix_rt::spawn(async move {
            let why = match (&mut life).await {
                Ok(()) => String::from("it stopped"),
                Err(panic) => format!("it panicked: {}", panic_message(panic.as_ref())),
            };
            // The context polls itself once more when it is dropped, and may panic again at that.
            let _ = std::panic::catch_unwind(AssertUnwindSafe(move || drop(life)));
            // Without a supervisor nobody wants another.
            let _ = supervisor.send(RetrierLeft(why)).await;
        });
        address
    }
}

impl Actor for Retrier {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        ctx.spawn(Joins);
    }
}

impl Handler<Carry> for Retrier {
    type Result = ();

    fn handle(&mut self, carry: Carry, _: &mut Context<Self>) {
        for load in carry.loads {
            let (scope, publisher) = (Arc::clone(&self.scope), Arc::clone(&self.publisher));
            let made = make(load, publisher, scope, self.health.clone());
            self.carried.spawn_local(made);
        }
    }
}

/// Takes in what is done. A panic that was caught nowhere ends the retrier: whoever looks after it should know, and
/// makes it anew more and more seldom.
struct Joins;

impl ActorFuture<Retrier> for Joins {
    type Output = ();

    fn poll(
        self: Pin<&mut Self>,
        retrier: &mut Retrier,
        _: &mut Context<Retrier>,
        task: &mut task::Context<'_>,
    ) -> Poll<()> {
        while let Poll::Ready(Some(joined)) = retrier.carried.poll_join_next(task) {
            if let Some(panic) = joined.err().and_then(|error| error.try_into_panic().ok()) {
                resume_unwind(panic);
            }
        }
        Poll::Pending
    }
}

/// Makes one copy, and what follows from it. The message is reported when the load is dropped.
async fn make(
    mut load: Load,
    publisher: Arc<dyn Publisher>,
    scope: Arc<Scope>,
    health: HealthCell,
) {
    if !confirmed(&mut load, publisher.as_ref(), &scope, &health).await {
        return;
    }
    load.confirm();
    let (work, errand) = load.held();
    // A panic here changes nothing about the copy: it is there, and the original must go.
    let noted = async {
        note(&scope, work, errand);
        end_guards(work, errand, &scope).await;
    };
    if let Err(panic) = AssertUnwindSafe(noted).catch_unwind().await {
        note_panic(&scope, "after a copy was confirmed", panic.as_ref());
    }
}

/// Copies until the broker confirms; false if nobody waits for it any more.
async fn confirmed(
    load: &mut Load,
    publisher: &dyn Publisher,
    scope: &Scope,
    health: &HealthCell,
) -> bool {
    let mut schedule =
        Schedule::new(Policy { delay_max: Duration::from_secs(30), ..Policy::default() });
    let (mut copy, mut failed) = (None, false);
    let mut connections = None;
    loop {
        // One that is made while this attempt fails may help the next.
        connections.iter_mut().flatten().for_each(watch::Receiver::mark_unchanged);
        let (work, errand) = load.held();
        let made = async {
            publisher.copy(copy.get_or_insert_with(|| copy_of(work, errand, scope))).await
        };
        let error = match unless_it_panics(made, scope).await {
            Ok(copied) => {
                if failed {
                    health.update(|health| health.copies = None);
                }
                note_left_out(scope, work, copied);
                return true;
            }
            Err(error) => error,
        };
        failed = true;
        scope.metrics.copies_failed.inc();
        let place = copy.as_ref().map_or(&"not made" as &dyn Debug, |copy| &copy.place);
        telemetry::copy_failed(scope.name(), place, &error);
        health.update(|health| health.copies = Some(format!("a copy is not confirmed: {error}")));
        let connections = connections.get_or_insert_with(|| publisher.connections());
        tokio::select! {
            () = tokio::time::sleep(schedule.next_delay()) => {}
            () = one_more(connections) => {
                // As if it had failed for the first time: not all of them at the same instant.
                schedule.restart();
                tokio::time::sleep(schedule.next_delay()).await;
            }
            () = load.forgotten() => return false,
        }
    }
}

/// Waits until another connection is made, if anybody tells.
async fn one_more(connections: &mut Option<watch::Receiver<u64>>) {
    if let Some(connections) = connections
        && connections.changed().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

/// A panic is a copy that failed, and is made again: uncaught, it would end the task without an answer, and the original
/// would keep its place in the process for ever.
async fn unless_it_panics(
    made: impl Future<Output = Result<Copied, BrokerError>>,
    scope: &Scope,
) -> Result<Copied, BrokerError> {
    AssertUnwindSafe(made).catch_unwind().await.unwrap_or_else(|panic| {
        note_panic(scope, "while a copy was made", panic.as_ref());
        let text = format!("making a copy panicked: {}", panic_message(panic.as_ref()));
        Err(BrokerError::new(broker::Fault::Other, text))
    })
}

/// Nothing of ours should panic there: whoever looks after the service should know.
fn note_panic(scope: &Scope, place: &'static str, panic: &(dyn Any + Send)) {
    scope.metrics.restarts.inc();
    telemetry::retrier_panicked(scope.name(), place, &panic_message(panic));
}

/// Counts and logs the user's headers that a copy lacks.
fn note_left_out(scope: &Scope, work: &Work, copied: Copied) {
    let count = copied.headers_left_out;
    if count > 0 {
        scope.metrics.headers_left_out.inc_by(count as u64);
        telemetry::headers_left_out(scope.name(), work.id(), count);
    }
}

/// Records in the claim what the confirmed copy says. What cannot be recorded ends with its lease;
/// the copy carries the attempts all the same.
async fn end_guards(work: &mut Work, errand: &Errand, scope: &Scope) {
    let Some(held) = work.held.take() else { return };
    let ended = match errand {
        Errand::Retry(delay, _) => held.failed(*delay, work.carried.attempts, true).await,
        Errand::Bury(epitaph) => held.dead(epitaph.reason.as_str()).await,
        // No run ends with these.
        Errand::Defer(_) | Errand::WaitOn(_) | Errand::Suspect => {
            return drop(held.release().await);
        }
    };
    if let Ok(false) = ended {
        // Somebody took over while we worked or copied: both may have had an effect.
        scope.metrics.possible_duplicates.inc();
    }
}

/// Counts and logs a message that was carried.
fn note(scope: &Scope, work: &Work, errand: &Errand) {
    let metrics = &scope.metrics;
    match errand {
        Errand::Retry(delay, _) | Errand::Defer(delay) => {
            metrics.wait_time.observe(delay.as_secs_f64());
            telemetry::waits(scope.name(), work.id(), *delay);
        }
        Errand::WaitOn(rest) => telemetry::waits(scope.name(), work.id(), *rest),
        Errand::Suspect => telemetry::suspected(scope.name(), work.id()),
        Errand::Bury(epitaph) => {
            let reason = epitaph.reason.as_str();
            metrics.dead(reason);
            scope.observe(work, Event::Dead(epitaph));
            telemetry::dead_lettered(scope.name(), work.id(), reason, &epitaph.fault.error);
        }
    }
}

/// The copy that an errand asks for, with everything it has to carry.
fn copy_of(work: &Work, errand: &Errand, scope: &Scope) -> Copy {
    let now = scope.clock.now();
    let mut stamps = lasting(work, scope);
    let place = match errand {
        Errand::Retry(delay, fault) => {
            stamps.push((wire::ERROR, wire::sanitise(&fault.error)));
            hop(*delay, scope, &mut stamps)
        }
        Errand::Defer(delay) | Errand::WaitOn(delay) => hop(*delay, scope, &mut stamps),
        Errand::Suspect => {
            if work.carried.alone > 0 {
                stamps.push((wire::ALONE, work.carried.alone.to_string()));
            }
            Place::Suspects
        }
        Errand::Bury(epitaph) => {
            stamps.push((wire::REASON, epitaph.reason.as_str().to_owned()));
            stamps.push((wire::ERROR, wire::sanitise(&epitaph.fault.error)));
            if let Some(class) = &epitaph.fault.class {
                stamps.push((wire::ERROR_CLASS, wire::sanitise(class)));
            }
            stamps.push((wire::CONSUMER, scope.consumer.to_string()));
            stamps.push((wire::DEAD_AT, wire::format_time(now)));
            Place::Dead
        }
    };
    let Received { envelope, .. } = &work.received;
    Copy { source: scope.source.load_full(), envelope: envelope.clone(), place, stamps }
}

/// The wait for `delay`, or the longest there is, with the rest to be waited afterwards.
fn hop(delay: Duration, scope: &Scope, stamps: &mut Stamps) -> Place {
    let delay = delay.min(wire::WAIT_MAX);
    let step = scope.retries.load().step_for(delay);
    stamps.push((wire::DUE, wire::format_time(scope.clock.now() + delay)));
    let rest = delay.saturating_sub(step);
    if !rest.is_zero() {
        stamps.push((wire::REST, wire::format_wait(rest)));
    }
    Place::Wait(step)
}

/// What every copy of a message carries on.
fn lasting(work: &Work, scope: &Scope) -> Stamps {
    let carried = &work.carried;
    let mut stamps = Stamps::new();
    if let Some(id) = work.id() {
        stamps.push((wire::ID, id.to_owned()));
    }
    stamps.push((wire::FIRST_SEEN, wire::format_time(scope.first_seen(work))));
    let origin = carried.origin.as_deref().map(str::to_owned);
    stamps.push((wire::ORIGIN, origin.unwrap_or_else(|| work.received.envelope.origin())));
    if carried.attempts > 0 {
        stamps.push((wire::ATTEMPT, carried.attempts.to_string()));
    }
    if let Some(delay) = carried.delay {
        stamps.push((wire::DELAY, wire::format_wait(delay)));
    }
    if carried.is_forced {
        stamps.push((wire::FORCED, String::from("1")));
    }
    if let Some(expires) = expires_at(work, scope) {
        stamps.push((wire::EXPIRES, wire::format_time(expires)));
    }
    for (name, count) in [(wire::GENERATION, carried.generation), (wire::HOPS, carried.hops)] {
        if count > 0 {
            stamps.push((name, count.to_string()));
        }
    }
    stamps
}
