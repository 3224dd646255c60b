//! Each id is handled once, however often it is published; its copies get the first run's result.
//!
//! `cargo run --example idempotent`; the claims are in this process, or in the Redis that
//! `REDIS_URL` names.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use redeliver::config::Config;
use redeliver::{ClaimStatus, Delivery, Failure, Message, Service};
use tokio::sync::Semaphore;

const IDS: usize = 20;
const COPIES: usize = 5;

#[actix::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (sent, known) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let answered = Arc::new(Semaphore::new(0));
    let notify = {
        let (sent, known, answered) = (sent.clone(), known.clone(), answered.clone());
        move |delivery: Delivery<String>| {
            let (sent, known, answered) = (sent.clone(), known.clone(), answered.clone());
            async move {
                let claim = delivery.claim().ok_or_else(|| Failure::reject("no claims here"))?;
                match claim.status() {
                    ClaimStatus::Done => {
                        let receipt = claim.result().map(|receipt| receipt.len());
                        assert!(receipt.is_some_and(|length| length > 0));
                        known.fetch_add(1, Ordering::Relaxed);
                    }
                    // After a crash: a real mailer would be asked first whether it knows the id.
                    ClaimStatus::Fresh | ClaimStatus::TakenOver => {
                        let number = sent.fetch_add(1, Ordering::Relaxed);
                        claim.keep(format!("receipt {number}"));
                    }
                }
                answered.add_permits(1);
                Ok(())
            }
        }
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
        for number in 0..IDS {
            // Another run of this program sends other mails.
            let id = format!("mail-{}-{number}", std::process::id());
            let mail = Message::json(&format!("to {number}"))?.to_queue("mails").id(id);
            publisher.send(mail).await?;
        }
    }
    answered.acquire_many((IDS * COPIES) as u32).await?.forget();
    let (sent, known) = (sent.load(Ordering::Relaxed), known.load(Ordering::Relaxed));
    println!("{sent} mails were sent, {known} were known already");
    service.stop().await;
    Ok(())
}
