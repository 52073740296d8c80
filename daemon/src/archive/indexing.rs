//! Owns the way of batches into the index of an archive under way, and of the finished
//! index into the object: for whoever builds an archive from batches.
//!
//! Does not own the index itself, see `index`.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::error::ArchiveError;
use super::index::IndexBuilder;
use super::names::EntryName;
use super::pack::Packer;
use super::sink::Sink;
use super::tally::Times;
use super::writer::CHUNK_BYTES;
use super::{ArchiveIdentity, IndexLevel, UNKNOWN_TIMESTAMP};
use crate::record::{BatchError, CanonicalRecord, Entries};

/// The index of an archive under way, of whatever level.
#[derive(Debug)]
pub(super) struct Indexing {
    /// None where nothing is indexed.
    builder: Option<IndexBuilder>,
    unindexed: u32,
}

impl Indexing {
    /// Begins an index of `level` in the new folder `folder`, if it is to have one.
    pub(super) fn begin(
        folder: &Path,
        identity: &ArchiveIdentity,
        level: IndexLevel,
    ) -> Result<Self, ArchiveError> {
        let values = match level {
            IndexLevel::None => return Ok(Self { builder: None, unindexed: 0 }),
            IndexLevel::Keys => None,
            IndexLevel::Full(values) => Some(values),
        };
        Ok(Self { builder: Some(IndexBuilder::create(folder, identity, values)?), unindexed: 0 })
    }

    /// Adds the next batch of the chain, which is served from the offset `from` on, and
    /// tells the timestamps of its records. `crc32c` is that of the whole batch.
    pub(super) fn add(
        &mut self,
        batch: &CanonicalRecord,
        from: i64,
        crc32c: u32,
    ) -> Result<Times, ArchiveError> {
        let Some(builder) = &mut self.builder else {
            return Ok(Times::of_header(batch.header()));
        };
        let walked = batch.entries().and_then(|entries| {
            let times = times_of(batch, entries.clone())?;
            Ok((entries, times))
        });
        let Ok((entries, times)) = walked else {
            self.unindexed += 1;
            let max = batch.header().max_timestamp;
            return Ok(Times { min: UNKNOWN_TIMESTAMP, max });
        };
        if !batch.header().is_control() {
            builder.add(batch, entries, from, crc32c)?;
        }
        Ok(times)
    }

    /// Whether no further batch should be added.
    pub(super) fn is_full(&self) -> bool {
        self.builder.as_ref().is_some_and(IndexBuilder::is_full)
    }

    /// Batches that could not be decoded, and so are not in the index.
    pub(super) fn unindexed(&self) -> u32 {
        self.unindexed
    }

    /// Ends the index and writes its files to `sink`, and the filter of its keys.
    /// Returns the bytes of the files.
    pub(super) fn finish(self, sink: &mut Sink, packer: &mut Packer) -> Result<u64, ArchiveError> {
        let Some(builder) = self.builder else { return Ok(0) };
        let mut bytes = 0;
        let mut buffer = vec![0; CHUNK_BYTES];
        let (files, keys) = builder.finish()?;
        for file in files {
            let mut source =
                File::open(&file.path).map_err(ArchiveError::io("open", &file.path))?;
            sink.begin()?;
            loop {
                let len =
                    fill(&mut source, &mut buffer).map_err(ArchiveError::io("read", &file.path))?;
                if len == 0 {
                    break;
                }
                sink.piece(packer, &buffer[..len])?;
            }
            bytes += sink.end(&EntryName::Index(file.name))?;
            std::fs::remove_file(&file.path).map_err(ArchiveError::io("remove", &file.path))?;
        }
        if let Some(keys) = keys {
            sink.whole(packer, &EntryName::Keys, &keys)?;
        }
        Ok(bytes)
    }
}

/// Reads until `buffer` is full or the source ends.
fn fill(source: &mut impl Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut len = 0;
    while len < buffer.len() {
        match source.read(&mut buffer[len..])? {
            0 => break,
            more => len += more,
        }
    }
    Ok(len)
}

/// Walks all entries. The header's word counts too, for the greatest: that is
/// what a broker's own time index holds.
fn times_of(batch: &CanonicalRecord, mut entries: Entries) -> Result<Times, BatchError> {
    let told = batch.header().max_timestamp;
    let mut times = Times { min: told, max: told };
    while let Some(entry) = entries.next_ref() {
        let timestamp = batch.effective_timestamp(entry?.timestamp);
        times = Times { min: timestamp, max: timestamp }.and(Some(times));
    }
    Ok(times)
}
