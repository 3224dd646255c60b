//! A record as librdkafka holds it, answered without copying.
//!
//! Owns how Kafka's records read as messages; `reader` owns the batches that they lie in. One record that is held keeps
//! its batch.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use rdkafka::message::{BorrowedMessage, Header, Headers, Message};

use super::outbox::Outbox;
use super::reader::Batch;
use crate::envelope::{Envelope, Envelopes, HeaderValue};
use crate::wire::ID_LENGTH_MAX;

/// The header that holds the content type.
pub(super) const CONTENT_TYPE: &str = "content-type";
/// The header that holds the type.
pub(super) const TYPE: &str = "type";

/// One record of a batch.
pub(super) struct KafkaEnvelope {
    batch: Arc<Batch>,
    index: usize,
    /// How many processes died while they had it.
    crashes: u32,
    /// It was delivered to this process before.
    again: bool,
    has_headers: bool,
    /// What is written when it is settled, where that is one transaction.
    pub(super) outbox: Option<Arc<Outbox>>,
    /// Its place in the log, once somebody has asked for it.
    position: OnceLock<Box<str>>,
}

/// Records that were handed out together, in one allocation: one for each would be 150 instructions more.
pub(super) struct Page(pub(super) Vec<KafkaEnvelope>);

impl Envelopes for Page {
    #[inline]
    fn at(&self, place: usize) -> &dyn Envelope {
        &self.0[place]
    }
}

impl KafkaEnvelope {
    pub(super) fn new(
        batch: Arc<Batch>,
        index: usize,
        (crashes, again): (u32, bool),
        outbox: Option<Arc<Outbox>>,
    ) -> Self {
        let has_headers = batch.has_headers(index);
        Self { batch, index, crashes, again, has_headers, outbox, position: OnceLock::new() }
    }

    pub(super) fn record(&self) -> &BorrowedMessage<'_> {
        self.batch.record(self.index)
    }

    /// When its producer or the broker wrote it, in milliseconds.
    pub(super) fn millis(&self) -> Option<i64> {
        self.batch.millis(self.index)
    }

    pub(super) fn offset(&self) -> i64 {
        self.batch.offset(self.index)
    }

    fn text(&self, name: &str) -> Option<&str> {
        match self.header(name)? {
            HeaderValue::Text(text) => Some(text),
            _ => None,
        }
    }
}

/// A record's headers, `None` for each whose name is no UTF-8: nobody could ask for it, and the client panics over it.
pub(super) fn headers<'a>(
    record: &'a BorrowedMessage<'_>,
) -> impl Iterator<Item = Option<Header<'a, &'a [u8]>>> {
    let headers = record.headers();
    (0..headers.map_or(0, Headers::count)).map(move |index| {
        // Nothing is changed in there that a panic could leave half done.
        catch_unwind(AssertUnwindSafe(|| headers?.try_get(index))).ok().flatten()
    })
}

/// What a header holds. One without a value is an empty text.
pub(super) fn value(bytes: Option<&[u8]>) -> HeaderValue<'_> {
    let bytes = bytes.unwrap_or_default();
    std::str::from_utf8(bytes).map_or(HeaderValue::Bytes(bytes), HeaderValue::Text)
}

impl Envelope for KafkaEnvelope {
    fn body(&self) -> &[u8] {
        self.record().payload().unwrap_or_default()
    }

    fn is_tombstone(&self) -> bool {
        self.record().payload().is_none()
    }

    fn header(&self, name: &str) -> Option<HeaderValue<'_>> {
        if !self.has_headers {
            return None;
        }
        let mut headers = headers(self.record()).flatten();
        headers.find(|header| header.key == name).map(|header| value(header.value))
    }

    fn visit_headers(&self, visit: &mut dyn FnMut(&str, HeaderValue<'_>)) {
        if !self.has_headers {
            return;
        }
        for header in headers(self.record()).flatten() {
            visit(header.key, value(header.value));
        }
    }

    fn has_headers(&self) -> bool {
        self.has_headers
    }

    /// Its place in the log. A copy carries the id that its original had, and that comes first.
    fn id(&self) -> Option<&str> {
        Some(self.position.get_or_init(|| {
            let origin = self.origin();
            // The end tells more than the beginning, where a topic's name is as long as it may be.
            let end = origin.get(origin.len().saturating_sub(ID_LENGTH_MAX)..);
            end.unwrap_or(&origin).into()
        }))
    }

    fn content_type(&self) -> Option<&str> {
        self.text(CONTENT_TYPE)
    }

    fn kind(&self) -> Option<&str> {
        self.text(TYPE)
    }

    fn key(&self) -> Option<&[u8]> {
        self.record().key()
    }

    fn published_at(&self) -> Option<SystemTime> {
        let millis = u64::try_from(self.millis()?).ok()?;
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(millis))
    }

    /// Not said of what has an outbox: an earlier delivery that still runs would fill its own, and not this one's.
    fn is_redelivered(&self) -> bool {
        self.outbox.is_none() && (self.again || self.crashes > 0)
    }

    fn returns(&self) -> u32 {
        self.crashes
    }

    fn origin(&self) -> String {
        let record = self.record();
        format!("{}/{}/{}", record.topic(), record.partition(), record.offset())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
