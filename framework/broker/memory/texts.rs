//! The texts of a stored message and its payload, in one block that is cut from a page.
//!
//! A block of its own for each would be most of what storing a message and freeing it again costs. Owns where each
//! text lies; interprets none.

use bytes::{Bytes, BytesMut};

use crate::wire::PREFIX;

/// The length of a page. It is freed with the last of the messages in it: one that stays keeps a page, no more.
const PAGE_LENGTH: usize = 32 * 1024;

/// Where the next messages are put.
#[derive(Debug)]
pub(super) struct Page(BytesMut);

impl Default for Page {
    fn default() -> Self {
        Self(BytesMut::with_capacity(PAGE_LENGTH))
    }
}

/// The texts of a message and its payload, one after another.
#[derive(Clone, Debug)]
pub(super) struct Texts {
    block: Bytes,
    /// Where queue, id, content type, type and payload end.
    ends: [u32; 5],
    /// Where name and value of each header end. The first is here, because most messages have one, the trace, and a
    /// block for it alone would be a fifth of their cost.
    first: (u32, u32),
    #[expect(
        clippy::box_collection,
        reason = "one word instead of three, where nearly always nothing is"
    )]
    rest: Option<Box<Vec<(u32, u32)>>>,
    /// Whether there is an id, a content type and a type: one may be there and empty.
    are_there: [bool; 3],
    headers: Headers,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Headers {
    None,
    /// None of them ours.
    Plain,
    Stamped,
}

impl Texts {
    pub(super) fn new<'a>(
        Page(page): &mut Page,
        queue: &str,
        [id, content_type, kind]: [Option<&str>; 3],
        payload: &[u8],
        headers: impl Iterator<Item = (&'a str, &'a str)> + Clone,
    ) -> Self {
        let plain = [Some(queue), id, content_type, kind].map(Option::unwrap_or_default);
        let named = headers.clone().map(|(name, value)| name.len() + value.len());
        let length = payload.len() + plain.into_iter().map(str::len).chain(named).sum::<usize>();
        page.reserve(length);
        let mut put = |part: &[u8]| {
            page.extend_from_slice(part);
            page.len() as u32
        };
        let [queue, i, c, k] = plain.map(|part| put(part.as_bytes()));
        let ends = [queue, i, c, k, put(payload)];
        let is_stamped = headers.clone().any(|(name, _)| name.starts_with(PREFIX));
        let mut headers =
            headers.map(|(name, value)| (put(name.as_bytes()), put(value.as_bytes())));
        let (first, rest) = (headers.next(), headers.collect::<Vec<_>>());
        Self {
            block: page.split().freeze(),
            ends,
            first: first.unwrap_or_default(),
            rest: (!rest.is_empty()).then(|| Box::new(rest)),
            are_there: [id.is_some(), content_type.is_some(), kind.is_some()],
            headers: match (first, is_stamped) {
                (None, _) => Headers::None,
                (Some(_), false) => Headers::Plain,
                (Some(_), true) => Headers::Stamped,
            },
        }
    }

    pub(super) fn payload(&self) -> &[u8] {
        &self.block[self.ends[3] as usize..self.ends[4] as usize]
    }

    /// The queue that it was stored in.
    pub(super) fn queue(&self) -> &str {
        self.at(0, self.ends[0])
    }

    pub(super) fn id(&self) -> Option<&str> {
        self.property(0)
    }

    pub(super) fn content_type(&self) -> Option<&str> {
        self.property(1)
    }

    pub(super) fn kind(&self) -> Option<&str> {
        self.property(2)
    }

    pub(super) fn has_headers(&self) -> bool {
        self.headers != Headers::None
    }

    /// Whether one of the headers is ours.
    pub(super) fn is_stamped(&self) -> bool {
        self.headers == Headers::Stamped
    }

    pub(super) fn headers(&self) -> impl Iterator<Item = (&str, &str)> + Clone {
        let first = self.has_headers().then_some(self.first);
        let rest = self.rest.iter().flat_map(|rest| rest.iter().copied());
        let mut begin = self.ends[4];
        first.into_iter().chain(rest).map(move |(name_end, end)| {
            let header = (self.at(begin, name_end), self.at(name_end, end));
            begin = end;
            header
        })
    }

    fn property(&self, place: usize) -> Option<&str> {
        self.are_there[place].then(|| self.at(self.ends[place], self.ends[place + 1]))
    }

    fn at(&self, begin: u32, end: u32) -> &str {
        let text = &self.block[begin as usize..end as usize];
        std::str::from_utf8(text).expect("it was text when it was put here")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_and_the_payload_come_out_as_they_went_in() {
        let headers = [("tenant", "acme"), ("", ""), ("größe", "5 €")];
        let mut page = Page::default();
        let mut texts = |payload| {
            Texts::new(
                &mut page,
                "orders",
                [Some("7"), None, Some("")],
                payload,
                headers.into_iter(),
            )
        };
        let long = vec![0xff; 3 * PAGE_LENGTH];
        for payload in [&b"{}"[..], b"", &long, b"[]"] {
            let texts = texts(payload);
            assert_eq!((texts.queue(), texts.payload()), ("orders", payload));
            assert_eq!((texts.id(), texts.content_type()), (Some("7"), None));
            assert_eq!(texts.kind(), Some(""));
            assert_eq!(texts.headers().collect::<Vec<_>>(), headers);
            assert!(texts.has_headers() && !texts.is_stamped());
        }
    }

    #[test]
    fn a_header_of_ours_is_known_wherever_it_stands() {
        let headers = [("tenant", "acme"), (crate::wire::ATTEMPT, "2")];
        let mut page = Page::default();
        let texts = Texts::new(&mut page, "orders", [None; 3], b"", headers.into_iter());
        assert!(texts.is_stamped());
    }
}
