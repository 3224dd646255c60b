//! What the configuration promises: defaults, layers, secrets, and every problem at once with its place.

use std::time::Duration;

use proptest::prelude::*;
use redeliver::config::{
    BrokerKind, Config, KeySource, Problems, Retry, StoreKind, Subscription, Url,
};

const ORDERS: &str = include_str!("../config/orders.toml");
const NO_ENVIRONMENT: [(&str, &str); 0] = [];

fn problems_of(text: &str) -> Problems {
    Config::from_toml(text).expect_err("the configuration was accepted")
}

/// The text has exactly one problem, at this path, and these words are in it.
fn refused(text: &str, path: &str, words: &[&str]) {
    let problems = problems_of(text);
    let [problem] = problems.list() else { panic!("not one problem: {problems}") };
    assert_eq!(problem.path(), path, "{problems}");
    for word in words {
        assert!(problem.to_string().contains(word), "{word:?} is not in {problems}");
    }
}

/// The same for one line of a RabbitMQ subscription.
fn line_refused(line: &str, path: &str, words: &[&str]) {
    refused(&orders_with(line), &format!("subscriptions.orders.{path}"), words);
}

fn policy_refused(lines: &str, path: &str, words: &[&str]) {
    refused(&format!("[retry.slow]\n{lines}\n"), &format!("retry.slow{path}"), words);
}

fn orders_with(lines: &str) -> String {
    format!(
        "brokers.main = {{ kind = \"rabbitmq\", url = \"amqp://127.0.0.1\" }}\nstores.main.kind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"\nqueue = \"orders\"\n{lines}\n"
    )
}

fn kafka_with(lines: &str) -> String {
    format!(
        "brokers.main = {{ kind = \"kafka\", url = \"127.0.0.1:9092\" }}\n[subscriptions.orders]\nbroker = \"main\"\n{lines}\n"
    )
}

/// `text` in a file, with these variables over it.
fn with_environment(text: &str, environment: &[(&str, &str)]) -> Result<Config, Problems> {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let file = folder.path().join("orders.toml");
    std::fs::write(&file, text).expect("a file can be written");
    Config::load_all_with(&[file], environment.iter().copied())
}

#[test]
fn what_is_not_said_has_its_default() -> Result<(), Problems> {
    let config = Config::from_toml(ORDERS)?;
    let orders = &config.subscriptions["orders"];
    assert_eq!(orders.in_flight_max.get(), 64);
    assert_eq!(orders.timeout, Duration::from_secs(30));
    assert_eq!(orders.key.as_ref().map(KeySource::to_string).as_deref(), Some("/customer_id"));
    assert_eq!(config.retry_of(orders), Retry::default());
    assert_eq!(config.retry_of(&Subscription::default()), Retry::default());
    Ok(())
}

#[test]
fn a_window_that_rabbitmq_cannot_be_told_is_refused() {
    assert!(Config::from_toml(&orders_with("in_flight_max = 65_407")).is_ok(), "with 128 parked");
    let words = ["65536 together", "at most 65535", "parked_max"];
    line_refused("in_flight_max = 65_408", "in_flight_max", &words);
}

#[test]
fn a_misspelled_key_is_named_with_the_nearest_one() {
    line_refused(
        "in_flight_mx = 5",
        "in_flight_mx",
        &["did you mean `in_flight_max`?", "line 6, column 1:", "^^^^^^^^^^^^"],
    );
    refused("[subscription.orders]\n", "subscription", &["did you mean `subscriptions`?"]);
    policy_refused("delay-max = \"1s\"", ".delay-max", &["did you mean `delay_max`?"]);
    policy_refused(
        "[[retry.slow.rules]]\nclas = \"x\"\nthen = \"reject\"",
        ".rules[0].clas",
        &["did you mean `class`?"],
    );
}

#[test]
fn a_misspelled_key_that_had_to_be_there_is_one_problem() {
    refused(
        &orders_with("").replace("queue =", "quue ="),
        "subscriptions.orders.quue",
        &["`queue`"],
    );
}

#[test]
fn a_misspelled_choice_is_named_with_the_nearest_one() {
    line_refused("ordering = \"kee\"", "ordering", &["did you mean \"key\"?", "^^^^^"]);
    line_refused(
        "ordering = \"by customer\"",
        "ordering",
        &["use one of \"none\", \"key\", \"lane\""],
    );
}

#[test]
fn a_misspelled_name_is_named_with_the_nearest_one() {
    let text = ORDERS.replace("broker = \"main\"", "broker = \"mian\"");
    refused(&text, "subscriptions.orders.broker", &["did you mean \"main\"?"]);
    line_refused("retry = \"standrad\"", "retry", &["did you mean \"standard\"?"]);
    line_refused(
        "idempotency = { store = \"mains\" }",
        "idempotency.store",
        &["did you mean \"main\"?"],
    );
}

#[test]
fn what_has_to_be_a_table_or_a_choice_is_told_in_words_of_toml() {
    let keys = "but must be a table: its keys below a [name] of its own, or in { .. }";
    refused("[retry]\nslow = 5", "retry.slow", &["is the number `5`", keys]);
    refused("[stores]\nmain = \"redis\"", "stores.main", &["is the text \"redis\"", keys]);
    line_refused("breaker = true", "breaker", &["is `true`", keys]);
    line_refused("ordering = 5", "ordering", &["must be text in quotes"]);
}

#[test]
fn nothing_is_taken_for_a_number_that_is_none() {
    line_refused(
        "in_flight_max = 5.7",
        "in_flight_max",
        &["5.7", "whole number", "line 6, column 17:"],
    );
    line_refused("in_flight_max = \"5\"", "in_flight_max", &["without quotes"]);
    line_refused("in_flight_max = true", "in_flight_max", &["`true`"]);
    line_refused("in_flight_max = 0", "in_flight_max", &["use 1 or more"]);
    line_refused("in_flight_max = -1", "in_flight_max", &["out of range"]);
    line_refused("crashes_max = 4294967296", "crashes_max", &["out of range"]);
    line_refused("single_active_consumer = 1", "single_active_consumer", &["true or false"]);
}

#[test]
fn a_unit_is_never_guessed() {
    line_refused("timeout = 30", "timeout", &["no unit"]);
    line_refused("timeout = \"30\"", "timeout", &["no unit"]);
    line_refused("timeout = \"30 s\"", "timeout", &["write a duration like"]);
    line_refused("body_max = \"16MB\"", "body_max", &["\"MB\"", "MiB"]);
    line_refused("timeout = \"0s\"", "timeout", &["no time at all"]);
}

#[test]
fn every_problem_is_reported_at_once() {
    let problems = problems_of(
        "[brokers.main]\nkind = \"rabbit\"\n[subscriptions.orders]\nbroker = \"man\"\nqueue = 5\nin_flight_max = 0\ntimeout = \"5\"\n[retry.slow]\ndelay_min = \"1s\"\ndelay_max = \"500ms\"\n",
    );
    let paths: Vec<&str> = problems.list().iter().map(|problem| problem.path()).collect();
    assert_eq!(
        paths,
        [
            "brokers.main.kind",
            "subscriptions.orders.broker",
            "subscriptions.orders.queue",
            "subscriptions.orders.in_flight_max",
            "subscriptions.orders.timeout",
            "retry.slow.delay_max"
        ],
        "{problems}"
    );
}

#[test]
fn a_text_that_is_no_toml_is_shown_where_it_breaks() {
    refused("[brokers.main]\nkind = \n", "", &["line 2, column", "kind ="]);
    assert!(problems_of("a = = 1\n[b\n").list().len() > 1);
}

#[test]
fn a_rabbitmq_subscription_needs_a_queue_and_a_kafka_one_topics_and_group() {
    refused(
        &orders_with("").replace("queue = \"orders\"", ""),
        "subscriptions.orders.queue",
        &["add queue ="],
    );
    refused(&kafka_with("group = \"g\""), "subscriptions.orders.topics", &["add topics ="]);
    refused(&kafka_with("topics = [\"t\"]"), "subscriptions.orders.group", &["add group ="]);
    refused(
        &kafka_with("group = \"g\"\npattern = \"orders-\""),
        "subscriptions.orders.pattern",
        &["begin it with ^"],
    );
    refused(
        &kafka_with("group = \"g\"\ntopics = [\"t\"]\npattern = \"^t\""),
        "subscriptions.orders.pattern",
        &["topics too"],
    );
}

#[test]
fn keys_of_another_broker_are_refused() {
    line_refused("group = \"billing\"", "group", &["means nothing on a rabbitmq broker"]);
    refused(
        &kafka_with("group = \"g\"\ntopics = [\"t\"]\nconsumers = 2"),
        "subscriptions.orders.consumers",
        &["kafka"],
    );
    refused(
        "[brokers.main]\nkind = \"memory\"\nurl = \"amqp://x\"",
        "brokers.main.url",
        &["memory"],
    );
}

#[test]
fn a_kind_is_never_guessed() {
    refused("[brokers.main]\nurl = \"amqp://x\"", "brokers.main.kind", &["add kind ="]);
    refused("[stores.main]\nstrict = true", "stores.main.kind", &["add kind ="]);
}

#[test]
fn an_address_must_fit_its_kind() {
    refused(
        "[brokers.main]\nkind = \"rabbitmq\"\nurl = \"http://x\"",
        "brokers.main.url",
        &["amqp:// or amqps://"],
    );
    refused(
        "[brokers.main]\nkind = \"kafka\"\nurl = \"localhost\"",
        "brokers.main.url",
        &["HOST:9092"],
    );
    refused("[stores.main]\nkind = \"redis\"", "stores.main.url", &["add url ="]);
}

#[test]
fn names_that_no_variable_can_reach_are_refused() {
    for name in ["Orders", "\"or ders\"", "a__b", "\"ü\"", "\"\""] {
        let problems = problems_of(&format!("[retry.{name}]\n"));
        assert!(problems.to_string().contains("no usable name"), "{problems}");
    }
}

#[test]
fn order_by_key_needs_a_key_but_on_kafka() -> Result<(), Problems> {
    line_refused("ordering = \"key\"", "key", &["needs it"]);
    Config::from_toml(&kafka_with("group = \"g\"\ntopics = [\"t\"]\nordering = \"key\""))
        .map(|_| ())
}

#[test]
fn order_with_long_waits_must_say_what_becomes_of_them() -> Result<(), Problems> {
    let slow = "ordering = \"lane\"\nretry = \"slow\"\n[retry.slow]\nbackoff = \"fixed\"\ndelay_min = \"1m\"";
    line_refused(
        slow,
        "order_on_long_wait",
        &["waits of retry.slow can last 1m", "order_wait_max (30s)"],
    );
    let ruled = "ordering = \"lane\"\n[retry.standard]\nrules = [{ class = \"down\", retry = \"slow\" }]\n[retry.slow]\nbackoff = \"fixed\"\ndelay_min = \"1m\"";
    line_refused(ruled, "order_on_long_wait", &["retry.slow"]);
    Config::from_toml(&orders_with(&format!("order_on_long_wait = \"reorder\"\n{slow}")))
        .map(|_| ())
}

#[test]
fn a_subscription_that_contradicts_itself_is_refused() {
    line_refused("ordering = \"lane\"\nconsumers = 4", "consumers", &["stand by"]);
    let keyed = "ordering = \"key\"\nkey = \"/a\"\norder_on_long_wait = \"reorder\"\nconsumers = 2";
    line_refused(keyed, "consumers", &["side by side", "use 1"]);
    let in_process = format!("{keyed}\norder_scope = \"process\"");
    line_refused(&in_process, "consumers", &["side by side", "use 1"]);
    line_refused("in_flight_bytes_max = \"1MiB\"", "in_flight_bytes_max", &["body_max (16MiB)"]);
    line_refused("batch = { size = 100 }", "batch.size", &["in_flight_max (64)"]);
    line_refused("breaker = { failure_rate = 1.5 }", "breaker.failure_rate", &["no share"]);
    line_refused("breaker = { pause = \"10m\" }", "breaker.pause_max", &["pause (10m)"]);
    line_refused("wait = \"later\"", "wait", &["{ms}"]);
    line_refused("dead = \"{topic}.dead\"", "dead", &["{topic}", "use {queue}"]);
    line_refused("lock = { store = \"main\" }", "lock.key", &["add key ="]);
    line_refused(
        "lock = { store = \"main\", key = \"/a\", lease = \"1h\" }",
        "lock.hold_max",
        &["lease (1h)"],
    );
    line_refused("key = \"customer_id\"", "key", &["JSON pointer like \"/customer_id\""]);
    line_refused("bindings = [{ routing_key = \"a\" }]", "bindings[0].exchange", &["is missing"]);
}

#[test]
fn what_nothing_reads_is_refused() {
    line_refused("key = \"/a\"", "key", &["where order is kept"]);
    line_refused("order_wait_max = \"10s\"", "order_wait_max", &["where order is kept"]);
    line_refused("order_scope = \"process\"", "order_scope", &["where order is kept"]);
    policy_refused("backoff = \"fixed\"\nmultiplier = 3.0", ".multiplier", &["\"exponential\""]);
    policy_refused("backoff = \"none\"\ndelay_min = \"5s\"", ".delay_min", &["never waits"]);
    policy_refused("backoff = \"none\"\njitter = \"equal\"", ".jitter", &["never waits"]);
    let queue_type = "arguments = { x-queue-type = \"classic\" }";
    line_refused(queue_type, "arguments.x-queue-type", &["queue_type"]);
    let batch = "batch = { size = 64 }\nin_flight_total_max = 8";
    line_refused(batch, "batch.size", &["in_flight_total_max (8)"]);
    let rule = "[[retry.slow.rules]]\nclass = \"gone\"\nthen = \"reject\"\n";
    policy_refused(&rule.repeat(2), ".rules[1]", &["never read"]);
    for (table, plain, encrypted) in
        [("brokers.main", "amqp", "amqps"), ("stores.main", "redis-sentinel", "rediss-sentinel")]
    {
        let kind = if table == "brokers.main" { "rabbitmq" } else { "redis" };
        let toml = format!(
            "[{table}]\nkind = \"{kind}\"\nurl = \"{plain}://127.0.0.1\"\ntls = {{ insecure = true }}\n"
        );
        refused(&toml, &format!("{table}.tls"), &[&format!("{encrypted}://")]);
    }
    let single = "arguments = { x-single-active-consumer = false }";
    line_refused(single, "arguments.x-single-active-consumer", &["single_active_consumer"]);
}

#[test]
fn a_setting_of_the_url_that_no_connection_can_have_is_refused() {
    let with = |settings: &str| {
        format!(
            "[brokers.main]\nkind = \"rabbitmq\"\nurl = \"amqp://u:hunter2@h/%2f?{settings}\"\n"
        )
    };
    for (settings, words) in [
        ("heartbeat=abc", ["`heartbeat`", "seconds"]),
        ("heartbeat=70000", ["`heartbeat`", "0 to 65535"]),
        ("heartbeat=30&heartbeet=10", ["`heartbeet`", "did you mean `heartbeat`?"]),
        ("vhost=hunter2", ["that nobody reads", "heartbeat, frame_max"]),
        ("frame_max=1", ["`frame_max`", "4096"]),
        ("channel_max=-1", ["`channel_max`", "1 to 65535"]),
        ("connection_timeout=5s", ["`connection_timeout`", "milliseconds"]),
        ("auth_mechanism=password", ["`auth_mechanism`", "plain, external"]),
        ("hunter2@host", ["%XX", "password"]),
    ] {
        refused(&with(settings), "brokers.main.url", &words);
        let problems = problems_of(&with(settings)).to_string();
        assert!(
            problems.contains("line 3, column 7") && !problems.contains("hunter2"),
            "{problems}"
        );
    }
    let usable = "heartbeat=0&frame_max=4096&channel_max=100&connection_timeout=5000&auth_mechanism=EXTERNAL";
    for settings in [usable, "frame_max=0", "", "heartbeat=30#there"] {
        assert!(Config::from_toml(&with(settings)).is_ok(), "{settings}");
    }
}

#[test]
fn hops_that_nobody_counts_are_no_limit() {
    line_refused("hops_max = 1000000", "hops_max", &["no message exceeds", "1000000"]);
    assert!(Config::from_toml(&orders_with("hops_max = 999999")).is_ok());
}

#[test]
fn dead_letters_that_come_back_by_way_of_others_are_refused() {
    let ring = |dead: &str| {
        let more = |name: &str, dead: &str| {
            format!(
                "[subscriptions.{name}]\nbroker = \"main\"\nqueue = \"{name}\"\ndead = \"{dead}\"\n"
            )
        };
        orders_with("dead = \"refused\"") + &more("refused", "lost") + &more("lost", dead)
    };
    let words = ["back here by way of subscriptions.orders", "for ever"];
    refused(&ring("orders"), "subscriptions.refused.dead", &words);
    assert!(Config::from_toml(&ring("{queue}.dead")).is_ok(), "a chain has an end");
}

#[test]
fn dead_letters_must_not_lead_back_to_where_messages_come_from() {
    for dead in ["{queue}", "orders", "{queue}.suspects"] {
        line_refused(&format!("dead = \"{dead}\""), "dead", &["for ever", "name another place"]);
    }
    for dead in ["{topic}", "{topic}.{group}.redrive", "{topic}.{group}.suspects"] {
        let kafka = kafka_with(&format!("topics = [\"orders\"]\ngroup = \"g\"\ndead = \"{dead}\""));
        refused(&kafka, "subscriptions.orders.dead", &["for ever"]);
    }
}

#[test]
fn two_subscriptions_never_share_what_they_consume() {
    let second = |broker: &str, source: &str| {
        format!("[subscriptions.other]\nbroker = \"{broker}\"\n{source}")
    };
    let shared = orders_with(&second("main", "queue = \"orders\""));
    refused(&shared, "subscriptions.other.queue", &["subscriptions.orders", "a queue of its own"]);
    assert!(Config::from_toml(&orders_with(&second("main", "queue = \"others\""))).is_ok());
    let topics = |group: &str| {
        let other = second("main", &format!("topics = [\"orders\"]\ngroup = \"{group}\""));
        kafka_with(&format!("topics = [\"orders\"]\ngroup = \"g\"\n{other}"))
    };
    refused(&topics("g"), "subscriptions.other.topics", &["a group of its own"]);
    assert!(Config::from_toml(&topics("h")).is_ok(), "each group gets all messages");
}

#[test]
fn a_lease_must_outlast_a_few_late_answers_of_its_store() {
    let redis = |lease: &str| {
        let guards = format!(
            "idempotency = {{ store = \"main\", lease = \"{lease}\" }}\n\
             [stores.far]\nkind = \"redis\"\nurl = \"redis://127.0.0.1\"\ndeadline = \"2s\""
        );
        orders_with(&guards.replace("\"main\"", "\"far\""))
    };
    let words = ["(5s) is shorter", "stores.far.deadline (2s)", "use 6s or more"];
    refused(&redis("5s"), "subscriptions.orders.idempotency.lease", &words);
    assert!(Config::from_toml(&redis("6s")).is_ok());
    let locked = redis("6s").replace("idempotency = {", "lock = { key = \"/a\",");
    refused(&locked.replace("6s", "5s"), "subscriptions.orders.lock.lease", &words);
    let in_memory = orders_with("idempotency = { store = \"main\", lease = \"10ms\" }");
    assert!(Config::from_toml(&in_memory).is_ok(), "memory answers at once");
}

#[test]
fn a_prefix_of_keys_is_plain() {
    for prefix in ["", "a{b}", "a*", "with space", &"x".repeat(65)] {
        let text = format!(
            "[stores.main]\nkind = \"redis\"\nurl = \"redis://127.0.0.1\"\nprefix = \"{prefix}\""
        );
        refused(&text, "stores.main.prefix", &["letters, digits"]);
    }
}

#[test]
fn r9_ids_must_be_kept_longer_than_their_retries_last() {
    let short = "idempotency = { store = \"main\", keep = \"1m\" }";
    line_refused(short, "idempotency.keep", &["shorter than the attempts of retry.standard"]);
}

#[test]
fn a_policy_that_contradicts_itself_is_refused() {
    policy_refused(
        "delay_min = \"1h\"",
        ".delay_min",
        &["(1h) is above delay_max (10m)", "add a longer delay_max"],
    );
    policy_refused(
        "delay_min = \"1s\"\ndelay_max = \"500ms\"",
        ".delay_max",
        &["(500ms) is below delay_min (1s)"],
    );
    policy_refused("delay_min = \"0s\"", ".delay_min", &["no time at all"]);
    policy_refused("multiplier = 0.5", ".multiplier", &["would shrink"]);
    policy_refused("multiplier = nan", ".multiplier", &["would shrink"]);
    policy_refused("backoff = \"list\"", ".delays", &["add delays ="]);
    policy_refused("delays = [\"1s\"]", ".delays", &["backoff = \"list\""]);
    policy_refused(
        "backoff = \"list\"\ndelays = [\"1s\", \"1h\"]",
        ".delays[1]",
        &["delay_max (10m)", "\n  3 | "],
    );
    policy_refused("backoff = \"list\"\ndelays = [\"1s\", 5]", ".delays[1]", &["no unit"]);
    policy_refused("immediate = 8", ".immediate", &["7 retries"]);
    policy_refused("attempts_max = 0", ".attempts_max", &["1 or more"]);
}

#[test]
fn a_rule_must_fit_something_and_end_somewhere() {
    policy_refused("rules = [{ then = \"reject\" }]", ".rules[0]", &["neither class nor type"]);
    policy_refused(
        "rules = [{ class = \"a\", type = \"b\", then = \"reject\" }]",
        ".rules[0]",
        &["make two rules"],
    );
    policy_refused("rules = [{ class = \"a\" }]", ".rules[0].then", &["add then ="]);
    policy_refused(
        "rules = [{ class = \"a\", retry = \"sloww\" }]",
        ".rules[0].retry",
        &["did you mean \"slow\"?"],
    );
    policy_refused(
        "rules = [{ class = \"a\", then = \"reject\", retry = \"slow\" }]",
        ".rules[0].retry",
        &["then = \"retry\""],
    );
    policy_refused("rules = [{ class = \"a\", retry = \"slow\" }]", ".rules", &["lead back"]);
}

#[test]
fn later_files_lie_over_earlier_ones_key_by_key() -> Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let (base, over) = (folder.path().join("base.toml"), folder.path().join("over.toml"));
    std::fs::write(&base, ORDERS)?;
    std::fs::write(
        &over,
        "[subscriptions.orders]\nin_flight_max = 7\n[retry.standard]\nattempts_max = 3\n",
    )?;
    let config = Config::load_all_with(&[&base, &over], NO_ENVIRONMENT)?;
    assert_eq!(config.subscriptions["orders"].in_flight_max.get(), 7);
    assert_eq!(config.subscriptions["orders"].queue.as_deref(), Some("orders"));
    assert_eq!(config.retry["standard"].attempts_max.get(), 3);

    std::fs::write(&over, "[retry.standard]\n\ndelay_min = \"1h\"\n")?;
    let problems =
        Config::load_all_with(&[&base, &over], NO_ENVIRONMENT).expect_err("1h is above 10m");
    assert!(
        problems
            .to_string()
            .contains("base.toml:24:13: retry.standard.delay_max (10m) is below delay_min (1h)"),
        "{problems}"
    );
    Ok(())
}

#[test]
fn the_environment_lies_over_the_files() -> Result<(), Problems> {
    let config = with_environment(
        &ORDERS.replace("subscriptions.orders", "subscriptions.orders-eu"),
        &[
            ("REDELIVER__SUBSCRIPTIONS__ORDERS_EU__IN_FLIGHT_MAX", "5"),
            ("REDELIVER__SUBSCRIPTIONS__ORDERS_EU__QUEUE", "5"),
            ("REDELIVER__RETRY__STANDARD__BACKOFF", "list"),
            ("REDELIVER__RETRY__STANDARD__DELAYS", "[\"1s\", \"2s\"]"),
            ("REDELIVER__STORES__MAIN__STRICT", "true"),
            ("REDELIVER__BROKERS__MAIN__URL", "amqp://app:hunter2@rabbit/%2f"),
            ("REDELIVER_OTHER", "is not ours"),
            ("PATH", "neither"),
        ],
    )?;
    let orders = &config.subscriptions["orders-eu"];
    assert_eq!(config.subscriptions.len(), 1);
    assert_eq!((orders.in_flight_max.get(), orders.queue.as_deref()), (5, Some("5")));
    assert_eq!(config.retry["standard"].delays, [Duration::from_secs(1), Duration::from_secs(2)]);
    assert!(config.stores["main"].strict);
    assert_eq!(config.brokers["main"].url, Some(Url::new("amqp://app:hunter2@rabbit/%2f")));
    Ok(())
}

#[test]
fn a_property_of_librdkafka_can_be_a_variable() -> Result<(), Problems> {
    let text = "[brokers.main]\nkind = \"kafka\"\nurl = \"kafka:9092\"\nproperties.sasl.password = \"old\"";
    let name = "REDELIVER__BROKERS__MAIN__PROPERTIES__SASL_PASSWORD";
    let config = with_environment(text, &[(name, "hunter2")])?;
    let properties = &config.brokers["main"].properties;
    assert_eq!(properties.names().collect::<Vec<_>>(), ["sasl.password"]);
    assert_eq!(properties.expose("sasl.password"), Some("hunter2"));
    Ok(())
}

#[test]
fn a_wrong_variable_is_named() {
    for (name, value, words) in [
        ("REDELIVER__SUBSCRIPTIONS__ORDERS__IN_FLIGHT_MAX", "5.7", "whole number"),
        ("REDELIVER__SUBSCRIPTIONS__ORDERS__IN_FLIGHT_MAX", "0", "1 or more"),
        ("REDELIVER__SUBSCRIPTIONS__ORDERS__IN_FLIGHT_MX", "5", "did you mean `in_flight_max`?"),
        ("REDELIVER__SUBSCRIPTIONS__ORDERS__TIMEOUT", "5", "no unit"),
        ("REDELIVER__SUBSCRIPTIONS__ORDERS__BROKER", "mian", "did you mean \"main\"?"),
        ("REDELIVER__RETRY__STANDARD__DELAY_MAX", "1ms", "below delay_min"),
    ] {
        let problems = with_environment(ORDERS, &[(name, value)]).expect_err(value);
        assert_eq!(problems.list().len(), 1, "{problems}");
        let shown = problems.to_string();
        assert!(
            shown.contains(&format!("environment variable {name}: ")) && shown.contains(words),
            "{shown}"
        );
    }
}

#[test]
fn secrets_come_from_files_too() -> Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).map(|()| path.display().to_string())
    };
    let (url, password, sasl) =
        (file("url", "redis://redis\n")?, file("password", "p@ss\r\n")?, file("sasl", "hunter2")?);
    let config = Config::from_toml(&format!(
        "[brokers.rabbit]\nkind = \"rabbitmq\"\nurl = \"amqp://app@rabbit\"\npassword_file = {password:?}\n\
         [brokers.kafka]\nkind = \"kafka\"\nurl = \"kafka:9092\"\nproperties = {{ sasl.username = \"app\", \"sasl.password_file\" = {sasl:?} }}\n\
         [stores.main]\nkind = \"redis\"\nurl_file = {url:?}\n"
    ))?;
    let url = |url: &Option<Url>| url.as_ref().map(|url| url.expose().to_owned());
    assert_eq!(url(&config.brokers["rabbit"].url).as_deref(), Some("amqp://app:p%40ss@rabbit"));
    assert_eq!(url(&config.stores["main"].url).as_deref(), Some("redis://redis"));
    let properties: Vec<_> = config.brokers["kafka"].properties.expose_all().collect();
    assert_eq!(properties, [("sasl.password", "hunter2"), ("sasl.username", "app")]);
    assert_eq!(config.stores["main"].kind, StoreKind::Redis);
    Ok(())
}

#[test]
fn a_secret_twice_or_not_to_be_read_is_a_problem() {
    let store = |lines: &str| format!("[stores.main]\nkind = \"redis\"\n{lines}\n");
    refused(
        &store("url_file = \"/nowhere/url\""),
        "stores.main.url_file",
        &["/nowhere/url", "cannot be opened"],
    );
    refused(
        &store("url = \"redis://x\"\nurl_file = \"/nowhere/url\""),
        "stores.main.url_file",
        &["remove one of them"],
    );
    refused(
        &store("url = \"redis://:old@x\"\npassword = \"hunter2\""),
        "stores.main.password",
        &["a password already"],
    );
}

#[test]
fn a_missing_file_is_a_problem() {
    let problems = Config::load_all_with(&["nowhere.toml"], NO_ENVIRONMENT)
        .expect_err("there is no such file");
    assert!(problems.to_string().contains("nowhere.toml: it cannot be opened"), "{problems}");
}

#[test]
fn no_secret_is_shown_wherever_it_stands() {
    let secret = "hunter2";
    let texts = [
        "brokers.main = { kind = \"rabbitmq\", url = \"amqp://u:hunter2@h\", knid = 5 }",
        "[brokers.main]\nkind = \"rabbitmq\"\nurl = \"http://u:hunter2@h\"",
        "[brokers.main]\nkind = \"rabbitmq\"\nurl = [\"hunter2\"]",
        "[brokers.main]\nkind = \"rabbitmq\"\npasword = \"hunter2\"",
        "[brokers.main]\nkind = \"rabbitmq\"\npassword = \"hunter2",
        "[brokers.main]\nkind = \"rabbitmq\"\nurl = \"amqp://u:hunter2@h\" x",
        "[brokers.main]\nkind = \"rabbitmq\"\nurl = '''\nhunter2\n",
        "[brokers.main]\nkind = \"kafka\"\nurl = \"u:hunter2@h\"\nproperties = { \"sasl.password\" = \"hunter2\", x = 1979-05-27 }",
        "[brokers.main]\nkind = \"memory\"\n[subscriptions.a]\nbroker = \"amqp://u:hunter2@h\"",
        "[brokers.main]\nkind = \"amqp://u:hunter2@h\"",
        "broker.main.password = \"hunter2\"",
        "brokers.main = { kind = \"rabbitmq\", url = \"amqp://h\", tls = { pasword = \"hunter2\" } }",
        "subscriptions.orders = { pasword = \"hunter2\" }",
        "[stores.main]\nkind = \"redis\"\ndeadline = \"redis://:hunter2@h\"",
    ];
    for text in texts {
        let problems = problems_of(text);
        assert!(!format!("{problems} {problems:?}").contains(secret), "{text}\n{problems:?}");
    }
    let problems = with_environment(
        "",
        &[
            ("REDELIVER__BROKERS__MAIN__URLL", secret),
            ("REDELIVER__BROKERS__MAIN__PASSWORD", secret),
        ],
    );
    let shown = format!("{:?}", problems.expect_err("there is no such key"));
    assert!(!shown.contains(secret), "{shown}");
}

#[test]
fn debug_shows_the_host_and_no_secret() -> Result<(), Problems> {
    let config = Config::from_toml(
        "[brokers.rabbit]\nkind = \"rabbitmq\"\nurl = \"amqp://app@rabbit:5672/shop\"\npassword = \"hunter2\"\n\
         [brokers.kafka]\nkind = \"kafka\"\nurl = \"kafka:9092\"\n[brokers.kafka.properties]\n\"sasl.password\" = \"hunter2\"\n\"linger.ms\" = 5\n",
    )?;
    let shown = format!("{config:?}");
    assert!(!shown.contains("hunter2"), "{shown}");
    assert!(
        shown.contains("rabbit:5672/shop") && shown.contains("\"linger.ms\": \"5\""),
        "{shown}"
    );
    Ok(())
}

#[test]
fn a_configuration_made_in_code_is_checked_too() {
    let mut config = Config::default();
    assert_eq!(config.check(), Ok(()));
    config.subscriptions.insert(
        "orders".to_owned(),
        Subscription { broker: "main".to_owned(), ..Subscription::default() },
    );
    let problems = config.check().expect_err("there is no such broker");
    assert_eq!(problems.list()[0].path(), "subscriptions.orders.broker");
    config.brokers.entry("main".to_owned()).or_default().kind = BrokerKind::Memory;
    assert_eq!(config.check(), Ok(()));
}

#[test]
fn a_table_is_a_table_and_no_list() {
    let broker = "[brokers.main]\nkind = \"rabbitmq\"\nurl = \"amqps://h\"\n";
    let orders = &orders_with("");
    for (before, path) in [
        ("", "service"),
        ("", "brokers.main"),
        ("", "stores.main"),
        ("", "subscriptions.orders"),
        ("", "retry.slow"),
        (broker, "brokers.main.tls"),
        (orders, "subscriptions.orders.batch"),
        (orders, "subscriptions.orders.breaker"),
        (orders, "subscriptions.orders.idempotency"),
        (orders, "subscriptions.orders.lock"),
    ] {
        let key = path.rsplit('.').next().unwrap_or(path);
        let as_key = if before.is_empty() { path } else { key };
        for text in [format!("{before}{as_key} = []\n"), format!("{before}[[{path}]]\n")] {
            refused(&text, path, &["is a list, but must be a table: its keys below a [name]"]);
        }
    }
    for list in ["retry.slow.rules", "subscriptions.orders.bindings"] {
        let before = if list.starts_with("sub") { orders } else { "" };
        let key = if list.starts_with("sub") { "bindings" } else { list };
        refused(&format!("{before}{key} = [[]]\n"), &format!("{list}[0]"), &["must be a table"]);
    }
    let of_variable = with_environment("", &[("REDELIVER__STORES__MAIN", "[]")]);
    let problems = of_variable.expect_err("a store is a table").to_string();
    assert!(problems.contains("is a list, but must be a table"), "{problems}");
}

/// Words that make texts which go deep into the loader, instead of failing at their first letter.
const WORDS: &str = "(\\[|\\]|\\[\\[|\\]\\]|\\{|\\}|=|,|\\.|\n|\r\n|#|\"|\"\"\"|'|brokers|stores|subscriptions|retry|service|main|kind|url|password|properties|rules|delays|batch|size|class|then|0|-1|5\\.7|1e400|nan|true|\"1s\"|\"memory\"|\"kafka\"|\"main\"|\"ü🔑\"|1979-05-27| )";

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn no_text_makes_the_loader_panic(any in ".*", words in prop::collection::vec(WORDS, 0..40)) {
        for text in [any, words.concat()] {
            if let Err(problems) = Config::from_toml(&text) {
                prop_assert!(!problems.list().is_empty());
                prop_assert!(!problems.to_string().is_empty());
            }
        }
    }

    #[test]
    fn no_variable_makes_the_loader_panic(path in prop::collection::vec("(BROKERS|RETRY|STANDARD|MAIN|URL|RULES|DELAYS|PROPERTIES|\\PC{0,3})", 0..5), value in "(\\PC*|\\[.*\\]|\\{.*\\}|[0-9.]+)") {
        let name = format!("REDELIVER__{}", path.join("__"));
        let _ = with_environment(ORDERS, &[(&name, &value)]);
    }

    #[test]
    fn one_letter_changed_anywhere_makes_no_panic(at in 0..ORDERS.len(), letter in "\\PC") {
        if ORDERS.is_char_boundary(at) && ORDERS.is_char_boundary(at + 1) {
            let text = format!("{}{letter}{}", &ORDERS[..at], &ORDERS[at + 1..]);
            if let Err(problems) = Config::from_toml(&text) {
                prop_assert!(!problems.to_string().is_empty());
            }
        }
    }
}
