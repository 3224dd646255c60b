//! What a broker delivered, as the broker holds it.
//!
//! Owns the view of a raw message that everything above an adapter works with. Copies nothing and
//! interprets nothing: headers and payload stay the broker's bytes until somebody asks.

mod shared;

use std::any::Any;
use std::time::{Duration, SystemTime};

pub use shared::{Envelopes, SharedEnvelope};

/// A message as the broker holds it: bytes stay bytes until somebody asks.
///
/// ```
/// use std::{any::Any, time::SystemTime};
/// use redeliver::broker::{Envelope, HeaderValue};
///
/// /// A line of a file, as an adapter for files would deliver it.
/// struct Line { place: String, text: String }
///
/// impl Envelope for Line {
///     fn body(&self) -> &[u8] { self.text.as_bytes() }
///     fn header(&self, _: &str) -> Option<HeaderValue<'_>> { None }
///     fn visit_headers(&self, _: &mut dyn FnMut(&str, HeaderValue<'_>)) {}
///     fn has_headers(&self) -> bool { false }
///     fn id(&self) -> Option<&str> { Some(&self.place) }
///     fn content_type(&self) -> Option<&str> { Some("text/plain") }
///     fn kind(&self) -> Option<&str> { None }
///     fn key(&self) -> Option<&[u8]> { None }
///     fn published_at(&self) -> Option<SystemTime> { None }
///     fn is_redelivered(&self) -> bool { false }
///     fn returns(&self) -> u32 { 0 }
///     fn origin(&self) -> String { String::from("orders.txt") }
///     fn as_any(&self) -> &dyn Any { self }
/// }
///
/// let line = Line { place: String::from("orders.txt/7"), text: String::from("2 shirts") };
/// assert_eq!(line.id(), Some("orders.txt/7"));
/// // What it does not know is left at what makes no promise.
/// assert!(!line.is_tombstone() && line.time_to_live().is_none());
/// assert!(line.broker_reason().is_none() && line.broker_dead_at().is_none() && !line.broker_saw_it_wait());
/// ```
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

    /// Cheap: false when certainly none of its headers is ours, so that nobody looks through them.
    fn may_be_stamped(&self) -> bool {
        self.has_headers()
    }

    /// The broker's message id property; where brokers have none, what names the message wherever it lies. Made when
    /// it is asked for.
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

    /// Whether the broker itself counts the time to live until it delivers. Then it begins anew with the delivery, unless
    /// [`published_at`](Self::published_at) is later: what a publisher wrote there may be coarse, or mean something else.
    fn is_aged_by_broker(&self) -> bool {
        false
    }

    /// The broker says that somebody received it before.
    fn is_redelivered(&self) -> bool;

    /// How often the broker saw it come back, 0 at first or when the broker does not count.
    fn returns(&self) -> u32;

    /// Exchange/routing key/queue, or topic/partition/offset.
    fn origin(&self) -> String;

    /// Why the broker itself dead-lettered it (its `x-death`), in the words of
    /// [`Reason`](crate::Reason). Asked of what lies in the dead letters; it counts more than any header of ours,
    /// which a publisher can write too.
    fn broker_reason(&self) -> Option<&'static str> {
        None
    }

    /// Whether the broker's own record shows that one of our waits let it go before that: only then can counts in its
    /// headers be ours. What never waited was never copied, and whatever it says of attempts its publisher wrote.
    fn broker_saw_it_wait(&self) -> bool {
        false
    }

    /// When the broker itself dead-lettered it.
    fn broker_dead_at(&self) -> Option<SystemTime> {
        None
    }

    /// For the adapter that made it.
    fn as_any(&self) -> &dyn Any;
}

/// A header's value as far as anyone outside the adapter needs to know it.
///
/// ```
/// use redeliver::{Delivery, Failure, Handled, broker::HeaderValue};
///
/// async fn ship(order: Delivery<u32>) -> Handled {
///     match order.header("tenant") {
///         Some(HeaderValue::Text(tenant)) => println!("{tenant} ordered {}", order.payload),
///         _ => return Err(Failure::reject("nobody to send the bill to")),
///     }
///     Ok(())
/// }
/// # use redeliver::{Message, Service, config::Config, testing::TestService};
/// # let config = "[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"";
/// # let mut test = TestService::start(Service::builder(Config::from_toml(config)?).subscribe("orders", ship))?;
///
/// test.publish("orders", Message::json(&7)?.header("tenant", "acme"));
/// test.publish("orders", Message::json(&8)?);
/// assert_eq!(test.log()[0], "orders-1: attempt 1 handled");
/// assert_eq!(test.log()[1], "orders-2: attempt 1 dead-lettered: rejected: nobody to send the bill to");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
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
        /// Its only header, and that is 1.
        pub(crate) header: Option<&'static str>,
    }

    impl Envelope for Bare {
        fn body(&self) -> &[u8] {
            &self.body
        }

        fn header(&self, name: &str) -> Option<HeaderValue<'_>> {
            (self.header == Some(name)).then_some(HeaderValue::Text("1"))
        }

        fn visit_headers(&self, visit: &mut dyn FnMut(&str, HeaderValue<'_>)) {
            if let Some(name) = self.header {
                visit(name, HeaderValue::Text("1"));
            }
        }

        fn has_headers(&self) -> bool {
            self.header.is_some()
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
