//! Redis servers of a test's own, as child processes on free ports, killed when they are dropped.

#![allow(dead_code)]

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use redeliver::store::Owner;
use redeliver::store::redis::{RedisSettings, RedisStore};

/// A running server, and the folder it writes into.
pub struct Server {
    pub port: u16,
    folder: tempfile::TempDir,
    arguments: Vec<String>,
    child: Child,
}

impl Server {
    /// A server without persistence.
    pub fn start() -> Self {
        Self::with(&[])
    }

    /// A server with more arguments, as on the command line.
    pub fn with(arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        Self::launch(free_port(), folder, arguments.iter().map(ToString::to_string).collect())
    }

    fn launch(port: u16, folder: tempfile::TempDir, arguments: Vec<String>) -> Self {
        let child = spawn(port, &folder, &arguments);
        wait_for(port);
        Self { port, folder, arguments, child }
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// A store on it, with keys of its own.
    pub fn store(&self) -> RedisStore {
        RedisStore::new(settings(&self.url())).expect("settings")
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal: `STOP`, `CONT`, `KILL`.
    pub fn signal(&self, signal: &str) {
        send_signal(self.pid(), signal);
    }

    /// Kills it and starts it again on its port, with what it had on disk.
    pub fn restart(&mut self) {
        self.kill();
        self.child = spawn(self.port, &self.folder, &self.arguments);
        wait_for(self.port);
    }

    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Runs one command and returns what `redis-cli` printed.
    pub fn cli(&self, arguments: &[&str]) -> String {
        cli(self.port, arguments)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.signal("CONT");
        self.kill();
    }
}

/// Runs blocking work of a test while its runtime goes on.
pub async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("no panic")
}

/// Settings with keys that no other test uses.
pub fn settings(url: &str) -> RedisSettings {
    let mut settings = RedisSettings::new("main", url);
    settings.prefix = format!("test-{}", Owner::new().as_str());
    settings
}

pub fn send_signal(pid: u32, signal: &str) {
    let sent = Command::new("kill").args([&format!("-{signal}"), &pid.to_string()]).output();
    sent.expect("kill runs");
}

pub fn cli(port: u16, arguments: &[&str]) -> String {
    let output = Command::new("redis-cli")
        .args(["-h", "127.0.0.1", "-p", &port.to_string()])
        .args(arguments)
        .output()
        .expect("redis-cli is installed");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Several commands over one connection.
fn cli_lines(port: u16, lines: &str) -> String {
    let mut child = Command::new("redis-cli")
        .args(["-h", "127.0.0.1", "-p", &port.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("redis-cli is installed");
    let mut input = child.stdin.take().expect("a pipe");
    input.write_all(lines.as_bytes()).expect("it reads");
    drop(input);
    let output = child.wait_with_output().expect("it ends");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// A port below those that the system gives to clients, so that nobody takes it meanwhile.
pub fn free_port() -> u16 {
    loop {
        let port = fastrand_port();
        // A cluster needs the port ten thousand above as well.
        let both = [port, port + 10_000]
            .iter()
            .all(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok());
        if both {
            return port;
        }
    }
}

fn fastrand_port() -> u16 {
    let id = redeliver::store::Owner::new();
    let hash = id.as_str().bytes().fold(std::process::id() as u64, |hash, byte| {
        hash.wrapping_mul(31).wrapping_add(u64::from(byte))
    });
    11_000 + (hash % 10_000) as u16
}

fn spawn(port: u16, folder: &tempfile::TempDir, arguments: &[String]) -> Child {
    let mut command = Command::new("redis-server");
    if let Some(file) = arguments.first().filter(|first| first.ends_with(".conf")) {
        command.arg(file);
    }
    let rest = arguments.iter().filter(|argument| !argument.ends_with(".conf"));
    command
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--daemonize", "no"])
        .args(["--save", "", "--appendonly", "no", "--repl-diskless-sync-delay", "0"])
        .arg("--dir")
        .arg(folder.path())
        .args(rest)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("redis-server is installed; see tests/servers/redis.sh install")
}

fn wait_for(port: u16) {
    let began = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(began.elapsed() < Duration::from_secs(10), "no server on port {port}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until `check` holds.
pub fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let began = Instant::now();
    while !check() {
        assert!(began.elapsed() < Duration::from_secs(30), "{what} did not come about");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Three masters that share the slots.
pub fn cluster() -> Vec<Server> {
    let flags = ["--cluster-enabled", "yes", "--cluster-node-timeout", "2000"];
    let nodes: Vec<_> = (0..3).map(|_| Server::with(&flags)).collect();
    let addresses: Vec<_> = nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)).collect();
    let output = Command::new("redis-cli")
        .args(["--cluster", "create"])
        .args(&addresses)
        .args(["--cluster-yes"])
        .output()
        .expect("redis-cli is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    for node in &nodes {
        eventually("the cluster", || node.cli(&["cluster", "info"]).contains("cluster_state:ok"));
    }
    nodes
}

pub fn cluster_url(nodes: &[Server]) -> String {
    let hosts: Vec<_> = nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)).collect();
    format!("redis-cluster://{}", hosts.join(","))
}

/// A replica of `master`, once it has everything.
pub fn replica_of(master: &Server) -> Server {
    let replica = Server::with(&["--replicaof", "127.0.0.1", &master.port.to_string()]);
    // It counts from its first acknowledgement on, which may take a second.
    eventually("replication", || {
        let written = cli_lines(master.port, "set replicated 1\nwait 1 200\n");
        written.lines().last() == Some("1")
    });
    replica
}

/// A Sentinel that watches `master` alone.
pub fn sentinel_of(master: &Server) -> Server {
    let port = free_port();
    let text = format!(
        "sentinel monitor mymaster 127.0.0.1 {} 1\n\
         sentinel down-after-milliseconds mymaster 500\n\
         sentinel failover-timeout mymaster 2000\n",
        master.port
    );
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("server.conf");
    std::fs::write(&file, text).expect("a file");
    let child = Command::new("redis-server")
        .arg(&file)
        .args(["--sentinel", "--port", &port.to_string(), "--bind", "127.0.0.1"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("redis-server is installed");
    wait_for(port);
    Server { port, folder, arguments: Vec::new(), child }
}

/// A master with a replica, the Sentinel that knows of both, and the url that asks it.
pub fn behind_sentinel() -> ([Server; 3], String) {
    let master = Server::start();
    let (replica, sentinel) = (replica_of(&master), sentinel_of(&master));
    eventually("the sentinel's view", || {
        sentinel.cli(&["sentinel", "master", "mymaster"]).contains("num-slaves\n1")
    });
    let url = format!("redis-sentinel://127.0.0.1:{}/mymaster", sentinel.port);
    ([master, replica, sentinel], url)
}
