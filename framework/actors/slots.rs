//! A set of futures of one type, in boxes that are used again.
//!
//! Owns which of them were woken. At steady state neither starting nor finishing one allocates,
//! which is what `FuturesUnordered` cannot give: it makes a task for each.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Wake, Waker};

use futures_util::task::AtomicWaker;

/// Futures that run, each in a slot.
pub(super) struct Slots<F> {
    slots: Vec<Slot<F>>,
    free: Vec<usize>,
    woken: Arc<Woken>,
}

struct Slot<F> {
    future: Pin<Box<Option<F>>>,
    flag: Arc<Flag>,
    waker: Waker,
}

/// The slots that were woken since they were last polled.
struct Woken {
    slots: Mutex<Vec<usize>>,
    parent: AtomicWaker,
}

struct Flag {
    slot: usize,
    raised: AtomicBool,
    woken: Arc<Woken>,
}

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.raised.swap(true, Ordering::AcqRel) {
            let mut slots = self.woken.slots.lock().unwrap_or_else(PoisonError::into_inner);
            slots.push(self.slot);
            drop(slots);
            self.woken.parent.wake();
        }
    }
}

impl<F: Future<Output = ()>> Slots<F> {
    pub(super) fn new() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            woken: Arc::new(Woken { slots: Mutex::new(Vec::new()), parent: AtomicWaker::new() }),
        }
    }

    /// How many run.
    pub(super) fn running(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Who is woken when one of them is.
    pub(super) fn register(&self, waker: &Waker) {
        self.woken.parent.register(waker);
    }

    /// Puts the future that `make` makes for its slot into one; it is not polled yet.
    pub(super) fn insert(&mut self, make: impl FnOnce(usize) -> F) -> usize {
        let slot = self.free.pop().unwrap_or_else(|| self.grow());
        self.slots[slot].future.as_mut().set(Some(make(slot)));
        slot
    }

    fn grow(&mut self) -> usize {
        let slot = self.slots.len();
        let woken = Arc::clone(&self.woken);
        let flag = Arc::new(Flag { slot, raised: AtomicBool::new(false), woken });
        let waker = Waker::from(Arc::clone(&flag));
        self.slots.push(Slot { future: Box::pin(None), flag, waker });
        slot
    }

    /// Polls one; frees its slot when it is done.
    pub(super) fn poll(&mut self, slot: usize) {
        let Slot { future, flag, waker } = &mut self.slots[slot];
        flag.raised.store(false, Ordering::Release);
        // Empty when it was woken once more after it was done.
        let Some(running) = future.as_mut().as_pin_mut() else { return };
        if running.poll(&mut Context::from_waker(waker)).is_ready() {
            future.as_mut().set(None);
            self.free.push(slot);
        }
    }

    /// Moves the slots that were woken to `into`.
    pub(super) fn take_woken(&self, into: &mut Vec<usize>) {
        let mut slots = self.woken.slots.lock().unwrap_or_else(PoisonError::into_inner);
        into.append(&mut slots);
    }
}

impl<F> Slots<F> {
    /// Drops every future, done or not.
    pub(super) fn clear(&mut self) {
        self.slots.clear();
        self.free.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::*;

    #[test]
    fn a_slot_is_used_again_and_a_late_wake_harms_nobody() {
        let log = Rc::new(RefCell::new(Vec::new()));
        let mut slots = Slots::new();
        let run = |name: &'static str, log: &Rc<RefCell<Vec<String>>>| {
            let log = Rc::clone(log);
            let mut polled = false;
            std::future::poll_fn(move |cx: &mut Context<'_>| {
                if polled {
                    log.borrow_mut().push(format!("{name} done"));
                    return std::task::Poll::Ready(());
                }
                polled = true;
                log.borrow_mut().push(format!("{name} began"));
                cx.waker().wake_by_ref();
                std::task::Poll::Pending
            })
        };
        let first = slots.insert(|_| run("a", &log));
        slots.poll(first);
        let mut woken = Vec::new();
        slots.take_woken(&mut woken);
        assert_eq!(woken, [first]);
        slots.poll(first);
        assert_eq!(slots.running(), 0);
        slots.poll(first);
        let second = slots.insert(|_| run("b", &log));
        assert_eq!(second, first);
        slots.poll(second);
        assert_eq!(slots.running(), 1);
        assert_eq!(*log.borrow(), ["a began", "a done", "b began"]);
    }
}
