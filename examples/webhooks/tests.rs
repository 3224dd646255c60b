//! The tests of this example's own parts: its exit code is what other tests believe.
//!
//! A program of its own, because an example that is itself a test is not built to be run.

// Only what the summary needs is here, and not all of that is called.
#![allow(dead_code)]

mod chosen;
mod effects;
mod guards;
mod notifier;
mod options;
mod place;
mod summary;
mod tell;
#[cfg(feature = "kafka")]
mod topic;

type Error = Box<dyn std::error::Error>;
