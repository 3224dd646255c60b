//! The figures on Kafka.

mod server;

use super::figure::{Figure, Goal};
use super::plot::{Bar, Plot};
use super::runs::{
    Contender, Program, Series, Setting, Spread, best_style, compare, contest, cpu, once, rate,
    start,
};
use super::{Asked, Outcome};
use server::Server;

/// What may be in flight of ours, all told; what the others hold is librdkafka's business.
const PREFETCH: u16 = 1024;
/// How many lanes of keys run side by side where handlers take their time.
const LANES: u16 = 8;
/// How many handlers run side by side where the ceiling is looked for.
const WIDE: u16 = 64;

/// How much is run.
struct Size {
    messages: u64,
    rounds: usize,
    slow_messages: u64,
    ceiling_seconds: u64,
}

const QUICK: Size =
    Size { messages: 1_000_000, rounds: 3, slow_messages: 2_400, ceiling_seconds: 3 };
const FULL: Size =
    Size { messages: 1_000_000, rounds: 7, slow_messages: 8_000, ceiling_seconds: 10 };

/// Some figures that belong together.
type Group = fn(&Server, &Size) -> Outcome<Vec<Plot>>;

pub(crate) fn run(asked: &Asked) -> Outcome {
    let size = if asked.quick { QUICK } else { FULL };
    let server = Server::connect()?;
    eprintln!("server: Apache Kafka; librdkafka {}", rdkafka::util::get_rdkafka_version().1);
    let groups: [(&str, Group); 4] = [
        ("consuming", consuming),
        ("slow", slow_handlers),
        ("ceiling", ceiling),
        ("rebalance", rebalance),
    ];
    for (name, group) in groups {
        if asked.wants(name) {
            asked.keep(group(&server, &size)?)?;
        }
    }
    Ok(())
}

fn ours(style: &str) -> Contender {
    Contender::ours(style)
}

fn raw(style: &str) -> Contender {
    Contender::new("rdkafka", Program::Rdkafka, style)
}

fn ruststream(style: &str) -> Contender {
    Contender::new("RustStream", Program::RustStreamKafka, style)
}

/// Handlers that wait for nothing, without an order and with one by key, on one partition and on six.
fn consuming(server: &Server, size: &Size) -> Outcome<Vec<Plot>> {
    let mut plots = Vec::new();
    for partitions in [1, 6] {
        let setting = Setting { queues: partitions, messages: size.messages, prefetch: PREFETCH };
        eprintln!("{partitions} partition(s), {} messages, {} rounds", size.messages, size.rounds);
        let stream = best_style(server, &["stream", "stream-1"].map(raw), &setting)?;
        let ways = ["workers-1", "workers-16", "batch-256"].map(ruststream);
        let ways = best_style(server, &ways, &setting)?;
        let keyed = best_style(server, &["key-8", "key-64"].map(ruststream), &setting)?;
        let contenders = [ours("plain"), ours("key"), stream, raw("base"), ways, keyed];
        let all = contest(server, &contenders, &setting, size.rounds)?;
        let [plain, key, stream, base, peer, keyed_peer] = all.as_slice() else {
            return Err("not every contender ran".into());
        };
        let title = format!("Kafka, {partitions} partition(s)");
        let over = |what: &str, own: &Series, other: &Series, least| {
            compare(&format!("{title}: {what}"), own, other, rate, least).print();
        };
        over("messages a second over a raw StreamConsumer", plain, stream, Goal::AtLeast(1.2));
        over("messages a second over a raw BaseConsumer", plain, base, Goal::Shown);
        over("messages a second over RustStream", plain, peer, Goal::AtLeast(1.4));
        over("in order by key, over a raw StreamConsumer", key, stream, Goal::AtLeast(1.0));
        over(
            "in order by key, over RustStream's lanes by key",
            key,
            keyed_peer,
            Goal::AtLeast(3.0),
        );
        let what = format!("{title}: processor time a message over a raw StreamConsumer");
        compare(&what, plain, stream, cpu, Goal::AtMost(1.1)).print();
        let name = format!("kafka-{partitions}-partitions");
        plots.push(Plot::of(&name, &title, "messages a second", &all, rate));
        let name = format!("kafka-{partitions}-partitions-cpu");
        plots.push(Plot::of(&name, &title, "us of processor a message", &all, cpu));
        server.delete(&setting)?;
    }
    Ok(plots)
}

/// In order by key, eight at a time, 10 ms each.
fn slow_handlers(server: &Server, size: &Size) -> Outcome<Vec<Plot>> {
    eprintln!("in order by key, {LANES} at a time, handlers of 10 ms");
    let setting = Setting { queues: 6, messages: size.slow_messages, prefetch: LANES };
    let contenders = [ours("key-10"), ruststream("key-8-10")];
    let all = contest(server, &contenders, &setting, size.rounds)?;
    let what = "Kafka, in order by key, 8 at a time, handlers of 10 ms: over RustStream";
    compare(what, &all[0], &all[1], rate, Goal::AtLeast(1.9)).print();
    server.delete(&setting)?;
    let title = "Kafka, in order by key, 8 at a time, handlers of 10 ms";
    Ok(vec![Plot::of("kafka-slow-handlers", title, "messages a second", &all, rate)])
}

/// In order by key, over as many tasks that parse and sleep, without a broker and a framework: they are the ceiling.
///
/// To take the part of the time that handlers run for it would flatter whoever makes them late: that is in their time.
fn ceiling(server: &Server, size: &Size) -> Outcome<Vec<Plot>> {
    eprintln!("in order by key, {WIDE} at a time: how near to the ceiling");
    let mut bars = Vec::new();
    for milliseconds in [1, 10, 100] {
        // A sleep of a millisecond takes two: the runtime's timers are as coarse as that.
        let nominal: u64 = if milliseconds == 1 { 2 } else { milliseconds };
        let messages = size.ceiling_seconds * u64::from(WIDE) * 1000 / nominal;
        let setting = Setting { queues: 1, messages, prefetch: WIDE };
        let own = ours(&format!("key-{milliseconds}"));
        let tasks = Contender::new("ceiling", Program::Ceiling, milliseconds.to_string());
        let mut all = [own, tasks].map(|contender| Series { contender, runs: Vec::new() });
        for _ in 0..size.rounds.min(3) {
            let [own, tasks] = &mut all;
            own.runs.push(once(server, &own.contender, &setting)?);
            // Reads nothing, so that nothing can be left.
            tasks.runs.push(start(server, &tasks.contender, &setting)?);
        }
        let [own, tasks] = &all;
        let took = own.runs.iter().map(|run| run.note("handler").map(|took| took[0]));
        let took = Spread::of(took.collect::<Outcome<Vec<f64>>>()?.into_iter());
        eprintln!("  handlers of {milliseconds} ms took {took}, because timers are late");
        let what = format!(
            "Kafka, in order by key, {WIDE} at a time, handlers of {milliseconds} ms: over the ceiling"
        );
        compare(&what, own, tasks, rate, Goal::AtLeast(0.98)).print();
        bars.push(Bar { label: format!("{milliseconds} ms"), spread: own.over(tasks, rate) });
        server.delete(&setting)?;
    }
    Ok(vec![Plot {
        name: String::from("kafka-ceiling"),
        title: format!("Kafka, in order by key, {WIDE} handlers at a time"),
        unit: String::from("of what as many tasks do that parse and sleep"),
        bars,
    }])
}

/// A second member joins and leaves while messages come: how long a partition stood still that did not move.
fn rebalance(server: &Server, size: &Size) -> Outcome<Vec<Plot>> {
    eprintln!("a second member joins and leaves");
    // The program writes what it reads; one message makes the topic be there.
    let setting = Setting { queues: 6, messages: 6, prefetch: PREFETCH };
    let mut stalls = Vec::new();
    for _ in 0..size.rounds.min(3) {
        super::runs::Ground::fill(server, &setting)?;
        let run = start(server, &ours("rebalance"), &setting)?;
        stalls.push(run.note("stall")?[0]);
    }
    let stalls = Spread::of(stalls.into_iter());
    eprintln!("  the longest stall of a partition that stayed: {stalls} ms");
    let what = "Kafka, a member joins and leaves: longest stall of a partition that stayed, ms";
    Figure::plain(what, stalls.median, Goal::AtMost(200.0)).print();
    server.delete(&setting)?;
    Ok(Vec::new())
}
