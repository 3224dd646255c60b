//! What would disturb other tests, on nodes of their own: restarts, alarms, small limits, TLS.

use std::fs;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair,
};
use redeliver::broker::{
    Broker, BrokerState, Copy, Fault, LaneEvent, Outgoing, Place, Settlement, Target,
};
use redeliver::config::{self, Tls};
use redeliver::wire;
use tokio::time::{sleep, timeout};

use crate::server::{
    Lab, Node, PATIENCE, broker_settings, message, open, queue, receive, texts, until,
};

#[tokio::test]
async fn waits_survive_a_restart_of_the_server_and_none_is_early() {
    const WAIT: Duration = Duration::from_secs(9);
    let node = Node::start("restart", "").await;
    let lab = Lab::connect_to(&node.url).await;
    let source = lab.prepared(&[WAIT]).await;
    for number in 0..20 {
        lab.broker
            .publisher()
            .send(&message(Target::Queue(queue(&source)), &number.to_string()))
            .await
            .expect("it is stored");
    }
    let mut lanes = lab.broker.lanes(source.clone());
    let (id, mut lane) = open(&mut *lanes).await;
    let copied = SystemTime::now();
    for original in receive(&mut *lane, 20).await {
        let stamps = vec![(wire::ATTEMPT, "1".to_owned())];
        let copy = Copy {
            source: source.clone(),
            envelope: original.envelope.clone(),
            place: Place::Wait(WAIT),
            stamps,
        };
        lab.broker.publisher().copy(&copy).await.expect("the wait takes it");
        lane.settle(&mut vec![Settlement::Ack(original.token)]).await.expect("the lane settles");
    }
    lane.close().await.expect("the lane closes");

    node.stop();
    lanes.release(id.clone());
    let mut failures = 0;
    node.start_again();
    let mut lane = loop {
        match timeout(PATIENCE, lanes.next()).await.expect("something happens") {
            LaneEvent::Opened(_, lane) => break lane,
            LaneEvent::Failed(id, _) => lanes.release(id),
        }
        failures += 1;
        assert!(failures < 100, "the server is back, but not found");
    };
    let back = receive(&mut *lane, 20).await;
    let waited = copied.elapsed().expect("time goes on");
    assert!(waited >= WAIT, "early: {waited:?}");
    let mut numbers: Vec<u32> =
        texts(&back).iter().map(|text| text.parse().expect("a number")).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..20).collect::<Vec<_>>());
    lane.settle(&mut back.iter().map(|message| Settlement::Ack(message.token)).collect())
        .await
        .expect("the lane settles");
    lane.close().await.expect("the lane closes");
}

#[tokio::test]
async fn limits_and_alarms_of_the_server_are_told_and_outlived() {
    let node = Node::start("limits", "consumer_timeout = 1000\nmax_message_size = 100000\n").await;
    let lab = Lab::connect_to(&node.url).await;
    let source = lab.prepared(&[]).await;
    let target = Target::Queue(queue(&source));
    let publisher = lab.broker.publisher();

    let heavy = Outgoing { body: vec![0; 200_000].into(), ..message(target.clone(), "heavy") };
    let large = publisher.send(&heavy).await.expect_err("it is too large");
    assert_eq!(large.fault, Fault::TooLarge, "{large}");
    publisher.send(&message(target.clone(), "slow")).await.expect("the next one has a channel");

    // The handler takes longer than the server allows: it closes the channel (4.3: cancels the consumer), and the
    // message goes back.
    let mut lanes = lab.broker.lanes(source.clone());
    let (id, mut lane) = open(&mut *lanes).await;
    receive(&mut *lane, 1).await;
    sleep(Duration::from_millis(1200)).await;
    node.control(&["eval", "[Channel ! tick || Channel <- rabbit_channel:list()]."]);
    let end = timeout(PATIENCE, lane.next(&mut Vec::new(), 1))
        .await
        .expect("the end is noticed")
        .expect_err("the channel is closed");
    let end = end.to_string();
    assert!(end.contains("timed out") || end.contains("cancelled the consumer"), "{end}");
    lanes.release(id);
    let (_, mut lane) = open(&mut *lanes).await;
    let again = receive(&mut *lane, 1).await;
    // Who only cancels the consumer does not count it.
    let returns = u32::from(end.contains("timed out"));
    assert_eq!((texts(&again), again[0].envelope.returns()), (vec!["slow".to_owned()], returns));
    lane.settle(&mut vec![Settlement::Ack(again[0].token)]).await.expect("the lane settles");

    node.control(&["set_vm_memory_high_watermark", "absolute", "1MB"]);
    let sender = tokio::spawn({
        let (publisher, held) = (lab.broker.publisher(), message(target.clone(), "held"));
        // What is not confirmed in time is an error, and sending it again is up to us.
        async move { while publisher.send(&held).await.is_err() {} }
    });
    // The server tells a connection that it is blocked when that publishes.
    until(
        "the alarm is told",
        || matches!(lab.broker.state(), BrokerState::Blocked(reason) if reason.contains("memory")),
    )
    .await;
    assert!(!sender.is_finished(), "nothing is confirmed during an alarm");
    node.control(&["set_vm_memory_high_watermark", "0.4"]);
    timeout(PATIENCE, sender).await.expect("the alarm is over").expect("it is stored");
    until("its end is told", || lab.broker.state() == BrokerState::Connected).await;
    assert_eq!(texts(&receive(&mut *lane, 1).await), ["held"]);
    lane.close().await.expect("the lane closes");
}

/// An authority with a certificate for the server and one for a client, in PEM files.
fn write_certificates(folder: &std::path::Path) {
    let key = || KeyPair::generate().expect("a key can be made");
    let mut authority = CertificateParams::new(Vec::<String>::new()).expect("no names");
    // Names of their own: the server takes what is named like its issuer for self-signed, and refuses it.
    authority.distinguished_name.push(DnType::CommonName, "authority of the test");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority =
        CertifiedIssuer::self_signed(authority, key()).expect("the authority signs itself");
    let write =
        |name: &str, text: String| fs::write(folder.join(name), text).expect("it can be written");
    write("ca.pem", authority.pem());
    for (name, usage) in [
        ("server", ExtendedKeyUsagePurpose::ServerAuth),
        ("client", ExtendedKeyUsagePurpose::ClientAuth),
    ] {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![usage];
        let own = key();
        write(
            &format!("{name}.pem"),
            params.signed_by(&own, &authority).expect("the authority signs").pem(),
        );
        write(&format!("{name}.key"), own.serialize_pem());
    }
}

#[tokio::test]
async fn tls_trusts_only_the_authority_it_was_given_and_shows_a_certificate_where_one_is_asked_for()
{
    let folder = tempfile::tempdir().expect("a folder");
    write_certificates(folder.path());
    let file = |name: &str| folder.path().join(name);
    let port = 20_000 + fastrand::u16(..10_000);
    let shown = folder.path().display();
    let node = Node::start(
        "tls",
        &format!(
            "listeners.ssl.1 = 127.0.0.1:{port}\nssl_options.cacertfile = {shown}/ca.pem\nssl_options.certfile = {shown}/server.pem\n\
             ssl_options.keyfile = {shown}/server.key\nssl_options.verify = verify_peer\nssl_options.fail_if_no_peer_cert = true\n"
        ),
    )
    .await;
    let with = |tls: Option<Tls>| config::Broker {
        tls,
        ..broker_settings(&format!("amqps://guest:guest@localhost:{port}/%2f"))
    };
    let full = Tls {
        ca: Some(file("ca.pem")),
        cert: Some(file("client.pem")),
        key: Some(file("client.key")),
        insecure: false,
    };

    let lab = Lab::new(&node.url, &with(Some(full.clone())));
    lab.broker.connect().await.expect("both sides trust each other");
    let source = lab.prepared(&[]).await;
    lab.broker
        .publisher()
        .send(&message(Target::Queue(queue(&source)), "sealed"))
        .await
        .expect("it is stored");
    let mut lanes = lab.broker.lanes(source);
    let (_, mut lane) = open(&mut *lanes).await;
    assert_eq!(texts(&receive(&mut *lane, 1).await), ["sealed"]);
    lane.close().await.expect("the lane closes");

    let blind = Tls { ca: None, insecure: true, ..full.clone() };
    Lab::new(&node.url, &with(Some(blind)))
        .broker
        .connect()
        .await
        .expect("it was told to trust anyone");

    for (what, tls) in [
        ("the system does not know the authority", None),
        ("the server asks for a certificate", Some(Tls { cert: None, key: None, ..full.clone() })),
        ("half an identity", Some(Tls { key: None, ..full.clone() })),
        ("a file that is not there", Some(Tls { ca: Some(file("none.pem")), ..full })),
    ] {
        let error = Lab::new(&node.url, &with(tls)).broker.connect().await.expect_err(what);
        // A server that gets no certificate may end the connection with its reason or without.
        let unexplained = error.text.contains("if the server asks for a certificate");
        assert!(error.fault == Fault::Refused || unexplained, "{what}: {error}");
        assert!(
            error.text.contains("tls.") && error.text.contains(&port.to_string()),
            "{what}: {error}"
        );
    }
    drop(lab);
    assert!(node.folder().exists());
}
