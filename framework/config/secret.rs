//! Text that must not be seen: `Secret`, `Url`, and librdkafka's `Properties`.
//!
//! Owns what Debug and Display show of them. The text itself is had only through a method called `expose`.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};

/// Stands in the place of what is hidden, whatever its length.
pub(super) const HIDDEN: &str = "***";

/// A password or another text that is never shown.
///
/// ```
/// use redeliver::config::Secret;
///
/// let password = Secret::new("hunter2");
/// assert_eq!(format!("{password} {password:?}"), "*** Secret(***)");
/// assert_eq!(password.expose(), "hunter2");
/// ```
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Hides a text.
    ///
    /// ```
    /// use redeliver::config::Secret;
    ///
    /// let (short, long) = (Secret::new(""), Secret::new("correct horse battery staple".to_owned()));
    /// assert_ne!(short, long);
    /// assert_eq!(format!("{short:?}"), format!("{long:?}"), "not even its length is seen");
    /// ```
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for the client that needs it and for nothing else.
    ///
    /// ```
    /// use redeliver::config::Secret;
    ///
    /// let token = Secret::new("hunter2");
    /// assert_eq!(format!("Bearer {token}"), "Bearer ***", "forgotten, and so refused by the server");
    /// assert_eq!(format!("Bearer {}", token.expose()), "Bearer hunter2");
    /// ```
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({HIDDEN})")
    }
}

/// An address. Shown without user, password and query; scheme, host, port and path stay visible.
///
/// ```
/// use redeliver::config::Url;
///
/// let url = Url::new("amqp://app:hunter2@rabbit:5672/%2f?auth=x");
/// assert_eq!(url.to_string(), "amqp://rabbit:5672/%2f?***");
/// assert_eq!(url.expose(), "amqp://app:hunter2@rabbit:5672/%2f?auth=x");
/// ```
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Url(String);

impl Url {
    /// Takes the address as it is written; for Kafka that is `host:port,host:port`.
    ///
    /// ```
    /// use redeliver::config::Url;
    ///
    /// assert_eq!(Url::new("one:9092,two:9092").to_string(), "one:9092,two:9092");
    /// assert_eq!(Url::new("no address").expose(), "no address", "whoever connects finds that out");
    /// ```
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The whole address with its password, for the client that connects and for nothing else.
    ///
    /// ```
    /// use redeliver::config::Url;
    ///
    /// let url = Url::new("rediss://app:p%40ss@redis:6379/1");
    /// assert_eq!(url.expose(), "rediss://app:p%40ss@redis:6379/1", "still percent-encoded");
    /// assert_eq!(format!("cannot reach {url}"), "cannot reach rediss://redis:6379/1");
    /// ```
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// What stands before `://`.
    pub(crate) fn scheme(&self) -> Option<&str> {
        let (scheme, _) = self.0.split_once("://")?;
        let letters =
            scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
        (letters && !scheme.is_empty()).then_some(scheme)
    }

    /// The same address with this password for its user, percent-encoded; `None` if it has a password already.
    pub(super) fn with_password(&self, password: &Secret) -> Option<Self> {
        let (scheme, rest) = self.0.split_once("://")?;
        let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        let (user, host) = authority.rsplit_once('@').unwrap_or(("", authority));
        let password = percent_encoded(password.expose());
        (!user.contains(':')).then(|| Self(format!("{scheme}://{user}:{password}@{host}{path}")))
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0.as_str();
        if let Some(scheme) = self.scheme() {
            write!(f, "{scheme}://")?;
            rest = &rest[scheme.len() + 3..];
        }
        // The last `@`, wherever it stands: a password may hold `/`, `?` and `@` that nobody escaped.
        rest = rest.rsplit_once('@').map_or(rest, |(_, after)| after);
        match rest.find(['?', '#']) {
            Some(end) => write!(f, "{}?{HIDDEN}", &rest[..end]),
            None => f.write_str(rest),
        }
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Url({self})")
    }
}

/// librdkafka's own settings by name; values whose name sounds like a secret are never shown.
///
/// A nested table is the dotted name: `security.protocol = "ssl"` and `"security.protocol" = "ssl"` are one.
/// Numbers and booleans are taken as the text they are written as.
///
/// ```
/// use redeliver::config::Properties;
///
/// let mut properties = Properties::default();
/// properties.set("sasl.password", "hunter2");
/// properties.set("client.rack", "eu-1");
/// assert_eq!(properties.expose("sasl.password"), Some("hunter2"));
/// assert_eq!(properties.names().collect::<Vec<_>>(), ["client.rack", "sasl.password"]);
/// assert_eq!(properties.expose_all().count(), 2);
/// assert_eq!(format!("{properties:?}"), r#"{"client.rack": "eu-1", "sasl.password": "***"}"#);
/// ```
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Properties(BTreeMap<String, Secret>);

impl Properties {
    /// Sets one property.
    ///
    /// ```
    /// use redeliver::config::Properties;
    ///
    /// let mut properties = Properties::default();
    /// properties.set("linger.ms", "5");
    /// properties.set("linger.ms", 20.to_string());
    /// assert_eq!(properties.expose("linger.ms"), Some("20"), "the last one counts");
    /// ```
    pub fn set(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.0.insert(name.into(), Secret::new(value));
    }

    /// The value of one property, secret or not.
    ///
    /// ```
    /// use redeliver::config::Properties;
    ///
    /// let mut properties = Properties::default();
    /// properties.set("sasl.password", "hunter2");
    /// assert_eq!(properties.expose("sasl.password"), Some("hunter2"));
    /// assert_eq!(properties.expose("sasl.username"), None, "librdkafka's default, whatever it is");
    /// ```
    pub fn expose(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(Secret::expose)
    }

    /// Every name with its value, secret or not, for the client that needs them and for nothing else.
    ///
    /// ```
    /// use std::collections::BTreeMap;
    /// use redeliver::config::Config;
    ///
    /// let config = Config::from_toml(r#"
    ///     [brokers.events]
    ///     kind = "kafka"
    ///     url = "127.0.0.1:9092"
    ///     properties = { "client.rack" = "eu-1", socket.keepalive.enable = true }
    /// "#)?;
    /// let settings: BTreeMap<_, _> = config.brokers["events"].properties.expose_all().collect();
    /// assert_eq!(settings["socket.keepalive.enable"], "true");
    /// assert_eq!(settings["client.rack"], "eu-1");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn expose_all(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.expose()))
    }

    /// Every name.
    ///
    /// ```
    /// use redeliver::config::Properties;
    ///
    /// let mut properties = Properties::default();
    /// properties.set("sasl.password", "hunter2");
    /// properties.set("linger.ms", "5");
    /// let changed: Vec<_> = properties.names().collect();
    /// assert_eq!(changed.join(", "), "linger.ms, sasl.password");
    /// ```
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    pub(super) fn remove(&mut self, name: &str) -> Option<Secret> {
        self.0.remove(name)
    }
}

impl fmt::Debug for Properties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.0.iter().map(|(name, value)| match sounds_secret(name) {
            true => (name, HIDDEN),
            false => (name, value.expose()),
        });
        f.debug_map().entries(shown).finish()
    }
}

/// Whether a name sounds as if its value must not be seen. Too much is hidden rather than too little.
pub(super) fn sounds_secret(name: &str) -> bool {
    const WORDS: [&str; 9] =
        ["pass", "secret", "token", "key", "cred", "url", "sasl", "pem", "auth"];
    // `location` and `mechanism` name a file and a method, not what is in them.
    let name = name.to_ascii_lowercase();
    let harmless = name.ends_with(".location")
        || name.ends_with(".mechanism")
        || name.ends_with(".mechanisms");
    !harmless && WORDS.iter().any(|word| name.contains(word))
}

/// The text without what stands between `://` and `@`: whoever wrote an address where none belongs
/// must not find its password in the error.
pub(super) fn without_credentials(text: &str) -> String {
    let mut shown = String::new();
    let mut rest = text;
    while let Some(start) = rest.find("://") {
        let (before, after) = rest.split_at(start + 3);
        shown.push_str(before);
        let end = after.find(|c: char| c.is_whitespace() || c == '"').unwrap_or(after.len());
        rest = match after[..end].rfind('@') {
            Some(at) => {
                shown.push_str(HIDDEN);
                &after[at..]
            }
            None => after,
        };
    }
    shown + rest
}

fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                encoded.push(byte.into())
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

/// Text in quotes. Its refusal shows nothing of what stood there, as serde's own would.
struct Hidden;

impl Visitor<'_> for Hidden {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("text in quotes")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<String, E> {
        Ok(text.to_owned())
    }

    fn visit_i64<E: de::Error>(self, _: i64) -> Result<String, E> {
        Err(E::custom("is a number, but must be text in quotes"))
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> Result<String, E> {
        self.visit_i64(0)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Hidden).map(Self)
    }
}

impl<'de> Deserialize<'de> for Url {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Hidden).map(Self)
    }
}

/// One value of `Properties`: a text, or a table of more of them.
enum Property {
    Text(String),
    Table(BTreeMap<String, Property>),
}

struct PropertyVisitor;

impl<'de> Visitor<'de> for PropertyVisitor {
    type Value = Property;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("text, a number or a boolean")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Property, E> {
        Ok(Property::Text(text.to_owned()))
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Property, E> {
        Ok(Property::Text(value.to_string()))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Property, E> {
        Ok(Property::Text(value.to_string()))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Property, E> {
        Ok(Property::Text(value.to_string()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Property, A::Error> {
        let mut table = BTreeMap::new();
        while let Some((name, value)) = map.next_entry()? {
            table.insert(name, value);
        }
        Ok(Property::Table(table))
    }
}

impl<'de> Deserialize<'de> for Property {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(PropertyVisitor)
    }
}

impl<'de> Deserialize<'de> for Properties {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let mut properties = Self::default();
        for (name, value) in BTreeMap::<String, Property>::deserialize(from)? {
            flatten(name, value, &mut properties);
        }
        Ok(properties)
    }
}

fn flatten(name: String, value: Property, into: &mut Properties) {
    match value {
        Property::Text(text) => into.set(name, text),
        Property::Table(table) => {
            for (rest, value) in table {
                flatten(format!("{name}.{rest}"), value, into);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn host_and_path_stay_visible() {
        let shown = |url: &str| Url::new(url).to_string();
        assert_eq!(shown("amqp://u:p/w?x@y@host/v"), "amqp://host/v");
        assert_eq!(shown("u:p@host:9092"), "host:9092");
        assert_eq!(shown("one:9092,two:9092"), "one:9092,two:9092");
        assert_eq!(shown("rediss://host:6379/1?password=x"), "rediss://host:6379/1?***");
    }

    #[test]
    fn a_password_is_put_into_its_address() {
        let with = |url: &str| Url::new(url).with_password(&Secret::new("p@s/")).map(|url| url.0);
        assert_eq!(with("amqp://app@host/v"), Some("amqp://app:p%40s%2F@host/v".to_owned()));
        assert_eq!(with("redis://host:6379"), Some("redis://:p%40s%2F@host:6379".to_owned()));
        assert_eq!(with("amqp://app:old@host/v"), None);
    }

    proptest! {
        #[test]
        fn what_stands_before_the_at_sign_is_never_shown(secret in "[a-zA-Z0-9/?#@:%]{1,20}", host in "[a-z]{1,8}") {
            let secret = format!("\u{1F511}{secret}");
            let url = format!("amqp://u:{secret}@{host}/v");
            for shown in [Url::new(url.clone()).to_string(), without_credentials(&format!("is \"{url}\", no"))] {
                prop_assert!(!shown.contains('\u{1F511}'), "{}", shown);
                prop_assert!(shown.contains(&host));
            }
        }
    }
}
