//! What every contender does alike: which task it is given, what a message is, and what is measured
//! of its process.
//!
//! Included by the peers' package too, so that none of them counts in a way of its own.

#![allow(dead_code, reason = "no contender needs all of it")]

pub mod gauge;
pub mod order;
pub mod task;
