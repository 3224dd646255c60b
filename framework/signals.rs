//! When a service has to stop: by word, or by a signal.

use tokio::sync::watch;

/// Waits for the word, or for SIGTERM or Ctrl-C where `signals` are ours. From then on a second
/// signal ends the process at once.
pub(crate) async fn wait_for_stop(mut stopping: watch::Receiver<bool>, signals: bool) {
    // The sender lives as long as the service: this ends only by the word.
    let told = async move {
        let _ = stopping.wait_for(|stop| *stop).await;
    };
    if !signals {
        return told.await;
    }
    let Some(mut signal) = Signals::listen() else { return told.await };
    tokio::select! {
        () = told => {}
        _ = signal.next() => {}
    }
    actix_rt::spawn(async move {
        let number = signal.next().await;
        // As a shell reports a process that a signal ended.
        std::process::exit(128 + number);
    });
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
