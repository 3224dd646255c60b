//! Retry tables change while the service runs.

use std::time::Duration;

use redeliver::config::Config;
use redeliver::testing::TestService;
use redeliver::{Handled, Service};

use crate::bench::{THRICE, config, obey, orders, text};

fn reload(test: &mut TestService, retry: &str) -> Result<(), redeliver::Error> {
    let (service, config) = (test.service(), config("", retry));
    test.run(async move { service.reload_with(&config).await })
}

#[test]
fn a_new_policy_holds_from_the_next_failure_on_and_no_attempt_is_forgotten() {
    let mut test = orders("", THRICE, obey);
    test.publish("orders", text("7", "retry"));
    let slower = "backoff = \"fixed\"\njitter = \"none\"\ndelay_min = \"9s\"\nattempts_max = 2\n";
    reload(&mut test, slower).expect("it is usable");
    test.publish("orders", text("8", "retry"));
    test.finish();
    assert_eq!(
        test.log(),
        [
            "7: attempt 1 retry after 200ms: not yet",
            "8: attempt 1 retry after 9s: not yet",
            "7: attempt 2 dead-lettered: exhausted: not yet",
            "8: attempt 2 dead-lettered: exhausted: not yet",
        ]
    );
}

#[test]
fn a_reload_that_needs_waits_which_may_not_be_declared_is_refused() {
    let declared = "backoff = \"fixed\"\njitter = \"none\"\ndelay_min = \"5s\"\n";
    let mut test = orders("topology = \"verify\"", declared, obey);
    let longer = "backoff = \"fixed\"\njitter = \"none\"\ndelay_min = \"9s\"\n";
    let error = reload(&mut test, longer).expect_err("9s does not exist");
    assert!(error.to_string().contains("9s"), "{error}");
    test.publish("orders", text("7", "retry"));
    assert_eq!(test.log(), ["7: attempt 1 retry after 5s: not yet"]);
}

/// Reloads what the check at a load would refuse, and finds the old policy in force.
fn refused(subscription: &str, change: impl FnOnce(&mut Config), says: &str) {
    let mut test = orders(subscription, THRICE, obey);
    let mut changed = config(subscription, THRICE);
    change(&mut changed);
    let service = test.service();
    let error = test.run(async move { service.reload_with(&changed).await });
    let error = error.expect_err("it is not usable").to_string();
    assert!(error.contains(says), "{error}");
    test.publish("orders", text("7", "retry"));
    assert_eq!(test.log(), ["7: attempt 1 retry after 200ms: not yet"]);
}

fn policy(config: &mut Config) -> &mut redeliver::config::Retry {
    config.retry.get_mut("standard").expect("it is there")
}

#[test]
fn a_policy_that_contradicts_itself_is_refused() {
    let change = |config: &mut Config| policy(config).delay_min = Duration::from_secs(3600);
    refused("", change, "retry.standard.delay_max");
}

#[test]
fn a_policy_that_is_named_and_not_there_is_refused() {
    let named = |config: &mut Config| {
        let settings = config.subscriptions.get_mut("orders").expect("it is there");
        settings.retry = Some(String::from("gone"));
    };
    refused("", named, "there is no table [retry.gone]");
}

#[test]
fn a_policy_that_does_not_fit_the_subscription_that_runs_is_refused() {
    // Waits of 5 minutes would break an order that may wait 30 seconds; the new file says that there is none.
    let change = |config: &mut Config| {
        policy(config).delay_min = Duration::from_secs(300);
        let settings = config.subscriptions.get_mut("orders").expect("it is there");
        settings.ordering = redeliver::config::Ordering::None;
    };
    refused("ordering = \"lane\"", change, "order_on_long_wait");
}

#[test]
fn a_service_without_files_that_is_to_watch_them_does_not_start() {
    let builder = Service::builder(config("", THRICE)).subscribe("orders", obey).watch();
    let error = TestService::start(builder).err().expect("there is nothing to watch");
    assert!(error.to_string().contains("nothing to watch"), "{error}");
}

#[test]
fn a_service_that_was_not_made_from_files_says_so() {
    let mut test = orders("", THRICE, obey);
    let service = test.service();
    let error = test.run(async move { service.reload().await }).expect_err("there is no file");
    assert!(error.to_string().contains("reload_with"), "{error}");
}

fn file(delay: &str) -> String {
    format!(
        "[brokers.main]\nkind = \"memory\"\n[subscriptions.orders]\nbroker = \"main\"\nqueue = \
         \"orders\"\n[retry.standard]\nbackoff = \"fixed\"\njitter = \"none\"\ndelay_min = {delay}\ndelay_max = \"2h\"\n\
         attempts_max = 2\nin_process_max = \"0s\"\n"
    )
}

#[test]
fn a_changed_file_is_put_in_force_and_a_bad_one_is_refused_while_the_old_policy_stays() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("orders.toml");
    std::fs::write(&path, file("\"1h\"")).expect("it can be written");
    let fails =
        |_: redeliver::Delivery<String>| async { Handled::Err(redeliver::Failure::retry("no")) };
    crate::runtimes::blocking_on(async {
        let builder = Service::from_file(&path).expect("it is usable");
        let service = builder.subscribe("orders", fails).signals(false).watch().start().await;
        let service = service.expect("it starts");
        assert!(Config::load(&path).is_ok());

        std::fs::write(&path, file("\"soon\"")).expect("it can be written");
        let error = service.reload().await.expect_err("`soon` is no duration");
        assert!(error.to_string().contains("delay_min"), "{error}");
        // The watcher has seen it too by then.
        tokio::time::sleep(Duration::from_millis(600)).await;
        crate::runtimes::publish(&service, ["x"]).await;
        let waits = async {
            while service.depth("orders").await.expect("it tells").waiting != Some(1) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), waits).await.expect("the old policy: 1h");

        std::fs::write(&path, file("\"150ms\"")).expect("it can be written");
        // By the watcher: what waits only 150 ms is dead soon.
        let dead = async {
            loop {
                crate::runtimes::publish(&service, ["x"]).await;
                tokio::time::sleep(Duration::from_millis(300)).await;
                if service.depth("orders").await.expect("it tells").dead > Some(0) {
                    break;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(20), dead).await.expect("the file is watched");
        service.stop().await;
    });
}
