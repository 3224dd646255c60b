//! Every log event, span and metric: one function or one field each.
//!
//! The level says who must act: ERROR a human, WARN the service coped, INFO a state changed, DEBUG
//! one message. Payloads and secrets never appear. Knows only names and numbers.

mod times;

use std::fmt::Display;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use tracing::Span;

pub(crate) use tracing::Instrument;

use times::Times;

/// All metrics of a service.
pub(crate) struct Metrics {
    registry: Registry,
    received: Family<BySubscription, Counter>,
    handled: Family<BySubscription, Counter>,
    retried: Family<BySubscription, Counter>,
    deferred: Family<BySubscription, Counter>,
    ignored: Family<BySubscription, Counter>,
    dropped: Family<BySubscription, Counter>,
    adopted: Family<BySubscription, Counter>,
    malformed: Family<BySubscription, Counter>,
    duplicates: Family<BySubscription, Counter>,
    possible_duplicates: Family<BySubscription, Counter>,
    dead: Family<ByReason, Counter>,
    copies_failed: Family<BySubscription, Counter>,
    restarts: Family<BySubscription, Counter>,
    lanes_reopened: Family<BySubscription, Counter>,
    given_up: Family<BySubscription, Gauge>,
    breaker: Family<BySubscription, Gauge>,
    in_flight: Family<BySubscription, Gauge>,
    parked: Family<BySubscription, Gauge>,
    carrying: Family<BySubscription, Gauge>,
    handler_time: Family<BySubscription, Times>,
    wait_time: Family<BySubscription, Histogram>,
    lateness: Family<BySubscription, Histogram>,
    ready: Family<BySubscription, Gauge>,
    waiting: Family<BySubscription, Gauge>,
    dead_letters: Family<BySubscription, Gauge>,
    oldest: Family<BySubscription, Gauge<f64, std::sync::atomic::AtomicU64>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BySubscription {
    subscription: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByReason {
    subscription: String,
    reason: &'static str,
}

/// The metrics of one subscription, found once.
pub(crate) struct SubscriptionMetrics {
    subscription: String,
    /// Deliveries received from the broker.
    pub(crate) received: Counter,
    /// Messages handled.
    pub(crate) handled: Counter,
    /// Attempts that failed and are followed by another.
    pub(crate) retried: Counter,
    /// Messages that came back without an attempt counted.
    pub(crate) deferred: Counter,
    /// Messages that a rule said to ignore.
    pub(crate) ignored: Counter,
    /// Expired messages that were dropped.
    pub(crate) dropped: Counter,
    /// Redeliveries that were recognised as messages still in hand.
    pub(crate) adopted: Counter,
    /// Headers of ours that were malformed.
    pub(crate) malformed: Counter,
    /// Messages whose id was handled, or given up, before.
    pub(crate) duplicates: Counter,
    /// Runs that may have repeated an effect.
    pub(crate) possible_duplicates: Counter,
    /// Copies that the broker did not confirm.
    pub(crate) copies_failed: Counter,
    /// Handler actors made anew.
    pub(crate) restarts: Counter,
    /// Lanes opened again.
    pub(crate) lanes_reopened: Counter,
    /// 1 while the subscription is held because its restarts are spent.
    pub(crate) given_up: Gauge,
    /// 1 while the breaker holds messages back.
    pub(crate) breaker: Gauge,
    /// Handlers that run.
    pub(crate) in_flight: Gauge,
    /// Messages that wait in the process.
    pub(crate) parked: Gauge,
    /// Messages whose copy is not confirmed yet.
    pub(crate) carrying: Gauge,
    /// How long handlers took.
    pub(crate) handler_time: Times,
    /// How long messages were told to wait.
    pub(crate) wait_time: Histogram,
    /// How much later than due messages came back.
    pub(crate) lateness: Histogram,
    /// Messages ready in the source.
    pub(crate) ready: Gauge,
    /// Messages in the waits.
    pub(crate) waiting: Gauge,
    /// Messages in the dead letters.
    pub(crate) dead_letters: Gauge,
    /// Seconds since the oldest delivery in hand was received.
    pub(crate) oldest: Gauge<f64, std::sync::atomic::AtomicU64>,
    dead: Family<ByReason, Counter>,
}

impl SubscriptionMetrics {
    /// Counts a dead letter.
    pub(crate) fn dead(&self, reason: &'static str) {
        let labels = ByReason { subscription: self.subscription.clone(), reason };
        self.dead.get_or_create(&labels).inc();
    }
}

fn seconds() -> Histogram {
    // 100 microseconds to about 7 minutes.
    Histogram::new(exponential_buckets(0.0001, 4.0, 12))
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("redeliver");
        let histogram = || Family::<BySubscription, Histogram>::new_with_constructor(seconds);
        macro_rules! counters {
            ($($name:literal $help:literal),* $(,)?) => {
                ($({
                    let family = Family::<BySubscription, Counter>::default();
                    registry.register($name, $help, family.clone());
                    family
                }),*)
            };
        }
        let (received, handled, retried, deferred, ignored, dropped, adopted, malformed) = counters! {
            "received" "Deliveries received from the broker",
            "handled" "Messages handled",
            "retried" "Attempts that failed and are followed by another",
            "deferred" "Messages that came back without an attempt counted",
            "ignored" "Messages whose failure a rule said to ignore",
            "dropped" "Expired messages that were dropped",
            "adopted" "Redeliveries of messages that were still in hand",
            "malformed_headers" "Headers of ours that were malformed",
        };
        let (duplicates, possible_duplicates) = counters! {
            "duplicates" "Messages whose id was handled, or given up, before",
            "possible_duplicates" "Runs that may have repeated an effect",
        };
        let (copies_failed, restarts, lanes_reopened) = counters! {
            "copies_failed" "Copies to a wait or to the dead letters that were not confirmed",
            "restarts" "Handler actors made anew",
            "lanes_reopened" "Lanes opened again after they ended",
        };
        let dead = Family::<ByReason, Counter>::default();
        registry.register("dead_lettered", "Messages moved to the dead letters", dead.clone());
        macro_rules! gauges {
            ($($name:literal $help:literal),* $(,)?) => {
                ($({
                    let family = Family::<BySubscription, Gauge>::default();
                    registry.register($name, $help, family.clone());
                    family
                }),*)
            };
        }
        let (given_up, breaker, in_flight, parked, carrying, ready, waiting, dead_letters) = gauges! {
            "given_up" "1 while the subscription is held because its restarts are spent, else 0",
            "breaker_state" "1 while the breaker holds messages back, else 0",
            "in_flight" "Handlers that run",
            "parked" "Messages that wait in the process",
            "carrying" "Messages whose copy to a wait or to the dead letters is not confirmed yet",
            "source_ready" "Messages ready in the source",
            "source_waiting" "Messages in the waits at the broker",
            "dead_letters" "Messages in the dead letters",
        };
        let oldest = Family::default();
        registry.register_with_unit(
            "oldest_delivery",
            "Time since the oldest delivery in hand was received",
            Unit::Seconds,
            Family::clone(&oldest),
        );
        let (wait_time, lateness) = (histogram(), histogram());
        let handler_time = Family::<BySubscription, Times>::default();
        let times = handler_time.clone();
        registry.register_with_unit("handler", "How long handlers took", Unit::Seconds, times);
        for (name, help, family) in [
            ("wait", "How long messages were told to wait", &wait_time),
            ("lateness", "How much later than due messages came back", &lateness),
        ] {
            registry.register_with_unit(name, help, Unit::Seconds, family.clone());
        }
        Self {
            registry,
            received,
            handled,
            retried,
            deferred,
            ignored,
            dropped,
            adopted,
            malformed,
            duplicates,
            possible_duplicates,
            dead,
            copies_failed,
            restarts,
            lanes_reopened,
            given_up,
            breaker,
            in_flight,
            parked,
            carrying,
            handler_time,
            wait_time,
            lateness,
            ready,
            waiting,
            dead_letters,
            oldest,
        }
    }

    pub(crate) fn of(&self, subscription: &str) -> SubscriptionMetrics {
        let by = BySubscription { subscription: subscription.to_owned() };
        SubscriptionMetrics {
            subscription: subscription.to_owned(),
            received: self.received.get_or_create_owned(&by),
            handled: self.handled.get_or_create_owned(&by),
            retried: self.retried.get_or_create_owned(&by),
            deferred: self.deferred.get_or_create_owned(&by),
            ignored: self.ignored.get_or_create_owned(&by),
            dropped: self.dropped.get_or_create_owned(&by),
            adopted: self.adopted.get_or_create_owned(&by),
            malformed: self.malformed.get_or_create_owned(&by),
            duplicates: self.duplicates.get_or_create_owned(&by),
            possible_duplicates: self.possible_duplicates.get_or_create_owned(&by),
            copies_failed: self.copies_failed.get_or_create_owned(&by),
            restarts: self.restarts.get_or_create_owned(&by),
            lanes_reopened: self.lanes_reopened.get_or_create_owned(&by),
            given_up: self.given_up.get_or_create_owned(&by),
            breaker: self.breaker.get_or_create_owned(&by),
            in_flight: self.in_flight.get_or_create_owned(&by),
            parked: self.parked.get_or_create_owned(&by),
            carrying: self.carrying.get_or_create_owned(&by),
            handler_time: self.handler_time.get_or_create_owned(&by),
            wait_time: self.wait_time.get_or_create_owned(&by),
            lateness: self.lateness.get_or_create_owned(&by),
            ready: self.ready.get_or_create_owned(&by),
            waiting: self.waiting.get_or_create_owned(&by),
            dead_letters: self.dead_letters.get_or_create_owned(&by),
            oldest: self.oldest.get_or_create_owned(&by),
            dead: self.dead.clone(),
        }
    }

    /// Everything in the OpenMetrics text format.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        text
    }
}

/// A subscription consumes.
pub(crate) fn subscribed(subscription: &str, broker: &str, source: &str) {
    tracing::info!(subscription, broker, source, "subscription started");
}

/// What a broker said about a source that a human should look at.
pub(crate) fn finding(subscription: &str, finding: &str) {
    tracing::warn!(subscription, finding, "look at the source");
}

/// A broker could not be reached yet.
pub(crate) fn connecting(broker: &str, error: &dyn Display) {
    tracing::warn!(broker, %error, "broker not reached yet; trying again");
}

/// Whether a span is made for each message.
pub(crate) fn traces() -> bool {
    tracing::enabled!(tracing::Level::INFO)
}

/// The span of one message's way through a handler; disabled, and free, when nobody listens.
pub(crate) fn processing(
    subscription: &str,
    id: Option<&str>,
    trace: impl FnOnce() -> Option<String>,
) -> Span {
    if !traces() {
        return Span::none();
    }
    let trace = trace();
    tracing::info_span!("message", subscription, id, trace)
}

/// Messages were received.
pub(crate) fn received(subscription: &str, lane: &dyn Display, count: usize) {
    tracing::trace!(subscription, %lane, count, "received");
}

/// A message goes to its handler.
pub(crate) fn handling(subscription: &str, id: Option<&str>, attempt: u32) {
    tracing::debug!(subscription, id, attempt, "handling");
}

/// A message was handled.
pub(crate) fn handled(subscription: &str, id: Option<&str>) {
    tracing::debug!(subscription, id, "handled");
}

/// Deliveries were settled.
pub(crate) fn settled(subscription: &str, lane: &dyn Display, count: usize) {
    tracing::trace!(subscription, %lane, count, "settled");
}

/// A message was not confirmed and is sent again under the same id.
pub(crate) fn resending(target: &dyn Display, error: &dyn Display) {
    tracing::warn!(%target, %error, "message not confirmed; sending it again");
}

/// An attempt failed.
pub(crate) fn attempt_failed(subscription: &str, id: Option<&str>, attempt: u32, error: &str) {
    tracing::debug!(subscription, id, attempt, error, "attempt failed");
}

/// The store of a subscription's guards does not answer.
pub(crate) fn held_for_store(subscription: &str, error: &dyn Display) {
    tracing::warn!(subscription, %error, "the store of locks and claims does not answer");
}

/// A message is not handled again: its id was done, given up, or goes on in another copy.
pub(crate) fn duplicate(subscription: &str, id: Option<&str>, state: &str) {
    tracing::debug!(subscription, id, state, "duplicate acknowledged");
}

/// A message was handled, and its claim could not be completed yet. The store itself is warned of.
pub(crate) fn completion_delayed(subscription: &str, id: Option<&str>, error: &dyn Display) {
    tracing::debug!(subscription, id, %error, "handled; its claim is completed in the background");
}

/// A message is handled without its guards, as configured.
pub(crate) fn unguarded(subscription: &str, id: Option<&str>, error: &dyn Display) {
    tracing::debug!(subscription, id, %error, "handled without its guards");
}

/// A blocking handler is over its time and cannot be aborted.
pub(crate) fn overrunning(subscription: &str, id: Option<&str>, limit: Duration) {
    tracing::warn!(
        subscription,
        id,
        ?limit,
        "blocking handler is over its timeout; waiting for it"
    );
}

/// A copy could not be confirmed; its original stays.
pub(crate) fn copy_failed(subscription: &str, place: &dyn std::fmt::Debug, error: &dyn Display) {
    tracing::warn!(subscription, ?place, %error, "copy not confirmed; the original stays, trying again");
}

/// A message is a dead letter now.
pub(crate) fn dead_lettered(subscription: &str, id: Option<&str>, reason: &str, error: &str) {
    tracing::warn!(subscription, id, reason, error, "dead-lettered");
}

/// A message may have ended a process; it is handled alone next.
pub(crate) fn suspected(subscription: &str, id: Option<&str>) {
    tracing::warn!(subscription, id, "came back from several crashes: it is handled alone next");
}

/// A message waits at the broker.
pub(crate) fn waits(subscription: &str, id: Option<&str>, delay: Duration) {
    tracing::debug!(subscription, id, ?delay, "waits at the broker");
}

/// A redelivery is a message that is still in hand.
pub(crate) fn adopted(subscription: &str, lane: &dyn Display) {
    tracing::debug!(subscription, %lane, "redelivery adopted: the message is still in hand");
}

/// A lane is open.
pub(crate) fn lane_opened(subscription: &str, lane: &dyn Display) {
    tracing::info!(subscription, %lane, "lane opened");
}

/// A lane ended and is opened again.
pub(crate) fn lane_down(
    subscription: &str,
    lane: &dyn Display,
    why: &dyn Display,
    delay: Duration,
) {
    tracing::warn!(subscription, %lane, %why, ?delay, "lane is down; opening it again");
}

/// A lane could not be closed cleanly.
pub(crate) fn close_failed(subscription: &str, lane: &dyn Display, error: &dyn Display) {
    tracing::warn!(subscription, %lane, %error, "lane could not be closed cleanly");
}

/// A consumer group's partitions could not be taken or given up.
#[cfg(feature = "kafka")]
pub(crate) fn assignment_failed(group: &str, error: &dyn Display) {
    tracing::warn!(group, %error, "partitions could not be taken or given up");
}

/// A partition was given up before its messages were done with.
#[cfg(feature = "kafka")]
pub(crate) fn revoked_in_hand(lane: &dyn Display) {
    tracing::warn!(%lane, "lane revoked while messages were still in hand");
}

/// Nobody says what a group has committed.
#[cfg(feature = "kafka")]
pub(crate) fn committed_unknown(group: &str, error: &dyn Display) {
    tracing::warn!(group, %error, "committed offsets are unknown");
}

/// Offsets were not committed; they are with the next commit.
#[cfg(feature = "kafka")]
pub(crate) fn commit_failed(group: &str, error: &dyn Display) {
    tracing::warn!(group, %error, "offsets were not committed; trying again");
}

/// A group that is being settled anew takes no offsets.
#[cfg(feature = "kafka")]
pub(crate) fn commit_later(group: &str, error: &dyn Display) {
    tracing::debug!(group, %error, "offsets are committed later");
}

/// A partition could not be read again from its lowest unfinished record.
#[cfg(feature = "kafka")]
pub(crate) fn rewind_failed(lane: &dyn Display, error: &dyn Display) {
    tracing::warn!(%lane, %error, "lane could not go back to its lowest unfinished record");
}

/// A record came outside the queue of its partition; it is read again from there.
#[cfg(feature = "kafka")]
pub(crate) fn stray_record(topic: &str, partition: i32) {
    tracing::warn!(topic, partition, "record came outside its partition's queue");
}

/// What librdkafka says by itself.
#[cfg(feature = "kafka")]
pub(crate) fn client_says(error: &dyn Display, reason: &str) {
    tracing::debug!(%error, reason, "the Kafka client reports");
}

/// The consumer groups did not answer in time that we leave.
#[cfg(feature = "kafka")]
pub(crate) fn leaving_unanswered(subscription: &str) {
    tracing::warn!(subscription, "consumer groups took no note of our leaving");
}

/// The breaker opened.
pub(crate) fn breaker_opened(subscription: &str, pause: Duration) {
    tracing::error!(
        subscription,
        ?pause,
        "nearly everything fails: consuming pauses; look at what the handler depends on"
    );
}

/// The breaker closed.
pub(crate) fn breaker_closed(subscription: &str) {
    tracing::info!(subscription, "a probe worked: consuming again");
}

/// A handler actor is made anew.
pub(crate) fn handler_restarted(subscription: &str, why: &str) {
    tracing::warn!(subscription, why, "handler actor made anew");
}

/// The restart budget is spent.
pub(crate) fn restarts_spent(subscription: &str, why: &str) {
    tracing::error!(
        subscription,
        why,
        "handler actors keep dying: the subscription is paused; mend the handler, then resume it"
    );
}

/// Retry tables were swapped.
pub(crate) fn reloaded(file: &str) {
    tracing::info!(file, "retry policy reloaded");
}

/// New retry tables were refused.
pub(crate) fn reload_refused(file: &str, error: &dyn Display) {
    tracing::error!(file, %error, "retry policy not reloaded: the old one stays");
}

/// The service stops.
pub(crate) fn stopping(grace: Duration) {
    tracing::info!(?grace, "stopping: no new deliveries, finishing what runs");
}

/// The service has stopped.
pub(crate) fn stopped(left: usize) {
    if left == 0 {
        tracing::info!("stopped: nothing was left running");
    } else {
        tracing::warn!(left, "stopped: handlers were left running, their messages went back");
    }
}

/// A setting of a store's server that loses locks or claims.
pub(crate) fn store_warning(store: &str, warning: &str) {
    tracing::warn!(store, warning, "store may lose locks or claims");
}

/// At most once a second; `unsaid` others were not logged.
#[cfg(feature = "redis")]
pub(crate) fn store_silent(store: &str, error: &dyn Display, unsaid: u64) {
    tracing::warn!(store, %error, unsaid, "store did not answer");
}

pub(crate) fn store_down(store: &str, error: &str) {
    tracing::error!(store, error, "store is down");
}

pub(crate) fn store_up(store: &str) {
    tracing::info!(store, "store is up again");
}

pub(crate) fn keeper_restarted(store: &str) {
    tracing::warn!(store, "lock keeper died and was made anew");
}
