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

static PROCESS: LazyLock<String> = LazyLock::new(|| uuid::Uuid::now_v7().simple().to_string());
static NEXT: AtomicU64 = AtomicU64::new(1);

impl Owner {
    /// A new one, for one hold of one thing.
    pub fn new() -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self(format!("{}.{number:x}", Self::process()).into())
    }

    /// The process's part, which names the channel that its waiters are woken through.
    pub(crate) fn process() -> &'static str {
        &PROCESS
    }

    /// As stores keep it.
    pub fn as_str(&self) -> &str {
        &self.0
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
