//! What a subscription needs in the cluster: its topics, their waits, dead letters, redrives and suspects.
//!
//! Owns the names, as plain data, and how topics are created or verified. Never deletes and never changes what is
//! there.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::group::Kind;
use crate::broker::{BrokerError, Fault, Source};
use crate::config::{BrokerKind, Subscription, Template};

/// What a pattern must not match, whoever's it is: a comma-separated list of expressions, as librdkafka has it.
const OURS: &str = r"^.+\.wait\.[0-9]+$,^.+\.(dead|redrive|suspects)$";

/// The longest name of a topic.
const NAME_LENGTH_MAX: usize = 249;

/// The names of a subscription's topics.
#[derive(Clone, Debug)]
pub(super) struct Names {
    /// The topics that are named, or none with a pattern.
    pub(super) topics: Vec<String>,
    pattern: Option<String>,
    pub(super) group: String,
    wait: Template,
    dead: Template,
}

impl Names {
    pub(super) fn of(settings: &Subscription) -> Self {
        Self {
            topics: settings.topics.clone(),
            pattern: settings.pattern.clone(),
            group: settings.group.clone().unwrap_or_default(),
            wait: settings.wait_template(BrokerKind::Kafka),
            dead: settings.dead_template(BrokerKind::Kafka),
        }
    }

    pub(super) fn wait(&self, topic: &str, wait: Duration) -> String {
        let milliseconds = wait.as_millis().to_string();
        self.wait.fill(&[("topic", topic), ("group", &self.group), ("ms", &milliseconds)])
    }

    pub(super) fn dead(&self, topic: &str) -> String {
        self.dead.fill(&[("topic", topic), ("group", &self.group)])
    }

    pub(super) fn redrive(&self, topic: &str) -> String {
        format!("{topic}.{}.redrive", self.group)
    }

    /// One for all topics: its messages are handled one by one. By the first topic, because another service may have the
    /// same group for others.
    pub(super) fn suspects(&self) -> String {
        let group = self.group_of(Kind::Suspects);
        match self.topics.first() {
            Some(topic) => format!("{topic}.{group}"),
            None => group,
        }
    }

    /// The consumer group that drains these.
    pub(super) fn group_of(&self, kind: Kind) -> String {
        match kind {
            Kind::Source => self.group.clone(),
            Kind::Waits => format!("{}.waits", self.group),
            Kind::Suspects => format!("{}.suspects", self.group),
        }
    }

    /// The group that notes which dead letters are gone.
    pub(super) fn dead_group(&self) -> String {
        format!("{}.dead", self.group)
    }

    /// What such a group subscribes to. Waits by expression: those of an earlier schedule are drained too.
    pub(super) fn subscription(&self, kind: Kind) -> Vec<String> {
        match (kind, &self.pattern) {
            (Kind::Source, Some(pattern)) => vec![pattern.clone()],
            (Kind::Source, None) => self.topics.clone(),
            (Kind::Suspects, _) => vec![self.suspects()],
            (Kind::Waits, Some(_)) => self.wait_expressions(".+").to_vec(),
            (Kind::Waits, None) => {
                self.topics.iter().flat_map(|topic| self.wait_expressions(&escape(topic))).collect()
            }
        }
    }

    fn wait_expressions(&self, topic: &str) -> [String; 2] {
        let group = escape(&self.group);
        let name = escape(self.wait.as_str());
        let waits =
            Template::new(name).fill(&[("topic", topic), ("group", &group), ("ms", "[0-9]+")]);
        [format!("^{waits}$"), format!("^{topic}\\.{group}\\.redrive$")]
    }

    /// What a pattern must not match, as librdkafka takes it: what has the names that we give, and anybody's waits and
    /// dead letters that are named as usual.
    pub(super) fn never_matched(&self) -> String {
        let given = [&self.wait, &self.dead].map(|template| {
            let template = Template::new(escape(template.as_str()));
            template.fill(&[("topic", ".+"), ("group", ".+"), ("ms", "[0-9]+")])
        });
        given.iter().fold(OURS.to_owned(), |list, name| format!("{list},^{name}$"))
    }

    /// Whether these are dead letters of ours.
    fn is_dead(&self, topic: &str) -> bool {
        let filled = self.dead.fill(&[("group", &self.group)]);
        let Some((before, after)) = filled.split_once("{topic}") else { return topic == filled };
        topic
            .strip_prefix(before)
            .is_some_and(|rest| rest.len() > after.len() && rest.ends_with(after))
    }

    /// The topics of the subscription; with a pattern those of the `known` ones that have dead letters of their own.
    pub(super) fn sources(&self, known: &BTreeSet<String>) -> Vec<String> {
        match self.pattern {
            None => self.topics.clone(),
            Some(_) => {
                let has_dead = |topic: &&String| known.contains(&self.dead(topic));
                known.iter().filter(has_dead).cloned().collect()
            }
        }
    }

    /// Whether a topic may be one of the subscription's. Who drains it knows better: a pattern is the client's to read.
    pub(super) fn may_be_source(&self, topic: &str) -> bool {
        match self.pattern {
            None => self.topics.iter().any(|known| known == topic),
            Some(_) => {
                let is_copy = self.wait_of(topic).is_some() || self.is_dead(topic);
                !topic.starts_with("__") && !is_ours(topic) && !is_copy
            }
        }
    }

    /// How long messages in this topic wait; `None` if it is none of the waits.
    pub(super) fn wait_of(&self, topic: &str) -> Option<Duration> {
        if self.pattern.is_none() {
            return self.topics.iter().find_map(|known| self.wait_of_topic(topic, known));
        }
        let filled = self.wait.fill(&[("group", &self.group)]);
        let (before, after) = filled.split_once("{ms}")?;
        let rest = topic.strip_suffix(after)?;
        let start = rest.rfind(|c: char| !c.is_ascii_digit()).map_or(0, |last| last + 1);
        let fixed = before.rsplit('}').next().unwrap_or_default();
        let digits = rest[..start].ends_with(fixed).then_some(&rest[start..])?;
        digits.parse().ok().map(Duration::from_millis)
    }

    /// Whether this only reads like a wait or a redrive of ours: the topic that it would belong to is none of `known`.
    /// It is that of a group whose name ends like ours, and a pattern matches both.
    pub(super) fn is_foreign(&self, topic: &str, known: &BTreeSet<String>) -> bool {
        let is_copy =
            self.wait_of(topic).is_some() || topic.ends_with(&format!(".{}.redrive", self.group));
        self.has_pattern() && is_copy && !known.contains(&self.topic_of(topic, None))
    }

    /// Whether the topics are found by a pattern.
    pub(super) fn has_pattern(&self) -> bool {
        self.pattern.is_some()
    }

    fn wait_of_topic(&self, topic: &str, known: &str) -> Option<Duration> {
        let filled = self.wait.fill(&[("topic", known), ("group", &self.group)]);
        let (before, after) = filled.split_once("{ms}")?;
        let digits = topic.strip_prefix(before)?.strip_suffix(after)?;
        digits.parse().ok().map(Duration::from_millis)
    }

    /// The topic of the subscription that a record belongs to, which may lie in a wait or among the suspects.
    ///
    /// `claimed` is where the record says that it came from: believed only if it is one of ours.
    pub(super) fn topic_of(&self, lies_in: &str, claimed: Option<&str>) -> String {
        let is_ours = |topic: &&str| {
            self.topics.iter().any(|known| known == topic)
                || (self.pattern.is_some() && lies_in == self.suspects())
        };
        if self.topics.iter().any(|known| known == lies_in) {
            return lies_in.to_owned();
        }
        let belongs = |topic: &&String| {
            lies_in == self.redrive(topic)
                || lies_in == self.dead(topic)
                || self.wait_of_topic(lies_in, topic).is_some()
        };
        if let Some(topic) = self.topics.iter().find(belongs) {
            return topic.clone();
        }
        let claimed = claimed.and_then(topic_of_origin);
        if let Some(topic) = claimed.filter(is_ours) {
            return topic.to_owned();
        }
        let marker = format!(".{}.", self.group);
        match (&self.pattern, lies_in.rsplit_once(&marker)) {
            (Some(_), Some((topic, _))) => topic.to_owned(),
            (Some(_), None) => lies_in.to_owned(),
            (None, _) => self.topics.first().cloned().unwrap_or_else(|| lies_in.to_owned()),
        }
    }

    /// Every topic of ours around these topics, in the order of creation, with what it is for.
    pub(super) fn ours(&self, topics: &[String], waits: &[Duration]) -> Vec<(String, Use)> {
        let mut ours = Vec::new();
        for topic in topics {
            ours.push((self.dead(topic), Use::Dead(topic.clone())));
            ours.push((self.redrive(topic), Use::Redrive(topic.clone())));
            for wait in waits {
                ours.push((self.wait(topic, *wait), Use::Wait(topic.clone(), *wait)));
            }
        }
        if let Some(topic) = topics.first() {
            ours.push((self.suspects(), Use::Suspects(topic.clone())));
        }
        ours
    }
}

/// What a topic of ours is for, and the topic that it takes after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Use {
    Dead(String),
    Redrive(String),
    Wait(String, Duration),
    Suspects(String),
}

impl Use {
    pub(super) fn topic(&self) -> &str {
        match self {
            Self::Dead(topic)
            | Self::Redrive(topic)
            | Self::Wait(topic, _)
            | Self::Suspects(topic) => topic,
        }
    }

    /// How long its records are kept: dead letters until a human decides, the others for as long as an outage of
    /// the service may last beyond their wait.
    pub(super) fn retention(&self) -> Option<Duration> {
        const OUTAGE: Duration = Duration::from_secs(14 * 24 * 3600);
        match self {
            Self::Dead(_) => None,
            Self::Redrive(_) | Self::Suspects(_) => Some(OUTAGE),
            Self::Wait(_, wait) => Some(OUTAGE + *wait),
        }
    }

    /// The settings it is created with, for a source whose largest record has `size` bytes.
    pub(super) fn settings(&self, size: u64, in_sync: u32) -> BTreeMap<&'static str, String> {
        // Compaction would merge dead letters of one key and refuse those without; a copy has headers more.
        let retention = self.retention().map_or("-1".to_owned(), |it| it.as_millis().to_string());
        BTreeMap::from([
            ("cleanup.policy", "delete".to_owned()),
            ("retention.ms", retention),
            ("retention.bytes", "-1".to_owned()),
            ("max.message.bytes", (size + COPY_MARGIN).to_string()),
            ("min.insync.replicas", in_sync.to_string()),
        ])
    }
}

/// What the headers of a copy may add to a record.
const COPY_MARGIN: u64 = 64 * 1024;

/// As [`OURS`].
fn is_ours(topic: &str) -> bool {
    let is_wait = topic.rsplit_once('.').is_some_and(|(before, digits)| {
        before.ends_with(".wait") && digits.bytes().all(|byte| byte.is_ascii_digit())
    });
    is_wait || [".dead", ".redrive", ".suspects"].iter().any(|end| topic.ends_with(end))
}

/// `topic/partition/offset`.
fn topic_of_origin(origin: &str) -> Option<&str> {
    let (rest, offset) = origin.rsplit_once('/')?;
    let (topic, partition) = rest.rsplit_once('/')?;
    (offset.parse::<i64>().is_ok() && partition.parse::<i32>().is_ok()).then_some(topic)
}

/// A name as an expression that matches it alone.
fn escape(name: &str) -> String {
    name.replace('.', "\\.")
}

/// Names that Kafka would refuse.
pub(super) fn refuse_names(
    source: &Source,
    names: impl Iterator<Item = String>,
) -> Result<(), BrokerError> {
    let fits = |name: &String| {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        !name.is_empty() && name.len() <= NAME_LENGTH_MAX && name.chars().all(plain)
    };
    let wrong: Vec<String> = names.filter(|name| !fits(name)).map(|name| format!(
        "subscription `{}`: `{name}` is no name of a topic; use at most {NAME_LENGTH_MAX} of a-z, A-Z, 0-9, `.`, `_` and `-`",
        source.name
    )).collect();
    if wrong.is_empty() { Ok(()) } else { Err(BrokerError::new(Fault::Other, wrong.join("\n"))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(topics: &[&str]) -> Names {
        Names::of(&Subscription {
            topics: topics.iter().map(|topic| (*topic).to_owned()).collect(),
            group: Some("billing".to_owned()),
            ..Subscription::default()
        })
    }

    #[test]
    fn waits_are_known_by_their_names() {
        let names = names(&["orders", "orders.v2"]);
        assert_eq!(names.wait_of("orders.billing.wait.1500"), Some(Duration::from_millis(1500)));
        assert_eq!(names.wait_of("orders.billing.redrive"), None);
        assert_eq!(names.topic_of("orders.v2.billing.wait.7", None), "orders.v2");
    }

    #[test]
    fn the_sources_of_a_pattern_are_known_by_their_dead_letters() {
        let mut names = names(&[]);
        names.pattern = Some("^shop".to_owned());
        let known =
            ["shop.a", "shop.a.billing.dead", "shop.b", "else.billing.dead", "__consumer_offsets"];
        let known: BTreeSet<String> = known.iter().map(|topic| (*topic).to_owned()).collect();
        assert_eq!(names.sources(&known), ["shop.a"]);
        let may_be: Vec<_> = known.iter().filter(|topic| names.may_be_source(topic)).collect();
        assert_eq!(may_be, ["shop.a", "shop.b"]);
        assert!(!names.may_be_source("shop.a.billing.wait.1500"));
    }

    #[test]
    fn waits_and_dead_letters_by_other_names_are_none_of_a_patterns_topics() {
        let mut names = names(&[]);
        names.pattern = Some("^shop".to_owned());
        names.wait = Template::new("{topic}-again-{ms}".to_owned());
        names.dead = Template::new("{topic}-failed".to_owned());
        let list = names.never_matched();
        assert!(list.ends_with(",^.+-again-[0-9]+$,^.+-failed$"), "{list}");
        let none = ["shop.a-again-5000", "shop.a-failed", "shop.b.billing.dead", "__transactions"];
        assert!(!none.iter().any(|topic| names.may_be_source(topic)));
        assert!(names.may_be_source("shop.a-failed-orders"));
    }

    #[test]
    fn the_name_of_a_group_may_occur_in_a_topics_name() {
        let mut names = names(&[]);
        names.pattern = Some("^shop".to_owned());
        for ours in ["wait.5000", "redrive", "dead"] {
            let lies_in = format!("shop.billing.eu.billing.{ours}");
            assert_eq!(names.topic_of(&lies_in, None), "shop.billing.eu");
        }
    }

    #[test]
    fn copies_around_a_topic_that_is_not_there_are_those_of_a_group_whose_name_ends_alike() {
        let mut names = names(&[]);
        let known: BTreeSet<String> = ["shop", "shop.eu"].map(str::to_owned).into();
        let copies = ["billing.wait.5000", "billing.redrive"];
        assert!(!names.is_foreign("shop.uk.billing.wait.5000", &known), "no pattern finds it");
        names.pattern = Some("^shop".to_owned());
        for copy in copies {
            assert!(names.is_foreign(&format!("shop.uk.{copy}"), &known), "{copy}");
            assert!(!names.is_foreign(&format!("shop.eu.{copy}"), &known), "{copy}");
        }
        assert!(!names.is_foreign("shop.uk", &known), "it is no copy");
    }

    #[test]
    fn where_a_record_says_it_came_from_is_believed_only_of_our_topics() {
        let names = names(&["orders", "refunds"]);
        let suspects = names.suspects();
        assert_eq!(names.topic_of(&suspects, Some("refunds/3/77")), "refunds");
        assert_eq!(names.topic_of(&suspects, Some("secrets/3/77")), "orders");
        assert_eq!(names.topic_of(&suspects, None), "orders");
    }

    #[test]
    fn suspects_are_told_from_those_of_other_topics_in_the_same_group() {
        assert_eq!(names(&["orders", "refunds"]).suspects(), "orders.billing.suspects");
        assert_eq!(names(&["audit"]).suspects(), "audit.billing.suspects");
        assert_eq!(names(&[]).suspects(), "billing.suspects", "a pattern has no first topic");
    }

    #[test]
    fn waits_of_an_earlier_schedule_are_drained_too() {
        let subscription = names(&["orders"]).subscription(Kind::Waits);
        assert_eq!(
            subscription,
            [r"^orders\.billing\.wait\.[0-9]+$", r"^orders\.billing\.redrive$"]
        );
    }
}
