//! Many messages in flight at once: each gets its own answer, whatever becomes of its neighbours.

use std::sync::Arc;

use futures_util::future::join_all;
use redeliver::broker::{Broker, BrokerError, Fault, Outgoing, Target};
use tokio::time::timeout;

use crate::server::{Lab, PATIENCE, Raw, message, queue, unique};

/// Sends all of them at once; each with what came of it.
async fn send_all(lab: &Lab, messages: Vec<Outgoing>) -> Vec<(Outgoing, Result<(), BrokerError>)> {
    let publisher = lab.broker.publisher();
    let sending = messages.into_iter().map(|message| {
        let publisher = Arc::clone(&publisher);
        // Tasks, so that they meet on several threads.
        tokio::spawn(async move {
            let sent = publisher.send(&message).await;
            (message, sent)
        })
    });
    let sent = timeout(PATIENCE, join_all(sending)).await.expect("all are answered");
    sent.into_iter().map(|sent| sent.expect("no task panics")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn messages_that_no_queue_takes_are_told_apart_from_their_neighbours() {
    let lab = Lab::connect().await;
    let source = lab.prepared(&[]).await;
    let (there, nowhere) = (Target::Queue(queue(&source)), Target::Queue(unique("nowhere")));
    for lost_every in [2, 3, 50, 1] {
        let messages = (0..600).map(|number| {
            let target = if number % lost_every == 0 { &nowhere } else { &there };
            message(target.clone(), &number.to_string())
        });
        for (message, sent) in send_all(&lab, messages.collect()).await {
            let fault = sent.err().map(|error| error.fault);
            let expected = (message.target == nowhere).then_some(Fault::Unroutable);
            assert_eq!(fault, expected, "one in {lost_every}: {}", message.id);
        }
    }
    let stored = Raw::connect().await.count(&queue(&source)).await;
    assert_eq!(stored, 300 + 400 + 588, "each once: no neighbour had to be sent again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_closes_a_channel_is_blamed_on_nobody_else() {
    let lab = Lab::connect().await;
    let source = lab.prepared(&[]).await;
    let exchange = |exchange: String| Target::Exchange { exchange, routing_key: queue(&source) };
    let (there, missing) = (exchange("amq.direct".to_owned()), exchange(unique("missing")));
    let raw = Raw::connect().await;
    raw.bind(&queue(&source), "amq.direct", &queue(&source)).await;
    let messages = (0..300).map(|number| {
        let target = if number % 60 == 0 { &missing } else { &there };
        message(target.clone(), &number.to_string())
    });
    for (message, sent) in send_all(&lab, messages.collect()).await {
        let fault = sent.err().map(|error| error.fault);
        assert_eq!(fault, (message.target == missing).then_some(Fault::Missing), "{}", message.id);
    }
    assert!(raw.count(&queue(&source)).await >= 295, "stored, some of them perhaps twice");
}

#[tokio::test]
async fn a_send_that_is_dropped_harms_no_other() {
    let lab = Lab::connect().await;
    let source = lab.prepared(&[]).await;
    let target = Target::Queue(queue(&source));
    let nowhere = Target::Queue(unique("nowhere"));
    let publisher = lab.broker.publisher();
    for round in 0..50 {
        // Begun, and dropped with its answer on the way: the answer may be somebody else's.
        let (lost, kept) = (message(nowhere.clone(), "lost"), message(target.clone(), "kept"));
        let mut dropped = Box::pin(publisher.send(&kept));
        let begun = std::future::poll_fn(|context| {
            std::task::Poll::Ready(dropped.as_mut().poll(context).is_pending())
        });
        begun.await;
        let (sent, ()) = futures_util::join!(publisher.send(&lost), async {
            tokio::task::yield_now().await;
            drop(dropped);
        });
        let error = sent.expect_err("no queue takes it");
        assert_eq!(error.fault, Fault::Unroutable, "round {round}: {error}");
    }
}
