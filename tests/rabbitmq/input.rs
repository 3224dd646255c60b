//! Bad input: a dead letter with its reason, and the lane goes on.

use std::collections::BTreeMap;

use lapin::BasicProperties;
use lapin::types::{AMQPValue, DecimalValue, FieldArray, FieldTable};
use redeliver::{Delivery, Failure};

use crate::common::headers::OURS;
use crate::lab::{Lab, SHORT_WAITS, Seen, dead_letters, drained, metric, properties};

#[tokio::test]
async fn bodies_that_cannot_be_used_are_dead_letters_with_their_reason() {
    let lab = Lab::new().await;
    let seen = Seen::default();
    let handler = seen.clone();
    let service = lab
        .start(&lab.toml("body_max = \"64KiB\"\n", ""), move |delivery: Delivery<u32>| {
            handler.note(&delivery);
            async { Ok(()) }
        })
        .await;
    let json = |number: u32| properties(number);
    let cases: Vec<(&str, &str, Vec<u8>, BasicProperties)> = vec![
        ("0", "undecodable", b"{\"half".to_vec(), json(0)),
        ("1", "undecodable", Vec::new(), json(1)),
        ("2", "undecodable", b"\"text\"".to_vec(), json(2)),
        ("3", "undecodable", "[".repeat(60_000).into_bytes(), json(3)),
        ("4", "undecodable", vec![0xff; 100], json(4)),
        ("5", "undecodable", b"5".to_vec(), json(5).with_content_type("text/made-up".into())),
        ("6", "too-large", vec![b'6'; 65 * 1024], json(6)),
    ];
    for (number, (_, _, body, properties)) in (0..).zip(&cases) {
        lab.publish_with(number..number + 1, |_| (body.clone(), properties.clone())).await;
    }
    lab.publish(100..200).await;
    drained(&service).await;
    let letters = dead_letters(&service).await;
    let reasons: BTreeMap<_, _> = letters
        .iter()
        .map(|letter| {
            let reason = letter.reason.map(redeliver::Reason::as_str);
            (letter.id.clone().unwrap_or_default(), (reason, letter.body.to_vec()))
        })
        .collect();
    let expected: BTreeMap<_, _> = cases
        .iter()
        .map(|(id, reason, body, _)| ((*id).to_owned(), (Some(*reason), body.clone())))
        .collect();
    for (id, expected) in &expected {
        assert_eq!(reasons.get(id).map(|(reason, _)| reason), Some(&expected.0), "{id}");
        assert!(reasons.get(id) == Some(expected), "the body of {id} is another");
    }
    assert_eq!(reasons.len(), expected.len());
    service.stop().await;
    seen.assert_each_once(100..200);
}

/// Every kind of value that AMQP knows, under a name of ours.
fn hostile_values() -> Vec<AMQPValue> {
    let mut table = FieldTable::default();
    table.insert("redeliver-attempt".into(), AMQPValue::LongInt(9));
    vec![
        AMQPValue::LongLongInt(-1),
        AMQPValue::LongLongInt(i64::MAX),
        AMQPValue::LongString("10000000000000000000".into()),
        AMQPValue::LongString("abc".into()),
        AMQPValue::LongString("".into()),
        AMQPValue::LongString(vec![0xff, 0xfe, 0].into()),
        AMQPValue::LongString("x".repeat(50_000).into()),
        AMQPValue::ByteArray(vec![0; 300].into()),
        AMQPValue::Boolean(true),
        AMQPValue::Float(-1.5),
        AMQPValue::Double(1e300),
        AMQPValue::DecimalValue(DecimalValue { scale: 255, value: u32::MAX }),
        AMQPValue::Timestamp(u64::MAX),
        AMQPValue::FieldTable(table),
        AMQPValue::FieldArray(FieldArray::from(vec![AMQPValue::Void; 50])),
        AMQPValue::Void,
    ]
}

#[tokio::test]
async fn hostile_headers_of_every_type_stop_nothing() {
    let lab = Lab::new().await;
    let seen = Seen::default();
    let handler = seen.clone();
    let service = lab
        .start(&lab.toml("", SHORT_WAITS), move |delivery: Delivery<u32>| {
            handler.note(&delivery);
            async move {
                match delivery.payload % 2 {
                    0 => Ok(()),
                    _ => Err(Failure::reject("told to fail")),
                }
            }
        })
        .await;
    let values = hostile_values();
    let names = OURS.into_iter().chain(["id", "rest"]);
    let cases: Vec<_> =
        names.flat_map(|name| values.iter().map(move |value| (name, value))).collect();
    let total = cases.len() as u32;
    lab.publish_with(0..total, |number| {
        let (name, value) = cases[number as usize];
        let mut headers = FieldTable::default();
        headers.insert(format!("redeliver-{name}").into(), value.clone());
        (number.to_string().into_bytes(), properties(number).with_headers(headers))
    })
    .await;
    lab.publish(total..total + 10).await;
    drained(&service).await;
    let letters = dead_letters(&service).await;
    // Everything is handled or a dead letter, and whatever a header claims, nothing is both or neither.
    let dead: Vec<u32> = letters
        .iter()
        .map(|letter| String::from_utf8_lossy(&letter.body).parse().expect("a number"))
        .collect();
    for number in 0..total + 10 {
        let handled = number % 2 == 0 && seen.attempts().contains_key(&number);
        let (name, value) = cases.get(number as usize).copied().unwrap_or(("none", &values[0]));
        let times = dead.iter().filter(|dead| **dead == number).count();
        assert_eq!(usize::from(handled) + times, 1, "{name} = {value:?}: {handled}, {times}");
    }
    assert!(metric(&service, "malformed_headers").await > 50.0, "they are counted");
    assert!(service.health().ready, "{:?}", service.health().reasons);
    service.stop().await;
}

/// A header so long that nothing more fits into the frame.
fn fat(number: u32, length: usize) -> BasicProperties {
    let mut headers = FieldTable::default();
    headers.insert("fat".into(), AMQPValue::LongString("x".repeat(length).into()));
    headers.insert("tenant".into(), AMQPValue::LongString("acme".into()));
    properties(number).with_headers(headers)
}

#[tokio::test]
async fn messages_whose_headers_leave_no_room_for_ours_are_copied_all_the_same() {
    let lab = Lab::new().await;
    let seen = Seen::default();
    let handler = seen.clone();
    let service = lab
        .start(&lab.toml("", SHORT_WAITS), move |delivery: Delivery<u32>| {
            handler.note(&delivery);
            async move {
                match delivery.payload {
                    200 => Err(Failure::retry("told to fail")),
                    _ => Ok(()),
                }
            }
        })
        .await;
    // More than the lane may carry at once, so that it would stand still if any of them could not go.
    lab.publish_with(0..200, |number| (b"{{{".to_vec(), fat(number, 130_500))).await;
    lab.publish_with(200..201, |number| (b"200".to_vec(), fat(number, 130_500))).await;
    lab.publish(201..250).await;
    drained(&service).await;
    let letters = dead_letters(&service).await;
    assert_eq!(letters.len(), 201);
    for letter in &letters {
        let header = |name: &str| letter.headers.iter().find(|(known, _)| known == name);
        let value = |name: &str| header(name).map(|(_, value)| value.as_str());
        assert_eq!((value("fat"), value("tenant")), (None, Some("acme")));
        assert_eq!(value("redeliver-original-left-out"), Some("1"));
        assert!(letter.reason.is_some() && letter.dead_at.is_some());
        assert!(letter.body == b"{{{"[..] || letter.body == b"200"[..], "the body is another");
    }
    assert_eq!(seen.attempts()[&200], [1, 2, 3, 4]);
    assert_eq!(metric(&service, "headers_left_out").await, 201.0);
    assert_eq!(metric(&service, "copies_failed").await, 0.0);
    assert!(service.health().ready, "{:?}", service.health().reasons);
    service.stop().await;
    let attempts = seen.attempts();
    assert!((201..250).all(|number| attempts.contains_key(&number)), "the lane stood still");
}

#[tokio::test]
async fn the_least_frame_that_amqp_knows_is_enough_for_every_dead_letter() {
    let lab = Lab::new().await;
    let with = |bytes: usize| format!("{}?frame_max={bytes}", lab.url);
    // Newer servers take no less than 8192.
    let is_taken = lapin::Connection::connect(&with(4096), Default::default()).await.is_ok();
    let least = if is_taken { 4096 } else { 8192 };
    let url = with(least);
    // Everything fails here, and that is not what a breaker should find.
    let toml = lab.toml_at(&url, "breaker = { attempts_min = 1000 }", SHORT_WAITS);
    let service = lab
        .start(&toml, |_: Delivery<u32>| async {
            Err::<(), _>(Failure::retry("e".repeat(1024)).class("c".repeat(200)))
        })
        .await;
    let lengths = [0, least - 3596, least - 3096, least - 2096, least - 496];
    lab.publish_with(0..lengths.len() as u32, |number| {
        (number.to_string().into_bytes(), fat(number, lengths[number as usize]))
    })
    .await;
    drained(&service).await;
    let letters = dead_letters(&service).await;
    assert_eq!(letters.len(), lengths.len());
    for letter in &letters {
        let number: usize = String::from_utf8_lossy(&letter.body).parse().expect("a number");
        let fat = letter.headers.iter().find(|(name, _)| name == "fat");
        // Our own texts gave way first.
        assert_eq!(fat.is_some(), number < 4, "{} bytes", lengths[number]);
        assert_eq!(letter.reason, Some(redeliver::Reason::Exhausted));
        assert!(letter.error.as_ref().is_some_and(|error| error.len() >= 64));
    }
    service.stop().await;
}
