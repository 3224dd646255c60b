//! What lapin and the server say, as our errors.
//!
//! Owns which answers of the server mean which [`Fault`]. The url never gets here, so neither does a password.

use std::error::Error as _;
use std::io;

use lapin::{Error, ErrorKind};

use crate::broker::{BrokerError, Fault};

/// The codes of AMQP 0-9-1 that RabbitMQ answers with.
mod code {
    pub(super) const ACCESS_REFUSED: u16 = 403;
    pub(super) const NOT_FOUND: u16 = 404;
    pub(super) const RESOURCE_LOCKED: u16 = 405;
    pub(super) const PRECONDITION_FAILED: u16 = 406;
    pub(super) const NOT_ALLOWED: u16 = 530;
}

/// `error` while doing `attempt`, as a fault that reads: what was tried, what came back, what to do.
pub(super) fn fault(attempt: &str, error: &Error) -> BrokerError {
    let said = said(error);
    let (fault, advice) = judge(error, &said);
    match advice {
        Some(advice) => BrokerError::new(fault, format!("{attempt}: {said}; {advice}")),
        None => BrokerError::new(fault, format!("{attempt}: {said}")),
    }
}

/// The server's own words where there are any; else the client's with their cause.
pub(super) fn said(error: &Error) -> String {
    match error.kind() {
        ErrorKind::ProtocolError(answer) => answer.get_message().to_string(),
        ErrorKind::IOError(cause) => with_causes(cause),
        ErrorKind::InvalidChannelState(..) | ErrorKind::InvalidChannel(_) => {
            "the channel is closed".to_owned()
        }
        ErrorKind::InvalidConnectionState(_) => "the connection is closed".to_owned(),
        _ => error.to_string(),
    }
}

fn judge(error: &Error, said: &str) -> (Fault, Option<&'static str>) {
    match error.kind() {
        ErrorKind::ProtocolError(answer) => judge_answer(answer.get_id(), said),
        ErrorKind::AuthProviderError(_) => (Fault::Refused, Some(CREDENTIALS)),
        // Rustls says so of an answer that is not TLS at all: the port of amqp://, as a rule.
        ErrorKind::IOError(cause)
            if cause.kind() == io::ErrorKind::InvalidData && said.contains("corrupt message") =>
        {
            (Fault::Refused, Some(NO_TLS))
        }
        // What rustls refuses arrives as invalid data.
        ErrorKind::IOError(cause) if cause.kind() == io::ErrorKind::InvalidData => {
            (Fault::Refused, Some(CERTIFICATES))
        }
        ErrorKind::InvalidProtocolVersion(_) => {
            (Fault::Refused, Some("is this a RabbitMQ that speaks AMQP 0-9-1?"))
        }
        _ => (Fault::Unreachable, None),
    }
}

const CREDENTIALS: &str =
    "check the user, its password and its permissions, and the url they stand in";
const CERTIFICATES: &str = "check that the url's host stands in the server's certificate, and tls.ca, tls.cert and tls.key";
const NO_TLS: &str = "this port does not speak TLS: write the port that does (5671 unless the server says otherwise), or amqp:// for this one";
const OTHER_QUEUE: &str = "the queue is there with other properties: delete it, or set `arguments` and `queue_type` to what is there, or `topology = \"verify\"` to use it as it is";
const NO_SUCH_QUEUE: &str =
    "a queue of this `queue_type` cannot have these `arguments`: correct one of them";
const VHOST: &str =
    "check the url's virtual host (`/` is written %2f) and the user's permissions for it";

fn judge_answer(code: u16, said: &str) -> (Fault, Option<&'static str>) {
    match code {
        code::ACCESS_REFUSED => (Fault::Refused, Some(CREDENTIALS)),
        // A limit of connections passes; a virtual host that is not there does not appear by waiting.
        code::NOT_ALLOWED if said.contains("limit") => {
            (Fault::Unreachable, Some("raise the limit of connections"))
        }
        code::NOT_ALLOWED => (Fault::Refused, Some(VHOST)),
        code::NOT_FOUND => (Fault::Missing, None),
        code::RESOURCE_LOCKED => (Fault::Other, Some("another connection holds it exclusively")),
        code::PRECONDITION_FAILED if said.contains("message size") => {
            (Fault::TooLarge, Some("raise the server's max_message_size, or send less"))
        }
        code::PRECONDITION_FAILED if said.contains("for queue") => {
            let is_there = said.contains("inequivalent");
            (Fault::Mismatch, Some(if is_there { OTHER_QUEUE } else { NO_SUCH_QUEUE }))
        }
        code::PRECONDITION_FAILED => (Fault::Mismatch, None),
        _ => (Fault::Unreachable, None),
    }
}

fn with_causes(error: &io::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
