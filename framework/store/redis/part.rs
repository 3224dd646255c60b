//! Questions of a batch as bytes, one or those of a letter: of each its keys, then its arguments, in one piece of memory.
//!
//! Owns what the records of claims and locks look like from here; scripts/prelude.lua, scripts/claim_record.lua and
//! scripts/lock_record.lua are the other side of it.

use crate::store::{ClaimAsk, ClaimKey, Ending, LockAsk, Owner};

use super::keys::Keys;
use super::lock::{exact, milliseconds};

/// Keys and arguments of the longest question: what a claim and a lock end with, where the claim's record is gone and
/// the ending is not the common one.
const PIECES_MAX: usize = 6;
/// What one of many needs: they are claims, and their ids are not long.
const BYTES_OF_MANY: usize = 256;
/// Numbers that a question shares with its neighbours, at most.
const RULES_MAX: usize = 7;
/// What most questions need.
const BYTES: usize = 512;
/// What stands in front of an owner's length in every record.
const HEAD_BYTES: usize = 26;

pub(super) type Rules = [u64; RULES_MAX];

/// What is said of a claim that ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Said {
    /// Whose it is. That is enough while there is a record of it.
    Owner,
    /// Everything that its record is written anew with, where it is gone.
    Whole,
}

/// One question of a batch, or several that share their rules.
pub(super) struct Part {
    bytes: Vec<u8>,
    /// Where each piece ends: those of the first question, then those of the next.
    ends: Vec<usize>,
    /// How many questions.
    count: usize,
    /// What is said once for all neighbours that share it; what is not needed is 0.
    pub(super) rules: Rules,
    /// The largest fence that whoever asks has seen.
    pub(super) seen: u64,
}

impl Part {
    pub(super) fn claim(keys: &Keys, ask: &ClaimAsk<'_>) -> Self {
        let mut part = Self::new(claim_rules(ask), ask.seen.0);
        part.add_claim(keys, ask);
        part
    }

    /// Of claims that share their rules.
    pub(super) fn claims(keys: &Keys, asks: &[ClaimAsk<'_>]) -> Self {
        let rules = asks.first().map(claim_rules).unwrap_or_default();
        let seen = asks.iter().map(|ask| ask.seen.0).max();
        let mut part = Self::of_many(asks.len(), rules, seen.unwrap_or_default());
        asks.iter().for_each(|ask| part.add_claim(keys, ask));
        part
    }

    /// Of claims that end in the common way.
    pub(super) fn completions(keys: &Keys, claims: &[(&ClaimKey, &Owner)], keep: u64) -> Self {
        let (ending, said) = (Ending::Complete(None), Said::Owner);
        let mut part = Self::of_many(claims.len(), end_rules(keep, &ending, said), 0);
        for claim in claims {
            part.add(|bytes| keys.claim(bytes, claim.0));
            part.add_end(*claim, &ending, said);
        }
        part
    }

    pub(super) fn admit(keys: &Keys, claim: &ClaimAsk<'_>, lock: &LockAsk<'_>) -> Self {
        let [lease, keep, force, waits, ..] = claim_rules(claim);
        let [lock_lease, fair, lock_waits, ..] = lock_rules(lock);
        let rules = [lease, keep, force, waits, lock_lease, fair, lock_waits];
        let mut part = Self::new(rules, claim.seen.0.max(lock.seen.0));
        part.add(|bytes| keys.claim(bytes, claim.key));
        part.add(|bytes| keys.lock(bytes, lock.key));
        part.add(|bytes| claim_tail(bytes, claim));
        part.add(|bytes| lock_tail(bytes, lock));
        part
    }

    pub(super) fn acquire(keys: &Keys, ask: &LockAsk<'_>) -> Self {
        let mut part = Self::new(lock_rules(ask), ask.seen.0);
        part.add_lock_keys(keys, ask.key);
        part.add(|bytes| lock_tail(bytes, ask));
        part
    }

    pub(super) fn end(
        keys: &Keys,
        (key, owner): (&ClaimKey, &Owner),
        ending: &Ending<'_>,
        keep: u64,
        said: Said,
    ) -> Self {
        let mut part = Self::new(end_rules(keep, ending, said), 0);
        part.add(|bytes| keys.claim(bytes, key));
        part.add_end((key, owner), ending, said);
        part
    }

    pub(super) fn finish(
        keys: &Keys,
        claim: (&ClaimKey, &Owner),
        ending: &Ending<'_>,
        keep: u64,
        lock: (&str, &Owner),
        said: Said,
    ) -> Self {
        let mut part = Self::new(end_rules(keep, ending, said), 0);
        part.add(|bytes| keys.claim(bytes, claim.0));
        part.add(|bytes| keys.lock(bytes, lock.0));
        part.add(|bytes| sized(bytes, lock.1.as_str()));
        part.add_end(claim, ending, said);
        part
    }

    pub(super) fn release(keys: &Keys, key: &str, owner: &Owner) -> Self {
        let mut part = Self::new(Rules::default(), 0);
        part.add_lock_keys(keys, key);
        part.add(|bytes| sized(bytes, owner.as_str()));
        part
    }

    fn new(rules: Rules, seen: u64) -> Self {
        let (bytes, ends) = (Vec::with_capacity(BYTES), Vec::with_capacity(PIECES_MAX));
        Self { bytes, ends, count: 1, rules, seen: exact(seen) }
    }

    fn of_many(count: usize, rules: Rules, seen: u64) -> Self {
        let bytes = Vec::with_capacity(count * BYTES_OF_MANY);
        let ends = Vec::with_capacity(count * PIECES_MAX);
        Self { bytes, ends, count, rules, seen: exact(seen) }
    }

    fn add(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        write(&mut self.bytes);
        self.ends.push(self.bytes.len());
    }

    fn add_claim(&mut self, keys: &Keys, ask: &ClaimAsk<'_>) {
        self.add(|bytes| keys.claim(bytes, ask.key));
        self.add(|bytes| claim_tail(bytes, ask));
    }

    fn add_lock_keys(&mut self, keys: &Keys, key: &str) {
        let start = self.bytes.len();
        self.add(|bytes| keys.lock(bytes, key));
        let end = self.bytes.len();
        for suffix in Keys::OF_A_QUEUE {
            self.add(|bytes| {
                bytes.extend_from_within(start..end);
                bytes.extend_from_slice(suffix);
            });
        }
    }

    /// Of a claim; the common ending is said by the rules.
    fn add_end(&mut self, (key, owner): (&ClaimKey, &Owner), ending: &Ending<'_>, said: Said) {
        self.add(|bytes| sized(bytes, owner.as_str()));
        if said == Said::Whole {
            self.add(|bytes| behind_owner(bytes, key, 0, ""));
        }
        if !is_common(ending) {
            self.add(|bytes| write_ending(bytes, ending));
        }
    }

    /// How many questions it has.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// The keys or arguments of this number of all its questions, in their order.
    pub(super) fn of_each(&self, number: usize) -> impl Iterator<Item = &[u8]> {
        (number..self.ends.len()).step_by(self.pieces_of_each()).map(|place| self.piece(place))
    }

    /// The arguments of all its questions, each of which has so many keys in front.
    pub(super) fn arguments(&self, keys: usize) -> impl Iterator<Item = &[u8]> {
        let of_each = self.pieces_of_each();
        (0..self.ends.len())
            .filter(move |place| place % of_each >= keys)
            .map(|place| self.piece(place))
    }

    /// One of its keys and arguments; those of the first question come first.
    pub(super) fn piece(&self, place: usize) -> &[u8] {
        let start = place.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.bytes[start..self.ends[place]]
    }

    fn pieces_of_each(&self) -> usize {
        (self.ends.len() / self.count.max(1)).max(1)
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }
}

/// What a claim shares with its neighbours.
pub(super) fn claim_rules(ask: &ClaimAsk<'_>) -> Rules {
    let (lease, keep) = (milliseconds(ask.lease), milliseconds(ask.keep));
    [lease, keep, ask.force.into(), ask.waits.into(), 0, 0, 0]
}

fn lock_rules(ask: &LockAsk<'_>) -> Rules {
    [milliseconds(ask.lease), ask.fair.into(), ask.waits.into(), 0, 0, 0, 0]
}

fn end_rules(keep: u64, ending: &Ending<'_>, said: Said) -> Rules {
    [keep, is_common(ending).into(), (said == Said::Whole).into(), 0, 0, 0, 0]
}

fn is_common(ending: &Ending<'_>) -> bool {
    matches!(ending, Ending::Complete(None))
}

/// What stands behind the head of a claim's record.
fn claim_tail(bytes: &mut Vec<u8>, ask: &ClaimAsk<'_>) {
    sized(bytes, ask.owner.as_str());
    behind_owner(bytes, ask.key, ask.attempts, ask.holder);
}

/// What stands behind the head of a lock's record, but for since when it is held.
fn lock_tail(bytes: &mut Vec<u8>, ask: &LockAsk<'_>) {
    sized(bytes, ask.owner.as_str());
    sized(bytes, ask.holder);
    // Nobody had it taken away.
    sized(bytes, "");
}

fn behind_owner(bytes: &mut Vec<u8>, key: &ClaimKey, attempts: u32, holder: &str) {
    let takeovers = 0u32;
    for number in [attempts, takeovers, key.generation] {
        bytes.extend_from_slice(&number.to_be_bytes());
    }
    bytes.extend_from_slice(&key.fingerprint.0);
    sized(bytes, holder);
    // Nobody waits for its end.
    sized(bytes, "");
}

/// A letter, and what belongs to it.
fn write_ending(bytes: &mut Vec<u8>, ending: &Ending<'_>) {
    match *ending {
        Ending::Complete(None) => bytes.push(b'c'),
        Ending::Complete(Some(result)) => {
            bytes.push(b't');
            bytes.extend_from_slice(result);
        }
        Ending::Dead(reason) => {
            bytes.push(b'd');
            bytes.extend_from_slice(reason.as_bytes());
        }
        Ending::Release => bytes.push(b'r'),
        Ending::Abandon => bytes.push(b'a'),
        Ending::Failed { attempts, due_in, copied } => {
            let due_in = u64::try_from(due_in.as_millis()).unwrap_or(u64::MAX).min(1 << 42);
            bytes.push(b'f');
            bytes.extend_from_slice(&attempts.to_be_bytes());
            bytes.extend_from_slice(&(due_in as f64).to_be_bytes());
            bytes.push(copied.into());
        }
    }
}

/// With its length in front.
pub(super) fn sized(bytes: &mut Vec<u8>, text: &str) {
    // No record is near that long: 512 MiB is the most that Redis keeps in one.
    let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(text.as_bytes());
}

/// Whether a record of either kind is of this owner.
pub(super) fn is_of(record: &[u8], owner: &Owner) -> bool {
    let mut who = Vec::new();
    sized(&mut who, owner.as_str());
    record.get(HEAD_BYTES..).is_some_and(|rest| rest.starts_with(&who))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::store::Fingerprint;

    #[test]
    fn pieces_come_out_as_they_went_in() {
        let part = Part::release(&Keys::new("p"), "a", &Owner::from("me"));
        let keys: Vec<&[u8]> = (0..3).map(|number| part.piece(number)).collect();
        assert_eq!(keys.concat(), b"p:lock:{a}p:lock:{a}:queuep:lock:{a}:beats");
        let arguments: Vec<&[u8]> = part.arguments(3).collect();
        assert_eq!(arguments, [b"\0\0\0\x02me"]);
        assert_eq!(part.len(), keys.concat().len() + arguments.concat().len());
    }

    #[test]
    fn of_several_questions_the_keys_come_out_together_and_the_arguments_too() {
        let fingerprint = Fingerprint::of(b"{}");
        let key =
            |id: &str| ClaimKey { scope: "s".into(), id: id.into(), fingerprint, generation: 0 };
        let (a, b, one, other) = (key("a"), key("b"), Owner::from("one"), Owner::from("two"));
        let keys = Keys::new("p");
        let part = Part::completions(&keys, &[(&a, &one), (&b, &other)], 7);
        assert_eq!((part.count(), part.rules[..3].to_vec()), (2, vec![7, 1, 0]));
        let expected = [keys.of_claim(&a), keys.of_claim(&b)];
        assert!(part.of_each(0).eq(expected.iter().map(|key| &key[..])));
        let owners: [&[u8]; 2] = [b"\0\0\0\x03one", b"\0\0\0\x03two"];
        assert!(part.arguments(1).eq(owners));
    }

    #[test]
    fn the_longest_question_has_room() {
        let key = ClaimKey {
            scope: "orders".into(),
            id: "1".into(),
            fingerprint: Fingerprint::of(b"payload"),
            generation: 0,
        };
        let (keys, owner) = (Keys::new("p"), Owner::from("me"));
        let ending = Ending::Failed { attempts: 1, due_in: Duration::ZERO, copied: false };
        let part = Part::finish(&keys, (&key, &owner), &ending, 1, ("a", &owner), Said::Whole);
        assert_eq!(part.ends.len(), PIECES_MAX);
        assert_eq!(part.piece(1), b"p:lock:{a}");
        assert_eq!(part.piece(5).first(), Some(&b'f'));
    }

    #[test]
    fn an_owner_is_not_taken_for_one_that_begins_alike() {
        let record = [&[0; HEAD_BYTES][..], b"\0\0\0\x03me2 and more"].concat();
        assert!(is_of(&record, &Owner::from("me2")));
        assert!(!is_of(&record, &Owner::from("me")));
        assert!(!is_of(&record[..HEAD_BYTES + 3], &Owner::from("me2")));
        assert!(!is_of(b"", &Owner::from("me")));
    }
}
