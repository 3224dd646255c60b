//! What a handler answers, and what becomes of its message.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use redeliver::{Delivery, Failure, Handled, Message, Reason};
use tokio::time::sleep;

use crate::ground::{Ground, Kind, dead_letters, drained, text, until};
use crate::seen::{Seen, obey};

const WORDS: [&str; 10] = [
    "defer once",
    "hang once",
    "invalid",
    "later once",
    "ok",
    "panic",
    "panic once",
    "reject",
    "retry",
    "retry once",
];

const RULES: &str = "rules = [{ class = \"noise\", then = \"ignore\" }]\n";

async fn check(kind: Kind, retry: &str) {
    let ground = Ground::new(kind).await;
    let seen = Seen::default();
    let toml = ground.toml("timeout = \"2s\"\n", &format!("{retry}{RULES}"));
    let service = ground.start(&toml, obey(&seen)).await;
    ground.send_words(&service, &WORDS).await;
    until("all are begun", async || seen.attempts().len() == WORDS.len()).await;
    drained(&service).await;

    let attempts = seen.attempts();
    for word in WORDS {
        let expected: &[u32] = match word {
            "ok" | "reject" | "invalid" => &[1],
            "defer once" => &[1, 1],
            "panic" | "retry" => &[1, 2, 3],
            _ => &[1, 2],
        };
        assert_eq!(attempts[word], expected, "{word}");
    }
    for (word, least) in
        [("retry once", 400), ("retry", 400), ("later once", 1200), ("defer once", 700)]
    {
        let early = |gap: &Duration| *gap < Duration::from_millis(least);
        assert!(!seen.gaps(word).iter().any(early), "{word} came early: {:?}", seen.gaps(word));
    }
    let letters = dead_letters(&service).await;
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
            (Some("panic"), Some("exhausted"), 3, Some("panic"), Some("panicked: out of luck")),
            (Some("reject"), Some("rejected"), 1, Some("validation"), Some("no such customer")),
            (Some("retry"), Some("exhausted"), 3, Some("backend"), Some("not yet")),
        ]
    );
    // RabbitMQ puts back what was read when it comes to it.
    until("three dead letters are counted", async || {
        service.depth("orders").await.is_ok_and(|depth| depth.dead == Some(3))
    })
    .await;
    assert_eq!(service.stop().await.left, 0);
}

pub(crate) async fn what_a_handler_answers_is_what_becomes_of_its_message(kind: Kind) {
    check(
        kind,
        "backoff = \"fixed\"\njitter = \"none\"\ndelay_min = \"400ms\"\nattempts_max = 3\n",
    )
    .await;
}

pub(crate) async fn it_is_the_same_when_failures_wait_at_the_broker(kind: Kind) {
    let retry = "backoff = \"fixed\"\njitter = \"none\"\ndelay_min = \"400ms\"\nattempts_max = 3\n\
                 in_process_max = \"0s\"\n";
    check(kind, retry).await;
}

pub(crate) async fn a_dependency_that_is_down_does_not_empty_the_queue_into_the_dead_letters(
    kind: Kind,
) {
    let ground = Ground::with_lanes(kind, 1).await;
    let keys = "in_flight_max = 8\nbreaker = { attempts_min = 20, failure_rate = 0.9, window = \
                \"10s\", pause = \"300ms\", pause_max = \"600ms\" }\n";
    let retry = "backoff = \"fixed\"\njitter = \"none\"\ndelay_min = \"300ms\"\nattempts_max = 3\n\
                 in_process_max = \"0s\"\n";
    let (down, seen) = (Arc::new(AtomicBool::new(true)), Seen::default());
    let (is_down, noted) = (down.clone(), seen.clone());
    let handler = move |delivery: Delivery<String>| {
        noted.note(&delivery);
        let fails = is_down.load(Ordering::SeqCst);
        async move {
            sleep(Duration::from_millis(5)).await;
            if fails { Err(Failure::retry("the dependency is down")) } else { Handled::Ok(()) }
        }
    };
    let service = ground.start(&ground.toml(keys, retry), handler).await;
    ground.send_numbers(&service, 0..200).await;
    until("the breaker opens", async || service.health().subscriptions["orders"].breaker_open)
        .await;
    let before = seen.count();
    assert!(before <= 20 + 8, "{before} ran before it opened");
    sleep(Duration::from_secs(2)).await;
    let depth = service.depth("orders").await.expect("the broker tells");
    assert_eq!(depth.dead, Some(0), "nothing is dead-lettered");
    down.store(false, Ordering::SeqCst);
    drained(&service).await;
    until("it is ready again", async || service.health().ready).await;
    assert!(dead_letters(&service).await.is_empty());
    let attempts = seen.attempts();
    assert_eq!(attempts.len(), 200);
    let burnt: u32 = attempts.values().filter_map(|runs| runs.last()).map(|last| last - 1).sum();
    assert!(burnt <= 20 + 8, "{burnt} attempts were counted while the dependency was down");
    service.stop().await;
}

pub(crate) async fn messages_that_are_rejected_open_no_breaker(kind: Kind) {
    let ground = Ground::new(kind).await;
    let seen = Seen::default();
    let keys = "breaker = { attempts_min = 20, failure_rate = 0.5, window = \"10s\" }\n";
    let service = ground.start(&ground.toml(keys, ""), obey(&seen)).await;
    for number in 0..100 {
        ground.send(&service, text(&number.to_string(), "reject")).await;
    }
    until("all are handled", async || seen.count() == 100).await;
    drained(&service).await;
    assert!(service.health().ready, "{:?}", service.health().reasons);
    assert_eq!(dead_letters(&service).await.len(), 100);
    service.stop().await;
}

pub(crate) async fn an_id_that_comes_five_times_is_handled_once(kind: Kind) {
    let ground = Ground::new(kind).await;
    let seen = Seen::default();
    let retry = "backoff = \"fixed\"\njitter = \"none\"\ndelay_min = \"100ms\"\nattempts_max = 3\n";
    let toml = ground.toml("idempotency = { store = \"main\" }\n", retry);
    let service = ground.start(&toml, obey(&seen)).await;
    for copy in 0..5 {
        for number in 0..20 {
            // By different keys, so that Kafka spreads the copies over its partitions.
            let message = text(&number.to_string(), "retry once").key(format!("{copy}-{number}"));
            ground.send(&service, message).await;
        }
    }
    drained(&service).await;
    let attempts = seen.attempts();
    assert_eq!(attempts.len(), 20);
    assert!(attempts.values().all(|runs| *runs == [1, 2]), "{attempts:?}");
    service.stop().await;
}

pub(crate) async fn what_is_to_live_for_ever_is_handled(kind: Kind) {
    let ground = Ground::new(kind).await;
    let seen = Seen::default();
    let service = ground.start(&ground.toml("", ""), obey(&seen)).await;
    for (number, days) in [(0, 1), (1, 50), (2, u64::MAX / 86_400)] {
        let message = text(&number.to_string(), "ok");
        ground.send(&service, message.expires_in(Duration::from_secs(days * 86_400))).await;
    }
    ground.send(&service, text("3", "ok").expires_in(Duration::MAX)).await;
    drained(&service).await;
    seen.assert_each_once(4);
    service.stop().await;
}

pub(crate) async fn what_circles_ends_as_a_loop(kind: Kind) {
    let ground = Arc::new(Ground::new(kind).await);
    let at = Arc::clone(&ground);
    let send_on = move |delivery: Delivery<String>| {
        let at = Arc::clone(&at);
        async move {
            let hop = delivery.hops() + 1;
            let again = Message::json(&delivery.payload)?.id(format!("hop-{hop}"));
            delivery.publisher().send(at.address(again)).await?;
            Handled::Ok(())
        }
    };
    let service = ground.start(&ground.toml("hops_max = 3\n", ""), send_on).await;
    ground.send(&service, text("hop-0", "round")).await;
    until("it is given up", async || {
        service.depth("orders").await.is_ok_and(|depth| depth.dead == Some(1))
    })
    .await;
    drained(&service).await;
    let letters = dead_letters(&service).await;
    assert_eq!((letters[0].id.as_deref(), letters[0].reason), (Some("hop-4"), Some(Reason::Loop)));
    service.stop().await;
}
