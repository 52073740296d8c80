//! Owns carrying retention out: the log start moves and whole archives below it
//! leave the manifest, in one commit, planned from the manifest it is made on.

use std::sync::Arc;

use super::retention::{Limit, Limits, Log};
use super::{CompactError, Compactor, Policy, RACES_MAX};
use crate::catalog::{ArchiveEntry, CatalogError, EDIT_CHANGES_MAX, Edit, Snapshot};

/// What retention does, or would do, to one partition.
#[derive(Clone, Debug)]
pub struct Retained {
    /// The manifest it was planned from.
    pub base: Arc<Snapshot>,
    /// Where the log starts afterwards.
    pub log_start: i64,
    /// Which limit moved it.
    pub limit: Limit,
    /// Archives that leave the manifest.
    pub drop: Vec<ArchiveEntry>,
}

impl Retained {
    /// Whether there is anything to do.
    #[must_use]
    pub fn is_needed(&self) -> bool {
        self.log_start > self.base.log_start() || !self.drop.is_empty()
    }

    /// Bytes of the archives that leave the manifest.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.drop.iter().map(|entry| entry.summary.length).sum()
    }

    /// What `limits` do to the log of `base` at the time `now_ms`.
    ///
    /// # Errors
    /// When a page cannot be read.
    pub async fn plan(
        base: Arc<Snapshot>,
        limits: &Limits,
        now_ms: i64,
    ) -> Result<Self, CompactError> {
        let entries = base.entries().await?;
        let (log_start, limit) = Log::of(&base, &entries).start_under(limits, now_ms);
        Ok(Self::beginning_at(base, entries, log_start, limit))
    }

    /// The log of `base` cut at `log_start`, which is taken for the end where it
    /// lies behind it and changes nothing where it lies before the start.
    ///
    /// # Errors
    /// When a page cannot be read.
    pub async fn cut(base: Arc<Snapshot>, log_start: i64) -> Result<Self, CompactError> {
        let entries = base.entries().await?;
        let log_start = log_start.min(base.archived_through()).max(base.log_start());
        Ok(Self::beginning_at(base, entries, log_start, Limit::None))
    }

    fn beginning_at(
        base: Arc<Snapshot>,
        entries: Vec<ArchiveEntry>,
        log_start: i64,
        limit: Limit,
    ) -> Self {
        let below = |entry: &ArchiveEntry| entry.summary.range.last() < log_start;
        let drop = entries.into_iter().filter(below).collect();
        Self { base, log_start, limit, drop }
    }
}

impl Compactor {
    /// What `policy` does to the log of `base` at the time `now_ms`.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub async fn plan_retention(
        &self,
        base: Arc<Snapshot>,
        policy: Policy,
        now_ms: i64,
    ) -> Result<Retained, CompactError> {
        if let Some(kept_for) = policy.old_incarnations {
            let lives = self.catalog.incarnations(base.tp().topic()).await?;
            let next = lives.iter().find(|life| life.number > base.incarnation());
            let kept_for = i64::try_from(kept_for.as_millis()).unwrap_or(i64::MAX);
            if next.is_some_and(|next| now_ms.saturating_sub(next.created_at_ms) > kept_for) {
                let end = base.archived_through();
                return Retained::cut(base, end).await;
            }
        }
        Retained::plan(base, &policy.limits, now_ms).await
    }

    /// Commits what was planned, planning it anew by `plan` where another writer
    /// committed meanwhile. Returns what was committed.
    ///
    /// # Errors
    /// [`CompactError::Outrun`]; when catalog or store fail. What was committed
    /// before stays, and planning again goes on from there.
    pub async fn retain<F>(
        &self,
        planned: Retained,
        plan: impl Fn(Arc<Snapshot>) -> F,
    ) -> Result<Retained, CompactError>
    where
        F: Future<Output = Result<Retained, CompactError>>,
    {
        let mut now = planned;
        for _ in 0..RACES_MAX {
            match self.commit_retained(&now).await {
                Ok(()) => return Ok(now),
                Err(CatalogError::Lost { newest }) => now = plan(newest).await?,
                Err(error) => return Err(error.into()),
            }
        }
        Err(CompactError::Outrun)
    }

    async fn commit_retained(&self, planned: &Retained) -> Result<(), CatalogError> {
        let mut base = Arc::clone(&planned.base);
        let mut moved = planned.log_start > base.log_start();
        let mut rest = planned.drop.as_slice();
        // The log start first: an archive below it is no longer promised, so the
        // others may follow in later commits.
        while moved || !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(EDIT_CHANGES_MAX));
            let edit = Edit {
                remove: now.to_vec(),
                log_start: moved.then_some(planned.log_start),
                ..Edit::default()
            };
            let made = self.commit(base, edit).await?;
            base = Arc::clone(made.snapshot());
            (moved, rest) = (false, later);
        }
        Ok(())
    }
}
