//! Every store keeps the contracts of `framework/store/mod.rs`.

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use redeliver::store::Store;
use redeliver::store::memory::MemoryStore;
use redeliver::store::redis::RedisStore;
use redeliver::testing::{check_all, idempotency_conformance, lock_conformance};
use support::redis::{self, Server, settings};

async fn keeps_the_contract(store: impl Store + 'static) {
    keeps_it(&(Arc::new(store) as Arc<dyn Store>)).await;
}

async fn keeps_it(store: &Arc<dyn Store>) {
    check_all(lock_conformance::SENTENCES, store).await;
    check_all(idempotency_conformance::SENTENCES, store).await;
}

#[tokio::test(start_paused = true)]
async fn memory_keeps_the_contract() {
    keeps_the_contract(MemoryStore::new()).await;
}

#[tokio::test]
async fn redis_keeps_the_contract() {
    match std::env::var("REDIS_URL") {
        Ok(url) => keeps_the_contract(RedisStore::new(settings(&url)).expect("settings")).await,
        Err(_) => {
            let server = Server::start();
            keeps_the_contract(server.store()).await;
        }
    }
}

#[tokio::test]
async fn a_cluster_of_three_masters_keeps_the_contract() {
    let nodes = redis::cluster();
    let store = RedisStore::new(settings(&redis::cluster_url(&nodes))).expect("settings");
    keeps_the_contract(store).await;
}

#[tokio::test]
async fn behind_a_sentinel_the_contract_is_kept_and_kept_on_when_a_replica_is_promoted() {
    let ([mut master, _replica, _sentinel], url) = redis::behind_sentinel();
    let store: Arc<dyn Store> = Arc::new(RedisStore::new(settings(&url)).expect("settings"));
    keeps_it(&store).await;
    master.kill();
    let began = Instant::now();
    while store.probe().await.is_err() {
        assert!(began.elapsed() < Duration::from_secs(120), "nobody was promoted");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    keeps_it(&store).await;
}

#[tokio::test]
async fn a_master_that_waits_for_its_replica_keeps_the_contract() {
    let master = Server::start();
    let _replica = redis::replica_of(&master);
    let mut settings = settings(&master.url());
    settings.replicas_min = 1;
    keeps_the_contract(RedisStore::new(settings).expect("settings")).await;
}
