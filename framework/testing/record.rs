//! What a test reads: what became of each message, as values and as lines of text.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::config::units::duration_text;
use crate::pipeline::{Epitaph, Event, Fault, Observer, Reason, Scope, Waiting, Work};

/// What became of one message at one moment.
///
/// Shown as a line: `order-7: attempt 1 retry after 200ms: not yet`.
///
/// ```
/// use redeliver::testing::{Fate, Record};
/// use redeliver::{Delivery, Failure, Handled};
///
/// async fn ship(order: Delivery<u32>) -> Handled {
///     if order.attempt() == 1 { Err(Failure::retry("not yet").class("stock")) } else { Ok(()) }
/// }
/// # use redeliver::{Message, Service, config::Config, testing::TestService};
/// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"\n[retry.standard]\njitter = \"none\"")?;
/// let mut test = TestService::start(Service::builder(config).subscribe("orders", ship))?;
/// test.publish("orders", Message::json(&7)?);
/// test.finish();
/// let records: Vec<Record> = test.records();
/// assert_eq!((records[1].attempt, &records[1].fate), (2, &Fate::Handled));
/// assert_eq!(records[1].at.as_millis(), 200, "counted from the start");
/// assert_eq!(records[0].to_string(), "orders-1: attempt 1 retry after 200ms: not yet");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Record {
    /// When, counted from the start of the test.
    pub at: Duration,
    /// The subscription.
    pub subscription: String,
    /// The message's id, if it has one.
    pub id: Option<String>,
    /// The attempt that was made; for a message that no handler saw this time, those before.
    pub attempt: u32,
    /// What became of it.
    pub fate: Fate,
}

/// What became of a message.
///
/// ```
/// use redeliver::testing::Fate;
/// use redeliver::{Delivery, Failure, Handled};
///
/// async fn ship(order: Delivery<u32>) -> Handled {
///     if order.attempt() == 1 { Err(Failure::retry("not yet").class("stock")) } else { Ok(()) }
/// }
/// # use redeliver::{Message, Service, config::Config, testing::TestService};
/// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
/// let mut test = TestService::start(Service::builder(config).subscribe("orders", ship))?;
/// test.publish("orders", Message::json(&7)?);
/// match &test.records()[0].fate {
///     Fate::Retried { error, class, .. } => assert_eq!((error.as_str(), class.as_deref()), ("not yet", Some("stock"))),
///     other => panic!("{other:?}"),
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fate {
    /// It was handled.
    Handled,
    /// It failed, and a rule said that this does not matter.
    Ignored {
        /// The error's text.
        error: String,
    },
    /// It failed, and is tried again.
    Retried {
        /// How long it waits.
        after: Duration,
        /// Where.
        at: WaitedAt,
        /// The error's text.
        error: String,
        /// The error's class.
        class: Option<String>,
    },
    /// It comes back without an attempt counted.
    Deferred {
        /// How long it waits.
        after: Duration,
        /// Where.
        at: WaitedAt,
    },
    /// Its handler's actor was gone before it answered: it starts again, no attempt is counted.
    Interrupted,
    /// It was the breaker's probe and failed: no attempt is counted.
    ProbeFailed {
        /// The error's text.
        error: String,
    },
    /// It failed while the breaker held messages back: no attempt is counted.
    Spared {
        /// The error's text.
        error: String,
    },
    /// It was done with before: handled, given up, or gone on in another copy.
    Duplicate,
    /// It had expired, and was dropped.
    Dropped,
    /// It is a dead letter.
    DeadLettered {
        /// Why.
        reason: Reason,
        /// The last error's text.
        error: String,
        /// The last error's class.
        class: Option<String>,
        /// Whether a handler saw it this time.
        attempted: bool,
    },
}

/// Where a message waits for its next attempt.
///
/// ```
/// use redeliver::testing::{Fate, WaitedAt};
/// use redeliver::{Delivery, Failure, Handled};
///
/// async fn ship(order: Delivery<u32>) -> Handled {
///     if order.attempt() == 1 { Err(Failure::retry("not yet").class("stock")) } else { Ok(()) }
/// }
/// # use redeliver::{Message, Service, config::Config, testing::TestService};
/// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"\n[retry.standard]\njitter = \"none\"\nin_process_max = \"100ms\"")?;
/// let mut test = TestService::start(Service::builder(config).subscribe("orders", ship))?;
/// test.publish("orders", Message::json(&7)?);
/// assert!(matches!(test.records()[0].fate, Fate::Retried { at: WaitedAt::Broker, .. }), "200 ms are too long to wait here");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitedAt {
    /// In the process.
    Process,
    /// At the broker.
    Broker,
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, attempt, fate, .. } = self;
        write!(f, "{}: ", id.as_deref().unwrap_or("(no id)"))?;
        match fate {
            Fate::Handled => write!(f, "attempt {attempt} handled"),
            Fate::Ignored { error } => write!(f, "attempt {attempt} ignored: {error}"),
            Fate::Retried { after, error, .. } if after.is_zero() => {
                write!(f, "attempt {attempt} retry at once: {error}")
            }
            Fate::Retried { after, error, .. } => {
                write!(f, "attempt {attempt} retry after {}: {error}", duration_text(*after))
            }
            Fate::Deferred { after, .. } => {
                write!(f, "attempt {attempt} deferred for {}", duration_text(*after))
            }
            Fate::Interrupted => write!(f, "attempt {attempt} interrupted"),
            Fate::ProbeFailed { error } => write!(f, "attempt {attempt} probe failed: {error}"),
            Fate::Spared { error } => write!(f, "attempt {attempt} spared: {error}"),
            Fate::Duplicate => f.write_str("duplicate"),
            Fate::Dropped => f.write_str("dropped: expired"),
            Fate::DeadLettered { reason, error, attempted: true, .. } => {
                write!(f, "attempt {attempt} dead-lettered: {}: {error}", reason.as_str())
            }
            Fate::DeadLettered { reason, error, .. } => {
                write!(f, "dead-lettered: {}: {error}", reason.as_str())
            }
        }
    }
}

impl Fate {
    fn of(event: Event<'_>) -> Self {
        let error = |fault: &Fault| fault.error.clone();
        match event {
            Event::Handled => Self::Handled,
            Event::Ignored(fault) => Self::Ignored { error: error(fault) },
            Event::Retries(waiting, fault) => Self::Retried {
                after: waiting.delay(),
                at: place(waiting),
                error: error(fault),
                class: fault.class.clone(),
            },
            Event::Defers(waiting) => Self::Deferred { after: waiting.delay(), at: place(waiting) },
            Event::Interrupted => Self::Interrupted,
            Event::ProbeFailed(fault) => Self::ProbeFailed { error: error(fault) },
            Event::Spared(fault) => Self::Spared { error: error(fault) },
            Event::Duplicate => Self::Duplicate,
            Event::Dropped => Self::Dropped,
            Event::Dead(Epitaph { reason, fault, attempted }) => Self::DeadLettered {
                reason: *reason,
                error: error(fault),
                class: fault.class.clone(),
                attempted: *attempted,
            },
        }
    }
}

fn place(waiting: Waiting) -> WaitedAt {
    match waiting {
        Waiting::Here(_) => WaitedAt::Process,
        Waiting::Broker(_) => WaitedAt::Broker,
    }
}

/// Writes down what it is told.
pub(super) struct Witness {
    start: Instant,
    records: Mutex<Vec<Record>>,
    /// Messages that blocking handlers have on their threads.
    away: AtomicUsize,
    /// Told when a message goes to a thread.
    pub(super) left: Notify,
    /// Told when something was written down.
    pub(super) wrote: Notify,
}

impl Witness {
    pub(super) fn new(start: Instant) -> Self {
        let (records, away) = (Mutex::default(), AtomicUsize::new(0));
        Self { start, records, away, left: Notify::new(), wrote: Notify::new() }
    }

    pub(super) fn records(&self) -> MutexGuard<'_, Vec<Record>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_somebody_away(&self) -> bool {
        self.away.load(Ordering::Acquire) > 0
    }
}

impl Observer for Witness {
    fn saw(&self, scope: &Scope, work: &Work, event: Event<'_>) {
        // Where an attempt was counted already, it is the one that was made.
        let made = match event {
            Event::Retries(..) | Event::Dead(_) | Event::Dropped => work.carried.attempts,
            Event::Handled
            | Event::Ignored(_)
            | Event::Defers(_)
            | Event::Interrupted
            | Event::ProbeFailed(_)
            | Event::Spared(_)
            | Event::Duplicate => work.attempt(scope.attempts_max()).get(),
        };
        self.records().push(Record {
            at: self.start.elapsed(),
            subscription: scope.name().to_owned(),
            id: work.id().map(str::to_owned),
            attempt: made,
            fate: Fate::of(event),
        });
        self.wrote.notify_one();
    }

    fn is_away(&self, away: bool) {
        if away {
            self.away.fetch_add(1, Ordering::AcqRel);
            self.left.notify_one();
        } else {
            self.away.fetch_sub(1, Ordering::AcqRel);
        }
    }
}
