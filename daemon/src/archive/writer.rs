//! Owns the making of an archive: batches in, a verified file in scratch out.
//!
//! ```text
//!  push ..       chunks of .log go into the scratch file as they fill;
//!                records into the index, notes on batches into the spool
//!  push_overlap  the same for .overlap.log, which begins where .log ended
//!  finish        index files, list of batches, table, footer; then metadata.json
//!                in front; then the whole file is read back and verified
//! ```
//!
//! Nobody needs to know beforehand what will come: [`ArchiveWriter::push`] says
//! when the archive is full. An error leaves the writer unusable: drop it, and
//! the scratch folder goes with it. Memory: one index segment, two chunks, the
//! table of chunks; less than 120 MiB unless one batch alone is larger than that.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::batches::BatchRef;
use super::error::ArchiveError;
use super::indexing::Indexing;
use super::metadata::Metadata;
use super::names::EntryName;
use super::pack::{Content, Packer};
use super::sink::{ChunkOf, Sink};
use super::spool::Spool;
use super::tally::Tally;
use super::toc::{Toc, TocPlace};
use super::transactions::Transactions;
use super::verify::verify_new;
use super::{ArchiveIdentity, ArchiveSummary, Encoding, IndexLevel, WalRank};
use crate::record::batch::BATCH_BYTES_MAX;
use crate::record::{BatchHeader, CanonicalRecord, Codec, OffsetRange};

/// A chunk ends before the batch that would take it beyond this many bytes.
/// Full flushes at this distance cost 0.3 % of size, and a read of one batch
/// brings in at most one such chunk on either side.
pub const CHUNK_BYTES: usize = 256 << 10;
/// Level of deflate where nothing else is asked for: within a tenth of the size
/// of level 6 at half as much speed again.
pub const DEFLATE_LEVEL: u8 = 3;
/// Bytes of `.log` after which an archive is full where nothing else is asked for.
pub const TARGET_LOG_BYTES: u64 = 1 << 30;
/// Bytes of a log after which an archive is full in any case: the next batch,
/// however large, still ends below 2^31 - 1.
const LOG_BYTES_FULL: u64 = i32::MAX as u64 - BATCH_BYTES_MAX as u64;
/// Batches after which an archive is full: the list of them is read whole, to
/// prove a commit, and stays below 20 MiB.
const BATCHES_FULL: u32 = 1 << 21;
/// Entries of the lists of transactions, and leader epochs, after which an archive
/// is full: 2 MiB of a table that is read whole.
const LISTED_FULL: usize = 1 << 16;
/// Batches compressed by their producer, from this size on, do not deflate any
/// further. Small ones often do, against each other.
const COMPRESSED_BATCH_BYTES: usize = 4 << 10;

/// How archives are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArchiveOptions {
    /// What can be searched for. `keys` costs about 1.3 µs and 11 bytes a record; text of
    /// 1 KB values about 25 µs and a sixth of their size.
    pub index_level: IndexLevel,
    /// Level of deflate, 1 (fast) to 9 (small), see [`DEFLATE_LEVEL`].
    pub deflate_level: u8,
    /// Bytes of `.log` after which [`ArchiveWriter::push`] says full; never more
    /// than 2^31 - 1 less one batch.
    pub target_log_bytes: u64,
}

impl Default for ArchiveOptions {
    fn default() -> Self {
        Self {
            index_level: IndexLevel::default(),
            deflate_level: DEFLATE_LEVEL,
            target_log_bytes: TARGET_LOG_BYTES,
        }
    }
}

/// Whether an archive takes more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// More may come, as far as [`ArchiveWriter::fits`].
    Open,
    /// Nothing more of this kind should come.
    Full,
}

/// An archive that is finished and verified. Its file lies in scratch and goes
/// when this value is dropped.
#[derive(Debug)]
pub struct BuiltArchive {
    /// The file.
    pub path: PathBuf,
    /// What the catalog keeps of it.
    pub summary: ArchiveSummary,
    /// The same file's table of contents.
    pub toc: Toc,
    _scratch: TempDir,
}

impl BuiltArchive {
    /// Ends the object in `sink` and has it read back: `prove` gives digest and table
    /// of the file, if it is the archive with this summary. `summary` is all that is
    /// known before packing, `toc` brings epochs and transactions.
    pub(super) fn finish(
        sink: Sink,
        packer: &mut Packer,
        identity: &ArchiveIdentity,
        mut summary: ArchiveSummary,
        toc: Toc,
        scratch: TempDir,
        prove: impl FnOnce(&Path, &ArchiveSummary) -> Result<([u8; 32], Toc), ArchiveError>,
    ) -> Result<Self, ArchiveError> {
        let metadata = Metadata::of(identity, &summary).encode()?;
        let path = sink.path().to_owned();
        (summary.length, summary.toc) = sink.finish(packer, &metadata, toc)?;
        let (digest, toc) = prove(&path, &summary)?;
        summary.digest = digest;
        Ok(Self { path, summary, toc, _scratch: scratch })
    }
}

/// An archive under way.
#[derive(Debug)]
pub struct ArchiveWriter {
    identity: ArchiveIdentity,
    options: ArchiveOptions,
    start: i64,
    phase: Phase,
    sink: Sink,
    packer: Packer,
    chunk: LogChunk,
    tally: Tally,
    transactions: Transactions,
    spool: Spool,
    index: Indexing,
    least_overlap: i64,
    // Last, so that the files above are closed before their folder is removed.
    scratch: TempDir,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Empty,
    Chain,
    Overlaps,
}

/// The chunk of a log that is being filled.
#[derive(Debug, Default)]
struct LogChunk {
    bytes: Vec<u8>,
    of: Option<ChunkOf>,
    /// Bytes of batches that will not deflate.
    compressed: usize,
}

impl ArchiveWriter {
    /// Begins an archive that tiles from the offset `start` on, in a folder of
    /// its own inside `scratch`.
    ///
    /// # Errors
    /// When the folder or its files cannot be made.
    pub fn create(
        scratch: &Path,
        identity: ArchiveIdentity,
        start: i64,
        options: ArchiveOptions,
    ) -> Result<Self, ArchiveError> {
        let folder = tempfile::Builder::new()
            .prefix("archive-")
            .tempdir_in(scratch)
            .map_err(ArchiveError::io("create a folder in", scratch))?;
        let level = options.index_level;
        let index = Indexing::begin(&folder.path().join("index"), &identity, level)?;
        Ok(Self {
            sink: Sink::create(&folder.path().join("archive.tar.gz"))?,
            spool: Spool::create(&folder.path().join("batches"))?,
            identity,
            options,
            start,
            phase: Phase::Empty,
            packer: Packer::new(options.deflate_level),
            chunk: LogChunk::default(),
            tally: Tally::from(start),
            transactions: Transactions::default(),
            index,
            least_overlap: i64::MAX,
            scratch: folder,
        })
    }

    /// Whether a batch with these offsets can still be pushed: the offsets of an
    /// archive span at most `i32::MAX`. True for the first batch.
    #[must_use]
    pub fn fits(&self, range: OffsetRange) -> bool {
        let base = self.tally.hull().map_or(range.base(), OffsetRange::base);
        let tiles = self.tally.chain.batches > 0;
        let base = if tiles { base.min(self.start) } else { base };
        range.last() - base.min(range.base()) <= i64::from(i32::MAX)
    }

    /// Adds the next batch of the chain: one that ends behind the one before. It
    /// may begin before that one's end, and before the archive's start.
    ///
    /// # Errors
    /// When the batch cannot come here (see [`Self::fits`]), or scratch fails.
    pub fn push(&mut self, batch: &CanonicalRecord, rank: WalRank) -> Result<Room, ArchiveError> {
        let range = batch.range();
        if self.phase == Phase::Overlaps {
            return Err(refused(range, "the chain ends where the overlaps begin"));
        }
        if range.last() < self.tally.next() {
            return Err(refused(range, "the chain must ascend by last offset"));
        }
        self.check(batch, self.tally.chain.bytes)?;
        if self.phase == Phase::Empty {
            self.sink.begin()?;
            self.phase = Phase::Chain;
        }
        let served_from = self.tally.next().max(range.base());
        let wire = wire_of(batch)?;
        let crc32c = crc32c::crc32c(&wire);
        let times = self.index.add(batch, self.tally.next(), crc32c)?;
        self.transactions.observe(batch, served_from);
        self.tally.chain(batch.header(), batch.verify_crc().is_err(), times);
        self.spool.chain(&batch_ref(batch.header(), crc32c), rank)?;
        self.add(batch.header(), &wire, times.max)?;
        let full = self.tally.chain.bytes >= self.options.target_log_bytes.min(LOG_BYTES_FULL)
            || self.tally.chain.batches >= BATCHES_FULL
            || self.transactions.len() >= LISTED_FULL
            || self.tally.epochs().len() >= LISTED_FULL
            || self.index.is_full()
            || range.last() - self.start.min(range.base()) >= i64::from(i32::MAX);
        Ok(if full { Room::Full } else { Room::Open })
    }

    /// Adds a batch that the chain supersedes, after all of the chain. Batches may
    /// come in any order, and lie in that order: who wants equal archives from
    /// equal batches pushes them ascending by base, then by rank.
    ///
    /// # Errors
    /// When it does not [fit](Self::fits), or scratch fails.
    pub fn push_overlap(
        &mut self,
        batch: &CanonicalRecord,
        rank: WalRank,
    ) -> Result<Room, ArchiveError> {
        self.check(batch, self.tally.overlaps.bytes)?;
        if self.phase != Phase::Overlaps {
            self.end_log()?;
            self.sink.begin()?;
            self.phase = Phase::Overlaps;
        }
        let header = batch.header();
        let wire = wire_of(batch)?;
        self.tally.overlap(header, batch.verify_crc().is_err());
        self.spool.overlap(&batch_ref(header, crc32c::crc32c(&wire)), rank)?;
        self.least_overlap = self.least_overlap.min(header.base_offset);
        self.add(header, &wire, header.max_timestamp)?;
        let full = self.tally.overlaps.bytes >= self.options.target_log_bytes.min(LOG_BYTES_FULL)
            || self.tally.overlaps.batches >= BATCHES_FULL / 2;
        Ok(if full { Room::Full } else { Room::Open })
    }

    /// Bytes of batches pushed so far.
    #[must_use]
    pub fn batch_bytes(&self) -> u64 {
        self.tally.chain.bytes + self.tally.overlaps.bytes
    }

    /// Ends the archive and verifies it: the file is read back whole, with foreign
    /// code, and every fact compared.
    ///
    /// # Errors
    /// When nothing was pushed, when scratch fails, or when the file read back is
    /// not the one written.
    pub fn finish(mut self) -> Result<BuiltArchive, ArchiveError> {
        self.end_log()?;
        let Some(hull) = self.tally.hull() else { return Err(ArchiveError::Empty) };
        let Self { mut sink, mut packer, spool, tally, transactions, index, .. } = self;
        let unindexed = index.unindexed();
        let index_bytes = index.finish(&mut sink, &mut packer)?;
        sink.begin()?;
        spool.finish(|piece| sink.piece(&mut packer, piece))?;
        sink.end(&EntryName::Batches)?;

        let (ended, open) = transactions.finish();
        let tiles = tally.chain.batches > 0;
        let range = if tiles {
            OffsetRange::new(self.start, tally.next() - 1).ok_or(ArchiveError::Refused {
                base_offset: self.start,
                last_offset: tally.next() - 1,
                why: "an archive begins at offset 0 or above",
            })?
        } else {
            hull
        };
        let times = tally.times();
        let summary = ArchiveSummary {
            range,
            tiles,
            batches: tally.chain.batches,
            records: tally.chain.records,
            log_bytes: tally.chain.bytes,
            overlaps: tally.overlaps.batches,
            overlap_bytes: tally.overlaps.bytes,
            bad_crcs: tally.bad_crcs,
            unindexed,
            min_timestamp: times.min,
            max_timestamp: times.max,
            leader_epochs: tally.leader_epochs(),
            index_level: self.options.index_level,
            index_bytes,
            transactions: (ended.len() + open.len()) as u32,
            length: 0,
            digest: [0; 32],
            toc: TocPlace {
                offset: 0,
                length: 0,
                raw: 0,
                encoding: Encoding::Stored,
                digest: [0; 16],
            },
        };
        let toc = Toc { epochs: tally.epochs().to_vec(), ended, open, ..Toc::default() };
        let identity = &self.identity;
        let prove = |path: &Path, summary: &_| verify_new(path, identity, summary);
        BuiltArchive::finish(sink, &mut packer, identity, summary, toc, self.scratch, prove)
    }

    /// Refuses a batch that would break a limit of the format, for callers that
    /// went on after [`Room::Full`].
    fn check(&self, batch: &CanonicalRecord, log_bytes: u64) -> Result<(), ArchiveError> {
        if !self.fits(batch.range()) {
            let why = "the archive would span more than 2^31 - 1 offsets";
            return Err(refused(batch.range(), why));
        }
        if log_bytes + batch.header().wire_len() as u64 > i32::MAX as u64 {
            return Err(refused(batch.range(), "the log would grow beyond 2^31 - 1 bytes"));
        }
        Ok(())
    }

    /// Adds a batch to the log that is open.
    fn add(
        &mut self,
        header: &BatchHeader,
        wire: &[u8],
        max_timestamp: i64,
    ) -> Result<(), ArchiveError> {
        if self.chunk.bytes.len() + wire.len() > CHUNK_BYTES {
            self.flush()?;
        }
        if header.codec() != Codec::None && wire.len() >= COMPRESSED_BATCH_BYTES {
            self.chunk.compressed += wire.len();
        }
        let range = header.range();
        let of = self.chunk.of.get_or_insert(ChunkOf {
            first: range.base(),
            last: range.last(),
            max_timestamp,
        });
        of.first = of.first.min(range.base());
        of.last = of.last.max(range.last());
        of.max_timestamp = of.max_timestamp.max(max_timestamp);
        if wire.len() > CHUNK_BYTES {
            // A chunk of its own, packed from where it lies.
            return self.pack(wire);
        }
        self.chunk.bytes.extend_from_slice(wire);
        Ok(())
    }

    /// Packs the chunk that is being filled.
    fn flush(&mut self) -> Result<(), ArchiveError> {
        let bytes = std::mem::take(&mut self.chunk.bytes);
        if !bytes.is_empty() {
            self.pack(&bytes)?;
        }
        self.chunk.bytes = bytes;
        self.chunk.bytes.clear();
        Ok(())
    }

    fn pack(&mut self, bytes: &[u8]) -> Result<(), ArchiveError> {
        let compressed = std::mem::take(&mut self.chunk.compressed) * 2 > bytes.len();
        let content = if compressed { Content::Compressed } else { Content::Unknown };
        let packed = self.packer.pack(bytes, content);
        match self.chunk.of.take() {
            Some(of) => self.sink.chunk(&packed, bytes.len(), of),
            None => Ok(()),
        }
    }

    /// Ends the log that is open, if one is.
    fn end_log(&mut self) -> Result<(), ArchiveError> {
        self.flush()?;
        let base = self.tally.first_base();
        match self.phase {
            Phase::Empty => return Ok(()),
            Phase::Chain => self.sink.end(&EntryName::Log(base))?,
            Phase::Overlaps => self.sink.end(&EntryName::OverlapLog(self.least_overlap))?,
        };
        Ok(())
    }
}

fn refused(range: OffsetRange, why: &'static str) -> ArchiveError {
    ArchiveError::Refused { base_offset: range.base(), last_offset: range.last(), why }
}

pub(super) fn wire_of(batch: &CanonicalRecord) -> Result<bytes::Bytes, ArchiveError> {
    let base_offset = batch.header().base_offset;
    batch.to_kafka_batch().map_err(|source| ArchiveError::Batch { base_offset, source })
}

fn batch_ref(header: &BatchHeader, crc32c: u32) -> BatchRef {
    BatchRef {
        base: header.base_offset,
        last: header.last_offset(),
        len: header.wire_len() as u32,
        crc32c,
        rank: None,
    }
}

#[cfg(test)]
mod tests;
