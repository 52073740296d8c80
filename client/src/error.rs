//! Owns what can go wrong with a read of the archive, told by what the broker
//! should do about it.
//!
//! None of these is "no data". A broker that answers a consumer with an empty
//! set where an error stands makes the consumer wait for ever, or, where it
//! moves on to its local log, skip what the archive holds.

use std::time::Duration;

use crate::types::Gap;

/// Kafka's error numbers, of the protocol guide.
const UNKNOWN_SERVER_ERROR: i16 = -1;
const OFFSET_OUT_OF_RANGE: i16 = 1;
const UNKNOWN_TOPIC_OR_PARTITION: i16 = 3;
const KAFKA_STORAGE_ERROR: i16 = 56;
const FENCED_LEADER_EPOCH: i16 = 74;
const UNKNOWN_LEADER_EPOCH: i16 = 75;
const OFFSET_NOT_AVAILABLE: i16 = 78;
const UNKNOWN_TOPIC_ID: i16 = 100;
const INCONSISTENT_TOPIC_ID: i16 = 103;
const OFFSET_MOVED_TO_TIERED_STORAGE: i16 = 109;

/// Why the archive gave no batches.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ArchiveError {
    /// The offset was deleted by retention, or lies before the log began. The
    /// broker answers out of range, so that the consumer resets.
    #[error("offset {offset} lies below the archive's log start {log_start}")]
    BelowLogStart {
        /// The offset asked for.
        offset: i64,
        /// Lowest offset that can be asked for.
        log_start: i64,
        /// End (exclusive) of what the archive answers.
        archived_through: i64,
    },
    /// The offset is not in the archive yet. The broker reads its local log.
    #[error("offset {offset} is not archived yet; the archive ends before {archived_through}")]
    NotArchivedYet {
        /// The offset asked for.
        offset: i64,
        /// End (exclusive) of what the archive answers.
        archived_through: i64,
    },
    /// The archive knows no such topic, partition or incarnation. Where the
    /// broker does, nothing of it is archived yet.
    #[error("the archive holds nothing of {}topic '{topic}'", of_partition(.partition))]
    UnknownTopicOrPartition {
        /// The topic asked for.
        topic: String,
        /// The partition asked for; `None` where all of the topic was.
        partition: Option<i32>,
    },
    /// Only the broker knows, and it has not told tierd: the broker answers by itself.
    #[error("the archive cannot know: {message}")]
    NotReported {
        /// What is not known.
        message: String,
    },
    /// The offset lies in a declared gap: no archive will ever hold it. The
    /// broker decides by its own policy whether consumers stop here or go on
    /// behind it; going on is a loss to write down.
    #[error("offsets {} to {} are a declared gap ({})", .0.range.first, .0.range.last, .0.kind)]
    Gap(Gap),
    /// The leader epoch given is older than the one reported: the caller is not the
    /// leader any more.
    #[error("{message}")]
    FencedLeaderEpoch {
        /// Which epochs.
        message: String,
    },
    /// The leader epoch given is newer than the one reported: the report is late.
    #[error("{message}")]
    UnknownLeaderEpoch {
        /// Which epochs.
        message: String,
    },
    /// The archive knows no topic of the id given. Where the broker does, nothing of
    /// it is archived yet.
    #[error("{message}")]
    UnknownTopicId {
        /// Which topic.
        message: String,
    },
    /// The topic of the name given has another id: it was deleted and made anew.
    #[error("{message}")]
    InconsistentTopicId {
        /// Which topic.
        message: String,
    },
    /// What is archived of the offset is of another lineage than the caller's: it
    /// was truncated.
    #[error("{message}")]
    OutsideLineage {
        /// The offset asked for.
        offset: i64,
        /// Which epochs.
        message: String,
    },
    /// A follower asked for what is archived. It takes the leader's state instead and
    /// goes on behind it.
    #[error("offset {offset} lies in the archive, which holds {log_start} to {archived_through}")]
    OffsetMovedToTieredStorage {
        /// The offset asked for.
        offset: i64,
        /// Lowest offset of the archive.
        log_start: i64,
        /// End (exclusive) of the archive.
        archived_through: i64,
    },
    /// Records that are not committed cannot be deleted.
    #[error("{message}")]
    AboveHighWatermark {
        /// Which offsets.
        message: String,
    },
    /// The daemon has no room for another fetch now. The broker delays the answer by
    /// `retry_after` (Kafka's throttle time), or sends an error that consumers retry.
    #[error("the archive is busy: {message}")]
    Throttled {
        /// What is exhausted.
        message: String,
        /// When to ask again.
        retry_after: Duration,
    },
    /// Archived bytes fail their check, or are not there. Asking again does not
    /// help; `tierd verify` tells more.
    #[error("archived data is damaged{}{}: {message}", from_offset(.offset), in_object(.object))]
    DataLoss {
        /// First offset that cannot be read, where a read met the damage.
        offset: Option<i64>,
        /// The object that failed its check; empty when the daemon named none.
        object: String,
        /// What failed.
        message: String,
    },
    /// No answer now: the daemon is not running, not ready, or its store does
    /// not answer. The broker answers with an error that consumers retry.
    #[error("the archive cannot answer now: {message}")]
    Unavailable {
        /// Who did not answer, and why.
        message: String,
        /// When to ask again, if the daemon said so.
        retry_after: Option<Duration>,
    },
    /// The deadline passed. What the daemon had begun to read stays in its
    /// cache, so the consumer's next attempt finds more of it.
    #[error("the archive did not answer within {} ms", .after.as_millis())]
    Deadline {
        /// The deadline, from the beginning of the call.
        after: Duration,
    },
    /// The call makes no sense: a defect of the caller, or a wrong endpoint.
    #[error("invalid request to the archive: {message}")]
    Invalid {
        /// What is wrong, and what is right.
        message: String,
    },
    /// The daemon answered with something this client does not understand.
    /// Nothing of that answer was handed out.
    #[error("the archive's answer breaks the protocol: {message}")]
    Protocol {
        /// What was wrong with it.
        message: String,
    },
    /// The daemon has a defect.
    #[error("the archive failed: {message}")]
    Internal {
        /// The daemon's words.
        message: String,
    },
}

impl ArchiveError {
    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self::Unavailable { message: message.into(), retry_after: None }
    }

    pub(crate) fn protocol(message: impl Into<String>) -> Self {
        Self::Protocol { message: message.into() }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::Invalid { message: message.into() }
    }

    /// Whether the same call may succeed later without anyone doing anything.
    /// For these the broker answers with an error that consumers retry.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            Self::NotArchivedYet { .. }
                | Self::UnknownLeaderEpoch { .. }
                | Self::Throttled { .. }
                | Self::Unavailable { .. }
                | Self::Deadline { .. }
        )
    }

    /// Whether the archive answered, and the answer is that it does not hold the
    /// offset: the broker's local log is the place to look.
    #[must_use]
    pub fn is_miss(&self) -> bool {
        matches!(
            self,
            Self::NotArchivedYet { .. }
                | Self::UnknownTopicOrPartition { .. }
                | Self::UnknownTopicId { .. }
        )
    }

    /// The Kafka error number to answer a consumer's Fetch with, where the
    /// broker has nothing better.
    ///
    /// Only numbers that Kafka's consumers expect in a fetched partition: others
    /// (`REQUEST_TIMED_OUT`, `INVALID_REQUEST`, `CORRUPT_MESSAGE`) end the Java
    /// consumer with an exception. `KAFKA_STORAGE_ERROR` makes it refresh its
    /// metadata and ask again, and never moves its position.
    #[must_use]
    pub fn kafka_error_code(&self) -> i16 {
        match self {
            Self::BelowLogStart { .. }
            | Self::OutsideLineage { .. }
            | Self::AboveHighWatermark { .. } => OFFSET_OUT_OF_RANGE,
            Self::FencedLeaderEpoch { .. } => FENCED_LEADER_EPOCH,
            Self::UnknownLeaderEpoch { .. } => UNKNOWN_LEADER_EPOCH,
            Self::UnknownTopicId { .. } => UNKNOWN_TOPIC_ID,
            Self::InconsistentTopicId { .. } => INCONSISTENT_TOPIC_ID,
            Self::OffsetMovedToTieredStorage { .. } => OFFSET_MOVED_TO_TIERED_STORAGE,
            Self::NotArchivedYet { .. } | Self::NotReported { .. } => OFFSET_NOT_AVAILABLE,
            Self::UnknownTopicOrPartition { .. } => UNKNOWN_TOPIC_OR_PARTITION,
            Self::Gap(_)
            | Self::DataLoss { .. }
            | Self::Throttled { .. }
            | Self::Unavailable { .. }
            | Self::Deadline { .. } => KAFKA_STORAGE_ERROR,
            Self::Invalid { .. } | Self::Protocol { .. } | Self::Internal { .. } => {
                UNKNOWN_SERVER_ERROR
            }
        }
    }
}

fn from_offset(offset: &Option<i64>) -> String {
    offset.map(|offset| format!(" from offset {offset} on")).unwrap_or_default()
}

fn of_partition(partition: &Option<i32>) -> String {
    partition.map(|partition| format!("partition {partition} of ")).unwrap_or_default()
}

fn in_object(object: &str) -> String {
    if object.is_empty() { String::new() } else { format!(" in object '{object}'") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{GapKind, OffsetRange};

    #[test]
    fn an_archive_that_cannot_answer_is_retried_and_never_a_miss() {
        for error in [
            ArchiveError::unavailable("connection refused"),
            ArchiveError::Deadline { after: Duration::from_millis(5) },
        ] {
            assert!(error.is_retryable() && !error.is_miss(), "{error}");
            assert_eq!(error.kafka_error_code(), KAFKA_STORAGE_ERROR);
        }
    }

    #[test]
    fn every_error_has_the_number_that_kafka_gave_it() {
        let message = String::new;
        let (retry_after, offset, log_start, archived_through) = (Duration::ZERO, 1, 0, 9);
        let partition = Some(0);
        let range = OffsetRange { first: 3, last: 8 };
        let table = [
            (ArchiveError::BelowLogStart { offset, log_start, archived_through }, 1),
            (ArchiveError::NotArchivedYet { offset, archived_through }, 78),
            (ArchiveError::UnknownTopicOrPartition { topic: message(), partition }, 3),
            (ArchiveError::NotReported { message: message() }, 78),
            (ArchiveError::FencedLeaderEpoch { message: message() }, 74),
            (ArchiveError::UnknownLeaderEpoch { message: message() }, 75),
            (ArchiveError::UnknownTopicId { message: message() }, 100),
            (ArchiveError::InconsistentTopicId { message: message() }, 103),
            (ArchiveError::OutsideLineage { offset, message: message() }, 1),
            (ArchiveError::OffsetMovedToTieredStorage { offset, log_start, archived_through }, 109),
            (ArchiveError::AboveHighWatermark { message: message() }, 1),
            (ArchiveError::Throttled { message: message(), retry_after }, 56),
            (ArchiveError::Gap(Gap { range, kind: GapKind::Missing }), 56),
            (ArchiveError::DataLoss { offset: None, object: message(), message: message() }, 56),
            (ArchiveError::unavailable(""), 56),
            (ArchiveError::Deadline { after: retry_after }, 56),
            (ArchiveError::invalid(""), -1),
            (ArchiveError::protocol(""), -1),
            (ArchiveError::Internal { message: message() }, -1),
        ];
        for (error, code) in table {
            assert_eq!(error.kafka_error_code(), code, "{error:?}");
        }
    }

    #[test]
    fn only_what_lies_outside_the_archive_is_a_miss() {
        let not_yet = ArchiveError::NotArchivedYet { offset: 9, archived_through: 9 };
        let unknown =
            ArchiveError::UnknownTopicOrPartition { topic: "orders".into(), partition: Some(3) };
        assert!(not_yet.is_miss() && unknown.is_miss());
        assert!(!unknown.is_retryable());

        let range = OffsetRange { first: 3, last: 8 };
        let gap = ArchiveError::Gap(Gap { range, kind: GapKind::Missing });
        let below = ArchiveError::BelowLogStart { offset: 1, log_start: 3, archived_through: 9 };
        assert!(!gap.is_miss() && !below.is_miss());
        assert_eq!(below.kafka_error_code(), OFFSET_OUT_OF_RANGE);
        assert_eq!(gap.to_string(), "offsets 3 to 8 are a declared gap (missing)");
    }
}
