//! Owns reading every archived batch, served or beneath, ascending by base
//! offset and then WAL order: for verification, restore and curious people.
//!
//! Archives whose batches reach into each other form a **group**; groups follow
//! one another without mixing, so one group's lists are all that is in memory.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt;

use super::partition::{Bound, Progress, bound};
use super::types::{Data, EndReason, Isolation, PartitionRequest};
use super::{FetchError, Fetcher, Sink};
use crate::archive::{Toc, TocFile, WalRank};
use crate::catalog::{ArchiveEntry, Snapshot};
use crate::read::ReadStats;
use crate::record::{CanonicalRecord, OffsetRange};

/// Chunks brought by one request when batches are picked one by one.
const CHUNKS_AHEAD: usize = 8;
/// Batches in one group: their list is sorted in memory at about 64 bytes each.
const GROUP_BATCHES_MAX: usize = 8 << 20;

/// An archive of a group, with the chunks that are being picked from.
struct Member {
    entry: ArchiveEntry,
    toc: Arc<Toc>,
    chunks: BTreeMap<usize, Bytes>,
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
    let mut entries = match OffsetRange::new(progress.next, i64::MAX - 1) {
        Some(rest) => snapshot.find_by_offset_range(rest).await?,
        None => Vec::new(),
    };
    entries.sort_by_key(|entry| entry.summary.range);
    // Batches beneath may reach beyond the served log; only a request bounds them.
    let bound = match (request.upper_bound, request.isolation) {
        (None, Isolation::ReadUncommitted) => {
            Bound { offset: i64::MAX, reason: EndReason::EndOfArchive }
        }
        _ => bound(request, snapshot),
    };
    let mut group: Vec<Member> = Vec::new();
    let mut reach = i64::MIN;
    for entry in entries {
        let toc = fetcher.reader.toc(&entry, stats).await?;
        stats.archive_opened();
        let hull = hull(&entry, &toc);
        if !group.is_empty() && hull.base() > reach {
            let done = std::mem::take(&mut group);
            if let Some(end) =
                send_group(fetcher, snapshot, done, bound, progress, sink, stats).await?
            {
                return Ok(end);
            }
        }
        reach = reach.max(hull.last());
        group.push(Member { entry, toc, chunks: BTreeMap::new() });
    }
    let end = send_group(fetcher, snapshot, group, bound, progress, sink, stats).await?;
    Ok(end.unwrap_or(EndReason::EndOfArchive))
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
    picks.sort_unstable();
    // A batch that filled a gap and grew the log lies in two archives.
    let (mut sent_at, mut sent): (i64, Vec<Bytes>) = (-1, Vec::new());
    for pick in picks {
        if pick.last >= bound.offset {
            return Ok(Some(bound.reason));
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
        if pick.base != sent_at {
            (sent_at, sent) = (pick.base, Vec::new());
        }
        if sent.contains(&wire) {
            continue;
        }
        sent.push(wire.clone());
        let member = &group[pick.member as usize];
        let record = CanonicalRecord::from_wire(wire.clone()).map_err(|source| {
            contradiction(&member.entry, format!("the batch listed at {}: {source}", pick.base))
        })?;
        progress.sent(&record, wire.len());
        progress.next = progress.next.max(pick.last + 1);
        let ends = vec![wire.len()];
        progress.send_data(sink, Data { wire, ends }).await?;
    }
    Ok(None)
}

async fn picks_of(
    fetcher: &Fetcher,
    group: &[Member],
    stats: &ReadStats,
) -> Result<Vec<Pick>, FetchError> {
    let mut picks = Vec::new();
    for (index, member) in group.iter().enumerate() {
        let list = fetcher.reader.batch_list(&member.entry, stats).await?;
        let too_many = || {
            contradiction(&member.entry, format!("more than {GROUP_BATCHES_MAX} batches overlap"))
        };
        let mut position = [0, 0];
        let chain = list.chain().map(|at| (false, at));
        for (overlap, at) in chain.chain(list.overlaps().map(|at| (true, at))) {
            if picks.len() == GROUP_BATCHES_MAX {
                return Err(too_many());
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
    let Member { entry, toc, chunks } = member;
    let missing =
        || contradiction(entry, format!("no chunk holds the batch listed at {}", pick.base));
    let file = if pick.overlap { toc.overlap_log() } else { toc.log() }.ok_or_else(missing)?;
    let (index, start) = chunk_at(toc, file, pick.position).ok_or_else(missing)?;
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

/// The chunk of `file` that holds the raw byte `position`, and where it starts.
fn chunk_at(toc: &Toc, file: &TocFile, position: u64) -> Option<(usize, u64)> {
    let mut start = 0;
    for index in file.chunks.start as usize..file.chunks.end as usize {
        let end = start + u64::from(toc.chunks[index].raw);
        if position < end {
            return Some((index, start));
        }
        start = end;
    }
    None
}

fn contradiction(entry: &ArchiveEntry, why: String) -> FetchError {
    FetchError::Contradiction { object: entry.key().to_string(), why }
}
