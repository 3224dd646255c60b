//! Consumed, handled and published in one transaction: what readers of committed records see.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use redeliver::broker::Fault;
use redeliver::config::Config;
use redeliver::{Delivery, Failure, Handled, Message, Service};

use super::lab::{alter, committed, create, unique, url};
use super::process::Stage;
use super::service::{drained, until};

fn text(topic: &str, subscription: &str) -> String {
    format!(
        "[brokers.main]\nkind = \"kafka\"\nurl = \"{}\"\n[subscriptions.orders]\nbroker = \"main\"\ntopics = [\"{topic}\"]\ngroup = \"g-{topic}\"\ndelivery_guarantee = \"transactional\"\ncommit_interval = \"200ms\"\nin_flight_max = 16\n{subscription}\n[brokers.main.properties]\n\"session.timeout.ms\" = 6000\n\"heartbeat.interval.ms\" = 500\n[retry.standard]\nbackoff = \"fixed\"\njitter = \"none\"\ndelay_min = \"1500ms\"\nattempts_max = 3\n",
        url()
    )
}

async fn start<F, R>(config: String, handler: F) -> Service
where
    F: Fn(Delivery<String>) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Handled> + 'static,
{
    let config = Config::from_toml(&config).unwrap_or_else(|problems| panic!("{problems}"));
    let builder = Service::builder(config).subscribe("orders", handler).signals(false);
    builder.start().await.expect("it starts")
}

async fn send(service: &Service, topic: &str, payload: &str) {
    let publisher = service.publisher("main").expect("it is configured");
    let message = Message::json(&payload).expect("text is JSON").to_topic(topic);
    publisher.send(message.key(payload.to_owned()).id(payload)).await.expect("it is stored");
}

fn counted(out: &str) -> BTreeMap<String, u32> {
    let mut seen = BTreeMap::new();
    committed(out).into_iter().for_each(|payload| *seen.entry(payload).or_default() += 1);
    seen
}

/// The numbers below `count` are read, each once, and nothing else.
fn assert_read_once(out: &str, count: usize) {
    let seen = counted(out);
    let wrong: Vec<_> = (0..count)
        .filter(|number| seen.get(&number.to_string()) != Some(&1))
        .map(|number| (number, seen.get(&number.to_string()).copied().unwrap_or(0)))
        .collect();
    assert!(wrong.is_empty(), "of {count} these were not read once: {wrong:?}");
    assert_eq!(seen.len(), count, "nothing else is read: {:?}", seen.get("half done"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_published_is_read_once_under_kills_and_rebalances() {
    let is_full = std::env::var_os("REDELIVER_TEST_FULL").is_some();
    let (topic, out) = (unique("orders"), unique("out"));
    create(&topic, 4).await;
    create(&out, 3).await;
    let text = text(&topic, "");
    let config = Config::from_toml(&text).unwrap_or_else(|problems| panic!("{problems}"));
    let onlooker = Service::builder(config).without_handler("orders").signals(false);
    let onlooker = onlooker.start().await.expect("it starts");
    let mut stage = Stage::new(text, 5, None);
    stage.role.forwards_to = Some(out.clone());
    let mut members = vec![stage.start(), stage.start()];
    let (mut count, mut deaths) = (0, 0);
    let rounds = if is_full { 40 } else { 6 };
    for round in 0..rounds {
        let until = Instant::now() + Duration::from_secs(3);
        while Instant::now() < until {
            let sent = (count..count + 20).map(async |number: usize| {
                send(&onlooker, &topic, &number.to_string()).await;
            });
            futures_util::future::join_all(sent).await;
            count += 20;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        match round % 3 {
            0 => {
                members.remove(0).kill();
                members.push(stage.start());
                deaths += 1;
            }
            1 => members.push(stage.start()),
            _ => members.remove(0).stop().await,
        }
    }
    let depth_is_0 = drained(&onlooker);
    depth_is_0.await;
    let effects = stage.effects().len();
    println!("{count} records, {deaths} deaths, {effects} runs of the handler");
    assert_read_once(&out, count);
    for member in members {
        member.stop().await;
    }
    onlooker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_frozen_member_had_in_hand_is_read_once() {
    let (topic, out) = (unique("orders"), unique("out"));
    create(&topic, 4).await;
    create(&out, 3).await;
    let text = text(&topic, "");
    let config = Config::from_toml(&text).unwrap_or_else(|problems| panic!("{problems}"));
    let onlooker = Service::builder(config).without_handler("orders").signals(false);
    let onlooker = onlooker.start().await.expect("it starts");
    let mut stage = Stage::new(text, 5, None);
    stage.role.forwards_to = Some(out.clone());
    let members = [stage.start(), stage.start()];
    let mut count = 0;
    for second in 0..24 {
        // Longer than its session, and awake again while others have what it had.
        match second {
            4 => members[0].signal("-STOP"),
            16 => members[0].signal("-CONT"),
            _ => {}
        }
        for _ in 0..20 {
            send(&onlooker, &topic, &count.to_string()).await;
            count += 1;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    drained(&onlooker).await;
    assert_read_once(&out, count);
    for member in members {
        member.stop().await;
    }
    onlooker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_topic_refuses_is_the_failure_of_its_handler() {
    let (topic, out) = (unique("orders"), unique("out"));
    create(&topic, 1).await;
    create(&out, 1).await;
    let faults = Arc::new(Mutex::new(Vec::new()));
    let (noted, target) = (faults.clone(), out.clone());
    let handler = move |delivery: Delivery<String>| {
        let size = if delivery.payload == "large" { 2 << 20 } else { 10 };
        let to = if delivery.payload == "lost" { "nowhere" } else { target.as_str() };
        let message = Message::bytes(vec![b'x'; size]).to_topic(to);
        let noted = noted.clone();
        async move {
            match delivery.publisher().send(message).await {
                Ok(_) => Ok(()),
                Err(error) => {
                    noted.lock().expect("nobody panics in here").push(error.fault());
                    Err(Failure::reject(error))
                }
            }
        }
    };
    let service = start(text(&topic, ""), handler).await;
    for payload in ["a", "large", "b", "lost", "c"] {
        send(&service, &topic, payload).await;
    }
    until("the bad ones are dead letters", async || {
        service.depth("orders").await.expect("the broker answers").dead == Some(2)
    })
    .await;
    drained(&service).await;
    let mut faults = faults.lock().expect("nobody panics in here").clone();
    faults.sort_by_key(|fault| format!("{fault:?}"));
    assert_eq!(faults, [Fault::Missing, Fault::TooLarge]);
    assert_eq!(committed(&out).len(), 3);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_whose_output_is_refused_after_all_holds_up_nobody_else() {
    let (topic, out) = (unique("orders"), unique("out"));
    create(&topic, 1).await;
    create(&out, 1).await;
    let target = out.clone();
    let handler = move |delivery: Delivery<String>| {
        let size = if delivery.payload.starts_with("large") { 200_000 } else { 10 };
        let message = Message::bytes(vec![b'x'; size]).to_topic(target.as_str());
        async move {
            delivery.publisher().send(message).await?;
            Ok(())
        }
    };
    let service = start(text(&topic, ""), handler).await;
    send(&service, &topic, "large at first").await;
    until("it was taken", async || committed(&out).len() == 1).await;
    alter(&out, "max.message.bytes", "10000").await;
    send(&service, &topic, "large later").await;
    for number in 0..50 {
        send(&service, &topic, &number.to_string()).await;
    }
    until("its neighbours are there", async || committed(&out).len() == 51).await;
    let depth = service.depth("orders").await.expect("the broker answers");
    assert!(depth.ready > Some(0), "what was refused is not finished: {depth:?}");
    alter(&out, "max.message.bytes", "1000000").await;
    drained(&service).await;
    assert_eq!(committed(&out).len(), 52);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_published_after_the_answer_is_refused_and_not_forgotten() {
    let (topic, out) = (unique("orders"), unique("out"));
    create(&topic, 1).await;
    create(&out, 1).await;
    let told = Arc::new(Mutex::new(None));
    let (late, to) = (Arc::clone(&told), out.clone());
    let handler = move |delivery: Delivery<String>| {
        let (late, to) = (Arc::clone(&late), to.clone());
        async move {
            tokio::spawn(async move {
                // Long after its transaction.
                tokio::time::sleep(Duration::from_secs(3)).await;
                let message = Message::json(&"late").expect("text is JSON").to_topic(to);
                let sent = delivery.publisher().send(message).await;
                *late.lock().expect("nobody panics") = Some(sent.map_err(|error| error.fault()));
            });
            Handled::Ok(())
        }
    };
    let service = start(text(&topic, ""), handler).await;
    send(&service, &topic, "one").await;
    let is_told = async || told.lock().expect("nobody panics").is_some();
    until("the late message has its answer", is_told).await;
    assert_eq!(*told.lock().expect("nobody panics"), Some(Err(Fault::Invalid)));
    service.stop().await;
    assert!(committed(&out).is_empty());
}

#[tokio::test]
async fn claims_and_patterns_do_not_go_with_transactions() {
    let topic = unique("orders");
    create(&topic, 1).await;
    let claims =
        text(&topic, "idempotency = { store = \"main\" }") + "[stores.main]\nkind = \"memory\"\n";
    let pattern = text(&topic, "")
        .replace(&format!("topics = [\"{topic}\"]"), &format!("pattern = \"^{topic}.*\""));
    for (config, key) in [(claims, "idempotency"), (pattern, "pattern")] {
        let config = Config::from_toml(&config).unwrap_or_else(|problems| panic!("{problems}"));
        let service = Service::builder(config).without_handler("orders").signals(false);
        let error = service.start().await.map(|_| ()).expect_err("it is refused").to_string();
        assert!(error.contains(&format!("`{key}` does not go with")), "{error}");
    }
}
