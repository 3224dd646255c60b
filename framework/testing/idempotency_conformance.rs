//! The contract of [`IdempotencyStore`](crate::store::IdempotencyStore) as tests.

mod asks;
mod together;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::sleep;

use asks::{
    LEASE, SHORT, ask, claim, claim_carrying, end, failed, fresh_key, granted, key,
    kind_and_attempts,
};
use together::{claim_and_lock_together, each_of_several_is_claimed, each_of_several_is_completed};

use super::lock_conformance::odd_names;
use super::{Sentence, sentences, unique};
use crate::store::{
    ClaimAnswer, ClaimAsk, ClaimKey, ClaimKind, Ending, Fingerprint, Owner, Renewed, Store,
};

/// Every sentence.
///
/// ```
/// use redeliver::testing::idempotency_conformance::SENTENCES;
///
/// assert!(SENTENCES.len() > 10, "an adapter runs each of them");
/// ```
pub const SENTENCES: &[Sentence] = sentences![
    1 "an id that nobody claimed is fresh" an_unknown_id_is_fresh,
    1 "R1: one of many who claim at once has it" one_of_many_has_it,
    2 "R7: while it runs, others are told how long" while_it_runs_others_are_told,
    3 "R4: a lease that ended is taken over, and who takes over is told" an_ended_lease_is_taken_over,
    4 "asking again as the same owner gives the same claim" asking_again_gives_the_same_claim,
    5 "R5: only the owner renews, while nobody took over" only_the_owner_renews,
    5 "a claim that is renewed outlives what is kept of it" a_renewed_claim_is_not_forgotten,
    6 "R8: done stays done, with its result" done_stays_done,
    6 "R11: a redrive does not open what is done, force does, once" only_force_opens_what_is_done,
    7 "R6: a stale owner ends nothing after a takeover" a_stale_owner_ends_nothing,
    7 "a late end is accepted when nobody took over" a_late_end_is_accepted,
    8 "a record that is gone accepts the end of who held it" a_gone_record_accepts_the_end,
    9 "R2: a failed attempt is counted and claimable when it is due" a_failure_is_claimable_when_due,
    9 "who waits in its process may count anew until somebody claims" a_wait_in_process_is_recounted,
    10 "the fork: the copy runs, the older delivery is superseded" the_fork_is_closed,
    11 "an attempt that waits in its process lets nobody in" a_wait_in_process_lets_nobody_in,
    12 "the larger count of attempts counts" the_larger_count_counts,
    13 "R11: dead stays dead until a higher generation, which counts anew" a_redrive_opens_the_dead,
    14 "R10: another payload is a mismatch, but for a redrive" another_payload_is_a_mismatch,
    15 "a release counts nothing" a_release_counts_nothing,
    15 "an abandoned run makes the next one a takeover" an_abandoned_run_is_told,
    16 "no id is taken for another" ids_are_bytes,
    17 "a peek changes nothing, a reset forgets" peek_and_reset,
    18 "a claim and a lock are had and ended together" claim_and_lock_together,
    19 "R7: whoever waits for the end of a run is woken by it" the_end_wakes_who_waits,
    20 "R11: a redrive that is given back lets nobody older in" a_redrive_given_back_stays_one,
    21 "of several ids each is claimed as if it were alone" each_of_several_is_claimed,
    21 "of several ids each is completed as if it were alone" each_of_several_is_completed,
];

async fn an_unknown_id_is_fresh(store: Arc<dyn Store>) {
    let claim = granted(&*store, &fresh_key("fresh"), &Owner::new()).await;
    assert_eq!((claim.kind, claim.attempts, claim.takeovers), (ClaimKind::Fresh, 0, 0));
}

async fn one_of_many_has_it(store: Arc<dyn Store>) {
    let key = Arc::new(fresh_key("many"));
    let asking: Vec<_> = (0..50)
        .map(|_| {
            let (store, key) = (store.clone(), key.clone());
            tokio::spawn(async move { claim(&*store, &key, &Owner::new()).await })
        })
        .collect();
    let mut runs = 0;
    for asked in asking {
        match asked.await.expect("no panic") {
            ClaimAnswer::Granted(_) => runs += 1,
            ClaimAnswer::Running { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(runs, 1);
}

async fn while_it_runs_others_are_told(store: Arc<dyn Store>) {
    let (key, owner) = (fresh_key("running"), Owner::new());
    granted(&*store, &key, &owner).await;
    for _ in 0..3 {
        match claim(&*store, &key, &Owner::new()).await {
            ClaimAnswer::Running { remaining } => {
                assert!(remaining <= LEASE && remaining > LEASE / 2, "{remaining:?}");
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(end(&*store, &key, &owner, Ending::Complete(None)).await);
}

async fn an_ended_lease_is_taken_over(store: Arc<dyn Store>) {
    let key = fresh_key("taken");
    for takeovers in 0..3 {
        let owner = Owner::new();
        let answer = store.claim(&ask(&key, &owner, SHORT, 0)).await.expect("an answer");
        let ClaimAnswer::Granted(claim) = answer else { panic!("{answer:?}") };
        let kind = if takeovers == 0 { ClaimKind::Fresh } else { ClaimKind::TakenOver };
        assert_eq!((claim.kind, claim.takeovers, claim.attempts), (kind, takeovers, 0));
        sleep(SHORT + Duration::from_millis(20)).await;
    }
}

async fn asking_again_gives_the_same_claim(store: Arc<dyn Store>) {
    let (key, owner) = (fresh_key("again"), Owner::new());
    let first = granted(&*store, &key, &owner).await;
    assert_eq!(granted(&*store, &key, &owner).await, first);
}

async fn only_the_owner_renews(store: Arc<dyn Store>) {
    let (key, owner, other) = (fresh_key("renew"), Owner::new(), Owner::new());
    store.claim(&ask(&key, &owner, SHORT, 0)).await.expect("an answer");
    assert_eq!(store.renew_claim(&key, &other, LEASE).await.expect("an answer"), Renewed::Lost);
    assert_eq!(store.renew_claim(&key, &owner, SHORT * 3).await.expect("an answer"), Renewed::Kept);
    sleep(SHORT * 2).await;
    assert!(matches!(claim(&*store, &key, &other).await, ClaimAnswer::Running { .. }));
    sleep(SHORT * 2).await;
    granted(&*store, &key, &other).await;
    assert_eq!(store.renew_claim(&key, &owner, LEASE).await.expect("an answer"), Renewed::Lost);
}

async fn a_renewed_claim_is_not_forgotten(store: Arc<dyn Store>) {
    let (key, owner) = (fresh_key("renewed"), Owner::new());
    let ask = ClaimAsk { keep: SHORT * 2, ..ask(&key, &owner, SHORT * 5, 0) };
    store.claim(&ask).await.expect("an answer");
    for _ in 0..6 {
        sleep(SHORT * 2).await;
        let renewed = store.renew_claim(&key, &owner, SHORT * 5).await.expect("an answer");
        assert_eq!(renewed, Renewed::Kept);
    }
    assert!(matches!(claim(&*store, &key, &Owner::new()).await, ClaimAnswer::Running { .. }));
    assert!(end(&*store, &key, &owner, Ending::Complete(None)).await);
}

async fn done_stays_done(store: Arc<dyn Store>) {
    let (key, owner) = (fresh_key("done"), Owner::new());
    granted(&*store, &key, &owner).await;
    assert!(end(&*store, &key, &owner, Ending::Complete(Some(b"re\0sult"))).await);
    assert!(
        end(&*store, &key, &owner, Ending::Complete(Some(b"re\0sult"))).await,
        "safe to repeat"
    );
    let result = Some(Bytes::from_static(b"re\0sult"));
    assert_eq!(claim(&*store, &key, &Owner::new()).await, ClaimAnswer::Done(result));
    let (key, owner) = (fresh_key("done"), Owner::new());
    granted(&*store, &key, &owner).await;
    assert!(end(&*store, &key, &owner, Ending::Complete(None)).await);
    assert_eq!(claim_carrying(&*store, &key, 7).await, ClaimAnswer::Done(None));
}

async fn only_force_opens_what_is_done(store: Arc<dyn Store>) {
    let (mut key, owner) = (fresh_key("force"), Owner::new());
    granted(&*store, &key, &owner).await;
    end(&*store, &key, &owner, Ending::Complete(None)).await;
    key.generation = 5;
    assert_eq!(claim(&*store, &key, &Owner::new()).await, ClaimAnswer::Done(None));
    let forced = ClaimAsk { force: true, ..ask(&key, &owner, LEASE, 0) };
    let answer = store.claim(&forced).await.expect("an answer");
    assert_eq!(kind_and_attempts(answer), (ClaimKind::Fresh, 0));
    end(&*store, &key, &owner, Ending::Complete(None)).await;
    // Its redelivery, which is forced as well.
    let again = Owner::new();
    let again = ClaimAsk { force: true, ..ask(&key, &again, LEASE, 0) };
    assert_eq!(store.claim(&again).await.expect("an answer"), ClaimAnswer::Done(None));
}

async fn a_stale_owner_ends_nothing(store: Arc<dyn Store>) {
    for ending in [
        Ending::Complete(None),
        failed(1, LEASE, true),
        Ending::Dead("exhausted"),
        Ending::Release,
        Ending::Abandon,
    ] {
        let (key, stale, owner) = (fresh_key("stale"), Owner::new(), Owner::new());
        store.claim(&ask(&key, &stale, SHORT, 0)).await.expect("an answer");
        sleep(SHORT + Duration::from_millis(20)).await;
        granted(&*store, &key, &owner).await;
        assert!(!end(&*store, &key, &stale, ending).await, "{ending:?}");
        let state = store.peek(&key).await.expect("an answer").expect("a record");
        assert_eq!((state.state, state.attempts), ("running", 0), "{ending:?}");
        assert!(end(&*store, &key, &owner, Ending::Complete(None)).await);
    }
}

async fn a_late_end_is_accepted(store: Arc<dyn Store>) {
    let (key, owner) = (fresh_key("late"), Owner::new());
    store.claim(&ask(&key, &owner, SHORT, 0)).await.expect("an answer");
    sleep(SHORT + Duration::from_millis(20)).await;
    assert!(end(&*store, &key, &owner, Ending::Complete(None)).await);
    assert_eq!(claim(&*store, &key, &Owner::new()).await, ClaimAnswer::Done(None));
}

async fn a_gone_record_accepts_the_end(store: Arc<dyn Store>) {
    let (key, owner) = (fresh_key("gone"), Owner::new());
    granted(&*store, &key, &owner).await;
    store.reset(&key).await.expect("an answer");
    assert!(end(&*store, &key, &owner, Ending::Complete(None)).await);
    assert_eq!(claim(&*store, &key, &Owner::new()).await, ClaimAnswer::Done(None));
    let (key, owner) = (fresh_key("gone"), Owner::new());
    granted(&*store, &key, &owner).await;
    store.reset(&key).await.expect("an answer");
    assert!(end(&*store, &key, &owner, failed(3, LEASE, true)).await);
    assert_eq!(claim(&*store, &key, &Owner::new()).await, ClaimAnswer::Superseded);
}

async fn a_failure_is_claimable_when_due(store: Arc<dyn Store>) {
    for copied in [true, false] {
        let (key, owner) = (fresh_key("failed"), Owner::new());
        granted(&*store, &key, &owner).await;
        assert!(end(&*store, &key, &owner, failed(1, SHORT, copied)).await);
        sleep(SHORT + Duration::from_millis(20)).await;
        let answer = claim(&*store, &key, &Owner::new()).await;
        assert_eq!(kind_and_attempts(answer), (ClaimKind::Fresh, 1), "copied {copied}");
    }
}

async fn a_wait_in_process_is_recounted(store: Arc<dyn Store>) {
    let (key, owner, next) = (fresh_key("recounted"), Owner::new(), Owner::new());
    granted(&*store, &key, &owner).await;
    assert!(end(&*store, &key, &owner, failed(1, LEASE, false)).await);
    assert!(end(&*store, &key, &owner, failed(0, Duration::ZERO, false)).await);
    assert_eq!(granted(&*store, &key, &next).await.attempts, 0);
    assert!(!end(&*store, &key, &owner, failed(1, LEASE, false)).await, "it is claimed");
    end(&*store, &key, &next, failed(1, LEASE, true)).await;
    assert!(end(&*store, &key, &next, failed(0, Duration::ZERO, false)).await, "safe to repeat");
    assert_eq!(claim_carrying(&*store, &key, 0).await, ClaimAnswer::Superseded, "its copy lives");
}

async fn the_fork_is_closed(store: Arc<dyn Store>) {
    let (key, owner) = (fresh_key("fork"), Owner::new());
    granted(&*store, &key, &owner).await;
    // Published, confirmed, recorded; then the process died before it acknowledged.
    end(&*store, &key, &owner, failed(1, LEASE, true)).await;
    assert_eq!(claim_carrying(&*store, &key, 0).await, ClaimAnswer::Superseded);
    // The copy has served its wait at the broker, whatever the clocks say.
    let copy = Owner::new();
    let answer = store.claim(&ask(&key, &copy, LEASE, 1)).await.expect("an answer");
    assert_eq!(kind_and_attempts(answer), (ClaimKind::Fresh, 1));
    assert!(matches!(claim_carrying(&*store, &key, 0).await, ClaimAnswer::Running { .. }));
    end(&*store, &key, &copy, Ending::Dead("exhausted")).await;
    for attempts in [0, 1, 2] {
        let answer = claim_carrying(&*store, &key, attempts).await;
        assert_eq!(answer, ClaimAnswer::Dead("exhausted".into()));
    }
}

async fn a_wait_in_process_lets_nobody_in(store: Arc<dyn Store>) {
    let (key, owner) = (fresh_key("parked"), Owner::new());
    granted(&*store, &key, &owner).await;
    end(&*store, &key, &owner, failed(1, LEASE, false)).await;
    for attempts in [0, 1] {
        let answer = claim_carrying(&*store, &key, attempts).await;
        assert!(
            matches!(answer, ClaimAnswer::Waiting { remaining } if remaining <= LEASE),
            "{answer:?}"
        );
    }
}

async fn the_larger_count_counts(store: Arc<dyn Store>) {
    let key = fresh_key("larger");
    for (carried, counted) in [(0, 3), (7, 7)] {
        let owner = Owner::new();
        let answer = store.claim(&ask(&key, &owner, LEASE, carried)).await.expect("an answer");
        let attempts = kind_and_attempts(answer).1;
        assert_eq!(attempts, if carried == 0 { 0 } else { counted });
        end(&*store, &key, &owner, failed(3, Duration::ZERO, true)).await;
        let next = Owner::new();
        let answer = store.claim(&ask(&key, &next, LEASE, 0)).await.expect("an answer");
        assert_eq!(kind_and_attempts(answer).1, 3);
        end(&*store, &key, &next, Ending::Release).await;
    }
}

async fn a_redrive_opens_the_dead(store: Arc<dyn Store>) {
    let (mut key, owner) = (fresh_key("dead"), Owner::new());
    let answer = store.claim(&ask(&key, &owner, LEASE, 4)).await.expect("an answer");
    assert_eq!(kind_and_attempts(answer).1, 4);
    end(&*store, &key, &owner, Ending::Dead("rejected")).await;
    assert_eq!(claim(&*store, &key, &owner).await, ClaimAnswer::Dead("rejected".into()));
    key.generation = 1;
    let owner = Owner::new();
    let claimed = granted(&*store, &key, &owner).await;
    assert_eq!((claimed.kind, claimed.attempts), (ClaimKind::Fresh, 0));
    end(&*store, &key, &owner, failed(1, LEASE, true)).await;
    key.generation = 0;
    assert_eq!(claim_carrying(&*store, &key, 5).await, ClaimAnswer::Superseded);
}

async fn another_payload_is_a_mismatch(store: Arc<dyn Store>) {
    let (key, owner) = (fresh_key("mismatch"), Owner::new());
    let mut other = ClaimKey { fingerprint: Fingerprint::of(b"another"), ..key.clone() };
    granted(&*store, &key, &owner).await;
    assert_eq!(claim(&*store, &other, &Owner::new()).await, ClaimAnswer::Mismatch);
    end(&*store, &key, &owner, Ending::Dead("rejected")).await;
    assert_eq!(claim(&*store, &other, &Owner::new()).await, ClaimAnswer::Mismatch);
    other.generation = 1;
    granted(&*store, &other, &Owner::new()).await;
}

async fn a_release_counts_nothing(store: Arc<dyn Store>) {
    let (key, owner) = (fresh_key("release"), Owner::new());
    granted(&*store, &key, &owner).await;
    assert!(end(&*store, &key, &owner, Ending::Release).await);
    assert!(end(&*store, &key, &owner, Ending::Release).await, "safe to repeat");
    let claimed = granted(&*store, &key, &Owner::new()).await;
    assert_eq!((claimed.kind, claimed.attempts), (ClaimKind::Fresh, 0));
}

async fn an_abandoned_run_is_told(store: Arc<dyn Store>) {
    let (key, owner) = (fresh_key("abandon"), Owner::new());
    granted(&*store, &key, &owner).await;
    assert!(end(&*store, &key, &owner, Ending::Abandon).await);
    let next = Owner::new();
    let claimed = granted(&*store, &key, &next).await;
    assert_eq!((claimed.kind, claimed.attempts), (ClaimKind::TakenOver, 0));
    end(&*store, &key, &next, failed(1, Duration::ZERO, true)).await;
    let claimed = granted(&*store, &key, &Owner::new()).await;
    assert_eq!((claimed.kind, claimed.attempts), (ClaimKind::Fresh, 1));
}

async fn ids_are_bytes(store: Arc<dyn Store>) {
    let unique = unique("odd");
    let mut keys: Vec<_> = odd_names().iter().map(|name| key(&(name.clone() + &unique))).collect();
    // Where the scope ends makes a difference, and so does the scope.
    for scope in ["a", "orders|", "{", "1:a"] {
        keys.push(ClaimKey { scope: format!("{scope}{unique}").into(), ..key("x") });
        keys.push(ClaimKey { scope: unique.as_str().into(), ..key(&format!("{scope}x")) });
    }
    for key in &keys {
        granted(&*store, key, &Owner::new()).await;
    }
}

async fn peek_and_reset(store: Arc<dyn Store>) {
    let (key, owner) = (fresh_key("peek"), Owner::new());
    assert_eq!(store.peek(&key).await.expect("an answer"), None);
    granted(&*store, &key, &owner).await;
    end(&*store, &key, &owner, failed(2, LEASE, true)).await;
    for _ in 0..2 {
        let state = store.peek(&key).await.expect("an answer").expect("a record");
        assert_eq!((state.state, state.attempts, state.generation), ("failed", 2, 0));
        assert_eq!(state.holder, "test");
        assert!(state.remaining > LEASE / 2);
    }
    assert!(store.reset(&key).await.expect("an answer"));
    assert!(!store.reset(&key).await.expect("an answer"));
    granted(&*store, &key, &Owner::new()).await;
}

async fn the_end_wakes_who_waits(store: Arc<dyn Store>) {
    for ending in [
        Ending::Complete(None),
        failed(1, LEASE, true),
        failed(1, LEASE, false),
        Ending::Dead("exhausted"),
        Ending::Release,
        Ending::Abandon,
    ] {
        let (key, owner) = (fresh_key("awaited"), Owner::new());
        granted(&*store, &key, &owner).await;
        let mut waiting = Vec::new();
        for _ in 0..5 {
            let asks = Owner::new();
            let woken = store.wakes().wait_as(&asks);
            let asked = ClaimAsk { waits: true, ..ask(&key, &asks, LEASE, 0) };
            let answer = store.claim(&asked).await.expect("an answer");
            assert!(matches!(answer, ClaimAnswer::Running { .. }), "{ending:?}: {answer:?}");
            waiting.push(woken);
        }
        // A store that listens from now on may begin with waking everybody once.
        sleep(Duration::from_millis(300)).await;
        for woken in &waiting {
            let _ = tokio::time::timeout(Duration::ZERO, woken.woken()).await;
        }
        assert!(end(&*store, &key, &owner, ending).await);
        for woken in waiting {
            let woken = tokio::time::timeout(Duration::from_secs(20), woken.woken()).await;
            assert!(woken.is_ok(), "{ending:?} woke not everybody");
        }
    }
}

async fn a_redrive_given_back_stays_one(store: Arc<dyn Store>) {
    for ending in [Ending::Complete(None), Ending::Dead("rejected")] {
        let (key, owner) = (fresh_key("given-back"), Owner::new());
        granted(&*store, &key, &owner).await;
        end(&*store, &key, &owner, ending).await;
        let redriven = ClaimKey { generation: 1, ..key.clone() };
        for _ in 0..2 {
            let owner = Owner::new();
            let forced = ClaimAsk { force: true, ..ask(&redriven, &owner, LEASE, 0) };
            let answer = store.claim(&forced).await.expect("an answer");
            assert_eq!(kind_and_attempts(answer), (ClaimKind::Fresh, 0), "{ending:?}");
            assert!(end(&*store, &redriven, &owner, Ending::Release).await);
            let older = claim(&*store, &key, &Owner::new()).await;
            assert_eq!(older, ClaimAnswer::Superseded, "{ending:?}");
        }
        let last = Owner::new();
        granted(&*store, &redriven, &last).await;
        assert!(end(&*store, &redriven, &last, Ending::Complete(None)).await);
        assert_eq!(claim(&*store, &key, &Owner::new()).await, ClaimAnswer::Done(None));
    }
}
