//! Instructions and heap allocations a message: counts, which a loaded machine does not change.
//!
//! Each count is the difference between runs of two lengths, so that starting and ending cancel
//! out. For the in-memory path it is the difference to runs that publish the same messages and
//! consume none.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, thread};

use super::figure::{Figure, Goal};
use super::{Asked, Outcome};

/// Lengths of the two runs.
const FEW: u64 = 10_000;
const MANY: u64 = 30_000;
/// A count may be so much over its baseline.
const TOLERANCE: f64 = 1.05;
/// The pure parts, as `micro` names them.
const PARTS: [(&str, &str); 4] = [
    ("delay_before", "the delay before an attempt"),
    ("decide", "the verdict on a failed attempt"),
    ("read", "our headers read, all of them there"),
    ("ledger", "a message entered into the ledger and settled"),
];

pub(crate) fn run(asked: &Asked) -> Outcome<bool> {
    let counts = count_all()?;
    for (name, count) in &counts {
        figure(name, *count).print();
    }
    if asked.keep {
        fs::write(baseline_file(), format!("{}\n", serde_json::to_string_pretty(&counts)?))?;
    }
    match asked.check {
        true => check(&counts),
        false => Ok(true),
    }
}

fn count_all() -> Outcome<BTreeMap<String, f64>> {
    let messages = (MANY - FEW) as f64;
    let mut jobs: Vec<(&str, u64)> = Vec::new();
    for what in ["publish", "consume", "nothing"].into_iter().chain(PARTS.map(|(part, _)| part)) {
        jobs.extend([(what, FEW), (what, MANY)]);
    }
    let counted = thread::scope(|scope| {
        let running: Vec<_> = jobs
            .iter()
            .map(|(what, count)| scope.spawn(move || instructions(what, *count)))
            .collect();
        running.into_iter().map(|job| job.join().expect("counting does not panic")).collect()
    });
    let counted: Vec<u64> = Result::<_, String>::from_iter::<Vec<Result<u64, String>>>(counted)?;
    let each: BTreeMap<&str, f64> = jobs
        .chunks(2)
        .zip(counted.chunks(2))
        .map(|(job, count)| (job[0].0, (count[1] as f64 - count[0] as f64) / messages))
        .collect();
    let rounded = |count: f64| (count * 10.0).round() / 10.0;
    let mut counts = BTreeMap::new();
    counts.insert(
        String::from("in-memory path, instructions per message"),
        rounded(each["consume"] - each["publish"]),
    );
    counts.insert(
        String::from("in-memory path, allocations per message"),
        (allocations(100_000)? * 100.0).round() / 100.0,
    );
    for (part, title) in PARTS {
        let count = rounded(each[part] - each["nothing"]);
        counts.insert(format!("{title}, instructions"), count);
    }
    Ok(counts)
}

fn figure(name: &str, count: f64) -> Figure {
    let goal = match name {
        "in-memory path, instructions per message" => Goal::AtMost(1000.0),
        "in-memory path, allocations per message" => Goal::AtMost(2.0),
        _ => Goal::Shown,
    };
    Figure::plain(name, count, goal)
}

/// Fails on every count that is more than the tolerance over the committed one.
fn check(counts: &BTreeMap<String, f64>) -> Outcome<bool> {
    let file = baseline_file();
    let text = fs::read_to_string(&file).map_err(|error| format!("{}: {error}", file.display()))?;
    let baseline: BTreeMap<String, f64> = serde_json::from_str(&text)?;
    let mut good = true;
    for (name, before) in &baseline {
        let Some(now) = counts.get(name) else {
            return Err(format!("`{name}` is in the baseline and is not counted any more").into());
        };
        if *now > before * TOLERANCE {
            good = false;
            eprintln!(
                "{name}: {now}, which is over the baseline of {before} by more than 5 percent"
            );
        }
    }
    if !good {
        eprintln!("make it cheaper, or say why it costs more: ./benches/run micro --keep");
    }
    Ok(good)
}

fn baseline_file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("baseline.json")
}

/// What valgrind counts for one run.
fn instructions(what: &str, count: u64) -> Result<u64, String> {
    let out = env::temp_dir().join(format!("redeliver-{}-{what}-{count}", std::process::id()));
    let ran = Command::new("valgrind")
        .arg("--tool=callgrind")
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(beside("micro"))
        .args([what, &count.to_string()])
        .output()
        .map_err(|error| format!("valgrind could not be run ({error}); install it"))?;
    let text = fs::read_to_string(&out).unwrap_or_default();
    let _ = fs::remove_file(&out);
    let total = text.lines().find_map(|line| line.strip_prefix("totals: "));
    let total = total.and_then(|total| total.trim().parse().ok());
    total.ok_or_else(|| {
        format!("micro {what} was not counted:\n{}", String::from_utf8_lossy(&ran.stderr))
    })
}

fn allocations(count: u64) -> Outcome<f64> {
    let ran = Command::new(beside("allocations")).arg(count.to_string()).output()?;
    let made: u64 = String::from_utf8_lossy(&ran.stdout).trim().parse()?;
    Ok(made as f64 / count as f64)
}

/// A program of the benchmark: all of them are built into one folder.
pub(crate) fn beside(name: &str) -> PathBuf {
    let own = env::current_exe().expect("a program knows where it is");
    own.with_file_name(name)
}
