//! Places that must not be one: a source and its dead letters, the sources of two subscriptions.

use super::super::{BrokerKind, Subscription};
use super::Check;

/// A subscription, by its name.
pub(super) type Named<'s> = (&'s str, &'s Subscription);

/// Looks at one subscription, beside those that were looked at `before`.
pub(super) fn check(
    check: &mut Check<'_>,
    table: &str,
    subscription: Named<'_>,
    before: &[Named<'_>],
    kind: BrokerKind,
) {
    dead_letters(check, table, subscription, kind);
    ring(check, table, subscription, before, kind);
    shared(check, table, subscription, before, kind);
}

/// Dead letters that go where messages come from would be handled, and be dead letters, for ever.
fn dead_letters(
    check: &mut Check<'_>,
    table: &str,
    (name, subscription): Named<'_>,
    kind: BrokerKind,
) {
    let group = subscription.group.as_deref().unwrap_or_default();
    for (source, dead) in dead_places(name, subscription, kind) {
        let consumed = match kind {
            BrokerKind::Memory | BrokerKind::Rabbitmq => {
                vec![source.to_owned(), format!("{source}.suspects")]
            }
            BrokerKind::Kafka => ["suspects", "redrive"]
                .map(|place| format!("{source}.{group}.{place}"))
                .into_iter()
                .chain([source.to_owned()])
                .collect(),
        };
        if consumed.contains(&dead) {
            let way = format!("leads to {dead:?}, which this subscription consumes");
            endless(check, table, &way, "name another place");
        }
    }
}

/// The same by way of other subscriptions, that each consume the dead letters of the one before.
fn ring(
    check: &mut Check<'_>,
    table: &str,
    (name, subscription): Named<'_>,
    before: &[Named<'_>],
    kind: BrokerKind,
) {
    let own = sources(name, subscription, kind);
    let mut others: Vec<_> =
        before.iter().filter(|(_, other)| other.broker == subscription.broker).collect();
    let mut reached = dead_places(name, subscription, kind);
    while let Some((_, dead)) = reached.pop() {
        let consumes = |(name, settings): &&Named<'_>| {
            sources(name, settings, kind).into_iter().any(|source| source == dead)
        };
        let Some(at) = others.iter().position(consumes) else { continue };
        let (other, settings) = others.swap_remove(at);
        let next = dead_places(other, settings, kind);
        if next.iter().any(|(_, dead)| own.contains(&dead.as_str())) {
            let way = format!("leads back here by way of subscriptions.{other}");
            endless(check, table, &way, "let one of them name another place");
        }
        reached.extend(next);
    }
}

/// Says of `dead` where it leads, and what to do.
fn endless(check: &mut Check<'_>, table: &str, way: &str, advice: &str) {
    let text = format!("{way}, so that a dead letter would be handled again for ever; {advice}");
    check.say(table, "dead", &["queue", "topics", "group", "broker"], text);
}

/// Two subscriptions of one source would each get a part of its messages, by chance.
fn shared(
    check: &mut Check<'_>,
    table: &str,
    (name, subscription): Named<'_>,
    before: &[Named<'_>],
    kind: BrokerKind,
) {
    let own = sources(name, subscription, kind);
    let rival = before.iter().find_map(|(other, settings)| {
        let is_beside = settings.broker == subscription.broker
            && (kind != BrokerKind::Kafka || settings.group == subscription.group);
        let source = sources(other, settings, kind).into_iter().find(|source| own.contains(source));
        source.filter(|_| is_beside).map(|source| (*other, source))
    });
    let Some((other, source)) = rival else { return };
    let (key, advice) = match kind {
        BrokerKind::Memory | BrokerKind::Rabbitmq => ("queue", "use a queue of its own"),
        BrokerKind::Kafka => ("topics", "use a group of its own"),
    };
    let text = format!(
        "has {source:?}, which subscriptions.{other} consumes too: each would get some of the messages; {advice}, or one subscription with a handler for each type"
    );
    check.say(table, key, &["broker", "group"], text);
}

/// Where the dead letters of each source go.
fn dead_places<'s>(
    name: &'s str,
    subscription: &'s Subscription,
    kind: BrokerKind,
) -> Vec<(&'s str, String)> {
    let group = subscription.group.as_deref().unwrap_or_default();
    let template = subscription.dead_template(kind);
    let of = |source| template.fill(&[("queue", source), ("topic", source), ("group", group)]);
    sources(name, subscription, kind).into_iter().map(|source| (source, of(source))).collect()
}

/// The queue or topics; a pattern may fit anything, and is not looked into.
fn sources<'s>(name: &'s str, subscription: &'s Subscription, kind: BrokerKind) -> Vec<&'s str> {
    match kind {
        BrokerKind::Memory => vec![subscription.queue.as_deref().unwrap_or(name)],
        BrokerKind::Kafka => subscription.topics.iter().map(String::as_str).collect(),
        BrokerKind::Rabbitmq => subscription.queue.as_deref().into_iter().collect(),
    }
}
