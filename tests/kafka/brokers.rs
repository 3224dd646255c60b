//! A broker that goes away and comes back.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use redeliver::config::Config;
use redeliver::{Delivery, Failure, Handled, Message, Service};

use super::lab::unique;
use super::service::{Seen, drained, until};

/// A broker of a test's own.
struct Node {
    folder: PathBuf,
    url: String,
}

impl Node {
    fn start(name: &str) -> Self {
        let mut node = Self { folder: std::env::temp_dir().join(unique(name)), url: String::new() };
        node.url = node.run("start");
        node
    }

    fn run(&self, command: &str) -> String {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/servers/kafka.sh");
        let ran = Command::new("bash").arg(script).arg(command).arg(&self.folder).output();
        let ran = ran.expect("bash is there");
        assert!(ran.status.success(), "{command}: {}", String::from_utf8_lossy(&ran.stderr));
        let printed = String::from_utf8(ran.stdout).expect("it prints text");
        let url = printed.lines().find_map(|line| line.strip_prefix("KAFKA_URL="));
        url.unwrap_or_default().to_owned()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.run("kill");
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_killed_and_started_again_loses_nothing() {
    let node = Node::start("restarted");
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", &node.url).create().expect("a client");
    let topic = NewTopic::new("orders", 3, TopicReplication::Fixed(1));
    admin.create_topics([&topic], &AdminOptions::new()).await.expect("the broker answers");
    let text = format!(
        "[brokers.main]\nkind = \"kafka\"\nurl = \"{}\"\n[subscriptions.orders]\nbroker = \"main\"\ntopics = [\"orders\"]\ngroup = \"billing\"\n[retry.standard]\nbackoff = \"fixed\"\njitter = \"none\"\ndelay_min = \"2s\"\n",
        node.url
    );
    let seen = Seen::default();
    let at = seen.clone();
    let handler = move |delivery: Delivery<u32>| {
        let at = at.clone();
        async move {
            tokio::time::sleep(Duration::from_millis(5)).await;
            at.note(&delivery.payload.to_string());
            match (delivery.payload % 7, delivery.attempt()) {
                (0, 1) => Err(Failure::retry("not yet")),
                _ => Handled::Ok(()),
            }
        }
    };
    let config = Config::from_toml(&text).unwrap_or_else(|problems| panic!("{problems}"));
    let service = Service::builder(config).subscribe("orders", handler).signals(false);
    let service = service.start().await.expect("it starts");
    let publisher = service.publisher("main").expect("it is configured");
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let publishing = tokio::spawn(async move {
        let mut number = 0_u32;
        while !stopped.load(Ordering::Relaxed) {
            let message = || Message::json(&number).expect("a number is JSON").to_topic("orders");
            // Sent again until it is confirmed, under the same id.
            while publisher.send(message().id(number.to_string())).await.is_err() {}
            number += 1;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        number
    });
    tokio::time::sleep(Duration::from_secs(2)).await;
    tokio::task::block_in_place(|| node.run("kill"));
    until("the loss is seen", async || !service.health().ready).await;
    tokio::task::block_in_place(|| node.run("start"));
    tokio::time::sleep(Duration::from_secs(3)).await;
    stop.store(true, Ordering::Relaxed);
    let count = publishing.await.expect("it publishes");
    until("everything was handled", async || seen.len() == count as usize).await;
    drained(&service).await;
    until("it is healthy again", async || service.health().ready).await;
    assert!((0..count).step_by(7).all(|number| seen.attempts(&number.to_string()) >= 2));
    service.stop().await;
}
