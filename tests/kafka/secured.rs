//! A broker that speaks TLS: with passwords (SCRAM), and with certificates on both sides.

use std::fs;
use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use redeliver::config::Config;
use redeliver::{Delivery, Failure, Handled, Message, Service};
use tempfile::TempDir;

use super::lab::unique;
use super::nodes::{Node, free_port, tool};
use super::service::{Seen, drained, until};

/// Certificates of an authority that only this test knows, as files.
struct Papers(TempDir);

impl Papers {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let mut params = CertificateParams::new(Vec::new()).expect("no names are good names");
        params.distinguished_name.push(DnType::CommonName, "the tests' authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("there is randomness");
        let authority = CertifiedIssuer::self_signed(params, key).expect("it can sign itself");
        let papers = Self(folder);
        papers.write("ca.pem", &authority.pem());
        for name in ["server", "client"] {
            let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
            let mut params = CertificateParams::new(names).expect("they are names");
            params.distinguished_name.push(DnType::CommonName, name);
            let key = KeyPair::generate().expect("there is randomness");
            let signed = params.signed_by(&key, &authority).expect("the authority signs");
            papers.write(&format!("{name}.pem"), &signed.pem());
            papers.write(&format!("{name}.key"), &key.serialize_pem());
            // What Kafka calls a key store.
            let both = format!("{}{}", key.serialize_pem(), signed.pem());
            papers.write(&format!("{name}.store"), &both);
        }
        papers
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.0.path().join(name), text).expect("the folder can be written");
    }

    fn path(&self, name: &str) -> String {
        Path::new(self.0.path()).join(name).display().to_string()
    }
}

/// Listens without TLS for its tools, with TLS and client certificates, and with TLS and SCRAM.
struct Secured {
    node: Node,
    papers: Papers,
    tls: u16,
    scram: u16,
}

impl Secured {
    fn start() -> Self {
        let papers = Papers::new();
        let [plain, controller, tls, scram] = std::array::from_fn(|_| free_port());
        let outside = format!(
            "PLAINTEXT://127.0.0.1:{plain},SSL://127.0.0.1:{tls},SASL_SSL://127.0.0.1:{scram}"
        );
        let lines = format!(
            "listeners={outside},CONTROLLER://127.0.0.1:{controller}\n\
             advertised.listeners={outside}\ncontroller.quorum.voters=1@127.0.0.1:{controller}\n\
             listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SSL:SSL,SASL_SSL:SASL_SSL\n\
             ssl.keystore.type=PEM\nssl.keystore.location={}\nssl.truststore.type=PEM\nssl.truststore.location={}\n\
             listener.name.ssl.ssl.client.auth=required\nsasl.enabled.mechanisms=SCRAM-SHA-512\n\
             listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;\n",
            papers.path("server.store"),
            papers.path("ca.pem"),
        );
        let node = Node::configured("secured", &lines);
        let user = ["--alter", "--add-config", "SCRAM-SHA-512=[password=hunter2]"];
        let at = ["--bootstrap-server", &node.url, "--entity-type", "users", "--entity-name", "me"];
        tool("kafka.admin.ConfigCommand", &[at.as_slice(), &user].concat());
        Self { node, papers, tls, scram }
    }

    /// A service behind these lines of `[brokers.main]`.
    async fn service(
        &self,
        port: u16,
        keys: &str,
        seen: &Seen,
    ) -> Result<Service, redeliver::Error> {
        let (topic, group) = (self.topic(), unique("group"));
        let text = format!(
            "[service]\nstartup_max = \"15s\"\n[brokers.main]\nkind = \"kafka\"\nurl = \"127.0.0.1:{port}\"\n{keys}\n\
             [subscriptions.orders]\nbroker = \"main\"\ntopics = [\"{topic}\"]\ngroup = \"{group}\"\n\
             [retry.standard]\nbackoff = \"fixed\"\njitter = \"none\"\ndelay_min = \"2s\"\n"
        );
        let at = seen.clone();
        let handler = move |delivery: Delivery<String>| {
            at.note(&delivery.payload);
            async move {
                match (delivery.payload.as_str(), delivery.attempt()) {
                    ("1", 1) => Err(Failure::retry("not yet")),
                    ("2", _) => Err(Failure::reject("no")),
                    _ => Handled::Ok(()),
                }
            }
        };
        let config = Config::from_toml(&text).unwrap_or_else(|problems| panic!("{problems}"));
        Service::builder(config).subscribe("orders", handler).signals(false).start().await
    }

    fn topic(&self) -> String {
        "orders".to_owned()
    }

    /// Publishing, consuming, waits and dead letters work.
    async fn works(&self, port: u16, keys: &str) {
        let seen = Seen::default();
        let service = self.service(port, keys, &seen).await;
        let service = service.unwrap_or_else(|error| panic!("it starts: {error}"));
        let publisher = service.publisher("main").expect("it is configured");
        for number in 0..3 {
            let message = Message::json(&number.to_string()).expect("text is JSON");
            let message = message.to_topic(self.topic()).id(number.to_string());
            publisher.send(message).await.expect("it is confirmed");
        }
        until("all were handled", async || seen.len() == 3 && seen.attempts("1") >= 2).await;
        drained(&service).await;
        let depth = service.depth("orders").await.expect("the broker answers");
        assert!(depth.dead >= Some(1), "{depth:?}");
        service.stop().await;
    }

    /// It does not start, and the error says what to look at but no secret.
    async fn is_refused(&self, port: u16, keys: &str, hint: &str) {
        let refused = self.service(port, keys, &Seen::default()).await;
        let error = refused.err().expect("it must not start").to_string();
        assert!(error.contains(hint), "{hint} is missing in: {error}");
        assert!(!error.contains("hunter2") && !error.contains("swordfish"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_with_passwords_and_with_certificates_on_both_sides() {
    let secured = tokio::task::block_in_place(Secured::start);
    let at = ["--bootstrap-server", &secured.node.url];
    let create = ["--create", "--topic", "orders", "--partitions", "2"];
    tokio::task::block_in_place(|| {
        tool("org.apache.kafka.tools.TopicCommand", &[at.as_slice(), &create].concat())
    });
    let paper = |name: &str| secured.papers.path(name);
    let trusted = format!("tls = {{ ca = \"{}\" }}", paper("ca.pem"));

    let scram = |password: &str| {
        format!(
            "{trusted}\n[brokers.main.properties]\n\"sasl.mechanism\" = \"SCRAM-SHA-512\"\n\
             \"sasl.username\" = \"me\"\n\"sasl.password\" = \"{password}\""
        )
    };
    secured.works(secured.scram, &scram("hunter2")).await;
    secured.is_refused(secured.scram, &scram("swordfish"), "sasl.password").await;

    let both = format!(
        "tls = {{ ca = \"{}\", cert = \"{}\", key = \"{}\" }}",
        paper("ca.pem"),
        paper("client.pem"),
        paper("client.key"),
    );
    secured.works(secured.tls, &both).await;
    secured.is_refused(secured.tls, &trusted, "").await;
    // An authority that nobody told us of.
    secured.is_refused(secured.tls, "tls = {}", "tls.ca").await;
}
