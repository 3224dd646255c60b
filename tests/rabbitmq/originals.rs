//! What a message carries survives waits and dead-lettering, and does no harm on the way.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use actix::prelude::*;
use lapin::BasicProperties;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::{AMQPValue, FieldArray, FieldTable, ShortString};
use lapin::{Connection, ConnectionProperties};
use redeliver::broker::HeaderValue;
use redeliver::{Delivery, Failure, Handled, Reason};

use crate::common::rabbitmq::{control, unique};
use crate::lab::{Lab, SHORT_WAITS, Seen, dead_letters, drained, properties, until};

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

/// A user of the server, gone at the end of the test.
struct User(String);

impl User {
    fn new(permissions: [&str; 3]) -> Self {
        let name = unique("user");
        control(&["-q", "add_user", &name, "hunter2"]);
        let [configure, write, read] = permissions;
        control(&["-q", "set_permissions", &name, configure, write, read]);
        Self(name)
    }

    fn url(&self, lab: &Lab) -> String {
        let (_, rest) = lab.url.split_once("://").expect("a url has a scheme");
        let place = rest.rsplit_once('@').map_or(rest, |(_, place)| place);
        format!("amqp://{}:hunter2@{place}", self.0)
    }
}

impl Drop for User {
    fn drop(&mut self) {
        control(&["-q", "delete_user", &self.0]);
    }
}

#[tokio::test]
async fn expiration_a_foreign_user_id_and_cc_survive_waits_and_dead_lettering() {
    let lab = Lab::new().await;
    let audit = lab.beside("audit");
    lab.raw.declare(&audit, &[("x-queue-type", text("quorum"))]).await;
    let seen = Seen::default();
    let handler = seen.clone();
    let waits = SHORT_WAITS.replace("200ms", "1500ms").replace("max = 4", "max = 2");
    let service = lab
        .start(&lab.toml("", &waits), move |delivery: Delivery<u32>| {
            handler.note(&delivery);
            async { Err(Failure::retry("still broken")) }
        })
        .await;

    let user = User::new(["^$", ".*", "^$"]);
    let theirs = Connection::connect(&user.url(&lab), ConnectionProperties::default()).await;
    let channel = theirs.expect("they may connect").create_channel().await.expect("a channel");
    channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms are on");
    let mut headers = FieldTable::default();
    headers.insert("CC".into(), AMQPValue::FieldArray(FieldArray::from(vec![text(&audit)])));
    headers.insert("tenant".into(), text("acme"));
    let user_id = ShortString::from(user.0.as_str());
    let copied = properties(6).with_user_id(user_id.clone()).with_headers(headers);
    // Long enough to be handled once, shorter than the wait.
    let expiring = properties(7).with_user_id(user_id).with_expiration("1000".into());
    for (body, hazards) in [(b"6", copied), (b"7", expiring)] {
        let (exchange, key) = ("".into(), lab.queue.as_str().into());
        let options = BasicPublishOptions::default();
        let sent = channel.basic_publish(exchange, key, options, body, hazards).await;
        sent.expect("it is sent").await.expect("it is confirmed");
    }

    until("both are dead", || async { lab.raw.count(&lab.dead()).await == 2 }).await;
    assert_eq!(seen.attempts(), BTreeMap::from([(6, vec![1, 2]), (7, vec![1, 2])]));
    for number in [6, 7] {
        let runs = seen.runs();
        let mut runs = runs.iter().filter(|run| run.number == number).map(|run| run.at);
        let (first, second) = (runs.next().expect("one"), runs.next().expect("another"));
        assert!(
            second - first >= Duration::from_millis(1500),
            "the wait of {number} was cut short"
        );
    }
    // Longer than its expiration: a dead letter stays.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let letters = dead_letters(&service).await;
    assert_eq!(letters.len(), 2);
    for letter in &letters {
        assert_eq!(letter.reason, Some(Reason::Exhausted));
        let headers: BTreeMap<_, _> = letter.headers.iter().cloned().collect();
        let original = |name: &str| headers.get(&format!("redeliver-original-{name}")).cloned();
        assert_eq!(original("user-id").as_deref(), Some(user.0.as_str()));
        match letter.id.as_deref() {
            Some("6") => assert_eq!(headers.get("tenant").map(String::as_str), Some("acme")),
            _ => assert_eq!(original("expiration").as_deref(), Some("1000")),
        }
    }
    service.stop().await;
    assert_eq!(lab.raw.count(&audit).await, 1, "no copy went where only the original should");
}

#[tokio::test]
async fn an_expired_message_is_dead_lettered_or_dropped_as_configured() {
    for (on_expired, dead) in [("dead-letter", 1), ("drop", 0)] {
        let lab = Lab::new().await;
        let keys = format!("on_expired = \"{on_expired}\"\n");
        let waits = SHORT_WAITS.replace("200ms", "3s");
        let seen = Seen::default();
        let handler = seen.clone();
        let service = lab
            .start(&lab.toml(&keys, &waits), move |delivery: Delivery<u32>| {
                handler.note(&delivery);
                async { Err(Failure::retry("not yet")) }
            })
            .await;
        // AMQP's timestamps count whole seconds, so it expires within 1 to 2 seconds.
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let seconds = now.expect("it is after 1970").as_secs() + 1;
        let dying = properties(1).with_timestamp(seconds).with_expiration("1000".into());
        lab.publish_with(1..2, |_| (b"1".to_vec(), dying.clone())).await;
        drained(&service).await;
        let letters = dead_letters(&service).await;
        assert_eq!(letters.len(), dead, "{on_expired}");
        assert!(letters.iter().all(|letter| letter.reason == Some(Reason::Expired)));
        assert_eq!(seen.count(), 1, "the handler does not see what has expired");
        service.stop().await;
    }
}

#[tokio::test]
async fn a_time_to_live_does_not_begin_with_what_a_publisher_wrote_as_timestamp() {
    let lab = Lab::new().await;
    let seen = Seen::default();
    let handler = seen.clone();
    let service = lab
        .start(&lab.toml("", SHORT_WAITS), move |delivery: Delivery<u32>| {
            handler.note(&delivery);
            async move { if delivery.attempt() == 1 { Err(Failure::retry("not yet")) } else { Ok(()) } }
        })
        .await;
    // When something happened, perhaps, in 2001.
    let old = properties(1).with_timestamp(1_000_000_000).with_expiration("600000".into());
    lab.publish_with(1..2, |_| (b"1".to_vec(), old.clone())).await;
    until("it is retried and handled", || async { seen.count() == 2 }).await;
    drained(&service).await;
    assert!(dead_letters(&service).await.is_empty());
    service.stop().await;
}

/// Body, content type, type, and whether three headers are as they were.
type Sighting = (Vec<u8>, Option<String>, Option<String>, [bool; 3]);
type Sightings = Arc<Mutex<Vec<Sighting>>>;

/// Takes bytes as they are; fails twice.
struct Archive(Sightings);

impl Actor for Archive {
    type Context = Context<Self>;
}

impl Handler<Delivery<Vec<u8>>> for Archive {
    type Result = Handled;

    fn handle(&mut self, delivery: Delivery<Vec<u8>>, _: &mut Context<Self>) -> Handled {
        let headers = [
            matches!(delivery.header("count"), Some(HeaderValue::Number(200))),
            matches!(delivery.header("bytes"), Some(HeaderValue::Bytes([0xff, 0]))),
            matches!(delivery.header("table"), Some(HeaderValue::Other("table"))),
        ];
        let text = |text: Option<&str>| text.map(str::to_owned);
        let (content_type, kind) = (text(delivery.content_type()), text(delivery.kind()));
        let sighting = (delivery.payload.clone(), content_type, kind, headers);
        self.0.lock().expect("no test panics in here").push(sighting);
        if delivery.attempt() < 3 { Err(Failure::retry("not yet")) } else { Ok(()) }
    }
}

#[tokio::test]
async fn body_and_users_headers_come_through_waits_unchanged() {
    let lab = Lab::new().await;
    let bodies = Sightings::default();
    let archive = bodies.clone();
    let handlers = redeliver::with_codec(redeliver::Raw, move || Archive(archive.clone()));
    let service = lab.start(&lab.toml("", SHORT_WAITS), handlers).await;
    let body: Vec<u8> = (0..=255).collect();
    let mut headers = FieldTable::default();
    headers.insert("count".into(), AMQPValue::ShortShortUInt(200));
    headers.insert("bytes".into(), AMQPValue::ByteArray(vec![0xff, 0].into()));
    headers.insert("table".into(), AMQPValue::FieldTable(FieldTable::default()));
    let properties = BasicProperties::default()
        .with_content_type("application/octet-stream".into())
        .with_type("blob".into())
        .with_message_id("b".into())
        .with_headers(headers);
    lab.publish_with(0..1, |_| (body.clone(), properties.clone())).await;
    until("three attempts", || async { bodies.lock().expect("no panics").len() == 3 }).await;
    drained(&service).await;
    service.stop().await;
    let content_type = Some("application/octet-stream".to_owned());
    let expected = (body, content_type, Some("blob".to_owned()), [true; 3]);
    assert_eq!(*bodies.lock().expect("no test panics in here"), vec![expected; 3]);
}

#[tokio::test]
async fn a_user_who_may_configure_nothing_works_on_queues_that_are_there() {
    let lab = Lab::new().await;
    let declaring =
        lab.start(&lab.toml("", SHORT_WAITS), |_: Delivery<u32>| async { Ok(()) }).await;
    declaring.stop().await;
    let user = User::new(["^$", ".*", ".*"]);
    let seen = Seen::default();
    let handler = seen.clone();
    let toml = lab.toml_at(&user.url(&lab), "topology = \"none\"\n", SHORT_WAITS);
    let service = lab
        .start(&toml, move |delivery: Delivery<u32>| {
            handler.note(&delivery);
            async move {
                match (delivery.payload % 3, delivery.attempt()) {
                    (1, 1) => Err(Failure::retry("once")),
                    (2, _) => Err(Failure::reject("never")),
                    _ => Ok(()),
                }
            }
        })
        .await;
    lab.publish(0..30).await;
    drained(&service).await;
    assert_eq!(dead_letters(&service).await.len(), 10);
    assert_eq!(seen.count(), 10 + 20 + 10);
    service.stop().await;

    let toml = lab.toml_at(&user.url(&lab), "queue_type = \"classic\"\n", "");
    let denied = lab.try_start(&toml, |_: Delivery<u32>| async { Ok(()) }).await;
    let error = denied.err().expect("it may not declare").to_string();
    for part in ["`orders`", "declaring", &lab.queue, "ACCESS_REFUSED", "permissions"] {
        assert!(error.contains(part), "{part} is missing in: {error}");
    }
    assert!(!error.contains("hunter2"), "{error}");
}
