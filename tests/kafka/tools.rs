//! What Kafka's own console tools make of us.

use std::time::Duration;

use redeliver::{Delivery, Failure, Handled, Message, Service};

use super::lab::{create, unique, url};
use super::nodes::tool;
use super::service::{config, drained, until};

/// Offset, end and lag of each partition, as `kafka-consumer-groups --describe` shows them.
fn described(group: &str, topic: &str) -> Vec<[Option<u64>; 3]> {
    let arguments = ["--bootstrap-server", &url(), "--describe", "--group", group];
    let told = tool("org.apache.kafka.tools.consumer.group.ConsumerGroupCommand", &arguments);
    let rows = told.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let rows = rows.filter(|row| row.get(1) == Some(&topic));
    // A dash stands where nothing is committed.
    rows.map(|row| [3, 4, 5].map(|column| row[column].parse().ok())).collect()
}

fn sum(rows: &[[Option<u64>; 3]], column: usize) -> u64 {
    rows.iter().filter_map(|row| row[column]).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_console_tools_read_our_dead_letters_and_show_our_lag() {
    let (topic, group) = (unique("orders"), unique("billing"));
    create(&topic, 3).await;
    let handler = |delivery: Delivery<String>| async move {
        match delivery.payload.as_str() {
            "bad" => Err(Failure::reject("no such customer").class("validation")),
            _ => Handled::Ok(()),
        }
    };
    let mut config = config(&topic, "", "");
    config.subscriptions.get_mut("orders").expect("it is there").group = Some(group.clone());
    let service = Service::builder(config).subscribe("orders", handler).signals(false);
    let service = service.start().await.expect("it starts");
    let publisher = service.publisher("main").expect("it is configured");
    let publish = async |from: u32, count: u32| {
        for number in from..from + count {
            let word = if number % 10 == 9 { "bad" } else { "good" };
            let message = Message::json(&word).expect("text is JSON").to_topic(&topic);
            let message = message.id(format!("id-{number}")).key(format!("key-{number}"));
            publisher.send(message.header("tenant", "acme")).await.expect("it is confirmed");
        }
    };
    publish(0, 60).await;
    drained(&service).await;
    let rows = tokio::task::block_in_place(|| described(&group, &topic));
    assert_eq!(rows.len(), 3, "{rows:?}");
    assert_eq!((sum(&rows, 0), sum(&rows, 1), sum(&rows, 2)), (60, 60, 0), "{rows:?}");

    service.pause("orders").await.expect("it can be held");
    publish(60, 20).await;
    until("they are counted", async || {
        service.depth("orders").await.is_ok_and(|depth| depth.ready == Some(20))
    })
    .await;
    let rows = tokio::task::block_in_place(|| described(&group, &topic));
    assert_eq!((sum(&rows, 0), sum(&rows, 1), sum(&rows, 2)), (60, 80, 20), "{rows:?}");
    service.resume("orders").await.expect("it goes on");
    drained(&service).await;

    let dead = format!("{topic}.{group}.dead");
    let (url, from) = (url(), ["--from-beginning", "--max-messages", "8", "--timeout-ms", "60000"]);
    let at = ["--bootstrap-server", &url, "--topic", &dead];
    let shown = ["--property", "print.key=true", "--property", "print.headers=true"];
    let arguments = [at.as_slice(), &from, &shown].concat();
    let told = tokio::task::block_in_place(|| {
        tool("org.apache.kafka.tools.consumer.ConsoleConsumer", &arguments)
    });
    let mut lines: Vec<&str> = told.lines().filter(|line| line.contains("redeliver-")).collect();
    lines.sort_by_key(|line| line.split("id:id-").nth(1).map(str::to_owned));
    assert_eq!(lines.len(), 8, "{told}");
    for number in (9..80).step_by(10) {
        let line = lines.iter().find(|line| line.contains(&format!("redeliver-id:id-{number},")));
        let line = line.unwrap_or_else(|| panic!("id-{number} is not in {told}"));
        let parts: Vec<_> = line.split('\t').collect();
        let [headers, key, value] = parts[..] else { panic!("not three parts: {line}") };
        assert_eq!((key, value), (&*format!("key-{number}"), "\"bad\""));
        for header in [
            "tenant:acme",
            "redeliver-reason:rejected",
            "redeliver-attempt:1",
            "redeliver-error:no such customer",
            "redeliver-error-class:validation",
            &format!("redeliver-origin:{topic}/"),
        ] {
            assert!(headers.contains(header), "{header} is not in {headers}");
        }
    }
    tokio::time::timeout(Duration::from_secs(60), service.stop()).await.expect("it stops");
}
