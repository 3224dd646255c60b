//! Consumers of messages, as actix actors, that lose nothing: a message is acknowledged when it was
//! handled, or when the broker has confirmed the copy of it that waits for its next attempt or lies
//! among the dead letters. A failure is retried by a policy in TOML, with every attempt counted; a
//! dependency that is down pauses a subscription instead of emptying it into its dead letters; an
//! actor, a connection or a queue that is gone is made anew.
//!
//! ```text
//!   broker ──▶ Consumer ──▶ your handler, an actor ──▶ Ok ─────────────────────▶ acknowledged
//!     ▲   one a lane,             │                                                  ▲
//!     │   as many messages        └─▶ Failure ─▶ decide ─┬─ soon: parked here        │
//!     │   as it has permits                              ├─ later ─▶ Retrier ─▶ copy confirmed
//!     └────── queue of waits ◀───────────────────────────┘           │
//!                                   dead letters ◀───────────────────┘
//! ```
//!
//! ```
//! use actix::prelude::*;
//! use redeliver::{Delivery, Failure, Handled, Message, Service, config::Config};
//!
//! #[derive(serde::Deserialize)]
//! struct Order {
//!     id: u64,
//! }
//!
//! struct Shipping;
//!
//! impl Actor for Shipping {
//!     type Context = Context<Self>;
//! }
//!
//! impl Handler<Delivery<Order>> for Shipping {
//!     type Result = ResponseFuture<Handled>;
//!
//!     fn handle(&mut self, order: Delivery<Order>, _: &mut Context<Self>) -> Self::Result {
//!         Box::pin(async move {
//!             match order.payload.id {
//!                 0 => Err(Failure::reject("there is no order 0").class("validation")),
//!                 id => Ok(println!("order {id}, attempt {}", order.attempt())),
//!             }
//!         })
//!     }
//! }
//!
//! // A service reads this from a file: `Service::from_file("config/orders.toml")?`.
//! const CONFIG: &str = r#"
//! [brokers.main]
//! kind = "memory"       # "rabbitmq", with a url
//!
//! [subscriptions.orders]
//! broker = "main"
//! queue = "orders"
//! "#;
//!
//! #[actix::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let config = Config::from_toml(CONFIG)?;
//!     let service = Service::builder(config).subscribe("orders", || Shipping).start().await?;
//!     let order = Message::json(&serde_json::json!({ "id": 7 }))?.to_queue("orders");
//!     service.publisher("main")?.send(order).await?;    // confirmed
//!     assert_eq!(service.stop().await.left, 0);         // or `run()` until SIGTERM
//!     Ok(())
//! }
//! ```
//!
//! In reading order:
//!
//! | to | read |
//! |---|---|
//! | write a handler | [`Delivery`], [`Handled`], [`Failure`], [`OrFailure`]; what else can be one: [`IntoHandlers`] |
//! | run it | [`Service`], [`ServiceBuilder`], [`Health`] |
//! | configure it | [`config`], and `config/full.toml` with every key and its default |
//! | publish | [`Publisher`], [`Message`] |
//! | look after what failed | [`DeadLetters`], [`Reason`], [`Redrive`] |
//! | decode something else than JSON | [`Codec`] |
//! | understand the delays | [`retry`] |
//! | lock, and handle once | [`store`], [`Claim`] |
//! | read our headers elsewhere | [`wire`] |
//! | add a broker | [`broker`] |
//!
//! What happens to a message in each case is one table in `docs/delivery.md`; how it is made and why,
//! `docs/architecture.md`.
#![doc(test(attr(deny(warnings))))]

mod actors;
pub mod broker;
mod clock;
pub mod config;
mod dead_letters;
mod envelope;
mod error;
mod health;
mod message;
mod outside;
#[cfg(feature = "__bench")]
#[doc(hidden)]
pub mod parts;
mod pipeline;
mod publisher;
mod reload;
pub mod retry;
mod service;
mod signals;
pub mod store;
mod telemetry;
#[cfg(feature = "testing")]
pub mod testing;
mod trace;
pub mod wire;

pub use actors::lock_keeper;
pub use actors::{
    ByActor, ByFunction, Handlers, IntoHandlers, IntoRunning, blocking, by_type, in_batches,
    with_codec, with_codecs,
};
pub use dead_letters::{DeadLetter, DeadLetters, Filter, Pages, Redrive, Redriven};
pub use error::Error;
pub use health::{Health, SubscriptionHealth, SubscriptionState};
pub use message::{Batch, Claim, ClaimStatus, Delivery, Failure, Handled, Metadata, OrFailure};
pub use pipeline::{Codec, Codecs, DecodeError, Json, Raw, Reason};
pub use publisher::{Message, MessageId, PublishError, Publisher};
pub use service::{Service, ServiceBuilder, Stop};

/// What the first page promises compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
