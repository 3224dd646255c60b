//! What came of it: the closing line, and what is wrong if anything is.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Instant;

use redeliver::{DeadLetter, Reason, Service};
use serde::Serialize;

use crate::Error;
use crate::chosen::Fate;
use crate::options::{Job, SUBSCRIPTION};

/// How many ids are named in one complaint.
const NAMED_MAX: usize = 5;

/// The closing line. `published` and `retried` count messages, the others distinct ids; what a
/// half of the job cannot know is null, and so is what was not found out before it had to end.
#[derive(Default, Serialize)]
pub(crate) struct Summary {
    pub(crate) published: Option<u64>,
    pub(crate) distinct: Option<usize>,
    pub(crate) handled: Option<usize>,
    pub(crate) retried: Option<u64>,
    pub(crate) dead_lettered: Option<usize>,
    pub(crate) lost: Option<usize>,
    pub(crate) seconds: f64,
}

/// What is known of a job, and what is wrong with it.
pub(crate) struct Account {
    pub(crate) summary: Summary,
    pub(crate) complaints: Vec<String>,
    started: Instant,
}

impl Account {
    pub(crate) fn new() -> Self {
        Self { summary: Summary::default(), complaints: Vec::new(), started: Instant::now() }
    }

    /// The job is over, or cannot go on.
    pub(crate) fn end(&mut self, ended: Result<(), Error>) {
        self.complaints.extend(ended.err().map(|error| error.to_string()));
    }

    pub(crate) fn count(&mut self, handled: usize, retried: u64) {
        (self.summary.handled, self.summary.retried) = (Some(handled), Some(retried));
    }

    pub(crate) fn json(&mut self) -> String {
        self.summary.seconds = (self.started.elapsed().as_secs_f64() * 1000.0).round() / 1000.0;
        serde_json::to_string(&self.summary).expect("numbers are JSON")
    }
}

/// Everything in the dead-letter queue, by id.
pub(crate) type Letters = BTreeMap<String, Vec<DeadLetter>>;

pub(crate) async fn dead_letters(service: &Service) -> Result<Letters, Error> {
    let mut letters = Letters::new();
    let mut pages = service.dead_letters(SUBSCRIPTION)?.pages(256).await?;
    while let Some(page) = pages.next().await? {
        for letter in page {
            letters.entry(letter.id.clone().unwrap_or_default()).or_default().push(letter);
        }
    }
    pages.close().await?;
    Ok(letters)
}

/// Ids that were published and are neither handled nor dead letters.
pub(crate) fn lost<'a>(
    ids: &BTreeSet<&'a str>,
    handled: &HashSet<String>,
    letters: &Letters,
) -> Vec<&'a str> {
    let is_there = |id: &str| handled.contains(id) || letters.contains_key(id);
    ids.iter().copied().filter(|id| !is_there(id)).collect()
}

/// Everything that is not as it had to be.
pub(crate) fn complaints(
    job: &Job,
    ids: &BTreeSet<&str>,
    letters: &Letters,
    lost: &[&str],
) -> Vec<String> {
    let fails_for_ever = |id: &str| job.chosen.fate(id) == Fate::FailsForEver;
    let missing = ids.iter().copied().filter(|id| fails_for_ever(id) && !letters.contains_key(*id));
    let too_many = letters.keys().map(String::as_str);
    let too_many = too_many.filter(|id| !ids.contains(id) || !fails_for_ever(id));
    let attempts = job.attempts_max();
    let as_it_must = |letter: &DeadLetter| {
        letter.reason == Some(Reason::Exhausted) && letter.attempts == attempts
    };
    let odd = letters.iter().filter(|(_, letters)| !letters.iter().all(as_it_must));
    let odd = odd.map(|(id, _)| id.as_str());
    let kinds = [
        ("lost", lost.to_vec()),
        ("not in the dead letters, but had to be there", missing.collect()),
        (
            "in the dead letters in error, or left by another run (use another --name)",
            too_many.collect(),
        ),
        ("dead letters with another reason or other attempts than they must have", odd.collect()),
    ];
    let wrong = kinds.iter().filter(|(_, ids)| !ids.is_empty());
    wrong.map(|(what, ids)| format!("{} ids {what}: {}", ids.len(), named(ids))).collect()
}

fn named(ids: &[&str]) -> String {
    let more = if ids.len() > NAMED_MAX { ", ..." } else { "" };
    format!("{}{more}", ids[..ids.len().min(NAMED_MAX)].join(", "))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::options::Options;

    fn letter(id: &str, reason: Reason, attempts: u32) -> DeadLetter {
        DeadLetter {
            id: Some(id.to_owned()),
            reason: Some(reason),
            attempts,
            error: None,
            error_class: None,
            generation: 0,
            kind: None,
            origin: None,
            consumer: None,
            first_seen: None,
            dead_at: None,
            content_type: None,
            headers: Vec::new(),
            body: Default::default(),
        }
    }

    /// What is complained of where the ids `a` and `b` were published and have to be dead letters.
    fn said(letters: Vec<DeadLetter>, handled: &[&str]) -> Vec<String> {
        let options = ["webhooks", "--fail-percent", "0", "--dead-percent", "100"];
        let job = Options::parse_from(options).into_job().expect("it can be done");
        assert_eq!(job.attempts_max(), ATTEMPTS);
        let mut by_id = Letters::new();
        for letter in letters {
            by_id.entry(letter.id.clone().unwrap_or_default()).or_default().push(letter);
        }
        let (ids, handled) =
            (BTreeSet::from(["a", "b"]), handled.iter().map(|id| String::from(*id)));
        let lost = lost(&ids, &handled.collect(), &by_id);
        complaints(&job, &ids, &by_id, &lost)
    }

    const ATTEMPTS: u32 = 4;

    fn spent(id: &str) -> DeadLetter {
        letter(id, Reason::Exhausted, ATTEMPTS)
    }

    #[test]
    fn whatever_is_not_as_it_had_to_be_is_complained_of() {
        let nothing: [&str; 0] = [];
        assert_eq!(said(vec![spent("a"), spent("b")], &[]), nothing);
        let odd =
            ["1 ids dead letters with another reason or other attempts than they must have: b"];
        assert_eq!(said(vec![spent("a"), letter("b", Reason::Exhausted, ATTEMPTS - 1)], &[]), odd);
        assert_eq!(said(vec![spent("a"), letter("b", Reason::Rejected, ATTEMPTS)], &[]), odd);
        assert_eq!(said(vec![spent("a"), spent("b"), letter("b", Reason::Rejected, 1)], &[]), odd);
        let missing = "1 ids not in the dead letters, but had to be there: b";
        assert_eq!(said(vec![spent("a")], &["b"]), [missing]);
        assert_eq!(said(vec![spent("a")], &[]), ["1 ids lost: b", missing]);
        assert_eq!(
            said(vec![spent("a"), spent("b"), spent("c")], &[]),
            ["1 ids in the dead letters in error, or left by another run (use another --name): c"]
        );
    }
}
