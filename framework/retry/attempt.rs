//! The count of executions of one message.

use std::fmt;
use std::num::NonZeroU32;

/// The how-many-eth execution of a message by a handler, from 1.
///
/// Counting saturates: a hostile header can make the count large, never make it wrap to a fresh start.
///
/// ```
/// use redeliver::retry::Attempt;
///
/// assert_eq!(Attempt::FIRST.get(), 1);
/// assert_eq!(Attempt::FIRST.next().to_string(), "2");
/// assert_eq!(Attempt::new(0), None);
/// assert_eq!(Attempt::new(u32::MAX).map(Attempt::next), Attempt::new(u32::MAX));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Attempt(NonZeroU32);

impl Attempt {
    /// The first execution.
    ///
    /// ```
    /// use redeliver::retry::Attempt;
    ///
    /// assert_eq!(Attempt::new(1), Some(Attempt::FIRST));
    /// let is_retry = |attempt: Attempt| attempt > Attempt::FIRST;
    /// assert!(!is_retry(Attempt::FIRST) && is_retry(Attempt::FIRST.next()));
    /// ```
    pub const FIRST: Attempt = Attempt(NonZeroU32::MIN);

    /// The attempt of this number; `None` for 0, as there is no execution before the first.
    ///
    /// ```
    /// use redeliver::retry::Attempt;
    ///
    /// let read = |header: &str| header.parse().ok().and_then(Attempt::new);
    /// assert_eq!(read("3").map(Attempt::get), Some(3));
    /// assert_eq!((read("0"), read("-1")), (None, None));
    /// ```
    pub const fn new(number: u32) -> Option<Attempt> {
        match NonZeroU32::new(number) {
            Some(number) => Some(Attempt(number)),
            None => None,
        }
    }

    /// The attempt after this one.
    ///
    /// ```
    /// use redeliver::retry::Attempt;
    ///
    /// assert_eq!(Attempt::FIRST.next().get(), 2);
    /// let last = Attempt::new(u32::MAX).expect("it is not zero");
    /// assert_eq!(last.next(), last, "and never the first again");
    /// ```
    #[must_use]
    pub const fn next(self) -> Attempt {
        Attempt(self.0.saturating_add(1))
    }

    /// The number, at least 1.
    ///
    /// ```
    /// use redeliver::retry::{Attempt, Policy};
    ///
    /// let (attempt, policy) = (Attempt::FIRST.next(), Policy::default());
    /// let left = policy.attempts_max.get() - attempt.get();
    /// assert_eq!(left, 6, "of eight");
    /// ```
    pub const fn get(self) -> u32 {
        self.0.get()
    }
}

impl From<NonZeroU32> for Attempt {
    fn from(number: NonZeroU32) -> Attempt {
        Attempt(number)
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}
