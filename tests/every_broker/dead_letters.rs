//! Dead letters from code: listed, counted, redriven, purged.

use redeliver::{Delivery, Failure, Filter, Handled, Reason, Redrive, Redriven};

use crate::ground::{Ground, Kind, dead_letters, drained, text, until};
use crate::seen::Seen;

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
