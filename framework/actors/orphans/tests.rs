//! The orphans and the ledgers of two lanes against a model that knows every message by name: whatever happens to
//! lanes and handlers, a settlement is for the delivery of that very message, and none is settled or run twice.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;

use super::super::ledger::{Ledger, Lost};
use super::*;
use crate::broker::{SharedEnvelope, Token};
use crate::envelope::tests::Bare;
use crate::pipeline::{Verdict, Work};
use crate::wire;

/// What can happen.
#[derive(Clone, Debug)]
enum Step {
    /// A lane delivers a new message.
    New(usize),
    /// A lane delivers one again that was lost with a lane.
    Again(usize, usize),
    /// A handler is done with one.
    Done(usize),
    /// A lane is lost, and another is open in its place after this many minutes.
    Lose(usize, u64),
}

fn step() -> impl Strategy<Value = Step> {
    let any_of = || any::<prop::sample::Index>().prop_map(|index| index.index(1000));
    prop_oneof![
        3 => (0..2_usize).prop_map(Step::New),
        3 => (0..2_usize, any_of()).prop_map(|(lane, which)| Step::Again(lane, which)),
        4 => any_of().prop_map(Step::Done),
        1 => (0..2_usize, 0..20_u64).prop_map(|(lane, minutes)| Step::Lose(lane, minutes)),
    ]
}

/// Where a message is, as far as the model knows.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    /// The broker has it, unsettled by anyone.
    Broker,
    /// This lane delivered it under this token.
    Here(usize, u64),
    /// It is settled.
    Gone,
}

#[derive(Default)]
struct Model {
    ledgers: [Ledger; 2],
    orphans: Orphans,
    generation: u64,
    tokens: u64,
    places: Vec<Place>,
    /// The works that handlers have, by lane and slot.
    running: BTreeMap<(u32, Slot), Work>,
    minutes: u64,
}

impl Model {
    fn new() -> Self {
        let mut model = Self::default();
        for ledger in &mut model.ledgers {
            model.generation += 1;
            ledger.open(model.generation);
        }
        model
    }

    fn received(&mut self, lane: usize, number: usize, redelivered: bool) -> Received {
        self.tokens += 1;
        self.places[number] = Place::Here(lane, self.tokens);
        let (id, body) = (number.to_string(), vec![7; number % 5]);
        let envelope = SharedEnvelope::new(Bare { id, body, redelivered, header: None });
        Received { envelope, token: Token(self.tokens) }
    }

    fn enter(&mut self, lane: usize, received: Received, now: Instant) {
        let size = received.envelope.body().len();
        let slot = self.ledgers[lane].enter(received.clone(), size, now);
        let mut work = Work::of(received, slot);
        work.lane = lane as u32;
        let before = self.running.insert((work.lane, slot), work);
        assert!(before.is_none(), "slot {slot} was given to two messages");
    }

    /// As a consumer does it: recognised, or entered as a message of its own.
    fn take_in(&mut self, lane: usize, received: Received, now: Instant) -> bool {
        let identity = identity(&received);
        let found = self.orphans.find(&received, &identity, now);
        let Some((orphan, received_at)) = found else {
            self.enter(lane, received, now);
            return false;
        };
        let slot = self.ledgers[lane].enter_again(received, received_at, orphan);
        let heir = Heir { lane: lane as u32, slot, order: None };
        if let Some(outcome) = self.orphans.adopt(orphan, heir) {
            assert!(self.ledgers[lane].inherit(slot, orphan));
            self.settle(lane, slot, &outcome.work);
        }
        true
    }

    /// A handler is done.
    fn conclude(&mut self, work: Work, now: Instant) {
        let lane = work.lane as usize;
        if !self.ledgers[lane].is_orphan(work.slot) {
            return self.settle(lane, work.slot, &work);
        }
        let orphan = self.ledgers[lane].orphan(work.slot).expect("each of these has an id");
        assert!(self.ledgers[lane].settle(work.slot).is_none(), "its lane is gone");
        let heir = self.orphans.heir(orphan).cloned();
        self.orphans.keep(orphan, Outcome { work, verdict: Verdict::Ack }, now);
        self.orphans.forget_old(now);
        if let Some(heir) = heir {
            let outcome = self.orphans.take(orphan).expect("it was put there");
            assert!(self.ledgers[heir.lane as usize].inherit(heir.slot, orphan));
            self.settle(heir.lane as usize, heir.slot, &outcome.work);
        }
    }

    fn settle(&mut self, lane: usize, slot: Slot, work: &Work) {
        let number: usize = work.id().and_then(|id| id.parse().ok()).expect("its number");
        let token = self.ledgers[lane].settle(slot).expect("the lane that is open knows it");
        assert_eq!(self.places[number], Place::Here(lane, token.0), "message {number}");
        self.places[number] = Place::Gone;
    }

    fn lose(&mut self, lane: usize, now: Instant) {
        for lost in self.ledgers[lane].lose() {
            match lost {
                Lost::Own(slot, received, received_at) => {
                    let identity = identity(&received);
                    let orphan =
                        self.orphans.add(received, identity, received_at, lane as u32, now);
                    self.ledgers[lane].mark(slot, Some(orphan));
                }
                Lost::Awaited(slot, orphan) => {
                    let disowned = self.orphans.disown(orphan, now);
                    assert!(disowned.fate.is_none(), "what comes out is taken at once");
                    assert!(self.ledgers[lane].settle(slot).is_none());
                }
            }
        }
        self.generation += 1;
        self.ledgers[lane].open(self.generation);
        for place in &mut self.places {
            if matches!(place, Place::Here(here, _) if *here == lane) {
                *place = Place::Broker;
            }
        }
    }

    fn take(&mut self, step: &Step, start: Instant) {
        let now = start + Duration::from_secs(60 * self.minutes);
        match *step {
            Step::New(lane) => {
                self.places.push(Place::Broker);
                let received = self.received(lane, self.places.len() - 1, false);
                self.enter(lane, received, now);
            }
            Step::Again(lane, index) => {
                let waiting = |number: &usize| self.places[*number] == Place::Broker;
                let waiting: Vec<usize> = (0..self.places.len()).filter(waiting).collect();
                let Some(number) = waiting.get(index % waiting.len().max(1)) else { return };
                let runs = self.runs(*number);
                let received = self.received(lane, *number, true);
                let is_adopted = self.take_in(lane, received, now);
                assert!(is_adopted || !runs, "message {number} runs a second time");
            }
            Step::Done(index) => {
                let works: Vec<(u32, Slot)> = self.running.keys().copied().collect();
                let Some(place) = works.get(index % works.len().max(1)) else { return };
                let work = self.running.remove(place).expect("it runs");
                self.conclude(work, now);
            }
            Step::Lose(lane, minutes) => {
                self.minutes += minutes;
                self.lose(lane, start + Duration::from_secs(60 * self.minutes));
            }
        }
    }

    fn runs(&self, number: usize) -> bool {
        let number = number.to_string();
        self.running.values().any(|work| work.id() == Some(&number))
    }

    fn here(&self, lane: usize) -> impl Iterator<Item = usize> {
        let places = self.places.iter().enumerate();
        let here = move |place: &Place| matches!(place, Place::Here(here, _) if *here == lane);
        places.filter(move |(_, place)| here(place)).map(|(number, _)| number)
    }
}

fn identity(received: &Received) -> Identity {
    Identity::of(received, &IdSource::MessageId).expect("it has an id")
}

proptest! {
    #[test]
    fn every_settlement_is_for_the_delivery_that_is_out(steps in prop::collection::vec(step(), 0..120)) {
        let start = Instant::now();
        let mut model = Model::new();
        for step in &steps {
            model.take(step, start);
            for lane in 0..2 {
                let bytes: usize = model.here(lane).map(|number| number % 5).sum();
                prop_assert_eq!(model.ledgers[lane].bytes(), bytes);
                prop_assert_eq!(model.ledgers[lane].held().len(), model.here(lane).count());
            }
        }
    }
}

fn after(steps: &[Step], start: Instant) -> Model {
    let mut model = Model::new();
    steps.iter().for_each(|step| model.take(step, start));
    model
}

#[test]
fn a_handler_that_outlives_its_orphan_s_time_settles_nobody_else_s_message() {
    let steps = [
        Step::New(0),
        Step::Lose(0, 0),
        Step::Lose(0, 16),
        Step::New(0),
        Step::Done(0),
        Step::Done(0),
    ];
    assert_eq!(after(&steps, Instant::now()).places[1], Place::Gone);
}

#[test]
fn what_came_of_an_orphan_is_kept_for_a_quarter_of_an_hour_and_an_orphan_is_nobody_s_oldest() {
    for (minutes, again_is_adopted) in [(14, true), (16, false)] {
        let start = Instant::now();
        let mut model = after(&[Step::New(0), Step::Lose(0, 0)], start);
        assert_eq!(model.ledgers[0].oldest(), None, "its lane is gone");
        model.take(&Step::Done(0), start);
        let again = model.received(1, 0, true);
        let later = start + Duration::from_secs(60 * minutes);
        assert_eq!(model.take_in(1, again, later), again_is_adopted, "{minutes}");
    }
}

#[test]
fn a_run_that_outlasts_a_quarter_of_an_hour_is_not_forgotten_for_it() {
    let start = Instant::now();
    let long = start + Duration::from_secs(60 * 60);
    // Adopted: what comes of it is its heir's, however long it ran.
    let mut model = after(&[Step::New(0), Step::Lose(0, 0), Step::Again(1, 0)], start);
    model.minutes = 60;
    model.take(&Step::Done(0), start);
    assert_eq!(model.places[0], Place::Gone);
    // Delivered again only after it was done.
    let mut model = after(&[Step::New(0), Step::Lose(0, 0)], start);
    model.minutes = 60;
    model.take(&Step::Done(0), start);
    let again = model.received(1, 0, true);
    assert!(model.take_in(1, again, long + Duration::from_secs(60 * 14)));
}

#[test]
fn a_lane_lost_with_what_it_adopted_leaves_that_to_the_next_one() {
    let start = Instant::now();
    let adopted_twice =
        [Step::New(0), Step::Lose(0, 0), Step::Again(1, 0), Step::Lose(1, 0), Step::Again(0, 0)];
    let mut model = after(&adopted_twice, start);
    assert_eq!(model.running.len(), 1, "it runs once, however often it comes");
    model.take(&Step::Done(0), start);
    assert_eq!(model.places[0], Place::Gone);
    assert!(model.orphans.is_empty() && model.orphans.alone.is_empty());
}

#[test]
fn what_came_out_on_the_way_to_a_lane_that_is_lost_is_that_lane_s_to_keep() {
    let now = Instant::now();
    let mut model = after(&[Step::New(0), Step::Lose(0, 0), Step::Again(1, 0)], now);
    let orphan = model.ledgers[0].orphan(0).expect("its lane is gone");
    let work = model.running.pop_first().expect("it runs").1;
    model.orphans.keep(orphan, Outcome { work, verdict: Verdict::Ack }, now);
    let disowned = model.orphans.disown(orphan, now);
    assert!(disowned.fate.is_some());
    assert_eq!(model.orphans.home(orphan), Some(1));
}

#[test]
fn what_a_broken_consumer_knew_is_adopted_by_nobody() {
    for broken in [0, 1] {
        let now = Instant::now();
        let mut model = after(&[Step::New(0), Step::Lose(0, 0), Step::Again(1, 0)], now);
        model.orphans.forget_lane(broken);
        assert!(model.orphans.is_empty() && model.orphans.alone.is_empty());
    }
}

#[test]
fn what_came_of_orphans_is_let_go_the_oldest_first_where_their_payloads_are_too_long() {
    let (now, mut orphans) = (Instant::now(), Orphans::default());
    let received = |id: &str, redelivered| {
        let (id, body) = (id.to_owned(), vec![7; 100]);
        let envelope = SharedEnvelope::new(Bare { id, body, redelivered, header: None });
        Received { envelope, token: Token(1) }
    };
    let lost = ["runs", "oldest", "awaited", "newest"].map(|id| {
        let received = received(id, false);
        let orphan = orphans.add(received.clone(), identity(&received), now, 0, now);
        (orphan, Outcome { work: Work::of(received, 0), verdict: Verdict::Again })
    });
    orphans.adopt(lost[2].0, Heir { lane: 1, slot: 0, order: None });
    for (minute, (orphan, outcome)) in (1..).zip(lost).skip(1) {
        orphans.keep(orphan, outcome, now + Duration::from_secs(60 * minute));
    }
    for (bytes_max, kept) in [(300, &["runs", "oldest", "newest"][..]), (200, &["runs", "newest"])]
    {
        orphans.forget_beyond(bytes_max);
        let mut known = vec!["runs", "oldest", "newest"];
        known.retain(|id| {
            let again = received(id, true);
            orphans.find(&again, &identity(&again), now).is_some()
        });
        assert_eq!(known, kept, "{bytes_max}");
    }
    orphans.forget_beyond(0);
    assert_eq!(orphans.held.len(), 2, "what runs, and what its heir is about to take");
}

#[test]
fn a_redriven_copy_is_not_taken_for_the_message_that_it_was_made_of() {
    for (name, copy_is_adopted) in
        [(None, true), (Some(wire::GENERATION), false), (Some(wire::ATTEMPT), false)]
    {
        let (now, mut orphans) = (Instant::now(), Orphans::default());
        let received = |header, body| {
            let id = String::from("7");
            let envelope = SharedEnvelope::new(Bare { id, body, redelivered: true, header });
            Received { envelope, token: Token(1) }
        };
        let first = received(None, vec![7]);
        orphans.add(first.clone(), identity(&first), now, 0, now);
        let (again, other) = (received(name, vec![7]), received(name, vec![8]));
        let found = orphans.find(&again, &identity(&again), now);
        assert_eq!(found.is_some(), copy_is_adopted, "{name:?}");
        assert!(orphans.find(&other, &identity(&other), now).is_none(), "another payload");
    }
}
