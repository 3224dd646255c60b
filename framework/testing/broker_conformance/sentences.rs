//! Each sentence as a test of its own: the name says what holds.
//!
//! Public for the tests of adapters, which run them one by one against a server.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, timeout};

use super::bench::{Bench, bodies, id_of, outgoing, prepared, sorted, text, within};
use super::{PATIENCE, Subject, WAIT};
use crate::broker::{Place, Settlement};
use crate::wire;

/// Sentence 1.
pub async fn s01_what_was_prepared_needs_no_more_preparation(subject: &dyn Subject) {
    let source = prepared(subject).await;
    within("preparing again", subject.broker().prepare(&source))
        .await
        .expect("preparing twice finds no difference");
    assert!(!subject.broker().topology(&source).is_empty(), "topology() lists what was declared");
}

/// Sentence 2.
pub async fn s02_a_lane_comes_again_after_its_release_under_a_higher_generation(
    subject: &dyn Subject,
) {
    let mut bench = Bench::open(subject).await;
    let first = bench.lane.generation();
    bench.reopen().await;
    assert!(
        bench.lane.generation() > first,
        "{} is not higher than {first}",
        bench.lane.generation()
    );
    bench.end().await;
}

/// Sentence 3.
pub async fn s03_a_batch_holds_one_to_limit_messages_in_order(subject: &dyn Subject) {
    let mut bench = Bench::open(subject).await;
    bench.send(10).await;
    let mut got = Vec::new();
    while got.len() < 10 {
        let before = got.len();
        within("receiving", bench.lane.next(&mut got, 3)).await.expect("the lane delivers");
        assert!(
            (1..=3).contains(&(got.len() - before)),
            "{} messages at a limit of 3",
            got.len() - before
        );
    }
    assert_eq!(bodies(&got), (0..10).map(|number| format!("message {number}")).collect::<Vec<_>>());
    bench.end().await;
}

/// Sentence 3.
pub async fn s03_a_cancelled_next_loses_nothing(subject: &dyn Subject) {
    let mut bench = Bench::open(subject).await;
    let mut got = Vec::new();
    bench.send(20).await;
    let end = Instant::now() + PATIENCE;
    while got.len() < 20 {
        assert!(
            Instant::now() < end,
            "only {} of 20 messages came through cancelled calls",
            got.len()
        );
        // However it ends, whatever was appended counts.
        let _ = timeout(Duration::from_millis(1), bench.lane.next(&mut got, 2)).await;
    }
    let distinct: BTreeSet<_> = bodies(&got).into_iter().collect();
    assert_eq!(distinct.len(), 20, "a message came twice");
    bench.end().await;
}

/// Sentence 4.
pub async fn s04_what_nobody_settled_comes_again(subject: &dyn Subject) {
    let mut bench = Bench::open(subject).await;
    bench.send(3).await;
    assert_eq!(bench.receive(3).await.len(), 3);
    bench.reopen().await;
    let again = bench.receive(3).await;
    assert_eq!(sorted(&again), ["message 0", "message 1", "message 2"]);
    bench.end().await;
}

/// Sentence 5.
pub async fn s05_what_is_acknowledged_is_gone_and_what_is_returned_comes_again(
    subject: &dyn Subject,
) {
    let mut bench = Bench::open(subject).await;
    bench.send(2).await;
    let got = bench.receive(2).await;
    bench.settle(vec![Settlement::Ack(got[0].token), Settlement::Return(got[1].token)]).await;
    let again = bench.receive(1).await;
    assert_eq!(bodies(&again), ["message 1"]);
    assert_eq!(
        wire::Carried::read(&*again[0].envelope).attempts,
        0,
        "a return counted as an attempt"
    );
    bench.settle(vec![Settlement::Ack(again[0].token)]).await;
    bench.reopen().await;
    bench.expect_silence().await;
    bench.end().await;
}

/// Sentence 5, where more was read meanwhile than was handed out.
pub async fn s05_what_is_behind_a_message_that_is_returned_comes_too(subject: &dyn Subject) {
    let mut bench = Bench::open(subject).await;
    bench.send(40).await;
    let mut missing: BTreeSet<String> = (0..40).map(|number| format!("message {number}")).collect();
    let got = bench.receive(5).await;
    let token = |index: usize| Settlement::Ack(got[index].token);
    bench
        .settle(vec![token(0), Settlement::Return(got[1].token), token(2), token(3), token(4)])
        .await;
    for index in [0, 2, 3, 4] {
        missing.remove(&bodies(&got)[index]);
    }
    while !missing.is_empty() {
        let got = bench.receive(1).await;
        missing.remove(&bodies(&got)[0]);
        bench.settle(vec![Settlement::Ack(got[0].token)]).await;
    }
    bench.reopen().await;
    bench.expect_silence().await;
    bench.end().await;
}

/// Sentence 6.
pub async fn s06_a_settlement_of_an_earlier_generation_settles_nothing(subject: &dyn Subject) {
    let mut bench = Bench::open(subject).await;
    bench.send(1).await;
    let old = bench.receive(1).await[0].token;
    bench.reopen().await;
    bench.receive(1).await;
    bench.settle(vec![Settlement::Ack(old)]).await;
    bench.reopen().await;
    assert_eq!(
        bodies(&bench.receive(1).await),
        ["message 0"],
        "an old settlement removed a new delivery"
    );
    bench.end().await;
}

/// Sentence 7.
pub async fn s07_a_slow_message_holds_no_other_settlement_back(subject: &dyn Subject) {
    let mut bench = Bench::open(subject).await;
    bench.send(3).await;
    let got = bench.receive(3).await;
    bench.settle(vec![Settlement::Ack(got[2].token), Settlement::Ack(got[1].token)]).await;
    bench.reopen().await;
    let again = bench.receive(1).await;
    assert_eq!(bodies(&again), ["message 0"], "the slow one is still there");
    if subject.settles_out_of_order() {
        bench.expect_silence().await;
    }
    bench.end().await;
}

/// Sentence 8.
pub async fn s08_closing_right_after_the_last_acknowledgement_loses_none(subject: &dyn Subject) {
    let mut bench = Bench::open(subject).await;
    for _ in 0..3 {
        bench.send(150).await;
        let got = bench.receive(150).await;
        bench.settle(got.iter().map(|message| Settlement::Ack(message.token)).collect()).await;
        bench.reopen().await;
    }
    bench.expect_silence().await;
    bench.end().await;
}

/// Sentence 8.
pub async fn s08_what_is_unsettled_at_the_close_goes_back(subject: &dyn Subject) {
    let mut bench = Bench::open(subject).await;
    bench.send(30).await;
    let got = bench.receive(10).await;
    let mut gone: BTreeSet<_> = bodies(&got[..5]).into_iter().collect();
    bench.settle(got[..5].iter().map(|message| Settlement::Ack(message.token)).collect()).await;
    bench.reopen().await;
    gone.extend(bodies(&bench.receive(25).await));
    assert_eq!(gone.len(), 30, "what was not settled came back, and nothing else");
    bench.end().await;
}

/// Sentence 9.
pub async fn s09_a_message_that_nobody_stores_is_an_error(subject: &dyn Subject) {
    let publisher = subject.broker().publisher();
    let lost = outgoing(subject.nowhere(), "nobody");
    let refused =
        within("publishing to nowhere", publisher.send(&lost)).await.expect_err("nobody stored it");
    assert!(refused.text.contains("nobody"), "the error names the message: {refused}");
    let mut bench = Bench::open(subject).await;
    bench.send(1).await;
    assert_eq!(bench.receive(1).await.len(), 1);
    bench.end().await;
}

/// Sentence 10.
pub async fn s10_a_copy_is_the_message_with_new_stamps(subject: &dyn Subject) {
    let mut bench = Bench::open(subject).await;
    let mut message = outgoing(subject.target(&bench.source), "with everything");
    message.body = Bytes::from_static(b"\x00\xff bytes");
    message.key = Some(Bytes::from_static(b"tenant-7"));
    message.headers = vec![
        ("traceparent".to_owned(), "00-1-2-03".to_owned()),
        (wire::ATTEMPT.to_owned(), "1".to_owned()),
    ];
    within("publishing", subject.broker().publisher().send(&message)).await.expect("it is stored");
    let original = bench.receive(1).await.remove(0);
    let id = id_of(&original).expect("it was published with one");
    bench
        .copy(
            &original,
            Place::Source,
            vec![
                (wire::ID, id.clone()),
                (wire::ATTEMPT, "2".to_owned()),
                (wire::REASON, "exhausted".to_owned()),
            ],
        )
        .await;
    bench.settle(vec![Settlement::Ack(original.token)]).await;
    let copied = bench.receive_copy().await;
    assert_eq!(id_of(&copied), Some(id));
    let (copy, original) = (&copied.envelope, &original.envelope);
    assert_eq!((copy.body(), copy.key()), (original.body(), original.key()));
    assert_eq!((copy.content_type(), copy.kind()), (original.content_type(), original.kind()));
    assert_eq!(text(&copied, "traceparent").as_deref(), Some("00-1-2-03"));
    assert_eq!(
        text(&copied, wire::ATTEMPT).as_deref(),
        Some("2"),
        "the new stamp replaces the old one"
    );
    assert_eq!(text(&copied, wire::REASON).as_deref(), Some("exhausted"));
    bench.end().await;
}

/// Sentence 11.
pub async fn s11_a_wait_is_never_early(subject: &dyn Subject) {
    let mut bench = Bench::open(subject).await;
    bench.send(1).await;
    let original = bench.receive(1).await.remove(0);
    let began = Instant::now();
    bench.copy(&original, Place::Wait(WAIT), vec![(wire::ATTEMPT, "1".to_owned())]).await;
    bench.settle(vec![Settlement::Ack(original.token)]).await;
    let back = bench.receive_copy().await;
    assert!(began.elapsed() >= WAIT, "early: {:?}", began.elapsed());
    assert_eq!(text(&back, wire::ATTEMPT).as_deref(), Some("1"));
    bench.end().await;
}

/// Sentence 13.
pub async fn s13_a_dead_letter_that_was_read_stays_until_it_is_removed(subject: &dyn Subject) {
    let mut bench = Bench::open(subject).await;
    bench.send(3).await;
    for original in bench.receive(3).await {
        bench.copy(&original, Place::Dead, vec![(wire::REASON, "rejected".to_owned())]).await;
        bench.settle(vec![Settlement::Ack(original.token)]).await;
    }
    let all = ["message 0", "message 1", "message 2"];
    assert_eq!(bench.read_dead_letters(None).await, all);
    assert_eq!(bench.read_dead_letters(Some("message 1")).await, all, "they stayed");
    assert_eq!(bench.read_dead_letters(None).await, ["message 0", "message 2"], "one was removed");
    bench.expect_silence().await;
    bench.end().await;
}
