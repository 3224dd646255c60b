//! Names of keys in Redis, made of ids that may be anything.
//!
//! Owns the escaping: no two ids share a key, none breaks out of its hash tag, none is long.

use sha2::{Digest, Sha256};

use crate::store::ClaimKey;

/// Names that are longer than this once escaped are hashed.
const NAME_BYTES_MAX: usize = 160;

pub(super) struct Keys {
    claims: String,
    locks: String,
    channels: String,
    touches: String,
}

impl Keys {
    pub(super) fn new(prefix: &str) -> Self {
        Self {
            claims: format!("{prefix}:claim:"),
            locks: format!("{prefix}:lock:"),
            channels: format!("{prefix}:wake:"),
            touches: format!("{prefix}:sync:"),
        }
    }

    pub(super) fn claim(&self, key: &ClaimKey) -> String {
        // `|` is always escaped, so this one is where the scope ends.
        let mut name = escape(key.scope.as_bytes());
        name.push('|');
        name.push_str(&escape(key.id.as_bytes()));
        format!("{}{{{}}}", self.claims, shorten(name, &[key.scope.as_bytes(), key.id.as_bytes()]))
    }

    /// The lock, its queue, and when those in it were last heard: one slot of a cluster.
    pub(super) fn lock(&self, key: &str) -> [String; 3] {
        let name = shorten(escape(key.as_bytes()), &[key.as_bytes()]);
        let lock = format!("{}{{{name}}}", self.locks);
        let (queue, beats) = (format!("{lock}:queue"), format!("{lock}:beats"));
        [lock, queue, beats]
    }

    /// A key in the same slot as `key`, which is written so that replicas can be waited for.
    pub(super) fn touch(&self, key: &str) -> String {
        let tag = key.find('{').map_or(key, |start| &key[start..]);
        let tag = tag.find('}').map_or(tag, |end| &tag[..=end]);
        format!("{}{tag}", self.touches)
    }

    /// A key that is written to see whether that works.
    pub(super) fn probe(&self) -> String {
        format!("{}probe", self.touches)
    }

    /// What channels of waiters begin with; a process's name follows.
    pub(super) fn channels(&self) -> &str {
        &self.channels
    }
}

/// Letters, digits and what is harmless stay; every other byte becomes `%XX`; nothing becomes `%`,
/// because an empty hash tag would not be one.
fn escape(bytes: &[u8]) -> String {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    if bytes.is_empty() {
        return "%".into();
    }
    let mut name = String::with_capacity(bytes.len().min(NAME_BYTES_MAX) + 8);
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._:/@+=".contains(&byte) {
            name.push(char::from(byte));
        } else {
            name.push('%');
            name.push(char::from(HEX[usize::from(byte >> 4)]));
            name.push(char::from(HEX[usize::from(byte & 15)]));
        }
    }
    name
}

/// `#`, which no escaped name contains, marks a hash. Parts are hashed with their lengths.
fn shorten(name: String, parts: &[&[u8]]) -> String {
    if name.len() <= NAME_BYTES_MAX {
        return name;
    }
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().iter().fold(String::from("#"), |text, byte| text + &format!("{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::store::Fingerprint;

    fn claim(scope: &str, id: &str) -> String {
        let key = ClaimKey {
            scope: scope.into(),
            id: id.into(),
            fingerprint: Fingerprint::of(b""),
            generation: 0,
        };
        Keys::new("p").claim(&key)
    }

    fn tag(key: &str) -> &str {
        &key[key.find('{').expect("a tag") + 1..key.find('}').expect("a tag")]
    }

    #[test]
    fn a_plain_key_stays_readable() {
        let [lock, queue, _] = Keys::new("app").lock("customer:42");
        assert_eq!(lock, "app:lock:{customer:42}");
        assert_eq!(queue, "app:lock:{customer:42}:queue");
        assert_eq!(claim("orders", "a-1"), "p:claim:{orders|a-1}");
    }

    #[test]
    fn an_empty_id_has_a_hash_tag_of_its_own() {
        assert_eq!(Keys::new("p").lock("")[0], "p:lock:{%}");
    }

    #[test]
    fn a_megabyte_becomes_a_short_key() {
        assert!(claim("orders", &"x".repeat(1 << 20)).len() < 100);
    }

    #[test]
    fn where_the_scope_ends_makes_a_difference() {
        assert_ne!(claim("a", "b|c"), claim("a|b", "c"));
        assert_ne!(claim("", "x"), claim("x", ""));
    }

    #[test]
    fn a_touched_key_is_in_the_slot_of_its_record() {
        let keys = Keys::new("p");
        let [lock, queue, beats] = keys.lock("{a}{b}");
        for other in [&queue, &beats, &keys.touch(&lock)] {
            assert_eq!(tag(other), tag(&lock));
        }
    }

    proptest! {
        #[test]
        fn no_two_locks_share_a_key(a in ".{0,200}", b in ".{0,200}") {
            let keys = Keys::new("p");
            prop_assert_eq!(a == b, keys.lock(&a)[0] == keys.lock(&b)[0]);
        }

        #[test]
        fn no_id_breaks_out_of_its_tag(id in any::<String>()) {
            let [lock, ..] = Keys::new("p").lock(&id);
            prop_assert!(!tag(&lock).is_empty());
            prop_assert_eq!(lock.matches(['{', '}', '\n', '\0']).count(), 2);
        }

        #[test]
        fn no_two_claims_share_a_key(
            a in ("[ab|{}%]{0,3}", "[ab|{}%]{0,3}"), b in ("[ab|{}%]{0,3}", "[ab|{}%]{0,3}"),
        ) {
            prop_assert_eq!(a == b, claim(&a.0, &a.1) == claim(&b.0, &b.1));
        }
    }
}
