//! Waits for the lanes of a source, and has them opened again.
//!
//! Owns the task that does; when a lane is opened again, and who drains it, is the supervisor's to say.

use actix::prelude::*;
use tokio::sync::mpsc;

use super::supervisor::Supervisor;
use crate::broker::{Lane, LaneEvent, LaneId, Lanes};

/// A lane was opened.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Opened {
    pub(super) id: LaneId,
    pub(super) lane: Box<dyn Lane>,
    pub(super) epoch: u64,
}

/// A lane could not be opened.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct NotOpened {
    pub(super) id: LaneId,
    pub(super) why: String,
    pub(super) epoch: u64,
}

/// The task that waits for lanes.
pub(super) struct Opener {
    releases: mpsc::UnboundedSender<LaneId>,
    task: tokio::task::JoinHandle<Box<dyn Lanes>>,
}

impl Opener {
    pub(super) fn start(
        mut lanes: Box<dyn Lanes>,
        supervisor: Addr<Supervisor>,
        epoch: u64,
    ) -> Self {
        // Bounded by the number of lanes: each is released once for each time it was opened.
        let (releases, mut released) = mpsc::unbounded_channel();
        let task = actix_rt::spawn(async move {
            loop {
                let event = tokio::select! {
                    event = lanes.next() => event,
                    lane = released.recv() => match lane {
                        Some(lane) => {
                            lanes.release(lane);
                            continue;
                        }
                        None => break,
                    },
                };
                let delivered = match event {
                    LaneEvent::Opened(id, lane) => {
                        supervisor.send(Opened { id, lane, epoch }).await
                    }
                    LaneEvent::Failed(id, error) => {
                        supervisor.send(NotOpened { id, why: error.to_string(), epoch }).await
                    }
                };
                if delivered.is_err() {
                    break;
                }
            }
            lanes
        });
        Self { releases, task }
    }

    pub(super) fn release(&self, lane: LaneId) {
        let _ = self.releases.send(lane);
    }

    /// Hands out no more lanes; those that are out are closed before this is.
    pub(super) async fn stop(self) -> Option<Box<dyn Lanes>> {
        drop(self.releases);
        self.task.await.ok()
    }
}
