//! Keeps one subscription alive: its lanes, its consumers, its handler actors.
//!
//! Owns who is started again, when, and when that ends. Never touches a message.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use actix::prelude::*;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use super::breaker::Gate;
use super::consumer::{Attach, Consumer, Down, LaneDown, WindDown};
use super::handlers::{Handlers, Route};
use super::links::Links;
use super::retrier::Retrier;
use super::seat::{Exit, ExitReason, Seat};
use super::shared::{Shared, Suspected};
use crate::broker::{Broker, Lane, LaneEnd, LaneEvent, LaneId, Lanes};
use crate::config::{self, OnRestartsSpent};
use crate::health::{HealthCell, SubscriptionState};
use crate::pipeline::Scope;
use crate::retry::{RestartBudget, Schedule};
use crate::telemetry;

/// Everything a subscription is made of, ready to be sent to its arbiter.
pub(crate) struct Plan {
    pub(crate) scope: Arc<Scope>,
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) handlers: Handlers,
    pub(crate) service: config::Service,
    pub(crate) health: HealthCell,
    /// Handler actors on threads of their own when there are several; not in a test service.
    pub(crate) threads: bool,
}

/// Holds the subscription: finishes what runs, returns the rest. Answers how many handlers were
/// left running at the deadline.
#[derive(Message)]
#[rtype(result = "usize")]
pub(crate) struct Halt {
    pub(crate) deadline: Instant,
    pub(crate) state: SubscriptionState,
}

/// Lets a held subscription go on.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Resume;

/// What a subscription holds right now.
#[derive(Message)]
#[rtype(result = "Vec<Holding>")]
pub(crate) struct Inspect;

/// What one consumer holds.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Holding {
    pub(crate) running: usize,
    pub(crate) parked: usize,
    pub(crate) carrying: usize,
    pub(crate) oldest: Option<Instant>,
}

pub(crate) struct Supervisor {
    scope: Arc<Scope>,
    broker: Arc<dyn Broker>,
    handlers: Handlers,
    service: config::Service,
    health: HealthCell,
    threads: bool,
    seats: Vec<Place>,
    exits: (mpsc::Sender<Exit>, Option<mpsc::Receiver<Exit>>),
    shared: Option<Rc<Shared>>,
    links: Option<Links>,
    consumers: HashMap<LaneId, Attended>,
    opener: Option<Opener>,
    budget: RestartBudget,
    /// Seats whose actors keep dying; filled again when somebody resumes the subscription.
    vacant: Vec<usize>,
    /// Raised each time the subscription is held.
    epoch: u64,
    /// The lane of the suspects was asked for.
    suspects_asked: bool,
}

/// A handler's seat, and where its actors live.
struct Place {
    seat: Arc<Seat>,
    route: usize,
    arbiter: Option<Arbiter>,
    delays: Schedule,
}

struct Attended {
    address: Addr<Consumer>,
    delays: Schedule,
}

impl Supervisor {
    pub(crate) fn new(plan: Plan) -> Self {
        let Plan { scope, broker, handlers, service, health, threads } = plan;
        let (exits, exited) = mpsc::channel(seat_count(&scope, &handlers));
        let budget = RestartBudget::new(service.restarts_max, service.restarts_window);
        Self {
            scope,
            broker,
            handlers,
            service,
            health,
            threads,
            seats: Vec::new(),
            exits: (exits, Some(exited)),
            shared: None,
            links: None,
            consumers: HashMap::new(),
            opener: None,
            budget,
            vacant: Vec::new(),
            epoch: 0,
            suspects_asked: false,
        }
    }

    /// Makes the seats and puts the first actors into them.
    fn seat_handlers(&mut self) -> Links {
        let count = self.scope.settings.handlers.get();
        let lanes = self.scope.settings.consumers.get();
        let arbiters = count > 1 && self.threads;
        // Each letter has at least one message that runs, so there is always room for one more.
        let capacity = self.scope.settings.in_flight_max.get() * lanes.max(64);
        let mut routes = Vec::new();
        for (route, Route { kind, .. }) in self.handlers.routes.iter().enumerate() {
            let mut queues = Vec::new();
            for _ in 0..count {
                let (queue, inbox) = mpsc::channel(capacity);
                let (scope, exits) = (Arc::clone(&self.scope), self.exits.0.clone());
                let seat = Arc::new(Seat::new(self.seats.len(), scope, inbox, exits));
                let arbiter = arbiters.then(Arbiter::new);
                let delays = Schedule::default();
                self.seats.push(Place { seat, route, arbiter, delays });
                queues.push(queue);
            }
            routes.push((kind.clone(), queues));
        }
        for place in &self.seats {
            self.fill(place);
        }
        Links::new(routes)
    }

    /// Starts an actor in a seat.
    fn fill(&self, place: &Place) {
        let (host, seat) =
            (Arc::clone(&self.handlers.routes[place.route].host), Arc::clone(&place.seat));
        match &place.arbiter {
            Some(arbiter) => {
                arbiter.spawn_fn(move || host.start(seat));
            }
            None => host.start(seat),
        }
    }

    /// Goes on with the lanes; those that are open stay.
    fn open_lanes(&mut self, ctx: &mut Context<Self>) {
        if self.opener.is_none() {
            let lanes = self.broker.lanes(self.scope.source.load_full());
            self.opener = Some(Opener::start(lanes, ctx.address()));
        }
        self.health.update(|health| health.state = SubscriptionState::Running);
    }

    fn reopen(&mut self, lane: LaneId, why: &dyn std::fmt::Display, ctx: &mut Context<Self>) {
        let delays = match self.consumers.get_mut(&lane) {
            Some(attended) => &mut attended.delays,
            None => &mut Schedule::default(),
        };
        let delay = delays.next_delay();
        telemetry::lane_down(self.scope.name(), &lane, why, delay);
        self.scope.metrics.lanes_reopened.inc();
        self.health.update(|health| {
            health.lanes.insert(lane.to_string(), Some(why.to_string()));
        });
        let epoch = self.epoch;
        ctx.run_later(delay, move |supervisor, _| {
            // A subscription that was held in between opens all its lanes anew.
            if let Some(opener) = supervisor.opener.as_ref().filter(|_| supervisor.epoch == epoch) {
                opener.release(lane);
            }
        });
    }

    fn handler_left(&mut self, Exit { seat, why }: Exit, ctx: &mut Context<Self>) {
        let why = match why {
            ExitReason::Finished => return,
            // Charged to its message; caps and the breaker bound it.
            ExitReason::Panicked => {
                self.scope.metrics.restarts.inc();
                telemetry::handler_restarted(self.scope.name(), "it panicked over a message");
                self.fill(&self.seats[seat]);
                return;
            }
            ExitReason::Died(why) => why,
        };
        self.scope.metrics.restarts.inc();
        if self.budget.try_spend(Instant::now().into_std()) {
            telemetry::handler_restarted(self.scope.name(), &why);
            let delay = self.seats[seat].delays.next_delay();
            ctx.run_later(delay, move |supervisor, _| supervisor.fill(&supervisor.seats[seat]));
            return;
        }
        self.vacant.push(seat);
        if self.vacant.len() > 1 {
            // It was said, and the subscription is held already.
            return;
        }
        self.scope.metrics.given_up.set(1);
        telemetry::restarts_spent(self.scope.name(), &why);
        if self.service.on_restarts_spent == OnRestartsSpent::Exit {
            std::process::exit(EXIT_RESTARTS_SPENT);
        }
        let reason = format!("handler actors keep dying: {why}");
        ctx.notify(Halt { deadline: Instant::now(), state: SubscriptionState::Failed(reason) });
    }
}

/// The exit code of a process whose `on_restarts_spent` is `"exit"`.
const EXIT_RESTARTS_SPENT: i32 = 70;

fn seat_count(scope: &Scope, handlers: &Handlers) -> usize {
    (scope.settings.handlers.get() * handlers.routes.len()).max(1)
}

impl Actor for Supervisor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        let publisher = self.broker.publisher();
        let retrier = Retrier::new(Arc::clone(&self.scope), publisher, self.health.clone());
        self.shared = Some(Rc::new(Shared {
            scope: Arc::clone(&self.scope),
            broker: Arc::clone(&self.broker),
            retrier: retrier.start(),
            gate: RefCell::new(Gate::new(self.scope.settings.breaker.policy())),
            running: Cell::new(0),
            health: self.health.clone(),
            keys: RefCell::default(),
            store_down_until: Cell::new(None),
            alone: Cell::new(false),
            starved: RefCell::default(),
            changed: Notify::new(),
            suspected: ctx.address().recipient(),
        }));
        self.links = Some(self.seat_handlers());
        if let Some(mut exited) = self.exits.1.take() {
            ctx.add_stream(futures_util::stream::poll_fn(move |cx| exited.poll_recv(cx)));
        }
        self.open_lanes(ctx);
        let settings = &self.scope.settings;
        let source = settings.queue.as_deref().unwrap_or(self.scope.name());
        telemetry::subscribed(self.scope.name(), self.broker.kind(), source);
    }
}

impl Handler<Suspected> for Supervisor {
    type Result = ();

    fn handle(&mut self, Suspected: Suspected, _: &mut Context<Self>) {
        let lane = LaneId::suspects();
        // Once open it stays; an opening that failed is tried again as any other.
        if let (false, Some(opener)) = (self.suspects_asked, &self.opener) {
            self.suspects_asked = true;
            opener.release(lane);
        }
    }
}

impl StreamHandler<Exit> for Supervisor {
    fn handle(&mut self, exit: Exit, ctx: &mut Context<Self>) {
        self.handler_left(exit, ctx);
    }
}

impl Handler<LaneDown> for Supervisor {
    type Result = ();

    fn handle(&mut self, LaneDown { lane, why }: LaneDown, ctx: &mut Context<Self>) {
        match why {
            Down::Ended(LaneEnd::Revoked) => {
                self.health.update(|health| {
                    health.lanes.remove(&*lane.0);
                });
            }
            Down::Ended(end) => self.reopen(lane, &end, ctx),
            Down::Stalled => {
                self.reopen(lane, &"it delivers nothing though messages are ready", ctx)
            }
        }
    }
}

/// A lane was opened.
#[derive(Message)]
#[rtype(result = "()")]
struct Opened(LaneId, Box<dyn Lane>);

impl Handler<Opened> for Supervisor {
    type Result = ();

    fn handle(&mut self, Opened(lane, mut open): Opened, ctx: &mut Context<Self>) {
        if self.opener.is_none() {
            // Held while it was being opened: what it has been delivered goes back.
            actix_rt::spawn(async move { open.close().await });
            return;
        }
        let (Some(shared), Some(links)) = (&self.shared, &self.links) else { return };
        telemetry::lane_opened(self.scope.name(), &lane);
        self.suspects_asked |= lane.is_suspects();
        self.health.update(|health| {
            health.lanes.insert(lane.to_string(), None);
        });
        let index = self.consumers.len() as u32;
        let supervisor = ctx.address().recipient();
        let attended = self.consumers.entry(lane.clone()).or_insert_with(|| {
            let consumer = Consumer::new(index, lane, Rc::clone(shared), links.clone(), supervisor);
            Attended { address: consumer.start(), delays: Schedule::default() }
        });
        attended.delays.restart();
        attended.address.do_send(Attach(open));
    }
}

/// A lane could not be opened.
#[derive(Message)]
#[rtype(result = "()")]
struct NotOpened(LaneId, String);

impl Handler<NotOpened> for Supervisor {
    type Result = ();

    fn handle(&mut self, NotOpened(lane, why): NotOpened, ctx: &mut Context<Self>) {
        self.reopen(lane, &why, ctx);
    }
}

impl Handler<Halt> for Supervisor {
    type Result = ResponseActFuture<Self, usize>;

    fn handle(&mut self, Halt { deadline, state }: Halt, _: &mut Context<Self>) -> Self::Result {
        let opener = self.opener.take();
        self.suspects_asked = false;
        self.epoch += 1;
        let wind_down: Vec<_> = self
            .consumers
            .values()
            .map(|attended| attended.address.send(WindDown { deadline }))
            .collect();
        let halted = async move {
            let lanes = match opener {
                Some(opener) => opener.stop().await,
                None => None,
            };
            let left = futures_util::future::join_all(wind_down).await;
            if let Some(mut lanes) = lanes {
                lanes.close().await;
            }
            left.into_iter().map(|left| left.unwrap_or(0)).sum()
        };
        Box::pin(halted.into_actor(self).map(move |left, supervisor, _| {
            supervisor.health.update(|health| {
                health.state = state;
                health.lanes.clear();
            });
            left
        }))
    }
}

impl Handler<Resume> for Supervisor {
    type Result = ();

    fn handle(&mut self, Resume: Resume, ctx: &mut Context<Self>) {
        self.scope.metrics.given_up.set(0);
        for seat in std::mem::take(&mut self.vacant) {
            self.fill(&self.seats[seat]);
        }
        self.open_lanes(ctx);
    }
}

impl Handler<Inspect> for Supervisor {
    type Result = ResponseFuture<Vec<Holding>>;

    fn handle(&mut self, Inspect: Inspect, _: &mut Context<Self>) -> Self::Result {
        let asked: Vec<_> = self
            .consumers
            .values()
            .map(|attended| attended.address.send(super::consumer::Count))
            .collect();
        Box::pin(async move {
            futures_util::future::join_all(asked).await.into_iter().flatten().collect()
        })
    }
}

/// The task that waits for lanes.
struct Opener {
    releases: mpsc::UnboundedSender<LaneId>,
    task: tokio::task::JoinHandle<Box<dyn Lanes>>,
}

impl Opener {
    fn start(mut lanes: Box<dyn Lanes>, supervisor: Addr<Supervisor>) -> Self {
        // Bounded by the number of lanes: each is released once for each time it was opened.
        let (releases, mut released) = mpsc::unbounded_channel();
        let task = actix_rt::spawn(async move {
            loop {
                let event = tokio::select! {
                    event = lanes.next() => event,
                    lane = released.recv() => match lane {
                        Some(lane) => {
                            lanes.release(lane);
                            continue;
                        }
                        None => break,
                    },
                };
                let delivered = match event {
                    LaneEvent::Opened(lane, open) => supervisor.send(Opened(lane, open)).await,
                    LaneEvent::Failed(lane, error) => {
                        supervisor.send(NotOpened(lane, error.to_string())).await
                    }
                };
                if delivered.is_err() {
                    break;
                }
            }
            lanes
        });
        Self { releases, task }
    }

    fn release(&self, lane: LaneId) {
        let _ = self.releases.send(lane);
    }

    /// Hands out no more lanes; those that are out are closed before this is.
    async fn stop(self) -> Option<Box<dyn Lanes>> {
        drop(self.releases);
        self.task.await.ok()
    }
}
