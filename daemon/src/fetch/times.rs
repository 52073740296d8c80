//! Owns finding records by their timestamps, one by one: archives are passed by
//! with what the manifest says of them, chunks with what their table says, and what
//! is left is decoded.
//!
//! Only the served log counts: at an offset that several batches hold, the record of
//! the batch that serves it.

use bytes::Bytes;

use super::{FetchError, Fetcher};
use crate::archive::{ArchiveError, Chunk, batches_in};
use crate::catalog::{ArchiveEntry, Snapshot, TimeRank};
use crate::read::{ReadError, ReadStats};
use crate::record::{BatchError, CanonicalRecord, OffsetRange};

use futures::StreamExt;

/// A record that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) offset: i64,
    pub(super) timestamp: i64,
    pub(super) leader_epoch: i32,
}

/// The record of `within` with the least offset whose timestamp is `wanted` or later.
pub(super) async fn first(
    fetcher: &Fetcher,
    snapshot: &Snapshot,
    within: OffsetRange,
    wanted: i64,
    stats: &ReadStats,
) -> Result<Option<Found>, FetchError> {
    let mut from = within.base();
    while from <= within.last() {
        let Some(entry) = snapshot.next_archive(from, wanted).await? else { return Ok(None) };
        if entry.summary.range.base() > within.last() {
            return Ok(None);
        }
        for piece in pieces(fetcher, &entry, within, stats).await? {
            if piece.chunk.max_timestamp < wanted {
                continue;
            }
            let found = scan(fetcher, &entry, &piece, stats, move |raw, serves| {
                let mut found = None;
                records(raw, serves, |record| {
                    found = (record.timestamp >= wanted).then_some(record);
                    found.is_none()
                })?;
                Ok(found)
            });
            if let Some(found) = found.await? {
                return Ok(Some(found));
            }
        }
        from = entry.summary.range.end();
    }
    Ok(None)
}

/// The record of `within` with the greatest timestamp; of several the first.
pub(super) async fn greatest(
    fetcher: &Fetcher,
    snapshot: &Snapshot,
    within: OffsetRange,
    stats: &ReadStats,
) -> Result<Option<Found>, FetchError> {
    let mut best: Option<Found> = None;
    // Whether something that says `max` and begins at `base` may hold a better one.
    let beaten = |best: Option<Found>, max: i64, base: i64| {
        best.is_some_and(|best| (max, best.offset) < (best.timestamp, base))
    };
    let mut after = None;
    while let Some(entry) = snapshot.latest_archive(within, after).await? {
        let rank = TimeRank::of(&entry);
        if best.is_some_and(|best| rank.max_timestamp < best.timestamp) {
            break;
        }
        after = Some(rank);
        let mut pieces = pieces(fetcher, &entry, within, stats).await?;
        pieces.sort_by_key(|piece| (-i128::from(piece.chunk.max_timestamp), piece.serves.base()));
        for piece in pieces {
            if beaten(best, piece.chunk.max_timestamp, piece.serves.base()) {
                continue;
            }
            let found = scan(fetcher, &entry, &piece, stats, |raw, serves| {
                let mut found: Option<Found> = None;
                records(raw, serves, |record| {
                    if found.is_none_or(|found| found.timestamp < record.timestamp) {
                        found = Some(record);
                    }
                    true
                })?;
                Ok(found)
            });
            if let Some(found) = found.await?
                && best.is_none_or(|best| {
                    (best.timestamp, found.offset) < (found.timestamp, best.offset)
                })
            {
                best = Some(found);
            }
        }
    }
    Ok(best)
}

/// A chunk of the log and the offsets that its batches serve.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    index: usize,
    chunk: Chunk,
    serves: OffsetRange,
}

/// The chunks of `entry` that serve offsets of `within`, ascending.
pub(super) async fn pieces(
    fetcher: &Fetcher,
    entry: &ArchiveEntry,
    within: OffsetRange,
    stats: &ReadStats,
) -> Result<Vec<Piece>, FetchError> {
    let toc = fetcher.reader.toc(entry, stats).await?;
    let Some(log) = toc.log() else { return Ok(Vec::new()) };
    let tile = entry.summary.range;
    let (first, last) = (tile.base().max(within.base()), tile.last().min(within.last()));
    let mut served = first;
    let mut pieces = Vec::new();
    for index in log.chunks.start as usize..log.chunks.end as usize {
        let chunk = toc.chunks[index];
        // A batch that begins below the end of the one before serves only its rest.
        if let Some(serves) = OffsetRange::new(served, chunk.last.min(last)) {
            pieces.push(Piece { index, chunk, serves });
            served = serves.end();
        }
    }
    Ok(pieces)
}

/// Runs `work` over the raw bytes of a chunk, away from the threads that serve.
pub(super) async fn scan<T: Send + 'static>(
    fetcher: &Fetcher,
    entry: &ArchiveEntry,
    piece: &Piece,
    stats: &ReadStats,
    work: impl FnOnce(&Bytes, OffsetRange) -> Result<T, ArchiveError> + Send + 'static,
) -> Result<T, FetchError> {
    let toc = fetcher.reader.toc(entry, stats).await?;
    let range = piece.index..piece.index + 1;
    let mut chunks = std::pin::pin!(fetcher.reader.chunks(entry, &toc, range, stats));
    let object = entry.key().to_string();
    let Some(raw) = chunks.next().await else {
        let why = format!("chunk {} is not there", piece.index);
        return Err(FetchError::Contradiction { object, why });
    };
    let (raw, serves) = (raw?, piece.serves);
    match tokio::task::spawn_blocking(move || work(&raw, serves)).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(why)) => Err(FetchError::Contradiction { object, why: why.to_string() }),
        Err(died) => Err(ReadError::Worker { object, why: died.to_string() }.into()),
    }
}

/// Gives `take` the records that serve offsets of `serves`, ascending, until it
/// says no.
fn records(
    raw: &Bytes,
    serves: OffsetRange,
    mut take: impl FnMut(Found) -> bool,
) -> Result<(), ArchiveError> {
    let mut next = serves.base();
    for batch in batches_in(raw.clone()) {
        let batch = batch?;
        let range = batch.range();
        if range.base() > serves.last() {
            break;
        }
        let Some(part) = OffsetRange::new(next.max(range.base()), range.last().min(serves.last()))
        else {
            continue;
        };
        next = part.end();
        if !of_batch(&batch, part, &mut take) {
            break;
        }
    }
    Ok(())
}

fn of_batch(
    batch: &CanonicalRecord,
    part: OffsetRange,
    take: &mut impl FnMut(Found) -> bool,
) -> bool {
    let leader_epoch = batch.header().partition_leader_epoch;
    let mut walk = || -> Result<bool, BatchError> {
        let mut entries = batch.entries()?;
        while let Some(entry) = entries.next_ref() {
            let entry = entry?;
            let timestamp = batch.effective_timestamp(entry.timestamp);
            let found = Found { offset: entry.offset, timestamp, leader_epoch };
            if part.contains(entry.offset) && !take(found) {
                return Ok(false);
            }
        }
        Ok(true)
    };
    walk().unwrap_or_else(|_| {
        let timestamp = batch.header().max_timestamp;
        take(Found { offset: part.base(), timestamp, leader_epoch })
    })
}
