//! W3C trace context is continued through waits and dead letters, and into what a handler publishes.

use std::sync::{Arc, Mutex};

use lapin::types::{AMQPValue, FieldTable};
use redeliver::broker::HeaderValue;
use redeliver::{Delivery, Failure, Message};

use crate::lab::{Lab, SHORT_WAITS, dead_letters, drained, properties};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

fn headers() -> FieldTable {
    let mut headers = FieldTable::default();
    let parent = format!("00-{TRACE}-00f067aa0ba902b7-01");
    headers.insert("traceparent".into(), AMQPValue::LongString(parent.into()));
    headers.insert("tracestate".into(), AMQPValue::LongString("vendor=1".into()));
    headers
}

#[tokio::test]
async fn a_trace_goes_on_through_waits_dead_letters_and_what_is_sent_on() {
    let lab = Lab::new().await;
    let next = lab.beside("next");
    lab.raw.declare(&next, &[("x-queue-type", AMQPValue::LongString("quorum".into()))]).await;
    let traces = Arc::new(Mutex::new(Vec::new()));
    let (note, target) = (traces.clone(), next.clone());
    let service = lab
        .start(&lab.toml("", SHORT_WAITS), move |delivery: Delivery<u32>| {
            let text = |name: &str| match delivery.header(name) {
                Some(HeaderValue::Text(text)) => text.to_owned(),
                other => format!("{other:?}"),
            };
            let seen = (delivery.attempt(), text("traceparent"), text("tracestate"));
            note.lock().expect("no test panics in here").push(seen);
            let (publisher, target) = (delivery.publisher(), target.clone());
            async move {
                match delivery.attempt() {
                    3 => {
                        publisher.send(Message::bytes("8").to_queue(target)).await?;
                        Err(Failure::reject("done with it"))
                    }
                    _ => Err(Failure::retry("not yet")),
                }
            }
        })
        .await;
    lab.publish_with(7..8, |number| (b"7".to_vec(), properties(number).with_headers(headers())))
        .await;
    drained(&service).await;
    let traces = traces.lock().expect("no test panics in here").clone();
    assert_eq!(traces.len(), 3);
    for (attempt, parent, state) in traces {
        assert!(parent.contains(TRACE), "attempt {attempt}: {parent}");
        assert_eq!(state, "vendor=1", "attempt {attempt}");
    }
    let letters = dead_letters(&service).await;
    let parent = letters[0].headers.iter().find(|(name, _)| name == "traceparent");
    assert!(parent.is_some_and(|(_, parent)| parent.contains(TRACE)), "{:?}", letters[0].headers);
    service.stop().await;

    let sent = lab.take_all(&next).await;
    let headers = sent[0].delivery.properties.headers().clone().unwrap_or_default();
    let text = |name: &str| match headers.inner().get(name) {
        Some(AMQPValue::LongString(text)) => text.to_string(),
        other => format!("{other:?}"),
    };
    assert!(text("traceparent").contains(TRACE), "{headers:?}");
    assert_eq!((text("redeliver-causation"), text("redeliver-hops")), ("7".into(), "1".into()));
}
