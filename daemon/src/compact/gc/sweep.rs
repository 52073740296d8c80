//! Owns deleting what was found, looked up again right before.

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};

use super::{Grace, Litter, PartitionSurvey, Strays, Swept, When, Why};
use crate::catalog::{CatalogError, Edit, closable};
use crate::compact::{CompactError, Compactor};
use crate::store::ObjectKey;

/// Deletions in flight: stores take hundreds a second, and nobody waits for these.
const IN_FLIGHT: usize = 16;
/// Empty manifests committed at most to take a number. A writer is one number
/// ahead; what is farther is nobody's work, and is left to be looked at.
const TAKEN_MAX: u64 = 4;

impl Compactor {
    /// Deletes what may go now of one partition. Where a number must be taken or a
    /// block be ended first, does that and looks again.
    ///
    /// # Errors
    /// When store or catalog fail; what was deleted until then is deleted.
    pub async fn sweep(
        &self,
        mut survey: PartitionSurvey,
        grace: Grace,
    ) -> Result<Swept, CompactError> {
        if survey.to_end {
            self.end_blocks(&survey).await?;
        }
        if let Some(number) = survey.to_take {
            self.take_number(&survey, number).await?;
        }
        if survey.to_end || survey.to_take.is_some() {
            survey = self.survey(&survey.of.tp, survey.of.incarnation, grace).await?;
        }
        let now: Vec<_> = survey.litter.iter().filter(|one| one.when == When::Now).collect();
        if now.is_empty() {
            return Ok(Swept::default());
        }
        let (tp, incarnation) = (&survey.of.tp, survey.of.incarnation);
        // Again, and from the store: what is garbage stays garbage, so this finds
        // nothing but a defect.
        let Some(newest) = self.catalog.newest(tp, incarnation).await? else {
            return Ok(Swept::default());
        };
        let needed = newest.snapshot().references().await?;
        if let Some(wrong) =
            now.iter().find(|one| one.key.as_ref().is_some_and(|k| needed.contains(k)))
        {
            let (object, number) = (wrong.object.name.clone(), newest.snapshot().number());
            return Err(CompactError::Referenced { object, number });
        }
        let mut open = 0;
        if now.iter().any(|one| one.why == Why::OldManifest) {
            open = self.catalog.close_blocks(&newest, survey.settled).await?;
        }
        let in_closed_block = |one: &&&Litter| match &one.key {
            Some(ObjectKey::Manifest { number, .. }) => *number < open,
            _ => true,
        };
        // Manifests last and ascending: whoever follows their chain back meets the
        // closed end of it.
        let (manifests, others): (Vec<_>, Vec<_>) =
            now.iter().filter(in_closed_block).partition(|one| one.why == Why::OldManifest);
        let others = self.delete(others.into_iter().copied(), IN_FLIGHT).await?;
        let manifests = self.delete(manifests.into_iter().copied(), 1).await?;
        Ok(others.plus(manifests))
    }

    /// Deletes what may go now of `strays`.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn sweep_strays(&self, strays: &Strays) -> Result<Swept, CompactError> {
        let now = strays.litter.iter().filter(|one| one.when == When::Now);
        self.delete(now, IN_FLIGHT).await
    }

    async fn delete<'a>(
        &self,
        litter: impl Iterator<Item = &'a Litter>,
        in_flight: usize,
    ) -> Result<Swept, CompactError> {
        let deletions: Vec<_> = litter.map(|one| self.delete_one(one)).collect();
        futures::stream::iter(deletions)
            .buffered(in_flight)
            .try_fold(Swept::default(), |all, one| async move { Ok(all.plus(one)) })
            .await
    }

    async fn delete_one(&self, one: &Litter) -> Result<Swept, CompactError> {
        match &one.key {
            Some(key) => self.store.delete(key).await?,
            None => self.store.drop_unfinished(&one.object).await?,
        }
        tracing::info!(object = %one.object.name, why = one.why.as_str(), "deleted");
        Ok(Swept { objects: 1, bytes: one.object.length })
    }

    /// Ends the block of the newest manifest and the one behind it, so that all before
    /// can be closed once that is settled. Who else commits meanwhile is in the way of
    /// nothing: the next run tries again.
    async fn end_blocks(&self, survey: &PartitionSurvey) -> Result<(), CompactError> {
        let Some(newest) = &survey.newest else { return Ok(()) };
        let mut base = Arc::clone(newest.snapshot());
        while closable(base.next_number(), u64::MAX) <= newest.snapshot().number() {
            match self.commit(base, Edit { ends_block: true, ..Edit::default() }).await {
                Ok(made) => base = Arc::clone(made.snapshot()),
                Err(CatalogError::Lost { .. }) => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Sees that manifest `number` exists, by empty manifests of our own where
    /// nobody else commits: from then on nothing made for it can be referenced.
    async fn take_number(&self, survey: &PartitionSurvey, number: u64) -> Result<(), CompactError> {
        let (tp, incarnation) = (&survey.of.tp, survey.of.incarnation);
        let mut base = survey.newest.as_ref().map(|newest| Arc::clone(newest.snapshot()));
        for _ in 0..TAKEN_MAX {
            if base.as_ref().is_some_and(|base| base.number() >= number) {
                break;
            }
            match self.commit_to(tp, incarnation, base, Edit::default()).await {
                Ok(made) => base = Some(Arc::clone(made.snapshot())),
                Err(CatalogError::Lost { newest }) => base = Some(newest),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

impl Swept {
    /// Both together.
    #[must_use]
    pub fn plus(self, more: Self) -> Self {
        Self { objects: self.objects + more.objects, bytes: self.bytes + more.bytes }
    }
}
