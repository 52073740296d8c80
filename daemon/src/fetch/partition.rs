//! Owns answering one partition: whether it can be, from which manifest, and the
//! trailer. What is sent in between is the work of `served`, `overlaps` or
//! `selected`.

use std::sync::Arc;

use super::caller::{self, Refused};
use super::progress::{Progress, send};
use super::served::{Place, place, served};
use super::types::{
    EndReason, FetchEvent, Isolation, Overlaps, PartitionHeader, PartitionRequest, PartitionState,
    PartitionTrailer, Stage, Status,
};
use super::{FetchError, Fetcher, RELOADS_MAX, Sink, aborted, overlaps, selected, state_of};
use crate::catalog::Snapshot;
use crate::error::{Classify, ErrorKind};
use crate::read::ReadStats;
use crate::record::OffsetRange;
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
