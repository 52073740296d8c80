//! Owns the object while it is written: the scratch file, the position in it,
//! the CRC-32 of the tar stream, and the two places that are filled in later.
//!
//! A tar header stands before its payload but says how long that is, so a header
//! is first written as zeros and patched when its entry ends; `metadata.json` is
//! patched at the very end. The CRC-32 of the whole is put together from the
//! CRC-32 of the parts, in the order in which they lie, not in which they come.

use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crc32fast::Hasher;

use super::chunk::{Chunk, NO_TIMESTAMP, digest128};
use super::error::ArchiveError;
use super::footer::{FOOTER_BYTES, FOOTER_DISTANCE, Footer};
use super::layout::{
    GZIP_HEADER, STORED_HEADER_BYTES, TAR_BLOCK, TAR_END_BYTES, gzip_trailer, padding, store,
    stored_header, stored_len, tar_header,
};
use super::metadata::METADATA_BYTES;
use super::names::EntryName;
use super::pack::{Content, Packed, Packer};
use super::toc::{Toc, TocFile, TocPlace};
use super::writer::CHUNK_BYTES;

/// Write buffer: one usual chunk, so that most chunks are one write.
const BUFFER_BYTES: usize = 256 << 10;
/// Where the chunk of `metadata.json` lies, behind its tar header.
const METADATA_AT: u64 = (GZIP_HEADER.len() + STORED_HEADER_BYTES + TAR_BLOCK) as u64;

/// What a chunk holds, for its entry in the table.
#[derive(Clone, Copy, Debug)]
pub(super) struct ChunkOf {
    pub(super) first: i64,
    pub(super) last: i64,
    pub(super) max_timestamp: i64,
}

/// The object under way.
#[derive(Debug)]
pub(super) struct Sink {
    file: BufWriter<File>,
    path: PathBuf,
    /// Bytes of the object so far.
    position: u64,
    /// CRC-32 of the tar stream behind `metadata.json`, without the open entry.
    crc: Hasher,
    /// Bytes of the tar stream so far, all included.
    tar_len: u64,
    /// Zeros owed to the payload that ended last.
    owed: usize,
    entry: Option<OpenEntry>,
    files: Vec<TocFile>,
    chunks: Vec<Chunk>,
}

#[derive(Debug)]
struct OpenEntry {
    header_at: u64,
    first_chunk: u32,
    size: u64,
    crc: Hasher,
}

impl Sink {
    /// Begins an object in the new file `path`, with room for `metadata.json`.
    pub(super) fn create(path: &Path) -> Result<Self, ArchiveError> {
        let file = File::create_new(path).map_err(ArchiveError::io("create", path))?;
        let mut sink = Self {
            file: BufWriter::with_capacity(BUFFER_BYTES, file),
            path: path.to_owned(),
            position: 0,
            crc: Hasher::new(),
            tar_len: (TAR_BLOCK + METADATA_BYTES) as u64,
            owed: 0,
            entry: None,
            files: Vec::new(),
            chunks: Vec::new(),
        };
        sink.write(&GZIP_HEADER)?;
        sink.write(&[0; STORED_HEADER_BYTES + TAR_BLOCK])?;
        sink.write(&[0; STORED_HEADER_BYTES + METADATA_BYTES])?;
        // Its chunk comes first in the table and is filled in with it.
        sink.files.push(TocFile {
            name: EntryName::Metadata.to_string(),
            raw_len: METADATA_BYTES as u64,
            chunks: 0..1,
        });
        sink.chunks.push(Chunk {
            place: METADATA_AT,
            packed: stored_len(METADATA_BYTES) as u32,
            raw: METADATA_BYTES as u32,
            crc32: 0,
            encoding: super::Encoding::Stored,
            first: 0,
            last: METADATA_BYTES as i64 - 1,
            max_timestamp: NO_TIMESTAMP,
            digest: [0; 16],
        });
        Ok(sink)
    }

    /// Where the file is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Begins an entry; name and size are told when it ends.
    pub(super) fn begin(&mut self) -> Result<(), ArchiveError> {
        debug_assert!(self.entry.is_none());
        let owed = self.pay();
        let glue = vec![0; owed + TAR_BLOCK];
        self.write(&stored_header(glue.len() as u16, false))?;
        let header_at = self.position + owed as u64;
        self.write(&glue)?;
        self.tar_len += TAR_BLOCK as u64;
        self.entry = Some(OpenEntry {
            header_at,
            first_chunk: self.chunks.len() as u32,
            size: 0,
            crc: Hasher::new(),
        });
        Ok(())
    }

    /// Adds `packed`, which holds `raw_len` bytes, to the open entry.
    pub(super) fn chunk(
        &mut self,
        packed: &Packed<'_>,
        raw_len: usize,
        of: ChunkOf,
    ) -> Result<(), ArchiveError> {
        let place = self.position;
        let (len, digest) = packed.write(|piece| self.write(piece))?;
        self.chunks.push(Chunk {
            place,
            packed: len,
            raw: raw_len as u32,
            crc32: packed.crc32,
            encoding: packed.encoding,
            first: of.first,
            last: of.last,
            max_timestamp: of.max_timestamp,
            digest,
        });
        self.add(packed.crc32, raw_len as u64);
        Ok(())
    }

    /// Adds a chunk of another object to the open entry, as it lies there: `packed`
    /// are its bytes.
    pub(super) fn carry(&mut self, chunk: &Chunk, packed: &[u8]) -> Result<(), ArchiveError> {
        let place = self.position;
        self.write(packed)?;
        self.chunks.push(Chunk { place, ..*chunk });
        self.add(chunk.crc32, u64::from(chunk.raw));
        Ok(())
    }

    /// Counts a chunk of `len` bytes, raw, to the open entry.
    fn add(&mut self, crc32: u32, len: u64) {
        self.tar_len += len;
        if let Some(entry) = &mut self.entry {
            entry.size += len;
            entry.crc.combine(&Hasher::new_with_initial_len(crc32, len));
        }
    }

    /// Packs `raw` as the next chunk of the open entry, for files cut by length.
    pub(super) fn piece(&mut self, packer: &mut Packer, raw: &[u8]) -> Result<(), ArchiveError> {
        let first = self.entry.as_ref().map_or(0, |entry| entry.size) as i64;
        let last = first + raw.len() as i64 - 1;
        let packed = packer.pack(raw, Content::Unknown);
        self.chunk(&packed, raw.len(), ChunkOf { first, last, max_timestamp: NO_TIMESTAMP })
    }

    /// Adds an entry cut by length. Returns its size.
    pub(super) fn whole(
        &mut self,
        packer: &mut Packer,
        name: &EntryName,
        raw: &[u8],
    ) -> Result<u64, ArchiveError> {
        self.begin()?;
        for piece in raw.chunks(CHUNK_BYTES) {
            self.piece(packer, piece)?;
        }
        self.end(name)
    }

    /// Ends the open entry and writes its header. Returns its size.
    pub(super) fn end(&mut self, name: &EntryName) -> Result<u64, ArchiveError> {
        let Some(entry) = self.entry.take() else { return Ok(0) };
        let name = name.to_string();
        let header = tar_header(&name, entry.size);
        self.patch(entry.header_at, &header)?;
        self.crc.update(&header);
        self.crc.combine(&entry.crc);
        self.owed = padding(entry.size);
        let chunks = entry.first_chunk..self.chunks.len() as u32;
        self.files.push(TocFile { name, raw_len: entry.size, chunks });
        Ok(entry.size)
    }

    /// Writes `metadata`, table and footer and closes the file. `toc` brings
    /// epochs and transactions, files and chunks come from here. Returns the
    /// object's length and the place of the table.
    pub(super) fn finish(
        mut self,
        packer: &mut Packer,
        metadata: &[u8; METADATA_BYTES],
        mut toc: Toc,
    ) -> Result<(u64, TocPlace), ArchiveError> {
        let front = self.front(metadata);
        toc.files = std::mem::take(&mut self.files);
        toc.chunks = std::mem::take(&mut self.chunks);
        let place = self.table(packer, &toc.encode())?;

        let owed = self.pay();
        let glue_len = owed + TAR_BLOCK + FOOTER_BYTES + TAR_END_BYTES;
        let after_footer = FOOTER_DISTANCE - FOOTER_BYTES as u64;
        let object_length =
            self.position + (STORED_HEADER_BYTES + glue_len - TAR_END_BYTES) as u64 + after_footer;
        let mut glue = vec![0; owed];
        glue.extend_from_slice(&tar_header(&EntryName::Footer.to_string(), FOOTER_BYTES as u64));
        glue.extend_from_slice(&Footer { toc: place, object_length }.encode());
        glue.resize(glue_len, 0);
        self.write(&stored_header(glue_len as u16, true))?;
        self.write(&glue)?;
        self.crc.update(&glue[owed..]);
        self.tar_len += (glue_len - owed) as u64;

        let mut crc = Hasher::new();
        crc.update(&front);
        crc.combine(&self.crc);
        self.write(&gzip_trailer(crc.finalize(), self.tar_len))?;
        debug_assert_eq!(self.position, object_length);
        self.patch_front(&front)?;
        self.file.flush().map_err(ArchiveError::io("write", &self.path))?;
        Ok((object_length, place))
    }

    /// Fills in the chunk of `metadata.json`; returns its tar header and payload.
    fn front(&mut self, metadata: &[u8; METADATA_BYTES]) -> Vec<u8> {
        let mut packed = stored_header(METADATA_BYTES as u16, false).to_vec();
        packed.extend_from_slice(metadata);
        if let Some(chunk) = self.chunks.first_mut() {
            chunk.crc32 = crc32fast::hash(metadata);
            chunk.digest = digest128(&packed);
        }
        let mut front =
            tar_header(&EntryName::Metadata.to_string(), METADATA_BYTES as u64).to_vec();
        front.extend_from_slice(metadata);
        front
    }

    fn patch_front(&mut self, front: &[u8]) -> Result<(), ArchiveError> {
        let (header, metadata) = front.split_at(TAR_BLOCK);
        let mut bytes = stored_header(header.len() as u16, false).to_vec();
        bytes.extend_from_slice(header);
        bytes.extend_from_slice(&stored_header(metadata.len() as u16, false));
        bytes.extend_from_slice(metadata);
        self.patch(GZIP_HEADER.len() as u64, &bytes)
    }

    /// Writes the entry of the table, as one packed piece.
    fn table(&mut self, packer: &mut Packer, raw: &[u8]) -> Result<TocPlace, ArchiveError> {
        let owed = self.pay();
        let mut glue = vec![0; owed];
        glue.extend_from_slice(&tar_header(&EntryName::Toc.to_string(), raw.len() as u64));
        let mut glue_bytes = Vec::new();
        store(&glue, |piece| {
            glue_bytes.extend_from_slice(piece);
            Ok::<(), ArchiveError>(())
        })?;
        self.write(&glue_bytes)?;
        self.crc.update(&glue[owed..]);
        let offset = self.position;
        let packed = packer.pack(raw, Content::Unknown);
        let (length, digest) = packed.write(|piece| self.write(piece))?;
        self.crc.combine(&Hasher::new_with_initial_len(packed.crc32, raw.len() as u64));
        self.tar_len += (TAR_BLOCK + raw.len()) as u64;
        self.owed = padding(raw.len() as u64);
        let raw = raw.len() as u32;
        Ok(TocPlace { offset, length, raw, encoding: packed.encoding, digest })
    }

    /// Counts the zeros owed as written and returns how many they are.
    fn pay(&mut self) -> usize {
        let owed = std::mem::take(&mut self.owed);
        self.crc.update(&[0; TAR_BLOCK][..owed]);
        self.tar_len += owed as u64;
        owed
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), ArchiveError> {
        self.file.write_all(bytes).map_err(ArchiveError::io("write", &self.path))?;
        self.position += bytes.len() as u64;
        Ok(())
    }

    fn patch(&mut self, at: u64, bytes: &[u8]) -> Result<(), ArchiveError> {
        let end = self.position;
        let mut patch = || {
            self.file.seek(SeekFrom::Start(at))?;
            self.file.write_all(bytes)?;
            self.file.seek(SeekFrom::Start(end))
        };
        patch().map(|_| ()).map_err(ArchiveError::io("patch", &self.path))
    }
}
