//! The in-memory path: a service on the memory broker, one subscription, and a handler actor whose
//! answers are ready at once.
//!
//! Decoding is left out (the payload is `()`), so that what is measured is the framework alone.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};

use actix::prelude::*;
use redeliver::config::Config;
use redeliver::{Codec, DecodeError, Delivery, Handled, Message, Service, with_codec};

const CONFIG: &str = r#"
[brokers.main]
kind = "memory"
[subscriptions.measured]
broker = "main"
"#;

/// Called with the number of each message as it is handled, from 1.
pub type Watch = Arc<dyn Fn(u64) + Send + Sync>;

/// Takes every payload for nothing.
struct Nothing;

impl Codec<()> for Nothing {
    fn accepts(&self, _: Option<&str>) -> bool {
        true
    }

    fn decode(&self, _: Option<&[u8]>) -> Result<(), DecodeError> {
        Ok(())
    }
}

struct Counter {
    handled: u64,
    messages: u64,
    watch: Watch,
    done: Sender<()>,
}

impl Actor for Counter {
    type Context = Context<Self>;
}

impl Handler<Delivery<()>> for Counter {
    type Result = ResponseFuture<Handled>;

    fn handle(&mut self, _: Delivery<()>, _: &mut Context<Self>) -> Self::Result {
        self.handled += 1;
        (self.watch)(self.handled);
        if self.handled == self.messages {
            // Nobody listens any more only when the program is about to end.
            let _ = self.done.send(());
        }
        Box::pin(async { Ok(()) })
    }
}

/// A service whose queue is full and whose subscription is held.
pub struct Loaded {
    service: Service,
    done: Receiver<()>,
}

/// Starts a service and publishes `messages` of 64 bytes, each with an id.
pub async fn load(messages: u64, watch: Watch) -> Result<Loaded, Box<dyn std::error::Error>> {
    let (done, finished) = mpsc::channel();
    let factory =
        move || Counter { handled: 0, messages, watch: Arc::clone(&watch), done: done.clone() };
    let service = Service::builder(Config::from_toml(CONFIG)?)
        .subscribe("measured", with_codec(Nothing, factory))
        .signals(false)
        .start()
        .await?;
    service.pause("measured").await?;
    let publisher = service.publisher("main")?;
    for number in 0..messages {
        let message = Message::bytes(vec![b'x'; 64]).to_queue("measured").id(number.to_string());
        publisher.send(message).await?;
    }
    Ok(Loaded { service, done: finished })
}

impl Loaded {
    /// Lets the subscription go, and waits until everything was handled.
    pub async fn drain(self) -> Result<(), Box<dyn std::error::Error>> {
        self.service.resume("measured").await?;
        self.done.recv()?;
        Ok(())
    }
}
