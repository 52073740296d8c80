//! Owns pass 1 over a partition: the frames of its segments, what was damaged, and
//! which frames hold one and the same batch; and what of it is remembered, so that
//! a segment which does not change is read once.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::Pulse;
use super::plan::Frame;
use super::proof::ArchiveDigest;
use super::release::Condition;
use super::report::Finding;
use crate::record::{CanonicalRecord, OffsetRange, TopicPartition};
use crate::wal::{
    Damage, FrameRef, Gist, HeldSegment, SegmentFile, SegmentReader, SegmentScan, WalError,
    WalFormat,
};

/// Frames of one partition planned together: bounds the plan's memory at about
/// 200 MB. Segments beyond it wait for the next step.
pub(super) const FRAMES_MAX: usize = 4 << 20;
/// Segment files of one partition that are read through a buffer at once.
const READERS_MAX: usize = 32;
/// Segment files of one partition that are held open while it is archived. Beyond
/// it a segment that vanishes meanwhile is lost as if it had vanished before.
const HELD_MAX: usize = 128;
/// Ranges of offsets remembered of one segment: an honest one has one, or a few where
/// batches came out of order. What lies behind them passes for not held, and waits.
const HELD_RANGES_MAX: usize = 1024;
/// Frames of one partition remembered between steps while they wait behind a hole,
/// at 40 bytes each. Segments beyond it are scanned again when there is news.
const REMEMBERED_FRAMES_MAX: usize = 1 << 18;

/// What is remembered of a partition's segments between steps.
#[derive(Debug, Default)]
pub(super) struct Memory {
    segments: HashMap<u64, Known>,
}

#[derive(Debug)]
struct Known {
    /// The segment as it was then: any difference makes this void.
    file: SegmentFile,
    /// `None` once all of them are proven committed.
    frames: Option<Arc<Vec<FrameRef>>>,
    /// The archives on which that proof rests.
    rests_on: Vec<ArchiveDigest>,
    condition: Condition,
    /// The offsets it touches.
    hull: Option<OffsetRange>,
    /// The offsets its batches take, ascending and apart.
    held: Vec<OffsetRange>,
    /// Offsets that a damaged part may have held.
    suspect: Vec<OffsetRange>,
}

/// What of one segment is not known to be archived.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Left {
    /// Bytes of the file.
    pub(super) bytes: u64,
    /// Offset after its last batch, where it was scanned as it is.
    pub(super) end: Option<i64>,
}

/// What is remembered of a segment that was read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Recollection<'a> {
    pub(super) condition: Condition,
    /// The offsets it touches.
    pub(super) hull: Option<OffsetRange>,
    /// The archives that prove every batch of it committed; `None` where they are
    /// not proven.
    pub(super) proof: Option<&'a [ArchiveDigest]>,
}

/// A segment whose frames are known.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) file: SegmentFile,
    frames: Arc<Vec<FrameRef>>,
    held: Option<HeldSegment>,
}

impl Source {
    /// Whether it holds no batch.
    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }
}

/// What pass 1 over the segments that are not yet committed found.
#[derive(Debug, Default)]
pub(super) struct Scanned {
    /// Ascending by id.
    pub(super) sources: Vec<Source>,
    /// What is to be told to the observer.
    pub(super) gists: Vec<(SegmentFile, Gist)>,
    pub(super) findings: Vec<Finding>,
    /// Segments that cannot be read: they may hold anything.
    pub(super) unreadable: HashSet<u64>,
    /// Whether [`FRAMES_MAX`] left segments for the next step.
    pub(super) left_out: bool,
}

impl Memory {
    /// Scans those of `files`, ascending by id, that are not known as they are now.
    /// Blocking.
    ///
    /// # Errors
    /// When a segment is not the one that was listed any more: list again.
    pub(super) fn scan(
        &mut self,
        format: WalFormat,
        tp: &TopicPartition,
        files: &[SegmentFile],
        pulse: &Pulse,
    ) -> Result<Scanned, WalError> {
        let mut scanned = Scanned::default();
        let mut frames = 0;
        for file in files {
            pulse.beat();
            if self.is_proven(file) {
                continue;
            }
            if frames >= FRAMES_MAX {
                scanned.left_out = true;
                scanned.findings.push(Finding {
                    line: format!(
                        "{}: left for the next step, {FRAMES_MAX} batches are planned at once",
                        file.path.display()
                    ),
                    damage: false,
                });
                break;
            }
            match self.source(format, tp, file, &mut scanned) {
                Ok(source) => {
                    frames += source.frames.len();
                    scanned.sources.push(source);
                }
                Err(error) if error.is_change() => return Err(error),
                Err(error) => {
                    scanned.unreadable.insert(file.id);
                    scanned.findings.push(Finding { line: error.to_string(), damage: true });
                }
            }
        }
        Ok(scanned)
    }

    fn source(
        &mut self,
        format: WalFormat,
        tp: &TopicPartition,
        file: &SegmentFile,
        scanned: &mut Scanned,
    ) -> Result<Source, WalError> {
        // Held before it is scanned: what the broker deletes from here on is read.
        let held = HeldSegment::open(file)?;
        let known = self.segments.get(&file.id).filter(|known| known.file == *file);
        let frames = match known.and_then(|known| known.frames.clone()) {
            Some(frames) => frames,
            None => {
                let found = crate::wal::scan(format, tp, file)?;
                if found.len != file.len {
                    return Err(WalError::Changed {
                        path: file.path.clone(),
                        what: format!("it had {} bytes and has {}", file.len, found.len),
                    });
                }
                scanned.gists.push((file.clone(), found.gist()));
                scanned.findings.extend(findings(file, &found));
                let known = Known::new(file, found);
                let frames = known.frames.clone().unwrap_or_default();
                self.segments.insert(file.id, known);
                frames
            }
        };
        let held = (scanned.sources.len() < HELD_MAX).then_some(held);
        Ok(Source { file: file.clone(), frames, held })
    }

    fn is_proven(&self, file: &SegmentFile) -> bool {
        self.recollect(file).is_some_and(|known| known.proof.is_some())
    }

    /// What is remembered of `file`, where it was scanned as it is.
    pub(super) fn recollect(&self, file: &SegmentFile) -> Option<Recollection<'_>> {
        let known = self.segments.get(&file.id).filter(|known| known.file == *file)?;
        let proof = known.frames.is_none().then_some(&known.rests_on[..]);
        Some(Recollection { condition: known.condition, hull: known.hull, proof })
    }

    /// The offsets that the batches of `file` take, ascending and apart; none where it
    /// was not scanned as it is.
    pub(super) fn held(&self, file: &SegmentFile) -> &[OffsetRange] {
        let known = self.segments.get(&file.id).filter(|known| known.file == *file);
        known.map_or(&[], |known| &known.held)
    }

    /// Whether `file` was scanned as it is.
    pub(super) fn knows(&self, file: &SegmentFile) -> bool {
        self.segments.get(&file.id).is_some_and(|known| known.file == *file)
    }

    /// What of `file` is not archived as far as is known. Of one that grew since all
    /// of it was, what it grew by.
    pub(super) fn left(&self, file: &SegmentFile) -> Left {
        let Some(known) = self.segments.get(&file.id) else {
            return Left { bytes: file.len, end: None };
        };
        if known.file == *file {
            let waits = known.frames.as_ref().is_some_and(|frames| !frames.is_empty());
            return if waits {
                Left { bytes: file.len, end: known.hull.map(|hull| hull.last() + 1) }
            } else {
                Left::default()
            };
        }
        let grew = known.frames.is_none() && known.file.inode == file.inode;
        let archived = if grew { known.file.len.min(file.len) } else { 0 };
        Left { bytes: file.len - archived, end: None }
    }

    /// Offsets that damaged parts of the WAL may have held.
    pub(super) fn suspect(&self) -> Vec<OffsetRange> {
        self.segments.values().flat_map(|known| known.suspect.iter().copied()).collect()
    }

    /// Remembers that every batch of a segment is proven committed, and by which
    /// archives.
    pub(super) fn proven(&mut self, file: &SegmentFile, by: Vec<ArchiveDigest>) {
        if let Some(known) = self.segments.get_mut(&file.id)
            && known.file == *file
        {
            (known.frames, known.rests_on) = (None, by);
        }
    }

    /// Forgets a segment: it is gone, or has to be proven anew.
    pub(super) fn forget(&mut self, id: u64) {
        self.segments.remove(&id);
    }

    /// Forgets the segment at `path`: its bytes are not those that were scanned.
    pub(super) fn forget_at(&mut self, path: &Path) {
        self.segments.retain(|_, known| known.file.path != path);
    }

    /// Forgets what is not in `listed` any more, and what is too much to keep.
    pub(super) fn trim(&mut self, listed: &HashSet<u64>) {
        let mut room = REMEMBERED_FRAMES_MAX;
        self.segments.retain(|id, known| {
            let waiting = known.frames.as_ref().map_or(0, |frames| frames.len());
            let fits = waiting <= room;
            room -= if fits { waiting } else { 0 };
            fits && listed.contains(id)
        });
    }
}

impl Known {
    fn new(file: &SegmentFile, found: SegmentScan) -> Self {
        let suspect = found.damaged.iter().filter_map(suspect).collect();
        let (condition, hull) = (condition(&found), hull_of(&found.frames));
        let held = held_by(&found.frames);
        let frames = Some(Arc::new(found.frames));
        Self { file: file.clone(), frames, rests_on: Vec::new(), condition, hull, held, suspect }
    }
}

/// How much of a segment was understood. Frames of version 1 are not archived, so
/// their segment has to stay.
pub(super) fn condition(found: &SegmentScan) -> Condition {
    let whole = found.damaged.is_empty() && found.skipped.v1 == 0;
    if whole { Condition::Whole } else { Condition::Damaged }
}

/// The offsets that `frames` of one segment touch.
pub(super) fn hull_of(frames: &[FrameRef]) -> Option<OffsetRange> {
    let base = frames.iter().map(|frame| frame.base).min()?;
    let last = frames.iter().map(FrameRef::last).max()?;
    OffsetRange::new(base, last)
}

/// The offsets that `frames` of one segment take: the first [`HELD_RANGES_MAX`] ranges.
fn held_by(frames: &[FrameRef]) -> Vec<OffsetRange> {
    let mut ranges: Vec<_> =
        frames.iter().filter_map(|frame| OffsetRange::new(frame.base, frame.last())).collect();
    ranges.sort_unstable_by_key(|range| range.base());
    let mut held: Vec<OffsetRange> = Vec::new();
    for range in ranges {
        match held.last_mut() {
            Some(before) if range.base() <= before.end() => {
                let last = before.last().max(range.last());
                *before = OffsetRange::new(before.base(), last).unwrap_or(*before);
            }
            _ => held.push(range),
        }
    }
    held.truncate(HELD_RANGES_MAX);
    held.shrink_to_fit();
    held
}

/// The frames of `sources`, each with the number of its segment among them.
pub(super) fn frames_of(sources: &[Source]) -> Vec<Frame> {
    let numbered = sources.iter().enumerate();
    numbered
        .flat_map(|(segment, source)| {
            let segment = segment as u32;
            source.frames.iter().map(move |at| Frame {
                segment,
                at: *at,
                known: false,
                truncated: false,
            })
        })
        .collect()
}

/// The offsets that a damaged part may have held: those between its neighbours.
/// Where these leave none, offsets are out of order there, and it may be any.
fn suspect(damage: &Damage) -> Option<OffsetRange> {
    let from = damage.after.map_or(0, |last| last.saturating_add(1));
    let to = damage.before.map_or(i64::MAX - 1, |base| base - 1);
    OffsetRange::new(from, to).or_else(|| OffsetRange::new(0, i64::MAX - 1))
}

fn findings(file: &SegmentFile, found: &SegmentScan) -> Vec<Finding> {
    let path = file.path.display();
    let mut findings = Vec::new();
    for damage in &found.damaged {
        let line = format!(
            "{path}: bytes {}..{} are damaged: {}; what verifies around them is archived, keep \
             the file",
            damage.start, damage.end, damage.why
        );
        findings.push(Finding { line, damage: true });
    }
    if let Some(at) = found.torn_at {
        let torn = found.len.saturating_sub(at);
        let line = format!("{path}: ends in a torn frame of {torn} bytes at byte {at}, ignored");
        findings.push(Finding { line, damage: false });
    }
    for line in found.skipped.lines() {
        findings.push(Finding { line: format!("{path}: {line}"), damage: false });
    }
    findings
}

/// Reads batches out of several segments, few buffers at a time.
#[derive(Debug)]
pub(super) struct Segments<'a> {
    format: WalFormat,
    tp: &'a TopicPartition,
    sources: &'a [Source],
    open: BTreeMap<u32, SegmentReader>,
}

impl<'a> Segments<'a> {
    pub(super) fn new(format: WalFormat, tp: &'a TopicPartition, sources: &'a [Source]) -> Self {
        Self { format, tp, sources, open: BTreeMap::new() }
    }

    /// The id of a segment, the first half of WAL order.
    pub(super) fn id(&self, segment: u32) -> u64 {
        self.sources[segment as usize].file.id
    }

    /// The batch of `frame`, verified again. Blocking.
    pub(super) fn batch(&mut self, frame: &Frame) -> Result<CanonicalRecord, WalError> {
        if !self.open.contains_key(&frame.segment) {
            if self.open.len() == READERS_MAX {
                self.open.pop_first();
            }
            let source = &self.sources[frame.segment as usize];
            let reader = match &source.held {
                Some(held) => held.reader(self.format, self.tp)?,
                None => SegmentReader::open(self.format, self.tp, &source.file)?,
            };
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
            leader_epoch: -1,
            flags: FrameFlags::default(),
        };
        (0..count)
            .map(|position| Frame { segment: 0, at: at(position), known: false, truncated: false })
            .collect()
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
    fn what_is_left_of_a_segment_is_what_no_step_has_archived() {
        let file = |len, inode| SegmentFile {
            id: 3,
            path: "/wal/t/0/wal_0_3.log".into(),
            len,
            modified_ms: 1,
            created_ms: None,
            inode,
        };
        let mut memory = Memory::default();
        let unscanned = |bytes| Left { bytes, end: None };
        assert_eq!(memory.left(&file(500, 7)), unscanned(500));
        let frames: Vec<FrameRef> = alike(2).iter().map(|frame| frame.at).collect();
        let found = SegmentScan { frames, len: 500, ..SegmentScan::default() };
        memory.segments.insert(3, Known::new(&file(500, 7), found));
        assert_eq!(memory.left(&file(500, 7)), Left { bytes: 500, end: Some(10) });
        memory.proven(&file(500, 7), Vec::new());
        assert_eq!(memory.left(&file(500, 7)), Left::default());
        assert_eq!(memory.left(&file(620, 7)), unscanned(120), "it grew");
        assert_eq!(memory.left(&file(620, 8)), unscanned(620), "another file");
        assert_eq!(memory.left(&file(90, 7)), unscanned(0), "emptied and filled again");
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
