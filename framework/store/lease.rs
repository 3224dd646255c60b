//! Keeps leases alive while somebody needs them, and says when one is lost.
//!
//! Owns the renewal at a third of the lease, the local deadline, and the end of what is held too
//! long. Knows nothing of what is leased.
//!
//! One timer serves all leases of a store, because most handlers are done long before the first
//! renewal is due. A lease whose time comes gets a task of its own on the keeper's runtime, which
//! no handler can block; [`Lease::stop`] joins it, so no renewal outlives a release.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use super::{Clock, Moment, Renewed, StoreError};

/// Prolongs one lease.
#[async_trait]
pub(crate) trait Renew: Send + Sync + 'static {
    /// For `lease` from now on.
    ///
    /// # Errors
    /// Nothing is known then; it is tried again until the deadline.
    async fn renew(&self, lease: Duration) -> Result<Renewed, StoreError>;
}

/// Why a lease is not ours any more.
///
/// ```
/// # use std::sync::Arc;
/// # use redeliver::store::{Keeper, LockStore, Locks, memory::MemoryStore};
/// use redeliver::store::Loss;
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let store = Arc::new(MemoryStore::new());
/// # let keeper = Keeper::new(tokio::runtime::Handle::current(), store.clock());
/// # let locks = Locks::new(store, keeper, "billing@host");
/// let guard = locks.acquire("customer:42").await?;
/// locks.force_release("customer:42").await?;
/// assert_eq!(guard.lost().await, Loss::Forced);      // at the next renewal
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Loss {
    /// Somebody else has it, or it was forgotten by the store.
    NotOwner,
    /// It was released by force.
    Forced,
    /// Its deadline passed, and no renewal was tried in time: this process stood still.
    Expired,
    /// Its deadline passed while the store did not answer renewals.
    Unreachable,
    /// It was held for as long as it may be held.
    HoldMax,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotOwner => "it belongs to somebody else, or the store forgot it",
            Self::Forced => "it was released by force",
            Self::Expired => "its lease ended while this process stood still",
            Self::Unreachable => "its lease ended while the store did not answer",
            Self::HoldMax => "it was held for `hold_max`",
        })
    }
}

/// The timer of all leases of one store, and the runtime that their renewals run on.
///
/// ```
/// use std::sync::Arc;
/// use redeliver::store::{Keeper, LockStore, Locks, memory::MemoryStore};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), redeliver::store::LockError> {
/// let store = Arc::new(MemoryStore::new());
/// // In a service: the runtime of a thread that no handler blocks.
/// let keeper = Keeper::new(tokio::runtime::Handle::current(), store.clock());
/// let locks = Locks::new(store, keeper, "billing@host");
/// let _guard = locks.acquire("report").await?;
/// assert_eq!(locks.leases(), 1, "to be renewed at a third of its lease");
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Keeper(Arc<KeeperShared>);

struct KeeperShared {
    runtime: Handle,
    clock: Clock,
    wheel: Mutex<Wheel>,
    alarm: Arc<Notify>,
    /// How many works go on without their owners.
    working: Arc<watch::Sender<usize>>,
}

#[derive(Default)]
struct Wheel {
    due: BTreeMap<(Moment, u64), Weak<Shared>>,
    sleeps_until: Option<Moment>,
    number_next: u64,
}

impl Keeper {
    /// Renews on `runtime`, which should be one that no handler blocks.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use redeliver::store::{Keeper, LockStore, Locks, memory::MemoryStore};
    ///
    /// let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build()?;
    /// let store = Arc::new(MemoryStore::new());
    /// let keeper = Keeper::new(runtime.handle().clone(), store.clock());
    /// let locks = Locks::new(store, keeper, "billing@host");
    ///
    /// let guard = runtime.block_on(locks.acquire("report").into_future())?;
    /// // This thread may block from here on: another one renews it.
    /// assert_eq!(guard.loss(), None);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn new(runtime: Handle, clock: Clock) -> Self {
        let alarm = Arc::new(Notify::new());
        let shared = Arc::new(KeeperShared {
            runtime: runtime.clone(),
            clock,
            wheel: Mutex::default(),
            alarm: alarm.clone(),
            working: Arc::default(),
        });
        runtime.spawn(turn(Arc::downgrade(&shared), alarm, clock));
        Self(shared)
    }

    /// Runs what must go on when its owner is gone: a release after a drop.
    pub(crate) fn spawn<F: Future<Output = ()> + Send + 'static>(&self, work: F) {
        let working = Working::begin(self.0.working.clone());
        self.0.runtime.spawn(async move {
            let _working = working;
            work.await;
        });
    }

    /// Completes when none of that is under way any more.
    pub(crate) async fn is_idle(&self) {
        let mut working = self.0.working.subscribe();
        // The sender lives in `self`, so this never fails.
        let _ = working.wait_for(|count| *count == 0).await;
    }

    /// The runtime that renewals run on.
    pub(crate) fn runtime(&self) -> &Handle {
        &self.0.runtime
    }

    /// How many leases wait for their first renewal: a gauge.
    pub(crate) fn waiting(&self) -> usize {
        self.0.wheel().due.len()
    }
}

/// One of the works, until it is done or its runtime is gone.
struct Working(Arc<watch::Sender<usize>>);

impl Working {
    fn begin(working: Arc<watch::Sender<usize>>) -> Self {
        working.send_modify(|count| *count += 1);
        Self(working)
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

impl KeeperShared {
    fn wheel(&self) -> MutexGuard<'_, Wheel> {
        self.wheel.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, due: Moment, lease: Weak<Shared>) -> (Moment, u64) {
        let mut wheel = self.wheel();
        wheel.number_next += 1;
        let place = (due, wheel.number_next);
        wheel.due.insert(place, lease);
        // Leases of one length come in the order of their renewals, so this is seldom true.
        if wheel.sleeps_until.is_none_or(|until| due < until) {
            self.alarm.notify_one();
        }
        place
    }
}

impl Drop for KeeperShared {
    fn drop(&mut self) {
        self.alarm.notify_one();
    }
}

/// Starts the renewal of each lease whose time has come, until the keeper is gone.
async fn turn(keeper: Weak<KeeperShared>, alarm: Arc<Notify>, clock: Clock) {
    loop {
        let next = match keeper.upgrade() {
            Some(keeper) => start_due(&keeper),
            None => return,
        };
        match next {
            Some(moment) => tokio::select! {
                () = alarm.notified() => {}
                () = clock.sleep_until(moment) => {}
            },
            None => alarm.notified().await,
        }
    }
}

fn start_due(keeper: &KeeperShared) -> Option<Moment> {
    let now = keeper.clock.now();
    let mut due = Vec::new();
    let next = {
        let mut wheel = keeper.wheel();
        while let Some(entry) = wheel.due.first_entry().filter(|entry| entry.key().0 <= now) {
            due.push(entry.remove());
        }
        wheel.sleeps_until = wheel.due.keys().next().map(|place| place.0);
        wheel.sleeps_until
    };
    for lease in due.iter().filter_map(Weak::upgrade) {
        let mut stage = lease.stage();
        if matches!(*stage, Stage::Waiting(_)) {
            *stage = Stage::Renewing(keeper.runtime.spawn(renewing(lease.clone())));
        }
    }
    next
}

/// Something that is held for a bounded time and renewed until it is stopped or dropped.
pub(crate) struct Lease(Arc<Shared>);

struct Shared {
    keeper: Keeper,
    renew: Box<dyn Renew>,
    length: Duration,
    hold_until: Option<Moment>,
    /// When what it was granted by, or renewed by, was asked for.
    asked_at: Mutex<Moment>,
    stage: Mutex<Stage>,
    /// The last renewal was not answered.
    is_unanswered: AtomicBool,
    stop: Notify,
    loss: OnceLock<Loss>,
    lost: Notify,
}

enum Stage {
    Waiting((Moment, u64)),
    Renewing(JoinHandle<()>),
    Stopped,
}

impl Lease {
    /// Keeps what was asked for at `asked_at`, for at most `hold_max`.
    pub(crate) fn start(
        keeper: &Keeper,
        renew: Box<dyn Renew>,
        asked_at: Moment,
        length: Duration,
        hold_max: Option<Duration>,
    ) -> Self {
        let hold_until = hold_max.map(|span| asked_at + span);
        let lease = Arc::new(Shared {
            keeper: keeper.clone(),
            renew,
            length,
            hold_until,
            asked_at: Mutex::new(asked_at),
            stage: Mutex::new(Stage::Stopped),
            is_unanswered: AtomicBool::new(false),
            stop: Notify::new(),
            loss: OnceLock::new(),
            lost: Notify::new(),
        });
        let renewal = asked_at + length / 3;
        let due = hold_until.map_or(renewal, |until| until.min(renewal));
        let mut stage = lease.stage();
        *stage = Stage::Waiting(keeper.0.add(due, Arc::downgrade(&lease)));
        drop(stage);
        Self(lease)
    }

    /// Completes when the lease is lost, no later than its local deadline.
    ///
    /// # Cancel safety
    /// Cancel safe; a lease that is lost stays lost.
    pub(crate) fn lost(&self) -> impl Future<Output = Loss> + Send + 'static + use<> {
        let lease = self.0.clone();
        async move { lease.lost().await }
    }

    /// Why it is lost, or `None` while it is surely held.
    pub(crate) fn loss(&self) -> Option<Loss> {
        self.0.loss()
    }

    /// When the question was asked that it lasts by: another lease of the same may be counted from there.
    pub(crate) fn asked_at(&self) -> Moment {
        self.0.asked_at()
    }

    /// Ends the renewal; when this returns, none is on its way.
    pub(crate) async fn stop(&self) {
        let stage = std::mem::replace(&mut *self.0.stage(), Stage::Stopped);
        match stage {
            Stage::Waiting(place) => self.0.forget(place),
            Stage::Renewing(task) => {
                self.0.stop.notify_one();
                // A panic inside a renewal ended it as well.
                let _ = task.await;
            }
            Stage::Stopped => {}
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let stage = std::mem::replace(&mut *self.0.stage(), Stage::Stopped);
        match stage {
            Stage::Waiting(place) => self.0.forget(place),
            Stage::Renewing(_) => self.0.stop.notify_one(),
            Stage::Stopped => {}
        }
    }
}

impl Shared {
    fn stage(&self) -> MutexGuard<'_, Stage> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget(&self, place: (Moment, u64)) {
        self.keeper.0.wheel().due.remove(&place);
    }

    fn asked_at(&self) -> Moment {
        *self.asked_at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When it must be believed lost: the deadline, or the end of the longest hold.
    fn ends(&self) -> (Moment, Loss) {
        let deadline = deadline(self.asked_at(), self.length);
        match self.hold_until {
            Some(until) if until < deadline => (until, Loss::HoldMax),
            _ if self.is_unanswered.load(Ordering::Relaxed) => (deadline, Loss::Unreachable),
            _ => (deadline, Loss::Expired),
        }
    }

    fn loss(&self) -> Option<Loss> {
        if self.loss.get().is_none() {
            let (end, loss) = self.ends();
            if self.keeper.0.clock.now() >= end {
                self.lose(loss);
            }
        }
        self.loss.get().copied()
    }

    fn lose(&self, loss: Loss) {
        if self.loss.set(loss).is_ok() {
            self.lost.notify_waiters();
        }
    }

    async fn lost(&self) -> Loss {
        loop {
            let lost = self.lost.notified();
            tokio::pin!(lost);
            lost.as_mut().enable();
            if let Some(loss) = self.loss() {
                return loss;
            }
            tokio::select! {
                () = lost => {}
                () = self.keeper.0.clock.sleep_until(self.ends().0) => {}
            }
        }
    }

    /// One renewal; what to wait for until the next one, or why there is none.
    async fn renew_once(&self) -> Result<Moment, Loss> {
        let clock = self.keeper.0.clock;
        let asked_at = clock.now();
        let (end, loss) = self.ends();
        let answer = tokio::select! {
            answer = self.renew.renew(self.length) => answer,
            () = clock.sleep_until(end) => {
                return Err(if loss == Loss::Expired { Loss::Unreachable } else { loss });
            }
        };
        match answer {
            Ok(Renewed::Kept) => {
                self.is_unanswered.store(false, Ordering::Relaxed);
                *self.asked_at.lock().unwrap_or_else(PoisonError::into_inner) = asked_at;
                Ok(asked_at + self.length / 3)
            }
            Ok(Renewed::Lost) => Err(Loss::NotOwner),
            Ok(Renewed::Forced) => Err(Loss::Forced),
            Err(_) => {
                self.is_unanswered.store(true, Ordering::Relaxed);
                Ok(clock.now() + self.length / 20)
            }
        }
    }
}

/// Measured from before the request was sent: the server's lease begins later than that, so it
/// ends later than this. A hundredth and 2 ms are for clocks that run at different speeds.
fn deadline(asked_at: Moment, length: Duration) -> Moment {
    asked_at + (length - length / 100).saturating_sub(Duration::from_millis(2))
}

/// Renews until it is stopped or lost.
async fn renewing(lease: Arc<Shared>) {
    let clock = lease.keeper.0.clock;
    while lease.loss().is_none() {
        let next = match lease.renew_once().await {
            Ok(next) => next,
            Err(loss) => return lease.lose(loss),
        };
        let next = next.min(lease.ends().0);
        tokio::select! {
            () = lease.stop.notified() => return,
            () = clock.sleep_until(next) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;
    use crate::store::StoreFault;

    struct Fake {
        renewals: Arc<AtomicU32>,
        answer: fn(u32) -> Result<Renewed, StoreError>,
    }

    #[async_trait]
    impl Renew for Fake {
        async fn renew(&self, _: Duration) -> Result<Renewed, StoreError> {
            (self.answer)(self.renewals.fetch_add(1, Ordering::SeqCst))
        }
    }

    fn lease(
        answer: fn(u32) -> Result<Renewed, StoreError>,
        hold_max: Option<Duration>,
    ) -> (Lease, Arc<AtomicU32>) {
        let keeper = Keeper::new(Handle::current(), Clock::Tokio);
        let renewals = Arc::new(AtomicU32::new(0));
        let fake = Box::new(Fake { renewals: renewals.clone(), answer });
        let now = Clock::Tokio.now();
        (Lease::start(&keeper, fake, now, Duration::from_secs(30), hold_max), renewals)
    }

    fn down() -> StoreError {
        StoreError::new(StoreFault::Down, "no answer")
    }

    async fn check(
        answer: fn(u32) -> Result<Renewed, StoreError>,
        hold_max: Option<Duration>,
        lost_after: Duration,
        cause: Loss,
    ) {
        let (lease, _) = lease(answer, hold_max);
        let started = Clock::Tokio.now();
        assert_eq!(lease.lost().await, cause);
        let after = Clock::Tokio.now().since(started);
        assert!(after.abs_diff(lost_after) < Duration::from_millis(50), "{after:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_is_renewed_at_a_third_of_its_length() {
        let (lease, renewals) = lease(|_| Ok(Renewed::Kept), None);
        tokio::time::sleep(Duration::from_millis(100_500)).await;
        assert_eq!(renewals.load(Ordering::SeqCst), 10);
        assert_eq!(lease.loss(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_dead_store_loses_it_before_the_server_does() {
        let before = Duration::from_millis(29_698);
        check(|_| Err(down()), None, before, Loss::Unreachable).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_taken_by_somebody_else_is_lost_at_the_renewal() {
        check(|_| Ok(Renewed::Lost), None, Duration::from_secs(10), Loss::NotOwner).await;
    }

    #[tokio::test(start_paused = true)]
    async fn force_is_told_apart() {
        check(|_| Ok(Renewed::Forced), None, Duration::from_secs(10), Loss::Forced).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_handler_that_hangs_holds_no_longer_than_hold_max() {
        let hold_max = Duration::from_secs(95);
        check(|_| Ok(Renewed::Kept), Some(hold_max), hold_max, Loss::HoldMax).await;
    }

    #[tokio::test(start_paused = true)]
    async fn one_failed_renewal_is_tried_again() {
        let (lease, renewals) =
            lease(|number| if number == 0 { Err(down()) } else { Ok(Renewed::Kept) }, None);
        tokio::time::sleep(Duration::from_secs(35)).await;
        assert_eq!(lease.loss(), None);
        assert!(renewals.load(Ordering::SeqCst) >= 3);
    }

    #[tokio::test(start_paused = true)]
    async fn no_renewal_follows_a_stop() {
        let (lease, renewals) = lease(|_| Ok(Renewed::Kept), None);
        tokio::time::sleep(Duration::from_secs(15)).await;
        lease.stop().await;
        let so_far = renewals.load(Ordering::SeqCst);
        tokio::time::sleep(Duration::from_secs(100)).await;
        assert_eq!(renewals.load(Ordering::SeqCst), so_far);
    }

    #[tokio::test(start_paused = true)]
    async fn ten_thousand_short_holds_leave_nothing_behind() {
        let keeper = Keeper::new(Handle::current(), Clock::Tokio);
        for _ in 0..10_000 {
            let fake = Fake { renewals: Arc::default(), answer: |_| Ok(Renewed::Kept) };
            let now = Clock::Tokio.now();
            let lease = Lease::start(&keeper, Box::new(fake), now, Duration::from_secs(30), None);
            lease.stop().await;
        }
        assert_eq!(keeper.waiting(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_keeper_is_idle_when_the_last_of_its_works_is_done() {
        let keeper = Keeper::new(Handle::current(), Clock::Tokio);
        keeper.is_idle().await;
        let seconds = |count| tokio::time::sleep(Duration::from_secs(count));
        keeper.spawn(seconds(1));
        keeper.spawn(seconds(5));
        let began = Clock::Tokio.now();
        keeper.is_idle().await;
        assert!(Clock::Tokio.now().since(began) >= Duration::from_secs(5));
    }
}
