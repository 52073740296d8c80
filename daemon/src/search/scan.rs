//! Owns looking at records one by one: where an archive has no index, and where an
//! index cannot be sure.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};

use super::context::Context;
use super::error::SearchError;
use super::index::{Found, Job};
use super::types::Order;
use crate::archive::{ArchiveError, Toc, batches_in};
use crate::catalog::ArchiveEntry;
use crate::record::{CanonicalRecord, OffsetRange};

/// Chunks read at a time when a log is read from its end: 2 MiB.
const CHUNKS_BACKWARDS: usize = 8;

/// What one chunk of a log holds.
#[derive(Debug, Default)]
struct Scanned {
    found: Vec<Found>,
    undecodable: u32,
}

/// The records of the log that `job` wants, in order, and how many batches did not
/// decode. `only` are offsets that are to be compared; without them all are.
pub(super) async fn scan(
    context: &Context,
    archive: &Arc<ArchiveEntry>,
    toc: &Arc<Toc>,
    job: &Job,
    only: Option<HashSet<i64>>,
) -> Result<(Vec<Found>, u32), SearchError> {
    let only = only.map(Arc::new);
    let mut all = Scanned::default();
    for range in windows(toc, job, only.as_deref()) {
        let mut window = Vec::new();
        let chunks = context.reader.chunks(archive, toc, range.clone(), &context.stats);
        let mut chunks = std::pin::pin!(chunks);
        for index in range {
            let Some(raw) = chunks.next().await.transpose()? else { break };
            let from = served_from(archive, toc, index);
            let (asked, only) = (job.clone(), only.clone());
            // Decoding takes milliseconds: not on the threads that serve.
            let work = move || in_chunk(raw, from, &asked, only.as_deref());
            let scanned = tokio::task::spawn_blocking(work).await;
            let scanned = scanned.map_err(|died| context.died(archive, &died))?;
            let scanned = scanned.map_err(|source| context.broken(archive, source))?;
            all.undecodable += scanned.undecodable;
            window.extend(scanned.found);
            if job.order == Order::Oldest && all.found.len() + window.len() >= job.limit {
                break;
            }
        }
        if job.order == Order::Newest {
            window.reverse();
        }
        all.found.extend(window);
        if all.found.len() >= job.limit {
            break;
        }
    }
    all.found.truncate(job.limit);
    Ok((all.found, all.undecodable))
}

/// The chunks to look at, in the order to do it.
fn windows(toc: &Toc, job: &Job, only: Option<&HashSet<i64>>) -> Vec<Range<usize>> {
    let Some(log) = toc.log() else { return Vec::new() };
    let (start, end) = (log.chunks.start as usize, log.chunks.end as usize);
    let from = start + toc.chunks[start..end].partition_point(|c| c.last < job.bounds.base());
    let to = start + toc.chunks[start..end].partition_point(|c| c.last < job.bounds.last());
    let to = (to + 1).min(end);
    let holding: Option<HashSet<usize>> =
        only.map(|only| only.iter().filter_map(|&offset| chunk_of(toc, offset)).collect());
    let since = job.selection.from_ms.unwrap_or(i64::MIN);
    let wanted = |index: &usize| {
        toc.chunks[*index].max_timestamp >= since
            && holding.as_ref().is_none_or(|holding| holding.contains(index))
    };
    let most = if job.order == Order::Newest { CHUNKS_BACKWARDS } else { usize::MAX };
    let mut windows: Vec<Range<usize>> = Vec::new();
    let mut add = |index: usize| match windows.last_mut() {
        Some(last) if last.end == index && last.len() < most => last.end = index + 1,
        Some(last) if last.start == index + 1 && last.len() < most => last.start = index,
        _ => windows.push(index..index + 1),
    };
    match job.order {
        Order::Oldest => (from..to).filter(wanted).for_each(&mut add),
        Order::Newest => (from..to).rev().filter(wanted).for_each(&mut add),
    }
    windows
}

/// The chunk of the log that serves `offset`.
pub(super) fn chunk_of(toc: &Toc, offset: i64) -> Option<usize> {
    let log = toc.log()?;
    let (start, end) = (log.chunks.start as usize, log.chunks.end as usize);
    let index = start + toc.chunks[start..end].partition_point(|chunk| chunk.last < offset);
    (index < end).then_some(index)
}

/// The first offset that chunk `index` of the log serves: batches below it, and the
/// parts of batches that reach below it, are served by the chunk before.
pub(super) fn served_from(archive: &ArchiveEntry, toc: &Toc, index: usize) -> i64 {
    let start = toc.log().map_or(0, |log| log.chunks.start as usize);
    let before = (index > start).then(|| toc.chunks[index - 1].last + 1);
    before.unwrap_or(archive.summary.range.base())
}

/// The batches of a chunk of a log, each with the offsets it serves.
pub(super) fn served_in(
    raw: Bytes,
    mut next: i64,
) -> impl Iterator<Item = Result<(CanonicalRecord, OffsetRange), ArchiveError>> {
    batches_in(raw).filter_map(move |batch| {
        let batch = match batch {
            Ok(batch) => batch,
            Err(error) => return Some(Err(error)),
        };
        let range = batch.range();
        let served = OffsetRange::new(next.max(range.base()), range.last())?;
        next = range.end();
        Some(Ok((batch, served)))
    })
}

fn in_chunk(
    raw: Bytes,
    from: i64,
    job: &Job,
    only: Option<&HashSet<i64>>,
) -> Result<Scanned, ArchiveError> {
    let mut scanned = Scanned::default();
    for batch in served_in(raw, from) {
        let (batch, served) = batch?;
        if !served.overlaps(job.bounds) || !job.selection.may_hold(batch.header()) {
            continue;
        }
        let before = scanned.found.len();
        if !in_batch(&batch, served, job, only, &mut scanned.found) {
            // As in an index: a batch counts whole or not at all.
            scanned.found.truncate(before);
            scanned.undecodable += 1;
        }
    }
    Ok(scanned)
}

/// Adds the wanted records of `batch`; whether it decodes.
fn in_batch(
    batch: &CanonicalRecord,
    served: OffsetRange,
    job: &Job,
    only: Option<&HashSet<i64>>,
    found: &mut Vec<Found>,
) -> bool {
    let Ok(mut entries) = batch.entries() else { return false };
    while let Some(entry) = entries.next_ref() {
        let Ok(entry) = entry else { return false };
        let offset = entry.offset;
        if served.contains(offset)
            && job.bounds.contains(offset)
            && only.is_none_or(|only| only.contains(&offset))
            && job.selection.admits(batch, &entry)
        {
            found.push(Found { offset, timestamp: batch.effective_timestamp(entry.timestamp) });
        }
    }
    true
}

/// The batches of the chunk that serves `offsets`, ascending and of one chunk, each
/// with those of them that it serves.
pub(super) async fn batches_of(
    context: &Context,
    archive: &Arc<ArchiveEntry>,
    offsets: &[i64],
) -> Result<Vec<(CanonicalRecord, Vec<i64>)>, SearchError> {
    let toc = context.reader.toc(archive, &context.stats).await?;
    let missing = || SearchError::Contradiction {
        object: archive.key().to_string(),
        why: format!("no batch of its log holds the offsets {offsets:?}"),
    };
    let chunk = offsets.first().and_then(|&first| chunk_of(&toc, first)).ok_or_else(missing)?;
    let chunks = context.reader.chunks(archive, &toc, chunk..chunk + 1, &context.stats);
    let raw: Vec<Bytes> = chunks.try_collect().await?;
    let mut holding = Vec::new();
    let mut count = 0;
    for batch in served_in(raw.concat().into(), served_from(archive, &toc, chunk)) {
        let (batch, served) = batch.map_err(|source| context.broken(archive, source))?;
        let held: Vec<i64> =
            offsets.iter().copied().filter(|&offset| served.contains(offset)).collect();
        count += held.len();
        if !held.is_empty() {
            holding.push((batch, held));
        }
    }
    if count == offsets.len() { Ok(holding) } else { Err(missing()) }
}
