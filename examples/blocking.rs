//! A handler that blocks its thread, as drivers like diesel do, on threads of its own.

use std::collections::HashSet;
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use actix::prelude::*;
use redeliver::config::Config;
use redeliver::{Delivery, Handled, Message, Service, blocking};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

#[derive(serde::Deserialize)]
struct Shipment {
    parcel: u32,
}

/// Prints labels on a slow printer.
struct Labels(UnboundedSender<(u32, ThreadId)>);

impl Actor for Labels {
    type Context = SyncContext<Self>;
}

impl Handler<Delivery<Shipment>> for Labels {
    type Result = Handled;

    fn handle(&mut self, shipment: Delivery<Shipment>, _: &mut SyncContext<Self>) -> Handled {
        thread::sleep(Duration::from_millis(20));
        self.0.send((shipment.payload.parcel, thread::current().id()))?;
        Ok(())
    }
}

#[actix::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (printed, mut labels) = unbounded_channel();
    let config = "brokers.main.kind = 'memory'\nsubscriptions.shipments.broker = 'main'";
    let service = Service::builder(Config::from_toml(config)?)
        .subscribe("shipments", blocking(4, move || Labels(printed.clone())))
        .start()
        .await?;
    let begun = Instant::now();
    let publisher = service.publisher("main")?;
    for parcel in 0..40 {
        let shipment = Message::json(&serde_json::json!({ "parcel": parcel }))?;
        publisher.send(shipment.to_queue("shipments")).await?;
    }
    let (mut parcels, mut threads) = (HashSet::new(), HashSet::new());
    while parcels.len() < 40 {
        let (parcel, thread) = labels.recv().await.ok_or("the printer is gone")?;
        parcels.insert(parcel);
        threads.insert(thread);
    }
    println!("40 labels of 20 ms on {} threads took {:?}", threads.len(), begun.elapsed());
    assert_eq!(threads.len(), 4);
    service.stop().await;
    Ok(())
}
