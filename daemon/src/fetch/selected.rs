//! Owns answering one partition with a selection: of each batch of the served log the
//! records that are wanted, at their offsets, and nothing of the others.
//!
//! - It is what the same fetch without a selection answers, less what is not wanted and
//!   what lies below the offset asked for.
//! - What was passed by is answered: `next_offset` lies behind the last batch looked
//!   at, sent or not. A gap ends an answer as it ends any other.
//! - Archives are ruled out by the times in the manifest and by their key filters,
//!   chunks by their times; of the rest every record is looked at. One answer looks at
//!   [`LOOKED_BYTES_MAX`] and asks for [`FILTERS_MAX`] filters at most, then it ends
//!   with [`EndReason::Limit`], perhaps without a batch, and the caller goes on.
//! - Batches are rebuilt by [`Selection::of_batch`]; one comes as it was where all of
//!   its records are wanted, and where it does not decode: nobody can tell what it holds.
//! - Control batches never come. Whoever reads committed records gets no others: they
//!   are taken out here, so the list of aborted transactions is empty, and the answer
//!   ends where the archive itself knows the end of every transaction.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;

use super::progress::{Bound, Progress, bound};
use super::served::{Place, place};
use super::types::{AbortedTransaction, Data, EndReason, Isolation, PartitionRequest};
use super::{FetchError, Fetcher, Sink, aborted};
use crate::archive::{ArchiveError, Toc, batches_in};
use crate::catalog::{ArchiveEntry, Snapshot};
use crate::read::{ReadError, ReadStats};
use crate::record::{CanonicalRecord, OffsetRange, Selection};

/// Bytes of batches that one answer looks at, before compression: about a second of
/// work, so that a caller hears how far it has come.
const LOOKED_BYTES_MAX: u64 = 256 << 20;
/// Key filters that one answer asks the store for, one after the other.
const FILTERS_MAX: usize = 64;

/// Sends what `selection` wants from `progress.next` on.
pub(super) async fn served(
    fetcher: &Fetcher,
    request: &PartitionRequest,
    selection: &Selection,
    snapshot: &Arc<Snapshot>,
    progress: &mut Progress,
    sink: &Sink,
    stats: &ReadStats,
) -> Result<EndReason, FetchError> {
    let bound = bound_of(request, snapshot);
    // Whoever asks from an offset on has asked for nothing below it.
    progress.pass(selection.from_offset.unwrap_or(0).min(bound.offset));
    let mut answer =
        Answer { fetcher, request, selection, snapshot, bound, sink, stats, looked: 0, filters: 0 };
    loop {
        if let Some(end) = answer.is_over(progress.next) {
            return Ok(end);
        }
        match place(snapshot, progress.next).await? {
            Place::Gap(gap) => return Ok(EndReason::Gap(gap)),
            Place::Archive(_) if progress.is_full() || answer.is_tired() => {
                return Ok(EndReason::Limit);
            }
            Place::Archive(entry) if !answer.may_hold(&entry).await? => {
                progress.pass(entry.summary.range.end().min(bound.offset));
            }
            Place::Archive(entry) => {
                stats.archive_opened();
                if let ControlFlow::Break(end) = answer.archive(&entry, progress).await? {
                    return Ok(end);
                }
            }
        }
    }
}

/// The bound of `request`; for read_committed never above the archive's own last stable
/// offset, below which the end of every transaction is known here.
pub(super) fn bound_of(request: &PartitionRequest, snapshot: &Snapshot) -> Bound {
    let bound = bound(request, snapshot);
    let stable = snapshot.last_stable_offset();
    if request.isolation == Isolation::ReadCommitted && stable < bound.offset {
        return Bound { offset: stable, reason: EndReason::EndOfArchive };
    }
    bound
}

/// Whether an archive holds nothing that is wanted, by what is known of it without a
/// request. What does not decode is in no filter, and comes as it is.
pub(super) fn is_ruled_out(fetcher: &Fetcher, selection: &Selection, entry: &ArchiveEntry) -> bool {
    let summary = &entry.summary;
    let lacks = |key| summary.unindexed == 0 && fetcher.reader.surely_lacks_key(entry, key);
    !selection.may_hold_times(summary.min_timestamp, summary.max_timestamp)
        || selection.key.as_deref().is_some_and(lacks)
}

/// The chunks of a log that may hold what is wanted, from `offset` on, by their times.
pub(super) fn chunks_for(toc: &Toc, selection: &Selection, offset: i64) -> Vec<Range<usize>> {
    let Some(log) = toc.log() else { return Vec::new() };
    let (first, end) = (log.chunks.start as usize, log.chunks.end as usize);
    let start = first + toc.chunks[first..end].partition_point(|chunk| chunk.last < offset);
    let mut ranges: Vec<Range<usize>> = Vec::new();
    for index in start..end {
        if selection.from_ms.is_some_and(|from| toc.chunks[index].max_timestamp < from) {
            continue;
        }
        match ranges.last_mut() {
            Some(last) if last.end == index => last.end = index + 1,
            _ => ranges.push(index..index + 1),
        }
    }
    ranges
}

/// An answer under way.
struct Answer<'a> {
    fetcher: &'a Fetcher,
    request: &'a PartitionRequest,
    selection: &'a Selection,
    snapshot: &'a Arc<Snapshot>,
    bound: Bound,
    sink: &'a Sink,
    stats: &'a ReadStats,
    looked: u64,
    filters: usize,
}

impl Answer<'_> {
    /// Why nothing from `next` on is wanted or may be sent, if so.
    fn is_over(&self, next: i64) -> Option<EndReason> {
        if next >= self.bound.offset {
            return Some(self.bound.reason);
        }
        let until = self.selection.until_offset;
        until.is_some_and(|until| next >= until).then_some(EndReason::UpperBound)
    }

    fn is_tired(&self) -> bool {
        self.looked >= LOOKED_BYTES_MAX || self.filters >= FILTERS_MAX
    }

    /// Whether an archive may hold what is wanted.
    async fn may_hold(&mut self, entry: &ArchiveEntry) -> Result<bool, FetchError> {
        if is_ruled_out(self.fetcher, self.selection, entry) {
            return Ok(false);
        }
        let key = self.selection.key.as_ref().filter(|_| entry.summary.unindexed == 0);
        let Some(key) = key else { return Ok(true) };
        let before = self.stats.totals().chunk_requests;
        let may = match self.fetcher.reader.may_hold_key(entry, key, self.stats).await {
            // A damaged filter rules out nothing.
            Err(ReadError::Archive { .. }) => true,
            answered => answered?,
        };
        self.filters += usize::from(self.stats.totals().chunk_requests > before);
        Ok(may)
    }

    async fn archive(
        &mut self,
        entry: &ArchiveEntry,
        progress: &mut Progress,
    ) -> Result<ControlFlow<EndReason>, FetchError> {
        let toc = self.fetcher.reader.toc(entry, self.stats).await?;
        let first = toc.log().map_or(0, |log| log.chunks.start as usize);
        let end = entry.summary.range.end().min(self.bound.offset);
        let look = Look {
            selection: self.selection.clone(),
            aborted: self.aborted(progress.next, end).await?.into(),
            last: entry.summary.range.last(),
            bound: self.bound,
        };
        for range in chunks_for(&toc, self.selection, progress.next) {
            if range.start > first {
                // What the chunks before it serve was passed by with them.
                progress.pass((toc.chunks[range.start - 1].last + 1).min(end));
            }
            let reader = &self.fetcher.reader;
            let mut chunks = std::pin::pin!(reader.chunks(entry, &toc, range, self.stats));
            while let Some(raw) = chunks.next().await {
                let raw = raw?;
                if let Some(end) = self.is_over(progress.next) {
                    return Ok(ControlFlow::Break(end));
                }
                if progress.is_full() || self.is_tired() {
                    return Ok(ControlFlow::Break(EndReason::Limit));
                }
                self.looked += raw.len() as u64;
                let looked = look_at(entry, look.clone(), raw, progress.next).await?;
                if let Some(end) = self.send(looked, progress).await? {
                    return Ok(ControlFlow::Break(end));
                }
            }
        }
        progress.pass(end);
        Ok(ControlFlow::Continue(()))
    }

    /// The transactions whose records nobody gets who reads committed ones.
    async fn aborted(&self, from: i64, end: i64) -> Result<Vec<AbortedTransaction>, FetchError> {
        if self.request.isolation != Isolation::ReadCommitted {
            return Ok(Vec::new());
        }
        let range = OffsetRange::new(from, end - 1);
        let found = aborted::collect(self.fetcher, self.snapshot, range, self.stats).await?;
        Ok(found.transactions)
    }

    /// Sends what was picked, as far as the limits admit; why the answer ends, if so.
    async fn send(
        &self,
        looked: Looked,
        progress: &mut Progress,
    ) -> Result<Option<EndReason>, FetchError> {
        let (mut wire, mut ends) = (BytesMut::new(), Vec::new());
        let (mut next, mut end) = (looked.next, looked.end);
        for Picked { wire: batch, range, from } in looked.picked {
            let stop = if progress.sent_through.is_some_and(|sent| range.base() <= sent) {
                Some(EndReason::OffsetsGoBack)
            } else if !progress.admits(batch.len()) {
                Some(EndReason::Limit)
            } else {
                None
            };
            if stop.is_some() {
                (next, end) = (from, stop);
                break;
            }
            progress.picked(range, batch.len());
            wire.extend_from_slice(&batch);
            ends.push(wire.len());
        }
        progress.pass(next);
        if !ends.is_empty() {
            progress.send_data(self.sink, Data { wire: wire.freeze(), ends }).await?;
        }
        Ok(end)
    }
}

/// Looks at a chunk where decoding, which takes milliseconds, keeps nobody waiting.
async fn look_at(
    entry: &ArchiveEntry,
    look: Look,
    raw: Bytes,
    next: i64,
) -> Result<Looked, FetchError> {
    let object = entry.key().to_string();
    match tokio::task::spawn_blocking(move || look.at(raw, next)).await {
        Ok(Ok(looked)) => Ok(looked),
        Ok(Err(source)) => Err(FetchError::Contradiction { object, why: source.to_string() }),
        Err(died) => Err(ReadError::Worker { object, why: died.to_string() }.into()),
    }
}

/// What is looked for in a chunk.
#[derive(Clone)]
struct Look {
    selection: Selection,
    aborted: Arc<[AbortedTransaction]>,
    /// The last offset that the archive serves.
    last: i64,
    bound: Bound,
}

/// A batch of wanted records.
struct Picked {
    wire: Bytes,
    range: OffsetRange,
    /// The first offset that the batch serves here.
    from: i64,
}

/// What a chunk gave.
struct Looked {
    picked: Vec<Picked>,
    /// Behind the last batch looked at.
    next: i64,
    end: Option<EndReason>,
}

impl Look {
    /// Picks what is wanted out of one chunk, from offset `next` on, by the rules of a
    /// fetch of everything.
    fn at(&self, raw: Bytes, next: i64) -> Result<Looked, ArchiveError> {
        let mut looked = Looked { picked: Vec::new(), next, end: None };
        for batch in batches_in(raw) {
            let batch = batch?;
            let (range, from) = (batch.range(), looked.next);
            if range.last() < from {
                continue;
            }
            if range.last() >= self.bound.offset {
                looked.end = Some(self.bound.reason);
                break;
            }
            if let Some(wire) = self.pick(&batch, from) {
                looked.picked.push(Picked { wire, range, from });
            }
            looked.next = range.end();
            if range.last() > self.last {
                // It filled a gap and reaches over what was there.
                looked.end = Some(EndReason::OffsetsGoBack);
                break;
            }
        }
        Ok(looked)
    }

    /// What of `batch` is wanted from the offset `from` on.
    fn pick(&self, batch: &CanonicalRecord, from: i64) -> Option<Bytes> {
        let header = batch.header();
        let holds = |aborted: &AbortedTransaction| {
            aborted.producer_id == header.producer_id
                && aborted.first_offset <= header.range().last()
                && header.base_offset <= aborted.last_offset
        };
        if header.is_transactional() && self.aborted.iter().any(holds) {
            return None;
        }
        let picked = self.selection.of_batch(batch, from);
        let wire = picked.and_then(|picked| picked.map(|batch| batch.to_kafka_batch()).transpose());
        wire.unwrap_or_else(|_| batch.wire().cloned())
    }
}
