//! Owns the policy of order, gaps and overlaps: which batches form the served
//! log, which lie beneath it, and what is missing. Pure: no file, no clock.
//!
//! Does not own: reading frames (`wal`), knowing what is committed (the caller
//! takes committed batches out first, or marks them), or cutting archives by size.
//!
//! The served log is a **chain**: at offset *n* it holds the batch that contains
//! *n* and is newest in WAL order, and goes on at that batch's last offset plus
//! one. Every other batch is an **overlap**, and so is one that the broker truncated. Where no batch contains *n* there is
//! a **hole**, which becomes a declared gap, or at which the plan is
//! [cut](Plan::cut) while what is missing may still come.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use crate::catalog::{Gap, GapKind};
use crate::record::OffsetRange;
use crate::wal::FrameRef;

/// Base, last offset, length and CRC-32C of a batch.
pub type Identity = (i64, i64, u32, u32);

/// A frame of one of the segments at hand.
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    /// Index into the segments, which ascend by id: with the position, WAL order.
    pub segment: u32,
    /// Where and what it is.
    pub at: FrameRef,
    /// Whether a committed archive holds it already, though nobody serves all of
    /// its offsets: it may be served there, and is no overlap of anything.
    pub known: bool,
    /// Whether the broker took it back: another leader's batches stand there now. It
    /// is kept, and never served.
    pub truncated: bool,
}

impl Frame {
    /// First offset of the batch.
    #[must_use]
    pub fn base(&self) -> i64 {
        self.at.base
    }

    /// Last offset of the batch.
    #[must_use]
    pub fn last(&self) -> i64 {
        self.at.base + i64::from(self.at.last_delta)
    }

    /// Place in WAL order; greater is newer.
    #[must_use]
    pub fn order(&self) -> (u32, u64) {
        (self.segment, self.at.position)
    }

    /// What makes two frames hold the same batch: offsets, length and checksum.
    #[must_use]
    pub fn identity(&self) -> Identity {
        (self.base(), self.last(), self.at.wire_len, self.at.wire_crc32c)
    }
}

/// What the catalog already says of the partition.
#[derive(Clone, Debug, Default)]
pub struct Archived {
    /// First offset that no committed archive or declared gap tiles.
    pub through: i64,
    /// Declared gaps, ascending.
    pub gaps: Vec<Gap>,
    /// Whether nothing at all is committed yet.
    pub is_new: bool,
}

impl Archived {
    /// Whether some offset of `frame` is in no archive that tiles.
    #[must_use]
    pub fn lacks_some_of(&self, frame: &Frame) -> bool {
        let gap = self.gaps.partition_point(|gap| gap.range.last() < frame.base());
        let in_gap = self.gaps.get(gap).is_some_and(|gap| gap.range.base() <= frame.last());
        in_gap || frame.last() >= self.through
    }
}

/// A stretch of the log without holes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// First offset it serves. Its first batch may begin below.
    pub start: i64,
    /// Last offset it may serve: committed archives begin after it.
    pub end: i64,
    /// Whether it fills a declared gap instead of growing the log.
    pub fill: bool,
    /// Indices of the served frames, in offset order.
    pub chain: Vec<u32>,
    /// Indices of the frames beneath, ascending by base offset, then WAL order.
    pub overlaps: Vec<u32>,
}

/// What to archive, in order of offset.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Stretches to archive, ascending: first the fills, then the growth.
    pub runs: Vec<Run>,
    /// Holes in front of or between the growing runs.
    pub gaps: Vec<Gap>,
    /// Frames whose offsets other bytes already serve: an archive that tiles nothing.
    pub latecomers: Vec<u32>,
}

impl Plan {
    /// Whether there is nothing to archive.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty() && self.latecomers.is_empty()
    }
}

/// Plans what to archive of `frames`.
///
/// `frames` are sorted here, by base offset and then WAL order; the indices in
/// the plan refer to that order. `suspect` are the offset ranges in which damaged
/// parts of the WAL may have lain: a hole that touches one is `Damaged`.
pub fn plan(frames: &mut [Frame], archived: &Archived, suspect: &[OffsetRange]) -> Plan {
    frames.sort_unstable_by_key(|frame| (frame.base(), frame.order()));
    let mut used = vec![false; frames.len()];
    let mut plan = Plan::default();
    let span = frames.iter().map(|frame| i64::from(frame.at.last_delta)).max().unwrap_or(0);

    for gap in &archived.gaps {
        let filled = chain(frames, span, gap.range.base(), gap.range.last(), &mut used);
        plan.runs.extend(filled.into_iter().map(|run| Run { fill: true, ..run }));
    }
    let grown = chain(frames, span, archived.through, i64::MAX, &mut used);

    let mut next = archived.through;
    for run in grown {
        if let Some(hole) = OffsetRange::new(next, run.start - 1) {
            let first = archived.is_new && next == archived.through;
            plan.gaps.push(Gap { range: hole, kind: gap_kind(hole, first, suspect) });
        }
        next = run.chain.last().map_or(run.start, |&last| frames[last as usize].last() + 1);
        plan.runs.push(run);
    }
    place_overlaps(frames, &used, next, &mut plan);
    plan
}

impl Plan {
    /// Keeps what lies before the gap number `declared`, the first that must not be
    /// declared yet. The frames behind it wait.
    pub fn cut(&mut self, declared: usize) {
        let Some(hole) = self.gaps.get(declared).map(|gap| gap.range) else { return };
        self.gaps.truncate(declared);
        self.runs.retain(|run| run.fill || run.start <= hole.last());
    }
}

fn gap_kind(hole: OffsetRange, first: bool, suspect: &[OffsetRange]) -> GapKind {
    if suspect.iter().any(|range| range.overlaps(hole)) {
        GapKind::Damaged
    } else if first {
        GapKind::BeforeFirst
    } else {
        GapKind::Missing
    }
}

/// A frame that may be served next, greatest WAL order first.
struct Newest {
    order: (u32, u64),
    last: i64,
    index: u32,
}

impl PartialEq for Newest {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}
impl Eq for Newest {}
impl PartialOrd for Newest {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Newest {
    fn cmp(&self, other: &Self) -> Ordering {
        self.order.cmp(&other.order)
    }
}

/// Walks the chain through `start..=end` and cuts it at every hole. A frame that
/// filled a gap may be served again behind it: it is the only one to hold both.
/// No frame has more than `span` offsets behind its base.
fn chain(frames: &[Frame], span: i64, start: i64, end: i64, used: &mut [bool]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    let mut open: Option<Run> = None;
    let mut candidates = BinaryHeap::new();
    let mut ahead = frames.partition_point(|frame| frame.base() < start.saturating_sub(span));
    let mut next = start;
    while next <= end {
        while ahead < frames.len() && frames[ahead].base() <= next {
            let frame = &frames[ahead];
            if frame.last() >= next && !frame.truncated {
                let index = ahead as u32;
                candidates.push(Newest { order: frame.order(), last: frame.last(), index });
            }
            ahead += 1;
        }
        // A frame that ends before `next` can never be served again.
        while candidates.peek().is_some_and(|newest| newest.last < next) {
            candidates.pop();
        }
        if let Some(newest) = candidates.pop() {
            used[newest.index as usize] = true;
            let run = open.get_or_insert_with(|| Run {
                start: next,
                end,
                fill: false,
                chain: Vec::new(),
                overlaps: Vec::new(),
            });
            run.chain.push(newest.index);
            next = newest.last + 1;
        } else {
            runs.extend(open.take());
            match frames.get(ahead) {
                Some(frame) if frame.truncated => ahead += 1,
                Some(frame) => next = frame.base(),
                None => break,
            }
        }
    }
    runs.extend(open);
    runs
}

/// Puts every frame that is not served beneath the run that covers it, or among
/// the latecomers when only committed archives do. One that was truncated waits until
/// the log has grown beyond its base to `end`.
fn place_overlaps(frames: &[Frame], used: &[bool], end: i64, plan: &mut Plan) {
    let covered = |run: &Run| {
        let last = run.chain.last().map_or(run.start, |&last| frames[last as usize].last());
        (run.start, last.min(run.end))
    };
    // Fills lie in gaps, growth behind all of them: runs ascend and share nothing.
    let ranges: Vec<(i64, i64)> = plan.runs.iter().map(covered).collect();
    for (index, frame) in frames.iter().enumerate() {
        let waits = frame.truncated && frame.base() >= end;
        if used[index] || frame.known || waits {
            continue;
        }
        let run = ranges.partition_point(|(_, last)| *last < frame.base());
        match ranges.get(run) {
            Some((start, _)) if *start <= frame.last() => {
                plan.runs[run].overlaps.push(index as u32);
            }
            _ => plan.latecomers.push(index as u32),
        }
    }
}

#[cfg(test)]
mod tests;
