//! A copy of a message that is being handled: it waits for the end of that run, not for a poll.

use std::time::Duration;

use redeliver::testing::TestService;

use crate::bench::{THRICE, obey, orders, text};

fn claimed() -> TestService {
    let tables = format!("{THRICE}[stores.main]\nkind = \"memory\"\n");
    orders("idempotency = { store = \"main\" }", &tables, obey)
}

#[test]
fn a_copy_is_done_with_in_the_moment_in_which_the_first_is_handled() {
    let mut test = claimed();
    test.publish("orders", text("7", "slow"));
    test.publish("orders", text("7", "slow"));
    test.advance(Duration::from_millis(999));
    assert!(test.log().iter().all(|line| !line.contains("handled")), "{:?}", test.log());
    test.advance(Duration::from_millis(1));
    let log = test.log();
    let ends = log.iter().filter(|line| !line.contains("deferred"));
    assert_eq!(ends.collect::<Vec<_>>(), ["7: attempt 1 handled", "7: duplicate"]);
}

#[test]
fn a_copy_makes_no_attempt_and_holds_nobody_up_while_the_first_runs() {
    let mut test = claimed();
    for _ in 0..5 {
        test.publish("orders", text("7", "slow"));
    }
    test.publish("orders", text("8", "ok"));
    test.advance(Duration::from_millis(1));
    let ends = |test: &TestService| {
        test.log().into_iter().filter(|line| !line.contains("deferred")).collect::<Vec<_>>()
    };
    assert_eq!(ends(&test), ["8: attempt 1 handled"]);
    test.finish();
    let ends = ends(&test);
    assert_eq!(ends[1], "7: attempt 1 handled");
    assert_eq!(ends[2..], ["7: duplicate"; 4]);
}
