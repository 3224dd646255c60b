//! What is refused before a handler sees it: too large, expired, circling, without an id.

use std::time::SystemTime;

use super::{Epitaph, Reason, Scope, Work};
use crate::config::IdMissing;
use crate::envelope::Envelope;

// A `hops_max` that no count reaches would let a message circle for ever.
const _: () = assert!(crate::config::HOPS_COUNTED_MAX == crate::wire::HOPS_POSSIBLE_MAX);

/// Refuses what no handler should see; says why. The broker's message and its payload come along: asked once, for all.
#[inline]
pub(crate) fn screen(
    work: &Work,
    (envelope, body): (&dyn Envelope, &[u8]),
    scope: &Scope,
) -> Result<(), Box<Epitaph>> {
    let settings = &scope.settings;
    let size = body.len();
    if size as u64 > settings.body_max {
        let limit = settings.body_max;
        let error = format!("the body has {size} bytes; body_max is {limit}");
        return refuse(Reason::TooLarge, error);
    }
    if !work.is_bare() && work.carried.hops > settings.hops_max.get() {
        let (hops, limit) = (work.carried.hops, settings.hops_max);
        return refuse(Reason::Loop, format!("{hops} handlers sent it on; hops_max is {limit}"));
    }
    if settings.on_id_missing() == IdMissing::Reject && work.id().is_none() {
        let error = String::from("the message has no id where `id` says; see `id_missing`");
        return refuse(Reason::NoId, error);
    }
    // Hardly any message has either.
    match work.is_bare() && envelope.time_to_live().is_none() {
        true => Ok(()),
        false => refuse_expired(work, scope),
    }
}

fn refuse_expired(work: &Work, scope: &Scope) -> Result<(), Box<Epitaph>> {
    match expires_at(work, scope) {
        Some(expires) if expires <= scope.clock.now() => {
            let expired = crate::wire::format_time(expires);
            refuse(Reason::Expired, format!("it expired at {expired}"))
        }
        _ => Ok(()),
    }
}

#[cold]
fn refuse(reason: Reason, error: String) -> Result<(), Box<Epitaph>> {
    Err(Box::new(Epitaph::new(reason, error)))
}

/// When the message expires: as an earlier copy carried it, else as its publisher said.
pub(crate) fn expires_at(work: &Work, scope: &Scope) -> Option<SystemTime> {
    let envelope = work.received.envelope.as_ref();
    work.carried.expires.or_else(|| {
        // In this order, because hardly any message has one.
        let time_to_live = envelope.time_to_live()?;
        let published = envelope.published_at()?;
        let since = match envelope.is_aged_by_broker() {
            true => published.max(scope.received_at(work)),
            false => published,
        };
        since.checked_add(time_to_live)
    })
}
