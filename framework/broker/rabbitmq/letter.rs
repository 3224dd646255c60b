//! What is published: a message of the user's, or a copy of one that was delivered.
//!
//! Owns where it goes and what it carries. Sends nothing.

use std::fmt;
use std::time::SystemTime;

use bytes::Bytes;
use lapin::BasicProperties;
use lapin::message::BasicReturnMessage;
use lapin::types::ShortString;

use super::copies;
use super::envelope::AmqpEnvelope;
use super::topology::{abbreviated, short};
use crate::broker::{BrokerError, Copy, Envelope, Fault, Outgoing, SharedEnvelope, Target};

/// Something to publish. Reads as what is attempted.
#[derive(Clone, Copy)]
pub(super) enum Letter<'a> {
    Message(&'a Outgoing),
    Copy { copy: &'a Copy, original: &'a AmqpEnvelope, queue: &'a str },
}

/// A letter as lapin takes it.
pub(super) struct Parcel {
    pub(super) exchange: ShortString,
    pub(super) routing_key: ShortString,
    pub(super) properties: BasicProperties,
    pub(super) body: Body,
}

/// A payload that is shared with whoever wrote or received it.
pub(super) enum Body {
    Written(Bytes),
    Received(SharedEnvelope),
}

impl AsRef<[u8]> for Body {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Written(body) => body,
            Self::Received(envelope) => envelope.body(),
        }
    }
}

impl<'a> Letter<'a> {
    pub(super) fn parcel(self) -> Result<Parcel, BrokerError> {
        let explain = |error: BrokerError| self.error(Fault::Invalid, &error.text);
        let (exchange, routing_key) = self.address()?;
        let (properties, body) = match self {
            Self::Message(message) => {
                let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
                let made = copies::properties_of(message, now.unwrap_or_default().as_secs());
                (made.map_err(explain)?, Body::Written(message.body.clone()))
            }
            Self::Copy { copy, original, .. } => (
                copies::properties_of_copy(&original.delivery.properties, &copy.stamps),
                Body::Received(copy.envelope.clone()),
            ),
        };
        Ok(Parcel {
            exchange: short(exchange).map_err(explain)?,
            routing_key: short(routing_key).map_err(explain)?,
            properties,
            body,
        })
    }

    /// The exchange and the routing key.
    fn address(self) -> Result<(&'a str, &'a str), BrokerError> {
        match self {
            Self::Copy { queue, .. } => Ok(("", queue)),
            Self::Message(message) => match &message.target {
                Target::Queue(queue) => Ok(("", queue)),
                Target::Exchange { exchange, routing_key } => Ok((exchange, routing_key)),
                Target::Topic(_) => Err(self
                    .error(Fault::Invalid, "RabbitMQ has no topics; use a queue or an exchange")),
            },
        }
    }

    pub(super) fn is_to_exchange(self) -> bool {
        self.address().is_ok_and(|(exchange, _)| !exchange.is_empty())
    }

    pub(super) fn body(&self) -> &'a [u8] {
        match self {
            Self::Message(message) => &message.body,
            Self::Copy { original, .. } => &original.delivery.data,
        }
    }

    /// Whether this is the message that came back. One that looks the same in all of this is the same.
    pub(super) fn is(self, returned: &BasicReturnMessage) -> bool {
        let id = match self {
            Self::Message(message) => Some(message.id.as_str()),
            Self::Copy { original, .. } => original.id(),
        };
        let returned = &returned.delivery;
        let address = (returned.exchange.as_str(), returned.routing_key.as_str());
        let returned_id = returned.properties.message_id().as_ref().map(ShortString::as_str);
        self.address().is_ok_and(|ours| ours == address)
            && id == returned_id
            && self.body() == returned.data
    }

    pub(super) fn error(self, fault: Fault, what: &str) -> BrokerError {
        BrokerError::new(fault, format!("{self}: {what}"))
    }
}

impl fmt::Display for Letter<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Message(message) => {
                write!(f, "publishing message `{}` to {}", abbreviated(&message.id), message.target)
            }
            Self::Copy { copy, queue, .. } => {
                let subscription = &copy.source.name;
                write!(f, "subscription `{subscription}`: copying a message to queue `{queue}`")
            }
        }
    }
}
