//! What a topic takes, as far as that can be known before writing to it.
//!
//! Owns what was asked lately. Only for transactions: elsewhere the broker's answer comes in time.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::connection::Cluster;
use super::outbox::Output;
use super::prepare;
use crate::broker::{BrokerError, Fault};

/// How old an answer may be.
const AGE_MAX: Duration = Duration::from_secs(60);
/// What the encoding of a record and of its batch may add.
const OVERHEAD: u64 = 512;

/// What is known of topics.
#[derive(Default)]
pub(super) struct Limits {
    known: Mutex<BTreeMap<String, (Instant, Limit)>>,
}

/// What one topic takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limit {
    /// The largest record, in bytes.
    pub(super) bytes_max: u64,
    /// Records without a key are refused.
    pub(super) needs_key: bool,
}

impl Limits {
    /// Whether this can be written.
    ///
    /// # Errors
    /// [`Fault::Missing`] or [`Fault::TooLarge`]; whatever keeps the cluster from answering.
    pub(super) async fn check(
        &self,
        cluster: &Cluster,
        attempt: &str,
        output: &Output,
    ) -> Result<(), BrokerError> {
        let limit = match self.known(&output.topic) {
            Some(limit) => limit,
            None => {
                let Some(limit) = prepare::limit_of(cluster, &output.topic).await? else {
                    let text = format!("{attempt}: there is no topic `{}`", output.topic);
                    return Err(BrokerError::new(Fault::Missing, text));
                };
                let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
                known.insert(output.topic.clone(), (Instant::now(), limit));
                limit
            }
        };
        judge(limit, attempt, output)
    }

    fn known(&self, topic: &str) -> Option<Limit> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(topic).filter(|(at, _)| at.elapsed() < AGE_MAX).map(|(_, limit)| *limit)
    }
}

fn judge(limit: Limit, attempt: &str, output: &Output) -> Result<(), BrokerError> {
    let headers = rdkafka::message::Headers::iter(&output.headers);
    let headers = headers.map(|it| it.key.len() + it.value.map_or(0, <[u8]>::len) + 8);
    let size = (output.size() + headers.sum::<usize>()) as u64 + OVERHEAD;
    if size > limit.bytes_max {
        let text = format!(
            "{attempt}: about {size} bytes, but topic `{}` takes {}; raise its max.message.bytes, or send less",
            output.topic, limit.bytes_max
        );
        return Err(BrokerError::new(Fault::TooLarge, text));
    }
    if limit.needs_key && output.key.is_none() {
        let text = format!(
            "{attempt}: topic `{}` is compacted and takes no record without a key",
            output.topic
        );
        return Err(BrokerError::new(Fault::Mismatch, text));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rdkafka::message::OwnedHeaders;

    use super::*;

    fn said(payload: usize, key: Option<&str>) -> Option<Fault> {
        let key = key.map(Into::into);
        let payload = Some(vec![0; payload]);
        let output = Output { topic: "out".into(), key, payload, headers: OwnedHeaders::new() };
        let limit = Limit { bytes_max: 10_000, needs_key: true };
        judge(limit, "publishing", &output).err().map(|error| error.fault)
    }

    #[test]
    fn what_a_topic_would_refuse_is_refused_before_the_transaction() {
        assert_eq!(said(9_000, Some("k")), None);
        assert_eq!(said(9_900, Some("k")), Some(Fault::TooLarge));
        assert_eq!(said(1, None), Some(Fault::Mismatch));
    }
}
