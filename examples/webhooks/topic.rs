//! The topic of the job on Kafka, created when it is missing.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::RDKafkaErrorCode;
use redeliver::config::Broker;

use crate::Error;

/// What a missing topic is created with.
const PARTITIONS: i32 = 6;
/// As many replicas as the servers give a topic that asks for none.
const REPLICAS: i32 = -1;
const ANSWER_MAX: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Creates it if it is not there, and waits until it can be used.
pub(crate) async fn create(topic: &str, broker: &Broker) -> Result<(), Error> {
    let url = broker.url.as_ref().map(|url| url.expose()).unwrap_or_default();
    let failed =
        |error: &dyn std::fmt::Display| format!("creating topic {topic} at {url}: {error}");
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", url);
    let security =
        |name: &str| ["security.", "sasl.", "ssl."].iter().any(|it| name.starts_with(it));
    for (name, value) in broker.properties.expose_all().filter(|(name, _)| security(name)) {
        config.set(name, value);
    }
    let admin: AdminClient<DefaultClientContext> =
        config.create().map_err(|error| failed(&error))?;
    let new = NewTopic::new(topic, PARTITIONS, TopicReplication::Fixed(REPLICAS));
    let options = AdminOptions::new().request_timeout(Some(ANSWER_MAX));
    let created = admin.create_topics([&new], &options).await.map_err(|error| failed(&error))?;
    for outcome in created {
        match outcome {
            Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((_, error)) => return Err(failed(&error).into()),
        }
    }
    while !is_led(&admin, topic).map_err(|error| failed(&error))? {
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}

/// Whether each of its partitions has a server that answers for it.
fn is_led(
    admin: &AdminClient<DefaultClientContext>,
    topic: &str,
) -> Result<bool, rdkafka::error::KafkaError> {
    let known = admin.inner().fetch_metadata(Some(topic), ANSWER_MAX)?;
    let mut partitions = known.topics().iter().flat_map(|topic| topic.partitions()).peekable();
    Ok(partitions.peek().is_some() && partitions.all(|partition| partition.leader() >= 0))
}
