//! What librdkafka is told: our defaults, the user's properties over them, and those that are refused.
//!
//! Pure. A property that would lose or repeat messages behind our back is refused with the reason; everything
//! else is the user's to set.

use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;

use crate::broker::{BrokerError, Fault};
use crate::config;

/// What every client is told unless the user says otherwise.
const COMMON: [(&str, &str); 3] = [
    ("socket.keepalive.enable", "true"),
    ("reconnect.backoff.max.ms", "5000"),
    ("topic.metadata.refresh.interval.ms", "60000"),
];

/// What consumers are told unless the user says otherwise.
///
/// `fetch.queue.backoff.ms`: librdkafka's 1,000 puts the fetcher to sleep whenever its queue is full. Its queue
/// bounds hold for each partition, because each is drained on its own.
const CONSUMER: [(&str, &str); 6] = [
    ("auto.offset.reset", "earliest"),
    ("fetch.queue.backoff.ms", "10"),
    ("fetch.wait.max.ms", "100"),
    ("queued.max.messages.kbytes", "4096"),
    ("queued.min.messages", "50000"),
    ("check.crcs", "true"),
];

/// What producers are told unless the user says otherwise. The size is the broker's to limit.
///
/// `topic.metadata.propagation.max.ms`: how long a topic that nobody knows may still turn up.
const PRODUCER: [(&str, &str); 6] = [
    ("topic.metadata.propagation.max.ms", "5000"),
    ("message.timeout.ms", "60000"),
    ("message.max.bytes", "104857600"),
    ("partitioner", "murmur2_random"),
    ("linger.ms", "2"),
    ("sticky.partitioning.linger.ms", "2"),
];

/// Milliseconds that a transaction may take, unless the user says otherwise.
const TRANSACTION_MAX: u64 = 15_000;

/// Property, the values it may have, and why no other.
const REFUSED: [(&str, &[&str], &str); 14] = [
    ("enable.auto.commit", &["false"], "offsets are committed when the work behind them is done"),
    ("auto.commit.enable", &["false"], "offsets are committed when the work behind them is done"),
    (
        "enable.auto.offset.store",
        &["false"],
        "an offset is finished when its message is, not when it is read",
    ),
    ("acks", &["all", "-1"], "a copy that only the leader has is lost with the leader"),
    (
        "request.required.acks",
        &["all", "-1"],
        "a copy that only the leader has is lost with the leader",
    ),
    ("enable.idempotence", &["true"], "a resend would store a copy twice, or out of order"),
    (
        "delivery.report.only.error",
        &["false"],
        "the original is finished when its copy is confirmed",
    ),
    (
        "isolation.level",
        &["read_committed"],
        "what a transaction wrote that was aborted would be handled",
    ),
    ("offset.store.method", &["broker"], "the group's next member reads offsets from the broker"),
    ("group.id", &[], "it is the subscription's `group`"),
    ("bootstrap.servers", &[], "it is the broker's `url`"),
    ("metadata.broker.list", &[], "it is the broker's `url`"),
    (
        "transactional.id",
        &[],
        "it is made for each subscription whose `delivery_guarantee` asks for it",
    ),
    ("topic.blacklist", &[], "it keeps a pattern from matching our own waits and dead letters"),
];

/// What `group.protocol = "consumer"` leaves to the broker; librdkafka refuses to start with them.
const CLASSIC_ONLY: [&str; 3] =
    ["partition.assignment.strategy", "session.timeout.ms", "heartbeat.interval.ms"];

/// What only members of a group are told, beside [`CLASSIC_ONLY`] and [`CONSUMER`].
const MEMBER_ONLY: [&str; 4] =
    ["group.instance.id", "group.protocol", "group.remote.assignor", "max.poll.interval.ms"];

/// What users tell producers, beside [`PRODUCER`]: librdkafka logs a warning for each that a consumer is told.
const PRODUCER_ONLY: [&str; 17] = [
    "acks",
    "batch.num.messages",
    "batch.size",
    "compression.codec",
    "compression.level",
    "compression.type",
    "delivery.report.only.error",
    "enable.gapless.guarantee",
    "enable.idempotence",
    "message.send.max.retries",
    "queue.buffering.backpressure.threshold",
    "queue.buffering.max.kbytes",
    "queue.buffering.max.messages",
    "queuing.strategy",
    "request.timeout.ms",
    "retries",
    "transaction.timeout.ms",
];

/// The clients' settings.
#[derive(Clone)]
pub(super) struct Clients {
    common: ClientConfig,
    user: Vec<(String, String)>,
}

impl Clients {
    /// Reads the table `[brokers.name]` for the service `service`.
    pub(super) fn read(
        name: &str,
        settings: &config::Broker,
        service: &str,
    ) -> Result<Self, BrokerError> {
        let refused = |what: String| BrokerError::new(Fault::Refused, what);
        let url = settings.url.as_ref();
        let url = url.ok_or_else(|| refused(format!("brokers.{name}.url is missing")))?;
        let wrong: Vec<String> = wrong(&settings.properties)
            .map(|(property, why)| format!("brokers.{name}.properties.\"{property}\" {why}"))
            .collect();
        if !wrong.is_empty() {
            return Err(refused(wrong.join("\n")));
        }
        let mut common = ClientConfig::new();
        common.set_log_level(RDKafkaLogLevel::Warning);
        common.set("bootstrap.servers", url.expose());
        common.set("client.id", service);
        for (property, value) in COMMON {
            common.set(property, value);
        }
        encrypt(name, &mut common, settings)?;
        let user = settings.properties.expose_all();
        let user = user.map(|(property, value)| (own_name(property).to_owned(), value.to_owned()));
        let user = user.collect();
        Ok(Self { common, user })
    }

    /// For a consumer of `group`.
    pub(super) fn consumer(&self, group: &str) -> ClientConfig {
        let mut config = self.with(&CONSUMER);
        drop_producers(&mut config);
        config.set("group.id", group);
        config.set("enable.auto.commit", "false");
        config.set("enable.auto.offset.store", "false");
        config.set("enable.partition.eof", "false");
        let is_new_protocol = config.get("group.protocol") == Some("consumer");
        if is_new_protocol {
            CLASSIC_ONLY.iter().for_each(|property| {
                config.remove(property);
            });
        } else if config.get("partition.assignment.strategy").is_none() {
            // What is not moved is not stopped.
            config.set("partition.assignment.strategy", "cooperative-sticky");
        }
        config
    }

    /// For a producer.
    pub(super) fn producer(&self) -> ClientConfig {
        let mut config = self.with(&PRODUCER);
        // A wait or a dead-letter topic with the broker's defaults would lose what is in it.
        config.set("allow.auto.create.topics", "false");
        config.set("acks", "all");
        config.set("enable.idempotence", "true");
        drop_consumers(&mut config);
        config
    }

    /// For a producer of copies that were too large for their topic as they were: the original may have been
    /// compressed, and the topic's limit is for what is stored.
    pub(super) fn compressing(&self) -> ClientConfig {
        let mut config = self.producer();
        config.remove("compression.codec");
        config.set("compression.type", "zstd");
        config
    }

    /// For a producer of transactions. Short ones: whoever follows a process that died waits for the end of its last.
    pub(super) fn transactional(&self, id: &str) -> ClientConfig {
        let mut config = self.producer();
        config.set("transactional.id", id);
        let timeout = self.millis("transaction.timeout.ms", TRANSACTION_MAX);
        config.set("transaction.timeout.ms", timeout.to_string());
        // Nothing of a transaction may outlive it.
        config.set("message.timeout.ms", timeout.to_string());
        config
    }

    /// What a member's transactions go by: a member that keeps its place in the group keeps this too, so that its
    /// next process ends what the last one left open.
    pub(super) fn transactional_id(&self, group: &str) -> String {
        let instance = self.user.iter().find(|(name, _)| name == "group.instance.id");
        let instance = instance.map(|(_, value)| value.clone());
        format!("{group}.{}", instance.unwrap_or_else(|| uuid::Uuid::now_v7().to_string()))
    }

    /// For questions and for creating topics.
    pub(super) fn plain(&self) -> ClientConfig {
        let mut config = self.with(&[]);
        drop_producers(&mut config);
        drop_consumers(&mut config);
        config
    }

    /// A property as a consumer has it, with librdkafka's own default.
    pub(super) fn millis(&self, property: &str, default: u64) -> u64 {
        let user = self.user.iter().find(|(name, _)| name == property);
        user.and_then(|(_, value)| value.parse().ok()).unwrap_or(default)
    }

    fn with(&self, defaults: &[(&str, &str)]) -> ClientConfig {
        let mut config = self.common.clone();
        for (property, value) in defaults {
            config.set(*property, *value);
        }
        for (property, value) in &self.user {
            config.set(property, value);
        }
        config
    }
}

fn drop_producers(config: &mut ClientConfig) {
    let with_defaults = PRODUCER.iter().map(|(property, _)| property);
    PRODUCER_ONLY.iter().chain(with_defaults).for_each(|property| {
        config.remove(property);
    });
}

fn drop_consumers(config: &mut ClientConfig) {
    let with_defaults = CONSUMER.iter().map(|(property, _)| property);
    MEMBER_ONLY.iter().chain(&CLASSIC_ONLY).chain(with_defaults).for_each(|property| {
        config.remove(property);
    });
}

/// Other names of properties that we set too: of two the client would take whichever it is told last.
const ALIASES: [(&str, &str); 3] = [
    ("delivery.timeout.ms", "message.timeout.ms"),
    ("queue.buffering.max.ms", "linger.ms"),
    ("request.required.acks", "acks"),
];

fn own_name(property: &str) -> &str {
    ALIASES.iter().find(|(alias, _)| *alias == property).map_or(property, |(_, own)| own)
}

/// Every property that is refused, with the reason.
fn wrong(properties: &config::Properties) -> impl Iterator<Item = (&'static str, String)> {
    REFUSED.iter().filter_map(|(property, allowed, why)| {
        let value = properties.expose(property)?;
        if allowed.iter().any(|allowed| allowed.eq_ignore_ascii_case(value.trim())) {
            return None;
        }
        let text = match allowed.first() {
            Some(_) => format!("is refused: {why}; remove it"),
            None => format!("is not to be set here: {why}; remove it"),
        };
        Some((*property, text))
    })
}

fn encrypt(
    name: &str,
    config: &mut ClientConfig,
    settings: &config::Broker,
) -> Result<(), BrokerError> {
    let property = |name: &str| settings.properties.expose(name);
    let protocol = property("security.protocol").unwrap_or_default().to_ascii_lowercase();
    let wants = settings.tls.is_some() || !matches!(protocol.as_str(), "" | "plaintext");
    if wants && !cfg!(feature = "kafka-tls") {
        return Err(BrokerError::new(
            Fault::Refused,
            format!(
                "brokers.{name} asks for TLS or SASL, which this build does not contain; enable the feature kafka-tls"
            ),
        ));
    }
    let Some(tls) = &settings.tls else { return Ok(()) };
    if protocol.is_empty() {
        let has_sasl = settings.properties.names().any(|name| name.starts_with("sasl."));
        config.set("security.protocol", if has_sasl { "sasl_ssl" } else { "ssl" });
    }
    let files = [
        ("ssl.ca.location", &tls.ca),
        ("ssl.certificate.location", &tls.cert),
        ("ssl.key.location", &tls.key),
    ];
    for (property, file) in files {
        if let Some(file) = file {
            config.set(property, file.to_string_lossy());
        }
    }
    if tls.insecure {
        config.set("enable.ssl.certificate.verification", "false");
        config.set("ssl.endpoint.identification.algorithm", "none");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rdkafka::consumer::BaseConsumer;
    use rdkafka::producer::BaseProducer;

    use super::*;

    fn broker(properties: &[(&str, &str)]) -> config::Broker {
        let mut broker = config::Broker {
            kind: config::BrokerKind::Kafka,
            url: Some(config::Url::new("127.0.0.1:9092")),
            ..config::Broker::default()
        };
        for (property, value) in properties {
            broker.properties.set(*property, *value);
        }
        broker
    }

    #[test]
    fn what_would_lose_messages_is_refused_all_at_once() {
        let broker = broker(&[
            ("acks", "1"),
            ("enable.auto.commit", "true"),
            ("enable.idempotence", "false"),
            ("group.id", "mine"),
        ]);
        let error = Clients::read("main", &broker, "s").map(|_| ()).expect_err("refused");
        assert_eq!(error.text.lines().count(), 4, "{error}");
        assert!(error.text.contains("brokers.main.properties.\"acks\" is refused: "), "{error}");
    }

    #[test]
    fn each_refusal_names_its_property_and_says_why() {
        for (property, allowed, why) in REFUSED {
            let error = Clients::read("main", &broker(&[(property, "anything else")]), "s");
            let text = error.map(|_| ()).expect_err(property).text;
            assert!(
                text.starts_with(&format!("brokers.main.properties.\"{property}\" is ")),
                "{text}"
            );
            assert!(text.contains(why) && text.ends_with("; remove it"), "{text}");
            for value in allowed {
                assert!(
                    Clients::read("main", &broker(&[(property, value)]), "s").is_ok(),
                    "{value}"
                );
            }
        }
    }

    #[test]
    fn a_producer_of_transactions_lets_nothing_outlive_them() {
        let broker = broker(&[("transaction.timeout.ms", "5000"), ("group.instance.id", "a1")]);
        let clients = Clients::read("main", &broker, "s").expect("it can be read");
        let id = clients.transactional_id("billing");
        let config = clients.transactional(&id);
        assert_eq!(id, "billing.a1", "the next process of this name ends what this one left");
        assert_eq!(config.get("transactional.id"), Some("billing.a1"));
        assert_eq!(config.get("message.timeout.ms"), Some("5000"));
    }

    #[test]
    fn a_property_by_its_other_name_is_the_same_property() {
        let broker = broker(&[("delivery.timeout.ms", "9000"), ("queue.buffering.max.ms", "7")]);
        let clients = Clients::read("main", &broker, "s").expect("it can be read");
        let producer = clients.producer();
        assert_eq!(producer.get("message.timeout.ms"), Some("9000"));
        assert_eq!(
            (producer.get("linger.ms"), producer.get("queue.buffering.max.ms")),
            (Some("7"), None)
        );
        let transactional = clients.transactional("id");
        assert_eq!(transactional.get("message.timeout.ms"), Some("15000"));
        assert_eq!(transactional.get("delivery.timeout.ms"), None);
    }

    #[test]
    fn no_producer_makes_topics_by_the_way() {
        let clients = Clients::read("main", &broker(&[]), "s").expect("it can be read");
        for producer in [clients.producer(), clients.transactional("id")] {
            assert_eq!(producer.get("allow.auto.create.topics"), Some("false"));
        }
    }

    #[test]
    fn what_says_the_same_as_we_do_is_taken() {
        let broker = broker(&[("acks", "all"), ("enable.auto.commit", "False")]);
        assert!(Clients::read("main", &broker, "s").is_ok());
    }

    #[test]
    fn the_users_word_is_the_last() {
        let broker = broker(&[("fetch.queue.backoff.ms", "50"), ("auto.offset.reset", "latest")]);
        let clients = Clients::read("main", &broker, "s").expect("it can be read");
        let consumer = clients.consumer("g");
        assert_eq!(consumer.get("fetch.queue.backoff.ms"), Some("50"));
        assert_eq!(consumer.get("auto.offset.reset"), Some("latest"));
        assert_eq!(clients.producer().get("acks"), Some("all"));
    }

    #[test]
    fn the_new_protocol_leaves_the_assignment_to_the_broker() {
        let broker = broker(&[
            ("group.protocol", "consumer"),
            ("session.timeout.ms", "9000"),
            ("max.poll.interval.ms", "9000"),
        ]);
        let clients = Clients::read("main", &broker, "s").expect("it can be read");
        let asking = clients.plain();
        assert_eq!(asking.get("group.protocol"), None, "it is no member of a group");
        for client in [clients.consumer("g"), asking] {
            assert_eq!(client.get("partition.assignment.strategy"), None);
            assert_eq!(client.get("session.timeout.ms"), None);
            client.create::<BaseConsumer>().expect("librdkafka takes it");
        }
        clients.producer().create::<BaseProducer>().expect("librdkafka takes it");
    }

    #[test]
    fn no_client_is_told_what_only_others_understand() {
        let broker = broker(&[("retries", "7"), ("group.instance.id", "a"), ("linger.ms", "9")]);
        let clients = Clients::read("main", &broker, "s").expect("it can be read");
        for consumer in [clients.consumer("g"), clients.plain()] {
            assert_eq!((consumer.get("retries"), consumer.get("linger.ms")), (None, None));
        }
        assert_eq!(clients.consumer("g").get("group.instance.id"), Some("a"));
        assert_eq!(clients.producer().get("retries"), Some("7"));
        assert_eq!(clients.producer().get("group.instance.id"), None);
    }
}
