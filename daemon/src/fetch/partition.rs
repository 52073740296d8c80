//! Owns answering one partition: bounds, archives in order, limits, the trailer.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;

use super::caller::{self, Refused};
use super::types::{
    Data, EndReason, FetchEvent, Isolation, Overlaps, PartitionHeader, PartitionRequest,
    PartitionState, PartitionTrailer, Stage, Status,
};
use super::{FetchError, Fetcher, RELOADS_MAX, Sink, aborted, overlaps, selected, state_of};
use crate::archive::{Toc, batches_in};
use crate::catalog::{ArchiveEntry, Gap, Snapshot};
use crate::error::{Classify, ErrorKind};
use crate::read::ReadStats;
use crate::record::batch::BATCH_HEADER_BYTES;
use crate::record::{CanonicalRecord, OffsetRange};
use crate::reports::Report;

/// Answers one partition; returns the bytes of batches sent.
pub(super) async fn answer(
    fetcher: &Fetcher,
    request: PartitionRequest,
    sink: &Sink,
    stats: &ReadStats,
) -> Result<u64, FetchError> {
    let (tp, incarnation) = (&request.tp, request.incarnation);
    let report = fetcher.reports.of(tp);
    if let Some((status, message)) =
        caller::leader_epoch(tp, request.caller.leader_epoch, report.as_ref())
    {
        return send_refusal(sink, &request, None, failure(&request, status, message)).await;
    }
    let found = fetcher.snapshots.get(tp, incarnation).await;
    // At the end of what was known, ask whether the archive has grown.
    let found = match found {
        Ok(Some(known)) if request.offset >= known.archived_through() => {
            fetcher.snapshots.grown(tp, incarnation).await
        }
        other => other,
    };
    let found = found.map(|found| fetcher.of_this_life(tp, incarnation, found));
    if let Ok(found) = &found
        && let Some((status, message)) =
            caller::topic_id(&request, found.as_deref(), report.as_ref())
    {
        return send_refusal(sink, &request, None, failure(&request, status, message)).await;
    }
    let mut snapshot = match found {
        Ok(Some(snapshot)) => snapshot,
        Ok(None) => {
            let message = format!("nothing of {} is archived", request.tp);
            let trailer = failure(&request, Status::UnknownTopicOrPartition, message);
            return send_refusal(sink, &request, None, trailer).await;
        }
        Err(error) => {
            let trailer = failure(&request, error.kind().into(), error.to_string());
            let trailer = PartitionTrailer { failed_in: Some(Stage::Catalog), ..trailer };
            return send_refusal(sink, &request, None, trailer).await;
        }
    };
    let mut reloads = 0;
    let refused = loop {
        if let Some(refused) = refusal(&request, &snapshot, report.as_ref()) {
            break Ok(Some(refused));
        }
        let report = report.as_ref();
        let checked = caller::offset_epoch(fetcher, &request, &snapshot, report, stats).await;
        let Err(error) = &checked else { break checked };
        match fetcher.replaced(&snapshot, error).await {
            Some(newer) if reloads < RELOADS_MAX => (snapshot, reloads) = (newer, reloads + 1),
            _ => break checked,
        }
    };
    let refused = refused.unwrap_or_else(|error| Some((error.kind().into(), error.to_string())));
    if let Some((status, message)) = refused {
        let refused_by = Some(bounds(&snapshot, report.as_ref()));
        let trailer = PartitionTrailer { refused_by, ..failure(&request, status, message) };
        return send_refusal(sink, &request, refused_by, trailer).await;
    }
    let trailer = read(fetcher, &request, snapshot, sink, stats).await?;
    let sent = trailer.bytes;
    send(sink, FetchEvent::Trailer(trailer)).await?;
    Ok(sent)
}

async fn send_refusal(
    sink: &Sink,
    request: &PartitionRequest,
    state: Option<PartitionState>,
    trailer: PartitionTrailer,
) -> Result<u64, FetchError> {
    send(sink, FetchEvent::Header(PartitionHeader { tp: request.tp.clone(), state })).await?;
    send(sink, FetchEvent::Trailer(trailer)).await?;
    Ok(0)
}

/// Why `request` cannot be answered from `snapshot`, if so.
pub(super) fn refusal(
    request: &PartitionRequest,
    snapshot: &Snapshot,
    report: Option<&Report>,
) -> Option<Refused> {
    let (tp, offset) = (&request.tp, request.offset);
    let PartitionState { log_start: start, archived_through: through, .. } =
        bounds(snapshot, report);
    if offset < 0 {
        return Some((
            Status::InvalidRequest,
            format!("offset {offset} of {tp} is negative; ask from {start} on"),
        ));
    }
    if request.overlaps == Overlaps::All && request.isolation == Isolation::ReadCommitted {
        return Some((
            Status::InvalidRequest,
            "read_committed is for the served log; ask for superseded batches with \
             read_uncommitted"
                .to_owned(),
        ));
    }
    if let Some(selection) = &request.selection {
        if request.overlaps == Overlaps::All {
            let why = "a selection is of the served log; ask for superseded batches without one";
            return Some((Status::InvalidRequest, why.to_owned()));
        }
        if let Err(why) = selection.check() {
            return Some((Status::InvalidRequest, why.to_string()));
        }
    }
    if offset < start {
        return Some((
            Status::BelowLogStart,
            format!(
                "offset {offset} of {tp} is below log start; the archive holds {start}..{}",
                through - 1
            ),
        ));
    }
    // An overlap-only archive may reach beyond; it is no part of the served log.
    if offset >= through && request.overlaps == Overlaps::Served {
        return Some((
            Status::NotArchivedYet,
            format!(
                "offset {offset} of {tp} is not archived yet; the archive ends before {through}"
            ),
        ));
    }
    request.caller.is_follower.then(|| {
        let message = format!(
            "offset {offset} of {tp} is archived: a follower takes the state up to it from \
             GetReplicaState and goes on behind it"
        );
        (Status::OffsetMovedToTieredStorage, message)
    })
}

/// Where the partition stands, by its manifest and by what the broker reports.
pub(super) fn bounds(snapshot: &Snapshot, report: Option<&Report>) -> PartitionState {
    let state = state_of(snapshot);
    let reported = report.and_then(|report| report.log_start).unwrap_or(0);
    PartitionState { log_start: state.log_start.max(reported), ..state }
}

fn failure(request: &PartitionRequest, status: Status, message: String) -> PartitionTrailer {
    PartitionTrailer {
        status,
        message,
        refused_by: None,
        object: None,
        failed_in: None,
        next_offset: request.offset,
        bytes: 0,
        batches: 0,
        end: EndReason::Failed,
        aborted: None,
    }
}

async fn send(sink: &Sink, event: FetchEvent) -> Result<(), FetchError> {
    sink.send(event).await.map_err(|_| FetchError::Cancelled)
}

/// How far one answer has come.
pub(super) struct Progress {
    /// Not sent before something follows it: until then another manifest may answer.
    header: Option<PartitionHeader>,
    /// Next offset to serve.
    pub(super) next: i64,
    /// The offsets that the batches sent are served at.
    pub(super) served: Option<OffsetRange>,
    /// The last offset of the last batch of a selection that was sent.
    pub(super) sent_through: Option<i64>,
    pub(super) bytes: u64,
    pub(super) batches: u64,
    max_bytes: u64,
    min_one_batch: bool,
}

impl Progress {
    fn new(request: &PartitionRequest, snapshot: &Snapshot) -> Self {
        let header = PartitionHeader { tp: request.tp.clone(), state: Some(state_of(snapshot)) };
        Self {
            header: Some(header),
            next: request.offset,
            served: None,
            sent_through: None,
            bytes: 0,
            batches: 0,
            max_bytes: request.max_bytes,
            min_one_batch: request.min_one_batch,
        }
    }

    async fn send_header(&mut self, sink: &Sink) -> Result<(), FetchError> {
        match self.header.take() {
            Some(header) => send(sink, FetchEvent::Header(header)).await,
            None => Ok(()),
        }
    }

    /// Sends batches that were taken into account by [`Self::sent`].
    pub(super) async fn send_data(&mut self, sink: &Sink, data: Data) -> Result<(), FetchError> {
        self.send_header(sink).await?;
        send(sink, FetchEvent::Data(data)).await
    }

    /// Whether a batch of `len` bytes may still be sent.
    pub(super) fn admits(&self, len: usize) -> bool {
        self.bytes + len as u64 <= self.max_bytes || (self.batches == 0 && self.min_one_batch)
    }

    /// Takes a batch into account that is served as far as `last`, and goes on behind
    /// its end.
    pub(super) fn sent(&mut self, batch: &CanonicalRecord, last: i64, len: usize) {
        let range = batch.range();
        let base = self.served.map_or(range.base().max(self.next), OffsetRange::base);
        self.served = OffsetRange::new(base, last);
        self.next = self.next.max(range.end());
        self.bytes += len as u64;
        self.batches += 1;
    }

    /// Takes a batch of a selection into account; where to go on is told apart. What is
    /// aborted was taken out of it, so it is not served in the sense of the list.
    pub(super) fn picked(&mut self, range: OffsetRange, len: usize) {
        self.sent_through = Some(range.last());
        self.bytes += len as u64;
        self.batches += 1;
    }

    /// Goes on at `next`, if that is not behind already.
    pub(super) fn pass(&mut self, next: i64) {
        self.next = self.next.max(next);
    }

    /// Whether no batch at all can follow, so that nothing need be read to know it.
    pub(super) fn is_full(&self) -> bool {
        !self.admits(BATCH_HEADER_BYTES)
    }

    /// Bytes that are worth reading ahead for.
    fn wanted(&self) -> u64 {
        self.max_bytes.saturating_sub(self.bytes).max(1)
    }
}

/// First offset that must not be served, and what an answer that reaches it says.
#[derive(Clone, Copy)]
pub(super) struct Bound {
    pub(super) offset: i64,
    pub(super) reason: EndReason,
}

/// The bound of `request`: its own where that is the lower, else the archive's.
/// For read_committed without a bound that is the last stable offset.
pub(super) fn bound(request: &PartitionRequest, snapshot: &Snapshot) -> Bound {
    bound_of(request.isolation, request.upper_bound, snapshot)
}

/// As [`bound`], of whatever asks for records.
pub(super) fn bound_of(
    isolation: Isolation,
    upper_bound: Option<i64>,
    snapshot: &Snapshot,
) -> Bound {
    let through = snapshot.archived_through();
    let (offset, reason) = match (isolation, upper_bound) {
        (_, Some(bound)) if bound < through => (bound, EndReason::UpperBound),
        (Isolation::ReadCommitted, None) => {
            (snapshot.last_stable_offset().min(through), EndReason::EndOfArchive)
        }
        _ => (through, EndReason::EndOfArchive),
    };
    Bound { offset, reason }
}

/// Reads from one manifest. Where an archive was replaced before anything of it
/// was sent, from a newer one.
async fn read(
    fetcher: &Fetcher,
    request: &PartitionRequest,
    mut snapshot: Arc<Snapshot>,
    sink: &Sink,
    stats: &ReadStats,
) -> Result<PartitionTrailer, FetchError> {
    let mut reloads = 0;
    let (mut progress, step) = loop {
        let mut progress = Progress::new(request, &snapshot);
        let step = match (request.overlaps, &request.selection) {
            (Overlaps::Served, None) => {
                served(fetcher, request, &snapshot, &mut progress, sink, stats).await
            }
            (Overlaps::Served, Some(selection)) => {
                let progress = &mut progress;
                selected::served(fetcher, request, selection, &snapshot, progress, sink, stats)
                    .await
            }
            (Overlaps::All, _) => {
                overlaps::all(fetcher, request, &snapshot, &mut progress, sink, stats).await
            }
        };
        let Err(error) = &step else { break (progress, step) };
        if reloads == RELOADS_MAX {
            break (progress, step);
        }
        reloads += 1;
        let Some(newer) = fetcher.replaced(&snapshot, error).await else { break (progress, step) };
        if progress.batches > 0 {
            // One answer, one manifest: the caller goes on with the next.
            break (progress, Ok(EndReason::Limit));
        }
        snapshot = newer;
        // Retention may be what took the archive away.
        let report = fetcher.reports.of(&request.tp);
        if let Some((status, message)) = refusal(request, &snapshot, report.as_ref()) {
            let state = state_of(&snapshot);
            Progress::new(request, &snapshot).send_header(sink).await?;
            let refused = failure(request, status, message);
            return Ok(PartitionTrailer { refused_by: Some(state), ..refused });
        }
    };
    if let Err(FetchError::Cancelled) = step {
        return Err(FetchError::Cancelled);
    }
    progress.send_header(sink).await?;
    Ok(trailer(fetcher, request, &snapshot, &progress, step, stats).await)
}

/// What to say at the end. What was sent is right, also where the rest failed.
async fn trailer(
    fetcher: &Fetcher,
    request: &PartitionRequest,
    snapshot: &Snapshot,
    progress: &Progress,
    step: Result<EndReason, FetchError>,
    stats: &ReadStats,
) -> PartitionTrailer {
    let mut trailer = PartitionTrailer {
        status: Status::Ok,
        message: String::new(),
        refused_by: None,
        object: None,
        failed_in: None,
        next_offset: progress.next,
        bytes: progress.bytes,
        batches: progress.batches,
        end: EndReason::Failed,
        aborted: None,
    };
    match step {
        Ok(end) => trailer.end = end,
        Err(error) => {
            trailer.fail(&error);
            list_lost(fetcher, snapshot, progress.next, &error).await;
        }
    }
    if request.isolation == Isolation::ReadCommitted {
        aborted_beside(fetcher, snapshot, progress.served, &mut trailer, stats).await;
    }
    trailer
}

/// Puts the archive at `offset` into quarantine where `error` says that its object is
/// gone: no newer manifest replaced it.
async fn list_lost(fetcher: &Fetcher, snapshot: &Snapshot, offset: i64, error: &FetchError) {
    if error.kind() != ErrorKind::NotFound {
        return;
    }
    if let Ok(Place::Archive(entry)) = place(snapshot, offset).await
        && error.object().is_some_and(|object| object.ends_with(&entry.key().to_string()))
    {
        fetcher.reader.quarantine().put(&entry, "the store does not have it");
    }
}

/// Puts the aborted transactions of what was `served` into `trailer`. Where an archive
/// that tells of them was replaced meanwhile, its successor tells the same.
async fn aborted_beside(
    fetcher: &Fetcher,
    snapshot: &Snapshot,
    served: Option<OffsetRange>,
    trailer: &mut PartitionTrailer,
    stats: &ReadStats,
) {
    let mut newer: Option<Arc<Snapshot>> = None;
    for reload in 0..=RELOADS_MAX {
        let from = newer.as_deref().unwrap_or(snapshot);
        let error = match aborted::collect(fetcher, from, served, stats).await {
            Ok(found) => return trailer.aborted = Some(found),
            Err(error) => error,
        };
        newer = match fetcher.replaced(from, &error).await {
            Some(newer) if reload < RELOADS_MAX => Some(newer),
            // Data without its aborted list would be served as committed.
            _ => return trailer.fail(&error),
        };
        let start = newer.as_deref().map_or(0, Snapshot::log_start);
        if let Some(served) = served.filter(|served| served.base() < start) {
            trailer.fail(&error);
            trailer.status = Status::BelowLogStart;
            trailer.message =
                format!("offset {} fell below log start {start} while it was read", served.base());
            return;
        }
    }
}

impl PartitionTrailer {
    fn fail(&mut self, error: &FetchError) {
        self.status = error.kind().into();
        self.message = error.to_string();
        self.object = error.object();
        self.failed_in = error.stage();
        self.end = EndReason::Failed;
    }
}

/// Sends the served log from `progress.next` on.
async fn served(
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
pub(super) fn chunks_for(toc: &Toc, offset: i64, wanted: u64) -> Option<std::ops::Range<usize>> {
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
) -> Result<Walked, crate::archive::ArchiveError> {
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
