//! What is written beside a committed offset: what is finished above it, and what was in flight.
//!
//! Pure, and hostile when read: anything that is not exactly what this group would have written here is no mark.
//! MirrorMaker copies the text beside translated offsets, and other tools write texts of their own; so the tag
//! covers cluster, group, topic, partition and offset. The record at the base is known by its timestamp, because
//! the client tells neither the topic's id nor the leader's epoch.

use sha2::{Digest, Sha256};

/// The broker takes 4,096 bytes unless told otherwise (`offset.metadata.max.bytes`).
pub(super) const TEXT_LENGTH_MAX: usize = 4000;
/// What every text of ours begins with: the encoding's version.
const VERSION: &str = "redeliver1:";
const TAG_LENGTH: usize = 8;
/// At most so many bytes stand before and between runs and crashes.
const HEAD_LENGTH_MAX: usize = 50;
/// At most so many records are written down as having been in flight at crashes.
const CRASHES_MAX: usize = 256;
/// No two offsets of one mark are further apart.
const DISTANCE_MAX: u64 = 1 << 40;

/// Offsets from `first` to and with `last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) first: i64,
    pub(super) last: i64,
}

/// A committed offset with what is known beyond it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Mark {
    /// The offset to commit: the lowest that is not finished.
    pub(super) base: i64,
    /// The timestamp of the record there, if it was received.
    pub(super) base_time: Option<i64>,
    /// Behind the highest offset that was received.
    pub(super) next: i64,
    /// Nobody works on what is not finished.
    pub(super) is_clean: bool,
    /// Which process wrote it; 0 if nobody says.
    pub(super) owner: u64,
    /// What is finished above the base, ascending.
    pub(super) done: Vec<Run>,
    /// How many processes died while they had a record, ascending by offset.
    pub(super) crashes: Vec<(i64, u32)>,
}

/// Where a mark is valid.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    pub(super) cluster: &'a str,
    pub(super) group: &'a str,
    pub(super) topic: &'a str,
    pub(super) partition: i32,
}

impl Mark {
    /// Whether the offset alone says everything.
    pub(super) fn is_bare(&self) -> bool {
        self.done.is_empty() && self.crashes.is_empty() && self.next <= self.base
    }

    /// The offsets that were received and not finished, and those between them.
    pub(super) fn in_flight(&self) -> impl Iterator<Item = i64> {
        let mut done = self.done.iter().peekable();
        (self.base..self.next).filter(move |offset| {
            while done.peek().is_some_and(|run| run.last < *offset) {
                done.next();
            }
            done.peek().is_none_or(|run| run.first > *offset)
        })
    }

    /// The text to commit, of at most so many bytes. What does not fit is left out, from the highest offsets down: it
    /// costs repetitions.
    pub(super) fn to_text(&self, place: &Place<'_>, length_max: usize) -> String {
        if self.is_bare() {
            return String::new();
        }
        let (payload, _) = self.payload(length_max);
        let mut bytes = tag(place, self.base, &payload).to_vec();
        bytes.extend(payload);
        let text = format!("{VERSION}{}", sixty_four::encode(&bytes));
        Some(text).filter(|text| text.len() <= length_max).unwrap_or_default()
    }

    /// Whether a text of so many bytes holds everything that is finished above the base.
    pub(super) fn fits(&self, length_max: usize) -> bool {
        self.payload(length_max).1
    }

    /// Reads what was committed beside `base`; `None` for anything else than a mark made for this very place.
    pub(super) fn from_text(text: &str, base: i64, place: &Place<'_>) -> Option<Self> {
        let text = text.strip_prefix(VERSION).filter(|text| text.len() <= TEXT_LENGTH_MAX)?;
        let bytes = sixty_four::decode(text)?;
        let (found, payload) = bytes.split_at_checked(TAG_LENGTH)?;
        if found != tag(place, base, payload) {
            return None;
        }
        Self::read(base, &mut Reader(payload))
    }

    fn payload(&self, length_max: usize) -> (Vec<u8>, bool) {
        let bytes_max = length_max.saturating_sub(VERSION.len()) / 4 * 3;
        let room = bytes_max.saturating_sub(TAG_LENGTH + HEAD_LENGTH_MAX);
        let (mut crashes, mut crash_count) = (Vec::new(), 0_u64);
        let mut last = self.base;
        for (offset, count) in self.crashes.iter().take(CRASHES_MAX) {
            let before = crashes.len();
            push(&mut crashes, offset.abs_diff(last));
            push(&mut crashes, (*count).into());
            // The other half is for the runs.
            if crashes.len() > room / 2 {
                crashes.truncate(before);
                break;
            }
            (last, crash_count) = (*offset, crash_count + 1);
        }
        let (mut runs, mut run_count) = (Vec::new(), 0_u64);
        let mut last = self.base;
        for run in &self.done {
            let before = runs.len();
            push(&mut runs, run.first.abs_diff(last));
            push(&mut runs, run.last.abs_diff(run.first));
            if runs.len() + crashes.len() > room {
                runs.truncate(before);
                break;
            }
            (last, run_count) = (run.last, run_count + 1);
        }
        let fits = run_count == self.done.len() as u64;
        // Where runs are left out, what is finished there must not be taken for in flight.
        let next = if fits { self.next } else { last + 1 };
        let mut flags = u8::from(self.is_clean) | u8::from(self.base_time.is_some()) << 1;
        flags |= u8::from(self.owner != 0) << 2;
        let mut bytes = vec![flags];
        if self.owner != 0 {
            bytes.extend(self.owner.to_be_bytes());
        }
        push(&mut bytes, self.base_time.unwrap_or(0).cast_unsigned());
        push(&mut bytes, next.max(self.base).abs_diff(self.base));
        push(&mut bytes, run_count);
        bytes.extend(runs);
        push(&mut bytes, crash_count);
        bytes.extend(crashes);
        (bytes, fits)
    }

    fn read(base: i64, reader: &mut Reader<'_>) -> Option<Self> {
        let flags = reader.byte().filter(|flags| *flags < 8)?;
        let (is_clean, has_time) = (flags & 1 != 0, flags & 2 != 0);
        let mut owner = 0;
        if flags & 4 != 0 {
            for _ in 0..size_of::<u64>() {
                owner = owner << 8 | u64::from(reader.byte()?);
            }
        }
        let base_time = Some(reader.number()?.cast_signed()).filter(|_| has_time);
        let next = reader.after(base)?;
        let (mut done, mut last) = (Vec::new(), base);
        for _ in 0..reader.count()? {
            let first = reader.after(last)?;
            last = reader.after(first)?;
            done.push(Run { first, last });
        }
        let (mut crashes, mut last) = (Vec::new(), base);
        for _ in 0..reader.count()? {
            last = reader.after(last)?;
            crashes.push((last, u32::try_from(reader.number()?).ok()?));
        }
        reader.0.is_empty().then_some(Self {
            base,
            base_time,
            next,
            is_clean,
            owner,
            done,
            crashes,
        })
    }
}

fn tag(place: &Place<'_>, base: i64, payload: &[u8]) -> [u8; TAG_LENGTH] {
    let mut hash = Sha256::new();
    for part in [VERSION, place.cluster, place.group, place.topic] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.update(place.partition.to_be_bytes());
    hash.update(base.to_be_bytes());
    hash.update(payload);
    let mut tag = [0; TAG_LENGTH];
    tag.copy_from_slice(&hash.finalize()[..TAG_LENGTH]);
    tag
}

/// Seven bits a byte, the lowest first.
fn push(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn number(&mut self) -> Option<u64> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(number);
            }
        }
        None
    }

    /// A number of things of at least two bytes each.
    fn count(&mut self) -> Option<u64> {
        self.number().filter(|count| *count <= self.0.len() as u64 / 2)
    }

    /// The offset that stands so far behind `offset`.
    fn after(&mut self, offset: i64) -> Option<i64> {
        let distance = self.number().filter(|distance| *distance < DISTANCE_MAX)?;
        offset.checked_add_unsigned(distance)
    }
}

/// Six bits a character, in the alphabet of RFC 4648 section 5, without padding.
mod sixty_four {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

    pub(super) fn encode(bytes: &[u8]) -> String {
        let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
        for chunk in bytes.chunks(3) {
            let mut bits = [0_u8; 4];
            bits[1..=chunk.len()].copy_from_slice(chunk);
            let bits = u32::from_be_bytes(bits);
            for character in 0..=chunk.len() {
                let index = bits >> (18 - 6 * character) & 0x3f;
                text.push(ALPHABET[index as usize].into());
            }
        }
        text
    }

    pub(super) fn decode(text: &str) -> Option<Vec<u8>> {
        let mut bytes = Vec::with_capacity(text.len() / 4 * 3 + 2);
        for chunk in text.as_bytes().chunks(4) {
            let mut bits = 0_u32;
            for (position, character) in chunk.iter().enumerate() {
                let value = ALPHABET.iter().position(|known| known == character)?;
                bits |= (value as u32) << (18 - 6 * position);
            }
            bytes.extend(&bits.to_be_bytes()[1..chunk.len()]);
        }
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HERE: Place<'static> =
        Place { cluster: "c", group: "billing", topic: "orders", partition: 3 };

    fn mark(runs: &[(i64, i64)]) -> Mark {
        let done: Vec<Run> =
            runs.iter().map(|(first, last)| Run { first: *first, last: *last }).collect();
        let next = done.last().map_or(20, |run| run.last + 9);
        Mark {
            base: 10,
            base_time: Some(1_700_000_000_123),
            next,
            is_clean: false,
            owner: 0,
            done,
            crashes: vec![(10, 2)],
        }
    }

    #[test]
    fn what_was_written_is_read() {
        let bare = mark(&[(11, 11), (15, 40), (1_000_000, 1_000_000)]);
        let text = bare.to_text(&HERE, TEXT_LENGTH_MAX);
        assert_eq!(Mark::from_text(&text, 10, &HERE), Some(bare));
        assert!(text.len() < 60, "{text}");
        let owned = Mark { owner: u64::MAX - 7, ..mark(&[(11, 11)]) };
        let text = owned.to_text(&HERE, TEXT_LENGTH_MAX);
        assert_eq!(Mark::from_text(&text, 10, &HERE), Some(owned));
    }

    #[test]
    fn a_mark_of_another_place_is_no_mark() {
        let text = mark(&[(12, 14)]).to_text(&HERE, TEXT_LENGTH_MAX);
        let elsewhere = [
            Place { cluster: "d", ..HERE },
            Place { group: "audit", ..HERE },
            Place { topic: "order", ..HERE },
            Place { partition: 4, ..HERE },
        ];
        for place in elsewhere {
            assert_eq!(Mark::from_text(&text, 10, &place), None, "{place:?}");
        }
        assert_eq!(Mark::from_text(&text, 11, &HERE), None, "a translated offset");
    }

    #[test]
    fn nothing_in_flight_is_an_empty_text() {
        let bare = Mark { base: 7, next: 7, ..Mark::default() };
        assert_eq!(bare.to_text(&HERE, TEXT_LENGTH_MAX), "");
        assert_eq!(Mark::from_text("", 7, &HERE), None);
    }

    #[test]
    fn what_does_not_fit_is_left_out_from_above() {
        let runs: Vec<(i64, i64)> = (0..5_000).map(|n| (12 + n * 700, 12 + n * 700)).collect();
        let mark = mark(&runs);
        let text = mark.to_text(&HERE, TEXT_LENGTH_MAX);
        assert!(text.len() <= TEXT_LENGTH_MAX, "{}", text.len());
        let read = Mark::from_text(&text, 10, &HERE).expect("it can be read");
        assert!(!mark.fits(TEXT_LENGTH_MAX) && read.done.len() > 500, "{} runs", read.done.len());
        assert_eq!(read.done[..], mark.done[..read.done.len()]);
        assert_eq!(read.next, read.done[read.done.len() - 1].last + 1);
    }

    #[test]
    fn a_broker_that_takes_little_gets_little() {
        let runs: Vec<(i64, i64)> = (0..100).map(|n| (12 + n * 2, 12 + n * 2)).collect();
        let crashes = (0..100).map(|n| (11 + n * 2, 1)).collect();
        let mark = Mark { crashes, ..mark(&runs) };
        for length_max in [0, 10, 40, 64, 128, 512] {
            let text = mark.to_text(&HERE, length_max);
            assert!(text.len() <= length_max, "{} for {length_max}", text.len());
            let read = Mark::from_text(&text, 10, &HERE);
            assert_eq!(read.is_some(), length_max >= 40, "{length_max}");
            let read = read.unwrap_or_default();
            assert!(!mark.fits(length_max) && mark.done.starts_with(&read.done), "{length_max}");
        }
    }

    #[test]
    fn those_in_flight_are_what_is_not_finished() {
        let mark = Mark { next: 16, ..mark(&[(11, 12), (14, 14)]) };
        assert_eq!(mark.in_flight().collect::<Vec<_>>(), [10, 13, 15]);
    }

    proptest! {
        #[test]
        fn bytes_come_back_from_their_text(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            prop_assert_eq!(sixty_four::decode(&sixty_four::encode(&bytes)), Some(bytes));
        }

        #[test]
        fn no_text_is_read_but_our_own(text in "(redeliver1:)?[A-Za-z0-9_-]{0,80}") {
            prop_assert_eq!(Mark::from_text(&text, 10, &HERE), None);
        }
    }
}
