//! What of a copy gives way where its properties do not fit into one frame of the connection.
//!
//! Owns the order in which it does: our own texts first, the user's headers last and the largest of them first, so
//! that a copy can always be made. Pure; never touches a payload, and never what attempts, age and waits are read from.

use std::collections::BTreeMap;

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};

use super::copies::{self, table_length};
use crate::wire::{CONSUMER, ERROR, ERROR_CLASS, ORIGIN, ORIGINAL_PREFIX, PREFIX};

/// A frame's own bytes, and those of a content header beside its properties.
const FRAME_OVERHEAD: usize = 8 + 14;
/// The header that says how many of the user's were left out, over all copies.
const LEFT_OUT: &str = "redeliver-original-left-out";
/// How much of a text is kept before anything else gives way.
const TEXT_KEPT: usize = 64;
/// What the server adds beside names: a death in `x-death`, first and last death, and a count of deliveries.
const ADDED: usize = 352;
/// How often it writes the queue's name there.
const ADDED_NAMES: usize = 4;

type Headers = BTreeMap<ShortString, AMQPValue>;

/// How many bytes the properties take in a frame.
pub(super) fn framed_length(properties: &BasicProperties) -> usize {
    copies::encoded_length(properties) + FRAME_OVERHEAD
}

/// How many bytes the server may add to the headers of what lies in a queue of this name.
///
/// A frame that it made too long for the connection closes that, again and again, as soon as it is delivered.
pub(super) fn added_in(queue: &str) -> usize {
    ADDED + ADDED_NAMES * queue.len()
}

/// The properties within `length_max` bytes of a frame, and how many of the user's headers were left out for it.
pub(super) fn fit(properties: BasicProperties, length_max: usize) -> (BasicProperties, usize) {
    let length = framed_length(&properties);
    let Some(table) = properties.headers().as_ref().filter(|_| length > length_max) else {
        return (properties, 0);
    };
    let others = length - table_length(table);
    let mut fitting =
        Fitting { headers: table.inner().clone(), length_max: length_max.saturating_sub(others) };
    let left_out = fitting.give_way();
    let headers = FieldTable::from(fitting.headers);
    (properties.with_headers(headers), left_out)
}

/// Headers on their way to a length.
struct Fitting {
    headers: Headers,
    length_max: usize,
}

impl Fitting {
    /// How many of the user's headers gave way.
    fn give_way(&mut self) -> usize {
        for name in [ERROR, ERROR_CLASS] {
            self.shorten(name, TEXT_KEPT);
        }
        self.remove(&[CONSUMER, ORIGIN]);
        let left_out = self.leave_out();
        // Names as long as names may be, and nothing of the user's left to give.
        self.remove(&[ERROR, ERROR_CLASS]);
        left_out
    }

    fn excess(&self) -> usize {
        let length: usize =
            self.headers.iter().map(|(name, value)| copies::entry_length(name, value)).sum();
        (4 + length).saturating_sub(self.length_max)
    }

    /// Cuts a text by what is too much, down to `kept` bytes.
    fn shorten(&mut self, name: &str, kept: usize) {
        let excess = self.excess();
        let Some(AMQPValue::LongString(text)) = self.headers.get_mut(name) else { return };
        let text_before = String::from_utf8_lossy(text.as_bytes()).into_owned();
        let mut end = text_before.len().saturating_sub(excess).max(kept).min(text_before.len());
        while !text_before.is_char_boundary(end) {
            end -= 1;
        }
        *text = text_before[..end].into();
    }

    fn remove(&mut self, names: &[&str]) {
        for name in names {
            if self.excess() > 0 {
                self.headers.remove(*name);
            }
        }
    }

    /// Leaves out the largest of the user's headers, one after the other, and says how many.
    fn leave_out(&mut self) -> usize {
        if self.excess() == 0 {
            return 0;
        }
        let before = self.left_out_before();
        // As long as it can get, so that there is room for it whatever the count will be.
        self.note_left_out(u64::MAX);
        let mut users: Vec<(usize, ShortString)> = (self.headers.iter())
            .filter(|(name, _)| is_users(name.as_str()))
            .map(|(name, value)| (copies::entry_length(name, value), name.clone()))
            .collect();
        users.sort_unstable();
        let mut left_out = 0;
        while self.excess() > 0
            && let Some((_, name)) = users.pop()
        {
            self.headers.remove(&name);
            left_out += 1;
        }
        self.note_left_out(before.saturating_add(left_out as u64));
        left_out
    }

    fn left_out_before(&self) -> u64 {
        match self.headers.get(LEFT_OUT) {
            Some(AMQPValue::LongString(text)) => {
                String::from_utf8_lossy(text.as_bytes()).parse().unwrap_or(0)
            }
            _ => 0,
        }
    }

    fn note_left_out(&mut self, count: u64) {
        self.headers.insert(LEFT_OUT.into(), AMQPValue::LongString(count.to_string().into()));
    }
}

/// Whether a header of a copy is not one of our stamps.
fn is_users(name: &str) -> bool {
    !name.starts_with(PREFIX) || (name.starts_with(ORIGINAL_PREFIX) && name != LEFT_OUT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{ATTEMPT, DEAD_AT, ID, REASON};

    fn properties(headers: &[(&str, usize)]) -> BasicProperties {
        let mut table = FieldTable::default();
        for (name, length) in headers {
            table.insert((*name).into(), AMQPValue::LongString("x".repeat(*length).into()));
        }
        BasicProperties::default().with_message_id("order-7".into()).with_headers(table)
    }

    /// The headers that are left, with the lengths of their texts.
    fn fitted(headers: &[(&str, usize)], length_max: usize) -> (Vec<(String, usize)>, usize) {
        let (fitted, left_out) = fit(properties(headers), length_max);
        assert!(framed_length(&fitted) <= length_max, "{} bytes", framed_length(&fitted));
        let left = fitted.headers().iter().flatten().map(|(name, value)| match value {
            AMQPValue::LongString(text) => (name.as_str().to_owned(), text.len()),
            other => panic!("{name}: {other:?}"),
        });
        (left.collect(), left_out)
    }

    fn named(headers: &[(&str, usize)]) -> Vec<(String, usize)> {
        headers.iter().map(|(name, length)| ((*name).to_owned(), *length)).collect()
    }

    #[test]
    fn what_fits_is_left_as_it_is_to_the_last_byte() {
        let headers = [("tenant", 3000), (ATTEMPT, 1)];
        let length = framed_length(&properties(&headers));
        assert_eq!(fitted(&headers, length), (named(&[(ATTEMPT, 1), ("tenant", 3000)]), 0));
        assert_eq!(fitted(&headers, length - 1).1, 1, "and not one byte more");
    }

    #[test]
    fn an_error_and_its_class_give_way_first_and_only_by_what_is_too_much() {
        let headers = [(ERROR, 1024), (ERROR_CLASS, 200), (ORIGIN, 40), ("tenant", 3000)];
        let length = framed_length(&properties(&headers));
        let (left, left_out) = fitted(&headers, length - 100);
        let expected = [(ERROR, 924), (ERROR_CLASS, 200), (ORIGIN, 40), ("tenant", 3000)];
        assert_eq!((left, left_out), (named(&expected), 0));
        let (left, left_out) = fitted(&headers, length - 1000);
        let expected = [(ERROR, 64), (ERROR_CLASS, 160), (ORIGIN, 40), ("tenant", 3000)];
        assert_eq!((left, left_out), (named(&expected), 0));
    }

    #[test]
    fn who_and_where_from_give_way_before_anything_of_the_users() {
        let headers = [(CONSUMER, 50), (ORIGIN, 40), (REASON, 9), ("tenant", 3000)];
        let length = framed_length(&properties(&headers));
        let left = fitted(&headers, length - 1);
        assert_eq!(left, (named(&[(ORIGIN, 40), (REASON, 9), ("tenant", 3000)]), 0));
        let left = fitted(&headers, length - 80);
        assert_eq!(left, (named(&[(REASON, 9), ("tenant", 3000)]), 0));
    }

    #[test]
    fn in_the_end_the_users_largest_headers_are_left_out_and_counted() {
        let users = [("large", 3000), ("larger", 3001), ("tenant", 4), ("traceparent", 55)];
        let (left, left_out) = fitted(&[&users[..], &[(ID, 7)]].concat(), 4096);
        let names: Vec<&str> = left.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["large", ID, LEFT_OUT, "tenant", "traceparent"]);
        assert_eq!(left_out, 1);
    }

    #[test]
    fn the_count_goes_on_over_copies_and_believes_no_stranger() {
        for (before, after) in
            [("2", "3"), ("many", "1"), ("18446744073709551615", "18446744073709551615")]
        {
            let mut copy = properties(&[("tenant", 9000)]);
            let mut headers = copy.headers().clone().expect("they were given");
            headers.insert(LEFT_OUT.into(), AMQPValue::LongString(before.into()));
            copy = copy.with_headers(headers);
            let (fitted, left_out) = fit(copy, 4096);
            let count = fitted.headers().as_ref().and_then(|headers| headers.inner().get(LEFT_OUT));
            assert_eq!(count, Some(&AMQPValue::LongString(after.into())), "{before}");
            assert_eq!(left_out, 1);
        }
    }

    #[test]
    fn the_least_frame_of_all_takes_a_copy_whose_every_property_is_as_long_as_it_may_be() {
        let longest = || ShortString::from("x".repeat(255));
        let stamps = [
            (ID, 255),
            (ATTEMPT, 10),
            ("redeliver-first-seen", 24),
            ("redeliver-due", 24),
            ("redeliver-rest", 13),
            ("redeliver-delay", 13),
            ("redeliver-expires", 24),
            ("redeliver-generation", 10),
            ("redeliver-hops", 10),
            ("redeliver-forced", 1),
            (ORIGIN, 512),
            (ERROR, 1024),
            ("redeliver-original-user-id", 255),
            ("tenant", 100_000),
        ];
        let copy = properties(&stamps)
            .with_message_id(longest())
            .with_content_type(longest())
            .with_content_encoding(longest())
            .with_correlation_id(longest())
            .with_reply_to(longest())
            .with_type(longest())
            .with_app_id(longest())
            .with_cluster_id(longest())
            .with_delivery_mode(2)
            .with_priority(9)
            .with_timestamp(7);
        let room = 4096 - added_in(&"q".repeat(255));
        let (copy, left_out) = fit(copy, room);
        assert!(framed_length(&copy) <= room, "{} bytes of {room}", framed_length(&copy));
        assert_eq!(left_out, 2);
        let headers = copy.headers().as_ref().expect("some are left");
        assert!(headers.contains_key(ID) && headers.contains_key("redeliver-first-seen"));
    }

    #[test]
    fn a_dead_letter_of_four_kilobytes_keeps_its_reason_and_its_time() {
        let (left, _) = fitted(
            &[(REASON, 11), (DEAD_AT, 24), (ERROR, 1024), (ERROR_CLASS, 1024), ("a", 9000)],
            4096,
        );
        let kept = |name: &str| left.iter().any(|(left, _)| left == name);
        assert!(kept(REASON) && kept(DEAD_AT) && kept(ERROR), "{left:?}");
    }
}
