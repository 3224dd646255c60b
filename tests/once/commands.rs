//! What a guarded message costs at Redis: counted at the server.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use redeliver::config::Config;
use redeliver::{Delivery, Handled, Message, Service};

use crate::lab::Lab;
use crate::support::redis::{Server, aside};

const COUNT: usize = 500;

/// How often the server was asked since its counters began anew.
fn calls(server: &Server, command: &str) -> usize {
    let text = server.cli(&["info", "commandstats"]);
    let line = text.lines().find(|line| line.starts_with(&format!("cmdstat_{command}:")));
    let calls = line.and_then(|line| line.split("calls=").nth(1)?.split(',').next());
    calls.map_or(0, |calls| calls.parse().expect("a number"))
}

async fn check(guards: &str) {
    let server = aside(Server::start).await;
    let text = format!(
        "[brokers.main]\nkind = \"memory\"\n[stores.main]\nkind = \"redis\"\nurl = \"{}\"\n\
         [subscriptions.orders]\nbroker = \"main\"\nqueue = \"orders\"\n{guards}",
        server.url()
    );
    let handled = Arc::new(AtomicUsize::new(0));
    let counting = Arc::clone(&handled);
    let handler = move |_: Delivery<serde_json::Value>| {
        counting.fetch_add(1, Ordering::SeqCst);
        async {
            // Many are in flight at once.
            tokio::time::sleep(Duration::from_millis(5)).await;
            Handled::Ok(())
        }
    };
    let config = Config::from_toml(&text).expect("a configuration");
    let service = Service::builder(config).subscribe("orders", handler).signals(false);
    let service = service.start().await.expect("it starts");
    let publisher = service.publisher("main").expect("it is configured");
    // The first loads the scripts.
    for number in 0..=COUNT {
        let message = Message::json(&serde_json::json!({ "n": number }))
            .expect("it is JSON")
            .to_queue("orders");
        publisher.send(message.id(number.to_string())).await.expect("it is stored");
        if number == 0 {
            settled(&service).await;
            server.cli(&["config", "resetstat"]);
        }
    }
    settled(&service).await;
    assert_eq!(handled.load(Ordering::SeqCst), COUNT + 1);
    // Fewer where many ask at the same time: they share them.
    let asked = calls(&server, "evalsha");
    assert!((2..=2 * COUNT).contains(&asked), "{guards}: {asked} round trips");
    // A lock alone has scripts of its own: then those of a round of several come later, once each.
    assert!(calls(&server, "eval") <= 2, "{guards}");
    let clients = server.cli(&["client", "list", "type", "normal"]);
    // One is the client that asks for the list.
    assert_eq!(clients.lines().count() - 1, 1, "{guards}: one connection for all: {clients}");
    service.stop().await;
}

async fn settled(service: &Service) {
    let lab = Lab::on("");
    lab.eventually("everything is settled", async || {
        let depth = service.depth("orders").await.expect("an answer");
        [depth.ready, depth.unsettled, depth.waiting] == [Some(0); 3]
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claimed_message_costs_at_most_two_round_trips_over_one_connection() {
    check("idempotency = { store = \"main\" }").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn so_does_a_claimed_and_locked_one() {
    // A key for each, so that nobody waits.
    let lock = "lock = { store = \"main\", key = \"/n\" }";
    check(&format!("idempotency = {{ store = \"main\" }}\n{lock}")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn so_does_a_locked_one() {
    check("lock = { store = \"main\", key = \"/n\" }").await;
}
