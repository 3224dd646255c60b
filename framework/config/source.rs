//! Where a key, an id or a type is taken from in a message: `/json/pointer`, `header:NAME`, `routing-key`, ...
//!
//! Only names places; looking there is the pipeline's work.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer};

/// A JSON pointer (RFC 6901), checked: begins with `/`, and `~` is followed by `0` or `1`.
///
/// The empty pointer, the whole document, is refused: as a key or an id it is never what is meant.
///
/// ```
/// use redeliver::config::KeySource;
///
/// let Ok(KeySource::Pointer(pointer)) = "/customer/id".parse() else { panic!("it is a pointer") };
/// let payload = serde_json::json!({ "customer": { "id": 42 } });
/// assert_eq!(payload.pointer(pointer.as_str()), Some(&42.into()));
/// assert!("/a~b".parse::<KeySource>().is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pointer(String);

impl Pointer {
    /// The pointer as it is written, for `serde_json::Value::pointer`.
    ///
    /// ```
    /// use redeliver::config::KeySource;
    ///
    /// let Ok(KeySource::Pointer(pointer)) = "/a~1b".parse() else { panic!("it is a pointer") };
    /// assert_eq!(pointer.as_str(), "/a~1b", "its escapes are still there");
    /// assert_eq!(serde_json::json!({ "a/b": 7 }).pointer(pointer.as_str()), Some(&7.into()));
    /// ```
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Where the key of a message is: what orders it, or what is locked.
///
/// ```
/// use redeliver::config::KeySource;
///
/// assert_eq!("header:tenant".parse(), Ok(KeySource::Header("tenant".to_owned())));
/// assert!("tenant".parse::<KeySource>().is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum KeySource {
    /// `/json/pointer` into the payload.
    Pointer(Pointer),
    /// `header:NAME`.
    Header(String),
    /// `routing-key`: the routing key on RabbitMQ, the record's key on Kafka.
    RoutingKey,
}

/// Where the id of a message is.
///
/// ```
/// use redeliver::config::{Config, IdSource};
///
/// let config = Config::from_toml(r#"
///     [brokers.main]
///     kind = "memory"
///     [subscriptions.orders]
///     broker = "main"
///     id = "header:X-Request-Id"
/// "#)?;
/// assert_eq!(config.subscriptions["orders"].id, IdSource::Header("X-Request-Id".to_owned()));
/// # Ok::<(), redeliver::config::Problems>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum IdSource {
    /// `message-id`: the broker's own property.
    #[default]
    MessageId,
    /// `header:NAME`.
    Header(String),
    /// `/json/pointer` into the payload.
    Pointer(Pointer),
    /// `payload`: a hash of it, so that equal messages are one.
    Payload,
}

/// Where the type of a message is.
///
/// ```
/// use redeliver::config::{Config, TypeSource};
///
/// let config = Config::from_toml(r#"
///     [brokers.main]
///     kind = "memory"
///     [subscriptions.orders]
///     broker = "main"
///     type = "/event"
/// "#)?;
/// let Some(TypeSource::Pointer(pointer)) = &config.subscriptions["orders"].message_type else {
///     panic!("it was given");
/// };
/// assert_eq!(pointer.as_str(), "/event");
/// # Ok::<(), redeliver::config::Problems>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum TypeSource {
    /// `property`: the broker's own property.
    #[default]
    Property,
    /// `header:NAME`.
    Header(String),
    /// `/json/pointer` into the payload.
    Pointer(Pointer),
}

/// What the three have in common.
enum Place {
    Pointer(Pointer),
    Header(String),
}

impl FromStr for KeySource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "routing-key" => Ok(Self::RoutingKey),
            _ => Ok(match place(text, "\"routing-key\"")? {
                Place::Pointer(pointer) => Self::Pointer(pointer),
                Place::Header(name) => Self::Header(name),
            }),
        }
    }
}

impl FromStr for IdSource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "message-id" => Ok(Self::MessageId),
            "payload" => Ok(Self::Payload),
            _ => Ok(match place(text, "\"message-id\", \"payload\"")? {
                Place::Pointer(pointer) => Self::Pointer(pointer),
                Place::Header(name) => Self::Header(name),
            }),
        }
    }
}

impl FromStr for TypeSource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "property" => Ok(Self::Property),
            _ => Ok(match place(text, "\"property\"")? {
                Place::Pointer(pointer) => Self::Pointer(pointer),
                Place::Header(name) => Self::Header(name),
            }),
        }
    }
}

fn place(text: &str, words: &str) -> Result<Place, String> {
    if let Some(name) = text.strip_prefix("header:") {
        // 255 bytes: the longest name AMQP can carry.
        let fits = (1..=255).contains(&name.len()) && !name.contains(char::is_whitespace);
        return match fits {
            true => Ok(Place::Header(name.to_owned())),
            false => Err(format!(
                "is {text:?}, whose header name is empty, too long or has spaces; write \"header:NAME\""
            )),
        };
    }
    let Some(rest) = text.strip_prefix('/') else {
        return Err(format!(
            "is {text:?}; use {words}, \"header:NAME\" or a JSON pointer like \"/customer_id\""
        ));
    };
    let escapes_are_whole = rest.split('~').skip(1).all(|after| after.starts_with(['0', '1']));
    match escapes_are_whole {
        true => Ok(Place::Pointer(Pointer(text.to_owned()))),
        false => Err(format!(
            "is {text:?}, where `~` stands alone; in a JSON pointer write ~0 for ~ and ~1 for /"
        )),
    }
}

impl fmt::Display for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pointer(pointer) => f.write_str(pointer.as_str()),
            Self::Header(name) => write!(f, "header:{name}"),
            Self::RoutingKey => f.write_str("routing-key"),
        }
    }
}

impl fmt::Display for IdSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MessageId => f.write_str("message-id"),
            Self::Header(name) => write!(f, "header:{name}"),
            Self::Pointer(pointer) => f.write_str(pointer.as_str()),
            Self::Payload => f.write_str("payload"),
        }
    }
}

impl fmt::Display for TypeSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Property => f.write_str("property"),
            Self::Header(name) => write!(f, "header:{name}"),
            Self::Pointer(pointer) => f.write_str(pointer.as_str()),
        }
    }
}

macro_rules! read_as_text {
    ($($name:ty),*) => {$(
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}
read_as_text!(KeySource, IdSource, TypeSource);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_bare_name_is_no_place() {
        for text in
            ["", "customer_id", "Header:x", "header:", "header: x", "/a~b", "/~2", "routing_key"]
        {
            assert!(text.parse::<KeySource>().is_err(), "{text:?} was accepted");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_back(text in "(header:[a-z-]{1,9}|(/[a-z0-9]{0,5}(~0|~1)?){1,3}|routing-key|message-id|payload|property)") {
            if let Ok(key) = text.parse::<KeySource>() { prop_assert_eq!(key.to_string(), text.clone()); }
            if let Ok(id) = text.parse::<IdSource>() { prop_assert_eq!(id.to_string(), text.clone()); }
            if let Ok(from) = text.parse::<TypeSource>() { prop_assert_eq!(from.to_string(), text.clone()); }
        }

        #[test]
        fn any_text_is_read_or_refused_without_a_panic(text in ".*") {
            let _ = (text.parse::<KeySource>(), text.parse::<IdSource>(), text.parse::<TypeSource>());
        }
    }
}
