//! Blocking handlers: actors on threads of their own, by actix's `SyncArbiter`.
//!
//! Owns the threads: one arbiter each, so that a thread that ended by a panic is known and made
//! anew while the others go on. They are fed through their mailboxes, never more than one message
//! each: what waits, waits with its consumer.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Context as TaskContext;

use actix::prelude::*;
use tokio::sync::{Semaphore, oneshot};

use super::handlers::{Host, sit_down};
use super::panics::Note;
use super::pump::Station;
use super::seat::Seat;
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
        let pool = Rc::new(Pool { idle, permits, factory: Arc::clone(&self.factory) });
        let scope = Arc::clone(&seat.scope);
        sit_down(seat, &|| Gate, Arc::clone(&self.codecs), Threads { pool, scope });
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
}

impl<A: Actor<Context = SyncContext<A>>> Worker<A> {
    fn start<F: Fn() -> A + Send + Sync + 'static>(factory: &Arc<F>) -> Self {
        let (factory, note) = (Arc::clone(factory), Note::default());
        let watched = note.clone();
        let address = SyncArbiter::start(1, move || {
            watched.watch_this_thread();
            factory()
        });
        Self { address, note }
    }
}

struct Pool<F, A: Actor> {
    idle: RefCell<Vec<Worker<A>>>,
    permits: Semaphore,
    factory: Arc<F>,
}

struct Threads<F, A: Actor> {
    pool: Rc<Pool<F, A>>,
    scope: Arc<Scope>,
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
        let scope = Arc::clone(&self.scope);
        actix_rt::spawn(async move {
            if let Some(observer) = &scope.observer {
                observer.is_away(true);
            }
            let _ = reply.send(on_a_thread(&pool, delivery, &scope).await);
            if let Some(observer) = &scope.observer {
                observer.is_away(false);
            }
        });
        Running::Watched(answer)
    }

    fn poll(&mut self, _: &mut Gate, _: &mut Context<Gate>, _: &mut TaskContext<'_>) {}
}

async fn on_a_thread<F, A, T>(
    pool: &Pool<F, A>,
    delivery: Delivery<T>,
    scope: &Scope,
) -> Result<Handled, String>
where
    F: Fn() -> A + Send + Sync + 'static,
    A: Actor<Context = SyncContext<A>> + Handler<Delivery<T>, Result = Handled>,
    T: Send + 'static,
{
    // Never closed, and a permit means that a worker is idle.
    let _permit = pool.permits.acquire().await.map_err(|error| error.to_string())?;
    let idle = pool.idle.borrow_mut().pop();
    let worker = idle.unwrap_or_else(|| Worker::start(&pool.factory));
    let (worker, answer) = match worker.address.send(delivery).await {
        Ok(handled) => (worker, Ok(handled)),
        // The thread is gone, and the actor with it.
        Err(_) => {
            let panic = worker.note.take();
            let panic = panic.unwrap_or_else(|| String::from("the handler's thread ended"));
            scope.metrics.restarts.inc();
            telemetry::handler_restarted(scope.name(), "it panicked over a message");
            (Worker::start(&pool.factory), Err(panic))
        }
    };
    pool.idle.borrow_mut().push(worker);
    answer
}
