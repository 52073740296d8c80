//! Owns the words of a fetch: what is asked for, what comes back.

use bytes::Bytes;

use super::Caller;
use crate::catalog::Gap;
use crate::error::ErrorKind;
use crate::record::{OffsetRange, Selection, TopicPartition};

/// Partitions of one request: brokers ask for a handful; more is a mistake.
pub const PARTITIONS_MAX: usize = 1_000;

/// Which records a consumer may see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Isolation {
    /// Everything, aborted transactions included.
    #[default]
    ReadUncommitted,
    /// Up to the last stable offset, with the aborted transactions named.
    ReadCommitted,
}

/// Which batches to send where several hold the same offsets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overlaps {
    /// The served log.
    #[default]
    Served,
    /// Every archived batch, ascending by base offset, then WAL order.
    All,
}

/// A fetch of several partitions under one byte budget.
#[derive(Clone, Debug)]
pub struct FetchRequest {
    /// What to read, answered in this order.
    pub partitions: Vec<PartitionRequest>,
    /// Bytes of batches of the whole answer.
    pub max_bytes: u64,
}

/// A fetch of one partition.
#[derive(Clone, Debug)]
pub struct PartitionRequest {
    /// What to read.
    pub tp: TopicPartition,
    /// Which incarnation of the topic; `None` for the newest.
    pub incarnation: Option<u32>,
    /// First offset wanted.
    pub offset: i64,
    /// Bytes of batches.
    pub max_bytes: u64,
    /// Whether the first batch comes even when it is larger than the limits.
    pub min_one_batch: bool,
    /// First offset that must not be served: the broker's high watermark or last
    /// stable offset.
    pub upper_bound: Option<i64>,
    /// Which records may be seen.
    pub isolation: Isolation,
    /// Which batches, where several hold the same offsets.
    pub overlaps: Overlaps,
    /// Which records; `None` for every batch as it was written.
    pub selection: Option<Selection>,
    /// What the caller knows of the partition.
    pub caller: Caller,
}

/// One piece of an answer, in order: for each partition a header, data, a trailer.
#[derive(Clone, Debug)]
pub enum FetchEvent {
    /// A partition begins.
    Header(PartitionHeader),
    /// Whole batches.
    Data(Data),
    /// The partition is answered.
    Trailer(PartitionTrailer),
}

/// What is known of a partition as it is answered.
#[derive(Clone, Debug)]
pub struct PartitionHeader {
    /// The partition asked for.
    pub tp: TopicPartition,
    /// What the catalog says; `None` for a partition that is not archived or
    /// whose catalog could not be read (the trailer says which).
    pub state: Option<PartitionState>,
}

/// Where a partition's archive stands, all from one manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionState {
    /// Incarnation of the topic that is read.
    pub incarnation: u32,
    /// Number of the manifest that is read.
    pub generation: u64,
    /// First offset that may be read.
    pub log_start: i64,
    /// First offset that is not archived.
    pub archived_through: i64,
    /// First offset of a transaction without an archived end, else `archived_through`.
    pub last_stable_offset: i64,
}

/// Whole batches, one after the other, as they were written.
#[derive(Clone, Debug)]
pub struct Data {
    /// The batches on the wire.
    pub wire: Bytes,
    /// Where each batch ends in `wire`, ascending; the last is its length.
    pub ends: Vec<usize>,
}

/// How a partition's answer ended.
#[derive(Clone, Debug)]
pub struct PartitionTrailer {
    /// Whether the answer holds, and if not, why.
    pub status: Status,
    /// For people: what happened, where, what to do. Empty when all is well.
    pub message: String,
    /// Where the partition stood when it refused the offset; may be newer than the header.
    pub refused_by: Option<PartitionState>,
    /// The object that failed, for [`Status::DataLoss`].
    pub object: Option<String>,
    /// The step that failed, where one did.
    pub failed_in: Option<Stage>,
    /// Where to go on reading: behind the last batch sent, with a selection behind the
    /// last one looked at.
    pub next_offset: i64,
    /// Bytes of batches sent.
    pub bytes: u64,
    /// Batches sent.
    pub batches: u64,
    /// Why the answer ends here.
    pub end: EndReason,
    /// Aborted transactions for exactly the batches sent; `None` unless read_committed.
    pub aborted: Option<Aborted>,
}

/// Whether a partition could be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// The batches sent are the answer.
    Ok,
    /// The offset lies below log start: `OFFSET_OUT_OF_RANGE`.
    BelowLogStart,
    /// The offset is not archived yet: the broker reads locally.
    NotArchivedYet,
    /// Nothing of this partition is archived.
    UnknownTopicOrPartition,
    /// Only the broker knows, and it has not told.
    NotReported,
    /// The caller's leader epoch is over.
    FencedLeaderEpoch,
    /// The caller's leader epoch was not reported yet.
    UnknownLeaderEpoch,
    /// No topic of this id is known.
    UnknownTopicId,
    /// The topic of this name has another id.
    InconsistentTopicId,
    /// What is archived of the offset is not of the caller's lineage.
    OutsideLineage,
    /// A follower asks for what is archived: it takes the state instead.
    OffsetMovedToTieredStorage,
    /// What is not committed cannot be deleted.
    AboveHighWatermark,
    /// The request makes no sense.
    InvalidRequest,
    /// The store cannot be read just now; the same request may succeed later.
    Unavailable,
    /// Stored bytes are damaged or gone: nothing of the range is sent.
    DataLoss,
    /// A limit of the daemon refused the read.
    Exhausted,
    /// A defect of tierd.
    Internal,
}

impl Status {
    /// Every status, in the order of the declaration.
    pub const ALL: [Self; 17] = [
        Self::Ok,
        Self::BelowLogStart,
        Self::NotArchivedYet,
        Self::UnknownTopicOrPartition,
        Self::NotReported,
        Self::FencedLeaderEpoch,
        Self::UnknownLeaderEpoch,
        Self::UnknownTopicId,
        Self::InconsistentTopicId,
        Self::OutsideLineage,
        Self::OffsetMovedToTieredStorage,
        Self::AboveHighWatermark,
        Self::InvalidRequest,
        Self::Unavailable,
        Self::DataLoss,
        Self::Exhausted,
        Self::Internal,
    ];

    /// One word, as metrics use it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::BelowLogStart => "below_log_start",
            Self::NotArchivedYet => "not_archived_yet",
            Self::UnknownTopicOrPartition => "unknown_topic_or_partition",
            Self::NotReported => "not_reported",
            Self::FencedLeaderEpoch => "fenced_leader_epoch",
            Self::UnknownLeaderEpoch => "unknown_leader_epoch",
            Self::UnknownTopicId => "unknown_topic_id",
            Self::InconsistentTopicId => "inconsistent_topic_id",
            Self::OutsideLineage => "outside_lineage",
            Self::OffsetMovedToTieredStorage => "offset_moved_to_tiered_storage",
            Self::AboveHighWatermark => "above_high_watermark",
            Self::InvalidRequest => "invalid_request",
            Self::Unavailable => "unavailable",
            Self::DataLoss => "data_loss",
            Self::Exhausted => "exhausted",
            Self::Internal => "internal",
        }
    }
}

/// A step of a read that may fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Finding out from the catalog which archives to read.
    Catalog,
    /// Requesting bytes of an archive from the store.
    Store,
    /// Verifying and inflating what came.
    Verify,
    /// Finding the batches in it.
    Walk,
}

impl Stage {
    /// Every stage, in the order of the declaration.
    pub const ALL: [Self; 4] = [Self::Catalog, Self::Store, Self::Verify, Self::Walk];

    /// One word, as metrics use it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Catalog => "catalog",
            Self::Store => "store",
            Self::Verify => "verify",
            Self::Walk => "walk",
        }
    }
}

impl From<ErrorKind> for Status {
    fn from(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::Retry => Self::Unavailable,
            // An object that a manifest names and the store does not have.
            ErrorKind::NotFound | ErrorKind::Corrupt => Self::DataLoss,
            ErrorKind::Invalid => Self::Unavailable,
            ErrorKind::Exhausted => Self::Exhausted,
            ErrorKind::Fenced | ErrorKind::Internal => Self::Internal,
        }
    }
}

/// Why an answer ends where it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// The archive ends here; for read_committed, its last stable offset is reached.
    EndOfArchive,
    /// A byte limit of the request.
    Limit,
    /// The next batch reaches the request's upper bound.
    UpperBound,
    /// A declared gap; never skipped in silence.
    Gap(Gap),
    /// The next batch begins below the end of the last one: ask again from
    /// `next_offset`, so that no decoder meets offsets that go back.
    OffsetsGoBack,
    /// The status is not [`Status::Ok`].
    Failed,
}

/// A transaction that was aborted, as consumers are told (KIP-98): they drop the
/// producer's records from the first offset on until they meet its marker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AbortedTransaction {
    /// The producer.
    pub producer_id: i64,
    /// The first offset of the transaction in the archives that the answer touches:
    /// not above its first batch in the answer, and its true first offset unless it
    /// began in an archive before them.
    pub first_offset: i64,
    /// The offset of the marker that aborts it.
    pub last_offset: i64,
}

/// The aborted transactions that have batches in an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Aborted {
    /// Ascending by the offset of their markers.
    pub transactions: Vec<AbortedTransaction>,
    /// How far markers were looked for.
    pub searched_to: i64,
    /// Whether no further marker can touch the answer.
    pub complete: bool,
}

/// What a fetch would do, found without doing it.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// Where the partition stands; `None` when it is not archived.
    pub state: Option<PartitionState>,
    /// Whether the fetch would be answered.
    pub status: Status,
    /// For people: why not. Empty when it would.
    pub message: String,
    /// The archives it would read, in order.
    pub archives: Vec<ExplainedArchive>,
    /// Why it would end.
    pub end: EndReason,
}

/// One archive that a fetch would read.
#[derive(Clone, Debug)]
pub struct ExplainedArchive {
    /// Name of the object.
    pub object: String,
    /// The offsets it tiles.
    pub range: OffsetRange,
    /// Chunks that would be inflated.
    pub chunks: u32,
    /// Bytes of these chunks before compression.
    pub raw_bytes: u64,
    /// What would be read of it, in order.
    pub reads: Vec<ExplainedRead>,
}

/// One read of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExplainedRead {
    /// What for.
    pub purpose: Purpose,
    /// Bytes of the object.
    pub place: std::ops::Range<u64>,
    /// Whether it would be answered from memory.
    pub cached: bool,
}

/// What a read is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The table of contents.
    Toc,
    /// Batches.
    Data,
}
