//! Owns the state that a follower takes over instead of archived records: what Kafka's
//! `buildRemoteLogAuxState` restores, the leader epochs and the producers up to an
//! offset.
//!
//! An archive keeps no producer snapshot. The state is derived from the headers of the
//! batches within the time after which a broker forgets a producer, and within a bound
//! on what is read; beyond the bound it is told that the list may lack producers. What
//! follows from a lacking one is Kafka's own: its next batch is taken as its first.
//! A transaction that is older than that time is told where it is open to this day: the
//! manifest lists it.

use super::answered::{Answered, Refusal, answered};
use super::lineage;
use super::producers::{ProducerState, Producers};
use super::served::{Place, place};
use super::times::{pieces, scan};
use super::types::Status;
use super::{FetchError, Fetcher};
use crate::archive::batches_in;
use crate::catalog::{ArchiveEntry, Snapshot};
use crate::read::ReadStats;
use crate::record::{OffsetRange, TopicPartition};

/// How long a silent producer is remembered, in milliseconds: Kafka's default of
/// `producer.id.expiration.ms`, a day.
const REMEMBERED_MS: i64 = 24 * 3600 * 1000;
/// Bytes of batches read for one state: some seconds of reading.
const LOG_BYTES_MAX: u64 = 1 << 30;
/// Leader epochs told: the log of a partition that changed its leader every hour of a
/// year.
const EPOCHS_MAX: usize = 10_000;
/// Producers told, some 60 bytes each: gRPC libraries take messages of 4 MiB.
const PRODUCERS_MAX: usize = 40_000;

/// What a follower takes over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaState {
    /// Where the follower goes on: everything told is of what lies below.
    pub offset: i64,
    /// Leader epochs with the first offset of each, ascending.
    pub leader_epochs: Vec<(i32, i64)>,
    /// Producers, by id.
    pub producers: Vec<ProducerState>,
    /// Whether no producer that a broker would remember is missing.
    pub complete: bool,
}

/// The state of a partition below `offset`; below the end of the archive without one.
pub(super) async fn state(
    fetcher: &Fetcher,
    tp: &TopicPartition,
    incarnation: Option<u32>,
    offset: Option<i64>,
) -> Answered<ReplicaState> {
    answered(fetcher, tp, incarnation, |snapshot| {
        let fetcher = fetcher.clone();
        async move {
            let (start, through) = (snapshot.log_start(), snapshot.archived_through());
            let offset = offset.unwrap_or(through);
            if offset < start {
                let message = format!("offset {offset} lies below log start {start}");
                return Ok(Err(Refusal::new(Status::BelowLogStart, message)));
            }
            if offset > through {
                let message = format!("the archive ends before {through}");
                return Ok(Err(Refusal::new(Status::NotArchivedYet, message)));
            }
            Ok(Ok(state_in(&fetcher, &snapshot, offset).await?))
        }
    })
    .await
}

async fn state_in(
    fetcher: &Fetcher,
    snapshot: &Snapshot,
    offset: i64,
) -> Result<ReplicaState, FetchError> {
    let stats = ReadStats::default();
    let mut leader_epochs: Vec<(i32, i64)> = Vec::new();
    while leader_epochs.len() < EPOCHS_MAX {
        let known = leader_epochs.last().map_or(-1, |(epoch, _)| *epoch);
        match lineage::first_above(fetcher, snapshot, known, &stats).await? {
            Some((epoch, start)) if start < offset => leader_epochs.push((epoch, start)),
            _ => break,
        }
    }
    let Window { archives, horizon_ms, whole } = window(snapshot, offset).await?;
    let mut producers = Producers::default();
    let begins = archives.first().map_or(offset, |first| first.summary.range.base());
    for open in snapshot.open_transactions().iter().filter(|open| open.first_offset < begins) {
        producers.open(open.producer_id, open.first_offset);
    }
    for entry in &archives {
        producers = take(fetcher, entry, offset, producers, &stats).await?;
    }
    let mut producers = producers.since(horizon_ms);
    let complete = whole && producers.len() <= PRODUCERS_MAX;
    producers.truncate(PRODUCERS_MAX);
    Ok(ReplicaState { offset, leader_epochs, producers, complete })
}

/// The archives whose batches tell who is remembered.
struct Window {
    /// Ascending.
    archives: Vec<ArchiveEntry>,
    /// Producers that are silent since before are forgotten.
    horizon_ms: i64,
    /// Whether nothing was left out for its size.
    whole: bool,
}

async fn window(snapshot: &Snapshot, offset: i64) -> Result<Window, FetchError> {
    let mut window = Window { archives: Vec::new(), horizon_ms: i64::MIN, whole: true };
    let (mut next, mut bytes) = (offset - 1, 0);
    while next >= snapshot.log_start() {
        let entry = match place(snapshot, next).await? {
            Place::Gap(gap) => {
                next = gap.range.base() - 1;
                continue;
            }
            Place::Archive(entry) => *entry,
        };
        let newest = entry.summary.max_timestamp;
        if window.archives.is_empty() {
            window.horizon_ms = newest.saturating_sub(REMEMBERED_MS);
        }
        if newest < window.horizon_ms {
            break;
        }
        bytes += entry.summary.log_bytes;
        if bytes > LOG_BYTES_MAX && !window.archives.is_empty() {
            window.whole = false;
            break;
        }
        next = entry.summary.range.base() - 1;
        window.archives.push(entry);
    }
    window.archives.reverse();
    Ok(window)
}

/// Takes the batches of `entry` that end below `offset`.
async fn take(
    fetcher: &Fetcher,
    entry: &ArchiveEntry,
    offset: i64,
    mut producers: Producers,
    stats: &ReadStats,
) -> Result<Producers, FetchError> {
    let Some(within) = OffsetRange::new(entry.summary.range.base(), offset - 1) else {
        return Ok(producers);
    };
    for piece in pieces(fetcher, entry, within, stats).await? {
        let taken = scan(fetcher, entry, &piece, stats, move |raw, serves| {
            let mut first = serves.base();
            for batch in batches_in(raw.clone()) {
                let batch = batch?;
                let range = batch.range();
                if range.last() < first || range.last() >= offset {
                    continue;
                }
                producers.take(&batch, first.max(range.base()));
                first = range.end();
            }
            Ok(producers)
        });
        producers = taken.await?;
    }
    Ok(producers)
}
