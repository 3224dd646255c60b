//! How a queue is drained: several consumers, several handlers, priorities, one active consumer, stalls.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::thread::{self, ThreadId};
use std::time::Duration;

use lapin::options::QueueDeclareOptions;
use lapin::types::AMQPValue;
use redeliver::{Delivery, Failure};
use tokio::time::sleep;

use crate::common::rabbitmq::forget_consumers;
use crate::lab::{Lab, Seen, drained, metric, properties, until};

async fn consumers(lab: &Lab) -> u32 {
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let queue = lab.queue.as_str().into();
    let declared = lab.raw.channel.queue_declare(queue, options, Default::default()).await;
    declared.expect("the queue is there").consumer_count()
}

#[tokio::test]
async fn four_consumers_and_four_handlers_share_the_work_and_repeat_none_of_it() {
    let lab = Lab::new().await;
    let seen = Seen::default();
    let threads = Arc::new(Mutex::new(BTreeSet::new()));
    let (handler, note) = (seen.clone(), threads.clone());
    let keys = "consumers = 4\nhandlers = 4\nin_flight_max = 4\n";
    let service = lab
        .start(&lab.toml(keys, ""), move |delivery: Delivery<u32>| {
            handler.note(&delivery);
            let thread: ThreadId = thread::current().id();
            note.lock().expect("no test panics in here").insert(format!("{thread:?}"));
            async {
                sleep(Duration::from_millis(2)).await;
                Ok(())
            }
        })
        .await;
    until("four consume", || async { consumers(&lab).await == 4 }).await;
    lab.publish(0..1000).await;
    drained(&service).await;
    assert_eq!(service.health().subscriptions["orders"].lanes.len(), 4);
    service.stop().await;
    seen.assert_each_once(0..1000);
    assert_eq!(threads.lock().expect("no test panics in here").len(), 4);
    assert_eq!(lab.ready().await, 0);
}

#[tokio::test]
async fn priorities_are_the_brokers_and_copies_keep_theirs() {
    let lab = Lab::new().await;
    let seen = Seen::default();
    let handler = seen.clone();
    let keys = "queue_type = \"classic\"\narguments = { x-max-priority = 9 }\n\
                in_flight_max = 1\nparked_max = 1\n";
    let toml = lab.toml(keys, "[retry.standard]\nin_process_max = \"0s\"\n");
    let quiet = lab.start(&toml, |_: Delivery<u32>| async { Ok(()) }).await;
    quiet.stop().await;
    lab.publish_with(0..10, |number| {
        (number.to_string().into_bytes(), properties(number).with_priority(number as u8))
    })
    .await;
    let service = lab
        .start(&toml, move |delivery: Delivery<u32>| {
            handler.note(&delivery);
            async { Err(Failure::reject("never")) }
        })
        .await;
    drained(&service).await;
    service.stop().await;
    let order: Vec<_> = seen.runs().iter().map(|run| run.number).collect();
    assert_eq!(order, (0..10).rev().collect::<Vec<_>>());
    for letter in lab.take_all(&lab.dead()).await {
        let priority = letter.delivery.properties.priority().unwrap_or_default();
        assert_eq!(letter.delivery.data, priority.to_string().into_bytes());
    }
}

#[tokio::test]
async fn of_two_services_on_a_single_active_consumer_one_stands_by_and_takes_over() {
    let lab = Lab::new().await;
    let toml = lab.toml("single_active_consumer = true\n", "");
    let (first, second) = (Seen::default(), Seen::default());
    let (for_first, for_second) = (first.clone(), second.clone());
    let active = lab
        .start(&toml, move |delivery: Delivery<u32>| {
            for_first.note(&delivery);
            async { Ok(()) }
        })
        .await;
    until("one consumes", || async { consumers(&lab).await == 1 }).await;
    let standby = lab
        .start(&toml, move |delivery: Delivery<u32>| {
            for_second.note(&delivery);
            async { Ok(()) }
        })
        .await;
    // The server does not count a standby among the consumers.
    until("the other stands by", || async { standby.health().ready }).await;
    lab.publish(0..100).await;
    until("all are handled", || async { first.count() == 100 }).await;
    active.stop().await;
    lab.publish(100..200).await;
    until("all are handled", || async { second.count() == 100 }).await;
    assert!(standby.health().ready, "{:?}", standby.health().reasons);
    standby.stop().await;
    first.assert_each_once(0..100);
    second.assert_each_once(100..200);
}

#[tokio::test]
async fn consumer_arguments_reach_the_broker() {
    let lab = Lab::new().await;
    let (low, high) = (Seen::default(), Seen::default());
    let (for_low, for_high) = (low.clone(), high.clone());
    let keys = |priority: u32| format!("consumer_arguments = {{ x-priority = {priority} }}\n");
    let below = lab
        .start(&lab.toml(&keys(1), ""), move |delivery: Delivery<u32>| {
            for_low.note(&delivery);
            async { Ok(()) }
        })
        .await;
    until("one consumes", || async { consumers(&lab).await == 1 }).await;
    let above = lab
        .start(&lab.toml(&keys(9), ""), move |delivery: Delivery<u32>| {
            for_high.note(&delivery);
            async { Ok(()) }
        })
        .await;
    until("two consume", || async { consumers(&lab).await == 2 }).await;
    // Fewer than its window, so that it is never passed over.
    lab.publish(0..100).await;
    until("all are handled", || async { low.count() + high.count() == 100 }).await;
    below.stop().await;
    above.stop().await;
    assert_eq!((low.count(), high.count()), (0, 100), "the one of higher priority is served");
}

#[tokio::test]
async fn a_lane_that_is_silent_though_messages_are_ready_is_found_and_opened_again() {
    let lab = Lab::new().await;
    for queue in [lab.queue.clone(), lab.dead()] {
        let quorum = [("x-queue-type", AMQPValue::LongString("quorum".into()))];
        lab.raw.declare(&queue, &quorum).await;
    }
    let seen = Seen::default();
    let handler = seen.clone();
    // Without the queues that only a failure needs: the lane is found all the same.
    let keys = "topology = \"none\"\nstall_after = \"1s\"\n";
    let service = lab
        .start(&lab.toml(keys, ""), move |delivery: Delivery<u32>| {
            handler.note(&delivery);
            async { Ok(()) }
        })
        .await;
    lab.publish(0..20).await;
    drained(&service).await;
    sleep(Duration::from_millis(2500)).await;
    let reopened = metric(&service, "lanes_reopened").await;
    assert_eq!(reopened, 0.0, "a lane whose queue is empty is left alone");

    forget_consumers(&lab.queue);
    lab.publish(20..30).await;
    until("all are handled", || async { seen.count() == 30 }).await;
    assert_eq!(metric(&service, "lanes_reopened").await, 1.0);
    drained(&service).await;
    service.stop().await;
    seen.assert_each_once(0..30);
}

#[tokio::test]
async fn a_single_active_consumer_that_the_server_forgot_before_its_first_delivery_is_opened_again()
{
    let lab = Lab::new().await;
    let seen = Seen::default();
    let handler = seen.clone();
    let keys = "single_active_consumer = true\nstall_after = \"1s\"\n";
    let service = lab
        .start(&lab.toml(keys, ""), move |delivery: Delivery<u32>| {
            handler.note(&delivery);
            async { Ok(()) }
        })
        .await;
    until("it consumes", || async { consumers(&lab).await == 1 }).await;
    forget_consumers(&lab.queue);
    lab.publish(0..10).await;
    until("all are handled", || async { seen.count() == 10 }).await;
    assert_eq!(metric(&service, "lanes_reopened").await, 1.0);
    service.stop().await;
    seen.assert_each_once(0..10);
}
