//! Owns the plain types of a read: what is asked, and what comes back.
//!
//! Offsets are Kafka's. [`OffsetRange`] includes both ends; every other end
//! (`upper_bound`, `next_offset`, `archived_through`, `last_stable_offset`)
//! excludes the offset it names. Times are milliseconds since 1970-01-01 UTC.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use crate::batch::{BatchIter, batches_in};
use crate::error::ArchiveError;
use crate::search::Selection;

/// Offsets `first` to `last`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OffsetRange {
    /// The first offset.
    pub first: i64,
    /// The last offset.
    pub last: i64,
}

/// One partition of one topic.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TopicPartition {
    /// The topic's name.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// Which life of a topic that was deleted and created again; `None` for the
    /// newest.
    pub incarnation: Option<u32>,
}

impl TopicPartition {
    /// A partition of the newest incarnation.
    #[must_use]
    pub fn new(topic: impl Into<String>, partition: i32) -> Self {
        Self { topic: topic.into(), partition, incarnation: None }
    }
}

/// Kafka's isolation level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Isolation {
    /// Everything, without a list of aborted transactions.
    #[default]
    ReadUncommitted,
    /// Nothing from the last stable offset on, and the list of transactions
    /// whose records the consumer drops.
    ReadCommitted,
}

/// Which batches to serve where the log holds different bytes for an offset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overlaps {
    /// The served log: one batch for an offset.
    #[default]
    Served,
    /// Also the superseded ones. For tools; offsets repeat.
    All,
}

/// What to read. Begin with [`FetchArgs::new`] and change what differs:
///
/// ```
/// use tierd_client::{FetchArgs, Isolation};
///
/// let args = FetchArgs {
///     upper_bound: Some(1_000),
///     isolation: Isolation::ReadCommitted,
///     ..FetchArgs::new("orders", 0, 42)
/// };
/// assert!(args.min_one_batch);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchArgs {
    /// The topic's name.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// Which life of the topic; `None` for the newest.
    pub incarnation: Option<u32>,
    /// Where to begin. The first batch is the first whose last offset is not
    /// below it, so it may begin earlier: Kafka's rule, and nothing is cut.
    pub fetch_offset: i64,
    /// End (exclusive): the high watermark, or the last stable offset for
    /// [`Isolation::ReadCommitted`]. `None` for no bound but the archive's.
    pub upper_bound: Option<i64>,
    /// Most bytes of batches. `None`: to the end for a stream,
    /// [`ClientOptions::answer_bytes_max`](crate::ClientOptions) otherwise.
    pub max_bytes: Option<u64>,
    /// Hand out the first batch even if it is larger than `max_bytes`.
    pub min_one_batch: bool,
    /// Which records, and whether a list of aborted transactions comes along.
    pub isolation: Isolation,
    /// Which batches.
    pub overlaps: Overlaps,
    /// Only records that meet every condition, of the served log: each batch that holds
    /// some is rebuilt of them, at their offsets, its checksum made anew. Records below
    /// `fetch_offset` and control batches do not come, nor, read_committed, aborted
    /// records. An answer may hold no batch and get on nevertheless: go on at its
    /// `next_offset`. `None`: every batch as it was written.
    pub selection: Option<Selection>,
    /// The topic's id, for the archive to compare; `None` is not compared.
    pub topic_id: Option<[u8; 16]>,
    /// The leader epoch the caller takes for the current one, for the archive to
    /// compare with the reported one; `None` is not compared.
    pub current_leader_epoch: Option<i32>,
    /// The leader epoch of `fetch_offset` in the broker's lineage (not the current
    /// epoch): what was archived of another epoch was truncated, and is refused.
    /// `None`: the reported lineage counts, if there is one.
    pub fetch_offset_epoch: Option<i32>,
    /// Kafka's replica id: a follower's, 0 or above, is refused with
    /// [`ArchiveError::OffsetMovedToTieredStorage`](crate::ArchiveError).
    pub replica_id: Option<i32>,
    /// Longest time to wait: for the whole call in
    /// [`fetch`](crate::ArchiveClient::fetch), for each item in
    /// [`fetch_stream`](crate::ArchiveClient::fetch_stream). `None` for
    /// [`ClientOptions::deadline`](crate::ClientOptions).
    pub deadline: Option<Duration>,
}

impl FetchArgs {
    /// A read of the served log from `fetch_offset` on, read_uncommitted, at
    /// least one batch, with no bound.
    #[must_use]
    pub fn new(topic: impl Into<String>, partition: i32, fetch_offset: i64) -> Self {
        Self {
            topic: topic.into(),
            partition,
            incarnation: None,
            fetch_offset,
            upper_bound: None,
            max_bytes: None,
            min_one_batch: true,
            isolation: Isolation::ReadUncommitted,
            overlaps: Overlaps::Served,
            selection: None,
            topic_id: None,
            current_leader_epoch: None,
            fetch_offset_epoch: None,
            replica_id: None,
            deadline: None,
        }
    }
}

/// What one manifest generation says about a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// The incarnation that answered.
    pub incarnation: u32,
    /// Number of the manifest that answered.
    pub generation: u64,
    /// Lowest offset that can be asked for.
    pub log_start: i64,
    /// End (exclusive) of what the archive answers. It permits no deletion.
    pub archived_through: i64,
    /// The archive's own last stable offset (exclusive).
    pub last_stable_offset: i64,
}

/// Why offsets are in no archive and never will be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GapKind {
    /// The broker's log began above them.
    BeforeFirst,
    /// The broker's log never held them.
    Missing,
    /// The broker's log held them, and the bytes did not verify.
    Damaged,
}

impl fmt::Display for GapKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BeforeFirst => "before-first",
            Self::Missing => "missing",
            Self::Damaged => "damaged",
        })
    }
}

/// A declared gap. Offsets that a batch covers without records for them
/// (compaction, markers) are none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The offsets.
    pub range: OffsetRange,
    /// Why they are not there.
    pub kind: GapKind,
}

/// One aborted transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AbortedTransaction {
    /// Its producer.
    pub producer_id: i64,
    /// Its first offset in the archives that the answer touches: not above its
    /// first batch in the answer.
    pub first_offset: i64,
    /// The offset of its abort marker.
    pub last_offset: i64,
}

/// Kafka's list of aborted transactions for exactly the batches it came with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AbortedTransactions {
    /// By first offset; one may be listed more than once.
    pub transactions: Vec<AbortedTransaction>,
    /// End (exclusive) of the offsets searched for markers.
    pub searched_to: i64,
    /// Whether the list is complete. If not, the search reached the end of the
    /// archive, and the broker goes on in its own index from `searched_to`.
    pub complete: bool,
}

/// Why an answer ends where it ends.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum End {
    /// The rest is in the broker's local log.
    EndOfArchive,
    /// The next batch does not fit `max_bytes`, or a limit of the daemon.
    Limit,
    /// The next batch reaches `upper_bound`.
    UpperBound,
    /// A declared gap follows. Asking for its first offset is
    /// [`ArchiveError::Gap`].
    Gap(Gap),
    /// The next batch begins below the last offset handed out. It opens the next
    /// answer, so that no decoder meets offsets that go back.
    OffsetsGoBack,
    /// The archive could not go on. What was handed out is good; asking again at
    /// `next_offset` gives data or this error.
    Failed(ArchiveError),
}

/// The answer to one [`fetch`](crate::ArchiveClient::fetch).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Whole record batches, one after the other, byte for byte what the broker
    /// wrote. Empty when the next batch does not fit the bound or the limit, or
    /// when nothing follows in the archive: see `end`.
    pub batches: Bytes,
    /// How many.
    pub batch_count: u32,
    /// Where the next read begins: behind the last batch, or the offset asked for.
    pub next_offset: i64,
    /// Why it ends there.
    pub end: End,
    /// With [`Isolation::ReadCommitted`] always, else never: an empty list and
    /// no list mean different things to a consumer.
    pub aborted: Option<AbortedTransactions>,
    /// The partition's bounds when it was read.
    pub bounds: Option<Bounds>,
}

impl Outcome {
    /// Whether there are batches.
    #[must_use]
    pub fn is_hit(&self) -> bool {
        !self.batches.is_empty()
    }

    /// The batches one by one, without copying.
    #[must_use]
    pub fn iter(&self) -> BatchIter {
        batches_in(self.batches.clone())
    }
}

/// One item of a [`FetchStream`](crate::FetchStream).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StreamItem {
    /// Whole batches.
    Batches(BatchSet),
    /// The last item.
    End(StreamEnd),
}

/// Whole batches of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchSet {
    /// The batches. Where the log holds overlapping batches, those of one set
    /// ascend, and a set may begin below the end of the set before.
    pub batches: Bytes,
    /// Where the next set begins.
    pub next_offset: i64,
    /// With [`Isolation::ReadCommitted`] always, else never.
    pub aborted: Option<AbortedTransactions>,
}

impl BatchSet {
    /// The batches one by one, without copying.
    #[must_use]
    pub fn iter(&self) -> BatchIter {
        batches_in(self.batches.clone())
    }
}

/// The end of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamEnd {
    /// Why: never [`End::OffsetsGoBack`] for the served log, never
    /// [`End::Failed`].
    pub end: End,
    /// Where another stream would go on. Behind a gap it begins at the gap's
    /// last offset plus one, if the caller decides so.
    pub next_offset: i64,
    /// The partition's bounds when its end was read.
    pub bounds: Option<Bounds>,
}
