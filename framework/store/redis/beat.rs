//! One beat for calls of several kinds: they leave together, when all that left before are answered.
//!
//! Owns how many are on their way, who still gathers questions, and who is told when calls may leave. Calls nothing: without
//! it each kind would go at its own pace, in smaller calls, and a call costs system calls and wake-ups of three threads.

use std::sync::Arc;

use tokio::sync::watch;

/// When calls leave.
#[derive(Clone)]
pub(super) struct Beat(Arc<watch::Sender<State>>);

#[derive(Clone, Copy, Default)]
struct State {
    /// Calls on their way.
    under_way: usize,
    /// Those who are about to ask more.
    gathering: usize,
}

impl State {
    fn is_quiet(self) -> bool {
        self.under_way == 0 && self.gathering == 0
    }
}

impl Beat {
    pub(super) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(State::default())))
    }

    /// A call leaves; it is on its way until what is returned is dropped.
    pub(super) fn leave(&self) -> UnderWay {
        self.change(|state| state.under_way += 1, |_| false);
        UnderWay(self.clone())
    }

    /// Somebody is about to ask more, until what is returned is dropped.
    pub(super) fn gather(&self) -> Gathering {
        self.change(|state| state.gathering += 1, |_| false);
        Gathering(self.clone())
    }

    /// Whether a call may leave at once.
    pub(super) fn is_quiet(&self) -> bool {
        self.0.borrow().is_quiet()
    }

    /// For who wants to be told, each time, that calls may leave.
    pub(super) fn listen(&self) -> Listener {
        Listener(self.0.subscribe())
    }

    fn change(&self, change: impl FnOnce(&mut State), is_told: impl FnOnce(State) -> bool) {
        self.0.send_if_modified(|state| {
            change(state);
            is_told(*state)
        });
    }
}

pub(super) struct UnderWay(Beat);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.change(|state| state.under_way -= 1, State::is_quiet);
    }
}

pub(super) struct Gathering(Beat);

impl Drop for Gathering {
    fn drop(&mut self) {
        // Though others still gather: what waited for this one does not wait for them.
        self.0.change(|state| state.gathering -= 1, |state| state.under_way == 0);
    }
}

pub(super) struct Listener(watch::Receiver<State>);

impl Listener {
    /// Completes when calls may leave, or could since it was asked before.
    ///
    /// # Cancel safety
    /// Cancel safe: what was not heard is heard the next time.
    pub(super) async fn told(&mut self) {
        if self.0.changed().await.is_err() {
            // Nobody calls any more.
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn is_told(listener: &mut Listener) -> bool {
        listener.told().now_or_never().is_some()
    }

    #[test]
    fn calls_leave_when_the_last_one_was_answered_of_whatever_kind() {
        let beat = Beat::new();
        let mut listener = beat.listen();
        let (claims, ends) = (beat.leave(), beat.leave());
        assert!(!beat.is_quiet());
        drop(claims);
        assert!(!is_told(&mut listener), "one is on its way");
        drop(ends);
        assert!(beat.is_quiet() && is_told(&mut listener));
        assert!(!is_told(&mut listener), "once each time");
    }

    #[test]
    fn who_gathers_holds_calls_back_and_nobody_waits_for_a_second_one() {
        let beat = Beat::new();
        let mut listener = beat.listen();
        let (one, other) = (beat.gather(), beat.gather());
        assert!(!beat.is_quiet());
        drop(one);
        assert!(is_told(&mut listener), "what the first one asked may leave");
        let call = beat.leave();
        drop(other);
        assert!(!is_told(&mut listener), "a call is on its way");
        drop(call);
        assert!(is_told(&mut listener));
    }
}
