//! What the guards cost: the idempotent and the locked subscription over the plain one, and a lock over the raw calls.

use std::env;

use super::figure::{Figure, Goal};
use super::plot::Plot;
use super::rabbitmq::PREFETCH;
use super::rabbitmq::server::Server;
use super::runs::{
    Contender, Ground, Measured, Program, Setting, Spread, compare, contest, rate, start,
};
use super::{Asked, Outcome};

/// How much is run.
struct Size {
    messages: u64,
    rounds: usize,
    acquisitions: u64,
    handovers: u64,
}

const QUICK: Size = Size { messages: 20_000, rounds: 3, acquisitions: 10_000, handovers: 1_000 };
const FULL: Size = Size { messages: 100_000, rounds: 7, acquisitions: 50_000, handovers: 10_000 };

pub(crate) fn run(asked: &Asked) -> Outcome {
    let size = if asked.quick { QUICK } else { FULL };
    let redis = Redis::connect()?;
    if asked.wants("guards") {
        asked.keep(guards(&redis, &size)?)?;
    }
    if asked.wants("locks") {
        locks(&redis, &size)?;
    }
    Ok(())
}

/// A Redis that is empty before each run.
struct Redis {
    url: String,
    client: redis::Client,
}

impl Redis {
    fn connect() -> Outcome<Self> {
        let url = env::var("REDIS_URL").map_err(|_| "REDIS_URL names no server")?;
        let client = redis::Client::open(url.as_str())?;
        Ok(Self { url, client })
    }

    fn empty(&self) -> Outcome {
        Ok(redis::cmd("FLUSHALL").exec(&mut self.client.get_connection()?)?)
    }
}

/// Programs that need nothing but Redis.
impl Ground for Redis {
    fn url(&self) -> &str {
        &self.url
    }

    fn prefix(&self, _: &Setting) -> String {
        String::from("bench")
    }

    fn group(&self) -> String {
        String::from("none")
    }

    fn fill(&self, _: &Setting) -> Outcome {
        self.empty()
    }

    fn left(&self, _: &Setting) -> Outcome<u64> {
        Ok(0)
    }

    fn clear(&self, _: &Setting) -> Outcome {
        Ok(())
    }
}

/// Queues on RabbitMQ whose messages no claim knows.
struct Guarded<'a> {
    queues: &'a Server,
    redis: &'a Redis,
}

impl Ground for Guarded<'_> {
    fn url(&self) -> &str {
        self.queues.url()
    }

    fn prefix(&self, setting: &Setting) -> String {
        self.queues.prefix(setting)
    }

    fn group(&self) -> String {
        self.queues.group()
    }

    fn fill(&self, setting: &Setting) -> Outcome {
        self.redis.empty()?;
        self.queues.fill(setting)
    }

    fn left(&self, setting: &Setting) -> Outcome<u64> {
        self.queues.left(setting)
    }

    fn clear(&self, setting: &Setting) -> Outcome {
        self.queues.clear(setting)
    }
}

fn guards(redis: &Redis, size: &Size) -> Outcome<Vec<Plot>> {
    eprintln!("guards, {} messages, {} rounds", size.messages, size.rounds);
    let queues = Server::connect()?;
    let ground = Guarded { queues: &queues, redis };
    queues.declare(1)?;
    let setting = Setting { queues: 1, messages: size.messages, prefetch: PREFETCH };
    let contenders = ["plain", "idempotent", "locked"].map(Contender::ours);
    let all = contest(&ground, &contenders, &setting, size.rounds)?;
    let what = "Redis, idempotent subscription on RabbitMQ: messages a second over the plain one";
    compare(what, &all[1], &all[0], rate, Goal::AtLeast(0.6)).print();
    let what = "Redis, idempotent and locked subscription on RabbitMQ: messages a second over the plain one";
    compare(what, &all[2], &all[0], rate, Goal::AtLeast(0.5)).print();
    queues.delete([queues.queue(0)])?;
    queues.close()?;
    let title = "RabbitMQ, one queue, with guards in Redis";
    Ok(vec![Plot::of("redis-guards", title, "messages a second", &all, rate)])
}

/// The time that one acquisition and its release take, in microseconds.
fn time(run: &Measured) -> f64 {
    1e6 / run.rate
}

fn locks(redis: &Redis, size: &Size) -> Outcome {
    eprintln!("locks, {} acquisitions, {} rounds", size.acquisitions, size.rounds);
    let setting = Setting { queues: 0, messages: size.acquisitions, prefetch: 0 };
    let program = |label, style: &str| Contender::new(label, Program::Locks, style);
    let contenders = [program("redeliver", "ours"), program("redis", "raw")];
    let all = contest(redis, &contenders, &setting, size.rounds)?;
    let what = "Redis, uncontended acquire and release, us, over the two raw calls";
    compare(what, &all[0], &all[1], time, Goal::AtMost(1.3)).print();

    let setting = Setting { messages: size.handovers, ..setting };
    let handover = |fair: &str| -> Outcome<Spread> {
        let mut p99 = Vec::new();
        for _ in 0..size.rounds {
            redis.empty()?;
            let run = start(redis, &program("redeliver", fair), &setting)?;
            p99.push(run.note("handover")?[1]);
        }
        Ok(Spread::of(p99.into_iter()))
    };
    let p99 = handover("handover")?;
    eprintln!("  handing over between live holders, 99th percentile: {p99} ms");
    let what = "Redis, handing over between live holders: 99th percentile, ms";
    Figure::plain(what, p99.median, Goal::AtMost(3.0)).print();
    Ok(())
}
