//! The input: webhook deliveries from a file, or made up.

use std::collections::BTreeSet;
use std::fs;

use redeliver::Message;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::Error;
use crate::options::Job;
use crate::place::Place;

/// How many are made up without a file.
const MADE_UP: usize = 1000;
const EVENTS: [&str; 6] = ["push", "issues", "pull_request", "check_run", "star", "release"];

/// One delivery: a line, and what a message says of itself.
pub(crate) struct Webhook {
    pub(crate) id: String,
    event: String,
    repository: Option<String>,
    line: String,
}

/// What is read of a line.
#[derive(Deserialize)]
struct Head {
    delivery: String,
    event: String,
    repository: Option<String>,
}

impl Webhook {
    /// The line as it is, with the id, the type and the key that it names.
    pub(crate) fn message(&self, place: &Place) -> Message {
        let message = place
            .address(Message::bytes(self.line.clone()))
            .content_type("application/json")
            .id(self.id.as_str())
            .kind(self.event.as_str());
        match &self.repository {
            Some(repository) => message.key(repository.clone()),
            None => message,
        }
    }

    fn parse(line: String) -> Result<Self, Error> {
        let Head { delivery, event, repository } = serde_json::from_str(&line)?;
        refuse(&delivery)?;
        Ok(Self { id: delivery, event, repository, line })
    }
}

/// A message without an id would get one that nobody counts; and whoever compares reads ids out of lines whose fields
/// have a space between.
fn refuse(id: &str) -> Result<(), Error> {
    if id.is_empty() {
        return Err("`delivery` is empty; every line needs an id".into());
    }
    if id.contains(|character: char| character.is_whitespace() || character.is_control()) {
        return Err(
            format!("`delivery` is {id:?}; an id has no spaces and no control characters").into()
        );
    }
    Ok(())
}

/// The deliveries that the job is about.
pub(crate) fn of(job: &Job) -> Result<Vec<Webhook>, Error> {
    let Some(file) = &job.input else {
        return (0..MADE_UP).map(made_up).collect();
    };
    let shown = file.display();
    let text = fs::read_to_string(file).map_err(|error| format!("reading {shown}: {error}"))?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let webhooks = lines.map(|(number, line)| {
        let webhook = Webhook::parse(line.to_owned());
        webhook.map_err(|error| format!("{shown}:{}: {error}", number + 1).into())
    });
    webhooks.collect()
}

/// The distinct ids.
pub(crate) fn ids(webhooks: &[Webhook]) -> BTreeSet<&str> {
    webhooks.iter().map(|webhook| webhook.id.as_str()).collect()
}

/// Most belong to one repository, some to none, and now and then one comes twice, as in reality.
fn made_up(number: usize) -> Result<Webhook, Error> {
    let number = if number % 100 == 99 { number - 1 } else { number };
    let event = EVENTS[number % EVENTS.len()];
    let repository = match number % 10 {
        0 => None,
        1..=7 => Some(String::from("acme/shop")),
        other => Some(format!("acme/service-{other}")),
    };
    let payload = serde_json::json!({
        "number": number,
        "sender": { "login": format!("user-{}", number % 17) },
        "text": "x".repeat(200 + number % 800),
    });
    let line = serde_json::json!({
        "delivery": uuid_of(&format!("{event} {payload}")),
        "event": event,
        "action": "created",
        "repository": repository,
        "payload": payload,
    });
    Webhook::parse(line.to_string())
}

/// Equal content has an equal id.
fn uuid_of(content: &str) -> String {
    let hash = Sha256::digest(content);
    let hex: String = hash.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{}-8{}-8{}-{}", &hex[..8], &hex[8..12], &hex[13..16], &hex[17..20], &hex[20..])
}
