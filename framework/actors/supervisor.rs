//! Keeps one subscription alive: its lanes, its consumers, its handler actors.
//!
//! Owns who is started again, when, and when that ends. Never touches a message.

mod restarts;

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
use super::opener::{NotOpened, Opened, Opener};
use super::patience::Patience;
use super::retrier::RetrierLeft;
use super::seat::{EXITS_MAX, Exit, Seat};
use super::shared::{Carrier, Shared, Suspected};
use crate::broker::{Broker, LaneEnd, LaneId};
use crate::config;
use crate::health::{HealthCell, SubscriptionState};
use crate::pipeline::Scope;
use crate::retry::RestartBudget;
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

/// Ends the handler actors' own threads; answers with them, for whoever waits until they are gone.
#[derive(Message)]
#[rtype(result = "Vec<Arbiter>")]
pub(crate) struct Dismiss;

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
    consumers: HashMap<LaneId, Addr<Consumer>>,
    /// How many consumers were made: each has a number of its own.
    consumer_count: u32,
    /// When to open lanes again.
    lanes: HashMap<LaneId, Patience>,
    opener: Option<Opener>,
    budget: RestartBudget,
    /// Seats whose actors keep dying; filled again when somebody resumes the subscription.
    vacant: Vec<usize>,
    /// When to make the retrier again.
    retrier: Patience,
    /// Raised each time the subscription is held: what was begun before concerns none of its lanes any more.
    epoch: u64,
    /// How many times it is being held, and not all at rest yet.
    halting: usize,
    /// It was resumed while it was being held.
    resumes: bool,
    suspects: Suspects,
}

/// Where the lane of the suspects is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Suspects {
    /// Not open, and nobody asked for it.
    Away,
    /// It was asked for.
    Asked,
    Open,
}

/// A handler's seat, and where its actors live.
struct Place {
    seat: Arc<Seat>,
    route: usize,
    arbiter: Option<Arbiter>,
    patience: Patience,
}

impl Supervisor {
    pub(crate) fn new(plan: Plan) -> Self {
        let Plan { scope, broker, handlers, service, health, threads } = plan;
        let (exits, exited) = mpsc::channel(seat_count(&scope, &handlers) * EXITS_MAX);
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
            consumer_count: 0,
            lanes: HashMap::new(),
            opener: None,
            budget,
            vacant: Vec::new(),
            retrier: Patience::default(),
            epoch: 0,
            halting: 0,
            resumes: false,
            suspects: Suspects::Away,
        }
    }

    /// Makes the seats and puts the first actors into them.
    fn seat_handlers(&mut self) -> Links {
        let count = self.scope.settings.handlers.get();
        let arbiters = count > 1 && self.threads;
        let mut routes = Vec::new();
        for (route, Route { kind, .. }) in self.handlers.routes.iter().enumerate() {
            let mut queues = Vec::new();
            for _ in 0..count {
                // Bounded by the permits: each letter has at least one message that runs. How many lanes there
                // will be is the broker's to say.
                let (queue, inbox) = mpsc::unbounded_channel();
                let (scope, exits) = (Arc::clone(&self.scope), self.exits.0.clone());
                let seat = Arc::new(Seat::new(self.seats.len(), scope, inbox, exits));
                let arbiter = arbiters.then(Arbiter::new);
                self.seats.push(Place { seat, route, arbiter, patience: Patience::default() });
                queues.push(queue);
            }
            routes.push((kind.clone(), queues));
        }
        for index in 0..self.seats.len() {
            self.fill(index);
        }
        Links::new(routes)
    }

    /// Goes on with the lanes; those that are open stay.
    fn open_lanes(&mut self, ctx: &mut Context<Self>) {
        if self.opener.is_none() {
            let lanes = self.broker.lanes(self.scope.source.load_full());
            self.opener = Some(Opener::start(lanes, ctx.address(), self.epoch));
        }
        self.health.update(|health| health.state = SubscriptionState::Running);
    }

    fn reopen(&mut self, lane: LaneId, why: &dyn std::fmt::Display, ctx: &mut Context<Self>) {
        if lane.is_suspects() {
            self.suspects = Suspects::Asked;
        }
        let delay = self.lanes.entry(lane.clone()).or_default().next_delay();
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

    /// The lane of the suspects may be handed out anew, and may have been before this one's end was heard of: that one was
    /// closed as a second, and is asked for here.
    fn take_suspects_again(&mut self, revoked: LaneId) {
        if revoked.is_suspects() {
            self.suspects = Suspects::Asked;
            if let Some(opener) = &self.opener {
                opener.release(revoked);
            }
        }
    }

    /// Lets it go on after it was held.
    fn resume(&mut self, ctx: &mut Context<Self>) {
        self.scope.metrics.given_up.set(0);
        for seat in std::mem::take(&mut self.vacant) {
            self.fill(seat);
        }
        let carrier = self.shared.as_ref().map(|shared| shared.carrier.borrow());
        let is_given_up = carrier.is_some_and(|carrier| matches!(*carrier, Carrier::GivenUp));
        if is_given_up {
            self.start_retrier(ctx);
        }
        // Of copies that nobody waits for any more; one that still fails says so again.
        let has_retrier = self.shared.as_ref().is_some_and(|shared| shared.has_retrier());
        if has_retrier {
            self.health.update(|health| health.copies = None);
        }
        self.open_lanes(ctx);
    }

    /// A consumer panicked. Whatever it knew of its messages may be wrong, so nothing goes on as if it were not: all
    /// of it goes back to the broker, and health says so until somebody resumes it.
    fn give_up(&mut self, lane: LaneId, panic: &str, ctx: &mut Context<Self>) {
        self.consumers.remove(&lane);
        self.scope.metrics.given_up.set(1);
        let reason = format!("the consumer of lane {lane} panicked: {panic}");
        telemetry::consumer_broke(self.scope.name(), &reason);
        ctx.notify(Halt { deadline: Instant::now(), state: SubscriptionState::Failed(reason) });
    }
}

fn seat_count(scope: &Scope, handlers: &Handlers) -> usize {
    (scope.settings.handlers.get() * handlers.routes.len()).max(1)
}

impl Actor for Supervisor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        self.retrier.note_made();
        let carrier = Carrier::Here(self.retrier_for(ctx));
        self.shared = Some(Rc::new(Shared {
            scope: Arc::clone(&self.scope),
            broker: Arc::clone(&self.broker),
            carrier: RefCell::new(carrier),
            gate: RefCell::new(Gate::new(self.scope.settings.breaker.policy())),
            orphans: RefCell::default(),
            peers: RefCell::default(),
            running: Cell::new(0),
            health: self.health.clone(),
            keys: RefCell::default(),
            blanks: RefCell::default(),
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
        // Once open it stays; an opening that failed is tried again as any other.
        if let (Suspects::Away, Some(opener)) = (self.suspects, &self.opener) {
            self.suspects = Suspects::Asked;
            opener.release(LaneId::suspects());
        }
    }
}

impl StreamHandler<Exit> for Supervisor {
    fn handle(&mut self, exit: Exit, ctx: &mut Context<Self>) {
        self.handler_left(exit, ctx);
    }
}

impl Handler<RetrierLeft> for Supervisor {
    type Result = ();

    fn handle(&mut self, RetrierLeft(why): RetrierLeft, ctx: &mut Context<Self>) {
        self.retrier_left(&why, ctx);
    }
}

impl Handler<LaneDown> for Supervisor {
    type Result = ();

    fn handle(&mut self, LaneDown { lane, why, epoch }: LaneDown, ctx: &mut Context<Self>) {
        match why {
            Down::Panicked(panic) => self.give_up(lane, &panic, ctx),
            // All its lanes were given up since: they are opened anew when it is resumed.
            _ if epoch != self.epoch => {}
            Down::Ended(LaneEnd::Revoked) => {
                self.lanes.remove(&lane);
                self.health.update(|health| {
                    health.lanes.remove(&*lane.0);
                });
                self.take_suspects_again(lane);
            }
            Down::Ended(end) => self.reopen(lane, &end, ctx),
            Down::Stalled => {
                self.reopen(lane, &"it delivers nothing though messages are ready", ctx)
            }
        }
    }
}

impl Handler<Opened> for Supervisor {
    type Result = ();

    fn handle(&mut self, opened: Opened, ctx: &mut Context<Self>) {
        let Opened { id, mut lane, epoch } = opened;
        let is_second = id.is_suspects() && self.suspects == Suspects::Open;
        if epoch != self.epoch || is_second {
            // Held while it was being opened, or asked for twice: what it has been delivered goes back.
            actix_rt::spawn(async move { lane.close().await });
            return;
        }
        let (Some(shared), Some(links)) = (&self.shared, &self.links) else { return };
        telemetry::lane_opened(self.scope.name(), &id);
        if id.is_suspects() {
            self.suspects = Suspects::Open;
        }
        self.health.update(|health| {
            health.lanes.insert(id.to_string(), None);
        });
        self.lanes.entry(id.clone()).or_default().note_made();
        let consumer = self.consumers.entry(id.clone()).or_insert_with(|| {
            let index = self.consumer_count;
            self.consumer_count += 1;
            let supervisor = ctx.address().recipient();
            Consumer::new(index, id, Rc::clone(shared), links.clone(), supervisor).start()
        });
        consumer.do_send(Attach { lane, epoch });
    }
}

impl Handler<NotOpened> for Supervisor {
    type Result = ();

    fn handle(&mut self, NotOpened { id, why, epoch }: NotOpened, ctx: &mut Context<Self>) {
        if epoch == self.epoch {
            self.reopen(id, &why, ctx);
        }
    }
}

impl Handler<Halt> for Supervisor {
    type Result = ResponseActFuture<Self, usize>;

    fn handle(&mut self, Halt { deadline, state }: Halt, _: &mut Context<Self>) -> Self::Result {
        let opener = self.opener.take();
        self.suspects = Suspects::Away;
        self.epoch += 1;
        self.halting += 1;
        self.resumes = false;
        let epoch = self.epoch;
        let wind_down: Vec<_> =
            self.consumers.values().map(|consumer| consumer.send(WindDown { deadline })).collect();
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
        Box::pin(halted.into_actor(self).map(move |left, supervisor, ctx| {
            supervisor.halting -= 1;
            // Nobody sits there until somebody resumes it: what waits there would be waited for in vain.
            for seat in &supervisor.vacant {
                supervisor.seats[*seat].seat.put_all_down();
            }
            if supervisor.epoch == epoch {
                supervisor.health.update(|health| {
                    health.state = state;
                    health.lanes.clear();
                });
            }
            if supervisor.halting == 0 && std::mem::take(&mut supervisor.resumes) {
                supervisor.resume(ctx);
            }
            left
        }))
    }
}

impl Handler<Resume> for Supervisor {
    type Result = ();

    fn handle(&mut self, Resume: Resume, ctx: &mut Context<Self>) {
        // Lanes that are opened beside those that are being closed would wait for their consumers, delivered to
        // and not drained.
        self.resumes = self.halting > 0;
        if !self.resumes {
            self.resume(ctx);
        }
    }
}

impl Handler<Dismiss> for Supervisor {
    type Result = MessageResult<Dismiss>;

    fn handle(&mut self, Dismiss: Dismiss, _: &mut Context<Self>) -> Self::Result {
        let arbiters: Vec<_> =
            self.seats.iter_mut().filter_map(|place| place.arbiter.take()).collect();
        for arbiter in &arbiters {
            arbiter.stop();
        }
        MessageResult(arbiters)
    }
}

impl Handler<Inspect> for Supervisor {
    type Result = ResponseFuture<Vec<Holding>>;

    fn handle(&mut self, Inspect: Inspect, _: &mut Context<Self>) -> Self::Result {
        let asked: Vec<_> =
            self.consumers.values().map(|consumer| consumer.send(super::consumer::Count)).collect();
        Box::pin(async move {
            futures_util::future::join_all(asked).await.into_iter().flatten().collect()
        })
    }
}
