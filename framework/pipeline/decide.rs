//! The one decision: what becomes of a message after an answer.
//!
//! Pure: the message's age and the chance are handed in.

use std::borrow::Cow;
use std::time::Duration;

use super::{Retries, Work, caught};
use crate::message::{Failure, Wish};
use crate::retry::Policy;

/// The class of a failure by panic.
pub(crate) const CLASS_PANIC: &str = "panic";
/// The class of a failure by timeout.
pub(crate) const CLASS_TIMEOUT: &str = "timeout";

/// What came of handing a message to its handler.
#[derive(Debug)]
pub(crate) enum Answer {
    /// It worked.
    Handled,
    /// The handler said so.
    Failed(Failure),
    /// The handler panicked, with this message.
    Panicked(String),
    /// The handler took longer than this and was aborted.
    TimedOut(Duration),
    /// Its actor was gone before it answered: nobody knows.
    Interrupted,
    /// No handler saw it.
    Refused(Box<Epitaph>),
    /// It waits for something of ours: a claim or a lock that another has, or one that was lost. Nobody failed.
    Later(Duration, Cow<'static, str>),
    /// What would guard it failed, of this message alone: it was not handed out.
    Unguarded(String),
}

/// What the framework does with a message.
///
/// What only failures need is in boxes: verdicts travel with every message.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Verdict {
    /// It was handled.
    Ack,
    /// It was done with before: handled, given up, or gone on in another copy.
    Duplicate,
    /// Its copy is with the broker, and its lane was lost before it could be acknowledged.
    Carried,
    /// A rule says that this failure does not matter: acknowledged and counted.
    Ignore(Box<Fault>),
    /// Another attempt after a wait; this one counts.
    Retry(Waiting, Box<Fault>),
    /// Back after a wait; nothing counts.
    Defer(Waiting),
    /// To the dead letters.
    Dead(Box<Epitaph>),
    /// The store of its guards does not answer: held, nothing counts.
    StoreDown(String),
    /// Nobody knows whether it was handled: once more at once, nothing counts.
    Again,
}

/// Where and how long a message waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waiting {
    /// In this process.
    Here(Duration),
    /// At the broker: in the wait of exactly this length, or, where it is longer than the longest,
    /// in several hops.
    Broker(Duration),
}

impl Verdict {
    /// What went wrong, if anything did.
    pub(crate) fn fault(&self) -> Option<&Fault> {
        match self {
            Self::Retry(_, fault) | Self::Ignore(fault) => Some(fault),
            Self::Dead(epitaph) => Some(&epitaph.fault),
            Self::Ack
            | Self::Duplicate
            | Self::Carried
            | Self::Defer(_)
            | Self::StoreDown(_)
            | Self::Again => None,
        }
    }

    /// Its text.
    pub(crate) fn error(&self) -> Option<&str> {
        self.fault().map(|fault| fault.error.as_str())
    }

    /// The handler failed in a way that may pass.
    pub(crate) fn is_failure(&self) -> bool {
        match self {
            Self::Retry(..) => true,
            Self::Dead(epitaph) => {
                let is_spent = matches!(epitaph.reason, Reason::Exhausted | Reason::Expired);
                epitaph.attempted && is_spent
            }
            Self::Ack
            | Self::Duplicate
            | Self::Carried
            | Self::Ignore(_)
            | Self::Defer(_)
            | Self::StoreDown(_)
            | Self::Again => false,
        }
    }

    /// Whether it costs an attempt that it need not cost when everything fails. Not so what is too
    /// old: what costs no attempt has to end at that.
    pub(crate) fn may_be_spared(&self) -> bool {
        match self {
            Self::Retry(..) => true,
            Self::Dead(epitaph) => epitaph.reason == Reason::Exhausted,
            Self::Ack
            | Self::Duplicate
            | Self::Carried
            | Self::Ignore(_)
            | Self::Defer(_)
            | Self::StoreDown(_)
            | Self::Again => false,
        }
    }

    /// Whether the handler panicked, so that its actor's state may be broken.
    pub(crate) fn is_panic(&self) -> bool {
        self.fault().is_some_and(|fault| fault.class.as_deref() == Some(CLASS_PANIC))
    }
}

impl Waiting {
    pub(crate) fn delay(self) -> Duration {
        match self {
            Self::Here(delay) | Self::Broker(delay) => delay,
        }
    }
}

/// What went wrong, for headers, logs and metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) error: String,
    pub(crate) class: Option<String>,
}

/// Why a message is a dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Epitaph {
    pub(crate) reason: Reason,
    pub(crate) fault: Fault,
    /// Whether the handler ran for it, so that the attempt counts.
    pub(crate) attempted: bool,
}

impl Epitaph {
    /// For a message that no handler saw this time.
    pub(crate) fn new(reason: Reason, error: String) -> Self {
        Self { reason, fault: Fault { error, class: None }, attempted: false }
    }
}

/// The reasons for dead letters, as they stand in the `redeliver-reason` header.
///
/// ```
/// use redeliver::Reason;
///
/// assert_eq!(Reason::parse("exhausted"), Some(Reason::Exhausted));
/// assert_eq!(Reason::TooLarge.as_str(), "too-large");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Reason {
    /// Its attempts or its time are used up.
    Exhausted,
    /// The handler or a rule rejected it.
    Rejected,
    /// Its payload could not be decoded.
    Undecodable,
    /// It was too old.
    Expired,
    /// Its id was used before with another payload.
    Mismatch,
    /// It ended the process that handled it, alone.
    Poison,
    /// Its payload is larger than `body_max`.
    TooLarge,
    /// It has no id where one is needed.
    NoId,
    /// No handler is for its type.
    UnknownType,
    /// Too many handlers sent it on.
    Loop,
}

impl Reason {
    /// Every reason there is.
    ///
    /// ```
    /// use redeliver::Reason;
    ///
    /// // A row for each in a table of dead letters, those that did not occur included.
    /// let rows: Vec<_> = Reason::ALL.iter().map(|reason| format!("{}: 0", reason.as_str())).collect();
    /// assert_eq!(rows[0], "exhausted: 0");
    /// assert!(rows.contains(&"poison: 0".to_owned()));
    /// ```
    pub const ALL: [Self; 10] = [
        Self::Exhausted,
        Self::Rejected,
        Self::Undecodable,
        Self::Expired,
        Self::Mismatch,
        Self::Poison,
        Self::TooLarge,
        Self::NoId,
        Self::UnknownType,
        Self::Loop,
    ];

    /// As it stands in headers, metrics and filters.
    ///
    /// ```
    /// use redeliver::Reason;
    ///
    /// assert_eq!(Reason::UnknownType.as_str(), "unknown-type");
    /// let is_header_safe = |text: &str| text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
    /// assert!(Reason::ALL.iter().all(|reason| is_header_safe(reason.as_str())));
    /// ```
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Exhausted => "exhausted",
            Self::Rejected => "rejected",
            Self::Undecodable => "undecodable",
            Self::Expired => "expired",
            Self::Mismatch => "mismatch",
            Self::Poison => "poison",
            Self::TooLarge => "too-large",
            Self::NoId => "no-id",
            Self::UnknownType => "unknown-type",
            Self::Loop => "loop",
        }
    }

    /// Reads what [`as_str`](Self::as_str) wrote.
    ///
    /// ```
    /// use redeliver::Reason;
    ///
    /// assert_eq!(Reason::parse("no-id"), Some(Reason::NoId));
    /// assert_eq!(Reason::parse("No-Id"), None, "as it is written, or not at all");
    /// ```
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == text)
    }
}

/// Decides what becomes of a message that was not simply handled.
pub(crate) fn decide(
    answer: Answer,
    work: &Work,
    kind: Option<&str>,
    retries: &Retries,
    age: Duration,
    chance: &mut dyn FnMut() -> f64,
) -> Verdict {
    let (wish, fault) = match answer {
        Answer::Handled => return Verdict::Ack,
        Answer::Interrupted => return Verdict::Again,
        Answer::Refused(epitaph) => return Verdict::Dead(epitaph),
        // Past the rules: they are about what handlers answer, and would settle what none has seen.
        Answer::Later(delay, why) => return later(delay, &why, kind, retries, age),
        Answer::Unguarded(error) => {
            let (policy, fault) = (retries.policy_for(kind), Fault { error, class: None });
            return again(Wish::Retry, fault, work, policy, retries, age, chance);
        }
        Answer::Panicked(message) => {
            (Wish::Retry, Fault::of_class(format!("panicked: {message}"), CLASS_PANIC))
        }
        Answer::TimedOut(limit) => {
            (Wish::Retry, Fault::of_class(format!("took longer than {limit:?}"), CLASS_TIMEOUT))
        }
        Answer::Failed(failure) => {
            let (wish, class) = (failure.wish(), failure.class_name().map(str::to_owned));
            // The error is the user's: neither its text nor its drop may end the actor.
            let text = caught(|| failure.text());
            let error = text.unwrap_or_else(|panic| format!("its text panicked: {panic}"));
            let _ = caught(|| drop(failure));
            (wish, Fault { error, class })
        }
    };
    match retries.rule_for(fault.class.as_deref(), kind) {
        Rule::Ignore => Verdict::Ignore(Box::new(fault)),
        Rule::Reject => dead(Reason::Rejected, fault),
        Rule::Retry(policy) => again(wish, fault, work, policy, retries, age, chance),
    }
}

/// What the rules of a retry policy say about a failure.
pub(crate) enum Rule<'a> {
    /// Acknowledge and count.
    Ignore,
    /// Dead-letter now.
    Reject,
    /// Retry by this policy.
    Retry(&'a Policy),
}

/// Back after a wait of ours, which ends at the message's age and never takes it out of its order.
fn later(
    delay: Duration,
    why: &str,
    kind: Option<&str>,
    retries: &Retries,
    age: Duration,
) -> Verdict {
    let policy = retries.policy_for(kind);
    match age >= policy.age_max {
        true => {
            let error = too_old(policy, why);
            Verdict::Dead(Box::new(Epitaph::new(Reason::Expired, error)))
        }
        false => Verdict::Defer(retries.wait_in_order(delay, policy)),
    }
}

fn too_old(policy: &Policy, why: &str) -> String {
    format!("older than age_max ({:?}): {why}", policy.age_max)
}

fn again(
    wish: Wish,
    fault: Fault,
    work: &Work,
    policy: &Policy,
    retries: &Retries,
    age: Duration,
    chance: &mut dyn FnMut() -> f64,
) -> Verdict {
    let asked = match wish {
        Wish::Reject => return dead(Reason::Rejected, fault),
        Wish::Retry => None,
        Wish::RetryAfter(delay) | Wish::Defer(delay) => Some(delay),
    };
    let carried = &work.carried;
    let attempt = work.attempt(policy.attempts_max.get());
    let counted = !matches!(wish, Wish::Defer(_));
    if counted && attempt.get() >= policy.attempts_max.get() {
        return dead(Reason::Exhausted, fault);
    }
    if age >= policy.age_max {
        let error = too_old(policy, &fault.error);
        return dead(Reason::Expired, Fault { error, class: fault.class });
    }
    let waiting = match asked {
        Some(delay) => retries.wait_at_least(delay, policy),
        None => {
            let delay = policy.delay_before(attempt.next(), carried.delay, chance());
            retries.wait_for(delay, policy, chance)
        }
    };
    if retries.forbids(waiting) {
        let error = format!("its wait would be longer than order_wait_max: {}", fault.error);
        return dead(Reason::Exhausted, Fault { error, class: fault.class });
    }
    match counted {
        true => Verdict::Retry(waiting, Box::new(fault)),
        false => Verdict::Defer(waiting),
    }
}

fn dead(reason: Reason, fault: Fault) -> Verdict {
    Verdict::Dead(Box::new(Epitaph { reason, fault, attempted: true }))
}

impl Fault {
    fn of_class(error: String, class: &'static str) -> Self {
        Self { error, class: Some(class.to_owned()) }
    }
}

#[cfg(test)]
mod tests;
