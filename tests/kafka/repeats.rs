//! How much a crash repeats: what was in flight, and what was finished since the last commit; and how what has no
//! message id is known when it is repeated.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use redeliver::config::Config;
use redeliver::{Delivery, Handled, Service};

use super::lab::{create, unique, url};
use super::process::Stage;
use super::service::{Seen, drained, until};

/// How long the broker may take to answer.
const PATIENCE: Duration = Duration::from_secs(60);
const IN_FLIGHT_MAX: usize = 16;
/// A commit is not waited for when so many are finished (`docs/kafka.md`).
const UNCOMMITTED_MAX: usize = 10_000;

fn text(topic: &str, commit_interval: &str) -> String {
    format!(
        "[brokers.main]\nkind = \"kafka\"\nurl = \"{}\"\n[brokers.main.properties]\n\"session.timeout.ms\" = 6000\n\
         \"heartbeat.interval.ms\" = 500\n[subscriptions.orders]\nbroker = \"main\"\ntopics = [\"{topic}\"]\n\
         group = \"g-{topic}\"\ncommit_interval = \"{commit_interval}\"\nin_flight_max = {IN_FLIGHT_MAX}\n",
        url()
    )
}

/// A client of the group that is no member of it.
fn of_group(topic: &str) -> BaseConsumer {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", url()).set("group.id", format!("g-{topic}"));
    config.create().expect("the url can be read")
}

fn partition(topic: &str) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    list.add_partition(topic, 0);
    list
}

/// The offset of partition 0 that is committed.
fn committed_offset(client: &BaseConsumer, topic: &str) -> usize {
    let committed = client.committed_offsets(partition(topic), PATIENCE);
    let committed = committed.expect("the broker answers");
    match committed.elements()[0].offset() {
        Offset::Offset(offset) => usize::try_from(offset).expect("an offset"),
        _ => 0,
    }
}

/// Writes texts to partition 0 as a stranger's client would: without an id, and all with the same key.
async fn produce(topic: &str, texts: impl Iterator<Item = String>) {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", url()).set("linger.ms", "20");
    let producer: FutureProducer = config.create().expect("the url can be read");
    let sent = texts.map(async |text| {
        let payload = serde_json::to_string(&text).expect("text is JSON");
        let record = FutureRecord::to(topic).partition(0).key("a").payload(&payload);
        producer.send(record, PATIENCE).await.expect("the broker stores it");
    });
    futures_util::future::join_all(sent).await;
}

/// Handles `count` records in a process that is killed when it has handled all of them and committed at least
/// `committed_min`; what is left and one more in another. What the first one committed, and how many were repeated.
async fn crash(commit_interval: &str, count: usize, committed_min: usize) -> (usize, usize) {
    let topic = unique("orders");
    create(&topic, 1).await;
    produce(&topic, (0..count).map(|number| number.to_string())).await;
    let client = of_group(&topic);
    let stage = Stage::new(text(&topic, commit_interval), 0, None);
    let first = stage.start();
    until("all are handled", async || stage.effects().len() == count).await;
    until("enough is committed", async || committed_offset(&client, &topic) >= committed_min).await;
    first.kill();
    let committed = committed_offset(&client, &topic);
    let second = stage.start();
    produce(&topic, ["the last".to_owned()].into_iter()).await;
    let is_last = |effect: &String| effect == "the last";
    until("the rest is handled", async || stage.effects().iter().any(is_last)).await;
    second.stop().await;
    assert_eq!(committed_offset(&client, &topic), count + 1, "nothing is left");
    let mut handled: BTreeMap<String, usize> = BTreeMap::new();
    stage.effects().into_iter().for_each(|effect| *handled.entry(effect).or_default() += 1);
    assert_eq!(handled.len(), count + 1, "nothing is lost");
    (committed, handled.values().sum::<usize>() - handled.len())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_long_before_the_next_commit_is_due_repeats_no_more_than_the_bound_by_count() {
    let count = 5 * UNCOMMITTED_MAX / 2;
    // Everything but what no count asks for.
    let (committed, repeated) = crash("1h", count, count - UNCOMMITTED_MAX).await;
    assert!(committed < count, "no interval has ended: all {count} would be committed");
    let allowed = IN_FLIGHT_MAX + UNCOMMITTED_MAX;
    assert!(repeated <= allowed, "{repeated} of {count} were repeated, {allowed} may be");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_long_before_the_count_is_reached_repeats_nothing_of_an_interval_that_is_over() {
    let count = UNCOMMITTED_MAX / 20;
    let (committed, repeated) = crash("100ms", count, count).await;
    assert_eq!((committed, repeated), (count, 0));
}

/// A service that remembers in Redis what it has done.
#[cfg(feature = "redis")]
async fn remembering(topic: &str, prefix: &str, seen: &Seen) -> Service {
    let redis = std::env::var("REDIS_URL")
        .expect("REDIS_URL names the server under test; tests/servers/redis.sh starts one");
    let text = text(topic, "100ms")
        + &format!(
            "idempotency = {{ store = \"main\" }}\n[stores.main]\nkind = \"redis\"\nurl = \"{redis}\"\nprefix = \"{prefix}\"\n"
        );
    let config = Config::from_toml(&text).unwrap_or_else(|problems| panic!("{problems}"));
    let noting = seen.clone();
    let handler = move |delivery: Delivery<String>| {
        noting.note(delivery.id().unwrap_or("it has none"));
        async { Handled::Ok(()) }
    };
    let builder = Service::builder(config).subscribe("orders", handler).signals(false);
    builder.start().await.expect("it starts")
}

#[cfg(feature = "redis")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_no_message_id_is_known_by_its_place_in_the_log() {
    let (topic, prefix, seen) = (unique("orders"), unique("claims"), Seen::default());
    create(&topic, 1).await;
    // The same three times, for all that can be seen of them.
    produce(&topic, (0..3).map(|_| String::from("7"))).await;
    let places = || (0..3).map(|offset| seen.attempts(&format!("{topic}/0/{offset}")));
    let first = remembering(&topic, &prefix, &seen).await;
    until("they are handled", async || places().all(|handled| handled == 1)).await;
    drained(&first).await;
    assert_eq!(first.stop().await.left, 0);
    let client = of_group(&topic);
    let mut begin = partition(&topic);
    begin.set_all_offsets(Offset::Offset(0)).expect("an offset");
    client.commit(&begin, CommitMode::Sync).expect("the group has no members");
    let second = remembering(&topic, &prefix, &seen).await;
    let known = "redeliver_duplicates_total{subscription=\"orders\"} 3\n";
    until("they are known again", async || second.metrics().await.contains(known)).await;
    assert!(places().all(|handled| handled == 1) && seen.len() == 3, "each is handled once");
    assert_eq!(second.stop().await.left, 0);
}
