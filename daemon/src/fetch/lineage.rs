//! Owns the leader epochs along a partition: which epoch an offset was written in,
//! and where an epoch ends.
//!
//! Leader epochs ascend along a log (KIP-101), so that the archive in which an epoch
//! begins is found by halving. Batches of an unknown epoch, -1, say nothing; offsets
//! belong to the last epoch known before them.

use super::answered::{Answered, Refusal, answered};
use super::caller;
use super::served::{Place, place};
use super::{FetchError, Fetcher};
use crate::catalog::{ArchiveEntry, Snapshot};
use crate::read::ReadStats;
use crate::record::TopicPartition;

/// Archives of unknown epochs that are looked behind, or in front of, for a known one:
/// a log whose batches carry none would else be walked whole for each question.
const UNKNOWN_ARCHIVES_MAX: usize = 64;

/// A leader epoch and the first offset that does not belong to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpochEnd {
    /// The epoch; -1 where none fits.
    pub leader_epoch: i32,
    /// Its end (exclusive); -1 where none fits.
    pub end_offset: i64,
}

impl EpochEnd {
    /// Kafka's `UNDEFINED_EPOCH` and `UNDEFINED_EPOCH_OFFSET`.
    pub const UNDEFINED: Self = Self { leader_epoch: -1, end_offset: -1 };
}

/// Where `epoch` of a partition ends within the archive, as Kafka's
/// `LeaderEpochFileCache.endOffsetFor` tells it: of the greatest epoch not above
/// `epoch`; of an epoch below all that are known the start of the first known.
pub(super) async fn end_of(
    fetcher: &Fetcher,
    tp: &TopicPartition,
    incarnation: Option<u32>,
    current: Option<i32>,
    epoch: i32,
) -> Answered<EpochEnd> {
    let report = fetcher.reports.of(tp);
    if let Some((status, message)) = caller::leader_epoch(tp, current, report.as_ref()) {
        return Answered { state: None, result: Err(Refusal::new(status, message)) };
    }
    answered(fetcher, tp, incarnation, |snapshot| {
        let fetcher = fetcher.clone();
        async move { Ok(Ok(end_in(&fetcher, &snapshot, epoch).await?)) }
    })
    .await
}

async fn end_in(
    fetcher: &Fetcher,
    snapshot: &Snapshot,
    epoch: i32,
) -> Result<EpochEnd, FetchError> {
    let stats = ReadStats::default();
    if epoch < 0 {
        return Ok(EpochEnd::UNDEFINED);
    }
    if let Some((_, end_offset)) = first_above(fetcher, snapshot, epoch, &stats).await? {
        let before = last_epoch_before(fetcher, snapshot, end_offset, &stats).await?;
        return Ok(EpochEnd { leader_epoch: before.unwrap_or(epoch), end_offset });
    }
    let end_offset = snapshot.archived_through();
    match last_epoch_before(fetcher, snapshot, end_offset, &stats).await? {
        Some(last) if last == epoch => Ok(EpochEnd { leader_epoch: last, end_offset }),
        _ => Ok(EpochEnd::UNDEFINED),
    }
}

/// The first epoch above `epoch` with its first offset.
pub(super) async fn first_above(
    fetcher: &Fetcher,
    snapshot: &Snapshot,
    epoch: i32,
    stats: &ReadStats,
) -> Result<Option<(i32, i64)>, FetchError> {
    let start = snapshot.log_start();
    let (mut low, mut high) = (start, snapshot.archived_through());
    // The first archive that serves a later epoch begins in low..high, or nowhere.
    let mut first: Option<ArchiveEntry> = None;
    while low < high {
        let middle = low + (high - low) / 2;
        match next_known(fetcher, snapshot, middle, high, stats).await? {
            Some((entry, greatest)) if greatest <= epoch => low = entry.summary.range.end(),
            Some((entry, _)) => {
                high = middle.min(entry.summary.range.base());
                first = Some(entry);
            }
            None => high = middle,
        }
    }
    let Some(entry) = first else { return Ok(None) };
    let toc = fetcher.reader.toc(&entry, stats).await?;
    let found = toc.epochs.iter().find(|(found, _)| *found > epoch);
    Ok(found.map(|(found, at)| (*found, (*at).max(start))))
}

/// The first archive that tiles `from` or offsets behind it, begins below `high` and
/// serves a known leader epoch, with the greatest. One that knows none says nothing of
/// where others begin.
async fn next_known(
    fetcher: &Fetcher,
    snapshot: &Snapshot,
    from: i64,
    high: i64,
    stats: &ReadStats,
) -> Result<Option<(ArchiveEntry, i32)>, FetchError> {
    let mut next = from;
    for _ in 0..UNKNOWN_ARCHIVES_MAX {
        let found = snapshot.next_archive(next, i64::MIN).await?;
        let Some(entry) = found.filter(|entry| entry.summary.range.base() < high) else {
            return Ok(None);
        };
        if let Some(greatest) = greatest(fetcher, &entry, stats).await? {
            return Ok(Some((entry, greatest)));
        }
        next = entry.summary.range.end();
    }
    Ok(None)
}

/// The greatest leader epoch that `entry` serves. The manifest counts the batches
/// beneath too.
async fn greatest(
    fetcher: &Fetcher,
    entry: &ArchiveEntry,
    stats: &ReadStats,
) -> Result<Option<i32>, FetchError> {
    let told = entry.summary.leader_epochs.1;
    if told < 0 || entry.summary.overlaps == 0 {
        return Ok((told >= 0).then_some(told));
    }
    let toc = fetcher.reader.toc(entry, stats).await?;
    Ok(toc.epochs.last().map(|(epoch, _)| *epoch))
}

/// The leader epoch of `offset`, `None` where nothing says it.
pub(super) async fn epoch_at(
    fetcher: &Fetcher,
    snapshot: &Snapshot,
    offset: i64,
    stats: &ReadStats,
) -> Result<Option<i32>, FetchError> {
    if offset >= snapshot.archived_through() || offset < snapshot.log_start() {
        return Ok(None);
    }
    match place(snapshot, offset).await? {
        Place::Archive(entry) => {
            let toc = fetcher.reader.toc(&entry, stats).await?;
            let of = toc.epochs.iter().rev().find(|(_, at)| *at <= offset);
            Ok(of.map(|(epoch, _)| *epoch))
        }
        Place::Gap(_) => Ok(None),
    }
}

/// The last epoch that is known below `end`.
async fn last_epoch_before(
    fetcher: &Fetcher,
    snapshot: &Snapshot,
    end: i64,
    stats: &ReadStats,
) -> Result<Option<i32>, FetchError> {
    let (mut offset, mut archives) = (end - 1, 0);
    while offset >= snapshot.log_start() && archives < UNKNOWN_ARCHIVES_MAX {
        let below = match place(snapshot, offset).await? {
            Place::Gap(gap) => gap.range.base(),
            Place::Archive(entry) => {
                let found = epoch_at(fetcher, snapshot, offset, stats).await?;
                if found.is_some() {
                    return Ok(found);
                }
                archives += 1;
                entry.summary.range.base()
            }
        };
        offset = below - 1;
    }
    Ok(None)
}
