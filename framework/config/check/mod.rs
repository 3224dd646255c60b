//! Contradictions: what each key allows alone, and all of them together do not.
//!
//! Pure: sees the configuration and which keys were written, opens nothing.

mod amqp;
mod connection;
mod places;
mod retry;
mod subscription;

use std::fmt::Display;
use std::time::Duration;

use super::layer::Layers;
use super::nearest::nearest;
use super::problem::Problem;
use super::{Config, STANDARD};

/// Everything that contradicts.
pub(super) fn all(config: &Config, layers: &Layers) -> Vec<Problem> {
    let mut check = Check { config, layers, problems: Vec::new() };
    names(&mut check);
    service(&mut check);
    connection::check(&mut check);
    subscription::check(&mut check);
    retry::check(&mut check);
    check.problems
}

/// What a check sees, and what it found.
struct Check<'a> {
    config: &'a Config,
    layers: &'a Layers,
    problems: Vec<Problem>,
}

impl Check<'_> {
    /// Notes a problem at `table.key`, unless one of the keys it rests on was found wrong before: then its
    /// value here is only a default, and what follows from that would confuse.
    fn say(&mut self, table: &str, key: &str, rests_on: &[&str], text: impl Display) {
        let path = join(table, key);
        let faulty = |key: &&str| self.layers.faulty(&join(table, key));
        if !self.layers.faulty(&path) && !rests_on.iter().any(faulty) {
            self.problems.push(Problem::new(path, text.to_string()));
        }
    }

    /// Whether `table.key` was written, right or wrong.
    fn given(&self, table: &str, key: &str) -> bool {
        self.layers.given(&join(table, key))
    }

    /// Whether the kind of a broker or store is what its struct says, not the default of one that is missing or wrong.
    fn kind_known(&self, table: &str) -> bool {
        let is_made_in_code = !self.given(table, "");
        is_made_in_code || (self.given(table, "kind") && !self.layers.faulty(&join(table, "kind")))
    }

    fn not_zero(&mut self, table: &str, key: &str, value: Duration) {
        if value.is_zero() {
            self.say(table, key, &[], "is 0s, which leaves no time at all; use \"1ms\" or more");
        }
    }

    /// Notes that a name is not among those that are known.
    fn known<'n>(
        &mut self,
        table: &str,
        key: &str,
        name: &str,
        kind: &str,
        known: impl Iterator<Item = &'n str>,
    ) {
        let known: Vec<&str> = known.collect();
        if known.contains(&name) {
            return;
        }
        if name.is_empty() {
            return self.say(table, key, &[], format!("is missing; name a table [{kind}.NAME]"));
        }
        let advice = match nearest(name, known.iter().copied()) {
            Some(meant) => format!("did you mean {meant:?}?"),
            None => format!("add a table [{kind}.{name}], or name one that is there"),
        };
        self.say(
            table,
            key,
            &[],
            format!("names {name:?}, but there is no table [{kind}.{name}]; {advice}"),
        );
    }

    fn known_store(&mut self, table: &str, name: &str) {
        let config = self.config;
        self.known(table, "store", name, "stores", config.stores.keys().map(String::as_str));
    }

    fn known_policy(&mut self, table: &str, name: &str) {
        let config = self.config;
        self.known(
            table,
            "retry",
            name,
            "retry",
            config.retry.keys().map(String::as_str).chain([STANDARD]),
        );
    }
}

/// `table.key`; a key without a table, and a table itself, stand alone.
fn join(table: &str, key: &str) -> String {
    match (table, key) {
        ("", alone) | (alone, "") => alone.to_owned(),
        _ => format!("{table}.{key}"),
    }
}

/// Names of tables are also part of variables, which have one case: another would make a second table.
fn names(check: &mut Check<'_>) {
    let config = check.config;
    let tables = [
        ("brokers", config.brokers.keys().collect::<Vec<_>>()),
        ("stores", config.stores.keys().collect()),
        ("subscriptions", config.subscriptions.keys().collect()),
        ("retry", config.retry.keys().collect()),
    ];
    for (table, names) in tables {
        for name in names {
            let plain = name
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-');
            if !plain || name.is_empty() || name.contains("__") {
                let text = "is no usable name; use a-z, 0-9, - and single _, so that variables can name it too";
                check.say(&format!("{table}.{name}"), "", &[], text);
            }
        }
    }
}

fn service(check: &mut Check<'_>) {
    let service = &check.config.service;
    check.not_zero("service", "restarts_window", service.restarts_window);
    if service.name.as_deref() == Some("") {
        check.say("service", "name", &[], "is empty; leave it out for the executable's name");
    }
}
