//! `webhooks --idempotent --lock`, as a user runs it.

use std::collections::BTreeMap;

use crate::programs::{Place, Queue, folder, last_line, program, told, webhooks};
use crate::support::redis::Server;

/// Every delivery five times; on a server, with the claims and locks in Redis.
fn check(server: Option<(&Place, &Server)>) {
    let folder = folder();
    let (file, effects) = (webhooks(&folder), folder.path().join("effects"));
    let mut command = program("webhooks");
    command.args(["run", "--repeat", "5", "--idempotent"]);
    command.arg("--input").arg(file).arg("--effects").arg(&effects);
    if let Some((place, redis)) = server {
        command.args(["--lock", "--redis", &redis.url()]).args(place.flags());
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

// The claims of an earlier run are about the same ids, so each has a Redis of its own.

#[test]
fn on_rabbitmq_and_redis_each_delivery_has_one_effect() {
    let queue = Queue::unique("idempotent", include_str!("../../config/webhooks.toml"));
    check(Some((&queue.place(), &Server::start())));
}

#[cfg(feature = "kafka")]
#[test]
fn on_kafka_and_redis_each_delivery_has_one_effect() {
    check(Some((&Place::topic("idempotent"), &Server::start())));
}
