//! What the handler of a service in a process of its own does here.

use std::sync::Arc;
use std::time::Duration;

use redeliver::{Delivery, Failure, Handled};
use serde::{Deserialize, Serialize};
use tokio::time::sleep;

pub(crate) use crate::common::process::Process;
use crate::common::process::{self, Effects, Home};
use crate::lab::Lab;

/// What the handler of a child does with every message.
#[derive(Clone, Default, Serialize, Deserialize)]
pub(crate) struct Role {
    /// How long it takes.
    pub(crate) milliseconds: u64,
    /// It fails on so many attempts of every message whose number divides by `fails_every`.
    pub(crate) fails: u32,
    pub(crate) fails_every: u32,
    /// It ends the process over this number.
    pub(crate) aborts_on: Option<u32>,
}

pub(crate) type Stage = process::Stage<Role>;

impl Home for Lab {
    fn note_topology(&self, topology: &[String]) {
        self.delete_later(topology);
    }
}

/// Run by a parent with a role, it is a service; else there is nothing to do.
#[tokio::test]
async fn a_child_handles_what_it_is_sent() {
    process::play(|role: Role, effects| {
        let effects = Arc::new(effects);
        move |delivery| handle(delivery, role.clone(), Arc::clone(&effects))
    })
    .await;
}

async fn handle(delivery: Delivery<u32>, role: Role, effects: Arc<Effects>) -> Handled {
    let (number, attempt) = (delivery.payload, delivery.attempt());
    if role.aborts_on == Some(number) {
        std::process::abort();
    }
    sleep(Duration::from_millis(role.milliseconds)).await;
    let fails = role.fails_every > 0 && number % role.fails_every == 0 && attempt <= role.fails;
    effects.note(&number.to_string(), attempt, !fails)?;
    if fails { Err(Failure::retry("told to fail")) } else { Ok(()) }
}
