//! Headers of ours that anybody may have written, and not as we would.

/// Their names, without the prefix, and one that nobody has heard of. Not those that say which message it is.
pub(crate) const OURS: [&str; 16] = [
    "attempt",
    "delay",
    "due",
    "first-seen",
    "expires",
    "origin",
    "hops",
    "generation",
    "reason",
    "error",
    "error-class",
    "consumer",
    "causation",
    "dead-at",
    "original-expiration",
    "unheard-of",
];
