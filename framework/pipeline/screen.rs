//! What is refused before a handler sees it: too large, expired, circling, without an id.

use std::time::SystemTime;

use super::{Epitaph, Reason, Scope, Work};
use crate::config::IdMissing;

/// Refuses what no handler should see; says why.
pub(crate) fn screen(work: &Work, scope: &Scope) -> Result<(), Epitaph> {
    let settings = &scope.settings;
    let size = work.received.envelope.body().len();
    if size as u64 > settings.body_max {
        let limit = settings.body_max;
        return Err(Epitaph::new(
            Reason::TooLarge,
            format!("the body has {size} bytes; body_max is {limit}"),
        ));
    }
    if work.carried.hops > settings.hops_max.get() {
        let (hops, limit) = (work.carried.hops, settings.hops_max);
        return Err(Epitaph::new(
            Reason::Loop,
            format!("{hops} handlers sent it on; hops_max is {limit}"),
        ));
    }
    if settings.on_id_missing() == IdMissing::Reject && work.id().is_none() {
        return Err(Epitaph::new(
            Reason::NoId,
            String::from("the message has no id where `id` says; see `id_missing`"),
        ));
    }
    match expires_at(work) {
        Some(expires) if expires <= scope.clock.now() => {
            let expired = crate::wire::format_time(expires);
            Err(Epitaph::new(Reason::Expired, format!("it expired at {expired}")))
        }
        _ => Ok(()),
    }
}

/// When the message expires: as an earlier copy carried it, else as its publisher said.
pub(crate) fn expires_at(work: &Work) -> Option<SystemTime> {
    let envelope = work.received.envelope.as_ref();
    work.carried.expires.or_else(|| {
        // In this order, because hardly any message has one.
        let time_to_live = envelope.time_to_live()?;
        envelope.published_at()?.checked_add(time_to_live)
    })
}
