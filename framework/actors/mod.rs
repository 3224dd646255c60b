//! The actors, and who starts whom again.
//!
//! ```text
//! Root                            one a service, on the service's own thread; starts in order, stops in reverse
//!  ├─ LockKeeper                  one a store, on an arbiter (thread) of its own; renews what is held
//!  └─ Supervisor                  one a subscription, on an arbiter (thread) of its own
//!      ├─ Opener (a task)         waits for lanes; asked to open one again after a full-jitter delay
//!      ├─ Consumer                one a lane; outlives its lanes
//!      │    │  ──[ Dispatch: at most in_flight_max messages, a letter a batch ]──▶ handler actors
//!      │    │  ◀─[ outcomes: room for in_flight_max + parked_max ]── handler actors
//!      │    ├──[ Carry: a letter a batch ]──▶ Retrier
//!      │    └─◀─[ News: no more than the lanes hold ]── Retrier, other consumers
//!      ├─ Retrier                 copies to waits and dead letters; reports a copy when it is confirmed
//!      └─ handler actors          the user's, `handlers` of each; on arbiters of their own when there are several
//!           ├─ Pump (a future in the actor's context): process() of each message
//!           └─ blocking ones: an actor of ours in the seat, theirs behind it on threads of actix's SyncArbiter,
//!              `threads` of them, sent one message at a time
//! ```
//!
//! Mailboxes are actix's, of 16 messages each: who awaits an answer waits for room there. What is sent without waiting goes
//! in beyond that, and is bounded by what it is about: `Carry` by the messages that the lanes may hold, the rest by the
//! number of lanes. What is in brackets goes through channels beside the mailboxes, but for `Carry`: those of `Dispatch` and
//! `News` have no capacity of their own and hold no more than the permits and the lanes allow.
//!
//! | what ends | what happens |
//! |---|---|
//! | a handler panics over a message | the message is charged an attempt; a new actor takes its seat at once, the old one finishes what it has |
//! | a handler actor stops or dies otherwise | its messages start again, uncounted; it is made anew after a delay, within the restart budget |
//! | a blocking handler's factory panics | its thread tries again after a delay, within the same budget; no message is charged |
//! | the service stops | all of it ends in that order reversed, threads included, within `shutdown_grace` and a moment |
//! | the budget is spent | the subscription is held and unhealthy, or the process exits, as configured |
//! | a lane ends or stalls | it is opened again, for ever; whichever consumer gets what comes back recognises it |
//! | a consumer panics | the subscription is held and unhealthy: what it knew of its messages may be wrong |
//! | a lane is given to another process | what its handlers still do is cancelled, and what comes of it is ignored |
//! | a copy is not confirmed, or making it panics | it is made again, for ever; the original stays with the broker |
//! | the retrier itself ends | what it had goes to the next one, which is made after a delay, within the restart budget |
//! | a lock keeper dies | it is made anew, looked for once a second |

mod answer;
mod batches;
mod bells;
mod blocking;
mod breaker;
mod calls;
mod conclude;
mod consumer;
mod desk;
mod handlers;
mod inquiry;
mod keys;
mod ledger;
mod letter;
mod life;
mod links;
mod load;
pub mod lock_keeper;
mod lost;
mod opener;
mod orphans;
mod outbox;
mod panics;
mod parking;
mod patience;
mod permits;
mod pump;
mod retrier;
mod root;
mod seat;
mod shared;
mod slots;
mod straight;
mod supervisor;
mod tenure;
#[cfg(all(test, feature = "testing"))]
mod tests;
mod ticket;

pub use answer::IntoRunning;
pub use handlers::{
    ByActor, ByFunction, Handlers, IntoHandlers, blocking, by_type, in_batches, with_codec,
    with_codecs,
};
#[cfg(feature = "__bench")]
pub(crate) use ledger::Ledger;
pub(crate) use lock_keeper::{KeeperSeat, attend_all};
pub(crate) use root::{InspectAll, Pause, ResumeOne, Root, StopAll};
pub(crate) use supervisor::{Dismiss, Halt, Holding, Inspect, Plan, Resume, Supervisor};
