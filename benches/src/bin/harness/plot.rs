//! Plots as SVG, written by hand: horizontal bars of medians with lines from least to greatest.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use super::Outcome;
use super::runs::{Measured, Series, Spread};

const WIDTH: f64 = 720.0;
const LABELS: f64 = 190.0;
const VALUES: f64 = 90.0;
const ROW: f64 = 30.0;
const HEAD: f64 = 52.0;
const OURS: &str = "#2f6f4f";
const THEIRS: &str = "#9aa5b1";

pub(crate) struct Plot {
    /// The file is `docs/benchmarks/NAME.svg`.
    pub(crate) name: String,
    pub(crate) title: String,
    pub(crate) unit: String,
    pub(crate) bars: Vec<Bar>,
}

pub(crate) struct Bar {
    pub(crate) label: String,
    pub(crate) spread: Spread,
}

impl Plot {
    /// A bar a contender.
    pub(crate) fn of(
        name: &str,
        title: &str,
        unit: &str,
        all: &[Series],
        figure: fn(&Measured) -> f64,
    ) -> Self {
        let bar = |series: &Series| Bar {
            label: format!("{} {}", series.contender.label, series.contender.style),
            spread: Spread::of(series.runs.iter().map(figure)),
        };
        Self {
            name: name.to_owned(),
            title: title.to_owned(),
            unit: unit.to_owned(),
            bars: all.iter().map(bar).collect(),
        }
    }

    pub(crate) fn write(&self) -> Outcome {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/benchmarks");
        fs::create_dir_all(&folder)?;
        fs::write(folder.join(format!("{}.svg", self.name)), self.svg())?;
        Ok(())
    }

    fn svg(&self) -> String {
        let height = HEAD + ROW * self.bars.len() as f64 + 12.0;
        let most = self.bars.iter().map(|bar| bar.spread.max).fold(0.0, f64::max);
        let across = WIDTH - LABELS - VALUES;
        let length = |value: f64| if most > 0.0 { value / most * across } else { 0.0 };
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
             font-family=\"sans-serif\" font-size=\"13\">\n\
             <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>\n\
             <text x=\"12\" y=\"22\" font-size=\"15\" font-weight=\"bold\">{}</text>\n\
             <text x=\"12\" y=\"40\" fill=\"#555555\">{}; median, line from least to greatest</text>\n",
            self.title, self.unit,
        );
        for (row, Bar { label, spread }) in self.bars.iter().enumerate() {
            let top = HEAD + ROW * row as f64;
            let middle = top + ROW / 2.0;
            let color = if label.starts_with("redeliver") { OURS } else { THEIRS };
            let [median, min, max] = [spread.median, spread.min, spread.max].map(length);
            // Writing to a string cannot fail.
            let _ = write!(
                svg,
                "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{label}</text>\n\
                 <rect x=\"{LABELS}\" y=\"{}\" width=\"{median:.1}\" height=\"18\" fill=\"{color}\"/>\n\
                 <line x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{middle}\" y2=\"{middle}\" stroke=\"#222222\"/>\n\
                 <text x=\"{:.1}\" y=\"{}\">{}</text>\n",
                LABELS - 8.0,
                middle + 4.0,
                top + 6.0,
                LABELS + min,
                LABELS + max,
                LABELS + max + 6.0,
                middle + 4.0,
                shown(spread.median),
            );
        }
        svg.push_str("</svg>\n");
        svg
    }
}

/// With a comma between thousands; small values with one place.
fn shown(value: f64) -> String {
    if value < 100.0 {
        return format!("{value:.1}");
    }
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
