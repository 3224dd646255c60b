//! Names whoever holds or waits for something, unlike any other in the world.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

/// A process's name followed by a number: no two holds of any processes share one.
///
/// ```
/// use redeliver::store::Owner;
///
/// let (first, second) = (Owner::new(), Owner::new());
/// assert_ne!(first.as_str(), second.as_str());
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Owner(Arc<str>);

/// Short: it stands in every record and is hashed, byte by byte, by each script that sees it.
static PROCESS: LazyLock<String> = LazyLock::new(|| {
    let mut name = String::new();
    write_digits(&mut name, uuid::Uuid::now_v7().as_u128());
    name
});
/// The process's 22 digits, a dot, and at most 11 more.
const NAME_BYTES: usize = 34;
static NEXT: AtomicU64 = AtomicU64::new(1);

impl Owner {
    /// A new one, for one hold of one thing.
    ///
    /// ```
    /// use redeliver::store::Owner;
    ///
    /// let owner = Owner::new();
    /// assert_ne!(owner, Owner::new(), "two holds are two owners, also in one process");
    /// assert_eq!(owner, owner.clone(), "who asks again for the same hold keeps the name");
    /// ```
    pub fn new() -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let mut name = String::with_capacity(NAME_BYTES);
        name.push_str(Self::process());
        name.push('.');
        write_digits(&mut name, number.into());
        Self(name.into())
    }

    /// The process's part, which names the channel that its waiters are woken through.
    pub(crate) fn process() -> &'static str {
        &PROCESS
    }

    /// As stores keep it.
    ///
    /// ```
    /// use redeliver::store::Owner;
    ///
    /// let owner = Owner::new();
    /// let kept = owner.as_str().to_owned();               // in a record of the store
    /// assert_eq!(Owner::from(kept.as_str()), owner);
    /// ```
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// To the base of 64, and the last digit first: nobody reads them as a number.
fn write_digits(into: &mut String, mut number: u128) {
    const DIGITS: &[u8; 64] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_";
    loop {
        into.push(DIGITS[(number & 63) as usize].into());
        number >>= 6;
        if number == 0 {
            return;
        }
    }
}

impl Default for Owner {
    fn default() -> Self {
        Self::new()
    }
}

impl From<&str> for Owner {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl std::borrow::Borrow<str> for Owner {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Owner({})", self.0)
    }
}
