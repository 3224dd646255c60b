//! A source with its lanes, as the sentences of the contract use it.
//!
//! Owns how messages are sent, received, copied and read back within a time. Asserts no sentence itself.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout;

use super::{PATIENCE, SILENCE, Subject, WAIT};
use crate::broker::{
    Copy, HeaderValue, Lane, LaneEvent, LaneId, Lanes, Outgoing, Place, Received, Settlement,
    Source, Target,
};
use crate::wire;

/// A prepared source with its lane.
pub(super) struct Bench<'a> {
    pub(super) subject: &'a dyn Subject,
    pub(super) source: Arc<Source>,
    pub(super) lanes: Box<dyn Lanes>,
    pub(super) id: LaneId,
    pub(super) lane: Box<dyn Lane>,
    /// Those that messages to the target do not arrive on.
    pub(super) others: Vec<Box<dyn Lane>>,
}

impl<'a> Bench<'a> {
    pub(super) async fn open(subject: &'a dyn Subject) -> Self {
        let source = prepared(subject).await;
        let mut lanes = subject.broker().lanes(source.clone());
        let mut others = Vec::new();
        let (id, lane) = main_lane(subject, &mut *lanes, &mut others).await;
        Self { subject, source, lanes, id, lane, others }
    }

    pub(super) async fn reopen(&mut self) {
        within("closing the lane", self.lane.close()).await.expect("the lane closes");
        self.lanes.release(self.id.clone());
        (self.id, self.lane) = main_lane(self.subject, &mut *self.lanes, &mut self.others).await;
    }

    /// The next message that is a copy, on whichever lane that is; settled there.
    pub(super) async fn receive_copy(&mut self) -> Received {
        if !self.subject.has_lanes_for_copies() {
            let copy = self.receive(1).await.remove(0);
            self.settle(vec![Settlement::Ack(copy.token)]).await;
            return copy;
        }
        let (others, lanes) = (&mut self.others, &mut self.lanes);
        within("receiving on another lane", async {
            loop {
                for lane in &mut *others {
                    let mut got = Vec::new();
                    // Cancelled after a moment: what is not appended is still in the lane.
                    let _ = timeout(Duration::from_millis(20), lane.next(&mut got, 1)).await;
                    if let Some(copy) = got.pop() {
                        lane.settle(&mut vec![Settlement::Ack(copy.token)])
                            .await
                            .expect("it is settled");
                        return copy;
                    }
                }
                let event = timeout(Duration::from_millis(20), lanes.next()).await;
                if let Ok(LaneEvent::Opened(_, lane)) = event {
                    others.push(lane);
                }
            }
        })
        .await
    }

    pub(super) async fn end(mut self) {
        for lane in &mut self.others {
            within("closing a lane", lane.close()).await.expect("the lane closes");
        }
        within("closing the lane", self.lane.close()).await.expect("the lane closes");
        within("closing the lanes", self.lanes.close()).await;
    }

    pub(super) async fn send(&self, count: usize) {
        let publisher = self.subject.broker().publisher();
        for number in 0..count {
            let message = outgoing(self.subject.target(&self.source), &format!("message {number}"));
            within("publishing", publisher.send(&message)).await.expect("the broker stores it");
        }
    }

    pub(super) async fn receive(&mut self, count: usize) -> Vec<Received> {
        let mut got = Vec::new();
        while got.len() < count {
            let missing = count - got.len();
            within("receiving", self.lane.next(&mut got, missing))
                .await
                .expect("the lane delivers");
        }
        got
    }

    pub(super) async fn settle(&mut self, mut settlements: Vec<Settlement>) {
        within("settling", self.lane.settle(&mut settlements)).await.expect("the lane settles");
        assert!(settlements.is_empty(), "settle() empties what it took");
    }

    pub(super) async fn copy(&self, original: &Received, place: Place, stamps: wire::Stamps) {
        let copy = Copy {
            source: self.source.clone(),
            envelope: original.envelope.clone(),
            place,
            stamps,
        };
        within("copying", self.subject.broker().publisher().copy(&copy))
            .await
            .expect("the broker stores the copy");
    }

    pub(super) async fn expect_silence(&mut self) {
        let mut got = Vec::new();
        // However it ends: only what arrived counts.
        let _ = timeout(SILENCE, self.lane.next(&mut got, 10)).await;
        assert!(got.is_empty(), "came again: {:?}", bodies(&got));
    }

    pub(super) async fn read_dead_letters(&self, remove: Option<&str>) -> Vec<String> {
        let opening = self.subject.broker().dead_letters(self.source.clone());
        let mut reader =
            within("opening the dead letters", opening).await.expect("they can be read");
        let mut read = Vec::new();
        while let Some(letter) =
            within("reading a dead letter", reader.next()).await.expect("it can be read")
        {
            let body = bodies(std::slice::from_ref(&letter)).remove(0);
            if remove == Some(body.as_str()) {
                within("removing a dead letter", reader.remove(letter.token))
                    .await
                    .expect("it is removed");
            }
            read.push(body);
        }
        within("closing the reader", reader.close()).await.expect("the rest is given back");
        read.sort();
        read
    }
}

pub(super) async fn prepared(subject: &dyn Subject) -> Arc<Source> {
    let source = subject.source(&[WAIT]);
    within("preparing", subject.broker().prepare(&source))
        .await
        .expect("the source can be prepared");
    source
}

pub(super) async fn main_lane(
    subject: &dyn Subject,
    lanes: &mut dyn Lanes,
    others: &mut Vec<Box<dyn Lane>>,
) -> (LaneId, Box<dyn Lane>) {
    loop {
        match within("opening a lane", lanes.next()).await {
            LaneEvent::Opened(id, lane) if subject.is_main(&id) => return (id, lane),
            LaneEvent::Opened(_, lane) => others.push(lane),
            LaneEvent::Failed(id, error) => panic!("lane {id} could not be opened: {error}"),
        }
    }
}

pub(super) async fn within<T>(what: &str, doing: impl Future<Output = T>) -> T {
    match timeout(PATIENCE, doing).await {
        Ok(done) => done,
        Err(_) => panic!("{what} took longer than {PATIENCE:?}"),
    }
}

pub(super) fn outgoing(target: Target, text: &str) -> Outgoing {
    Outgoing {
        target,
        id: format!("id of {text}"),
        body: Bytes::from(text.to_owned()),
        headers: Vec::new(),
        content_type: Some("text/plain".to_owned()),
        kind: Some("conformance.checked".to_owned()),
        key: None,
        time_to_live: None,
        priority: None,
    }
}

pub(super) fn bodies(messages: &[Received]) -> Vec<String> {
    messages
        .iter()
        .map(|message| String::from_utf8_lossy(message.envelope.body()).into_owned())
        .collect()
}

pub(super) fn sorted(messages: &[Received]) -> Vec<String> {
    let mut bodies = bodies(messages);
    bodies.sort();
    bodies
}

/// What it is known by: what a copy carries of its original, or what the broker itself calls it.
pub(super) fn id_of(message: &Received) -> Option<String> {
    text(message, wire::ID).or_else(|| message.envelope.id().map(str::to_owned))
}

pub(super) fn text(message: &Received, header: &str) -> Option<String> {
    match message.envelope.header(header) {
        Some(HeaderValue::Text(text)) => Some(text.to_owned()),
        Some(HeaderValue::Bytes(bytes)) => Some(String::from_utf8_lossy(bytes).into_owned()),
        _ => None,
    }
}
