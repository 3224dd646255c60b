//! Listens for wake-ups that other processes publish.
//!
//! Owns the one subscription of this process, opened when somebody first waits. What gets lost is
//! made up for: by the poll of each waiter, and by waking all of them after every gap.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use ::redis::{RedisError, RedisResult};
use futures_util::StreamExt;
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep, timeout};

use super::address::Address;
use crate::store::{Owner, Wakes};

/// Before it is opened again, doubled up to the second.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// How often a quiet subscription is asked whether it still lives.
const PROBE_EVERY: Duration = Duration::from_secs(5);

pub(super) struct Listener {
    address: Arc<Address>,
    channel: String,
    wakes: Wakes,
    runtime: OnceLock<Handle>,
    life: Arc<Life>,
}

#[derive(Default)]
struct Life {
    is_listening: AtomicBool,
}

impl Listener {
    pub(super) fn new(address: Arc<Address>, prefix: &str, wakes: Wakes) -> Self {
        let channel = format!("{prefix}:wake:{}", Owner::process());
        let (runtime, life) = (OnceLock::new(), Arc::default());
        Self { address, channel, wakes, runtime, life }
    }

    pub(super) fn drive_on(&self, runtime: &Handle) {
        let _ = self.runtime.set(runtime.clone());
    }

    /// Listens from now on, until the store is dropped.
    pub(super) fn listen(&self) {
        if self.life.is_listening.swap(true, Ordering::AcqRel) {
            return;
        }
        let runtime = self.runtime.get().cloned().unwrap_or_else(Handle::current);
        let ear = Ear {
            address: self.address.clone(),
            channel: self.channel.clone(),
            wakes: self.wakes.clone(),
            life: Arc::downgrade(&self.life),
        };
        runtime.spawn(ear.listen_for_ever());
    }
}

/// A server that takes the subscription and hangs up again is asked as seldom as one that does not take it: everybody who waits
/// is woken each time.
fn pause_after(pause: Duration, lasted: Duration) -> Duration {
    if lasted >= PROBE_EVERY { PAUSE_MIN } else { (pause * 2).min(PAUSE_MAX) }
}

struct Ear {
    address: Arc<Address>,
    channel: String,
    wakes: Wakes,
    life: Weak<Life>,
}

impl Drop for Ear {
    /// Its runtime may end before the store does; then the next waiter listens anew.
    fn drop(&mut self) {
        if let Some(life) = self.life.upgrade() {
            life.is_listening.store(false, Ordering::Release);
        }
    }
}

impl Ear {
    async fn listen_for_ever(self) {
        let mut pause = PAUSE_MIN;
        let mut attempt = 0;
        while self.life.strong_count() > 0 {
            let began = Instant::now();
            // Why it ended is said by the calls that fail with it.
            let _ = self.listen(attempt).await;
            pause = pause_after(pause, began.elapsed());
            attempt += 1;
            sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        }
    }

    /// Listens until the subscription ends.
    async fn listen(&self, attempt: usize) -> RedisResult<()> {
        let opened = timeout(PROBE_EVERY, async {
            let mut subscription = self.address.listen(attempt).await?;
            subscription.subscribe(&self.channel).await?;
            Ok::<_, RedisError>(subscription.split())
        });
        let Ok(opened) = opened.await else { return Ok(()) };
        let (mut sink, mut messages) = opened?;
        // Whatever was published before this moment went unheard.
        self.wakes.wake_all();
        while self.life.strong_count() > 0 {
            match timeout(PROBE_EVERY, messages.next()).await {
                Ok(Some(message)) => {
                    let owners = std::str::from_utf8(message.get_payload_bytes());
                    owners.unwrap_or_default().split(' ').for_each(|owner| self.wakes.wake(owner));
                }
                Ok(None) => return Ok(()),
                Err(_) => match timeout(PROBE_EVERY, sink.ping::<()>()).await {
                    Ok(answer) => answer?,
                    Err(_) => return Ok(()),
                },
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_subscription_that_lasted_is_opened_again_at_once() {
        let hung_up = Duration::from_millis(1);
        let mut pause = PAUSE_MIN;
        for _ in 0..10 {
            pause = pause_after(pause, hung_up);
        }
        assert_eq!(pause, PAUSE_MAX);
        assert_eq!(pause_after(pause, PROBE_EVERY), PAUSE_MIN);
    }
}
