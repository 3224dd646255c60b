//! Patience with a broker that is away: the service connects again for ever, so what failed meanwhile is tried again.

use std::fmt::Display;
use std::time::Duration;

use redeliver::Service;
use tokio::time::Instant;

use crate::Error;

/// How long a broker may be away from something that has to be done.
const OUTAGE_MAX: Duration = Duration::from_secs(180);
const PAUSE: Duration = Duration::from_millis(500);

/// Tries until it works, for as long as an error `may_pass`, the outage may last and the service runs.
pub(crate) async fn ridden_out<T, E: Display>(
    service: &Service,
    may_pass: impl Fn(&E) -> bool,
    attempt: impl AsyncFn() -> Result<T, E>,
) -> Result<T, Error> {
    let given_up = Instant::now() + OUTAGE_MAX;
    let tries = async {
        loop {
            match attempt().await {
                Ok(done) => return Ok(done),
                Err(error) if may_pass(&error) && Instant::now() < given_up => {
                    tokio::time::sleep(PAUSE).await;
                }
                Err(error) => return Err(error.to_string().into()),
            }
        }
    };
    tokio::select! {
        // First: what is refused because the service stops is no fault of the broker's.
        biased;
        _ = service.stopped() => Err(STOPPED.into()),
        tried = tries => tried,
    }
}

/// What is complained of when a signal comes before the end.
pub(crate) const STOPPED: &str = "stopped by a signal before the end";
