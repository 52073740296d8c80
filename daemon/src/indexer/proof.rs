//! Owns the proof that a batch is committed: its offsets, length and checksum
//! stand in the list of an archive that a manifest references, whoever wrote it; or
//! it lies wholly below the log start that the manifest declares.
//!
//! A proof rests on archives and names them by their digest. It holds for every
//! later manifest that references them still; where one is gone, merged or dropped,
//! the batches are looked up again. Before anything is released on a proof, the
//! newest manifest is asked for ([`Catalog::confirm`]).
//!
//! [`Catalog::confirm`]: crate::catalog::Catalog::confirm

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::IndexError;
use super::partition::blocking;
use super::plan::Frame;
use super::scan::hull;
use crate::archive::BatchRef;
use crate::catalog::Snapshot;
use crate::read::{ArchiveReader, ReadStats};
use crate::record::OffsetRange;

/// The digest of an archive: the same bytes under any name.
pub(super) type ArchiveDigest = [u8; 32];

/// Frames that were looked up in one manifest.
#[derive(Debug, Default)]
pub(super) struct LookedUp {
    /// By identity; `known` is set on those that are committed.
    pub(super) frames: Vec<Frame>,
    /// By the number of a segment, the archives that hold some of its frames.
    pub(super) rests_on: BTreeMap<u32, Vec<ArchiveDigest>>,
}

/// Looks `frames` up in the archives of `snapshot` that share offsets with them.
pub(super) async fn look_up(
    reader: &ArchiveReader,
    snapshot: &Snapshot,
    mut frames: Vec<Frame>,
) -> Result<LookedUp, IndexError> {
    let Some(hull) = hull(&frames) else { return Ok(LookedUp::default()) };
    frames.sort_unstable_by_key(Frame::identity);
    let log_start = snapshot.log_start();
    frames.iter_mut().for_each(|frame| frame.known = frame.last() < log_start);
    let (mut rests_on, stats) = (BTreeMap::<u32, Vec<_>>::new(), ReadStats::default());
    for entry in snapshot.find_by_offset_range(hull).await? {
        let list = reader.batch_list(&entry, &stats).await?;
        // Millions of look-ups: not on the threads that serve.
        let segments;
        (frames, segments) = blocking(move || {
            let mut segments = BTreeSet::new();
            let batches = list.chain().chain(list.overlaps());
            batches.for_each(|batch| mark(&mut frames, &batch, &mut segments));
            Ok((frames, segments))
        })
        .await?;
        for segment in segments {
            rests_on.entry(segment).or_default().push(entry.summary.digest);
        }
    }
    Ok(LookedUp { frames, rests_on })
}

/// Marks the frames, sorted by identity, that hold `batch`.
fn mark(frames: &mut [Frame], batch: &BatchRef, segments: &mut BTreeSet<u32>) {
    let identity = (batch.base, batch.last, batch.len, batch.crc32c);
    let first = frames.partition_point(|frame| frame.identity() < identity);
    let alike = frames[first..].iter_mut().take_while(|frame| frame.identity() == identity);
    for frame in alike.filter(|frame| !frame.known) {
        frame.known = true;
        segments.insert(frame.segment);
    }
}

/// The archives that `snapshot` references in `range`.
pub(super) async fn referenced(
    snapshot: &Snapshot,
    range: OffsetRange,
) -> Result<HashSet<ArchiveDigest>, IndexError> {
    let entries = snapshot.find_by_offset_range(range).await?;
    Ok(entries.into_iter().map(|entry| entry.summary.digest).collect())
}
