//! A RabbitMQ server with the queues of this run: filled before each, looked at afterwards.

use std::env;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use lapin::options::{
    BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions, QueueDeleteOptions,
    QueuePurgeOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use redeliver_benches::shared::order;
use tokio::runtime::Runtime;

use crate::Outcome;
use crate::machine;
use crate::runs::{Ground, Setting};

/// Unconfirmed messages while a queue is filled.
const FILL_WINDOW: usize = 1000;

/// The server, and the queues of this run.
pub(crate) struct Server {
    runtime: Runtime,
    connection: Connection,
    channel: Channel,
    pub(crate) url: String,
    pub(crate) prefix: String,
}

impl Server {
    pub(crate) fn connect() -> Outcome<Self> {
        let url = env::var("RABBITMQ_URL").map_err(|_| "RABBITMQ_URL names no server")?;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let (connection, channel) = runtime.block_on(async {
            let connection = Connection::connect(&url, ConnectionProperties::default()).await?;
            let channel = connection.create_channel().await?;
            channel.confirm_select(ConfirmSelectOptions::default()).await?;
            Ok::<_, lapin::Error>((connection, channel))
        })?;
        let prefix = format!("redeliver-bench-{}", std::process::id());
        Ok(Self { runtime, connection, channel, url, prefix })
    }

    pub(crate) fn queue(&self, number: usize) -> String {
        format!("{}.{number}", self.prefix)
    }

    /// Quorum queues, as the framework declares them and everybody should.
    pub(crate) fn declare(&self, queues: usize) -> Outcome {
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        self.runtime.block_on(async {
            for number in 0..queues {
                let name = ShortString::from(self.queue(number));
                self.channel.queue_declare(name.clone(), options, arguments.clone()).await?;
                self.channel.queue_purge(name, QueuePurgeOptions::default()).await?;
            }
            Ok(())
        })
    }

    /// Puts `messages` orders into the queues, evenly, each confirmed.
    pub(crate) fn fill_into(&self, names: &[String], messages: u64) -> Outcome {
        self.runtime.block_on(async {
            let mut unconfirmed = FuturesUnordered::new();
            for number in 0..messages {
                let name = &names[number as usize % names.len()];
                let properties = BasicProperties::default()
                    .with_delivery_mode(2)
                    .with_content_type("application/json".into())
                    .with_message_id(format!("order-{number}").into());
                let body = order::body(number);
                let confirm = self.channel.basic_publish(
                    "".into(),
                    ShortString::from(name.as_str()),
                    BasicPublishOptions::default(),
                    &body,
                    properties,
                );
                unconfirmed.push(confirm.await?);
                while unconfirmed.len() >= FILL_WINDOW {
                    unconfirmed.next().await.transpose()?;
                }
            }
            while unconfirmed.next().await.transpose()?.is_some() {}
            Ok(())
        })
    }

    /// How many messages the queues hold once nobody consumes them any more.
    pub(crate) fn left_in(&self, names: &[String]) -> Outcome<u64> {
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let end = Instant::now() + Duration::from_secs(10);
        self.runtime.block_on(async {
            let mut left = 0;
            for name in names {
                loop {
                    let name = ShortString::from(name.as_str());
                    let asked =
                        self.channel.queue_declare(name, options, FieldTable::default()).await?;
                    if asked.consumer_count() == 0 || Instant::now() > end {
                        left += u64::from(asked.message_count());
                        break;
                    }
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
            Ok(left)
        })
    }

    pub(crate) fn delete(&self, names: impl IntoIterator<Item = String>) -> Outcome {
        self.runtime.block_on(async {
            for name in names {
                let options = QueueDeleteOptions::default();
                self.channel.queue_delete(ShortString::from(name), options).await?;
            }
            Ok(())
        })
    }

    /// As its control command tells, where the run started the server itself.
    pub(crate) fn version(&self) -> String {
        let control = env::var("REDELIVER_RABBITMQCTL").unwrap_or_default();
        let version = machine::said(&control, &["version"]);
        if version.is_empty() { String::from("(not known)") } else { version }
    }

    pub(crate) fn close(&self) -> Outcome {
        self.runtime.block_on(self.connection.close(200, "done".into()))?;
        Ok(())
    }
}

impl Ground for Server {
    fn url(&self) -> &str {
        &self.url
    }

    fn prefix(&self, _: &Setting) -> String {
        self.prefix.clone()
    }

    fn group(&self) -> String {
        String::from("none")
    }

    fn fill(&self, setting: &Setting) -> Outcome {
        let names: Vec<String> = (0..setting.queues).map(|number| self.queue(number)).collect();
        self.fill_into(&names, setting.messages)
    }

    fn left(&self, setting: &Setting) -> Outcome<u64> {
        let names: Vec<String> = (0..setting.queues).map(|number| self.queue(number)).collect();
        self.left_in(&names)
    }

    fn clear(&self, setting: &Setting) -> Outcome {
        self.declare(setting.queues)
    }
}
