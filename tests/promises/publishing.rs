//! What is published arrives confirmed, or is an error that names it; what is sent on tells why.

use std::sync::{Arc, Mutex};

use redeliver::broker::Fault;
use redeliver::{Delivery, Handled, Message};

use crate::bench::{THRICE, obey, orders, text};

#[test]
fn a_message_to_a_queue_that_is_not_there_is_an_error_that_names_it() {
    let mut test = orders("", THRICE, obey);
    let publisher = test.service().publisher("main").expect("it is configured");
    let sent = test.run(async move { publisher.send(text("7", "ok").to_queue("odrers")).await });
    let error = sent.expect_err("nobody takes it");
    assert_eq!((error.id(), error.fault()), ("7", Fault::Unroutable));
    let said = error.to_string();
    assert!(said.contains("`7`") && said.contains("`odrers`"), "{said}");
}

#[test]
fn an_exchange_without_a_binding_is_an_error_too() {
    let mut test = orders("", THRICE, obey);
    let publisher = test.service().publisher("main").expect("it is configured");
    let message = text("7", "ok").to_exchange("shop", "order.placed");
    let sent = test.run(async move { publisher.send(message).await });
    assert_eq!(sent.expect_err("nobody takes it").fault(), Fault::Unroutable);
}

#[test]
fn a_broker_that_is_not_configured_is_an_error_that_lists_those_that_are() {
    let test = orders("", THRICE, obey);
    let error = test.service().publisher("mian").err().expect("there is no such broker");
    assert!(
        error.to_string().contains("`mian`") && error.to_string().contains("`main`"),
        "{error}"
    );
}

#[test]
fn a_message_without_an_id_gets_one() {
    let mut test = orders("", THRICE, obey);
    let publisher = test.service().publisher("main").expect("it is configured");
    let message = Message::json(&"ok").expect("JSON").to_queue("orders");
    let sent = test.run(async move { publisher.send(message).await }).expect("it is confirmed");
    assert_eq!(test.log(), [format!("{sent}: attempt 1 handled")]);
    assert_eq!(sent.as_str().len(), 36);
}

#[test]
fn what_is_sent_on_carries_trace_cause_and_hops_and_keeps_what_the_user_set() {
    type Seen = Arc<Mutex<Vec<Vec<Option<String>>>>>;
    let seen = Seen::default();
    let sink = Arc::clone(&seen);
    let handler = move |delivery: Delivery<String>| {
        let sink = Arc::clone(&sink);
        async move {
            let header = |name: &str| match delivery.header(name) {
                Some(redeliver::broker::HeaderValue::Text(text)) => Some(text.to_owned()),
                _ => None,
            };
            let names =
                ["traceparent", "tracestate", "redeliver-causation", "redeliver-hops", "tenant"];
            sink.lock().unwrap().push(names.map(header).to_vec());
            if delivery.hops() == 0 {
                let message =
                    Message::json(&"ok")?.to_queue("orders").id("8").header("tenant", "acme");
                delivery.publisher().send(message).await?;
            }
            Handled::Ok(())
        }
    };
    let mut test = orders("", THRICE, handler);
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let message = text("7", "ok").header("traceparent", trace).header("tracestate", "a=b");
    test.publish("orders", message);
    test.finish();
    let some = |text: &str| Some(text.to_owned());
    let mut seen = seen.lock().unwrap();
    // The same trace, in a span of its own.
    let sent_on = seen[1][0].take().expect("it carries a trace");
    assert_eq!(sent_on[..36], trace[..36]);
    assert_ne!(sent_on, trace);
    assert_eq!(
        *seen,
        [
            vec![some(trace), some("a=b"), None, None, None],
            vec![None, some("a=b"), some("7"), some("1"), some("acme")],
        ]
    );
}

#[test]
fn id_trace_and_user_headers_survive_waits() {
    type Seen = Arc<Mutex<Vec<(Option<String>, u32, bool)>>>;
    let seen = Seen::default();
    let sink = Arc::clone(&seen);
    let handler = move |delivery: Delivery<String>| {
        let trace = delivery.header("traceparent").is_some() && delivery.header("tenant").is_some();
        sink.lock().unwrap().push((delivery.id().map(str::to_owned), delivery.attempt(), trace));
        obey(delivery)
    };
    let retry = "jitter = \"none\"\nin_process_max = \"0s\"\nattempts_max = 3\n";
    let mut test = orders("", retry, handler);
    test.publish(
        "orders",
        text("7", "retry").header("traceparent", "00-a-b-01").header("tenant", "x"),
    );
    test.finish();
    let id = Some("7".to_owned());
    assert_eq!(
        *seen.lock().unwrap(),
        [(id.clone(), 1, true), (id.clone(), 2, true), (id, 3, true)]
    );
}
