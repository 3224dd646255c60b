//! Health, metrics and logs: what an operator sees, and what nobody may see.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use redeliver::testing::TestService;

use crate::bench::{THRICE, obey, orders, text};

/// Every metric, as it stands in the text.
const METRICS: [&str; 26] = [
    "redeliver_received_total",
    "redeliver_handled_total",
    "redeliver_retried_total",
    "redeliver_deferred_total",
    "redeliver_ignored_total",
    "redeliver_dropped_total",
    "redeliver_adopted_total",
    "redeliver_malformed_headers_total",
    "redeliver_duplicates_total",
    "redeliver_possible_duplicates_total",
    "redeliver_copies_failed_total",
    "redeliver_headers_left_out_total",
    "redeliver_restarts_total",
    "redeliver_lanes_reopened_total",
    "redeliver_given_up",
    "redeliver_breaker_state",
    "redeliver_in_flight",
    "redeliver_parked",
    "redeliver_carrying",
    "redeliver_source_ready",
    "redeliver_source_waiting",
    "redeliver_dead_letters",
    "redeliver_oldest_delivery_seconds",
    "redeliver_handler_seconds_count",
    "redeliver_wait_seconds_count",
    "redeliver_lateness_seconds_count",
];

fn metrics(test: &mut TestService) -> String {
    let service = test.service();
    test.run(async move { service.metrics().await })
}

fn value(metrics: &str, name: &str) -> f64 {
    let line = metrics.lines().find(|line| line.starts_with(&format!("{name}{{")));
    let line = line.unwrap_or_else(|| panic!("{name} is not in\n{metrics}"));
    line.rsplit(' ').next().and_then(|number| number.parse().ok()).expect("a number")
}

#[test]
fn every_metric_is_there_from_the_start() {
    let mut test = orders("", THRICE, obey);
    let text = metrics(&mut test);
    for name in METRICS {
        value(&text, name);
    }
    for reason in redeliver::Reason::ALL.map(redeliver::Reason::as_str) {
        let labels = format!("{{subscription=\"orders\",reason=\"{reason}\"}}");
        let line = format!("redeliver_dead_lettered_total{labels} 0\n");
        assert!(text.contains(&line), "the first of a reason is a rise from 0: {line}{text}");
    }
    assert!(text.ends_with("# EOF\n"), "OpenMetrics ends with a mark");
}

#[test]
fn the_metrics_count_what_happened() {
    let retry = "backoff = \"list\"\njitter = \"none\"\ndelays = [\"200ms\", \"2s\"]\n\
                 in_process_max = \"0s\"\nrules = [{ class = \"validation\", then = \"ignore\" }]\n";
    let mut test = orders("in_flight_max = 3", retry, obey);
    for (id, word) in
        [("1", "ok"), ("2", "retry once"), ("3", "reject"), ("4", "invalid"), ("5", "panic once")]
    {
        test.publish("orders", text(id, word));
    }
    test.finish();
    test.publish("orders", text("6", "hang"));
    test.publish("orders", text("7", "defer"));
    test.advance(Duration::from_secs(1));
    let text = metrics(&mut test);
    for (name, count) in [
        ("redeliver_received_total", 9.0),
        ("redeliver_handled_total", 3.0),
        ("redeliver_retried_total", 2.0),
        ("redeliver_deferred_total", 1.0),
        ("redeliver_ignored_total", 1.0),
        ("redeliver_restarts_total", 1.0),
        ("redeliver_in_flight", 1.0),
        ("redeliver_source_ready", 0.0),
        ("redeliver_source_waiting", 1.0),
        ("redeliver_dead_letters", 1.0),
        ("redeliver_oldest_delivery_seconds", 1.0),
        ("redeliver_handler_seconds_count", 8.0),
        ("redeliver_wait_seconds_count", 3.0),
        ("redeliver_lateness_seconds_count", 2.0),
        ("redeliver_breaker_state", 0.0),
    ] {
        assert_eq!(value(&text, name), count, "{name}\n{text}");
    }
    let dead = "redeliver_dead_lettered_total{subscription=\"orders\",reason=\"rejected\"} 1\n";
    assert!(text.contains(dead), "{text}");
}

#[test]
fn waits_in_the_process_are_waits_too() {
    let mut test = orders("", THRICE, obey);
    test.publish("orders", text("7", "retry"));
    test.publish("orders", text("8", "ok"));
    test.finish();
    let text = metrics(&mut test);
    assert_eq!(value(&text, "redeliver_wait_seconds_count"), 2.0, "{text}");
    assert_eq!(value(&text, "redeliver_wait_seconds_sum"), 0.4, "{text}");
    assert_eq!(value(&text, "redeliver_lateness_seconds_count"), 2.0, "{text}");
}

#[test]
fn a_duplicate_is_counted_as_one_and_not_as_handled() {
    let retry = format!("{THRICE}[stores.main]\nkind = \"memory\"\n");
    let mut test = orders("idempotency = { store = \"main\" }", &retry, obey);
    for _ in 0..3 {
        test.publish("orders", text("7", "ok"));
    }
    test.finish();
    assert_eq!(test.log(), ["7: attempt 1 handled", "7: duplicate", "7: duplicate"]);
    let text = metrics(&mut test);
    assert_eq!(value(&text, "redeliver_handled_total"), 1.0);
    assert_eq!(value(&text, "redeliver_duplicates_total"), 2.0);
}

#[test]
fn the_gauges_tell_what_is_ready_in_hand_waiting_and_dead_and_how_old_the_oldest_is() {
    let retry = "jitter = \"none\"\ndelay_min = \"10m\"\n";
    let mut test = orders("in_flight_max = 2\ntimeout = \"1h\"", retry, obey);
    test.publish("orders", text("dead", "reject"));
    test.publish("orders", text("waiting", "retry"));
    test.publish("orders", text("hangs", "hang"));
    test.advance(Duration::from_secs(5));
    test.publish("orders", text("slow", "slow"));
    for id in 0..3 {
        test.publish("orders", text(&id.to_string(), "hang"));
    }
    let seen = |test: &mut TestService| {
        let text = metrics(test);
        [
            "redeliver_source_ready",
            "redeliver_in_flight",
            "redeliver_source_waiting",
            "redeliver_dead_letters",
            "redeliver_oldest_delivery_seconds",
        ]
        .map(|name| value(&text, name))
    };
    assert_eq!(seen(&mut test), [3.0, 2.0, 1.0, 1.0, 5.0]);
    test.advance(Duration::from_secs(2));
    assert_eq!(seen(&mut test), [2.0, 2.0, 1.0, 1.0, 7.0]);
    test.stop();
}

#[test]
fn the_age_of_the_oldest_delivery_is_that_of_one_still_in_hand() {
    let mut test = orders("timeout = \"1h\"", THRICE, obey);
    test.publish("orders", text("old", "slow"));
    test.advance(Duration::from_millis(950));
    test.publish("orders", text("young", "slow"));
    test.advance(Duration::from_millis(500));
    let text_of = metrics(&mut test);
    assert_eq!(value(&text_of, "redeliver_oldest_delivery_seconds"), 0.5, "{text_of}");
    test.advance(Duration::from_secs(60));
    assert_eq!(value(&metrics(&mut test), "redeliver_oldest_delivery_seconds"), 0.0);
}

/// What is logged while `run` runs.
fn logged<T>(run: impl FnOnce() -> T) -> (T, String) {
    let log = Log::default();
    let sink = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || sink.clone())
        .finish();
    let done = tracing::subscriber::with_default(subscriber, run);
    let logged = String::from_utf8(log.0.lock().unwrap().clone()).expect("text");
    (done, logged)
}

#[test]
fn spent_restarts_are_one_error_line_and_a_metric_until_somebody_resumes() {
    async fn unused(_: redeliver::Delivery<String>) -> redeliver::Handled {
        Ok(())
    }
    struct Dead;
    impl actix::Actor for Dead {
        type Context = actix::Context<Self>;
    }
    impl actix::Handler<redeliver::Delivery<String>> for Dead {
        type Result = redeliver::Handled;
        fn handle(
            &mut self,
            _: redeliver::Delivery<String>,
            _: &mut Self::Context,
        ) -> redeliver::Handled {
            Ok(())
        }
    }
    let ((), logged) = logged(|| {
        let handlers = redeliver::by_type()
            .on("order", || -> Dead { panic!("no database") })
            .on("refund", || -> Dead { panic!("no database") })
            .otherwise(unused);
        let mut test = orders("handlers = 2", THRICE, handlers);
        assert_eq!(value(&metrics(&mut test), "redeliver_given_up"), 0.0);
        test.advance(Duration::from_secs(60));
        let text = metrics(&mut test);
        assert_eq!(value(&text, "redeliver_given_up"), 1.0, "{text}");
        assert!(!test.service().health().ready);
        test.advance(Duration::from_secs(3600));
    });
    let errors: Vec<_> = logged.lines().filter(|line| line.contains("ERROR")).collect();
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(errors[0].contains("handler actors keep dying"), "{errors:?}");
}

#[test]
fn a_running_service_is_ready_and_a_stopped_one_is_not_live() {
    let mut test = orders("", THRICE, obey);
    let health = test.service().health();
    assert!(health.live && health.ready && health.reasons.is_empty(), "{health:?}");
    assert_eq!(health.subscriptions["orders"].lanes.len(), 1);
    test.stop();
    let health = test.service().health();
    assert!(!health.live && !health.ready, "{health:?}");
}

/// Keeps all that is logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn no_log_line_and_no_debug_output_shows_a_secret_or_a_payload() {
    let (shown, logged) = logged(|| {
        let text_of = "[brokers.main]\nkind = \"rabbitmq\"\nurl = \"amqp://me:hunter2@localhost/%2f\"\n\
                       [subscriptions.orders]\nbroker = \"main\"\nqueue = \"orders\"\n";
        let config = redeliver::config::Config::from_toml(text_of).expect("it is usable");
        let shown = format!("{config:?} {config:#?}");
        let builder = redeliver::Service::builder(config).subscribe("orders", obey);
        let mut test = TestService::start(builder).expect("every broker is one in memory");
        test.publish("orders", text("7", "swordfish"));
        test.publish("orders", redeliver::Message::bytes("{swordfish").id("8"));
        test.publish("orders", text("9", "panic"));
        test.finish();
        shown
    });
    assert!(logged.contains("dead-lettered"), "something is logged: {logged}");
    for everything in [shown, logged] {
        assert!(!everything.contains("hunter2"), "{everything}");
        // What the handler itself says is its author's business.
        let ours = everything.replace("cannot swordfish", "");
        assert!(!ours.contains("swordfish"), "{everything}");
    }
}
