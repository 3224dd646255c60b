//! For those who test: a service whose clock stands still, and the suites that every adapter must
//! pass.
//!
//! Owns what a user's test works with, and what every broker and store promises, as tests of
//! numbered sentences; those know the seams and nothing of an adapter.

mod in_memory;
mod record;
mod service;

pub mod broker_conformance;
pub mod idempotency_conformance;
pub mod lock_conformance;

pub use record::{Fate, Record, WaitedAt};
pub use service::TestService;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use crate::store::Store;

/// A sentence of a contract and the test of it.
///
/// ```
/// use std::sync::Arc;
/// use redeliver::store::memory::MemoryStore;
/// use redeliver::testing::lock_conformance::SENTENCES;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let first = &SENTENCES[0];
/// assert_eq!((first.number, first.says), (1, "a free key is had by who asks first"));
/// first.check(Arc::new(MemoryStore::new())).await;
/// # }
/// ```
pub struct Sentence {
    /// The number in the contract.
    pub number: u32,
    /// What holds.
    pub says: &'static str,
    check: Check,
}

type Check = fn(Arc<dyn Store>) -> Pin<Box<dyn Future<Output = ()> + Send>>;

impl Sentence {
    /// Puts a store to the test.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use redeliver::store::memory::MemoryStore;
    /// use redeliver::testing::idempotency_conformance::SENTENCES;
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// // The third alone, as when that is the one which does not hold.
    /// for sentence in SENTENCES.iter().filter(|sentence| sentence.number == 3) {
    ///     sentence.check(Arc::new(MemoryStore::new())).await;
    /// }
    /// # }
    /// ```
    ///
    /// # Panics
    /// If the sentence does not hold.
    pub async fn check(&self, store: Arc<dyn Store>) {
        (self.check)(store).await;
    }
}

/// Puts a store to every test of a suite, one after the other.
///
/// ```
/// use std::sync::Arc;
/// use redeliver::store::{Store, memory::MemoryStore};
/// use redeliver::testing::{check_all, idempotency_conformance, lock_conformance};
///
/// // Leases end at once in a test, because its clock is paused.
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
/// check_all(lock_conformance::SENTENCES, &store).await;
/// check_all(idempotency_conformance::SENTENCES, &store).await;
/// # }
/// ```
///
/// # Panics
/// With the number of the first sentence that does not hold, printed before.
pub async fn check_all(sentences: &[Sentence], store: &Arc<dyn Store>) {
    for sentence in sentences {
        println!("{} {}", sentence.number, sentence.says);
        sentence.check(store.clone()).await;
    }
}

/// Pairs sentences with the functions that test them.
macro_rules! sentences {
    ($($number:literal $says:literal $check:path),* $(,)?) => {
        &[$($crate::testing::Sentence {
            number: $number,
            says: $says,
            check: |store| Box::pin($check(store)),
        }),*]
    };
}
use sentences;

/// A name that no other test uses.
fn unique(name: &str) -> String {
    format!("{name}-{}", crate::store::Owner::new().as_str())
}
