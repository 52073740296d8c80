//! Owns pass 1 over a partition: every frame of every segment, what was damaged,
//! and which frames hold one and the same batch.

use std::collections::{BTreeMap, HashSet};

use bytes::Bytes;

use super::plan::Frame;
use super::report::Finding;
use crate::record::{CanonicalRecord, OffsetRange};
use crate::wal::{
    Damage, FrameRef, PartitionDir, SegmentFile, SegmentReader, SegmentScan, WalError, WalFormat,
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
        scanned.suspect.extend(suspect(damage));
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
    scanned.frames.extend(found.frames.into_iter().map(|at| Frame { segment, at, known: false }));
    scanned.segments.push(file.clone());
}

/// The offsets that a damaged part may have held: those between its neighbours.
/// Where these leave none, offsets are out of order there, and it may be any.
fn suspect(damage: &Damage) -> Option<OffsetRange> {
    let from = damage.after.map_or(0, |last| last.saturating_add(1));
    let to = damage.before.map_or(i64::MAX - 1, |base| base - 1);
    OffsetRange::new(from, to).or_else(|| OffsetRange::new(0, i64::MAX - 1))
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

    /// The bytes of the batch of `frame`; `None` where they cannot be read again.
    pub(super) fn bytes(&mut self, frame: &Frame) -> Option<Bytes> {
        self.batch(frame).ok()?.to_kafka_batch().ok()
    }
}

/// Drops frames that hold the same batch as a newer one: the same offsets with
/// the same bytes exist once. A checksum only suggests it; the bytes decide.
/// A frame that cannot be read again is kept: building the archive says why.
/// Returns how many were dropped. Leaves the frames by identity, newest first.
pub(super) fn drop_copies(
    frames: &mut Vec<Frame>,
    mut bytes: impl FnMut(&Frame) -> Option<Bytes>,
) -> u64 {
    frames.sort_unstable_by_key(|frame| (frame.identity(), std::cmp::Reverse(frame.order())));
    let mut copies = Vec::with_capacity(frames.len());
    for alike in frames.chunk_by(|a, b| a.identity() == b.identity()) {
        let mut seen = HashSet::new();
        copies.extend(alike.iter().map(|frame| {
            // Nearly every batch has no twin and is not read for it.
            alike.len() > 1 && bytes(frame).is_some_and(|b| !seen.insert(blake3::hash(&b)))
        }));
    }
    let before = frames.len();
    let mut copies = copies.into_iter();
    frames.retain(|_| !copies.next().unwrap_or(false));
    (before - frames.len()) as u64
}

/// The offsets that `frames` touch.
pub(super) fn hull(frames: &[Frame]) -> Option<OffsetRange> {
    let base = frames.iter().map(Frame::base).min()?;
    let last = frames.iter().map(Frame::last).max()?;
    OffsetRange::new(base, last)
}

const _: () = assert!(size_of::<FrameRef>() <= 40, "a segment may hold millions of frames");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::FrameFlags;

    /// Frames of one identity, at positions 0, 1, ...
    fn alike(count: u64) -> Vec<Frame> {
        let at = |position| FrameRef {
            position,
            frame_len: 100,
            base: 5,
            last_delta: 4,
            wire_len: 61,
            wire_crc32c: 7,
            flags: FrameFlags::default(),
        };
        (0..count).map(|position| Frame { segment: 0, at: at(position), known: false }).collect()
    }

    #[test]
    fn copies_are_dropped_also_when_another_batch_of_that_checksum_stands_between() {
        let mut frames = alike(4);
        let bytes = [Some("a"), Some("b"), Some("a"), Some("b")];
        let read = |frame: &Frame| bytes[frame.at.position as usize].map(Bytes::from);
        assert_eq!(drop_copies(&mut frames, read), 2);
        let kept: Vec<u64> = frames.iter().map(|frame| frame.at.position).collect();
        assert_eq!(kept, [3, 2], "of each the newest is kept");
    }

    #[test]
    fn what_cannot_be_read_again_is_no_copy_and_what_is_alone_is_not_read() {
        let mut frames = alike(3);
        let read = |frame: &Frame| (frame.at.position != 1).then(|| Bytes::from("a"));
        assert_eq!(drop_copies(&mut frames, read), 1);
        assert_eq!(frames.len(), 2);
        assert_eq!(drop_copies(&mut alike(1), |_| panic!("read")), 0);
    }

    #[test]
    fn damage_among_offsets_out_of_order_may_have_held_any() {
        let damage = |after, before| Damage {
            start: 0,
            end: 9,
            why: String::new(),
            after: Some(after),
            before: Some(before),
        };
        assert_eq!(suspect(&damage(4, 8)), OffsetRange::new(5, 7));
        assert_eq!(suspect(&damage(19, 1)), OffsetRange::new(0, i64::MAX - 1));
        assert_eq!(suspect(&damage(4, 5)), OffsetRange::new(0, i64::MAX - 1));
    }
}
