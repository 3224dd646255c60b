//! Blocking handlers: actors on threads of their own, by actix's `SyncArbiter`.
//!
//! Owns the threads: one arbiter each, so that a thread that ended by a panic is known and made
//! anew while the others go on. A panic while the actor is made is nobody's message's fault: it is a start that failed. They are fed through their mailboxes, never more than one message
//! each: what waits, waits with its consumer.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Context as TaskContext;

use actix::prelude::*;
use tokio::sync::{Semaphore, oneshot};

use super::handlers::{Host, sit_down};
use super::panics::Note;
use super::patience::Patience;
use super::pump::Station;
use super::seat::{ExitReason, Seat};
use crate::message::{Delivery, Handled};
use crate::pipeline::{Running, Scope, SharedCodecs};
use crate::telemetry;

/// Makes the threads of a blocking handler.
pub(super) struct BlockingHost<F, A, T> {
    threads: usize,
    factory: Arc<F>,
    codecs: SharedCodecs<T>,
    types: PhantomData<fn() -> A>,
}

impl<F, A, T> BlockingHost<F, A, T> {
    pub(super) fn new(threads: usize, factory: F, codecs: SharedCodecs<T>) -> Self {
        let factory = Arc::new(factory);
        Self { threads: threads.max(1), factory, codecs, types: PhantomData }
    }
}

impl<F, A, T> Host for BlockingHost<F, A, T>
where
    F: Fn() -> A + Send + Sync + 'static,
    A: Actor<Context = SyncContext<A>> + Handler<Delivery<T>, Result = Handled>,
    T: Send + 'static,
{
    fn start(&self, seat: Arc<Seat>) {
        let idle = (0..self.threads).map(|_| Worker::start(&self.factory)).collect();
        let (idle, permits) = (RefCell::new(idle), Semaphore::new(self.threads));
        let (patience, factory) = (RefCell::default(), Arc::clone(&self.factory));
        let pool = Rc::new(Pool { idle, permits, factory, patience, seat: Arc::clone(&seat) });
        sit_down(seat, &|| Gate, Arc::clone(&self.codecs), Threads { pool });
    }
}

/// The actor that stands where a pump needs one; the user's actors live on their threads.
struct Gate;

impl Actor for Gate {
    type Context = Context<Self>;
}

/// One thread with one actor.
struct Worker<A: Actor> {
    address: Addr<A>,
    note: Note,
    /// Told when its actor is there.
    made: Option<oneshot::Receiver<()>>,
    /// Its actor could not be made, and the thread is gone.
    is_dead: Arc<AtomicBool>,
}

impl<A: Actor<Context = SyncContext<A>>> Worker<A> {
    fn start<F: Fn() -> A + Send + Sync + 'static>(factory: &Arc<F>) -> Self {
        let (factory, note) = (Arc::clone(factory), Note::default());
        let (tell, made) = oneshot::channel();
        let (tell, is_dead) = (Mutex::new(Some(tell)), Arc::new(AtomicBool::new(false)));
        let (watched, dies) = (note.clone(), Arc::clone(&is_dead));
        let address = SyncArbiter::start(1, move || {
            watched.watch_this_thread();
            let tell = tell.lock().unwrap_or_else(PoisonError::into_inner).take();
            let mut making = Making { ends_thread: true, dies: &dies };
            let actor = factory();
            making.ends_thread = false;
            if let Some(tell) = tell {
                let _ = tell.send(());
            }
            actor
        });
        Self { address, note, made: Some(made), is_dead }
    }

    /// What it said when it panicked.
    fn last_words(&self) -> String {
        self.note.take().unwrap_or_else(|| String::from("the handler's thread ended"))
    }

    /// Whether it has its actor, for the first time or again. Nothing may be sent to a thread that is gone: actix
    /// would panic over it.
    async fn is_made(&mut self) -> bool {
        let made = match &mut self.made {
            Some(made) => made.await.is_ok(),
            None => true,
        };
        self.made = None;
        made && !self.is_dead.load(Ordering::Acquire)
    }
}

/// Notes that a thread ends because its actor could not be made.
struct Making<'a> {
    ends_thread: bool,
    dies: &'a AtomicBool,
}

impl Drop for Making<'_> {
    fn drop(&mut self) {
        if self.ends_thread {
            self.dies.store(true, Ordering::Release);
        }
    }
}

struct Pool<F, A: Actor> {
    idle: RefCell<Vec<Worker<A>>>,
    permits: Semaphore,
    factory: Arc<F>,
    /// When to make an actor again that could not be made.
    patience: RefCell<Patience>,
    seat: Arc<Seat>,
}

struct Threads<F, A: Actor> {
    pool: Rc<Pool<F, A>>,
}

impl<F, A, T> Station<Gate, T> for Threads<F, A>
where
    F: Fn() -> A + Send + Sync + 'static,
    A: Actor<Context = SyncContext<A>> + Handler<Delivery<T>, Result = Handled>,
    T: Send + 'static,
{
    const CAN_ABORT: bool = false;
    // The actor that panicked was one of the threads', and its thread is made anew by the pool.
    const BREAKS: bool = false;

    fn call(&mut self, _: &mut Gate, _: &mut Context<Gate>, delivery: Delivery<T>) -> Running {
        let pool = Rc::clone(&self.pool);
        let (reply, answer) = oneshot::channel();
        actix_rt::spawn(async move {
            if let Some(answer) = on_a_thread(&pool, delivery).await {
                let _ = reply.send(answer);
            }
        });
        Running::Watched(answer)
    }

    fn poll(&mut self, _: &mut Gate, _: &mut Context<Gate>, _: &mut TaskContext<'_>) {}
}

/// What the handler answered; `None` if no actor could be made for it: then its message starts again, uncounted.
async fn on_a_thread<F, A, T>(
    pool: &Pool<F, A>,
    delivery: Delivery<T>,
) -> Option<Result<Handled, String>>
where
    F: Fn() -> A + Send + Sync + 'static,
    A: Actor<Context = SyncContext<A>> + Handler<Delivery<T>, Result = Handled>,
    T: Send + 'static,
{
    let scope = &pool.seat.scope;
    // Never closed, and a permit means that a worker is idle, or that one may be made.
    let permit = pool.permits.acquire().await.ok()?;
    let away = Away::new(scope);
    let idle = pool.idle.borrow_mut().pop();
    let mut worker = idle.unwrap_or_else(|| Worker::start(&pool.factory));
    let answer = match worker.is_made().await {
        true => worker.address.send(delivery).await.ok(),
        false => None,
    };
    if answer.is_none() && worker.is_dead.load(Ordering::Acquire) {
        drop(away);
        // With its permit: nothing else is tried on this thread meanwhile.
        pool.rest(&worker.last_words()).await;
        drop(permit);
        return None;
    }
    pool.patience.borrow_mut().note_made();
    let answer = answer.ok_or_else(|| {
        // The thread is gone, and the actor with it.
        scope.metrics.restarts.inc();
        telemetry::handler_restarted(scope.name(), "it panicked over a message");
        let gone = std::mem::replace(&mut worker, Worker::start(&pool.factory));
        gone.last_words()
    });
    pool.idle.borrow_mut().push(worker);
    Some(answer)
}

impl<F, A: Actor> Pool<F, A> {
    /// Reports an actor that could not be made, and waits until one may be made again.
    async fn rest(&self, panic: &str) {
        let why = format!("the handler's factory panicked: {panic}");
        self.seat.report(ExitReason::NotMade(why));
        let delay = self.patience.borrow_mut().next_delay();
        tokio::time::sleep(delay).await;
    }
}

/// Tells a test that a message is where its clock does not reach.
struct Away<'a>(&'a Scope);

impl<'a> Away<'a> {
    fn new(scope: &'a Scope) -> Self {
        if let Some(observer) = &scope.observer {
            observer.is_away(true);
        }
        Self(scope)
    }
}

impl Drop for Away<'_> {
    fn drop(&mut self) {
        if let Some(observer) = &self.0.observer {
            observer.is_away(false);
        }
    }
}
