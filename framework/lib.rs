//! x

pub mod retry;
