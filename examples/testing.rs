//! Tests a handler through the whole service: retries, waits and dead letters, in milliseconds.
//!
//! Run it with `cargo run --example testing --features testing`; in a project of your own the body
//! of `orders_are_tried_again_and_then_given_up` is a `#[test]`.

use std::time::Duration;

use redeliver::config::Config;
use redeliver::testing::TestService;
use redeliver::{Delivery, Failure, Handled, Message, Service};

/// What a warehouse is asked to send.
#[derive(serde::Deserialize)]
struct Order {
    pieces: u32,
}

/// The handler under test.
async fn ship(order: Delivery<Order>) -> Handled {
    match order.payload.pieces {
        0 => Err(Failure::reject("nothing to ship")),
        pieces if pieces > order.attempt() => Err(Failure::retry("not in stock yet")),
        _ => Ok(()),
    }
}

const CONFIG: &str = r#"
    [brokers.main]
    kind = "memory"
    [subscriptions.orders]
    broker = "main"
    [retry.standard]
    jitter = "none"
    attempts_max = 3
"#;

fn orders_are_tried_again_and_then_given_up() -> Result<(), Box<dyn std::error::Error>> {
    let config = Config::from_toml(CONFIG)?;
    let mut service = TestService::start(Service::builder(config).subscribe("orders", ship))?;
    service.publish("orders", Message::bytes(r#"{"pieces": 2}"#).id("order-7"));
    service.advance(Duration::from_millis(199));
    assert_eq!(service.log(), ["order-7: attempt 1 retry after 200ms: not in stock yet"]);
    service.advance(Duration::from_millis(1));
    assert_eq!(service.log()[1..], ["order-7: attempt 2 handled"]);

    service.clear_log();
    service.publish("orders", Message::bytes(r#"{"pieces": 0}"#).id("order-8"));
    service.publish("orders", Message::bytes(r#"{"pieces": 9}"#).id("order-9"));
    service.finish();
    assert_eq!(service.log()[0], "order-8: attempt 1 dead-lettered: rejected: nothing to ship");
    assert_eq!(service.log()[3], "order-9: attempt 3 dead-lettered: exhausted: not in stock yet");
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    orders_are_tried_again_and_then_given_up()?;
    println!("orders are tried again, and then given up: as expected");
    Ok(())
}
