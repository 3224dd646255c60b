//! Bad input: a dead letter with its reason, and the lane goes on.

use std::time::Duration;

use redeliver::{Codecs, Delivery, Handled, Json, Message, Raw, Redrive, by_type, with_codecs};

use crate::bench::{THRICE, obey, orders, text};
use crate::headers::OURS;

/// What becomes of this message, and that the one behind it is handled.
fn refused(subscription: &str, message: Message) -> String {
    let mut test = orders(subscription, THRICE, obey);
    test.publish("orders", message.id("bad"));
    test.publish("orders", text("good", "ok"));
    test.finish();
    let mut log = test.log();
    let good = log.iter().position(|line| line == "good: attempt 1 handled");
    log.remove(good.expect("the lane goes on"));
    assert_eq!(log.len(), 1, "{log:?}");
    assert_eq!(test.dead_letters("orders").len(), 1);
    log.remove(0)
}

#[test]
fn what_is_not_json_is_undecodable_and_never_quoted() {
    assert_eq!(
        refused("", Message::bytes("hunter2 {")),
        "bad: dead-lettered: undecodable: the body is not JSON (line 1, column 1)"
    );
}

#[test]
fn an_empty_body_is_undecodable() {
    let line = refused("", Message::bytes(""));
    assert_eq!(line, "bad: dead-lettered: undecodable: the body is empty");
}

#[test]
fn a_depth_bomb_is_undecodable() {
    let line = refused("", Message::bytes("[".repeat(1_000_000)));
    assert!(line.starts_with("bad: dead-lettered: undecodable: the body "), "{line}");
}

#[test]
fn a_content_type_without_a_codec_is_undecodable() {
    let line = refused("", Message::bytes("<a/>").content_type("text/xml"));
    assert_eq!(line, "bad: dead-lettered: undecodable: no codec takes content type `text/xml`");
}

#[test]
fn a_body_over_the_limit_is_too_large() {
    let line = refused("body_max = \"1KiB\"", text("", &"x".repeat(2000)));
    assert_eq!(line, "bad: dead-lettered: too-large: the body has 2002 bytes; body_max is 1024");
}

#[test]
fn hostile_attempt_headers_are_clamped_counted_and_cost_nobody_a_message() {
    for (value, line) in [
        ("-1", "attempt 1 retry after 200ms"),
        ("abc", "attempt 1 retry after 200ms"),
        ("", "attempt 1 retry after 200ms"),
        ("10000000000000000000", "attempt 3 dead-lettered: exhausted"),
    ] {
        let mut test = orders("", THRICE, obey);
        test.publish("orders", text("7", "retry").header("redeliver-attempt", value));
        test.publish("orders", text("8", "ok"));
        let log = test.log();
        assert!(log.iter().any(|said| said == &format!("7: {line}: not yet")), "{value}: {log:?}");
        assert!(log.iter().any(|said| said == "8: attempt 1 handled"), "{value}: {log:?}");
        let service = test.service();
        let metrics = test.run(async move { service.metrics().await });
        let counted = "redeliver_malformed_headers_total{subscription=\"orders\"} 1\n";
        assert!(metrics.contains(counted), "{value}: {metrics}");
    }
}

#[test]
fn the_rest_of_a_wait_that_nobody_began_holds_nothing_up() {
    let mut test = orders("", THRICE, obey);
    test.publish("orders", text("7", "ok").header("redeliver-rest", "4294967295"));
    assert_eq!(test.log(), ["7: attempt 1 handled"]);
    let service = test.service();
    let metrics = test.run(async move { service.metrics().await });
    let counted = "redeliver_malformed_headers_total{subscription=\"orders\"} 1\n";
    assert!(metrics.contains(counted), "{metrics}");
}

#[test]
fn every_header_of_ours_may_be_garbage() {
    let garbage = ["", "-1", "99999999999999999999999999", "\0\n", "2026-99-99T00:00:00Z", "🦀"];
    let mut test = orders("", THRICE, obey);
    for name in OURS.into_iter().chain(["id"]) {
        for value in garbage.into_iter().chain([&*"x".repeat(1 << 20)]) {
            let header = format!("redeliver-{name}");
            test.publish("orders", text("7", "retry").header(header, value));
        }
    }
    test.finish();
    let dead = test.dead_letters("orders");
    assert_eq!(dead.len(), (OURS.len() + 1) * 7, "none is lost");
    assert!(dead.iter().all(|letter| letter.attempts == 3), "{:?}", test.log());
}

#[test]
fn an_id_of_a_megabyte_is_no_id() {
    let mut test = orders("", THRICE, obey);
    test.publish("orders", text(&"x".repeat(1 << 20), "ok"));
    assert_eq!(test.log(), ["(no id): attempt 1 handled"]);
}

#[test]
fn a_message_without_an_id_is_rejected_where_ids_are_needed() {
    let mut test = orders("id = \"header:order\"\nid_missing = \"reject\"", THRICE, obey);
    test.publish("orders", text(&"x".repeat(300), "ok"));
    assert_eq!(
        test.log(),
        ["(no id): dead-lettered: no-id: the message has no id where `id` says; see `id_missing`",]
    );
    test.publish("orders", text("property", "ok").header("order", "order-7"));
    assert_eq!(test.log()[1], "order-7: attempt 1 handled");
}

/// Two kinds of ids would be taken for one, and the message of one for a copy of the other's.
#[test]
fn where_ids_have_a_place_nothing_else_is_one() {
    let mut test = orders("id = \"header:order\"\nid_missing = \"reject\"", THRICE, obey);
    for message in [
        text("property", "ok"),
        text("property", "ok").header("order", ""),
        text("property", "ok").header("redeliver-id", "ours"),
    ] {
        test.publish("orders", message);
    }
    let none =
        "(no id): dead-lettered: no-id: the message has no id where `id` says; see `id_missing`";
    assert_eq!(test.log(), [none; 3]);
    // Nor after a redrive.
    let letters = test.service().dead_letters("orders").expect("a subscription");
    let all = Redrive::default();
    test.run(async move { letters.redrive(&all).await }).expect("it is redriven");
    test.finish();
    assert_eq!(test.log()[3..], [none; 3]);
}

#[test]
fn an_empty_id_among_our_headers_is_none() {
    let mut test = orders("id_missing = \"reject\"", THRICE, obey);
    test.publish("orders", text("7", "ok").header("redeliver-id", ""));
    assert_eq!(test.log(), ["7: attempt 1 handled"]);
}

async fn anything(_: Delivery<serde_json::Value>) -> Handled {
    Ok(())
}

#[test]
fn an_unknown_type_is_a_dead_letter_or_ignored() {
    for (way, line) in [
        (
            "dead-letter",
            "7: dead-lettered: unknown-type: no handler is for messages of type `refund`; see `on_unknown_type`",
        ),
        (
            "ignore",
            "7: attempt 1 ignored: no handler is for messages of type `refund`; see `on_unknown_type`",
        ),
    ] {
        let handlers = by_type().on("order", anything);
        let mut test = orders(&format!("on_unknown_type = \"{way}\""), THRICE, handlers);
        test.publish("orders", text("7", "ok").kind("refund"));
        test.publish("orders", text("8", "ok").kind("order"));
        test.publish("orders", text("9", "ok"));
        test.finish();
        let log = test.log();
        assert!(log.iter().any(|said| said == line), "{log:?}");
        assert!(log.iter().any(|said| said == "8: attempt 1 handled"), "{log:?}");
        assert!(log.iter().any(|said| said.contains("of type `(none)`")), "{log:?}");
    }
}

#[test]
fn an_unknown_type_is_named_as_it_was_found_in_a_header_or_in_the_payload() {
    for (source, message) in [
        ("header:event", Message::bytes("{}").header("event", "refund").kind("order")),
        ("/kind", Message::bytes("{\"kind\":\"refund\"}").kind("order")),
    ] {
        let handlers = by_type().on("order", anything);
        let mut test = orders(&format!("type = \"{source}\""), THRICE, handlers);
        test.publish("orders", message.id("7"));
        let log = test.log();
        assert_eq!(log.len(), 1, "{log:?}");
        assert!(log[0].contains("messages of type `refund`"), "{source}: {log:?}");
    }
}

#[test]
fn every_type_has_its_own_handler() {
    async fn order(delivery: Delivery<u32>) -> Handled {
        assert_eq!(delivery.kind(), Some("order"));
        Ok(())
    }
    let handlers = by_type().on("order", order).otherwise(obey);
    let mut test = orders("", THRICE, handlers);
    test.publish("orders", Message::bytes("7").kind("order").id("7"));
    test.publish("orders", text("8", "reject").kind("refund"));
    test.publish("orders", text("9", "ok"));
    test.finish();
    let mut log = test.log();
    log.sort();
    assert_eq!(
        log,
        [
            "7: attempt 1 handled",
            "8: attempt 1 dead-lettered: rejected: no such customer",
            "9: attempt 1 handled",
        ]
    );
}

/// One that expires before it can be handled, in a subscription with `on_expired` of this.
fn expired(way: &str) -> Vec<String> {
    let mut test = orders(&format!("on_expired = \"{way}\""), THRICE, obey);
    let service = test.service();
    test.run(async move { service.pause("orders").await }).expect("it pauses");
    test.publish("orders", text("7", "ok").expires_in(Duration::from_secs(1)));
    test.advance(Duration::from_secs(1));
    let service = test.service();
    test.run(async move { service.resume("orders").await }).expect("it resumes");
    test.finish();
    test.log()
}

#[test]
fn what_expired_is_a_dead_letter_or_dropped() {
    let log = expired("dead-letter");
    assert_eq!(log.len(), 1, "{log:?}");
    assert!(log[0].starts_with("7: dead-lettered: expired: it expired at 2026-"), "{log:?}");
    assert_eq!(expired("drop"), ["7: dropped: expired"]);
}

#[test]
fn what_expires_during_a_wait_is_not_tried_again() {
    for place in ["0s", "1m"] {
        let retry =
            format!("jitter = \"none\"\ndelay_min = \"10s\"\nin_process_max = \"{place}\"\n");
        let mut test = orders("", &retry, obey);
        test.publish("orders", text("7", "retry").expires_in(Duration::from_secs(5)));
        test.finish();
        let log = test.log();
        assert_eq!(log[0], "7: attempt 1 retry after 10s: not yet", "{place}");
        assert!(log[1].starts_with("7: dead-lettered: expired"), "{place}: {log:?}");
        assert_eq!(log.len(), 2);
    }
}

#[test]
fn what_circles_ends_as_a_loop() {
    async fn send_on(delivery: Delivery<String>) -> Handled {
        let hop = delivery.hops() + 1;
        let again = Message::json(&delivery.payload)?.to_queue("orders").id(format!("hop-{hop}"));
        // As one that sends on every header of what it got.
        let again = again.header("redeliver-hops", "0").header("redeliver-attempt", "7");
        let again = again.header("redeliver-expires", "2020-01-01T00:00:00.000Z");
        delivery.publisher().send(again).await?;
        Ok(())
    }
    let mut test = orders("hops_max = 3", THRICE, send_on);
    test.publish("orders", text("hop-0", "round"));
    test.finish();
    assert_eq!(
        test.log(),
        [
            "hop-0: attempt 1 handled",
            "hop-1: attempt 1 handled",
            "hop-2: attempt 1 handled",
            "hop-3: attempt 1 handled",
            "hop-4: dead-lettered: loop: 4 handlers sent it on; hops_max is 3",
        ]
    );
}

#[test]
fn the_codec_is_chosen_by_content_type() {
    struct Archive;
    impl actix::Actor for Archive {
        type Context = actix::Context<Self>;
    }
    impl actix::Handler<Delivery<Vec<u8>>> for Archive {
        type Result = Handled;
        fn handle(&mut self, delivery: Delivery<Vec<u8>>, _: &mut actix::Context<Self>) -> Handled {
            assert_eq!(
                delivery.payload,
                if delivery.content_type().is_some() { vec![7, 8] } else { b"[7,8]".to_vec() }
            );
            Ok(())
        }
    }
    struct Listed;
    impl redeliver::Codec<Vec<u8>> for Listed {
        fn accepts(&self, content_type: Option<&str>) -> bool {
            redeliver::Codec::<Vec<u8>>::accepts(&Json, content_type) && content_type.is_some()
        }
        fn decode(&self, body: Option<&[u8]>) -> Result<Vec<u8>, redeliver::DecodeError> {
            redeliver::Codec::<Vec<u8>>::decode(&Json, body)
        }
    }
    let mut test = orders("", THRICE, with_codecs(Codecs::new(Listed).or(Raw), || Archive));
    test.publish("orders", Message::bytes("[7,8]").content_type("application/json").id("json"));
    test.publish("orders", Message::bytes("[7,8]").id("raw"));
    test.finish();
    assert_eq!(test.log(), ["json: attempt 1 handled", "raw: attempt 1 handled"]);
}

#[test]
fn a_codec_that_panics_makes_a_dead_letter_and_costs_no_actor() {
    #[derive(Debug)]
    struct Picky;
    impl<'de> serde::Deserialize<'de> for Picky {
        fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
            let text = <String as serde::Deserialize>::deserialize(from)?;
            assert!(text == "ok", "no such word");
            Ok(Self)
        }
    }
    async fn take(_: Delivery<Picky>) -> Handled {
        Ok(())
    }
    let mut test = orders("", THRICE, take);
    for id in 0..20 {
        test.publish("orders", text(&format!("bad-{id}"), "surprise"));
        test.publish("orders", text(&format!("good-{id}"), "ok"));
    }
    test.finish();
    let log = test.log();
    let bad = "dead-lettered: undecodable: the codec panicked: no such word";
    assert_eq!(log.iter().filter(|line| line.ends_with(bad)).count(), 20, "{log:?}");
    assert_eq!(log.iter().filter(|line| line.ends_with("attempt 1 handled")).count(), 20);
    assert!(test.service().health().ready);
}

#[test]
fn a_dead_letter_keeps_payload_and_user_headers_byte_for_byte() {
    let mut test = orders("", THRICE, obey);
    let body = b"\x00\xff not JSON".as_slice();
    let message = Message::bytes(body)
        .id("7")
        .kind("order")
        .content_type("application/json")
        .header("tenant", "ä \u{1F980}")
        .header("traceparent", "00-aa-bb-01");
    test.publish("orders", message);
    let dead = test.dead_letters("orders").remove(0);
    assert_eq!(dead.body, body);
    assert_eq!(dead.kind.as_deref(), Some("order"));
    assert_eq!(dead.content_type.as_deref(), Some("application/json"));
    for (name, value) in [("tenant", "ä \u{1F980}"), ("traceparent", "00-aa-bb-01")] {
        assert!(dead.headers.contains(&(name.into(), value.into())), "{:?}", dead.headers);
    }
    assert_eq!(dead.origin.as_deref(), Some("memory/orders"));
    assert!(dead.consumer.is_some() && dead.dead_at.is_some() && dead.first_seen.is_some());
}
