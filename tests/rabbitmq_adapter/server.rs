//! The server under test: names of our own in it, what the tests do to it from outside, and private nodes.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use futures_util::StreamExt;
use lapin::options::{
    BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions,
    QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use redeliver::broker::rabbitmq::RabbitBroker;
use redeliver::broker::{
    Broker, Lane, LaneEvent, LaneId, Lanes, Outgoing, Received, Source, Target,
};
use redeliver::config::{self, Subscription, Url};
use redeliver::testing::broker_conformance::Subject;
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::timeout;

pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The server's url, from the environment.
pub(crate) fn url() -> String {
    env::var("RABBITMQ_URL").expect("RABBITMQ_URL names the server under test; tests/servers/rabbitmq.sh starts one and prints it")
}

/// A name that nobody else uses.
pub(crate) fn unique(name: &str) -> String {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    format!(
        "redeliver-test.{}.{}.{name}",
        std::process::id(),
        COUNTER.fetch_add(1, Ordering::Relaxed)
    )
}

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
        let url = self.url.clone();
        // A thread of its own: a test's runtime may be panicking, and cannot be waited on from here.
        let deleted = thread::spawn(move || {
            tokio::runtime::Runtime::new().map(|runtime| runtime.block_on(delete(&url, names)))
        });
        let _ = deleted.join();
    }
}

async fn delete(url: &str, names: Vec<String>) {
    let Ok(connection) = Connection::connect(url, ConnectionProperties::default()).await else {
        return;
    };
    let Ok(channel) = connection.create_channel().await else { return };
    for name in names {
        let _ = channel.queue_delete(name.into(), QueueDeleteOptions::default()).await;
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

/// A client beside ours, for what ours would never do.
pub(crate) struct Raw {
    pub(crate) channel: Channel,
    _connection: Connection,
}

impl Raw {
    pub(crate) async fn connect() -> Self {
        Self::connect_to(&url()).await
    }

    pub(crate) async fn connect_to(url: &str) -> Self {
        let connection = Connection::connect(url, ConnectionProperties::default())
            .await
            .expect("the server can be reached");
        let channel = connection.create_channel().await.expect("a channel opens");
        channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms are on");
        Self { channel, _connection: connection }
    }

    pub(crate) async fn publish(&self, queue: &str, body: &[u8], properties: BasicProperties) {
        let publishing = self.channel.basic_publish(
            "".into(),
            queue.into(),
            BasicPublishOptions::default(),
            body,
            properties,
        );
        publishing.await.expect("it is sent").await.expect("it is confirmed");
    }

    pub(crate) async fn declare(&self, queue: &str, arguments: &[(&str, AMQPValue)]) {
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        let mut table = FieldTable::default();
        for (name, value) in arguments {
            table.insert((*name).into(), value.clone());
        }
        self.channel.queue_declare(queue.into(), options, table).await.expect("it is declared");
    }

    pub(crate) async fn delete(&self, queue: &str) {
        self.channel
            .queue_delete(queue.into(), QueueDeleteOptions::default())
            .await
            .expect("it is deleted");
    }

    pub(crate) async fn count(&self, queue: &str) -> u32 {
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        self.channel
            .queue_declare(queue.into(), options, FieldTable::default())
            .await
            .expect("it is there")
            .message_count()
    }

    /// Rejects the next message of a queue for good.
    pub(crate) async fn reject(&self, queue: &str) {
        let consuming = self.channel.basic_consume(
            queue.into(),
            "".into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        );
        let mut consumer = consuming.await.expect("it is consumed");
        let delivery = consumer.next().await.expect("one is there").expect("it is delivered");
        delivery
            .reject(lapin::options::BasicRejectOptions { requeue: false })
            .await
            .expect("it is rejected");
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

/// Runs the control command of the server under test.
pub(crate) fn control(arguments: &[&str]) -> String {
    let command = env::var("REDELIVER_RABBITMQCTL").expect("REDELIVER_RABBITMQCTL is the command that controls the server under test, such as `docker compose exec rabbitmq rabbitmqctl`");
    let mut words = command.split_whitespace();
    let program = words.next().expect("REDELIVER_RABBITMQCTL is not empty");
    output(Command::new(program).args(words).args(arguments))
}

fn output(command: &mut Command) -> String {
    let output = command.output().expect("the command runs");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("its output is text")
}

/// A node of a test's own, that may be configured, stopped and choked. One at a time: each takes memory and cores.
pub(crate) struct Node {
    folder: PathBuf,
    pub(crate) url: String,
    _turn: MutexGuard<'static, ()>,
}

impl Node {
    pub(crate) async fn start(name: &str, configuration: &str) -> Self {
        static TURN: Mutex<()> = Mutex::const_new(());
        let turn = TURN.lock().await;
        let folder = env::temp_dir().join(unique(name));
        fs::create_dir_all(&folder).expect("the folder can be made");
        fs::write(folder.join("extra.conf"), configuration)
            .expect("the configuration can be written");
        let mut node = Self { folder, url: String::new(), _turn: turn };
        node.url = node.run_server("start");
        node
    }

    pub(crate) fn stop(&self) {
        self.run_server("stop");
    }

    pub(crate) fn start_again(&self) {
        self.run_server("start");
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn control(&self, arguments: &[&str]) -> String {
        output(Command::new(self.folder.join("rabbitmqctl")).args(arguments))
    }

    fn script(&self, command: &str) -> Command {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/servers/rabbitmq.sh");
        let mut bash = Command::new("bash");
        bash.args([script.as_os_str(), OsStr::new(command), self.folder.as_os_str()]);
        bash
    }

    fn run_server(&self, command: &str) -> String {
        output(&mut self.script(command))
            .lines()
            .find_map(|line| line.strip_prefix("RABBITMQ_URL="))
            .unwrap_or_default()
            .to_owned()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Whatever comes of it: a panic in here would hide the one that brought us here.
        let _ = self.script("stop").output();
        let _ = fs::remove_dir_all(&self.folder);
    }
}
