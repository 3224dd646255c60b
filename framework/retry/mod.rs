//! The decisions about time: when to try again, where to wait, when to stop trying.
//!
//! Pure but for one file: time and chance are handed in, nothing sleeps, nothing does I/O. Knows no broker, no actor
//! and no message; all of it can be tested with numbers.
//!
//! In reading order:
//!
//! | file | the question it answers |
//! |---|---|
//! | `attempt` | which execution is this? |
//! | `policy` | how long is the wait before it? |
//! | `extent` | what does the whole schedule come to? |
//! | `steps` | which waits does a broker hold, and which of them is taken? |
//! | `budget` | may an actor that died be started again? |
//! | `breaker` | may the subscription go on, or does everything fail? |
//! | `schedule` | the same delays for loops that reconnect, through the `backoff` crate |

mod attempt;
pub use attempt::Attempt;

mod policy;
pub use policy::{Backoff, Jitter, Policy};

mod extent;

mod steps;
pub use steps::{WAIT_MAX, WAIT_MIN, WaitSteps};

mod budget;
pub(crate) use budget::RestartBudget;

mod breaker;
pub(crate) use breaker::{Breaker, BreakerPolicy, BreakerState, Change, Permit};

mod schedule;
pub use schedule::Schedule;
