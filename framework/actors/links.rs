//! The ways from consumers to handler actors: which handler a message is for, and its queue.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::letter::{Letter, undecided};
use super::seat::Dispatch;
use super::tenure::Tenure;
use crate::pipeline::{Scope, Work, kind_of};

/// So many messages are in a letter at the most: a pump gives way between letters, not within one.
const LETTER_MAX: usize = 256;

/// All handler actors of a subscription, as one consumer sees them.
#[derive(Clone)]
pub(super) struct Links {
    routes: Vec<LinkedRoute>,
    /// The route for every type that has none of its own.
    fallback: Option<usize>,
    /// No type is looked for where one handler takes all.
    typed: bool,
}

#[derive(Clone)]
struct LinkedRoute {
    kind: Option<String>,
    seats: Vec<Link>,
    /// The seat whose turn it is.
    next: usize,
}

/// The queue of one handler actor, and what is about to be put there.
struct Link {
    queue: mpsc::UnboundedSender<Dispatch>,
    letter: Letter,
}

impl Clone for Link {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone(), letter: Vec::new() }
    }
}

impl Links {
    /// `routes`: the type and the queues of each handler.
    pub(super) fn new(routes: Vec<(Option<String>, Vec<mpsc::UnboundedSender<Dispatch>>)>) -> Self {
        let fallback = routes.iter().position(|(kind, _)| kind.is_none());
        let typed = routes.iter().any(|(kind, _)| kind.is_some());
        let link = |queue| Link { queue, letter: Vec::new() };
        let routes = routes
            .into_iter()
            .map(|(kind, queues)| LinkedRoute {
                kind,
                seats: queues.into_iter().map(link).collect(),
                next: 0,
            })
            .collect();
        Self { routes, fallback, typed }
    }

    /// Puts messages into the letters for the next actors of their handlers; those that no handler is for come back.
    pub(super) fn enqueue_all(
        &mut self,
        works: impl Iterator<Item = Work>,
        is_probe: bool,
        scope: &Scope,
    ) -> Vec<Work> {
        let mut unknown = Vec::new();
        for mut work in works {
            work.is_probe = is_probe;
            match self.route_of(&work, scope) {
                Some(route) => self.enqueue(route, work),
                None => unknown.push(work),
            }
        }
        unknown
    }

    /// Whether there is but one place where a message may go.
    pub(super) fn have_one_seat(&self) -> bool {
        matches!(&self.routes[..], [route] if route.seats.len() == 1 && !self.typed)
    }

    /// Sends a letter that is written already, where there is but one place for it.
    pub(super) fn send_straight(
        &mut self,
        letter: Letter,
        reply: &mpsc::Sender<Letter>,
        tenure: &Arc<Tenure>,
    ) {
        if let Some(link) = self.routes.iter_mut().flat_map(|route| &mut route.seats).next() {
            link.send_all(letter, reply, tenure);
        }
    }

    /// The handler that a message is for.
    fn route_of(&self, work: &Work, scope: &Scope) -> Option<usize> {
        if !self.typed {
            return self.fallback;
        }
        let kind = kind_of(work, scope);
        let own =
            |route: &LinkedRoute| route.kind.is_some() && route.kind.as_deref() == kind.as_deref();
        self.routes.iter().position(own).or(self.fallback)
    }

    /// Puts a message into the letter for the next actor of its handler.
    fn enqueue(&mut self, route: usize, work: Work) {
        let route = &mut self.routes[route];
        route.seats[route.next].letter.push(undecided(work));
        // Compared, because a division for each message would be a third of this.
        route.next = if route.next + 1 < route.seats.len() { route.next + 1 } else { 0 };
    }

    /// Sends the letters.
    pub(super) fn dispatch(&mut self, reply: &mpsc::Sender<Letter>, tenure: &Arc<Tenure>) {
        for link in self.routes.iter_mut().flat_map(|route| &mut route.seats) {
            if !link.letter.is_empty() {
                let capacity = link.letter.len().min(LETTER_MAX);
                let letter = std::mem::replace(&mut link.letter, Vec::with_capacity(capacity));
                link.send_all(letter, reply, tenure);
            }
        }
    }
}

impl Link {
    /// Sends a letter, in parts where it is too long for one.
    fn send_all(&self, letter: Letter, reply: &mpsc::Sender<Letter>, tenure: &Arc<Tenure>) {
        if letter.len() <= LETTER_MAX {
            return self.send(letter, reply, tenure);
        }
        let mut rest = letter.into_iter();
        while rest.len() > 0 {
            self.send(rest.by_ref().take(LETTER_MAX).collect(), reply, tenure);
        }
    }

    fn send(&self, letter: Letter, reply: &mpsc::Sender<Letter>, tenure: &Arc<Tenure>) {
        let dispatch = Dispatch { letter, reply: reply.clone(), tenure: Arc::clone(tenure) };
        // Bounded by the permits of all lanes, however many there are: a letter that was turned away would be
        // lost with its permits. The seat keeps the other end for as long as the subscription lives.
        let _ = self.queue.send(dispatch);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::{Received, SharedEnvelope, Token};
    use crate::envelope::tests::Bare;

    #[test]
    fn a_long_letter_is_sent_in_parts_that_keep_its_order() {
        for count in [1, 256, 257, 1000] {
            let (queue, mut seat) = mpsc::unbounded_channel();
            let (reply, _outcomes) = mpsc::channel(1);
            let mut links = Links::new(vec![(None, vec![queue])]);
            for number in 0..count {
                let (envelope, token) =
                    (SharedEnvelope::new(Bare::default()), Token(u64::from(number)));
                links.enqueue(0, Work::of(Received { envelope, token }, number));
            }
            links.dispatch(&reply, &Arc::default());
            let mut slots = Vec::new();
            while let Ok(Dispatch { letter, .. }) = seat.try_recv() {
                assert!(letter.len() <= LETTER_MAX);
                slots.extend(letter.into_iter().flatten().map(|outcome| outcome.work.slot));
            }
            assert!(slots.into_iter().eq(0..count), "{count}");
        }
    }
}
