//! What a death of the process, a slow handler and a pattern make of messages.

use std::collections::BTreeMap;
use std::time::Duration;

use redeliver::config::Config;
use redeliver::{Delivery, Failure, Handled, Message, Redrive, Service};

use super::lab::{committed, create, unique, url};
use super::process::Stage;
use super::service::{Seen, config, drained, until};

fn text(topic: &str, subscription: &str, retry: &str) -> String {
    format!(
        "[brokers.main]\nkind = \"kafka\"\nurl = \"{}\"\n[subscriptions.orders]\nbroker = \"main\"\ntopics = [\"{topic}\"]\ngroup = \"g-{topic}\"\ncommit_interval = \"100ms\"\n{subscription}\n[brokers.main.properties]\n\"session.timeout.ms\" = 6000\n\"heartbeat.interval.ms\" = 500\n[retry.standard]\n{retry}",
        url()
    )
}

async fn publish(service: &Service, topic: &str, payloads: impl Iterator<Item = String>) {
    let publisher = service.publisher("main").expect("it is configured");
    for payload in payloads {
        let message = Message::json(&payload).expect("text is JSON").to_topic(topic);
        publisher.send(message.id(payload)).await.expect("the broker stores it");
    }
}

/// A service that only publishes and asks.
async fn onlooker(config: &str) -> Service {
    let config = Config::from_toml(config).unwrap_or_else(|problems| panic!("{problems}"));
    let nobody = |_: Delivery<String>| async {
        Err::<(), _>(Failure::defer(Duration::from_secs(1), "not me"))
    };
    let service = Service::builder(config).subscribe("orders", nobody).signals(false);
    let service = service.start().await.expect("it starts");
    service.pause("orders").await.expect("it can be held");
    service
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_ends_every_process_that_handles_nothing_else_is_a_dead_letter_and_nothing_else_is() {
    let topic = unique("orders");
    create(&topic, 2).await;
    let text = text(&topic, "crashes_max = 2", "");
    let onlooker = onlooker(&text).await;
    publish(&onlooker, &topic, (0..20).map(|number| number.to_string())).await;
    let stage = Stage::new(text, 5, Some("13"));
    let handled = || {
        let mut effects = stage.effects();
        effects.sort();
        effects.dedup();
        effects.len()
    };
    let mut deaths = 0;
    let mut child = stage.start();
    until("the bad one is given up and the others are handled", async || {
        if child.has_ended() {
            deaths += 1;
            child = stage.start();
        }
        // A broker that is asked in the middle of an election may be late.
        let depth = onlooker.depth("orders").await.unwrap_or_default();
        handled() == 19 && depth.dead == Some(1)
    })
    .await;
    let dead = onlooker.dead_letters("orders").expect("it is configured");
    let letter = dead.show("13").await.expect("it can be read").expect("it is there");
    assert_eq!(letter.reason, Some(redeliver::Reason::Poison));
    assert!((3..=8).contains(&deaths), "{deaths} processes died");
    child.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_finished_behind_a_slow_record_is_not_repeated_after_a_kill() {
    let topic = unique("orders");
    create(&topic, 1).await;
    let text = text(&topic, "", "");
    let onlooker = onlooker(&text).await;
    publish(&onlooker, &topic, (0..300).map(|number| number.to_string())).await;
    let mut stage = Stage::new(text, 0, None);
    stage.role.slow_over = Some("0".to_owned());
    let child = stage.start();
    until("all others are handled", async || stage.effects().len() == 299).await;
    // Ten commit intervals.
    tokio::time::sleep(Duration::from_secs(1)).await;
    child.kill();
    stage.role.slow_over = None;
    let child = stage.start();
    drained(&onlooker).await;
    child.stop().await;
    let mut effects = stage.effects();
    effects.sort_by_key(|payload| payload.parse::<u32>().expect("a number"));
    let once: Vec<String> = (0..300).map(|number| number.to_string()).collect();
    assert_eq!(effects, once, "each once, and the slow one in the end");
    onlooker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_was_frozen_has_not_died_of_what_it_handled() {
    let topic = unique("orders");
    create(&topic, 1).await;
    let text = text(&topic, "crashes_max = 1", "");
    let onlooker = onlooker(&text).await;
    publish(&onlooker, &topic, (0..20).map(|number| number.to_string())).await;
    let mut stage = Stage::new(text, 0, None);
    stage.role.slow_over = Some("0".to_owned());
    let child = stage.start();
    until("all others are handled", async || stage.effects().len() == 19).await;
    child.signal("-STOP");
    // Longer than its session of six seconds.
    tokio::time::sleep(Duration::from_secs(10)).await;
    child.signal("-CONT");
    until("the slow one is handled", async || stage.effects().iter().any(|it| it == "0")).await;
    drained(&onlooker).await;
    child.stop().await;
    assert!(
        committed(&format!("{topic}.g-{topic}.suspects")).is_empty(),
        "nothing is suspected of it"
    );
    onlooker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waits_outlive_the_process_and_come_at_their_time() {
    let topic = unique("orders");
    create(&topic, 2).await;
    let retry = "backoff = \"list\"\njitter = \"none\"\ndelays = [\"5s\"]\n";
    let seen = Seen::default();
    let member = async |fails: bool| {
        let at = seen.clone();
        let handler = move |delivery: Delivery<String>| {
            at.note(&delivery.payload);
            async move {
                match fails {
                    true => Err(Failure::retry("not in this process")),
                    false => Handled::Ok(()),
                }
            }
        };
        let config = Config::from_toml(&text(&topic, "", retry)).expect("it is right");
        let builder = Service::builder(config).subscribe("orders", handler).signals(false);
        builder.start().await.expect("it starts")
    };
    let first = member(true).await;
    publish(&first, &topic, (0..20).map(|number| number.to_string())).await;
    until("all have failed once", async || seen.len() == 20).await;
    until("all wait", async || {
        first.depth("orders").await.expect("the broker answers").waiting == Some(20)
    })
    .await;
    first.stop().await;
    let second = member(false).await;
    drained(&second).await;
    for number in 0..20 {
        let times = seen.times(&number.to_string());
        assert_eq!(times.len(), 2, "{number}");
        let waited = times[1] - times[0];
        assert!(waited >= Duration::from_secs(5), "{number} came early: {waited:?}");
        assert!(waited < Duration::from_secs(12), "{number} came late: {waited:?}");
    }
    second.stop().await;
}

/// How many milliseconds each payload really waited, once it has come twice.
fn waited(stage: &Stage) -> BTreeMap<String, i64> {
    let mut first = BTreeMap::new();
    let mut waited = BTreeMap::new();
    for effect in stage.effects() {
        let words: Vec<&str> = effect.split(' ').collect();
        let [name, wait, attempt, at] = words[..] else { panic!("{effect}") };
        let at: i64 = at.parse().expect("a time");
        match attempt {
            // The last try counts: what a dead process had begun with was begun again.
            "1" => drop(first.insert(name.to_owned(), at)),
            _ => {
                let began = first.get(name).expect("the first attempt came first");
                let late = at - began - wait.parse::<i64>().expect("a number");
                waited.entry(name.to_owned()).or_insert(late);
            }
        }
    }
    waited
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_wait_holds_up_no_shorter_one() {
    let topic = unique("orders");
    create(&topic, 1).await;
    let retry = "backoff = \"list\"\njitter = \"none\"\ndelays = [\"1500ms\", \"10m\"]\n";
    let text = text(&topic, "", retry);
    let onlooker = onlooker(&text).await;
    let payloads = (0..40).map(|number| match number % 2 {
        0 => format!("{number} 600000"),
        _ => format!("{number} 1500"),
    });
    publish(&onlooker, &topic, payloads).await;
    let mut stage = Stage::new(text, 0, None);
    stage.role.retries = true;
    let child = stage.start();
    until("the short ones came twice", async || waited(&stage).len() == 20).await;
    for (name, late) in waited(&stage) {
        assert!(late >= 0, "{name} came {late} ms too early");
    }
    until("the long ones wait, and nothing else", async || {
        onlooker.depth("orders").await.expect("the broker answers").waiting == Some(20)
    })
    .await;
    child.stop().await;
    onlooker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_is_killed_during_waits_loses_and_hurries_none() {
    let topic = unique("orders");
    create(&topic, 2).await;
    let text = text(&topic, "", "backoff = \"list\"\njitter = \"none\"\ndelays = [\"5s\"]\n");
    let onlooker = onlooker(&text).await;
    let payloads = (0..40).map(|number| format!("{number} 5000"));
    publish(&onlooker, &topic, payloads).await;
    let mut stage = Stage::new(text, 0, None);
    stage.role.retries = true;
    for _ in 0..3 {
        let child = stage.start();
        let before = stage.effects().len();
        until("it works", async || stage.effects().len() > before || waited(&stage).len() == 40)
            .await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        child.kill();
    }
    let last = stage.start();
    until("all came twice", async || waited(&stage).len() == 40).await;
    for (name, late) in waited(&stage) {
        assert!(late >= 0, "{name} came {late} ms too early");
    }
    drained(&onlooker).await;
    last.stop().await;
    onlooker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_slower_than_the_poll_interval_is_not_evicted() {
    let topic = unique("orders");
    create(&topic, 1).await;
    let seen = Seen::default();
    let at = seen.clone();
    let handler = move |delivery: Delivery<String>| {
        at.note(&delivery.payload);
        async {
            tokio::time::sleep(Duration::from_secs(14)).await;
            Handled::Ok(())
        }
    };
    let text = text(&topic, "in_flight_max = 1", "")
        .replace("\"heartbeat", "\"max.poll.interval.ms\" = 6000\n\"heartbeat");
    let config = Config::from_toml(&text).unwrap_or_else(|problems| panic!("{problems}"));
    let service = Service::builder(config).subscribe("orders", handler).signals(false);
    let service = service.start().await.expect("it starts");
    publish(&service, &topic, (0..2).map(|number| number.to_string())).await;
    drained(&service).await;
    assert_eq!((seen.attempts("0"), seen.attempts("1")), (1, 1));
    let metrics = service.metrics().await;
    // A member that was evicted gets its records again, whatever becomes of them.
    let received = "redeliver_received_total{subscription=\"orders\"} 2\n";
    assert!(metrics.contains(received), "each is received once: {metrics}");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pattern_matches_topics_but_never_their_waits() {
    let (begin, group) = (unique("shop"), unique("group"));
    let topic = format!("{begin}.orders");
    create(&topic, 1).await;
    let seen = Seen::default();
    let at = seen.clone();
    let handler = move |delivery: Delivery<String>| {
        at.note(&delivery.payload);
        async move {
            match (delivery.payload.as_str(), delivery.attempt()) {
                ("dead", _) => Err(Failure::reject("no")),
                (_, 1) => Err(Failure::retry("once more")),
                _ => Handled::Ok(()),
            }
        }
    };
    let retry = "backoff = \"fixed\"\njitter = \"none\"\ndelay_min = \"2s\"\n";
    let text = text(&topic, "", retry)
        .replace(&format!("topics = [\"{topic}\"]"), &format!("pattern = \"^{begin}.*\""))
        .replace(&format!("g-{topic}"), &group);
    let config = Config::from_toml(&text).unwrap_or_else(|problems| panic!("{problems}"));
    let service = Service::builder(config).subscribe("orders", handler).signals(false);
    let service = service.start().await.expect("it starts");
    publish(&service, &topic, ["a", "b", "dead"].map(str::to_owned).into_iter()).await;
    until("they were retried", async || seen.attempts("a") == 2 && seen.attempts("b") == 2).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!((seen.attempts("a"), seen.attempts("dead")), (2, 1));
    drained(&service).await;
    assert_eq!(service.depth("orders").await.expect("the broker answers").dead, Some(1));
    let dead = service.dead_letters("orders").expect("it is configured");
    let redriven = dead.redrive(&Redrive::default()).await.expect("it works");
    assert_eq!(redriven.moved, 1);
    until("it was redriven", async || seen.attempts("dead") == 2).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_waits_of_a_group_whose_name_ends_alike_are_left_to_it() {
    let (begin, group) = (unique("shop"), unique("group"));
    // Of the group `other.GROUP` on the topic, and not of ours on a topic with `.other` at its end.
    let foreign = format!("{begin}.other.{group}.wait.1000");
    let theirs = format!("{begin}.other.{group}.redrive");
    for topic in [&begin, &foreign, &theirs] {
        create(topic, 1).await;
    }
    let seen = Seen::default();
    let at = seen.clone();
    let handler = move |delivery: Delivery<String>| {
        at.note(&delivery.payload);
        async move {
            match delivery.attempt() {
                1 => Err(Failure::retry("once more")),
                _ => Handled::Ok(()),
            }
        }
    };
    let retry = "backoff = \"fixed\"\njitter = \"none\"\ndelay_min = \"2s\"\n";
    let text = text(&begin, "", retry)
        .replace(&format!("topics = [\"{begin}\"]"), &format!("pattern = \"^{begin}$\""))
        .replace(&format!("g-{begin}"), &group);
    let config = Config::from_toml(&text).unwrap_or_else(|problems| panic!("{problems}"));
    let service = Service::builder(config).subscribe("orders", handler).signals(false);
    let service = service.start().await.expect("it starts");
    publish(&service, &foreign, ["not ours".to_owned()].into_iter()).await;
    publish(&service, &theirs, ["nor this".to_owned()].into_iter()).await;
    publish(&service, &begin, ["a", "b"].map(str::to_owned).into_iter()).await;
    // Through our own waits, which the same consumer drains.
    until("ours were retried", async || seen.attempts("a") == 2 && seen.attempts("b") == 2).await;
    drained(&service).await;
    assert_eq!((seen.attempts("not ours"), seen.attempts("nor this")), (0, 0));
    assert_eq!(service.stop().await.left, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waits_and_redrives_come_back_under_the_new_protocol() {
    let topic = unique("orders");
    create(&topic, 2).await;
    let seen = Seen::default();
    let at = seen.clone();
    let handler = move |delivery: Delivery<String>| {
        at.note(&delivery.payload);
        async move {
            match delivery.generation() {
                0 => Err(Failure::retry("not yet")),
                _ => Handled::Ok(()),
            }
        }
    };
    let retry = "backoff = \"fixed\"\njitter = \"none\"\ndelay_min = \"2s\"\nattempts_max = 2\n";
    let text = config(&topic, "", retry);
    let mut text = text;
    let main = text.brokers.get_mut("main").expect("it is there");
    main.properties.set("group.protocol", "consumer");
    text.subscriptions.get_mut("orders").expect("it is there").group = Some(unique("group"));
    let service = Service::builder(text).subscribe("orders", handler).signals(false);
    let service = service.start().await.expect("it starts");
    publish(&service, &topic, ["a", "b"].map(str::to_owned).into_iter()).await;
    until("they were given up", async || {
        service.depth("orders").await.expect("the broker answers").dead == Some(2)
    })
    .await;
    let dead = service.dead_letters("orders").expect("it is configured");
    dead.redrive(&Redrive::default()).await.expect("it works");
    until("they were handled again", async || seen.attempts("a") == 3 && seen.attempts("b") == 3)
        .await;
    service.stop().await;
}
