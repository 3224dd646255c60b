//! What messages are ordered by: those of one key run one after another.
//!
//! Owns a key's hash, which is computed once. A map is asked for the key when its message comes and again when that is done
//! with, and to hash it is 200 instructions each time: it must be a hash that nobody can foresee, since keys are what
//! strangers send.

use std::borrow::Cow;
use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, Hash, Hasher, RandomState};
use std::sync::{Arc, LazyLock};

/// The same for all keys of the process.
static SEED: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// A map that takes the hashes of its keys as they are.
pub(crate) type ByOrder<V> = HashMap<OrderKey, V, BuildHasherDefault<AsGiven>>;

/// A key, with its hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OrderKey {
    // First, because it is compared first.
    hash: u64,
    text: Arc<str>,
}

impl OrderKey {
    /// Of everything that one lane delivers, where each keeps its order.
    pub(crate) fn of_lane(lane: u32) -> Self {
        // No key of a message begins with a NUL.
        Self::from(Cow::Owned(format!("\0{lane}")))
    }
}

impl From<Cow<'_, str>> for OrderKey {
    fn from(text: Cow<'_, str>) -> Self {
        Self { hash: SEED.hash_one(text.as_ref()), text: text.into() }
    }
}

impl Hash for OrderKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

/// Hashes nothing: answers with the number that it was given.
#[derive(Default)]
pub(crate) struct AsGiven(u64);

impl Hasher for AsGiven {
    fn write(&mut self, bytes: &[u8]) {
        // No key of ours comes here; this is as good as any for one that would.
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_finds_a_key_by_another_of_the_same_text_and_by_no_other() {
        let mut map = ByOrder::default();
        for number in 0..1000 {
            map.insert(OrderKey::from(Cow::Owned(format!("key-{number}"))), number);
        }
        for number in 0..1000 {
            assert_eq!(
                map.get(&OrderKey::from(Cow::Owned(format!("key-{number}")))),
                Some(&number)
            );
        }
        assert_eq!(map.get(&OrderKey::from(Cow::Borrowed("key-1000"))), None);
        assert_eq!(OrderKey::of_lane(3), OrderKey::of_lane(3));
        assert_ne!(OrderKey::of_lane(3), OrderKey::from(Cow::Borrowed("3")));
    }
}
