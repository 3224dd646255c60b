//! What is looked at before anything is consumed: every finding at once, each with what to do.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminOptions, NewTopic, TopicReplication};
use rdkafka::consumer::{BaseConsumer, Consumer};
use redeliver::config::Config;
use redeliver::{Delivery, Handled, Service};

use super::brokers::create as create_at;
use super::lab::{admin, create, unique, url};
use super::nodes::Node;
use super::service::until;

async fn refusal(text: &str) -> String {
    let config = Config::from_toml(text).unwrap_or_else(|problems| panic!("{problems}"));
    let service = Service::builder(config).without_handler("orders").signals(false);
    service.start().await.map(|_| ()).expect_err("it is refused").to_string()
}

async fn create_with(topic: &str, settings: &[(&str, &str)]) {
    let new = NewTopic::new(topic, 1, TopicReplication::Fixed(1));
    let new = settings.iter().fold(new, |new, (name, value)| new.set(name, value));
    let created = admin().create_topics([&new], &AdminOptions::new()).await;
    created.expect("the broker answers").remove(0).expect("the topic is created");
}

/// Topics, the group and what is asked of the broker, in one table each.
fn text(topics: &[&str], group: &str, broker: &str) -> String {
    let topics = topics.join("\", \"");
    format!(
        "[brokers.main]\nkind = \"kafka\"\nurl = \"{}\"\n{broker}\n[subscriptions.orders]\nbroker = \"main\"\ntopics = [\"{topics}\"]\ngroup = \"{group}\"\n[retry.standard]\nbackoff = \"fixed\"\njitter = \"none\"\ndelay_min = \"10m\"\n",
        url()
    )
}

/// A member of a group that goes about it in its own way, once it has its partitions.
async fn member(topic: &str, group: &str, strategy: &str) -> BaseConsumer {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", url())
        .set("group.id", group)
        .set("partition.assignment.strategy", strategy)
        .create()
        .expect("the url can be read");
    consumer.subscribe(&[topic]).expect("a topic");
    until("it has its partitions", async || {
        let _ = consumer.poll(Duration::from_millis(100));
        consumer.assignment().is_ok_and(|list| list.count() > 0)
    })
    .await;
    consumer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_that_could_lose_messages_is_found_at_once() {
    let (short, missing, group) = (unique("short"), unique("missing"), unique("group"));
    create_with(&short, &[("retention.ms", "60000")]).await;
    let wait = format!("{short}.{group}.wait.600000");
    create_with(&wait, &[("cleanup.policy", "compact"), ("retention.ms", "600000")]).await;
    let _member = member(&short, &group, "roundrobin").await;
    let broker = "replication_min = 3\nin_sync_min = 2";
    let said = refusal(&text(&[&short, &missing], &group, broker)).await;
    let findings = [
        format!("topic `{missing}` is missing; create it"),
        format!("topic `{short}` has replicas 1, but 3 are wanted"),
        format!("topic `{short}` has min.insync.replicas 1, but 2 are wanted"),
        format!("topic `{short}` keeps its records for 60s, but a message may wait and run for"),
        format!("topic `{wait}` has cleanup.policy=compact"),
        format!("topic `{wait}` keeps its records for 600000 ms, too short"),
        format!("group `{group}` is in use with the assignment `roundrobin`"),
    ];
    for finding in &findings {
        assert!(said.contains(finding), "{finding} is not in:\n{said}");
    }
    assert_eq!(said.matches("subscription `orders`:").count(), findings.len(), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_that_assigns_as_we_do_is_joined() {
    let (topic, group) = (unique("orders"), unique("group"));
    create(&topic, 2).await;
    let _member = member(&topic, &group, "cooperative-sticky").await;
    let config = Config::from_toml(&text(&[&topic], &group, "")).expect("it is right");
    let service = Service::builder(config).without_handler("orders").signals(false);
    service.start().await.expect("nothing speaks against it").stop().await;
}

/// A member of a group that speaks one of the two protocols, and polls in a thread of its own while this is held.
struct Polling {
    holds: Arc<AtomicBool>,
    has_partitions: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Polling {
    fn start(url: &str, topic: &str, group: &str, protocol: &str) -> Self {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", url)
            .set("group.id", group)
            .set("group.protocol", protocol)
            .create()
            .expect("the url can be read");
        consumer.subscribe(&[topic]).expect("a topic");
        let (holds, has_partitions) = (Arc::new(AtomicBool::new(true)), Arc::default());
        let (held, has) = (Arc::clone(&holds), Arc::<AtomicBool>::clone(&has_partitions));
        let polls = move || {
            while held.load(Ordering::Relaxed) {
                let _ = consumer.poll(Duration::from_millis(50));
                let assigned = consumer.assignment().is_ok_and(|list| list.count() > 0);
                has.store(assigned, Ordering::Relaxed);
            }
        };
        Self { holds, has_partitions, thread: Some(thread::spawn(polls)) }
    }

    async fn joined(&self) {
        until("it has partitions", async || self.has_partitions.load(Ordering::Relaxed)).await;
    }
}

impl Drop for Polling {
    fn drop(&mut self) {
        self.holds.store(false, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// A service of this configuration comes into the group beside `other`, and each has partitions of the topic.
async fn shares(text: &str, topic: &str, other: &Polling) {
    let service = Service::builder(Config::from_toml(text).expect("it is right"))
        .subscribe("orders", |_: Delivery<u32>| async { Handled::Ok(()) })
        .signals(false);
    let service = service.start().await.expect("nothing speaks against it");
    until("each has partitions", async || {
        let lanes = &service.health().subscriptions["orders"].lanes;
        let has_source = lanes.keys().any(|lane| lane.starts_with(&format!("{topic}/")));
        has_source && other.has_partitions.load(Ordering::Relaxed)
    })
    .await;
    assert!(service.health().ready);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_of_both_protocols_share_a_group_whose_brokers_let_them() {
    let new = "[brokers.main.properties]\n\"group.protocol\" = \"consumer\"";
    // Theirs, and ours.
    for (theirs, ours) in [("classic", new), ("consumer", "")] {
        let (topic, group) = (unique("orders"), unique("group"));
        create(&topic, 4).await;
        let other = Polling::start(&url(), &topic, &group, theirs);
        other.joined().await;
        shares(&text(&[&topic], &group, ours), &topic, &other).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_classic_group_that_the_brokers_let_no_new_member_into_is_found_at_the_start() {
    let node = Node::configured("policy", "group.consumer.migration.policy=disabled\n");
    drop(create_at(&node.url, 2, 1).await);
    let other = Polling::start(&node.url, "orders", "billing", "classic");
    other.joined().await;
    let new = "[brokers.main.properties]\n\"group.protocol\" = \"consumer\"";
    let text = text(&["orders"], "billing", new).replace(&url(), &node.url);
    let said = refusal(&text).await;
    let finding = "group `billing` is in use by members of the classic protocol, and the brokers' group.consumer.migration.policy=`disabled`";
    assert!(said.contains(finding), "{said}");
    drop(other);
    let config = Config::from_toml(&text).expect("it is right");
    let service = Service::builder(config).without_handler("orders").signals(false);
    service.start().await.expect("nobody is in the group any more").stop().await;
    // The other way round the policy says nothing.
    let other = Polling::start(&node.url, "orders", "audit", "consumer");
    other.joined().await;
    let classic = self::text(&["orders"], "audit", "").replace(&url(), &node.url);
    shares(&classic, "orders", &other).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn topics_that_must_be_there_beforehand_are_named_with_their_shape() {
    let (topic, group) = (unique("orders"), unique("group"));
    create(&topic, 3).await;
    let text = text(&[&topic], &group, "")
        .replace("broker = \"main\"", "broker = \"main\"\ntopology = \"verify\"");
    let said = refusal(&text).await;
    for name in ["dead", "redrive", "wait.600000"] {
        let line = format!(
            "topic `{topic}.{group}.{name}` is missing; create it beforehand (3 partitions, 1 replicas, cleanup.policy=delete"
        );
        assert!(said.contains(&line), "{line} is not in:\n{said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_that_no_client_can_have_end_the_start_at_once() {
    let topic = unique("orders");
    create(&topic, 1).await;
    let wrong = [
        ("\"partition.assignment.strategy\" = \"fair\"", "partition.assignment.strategy"),
        ("\"fetch.max.bytes\" = 1", "fetch.max.bytes"),
        ("\"max.in.flight\" = 10", "max.in.flight"),
        ("\"retries\" = 0", "retries"),
    ];
    for (property, named) in wrong {
        let properties = format!("[brokers.main.properties]\n{property}");
        // Longer than anybody waits: it is not a matter of patience.
        let text = text(&[&topic], "billing", &properties);
        let text = format!("[service]\nstartup_max = \"1h\"\n{text}");
        let refusal = refusal(&text).await;
        assert!(refusal.contains(named) && refusal.contains("see `properties`"), "{refusal}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_that_takes_no_member_with_such_a_session_is_told_of() {
    let (topic, group) = (unique("orders"), unique("group"));
    create(&topic, 1).await;
    let properties = "[brokers.main.properties]\n\"session.timeout.ms\" = 1";
    let config = Config::from_toml(&text(&[&topic], &group, properties)).expect("it can be read");
    let handler = |_: Delivery<String>| async { Handled::Ok(()) };
    let service = Service::builder(config).subscribe("orders", handler).signals(false);
    let service = service.start().await.expect("it starts");
    until("health says so", async || {
        let said = format!("{:?}", service.health());
        said.contains(&group) && said.contains("group.min.session.timeout.ms")
    })
    .await;
    service.stop().await;
}
