//! What stands after the `?` of RabbitMQ's url: each setting known, and its value one that a connection can have.
//!
//! Shows no value, which could be anything.

use super::super::nearest::nearest;

/// The settings there are; RabbitMQ's client passes over any other.
const SETTINGS: [&str; 5] =
    ["heartbeat", "frame_max", "channel_max", "connection_timeout", "auth_mechanism"];
/// The smallest frame that AMQP lets both sides agree on.
const FRAME_BYTES_MIN: u32 = 4096;
/// How a client may say who it is.
const MECHANISMS: [&str; 5] = ["plain", "external", "amqplain", "anonymous", "rabbit-cr-demo"];

/// What is wrong with the settings of a url.
pub(super) fn problems(url: &str) -> Vec<String> {
    let settings = url.split_once('?').map_or("", |(_, settings)| settings);
    let settings = settings.split_once('#').map_or(settings, |(settings, _)| settings);
    if settings.contains('@') {
        // Part of a password, rather, which must not be shown.
        return vec![
            "has a `?` before its `@`; write special characters of a password as %XX".into(),
        ];
    }
    settings.split('&').filter(|setting| !setting.is_empty()).filter_map(problem).collect()
}

fn problem(setting: &str) -> Option<String> {
    let (name, value) = setting.split_once('=').unwrap_or((setting, ""));
    let must_be = match name {
        "heartbeat" => value.parse::<u16>().err().map(|_| "seconds, 0 to 65535, like 30".into()),
        "channel_max" => value
            .parse::<u16>()
            .err()
            .map(|_| "channels, 1 to 65535, like 2047, or 0 for the server's".into()),
        "connection_timeout" => {
            value.parse::<u64>().err().map(|_| "milliseconds, like 5000".into())
        }
        "frame_max" => {
            let can_be = |bytes: &u32| *bytes == 0 || *bytes >= FRAME_BYTES_MIN;
            let is_one = value.parse().ok().filter(can_be).is_some();
            (!is_one).then(|| format!("bytes, {FRAME_BYTES_MIN} or more, or 0 for the server's"))
        }
        "auth_mechanism" => {
            let is_one = MECHANISMS.contains(&value.to_lowercase().as_str());
            (!is_one).then(|| format!("one of {}", MECHANISMS.join(", ")))
        }
        _ => return Some(unknown(name)),
    };
    must_be.map(|what: String| {
        format!("has a `{name}` after its `?` that cannot be used; it must be {what}")
    })
}

/// Names it only if it is near one that is known.
fn unknown(name: &str) -> String {
    match nearest(name, SETTINGS) {
        Some(meant) => {
            format!(
                "has a setting `{name}` after its `?`, which nobody reads; did you mean `{meant}`?"
            )
        }
        None => format!(
            "has a setting after its `?` that nobody reads; use {}, or remove it",
            SETTINGS.join(", ")
        ),
    }
}
