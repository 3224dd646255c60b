//! The retry policy is changed in its file while the service runs; a bad file is refused.

use std::time::Duration;

use redeliver::{Delivery, Failure, Message, Publisher, Service};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

type Error = Box<dyn std::error::Error>;

/// The breaker would pause a subscription of which everything fails, which is what this is about.
const CONFIG: &str = r#"
[brokers.main]
kind = "memory"
[subscriptions.refunds]
broker = "main"
breaker = { attempts_min = 1000 }
[retry.standard]
backoff = "none"
attempts_max = "#;

/// Sends a refund that fails for ever; how often it was tried.
async fn attempts_of_a_refund(
    service: &Service,
    publisher: &Publisher,
    attempts: &mut UnboundedReceiver<u32>,
) -> Result<u32, Error> {
    let dead = service.depth("refunds").await?.dead;
    publisher.send(Message::bytes("{}").to_queue("refunds")).await?;
    while service.depth("refunds").await?.dead == dead {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut last = 0;
    while let Ok(attempt) = attempts.try_recv() {
        last = attempt;
    }
    Ok(last)
}

#[actix::main]
async fn main() -> Result<(), Error> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("refunds.toml");
    std::fs::write(&file, format!("{CONFIG} 2"))?;
    let (tried, mut attempts) = unbounded_channel();
    let refund = move |refund: Delivery<serde_json::Value>| {
        let told = tried.send(refund.attempt());
        async move { Err(told.map_or_else(Failure::from, |()| Failure::retry("no money left"))) }
    };
    let service = Service::from_file(&file)?.watch().subscribe("refunds", refund).start().await?;
    let publisher = service.publisher("main")?;
    let before = attempts_of_a_refund(&service, &publisher, &mut attempts).await?;

    std::fs::write(&file, format!("{CONFIG} 'many'"))?;
    println!("{}", service.reload().await.expect_err("many is not a number"));
    assert_eq!(attempts_of_a_refund(&service, &publisher, &mut attempts).await?, before);

    std::fs::write(&file, format!("{CONFIG} 5"))?; // Nobody is told: the file is watched.
    while attempts_of_a_refund(&service, &publisher, &mut attempts).await? == before {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let after = attempts_of_a_refund(&service, &publisher, &mut attempts).await?;
    println!("{before} attempts before, {after} after, and the service never stopped");
    assert_eq!((before, after), (2, 5));
    service.stop().await;
    Ok(())
}
