//! Owns the walk over the served log: from archive to archive, chunk to chunk, batch
//! to batch, as far as limits and bounds allow.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;

use super::progress::{Bound, Progress, bound};
use super::types::{Data, EndReason, PartitionRequest};
use super::{FetchError, Fetcher, Sink};
use crate::archive::{ArchiveError, Toc, batches_in};
use crate::catalog::{ArchiveEntry, Gap, Snapshot};
use crate::read::ReadStats;
use crate::record::OffsetRange;

/// Sends the served log from `progress.next` on.
pub(super) async fn served(
    fetcher: &Fetcher,
    request: &PartitionRequest,
    snapshot: &Arc<Snapshot>,
    progress: &mut Progress,
    sink: &Sink,
    stats: &ReadStats,
) -> Result<EndReason, FetchError> {
    let bound = bound(request, snapshot);
    loop {
        if progress.next >= bound.offset {
            return Ok(bound.reason);
        }
        match place(snapshot, progress.next).await? {
            Place::Archive(_) if progress.is_full() => return Ok(EndReason::Limit),
            Place::Archive(entry) => {
                stats.archive_opened();
                let step = archive(fetcher, &entry, bound, progress, sink, stats).await?;
                if let ControlFlow::Break(end) = step {
                    return Ok(end);
                }
            }
            Place::Gap(gap) => return Ok(EndReason::Gap(gap)),
        }
    }
}

/// What lies at an offset below `archived_through`.
pub(super) enum Place {
    Archive(Box<ArchiveEntry>),
    Gap(Gap),
}

/// What `snapshot` has at `offset`.
pub(super) async fn place(snapshot: &Snapshot, offset: i64) -> Result<Place, FetchError> {
    let contradiction = || FetchError::Contradiction {
        object: format!("manifest {}", snapshot.number()),
        why: format!("no archive and no gap holds offset {offset}, though it is tiled"),
    };
    let at = OffsetRange::new(offset, offset).ok_or_else(contradiction)?;
    let entries = snapshot.find_by_offset_range(at).await?;
    if let Some(entry) = entries.into_iter().find(|entry| entry.summary.tiles) {
        return Ok(Place::Archive(Box::new(entry)));
    }
    let gaps = snapshot.gaps_in(at).await?;
    gaps.into_iter().next().map(Place::Gap).ok_or_else(contradiction)
}

/// Index of the first chunk of the log that may hold `offset`, and of the chunk
/// after those worth reading for `wanted` bytes of answer.
pub(super) fn chunks_for(toc: &Toc, offset: i64, wanted: u64) -> Option<Range<usize>> {
    let log = toc.log()?;
    let (first, end) = (log.chunks.start as usize, log.chunks.end as usize);
    let start = first + toc.chunks[first..end].partition_point(|chunk| chunk.last < offset);
    // Where the answer begins inside its first chunk is not known before it is
    // read, so that chunk counts for nothing.
    let mut answer = 0;
    let mut stop = (start + 1).min(end);
    while stop < end && answer < wanted {
        answer += u64::from(toc.chunks[stop].raw);
        stop += 1;
    }
    (start < end).then_some(start..stop)
}

/// Sends what of one archive belongs to the answer.
async fn archive(
    fetcher: &Fetcher,
    entry: &ArchiveEntry,
    bound: Bound,
    progress: &mut Progress,
    sink: &Sink,
    stats: &ReadStats,
) -> Result<ControlFlow<EndReason>, FetchError> {
    let toc = fetcher.reader.toc(entry, stats).await?;
    let contradiction =
        |why: String| FetchError::Contradiction { object: entry.key().to_string(), why };
    while progress.next <= entry.summary.range.last() {
        if progress.next >= bound.offset {
            return Ok(ControlFlow::Break(bound.reason));
        }
        if progress.is_full() {
            return Ok(ControlFlow::Break(EndReason::Limit));
        }
        let Some(chunks) = chunks_for(&toc, progress.next, progress.wanted()) else {
            return Err(contradiction(format!(
                "its manifest says it holds offset {}, its table of contents does not",
                progress.next
            )));
        };
        let before = progress.next;
        let mut stream = std::pin::pin!(fetcher.reader.chunks(entry, &toc, chunks, stats));
        while let Some(raw) = stream.next().await {
            let walked = walk(&raw?, entry.summary.range.last(), bound, progress)
                .map_err(|why| contradiction(why.to_string()))?;
            if let Some(data) = walked.data {
                progress.send_data(sink, data).await?;
            }
            if let Some(end) = walked.end {
                return Ok(ControlFlow::Break(end));
            }
        }
        if progress.next == before {
            return Err(contradiction(format!("no batch at or above offset {before}")));
        }
    }
    Ok(ControlFlow::Continue(()))
}

struct Walked {
    data: Option<Data>,
    end: Option<EndReason>,
}

/// Takes from one chunk the batches that belong to the answer. The archive serves
/// them as far as `last`.
fn walk(
    raw: &Bytes,
    last: i64,
    bound: Bound,
    progress: &mut Progress,
) -> Result<Walked, ArchiveError> {
    let mut at = 0;
    let mut from = None;
    let mut ends: Vec<usize> = Vec::new();
    let mut end = None;
    for batch in batches_in(raw.clone()) {
        let batch = batch?;
        let len = batch.header().wire_len();
        let range = batch.range();
        if range.last() < progress.next {
            at += len;
            continue;
        }
        end = if range.last() >= bound.offset {
            // Only whole batches below the bound; the last may end right before it.
            Some(bound.reason)
        } else if range.base() < progress.next && progress.batches > 0 {
            Some(EndReason::OffsetsGoBack)
        } else if !progress.admits(len) {
            Some(EndReason::Limit)
        } else {
            None
        };
        if end.is_some() {
            break;
        }
        let start = *from.get_or_insert(at);
        at += len;
        ends.push(at - start);
        progress.sent(&batch, range.last().min(last), len);
        if range.last() > last {
            // It filled a gap and reaches over what was there: what follows it is not
            // what follows its offsets here, and markers may lie beneath its end.
            end = Some(if progress.next < bound.offset {
                EndReason::OffsetsGoBack
            } else {
                bound.reason
            });
            break;
        }
    }
    let data = from.map(|from| Data { wire: raw.slice(from..at), ends });
    Ok(Walked { data, end })
}
