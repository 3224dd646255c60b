//! RabbitMQ through lapin.
//!
//! Owns two connections, one to consume and one to publish: while the server blocks publishers it also stops
//! reading their acknowledgements. Knows no policy.
//!
//! Runs against 3.10 and later. What a server of that range does differently is written where it matters.

mod beyond;
mod connection;
mod copies;
mod dead_letters;
mod envelope;
mod fault;
mod fit;
mod give_way;
mod lane;
mod lanes;
mod ledger;
mod letter;
mod outlet;
mod publisher;
mod tls;
mod topology;

use std::sync::{Arc, PoisonError};
use std::{env, fs, process};

use async_trait::async_trait;

use self::beyond::Beyond;
use self::connection::{Address, Engine, Link};
use self::lane::{Generations, Tallies, Tally};
use self::lanes::RabbitLanes;
use self::publisher::RabbitPublisher;
use self::topology::Plan;
use super::{Broker, BrokerError, BrokerState, DeadLetterReader, Depth, Lanes, Publisher, Source};
use crate::config;

/// A RabbitMQ server or cluster.
///
/// ```
/// use std::{sync::Arc, time::Duration};
/// use redeliver::broker::{Broker, Source, rabbitmq::RabbitBroker};
/// use redeliver::config::Config;
///
/// let config = Config::from_toml(r#"
///     [brokers.main]
///     kind = "rabbitmq"
///     url = "amqp://127.0.0.1:5672/%2f"
///     [subscriptions.orders]
///     broker = "main"
///     queue = "orders"
/// "#)?;
/// let broker = RabbitBroker::new("main", &config.brokers["main"], "shop")?;
/// let settings = Arc::new(config.subscriptions["orders"].clone());
/// let waits = vec![Duration::from_secs(5)];
/// let source = Source { name: "orders".into(), settings, waits, service: "shop".into() };
///
/// // What would be declared, without a connection.
/// let lines = broker.topology(&source);
/// assert!(lines.iter().any(|line| line.contains("orders.wait.5000")), "{lines:?}");
/// assert!(lines.iter().any(|line| line.contains("orders.dead")), "{lines:?}");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct RabbitBroker {
    consuming: Arc<Link>,
    publishing: Arc<Link>,
    publisher: Arc<RabbitPublisher>,
    generations: Generations,
    tallies: Tallies,
    beyond: Arc<Beyond>,
}

impl RabbitBroker {
    /// Reads the table `[brokers.name]` for the service `service`; connects to nothing yet.
    ///
    /// ```
    /// use redeliver::broker::{Fault, rabbitmq::RabbitBroker};
    /// use redeliver::config::{Broker, BrokerKind, Tls, Url};
    ///
    /// let (url, tls) = (Some(Url::new("amqp://app:hunter2@rabbit:5672/%2f")), Some(Tls::default()));
    /// let settings = Broker { kind: BrokerKind::Rabbitmq, url, tls, ..Broker::default() };
    /// let error = RabbitBroker::new("main", &settings, "shop").err().expect("tls without amqps");
    /// assert_eq!(error.fault, Fault::Refused);
    /// assert!(error.text.contains("write amqps://"), "{error}");
    /// ```
    ///
    /// # Errors
    /// A url that cannot be read, or one that contradicts `tls`.
    pub fn new(name: &str, settings: &config::Broker, service: &str) -> Result<Self, BrokerError> {
        let address = Address::read(name, settings)?;
        let engine = Engine::start()?;
        let link = |purpose| {
            let label = format!("{} {purpose}", label(service));
            Link::new(engine.clone(), address.clone(), label)
        };
        let (consuming, publishing) = (link("consume"), link("publish"));
        Link::pair(&consuming, &publishing);
        let beyond = Arc::<Beyond>::default();
        Ok(Self {
            consuming,
            publisher: Arc::new(RabbitPublisher::new(publishing.clone(), beyond.clone())),
            publishing,
            beyond,
            generations: Generations::default(),
            tallies: Tallies::default(),
        })
    }

    fn tally(&self, source: &Source) -> Arc<Tally> {
        let mut tallies = self.tallies.lock().unwrap_or_else(PoisonError::into_inner);
        tallies.entry(topology::queue_name(&source.settings).to_owned()).or_default().clone()
    }
}

#[async_trait]
impl Broker for RabbitBroker {
    fn kind(&self) -> &'static str {
        "rabbitmq"
    }

    async fn connect(&self) -> Result<(), BrokerError> {
        self.consuming.live().await?;
        self.publishing.live().await?;
        Ok(())
    }

    async fn prepare(&self, source: &Source) -> Result<Vec<String>, BrokerError> {
        topology::prepare(&self.consuming, source).await
    }

    fn topology(&self, source: &Source) -> Vec<String> {
        Plan::of(source).lines()
    }

    fn lanes(&self, source: Arc<Source>) -> Box<dyn Lanes> {
        let tally = self.tally(&source);
        Box::new(RabbitLanes::new(self.consuming.clone(), source, self.generations.clone(), tally))
    }

    fn publisher(&self) -> Arc<dyn Publisher> {
        self.publisher.clone()
    }

    async fn dead_letters(
        &self,
        source: Arc<Source>,
    ) -> Result<Box<dyn DeadLetterReader>, BrokerError> {
        Ok(Box::new(
            dead_letters::open(&self.consuming, Arc::clone(&source), self.tally(&source)).await?,
        ))
    }

    async fn depth(&self, source: &Source) -> Result<Depth, BrokerError> {
        topology::depth(&self.consuming, source, &self.tally(source), &self.beyond).await
    }

    fn state(&self) -> BrokerState {
        state_of_both(self.consuming.state(), self.publishing.state())
    }

    async fn close(&self) {
        let publishing = async {
            if matches!(self.publishing.state(), BrokerState::Disconnected(_)) {
                // Nothing is confirmed any more, and whoever waits until it is back is not waited for.
                self.publishing.close().await;
            }
            self.publisher.close().await;
            self.publishing.close().await;
        };
        tokio::join!(publishing, self.consuming.close());
    }
}

/// What is wrong with either connection, and with which.
fn state_of_both(consuming: BrokerState, publishing: BrokerState) -> BrokerState {
    use BrokerState::{Blocked, Connected, Disconnected};
    match (consuming, publishing) {
        (Connected, Connected) => Connected,
        (Disconnected(why), Disconnected(_)) => Disconnected(why),
        (Disconnected(why), Connected | Blocked(_)) => {
            Disconnected(format!("the connection that consumes: {why}"))
        }
        (Connected | Blocked(_), Disconnected(why)) => {
            Disconnected(format!("the connection that publishes: {why}"))
        }
        (Blocked(why), Connected | Blocked(_)) | (Connected, Blocked(why)) => Blocked(why),
    }
}

/// Who we are, for whoever looks at the server: service, host and process.
fn label(service: &str) -> String {
    let host = env::var("HOSTNAME").ok().filter(|host| !host.is_empty());
    let host = host.or_else(|| fs::read_to_string("/etc/hostname").ok());
    format!("{service}.{}.{}", host.as_deref().map_or("localhost", str::trim), process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_tells_which_of_the_two_connections_is_down() {
        let down = || BrokerState::Disconnected("refused".to_owned());
        let blocked = || BrokerState::Blocked("low on memory".to_owned());
        for (consuming, publishing, said) in [
            (BrokerState::Connected, down(), "the connection that publishes: refused"),
            (blocked(), down(), "the connection that publishes: refused"),
            (down(), BrokerState::Connected, "the connection that consumes: refused"),
            (down(), down(), "refused"),
        ] {
            let state = state_of_both(consuming, publishing);
            assert_eq!(state, BrokerState::Disconnected(said.to_owned()));
        }
        assert_eq!(state_of_both(BrokerState::Connected, blocked()), blocked());
        let both = state_of_both(BrokerState::Connected, BrokerState::Connected);
        assert_eq!(both, BrokerState::Connected);
    }
}
