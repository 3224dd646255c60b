//! The clients of one cluster, and what they say about it.
//!
//! Owns how clients are made, whether the cluster can be reached, and how librdkafka's blocking questions are
//! asked without blocking anybody. librdkafka reconnects by itself, for ever.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{
    BaseConsumer, Consumer as _, ConsumerContext, DefaultConsumerContext, RebalanceProtocol,
};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::topic_partition_list::TopicPartitionList;
use rdkafka::types::RDKafkaRespErr;
use tokio::task::spawn_blocking;

use super::fault;
use super::limits::Limits;
use super::partition::Consumer;
use super::properties::Clients;
use super::reader::Reader;
use super::rebalance::Assignment;
use crate::broker::{BrokerError, BrokerState, Fault};
use crate::telemetry::{self, Seldom};

/// How long a question to the cluster may take.
pub(super) const ANSWER_MAX: Duration = Duration::from_secs(10);

/// How long the client may take to say why there was no answer.
const SAYING_MAX: Duration = Duration::from_millis(100);

/// Between two complaints about records that cannot be read.
const COMPLAINT_PAUSE: Duration = Duration::from_secs(60);

/// One cluster.
#[derive(Clone)]
pub(super) struct Cluster {
    pub(super) clients: Arc<Clients>,
    pub(super) watch: Arc<Watch>,
    /// Its servers, as they are shown.
    pub(super) shown: Arc<str>,
    /// For questions: a consumer without a group.
    asker: Arc<OnceLock<Arc<BaseConsumer<Quiet>>>>,
    id: Arc<OnceLock<String>>,
    pub(super) limits: Arc<Limits>,
}

impl Cluster {
    pub(super) fn new(clients: Clients, shown: &str) -> Self {
        Self {
            clients: Arc::new(clients),
            watch: Arc::default(),
            shown: shown.into(),
            asker: Arc::default(),
            id: Arc::default(),
            limits: Arc::default(),
        }
    }

    /// Asks for what the cluster knows of itself.
    pub(super) async fn connect(&self) -> Result<(), BrokerError> {
        let attempt = format!("connecting to {}", self.shown);
        self.check_settings().await.map_err(|error| fault::fault(&attempt, &error))?;
        let id = self.ask(&attempt, |client| {
            client.fetch_metadata(Some("__consumer_offsets"), ANSWER_MAX)?;
            Ok(client.client().fetch_cluster_id(ANSWER_MAX).unwrap_or_default())
        });
        match id.await {
            Ok(id) => {
                let _ = self.id.set(id);
                self.watch.reached();
                Ok(())
            }
            Err(error) => {
                // What librdkafka heard last says more than that nobody answered in time.
                let error = self.watch.refusal().unwrap_or(error);
                self.watch.lost(&error.text);
                Err(error)
            }
        }
    }

    /// Whether librdkafka takes the settings of a member of a group: it looks at them when a client is made, and members are
    /// made when consuming begins.
    async fn check_settings(&self) -> KafkaResult<()> {
        let config = self.clients.consumer("settings");
        let made = spawn_blocking(move || {
            BaseConsumer::from_config_and_context(&config, DefaultConsumerContext).map(drop)
        });
        made.await.unwrap_or(Ok(()))
    }

    /// The names of all topics that there are.
    pub(super) async fn topics(&self, attempt: &str) -> Result<BTreeSet<String>, BrokerError> {
        let topics = self.ask(attempt, |client| {
            let metadata = client.fetch_metadata(None, ANSWER_MAX)?;
            Ok(metadata.topics().iter().map(|topic| topic.name().to_owned()).collect())
        });
        topics.await
    }

    /// The cluster's id, once it was connected to.
    pub(super) fn id(&self) -> &str {
        self.id.get().map_or("", String::as_str)
    }

    /// Asks a blocking question on a thread for those.
    pub(super) async fn ask<T: Send + 'static>(
        &self,
        attempt: &str,
        question: impl FnOnce(&BaseConsumer<Quiet>) -> KafkaResult<T> + Send + 'static,
    ) -> Result<T, BrokerError> {
        let client = self.asker().map_err(|error| fault::fault(attempt, &error))?;
        let answered = spawn_blocking(move || {
            let answer = question(&client);
            // Serves what it has to say, above all why it cannot connect: errors come one by one, among its logs.
            let patience = if answer.is_err() { SAYING_MAX } else { Duration::ZERO };
            let end = Instant::now() + patience;
            while client.poll(end.saturating_duration_since(Instant::now())).is_some() {}
            answer
        });
        match answered.await {
            Ok(answer) => answer.map_err(|error| fault::fault(attempt, &error)),
            Err(error) => Err(BrokerError::new(Fault::Other, format!("{attempt}: {error}"))),
        }
    }

    fn asker(&self) -> KafkaResult<Arc<BaseConsumer<Quiet>>> {
        if let Some(client) = self.asker.get() {
            return Ok(Arc::clone(client));
        }
        let config = self.clients.plain();
        let made = BaseConsumer::from_config_and_context(&config, Quiet(Arc::clone(&self.watch)))?;
        Ok(Arc::clone(self.asker.get_or_init(|| Arc::new(made))))
    }
}

impl fmt::Display for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

/// Whether the cluster can be reached, by what its clients hear.
pub(super) struct Watch {
    state: Mutex<Heard>,
    /// librdkafka tries records that cannot be read again twice a second.
    unreadable: Seldom,
}

#[derive(Default)]
struct Heard {
    lost: Option<String>,
    refusal: Option<BrokerError>,
    /// Groups that do not let us in, and why: that the cluster answers does not change it.
    shut_out: BTreeMap<String, String>,
}

impl Default for Watch {
    fn default() -> Self {
        let lost = Some("not connected yet".to_owned());
        let state = Mutex::new(Heard { lost, ..Heard::default() });
        Self { state, unreadable: Seldom::new(COMPLAINT_PAUSE) }
    }
}

impl Watch {
    pub(super) fn state(&self) -> BrokerState {
        let heard = self.lock();
        match heard.lost.as_ref().or_else(|| heard.shut_out.values().next()) {
            Some(why) => BrokerState::Disconnected(why.clone()),
            None => BrokerState::Connected,
        }
    }

    /// Something was answered.
    pub(super) fn reached(&self) {
        let mut heard = self.lock();
        if heard.lost.is_some() {
            (heard.lost, heard.refusal) = (None, None);
        }
    }

    /// A group let us in.
    pub(super) fn admitted(&self, group: &str) {
        self.lock().shut_out.remove(group);
    }

    /// Takes note of what a member of a group was told instead of a record.
    pub(super) fn hear_of_group(&self, group: &str, error: &KafkaError) {
        let code = error.rdkafka_error_code();
        if code.is_some_and(fault::is_unreadable) && self.unreadable.may_say().is_some() {
            telemetry::records_unreadable(group, &fault::said(error));
        }
        if code.is_some_and(fault::shuts_out) {
            let why = fault::fault(&format!("consuming as group `{group}`"), error).text;
            let before = self.lock().shut_out.insert(group.to_owned(), why.clone());
            if before.is_none() {
                telemetry::group_refused(group, &why);
            }
        }
        self.hear(error, "consuming");
    }

    pub(super) fn is_lost(&self) -> bool {
        self.lock().lost.is_some()
    }

    pub(super) fn lost(&self, why: &str) {
        self.lock().lost = Some(why.to_owned());
    }

    /// Takes note of what librdkafka says by itself.
    pub(super) fn hear(&self, error: &KafkaError, reason: &str) {
        let known = fault::fault(reason, error);
        match (known.fault, error.rdkafka_error_code()) {
            (Fault::Refused, _) => {
                let mut heard = self.lock();
                heard.lost = Some(known.text.clone());
                heard.refusal = Some(known);
            }
            (_, Some(RDKafkaErrorCode::AllBrokersDown)) => self.lost(reason),
            _ => {}
        }
        telemetry::client_says(&fault::said(error), reason);
    }

    fn refusal(&self) -> Option<BrokerError> {
        self.lock().refusal.take()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Heard> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Hears what a client says that belongs to no group.
#[derive(Clone)]
pub(super) struct Quiet(pub(super) Arc<Watch>);

impl ClientContext for Quiet {
    fn error(&self, error: KafkaError, reason: &str) {
        self.0.hear(&error, reason);
    }
}

impl ConsumerContext for Quiet {}

/// Hears what a member of a group is told.
pub(super) struct Context {
    pub(super) watch: Arc<Watch>,
    pub(super) assignment: Assignment,
    /// The consumer this belongs to.
    pub(super) consumer: OnceLock<Weak<Consumer>>,
    /// Who reads ahead, where somebody does.
    pub(super) reader: Option<Reader>,
}

impl Context {
    /// Takes note of an error that came instead of a record.
    pub(super) fn note_error(&self, error: &KafkaError) {
        self.watch.hear_of_group(&self.assignment.member.group, error);
    }
}

impl ClientContext for Context {
    fn error(&self, error: KafkaError, reason: &str) {
        self.watch.hear(&error, reason);
    }
}

impl ConsumerContext for Context {
    fn rebalance(
        &self,
        client: &BaseConsumer<Self>,
        what: RDKafkaRespErr,
        partitions: &mut TopicPartitionList,
    ) {
        let Some(consumer) = self.consumer.get().and_then(Weak::upgrade) else {
            // It is being dropped, and waits until what it had is given up.
            let _ = match client.rebalance_protocol() {
                RebalanceProtocol::Cooperative => client.incremental_unassign(partitions),
                RebalanceProtocol::Eager | RebalanceProtocol::None => client.unassign(),
            };
            return;
        };
        match what {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => {
                self.assignment.assign(&consumer, partitions);
            }
            _ => self.assignment.revoke(&consumer, partitions),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_that_does_not_let_us_in_is_seen_though_the_cluster_answers() {
        let watch = Watch::default();
        watch.reached();
        let mixed = KafkaError::MessageConsumption(RDKafkaErrorCode::InconsistentGroupProtocol);
        watch.hear_of_group("billing", &mixed);
        watch.reached();
        watch.admitted("audit");
        let BrokerState::Disconnected(why) = watch.state() else { panic!("nobody says so") };
        assert!(why.contains("group `billing`") && why.contains("assignment.strategy"), "{why}");
        watch.admitted("billing");
        assert!(matches!(watch.state(), BrokerState::Connected));
    }
}
