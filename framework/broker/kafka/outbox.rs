//! What was published over one record of a transactional subscription, until the record is settled.
//!
//! Owns the messages of the last run of its handler, or the copy that took their place. Sends nothing: the
//! transaction that finishes the record does.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use rdkafka::message::OwnedHeaders;

use super::connection::Cluster;
use super::publisher::{attempt_of, headers_of, topic_of};
use crate::broker::{BrokerError, Copied, Copy, Fault, Outgoing, Publisher};

/// A record to be written.
#[derive(Clone, Debug)]
pub(super) struct Output {
    pub(super) topic: String,
    pub(super) key: Option<Vec<u8>>,
    pub(super) payload: Option<Vec<u8>>,
    pub(super) headers: OwnedHeaders,
}

impl Output {
    /// How much memory it takes, about.
    pub(super) fn size(&self) -> usize {
        let length = |bytes: &Option<Vec<u8>>| bytes.as_ref().map_or(0, Vec::len);
        self.topic.len() + length(&self.key) + length(&self.payload)
    }
}

/// What one run of a handler published.
type Run = Arc<Mutex<Vec<Output>>>;

/// What is to be written when its record is settled.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    run: Mutex<Run>,
}

impl Outbox {
    /// Begins with another run; what earlier ones published, or still publish, is never written.
    pub(super) fn begin(&self) -> Run {
        let run = Run::default();
        *lock(&self.run) = Arc::clone(&run);
        run
    }

    /// The record goes elsewhere: the copy is written, and nothing that its handler published.
    pub(super) fn replace(&self, copy: Output) {
        lock(&self.begin()).push(copy);
    }

    /// What is to be written.
    pub(super) fn take(&self) -> Vec<Output> {
        let run = std::mem::take(&mut *lock(&self.run));
        std::mem::take(&mut *lock(&run))
    }
}

/// The publisher of one run.
pub(super) struct Buffered {
    pub(super) run: Run,
    pub(super) cluster: Cluster,
}

#[async_trait]
impl Publisher for Buffered {
    /// Refuses now what the transaction could not write later: there it would be nobody's failure any more.
    async fn send(&self, message: &Outgoing) -> Result<(), BrokerError> {
        let attempt = attempt_of(message);
        let output = Output {
            topic: topic_of(message)?.to_owned(),
            key: message.key.as_ref().map(|key| key.to_vec()),
            payload: Some(message.body.to_vec()),
            headers: headers_of(message, std::time::SystemTime::now()),
        };
        self.cluster.limits.check(&self.cluster, &attempt, &output).await?;
        lock(&self.run).push(output);
        Ok(())
    }

    async fn copy(&self, copy: &Copy) -> Result<Copied, BrokerError> {
        let text = format!(
            "subscription `{}`: copies are not published by the publisher of a delivery",
            copy.source.name
        );
        Err(BrokerError::new(Fault::Other, text))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(payload: &str) -> Output {
        let payload = Some(payload.into());
        Output { topic: "out".into(), key: None, payload, headers: OwnedHeaders::new() }
    }

    fn payloads(outputs: &[Output]) -> Vec<&str> {
        let payloads = outputs.iter().filter_map(|output| output.payload.as_deref());
        payloads.filter_map(|bytes| std::str::from_utf8(bytes).ok()).collect()
    }

    #[test]
    fn only_what_the_last_run_published_is_written() {
        let outbox = Outbox::default();
        let first = outbox.begin();
        lock(&first).push(output("first"));
        let second = outbox.begin();
        lock(&second).push(output("second"));
        lock(&first).push(output("late"));
        assert_eq!(payloads(&outbox.take()), ["second"]);
        assert!(outbox.take().is_empty());
    }

    #[test]
    fn a_copy_takes_the_place_of_what_a_failing_handler_published() {
        let outbox = Outbox::default();
        lock(&outbox.begin()).push(output("half done"));
        outbox.replace(output("copy"));
        assert_eq!(payloads(&outbox.take()), ["copy"]);
    }
}
