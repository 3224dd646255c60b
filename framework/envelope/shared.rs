//! Messages that several hold at the same time: the lane, its ledger, the handler.
//!
//! Owns how long a message lives. Knows nothing of what is in it.

use std::ops::Deref;
use std::sync::Arc;

use super::Envelope;

/// Many messages in one allocation, as a broker holds them: to make and to free a block for each costs a fifth of what
/// a message costs altogether.
///
/// All of them stay until nobody holds any of them.
///
/// ```
/// # use redeliver::broker::Envelope;
/// use redeliver::broker::Envelopes;
///
/// # #[allow(dead_code, reason = "an adapter makes them")]
/// struct Page<E>(Vec<E>);
///
/// impl<E: Envelope> Envelopes for Page<E> {
///     fn at(&self, place: usize) -> &dyn Envelope { &self.0[place] }
/// }
/// ```
pub trait Envelopes: Send + Sync + 'static {
    /// The message at a place; asked for places that were given to [`SharedEnvelope::among`], and for no others.
    fn at(&self, place: usize) -> &dyn Envelope;
}

impl<E: Envelope> Envelopes for E {
    #[inline]
    fn at(&self, _: usize) -> &dyn Envelope {
        self
    }
}

/// A message that several hold: by itself, or as one of many in one allocation.
///
/// ```
/// # use std::{any::Any, time::SystemTime};
/// # use redeliver::broker::{Envelope, HeaderValue};
/// use std::sync::Arc;
/// use redeliver::broker::{Envelopes, SharedEnvelope};
///
/// # struct Line(&'static str);
/// # impl Envelope for Line {
/// #     fn body(&self) -> &[u8] { self.0.as_bytes() }
/// #     fn header(&self, _: &str) -> Option<HeaderValue<'_>> { None }
/// #     fn visit_headers(&self, _: &mut dyn FnMut(&str, HeaderValue<'_>)) {}
/// #     fn has_headers(&self) -> bool { false }
/// #     fn id(&self) -> Option<&str> { None }
/// #     fn content_type(&self) -> Option<&str> { None }
/// #     fn kind(&self) -> Option<&str> { None }
/// #     fn key(&self) -> Option<&[u8]> { None }
/// #     fn published_at(&self) -> Option<SystemTime> { None }
/// #     fn is_redelivered(&self) -> bool { false }
/// #     fn returns(&self) -> u32 { 0 }
/// #     fn origin(&self) -> String { String::new() }
/// #     fn as_any(&self) -> &dyn Any { self }
/// # }
/// struct Page(Vec<Line>);
///
/// impl Envelopes for Page {
///     fn at(&self, place: usize) -> &dyn Envelope { &self.0[place] }
/// }
///
/// let page = Arc::new(Page(vec![Line("2 shirts"), Line("1 hat")]));
/// assert_eq!(SharedEnvelope::among(page, 1).body(), b"1 hat");
/// assert_eq!(SharedEnvelope::new(Line("3 socks")).body(), b"3 socks");
/// ```
#[derive(Clone)]
pub struct SharedEnvelope {
    block: Arc<dyn Envelopes>,
    place: usize,
}

impl SharedEnvelope {
    /// A message in an allocation of its own.
    ///
    /// ```
    /// # use std::{any::Any, time::SystemTime};
    /// # use redeliver::broker::{Envelope, HeaderValue};
    /// use redeliver::broker::SharedEnvelope;
    ///
    /// # struct Line(&'static str);
    /// # impl Envelope for Line {
    /// #     fn body(&self) -> &[u8] { self.0.as_bytes() }
    /// #     fn header(&self, _: &str) -> Option<HeaderValue<'_>> { None }
    /// #     fn visit_headers(&self, _: &mut dyn FnMut(&str, HeaderValue<'_>)) {}
    /// #     fn has_headers(&self) -> bool { false }
    /// #     fn id(&self) -> Option<&str> { None }
    /// #     fn content_type(&self) -> Option<&str> { None }
    /// #     fn kind(&self) -> Option<&str> { None }
    /// #     fn key(&self) -> Option<&[u8]> { None }
    /// #     fn published_at(&self) -> Option<SystemTime> { None }
    /// #     fn is_redelivered(&self) -> bool { false }
    /// #     fn returns(&self) -> u32 { 0 }
    /// #     fn origin(&self) -> String { String::new() }
    /// #     fn as_any(&self) -> &dyn Any { self }
    /// # }
    /// let message = SharedEnvelope::new(Line("3 socks"));
    /// let with_the_handler = message.clone();
    /// assert!(std::ptr::eq(message.body(), with_the_handler.body()), "one message, not a copy");
    /// ```
    pub fn new(envelope: impl Envelope) -> Self {
        Self { block: Arc::new(envelope), place: 0 }
    }

    /// The message at a place of a block.
    ///
    /// ```
    /// # use std::{any::Any, time::SystemTime};
    /// # use redeliver::broker::{Envelope, Envelopes, HeaderValue};
    /// use std::sync::Arc;
    /// use redeliver::broker::SharedEnvelope;
    ///
    /// # struct Line(&'static str);
    /// # impl Envelope for Line {
    /// #     fn body(&self) -> &[u8] { self.0.as_bytes() }
    /// #     fn header(&self, _: &str) -> Option<HeaderValue<'_>> { None }
    /// #     fn visit_headers(&self, _: &mut dyn FnMut(&str, HeaderValue<'_>)) {}
    /// #     fn has_headers(&self) -> bool { false }
    /// #     fn id(&self) -> Option<&str> { None }
    /// #     fn content_type(&self) -> Option<&str> { None }
    /// #     fn kind(&self) -> Option<&str> { None }
    /// #     fn key(&self) -> Option<&[u8]> { None }
    /// #     fn published_at(&self) -> Option<SystemTime> { None }
    /// #     fn is_redelivered(&self) -> bool { false }
    /// #     fn returns(&self) -> u32 { 0 }
    /// #     fn origin(&self) -> String { String::new() }
    /// #     fn as_any(&self) -> &dyn Any { self }
    /// # }
    /// # struct Page(Vec<Line>);
    /// # impl Envelopes for Page {
    /// #     fn at(&self, place: usize) -> &dyn Envelope { &self.0[place] }
    /// # }
    /// let page = Arc::new(Page(vec![Line("2 shirts"), Line("1 hat")]));
    /// let block = Arc::downgrade(&page);
    /// let (shirts, hat) = (SharedEnvelope::among(page.clone(), 0), SharedEnvelope::among(page, 1));
    /// drop(shirts);
    /// assert!(block.upgrade().is_some(), "all stay while somebody holds one");
    /// drop(hat);
    /// assert!(block.upgrade().is_none());
    /// ```
    #[inline]
    pub fn among(block: Arc<dyn Envelopes>, place: usize) -> Self {
        Self { block, place }
    }
}

impl Deref for SharedEnvelope {
    type Target = dyn Envelope;

    #[inline]
    fn deref(&self) -> &dyn Envelope {
        self.block.at(self.place)
    }
}

impl AsRef<dyn Envelope> for SharedEnvelope {
    #[inline]
    fn as_ref(&self) -> &(dyn Envelope + 'static) {
        &**self
    }
}
