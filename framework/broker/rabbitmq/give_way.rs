//! When a lane that ran dry looks again.
//!
//! lapin's thread wakes whoever waits for a consumer with the first message of what it has just read, and while it holds that
//! consumer's lock. Who looks at once finds the lock held, sleeps, is woken, and takes one message; so does the next. Giving
//! way once lets it put down all that it has read. Of 20,000 messages on 4 queues that made 2,300 switches between threads of
//! 9,000, and 6 us of processor time a message of 8.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// Lanes on one thread are woken together: what one gave way for is there for all.
const APART_MIN: Duration = Duration::from_micros(50);
/// Nothing of lapin's takes as long: somebody else had the processor.
const LONG: Duration = Duration::from_millis(1);
/// So many times as long nobody is given way to after that: a tenth of our time at the most goes to strangers.
const REST_FACTOR: u32 = 10;

thread_local! {
    static NOT_BEFORE: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Lets other threads of this processor run, if that is not too often or too dear.
pub(super) fn give_way() {
    let began = Instant::now();
    if NOT_BEFORE.get().is_some_and(|time| began < time) {
        return;
    }
    std::thread::yield_now();
    NOT_BEFORE.set(Some(not_before(began, Instant::now())));
}

/// When it may be done again, after it was from `began` to `ended`.
fn not_before(began: Instant, ended: Instant) -> Instant {
    match ended - began {
        took if took > LONG => ended + took * REST_FACTOR,
        _ => ended + APART_MIN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_machine_is_given_way_to_for_a_tenth_of_the_time() {
        let began = Instant::now();
        let ended = began + Duration::from_millis(3);
        assert_eq!(not_before(began, ended), ended + Duration::from_millis(30));
    }

    #[test]
    fn lapin_is_given_way_to_again_and_again() {
        let began = Instant::now();
        let ended = began + Duration::from_micros(40);
        assert_eq!(not_before(began, ended), ended + APART_MIN);
    }
}
