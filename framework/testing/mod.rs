//! For those who test: the suites that every adapter must pass.

pub mod broker_conformance;
