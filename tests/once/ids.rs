//! Ids of any bytes and length, and very many keys.

use futures_util::StreamExt;
use redeliver::config::Config;
use redeliver::{Delivery, Handled, Message, Service};
use serde_json::{Value, json};

use crate::lab::{Lab, Log, SHORT_WAITS, redis_url};
use crate::{programs, worker};

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
    let raw = crate::common::rabbitmq::Raw::connect().await;
    raw.publish(&lab.name, br#"{"id":""}"#, lapin::BasicProperties::default()).await;
    lab.eventually("a dead letter", async || lab.dead(&service).await == Some(1)).await;
    let letters = service.dead_letters(&lab.name).expect("it is configured");
    let mut pages = letters.pages(10).await.expect("an answer");
    let page = pages.next().await.expect("an answer").expect("a dead letter");
    assert_eq!(page[0].reason, Some(redeliver::Reason::NoId));
    pages.close().await.expect("an answer");
    assert_eq!(log.len(), 0);
    service.stop().await;
}

/// Resident memory of a process in KiB.
fn memory(process: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{process}/status")).expect("Linux");
    let line = text.lines().find(|line| line.starts_with("VmRSS:")).expect("a line");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number")
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_does_not_grow_with_the_number_of_keys() {
    let full = std::env::var_os("REDELIVER_TEST_FULL").is_some();
    let count: u64 = if full { 100_000 } else { 20_000 };
    let (lab, folder) = (Lab::new(), programs::folder());
    let keys = "id = \"/id\"\nordering = \"key\"\nkey = \"/id\"\norder_on_long_wait = \"reorder\"\n\
                idempotency = { store = \"main\", keep = \"10m\" }\n\
                lock = { store = \"main\", key = \"/id\" }\nbreaker = { attempts_min = 1000000 }";
    let toml = lab.toml(keys, &format!("{SHORT_WAITS}age_max = \"1m\"\n"));
    let service = lab.idle(&toml).await;
    let mut process = worker::start(&toml, folder.path());
    let publish = async |numbers: std::ops::Range<u64>| {
        let end = numbers.end as usize;
        let publisher = service.publisher("main").expect("it is configured");
        let sends = numbers.map(|number| {
            let id = format!("{}-{number}-{}", lab.name, "k".repeat(200));
            publisher.send(lab.message(&number.to_string(), &json!({ "id": id })))
        });
        let sent = futures_util::stream::iter(sends).buffer_unordered(256);
        sent.for_each(|sent| async { drop(sent.expect("confirmed")) }).await;
        lab.eventually("all effects", async || worker::effects(folder.path()).len() == end).await;
    };
    publish(0..count / 4).await;
    let before = memory(process.id());
    publish(count / 4..count).await;
    let grown = memory(process.id()).saturating_sub(before);
    println!("{grown} KiB more after {count} keys of 240 bytes");
    // A process that kept key and id of each would need 2 * 240 bytes for each.
    assert!(grown < 7 * 1024, "{grown} KiB more after {count} keys");
    process.kill().expect("it can be killed");
    process.wait().expect("it can be waited for");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn services_of_names_or_prefixes_of_their_own_share_no_claims() {
    let (log, url) = (Log::default(), redis_url());
    let prefix = format!("test-{}", uuid::Uuid::now_v7().simple());
    let services = [("billing", ""), ("shipping", ""), ("billing", ".2")];
    for (name, more) in services {
        let text = format!(
            "[service]\nname = \"{name}\"\n[brokers.main]\nkind = \"memory\"\n\
             [stores.main]\nkind = \"redis\"\nurl = \"{url}\"\nprefix = \"{prefix}{more}\"\n\
             [subscriptions.orders]\nbroker = \"main\"\nidempotency = {{ store = \"main\" }}"
        );
        let noting = log.clone();
        let handler = move |delivery: Delivery<Value>| {
            noting.note(&delivery);
            async { Handled::Ok(()) }
        };
        let config = Config::from_toml(&text).expect("a configuration");
        let service = Service::builder(config).subscribe("orders", handler).signals(false);
        let service = service.start().await.expect("it starts");
        for _ in 0..2 {
            let message = Message::json(&json!(1)).expect("it is JSON").to_queue("orders").id("m");
            service.publisher("main").expect("it is configured").send(message).await.expect("sent");
        }
        let lab = Lab::on("");
        lab.eventually("both are settled", async || {
            let depth = service.depth("orders").await.expect("an answer");
            [depth.ready, depth.unsettled, depth.waiting] == [Some(0); 3]
        })
        .await;
        service.stop().await;
    }
    assert_eq!(log.len(), services.len(), "each handled it, and once");
}
