//! Owns the table of contents: which file lies in which chunks, and what a
//! reader must know beside the batches.
//!
//! ```text
//!  0            8         10           11     12        16
//!  | "TIERDTOC" | version | encryption | zero | sections | sections ...
//!  |            | u16     | u8, 0 none | u8   | u32      |
//!
//!  section:  | kind u16 | flags u16 | length u32 | payload |     ascending by kind, each once
//!            flags: bit 0 a reader must understand it; the others are zero
//!
//!  1 files     u32 count, then each: name length u8, name, raw length u64, chunks u32.
//!              In the order of the tar entries; the chunks of a file follow those of
//!              the file before. The table itself and the footer are not listed.
//!  2 chunks    64 bytes each, see `chunk`
//!  3 epochs    12 bytes each: leader epoch i32, first offset i64; both ascending
//!  4 ended     25 bytes each: producer id i64, first offset i64 or -1, marker's offset
//!              i64, u8: 0 committed, 1 aborted; ascending by marker
//!  5 open      16 bytes each: producer id i64, first offset i64; ascending by producer
//! ```
//!
//! Sections 4 and 5 say of transactions what the archive's own batches say, see
//! `transactions`. (Before any release, 4 listed aborted transactions and 5 the open
//! ones as the whole log before the archive had them: a gap filled later made both
//! untrue.)
//!
//! All five are written always, required, and little-endian. In the object the
//! table is one packed piece, the payload of the tar entry `.tierd/toc`;
//! [`TocPlace`] says where and how.

use std::ops::Range;

use bytes::{Buf, BufMut, Bytes};

use super::chunk::{CHUNK_ENTRY_BYTES, Chunk, Digest128, Encoding, digest128};
use super::error::{ArchiveError, check_version, cut_short};
use super::names::EntryName;
use super::{EndedTransaction, FORMAT_VERSION, OpenTransaction, layout};
use crate::record::OffsetRange;

/// Largest table of contents, raw. A full archive stays below half of it; a
/// length above is damage and must not be allocated.
pub const TOC_RAW_BYTES_MAX: u32 = 16 << 20;

/// Most files. Sixteen index segments of six files and five files more make 101;
/// the rest is for batches so large that they need index segments of their own.
const FILES_MAX: usize = 4096;

const PART: &str = "the table of contents";
const MAGIC: &[u8; 8] = b"TIERDTOC";
const REQUIRED: u16 = 1;
const FILES: u16 = 1;
const CHUNKS: u16 = 2;
const EPOCHS: u16 = 3;
const ENDED: u16 = 4;
const OPEN: u16 = 5;
const EPOCH_BYTES: usize = 12;
const ENDED_BYTES: usize = 25;
const OPEN_BYTES: usize = 16;
/// The first offset of a transaction that has none here.
const NO_OFFSET: i64 = -1;

/// Where the table of contents lies in the object, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TocPlace {
    /// Position of its first byte.
    pub offset: u64,
    /// Bytes as they lie.
    pub length: u32,
    /// Bytes once unpacked.
    pub raw: u32,
    /// How it lies.
    pub encoding: Encoding,
    /// BLAKE3-128 of the bytes as they lie.
    pub digest: Digest128,
}

impl TocPlace {
    /// The byte range to ask the store for.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        self.offset..self.offset.saturating_add(u64::from(self.length))
    }

    /// Refuses places that no archive of `object_length` bytes can have.
    pub(super) fn check(&self, part: &'static str, object_length: u64) -> Result<(), ArchiveError> {
        let end = self.offset.checked_add(u64::from(self.length));
        if self.length == 0
            || self.raw == 0
            || self.raw > TOC_RAW_BYTES_MAX
            || self.length as usize > layout::stored_len(self.raw as usize)
            || end.is_none_or(|end| end > object_length)
        {
            return Err(ArchiveError::corrupt(part, "the table of contents has no possible place"));
        }
        Ok(())
    }
}

/// A file of the archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TocFile {
    /// The name of its tar entry.
    pub name: String,
    /// Its length in bytes.
    pub raw_len: u64,
    /// Its chunks, as positions in [`Toc::chunks`].
    pub chunks: Range<u32>,
}

/// The table of contents.
///
/// Invariants: files are in order and have names that archives have, each once;
/// their chunks tile [`Self::chunks`] and their lengths; the chunks of one file
/// touch each other in the object, no two overlap, and all lie in front of the
/// table; chunks of `.log` ascend by last offset.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Toc {
    /// The files, in the order of the tar entries.
    pub files: Vec<TocFile>,
    /// The chunks of all files.
    pub chunks: Vec<Chunk>,
    /// Leader epochs with the first offset each was seen at, both ascending.
    pub epochs: Vec<(i32, i64)>,
    /// The first marker of each producer and every further abort, ascending by
    /// marker.
    pub ended: Vec<EndedTransaction>,
    /// Transactions with records here and no marker behind these here, ascending by
    /// producer.
    pub open: Vec<OpenTransaction>,
}

impl Toc {
    /// The chain of batches, if the archive tiles anything.
    #[must_use]
    pub fn log(&self) -> Option<&TocFile> {
        self.find(|name| matches!(name, EntryName::Log(_)))
    }

    /// The superseded batches, if there are any.
    #[must_use]
    pub fn overlap_log(&self) -> Option<&TocFile> {
        self.find(|name| matches!(name, EntryName::OverlapLog(_)))
    }

    /// The list of all batches, see [`super::BatchList`].
    ///
    /// # Errors
    /// Never for a table that was decoded.
    pub fn batches(&self) -> Result<&TocFile, ArchiveError> {
        let found = self.find(|name| matches!(name, EntryName::Batches));
        found.ok_or_else(|| ArchiveError::corrupt(PART, "it has no list of batches"))
    }

    /// Which keys the archive may hold, see [`super::KeyFilter`]; older archives and
    /// those without an index do not tell.
    #[must_use]
    pub fn keys(&self) -> Option<&TocFile> {
        self.find(|name| matches!(name, EntryName::Keys))
    }

    /// The file called `name`.
    #[must_use]
    pub fn file(&self, name: &str) -> Option<&TocFile> {
        self.files.iter().find(|file| file.name == name)
    }

    /// The files of the search index, with `index/` in front of their names.
    pub fn index_files(&self) -> impl Iterator<Item = &TocFile> {
        self.files.iter().filter(|file| file.name.starts_with("index/"))
    }

    /// The chunks of a file of this table.
    #[must_use]
    pub fn chunks_of(&self, file: &TocFile) -> &[Chunk] {
        self.chunks.get(file.chunks.start as usize..file.chunks.end as usize).unwrap_or(&[])
    }

    /// The chunks of `.log` that hold the chain's batches for `range`: those from
    /// the first whose last offset reaches it to the last that begins inside it.
    #[must_use]
    pub fn log_chunks(&self, range: OffsetRange) -> &[Chunk] {
        let chunks = self.log().map_or(&[][..], |log| self.chunks_of(log));
        let from = chunks.partition_point(|chunk| chunk.last < range.base());
        // Up to the chunk that reaches the end: what comes after it is superseded there.
        let to = chunks.partition_point(|chunk| chunk.last < range.last());
        let to = (to + 1).min(chunks.len());
        let found = chunks.get(from..to).unwrap_or(&[]);
        match found {
            [.., last] if last.first > range.last() => &found[..found.len() - 1],
            _ => found,
        }
    }

    /// Entries of both lists of transactions.
    #[must_use]
    pub fn transactions(&self) -> u32 {
        (self.ended.len() + self.open.len()) as u32
    }

    fn find(&self, wanted: impl Fn(&EntryName) -> bool) -> Option<&TocFile> {
        self.files.iter().find(|file| EntryName::parse(&file.name).is_ok_and(|name| wanted(&name)))
    }

    /// Writes the table, not yet packed.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(1024 + self.chunks.len() * CHUNK_ENTRY_BYTES);
        out.put_slice(MAGIC);
        out.put_u16_le(FORMAT_VERSION);
        out.put_u8(0);
        out.put_u8(0);
        out.put_u32_le(5);
        section(&mut out, FILES, |out| {
            out.put_u32_le(self.files.len() as u32);
            for file in &self.files {
                out.put_u8(file.name.len() as u8);
                out.put_slice(file.name.as_bytes());
                out.put_u64_le(file.raw_len);
                out.put_u32_le(file.chunks.end - file.chunks.start);
            }
        });
        section(&mut out, CHUNKS, |out| {
            for chunk in &self.chunks {
                chunk.encode(out);
            }
        });
        section(&mut out, EPOCHS, |out| {
            for (epoch, first_offset) in &self.epochs {
                out.put_i32_le(*epoch);
                out.put_i64_le(*first_offset);
            }
        });
        section(&mut out, ENDED, |out| {
            for ended in &self.ended {
                out.put_i64_le(ended.producer_id);
                out.put_i64_le(ended.first_offset.unwrap_or(NO_OFFSET));
                out.put_i64_le(ended.marker);
                out.put_u8(u8::from(ended.aborted));
            }
        });
        section(&mut out, OPEN, |out| {
            for open in &self.open {
                out.put_i64_le(open.producer_id);
                out.put_i64_le(open.first_offset);
            }
        });
        out
    }

    /// Verifies, unpacks and reads the table from the bytes at `place`. Allocates
    /// in proportion to the bytes that are there, whatever they say.
    ///
    /// # Errors
    /// Names what is wrong, or which later version wrote it.
    pub fn decode(packed: &[u8], place: &TocPlace) -> Result<Self, ArchiveError> {
        place.check(PART, u64::MAX)?;
        if packed.len() != place.length as usize {
            return Err(ArchiveError::corrupt(PART, "the bytes read are not as many as it has"));
        }
        if digest128(packed) != place.digest {
            return Err(ArchiveError::corrupt(PART, "its BLAKE3 digest differs"));
        }
        let raw = place.encoding.undo(&Bytes::copy_from_slice(packed), place.raw)?;
        let toc = Self::decode_raw(&raw)?;
        toc.check(place.offset)?;
        Ok(toc)
    }

    /// Reads the unpacked table, without the checks between its parts.
    pub(super) fn decode_raw(mut bytes: &[u8]) -> Result<Self, ArchiveError> {
        let cut = cut_short(PART);
        let wrong = |why: &str| Err(ArchiveError::corrupt(PART, why));
        let mut magic = [0; 8];
        bytes.try_copy_to_slice(&mut magic).map_err(&cut)?;
        if &magic != MAGIC {
            return wrong("it does not begin with TIERDTOC");
        }
        check_version(PART, bytes.try_get_u16_le().map_err(&cut)?)?;
        let encryption = bytes.try_get_u8().map_err(&cut)?;
        if encryption != 0 {
            let what = format!("encryption scheme {encryption}");
            return Err(ArchiveError::Unknown { part: PART, what });
        }
        if bytes.try_get_u8().map_err(&cut)? != 0 {
            return wrong("a reserved byte is not zero");
        }
        let sections = bytes.try_get_u32_le().map_err(&cut)?;
        let mut toc = Self::default();
        let mut seen = Vec::new();
        for _ in 0..sections {
            let kind = bytes.try_get_u16_le().map_err(&cut)?;
            let flags = bytes.try_get_u16_le().map_err(&cut)?;
            let length = bytes.try_get_u32_le().map_err(&cut)? as usize;
            let Some((payload, rest)) = bytes.split_at_checked(length) else {
                return wrong("a section is longer than the table");
            };
            bytes = rest;
            if seen.last().is_some_and(|before| *before >= kind) {
                return wrong("its sections do not ascend");
            }
            seen.push(kind);
            if flags & !REQUIRED != 0 || (kind <= OPEN && flags != REQUIRED) {
                return wrong("a section's flags are not those it can have");
            }
            match kind {
                FILES => toc.files = decode_files(payload)?,
                CHUNKS => toc.chunks = decode_all(payload, CHUNK_ENTRY_BYTES, Chunk::decode)?,
                EPOCHS => toc.epochs = decode_all(payload, EPOCH_BYTES, decode_epoch)?,
                ENDED => toc.ended = decode_all(payload, ENDED_BYTES, decode_ended)?,
                OPEN => toc.open = decode_all(payload, OPEN_BYTES, decode_open)?,
                _ if flags & REQUIRED == 0 => {}
                _ => {
                    let what = format!("section {kind}");
                    return Err(ArchiveError::Unknown { part: PART, what });
                }
            }
        }
        if !bytes.is_empty() {
            return wrong("bytes follow its last section");
        }
        if [FILES, CHUNKS, EPOCHS, ENDED, OPEN].iter().any(|kind| !seen.contains(kind)) {
            return wrong("a section is missing");
        }
        Ok(toc)
    }

    /// Checks the parts against each other. `end` is where the table lies, and
    /// all chunks lie in front of it.
    fn check(&self, end: u64) -> Result<(), ArchiveError> {
        let wrong = |why: String| Err(ArchiveError::corrupt(PART, why));
        let mut names = Vec::with_capacity(self.files.len());
        let mut next_chunk = 0;
        let mut next_place = layout::GZIP_HEADER.len() as u64;
        for file in &self.files {
            let name = EntryName::parse(&file.name)?;
            if file.chunks.start != next_chunk || file.chunks.end as usize > self.chunks.len() {
                return wrong(format!("{name} has chunks that are not there"));
            }
            next_chunk = file.chunks.end;
            let chunks = self.chunks_of(file);
            let raw_len: u64 = chunks.iter().map(|chunk| u64::from(chunk.raw)).sum();
            if raw_len != file.raw_len {
                return wrong(format!("the chunks of {name} are not as long as the file"));
            }
            let touching = chunks.windows(2).all(|pair| pair[0].end() == pair[1].place);
            if chunks.first().is_some_and(|first| first.place < next_place) || !touching {
                return wrong(format!("the chunks of {name} overlap or leave a hole"));
            }
            next_place = chunks.last().map_or(next_place, Chunk::end);
            check_positions(&name, chunks)?;
            names.push(name);
        }
        let ordered = names.windows(2).all(|pair| {
            // Two logs of one kind differ in name but may not both be there.
            pair[0] < pair[1]
                && (std::mem::discriminant(&pair[0]) != std::mem::discriminant(&pair[1])
                    || matches!(pair[0], EntryName::Index(_)))
        });
        if !ordered
            || names.first() != Some(&EntryName::Metadata)
            || names.last() != Some(&EntryName::Batches)
        {
            return wrong("its files are not those of an archive, in order".to_owned());
        }
        if next_chunk as usize != self.chunks.len() {
            return wrong("it has chunks that belong to no file".to_owned());
        }
        if next_place > end {
            return wrong("a chunk lies behind the table".to_owned());
        }
        if !self.epochs.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1)
            || !self.ended.is_sorted_by_key(|ended| ended.marker)
            || !self.open.is_sorted_by(|a, b| a.producer_id < b.producer_id)
        {
            return wrong("epochs or transactions do not ascend".to_owned());
        }
        Ok(())
    }
}

/// Checks `first` and `last` of the chunks of one file.
fn check_positions(name: &EntryName, chunks: &[Chunk]) -> Result<(), ArchiveError> {
    let fits = match name {
        EntryName::Log(_) => chunks.is_sorted_by(|a, b| a.last < b.last),
        EntryName::OverlapLog(_) => true,
        _ => {
            let mut next = 0;
            chunks.iter().all(|chunk| {
                let first = next;
                next += i64::from(chunk.raw);
                chunk.first == first && chunk.last == next - 1
            })
        }
    };
    if fits {
        return Ok(());
    }
    Err(ArchiveError::corrupt(PART, format!("the chunks of {name} are not in order")))
}

fn section(out: &mut Vec<u8>, kind: u16, payload: impl FnOnce(&mut Vec<u8>)) {
    out.put_u16_le(kind);
    out.put_u16_le(REQUIRED);
    let length_at = out.len();
    out.put_u32_le(0);
    payload(out);
    let length = (out.len() - length_at - 4) as u32;
    out[length_at..length_at + 4].copy_from_slice(&length.to_le_bytes());
}

fn decode_files(mut bytes: &[u8]) -> Result<Vec<TocFile>, ArchiveError> {
    let cut = cut_short(PART);
    let count = bytes.try_get_u32_le().map_err(&cut)? as usize;
    if count > FILES_MAX {
        return Err(ArchiveError::corrupt(PART, "it has more files than an archive has"));
    }
    let mut files = Vec::new();
    let mut next: u32 = 0;
    for _ in 0..count {
        let length = usize::from(bytes.try_get_u8().map_err(&cut)?);
        let Some((name, rest)) = bytes.split_at_checked(length) else {
            return Err(ArchiveError::corrupt(PART, "a file name is cut short"));
        };
        bytes = rest;
        let name = String::from_utf8(name.to_vec())
            .map_err(|_| ArchiveError::corrupt(PART, "a file name is not UTF-8"))?;
        let raw_len = bytes.try_get_u64_le().map_err(&cut)?;
        let chunks = bytes.try_get_u32_le().map_err(&cut)?;
        let Some(end) = next.checked_add(chunks) else {
            return Err(ArchiveError::corrupt(PART, format!("{name} has too many chunks")));
        };
        files.push(TocFile { name, raw_len, chunks: next..end });
        next = end;
    }
    if !bytes.is_empty() {
        return Err(ArchiveError::corrupt(PART, "bytes follow the last file"));
    }
    Ok(files)
}

fn decode_all<T>(
    bytes: &[u8],
    width: usize,
    decode: impl Fn(&[u8]) -> Result<T, ArchiveError>,
) -> Result<Vec<T>, ArchiveError> {
    if !bytes.len().is_multiple_of(width) {
        return Err(ArchiveError::corrupt(PART, "a section ends inside an entry"));
    }
    bytes.chunks_exact(width).map(decode).collect()
}

fn decode_epoch(mut bytes: &[u8]) -> Result<(i32, i64), ArchiveError> {
    let cut = cut_short(PART);
    Ok((bytes.try_get_i32_le().map_err(&cut)?, bytes.try_get_i64_le().map_err(&cut)?))
}

fn decode_ended(mut bytes: &[u8]) -> Result<EndedTransaction, ArchiveError> {
    let cut = cut_short(PART);
    let producer_id = bytes.try_get_i64_le().map_err(&cut)?;
    let first_offset = match bytes.try_get_i64_le().map_err(&cut)? {
        NO_OFFSET => None,
        first if first >= 0 => Some(first),
        _ => return Err(ArchiveError::corrupt(PART, "a transaction begins below offset 0")),
    };
    let marker = bytes.try_get_i64_le().map_err(&cut)?;
    let aborted = match bytes.try_get_u8().map_err(&cut)? {
        0 => false,
        1 => true,
        _ => return Err(ArchiveError::corrupt(PART, "a marker neither commits nor aborts")),
    };
    Ok(EndedTransaction { producer_id, first_offset, marker, aborted })
}

fn decode_open(mut bytes: &[u8]) -> Result<OpenTransaction, ArchiveError> {
    let cut = cut_short(PART);
    Ok(OpenTransaction {
        producer_id: bytes.try_get_i64_le().map_err(&cut)?,
        first_offset: bytes.try_get_i64_le().map_err(&cut)?,
    })
}

#[cfg(test)]
mod tests;
