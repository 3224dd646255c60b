//! A RabbitMQ under test: names of our own in it, what the tests do to it from outside, and private nodes.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use futures_util::StreamExt;
use lapin::options::{
    BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, QueueBindOptions,
    QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use tokio::sync::{Mutex, MutexGuard};

/// How long anything may take before a test fails: long, because the machine may be busy with others.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// The server's url, from the environment.
pub(crate) fn url() -> String {
    env::var("RABBITMQ_URL").expect("RABBITMQ_URL names the server under test; tests/servers/rabbitmq.sh starts one and prints it")
}

/// A name that nobody else uses.
pub(crate) fn unique(name: &str) -> String {
    format!("redeliver-test.{}.{name}", uuid::Uuid::now_v7().simple())
}

/// Deletes queues, whatever state the caller is in: a test's runtime may be panicking, so this has one of its own.
pub(crate) fn delete_queues(url: &str, names: Vec<String>) {
    let url = url.to_owned();
    let deleted = thread::spawn(move || {
        tokio::runtime::Runtime::new().map(|runtime| runtime.block_on(delete(&url, names)))
    });
    let _ = deleted.join();
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

    pub(crate) async fn bind(&self, queue: &str, exchange: &str, key: &str) {
        let (options, arguments) = (QueueBindOptions::default(), FieldTable::default());
        let bound =
            self.channel.queue_bind(queue.into(), exchange.into(), key.into(), options, arguments);
        bound.await.expect("it is bound");
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

/// Runs the control command of the server under test.
pub(crate) fn control(arguments: &[&str]) -> String {
    let command = env::var("REDELIVER_RABBITMQCTL").expect("REDELIVER_RABBITMQCTL is the command that controls the server under test, such as `docker compose exec rabbitmq rabbitmqctl`");
    let mut words = command.split_whitespace();
    let program = words.next().expect("REDELIVER_RABBITMQCTL is not empty");
    output(Command::new(program).args(words).args(arguments))
}

/// Makes the server forget who consumes this queue, without telling them.
pub(crate) fn forget_consumers(queue: &str) {
    let forget = format!(
        "{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<\"/\">>, queue, <<\"{queue}\">>)), \
         [{{ok, _, _}} = ra:process_command(amqqueue:get_pid(Q), rabbit_fifo:make_checkout(\
         {{element(2, C), element(1, C)}}, cancel, #{{}})) || C <- rabbit_amqqueue:consumers(Q)]."
    );
    control(&["eval", &forget]);
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

    /// Ends it as a crash of the machine would.
    pub(crate) fn kill(&self) {
        self.run_server("kill");
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
