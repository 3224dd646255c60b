//! Processes that are killed: nothing is lost, and attempts are counted on.

use std::time::Duration;

use redeliver::Reason;
use tokio::time::sleep;

use crate::ground::{Ground, Kind, dead_letters, drained, sample, text, until};
use crate::process::Stage;
use crate::seen::{Seen, obey};

/// A window of 17: 16 that are handled, and one that is parked.
const WINDOW: &str = "in_flight_max = 16\nparked_max = 1\n";
const WAITS: &str = "backoff = \"fixed\"\njitter = \"none\"\ndelay_min = \"300ms\"\nattempts_max = 4\n\
                     in_process_max = \"0s\"\n";

/// Publishes numbers, each with its word, from a service that consumes nothing.
async fn publish(ground: &Ground, toml: &str, count: u32, word: impl Fn(u32) -> &'static str) {
    let service = ground.onlook(toml).await;
    for number in 0..count {
        ground.send(&service, text(&number.to_string(), word(number))).await;
    }
    service.stop().await;
}

/// What is left in the end: nothing but so many dead letters.
async fn assert_worked_off(ground: &Ground, toml: &str, dead: usize) {
    let service = ground.start(toml, obey(&Seen::default())).await;
    drained(&service).await;
    let letters = dead_letters(&service).await;
    assert_eq!(letters.len(), dead, "{letters:?}");
    assert!(letters.iter().all(|it| (it.reason, it.attempts) == (Some(Reason::Exhausted), 4)));
    service.stop().await;
}

pub(crate) async fn a_process_killed_in_the_middle_loses_none(kind: Kind) {
    let ground = Ground::new(kind).await;
    let toml = ground.toml(WINDOW, "");
    publish(&ground, &toml, 1000, |_| "ok").await;
    let stage = Stage::new(toml.clone(), 3);
    let first = stage.start(&ground).await;
    until("300 are handled", async || stage.lines().len() >= 300).await;
    first.kill();
    let second = stage.start(&ground).await;
    until("all are handled", async || stage.handled().len() == 1000).await;
    assert!(second.terminate().await.success());
    if kind == Kind::Rabbitmq {
        // What Kafka repeats is what was finished since the last commit, too.
        let repeated: u32 = stage.handled().values().map(|times| times - 1).sum();
        assert!(repeated <= 17, "{repeated} were handled twice");
    }
    assert_worked_off(&ground, &toml, 0).await;
}

pub(crate) async fn kills_among_failing_messages_dead_letter_none(kind: Kind) {
    let kills = sample(2, 10);
    let total = kills * 300;
    let ground = Ground::new(kind).await;
    let toml = ground.toml(&format!("{WINDOW}crashes_max = 1000\n"), WAITS);
    publish(&ground, &toml, total, |number| if number % 5 == 0 { "retry once" } else { "ok" })
        .await;
    let stage = Stage::new(toml.clone(), 5);
    for kill in 1..=kills as usize {
        let child = stage.start(&ground).await;
        until("enough is handled", async || stage.lines().len() >= kill * 150).await;
        child.kill();
    }
    let last = stage.start(&ground).await;
    until("all are handled", async || stage.handled().len() == total as usize).await;
    assert!(last.terminate().await.success());
    for line in stage.lines().iter().filter(|line| line.handled) {
        let least = if line.number % 5 == 0 { 2 } else { 1 };
        assert_eq!(line.attempt, least, "{line:?}");
    }
    assert_worked_off(&ground, &toml, 0).await;
}

pub(crate) async fn attempts_are_counted_on_by_the_next_process(kind: Kind) {
    let ground = Ground::new(kind).await;
    let toml = ground.toml("crashes_max = 1000\n", &WAITS.replace("300ms", "4s"));
    publish(&ground, &toml, 1, |_| "retry").await;
    let onlooker = ground.onlook(&toml).await;
    let stage = Stage::new(toml.clone(), 0);
    for attempt in 1..=4 {
        let child = stage.start(&ground).await;
        until("it is tried", async || stage.lines().len() >= attempt).await;
        // Kafka counts what is in hand as waiting, so that a copy cannot be told from its original at once.
        sleep(Duration::from_millis(500)).await;
        until("its copy is confirmed", async || {
            let depth = onlooker.depth("orders").await.unwrap_or_default();
            let places = (depth.waiting, depth.dead);
            let expected = if attempt == 4 { (0, 1) } else { (1, 0) };
            depth.ready == Some(0) && places == (Some(expected.0), Some(expected.1))
        })
        .await;
        match attempt % 2 {
            0 => child.kill(),
            _ => assert!(child.terminate().await.success()),
        }
    }
    onlooker.stop().await;
    let mut attempts: Vec<_> = stage.lines().iter().map(|line| line.attempt).collect();
    // A kill may repeat one; none is left out, and there is no fifth.
    attempts.dedup();
    assert_eq!(attempts, [1, 2, 3, 4]);
    assert_worked_off(&ground, &toml, 1).await;
}
