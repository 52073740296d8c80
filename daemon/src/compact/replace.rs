//! Owns the putting of one new archive in the place of some that are committed: fetching
//! those, and committing the new one.
//!
//! ```text
//!  fetch the old into scratch, each proven by the digest in its manifest
//!    -> (who asks builds the new one) -> upload under the next number
//!    -> commit: the new goes in, the old go out    <- the commit point
//! ```
//!
//! Killed before the commit, nothing happened: scratch is thrown away and what was
//! uploaded is litter for gc. Where another writer committed meanwhile and all old ones
//! are still listed, the object is copied to a name of the next number and the commit
//! tried again; where they are not, the work was for nothing.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};

use super::{CompactError, Compactor, RACES_MAX};
use crate::archive::{ArchiveIdentity, BuiltArchive, MergeInput};
use crate::catalog::{ArchiveEntry, CatalogError, Edit, Snapshot};
use crate::record::OffsetRange;
use crate::store::PART_BYTES;
use crate::task::Pace;

/// Archives fetched at a time: small objects are mostly waiting.
pub const FETCHES: usize = 8;
/// Bytes one request of a fetch asks for.
const PIECE_BYTES: u64 = 8 << 20;
/// Begin and end of an upload, and the manifest.
const COMMIT_WRITES: u64 = 3;

/// Requests that such a piece of work sends to the store, about: what it costs beside
/// bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JobRequests {
    /// Ranges read.
    pub reads: u64,
    /// Parts written, and the commit.
    pub writes: u64,
}

impl JobRequests {
    /// Those of putting about as much in the place of `old`.
    #[must_use]
    pub fn of(old: &[ArchiveEntry]) -> Self {
        let lengths = || old.iter().map(|entry| entry.summary.length);
        let reads = lengths().map(|length| length.div_ceil(PIECE_BYTES)).sum();
        Self { reads, writes: lengths().sum::<u64>().div_ceil(PART_BYTES) + COMMIT_WRITES }
    }
}

/// What came of it.
#[derive(Clone, Debug)]
pub(super) enum Replaced {
    /// The manifest that lists the new archive, and the archive.
    Committed(Arc<Snapshot>, Box<ArchiveEntry>),
    /// Another writer changed what was to be replaced; the newest manifest.
    Overtaken(Arc<Snapshot>),
}

impl Compactor {
    /// Fetches archives whole into a file in the folder `scratch`, no faster than `pace`,
    /// and proves them. They lie there one behind the other, since there may be more
    /// than a process may have files; it goes with the last of them.
    pub(super) async fn fetch(
        &self,
        entries: &[ArchiveEntry],
        scratch: &Path,
        pace: &Pace,
    ) -> Result<Vec<MergeInput>, CompactError> {
        let failed = |source| CompactError::Scratch { path: scratch.to_owned(), source };
        let file = Arc::new(tempfile::tempfile_in(scratch).map_err(failed)?);
        let fetches = entries.iter().scan(0, |end, entry| {
            let from = *end;
            *end += entry.summary.length;
            Some(self.fetch_one(entry, Arc::clone(&file), scratch, from, pace))
        });
        let fetches: Vec<_> = fetches.collect();
        futures::stream::iter(fetches).buffered(FETCHES).try_collect().await
    }

    /// Fetches an archive to the place `from` in `file`.
    async fn fetch_one(
        &self,
        entry: &ArchiveEntry,
        file: Arc<File>,
        scratch: &Path,
        from: u64,
        pace: &Pace,
    ) -> Result<MergeInput, CompactError> {
        let (key, length) = (entry.key(), entry.summary.length);
        let mut hasher = blake3::Hasher::new();
        let mut at = 0;
        while at < length {
            let to = (at + PIECE_BYTES).min(length);
            pace.take(to - at).await;
            let piece = self.store.get_range(&key, at..to).await?;
            let (to_file, place) = (Arc::clone(&file), from + at);
            let failed = |source| CompactError::Scratch { path: scratch.to_owned(), source };
            let written = blocking(move || {
                hasher.update(&piece);
                Ok((to_file.write_all_at(&piece, place), hasher))
            });
            let (written, so_far) = written.await?;
            written.map_err(failed)?;
            hasher = so_far;
            at = to;
        }
        if *hasher.finalize().as_bytes() != entry.summary.digest {
            return Err(CompactError::Damaged { object: key.to_string() });
        }
        let (summary, path) = (entry.summary.clone(), scratch.to_owned());
        blocking(move || Ok(MergeInput::within(file, &path, from, summary)?)).await
    }

    /// Uploads `built` and commits it in the place of `old`, ascending archives that
    /// `base` lists; on a race again, for as long as they are there. `what` says in the
    /// log what was done.
    pub(super) async fn replace(
        &self,
        mut base: Arc<Snapshot>,
        old: &[ArchiveEntry],
        identity: &ArchiveIdentity,
        built: BuiltArchive,
        what: &'static str,
    ) -> Result<Replaced, CompactError> {
        let cluster = self.catalog.cluster();
        let log_start = base.log_start();
        let mut entry =
            ArchiveEntry::new(cluster, identity, base.next_number(), built.summary.clone());
        self.store.put_file(&entry.key(), &built.path).await?;
        for _ in 0..RACES_MAX {
            let edit = Edit { add: vec![entry.clone()], remove: old.to_vec(), ..Edit::default() };
            match self.commit(base, edit).await {
                Ok(made) => {
                    let (range, bytes) = (entry.summary.range, entry.summary.length);
                    let old = old.len();
                    tracing::info!(partition = %identity.tp, %range, old, bytes, "{what}");
                    return Ok(Replaced::Committed(Arc::clone(made.snapshot()), Box::new(entry)));
                }
                Err(CatalogError::Lost { newest })
                    if still_lists(&newest, old, log_start).await? =>
                {
                    let next = entry.rebased(newest.next_number());
                    self.store.copy(&entry.key(), &next.key()).await?;
                    (base, entry) = (newest, next);
                }
                Err(CatalogError::Lost { newest }) => return Ok(Replaced::Overtaken(newest)),
                Err(error) => return Err(error.into()),
            }
        }
        Err(CompactError::Outrun)
    }
}

/// Whether all of `old` are listed by `newest`, and the log start has not moved among
/// them since it was `log_start`: what retention is about to drop is not held up.
pub(super) async fn still_lists(
    newest: &Snapshot,
    old: &[ArchiveEntry],
    log_start: i64,
) -> Result<bool, CompactError> {
    let (Some(first), Some(last)) = (old.first(), old.last()) else { return Ok(false) };
    let (base, end) = (first.summary.range.base(), last.summary.range.last());
    let Some(range) = OffsetRange::new(base, end) else { return Ok(false) };
    let listed = newest.find_by_offset_range(range).await?;
    Ok(newest.log_start() <= base.max(log_start) && old.iter().all(|one| listed.contains(one)))
}

/// Runs CPU and file work off the async threads.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CompactError> + Send + 'static,
) -> Result<T, CompactError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|died| CompactError::Worker(died.to_string()))?
}
