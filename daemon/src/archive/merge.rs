//! Owns making one archive of several neighbours.
//!
//! ```text
//!  a.log  b.log  c.log          chunks carried over as they lie: no inflating; small
//!    |      |      |            ones are joined to chunks of usual size
//!  a.overlap.log  b.overlap.log the same
//!  index/ of all                segments carried over, see `index::merge`
//!  .tierd/keys                  made anew from the index
//!  .tierd/batches of all        one after the other
//!  epochs, transactions         put together; open are those of the last
//! ```
//!
//! Equal inputs make equal bytes. The finished file is read back whole and proven as
//! `verify::carried` tells: what was carried over by its digests, all else byte by byte.
//! Unlike a new archive it is not inflated by foreign code: that was done with its
//! parts, and would take longer than everything else together.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::batches::{BatchList, BatchListEncoder};
use super::chunk::Chunk;
use super::error::ArchiveError;
use super::index::{Joined, Source, join};
use super::names::EntryName;
use super::pack::{Content, Packer};
use super::sink::{ChunkOf, Sink};
use super::toc::{Toc, TocFile, TocPlace};
use super::transactions::Transactions;
use super::verify::verify_merged;
use super::writer::{BuiltArchive, CHUNK_BYTES, DEFLATE_LEVEL};
use super::{ArchiveIdentity, ArchiveSummary, Encoding};
use crate::record::OffsetRange;

/// Chunks from this size on are carried over as they are. Smaller ones are joined:
/// thousands of them would make the table large and reading slow.
const CARRIED_FROM: usize = CHUNK_BYTES / 4;

/// An archive to build another from, whose object lies in a local file, maybe one of
/// many there.
#[derive(Debug)]
pub struct MergeInput {
    pub(super) summary: ArchiveSummary,
    pub(super) toc: Toc,
    file: Arc<File>,
    path: PathBuf,
    /// Where the object begins in the file.
    from: u64,
}

impl MergeInput {
    /// The archive that a manifest tells of as `summary`, whose object begins at `from`
    /// in `file`; `path` is where that lies, for people.
    ///
    /// # Errors
    /// When the file cannot be read or the archive's table is not the one told.
    pub fn within(
        file: Arc<File>,
        path: &Path,
        from: u64,
        summary: ArchiveSummary,
    ) -> Result<Self, ArchiveError> {
        let mut packed = vec![0; summary.toc.length as usize];
        file.read_exact_at(&mut packed, from + summary.toc.offset)
            .map_err(ArchiveError::io("read", path))?;
        let toc = Toc::decode(&packed, &summary.toc)?;
        Ok(Self { summary, toc, file, path: path.to_owned(), from })
    }

    /// Why `next` cannot be joined to this one, if it cannot.
    #[must_use]
    pub fn refuses(&self, next: &Self) -> Option<&'static str> {
        let (this, that) = (&self.summary, &next.summary);
        if !this.tiles || !that.tiles || this.range.end() != that.range.base() {
            return Some("they are not neighbours");
        }
        if this.index_level != that.index_level {
            return Some("their index levels differ");
        }
        for input in [self, next] {
            let last = input.log_chunks().last().map(|chunk| chunk.last);
            if last != Some(input.summary.range.last()) {
                return Some("one holds more offsets than it serves");
            }
        }
        None
    }

    fn log_chunks(&self) -> &[Chunk] {
        self.toc.log().map_or(&[], |log| self.toc.chunks_of(log))
    }

    /// The bytes of a chunk as they lie.
    pub(super) fn packed(&self, chunk: &Chunk) -> Result<Bytes, ArchiveError> {
        let mut packed = vec![0; chunk.packed as usize];
        self.file
            .read_exact_at(&mut packed, self.from + chunk.place)
            .map_err(ArchiveError::io("read", &self.path))?;
        Ok(packed.into())
    }

    fn whole(&self, file: &TocFile) -> Result<Vec<u8>, ArchiveError> {
        let mut whole = Vec::with_capacity(file.raw_len as usize);
        for chunk in self.toc.chunks_of(file) {
            whole.extend_from_slice(&chunk.unpack(self.packed(chunk)?)?);
        }
        Ok(whole)
    }

    fn batches(&self) -> Result<BatchList, ArchiveError> {
        BatchList::decode(self.whole(self.toc.batches()?)?.into())
    }

    fn index(&self) -> Result<Option<Source>, ArchiveError> {
        let Some(meta) = self.toc.file("index/meta.json") else { return Ok(None) };
        let files = self.toc.index_files().filter(|file| file.name != meta.name);
        let files = files
            .filter_map(|file| Some((file.name.strip_prefix("index/")?.to_owned(), file.raw_len)));
        Ok(Some(Source { meta: self.whole(meta)?, files: files.collect() }))
    }

    fn index_file(&self, name: &str) -> Result<&TocFile, ArchiveError> {
        let found = self.toc.file(&format!("index/{name}"));
        found.ok_or_else(|| ArchiveError::corrupt("the table of contents", "an index file is gone"))
    }
}

/// Merges `inputs`, ascending neighbours of `identity` of which none
/// [refuses](MergeInput::refuses) the next, in a folder of its own inside
/// `scratch`. Blocks.
///
/// # Errors
/// [`ArchiveError::Unmergeable`] where that shows only now; when scratch fails, or
/// the file read back is not the one written.
pub fn merge_archives(
    scratch: &Path,
    identity: &ArchiveIdentity,
    inputs: &[MergeInput],
) -> Result<BuiltArchive, ArchiveError> {
    let folder = tempfile::Builder::new()
        .prefix("merge-")
        .tempdir_in(scratch)
        .map_err(ArchiveError::io("create a folder in", scratch))?;
    for (left, two) in inputs.windows(2).enumerate() {
        if let Some(why) = two[0].refuses(&two[1]) {
            return Err(ArchiveError::Unmergeable { why, left });
        }
    }
    let mut out = Out {
        sink: Sink::create(&folder.path().join("archive.tar.gz"))?,
        packer: Packer::new(DEFLATE_LEVEL),
        small: Vec::new(),
        of: None,
        carried: HashSet::new(),
    };
    out.logs(inputs)?;
    let index_bytes = out.index(&folder.path().join("index"), inputs)?;
    out.batches(inputs)?;

    let mut transactions = Transactions::default();
    inputs.iter().for_each(|input| transactions.follow(&input.toc.ended, &input.toc.open));
    let (ended, open) = transactions.finish();
    let toc = Toc { epochs: epochs(inputs), ended, open, ..Toc::default() };
    let summary =
        summary(inputs, index_bytes, toc.transactions()).ok_or(ArchiveError::Unmergeable {
            why: "together they are too large, or none",
            left: 0,
        })?;
    let carried = out.carried;
    let prove =
        |path: &Path, summary: &ArchiveSummary| verify_merged(path, identity, summary, &carried);
    BuiltArchive::finish(out.sink, &mut out.packer, identity, summary, toc, folder, prove)
}

/// The archive under way.
struct Out {
    sink: Sink,
    packer: Packer,
    /// Small chunks of a log, waiting to be one.
    small: Vec<u8>,
    of: Option<ChunkOf>,
    /// The chunks carried over, with place 0.
    carried: HashSet<Chunk>,
}

impl Out {
    fn logs(&mut self, inputs: &[MergeInput]) -> Result<(), ArchiveError> {
        let of = |name: fn(&Toc) -> Option<&TocFile>| {
            inputs.iter().filter_map(move |input| Some((input, name(&input.toc)?)))
        };
        for name in [Toc::log as fn(&Toc) -> Option<&TocFile>, Toc::overlap_log] {
            // The chain is named by its first base, the overlaps by their least.
            let names = of(name).map(|(_, file)| EntryName::parse(&file.name));
            let names: Vec<EntryName> = names.collect::<Result<_, _>>()?;
            let named = match names.first() {
                Some(EntryName::OverlapLog(_)) => names.iter().min(),
                first => first,
            };
            let Some(named) = named else { continue };
            self.sink.begin()?;
            for (input, file) in of(name) {
                for chunk in input.toc.chunks_of(file) {
                    self.log_chunk(input, chunk)?;
                }
            }
            self.join_small()?;
            self.sink.end(named)?;
        }
        Ok(())
    }

    fn log_chunk(&mut self, input: &MergeInput, chunk: &Chunk) -> Result<(), ArchiveError> {
        let (packed, raw) = (input.packed(chunk)?, chunk.raw as usize);
        if raw >= CARRIED_FROM {
            self.join_small()?;
            return self.carry(chunk, &packed);
        }
        if self.small.len() + raw > CHUNK_BYTES {
            self.join_small()?;
        }
        self.small.extend_from_slice(&chunk.unpack(packed)?);
        let of = self.of.get_or_insert(ChunkOf {
            first: chunk.first,
            last: chunk.last,
            max_timestamp: chunk.max_timestamp,
        });
        of.first = of.first.min(chunk.first);
        of.last = of.last.max(chunk.last);
        of.max_timestamp = of.max_timestamp.max(chunk.max_timestamp);
        Ok(())
    }

    fn carry(&mut self, chunk: &Chunk, packed: &[u8]) -> Result<(), ArchiveError> {
        self.carried.insert(Chunk { place: 0, ..*chunk });
        self.sink.carry(chunk, packed)
    }

    fn join_small(&mut self) -> Result<(), ArchiveError> {
        let Some(of) = self.of.take() else { return Ok(()) };
        let packed = self.packer.pack(&self.small, Content::Unknown);
        self.sink.chunk(&packed, self.small.len(), of)?;
        self.small.clear();
        Ok(())
    }

    fn index(&mut self, folder: &Path, inputs: &[MergeInput]) -> Result<u64, ArchiveError> {
        let sources = inputs.iter().map(MergeInput::index);
        let sources: Option<Vec<Source>> = sources.collect::<Result<_, _>>()?;
        let Some(sources) = sources else { return Ok(0) };
        let read = |source: usize, name: &str| {
            let input: &MergeInput = &inputs[source];
            input.whole(input.index_file(name)?)
        };
        let mut bytes = 0;
        let (files, keys) = join(folder, &sources, read)?;
        for file in files {
            let to = EntryName::Index(file.name().to_owned());
            bytes += match &file {
                Joined::Carried { source, name } => {
                    let input = &inputs[*source];
                    self.sink.begin()?;
                    for chunk in input.toc.chunks_of(input.index_file(name)?) {
                        self.carry(chunk, &input.packed(chunk)?)?;
                    }
                    self.sink.end(&to)?
                }
                Joined::Written(file) => {
                    let whole =
                        std::fs::read(&file.path).map_err(ArchiveError::io("read", &file.path))?;
                    self.sink.whole(&mut self.packer, &to, &whole)?
                }
            };
        }
        std::fs::remove_dir_all(folder).map_err(ArchiveError::io("remove", folder))?;
        if let Some(keys) = keys {
            self.sink.whole(&mut self.packer, &EntryName::Keys, &keys)?;
        }
        Ok(bytes)
    }

    fn batches(&mut self, inputs: &[MergeInput]) -> Result<(), ArchiveError> {
        let lists: Vec<BatchList> =
            inputs.iter().map(MergeInput::batches).collect::<Result<_, _>>()?;
        // Base of what lies beneath, and the last input that has such a batch.
        let beneath: HashMap<i64, usize> = lists
            .iter()
            .enumerate()
            .flat_map(|(input, list)| list.overlaps().map(move |batch| (batch.base, input)))
            .collect();
        let chain = lists.iter().map(BatchList::chain_len).sum();
        let overlaps = lists.iter().map(BatchList::overlaps_len).sum();
        let mut bytes = Vec::new();
        let mut encoder = BatchListEncoder::begin(chain, overlaps, &mut bytes);
        self.sink.begin()?;
        for (input, list) in lists.iter().enumerate() {
            for batch in list.chain() {
                let below = beneath.get(&batch.base);
                if let Some(other) = below.filter(|_| batch.rank.is_none()) {
                    let why =
                        "one holds what the other supersedes, and does not know which is newer";
                    let left = input.max(*other).saturating_sub(1);
                    return Err(ArchiveError::Unmergeable { why, left });
                }
                encoder.put(&batch, &mut bytes);
                self.list_pieces(&mut bytes, CHUNK_BYTES)?;
            }
        }
        encoder.begin_overlaps();
        for batch in lists.iter().flat_map(BatchList::overlaps) {
            encoder.put(&batch, &mut bytes);
            self.list_pieces(&mut bytes, CHUNK_BYTES)?;
        }
        self.list_pieces(&mut bytes, 1)?;
        self.sink.end(&EntryName::Batches)?;
        Ok(())
    }

    /// Packs what there is of the list, in pieces of a chunk, while it has `least`
    /// bytes.
    fn list_pieces(&mut self, bytes: &mut Vec<u8>, least: usize) -> Result<(), ArchiveError> {
        while bytes.len() >= least {
            let piece = bytes.len().min(CHUNK_BYTES);
            self.sink.piece(&mut self.packer, &bytes[..piece])?;
            bytes.drain(..piece);
        }
        Ok(())
    }
}

/// An epoch counts where it rises above all before.
fn epochs(inputs: &[MergeInput]) -> Vec<(i32, i64)> {
    let mut epochs: Vec<(i32, i64)> = Vec::new();
    for one in inputs.iter().flat_map(|input| &input.toc.epochs) {
        if epochs.last().is_none_or(|last| last.0 < one.0) {
            epochs.push(*one);
        }
    }
    epochs
}

/// What the merged archive is, without what packing tells. `None` where it would
/// break a limit of the format.
fn summary(inputs: &[MergeInput], index_bytes: u64, transactions: u32) -> Option<ArchiveSummary> {
    let all = || inputs.iter().map(|input| &input.summary);
    let (first, last) = (all().next()?, all().next_back()?);
    let range = OffsetRange::new(first.range.base(), last.range.last())?;
    let bytes = |of: fn(&ArchiveSummary) -> u64| all().map(of).sum::<u64>();
    let counts = |of: fn(&ArchiveSummary) -> u32| {
        all().map(of).try_fold(0u32, |sum, count| sum.checked_add(count))
    };
    let known = || all().map(|one| one.leader_epochs).filter(|epochs| epochs.1 >= 0);
    let logs = [bytes(|one| one.log_bytes), bytes(|one| one.overlap_bytes)];
    let span = range.last().checked_sub(range.base())?;
    if logs.into_iter().any(|bytes| bytes > i32::MAX as u64) || span > i64::from(i32::MAX) {
        return None;
    }
    Some(ArchiveSummary {
        range,
        tiles: true,
        batches: counts(|one| one.batches)?,
        records: bytes(|one| one.records),
        log_bytes: logs[0],
        overlaps: counts(|one| one.overlaps)?,
        overlap_bytes: logs[1],
        bad_crcs: counts(|one| one.bad_crcs)?,
        unindexed: counts(|one| one.unindexed)?,
        min_timestamp: all().map(|one| one.min_timestamp).min()?,
        max_timestamp: all().map(|one| one.max_timestamp).max()?,
        leader_epochs: (
            known().map(|epochs| epochs.0).min().unwrap_or(-1),
            known().map(|epochs| epochs.1).max().unwrap_or(-1),
        ),
        index_level: first.index_level,
        index_bytes,
        transactions,
        length: 0,
        digest: [0; 32],
        toc: TocPlace { offset: 0, length: 0, raw: 0, encoding: Encoding::Stored, digest: [0; 16] },
    })
}

#[cfg(test)]
mod tests;
