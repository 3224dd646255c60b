//! One connection that heals itself, and calls that end in time.
//!
//! Owns the deadline of every call, what is tried again within it, and the one warning a second
//! that a dead server is worth. What is sent must be safe to repeat.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use ::redis::{Cmd, ErrorKind, Pipeline, RedisError, Value};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{sleep, timeout, timeout_at};

use super::RedisSettings;
use super::address::{Address, Connection};
use super::faults::{Meaning, meaning};
use super::scripts::{Code, with_text};
use crate::store::{StoreError, StoreFault, StoreState};
use crate::telemetry::{self, Seldom};

/// Between two tries of one call.
const RETRY_PAUSE: Duration = Duration::from_millis(20);
/// Between two tries to connect, doubled up to the second.
const CONNECT_PAUSE_MIN: Duration = Duration::from_millis(50);
const CONNECT_PAUSE_MAX: Duration = Duration::from_secs(1);
/// What connecting has at the least, whatever a call has: it goes on when nobody waits for it any more, and needs several
/// round trips.
const CONNECT_TIME_MIN: Duration = Duration::from_secs(3);

#[derive(Clone)]
pub(super) struct Link(Arc<Shared>);

struct Shared {
    name: String,
    address: Arc<Address>,
    deadline: Duration,
    runtime: OnceLock<Handle>,
    phase: watch::Sender<Phase>,
    is_connecting: AtomicBool,
    number_next: AtomicU64,
    warned: Arc<Seldom>,
    /// What fails, by what was tried; until the same was answered, or a probe was: what takes no memory is answered by a
    /// server that is full.
    failing: Mutex<BTreeMap<String, String>>,
    is_failing: AtomicBool,
}

/// What the connection is up to.
#[derive(Clone)]
enum Phase {
    /// None, with what was last heard.
    Down(String),
    /// None, and trying again is of no use.
    Refused(String),
    /// Open.
    Up(Arc<Open>),
}

struct Open {
    number: u64,
    connection: Connection,
    began: Instant,
    /// Milliseconds from `began` to the last answer.
    heard: AtomicU64,
}

/// Why one try of a call failed.
#[derive(Clone)]
pub(super) enum Failed {
    /// It may work within the deadline.
    Now(String),
    /// It will not.
    ForGood(StoreError),
    /// The server does not know the script by its hash.
    Unknown,
}

impl Link {
    pub(super) fn new(settings: &RedisSettings, address: Arc<Address>) -> Self {
        Self::with(settings.name.clone(), settings.deadline, address, Arc::default())
    }

    /// Another connection of the same store; the two have one warning a second together.
    pub(super) fn another(&self) -> Self {
        let Shared { name, deadline, address, warned, .. } = &*self.0;
        Self::with(name.clone(), *deadline, address.clone(), warned.clone())
    }

    fn with(name: String, deadline: Duration, address: Arc<Address>, warned: Arc<Seldom>) -> Self {
        Self(Arc::new(Shared {
            name,
            address,
            deadline,
            runtime: OnceLock::new(),
            phase: watch::Sender::new(Phase::Down("not connected yet".into())),
            is_connecting: AtomicBool::new(false),
            number_next: AtomicU64::new(1),
            warned,
            failing: Mutex::default(),
            is_failing: AtomicBool::new(false),
        }))
    }

    /// Opens connections on `runtime` from now on.
    pub(super) fn drive_on(&self, runtime: &Handle) {
        // The first one stays: connections must not move between runtimes.
        let _ = self.0.runtime.set(runtime.clone());
    }

    pub(super) fn is_cluster(&self) -> bool {
        self.0.address.is_cluster()
    }

    pub(super) fn state(&self) -> StoreState {
        match &*self.0.phase.borrow() {
            // A server that is full is up, and keeps nothing all the same.
            Phase::Up(_) => self.fault(),
            Phase::Down(text) | Phase::Refused(text) => StoreState::Down(text.clone()),
        }
    }

    /// When a call that begins now has ended, with all that belongs to it.
    pub(super) fn until(&self) -> Instant {
        Instant::now() + self.0.deadline
    }

    /// Calls a script by its hash, with its text where the server does not know it.
    pub(super) async fn run(
        &self,
        what: &str,
        code: &Code,
        command: Cmd,
    ) -> Result<Value, StoreError> {
        self.run_until(self.until(), what, code, command).await
    }

    /// The same as part of a call that ends at `until`.
    pub(super) async fn run_until(
        &self,
        until: Instant,
        what: &str,
        code: &Code,
        command: Cmd,
    ) -> Result<Value, StoreError> {
        let answer = match self.attempt(until, what, &command).await {
            Err(Failed::Unknown) => self.attempt(until, what, &with_text(&command, code)).await,
            other => other,
        };
        answer.map_err(|failed| self.0.down(what, failed))
    }

    /// Sends a command that is safe to repeat.
    pub(super) async fn send(&self, what: &str, command: &Cmd) -> Result<Value, StoreError> {
        let answer = self.attempt(self.until(), what, command).await;
        answer.map_err(|failed| self.0.down(what, failed))
    }

    /// Sends what the server may refuse without being down for that.
    pub(super) async fn try_send(&self, what: &str, command: &Cmd) -> Result<Value, StoreError> {
        let answer = self.attempt(self.until(), what, command).await;
        answer.map_err(|failed| self.0.error_of(what, failed))
    }

    /// Sends commands together over one connection to where `key` lives, as part of calls that end at `until`. Not tried
    /// again: they belong together.
    pub(super) async fn send_all(
        &self,
        until: Instant,
        what: &str,
        key: &[u8],
        pipeline: &Pipeline,
    ) -> Result<Vec<Value>, StoreError> {
        let sent = timeout_at(until.into(), async {
            let open = self.0.open().await?;
            let mut connection = open.connection.clone();
            let silent = Silent::new(&self.0, &open);
            let answers = connection.send_all(key, pipeline).await;
            silent.disarm();
            let answers: Result<Vec<Value>, RedisError> =
                answers.and_then(|answers| answers.into_iter().map(Value::extract_error).collect());
            open.hear();
            answers.map_err(|error| self.0.judge(what, &open, &error))
        });
        let sent = sent.await.unwrap_or_else(|_| Err(Failed::Now(self.0.silence())));
        sent.map_err(|failed| self.0.down(what, failed))
    }

    /// Calls a script once, when the connection is open; `make` is asked for the call right before it is sent, so that it
    /// leaves out what nobody wants any more. `Ok(None)`: that was everything.
    pub(super) async fn run_once(
        &self,
        until: Instant,
        what: &str,
        code: &Code,
        mut make: impl FnMut() -> Option<Cmd> + Send,
    ) -> Result<Option<Value>, Failed> {
        let once = async {
            let open = self.0.open().await?;
            let Some(command) = make() else { return Ok(None) };
            let answer = match self.0.once(what, &open, &command).await {
                Err(Failed::Unknown) => {
                    let Some(command) = make() else { return Ok(None) };
                    self.0.once(what, &open, &with_text(&command, code)).await
                }
                answer => answer,
            };
            answer.map(Some)
        };
        let answer = timeout_at(until.into(), once).await;
        answer.unwrap_or_else(|_| Err(Failed::Now(self.0.silence())))
    }

    /// Says of a call that it failed for good.
    pub(super) fn down(&self, what: &str, failed: Failed) -> StoreError {
        self.0.down(what, failed)
    }

    /// Whatever messages ask for was answered.
    pub(super) fn is_well(&self) {
        if self.0.is_failing.load(Ordering::Relaxed) {
            let mut failing = self.0.failing();
            failing.clear();
            self.0.is_failing.store(false, Ordering::Relaxed);
        }
    }

    /// What fails, if anything does; a connection that nobody asked for yet does not.
    pub(super) fn fault(&self) -> StoreState {
        if !self.0.is_failing.load(Ordering::Relaxed) {
            return StoreState::Up;
        }
        let fault = self.0.failing().values().next().cloned();
        fault.map_or(StoreState::Up, StoreState::Down)
    }

    /// What there is to say of a call that was not answered.
    pub(super) fn silence(&self) -> Failed {
        Failed::Now(self.0.silence())
    }

    /// Runs `work` where the connections are driven.
    pub(super) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.0.runtime().spawn(work);
    }

    /// Tries until then.
    async fn attempt(&self, until: Instant, what: &str, command: &Cmd) -> Result<Value, Failed> {
        let until = tokio::time::Instant::from(until);
        let mut heard = String::new();
        loop {
            let once = async {
                let open = self.0.open().await?;
                self.0.once(what, &open, command).await
            };
            match timeout_at(until, once).await {
                Ok(Err(Failed::Now(text))) => heard = text,
                Ok(done) => return done,
                Err(_) if heard.is_empty() => return Err(Failed::Now(self.0.silence())),
                Err(_) => return Err(Failed::Now(heard)),
            }
            if timeout_at(until, sleep(RETRY_PAUSE)).await.is_err() {
                return Err(Failed::Now(heard));
            }
        }
    }
}

impl Shared {
    async fn once(&self, what: &str, open: &Open, command: &Cmd) -> Result<Value, Failed> {
        let mut connection = open.connection.clone();
        let silent = Silent::new(self, open);
        let answer = connection.send(command).await;
        silent.disarm();
        match answer.and_then(Value::extract_error) {
            Ok(value) => {
                open.hear();
                if self.is_failing.load(Ordering::Relaxed) {
                    let mut failing = self.failing();
                    failing.remove(what);
                    self.is_failing.store(!failing.is_empty(), Ordering::Relaxed);
                }
                Ok(value)
            }
            Err(error) => Err(self.judge(what, open, &error)),
        }
    }

    fn failing(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.failing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn judge(&self, what: &str, open: &Open, error: &RedisError) -> Failed {
        let text = error.to_string();
        let meaning = meaning(error);
        if let Meaning::Later { reconnect: true } | Meaning::Refusal { reconnect: true, .. } =
            meaning
        {
            self.forget(open.number, &text);
        }
        match meaning {
            Meaning::ScriptUnknown => Failed::Unknown,
            Meaning::Later { .. } => Failed::Now(text),
            Meaning::Refusal { fault, advice, .. } => {
                let name = &self.name;
                let text = format!("cannot {what} in store `{name}`: {text}; {advice}");
                Failed::ForGood(StoreError::new(fault, text))
            }
        }
    }

    /// The open connection, or the next one.
    async fn open(self: &Arc<Self>) -> Result<Arc<Open>, Failed> {
        let mut phase = self.phase.subscribe();
        if let Phase::Up(open) = &*phase.borrow_and_update() {
            return Ok(open.clone());
        }
        self.connect();
        loop {
            tokio::select! {
                // The sender lives in `self`, so this never fails.
                _ = phase.changed() => {}
                // Whoever connected may have given up just before we came.
                () = sleep(CONNECT_PAUSE_MIN) => self.connect(),
            }
            match &*phase.borrow_and_update() {
                Phase::Up(open) => return Ok(open.clone()),
                Phase::Refused(text) => {
                    let text = format!(
                        "cannot connect to store `{}`: {text}; check its user and password",
                        self.name
                    );
                    return Err(Failed::ForGood(StoreError::new(StoreFault::Refused, text)));
                }
                Phase::Down(_) => {}
            }
        }
    }

    /// Starts connecting, unless somebody does already.
    fn connect(self: &Arc<Self>) {
        if self.is_connecting.swap(true, Ordering::AcqRel) {
            return;
        }
        let connecting = Connecting(self.clone());
        self.runtime().spawn(async move { connecting.0.connecting().await });
    }

    fn runtime(&self) -> Handle {
        self.runtime.get().cloned().unwrap_or_else(Handle::current)
    }

    /// Connects, as long as somebody waits for it.
    async fn connecting(&self) {
        let mut pause = CONNECT_PAUSE_MIN;
        let limit = self.deadline.max(CONNECT_TIME_MIN);
        loop {
            let text = match timeout(limit, self.address.connect()).await {
                Ok(Ok(connection)) => {
                    let number = self.number_next.fetch_add(1, Ordering::Relaxed);
                    let (began, heard) = (Instant::now(), AtomicU64::new(0));
                    let open = Arc::new(Open { number, connection, began, heard });
                    self.is_connecting.store(false, Ordering::Release);
                    self.phase.send_replace(Phase::Up(open));
                    return;
                }
                Ok(Err(error)) if is_refusal(&error) => {
                    self.is_connecting.store(false, Ordering::Release);
                    self.phase.send_replace(Phase::Refused(error.to_string()));
                    return;
                }
                Ok(Err(error)) => explained(&error),
                Err(_) => format!("no connection within {limit:?}"),
            };
            self.phase.send_replace(Phase::Down(text));
            if self.phase.receiver_count() == 0 {
                return;
            }
            sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
            pause = (pause * 2).min(CONNECT_PAUSE_MAX);
        }
    }

    /// Gives up a connection, unless it was replaced already.
    fn forget(&self, number: u64, text: &str) {
        self.phase.send_if_modified(|phase| match phase {
            Phase::Up(open) if open.number == number => {
                *phase = Phase::Down(text.to_owned());
                true
            }
            _ => false,
        });
    }

    fn silence(&self) -> String {
        match &*self.phase.borrow() {
            Phase::Up(_) => format!("no answer within {:?}", self.deadline),
            Phase::Down(text) | Phase::Refused(text) => text.clone(),
        }
    }

    /// Says so, once a second at most; the fault of one key alone is left to whoever asked for it.
    fn down(&self, what: &str, failed: Failed) -> StoreError {
        let error = self.error_of(what, failed);
        if !error.is_outage() {
            return error;
        }
        let mut failing = self.failing();
        failing.insert(what.to_owned(), error.text.clone());
        self.is_failing.store(true, Ordering::Relaxed);
        drop(failing);
        if let Some(unsaid) = self.warned.may_say() {
            telemetry::store_silent(&self.name, &error, unsaid);
        }
        error
    }

    fn error_of(&self, what: &str, failed: Failed) -> StoreError {
        match failed {
            Failed::ForGood(error) => error,
            Failed::Now(text) => StoreError::new(
                StoreFault::Down,
                format!("cannot {what} in store `{}`: {text}; is Redis up?", self.name),
            ),
            Failed::Unknown => StoreError::new(
                StoreFault::Down,
                format!("cannot {what} in store `{}`: a script was flushed meanwhile", self.name),
            ),
        }
    }
}

impl Open {
    fn hear(&self) {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.heard.store(now, Ordering::Relaxed);
    }
}

/// Notices a call that was given up without an answer.
struct Silent<'a> {
    shared: &'a Shared,
    open: &'a Open,
    /// What was heard before it.
    asked: u64,
    asked_at: Instant,
    armed: bool,
}

impl<'a> Silent<'a> {
    fn new(shared: &'a Shared, open: &'a Open) -> Self {
        let (asked, asked_at) = (open.heard.load(Ordering::Relaxed), Instant::now());
        Self { shared, open, asked, asked_at, armed: true }
    }

    fn disarm(mut self) {
        self.armed = false;
    }
}

impl Drop for Silent<'_> {
    /// A connection on which nobody heard anything for as long as this call waited may be half
    /// open for hours: the next call gets a new one. A caller that merely gave up early does not
    /// count, however long nobody had asked anything before; who stood in a queue first waits less than the whole deadline.
    fn drop(&mut self) {
        let (heard, deadline) = (self.open.heard.load(Ordering::Relaxed), self.shared.deadline);
        let quiet = self.open.began.elapsed().saturating_sub(Duration::from_millis(heard));
        let is_quiet = heard == self.asked && quiet >= deadline.mul_f64(0.9);
        if self.armed && is_quiet && self.asked_at.elapsed() >= deadline / 2 {
            let text = format!("no answer within {:?}", self.shared.deadline);
            self.shared.forget(self.open.number, &text);
        }
    }
}

/// Whoever connects may be dropped with its runtime; then somebody else must be able to.
struct Connecting(Arc<Shared>);

impl Drop for Connecting {
    fn drop(&mut self) {
        self.0.is_connecting.store(false, Ordering::Release);
    }
}

/// What the client says of files that do not fit each other names none of them.
fn explained(error: &RedisError) -> String {
    match error.kind() {
        ErrorKind::InvalidClientConfig => {
            format!("{error}; check tls.ca, and that tls.cert and tls.key belong together")
        }
        _ => error.to_string(),
    }
}

fn is_refusal(error: &RedisError) -> bool {
    error.kind() == ErrorKind::AuthenticationFailed
        || matches!(error.code(), Some("NOAUTH" | "WRONGPASS" | "NOPERM"))
}
