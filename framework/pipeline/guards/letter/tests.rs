use futures_util::FutureExt;
use tokio::runtime::Handle;
use tokio::time::sleep;

use super::*;
use crate::pipeline::guards::{Guards, LateEnds, LetterRequest};
use crate::store::memory::MemoryStore;
use crate::store::{ClaimKind, Ending, IdempotencyStore, Keeper, LockStore, Locks};
use crate::telemetry::Counter;

const LEASE: Duration = Duration::from_secs(60);
const KEEP: Duration = Duration::from_secs(3600);
/// What goes on in the background is done by then.
const MOMENT: Duration = Duration::from_millis(1);

struct Lab {
    store: Arc<MemoryStore>,
    guards: Guards,
    repeats: Counter,
}

impl Lab {
    fn new() -> Self {
        let (store, repeats) = (Arc::new(MemoryStore::new()), Counter::default());
        let keeper = Keeper::new(Handle::current(), store.clock());
        let locks = Locks::new(Arc::clone(&store) as _, keeper, "test");
        let late = LateEnds::new(repeats.clone());
        let rules = ClaimRules { store: locks, lease: LEASE, keep: KEEP, late };
        Self { store, guards: Guards::new("orders".into(), Some(rules), None), repeats }
    }

    /// Of a letter whose messages have these ids, and nothing at place 0.
    fn asks(&self, ids: &[&str]) -> LetterClaims {
        let request = |id| LetterRequest { id, generation: 0, payload: b"{}", attempts: 0 };
        let requests = ids.iter().enumerate().map(|(number, id)| (number + 1, request(*id)));
        self.guards.claims_together(requests).expect("a subscription with claims")
    }

    /// The same, granted.
    async fn has(&self, ids: &[&str]) -> LetterClaims {
        let mut claims = self.asks(ids);
        let answers = claims.ask().await;
        assert!(claims.note_answers(answers).is_empty(), "they are new");
        claims
    }

    async fn state(&self, id: &str) -> &'static str {
        let key = self.asks(&[id]).claims[0].key.clone();
        self.store.peek(&key).await.expect("an answer").map_or("unknown", |known| known.state)
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_dropped_before_it_was_answered_is_given_back() {
    let lab = Lab::new();
    let claims = lab.asks(&["a", "b"]);
    let answers = claims.ask().await;
    assert_eq!(answers.len(), 2);
    assert_eq!(lab.state("a").await, "running", "the store knows before we do");
    drop((answers, claims));
    sleep(MOMENT).await;
    assert_eq!([lab.state("a").await, lab.state("b").await], ["unknown"; 2]);
}

#[tokio::test(start_paused = true)]
async fn each_of_a_letter_ends_as_what_became_of_it() {
    let lab = Lab::new();
    let mut claims = lab.has(&["handled", "fails", "never begins"]).await;
    assert!(!claims.has(0) && claims.has(1) && claims.has(3) && !claims.has(4));
    assert!(!claims.note_handled(0) && claims.note_handled(1));
    let fails = claims.hand_over(2).expect("it was granted");
    assert!(claims.hand_over(2).is_none() && !claims.note_handled(2), "it is somebody else's");
    claims.give_back();
    let ended = claims.complete().expect("one was handled").await;
    let noted = claims.note_completions(ended);
    assert!(matches!(noted[..], [(1, Ok(true))]), "{noted:?}");
    assert!(fails.failed(LEASE, 1, false).await.expect("an answer"));
    drop(claims);
    sleep(MOMENT).await;
    assert_eq!(lab.state("handled").await, "done");
    assert_eq!(lab.state("fails").await, "failed");
    assert_eq!(lab.state("never begins").await, "unknown");
}

#[tokio::test(start_paused = true)]
async fn what_was_handled_and_is_dropped_is_completed_and_not_claimed_meanwhile() {
    let lab = Lab::new();
    let mut claims = lab.has(&["a", "b"]).await;
    assert!(claims.note_handled(1));
    drop(claims.complete());
    drop(claims);
    assert!(!lab.asks(&["a"]).has(1), "its end is on its way: who asks alone is told");
    sleep(MOMENT).await;
    assert_eq!([lab.state("a").await, lab.state("b").await], ["done", "unknown"]);
    assert!(lab.asks(&["a"]).has(1));
}

#[tokio::test(start_paused = true)]
async fn refusals_come_out_with_their_places() {
    let lab = Lab::new();
    let mut before = lab.has(&["done", "runs"]).await;
    assert!(before.note_handled(1));
    let _runs = before.hand_over(2);
    let ended = before.complete().expect("one was handled").await;
    before.note_completions(ended);
    let mut claims = lab.asks(&["new", "done", "runs", "new"]);
    let answers = claims.ask().await;
    let refusals = claims.note_answers(answers);
    let names: Vec<_> = refusals
        .iter()
        .map(|(place, refusal)| match refusal {
            Admission::Done { .. } => (*place, "done"),
            Admission::Running { .. } => (*place, "running"),
            _ => (*place, "something else"),
        })
        .collect();
    assert_eq!(names, [(2, "done"), (3, "running"), (4, "running")]);
    let granted: Vec<_> = claims.granted().map(|(place, claim)| (place, claim.kind)).collect();
    assert_eq!(granted, [(1, ClaimKind::Fresh)]);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_missing_is_an_error_of_its_message() {
    let lab = Lab::new();
    let mut claims = lab.asks(&["a", "b"]);
    let mut answers = claims.ask().await;
    answers.pop();
    let refusals = claims.note_answers(answers);
    assert!(matches!(refusals[..], [(2, Admission::Failed(_))]));
    sleep(MOMENT).await;
    assert_eq!([lab.state("a").await, lab.state("b").await], ["running", "unknown"]);
}

#[tokio::test(start_paused = true)]
async fn what_waits_behind_others_is_kept_for_as_long_as_it_waits() {
    let lab = Lab::new();
    let mut claims = lab.has(&["a", "b"]).await;
    sleep(LEASE * 5).await;
    assert_eq!(claims.loss(), None);
    let held = claims.hand_over(1).expect("it was granted");
    assert!(held.lost().now_or_never().is_none(), "its own lease goes on from there");
    assert_eq!(lab.state("a").await, "running");
    assert!(claims.note_handled(2));
    let ended = claims.complete().expect("one was handled").await;
    assert!(matches!(claims.note_completions(ended)[..], [(2, Ok(true))]));
    assert!(held.complete(None).await.expect("an answer"));
}

#[tokio::test(start_paused = true)]
async fn when_one_is_taken_away_all_that_have_not_begun_are_lost() {
    let lab = Lab::new();
    let mut claims = lab.has(&["a", "b"]).await;
    lab.store.reset(&claims.claims[0].key).await.expect("an answer");
    sleep(LEASE / 2).await;
    assert_eq!(claims.loss(), Some(Lost::Claim(crate::store::Loss::NotOwner)));
    claims.give_back();
}

#[tokio::test(start_paused = true)]
async fn who_was_handled_after_somebody_took_over_is_told() {
    let lab = Lab::new();
    let mut claims = lab.has(&["a"]).await;
    let (key, owner) = (claims.claims[0].key.clone(), claims.claims[0].owner.clone());
    lab.store.end(&key, &owner, &Ending::Abandon, KEEP).await.expect("an answer");
    let other = lab.has(&["a"]).await;
    assert!(claims.note_handled(1));
    let ended = claims.complete().expect("one was handled").await;
    assert!(matches!(claims.note_completions(ended)[..], [(1, Ok(false))]));
    drop(other);
    assert_eq!(lab.repeats.get(), 0, "whoever asked counts it");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_asked_at_the_end_where_nothing_was_handled() {
    let lab = Lab::new();
    let mut claims = lab.has(&["a"]).await;
    claims.give_back();
    assert!(claims.complete().is_none());
    assert!(claims.ask().now_or_never().is_some(), "the memory answers at once");
}
