//! Pauses and clean stops: what runs is finished, the rest is untouched, and no attempt is lost.

use std::time::Duration;

use redeliver::broker::Fault;
use redeliver::{Delivery, Filter, Handled, Redrive, SubscriptionState};
use tokio::time::sleep;

use crate::ground::{Ground, Kind, drained, sample, text, until};
use crate::process::Stage;
use crate::seen::{Seen, obey};

/// Takes a moment over each.
pub(crate) fn slow(
    seen: &Seen,
    time: Duration,
) -> impl Fn(Delivery<String>) -> Slow + Clone + Send + Sync + 'static {
    let seen = seen.clone();
    move |delivery| {
        seen.note(&delivery);
        Box::pin(async move {
            sleep(time).await;
            Ok(())
        })
    }
}

pub(crate) type Slow = futures_util::future::BoxFuture<'static, Handled>;

pub(crate) async fn a_pause_holds_everything_until_it_is_resumed(kind: Kind) {
    let ground = Ground::new(kind).await;
    let seen = Seen::default();
    let service = ground.start(&ground.toml("", ""), obey(&seen)).await;
    for round in 0..3 {
        service.pause("orders").await.expect("it can be paused");
        let health = service.health();
        assert_eq!(health.subscriptions["orders"].state, SubscriptionState::Paused);
        ground.send_numbers(&service, round * 10..round * 10 + 10).await;
        sleep(Duration::from_millis(500)).await;
        assert_eq!(seen.count() as u32, round * 10);
        until("they are counted", async || {
            service.depth("orders").await.is_ok_and(|depth| depth.ready == Some(10))
        })
        .await;
        service.resume("orders").await.expect("it can be resumed");
        until("they are handled", async || seen.count() as u32 == round * 10 + 10).await;
        drained(&service).await;
    }
    seen.assert_each_once(30);
    service.stop().await;
}

pub(crate) async fn a_stop_leaves_nothing_in_hand(kind: Kind) {
    let ground = Ground::new(kind).await;
    let seen = Seen::default();
    let toml = ground.toml("in_flight_max = 4\n", "");
    let service = ground.start(&toml, slow(&seen, Duration::from_millis(100))).await;
    ground.send_numbers(&service, 0..100).await;
    until("some run", async || seen.count() > 4).await;
    assert_eq!(service.stop().await.left, 0, "what runs is finished within the grace");
    let begun = seen.count();
    assert!(begun < 100, "nothing new was begun");
    sleep(Duration::from_millis(300)).await;
    assert_eq!(seen.count(), begun);
}

pub(crate) async fn what_is_sent_after_a_stop_is_an_error(kind: Kind) {
    let ground = Ground::new(kind).await;
    let service = ground.start(&ground.toml("", ""), obey(&Seen::default())).await;
    let publisher = service.publisher("main").expect("it is configured");
    let message = || ground.address(text("late", "ok"));
    publisher.send(message()).await.expect("it is confirmed");
    service.stop().await;
    for publisher in [publisher, service.publisher("main").expect("it is configured")] {
        let error = publisher.send(message()).await.expect_err("nobody is there to send it");
        assert_eq!((error.fault(), error.may_have_arrived()), (Fault::Closed, false), "{error}");
    }
}

pub(crate) async fn what_is_asked_after_a_stop_is_an_error(kind: Kind) {
    let ground = Ground::new(kind).await;
    let service = ground.start(&ground.toml("", ""), obey(&Seen::default())).await;
    ground.send(&service, text("sold out", "reject")).await;
    drained(&service).await;
    let dead = service.dead_letters("orders").expect("it is configured");
    assert!(dead.show("sold out").await.is_ok_and(|letter| letter.is_some()));
    service.stop().await;
    let answers = [
        service.depth("orders").await.map(drop),
        dead.pages(10).await.map(drop),
        dead.show("sold out").await.map(drop),
        dead.redrive(&Redrive::default()).await.map(drop),
        dead.purge(&Filter::default()).await.map(drop),
    ];
    for answer in answers {
        let error = answer.expect_err("nobody is there to ask").to_string();
        assert!(error.contains("closed by this process"), "{error}");
    }
    let health = service.health();
    assert!(!health.live && !health.ready, "{health:?}");
}

pub(crate) async fn clean_stops_repeat_none_and_lose_none(kind: Kind) {
    let (stops, total) = (5, sample(1_000, 10_000));
    let ground = Ground::new(kind).await;
    let toml = ground.toml("in_flight_max = 16\n", "");
    let onlooker = ground.onlook(&toml).await;
    ground.send_numbers(&onlooker, 0..total).await;
    onlooker.stop().await;
    let seen = Seen::default();
    for stop in 1..=stops {
        let service = ground.start(&toml, slow(&seen, Duration::from_millis(5))).await;
        // The last one works off what is left.
        let least = if stop == stops { total } else { total * stop / (stops + 1) };
        until(&format!("{least} are handled"), async || seen.count() >= least as usize).await;
        assert_eq!(service.stop().await.left, 0);
    }
    let service = ground.start(&toml, obey(&seen)).await;
    drained(&service).await;
    service.stop().await;
    seen.assert_each_once(total);
}

pub(crate) async fn what_is_not_done_in_time_comes_again(kind: Kind) {
    let ground = Ground::with_lanes(kind, 1).await;
    let toml = ground.toml("in_flight_max = 4\n", "");
    let hasty = toml.replace("\"20s\"", "\"300ms\"");
    let seen = Seen::default();
    let service = ground.start(&hasty, slow(&seen, Duration::from_secs(3600))).await;
    ground.send_numbers(&service, 0..10).await;
    until("four run", async || seen.count() == 4).await;
    assert_eq!(service.stop().await.left, 4);
    let again = Seen::default();
    let service = ground.start(&toml, obey(&again)).await;
    drained(&service).await;
    again.assert_each_once(10);
    assert!(again.runs().iter().all(|run| run.attempt == 1), "no attempt was counted");
    service.stop().await;
}

pub(crate) async fn what_waits_in_the_process_keeps_its_attempts_over_a_stop(kind: Kind) {
    let ground = Ground::new(kind).await;
    let retry = "backoff = \"fixed\"\njitter = \"none\"\ndelay_min = \"3s\"\nattempts_max = 3\n\
                 in_process_max = \"10s\"\n";
    let toml = ground.toml("", retry);
    let seen = Seen::default();
    for life in 1..=2 {
        let service = ground.start(&toml, obey(&seen)).await;
        if life == 1 {
            for number in 0..20 {
                ground.send(&service, text(&number.to_string(), "retry")).await;
            }
        }
        until("all have failed", async || seen.count() >= life * 20).await;
        sleep(Duration::from_millis(200)).await;
        assert_eq!(service.stop().await.left, 0);
    }
    let service = ground.start(&toml, obey(&seen)).await;
    drained(&service).await;
    for (id, attempts) in seen.attempts() {
        assert_eq!(attempts, [1, 2, 3], "{id}");
        let early = |gap: &Duration| *gap < Duration::from_secs(3);
        assert!(!seen.gaps(&id).iter().any(early), "{id} came early: {:?}", seen.gaps(&id));
    }
    let depth = service.depth("orders").await.expect("the broker tells");
    assert_eq!(depth.dead, Some(20));
    service.stop().await;
}

pub(crate) async fn a_stop_by_signal_ends_the_process_well_and_keeps_every_attempt(kind: Kind) {
    const COUNT: u32 = 100;
    let ground = Ground::new(kind).await;
    // Retries wait in the process, so that a stop finds many of them there.
    let retry = "backoff = \"fixed\"\njitter = \"none\"\ndelay_min = \"900ms\"\n\
                 in_process_max = \"10s\"\n";
    let toml = ground.toml("in_flight_max = 8\n", retry);
    let onlooker = ground.onlook(&toml).await;
    for number in 0..COUNT {
        ground.send(&onlooker, text(&number.to_string(), "retry once")).await;
    }
    onlooker.stop().await;
    let stage = Stage::new(toml, 20);
    for stop in 1..=3 {
        let child = stage.start(&ground).await;
        until("some are begun", async || stage.lines().len() >= stop * 30).await;
        assert!(child.terminate().await.success(), "a stop by SIGTERM is a success");
    }
    let child = stage.start(&ground).await;
    until("all are handled", async || stage.handled().len() == COUNT as usize).await;
    assert!(child.terminate().await.success());
    let mut attempts: Vec<_> =
        stage.lines().iter().map(|line| (line.number, line.attempt, line.handled)).collect();
    attempts.sort_unstable();
    let both = |number| [(number, 1, false), (number, 2, true)];
    let expected: Vec<_> = (0..COUNT).flat_map(both).collect();
    assert_eq!(attempts, expected, "each failed once and was handled once");
}

pub(crate) async fn stops_in_quick_succession_condemn_no_message(kind: Kind) {
    let ground = Ground::new(kind).await;
    let toml = ground.toml("crashes_max = 1\n", "");
    let onlooker = ground.onlook(&toml).await;
    ground.send_numbers(&onlooker, 0..50).await;
    onlooker.stop().await;
    let seen = Seen::default();
    for _ in 0..15 {
        let service = ground.start(&toml, slow(&seen, Duration::from_millis(20))).await;
        service.stop().await;
    }
    // On most versions of RabbitMQ a return counts like a crash: these are suspects now, and no more than that.
    let service = ground.start(&toml, obey(&seen)).await;
    drained(&service).await;
    let depth = service.depth("orders").await.expect("the broker tells");
    assert_eq!(depth.dead, Some(0), "nothing ended a process");
    assert_eq!(seen.attempts().len(), 50);
    service.stop().await;
}
