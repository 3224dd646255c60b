//! What is promised to users, a sentence a test, on the memory broker and through the public API.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod bench;
#[path = "../common/headers.rs"]
mod headers;

mod answers;
mod batches;
mod copies;
mod dead_letters;
mod faults;
mod flow;
mod input;
mod kinds;
mod lanes;
mod publishing;
mod reload;
mod runtimes;
mod seen;
mod signals;
mod threads;
mod waits;
