//! Every store keeps the contracts of `framework/store/mod.rs`.

use std::sync::Arc;

use redeliver::store::Store;
use redeliver::store::memory::MemoryStore;
use redeliver::testing::{check_all, idempotency_conformance, lock_conformance};

#[tokio::test(start_paused = true)]
async fn the_memory_store_keeps_the_contract_of_locks() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    check_all(lock_conformance::SENTENCES, &store).await;
}

#[tokio::test(start_paused = true)]
async fn the_memory_store_keeps_the_contract_of_claims() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    check_all(idempotency_conformance::SENTENCES, &store).await;
}
