//! Owns giving an archive another index.
//!
//! ```text
//!  .log, .overlap.log   chunks carried over as they lie; those of .log are unpacked
//!                       beside that, to index their batches
//!  index/, .tierd/keys  made anew, as if the batches were pushed to a writer
//!  .tierd/batches       carried over
//!  epochs, transactions those of the table
//! ```
//!
//! Equal inputs make equal bytes: an archive that gets back the level it was written
//! with is the archive that was written. The finished file is read back with foreign
//! code like every new archive, and its logs must be those of the input.
//!
//! At level `none` nothing is unpacked, and what was known of timestamps stays known.
//! Memory is that of a writer.

use std::path::Path;

use bytes::Bytes;

use super::chunk::{Chunk, Digest128, batches_in};
use super::error::ArchiveError;
use super::indexing::Indexing;
use super::merge::MergeInput;
use super::names::EntryName;
use super::pack::Packer;
use super::sink::Sink;
use super::tally::Times;
use super::toc::{Toc, TocFile};
use super::verify::verify_new;
use super::writer::{BuiltArchive, DEFLATE_LEVEL, wire_of};
use super::{ArchiveIdentity, ArchiveSummary, IndexLevel};

/// Builds the archive in `input`, which is one of `identity`, once more with an index of
/// `level`, in a folder of its own inside `scratch`. Blocks.
///
/// # Errors
/// When the input is damaged, when scratch fails, or when the logs of the file read back
/// are not those of the input.
pub fn reindex_archive(
    scratch: &Path,
    identity: &ArchiveIdentity,
    input: &MergeInput,
    level: IndexLevel,
) -> Result<BuiltArchive, ArchiveError> {
    let folder = tempfile::Builder::new()
        .prefix("reindex-")
        .tempdir_in(scratch)
        .map_err(ArchiveError::io("create a folder in", scratch))?;
    let (was, toc) = (&input.summary, &input.toc);
    let mut sink = Sink::create(&folder.path().join("archive.tar.gz"))?;
    let mut chain = Chain {
        indexing: Indexing::begin(&folder.path().join("index"), identity, level)?,
        next: if was.tiles { was.range.base() } else { 0 },
        times: None,
    };
    let as_it_is = |chunk: &Chunk, _: &Bytes| Ok(*chunk);
    if let Some(log) = toc.log() {
        match level {
            IndexLevel::None => carry(&mut sink, input, log, as_it_is)?,
            _ => carry(&mut sink, input, log, |chunk, packed| chain.add(chunk, packed))?,
        }
    }
    if let Some(log) = toc.overlap_log() {
        carry(&mut sink, input, log, as_it_is)?;
    }
    let mut packer = Packer::new(DEFLATE_LEVEL);
    let Chain { indexing, times, .. } = chain;
    let unindexed = indexing.unindexed();
    let index_bytes = indexing.finish(&mut sink, &mut packer)?;
    carry(&mut sink, input, toc.batches()?, as_it_is)?;

    let known = Times { min: was.min_timestamp, max: was.max_timestamp };
    let Times { min: min_timestamp, max: max_timestamp } = times.unwrap_or(known);
    let summary = ArchiveSummary {
        index_level: level,
        index_bytes,
        unindexed,
        min_timestamp,
        max_timestamp,
        ..was.clone()
    };
    let (ended, open) = (toc.ended.clone(), toc.open.clone());
    let table = Toc { epochs: toc.epochs.clone(), ended, open, ..Toc::default() };
    let prove = |path: &Path, summary: &_| verify_new(path, identity, summary);
    let built = BuiltArchive::finish(sink, &mut packer, identity, summary, table, folder, prove)?;
    if logs(&built.toc) != logs(toc) {
        let why = "its logs are not those that were carried over";
        return Err(ArchiveError::corrupt("the reindexed archive", why));
    }
    Ok(built)
}

/// Carries the chunks of `file` over, each with the entry that `entry` makes of it.
fn carry(
    sink: &mut Sink,
    input: &MergeInput,
    file: &TocFile,
    mut entry: impl FnMut(&Chunk, &Bytes) -> Result<Chunk, ArchiveError>,
) -> Result<(), ArchiveError> {
    sink.begin()?;
    for chunk in input.toc.chunks_of(file) {
        let packed = input.packed(chunk)?;
        sink.carry(&entry(chunk, &packed)?, &packed)?;
    }
    sink.end(&EntryName::parse(&file.name)?)?;
    Ok(())
}

/// The served batches, on their way into the index.
struct Chain {
    indexing: Indexing,
    /// Where the next batch is served from.
    next: i64,
    times: Option<Times>,
}

impl Chain {
    /// Indexes the batches of a chunk. Its entry tells their greatest timestamp, which
    /// without an index nobody had looked for.
    fn add(&mut self, chunk: &Chunk, packed: &Bytes) -> Result<Chunk, ArchiveError> {
        let mut found: Option<Times> = None;
        for batch in batches_in(chunk.unpack(packed.clone())?) {
            let batch = batch?;
            let crc32c = crc32c::crc32c(&wire_of(&batch)?);
            let times = self.indexing.add(&batch, self.next, crc32c)?;
            self.next = batch.range().end();
            found = Some(times.and(found));
        }
        self.times = found.map(|times| times.and(self.times)).or(self.times);
        let max_timestamp = found.map_or(chunk.max_timestamp, |times| times.max);
        Ok(Chunk { max_timestamp, ..*chunk })
    }
}

/// The logs by name, and the bytes of their chunks by digest.
fn logs(toc: &Toc) -> Vec<(&str, Vec<Digest128>)> {
    let digests = |log| toc.chunks_of(log).iter().map(|chunk| chunk.digest).collect();
    let logs = [toc.log(), toc.overlap_log()].into_iter().flatten();
    logs.map(|log| (log.name.as_str(), digests(log))).collect()
}

#[cfg(test)]
mod tests;
