//! Layers of settings, and where each setting stands.
//!
//! The `config` crate lays one over the other; it is given only what was read strictly before, because on its
//! own it would round 5.7 to 6 and take "5" and true for numbers.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::problem::{Origin, Problem};
use super::text::Text;

/// What one file, or one variable, sets.
#[derive(Clone, Debug, Default)]
pub(super) struct Layer {
    pub(super) table: toml::Table,
    pub(super) places: BTreeMap<String, Place>,
    /// Paths that were found wrong and taken out: nothing else is to be said about them.
    pub(super) faulty: Vec<String>,
}

/// Where a setting stands.
#[derive(Clone, Debug)]
pub(super) enum Place {
    InText { text: Arc<Text>, key: Range<usize>, value: Range<usize>, is_table: bool },
    InVariable(String),
}

/// All layers, one over the other.
#[derive(Debug, Default)]
pub(super) struct Layers {
    layers: Vec<Layer>,
}

impl Layers {
    /// Lays one more over the others.
    pub(super) fn push(&mut self, layer: Layer) {
        self.layers.push(layer);
    }

    /// The settings of all layers together: tables are merged, anything else is replaced.
    pub(super) fn merged(&self) -> Result<toml::Table, config::ConfigError> {
        let builder = config::Config::builder();
        let builder =
            self.layers.iter().fold(builder, |builder, layer| builder.add_source(layer.clone()));
        builder.build()?.try_deserialize()
    }

    /// Whether anything was written at this path, right or wrong.
    pub(super) fn given(&self, path: &str) -> bool {
        self.faulty(path) || self.layers.iter().any(|layer| layer.places.contains_key(path))
    }

    /// Whether what was written at this path was found wrong already.
    pub(super) fn faulty(&self, path: &str) -> bool {
        self.layers.iter().any(|layer| layer.faulty.iter().any(|faulty| faulty == path))
    }

    /// The problem, with the place of its path; of something missing, the place of the table it is missing in.
    pub(super) fn locate(&self, problem: Problem) -> Problem {
        let mut path = problem.path.as_str();
        loop {
            if let Some(place) = self.layers.iter().rev().find_map(|layer| layer.places.get(path)) {
                return place.locate(problem.clone(), path == problem.path);
            }
            match path.rfind(['.', '[']) {
                Some(end) => path = &path[..end],
                None => return problem,
            }
        }
    }
}

impl Place {
    fn locate(&self, problem: Problem, is_itself: bool) -> Problem {
        match self {
            Self::InVariable(name) => problem.at(Origin::Variable(name.clone()), None),
            Self::InText { text, key, value, is_table } => {
                let span = if is_itself && !is_table { value } else { key };
                text.problem(&problem.path, problem.text, span.clone())
            }
        }
    }
}

impl config::Source for Layer {
    fn clone_into_box(&self) -> Box<dyn config::Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<config::Map<String, config::Value>, config::ConfigError> {
        Ok(self.table.iter().map(|(key, value)| (key.clone(), untyped(value))).collect())
    }
}

fn untyped(value: &toml::Value) -> config::Value {
    let kind = match value {
        toml::Value::String(text) => config::ValueKind::String(text.clone()),
        toml::Value::Integer(number) => config::ValueKind::I64(*number),
        toml::Value::Float(number) => config::ValueKind::Float(*number),
        toml::Value::Boolean(value) => config::ValueKind::Boolean(*value),
        // No key takes a date; inside AMQP arguments it is the text it was written as.
        toml::Value::Datetime(date) => config::ValueKind::String(date.to_string()),
        toml::Value::Array(items) => config::ValueKind::Array(items.iter().map(untyped).collect()),
        toml::Value::Table(table) => config::ValueKind::Table(
            table.iter().map(|(key, value)| (key.clone(), untyped(value))).collect(),
        ),
    };
    config::Value::new(None, kind)
}
