//! Owns reading every archived batch, served or beneath, ascending by base
//! offset and then WAL order: for verification, restore and curious people.
//!
//! Archives whose batches reach into each other form a **group**; groups follow
//! one another without mixing, so one group's lists are all that is in memory.
//! How far the batches of an archive reach out of its tile stands only in its
//! table of contents, so all tables are asked before the first batch is sent.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};

use super::progress::{Bound, Progress, bound};
use super::types::{Data, EndReason, Isolation, PartitionRequest};
use super::{FetchError, Fetcher, Sink};
use crate::archive::{Chunk, Toc, TocFile, WalRank};
use crate::catalog::{ArchiveEntry, Snapshot};
use crate::read::ReadStats;
use crate::record::{CanonicalRecord, OffsetRange};

/// Tables of contents asked for at a time.
const TOCS_AT_ONCE: usize = 8;
/// Offsets that a batch may reach out of the archive that holds it: its header
/// counts them in an `i32`.
const REACH_MAX: i64 = i32::MAX as i64;
/// Chunks brought by one request when batches are picked one by one.
const CHUNKS_AHEAD: usize = 8;
/// Batches in one group: their list is sorted in memory at about 72 bytes each.
const GROUP_BATCHES_MAX: usize = 8 << 20;

/// An archive of a group, with the chunks that are being picked from.
struct Member {
    entry: ArchiveEntry,
    toc: Arc<Toc>,
    /// Where the chunks of the log, and of that beneath, begin in its raw bytes.
    starts: [Vec<u64>; 2],
    chunks: BTreeMap<usize, Bytes>,
}

impl Member {
    async fn open(
        fetcher: &Fetcher,
        entry: ArchiveEntry,
        stats: &ReadStats,
    ) -> Result<Self, FetchError> {
        let toc = fetcher.reader.toc(&entry, stats).await?;
        stats.archive_opened();
        let starts = [toc.log(), toc.overlap_log()].map(|file| starts(&toc, file));
        Ok(Self { entry, toc, starts, chunks: BTreeMap::new() })
    }
}

fn starts(toc: &Toc, file: Option<&TocFile>) -> Vec<u64> {
    let chunks = file.map_or(&[][..], |file| toc.chunks_of(file));
    let next =
        |at: &mut u64, chunk: &Chunk| Some(std::mem::replace(at, *at + u64::from(chunk.raw)));
    chunks.iter().scan(0, next).collect()
}

/// Where a batch of the group lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Pick {
    base: i64,
    /// WAL order among equal bases; committed first, without a rank, comes first.
    rank: Option<WalRank>,
    member: u32,
    overlap: bool,
    last: i64,
    /// Raw byte position in its file, and length.
    position: u64,
    len: u32,
    crc32c: u32,
}

impl Pick {
    /// What makes two the same batch. One may lie in two archives: it filled a gap
    /// and was needed again behind it.
    fn identity(&self) -> (i64, i64, u32, u32) {
        (self.base, self.last, self.len, self.crc32c)
    }
}

/// Sends every batch that ends at or above the offset asked for.
pub(super) async fn all(
    fetcher: &Fetcher,
    request: &PartitionRequest,
    snapshot: &Arc<Snapshot>,
    progress: &mut Progress,
    sink: &Sink,
    stats: &ReadStats,
) -> Result<EndReason, FetchError> {
    let members = reaching(fetcher, snapshot, progress.next, stats).await?;
    // Batches beneath may reach beyond the served log; only a request bounds them.
    let bound = match (request.upper_bound, request.isolation) {
        (None, Isolation::ReadUncommitted) => {
            Bound { offset: i64::MAX, reason: EndReason::EndOfArchive }
        }
        _ => bound(request, snapshot),
    };
    let mut group: Vec<Member> = Vec::new();
    let mut reach = i64::MIN;
    for (hull, entry) in members {
        if !group.is_empty() && hull.base() > reach {
            let done = std::mem::take(&mut group);
            if let Some(end) =
                send_group(fetcher, snapshot, done, bound, progress, sink, stats).await?
            {
                return Ok(end);
            }
        }
        reach = reach.max(hull.last());
        group.push(Member::open(fetcher, entry, stats).await?);
    }
    let end = send_group(fetcher, snapshot, group, bound, progress, sink, stats).await?;
    Ok(end.unwrap_or(EndReason::EndOfArchive))
}

/// The archives with a batch that ends at or above `from`, by the offsets that
/// their batches touch.
async fn reaching(
    fetcher: &Fetcher,
    snapshot: &Snapshot,
    from: i64,
    stats: &ReadStats,
) -> Result<Vec<(OffsetRange, ArchiveEntry)>, FetchError> {
    let lowest = from.saturating_sub(REACH_MAX).max(0);
    let Some(rest) = OffsetRange::new(lowest, i64::MAX - 1) else { return Ok(Vec::new()) };
    let entries = snapshot.find_by_offset_range(rest).await?;
    let hull_of = |entry: ArchiveEntry| async move {
        let toc = fetcher.reader.toc(&entry, stats).await?;
        Ok::<_, FetchError>((hull(&entry, &toc), entry))
    };
    // Below `from` only what lies beneath a log can reach up to it.
    let hulls: Vec<_> = entries
        .into_iter()
        .filter(|entry| entry.summary.range.last() >= from || entry.summary.overlaps > 0)
        .map(hull_of)
        .collect();
    let mut members: Vec<_> =
        futures::stream::iter(hulls).buffered(TOCS_AT_ONCE).try_collect().await?;
    members.retain(|(hull, _)| hull.last() >= from);
    members.sort_by_key(|(hull, entry)| (*hull, entry.built_for));
    Ok(members)
}

/// The offsets that batches of `entry` touch: its tile and what reaches out of it.
fn hull(entry: &ArchiveEntry, toc: &Toc) -> OffsetRange {
    let files = [toc.log(), toc.overlap_log()];
    let chunks = files
        .into_iter()
        .flatten()
        .flat_map(|file| &toc.chunks[file.chunks.start as usize..file.chunks.end as usize]);
    let tile = entry.summary.range;
    let (base, last) = chunks.fold((tile.base(), tile.last()), |(base, last), chunk| {
        (base.min(chunk.first), last.max(chunk.last))
    });
    OffsetRange::new(base, last).unwrap_or(tile)
}

async fn send_group(
    fetcher: &Fetcher,
    snapshot: &Snapshot,
    mut group: Vec<Member>,
    bound: Bound,
    progress: &mut Progress,
    sink: &Sink,
    stats: &ReadStats,
) -> Result<Option<EndReason>, FetchError> {
    let from = progress.next;
    let mut picks = picks_of(fetcher, &group, stats).await?;
    picks.retain(|pick| pick.last >= from);
    picks.sort_unstable_by_key(|pick| (pick.identity(), Reverse(pick.rank)));
    picks.dedup_by_key(|pick| pick.identity());
    picks.sort_unstable();
    let mut cut = None;
    for pick in picks {
        if pick.last >= bound.offset {
            // A shorter one may follow.
            cut = Some(bound.reason);
            continue;
        }
        if let Some(hole) = OffsetRange::new(progress.next, pick.base - 1)
            && let Some(gap) = snapshot.gaps_in(hole).await?.into_iter().next()
        {
            return Ok(Some(EndReason::Gap(gap)));
        }
        if !progress.admits(pick.len as usize) {
            return Ok(Some(EndReason::Limit));
        }
        let wire = batch(fetcher, &mut group[pick.member as usize], &pick, stats).await?;
        let member = &group[pick.member as usize];
        let record = CanonicalRecord::from_wire(wire.clone()).map_err(|source| {
            contradiction(&member.entry, format!("the batch listed at {}: {source}", pick.base))
        })?;
        progress.sent(&record, pick.last, wire.len());
        let ends = vec![wire.len()];
        progress.send_data(sink, Data { wire, ends }).await?;
    }
    Ok(cut)
}

async fn picks_of(
    fetcher: &Fetcher,
    group: &[Member],
    stats: &ReadStats,
) -> Result<Vec<Pick>, FetchError> {
    let mut picks = Vec::new();
    for (index, member) in group.iter().enumerate() {
        let list = fetcher.reader.batch_list(&member.entry, stats).await?;
        let mut position = [0, 0];
        let chain = list.chain().map(|at| (false, at));
        for (overlap, at) in chain.chain(list.overlaps().map(|at| (true, at))) {
            if picks.len() == GROUP_BATCHES_MAX {
                let from = member.entry.summary.range.base();
                return Err(FetchError::TooManyOverlaps { from, max: GROUP_BATCHES_MAX });
            }
            let position = &mut position[usize::from(overlap)];
            picks.push(Pick {
                base: at.base,
                rank: at.rank,
                member: index as u32,
                overlap,
                last: at.last,
                position: *position,
                len: at.len,
                crc32c: at.crc32c,
            });
            *position += u64::from(at.len);
        }
    }
    Ok(picks)
}

/// The bytes of one batch, out of the chunks of its member.
async fn batch(
    fetcher: &Fetcher,
    member: &mut Member,
    pick: &Pick,
    stats: &ReadStats,
) -> Result<Bytes, FetchError> {
    let Member { entry, toc, starts, chunks } = member;
    let missing =
        || contradiction(entry, format!("no chunk holds the batch listed at {}", pick.base));
    let file = if pick.overlap { toc.overlap_log() } else { toc.log() }.ok_or_else(missing)?;
    let starts = &starts[usize::from(pick.overlap)];
    let nth = starts.partition_point(|&start| start <= pick.position).checked_sub(1);
    let nth = nth.ok_or_else(missing)?;
    let (index, start) = (file.chunks.start as usize + nth, starts[nth]);
    if !chunks.contains_key(&index) {
        let end = (index + CHUNKS_AHEAD).min(file.chunks.end as usize);
        let loaded: Vec<Bytes> =
            fetcher.reader.chunks(entry, toc, index..end, stats).try_collect().await?;
        // Picks ascend, so older chunks of the same file are done with; a few are
        // kept because bases may go back a little.
        while chunks.len() > 2 * CHUNKS_AHEAD {
            chunks.pop_first();
        }
        chunks.extend((index..end).zip(loaded));
    }
    let raw = chunks.get(&index).ok_or_else(missing)?;
    let from = (pick.position - start) as usize;
    let to = from + pick.len as usize;
    if to > raw.len() {
        return Err(missing());
    }
    Ok(raw.slice(from..to))
}

fn contradiction(entry: &ArchiveEntry, why: String) -> FetchError {
    FetchError::Contradiction { object: entry.key().to_string(), why }
}
