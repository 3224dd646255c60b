use futures_util::FutureExt;
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep};

use super::*;
use crate::store::memory::MemoryStore;
use crate::store::{ClaimKind, Keeper, LockStore, Loss, RESULT_BYTES_MAX, Scope};
use crate::telemetry::Counter;

const LEASE: Duration = Duration::from_secs(60);

fn guards(claims: bool, lock_wait: Option<Duration>) -> Guards {
    let store = Arc::new(MemoryStore::new());
    let keeper = Keeper::new(Handle::current(), store.clock());
    let locks = Locks::new(store, keeper, "test");
    let keep = Duration::from_secs(3600);
    let policy = |wait| LockPolicy { wait, ..LockPolicy::default() };
    Guards::new(
        "orders".into(),
        claims.then(|| {
            let late = LateEnds::new(Counter::default());
            ClaimRules { store: locks.clone(), lease: LEASE, keep, late }
        }),
        lock_wait.map(|wait| (locks.clone(), policy(wait))),
    )
}

fn request<'a>(id: &'a str, attempts: u32, sharing: &'a Sharing) -> AdmitRequest<'a> {
    AdmitRequest {
        id: Some(id),
        generation: 0,
        payload: b"payload",
        attempts,
        lock_key: Some("customer:42"),
        is_forced: false,
        sharing,
    }
}

async fn admit(guards: &Guards, id: &str, attempts: u32) -> Admission {
    guards.admit(request(id, attempts, &Sharing::Alone(Scope::new()))).await
}

async fn runs(guards: &Guards, id: &str, attempts: u32) -> Box<Held> {
    match admit(guards, id, attempts).await {
        Admission::Run(held) => held,
        other => panic!("{id} is {}", name(&other)),
    }
}

fn name(admission: &Admission) -> &'static str {
    match admission {
        Admission::Run(_) => "run",
        Admission::Done { .. } => "done",
        Admission::Running { .. } => "running",
        Admission::Waiting { .. } => "waiting",
        Admission::Superseded => "superseded",
        Admission::Dead { .. } => "dead",
        Admission::Mismatch => "mismatch",
        Admission::LockBusy { .. } => "lock busy",
        Admission::Failed(_) => "failed",
    }
}

fn granted(held: &Held) -> Claim {
    *held.granted().expect("it has a claim")
}

async fn check(guards: &Guards, id: &str, attempts: u32, says: &str) {
    assert_eq!(name(&admit(guards, id, attempts).await), says, "{id}");
}

#[tokio::test(start_paused = true)]
async fn a_message_runs_once_and_its_result_is_kept() {
    let guards = guards(true, Some(Duration::ZERO));
    let held = runs(&guards, "a", 0).await;
    let claim = granted(&held);
    assert_eq!((claim.kind, claim.attempts), (ClaimKind::Fresh, 0));
    assert!(held.fence().is_some());
    assert!(held.complete(Some(Bytes::from_static(b"42"))).await.expect("an answer"));
    match admit(&guards, "a", 0).await {
        Admission::Done { result } => assert_eq!(result.as_deref(), Some(&b"42"[..])),
        other => panic!("{}", name(&other)),
    }
}

#[tokio::test(start_paused = true)]
async fn without_guards_everything_runs() {
    let guards = guards(false, None);
    assert!(guards.is_empty());
    let (first, second) = (runs(&guards, "a", 0).await, runs(&guards, "a", 0).await);
    assert!(first.complete(None).await.expect("an answer"));
    assert!(second.release().await.expect("an answer"));
}

#[tokio::test(start_paused = true)]
async fn a_busy_lock_releases_the_claim() {
    for wait in [Duration::ZERO, Duration::from_secs(2)] {
        let guards = guards(true, Some(wait));
        let held = runs(&guards, "a", 0).await;
        check(&guards, "b", 0, "lock busy").await;
        // Not running: the claim of `b` was given back, and its lock is all that it lacks.
        check(&guards, "b", 0, "lock busy").await;
        held.complete(None).await.expect("an answer");
        let held = runs(&guards, "b", 0).await;
        assert_eq!(granted(&held).kind, ClaimKind::Fresh);
    }
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_the_lock_has_it_when_it_is_released() {
    let guards = guards(true, Some(Duration::from_secs(2)));
    let held = runs(&guards, "a", 0).await;
    let waiting = {
        let guards = guards.clone();
        tokio::spawn(async move { runs(&guards, "b", 0).await.fence() })
    };
    sleep(Duration::from_millis(100)).await;
    let (first, released) = (held.fence(), Instant::now());
    held.complete(None).await.expect("an answer");
    assert!(waiting.await.expect("no panic") > first);
    assert!(released.elapsed() < Duration::from_millis(5));
}

#[tokio::test(start_paused = true)]
async fn what_is_dropped_is_told_to_the_next() {
    let guards = guards(true, Some(Duration::ZERO));
    drop(runs(&guards, "a", 0).await);
    sleep(Duration::from_millis(1)).await;
    let held = runs(&guards, "a", 0).await;
    let claim = granted(&held);
    assert_eq!((claim.kind, claim.takeovers, claim.attempts), (ClaimKind::TakenOver, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_completion_that_is_cut_off_is_a_completion() {
    let mut cut_off = 0;
    for turns in 0..10 {
        let guards = guards(true, Some(Duration::ZERO));
        let held = runs(&guards, "a", 0).await;
        // Somewhere in these turns the renewal of its lock is on the way, and the end has to wait for that.
        tokio::time::advance(LockPolicy::default().lease / 2).await;
        for _ in 0..turns {
            tokio::task::yield_now().await;
        }
        let completed = held.complete(None).now_or_never();
        cut_off += u32::from(completed.is_none());
        sleep(Duration::from_millis(1)).await;
        check(&guards, "a", 0, "done").await;
    }
    assert!(cut_off > 0, "no end had to wait");
}

#[tokio::test(start_paused = true)]
async fn a_batch_shares_the_lock_of_a_key() {
    let guards = guards(true, Some(Duration::ZERO));
    let sharing = Sharing::Alone(Scope::new());
    let mut held = Vec::new();
    for id in ["a", "b", "c"] {
        match guards.admit(request(id, 0, &sharing)).await {
            Admission::Run(one) => held.push(one),
            other => panic!("{id} is {}", name(&other)),
        }
    }
    for (left, one) in held.into_iter().enumerate() {
        check(&guards, &format!("other-{left}"), 0, "lock busy").await;
        assert!(one.complete(None).await.expect("an answer"));
    }
    check(&guards, "other", 0, "run").await;
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_takes_long_keeps_both() {
    let guards = guards(true, Some(Duration::ZERO));
    let held = runs(&guards, "a", 0).await;
    tokio::select! {
        lost = held.lost() => panic!("{lost:?}"),
        () = sleep(Duration::from_secs(500)) => {}
    }
    check(&guards, "a", 0, "running").await;
    check(&guards, "b", 0, "lock busy").await;
    assert!(held.complete(None).await.expect("an answer"));
}

#[tokio::test(start_paused = true)]
async fn hold_max_ends_the_lock_of_a_handler_that_hangs() {
    let guards = guards(true, Some(Duration::ZERO));
    let held = runs(&guards, "a", 0).await;
    let began = Instant::now();
    assert_eq!(held.lost().await, Lost::Lock(Loss::HoldMax));
    assert_eq!(began.elapsed().as_secs(), 600);
}

#[tokio::test(start_paused = true)]
async fn attempts_are_counted_across_copies() {
    let guards = guards(true, None);
    for attempt in 0..3 {
        let held = runs(&guards, "a", attempt).await;
        assert_eq!(granted(&held).attempts, attempt);
        let due_in = Duration::from_secs(600);
        assert!(held.failed(due_in, attempt + 1, true).await.expect("an answer"));
        // The original of a fork is not needed: its copy is alive.
        check(&guards, "a", attempt, "superseded").await;
    }
    let held = runs(&guards, "a", 3).await;
    assert!(held.dead("exhausted").await.expect("an answer"));
    check(&guards, "a", 3, "dead").await;
}

#[tokio::test(start_paused = true)]
async fn a_wait_in_this_process_keeps_others_out_until_it_is_due() {
    let guards = guards(true, None);
    let held = runs(&guards, "a", 0).await;
    held.failed(Duration::from_secs(1), 1, false).await.expect("an answer");
    check(&guards, "a", 1, "waiting").await;
    sleep(Duration::from_secs(1)).await;
    assert_eq!(granted(&*runs(&guards, "a", 0).await).attempts, 1);
}

#[tokio::test(start_paused = true)]
async fn a_result_that_is_too_large_is_not_kept() {
    let guards = guards(true, None);
    let large = Bytes::from(vec![0; RESULT_BYTES_MAX + 1]);
    assert!(runs(&guards, "a", 0).await.complete(Some(large)).await.expect("an answer"));
    assert!(matches!(admit(&guards, "a", 0).await, Admission::Done { result: None }));
}

#[tokio::test(start_paused = true)]
async fn another_payload_is_a_mismatch() {
    let guards = guards(true, None);
    runs(&guards, "a", 0).await.complete(None).await.expect("an answer");
    let sharing = Sharing::Alone(Scope::new());
    let other = AdmitRequest { payload: b"other", ..request("a", 0, &sharing) };
    assert_eq!(name(&guards.admit(other).await), "mismatch");
}

#[tokio::test(start_paused = true)]
async fn without_a_claim_what_was_done_stays_done_and_a_lost_lock_is_told() {
    let guards = guards(false, Some(Duration::ZERO));
    let held = runs(&guards, "a", 0).await;
    let locks = guards.locks.as_ref().map(|(locks, _)| locks.clone()).expect("it has locks");
    locks.store().force_release("customer:42").await.expect("an answer");
    assert_eq!(held.lost().await, Lost::Lock(Loss::Forced));
    assert!(!held.is_claimed());
    assert!(!held.complete(None).await.expect("no store is asked about it"), "somebody had it");
    let held = runs(&guards, "a", 0).await;
    assert!(held.complete(None).await.expect("an answer"));
}

#[tokio::test(start_paused = true)]
async fn without_an_id_the_lock_is_had_alone() {
    let guards = guards(true, Some(Duration::ZERO));
    let sharing = Sharing::Alone(Scope::new());
    let nameless = || AdmitRequest { id: None, ..request("", 0, &sharing) };
    let Admission::Run(held) = guards.admit(nameless()).await else { panic!("it is free") };
    assert!(!held.is_claimed() && held.fence().is_some());
    check(&guards, "b", 0, "lock busy").await;
    held.complete(None).await.expect("an answer");
    check(&guards, "b", 0, "run").await;
}

#[tokio::test(start_paused = true)]
async fn a_recorded_attempt_that_does_not_count_is_taken_back() {
    let guards = guards(true, None);
    let held = runs(&guards, "a", 0).await;
    let recorded = held.recorded(0).expect("it has a claim");
    held.failed(Duration::from_secs(60), 1, false).await.expect("an answer");
    check(&guards, "a", 0, "waiting").await;
    recorded.take_back();
    sleep(Duration::from_millis(1)).await;
    assert_eq!(granted(&*runs(&guards, "a", 0).await).attempts, 0);
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_its_copy_to_be_confirmed_keeps_its_claim_and_not_its_lock() {
    let guards = guards(true, Some(Duration::ZERO));
    let mut held = runs(&guards, "a", 0).await;
    held.free_lock();
    sleep(Duration::from_millis(1)).await;
    check(&guards, "a", 0, "running").await;
    check(&guards, "b", 0, "run").await;
    assert!(held.dead("rejected").await.expect("an answer"));
    check(&guards, "a", 0, "dead").await;
}

#[tokio::test(start_paused = true)]
async fn what_was_done_here_is_not_begun_again_while_its_end_is_on_its_way() {
    let guards = guards(true, None);
    let claims = guards.claims.as_ref().expect("it has claims");
    let late = claims.late.begin(Arc::new(guards.key("a", 0, b"payload")));
    check(&guards, "a", 0, "running").await;
    check(&guards, "b", 0, "run").await;
    drop(late);
    check(&guards, "a", 0, "run").await;
}
