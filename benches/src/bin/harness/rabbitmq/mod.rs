//! The figures on RabbitMQ.

pub(crate) mod server;

use std::time::Duration;

use super::figure::{Figure, Goal};
use super::plot::{Bar, Plot};
use super::runs::{
    Contender, Measured, Program, Series, Setting, Spread, best_style, compare, contest, cpu,
    fastest, once, rate, start,
};
use super::{Asked, Outcome};
use server::Server;

/// As in the figures that the issue names.
pub(crate) const PREFETCH: u16 = 256;
/// The one wait of the failing path.
const WAIT: &str = "wait.1000";
/// Waits whose punctuality is measured without a load, and how many of them begin in a second.
const WAITS: u64 = 10_000;
const WAITS_A_SECOND: u64 = 1_000;

/// How many messages the runs have whose difference is what a message costs with many lanes.
const LANES_MESSAGES: [u64; 2] = [20_000, 80_000];

/// Some figures that belong together.
type Group = fn(&Server, &Size) -> Outcome<Vec<Plot>>;

/// How much is run.
struct Size {
    messages: u64,
    rounds: usize,
    failing_messages: u64,
    published: u64,
    waiting: &'static [u64],
    lanes: &'static [usize],
}

const QUICK: Size = Size {
    messages: 20_000,
    rounds: 3,
    failing_messages: 50_000,
    published: 20_000,
    waiting: &[1, 50_000],
    lanes: &[1, 1_000],
};

const FULL: Size = Size {
    messages: 100_000,
    rounds: 7,
    failing_messages: 100_000,
    published: 100_000,
    waiting: &[1, 10_000, 100_000, 1_000_000],
    lanes: &[1, 10, 100, 1_000],
};

pub(crate) fn run(asked: &Asked) -> Outcome {
    let size = if asked.quick { QUICK } else { FULL };
    let server = Server::connect()?;
    eprintln!("server: RabbitMQ {}, {}", server.version(), load());
    let groups: [(&str, Group); 8] = [
        ("consuming", consuming),
        ("queues", many_queues),
        ("failing", failing),
        ("punctuality", steady_waits),
        ("publishing", publishing),
        ("idle", idle),
        ("lanes", lanes),
        ("waiting", waiting),
    ];
    for (name, group) in groups {
        if asked.wants(name) {
            asked.keep(group(&server, &size)?)?;
        }
    }
    server.close()
}

fn load() -> String {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    format!("load {}", load.split_whitespace().take(3).collect::<Vec<_>>().join(" "))
}

fn ours(style: &str) -> Contender {
    Contender::ours(style)
}

fn lapin(style: &str) -> Contender {
    Contender::new("lapin", Program::Lapin, style)
}

/// One queue: against raw lapin's ways and the peers.
fn consuming(server: &Server, size: &Size) -> Outcome<Vec<Plot>> {
    eprintln!("one queue, prefetch {PREFETCH}, {} messages, {} rounds", size.messages, size.rounds);
    server.declare(1)?;
    let setting = Setting { queues: 1, messages: size.messages, prefetch: PREFETCH };
    let streams = ["workers-1", "workers-16", "workers-64", "batch-64"]
        .map(|style| Contender::new("RustStream", Program::RustStream, style));
    let apalis =
        ["plain", "parallel"].map(|style| Contender::new("apalis-amqp", Program::Apalis, style));
    let contenders = [
        ours("plain"),
        best_style(server, &["multiple", "multiple-1"].map(lapin), &setting)?,
        best_style(server, &["each", "each-1"].map(lapin), &setting)?,
        best_style(server, &["tasks", "tasks-1"].map(lapin), &setting)?,
        best_style(server, &streams, &setting)?,
        best_style(server, &apalis, &setting)?,
    ];
    let all = contest(server, &contenders, &setting, size.rounds)?;
    let [own, multiple, each, _, stream, apalis] = all.as_slice() else {
        return Err("not every contender ran".into());
    };
    let raw = fastest(&all, Program::Lapin).unwrap_or(multiple);
    for figure in [
        compare(
            "RabbitMQ, one queue: messages a second over the fastest raw lapin loop",
            own,
            raw,
            rate,
            Goal::AtLeast(0.9),
        ),
        compare(
            "RabbitMQ, one queue: messages a second over raw lapin awaiting each acknowledgement",
            own,
            each,
            rate,
            Goal::AtLeast(1.9),
        ),
        compare(
            "RabbitMQ, one queue: messages a second over RustStream",
            own,
            stream,
            rate,
            Goal::AtLeast(1.3),
        ),
        compare(
            "RabbitMQ, one queue: messages a second over apalis-amqp",
            own,
            apalis,
            rate,
            Goal::AtLeast(1.3),
        ),
        compare(
            "RabbitMQ, one queue: processor time a message over the fastest raw lapin loop",
            own,
            raw,
            cpu,
            Goal::AtMost(1.3),
        ),
    ] {
        figure.print();
    }
    Ok(vec![
        Plot::of("rabbitmq-one-queue", "RabbitMQ, one queue", "messages a second", &all, rate),
        Plot::of("rabbitmq-cpu", "RabbitMQ, one queue", "us of processor a message", &all, cpu),
    ])
}

/// As many queues as consumers, 4 and 100 of them.
fn many_queues(server: &Server, size: &Size) -> Outcome<Vec<Plot>> {
    let mut plots = Vec::new();
    for queues in [4, 100] {
        eprintln!("{queues} queues");
        server.declare(queues)?;
        let setting = Setting { queues, messages: size.messages, prefetch: PREFETCH };
        let raw = best_style(server, &["multiple", "multiple-1"].map(lapin), &setting)?;
        let all = contest(server, &[ours("plain"), raw], &setting, size.rounds)?;
        let what =
            format!("RabbitMQ, {queues} queues: messages a second over the fastest raw lapin loop");
        compare(&what, &all[0], &all[1], rate, Goal::AtLeast(0.9)).print();
        let name = format!("rabbitmq-{queues}-queues");
        let title = format!("RabbitMQ, {queues} queues");
        plots.push(Plot::of(&name, &title, "messages a second", &all, rate));
        server.delete((0..queues).map(|number| server.queue(number)))?;
    }
    Ok(plots)
}

/// Some of the messages fail once and wait a second at the broker.
fn failing(server: &Server, size: &Size) -> Outcome<Vec<Plot>> {
    eprintln!("failing once, wait of 1 s at the broker");
    let mut bars = Vec::new();
    let (mut without, mut lateness) = (f64::NAN, Vec::new());
    for percent in [0, 1, 10, 50] {
        let queues = vec![server.queue(0), format!("{}.{WAIT}", server.queue(0))];
        let setting = Setting { queues: 1, messages: size.failing_messages, prefetch: PREFETCH };
        let own = ours(&format!("failing-{percent}"));
        // The first run declares the queues, ours too: both contenders work on the same ones.
        start(server, &own, &Setting { messages: 0, ..setting.clone() })?;
        let ways = ["failing", "failing-tasks"].map(|style| lapin(&format!("{style}-{percent}")));
        let raw = best_style(server, &ways, &setting)?;
        let all = contest(server, &[own, raw], &setting, size.rounds)?;
        for queue in &queues {
            let left = server.left_in(std::slice::from_ref(queue))?;
            if left > 0 {
                return Err(format!("queue `{queue}` still holds {left} messages").into());
            }
        }
        let median = all[0].rate().median;
        if percent == 0 {
            without = median;
        } else {
            let what = format!(
                "RabbitMQ, {percent} percent failing once: finished a second over raw lapin"
            );
            compare(&what, &all[0], &all[1], rate, Goal::AtLeast(0.9)).print();
            let what = format!(
                "RabbitMQ, {percent} percent failing once: finished a second over none failing"
            );
            Figure::against(what, median, without, median / without, Goal::Shown).print();
        }
        if percent == 50 {
            for run in &all[0].runs {
                lateness.push(run.note("lateness")?.to_vec());
            }
        }
        bars.extend(all.iter().map(|series| Bar {
            label: format!("{} {percent} %", series.contender.label),
            spread: series.rate(),
        }));
        let dead = format!("{}.dead", server.queue(0));
        server.delete(queues.into_iter().chain([dead]))?;
    }
    let waits = format!("{:.0} waits of 1 s under load", lateness[0][0]);
    punctuality(&waits, &lateness, Goal::Shown);
    Ok(vec![Plot {
        name: String::from("rabbitmq-failing"),
        title: String::from("RabbitMQ, messages that fail once"),
        unit: String::from("source messages finished a second"),
        bars,
    }])
}

/// Waits that end one after another, as those of a steady flow do. The goal is for a machine with nothing else to do.
fn steady_waits(server: &Server, _: &Size) -> Outcome<Vec<Plot>> {
    eprintln!("{WAITS} waits of 1 s, of {WAITS_A_SECOND} messages a second, {}", load());
    let own = ours(&format!("steady-{WAITS_A_SECOND}"));
    let setting = Setting { queues: 1, messages: WAITS, prefetch: PREFETCH };
    let run = start(server, &own, &setting)?;
    let lateness = run.note("lateness")?.to_vec();
    if lateness[0] != WAITS as f64 {
        return Err(format!("{} of {WAITS} waits were seen to end", lateness[0]).into());
    }
    let waits = format!("{WAITS} waits of 1 s, {WAITS_A_SECOND} a second");
    punctuality(&waits, &[lateness], Goal::AtMost(50.0));
    let queue = server.queue(0);
    server.delete([format!("{queue}.{WAIT}"), format!("{queue}.dead"), queue])?;
    Ok(Vec::new())
}

/// `lateness` of each run: how many waits, the least, the median, the 99th percentile; in ms.
fn punctuality(waits: &str, lateness: &[Vec<f64>], goal: Goal) {
    let column = |place: usize| Spread::of(lateness.iter().map(|run| run[place]));
    let least = column(1).min;
    let what = |which: &str| format!("RabbitMQ, {waits}: {which}");
    Figure::plain(what("least lateness, ms"), least, Goal::AtLeast(0.0)).print();
    Figure::plain(what("median lateness, ms"), column(2).median, Goal::Shown).print();
    Figure::plain(what("99th percentile of lateness, ms"), column(3).median, goal).print();
}

/// Confirmed publishing with the same number of messages unconfirmed.
fn publishing(server: &Server, size: &Size) -> Outcome<Vec<Plot>> {
    eprintln!("confirmed publishing, 64 unconfirmed");
    let setting = Setting { queues: 1, messages: size.published, prefetch: PREFETCH };
    let contenders = [ours("publish-64"), lapin("publish-64")];
    let mut all: Vec<Series> = contenders
        .iter()
        .map(|contender| Series { contender: contender.clone(), runs: Vec::new() })
        .collect();
    for _ in 0..size.rounds {
        for series in &mut all {
            server.declare(1)?;
            series.runs.push(start(server, &series.contender, &setting)?);
            let stored = server.left_in(&[server.queue(0)])?;
            if stored != setting.messages {
                return Err(format!("{stored} of {} messages stored", setting.messages).into());
            }
        }
    }
    let what = "RabbitMQ, publishing with 64 unconfirmed: messages a second over raw lapin";
    compare(what, &all[0], &all[1], rate, Goal::AtLeast(0.95)).print();
    server.delete([server.queue(0)])?;
    let (name, title) = ("rabbitmq-publishing", "RabbitMQ, confirmed publishing, 64 unconfirmed");
    Ok(vec![Plot::of(name, title, "messages a second", &all, rate)])
}

/// What a lane costs that has nothing to do.
fn idle(server: &Server, _: &Size) -> Outcome<Vec<Plot>> {
    eprintln!("idle lanes");
    server.declare(1)?;
    let setting = Setting { queues: 1, messages: 0, prefetch: PREFETCH };
    let one = start(server, &ours("idle-1"), &setting)?;
    let thousand = start(server, &ours("idle-1000"), &setting)?;
    // Memory in KiB, processor time in ms and wake-ups in ten seconds.
    let (one, thousand) = (one.note("idle")?, thousand.note("idle")?);
    let per_lane = |place: usize| (thousand[place] - one[place]) / 999.0;
    let what = "RabbitMQ, memory of an idle lane of 1,000, KiB";
    Figure::plain(what, per_lane(0), Goal::AtMost(40.0)).print();
    let what = "RabbitMQ, wake-ups a second of an idle lane of 1,000";
    Figure::plain(what, per_lane(2) / 10.0, Goal::AtMost(0.1)).print();
    server.delete([server.queue(0)])?;
    Ok(Vec::new())
}

/// What a message costs the more lanes there are.
fn lanes(server: &Server, size: &Size) -> Outcome<Vec<Plot>> {
    eprintln!("lanes of one queue");
    server.declare(1)?;
    let mut bars = Vec::new();
    let mut costs = Vec::new();
    for lanes in size.lanes {
        let contender = ours(&format!("lanes-{lanes}"));
        let rounds = (0..size.rounds).map(|_| cost_of_more(server, &contender));
        let spread = Spread::of(rounds.collect::<Outcome<Vec<f64>>>()?.into_iter());
        eprintln!("  {lanes} lanes: {spread:.2} us of processor a message");
        costs.push(spread.median);
        bars.push(Bar { label: format!("{lanes} lanes"), spread });
    }
    flat("RabbitMQ, processor time a message, 1,000 lanes over 1", &costs);
    server.delete([server.queue(0)])?;
    Ok(vec![Plot {
        name: String::from("rabbitmq-lanes"),
        title: String::from("RabbitMQ, lanes of one queue"),
        unit: String::from("us of processor a message"),
        bars,
    }])
}

/// What a message costs, in microseconds, of those that one run has more than another: to open and to close the lanes, which
/// costs as much as 20,000 messages where they are a thousand, is in both.
fn cost_of_more(server: &Server, contender: &Contender) -> Outcome<f64> {
    let [few, many] = LANES_MESSAGES;
    let whole = |messages| -> Outcome<f64> {
        let setting = Setting { queues: 1, messages, prefetch: 64 };
        Ok(once(server, contender, &setting)?.note("whole")?[0])
    };
    Ok((whole(many)? - whole(few)?) / (many - few) as f64 * 1e6)
}

/// What a message costs the more of them wait at the broker.
fn waiting(server: &Server, size: &Size) -> Outcome<Vec<Plot>> {
    eprintln!("messages waiting at the broker");
    let mut bars = Vec::new();
    let (mut costs, mut memory) = (Vec::new(), Vec::new());
    let wait = format!("{}.wait.3600000", server.queue(0));
    for count in size.waiting {
        let setting = Setting { queues: 1, messages: size.messages, prefetch: PREFETCH };
        let own = ours("waiting");
        start(server, &own, &Setting { messages: 0, ..setting.clone() })?;
        server.fill_into(std::slice::from_ref(&wait), *count)?;
        std::thread::sleep(Duration::from_secs(1));
        let runs = (0..size.rounds).map(|_| once(server, &own, &setting));
        let runs = runs.collect::<Outcome<Vec<Measured>>>()?;
        let series = Series { contender: own, runs };
        costs.push(series.cpu().median);
        memory.push(Spread::of(series.runs.iter().map(|run| run.memory_peak)).median);
        bars.push(Bar { label: format!("{count} waiting"), spread: series.cpu() });
        let dead = format!("{}.dead", server.queue(0));
        server.delete([wait.clone(), server.queue(0), dead])?;
    }
    let most = size.waiting.last().copied().unwrap_or_default();
    flat(&format!("RabbitMQ, processor time a message, {most} waiting over 1"), &costs);
    flat(&format!("RabbitMQ, memory of the process, {most} waiting over 1"), &memory);
    Ok(vec![Plot {
        name: String::from("rabbitmq-waiting"),
        title: String::from("RabbitMQ, messages waiting at the broker"),
        unit: String::from("us of processor a message"),
        bars,
    }])
}

/// The last of a row over its first, which is to be within 10 percent.
fn flat(what: &str, row: &[f64]) {
    if let (Some(first), Some(last)) = (row.first(), row.last()) {
        Figure::against(what, *last, *first, last / first, Goal::AtMost(1.1)).print();
    }
}
