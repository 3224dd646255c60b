//! A partition, its owners and their deaths, against a model that remembers everything.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::super::marks::{Place, TEXT_LENGTH_MAX};
use super::*;

const HERE: Place<'static> = Place { cluster: "c", group: "g", topic: "t", partition: 0 };

fn received(offsets: impl IntoIterator<Item = i64>) -> Offsets {
    let mut state = Offsets::default();
    offsets.into_iter().for_each(|offset| {
        state.receive(offset, offset);
    });
    state
}

fn moved(state: &Offsets, is_clean: bool) -> Offsets {
    let mark = state.mark(is_clean).expect("something was received");
    let text = mark.to_text(&HERE, TEXT_LENGTH_MAX);
    Offsets::new(Some(mark.base), Mark::from_text(&text, mark.base, &HERE))
}

#[test]
fn the_lowest_unfinished_is_committed_whatever_is_finished_above_it() {
    let mut state = received(0..5);
    assert!(state.finish(3) && state.finish(1));
    assert_eq!(state.base(), Some(0));
    assert!(state.finish(0));
    assert_eq!(state.base(), Some(2));
    assert!(state.finish(2) && state.finish(4));
    assert_eq!(state.base(), Some(5));
}

#[test]
fn gaps_of_compaction_and_transactions_hold_nothing_up() {
    let mut state = received([3, 7, 1_000_000]);
    assert!(state.finish(7) && state.finish(3));
    assert_eq!(state.base(), Some(1_000_000));
    assert!(!state.finish(8), "there is no such record");
    assert!(state.finish(1_000_000));
    assert_eq!(state.base(), Some(1_000_001));
}

#[test]
fn nothing_is_finished_twice_or_unseen() {
    let mut state = received(0..2);
    assert!(state.finish(0) && !state.finish(0) && !state.finish(9) && !state.finish(-1));
}

#[test]
fn a_new_owner_skips_what_was_finished_ahead() {
    let mut state = received(0..6);
    for offset in [1, 2, 4] {
        state.finish(offset);
    }
    let mut next = moved(&state, true);
    let delivered: Vec<i64> = (next.base().expect("a base")..8)
        .filter(|offset| next.receive(*offset, *offset) != Receipt::Skip)
        .collect();
    assert_eq!(delivered, [0, 3, 5, 6, 7]);
    for offset in [0, 3] {
        next.finish(offset);
    }
    assert_eq!(next.base(), Some(5), "what was skipped counts as finished");
}

#[test]
fn a_mark_about_another_log_is_not_believed() {
    let mut state = received(0..4);
    state.finish(2);
    let mut next = moved(&state, false);
    assert_eq!(next.receive(0, 99), Receipt::Deliver { crashes: 0, again: false });
    assert_ne!(next.receive(2, 2), Receipt::Skip, "the record at the base was another one");
}

#[test]
fn those_in_flight_at_a_crash_are_counted_and_no_others() {
    let mut state = received(0..4);
    state.finish(1);
    for crashes in 1..=3 {
        state = moved(&state, false);
        assert_eq!(state.receive(0, 0), Receipt::Deliver { crashes, again: false });
        assert_eq!(state.receive(1, 1), Receipt::Skip);
        assert_eq!(state.receive(2, 2), Receipt::Deliver { crashes, again: false });
        assert_eq!(state.receive(3, 3), Receipt::Deliver { crashes, again: false });
    }
    assert_eq!(state.receive(4, 4), Receipt::Deliver { crashes: 0, again: false });
    assert!(state.follows_a_death());
    let mut state = moved(&state, true);
    assert_eq!(state.receive(0, 0), Receipt::Deliver { crashes: 3, again: false }, "a clean move");
}

#[test]
fn what_is_finished_behind_a_stuck_record_takes_memory_within_a_bound() {
    let most = i64::try_from(WINDOW_MAX).expect("a small number");
    let mut state = received(0..most - 1);
    assert!(state.is_short());
    (1..most - 1).for_each(|offset| assert!(state.finish(offset)));
    state.receive(most, most);
    assert!(!state.is_short(), "nothing more is read");
    state.finish(0);
    assert!(state.is_short());
}

#[test]
fn a_process_that_was_away_did_not_die() {
    let mut state = received(0..2).kept_by(7, false);
    for _ in 0..3 {
        state = moved(&state, false).kept_by(7, false);
        assert_eq!(state.receive(0, 0), Receipt::Deliver { crashes: 0, again: false });
        assert!(!state.follows_a_death());
    }
    let mut state = moved(&state, false).kept_by(8, false);
    assert_eq!(state.receive(0, 0), Receipt::Deliver { crashes: 1, again: false });
}

#[test]
fn what_was_written_ahead_is_not_written_again_when_the_record_at_the_base_is_gone() {
    let mut state = received(0..4);
    state.finish(2);
    for (is_transactional, is_skipped) in [(true, true), (false, false)] {
        let mut next = moved(&state, true).kept_by(7, is_transactional);
        assert_ne!(next.receive(1, 1), Receipt::Skip);
        assert_eq!(next.receive(2, 2) == Receipt::Skip, is_skipped, "{is_transactional}");
    }
    // Another record at the base is another log, whatever would be written twice.
    let mut other = moved(&state, true).kept_by(7, true);
    assert_ne!(other.receive(0, 99), Receipt::Skip);
    assert_ne!(other.receive(2, 2), Receipt::Skip);
}

#[test]
fn what_was_finished_ahead_of_nothing_is_handled_again_rather_than_lost() {
    let mark = Mark { base: 5, next: 5, done: vec![Run { first: 8, last: 9 }], ..Mark::default() };
    for (is_transactional, is_skipped) in [(true, true), (false, false)] {
        let state = Offsets::new(Some(5), Some(mark.clone()));
        let mut state = state.kept_by(7, is_transactional);
        state.receive(5, 5);
        assert_eq!(state.receive(8, 8) == Receipt::Skip, is_skipped, "{is_transactional}");
    }
}

#[test]
fn what_was_given_back_is_delivered_when_it_is_read_again() {
    let mut state = received(0..4);
    state.finish(1);
    assert!(state.give_back(2) && !state.give_back(1));
    assert_eq!(state.rewind(), Some(0));
    let read: Vec<bool> = (0..4).map(|offset| state.receive(offset, 0) != Receipt::Skip).collect();
    assert_eq!(read, [false, false, true, false]);
}

#[test]
fn a_log_that_begins_again_is_read_again() {
    let mut state = received(0..10);
    (0..10).for_each(|offset| assert!(state.finish(offset)));
    assert_eq!(state.receive(0, 77), Receipt::Cut);
    assert_eq!((state.base(), state.next()), (Some(0), Some(0)), "what is committed goes back");
    let read: Vec<_> = (0..12).map(|offset| state.receive(offset, 77)).collect();
    assert!(read.iter().all(|it| *it == Receipt::Deliver { crashes: 0, again: false }), "{read:?}");
    let mut assigned = Offsets::new(Some(1_000), None);
    assert_eq!(
        assigned.receive(3, 77),
        Receipt::Cut,
        "what was committed is about an earlier topic"
    );
    assert_eq!(assigned.receive(3, 77), Receipt::Deliver { crashes: 0, again: false });
}

#[test]
fn what_lies_below_a_cut_stays_as_it_is() {
    let mut state = received(0..10);
    assert!(state.finish(1) && state.finish(2) && state.finish(6));
    assert_eq!(state.receive(5, 77), Receipt::Cut);
    let mark = state.mark(false).expect("something was received");
    assert_eq!((mark.base, mark.next, mark.done), (0, 5, vec![Run { first: 1, last: 2 }]));
    assert_eq!(state.receive(5, 77), Receipt::Deliver { crashes: 0, again: false });
}

#[test]
fn what_was_fetched_before_the_client_went_back_is_no_cut() {
    let mut state = received(0..4);
    state.give_back_all();
    assert_eq!(state.rewind(), Some(0));
    // Still from before.
    assert_ne!(state.receive(4, 4), Receipt::Cut);
    state.rewound();
    assert_ne!(state.receive(5, 5), Receipt::Cut);
    let again: Vec<_> = (0..6).map(|offset| state.receive(offset, offset)).collect();
    assert!(!again.contains(&Receipt::Cut), "{again:?}");
    assert_ne!(state.receive(6, 6), Receipt::Cut);
    assert_eq!(state.receive(1, 1), Receipt::Cut, "this one nobody asked for");
}

#[test]
fn what_is_settled_is_finished_by_its_transaction_alone() {
    let mut state = received(0..4);
    assert!(state.settle(0) && state.settle(2) && !state.settle(2));
    assert_eq!(state.mark(false).map(|mark| mark.base), Some(0), "nothing is finished yet");
    let first = state.mark_with(&BTreeSet::from([0]), false).expect("something was received");
    assert_eq!((first.base, first.done.len()), (1, 0));
    let both = state.mark_with(&BTreeSet::from([0, 2]), false).expect("something was received");
    assert_eq!((both.base, both.done[..].to_vec()), (1, vec![Run { first: 2, last: 2 }]));
    state.give_back_all();
    state.rewind();
    let read: Vec<bool> = (0..4).map(|offset| state.receive(offset, 0) != Receipt::Skip).collect();
    assert_eq!(read, [false, true, false, true], "what is settled is not delivered again");
    assert!(state.finish(0) && state.finish(2) && state.finish(1) && state.finish(3));
    assert_eq!(state.base(), Some(4));
}

#[test]
fn markers_at_the_end_of_a_log_are_passed() {
    let mut state = received(0..2);
    state.finish(0);
    state.pass(5);
    assert_eq!(state.base(), Some(1), "what is unfinished stays the base");
    state.finish(1);
    assert_eq!(state.base(), Some(5));
    state.pass(3);
    assert_eq!(state.base(), Some(5));
    assert_eq!(state.receive(5, 5), Receipt::Deliver { crashes: 0, again: false });
    let mut empty = Offsets::default();
    empty.pass(3);
    assert_eq!(empty.base(), Some(3), "a log of aborted transactions alone");
}

/// What may happen to a partition.
#[derive(Clone, Debug)]
enum Step {
    Read(usize),
    Finish(prop::sample::Index),
    Commit,
    Reopen,
    Move,
    Crash,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (1_usize..12).prop_map(Step::Read),
        14 => any::<prop::sample::Index>().prop_map(Step::Finish),
        4 => Just(Step::Commit),
        1 => Just(Step::Reopen),
        1 => Just(Step::Move),
        1 => Just(Step::Crash),
    ];
    prop::collection::vec(step, 0..40)
}

/// The log, what was committed last, and what has really happened.
struct World {
    log: Vec<i64>,
    state: Offsets,
    committed: (Option<i64>, String),
    out: BTreeSet<i64>,
    handled: BTreeMap<i64, u32>,
    /// Finished, as the present owner knows.
    known: BTreeSet<i64>,
    /// Those of them that the last commit says.
    safe: BTreeSet<i64>,
    position: i64,
}

impl World {
    fn new(gaps: &[u8]) -> Self {
        let log = gaps.iter().scan(0_i64, |offset, gap| {
            *offset += 1 + i64::from(*gap);
            Some(*offset)
        });
        Self {
            log: log.collect(),
            state: Offsets::default(),
            committed: (None, String::new()),
            out: BTreeSet::new(),
            handled: BTreeMap::new(),
            known: BTreeSet::new(),
            safe: BTreeSet::new(),
            position: 0,
        }
    }

    fn step(&mut self, step: &Step) -> Result<(), TestCaseError> {
        match step {
            Step::Read(count) => self.read(*count)?,
            Step::Finish(index) => self.finish(index),
            Step::Commit => self.commit(false)?,
            Step::Reopen => {
                self.state.give_back_all();
                self.out.clear();
                self.position = self.state.rewind().unwrap_or(0);
                self.state.rewound();
            }
            Step::Move => {
                self.state.give_back_all();
                self.commit(true)?;
                self.assign();
            }
            Step::Crash => self.assign(),
        }
        Ok(())
    }

    fn read(&mut self, count: usize) -> Result<(), TestCaseError> {
        let from = self.log.partition_point(|offset| *offset < self.position);
        for offset in self.log[from..].iter().copied().take(count).collect::<Vec<_>>() {
            self.position = offset + 1;
            match self.state.receive(offset, offset * 10) {
                Receipt::Deliver { .. } => {
                    prop_assert!(
                        !self.safe.contains(&offset),
                        "{} was finished and committed",
                        offset
                    );
                    prop_assert!(self.out.insert(offset), "{} is out twice", offset);
                }
                Receipt::Skip => prop_assert!(
                    self.handled.contains_key(&offset) || self.out.contains(&offset),
                    "{} was lost",
                    offset
                ),
                Receipt::Cut => prop_assert!(false, "{} was asked for", offset),
            }
        }
        Ok(())
    }

    fn finish(&mut self, index: &prop::sample::Index) {
        if self.out.is_empty() {
            return;
        }
        let offset = *index.get(&self.out.iter().copied().collect::<Vec<_>>());
        self.out.remove(&offset);
        assert!(self.state.finish(offset), "it was out");
        *self.handled.entry(offset).or_default() += 1;
        self.known.insert(offset);
    }

    fn commit(&mut self, is_clean: bool) -> Result<(), TestCaseError> {
        let Some(mark) = self.state.mark(is_clean) else { return Ok(()) };
        prop_assert!(Some(mark.base) >= self.committed.0, "it went back to {}", mark.base);
        let unhandled = self.log.iter().find(|offset| !self.handled.contains_key(*offset));
        prop_assert!(unhandled.is_none_or(|first| mark.base <= *first), "{} passed it", mark.base);
        if mark.fits(TEXT_LENGTH_MAX) {
            self.safe = self.known.clone();
            if mark.base_time.is_none() {
                // Nothing there shows that what is finished ahead is about this log.
                self.safe.split_off(&mark.base);
            }
        }
        self.committed = (Some(mark.base), mark.to_text(&HERE, TEXT_LENGTH_MAX));
        Ok(())
    }

    fn assign(&mut self) {
        let (base, text) = &self.committed;
        let mark = base.and_then(|base| Mark::from_text(text, base, &HERE));
        self.state = Offsets::new(*base, mark);
        self.out.clear();
        self.known = self.safe.clone();
        self.position = base.unwrap_or(0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    /// Whatever happens: nothing is lost, no commit goes back or passes unfinished work, and nothing that the
    /// last commit knew as finished is delivered again.
    #[test]
    fn a_partition_survives_its_owners(gaps in prop::collection::vec(0_u8..4, 1..30), steps in steps()) {
        let mut world = World::new(&gaps);
        for step in &steps {
            world.step(step)?;
        }
        world.step(&Step::Reopen)?;
        world.read(usize::MAX)?;
        for offset in world.out.clone() {
            world.state.finish(offset);
            world.handled.insert(offset, 1);
        }
        prop_assert_eq!(world.handled.len(), world.log.len(), "each was handled");
        prop_assert_eq!(world.state.base(), world.log.last().map(|last| last + 1));
    }
}
