//! Durations and sizes as people write them: `"250ms"`, `"1h30m"`, `"64KiB"`; counts as whole numbers.
//!
//! Everything is refused that could be read in two ways: a number without a unit, `"16MB"`, `5.7`.

use std::fmt;
use std::marker::PhantomData;
use std::num::NonZeroU64;
use std::time::Duration;

use serde::de::{self, Deserialize, Deserializer, Visitor};

/// No duration is longer: a century, so that adding one to a point in time never overflows.
const DURATION_MAX: Duration = Duration::from_secs(36_500 * 86_400);
/// No size is larger than what a TOML integer could say.
const SIZE_MAX: u64 = i64::MAX as u64;

/// Milliseconds of each unit, largest first: the order in which they must be written.
const DURATION_UNITS: [(&str, u64); 5] =
    [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];
const SIZE_UNITS: [(&str, u64); 4] =
    [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// Reads a duration such as `"250ms"`, `"5m"` or `"1h30m"`.
///
/// Units are `ms`, `s`, `m`, `h` and `d`, larger ones first, each at most once.
///
/// # Errors
/// Says what is wrong with the text, in words that can follow its name: `is "5", which has no unit; ...`.
///
/// ```
/// use redeliver::config::units::duration_of;
/// use std::time::Duration;
///
/// assert_eq!(duration_of("1h30m"), Ok(Duration::from_secs(5_400)));
/// assert!(duration_of("5").is_err());
/// ```
pub fn duration_of(text: &str) -> Result<Duration, String> {
    const HINT: &str = "write a duration like \"250ms\", \"5m\" or \"1h30m\" (ms, s, m, h, d)";
    let mut total = 0_u64;
    let mut units = DURATION_UNITS.iter();
    let mut rest = text;
    loop {
        let (number, unit, tail) = step(rest);
        let value = number.ok_or_else(|| format!("is {text:?}, which is no duration; {HINT}"))?;
        if unit.is_empty() {
            return Err(format!("is {text:?}, which has no unit; {HINT}"));
        }
        // The iterator only moves on, so a unit that comes twice or after a smaller one is not found.
        let (_, scale) = units.find(|(name, _)| *name == unit).ok_or_else(|| {
            format!("is {text:?}, where {unit:?} is no unit or not in its place; {HINT}")
        })?;
        total = value
            .checked_mul(*scale)
            .and_then(|part| total.checked_add(part))
            .filter(|total| Duration::from_millis(*total) <= DURATION_MAX)
            .ok_or_else(|| format!("is {text:?}, which is longer than a century"))?;
        rest = tail;
        if rest.is_empty() {
            return Ok(Duration::from_millis(total));
        }
    }
}

/// Reads a size such as `"16MiB"`, in bytes.
///
/// # Errors
/// Says what is wrong with the text, in words that can follow its name.
///
/// ```
/// use redeliver::config::units::size_of;
///
/// assert_eq!(size_of("64KiB"), Ok(65_536));
/// assert!(size_of("64KB").is_err());
/// ```
pub fn size_of(text: &str) -> Result<u64, String> {
    const HINT: &str = "write a size like \"16MiB\", \"64KiB\" or \"1000B\" (B, KiB, MiB, GiB)";
    let (number, unit, tail) = step(text);
    let Some(value) = number.filter(|_| tail.is_empty()) else {
        return Err(format!("is {text:?}, which is no size; {HINT}"));
    };
    if unit.is_empty() {
        return Err(format!("is {text:?}, which has no unit; {HINT}"));
    }
    let (_, scale) = SIZE_UNITS
        .iter()
        .find(|(name, _)| *name == unit)
        .ok_or_else(|| format!("is {text:?}, whose unit {unit:?} is not known; {HINT}"))?;
    value
        .checked_mul(*scale)
        .filter(|bytes| *bytes <= SIZE_MAX)
        .ok_or_else(|| format!("is {text:?}, which is more than any machine holds"))
}

/// Writes a duration in the form that [`duration_of`] reads, to the millisecond.
///
/// ```
/// use redeliver::config::units::duration_text;
/// use std::time::Duration;
///
/// assert_eq!(duration_text(Duration::from_secs(5_400)), "1h30m");
/// ```
pub fn duration_text(duration: Duration) -> String {
    let mut rest = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let mut text = String::new();
    for (name, scale) in DURATION_UNITS {
        if rest >= scale {
            text.push_str(&format!("{}{name}", rest / scale));
            rest %= scale;
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

/// Writes a size in the form that [`size_of`] reads.
///
/// ```
/// assert_eq!(redeliver::config::units::size_text(65_536), "64KiB");
/// ```
pub fn size_text(bytes: u64) -> String {
    let (name, scale) = SIZE_UNITS
        .into_iter()
        .find(|(_, scale)| bytes >= *scale && bytes.is_multiple_of(*scale))
        .unwrap_or(("B", 1));
    format!("{}{name}", bytes / scale)
}

/// Splits `"30m5s"` into 30, `"m"` and `"5s"`. The number is absent if there is none or it is too long.
fn step(text: &str) -> (Option<u64>, &str, &str) {
    let (digits, rest) = text.split_at(text.bytes().take_while(u8::is_ascii_digit).count());
    let end = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
    let (unit, tail) = rest.split_at(end);
    (digits.parse().ok(), unit, tail)
}

/// What a field accepts, so that one visitor refuses all else in the same words.
trait Unit: Sized {
    const EXPECTED: &'static str;
    fn from_text(text: &str) -> Result<Self, String> {
        Err(format!("is text ({text:?}), but must be {}; write it without quotes", Self::EXPECTED))
    }
    fn from_whole(number: i64) -> Result<Self, String>;
}

struct Length(Duration);
struct Bytes(u64);
struct Count<N>(N);
struct Whole(u32);

impl Unit for Length {
    const EXPECTED: &'static str = "a duration like \"250ms\" or \"5m\"";
    fn from_text(text: &str) -> Result<Self, String> {
        duration_of(text).map(Self)
    }
    fn from_whole(number: i64) -> Result<Self, String> {
        Err(format!("is {number}, which has no unit; write {}", Self::EXPECTED))
    }
}

impl Unit for Bytes {
    const EXPECTED: &'static str = "a size like \"64KiB\" or \"16MiB\"";
    fn from_text(text: &str) -> Result<Self, String> {
        size_of(text).map(Self)
    }
    fn from_whole(number: i64) -> Result<Self, String> {
        Err(format!("is {number}, which has no unit; write {}", Self::EXPECTED))
    }
}

impl<N: TryFrom<NonZeroU64>> Unit for Count<N> {
    const EXPECTED: &'static str = "a whole number, 1 or more";
    fn from_whole(number: i64) -> Result<Self, String> {
        if number == 0 {
            return Err("is 0, so nothing could ever happen; use 1 or more".to_owned());
        }
        let count = u64::try_from(number).ok().and_then(NonZeroU64::new);
        count
            .and_then(|count| N::try_from(count).ok())
            .map(Self)
            .ok_or_else(|| format!("is {number}, which is out of range; use {}", Self::EXPECTED))
    }
}

impl Unit for Whole {
    const EXPECTED: &'static str = "a whole number, 0 or more";
    fn from_whole(number: i64) -> Result<Self, String> {
        let whole = u32::try_from(number);
        whole
            .map(Self)
            .map_err(|_| format!("is {number}, which is out of range; use {}", Self::EXPECTED))
    }
}

struct UnitVisitor<U>(PhantomData<U>);

impl<U: Unit> Visitor<'_> for UnitVisitor<U> {
    type Value = U;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(U::EXPECTED)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<U, E> {
        U::from_text(text).map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<U, E> {
        U::from_whole(number).map_err(E::custom)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<U, E> {
        U::from_whole(i64::try_from(number).unwrap_or(i64::MAX)).map_err(E::custom)
    }
}

/// The functions for `#[serde(deserialize_with = "...")]`.
macro_rules! readers {
    ($($(#[$doc:meta])* $name:ident: $unit:ty => $value:ty;)*) => {$(
        $(#[$doc])*
        pub(super) fn $name<'de, D: Deserializer<'de>>(from: D) -> Result<$value, D::Error> {
            Ok(<Read<$unit>>::deserialize(from)?.0.0.into())
        }
    )*};
}

struct Read<U>(U);

impl<'de, U: Unit> Deserialize<'de> for Read<U> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(UnitVisitor(PhantomData)).map(Self)
    }
}

readers! {
    duration: Length => Duration;
    size: Bytes => u64;
    whole: Whole => u32;
    count_u32: Count<std::num::NonZeroU32> => std::num::NonZeroU32;
    count: Count<std::num::NonZeroUsize> => std::num::NonZeroUsize;
    count_option: Count<std::num::NonZeroUsize> => Option<std::num::NonZeroUsize>;
}

/// Reads a list of durations.
pub(super) fn durations<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Duration>, D::Error> {
    let list = Vec::<Read<Length>>::deserialize(from)?;
    Ok(list.into_iter().map(|read| read.0.0).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_duration_may_have_several_units() {
        assert_eq!(duration_of("1d2h3m4s5ms"), Ok(Duration::from_millis(93_784_005)));
        assert_eq!(duration_of("0s"), Ok(Duration::ZERO));
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        for text in [
            "",
            "5",
            "5 s",
            " 5s",
            "-5s",
            "5.5s",
            "5S",
            "5s5",
            "1m1h",
            "1s1s",
            "s",
            "5x",
            "99999999999d",
            "+5s",
            "٣s",
        ] {
            assert!(duration_of(text).is_err(), "{text:?} was accepted");
        }
        for text in
            ["", "5", "5MB", "5kb", "5 MiB", "-1B", "1KiB1B", "1.5MiB", "MiB", "9999999999999GiB"]
        {
            assert!(size_of(text).is_err(), "{text:?} was accepted");
        }
    }

    #[test]
    fn a_missing_unit_is_called_so() {
        assert!(duration_of("5").is_err_and(|said| said.contains("has no unit")));
        assert!(size_of("5").is_err_and(|said| said.contains("has no unit")));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(millis in 0..=DURATION_MAX.as_millis() as u64, bytes in 0..=SIZE_MAX) {
            let duration = Duration::from_millis(millis);
            prop_assert_eq!(duration_of(&duration_text(duration)), Ok(duration));
            prop_assert_eq!(size_of(&size_text(bytes)), Ok(bytes));
        }

        #[test]
        fn any_text_is_read_or_refused_without_a_panic(text in ".*", units in "[0-9]{0,25}[a-zA-Zµ]{0,3}[0-9]{0,3}[a-z]{0,2}") {
            for text in [text, units] {
                if let Ok(duration) = duration_of(&text) {
                    prop_assert!(duration <= DURATION_MAX);
                }
                if let Ok(bytes) = size_of(&text) {
                    prop_assert!(bytes <= SIZE_MAX);
                }
            }
        }
    }
}
