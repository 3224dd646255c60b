//! Message consumers that lose nothing, on actix.
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
