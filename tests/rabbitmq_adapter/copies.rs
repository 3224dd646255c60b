//! What copies carry, and what is read of dead letters.

use std::collections::BTreeSet;
use std::time::Duration;

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use redeliver::broker::{Broker, Copy, Fault, HeaderValue, Place, Received, Settlement, Source};
use redeliver::config::Topology;
use redeliver::wire;
use tokio::time::{Instant, sleep};

use crate::server::{Lab, Raw, control, dead, message, open, queue, receive, texts, unique, url};

async fn copy(
    lab: &Lab,
    source: &std::sync::Arc<Source>,
    original: &Received,
    place: Place,
) -> Result<(), redeliver::broker::BrokerError> {
    let stamps = vec![(wire::REASON, "rejected".to_owned())];
    let copy = Copy { source: source.clone(), envelope: original.envelope.clone(), place, stamps };
    lab.broker.publisher().copy(&copy).await.map(drop)
}

async fn dead_letters(lab: &Lab, source: &std::sync::Arc<Source>) -> Vec<Received> {
    let mut reader = lab.broker.dead_letters(source.clone()).await.expect("they can be read");
    let mut read = Vec::new();
    while let Some(letter) = reader.next().await.expect("it can be read") {
        read.push(letter);
    }
    reader.close().await.expect("they are given back");
    read
}

#[tokio::test]
async fn a_copy_carries_neither_expiration_nor_a_foreign_user_nor_carbon_copies() {
    let user = unique("user");
    control(&["add_user", &user, "secret"]);
    control(&["set_permissions", &user, ".*", ".*", ".*"]);
    let lab = Lab::connect_to(&url().replacen("://", &format!("://{user}:secret@"), 1)).await;
    let source = lab.prepared(&[Duration::from_secs(1)]).await;
    let raw = Raw::connect().await;
    let audit = unique("audit");
    raw.declare(&audit, &[]).await;

    let carbon = AMQPValue::FieldArray(vec![AMQPValue::LongString(audit.as_str().into())].into());
    let mut headers = FieldTable::default();
    headers.insert("CC".into(), carbon);
    headers.insert("tenant".into(), AMQPValue::ShortShortUInt(7));
    let properties = BasicProperties::default()
        .with_expiration("400".into())
        .with_user_id("guest".into())
        .with_headers(headers);
    let mut lanes = lab.broker.lanes(source.clone());
    let (_, mut lane) = open(&mut *lanes).await;
    raw.publish(&queue(&source), b"careful", properties).await;
    let original = receive(&mut *lane, 1).await.remove(0);

    let began = Instant::now();
    copy(&lab, &source, &original, Place::Wait(Duration::from_secs(1)))
        .await
        .expect("a wait takes it");
    copy(&lab, &source, &original, Place::Dead).await.expect("the dead letters take it");
    lane.settle(&mut vec![Settlement::Ack(original.token)]).await.expect("the lane settles");
    let waited = receive(&mut *lane, 1).await.remove(0);
    assert!(
        began.elapsed() >= Duration::from_secs(1),
        "the expiration cut the wait short: {:?}",
        began.elapsed()
    );
    sleep(Duration::from_millis(600)).await;

    for copied in [&waited, &dead_letters(&lab, &source).await[0]] {
        let header = |name| copied.envelope.header(name);
        assert_eq!(header("redeliver-original-expiration"), Some(HeaderValue::Text("400")));
        assert_eq!(header("redeliver-original-user-id"), Some(HeaderValue::Text("guest")));
        assert_eq!(header("redeliver-original-cc"), Some(HeaderValue::Other("array")));
        assert_eq!((header("CC"), header("tenant")), (None, Some(HeaderValue::Number(7))));
    }
    // The publisher's own carbon copy has expired there by now; ours would not have.
    assert_eq!(raw.count(&audit).await, 0, "our copies went there too");
    raw.delete(&audit).await;
    lane.close().await.expect("the lane closes");
    drop(lab);
    control(&["delete_user", &user]);
}

#[tokio::test]
async fn what_the_broker_dead_lettered_itself_is_read_with_its_reason() {
    let lab = Lab::connect().await;
    let source = lab.prepared(&[]).await;
    let raw = Raw::connect().await;
    raw.publish(&queue(&source), b"unwanted", BasicProperties::default()).await;
    raw.reject(&queue(&source)).await;
    raw.publish(&queue(&source), b"late", BasicProperties::default().with_expiration("1".into()))
        .await;
    while raw.count(&dead(&source)).await < 1 {
        sleep(Duration::from_millis(20)).await;
    }
    drop(raw);
    let raw = Raw::connect().await;
    while raw.count(&dead(&source)).await < 2 {
        sleep(Duration::from_millis(20)).await;
    }
    let letters = dead_letters(&lab, &source).await;
    let reasons: Vec<_> = letters.iter().map(|letter| letter.envelope.broker_reason()).collect();
    assert_eq!(texts(&letters), ["unwanted", "late"]);
    assert_eq!(reasons, [Some("rejected"), Some("expired")]);
}

#[tokio::test]
async fn dead_letters_that_were_removed_never_come_back_and_the_others_do() {
    let lab = Lab::connect().await;
    let source = lab.prepared(&[]).await;
    let raw = Raw::connect().await;
    for number in 0..300 {
        raw.publish(&dead(&source), number.to_string().as_bytes(), BasicProperties::default())
            .await;
    }
    let mut there: BTreeSet<_> = (0..300).map(|number| number.to_string()).collect();
    while !there.is_empty() {
        let mut reader = lab.broker.dead_letters(source.clone()).await.expect("they can be read");
        let mut read = Vec::new();
        while let Some(letter) = reader.next().await.expect("it can be read") {
            read.push(letter);
        }
        assert_eq!(texts(&read).into_iter().collect::<BTreeSet<_>>(), there);
        assert_eq!(read.len(), there.len(), "one was read twice");
        for letter in &read[..100] {
            reader.remove(letter.token).await.expect("it is removed");
            there.remove(&texts(std::slice::from_ref(letter))[0]);
        }
        assert!(reader.remove(read[0].token).await.is_err(), "nothing is removed twice");
        reader.close().await.expect("the rest is given back");
    }
    assert!(dead_letters(&lab, &source).await.is_empty());
}

#[tokio::test]
async fn a_body_of_many_frames_is_copied_whole() {
    let lab = Lab::connect().await;
    let source = lab.prepared(&[]).await;
    let body: Vec<u8> = (0..1_000_000_u32).map(|number| number.to_le_bytes()[0]).collect();
    let raw = Raw::connect().await;
    raw.publish(&queue(&source), &body, BasicProperties::default()).await;
    let mut lanes = lab.broker.lanes(source.clone());
    let (_, mut lane) = open(&mut *lanes).await;
    let original = receive(&mut *lane, 1).await.remove(0);
    copy(&lab, &source, &original, Place::Dead).await.expect("the dead letters take it");
    assert!(
        dead_letters(&lab, &source).await[0].envelope.body() == body,
        "the body is another one"
    );
    lane.close().await.expect("the lane closes");
}

#[tokio::test]
async fn headers_beyond_a_frame_are_refused_before_they_cost_the_connection() {
    let lab = Lab::connect().await;
    let source = lab.prepared(&[]).await;
    let target = redeliver::broker::Target::Queue(queue(&source));
    let mut long = message(target.clone(), "long headers");
    long.headers = vec![("history".to_owned(), "x".repeat(200_000))];
    let refused = lab.broker.publisher().send(&long).await.expect_err("it fits into no frame");
    assert_eq!(refused.fault, Fault::TooLarge, "{refused}");
    lab.broker
        .publisher()
        .send(&message(target, "short headers"))
        .await
        .expect("the connection is alive");
}

#[tokio::test]
async fn where_nothing_may_be_declared_the_next_longer_wait_is_taken() {
    let lab = Lab::connect().await;
    let waits = [Duration::from_millis(200), Duration::from_millis(600)];
    let source = lab.source_with(&waits, |settings| settings.topology = Topology::None);
    let raw = Raw::connect().await;
    raw.declare(&queue(&source), &[("x-queue-type", AMQPValue::LongString("quorum".into()))]).await;
    let mut lanes = lab.broker.lanes(source.clone());
    let (_, mut lane) = open(&mut *lanes).await;
    raw.publish(&queue(&source), b"patient", BasicProperties::default()).await;
    let original = receive(&mut *lane, 1).await.remove(0);
    let refused =
        copy(&lab, &source, &original, Place::Wait(waits[0])).await.expect_err("no wait is there");
    assert_eq!(refused.fault, Fault::Unroutable, "{refused}");
    raw.declare(&format!("{}.wait.600", queue(&source)), &[]).await;
    copy(&lab, &source, &original, Place::Wait(waits[0])).await.expect("the longer one takes it");
    assert_eq!(raw.count(&format!("{}.wait.600", queue(&source))).await, 1);
    lane.close().await.expect("the lane closes");
}
