//! Owns the hits of one partition: which archives may hold any, searching several
//! of them at once, in order.
//!
//! What rules an archive out, in this order: its offsets and times, which the manifest
//! tells; its key filter, where that is at hand; else the filter is read first, and the
//! index only when the filter does not rule it out. (DESIGN wants key summaries in the
//! manifest's pages. A filter has twelve bits for each key, so those of one page would
//! be megabytes: they lie in the archives, two requests away when nothing is cached and
//! none afterwards.)

use std::sync::Arc;

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt, TryStreamExt, stream};

use super::context::Context;
use super::error::SearchError;
use super::files::IndexFiles;
use super::index::{self, Found, Job, Searched};
use super::types::{Hit, NoteKind, Order};
use super::{query, scan};
use crate::archive::{IndexLevel, Toc};
use crate::catalog::{ArchiveEntry, Snapshot};
use crate::error::{Classify, ErrorKind};
use crate::read::ReadError;
use crate::record::OffsetRange;

/// Archives of one partition searched at once: a look-up waits for the store, not
/// for the processor.
const ARCHIVES_AT_ONCE: usize = 16;
/// Archives without an index read at once.
const SCANNED_AT_ONCE: usize = 2;
/// Times a search goes on with a newer manifest because an archive is gone.
const RELOADS_MAX: u32 = 2;
/// Records of one archive that are compared one by one.
const COMPARED_MAX: usize = 1 << 20;

/// A partition to search.
#[derive(Clone, Debug)]
pub(super) struct Partition {
    pub(super) snapshot: Arc<Snapshot>,
    /// The offsets that are left to search; none where that is over.
    pub(super) bounds: Option<OffsetRange>,
}

/// Hits in order.
pub(super) type Hits = BoxStream<'static, Result<Hit, SearchError>>;

/// The hits of `partition`, in order.
pub(super) fn hits(context: Arc<Context>, partition: Partition) -> Hits {
    let begin = async move {
        let Some(bounds) = partition.bounds else {
            return Ok::<Hits, SearchError>(stream::empty().boxed());
        };
        let snapshot = partition.snapshot;
        note_gaps(&context, &snapshot, bounds).await?;
        let archives = archives(&context, &snapshot, bounds).await?;
        let scanned = archives.iter().any(|one| one.summary.index_level == IndexLevel::None);
        let at_once = if scanned { SCANNED_AT_ONCE } else { ARCHIVES_AT_ONCE };
        let searches = stream::iter(archives).map(move |archive| {
            in_archive(Arc::clone(&context), Arc::clone(&snapshot), archive, bounds, 0)
        });
        let hits = searches.buffered(at_once).map_ok(|hits| stream::iter(hits).map(Ok));
        Ok(hits.try_flatten().boxed())
    };
    stream::once(begin).try_flatten().boxed()
}

async fn note_gaps(
    context: &Context,
    snapshot: &Snapshot,
    bounds: OffsetRange,
) -> Result<(), SearchError> {
    for gap in snapshot.gaps_in(bounds).await? {
        let message = format!("a declared gap ({}): no archive holds these offsets", gap.kind);
        context.note_partition(NoteKind::Gap, snapshot.tp(), Some(gap.range), message);
    }
    Ok(())
}

/// The archives that serve offsets of `bounds` and may hold a hit, in order.
async fn archives(
    context: &Context,
    snapshot: &Snapshot,
    bounds: OffsetRange,
) -> Result<Vec<Arc<ArchiveEntry>>, SearchError> {
    let mut found = snapshot.find_by_offset_range(bounds).await?;
    found.retain(|entry| entry.summary.tiles);
    let in_range = found.len() as u64;
    let selection = &context.request.selection;
    found.retain(|entry| {
        selection.may_hold_times(entry.summary.min_timestamp, entry.summary.max_timestamp)
    });
    let in_time = found.len() as u64;
    if let Some(key) = &selection.key {
        // What does not decode is told where the search comes by.
        found.retain(|entry| {
            entry.summary.unindexed > 0 || !context.reader.surely_lacks_key(entry, key)
        });
    }
    context.count(|counts| {
        counts.in_range += in_range;
        counts.pruned_by_time += in_range - in_time;
        counts.pruned_by_key += in_time - found.len() as u64;
    });
    if context.request.order == Order::Newest {
        found.reverse();
    }
    Ok(found.into_iter().map(Arc::new).collect())
}

/// The hits of one archive, in order. What cannot be read is noted; what was
/// replaced meanwhile is searched where it is now.
fn in_archive(
    context: Arc<Context>,
    snapshot: Arc<Snapshot>,
    archive: Arc<ArchiveEntry>,
    bounds: OffsetRange,
    reloads: u32,
) -> BoxFuture<'static, Result<Vec<Hit>, SearchError>> {
    async move {
        let tile = archive.summary.range;
        let within =
            OffsetRange::new(tile.base().max(bounds.base()), tile.last().min(bounds.last()));
        let Some(within) = within else { return Ok(Vec::new()) };
        let error = match search(&context, &archive, within).await {
            Ok(found) => {
                let of = archive.of();
                let hit = |found: Found| Hit {
                    tp: of.tp.clone(),
                    incarnation: of.incarnation,
                    offset: found.offset,
                    timestamp: found.timestamp,
                    archive: Arc::clone(&archive),
                };
                return Ok(found.into_iter().map(hit).collect());
            }
            Err(SearchError::Cancelled) => return Err(SearchError::Cancelled),
            Err(error) => error,
        };
        if error.kind() == ErrorKind::NotFound && reloads < RELOADS_MAX {
            // A compaction may have replaced it: its successors hold the same offsets.
            let (tp, incarnation) = (snapshot.tp(), snapshot.incarnation());
            let newest = context.snapshots.refresh(tp, Some(incarnation)).await?;
            if let Some(newest) = newest.filter(|newest| newest.number() > snapshot.number()) {
                return again(context, newest, within, reloads + 1).await;
            }
        }
        context.count(|counts| counts.unreadable += 1);
        context.note_archive(NoteKind::Unreadable, &archive, error.to_string());
        Ok(Vec::new())
    }
    .boxed()
}

async fn again(
    context: Arc<Context>,
    snapshot: Arc<Snapshot>,
    bounds: OffsetRange,
    reloads: u32,
) -> Result<Vec<Hit>, SearchError> {
    let mut hits = Vec::new();
    for archive in archives(&context, &snapshot, bounds).await? {
        let (context, snapshot) = (Arc::clone(&context), Arc::clone(&snapshot));
        hits.extend(in_archive(context, snapshot, archive, bounds, reloads).await?);
    }
    Ok(hits)
}

/// The records of `archive` within `bounds` that are asked for, in order.
async fn search(
    context: &Context,
    archive: &Arc<ArchiveEntry>,
    bounds: OffsetRange,
) -> Result<Vec<Found>, SearchError> {
    let job = Job {
        selection: context.request.selection.clone(),
        asked: context.asked.clone(),
        bounds,
        order: context.request.order,
        limit: context.request.limit as usize,
    };
    if let Some(key) = &context.request.selection.key
        && !may_hold_key(context, archive, key).await?
    {
        context.count(|counts| counts.pruned_by_key += 1);
        note_undecodable(context, archive, archive.summary.unindexed);
        return Ok(Vec::new());
    }
    let level = archive.summary.index_level;
    if let Some(why) = job.asked.as_ref().and_then(|asked| query::refusal(asked, level)) {
        not_searchable(context, archive, &why);
        return Ok(Vec::new());
    }
    let _memory = context.charge(archive.summary.index_bytes).await;
    let toc = context.reader.toc(archive, &context.stats).await?;
    if level == IndexLevel::None {
        context.count(|counts| counts.scanned += 1);
        let (found, undecodable) = scan::scan(context, archive, &toc, &job, None).await?;
        note_undecodable(context, archive, undecodable);
        return Ok(found);
    }
    context.count(|counts| counts.searched += 1);
    note_undecodable(context, archive, archive.summary.unindexed);
    if !job.needs_comparing() {
        return by_index(context, archive, &toc, job).await;
    }
    let every = Job { limit: COMPARED_MAX, ..job.clone() };
    let maybe = by_index(context, archive, &toc, every).await?;
    if maybe.len() == COMPARED_MAX {
        return Err(SearchError::TooMany { object: archive.key().to_string(), max: COMPARED_MAX });
    }
    let only = maybe.into_iter().map(|found| found.offset).collect();
    let (found, _) = scan::scan(context, archive, &toc, &job, Some(only)).await?;
    Ok(found)
}

/// Whether `archive` may hold records with `key`. A filter that is damaged rules out
/// nothing: the index is asked.
async fn may_hold_key(
    context: &Context,
    archive: &ArchiveEntry,
    key: &[u8],
) -> Result<bool, SearchError> {
    match context.reader.may_hold_key(archive, key, &context.stats).await {
        Ok(may) => Ok(may),
        Err(error @ ReadError::Archive { .. }) => {
            tracing::warn!(%error, "a key filter cannot be read; the index is asked instead");
            Ok(true)
        }
        Err(error) => Err(error.into()),
    }
}

fn not_searchable(context: &Context, archive: &ArchiveEntry, why: &str) {
    context.count(|counts| counts.not_searchable += 1);
    let level = archive.summary.index_level;
    let message = format!("its index (level {level}) cannot answer the query: {why}");
    context.note_archive(NoteKind::NotSearchable, archive, message);
}

fn note_undecodable(context: &Context, archive: &ArchiveEntry, batches: u32) {
    if batches > 0 {
        let message = format!("{batches} of its batches do not decode and cannot be searched");
        context.note_archive(NoteKind::Undecodable, archive, message);
    }
}

async fn by_index(
    context: &Context,
    archive: &Arc<ArchiveEntry>,
    toc: &Arc<Toc>,
    job: Job,
) -> Result<Vec<Found>, SearchError> {
    let Context { reader, stats, cancelled, .. } = context;
    let files = IndexFiles::open(reader, archive, toc, stats, cancelled).await?;
    let (asked, token) = (files.clone(), cancelled.clone());
    let searched = tokio::task::spawn_blocking(move || index::search(&asked, &job, &token)).await;
    match searched.map_err(|died| context.died(archive, &died))? {
        Ok(Searched::Found(found, skipped)) => {
            if skipped > 0 {
                let message = format!("{skipped} of its values are too much for an index");
                context.note_archive(NoteKind::Unindexed, archive, message);
            }
            Ok(found)
        }
        Ok(Searched::NotSearchable(why)) => {
            not_searchable(context, archive, &why);
            Ok(Vec::new())
        }
        Err(_) if cancelled.is_cancelled() => Err(SearchError::Cancelled),
        Err(source) => Err(match files.take_failure() {
            Some(failure) => failure.into(),
            None => {
                SearchError::Index { object: archive.key().to_string(), source: Box::new(source) }
            }
        }),
    }
}
