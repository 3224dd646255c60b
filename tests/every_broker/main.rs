//! The promises that do not depend on the broker, kept on each of them: one suite, in memory, on RabbitMQ, on Kafka.
//!
//! What only one broker can do or suffer is tested in `tests/rabbitmq` and `tests/kafka`; what needs a clock that a test
//! moves, in `tests/promises`.

#![cfg(all(feature = "rabbitmq", feature = "kafka"))]

mod answers;
#[path = "../common/mod.rs"]
mod common;
mod crashes;
mod dead_letters;
mod ground;
mod input;
mod lanes;
mod order;
mod process;
mod seen;
mod stops;
mod threads;
mod trace;
mod waits;

/// A test for each promise on each broker; what outlives a process needs a broker that does.
macro_rules! promises {
    (
        everywhere { $($($place:ident)::+;)* }
        on_servers { $($($server:ident)::+;)* }
    ) => {
        mod memory {
            $(promises!(test memory $($place)::+);)*
        }
        mod rabbitmq {
            $(promises!(test rabbitmq $($place)::+);)*
            $(promises!(test rabbitmq $($server)::+);)*
        }
        mod kafka {
            $(promises!(test kafka $($place)::+);)*
            $(promises!(test kafka $($server)::+);)*
        }
    };
    (test $broker:ident $file:ident::$promise:ident) => {
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $promise() {
            crate::$file::$promise(crate::ground::Kind::$broker()).await;
        }
    };
}

promises! {
    everywhere {
        answers::what_a_handler_answers_is_what_becomes_of_its_message;
        answers::it_is_the_same_when_failures_wait_at_the_broker;
        answers::a_dependency_that_is_down_does_not_empty_the_queue_into_the_dead_letters;
        answers::messages_that_are_rejected_open_no_breaker;
        answers::an_id_that_comes_five_times_is_handled_once;
        answers::what_circles_ends_as_a_loop;
        waits::a_wait_is_never_early_and_holds_nobody_up;
        waits::no_wait_is_shorter_than_its_step;
        waits::short_waits_in_the_process_hold_no_neighbour_back;
        waits::what_expires_while_it_waits_is_dead_lettered_or_dropped;
        trace::a_trace_goes_on_through_waits_dead_letters_and_what_is_sent_on;
        lanes::no_more_are_handled_at_once_than_are_allowed_in_all_lanes_together;
        input::what_no_handler_should_see_is_a_dead_letter_byte_for_byte;
        input::hostile_headers_cost_nobody_a_message;
        input::body_and_headers_come_through_waits_unchanged;
        order::one_key_keeps_its_order_over_failures_and_others_go_on;
        order::one_lane_takes_one_message_after_the_other;
        dead_letters::dead_letters_are_redriven_or_purged_as_asked;
        dead_letters::what_was_redriven_and_fails_again_is_there_once;
        stops::a_pause_holds_everything_until_it_is_resumed;
        answers::what_is_to_live_for_ever_is_handled;
        stops::a_stop_leaves_nothing_in_hand;
        stops::what_is_sent_after_a_stop_is_an_error;
        stops::what_is_asked_after_a_stop_is_an_error;
        threads::a_thread_that_knows_no_runtime_may_do_everything;
    }
    on_servers {
        stops::clean_stops_repeat_none_and_lose_none;
        stops::what_is_not_done_in_time_comes_again;
        stops::what_waits_in_the_process_keeps_its_attempts_over_a_stop;
        stops::a_stop_by_signal_ends_the_process_well_and_keeps_every_attempt;
        stops::stops_in_quick_succession_condemn_no_message;
        lanes::two_services_share_the_work;
        waits::waiting_messages_hold_no_memory_in_the_process;
        crashes::a_process_killed_in_the_middle_loses_none;
        crashes::kills_among_failing_messages_dead_letter_none;
        crashes::attempts_are_counted_on_by_the_next_process;
    }
}
