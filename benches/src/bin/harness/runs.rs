//! Whole processes, run in turns on a queue that is filled before each and looked at afterwards.

use std::env;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use lapin::options::{
    BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions, QueueDeleteOptions,
    QueuePurgeOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use redeliver_benches::shared::order;
use tokio::runtime::Runtime;

use super::Outcome;
use super::machine;
use super::micro::beside;

/// No run takes longer than this.
const RUN_MAX: Duration = Duration::from_secs(300);
/// Unconfirmed messages while a queue is filled.
const FILL_WINDOW: usize = 1000;

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
    RustStream,
    Apalis,
}

impl Program {
    fn path(self) -> PathBuf {
        let peers = || PathBuf::from(env::var_os("REDELIVER_BENCH_PEERS").unwrap_or_default());
        match self {
            Self::Ours => beside("redeliver"),
            Self::Lapin => beside("lapin"),
            Self::RustStream => peers().join("ruststream"),
            Self::Apalis => peers().join("apalis"),
        }
    }
}

/// What is consumed.
#[derive(Clone, Debug)]
pub(crate) struct Setting {
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

/// The server, and the queues of this run.
pub(crate) struct Server {
    runtime: Runtime,
    connection: Connection,
    channel: Channel,
    pub(crate) url: String,
    pub(crate) prefix: String,
}

impl Server {
    pub(crate) fn connect() -> Outcome<Self> {
        let url = env::var("RABBITMQ_URL").map_err(|_| "RABBITMQ_URL names no server")?;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let (connection, channel) = runtime.block_on(async {
            let connection = Connection::connect(&url, ConnectionProperties::default()).await?;
            let channel = connection.create_channel().await?;
            channel.confirm_select(ConfirmSelectOptions::default()).await?;
            Ok::<_, lapin::Error>((connection, channel))
        })?;
        let prefix = format!("redeliver-bench-{}", std::process::id());
        Ok(Self { runtime, connection, channel, url, prefix })
    }

    pub(crate) fn queue(&self, number: usize) -> String {
        format!("{}.{number}", self.prefix)
    }

    /// Quorum queues, as the framework declares them and everybody should.
    pub(crate) fn declare(&self, queues: usize) -> Outcome {
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        self.runtime.block_on(async {
            for number in 0..queues {
                let name = ShortString::from(self.queue(number));
                self.channel.queue_declare(name.clone(), options, arguments.clone()).await?;
                self.channel.queue_purge(name, QueuePurgeOptions::default()).await?;
            }
            Ok(())
        })
    }

    /// Puts `messages` orders into the queues, evenly, each confirmed.
    pub(crate) fn fill(&self, queues: usize, messages: u64) -> Outcome {
        let names: Vec<String> = (0..queues).map(|number| self.queue(number)).collect();
        self.fill_into(&names, messages)
    }

    pub(crate) fn fill_into(&self, names: &[String], messages: u64) -> Outcome {
        self.runtime.block_on(async {
            let mut unconfirmed = FuturesUnordered::new();
            for number in 0..messages {
                let name = &names[number as usize % names.len()];
                let properties = BasicProperties::default()
                    .with_delivery_mode(2)
                    .with_content_type("application/json".into())
                    .with_message_id(format!("order-{number}").into());
                let body = order::body(number);
                let confirm = self.channel.basic_publish(
                    "".into(),
                    ShortString::from(name.as_str()),
                    BasicPublishOptions::default(),
                    &body,
                    properties,
                );
                unconfirmed.push(confirm.await?);
                while unconfirmed.len() >= FILL_WINDOW {
                    unconfirmed.next().await.transpose()?;
                }
            }
            while unconfirmed.next().await.transpose()?.is_some() {}
            Ok(())
        })
    }

    /// How many messages the queues hold once nobody consumes them any more.
    pub(crate) fn left(&self, names: &[String]) -> Outcome<u64> {
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let end = Instant::now() + Duration::from_secs(10);
        self.runtime.block_on(async {
            let mut left = 0;
            for name in names {
                loop {
                    let name = ShortString::from(name.as_str());
                    let asked =
                        self.channel.queue_declare(name, options, FieldTable::default()).await?;
                    if asked.consumer_count() == 0 || Instant::now() > end {
                        left += u64::from(asked.message_count());
                        break;
                    }
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
            Ok(left)
        })
    }

    pub(crate) fn delete(&self, names: impl IntoIterator<Item = String>) -> Outcome {
        self.runtime.block_on(async {
            for name in names {
                let options = QueueDeleteOptions::default();
                self.channel.queue_delete(ShortString::from(name), options).await?;
            }
            Ok(())
        })
    }

    /// As its control command tells, where the run started the server itself.
    pub(crate) fn version(&self) -> String {
        let control = env::var("REDELIVER_RABBITMQCTL").unwrap_or_default();
        let version = machine::said(&control, &["version"]);
        if version.is_empty() { String::from("(not known)") } else { version }
    }

    pub(crate) fn close(&self) -> Outcome {
        self.runtime.block_on(self.connection.close(200, "done".into()))?;
        Ok(())
    }
}

/// Fills the queues, runs the contender, and looks that nothing is left.
pub(crate) fn once(server: &Server, contender: &Contender, setting: &Setting) -> Outcome<Measured> {
    server.fill(setting.queues, setting.messages)?;
    let measured = start(server, contender, setting)?;
    let names: Vec<String> = (0..setting.queues).map(|number| server.queue(number)).collect();
    let left = server.left(&names)?;
    if left > 0 {
        eprintln!("  {} left {left} messages behind", contender.label);
        if matches!(contender.program, Program::Ours) {
            return Err(format!("redeliver left {left} messages unacknowledged").into());
        }
        server.declare(setting.queues)?;
    }
    Ok(measured)
}

/// Runs the contender's process to its end.
pub(crate) fn start(
    server: &Server,
    contender: &Contender,
    setting: &Setting,
) -> Outcome<Measured> {
    let mut child = Command::new(contender.program.path())
        .arg(&server.url)
        .arg(setting.queues.to_string())
        .arg(&server.prefix)
        .arg(setting.messages.to_string())
        .arg(setting.prefetch.to_string())
        .arg(&contender.style)
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
    server: &Server,
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
            let measured = once(server, &contenders[place], setting)?;
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
