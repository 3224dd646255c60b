//! The publisher: stored and confirmed, or an error that names the message.

use std::time::Duration;

use actix::prelude::*;
use redeliver::broker::Fault;
use redeliver::{Delivery, Handled, Message, Service, blocking};

use crate::common::rabbitmq::unique;
use crate::lab::{Lab, until};
use crate::proxy::Proxy;

async fn idle(lab: &Lab, url: &str) -> Service {
    let service = lab.start(&lab.toml_at(url, "", ""), |_: Delivery<u32>| async { Ok(()) }).await;
    service.pause("orders").await.expect("it can be paused");
    service
}

#[tokio::test]
async fn a_message_that_no_queue_takes_is_an_error_that_names_it() {
    let lab = Lab::new().await;
    let service = idle(&lab, &lab.url).await;
    let publisher = service.publisher("main").expect("there is this broker");
    let nowhere = unique("nowhere");
    let lost = Message::bytes("1").to_queue(&nowhere).id("order-1");
    let error = publisher.send(lost).await.expect_err("no queue takes it");
    assert_eq!((error.id(), error.fault()), ("order-1", Fault::Unroutable));
    for part in ["`order-1`", &format!("queue `{nowhere}`"), "NO_ROUTE", "declare the queue"] {
        assert_eq!(error.to_string().matches(part).count(), 1, "{part} in: {error}");
    }
    let lost = Message::bytes("2").to_exchange(&nowhere, "key").id("order-2");
    let error = publisher.send(lost).await.expect_err("there is no such exchange");
    assert_eq!((error.id(), error.fault()), ("order-2", Fault::Missing));
    assert!(error.to_string().contains(&nowhere) && error.to_string().contains("`order-2`"));
    // The channel that the server closed over it is nobody else's.
    let id = publisher.send(Message::bytes("3").to_queue(&lab.queue)).await.expect("it is stored");
    assert_eq!(id.as_str().len(), 36, "a UUID was made for it");
    until("it is there", || async { lab.ready().await == 1 }).await;
    service.stop().await;
}

#[tokio::test]
async fn what_was_never_sent_cannot_have_arrived() {
    let lab = Lab::new().await;
    // Nobody listens there.
    let away = "[brokers.away]\nkind = \"rabbitmq\"\nurl = \"amqp://127.0.0.1:1/%2f\"\n";
    let service = lab.start(&lab.toml("", away), |_: Delivery<u32>| async { Ok(()) }).await;
    let publisher = service.publisher("away").expect("there is this broker");
    let message = Message::bytes("1").to_queue(&lab.queue).id("order-1");
    let error = publisher.send(message).await.expect_err("nobody takes it");
    assert_eq!((error.fault(), error.may_have_arrived()), (Fault::Unreachable, false), "{error}");
    assert!(error.to_string().ends_with("send it again once the broker is there"), "{error}");
    service.stop().await;
}

/// Sends what it is given on, from a thread that knows nothing of Tokio.
struct Forwarder {
    runtime: tokio::runtime::Handle,
    target: String,
}

impl Actor for Forwarder {
    type Context = SyncContext<Self>;
}

impl Handler<Delivery<u32>> for Forwarder {
    type Result = Handled;

    fn handle(&mut self, delivery: Delivery<u32>, _: &mut SyncContext<Self>) -> Handled {
        let message = Message::json(&delivery.payload)?.to_queue(&self.target);
        self.runtime.block_on(delivery.publisher().send(message))?;
        Ok(())
    }
}

#[tokio::test]
async fn a_blocking_handler_sends_on_through_the_runtime_of_its_program() {
    let lab = Lab::new().await;
    let target = lab.beside("next");
    lab.raw.declare(&target, &[]).await;
    let forwarder = {
        let (runtime, target) = (tokio::runtime::Handle::current(), target.clone());
        move || Forwarder { runtime: runtime.clone(), target: target.clone() }
    };
    let service = lab.start(&lab.toml("", ""), blocking(2, forwarder)).await;
    lab.publish(0..20).await;
    until("all were sent on", || async { lab.raw.count(&target).await == 20 }).await;
    service.stop().await;
    assert_eq!(lab.ready().await, 0);
}

#[tokio::test]
async fn a_message_whose_confirm_was_lost_is_sent_again_under_the_same_id() {
    let lab = Lab::new().await;
    let proxy = Proxy::to(&lab.url).await;
    let service = idle(&lab, &proxy.url).await;
    let publisher = service.publisher("main").expect("there is this broker");
    // So that connection and channel are there.
    publisher.send(Message::bytes("0").to_queue(&lab.queue)).await.expect("it is stored");
    proxy.hold_back(true);
    let message = Message::bytes("7").to_queue(&lab.queue).id("order-7").header("tenant", "acme");
    let sending = tokio::spawn(async move { publisher.send(message).await });
    until("the server has it", || async { lab.ready().await == 2 }).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!sending.is_finished(), "nobody told us that it is stored");
    proxy.cut();
    proxy.hold_back(false);
    let id = sending.await.expect("no task panics").expect("it is stored at last");
    assert_eq!(id.as_str(), "order-7");
    service.stop().await;
    let stored = lab.take_all(&lab.queue).await;
    let ids: Vec<_> = stored
        .iter()
        .map(|message| message.delivery.properties.message_id().clone().unwrap_or_default())
        .collect();
    assert_eq!(ids.len(), 3, "the first one had arrived");
    assert_eq!((ids[1].as_str(), ids[2].as_str()), ("order-7", "order-7"));
    assert_eq!(stored[1].delivery.data, stored[2].delivery.data);
}

#[tokio::test]
async fn what_is_published_is_persistent_stamped_and_as_it_was_given() {
    let lab = Lab::new().await;
    let service = idle(&lab, &lab.url).await;
    let publisher = service.publisher("main").expect("there is this broker");
    let message = Message::json(&7)
        .expect("a number is JSON")
        .to_queue(&lab.queue)
        .id("order-7")
        .kind("order.placed")
        .priority(3)
        .expires_in(Duration::from_secs(600))
        .header("tenant", "acme");
    publisher.send(message).await.expect("it is stored");
    service.stop().await;
    let stored = lab.take_all(&lab.queue).await;
    let properties = &stored[0].delivery.properties;
    assert_eq!(stored[0].delivery.data, b"7");
    assert_eq!(properties.delivery_mode(), &Some(2));
    assert_eq!(properties.priority(), &Some(3));
    let text = |value: &Option<lapin::types::ShortString>| {
        value.as_ref().map(|text| text.as_str().to_owned()).unwrap_or_default()
    };
    assert_eq!(text(properties.content_type()), "application/json");
    assert_eq!(text(properties.kind()), "order.placed");
    assert_eq!(text(properties.expiration()), "600000");
    let headers = properties.headers().clone().unwrap_or_default();
    let tenant = headers.inner().get("tenant").cloned();
    assert_eq!(tenant, Some(lapin::types::AMQPValue::LongString("acme".into())));
}

#[tokio::test]
async fn an_error_tells_what_never_can_be_sent_from_what_may_have_arrived() {
    let lab = Lab::new().await;
    let service = idle(&lab, &lab.url).await;
    let publisher = service.publisher("main").expect("there is this broker");
    let long = "x".repeat(300);
    let message = || Message::bytes("1").to_queue(&lab.queue).id("order-1");
    let never = [
        message().id(&long),
        message().kind(&long),
        message().header(&long, "1"),
        message().header("fat", "x".repeat(200_000)),
        message().to_queue(&long),
        message().to_exchange("amq.topic", &long),
        message().to_topic("orders"),
    ];
    for message in never {
        let error = publisher.send(message).await.expect_err("nobody can send it");
        assert!(error.is_invalid() && !error.may_have_arrived(), "{error}");
        assert!(error.to_string().ends_with("never will be as it is"), "{error}");
    }
    let error = publisher.send(message().to_queue(unique("nowhere"))).await.expect_err("no queue");
    assert!(!error.is_invalid() && !error.may_have_arrived(), "{error}");
    assert!(error.to_string().ends_with("mend that, then send it again"), "{error}");
    service.stop().await;
    let error = publisher.send(message()).await.expect_err("it has stopped");
    assert_eq!((error.fault(), error.may_have_arrived()), (Fault::Closed, false));
}
