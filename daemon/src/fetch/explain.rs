//! Owns telling what a fetch would do, without reading a batch.

use super::partition::refusal;
use super::progress::bound;
use super::selected;
use super::served::{Place, chunks_for, place};
use super::types::{
    EndReason, ExplainedArchive, ExplainedRead, Explanation, PartitionRequest, Purpose, Status,
};
use super::{FetchError, Fetcher, state_of};
use crate::catalog::ArchiveEntry;
use crate::error::Classify;
use crate::read::ReadStats;
use crate::record::Selection;

/// Archives an explanation lists: enough to see the pattern.
const ARCHIVES_MAX: usize = 1_000;

impl Explanation {
    /// Nothing is known but why.
    pub(super) fn failed(error: &FetchError) -> Self {
        Self { status: error.kind().into(), message: error.to_string(), ..Self::empty() }
    }

    fn empty() -> Self {
        Self {
            state: None,
            status: Status::Ok,
            message: String::new(),
            archives: Vec::new(),
            end: EndReason::Failed,
        }
    }
}

/// What fetching `request` would do.
pub(super) async fn explain(
    fetcher: &Fetcher,
    request: &PartitionRequest,
) -> Result<Explanation, FetchError> {
    let mut explanation = Explanation::empty();
    let report = fetcher.reports.of(&request.tp);
    let Some(snapshot) = fetcher.snapshot(&request.tp, request.incarnation).await? else {
        explanation.status = Status::UnknownTopicOrPartition;
        explanation.message = format!("nothing of {} is archived", request.tp);
        return Ok(explanation);
    };
    explanation.state = Some(state_of(&snapshot));
    if let Some((status, message)) = refusal(request, &snapshot, report.as_ref()) {
        explanation.status = status;
        explanation.message = message;
        return Ok(explanation);
    }
    let selection = request.selection.as_ref();
    let bound = match selection {
        Some(_) => selected::bound_of(request, &snapshot),
        None => bound(request, &snapshot),
    };
    explanation.end = bound.reason;
    let (mut next, mut wanted) = (request.offset, request.max_bytes.max(1));
    while next < bound.offset {
        if wanted == 0 || explanation.archives.len() == ARCHIVES_MAX {
            explanation.end = EndReason::Limit;
            break;
        }
        let entry = match place(&snapshot, next).await? {
            Place::Archive(entry) => entry,
            Place::Gap(gap) => {
                explanation.end = EndReason::Gap(gap);
                break;
            }
        };
        let offset = next;
        next = entry.summary.range.end();
        if selection.is_some_and(|selection| selected::is_ruled_out(fetcher, selection, &entry)) {
            continue;
        }
        let archive = reads_of(fetcher, &entry, offset, wanted, selection).await?;
        // The first chunk counts for nothing: where the answer begins in it is
        // not known before it is read. Nor is how much of it a selection leaves.
        if selection.is_none() {
            wanted = wanted.saturating_sub(archive.raw_bytes);
        }
        explanation.archives.push(archive);
    }
    Ok(explanation)
}

/// What would be read of one archive for `wanted` bytes of what is wanted from `offset`
/// on.
async fn reads_of(
    fetcher: &Fetcher,
    entry: &ArchiveEntry,
    offset: i64,
    wanted: u64,
    selection: Option<&Selection>,
) -> Result<ExplainedArchive, FetchError> {
    let place = entry.summary.toc;
    let toc_read = ExplainedRead {
        purpose: Purpose::Toc,
        place: place.offset..place.offset + u64::from(place.length),
        cached: fetcher.reader.has_toc(entry),
    };
    let toc = fetcher.reader.toc(entry, &ReadStats::default()).await?;
    let ranges = match selection {
        Some(selection) => selected::chunks_for(&toc, selection, offset),
        None => chunks_for(&toc, offset, wanted).into_iter().collect(),
    };
    let chunks = || ranges.iter().flat_map(|range| &toc.chunks[range.clone()]);
    let windows =
        ranges.iter().flat_map(|range| fetcher.reader.windows(entry, &toc, range.clone()));
    let data_reads = windows.map(|window| ExplainedRead {
        purpose: Purpose::Data,
        cached: fetcher.reader.has_chunk(entry, window.chunks.start),
        place: window.place,
    });
    Ok(ExplainedArchive {
        object: entry.key().to_string(),
        range: entry.summary.range,
        chunks: chunks().count() as u32,
        raw_bytes: chunks().map(|chunk| u64::from(chunk.raw)).sum(),
        reads: std::iter::once(toc_read).chain(data_reads).collect(),
    })
}
