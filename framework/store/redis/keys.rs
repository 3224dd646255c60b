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

    /// What a lock's key is followed by in the names of its queue, and of when those in it were last heard.
    pub(super) const OF_A_QUEUE: [&[u8]; 2] = [b":queue", b":beats"];

    pub(super) fn claim(&self, into: &mut Vec<u8>, key: &ClaimKey) {
        into.extend_from_slice(self.claims.as_bytes());
        tagged(into, &[key.scope.as_bytes(), key.id.as_bytes()]);
    }

    pub(super) fn lock(&self, into: &mut Vec<u8>, key: &str) {
        into.extend_from_slice(self.locks.as_bytes());
        tagged(into, &[key.as_bytes()]);
    }

    /// The same as [`claim`](Self::claim), alone.
    pub(super) fn of_claim(&self, key: &ClaimKey) -> Vec<u8> {
        let mut name = Vec::new();
        self.claim(&mut name, key);
        name
    }

    /// The lock, its queue, and when those in it were last heard: one slot of a cluster.
    pub(super) fn of_lock(&self, key: &str) -> [Vec<u8>; 3] {
        let mut lock = Vec::new();
        self.lock(&mut lock, key);
        let [queue, beats] = Self::OF_A_QUEUE.map(|suffix| [&lock, suffix].concat());
        [lock, queue, beats]
    }

    /// A key in the same slot as `key`, which is written so that replicas can be waited for.
    pub(super) fn touch(&self, key: &[u8]) -> Vec<u8> {
        let place = |wanted| key.iter().position(|&byte| byte == wanted);
        let tag = place(b'{').zip(place(b'}')).map_or(key, |(start, end)| &key[start..=end]);
        [self.touches.as_bytes(), tag].concat()
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

/// A hash tag of all parts. `|` is always escaped, so it is where one ends.
fn tagged(into: &mut Vec<u8>, parts: &[&[u8]]) {
    into.push(b'{');
    let start = into.len();
    for (number, part) in parts.iter().enumerate() {
        if number > 0 {
            into.push(b'|');
        }
        escape(into, part, start + NAME_BYTES_MAX);
    }
    if into.len() > start + NAME_BYTES_MAX {
        into.truncate(start);
        hash(into, parts);
    }
    into.push(b'}');
}

/// Which bytes stay as they are.
static STAYS: [bool; 256] = {
    let (mut stays, mut byte) = ([false; 256], 0);
    while byte < 256 {
        stays[byte] = (byte as u8).is_ascii_alphanumeric()
            || matches!(byte as u8, b'-' | b'.' | b'_' | b':' | b'/' | b'@' | b'+' | b'=');
        byte += 1;
    }
    stays
};

/// Letters, digits and what is harmless stay; every other byte becomes `%XX`; nothing becomes `%`,
/// because an empty hash tag would not be one. No more is written than what is over the limit.
fn escape(into: &mut Vec<u8>, bytes: &[u8], end_max: usize) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    if bytes.is_empty() {
        into.push(b'%');
    }
    if bytes.len() <= NAME_BYTES_MAX && bytes.iter().all(|&byte| STAYS[usize::from(byte)]) {
        // Nearly every one.
        return into.extend_from_slice(bytes);
    }
    for &byte in bytes {
        if into.len() > end_max {
            return;
        }
        if STAYS[usize::from(byte)] {
            into.push(byte);
        } else {
            into.extend([b'%', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
        }
    }
}

/// `#`, which no escaped name contains, marks a hash. Parts are hashed with their lengths.
fn hash(into: &mut Vec<u8>, parts: &[&[u8]]) {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    let text =
        hash.finalize().iter().fold(String::from("#"), |text, byte| text + &format!("{byte:02x}"));
    into.extend_from_slice(text.as_bytes());
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
        text(&Keys::new("p").of_claim(&key))
    }

    fn lock(key: &str) -> [String; 3] {
        Keys::new("p").of_lock(key).map(|name| text(&name))
    }

    fn text(name: &[u8]) -> String {
        String::from_utf8(name.to_vec()).expect("text")
    }

    fn tag(key: &str) -> &str {
        &key[key.find('{').expect("a tag") + 1..key.find('}').expect("a tag")]
    }

    #[test]
    fn a_plain_key_stays_readable() {
        let [lock, queue, _] = lock("customer:42");
        assert_eq!(lock, "p:lock:{customer:42}");
        assert_eq!(queue, "p:lock:{customer:42}:queue");
        assert_eq!(claim("orders", "a-1"), "p:claim:{orders|a-1}");
    }

    #[test]
    fn an_empty_id_has_a_hash_tag_of_its_own() {
        assert_eq!(lock("")[0], "p:lock:{%}");
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
        let [lock, queue, beats] = lock("{a}{b}");
        let touch = text(&Keys::new("p").touch(lock.as_bytes()));
        for other in [&queue, &beats, &touch] {
            assert_eq!(tag(other), tag(&lock));
        }
    }

    proptest! {
        #[test]
        fn no_two_locks_share_a_key(a in ".{0,200}", b in ".{0,200}") {
            prop_assert_eq!(a == b, lock(&a)[0] == lock(&b)[0]);
        }

        #[test]
        fn no_id_breaks_out_of_its_tag(id in any::<String>()) {
            let [lock, ..] = lock(&id);
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
