//! `webhooks --idempotent --lock`, as a user runs it.

use std::collections::BTreeMap;

use crate::programs::{Queue, folder, last_line, program, rabbitmq, told, webhooks};
use crate::support::redis::Server;

/// Every delivery five times; with `redis`, on RabbitMQ.
fn check(redis: Option<&Server>) {
    let (queue, folder) =
        (Queue::unique("idempotent", include_str!("../../config/webhooks.toml")), folder());
    let (file, effects) = (webhooks(&folder), folder.path().join("effects"));
    let mut command = program("webhooks");
    command.args(["run", "--repeat", "5", "--idempotent"]);
    command.arg("--input").arg(file).arg("--effects").arg(&effects);
    if let Some(redis) = redis {
        command.args(["--lock", "--redis", &redis.url()]);
        command.args(["--broker", "rabbitmq", "--url", &rabbitmq(), "--name", &queue.name]);
    }
    let output = command.output().expect("the program can be started");
    assert_eq!(output.status.code(), Some(0), "{}", told(&output));
    let mut count = BTreeMap::<String, usize>::new();
    for line in std::fs::read_to_string(effects).unwrap_or_default().lines() {
        *count.entry(line.split(' ').next().unwrap_or_default().to_owned()).or_default() += 1;
    }
    let summary: serde_json::Value = serde_json::from_str(&last_line(&output)).expect("a summary");
    assert_eq!(summary["lost"], 0);
    assert_eq!(summary["handled"], count.len());
    assert!(count.values().all(|count| *count == 1), "{count:?}");
}

#[test]
fn in_memory_each_delivery_has_one_effect() {
    check(None);
}

#[test]
fn on_rabbitmq_and_redis_each_delivery_has_one_effect() {
    // The claims of an earlier run are about the same ids.
    check(Some(&Server::start()));
}
