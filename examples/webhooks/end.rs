//! When nothing more can come: nothing ready, nothing waiting, nothing in anybody's hands.
//!
//! RabbitMQ tells how many messages are ready and who consumes, but not what consumers hold. While
//! all consumers are ours, the service knows what they hold; of others it is unknown. So whoever
//! has had nothing to do for a while stops consuming and looks on: others that are idle too do the
//! same, and then nobody consumes, so nobody holds anything. While somebody still does, or
//! something turns up, this is not the end.
//!
//! Kafka counts what is held as not read: what is ready is the group's lag on every partition, also
//! on those that nobody is assigned at the moment, and what waits is its lag on those of the waits.

use std::time::Duration;

use redeliver::broker::Depth;
use redeliver::{Error, Service};
use tokio::time::Instant;

use crate::options::{Job, SUBSCRIPTION};

const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Waits for the end; `show` is called all along. False if a signal stopped the service before.
pub(crate) async fn reached(
    job: &Job,
    service: &Service,
    mut show: impl FnMut(),
) -> Result<bool, Error> {
    let mut watch = Watch::new(job.idle_exit);
    loop {
        show();
        tokio::select! {
            _ = service.stopped() => return Ok(false),
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        // A broker that does not answer may hold anything.
        let depth = service.depth(SUBSCRIPTION).await.unwrap_or_default();
        let done = match watch.look(depth, Instant::now()) {
            Step::Wait => Ok(()),
            Step::Pause => service.pause(SUBSCRIPTION).await,
            Step::Resume => service.resume(SUBSCRIPTION).await,
            Step::End => return Ok(true),
        };
        match done {
            // By a signal that came in between.
            Err(Error::Stopped) => return Ok(false),
            done => done?,
        }
    }
}

/// What to do after a look.
enum Step {
    Wait,
    Pause,
    Resume,
    End,
}

/// Remembers since when there is nothing left, and whether we consume.
struct Watch {
    idle_exit: Duration,
    /// Nothing was ready or waiting since then.
    empty_since: Option<Instant>,
    /// And nothing was in anybody's hands.
    over_since: Option<Instant>,
    is_paused: bool,
}

impl Watch {
    fn new(idle_exit: Duration) -> Self {
        Self { idle_exit, empty_since: None, over_since: None, is_paused: false }
    }

    fn look(&mut self, depth: Depth, now: Instant) -> Step {
        let is_empty = depth.ready == Some(0) && depth.waiting == Some(0);
        let is_over = is_empty && depth.unsettled == Some(0);
        self.empty_since = is_empty.then(|| self.empty_since.unwrap_or(now));
        self.over_since = is_over.then(|| self.over_since.unwrap_or(now));
        let long_enough = |since: Option<Instant>| {
            since.is_some_and(|since| now.duration_since(since) >= self.idle_exit)
        };
        if long_enough(self.over_since) {
            return Step::End;
        }
        let pause = long_enough(self.empty_since) && depth.unsettled.is_none();
        match (self.is_paused, pause, is_empty) {
            (false, true, _) => {
                self.is_paused = true;
                Step::Pause
            }
            (true, _, false) => {
                self.is_paused = false;
                Step::Resume
            }
            (false, false, _) | (true, _, true) => Step::Wait,
        }
    }
}
