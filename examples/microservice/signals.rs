//! SIGTERM and Ctrl-C, from before the service starts until it has stopped.

use std::io;

use actix_web::dev::ServerHandle;

pub(crate) struct Signals {
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    #[cfg(unix)]
    pub(crate) fn listen() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { terminate: signal(SignalKind::terminate())? })
    }

    #[cfg(not(unix))]
    pub(crate) fn listen() -> io::Result<Self> {
        Ok(Self {})
    }

    /// Waits for the next.
    pub(crate) async fn next(&mut self) {
        #[cfg(unix)]
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
        #[cfg(not(unix))]
        let _ = tokio::signal::ctrl_c().await;
    }

    /// Lets the server finish what it answers when the first comes; the second ends the process at once.
    pub(crate) async fn stop(mut self, server: ServerHandle) {
        self.next().await;
        let stopped = server.stop(true);
        tokio::select! {
            () = stopped => self.next().await,
            () = self.next() => {}
        }
        std::process::exit(1);
    }
}
