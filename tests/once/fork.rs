//! The fork: a crash between the confirm of a copy and the end of its original leaves both alive.

use std::path::Path;
use std::process::Child;
use std::time::Duration;

use redeliver::store::redis::{RedisSettings, RedisStore};
use redeliver::store::{ClaimAnswer, ClaimAsk, ClaimKey, Ending, Fence, Fingerprint};
use redeliver::store::{IdempotencyStore, Owner};
use redeliver::{Delivery, Failure, Handled, Service};
use serde_json::{Value, json};

use crate::lab::{BROKER_WAITS, Lab, Log, redis_port, redis_url};
use crate::proxy::Proxy;
use crate::{programs, worker};

fn store() -> RedisStore {
    RedisStore::new(RedisSettings::new("main", redis_url())).expect("settings")
}

fn key(lab: &Lab, payload: &[u8]) -> ClaimKey {
    ClaimKey {
        scope: lab.name.as_str().into(),
        id: "forked".into(),
        fingerprint: Fingerprint::of(payload),
        generation: 0,
    }
}

/// The claim of one id as a process leaves it that failed its first attempt and died.
async fn crashed(lab: &Lab, payload: &[u8], due_in: Duration) {
    let (store, key) = (store(), key(lab, payload));
    let (owner, keep) = (Owner::new(), Duration::from_secs(3600));
    let lease = Duration::from_secs(60);
    let (holder, seen) = ("the dead", Fence(0));
    let ask = ClaimAsk {
        key: &key,
        owner: &owner,
        lease,
        keep,
        attempts: 0,
        holder,
        force: false,
        waits: false,
        seen,
    };
    let claimed = store.claim(&ask).await.expect("an answer");
    assert!(matches!(claimed, ClaimAnswer::Granted(_)));
    let failed = Ending::Failed { attempts: 1, due_in, copied: true };
    assert!(store.end(&key, &owner, &failed, keep).await.expect("an answer"));
}

/// The original is redelivered, and its copy comes out of its wait: `copy_first` or after it.
async fn check(due_in: Duration, copy_first: bool) {
    let (lab, log) = (Lab::new(), Log::default());
    let toml = lab.toml("idempotency = { store = \"main\" }", BROKER_WAITS);
    let payload = json!({ "amount": 5 });
    let body = serde_json::to_vec(&payload).expect("it is JSON");
    crashed(&lab, &body, due_in).await;
    let idle = lab.idle(&toml).await;
    let original = || lab.message("forked", &payload);
    let copy = || lab.message("forked", &payload).header("redeliver-attempt", "1");
    let both = if copy_first { [copy(), original()] } else { [original(), copy()] };
    for message in both {
        idle.publisher("main").expect("it is configured").send(message).await.expect("confirmed");
    }
    idle.stop().await;
    let noting = log.clone();
    let handler = move |delivery: Delivery<Value>| {
        let noting = noting.clone();
        async move {
            noting.note(&delivery);
            Handled::Err(Failure::retry("never works"))
        }
    };
    let service = lab.start(&toml, handler).await;
    lab.drained(&service).await;
    let attempts: Vec<u32> = log.all().iter().map(|seen| seen.attempt).collect();
    assert_eq!(attempts, [2, 3, 4], "each of the attempts that were left, once");
    assert_eq!(lab.dead(&service).await, Some(1));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_and_its_original_make_each_attempt_once_and_one_dead_letter() {
    check(Duration::from_secs(1), false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn so_they_do_when_the_copy_comes_first() {
    check(Duration::from_secs(1), true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn so_they_do_when_the_original_comes_after_the_wait_is_over() {
    check(Duration::ZERO, false).await;
    check(Duration::ZERO, true).await;
}

/// A process that fails over one message, behind a way to Redis that the test can make slow.
struct Crash {
    lab: Lab,
    toml: String,
    folder: tempfile::TempDir,
    idle: Service,
    process: Child,
}

impl Crash {
    /// `retry` is the policy; `proxy` is as slow as it was made.
    async fn of(proxy: &Proxy, retry: &str) -> Self {
        let (lab, folder) = (Lab::on(&proxy.redis_url()), programs::folder());
        let keys = "idempotency = { store = \"main\", lease = \"60s\" }\ncrashes_max = 1000000";
        let toml = lab.patient_toml("20s", keys, retry);
        let idle = lab.idle(&toml).await;
        lab.send(&idle, "forked", json!({ "fails": true })).await;
        let process = worker::start(&toml, folder.path());
        Self { lab, toml, folder, idle, process }
    }

    /// Waits until the record is in this state.
    async fn until(&self, state: &str) {
        let body = serde_json::to_vec(&json!({ "fails": true })).expect("it is JSON");
        let (store, key) = (store(), key(&self.lab, &body));
        self.lab
            .eventually(state, async || {
                let known = store.peek(&key).await.expect("an answer");
                known.is_some_and(|known| known.state == state)
            })
            .await;
    }

    /// Kills it, and lets another process go on until one dead letter is all that is left.
    async fn survive(mut self, proxy: &Proxy) -> Vec<(u32, bool)> {
        self.process.kill().expect("it can be killed");
        self.process.wait().expect("it can be waited for");
        proxy.delay_requests(Duration::ZERO);
        proxy.delay_answers(Duration::ZERO);
        self.process = worker::start(&self.toml, self.folder.path());
        self.until("dead").await;
        let folder: &Path = self.folder.path();
        self.lab
            .eventually("nothing but dead letters", async || {
                // What the process holds is not seen from here: it must be empty for a while.
                for _ in 0..60 {
                    let depth = self.idle.depth(&self.lab.name).await.unwrap_or_default();
                    if (depth.ready, depth.waiting) != (Some(0), Some(0)) {
                        return false;
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                true
            })
            .await;
        crate::support::redis::send_signal(self.process.id(), "TERM");
        self.process.wait().expect("it ends");
        let depth = self.idle.depth(&self.lab.name).await.expect("an answer");
        assert_eq!((depth.ready, depth.waiting), (Some(0), Some(0)), "nothing was given back");
        assert_eq!(depth.dead, Some(1), "one dead letter");
        self.idle.stop().await;
        worker::attempts(folder)
    }
}

/// The answer that the copy is recorded is on its way: the original is not acknowledged yet.
const SLOW: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread")]
async fn r17_killed_between_the_record_of_a_copy_and_the_acknowledgement_each_attempt_is_made_once()
{
    let proxy = Proxy::to(redis_port()).await;
    proxy.delay_answers(SLOW);
    let crash = Crash::of(&proxy, BROKER_WAITS).await;
    crash.until("failed").await;
    let attempts = crash.survive(&proxy).await;
    assert_eq!(attempts, [1, 2, 3, 4].map(|attempt| (attempt, false)));
}

#[tokio::test(flavor = "multi_thread")]
async fn r17_killed_between_the_record_of_a_dead_letter_and_the_acknowledgement_there_is_one() {
    let proxy = Proxy::to(redis_port()).await;
    proxy.delay_answers(SLOW);
    let retry = BROKER_WAITS.replace("attempts_max = 4", "attempts_max = 1");
    let crash = Crash::of(&proxy, &retry).await;
    crash.until("dead").await;
    assert_eq!(crash.survive(&proxy).await, [(1, false)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn r3_killed_between_the_confirm_of_a_copy_and_its_record_only_a_takeover_repeats_an_attempt()
{
    let proxy = Proxy::to(redis_port()).await;
    proxy.delay_requests(SLOW);
    let retry = BROKER_WAITS.replace("300ms", "5s");
    let crash = Crash::of(&proxy, &retry).await;
    crash
        .lab
        .eventually("a copy", async || {
            let depth = crash.idle.depth(&crash.lab.name).await.unwrap_or_default();
            depth.waiting == Some(1)
        })
        .await;
    crash.until("running").await;
    let attempts = crash.survive(&proxy).await;
    let mut made: Vec<u32> = attempts.iter().map(|(attempt, _)| *attempt).collect();
    made.sort_unstable();
    made.dedup();
    assert_eq!(made, [1, 2, 3, 4]);
    let told = attempts.iter().filter(|(_, is_taken)| *is_taken).count();
    assert!(attempts.len() - 4 <= told, "{attempts:?}");
}
