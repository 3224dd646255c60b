//! Waits at the broker: never early, ended by expiry, and not in our memory.

use std::time::Duration;

use redeliver::{Message, Reason};

use crate::ground::{Ground, Kind, dead_letters, drained, sample, text, until};
use crate::process::Stage;
use crate::seen::{Seen, obey};

pub(crate) async fn a_wait_is_never_early_and_holds_nobody_up(kind: Kind) {
    let ground = Ground::with_lanes(kind, 1).await;
    let seen = Seen::default();
    let retry = "backoff = \"list\"\njitter = \"none\"\ndelays = [\"4s\", \"500ms\"]\n\
                 in_process_max = \"0s\"\nattempts_max = 4\n";
    let toml = ground.toml("in_flight_max = 4\nparked_max = 4\n", retry);
    let service = ground.start(&toml, obey(&seen)).await;
    for number in 0..40 {
        ground.send(&service, text(&format!("waits-{number}"), "retry once")).await;
    }
    ground.send_numbers(&service, 0..40).await;
    drained(&service).await;
    let runs = seen.runs();
    let again = runs.iter().position(|run| run.attempt == 2).expect("some are tried again");
    let before = runs[..again].iter().filter(|run| !run.id.starts_with("waits")).count();
    assert!(before > 0, "the others go on meanwhile");
    for number in 0..40 {
        let gaps = seen.gaps(&format!("waits-{number}"));
        assert!(gaps.len() == 1 && gaps[0] >= Duration::from_secs(4), "{number}: {gaps:?}");
        assert_eq!(seen.attempts()[&number.to_string()], [1]);
    }
    service.stop().await;
}

pub(crate) async fn no_wait_is_shorter_than_its_step(kind: Kind) {
    let steps = [100, 250, 600, 1500].map(Duration::from_millis);
    let retry = "backoff = \"list\"\njitter = \"none\"\nattempts_max = 5\n\
                 delays = [\"100ms\", \"250ms\", \"600ms\", \"1500ms\"]\nin_process_max = \"0s\"\n";
    let ground = Ground::new(kind).await;
    let seen = Seen::default();
    let service = ground.start(&ground.toml("", retry), obey(&seen)).await;
    for number in 0..40 {
        ground.send(&service, text(&number.to_string(), "retry")).await;
    }
    drained(&service).await;
    service.stop().await;
    for id in seen.attempts().keys() {
        let gaps = seen.gaps(id);
        assert_eq!(gaps.len(), steps.len(), "attempts of {id}: {gaps:?}");
        for (gap, step) in gaps.iter().zip(steps) {
            assert!(*gap >= step, "{id} was early: {gap:?} instead of {step:?}");
        }
    }
    assert_eq!(seen.attempts().len(), 40);
}

pub(crate) async fn short_waits_in_the_process_hold_no_neighbour_back(kind: Kind) {
    let retry = "backoff = \"fixed\"\njitter = \"none\"\ndelay_min = \"900ms\"\n";
    // Kafka has one partition, so that no neighbour goes on in another.
    let ground = Ground::with_lanes(kind, 1).await;
    let seen = Seen::default();
    let service = ground.start(&ground.toml("in_flight_max = 1\n", retry), obey(&seen)).await;
    for number in 0..20 {
        ground.send(&service, text(&format!("waits-{number}"), "retry once")).await;
    }
    ground.send_numbers(&service, 0..80).await;
    drained(&service).await;
    service.stop().await;
    let runs = seen.runs();
    let again = runs.iter().position(|run| run.attempt == 2).expect("some were tried again");
    // With the only permit held by what waits, nobody would pass.
    assert!(again > 1, "the others went on meanwhile");
    for number in 0..20 {
        let gaps = seen.gaps(&format!("waits-{number}"));
        assert!(gaps.len() == 1 && gaps[0] >= Duration::from_millis(900), "{number}: {gaps:?}");
    }
}

pub(crate) async fn what_expires_while_it_waits_is_dead_lettered_or_dropped(kind: Kind) {
    let policy = |on_expired: &'static str, dead| async move {
        let ground = Ground::new(kind).await;
        let seen = Seen::default();
        let retry =
            "backoff = \"fixed\"\njitter = \"none\"\ndelay_min = \"6s\"\nin_process_max = \"0s\"\n";
        let toml = ground.toml(&format!("on_expired = \"{on_expired}\"\n"), retry);
        let service = ground.start(&toml, obey(&seen)).await;
        let dying = text("dying", "retry").expires_in(Duration::from_secs(5));
        ground.send(&service, dying).await;
        drained(&service).await;
        let letters = dead_letters(&service).await;
        assert_eq!(letters.len(), dead, "{on_expired}: {letters:?}");
        assert!(letters.iter().all(|letter| letter.reason == Some(Reason::Expired)), "{letters:?}");
        assert_eq!(seen.attempts()["dying"], [1], "the handler does not see what has expired");
        service.stop().await;
    };
    tokio::join!(policy("dead-letter", 1), policy("drop", 0));
}

pub(crate) async fn waiting_messages_hold_no_memory_in_the_process(kind: Kind) {
    const BODY: usize = 20_000;
    /// The first few fill buffers and pools, which stay.
    const FIRST: u32 = 1_000;
    let total = sample(2_000, 10_000);
    let ground = Ground::with_lanes(kind, 1).await;
    let retry = "backoff = \"fixed\"\njitter = \"none\"\ndelay_min = \"1h\"\ndelay_max = \"1h\"\n\
                 in_process_max = \"0s\"\n";
    let toml = ground.toml("", retry);
    let stage = Stage::new(toml.clone(), 0);
    let child = stage.start(&ground).await;
    let onlooker = ground.onlook(&toml).await;
    let publish = async |numbers: std::ops::Range<u32>| {
        let all = numbers.end;
        for number in numbers {
            let body = format!("\"retry\"{}", " ".repeat(BODY));
            let id = number.to_string();
            ground.send(&onlooker, Message::bytes(body).id(&id).key(id.clone())).await;
        }
        until("they wait", async || {
            let depth = onlooker.depth("orders").await.expect("the broker tells");
            depth.waiting == Some(u64::from(all))
        })
        .await;
    };
    publish(0..FIRST).await;
    let before = child.memory();
    publish(FIRST..FIRST + total).await;
    let grown = child.memory().saturating_sub(before);
    let held = u64::from(total) * BODY as u64;
    assert!(grown < held / 4, "{grown} bytes more, of {held} that wait at the broker");
    onlooker.stop().await;
    assert!(child.terminate().await.success());
}
