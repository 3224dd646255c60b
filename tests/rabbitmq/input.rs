//! Bad input: a dead letter with its reason, and the lane goes on.

use std::collections::BTreeMap;

use lapin::BasicProperties;
use lapin::types::{AMQPValue, DecimalValue, FieldArray, FieldTable};
use redeliver::{Delivery, Failure};

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

const NAMES: [&str; 12] = [
    "redeliver-id",
    "redeliver-attempt",
    "redeliver-delay",
    "redeliver-due",
    "redeliver-rest",
    "redeliver-first-seen",
    "redeliver-expires",
    "redeliver-origin",
    "redeliver-hops",
    "redeliver-generation",
    "redeliver-original-expiration",
    "redeliver-reason",
];

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
    let cases: Vec<_> =
        NAMES.iter().flat_map(|name| values.iter().map(move |value| (*name, value))).collect();
    let total = cases.len() as u32;
    lab.publish_with(0..total, |number| {
        let (name, value) = cases[number as usize];
        let mut headers = FieldTable::default();
        headers.insert(name.into(), value.clone());
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
