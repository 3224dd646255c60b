//! What a service says when it cannot start: which subscription, what was tried, what to do, and no password.

use lapin::types::AMQPValue;
use redeliver::{Delivery, Error, Handled, Message};

use crate::common::rabbitmq::unique;
use crate::lab::{Lab, SHORT_WAITS, metric, until};
use crate::proxy::Proxy;

async fn nothing(_: Delivery<u32>) -> Handled {
    Ok(())
}

/// Starts with these keys and gives the error, which must have these parts and no password.
async fn refused(lab: &Lab, toml: &str, parts: &[&str]) {
    let started = lab.try_start(toml, nothing).await;
    let error: Error = started.err().expect("it cannot start");
    let text = error.to_string();
    for part in parts {
        assert!(text.contains(part), "{part} is missing in:\n{text}");
    }
    assert!(!format!("{error:?} {text}").contains("hunter2"), "a password is shown:\n{text}");
}

#[tokio::test]
async fn queues_that_are_missing_under_verify_are_all_named() {
    let lab = Lab::new().await;
    let toml = lab.toml("topology = \"verify\"\n", SHORT_WAITS);
    let wait = format!("{}.wait.200", lab.queue);
    let parts = ["`orders`", &lab.queue, &lab.dead(), &wait, "create it beforehand"];
    refused(&lab, &toml, &parts).await;
    // Once they are there it starts.
    lab.start(&lab.toml("", SHORT_WAITS), nothing).await.stop().await;
    lab.start(&toml, nothing).await.stop().await;
}

#[tokio::test]
async fn a_queue_with_other_properties_is_refused_and_both_sides_are_shown() {
    let lab = Lab::new().await;
    let short = ("x-max-length", AMQPValue::LongInt(5));
    let quorum = ("x-queue-type", AMQPValue::LongString("quorum".into()));
    lab.raw.declare(&lab.queue, &[quorum, short]).await;
    let theirs = "inequivalent arg 'x-";
    let ours = "x-dead-letter-routing-key=";
    let parts = ["`orders`", &lab.queue, theirs, ours, "topology = \"verify\""];
    refused(&lab, &lab.toml("", ""), &parts).await;
    lab.start(&lab.toml("topology = \"none\"\n", ""), nothing).await.stop().await;
}

#[tokio::test]
async fn credentials_that_are_refused_are_told_at_once_and_without_the_password() {
    let lab = Lab::new().await;
    let place = lab.url.rsplit_once('@').map_or_else(
        || lab.url.trim_start_matches("amqp://").to_owned(),
        |(_, place)| place.to_owned(),
    );
    let began = std::time::Instant::now();
    let url = format!("amqp://somebody:hunter2@{place}");
    let parts = ["`main`", "orders", "connecting to", "ACCESS_REFUSED", "check the user"];
    refused(&lab, &lab.toml_at(&url, "", ""), &parts).await;
    assert!(began.elapsed().as_secs() < 25, "it is of no use to try until startup_max");

    let (place, _) = place.split_once('/').expect("the url has a path");
    let vhost = unique("vhost");
    let url = format!("amqp://guest:guest@{place}/{vhost}");
    let parts = ["`main`", "orders", "connecting to", &vhost, "virtual host"];
    refused(&lab, &lab.toml_at(&url, "", ""), &parts).await;
}

#[tokio::test]
async fn an_address_where_nobody_listens_is_tried_for_startup_max_and_told() {
    let lab = Lab::new().await;
    let url = "amqp://somebody:hunter2@127.0.0.1:1/%2f";
    let toml =
        lab.toml_at(url, "", "").replace("[brokers.main]", "startup_max = \"2s\"\n[brokers.main]");
    let began = std::time::Instant::now();
    let parts = ["`main`", "orders", "startup_max", "127.0.0.1:1", "refused"];
    refused(&lab, &toml, &parts).await;
    assert!(began.elapsed().as_secs() >= 2);
}

#[tokio::test]
async fn a_broker_that_no_subscription_needs_may_be_away_at_the_start() {
    let lab = Lab::new().await;
    let proxy = Proxy::to(&lab.url).await;
    let with = |url: &str| {
        format!("{}\n[brokers.audit]\nkind = \"rabbitmq\"\nurl = \"{url}\"", lab.toml("", ""))
    };
    proxy.hold_back(true);
    let service = lab.start(&with(&proxy.url), nothing).await;
    lab.publish(0..1).await;
    until("it works", || async { metric(&service, "handled").await >= 1.0 }).await;
    let health = service.health();
    let [reason] = health.reasons.as_slice() else { panic!("not one reason: {health:?}") };
    assert!(reason.starts_with("broker audit: not connected"), "{reason}");
    proxy.hold_back(false);
    until("it is found", || async { service.health().ready }).await;
    let publisher = service.publisher("audit").expect("it is configured");
    publisher.send(Message::bytes("7").to_queue(&*lab.queue)).await.expect("it is stored");
    service.stop().await;

    let place = proxy.url.rsplit_once('@').expect("the proxy's url has a user").1;
    let refused_url = format!("amqp://somebody:hunter2@{place}");
    refused(&lab, &with(&refused_url), &["`audit`", "ACCESS_REFUSED", "check the user"]).await;
}
