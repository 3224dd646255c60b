//! Dead letters from code: looked at, counted, moved back once the cause is gone, thrown away.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use redeliver::config::Config;
use redeliver::{Delivery, Failure, Filter, Message, Redrive, Redriven, Service};

#[actix::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let bank_is_open = Arc::new(AtomicBool::new(false));
    let bank = Arc::clone(&bank_is_open);
    let refund = move |refund: Delivery<i64>| {
        let open = bank.load(Ordering::Relaxed);
        async move {
            match (refund.payload, open) {
                (..=0, _) => Err(Failure::reject("refund of nothing").class("validation")),
                (_, false) => Err(Failure::reject("the account is gone").class("bank")),
                (_, true) => Ok(()),
            }
        }
    };
    let config = "brokers.main.kind = 'memory'\nsubscriptions.refunds.broker = 'main'";
    let service = Service::builder(Config::from_toml(config)?).subscribe("refunds", refund);
    let service = service.start().await?;
    let publisher = service.publisher("main")?;
    for cents in [0, 500, 700] {
        let refund = Message::json(&cents)?.to_queue("refunds").id(format!("refund-{cents}"));
        publisher.send(refund).await?;
    }
    let until_dead = async |count| {
        while service.depth("refunds").await?.dead != Some(count) {
            tokio::task::yield_now().await;
        }
        Ok::<_, redeliver::Error>(())
    };
    until_dead(3).await?;

    let letters = service.dead_letters("refunds")?;
    let mut pages = letters.pages(2).await?;
    while let Some(page) = pages.next().await? {
        for letter in page {
            let error = letter.error.unwrap_or_default();
            println!("{}: {error}", letter.id.unwrap_or_default());
        }
    }
    pages.close().await?;

    bank_is_open.store(true, Ordering::Relaxed);
    let of_the_bank = Filter { error_class: Some("bank".into()), ..Filter::default() };
    let redrive = Redrive { filter: of_the_bank, ..Redrive::default() };
    let tried = letters.redrive(&Redrive { dry_run: true, ..redrive.clone() }).await?;
    assert_eq!(tried, Redriven { matched: 2, moved: 0 });
    assert_eq!(letters.redrive(&redrive).await?, Redriven { matched: 2, moved: 2 });
    until_dead(1).await?;
    let purged = letters.purge(&Filter::default()).await?;
    assert_eq!(purged, 1);
    let mut depth = service.depth("refunds").await?;
    while (depth.ready, depth.unsettled) != (Some(0), Some(0)) {
        tokio::task::yield_now().await;
        depth = service.depth("refunds").await?;
    }
    println!("2 were redriven and are handled now, {purged} was thrown away");
    service.stop().await;
    Ok(())
}
