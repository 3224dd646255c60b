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

/// What one run of a handler published, for as long as more can be added to it.
#[derive(Clone, Debug)]
pub(super) struct Run(Arc<Mutex<Option<Vec<Output>>>>);

impl Run {
    fn with(outputs: Vec<Output>) -> Self {
        Self(Arc::new(Mutex::new(Some(outputs))))
    }

    /// False: the run is over, and nothing that is added to it would ever be written.
    fn add(&self, output: Output) -> bool {
        let mut outputs = lock(&self.0);
        outputs.as_mut().map(|outputs| outputs.push(output)).is_some()
    }

    /// Ends it, with what it published.
    fn end(&self) -> Vec<Output> {
        lock(&self.0).take().unwrap_or_default()
    }
}

/// What is to be written when its record is settled.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    run: Mutex<Option<Run>>,
}

impl Outbox {
    /// Begins with another run; what earlier ones published is never written.
    pub(super) fn begin(&self) -> Run {
        self.begin_with(Vec::new())
    }

    /// The record goes elsewhere: the copy is written, and nothing that its handler published.
    pub(super) fn replace(&self, copy: Output) {
        self.begin_with(vec![copy]);
    }

    fn begin_with(&self, outputs: Vec<Output>) -> Run {
        let run = Run::with(outputs);
        if let Some(earlier) = lock(&self.run).replace(run.clone()) {
            earlier.end();
        }
        run
    }

    /// What is to be written; nothing can be added to it any more.
    pub(super) fn take(&self) -> Vec<Output> {
        lock(&self.run).take().map_or_else(Vec::new, |run| run.end())
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
        if self.run.add(output) {
            return Ok(());
        }
        let text = format!(
            "{attempt}: its delivery is settled, and what it published is written; publish before the handler answers, or by \
             `service.publisher(..)`, which takes part in no transaction"
        );
        Err(BrokerError::new(Fault::Invalid, text))
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
        assert!(first.add(output("first")));
        let second = outbox.begin();
        assert!(second.add(output("second")));
        assert!(!first.add(output("late")), "and its publisher is told");
        assert_eq!(payloads(&outbox.take()), ["second"]);
        assert!(!second.add(output("later")), "nobody would write it");
        assert!(outbox.take().is_empty());
    }

    #[test]
    fn a_copy_takes_the_place_of_what_a_failing_handler_published() {
        let outbox = Outbox::default();
        assert!(outbox.begin().add(output("half done")));
        outbox.replace(output("copy"));
        assert_eq!(payloads(&outbox.take()), ["copy"]);
    }
}
