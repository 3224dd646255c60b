//! Payments are booked in batches, and each payment of a batch has its own outcome.

use actix::prelude::*;
use redeliver::config::Config;
use redeliver::{Batch, Failure, Handled, Message, Service, in_batches};
use tokio::sync::mpsc;

const CONFIG: &str = r#"
[brokers.main]
kind = "memory"
[subscriptions.payments]
broker = "main"
batch = { size = 10, wait = "50ms" }
"#;

#[derive(serde::Deserialize)]
struct Payment {
    cents: i64,
}

/// Books payments, many in one transaction.
struct Ledger(mpsc::UnboundedSender<usize>);

impl Actor for Ledger {
    type Context = Context<Self>;
}

impl Handler<Batch<Payment>> for Ledger {
    type Result = ResponseFuture<Vec<Handled>>;

    fn handle(&mut self, batch: Batch<Payment>, _: &mut Context<Self>) -> Self::Result {
        let booked = self.0.clone();
        Box::pin(async move {
            let answer = |cents| match cents {
                ..=0 => Err(Failure::reject("a payment is more than nothing").class("validation")),
                _ => Ok(()),
            };
            let _ = booked.send(batch.deliveries.len());
            batch.deliveries.iter().map(|payment| answer(payment.payload.cents)).collect()
        })
    }
}

#[actix::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (booked, mut batches) = mpsc::unbounded_channel();
    let ledger = in_batches(move || Ledger(booked.clone()));
    let service = Service::builder(Config::from_toml(CONFIG)?).subscribe("payments", ledger);
    let service = service.start().await?;
    let publisher = service.publisher("main")?;
    for cents in 0..25 {
        let payment = Message::json(&serde_json::json!({ "cents": cents }))?;
        publisher.send(payment.to_queue("payments")).await?;
    }
    let mut sizes = Vec::new();
    while sizes.iter().sum::<usize>() < 25 {
        sizes.extend(batches.recv().await);
    }
    println!("25 payments in batches of {sizes:?}");
    assert!(sizes.iter().all(|size| *size <= 10), "a batch is too large");
    // The last batch was seen before its handler answered.
    while service.depth("payments").await?.dead != Some(1) {
        tokio::task::yield_now().await;
    }
    println!("1 of them was worth nothing and is a dead letter");
    service.stop().await;
    Ok(())
}
