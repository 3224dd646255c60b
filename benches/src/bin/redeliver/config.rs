//! The configuration of a run, as text, as a user would write it.
//!
//! Settings other than the defaults: `in_flight_max` and `parked_max` come together to the prefetch of the others.

use std::error::Error;
use std::fmt::Write as _;

use redeliver::config::Config;
use redeliver_benches::shared::task::Task;

pub(crate) fn is_kafka(task: &Task) -> bool {
    !task.url.starts_with("amqp")
}

pub(crate) fn of(task: &Task, style: &str, number: u64) -> Result<Config, Box<dyn Error>> {
    let text = match is_kafka(task) {
        true => kafka(task, style, number)?,
        false => rabbitmq(task, style, number)?,
    };
    Ok(Config::from_toml(&text)?)
}

fn kafka(task: &Task, style: &str, number: u64) -> Result<String, std::fmt::Error> {
    let Task { url, prefix, group, prefetch, .. } = task;
    let mut text = format!(
        "[brokers.main]\nkind = \"kafka\"\nurl = \"{url}\"\n\
         [subscriptions.measured]\nbroker = \"main\"\ntopics = [\"{prefix}\"]\ngroup = \"{group}\"\n\
         topology = \"none\"\n",
    );
    if style.starts_with("key") {
        text.push_str("ordering = \"key\"\norder_on_long_wait = \"reorder\"\n");
    }
    match number {
        0 => writeln!(text, "in_flight_max = {}\nparked_max = {}", prefetch * 3 / 4, prefetch / 4)?,
        // Handler actors, with a thread each.
        _ if style.ends_with("handlers") => writeln!(
            text,
            "in_flight_max = {}\nparked_max = {}\nhandlers = {number}",
            prefetch * 3 / 4,
            prefetch / 4
        )?,
        // So many handlers at a time over all partitions.
        _ => writeln!(text, "in_flight_max = {prefetch}\nin_flight_total_max = {prefetch}")?,
    }
    Ok(text)
}

fn rabbitmq(task: &Task, style: &str, number: u64) -> Result<String, std::fmt::Error> {
    let mut text = format!("[brokers.main]\nkind = \"rabbitmq\"\nurl = \"{}\"\n", task.url);
    let wait = match style {
        "waiting" => "1h",
        _ => "1s",
    };
    write!(
        text,
        "[retry.standard]\nbackoff = \"fixed\"\njitter = \"none\"\ndelay_min = \"{wait}\"\n\
         delay_max = \"{wait}\"\nin_process_max = \"0s\"\n",
    )?;
    if style == "publish" {
        return Ok(text);
    }
    let guards = match style {
        "idempotent" => "idempotency = { store = \"main\" }\n",
        "locked" => {
            "idempotency = { store = \"main\" }\nlock = { store = \"main\", key = \"/customer_id\" }\n"
        }
        _ => "",
    };
    if !guards.is_empty() {
        let redis = std::env::var("REDIS_URL").unwrap_or_default();
        write!(text, "[stores.main]\nkind = \"redis\"\nurl = \"{redis}\"\n")?;
    }
    let topology = match style {
        "failing" | "steady" | "waiting" => "declare",
        _ => "none",
    };
    let consumers = match style {
        "lanes" | "idle" => number,
        _ => 1,
    };
    let breaker = match style {
        // Every message fails once, which is what a breaker is there to stop.
        "steady" => "breaker = { attempts_min = 1_000_000 }\n",
        _ => "",
    };
    let parked = task.prefetch / 4;
    let in_flight = task.prefetch - parked;
    for queue in task.names() {
        writeln!(
            text,
            "[subscriptions.{}]\nbroker = \"main\"\nqueue = \"{queue}\"\n\
             topology = \"{topology}\"\nin_flight_max = {in_flight}\nparked_max = {parked}\n\
             consumers = {consumers}\n{breaker}{guards}",
            queue.replace('.', "_"),
        )?;
    }
    Ok(text)
}
