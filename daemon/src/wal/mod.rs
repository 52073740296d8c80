//! Owns the broker's WAL directory, as a reader: which files are segments, which
//! frames in them verify, and the batches inside those frames.
//!
//! Also owns what can be said of a segment while the broker runs: what was seen of
//! it ([`Observations`]) and whether it is closed ([`classify`]).
//!
//! Does not own: the order of offsets, gaps and overlaps, when to archive what
//! (`indexer`), and what a batch means (`record`). Nothing here writes but
//! [`remove`], and nothing here is async.
//!
//! ```text
//!  WalDir --partitions--> PartitionDir { SegmentFile.. }   names and sizes only
//!     scan(segment) --> SegmentScan { FrameRef.. }   pass 1: every byte checked, none kept
//!     SegmentReader::batch(&FrameRef) --> batch      pass 2: read again, checked again
//! ```
//!
//! Two passes, because an archive is planned (ranges, counts, overlaps) before its
//! first byte is written, and because a segment may hold more than memory does.
//! Between them the broker may truncate or remove the file: pass 2 trusts nothing
//! but a checksum, and answers [`WalError::Changed`].
//!
//! A damaged frame, segment or folder never stops the others: it is reported, as
//! [`Damage`] or in [`Listing::findings`], and the walk goes on.

mod broker;
mod chronik;
pub mod classify;
mod dir;
mod error;
mod observe;
mod reader;
mod remove;
mod scan;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod watch;
mod window;

use std::path::PathBuf;

use crate::record::TopicPartition;

pub use broker::{BrokerStart, BrokerStartError};
pub use dir::{Listing, WalDir};
pub use error::WalError;
pub use observe::{Change, Observations, Observed};
pub use reader::{HeldSegment, SegmentReader};
pub use remove::remove;
pub use scan::{first_frame, scan};
pub use watch::Watch;

/// How a broker writes its WAL. Closed: a new broker is a new variant here, a
/// folder beside `chronik`, and an arm where the compiler asks for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WalFormat {
    /// Chronik Stream, `{topic}/{partition}/wal_{partition}_{id}.log`.
    Chronik,
}

/// One partition's folder and its segments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionDir {
    /// Topic and partition, from the path.
    pub tp: TopicPartition,
    /// The folder.
    pub path: PathBuf,
    /// Its segments, by ascending id. Ids may have gaps; offsets may overlap.
    pub segments: Vec<SegmentFile>,
}

/// One segment as the directory shows it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SegmentFile {
    /// The broker's number for it; used again once a folder was empty.
    pub id: u64,
    /// The file.
    pub path: PathBuf,
    /// Size in bytes when listed.
    pub len: u64,
    /// Last modification, milliseconds since 1970.
    pub modified_ms: i64,
    /// Birth, milliseconds since 1970, where the file system knows it.
    pub created_ms: Option<i64>,
    /// The file system's number of the file: another one is another file.
    pub inode: u64,
}

/// What one segment holds.
#[derive(Clone, Debug, Default)]
pub struct SegmentScan {
    /// Frames that hold a batch and verify, in file order.
    pub frames: Vec<FrameRef>,
    /// Ranges of bytes that are no good frame, ascending.
    pub damaged: Vec<Damage>,
    /// Where a frame begins that the end of the file cuts off.
    pub torn_at: Option<u64>,
    /// Frames that verify and hold no batch for us.
    pub skipped: Skipped,
    /// Bytes scanned: the size of the file when the scan began.
    pub len: u64,
}

/// What the observer of a segment has to know of a scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gist {
    /// Base offset and checksum of the first frame, which tells one content of a
    /// segment from another.
    pub head: Option<(i64, u32)>,
    /// Whether the last frame ends where the file ends.
    pub clean_end: bool,
}

impl SegmentScan {
    /// What the observer has to know.
    #[must_use]
    pub fn gist(&self) -> Gist {
        let head = self.frames.first().map(|frame| (frame.base, frame.wire_crc32c));
        let damaged_end = self.damaged.last().is_some_and(|damage| damage.end >= self.len);
        Gist { head, clean_end: self.torn_at.is_none() && !damaged_end }
    }
}

/// One verified frame: where it lies and what it holds. Kept small, since a
/// segment of 1 GiB may hold millions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameRef {
    /// First byte of the frame in the file.
    pub position: u64,
    /// Base offset of the batch.
    pub base: i64,
    /// Bytes of the frame.
    pub frame_len: u32,
    /// Last offset of the batch minus its base.
    pub last_delta: u32,
    /// Bytes of the batch on the wire.
    pub wire_len: u32,
    /// CRC-32C of all bytes of the batch on the wire. Not the one in its header.
    pub wire_crc32c: u32,
    /// Leader epoch that the batch was written in, -1 where it says none.
    pub leader_epoch: i32,
    /// What is special about it.
    pub flags: FrameFlags,
}

impl FrameRef {
    /// The last offset of the batch.
    #[must_use]
    pub fn last(&self) -> i64 {
        self.base + i64::from(self.last_delta)
    }
}

/// What is special about a frame; a set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrameFlags(u8);

impl FrameFlags {
    /// The CRC-32C in the batch's own header is wrong, though the frame is as the
    /// broker wrote it: the producer sent it so.
    pub const BATCH_CRC_BAD: Self = Self(1);
    /// No magic-2 bytes exist: the batch is made from a legacy message set or
    /// from the decoded entries.
    pub const REBUILT: Self = Self(2);
    /// The frame's checksum is of a frame with length zero, as brokers before
    /// v2.4.0 wrote it.
    pub const OLD_FRAME_CRC: Self = Self(4);
    /// The payload goes on after its last field; the rest is ignored.
    pub const TRAILING_BYTES: Self = Self(8);

    /// Whether [`Self::BATCH_CRC_BAD`] is set.
    #[must_use]
    pub const fn batch_crc_bad(self) -> bool {
        self.contains(Self::BATCH_CRC_BAD)
    }

    /// Whether [`Self::REBUILT`] is set.
    #[must_use]
    pub const fn rebuilt(self) -> bool {
        self.contains(Self::REBUILT)
    }

    /// Whether every flag of `other` is set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Sets the flags of `other`.
    pub fn insert(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

/// A range of bytes that is no good frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// First damaged byte.
    pub start: u64,
    /// The byte after the last damaged one.
    pub end: u64,
    /// What is wrong at `start`.
    pub why: String,
    /// Last offset of the good frame before it in the file.
    pub after: Option<i64>,
    /// Base offset of the good frame after it in the file.
    pub before: Option<i64>,
}

/// Counts of frames that verify and hold no batch for us.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Skipped {
    /// Version 1 frames: one record each, at an offset no broker assigned.
    pub v1: u64,
    /// Frames of requests in which the broker found no record.
    pub empty: u64,
}

impl Skipped {
    /// One line for people on each kind that there is.
    pub fn lines(&self) -> impl Iterator<Item = String> + use<> {
        let v1 = (self.v1 > 0).then(|| {
            format!(
                "{} frames of version 1 are skipped: brokers before v1.3.33 wrote them, at \
                 offsets that no broker assigned",
                self.v1
            )
        });
        let empty =
            (self.empty > 0).then(|| format!("{} frames without records are skipped", self.empty));
        v1.into_iter().chain(empty)
    }
}
