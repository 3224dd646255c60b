//! Our own headers: their names, how they are read, how they are written.
//!
//! Everything read here is hostile input: it is parsed strictly, clamped or ignored, and counted;
//! it never stops a message. Nothing here decides anything.
//!
//! What a dead letter says, for a program that reads the queue without this library:
//!
//! ```
//! use redeliver::{Delivery, Failure, Handled, wire};
//! # use redeliver::{Message, Service, config::Config, testing::TestService};
//!
//! let refuse = |_: Delivery<u32>| async { Handled::Err(Failure::reject("sold out").class("stock")) };
//! # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
//! # let mut test = TestService::start(Service::builder(config).subscribe("orders", refuse))?;
//! # test.publish("orders", Message::json(&7)?.id("order-7"));
//! let letter = test.dead_letters("orders").remove(0);
//! let header = |name: &str| letter.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
//! assert_eq!((header(wire::ID), header(wire::ATTEMPT)), (Some("order-7"), Some("1")));
//! assert_eq!((header(wire::REASON), header(wire::ERROR_CLASS)), (Some("rejected"), Some("stock")));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::envelope::{Envelope, HeaderValue};

/// What every header of ours begins with.
///
/// ```
/// assert_eq!(redeliver::wire::PREFIX, "redeliver-");
/// ```
pub const PREFIX: &str = "redeliver-";
/// What headers begin with that keep a property which a copy must not carry as it was.
///
/// ```
/// assert_eq!(redeliver::wire::ORIGINAL_PREFIX, "redeliver-original-");
/// ```
pub const ORIGINAL_PREFIX: &str = "redeliver-original-";

/// The message's id.
///
/// ```
/// assert_eq!(redeliver::wire::ID, "redeliver-id");
/// ```
pub const ID: &str = "redeliver-id";
/// Attempts already used.
///
/// ```
/// assert_eq!(redeliver::wire::ATTEMPT, "redeliver-attempt");
/// ```
pub const ATTEMPT: &str = "redeliver-attempt";
/// The last delay in milliseconds.
///
/// ```
/// assert_eq!(redeliver::wire::DELAY, "redeliver-delay");
/// ```
pub const DELAY: &str = "redeliver-delay";
/// When the wait ends.
///
/// ```
/// assert_eq!(redeliver::wire::DUE, "redeliver-due");
/// ```
pub const DUE: &str = "redeliver-due";
/// How often it came back from being handled alone, whatever the cause.
///
/// ```
/// assert_eq!(redeliver::wire::ALONE, "redeliver-alone");
/// ```
pub const ALONE: &str = "redeliver-alone";
/// How many milliseconds of its wait are left after the hop it is in: a wait longer than the
/// longest at the broker takes several.
///
/// ```
/// assert_eq!(redeliver::wire::REST, "redeliver-rest");
/// ```
pub const REST: &str = "redeliver-rest";
/// When it was first delivered.
///
/// ```
/// assert_eq!(redeliver::wire::FIRST_SEEN, "redeliver-first-seen");
/// ```
pub const FIRST_SEEN: &str = "redeliver-first-seen";
/// When it expires.
///
/// ```
/// assert_eq!(redeliver::wire::EXPIRES, "redeliver-expires");
/// ```
pub const EXPIRES: &str = "redeliver-expires";
/// Where it came from.
///
/// ```
/// assert_eq!(redeliver::wire::ORIGIN, "redeliver-origin");
/// ```
pub const ORIGIN: &str = "redeliver-origin";
/// Who gave it up.
///
/// ```
/// assert_eq!(redeliver::wire::CONSUMER, "redeliver-consumer");
/// ```
pub const CONSUMER: &str = "redeliver-consumer";
/// Why it is a dead letter.
///
/// ```
/// assert_eq!(redeliver::wire::REASON, "redeliver-reason");
/// ```
pub const REASON: &str = "redeliver-reason";
/// The last error.
///
/// ```
/// assert_eq!(redeliver::wire::ERROR, "redeliver-error");
/// ```
pub const ERROR: &str = "redeliver-error";
/// The last error's class.
///
/// ```
/// assert_eq!(redeliver::wire::ERROR_CLASS, "redeliver-error-class");
/// ```
pub const ERROR_CLASS: &str = "redeliver-error-class";
/// How many handlers sent it on.
///
/// ```
/// assert_eq!(redeliver::wire::HOPS, "redeliver-hops");
/// ```
pub const HOPS: &str = "redeliver-hops";
/// How often it was redriven.
///
/// ```
/// assert_eq!(redeliver::wire::GENERATION, "redeliver-generation");
/// ```
pub const GENERATION: &str = "redeliver-generation";
/// It was redriven by force: an id that is done is handled again.
///
/// ```
/// assert_eq!(redeliver::wire::FORCED, "redeliver-forced");
/// ```
pub const FORCED: &str = "redeliver-forced";
/// The id of the message that caused this one.
///
/// ```
/// assert_eq!(redeliver::wire::CAUSATION, "redeliver-causation");
/// ```
pub const CAUSATION: &str = "redeliver-causation";
/// When it became a dead letter.
///
/// ```
/// assert_eq!(redeliver::wire::DEAD_AT, "redeliver-dead-at");
/// ```
pub const DEAD_AT: &str = "redeliver-dead-at";

/// The longest id that is taken, in bytes; a longer one counts as none.
///
/// ```
/// assert_eq!(redeliver::wire::ID_LENGTH_MAX, 255);
/// ```
pub const ID_LENGTH_MAX: usize = 255;
/// The longest error text that is written, in bytes.
///
/// ```
/// assert_eq!(redeliver::wire::ERROR_LENGTH_MAX, 1024);
/// ```
pub const ERROR_LENGTH_MAX: usize = 1024;
/// The longest origin or consumer that is read or written, in bytes.
///
/// ```
/// assert_eq!(redeliver::wire::TEXT_LENGTH_MAX, 512);
/// ```
pub const TEXT_LENGTH_MAX: usize = 512;
/// The longest wait that is written or read: a century, as in the configuration, so that adding one to a point in
/// time never overflows.
///
/// ```
/// assert_eq!(redeliver::wire::WAIT_MAX.as_secs(), 36_500 * 86_400);
/// ```
pub const WAIT_MAX: Duration = Duration::from_secs(36_500 * 86_400);

/// More hops than this are no count of ours: `hops_max` ends a message before.
pub(crate) const HOPS_POSSIBLE_MAX: u32 = 1_000_000;

/// Our own headers on their way out, in the order in which they were set.
///
/// ```
/// use redeliver::wire::{self, Stamps};
///
/// let stamps: Stamps = vec![(wire::ATTEMPT, "3".to_owned()), (wire::REASON, "exhausted".to_owned())];
/// assert!(stamps.iter().all(|(name, _)| name.starts_with(wire::PREFIX)));
/// ```
pub type Stamps = Vec<(&'static str, String)>;

/// What a message carries of ours when it arrives.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Carried {
    /// Attempts already used; 0 for a message that nobody has handled.
    pub(crate) attempts: u32,
    /// How often it was redriven.
    pub(crate) generation: u32,
    /// It was redriven by force.
    pub(crate) is_forced: bool,
    /// How many handlers sent it on.
    pub(crate) hops: u32,
    /// The last delay.
    pub(crate) delay: Option<Duration>,
    /// When its last wait was to end.
    pub(crate) due: Option<SystemTime>,
    /// How much of its wait is left.
    pub(crate) rest: Option<Duration>,
    /// How often it came back from being handled alone.
    pub(crate) alone: u32,
    /// When it was first delivered.
    pub(crate) first_seen: Option<SystemTime>,
    /// When it expires.
    pub(crate) expires: Option<SystemTime>,
    /// The id it was given when it was first copied.
    pub(crate) id: Option<Box<str>>,
    /// Where it came from at first.
    pub(crate) origin: Option<Box<str>>,
    /// How many of our headers were malformed and ignored or clamped.
    pub(crate) malformed: u32,
}

/// What a message that carries nothing carries.
pub(crate) static NOTHING: Carried = Carried {
    attempts: 0,
    generation: 0,
    is_forced: false,
    hops: 0,
    delay: None,
    due: None,
    rest: None,
    alone: 0,
    first_seen: None,
    expires: None,
    id: None,
    origin: None,
    malformed: 0,
};

/// [`Carried`], shared between a message and its delivery, and nothing at all for the many messages
/// that carry nothing: it travels with every message through every queue of the process, and its
/// 170 bytes would be most of what is moved.
#[derive(Clone, Default)]
pub(crate) struct Luggage(Option<Arc<Carried>>);

impl Luggage {
    /// What a message has that carries nothing.
    pub(crate) const EMPTY: Self = Self(None);

    /// Reads what `envelope` carries of ours.
    pub(crate) fn read(envelope: &dyn Envelope) -> Self {
        Self(Carried::read_some(envelope).filter(|carried| *carried != NOTHING).map(Arc::new))
    }

    /// Whether there is nothing in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_none()
    }
}

impl Deref for Luggage {
    type Target = Carried;

    fn deref(&self) -> &Carried {
        self.0.as_deref().unwrap_or(&NOTHING)
    }
}

impl DerefMut for Luggage {
    fn deref_mut(&mut self) -> &mut Carried {
        Arc::make_mut(self.0.get_or_insert_default())
    }
}

impl Carried {
    /// Reads what `envelope` carries of ours.
    pub(crate) fn read(envelope: &dyn Envelope) -> Self {
        Self::read_some(envelope).unwrap_or_default()
    }

    /// The same, and nothing where it has no header of ours: most messages have none, and pay for none.
    fn read_some(envelope: &dyn Envelope) -> Option<Self> {
        let mut carried: Option<Self> = None;
        if envelope.may_be_stamped() {
            envelope.visit_headers(&mut |name, value| {
                if name.starts_with(PREFIX) {
                    carried.get_or_insert_default().take(name, value);
                }
            });
        }
        carried.map(Self::without_contradictions)
    }

    /// Whether it is a copy of ours: each has where it came from at first, or was redriven.
    pub(crate) fn is_of_a_copy(&self) -> bool {
        self.origin.is_some() || self.generation > 0
    }

    /// Copies of ours never have the rest of a wait without the end of that wait, and the time of the first delivery:
    /// whoever wrote it without is a stranger, and could send the message through the waits for a century.
    fn without_contradictions(mut self) -> Self {
        if self.rest.is_some() && (self.due.is_none() || self.first_seen.is_none()) {
            self.rest = None;
            self.malformed += 1;
        }
        self
    }

    fn take(&mut self, name: &str, value: HeaderValue<'_>) {
        match name {
            ATTEMPT => self.attempts = self.clamped(value),
            GENERATION => self.generation = self.count(value),
            FORCED => self.is_forced = self.count(value) > 0,
            HOPS => self.hops = self.hops(value),
            DELAY => self.delay = self.milliseconds(value),
            DUE => self.due = self.instant(value),
            ALONE => self.alone = self.count(value),
            REST => self.rest = self.milliseconds(value),
            FIRST_SEEN => self.first_seen = self.instant(value),
            EXPIRES => self.expires = self.instant(value),
            ID => self.id = self.text(value, ID_LENGTH_MAX),
            ORIGIN => self.origin = self.text(value, TEXT_LENGTH_MAX),
            _ => {}
        }
    }

    /// A count, or 0 for what is none.
    fn count(&mut self, value: HeaderValue<'_>) -> u32 {
        let count = number(value).and_then(|number| u32::try_from(number).ok());
        self.malformed += u32::from(count.is_none());
        count.unwrap_or(0)
    }

    /// How often it was sent on, unless nobody could have sent it on so often: that is no reason to give it up.
    fn hops(&mut self, value: HeaderValue<'_>) -> u32 {
        let hops = self.count(value);
        let is_possible = hops <= HOPS_POSSIBLE_MAX;
        self.malformed += u32::from(!is_possible);
        if is_possible { hops } else { 0 }
    }

    /// A count, or the nearest one to a number that is too small or too large.
    fn clamped(&mut self, value: HeaderValue<'_>) -> u32 {
        match number(value) {
            Some(above) if above > u32::MAX.into() => {
                self.malformed += 1;
                u32::MAX
            }
            _ => self.count(value),
        }
    }

    fn milliseconds(&mut self, value: HeaderValue<'_>) -> Option<Duration> {
        let wait = number(value).and_then(|number| u64::try_from(number).ok());
        let wait = wait.map(Duration::from_millis).filter(|wait| *wait <= WAIT_MAX);
        self.malformed += u32::from(wait.is_none());
        wait
    }

    fn instant(&mut self, value: HeaderValue<'_>) -> Option<SystemTime> {
        let read = match value {
            HeaderValue::Text(text) if text.len() <= 40 => parse_time(text),
            _ => None,
        };
        self.malformed += u32::from(read.is_none());
        read
    }

    fn text(&mut self, value: HeaderValue<'_>, length_max: usize) -> Option<Box<str>> {
        match value {
            HeaderValue::Text(text) if !text.is_empty() && text.len() <= length_max => {
                Some(text.into())
            }
            _ => {
                self.malformed += 1;
                None
            }
        }
    }
}

/// Whole numbers may arrive as numbers or as text (Kafka knows only bytes).
fn number(value: HeaderValue<'_>) -> Option<i128> {
    match value {
        HeaderValue::Number(number) => Some(number.into()),
        HeaderValue::Text(text) if text.len() <= 24 => text.parse().ok(),
        _ => None,
    }
}

/// A wait in whole milliseconds; up, so that a message is late rather than early.
pub(crate) fn format_wait(wait: Duration) -> String {
    wait.min(WAIT_MAX).as_nanos().div_ceil(1_000_000).to_string()
}

/// RFC 3339 in UTC with milliseconds; for what is later than it can say, the end of the year 9999.
///
/// ```
/// use std::time::{Duration, SystemTime};
/// use redeliver::wire::{format_time, parse_time};
///
/// let due = SystemTime::UNIX_EPOCH + Duration::from_millis(1_500);
/// assert_eq!(format_time(due), "1970-01-01T00:00:01.500Z");
/// assert_eq!(parse_time(&format_time(due)), Some(due));
/// ```
pub fn format_time(time: SystemTime) -> String {
    let nearest = match time < SystemTime::UNIX_EPOCH {
        true => jiff::Timestamp::UNIX_EPOCH,
        // Not the beginning: what never expires would have expired long ago.
        false => jiff::Timestamp::MAX,
    };
    format!("{:.3}", jiff::Timestamp::try_from(time).unwrap_or(nearest))
}

/// Reads what [`format_time`] wrote.
///
/// ```
/// use std::time::{Duration, SystemTime};
/// use redeliver::wire::parse_time;
///
/// let due = SystemTime::UNIX_EPOCH + Duration::from_secs(60);
/// assert_eq!(parse_time("1970-01-01T00:01:00.000Z"), Some(due));
/// assert_eq!(parse_time("in a minute"), None);
/// ```
pub fn parse_time(text: &str) -> Option<SystemTime> {
    text.parse::<jiff::Timestamp>().ok().map(SystemTime::from)
}

/// Makes an error text fit for a header: one line, printable, at most [`ERROR_LENGTH_MAX`] bytes.
pub(crate) fn sanitise(text: &str) -> String {
    let mut clean = String::with_capacity(text.len().min(ERROR_LENGTH_MAX));
    for character in text.chars() {
        let character = if character.is_control() { ' ' } else { character };
        if clean.len() + character.len_utf8() > ERROR_LENGTH_MAX {
            break;
        }
        clean.push(character);
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    fn carried(headers: &[(&str, HeaderValue<'_>)]) -> Carried {
        let mut carried = Carried::default();
        for (name, value) in headers {
            carried.take(name, *value);
        }
        carried.without_contradictions()
    }

    #[test]
    fn a_time_too_late_to_be_written_is_as_late_as_can_be() {
        let late = SystemTime::UNIX_EPOCH + Duration::from_secs(1_780_000_000_000);
        let written = format_time(late);
        assert!(written.starts_with("9999-12-30T"), "{written}");
        let read = carried(&[(EXPIRES, HeaderValue::Text(&written))]);
        assert_eq!((read.expires, read.malformed), (parse_time(&written), 0));
        assert_eq!(parse_time(&written).map(format_time), Some(written));
    }

    const TIME: HeaderValue<'_> = HeaderValue::Text("2026-03-01T12:00:00.250Z");

    #[test]
    fn a_rest_without_the_wait_that_it_is_the_rest_of_is_ignored_and_counted() {
        let rest = (REST, HeaderValue::Number(4_294_967_295));
        for others in [&[][..], &[(DUE, TIME)], &[(FIRST_SEEN, TIME)]] {
            let carried = carried(&[&[rest], others].concat());
            assert_eq!((carried.rest, carried.malformed), (None, 1), "{others:?}");
        }
        let carried = carried(&[rest, (DUE, TIME), (FIRST_SEEN, TIME)]);
        assert_eq!(
            (carried.rest, carried.malformed),
            (Some(Duration::from_millis(4_294_967_295)), 0)
        );
    }

    #[test]
    fn hostile_counts_are_clamped_or_ignored_and_counted() {
        for (value, read) in [
            (HeaderValue::Number(-1), 0),
            (HeaderValue::Number(i64::MAX), u32::MAX),
            (HeaderValue::Text("10000000000000000000"), u32::MAX),
            (HeaderValue::Text("abc"), 0),
            (HeaderValue::Other("table"), 0),
            (HeaderValue::Bytes(&[0xff]), 0),
        ] {
            let carried = carried(&[(ATTEMPT, value)]);
            assert_eq!((carried.attempts, carried.malformed), (read, 1), "{value:?}");
        }
    }

    #[test]
    fn hops_that_nobody_can_have_made_are_ignored_and_counted() {
        for (hops, read, malformed) in [(7, 7, 0), (1_000_000, 1_000_000, 0), (4_294_967_295, 0, 1)]
        {
            let carried = carried(&[(HOPS, HeaderValue::Number(hops))]);
            assert_eq!((carried.hops, carried.malformed), (read, malformed));
        }
    }

    #[test]
    fn honest_headers_are_read() {
        let time = "2026-03-01T12:00:00.250Z";
        let carried = carried(&[
            (ATTEMPT, HeaderValue::Text("3")),
            (DELAY, HeaderValue::Number(1500)),
            (DUE, HeaderValue::Text(time)),
            (ID, HeaderValue::Text("a-1")),
        ]);
        assert_eq!(carried.attempts, 3);
        assert_eq!(carried.delay, Some(Duration::from_millis(1500)));
        assert_eq!(carried.due.map(format_time).as_deref(), Some(time));
        assert_eq!(carried.id.as_deref(), Some("a-1"));
        assert_eq!(carried.malformed, 0);
    }

    #[test]
    fn a_wait_that_is_written_is_read_and_none_is_longer_than_a_century() {
        let day = Duration::from_secs(86_400);
        for (wait, read) in [
            (Duration::ZERO, Duration::ZERO),
            (2 * day, 2 * day),
            (Duration::from_micros(1), Duration::from_millis(1)),
            (Duration::MAX, WAIT_MAX),
        ] {
            let text = format_wait(wait);
            for name in [REST, DELAY] {
                let value = HeaderValue::Text(&text);
                let carried = carried(&[(DUE, TIME), (FIRST_SEEN, TIME), (name, value)]);
                let found = if name == REST { carried.rest } else { carried.delay };
                assert_eq!((found, carried.malformed), (Some(read), 0), "{name}: {wait:?}");
            }
        }
        let longer = (WAIT_MAX.as_millis() + 1).to_string();
        let carried = carried(&[(REST, HeaderValue::Text(&longer))]);
        assert_eq!((carried.rest, carried.malformed), (None, 1));
    }

    #[test]
    fn an_id_of_a_megabyte_is_no_id() {
        let long = "x".repeat(1 << 20);
        let carried = carried(&[(ID, HeaderValue::Text(&long))]);
        assert_eq!((carried.id, carried.malformed), (None, 1));
    }

    #[test]
    fn error_texts_are_one_printable_line_of_bounded_length() {
        let text = sanitise(&format!("a\nb\0c{}", "é".repeat(2000)));
        assert!(text.starts_with("a b c") && text.len() <= ERROR_LENGTH_MAX);
    }
}
