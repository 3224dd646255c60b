//! x

pub mod broker;
pub mod config;
pub mod retry;
pub mod wire;
#[cfg(feature = "testing")]
pub mod testing;
