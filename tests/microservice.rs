//! The example `microservice`, driven over HTTP against a real RabbitMQ.

#![cfg(feature = "rabbitmq")]

mod programs;

use std::io::{BufRead, BufReader, Lines};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use hmac::{Hmac, Mac};
use programs::road::Road;
use programs::{Queue, program, rabbitmq, wait_for};
use sha2::Sha256;
use ureq::http::Response;
use ureq::{Agent, Body};

/// What the example runs with.
const CONFIG: &str = include_str!("../config/microservice.toml");
/// As long as GitHub waits for an answer.
const GITHUB_WAITS: Duration = Duration::from_secs(10);
const SECRET: &str = "it is a secret to everybody";
const BODY: &str = r#"{"action":"opened","repository":{"full_name":"octo-org/octo-repo"}}"#;

/// The example, running; ended with its test.
struct Microservice {
    process: Child,
    said: Lines<BufReader<ChildStdout>>,
    address: String,
    agent: Agent,
}

impl Microservice {
    fn start(queue: &Queue, url: &str) -> Self {
        let mut process = program("microservice")
            .args(["--listen", "127.0.0.1:0"])
            .env("WEBHOOK_SECRET", SECRET)
            .env("REDELIVER__BROKERS__MAIN__URL", url)
            .env("REDELIVER__SUBSCRIPTIONS__WEBHOOKS__QUEUE", &queue.name)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program can be started");
        let said = process.stdout.take().expect("it is piped");
        let mut said = BufReader::new(said).lines();
        let first = said.next().expect("it says something").expect("it is text");
        let address = first.strip_prefix("listening on ").expect("it says where").to_owned();
        let agent = Agent::config_builder().http_status_as_error(false).build().into();
        Self { process, said, address, agent }
    }

    /// Posts a webhook as GitHub does; the status.
    fn post(&self, id: &str, body: &str, signature: &str) -> u16 {
        let request = self.agent.post(format!("{}/webhooks", self.address));
        let request = request.header("X-GitHub-Delivery", id).header("X-GitHub-Event", "issues");
        let response = request.header("X-Hub-Signature-256", signature).send(body);
        response.expect("it answers").status().as_u16()
    }

    fn ask(&self, path: &str) -> Response<Body> {
        self.agent.get(format!("{}{path}", self.address)).call().expect("it answers")
    }

    fn next_line(&mut self) -> String {
        self.said.next().expect("it says more").expect("it is text")
    }
}

impl Drop for Microservice {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn sign(body: &str, secret: &str) -> String {
    let mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("any key will do");
    let mac = mac.chain_update(body).finalize().into_bytes();
    let hex: String = mac.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256={hex}")
}

#[test]
fn a_signed_webhook_is_published_and_handled_and_the_service_stops_cleanly() {
    let queue = Queue::unique("microservice", CONFIG);
    let mut service = Microservice::start(&queue, &rabbitmq());
    assert_eq!(service.post("delivery-1", BODY, &sign(BODY, SECRET)), 202);
    assert_eq!(service.next_line(), "issues in octo-org/octo-repo: delivery-1");

    assert_eq!(service.ask("/healthz").status(), 200);
    wait_for("readiness", || (service.ask("/readyz").status() == 200).then_some(()));
    let handled = "redeliver_handled_total{subscription=\"webhooks\"} 1";
    wait_for("the count of what was handled", || {
        let text = service.ask("/metrics").body_mut().read_to_string().expect("it is text");
        text.lines().any(|line| line == handled).then_some(())
    });

    terminate(&service.process);
    assert_eq!(service.next_line(), "stopped, 0 handlers left");
    assert!(service.process.wait().expect("it ends").success());
}

#[test]
fn a_webhook_that_is_not_signed_by_the_secret_is_refused_and_not_published() {
    let queue = Queue::unique("forged", CONFIG);
    let mut service = Microservice::start(&queue, &rabbitmq());
    let right = sign(BODY, SECRET);
    let forgeries = [
        sign(BODY, "a guess"),
        sign("{}", SECRET),
        String::from("sha256="),
        right.replace("sha256=", "sha1="),
        right[..right.len() - 2].to_owned(),
        format!("{right}00"),
        format!("sha256={}", "é".repeat(32)),
    ];
    for forgery in forgeries {
        assert_eq!(service.post("forged", BODY, &forgery), 401, "{forgery}");
    }
    let unnamed = service.agent.post(format!("{}/webhooks", service.address));
    let unnamed = unnamed.header("X-Hub-Signature-256", &right).send(BODY).expect("it answers");
    assert_eq!(unnamed.status(), 400);
    assert_eq!(service.post("", BODY, &right), 400, "an empty id is none");
    let nothing = service.agent.post(format!("{}/webhooks", service.address));
    let nothing = nothing.header("X-GitHub-Delivery", "eventless").header("X-GitHub-Event", "");
    let nothing = nothing.header("X-Hub-Signature-256", &right).send(BODY).expect("it answers");
    assert_eq!(nothing.status(), 400, "an empty event is none");
    let huge = "x".repeat((16 << 20) + 1);
    assert_eq!(service.post("huge", &huge, &sign(&huge, SECRET)), 413);
    let long = "x".repeat(300);
    assert_eq!(service.post(&long, BODY, &right), 422, "no queue will ever take such an id");
    // The first that it speaks of is the first that was signed.
    assert_eq!(service.post("honest", BODY, &right), 202);
    assert_eq!(service.next_line(), "issues in octo-org/octo-repo: honest");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_that_the_broker_does_not_confirm_is_answered_before_github_gives_it_up() {
    let queue = Queue::unique("unconfirmed", CONFIG);
    let road = Road::to(&rabbitmq()).await;
    let mut service = Microservice::start(&queue, &road.url);
    road.close();
    let signature = sign(BODY, SECRET);
    let asked = Instant::now();
    assert_eq!(service.post("delivery-1", BODY, &signature), 503);
    assert!(asked.elapsed() < GITHUB_WAITS, "answered after {:?}", asked.elapsed());
    // As GitHub's owner does by a click; the first may have arrived, too.
    road.open();
    wait_for("the broker", || (service.post("delivery-1", BODY, &signature) == 202).then_some(()));
    assert_eq!(service.next_line(), "issues in octo-org/octo-repo: delivery-1");
}

#[test]
fn a_signal_while_it_waits_for_its_broker_ends_it_well() {
    // It takes connections and never says a word.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
    silent.set_nonblocking(true).expect("it can be asked");
    let url = format!("amqp://{}/%2f", silent.local_addr().expect("it listens"));
    let mut process = program("microservice")
        .args(["--listen", "127.0.0.1:0"])
        .env("WEBHOOK_SECRET", SECRET)
        .env("REDELIVER__BROKERS__MAIN__URL", url)
        .spawn()
        .expect("the program can be started");
    let connected = wait_for("a connection", || silent.accept().ok());
    terminate(&process);
    assert_eq!(process.wait().expect("it ends").code(), Some(0));
    drop(connected);
}

fn terminate(process: &Child) {
    let id = process.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &id]).status().is_ok_and(|it| it.success()));
}

#[test]
fn without_a_secret_it_does_not_start() {
    let output = program("microservice").env_remove("WEBHOOK_SECRET").output();
    let output = output.expect("the program can be started");
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("set WEBHOOK_SECRET"), "{said}");
}

#[test]
fn a_configuration_that_is_wrong_is_told_as_it_reads() {
    let folder = programs::folder();
    let file = folder.path().join("wrong.toml");
    std::fs::write(&file, "[service]\nnmae = \"x\"\n").expect("a file");
    let output = program("microservice")
        .arg("--config")
        .arg(&file)
        .env("WEBHOOK_SECRET", SECRET)
        .output()
        .expect("the program can be started");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("nmae") && !said.contains("Problem"), "{said}");
}
