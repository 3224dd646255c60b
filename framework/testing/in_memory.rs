//! What a configuration means where every broker and store is in memory.
//!
//! Owns the names that queues have there, and what a broker's kind says that the memory broker's does not. Never makes a
//! configuration valid that is not: what two subscriptions may not share, they may not share here.

use std::collections::BTreeMap;

use crate::config::{Broker, BrokerKind, Config, Ordering, Store, StoreKind, Subscription};

/// Replaces every broker and store by one in memory.
pub(super) fn in_memory(config: &mut Config) {
    let mut groups = BTreeMap::new();
    for (name, subscription) in &mut config.subscriptions {
        let kind =
            config.brokers.get(&subscription.broker).map_or(BrokerKind::Memory, |it| it.kind);
        if subscription.ordering == Ordering::Key {
            subscription.key = subscription.key_source(kind);
        }
        subscription.queue = Some(queue_of(name, subscription, &mut groups));
        subscription.topics.clear();
        subscription.pattern = None;
        subscription.group = None;
    }
    for broker in config.brokers.values_mut() {
        *broker = Broker::default();
    }
    for store in config.stores.values_mut() {
        let (deadline, strict) = (store.deadline, store.strict);
        *store = Store { kind: StoreKind::Memory, deadline, strict, ..Store::default() };
    }
}

/// Who has which queue already, by broker and queue.
type Groups = BTreeMap<(String, String), Option<String>>;

/// What a topic brings, a queue of its name brings here; a second group, which would get all of it too, has its own.
fn queue_of(name: &str, subscription: &Subscription, groups: &mut Groups) -> String {
    let source = subscription.queue.as_ref().or(subscription.topics.first());
    let source = source.map_or(name, String::as_str);
    let (broker, group) = (subscription.broker.clone(), subscription.group.clone());
    let first = groups.entry((broker, source.to_owned())).or_insert(group);
    match &subscription.group {
        Some(group) if first.as_ref() != Some(group) => format!("{source}.{group}"),
        _ => source.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subscriptions(lines: &str) -> Config {
        let broker = "brokers.main = { kind = \"kafka\", url = \"kafka.example:9092\" }\n";
        Config::from_toml(&format!("{broker}{lines}")).expect("it is valid with Kafka")
    }

    #[test]
    fn order_by_the_records_key_is_valid_here_too() {
        let mut config = subscriptions(
            "subscriptions.orders = { broker = \"main\", topics = [\"orders\"], group = \"shop\", ordering = \"key\" }",
        );
        in_memory(&mut config);
        config.check().expect("it is valid in memory");
        assert_eq!(config.subscriptions["orders"].key, Some(crate::config::KeySource::RoutingKey));
    }

    #[test]
    fn two_groups_of_one_topic_have_a_queue_each() {
        let mut config = subscriptions(
            "subscriptions.billing = { broker = \"main\", topics = [\"orders\"], group = \"billing\" }\n\
             subscriptions.shipping = { broker = \"main\", topics = [\"orders\"], group = \"shipping\" }",
        );
        in_memory(&mut config);
        config.check().expect("it is valid in memory");
        let queues: Vec<_> =
            config.subscriptions.values().filter_map(|it| it.queue.as_deref()).collect();
        assert_eq!(queues, ["orders", "orders.shipping"]);
    }
}
