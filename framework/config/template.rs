//! Names of queues and topics that are made of others: `{queue}.wait.{ms}`.

use serde::Deserialize;

/// A name with places in braces.
///
/// ```
/// use redeliver::config::Template;
///
/// let wait = Template::new("{queue}.wait.{ms}");
/// assert_eq!(wait.as_str(), "{queue}.wait.{ms}");
/// assert_eq!(wait.fill(&[("queue", "orders"), ("ms", "500")]), "orders.wait.500");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(transparent)]
pub struct Template(String);

impl Template {
    /// Takes a template as it is written.
    ///
    /// ```
    /// use redeliver::config::{Subscription, Template};
    ///
    /// let dead = Some(Template::new("{queue}.failed"));
    /// let subscription = Subscription { dead, ..Subscription::default() };
    /// assert_eq!(subscription.dead.map(|name| name.fill(&[("queue", "orders")])), Some("orders.failed".to_owned()));
    /// ```
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The template as it is written.
    ///
    /// ```
    /// use redeliver::config::Template;
    ///
    /// let template = Template::new("{queue}.wait.{ms}");
    /// let is_one_for_all = !template.as_str().contains("{ms}");
    /// assert!(!is_one_for_all, "each delay has a queue of its own");
    /// ```
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Fills the places in one pass, so that braces inside a value stay what they are. Unknown places stay too.
    ///
    /// ```
    /// use redeliver::config::Template;
    ///
    /// let template = Template::new("{queue}.wait.{ms}");
    /// assert_eq!(template.fill(&[("queue", "orders")]), "orders.wait.{ms}", "what is unknown stays");
    /// assert_eq!(template.fill(&[("queue", "{ms}"), ("ms", "500")]), "{ms}.wait.500", "one pass");
    /// ```
    pub fn fill(&self, values: &[(&str, &str)]) -> String {
        let mut filled = String::new();
        let mut rest = self.0.as_str();
        while let Some((before, name, after)) = split(rest) {
            filled.push_str(before);
            match values.iter().find(|(known, _)| *known == name) {
                Some((_, value)) => filled.push_str(value),
                None => filled.push_str(&format!("{{{name}}}")),
            }
            rest = after;
        }
        filled + rest
    }

    /// The names in braces.
    pub(super) fn places(&self) -> Vec<&str> {
        let mut places = Vec::new();
        let mut rest = self.0.as_str();
        while let Some((_, name, after)) = split(rest) {
            places.push(name);
            rest = after;
        }
        places
    }
}

/// Splits `a{b}c` into `a`, `b`, `c`.
fn split(text: &str) -> Option<(&str, &str, &str)> {
    let (before, rest) = text.split_once('{')?;
    let (name, after) = rest.split_once('}')?;
    Some((before, name, after))
}
