//! One figure of the benchmark, as a line of JSON.

use serde::Serialize;

/// What was measured, against what, and whether that is enough.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Figure {
    pub(crate) measure: String,
    pub(crate) ours: f64,
    pub(crate) reference: Option<f64>,
    pub(crate) ratio: Option<f64>,
    pub(crate) goal: Option<f64>,
    pub(crate) met: Option<bool>,
}

/// Which side of its goal a figure has to be on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Goal {
    #[cfg_attr(not(feature = "servers"), allow(dead_code))]
    AtLeast(f64),
    AtMost(f64),
    /// Published, without a goal.
    Shown,
}

impl Figure {
    /// A figure that stands for itself.
    pub(crate) fn plain(measure: impl Into<String>, ours: f64, goal: Goal) -> Self {
        Self::new(measure.into(), ours, None, None, goal)
    }

    /// A figure against a reference; `ratio` is the median over the rounds.
    #[cfg_attr(not(feature = "servers"), allow(dead_code))]
    pub(crate) fn against(
        measure: impl Into<String>,
        ours: f64,
        reference: f64,
        ratio: f64,
        goal: Goal,
    ) -> Self {
        Self::new(measure.into(), ours, Some(reference), Some(ratio), goal)
    }

    fn new(
        measure: String,
        ours: f64,
        reference: Option<f64>,
        ratio: Option<f64>,
        goal: Goal,
    ) -> Self {
        let judged = ratio.unwrap_or(ours);
        let (goal, met) = match goal {
            Goal::AtLeast(least) => (Some(least), Some(judged >= least)),
            Goal::AtMost(most) => (Some(most), Some(judged <= most)),
            Goal::Shown => (None, None),
        };
        let rounded = |value: f64| (value * 1000.0).round() / 1000.0;
        Self {
            measure,
            ours: rounded(ours),
            reference: reference.map(rounded),
            ratio: ratio.map(rounded),
            goal,
            met,
        }
    }

    pub(crate) fn print(&self) {
        println!("{}", serde_json::to_string(self).expect("a figure is JSON"));
    }
}
