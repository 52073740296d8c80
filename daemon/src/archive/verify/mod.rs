//! Owns the proof that an object is the archive it should be: every byte of it,
//! read once, front to back.
//!
//! ```text
//!  stream --> envelope --> async-compression --> tar crate --> names, sizes, headers
//!             digests of    gzip CRC-32           '--> CRC-32 of every chunk
//!             every chunk,                             batches: offsets, CRC-32C, counts
//!             of the whole                             list of batches, metadata, table, footer
//! ```
//!
//! Gunzip and tar are foreign code on purpose: they show that others can read
//! what we wrote. Nothing is extracted; names come from a closed list, entries are
//! regular files with exactly the header that tierd writes.
//!
//! Not proven here, because it needs more than the object: that the batches are
//! the broker's.

mod bridge;
mod carried;
mod envelope;
mod logs;

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;

use bytes::Bytes;
use tokio::io::AsyncRead;

use self::bridge::{LocalFile, TarStream};
use self::envelope::Envelope;
use self::logs::{ListDigest, Log, LogWalk};
use super::batches::BatchList;
use super::error::ArchiveError;
use super::footer::{FOOTER_BYTES, Footer};
use super::keys::{KEYS_BYTES_MAX, KeyFilter};
use super::layout::{TAR_BLOCK, TAR_END_BYTES, padding, tar_header};
use super::metadata::{METADATA_BYTES, Metadata};
use super::names::EntryName;
use super::tally::Tally;
use super::toc::{Toc, TocFile, TocPlace};
use super::{ArchiveIdentity, ArchiveSummary, IndexLevel, UNKNOWN_TIMESTAMP};

/// Bytes of a payload read at a time.
const BUFFER_BYTES: usize = 128 << 10;
/// Longest list of batches that is read: a full archive's is a third of it.
const BATCH_LIST_BYTES_MAX: u64 = 128 << 20;

pub(super) use self::carried::verify_merged;

/// What an archive was proven to be.
#[derive(Clone, Debug)]
pub struct Verified {
    /// Whose it is.
    pub identity: ArchiveIdentity,
    /// Its facts; digest and length are those of the bytes read.
    pub summary: ArchiveSummary,
    /// Its table of contents.
    pub toc: Toc,
}

/// Verifies the archive in the file `path`. Blocks.
///
/// # Errors
/// The first thing that is wrong.
pub fn verify_file(path: &Path) -> Result<Verified, ArchiveError> {
    let mut file = File::open(path).map_err(ArchiveError::io("open", path))?;
    let (length, place, packed) = read_table(&mut file, path)?;
    match verify_stream(LocalFile(file), length, &packed, &place) {
        Err(ArchiveError::Stream { source }) => Err(ArchiveError::io("read", path)(source)),
        verified => verified,
    }
}

/// Verifies the new archive in the file `path`, which is one of `identity` and of which
/// all but the digest is known. Returns digest and table. Blocks.
pub(super) fn verify_new(
    path: &Path,
    identity: &ArchiveIdentity,
    summary: &ArchiveSummary,
) -> Result<([u8; 32], Toc), ArchiveError> {
    let verified = verify_file(path)?;
    let digest = verified.summary.digest;
    let expected = ArchiveSummary { digest, ..summary.clone() };
    if verified.summary != expected || verified.identity != *identity {
        let why = "the summary read back differs from the one written";
        return Err(ArchiveError::corrupt("the finished archive", why));
    }
    Ok((digest, verified.toc))
}

/// The length of the object in `file`, the place of its table and the table as it
/// lies, by its footer. The next read is at the beginning.
fn read_table(file: &mut File, path: &Path) -> Result<(u64, TocPlace, Vec<u8>), ArchiveError> {
    let length = file.metadata().map_err(ArchiveError::io("look at", path))?.len();
    let mut read = |range: Range<u64>| -> Result<Vec<u8>, ArchiveError> {
        let mut bytes = vec![0; (range.end - range.start) as usize];
        let done =
            file.seek(SeekFrom::Start(range.start)).and_then(|_| file.read_exact(&mut bytes));
        done.map_err(ArchiveError::io("read", path))?;
        Ok(bytes)
    };
    let range = Footer::range(length)
        .ok_or_else(|| ArchiveError::corrupt("the footer", "the file is too short to have one"))?;
    let footer = Footer::decode(&read(range)?, length)?;
    let packed = read(footer.toc.range())?;
    file.rewind().map_err(ArchiveError::io("read", path))?;
    Ok((length, footer.toc, packed))
}

/// Verifies the archive that `stream` yields from its first byte on: `length`
/// bytes, with the table of contents `packed_toc` at `place`, as catalog or
/// footer tell. Blocks while it drives the stream: call it on a blocking thread.
///
/// # Errors
/// The first thing that is wrong; a damaged chunk by its place, wherever it lies;
/// [`ArchiveError::Stream`] when the stream itself fails.
pub fn verify_stream<R: AsyncRead + Unpin>(
    stream: R,
    length: u64,
    packed_toc: &[u8],
    place: &TocPlace,
) -> Result<Verified, ArchiveError> {
    let toc = Toc::decode(packed_toc, place)?;
    let mut content = Content::new(&toc, *place, length);
    let tar = TarStream::new(stream, Envelope::new(&toc, place, length));
    let mut archive = tar::Archive::new(tar);
    let read = content.read(&mut archive);
    let mut tar = archive.into_inner();
    let read = read.and_then(|()| content.read_end(&mut tar));
    // The envelope knows which chunk is damaged, where gunzip knows only that one is.
    let envelope = tar.into_envelope().map_err(|source| ArchiveError::Stream { source })?;
    let digest = envelope.finish()?;
    read?;
    content.conclude(digest)
}

/// What gunzip or tar says of bytes they cannot read.
fn unreadable(error: &io::Error) -> ArchiveError {
    ArchiveError::corrupt("the tar stream", error.to_string())
}

/// What the files add up to.
struct Content<'a> {
    toc: &'a Toc,
    place: TocPlace,
    length: u64,
    metadata: Option<Metadata>,
    tally: Tally,
    chain: ListDigest,
    overlaps: ListDigest,
    buffer: Vec<u8>,
}

impl<'a> Content<'a> {
    fn new(toc: &'a Toc, place: TocPlace, length: u64) -> Self {
        Self {
            toc,
            place,
            length,
            metadata: None,
            tally: Tally::default(),
            chain: ListDigest::default(),
            overlaps: ListDigest::default(),
            buffer: vec![0; BUFFER_BYTES],
        }
    }

    /// Reads all entries: those of the table in its order, then table and footer.
    fn read<R: Read>(&mut self, archive: &mut tar::Archive<R>) -> Result<(), ArchiveError> {
        // Raw: an extension header is an entry like any other, and refused.
        let entries = archive.entries().map_err(|error| unreadable(&error))?;
        let mut entries = entries.raw(true);
        let mut next = |name: &EntryName, size: u64| {
            let entry = entries.next().transpose().map_err(|error| unreadable(&error))?;
            let entry =
                entry.ok_or_else(|| ArchiveError::corrupt(name.to_string(), "it is not there"))?;
            if entry.header().as_bytes() != &tar_header(&name.to_string(), size) {
                let why = "its tar header is not the one that belongs to it";
                return Err(ArchiveError::corrupt(name.to_string(), why));
            }
            Ok(entry)
        };
        let toc = self.toc;
        for file in &toc.files {
            let name = EntryName::parse(&file.name)?;
            let entry = next(&name, file.raw_len)?;
            self.read_file(&name, file, entry)?;
        }
        let raw_len = u64::from(self.place.raw);
        let mut bytes = Vec::new();
        let mut entry = next(&EntryName::Toc, raw_len)?;
        entry.read_to_end(&mut bytes).map_err(|error| unreadable(&error))?;
        if Toc::decode_raw(&bytes)? != *toc {
            return Err(ArchiveError::corrupt(EntryName::Toc.to_string(), "it reads differently"));
        }
        bytes.clear();
        let mut entry = next(&EntryName::Footer, FOOTER_BYTES as u64)?;
        entry.read_to_end(&mut bytes).map_err(|error| unreadable(&error))?;
        if Footer::decode(&bytes, self.length)?.toc != self.place {
            let why = "it does not tell where the table of contents lies";
            return Err(ArchiveError::corrupt(EntryName::Footer.to_string(), why));
        }
        match entries.next() {
            None => Ok(()),
            Some(_) => Err(ArchiveError::corrupt("the tar stream", "it goes on after the footer")),
        }
    }

    /// Reads what follows the last entry: zeros, as many as there should be.
    fn read_end<R: AsyncRead + Unpin>(&self, tar: &mut TarStream<R>) -> Result<(), ArchiveError> {
        let mut rest = Vec::new();
        // One byte more than there may be shows a stream that goes on.
        let most = TAR_END_BYTES as u64 + 1;
        tar.by_ref().take(most).read_to_end(&mut rest).map_err(|error| unreadable(&error))?;
        let entry = |size: u64| TAR_BLOCK as u64 + size + padding(size) as u64;
        let files: u64 = self.toc.files.iter().map(|file| entry(file.raw_len)).sum();
        let own = entry(u64::from(self.place.raw)) + entry(FOOTER_BYTES as u64);
        let expected = files + own + TAR_END_BYTES as u64;
        if tar.read_so_far() != expected || rest.iter().any(|byte| *byte != 0) {
            return Err(ArchiveError::corrupt("the tar stream", "its end is not two empty blocks"));
        }
        Ok(())
    }

    /// Reads one file chunk by chunk.
    fn read_file(
        &mut self,
        name: &EntryName,
        file: &TocFile,
        mut entry: impl Read,
    ) -> Result<(), ArchiveError> {
        let mut kept = Vec::new();
        let keep = matches!(name, EntryName::Metadata | EntryName::Keys | EntryName::Batches);
        let most = match name {
            EntryName::Metadata => METADATA_BYTES as u64,
            EntryName::Keys => KEYS_BYTES_MAX as u64,
            EntryName::Batches => BATCH_LIST_BYTES_MAX,
            _ => u64::MAX,
        };
        if file.raw_len > most {
            return Err(ArchiveError::corrupt(name.to_string(), "it is longer than it can be"));
        }
        let mut log = match name {
            EntryName::Log(_) => Some(LogWalk::new(Log::Chain, &mut self.tally, &mut self.chain)),
            EntryName::OverlapLog(_) => {
                Some(LogWalk::new(Log::Overlaps, &mut self.tally, &mut self.overlaps))
            }
            _ => None,
        };
        for chunk in self.toc.chunks_of(file) {
            let mut crc = crc32fast::Hasher::new();
            let mut left = chunk.raw as usize;
            while left > 0 {
                let room = left.min(BUFFER_BYTES);
                let len = entry.read(&mut self.buffer[..room]).map_err(|e| unreadable(&e))?;
                if len == 0 {
                    return Err(ArchiveError::corrupt(name.to_string(), "it is cut short"));
                }
                let bytes = &self.buffer[..len];
                crc.update(bytes);
                if let Some(log) = &mut log {
                    log.see(bytes)?;
                }
                if keep {
                    kept.extend_from_slice(bytes);
                }
                left -= len;
            }
            if crc.finalize() != chunk.crc32 {
                let part = format!("the chunk at {}", chunk.place);
                return Err(ArchiveError::corrupt(part, "its CRC-32 differs"));
            }
            if let Some(log) = &mut log {
                log.end_chunk(chunk)?;
            }
        }
        match name {
            EntryName::Metadata => self.begin(&kept),
            EntryName::Log(base) if *base != self.tally.first_base() => {
                Err(ArchiveError::corrupt(name.to_string(), "its name is not its first offset"))
            }
            EntryName::Keys => KeyFilter::decode(Bytes::from(kept)).map(drop),
            EntryName::Batches => self.compare_batches(Bytes::from(kept)),
            _ => Ok(()),
        }
    }

    /// Takes `metadata.json`, which comes first and tells the first offset tiled.
    fn begin(&mut self, bytes: &[u8]) -> Result<(), ArchiveError> {
        let metadata = Metadata::decode(bytes)?;
        self.tally = Tally::from(if metadata.tiles { metadata.base_offset } else { 0 });
        self.metadata = Some(metadata);
        Ok(())
    }

    /// Compares the list of batches with the batches.
    fn compare_batches(&self, bytes: Bytes) -> Result<(), ArchiveError> {
        let wrong = |why: &str| Err(ArchiveError::corrupt(EntryName::Batches.to_string(), why));
        let list = BatchList::decode(bytes)?;
        let same = ListDigest::of(list.chain()) == self.chain
            && ListDigest::of(list.overlaps()) == self.overlaps;
        if !same {
            return wrong("it does not list the batches that the logs hold");
        }
        let bases: HashSet<i64> = list.overlaps().map(|batch| batch.base).collect();
        let least = bases.iter().min();
        let named = self.toc.overlap_log().map(|file| file.name.as_str());
        if named != least.map(|base| EntryName::OverlapLog(*base).to_string()).as_deref() {
            return wrong("its least overlap is not the one the file is named by");
        }
        if list.chain().any(|batch| batch.rank.is_some() != bases.contains(&batch.base)) {
            return wrong("a rank stands where none belongs, or is missing");
        }
        Ok(())
    }

    /// Compares all facts with `metadata.json` and gives them out.
    fn conclude(self, digest: [u8; 32]) -> Result<Verified, ArchiveError> {
        let Self { toc, tally, metadata, .. } = self;
        let wrong = |why: &str| Err(ArchiveError::corrupt(EntryName::Metadata.to_string(), why));
        let Some(metadata) = metadata else { return wrong("it is not there") };
        let range = metadata.range()?;
        let tiles = tally.chain.batches > 0;
        let Some(hull) = tally.hull() else { return wrong("the archive holds no batch") };
        let offsets_fit = match tiles {
            true => range.last() + 1 == tally.next(),
            false => range == hull,
        };
        if !offsets_fit {
            return wrong("its offsets are not those of the batches");
        }
        let has_index = toc.file("index/meta.json").is_some();
        let index_files = toc.index_files().count();
        if has_index != (metadata.index_level != IndexLevel::None)
            || (!has_index && (index_files > 0 || toc.keys().is_some()))
        {
            return wrong("its index level is not that of the index");
        }
        let known = tally.times();
        let min_timestamp = metadata.min_timestamp_ms.unwrap_or(UNKNOWN_TIMESTAMP);
        // Only decoded records tell the least; the greatest may lie above the headers'.
        if metadata.max_timestamp_ms < known.max || min_timestamp > metadata.max_timestamp_ms {
            return wrong("its timestamps are not those of the batches");
        }
        if tally.epochs() != toc.epochs {
            let why = "its epochs are not those of the batches";
            return Err(ArchiveError::corrupt("the table of contents", why));
        }
        let summary = ArchiveSummary {
            range,
            tiles,
            batches: tally.chain.batches,
            records: tally.chain.records,
            log_bytes: tally.chain.bytes,
            overlaps: tally.overlaps.batches,
            overlap_bytes: tally.overlaps.bytes,
            bad_crcs: tally.bad_crcs,
            unindexed: metadata.unindexed_batches,
            min_timestamp,
            max_timestamp: metadata.max_timestamp_ms,
            leader_epochs: tally.leader_epochs(),
            index_level: metadata.index_level,
            index_bytes: toc.index_files().map(|file| file.raw_len).sum(),
            transactions: toc.transactions(),
            length: self.length,
            digest,
            toc: self.place,
        };
        let identity = metadata.identity()?;
        if Metadata::of(&identity, &summary) != metadata {
            return wrong("its counts are not those of the batches");
        }
        Ok(Verified { identity, summary, toc: toc.clone() })
    }
}

#[cfg(test)]
mod tests;
