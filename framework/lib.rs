//! Message consumers that lose nothing, on actix.
#![doc(test(attr(deny(warnings))))]

mod actors;
pub mod broker;
pub mod config;
mod dead_letters;
mod envelope;
mod error;
mod health;
mod message;
mod pipeline;
mod publisher;
pub mod retry;
mod service;
mod telemetry;
#[cfg(feature = "testing")]
pub mod testing;
pub mod wire;

pub use actors::{
    ByActor, ByFunction, Handlers, IntoCodecs, IntoHandlers, IntoRunning, blocking, by_type,
    in_batches, with_codec,
};
pub use error::Error;
pub use health::{Health, SubscriptionHealth, SubscriptionState};
pub use message::{Batch, Delivery, Failure, Handled, Metadata, OrFailure};
pub use pipeline::{Codec, DecodeError, Json, Raw, Reason};
pub use publisher::{Message, MessageId, PublishError, Publisher};
