//! W3C trace context is continued through waits and dead letters, and into what a handler sends on.

use std::sync::{Arc, Mutex};

use redeliver::broker::HeaderValue;
use redeliver::{Delivery, Failure, Handled, Message};

use crate::ground::{Ground, Kind, dead_letters, drained, text, until};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

/// What a handler saw of one delivery.
#[derive(Clone, Debug)]
struct Sight {
    id: String,
    attempt: u32,
    hops: u32,
    parent: String,
    state: String,
    causation: String,
}

fn sight(delivery: &Delivery<String>) -> Sight {
    let text = |name: &str| match delivery.header(name) {
        Some(HeaderValue::Text(text)) => text.to_owned(),
        other => format!("{other:?}"),
    };
    Sight {
        id: delivery.id().unwrap_or_default().to_owned(),
        attempt: delivery.attempt(),
        hops: delivery.hops(),
        parent: text("traceparent"),
        state: text("tracestate"),
        causation: text("redeliver-causation"),
    }
}

pub(crate) async fn a_trace_goes_on_through_waits_dead_letters_and_what_is_sent_on(kind: Kind) {
    let ground = Arc::new(Ground::new(kind).await);
    let sights = Arc::new(Mutex::new(Vec::new()));
    let (noted, at) = (sights.clone(), ground.clone());
    let handler = move |delivery: Delivery<String>| {
        noted.lock().expect("no test panics in here").push(sight(&delivery));
        let at = at.clone();
        async move {
            if delivery.id() == Some("next") {
                return Handled::Ok(());
            }
            if delivery.attempt() < 3 {
                return Err(Failure::retry("not yet"));
            }
            let next = Message::json(&"ok")?.id("next");
            delivery.publisher().send(at.address(next)).await?;
            Err(Failure::reject("done with it"))
        }
    };
    let retry = "backoff = \"fixed\"\njitter = \"none\"\ndelay_min = \"200ms\"\n\
                 in_process_max = \"0s\"\n";
    let service = ground.start(&ground.toml("", retry), handler).await;
    let first = text("first", "begin")
        .header("traceparent", format!("00-{TRACE}-00f067aa0ba902b7-01"))
        .header("tracestate", "vendor=1");
    ground.send(&service, first).await;
    let seen = || sights.lock().expect("no test panics in here").clone();
    until("the one that was sent on is handled", async || seen().len() == 4).await;
    drained(&service).await;

    let (next, first): (Vec<_>, Vec<_>) = seen().into_iter().partition(|it| it.id == "next");
    for (sight, attempt) in first.iter().zip(1..) {
        assert!(sight.parent.contains(TRACE), "{sight:?}");
        assert_eq!((sight.attempt, sight.hops, &*sight.state), (attempt, 0, "vendor=1"));
    }
    assert_eq!((first.len(), next.len()), (3, 1));
    assert!(next[0].parent.contains(TRACE), "{next:?}");
    assert_eq!((next[0].hops, &*next[0].causation), (1, "first"));
    let letters = dead_letters(&service).await;
    let parent = letters[0].headers.iter().find(|(name, _)| name == "traceparent");
    assert!(parent.is_some_and(|(_, parent)| parent.contains(TRACE)), "{:?}", letters[0].headers);
    service.stop().await;
}
