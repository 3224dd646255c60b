//! What is declared, what is verified, and what the errors say.

use std::sync::Arc;
use std::time::Duration;

use lapin::types::AMQPValue;
use redeliver::broker::{Broker, Depth, Fault, Settlement, Source, Target};
use redeliver::config::{self, Binding, OrderScope, Ordering, Topology};

use crate::server::{
    Lab, Raw, broker_settings, dead, message, open, queue, receive, texts, unique, url,
};

#[tokio::test]
async fn a_queue_with_other_properties_is_an_error_that_shows_both_sides() {
    let lab = Lab::connect().await;
    let source = lab.source_with(&[], |_| {});
    let raw = Raw::connect().await;
    raw.declare(&queue(&source), &[("x-queue-type", AMQPValue::LongString("quorum".into()))]).await;
    raw.declare(&dead(&source), &[]).await;
    let error =
        lab.broker.prepare(&source).await.expect_err("two queues are there with other properties");
    assert_eq!(error.fault, Fault::Mismatch, "{error}");
    for part in [
        "inequivalent arg 'x-queue-type'",
        "inequivalent arg 'x-",
        "x-delivery-limit=1000000000",
        "`orders`",
        &queue(&source),
        &dead(&source),
        "delete it",
    ] {
        assert!(error.text.contains(part), "{part} is missing in:\n{error}");
    }
    assert_eq!(error.text.lines().count(), 2, "both differences, a line each:\n{error}");
}

#[tokio::test]
async fn an_argument_that_no_such_queue_can_have_is_not_taken_for_another_queue() {
    let lab = Lab::connect().await;
    let source = lab.source_with(&[], |settings| {
        settings.arguments.insert("x-max-priority".to_owned(), toml::Value::Integer(9));
    });
    let error = lab.broker.prepare(&source).await.expect_err("quorum queues have no priorities");
    assert_eq!(error.fault, Fault::Mismatch, "{error}");
    assert!(error.text.contains("'x-max-priority'"), "{error}");
    assert!(error.text.contains("cannot have these `arguments`"), "{error}");
    assert!(!error.text.contains("delete it"), "{error}");
}

#[tokio::test]
async fn verifying_names_every_queue_and_exchange_that_is_missing_and_creates_none() {
    let lab = Lab::connect().await;
    let exchange = unique("exchange");
    let source = lab.source_with(&[Duration::from_secs(5)], |settings| {
        settings.topology = Topology::Verify;
        let binding = |exchange: &str| Binding {
            exchange: exchange.to_owned(),
            routing_key: "order.*".to_owned(),
        };
        settings.bindings = vec![binding(&exchange), binding("amq.topic"), binding(&exchange)];
    });
    for _ in 0..2 {
        let error = lab.broker.prepare(&source).await.expect_err("nothing is there");
        assert_eq!(error.fault, Fault::Missing, "{error}");
        let named = error.text.matches(&format!("looking for exchange `{exchange}`")).count();
        assert_eq!(named, 1, "{error}");
        assert!(!error.text.contains("amq.topic"), "{error}");
        for name in [queue(&source), dead(&source), format!("{}.wait.5000", queue(&source))] {
            assert!(
                error.text.contains(&format!("looking for queue `{name}`")),
                "{name} is missing in:\n{error}"
            );
        }
    }
}

#[tokio::test]
async fn a_binding_to_an_exchange_that_is_missing_says_so() {
    let lab = Lab::connect().await;
    let exchange = unique("exchange");
    let source = lab.source_with(&[], |settings| {
        settings.bindings =
            vec![Binding { exchange: exchange.clone(), routing_key: "order.*".to_owned() }];
    });
    let error = lab.broker.prepare(&source).await.expect_err("the exchange is not there");
    assert_eq!(error.fault, Fault::Missing, "{error}");
    assert!(
        error.text.contains(&exchange) && error.text.contains("declare the exchange"),
        "{error}"
    );
}

#[tokio::test]
async fn the_topology_lists_every_queue_and_binding_without_a_connection() {
    let lab = Lab::new(&url(), &broker_settings("amqp://127.0.0.1:1/%2f"));
    let source = lab.source_with(&[Duration::from_millis(500)], |settings| {
        settings.bindings =
            vec![Binding { exchange: "shop".to_owned(), routing_key: "order.*".to_owned() }];
    });
    let name = queue(&source);
    let expected = [
        format!("queue `{name}.dead`: durable, x-queue-type=quorum, x-delivery-limit=1000000000"),
        format!(
            "queue `{name}.suspects`: durable, x-queue-type=quorum, x-delivery-limit=1000000000"
        ),
        format!(
            "queue `{name}`: durable, x-dead-letter-exchange=\"\", x-dead-letter-routing-key={name}.dead, x-queue-type=quorum, x-delivery-limit=1000000000, x-dead-letter-strategy=at-least-once, x-overflow=reject-publish"
        ),
        format!(
            "queue `{name}.wait.500`: durable, x-queue-type=quorum, x-message-ttl=500, x-dead-letter-exchange=\"\", x-dead-letter-routing-key={name}, x-dead-letter-strategy=at-least-once, x-overflow=reject-publish"
        ),
        format!("binding of queue `{name}` to exchange `shop` with routing key `order.*`"),
    ];
    assert_eq!(lab.broker.topology(&source), expected);
}

#[tokio::test]
async fn a_delivery_limit_of_minus_one_is_refused() {
    let lab = Lab::connect().await;
    let source = lab.source_with(&[], |settings| {
        settings.arguments.insert("x-delivery-limit".to_owned(), toml::Value::Integer(-1));
    });
    let error = lab.broker.prepare(&source).await.expect_err("3.10 would drop messages");
    assert!(error.text.contains("x-delivery-limit = -1"), "{error}");
}

#[tokio::test]
async fn settings_that_lose_messages_or_time_out_are_warned_of() {
    let lab = Lab::connect().await;
    let source = lab.source_with(&[], |settings| {
        settings.timeout = Duration::from_secs(1200);
        settings.arguments.insert("x-delivery-limit".to_owned(), toml::Value::Integer(20));
    });
    let warnings = lab.broker.prepare(&source).await.expect("it works nevertheless");
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings[0].contains("x-delivery-limit = 20"), "{warnings:?}");
    assert!(warnings[1].contains("consumer_timeout"), "{warnings:?}");
}

#[tokio::test]
async fn an_order_that_rests_on_how_others_declared_the_queue_is_warned_of() {
    let lab = Lab::connect().await;
    let declared = lab.source_with(&[], |settings| settings.ordering = Ordering::Lane);
    let told = |warnings: Vec<String>| {
        let tells = |warning: &&String| warning.contains("x-single-active-consumer = true");
        warnings.iter().filter(tells).count()
    };
    assert_eq!(told(lab.broker.prepare(&declared).await.expect("it is declared")), 0);
    for topology in [Topology::Verify, Topology::None] {
        for (order_scope, count) in [(OrderScope::Queue, 1), (OrderScope::Process, 0)] {
            let mut source = Source::clone(&declared);
            let settings =
                config::Subscription { topology, order_scope, ..source.settings.as_ref().clone() };
            source.settings = Arc::new(settings);
            let warnings = lab.broker.prepare(&Arc::new(source)).await.expect("it is there");
            assert_eq!(told(warnings), count, "{topology:?} {order_scope:?}");
        }
    }
}

#[tokio::test]
async fn order_in_a_queue_is_served_by_one_consumer_and_the_other_stands_by() {
    let lab = Lab::connect().await;
    let source = lab.source_with(&[], |settings| {
        settings.ordering = Ordering::Lane;
        settings.order_scope = OrderScope::Queue;
        settings.consumers = 2.try_into().expect("2 is not zero");
    });
    lab.broker.prepare(&source).await.expect("the source can be prepared");
    let mut lanes = lab.broker.lanes(source.clone());
    let (_, mut first) = open(&mut *lanes).await;
    let (_, mut second) = open(&mut *lanes).await;
    assert!(!first.is_active() && !second.is_active(), "nobody knows before the first delivery");
    lab.broker
        .publisher()
        .send(&message(redeliver::broker::Target::Queue(queue(&source)), "one"))
        .await
        .expect("it is stored");
    // Whichever registered first at the server is the active one.
    let (mut of_first, mut of_second) = (Vec::new(), Vec::new());
    tokio::select! {
        got = first.next(&mut of_first, 1) => got.expect("the lane delivers"),
        got = second.next(&mut of_second, 1) => got.expect("the lane delivers"),
    }
    let (mut active, mut standby) =
        if of_first.is_empty() { (second, first) } else { (first, second) };
    assert!(active.is_active() && !standby.is_active());
    active.close().await.expect("the lane closes");
    receive(&mut *standby, 1).await;
    assert!(standby.is_active(), "it took over");
    standby.close().await.expect("the lane closes");
}

#[tokio::test]
async fn a_lane_is_behind_with_what_is_ready_in_its_own_queue_and_a_standby_with_nothing() {
    let lab = Lab::connect().await;
    let source = lab.source_with(&[], |settings| settings.single_active_consumer = true);
    lab.broker.prepare(&source).await.expect("the source can be prepared");
    let publisher = lab.broker.publisher();
    let to = |name: String| Target::Queue(name);
    publisher.send(&message(to(queue(&source)), "served")).await.expect("it is stored");
    let mut lanes = lab.broker.lanes(source.clone());
    let (_, mut active) = open(&mut *lanes).await;
    receive(&mut *active, 1).await;
    let suspects = format!("{}.suspects", queue(&source));
    publisher.send(&message(to(suspects), "suspect")).await.expect("it is stored");
    let depth = lab.broker.depth(&source).await.expect("it can be counted");
    assert_eq!(depth.ready, Some(1), "the suspect counts as ready");
    assert_eq!(active.is_behind().await, Some(false), "but not for this lane");

    let other = Lab::connect().await;
    let mut others = other.broker.lanes(source.clone());
    let (_, mut standby) = open(&mut *others).await;
    // One more than the window of the active one.
    for number in 0..192 {
        let next = message(to(queue(&source)), &number.to_string());
        publisher.send(&next).await.expect("it is stored");
    }
    receive(&mut *active, 191).await;
    assert_eq!(active.is_behind().await, Some(true));
    assert_eq!(standby.is_behind().await, Some(false), "it is not its turn");
    standby.close().await.expect("the lane closes");
    active.close().await.expect("the lane closes");
}

#[tokio::test]
async fn the_depth_tells_what_is_ready_held_waiting_and_dead_as_far_as_it_can_be_known() {
    let lab = Lab::connect().await;
    let source = lab.prepared(&[Duration::from_secs(60)]).await;
    let publisher = lab.broker.publisher();
    let to = |name: String| redeliver::broker::Target::Queue(name);
    for _ in 0..3 {
        publisher.send(&message(to(queue(&source)), "order")).await.expect("it is stored");
    }
    publisher.send(&message(to(dead(&source)), "dead")).await.expect("it is stored");
    publisher
        .send(&message(to(format!("{}.wait.60000", queue(&source))), "waits"))
        .await
        .expect("it is stored");
    let depth = lab.broker.depth(&source).await.expect("it can be counted");
    assert_eq!(
        depth,
        Depth { ready: Some(3), unsettled: Some(0), waiting: Some(1), dead: Some(1) }
    );

    let mut lanes = lab.broker.lanes(source.clone());
    let (_, mut lane) = open(&mut *lanes).await;
    let got = receive(&mut *lane, 3).await;
    lane.settle(&mut vec![Settlement::Ack(got[0].token)]).await.expect("the lane settles");
    let depth = lab.broker.depth(&source).await.expect("it can be counted");
    assert_eq!((depth.ready, depth.unsettled), (Some(0), Some(2)));

    let other = Lab::connect().await;
    let mut others = other.broker.lanes(source.clone());
    let (_, mut foreign) = open(&mut *others).await;
    assert_eq!(
        lab.broker.depth(&source).await.expect("it can be counted").unsettled,
        None,
        "what another process holds is unknown"
    );
    foreign.close().await.expect("the lane closes");
    lane.close().await.expect("the lane closes");
}

#[tokio::test]
async fn what_an_ordered_lane_held_at_its_close_is_served_first_and_in_order() {
    let lab = Lab::connect().await;
    let source = lab.source_with(&[], |settings| {
        settings.ordering = Ordering::Lane;
        settings.consumers = 2.try_into().expect("2 is not zero");
    });
    lab.broker.prepare(&source).await.expect("the source can be prepared");
    let publisher = lab.broker.publisher();
    for number in 0..400 {
        let next = message(Target::Queue(queue(&source)), &number.to_string());
        publisher.send(&next).await.expect("it is stored");
    }
    let mut lanes = lab.broker.lanes(source.clone());
    let (_, mut first) = open(&mut *lanes).await;
    let (_, mut second) = open(&mut *lanes).await;
    // Whichever registered first at the server is the active one.
    let (mut got, mut of_second) = (Vec::new(), Vec::new());
    tokio::select! {
        served = first.next(&mut got, 1) => served.expect("the lane delivers"),
        served = second.next(&mut of_second, 1) => served.expect("the lane delivers"),
    }
    if got.is_empty() {
        std::mem::swap(&mut first, &mut second);
        got = of_second;
    }
    got.extend(receive(&mut *first, 191).await);
    let mut settled = got[..100].iter().map(|message| Settlement::Ack(message.token)).collect();
    first.settle(&mut settled).await.expect("the lane settles");
    first.close().await.expect("the lane closes");

    let mut rest = Vec::new();
    while rest.len() < 300 {
        let more = receive(&mut *second, 1).await;
        rest.extend(texts(&more));
        let mut settled = more.iter().map(|message| Settlement::Ack(message.token)).collect();
        second.settle(&mut settled).await.expect("the lane settles");
    }
    let expected: Vec<_> = (100..400).map(|number| number.to_string()).collect();
    assert_eq!(rest, expected);
    second.close().await.expect("the lane closes");
}

#[tokio::test]
async fn a_standby_does_not_tell_what_the_active_consumer_holds() {
    let lab = Lab::connect().await;
    let source = lab.source_with(&[], |settings| settings.single_active_consumer = true);
    lab.broker.prepare(&source).await.expect("the source can be prepared");
    let unsettled =
        async |lab: &Lab| lab.broker.depth(&source).await.expect("it can be counted").unsettled;
    assert_eq!(unsettled(&lab).await, Some(0), "nobody is there");
    let to = Target::Queue(queue(&source));
    lab.broker.publisher().send(&message(to, "order")).await.expect("it is stored");
    let mut lanes = lab.broker.lanes(source.clone());
    let (_, mut active) = open(&mut *lanes).await;
    receive(&mut *active, 1).await;
    let other = Lab::connect().await;
    let mut others = other.broker.lanes(source.clone());
    let (_, mut standby) = open(&mut *others).await;
    assert_eq!(unsettled(&other).await, None, "another process holds one");
    assert_eq!(unsettled(&lab).await, Some(1));
    standby.close().await.expect("the lane closes");
    active.close().await.expect("the lane closes");
}
