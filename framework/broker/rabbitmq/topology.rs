//! What a source needs at the server: its queue, its bindings, its waits, its dead letters.
//!
//! Owns the names and the arguments, as plain data, and how they are declared or verified. Never deletes and
//! never changes what is there.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use lapin::ExchangeKind;
use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldArray, FieldTable, ShortString};

use super::beyond::Beyond;
use super::connection::{Link, answer};
use super::lane::Tally;
use crate::broker::{BrokerError, Depth, Fault, Source};
use crate::config::{
    Binding, BrokerKind, OnExpired, OrderScope, Ordering, QueueType, Subscription, Topology,
};

/// How often a message may come back to a quorum queue before the server moves or drops it.
///
/// High, so that returns by pauses, stops and crashes never spend it; explicit, because 4.x has 20 otherwise;
/// not -1, which 3.10 takes as "drop at the first return".
const DELIVERY_LIMIT: i64 = 1_000_000_000;
/// Below this a declared limit is worth a warning: a handful of restarts would spend it.
const DELIVERY_LIMIT_LOW: i64 = 1_000;
/// What the server allows unless told otherwise between a delivery and its settlement.
const CONSUMER_TIMEOUT_DEFAULT: Duration = Duration::from_secs(30 * 60);
/// What is added to the time that handlers need, for parking, claims, locks and waits in the process.
const CONSUMER_TIMEOUT_SLACK: Duration = Duration::from_secs(60);

/// Everything a source needs at the server.
pub(super) struct Plan {
    pub(super) queue: Queue,
    pub(super) bindings: Vec<Binding>,
    /// With their lengths, ascending.
    pub(super) waits: Vec<(Duration, Queue)>,
    pub(super) dead: Queue,
    pub(super) suspects: Queue,
}

/// A durable queue with its arguments, in the order in which they are shown.
pub(super) struct Queue {
    pub(super) name: String,
    arguments: Vec<(String, AMQPValue)>,
}

impl Plan {
    /// What the subscription asks for.
    pub(super) fn of(source: &Source) -> Self {
        let settings = &*source.settings;
        let name = queue_name(settings);
        let dead = dead_name(settings);
        let waits = source.waits.iter().map(|wait| (*wait, wait_queue(settings, *wait))).collect();
        Self {
            queue: Queue { name: name.to_owned(), arguments: source_arguments(settings, &dead) },
            bindings: settings.bindings.clone(),
            waits,
            dead: keeping_queue(dead),
            suspects: keeping_queue(suspects_name(settings)),
        }
    }

    /// The exchanges that its bindings name, each once.
    fn exchanges(&self) -> BTreeSet<&str> {
        self.bindings.iter().map(|binding| binding.exchange.as_str()).collect()
    }

    /// In the order of declaring: what others dead-letter into comes before them.
    fn queues(&self) -> impl Iterator<Item = &Queue> {
        [&self.dead, &self.suspects, &self.queue]
            .into_iter()
            .chain(self.waits.iter().map(|(_, queue)| queue))
    }

    /// A line each.
    pub(super) fn lines(&self) -> Vec<String> {
        let queues = self.queues().map(ToString::to_string);
        let bindings = self.bindings.iter().map(|binding| self.binding_line(binding));
        queues.chain(bindings).collect()
    }

    fn binding_line(&self, binding: &Binding) -> String {
        format!(
            "binding of queue `{}` to exchange `{}` with routing key `{}`",
            self.queue.name, binding.exchange, binding.routing_key
        )
    }
}

/// The queue that is consumed.
pub(super) fn queue_name(settings: &Subscription) -> &str {
    settings.queue.as_deref().unwrap_or_default()
}

/// The queue of the dead letters.
pub(super) fn dead_name(settings: &Subscription) -> String {
    settings.dead_template(BrokerKind::Rabbitmq).fill(&[("queue", queue_name(settings))])
}

/// The queue of the messages that may have ended a process.
pub(super) fn suspects_name(settings: &Subscription) -> String {
    format!("{}.suspects", queue_name(settings))
}

/// The queue in which messages wait for so long.
pub(super) fn wait_name(settings: &Subscription, wait: Duration) -> String {
    let milliseconds = wait.as_millis().to_string();
    settings
        .wait_template(BrokerKind::Rabbitmq)
        .fill(&[("queue", queue_name(settings)), ("ms", &milliseconds)])
}

/// Whether the server serves one consumer at a time.
pub(super) fn is_single_active(settings: &Subscription) -> bool {
    let ordered = settings.ordering != Ordering::None && settings.order_scope == OrderScope::Queue;
    ordered || settings.single_active_consumer
}

/// How many deliveries of a lane may be unsettled: those that are handled and those that are parked.
pub(super) fn prefetch(settings: &Subscription) -> u16 {
    let both = settings.in_flight_max.get().saturating_add(settings.parked_max.get());
    u16::try_from(both).unwrap_or(u16::MAX)
}

/// How long a delivery may have to wait for its settlement while nothing is wrong.
fn settlement_max(settings: &Subscription) -> Duration {
    // A full window is worked off in so many rounds of the handlers, each of which may take its whole time.
    let rounds = usize::from(prefetch(settings)).div_ceil(settings.in_flight_max.get());
    let handling = settings.timeout.saturating_mul(u32::try_from(rounds).unwrap_or(u32::MAX));
    // In an order one waits for another's waits and attempts as well as for its own.
    let waiting = settings.order_wait_max.max(settings.order_hold_max);
    handling.saturating_add(waiting).saturating_add(CONSUMER_TIMEOUT_SLACK)
}

/// The consumer's arguments: the user's, and a longer timeout where the server's default is too short for us.
pub(super) fn consumer_arguments(settings: &Subscription) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in &settings.consumer_arguments {
        insert(&mut table, name, value_of(value));
    }
    let needed = settlement_max(settings);
    if needed > CONSUMER_TIMEOUT_DEFAULT && !table.contains_key(CONSUMER_TIMEOUT) {
        insert(&mut table, CONSUMER_TIMEOUT, milliseconds(needed));
    }
    table
}

const CONSUMER_TIMEOUT: &str = "x-consumer-timeout";

fn source_arguments(settings: &Subscription, dead: &str) -> Vec<(String, AMQPValue)> {
    let mut arguments =
        vec![text("x-dead-letter-exchange", ""), text("x-dead-letter-routing-key", dead)];
    match settings.queue_type {
        QueueType::Classic => arguments.push(text("x-queue-type", "classic")),
        QueueType::Quorum => {
            arguments.push(text("x-queue-type", "quorum"));
            arguments.push(("x-delivery-limit".to_owned(), AMQPValue::LongLongInt(DELIVERY_LIMIT)));
            // Where the user lets the queue drop its oldest, the server cannot also keep what it dead-letters.
            if !settings.arguments.contains_key("x-overflow") {
                arguments.extend(nothing_lost());
            }
        }
    }
    if is_single_active(settings) {
        arguments.push(("x-single-active-consumer".to_owned(), AMQPValue::Boolean(true)));
    }
    for (name, value) in &settings.arguments {
        arguments.retain(|(ours, _)| ours != name);
        arguments.push((name.clone(), value_of(value)));
    }
    arguments
}

pub(super) fn wait_queue(settings: &Subscription, wait: Duration) -> Queue {
    let mut arguments = vec![
        text("x-queue-type", "quorum"),
        ("x-message-ttl".to_owned(), milliseconds(wait)),
        text("x-dead-letter-exchange", ""),
        text("x-dead-letter-routing-key", queue_name(settings)),
    ];
    arguments.extend(nothing_lost());
    Queue { name: wait_name(settings, wait), arguments }
}

/// No time to live and no limit that reading could spend: dead letters stay until a human decides,
/// suspects until they were handled alone.
fn keeping_queue(name: String) -> Queue {
    let limit = ("x-delivery-limit".to_owned(), AMQPValue::LongLongInt(DELIVERY_LIMIT));
    Queue { name, arguments: vec![text("x-queue-type", "quorum"), limit] }
}

/// The server keeps a message until the queue it is dead-lettered to has confirmed it; that needs both.
fn nothing_lost() -> [(String, AMQPValue); 2] {
    [text("x-dead-letter-strategy", "at-least-once"), text("x-overflow", "reject-publish")]
}

fn text(name: &str, value: &str) -> (String, AMQPValue) {
    (name.to_owned(), AMQPValue::LongString(value.into()))
}

fn milliseconds(duration: Duration) -> AMQPValue {
    AMQPValue::LongLongInt(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX))
}

fn value_of(value: &toml::Value) -> AMQPValue {
    match value {
        toml::Value::String(text) => AMQPValue::LongString(text.as_str().into()),
        toml::Value::Integer(number) => AMQPValue::LongLongInt(*number),
        toml::Value::Float(number) => AMQPValue::Double(*number),
        toml::Value::Boolean(flag) => AMQPValue::Boolean(*flag),
        toml::Value::Datetime(time) => AMQPValue::LongString(time.to_string().into()),
        toml::Value::Array(values) => {
            AMQPValue::FieldArray(FieldArray::from(values.iter().map(value_of).collect::<Vec<_>>()))
        }
        toml::Value::Table(values) => {
            let mut table = FieldTable::default();
            values.iter().for_each(|(name, value)| insert(&mut table, name, value_of(value)));
            AMQPValue::FieldTable(table)
        }
    }
}

fn insert(table: &mut FieldTable, name: &str, value: AMQPValue) {
    // A longer name cannot be sent; the configuration is the place to refuse it.
    if let Ok(name) = ShortString::try_new(name) {
        table.insert(name, value);
    }
}

impl Queue {
    fn table(&self) -> FieldTable {
        let mut table = FieldTable::default();
        self.arguments.iter().for_each(|(name, value)| insert(&mut table, name, value.clone()));
        table
    }
}

impl fmt::Display for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "queue `{}`: durable", self.name)?;
        for (name, value) in &self.arguments {
            write!(f, ", {name}={}", Shown(value))?;
        }
        Ok(())
    }
}

/// A value as the server's own tools write it.
struct Shown<'a>(&'a AMQPValue);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            AMQPValue::LongString(text) if text.is_empty() => f.write_str("\"\""),
            AMQPValue::LongString(text) => write!(f, "{text}"),
            AMQPValue::LongLongInt(number) => write!(f, "{number}"),
            AMQPValue::Boolean(flag) => write!(f, "{flag}"),
            other => write!(f, "{other:?}"),
        }
    }
}

/// Declares or verifies the source's queues as its `topology` says. Returns warnings.
///
/// Looks at everything before it gives up, so that all differences are reported at once.
pub(super) async fn prepare(link: &Link, source: &Source) -> Result<Vec<String>, BrokerError> {
    let plan = Plan::of(source);
    refuse_long_names(source, &plan)?;
    refuse_deadly_limit(source)?;
    let mut findings = Findings::default();
    match source.settings.topology {
        Topology::None => {}
        Topology::Verify => {
            for queue in plan.queues() {
                findings.note(verify(link, source, queue).await)?;
            }
            for exchange in plan.exchanges() {
                findings.note(verify_exchange(link, source, exchange).await)?;
            }
        }
        Topology::Declare => {
            for queue in plan.queues() {
                findings.note(declare(link, source, queue).await)?;
            }
            for binding in &plan.bindings {
                findings.note(bind(link, source, &plan, binding).await)?;
            }
        }
    }
    findings.into_result()?;
    Ok(warnings(&source.settings))
}

/// Differences between what is there and what is wanted.
#[derive(Default)]
struct Findings(Option<BrokerError>);

impl Findings {
    /// Keeps a difference; anything else ends the search, which is of no use without a connection.
    fn note(&mut self, looked: Result<(), BrokerError>) -> Result<(), BrokerError> {
        match (looked, &mut self.0) {
            (Ok(()), _) => Ok(()),
            (Err(error), _) if !matches!(error.fault, Fault::Missing | Fault::Mismatch) => {
                Err(error)
            }
            (Err(error), Some(found)) => {
                found.text = format!("{}\n{}", found.text, error.text);
                Ok(())
            }
            (Err(error), None) => {
                self.0 = Some(error);
                Ok(())
            }
        }
    }

    fn into_result(self) -> Result<(), BrokerError> {
        self.0.map_or(Ok(()), Err)
    }
}

/// Adds to an error of the kind `fault` what to do about it.
fn advise(fault: Fault, advice: &str) -> impl Fn(BrokerError) -> BrokerError {
    move |error| match error.fault == fault {
        true => BrokerError::new(fault, format!("{}; {advice}", error.text)),
        false => error,
    }
}

/// On a channel of its own: the server's refusal closes the channel.
pub(super) async fn declare(
    link: &Link,
    source: &Source,
    queue: &Queue,
) -> Result<(), BrokerError> {
    let attempt = format!("subscription `{}`: declaring {queue}", source.name);
    let (_live, channel) = link.channel().await?;
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    answer(&attempt, channel.queue_declare(short(&queue.name)?, options, queue.table())).await?;
    let _ = channel.close(200, "done".into()).await;
    Ok(())
}

async fn verify(link: &Link, source: &Source, queue: &Queue) -> Result<(), BrokerError> {
    let attempt = format!("subscription `{}`: looking for queue `{}`", source.name, queue.name);
    let (_live, channel) = link.channel().await?;
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let found = answer(
        &attempt,
        channel.queue_declare(short(&queue.name)?, options, FieldTable::default()),
    )
    .await;
    let advice = format!("create it beforehand ({queue}), or use `topology = \"declare\"`");
    found.map_err(advise(Fault::Missing, &advice))?;
    let _ = channel.close(200, "done".into()).await;
    Ok(())
}

/// Whether its bindings are there is nothing that AMQP tells.
async fn verify_exchange(link: &Link, source: &Source, exchange: &str) -> Result<(), BrokerError> {
    let attempt = format!("subscription `{}`: looking for exchange `{exchange}`", source.name);
    let (_live, channel) = link.channel().await?;
    let options = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
    let (kind, arguments) = (ExchangeKind::default(), FieldTable::default());
    let found =
        answer(&attempt, channel.exchange_declare(short(exchange)?, kind, options, arguments));
    let advice = "declare it beforehand, or remove its bindings";
    found.await.map_err(advise(Fault::Missing, advice))?;
    let _ = channel.close(200, "done".into()).await;
    Ok(())
}

async fn bind(
    link: &Link,
    source: &Source,
    plan: &Plan,
    binding: &Binding,
) -> Result<(), BrokerError> {
    let attempt = format!("subscription `{}`: {}", source.name, plan.binding_line(binding));
    let (_live, channel) = link.channel().await?;
    let (queue, exchange, key) =
        (short(&plan.queue.name)?, short(&binding.exchange)?, short(&binding.routing_key)?);
    let bound = answer(
        &attempt,
        channel.queue_bind(
            queue,
            exchange,
            key,
            QueueBindOptions::default(),
            FieldTable::default(),
        ),
    )
    .await;
    let advice = "declare the exchange beforehand, or remove the binding";
    bound.map_err(advise(Fault::Missing, advice))?;
    let _ = channel.close(200, "done".into()).await;
    Ok(())
}

/// How many messages of a queue are ready, and how many consumers it has.
pub(super) async fn count(link: &Link, name: &str) -> Result<(u64, u64), BrokerError> {
    let attempt = format!("counting the messages of queue `{name}`");
    let (_live, channel) = link.channel().await?;
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let queue =
        answer(&attempt, channel.queue_declare(short(name)?, options, FieldTable::default()))
            .await?;
    let _ = channel.close(200, "done".into()).await;
    Ok((queue.message_count().into(), queue.consumer_count().into()))
}

/// The same of a queue that may be missing where it is not ours to declare: then nothing is in it.
async fn count_if_there(link: &Link, name: &str) -> Result<(u64, u64), BrokerError> {
    match count(link, name).await {
        Err(error) if error.fault == Fault::Missing => Ok((0, 0)),
        counted => counted,
    }
}

/// How many messages are where. Waits come first: what leaves one meanwhile is counted twice rather than never.
///
/// AMQP counts what is ready, and consumers, but not what consumers hold. While all consumers of the queue are
/// ours, what they hold is what we know to be unsettled; with anyone else's among them it is unknown. Of a single
/// active consumer and its standbys AMQP counts one, so that it has to be ours: one that was served.
pub(super) async fn depth(
    link: &Link,
    source: &Source,
    tally: &Tally,
    beyond: &Beyond,
) -> Result<Depth, BrokerError> {
    let settings = &source.settings;
    let mut waiting = 0;
    for wait in source.waits.iter().chain(&beyond.known(link, source).await?) {
        waiting += count_if_there(link, &wait_name(settings, *wait)).await?.0;
    }
    let (ready, consumers) = count(link, queue_name(settings)).await?;
    let dead = dead(link, settings, tally).await?;
    // Suspects are as good as ready.
    let (suspects, their_consumers) = count_if_there(link, &suspects_name(settings)).await?;
    let ready = ready + suspects;
    let only_ours = consumers <= tally.lanes.load(Relaxed) as u64
        && their_consumers <= tally.suspect_lanes.load(Relaxed) as u64
        && (!is_single_active(settings) || consumers == 0 || tally.served_lanes.load(Relaxed) > 0);
    let unsettled = only_ours.then(|| tally.unsettled.load(Relaxed) as u64);
    Ok(Depth { ready: Some(ready), unsettled, waiting: Some(waiting), dead: Some(dead) })
}

/// How many dead letters there are, with those that are held by a reader here.
async fn dead(link: &Link, settings: &Subscription, tally: &Tally) -> Result<u64, BrokerError> {
    let _quiet = tally.fetches.quiet().await;
    // What is held here is counted before, so that what comes back meanwhile is counted twice rather than never.
    let held = tally.dead.load(Relaxed) as u64;
    Ok(held + count_if_there(link, &dead_name(settings)).await?.0)
}

/// A name as AMQP takes it.
pub(super) fn short(name: &str) -> Result<ShortString, BrokerError> {
    ShortString::try_new(name).map_err(|_| {
        BrokerError::new(
            Fault::Other,
            format!(
                "`{}` is longer than the 255 bytes that AMQP takes; shorten it",
                abbreviated(name)
            ),
        )
    })
}

/// A user's text, for an error: whoever made it long is recognised by its beginning.
pub(super) fn abbreviated(text: &str) -> String {
    const CHARACTERS_MAX: usize = 80;
    match text.char_indices().nth(CHARACTERS_MAX) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

fn refuse_long_names(source: &Source, plan: &Plan) -> Result<(), BrokerError> {
    for queue in plan.queues() {
        short(&queue.name).map_err(|error| {
            BrokerError::new(
                error.fault,
                format!("subscription `{}`: queue {}", source.name, error.text),
            )
        })?;
    }
    Ok(())
}

fn refuse_deadly_limit(source: &Source) -> Result<(), BrokerError> {
    match delivery_limit(&source.settings) {
        Some(limit) if limit < 0 => Err(BrokerError::new(
            Fault::Other,
            format!(
                "subscription `{}`: x-delivery-limit = {limit} makes RabbitMQ 3.10 drop a message when it first comes back; remove it, or write a large number",
                source.name
            ),
        )),
        _ => Ok(()),
    }
}

fn delivery_limit(settings: &Subscription) -> Option<i64> {
    settings.arguments.get("x-delivery-limit").and_then(toml::Value::as_integer)
}

/// What works, but should be looked at by a human.
fn warnings(settings: &Subscription) -> Vec<String> {
    let mut warnings = Vec::new();
    let argument = |name: &str| settings.arguments.get(name);
    if let Some(limit) = delivery_limit(settings).filter(|limit| *limit < DELIVERY_LIMIT_LOW) {
        warnings.push(format!("x-delivery-limit = {limit}: returns by pauses, stops and crashes count towards it, and then the server takes the message out of the queue"));
    }
    if argument("x-expires").is_some() {
        warnings.push("x-expires: the server deletes the queue with its messages when nobody consumes it for so long".to_owned());
    }
    let bounded = argument("x-max-length").is_some() || argument("x-max-length-bytes").is_some();
    let rejects = argument("x-overflow")
        .and_then(toml::Value::as_str)
        .is_none_or(|overflow| overflow.starts_with("reject-publish"));
    if bounded && !rejects {
        warnings.push("x-overflow drops the oldest messages of a full queue: a message that comes out of its wait may push out another; use reject-publish".to_owned());
    }
    if settings.on_expired == OnExpired::Drop {
        warnings.push("on_expired = \"drop\": a message whose expiration passes in the queue is dead-lettered by the server all the same; what is dropped is what is delivered too late".to_owned());
    }
    warnings.extend(single_warning(settings));
    warnings.extend(timeout_warning(settings));
    warnings
}

/// Nothing that AMQP has tells how a queue was declared by others.
fn single_warning(settings: &Subscription) -> Option<String> {
    let by_others = settings.topology != Topology::Declare;
    (by_others && is_single_active(settings)).then(|| "that the queue serves one consumer at a time, which the order over all processes rests on, cannot be found out unless topology is \"declare\"; it must have been declared with x-single-active-consumer = true".to_owned())
}

fn timeout_warning(settings: &Subscription) -> Option<String> {
    let told = |table: &toml::Table| table.get(CONSUMER_TIMEOUT).and_then(toml::Value::as_integer);
    let needed = settlement_max(settings);
    let allowed = told(&settings.consumer_arguments).or_else(|| told(&settings.arguments));
    match allowed.map(|ms| Duration::from_millis(ms.unsigned_abs())) {
        Some(allowed) if needed > allowed => Some(format!(
            "{CONSUMER_TIMEOUT} is {} s, but with this timeout and window a delivery may be kept for {} s before it is settled; raise it, or lower timeout or parked_max",
            allowed.as_secs(),
            needed.as_secs()
        )),
        None if needed > CONSUMER_TIMEOUT_DEFAULT => Some(format!(
            "with this timeout and window a delivery may be kept for {} s before it is settled, longer than the server's default consumer_timeout of {} s; the consumer asks for more, which servers before 4.0 ignore: raise consumer_timeout there",
            needed.as_secs(),
            CONSUMER_TIMEOUT_DEFAULT.as_secs()
        )),
        _ => None,
    }
}
