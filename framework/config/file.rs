//! Reads one TOML text strictly, keeping where everything stands in it.
//!
//! Knows the tables only through serde. serde stops at its first error, so what is wrong is noted, taken
//! out, and the rest is read again, until nothing is wrong.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::IntoDeserializer;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::problem::{Excerpt, Origin, Problem};
use super::secret::{HIDDEN, sounds_secret, without_credentials};
use super::words::{self, Words};
use super::{
    Config,
    layer::{Layer, Place},
};

/// More problems than this in one file are not looked for.
const PROBLEMS_MAX: usize = 100;

/// A text, its name, and the parts of it that must not be shown.
#[derive(Debug)]
pub(super) struct Text {
    file: Option<PathBuf>,
    text: String,
    hidden: Vec<Range<usize>>,
}

/// Reads one text into a layer of what is right in it, and the problems of the rest.
pub(super) fn read(file: Option<PathBuf>, text: &str) -> (Layer, Vec<Problem>) {
    let mut problems = Vec::new();
    let (root, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        let text = Text {
            file,
            text: text.to_owned(),
            hidden: Vec::new(),
        };
        problems.extend(
            errors
                .iter()
                .take(PROBLEMS_MAX)
                .map(|error| text.unreadable(error)),
        );
        return (Layer::default(), problems);
    }
    let mut found = Vec::new();
    note_table(&mut Vec::new(), root.get_ref(), &mut found);
    let hidden = found
        .iter()
        .filter(|entry| is_secret(&entry.path))
        .map(|entry| entry.value.clone())
        .collect();
    let text = Arc::new(Text {
        file,
        text: text.to_owned(),
        hidden,
    });
    let mut layer = Layer::default();
    for entry in &found {
        let place = Place::InText {
            text: text.clone(),
            key: entry.key.clone(),
            value: entry.value.clone(),
            is_table: entry.is_table,
        };
        layer.places.insert(dotted(&entry.path), place);
    }
    layer.table = sound_part(root, &text, &mut layer.faulty, &mut problems);
    (layer, problems)
}

/// Takes out what no table understands until the rest can be read, noting each as a problem.
fn sound_part(
    mut root: Spanned<DeTable<'_>>,
    text: &Text,
    faulty: &mut Vec<String>,
    problems: &mut Vec<Problem>,
) -> toml::Table {
    loop {
        let Err(error) = Config::deserialize(toml::Deserializer::from(root.clone())) else {
            break;
        };
        let blamed = error.span().and_then(|span| blame(root.get_ref(), &span));
        let Some(blamed) = blamed.filter(|_| problems.len() < PROBLEMS_MAX) else {
            problems.push(Problem::new("", words::of(error.message()).text));
            return toml::Table::new();
        };
        let path = dotted(&blamed.path);
        let said = words::of(error.message());
        // What it was meant to be is not missing as well, nor is a list that goes with one of its items.
        faulty.push(path.clone());
        faulty.extend(
            path.char_indices()
                .filter(|(_, c)| *c == '[')
                .map(|(at, _)| path[..at].to_owned()),
        );
        if let Words {
            meant_key: Some(meant),
            ..
        } = &said
        {
            let parent = path.rsplit_once('.').map_or("", |(parent, _)| parent);
            faulty.push(format!(
                "{parent}{}{meant}",
                if parent.is_empty() { "" } else { "." }
            ));
        }
        problems.push(text.problem(&path, said.text, blamed.span));
        take_out(root.get_mut(), &blamed.path);
    }
    // What could be read as a configuration can be read as a table.
    toml::Table::deserialize(toml::Deserializer::from(root)).unwrap_or_default()
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
    into.push(Entry {
        path: path.clone(),
        key: key.clone(),
        value: value.span(),
        is_table,
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
            let extent = if within(&entry.key) {
                entry.key.len()
            } else {
                entry.value.len()
            };
            // Items of an array share its key's span, and are deeper: the array itself is meant by its key.
            (!exact, extent, entry.path.len())
        })
        .map(|entry| Blamed {
            path: entry.path,
            span: span.clone(),
        })
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
        ["brokers" | "stores", _, "tls", ..] => false,
        ["brokers", _, "properties", name @ ..] if !name.is_empty() => {
            sounds_secret(&name.join("."))
        }
        ["brokers" | "stores", _, key] => !matches!(
            *key,
            "kind" | "url_file" | "password_file" | "tls" | "properties" | "deadline" | "strict"
        ),
        ["brokers" | "stores", _, _, ..] => true,
        _ => false,
    }
}

impl Text {
    /// A problem with what stands at `span`.
    pub(super) fn problem(&self, path: &str, text: String, span: Range<usize>) -> Problem {
        let (line, column) = self.position(span.start);
        let origin = Origin::File {
            file: self.file.clone(),
            line,
            column,
        };
        let excerpt = self.excerpt(line, span, &self.hidden);
        Problem::new(path, text).at(origin, Some(excerpt))
    }

    /// A problem with a text that is no TOML. Nothing is known about it, so all that may be secret is hidden.
    fn unreadable(&self, error: &toml::de::Error) -> Problem {
        let span = error.span().unwrap_or(0..0);
        let (line, column) = self.position(span.start);
        let line_at = self.line_at(span.start);
        let shown = shown_of_unreadable(&self.text[line_at.clone()]);
        let hidden = [line_at.start + shown..line_at.end];
        let excerpt = self.excerpt(line, span, &hidden);
        let origin = Origin::File {
            file: self.file.clone(),
            line,
            column,
        };
        Problem::new("", format!("is no TOML: {}", error.message())).at(origin, Some(excerpt))
    }

    /// Line and column, both from 1.
    fn position(&self, at: usize) -> (usize, usize) {
        let before = &self.text[..self.floor(at)];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        (
            before.matches('\n').count() + 1,
            before[line_start..].chars().count() + 1,
        )
    }

    fn line_at(&self, at: usize) -> Range<usize> {
        let at = self.floor(at);
        let start = self.text[..at].rfind('\n').map_or(0, |newline| newline + 1);
        let end = self.text[at..]
            .find(['\n', '\r'])
            .map_or(self.text.len(), |newline| at + newline);
        start..end
    }

    /// The nearest place before `at` where a character begins.
    fn floor(&self, at: usize) -> usize {
        (0..=at.min(self.text.len()))
            .rev()
            .find(|at| self.text.is_char_boundary(*at))
            .unwrap_or(0)
    }

    /// The line of `span`, without what is hidden, and where carets go under it.
    fn excerpt(&self, line: usize, span: Range<usize>, hidden: &[Range<usize>]) -> Excerpt {
        let whole = self.line_at(span.start);
        let (mut shown, mut before, mut after) = (String::new(), None, None);
        let mut at = whole.start;
        while at < whole.end {
            if before.is_none() && at >= span.start {
                before = Some(shown.chars().count());
            }
            if after.is_none() && at >= span.end {
                after = Some(shown.chars().count());
            }
            if let Some(range) = hidden.iter().find(|range| range.contains(&at)) {
                if range.contains(&span.start) && before.is_none() {
                    before = Some(shown.chars().count());
                }
                shown.push_str(HIDDEN);
                at = self.floor(range.end).max(at + 1);
                continue;
            }
            let Some(next) = self.text[at..].chars().next() else {
                break;
            };
            shown.push(if next.is_control() { ' ' } else { next });
            at += next.len_utf8();
        }
        let width = shown.chars().count();
        let before = before.unwrap_or(width);
        let carets = after.unwrap_or(width).saturating_sub(before).max(1);
        Excerpt {
            line,
            text: without_credentials(&shown),
            before,
            carets,
        }
    }
}

/// How much of a line that is no TOML can be shown: headers and plain settings whole, else up to the `=`.
fn shown_of_unreadable(line: &str) -> usize {
    let plain = |c: char| c.is_ascii_alphanumeric() || " \t._-".contains(c);
    let trimmed = line.trim();
    if trimmed.starts_with('[') && trimmed.trim_matches(['[', ']']).chars().all(plain) {
        return line.len();
    }
    let Some((key, value)) = line.split_once('=') else {
        return 0;
    };
    let is_key = key.trim().len() <= 64
        && key
            .trim()
            .chars()
            .all(|c| c.is_ascii_lowercase() || "._".contains(c));
    match is_key {
        true if sounds_secret(line) || value.contains(['@', '{']) => key.len() + 1,
        true => line.len(),
        false => 0,
    }
}

/// Reads one value, for the environment: a table with nothing but it, without places.
pub(super) fn accepts(table: &toml::Table) -> Result<(), String> {
    match Config::deserialize(toml::Value::Table(table.clone()).into_deserializer()) {
        Ok(_) => Ok(()),
        Err(error) => Err(error.message().to_owned()),
    }
}
