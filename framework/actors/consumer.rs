//! Drains one lane: receives, hands out, settles.
//!
//! Owns the messages that its lane delivered until they are settled, and the permits: nothing is
//! pulled that could not be worked on. Never publishes (the retrier does) and never decides what
//! becomes of a message (the pipeline does).
//!
//! The actor outlives its lanes: when one is lost, it waits for the next and knows what still runs.

use std::cell::{Cell, RefCell};
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::time::Duration;

use actix::prelude::*;
use futures_util::FutureExt;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Instant;

use super::desk::Desk;
use super::links::Links;
use super::load::Errand;
use super::shared::Shared;
use super::supervisor::Holding;
use crate::broker::{Lane, LaneEnd, LaneId, Recall};
use crate::pipeline::{Work, panic_message};
use crate::telemetry;

/// How long a stopping process looks for a suspect that is on its way here.
const TAKE_IN_MAX: Duration = Duration::from_millis(100);

/// How long a stopping process may take to put back a suspect whose handler is not done.
const PUT_BACK_MAX: Duration = Duration::from_secs(2);

/// How often a stopping process looks whether anything can be confirmed at all.
const LOOKED_EVERY: Duration = Duration::from_millis(250);

/// A lane was lost, or found to stall; the supervisor opens it again.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct LaneDown {
    pub(super) lane: LaneId,
    pub(super) why: Down,
    /// Of the lanes that it was one of.
    pub(super) epoch: u64,
}

/// Why a consumer has no lane any more.
#[derive(Debug)]
pub(super) enum Down {
    /// It ended by itself.
    Ended(LaneEnd),
    /// It delivered nothing though the broker has something.
    Stalled,
    /// The consumer itself panicked: nothing that it knew can be relied on.
    Panicked(String),
}

/// An open lane for this consumer to drain.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Attach {
    pub(super) lane: Box<dyn Lane>,
    /// Of the lanes that it is one of: raised each time the subscription is held.
    pub(super) epoch: u64,
}

/// Receive no more, finish what runs until `deadline`, close the lane; answers how many messages
/// were given back with their handlers still running. Told twice, the earlier deadline counts.
#[derive(Message)]
#[rtype(result = "usize")]
pub(super) struct WindDown {
    pub(super) deadline: Instant,
}

/// The actor.
pub(super) struct Consumer {
    lane: LaneId,
    supervisor: Recipient<LaneDown>,
    /// Away while a lane is drained, and until nothing of it runs any more.
    desk: Option<Desk>,
    commands: Option<mpsc::Sender<Order>>,
    next: Rc<Next>,
    holding: Rc<Cell<Holding>>,
}

/// The next lane, which came before the desk was back from the last one.
#[derive(Default)]
struct Next {
    lane: RefCell<Option<Attach>>,
    /// Told when there is one.
    came: Notify,
}

/// To wind down until a deadline, and who wants to know what was left running.
type Order = (Instant, oneshot::Sender<usize>);
type Orders = mpsc::Receiver<Order>;

/// What the consumer holds right now.
#[derive(Message)]
#[rtype(result = "Holding")]
pub(super) struct Count;

impl Consumer {
    pub(super) fn new(
        index: u32,
        lane: LaneId,
        shared: Rc<Shared>,
        links: Links,
        supervisor: Recipient<LaneDown>,
    ) -> Self {
        let holding = Rc::new(Cell::new(Holding::default()));
        let desk = Desk::new(index, lane.clone(), shared, links, Rc::clone(&holding));
        Self { lane, supervisor, desk: Some(desk), commands: None, next: Rc::default(), holding }
    }

    /// Drains a lane to its end, and takes in what still runs then.
    fn attend(
        &mut self,
        Attach { mut lane, epoch }: Attach,
        mut desk: Desk,
        ctx: &mut Context<Self>,
    ) {
        let (commands, mut orders) = mpsc::channel(1);
        self.commands = Some(commands);
        let (next, supervisor, id) =
            (Rc::clone(&self.next), self.supervisor.clone(), self.lane.clone());
        let attended = async move {
            let drained = drain(lane.as_mut(), &mut desk, &mut orders);
            let drained = AssertUnwindSafe(drained).catch_unwind().await;
            let down = drained.unwrap_or_else(|panic| Some(Down::Panicked(panic_message(&*panic))));
            let is_broken = matches!(down, Some(Down::Panicked(_)));
            if matches!(down, Some(Down::Ended(LaneEnd::Revoked))) {
                desk.tenure.revoke();
            }
            if let Some(why) = down {
                supervisor.do_send(LaneDown { lane: id, why, epoch });
            }
            if is_broken {
                let _ = lane.close().await;
                return None;
            }
            drop(lane);
            run_out(&mut desk, &mut orders, &next).await;
            Some(desk)
        };
        ctx.spawn(attended.into_actor(self).map(|desk, consumer, ctx| consumer.rest(desk, ctx)));
    }

    fn rest(&mut self, desk: Option<Desk>, ctx: &mut Context<Self>) {
        self.commands = None;
        let next = self.next.lane.take();
        match (next, desk) {
            (Some(next), Some(desk)) => self.attend(next, desk, ctx),
            (_, desk) => self.desk = desk,
        }
    }
}

impl Actor for Consumer {
    type Context = Context<Self>;
}

impl Handler<Attach> for Consumer {
    type Result = ();

    fn handle(&mut self, attach: Attach, ctx: &mut Context<Self>) {
        if let Some(desk) = self.desk.take() {
            return self.attend(attach, desk, ctx);
        }
        if let Some(Attach { mut lane, .. }) = self.next.lane.replace(Some(attach)) {
            // Overtaken by another: what it was delivered goes back.
            actix_rt::spawn(async move { lane.close().await });
        }
        self.next.came.notify_one();
    }
}

impl Handler<WindDown> for Consumer {
    type Result = ResponseFuture<usize>;

    fn handle(&mut self, WindDown { deadline }: WindDown, _: &mut Context<Self>) -> Self::Result {
        let (commands, next) = (self.commands.clone(), self.next.lane.take());
        Box::pin(async move {
            if let Some(Attach { mut lane, .. }) = next {
                // It was delivered to, and nobody would ever drain it.
                let _ = lane.close().await;
            }
            let (reply, left) = oneshot::channel();
            match commands {
                Some(commands) if commands.send((deadline, reply)).await.is_ok() => {
                    left.await.unwrap_or(0)
                }
                _ => 0,
            }
        })
    }
}

impl Handler<Count> for Consumer {
    type Result = ResponseFuture<Holding>;

    fn handle(&mut self, Count: Count, _: &mut Context<Self>) -> Self::Result {
        let holding = Rc::clone(&self.holding);
        Box::pin(async move { holding.get() })
    }
}

/// Drains `lane` until it ends or is told to wind down. The whole life of a consumer in one place.
async fn drain(lane: &mut dyn Lane, desk: &mut Desk, orders: &mut Orders) -> Option<Down> {
    desk.open(lane);
    let shared = Rc::clone(&desk.shared);
    let mut recalled = lane.recalled();
    let end = loop {
        // First, because it hears whatever is told from here on, polled or not.
        let changed = shared.changed.notified();
        desk.run_errands();
        desk.hand_out();
        desk.note_starved();
        desk.show();
        if let Err(end) = desk.settle_at(lane).await {
            break Down::Ended(end);
        }
        let room = desk.room();
        let wake_at = desk.wake_at(lane, room);
        tokio::select! {
            biased;
            Some((deadline, reply)) = orders.recv() => {
                let left = wind_down(lane, desk, deadline, vec![reply], orders).await;
                desk.lose();
                left.tell();
                return None;
            }
            recall = &mut recalled => {
                if let Recall::Until(deadline) = recall {
                    wind_down(lane, desk, deadline, Vec::new(), orders).await.tell();
                }
                break Down::Ended(LaneEnd::Revoked);
            }
            outcomes = desk.outcomes.recv() => {
                if let Some(end) = desk.conclude_at(lane, outcomes) {
                    break Down::Ended(end);
                }
            }
            Some(news) = desk.news.recv() => {
                if let Some(end) = desk.hear(news, Some(lane)) {
                    break Down::Ended(end);
                }
            }
            Some(number) = desk.bells.rung() => desk.is_rung_for(number),
            () = changed, if desk.waits_for_others() => {}
            received = lane.next(&mut desk.received, room), if room > 0 => match received {
                Ok(()) => desk.receive(),
                Err(end) => break Down::Ended(end),
            },
            () = tokio::time::sleep_until(wake_at) => {
                if let Some(down) = desk.look_at(lane).await {
                    break down;
                }
            }
        }
    };
    desk.lose();
    // What the channel still knows goes back now, not when it times out.
    let _ = lane.close().await;
    Some(end)
}

/// Takes in what comes of messages whose lane is gone, until nothing runs any more or there is a new lane.
///
/// Their permits are for the other lanes meanwhile, and whoever looks sees what is still held.
async fn run_out(desk: &mut Desk, orders: &mut Orders, next: &Next) {
    let mut left = Left::default();
    let mut deadline = None;
    let shared = Rc::clone(&desk.shared);
    loop {
        let changed = shared.changed.notified();
        // Whoever asked before the lane was lost has an answer before this rests.
        while let Ok(news) = desk.news.try_recv() {
            drop(desk.hear(news, None));
        }
        desk.run_errands();
        desk.show_all();
        if desk.running + desk.leaving() == 0 || next.lane.borrow().is_some() {
            break;
        }
        tokio::select! {
            biased;
            outcomes = desk.outcomes.recv() => desk.conclude_all(outcomes),
            Some(news) = desk.news.recv() => drop(desk.hear(news, None)),
            () = next.came.notified() => {}
            () = changed, if desk.leaving() > desk.carrying => {}
            Some((sooner, reply)) = orders.recv() => {
                deadline = Some(deadline.map_or(sooner, |until: Instant| until.min(sooner)));
                left.replies.push(reply);
            }
            () = over(deadline, &shared, || desk.running == 0) => {
                if desk.running == 0 {
                    telemetry::copies_left(shared.scope.name(), desk.leaving());
                }
                left.count = desk.running;
                std::mem::take(&mut left).tell();
                deadline = None;
            }
        }
    }
    left.count = desk.running;
    left.tell();
}

/// Nothing is to be waited for any more: at the deadline, or before, where nothing is to be done here and nothing can be
/// confirmed. Looks again and again: a lane may be lost while it is waited for.
async fn over(deadline: Option<Instant>, shared: &Shared, is_idle: impl Fn() -> bool) {
    let Some(deadline) = deadline else { return std::future::pending().await };
    while Instant::now() < deadline && !(is_idle() && shared.confirms_nothing()) {
        tokio::time::sleep_until(deadline.min(Instant::now() + LOOKED_EVERY)).await;
    }
}

/// How many handlers were left running, and who wants to know.
#[derive(Default)]
struct Left {
    count: usize,
    replies: Vec<oneshot::Sender<usize>>,
}

impl Left {
    fn tell(self) {
        for reply in self.replies {
            let _ = reply.send(self.count);
        }
    }
}

/// Finishes what runs, as far as the time allows.
async fn wind_down(
    lane: &mut dyn Lane,
    desk: &mut Desk,
    mut deadline: Instant,
    mut replies: Vec<oneshot::Sender<usize>>,
    orders: &mut Orders,
) -> Left {
    if desk.suspects {
        take_in_suspect(lane, desk).await;
    }
    desk.winding_down = true;
    desk.send_parked_away();
    let shared = Rc::clone(&desk.shared);
    let mut count = loop {
        let changed = shared.changed.notified();
        desk.run_errands();
        desk.show();
        let settled = desk.settle_all_at(lane).await;
        let busy = desk.running + desk.leaving() + desk.awaited;
        if busy == 0 || settled.is_err() {
            break desk.running;
        }
        tokio::select! {
            biased;
            outcomes = desk.outcomes.recv() => desk.conclude_all(outcomes),
            // Whoever runs what it waits for is winding down as well, and counts it.
            Some(news) = desk.news.recv() => drop(desk.hear(news, Some(&*lane))),
            () = changed, if desk.leaving() > desk.carrying => {}
            // A stop does not wait for as long as the pause that it came into.
            Some((sooner, reply)) = orders.recv() => {
                deadline = deadline.min(sooner);
                replies.push(reply);
            }
            () = over(Some(deadline), &shared, || desk.running == 0 && lane.is_lost() == Some(true)) => {
                if desk.leaving() > 0 {
                    telemetry::copies_left(shared.scope.name(), desk.leaving());
                }
                break desk.running;
            }
        }
    };
    if desk.suspects && desk.running > 0 {
        // Given back as it is, it would look as if the process had died of it.
        count = put_back_suspect(lane, desk).await;
    }
    desk.winding_down = false;
    if let Err(end) = lane.close().await {
        telemetry::close_failed(desk.shared.scope.name(), &desk.lane, &end);
    }
    Left { count, replies }
}

/// Takes in a suspect that was delivered and not looked at yet: returned unseen, it would look as
/// if the process had died of it.
async fn take_in_suspect(lane: &mut dyn Lane, desk: &mut Desk) {
    if desk.room() > 0 {
        let taken = tokio::time::timeout(TAKE_IN_MAX, lane.next(&mut desk.received, 1)).await;
        if let Ok(Ok(())) = taken {
            desk.receive();
        }
    }
}

/// Copies a suspect whose handler is not done to where it came from, so that nothing is held
/// against it.
async fn put_back_suspect(lane: &mut dyn Lane, desk: &mut Desk) -> usize {
    let left = desk.running;
    for (slot, received) in desk.ledger.held() {
        let received_at = desk.shared.scope.tick(desk.now);
        let work = Work::new(received, received_at, desk.index, slot, &desk.shared.scope);
        desk.errands.push((work, Errand::Suspect));
    }
    desk.run_errands();
    let deadline = Instant::now() + PUT_BACK_MAX;
    while desk.leaving() > 0 {
        tokio::select! {
            Some(news) = desk.news.recv() => drop(desk.hear(news, None)),
            () = tokio::time::sleep_until(deadline) => break,
        }
    }
    let _ = lane.settle(&mut desk.settlements).await;
    left
}
