//! What valgrind counts the instructions of: `micro publish|consume|PART COUNT`.
//!
//! `publish` and `consume` differ by the path that is measured and by nothing else.

use std::any::Any;
use std::sync::Arc;
use std::time::SystemTime;

use redeliver::broker::{Envelope, HeaderValue};
use redeliver::parts::Parts;
use redeliver::wire;
use redeliver_benches::memory_path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(what), Some(count)) = (arguments.next(), arguments.next()) else {
        return Err("use: micro publish|consume|PART COUNT".into());
    };
    let count: u64 = count.parse()?;
    match what.as_str() {
        "publish" | "consume" => path(&what, count),
        part => run(part, count),
    }
}

fn path(what: &str, count: u64) -> Result<(), Box<dyn std::error::Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let loaded = memory_path::load(count, Arc::new(|_| {})).await?;
        if what == "consume" {
            loaded.drain().await?;
        }
        // No orderly stop: its cost belongs to neither.
        std::process::exit(0);
    })
}

fn run(part: &str, count: u64) -> Result<(), Box<dyn std::error::Error>> {
    let mut parts = Parts::new(Retried::new());
    for _ in 0..count {
        match part {
            "nothing" => {}
            "delay_before" => drop(parts.delay_before()),
            "decide" => parts.decide(),
            "read" => parts.read(),
            "ledger" => parts.enter_and_settle(),
            _ => return Err(format!("there is no part `{part}`").into()),
        }
    }
    Ok(())
}

/// A message that comes back from a wait, with everything it carries of ours and two headers of
/// its user's.
struct Retried {
    headers: Vec<(&'static str, String)>,
}

impl Retried {
    fn new() -> Self {
        let now = wire::format_time(SystemTime::now());
        let headers = vec![
            (
                "traceparent",
                String::from("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
            ),
            ("tenant", String::from("acme")),
            (wire::ID, String::from("order-1")),
            (wire::ATTEMPT, String::from("3")),
            (wire::DELAY, String::from("1500")),
            (wire::DUE, now.clone()),
            (wire::FIRST_SEEN, now),
            (wire::ORIGIN, String::from("shop/order.placed/orders")),
        ];
        Self { headers }
    }
}

impl Envelope for Retried {
    fn body(&self) -> &[u8] {
        b"{}"
    }

    fn header(&self, name: &str) -> Option<HeaderValue<'_>> {
        let found = self.headers.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| HeaderValue::Text(value))
    }

    fn visit_headers(&self, visit: &mut dyn FnMut(&str, HeaderValue<'_>)) {
        for (name, value) in &self.headers {
            visit(name, HeaderValue::Text(value));
        }
    }

    fn has_headers(&self) -> bool {
        true
    }

    fn id(&self) -> Option<&str> {
        None
    }

    fn content_type(&self) -> Option<&str> {
        None
    }

    fn kind(&self) -> Option<&str> {
        None
    }

    fn key(&self) -> Option<&[u8]> {
        None
    }

    fn published_at(&self) -> Option<SystemTime> {
        None
    }

    fn is_redelivered(&self) -> bool {
        false
    }

    fn returns(&self) -> u32 {
        0
    }

    fn origin(&self) -> String {
        String::new()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
