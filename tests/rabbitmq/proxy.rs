//! A way to the server that a test can cut, and on which it can hold back what the server says.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// Forwards connections to a server; everything is cut when it is dropped.
pub(crate) struct Proxy {
    pub(crate) url: String,
    /// What the server says is held back while this is true.
    deaf: watch::Sender<bool>,
    /// Raised to cut all connections that are open.
    cuts: Arc<watch::Sender<u32>>,
    accepting: AbortHandle,
}

impl Proxy {
    /// In front of the server that `url` names.
    pub(crate) async fn to(url: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let port = listener.local_addr().expect("it is bound").port();
        let (scheme, rest) = url.split_once("://").expect("a url has a scheme");
        let (authority, path) = rest.split_once('/').expect("the url has a path");
        let (user, host) = authority.rsplit_once('@').unwrap_or(("guest:guest", authority));
        let server = if host.contains(':') { host.to_owned() } else { format!("{host}:5672") };
        let (deaf, deafness) = watch::channel(false);
        let cuts = Arc::new(watch::channel(0).0);
        let cut = Arc::clone(&cuts);
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(forward(client, server.clone(), deafness.clone(), cut.subscribe()));
            }
        });
        let url = format!("{scheme}://{user}@127.0.0.1:{port}/{path}");
        Self { url, deaf, cuts, accepting: accepting.abort_handle() }
    }

    /// Whether what the server says is held back.
    pub(crate) fn hold_back(&self, deaf: bool) {
        self.deaf.send_replace(deaf);
    }

    /// Ends all connections that are open; what was held back is lost.
    pub(crate) fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut();
    }
}

async fn forward(
    client: TcpStream,
    server: String,
    deaf: watch::Receiver<bool>,
    mut cut: watch::Receiver<u32>,
) {
    let Ok(server) = TcpStream::connect(server).await else { return };
    let (client_reads, client_writes) = client.into_split();
    let (server_reads, server_writes) = server.into_split();
    let never = watch::channel(false).1;
    tokio::select! {
        // First: what is held back when it is cut is lost, even if it is let go in the same moment.
        biased;
        _ = cut.changed() => {}
        () = pump(client_reads, server_writes, never) => {}
        () = pump(server_reads, client_writes, deaf) => {}
    }
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut held: watch::Receiver<bool>) {
    let mut bytes = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        // An error means that nobody can hold anything back any more.
        let _ = held.wait_for(|held| !held).await;
        if to.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
}
