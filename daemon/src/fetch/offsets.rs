//! Owns answering Kafka's ListOffsets from the archive: its special timestamps,
//! and the first offset from a time on.
//!
//! As Kafka's `UnifiedLog.fetchOffsetByTimestamp` and `RemoteLogManager` do it:
//! what is looked for is a record, not a batch, and control records are records.
//! Two differences. The greatest timestamp is that of the records below the bound,
//! where Kafka finds nothing once the log's greatest lies above it. And a batch whose
//! records do not decode counts as one record with its header's greatest timestamp:
//! who seeks there reads it and judges, where Kafka fails the whole lookup.

use std::sync::Arc;

use super::answered::{Answered, Refusal, answered};
use super::partition::bounds;
use super::progress::bound_of;
use super::times::{self, Found};
use super::types::{Isolation, PartitionState, Status};
use super::{FetchError, Fetcher, caller, lineage};
use crate::catalog::Snapshot;
use crate::read::ReadStats;
use crate::record::{OffsetRange, TopicPartition};
use crate::reports::Report;

/// Kafka's special timestamps: KIP-79, KIP-734, KIP-405, KIP-1005, KIP-1023.
const LATEST: i64 = -1;
const EARLIEST: i64 = -2;
const MAX_TIMESTAMP: i64 = -3;
const EARLIEST_LOCAL: i64 = -4;
const LATEST_TIERED: i64 = -5;
const EARLIEST_PENDING_UPLOAD: i64 = -6;
/// Kafka's "no timestamp" and "no leader epoch".
const NONE: i64 = -1;

/// Which offset of a partition to find.
#[derive(Clone, Debug)]
pub struct OffsetQuery {
    /// The partition.
    pub tp: TopicPartition,
    /// Which incarnation of the topic; `None` for the newest.
    pub incarnation: Option<u32>,
    /// Milliseconds since 1970, or one of Kafka's special timestamps.
    pub timestamp: i64,
    /// Lowest offset to find; `None` for log start.
    pub starting_offset: Option<i64>,
    /// First offset that must not be found: the broker's high watermark or last
    /// stable offset.
    pub upper_bound: Option<i64>,
    /// Which records may be seen.
    pub isolation: Isolation,
    /// The leader epoch the caller takes for the current one; `None` is not checked.
    pub leader_epoch: Option<i32>,
}

/// An offset that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FoundOffset {
    /// The offset.
    pub offset: i64,
    /// The record's timestamp in milliseconds; -1 where a bound was asked for.
    pub timestamp: i64,
    /// The leader epoch of the offset; -1 where it is not known.
    pub leader_epoch: i32,
}

/// The offset that `query` means, `None` where the archive has none.
pub(super) async fn find(fetcher: &Fetcher, query: &OffsetQuery) -> Answered<Option<FoundOffset>> {
    let report = fetcher.reports.of(&query.tp);
    if let Some((status, message)) =
        caller::leader_epoch(&query.tp, query.leader_epoch, report.as_ref())
    {
        return Answered { state: None, result: Err(Refusal::new(status, message)) };
    }
    // The ends of the broker's own log need no archive.
    if let Some(report) = &report
        && let Some(found) = of_report(query, report)
    {
        return Answered { state: None, result: Ok(Some(found)) };
    }
    answered(fetcher, &query.tp, query.incarnation, |snapshot| {
        let (fetcher, query, report) = (fetcher.clone(), query.clone(), report.clone());
        async move { find_in(&fetcher, &query, report.as_ref(), &snapshot).await }
    })
    .await
}

/// What the broker reported of its own log, where that is what is asked for.
fn of_report(query: &OffsetQuery, report: &Report) -> Option<FoundOffset> {
    let (offset, leader_epoch) = match (query.timestamp, query.isolation) {
        (LATEST, Isolation::ReadCommitted) => (report.last_stable_offset?, report.leader_epoch),
        (LATEST, Isolation::ReadUncommitted) => (report.high_watermark?, report.leader_epoch),
        (EARLIEST_LOCAL, _) => {
            let start = report.local_log_start?;
            (start, report.lineage.epoch_at(start))
        }
        _ => return None,
    };
    Some(FoundOffset { offset, timestamp: NONE, leader_epoch: leader_epoch.unwrap_or(-1) })
}

async fn find_in(
    fetcher: &Fetcher,
    query: &OffsetQuery,
    report: Option<&Report>,
    snapshot: &Arc<Snapshot>,
) -> Result<Result<Option<FoundOffset>, Refusal>, FetchError> {
    let stats = ReadStats::default();
    let PartitionState { log_start: start, archived_through: through, .. } =
        bounds(snapshot, report);
    let bound = bound_of(query.isolation, query.upper_bound, snapshot).offset;
    let from = query.starting_offset.unwrap_or(start).max(start);
    let found = match query.timestamp {
        EARLIEST => Some(at_bound(fetcher, snapshot, start, &stats).await?),
        LATEST_TIERED if through > start => {
            Some(at_bound(fetcher, snapshot, through - 1, &stats).await?)
        }
        LATEST_TIERED => None,
        // Nothing of it is archived: its epoch is the broker's to know.
        EARLIEST_PENDING_UPLOAD => {
            let offset = through.max(start);
            let known = report.and_then(|report| report.lineage.epoch_at(offset));
            Some(FoundOffset { offset, timestamp: NONE, leader_epoch: known.unwrap_or(-1) })
        }
        MAX_TIMESTAMP => match OffsetRange::new(from, bound - 1) {
            Some(within) => times::greatest(fetcher, snapshot, within, &stats).await?.map(told),
            None => None,
        },
        0.. => match OffsetRange::new(from, bound - 1) {
            Some(within) => {
                let wanted = query.timestamp;
                times::first(fetcher, snapshot, within, wanted, &stats).await?.map(told)
            }
            None => None,
        },
        LATEST | EARLIEST_LOCAL => {
            return Ok(Err(Refusal::new(
                Status::NotReported,
                format!(
                    "where the broker's own log of {} begins and ends is not known here: the \
                     broker answers timestamp {} itself",
                    query.tp, query.timestamp
                ),
            )));
        }
        unknown => {
            return Ok(Err(Refusal::new(
                Status::InvalidRequest,
                format!("timestamp {unknown} has no meaning; the special ones are -1 to -6"),
            )));
        }
    };
    Ok(Ok(found))
}

fn told(found: Found) -> FoundOffset {
    let Found { offset, timestamp, leader_epoch } = found;
    FoundOffset { offset, timestamp, leader_epoch }
}

async fn at_bound(
    fetcher: &Fetcher,
    snapshot: &Snapshot,
    offset: i64,
    stats: &ReadStats,
) -> Result<FoundOffset, FetchError> {
    let leader_epoch = lineage::epoch_at(fetcher, snapshot, offset, stats).await?;
    Ok(FoundOffset { offset, timestamp: NONE, leader_epoch: leader_epoch.unwrap_or(-1) })
}
