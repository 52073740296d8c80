//! Owns joining the indexes of neighbouring archives into one, and the segments of one
//! index that has too many.
//!
//! As long as there are few, segments are carried over as they are: a segment's
//! files do not know their place, only `meta.json` lists them, in offset order.
//! Beyond [`SEGMENTS_FULL`] neighbours are merged by Tantivy, which keeps the order
//! of documents where no sorting is asked for. A merged segment is named by those
//! it came from:
//!
//! ```text
//!  segment id = first 16 bytes of BLAKE3 over "tierd merged segment 1" | id, id, ..
//! ```
//!
//! The filter of all keys is made anew, from the terms of all segments. Of the sources
//! the files of one group at a time are in memory; Tantivy's readers hold them there in
//! any case, and thousands of small files take longer to make than all else.

use std::fs;
use std::path::Path;

use tantivy::directory::{Directory, RamDirectory};
use tantivy::indexer::merge_filtered_segments;
use tantivy::{Index, Segment, SegmentReader, TantivyError};

use super::directory::ScratchDirectory;
use super::{IndexFile, KEY_FIELD, SEGMENTS_FULL, meta_json, refused, segment_id, skipped_values};
use crate::archive::chunk::truncate;
use crate::archive::error::ArchiveError;
use crate::archive::keys::KeyFilterBuilder;

/// Groups to merge into where all would be too many: neighbours are put together
/// until one has its share, which makes fewer than two groups a share.
const SHARES: u64 = (SEGMENTS_FULL as u64 - 2) / 2;

/// The index of one archive, on its way into another.
#[derive(Debug)]
pub(in crate::archive) struct Source {
    /// Its `meta.json`.
    pub(in crate::archive) meta: Vec<u8>,
    /// Its other files: name in `index/`, bytes.
    pub(in crate::archive) files: Vec<(String, u64)>,
}

/// A file of the joined index.
#[derive(Debug)]
pub(in crate::archive) enum Joined {
    /// That of a source, as it is.
    Carried {
        /// Which source.
        source: usize,
        /// Its name in `index/`.
        name: String,
    },
    /// A new one, in scratch.
    Written(IndexFile),
}

impl Joined {
    pub(in crate::archive) fn name(&self) -> &str {
        match self {
            Self::Carried { name, .. } => name,
            Self::Written(file) => &file.name,
        }
    }
}

/// A segment of a source.
struct Part {
    source: usize,
    segment: Segment,
    bytes: u64,
}

impl Part {
    /// The files of the segment.
    fn files<'a>(&self, sources: &'a [Source]) -> impl Iterator<Item = &'a str> {
        let id = self.segment.id().uuid_string();
        let names = sources[self.source].files.iter().map(|(name, _)| name.as_str());
        names.filter(move |name| name.starts_with(&id))
    }
}

/// Joins `sources`, in offset order, in the new folder `folder`. `read` gives the bytes
/// of a source's file. The files come sorted by name, with the filter of the keys.
pub(in crate::archive) fn join(
    folder: &Path,
    sources: &[Source],
    mut read: impl FnMut(usize, &str) -> Result<Vec<u8>, ArchiveError>,
) -> Result<(Vec<Joined>, Option<Vec<u8>>), ArchiveError> {
    fs::create_dir(folder).map_err(ArchiveError::io("create", folder))?;
    let (mut parts, mut directories) = (Vec::new(), Vec::new());
    let mut first: Option<Index> = None;
    let mut skipped = 0;
    for (number, source) in sources.iter().enumerate() {
        let directory = RamDirectory::create();
        let index = open(&directory, source)?;
        directories.push(directory);
        let like = first.get_or_insert_with(|| index.clone());
        if index.schema() != like.schema() || index.settings() != like.settings() {
            let (why, left) = ("their indexes hold different fields", number.saturating_sub(1));
            return Err(ArchiveError::Unmergeable { why, left });
        }
        let listed = |error| failed("list", error);
        skipped += skipped_values(index.load_metas().map_err(listed)?.payload.as_deref());
        let segments = index.searchable_segments().map_err(listed)?;
        parts.extend(segments.into_iter().map(|segment| {
            let id = segment.id().uuid_string();
            let of = source.files.iter().filter(|(name, _)| name.starts_with(&id));
            let bytes = of.map(|(_, bytes)| bytes).sum();
            Part { source: number, segment, bytes }
        }));
    }
    let Some(like) = first else { return Ok((Vec::new(), None)) };
    let (mut files, mut segments) = (Vec::new(), Vec::new());
    let mut keys = KeyFilterBuilder::new();
    for (number, group) in groups(&parts).into_iter().enumerate() {
        for part in group {
            for name in part.files(sources) {
                let bytes = read(part.source, name)?;
                let written = directories[part.source].atomic_write(Path::new(name), &bytes);
                written.map_err(|error| failed("keep", error.into()))?;
            }
            add_keys(&part.segment, &mut keys)?;
        }
        if let [only] = group {
            segments.push((only.segment.id(), only.segment.meta().max_doc()));
            let carried = |name: &str| Joined::Carried { source: only.source, name: name.into() };
            files.extend(only.files(sources).map(carried));
        } else {
            let (id, documents, written) = merge(&folder.join(format!("merged-{number}")), group)?;
            segments.push((id, documents));
            files.extend(written.into_iter().map(Joined::Written));
        }
        for part in group {
            for name in part.files(sources) {
                // It was written above, and goes in any case when all is done.
                let _ = directories[part.source].delete(Path::new(name));
            }
        }
    }
    let path = folder.join("meta.json");
    fs::write(&path, meta_json(&like, &segments, skipped)?)
        .map_err(ArchiveError::io("write", &path))?;
    files.push(Joined::Written(IndexFile { name: "meta.json".to_owned(), path }));
    files.sort_by(|a, b| a.name().cmp(b.name()));
    Ok((files, keys.finish()))
}

/// The index in `files`, sorted by name, with fewer segments, in the new folder `folder`.
pub(super) fn fewer(
    folder: &Path,
    files: Vec<IndexFile>,
) -> Result<(Vec<IndexFile>, Option<Vec<u8>>), ArchiveError> {
    let mut source = Source { meta: Vec::new(), files: Vec::new() };
    for IndexFile { name, path } in &files {
        if name == "meta.json" {
            source.meta = fs::read(path).map_err(ArchiveError::io("read", path))?;
        } else {
            let found = fs::metadata(path).map_err(ArchiveError::io("look at", path))?;
            source.files.push((name.clone(), found.len()));
        }
    }
    let path_of = |name: &str| files.iter().find(|file| file.name == name).map(|file| &file.path);
    let read = |_, name: &str| match path_of(name) {
        Some(path) => fs::read(path).map_err(ArchiveError::io("read", path)),
        None => Ok(Vec::new()),
    };
    let (joined, keys) = join(folder, &[source], read)?;
    let joined = joined.into_iter().filter_map(|file| match file {
        Joined::Written(file) => Some(file),
        Joined::Carried { name, .. } => {
            let path = path_of(&name)?.clone();
            Some(IndexFile { name, path })
        }
    });
    Ok((joined.collect(), keys))
}

/// Adds the keys of all records of `segment`, whose files are unpacked.
fn add_keys(segment: &Segment, keys: &mut KeyFilterBuilder) -> Result<(), ArchiveError> {
    let failed = |error| failed("read the keys of", error);
    let reader = SegmentReader::open(segment).map_err(failed)?;
    let field = segment.schema().get_field(KEY_FIELD).map_err(failed)?;
    let terms = reader.inverted_index(field).map_err(failed)?;
    let mut terms = terms.terms().stream().map_err(|error| failed(error.into()))?;
    while terms.advance() {
        keys.add_term(terms.key());
    }
    Ok(())
}

/// The index of `source`, whose files will be in `directory`.
fn open(directory: &RamDirectory, source: &Source) -> Result<Index, ArchiveError> {
    let written = directory.atomic_write(Path::new("meta.json"), &source.meta);
    written.map_err(|error| failed("keep", error.into()))?;
    Index::open(directory.clone()).map_err(|error| failed("open", error))
}

/// What Tantivy says where no file of ours can be the cause.
fn failed(step: &'static str, error: TantivyError) -> ArchiveError {
    ArchiveError::Index { step, source: Box::new(error) }
}

/// Parts the segments into at most [`SEGMENTS_FULL`] groups of neighbours.
fn groups(parts: &[Part]) -> Vec<&[Part]> {
    if parts.len() <= SEGMENTS_FULL {
        return parts.chunks(1).collect();
    }
    let total: u64 = parts.iter().map(|part| part.bytes).sum();
    let share = total.div_ceil(SHARES).max(1);
    let (mut groups, mut rest) = (Vec::new(), parts);
    while !rest.is_empty() {
        let mut bytes = 0;
        let fit = rest.iter().take_while(|part| {
            bytes += part.bytes;
            bytes <= share
        });
        let (group, behind) = rest.split_at(fit.count().max(1));
        groups.push(group);
        rest = behind;
    }
    groups
}

/// Merges neighbours in the new folder `folder`.
fn merge(
    folder: &Path,
    group: &[Part],
) -> Result<(tantivy::index::SegmentId, u32, Vec<IndexFile>), ArchiveError> {
    fs::create_dir(folder).map_err(ArchiveError::io("create", folder))?;
    let directory = ScratchDirectory::new(folder);
    let failed = |error| refused("merge", &directory, error);
    let segments: Vec<Segment> = group.iter().map(|part| part.segment.clone()).collect();
    let mut content = blake3::Hasher::new();
    content.update(b"tierd merged segment 1");
    for segment in &segments {
        content.update(segment.id().uuid_string().as_bytes());
    }
    let settings = segments[0].index().settings().clone();
    let everything = vec![None; segments.len()];
    let merged = merge_filtered_segments(&segments, settings, everything, directory.clone())
        .map_err(failed)?;
    let metas = merged.searchable_segment_metas().map_err(failed)?;
    let [meta] = metas.as_slice() else {
        return Err(ArchiveError::corrupt("a merged index", "it has not one segment"));
    };
    let digest = truncate(&content.finalize());
    let id = segment_id(&format!("{:032x}", u128::from_be_bytes(digest)))?;
    let written = meta.id().uuid_string();
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(ArchiveError::io("list", folder))? {
        let entry = entry.map_err(ArchiveError::io("list", folder))?;
        let name = entry.file_name();
        let extension = name.to_str().and_then(|name| name.strip_prefix(&written));
        if let Some(extension) = extension {
            let name = format!("{}{extension}", id.uuid_string());
            files.push(IndexFile { name, path: entry.path() });
        }
    }
    Ok((id, meta.max_doc(), files))
}
