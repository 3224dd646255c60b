//! Publishing is confirmed, and what a handler sends on names what caused it.

use redeliver::broker::HeaderValue;
use redeliver::config::Config;
use redeliver::{Delivery, Message, Service};
use tokio::sync::mpsc;

const CONFIG: &str = r#"
[brokers.main]
kind = "memory"
[subscriptions.orders]
broker = "main"
[subscriptions.payments]
broker = "main"
"#;

#[actix::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // An order causes a payment ...
    let order = |order: Delivery<serde_json::Value>| async move {
        let payment = Message::json(&order.payload["price"])?.to_queue("payments");
        order.publisher().send(payment).await?;
        Ok(())
    };
    // ... and the payment knows it.
    let (paid, mut payments) = mpsc::channel(1);
    let payment = move |payment: Delivery<u32>| {
        let paid = paid.clone();
        async move {
            let text = |name| match payment.header(name) {
                Some(HeaderValue::Text(text)) => text.to_owned(),
                _ => String::from("nothing"),
            };
            let (cause, trace) = (text("redeliver-causation"), text("traceparent"));
            Ok(paid.send((payment.payload, cause, trace, payment.hops())).await?)
        }
    };
    let service = Service::builder(Config::from_toml(CONFIG)?)
        .subscribe("orders", order)
        .subscribe("payments", payment)
        .start()
        .await?;

    let publisher = service.publisher("main")?;
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let order = Message::json(&serde_json::json!({ "price": 1999 }))?.header("traceparent", trace);
    let confirmed = publisher.send(order.to_queue("orders").id("order-1")).await?;
    println!("{confirmed} is with the broker");

    let (price, cause, traced, hops) = payments.recv().await.ok_or("nobody paid")?;
    println!("{price} paid because of {cause}, {hops} hop from the first message");
    assert_eq!((price, cause.as_str(), hops), (1999, "order-1", 1));
    assert!(traced.starts_with(&trace[..35]), "another trace: {traced}");

    let nowhere = Message::bytes("{}").to_queue("nowhere").id("order-2");
    let error = publisher.send(nowhere).await.expect_err("there is no such queue");
    println!("{error}");
    assert_eq!(error.id(), "order-2");
    service.stop().await;
    Ok(())
}
