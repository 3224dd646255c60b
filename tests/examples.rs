//! Every program in `examples/` is run, not only compiled.

#![cfg(feature = "rabbitmq")]

mod programs;

use std::collections::BTreeSet;

use programs::{run, told};

/// Those that need more than to be started are driven by a test of their own.
const ELSEWHERE: [&str; 2] = ["webhooks", "microservice"];

/// Runs one that must end well and say this.
fn says(name: &str, words: &str) {
    let output = run(name, [""; 0]);
    assert!(output.status.success(), "{}", told(&output));
    assert!(told(&output).contains(words), "{}", told(&output));
}

macro_rules! examples {
    ($($name:ident: $words:literal)*) => {
        $(#[test] fn $name() { says(stringify!($name), $words); })*
        const HERE: &[&str] = &[$(stringify!($name)),*];
    };
}

examples! {
    hello: "shipped: a lamp"
    typed: "nobody here handles gossip"
    batch: "1 of them was worth nothing"
    blocking: "on 4 threads"
    testing: "given up: as expected"
    rules: "handled in the end: `on a sunday`"
    reload: "2 attempts before, 5 after"
    publisher: "1999 paid because of order-1"
    dead_letters: "2 were redriven"
    idempotent: "20 mails were sent, 80 were known already"
    locks: "no payment is missing"
}

#[test]
fn idempotent_on_deliveries_from_a_file() {
    let folder = programs::folder();
    let file = programs::webhooks(&folder);
    let text = std::fs::read_to_string(&file).expect("it can be read");
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("a line is JSON")).collect();
    let ids: BTreeSet<_> = lines.iter().map(|line| line["delivery"].to_string()).collect();
    let output = run("idempotent", ["--input".as_ref(), file.as_os_str()]);
    assert!(output.status.success(), "{}", told(&output));
    let known = lines.len() * 5 - ids.len();
    let words = format!("{} mails were sent, {known} were known already", ids.len());
    assert_eq!(programs::last_line(&output), words);
}

#[test]
fn idempotent_names_a_file_that_it_cannot_use() {
    let output = run("idempotent", ["--input", "there is none"]);
    assert!(!output.status.success());
    assert!(told(&output).contains("there is none"), "{}", told(&output));
}

#[test]
fn locks_begins_nothing_without_its_redis_and_says_where_it_looked() {
    let mut locks = programs::program("locks");
    let output = locks.env("REDIS_URL", "redis://127.0.0.1:1").output().expect("it can be started");
    let said = told(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("needs a Redis, at REDIS_URL") && said.contains("refused"), "{said}");
    assert_eq!(said.matches("Error: ").count(), 1, "{said}");
}

#[test]
fn no_example_is_forgotten() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/examples");
    let entries = std::fs::read_dir(folder).expect("there are examples");
    let names = entries.map(|entry| {
        let path = entry.expect("a folder can be read").path();
        path.file_stem().expect("it has a name").to_string_lossy().into_owned()
    });
    let known = ELSEWHERE.iter().chain(HERE).map(|name| (*name).to_owned());
    assert_eq!(names.collect::<BTreeSet<_>>(), known.collect());
}
