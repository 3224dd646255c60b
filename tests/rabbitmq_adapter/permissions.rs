//! Users who may do no more than `docs/rabbitmq.md` says they must.

use std::sync::Arc;
use std::time::Duration;

use redeliver::broker::{Broker, Copy, Place, Settlement, Source, Target};
use redeliver::config::{Binding, Topology};
use redeliver::wire;

use crate::server::{
    Lab, broker_settings, control, message, open, queue, receive, texts, unique, url,
};

const WAIT: Duration = Duration::from_millis(300);

#[tokio::test]
async fn whoever_declares_needs_no_more_than_the_documents_say() {
    let user = User::new();
    let lab = Lab::new(&user.url, &broker_settings(&user.url));
    let source = lab.source_with(&[WAIT], |settings| {
        settings.bindings =
            vec![Binding { exchange: "amq.topic".to_owned(), routing_key: "order.#".to_owned() }];
    });
    user.allow("declare", &queue(&source));
    lab.broker.connect().await.expect("the user may connect");
    lab.broker.prepare(&source).await.expect("the user may declare");
    everything_works(&lab, &source).await;
}

#[tokio::test]
async fn whoever_finds_everything_there_needs_no_more_than_the_documents_say() {
    let owner = Lab::connect().await;
    let user = User::new();
    let lab = Lab::new(&user.url, &broker_settings(&user.url));
    let source = owner.prepared(&[WAIT]).await;
    let mut settings = (*source.settings).clone();
    settings.topology = Topology::Verify;
    let source = Arc::new(Source { settings: settings.into(), ..Source::clone(&source) });
    user.allow("verify, none", &queue(&source));
    lab.broker.connect().await.expect("the user may connect");
    lab.broker.prepare(&source).await.expect("the user may verify");
    everything_works(&lab, &source).await;
}

/// Published, consumed, copied everywhere, counted and read.
async fn everything_works(lab: &Lab, source: &Arc<Source>) {
    let publisher = lab.broker.publisher();
    let sent = message(Target::Queue(queue(source)), "a");
    publisher.send(&sent).await.expect("the user may publish");
    let mut lanes = lab.broker.lanes(source.clone());
    let (_, mut lane) = open(&mut *lanes).await;
    let got = receive(&mut *lane, 1).await;
    for place in [Place::Wait(WAIT), Place::Dead, Place::Suspects] {
        let stamps = vec![(wire::ATTEMPT, "1".to_owned())];
        let (source, envelope) = (source.clone(), got[0].envelope.clone());
        let copy = Copy { source, envelope, place, stamps };
        publisher.copy(&copy).await.expect("the user may copy");
    }
    lane.settle(&mut vec![Settlement::Ack(got[0].token)]).await.expect("the lane settles");
    let back = receive(&mut *lane, 1).await;
    assert_eq!(texts(&back), ["a"]);
    lane.close().await.expect("the lane closes");
    assert_eq!(lab.broker.depth(source).await.expect("the user may count").dead, Some(1));
    let mut reader = lab.broker.dead_letters(source.clone()).await.expect("the user may read");
    let letter = reader.next().await.expect("the user may read").expect("one is there");
    reader.remove(letter.token).await.expect("the user may remove");
    reader.close().await.expect("the reader closes");
}

/// A user of the server under test, for one test.
struct User {
    name: String,
    url: String,
}

impl User {
    fn new() -> Self {
        let name = unique("user");
        control(&["-q", "add_user", &name, "secret"]);
        let url = url();
        let (scheme, rest) = url.split_once("://").expect("the url has a scheme");
        let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
        let url = format!("{scheme}://{name}:secret@{host}");
        Self { name, url }
    }

    /// Allows what the document says for the subscription `orders` with bindings to `shop`.
    fn allow(&self, topology: &str, queue: &str) {
        let document = include_str!("../../docs/rabbitmq.md");
        let line = document
            .lines()
            .find(|line| {
                line.starts_with("rabbitmqctl set_permissions")
                    && line.ends_with(&format!("# {topology}"))
            })
            .expect("the document says it");
        let quoted: Vec<String> = line
            .split('\'')
            .skip(1)
            .step_by(2)
            .map(|pattern| pattern.replace("orders", queue).replace("shop", "amq.topic"))
            .collect();
        let [configure, write, read] = quoted.as_slice() else { panic!("{line}") };
        control(&["-q", "set_permissions", "-p", "/", &self.name, configure, write, read]);
    }
}

impl Drop for User {
    fn drop(&mut self) {
        control(&["-q", "delete_user", &self.name]);
    }
}
