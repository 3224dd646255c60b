//! How long to wait before something is made again.
//!
//! Owns what a lane and a handler's seat have in common: the delays grow until what was made has held for a while. What
//! opens and dies at once would be a fast loop otherwise. Makes nothing itself.

use std::time::Duration;

use tokio::time::Instant;

use crate::retry::Schedule;

/// What held for so long was made well: the next delay is the first again.
const HELD_MIN: Duration = Duration::from_secs(10);

/// The delays of one thing that is made again and again.
#[derive(Default)]
pub(super) struct Patience {
    delays: Schedule,
    /// When it was made, if it was.
    made: Option<Instant>,
}

impl Patience {
    /// It was made.
    pub(super) fn note_made(&mut self) {
        self.made = Some(Instant::now());
    }

    /// It is gone, or could not be made: when to make it again.
    pub(super) fn next_delay(&mut self) -> Duration {
        if self.made.take().is_some_and(|made| made.elapsed() >= HELD_MIN) {
            self.delays.restart();
        }
        self.delays.next_delay()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn delays_grow_until_what_was_made_has_held() {
        let mut patience = Patience::default();
        let mut longest = Duration::ZERO;
        for _ in 0..20 {
            patience.note_made();
            tokio::time::advance(Duration::from_secs(1)).await;
            longest = longest.max(patience.next_delay());
        }
        assert!(longest > Duration::from_secs(1), "twenty that died after a second: {longest:?}");
        patience.note_made();
        tokio::time::advance(HELD_MIN).await;
        let first = patience.next_delay();
        assert!(first <= Duration::from_millis(100), "{first:?}");
        let grown = (0..20).map(|_| patience.next_delay()).max();
        assert!(
            grown > Some(Duration::from_secs(1)),
            "what was never made is no reason: {grown:?}"
        );
    }
}
