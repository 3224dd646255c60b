//! What of the topics that are there could lose messages: findings, each with what to do.
//!
//! Pure: judges what was read of the cluster. Repairs nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use super::topology::Use;
use crate::broker::{BrokerError, Fault, Source};

/// The largest record of a topic that does not say.
pub(super) const RECORD_MAX: u64 = 1_048_588;

/// What the cluster must have at least.
#[derive(Clone, Copy, Debug)]
pub(super) struct Durability {
    pub(super) replication_min: Option<u32>,
    pub(super) in_sync_min: Option<u32>,
    /// Only for trying out: nothing is required that nobody asked for.
    pub(super) is_loopback: bool,
}

/// Required unless told otherwise, where the cluster is not on this machine.
const COPIES_MIN: u32 = 2;

/// What is wrong, and what should be looked at.
#[derive(Default)]
pub(super) struct Findings {
    pub(super) wrong: Vec<(Fault, String)>,
    pub(super) warnings: Vec<String>,
}

/// A topic as it is.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    pub(super) partitions: i32,
    pub(super) replication: u32,
    pub(super) settings: BTreeMap<String, String>,
}

impl Facts {
    fn number(&self, setting: &str) -> Option<i64> {
        self.settings.get(setting)?.parse().ok()
    }

    pub(super) fn in_sync(&self) -> u32 {
        let told = self.number("min.insync.replicas").and_then(|told| u32::try_from(told).ok());
        told.unwrap_or(1).min(self.replication).max(1)
    }

    pub(super) fn record_max(&self) -> u64 {
        let told = self.number("max.message.bytes").and_then(|told| u64::try_from(told).ok());
        told.unwrap_or(RECORD_MAX)
    }
}

/// Looks at a topic of the subscription.
pub(super) fn look_at_source(
    topic: &str,
    facts: &Facts,
    durability: Durability,
    source: &Source,
    findings: &mut Findings,
) {
    look_at_copies(topic, facts, durability, findings);
    let longest = source.waits.last().copied().unwrap_or_default() + source.settings.timeout;
    let retention = facts.number("retention.ms").and_then(|told| u64::try_from(told).ok());
    if let Some(retention) = retention.map(Duration::from_millis).filter(|it| *it <= longest) {
        findings.wrong.push((Fault::Mismatch, format!(
            "topic `{topic}` keeps its records for {retention:?}, but a message may wait and run for {longest:?}; raise retention.ms, or shorten the retry policy"
        )));
    }
    if facts.settings.get("message.timestamp.type").is_some_and(|it| it == "LogAppendTime") {
        findings.warnings.push(format!(
            "topic `{topic}` has message.timestamp.type=LogAppendTime: the age of a message counts from its arrival, not from when it was made"
        ));
    }
}

/// Whether a topic survives a machine.
fn look_at_copies(name: &str, facts: &Facts, durability: Durability, findings: &mut Findings) {
    let checks = [
        ("replicas", "replication_min", durability.replication_min, facts.replication),
        ("min.insync.replicas", "in_sync_min", durability.in_sync_min, facts.in_sync()),
    ];
    for (what, key, told, is) in checks {
        let wanted = told.unwrap_or(COPIES_MIN);
        if is >= wanted || (what != "replicas" && facts.settings.is_empty()) {
            continue;
        }
        let text = format!(
            "topic `{name}` has {what} {is}, but {wanted} are wanted: with one machine its messages may be lost; raise it there, or set `{key}` of the broker"
        );
        match told.is_none() && durability.is_loopback {
            true => findings.warnings.push(text),
            false => findings.wrong.push((Fault::Mismatch, text)),
        }
    }
}

/// Looks at a topic of ours that somebody else made, or we did under other settings; `source` is what it takes after.
pub(super) fn look_at_ours(
    name: &str,
    role: &Use,
    facts: &Facts,
    source: Option<&Facts>,
    durability: Durability,
    findings: &mut Findings,
) {
    if matches!(role, Use::Suspects(_)) && facts.partitions != 1 {
        findings.wrong.push((Fault::Mismatch, format!(
            "topic `{name}` has {} partitions, but what may have ended a process is handled one by one: it must have 1; delete it when it is empty",
            facts.partitions
        )));
    }
    // What its source lacks too is said of that one.
    let is_worse = |source: &Facts| {
        facts.replication < source.replication || facts.in_sync() < source.in_sync()
    };
    if source.is_none_or(is_worse) {
        look_at_copies(name, facts, durability, findings);
    }
    let largest = source.filter(|source| facts.record_max() < source.record_max());
    if let Some(largest) = largest.filter(|_| !facts.settings.is_empty()) {
        findings.wrong.push((Fault::Mismatch, format!(
            "topic `{name}` has max.message.bytes={}, but `{}` takes {}: the copy of a large message would find no place; raise it to more than that",
            facts.record_max(), role.topic(), largest.record_max()
        )));
    }
    let policy = facts.settings.get("cleanup.policy");
    if let Some(policy) = policy.filter(|policy| policy.contains("compact")) {
        findings.wrong.push((Fault::Mismatch, format!(
            "topic `{name}` has cleanup.policy={policy}: messages of one key would replace one another; set it to delete"
        )));
    }
    look_at_retention(name, role, facts, findings);
}

fn look_at_retention(name: &str, role: &Use, facts: &Facts, findings: &mut Findings) {
    if let Some(bytes) = facts.number("retention.bytes").filter(|bytes| *bytes >= 0) {
        findings.warnings.push(format!(
            "topic `{name}` keeps {bytes} bytes of each partition and deletes what is older, whether or not it was read; set retention.bytes=-1"
        ));
    }
    let retention = facts.number("retention.ms").and_then(|told| u64::try_from(told).ok());
    let Some(retention) = retention else { return };
    match role {
        Use::Wait(_, wait) if u128::from(retention) <= wait.as_millis() * 2 => {
            findings.wrong.push((Fault::Mismatch, format!(
                "topic `{name}` keeps its records for {retention} ms, too short for a wait of {wait:?}; raise retention.ms"
            )));
        }
        Use::Dead(_) => findings.warnings.push(format!(
            "topic `{name}` keeps dead letters for {:?} and deletes them then; set retention.ms=-1 if they are to stay",
            Duration::from_millis(retention)
        )),
        Use::Wait(..) | Use::Redrive(_) | Use::Suspects(_) => {}
    }
}

/// One text of several lines; whoever shows it names the subscription before the first of them.
pub(super) fn under(source: &Source, lines: &[&str]) -> String {
    lines.join(&format!("\nsubscription `{}`: ", source.name))
}

impl Findings {
    /// The warnings, or everything that is wrong, one line each.
    pub(super) fn into_result(self, source: &Source) -> Result<Vec<String>, BrokerError> {
        let Some((fault, _)) = self.wrong.first() else { return Ok(self.warnings) };
        let lines: Vec<&str> = self.wrong.iter().map(|(_, text)| text.as_str()).collect();
        Err(BrokerError::new(*fault, under(source, &lines)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(partitions: i32, replication: u32, settings: &[(&str, &str)]) -> Facts {
        let settings = settings.iter().map(|(name, value)| ((*name).into(), (*value).into()));
        Facts { partitions, replication, settings: settings.collect() }
    }

    fn said(role: &Use, found: &Facts) -> Vec<String> {
        let source = facts(6, 3, &[("max.message.bytes", "2000"), ("min.insync.replicas", "2")]);
        let durability =
            Durability { replication_min: None, in_sync_min: None, is_loopback: false };
        let mut findings = Findings::default();
        look_at_ours("it", role, found, Some(&source), durability, &mut findings);
        let wrong = findings.wrong.into_iter().map(|(_, text)| text);
        wrong.chain(findings.warnings).collect()
    }

    #[test]
    fn a_dead_letter_topic_with_a_brokers_defaults_is_found() {
        let settings = [
            ("max.message.bytes", "1000"),
            ("retention.ms", "604800000"),
            ("min.insync.replicas", "1"),
        ];
        let said = said(&Use::Dead("orders".into()), &facts(1, 1, &settings));
        let expected = [
            "`it` has replicas 1, but 2 are wanted",
            "`it` has min.insync.replicas 1, but 2 are wanted",
            "`it` has max.message.bytes=1000, but `orders` takes 2000",
            "`it` keeps dead letters for 604800s and deletes them then",
        ];
        assert_eq!(said.len(), expected.len(), "{said:?}");
        for (said, expected) in said.iter().zip(expected) {
            assert!(said.contains(expected), "{said}");
        }
    }

    #[test]
    fn a_topic_that_keeps_only_so_many_bytes_is_found() {
        let settings = [("retention.bytes", "1000"), ("max.message.bytes", "2000")];
        let found = facts(6, 3, &settings);
        let wait = Use::Wait("orders".into(), Duration::from_secs(5));
        for role in [wait, Use::Dead("orders".into()), Use::Redrive("orders".into())] {
            let said = said(&role, &found);
            assert!(said.iter().any(|it| it.contains("`it` keeps 1000 bytes")), "{said:?}");
        }
    }

    #[test]
    fn what_may_end_a_process_is_handled_one_by_one() {
        let settings = [("max.message.bytes", "2000"), ("min.insync.replicas", "2")];
        let found = said(&Use::Suspects("orders".into()), &facts(3, 3, &settings));
        assert!(found[0].contains("has 3 partitions") && found.len() == 1, "{found:?}");
        assert!(said(&Use::Suspects("orders".into()), &facts(1, 3, &settings)).is_empty());
    }
}
