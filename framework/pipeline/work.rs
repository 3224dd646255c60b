//! What travels with a message while it is in this process, and what all messages of a
//! subscription share.

use std::borrow::Cow;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use tokio::time::Instant;

use super::guards::{Guards, Held, Recorded};
use super::order::OrderKey;
use super::{Epitaph, Observer, Retries, Verdict, lookup};
use crate::broker::{Received, Source};
use crate::clock::Clock;
use crate::config::{self, IdSource, KeySource, Ordering};
use crate::envelope::Envelope;
use crate::message::{Claim, Delivery, DeliveryScope, FoundId, Known, Metadata, message_id};
use crate::retry::Attempt;
use crate::store::{Locks, Sharing, Woken};
use crate::telemetry::SubscriptionMetrics;
use crate::wire::{Carried, ID_LENGTH_MAX, Luggage};

/// A moment in this process, in milliseconds; wraps after 49 days, longer than anything is in hand.
///
/// Four bytes that fit into a gap of each message, where an `Instant` would add sixteen.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tick(u32);

impl Tick {
    /// What has passed since.
    pub(super) fn elapsed(self, now: Self) -> Duration {
        Duration::from_millis(now.0.wrapping_sub(self.0).into())
    }
}

/// A received message that is not settled yet.
///
/// It is moved from hand to hand several times, so that what few messages have is apart, and reached through [`Deref`].
pub(crate) struct Work {
    /// What the broker gave us.
    pub(crate) received: Received,
    /// Nothing, for most messages.
    extras: Option<Box<Extras>>,
    /// Which of the subscription's consumers holds it.
    pub(crate) lane: u32,
    /// Its place in that consumer's ledger.
    pub(crate) slot: u32,
    /// When it was received.
    pub(crate) received_at: Tick,
    /// Handed out to learn whether a dependency is back.
    pub(crate) is_probe: bool,
}

/// What a message without headers of ours, without a key, and on a subscription without guards has nothing of.
#[derive(Default)]
pub(crate) struct Extras {
    /// What the message carried, and what was added here since.
    pub(crate) carried: Luggage,
    /// What came of looking for its id where the subscription says.
    pub(crate) id: FoundId,
    /// What orders it: messages of one key run one after another.
    pub(crate) key: Option<OrderKey>,
    /// How its id was claimed, for the handler.
    pub(crate) claim: Option<Arc<Claim>>,
    /// With whom its locks are shared, for those that its handler asks for.
    pub(crate) sharing: Option<Sharing>,
    /// Completes when the run of the same id is over that kept it from running.
    pub(crate) woken: Option<Box<Woken>>,
    /// Its guards, while it is on the way to a wait or the dead letters.
    pub(crate) held: Option<Box<Held>>,
    /// Its last attempt as its claim has it, until that is known to count.
    pub(crate) recorded: Option<Box<Recorded>>,
    /// Since when it asks again and again whether its id is still being handled.
    pub(crate) asks_since: Option<Tick>,
    /// It is to be given up unseen, unless it was handled before.
    pub(crate) doom: Option<Box<Epitaph>>,
}

/// Boxes of messages of which nothing but the key was known, for the next of that kind: to get one, fill it, and give it
/// back is 500 instructions.
#[derive(Default)]
pub(crate) struct Blanks(
    #[expect(clippy::vec_box, reason = "it is the boxes that are used again")] Vec<Box<Extras>>,
);

/// So many are kept: two letters of messages.
const BLANKS_MAX: usize = 512;

impl Blanks {
    fn take(&mut self, key: OrderKey) -> Box<Extras> {
        let mut extras = self.0.pop().unwrap_or_default();
        extras.key = Some(key);
        extras
    }

    fn keep(&mut self, mut extras: Box<Extras>) {
        if self.0.len() < BLANKS_MAX {
            extras.key = None;
            self.0.push(extras);
        }
    }
}

/// What a message without extras has.
static NONE: Extras = Extras {
    carried: Luggage::EMPTY,
    id: FoundId::Unsought,
    key: None,
    claim: None,
    sharing: None,
    woken: None,
    held: None,
    recorded: None,
    asks_since: None,
    doom: None,
};

impl Deref for Work {
    type Target = Extras;

    fn deref(&self) -> &Extras {
        self.extras.as_deref().unwrap_or(&NONE)
    }
}

impl DerefMut for Work {
    fn deref_mut(&mut self) -> &mut Extras {
        self.extras.get_or_insert_default()
    }
}

impl Work {
    /// Reads what a message carries, and looks for its id where the subscription says.
    #[inline]
    pub(crate) fn new(
        received: Received,
        received_at: Tick,
        lane: u32,
        slot: u32,
        scope: &Scope,
    ) -> Self {
        Self::new_on(&mut Blanks::default(), received, (received_at, lane, slot), scope)
    }

    /// The same, with what was kept of others where it can be used.
    #[inline]
    pub(crate) fn new_on(
        blanks: &mut Blanks,
        received: Received,
        (received_at, lane, slot): (Tick, u32, u32),
        scope: &Scope,
    ) -> Self {
        let mut work = Self::bare(received, received_at, lane, slot);
        if work.received.envelope.may_be_stamped() || scope.looks_into_messages() {
            work.extras = work.find_extras(scope, blanks);
        }
        work
    }

    fn find_extras(&self, scope: &Scope, blanks: &mut Blanks) -> Option<Box<Extras>> {
        let envelope = self.received.envelope.as_ref();
        let key = order_of(envelope, self.lane, scope);
        if !envelope.may_be_stamped() && matches!(scope.settings.id, IdSource::MessageId) {
            // Most messages, where an order is kept.
            return key.map(|key| blanks.take(key));
        }
        let carried = Luggage::read(envelope);
        let id = find_id(envelope, &scope.settings.id);
        if carried.malformed > 0 {
            scope.metrics.malformed.inc_by(carried.malformed.into());
        }
        let is_bare = carried.is_empty() && id == FoundId::Unsought && key.is_none();
        (!is_bare).then(|| Box::new(Extras { carried, id, key, ..Extras::default() }))
    }

    /// A message of which nothing is known but what the broker says.
    #[inline]
    pub(crate) fn bare(received: Received, received_at: Tick, lane: u32, slot: u32) -> Self {
        Self { received, extras: None, lane, slot, received_at, is_probe: false }
    }

    /// Drops it. To leave that to the compiler would be a call for each message and a copy of it, 25 instructions.
    #[inline]
    pub(crate) fn put_down(self, blanks: &mut Blanks) {
        let is_blank = !self.is_bare() && self.is_known_by_key_alone();
        let Self { received, extras, .. } = self;
        drop(received);
        match extras {
            None => {}
            Some(extras) if is_blank => blanks.keep(extras),
            Some(extras) => drop(extras),
        }
    }

    /// Whether nothing is known of it but what the broker says.
    #[inline]
    pub(crate) fn is_bare(&self) -> bool {
        self.extras.is_none()
    }

    /// Whether nothing else is known of it but the key that orders it.
    #[inline]
    pub(crate) fn is_known_by_key_alone(&self) -> bool {
        let Some(extras) = self.extras.as_deref() else { return true };
        let Extras { carried, id, key: _, claim, sharing, woken, held, recorded, asks_since, doom } =
            extras;
        let is_guarded = claim.is_some() || sharing.is_some() || held.is_some() || woken.is_some();
        let was_tried = recorded.is_some() || asks_since.is_some() || doom.is_some();
        carried.is_empty() && *id == FoundId::Unsought && !is_guarded && !was_tried
    }

    /// An attempt was made and counts; the next one comes after `delay`.
    pub(crate) fn count_attempt(&mut self, delay: Option<Duration>, scope: &Scope) {
        self.carried.attempts = self.attempt(scope.attempts_max()).get();
        self.carried.delay = delay.or(self.carried.delay);
        self.recorded = None;
        self.keep_first_seen(scope);
    }

    /// The attempt that was made does not count: nor shall it in the claim.
    pub(crate) fn uncount_attempt(&mut self) {
        if let Some(held) = &mut self.held {
            held.released_if_dropped();
        }
        if let Some(recorded) = self.recorded.take() {
            recorded.take_back();
        }
    }

    /// Writes down when it was first delivered, so that it outlives this process.
    pub(crate) fn keep_first_seen(&mut self, scope: &Scope) {
        self.carried.first_seen = Some(scope.first_seen(self));
    }

    pub(crate) fn id(&self) -> Option<&str> {
        message_id(&self.id, &self.carried, self.received.envelope.as_ref())
    }

    /// The attempt that is about to be made, or is being made. Every delivery gets one, whatever
    /// its headers claim.
    pub(crate) fn attempt(&self, attempts_max: u32) -> Attempt {
        let used = self.carried.attempts.min(attempts_max.saturating_sub(1));
        Attempt::new(used.saturating_add(1)).unwrap_or(Attempt::FIRST)
    }

    /// Whether its handler keeps something with the completion.
    pub(crate) fn kept_a_result(&self) -> bool {
        self.claim.as_ref().is_some_and(|claim| claim.has_kept())
    }

    /// Whether it is to be given up unseen.
    #[inline]
    pub(crate) fn is_doomed(&self) -> bool {
        self.extras.as_ref().is_some_and(|extras| extras.doom.is_some())
    }

    /// What its handler gets.
    #[inline]
    pub(crate) fn delivery<T>(&self, payload: T, scope: &Scope) -> Delivery<T> {
        Delivery::new(payload, self.metadata(scope))
    }

    #[inline]
    fn metadata(&self, scope: &Scope) -> Metadata {
        let envelope = self.received.envelope.clone();
        let delivery = Arc::clone(&scope.delivery);
        if self.is_known_by_key_alone() && !delivery.is_transactional {
            return Metadata::bare(envelope, delivery);
        }
        let attempt = match self.carried.attempts {
            0 => Attempt::FIRST,
            // The policy is asked only where something was used up.
            _ => self.attempt(scope.attempts_max()),
        };
        let sharing = self.sharing.as_ref().zip(scope.locks.as_ref());
        let known = Known {
            carried: self.carried.clone(),
            id: self.id.clone(),
            claim: self.claim.clone(),
            locks: sharing.map(|(sharing, locks)| locks.within(&sharing.scope())),
            outbox: delivery.outbox(envelope.as_ref()),
        };
        Metadata::new(envelope, delivery, attempt.get(), known)
    }
}

/// The id that a message goes by.
pub(crate) fn id_of(
    envelope: &dyn Envelope,
    carried: &Carried,
    source: &IdSource,
) -> Option<String> {
    message_id(&find_id(envelope, source), carried, envelope).map(str::to_owned)
}

/// Looks for the id where `source` says.
fn find_id(envelope: &dyn Envelope, source: &IdSource) -> FoundId {
    let found = match source {
        IdSource::MessageId => return FoundId::Unsought,
        IdSource::Header(name) => lookup::header(envelope, name),
        IdSource::Pointer(pointer) => lookup::pointer(envelope, pointer),
        IdSource::Payload => Some(lookup::fingerprint(envelope)),
    };
    let Some(found) = found.filter(|id| !id.is_empty()) else { return FoundId::Nowhere };
    // Too long for a header: its SHA-256 is as good, and the same for every copy.
    let is_long = found.len() > ID_LENGTH_MAX;
    FoundId::Here(if is_long { lookup::hash(found.as_bytes()).into() } else { found.into() })
}

/// What orders a message: nothing, its lane, or its key. Without the key it is in no order.
fn order_of(envelope: &dyn Envelope, lane: u32, scope: &Scope) -> Option<OrderKey> {
    match scope.settings.ordering {
        Ordering::None => None,
        Ordering::Lane => Some(OrderKey::of_lane(lane)),
        Ordering::Key => find_key(envelope, scope.key_source.as_ref()?).map(Into::into),
    }
}

/// Looks for a key where `source` says; long ones by their hash.
pub(crate) fn find_key<'a>(envelope: &'a dyn Envelope, source: &KeySource) -> Option<Cow<'a, str>> {
    let key = match source {
        KeySource::Header(name) => lookup::header(envelope, name)?.into(),
        KeySource::Pointer(pointer) => lookup::pointer(envelope, pointer)?.into(),
        KeySource::RoutingKey => lookup::key(envelope)?,
    };
    Some(if key.len() <= KEY_LENGTH_MAX { key } else { lookup::hash(key.as_bytes()).into() })
}

/// Longer keys are kept as their SHA-256, so that memory does not grow with them.
const KEY_LENGTH_MAX: usize = 255;

/// A message and what is to become of it.
pub(crate) struct Outcome {
    pub(crate) work: Work,
    pub(crate) verdict: Verdict,
}

/// What all messages of a subscription share.
pub(crate) struct Scope {
    pub(crate) name: Arc<str>,
    /// Replaced when a new policy needs other waits.
    pub(crate) source: ArcSwap<Source>,
    pub(crate) settings: Arc<config::Subscription>,
    pub(crate) retries: ArcSwap<Retries>,
    /// Where the key that orders messages is found.
    pub(crate) key_source: Option<KeySource>,
    /// Where the type of a message is found.
    pub(crate) type_source: config::TypeSource,
    pub(crate) delivery: Arc<DeliveryScope>,
    pub(crate) clock: Clock,
    /// What ticks are counted from.
    pub(crate) began: Instant,
    pub(crate) guards: Guards,
    /// The store of the subscription's locks, for its handlers.
    pub(crate) locks: Option<Locks>,
    pub(crate) store_is_down: AtomicBool,
    /// The breaker holds messages back: what fails meanwhile costs no attempt.
    pub(crate) is_held_back: AtomicBool,
    pub(crate) metrics: SubscriptionMetrics,
    /// Service, host and process, for dead letters.
    pub(crate) consumer: Arc<str>,
    /// Who is told what becomes of each message; only in tests.
    pub(crate) observer: Option<Arc<dyn Observer>>,
}

impl Scope {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Whether an id or a key is looked for in each message.
    pub(crate) fn looks_into_messages(&self) -> bool {
        let settings = &self.settings;
        !matches!(settings.id, IdSource::MessageId) || settings.ordering != Ordering::None
    }

    pub(crate) fn attempts_max(&self) -> u32 {
        self.retries.load().attempts_max()
    }

    /// The tick of a moment that was read already.
    pub(crate) fn tick(&self, at: Instant) -> Tick {
        // Truncated: ticks wrap.
        Tick(at.saturating_duration_since(self.began).as_millis() as u32)
    }

    /// When a message was first delivered: as its copies carry it, else when it was received here.
    pub(crate) fn first_seen(&self, work: &Work) -> SystemTime {
        work.carried.first_seen.unwrap_or_else(|| self.received_at(work))
    }

    /// When a message was received here.
    pub(super) fn received_at(&self, work: &Work) -> SystemTime {
        let now = self.clock.now();
        now.checked_sub(work.received_at.elapsed(self.tick(Instant::now()))).unwrap_or(now)
    }

    /// How long ago a message was first delivered.
    pub(crate) fn age(&self, work: &Work) -> Duration {
        // A time in the future is somebody's wrong clock.
        self.clock.now().duration_since(self.first_seen(work)).unwrap_or_default()
    }
}

#[cfg(test)]
impl Work {
    /// A message that is in nobody's hands.
    pub(crate) fn of(received: Received, slot: u32) -> Self {
        let mut work = Self::bare(received, Tick::default(), 0, slot);
        work.carried = Luggage::read(work.received.envelope.as_ref());
        work
    }
}
