//! One test's corner of the server: queues of its own, a service on them, and what its handler saw.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lapin::BasicProperties;
use lapin::message::BasicGetMessage;
use lapin::options::{
    BasicAckOptions, BasicGetOptions, BasicNackOptions, BasicPublishOptions, QueueDeclareOptions,
};
use redeliver::config::Config;
use redeliver::{Delivery, Handled, IntoHandlers, Service};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};

pub(crate) use crate::common::dead_letters;
use crate::common::rabbitmq::{Raw, control, delete_queues, unique, url};

/// How long anything may take before a test fails: long, because the machine may be busy with others.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// How long nothing may be anywhere before it counts as worked off.
const QUIET: Duration = Duration::from_millis(600);

/// Failed attempts wait at the broker, shortly.
pub(crate) const SHORT_WAITS: &str = r#"
[retry.standard]
backoff = "fixed"
jitter = "none"
delay_min = "200ms"
in_process_max = "0s"
attempts_max = 4
"#;

/// `few` of something, or all of it where the large counts were asked for.
pub(crate) fn sample(few: u32, all: u32) -> u32 {
    if env::var("REDELIVER_TEST_FULL").is_ok_and(|full| full == "1") { all } else { few }
}

/// A queue on a server and everything around it, deleted in the end.
pub(crate) struct Lab {
    pub(crate) queue: String,
    pub(crate) url: String,
    pub(crate) raw: Raw,
    made: Mutex<BTreeSet<String>>,
}

impl Lab {
    /// On the server under test.
    pub(crate) async fn new() -> Self {
        Self::on(&url()).await
    }

    pub(crate) async fn on(url: &str) -> Self {
        let queue = unique("orders");
        let made = BTreeSet::from([queue.clone(), format!("{queue}.dead")]);
        Self { queue, url: url.to_owned(), raw: Raw::connect_to(url).await, made: made.into() }
    }

    /// The configuration of a service with the subscription `orders`; `keys` are more of its keys, `tables` further
    /// tables. The service is named like the queue, so that its connections can be found.
    pub(crate) fn toml(&self, keys: &str, tables: &str) -> String {
        self.toml_at(&self.url, keys, tables)
    }

    pub(crate) fn toml_at(&self, url: &str, keys: &str, tables: &str) -> String {
        let queue = &self.queue;
        format!(
            "[service]\nname = \"{queue}\"\n[brokers.main]\nkind = \"rabbitmq\"\nurl = \"{url}\"\n\
             [subscriptions.orders]\nbroker = \"main\"\nqueue = \"{queue}\"\n{keys}\n{tables}"
        )
    }

    /// Declares everything that this configuration needs, so that it can be published to.
    pub(crate) async fn prepare(&self, toml: &str) {
        let service = self.start(toml, |_: Delivery<u32>| async { Ok(()) }).await;
        service.stop().await;
    }

    /// Starts a service in this process.
    pub(crate) async fn start<M>(&self, toml: &str, handlers: impl IntoHandlers<M>) -> Service {
        let service = self.try_start(toml, handlers).await;
        service.unwrap_or_else(|error| panic!("the service starts: {error}"))
    }

    pub(crate) async fn try_start<M>(
        &self,
        toml: &str,
        handlers: impl IntoHandlers<M>,
    ) -> Result<Service, redeliver::Error> {
        let config = Config::from_toml(toml).unwrap_or_else(|error| panic!("{error}"));
        let builder = Service::builder(config).subscribe("orders", handlers).signals(false);
        let service = builder.start().await?;
        self.delete_later(&service.topology("orders").expect("it has this subscription"));
        STARTED.with_borrow_mut(|started| started.push(service.clone()));
        Ok(service)
    }

    /// Notes the queues that these lines of a topology name.
    pub(crate) fn delete_later(&self, topology: &[String]) {
        let names = topology.iter().filter_map(|line| {
            line.strip_prefix("queue `")?.split_once('`').map(|(name, _)| name.to_owned())
        });
        self.made.lock().expect("no test panics in here").extend(names);
    }

    /// A further queue that is deleted in the end.
    pub(crate) fn beside(&self, name: &str) -> String {
        let name = format!("{}.{name}", self.queue);
        self.made.lock().expect("no test panics in here").insert(name.clone());
        name
    }

    pub(crate) fn dead(&self) -> String {
        format!("{}.dead", self.queue)
    }

    /// Deletes the exchange that tells of waits which no policy names.
    pub(crate) async fn forget_waits(&self) {
        let mark = format!("{}.waits", self.queue);
        let deleted = self.raw.channel.exchange_delete(mark.into(), Default::default());
        deleted.await.expect("it can be deleted");
    }

    /// Publishes these numbers, each with itself as its id, and waits for all confirms.
    pub(crate) async fn publish(&self, numbers: Range<u32>) {
        self.publish_with(numbers, |number| (number.to_string().into_bytes(), properties(number)))
            .await;
    }

    pub(crate) async fn publish_with(
        &self,
        numbers: Range<u32>,
        message: impl Fn(u32) -> (Vec<u8>, BasicProperties),
    ) {
        let mut confirms = Vec::new();
        for number in numbers {
            let (body, properties) = message(number);
            let (exchange, key) = ("".into(), self.queue.as_str().into());
            let options = BasicPublishOptions { mandatory: true, ..Default::default() };
            let sent = self.raw.channel.basic_publish(exchange, key, options, &body, properties);
            confirms.push(sent.await.expect("it is sent"));
        }
        for confirm in confirms {
            let confirm = confirm.await.expect("it is confirmed");
            assert_eq!(confirm, lapin::Confirmation::Ack(None));
        }
    }

    /// How many messages are ready in the source.
    pub(crate) async fn ready(&self) -> u32 {
        self.raw.count(&self.queue).await
    }

    /// How many consumers a queue has.
    pub(crate) async fn consumers(&self, queue: &str) -> u32 {
        let options = QueueDeclareOptions { passive: true, ..Default::default() };
        let declared = self.raw.channel.queue_declare(queue.into(), options, Default::default());
        declared.await.expect("the queue is there").consumer_count()
    }

    /// Takes the first message out of the source and gives it back, as a crash does.
    pub(crate) async fn give_back_one(&self) {
        let got =
            self.raw.channel.basic_get(self.queue.as_str().into(), BasicGetOptions::default());
        let message = got.await.expect("the queue is there").expect("a message is there");
        let options = BasicNackOptions { requeue: true, ..Default::default() };
        message.delivery.nack(options).await.expect("it is given back");
    }

    /// Takes all messages out of a queue.
    pub(crate) async fn take_all(&self, queue: &str) -> Vec<BasicGetMessage> {
        let mut taken = Vec::new();
        while let Some(message) = self
            .raw
            .channel
            .basic_get(queue.into(), BasicGetOptions::default())
            .await
            .expect("the queue is there")
        {
            self.raw
                .channel
                .basic_ack(message.delivery.delivery_tag, BasicAckOptions::default())
                .await
                .expect("it is settled");
            taken.push(message);
        }
        taken
    }

    /// Ends the connections of this lab's services from outside; how many there were.
    pub(crate) fn close_connections(&self) -> usize {
        let listed = control(&["-q", "list_connections", "pid", "client_properties"]);
        let ours = listed.lines().filter(|line| line.contains(&self.queue));
        let pids: Vec<_> = ours.filter_map(|line| line.split('\t').next()).collect();
        for pid in &pids {
            // It may have gone by itself since.
            let close = format!(
                "catch rabbit_networking:close_connection(rabbit_misc:string_to_pid(\"{pid}\"), \"closed by a test\")."
            );
            control(&["eval", &close]);
        }
        pids.len()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let made = std::mem::take(self.made.get_mut().expect("no test panics in here"));
        delete_queues(&self.url, made.into_iter().collect());
    }
}

/// Properties of a JSON message whose id is its number.
pub(crate) fn properties(number: u32) -> BasicProperties {
    BasicProperties::default()
        .with_message_id(number.to_string().into())
        .with_content_type("application/json".into())
        .with_delivery_mode(2)
}

/// Asks until the answer is yes. A failure tells where the messages were, as what stands still may be the server.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut ask: impl FnMut() -> F) {
    let deadline = Instant::now() + PATIENCE;
    while !ask().await {
        if Instant::now() >= deadline {
            panic!("{what}: not within {PATIENCE:?}\n{}", state_of_services().await);
        }
        sleep(Duration::from_millis(25)).await;
    }
}

thread_local! {
    /// The services that the test on this thread has started.
    static STARTED: RefCell<Vec<Service>> = const { RefCell::new(Vec::new()) };
}

async fn state_of_services() -> String {
    let started = STARTED.take();
    let mut told = String::new();
    for service in &started {
        let depth = service.depth("orders").await;
        told += &format!("{depth:?}\n{:#?}\n", service.health());
    }
    told
}

/// Nothing is ready, held or waiting any more.
///
/// For a while: a message that the server moves out of its wait is counted nowhere until it has arrived.
pub(crate) async fn drained(service: &Service) {
    let quiet_since = Cell::new(None);
    until("everything is worked off", || async {
        let depth = service.depth("orders").await;
        let is_quiet = depth.is_ok_and(|depth| {
            (depth.ready, depth.unsettled, depth.waiting) == (Some(0), Some(0), Some(0))
        });
        quiet_since.set(is_quiet.then(|| quiet_since.get().unwrap_or_else(Instant::now)));
        quiet_since.get().is_some_and(|since| since.elapsed() > QUIET)
    })
    .await;
}

/// The value of a metric of this subscription.
pub(crate) async fn metric(service: &Service, name: &str) -> f64 {
    let text = service.metrics().await;
    let lines = text.lines().filter(|line| line.starts_with(&format!("redeliver_{name}")));
    let values = lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok());
    values.sum()
}

/// What a handler was called with, and when.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    pub(crate) number: u32,
    pub(crate) attempt: u32,
    pub(crate) at: Instant,
}

/// Everything that handlers were called with.
#[derive(Clone, Default)]
pub(crate) struct Seen(Arc<Mutex<Vec<Run>>>);

/// A handler that notes what it gets, and is done when `gate` lets it pass.
pub(crate) fn held(
    seen: &Seen,
    gate: &Arc<Semaphore>,
) -> impl Fn(Delivery<u32>) -> Pin<Box<dyn Future<Output = Handled>>> + Clone + Send + Sync + 'static
{
    let (seen, gate) = (seen.clone(), Arc::clone(gate));
    move |delivery| {
        seen.note(&delivery);
        let gate = Arc::clone(&gate);
        Box::pin(async move {
            let _permit = gate.acquire().await.expect("it is never closed");
            Ok(())
        })
    }
}

impl Seen {
    pub(crate) fn note(&self, delivery: &Delivery<u32>) {
        let run = Run { number: delivery.payload, attempt: delivery.attempt(), at: Instant::now() };
        self.0.lock().expect("no test panics in here").push(run);
    }

    pub(crate) fn runs(&self) -> Vec<Run> {
        self.0.lock().expect("no test panics in here").clone()
    }

    pub(crate) fn count(&self) -> usize {
        self.0.lock().expect("no test panics in here").len()
    }

    /// The attempts made on each number, in order.
    pub(crate) fn attempts(&self) -> BTreeMap<u32, Vec<u32>> {
        let mut attempts = BTreeMap::<u32, Vec<u32>>::new();
        for run in self.runs() {
            attempts.entry(run.number).or_default().push(run.attempt);
        }
        attempts
    }

    /// Every number was seen, and none more than once.
    pub(crate) fn assert_each_once(&self, numbers: Range<u32>) {
        let attempts = self.attempts();
        let missing: Vec<_> =
            numbers.clone().filter(|number| !attempts.contains_key(number)).collect();
        let repeated: Vec<_> = attempts.iter().filter(|(_, runs)| runs.len() > 1).collect();
        assert!(missing.is_empty(), "lost: {missing:?}");
        assert!(repeated.is_empty(), "handled again: {repeated:?}");
        assert_eq!(attempts.len(), numbers.len());
    }
}
