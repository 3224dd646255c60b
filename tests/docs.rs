//! The documents and sample configurations say what is so.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use redeliver::config::{
    Batch, Broker, Config, Idempotency, Lock, Retry, Service, Store, Subscription,
};

const FULL: &str = include_str!("../config/full.toml");
const REFERENCE: &str = include_str!("../docs/configuration.md");

#[test]
fn every_sample_configuration_can_be_read() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
    let mut read = 0;
    for entry in folder.read_dir().expect("config/ is there") {
        let path = entry.expect("config/ can be listed").path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            let no_environment: [(&str, &str); 0] = [];
            Config::load_all_with(&[&path], no_environment)
                .unwrap_or_else(|problems| panic!("{problems}"));
            read += 1;
        }
    }
    assert!(read >= 2, "only {read} files in config/");
}

#[test]
fn the_full_configuration_says_the_defaults() {
    let config = Config::from_toml(FULL).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(config.service, Service::default());
    assert_eq!(config.retry["standard"], Retry::default());
    for broker in config.brokers.into_values() {
        let required = Broker {
            kind: broker.kind,
            url: broker.url.clone(),
            tls: broker.tls.clone(),
            ..Broker::default()
        };
        assert_eq!(broker.tls.clone().unwrap_or_default(), Default::default());
        assert_eq!(broker, required);
    }
    for store in config.stores.into_values() {
        assert_eq!(store, Store { kind: store.kind, url: store.url.clone(), ..Store::default() });
    }
    for subscription in config.subscriptions.into_values() {
        let idempotency = subscription
            .idempotency
            .clone()
            .map(|given| Idempotency { store: given.store, ..Idempotency::default() });
        let lock = subscription.lock.clone().map(|given| Lock {
            store: given.store,
            key: given.key,
            ..Lock::default()
        });
        let required = Subscription {
            broker: subscription.broker.clone(),
            queue: subscription.queue.clone(),
            topics: subscription.topics.clone(),
            group: subscription.group.clone(),
            idempotency,
            lock,
            ..Subscription::default()
        };
        assert_eq!(subscription, required);
    }
    assert_eq!(
        Batch::default(),
        Batch { size: 64.try_into().expect("64 is not zero"), wait: Duration::from_millis(100) }
    );
}

#[test]
fn what_is_commented_out_in_the_full_configuration_can_be_said() {
    // Each pair excludes the other, so each is tried alone.
    for line in FULL.lines().filter(|line| line.starts_with("# ") && key_of(line).is_some()) {
        let key = key_of(line).expect("a line with a key was chosen");
        if key.ends_with("_file") || ["password", "pattern", "cert", "key"].contains(&key) {
            continue;
        }
        let text = FULL.replace(line, &line[2..]);
        Config::from_toml(&text).unwrap_or_else(|problems| panic!("{key}: {problems}"));
    }
}

#[test]
fn every_key_of_the_full_configuration_is_in_the_reference() {
    let keys: BTreeSet<&str> = FULL.lines().filter_map(key_of).collect();
    assert!(keys.len() > 70, "only {} keys were found", keys.len());
    let missing: Vec<&&str> =
        keys.iter().filter(|key| !REFERENCE.contains(&format!("`{key}`"))).collect();
    assert!(missing.is_empty(), "docs/configuration.md does not explain {missing:?}");
}

#[test]
fn every_key_of_the_structs_is_in_the_full_configuration() {
    // A wrong key makes the loader list all that a table knows.
    let keys: BTreeSet<&str> = FULL.lines().filter_map(key_of).collect();
    for table in ["service", "brokers.a", "brokers.a.tls", "stores.a", "subscriptions.a", "retry.a"]
    {
        let problems = Config::from_toml(&format!("[{table}]\nzzzzzzzzzzzz = 1\n"))
            .expect_err("the key is unknown")
            .to_string();
        let line = problems
            .lines()
            .find(|line| line.contains("is no key of this table"))
            .expect("the key is refused");
        for known in line.split('`').skip(1).step_by(2) {
            let in_one_line = [
                "brokers",
                "stores",
                "subscriptions",
                "tls",
                "properties",
                "batch",
                "breaker",
                "idempotency",
                "lock",
            ];
            assert!(
                keys.contains(known) || in_one_line.contains(&known),
                "config/full.toml lacks {known} of [{table}]"
            );
        }
    }
}

#[test]
fn the_sample_of_an_error_is_what_is_printed() {
    let sample = |fence: &str| {
        let (_, rest) = REFERENCE
            .split_once(fence)
            .unwrap_or_else(|| panic!("docs/configuration.md lacks {fence}"));
        rest.split_once("\n```").map(|(sample, _)| sample.to_owned()).expect("the sample ends")
    };
    let folder = tempfile::tempdir().expect("a folder can be made");
    let path = folder.path().join("orders.toml");
    std::fs::write(&path, sample("<!-- wrong -->\n```toml\n")).expect("a file can be written");
    let problems =
        Config::load_all_with(&[&path], [("REDELIVER__SUBSCRIPTIONS__ORDERS__TIMEOUT", "30")])
            .expect_err("it is wrong");
    let printed = problems.to_string().replace(&path.display().to_string(), "orders.toml");
    assert_eq!(printed, sample("<!-- printed -->\n```text\n"), "\n{printed}\n");
}

/// The key that a line of TOML sets, also behind a `#`.
fn key_of(line: &str) -> Option<&str> {
    let line = line.strip_prefix("# ").unwrap_or(line);
    let (key, _) = line.split_once(" = ")?;
    let plain = !key.is_empty() && key.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    plain.then_some(key)
}

const OBSERVABILITY: &str = include_str!("../docs/observability.md");

#[test]
fn every_path_that_a_document_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut missing = Vec::new();
    let mut found = 0;
    for (document, text) in documents() {
        let folder = document.parent().expect("a document is in a folder");
        let named = backticked(&text).into_iter().filter(|word| is_path(word)).map(|word| {
            let path = root.join(word);
            (word.to_owned(), path)
        });
        let linked = links(&text).map(|link| (link.to_owned(), folder.join(link)));
        for (name, path) in named.chain(linked) {
            found += 1;
            if !path.exists() {
                missing.push(format!("{}: {name}", document.display()));
            }
        }
    }
    assert!(found > 60, "only {found} paths were found");
    assert!(missing.is_empty(), "\n{}\n", missing.join("\n"));
}

#[test]
fn every_place_in_a_document_that_is_linked_to_is_there() {
    let mut missing = Vec::new();
    for (document, text) in documents() {
        let folder = document.parent().expect("a document is in a folder");
        for target in link_targets(&text).filter(|target| target.contains('#')) {
            let (file, place) = target.split_once('#').expect("it has a place");
            let path = if file.is_empty() { document.clone() } else { folder.join(file) };
            let there = std::fs::read_to_string(&path).unwrap_or_default();
            if !there.lines().filter_map(heading_place).any(|heading| heading == place) {
                missing.push(format!("{}: {target}", document.display()));
            }
        }
    }
    assert!(missing.is_empty(), "\n{}\n", missing.join("\n"));
}

#[test]
fn every_metric_is_explained_and_no_other() {
    let explained: BTreeSet<String> =
        rows(OBSERVABILITY, "| metric |").map(|cells| cells[..2].join(" ")).collect();
    let text = actix::System::new().block_on(metrics_of_a_service());
    let exported: BTreeSet<String> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .map(|line| {
            let (name, kind) = line.split_once(' ').expect("a type has a name");
            let total = if kind == "counter" { "_total" } else { "" };
            format!("`{name}{total}` {kind}")
        })
        .collect();
    assert!(exported.len() > 20, "only {} metrics:\n{text}", exported.len());
    assert_eq!(explained, exported);
}

/// The text of a service that has handled a message and dead-lettered another.
async fn metrics_of_a_service() -> String {
    use redeliver::{Delivery, Failure, Handled, Message};
    let config = "[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"";
    let config = Config::from_toml(config).unwrap_or_else(|problems| panic!("{problems}"));
    let handler = |delivery: Delivery<bool>| async move {
        let handled: Handled =
            if delivery.payload { Ok(()) } else { Err(Failure::reject("never works")) };
        handled
    };
    let service = redeliver::Service::builder(config).subscribe("orders", handler).signals(false);
    let service = service.start().await.expect("the service starts");
    let publisher = service.publisher("main").expect("the broker is configured");
    for body in ["true", "false"] {
        publisher.send(Message::bytes(body).to_queue("orders")).await.expect("it is stored");
    }
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        let text = service.metrics().await;
        if text.contains("redeliver_handled_total{subscription=\"orders\"} 1")
            && text.contains("reason=\"rejected\"} 1")
        {
            service.stop().await;
            return text;
        }
        assert!(tokio::time::Instant::now() < deadline, "{text}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[test]
fn every_log_event_is_explained_with_its_level_and_no_other() {
    let explained: BTreeSet<String> = rows(OBSERVABILITY, "| level |")
        .map(|cells| format!("{} {}", cells[0], cells[1].trim_matches('`')))
        .collect();
    let source = concat!(
        include_str!("../framework/telemetry.rs"),
        include_str!("../framework/telemetry/kafka.rs")
    );
    let logged: BTreeSet<String> = source
        .split("tracing::")
        .skip(1)
        .filter_map(|event| {
            let (level, rest) = event.split_once("!(")?;
            if !["trace", "debug", "info", "warn", "error"].contains(&level) {
                return None;
            }
            let (arguments, _) = rest.split_once(");").expect("a macro ends");
            let text = arguments.rsplit('"').nth(1).expect("an event has a text");
            Some(format!("{} {text}", level.to_uppercase()))
        })
        .collect();
    assert!(logged.len() > 20, "only {} events", logged.len());
    assert_eq!(explained, logged);
}

#[test]
fn every_reason_for_a_dead_letter_is_explained() {
    let explained: BTreeSet<String> = rows(include_str!("../docs/delivery.md"), "| reason |")
        .map(|cells| cells[0].trim_matches('`').to_owned())
        .collect();
    let reasons = redeliver::Reason::ALL.map(|reason| reason.as_str().to_owned());
    assert_eq!(explained, reasons.into());
}

#[test]
fn the_steps_of_the_default_policy_are_as_they_are_said_to_be() {
    use redeliver::retry::{Policy, WaitSteps};
    let text = include_str!("../docs/rabbitmq.md");
    let (_, said) = text.split_once("<!-- steps -->").expect("the steps begin");
    let (said, _) = said.split_once("<!-- end -->").expect("the steps end");
    let steps_max = Subscription::default().wait_steps_max.get();
    let steps = WaitSteps::for_policies(&[&Policy::default()], steps_max);
    let steps: Vec<String> =
        steps.as_slice().iter().map(|step| step.as_millis().to_string()).collect();
    assert_eq!(said, steps.join(", "));
}

#[test]
fn every_sentence_of_the_brokers_contract_is_explained() {
    let explained = rows(include_str!("../docs/extending.md"), "| sentence |");
    let explained: Vec<String> = explained.map(|cells| cells[0].clone()).collect();
    let contract = include_str!("../framework/broker/mod.rs");
    let sentences = contract.lines().filter_map(|line| line.strip_prefix("//! "));
    let sentences = sentences.filter_map(|line| line.split_once(". "));
    let numbers = sentences.map(|(number, _)| number.to_owned());
    let numbers: Vec<String> = numbers.filter(|number| number.parse::<u32>().is_ok()).collect();
    assert!(numbers.len() > 10, "only {numbers:?}");
    assert_eq!(explained, numbers);
}

/// The table of counts in the benchmarks' page is what CI holds the code to.
#[test]
fn the_counts_that_are_published_are_those_of_the_baseline() {
    let baseline: std::collections::BTreeMap<String, f64> =
        serde_json::from_str(include_str!("../benches/baseline.json")).expect("it is JSON");
    let page = include_str!("../docs/benchmarks.md");
    let published: Vec<f64> = rows(page, "| what | count | goal |")
        .map(|row| row[1].replace(',', "").parse().expect("a count is a number"))
        .collect();
    assert_eq!(published.len(), baseline.len());
    for (what, count) in baseline {
        let is_near = |published: &f64| (published - count).abs() <= (count / 1000.0).max(0.5);
        assert!(published.iter().any(is_near), "{what}: {count} is not in docs/benchmarks.md");
    }
}

/// Every plot that was drawn is shown, the first of them to whoever reads no further than the README.
#[test]
fn every_plot_is_shown() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = include_str!("../docs/benchmarks.md");
    let mut plots = 0;
    for entry in root.join("docs/benchmarks").read_dir().expect("the plots are there") {
        let name = entry.expect("they can be listed").file_name().into_string().expect("a name");
        assert!(page.contains(&format!("](benchmarks/{name})")), "{name} is shown nowhere");
        plots += 1;
    }
    assert!(plots > 1, "only {plots} plots");
    assert!(include_str!("../README.md").contains("](docs/benchmarks/"), "no plot in the README");
}

/// Every document of the repository, with its text.
fn documents() -> Vec<(std::path::PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths = Vec::new();
    for folder in [root.to_owned(), root.join("docs")] {
        for entry in folder.read_dir().expect("the folder is there") {
            let path = entry.expect("it can be listed").path();
            if path.extension().is_some_and(|extension| extension == "md") {
                paths.push(path);
            }
        }
    }
    paths.sort();
    let read = |path: std::path::PathBuf| {
        let text = std::fs::read_to_string(&path).expect("a document can be read");
        (path, text)
    };
    paths.into_iter().map(read).collect()
}

/// What stands between backticks in a line of prose.
fn backticked(text: &str) -> Vec<&str> {
    let mut fenced = false;
    let mut words = Vec::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            words.extend(line.split('`').skip(1).step_by(2));
        }
    }
    words
}

fn is_path(word: &str) -> bool {
    let folders = ["framework/", "tests/", "docs/", "config/", "examples/", "benches/", ".ci/"];
    let plain = word.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c));
    // Capitals stand for a name of the reader's own.
    let own = word.split(['/', '.']).any(|part| part.len() > 1 && part == part.to_uppercase());
    plain && !own && folders.iter().any(|folder| word.starts_with(folder))
}

/// The files that links lead to.
fn links(text: &str) -> impl Iterator<Item = &str> {
    let files = link_targets(text).map(|target| target.split('#').next().unwrap_or_default());
    files.filter(|file| !file.is_empty())
}

/// Where links lead to, but for those to elsewhere.
fn link_targets(text: &str) -> impl Iterator<Item = &str> {
    let targets = text.split("](").skip(1);
    let targets = targets.filter_map(|rest| rest.split_once(')').map(|(target, _)| target));
    targets.filter(|target| !target.contains("://"))
}

/// How a heading is linked to.
fn heading_place(line: &str) -> Option<String> {
    let heading = line.strip_prefix('#')?.trim_start_matches('#').strip_prefix(' ')?;
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    Some(kept.collect::<String>().to_lowercase().replace(' ', "-"))
}

/// The cells of each row of the table whose head begins like this.
fn rows<'a>(text: &'a str, head: &'a str) -> impl Iterator<Item = Vec<String>> {
    let (_, table) = text.split_once(head).unwrap_or_else(|| panic!("there is no table {head}"));
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    rows.map(|row| row.split('|').skip(1).map(|cell| cell.trim().to_owned()).collect())
}
