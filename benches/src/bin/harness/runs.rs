//! Whole processes, run in turns on a source that is filled before each and looked at afterwards.

use std::env;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::Outcome;
use super::figure::{Figure, Goal};
use super::micro::beside;

/// No run takes longer than this.
const RUN_MAX: Duration = Duration::from_secs(300);

/// A server with something to consume.
pub(crate) trait Ground {
    fn url(&self) -> &str;

    /// What the names of its queues, or its topic, begin with.
    fn prefix(&self, setting: &Setting) -> String;

    /// Who consumes this time, where consumers have names.
    fn group(&self) -> String;

    /// Puts the messages there.
    fn fill(&self, setting: &Setting) -> Outcome;

    /// How many messages there nobody finished, once the run is over.
    fn left(&self, setting: &Setting) -> Outcome<u64>;

    /// Takes away what a contender left.
    fn clear(&self, setting: &Setting) -> Outcome;
}

/// A program and the way it is run.
#[derive(Clone, Debug)]
pub(crate) struct Contender {
    pub(crate) label: &'static str,
    pub(crate) program: Program,
    pub(crate) style: String,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Program {
    Ours,
    Lapin,
    Rdkafka,
    Ceiling,
    Locks,
    RustStream,
    RustStreamKafka,
    Apalis,
}

impl Program {
    fn path(self) -> PathBuf {
        let peers = || PathBuf::from(env::var_os("REDELIVER_BENCH_PEERS").unwrap_or_default());
        match self {
            Self::Ours => beside("redeliver"),
            Self::Lapin => beside("lapin"),
            Self::Rdkafka => beside("rdkafka"),
            Self::Ceiling => beside("ceiling"),
            Self::Locks => beside("locks"),
            Self::RustStream => peers().join("ruststream"),
            Self::RustStreamKafka => peers().join("ruststream_kafka"),
            Self::Apalis => peers().join("apalis"),
        }
    }
}

impl Contender {
    pub(crate) fn new(label: &'static str, program: Program, style: impl Into<String>) -> Self {
        Self { label, program, style: style.into() }
    }

    pub(crate) fn ours(style: impl Into<String>) -> Self {
        Self::new("redeliver", Program::Ours, style)
    }
}

/// What is consumed.
#[derive(Clone, Debug)]
pub(crate) struct Setting {
    /// Queues, or partitions.
    pub(crate) queues: usize,
    pub(crate) messages: u64,
    pub(crate) prefetch: u16,
}

/// What one run came to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Measured {
    /// Messages a second.
    pub(crate) rate: f64,
    /// Microseconds of processor time a message.
    pub(crate) cpu: f64,
    pub(crate) memory_peak: f64,
    /// Lines `NAME NUMBER...` that the program printed beside.
    pub(crate) notes: Vec<(String, Vec<f64>)>,
}

impl Measured {
    pub(crate) fn note(&self, name: &str) -> Outcome<&[f64]> {
        let found = self.notes.iter().find(|(known, _)| known == name);
        let (_, numbers) = found.ok_or_else(|| format!("the program printed no line `{name}`"))?;
        Ok(numbers)
    }
}

/// Fills the source, runs the contender, and looks that nothing is left.
pub(crate) fn once(
    ground: &dyn Ground,
    contender: &Contender,
    setting: &Setting,
) -> Outcome<Measured> {
    ground.fill(setting)?;
    let measured = start(ground, contender, setting)?;
    let left = ground.left(setting)?;
    if left > 0 {
        eprintln!("  {} left {left} messages behind", contender.label);
        if matches!(contender.program, Program::Ours) {
            return Err(format!("redeliver left {left} messages unfinished").into());
        }
        ground.clear(setting)?;
    }
    Ok(measured)
}

/// Runs the contender's process to its end.
pub(crate) fn start(
    ground: &dyn Ground,
    contender: &Contender,
    setting: &Setting,
) -> Outcome<Measured> {
    let mut child = Command::new(contender.program.path())
        .arg(ground.url())
        .arg(setting.queues.to_string())
        .arg(ground.prefix(setting))
        .arg(setting.messages.to_string())
        .arg(setting.prefetch.to_string())
        .arg(&contender.style)
        .arg(ground.group())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .map_err(|error| format!("{}: {error}", contender.program.path().display()))?;
    let end = Instant::now() + RUN_MAX;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() > end {
            child.kill()?;
            return Err(format!("{} did not end within {RUN_MAX:?}", contender.label).into());
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let mut text = String::new();
    if let Some(mut stdout) = child.stdout.take() {
        stdout.read_to_string(&mut text)?;
    }
    if !status.success() {
        return Err(format!("{} ended with {status}: {text}", contender.label).into());
    }
    read(&text)
}

fn read(text: &str) -> Outcome<Measured> {
    let mut measured = Measured::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let Some(name) = words.next() else { continue };
        let numbers: Vec<f64> = words.map(str::parse).collect::<Result<_, _>>()?;
        match (name, numbers.as_slice()) {
            ("measured", [messages, seconds, cpu, memory_peak]) => {
                measured.rate = messages / seconds;
                measured.cpu = cpu / messages * 1e6;
                measured.memory_peak = *memory_peak;
            }
            _ => measured.notes.push((name.to_owned(), numbers)),
        }
    }
    Ok(measured)
}

/// The runs of one contender, a round each.
#[derive(Clone, Debug)]
pub(crate) struct Series {
    pub(crate) contender: Contender,
    pub(crate) runs: Vec<Measured>,
}

/// Runs all contenders in turns, each round beginning with another one.
pub(crate) fn contest(
    ground: &dyn Ground,
    contenders: &[Contender],
    setting: &Setting,
    rounds: usize,
) -> Outcome<Vec<Series>> {
    let mut all: Vec<Series> = contenders
        .iter()
        .map(|contender| Series { contender: contender.clone(), runs: Vec::new() })
        .collect();
    for round in 0..rounds {
        for turn in 0..all.len() {
            let place = (round + turn) % contenders.len();
            let measured = once(ground, &contenders[place], setting)?;
            all[place].runs.push(measured);
        }
    }
    for series in &all {
        let Contender { label, style, .. } = &series.contender;
        let rate = Spread::of(series.runs.iter().map(|run| run.rate));
        let cpu = Spread::of(series.runs.iter().map(|run| run.cpu));
        eprintln!(
            "  {label:<12} {style:<12} {rate:.0} messages a second, {cpu:.1} us of processor a message"
        );
    }
    Ok(all)
}

/// Median, least and greatest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    pub(crate) fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        let median = match values.len() {
            0 => f64::NAN,
            length if length % 2 == 1 => values[middle],
            _ => (values[middle - 1] + values[middle]) / 2.0,
        };
        let edge = |value: Option<&f64>| value.copied().unwrap_or(f64::NAN);
        Self { median, min: edge(values.first()), max: edge(values.last()) }
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let precision = f.precision().unwrap_or(2);
        let Self { median, min, max } = self;
        write!(f, "{median:.precision$} ({min:.precision$} to {max:.precision$})")
    }
}

impl Series {
    pub(crate) fn rate(&self) -> Spread {
        Spread::of(self.runs.iter().map(|run| run.rate))
    }

    pub(crate) fn cpu(&self) -> Spread {
        Spread::of(self.runs.iter().map(|run| run.cpu))
    }

    /// Ours over theirs, round by round: what disturbs the machine disturbs both of a round.
    pub(crate) fn over(&self, other: &Self, figure: fn(&Measured) -> f64) -> Spread {
        let rounds = self.runs.iter().zip(&other.runs);
        Spread::of(rounds.map(|(ours, theirs)| figure(ours) / figure(theirs)))
    }
}

/// The series of the greatest median rate among those of one program.
pub(crate) fn fastest(all: &[Series], program: Program) -> Option<&Series> {
    let of_program = all.iter().filter(|series| series.contender.program == program);
    of_program.max_by(|one, other| one.rate().median.total_cmp(&other.rate().median))
}

pub(crate) fn rate(run: &Measured) -> f64 {
    run.rate
}

pub(crate) fn cpu(run: &Measured) -> f64 {
    run.cpu
}

/// Finds the fastest of several ways of one contender, in one round each.
pub(crate) fn best_style(
    ground: &dyn Ground,
    ways: &[Contender],
    setting: &Setting,
) -> Outcome<Contender> {
    let runs = contest(ground, ways, setting, 1)?;
    let best = runs
        .iter()
        .max_by(|one, other| one.rate().median.total_cmp(&other.rate().median))
        .ok_or("there is no way to choose from")?;
    eprintln!("  of {} its fastest way is taken: {}", best.contender.label, best.contender.style);
    Ok(best.contender.clone())
}

/// Ours against theirs, run by run, with the least and the greatest ratio on standard error.
pub(crate) fn compare(
    what: &str,
    ours: &Series,
    theirs: &Series,
    figure: fn(&Measured) -> f64,
    goal: Goal,
) -> Figure {
    let ratio = ours.over(theirs, figure);
    let Contender { label, style, .. } = &theirs.contender;
    eprintln!("  {what}: {ratio} times {label} ({style})");
    let median = |series: &Series| Spread::of(series.runs.iter().map(figure)).median;
    Figure::against(what, median(ours), median(theirs), ratio.median, goal)
}
