//! Locks as a service's own code asks for them: acquire, hold, release.
//!
//! Owns the waiting, the renewal of what is had, the sharing within one handler, and the release
//! of what is dropped. Knows no message.

use std::future::{Future, IntoFuture};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use super::guard::{Guard, Held, LockRenewal};
use super::{
    Fence, Keeper, Lease, LockAnswer, LockAsk, LockState, Moment, Owner, Scope, Sharing, Store,
    StoreError, StoreFault, StoreState, Woken,
};
use crate::outside;

/// The longest that a waiter relies on being woken.
const POLL_MAX: Duration = Duration::from_secs(1);
/// The soonest that a waiter asks again.
const POLL_MIN: Duration = Duration::from_millis(5);
/// The soonest that one asks again who has others in front.
const POLL_BEHIND_MIN: Duration = Duration::from_millis(100);

/// How a lock is asked for.
///
/// ```
/// # use std::sync::Arc;
/// # use redeliver::store::{Keeper, LockStore, Locks, memory::MemoryStore};
/// use std::time::Duration;
/// use redeliver::store::LockPolicy;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let store = Arc::new(MemoryStore::new());
/// # let keeper = Keeper::new(tokio::runtime::Handle::current(), store.clock());
/// # let locks = Locks::new(store, keeper, "billing@host");
/// let patient = LockPolicy { wait: Duration::from_secs(60), fair: true, ..LockPolicy::default() };
/// let guard = locks.acquire("report").policy(patient).await?;
/// assert_eq!(guard.key(), "report");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockPolicy {
    /// How long it outlives a process that died holding it.
    pub lease: Duration,
    /// How long is waited for it.
    pub wait: Duration,
    /// First come, first served.
    pub fair: bool,
    /// How long it is held at most.
    pub hold_max: Option<Duration>,
}

impl Default for LockPolicy {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(30),
            wait: Duration::from_secs(2),
            fair: false,
            hold_max: Some(Duration::from_secs(600)),
        }
    }
}

/// Hands out locks of one store, from any thread.
///
/// ```
/// use std::sync::Arc;
/// use std::time::Duration;
/// use redeliver::store::{Keeper, LockStore, Locks, StoreState, memory::MemoryStore};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let store = Arc::new(MemoryStore::new());
/// let keeper = Keeper::new(tokio::runtime::Handle::current(), store.clock());
/// let locks = Locks::new(store, keeper, "billing@host");
///
/// let guard = locks.acquire("customer:42").lease(Duration::from_secs(30)).await?;
/// println!("fence {} goes with every write", guard.fence());
/// guard.release().await?;
/// assert!(!locks.force_release("customer:42").await?, "it is free");
/// assert_eq!(locks.state(), StoreState::Up);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Locks {
    shared: Arc<Shared>,
    sharing: Option<Sharing>,
}

pub(super) struct Shared {
    pub(super) store: Arc<dyn Store>,
    pub(super) keeper: Keeper,
    pub(super) holder: Arc<str>,
    /// The largest fence that was seen here, of any key: one number, however many keys there are.
    pub(super) seen: AtomicU64,
}

impl Locks {
    /// Of `store`, renewed by `keeper`; `holder` is what humans are shown.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use redeliver::store::{Keeper, LockStore, Locks, memory::MemoryStore};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let store = Arc::new(MemoryStore::new());
    /// let keeper = Keeper::new(tokio::runtime::Handle::current(), store.clock());
    /// let ours = Locks::new(store.clone(), keeper.clone(), "billing@one");
    /// let theirs = Locks::new(store, keeper, "billing@two");
    ///
    /// let _guard = theirs.acquire("report").await?;
    /// let seen = ours.inspect("report").await?.expect("they have it");
    /// assert_eq!(seen.holder.as_deref(), Some("billing@two"));
    /// # Ok(())
    /// # }
    /// ```
    pub fn new(store: Arc<dyn Store>, keeper: Keeper, holder: impl Into<Arc<str>>) -> Self {
        store.drive_on(keeper.runtime());
        let (holder, seen) = (holder.into(), AtomicU64::new(0));
        Self { shared: Arc::new(Shared { store, keeper, holder, seen }), sharing: None }
    }

    /// The same locks for one handler or batch, which shares what it already holds.
    pub(crate) fn within(&self, scope: &Scope) -> Self {
        self.sharing(&Sharing::Alone(scope.clone()))
    }

    /// The same locks for a message that is handled alone, or in the batch that is gathered when
    /// they are had.
    pub(crate) fn sharing(&self, sharing: &Sharing) -> Self {
        Self { shared: self.shared.clone(), sharing: Some(sharing.clone()) }
    }

    /// Whether these are the locks of that handler or batch.
    pub(crate) fn are_within(&self, scope: &Scope) -> bool {
        self.scope().is_some_and(|own| own.is(scope))
    }

    /// Asks for `key`; await the returned value, or say more first.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use redeliver::store::{Keeper, LockStore, Locks, memory::MemoryStore};
    /// use redeliver::store::LockError;
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let store = Arc::new(MemoryStore::new());
    /// # let keeper = Keeper::new(tokio::runtime::Handle::current(), store.clock());
    /// # let locks = Locks::new(store, keeper, "billing@host");
    /// let _guard = locks.acquire("customer:42").await?;
    /// let _other = locks.acquire("customer:43").await?;   // another key, another lock
    ///
    /// // Outside a handler nothing is shared: who has it and asks again waits like anybody else.
    /// let again = locks.acquire("customer:42").await;
    /// assert!(matches!(again, Err(LockError::Busy { .. })), "after two seconds: {again:?}");
    /// # Ok(())
    /// # }
    /// ```
    pub fn acquire(&self, key: impl Into<String>) -> Acquire {
        Acquire { locks: self.clone(), key: key.into(), policy: LockPolicy::default() }
    }

    /// Who holds `key`, since when, until when, and how many wait; `None` if nobody does either.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use redeliver::store::{Keeper, LockStore, Locks, memory::MemoryStore};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let store = Arc::new(MemoryStore::new());
    /// # let keeper = Keeper::new(tokio::runtime::Handle::current(), store.clock());
    /// # let locks = Locks::new(store, keeper, "billing@host");
    /// assert_eq!(locks.inspect("report").await?, None);
    /// let guard = locks.acquire("report").await?;
    /// let state = locks.inspect("report").await?.expect("it is held");
    /// println!("{} has it until {:?}", state.holder.unwrap_or_default(), state.until);
    /// guard.release().await?;
    /// assert_eq!(locks.inspect("report").await?, None, "what is free leaves no trace");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The store did not answer.
    pub async fn inspect(&self, key: &str) -> Result<Option<LockState>, StoreError> {
        outside::in_context(self.shared.store.inspect(key)).await
    }

    /// Takes `key` from whoever holds it, who learns of it at the next renewal; true if somebody
    /// held it.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use redeliver::store::{Keeper, LockStore, Locks, memory::MemoryStore};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let store = Arc::new(MemoryStore::new());
    /// # let keeper = Keeper::new(tokio::runtime::Handle::current(), store.clock());
    /// # let locks = Locks::new(store, keeper, "billing@host");
    /// let stuck = locks.acquire("report").await?;
    /// assert!(locks.force_release("report").await?);
    /// let next = locks.acquire("report").await?;          // without waiting for the lease
    /// assert!(next.fence() > stuck.fence(), "what `stuck` still writes can be refused");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The store did not answer.
    pub async fn force_release(&self, key: &str) -> Result<bool, StoreError> {
        outside::in_context(self.shared.store.force_release(key)).await
    }

    /// How many leases wait here for their first renewal, of locks and claims: a gauge.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use redeliver::store::{Keeper, LockStore, Locks, memory::MemoryStore};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let store = Arc::new(MemoryStore::new());
    /// # let keeper = Keeper::new(tokio::runtime::Handle::current(), store.clock());
    /// # let locks = Locks::new(store, keeper, "billing@host");
    /// let first = locks.acquire("customer:42").await?;
    /// let _second = locks.acquire("customer:43").await?;
    /// assert_eq!(locks.leases(), 2);
    /// first.release().await?;
    /// assert_eq!(locks.leases(), 1, "what is released is not renewed");
    /// # Ok(())
    /// # }
    /// ```
    pub fn leases(&self) -> usize {
        self.shared.keeper.waiting()
    }

    /// Whether the store answers, and what keeps it from answering.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use redeliver::store::{Keeper, LockStore, Locks, memory::MemoryStore};
    /// use redeliver::store::StoreState;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let store = Arc::new(MemoryStore::new());
    /// # let keeper = Keeper::new(tokio::runtime::Handle::current(), store.clock());
    /// # let locks = Locks::new(store, keeper, "billing@host");
    /// let answer = match locks.state() {
    ///     StoreState::Up => (200, "ready".to_owned()),
    ///     StoreState::Down(why) => (503, format!("no lock can be had: {why}")),
    /// };
    /// assert_eq!(answer, (200, "ready".to_owned()));
    /// # Ok(())
    /// # }
    /// ```
    pub fn state(&self) -> StoreState {
        self.shared.store.state()
    }

    pub(crate) fn store(&self) -> &Arc<dyn Store> {
        &self.shared.store
    }

    /// Whether the handler or batch holds `key` already.
    pub(crate) fn is_shared(&self, key: &str) -> bool {
        self.scope().is_some_and(|scope| scope.holds(key))
    }

    pub(crate) fn keeper(&self) -> &Keeper {
        &self.shared.keeper
    }

    pub(crate) fn holder(&self) -> &str {
        &self.shared.holder
    }

    pub(crate) fn seen(&self) -> Fence {
        Fence(self.shared.seen.load(Ordering::Relaxed))
    }

    pub(crate) fn see(&self, fence: Fence) {
        self.shared.seen.fetch_max(fence.0, Ordering::Relaxed);
    }

    fn scope(&self) -> Option<Scope> {
        self.sharing.as_ref().map(Sharing::scope)
    }

    /// Makes a guard of an answer that came to a question asked at `asked_at`.
    pub(crate) fn hold(
        &self,
        key: &str,
        owner: Owner,
        fence: Fence,
        policy: &LockPolicy,
        asked_at: Moment,
    ) -> Guard {
        self.see(fence);
        let renewal = LockRenewal {
            store: self.shared.store.clone(),
            key: key.to_owned(),
            owner: owner.clone(),
        };
        let (lease, hold_max) = (policy.lease, policy.hold_max);
        let lease = Lease::start(&self.shared.keeper, Box::new(renewal), asked_at, lease, hold_max);
        let shared = self.shared.clone();
        let held =
            Arc::new(Held { shared, key: key.to_owned(), owner, fence, lease, is_released: false });
        if let Some(scope) = self.scope() {
            scope.add(&held);
        }
        Guard(held)
    }

    /// Asks until it is had or `policy.wait` is over. `is_queued`: `owner` has asked already.
    ///
    /// Nothing is awaited between having it and returning: who shares a batch's guard is in that
    /// batch only if it joins before anybody else does anything.
    pub(crate) async fn wait_for(
        &self,
        key: &str,
        owner: Owner,
        policy: &LockPolicy,
        is_queued: bool,
    ) -> Result<Guard, LockError> {
        let store = &self.shared.store;
        let clock = store.clock();
        let gives_up_at = clock.now() + policy.wait;
        let woken = store.wakes().wait_as(&owner);
        let may_be_there = is_queued;
        let mut queued = Queued { shared: &self.shared, key, owner: &owner, may_be_there };
        loop {
            if let Some(guard) = self.scope().and_then(|scope| scope.guard(key)) {
                return Ok(guard);
            }
            queued.may_be_there = true;
            let asked_at = clock.now();
            let left = gives_up_at.since(asked_at);
            let ask = LockAsk {
                key,
                owner: &owner,
                lease: policy.lease,
                holder: &self.shared.holder,
                fair: policy.fair,
                waits: !left.is_zero(),
                seen: self.seen(),
            };
            match store.acquire(&ask).await? {
                LockAnswer::Held(fence) => {
                    queued.arrived();
                    return Ok(self.hold(key, owner.clone(), fence, policy, asked_at));
                }
                LockAnswer::Busy { remaining, .. } if left.is_zero() => {
                    if policy.wait.is_zero() {
                        // Never stood in the queue.
                        queued.arrived();
                    }
                    return Err(LockError::Busy { key: shown(key), remaining });
                }
                LockAnswer::Busy { remaining, ahead } => {
                    let pause = pause(remaining, ahead).min(left);
                    self.until_asking_helps(key, &woken, pause).await;
                }
            }
        }
    }

    /// Until the key is released, or had by somebody it is shared with, or `pause` is over.
    async fn until_asking_helps(&self, key: &str, woken: &Woken, pause: Duration) {
        let mut pause = pin!(tokio::time::sleep(pause));
        loop {
            let Some(scope) = self.scope() else {
                tokio::select! {
                    () = woken.woken() => return,
                    () = pause => return,
                }
            };
            let mut changed = pin!(scope.changed());
            changed.as_mut().enable();
            if scope.holds(key) {
                return;
            }
            tokio::select! {
                () = woken.woken() => return,
                () = &mut pause => return,
                () = changed => {}
            }
        }
    }
}

/// Until the lease ends, if that is soon; jittered, because others wait for the same moment. Who has
/// others in front, one of whom may be dead, does not ask all the time whether they are gone.
fn pause(remaining: Duration, ahead: u32) -> Duration {
    let least = if ahead > 0 { POLL_BEHIND_MIN } else { POLL_MIN };
    let until = remaining.max(least).min(POLL_MAX);
    until + until.mul_f64(fastrand::f64() * 0.1)
}

/// Keys may be a megabyte; messages are not.
pub(super) fn shown(key: &str) -> String {
    key.chars().take(100).filter(|character| !character.is_control()).collect()
}

/// A place in a queue that is left when its owner is cancelled or gives up.
struct Queued<'a> {
    shared: &'a Arc<Shared>,
    key: &'a str,
    owner: &'a Owner,
    may_be_there: bool,
}

impl Queued<'_> {
    fn arrived(mut self) {
        self.may_be_there = false;
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        if self.may_be_there {
            let (shared, key, owner) =
                (self.shared.clone(), self.key.to_owned(), self.owner.clone());
            self.shared.keeper.spawn(async move {
                // Best effort: who is not heard of for some seconds is skipped.
                let _ = shared.store.leave(&key, &owner).await;
            });
        }
    }
}

/// A question for a lock, which begins when it is awaited.
///
/// ```
/// # use std::sync::Arc;
/// # use redeliver::store::{Keeper, LockStore, Locks, memory::MemoryStore};
/// use std::time::Duration;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let store = Arc::new(MemoryStore::new());
/// # let keeper = Keeper::new(tokio::runtime::Handle::current(), store.clock());
/// # let locks = Locks::new(store, keeper, "billing@host");
/// let asking = locks.acquire("report")
///     .lease(Duration::from_secs(10))
///     .wait(Duration::from_secs(1))
///     .fair(true)
///     .hold_max(Duration::from_secs(60));
/// assert_eq!(locks.leases(), 0, "nothing is asked before it is awaited");
/// let guard = asking.await?;
/// assert_eq!(locks.leases(), 1);
/// guard.release().await?;
/// # Ok(())
/// # }
/// ```
#[must_use = "a lock is asked for when this is awaited"]
pub struct Acquire {
    locks: Locks,
    key: String,
    policy: LockPolicy,
}

impl Acquire {
    /// How long it outlives a process that died holding it; 30 s. Renewed while it is held.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use redeliver::store::{Keeper, LockStore, Locks, memory::MemoryStore};
    /// use std::time::Duration;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let store = Arc::new(MemoryStore::new());
    /// # let keeper = Keeper::new(tokio::runtime::Handle::current(), store.clock());
    /// # let locks = Locks::new(store, keeper, "billing@host");
    /// let _guard = locks.acquire("report").lease(Duration::from_secs(5)).await?;
    /// let state = locks.inspect("report").await?.expect("it is held");
    /// assert_eq!(state.until.duration_since(state.since)?, Duration::from_secs(5));
    /// # Ok(())
    /// # }
    /// ```
    pub fn lease(mut self, lease: Duration) -> Self {
        self.policy.lease = lease;
        self
    }

    /// How long to wait for it; 2 s.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use redeliver::store::{Keeper, LockStore, Locks, memory::MemoryStore};
    /// use std::time::Duration;
    /// use tokio::time::Instant;
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let store = Arc::new(MemoryStore::new());
    /// # let keeper = Keeper::new(tokio::runtime::Handle::current(), store.clock());
    /// # let locks = Locks::new(store, keeper, "billing@host");
    /// let _guard = locks.acquire("report").await?;
    /// let (asked, wait) = (Instant::now(), Duration::from_secs(5));
    /// assert!(locks.acquire("report").wait(wait).await.is_err());
    /// assert!(asked.elapsed() >= wait);
    ///
    /// let asked = Instant::now();
    /// assert!(locks.acquire("report").wait(Duration::ZERO).await.is_err(), "now or not at all");
    /// assert_eq!(asked.elapsed(), Duration::ZERO);
    /// # Ok(())
    /// # }
    /// ```
    pub fn wait(mut self, wait: Duration) -> Self {
        self.policy.wait = wait;
        self
    }

    /// First come, first served among those who wait; false.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use redeliver::store::{Keeper, LockStore, Locks, memory::MemoryStore};
    /// use std::time::Duration;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let store = Arc::new(MemoryStore::new());
    /// # let keeper = Keeper::new(tokio::runtime::Handle::current(), store.clock());
    /// # let locks = Locks::new(store, keeper, "billing@host");
    /// let guard = locks.acquire("report").await?;
    /// let first = tokio::spawn(locks.acquire("report").fair(true).into_future());
    /// tokio::task::yield_now().await;                     // it stands in the queue now
    /// guard.release().await?;
    ///
    /// let late = locks.acquire("report").fair(true).wait(Duration::ZERO).await;
    /// assert!(late.is_err(), "nobody has it, but somebody was there before");
    /// assert!(first.await?.is_ok());
    /// # Ok(())
    /// # }
    /// ```
    pub fn fair(mut self, fair: bool) -> Self {
        self.policy.fair = fair;
        self
    }

    /// How long it is held at most; 10 minutes. `None`: as long as its process lives.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use redeliver::store::{Keeper, LockStore, Locks, memory::MemoryStore};
    /// use std::time::Duration;
    /// use redeliver::store::Loss;
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let store = Arc::new(MemoryStore::new());
    /// # let keeper = Keeper::new(tokio::runtime::Handle::current(), store.clock());
    /// # let locks = Locks::new(store, keeper, "billing@host");
    /// let report = locks.acquire("report").hold_max(Duration::from_secs(60)).await?;
    /// let leader = locks.acquire("leader").hold_max(None).await?;
    /// tokio::time::sleep(Duration::from_secs(3600)).await;
    /// assert_eq!(report.loss(), Some(Loss::HoldMax), "although it could have been renewed");
    /// assert_eq!(leader.loss(), None);
    /// # Ok(())
    /// # }
    /// ```
    pub fn hold_max(mut self, hold_max: impl Into<Option<Duration>>) -> Self {
        self.policy.hold_max = hold_max.into();
        self
    }

    /// All of it at once.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use redeliver::store::{Keeper, LockStore, Locks, memory::MemoryStore};
    /// use std::time::Duration;
    /// use redeliver::store::LockPolicy;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let store = Arc::new(MemoryStore::new());
    /// # let keeper = Keeper::new(tokio::runtime::Handle::current(), store.clock());
    /// # let locks = Locks::new(store, keeper, "billing@host");
    /// let nightly = LockPolicy { wait: Duration::ZERO, lease: Duration::from_secs(300), ..LockPolicy::default() };
    /// let _guard = locks.acquire("report").policy(nightly).lease(Duration::from_secs(60)).await?;
    /// let state = locks.inspect("report").await?.expect("it is held");
    /// assert_eq!(state.until.duration_since(state.since)?, Duration::from_secs(60), "what is said last counts");
    /// # Ok(())
    /// # }
    /// ```
    pub fn policy(mut self, policy: LockPolicy) -> Self {
        self.policy = policy;
        self
    }
}

impl IntoFuture for Acquire {
    type Output = Result<Guard, LockError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    /// # Cancel safety
    /// A question that is dropped leaves the queue, and gives back what it was given too late.
    fn into_future(self) -> Self::IntoFuture {
        let runtime = self.locks.keeper().runtime().clone();
        let asks =
            async move { self.locks.wait_for(&self.key, Owner::new(), &self.policy, false).await };
        if Handle::try_current().is_ok() {
            return Box::pin(asks);
        }
        // A thread without a runtime has no timers: the keeper's runtime asks for it.
        Box::pin(async move {
            let mut asking = Asking(runtime.spawn(asks));
            (&mut asking.0).await.unwrap_or_else(|_| {
                let text = "cannot acquire a lock: the keeper's runtime is gone; keep it running";
                Err(LockError::Store(StoreError::new(StoreFault::Down, text)))
            })
        })
    }
}

/// A question that somebody else asks for us, until we do not want to know any more.
struct Asking(JoinHandle<Result<Guard, LockError>>);

impl Drop for Asking {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Why a lock was not had.
///
/// ```
/// # use std::sync::Arc;
/// # use redeliver::store::{Keeper, LockStore, Locks, memory::MemoryStore};
/// use std::time::Duration;
/// use redeliver::store::LockError;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let store = Arc::new(MemoryStore::new());
/// # let keeper = Keeper::new(tokio::runtime::Handle::current(), store.clock());
/// # let locks = Locks::new(store, keeper, "billing@host");
/// let _guard = locks.acquire("report").await?;
/// match locks.acquire("report").wait(Duration::ZERO).await {
///     Err(LockError::Busy { key, remaining }) => assert!(key == "report" && !remaining.is_zero()),
///     other => panic!("somebody holds it: {other:?}"),
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody else held it all the time.
    #[error(
        "`{key}` is locked by somebody else for another {remaining:?}; try again later or wait longer"
    )]
    Busy {
        /// The key, shortened.
        key: String,
        /// How long the lease lasts unless it is renewed.
        remaining: Duration,
    },
    /// The store did not answer; it may be held all the same until its lease ends.
    #[error(transparent)]
    Store(#[from] StoreError),
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::store::memory::MemoryStore;
    use crate::store::{LockStore, Loss};

    const LEASE: Duration = Duration::from_secs(30);

    #[tokio::test(start_paused = true)]
    async fn who_lost_a_key_waits_for_it_like_anybody_else() {
        let store = Arc::new(MemoryStore::new());
        let all = Locks::new(store.clone(), Keeper::new(Handle::current(), store.clock()), "test");
        let scope = Scope::new();
        let own = all.within(&scope);
        let lost = own.acquire("a").lease(LEASE).await.expect("it is free");
        all.force_release("a").await.expect("an answer");
        assert_eq!(lost.lost().await, Loss::Forced);
        let _others = all.acquire("a").lease(LEASE).await.expect("it is free again");
        assert!(!scope.holds("a"), "there is nothing to share");
        let (asked, wait) = (Instant::now(), Duration::from_secs(2));
        let refused = own.acquire("a").wait(wait).await;
        assert!(matches!(refused, Err(LockError::Busy { .. })), "{refused:?}");
        assert!(asked.elapsed() >= wait);
    }

    #[test]
    fn who_has_others_in_front_asks_seldom() {
        assert!(pause(Duration::ZERO, 0) < POLL_BEHIND_MIN);
        assert!(pause(Duration::ZERO, 1) >= POLL_BEHIND_MIN);
        assert!(pause(LEASE, 1) <= POLL_MAX.mul_f64(1.1));
    }
}
