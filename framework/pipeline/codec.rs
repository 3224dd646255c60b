//! From a payload's bytes to a value.
//!
//! Owns the choice of a codec by content type. Never sees headers or policies.

use std::error::Error as StdError;

use bytes::Bytes;
use serde::de::DeserializeOwned;

use crate::envelope::Envelope;

/// Turns payloads into values of type `T`.
///
/// ```
/// use redeliver::{Codec, DecodeError};
///
/// /// Two numbers with a comma between.
/// struct Pair;
///
/// impl Codec<(u32, u32)> for Pair {
///     fn accepts(&self, content_type: Option<&str>) -> bool {
///         content_type == Some("text/x-pair")
///     }
///
///     fn decode(&self, body: Option<&[u8]>) -> Result<(u32, u32), DecodeError> {
///         let text = std::str::from_utf8(body.unwrap_or_default())?;
///         let (left, right) = text.split_once(',').ok_or("no comma")?;
///         Ok((left.parse()?, right.parse()?))
///     }
/// }
/// # assert_eq!(Pair.decode(Some(b"1,2")).unwrap(), (1, 2));
/// ```
pub trait Codec<T>: Send + Sync + 'static {
    /// Whether it is for messages of this content type; `None` for a message without one.
    fn accepts(&self, content_type: Option<&str>) -> bool;

    /// Decodes a payload. `body` is `None` for a record without a value (Kafka's tombstone).
    ///
    /// # Errors
    /// What is wrong with the payload; the message becomes a dead letter, `undecodable`.
    fn decode(&self, body: Option<&[u8]>) -> Result<T, DecodeError>;
}

/// Why a payload could not be decoded. Must not quote the payload.
///
/// ```
/// use redeliver::{Codec, DecodeError, Json};
///
/// let error: DecodeError = Codec::<u32>::decode(&Json, Some(b"\"secret\"")).unwrap_err();
/// assert_eq!(error.to_string(), "the body is JSON, but not of the expected shape (line 1, column 8)");
/// ```
pub type DecodeError = Box<dyn StdError + Send + Sync>;

/// JSON by serde, for messages without a content type and of every JSON type (RFC 6838 `+json`
/// included). Nesting deeper than 128 is refused (serde_json's limit).
///
/// ```
/// use redeliver::{Codec, Json};
///
/// let ids: Vec<u32> = Json.decode(Some(b"[1, 2]"))?;
/// assert_eq!(ids, [1, 2]);
/// # Ok::<(), redeliver::DecodeError>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Json;

impl<T: DeserializeOwned> Codec<T> for Json {
    fn accepts(&self, content_type: Option<&str>) -> bool {
        let Some(content_type) = content_type else { return true };
        let media = content_type.split(';').next().unwrap_or_default().trim();
        media.eq_ignore_ascii_case("application/json")
            || media.eq_ignore_ascii_case("text/json")
            || media
                .get(media.len().saturating_sub(5)..)
                .is_some_and(|end| end.eq_ignore_ascii_case("+json"))
    }

    fn decode(&self, body: Option<&[u8]>) -> Result<T, DecodeError> {
        match body {
            Some([]) => Err("the body is empty".into()),
            Some(body) => parse(body).map_err(without_quotes),
            // No value at all: what a JSON null would be, `None` for an `Option`.
            None => serde_json::from_slice(b"null").map_err(|_| "the record has no value".into()),
        }
    }
}

/// Looks at once whether the whole is UTF-8, which is a twentieth of what it costs to look at each string by itself:
/// 2,700 of the 14,700 instructions that 512 bytes take.
fn parse<T: DeserializeOwned>(body: &[u8]) -> serde_json::Result<T> {
    match std::str::from_utf8(body) {
        Ok(text) => serde_json::from_str(text),
        // In what nobody reads it may be anything.
        Err(_) => serde_json::from_slice(body),
    }
}

/// serde_json quotes wrong values; payloads never show in errors, so only kind and place do.
fn without_quotes(error: serde_json::Error) -> DecodeError {
    use serde_json::error::Category;
    let what = match error.classify() {
        Category::Syntax => "is not JSON",
        Category::Eof => "ends in the middle of a JSON value",
        Category::Data => "is JSON, but not of the expected shape",
        Category::Io => "could not be read",
    };
    format!("the body {what} (line {}, column {})", error.line(), error.column()).into()
}

/// Bytes as they are, whatever the content type.
///
/// ```
/// use redeliver::{Codec, Raw};
///
/// let bytes: Vec<u8> = Raw.decode(Some(b"\xff"))?;
/// assert_eq!(bytes, [0xff]);
/// # Ok::<(), redeliver::DecodeError>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Raw;

impl Codec<Bytes> for Raw {
    fn accepts(&self, _: Option<&str>) -> bool {
        true
    }

    fn decode(&self, body: Option<&[u8]>) -> Result<Bytes, DecodeError> {
        Ok(Bytes::copy_from_slice(body.unwrap_or_default()))
    }
}

impl Codec<Vec<u8>> for Raw {
    fn accepts(&self, _: Option<&str>) -> bool {
        true
    }

    fn decode(&self, body: Option<&[u8]>) -> Result<Vec<u8>, DecodeError> {
        Ok(body.unwrap_or_default().to_vec())
    }
}

/// The codecs of one handler, asked in order.
///
/// ```
/// use redeliver::{Codec, Codecs, DecodeError, Json};
///
/// /// A number in decimal.
/// struct Text;
///
/// impl Codec<u32> for Text {
///     fn accepts(&self, content_type: Option<&str>) -> bool {
///         content_type == Some("text/plain")
///     }
///
///     fn decode(&self, body: Option<&[u8]>) -> Result<u32, DecodeError> {
///         Ok(std::str::from_utf8(body.unwrap_or_default())?.trim().parse()?)
///     }
/// }
///
/// let codecs: Codecs<u32> = Codecs::new(Json).or(Text);
/// # use redeliver::{Delivery, Handled, with_codecs};
/// # use actix::prelude::*;
/// # struct Count;
/// # impl Actor for Count { type Context = Context<Self>; }
/// # impl Handler<Delivery<u32>> for Count {
/// #     type Result = Handled;
/// #     fn handle(&mut self, _: Delivery<u32>, _: &mut Context<Self>) -> Handled { Ok(()) }
/// # }
/// let handlers = with_codecs(codecs, || Count);
/// # use redeliver::{Message, Service, config::Config, testing::TestService};
/// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
/// let mut test = TestService::start(Service::builder(config).subscribe("orders", handlers))?;
/// test.publish("orders", Message::bytes(" 7\n").content_type("text/plain"));
/// assert_eq!(test.log(), ["orders-1: attempt 1 handled"]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Codecs<T> {
    codecs: Vec<Box<dyn Codec<T>>>,
}

impl<T: 'static> Codecs<T> {
    /// Only this one.
    ///
    /// ```
    /// # use redeliver::{Delivery, Handled, with_codecs};
    /// # use actix::prelude::*;
    /// # use redeliver::{Message, Service, config::Config, testing::TestService};
    /// use redeliver::{Codecs, Json};
    ///
    /// # struct Count;
    /// # impl Actor for Count { type Context = Context<Self>; }
    /// # impl Handler<Delivery<u32>> for Count {
    /// #     type Result = Handled;
    /// #     fn handle(&mut self, _: Delivery<u32>, _: &mut Context<Self>) -> Handled { Ok(()) }
    /// # }
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
    /// let handlers = with_codecs(Codecs::<u32>::new(Json), || Count);
    /// let mut test = TestService::start(Service::builder(config).subscribe("orders", handlers))?;
    /// test.publish("orders", Message::bytes("7").content_type("text/plain"));
    /// assert_eq!(test.log(), [
    ///     "orders-1: dead-lettered: undecodable: no codec takes content type `text/plain`",
    /// ]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn new(codec: impl Codec<T>) -> Self {
        Self { codecs: vec![Box::new(codec)] }
    }

    /// Where those before take a content type not, this one.
    ///
    /// ```
    /// # use redeliver::{Delivery, Handled, with_codecs};
    /// # use actix::prelude::*;
    /// # use redeliver::{Message, Service, config::Config, testing::TestService};
    /// use redeliver::{Codecs, Json, Raw};
    ///
    /// # struct Count;
    /// # impl Actor for Count { type Context = Context<Self>; }
    /// # impl Handler<Delivery<Vec<u8>>> for Count {
    /// #     type Result = Handled;
    /// #     fn handle(&mut self, _: Delivery<Vec<u8>>, _: &mut Context<Self>) -> Handled { Ok(()) }
    /// # }
    /// # let config = Config::from_toml("[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"")?;
    /// let handlers = with_codecs(Codecs::<Vec<u8>>::new(Json).or(Raw), || Count);
    /// let mut test = TestService::start(Service::builder(config).subscribe("orders", handlers))?;
    /// test.publish("orders", Message::bytes("7").content_type("image/png"));
    /// test.publish("orders", Message::bytes("7").content_type("application/json"));
    /// assert_eq!(test.log()[0], "orders-1: attempt 1 handled");
    /// // The first that takes the type decides: what it cannot decode is not given to the next.
    /// assert!(test.log()[1].starts_with("orders-2: dead-lettered: undecodable"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn or(mut self, codec: impl Codec<T>) -> Self {
        self.codecs.push(Box::new(codec));
        self
    }

    #[inline]
    pub(crate) fn decode(&self, envelope: &dyn Envelope, body: &[u8]) -> Result<T, DecodeError> {
        let content_type = envelope.content_type();
        for codec in &self.codecs {
            if codec.accepts(content_type) {
                return codec.decode((!envelope.is_tombstone()).then_some(body));
            }
        }
        let shown: String = content_type.unwrap_or("(none)").chars().take(100).collect();
        Err(format!("no codec takes content type `{shown}`").into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn takes(content_type: Option<&str>) -> bool {
        Codec::<serde_json::Value>::accepts(&Json, content_type)
    }

    #[test]
    fn json_takes_json_types_and_messages_without_a_type() {
        for content_type in [
            None,
            Some("application/json"),
            Some("Application/JSON; charset=utf-8"),
            Some("application/problem+json"),
        ] {
            assert!(takes(content_type), "{content_type:?}");
        }
        for content_type in [Some("text/plain"), Some("application/octet-stream"), Some("")] {
            assert!(!takes(content_type), "{content_type:?}");
        }
    }

    #[test]
    fn errors_name_the_place_and_never_quote_the_payload() {
        let error = Codec::<u32>::decode(&Json, Some(b"\"hunter2\"")).unwrap_err().to_string();
        assert_eq!(error, "the body is JSON, but not of the expected shape (line 1, column 9)");
    }

    #[test]
    fn what_is_no_utf_8_is_an_error_where_it_is_read_and_no_matter_where_it_is_not() {
        #[derive(Debug, serde::Deserialize)]
        struct Named {
            name: String,
        }
        let body = b"{\"note\": \"\xff\", \"name\": \"\xc3\xa9\"}";
        assert_eq!(Codec::<Named>::decode(&Json, Some(body)).unwrap().name, "é");
        let body = b"{\"note\": \"\", \"name\": \"\xff\"}";
        let error = Codec::<Named>::decode(&Json, Some(body)).unwrap_err().to_string();
        assert!(error.starts_with("the body is not JSON (line 1, "), "{error}");
    }

    #[test]
    fn a_depth_bomb_is_an_error_and_not_a_stack_overflow() {
        let bomb = "[".repeat(1_000_000);
        assert!(Codec::<serde_json::Value>::decode(&Json, Some(bomb.as_bytes())).is_err());
    }

    #[test]
    fn no_value_is_none_and_an_empty_body_is_an_error() {
        assert_eq!(Codec::<Option<u32>>::decode(&Json, None).unwrap(), None);
        assert!(Codec::<Option<u32>>::decode(&Json, Some(b"")).is_err());
        assert!(Codec::<u32>::decode(&Json, None).is_err());
    }
}
