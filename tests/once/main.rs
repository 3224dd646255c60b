//! One at a time, and once: a service on a real RabbitMQ and a real Redis, through the public API.
//!
//! Where processes are killed, the test starts itself again as a worker; what handlers did is
//! counted in a file outside.

#![cfg(all(feature = "rabbitmq", feature = "redis"))]

mod adoption;
#[path = "../rabbitmq/proxy.rs"]
mod broker_proxy;
mod commands;
#[path = "../common/mod.rs"]
mod common;
mod copies;
mod deliveries;
mod example;
mod faults;
mod fork;
mod ids;
mod lab;
mod locks;
mod order;
mod orphans;
mod outages;
#[path = "../programs/mod.rs"]
mod programs;
mod proxy;
mod results;
#[path = "../support/mod.rs"]
mod support;
mod timeouts;
mod worker;
