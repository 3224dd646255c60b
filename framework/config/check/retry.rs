//! Retry policies: bounds in order, lists where they are used, rules that end.

use std::time::Duration;

use super::super::units::duration_text;
use super::super::{Retry, Rule, STANDARD, Then};
use super::Check;
use crate::retry::{Backoff, Jitter};

pub(super) fn check(check: &mut Check<'_>) {
    let config = check.config;
    for (name, policy) in &config.retry {
        let table = format!("retry.{name}");
        delays(check, &table, policy);
        unread(check, &table, policy);
        list(check, &table, policy);
        counts(check, &table, policy);
        rules(check, &table, policy);
        if leads_back(check, name) {
            let text = "lead back to this policy, so that no rule would ever decide; let one of them name another";
            check.say(&table, "rules", &[], text);
        }
    }
}

fn delays(check: &mut Check<'_>, table: &str, policy: &Retry) {
    let (min, max) = (policy.delay_min, policy.delay_max);
    if policy.backoff != Backoff::None && policy.backoff != Backoff::List {
        check.not_zero(table, "delay_min", min);
        if max < min {
            out_of_order(check, table, min, max);
        }
    }
    check.not_zero(table, "delay_max", max);
    check.not_zero(table, "age_max", policy.age_max);
    if !policy.multiplier.is_finite() || policy.multiplier < 1.0 {
        let text =
            format!("is {}, so the delay would shrink; use a number from 1.0", policy.multiplier);
        check.say(table, "multiplier", &[], text);
    }
    if policy.jitter == Jitter::Decorrelated
        && matches!(policy.backoff, Backoff::None | Backoff::List)
    {
        let text = "is \"decorrelated\", which draws from delay_min and the delay before and would ignore this backoff; use another";
        check.say(table, "jitter", &["backoff"], text);
    }
}

/// What the kind of backoff does not read, and is not as it is by default.
fn unread(check: &mut Check<'_>, table: &str, policy: &Retry) {
    let default = Retry::default();
    let has_multiplier = policy.multiplier.is_finite() && policy.multiplier >= 1.0;
    if policy.backoff != Backoff::Exponential
        && has_multiplier
        && policy.multiplier != default.multiplier
    {
        let text = "is only read with backoff = \"exponential\"; use that or remove it";
        check.say(table, "multiplier", &["backoff"], text);
    }
    if policy.backoff != Backoff::None {
        return;
    }
    let changed = [
        ("delay_min", policy.delay_min != default.delay_min),
        ("delay_max", policy.delay_max != default.delay_max),
        ("jitter", !matches!(policy.jitter, Jitter::None | Jitter::Full | Jitter::Decorrelated)),
    ];
    for (key, _) in changed.iter().filter(|(_, is_changed)| *is_changed) {
        let text = "is not read with backoff = \"none\", which never waits; use another backoff or remove it";
        check.say(table, key, &["backoff"], text);
    }
}

/// Complains of the one of the two bounds that was written, so that the complaint stands where it
/// can be changed.
fn out_of_order(check: &mut Check<'_>, table: &str, min: Duration, max: Duration) {
    let (min, max) = (duration_text(min), duration_text(max));
    if check.given(table, "delay_max") || !check.given(table, "delay_min") {
        let text = format!("({max}) is below delay_min ({min}); swap them or raise the maximum");
        check.say(table, "delay_max", &["delay_min"], text);
    } else {
        let text =
            format!("({min}) is above delay_max ({max}); lower it, or add a longer delay_max");
        check.say(table, "delay_min", &["delay_max"], text);
    }
}

fn list(check: &mut Check<'_>, table: &str, policy: &Retry) {
    match (policy.backoff, policy.delays.is_empty()) {
        (Backoff::List, true) => check.say(
            table,
            "delays",
            &["backoff"],
            "is missing; add delays = [\"1s\", \"10s\"], or use another backoff",
        ),
        (Backoff::List, false) => {}
        (_, false) => check.say(
            table,
            "delays",
            &["backoff"],
            "is only read with backoff = \"list\"; add that or remove it",
        ),
        (_, true) => {}
    }
    for (at, delay) in policy.delays.iter().enumerate() {
        check.not_zero(table, &format!("delays[{at}]"), *delay);
        if *delay > policy.delay_max {
            let text = format!(
                "({}) is above delay_max ({}), which would cut it; raise delay_max",
                duration_text(*delay),
                duration_text(policy.delay_max)
            );
            check.say(table, &format!("delays[{at}]"), &["delay_max"], text);
        }
    }
}

fn counts(check: &mut Check<'_>, table: &str, policy: &Retry) {
    let retries = policy.attempts_max.get() - 1;
    if policy.immediate > retries {
        let text = format!(
            "is {}, but attempts_max allows {retries} retries in all; lower it or raise attempts_max",
            policy.immediate
        );
        check.say(table, "immediate", &["attempts_max"], text);
    }
}

fn rules(check: &mut Check<'_>, table: &str, policy: &Retry) {
    for (at, rule) in policy.rules.iter().enumerate() {
        let rule_table = format!("{table}.rules[{at}]");
        match (&rule.class, &rule.kind) {
            (Some(_), Some(_)) => check.say(
                &rule_table,
                "",
                &["class", "type"],
                "has class and type; make two rules of it",
            ),
            (None, None) => check.say(
                &rule_table,
                "",
                &["class", "type"],
                "has neither class nor type; add one, or it would fit nothing",
            ),
            (Some(_), None) | (None, Some(_)) => {}
        }
        let is_same = |other: &Rule| (&other.class, &other.kind) == (&rule.class, &rule.kind);
        if (rule.class.is_some() || rule.kind.is_some()) && policy.rules[..at].iter().any(is_same) {
            let text = "fits what a rule above fits, so it is never read; remove one of them";
            check.say(&rule_table, "", &["class", "type"], text);
        }
        match (&rule.retry, rule.then) {
            (Some(other), Then::Retry) => check.known_policy(&rule_table, other),
            (Some(_), Then::Reject | Then::Ignore) => {
                check.say(
                    &rule_table,
                    "retry",
                    &["then"],
                    "is only read with then = \"retry\"; remove one of them",
                );
            }
            (None, Then::Retry)
                if check.given(&rule_table, "") && !check.given(&rule_table, "then") =>
            {
                check.say(
                    &rule_table,
                    "then",
                    &["retry"],
                    "is missing; add then = \"reject\", \"ignore\" or \"retry\"",
                );
            }
            (None, _) => {}
        }
    }
}

/// Whether the rules of a policy lead, over others, back to it.
fn leads_back(check: &Check<'_>, start: &str) -> bool {
    successors(check, start).iter().any(|name| name == start)
}

/// Every policy that the rules of one lead to, over others too.
pub(super) fn successors(check: &Check<'_>, start: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let mut open = vec![start.to_owned()];
    while let Some(name) = open.pop() {
        let rules =
            check.config.retry.get(&name).map(|policy| policy.rules.as_slice()).unwrap_or_default();
        for next in rules
            .iter()
            .filter(|rule| rule.then == Then::Retry)
            .filter_map(|rule| rule.retry.as_ref())
        {
            if !found.contains(next) {
                found.push(next.clone());
                open.push(next.clone());
            }
        }
    }
    found
}

/// The policies that messages of a subscription can meet: its own first.
pub(super) fn reachable(check: &Check<'_>, name: Option<&str>) -> Vec<(String, Retry)> {
    let own = name.unwrap_or(STANDARD);
    let policy = |name: &str| check.config.retry.get(name).cloned().unwrap_or_default();
    let names = std::iter::once(own.to_owned()).chain(successors(check, own));
    names.map(|name| (name.clone(), policy(&name))).collect()
}
