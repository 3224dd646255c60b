//! Every log event and span, one function each; the metrics are in `metrics`.
//!
//! The level says who must act: ERROR a human, WARN the service coped, INFO a state changed, DEBUG
//! one message. Payloads and secrets never appear. Knows only names and numbers.

#[cfg(feature = "kafka")]
mod kafka;
mod metrics;
#[cfg(any(feature = "kafka", feature = "redis"))]
mod seldom;
mod times;

use std::fmt::Display;
use std::time::Duration;

use tracing::Span;

#[cfg(feature = "kafka")]
pub(crate) use kafka::*;
pub(crate) use metrics::{Counter, Metrics, SubscriptionMetrics};
#[cfg(any(feature = "kafka", feature = "redis"))]
pub(crate) use seldom::Seldom;
pub(crate) use tracing::Instrument;

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

/// A store could not be reached yet.
pub(crate) fn store_not_reached(store: &str, error: &dyn Display) {
    tracing::warn!(store, %error, "store not reached yet; trying again");
}

/// Whether a span is made for each message.
pub(crate) fn traces() -> bool {
    tracing::enabled!(tracing::Level::INFO)
}

/// Whether anything is told of each message: a span, or an event.
pub(crate) fn follows() -> bool {
    traces() || tracing::enabled!(tracing::Level::DEBUG)
}

/// The span of one message's way through a handler; disabled, and free, when nobody listens.
pub(crate) fn processing<'a>(
    subscription: &str,
    id: impl FnOnce() -> Option<&'a str>,
    trace: impl FnOnce() -> Option<String>,
) -> Span {
    if !traces() {
        return Span::none();
    }
    let (id, trace) = (id(), trace());
    tracing::info_span!("message", subscription, id, trace)
}

/// Messages were received.
pub(crate) fn received(subscription: &str, lane: &dyn Display, count: usize) {
    tracing::trace!(subscription, %lane, count, "received");
}

/// A message goes to its handler; its id is looked for only if somebody listens.
pub(crate) fn handling<'a>(subscription: &str, id: impl FnOnce() -> Option<&'a str>, attempt: u32) {
    tracing::debug!(subscription, id = id(), attempt, "handling");
}

/// A message was handled.
pub(crate) fn handled<'a>(subscription: &str, id: impl FnOnce() -> Option<&'a str>) {
    tracing::debug!(subscription, id = id(), "handled");
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

/// The store of a subscription's guards does not answer; of that itself the store warns.
pub(crate) fn held_for_store(subscription: &str, error: &dyn Display) {
    tracing::info!(subscription, %error, "held for the store of locks and claims");
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

/// A stop or a pause is over before these copies were confirmed; their lane is gone, so that their originals come again.
pub(crate) fn copies_left(subscription: &str, count: usize) {
    if count > 0 {
        tracing::warn!(
            subscription,
            count,
            "copies are still not confirmed; their originals come again"
        );
    }
}

/// A copy lacks headers of the user's that would not have fitted.
pub(crate) fn headers_left_out(subscription: &str, id: Option<&str>, count: usize) {
    tracing::warn!(subscription, id, count, "headers did not fit and were left out of a copy");
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
        "restart budget spent: the subscription is paused; mend what ends its actors, then resume it"
    );
}

/// A consumer panicked.
pub(crate) fn consumer_broke(subscription: &str, why: &str) {
    tracing::error!(
        subscription,
        why,
        "a consumer panicked, which is a bug of redeliver: the subscription is paused; report it, then resume"
    );
}

/// The retrier panicked over a message, and goes on.
pub(crate) fn retrier_panicked(subscription: &str, place: &str, panic: &str) {
    tracing::error!(
        subscription,
        place,
        panic,
        "the retrier panicked, which is a bug of redeliver or of the broker's client: it goes on; report it"
    );
}

/// The retrier ended, and is made anew.
pub(crate) fn retrier_restarted(subscription: &str, why: &str, delay: Duration) {
    tracing::error!(
        subscription,
        why,
        ?delay,
        "the retrier ended, which is a bug of redeliver or of what hears its log: it is made anew; report it"
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

/// Other tables changed too.
pub(crate) fn reload_incomplete(tables: &str) {
    tracing::warn!(tables, "changed, but not in force before a restart");
}

/// The service stops.
pub(crate) fn stopping(grace: Duration) {
    tracing::info!(?grace, "stopping: no new deliveries, finishing what runs");
}

/// A stop goes on without a subscription that answers nothing.
pub(crate) fn blocked_at_stop(subscription: &str) {
    tracing::warn!(subscription, "left running at the stop: a handler blocks the thread");
}

/// The start was ended by a signal, or nobody waits for it any more.
pub(crate) fn interrupted() {
    tracing::info!("stopped before the start was done: what was opened is closed");
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
