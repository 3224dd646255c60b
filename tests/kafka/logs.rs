//! Logs that are not the ones that something was committed for.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use redeliver::{Delivery, Handled, Message, Service};

use super::lab::{create, unique, url};
use super::service::{Seen, config, drained, until};

/// Commits an offset as an earlier member of the group may have done.
fn commit(topic: &str, group: &str, offset: i64) {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", url())
        .set("group.id", group)
        .create()
        .expect("the url can be read");
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, 0, Offset::Offset(offset)).expect("an offset");
    consumer.commit(&list, CommitMode::Sync).expect("the group takes it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_ends_below_what_was_committed_is_read_from_its_beginning() {
    let (topic, group) = (unique("orders"), unique("group"));
    create(&topic, 1).await;
    // The topic was deleted and made again.
    tokio::task::block_in_place(|| commit(&topic, &group, 1_000));
    let mut config = config(&topic, "", "");
    config.subscriptions.get_mut("orders").expect("it is there").group = Some(group);
    let seen = Seen::default();
    let at = seen.clone();
    let handler = move |delivery: Delivery<String>| {
        at.note(&delivery.payload);
        async { Handled::Ok(()) }
    };
    let service = Service::builder(config).subscribe("orders", handler).signals(false);
    let service = service.start().await.expect("it starts");
    let publisher = service.publisher("main").expect("it is configured");
    for number in 0..5 {
        let message = Message::json(&number.to_string()).expect("text is JSON").to_topic(&topic);
        publisher.send(message).await.expect("it is stored");
    }
    until("none is skipped", async || seen.len() == 5).await;
    drained(&service).await;
    // What is committed now is about this log.
    for number in 5..8 {
        let message = Message::json(&number.to_string()).expect("text is JSON").to_topic(&topic);
        publisher.send(message).await.expect("it is stored");
    }
    until("the next ones are handled too", async || seen.len() == 8).await;
    tokio::time::timeout(Duration::from_secs(60), service.stop()).await.expect("it stops");
}
