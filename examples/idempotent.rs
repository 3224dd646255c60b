//! Each id is handled once, however often it is published; its copies get the first run's result.
//!
//! `cargo run --example idempotent [-- --input FILE.jsonl]` publishes everything five times. The file has a delivery
//! a line, with its id in `delivery`; without one the program makes twenty itself. The claims are in this process, or
//! in the Redis that `REDIS_URL` names.

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use clap::Parser;
use redeliver::config::Config;
use redeliver::{ClaimStatus, Delivery, Failure, Handled, Message, Service};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

const COPIES: usize = 5;

#[derive(Parser)]
struct Flags {
    /// One delivery a line
    #[arg(long)]
    input: Option<std::path::PathBuf>,
}

#[actix::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let deliveries = deliveries(&Flags::parse())?;
    let ids: BTreeMap<_, _> = deliveries.iter().map(|(id, delivery)| (id, delivery)).collect();
    if let Some((id, _)) = deliveries.iter().find(|(id, delivery)| ids[id] != delivery) {
        // A dead letter of reason `mismatch`, whose handler would never be called.
        return Err(format!("two lines with the id {id} differ").into());
    }
    let (sent, known) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let seen = Arc::new(Seen { sent, known, answered: Semaphore::new(0) });
    let seeing = Arc::clone(&seen);
    let notify = move |delivery: Delivery<Value>| {
        let seen = Arc::clone(&seeing);
        async move { seen.notify(&delivery) }
    };
    let store = match std::env::var("REDIS_URL") {
        Ok(url) => format!("kind = 'redis'\nurl = '{url}'"),
        Err(_) => String::from("kind = 'memory'"),
    };
    let config = format!(
        "[brokers.main]\nkind = 'memory'\n[stores.main]\n{store}\n[subscriptions.mails]\n\
         broker = 'main'\nidempotency = {{ store = 'main', on_duplicate = 'call' }}"
    );
    let service = Service::builder(Config::from_toml(&config)?).subscribe("mails", notify);
    let service = service.start().await?;
    let publisher = service.publisher("main")?;
    for _ in 0..COPIES {
        for (id, delivery) in &deliveries {
            publisher.send(Message::json(delivery)?.to_queue("mails").id(id)).await?;
        }
    }
    let published = deliveries.len() * COPIES;
    seen.answered.acquire_many(u32::try_from(published)?).await?.forget();
    let (sent, known) = (seen.sent.load(Ordering::Relaxed), seen.known.load(Ordering::Relaxed));
    println!("{sent} mails were sent, {known} were known already");
    service.stop().await;
    if sent == ids.len() { Ok(()) } else { Err(format!("there were {} ids", ids.len()).into()) }
}

/// Counts what the handler did.
struct Seen {
    sent: AtomicUsize,
    known: AtomicUsize,
    answered: Semaphore,
}

impl Seen {
    fn notify(&self, delivery: &Delivery<Value>) -> Handled {
        let claim = delivery.claim().ok_or_else(|| Failure::reject("no claims here"))?;
        match claim.status() {
            ClaimStatus::Done => {
                let receipt = claim.result().map(|receipt| receipt.len());
                assert!(receipt.is_some_and(|length| length > 0));
                self.known.fetch_add(1, Ordering::Relaxed);
            }
            // After a crash: a real mailer would be asked first whether it knows the id.
            ClaimStatus::Fresh | ClaimStatus::TakenOver => {
                let number = self.sent.fetch_add(1, Ordering::Relaxed);
                claim.keep(format!("receipt {number}"));
            }
        }
        self.answered.add_permits(1);
        Ok(())
    }
}

/// What is to be published, with its ids.
fn deliveries(flags: &Flags) -> Result<Vec<(String, Value)>, Box<dyn Error>> {
    // Another run of this program sends other mails.
    let run = std::process::id();
    let Some(file) = &flags.input else {
        let mail = |number| (format!("mail-{run}-{number}"), json!({ "to": number }));
        return Ok((0..20).map(mail).collect());
    };
    let text = std::fs::read_to_string(file)
        .map_err(|error| format!("{} cannot be read: {error}", file.display()))?;
    let delivery = |(number, line): (usize, &str)| {
        let delivery: Value = serde_json::from_str(line)
            .map_err(|error| format!("line {} is not JSON: {error}", number + 1))?;
        let id = delivery["delivery"].as_str();
        let id = id.ok_or_else(|| format!("line {} has no text `delivery`", number + 1))?;
        Ok((format!("{run}-{id}"), delivery))
    };
    text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).map(delivery).collect()
}
