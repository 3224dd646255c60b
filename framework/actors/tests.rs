//! Lanes that end, come late, or are many: on a broker that a test can break, and on a clock that stands still.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use actix::prelude::*;
use async_trait::async_trait;
use futures_util::future::BoxFuture;
use tokio::sync::{Notify, watch};

use crate::IntoHandlers;
use crate::broker::{
    self, Broker, BrokerError, BrokerState, DeadLetterReader, Depth, Fault, Lane, LaneEnd,
    LaneEvent, LaneId, Lanes, Outgoing, Publisher, Received, Settlement, Source,
};
use crate::config::{self, Config};
use crate::health::SubscriptionState;
use crate::message::{Delivery, Failure, Handled};
use crate::publisher::Message;
use crate::service::Service;
use crate::testing::TestService;

/// What a test does to its broker, and sees of it.
struct Control {
    /// How many lanes there are, whatever the configuration says.
    lanes: AtomicUsize,
    /// Lanes that are open, without the one of the suspects.
    open: AtomicUsize,
    opened: AtomicUsize,
    /// Told which lane is to end; each that is open where it names none.
    breaks: watch::Sender<Break>,
    /// How long closing a lane takes.
    closing: Mutex<Duration>,
    /// Lanes end as soon as they are asked for a message.
    die_at_once: AtomicBool,
    /// The next lane that is asked for a message panics.
    panics: AtomicBool,
    /// So many copies panic.
    bad_copies: AtomicUsize,
    /// No copy gets through.
    away: AtomicBool,
    /// How many connections were made.
    connections: watch::Sender<u64>,
    /// Lanes that do not open again.
    shut: Mutex<BTreeSet<LaneId>>,
    /// The lane that delivered last.
    last: Mutex<Option<LaneId>>,
    /// Somebody else has the lane of the suspects: it is handed out to nobody here.
    suspects_elsewhere: AtomicBool,
    /// Told when the lane of the suspects comes back without having been asked for.
    suspects_back: Notify,
}

/// How a lane ends.
#[derive(Clone, Default)]
struct Break {
    lane: Option<LaneId>,
    /// Its messages are with the others for so long before it is known.
    unknown: Duration,
    /// Somebody else has it now.
    is_revoked: bool,
}

impl Control {
    fn new(lanes: usize) -> Arc<Self> {
        Arc::new(Self {
            lanes: AtomicUsize::new(lanes),
            open: AtomicUsize::new(0),
            opened: AtomicUsize::new(0),
            breaks: watch::channel(Break::default()).0,
            closing: Mutex::default(),
            die_at_once: AtomicBool::new(false),
            panics: AtomicBool::new(false),
            bad_copies: AtomicUsize::new(0),
            away: AtomicBool::new(false),
            connections: watch::Sender::new(1),
            shut: Mutex::default(),
            last: Mutex::default(),
            suspects_elsewhere: AtomicBool::new(false),
            suspects_back: Notify::new(),
        })
    }

    fn break_lanes(&self) {
        self.breaks.send_replace(Break::default());
    }

    /// Ends the lane that delivered last; its messages come again before that is known.
    fn break_last(&self, unknown: Duration) {
        let lane = self.last.lock().unwrap().clone();
        self.breaks.send_replace(Break { lane, unknown, is_revoked: false });
    }

    /// Somebody else gets the lane of the suspects.
    fn revoke_suspects(&self) {
        self.suspects_elsewhere.store(true, Ordering::SeqCst);
        let (lane, unknown) = (Some(LaneId::suspects()), Duration::ZERO);
        self.breaks.send_replace(Break { lane, unknown, is_revoked: true });
    }

    /// It is given back to us.
    fn return_suspects(&self) {
        self.suspects_elsewhere.store(false, Ordering::SeqCst);
        self.suspects_back.notify_one();
    }

    fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }
}

/// The memory broker behind that control, with suspects in a queue `QUEUE.suspects`.
struct Fragile {
    memory: Arc<dyn Broker>,
    control: Arc<Control>,
}

/// The same source with another queue and so many lanes.
fn source_of(source: &Source, suffix: &str, lanes: usize) -> Arc<Source> {
    let queue = format!("{}{suffix}", source.settings.queue.as_deref().unwrap());
    let consumers = lanes.try_into().unwrap();
    let settings =
        config::Subscription { queue: Some(queue), consumers, ..(*source.settings).clone() };
    let (name, service) = (Arc::clone(&source.name), Arc::clone(&source.service));
    Arc::new(Source { name, settings: Arc::new(settings), waits: source.waits.clone(), service })
}

#[async_trait]
impl Broker for Fragile {
    fn kind(&self) -> &'static str {
        self.memory.kind()
    }

    async fn connect(&self) -> Result<(), BrokerError> {
        self.memory.connect().await
    }

    async fn prepare(&self, source: &Source) -> Result<Vec<String>, BrokerError> {
        self.memory.prepare(&source_of(source, ".suspects", 1)).await?;
        self.memory.prepare(source).await
    }

    fn topology(&self, source: &Source) -> Vec<String> {
        self.memory.topology(source)
    }

    fn lanes(&self, source: Arc<Source>) -> Box<dyn Lanes> {
        let lanes = self.control.lanes.load(Ordering::SeqCst);
        Box::new(FragileLanes {
            ordinary: self.memory.lanes(source_of(&source, "", lanes)),
            suspects: self.memory.lanes(source_of(&source, ".suspects", 1)),
            control: Arc::clone(&self.control),
        })
    }

    fn publisher(&self) -> Arc<dyn Publisher> {
        let control = Arc::clone(&self.control);
        Arc::new(FragilePublisher { memory: self.memory.publisher(), control })
    }

    async fn dead_letters(
        &self,
        source: Arc<Source>,
    ) -> Result<Box<dyn DeadLetterReader>, BrokerError> {
        self.memory.dead_letters(source).await
    }

    async fn depth(&self, source: &Source) -> Result<Depth, BrokerError> {
        self.memory.depth(source).await
    }

    fn state(&self) -> BrokerState {
        self.memory.state()
    }

    async fn close(&self) {
        self.memory.close().await;
    }
}

struct FragilePublisher {
    memory: Arc<dyn Publisher>,
    control: Arc<Control>,
}

#[async_trait]
impl Publisher for FragilePublisher {
    async fn send(&self, message: &Outgoing) -> Result<(), BrokerError> {
        self.memory.send(message).await
    }

    async fn copy(&self, copy: &broker::Copy) -> Result<broker::Copied, BrokerError> {
        let bad = &self.control.bad_copies;
        let takes_one = |left: usize| left.checked_sub(1);
        let is_bad = bad.fetch_update(Ordering::SeqCst, Ordering::SeqCst, takes_one).is_ok();
        assert!(!is_bad, "the test wants it so");
        if self.control.away.load(Ordering::SeqCst) {
            return Err(lost());
        }
        self.memory.copy(copy).await
    }

    fn connections(&self) -> Option<watch::Receiver<u64>> {
        Some(self.control.connections.subscribe())
    }
}

struct FragileLanes {
    ordinary: Box<dyn Lanes>,
    suspects: Box<dyn Lanes>,
    control: Arc<Control>,
}

#[async_trait]
impl Lanes for FragileLanes {
    async fn next(&mut self) -> LaneEvent {
        let control = Arc::clone(&self.control);
        let (id, lane) = tokio::select! {
            () = control.suspects_back.notified() => {
                self.suspects.release(LaneId("0".into()));
                return self.next().await;
            }
            event = self.ordinary.next() => match event {
                LaneEvent::Opened(id, lane) => (id, lane),
                failed @ LaneEvent::Failed(..) => return failed,
            },
            event = self.suspects.next() => match event {
                LaneEvent::Opened(_, lane) => (LaneId::suspects(), lane),
                LaneEvent::Failed(_, error) => return LaneEvent::Failed(LaneId::suspects(), error),
            },
        };
        if self.control.shut.lock().unwrap().contains(&id) {
            return LaneEvent::Failed(id, lost());
        }
        let control = Arc::clone(&self.control);
        control.opened.fetch_add(1, Ordering::SeqCst);
        if !id.is_suspects() {
            control.open.fetch_add(1, Ordering::SeqCst);
        }
        let breaks = control.breaks.subscribe();
        LaneEvent::Opened(
            id.clone(),
            Box::new(FragileLane { id, lane, breaks, control, gone: None, is_revoked: false }),
        )
    }

    fn release(&mut self, lane: LaneId) {
        match lane.is_suspects() {
            // No question brings it back before whoever has it gives it up.
            true if self.control.suspects_elsewhere.load(Ordering::SeqCst) => {}
            true => self.suspects.release(LaneId("0".into())),
            false => self.ordinary.release(lane),
        }
    }

    async fn close(&mut self) {
        self.ordinary.close().await;
        self.suspects.close().await;
    }
}

struct FragileLane {
    id: LaneId,
    lane: Box<dyn Lane>,
    breaks: watch::Receiver<Break>,
    control: Arc<Control>,
    /// It is gone, and from when on it says so.
    gone: Option<tokio::time::Instant>,
    is_revoked: bool,
}

impl FragileLane {
    /// Looks whether it is to end.
    async fn note_break(&mut self) {
        if self.gone.is_none() && self.breaks.has_changed().unwrap() {
            let Break { lane, unknown, is_revoked } = self.breaks.borrow_and_update().clone();
            self.is_revoked = is_revoked;
            if lane.is_none_or(|lane| lane == self.id) {
                self.gone = Some(tokio::time::Instant::now() + unknown);
            }
            if self.gone.is_some() && !unknown.is_zero() {
                self.lane.close().await.unwrap();
            }
        }
    }
}

fn lost() -> BrokerError {
    BrokerError::new(Fault::Unreachable, "the test wants it so")
}

#[async_trait(?Send)]
impl Lane for FragileLane {
    async fn next(&mut self, batch: &mut Vec<Received>, limit: usize) -> Result<(), LaneEnd> {
        assert!(!self.control.panics.swap(false, Ordering::SeqCst), "the test wants it so");
        if self.control.die_at_once.load(Ordering::SeqCst) {
            return Err(LaneEnd::Lost(lost()));
        }
        loop {
            self.note_break().await;
            if let Some(known) = self.gone {
                tokio::time::sleep_until(known).await;
                return Err(match self.is_revoked {
                    true => LaneEnd::Revoked,
                    false => LaneEnd::Lost(lost()),
                });
            }
            let mut breaks = self.breaks.clone();
            tokio::select! {
                biased;
                _ = breaks.changed() => {}
                received = self.lane.next(batch, limit) => {
                    *self.control.last.lock().unwrap() = Some(self.id.clone());
                    return received;
                }
            }
        }
    }

    async fn settle(&mut self, settlements: &mut Vec<Settlement>) -> Result<(), LaneEnd> {
        match self.is_lost() {
            Some(true) => Err(LaneEnd::Lost(lost())),
            _ => self.lane.settle(settlements).await,
        }
    }

    async fn close(&mut self) -> Result<(), LaneEnd> {
        let closing = *self.control.closing.lock().unwrap();
        tokio::time::sleep(closing).await;
        self.lane.close().await
    }

    fn is_lost(&self) -> Option<bool> {
        let is_told = self.breaks.has_changed().unwrap() && self.breaks.borrow().lane.is_none();
        let is_known = self.gone.is_some_and(|known| known <= tokio::time::Instant::now());
        Some(is_told || is_known)
    }

    fn generation(&self) -> u64 {
        self.lane.generation()
    }
}

impl Drop for FragileLane {
    fn drop(&mut self) {
        if !self.id.is_suspects() {
            self.control.open.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

/// A service under test on a fragile broker.
fn orders<M>(
    control: &Arc<Control>,
    subscription: &str,
    retry: &str,
    handlers: impl IntoHandlers<M>,
) -> TestService {
    let text = format!(
        "[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"\nqueue = \
         \"orders\"\n{subscription}\n[retry.standard]\njitter = \"none\"\n{retry}"
    );
    let config = Config::from_toml(&text).unwrap_or_else(|problems| panic!("{problems}"));
    let control = Arc::clone(control);
    let wrap = move |memory| Arc::new(Fragile { memory, control: Arc::clone(&control) }) as _;
    let builder = Service::builder(config).on_brokers(wrap);
    TestService::start(builder.subscribe("orders", handlers)).unwrap()
}

fn message(id: &str) -> Message {
    Message::json(&id).unwrap().id(id)
}

fn suspect(id: &str) -> Message {
    message(id).to_queue("orders.suspects")
}

fn handled(test: &TestService) -> usize {
    test.log().iter().filter(|line| line.ends_with("handled")).count()
}

fn state(test: &TestService) -> SubscriptionState {
    test.service().health().subscriptions["orders"].state.clone()
}

/// Takes a second.
async fn slow(_: Delivery<String>) -> Handled {
    tokio::time::sleep(Duration::from_secs(1)).await;
    Ok(())
}

const OPENS_AT_FIVE: &str =
    "breaker = { attempts_min = 5, pause = \"5s\", pause_max = \"5s\" }\nin_flight_max = 8\n";

/// Fails until the switch is turned; a message `bad` fails for ever.
fn failing(
    up: &Arc<AtomicBool>,
) -> impl Fn(Delivery<String>) -> BoxFuture<'static, Handled> + Clone + Send + Sync + 'static + use<>
{
    let up = Arc::clone(up);
    move |delivery| {
        let works = up.load(Ordering::SeqCst) && delivery.payload != "bad";
        Box::pin(async move {
            match works {
                true => Ok(()),
                false => Err(Failure::retry("connection refused")),
            }
        })
    }
}

#[test]
fn a_suspect_that_always_fails_does_not_keep_the_breaker_open() {
    let up = Arc::new(AtomicBool::new(false));
    let mut test = orders(&Control::new(1), OPENS_AT_FIVE, "", failing(&up));
    test.publish("orders", suspect("bad"));
    for id in 0..20 {
        test.publish("orders", message(&id.to_string()));
    }
    test.publish("orders", suspect("bad"));
    test.advance(Duration::from_secs(60));
    assert!(test.service().health().subscriptions["orders"].breaker_open);
    up.store(true, Ordering::SeqCst);
    test.advance(Duration::from_secs(20));
    assert!(!test.service().health().subscriptions["orders"].breaker_open, "{:?}", test.log());
    test.advance(Duration::from_secs(600));
    assert_eq!(handled(&test), 20, "{:?}", test.log());
}

#[test]
fn a_suspect_closes_the_breaker_where_there_is_nothing_else_to_probe_with() {
    let up = Arc::new(AtomicBool::new(false));
    let mut test = orders(&Control::new(1), OPENS_AT_FIVE, "attempts_max = 1", failing(&up));
    for id in 0..5 {
        test.publish("orders", message(&id.to_string()));
    }
    test.publish("orders", suspect("7"));
    assert!(test.service().health().subscriptions["orders"].breaker_open);
    up.store(true, Ordering::SeqCst);
    test.advance(Duration::from_secs(30));
    assert_eq!(test.log().last().map(String::as_str), Some("7: attempt 1 handled"));
    assert!(!test.service().health().subscriptions["orders"].breaker_open);
}

#[test]
fn suspects_are_handled_again_when_their_lane_comes_back_from_another() {
    let control = Control::new(1);
    let mut test = orders(&control, "", "", slow);
    for id in ["7", "8"] {
        control.revoke_suspects();
        test.advance(Duration::from_secs(30));
        control.return_suspects();
        test.publish("orders", suspect(id));
        test.advance(Duration::from_secs(30));
    }
    assert_eq!(test.log(), ["7: attempt 1 handled", "8: attempt 1 handled"]);
}

#[test]
fn a_suspect_that_waits_long_for_what_runs_is_seen_in_health() {
    let hour = |_: Delivery<String>| async {
        tokio::time::sleep(Duration::from_secs(3600)).await;
        Handled::Ok(())
    };
    let mut test = orders(&Control::new(1), "timeout = \"2h\"", "", hour);
    test.publish("orders", message("7"));
    test.publish("orders", suspect("8"));
    test.advance(Duration::from_secs(240));
    assert!(test.service().health().ready, "{:?}", test.service().health().reasons);
    test.advance(Duration::from_secs(120));
    let reasons = test.service().health().reasons;
    assert!(
        reasons.iter().any(|why| why.contains("until what runs has answered: 1 handler")),
        "{reasons:?}"
    );
    test.advance(Duration::from_secs(3600));
    assert!(test.service().health().ready, "{:?}", test.service().health().reasons);
}

#[test]
fn a_suspect_runs_alone_and_the_others_after_it_where_all_lanes_share_one_permit() {
    let control = Control::new(2);
    let mut test = orders(&control, "in_flight_total_max = 1", "", slow);
    for id in 0..6 {
        test.publish("orders", message(&id.to_string()));
    }
    test.publish("orders", suspect("7"));
    test.advance(Duration::from_secs(60));
    assert_eq!(handled(&test), 7, "{:?}", test.log());
}

#[test]
fn while_a_probe_is_out_nothing_is_pulled_beside_it() {
    let up = Arc::new(AtomicBool::new(false));
    let switch = Arc::clone(&up);
    let handler = move |delivery: Delivery<String>| {
        let up = Arc::clone(&switch);
        async move {
            match up.load(Ordering::SeqCst) {
                true => very_slow(delivery).await,
                false => Err(Failure::retry("connection refused")),
            }
        }
    };
    let mut test = orders(&Control::new(1), OPENS_AT_FIVE, "attempts_max = 1", handler);
    for id in 0..4 {
        test.publish("orders", message(&id.to_string()));
    }
    test.publish("orders", message("4"));
    assert!(test.service().health().subscriptions["orders"].breaker_open);
    up.store(true, Ordering::SeqCst);
    for id in 5..15 {
        test.publish("orders", message(&id.to_string()));
    }
    test.advance(Duration::from_secs(9));
    assert_eq!(unsettled(&mut test), Some(1), "the probe runs");
    test.advance(Duration::from_secs(60));
    assert_eq!((handled(&test), unsettled(&mut test)), (11, Some(0)), "{:?}", test.log());
}

/// An actor that takes a second for each message, and nothing else meanwhile.
struct Single;

impl Actor for Single {
    type Context = Context<Self>;
}

impl Handler<Delivery<String>> for Single {
    type Result = AtomicResponse<Self, Handled>;

    fn handle(&mut self, delivery: Delivery<String>, _: &mut Context<Self>) -> Self::Result {
        AtomicResponse::new(Box::pin(slow(delivery).into_actor(self)))
    }
}

#[test]
fn no_letter_is_lost_on_its_way_to_a_busy_actor_however_many_lanes_there_are() {
    let control = Control::new(150);
    let mut test = orders(&control, "in_flight_max = 1\ntimeout = \"1h\"", "", || Single);
    assert_eq!(control.open(), 150);
    for id in 0..150 {
        test.publish("orders", message(&id.to_string()));
    }
    test.advance(Duration::from_secs(160));
    assert_eq!(handled(&test), 150);
}

#[test]
fn a_lane_that_ends_while_its_subscription_is_held_is_not_opened_twice_when_that_goes_on() {
    let control = Control::new(2);
    let mut test = orders(&control, "", "", slow);
    *control.closing.lock().unwrap() = Duration::from_millis(50);
    control.break_lanes();
    let service = test.service();
    test.run(async move {
        tokio::time::sleep(Duration::from_millis(10)).await;
        service.pause("orders").await.unwrap();
        service.resume("orders").await.unwrap();
    });
    test.advance(Duration::from_secs(60));
    assert_eq!(control.open(), 2);
    assert_eq!(state(&test), SubscriptionState::Running);
}

#[test]
fn lanes_that_end_as_soon_as_they_are_open_are_opened_more_and_more_seldom() {
    let control = Control::new(1);
    let mut test = orders(&control, "", "", slow);
    control.die_at_once.store(true, Ordering::SeqCst);
    control.break_lanes();
    test.advance(Duration::from_secs(600));
    let opened = control.opened.load(Ordering::SeqCst);
    assert!((10..200).contains(&opened), "{opened}");
    control.die_at_once.store(false, Ordering::SeqCst);
    test.publish("orders", message("7"));
    test.advance(Duration::from_secs(60));
    assert_eq!(handled(&test), 1);
}

#[test]
fn what_runs_for_a_lane_that_does_not_come_back_leaves_its_permit_to_the_others() {
    let control = Control::new(2);
    let keys = "in_flight_max = 2\nin_flight_total_max = 2";
    let mut test = orders(&control, keys, "", slow);
    test.publish("orders", message("first"));
    let gone = control.last.lock().unwrap().clone().unwrap();
    control.shut.lock().unwrap().insert(gone);
    control.break_lanes();
    for id in 0..20 {
        test.publish("orders", message(&id.to_string()));
    }
    test.advance(Duration::from_secs(15));
    assert!(handled(&test) >= 20, "two at a time: {:?}", test.log());
}

#[test]
fn a_consumer_that_panics_holds_its_subscription_and_says_so() {
    let control = Control::new(1);
    let mut test = orders(&control, "", "", slow);
    control.panics.store(true, Ordering::SeqCst);
    test.publish("orders", message("7"));
    test.publish("orders", message("8"));
    test.advance(Duration::from_secs(5));
    let SubscriptionState::Failed(why) = state(&test) else { panic!("{:?}", state(&test)) };
    assert!(why.contains("panicked: the test wants it so"), "{why}");
    assert!(!test.service().health().ready);
    assert_eq!(control.open(), 0);
    let service = test.service();
    test.run(async move { service.resume("orders").await }).unwrap();
    test.advance(Duration::from_secs(30));
    assert!(handled(&test) >= 2, "{:?}", test.log());
    assert_eq!(state(&test), SubscriptionState::Running);
}

#[test]
fn what_a_consumer_that_panics_has_in_hand_keeps_no_permit_and_no_key_for_ever() {
    let keys = "ordering = \"key\"\nkey = \"header:customer\"\norder_on_long_wait = \"reorder\"";
    for subscription in ["in_flight_total_max = 3", keys] {
        let control = Control::new(1);
        let mut test = orders(&control, subscription, "", very_slow);
        for id in ["7", "8"] {
            test.publish("orders", message(id).header("customer", id));
        }
        control.panics.store(true, Ordering::SeqCst);
        test.publish("orders", message("9").header("customer", "7"));
        test.advance(Duration::from_secs(30));
        let SubscriptionState::Failed(_) = state(&test) else { panic!("{:?}", state(&test)) };
        let service = test.service();
        test.run(async move { service.resume("orders").await }).unwrap();
        test.advance(Duration::from_secs(60));
        assert_eq!(unsettled(&mut test), Some(0), "{subscription}: {:?}", test.log());
        assert_eq!(handled(&test), 3, "{subscription}: {:?}", test.log());
    }
}

fn metric(test: &mut TestService, name: &str) -> usize {
    let service = test.service();
    let metrics = test.run(async move { service.metrics().await });
    let line = metrics.lines().find(|line| line.starts_with(&format!("redeliver_{name}_total")));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap()
}

fn adopted(test: &mut TestService) -> usize {
    metric(test, "adopted")
}

fn unsettled(test: &mut TestService) -> Option<u64> {
    let service = test.service();
    test.run(async move { service.depth("orders").await }).unwrap().unsettled
}

/// Takes ten seconds.
async fn very_slow(_: Delivery<String>) -> Handled {
    tokio::time::sleep(Duration::from_secs(10)).await;
    Ok(())
}

#[test]
fn what_runs_when_its_lane_is_lost_is_adopted_by_whichever_lane_gets_it() {
    let control = Control::new(3);
    let mut test = orders(&control, "", "", very_slow);
    test.publish("orders", message("7"));
    let gone = control.last.lock().unwrap().clone().unwrap();
    control.shut.lock().unwrap().insert(gone);
    control.break_lanes();
    test.advance(Duration::from_secs(60));
    assert_eq!(test.log(), ["7: attempt 1 handled"]);
    assert_eq!(adopted(&mut test), 1);
    assert_eq!(unsettled(&mut test), Some(0), "the first run settled the redelivery");
}

#[test]
fn what_was_adopted_by_a_lane_that_is_lost_as_well_is_adopted_by_the_next() {
    let control = Control::new(3);
    let mut test = orders(&control, "", "", very_slow);
    test.publish("orders", message("7"));
    for _ in 0..3 {
        control.break_last(Duration::from_millis(1));
        test.advance(Duration::from_secs(2));
    }
    test.advance(Duration::from_secs(60));
    assert_eq!(test.log(), ["7: attempt 1 handled"]);
    assert!(adopted(&mut test) >= 3);
    assert_eq!(unsettled(&mut test), Some(0));
}

#[test]
fn a_redelivery_that_comes_before_the_loss_is_known_waits_until_it_is() {
    let control = Control::new(2);
    let mut test = orders(&control, "", "", very_slow);
    test.publish("orders", message("7"));
    control.break_last(Duration::from_millis(700));
    test.advance(Duration::from_secs(60));
    assert_eq!(test.log(), ["7: attempt 1 handled"]);
    assert_eq!(adopted(&mut test), 1);
}

#[test]
fn a_lane_without_a_permit_to_ask_it_with_is_found_to_be_lost() {
    let control = Control::new(3);
    let mut test = orders(&control, "in_flight_max = 1\nparked_max = 1", "", very_slow);
    for id in 0..3 {
        test.publish("orders", message(&id.to_string()));
    }
    control.break_lanes();
    test.advance(Duration::from_secs(5));
    assert_eq!(control.opened.load(Ordering::SeqCst), 8, "three, the suspects', and all again");
    test.advance(Duration::from_secs(60));
    assert_eq!(handled(&test), 3, "{:?}", test.log());
    assert_eq!(unsettled(&mut test), Some(0));
}

#[test]
fn nobody_waits_for_the_answer_of_a_consumer_that_rests() {
    let control = Control::new(2);
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&runs);
    let handler = move |delivery| {
        counted.fetch_add(1, Ordering::SeqCst);
        very_slow(delivery)
    };
    // Without an id no redelivery is recognised, so that the others are asked for each.
    let mut test = orders(&control, "id = \"header:number\"", "", handler);
    test.publish("orders", message("7"));
    test.advance(Duration::from_secs(20));
    let gone = control.last.lock().unwrap().clone().unwrap();
    control.shut.lock().unwrap().insert(gone);
    control.break_last(Duration::ZERO);
    test.advance(Duration::from_secs(20));
    test.publish("orders", message("8"));
    assert_eq!((control.open(), runs.load(Ordering::SeqCst)), (1, 2));
    let opened = control.opened.load(Ordering::SeqCst);
    control.break_last(Duration::ZERO);
    while control.opened.load(Ordering::SeqCst) == opened {
        test.advance(Duration::from_millis(10));
    }
    test.advance(Duration::from_millis(500));
    assert_eq!(runs.load(Ordering::SeqCst), 3, "it came again and was taken in");
}

#[test]
fn an_adopted_message_that_fails_waits_and_is_tried_again_where_it_came_again() {
    let control = Control::new(3);
    let handler = |delivery: Delivery<String>| async move {
        tokio::time::sleep(Duration::from_secs(10)).await;
        match delivery.attempt() {
            1 => Err(Failure::retry("once")),
            _ => Ok(()),
        }
    };
    let mut test = orders(&control, "", "delay_min = \"500ms\"\nbackoff = \"fixed\"", handler);
    test.publish("orders", message("7"));
    control.break_last(Duration::from_millis(1));
    test.advance(Duration::from_secs(60));
    let log = test.log();
    assert_eq!(log.len(), 2, "{log:?}");
    assert_eq!(log[1], "7: attempt 2 handled");
}

#[test]
fn messages_of_one_key_run_one_after_another_when_they_come_again_over_other_lanes() {
    let control = Control::new(3);
    let seen: Arc<Mutex<Vec<(bool, String)>>> = Arc::default();
    let notes = Arc::clone(&seen);
    let handler = move |delivery: Delivery<String>| {
        let notes = Arc::clone(&notes);
        async move {
            notes.lock().unwrap().push((true, delivery.payload.clone()));
            tokio::time::sleep(Duration::from_secs(10)).await;
            notes.lock().unwrap().push((false, delivery.payload));
            Ok(())
        }
    };
    let keys = "ordering = \"key\"\nkey = \"header:customer\"\norder_on_long_wait = \"reorder\"";
    let mut test = orders(&control, keys, "", handler);
    for id in ["a", "b", "c"] {
        test.publish("orders", message(id).header("customer", "7"));
    }
    control.break_lanes();
    test.advance(Duration::from_secs(120));
    let seen = seen.lock().unwrap();
    let (begun, ended): (Vec<_>, Vec<_>) = seen.iter().partition(|(begins, _)| *begins);
    assert_eq!(begun.len(), 3, "each once: {seen:?}");
    let names =
        |steps: &[&(bool, String)]| steps.iter().map(|step| step.1.clone()).collect::<Vec<_>>();
    assert_eq!(names(&begun), names(&ended), "one after another");
    assert!(
        seen.iter().enumerate().all(|(place, (begins, _))| *begins == (place % 2 == 0)),
        "{seen:?}"
    );
}

#[test]
fn a_stop_waits_for_what_was_adopted_and_counts_once_what_it_cannot_wait_for() {
    for (grace, left, lines) in [("\"25s\"", 0, 1), ("\"1s\"", 1, 0)] {
        let control = Control::new(3);
        let mut test =
            orders(&control, "", &format!("[service]\nshutdown_grace = {grace}"), very_slow);
        test.publish("orders", message("7"));
        control.break_last(Duration::from_millis(1));
        test.advance(Duration::from_secs(2));
        assert_eq!(adopted(&mut test), 1);
        assert_eq!(test.stop().left, left);
        assert_eq!(handled(&test), lines);
    }
}

#[test]
fn a_retrier_that_panics_over_a_copy_says_so_and_makes_it_again() {
    let control = Control::new(1);
    let handler = |_: Delivery<String>| async { Handled::Err(Failure::reject("sold out")) };
    let mut test = orders(&control, "", "", handler);
    control.bad_copies.store(3, Ordering::SeqCst);
    for id in ["7", "8"] {
        test.publish("orders", message(id));
    }
    assert!(!test.service().health().ready, "a copy is not confirmed");
    test.advance(Duration::from_secs(120));
    assert!(test.service().health().ready);
    assert_eq!(test.dead_letters("orders").len(), 2, "none is lost");
    assert_eq!((metric(&mut test, "restarts"), metric(&mut test, "copies_failed")), (3, 3));
    assert_eq!(unsettled(&mut test), Some(0));
}

#[test]
fn copies_are_made_again_as_soon_as_the_connection_is_back() {
    let control = Control::new(1);
    let handler = |_: Delivery<String>| async { Handled::Err(Failure::reject("sold out")) };
    let mut test = orders(&control, "", "", handler);
    control.away.store(true, Ordering::SeqCst);
    for id in 0..50 {
        test.publish("orders", message(&id.to_string()));
    }
    test.advance(Duration::from_secs(600));
    let failed = metric(&mut test, "copies_failed");
    assert_eq!(test.dead_letters("orders").len(), 0);
    // A connection that is of no use costs each of them an attempt, and no loop of them.
    control.connections.send_modify(|made| *made += 1);
    test.advance(Duration::from_millis(200));
    let more = metric(&mut test, "copies_failed") - failed;
    assert!((50..150).contains(&more), "{more}");
    control.away.store(false, Ordering::SeqCst);
    control.connections.send_modify(|made| *made += 1);
    test.advance(Duration::from_millis(200));
    assert_eq!(test.dead_letters("orders").len(), 50, "some would wait for half a minute");
}

/// Hears the log: panics as often as it is told when a copy failed, and keeps what is an error.
#[derive(Clone, Default)]
struct Listener {
    panics: Arc<AtomicUsize>,
    errors: Arc<Mutex<Vec<String>>>,
}

impl Listener {
    fn errors(&self, text: &str) -> usize {
        self.errors.lock().unwrap().iter().filter(|line| line.contains(text)).count()
    }
}

impl tracing::Subscriber for Listener {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let mut line = String::new();
        event.record(&mut |_: &tracing::field::Field, value: &dyn std::fmt::Debug| {
            line.push_str(&format!("{value:?} "));
        });
        if *event.metadata().level() == tracing::Level::ERROR {
            self.errors.lock().unwrap().push(line.clone());
        }
        if line.contains("copy not confirmed") {
            let takes_one = |left: usize| left.checked_sub(1);
            let is_bad =
                self.panics.fetch_update(Ordering::SeqCst, Ordering::SeqCst, takes_one).is_ok();
            assert!(!is_bad, "the log is full");
        }
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

async fn sold_out(_: Delivery<String>) -> Handled {
    Err(Failure::reject("sold out"))
}

fn dead(test: &mut TestService) -> Vec<(Option<String>, u32)> {
    let letters = test.dead_letters("orders");
    let mut dead: Vec<_> = letters.into_iter().map(|letter| (letter.id, letter.attempts)).collect();
    dead.sort();
    dead
}

fn each_once() -> Vec<(Option<String>, u32)> {
    ["7", "8", "9"].map(|id| (Some(id.to_owned()), 1)).to_vec()
}

#[test]
fn a_retrier_that_ends_is_made_anew_and_what_it_had_is_carried_by_the_next() {
    let log = Listener::default();
    log.panics.store(2, Ordering::SeqCst);
    tracing::subscriber::with_default(log.clone(), || {
        let control = Control::new(2);
        let mut test = orders(&control, "", "", sold_out);
        control.bad_copies.store(2, Ordering::SeqCst);
        for id in ["7", "8", "9"] {
            test.publish("orders", message(id));
        }
        let health = test.service().health();
        assert!(health.reasons[0].contains("until the retrier is made anew"), "{health:?}");
        assert_eq!(unsettled(&mut test), Some(3), "they stay with the broker meanwhile");
        test.advance(Duration::from_secs(60));
        assert!(test.service().health().ready, "{:?}", test.service().health());
        assert_eq!(dead(&mut test), each_once());
        assert_eq!(unsettled(&mut test), Some(0));
        let restarts = metric(&mut test, "restarts");
        assert_eq!(restarts, 4, "two panics over a copy, and twice the end of the retrier");
    });
    assert_eq!(log.errors("the retrier ended"), 2);
}

#[test]
fn a_retrier_that_keeps_ending_holds_its_subscription_and_gives_back_what_it_had() {
    let log = Listener::default();
    log.panics.store(usize::MAX, Ordering::SeqCst);
    tracing::subscriber::with_default(log.clone(), || {
        let control = Control::new(2);
        let claims = "idempotency = { store = \"main\" }";
        let service = "[service]\nrestarts_max = 2\n[stores.main]\nkind = \"memory\"";
        let runs = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&runs);
        let handler = move |delivery| {
            counted.fetch_add(1, Ordering::SeqCst);
            sold_out(delivery)
        };
        let mut test = orders(&control, claims, service, handler);
        control.bad_copies.store(usize::MAX, Ordering::SeqCst);
        for id in ["7", "8", "9"] {
            test.publish("orders", message(id));
        }
        test.advance(Duration::from_secs(60));
        let SubscriptionState::Failed(why) = state(&test) else { panic!("{:?}", state(&test)) };
        assert!(why.contains("the retrier keeps dying: it panicked: the log is full"), "{why}");
        assert_eq!(log.errors("restart budget spent"), 1);
        assert_eq!(unsettled(&mut test), Some(0), "all of it is with the broker again");
        assert_eq!(dead(&mut test), []);
        log.panics.store(0, Ordering::SeqCst);
        control.bad_copies.store(0, Ordering::SeqCst);
        let service = test.service();
        test.run(async move { service.resume("orders").await }).unwrap();
        test.advance(Duration::from_secs(60));
        assert_eq!(dead(&mut test), each_once());
        assert_eq!(runs.load(Ordering::SeqCst), 3, "none runs again: {:?}", test.log());
        assert_eq!(state(&test), SubscriptionState::Running);
        assert_eq!(unsettled(&mut test), Some(0));
    });
}
