//! Runs the benchmark: `harness PART... [--quick] [--check] [--keep] [--only GROUP]
//! [--input FILE]`, started by `./benches/run`.
//!
//! Standard output: one line of JSON a figure; what a human reads goes to standard error.

mod figure;
#[cfg(feature = "servers")]
mod kafka;
mod machine;
mod micro;
#[cfg(feature = "servers")]
mod plot;
#[cfg(feature = "servers")]
mod rabbitmq;
#[cfg(feature = "servers")]
mod redis;
#[cfg(feature = "servers")]
mod runs;

use std::error::Error;
use std::process::ExitCode;

/// Errors of the harness are for a human to read.
type Outcome<T = ()> = Result<T, Box<dyn Error>>;

/// What was asked for on the command line.
struct Asked {
    parts: Vec<String>,
    quick: bool,
    /// Fail where a count is more than 5 percent over `baseline.json`.
    check: bool,
    /// Write the counts to `baseline.json`, the plots and the table of results to `docs/`.
    keep: bool,
    /// Only the groups of figures whose name contains this.
    only: Option<String>,
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Outcome<bool> {
    let asked = read_arguments()?;
    eprint!("{}", machine::describe());
    let mut good = true;
    for part in &asked.parts {
        match part.as_str() {
            "micro" => good &= micro::run(&asked)?,
            #[cfg(feature = "servers")]
            "rabbitmq" => rabbitmq::run(&asked)?,
            #[cfg(feature = "servers")]
            "kafka" => kafka::run(&asked)?,
            #[cfg(feature = "servers")]
            "redis" => redis::run(&asked)?,
            other => return Err(format!("there is no part `{other}`").into()),
        }
    }
    Ok(good)
}

fn read_arguments() -> Outcome<Asked> {
    let mut asked =
        Asked { parts: Vec::new(), quick: false, check: false, keep: false, only: None };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--quick" => asked.quick = true,
            "--check" => asked.check = true,
            "--keep" => asked.keep = true,
            "--only" => asked.only = Some(words.next().ok_or("--only needs a name")?),
            "--input" => words.next().map(drop).ok_or("--input needs a file")?,
            part => asked.parts.push(part.to_owned()),
        }
    }
    if asked.parts.is_empty() {
        return Err("use: harness PART... [--quick] [--check] [--keep] \
                    [--only GROUP] [--input FILE]"
            .into());
    }
    Ok(asked)
}

#[cfg(feature = "servers")]
impl Asked {
    /// Whether the group of figures of this name is asked for.
    fn wants(&self, group: &str) -> bool {
        self.only.as_ref().is_none_or(|only| group.contains(only))
    }

    /// Writes the plots, where they are to be kept.
    fn keep(&self, plots: Vec<plot::Plot>) -> Outcome {
        if self.keep {
            plots.into_iter().try_for_each(|plot| plot.write())?;
        }
        Ok(())
    }
}
