//! A broker of ours on the server under test, and the lanes and messages that the tests look at.

use std::sync::Arc;
use std::time::Duration;

use redeliver::broker::rabbitmq::RabbitBroker;
use redeliver::broker::{
    Broker, Lane, LaneEvent, LaneId, Lanes, Outgoing, Received, Source, Target,
};
use redeliver::config::{self, Subscription, Url};
use redeliver::testing::broker_conformance::Subject;
use tokio::time::{Instant, sleep, timeout};

pub(crate) use crate::common::rabbitmq::{
    Node, PATIENCE, Raw, control, delete_queues, unique, url,
};

/// A broker of ours on a server, with everything it made deleted in the end.
pub(crate) struct Lab {
    pub(crate) broker: RabbitBroker,
    pub(crate) service: String,
    url: String,
    made: std::sync::Mutex<Vec<Arc<Source>>>,
}

impl Lab {
    /// On the server under test.
    pub(crate) async fn connect() -> Self {
        Self::connect_to(&url()).await
    }

    pub(crate) async fn connect_to(url: &str) -> Self {
        let lab = Self::new(url, &broker_settings(url));
        lab.broker.connect().await.expect("the server can be reached");
        lab
    }

    pub(crate) fn new(url: &str, settings: &config::Broker) -> Self {
        let service = unique("service");
        let broker = RabbitBroker::new("main", settings, &service).expect("the url can be read");
        Self { broker, service, url: url.to_owned(), made: std::sync::Mutex::default() }
    }

    /// A source with a queue of its own.
    pub(crate) fn source_with(
        &self,
        waits: &[Duration],
        settle: impl FnOnce(&mut Subscription),
    ) -> Arc<Source> {
        let queue = unique("queue");
        let mut settings = Subscription {
            broker: "main".to_owned(),
            queue: Some(queue.clone()),
            ..Subscription::default()
        };
        settle(&mut settings);
        let source = Arc::new(Source {
            name: "orders".into(),
            settings: settings.into(),
            waits: waits.to_vec(),
            service: self.service.as_str().into(),
        });
        self.made.lock().expect("no test panics in here").push(source.clone());
        source
    }

    pub(crate) async fn prepared(&self, waits: &[Duration]) -> Arc<Source> {
        let source = self.source_with(waits, |_| {});
        self.broker.prepare(&source).await.expect("the source can be prepared");
        source
    }

    /// Ends the connections of this broker from outside, by the server.
    pub(crate) async fn close_connections(&self) {
        let listed = control(&["-q", "list_connections", "pid", "client_properties"]);
        let ours: Vec<_> = listed.lines().filter(|line| line.contains(&self.service)).collect();
        assert_eq!(ours.len(), 2, "one connection to consume and one to publish:\n{listed}");
        for line in ours {
            let pid = line.split('\t').next().expect("a line begins with the pid");
            control(&["close_connection", pid, "closed by a test"]);
        }
    }
}

impl Subject for Lab {
    fn broker(&self) -> &dyn Broker {
        &self.broker
    }

    fn source(&self, waits: &[Duration]) -> Arc<Source> {
        self.source_with(waits, |_| {})
    }

    fn target(&self, source: &Source) -> Target {
        Target::Queue(queue(source))
    }

    fn nowhere(&self) -> Target {
        Target::Queue(unique("nowhere"))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let made = std::mem::take(self.made.get_mut().expect("no test panics in here"));
        let names: Vec<_> = made.iter().flat_map(|source| names(source)).collect();
        delete_queues(&self.url, names);
    }
}

/// All queues of a source.
fn names(source: &Source) -> Vec<String> {
    let waits =
        source.waits.iter().map(|wait| format!("{}.wait.{}", queue(source), wait.as_millis()));
    waits.chain([queue(source), dead(source), format!("{}.suspects", queue(source))]).collect()
}

pub(crate) fn queue(source: &Source) -> String {
    source.settings.queue.clone().expect("every source here has a queue")
}

pub(crate) fn dead(source: &Source) -> String {
    format!("{}.dead", queue(source))
}

pub(crate) fn broker_settings(url: &str) -> config::Broker {
    config::Broker {
        kind: config::BrokerKind::Rabbitmq,
        url: Some(Url::new(url)),
        ..config::Broker::default()
    }
}

pub(crate) fn message(target: Target, text: &str) -> Outgoing {
    Outgoing {
        target,
        id: format!("id of {text}"),
        body: text.to_owned().into(),
        headers: Vec::new(),
        content_type: None,
        kind: None,
        key: None,
        time_to_live: None,
        priority: None,
    }
}

/// The next lane.
pub(crate) async fn open(lanes: &mut dyn Lanes) -> (LaneId, Box<dyn Lane>) {
    match timeout(PATIENCE, lanes.next()).await.expect("a lane opens in time") {
        LaneEvent::Opened(id, lane) => (id, lane),
        LaneEvent::Failed(id, error) => panic!("lane {id} could not be opened: {error}"),
    }
}

/// So many messages of a lane.
pub(crate) async fn receive(lane: &mut dyn Lane, count: usize) -> Vec<Received> {
    let mut got = Vec::new();
    while got.len() < count {
        let missing = count - got.len();
        timeout(PATIENCE, lane.next(&mut got, missing))
            .await
            .expect("messages come in time")
            .expect("the lane delivers");
    }
    got
}

pub(crate) fn texts(messages: &[Received]) -> Vec<String> {
    messages
        .iter()
        .map(|message| String::from_utf8_lossy(message.envelope.body()).into_owned())
        .collect()
}

/// Asks until the answer is yes.
pub(crate) async fn until(what: &str, mut ask: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !ask() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        sleep(Duration::from_millis(25)).await;
    }
}
