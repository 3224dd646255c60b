//! A channel in confirm mode with several messages in flight.
//!
//! Owns which messages of the channel are answered, and whether all is known that an answer means. A message
//! that no queue takes is returned by the server just before its confirm, and lapin hands it to whichever confirm
//! of the channel completes next: a neighbour's, perhaps. So nobody is answered before everything has been looked
//! at that was answered earlier; and once a message was returned, nothing more is sent, and everybody waits until
//! all are answered. By then every return has come, and each can be looked for in all of them.
//!
//! Knows neither targets nor faults.

use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use futures_util::task::AtomicWaker;
use lapin::message::BasicReturnMessage;
use lapin::{Channel, Confirmation};

use super::connection::Live;

/// A channel that refuses a message is trusted to know better only when it is younger than this. RabbitMQ 3.10 does not
/// tell channels that were open when a policy lifts the limit of a full queue: such a channel would refuse for ever. An
/// age, and not a count of refusals: messages that are tried again and again come seldom, and it bounds how many channels
/// a queue costs that stays full.
const TRUSTED_MAX: Duration = Duration::from_secs(5);

/// A channel that is published on.
pub(super) struct Outlet {
    /// Keeps the connection alive as long as the channel.
    _live: Arc<Live>,
    channel: Channel,
    opened: Instant,
    window: usize,
    state: Mutex<State>,
    woken: Arc<Woken>,
}

/// A message from its first frame to its confirm. Nothing that is in flight is ever dropped: its confirm may
/// carry the return of a neighbour.
pub(super) type Sending = BoxFuture<'static, lapin::Result<Confirmation>>;

#[derive(Default)]
struct State {
    slots: Vec<Slot>,
    free: Vec<usize>,
    unanswered: usize,
    returns: Vec<BasicReturnMessage>,
    /// Somebody left before the answer came, something closed the channel, or it refuses: what is in flight comes to its
    /// end, and nothing more is sent. What got in while the channel closes would be told why, as if it were the cause.
    retired: bool,
}

struct Slot {
    flag: Arc<Flag>,
    waker: Waker,
    content: Content,
}

enum Content {
    Nothing,
    Sending(Sending),
    /// Confirmed, and whether as stored.
    Answered(lapin::Result<bool>),
}

/// The slots whose messages have news, in the order in which they came.
#[derive(Default)]
struct Woken {
    slots: Mutex<Vec<usize>>,
    /// Told of all news: it has its answer and waits for everybody's, also of those whose owners have left.
    last: AtomicWaker,
}

struct Flag {
    slot: usize,
    woken: Arc<Woken>,
    owner: AtomicWaker,
}

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.lock().push(self.slot);
        self.owner.wake();
        self.woken.last.wake();
    }
}

impl Woken {
    fn lock(&self) -> MutexGuard<'_, Vec<usize>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Outlet {
    /// With at most `window` messages in flight on `channel`.
    pub(super) fn new(live: Arc<Live>, channel: Channel, window: usize) -> Arc<Self> {
        let (state, woken) = (Mutex::default(), Arc::default());
        let opened = Instant::now();
        Arc::new(Self { _live: live, channel, opened, window, state, woken })
    }

    /// Whether it will ever take a message again.
    pub(super) fn is_usable(&self) -> bool {
        self.channel.status().connected() && !self.state().retired
    }

    /// Begins what `sending` makes for the channel; `None` where there is no room now.
    ///
    /// Polled here for the first time and one at a time: lapin counts a message and queues its frames in one poll,
    /// and the server counts in the order of the frames.
    pub(super) fn begin(
        self: &Arc<Self>,
        sending: impl FnOnce(Channel) -> Sending,
    ) -> Option<InFlight> {
        let sending = || sending(self.channel.clone());
        let slot = self.state().begin(self.window, &self.woken, sending)?;
        Some(InFlight { outlet: Arc::clone(self), slot, is_answered: false })
    }

    /// It did not store a message: the next ones go another way, where that may be because it is not told enough.
    fn note_refusal(&self) {
        if self.opened.elapsed() >= TRUSTED_MAX {
            self.state().retired = true;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The slot of what was begun; `None` where there is no room now.
    fn begin(
        &mut self,
        window: usize,
        woken: &Arc<Woken>,
        sending: impl FnOnce() -> Sending,
    ) -> Option<usize> {
        let busy = self.slots.len() - self.free.len();
        if busy >= window || self.retired || !self.returns.is_empty() {
            return None;
        }
        let slot = self.free.pop().unwrap_or_else(|| self.grow(woken));
        self.unanswered += 1;
        self.slots[slot].content = Content::Sending(sending());
        self.look_at(slot);
        Some(slot)
    }

    fn grow(&mut self, woken: &Arc<Woken>) -> usize {
        let slot = self.slots.len();
        let flag = Arc::new(Flag { slot, woken: Arc::clone(woken), owner: AtomicWaker::new() });
        let waker = Waker::from(Arc::clone(&flag));
        self.slots.push(Slot { flag, waker, content: Content::Nothing });
        slot
    }

    /// Looks at everything that has news, whoever it belongs to. Twice: what is answered while others are looked at may
    /// carry the return of one of them, and was told of before that one was answered.
    fn look_at_woken(&mut self, woken: &Woken) {
        for _ in 0..2 {
            let slots = std::mem::take(&mut *woken.lock());
            slots.into_iter().for_each(|slot| self.look_at(slot));
        }
    }

    fn look_at(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        let Content::Sending(sending) = &mut slot.content else { return };
        let Poll::Ready(answer) = sending.as_mut().poll(&mut Context::from_waker(&slot.waker))
        else {
            return;
        };
        self.retired |= answer.is_err();
        slot.content = Content::Answered(answer.map(|confirmation| match confirmation {
            Confirmation::Ack(returned) => {
                self.returns.extend(returned);
                true
            }
            Confirmation::Nack(returned) => {
                self.returns.extend(returned);
                false
            }
            Confirmation::NotRequested => false,
        }));
        slot.flag.owner.wake();
        self.unanswered -= 1;
        if self.unanswered == 0 && !self.returns.is_empty() {
            self.slots.iter().for_each(|slot| slot.flag.owner.wake());
        }
    }

    /// What came of the message in `index`, once nothing can change it any more.
    fn take(
        &mut self,
        index: usize,
        is_mine: impl Fn(&BasicReturnMessage) -> bool,
    ) -> Option<lapin::Result<Answer>> {
        let is_known = self.returns.is_empty() || self.unanswered == 0;
        if !is_known || !matches!(self.slots[index].content, Content::Answered(_)) {
            return None;
        }
        let content = std::mem::replace(&mut self.slots[index].content, Content::Nothing);
        let Content::Answered(answer) = content else { return None };
        let returned = self.returns.iter().find(|returned| is_mine(returned));
        let returned = returned.map(|it| format!("{} {}", it.reply_code, it.reply_text));
        self.free.push(index);
        if self.free.len() == self.slots.len() {
            self.returns.clear();
        }
        Some(answer.map(|is_stored| match (returned, is_stored) {
            (Some(said), _) => Answer::Returned(said),
            (None, true) => Answer::Stored,
            (None, false) => Answer::NotStored,
        }))
    }
}

/// What the server says of a message.
pub(super) enum Answer {
    Stored,
    /// No queue took it; with the server's words.
    Returned(String),
    NotStored,
}

/// A message that was begun. Left before its answer, it takes its channel out of use.
pub(super) struct InFlight {
    outlet: Arc<Outlet>,
    slot: usize,
    is_answered: bool,
}

impl InFlight {
    /// Waits for the answer; `is_mine` recognises the message among those that were returned.
    pub(super) async fn answer(
        mut self,
        is_mine: impl Fn(&BasicReturnMessage) -> bool,
    ) -> lapin::Result<Answer> {
        let answer = poll_fn(|context| {
            let mut state = self.outlet.state();
            state.slots[self.slot].flag.owner.register(context.waker());
            state.look_at_woken(&self.outlet.woken);
            if let Some(answer) = state.take(self.slot, &is_mine) {
                return Poll::Ready(answer);
            }
            if !state.returns.is_empty() {
                // What comes in between is looked at once more.
                self.outlet.woken.last.register(context.waker());
                state.look_at_woken(&self.outlet.woken);
            }
            state.take(self.slot, &is_mine).map_or(Poll::Pending, Poll::Ready)
        })
        .await;
        self.is_answered = true;
        if matches!(answer, Ok(Answer::NotStored)) {
            self.outlet.note_refusal();
        }
        answer
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if !self.is_answered {
            self.outlet.state().retired = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use lapin::ErrorKind;

    use super::*;

    #[test]
    fn whoever_comes_after_what_closed_a_channel_is_not_put_on_it() {
        let (mut state, woken) = (State::default(), Arc::<Woken>::default());
        let sends = |answer: lapin::Result<Confirmation>| {
            move || -> Sending { Box::pin(std::future::ready(answer)) }
        };
        let first = state.begin(1, &woken, sends(Ok(Confirmation::Ack(None)))).expect("room");
        assert!(matches!(state.take(first, |_| false), Some(Ok(Answer::Stored))));
        let cause = state.begin(1, &woken, sends(Err(ErrorKind::ChannelsLimitReached.into())));
        assert!(matches!(state.take(cause.expect("room"), |_| false), Some(Err(_))));
        // There is room, and the channel may not be known to be closed yet.
        let neighbour = state.begin(1, &woken, sends(Ok(Confirmation::Ack(None))));
        assert_eq!(neighbour, None);
    }
}
