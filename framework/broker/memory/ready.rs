//! The messages of a queue that are ready, in the order in which they are delivered.
//!
//! Those that are stored one after another share an allocation: to free a block for each would be a fifth of what a
//! message costs on its way. Owns which of them do; looks into none.

use std::collections::VecDeque;
use std::ops::Deref;
use std::sync::Arc;

use super::Message;
use crate::broker::{Envelope, Envelopes, SharedEnvelope};

/// So many messages are in a block at the most. It is freed with the last of them: one that stays keeps a block, no more.
const BLOCK_LENGTH: usize = 256;

/// Messages in one allocation.
#[derive(Debug)]
struct Block(Vec<Message>);

impl Envelopes for Block {
    #[inline]
    fn at(&self, place: usize) -> &dyn Envelope {
        &self.0[place]
    }
}

/// A message in its block.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    block: Arc<Block>,
    place: u32,
}

impl Stored {
    #[inline]
    pub(super) fn envelope(&self) -> SharedEnvelope {
        let block: Arc<Block> = Arc::clone(&self.block);
        SharedEnvelope::among(block, self.place as usize)
    }
}

impl Deref for Stored {
    type Target = Message;

    fn deref(&self) -> &Message {
        &self.block.0[self.place as usize]
    }
}

/// The messages that are ready.
#[derive(Default)]
pub(super) struct Ready {
    stored: VecDeque<Stored>,
    /// The newest: the block that is being filled.
    block: Vec<Message>,
}

impl Ready {
    pub(super) fn len(&self) -> usize {
        self.stored.len() + self.block.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Stores a message behind all others.
    pub(super) fn push(&mut self, message: Message) {
        // What is large shall not stay because of a neighbour.
        let is_large = message.is_large();
        if is_large {
            self.close_block();
        }
        self.block.push(message);
        if is_large || self.block.len() == BLOCK_LENGTH {
            self.close_block();
        }
    }

    /// Puts messages before all others, in their order.
    pub(super) fn put_back(&mut self, messages: impl DoubleEndedIterator<Item = Stored>) {
        messages.rev().for_each(|message| self.stored.push_front(message));
    }

    /// Stores a message before all others.
    pub(super) fn push_first(&mut self, message: Message) {
        self.put_back(stored(vec![message]));
    }

    /// Takes the first `count`, or all where there are fewer.
    pub(super) fn take(&mut self, count: usize) -> impl ExactSizeIterator<Item = Stored> {
        if self.stored.len() < count {
            self.close_block();
        }
        self.stored.drain(..count.min(self.stored.len()))
    }

    fn close_block(&mut self) {
        self.stored.extend(stored(std::mem::take(&mut self.block)));
    }
}

/// Messages that are stored together.
fn stored(messages: Vec<Message>) -> impl DoubleEndedIterator<Item = Stored> {
    let places = 0..messages.len() as u32;
    let block = Arc::new(Block(messages));
    places.map(move |place| Stored { block: Arc::clone(&block), place })
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use bytes::Bytes;

    use super::super::Extras;
    use super::super::texts::{Page, Texts};
    use super::*;

    fn message(id: &str, body: Option<Bytes>) -> Message {
        let ids = [Some(id), None, None];
        let texts = Texts::new(&mut Page::default(), "orders", ids, b"", std::iter::empty());
        let extras = Extras { body, ..Extras::default() }.boxed();
        Message { texts, published_at: SystemTime::UNIX_EPOCH, extras, returns: 0 }
    }

    #[test]
    fn messages_come_in_their_order_out_of_however_many_blocks() {
        for count in [1, 7, BLOCK_LENGTH, 2000] {
            let (mut ready, mut seen) = (Ready::default(), Vec::new());
            for number in 0..900 {
                ready.push(message(&number.to_string(), None));
                if number % 30 == 0 {
                    // One that comes back is the first again.
                    let back = ready.take(1).collect::<Vec<_>>();
                    ready.put_back(back.into_iter());
                    seen.extend(ready.take(count).map(|stored| id_of(&stored)));
                }
            }
            seen.extend(ready.take(900).map(|stored| id_of(&stored)));
            assert!(ready.is_empty() && seen.into_iter().eq(0..900), "{count} at once");
        }
    }

    fn id_of(stored: &Stored) -> usize {
        stored.envelope().id().and_then(|id| id.parse().ok()).expect("it has a number")
    }

    #[test]
    fn what_is_large_goes_though_its_neighbours_stay() {
        let body = Bytes::from(vec![0; 2000]);
        let mut ready = Ready::default();
        for body in [None, Some(body.clone()), None] {
            ready.push(message("7", body));
        }
        let mut taken = ready.take(3).collect::<Vec<_>>();
        assert!(!body.is_unique());
        taken.remove(1);
        assert!(body.is_unique(), "the two others hold it");
    }
}
