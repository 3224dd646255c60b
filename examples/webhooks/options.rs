//! What the command line asks for, checked as a whole.

use std::path::PathBuf;
use std::time::Duration;

use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, ValueEnum};
use redeliver::config::{BrokerKind, Config, units};

use crate::chosen::Chosen;
use crate::guards::Guards;
use crate::place::{Asked, Place};
use crate::tell::tell;

/// The one subscription of this program.
pub(crate) const SUBSCRIPTION: &str = "webhooks";

/// Publishes webhook deliveries, handles them, and accounts for every one.
#[derive(Parser)]
#[command(
    name = "webhooks",
    after_help = "The last line on standard output is a summary as JSON, with null for what is not \
                  known; there is none where the command line or the configuration is refused, \
                  which is said before anything is begun, nor after a second signal, or one that \
                  comes while a topic is created. Ends with 0 if all went as it had to, with 1 if it \
                  did not or was stopped before its end, with 2 if it could not be tried or the \
                  summary could not be written. What went wrong is said on standard error; so is an \
                  option that only the other half uses, which changes nothing."
)]
pub(crate) struct Options {
    /// Which half of the job to do.
    #[arg(value_enum, default_value_t = Part::Run)]
    part: Part,
    /// Which broker to use [default: memory, or what --config says].
    #[arg(long, value_enum)]
    broker: Option<BrokerName>,
    /// Where the broker is [default: amqp://127.0.0.1:5672/%2f or 127.0.0.1:9092, or what --config
    /// says].
    #[arg(long)]
    url: Option<String>,
    /// The queue or topic [default: webhooks, or what --config says]; a topic that is missing is
    /// created with 6 partitions.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Deliveries to publish, a JSON object a line with `delivery` (its id, without spaces and control characters),
    /// `event` and `repository`; 1000 are made up without it.
    #[arg(long, value_name = "FILE.jsonl")]
    input: Option<PathBuf>,
    /// How often to publish each delivery.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    repeat: u64,
    /// How many percent of the ids fail on their first attempt.
    #[arg(long, value_name = "P", default_value_t = 20.0, allow_negative_numbers = true)]
    fail_percent: f64,
    /// How many percent of the ids fail on every attempt.
    #[arg(long, value_name = "D", default_value_t = 1.0, allow_negative_numbers = true)]
    dead_percent: f64,
    /// Gets a line for each effect: id, attempt, process id, milliseconds since 1970; one that cannot be written
    /// ends the job.
    #[arg(long, value_name = "FILE")]
    effects: Option<PathBuf>,
    /// How long nothing may be left to come before this ends.
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = units::duration_of)]
    idle_exit: Duration,
    /// Handle each id once, whoever publishes it again; what an earlier run handled or gave up
    /// stays so for a week.
    #[arg(long)]
    idempotent: bool,
    /// Handle the webhooks of one repository one at a time.
    #[arg(long)]
    lock: bool,
    /// Where --idempotent and --lock keep what they know [default: redis://127.0.0.1:6379, or this
    /// process where the broker is in memory].
    #[arg(long, value_name = "URL")]
    redis: Option<String>,
    /// A configuration with a subscription `webhooks`, instead of config/webhooks.toml.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// The options that only publishing uses, and those that only handling does.
const ONLY_PUBLISHING: [&str; 2] = ["input", "repeat"];
const ONLY_HANDLING: [&str; 7] =
    ["fail_percent", "dead_percent", "effects", "idle_exit", "idempotent", "lock", "redis"];

/// The halves of the job, and the whole.
#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub(crate) enum Part {
    /// Both halves, compared with each other.
    Run,
    /// Send every delivery, confirmed.
    Publish,
    /// Handle what is there until nothing more can come.
    Consume,
}

#[derive(Clone, Copy, ValueEnum)]
enum BrokerName {
    Memory,
    Rabbitmq,
    Kafka,
}

impl BrokerName {
    fn kind(self) -> BrokerKind {
        match self {
            Self::Memory => BrokerKind::Memory,
            Self::Rabbitmq => BrokerKind::Rabbitmq,
            Self::Kafka => BrokerKind::Kafka,
        }
    }
}

/// What is to be done.
pub(crate) struct Job {
    pub(crate) part: Part,
    pub(crate) config: Config,
    pub(crate) place: Place,
    pub(crate) input: Option<PathBuf>,
    pub(crate) repeat: u64,
    pub(crate) chosen: Chosen,
    pub(crate) effects: Option<PathBuf>,
    pub(crate) idle_exit: Duration,
}

impl Options {
    /// Ends the process with 2 where the command line cannot be read.
    pub(crate) fn of_command_line() -> Self {
        let given = Self::command().get_matches();
        let options = Self::from_arg_matches(&given).unwrap_or_else(|error| error.exit());
        tell_what_is_not_used(options.part, &given);
        options
    }

    pub(crate) fn into_job(self) -> Result<Job, crate::Error> {
        let mut config = match &self.config {
            Some(file) => Config::load(file)?,
            None => Config::from_toml(include_str!("../../config/webhooks.toml"))?,
        };
        let kind = self.broker.map(BrokerName::kind);
        let asked = Asked { kind, url: self.url, name: self.name, config: self.config };
        let place = Place::choose(asked, self.part, &mut config)?;
        let guards = Guards { idempotent: self.idempotent, lock: self.lock, redis: self.redis };
        if self.part != Part::Publish {
            guards.put_into(&mut config, place.kind == BrokerKind::Memory);
        }
        // Before anything is begun: a topic, or an effect.
        config.check()?;
        Ok(Job {
            part: self.part,
            config,
            place,
            input: self.input,
            repeat: self.repeat,
            chosen: Chosen::new(self.fail_percent, self.dead_percent)?,
            effects: self.effects,
            idle_exit: self.idle_exit,
        })
    }
}

/// One command line may serve both halves; whoever gave an option to the wrong one alone is told.
fn tell_what_is_not_used(part: Part, given: &ArgMatches) {
    let is_given = |id: &&&str| given.value_source(id) == Some(ValueSource::CommandLine);
    let guards = ["idempotent", "lock"];
    if part != Part::Publish && is_given(&&"redis") && !guards.iter().any(|id| is_given(&id)) {
        tell!("webhooks: neither --idempotent nor --lock is given: --redis is not used");
    }
    let (does, others) = match part {
        Part::Run => return,
        Part::Publish => ("`publish` handles nothing", ONLY_HANDLING.as_slice()),
        Part::Consume => ("`consume` publishes nothing", ONLY_PUBLISHING.as_slice()),
    };
    for id in others.iter().filter(is_given) {
        tell!("webhooks: {does}: --{} is not used", id.replace('_', "-"));
    }
}

impl Job {
    /// After so many attempts an id that fails for ever is a dead letter.
    pub(crate) fn attempts_max(&self) -> u32 {
        let subscription = &self.config.subscriptions[SUBSCRIPTION];
        self.config.retry_of(subscription).attempts_max.get()
    }
}
