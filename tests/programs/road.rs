//! A way to a server that a test can close for a while, as if the server were away.

use std::net::SocketAddr;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// Forwards connections to the server that a url names.
pub(crate) struct Road {
    pub(crate) url: String,
    is_open: watch::Sender<bool>,
    accepting: AbortHandle,
}

impl Road {
    pub(crate) async fn to(url: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let own = listener.local_addr().expect("it is bound");
        let (scheme, rest) = url.split_once("://").expect("a url has a scheme");
        let (authority, path) = rest.split_once('/').expect("the url has a path");
        let (user, host) = authority.rsplit_once('@').unwrap_or(("guest:guest", authority));
        let server = if host.contains(':') { host.to_owned() } else { format!("{host}:5672") };
        let (is_open, openness) = watch::channel(true);
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(forward(client, server.clone(), openness.clone()));
            }
        });
        let url = format!("{scheme}://{user}@{}/{path}", SocketAddr::to_string(&own));
        Self { url, is_open, accepting: accepting.abort_handle() }
    }

    /// Ends every connection, and every new one at once.
    pub(crate) fn close(&self) {
        self.is_open.send_replace(false);
    }

    pub(crate) fn open(&self) {
        self.is_open.send_replace(true);
    }
}

impl Drop for Road {
    fn drop(&mut self) {
        self.accepting.abort();
        self.close();
    }
}

async fn forward(mut client: TcpStream, server: String, mut openness: watch::Receiver<bool>) {
    if !*openness.borrow() {
        return;
    }
    let Ok(mut server) = TcpStream::connect(server).await else { return };
    tokio::select! {
        _ = openness.wait_for(|is_open| !is_open) => {}
        _ = copy_bidirectional(&mut client, &mut server) => {}
    }
}
