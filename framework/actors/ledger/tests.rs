//! The ledger against a model that knows every message by name: whatever happens to lanes and
//! handlers, a settlement is for the delivery of that very message, and none is settled twice.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::envelope::tests::Bare;
use crate::pipeline::{Verdict, Work};
use crate::wire;

/// What can happen.
#[derive(Clone, Debug)]
enum Step {
    /// The lane delivers a new message.
    New,
    /// The lane delivers one again that was lost with an earlier lane.
    Again(usize),
    /// A handler is done with one.
    Done(usize),
    /// The lane is lost, and another is open after this many minutes.
    Lose(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => Just(Step::New),
        3 => any::<prop::sample::Index>().prop_map(|index| Step::Again(index.index(1000))),
        4 => any::<prop::sample::Index>().prop_map(|index| Step::Done(index.index(1000))),
        1 => (0..20_u64).prop_map(Step::Lose),
    ]
}

/// Where a message is, as far as the model knows.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    /// The broker has it, unsettled by anyone.
    Broker,
    /// The open lane delivered it under this token.
    Here(u64),
    /// It is settled.
    Gone,
}

#[derive(Default)]
struct Model {
    ledger: Ledger,
    generation: u64,
    tokens: u64,
    places: Vec<Place>,
    /// The works that handlers have, by slot.
    running: BTreeMap<Slot, Work>,
    minutes: u64,
}

impl Model {
    fn received(&mut self, number: usize, redelivered: bool) -> Received {
        self.tokens += 1;
        self.places[number] = Place::Here(self.tokens);
        let (id, body) = (number.to_string(), vec![7; number % 5]);
        let envelope = Arc::new(Bare { id, body, redelivered, header: None });
        Received { envelope, token: Token(self.tokens) }
    }

    fn enter(&mut self, received: Received, now: Instant) {
        let slot = self.ledger.enter(received.clone(), now);
        let before = self.running.insert(slot, Work::of(received, slot));
        assert!(before.is_none(), "slot {slot} was given to two messages");
    }

    /// A handler is done, or an adopted outcome is concluded: as the consumer does it.
    fn conclude(&mut self, work: Work) {
        let number: usize = work.id().and_then(|id| id.parse().ok()).expect("its number");
        if self.ledger.is_orphan(work.slot) {
            let slot = work.slot;
            return self.ledger.keep_fate(slot, Outcome { work, verdict: Verdict::Ack });
        }
        let token = self.ledger.settle(work.slot).expect("the lane that is open knows it");
        assert_eq!(self.places[number], Place::Here(token.0), "message {number}");
        self.places[number] = Place::Gone;
    }

    fn take(&mut self, step: &Step, start: Instant) {
        let now = start + Duration::from_secs(60 * self.minutes);
        match *step {
            Step::New => {
                self.places.push(Place::Broker);
                let received = self.received(self.places.len() - 1, false);
                assert!(self.ledger.adopt(&received, now).is_none());
                self.enter(received, now);
            }
            Step::Again(index) => {
                let waiting = |number: &usize| self.places[*number] == Place::Broker;
                let waiting: Vec<usize> = (0..self.places.len()).filter(waiting).collect();
                let Some(number) = waiting.get(index % waiting.len().max(1)) else { return };
                let received = self.received(*number, true);
                match self.ledger.adopt(&received, now) {
                    None => self.enter(received, now),
                    Some(Adopted::Running) => {}
                    Some(Adopted::Done(outcome)) => self.conclude(outcome.work),
                }
            }
            Step::Done(index) => {
                let slots: Vec<Slot> = self.running.keys().copied().collect();
                let Some(slot) = slots.get(index % slots.len().max(1)) else { return };
                let work = self.running.remove(slot).expect("it runs");
                self.conclude(work);
            }
            Step::Lose(minutes) => {
                self.minutes += minutes;
                self.generation += 1;
                let now = start + Duration::from_secs(60 * self.minutes);
                self.ledger.lose(self.generation, now);
                for place in &mut self.places {
                    if let Place::Here(_) = place {
                        *place = Place::Broker;
                    }
                }
            }
        }
    }

    fn bytes(&self) -> usize {
        let here = |(_, place): &(usize, &Place)| matches!(place, Place::Here(_));
        self.places.iter().enumerate().filter(here).map(|(number, _)| number % 5).sum()
    }
}

proptest! {
    #[test]
    fn every_settlement_is_for_the_delivery_that_is_out(steps in prop::collection::vec(step(), 0..120)) {
        let start = Instant::now();
        let mut model = Model::default();
        for step in &steps {
            model.take(step, start);
            prop_assert_eq!(model.ledger.bytes(), model.bytes());
            let here = model.places.iter().filter(|place| matches!(place, Place::Here(_))).count();
            prop_assert_eq!(model.ledger.held().len(), here);
        }
    }
}

#[test]
fn a_handler_that_outlives_its_orphan_s_time_settles_nobody_else_s_message() {
    let start = Instant::now();
    let mut model = Model::default();
    for step in [Step::New, Step::Lose(0), Step::Lose(16), Step::New, Step::Done(0), Step::Done(0)]
    {
        model.take(&step, start);
    }
    assert_eq!(model.places[1], Place::Gone);
}

#[test]
fn what_came_of_an_orphan_is_kept_for_a_quarter_of_an_hour_and_an_orphan_is_nobody_s_oldest() {
    for (minutes, again_is_adopted) in [(14, true), (16, false)] {
        let start = Instant::now();
        let mut model = Model::default();
        for step in [Step::New, Step::Lose(0)] {
            model.take(&step, start);
        }
        assert_eq!(model.ledger.oldest(), None, "its lane is gone");
        model.take(&Step::Done(0), start);
        let again = model.received(0, true);
        let later = start + Duration::from_secs(60 * minutes);
        assert_eq!(model.ledger.adopt(&again, later).is_some(), again_is_adopted, "{minutes}");
    }
}

#[test]
fn a_redriven_copy_is_not_taken_for_the_message_that_it_was_made_of() {
    for (name, copy_is_adopted) in
        [(None, true), (Some(wire::GENERATION), false), (Some(wire::ATTEMPT), false)]
    {
        let (start, mut ledger) = (Instant::now(), Ledger::default());
        let received = |header| {
            let (id, body) = (String::from("7"), vec![7]);
            let envelope = Arc::new(Bare { id, body, redelivered: true, header });
            Received { envelope, token: Token(1) }
        };
        ledger.lose(1, start);
        ledger.enter(received(None), start);
        ledger.lose(2, start);
        assert_eq!(ledger.adopt(&received(name), start).is_some(), copy_is_adopted, "{name:?}");
    }
}
