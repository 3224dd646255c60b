//! The Kafka adapter against a real Apache Kafka: the contract of the seam, and what the world does to it.
//!
//! `KAFKA_URL` names the broker; what would disturb other tests is done to brokers of their own, started by
//! `tests/servers/kafka.sh`.
#![cfg(feature = "kafka")]

mod brokers;
mod checks;
mod compressed;
mod crashes;
mod lab;
mod logs;
mod members;
mod nodes;
mod order;
mod process;
mod raw;
mod rebalances;
mod records;
mod repeats;
mod revokes;
#[cfg(feature = "kafka-tls")]
mod secured;
mod service;
mod stalls;
mod tools;
mod transactions;

use redeliver::testing::broker_conformance;

use lab::Lab;

macro_rules! sentences {
    ($($sentence:ident)*) => {$(
        #[tokio::test]
        async fn $sentence() {
            broker_conformance::sentences::$sentence(&Lab::connect().await).await;
        }
    )*};
}

sentences! {
    s01_what_was_prepared_needs_no_more_preparation
    s02_a_lane_comes_again_after_its_release_under_a_higher_generation
    s03_a_batch_holds_one_to_limit_messages_in_order
    s03_a_cancelled_next_loses_nothing
    s04_what_nobody_settled_comes_again
    s05_what_is_acknowledged_is_gone_and_what_is_returned_comes_again
    s05_what_is_behind_a_message_that_is_returned_comes_too
    s06_a_settlement_of_an_earlier_generation_settles_nothing
    s07_a_slow_message_holds_no_other_settlement_back
    s08_closing_right_after_the_last_acknowledgement_loses_none
    s08_what_is_unsettled_at_the_close_goes_back
    s09_a_message_that_nobody_stores_is_an_error
    s10_a_copy_is_the_message_with_new_stamps
    s11_a_wait_is_never_early
    s13_a_dead_letter_that_was_read_stays_until_it_is_removed
}
