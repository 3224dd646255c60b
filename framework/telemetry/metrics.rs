//! Every metric: one field each, and the registry that writes them.
//!
//! Owns their names and what they count; who counts is elsewhere.

use prometheus_client::encoding::EncodeLabelSet;
pub(crate) use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use super::times::Times;

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
    headers_left_out: Family<BySubscription, Counter>,
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
    /// Headers of the user's that copies lack.
    pub(crate) headers_left_out: Counter,
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
        let (copies_failed, headers_left_out, restarts, lanes_reopened) = counters! {
            "copies_failed" "Copies to a wait or to the dead letters that were not confirmed",
            "headers_left_out" "Headers that did not fit and were left out of copies",
            "restarts" "Handler actors made anew, or tried to; panics over a copy; retriers made anew",
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
            headers_left_out,
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

    /// The metrics of a subscription whose dead letters have these reasons.
    pub(crate) fn of(
        &self,
        subscription: &str,
        reasons: impl IntoIterator<Item = &'static str>,
    ) -> SubscriptionMetrics {
        let by = BySubscription { subscription: subscription.to_owned() };
        for reason in reasons {
            // At 0 from the start: `increase()` cannot see the first of a series that begins with 1.
            let labels = ByReason { subscription: subscription.to_owned(), reason };
            drop(self.dead.get_or_create(&labels));
        }
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
            headers_left_out: self.headers_left_out.get_or_create_owned(&by),
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
