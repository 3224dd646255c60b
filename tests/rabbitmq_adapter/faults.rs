//! Connections, channels and queues that go away, and servers that refuse.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use redeliver::broker::rabbitmq::RabbitBroker;
use redeliver::broker::{Broker, BrokerState, Fault, LaneEnd, Settlement, Target};
use tokio::time::{sleep, timeout};

use crate::server::{
    Lab, PATIENCE, Raw, broker_settings, message, open, queue, receive, texts, unique, url,
};

#[tokio::test]
async fn a_connection_that_is_closed_by_the_server_is_made_anew_and_nothing_is_lost() {
    let lab = Lab::connect().await;
    let source = lab.prepared(&[]).await;
    let publisher = lab.broker.publisher();
    for number in 0..10 {
        publisher
            .send(&message(Target::Queue(queue(&source)), &number.to_string()))
            .await
            .expect("it is stored");
    }
    let mut lanes = lab.broker.lanes(source.clone());
    let (id, mut lane) = open(&mut *lanes).await;
    let held = receive(&mut *lane, 4).await;
    lane.settle(&mut vec![Settlement::Ack(held[0].token)]).await.expect("the lane settles");

    lab.close_connections().await;
    let mut rest = Vec::new();
    let end = loop {
        match timeout(PATIENCE, lane.next(&mut rest, 100)).await.expect("the loss is noticed") {
            Ok(()) => {}
            Err(end) => break end,
        }
    };
    assert!(
        matches!(&end, LaneEnd::Lost(error) if error.text.contains("closed by a test")),
        "{end}"
    );
    assert!(
        lane.settle(&mut vec![Settlement::Ack(held[1].token)]).await.is_err(),
        "there is no channel to settle on"
    );
    // It would wait for an answer for five seconds and more.
    let closing =
        timeout(Duration::from_secs(4), lane.close()).await.expect("a dead lane closes at once");
    assert!(closing.is_err());

    lanes.release(id);
    let (_, mut again) = open(&mut *lanes).await;
    assert!(again.generation() > lane.generation());
    let mut numbers = texts(&receive(&mut *again, 9).await);
    numbers.sort();
    assert_eq!(numbers, ["1", "2", "3", "4", "5", "6", "7", "8", "9"]);
    publisher
        .send(&message(Target::Queue(queue(&source)), "after"))
        .await
        .expect("the publisher is back too");
    assert_eq!(lab.broker.state(), BrokerState::Connected);
    again.close().await.expect("the lane closes");
}

#[tokio::test]
async fn a_queue_that_is_deleted_under_its_consumer_is_declared_and_consumed_again() {
    let lab = Lab::connect().await;
    let source = lab.prepared(&[]).await;
    let mut lanes = lab.broker.lanes(source.clone());
    let (id, mut lane) = open(&mut *lanes).await;
    Raw::connect().await.delete(&queue(&source)).await;
    let end = timeout(PATIENCE, lane.next(&mut Vec::new(), 1))
        .await
        .expect("the cancel is noticed")
        .expect_err("there is nothing to deliver");
    assert!(matches!(end, LaneEnd::Cancelled), "{end}");
    lane.close().await.expect("its channel is alive and closes");
    lanes.release(id);
    let (_, mut again) = open(&mut *lanes).await;
    lab.broker
        .publisher()
        .send(&message(Target::Queue(queue(&source)), "again"))
        .await
        .expect("it is stored");
    assert_eq!(texts(&receive(&mut *again, 1).await), ["again"]);
    again.close().await.expect("the lane closes");
}

#[tokio::test]
async fn messages_without_a_queue_fail_and_their_neighbours_do_not() {
    let lab = Lab::connect().await;
    let source = lab.prepared(&[]).await;
    let publisher = lab.broker.publisher();
    let (there, nowhere) = (Target::Queue(queue(&source)), Target::Queue(unique("nowhere")));
    let missing = Target::Exchange { exchange: unique("exchange"), routing_key: String::new() };
    let messages: Vec<_> = (0..600)
        .map(|number| match number % 6 {
            0 => message(nowhere.clone(), &number.to_string()),
            1 if number % 60 == 1 => message(missing.clone(), &number.to_string()),
            _ => message(there.clone(), &number.to_string()),
        })
        .collect();
    let sent = join_all(messages.iter().map(|message| publisher.send(message))).await;
    for (message, sent) in messages.iter().zip(sent) {
        let expected = match &message.target {
            target if *target == there => None,
            target if *target == nowhere => Some(Fault::Unroutable),
            _ => Some(Fault::Missing),
        };
        assert_eq!(
            sent.as_ref().err().map(|error| error.fault),
            expected,
            "message {}: {sent:?}",
            message.id
        );
    }
    let stored = messages.iter().filter(|message| message.target == there).count();
    assert_eq!(
        lab.broker.depth(&source).await.expect("it can be counted").ready,
        Some(stored as u64)
    );
}

#[tokio::test]
async fn twenty_closes_right_after_the_last_acknowledgement_lose_none_of_them() {
    let lab = Lab::connect().await;
    let source = lab.source_with(&[], |settings| {
        settings.in_flight_max = 256.try_into().expect("256 is not zero")
    });
    lab.broker.prepare(&source).await.expect("the source can be prepared");
    let raw = Raw::connect().await;
    for _ in 0..20 {
        let publisher = lab.broker.publisher();
        let batch: Vec<_> = (0..500)
            .map(|number| message(Target::Queue(queue(&source)), &number.to_string()))
            .collect();
        join_all(batch.iter().map(|message| publisher.send(message)))
            .await
            .into_iter()
            .for_each(|sent| sent.expect("it is stored"));
        let mut lanes = lab.broker.lanes(source.clone());
        let (_, mut lane) = open(&mut *lanes).await;
        let mut left = 500;
        while left > 0 {
            let mut got = Vec::new();
            timeout(PATIENCE, lane.next(&mut got, 64))
                .await
                .expect("messages come in time")
                .expect("the lane delivers");
            left -= got.len();
            let mut settlements =
                got.iter().rev().map(|message| Settlement::Ack(message.token)).collect();
            lane.settle(&mut settlements).await.expect("the lane settles");
        }
        lane.close().await.expect("the lane closes");
        sleep(Duration::from_millis(50)).await;
        assert_eq!(raw.count(&queue(&source)).await, 0, "acknowledged messages came back");
    }
}

#[tokio::test]
async fn refused_credentials_are_told_without_the_password() {
    let url = url().replacen("://", "://somebody:hunter2@", 1);
    let lab = Lab::new(&crate::server::url(), &broker_settings(&url));
    let error = lab.broker.connect().await.expect_err("nobody has this password");
    assert_eq!(error.fault, Fault::Refused, "{error}");
    assert!(
        error.text.contains("ACCESS_REFUSED") && error.text.contains("check the user"),
        "{error}"
    );
    assert!(!format!("{error} {error:?} {:?}", lab.broker.state()).contains("hunter2"), "{error}");
}

#[tokio::test]
async fn a_virtual_host_that_is_missing_is_refused() {
    let base = url();
    let url =
        format!("{}/{}", base.rsplit_once('/').expect("the url has a path").0, unique("vhost"));
    let error = Lab::new(&base, &broker_settings(&url))
        .broker
        .connect()
        .await
        .expect_err("there is no such virtual host");
    assert_eq!(error.fault, Fault::Refused, "{error}");
    assert!(error.text.contains("not found") && error.text.contains("virtual host"), "{error}");
}

#[tokio::test]
async fn a_port_where_nobody_listens_is_unreachable_and_attempts_are_spaced() {
    let lab = Lab::new(&url(), &broker_settings("amqp://127.0.0.1:1/%2f"));
    for _ in 0..3 {
        let error = lab.broker.connect().await.expect_err("nobody listens there");
        assert_eq!(error.fault, Fault::Unreachable, "{error}");
        assert!(
            error.text.contains("amqp://127.0.0.1:1/%2f") && error.text.contains("refused"),
            "{error}"
        );
    }
    assert!(
        matches!(lab.broker.state(), BrokerState::Disconnected(why) if why.contains("refused"))
    );
}

#[test]
fn a_url_that_cannot_be_read_is_told_without_the_password() {
    for url in ["http://u:hunter2@host/v", "amqp://u:hunter2@host:port/v", "u:hunter2@host"] {
        let error = RabbitBroker::new("main", &broker_settings(url), "shop")
            .err()
            .expect("it cannot be read");
        assert_eq!(error.fault, Fault::Refused);
        assert!(
            error.text.contains("brokers.main.url") && !error.text.contains("hunter2"),
            "{error}"
        );
    }
}

#[test]
fn a_setting_of_the_url_that_cannot_be_read_is_named() {
    for (settings, said) in [
        ("heartbeat=hunter2", "`heartbeat` after the `?` is no whole number"),
        ("frame_max=8192&channel_max=70000", "`channel_max` after the `?` is no whole number"),
        ("auth_mechanism=hunter2", "`auth_mechanism` after the `?` is none that is known"),
    ] {
        let settings = broker_settings(&format!("amqp://127.0.0.1:1/%2f?{settings}"));
        let error = RabbitBroker::new("main", &settings, "shop").err().expect("it cannot be read");
        assert!(error.text.contains(said) && !error.text.contains("hunter2"), "{error}");
    }
}

#[tokio::test]
async fn tls_at_a_port_without_it_is_told_from_a_wrong_certificate() {
    let plain = url().replace("amqp://", "amqps://");
    let error = Lab::new(&url(), &broker_settings(&plain)).broker.connect().await;
    let error = error.expect_err("it does not speak TLS");
    assert_eq!(error.fault, Fault::Refused, "{error}");
    assert!(error.text.contains("amqp:// for this one"), "{error}");
    assert!(!error.text.contains("certificate"), "{error}");
}

#[tokio::test]
async fn a_closed_broker_sends_nothing_more() {
    let lab = Lab::connect().await;
    let source = lab.prepared(&[]).await;
    let publisher = lab.broker.publisher();
    let target = Target::Queue(queue(&source));
    let batch: Arc<Vec<_>> =
        Arc::new((0..50).map(|number| message(target.clone(), &number.to_string())).collect());
    let sending = tokio::spawn({
        let (publisher, batch) = (publisher.clone(), batch.clone());
        async move { join_all(batch.iter().map(|message| publisher.send(message))).await }
    });
    tokio::task::yield_now().await;
    lab.broker.close().await;
    let confirmed =
        sending.await.expect("no task panics").iter().filter(|sent| sent.is_ok()).count();
    let error = publisher.send(&batch[0]).await.expect_err("the broker is closed");
    assert!(error.text.contains("closed by this process"), "{error}");
    let count = Raw::connect().await.count(&queue(&source)).await;
    assert!(count as usize >= confirmed, "{confirmed} were confirmed and {count} are there");
}
