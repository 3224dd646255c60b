//! Dead letters: confirmed before the original goes, read with their reason, redriven.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lapin::options::{BasicGetOptions, BasicRejectOptions, QueuePurgeOptions};
use lapin::types::AMQPValue;
use redeliver::{Delivery, Failure, Filter, Handled, Reason, Redrive, Service};

use crate::common::rabbitmq::control;
use crate::lab::{Lab, SHORT_WAITS, Seen, dead_letters, drained, metric, properties, until};

async fn reject(_: Delivery<u32>) -> Handled {
    Err(Failure::reject("no such customer").class("validation"))
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

/// Waits until the subscription says that a copy is not confirmed.
async fn stuck(service: &Service) {
    until("health tells that a copy is stuck", || async {
        service.health().reasons.iter().any(|reason| reason.contains("a copy is not confirmed"))
    })
    .await;
}

#[tokio::test]
async fn every_end_has_its_reason_its_attempts_and_its_error() {
    let lab = Lab::new().await;
    let policy = format!(
        "{SHORT_WAITS}[[retry.standard.rules]]\nclass = \"gone\"\nthen = \"reject\"\n\
         [[retry.standard.rules]]\nclass = \"noise\"\nthen = \"ignore\"\n"
    );
    let service = lab
        .start(&lab.toml("timeout = \"300ms\"\n", &policy), |delivery: Delivery<u32>| async move {
            match delivery.payload {
                0 => Err(Failure::retry("still broken").class("backend")),
                1 => Err(Failure::reject("no such customer").class("validation")),
                2 => Err(Failure::retry("it left").class("gone")),
                3 => panic!("out of luck"),
                4 => {
                    tokio::time::sleep(Duration::from_secs(60)).await;
                    Ok(())
                }
                5 => Err(Failure::retry("never mind").class("noise")),
                _ => Ok(()),
            }
        })
        .await;
    lab.publish(0..10).await;
    drained(&service).await;
    let mut letters = dead_letters(&service).await;
    letters.sort_by(|one, other| one.id.cmp(&other.id));
    let described: Vec<_> = letters
        .iter()
        .map(|letter| {
            let (id, reason) = (letter.id.as_deref(), letter.reason.map(Reason::as_str));
            (id, reason, letter.attempts, letter.error_class.as_deref(), letter.error.as_deref())
        })
        .collect();
    assert_eq!(
        described,
        [
            (Some("0"), Some("exhausted"), 4, Some("backend"), Some("still broken")),
            (Some("1"), Some("rejected"), 1, Some("validation"), Some("no such customer")),
            (Some("2"), Some("rejected"), 1, Some("gone"), Some("it left")),
            (Some("3"), Some("exhausted"), 4, Some("panic"), Some("panicked: out of luck")),
            (Some("4"), Some("exhausted"), 4, Some("timeout"), Some("took longer than 300ms")),
        ]
    );
    for letter in &letters {
        assert_eq!(letter.body, letter.id.clone().unwrap_or_default().as_bytes());
        assert_eq!(letter.origin, Some(format!("/{0}/{0}", lab.queue)));
        let consumer = letter.consumer.as_deref().unwrap_or_default();
        assert!(consumer.ends_with(&format!("/{}", std::process::id())), "{consumer}");
    }
    service.stop().await;
}

#[tokio::test]
async fn a_full_dead_letter_queue_keeps_the_original_until_there_is_room() {
    let lab = Lab::new().await;
    let quorum = ("x-queue-type", text("quorum"));
    lab.raw.declare(&lab.queue, std::slice::from_ref(&quorum)).await;
    let full =
        [quorum, ("x-max-length", AMQPValue::LongInt(1)), ("x-overflow", text("reject-publish"))];
    lab.raw.declare(&lab.dead(), &full).await;
    // The limit is known to the queue only after a while: fill it until it refuses.
    for number in 0.. {
        let confirm = lab
            .raw
            .channel
            .basic_publish(
                "".into(),
                lab.dead().into(),
                Default::default(),
                b"filler",
                properties(number),
            )
            .await
            .expect("it is sent");
        if matches!(confirm.await.expect("it is answered"), lapin::Confirmation::Nack(_)) {
            break;
        }
    }
    let service = lab.start(&lab.toml("topology = \"none\"\n", ""), reject).await;
    lab.publish(0..1).await;
    stuck(&service).await;
    service.stop().await;
    until("the original is still there", || async { lab.ready().await == 1 }).await;

    let service = lab.start(&lab.toml("topology = \"none\"\n", ""), reject).await;
    stuck(&service).await;
    let purge = lab.raw.channel.queue_purge(lab.dead().into(), QueuePurgeOptions::default());
    purge.await.expect("it is purged");
    until("it goes once it can", || async { lab.raw.count(&lab.dead()).await == 1 }).await;
    until("health is well again", || async { service.health().ready }).await;
    service.stop().await;
    assert_eq!(lab.ready().await, 0);
    assert_eq!(lab.take_all(&lab.dead()).await[0].delivery.data, b"0");
}

#[tokio::test]
async fn without_a_dead_letter_queue_everything_fails_at_once_and_nothing_is_lost() {
    let lab = Lab::new().await;
    lab.raw.declare(&lab.queue, &[("x-queue-type", text("quorum"))]).await;
    let seen = Seen::default();
    let handler = seen.clone();
    let toml = lab.toml("topology = \"none\"\nin_flight_max = 20\nparked_max = 30\n", "");
    let service = lab
        .start(&toml, move |delivery: Delivery<u32>| {
            handler.note(&delivery);
            reject(delivery)
        })
        .await;
    lab.publish(0..300).await;
    stuck(&service).await;
    until("the window is full", || async { lab.ready().await <= 250 }).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(lab.ready().await, 250, "no more is taken than the window holds");
    assert!(seen.count() <= 50, "{} were handled", seen.count());
    lab.raw.declare(&lab.dead(), &[("x-queue-type", text("quorum"))]).await;
    until("all are dead letters", || async { lab.raw.count(&lab.dead()).await >= 300 }).await;
    drained_source(&lab).await;
    service.stop().await;
    seen.assert_each_once(0..300);
    let mut ids: Vec<u32> = lab
        .take_all(&lab.dead())
        .await
        .iter()
        .map(|letter| String::from_utf8_lossy(&letter.delivery.data).parse().expect("a number"))
        .collect();
    ids.sort_unstable();
    assert_eq!(ids, (0..300).collect::<Vec<_>>());
    assert_eq!(lab.ready().await, 0);
}

async fn drained_source(lab: &Lab) {
    until("the source is empty", || async { lab.ready().await == 0 }).await;
}

#[tokio::test]
async fn queues_of_ours_that_were_deleted_are_declared_again_when_a_copy_needs_them() {
    let lab = Lab::new().await;
    let service = lab
        .start(&lab.toml("", SHORT_WAITS), |delivery: Delivery<u32>| async move {
            match (delivery.payload, delivery.attempt()) {
                (0, _) => Err(Failure::reject("no such customer")),
                (_, 1) => Err(Failure::retry("once")),
                _ => Ok(()),
            }
        })
        .await;
    lab.raw.delete(&lab.dead()).await;
    lab.raw.delete(&format!("{}.wait.200", lab.queue)).await;
    lab.publish(0..2).await;
    drained(&service).await;
    assert_eq!(dead_letters(&service).await.len(), 1);
    until("health is well again", || async { service.health().ready }).await;
    service.stop().await;
}

#[tokio::test]
async fn dead_letters_that_the_broker_made_are_read_with_their_reason() {
    let lab = Lab::new().await;
    let limited = lab.toml("arguments = { x-delivery-limit = 2 }\n", "");
    let service = lab.start(&limited, |_: Delivery<u32>| async { Ok(()) }).await;
    service.pause("orders").await.expect("it can be paused");
    until("nobody consumes", || async { consumers(&lab).await == 0 }).await;

    let dying = properties(1).with_expiration("1".into());
    lab.publish_with(1..2, |_| (b"1".to_vec(), dying.clone())).await;
    until("the server has moved it", || async { lab.raw.count(&lab.dead()).await == 1 }).await;
    lab.publish(2..3).await;
    give_back(&lab, 3, true).await;
    until("the server has moved it", || async { lab.raw.count(&lab.dead()).await == 2 }).await;
    lab.publish(3..4).await;
    give_back(&lab, 1, false).await;
    until("the server has moved it", || async { lab.raw.count(&lab.dead()).await == 3 }).await;

    let letters = dead_letters(&service).await;
    let described: Vec<_> =
        letters.iter().map(|letter| (letter.id.as_deref(), letter.reason)).collect();
    assert_eq!(
        described,
        [
            (Some("1"), Some(Reason::Expired)),
            (Some("2"), Some(Reason::Poison)),
            (Some("3"), Some(Reason::Rejected)),
        ]
    );
    let only = Filter { reason: Some(Reason::Poison), ..Filter::default() };
    let reader = service.dead_letters("orders").expect("it has this subscription");
    let redrive = Redrive { filter: only, ..Redrive::default() };
    assert_eq!(reader.redrive(&redrive).await.expect("they are moved").moved, 1);
    service.resume("orders").await.expect("it goes on");
    drained(&service).await;
    assert_eq!(dead_letters(&service).await.len(), 2);
    service.stop().await;
}

async fn consumers(lab: &Lab) -> u32 {
    use lapin::options::QueueDeclareOptions;
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let queue = lab.queue.as_str().into();
    let declared = lab.raw.channel.queue_declare(queue, options, Default::default()).await;
    declared.expect("the queue is there").consumer_count()
}

/// Rejects the next message so often.
async fn give_back(lab: &Lab, times: u32, requeue: bool) {
    for _ in 0..times {
        let queue = lab.queue.as_str();
        let got = lab.raw.channel.basic_get(queue.into(), BasicGetOptions::default()).await;
        let message = got.expect("the queue is there").expect("the message is there");
        let tag = message.delivery.delivery_tag;
        let reject = lab.raw.channel.basic_reject(tag, BasicRejectOptions { requeue });
        reject.await.expect("it is sent");
    }
}

#[tokio::test]
async fn what_was_redriven_and_fails_again_is_there_once() {
    let lab = Lab::new().await;
    let (broken, seen) = (Arc::new(AtomicBool::new(true)), Seen::default());
    let (is_broken, handler) = (broken.clone(), seen.clone());
    // Nearly everything fails here, and that is not what a breaker should find.
    let toml = lab.toml("breaker = { attempts_min = 1000 }\n", SHORT_WAITS);
    let service = lab
        .start(&toml, move |delivery: Delivery<u32>| {
            handler.note(&delivery);
            let fails = is_broken.load(Ordering::SeqCst) || delivery.payload == 0;
            async move {
                match (fails, delivery.payload % 2) {
                    (true, 0) => Err(Failure::retry("still broken").class("backend")),
                    (true, _) => Err(Failure::reject("refused").class("validation")),
                    _ => Ok(()),
                }
            }
        })
        .await;
    lab.publish(0..20).await;
    until("all are dead", || async { lab.raw.count(&lab.dead()).await == 20 }).await;
    drained(&service).await;
    let reader = service.dead_letters("orders").expect("it has this subscription");

    let dry = Redrive { dry_run: true, ..Redrive::default() };
    let told = reader.redrive(&dry).await.expect("they can be counted");
    assert_eq!((told.matched, told.moved), (20, 0));
    assert_eq!(dead_letters(&service).await.len(), 20, "a dry run moves nothing");

    // All fail again.
    let moved = reader.redrive(&Redrive::default()).await.expect("they are moved");
    assert_eq!((moved.matched, moved.moved), (20, 20));
    until("all are dead again", || async { lab.raw.count(&lab.dead()).await == 20 }).await;
    drained(&service).await;
    let letters = dead_letters(&service).await;
    let mut ids: Vec<_> = letters.iter().filter_map(|letter| letter.id.clone()).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 20, "each is there once, under its own id");
    assert!(letters.iter().all(|letter| letter.generation == 1));
    let attempts = |letter: &redeliver::DeadLetter| (letter.error_class.clone(), letter.attempts);
    assert!(
        letters.iter().map(attempts).all(|(class, attempts)| match class.as_deref() {
            Some("backend") => attempts == 4,
            _ => attempts == 1,
        }),
        "attempts begin anew: {letters:?}"
    );

    // Only what the filter means, and only one of them still fails.
    broken.store(false, Ordering::SeqCst);
    let filter = Filter { error_class: Some("backend".to_owned()), ..Filter::default() };
    let moved = reader.redrive(&Redrive { filter, ..Redrive::default() }).await;
    assert_eq!(moved.expect("they are moved").moved, 10);
    until("one is dead again", || async { lab.raw.count(&lab.dead()).await == 11 }).await;
    drained(&service).await;
    let shown = reader.show("0").await.expect("it can be read").expect("it is there");
    assert_eq!((shown.generation, shown.attempts), (2, 4));
    let purged = reader.purge(&Filter::default()).await.expect("they are removed");
    assert_eq!((purged, lab.raw.count(&lab.dead()).await), (11, 0));
    service.stop().await;
}

/// A policy that lets a queue take nothing; gone when this is dropped.
struct Full(String);

impl Full {
    fn of(queue: &str) -> Self {
        let pattern = format!("^{}$", queue.replace('.', "\\."));
        let limits = r#"{"max-length": 1, "overflow": "reject-publish"}"#;
        control(&["set_policy", queue, &pattern, limits, "--apply-to", "queues"]);
        Self(queue.to_owned())
    }
}

impl Drop for Full {
    fn drop(&mut self) {
        control(&["clear_policy", &self.0]);
    }
}

#[tokio::test]
async fn dead_letters_that_a_policy_kept_out_go_in_when_it_is_lifted() {
    let lab = Lab::new().await;
    let service = lab.start(&lab.toml("", ""), reject).await;
    lab.publish(0..3).await;
    until("three are dead", || async { lab.raw.count(&lab.dead()).await == 3 }).await;
    let full = Full::of(&lab.dead());
    lab.publish(3..20).await;
    stuck(&service).await;
    // Whoever was refused on its channel for so long is refused there for ever by RabbitMQ 3.10.
    until("they are refused again and again", || async {
        metric(&service, "copies_failed").await >= 40.0
    })
    .await;
    drop(full);
    until("all are dead", || async { lab.raw.count(&lab.dead()).await == 20 }).await;
    drained(&service).await;
    service.stop().await;
}

#[tokio::test]
async fn a_redrive_into_a_source_that_fills_up_leaves_no_letter_in_both_places() {
    const LETTERS: u32 = 200;
    let lab = Lab::new().await;
    let full = [("x-max-length", AMQPValue::LongInt(50)), ("x-overflow", text("reject-publish"))];
    lab.raw.declare(&lab.queue, &full).await;
    lab.raw.declare(&lab.dead(), &[("x-queue-type", text("quorum"))]).await;
    for number in 0..LETTERS {
        let body = number.to_string();
        lab.raw.publish(&lab.dead(), body.as_bytes(), properties(number)).await;
    }
    let toml = lab.toml("topology = \"none\"\nqueue_type = \"classic\"\n", "");
    let config = redeliver::config::Config::from_toml(&toml).expect("it is usable");
    let service = Service::builder(config).without_handler("orders").signals(false).start().await;
    let service = service.expect("it starts");
    let letters = service.dead_letters("orders").expect("it is configured");
    let error = letters.redrive(&Redrive::default()).await.expect_err("there is no room");
    assert!(error.to_string().contains(" were moved, then: "), "{error}");
    until("what was not moved is back", || async {
        lab.ready().await + lab.raw.count(&lab.dead()).await >= LETTERS
    })
    .await;
    service.stop().await;

    let mut bodies = Vec::new();
    for queue in [&lab.queue, &lab.dead()] {
        let found = lab.take_all(queue).await;
        assert!(!found.is_empty(), "some were moved, and some were not: {queue}");
        bodies.extend(found.into_iter().map(|message| message.delivery.data));
    }
    assert_eq!(bodies.len(), LETTERS as usize);
    bodies.sort();
    bodies.dedup();
    assert_eq!(bodies.len(), LETTERS as usize, "a letter is in both places");
}

#[tokio::test]
async fn a_redrive_that_is_dropped_half_way_leaves_one_letter_in_both_places_at_the_most() {
    const LETTERS: u32 = 300;
    let lab = Lab::new().await;
    let config = redeliver::config::Config::from_toml(&lab.toml("", "")).expect("it is usable");
    let service = Service::builder(config).without_handler("orders").signals(false).start().await;
    let service = service.expect("it starts");
    for number in 0..LETTERS {
        let body = number.to_string();
        lab.raw.publish(&lab.dead(), body.as_bytes(), properties(number)).await;
    }
    let letters = service.dead_letters("orders").expect("it is configured");
    let all = Redrive::default();
    tokio::select! {
        done = letters.redrive(&all) => panic!("it is not to be that quick: {done:?}"),
        () = until("some are moved", || async { lab.ready().await >= 20 }) => {}
    }
    until("what was not moved is back", || async {
        lab.ready().await + lab.raw.count(&lab.dead()).await >= LETTERS
    })
    .await;
    service.stop().await;
    let moved = lab.take_all(&lab.queue).await.len();
    let left = lab.take_all(&lab.dead()).await.len();
    assert!(moved + left <= LETTERS as usize + 1, "{moved} were moved, and {left} are left");
}

#[tokio::test]
async fn what_the_broker_dead_lettered_has_its_time_and_its_reason_whatever_a_publisher_wrote() {
    let lab = Lab::new().await;
    let service = lab.start(&lab.toml("", ""), reject).await;
    service.pause("orders").await.expect("it has this subscription");
    lab.publish_with(0..2, |number| {
        let mut headers = lapin::types::FieldTable::default();
        if number == 1 {
            headers.insert("redeliver-reason".into(), text("rejected"));
            headers.insert("redeliver-dead-at".into(), text("2000-01-01T00:00:00.000Z"));
            headers.insert("redeliver-consumer".into(), text("nobody"));
            headers.insert("redeliver-attempt".into(), AMQPValue::LongInt(7));
            headers.insert("redeliver-error".into(), text("made up"));
            headers.insert("redeliver-error-class".into(), text("made up"));
            headers.insert("redeliver-first-seen".into(), text("2000-01-01T00:00:00.000Z"));
        }
        let properties = properties(number).with_headers(headers).with_expiration("1".into());
        (number.to_string().into_bytes(), properties)
    })
    .await;
    until("both are dead", || async { lab.raw.count(&lab.dead()).await == 2 }).await;
    service.resume("orders").await.expect("it has this subscription");
    lab.publish(2..3).await;
    until("ours is too", || async { lab.raw.count(&lab.dead()).await == 3 }).await;

    let mut letters = dead_letters(&service).await;
    letters.sort_by(|one, other| one.id.cmp(&other.id));
    let reasons: Vec<_> = letters.iter().map(|letter| letter.reason).collect();
    let expected = [Reason::Expired, Reason::Expired, Reason::Rejected].map(Some);
    assert_eq!(reasons, expected);
    let day = Duration::from_secs(24 * 3600);
    for letter in &letters {
        let at = letter.dead_at.expect("somebody knows when");
        assert!(at.elapsed().unwrap_or_default() < day, "not when the liar said: {at:?}");
    }
    let liar = &letters[1];
    assert_eq!(liar.consumer, None, "the broker is no consumer");
    assert_eq!((liar.attempts, liar.first_seen), (0, None), "nobody ever handled it");
    assert_eq!((liar.error.as_deref(), liar.error_class.as_deref()), (None, None));

    let dead = service.dead_letters("orders").expect("it has this subscription");
    let older_than =
        |age| Filter { older_than: Some(age), reason: Some(Reason::Expired), ..Filter::default() };
    assert_eq!(dead.purge(&older_than(day)).await.expect("it can be read"), 0);
    assert_eq!(dead.purge(&older_than(Duration::ZERO)).await.expect("it can be read"), 2);
    service.stop().await;
}

#[tokio::test]
async fn attempts_that_were_made_are_told_from_those_that_a_publisher_made_up() {
    let lab = Lab::new().await;
    let limited = "arguments = { x-delivery-limit = 2 }\n";
    let retry = "[retry.standard]\nbackoff = \"fixed\"\njitter = \"none\"\ndelay_min = \"3s\"\nin_process_max = \"0s\"\n";
    let fail = |_: Delivery<u32>| async { Handled::Err(Failure::retry("not yet")) };
    let service = lab.start(&lab.toml(limited, retry), fail).await;
    lab.publish(1..2).await;
    let waiting = async || service.depth("orders").await.ok().and_then(|depth| depth.waiting);
    until("it waits", || async { waiting().await == Some(1) }).await;
    service.pause("orders").await.expect("it has this subscription");
    until("nobody consumes", || async { consumers(&lab).await == 0 }).await;
    until("its wait is over", || async { lab.ready().await == 1 }).await;
    give_back(&lab, 3, true).await;
    until("the server has moved it", || async { lab.raw.count(&lab.dead()).await == 1 }).await;
    lab.publish_with(2..3, |number| {
        let mut headers = lapin::types::FieldTable::default();
        headers.insert("redeliver-attempt".into(), AMQPValue::LongInt(7));
        (number.to_string().into_bytes(), properties(number).with_headers(headers))
    })
    .await;
    give_back(&lab, 3, true).await;
    until("the server has moved it", || async { lab.raw.count(&lab.dead()).await == 2 }).await;

    let letters = dead_letters(&service).await;
    let told: Vec<_> = letters
        .iter()
        .map(|letter| {
            (letter.id.as_deref(), letter.reason, letter.attempts, letter.error.as_deref())
        })
        .collect();
    let poison = Some(Reason::Poison);
    assert_eq!(told, [(Some("1"), poison, 1, Some("not yet")), (Some("2"), poison, 0, None)]);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_count_dips_while_a_page_is_read() {
    const LETTERS: u32 = 2_000;
    let lab = Lab::new().await;
    let service = lab.start(&lab.toml("", ""), reject).await;
    lab.publish(0..LETTERS).await;
    until("all are dead", || async { lab.raw.count(&lab.dead()).await == LETTERS }).await;
    let dead = service.dead_letters("orders").expect("it has this subscription");
    let mut pages = dead.pages(10).await.expect("they can be read");
    let reading = tokio::spawn(async move {
        while pages.next().await.expect("they can be read").is_some() {}
        pages
    });
    while !reading.is_finished() {
        let depth = service.depth("orders").await.expect("the server answers");
        assert_eq!(depth.dead, Some(LETTERS.into()));
    }
    let pages = reading.await.expect("it was read");
    pages.close().await.expect("it is given back");
    service.stop().await;
}

#[tokio::test]
async fn what_an_open_page_hides_is_counted_and_nobody_says_that_there_is_none() {
    let lab = Lab::new().await;
    let service = lab.start(&lab.toml("", ""), reject).await;
    lab.publish(0..40).await;
    until("all are dead", || async { lab.raw.count(&lab.dead()).await == 40 }).await;
    let dead = service.dead_letters("orders").expect("it has this subscription");
    let mut pages = dead.pages(1).await.expect("they can be read");
    let first = pages.next().await.expect("it can be read").expect("there is one");
    assert_eq!(first.len(), 1);
    until("what it holds is counted", || async {
        let depth = service.depth("orders").await.expect("the server answers");
        lab.raw.count(&lab.dead()).await < 40 && depth.dead == Some(40)
    })
    .await;
    let dry = Redrive { dry_run: true, ..Redrive::default() };
    let said = [
        dead.redrive(&dry).await.map(drop),
        dead.purge(&Filter::default()).await.map(drop),
        dead.show("1").await.map(drop),
    ];
    for said in said {
        let error = said.expect_err("a page is open").to_string();
        assert!(error.contains("open in another reader"), "{error}");
    }
    pages.close().await.expect("it is given back");
    assert_eq!(dead.redrive(&dry).await.expect("they can be read").matched, 40);
    // Dropped is as good as closed, once the server knows.
    drop(dead.pages(1).await.expect("they can be read"));
    until("they are back", || async {
        dead.redrive(&dry).await.expect("they can be read").matched == 40
    })
    .await;
    until("nothing is held any more", || async {
        service.depth("orders").await.expect("the server answers").dead == Some(40)
            && lab.raw.count(&lab.dead()).await == 40
    })
    .await;
    service.stop().await;
}
