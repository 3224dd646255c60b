//! A way to a server that a test can make slow, in each direction.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

/// Forwards connections to a port of this machine.
pub(crate) struct Proxy {
    port: u16,
    requests: Arc<AtomicU64>,
    answers: Arc<AtomicU64>,
    accepting: AbortHandle,
}

impl Proxy {
    pub(crate) async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let own = listener.local_addr().expect("it is bound").port();
        let (requests, answers) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let (there, back) = (Arc::clone(&requests), Arc::clone(&answers));
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else { continue };
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = server.into_split();
                tokio::spawn(carry(from_client, to_server, Arc::clone(&there)));
                tokio::spawn(carry(from_server, to_client, Arc::clone(&back)));
            }
        });
        Self { port: own, requests, answers, accepting: accepting.abort_handle() }
    }

    pub(crate) fn redis_url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// What clients say from now on arrives so much later.
    pub(crate) fn delay_requests(&self, delay: Duration) {
        self.requests.store(delay.as_millis() as u64, Ordering::SeqCst);
    }

    /// What the server says from now on arrives so much later.
    pub(crate) fn delay_answers(&self, delay: Duration) {
        self.answers.store(delay.as_millis() as u64, Ordering::SeqCst);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// One direction of one connection; nothing is lost or put out of order.
async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, delay: Arc<AtomicU64>) {
    let (under_way, mut arriving) = mpsc::channel::<(Instant, Vec<u8>)>(4096);
    let reading = async move {
        loop {
            let mut bytes = vec![0; 16 * 1024];
            let Ok(count @ 1..) = from.read(&mut bytes).await else { return };
            bytes.truncate(count);
            let due = Instant::now() + Duration::from_millis(delay.load(Ordering::SeqCst));
            if under_way.send((due, bytes)).await.is_err() {
                return;
            }
        }
    };
    let writing = async move {
        while let Some((due, bytes)) = arriving.recv().await {
            sleep_until(due).await;
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(reading, writing);
}
