//! Owns the plain types that tell what is archived, for tools and exporters.

use std::time::Duration;

use crate::error::ArchiveError;
use crate::types::{Bounds, End, Gap, OffsetRange};

/// What is archived of one partition, or why that cannot be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    /// The topic's name.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// The description.
    pub result: Result<Description, ArchiveError>,
    /// What of the broker's WAL is not archived; `None` where the daemon that
    /// answers does not archive this partition.
    pub backlog: Option<Backlog>,
}

/// What of one partition of the broker's WAL is not archived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backlog {
    /// Offsets from the end of the archive to the end of what was scanned.
    pub offsets: u64,
    /// Bytes of segments that are not archived, of growing ones too.
    pub bytes: u64,
    /// Time since the last write to the oldest segment that is not archived whole.
    pub age: Duration,
    /// Why it does not get on, in the words of the metric
    /// `tierd_partitions_stalled`; `None` when it does.
    pub stall: Option<String>,
    /// Whether its last error does not pass by itself.
    pub quarantined: bool,
}

/// What is archived of one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// Where the archive begins and ends.
    pub bounds: Bounds,
    /// Declared gaps, ascending.
    pub gaps: Vec<Gap>,
    /// Whether there are more gaps behind the last one:
    /// [`describe_from`](crate::ArchiveClient::describe_from) gives them.
    pub more_gaps: bool,
    /// Archives that the manifest references.
    pub archives: u64,
    /// Bytes of these objects.
    pub bytes: u64,
    /// Bytes of the served batches before compression.
    pub log_bytes: u64,
    /// Served batches.
    pub batches: u64,
    /// Records in the served batches, control records included.
    pub records: u64,
    /// Batches superseded by others at the same offsets.
    pub overlaps: u64,
    /// Lowest record timestamp; -1 without records.
    pub min_timestamp: i64,
    /// Highest record timestamp; -1 without records.
    pub max_timestamp: i64,
}

/// Which archives to list. The default is all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListArgs {
    /// One topic, or all.
    pub topic: Option<String>,
    /// One partition of the topic, or all.
    pub partition: Option<i32>,
    /// Which life of the topic; `None` for the newest.
    pub incarnation: Option<u32>,
}

/// What the search index of an archive covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum IndexLevel {
    /// A level that is younger than this client.
    Unknown,
    /// No index.
    None,
    /// Offset, timestamp, key, headers, producer.
    Keys,
    /// These and the value.
    Full,
}

/// One archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArchiveInfo {
    /// The topic's name.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// Which life of the topic.
    pub incarnation: u32,
    /// Number of the manifest that references it.
    pub generation: u64,
    /// Its name in the object store, below the store's URL.
    pub object: String,
    /// Size of the object.
    pub length: u64,
    /// BLAKE3 of the object in lower-case hex.
    pub digest: String,
    /// Number of the manifest it was built for.
    pub built_for: u64,
    /// The offsets it tiles, or the hull of its batches.
    pub range: OffsetRange,
    /// Whether it tiles its range; otherwise it holds overlapping batches only.
    pub tiles: bool,
    /// Served batches.
    pub batches: u32,
    /// Records in the served batches, control records included.
    pub records: u64,
    /// Bytes of the served batches before compression.
    pub log_bytes: u64,
    /// Batches superseded by others at the same offsets.
    pub overlaps: u32,
    /// Batches whose own CRC was wrong in the broker's log.
    pub bad_crcs: u32,
    /// What its table of contents lists of transactions.
    pub transactions: u32,
    /// Lowest record timestamp; -1 without records.
    pub min_timestamp: i64,
    /// Highest record timestamp; -1 without records.
    pub max_timestamp: i64,
    /// Lowest leader epoch; -1 is unknown.
    pub min_leader_epoch: i32,
    /// Highest leader epoch; -1 is unknown.
    pub max_leader_epoch: i32,
    /// What its search index covers.
    pub index_level: IndexLevel,
}

/// What a fetch would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// What it would answer, as far as can be told without the data.
    pub result: Result<(), ArchiveError>,
    /// Why the answer would end; `None` where it would not begin.
    pub end: Option<End>,
    /// The partition's bounds.
    pub bounds: Option<Bounds>,
    /// Archives it would read, in order.
    pub archives: Vec<ExplainedArchive>,
    /// Reads of archived objects, in order.
    pub reads: Vec<ExplainedRead>,
    /// Bytes to ask of the object store.
    pub store_bytes: u64,
    /// Requests to the object store.
    pub store_requests: u32,
}

/// An archive that a fetch would read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExplainedArchive {
    /// Its name in the object store.
    pub object: String,
    /// The offsets it holds.
    pub range: OffsetRange,
    /// Chunks of it that would be inflated.
    pub chunks: u32,
    /// Bytes of these chunks before compression.
    pub raw_bytes: u64,
}

/// One read of an archived object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExplainedRead {
    /// The object's name in the object store.
    pub object: String,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// What it is for.
    pub purpose: ReadPurpose,
    /// Answered from memory or disk, not by the store.
    pub cached: bool,
}

/// What a read is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReadPurpose {
    /// A purpose that is younger than this client.
    Unknown,
    /// An archive's table of contents.
    Toc,
    /// Record batches.
    Data,
}
