//! One at a time, over several processes that are killed and paused.
//!
//! The test starts itself again as a worker: each worker acquires a few keys over and over, notes
//! from when to when it believed to hold one, and writes to a resource with its fence. A sample by
//! default; 10^5 acquisitions with `REDELIVER_TEST_FULL=1`.

mod support;

use std::collections::HashMap;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use redeliver::store::redis::{RedisSettings, RedisStore};
use redeliver::store::{Keeper, LockPolicy, LockStore, Locks};
use support::redis::{self, Server, send_signal};
use tokio::runtime::Handle;

const WORKERS: usize = 4;
const KEYS: [&str; 3] = ["a", "b", "c"];
const LEASE: Duration = Duration::from_millis(600);
/// A resource that refuses fences smaller than the largest it has seen; counts what it refused.
const RESOURCE: &str = "local last = tonumber(redis.call('HGET', KEYS[1], 'last') or 0) \
    if tonumber(ARGV[1]) < last then redis.call('HINCRBY', KEYS[1], 'refused', 1) return 0 end \
    redis.call('HSET', KEYS[1], 'last', ARGV[1]) redis.call('RPUSH', KEYS[1] .. ':log', ARGV[1]) return 1";

fn acquisitions() -> usize {
    if std::env::var_os("REDELIVER_TEST_FULL").is_some() { 100_000 } else { 3_000 }
}

/// What a worker believed: it held `key` under `fence`, surely from `from` to `until`.
struct Belief {
    key: String,
    fence: u64,
    from: u128,
    until: u128,
}

/// Nanoseconds on the clock that all processes of this machine share.
fn now() -> u128 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    time.tv_sec as u128 * 1_000_000_000 + time.tv_nsec as u128
}

/// Not a test of its own: what the processes run.
#[tokio::test]
async fn worker() {
    let Some(url) = std::env::var_os("REDELIVER_TEST_WORKER") else { return };
    let url = url.into_string().expect("a url");
    let locks = locks(&url);
    let client = ::redis::Client::open(url).expect("a url");
    let mut connection = None;
    let mut log = std::fs::File::create(std::env::var("REDELIVER_TEST_LOG").expect("a file"))
        .expect("a file");
    let policy = LockPolicy { lease: LEASE, wait: Duration::from_secs(5), ..LockPolicy::default() };
    for turn in 0.. {
        let key = KEYS[(turn + std::process::id() as usize) % KEYS.len()];
        let Ok(guard) = locks.acquire(key).policy(policy).await else { continue };
        let from = now();
        if connection.is_none() {
            connection = client.get_multiplexed_async_connection().await.ok();
        }
        if let Some(open) = &mut connection {
            let mut write = ::redis::cmd("EVAL");
            write.arg(RESOURCE).arg(1).arg(format!("resource:{key}")).arg(guard.fence().0);
            if write.query_async::<u32>(open).await.is_err() {
                connection = None;
            }
        }
        // In this order: `until` is a moment at which it was still believed.
        let until = now();
        if guard.loss().is_none() {
            writeln!(log, "{key} {} {from} {until}", guard.fence()).expect("a file");
        }
        let _ = guard.release().await;
    }
}

/// Not a test of its own: a process that holds a key, sleeps, and writes afterwards.
#[tokio::test]
async fn sleeper() {
    let Some(url) = std::env::var_os("REDELIVER_TEST_SLEEPER") else { return };
    let url = url.into_string().expect("a url");
    let guard = locks(&url).acquire("a").lease(LEASE).await.expect("the lock");
    let client = ::redis::Client::open(url).expect("a url");
    let mut connection = client.get_multiplexed_async_connection().await.expect("a connection");
    let mut say = ::redis::cmd("SET");
    say.arg("asleep").arg(1).exec_async(&mut connection).await.expect("an answer");
    // Long enough to be stopped within; whoever is stopped wakes up too late.
    std::thread::sleep(LEASE / 2);
    let loss = guard.loss().map_or("none".into(), |loss| loss.to_string());
    let mut write = ::redis::cmd("EVAL");
    write.arg(RESOURCE).arg(1).arg("resource:a").arg(guard.fence().0);
    let accepted: u32 = write.query_async(&mut connection).await.expect("an answer");
    say = ::redis::cmd("SET");
    say.arg("woken").arg(format!("{accepted} {loss}"));
    say.exec_async(&mut connection).await.expect("an answer");
}

fn locks(url: &str) -> Locks {
    let mut settings = RedisSettings::new("main", url);
    settings.prefix = "processes".into();
    let store = Arc::new(RedisStore::new(settings).expect("settings"));
    let keeper = Keeper::new(Handle::current(), store.clock());
    Locks::new(store, keeper, format!("process {}", std::process::id()))
}

fn start(server: &Server, log: &Path) -> Child {
    Command::new(std::env::current_exe().expect("a path"))
        .args(["--exact", "worker", "--nocapture"])
        .env("REDELIVER_TEST_WORKER", server.url())
        .env("REDELIVER_TEST_LOG", log)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts itself")
}

fn beliefs(folder: &Path) -> Vec<Belief> {
    let mut beliefs = Vec::new();
    for file in std::fs::read_dir(folder).expect("a folder") {
        let text = std::fs::read_to_string(file.expect("a file").path()).expect("a file");
        for line in text.lines() {
            let mut words = line.split(' ');
            let mut number = || words.next_back().and_then(|word| word.parse::<u128>().ok());
            // The last line of a worker that was killed may be cut off.
            let (Some(until), Some(from), Some(fence)) = (number(), number(), number()) else {
                continue;
            };
            let key = words.next().unwrap_or_default().to_owned();
            beliefs.push(Belief { key, fence: fence as u64, from, until });
        }
    }
    beliefs
}

/// How many windows began before the one with the smaller fence ended; panics if two share a fence.
fn overlaps(beliefs: Vec<Belief>) -> usize {
    let mut by_key: HashMap<String, Vec<Belief>> = HashMap::new();
    for belief in beliefs {
        by_key.entry(belief.key.clone()).or_default().push(belief);
    }
    let mut overlaps = 0;
    for (key, mut held) in by_key {
        held.sort_by_key(|belief| belief.fence);
        for pair in held.windows(2) {
            assert!(pair[0].fence < pair[1].fence, "{key}: fence {} twice", pair[0].fence);
            overlaps += usize::from(pair[1].from < pair[0].until);
        }
    }
    overlaps
}

/// Runs workers until they have made `count` acquisitions, and `disturbs` them meanwhile.
fn run(
    count: usize,
    mut disturb: impl FnMut(&Server, &mut [(Child, usize)]),
) -> (Server, Vec<Belief>) {
    let server = Server::start();
    let folder = tempfile::tempdir().expect("a folder");
    let began = Instant::now();
    let mut started = 0;
    let mut next = |server: &Server| {
        started += 1;
        (start(server, &folder.path().join(started.to_string())), started)
    };
    let mut workers: Vec<_> = (0..WORKERS).map(|_| next(&server)).collect();
    while logged(folder.path()) < count {
        assert!(began.elapsed() < Duration::from_secs(600), "too slow: {}", logged(folder.path()));
        std::thread::sleep(Duration::from_millis(100));
        disturb(&server, &mut workers);
        for worker in &mut workers {
            if worker.0.try_wait().expect("a child").is_some() {
                *worker = next(&server);
            }
        }
    }
    for (worker, _) in &mut workers {
        let _ = worker.kill();
        let _ = worker.wait();
    }
    let beliefs = beliefs(folder.path());
    println!("{} acquisitions by {started} processes in {:?}", beliefs.len(), began.elapsed());
    (server, beliefs)
}

fn logged(folder: &Path) -> usize {
    let lines = |file: std::io::Result<std::fs::DirEntry>| {
        let text = std::fs::read_to_string(file.expect("a file").path());
        text.map_or(0, |text| text.lines().count())
    };
    std::fs::read_dir(folder).expect("a folder").map(lines).sum()
}

#[test]
fn beliefs_never_overlap_though_processes_are_killed_and_connections_cut() {
    let mut turn = 0;
    let (server, beliefs) = run(acquisitions(), |server, workers| {
        turn += 1;
        if turn % 7 == 3 {
            let victim = &mut workers[turn % WORKERS].0;
            let _ = victim.kill();
            let _ = victim.wait();
        }
        if turn % 5 == 1 {
            server.cli(&["client", "kill", "type", "normal"]);
            server.cli(&["client", "kill", "type", "pubsub"]);
        }
    });
    assert_eq!(overlaps(beliefs), 0);
    for key in KEYS {
        let refused = server.cli(&["hget", &format!("resource:{key}"), "refused"]);
        assert_eq!(refused, "", "{key}: nobody was late, yet a fence was refused");
    }
}

#[test]
fn a_fenced_resource_accepts_no_stale_token_though_processes_are_paused() {
    let mut turn = 0_usize;
    let mut paused: Option<(u32, Instant)> = None;
    let (server, beliefs) = run(acquisitions() / 3, |_, workers| {
        turn += 1;
        if let Some((pid, since)) = paused {
            if since.elapsed() > LEASE * 2 {
                send_signal(pid, "CONT");
                paused = None;
            }
        } else if turn.is_multiple_of(3) {
            let pid = workers[turn % WORKERS].0.id();
            send_signal(pid, "STOP");
            paused = Some((pid, Instant::now()));
        }
    });
    // Whether two believed at once is a matter of luck here; that no fence came twice is not.
    println!("{} overlapping beliefs", overlaps(beliefs));
    for key in KEYS {
        let log = server.cli(&["lrange", &format!("resource:{key}:log"), "0", "-1"]);
        let accepted: Vec<u64> = log.lines().map(|line| line.parse().expect("a fence")).collect();
        assert!(accepted.len() > 10, "{key} was hardly ever locked");
        assert!(accepted.is_sorted(), "{key} accepted a stale fence");
        println!(
            "{key}: {} accepted, refused: {}",
            accepted.len(),
            server.cli(&["hget", &format!("resource:{key}"), "refused"])
        );
    }
}

#[tokio::test]
async fn r4_a_holder_that_was_killed_is_succeeded_within_its_lease_and_a_second() {
    let server = Server::start();
    let folder = tempfile::tempdir().expect("a folder");
    let mut worker = start(&server, &folder.path().join("1"));
    let locks = locks(&server.url());
    // Killed while it holds one of them: it does most of the time.
    let held = loop {
        let mut held = None;
        for key in KEYS {
            let state = locks.inspect(key).await.expect("an answer");
            if state.is_some_and(|state| state.holder.is_some()) {
                held = Some(key);
                break;
            }
        }
        if let Some(key) = held {
            send_signal(worker.id(), "STOP");
            let state = locks.inspect(key).await.expect("an answer");
            if state.is_some_and(|state| state.holder.is_some()) {
                break key;
            }
            send_signal(worker.id(), "CONT");
        }
    };
    worker.kill().expect("a child");
    worker.wait().expect("a child");
    let killed = Instant::now();
    drop(locks.acquire(held).wait(Duration::from_secs(10)).await.expect("the lock"));
    println!("had again after {:?}", killed.elapsed());
    assert!(killed.elapsed() < LEASE + Duration::from_secs(1), "{:?}", killed.elapsed());
}

#[tokio::test]
async fn r5_a_holder_that_slept_is_told_and_its_write_is_refused() {
    let server = Server::start();
    let mut sleeper = Command::new(std::env::current_exe().expect("a path"))
        .args(["--exact", "sleeper", "--nocapture"])
        .env("REDELIVER_TEST_SLEEPER", server.url())
        .stdout(Stdio::null())
        .spawn()
        .expect("it starts itself");
    redis::eventually("the sleeper", || server.cli(&["get", "asleep"]) == "1");
    send_signal(sleeper.id(), "STOP");
    let next = locks(&server.url()).acquire("a").wait(LEASE * 3).await.expect("the lock");
    let (fence, resource) = (next.fence().to_string(), "resource:a");
    assert_eq!(server.cli(&["eval", RESOURCE, "1", resource, &fence]), "1");
    send_signal(sleeper.id(), "CONT");
    redis::eventually("the sleeper's end", || !server.cli(&["get", "woken"]).is_empty());
    let woken = server.cli(&["get", "woken"]);
    assert_eq!(woken, "0 its lease ended while this process stood still");
    assert_eq!(next.loss(), None);
    sleeper.wait().expect("a child");
}
