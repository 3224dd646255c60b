//! What becomes of a failure depends on its class, and the configuration says how.

use redeliver::config::Config;
use redeliver::{Delivery, Failure, Handled, Message, Reason, Service};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

const CONFIG: &str = r#"
[brokers.main]
kind = "memory"
[subscriptions.payments]
broker = "main"
[retry.standard]
attempts_max = 2
delay_min = "10ms"
rules = [
    { class = "validation", then = "reject" },
    { class = "already-paid", then = "ignore" },
    { class = "bank-closed", then = "retry", retry = "patient" },
]
[retry.patient]
backoff = "fixed"
delay_min = "10ms"
attempts_max = 10
"#;

async fn pay(payment: Delivery<String>, log: UnboundedSender<String>) -> Handled {
    let failed = |class: &'static str| Err(Failure::retry(class).class(class));
    let attempt = payment.attempt();
    log.send(format!("{}, attempt {attempt}", payment.payload))?;
    match payment.payload.as_str() {
        "to nobody" => failed("validation"),
        "of yesterday" => failed("already-paid"),
        "on a sunday" if attempt < 5 => failed("bank-closed"),
        _ => Ok(()),
    }
}

#[actix::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (log, mut lines) = unbounded_channel();
    let handler = move |payment| pay(payment, log.clone());
    let service = Service::builder(Config::from_toml(CONFIG)?).subscribe("payments", handler);
    let service = service.start().await?;
    let publisher = service.publisher("main")?;
    for payment in ["to nobody", "of yesterday", "on a sunday"] {
        publisher.send(Message::json(&payment)?.to_queue("payments").id(payment)).await?;
    }
    let mut attempts = Vec::new();
    while !attempts.iter().any(|line| line == "on a sunday, attempt 5") {
        attempts.extend(lines.recv().await);
    }
    println!("{}", attempts.join("\n"));
    assert_eq!(attempts.len(), 1 + 1 + 5);
    let letter = service.dead_letters("payments")?.show("to nobody").await?.ok_or("not there")?;
    assert_eq!((letter.reason, letter.attempts), (Some(Reason::Rejected), 1));
    println!("rejected: `to nobody`, ignored: `of yesterday`, handled in the end: `on a sunday`");
    service.stop().await;
    Ok(())
}
