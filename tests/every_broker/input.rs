//! Bad input: a dead letter with its reason, as it came, and the lane goes on.

use std::sync::{Arc, Mutex};

use actix::{Actor, Context, Handler};
use redeliver::broker::HeaderValue;
use redeliver::{Delivery, Failure, Handled, Message, Raw, Reason, by_type, with_codec};

use crate::common::headers::OURS;
use crate::ground::{Ground, Kind, dead_letters, drained, text, until};
use crate::seen::{Seen, obey};

/// Messages that no handler should see, by their ids, and why.
fn refused() -> Vec<(&'static str, Message, Reason)> {
    let json = |text: &str| Message::json(&text).expect("text is JSON");
    vec![
        ("bomb", Message::bytes("[".repeat(900)), Reason::Undecodable),
        ("empty", Message::bytes(""), Reason::Undecodable),
        (
            "expired",
            json("ok").header("redeliver-expires", "2020-01-01T00:00:00.000Z"),
            Reason::Expired,
        ),
        ("large", json(&"x".repeat(2000)), Reason::TooLarge),
        ("looping", json("ok").header("redeliver-hops", "33"), Reason::Loop),
        ("not-json", Message::bytes(b"\x00\xff hunter2 {".as_slice()), Reason::Undecodable),
        (
            "spent",
            json("retry").header("redeliver-attempt", "10000000000000000000"),
            Reason::Exhausted,
        ),
        ("stranger", json("ok").kind("refund"), Reason::UnknownType),
        ("xml", Message::bytes("<a/>").content_type("text/xml"), Reason::Undecodable),
    ]
}

pub(crate) async fn what_no_handler_should_see_is_a_dead_letter_byte_for_byte(kind: Kind) {
    let ground = Ground::new(kind).await;
    let seen = Seen::default();
    let handlers = by_type().on("order", obey(&seen));
    let service = ground.start(&ground.toml("body_max = \"1KiB\"\n", ""), handlers).await;
    for (id, message, _) in refused() {
        let known = if id == "stranger" { message } else { message.kind("order") };
        let message = known
            .id(id)
            .key(id)
            .header("tenant", "ä \u{1F980}")
            .header("traceparent", "00-aa-bb-01");
        ground.send(&service, message).await;
        ground.send(&service, text(&format!("behind-{id}"), "ok").kind("order")).await;
    }
    drained(&service).await;
    let letters = dead_letters(&service).await;
    let described: Vec<_> = letters
        .iter()
        .map(|letter| (letter.id.clone().unwrap_or_default(), letter.reason))
        .collect();
    let expected: Vec<_> =
        refused().into_iter().map(|(id, _, reason)| (id.to_owned(), Some(reason))).collect();
    assert_eq!(described, expected);
    for ((id, ..), letter) in refused().into_iter().zip(&letters) {
        for (name, value) in [("tenant", "ä \u{1F980}"), ("traceparent", "00-aa-bb-01")] {
            assert!(letter.headers.contains(&(name.into(), value.into())), "{:?}", letter.headers);
        }
        let body: Vec<u8> = match id {
            "bomb" => "[".repeat(900).into(),
            "empty" => Vec::new(),
            "large" => format!("\"{}\"", "x".repeat(2000)).into(),
            "not-json" => b"\x00\xff hunter2 {".to_vec(),
            "spent" => b"\"retry\"".to_vec(),
            "xml" => b"<a/>".to_vec(),
            _ => b"\"ok\"".to_vec(),
        };
        assert_eq!(letter.body, body, "{id}");
        assert_eq!(letter.kind.as_deref(), Some(if id == "stranger" { "refund" } else { "order" }));
        assert!(letter.origin.is_some() && letter.consumer.is_some(), "{letter:?}");
        assert!(letter.first_seen.is_some() && letter.dead_at.is_some(), "{letter:?}");
        let error = letter.error.as_deref().unwrap_or_default();
        assert!(!error.is_empty() && !error.contains("hunter2"), "{error}");
    }
    let handled = seen.attempts().into_keys().filter(|id| id.starts_with("behind-")).count();
    assert_eq!(handled, refused().len(), "the lane goes on");
    service.stop().await;
}

/// Values that none of our headers can have.
fn garbage() -> impl Iterator<Item = String> {
    let short = ["", "-1", "99999999999999999999999999", "\u{1}\n", "2026-99-99T00:00:00Z", "🦀"];
    short.into_iter().map(str::to_owned).chain([["x"; 10_000].concat()])
}

pub(crate) async fn hostile_headers_cost_nobody_a_message(kind: Kind) {
    let ground = Ground::new(kind).await;
    let seen = Seen::default();
    let retry = "backoff = \"fixed\"\njitter = \"none\"\ndelay_min = \"20ms\"\nattempts_max = 3\n";
    let service = ground.start(&ground.toml("", retry), obey(&seen)).await;
    for name in OURS {
        for (number, value) in garbage().enumerate() {
            let message = text(&format!("{name}-{number}"), "retry");
            ground.send(&service, message.header(format!("redeliver-{name}"), value)).await;
        }
    }
    drained(&service).await;
    let letters = dead_letters(&service).await;
    assert_eq!(letters.len(), OURS.len() * garbage().count(), "none is lost");
    for letter in letters {
        assert_eq!((letter.reason, letter.attempts), (Some(Reason::Exhausted), 3), "{letter:?}");
    }
    service.stop().await;
}

/// Body, content type, type, a header: as a handler sees them.
type Sight = (Vec<u8>, Option<String>, Option<String>, bool);

/// Takes bytes as they are; fails twice.
struct Archive(Arc<Mutex<Vec<Sight>>>);

impl Actor for Archive {
    type Context = Context<Self>;
}

impl Handler<Delivery<Vec<u8>>> for Archive {
    type Result = Handled;

    fn handle(&mut self, delivery: Delivery<Vec<u8>>, _: &mut Context<Self>) -> Handled {
        let text = |text: Option<&str>| text.map(str::to_owned);
        let tenant = matches!(delivery.header("tenant"), Some(HeaderValue::Text("ä \u{1F980}")));
        let (content_type, kind) = (text(delivery.content_type()), text(delivery.kind()));
        let sight = (delivery.payload.clone(), content_type, kind, tenant);
        self.0.lock().expect("no test panics in here").push(sight);
        if delivery.attempt() < 3 { Err(Failure::retry("not yet")) } else { Ok(()) }
    }
}

pub(crate) async fn body_and_headers_come_through_waits_unchanged(kind: Kind) {
    let ground = Ground::new(kind).await;
    let sights = Arc::<Mutex<Vec<Sight>>>::default();
    let shared = Arc::clone(&sights);
    let handlers = with_codec(Raw, move || Archive(Arc::clone(&shared)));
    let retry = "backoff = \"fixed\"\njitter = \"none\"\ndelay_min = \"300ms\"\nattempts_max = 4\n\
                 in_process_max = \"0s\"\n";
    let service = ground.start(&ground.toml("", retry), handlers).await;
    let body: Vec<u8> = (0..=255).collect();
    let message = Message::bytes(body.clone())
        .content_type("application/octet-stream")
        .kind("blob")
        .id("7")
        .key("7")
        .header("tenant", "ä \u{1F980}");
    ground.send(&service, message).await;
    until("three attempts", async || sights.lock().expect("no panics").len() == 3).await;
    drained(&service).await;
    let (content_type, kind) = ("application/octet-stream".to_owned(), "blob".to_owned());
    let expected = (body, Some(content_type), Some(kind), true);
    assert_eq!(*sights.lock().expect("no test panics in here"), vec![expected; 3]);
    service.stop().await;
}
