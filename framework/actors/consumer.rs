//! Drains one lane: receives, hands out, settles.
//!
//! Owns the messages that its lane delivered until they are settled, and the permits: nothing is
//! pulled that could not be worked on. Never publishes (the retrier does) and never decides what
//! becomes of a message (the pipeline does).
//!
//! The actor outlives its lanes: when one is lost, it waits for the next and knows what still runs.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use actix::prelude::*;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Instant;

use super::desk::Desk;
use super::links::Links;
use super::retrier::Errand;
use super::shared::Shared;
use super::supervisor::Holding;
use crate::broker::{Lane, LaneEnd, LaneId, Recall};
use crate::pipeline::Work;
use crate::telemetry;

/// How long a stopping process looks for a suspect that is on its way here.
const TAKE_IN_MAX: Duration = Duration::from_millis(100);

/// How long a stopping process may take to put back a suspect whose handler is not done.
const PUT_BACK_MAX: Duration = Duration::from_secs(2);

/// A lane was lost, or found to stall; the supervisor opens it again.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct LaneDown {
    pub(super) lane: LaneId,
    pub(super) why: Down,
}

/// Why a consumer has no lane any more.
#[derive(Debug)]
pub(super) enum Down {
    /// It ended by itself.
    Ended(LaneEnd),
    /// It delivered nothing though the broker has something.
    Stalled,
}

/// An open lane for this consumer to drain.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Attach(pub(super) Box<dyn Lane>);

/// Receive no more, finish what runs until `deadline`, close the lane; answers how many messages
/// were given back with their handlers still running.
#[derive(Message)]
#[rtype(result = "usize")]
pub(super) struct WindDown {
    pub(super) deadline: Instant,
}

/// The actor.
pub(super) struct Consumer {
    lane: LaneId,
    supervisor: Recipient<LaneDown>,
    /// Away while a lane is drained.
    desk: Option<Desk>,
    commands: Option<mpsc::Sender<(Instant, oneshot::Sender<usize>)>>,
    /// The next lane, which came before the desk was back from the last one.
    next: Option<Box<dyn Lane>>,
    /// Told when there is one.
    next_came: Rc<Notify>,
    holding: Rc<Cell<Holding>>,
}

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
        let next_came = Rc::default();
        Self { lane, supervisor, desk: Some(desk), commands: None, next: None, next_came, holding }
    }

    /// Takes note of a lane's end. What still runs gives its permits back before the desk rests.
    fn end(&mut self, mut desk: Desk, down: Option<Down>, ctx: &mut Context<Self>) {
        self.commands = None;
        let is_revoked = matches!(down, Some(Down::Ended(LaneEnd::Revoked)));
        if let Some(why) = down {
            let lane = self.lane.clone();
            self.supervisor.do_send(LaneDown { lane, why });
        }
        if !is_revoked {
            return self.rest(desk, ctx);
        }
        desk.tenure.revoke();
        let next_came = Rc::clone(&self.next_came);
        let run_out = async move {
            run_out(&mut desk, &next_came).await;
            desk
        };
        ctx.spawn(run_out.into_actor(self).map(|desk, consumer, ctx| consumer.rest(desk, ctx)));
    }

    fn rest(&mut self, desk: Desk, ctx: &mut Context<Self>) {
        self.desk = Some(desk);
        if let Some(lane) = self.next.take() {
            ctx.notify(Attach(lane));
        }
    }
}

impl Actor for Consumer {
    type Context = Context<Self>;
}

impl Handler<Attach> for Consumer {
    type Result = ();

    fn handle(&mut self, Attach(lane): Attach, ctx: &mut Context<Self>) {
        let Some(desk) = self.desk.take() else {
            self.next = Some(lane);
            return self.next_came.notify_one();
        };
        let (commands, orders) = mpsc::channel(1);
        self.commands = Some(commands);
        let drained = drain(lane, desk, orders).into_actor(self);
        ctx.spawn(drained.map(|(desk, down), consumer, ctx| consumer.end(desk, down, ctx)));
    }
}

impl Handler<WindDown> for Consumer {
    type Result = ResponseFuture<usize>;

    fn handle(&mut self, WindDown { deadline }: WindDown, _: &mut Context<Self>) -> Self::Result {
        let commands = self.commands.clone();
        Box::pin(async move {
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

type Orders = mpsc::Receiver<(Instant, oneshot::Sender<usize>)>;

/// Drains `lane` until it ends or is told to wind down. The whole life of a consumer in one place.
async fn drain(
    mut lane: Box<dyn Lane>,
    mut desk: Desk,
    mut orders: Orders,
) -> (Desk, Option<Down>) {
    desk.open(lane.generation());
    let shared = Rc::clone(&desk.shared);
    let mut recalled = lane.recalled();
    let end = loop {
        // First, because it hears whatever is told from here on, polled or not.
        let changed = shared.changed.notified();
        desk.hand_out();
        desk.note_starved();
        desk.show();
        if let Err(end) = desk.settle_at(lane.as_mut()).await {
            break Down::Ended(end);
        }
        let room = desk.room();
        let wake_at = desk.wake_at();
        tokio::select! {
            biased;
            Some((deadline, reply)) = orders.recv() => {
                let left = wind_down(lane.as_mut(), &mut desk, deadline).await;
                desk.lose();
                let _ = reply.send(left);
                return (desk, None);
            }
            recall = &mut recalled => {
                if let Recall::Until(deadline) = recall {
                    wind_down(lane.as_mut(), &mut desk, deadline).await;
                }
                break Down::Ended(LaneEnd::Revoked);
            }
            outcomes = desk.outcomes.recv() => desk.conclude_all(outcomes),
            Some(work) = desk.carried.recv() => desk.is_carried(work),
            Some(number) = desk.bells.rung() => desk.is_rung_for(number),
            () = changed, if desk.waits_for_others() => {}
            received = lane.next(&mut desk.received, room), if room > 0 => match received {
                Ok(()) => desk.receive(),
                Err(end) => break Down::Ended(end),
            },
            () = tokio::time::sleep_until(wake_at) => {
                if desk.is_suspicious(lane.as_ref()).await {
                    break Down::Stalled;
                }
            }
        }
    };
    desk.lose();
    // What the channel still knows goes back now, not when it times out.
    let _ = lane.close().await;
    (desk, Some(end))
}

/// Takes in what comes of messages whose lane is somebody else's, until nothing runs any more or there is a new lane.
async fn run_out(desk: &mut Desk, next_came: &Notify) {
    while desk.running + desk.carrying > 0 {
        tokio::select! {
            biased;
            outcomes = desk.outcomes.recv() => desk.conclude_all(outcomes),
            Some(work) = desk.carried.recv() => desk.is_carried(work),
            () = next_came.notified() => return,
        }
    }
    desk.show();
}

/// Finishes what runs, as far as the time allows; the number of handlers that were left running.
async fn wind_down(lane: &mut dyn Lane, desk: &mut Desk, deadline: Instant) -> usize {
    if desk.suspects {
        take_in_suspect(lane, desk).await;
    }
    desk.winding_down = true;
    desk.send_parked_away();
    let mut left = loop {
        let settled = desk.settle_at(lane).await;
        let busy = desk.running + desk.carrying;
        if busy == 0 || settled.is_err() {
            break busy;
        }
        tokio::select! {
            biased;
            outcomes = desk.outcomes.recv() => desk.conclude_all(outcomes),
            Some(work) = desk.carried.recv() => desk.is_carried(work),
            () = tokio::time::sleep_until(deadline) => break busy,
        }
    };
    if desk.suspects && desk.running > 0 {
        // Given back as it is, it would look as if the process had died of it.
        left = put_back_suspect(lane, desk).await;
    }
    desk.winding_down = false;
    if let Err(end) = lane.close().await {
        telemetry::close_failed(desk.shared.scope.name(), &desk.lane, &end);
    }
    left
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
    while desk.carrying > 0 {
        tokio::select! {
            Some(work) = desk.carried.recv() => desk.is_carried(work),
            () = tokio::time::sleep_until(deadline) => break,
        }
    }
    let _ = lane.settle(&mut desk.settlements).await;
    left
}
