//! The lock keeper: one actor a store, on a thread that no handler blocks.
//!
//! Owns the thread that leases are renewed on, the probing of the store while nobody asks it, and
//! the mailbox through which actors ask for locks. What is held lives in the handles, not here: a
//! keeper that died is made anew and nothing is lost.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use actix::prelude::*;
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep, timeout};

use crate::store::{
    Guard, Keeper, LockError, LockPolicy, LockState, Locks, Store, StoreError, StoreFault,
    StoreState,
};
use crate::telemetry;

/// How often a store is asked whether it is there.
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// How soon a store that was not reached at the start is tried again.
const CHECK_AGAIN_AFTER: Duration = Duration::from_millis(500);

/// The actor that watches one store and answers for its locks.
///
/// [`Service::lock_keeper`](crate::Service::lock_keeper) gives its address.
///
/// ```
/// use redeliver::lock_keeper::{ForceRelease, InspectLock};
/// use redeliver::{Service, config::Config};
///
/// # actix::System::new().block_on(async {
/// let service = Service::builder(Config::from_toml("stores.main = { kind = \"memory\" }")?).start().await?;
/// let keeper = service.lock_keeper("main")?;
/// assert_eq!(keeper.send(InspectLock("customer:42".into())).await??, None);
/// assert!(!keeper.send(ForceRelease("customer:42".into())).await??, "nobody held it");
/// # service.stop().await;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
#[allow(missing_debug_implementations, reason = "it is seen by its address alone")]
pub struct LockKeeper {
    name: Arc<str>,
    locks: Locks,
    was_up: bool,
}

impl Actor for LockKeeper {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        probe_later(ctx);
    }
}

impl LockKeeper {
    /// Tells when the store went away and when it came back.
    fn note(&mut self) {
        match (self.was_up, self.locks.state()) {
            (true, StoreState::Down(error)) => telemetry::store_down(&self.name, &error),
            (false, StoreState::Up) => telemetry::store_up(&self.name),
            (true, StoreState::Up) | (false, StoreState::Down(_)) => return,
        }
        self.was_up = !self.was_up;
    }
}

/// Probes the store, one question at a time; that opens its connection again, so that whoever
/// paused may go on.
fn probe_later(ctx: &mut Context<LockKeeper>) {
    ctx.run_later(PROBE_EVERY, |keeper, ctx| {
        let locks = keeper.locks.clone();
        // The error is in the store's state.
        let probe = async move { locks.store().probe().await.is_ok() }.into_actor(keeper);
        ctx.spawn(probe.map(|_, keeper, ctx| {
            keeper.note();
            probe_later(ctx);
        }));
    });
}

/// What a store warns of at the start; one that does not answer is asked again for so long.
async fn checked(
    name: &str,
    store: &dyn Store,
    patience: Duration,
) -> Result<Vec<String>, StoreError> {
    let deadline = Instant::now() + patience;
    loop {
        match store.check().await {
            Err(error) if error.fault == StoreFault::Down && Instant::now() < deadline => {
                telemetry::store_not_reached(name, &error);
            }
            checked => return checked,
        }
        sleep(CHECK_AGAIN_AFTER).await;
    }
}

/// Asks for a lock.
///
/// ```
/// # use redeliver::{Service, config::Config};
/// use std::time::Duration;
/// use redeliver::{lock_keeper::AcquireLock, store::LockPolicy};
///
/// # actix::System::new().block_on(async {
/// # let service = Service::builder(Config::from_toml("stores.main = { kind = \"memory\" }")?).start().await?;
/// # let keeper = service.lock_keeper("main")?;
/// let policy = LockPolicy { wait: Duration::ZERO, ..LockPolicy::default() };
/// let guard = keeper.send(AcquireLock { key: "report".into(), policy }).await??;
/// let second = keeper.send(AcquireLock { key: "report".into(), policy }).await?;
/// assert!(second.is_err(), "somebody holds it");
/// guard.release().await?;
/// # service.stop().await;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
#[derive(Debug, Message)]
#[rtype(result = "Result<Guard, LockError>")]
pub struct AcquireLock {
    /// What to lock.
    pub key: String,
    /// How.
    pub policy: LockPolicy,
}

/// Asks who holds the lock of this key, since when, and how many wait.
///
/// ```
/// # use redeliver::{Service, config::Config};
/// use redeliver::lock_keeper::InspectLock;
///
/// # actix::System::new().block_on(async {
/// # let service = Service::builder(Config::from_toml("stores.main = { kind = \"memory\" }")?).start().await?;
/// # let keeper = service.lock_keeper("main")?;
/// let _guard = service.locks("main")?.acquire("report").await?;
/// let state = keeper.send(InspectLock("report".into())).await??.expect("it is held");
/// assert_eq!(state.waiting, 0);
/// # service.stop().await;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
#[derive(Debug, Message)]
#[rtype(result = "Result<Option<LockState>, StoreError>")]
pub struct InspectLock(pub String);

/// Takes the lock of this key from whoever holds it; false if nobody did.
///
/// ```
/// # use redeliver::{Service, config::Config};
/// use redeliver::lock_keeper::ForceRelease;
///
/// # actix::System::new().block_on(async {
/// # let service = Service::builder(Config::from_toml("stores.main = { kind = \"memory\" }")?).start().await?;
/// # let keeper = service.lock_keeper("main")?;
/// let _guard = service.locks("main")?.acquire("report").await?;
/// assert!(keeper.send(ForceRelease("report".into())).await??);
/// # service.stop().await;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
#[derive(Debug, Message)]
#[rtype(result = "Result<bool, StoreError>")]
pub struct ForceRelease(pub String);

impl Handler<AcquireLock> for LockKeeper {
    type Result = ResponseFuture<Result<Guard, LockError>>;

    fn handle(&mut self, ask: AcquireLock, _: &mut Self::Context) -> Self::Result {
        self.locks.acquire(ask.key).policy(ask.policy).into_future()
    }
}

impl Handler<InspectLock> for LockKeeper {
    type Result = ResponseFuture<Result<Option<LockState>, StoreError>>;

    fn handle(&mut self, InspectLock(key): InspectLock, _: &mut Self::Context) -> Self::Result {
        let locks = self.locks.clone();
        Box::pin(async move { locks.inspect(&key).await })
    }
}

impl Handler<ForceRelease> for LockKeeper {
    type Result = ResponseFuture<Result<bool, StoreError>>;

    fn handle(&mut self, ForceRelease(key): ForceRelease, _: &mut Self::Context) -> Self::Result {
        let locks = self.locks.clone();
        Box::pin(async move { locks.force_release(&key).await })
    }
}

/// The place of one store's keeper: its thread, and whoever keeps there now.
pub(crate) struct KeeperSeat {
    name: Arc<str>,
    locks: Locks,
    keeper: Mutex<Addr<LockKeeper>>,
    thread: Thread,
}

/// The thread of a keeper; none in a test service, where everything shares one. It ends with its seat, also with one that
/// came to nothing at the start.
struct Thread(Option<Arbiter>);

impl Thread {
    fn end(&self) {
        if let Some(arbiter) = &self.0 {
            arbiter.stop();
        }
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.end();
    }
}

impl KeeperSeat {
    /// Checks the store and starts its keeper, on a thread of its own unless `threads` is false.
    ///
    /// # Errors
    /// The store refused its settings; warnings are logged.
    pub(crate) async fn start(
        name: &str,
        store: Arc<dyn Store>,
        holder: &str,
        patience: Duration,
        threads: bool,
    ) -> Result<Self, StoreError> {
        let thread = Thread(threads.then(Arbiter::new));
        let runtime = match &thread.0 {
            Some(arbiter) => runtime_of(arbiter).await?,
            None => Handle::current(),
        };
        let clock = store.clock();
        let locks = Locks::new(store.clone(), Keeper::new(runtime, clock), holder);
        for warning in checked(name, store.as_ref(), patience).await? {
            telemetry::store_warning(name, &warning);
        }
        let name: Arc<str> = name.into();
        let keeper = Mutex::new(seated(&name, &locks, thread.0.as_ref()));
        Ok(Self { name, locks, keeper, thread })
    }

    /// The handle through which anybody asks for locks.
    pub(crate) fn locks(&self) -> &Locks {
        &self.locks
    }

    /// The keeper's address; on a thread of its own, a keeper that died is made anew at once.
    pub(crate) fn keeper(&self) -> Addr<LockKeeper> {
        if self.thread.0.is_some() {
            self.attend();
        }
        self.current().clone()
    }

    /// Makes a keeper that died anew.
    fn attend(&self) {
        let mut keeper = self.current();
        if !keeper.connected() {
            telemetry::keeper_restarted(&self.name);
            *keeper = seated(&self.name, &self.locks, self.thread.0.as_ref());
        }
    }

    fn current(&self) -> MutexGuard<'_, Addr<LockKeeper>> {
        self.keeper.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for what is still being ended and released, at most for `patience`: it would have to wait for its lease else.
    pub(crate) async fn finish(&self, patience: Duration) {
        // Whose store is away is not waited for any longer.
        let _ = timeout(patience, self.locks.keeper().is_idle()).await;
    }

    /// Ends the thread; what is still held is free when its lease ends.
    pub(crate) fn stop(&self) {
        self.thread.end();
    }
}

/// Looks after the keepers for as long as it is polled.
pub(crate) async fn attend_all(seats: Vec<Arc<KeeperSeat>>) {
    loop {
        tokio::time::sleep(PROBE_EVERY).await;
        seats.iter().for_each(|seat| seat.attend());
    }
}

fn seated(name: &Arc<str>, locks: &Locks, arbiter: Option<&Arbiter>) -> Addr<LockKeeper> {
    let keeper = LockKeeper { name: name.clone(), locks: locks.clone(), was_up: true };
    match arbiter {
        Some(arbiter) => LockKeeper::start_in_arbiter(&arbiter.handle(), |_| keeper),
        None => keeper.start(),
    }
}

async fn runtime_of(arbiter: &Arbiter) -> Result<Handle, StoreError> {
    let (tell, told) = tokio::sync::oneshot::channel();
    arbiter.spawn(async {
        // Nobody waits any more if the service is stopped at once.
        let _ = tell.send(Handle::current());
    });
    told.await.map_err(|_| {
        StoreError::new(StoreFault::Down, "cannot start a lock keeper: its thread ended at once")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Loss;
    use crate::store::memory::MemoryStore;

    async fn seat() -> KeeperSeat {
        let store = Arc::new(MemoryStore::new());
        KeeperSeat::start("main", store, "test", Duration::ZERO, true).await.expect("a keeper")
    }

    fn ask(key: &str, wait: Duration) -> AcquireLock {
        let policy = LockPolicy { wait, ..LockPolicy::default() };
        AcquireLock { key: key.into(), policy }
    }

    #[actix::test]
    async fn an_actor_is_given_a_lock_through_the_mailbox() {
        let seat = seat().await;
        let keeper = seat.keeper();
        let guard = keeper.send(ask("a", Duration::ZERO)).await.expect("alive").expect("free");
        let state = keeper.send(InspectLock("a".into())).await.expect("alive").expect("an answer");
        assert_eq!(state.expect("a holder").fence, guard.fence());
        let busy = keeper.send(ask("a", Duration::ZERO)).await.expect("alive");
        assert!(matches!(busy, Err(LockError::Busy { .. })));
        assert!(keeper.send(ForceRelease("a".into())).await.expect("alive").expect("an answer"));
        drop(keeper.send(ask("a", Duration::ZERO)).await.expect("alive").expect("free"));
        seat.stop();
    }

    #[actix::test]
    async fn the_thread_of_a_seat_that_nobody_stopped_ends_with_it() {
        let seat = seat().await;
        let thread = seat.thread.0.as_ref().expect("it has one").handle();
        assert!(thread.spawn(async {}));
        drop(seat);
        let ended = async {
            while thread.spawn(async {}) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), ended).await.expect("it ends");
    }

    #[actix::test]
    async fn a_thread_without_a_runtime_is_given_a_lock() {
        let seat = seat().await;
        let locks = seat.locks().clone();
        let thread = std::thread::spawn(move || {
            let asks = async { locks.acquire("a").wait(Duration::from_secs(1)).await };
            block_on(asks).map(|guard| guard.fence())
        });
        let fence = tokio::task::spawn_blocking(|| thread.join()).await.expect("no panic");
        fence.expect("no panic").expect("free");
        seat.stop();
    }

    #[actix::test]
    async fn a_thread_without_a_runtime_sees_who_has_a_lock_takes_it_and_learns_of_its_loss() {
        let seat = seat().await;
        let locks = seat.locks().clone();
        let guard = locks.acquire("a").hold_max(Duration::from_millis(300)).await.expect("free");
        let thread = std::thread::spawn(move || {
            block_on(async {
                let seen = locks.inspect("a").await.expect("an answer");
                (seen.is_some(), guard.lost().await, locks.force_release("a").await)
            })
        });
        let told = tokio::task::spawn_blocking(|| thread.join()).await.expect("no panic");
        let (is_held, loss, forced) = told.expect("no panic");
        assert_eq!((is_held, loss, forced.ok()), (true, Loss::HoldMax, Some(true)));
        seat.stop();
    }

    #[cfg(feature = "redis")]
    #[actix::test]
    async fn a_thread_without_a_runtime_is_told_that_redis_is_away() {
        use crate::store::LockStore;
        use crate::store::redis::{RedisSettings, RedisStore};
        let mut settings = RedisSettings::new("main", "redis://127.0.0.1:1");
        settings.deadline = Duration::from_millis(100);
        let store = RedisStore::new(settings).expect("settings");
        let keeper = Keeper::new(Handle::current(), store.clock());
        let locks = Locks::new(Arc::new(store), keeper, "test");
        let thread = std::thread::spawn(move || {
            let (seen, forced) = (locks.inspect("a"), locks.force_release("a"));
            (block_on(seen).map(drop), block_on(forced).map(drop))
        });
        let told = tokio::task::spawn_blocking(|| thread.join()).await.expect("no panic");
        let (seen, forced) = told.expect("no panic");
        for error in [seen.expect_err("nobody is there"), forced.expect_err("nobody is there")] {
            assert_eq!(error.fault, StoreFault::Down, "{error}");
        }
    }

    /// A runtime without timers or tokio, as a thread of the user's may have.
    fn block_on<F: Future>(future: F) -> F::Output {
        struct Unpark(std::thread::Thread);
        impl std::task::Wake for Unpark {
            fn wake(self: Arc<Self>) {
                self.0.unpark();
            }
        }
        let waker = Arc::new(Unpark(std::thread::current())).into();
        let mut context = std::task::Context::from_waker(&waker);
        let mut future = std::pin::pin!(future);
        loop {
            if let std::task::Poll::Ready(output) = future.as_mut().poll(&mut context) {
                return output;
            }
            std::thread::park();
        }
    }

    #[actix::test]
    async fn a_keeper_that_died_is_made_anew_and_loses_nothing() {
        struct Panic;
        impl Message for Panic {
            type Result = ();
        }
        impl Handler<Panic> for LockKeeper {
            type Result = ();
            fn handle(&mut self, _: Panic, _: &mut Self::Context) {
                panic!("on purpose");
            }
        }
        let seat = seat().await;
        let keeper = seat.keeper();
        let guard = keeper.send(ask("a", Duration::ZERO)).await.expect("alive").expect("free");
        keeper.send(Panic).await.expect_err("it died");
        while keeper.connected() {
            tokio::task::yield_now().await;
        }
        let state = seat.keeper().send(InspectLock("a".into())).await.expect("alive");
        assert_eq!(state.expect("an answer").expect("a holder").fence, guard.fence());
        assert_eq!(guard.loss(), None);
        seat.stop();
    }
}
