//! The contract of [`crate::broker`], sentence by sentence, as tests that every adapter runs.
//!
//! Owns what is asked of all adapters alike. Knows none of them: whoever has one implements [`Subject`] and
//! calls [`every_sentence`] from a test, or each function of `sentences` from a test of its own.

mod bench;
#[doc(hidden)]
pub mod sentences;

use std::sync::Arc;
use std::time::Duration;

use crate::broker::{Broker, LaneId, Source, Target};

/// How long anything may take that must happen.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long nothing must happen before that is believed.
const SILENCE: Duration = Duration::from_millis(400);
/// The wait that sources are made with.
const WAIT: Duration = Duration::from_millis(700);

/// A broker under test.
///
/// ```
/// use std::{sync::Arc, time::Duration};
/// use redeliver::broker::{Broker, Source, Target, memory::MemoryBroker};
/// use redeliver::testing::broker_conformance::{Subject};
///
/// struct Memory(MemoryBroker);
///
/// impl Subject for Memory {
///     fn broker(&self) -> &dyn Broker { &self.0 }
///
///     fn source(&self, waits: &[Duration]) -> Arc<Source> {
///         let (name, settings) = (redeliver::store::Owner::new().as_str().into(), Arc::default());
///         Arc::new(Source { name, settings, waits: waits.to_vec(), service: "test".into() })
///     }
///
///     fn target(&self, source: &Source) -> Target { Target::Queue(source.name.to_string()) }
///
///     fn nowhere(&self) -> Target { Target::Queue("nobody".to_owned()) }
/// }
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), redeliver::broker::BrokerError> {
/// let memory = Memory(MemoryBroker::new());
/// let source = memory.source(&[]);
/// assert!(memory.broker().prepare(&source).await?.is_empty());
/// assert!(memory.settles_out_of_order() && !memory.has_lanes_for_copies(), "it is no log");
/// assert!(memory.is_main(&redeliver::broker::LaneId("0".into())));
/// # Ok(())
/// # }
/// ```
pub trait Subject {
    /// The broker, connected.
    fn broker(&self) -> &dyn Broker;

    /// A source that no other call has named, with one lane and these waits; deleted by the subject later.
    fn source(&self, waits: &[Duration]) -> Arc<Source>;

    /// Where a message must be sent to arrive at `source`.
    fn target(&self, source: &Source) -> Target;

    /// A target that nobody consumes, stores or creates.
    fn nowhere(&self) -> Target;

    /// Whether it is the lane that messages to `target` arrive on.
    fn is_main(&self, _lane: &LaneId) -> bool {
        true
    }

    /// Whether waits and redrives come back on lanes of their own.
    fn has_lanes_for_copies(&self) -> bool {
        false
    }

    /// False for a log with one offset, where what lies behind an unsettled message is delivered again with it.
    fn settles_out_of_order(&self) -> bool {
        true
    }
}

/// Runs all of them.
///
/// ```
/// # use std::{sync::Arc, time::Duration};
/// # use redeliver::broker::{Broker, Source, Target, memory::MemoryBroker};
/// # use redeliver::testing::broker_conformance::{Subject, every_sentence};
/// #
/// # struct Memory(MemoryBroker);
/// #
/// # impl Subject for Memory {
/// #     fn broker(&self) -> &dyn Broker { &self.0 }
/// #
/// #     fn source(&self, waits: &[Duration]) -> Arc<Source> {
/// #         let (name, settings) = (redeliver::store::Owner::new().as_str().into(), Arc::default());
/// #         Arc::new(Source { name, settings, waits: waits.to_vec(), service: "test".into() })
/// #     }
/// #
/// #     fn target(&self, source: &Source) -> Target { Target::Queue(source.name.to_string()) }
/// #
/// #     fn nowhere(&self) -> Target { Target::Queue("nobody".to_owned()) }
/// # }
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), redeliver::broker::BrokerError> {
/// let memory = Memory(MemoryBroker::new());
/// memory.broker().connect().await?;
/// every_sentence(&memory).await;              // panics at the first that does not hold
/// # Ok(())
/// # }
/// ```
///
/// # Panics
/// At the first sentence that does not hold.
pub async fn every_sentence(subject: &dyn Subject) {
    sentences::s01_what_was_prepared_needs_no_more_preparation(subject).await;
    sentences::s02_a_lane_comes_again_after_its_release_under_a_higher_generation(subject).await;
    sentences::s03_a_batch_holds_one_to_limit_messages_in_order(subject).await;
    sentences::s03_a_cancelled_next_loses_nothing(subject).await;
    sentences::s04_what_nobody_settled_comes_again(subject).await;
    sentences::s05_what_is_acknowledged_is_gone_and_what_is_returned_comes_again(subject).await;
    sentences::s05_what_is_behind_a_message_that_is_returned_comes_too(subject).await;
    sentences::s06_a_settlement_of_an_earlier_generation_settles_nothing(subject).await;
    sentences::s07_a_slow_message_holds_no_other_settlement_back(subject).await;
    sentences::s08_closing_right_after_the_last_acknowledgement_loses_none(subject).await;
    sentences::s08_what_is_unsettled_at_the_close_goes_back(subject).await;
    sentences::s09_a_message_that_nobody_stores_is_an_error(subject).await;
    sentences::s10_a_copy_is_the_message_with_new_stamps(subject).await;
    sentences::s11_a_wait_is_never_early(subject).await;
    sentences::s13_a_dead_letter_that_was_read_stays_until_it_is_removed(subject).await;
}
