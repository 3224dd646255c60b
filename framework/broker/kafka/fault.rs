//! What librdkafka and the brokers say, as our errors.
//!
//! Owns which codes mean which [`Fault`]. Never shows a property's value: one of them is the password.

use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use crate::broker::{BrokerError, Fault};

/// `error` while doing `attempt`, as a fault that reads: what was tried, what came back, what to do.
pub(super) fn fault(attempt: &str, error: &KafkaError) -> BrokerError {
    let (fault, advice) = judge(error);
    let said = said(error);
    BrokerError::new(
        fault,
        match advice {
            Some(advice) => format!("{attempt}: {said}; {advice}"),
            None => format!("{attempt}: {said}"),
        },
    )
}

/// As [`fault`], for a code alone.
pub(super) fn fault_of_code(attempt: &str, code: RDKafkaErrorCode) -> BrokerError {
    fault(attempt, &KafkaError::Global(code))
}

/// In the client's words, but for the value of a property.
pub(super) fn said(error: &KafkaError) -> String {
    match error {
        KafkaError::ClientConfig(_, description, property, _) => {
            format!("the property `{property}` is not taken: {description}")
        }
        error => match error.rdkafka_error_code() {
            Some(code) => code.to_string(),
            None => error.to_string(),
        },
    }
}

fn judge(error: &KafkaError) -> (Fault, Option<&'static str>) {
    use RDKafkaErrorCode::{
        AllBrokersDown, Authentication, BrokerTransportFailure, ClusterAuthorizationFailed,
        FencedInstanceId, GroupAuthorizationFailed, InconsistentGroupProtocol, InvalidMessageSize,
        InvalidSessionTimeout, MessageSizeTooLarge, MessageTimedOut, NotEnoughReplicas,
        NotEnoughReplicasAfterAppend, OperationTimedOut, QueueFull, RequestTimedOut, SSL,
        SaslAuthenticationFailed, TopicAuthorizationFailed, UnknownTopic, UnknownTopicOrPartition,
        UnreleasedInstanceId,
    };
    match (error, error.rdkafka_error_code()) {
        (KafkaError::ClientConfig(..), _) => (Fault::Refused, Some("see `properties`")),
        // Its settings contradict each other, or name files that cannot be read.
        (KafkaError::ClientCreation(_), _) => (Fault::Refused, Some("see `properties` and `tls`")),
        (_, Some(Authentication | SaslAuthenticationFailed)) => {
            (Fault::Refused, Some("check sasl.username, sasl.password and sasl.mechanism"))
        }
        (_, Some(SSL)) => {
            (Fault::Refused, Some("check tls.ca, tls.cert and tls.key, and the host's name"))
        }
        (
            _,
            Some(TopicAuthorizationFailed | GroupAuthorizationFailed | ClusterAuthorizationFailed),
        ) => (Fault::Refused, Some("the cluster's access lists must allow it")),
        (_, Some(UnknownTopic | UnknownTopicOrPartition)) => (Fault::Missing, None),
        (_, Some(InvalidSessionTimeout)) => (
            Fault::Mismatch,
            Some(
                "the brokers allow group.min.session.timeout.ms to group.max.session.timeout.ms: set properties.\"session.timeout.ms\" within",
            ),
        ),
        (_, Some(FencedInstanceId | UnreleasedInstanceId)) => (
            Fault::Mismatch,
            Some("another process has the same group.instance.id: give each its own"),
        ),
        (_, Some(InconsistentGroupProtocol)) => (
            Fault::Mismatch,
            Some(
                "other members of the group use another partition.assignment.strategy: set theirs",
            ),
        ),
        (_, Some(MessageSizeTooLarge | InvalidMessageSize)) => {
            (Fault::TooLarge, Some("raise the topic's max.message.bytes, or send less"))
        }
        (_, Some(NotEnoughReplicas | NotEnoughReplicasAfterAppend)) => {
            (Fault::Unconfirmed, Some("fewer replicas are in sync than min.insync.replicas"))
        }
        (_, Some(MessageTimedOut | QueueFull)) => (Fault::Unconfirmed, None),
        (
            _,
            Some(AllBrokersDown | BrokerTransportFailure | OperationTimedOut | RequestTimedOut),
        ) => (Fault::Unreachable, None),
        _ => (Fault::Other, None),
    }
}

/// A group that answers so does not take this member, and asking again does not change it.
pub(super) fn shuts_out(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode::{
        FencedInstanceId, GroupAuthorizationFailed, GroupMaxSizeReached, InconsistentGroupProtocol,
        InvalidGroupId, InvalidSessionTimeout, UnreleasedInstanceId, UnsupportedAssignor,
    };
    matches!(
        code,
        FencedInstanceId
            | GroupAuthorizationFailed
            | GroupMaxSizeReached
            | InconsistentGroupProtocol
            | InvalidGroupId
            | InvalidSessionTimeout
            | UnreleasedInstanceId
            | UnsupportedAssignor
    )
}

/// A batch of records that cannot be read: its partition stays where it is.
pub(super) fn is_unreadable(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode::{BadCompression, BadMessage, InvalidMessage, NotImplemented};
    matches!(code, BadCompression | BadMessage | InvalidMessage | NotImplemented)
}

/// A commit that fails so is made again later: the group is about to be settled anew.
pub(super) fn is_later(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::RebalanceInProgress
                | RDKafkaErrorCode::IllegalGeneration
                | RDKafkaErrorCode::UnknownMemberId
                | RDKafkaErrorCode::StaleMemberEpoch
                | RDKafkaErrorCode::CoordinatorLoadInProgress
                | RDKafkaErrorCode::CoordinatorNotAvailable
                | RDKafkaErrorCode::NotCoordinator
                | RDKafkaErrorCode::NoOffset
        )
    )
}

/// A commit that fails so may fail for one of its partitions alone.
pub(super) fn is_of_one(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::OffsetMetadataTooLarge
                | RDKafkaErrorCode::InvalidCommitOffsetSize
                | RDKafkaErrorCode::TopicAuthorizationFailed
                | RDKafkaErrorCode::UnknownTopicOrPartition
                | RDKafkaErrorCode::UnknownTopicId
                | RDKafkaErrorCode::InvalidTopic
        )
    )
}

/// The broker takes shorter texts beside an offset.
pub(super) fn is_too_long(error: &KafkaError) -> bool {
    error.rdkafka_error_code() == Some(RDKafkaErrorCode::OffsetMetadataTooLarge)
}

/// A commit that fails so may succeed in a moment: the group's coordinator moves.
pub(super) fn is_soon(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::CoordinatorLoadInProgress
                | RDKafkaErrorCode::CoordinatorNotAvailable
                | RDKafkaErrorCode::NotCoordinator
                | RDKafkaErrorCode::WaitingForCoordinator
                | RDKafkaErrorCode::BrokerTransportFailure
                | RDKafkaErrorCode::RequestTimedOut
        )
    )
}
