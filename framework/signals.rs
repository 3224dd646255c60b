//! When a service has to stop: by word, or by a signal.
//!
//! Owns the count of signals: the first one stops the services of this process that heed them, any
//! other ends the process at once, whatever it does by then. Stops nothing itself.

use std::sync::OnceLock;

use tokio::sync::watch;

/// How many signals came; `None` where they cannot be listened to.
static CAME: OnceLock<Option<watch::Sender<u32>>> = OnceLock::new();

/// A service that the first signal stops, also while it starts. Kept until it has: a signal that nobody heeds ends the
/// process, as it would if nobody had ever listened.
#[derive(Clone)]
pub(crate) struct Heed(watch::Receiver<u32>);

impl Heed {
    pub(crate) fn begin() -> Option<Self> {
        let came = CAME.get_or_init(listen).as_ref()?;
        if came.receiver_count() == 0 {
            // What stopped earlier services is no reason to end this one's process.
            came.send_replace(0);
        }
        Some(Self(came.subscribe()))
    }
}

/// Waits for the word, or for SIGTERM or Ctrl-C where they are heeded.
pub(crate) async fn wait_for_stop(told: impl Future<Output = ()>, heed: Option<Heed>) {
    let Some(Heed(mut came)) = heed else { return told.await };
    tokio::select! {
        () = told => {}
        _ = came.wait_for(|came| *came > 0) => {}
    }
}

/// Listens on a thread of its own: it outlives every service, so that a second signal ends a
/// process that hangs after its service has stopped.
fn listen() -> Option<watch::Sender<u32>> {
    let (came, _) = watch::channel(0);
    let counted = came.clone();
    let (ready, is_ready) = std::sync::mpsc::sync_channel(1);
    let thread = std::thread::Builder::new().name(String::from("redeliver-signals"));
    let spawned = thread.spawn(move || {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let Ok(runtime) = runtime.enable_all().build() else { return };
        runtime.block_on(async move {
            let Some(mut signals) = Signals::listen() else { return };
            let _ = ready.send(());
            loop {
                let number = signals.next().await;
                let is_first = *counted.borrow() == 0;
                if !is_first || counted.receiver_count() == 0 {
                    // As a shell reports a process that a signal ended.
                    std::process::exit(128 + number);
                }
                counted.send_replace(1);
            }
        });
    });
    spawned.ok()?;
    // Nothing comes where the thread gave up.
    is_ready.recv().ok().map(|()| came)
}

#[cfg(unix)]
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn listen() -> Option<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let terminate = signal(SignalKind::terminate()).ok()?;
        let interrupt = signal(SignalKind::interrupt()).ok()?;
        Some(Self { terminate, interrupt })
    }

    /// The number of the next signal.
    async fn next(&mut self) -> i32 {
        tokio::select! {
            _ = self.terminate.recv() => 15,
            _ = self.interrupt.recv() => 2,
        }
    }
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn listen() -> Option<Self> {
        Some(Self)
    }

    async fn next(&mut self) -> i32 {
        let _ = tokio::signal::ctrl_c().await;
        2
    }
}
