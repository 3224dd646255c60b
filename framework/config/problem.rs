//! What is wrong with a configuration: every problem at once, each with its place and what to do.
//!
//! Owns how problems are shown. Shows no secret: what is hidden was hidden before it comes here.

use std::fmt;
use std::path::PathBuf;

use super::secret::without_credentials;

/// Everything that is wrong with a configuration, in the order of files, lines and variables.
///
/// ```
/// use redeliver::config::Config;
///
/// let problems = Config::from_toml("[brokers.main]\nkind = \"rabitmq\"").unwrap_err();
/// let first = &problems.list()[0];
/// assert_eq!(first.path(), "brokers.main.kind");
/// assert!(first.text().contains("did you mean \"rabbitmq\"?"), "{first}");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// `Err` if there are any.
    pub(super) fn none(list: Vec<Problem>) -> Result<(), Self> {
        if list.is_empty() { Ok(()) } else { Err(Self::sorted(list)) }
    }

    pub(super) fn sorted(mut list: Vec<Problem>) -> Self {
        list.sort_by(|a, b| a.origin.cmp(&b.origin));
        list.dedup();
        Self(list)
    }

    /// Each problem.
    ///
    /// ```
    /// use redeliver::config::Config;
    ///
    /// let problems = Config::from_toml("[service]\nrestarts_max = -1\n[brokers.main]\nkind = \"rabitmq\"").unwrap_err();
    /// let paths: Vec<_> = problems.list().iter().map(|problem| problem.path()).collect();
    /// assert_eq!(paths, ["service.restarts_max", "brokers.main.kind"], "all of them, as they were written");
    /// ```
    pub fn list(&self) -> &[Problem] {
        &self.0
    }
}

/// One thing that is wrong.
///
/// ```
/// use redeliver::config::Config;
///
/// let problems = Config::from_toml("[service]\nshutdown_grace = 5").unwrap_err();
/// let problem = &problems.list()[0];
/// assert_eq!(problem.path(), "service.shutdown_grace");
/// assert!(problem.text().starts_with("is 5, which has no unit"));
/// assert!(problem.to_string().starts_with("line 2, column 18: service.shutdown_grace is 5"), "{problem}");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub(super) origin: Option<Origin>,
    pub(super) path: String,
    pub(super) text: String,
    pub(super) excerpt: Option<Excerpt>,
}

impl Problem {
    pub(super) fn new(path: impl Into<String>, text: impl Into<String>) -> Self {
        Self {
            origin: None,
            path: path.into(),
            text: without_credentials(&text.into()),
            excerpt: None,
        }
    }

    pub(super) fn at(mut self, origin: Origin, excerpt: Option<Excerpt>) -> Self {
        self.origin = Some(origin);
        self.excerpt = excerpt;
        self
    }

    /// Where it was written; `None` for a configuration that was made in code.
    ///
    /// ```
    /// use redeliver::config::{Config, Origin};
    ///
    /// let text = "[service]\nshutdown_grace = 5";
    /// let problems = Config::from_toml(text).unwrap_err();
    /// let written = Origin::File { file: None, line: 2, column: 18 };
    /// assert_eq!(problems.list()[0].origin(), Some(&written));
    /// ```
    pub fn origin(&self) -> Option<&Origin> {
        self.origin.as_ref()
    }

    /// The TOML path, such as `subscriptions.orders.in_flight_max`; empty where the text is no TOML at all.
    ///
    /// ```
    /// use redeliver::config::Config;
    ///
    /// let path = |text: &str| Config::from_toml(text).unwrap_err().list()[0].path().to_owned();
    /// assert_eq!(path("[retry.patient]\nattempts_max = 0"), "retry.patient.attempts_max");
    /// assert_eq!(path("[subscriptions"), "", "the text is no TOML at all");
    /// ```
    pub fn path(&self) -> &str {
        &self.path
    }

    /// What is wrong and what to do, in words that follow the path: `is 0, so ...; use 1 or more`.
    ///
    /// ```
    /// use redeliver::config::Config;
    ///
    /// let problems = Config::from_toml("[brokers.main]\nkind = \"amqp://app:hunter2@rabbit\"").unwrap_err();
    /// let text = problems.list()[0].text();
    /// assert!(text.starts_with("is \"amqp://***@rabbit\""), "the password is not shown: {text}");
    /// ```
    pub fn text(&self) -> &str {
        &self.text
    }
}

/// Where a value was written.
///
/// ```
/// use redeliver::config::{Config, Origin};
///
/// let no_files: [&str; 0] = [];
/// let problems = Config::load_all_with(&no_files, [("REDELIVER__BROKERS__MAIN__KIND", "rabitmq")]).unwrap_err();
/// let variable = Origin::Variable("REDELIVER__BROKERS__MAIN__KIND".to_owned());
/// assert_eq!(problems.list()[0].origin(), Some(&variable));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// In a file, or in a text that was handed in.
    File {
        /// The file as it was named; `None` for a text.
        file: Option<PathBuf>,
        /// The line, from 1.
        line: usize,
        /// The column, in characters, from 1.
        column: usize,
    },
    /// In an environment variable of this name.
    Variable(String),
}

/// A line of a file and what is underlined in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Excerpt {
    pub(super) line: usize,
    pub(super) text: String,
    /// How many characters stand before the carets, and how many carets there are.
    pub(super) before: usize,
    pub(super) carets: usize,
}

impl std::error::Error for Problems {}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            1 => write!(f, "1 problem in the configuration")?,
            n => write!(f, "{n} problems in the configuration")?,
        }
        self.0.iter().try_for_each(|problem| write!(f, "\n{problem}"))
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(origin) = &self.origin {
            write!(f, "{origin}: ")?;
        }
        let gap = if self.path.is_empty() { "" } else { " " };
        write!(f, "{}{gap}{}", self.path, self.text)?;
        match &self.excerpt {
            Some(excerpt) => write!(f, "\n{excerpt}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { file: Some(file), line, column } => {
                write!(f, "{}:{line}:{column}", file.display())
            }
            Self::File { file: None, line, column } => write!(f, "line {line}, column {column}"),
            Self::Variable(name) => write!(f, "environment variable {name}"),
        }
    }
}

impl fmt::Display for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = self.line.to_string();
        let margin = " ".repeat(number.len());
        writeln!(f, "  {number} | {}", self.text)?;
        write!(f, "  {margin} | {}{}", " ".repeat(self.before), "^".repeat(self.carets.max(1)))
    }
}
