//! Ids of any bytes and length, and very many keys.

use redeliver::{Delivery, Handled};
use serde_json::{Value, json};

use crate::lab::{Lab, Log, SHORT_WAITS};

#[tokio::test(flavor = "multi_thread")]
async fn ids_of_any_kind_are_told_apart_and_handled_once() {
    let (lab, log) = (Lab::new(), Log::default());
    let noting = log.clone();
    let handler = move |delivery: Delivery<Value>| {
        noting.note(&delivery);
        async { Handled::Ok(()) }
    };
    let keys = "id = \"/id\"\nidempotency = { store = \"main\" }\n\
                lock = { store = \"main\", key = \"/id\" }";
    let service = lab.start(&lab.toml(keys, SHORT_WAITS), handler).await;
    let long = "i".repeat(1 << 20);
    let ids = ["a\0", "a\0b", "a\n", "a", "{a}", "{hash}{tags}", "{}", "}{", long.as_str()];
    for _ in 0..2 {
        for id in ids {
            lab.send(&service, "unread", json!({ "id": id })).await;
        }
        lab.send(&service, "unread", json!({ "id": format!("{long}2") })).await;
    }
    lab.drained(&service).await;
    assert_eq!(log.len(), ids.len() + 1, "{:?}", log.ids().iter().map(|id| id.len()).max());
    assert_eq!(lab.dead(&service).await, Some(0));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_of_no_bytes_is_no_id() {
    let (lab, log) = (Lab::new(), Log::default());
    let noting = log.clone();
    let handler = move |delivery: Delivery<Value>| {
        noting.note(&delivery);
        async { Handled::Ok(()) }
    };
    let keys = "id = \"/id\"\nidempotency = { store = \"main\" }";
    let service = lab.start(&lab.toml(keys, SHORT_WAITS), handler).await;
    let message = redeliver::Message::json(&json!({ "id": "" })).expect("it is JSON");
    let message = message.to_queue(&lab.name).id("");
    service.publisher("main").expect("it is configured").send(message).await.expect("confirmed");
    lab.eventually("a dead letter", async || lab.dead(&service).await == Some(1)).await;
    let letters = service.dead_letters(&lab.name).expect("it is configured");
    let mut pages = letters.pages(10).await.expect("an answer");
    let page = pages.next().await.expect("an answer").expect("a dead letter");
    assert_eq!(page[0].reason, Some(redeliver::Reason::NoId));
    pages.close().await.expect("an answer");
    assert_eq!(log.len(), 0);
    service.stop().await;
}

/// Resident memory of this process in KiB.
fn memory() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = text.lines().find(|line| line.starts_with("VmRSS:")).expect("a line");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number")
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_does_not_grow_with_the_number_of_keys() {
    let full = std::env::var_os("REDELIVER_TEST_FULL").is_some();
    let count: u64 = if full { 100_000 } else { 10_000 };
    let lab = Lab::new();
    let keys = "ordering = \"key\"\nkey = \"/id\"\norder_on_long_wait = \"reorder\"\n\
                idempotency = { store = \"main\", keep = \"2m\" }\nretry = \"short\"\n\
                lock = { store = \"main\", key = \"/id\" }";
    let tables = "[retry.short]\nage_max = \"1s\"\nattempts_max = 1\n";
    let toml = lab.toml(keys, tables);
    let service = lab.start(&toml, |_: Delivery<Value>| async { Handled::Ok(()) }).await;
    let publish = async |numbers: std::ops::Range<u64>| {
        let publisher = service.publisher("main").expect("it is configured");
        let sends = numbers.map(|number| {
            let id = format!("{}-{number}-{}", lab.name, "k".repeat(200));
            publisher.send(lab.message(&id, &json!({ "id": id })))
        });
        use futures_util::StreamExt;
        let sent = futures_util::stream::iter(sends).buffer_unordered(256);
        sent.for_each(|sent| async { drop(sent.expect("confirmed")) }).await;
        lab.drained(&service).await;
    };
    publish(0..count / 10).await;
    let before = memory();
    publish(count / 10..count).await;
    let grown = memory().saturating_sub(before);
    // The keys alone are 250 bytes each; the rest is what allocators and other tests keep.
    let keys_alone = count * 250 / 1024;
    println!("{grown} KiB more after {count} keys, which are {keys_alone} KiB");
    assert!(grown < 16 * 1024, "{grown} KiB more after {count} keys");
    service.stop().await;
}
