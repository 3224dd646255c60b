//! W3C trace context (<https://www.w3.org/TR/trace-context/>), as far as messages carry it on.
//!
//! Reads and writes the `traceparent` header; exports nothing, and needs no tracing backend.

use std::fmt;

/// The header of the trace's and the parent's id.
pub(crate) const TRACEPARENT: &str = "traceparent";
/// The header of what vendors add.
pub(crate) const TRACESTATE: &str = "tracestate";

/// A place in a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TraceContext {
    trace: u128,
    parent: u64,
    flags: u8,
}

impl TraceContext {
    /// The beginning of a trace, sampled.
    pub(crate) fn begin() -> Self {
        Self { trace: fastrand::u128(1..), parent: fastrand::u64(1..), flags: 1 }
    }

    /// Reads a header; `None` for what is no trace context of a version that is known.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let (version, trace, parent, flags) =
            (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let hex = |text: &str, length| {
            text.len() == length
                && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        };
        let known =
            version != "ff" && hex(version, 2) && (version != "00" || parts.next().is_none());
        if !(known && hex(trace, 32) && hex(parent, 16) && hex(flags, 2)) {
            return None;
        }
        let context = Self {
            trace: u128::from_str_radix(trace, 16).ok()?,
            parent: u64::from_str_radix(parent, 16).ok()?,
            flags: u8::from_str_radix(flags, 16).ok()?,
        };
        (context.trace != 0 && context.parent != 0).then_some(context)
    }

    /// The next step of the same trace.
    pub(crate) fn child(self) -> Self {
        Self { parent: fastrand::u64(1..), ..self }
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace, self.parent, self.flags)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_is_read_and_its_child_stays_in_the_trace() {
        let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let context = TraceContext::parse(text).unwrap();
        assert_eq!(context.to_string(), text);
        let child = context.child();
        assert_eq!((child.trace, child.flags), (context.trace, context.flags));
        assert_ne!(child.parent, context.parent);
    }

    #[test]
    fn what_is_malformed_is_no_context() {
        for text in [
            "",
            "00",
            "00-0-0-0",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
        ] {
            assert_eq!(TraceContext::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_trace_that_begins_can_be_read() {
        let context = TraceContext::begin();
        assert_eq!(TraceContext::parse(&context.to_string()), Some(context));
    }
}
