//! Publishing with confirms: a message counts as sent only when the server says that a queue has it.
//!
//! Owns the channels that are published on, and how many messages are in flight on all of them together. What
//! closes a channel takes along whatever is in flight on it, so nothing that a neighbour may have done is blamed on
//! a message: it is sent again, alone.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt;
use lapin::Channel;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

use super::beyond::{self, Beyond};
use super::connection::{Link, Live, answer};
use super::envelope::AmqpEnvelope;
use super::letter::{Letter, Parcel};
use super::outlet::{Answer, InFlight, Outlet, Sending};
use super::{fault, fit, topology};
use crate::broker::{
    BrokerError, BrokerState, Copied, Copy, Fault, Outgoing, Place, Publisher, Source,
};
use crate::config::Topology;

/// How many messages are in flight at once, on all channels together.
const IN_FLIGHT_MAX: usize = 64;
/// From this size on a body has a channel for itself: it would hold up its neighbours, and the server may refuse it.
const ALONE_FROM: usize = 1024 * 1024;
/// How long a message may take from here to its confirm.
const CONFIRM_MAX: Duration = Duration::from_secs(30);

/// Publishes over one connection.
pub(super) struct RabbitPublisher {
    link: Arc<Link>,
    beyond: Arc<Beyond>,
    permits: Semaphore,
    outlets: Mutex<Vec<(Company, Arc<Outlet>)>>,
    /// Whose turn it is to open a channel, so that a burst opens one and not one each.
    opening: tokio::sync::Mutex<()>,
}

/// With what a message shares its channel.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Company {
    /// With messages to queues, among them every copy: they hardly ever close a channel.
    Queues,
    /// With messages to exchanges: one that is not there closes the channel.
    Exchanges,
    /// With nothing.
    Alone,
}

/// What came of a message that was sent.
struct Delivered {
    live: Arc<Live>,
    /// An error in it is that of the channel.
    answered: lapin::Result<Answer>,
    headers_left_out: usize,
}

impl Company {
    fn of(letter: Letter<'_>) -> Self {
        match (letter.body().len() >= ALONE_FROM, letter.is_to_exchange()) {
            (true, _) => Self::Alone,
            (false, true) => Self::Exchanges,
            (false, false) => Self::Queues,
        }
    }

    fn window(self) -> usize {
        match self {
            Self::Queues | Self::Exchanges => IN_FLIGHT_MAX,
            Self::Alone => 1,
        }
    }
}

impl RabbitPublisher {
    pub(super) fn new(link: Arc<Link>, beyond: Arc<Beyond>) -> Self {
        let permits = Semaphore::new(IN_FLIGHT_MAX);
        let (outlets, opening) = (Mutex::default(), tokio::sync::Mutex::default());
        Self { link, beyond, permits, outlets, opening }
    }

    /// Waits until nothing is in flight, and lets nothing more in.
    pub(super) async fn close(&self) {
        let everything = u32::try_from(IN_FLIGHT_MAX).expect("the limit is a small constant");
        // What is in flight ends by its own deadline; stopping should not take that long.
        let all = timeout(CONFIRM_MAX / 3, self.permits.acquire_many(everything)).await;
        // While all are held: let go first, they would go to those who wait for one.
        self.permits.close();
        drop(all);
        self.outlets().clear();
    }

    async fn publish(&self, letter: Letter<'_>) -> Result<Copied, BrokerError> {
        let is_begun = AtomicBool::new(false);
        let published = self.publish_or_time_out(letter, &is_begun).await;
        published.map_err(|error| match is_begun.into_inner() {
            true => error,
            false => error.unsent(),
        })
    }

    async fn publish_or_time_out(
        &self,
        letter: Letter<'_>,
        is_begun: &AtomicBool,
    ) -> Result<Copied, BrokerError> {
        match timeout(CONFIRM_MAX, self.publish_on_time(letter, is_begun)).await {
            Ok(published) => published,
            Err(_) => {
                let why = match self.link.state() {
                    BrokerState::Blocked(reason) => {
                        format!("; the server takes no messages: {reason}")
                    }
                    BrokerState::Disconnected(why) => format!("; not connected: {why}"),
                    BrokerState::Connected => String::new(),
                };
                let seconds = CONFIRM_MAX.as_secs();
                let text = format!("no confirm within {seconds} s{why}");
                Err(letter.error(Fault::Unconfirmed, &text))
            }
        }
    }

    async fn publish_on_time(
        &self,
        letter: Letter<'_>,
        is_begun: &AtomicBool,
    ) -> Result<Copied, BrokerError> {
        let closed = |_| letter.error(Fault::Closed, "the connection was closed by this process");
        let _permit = self.permits.acquire().await.map_err(closed)?;
        let company = Company::of(letter);
        let mut delivered = self.deliver(letter, company, is_begun).await?;
        // The channel was closed over this message or over a neighbour; alone, it gets its own answer.
        if delivered.answered.is_err()
            && company != Company::Alone
            && delivered.live.connection.status().connected()
        {
            delivered = self.deliver(letter, Company::Alone, is_begun).await?;
        }
        let Delivered { answered, headers_left_out, .. } = delivered;
        judge(letter, answered.map_err(|error| fault::fault(&letter.to_string(), &error))?)?;
        Ok(Copied { headers_left_out })
    }

    /// Sends and waits for the answer; notes whether anything was sent.
    async fn deliver(
        &self,
        letter: Letter<'_>,
        company: Company,
        is_begun: &AtomicBool,
    ) -> Result<Delivered, BrokerError> {
        let live = self.link.live().await?;
        // While it blocks, lapin would keep whatever we hand it in memory.
        live.unblocked().await;
        let (parcel, headers_left_out) = fitted(letter, &live, letter.parcel()?)?;
        let in_flight = self.begin(letter, company, parcel).await?;
        is_begun.store(true, Ordering::Relaxed);
        let answered = in_flight.answer(|returned| letter.is(returned)).await;
        Ok(Delivered { live, answered, headers_left_out })
    }

    /// Begins on a channel with room, or on a new one.
    async fn begin(
        &self,
        letter: Letter<'_>,
        company: Company,
        parcel: Parcel,
    ) -> Result<InFlight, BrokerError> {
        let mut parcel = Some(parcel);
        loop {
            if let Some(begun) = self.begin_on_open(company, &mut parcel) {
                return Ok(begun);
            }
            let _turn = self.opening.lock().await;
            // Whoever had the turn before may have opened one for us too.
            if let Some(begun) = self.begin_on_open(company, &mut parcel) {
                return Ok(begun);
            }
            let (live, channel) = self.link.channel().await?;
            let confirms = channel.confirm_select(ConfirmSelectOptions::default());
            answer(&letter.to_string(), confirms).await?;
            let outlet = Outlet::new(live, channel, company.window());
            self.outlets().push((company, outlet));
        }
    }

    fn begin_on_open(&self, company: Company, parcel: &mut Option<Parcel>) -> Option<InFlight> {
        let mut outlets = self.outlets();
        outlets.retain(|(_, outlet)| outlet.is_usable());
        let mut fitting = outlets.iter().filter(|(theirs, _)| *theirs == company);
        fitting.find_map(|(_, outlet)| {
            outlet.begin(|channel| send(channel, parcel.take().expect("it is begun once")))
        })
    }

    fn outlets(&self) -> MutexGuard<'_, Vec<(Company, Arc<Outlet>)>> {
        self.outlets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Copies to the first of its destinations that is there.
    async fn copy_to_any(
        &self,
        copy: &Copy,
        original: &AmqpEnvelope,
    ) -> Result<Copied, BrokerError> {
        let mut last = Ok(Copied::default());
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

    /// Declares what a copy needs.
    async fn declare_for(&self, copy: &Copy) -> Result<(), BrokerError> {
        match copy.place {
            Place::Wait(wait) if !copy.source.waits.contains(&wait) => {
                beyond::declare(&self.link, &copy.source, wait).await
            }
            Place::Wait(_) | Place::Dead | Place::Source | Place::Suspects => {
                topology::prepare(&self.link, &copy.source).await.map(drop)
            }
        }
    }

    async fn copy_to(
        &self,
        copy: &Copy,
        original: &AmqpEnvelope,
        queue: &str,
    ) -> Result<Copied, BrokerError> {
        self.publish(Letter::Copy { copy, original, queue }).await
    }
}

/// From the first frame to the confirm.
fn send(channel: Channel, parcel: Parcel) -> Sending {
    async move {
        let Parcel { exchange, routing_key, properties, body } = parcel;
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let body = body.as_ref();
        channel.basic_publish(exchange, routing_key, options, body, properties).await?.await
    }
    .boxed()
}

#[async_trait]
impl Publisher for RabbitPublisher {
    async fn send(&self, message: &Outgoing) -> Result<(), BrokerError> {
        self.publish(Letter::Message(message)).await.map(drop)
    }

    async fn copy(&self, copy: &Copy) -> Result<Copied, BrokerError> {
        let Some(original) = copy.envelope.as_any().downcast_ref::<AmqpEnvelope>() else {
            let text = format!(
                "subscription `{}`: only messages that came from RabbitMQ can be copied there",
                copy.source.name
            );
            return Err(BrokerError::new(Fault::Other, text));
        };
        let declares = copy.source.settings.topology == Topology::Declare;
        if let Place::Wait(wait) = copy.place
            && declares
            && self.beyond.is_new(&copy.source, wait)
        {
            // To publish and be turned away would be a warning for each copy that comes at the same time.
            self.declare_for(copy).await?;
            self.beyond.note(&copy.source, wait);
        }
        match self.copy_to_any(copy, original).await {
            // Deleted by somebody. Where declaring is ours to do, it comes back.
            Err(error) if error.fault == Fault::Unroutable && declares => {
                self.declare_for(copy).await?;
                self.copy_to_any(copy, original).await
            }
            copied => copied,
        }
    }

    fn connections(&self) -> Option<watch::Receiver<u64>> {
        Some(self.link.made())
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

fn judge(letter: Letter<'_>, answer: Answer) -> Result<(), BrokerError> {
    match answer {
        Answer::Stored => Ok(()),
        Answer::Returned(said) => {
            let text = format!(
                "no queue took it ({said}); declare the queue, or bind one to the exchange"
            );
            Err(letter.error(Fault::Unroutable, &text))
        }
        Answer::NotStored => Err(letter.error(
            Fault::Unconfirmed,
            "the server could not store it; is the queue full, or without a majority of its nodes?",
        )),
    }
}

/// What fits into one frame, and how many of the user's headers were left out for it: the server closes the
/// connection over a longer one, with everything that is in flight.
///
/// A message of the user's is refused instead, while somebody is there who can shorten it.
fn fitted(
    letter: Letter<'_>,
    live: &Live,
    mut parcel: Parcel,
) -> Result<(Parcel, usize), BrokerError> {
    let frame_max = usize::try_from(live.connection.configuration().frame_max()).unwrap_or(0);
    if frame_max == 0 {
        return Ok((parcel, 0));
    }
    let added = fit::added_in(parcel.routing_key.as_str());
    let mut headers_left_out = 0;
    if matches!(letter, Letter::Copy { .. }) {
        (parcel.properties, headers_left_out) =
            fit::fit(parcel.properties, frame_max.saturating_sub(added));
    }
    let length = fit::framed_length(&parcel.properties) + added;
    if length <= frame_max {
        return Ok((parcel, headers_left_out));
    }
    let text = format!(
        "its headers take {length} bytes with what the server adds to them, and a frame {frame_max}; shorten them, or raise the server's frame_max"
    );
    Err(letter.error(Fault::TooLarge, &text))
}
