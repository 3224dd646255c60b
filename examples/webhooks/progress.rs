//! What a person sees meanwhile: a bar on a terminal, plain lines elsewhere. On standard error, so
//! that standard output is the summary alone.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::chosen::Fate;
use crate::deliveries::Webhook;
use crate::notifier::Tally;
use crate::options::Job;
use crate::tell::tell;

const LINE_EVERY: Duration = Duration::from_secs(1);

pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    /// The last plain line, and when it, or what comes before it, was printed.
    last: RefCell<(Option<Instant>, String)>,
    /// Messages to publish, or ids that can be handled; `None` where that is not known.
    expected: Option<u64>,
}

impl Progress {
    pub(crate) fn of_run(job: &Job, webhooks: &[Webhook], ids: &BTreeSet<&str>) -> Self {
        let count = |fate| ids.iter().filter(|id| job.chosen.fate(id) == fate).count();
        let (first, ever) = (count(Fate::FailsFirst), count(Fate::FailsForEver));
        tell!(
            "{} messages of {} ids through {}; {first} ids fail on their first attempt, {ever} \
             for ever",
            webhooks.len() as u64 * job.repeat,
            ids.len(),
            job.place,
        );
        Self::new(Some((ids.len() - ever) as u64))
    }

    pub(crate) fn of_publish(job: &Job, webhooks: &[Webhook]) -> Self {
        let messages = webhooks.len() as u64 * job.repeat;
        tell!("{messages} messages to {}", job.place);
        Self::new(Some(messages))
    }

    pub(crate) fn of_consume(job: &Job) -> Self {
        tell!("consuming {} until nothing is left for {:?}", job.place, job.idle_exit);
        Self::new(None)
    }

    fn new(expected: Option<u64>) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| match expected {
            Some(expected) => {
                ProgressBar::new(expected).with_style(style("{wide_bar} {pos}/{len} {msg}"))
            }
            None => ProgressBar::new_spinner().with_style(style("{spinner} {pos} {msg}")),
        });
        // It was just said what is to be done.
        let last = RefCell::new((Some(Instant::now()), String::new()));
        Self { bar, last, expected }
    }

    /// So many messages are confirmed.
    pub(crate) fn published(&self, count: u64) {
        self.tell(count, || String::from("published"), |of| format!("published {count}{of}"));
    }

    /// So much was handled.
    pub(crate) fn show(&self, tally: &Tally) {
        let (retried, (handled, others)) = (tally.retried(), tally.counts());
        let others = match others {
            0 => String::new(),
            others => format!(", and {others} ids of other runs"),
        };
        self.tell(
            handled,
            || format!("handled, {retried} retries{others}"),
            |of| format!("handled {handled}{of}, {retried} retries{others}"),
        );
    }

    pub(crate) fn finish(&self, tally: &Tally) {
        self.last.borrow_mut().0 = None;
        self.show(tally);
        self.close();
    }

    pub(crate) fn close(&self) {
        if let Some(bar) = &self.bar {
            bar.abandon();
        }
    }

    fn tell(&self, count: u64, beside: impl Fn() -> String, line: impl Fn(&str) -> String) {
        if let Some(bar) = &self.bar {
            bar.set_position(count);
            bar.set_message(beside());
            return;
        }
        let of = self.expected.map(|expected| format!(" of {expected}")).unwrap_or_default();
        let (at, last) = &mut *self.last.borrow_mut();
        let line = line(&of);
        if *last != line && at.is_none_or(|at| at.elapsed() >= LINE_EVERY) {
            tell!("{line}");
            (*at, *last) = (Some(Instant::now()), line);
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
