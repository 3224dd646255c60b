//! A text with line numbers, of which lines are shown with what is wrong underlined.
//!
//! Owns what of a line may be shown: never what its reader marked as hidden, and of a text that nobody could
//! read only what is surely no secret.

use std::ops::Range;
use std::path::PathBuf;

use super::problem::{Excerpt, Origin, Problem};
use super::secret::{HIDDEN, sounds_secret, without_credentials};

/// A text, its name, and the parts of it that must not be shown.
#[derive(Debug)]
pub(super) struct Text {
    file: Option<PathBuf>,
    text: String,
    hidden: Vec<Range<usize>>,
}

impl Text {
    /// A text by its name, with the ranges of it that must not be shown.
    pub(super) fn new(file: Option<PathBuf>, text: &str, hidden: Vec<Range<usize>>) -> Self {
        Self { file, text: text.to_owned(), hidden }
    }

    /// A problem with what stands at `span`.
    pub(super) fn problem(&self, path: &str, text: String, span: Range<usize>) -> Problem {
        let (line, column) = self.position(span.start);
        let origin = Origin::File { file: self.file.clone(), line, column };
        let excerpt = self.excerpt(line, span, &self.hidden);
        Problem::new(path, text).at(origin, Some(excerpt))
    }

    /// A problem with a text that is no TOML. Nothing is known about it, so all that may be secret is hidden.
    pub(super) fn unreadable(&self, error: &toml::de::Error) -> Problem {
        let span = error.span().unwrap_or(0..0);
        let (line, column) = self.position(span.start);
        let line_at = self.line_at(span.start);
        let shown = shown_of_unreadable(&self.text[line_at.clone()]);
        let hidden = line_at.start + shown..line_at.end;
        let excerpt = self.excerpt(line, span, std::slice::from_ref(&hidden));
        let origin = Origin::File { file: self.file.clone(), line, column };
        Problem::new("", format!("is no TOML: {}", error.message())).at(origin, Some(excerpt))
    }

    /// Line and column, both from 1.
    fn position(&self, at: usize) -> (usize, usize) {
        let before = &self.text[..self.floor(at)];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
    }

    fn line_at(&self, at: usize) -> Range<usize> {
        let at = self.floor(at);
        let start = self.text[..at].rfind('\n').map_or(0, |newline| newline + 1);
        let end =
            self.text[at..].find(['\n', '\r']).map_or(self.text.len(), |newline| at + newline);
        start..end
    }

    /// The nearest place before `at` where a character begins.
    fn floor(&self, at: usize) -> usize {
        (0..=at.min(self.text.len())).rev().find(|at| self.text.is_char_boundary(*at)).unwrap_or(0)
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
        Excerpt { line, text: without_credentials(&shown), before, carets }
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
        && key.trim().chars().all(|c| c.is_ascii_lowercase() || "._".contains(c));
    match is_key {
        true if sounds_secret(line) || value.contains(['@', '{']) => key.len() + 1,
        true => line.len(),
        false => 0,
    }
}
