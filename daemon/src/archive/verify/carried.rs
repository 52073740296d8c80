//! Owns the proof of an archive that was put together from proven ones: what was
//! carried over is the same to the byte, and everything around it is as it must be.
//!
//! ```text
//!  gzip header | glue | chunk chunk .. | glue | chunk .. | glue | table | glue | trailer
//!                 |        '- carried: its entry and its BLAKE3-128 are those of a chunk
//!                 |           of an archive whose digest a manifest pins; else unpacked
//!                 '- padding, tar headers, footer: compared with what belongs there
//! ```
//!
//! A carried chunk was inflated by foreign code, and its batches were walked, when
//! its own archive was made. So it is not inflated again: digests say that it is the
//! same, the CRC-32 of the tar stream is put together from the chunks', and the list
//! of batches must fall on the chunks, batch by batch.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use bytes::Bytes;
use crc32fast::Hasher;

use super::read_table;
use crate::archive::batches::{BatchList, BatchRef};
use crate::archive::chunk::{Chunk, digest128};
use crate::archive::error::ArchiveError;
use crate::archive::footer::{FOOTER_BYTES, Footer};
use crate::archive::layout::{
    GZIP_HEADER, GZIP_TRAILER_BYTES, STORED_HEADER_BYTES, TAR_END_BYTES, gzip_trailer, padding,
    stored_header, tar_header,
};
use crate::archive::metadata::Metadata;
use crate::archive::names::EntryName;
use crate::archive::toc::Toc;
use crate::archive::{ArchiveIdentity, ArchiveSummary};

/// Read buffer: a few usual chunks.
const BUFFER_BYTES: usize = 1 << 20;

/// Verifies the archive in the file `path`, of which all but the digest is known, and
/// whose chunks, as far as they are `carried` (their place is 0 there), were proven
/// before. Returns digest and table. Blocks.
pub(in crate::archive) fn verify_merged(
    path: &Path,
    identity: &ArchiveIdentity,
    summary: &ArchiveSummary,
    carried: &HashSet<Chunk>,
) -> Result<([u8; 32], Toc), ArchiveError> {
    let mut file = File::open(path).map_err(ArchiveError::io("open", path))?;
    let (length, place, packed) = read_table(&mut file, path)?;
    let toc = Toc::decode(&packed, &place)?;
    if (length, place) != (summary.length, summary.toc) {
        return Err(wrong("its table lies somewhere else"));
    }
    let mut walk = Walk {
        file: BufReader::with_capacity(BUFFER_BYTES, file),
        path,
        position: 0,
        whole: blake3::Hasher::new(),
        crc: Hasher::new(),
        tar_len: 0,
        is_over: false,
    };
    if walk.take(GZIP_HEADER.len())? != GZIP_HEADER {
        return Err(wrong("its gzip header is another"));
    }
    let (mut due, mut metadata, mut list) = (Vec::new(), Vec::new(), Vec::new());
    for file in &toc.files {
        let name = EntryName::parse(&file.name)?;
        due.extend_from_slice(&tar_header(&file.name, file.raw_len));
        for chunk in toc.chunks_of(file) {
            walk.glue(chunk.place, &mut due)?;
            let packed = walk.take(chunk.packed as usize)?;
            walk.count(chunk.crc32, chunk.raw);
            if carried.contains(&Chunk { place: 0, ..*chunk }) {
                if digest128(&packed) != chunk.digest {
                    return Err(wrong(&format!("the chunk at {} differs", chunk.place)));
                }
                continue;
            }
            let raw = chunk.unpack(packed.into())?;
            match name {
                EntryName::Metadata => metadata.extend_from_slice(&raw),
                EntryName::Batches => list.extend_from_slice(&raw),
                _ => {}
            }
        }
        due.resize(due.len() + padding(file.raw_len), 0);
    }

    due.extend_from_slice(&tar_header(&EntryName::Toc.to_string(), place.raw.into()));
    walk.glue(place.offset, &mut due)?;
    if walk.take(place.length as usize)? != packed {
        return Err(wrong("its table reads differently"));
    }
    let raw = place.encoding.undo(&Bytes::from(packed), place.raw)?;
    walk.count(crc32fast::hash(&raw), place.raw);
    due.resize(padding(place.raw.into()), 0);
    due.extend_from_slice(&tar_header(&EntryName::Footer.to_string(), FOOTER_BYTES as u64));
    due.extend_from_slice(&Footer { toc: place, object_length: length }.encode());
    due.resize(due.len() + TAR_END_BYTES, 0);
    walk.glue(length - GZIP_TRAILER_BYTES as u64, &mut due)?;
    let trailer = gzip_trailer(walk.crc.clone().finalize(), walk.tar_len);
    if !walk.is_over || walk.take(GZIP_TRAILER_BYTES)? != trailer {
        return Err(wrong("its gzip trailer is not that of its parts"));
    }

    if Metadata::decode(&metadata)? != Metadata::of(identity, summary) {
        return Err(wrong("its metadata is not the sum of its parts"));
    }
    check_list(&toc, &BatchList::decode(list.into())?, summary)?;
    Ok((*walk.whole.finalize().as_bytes(), toc))
}

fn wrong(why: &str) -> ArchiveError {
    ArchiveError::corrupt("the merged archive", why)
}

/// The object, front to back.
struct Walk<'a> {
    file: BufReader<File>,
    path: &'a Path,
    position: u64,
    whole: blake3::Hasher,
    /// CRC-32 and length of the tar stream so far.
    crc: Hasher,
    tar_len: u64,
    /// Whether the last deflate block has been.
    is_over: bool,
}

impl Walk<'_> {
    fn take(&mut self, len: usize) -> Result<Vec<u8>, ArchiveError> {
        let mut bytes = vec![0; len];
        self.file.read_exact(&mut bytes).map_err(ArchiveError::io("read", self.path))?;
        self.whole.update(&bytes);
        self.position += len as u64;
        Ok(bytes)
    }

    /// Stored blocks up to `until`, which must hold what is `due`; nothing is then.
    fn glue(&mut self, until: u64, due: &mut Vec<u8>) -> Result<(), ArchiveError> {
        let mut found = Vec::with_capacity(due.len());
        while self.position < until && !self.is_over {
            let header = self.take(STORED_HEADER_BYTES)?;
            let len = u16::from_le_bytes([header[1], header[2]]);
            self.is_over = header[0] == 1;
            if header != stored_header(len, self.is_over) {
                return Err(wrong("what lies between its chunks is no stored block"));
            }
            found.extend_from_slice(&self.take(len.into())?);
        }
        if self.position != until || found != *due {
            return Err(wrong("what lies between its chunks is not what belongs there"));
        }
        self.count(crc32fast::hash(&found), found.len() as u32);
        due.clear();
        Ok(())
    }

    /// Counts a part of the tar stream.
    fn count(&mut self, crc32: u32, raw: u32) {
        self.crc.combine(&Hasher::new_with_initial_len(crc32, raw.into()));
        self.tar_len += u64::from(raw);
    }
}

/// Compares the list of batches with the chunks it must fall on, and with the sums.
fn check_list(toc: &Toc, list: &BatchList, summary: &ArchiveSummary) -> Result<(), ArchiveError> {
    let chain = toc.log().map_or(&[][..], |file| toc.chunks_of(file));
    let overlaps = toc.overlap_log().map_or(&[][..], |file| toc.chunks_of(file));
    let counts = (
        falls_on(list.chain(), chain).ok_or_else(|| wrong("its chunks do not end its batches"))?,
        falls_on(list.overlaps(), overlaps)
            .ok_or_else(|| wrong("its chunks do not end the batches beneath"))?,
    );
    let told = ((summary.batches, summary.log_bytes), (summary.overlaps, summary.overlap_bytes));
    let mut next = summary.range.base();
    let ascends = list.chain().all(|batch| {
        let follows = batch.last >= next;
        next = batch.last + 1;
        follows
    });
    if counts != told || !ascends || next != summary.range.end() {
        return Err(wrong("its list of batches is not the sum of its parts"));
    }
    Ok(())
}

/// How many batches and bytes `chunks` hold; `None` where a chunk is not exactly some
/// of the `batches`, in order, or some are left.
fn falls_on(mut batches: impl Iterator<Item = BatchRef>, chunks: &[Chunk]) -> Option<(u32, u64)> {
    let (mut count, mut bytes) = (0, 0);
    for chunk in chunks {
        let (mut left, mut first, mut last) = (chunk.raw, i64::MAX, i64::MIN);
        while left > 0 {
            let batch = batches.next()?;
            left = left.checked_sub(batch.len)?;
            (first, last) = (first.min(batch.base), last.max(batch.last));
            (count, bytes) = (count + 1, bytes + u64::from(batch.len));
        }
        if (first, last) != (chunk.first, chunk.last) {
            return None;
        }
    }
    batches.next().is_none().then_some((count, bytes))
}
