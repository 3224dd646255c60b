//! Finds a value in a message: in a header, or by a JSON pointer in its payload.

use std::borrow::Cow;

use sha2::{Digest, Sha256};

use crate::config::Pointer;
use crate::envelope::{Envelope, HeaderValue};

/// The text or number of a header.
pub(super) fn header(envelope: &dyn Envelope, name: &str) -> Option<String> {
    match envelope.header(name)? {
        HeaderValue::Text(text) => Some(text.to_owned()),
        HeaderValue::Number(number) => Some(number.to_string()),
        HeaderValue::Bytes(_) | HeaderValue::Other(_) => None,
    }
}

/// The text, number or boolean that `pointer` (RFC 6901) leads to.
pub(super) fn pointer(envelope: &dyn Envelope, pointer: &Pointer) -> Option<String> {
    let document: serde_json::Value = serde_json::from_slice(envelope.body()).ok()?;
    match document.pointer(pointer.as_str())? {
        serde_json::Value::String(text) => Some(text.clone()),
        value @ (serde_json::Value::Number(_) | serde_json::Value::Bool(_)) => {
            Some(value.to_string())
        }
        _ => None,
    }
}

/// The SHA-256 of the payload, in hexadecimal.
pub(super) fn fingerprint(envelope: &dyn Envelope) -> String {
    hash(envelope.body())
}

/// The routing key or the record's key; one that is no text in hexadecimal.
pub(super) fn key(envelope: &dyn Envelope) -> Option<Cow<'_, str>> {
    let key = envelope.key()?;
    match std::str::from_utf8(key) {
        Ok(text) => Some(text.into()),
        Err(_) => Some(key.iter().map(|byte| format!("{byte:02x}")).collect()),
    }
}

/// A SHA-256 in hexadecimal.
pub(super) fn hash(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}
