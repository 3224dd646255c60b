//! What the handler of a service in a process of its own does here.

use std::sync::Arc;
use std::time::Duration;

use redeliver::{Delivery, Failure, Handled};
use tokio::time::sleep;

use crate::common::process::{self, Effects, Home};
use crate::ground::Ground;

/// Children whose handlers take so many milliseconds.
pub(crate) type Stage = process::Stage<u64>;

impl Home for Ground {
    fn note_topology(&self, topology: &[String]) {
        self.note(topology);
    }
}

/// Run by a parent with a role, it is a service; else there is nothing to do.
#[tokio::test]
async fn a_child_handles_what_it_is_sent() {
    process::play(|milliseconds: u64, effects| {
        let effects = Arc::new(effects);
        move |delivery| handle(delivery, milliseconds, Arc::clone(&effects))
    })
    .await;
}

async fn handle(delivery: Delivery<String>, milliseconds: u64, effects: Arc<Effects>) -> Handled {
    sleep(Duration::from_millis(milliseconds)).await;
    let fails = match delivery.payload.as_str() {
        "retry" => true,
        "retry once" => delivery.attempt() == 1,
        _ => false,
    };
    effects.note(delivery.id().unwrap_or_default(), delivery.attempt(), !fails)?;
    if fails { Err(Failure::retry("told to fail")) } else { Ok(()) }
}
