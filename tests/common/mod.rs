//! What several test binaries share. Each uses a part of it.
#![allow(dead_code, reason = "a test binary uses a part of what is here")]

pub(crate) mod headers;
pub(crate) mod process;
pub(crate) mod rabbitmq;

use redeliver::{DeadLetter, Service};

/// All dead letters of `orders`, by the subscription's own reader.
pub(crate) async fn dead_letters(service: &Service) -> Vec<DeadLetter> {
    let reader = service.dead_letters("orders").expect("it has this subscription");
    let mut pages = reader.pages(100).await.expect("they can be read");
    let mut letters = Vec::new();
    while let Some(page) = pages.next().await.expect("they can be read") {
        letters.extend(page);
    }
    pages.close().await.expect("they go back");
    letters
}
