//! Subscriptions: what the broker needs, what belongs to another, and guards that outlast the retries.

use std::time::Duration;

use super::super::units::{duration_text, size_text};
use super::super::{
    BrokerKind, HOPS_COUNTED_MAX, OrderScope, Ordering, StoreKind, Subscription, Template,
};
use super::{Check, places, retry::reachable};

/// Keys that only one kind of broker understands. The memory broker stands in for either and takes both.
const RABBITMQ_ONLY: [&str; 8] = [
    "queue",
    "bindings",
    "queue_type",
    "arguments",
    "consumer_arguments",
    "single_active_consumer",
    "consumers",
    "order_scope",
];
const KAFKA_ONLY: [&str; 5] =
    ["topics", "pattern", "group", "commit_interval", "delivery_guarantee"];

pub(super) fn check(check: &mut Check<'_>) {
    let config = check.config;
    let mut before: Vec<places::Named<'_>> = Vec::new();
    for (name, subscription) in &config.subscriptions {
        let table = format!("subscriptions.{name}");
        check.known(
            &table,
            "broker",
            &subscription.broker,
            "brokers",
            config.brokers.keys().map(String::as_str),
        );
        let broker = config.brokers.get(&subscription.broker);
        if let Some(broker) =
            broker.filter(|_| check.kind_known(&format!("brokers.{}", subscription.broker)))
        {
            source(check, &table, subscription, broker.kind);
            order(check, &table, subscription, broker.kind);
            templates(check, &table, subscription, broker.kind);
            places::check(check, &table, (name, subscription), &before, broker.kind);
            before.push((name, subscription));
        }
        if let Some(policy) = &subscription.retry {
            check.known_policy(&table, policy);
        }
        bounds(check, &table, subscription);
        long_waits(check, &table, subscription);
        breaker(check, &table, subscription);
        idempotency(check, &table, subscription);
        lock(check, &table, subscription);
    }
}

fn source(check: &mut Check<'_>, table: &str, subscription: &Subscription, kind: BrokerKind) {
    let (foreign, kind_name): (&[&str], _) = match kind {
        BrokerKind::Memory => (&[], "memory"),
        BrokerKind::Rabbitmq => (&KAFKA_ONLY, "rabbitmq"),
        BrokerKind::Kafka => (&RABBITMQ_ONLY, "kafka"),
    };
    for key in foreign.iter().filter(|key| check.given(table, key)).collect::<Vec<_>>() {
        check.say(
            table,
            key,
            &["broker"],
            format!("means nothing on a {kind_name} broker; remove it"),
        );
    }
    match kind {
        BrokerKind::Memory => {}
        BrokerKind::Rabbitmq => rabbitmq(check, table, subscription),
        BrokerKind::Kafka => kafka(check, table, subscription),
    }
}

fn rabbitmq(check: &mut Check<'_>, table: &str, subscription: &Subscription) {
    if subscription.queue.as_deref().unwrap_or_default().is_empty() {
        check.say(table, "queue", &["broker"], "is missing; add queue = \"NAME\"");
    }
    if subscription.arguments.contains_key("x-queue-type") {
        let text = "is what queue_type says; use that, and remove it";
        check.say(&format!("{table}.arguments"), "x-queue-type", &[], text);
    }
    if subscription.arguments.contains_key("x-single-active-consumer") {
        let text = "is what single_active_consumer says, and an order over all processes needs; use that, and remove it";
        check.say(&format!("{table}.arguments"), "x-single-active-consumer", &[], text);
    }
    let window = subscription.in_flight_max.get().saturating_add(subscription.parked_max.get());
    if window > usize::from(u16::MAX) {
        let text = format!(
            "and parked_max are {window} together, which RabbitMQ is told as one prefetch of at most {}; lower one of them",
            u16::MAX
        );
        check.say(table, "in_flight_max", &["parked_max", "broker"], text);
    }
    for (at, binding) in subscription.bindings.iter().enumerate() {
        if binding.exchange.is_empty() {
            let text =
                "is missing; name an exchange (every queue is bound to the default one already)";
            check.say(&format!("{table}.bindings[{at}]"), "exchange", &[], text);
        }
    }
}

fn kafka(check: &mut Check<'_>, table: &str, subscription: &Subscription) {
    match (subscription.topics.is_empty(), &subscription.pattern) {
        (true, None) => check.say(
            table,
            "topics",
            &["broker", "pattern"],
            "is missing; add topics = [\"NAME\"], or pattern = \"^REGEX\"",
        ),
        (false, Some(_)) => {
            check.say(table, "pattern", &["topics"], "is given, and topics too; remove one of them")
        }
        (true, Some(pattern)) if !pattern.starts_with('^') => {
            check.say(
                table,
                "pattern",
                &[],
                format!(
                    "is {pattern:?}, which Kafka would take for a topic's name; begin it with ^"
                ),
            );
        }
        (true, Some(_)) | (false, None) => {}
    }
    if subscription.group.as_deref().unwrap_or_default().is_empty() {
        check.say(table, "group", &["broker"], "is missing; add group = \"NAME\"");
    }
    check.not_zero(table, "commit_interval", subscription.commit_interval);
}

fn order(check: &mut Check<'_>, table: &str, subscription: &Subscription, kind: BrokerKind) {
    if subscription.ordering == Ordering::None {
        return unordered(check, table, subscription);
    }
    if subscription.ordering == Ordering::Key && subscription.key_source(kind).is_none() {
        check.say(table, "key", &["ordering", "broker"], "is missing, but ordering = \"key\" needs it; add key = \"/JSON/POINTER\", \"header:NAME\" or \"routing-key\"");
    }
    let one_is_served = kind == BrokerKind::Rabbitmq
        && subscription.ordering != Ordering::None
        && subscription.order_scope == OrderScope::Queue;
    let mixed = kind == BrokerKind::Rabbitmq
        && subscription.ordering == Ordering::Key
        && subscription.consumers.get() > 1;
    if mixed {
        let text = format!(
            "is {}, but RabbitMQ hands the messages of one queue to several consumers side by side, in an order that nobody could keep for a key; use 1, and in_flight_max for what runs at once",
            subscription.consumers
        );
        check.say(table, "consumers", &["ordering"], text);
    } else if one_is_served && subscription.consumers.get() > 1 {
        let text = format!(
            "is {}, but order in a queue lets one consumer be served and the others stand by; use 1, or order_scope = \"process\"",
            subscription.consumers
        );
        check.say(table, "consumers", &["ordering", "order_scope"], text);
    }
}

/// What only order would read.
fn unordered(check: &mut Check<'_>, table: &str, subscription: &Subscription) {
    let default = Subscription::default();
    let changed = [
        ("key", subscription.key != default.key),
        ("order_wait_max", subscription.order_wait_max != default.order_wait_max),
        ("order_scope", subscription.order_scope != default.order_scope),
    ];
    for (key, _) in changed.iter().filter(|(_, is_changed)| *is_changed) {
        let text =
            "is only read where order is kept; add ordering = \"key\" or \"lane\", or remove it";
        check.say(table, key, &["ordering", "broker"], text);
    }
}

/// Waits that order cannot bear must not be found out by the first message that fails.
fn long_waits(check: &mut Check<'_>, table: &str, subscription: &Subscription) {
    if subscription.ordering == Ordering::None || subscription.order_on_long_wait.is_some() {
        return;
    }
    for (name, policy) in reachable(check, subscription.retry.as_deref()) {
        let longest = policy.policy().wait_longest();
        if longest > subscription.order_wait_max {
            let text = format!(
                "is missing, but waits of retry.{name} can last {}, longer than order_wait_max ({}); choose \"reorder\" or \"dead-letter\"",
                duration_text(longest),
                duration_text(subscription.order_wait_max)
            );
            return check.say(
                table,
                "order_on_long_wait",
                &["ordering", "order_wait_max", "retry"],
                text,
            );
        }
    }
}

fn bounds(check: &mut Check<'_>, table: &str, subscription: &Subscription) {
    check.not_zero(table, "timeout", subscription.timeout);
    check.not_zero(table, "stall_after", subscription.stall_after);
    if subscription.hops_max.get() >= HOPS_COUNTED_MAX {
        let text = format!(
            "is {}, which no message exceeds: hops are counted up to {HOPS_COUNTED_MAX}; use less, 32 is usual",
            subscription.hops_max
        );
        check.say(table, "hops_max", &[], text);
    }
    if subscription.body_max == 0 {
        check.say(
            table,
            "body_max",
            &[],
            "is 0B, so every message would be too large; use 1B or more",
        );
    }
    if subscription.body_max > subscription.in_flight_bytes_max {
        let text = format!(
            "({}) is below body_max ({}), so the largest message could never be handled; raise it or lower body_max",
            size_text(subscription.in_flight_bytes_max),
            size_text(subscription.body_max)
        );
        check.say(table, "in_flight_bytes_max", &["body_max"], text);
    }
    let Some(batch) = &subscription.batch else {
        return;
    };
    if batch.size > subscription.in_flight_max {
        let text = format!(
            "({}) is above in_flight_max ({}), so no batch would ever be full; raise in_flight_max",
            batch.size, subscription.in_flight_max
        );
        check.say(table, "batch.size", &["in_flight_max"], text);
    }
    let total_max = subscription.in_flight_total_max;
    if let Some(total_max) = total_max.filter(|total_max| *total_max < batch.size) {
        let text = format!(
            "({}) is above in_flight_total_max ({total_max}), so no batch would ever be full; raise in_flight_total_max",
            batch.size
        );
        check.say(table, "batch.size", &["in_flight_total_max"], text);
    }
}

fn breaker(check: &mut Check<'_>, table: &str, subscription: &Subscription) {
    let (table, breaker) = (format!("{table}.breaker"), &subscription.breaker);
    check.not_zero(&table, "window", breaker.window);
    check.not_zero(&table, "pause", breaker.pause);
    if !(breaker.failure_rate > 0.0 && breaker.failure_rate <= 1.0) {
        check.say(
            &table,
            "failure_rate",
            &[],
            format!(
                "is {}, which is no share; use a number above 0 and up to 1",
                breaker.failure_rate
            ),
        );
    }
    if breaker.pause_max < breaker.pause {
        let text = format!(
            "({}) is below pause ({}); swap them or raise the maximum",
            duration_text(breaker.pause_max),
            duration_text(breaker.pause)
        );
        check.say(&table, "pause_max", &["pause"], text);
    }
}

fn idempotency(check: &mut Check<'_>, table: &str, subscription: &Subscription) {
    let Some(idempotency) = &subscription.idempotency else {
        return;
    };
    let guard = format!("{table}.idempotency");
    check.known_store(&guard, &idempotency.store);
    check.not_zero(&guard, "lease", idempotency.lease);
    outlasts_silence(check, &guard, &idempotency.store, idempotency.lease);
    check.not_zero(&guard, "keep", idempotency.keep);
    let longest = reachable(check, subscription.retry.as_deref())
        .into_iter()
        .map(|(name, policy)| (policy.longest_schedule(subscription.timeout), name))
        .max()
        .unwrap_or((Duration::ZERO, String::new()));
    if idempotency.keep < longest.0 && !idempotency.keep.is_zero() {
        let text = format!(
            "({}) is shorter than the attempts of retry.{} can take ({}), so a late one would run again; keep ids longer",
            duration_text(idempotency.keep),
            longest.1,
            duration_text(longest.0)
        );
        check.say(&guard, "keep", &[], text);
    }
}

fn lock(check: &mut Check<'_>, table: &str, subscription: &Subscription) {
    let Some(lock) = &subscription.lock else {
        return;
    };
    let table = format!("{table}.lock");
    check.known_store(&table, &lock.store);
    if check.given(&table, "") && !check.given(&table, "key") {
        check.say(
            &table,
            "key",
            &[],
            "is missing; add key = \"/JSON/POINTER\", \"header:NAME\" or \"routing-key\"",
        );
    }
    check.not_zero(&table, "lease", lock.lease);
    outlasts_silence(check, &table, &lock.store, lock.lease);
    if lock.hold_max < lock.lease {
        let text = format!(
            "({}) is below lease ({}); raise it or shorten the lease",
            duration_text(lock.hold_max),
            duration_text(lock.lease)
        );
        check.say(&table, "hold_max", &["lease"], text);
    }
}

/// A lease is renewed at a third of its length; one that is shorter than a few answers may take would be lost at the first
/// that comes late.
fn outlasts_silence(check: &mut Check<'_>, table: &str, store: &str, lease: Duration) {
    let Some(settings) = check.config.stores.get(store) else { return };
    let least = settings.deadline.saturating_mul(3);
    if settings.kind == StoreKind::Memory || lease.is_zero() || lease >= least {
        return;
    }
    let text = format!(
        "({}) is shorter than three times stores.{store}.deadline ({}), so that one late answer could lose it; use {} or more, or shorten the deadline",
        duration_text(lease),
        duration_text(settings.deadline),
        duration_text(least)
    );
    check.say(table, "lease", &["store"], text);
}

fn templates(check: &mut Check<'_>, table: &str, subscription: &Subscription, kind: BrokerKind) {
    let known: &[&str] = match kind {
        BrokerKind::Memory => &["queue", "topic", "group", "ms"],
        BrokerKind::Rabbitmq => &["queue", "ms"],
        BrokerKind::Kafka => &["topic", "group", "ms"],
    };
    for (key, template) in [("dead", &subscription.dead), ("wait", &subscription.wait)] {
        let Some(template) = template else { continue };
        unknown_places(check, table, key, template, known);
        let has_delay = template.places().contains(&"ms");
        if has_delay != (key == "wait") {
            let text = match has_delay {
                true => "has {ms} in it, but dead letters have no delay; remove that",
                false => {
                    "has no {ms} in it, but each delay needs a place of its own; write it like \"{queue}.wait.{ms}\""
                }
            };
            check.say(table, key, &[], text);
        }
        if kind == BrokerKind::Kafka
            && !template.places().contains(&"topic")
            && subscription.topics.len() != 1
        {
            check.say(
                table,
                key,
                &["topics"],
                "has no {topic} in it, but there may be several; add it",
            );
        }
    }
}

fn unknown_places(
    check: &mut Check<'_>,
    table: &str,
    key: &str,
    template: &Template,
    known: &[&str],
) {
    for place in template.places().into_iter().filter(|place| !known.contains(place)) {
        let list: Vec<String> = known.iter().map(|known| format!("{{{known}}}")).collect();
        check.say(
            table,
            key,
            &[],
            format!("has {{{place}}} in it, which is not known; use {}", list.join(", ")),
        );
    }
}
