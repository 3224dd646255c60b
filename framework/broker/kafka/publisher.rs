//! Publishing with acknowledgements of all replicas in sync.
//!
//! Owns what a copy carries. A record counts as sent when the cluster says so; until then librdkafka sends it
//! again, in order and stored once, for `message.timeout.ms`.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use async_trait::async_trait;
use rdkafka::config::{ClientConfig, FromClientConfigAndContext};
use rdkafka::message::{Header, Message, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer as _};
use tokio::task::spawn_blocking;

use super::connection::{Cluster, Quiet};
use super::envelope::{self, CONTENT_TYPE, KafkaEnvelope, TYPE};
use super::outbox::{Buffered, Outbox, Output};
use super::properties::Clients;
use super::topology::Names;
use super::{fault, prepare};
use crate::broker::{
    BrokerError, Copied, Copy, Envelope, Fault, HeaderValue, Outgoing, Place, Publisher, Target,
};
use crate::config::Topology;
use crate::telemetry;
use crate::wire::{self, ORIGINAL_PREFIX, PREFIX};

/// The header that keeps a record's own timestamp: with it a copy would be as old, and deleted as early.
const ORIGINAL_TIMESTAMP: &str = "redeliver-original-timestamp";
/// The header that says how many others were left out of a copy, because their names are no UTF-8.
const ORIGINAL_UNREAD: &str = "redeliver-original-unread";
/// How long a record may wait for room in librdkafka's queue.
const QUEUE_MAX: Duration = Duration::from_secs(30);
/// How long closing may wait for what is under way.
const FLUSH_MAX: Duration = Duration::from_secs(10);

type Client = FutureProducer<Quiet>;

/// Publishes to one cluster.
pub(super) struct KafkaPublisher {
    cluster: Cluster,
    client: Slot,
    /// Of copies that are too large for their topic as they are.
    compressing: Slot,
    /// Topics of waits that no policy names, which are there: made when a copy first needed them, or found then.
    beyond: Mutex<BTreeSet<String>>,
    closed: AtomicBool,
}

/// A client that is made when it is needed, and anew when it is of no use any more.
struct Slot {
    client: ArcSwapOption<Client>,
    config: fn(&Clients) -> ClientConfig,
}

impl Slot {
    fn new(config: fn(&Clients) -> ClientConfig) -> Self {
        Self { client: ArcSwapOption::empty(), config }
    }

    fn client(&self, cluster: &Cluster) -> Result<Arc<Client>, BrokerError> {
        if let Some(client) = self.client.load_full() {
            return Ok(client);
        }
        let context = Quiet(cluster.watch.clone());
        let made = Client::from_config_and_context(&(self.config)(&cluster.clients), context)
            .map_err(|error| fault::fault(&format!("publishing to {cluster}"), &error))?;
        let made = Arc::new(made);
        let before = self.client.compare_and_swap(&None::<Arc<Client>>, Some(Arc::clone(&made)));
        // Somebody was faster, and the first one counts.
        Ok(before.as_ref().map_or(made, Arc::clone))
    }

    /// A producer whose order of records broke takes none for the rest of its life: the next record gets another.
    fn replace_if_broken(&self, client: Arc<Client>) {
        let Some((code, why)) = client.client().fatal_error() else { return };
        telemetry::producer_broken(&code, &why);
        self.client.compare_and_swap(&client, None);
        // Ending it takes a moment.
        drop(spawn_blocking(move || drop(client)));
    }
}

impl KafkaPublisher {
    pub(super) fn new(cluster: Cluster) -> Self {
        let (client, compressing) = (Slot::new(Clients::producer), Slot::new(Clients::compressing));
        Self { cluster, client, compressing, beyond: Mutex::default(), closed: false.into() }
    }

    /// Makes the client, so that settings which it does not take are known at the start.
    pub(super) fn make_client(&self) -> Result<(), BrokerError> {
        self.client.client(&self.cluster).map(drop)
    }

    /// An error once this process has closed the connection.
    pub(super) fn check_open(&self, attempt: &str) -> Result<(), BrokerError> {
        if self.closed.load(Ordering::Acquire) {
            let text = format!("{attempt}: the connection was closed by this process");
            return Err(BrokerError::new(Fault::Closed, text));
        }
        Ok(())
    }

    pub(super) async fn close(&self) {
        self.closed.store(true, Ordering::Release);
        let clients = [&self.client, &self.compressing].map(|slot| slot.client.load_full());
        // Whatever is not confirmed by then is an error to whoever sent it.
        let flush = move || {
            for client in clients.into_iter().flatten() {
                let _ = client.flush(FLUSH_MAX);
            }
        };
        let _ = spawn_blocking(flush).await;
    }

    /// Makes the topic of a wait that no policy names, unless that was done before. A record for a topic that is not
    /// there would be held for half a minute before anybody is told.
    async fn make_beyond(&self, copy: &Copy, source: &str, topic: &str) -> Result<(), BrokerError> {
        let known = || self.beyond.lock().unwrap_or_else(PoisonError::into_inner);
        if !known().contains(topic) {
            prepare::create_around(&self.cluster, &copy.source, source, copy.place).await?;
            known().insert(topic.to_owned());
        }
        Ok(())
    }

    async fn copy_to(
        &self,
        topic: &str,
        original: &KafkaEnvelope,
        copy: &Copy,
    ) -> Result<(), BrokerError> {
        let attempt =
            format!("subscription `{}`: copying a message to topic `{topic}`", copy.source.name);
        let record = original.record();
        if let Some(outbox) = &original.outbox {
            return self.copy_later(&attempt, topic, original, copy, outbox).await;
        }
        let made = || {
            let mut made = FutureRecord::to(topic).headers(headers_of_copy(original, copy));
            (made.payload, made.key) = (record.payload(), record.key());
            made
        };
        match self.publish(&attempt, made()).await {
            // What is limited is what is stored, and the original may have been compressed.
            Err(error) if error.fault == Fault::TooLarge => {
                self.send_by(&self.compressing, &attempt, made()).await
            }
            published => published,
        }
    }

    /// Leaves a copy to the transaction that finishes its original.
    async fn copy_later(
        &self,
        attempt: &str,
        topic: &str,
        original: &KafkaEnvelope,
        copy: &Copy,
        outbox: &Outbox,
    ) -> Result<(), BrokerError> {
        let record = original.record();
        let output = Output {
            topic: topic.to_owned(),
            key: record.key().map(<[u8]>::to_vec),
            payload: record.payload().map(<[u8]>::to_vec),
            headers: headers_of_copy(original, copy),
        };
        self.cluster.limits.check(&self.cluster, attempt, &output).await?;
        outbox.replace(output);
        Ok(())
    }

    async fn publish(
        &self,
        attempt: &str,
        record: FutureRecord<'_, [u8], [u8]>,
    ) -> Result<(), BrokerError> {
        self.check_open(attempt)?;
        self.send_by(&self.client, attempt, record).await
    }

    async fn send_by(
        &self,
        slot: &Slot,
        attempt: &str,
        record: FutureRecord<'_, [u8], [u8]>,
    ) -> Result<(), BrokerError> {
        let client = slot.client(&self.cluster)?;
        match client.send(record, QUEUE_MAX).await {
            Ok(_) => {
                self.cluster.watch.reached();
                Ok(())
            }
            Err((error, _)) => {
                slot.replace_if_broken(client);
                Err(fault::fault(attempt, &error))
            }
        }
    }
}

#[async_trait]
impl Publisher for KafkaPublisher {
    async fn send(&self, message: &Outgoing) -> Result<(), BrokerError> {
        let attempt = attempt_of(message);
        let topic = topic_of(message)?;
        let headers = headers_of(message, SystemTime::now());
        let mut record = FutureRecord::to(topic).payload(&*message.body).headers(headers);
        if let Some(key) = &message.key {
            record = record.key(&**key);
        }
        self.publish(&attempt, record).await
    }

    fn within(&self, envelope: &dyn Envelope) -> Option<Arc<dyn Publisher>> {
        let outbox = envelope.as_any().downcast_ref::<KafkaEnvelope>()?.outbox.as_ref()?;
        Some(Arc::new(Buffered { run: outbox.begin(), cluster: self.cluster.clone() }))
    }

    async fn copy(&self, copy: &Copy) -> Result<Copied, BrokerError> {
        let Some(original) = copy.envelope.as_any().downcast_ref::<KafkaEnvelope>() else {
            let text = format!(
                "subscription `{}`: only messages that came from Kafka can be copied there",
                copy.source.name
            );
            return Err(BrokerError::new(Fault::Other, text));
        };
        let names = Names::of(&copy.source.settings);
        let record = original.record();
        let claimed = match original.header(wire::ORIGIN) {
            Some(HeaderValue::Text(origin)) => Some(origin),
            _ => None,
        };
        let source = names.topic_of(record.topic(), claimed);
        let topic = match copy.place {
            Place::Wait(wait) => names.wait(&source, wait),
            Place::Dead => names.dead(&source),
            // Other groups read the source too: they have had it.
            Place::Source => names.redrive(&source),
            Place::Suspects => names.suspects(),
        };
        let declares = copy.source.settings.topology == Topology::Declare;
        if let Place::Wait(wait) = copy.place
            && declares
            && !copy.source.waits.contains(&wait)
        {
            self.make_beyond(copy, &source, &topic).await?;
        }
        match self.copy_to(&topic, original, copy).await {
            // A pattern finds topics that were not there at the start, and topics are deleted by mistake.
            Err(error) if error.fault == Fault::Missing && declares => {
                prepare::create_around(&self.cluster, &copy.source, &source, copy.place).await?;
                self.copy_to(&topic, original, copy).await
            }
            copied => copied,
        }
        .map(|()| Copied::default())
    }
}

pub(super) fn attempt_of(message: &Outgoing) -> String {
    format!("publishing message `{}` to {}", message.id, message.target)
}

/// The topic that a message goes to.
pub(super) fn topic_of(message: &Outgoing) -> Result<&str, BrokerError> {
    match &message.target {
        Target::Topic(topic) | Target::Queue(topic) => Ok(topic),
        Target::Exchange { .. } => {
            let text = format!("{}: Kafka has no exchanges; use a topic", attempt_of(message));
            Err(BrokerError::new(Fault::Invalid, text))
        }
    }
}

pub(super) fn headers_of(message: &Outgoing, now: SystemTime) -> OwnedHeaders {
    let text = |name, value: &str| (name, value.to_owned());
    let expires =
        message.time_to_live.map(|left| wire::format_time(now + left.min(wire::WAIT_MAX)));
    let properties = [
        Some(text(wire::ID, &message.id)),
        message.content_type.as_deref().map(|value| text(CONTENT_TYPE, value)),
        message.kind.as_deref().map(|value| text(TYPE, value)),
        expires.as_deref().map(|value| text(wire::EXPIRES, value)),
    ];
    let mut headers = OwnedHeaders::new_with_capacity(message.headers.len() + 4);
    let known = |name: &str| message.headers.iter().any(|(given, _)| given == name);
    for (name, value) in properties.into_iter().flatten().filter(|(name, _)| !known(name)) {
        headers = headers.insert(Header { key: name, value: Some(&value) });
    }
    for (name, value) in &message.headers {
        headers = headers.insert(Header { key: name, value: Some(value) });
    }
    headers
}

/// The user's headers as they are, none of ours but originals, and the stamps.
fn headers_of_copy(original: &KafkaEnvelope, copy: &Copy) -> OwnedHeaders {
    let mut headers = OwnedHeaders::new_with_capacity(copy.stamps.len() + 8);
    let (mut has_timestamp, mut unread) = (false, 0_u32);
    for header in envelope::headers(original.record()) {
        let Some(header) = header else {
            unread += 1;
            continue;
        };
        has_timestamp |= header.key == ORIGINAL_TIMESTAMP;
        if !header.key.starts_with(PREFIX) || header.key.starts_with(ORIGINAL_PREFIX) {
            headers = headers.insert(header);
        }
    }
    if unread > 0 {
        let unread = unread.to_string();
        headers = headers.insert(Header { key: ORIGINAL_UNREAD, value: Some(&unread) });
    }
    let timestamp = original.millis().filter(|_| !has_timestamp).map(|millis| millis.to_string());
    if let Some(timestamp) = &timestamp {
        headers = headers.insert(Header { key: ORIGINAL_TIMESTAMP, value: Some(timestamp) });
    }
    for (name, value) in &copy.stamps {
        headers = headers.insert(Header { key: name, value: Some(value) });
    }
    headers
}

#[cfg(test)]
mod tests {
    use rdkafka::mocking::MockCluster;
    use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

    use super::*;
    use crate::config;

    #[tokio::test]
    async fn a_producer_that_broke_for_good_is_followed_by_another() {
        let mock = MockCluster::new(1).expect("it listens");
        mock.create_topic("out", 1, 1).expect("it is new");
        let url = mock.bootstrap_servers();
        let settings = config::Broker {
            kind: config::BrokerKind::Kafka,
            url: Some(config::Url::new(&url)),
            ..config::Broker::default()
        };
        let clients = Clients::read("main", &settings, "s").expect("it can be read");
        let publisher = KafkaPublisher::new(Cluster::new(clients, &url));
        let send = || publisher.publish("publishing", FutureRecord::to("out").payload(&b"x"[..]));
        send().await.expect("it is stored");
        let disorder = RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER;
        mock.request_errors(RDKafkaApiKey::Produce, &[disorder]);
        send().await.expect_err("this one is refused");
        send().await.expect("the next one is stored");
    }
}
