//! Owns giving the archives of a partition another index level, one after the other.
//!
//! Batches are not touched, see `archive::reindex_archive`. Each archive is put in the
//! place of the old one by one manifest, see `compact::replace`. Killed anywhere, every
//! archive has its old index or its new one, and what is left to do shows in the
//! manifest: it is the archives of another level. So beginning again resumes.
//!
//! Limits: one archive at a time, in memory as much as a writer takes and in scratch
//! twice the archive and its index. What is archived meanwhile has the level that its
//! writer gives it.

use std::collections::{HashSet, VecDeque};
use std::path::Path;
use std::sync::Arc;

use super::replace::{Replaced, blocking, still_lists};
use super::{CompactError, Compactor};
use crate::archive::{
    ArchiveError, ArchiveIdentity, BuiltArchive, IndexLevel, MergeInput, reindex_archive,
};
use crate::catalog::{ArchiveEntry, Snapshot};
use crate::task::Pace;

/// The archives of `base` that have another level than `level`, in order.
///
/// # Errors
/// When a page of the manifest cannot be read.
pub async fn plan(base: &Snapshot, level: IndexLevel) -> Result<Vec<ArchiveEntry>, CompactError> {
    let mut entries = base.entries().await?;
    entries.retain(|entry| entry.summary.index_level != level);
    Ok(entries)
}

/// What came of one archive.
#[derive(Debug)]
pub enum Reindexed {
    /// It is another archive now.
    Committed {
        /// The archive that was.
        was: ArchiveEntry,
        /// The one in its place.
        is: Box<ArchiveEntry>,
    },
    /// Another writer replaced or dropped it; what is to do is looked for anew.
    Overtaken,
    /// It could not be read, and stays as it is.
    Left {
        /// The archive.
        entry: ArchiveEntry,
        /// Why.
        error: CompactError,
    },
}

/// The reindexing of one partition.
#[derive(Debug)]
pub struct Reindexing<'a> {
    compactor: &'a Compactor,
    level: IndexLevel,
    base: Arc<Snapshot>,
    todo: VecDeque<ArchiveEntry>,
    /// Digests of those that could not be read.
    left: HashSet<[u8; 32]>,
}

impl Compactor {
    /// Begins to give the archives that `base` lists an index of `level`.
    ///
    /// # Errors
    /// When a page of the manifest cannot be read.
    pub async fn reindex(
        &self,
        base: Arc<Snapshot>,
        level: IndexLevel,
    ) -> Result<Reindexing<'_>, CompactError> {
        let todo = plan(&base, level).await?.into();
        Ok(Reindexing { compactor: self, level, base, todo, left: HashSet::new() })
    }
}

impl Reindexing<'_> {
    /// Reindexes the next archive, in a folder of its own inside `scratch` and no faster
    /// than `pace`; `None` when none is left.
    ///
    /// # Errors
    /// When store, catalog or scratch fail. Of the archive nothing was committed then,
    /// unless the error is of kind `Retry`: beginning again shows.
    pub async fn step(
        &mut self,
        scratch: &Path,
        pace: &Pace,
    ) -> Result<Option<Reindexed>, CompactError> {
        let Some(entry) = self.todo.pop_front() else { return Ok(None) };
        let base = Arc::clone(&self.base);
        if !lists(&base, &entry).await? {
            return self.plan_anew(base).await;
        }
        let (tp, incarnation) = (base.tp().clone(), base.incarnation());
        let identity = ArchiveIdentity { tp, incarnation };
        let built = match self.build(&entry, &identity, scratch, pace).await {
            Ok(built) => built,
            Err(error) if is_local(&error) => return Err(error),
            Err(error) => return self.leave(entry, error).await,
        };
        pace.take(built.summary.length).await;
        let (old, what) = (std::slice::from_ref(&entry), "archive reindexed");
        match self.compactor.replace(base, old, &identity, built, what).await? {
            Replaced::Committed(newest, is) => {
                self.base = newest;
                Ok(Some(Reindexed::Committed { was: entry, is }))
            }
            Replaced::Overtaken(newest) => self.plan_anew(newest).await,
        }
    }

    async fn build(
        &self,
        entry: &ArchiveEntry,
        identity: &ArchiveIdentity,
        scratch: &Path,
        pace: &Pace,
    ) -> Result<BuiltArchive, CompactError> {
        let inputs = self.compactor.fetch(std::slice::from_ref(entry), scratch, pace).await?;
        let (at, whose, level) = (scratch.to_owned(), identity.clone(), self.level);
        let build = move |input: &MergeInput| reindex_archive(&at, &whose, input, level);
        let built = blocking(move || Ok(inputs.first().map(build).transpose()?)).await?;
        built.ok_or_else(|| CompactError::Worker("nothing was fetched".to_owned()))
    }

    /// Leaves an archive that could not be built anew, if it is the archive's fault: a
    /// store that does not answer here either ends the work, and an archive that is no
    /// longer listed may be gone.
    async fn leave(
        &mut self,
        entry: ArchiveEntry,
        error: CompactError,
    ) -> Result<Option<Reindexed>, CompactError> {
        let newest = self.compactor.catalog.newer(&self.base).await?;
        if !lists(&newest, &entry).await? {
            return self.plan_anew(newest).await;
        }
        self.base = newest;
        self.left.insert(entry.summary.digest);
        Ok(Some(Reindexed::Left { entry, error }))
    }

    async fn plan_anew(
        &mut self,
        newest: Arc<Snapshot>,
    ) -> Result<Option<Reindexed>, CompactError> {
        let mut todo = plan(&newest, self.level).await?;
        todo.retain(|entry| !self.left.contains(&entry.summary.digest));
        (self.base, self.todo) = (newest, todo.into());
        Ok(Some(Reindexed::Overtaken))
    }
}

async fn lists(snapshot: &Snapshot, entry: &ArchiveEntry) -> Result<bool, CompactError> {
    still_lists(snapshot, std::slice::from_ref(entry), snapshot.log_start()).await
}

/// Whether this host failed, and so every other archive would fail too.
fn is_local(error: &CompactError) -> bool {
    let of_archive = matches!(error, CompactError::Archive(ArchiveError::Io { .. }));
    of_archive || matches!(error, CompactError::Scratch { .. })
}
