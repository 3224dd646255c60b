//! The smallest service: orders come in, an async function ships them.

use redeliver::{Delivery, Message, Service, config::Config};
use tokio::sync::mpsc;

#[derive(serde::Deserialize)]
struct Order {
    item: String,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (shipped, mut doorbell) = mpsc::channel(1);
    let ship = move |order: Delivery<Order>| {
        let shipped = shipped.clone();
        async move { Ok(shipped.send(order.into_parts().0.item).await?) }
    };
    let config =
        Config::from_toml("brokers.main.kind = 'memory'\nsubscriptions.orders.broker = 'main'")?;
    let service = Service::builder(config).subscribe("orders", ship).start().await?;

    let order = Message::json(&serde_json::json!({ "item": "a lamp" }))?;
    service.publisher("main")?.send(order.to_queue("orders").id("order-1")).await?;

    let item = doorbell.recv().await;
    assert_eq!(item.as_deref(), Some("a lamp"));
    println!("shipped: a lamp");
    service.stop().await;
    Ok(())
}
