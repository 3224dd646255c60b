//! Reads one TOML text strictly, keeping where everything stands in it.
//!
//! Knows the tables only through serde. serde stops at its first error, so what is wrong is noted, taken
//! out, and the rest is read again, until nothing is wrong.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::IntoDeserializer;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::problem::Problem;
use super::secret::sounds_secret;
use super::text::Text;
use super::words::{self, Words};
use super::{
    Config,
    layer::{Layer, Place},
};

/// More problems than this in one file are not looked for.
const PROBLEMS_MAX: usize = 100;

/// Reads one text into a layer of what is right in it, and the problems of the rest.
pub(super) fn read(file: Option<PathBuf>, text: &str) -> (Layer, Vec<Problem>) {
    let (root, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        let text = Text::new(file, text, Vec::new());
        let shown = errors.iter().take(PROBLEMS_MAX);
        let problems = shown.map(|error| text.unreadable(error)).collect();
        return (Layer::default(), problems);
    }
    let mut entries = Vec::new();
    note_table(&mut Vec::new(), root.get_ref(), &mut entries);
    let (table, findings) = sound_part(root);
    let text = Arc::new(Text::new(file, text, hidden(&entries, &findings)));
    let problems = findings
        .iter()
        .map(|finding| {
            text.problem(&finding.path, finding.words.text.clone(), finding.span.clone())
        })
        .collect();
    let layer = Layer {
        table,
        places: places(&entries, &text),
        faulty: findings.iter().flat_map(Finding::paths).collect(),
    };
    (layer, problems)
}

fn places(entries: &[Entry], text: &Arc<Text>) -> BTreeMap<String, Place> {
    let place = |entry: &Entry| Place::InText {
        text: text.clone(),
        key: entry.key.clone(),
        value: entry.value.clone(),
        is_table: entry.is_table,
    };
    entries.iter().map(|entry| (dotted(&entry.path), place(entry))).collect()
}

/// What must not be shown: secrets, and whatever stands under a key that nobody knows.
fn hidden(entries: &[Entry], findings: &[Finding]) -> Vec<Range<usize>> {
    let is_unknown = |path: &str| {
        let unknown = findings.iter().filter(|finding| finding.words.is_unknown_key);
        unknown.into_iter().any(|finding| path.starts_with(&finding.path))
    };
    entries
        .iter()
        .filter(|entry| {
            entry.is_leaf && (is_secret(&entry.path) || is_unknown(&dotted(&entry.path)))
        })
        .map(|entry| entry.value.clone())
        .collect()
}

/// Something that no table understands.
struct Finding {
    path: String,
    words: Words,
    span: Range<usize>,
}

impl Finding {
    /// The paths about which nothing else is to be said: its own, that of the key it was meant to be, which is
    /// not missing, and those of the lists that were taken out with one of their items.
    fn paths(&self) -> Vec<String> {
        let lists = self.path.match_indices('[').map(|(at, _)| self.path[..at].to_owned());
        let meant = self.words.meant_key.iter().map(|meant| match self.path.rsplit_once('.') {
            Some((parent, _)) => format!("{parent}.{meant}"),
            None => meant.clone(),
        });
        lists.chain(meant).chain([self.path.clone()]).collect()
    }
}

/// Takes out what no table understands until the rest can be read.
fn sound_part(mut root: Spanned<DeTable<'_>>) -> (toml::Table, Vec<Finding>) {
    let mut findings = Vec::new();
    while let Err(error) = Config::deserialize(toml::Deserializer::from(root.clone())) {
        let words = words::of(error.message());
        let blamed = error.span().and_then(|span| blame(root.get_ref(), &span));
        let Some(blamed) = blamed.filter(|_| findings.len() < PROBLEMS_MAX) else {
            findings.push(Finding { path: String::new(), words, span: 0..0 });
            return (toml::Table::new(), findings);
        };
        let path = dotted(&blamed.path);
        findings.push(Finding { path, words, span: blamed.span });
        take_out(root.get_mut(), &blamed.path);
    }
    // What could be read as a configuration can be read as a table.
    let table = toml::Table::deserialize(toml::Deserializer::from(root)).unwrap_or_default();
    (table, findings)
}

/// One step of a path.
#[derive(Clone, Debug)]
enum Step {
    Key(String),
    Index(usize),
}

/// Something that stands in the text.
struct Entry {
    path: Vec<Step>,
    key: Range<usize>,
    value: Range<usize>,
    is_table: bool,
    is_leaf: bool,
}

fn note_table(path: &mut Vec<Step>, table: &DeTable<'_>, into: &mut Vec<Entry>) {
    for (key, value) in table {
        path.push(Step::Key(key.get_ref().to_string()));
        note_value(path, key.span(), value, into);
        path.pop();
    }
}

fn note_value(
    path: &mut Vec<Step>,
    key: Range<usize>,
    value: &Spanned<DeValue<'_>>,
    into: &mut Vec<Entry>,
) {
    let is_table = matches!(value.get_ref(), DeValue::Table(_));
    let is_leaf = !is_table && !matches!(value.get_ref(), DeValue::Array(_));
    into.push(Entry {
        path: path.clone(),
        key: key.clone(),
        value: value.span(),
        is_table,
        is_leaf,
    });
    match value.get_ref() {
        DeValue::Table(table) => note_table(path, table, into),
        DeValue::Array(items) => {
            for (at, item) in items.iter().enumerate() {
                path.push(Step::Index(at));
                note_value(path, key.clone(), item, into);
                path.pop();
            }
        }
        _ => {}
    }
}

/// What an error is about.
struct Blamed {
    path: Vec<Step>,
    span: Range<usize>,
}

/// The entry whose key or value stands exactly at `span`; else the smallest one that it lies in.
fn blame(root: &DeTable<'_>, span: &Range<usize>) -> Option<Blamed> {
    let mut entries = Vec::new();
    note_table(&mut Vec::new(), root, &mut entries);
    let within = |outer: &Range<usize>| outer.start <= span.start && span.end <= outer.end;
    entries
        .into_iter()
        .filter(|entry| within(&entry.key) || within(&entry.value))
        .min_by_key(|entry| {
            let exact = entry.key == *span || entry.value == *span;
            let extent = if within(&entry.key) { entry.key.len() } else { entry.value.len() };
            // Items of an array share its key's span, and are deeper: the array itself is meant by its key.
            (!exact, extent, entry.path.len())
        })
        .map(|entry| Blamed { path: entry.path, span: span.clone() })
}

/// Removes the deepest key of a path; an item of a list goes with its whole list.
fn take_out(table: &mut DeTable<'_>, path: &[Step]) {
    let Some((Step::Key(key), rest)) = path.split_first() else {
        return;
    };
    let deeper = rest.iter().any(|step| matches!(step, Step::Key(_)));
    if !deeper {
        table.remove(key.as_str());
        return;
    }
    let mut rest = rest;
    let Some(mut value) = table.get_mut(key.as_str()) else {
        return;
    };
    loop {
        match (value.get_mut(), rest.split_first()) {
            (DeValue::Table(table), _) => return take_out(table, rest),
            (DeValue::Array(items), Some((Step::Index(at), after))) => {
                let Some(item) = items.get_mut(*at) else {
                    return;
                };
                (value, rest) = (item, after);
            }
            _ => return,
        }
    }
}

fn dotted(path: &[Step]) -> String {
    let mut text = String::new();
    for step in path {
        match step {
            Step::Key(key) if text.is_empty() => text.push_str(key),
            Step::Key(key) => text.push_str(&format!(".{key}")),
            Step::Index(at) => text.push_str(&format!("[{at}]")),
        }
    }
    text
}

/// Whether the value at a path may be a secret: by its name, or because nobody knows its name.
fn is_secret(path: &[Step]) -> bool {
    let keys: Vec<&str> = path
        .iter()
        .filter_map(|step| match step {
            Step::Key(key) => Some(key.as_str()),
            Step::Index(_) => None,
        })
        .collect();
    match keys.as_slice() {
        ["brokers" | "stores", _, "tls", key] => {
            !matches!(*key, "ca" | "cert" | "key" | "insecure")
        }
        ["brokers", _, "properties", name @ ..] if !name.is_empty() => {
            sounds_secret(&name.join("."))
        }
        ["brokers" | "stores", _, key] => !matches!(
            *key,
            "kind"
                | "url_file"
                | "password_file"
                | "tls"
                | "properties"
                | "deadline"
                | "strict"
                | "replicas_min"
                | "prefix"
        ),
        ["service" | "subscriptions" | "retry", .., key] => {
            !matches!(*key, "key" | "routing_key") && sounds_secret(key)
        }
        _ => true,
    }
}

/// Reads one value, for the environment: a table with nothing but it, without places.
pub(super) fn accepts(table: &toml::Table) -> Result<(), String> {
    match Config::deserialize(toml::Value::Table(table.clone()).into_deserializer()) {
        Ok(_) => Ok(()),
        Err(error) => Err(error.message().to_owned()),
    }
}
