//! x
pub mod config;
pub mod retry;
