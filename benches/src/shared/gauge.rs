//! Measures a process from its first warm message to its last: time, processor time, memory.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use tokio::sync::Notify;

/// The first tenth of the messages warms up and is not counted.
const WARM_PART: u64 = 10;

pub struct Gauge {
    messages: u64,
    handled: AtomicU64,
    start: OnceLock<Mark>,
    end: OnceLock<Mark>,
    done: Notify,
}

#[derive(Clone, Copy)]
struct Mark {
    at: Instant,
    cpu: Duration,
}

impl Mark {
    fn now() -> Self {
        Self { at: Instant::now(), cpu: cpu_time() }
    }
}

impl Gauge {
    pub const fn new(messages: u64) -> Self {
        Self {
            messages,
            handled: AtomicU64::new(0),
            start: OnceLock::new(),
            end: OnceLock::new(),
            done: Notify::const_new(),
        }
    }

    /// Counts a message that was handled for good.
    pub fn handled(&self) {
        let handled = self.handled.fetch_add(1, Ordering::Relaxed) + 1;
        if handled == self.messages / WARM_PART {
            let _ = self.start.set(Mark::now());
        }
        if handled == self.messages {
            let _ = self.end.set(Mark::now());
            self.done.notify_waiters();
            self.done.notify_one();
        }
    }

    pub fn is_done(&self) -> bool {
        self.end.get().is_some()
    }

    /// Waits for the last message.
    pub async fn wait(&self) {
        while !self.is_done() {
            let done = self.done.notified();
            if self.is_done() {
                return;
            }
            // Looks again now and then, so that no wake-up needs to be proved.
            let _ = tokio::time::timeout(Duration::from_millis(20), done).await;
        }
    }

    /// Two lines for the harness: `measured MESSAGES SECONDS CPU_SECONDS PEAK_KIB`, and `whole CPU_SECONDS`, since it began.
    pub fn report(&self) {
        let (Some(start), Some(end)) = (self.start.get(), self.end.get()) else { return };
        let counted = self.messages - self.messages / WARM_PART;
        let seconds = end.at.duration_since(start.at).as_secs_f64();
        let cpu = (end.cpu.saturating_sub(start.cpu)).as_secs_f64();
        println!("measured {counted} {seconds:.6} {cpu:.6} {}", memory_peak());
        println!("whole {:.6}", end.cpu.as_secs_f64());
    }
}

/// User and system time of this process so far.
pub fn cpu_time() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_SELF).expect("a process can ask about itself");
    let sum = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Duration::from_micros(sum.unsigned_abs())
}

/// The most memory this process had, in KiB.
pub fn memory_peak() -> i64 {
    getrusage(UsageWho::RUSAGE_SELF).expect("a process can ask about itself").max_rss()
}

/// The memory this process has, in KiB.
pub fn memory_now() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().nth(1));
    number.and_then(|number| number.parse().ok()).unwrap_or_default()
}

/// How often its threads gave up the processor to wait.
pub fn wake_ups() -> i64 {
    let usage = getrusage(UsageWho::RUSAGE_SELF).expect("a process can ask about itself");
    usage.voluntary_context_switches()
}
