//! The habits that matter, as tests: a failure names the file and the line that breaks one.
//!
//! Each list of exceptions says why, and one that is not needed any more fails too.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Lines of code (no comments, no tests) that a file has at most.
const FILE_LINES_MAX: usize = 400;
/// Lines that a function has at most.
const FUNCTION_LINES_MAX: usize = 60;

/// Files that are longer: how long they may be, and why they are.
const LONG_FILES: &[(&str, usize, &str)] = &[
    ("framework/broker/memory.rs", 600, "a whole broker, with every part of the seam, in one file"),
    (
        "framework/broker/rabbitmq/topology.rs",
        450,
        "what is declared, verified and warned of together",
    ),
];

/// Functions that are longer, and why.
const LONG_FUNCTIONS: &[(&str, &str, &str)] =
    &[("framework/telemetry/metrics.rs", "new", "a list of the metrics")];

/// Messages that are sent without regard to the mailbox's capacity, and what bounds them.
const UNBOUNDED_SENDS: &[(&str, &str, &str)] = &[
    ("framework/actors/supervisor.rs", "Attach", "one for each lane that was opened"),
    ("framework/actors/consumer.rs", "LaneDown", "one for each lane that ended"),
    ("framework/actors/desk.rs", "Suspected", "one for each suspect of a window, which is bounded"),
    ("framework/actors/conclude.rs", "Carry", "one for each message of a window, which is bounded"),
];

/// Channels without a bound of their own, and what bounds them.
const UNBOUNDED_CHANNELS: &[(&str, &str)] = &[
    (
        "framework/actors/desk.rs",
        "each message in hand is told of once for each time it comes out elsewhere",
    ),
    ("framework/actors/opener.rs", "each lane is released once for each time it was opened"),
    ("framework/actors/supervisor.rs", "each letter has at least one message with a permit"),
];

/// Where something is printed, and why.
const PRINTS: &[(&str, &str)] =
    &[("framework/testing/mod.rs", "a suite says which sentence it is at, in case that one fails")];

#[test]
fn modules_use_only_what_the_architecture_lets_them() {
    let allowed = directions();
    let mut broken = Vec::new();
    for source in library() {
        let module = source.module();
        if module == "lib" {
            continue;
        }
        let Some(allowed) = allowed.get(module) else {
            broken.push(format!("{}:1: {module} is not in docs/architecture.md", source.path));
            continue;
        };
        for (number, line) in source.code() {
            for used in modules_named(line, &source) {
                if used != module && !allowed.contains("everything") && !allowed.contains(used) {
                    broken.push(format!("{}:{number}: {module} must not use {used}", source.path));
                }
            }
        }
    }
    assert_none(&broken);
}

#[test]
fn every_direction_that_the_architecture_allows_is_used() {
    let mut used: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for source in library() {
        let named = source.code().flat_map(|(_, line)| modules_named(line, &source));
        let named: BTreeSet<String> = named.map(str::to_owned).collect();
        used.entry(source.module().to_owned()).or_default().extend(named);
    }
    let mut broken = Vec::new();
    for (module, allowed) in directions() {
        for other in allowed.iter().filter(|other| *other != "everything") {
            if !used.get(&module).is_some_and(|used| used.contains(other)) {
                broken.push(format!("docs/architecture.md lets {module} use {other}; it does not"));
            }
        }
    }
    assert_none(&broken);
}

#[test]
fn only_the_service_names_adapters() {
    let mut broken = Vec::new();
    for source in library() {
        let adapter = ADAPTERS.iter().any(|(seam, name)| {
            source.path.starts_with(&format!("framework/{seam}/{name}"))
                || source.path == format!("framework/{seam}/mod.rs")
        });
        if adapter || ["service", "testing", "parts"].contains(&source.module()) {
            continue;
        }
        for (number, line) in source.code() {
            for (seam, name) in ADAPTERS {
                if line.contains(&format!("{seam}::{name}")) {
                    broken.push(format!("{}:{number}: only service names {name}", source.path));
                }
            }
        }
    }
    assert_none(&broken);
}

/// The seams and what stands behind them.
const ADAPTERS: &[(&str, &str)] = &[
    ("broker", "memory"),
    ("broker", "rabbitmq"),
    ("broker", "kafka"),
    ("store", "memory"),
    ("store", "redis"),
];

#[test]
fn adapters_have_the_same_file_names() {
    let mut broken = Vec::new();
    for (seam, names) in [
        ("broker", &["mod.rs", "connection.rs", "lane.rs", "publisher.rs", "topology.rs"][..]),
        ("store", &["idempotency.rs", "lock.rs"]),
    ] {
        let folders = entries(&root().join("framework").join(seam));
        for folder in folders.into_iter().filter(|path| path.is_dir()) {
            // A folder with the beginning of an adapter is not one yet.
            if seam == "broker" && !folder.join("connection.rs").exists() {
                continue;
            }
            for name in names.iter().filter(|name| !folder.join(name).exists()) {
                broken.push(format!("{}: lacks {name}", shown(&folder)));
            }
        }
    }
    assert_none(&broken);
}

#[test]
fn every_file_begins_by_saying_what_it_owns() {
    let mut broken = Vec::new();
    for source in sources(&["framework", "tests", "examples", "benches"]) {
        if !source.text.starts_with("//!") && !source.is_test() {
            broken.push(format!("{}:1: begins without `//!`", source.path));
        }
    }
    assert_none(&broken);
}

#[test]
fn no_file_is_long() {
    let mut broken = Vec::new();
    for source in library() {
        let lines = source.code().count();
        let exception = LONG_FILES.iter().find(|(path, ..)| *path == source.path);
        match exception {
            None if lines > FILE_LINES_MAX => broken
                .push(format!("{}: {lines} lines of code, over {FILE_LINES_MAX}", source.path)),
            Some((path, lines_max, _)) if lines > *lines_max => {
                broken
                    .push(format!("{path}: {lines} lines of code, over the {lines_max} excepted"));
            }
            Some((path, ..)) if lines <= FILE_LINES_MAX => {
                broken.push(format!("{path}: {lines} lines of code need no exception"));
            }
            _ => {}
        }
    }
    assert_none(&broken);
}

#[test]
fn no_function_is_long() {
    let mut broken = Vec::new();
    let mut excepted = BTreeSet::new();
    for source in library() {
        for function in functions(&source) {
            if function.lines <= FUNCTION_LINES_MAX {
                continue;
            }
            let Function { name, line, lines } = function;
            let exception = |(path, excepted, _): &&(&str, &str, &str)| {
                *path == source.path && *excepted == name
            };
            match LONG_FUNCTIONS.iter().find(exception) {
                Some(exception) => drop(excepted.insert(exception.1)),
                None => broken.push(format!(
                    "{}:{line}: {name} has {lines} lines, over {FUNCTION_LINES_MAX}",
                    source.path
                )),
            }
        }
    }
    for (path, name, _) in LONG_FUNCTIONS.iter().filter(|(_, name, _)| !excepted.contains(name)) {
        broken.push(format!("{path}: {name} needs no exception"));
    }
    assert_none(&broken);
}

#[test]
fn messages_are_sent_with_regard_to_the_mailbox() {
    let send = "do_send(";
    let mut broken = Vec::new();
    for source in library() {
        for (number, line) in source.code().filter(|(_, line)| line.contains(send)) {
            let (_, message) = line.split_once(send).unwrap_or_default();
            let excepted = UNBOUNDED_SENDS
                .iter()
                .any(|(path, name, _)| *path == source.path && message.starts_with(name));
            if !excepted {
                broken.push(format!("{}:{number}: ignores the mailbox's capacity", source.path));
            }
        }
    }
    let needed = |path: &str, what: &str| library_text(path).contains(&format!("{send}{what}"));
    for (path, message, _) in UNBOUNDED_SENDS.iter().filter(|(path, name, _)| !needed(path, name)) {
        broken.push(format!("{path}: {message} needs no exception"));
    }
    assert_none(&broken);
}

#[test]
fn every_channel_has_a_bound() {
    let mut broken = found(&library(), &["unbounded_channel"], UNBOUNDED_CHANNELS);
    broken.extend(found(&library(), &["std::sync::mpsc::channel"], &[]));
    assert_none(&broken);
}

#[test]
fn only_telemetry_logs() {
    let telemetry = &[
        ("framework/telemetry.rs", "one function for each event"),
        ("framework/telemetry/kafka.rs", "the same, of one adapter"),
    ];
    assert_none(&found(&library(), &["tracing::", "use tracing"], telemetry));
}

#[test]
fn the_library_prints_nothing() {
    assert_none(&found(&library(), &["println!", "print!(", "dbg!("], PRINTS));
}

#[test]
fn nothing_is_left_to_do_and_no_test_looks_away() {
    let here = &[("tests/tidy.rs", "names what it forbids")];
    let all = sources(&["framework", "tests", "examples"]);
    let forbidden = ["todo!", "unimplemented!", "#[ignore", "#[should_panic"];
    let mut broken = Vec::new();
    for source in all.iter().filter(|source| here.iter().all(|(path, _)| *path != source.path)) {
        // Tests too, so every line and not only the code.
        for (number, line) in source.text.lines().enumerate() {
            for word in forbidden.iter().filter(|word| line.contains(**word)) {
                broken.push(format!("{}:{}: {word}", source.path, number + 1));
            }
        }
    }
    assert_none(&broken);
}

#[test]
fn every_public_item_has_an_example() {
    let (mut broken, mut found) = (Vec::new(), 0);
    for source in shown_sources() {
        let lines: Vec<&str> = source.text.lines().collect();
        for (index, line) in lines.iter().enumerate() {
            // Rust's own lint sees to it that what is `pub` can be reached from outside.
            let Some(name) = public_item(line) else { continue };
            let above = lines[..index].iter().rev().take_while(|line| !ends_an_item(line));
            let above: Vec<&str> = above.map(|line| line.trim_start()).collect();
            if above.contains(&"#[doc(hidden)]") {
                continue;
            }
            found += 1;
            if !above.iter().any(|line| line.starts_with("/// ```")) {
                broken.push(format!("{}:{}: {name} has no example", source.path, index + 1));
            }
        }
    }
    assert!(found > 100, "only {found} public items were found");
    assert_none(&broken);
}

#[test]
fn every_example_is_run() {
    // What runs cannot have rotted; `should_panic` and `compile_fail` pass for whatever reason.
    let unrun = ["ignore", "no_run", "should_panic", "compile_fail"];
    let mut broken = Vec::new();
    for source in shown_sources() {
        for (number, line) in source.text.lines().enumerate() {
            let fence = line.trim_start().trim_start_matches(['/', '!']).trim_start();
            let marks = fence.strip_prefix("```").unwrap_or_default();
            for mark in marks.split(',').filter(|mark| unrun.contains(mark)) {
                broken.push(format!("{}:{}: an example is {mark}", source.path, number + 1));
            }
        }
    }
    assert_none(&broken);
}

#[test]
fn every_public_method_is_called_in_an_example() {
    let sources = shown_sources();
    let examples: String = sources.iter().map(|source| examples_of(&source.text)).collect();
    let (mut broken, mut found) = (Vec::new(), 0);
    for source in &sources {
        for (number, line) in source.code() {
            let Some(name) = public_method(line) else { continue };
            found += 1;
            let calls = [format!(".{name}("), format!("::{name}(")];
            if !calls.iter().any(|call| examples.contains(call)) {
                broken.push(format!("{}:{number}: no example calls {name}", source.path));
            }
        }
    }
    assert!(found > 100, "only {found} public methods were found");
    assert_none(&broken);
}

/// The library but for the modules that its pages do not show.
fn shown_sources() -> Vec<Source> {
    let sources = library();
    let hidden = sources.iter().flat_map(|source| {
        let after = source.text.split("#[doc(hidden)]\npub mod ").skip(1);
        after.filter_map(|rest| rest.split_once(';'))
    });
    let hidden: BTreeSet<String> = hidden.map(|(name, _)| format!("/{name}.rs")).collect();
    let shown = |source: &Source| !hidden.iter().any(|name| source.path.ends_with(name));
    sources.into_iter().filter(shown).collect()
}

/// The name of the public item that a line begins.
fn public_item(line: &str) -> Option<&str> {
    let rest = line.strip_prefix("pub ")?;
    let kinds =
        ["struct ", "enum ", "trait ", "fn ", "async fn ", "type ", "macro ", "const ", "static "];
    let name = kinds.iter().find_map(|kind| rest.strip_prefix(kind))?;
    Some(&name[..name.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(name.len())])
}

/// The name of the public method that a line begins.
fn public_method(line: &str) -> Option<&str> {
    let rest = line.strip_prefix("    pub ")?;
    let name = ["fn ", "async fn ", "const fn "].iter().find_map(|kind| rest.strip_prefix(kind))?;
    Some(&name[..name.find(['(', '<']).unwrap_or(name.len())])
}

/// Whether a line belongs to what stands before an item: blank, or the end of another one.
fn ends_an_item(line: &str) -> bool {
    let comment = line.trim_start().starts_with("//");
    line.is_empty() || (!comment && line.ends_with([';', '}']))
}

/// The lines of all examples in a source's documentation.
fn examples_of(text: &str) -> String {
    let mut examples = String::new();
    let mut inside = false;
    for line in text.lines().map(str::trim_start) {
        let Some(line) = line.strip_prefix("///").or_else(|| line.strip_prefix("//!")) else {
            inside = false;
            continue;
        };
        if line.trim_start().starts_with("```") {
            inside = !inside;
        } else if inside {
            examples.push_str(line);
            examples.push('\n');
        }
    }
    examples
}

/// A file of Rust.
struct Source {
    /// From the root of the repository, with `/` between.
    path: String,
    text: String,
}

impl Source {
    /// The module of the crate that it belongs to.
    fn module(&self) -> &str {
        let inside = self.path.strip_prefix("framework/").unwrap_or(&self.path);
        inside.split('/').next().unwrap_or(inside).trim_end_matches(".rs")
    }

    /// Whether it holds nothing but tests.
    fn is_test(&self) -> bool {
        self.path.ends_with("/tests.rs")
    }

    /// The lines that are neither empty, nor comments, nor tests, with their numbers.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let tests = self.text.find("#[cfg(test)]\nmod tests {").unwrap_or(self.text.len());
        let end = if self.is_test() { 0 } else { tests };
        let lines = self.text[..end].lines().enumerate();
        let lines = lines.map(|(index, line)| (index + 1, line));
        lines.filter(|(_, line)| {
            let line = line.trim_start();
            !line.is_empty() && !line.starts_with("//")
        })
    }
}

/// What the fenced block under "Direction" in docs/architecture.md says.
fn directions() -> BTreeMap<String, BTreeSet<String>> {
    let text = include_str!("../docs/architecture.md");
    let (_, block) = text.split_once("<!-- direction -->\n```text\n").expect("the block begins");
    let (block, _) = block.split_once("```").expect("the block ends");
    let lines = block.lines().filter_map(|line| line.split_once("->"));
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect();
    lines.map(|(module, used)| (module.trim().to_owned(), words(used))).collect()
}

/// The modules of the crate that a line names.
fn modules_named<'a>(line: &'a str, source: &Source) -> Vec<&'a str> {
    let root = if source.path.matches('/').count() == 1 { "super::" } else { "crate::" };
    let mut named = Vec::new();
    for start in ["crate::", root] {
        for (place, _) in line.match_indices(start) {
            let rest = &line[place + start.len()..];
            let end = rest.find(|c: char| !c.is_ascii_lowercase() && c != '_');
            let name = &rest[..end.unwrap_or(rest.len())];
            // Macros, and the names that the crate's page exports, are of no module here.
            if !name.is_empty() {
                named.push(name);
            }
        }
    }
    named
}

struct Function {
    name: String,
    line: usize,
    lines: usize,
}

/// Every function with its length: from its first line to the brace that closes it, as rustfmt
/// indents them.
fn functions(source: &Source) -> Vec<Function> {
    let lines: Vec<(usize, &str)> = source.code().collect();
    let mut functions = Vec::new();
    for (index, (number, line)) in lines.iter().enumerate() {
        let Some(name) = function_name(line) else { continue };
        let indent = &line[..line.len() - line.trim_start().len()];
        let close = format!("{indent}}}");
        let body = lines[index..].iter().take_while(|(_, line)| *line != close);
        // Of a declaration there is no body; rustfmt ends its last line with a semicolon.
        let declared = lines[index..].iter().find(|(_, line)| line.ends_with(['{', ';', '}']));
        if declared.is_some_and(|(_, line)| line.ends_with(['{', '}'])) {
            let one_line = line.ends_with('}');
            let last = body.last().map_or(*number, |(last, _)| last + 1);
            let lines = if one_line { 1 } else { last + 1 - number };
            functions.push(Function { name, line: *number, lines });
        }
    }
    functions
}

fn function_name(line: &str) -> Option<String> {
    let line = line.trim_start();
    let before = &line[..line.find("fn ")?];
    let words = ["pub", "pub(crate)", "pub(super)", "const", "async"];
    before.split_whitespace().all(|word| words.contains(&word)).then(|| {
        let rest = &line[before.len() + 3..];
        rest[..rest.find(['(', '<']).unwrap_or(rest.len())].to_owned()
    })
}

/// Where one of `words` stands, but in the files excepted; and exceptions that nothing needs.
fn found(sources: &[Source], words: &[&str], excepted: &[(&str, &str)]) -> Vec<String> {
    let mut broken = Vec::new();
    let mut needed = BTreeSet::new();
    for source in sources {
        for (number, line) in source.code() {
            for word in words.iter().filter(|word| line.contains(**word)) {
                match excepted.iter().find(|(path, _)| *path == source.path) {
                    Some((path, _)) => drop(needed.insert(*path)),
                    None => broken.push(format!("{}:{number}: {word}", source.path)),
                }
            }
        }
    }
    for (path, _) in excepted.iter().filter(|(path, _)| !needed.contains(path)) {
        broken.push(format!("{path}: needs no exception"));
    }
    broken
}

fn library() -> Vec<Source> {
    sources(&["framework"]).into_iter().filter(|source| !source.is_test()).collect()
}

fn library_text(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_default()
}

fn sources(folders: &[&str]) -> Vec<Source> {
    let mut sources = Vec::new();
    let mut left: Vec<PathBuf> = folders.iter().map(|folder| root().join(folder)).collect();
    while let Some(folder) = left.pop() {
        for path in entries(&folder) {
            if path.is_dir() && !path.ends_with("target") {
                left.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).expect("a source can be read");
                sources.push(Source { path: shown(&path), text });
            }
        }
    }
    assert!(sources.len() > 10, "only {} sources in {folders:?}", sources.len());
    sources
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = folder.read_dir().expect("the folder is there");
    entries.map(|entry| entry.expect("it can be listed").path()).collect()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn shown(path: &Path) -> String {
    let inside = path.strip_prefix(root()).unwrap_or(path);
    inside.display().to_string().replace('\\', "/")
}

fn assert_none(broken: &[String]) {
    assert!(broken.is_empty(), "\n{}\n", broken.join("\n"));
}
