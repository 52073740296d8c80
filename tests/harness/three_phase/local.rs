//! What the broker itself holds of a partition: files, a buffer of the newest
//! batches, its transaction index. Read by the harness's decoder alone.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;

use crate::chronik::FrameParts;

/// Most bytes of the newest batches kept in memory: few, so that the other phases are
/// used too.
const BUFFER_BYTES: usize = 1 << 10;

/// One batch as it stands on the wire.
#[derive(Clone, Debug)]
pub(super) struct Batch {
    pub(super) base: i64,
    pub(super) last: i64,
    pub(super) wire: Bytes,
    /// Offset and timestamp of each record, as the broker decoded it.
    pub(super) records: Vec<(i64, i64)>,
}

/// A transaction that ended in an abort.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Aborted {
    pub(super) producer_id: i64,
    pub(super) first: i64,
    /// Offset of its marker.
    pub(super) last: i64,
}

/// One partition.
#[derive(Clone, Debug)]
pub(super) struct Partition {
    folder: PathBuf,
    pub(super) high_watermark: i64,
    pub(super) last_stable_offset: i64,
    /// Aborted transactions whose marker lies in a segment that is still there.
    pub(super) aborted: Vec<Aborted>,
    /// The newest batches, ascending, of segments that are still there.
    pub(super) buffer: Vec<Batch>,
}

/// Every partition below a WAL directory. The broker's own trees begin with `__`.
pub(super) fn recover(wal: &Path) -> Result<BTreeMap<(String, i32), Partition>> {
    let mut found = BTreeMap::new();
    for topic in fs::read_dir(wal)? {
        let topic = topic?;
        let name = topic.file_name().into_string().ok().context("a topic is UTF-8")?;
        if name.starts_with("__") {
            continue;
        }
        for partition in fs::read_dir(topic.path())? {
            let folder = partition?.path();
            let number = folder.file_name().and_then(|name| name.to_str());
            let number = number.context("a partition is UTF-8")?.parse()?;
            found.insert((name.clone(), number), Partition::recover(folder)?);
        }
    }
    Ok(found)
}

impl Partition {
    fn recover(folder: PathBuf) -> Result<Self> {
        let mut frames: Vec<FrameParts> = read_segments(&folder)?.into_values().flatten().collect();
        frames.sort_by_key(|frame| frame.base_offset);
        let mut open = BTreeMap::new();
        let mut aborted = Vec::new();
        for frame in frames.iter().filter(|frame| frame.header.is_transactional()) {
            let producer_id = frame.header.producer_id;
            if !frame.header.is_control() {
                open.entry(producer_id).or_insert(frame.base_offset);
            } else if let Some(first) = open.remove(&producer_id)
                && is_abort(frame)?
            {
                aborted.push(Aborted { producer_id, first, last: frame.base_offset });
            }
        }
        let batches: Vec<Batch> = frames.iter().map(batch).collect::<Result<_>>()?;
        let high_watermark = batches.iter().map(|batch| batch.last + 1).max().unwrap_or(0);
        let last_stable_offset = open.into_values().min().unwrap_or(high_watermark);
        let buffer = newest(&batches, high_watermark);
        Ok(Self { folder, high_watermark, last_stable_offset, aborted, buffer })
    }

    /// The batches in the files that are there now, by base offset, then age.
    pub(super) fn wal(&self) -> Result<Vec<Batch>> {
        let frames = read_segments(&self.folder)?.into_values().flatten();
        let mut batches: Vec<Batch> = frames.map(|frame| batch(&frame)).collect::<Result<_>>()?;
        batches.sort_by_key(|batch| batch.base);
        Ok(batches)
    }

    /// Deletes the segments below `keep_from`, and what memory holds of them.
    pub(super) fn delete_segments(&mut self, keep_from: u64, through: i64) -> Result<usize> {
        let mut deleted = 0;
        for (id, frames) in read_segments(&self.folder)? {
            if id >= keep_from {
                continue;
            }
            for frame in frames {
                let batch = batch(&frame)?;
                ensure!(batch.last < through, "offset {} is not released", batch.last);
                self.aborted.retain(|aborted| aborted.last != batch.base);
                self.buffer.retain(|held| held.wire != batch.wire);
            }
            fs::remove_file(segment(&self.folder, id)?)?;
            deleted += 1;
        }
        Ok(deleted)
    }
}

/// What of `batches` answers a read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// End (exclusive) of what may be sent.
    pub(super) bound: i64,
    pub(super) max_bytes: usize,
    /// Send the first batch even if it is larger than `max_bytes`.
    pub(super) min_one_batch: bool,
}

/// The batches from the one that contains `offset` on, the newest where several do,
/// up to a hole or a limit. `None` where none contains it: the phase has missed,
/// whatever follows.
pub(super) fn run_from(batches: &[Batch], offset: i64, limits: Limits) -> Option<Vec<Batch>> {
    let holds = |at: i64| batches.iter().rfind(move |b| b.base <= at && at <= b.last);
    holds(offset)?;
    let mut run: Vec<Batch> = Vec::new();
    let (mut next, mut bytes) = (offset, 0);
    while let Some(batch) = holds(next) {
        bytes += batch.wire.len();
        let excused = run.is_empty() && limits.min_one_batch;
        let goes_back = batch.base < next && !run.is_empty();
        if batch.last >= limits.bound || goes_back || (bytes > limits.max_bytes && !excused) {
            break;
        }
        next = batch.last + 1;
        run.push(batch.clone());
    }
    Some(run)
}

/// The end of the log, back to a hole or the limit.
fn newest(batches: &[Batch], high_watermark: i64) -> Vec<Batch> {
    let (mut next, mut bytes) = (high_watermark, 0);
    let mut found = Vec::new();
    while let Some(batch) = batches.iter().rfind(|batch| batch.last + 1 == next) {
        bytes += batch.wire.len();
        if bytes > BUFFER_BYTES {
            break;
        }
        next = batch.base;
        found.insert(0, batch.clone());
    }
    found
}

fn batch(frame: &FrameParts) -> Result<Batch> {
    let wire = frame.options.get(2).cloned().flatten().context("a frame without its batch")?;
    ensure!(wire.len() >= 61, "a batch of {} bytes", wire.len());
    let delta = i32::from_be_bytes([wire[23], wire[24], wire[25], wire[26]]);
    let records = frame.entries.iter().map(|entry| (entry.offset, entry.timestamp)).collect();
    let last = frame.base_offset + i64::from(delta);
    Ok(Batch { base: frame.base_offset, last, wire, records })
}

/// A control record's key: version, then 0 for abort, 1 for commit.
fn is_abort(frame: &FrameParts) -> Result<bool> {
    let key = frame.entries.first().and_then(|entry| entry.key.as_ref());
    Ok(key.context("a marker without a key")?.get(2..4) == Some(&[0, 0]))
}

/// Whole frames by segment, in file order. A torn tail ends a segment.
fn read_segments(folder: &Path) -> Result<BTreeMap<u64, Vec<FrameParts>>> {
    let mut segments = BTreeMap::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let bytes = fs::read(&path)?;
        let mut rest = &bytes[..];
        let mut frames = Vec::new();
        while let Ok((frame, len)) = FrameParts::decode(rest) {
            frames.push(frame);
            rest = &rest[len..];
        }
        segments.insert(segment_id(&path)?, frames);
    }
    Ok(segments)
}

/// `wal_{partition}_{id}.log`.
fn segment_id(path: &Path) -> Result<u64> {
    let stem = path.file_stem().and_then(|stem| stem.to_str()).context("a segment is UTF-8")?;
    Ok(stem.rsplit('_').next().context("a segment has an id")?.parse()?)
}

fn segment(folder: &Path, id: u64) -> Result<PathBuf> {
    let partition = folder.file_name().and_then(|name| name.to_str()).context("a partition")?;
    Ok(folder.join(format!("wal_{partition}_{id}.log")))
}
