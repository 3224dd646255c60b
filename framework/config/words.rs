//! Turns what serde says of a value into words that follow its path, and names the nearest known word.
//!
//! serde hands over only text, so its fixed sentences are recognised; any other passes as it is.

use super::nearest::nearest;

/// What to say, whether a key is unknown, and which it may have meant.
pub(super) struct Words {
    pub(super) text: String,
    pub(super) is_unknown_key: bool,
    pub(super) meant_key: Option<String>,
}

/// The words for one message of serde.
pub(super) fn of(message: &str) -> Words {
    let text = match message.split_once(' ') {
        Some(("unknown", rest)) => return unknown(rest),
        Some(("invalid", rest)) => invalid(rest),
        // What toml says of anything but text where one word of several is meant.
        Some(("wanted", "string or table")) => String::from("must be text in quotes"),
        _ => message.to_owned(),
    };
    Words { text, is_unknown_key: false, meant_key: None }
}

/// `field `x`, expected one of `a`, `b``, and the same with `variant`.
fn unknown(rest: &str) -> Words {
    let mut quoted = rest.split('`').skip(1).step_by(2);
    let wrong = quoted.next().unwrap_or_default();
    // A wrong word may hold backticks itself: what is known stands after `expected`.
    let expected = rest.rsplit_once(", expected").map_or("", |(_, known)| known);
    let known: Vec<&str> = expected.split('`').skip(1).step_by(2).collect();
    let meant = nearest(wrong, known.iter().copied());
    let is_key = rest.starts_with("field");
    let quote = if is_key { "`" } else { "\"" };
    let list =
        || known.iter().map(|name| format!("{quote}{name}{quote}")).collect::<Vec<_>>().join(", ");
    let advice = match meant {
        Some(meant) => format!("did you mean {quote}{meant}{quote}?"),
        None if known.is_empty() => "nothing is known here".to_owned(),
        None => format!("use {}{}", if known.len() > 1 { "one of " } else { "" }, list()),
    };
    let what = if is_key { "is no key of this table" } else { "is not known" };
    let text = match is_key {
        true => format!("{what}; {advice}"),
        false => format!("is {wrong:?}, which {what}; {advice}"),
    };
    Words { text, is_unknown_key: is_key, meant_key: meant.filter(|_| is_key).map(str::to_owned) }
}

/// `type: X, expected Y` and `value: X, expected Y`.
fn invalid(rest: &str) -> String {
    let said = rest.split_once(": ").map_or(rest, |(_, said)| said);
    match said.rsplit_once(", expected ") {
        Some((found, expected)) => {
            format!("is {}, but must be {}", plain(found), plain_expected(expected))
        }
        None => format!("is {said}"),
    }
}

/// serde's names of what it found, in TOML's words.
fn plain(found: &str) -> String {
    match found {
        "map" => "a table".to_owned(),
        "sequence" => "a list".to_owned(),
        _ => found
            .replace("boolean ", "")
            .replace("floating point", "the number")
            .replace("integer", "the number")
            .replace("string", "the text"),
    }
}

fn plain_expected(expected: &str) -> String {
    match expected {
        "a string" => "text in quotes".to_owned(),
        "a boolean" => "true or false, without quotes".to_owned(),
        "f64" => "a number".to_owned(),
        "a map" => "a table".to_owned(),
        "a sequence" => "a list".to_owned(),
        _ => expected.to_owned(),
    }
}
