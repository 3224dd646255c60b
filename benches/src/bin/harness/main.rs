//! Runs the benchmark: `harness micro|rabbitmq|all [--quick] [--check] [--keep]`, started by
//! `./benches/run`.
//!
//! Standard output: one line of JSON a figure; what a human reads goes to standard error.

mod figure;
mod machine;
mod micro;
#[cfg(feature = "rabbitmq")]
mod plot;
#[cfg(feature = "rabbitmq")]
mod rabbitmq;
#[cfg(feature = "rabbitmq")]
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
            #[cfg(feature = "rabbitmq")]
            "rabbitmq" => rabbitmq::run(&asked)?,
            other => return Err(format!("there is no part `{other}`").into()),
        }
    }
    Ok(good)
}

fn read_arguments() -> Outcome<Asked> {
    let mut asked = Asked { parts: Vec::new(), quick: false, check: false, keep: false };
    for word in std::env::args().skip(1) {
        match word.as_str() {
            "--quick" => asked.quick = true,
            "--check" => asked.check = true,
            "--keep" => asked.keep = true,
            // Kafka and Redis take their places here.
            "all" => asked.parts = vec![String::from("micro"), String::from("rabbitmq")],
            part => asked.parts.push(part.to_owned()),
        }
    }
    if asked.parts.is_empty() {
        return Err("use: harness micro|rabbitmq|all [--quick] [--check] [--keep]".into());
    }
    Ok(asked)
}
