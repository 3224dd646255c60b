//! Where messages ask for the handler of the actor that they are in, and get what it began.
//!
//! Owns that an answer goes to who asked: whoever stops waiting, because a guard was lost just then, takes the
//! question back, and what had begun with it; the slot it had is the next message's. Calls nothing itself.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::task::{Context, Poll};

/// Deliveries `D` on their way to a handler, and what was begun with them, `R`, on its way back.
pub(super) struct Calls<D, R> {
    asked: RefCell<VecDeque<(usize, D)>>,
    /// By slot, until its message looks.
    begun: RefCell<Vec<Option<R>>>,
}

impl<D, R> Default for Calls<D, R> {
    fn default() -> Self {
        Self { asked: RefCell::default(), begun: RefCell::default() }
    }
}

impl<D, R> Calls<D, R> {
    /// Waits until the handler began. Registers no waker: whoever serves the call polls `slot` again.
    ///
    /// # Cancel safety
    /// Nobody calls the handler then, or what it began is dropped.
    pub(super) async fn ask(&self, slot: usize, delivery: D) -> R {
        self.asked.borrow_mut().push_back((slot, delivery));
        let asked = Asked { calls: self, slot };
        std::future::poll_fn(|_: &mut Context<'_>| {
            self.take(asked.slot).map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    /// The next delivery that is to be put to the handler, with its slot.
    pub(super) fn next(&self) -> Option<(usize, D)> {
        self.asked.borrow_mut().pop_front()
    }

    /// Leaves what was begun with the delivery of `slot`.
    pub(super) fn answer(&self, slot: usize, running: R) {
        let mut begun = self.begun.borrow_mut();
        if begun.len() <= slot {
            begun.resize_with(slot + 1, || None);
        }
        begun[slot] = Some(running);
    }

    fn take(&self, slot: usize) -> Option<R> {
        self.begun.borrow_mut().get_mut(slot).and_then(Option::take)
    }
}

/// A question until its answer was taken.
struct Asked<'a, D, R> {
    calls: &'a Calls<D, R>,
    slot: usize,
}

impl<D, R> Drop for Asked<'_, D, R> {
    fn drop(&mut self) {
        let unasked = {
            let mut asked = self.calls.asked.borrow_mut();
            let place = asked.iter().position(|(slot, _)| *slot == self.slot);
            place.and_then(|place| asked.remove(place))
        };
        let unheard = self.calls.take(self.slot);
        // What users wrote is dropped while nothing is borrowed.
        drop((unasked, unheard));
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn what_was_begun_goes_to_who_asked() {
        let calls = Calls::default();
        let mut asking = Box::pin(calls.ask(3, "a delivery"));
        assert!(asking.as_mut().now_or_never().is_none());
        assert_eq!(calls.next(), Some((3, "a delivery")));
        calls.answer(3, "begun");
        assert_eq!(asking.now_or_never(), Some("begun"));
    }

    #[test]
    fn nobody_is_called_for_a_message_that_does_not_wait_any_more() {
        let calls = Calls::<_, ()>::default();
        let mut asking = Box::pin(calls.ask(0, "lost its lock"));
        assert!(asking.as_mut().now_or_never().is_none());
        drop(asking);
        assert_eq!(calls.next(), None);
    }

    #[test]
    fn what_was_begun_with_one_message_never_answers_for_the_next_in_its_slot() {
        let calls = Calls::default();
        let mut first = Box::pin(calls.ask(0, "first"));
        assert!(first.as_mut().now_or_never().is_none());
        let (slot, _) = calls.next().expect("it asked");
        calls.answer(slot, "begun with the first");
        drop(first);
        let mut second = Box::pin(calls.ask(0, "second"));
        assert!(second.as_mut().now_or_never().is_none());
        assert_eq!(calls.next(), Some((0, "second")));
        calls.answer(0, "begun with the second");
        assert_eq!(second.now_or_never(), Some("begun with the second"));
    }
}
