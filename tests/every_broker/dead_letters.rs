//! Dead letters from code: listed, counted, redriven, purged.

use std::collections::BTreeSet;

use redeliver::{Delivery, Failure, Filter, Handled, Reason, Redrive, Redriven};

use crate::ground::{Ground, Kind, dead_letters, drained, text, until};
use crate::seen::{Seen, obey};

pub(crate) async fn dead_letters_are_redriven_or_purged_as_asked(kind: Kind) {
    let ground = Ground::new(kind).await;
    let seen = Seen::default();
    let noted = seen.clone();
    // Once redriven, everything works.
    let handler = move |delivery: Delivery<String>| {
        noted.note(&delivery);
        async move {
            match (delivery.generation(), delivery.payload.as_str()) {
                (0, "reject") => Err(Failure::reject("no such customer")),
                (0, _) => Err(Failure::retry("not yet")),
                _ => Handled::Ok(()),
            }
        }
    };
    let retry = "backoff = \"fixed\"\njitter = \"none\"\ndelay_min = \"20ms\"\nattempts_max = 2\n";
    let service = ground.start(&ground.toml("", retry), handler).await;
    for number in 0..10 {
        ground.send(&service, text(&format!("reject-{number}"), "reject")).await;
        ground.send(&service, text(&format!("retry-{number}"), "retry")).await;
    }
    drained(&service).await;
    assert_eq!(dead_letters(&service).await.len(), 20);

    let dead = service.dead_letters("orders").expect("it is configured");
    let exhausted = Filter { reason: Some(Reason::Exhausted), ..Filter::default() };
    let dry = Redrive { filter: exhausted.clone(), dry_run: true, ..Redrive::default() };
    let counted = dead.redrive(&dry).await.expect("it works");
    assert_eq!(counted, Redriven { matched: 10, moved: 0 });
    assert_eq!(dead_letters(&service).await.len(), 20, "nothing was touched");

    let redrive = Redrive { filter: exhausted, ..Redrive::default() };
    let redriven = dead.redrive(&redrive).await.expect("it works");
    assert_eq!(redriven, Redriven { matched: 10, moved: 10 });
    until("they are handled", async || seen.count() == 10 + 20 + 10).await;
    drained(&service).await;
    let attempts = seen.attempts();
    assert!(
        (0..10).all(|number| attempts[&format!("retry-{number}")] == [1, 2, 1]),
        "{attempts:?}"
    );
    let left = dead_letters(&service).await;
    assert!(left.len() == 10 && left.iter().all(|it| it.reason == Some(Reason::Rejected)));

    assert_eq!(dead.purge(&Filter::default()).await.expect("it works"), 10);
    assert!(dead_letters(&service).await.is_empty());
    let depth = service.depth("orders").await.expect("the broker tells");
    assert_eq!(depth.dead, Some(0));
    service.stop().await;
}

pub(crate) async fn what_was_redriven_and_fails_again_is_there_once(kind: Kind) {
    let ground = Ground::new(kind).await;
    let seen = Seen::default();
    let retry = "backoff = \"fixed\"\njitter = \"none\"\ndelay_min = \"100ms\"\nattempts_max = 3\n\
                 in_process_max = \"0s\"\n";
    let service = ground.start(&ground.toml("", retry), obey(&seen)).await;
    for number in 0..10 {
        ground.send(&service, text(&format!("reject-{number}"), "reject")).await;
        ground.send(&service, text(&format!("retry-{number}"), "retry")).await;
    }
    let dead = service.dead_letters("orders").expect("it is configured");
    for generation in 0..3 {
        let all = (generation + 1) * 10 * (1 + 3);
        until("all have failed", async || seen.count() == all).await;
        drained(&service).await;
        let letters = dead_letters(&service).await;
        let ids: BTreeSet<_> = letters.iter().filter_map(|letter| letter.id.clone()).collect();
        assert_eq!((letters.len(), ids.len()), (20, 20), "each is there once, under its own id");
        for letter in &letters {
            let attempts = if letter.reason == Some(Reason::Rejected) { 1 } else { 3 };
            assert_eq!((letter.generation as usize, letter.attempts), (generation, attempts));
        }
        if generation < 2 {
            let redriven = dead.redrive(&Redrive::default()).await.expect("it works");
            assert_eq!(redriven, Redriven { matched: 20, moved: 20 });
        }
    }
    service.stop().await;
}
