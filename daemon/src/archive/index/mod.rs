//! Owns the building of the search index: one Tantivy document for each record
//! of the chain, in offset order, control batches left out.
//!
//! Tantivy's own index writer runs threads, merges, and gives segments random
//! names. Here one [`SegmentWriter`] is fed at a time; where its memory is used up
//! a segment ends, and the next begins at the next batch. So a document's number
//! orders as its offset does, and equal batches give equal files. The files lie
//! in scratch until the archive takes them in; their names, and `meta.json`, are
//! made then:
//!
//! ```text
//!  segment id = first 16 bytes of BLAKE3 over
//!    "tierd index segment 1" | the level's name, where it is a full one
//!    | topic length u32, topic | partition i32 | incarnation u32
//!    | for every batch so far: base i64, last i64, first offset indexed i64, CRC-32C u32
//!    | number of the segment u32                                    integers little-endian
//! ```
//!
//! An index opens with stock Tantivy: unpack, `Index::open_in_dir("index")`.

mod directory;
mod document;
mod merge;

use std::fs;
use std::path::{Path, PathBuf};

use tantivy::index::SegmentId;
use tantivy::indexer::{AddOperation, SegmentWriter};
use tantivy::schema::Schema;
use tantivy::store::Compressor;
use tantivy::{Index, IndexMeta, IndexSettings, SegmentMeta, TantivyError};

use self::directory::ScratchDirectory;
use self::document::{Fields, RecordDocument};
use super::error::ArchiveError;
use super::keys::KeyFilterBuilder;
use super::{ArchiveIdentity, IndexLevel, ValueIndex};
use crate::record::{CanonicalRecord, Entries};

pub use document::{
    HEADER_FIELD, KEY_FIELD, OFFSET_FIELD, PRODUCER_FIELD, TERM_BYTES_MAX, TERM_PREFIX_BYTES,
    TIMESTAMP_FIELD, VALUE_FIELD, WORD_BYTES_MAX, header_name_prefix, header_term, key_term,
    time_of, tokenizers,
};

use merge::fewer;
pub(super) use merge::{Joined, Source, join};

/// [`IndexBuilder::segment_bytes`], outside tests.
const SEGMENT_BYTES: usize = 48 << 20;
/// A segment ends inside a batch that takes it this far: huge batches of tiny
/// records, which decode to many times their size on the wire.
const SEGMENT_BYTES_MAX: usize = 64 << 20;
/// An archive is full when it has this many segments: a search opens each.
pub(super) const SEGMENTS_FULL: usize = 16;
/// Initial size of Tantivy's term table, by the memory that it may use. Small,
/// because most archives are; it grows by doubling.
const TABLE_BYTES: usize = 3 << 20;
/// Memory is measured after this many bytes of terms or this many documents.
const MEASURE_TERM_BYTES: usize = 1 << 20;
const MEASURE_DOCUMENTS: usize = 4096;
/// Bytes a segment writer keeps for each document and does not count.
const UNCOUNTED_BYTES: usize = size_of::<u64>();
/// Block size of the empty document store, Tantivy's own.
const STORE_BLOCK_BYTES: usize = 16 << 10;

/// An index under way.
pub(super) struct IndexBuilder {
    folder: PathBuf,
    directory: ScratchDirectory,
    index: Index,
    fields: Fields,
    writer: Option<SegmentWriter>,
    segments: Vec<Segment>,
    content: blake3::Hasher,
    keys: KeyFilterBuilder,
    /// Values that were too long, or JSON too large to be read.
    skipped_values: u64,
    /// A segment ends with the batch that takes its memory to this many bytes.
    segment_bytes: usize,
}

/// A finished segment.
#[derive(Debug)]
struct Segment {
    id: SegmentId,
    /// The name its files have in scratch.
    scratch_id: SegmentId,
    documents: u32,
}

/// A file of a finished index.
#[derive(Debug)]
pub(super) struct IndexFile {
    /// Its name in `index/`.
    pub(super) name: String,
    /// Where it lies in scratch.
    pub(super) path: PathBuf,
}

impl std::fmt::Debug for IndexBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IndexBuilder")
            .field("folder", &self.folder)
            .field("segments", &self.segments)
            .finish_non_exhaustive()
    }
}

impl IndexBuilder {
    /// Begins an index in the new folder `folder`.
    pub(super) fn create(
        folder: &Path,
        identity: &ArchiveIdentity,
        values: Option<ValueIndex>,
    ) -> Result<Self, ArchiveError> {
        fs::create_dir(folder).map_err(ArchiveError::io("create", folder))?;
        let directory = ScratchDirectory::new(folder);
        let (schema, fields) = Fields::schema(values);
        let settings = IndexSettings {
            docstore_compression: Compressor::None,
            docstore_compress_dedicated_thread: false,
            docstore_blocksize: STORE_BLOCK_BYTES,
            ..IndexSettings::default()
        };
        let mut index = Index::create(directory.clone(), schema, settings)
            .map_err(|error| refused("create", &directory, error))?;
        index.set_tokenizers(tokenizers());
        let topic = identity.tp.topic().as_str();
        let mut content = blake3::Hasher::new();
        content.update(b"tierd index segment 1");
        if let Some(values) = values {
            content.update(IndexLevel::Full(values).as_str().as_bytes());
        }
        content.update(&(topic.len() as u32).to_le_bytes());
        content.update(topic.as_bytes());
        content.update(&identity.tp.partition().to_le_bytes());
        content.update(&identity.incarnation.to_le_bytes());
        Ok(Self {
            folder: folder.to_owned(),
            directory,
            index,
            fields,
            writer: None,
            segments: Vec::new(),
            content,
            keys: KeyFilterBuilder::new(),
            skipped_values: 0,
            segment_bytes: SEGMENT_BYTES,
        })
    }

    /// Adds the records of `batch` from the offset `from` on. `entries` are those
    /// of the batch and known to decode; `crc32c` is that of the whole batch.
    pub(super) fn add(
        &mut self,
        batch: &CanonicalRecord,
        mut entries: Entries,
        from: i64,
        crc32c: u32,
    ) -> Result<(), ArchiveError> {
        let range = batch.range();
        self.content.update(&range.base().to_le_bytes());
        self.content.update(&range.last().to_le_bytes());
        self.content.update(&from.to_le_bytes());
        self.content.update(&crc32c.to_le_bytes());
        let (mut term_bytes, mut documents) = (0, 0);
        while let Some(entry) = entries.next_ref() {
            // The caller has walked the entries before.
            let Ok(entry) = entry else { break };
            if entry.offset < from {
                continue;
            }
            let timestamp = batch.effective_timestamp(entry.timestamp);
            let producer_id = batch.header().producer_id;
            let document = RecordDocument::new(self.fields, &entry, timestamp, producer_id);
            self.skipped_values += u64::from(document.is_skipped());
            if let Some(key) = entry.key {
                self.keys.add(key);
            }
            term_bytes += document.term_bytes();
            documents += 1;
            let operation = AddOperation { opstamp: 0, document };
            let added = self.writer()?.add_document(operation);
            added.map_err(|error| refused("add to", &self.directory, error))?;
            if term_bytes >= MEASURE_TERM_BYTES || documents >= MEASURE_DOCUMENTS {
                (term_bytes, documents) = (0, 0);
                self.cut_from(SEGMENT_BYTES_MAX)?;
            }
        }
        self.cut_from(self.segment_bytes)
    }

    /// Whether no further batch should be added.
    pub(super) fn is_full(&self) -> bool {
        self.segments.len() >= SEGMENTS_FULL
    }

    /// Ends the index: its files, sorted by name, and the filter of its keys. Of more
    /// segments than an archive is to have, neighbours are merged.
    pub(super) fn finish(mut self) -> Result<(Vec<IndexFile>, Option<Vec<u8>>), ArchiveError> {
        self.cut()?;
        let mut files = Vec::new();
        let entries = fs::read_dir(&self.folder).map_err(ArchiveError::io("list", &self.folder))?;
        for entry in entries {
            let entry = entry.map_err(ArchiveError::io("list", &self.folder))?;
            let scratch_name = entry.file_name();
            let named = scratch_name.to_str().and_then(|name| name.split_once('.'));
            let segment = named.and_then(|(id, extension)| {
                let of = |segment: &&Segment| segment.scratch_id.uuid_string() == id;
                self.segments.iter().find(of).map(|segment| (segment, extension))
            });
            if let Some((segment, extension)) = segment {
                let name = format!("{}.{extension}", segment.id.uuid_string());
                files.push(IndexFile { name, path: entry.path() });
            }
        }
        files.push(self.write_meta()?);
        files.sort_by(|a, b| a.name.cmp(&b.name));
        if self.segments.len() > SEGMENTS_FULL {
            return fewer(&self.folder.join("fewer"), files);
        }
        Ok((files, self.keys.finish()))
    }

    /// Writes `meta.json`, the list that stock Tantivy opens an index by.
    fn write_meta(&self) -> Result<IndexFile, ArchiveError> {
        let segments: Vec<_> =
            self.segments.iter().map(|segment| (segment.id, segment.documents)).collect();
        let json = meta_json(&self.index, &segments, self.skipped_values)?;
        let path = self.folder.join("meta.json");
        fs::write(&path, json).map_err(ArchiveError::io("write", &path))?;
        Ok(IndexFile { name: "meta.json".to_owned(), path })
    }

    fn writer(&mut self) -> Result<&mut SegmentWriter, ArchiveError> {
        let writer = match self.writer.take() {
            Some(writer) => writer,
            None => {
                let id = scratch_id(self.segments.len())?;
                let segment = self.index.segment(self.index.new_segment_meta(id, 0));
                SegmentWriter::for_segment(TABLE_BYTES, segment)
                    .map_err(|error| refused("begin a segment of", &self.directory, error))?
            }
        };
        Ok(self.writer.insert(writer))
    }

    /// Ends the segment if it uses `limit` bytes of memory.
    fn cut_from(&mut self, limit: usize) -> Result<(), ArchiveError> {
        let used = self
            .writer
            .as_ref()
            .map_or(0, |writer| writer.mem_usage() + writer.max_doc() as usize * UNCOUNTED_BYTES);
        if used >= limit { self.cut() } else { Ok(()) }
    }

    fn cut(&mut self) -> Result<(), ArchiveError> {
        let Some(writer) = self.writer.take() else { return Ok(()) };
        let documents = writer.max_doc();
        writer.finalize().map_err(|error| refused("write", &self.directory, error))?;
        let number = self.segments.len();
        let mut content = self.content.clone();
        content.update(&(number as u32).to_le_bytes());
        let digest = super::chunk::truncate(&content.finalize());
        let id = segment_id(&format!("{:032x}", u128::from_be_bytes(digest)))?;
        self.segments.push(Segment { id, scratch_id: scratch_id(number)?, documents });
        Ok(())
    }
}

/// The file `meta.json` that lists `segments`, with the fields and settings of `like`,
/// and tells how many values are not in the index.
fn meta_json(
    like: &Index,
    segments: &[(SegmentId, u32)],
    skipped_values: u64,
) -> Result<Vec<u8>, ArchiveError> {
    let segments: Vec<SegmentMeta> =
        segments.iter().map(|(id, documents)| like.new_segment_meta(*id, *documents)).collect();
    let meta = IndexMeta {
        index_settings: like.settings().clone(),
        segments,
        payload: skipped_payload(skipped_values),
        ..IndexMeta::with_schema(like.schema())
    };
    let described = serde_json::to_vec_pretty(&meta);
    let mut json = described.map_err(|error| ArchiveError::Index {
        step: "describe",
        source: Box::new(error.into()),
    })?;
    json.push(b'\n');
    Ok(json)
}

/// The fields of an index of `level`; none has none.
#[must_use]
pub fn index_schema(level: IndexLevel) -> Option<Schema> {
    match level {
        IndexLevel::None => None,
        IndexLevel::Keys => Some(Fields::schema(None).0),
        IndexLevel::Full(values) => Some(Fields::schema(Some(values)).0),
    }
}

/// What the payload of an index says of values that are not in it: nothing, or their
/// number in front of a space and words for people.
fn skipped_payload(count: u64) -> Option<String> {
    (count > 0).then(|| format!("{count} values were too much to be indexed"))
}

/// The number of values that an index lacks, by its payload.
#[must_use]
pub fn skipped_values(payload: Option<&str>) -> u64 {
    payload.and_then(|told| told.split(' ').next()?.parse().ok()).unwrap_or(0)
}

/// The name that the files of segment `number` have until its content is known.
fn scratch_id(number: usize) -> Result<SegmentId, ArchiveError> {
    segment_id(&format!("{number:032x}"))
}

fn segment_id(hex: &str) -> Result<SegmentId, ArchiveError> {
    // 32 hexadecimal digits always are one; Tantivy checks all the same.
    SegmentId::from_uuid_string(hex).map_err(|error| ArchiveError::Index {
        step: "name a segment of",
        source: Box::new(TantivyError::InvalidArgument(error.to_string())),
    })
}

/// Tantivy's error, or the I/O error that it came from.
fn refused(step: &'static str, directory: &ScratchDirectory, error: TantivyError) -> ArchiveError {
    match directory.take_failure() {
        Some((path, source)) => ArchiveError::Io { step: "write", path, source },
        None => ArchiveError::Index { step, source: Box::new(error) },
    }
}

#[cfg(test)]
mod tests;
