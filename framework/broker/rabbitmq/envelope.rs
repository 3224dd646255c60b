//! A message as lapin delivered it, answered without copying.
//!
//! Owns how AMQP's types read as ours, and what RabbitMQ itself writes into headers. Settles nothing.

use std::any::Any;
use std::str;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use lapin::message::Delivery;
use lapin::types::{AMQPValue, FieldTable, ShortString};

use super::topology;
use crate::broker::{Envelope, HeaderValue, Source};
use crate::config::{BrokerKind, Subscription};

/// How often the broker saw the message come back; absent on a first delivery and on classic queues.
const DELIVERY_COUNT: &str = "x-delivery-count";
/// Which queues the broker moved the message out of, and why.
const DEATHS: &str = "x-death";
/// Stands in a death by a message's own expiration, and says what that was.
const ORIGINAL_EXPIRATION: &str = "original-expiration";

/// A delivery and the queue it came from.
pub(super) struct AmqpEnvelope {
    pub(super) delivery: Delivery,
    pub(super) queue: Arc<str>,
    /// Whose dead letter it is, if it is one.
    pub(super) dead_of: Option<Arc<Source>>,
}

impl AmqpEnvelope {
    fn headers(&self) -> Option<&FieldTable> {
        self.delivery.properties.headers().as_ref()
    }

    fn value(&self, name: &str) -> Option<&AMQPValue> {
        self.headers()?.inner().get(name)
    }
}

impl Envelope for AmqpEnvelope {
    fn body(&self) -> &[u8] {
        &self.delivery.data
    }

    fn header(&self, name: &str) -> Option<HeaderValue<'_>> {
        self.value(name).map(read)
    }

    fn visit_headers(&self, visit: &mut dyn FnMut(&str, HeaderValue<'_>)) {
        for (name, value) in self.headers().into_iter().flatten() {
            visit(name.as_str(), read(value));
        }
    }

    fn has_headers(&self) -> bool {
        self.headers().is_some_and(|headers| !headers.inner().is_empty())
    }

    fn id(&self) -> Option<&str> {
        text(self.delivery.properties.message_id())
    }

    fn content_type(&self) -> Option<&str> {
        text(self.delivery.properties.content_type())
    }

    fn kind(&self) -> Option<&str> {
        text(self.delivery.properties.kind())
    }

    fn key(&self) -> Option<&[u8]> {
        Some(self.delivery.routing_key.as_str().as_bytes())
    }

    fn published_at(&self) -> Option<SystemTime> {
        // Whole seconds, written by the publisher: any 64-bit number is possible.
        let seconds = (*self.delivery.properties.timestamp())?;
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
    }

    fn time_to_live(&self) -> Option<Duration> {
        let milliseconds = text(self.delivery.properties.expiration())?;
        milliseconds.parse().ok().map(Duration::from_millis)
    }

    fn is_aged_by_broker(&self) -> bool {
        true
    }

    fn is_redelivered(&self) -> bool {
        self.delivery.redelivered
    }

    fn returns(&self) -> u32 {
        match self.header(DELIVERY_COUNT) {
            // From 4.0 on the server shows what a publisher wrote there, until it counts itself.
            Some(HeaderValue::Number(count)) if self.delivery.redelivered => {
                u32::try_from(count.max(0)).unwrap_or(u32::MAX)
            }
            _ => 0,
        }
    }

    fn origin(&self) -> String {
        format!("{}/{}/{}", self.delivery.exchange, self.delivery.routing_key, self.queue)
    }

    fn broker_reason(&self) -> Option<&'static str> {
        reason_of(latest_death(self)?)
    }

    fn broker_saw_it_wait(&self) -> bool {
        let (Some(source), Some(latest)) = (&self.dead_of, latest_death(self)) else {
            return false;
        };
        // Copies carry no expiration, so what ended by one of its own was no copy.
        let is_copy = !latest.inner().contains_key(ORIGINAL_EXPIRATION);
        is_copy && deaths(self).any(|death| is_end_of_wait(death, source))
    }

    fn broker_dead_at(&self) -> Option<SystemTime> {
        let death = latest_death(self)?;
        // Whole seconds, by the server's clock.
        let AMQPValue::Timestamp(seconds) = death.inner().get("time")? else { return None };
        reason_of(death)?;
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(*seconds))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// The last move of a dead letter by the broker, if that is what brought it here. `x-death` holds the latest first.
///
/// Copies of ours carry none, so where there is one the broker moved the message after we last touched it, and
/// whatever headers of ours it has say nothing about its end. What was moved out of the very queue that it lies in was
/// brought back by somebody.
///
/// A message that came back from one of our waits carries `x-death` too, so only its place tells that it is a
/// dead letter.
fn latest_death(envelope: &AmqpEnvelope) -> Option<&FieldTable> {
    let latest = deaths(envelope).next()?;
    let from = latest.inner().get("queue").map(read);
    (from != Some(HeaderValue::Text(&envelope.queue))).then_some(latest)
}

/// What the server wrote of each queue and reason, the latest first.
fn deaths(envelope: &AmqpEnvelope) -> impl Iterator<Item = &FieldTable> {
    let deaths = match envelope.value(DEATHS) {
        Some(AMQPValue::FieldArray(deaths)) => deaths.as_slice(),
        _ => &[],
    };
    deaths.iter().map_while(|death| match death {
        AMQPValue::FieldTable(death) => Some(death),
        _ => None,
    })
}

/// Whether it tells that the message came out of a wait of this source.
fn is_end_of_wait(death: &FieldTable, source: &Source) -> bool {
    let of = |name: &str| death.inner().get(name).map(read);
    let from = of("queue");
    let is_wait =
        matches!(from, Some(HeaderValue::Text(name)) if is_wait_name(&source.settings, name));
    is_wait && of("reason") == Some(HeaderValue::Text("expired"))
}

/// Whether this is the name of a queue in which messages wait, however long.
fn is_wait_name(settings: &Subscription, name: &str) -> bool {
    let template = settings.wait_template(BrokerKind::Rabbitmq);
    let named = template.fill(&[("queue", topology::queue_name(settings))]);
    let (before, after) = named.split_once("{ms}").unwrap_or((&named, ""));
    let milliseconds = name.strip_prefix(before).and_then(|rest| rest.strip_suffix(after));
    milliseconds.is_some_and(|text| text.parse::<u64>().is_ok())
}

/// Why the broker moved a message, in our words for reasons: a time to live that ran out reads `expired`; a delivery
/// limit that was reached, `poison`; a rejection without requeueing, `rejected`; a queue that was over its length,
/// `too-large`.
fn reason_of(death: &FieldTable) -> Option<&'static str> {
    let HeaderValue::Text(reason) = read(death.inner().get("reason")?) else { return None };
    match reason {
        "expired" => Some("expired"),
        "delivery_limit" => Some("poison"),
        "rejected" => Some("rejected"),
        "maxlen" => Some("too-large"),
        _ => None,
    }
}

fn text(property: &Option<ShortString>) -> Option<&str> {
    property.as_ref().map(ShortString::as_str)
}

/// AMQP's value as ours. A timestamp is no number: nobody who counts means one.
fn read(value: &AMQPValue) -> HeaderValue<'_> {
    match value {
        AMQPValue::ShortString(text) => HeaderValue::Text(text.as_str()),
        AMQPValue::LongString(text) => text_or_bytes(text.as_bytes()),
        AMQPValue::ByteArray(bytes) => HeaderValue::Bytes(bytes.as_slice()),
        AMQPValue::ShortShortInt(number) => HeaderValue::Number((*number).into()),
        AMQPValue::ShortShortUInt(number) => HeaderValue::Number((*number).into()),
        AMQPValue::ShortInt(number) => HeaderValue::Number((*number).into()),
        AMQPValue::ShortUInt(number) => HeaderValue::Number((*number).into()),
        AMQPValue::LongInt(number) => HeaderValue::Number((*number).into()),
        AMQPValue::LongUInt(number) => HeaderValue::Number((*number).into()),
        AMQPValue::LongLongInt(number) => HeaderValue::Number(*number),
        AMQPValue::Boolean(_) => HeaderValue::Other("boolean"),
        AMQPValue::Float(_) => HeaderValue::Other("float"),
        AMQPValue::Double(_) => HeaderValue::Other("double"),
        AMQPValue::DecimalValue(_) => HeaderValue::Other("decimal"),
        AMQPValue::Timestamp(_) => HeaderValue::Other("timestamp"),
        AMQPValue::FieldArray(_) => HeaderValue::Other("array"),
        AMQPValue::FieldTable(_) => HeaderValue::Other("table"),
        AMQPValue::Void => HeaderValue::Other("void"),
    }
}

fn text_or_bytes(bytes: &[u8]) -> HeaderValue<'_> {
    match str::from_utf8(bytes) {
        Ok(text) => HeaderValue::Text(text),
        Err(_) => HeaderValue::Bytes(bytes),
    }
}

#[cfg(test)]
mod tests {
    use lapin::BasicProperties;

    use super::*;

    fn envelope(headers: &[(&str, AMQPValue)]) -> AmqpEnvelope {
        let mut table = FieldTable::default();
        for (name, value) in headers {
            table.insert((*name).into(), value.clone());
        }
        let mut delivery =
            Delivery::mock(1, "shop".into(), "order.placed".into(), false, b"{}".to_vec());
        delivery.properties = BasicProperties::default().with_headers(table);
        AmqpEnvelope { delivery, queue: "orders.dead".into(), dead_of: None }
    }

    #[test]
    fn whole_numbers_of_every_width_are_numbers() {
        for (value, number) in [
            (AMQPValue::ShortShortInt(-1), -1),
            (AMQPValue::ShortShortUInt(255), 255),
            (AMQPValue::ShortInt(-300), -300),
            (AMQPValue::ShortUInt(65_535), 65_535),
            (AMQPValue::LongInt(i32::MIN), i32::MIN.into()),
            (AMQPValue::LongUInt(u32::MAX), u32::MAX.into()),
            (AMQPValue::LongLongInt(i64::MAX), i64::MAX),
        ] {
            assert_eq!(envelope(&[("n", value)]).header("n"), Some(HeaderValue::Number(number)));
        }
    }

    #[test]
    fn bytes_that_are_no_text_stay_bytes() {
        let envelope = envelope(&[
            ("text", AMQPValue::LongString("héllo".into())),
            ("bytes", AMQPValue::LongString(vec![0xff, 0].into())),
            ("time", AMQPValue::Timestamp(1)),
        ]);
        assert_eq!(envelope.header("text"), Some(HeaderValue::Text("héllo")));
        assert_eq!(envelope.header("bytes"), Some(HeaderValue::Bytes(&[0xff, 0])));
        assert_eq!(envelope.header("time"), Some(HeaderValue::Other("timestamp")));
        assert_eq!(envelope.header("absent"), None);
        assert_eq!(envelope.origin(), "shop/order.placed/orders.dead");
    }

    #[test]
    fn a_hostile_delivery_count_counts_nothing() {
        for (value, returns) in [
            (AMQPValue::LongLongInt(7), 7),
            (AMQPValue::LongLongInt(-7), 0),
            (AMQPValue::LongLongInt(i64::MAX), u32::MAX),
            (AMQPValue::LongString("7".into()), 0),
            (AMQPValue::FieldTable(FieldTable::default()), 0),
        ] {
            let mut envelope = envelope(&[(DELIVERY_COUNT, value)]);
            assert_eq!(envelope.returns(), 0, "it is delivered for the first time");
            envelope.delivery.redelivered = true;
            assert_eq!(envelope.returns(), returns);
        }
        assert_eq!(envelope(&[]).returns(), 0);
    }

    fn record(from: &str, reason: &str, time: AMQPValue) -> AMQPValue {
        let mut death = FieldTable::default();
        death.insert("queue".into(), AMQPValue::LongString(from.into()));
        death.insert("reason".into(), AMQPValue::LongString(reason.into()));
        death.insert("time".into(), time);
        AMQPValue::FieldArray(vec![AMQPValue::FieldTable(death)].into())
    }

    /// What is read of a dead letter with this `x-death`: why, and how many seconds after 1970.
    fn end(record: AMQPValue) -> (Option<&'static str>, Option<u64>) {
        let envelope = envelope(&[(DEATHS, record)]);
        let seconds = envelope
            .broker_dead_at()
            .map(|at| at.duration_since(SystemTime::UNIX_EPOCH).expect("it is later").as_secs());
        (envelope.broker_reason(), seconds)
    }

    #[test]
    fn what_the_broker_dead_lettered_has_its_reason_and_its_time() {
        for (theirs, ours) in [
            ("expired", Some("expired")),
            ("delivery_limit", Some("poison")),
            ("rejected", Some("rejected")),
            ("maxlen", Some("too-large")),
        ] {
            assert_eq!(end(record("shop", theirs, AMQPValue::Timestamp(7))), (ours, Some(7)));
        }
        assert_eq!(end(record("shop", "made up", AMQPValue::Timestamp(7))), (None, None));
        for time in [AMQPValue::Timestamp(u64::MAX), AMQPValue::LongString("now".into())] {
            assert_eq!(end(record("shop", "expired", time)), (Some("expired"), None));
        }
        assert_eq!(end(AMQPValue::LongString("expired".into())), (None, None));
        assert_eq!(envelope(&[]).broker_reason(), None);
    }

    #[test]
    fn what_was_moved_out_of_the_queue_that_it_lies_in_was_brought_back_by_somebody() {
        let time = AMQPValue::Timestamp(7);
        assert_eq!(end(record("orders.dead", "expired", time)), (None, None));
    }

    /// Whether a dead letter of the source `orders`, with these deaths before its last one there, came out of a wait.
    fn waited(earlier: &[AMQPValue], last: (&str, AMQPValue)) -> bool {
        let AMQPValue::FieldArray(latest) = record("orders", "expired", AMQPValue::Timestamp(7))
        else {
            panic!("it is an array");
        };
        let AMQPValue::FieldTable(mut latest) = latest.as_slice()[0].clone() else {
            panic!("it is a table");
        };
        latest.insert(last.0.into(), last.1);
        let earlier = earlier.iter().flat_map(|record| match record {
            AMQPValue::FieldArray(deaths) => deaths.as_slice().to_vec(),
            other => vec![other.clone()],
        });
        let all: Vec<_> = [AMQPValue::FieldTable(latest)].into_iter().chain(earlier).collect();
        let settings =
            Arc::new(Subscription { queue: Some("orders".into()), ..Default::default() });
        let source =
            Source { name: "shop".into(), settings, waits: vec![], service: "shop".into() };
        let mut envelope = envelope(&[(DEATHS, AMQPValue::FieldArray(all.into()))]);
        envelope.dead_of = Some(Arc::new(source));
        envelope.broker_saw_it_wait()
    }

    #[test]
    fn only_what_came_out_of_a_wait_of_its_own_source_is_known_to_be_a_copy_of_ours() {
        let at = || AMQPValue::Timestamp(7);
        let own = ("original-expiration", AMQPValue::LongString("1".into()));
        let limit = || ("reason", AMQPValue::LongString("delivery_limit".into()));
        let wait = || record("orders.wait.200", "expired", at());
        assert!(
            waited(&[wait()], limit()) && waited(&[record("x", "rejected", at()), wait()], limit())
        );
        assert!(!waited(&[], limit()), "it never waited");
        assert!(!waited(&[wait()], own), "a copy has no expiration of its own");
        for other in
            ["orders.wait.", "orders.wait.x", "orders", "others.wait.200", "orders.wait.2.0"]
        {
            assert!(!waited(&[record(other, "expired", at())], limit()), "{other}");
        }
        assert!(!waited(&[record("orders.wait.200", "rejected", at())], limit()));
        assert!(!waited(&[AMQPValue::Void, wait()], limit()), "what is no record ends it");
    }

    #[test]
    fn hostile_times_are_no_times() {
        let mut envelope = envelope(&[]);
        let properties =
            BasicProperties::default().with_timestamp(u64::MAX).with_expiration("-5".into());
        envelope.delivery.properties = properties;
        assert_eq!((envelope.published_at(), envelope.time_to_live()), (None, None));
    }
}
