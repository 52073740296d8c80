//! Owns the plain types of what a broker asks beside the fetch: offsets by time
//! and the ends of leader epochs.

use crate::error::ArchiveError;
use crate::types::{Bounds, Isolation};

/// What came of a question about one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionAnswer<T> {
    /// The topic's name.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// What the archive held when it answered, where it holds anything.
    pub bounds: Option<Bounds>,
    /// The answer.
    pub result: Result<T, ArchiveError>,
}

/// Which offset to find: Kafka's ListOffsets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OffsetSpec {
    /// The end of the log (-1): the broker's to know, unless it reported it.
    Latest,
    /// The log start (-2).
    Earliest,
    /// The record with the greatest timestamp (-3); of several the first.
    MaxTimestamp,
    /// The start of the broker's local log (-4): the broker's to know, unless it
    /// reported it.
    EarliestLocal,
    /// The highest offset that is archived (-5).
    LatestTiered,
    /// The lowest offset that is not archived (-6).
    EarliestPendingUpload,
    /// The lowest offset whose record has this timestamp, in milliseconds and not
    /// below 0, or a later one.
    At(i64),
}

impl OffsetSpec {
    /// Kafka's number for it.
    #[must_use]
    pub fn timestamp(self) -> i64 {
        match self {
            Self::Latest => -1,
            Self::Earliest => -2,
            Self::MaxTimestamp => -3,
            Self::EarliestLocal => -4,
            Self::LatestTiered => -5,
            Self::EarliestPendingUpload => -6,
            Self::At(ms) => ms,
        }
    }

    /// What a consumer's ListOffsets asks for with this number.
    ///
    /// # Errors
    /// [`ArchiveError::Invalid`] for a number that Kafka gave no meaning.
    pub fn of_timestamp(timestamp: i64) -> Result<Self, ArchiveError> {
        Ok(match timestamp {
            -1 => Self::Latest,
            -2 => Self::Earliest,
            -3 => Self::MaxTimestamp,
            -4 => Self::EarliestLocal,
            -5 => Self::LatestTiered,
            -6 => Self::EarliestPendingUpload,
            0.. => Self::At(timestamp),
            _ => return Err(ArchiveError::invalid(format!("timestamp {timestamp}"))),
        })
    }
}

/// Which offset of a partition to find.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OffsetArgs {
    /// The topic's name.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// Which life of the topic; `None` for the newest.
    pub incarnation: Option<u32>,
    /// Which offset.
    pub spec: OffsetSpec,
    /// Lowest offset to find by time; `None` for the log start.
    pub starting_offset: Option<i64>,
    /// End (exclusive) of the offsets to find by time, as in
    /// [`FetchArgs`](crate::FetchArgs).
    pub upper_bound: Option<i64>,
    /// Which records may be found.
    pub isolation: Isolation,
    /// The leader epoch the caller takes for the current one; `None` is not compared.
    pub current_leader_epoch: Option<i32>,
}

impl OffsetArgs {
    /// An offset of the whole archived log, read_uncommitted.
    #[must_use]
    pub fn new(topic: impl Into<String>, partition: i32, spec: OffsetSpec) -> Self {
        Self {
            topic: topic.into(),
            partition,
            incarnation: None,
            spec,
            starting_offset: None,
            upper_bound: None,
            isolation: Isolation::ReadUncommitted,
            current_leader_epoch: None,
        }
    }
}

/// An offset that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FoundOffset {
    /// The offset.
    pub offset: i64,
    /// The record's timestamp in milliseconds; -1 where no record was looked for.
    pub timestamp: i64,
    /// The leader epoch it was written in; -1 where it is not known.
    pub leader_epoch: i32,
}

/// Which leader epoch of a partition to find the end of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EpochArgs {
    /// The topic's name.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// Which life of the topic; `None` for the newest.
    pub incarnation: Option<u32>,
    /// The epoch.
    pub leader_epoch: i32,
    /// The leader epoch the caller takes for the current one; `None` is not compared.
    pub current_leader_epoch: Option<i32>,
}

/// Where a leader epoch ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpochEnd {
    /// The greatest archived epoch not above the one asked for; the one asked for
    /// where it lies below all that are archived.
    pub leader_epoch: i32,
    /// Its end (exclusive) within the archive.
    pub end_offset: i64,
}

/// What a broker is for a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It leads.
    Leader,
    /// It follows.
    Follower,
}

/// How the broker and its partitions stand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BrokerReport {
    /// When the broker started, in milliseconds since 1970: segments of its log that
    /// were last written before are closed.
    pub started_at_ms: Option<i64>,
    /// At most 1,000; as many reports as it takes.
    pub partitions: Vec<PartitionReport>,
}

/// How one partition stands. What is `None` or empty stays as reported before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PartitionReport {
    /// The topic's name.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// The topic's id, where the broker gives topics one.
    pub topic_id: Option<[u8; 16]>,
    /// What the broker is for it.
    pub role: Option<Role>,
    /// The current leader epoch.
    pub leader_epoch: Option<i32>,
    /// Leader epochs of the log with the first offset of each, ascending.
    pub lineage: Vec<(i32, i64)>,
    /// First offset that is not committed. Nothing from the lower of this and
    /// `last_stable_offset` on is archived.
    pub high_watermark: Option<i64>,
    /// First offset of the earliest transaction that has not ended; the high watermark
    /// where there is none.
    pub last_stable_offset: Option<i64>,
    /// First offset that consumers may read.
    pub log_start: Option<i64>,
    /// First offset that the broker's own disk holds.
    pub local_log_start: Option<i64>,
    /// First offset after the broker's last record: the archive's lag is counted to here.
    pub log_end: Option<i64>,
}

/// What a follower takes over instead of archived records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaState {
    /// Where the follower goes on; all else is of what lies below.
    pub offset: i64,
    /// Leader epochs with the first offset of each, ascending: Kafka's leader epoch
    /// checkpoint.
    pub leader_epochs: Vec<(i32, i64)>,
    /// Producers that wrote within a day, or have a transaction open, by id: Kafka's
    /// producer snapshot.
    pub producers: Vec<ProducerState>,
    /// Whether all of them are told: the daemon bounds what it reads for it.
    pub producers_complete: bool,
}

/// What a broker remembers of one producer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProducerState {
    /// The producer.
    pub producer_id: i64,
    /// Its epoch; -1 where only its open transaction is known.
    pub producer_epoch: i32,
    /// Sequence of its last record; -1 where it wrote none in this epoch.
    pub last_sequence: i32,
    /// Offset of its last record; -1 as above.
    pub last_offset: i64,
    /// Last offset minus base offset of its last batch.
    pub offset_delta: i32,
    /// Greatest timestamp of its last batch or marker, in milliseconds.
    pub timestamp: i64,
    /// Epoch of the coordinator that wrote its last marker; -1 where there is none.
    pub coordinator_epoch: i32,
    /// First offset of its open transaction.
    pub current_txn_first_offset: Option<i64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_special_timestamp_goes_there_and_back() {
        for number in -6..10 {
            assert_eq!(OffsetSpec::of_timestamp(number).unwrap().timestamp(), number);
        }
        assert!(matches!(OffsetSpec::of_timestamp(-7), Err(ArchiveError::Invalid { .. })));
    }
}
