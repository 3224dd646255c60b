//! Which lanes of a source are open: as many as it has consumers, and one for the suspects while there are any.
//!
//! Owns opening them, and looking for suspects. What a lane does is in `lane`.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::time::{Instant, sleep_until, timeout};

use super::connection::Link;
use super::lane::{CLOSE_STEP_MAX, Generations, RabbitLane, Tally};
use super::topology;
use crate::broker::{BrokerError, Fault, LaneEvent, LaneId, Lanes, Source};

/// How often it is looked for suspects at most, however short `stall_after` is.
const LOOK_EVERY_MIN: Duration = Duration::from_secs(1);

/// What comes of looking for suspects, or of opening a lane.
enum News {
    /// Whether there are suspects.
    Looked(Result<bool, BrokerError>),
    Opened(LaneId, Result<Box<RabbitLane>, BrokerError>),
}

type Opening = BoxFuture<'static, News>;

/// Where the lane of the suspects is. There is one at most: a second would be delivered one of them beside the one that
/// is handled, and hold it through a crash that is none of its doing.
#[derive(Clone, Copy)]
enum Suspects {
    /// None were there; it is looked again, because another process may leave some behind.
    Away {
        look_at: Instant,
    },
    /// They are being counted, and the lane was asked for whatever their number.
    Looking {
        is_asked_for: bool,
        is_first: bool,
    },
    Opening,
    /// Handed out; opened again when it is released.
    Out,
    /// They could not be counted; they are again when the lane is released.
    Unknown,
}

/// Hands out as many lanes as the subscription has consumers, and one for the suspects while there are any.
pub(super) struct RabbitLanes {
    link: Arc<Link>,
    source: Arc<Source>,
    generations: Generations,
    tally: Arc<Tally>,
    /// Kept here rather than in `next`, so that a cancelled `next` loses no lane.
    opening: FuturesUnordered<Opening>,
    suspects: Suspects,
}

impl RabbitLanes {
    pub(super) fn new(
        link: Arc<Link>,
        source: Arc<Source>,
        generations: Generations,
        tally: Arc<Tally>,
    ) -> Self {
        let consumers = source.settings.consumers.get();
        let (opening, suspects) = (FuturesUnordered::new(), Suspects::Out);
        let mut lanes = Self { link, source, generations, tally, opening, suspects };
        (1..=consumers).for_each(|number| lanes.open(LaneId(number.to_string().into())));
        lanes.look(true);
        lanes
    }

    fn open(&mut self, lane: LaneId) {
        let (link, source) = (self.link.clone(), self.source.clone());
        let (generations, tally) = (self.generations.clone(), self.tally.clone());
        self.opening.push(Box::pin(async move {
            let opened = RabbitLane::open(&link, &source, &lane, &generations, tally).await;
            News::Opened(lane, opened.map(Box::new))
        }));
    }

    /// Looks whether there are suspects.
    fn look(&mut self, is_first: bool) {
        self.suspects = Suspects::Looking { is_asked_for: false, is_first };
        let (link, source) = (self.link.clone(), self.source.clone());
        self.opening.push(Box::pin(async move {
            let suspects = topology::suspects_name(&source.settings);
            News::Looked(match topology::count(&link, &suspects).await {
                Ok((ready, _)) => Ok(ready > 0),
                // Missing where it is not ours to declare: then there are none.
                Err(error) if error.fault == Fault::Missing => Ok(false),
                Err(error) => Err(error),
            })
        }));
    }

    fn note_looked(&mut self, found: Result<bool, BrokerError>) -> Option<LaneEvent> {
        let Suspects::Looking { is_asked_for, is_first } = self.suspects else { return None };
        match found {
            Err(error) if is_first => {
                self.suspects = Suspects::Unknown;
                return Some(LaneEvent::Failed(LaneId::suspects(), error));
            }
            found if is_asked_for || found.as_ref().is_ok_and(|there_are| *there_are) => {
                self.suspects = Suspects::Opening;
                self.open(LaneId::suspects());
            }
            Ok(_) | Err(_) => {
                let look_at = Instant::now() + self.source.settings.stall_after.max(LOOK_EVERY_MIN);
                self.suspects = Suspects::Away { look_at };
            }
        }
        None
    }
}

#[async_trait]
impl Lanes for RabbitLanes {
    async fn next(&mut self) -> LaneEvent {
        loop {
            let look_at = match self.suspects {
                Suspects::Away { look_at } => Some(look_at),
                Suspects::Looking { .. }
                | Suspects::Opening
                | Suspects::Out
                | Suspects::Unknown => None,
            };
            let news = tokio::select! {
                Some(news) = self.opening.next() => news,
                () = sleep_until(look_at.unwrap_or_else(Instant::now)), if look_at.is_some() => {
                    self.look(false);
                    continue;
                }
                // All lanes are out: the next thing to happen is a release, which needs `self`.
                else => std::future::pending().await,
            };
            match news {
                News::Looked(found) => {
                    if let Some(event) = self.note_looked(found) {
                        return event;
                    }
                }
                News::Opened(id, opened) => {
                    if id.is_suspects() {
                        self.suspects = Suspects::Out;
                    }
                    return match opened {
                        Ok(lane) => LaneEvent::Opened(id, lane),
                        Err(error) => LaneEvent::Failed(id, error),
                    };
                }
            }
        }
    }

    fn release(&mut self, lane: LaneId) {
        if lane.is_suspects() {
            match &mut self.suspects {
                Suspects::Looking { is_asked_for, .. } => return *is_asked_for = true,
                Suspects::Opening => return,
                // Their queue may be missing, and not ours to declare: that is no reason to be unwell.
                Suspects::Unknown => return self.look(true),
                Suspects::Away { .. } | Suspects::Out => self.suspects = Suspects::Opening,
            }
        }
        self.open(lane);
    }

    /// Lets what is being opened come to its end: dropped half way, it would leave a consumer at the server
    /// that is delivered to and that nobody drains.
    async fn close(&mut self) {
        let opened = async {
            while let Some(news) = self.opening.next().await {
                if let News::Opened(_, Ok(mut lane)) = news {
                    let _ = lane.wind_down().await;
                }
            }
        };
        // Without an answer there is no connection that a consumer could be left on.
        let _ = timeout(CLOSE_STEP_MAX, opened).await;
        self.opening.clear();
    }
}
