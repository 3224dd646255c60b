//! Messages taken together: bounded by size and time, an outcome for each.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use actix::prelude::*;
use redeliver::testing::TestService;
use redeliver::{Batch, Failure, Handled, in_batches};

use crate::bench::{THRICE, orders, text};

struct Bulk;

impl Actor for Bulk {
    type Context = Context<Self>;
}

impl Handler<Batch<String>> for Bulk {
    type Result = Vec<Handled>;

    fn handle(&mut self, batch: Batch<String>, _: &mut Context<Self>) -> Vec<Handled> {
        assert!(batch.deliveries.len() <= 3, "larger than `size`");
        let answers = batch.deliveries.iter().map(|delivery| match delivery.payload.as_str() {
            "panic" if delivery.attempt() == 1 => panic!("no bulk today"),
            "reject" => Err(Failure::reject("not this one")),
            _ => Ok(()),
        });
        let answers: Vec<_> = answers.collect();
        let short = batch
            .deliveries
            .iter()
            .any(|delivery| delivery.payload == "short" && delivery.attempt() == 1);
        answers.into_iter().take(if short { 1 } else { usize::MAX }).collect()
    }
}

fn batches() -> TestService {
    orders("batch = { size = 3, wait = \"2s\" }", THRICE, in_batches(|| Bulk))
}

#[test]
fn a_full_batch_is_handled_at_once_and_a_part_of_one_after_the_wait() {
    let mut test = batches();
    for id in ["1", "2", "3", "4"] {
        test.publish("orders", text(id, "ok"));
    }
    assert_eq!(
        test.log(),
        ["1: attempt 1 handled", "2: attempt 1 handled", "3: attempt 1 handled"]
    );
    test.advance(Duration::from_millis(1_999));
    assert_eq!(test.log().len(), 3, "the rest waits for more");
    test.advance(Duration::from_millis(1));
    assert_eq!(test.log()[3], "4: attempt 1 handled");
}

#[test]
fn each_message_of_a_batch_has_its_own_outcome() {
    let mut test = batches();
    for (id, word) in [("1", "ok"), ("2", "reject"), ("3", "ok")] {
        test.publish("orders", text(id, word));
    }
    let mut log = test.log();
    log.sort();
    assert_eq!(
        log,
        [
            "1: attempt 1 handled",
            "2: attempt 1 dead-lettered: rejected: not this one",
            "3: attempt 1 handled",
        ]
    );
}

#[test]
fn what_a_batch_leaves_unanswered_failed() {
    let mut test = batches();
    for (id, word) in [("1", "ok"), ("2", "short"), ("3", "ok")] {
        test.publish("orders", text(id, word));
    }
    let said = "the handler of the batch gave no answer for this delivery";
    assert_eq!(
        test.log(),
        [
            "1: attempt 1 handled".to_owned(),
            format!("2: attempt 1 retry after 200ms: {said}"),
            format!("3: attempt 1 retry after 200ms: {said}"),
        ]
    );
    test.finish();
    assert!(test.dead_letters("orders").is_empty());
}

#[test]
fn a_batch_that_panics_costs_each_of_its_messages_one_attempt() {
    let mut test = batches();
    for (id, word) in [("1", "ok"), ("2", "panic"), ("3", "ok")] {
        test.publish("orders", text(id, word));
    }
    let log = test.log();
    assert_eq!(log.len(), 3, "{log:?}");
    assert!(
        log.iter()
            .all(|line| line.ends_with("attempt 1 retry after 200ms: panicked: no bulk today"))
    );
    test.finish();
    assert_eq!(test.log().iter().filter(|line| line.ends_with("attempt 2 handled")).count(), 3);
}

#[test]
fn what_cannot_be_decoded_spoils_no_batch() {
    let mut test = batches();
    test.publish("orders", text("1", "ok"));
    test.publish("orders", redeliver::Message::bytes("{").id("2"));
    test.publish("orders", text("3", "ok"));
    test.publish("orders", text("4", "ok"));
    let mut log = test.log();
    log.sort();
    assert_eq!(log.len(), 4, "{log:?}");
    assert!(log[1].starts_with("2: dead-lettered: undecodable"));
}

struct Later;

impl Actor for Later {
    type Context = Context<Self>;
}

impl Handler<Batch<String>> for Later {
    type Result = ResponseFuture<Vec<Handled>>;

    fn handle(&mut self, batch: Batch<String>, _: &mut Context<Self>) -> Self::Result {
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(10)).await;
            let again = batch.deliveries.iter().all(|delivery| delivery.attempt() > 1);
            assert!(again, "no bulk today");
            batch.deliveries.iter().map(|_| Ok(())).collect()
        })
    }
}

#[test]
fn a_batch_that_panics_in_its_future_costs_each_of_its_messages_one_attempt() {
    let settings = "batch = { size = 3, wait = \"2s\" }";
    let mut test = orders(settings, THRICE, in_batches(|| Later));
    for id in ["1", "2", "3"] {
        test.publish("orders", text(id, "ok"));
    }
    test.finish();
    let log = test.log();
    assert_eq!(log.len(), 6, "{log:?}");
    let panicked =
        |line: &&String| line.ends_with("attempt 1 retry after 200ms: panicked: no bulk today");
    assert_eq!(log.iter().filter(panicked).count(), 3, "{log:?}");
    assert_eq!(log.iter().filter(|line| line.ends_with("attempt 2 handled")).count(), 3);
}

/// Says when it is dropped, which is how an aborted handler ends.
struct Ended(Arc<AtomicU32>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// Hangs over a batch in which a message comes for the first time; tells when that ends.
async fn hang_at_first(batch: Batch<String>, ended: Arc<AtomicU32>) -> Vec<Handled> {
    if batch.deliveries.iter().any(|delivery| delivery.attempt() == 1) {
        let _ended = Ended(ended);
        std::future::pending::<()>().await;
    }
    batch.deliveries.iter().map(|_| Ok(())).collect()
}

struct Owned(Arc<AtomicU32>);
struct WithActor(Arc<AtomicU32>);
struct Atomic(Arc<AtomicU32>);

macro_rules! hang {
    ($($actor:ident answers $result:ty, by $wrap:expr;)*) => { $(
        impl Actor for $actor {
            type Context = Context<Self>;
        }

        impl Handler<Batch<String>> for $actor {
            type Result = $result;

            fn handle(&mut self, batch: Batch<String>, _: &mut Context<Self>) -> Self::Result {
                let hangs = hang_at_first(batch, Arc::clone(&self.0));
                $wrap(Box::pin(hangs), self)
            }
        }
    )* };
}
hang! {
    Owned answers ResponseFuture<Vec<Handled>>, by |hangs, _| hangs;
    WithActor answers ResponseActFuture<Self, Vec<Handled>>,
        by |hangs: ResponseFuture<Vec<Handled>>, actor| Box::pin(hangs.into_actor(actor));
    Atomic answers AtomicResponse<Self, Vec<Handled>>,
        by |hangs: ResponseFuture<Vec<Handled>>, actor| AtomicResponse::new(Box::pin(hangs.into_actor(actor)));
}

/// A batch of three that hangs once, in this kind of answer; how often one was aborted.
fn aborted<M>(kind: &str, handlers: impl FnOnce(Arc<AtomicU32>) -> M) -> u32
where
    M: redeliver::IntoHandlers<()>,
{
    let ended = Arc::new(AtomicU32::new(0));
    let settings = "timeout = \"5s\"\nbatch = { size = 3, wait = \"2s\" }";
    let mut test = orders(settings, THRICE, handlers(Arc::clone(&ended)));
    test.publish("orders", text("1", "ok"));
    test.advance(Duration::from_secs(1));
    test.publish("orders", text("2", "ok"));
    test.publish("orders", text("3", "ok"));
    test.advance(Duration::from_millis(4_999));
    assert!(test.log().is_empty(), "{kind}: its time begins when it is handed over");
    assert_eq!(ended.load(Ordering::SeqCst), 0, "{kind}");
    test.advance(Duration::from_millis(1));
    let mut log = test.log();
    log.sort();
    let failed = |id| format!("{id}: attempt 1 retry after 200ms: took longer than 5s");
    assert_eq!(log, [failed("1"), failed("2"), failed("3")], "{kind}");
    let aborted = ended.load(Ordering::SeqCst);
    test.finish();
    assert_eq!(
        test.log().iter().filter(|line| line.ends_with("attempt 2 handled")).count(),
        3,
        "{kind}: {:?}",
        test.log()
    );
    aborted
}

#[test]
fn a_batch_past_its_timeout_is_aborted_and_costs_each_of_its_messages_one_attempt() {
    assert_eq!(aborted("future", |ended| in_batches(move || Owned(ended.clone()))), 1);
    assert_eq!(aborted("with the actor", |ended| in_batches(move || WithActor(ended.clone()))), 1);
    assert_eq!(aborted("atomic", |ended| in_batches(move || Atomic(ended.clone()))), 1);
}

struct AtomicPanic;

impl Actor for AtomicPanic {
    type Context = Context<Self>;
}

impl Handler<Batch<String>> for AtomicPanic {
    type Result = AtomicResponse<Self, Vec<Handled>>;

    fn handle(&mut self, batch: Batch<String>, _: &mut Context<Self>) -> Self::Result {
        AtomicResponse::new(Box::pin(
            async move {
                tokio::time::sleep(Duration::from_millis(10)).await;
                let again = batch.deliveries.iter().all(|delivery| delivery.attempt() > 1);
                assert!(again, "no bulk today");
                batch.deliveries.iter().map(|_| Ok(())).collect()
            }
            .into_actor(self),
        ))
    }
}

#[test]
fn an_atomic_batch_that_panics_costs_its_messages_one_attempt_and_those_behind_it_none() {
    let settings = "batch = { size = 2, wait = \"1s\" }";
    let mut test = orders(settings, THRICE, in_batches(|| AtomicPanic));
    for id in ["1", "2", "3"] {
        test.publish("orders", text(id, "ok"));
    }
    test.advance(Duration::from_millis(100));
    let mut log = test.log();
    log.sort();
    let failed = |id| format!("{id}: attempt 1 retry after 200ms: panicked: no bulk today");
    assert_eq!(log[..2], [failed("1"), failed("2")], "{log:?}");
    assert!(!log[2..].iter().any(|line| line.contains("retry")), "{log:?}");
    test.finish();
    assert_eq!(test.log().iter().filter(|line| line.ends_with("handled")).count(), 3);
}
