//! The example `webhooks` when it is stopped, when the broker is away, and when it is told what cannot be: whoever
//! starts it from a script can rely on its last line and on its exit code.

#![cfg(feature = "rabbitmq")]

mod programs;

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use programs::road::Road;
use programs::{
    Place, Queue, count_lines, folder, job, program, rabbitmq, run, summary, told, wait_for,
    webhooks,
};
use serde_json::{Value, json};

/// What the example runs with.
const CONFIG: &str = include_str!("../config/webhooks.toml");
/// So often, and a debug build still publishes for some seconds.
const REPEAT: usize = 60;

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_away_for_most_of_a_minute_costs_the_run_nothing() {
    let outage = Outage::begin("outage").await;
    // Longer than three sends of one message take until they are given up.
    tokio::time::sleep(Duration::from_secs(40)).await;
    outage.road.open();
    let output = outage.run.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(0), "{}", told(&output));
    let summary = summary(&output);
    assert_eq!((&summary["lost"], &summary["published"]), (&json!(0), &json!(outage.messages)));
}

#[tokio::test(flavor = "multi_thread")]
async fn stopped_while_the_broker_is_away_a_run_says_what_it_knows() {
    let outage = Outage::begin("away").await;
    terminate(&outage.run);
    let output = outage.run.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(1), "{}", told(&output));
    let summary = summary(&output);
    assert!(summary["published"].as_u64().is_some_and(|count| count < outage.messages as u64));
    assert!(summary["handled"].as_u64().is_some_and(|count| count > 0), "{summary}");
    assert_eq!((&summary["lost"], &summary["dead_lettered"]), (&Value::Null, &Value::Null));
    assert!(String::from_utf8_lossy(&output.stderr).contains("signal"), "{}", told(&output));
}

#[test]
fn a_job_that_is_stopped_while_it_waits_for_its_broker_says_so() {
    // It takes connections and never says a word.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
    silent.set_nonblocking(true).expect("it can be asked");
    let url = format!("amqp://{}/%2f", silent.local_addr().expect("it listens"));
    for part in ["run", "publish", "consume"] {
        let mut job = program("webhooks");
        let job = job.args([part, "--broker", "rabbitmq", "--url", &url]);
        let job = job.stdout(Stdio::piped()).stderr(Stdio::piped());
        let job = job.spawn().expect("the program can be started");
        let connected = wait_for("a connection", || silent.accept().ok());
        terminate(&job);
        let output = job.wait_with_output().expect("it ends");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.contains("wrong: stopped by a signal before the end"), "{}", told(&output));
        assert_eq!(output.status.code(), Some(1), "{}", told(&output));
        assert_eq!(summary(&output)["published"], Value::Null);
        drop(connected);
    }
}

#[test]
fn consume_that_is_stopped_before_its_end_says_so() {
    let queue = Queue::unique("stopped", CONFIG);
    let mut consume = job("consume", &queue.place());
    let consume = consume.args(["--idle-exit", "10m"]).stderr(Stdio::piped());
    let mut consume = consume.spawn().expect("the program can be started");
    let stderr = consume.stderr.take().expect("it is piped");
    let mut lines = BufReader::new(stderr).lines();
    let begun = lines.next().expect("it says something").expect("it says text");
    assert!(begun.starts_with("consuming"), "{begun}");
    terminate(&consume);
    let said: Vec<String> = lines.map_while(Result::ok).collect();
    assert!(said.iter().any(|line| line.contains("signal")), "{said:?}");
    let output = consume.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(1), "{}", told(&output));
    let summary = summary(&output);
    assert_eq!((&summary["handled"], &summary["dead_lettered"]), (&json!(0), &Value::Null));
}

#[test]
fn a_job_that_cannot_be_begun_ends_with_2_and_with_its_line() {
    let output = run("webhooks", ["publish", "--broker", "rabbitmq", "--input", "/no/such/file"]);
    assert_eq!(output.status.code(), Some(2), "{}", told(&output));
    assert_eq!(summary(&output)["published"], Value::Null);
}

#[test]
fn an_option_that_only_the_other_half_uses_is_told_of() {
    let publishing = "--input=F --repeat=2";
    let handling = "--fail-percent=1 --dead-percent=1 --effects=F --idle-exit=1s --idempotent --lock --redis=U";
    for (part, not_used) in [("consume", publishing), ("publish", handling)] {
        let used = if part == "consume" { handling } else { publishing };
        let flags = used.split(' ').chain(not_used.split(' '));
        let output = run("webhooks", [part, "--config=/no/such/file"].into_iter().chain(flags));
        let stderr = String::from_utf8_lossy(&output.stderr);
        let told_of: Vec<&str> = stderr.lines().filter(|it| it.ends_with(" is not used")).collect();
        assert_eq!(told_of.len(), not_used.split(' ').count(), "{}", told(&output));
        for flag in not_used.split(' ').map(|it| it.split('=').next().unwrap_or(it)) {
            assert!(stderr.contains(&format!(": {flag} is not used")), "{flag}: {}", told(&output));
        }
    }
}

#[test]
fn a_redis_that_nothing_is_kept_in_is_told_of() {
    for (more, is_told) in [(None, true), (Some("--lock"), false), (Some("--idempotent"), false)] {
        let flags = ["run", "--config=/no/such/file", "--redis=U"].into_iter().chain(more);
        let output = run("webhooks", flags);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(stderr.contains(": --redis is not used"), is_told, "{}", told(&output));
    }
}

#[test]
fn a_standard_error_that_nobody_reads_ends_no_job() {
    for end in ["2>&-", "2>/dev/full"] {
        let webhooks = program("webhooks").get_program().to_owned();
        let line = format!("exec \"$0\" --idle-exit 100ms {end}");
        let output = Command::new("sh").arg("-c").arg(line).arg(webhooks).output();
        let output = output.expect("the program can be started");
        assert_eq!(output.status.code(), Some(0), "{end}: {}", told(&output));
        assert_eq!(summary(&output)["lost"], json!(0), "{end}");
    }
}

#[test]
fn what_cannot_be_is_refused_with_what_contradicts_what() {
    let folder = folder();
    let file = folder.path().join("rabbit.toml");
    let rabbit =
        CONFIG.replace("kind = \"memory\"", "kind = \"rabbitmq\"\nurl = \"amqp://rabbit/\"");
    std::fs::write(&file, rabbit).expect("the folder can be written");
    let file = file.to_str().expect("its name is text");
    for (flags, said) in [
        (&["publish"][..], "use `run`"),
        (&["consume"], "use `run`"),
        (&["--broker", "memory", "--config", file], "whose [brokers.main] is at amqp://rabbit/"),
        (&["--broker", "memory", "--url", "amqp://rabbit/"], "take --url away"),
        (&["--repeat", "0"], "--repeat"),
        (&["--fail-percent", "-1"], "--fail-percent -1 and --dead-percent 1 must be 0 or more"),
        (&["--dead-percent", "-0.5"], "--dead-percent -0.5 must be 0 or more"),
        (&["--fail-percent", "NaN"], "--fail-percent NaN"),
    ] {
        let output = run("webhooks", flags);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.contains(said), "{flags:?}: {}", told(&output));
        assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{flags:?}");
    }
}

#[test]
fn a_line_whose_id_nobody_could_count_is_refused_where_it_stands() {
    let folder = folder();
    let file = folder.path().join("webhooks.jsonl");
    for (id, said) in
        [("", "is empty"), ("a b", "spaces"), (r"a\nb", "spaces"), (r"\u0007", "control")]
    {
        let line = |id: &str| format!(r#"{{"delivery":"{id}","event":"push"}}"#);
        let lines = format!("{}\n{}\n", line("good"), line(id));
        std::fs::write(&file, lines).expect("the folder can be written");
        let output = run("webhooks", [OsStr::new("--input"), file.as_os_str()]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        let place = format!("{}:2: `delivery` ", file.display());
        assert!(stderr.contains(&place) && stderr.contains(said), "{id:?}: {}", told(&output));
        assert_eq!(output.status.code(), Some(2), "{id:?}");
        assert_eq!(summary(&output)["published"], Value::Null, "{id:?}");
    }
}

#[test]
fn a_summary_that_cannot_be_written_is_an_error_and_no_panic() {
    let full = std::fs::File::options().write(true).open("/dev/full").expect("it is there");
    let (unread, output) = std::io::pipe().expect("a pipe can be made");
    drop(unread);
    for stdout in [Stdio::from(full), Stdio::from(output)] {
        let mut quickly = program("webhooks");
        let quickly = quickly.args(["--idle-exit", "100ms"]).stdout(stdout).stderr(Stdio::piped());
        let output = quickly.spawn().expect("the program can be started").wait_with_output();
        let output = output.expect("it ends");
        assert_eq!(output.status.code(), Some(2), "{}", told(&output));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.contains("writing the summary to standard output"), "{}", told(&output));
        assert!(!stderr.contains("panicked"), "{}", told(&output));
    }
}

#[test]
fn effects_that_cannot_be_kept_end_the_job_and_cost_no_attempt() {
    let output = run("webhooks", ["--effects", "/no/such/folder/effects"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("opening --effects /no/such/folder/effects: No such"), "{stderr}");
    assert_eq!(output.status.code(), Some(2), "{}", told(&output));
    assert_eq!(summary(&output)["published"], Value::Null);
    let fails = ["--fail-percent", "0", "--dead-percent", "0", "--effects", "/dev/full"];
    let output = run("webhooks", fails);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("wrong: writing --effects /dev/full: No space"), "{stderr}");
    assert_eq!(output.status.code(), Some(1), "{}", told(&output));
    let summary = summary(&output);
    assert_eq!((&summary["handled"], &summary["retried"]), (&json!(0), &json!(0)), "{summary}");
}

#[test]
fn publish_that_is_stopped_says_so_and_blames_no_message() {
    let queue = Queue::unique("stopped-publish", CONFIG);
    let mut publish = job("publish", &queue.place());
    let publish = publish.args(["--repeat", "100000"]).stderr(Stdio::piped());
    let mut publish = publish.spawn().expect("the program can be started");
    let stderr = publish.stderr.take().expect("it is piped");
    let mut lines = BufReader::new(stderr).lines().map_while(Result::ok);
    let begun = lines.find(|line| line.starts_with("published")).expect("it publishes");
    terminate(&publish);
    let wrong: Vec<String> = lines.filter(|line| line.starts_with("wrong")).collect();
    assert_eq!(wrong, ["wrong: stopped by a signal before the end"], "after {begun}");
    let output = publish.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(1), "{}", told(&output));
    assert!(summary(&output)["published"].as_u64().is_some_and(|count| count > 0));
}

#[test]
fn what_the_configuration_refuses_is_said_before_anything_is_begun() {
    let effects = folder();
    let file = effects.path().join("effects");
    let refused = ["consume", "--broker", "rabbitmq", "--url", "not a url", "--idempotent"];
    let mut job = program("webhooks");
    let output = job.args(refused).arg("--effects").arg(&file).output().expect("it can be started");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("brokers.main.url does not begin with amqp://"), "{stderr}");
    assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{}", told(&output));
    assert!(!file.exists(), "nothing was begun");
}

/// A run whose broker went away while it was publishing.
struct Outage {
    run: Child,
    road: Road,
    messages: usize,
    _queue: Queue,
    _folder: tempfile::TempDir,
}

impl Outage {
    async fn begin(name: &str) -> Self {
        let (queue, folder) = (Queue::unique(name, CONFIG), folder());
        let (file, effects) = (webhooks(&folder), folder.path().join("effects"));
        let road = Road::to(&rabbitmq()).await;
        let place = Place { url: road.url.clone(), ..queue.place() };
        let mut run = job("run", &place);
        let run = run.args(["--repeat", &REPEAT.to_string()]).arg("--input").arg(&file);
        let run = run.arg("--effects").arg(&effects).stderr(Stdio::piped());
        let run = run.spawn().expect("the program can be started");
        wait_for("the first effects", || (count_lines(&effects) > 0).then_some(()));
        road.close();
        let lines = std::fs::read_to_string(&file).expect("it can be read").lines().count();
        let messages = lines * REPEAT;
        Self { run, road, messages, _queue: queue, _folder: folder }
    }
}

fn terminate(process: &Child) {
    let id = process.id().to_string();
    let sent = Command::new("kill").args(["-TERM", &id]).status().expect("kill can be run");
    assert!(sent.success());
}
