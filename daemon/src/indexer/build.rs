//! Owns pass 2: the batches of one stretch, read again and packed into a verified
//! archive in scratch. Blocking; runs on a worker thread.

use std::path::PathBuf;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::plan::{Frame, Run};
use super::scan::{Segments, Source};
use super::{IndexError, Pulse};
use crate::archive::{ArchiveIdentity, ArchiveOptions, ArchiveWriter, BuiltArchive, Room, WalRank};
use crate::record::OffsetRange;
use crate::wal::WalFormat;

/// What a build needs, shared by the archives of one partition.
#[derive(Clone, Debug)]
pub(super) struct Site {
    pub(super) format: WalFormat,
    pub(super) sources: Arc<Vec<Source>>,
    pub(super) frames: Arc<Vec<Frame>>,
    pub(super) identity: ArchiveIdentity,
    pub(super) options: ArchiveOptions,
    pub(super) scratch: PathBuf,
    /// Cancelled when nobody waits for the archive any more.
    pub(super) abandoned: CancellationToken,
    pub(super) pulse: Pulse,
}

impl Site {
    /// Says that another batch is packed, and whether anybody waits for it.
    fn still_wanted(&self) -> Result<(), IndexError> {
        self.pulse.beat();
        if self.abandoned.is_cancelled() { Err(IndexError::Stopped) } else { Ok(()) }
    }

    fn writer(&self, start: i64) -> Result<ArchiveWriter, IndexError> {
        let identity = self.identity.clone();
        Ok(ArchiveWriter::create(&self.scratch, identity, start, self.options)?)
    }
}

/// How far into a stretch the archives have come.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cursor {
    /// First offset of the next archive.
    pub(super) start: i64,
    /// Served frames and frames beneath that are packed already.
    pub(super) chain: usize,
    pub(super) overlaps: usize,
}

impl Cursor {
    pub(super) fn at(run: &Run) -> Self {
        Self { start: run.start, chain: 0, overlaps: 0 }
    }
}

/// An archive in scratch, and where the stretch goes on.
#[derive(Debug)]
pub(super) struct Built {
    pub(super) archive: BuiltArchive,
    pub(super) next: Cursor,
}

/// Packs as much of `run` from `cursor` on as one archive takes.
pub(super) fn build(site: &Site, run: &Run, cursor: Cursor) -> Result<Built, IndexError> {
    let mut segments = Segments::new(site.format, &site.identity.tp, &site.sources);
    let mut writer = site.writer(cursor.start)?;
    let mut next = cursor;
    for &index in &run.chain[cursor.chain..] {
        let frame = &site.frames[index as usize];
        site.still_wanted()?;
        let batch = segments.batch(frame)?;
        if !writer.fits(batch.range()) {
            break;
        }
        let room = writer.push(&batch, rank(&segments, frame))?;
        next.chain += 1;
        next.start = frame.last() + 1;
        if room == Room::Full {
            break;
        }
    }
    // What lies beneath belongs to the archive that serves its first offset here.
    let whole = next.chain == run.chain.len();
    let beneath = run.overlaps[cursor.overlaps..]
        .iter()
        .take_while(|&&index| whole || site.frames[index as usize].base() < next.start);
    next.overlaps += push_overlaps(&mut writer, site, &mut segments, beneath)?;
    let mut archive = writer.finish()?;
    // Offsets behind the end of a filled gap are served by who has them already.
    let range = archive.summary.range;
    archive.summary.range =
        OffsetRange::new(range.base(), range.last().min(run.end)).unwrap_or(range);
    Ok(Built { archive, next })
}

/// Packs as many of `late` as one archive takes into one that tiles nothing:
/// their offsets are served by others. Returns how many.
pub(super) fn build_latecomers(
    site: &Site,
    late: &[u32],
) -> Result<(BuiltArchive, usize), IndexError> {
    let mut segments = Segments::new(site.format, &site.identity.tp, &site.sources);
    let start = late.first().map_or(0, |&first| site.frames[first as usize].base());
    let mut writer = site.writer(start)?;
    let taken = push_overlaps(&mut writer, site, &mut segments, late.iter())?;
    Ok((writer.finish()?, taken))
}

fn push_overlaps<'a>(
    writer: &mut ArchiveWriter,
    site: &Site,
    segments: &mut Segments<'_>,
    beneath: impl Iterator<Item = &'a u32>,
) -> Result<usize, IndexError> {
    let mut taken = 0;
    for &index in beneath {
        let frame = &site.frames[index as usize];
        site.still_wanted()?;
        let batch = segments.batch(frame)?;
        if !writer.fits(batch.range()) {
            break;
        }
        let room = writer.push_overlap(&batch, rank(segments, frame))?;
        taken += 1;
        if room == Room::Full {
            break;
        }
    }
    Ok(taken)
}

fn rank(segments: &Segments<'_>, frame: &Frame) -> WalRank {
    WalRank { segment: segments.id(frame.segment), position: frame.at.position }
}
