//! What a copy of a message carries, as AMQP's properties. Pure.
//!
//! The user's part travels byte for byte; the broker's own headers and our old ones stay behind; what would
//! cut a wait short, close the channel or send copies elsewhere is kept under another name.

use std::mem;
use std::time::{Duration, SystemTime};

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};

use super::topology::short;
use crate::broker::{BrokerError, Outgoing};
use crate::wire::{self, ORIGINAL_PREFIX, PREFIX, Stamps};

/// Written to disk by classic queues, and by quorum queues anyway.
const PERSISTENT: u8 = 2;

/// The longest time to live that the server takes, 49 days: it closes the channel over a longer one. What is to live
/// longer says in a header of ours when it expires, at which we look.
const EXPIRATION_MAX: Duration = Duration::from_millis(u32::MAX as u64);

/// Headers that the broker itself writes into messages and reads from them.
///
/// `x-stream-filter-value` is not among them: it is the publisher's.
fn is_brokers(name: &str) -> bool {
    const NAMES: [&str; 4] = ["x-death", "x-delivery-count", "x-acquired-count", "x-stream-offset"];
    NAMES.contains(&name) || name.starts_with("x-first-death-") || name.starts_with("x-last-death-")
}

/// The properties of a copy of `original` with `stamps` as our only headers.
pub(super) fn properties_of_copy(original: &BasicProperties, stamps: &Stamps) -> BasicProperties {
    let mut headers = FieldTable::default();
    for (name, value) in original.headers().iter().flatten() {
        if let Some(name) = name_in_copy(name) {
            headers.insert(name, value.clone());
        }
    }
    for (name, value) in [("expiration", original.expiration()), ("user-id", original.user_id())] {
        if let Some(value) = value {
            headers.insert(original_name(name), AMQPValue::LongString(value.as_str().into()));
        }
    }
    for (name, value) in stamps {
        headers.insert((*name).into(), AMQPValue::LongString(value.as_str().into()));
    }
    without_hazards(original).with_headers(headers).with_delivery_mode(PERSISTENT)
}

/// What a header is called in the copy; `None` where it stays behind.
fn name_in_copy(name: &ShortString) -> Option<ShortString> {
    match name.as_str() {
        "CC" => Some(original_name("cc")),
        "BCC" => Some(original_name("bcc")),
        ours if ours.starts_with(PREFIX) => ours.starts_with(ORIGINAL_PREFIX).then(|| name.clone()),
        theirs => (!is_brokers(theirs)).then(|| name.clone()),
    }
}

fn original_name(name: &str) -> ShortString {
    format!("{ORIGINAL_PREFIX}{name}").into()
}

/// All properties but headers, `expiration` and `user-id`.
fn without_hazards(original: &BasicProperties) -> BasicProperties {
    let mut copy = BasicProperties::default();
    let mut text = |value: &Option<ShortString>,
                    set: fn(BasicProperties, ShortString) -> BasicProperties| {
        if let Some(value) = value {
            copy = set(mem::take(&mut copy), value.clone());
        }
    };
    text(original.content_type(), BasicProperties::with_content_type);
    text(original.content_encoding(), BasicProperties::with_content_encoding);
    text(original.correlation_id(), BasicProperties::with_correlation_id);
    text(original.reply_to(), BasicProperties::with_reply_to);
    text(original.message_id(), BasicProperties::with_message_id);
    text(original.kind(), BasicProperties::with_type);
    text(original.app_id(), BasicProperties::with_app_id);
    text(original.cluster_id(), BasicProperties::with_cluster_id);
    if let Some(priority) = original.priority() {
        copy = copy.with_priority(*priority);
    }
    if let Some(timestamp) = original.timestamp() {
        copy = copy.with_timestamp(*timestamp);
    }
    copy
}

/// The properties of a message that a user publishes at `seconds` since the epoch.
pub(super) fn properties_of(
    message: &Outgoing,
    seconds: u64,
) -> Result<BasicProperties, BrokerError> {
    let mut headers = FieldTable::default();
    for (name, value) in &message.headers {
        headers.insert(short(name)?, AMQPValue::LongString(value.as_str().into()));
    }
    let expiration = message.time_to_live.filter(|left| *left <= EXPIRATION_MAX);
    if let (Some(left), None) = (message.time_to_live, expiration) {
        let expires =
            SystemTime::UNIX_EPOCH + Duration::from_secs(seconds) + left.min(wire::WAIT_MAX);
        headers
            .insert(wire::EXPIRES.into(), AMQPValue::LongString(wire::format_time(expires).into()));
    }
    let mut properties = BasicProperties::default()
        .with_message_id(short(&message.id)?)
        .with_timestamp(seconds)
        .with_delivery_mode(PERSISTENT)
        .with_headers(headers);
    if let Some(content_type) = &message.content_type {
        properties = properties.with_content_type(short(content_type)?);
    }
    if let Some(kind) = &message.kind {
        properties = properties.with_type(short(kind)?);
    }
    if let Some(left) = expiration {
        properties = properties.with_expiration(short(&left.as_millis().to_string())?);
    }
    if let Some(priority) = message.priority {
        properties = properties.with_priority(priority);
    }
    Ok(properties)
}

/// How many bytes the properties take. They must fit into one frame.
pub(super) fn encoded_length(properties: &BasicProperties) -> usize {
    let texts = [
        properties.content_type(),
        properties.content_encoding(),
        properties.correlation_id(),
        properties.reply_to(),
        properties.expiration(),
        properties.message_id(),
        properties.kind(),
        properties.user_id(),
        properties.app_id(),
        properties.cluster_id(),
    ];
    let texts = texts.into_iter().flatten().map(|text| 1 + text.as_str().len()).sum::<usize>();
    let numbers = [
        properties.delivery_mode().map_or(0, |_| 1),
        properties.priority().map_or(0, |_| 1),
        properties.timestamp().map_or(0, |_| 8),
    ];
    texts + numbers.iter().sum::<usize>() + properties.headers().as_ref().map_or(0, table_length)
}

pub(super) fn table_length(table: &FieldTable) -> usize {
    4 + table.into_iter().map(|(name, value)| entry_length(name, value)).sum::<usize>()
}

/// A header's name, type and value.
pub(super) fn entry_length(name: &ShortString, value: &AMQPValue) -> usize {
    2 + name.as_str().len() + value_length(value)
}

fn value_length(value: &AMQPValue) -> usize {
    match value {
        AMQPValue::ShortString(text) => 1 + text.as_str().len(),
        AMQPValue::LongString(text) => 4 + text.len(),
        AMQPValue::ByteArray(bytes) => 4 + bytes.len(),
        AMQPValue::FieldArray(values) => {
            4 + values.as_slice().iter().map(|value| 1 + value_length(value)).sum::<usize>()
        }
        AMQPValue::FieldTable(table) => table_length(table),
        AMQPValue::Void => 0,
        AMQPValue::Boolean(_) | AMQPValue::ShortShortInt(_) | AMQPValue::ShortShortUInt(_) => 1,
        AMQPValue::ShortInt(_) | AMQPValue::ShortUInt(_) => 2,
        AMQPValue::LongInt(_) | AMQPValue::LongUInt(_) | AMQPValue::Float(_) => 4,
        AMQPValue::DecimalValue(_) => 5,
        AMQPValue::LongLongInt(_) | AMQPValue::Double(_) | AMQPValue::Timestamp(_) => 8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(entries: &[(&str, AMQPValue)]) -> FieldTable {
        let mut table = FieldTable::default();
        for (name, value) in entries {
            table.insert((*name).into(), value.clone());
        }
        table
    }

    fn text(value: &str) -> AMQPValue {
        AMQPValue::LongString(value.into())
    }

    fn names(properties: &BasicProperties) -> Vec<&str> {
        properties.headers().iter().flatten().map(|(name, _)| name.as_str()).collect()
    }

    #[test]
    fn the_users_headers_keep_their_types_and_the_brokers_stay_behind() {
        let users = [
            ("bytes", AMQPValue::ByteArray(vec![0xff].into())),
            ("count", AMQPValue::ShortShortUInt(200)),
            ("nested", AMQPValue::FieldTable(table(&[("x-death", text("theirs"))]))),
            ("traceparent", text("00-1-2-03")),
            ("x-stream-filter-value", text("eu")),
        ];
        let mut headers = table(&users);
        for name in [
            "x-death",
            "x-first-death-queue",
            "x-last-death-reason",
            "x-delivery-count",
            "x-acquired-count",
            "x-stream-offset",
        ] {
            headers.insert(name.into(), AMQPValue::LongLongInt(29));
        }
        let copy =
            properties_of_copy(&BasicProperties::default().with_headers(headers), &Stamps::new());
        assert_eq!(copy.headers().as_ref(), Some(&table(&users)));
        assert_eq!(copy.delivery_mode(), &Some(2));
    }

    #[test]
    fn our_old_headers_give_way_but_originals_are_kept() {
        let headers = table(&[
            ("redeliver-attempt", text("1")),
            ("redeliver-made-up", text("x")),
            ("redeliver-original-expiration", text("500")),
        ]);
        let copy = properties_of_copy(
            &BasicProperties::default().with_headers(headers),
            &vec![("redeliver-attempt", "2".to_owned())],
        );
        let expected = table(&[
            ("redeliver-attempt", text("2")),
            ("redeliver-original-expiration", text("500")),
        ]);
        assert_eq!(copy.headers().as_ref(), Some(&expected));
    }

    /// The expiration, and what our header says, of a message that is to live so many seconds.
    fn lives(seconds: u64) -> (Option<String>, Option<String>) {
        let message = Outgoing {
            target: crate::broker::Target::Queue("orders".into()),
            id: "order-7".into(),
            body: Default::default(),
            headers: Vec::new(),
            content_type: None,
            kind: None,
            key: None,
            time_to_live: Some(Duration::from_secs(seconds)),
            priority: None,
        };
        let made = properties_of(&message, 0).expect("it fits");
        let expires = made.headers().as_ref().and_then(|table| table.inner().get(wire::EXPIRES));
        let expires = expires.map(|value| match value {
            AMQPValue::LongString(text) => String::from_utf8_lossy(text.as_bytes()).into_owned(),
            other => panic!("{other:?}"),
        });
        (made.expiration().as_ref().map(|text| text.as_str().to_owned()), expires)
    }

    #[test]
    fn a_time_to_live_that_the_server_would_not_take_is_looked_at_by_us() {
        assert_eq!(lives(3600), (Some("3600000".into()), None));
        assert_eq!(lives(4_294_967), (Some("4294967000".into()), None));
        assert_eq!(lives(4_294_968), (None, Some("1970-02-19T17:02:48.000Z".into())));
        assert_eq!(
            lives(u64::MAX),
            (None, Some(wire::format_time(SystemTime::UNIX_EPOCH + wire::WAIT_MAX)))
        );
    }

    #[test]
    fn what_is_a_hazard_in_a_copy_is_kept_under_another_name() {
        let cc = AMQPValue::FieldArray(vec![text("audit")].into());
        let original = BasicProperties::default()
            .with_expiration("500".into())
            .with_user_id("billing".into())
            .with_priority(9)
            .with_correlation_id("c".into())
            .with_timestamp(7)
            .with_type("order.placed".into())
            .with_headers(table(&[("CC", cc.clone()), ("BCC", cc)]));
        let copy = properties_of_copy(&original, &Stamps::new());
        let kept = [
            "redeliver-original-bcc",
            "redeliver-original-cc",
            "redeliver-original-expiration",
            "redeliver-original-user-id",
        ];
        assert_eq!(names(&copy), kept);
        assert_eq!((copy.expiration(), copy.user_id()), (&None, &None));
        assert_eq!((copy.priority(), copy.timestamp()), (&Some(9), &Some(7)));
        assert_eq!(
            (copy.correlation_id(), copy.kind()),
            (original.correlation_id(), original.kind())
        );
    }

    #[test]
    fn the_length_of_nested_headers_is_counted() {
        let nested =
            AMQPValue::FieldTable(table(&[("k", AMQPValue::FieldArray(vec![text("abc")].into()))]));
        // 4 + (1 + 1 + 1 + table) with table = 4 + (1 + 1 + 1 + array) with array = 4 + 1 + 4 + 3.
        assert_eq!(table_length(&table(&[("t", nested)])), 4 + 3 + 4 + 3 + 4 + 1 + 4 + 3);
    }
}
