//! The root of the actors: starts the subscriptions, and stops them.

use std::collections::BTreeMap;
use std::pin::pin;
use std::time::Duration;

use actix::prelude::*;
use futures_util::future::join_all;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::{Dismiss, Halt, Holding, Inspect, Plan, Resume, Supervisor};
use crate::health::SubscriptionState;
use crate::telemetry;

/// A subscription that says nothing for so long when the grace is over has a handler that blocks its thread.
const SILENT_MAX: Duration = Duration::from_secs(1);

/// How often it is asked for a sign of life meanwhile: what it does at the end has bounds of its own.
const ASKED_EVERY: Duration = Duration::from_millis(250);

/// How long the threads may take to end when the grace is over.
const JOINED_MAX: Duration = Duration::from_millis(250);

/// One a service.
pub(crate) struct Root {
    subscriptions: Vec<Running>,
}

struct Running {
    name: String,
    supervisor: Addr<Supervisor>,
    /// `None` in a test service, where everything shares one thread.
    arbiter: Option<Arbiter>,
}

/// Stops every subscription; answers how many handlers were left running.
#[derive(Message)]
#[rtype(result = "usize")]
pub(crate) struct StopAll {
    pub(crate) grace: Duration,
}

/// Holds a subscription until it is resumed; false if there is no such subscription.
#[derive(Message)]
#[rtype(result = "bool")]
pub(crate) struct Pause {
    pub(crate) subscription: String,
    pub(crate) grace: Duration,
}

/// Lets a held subscription go on; false if there is no such subscription.
#[derive(Message)]
#[rtype(result = "bool")]
pub(crate) struct ResumeOne(pub(crate) String);

/// What every subscription holds; `None` of one that does not answer in time.
#[derive(Message)]
#[rtype(result = "BTreeMap<String, Option<Vec<Holding>>>")]
pub(crate) struct InspectAll;

/// How long a subscription may take to tell what it holds. One whose thread a handler blocks tells nothing until that
/// returns; others answer between two messages.
const INSPECTED_MAX: Duration = Duration::from_millis(250);

impl Root {
    /// Starts the subscriptions in order, each on a thread of its own unless `threads` is false.
    pub(crate) fn new(plans: Vec<Plan>) -> Self {
        let subscriptions = plans.into_iter().map(Running::start).collect();
        Self { subscriptions }
    }

    fn find(&self, name: &str) -> Option<&Addr<Supervisor>> {
        let found = self.subscriptions.iter().find(|running| running.name == name);
        found.map(|running| &running.supervisor)
    }
}

impl Running {
    fn start(plan: Plan) -> Self {
        let name = plan.scope.name().to_owned();
        let arbiter = plan.threads.then(Arbiter::new);
        let supervisor = match &arbiter {
            Some(arbiter) => {
                Supervisor::start_in_arbiter(&arbiter.handle(), |_| Supervisor::new(plan))
            }
            None => Supervisor::new(plan).start(),
        };
        Self { name, supervisor, arbiter }
    }

    /// Holds it for good; how many handlers were left running. One whose handler blocks its thread hears of nothing: at
    /// the deadline it is left as it is, as one handler.
    async fn halted(&self, deadline: Instant) -> usize {
        let state = SubscriptionState::Stopped;
        let mut halted = pin!(self.supervisor.send(Halt { deadline, state }));
        if let Ok(left) = timeout_at(deadline, &mut halted).await {
            return left.unwrap_or(0);
        }
        tokio::select! {
            biased;
            left = &mut halted => left.unwrap_or(0),
            () = self.falls_silent() => {
                telemetry::blocked_at_stop(&self.name);
                1
            }
        }
    }

    /// Resolves when its thread has done nothing for too long.
    async fn falls_silent(&self) {
        while timeout(SILENT_MAX, self.supervisor.send(Inspect)).await.is_ok() {
            sleep(ASKED_EVERY).await;
        }
    }
}

impl Actor for Root {
    type Context = Context<Self>;
}

impl Handler<StopAll> for Root {
    type Result = ResponseFuture<usize>;

    fn handle(&mut self, StopAll { grace }: StopAll, _: &mut Context<Self>) -> Self::Result {
        let deadline = Instant::now() + grace;
        let mut subscriptions = std::mem::take(&mut self.subscriptions);
        subscriptions.reverse();
        Box::pin(async move {
            let halts = subscriptions.iter().map(|running| running.halted(deadline));
            let left = join_all(halts).await;
            let dismissed = subscriptions
                .iter()
                .map(|running| timeout(SILENT_MAX, running.supervisor.send(Dismiss)));
            let handlers = join_all(dismissed).await.into_iter().flatten();
            let mut threads: Vec<Arbiter> = handlers.flatten().flatten().collect();
            for arbiter in subscriptions.into_iter().filter_map(|running| running.arbiter) {
                arbiter.stop();
                threads.push(arbiter);
            }
            ended(threads, deadline).await;
            left.into_iter().sum()
        })
    }
}

/// Waits until these threads are gone, so that whoever starts and stops services again and again piles up none.
///
/// One whose handler never gives way stays behind; nothing can end it.
async fn ended(threads: Vec<Arbiter>, deadline: Instant) {
    if threads.is_empty() {
        return;
    }
    let (all_gone, gone) = oneshot::channel();
    std::thread::spawn(move || {
        for thread in threads {
            // It may have ended in a panic; it has ended.
            let _ = thread.join();
        }
        let _ = all_gone.send(());
    });
    let _ = tokio::time::timeout_at(deadline.max(Instant::now() + JOINED_MAX), gone).await;
}

impl Handler<Pause> for Root {
    type Result = ResponseFuture<bool>;

    fn handle(&mut self, pause: Pause, _: &mut Context<Self>) -> Self::Result {
        let deadline = Instant::now() + pause.grace;
        let halted = self
            .find(&pause.subscription)
            .map(|supervisor| supervisor.send(Halt { deadline, state: SubscriptionState::Paused }));
        Box::pin(async move {
            match halted {
                Some(halted) => halted.await.is_ok(),
                None => false,
            }
        })
    }
}

impl Handler<ResumeOne> for Root {
    type Result = ResponseFuture<bool>;

    fn handle(&mut self, ResumeOne(name): ResumeOne, _: &mut Context<Self>) -> Self::Result {
        let resumed = self.find(&name).map(|supervisor| supervisor.send(Resume));
        Box::pin(async move {
            match resumed {
                Some(resumed) => resumed.await.is_ok(),
                None => false,
            }
        })
    }
}

impl Handler<InspectAll> for Root {
    type Result = ResponseFuture<BTreeMap<String, Option<Vec<Holding>>>>;

    fn handle(&mut self, InspectAll: InspectAll, _: &mut Context<Self>) -> Self::Result {
        let asked = self.subscriptions.iter().map(|running| {
            let asked = timeout(INSPECTED_MAX, running.supervisor.send(Inspect));
            let name = running.name.clone();
            async move { (name, asked.await.ok().map(Result::unwrap_or_default)) }
        });
        // At once: one that is blocked hides nobody else.
        let answers = join_all(asked);
        Box::pin(async move { answers.await.into_iter().collect() })
    }
}
