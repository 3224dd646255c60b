//! What a broker delivered, as the broker holds it.
//!
//! Owns the view of a raw message that everything above an adapter works with. Copies nothing and
//! interprets nothing: headers and payload stay the broker's bytes until somebody asks.

use std::any::Any;
use std::time::{Duration, SystemTime};

/// A message as the broker holds it: bytes stay bytes until somebody asks.
pub trait Envelope: Send + Sync + 'static {
    /// The payload.
    fn body(&self) -> &[u8];

    /// The record has no value at all (Kafka's tombstone), which is not an empty value.
    fn is_tombstone(&self) -> bool {
        false
    }

    /// The value of a header; the first of several of that name.
    fn header(&self, name: &str) -> Option<HeaderValue<'_>>;

    /// Calls `visit` with every header.
    fn visit_headers(&self, visit: &mut dyn FnMut(&str, HeaderValue<'_>));

    /// Cheap: false when there is certainly no header at all.
    fn has_headers(&self) -> bool;

    /// The broker's message id property, if the broker has one.
    fn id(&self) -> Option<&str>;

    /// The content type property.
    fn content_type(&self) -> Option<&str>;

    /// The type property.
    fn kind(&self) -> Option<&str>;

    /// The routing key, or the record's key.
    fn key(&self) -> Option<&[u8]>;

    /// When it was published, as far as the broker knows.
    fn published_at(&self) -> Option<SystemTime>;

    /// How long after publishing it expires, if its publisher said so (AMQP `expiration`).
    fn time_to_live(&self) -> Option<Duration> {
        None
    }

    /// The broker says that somebody received it before.
    fn is_redelivered(&self) -> bool;

    /// How often the broker saw it come back, 0 at first or when the broker does not count.
    fn returns(&self) -> u32;

    /// Exchange/routing key/queue, or topic/partition/offset.
    fn origin(&self) -> String;

    /// A stable id where the broker has one even for messages without an id (Kafka's
    /// topic/partition/offset); never made up.
    fn position(&self) -> Option<String> {
        None
    }

    /// Why the broker itself dead-lettered it (its `x-death`), in the words of
    /// [`Reason`](crate::Reason).
    fn broker_reason(&self) -> Option<&'static str> {
        None
    }

    /// For the adapter that made it.
    fn as_any(&self) -> &dyn Any;
}

/// A header's value as far as anyone outside the adapter needs to know it.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum HeaderValue<'a> {
    /// UTF-8 text.
    Text(&'a str),
    /// Bytes that are not UTF-8.
    Bytes(&'a [u8]),
    /// A whole number.
    Number(i64),
    /// Something else; its type as the broker calls it.
    Other(&'static str),
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// As little of a message as there can be.
    #[derive(Clone, Debug, Default)]
    pub(crate) struct Bare {
        pub(crate) id: String,
        pub(crate) body: Vec<u8>,
        pub(crate) redelivered: bool,
    }

    impl Envelope for Bare {
        fn body(&self) -> &[u8] {
            &self.body
        }

        fn header(&self, _: &str) -> Option<HeaderValue<'_>> {
            None
        }

        fn visit_headers(&self, _: &mut dyn FnMut(&str, HeaderValue<'_>)) {}

        fn has_headers(&self) -> bool {
            false
        }

        fn id(&self) -> Option<&str> {
            Some(&self.id)
        }

        fn content_type(&self) -> Option<&str> {
            None
        }

        fn kind(&self) -> Option<&str> {
            None
        }

        fn key(&self) -> Option<&[u8]> {
            None
        }

        fn published_at(&self) -> Option<SystemTime> {
            None
        }

        fn is_redelivered(&self) -> bool {
            self.redelivered
        }

        fn returns(&self) -> u32 {
            u32::from(self.redelivered)
        }

        fn origin(&self) -> String {
            String::from("nowhere")
        }

        fn as_any(&self) -> &dyn Any {
            self
        }
    }
}
