//! Settings from environment variables: `REDELIVER__BROKERS__MAIN__URL` is `brokers.main.url`.
//!
//! Reads no environment itself; pairs of names and values are handed in.

use super::file;
use super::layer::{Layer, Place};
use super::problem::{Origin, Problem};
use super::words;

/// What the names of our variables begin with.
pub(super) const PREFIX: &str = "REDELIVER__";

/// Reads one variable, or nothing if its name is not one of ours. `files` is what lies below it.
pub(super) fn read(
    name: &str,
    value: &str,
    files: &toml::Table,
) -> Option<Result<Layer, Box<Problem>>> {
    let path = path_of(name.strip_prefix(PREFIX)?, files);
    Some(layer(name, &path, value))
}

fn layer(name: &str, path: &[String], value: &str) -> Result<Layer, Box<Problem>> {
    let dotted = path.join(".");
    let mut refusal = String::new();
    for candidate in readings(value) {
        let table = nested(path, candidate);
        match file::accepts(&table) {
            Ok(()) => {
                let places = (1..=path.len())
                    .map(|end| (path[..end].join("."), Place::InVariable(name.to_owned())));
                return Ok(Layer { table, places: places.collect(), faulty: Vec::new() });
            }
            // The first reading that is refused is the one that was meant: `5.7` as a number, not as text.
            Err(message) if refusal.is_empty() => refusal = message,
            Err(_) => {}
        }
    }
    let problem = Problem::new(dotted, words::of(&refusal).text);
    Err(Box::new(problem.at(Origin::Variable(name.to_owned()), None)))
}

/// What a value may mean: a number, boolean or list as TOML has them, else the text as it is.
fn readings(value: &str) -> Vec<toml::Value> {
    // Text in quotes is never unquoted: the shell has taken its own away, any others belong to the text.
    let typed = toml::from_str::<toml::Table>(&format!("value = {value}\n")).ok();
    let typed = typed.filter(|table| table.len() == 1).and_then(|mut table| table.remove("value"));
    let typed = typed.filter(|value| !value.is_str() && !value.is_datetime());
    typed.into_iter().chain([toml::Value::String(value.to_owned())]).collect()
}

fn nested(path: &[String], value: toml::Value) -> toml::Table {
    let mut value = value;
    for key in path.iter().rev() {
        value = toml::Value::Table(toml::Table::from_iter([(key.clone(), value)]));
    }
    match value {
        toml::Value::Table(table) => table,
        _ => toml::Table::new(),
    }
}

/// The TOML path of a variable's name: `__` parts keys, all are lower case.
fn path_of(name: &str, files: &toml::Table) -> Vec<String> {
    let mut path: Vec<String> = name.to_lowercase().split("__").map(str::to_owned).collect();
    if let [table, name, rest @ ..] = path.as_mut_slice() {
        *name = existing(table, name, files);
        if let ("brokers", [properties, property]) = (table.as_str(), rest)
            && properties == "properties"
        {
            // librdkafka's names have dots, which shells do not allow in a variable's.
            *property = property.replace('_', ".");
        }
    }
    path
}

/// The name in the files that is meant: shells allow no `-`, so `orders_eu` may be `orders-eu`.
fn existing(table: &str, name: &str, files: &toml::Table) -> String {
    let Some(known) = files.get(table).and_then(toml::Value::as_table) else {
        return name.to_owned();
    };
    if known.contains_key(name) {
        return name.to_owned();
    }
    let same = known.keys().find(|known| known.replace('-', "_") == name);
    same.cloned().unwrap_or_else(|| name.to_owned())
}
