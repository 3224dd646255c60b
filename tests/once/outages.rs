//! A store that is away for longer than a lease, and comes back empty: Redis alone, a master of a Cluster, a master behind
//! a Sentinel.

use std::time::Duration;

use redeliver::{Delivery, Handled, Service};
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::faults::{COUNT, Consumer, OUTAGE};
use crate::lab::{BROKER_WAITS, Lab, Log};
use crate::support::redis::{Server, aside, behind_sentinel, cluster, cluster_url};

const LEASE: Duration = Duration::from_secs(1);

/// Half of the messages come before the harm and the other half during it.
async fn harmed<T>(consumer: &Consumer, harm: impl Future<Output = T>) -> T {
    consumer.publish(0..COUNT / 2).await;
    consumer.lab.eventually("a start", async || consumer.handled().len() > 10).await;
    tokio::join!(consumer.publish(COUNT / 2..COUNT), harm).1
}

/// Kills one of `servers`, away from the runtime.
async fn killed<const N: usize>(mut servers: [Server; N], which: usize) -> [Server; N] {
    aside(move || {
        servers[which].kill();
        servers
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_of_a_cluster_that_was_killed_loses_nothing() {
    let nodes = aside(cluster).await;
    let consumer = Consumer::start(&cluster_url(&nodes), "pause").await;
    let nodes = <[Server; 3]>::try_from(nodes).unwrap_or_else(|_| panic!("three masters"));
    let nodes = harmed(&consumer, async {
        let mut nodes = killed(nodes, 1).await;
        sleep(OUTAGE * 2).await;
        aside(move || {
            nodes[1].restart();
            nodes
        })
        .await
    })
    .await;
    consumer.recovers(OUTAGE).await;
    drop(nodes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_a_sentinel_promotes_takes_over_and_nothing_is_lost() {
    let (servers, url) = aside(behind_sentinel).await;
    let consumer = Consumer::start(&url, "pause").await;
    let servers = harmed(&consumer, killed(servers, 0)).await;
    consumer.recovers(OUTAGE).await;
    drop(servers);
}

/// A service, whose store died while its one message was handled.
async fn without_its_store(policy: &str) -> (Lab, Log, Service, Server) {
    let server = aside(Server::start).await;
    let (lab, log) = (Lab::on(&server.url()), Log::default());
    let noting = log.clone();
    let handler = move |delivery: Delivery<Value>| {
        noting.note(&delivery);
        async {
            sleep(LEASE / 2).await;
            Handled::Ok(())
        }
    };
    let keys = format!(
        "idempotency = {{ store = \"main\", lease = \"{LEASE:?}\" }}\non_store_down = \"{policy}\""
    );
    let service = lab.start(&lab.patient_toml("300ms", &keys, BROKER_WAITS), handler).await;
    lab.send(&service, "m", json!(1)).await;
    lab.eventually("a run", async || log.len() == 1).await;
    let [server] = killed([server], 0).await;
    (lab, log, service, server)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_done_is_not_repeated_by_a_store_that_comes_back_empty_after_the_lease() {
    let (lab, log, service, mut server) = without_its_store("pause").await;
    sleep(LEASE * 4).await;
    let server = aside(move || {
        server.restart();
        server
    })
    .await;
    lab.drained(&service).await;
    assert_eq!(log.len(), 1, "it was done");
    lab.send(&service, "m", json!(1)).await;
    lab.drained(&service).await;
    assert_eq!(log.len(), 1, "and the store knows");
    service.stop().await;
    drop(server);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_done_is_acknowledged_where_nobody_waits_for_the_store() {
    let (lab, log, service, server) = without_its_store("run").await;
    lab.drained(&service).await;
    assert_eq!(log.len(), 1);
    service.stop().await;
    drop(server);
}
