//! Publishing with confirms: a message counts as sent only when the server says that a queue has it.
//!
//! Owns the channels that are published on. One message at a time on each of them, many channels at once.
//! lapin attaches a returned message to whichever confirm of its channel completes next, which with several
//! in flight may be a neighbour's: the lost message would read as stored. On a channel of its own it cannot,
//! and a publish that closes its channel (a foreign `user-id`, an exchange that is not there) takes no
//! neighbour along. Measured against one channel with as many in flight: 25 instead of 32 thousand a second.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Channel, Confirmation};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::connection::{Link, Live, answer};
use super::envelope::AmqpEnvelope;
use super::topology::{self, abbreviated, short};
use super::{copies, fault};
use crate::broker::{BrokerError, Copy, Fault, Outgoing, Place, Publisher, Source, Target};
use crate::config::Topology;

/// How many messages are in flight at once, each on a channel of its own.
const IN_FLIGHT_MAX: usize = 64;
/// How long a message may take from here to its confirm.
const CONFIRM_MAX: Duration = Duration::from_secs(30);
/// A frame's own bytes, and those of a content header beside its properties.
const FRAME_OVERHEAD: usize = 8 + 14;

/// Publishes over one connection.
pub(super) struct RabbitPublisher {
    link: Arc<Link>,
    permits: Semaphore,
    idle: Mutex<Vec<Outlet>>,
}

/// A channel in confirm mode on which nothing is in flight.
struct Outlet {
    live: Arc<Live>,
    channel: Channel,
}

/// A message with its way.
struct Parcel<'a> {
    exchange: &'a str,
    routing_key: &'a str,
    properties: BasicProperties,
    body: &'a [u8],
}

impl RabbitPublisher {
    pub(super) fn new(link: Arc<Link>) -> Self {
        Self { link, permits: Semaphore::new(IN_FLIGHT_MAX), idle: Mutex::default() }
    }

    /// Waits until nothing is in flight, and lets nothing more in.
    pub(super) async fn close(&self) {
        let everything = u32::try_from(IN_FLIGHT_MAX).expect("the limit is a small constant");
        // What is in flight ends by its own deadline; stopping should not take that long.
        let _ = timeout(CONFIRM_MAX / 3, self.permits.acquire_many(everything)).await;
        self.permits.close();
        self.idle().clear();
    }

    async fn publish(&self, attempt: &str, parcel: Parcel<'_>) -> Result<(), BrokerError> {
        match timeout(CONFIRM_MAX, self.publish_on_time(attempt, parcel)).await {
            Ok(published) => published,
            Err(_) => Err(BrokerError::new(
                Fault::Unconfirmed,
                format!("{attempt}: no confirm within {} s{}", CONFIRM_MAX.as_secs(), self.why()),
            )),
        }
    }

    fn why(&self) -> String {
        match self.link.state() {
            crate::broker::BrokerState::Blocked(reason) => {
                format!("; the server takes no messages: {reason}")
            }
            _ => String::new(),
        }
    }

    async fn publish_on_time(&self, attempt: &str, parcel: Parcel<'_>) -> Result<(), BrokerError> {
        let closed = |_| {
            BrokerError::new(
                Fault::Unreachable,
                format!("{attempt}: the connection was closed by this process"),
            )
        };
        let _permit = self.permits.acquire().await.map_err(closed)?;
        let outlet = self.outlet(attempt).await?;
        // While it blocks, lapin would keep whatever we hand it in memory.
        outlet.live.unblocked().await;
        refuse_long_headers(attempt, &outlet, &parcel.properties)?;
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let sent = outlet.channel.basic_publish(
            short(parcel.exchange)?,
            short(parcel.routing_key)?,
            options,
            parcel.body,
            parcel.properties,
        );
        let confirm = sent.await.map_err(|error| fault::fault(attempt, &error))?;
        let confirmation = confirm.await.map_err(|error| fault::fault(attempt, &error))?;
        // Only a channel whose message was answered is used again.
        self.idle().push(outlet);
        judge(attempt, confirmation)
    }

    /// An idle channel of the present connection, or a new one.
    async fn outlet(&self, attempt: &str) -> Result<Outlet, BrokerError> {
        loop {
            let idle = self.idle().pop();
            match idle {
                Some(outlet) if outlet.channel.status().connected() => return Ok(outlet),
                Some(_) => {}
                None => break,
            }
        }
        let (live, channel) = self.link.channel().await?;
        answer(attempt, channel.confirm_select(ConfirmSelectOptions::default())).await?;
        Ok(Outlet { live, channel })
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Outlet>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Copies to the first of its destinations that is there.
    async fn copy_to_any(&self, copy: &Copy, original: &AmqpEnvelope) -> Result<(), BrokerError> {
        let mut last = Ok(());
        for queue in destinations(&copy.source, copy.place) {
            last = self.copy_to(copy, original, &queue).await;
            match &last {
                // Nobody declared this one; the next one is longer, which is later but never early.
                Err(error) if error.fault == Fault::Unroutable => {}
                _ => break,
            }
        }
        last
    }

    async fn copy_to(
        &self,
        copy: &Copy,
        original: &AmqpEnvelope,
        queue: &str,
    ) -> Result<(), BrokerError> {
        let attempt =
            format!("subscription `{}`: copying a message to queue `{queue}`", copy.source.name);
        let properties = copies::properties_of_copy(&original.delivery.properties, &copy.stamps);
        let parcel =
            Parcel { exchange: "", routing_key: queue, properties, body: &original.delivery.data };
        self.publish(&attempt, parcel).await
    }
}

#[async_trait]
impl Publisher for RabbitPublisher {
    async fn send(&self, message: &Outgoing) -> Result<(), BrokerError> {
        let attempt =
            format!("publishing message `{}` to {}", abbreviated(&message.id), message.target);
        let (exchange, routing_key) = match &message.target {
            Target::Queue(queue) => ("", queue.as_str()),
            Target::Exchange { exchange, routing_key } => (exchange.as_str(), routing_key.as_str()),
            Target::Topic(_) => {
                return Err(BrokerError::new(
                    Fault::Other,
                    format!("{attempt}: RabbitMQ has no topics; use a queue or an exchange"),
                ));
            }
        };
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let properties = copies::properties_of(message, now.as_secs())
            .map_err(|error| BrokerError::new(error.fault, format!("{attempt}: {}", error.text)))?;
        self.publish(&attempt, Parcel { exchange, routing_key, properties, body: &message.body })
            .await
    }

    async fn copy(&self, copy: &Copy) -> Result<(), BrokerError> {
        let Some(original) = copy.envelope.as_any().downcast_ref::<AmqpEnvelope>() else {
            let text = format!(
                "subscription `{}`: only messages that came from RabbitMQ can be copied there",
                copy.source.name
            );
            return Err(BrokerError::new(Fault::Other, text));
        };
        match self.copy_to_any(copy, original).await {
            // Deleted by somebody. Where declaring is ours to do, it comes back.
            Err(error)
                if error.fault == Fault::Unroutable
                    && copy.source.settings.topology == Topology::Declare =>
            {
                topology::prepare(&self.link, &copy.source).await?;
                self.copy_to_any(copy, original).await
            }
            copied => copied,
        }
    }
}

/// Where a copy may go: one queue, or under `topology = "none"` the wait and all longer ones.
fn destinations(source: &Source, place: Place) -> Vec<String> {
    let settings = &source.settings;
    match place {
        Place::Source => vec![topology::queue_name(settings).to_owned()],
        Place::Dead => vec![topology::dead_name(settings)],
        Place::Suspects => vec![topology::suspects_name(settings)],
        Place::Wait(wait) => {
            let longer = source
                .waits
                .iter()
                .filter(|other| **other > wait && settings.topology == Topology::None);
            [wait].iter().chain(longer).map(|wait| topology::wait_name(settings, *wait)).collect()
        }
    }
}

fn judge(attempt: &str, confirmation: Confirmation) -> Result<(), BrokerError> {
    let (fault, text) = match confirmation {
        Confirmation::Ack(None) => return Ok(()),
        Confirmation::Ack(Some(returned)) | Confirmation::Nack(Some(returned)) => {
            let said = format!("{} {}", returned.reply_code, returned.reply_text);
            (
                Fault::Unroutable,
                format!(
                    "no queue took it ({said}); declare the queue, or bind one to the exchange"
                ),
            )
        }
        Confirmation::Nack(None) => (
            Fault::Unconfirmed,
            "the server could not store it; is the queue full, or without a majority of its nodes?"
                .to_owned(),
        ),
        Confirmation::NotRequested => {
            (Fault::Unconfirmed, "the channel was not in confirm mode".to_owned())
        }
    };
    Err(BrokerError::new(fault, format!("{attempt}: {text}")))
}

/// Properties must fit into one frame; the server closes the connection otherwise, with everything that is in flight.
fn refuse_long_headers(
    attempt: &str,
    outlet: &Outlet,
    properties: &BasicProperties,
) -> Result<(), BrokerError> {
    let length = copies::encoded_length(properties) + FRAME_OVERHEAD;
    let length_max = outlet.live.connection.configuration().frame_max();
    match usize::try_from(length_max) {
        Ok(length_max) if length_max > 0 && length > length_max => Err(BrokerError::new(
            Fault::TooLarge,
            format!(
                "{attempt}: its headers take {length} bytes, and a frame {length_max}; shorten them, or raise the server's frame_max"
            ),
        )),
        _ => Ok(()),
    }
}
