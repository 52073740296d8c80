//! Owns the archive: one immutable `.tar.gz` object that holds one range of
//! offsets of one topic-partition, with a Tantivy index beside the batches.
//!
//! Every tool that reads `.tar.gz` reads it; tierd reads it by byte range.
//!
//! ```text
//!  gzip header, 10 bytes
//!  | tar header | metadata.json, 2048 bytes            for people; filled in last
//!  | tar header | {base:020}.log                       the chain of batches, verbatim, ascending:
//!  |            |                                      unpacked, it is a Kafka log segment
//!  | tar header | {base:020}.overlap.log               superseded batches, if there are any
//!  | tar header | index/meta.json, index/{segment}.*   one Tantivy document a record, in offset order
//!  | tar header | .tierd/keys                          which keys it may hold, if records are indexed
//!  | tar header | .tierd/batches                       base, last, length, CRC-32C of every batch
//!  | tar header | .tierd/toc                           chunks, epochs, transactions
//!  | tar header | .tierd/footer, 512 bytes             1544 bytes before the end: where the table lies
//!  | 1024 zeros |
//!  gzip trailer, 8 bytes
//!
//!  It is ONE gzip member. Its deflate stream is made of pieces that begin and end on bytes:
//!
//!  | 00 len !len bytes |   stored block: tar headers, padding, the end ("glue"; the last has 01)
//!  | 00 len !len bytes | 00 len !len bytes | ..    a stored chunk: a copy
//!  | deflate blocks ........ | 00 00 00 ff ff |    a deflated chunk: no reference to what lies
//!                                                  before it, ended by a full flush
//!
//!  | glue | chunk | chunk | .. | glue | chunk | .. | glue | toc | glue with the footer, last |
//! ```
//!
//! A chunk holds about 256 KiB of one file, in the logs whole batches: one that
//! would take it further begins the next chunk, a larger one is a chunk of its
//! own. Any chunk is read alone: get its bytes, check its digest, inflate it.
//!
//! Same batches, same bytes: no time, host or random number goes in. tar headers
//! are ustar, mode 0644, owner 0, time 0. A later version is refused by name; this
//! one is [`FORMAT_VERSION`]. Each part is drawn in the file that reads and writes
//! it: `layout` (gzip, tar, stored blocks), `chunk`, `toc`, `footer`, `batches`,
//! `metadata`, `summary` (which the catalog keeps), `index`, `keys`.
//!
//! Archives made before `.tierd/keys` was have none, and are read like others.
//!
//! Nothing here is whole in memory: the writer streams into a scratch file and
//! fills in front and tar headers when it knows them, then `verify` reads the file
//! back with foreign code before anyone may have it.
//!
//! Does not own: where archives go ([`crate::store`]), which there are
//! ([`crate::catalog`]), what goes into one (the indexer).

mod batches;
mod chunk;
mod error;
#[cfg(test)]
mod fixture;
mod footer;
mod index;
mod indexing;
mod keys;
mod layout;
mod level;
mod merge;
mod metadata;
mod names;
mod pack;
mod reindex;
mod sink;
mod spool;
mod summary;
mod tally;
mod toc;
mod transactions;
mod verify;
mod writer;

pub use batches::{BatchList, BatchRef, BatchRefs};
pub use chunk::{
    Batches, CHUNK_RAW_BYTES_MAX, Chunk, Digest128, Encoding, NO_TIMESTAMP, batches_in, digest128,
};
pub use error::ArchiveError;
pub use footer::{FOOTER_BYTES, FOOTER_DISTANCE, Footer};
pub use index::{
    HEADER_FIELD, KEY_FIELD, OFFSET_FIELD, PRODUCER_FIELD, TERM_BYTES_MAX, TERM_PREFIX_BYTES,
    TIMESTAMP_FIELD, VALUE_FIELD, WORD_BYTES_MAX, header_name_prefix, header_term, index_schema,
    key_term, skipped_values, time_of, tokenizers,
};
pub use keys::KeyFilter;
pub use level::{IndexLevel, IndexLevelError, IndexRule, IndexRules, Tokenizer, ValueIndex};
pub use merge::{MergeInput, merge_archives};
pub use metadata::Metadata;
pub use reindex::reindex_archive;
pub use summary::{ArchiveSummary, SUMMARY_BYTES, UNKNOWN_TIMESTAMP};
pub use toc::{TOC_RAW_BYTES_MAX, Toc, TocFile, TocPlace};
pub use verify::{Verified, verify_file, verify_stream};
pub use writer::{
    ArchiveOptions, ArchiveWriter, BuiltArchive, CHUNK_BYTES, DEFLATE_LEVEL, Room, TARGET_LOG_BYTES,
};

use crate::record::TopicPartition;

/// The version of the format that this tierd writes and reads.
pub const FORMAT_VERSION: u16 = 1;

/// Whose archive it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ArchiveIdentity {
    /// The partition.
    pub tp: TopicPartition,
    /// The incarnation of its topic, counted from 0.
    pub incarnation: u32,
}

/// Where a batch lies in the broker's WAL. Ordered from older to newer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WalRank {
    /// The segment's id.
    pub segment: u64,
    /// Position of the batch's frame in the segment.
    pub position: u64,
}

/// A transaction that has not ended: in an archive's table by what lies in that
/// archive, in a manifest by all that is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpenTransaction {
    /// The producer.
    pub producer_id: i64,
    /// The first offset of the transaction.
    pub first_offset: i64,
}

/// A marker that ended a transaction, and what lies before it in the archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndedTransaction {
    /// The producer.
    pub producer_id: i64,
    /// The first offset of the transaction here, `None` where all of it lies in
    /// front of the archive.
    pub first_offset: Option<i64>,
    /// The offset of the marker.
    pub marker: i64,
    /// Whether the marker aborts, else it commits.
    pub aborted: bool,
}
