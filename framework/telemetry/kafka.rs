//! The log events of the Kafka adapter: one function each, by the same levels.

use std::fmt::Display;

/// A consumer group's partitions could not be taken or given up.
pub(crate) fn assignment_failed(group: &str, error: &dyn Display) {
    tracing::warn!(group, %error, "partitions could not be taken or given up");
}

/// A partition was given up before its messages were done with.
pub(crate) fn revoked_in_hand(lane: &dyn Display) {
    tracing::warn!(%lane, "lane revoked while messages were still in hand");
}

/// Nobody says what a group has committed.
pub(crate) fn committed_unknown(group: &str, error: &dyn Display) {
    tracing::warn!(group, %error, "committed offsets are unknown");
}

/// A group does not let us in, and nobody but its other members or the cluster's owner can change that.
pub(crate) fn group_refused(group: &str, why: &str) {
    tracing::error!(group, why, "group does not take this member; trying again");
}

/// Records came that cannot be read, by their compression or their checksum; their partition stays where it is.
pub(crate) fn records_unreadable(group: &str, error: &dyn Display) {
    tracing::error!(group, %error, "records cannot be read, and their partition waits for them");
}

/// A producer is of no use any more; the next record is sent by another.
pub(crate) fn producer_broken(code: &dyn Display, why: &str) {
    tracing::warn!(%code, why, "producer broke for good; making another");
}

/// The broker takes shorter texts beside a committed offset than ours was; the next ones are shorter.
pub(crate) fn mark_refused(group: &str, length_max: usize) {
    tracing::warn!(group, length_max, "text beside the committed offset was refused");
}

/// Offsets were not committed; they are with the next commit.
pub(crate) fn commit_failed(group: &str, error: &dyn Display) {
    tracing::warn!(group, %error, "offsets were not committed; trying again");
}

/// A transaction was aborted; what was in it is written with the next.
pub(crate) fn transaction_aborted(group: &str, error: &dyn Display) {
    tracing::warn!(group, %error, "transaction was aborted; trying again");
}

/// Whether a transaction was committed is not known: the group is asked for its offsets.
pub(crate) fn transaction_unknown(group: &str, error: &dyn Display) {
    tracing::warn!(group, %error, "end of a transaction is unknown; joining the group anew");
}

/// What a handler published is refused by its topic; tried again, alone.
pub(crate) fn output_refused(group: &str, topic: &str, error: &dyn Display) {
    tracing::error!(group, topic, %error, "published records are refused; trying again");
}

/// A group that is being settled anew takes no offsets.
pub(crate) fn commit_later(group: &str, error: &dyn Display) {
    tracing::debug!(group, %error, "offsets are committed later");
}

/// A partition could not be read again from its lowest unfinished record.
pub(crate) fn rewind_failed(lane: &dyn Display, error: &dyn Display) {
    tracing::warn!(%lane, %error, "lane could not go back to its lowest unfinished record");
}

/// A record came outside the queue of its partition; it is read again from there.
pub(crate) fn stray_record(topic: &str, partition: i32) {
    tracing::warn!(topic, partition, "record came outside its partition's queue");
}

/// What librdkafka says by itself.
pub(crate) fn client_says(error: &dyn Display, reason: &str) {
    tracing::debug!(%error, reason, "the Kafka client reports");
}

/// The consumer groups did not answer in time that we leave.
pub(crate) fn leaving_unanswered(subscription: &str) {
    tracing::warn!(subscription, "consumer groups took no note of our leaving");
}
