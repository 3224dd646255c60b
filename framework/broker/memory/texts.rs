//! The texts of a stored message, in one block.
//!
//! A string of its own for each would be most of what storing a message and freeing it again costs. Owns where each
//! text lies; interprets none.

/// The texts of a message.
#[derive(Clone, Debug)]
pub(super) struct Texts {
    text: String,
    /// Always there, first.
    queue: Span,
    id: Option<Span>,
    content_type: Option<Span>,
    kind: Option<Span>,
    /// Name and value of each header. The first is here, because most messages have one, the trace, and a block for
    /// it alone would be a fifth of their cost.
    first: Option<(Span, Span)>,
    rest: Box<[(Span, Span)]>,
}

/// Where a text begins and ends.
type Span = (u32, u32);

impl Texts {
    pub(super) fn new<'a>(
        queue: &str,
        [id, content_type, kind]: [Option<&str>; 3],
        headers: impl Iterator<Item = (&'a str, &'a str)> + Clone,
    ) -> Self {
        let plain = [Some(queue), id, content_type, kind].into_iter().flatten().map(str::len);
        let named = headers.clone().map(|(name, value)| name.len() + value.len());
        let mut text = String::with_capacity(plain.chain(named).sum());
        let mut put = |part: &str| {
            let begin = text.len() as u32;
            text.push_str(part);
            (begin, text.len() as u32)
        };
        let queue = put(queue);
        let [id, content_type, kind] = [id, content_type, kind].map(|part| part.map(&mut put));
        let mut headers = headers.map(|(name, value)| (put(name), put(value)));
        let (first, rest) = (headers.next(), headers.collect());
        Self { text, queue, id, content_type, kind, first, rest }
    }

    /// The queue that it was stored in.
    pub(super) fn queue(&self) -> &str {
        self.at(self.queue)
    }

    pub(super) fn id(&self) -> Option<&str> {
        self.id.map(|span| self.at(span))
    }

    pub(super) fn content_type(&self) -> Option<&str> {
        self.content_type.map(|span| self.at(span))
    }

    pub(super) fn kind(&self) -> Option<&str> {
        self.kind.map(|span| self.at(span))
    }

    pub(super) fn has_headers(&self) -> bool {
        self.first.is_some()
    }

    pub(super) fn headers(&self) -> impl Iterator<Item = (&str, &str)> + Clone {
        let headers = self.first.iter().chain(self.rest.iter());
        headers.map(|(name, value)| (self.at(*name), self.at(*value)))
    }

    fn at(&self, (begin, end): Span) -> &str {
        &self.text[begin as usize..end as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_comes_out_as_it_went_in() {
        let headers = [("tenant", "acme"), ("", ""), ("größe", "5 €")];
        let texts = Texts::new("orders", [Some("7"), None, Some("")], headers.into_iter());
        assert_eq!(texts.queue(), "orders");
        assert_eq!((texts.id(), texts.content_type(), texts.kind()), (Some("7"), None, Some("")));
        assert_eq!(texts.headers().collect::<Vec<_>>(), headers);
    }
}
