//! What redeliver promises, shown on a real RabbitMQ through the public API.
//!
//! `RABBITMQ_URL` names the server and `REDELIVER_RABBITMQCTL` the command that controls it; servers that are stopped,
//! killed or starved are started by `tests/servers/rabbitmq.sh`. `REDELIVER_TEST_FULL=1` runs the large counts.
#![cfg(feature = "rabbitmq")]

#[path = "../common/mod.rs"]
mod common;
mod lab;
mod process;
mod proxy;

mod breaker;
mod crashes;
mod dead_letters;
mod input;
mod lanes;
mod losses;
mod nodes;
mod originals;
mod publishing;
mod starting;
mod stops;
mod tracing;
mod waits;
