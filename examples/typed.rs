//! One queue, several types of messages: each goes to the handler for it, an actor or a function.

use actix::prelude::*;
use redeliver::config::Config;
use redeliver::{Delivery, Handled, Message, Reason, Service, by_type};
use tokio::sync::mpsc;

#[derive(serde::Deserialize)]
struct Order {
    item: String,
}

#[derive(serde::Deserialize)]
struct Refund {
    cents: u32,
}

/// Ships what was ordered.
struct Shipping(mpsc::Sender<String>);

impl Actor for Shipping {
    type Context = Context<Self>;
}

impl Handler<Delivery<Order>> for Shipping {
    type Result = ResponseFuture<Handled>;

    fn handle(&mut self, order: Delivery<Order>, _: &mut Context<Self>) -> Self::Result {
        let log = self.0.clone();
        Box::pin(async move { Ok(log.send(format!("shipped {}", order.payload.item)).await?) })
    }
}

#[actix::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (log, mut lines) = mpsc::channel(8);
    let refunds = log.clone();
    let refund = move |refund: Delivery<Refund>| {
        let log = refunds.clone();
        async move { Ok(log.send(format!("refunded {} cents", refund.payload.cents)).await?) }
    };
    let handlers = by_type().on("order", move || Shipping(log.clone())).on("refund", refund);
    let config = "brokers.main.kind = 'memory'\nsubscriptions.shop.broker = 'main'";
    let service =
        Service::builder(Config::from_toml(config)?).subscribe("shop", handlers).start().await?;

    let publisher = service.publisher("main")?;
    let send = |kind, body| publisher.send(Message::bytes(body).to_queue("shop").kind(kind));
    send("order", r#"{ "item": "a lamp" }"#).await?;
    send("refund", r#"{ "cents": 1999 }"#).await?;
    send("gossip", r#"{ "of": "the neighbours" }"#).await?;

    let mut seen = [lines.recv().await, lines.recv().await].map(Option::unwrap_or_default);
    seen.sort();
    println!("{}", seen.join(", "));
    assert_eq!(seen, ["refunded 1999 cents", "shipped a lamp"]);
    while service.depth("shop").await?.dead != Some(1) {
        tokio::task::yield_now().await;
    }
    let page = service.dead_letters("shop")?.pages(10).await?.next().await?.unwrap_or_default();
    assert_eq!(page[0].reason, Some(Reason::UnknownType));
    println!("and nobody here handles gossip, so it is a dead letter");
    service.stop().await;
    Ok(())
}
