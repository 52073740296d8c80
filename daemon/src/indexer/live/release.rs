//! Owns what may be deleted once a step has committed what it could: proving it by
//! the newest manifest, remembering it, telling it, in this order.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use super::LiveIndexer;
use super::reclaim::Reclaimable;
use super::work::Work;
use crate::catalog::{Committed, Gap, GapKind, Snapshot};
use crate::indexer::IndexError;
use crate::indexer::holes::Scene;
use crate::indexer::lives::Life;
use crate::indexer::partition::blocking;
use crate::indexer::proof::{ArchiveDigest, look_up, referenced};
use crate::indexer::release::{Condition, Release, Segment, missing, release};
use crate::indexer::report::PartitionReport;
use crate::indexer::scan::{Memory, Recollection, Source, condition, frames_of};
use crate::record::{OffsetRange, TopicPartition};
use crate::wal::classify::{Broker, Class};
use crate::wal::{SegmentFile, scan};

/// A segment in the directory.
type Present = (SegmentFile, Class);

/// What a step went by.
pub(super) struct LookedAt<'a> {
    /// The segments there were.
    pub(super) scene: &'a Scene,
    /// Those that were read.
    pub(super) sources: &'a Arc<Vec<Source>>,
}

impl LiveIndexer {
    /// Finds out what of the partition may be deleted, by the newest manifest there
    /// is; remembers it and tells it. Says whether there is more to do: a proof does not
    /// hold any more, or more is to be deleted.
    pub(super) async fn release(
        &self,
        tp: &TopicPartition,
        work: &mut Work,
        snapshot: Option<&Arc<Snapshot>>,
        looked_at: LookedAt<'_>,
        life: Life,
        report: &mut PartitionReport,
    ) -> Result<bool, IndexError> {
        let Life { mut ledger, anchor, .. } = life;
        let LookedAt { scene, sources } = looked_at;
        let Some(snapshot) = snapshot else {
            // Nothing is committed; only what holds nothing is done with.
            let empty = sources.iter().filter(|source| source.is_empty());
            empty.for_each(|source| work.memory.proven(&source.file, Vec::new()));
            return Ok(false);
        };
        let committed = self.indexer.catalog.confirm(snapshot).await?;
        let partly = self.prove(&committed, sources, &mut work.memory).await?;
        let present = self.present(tp);
        let doubted = doubt(&committed, &present, &mut work.memory).await?;
        let through = committed.archived_through();
        let (mut local, unread) = known_segments(&present, &work.memory, &partly);
        let mut found = release(&local, through, ledger.releasable_through());
        if found.through > ledger.releasable_through() && !unread.is_empty() {
            local.extend(self.sight(tp, unread).await?);
            found = release(&local, through, ledger.releasable_through());
        }
        let Release { segments, through } = found;
        let from = ledger.releasable_through();
        let through =
            self.short_of_missing(work, &committed, &present, scene, from..through).await?;
        if ledger.release(&committed, through) {
            self.put_ledger(tp, &ledger).await?;
        }
        self.indexer.watermarks.tell(&committed, ledger.releasable_through());
        report.archived_through = committed.archived_through();
        report.releasable_through = ledger.releasable_through().min(report.archived_through);
        report.releasable = segments;
        let reclaim = anchor.filter(|_| self.options.reclaim);
        let more = match reclaim {
            Some(anchor) => {
                let what = Reclaimable { releasable: report.releasable.clone(), anchor };
                self.reclaim(tp, work, &committed, what, report).await?
            }
            None => false,
        };
        Ok(doubted || more)
    }

    /// How much of `range` may be released: not what this WAL has not held yet, as long
    /// as the broker may write it.
    async fn short_of_missing(
        &self,
        work: &mut Work,
        committed: &Committed,
        present: &[Present],
        scene: &Scene,
        range: Range<i64>,
    ) -> Result<i64, IndexError> {
        let start = range.start.max(committed.snapshot().log_start());
        let Some(asked) = OffsetRange::new(start, range.end - 1) else { return Ok(range.end) };
        if self.broker() == Broker::Stopped {
            return Ok(range.end);
        }
        let mut held: Vec<OffsetRange> = Vec::new();
        for (file, _) in present {
            held.extend_from_slice(work.memory.held(file));
        }
        // A declared gap was waited for already.
        let declared = committed.snapshot().gaps_in(asked).await?;
        held.extend(declared.iter().map(|gap| gap.range));
        let unwritten = |range| Gap { range, kind: GapKind::Missing };
        let unwritten: Vec<Gap> = missing(asked, held).into_iter().map(unwritten).collect();
        // Whoever else commits, only this broker writes here.
        let scene = Scene { other_silent_since: None, ..scene.clone() };
        work.unwritten.sight(&unwritten, &scene);
        if let Some(at) = work.unwritten.wake_at(&scene) {
            work.wake(at);
        }
        let held_at = unwritten.get(work.unwritten.declarable(&scene));
        Ok(held_at.map_or(range.end, |gap| gap.range.base()))
    }

    /// Looks every batch of `sources` up in the newest manifest. Remembers the
    /// segments that are proven whole; returns the others, by their number.
    async fn prove(
        &self,
        committed: &Committed,
        sources: &Arc<Vec<Source>>,
        memory: &mut Memory,
    ) -> Result<HashMap<u64, Segment>, IndexError> {
        let shared = Arc::clone(sources);
        let frames = blocking(move || Ok(frames_of(&shared))).await?;
        let mut found = look_up(&self.indexer.reader, committed.snapshot(), frames).await?;
        let mut all: Vec<Segment> = sources
            .iter()
            .map(|source| {
                let condition = memory.recollect(&source.file).map(|known| known.condition);
                // Whether it is closed is asked later.
                Segment::new(source.file.id, false, condition.unwrap_or(Condition::Unread))
            })
            .collect();
        for frame in &found.frames {
            all[frame.segment as usize].add(frame.base(), frame.last(), frame.known);
        }
        let mut partly = HashMap::new();
        for (number, (source, segment)) in sources.iter().zip(all).enumerate() {
            if segment.is_proven() {
                let by = found.rests_on.remove(&(number as u32)).unwrap_or_default();
                memory.proven(&source.file, by);
            } else {
                partly.insert(segment.id, segment);
            }
        }
        Ok(partly)
    }

    /// All segments of the partition as they stand now, by ascending id.
    pub(super) fn present(&self, tp: &TopicPartition) -> Vec<Present> {
        let broker = self.broker();
        let partitions = self.partitions();
        let Some(partition) = partitions.get(tp) else { return Vec::new() };
        let standing = partition.standing(broker, &self.options.rules, &*self.clock);
        standing.map(|segment| (segment.seen.file.clone(), segment.class)).collect()
    }

    /// Which offsets the segments hold that may still grow, as they are now: their
    /// batches are not committed, and must not be passed.
    async fn sight(
        &self,
        tp: &TopicPartition,
        growing: Vec<SegmentFile>,
    ) -> Result<Vec<Segment>, IndexError> {
        let (format, tp) = (self.indexer.format, tp.clone());
        let sight = move |file: SegmentFile| {
            let Ok(found) = scan(format, &tp, &file) else {
                return Segment::new(file.id, false, Condition::Unread);
            };
            let mut segment = Segment::new(file.id, false, condition(&found));
            found.frames.iter().for_each(|frame| segment.add(frame.base, frame.last(), false));
            segment
        };
        blocking(move || Ok(growing.into_iter().map(sight).collect())).await
    }
}

/// Forgets the segments whose proof rests on an archive that the newest manifest does
/// not reference any more. Says whether there are any.
async fn doubt(
    committed: &Committed,
    present: &[Present],
    memory: &mut Memory,
) -> Result<bool, IndexError> {
    let proofs = |memory: &Memory| -> Vec<(u64, OffsetRange, Vec<ArchiveDigest>)> {
        let known = present.iter().filter_map(|(file, _)| {
            let Recollection { hull, proof, .. } = memory.recollect(file)?;
            Some((file.id, hull?, proof?.to_vec()))
        });
        known.collect()
    };
    let proofs = proofs(memory);
    let Some(base) = proofs.iter().map(|(_, hull, _)| hull.base()).min() else { return Ok(false) };
    let last = proofs.iter().map(|(_, hull, _)| hull.last()).max().unwrap_or(base);
    let Some(hull) = OffsetRange::new(base, last) else { return Ok(false) };
    let there: HashSet<ArchiveDigest> = referenced(committed.snapshot(), hull).await?;
    let gone = proofs.iter().filter(|(_, _, by)| !by.iter().all(|digest| there.contains(digest)));
    let gone: Vec<u64> = gone.map(|(id, _, _)| *id).collect();
    gone.iter().for_each(|id| memory.forget(*id));
    Ok(!gone.is_empty())
}

/// What is known of the segments, and those that may grow and were not read.
fn known_segments(
    present: &[Present],
    memory: &Memory,
    partly: &HashMap<u64, Segment>,
) -> (Vec<Segment>, Vec<SegmentFile>) {
    let (mut known, mut unread) = (Vec::with_capacity(present.len()), Vec::new());
    for (file, class) in present {
        let closed = *class == Class::Closed;
        match memory.recollect(file) {
            Some(Recollection { condition, hull, proof: Some(_) }) => {
                let mut segment = Segment::new(file.id, closed, condition);
                if let Some(hull) = hull {
                    segment.add(hull.base(), hull.last(), true);
                }
                known.push(segment);
            }
            Some(Recollection { proof: None, .. }) if partly.contains_key(&file.id) => {
                let mut segment = partly[&file.id];
                segment.closed = closed;
                known.push(segment);
            }
            None if !closed => unread.push(file.clone()),
            _ => known.push(Segment::new(file.id, closed, Condition::Unread)),
        }
    }
    (known, unread)
}
