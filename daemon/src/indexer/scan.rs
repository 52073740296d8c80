//! Owns pass 1 over a partition: every frame of every segment, what was damaged,
//! and which frames hold one and the same batch.

use std::collections::BTreeMap;

use super::plan::Frame;
use super::report::Finding;
use crate::record::{BatchError, CanonicalRecord, OffsetRange};
use crate::wal::{
    FrameRef, PartitionDir, SegmentFile, SegmentReader, SegmentScan, WalError, WalFormat,
};

/// Frames of one partition planned together: bounds the plan's memory at about
/// 200 MB. Segments beyond it wait for the next run.
pub(super) const FRAMES_MAX: usize = 4 << 20;
/// Segment files of one partition that are open at once.
const OPEN_SEGMENTS_MAX: usize = 32;

/// What pass 1 found.
#[derive(Debug, Default)]
pub(super) struct Scanned {
    pub(super) segments: Vec<SegmentFile>,
    pub(super) frames: Vec<Frame>,
    /// Offsets that a damaged part of the WAL may have held.
    pub(super) suspect: Vec<OffsetRange>,
    pub(super) findings: Vec<Finding>,
}

/// Scans the segments of `dir` in order of id. Blocking.
pub(super) fn scan_all(format: WalFormat, dir: &PartitionDir) -> Scanned {
    let mut scanned = Scanned::default();
    for file in &dir.segments {
        if scanned.frames.len() >= FRAMES_MAX {
            scanned.findings.push(Finding {
                line: format!(
                    "{}: left for the next run, {FRAMES_MAX} batches are planned at once",
                    file.path.display()
                ),
                damage: false,
            });
            break;
        }
        match crate::wal::scan(format, &dir.tp, file) {
            Ok(found) => take(&mut scanned, file, found),
            // A segment that cannot be read may have held anything.
            Err(error) => {
                scanned.suspect.extend(OffsetRange::new(0, i64::MAX - 1));
                scanned.findings.push(Finding { line: error.to_string(), damage: true });
            }
        }
    }
    scanned
}

fn take(scanned: &mut Scanned, file: &SegmentFile, found: SegmentScan) {
    let path = file.path.display();
    for damage in &found.damaged {
        let from = damage.after.map_or(0, |last| last.saturating_add(1));
        let to = damage.before.map_or(i64::MAX - 1, |base| base - 1);
        scanned.suspect.extend(OffsetRange::new(from, to));
        scanned.findings.push(Finding {
            line: format!(
                "{path}: bytes {}..{} are damaged: {}; what verifies around them is archived, \
                 keep the file",
                damage.start, damage.end, damage.why
            ),
            damage: true,
        });
    }
    if let Some(at) = found.torn_at {
        let torn = found.len.saturating_sub(at);
        scanned.findings.push(Finding {
            line: format!("{path}: ends in a torn frame of {torn} bytes at byte {at}, ignored"),
            damage: false,
        });
    }
    for line in found.skipped.lines() {
        scanned.findings.push(Finding { line: format!("{path}: {line}"), damage: false });
    }
    let segment = scanned.segments.len() as u32;
    scanned.frames.extend(found.frames.into_iter().map(|at| Frame { segment, at }));
    scanned.segments.push(file.clone());
}

/// Reads batches out of several segments, few files open at a time.
#[derive(Debug)]
pub(super) struct Segments<'a> {
    format: WalFormat,
    dir: &'a PartitionDir,
    files: &'a [SegmentFile],
    open: BTreeMap<u32, SegmentReader>,
}

impl<'a> Segments<'a> {
    pub(super) fn new(format: WalFormat, dir: &'a PartitionDir, files: &'a [SegmentFile]) -> Self {
        Self { format, dir, files, open: BTreeMap::new() }
    }

    /// The id of a segment, the first half of WAL order.
    pub(super) fn id(&self, segment: u32) -> u64 {
        self.files[segment as usize].id
    }

    /// The batch of `frame`, verified again. Blocking.
    pub(super) fn batch(&mut self, frame: &Frame) -> Result<CanonicalRecord, WalError> {
        if !self.open.contains_key(&frame.segment) {
            if self.open.len() == OPEN_SEGMENTS_MAX {
                self.open.pop_first();
            }
            let file = &self.files[frame.segment as usize];
            let reader = SegmentReader::open(self.format, &self.dir.tp, file)?;
            self.open.insert(frame.segment, reader);
        }
        let Some(reader) = self.open.get_mut(&frame.segment) else {
            unreachable!("the reader was put in above");
        };
        reader.batch(&frame.at)
    }

    fn bytes(&mut self, frame: &Frame) -> Result<bytes::Bytes, CompareError> {
        Ok(self.batch(frame)?.to_kafka_batch()?)
    }
}

#[derive(Debug, thiserror::Error)]
enum CompareError {
    #[error(transparent)]
    Wal(#[from] WalError),
    #[error(transparent)]
    Batch(#[from] BatchError),
}

/// Drops frames that hold the same batch as a newer one: the same offsets with
/// the same bytes exist once. A checksum only suggests it; the bytes decide.
/// Returns how many were dropped. Blocking.
pub(super) fn drop_copies(frames: &mut Vec<Frame>, segments: &mut Segments<'_>) -> u64 {
    frames.sort_unstable_by_key(|frame| (frame.identity(), std::cmp::Reverse(frame.order())));
    let before = frames.len();
    frames.dedup_by(|older, newer| {
        older.identity() == newer.identity() && {
            // A frame that cannot be read again is kept: building the archive says why.
            matches!((segments.bytes(older), segments.bytes(newer)), (Ok(a), Ok(b)) if a == b)
        }
    });
    (before - frames.len()) as u64
}

/// The offsets that `frames` touch.
pub(super) fn hull(frames: &[Frame]) -> Option<OffsetRange> {
    let base = frames.iter().map(Frame::base).min()?;
    let last = frames.iter().map(Frame::last).max()?;
    OffsetRange::new(base, last)
}

const _: () = assert!(size_of::<FrameRef>() <= 40, "a segment may hold millions of frames");
