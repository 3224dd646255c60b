//! Which ids fail: a pure function of the id, the same in every process.

use sha2::{Digest, Sha256};

/// The shares of ids that fail, in percent; no id is in both.
#[derive(Clone, Copy)]
pub(crate) struct Chosen {
    fail_percent: f64,
    dead_percent: f64,
}

/// What is going to happen to the messages of one id.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Fate {
    Works,
    FailsFirst,
    FailsForEver,
}

impl Chosen {
    pub(crate) fn new(fail_percent: f64, dead_percent: f64) -> Result<Self, String> {
        let percent = 0.0..=100.0;
        let both = fail_percent + dead_percent;
        if percent.contains(&fail_percent) && percent.contains(&dead_percent) && both <= 100.0 {
            return Ok(Self { fail_percent, dead_percent });
        }
        Err(format!(
            "--fail-percent {fail_percent} and --dead-percent {dead_percent} must be 0 or more, \
             and together at most 100, because no id is in both"
        ))
    }

    pub(crate) fn fate(self, id: &str) -> Fate {
        let place = percentile(id);
        if place < self.dead_percent {
            Fate::FailsForEver
        } else if place < self.dead_percent + self.fail_percent {
            Fate::FailsFirst
        } else {
            Fate::Works
        }
    }
}

/// Where the id stands among all ids, from 0 to just below 100.
fn percentile(id: &str) -> f64 {
    let hash = Sha256::digest(id);
    let head = hash.iter().take(4).fold(0, |head, byte| head << 8 | u32::from(*byte));
    f64::from(head) / (f64::from(u32::MAX) + 1.0) * 100.0
}
