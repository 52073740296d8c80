//! Owns how fresh a manifest must be to answer from.
//!
//! Manifests are immutable, so an old one is never wrong, only behind. A reader
//! asks for the next number at most once per [`FRESH_FOR`] and partition.

use std::sync::Arc;
use std::time::Duration;

use quick_cache::sync::Cache;

use super::{Catalog, CatalogError, Snapshot};
use crate::clock::Clock;
use crate::record::{TopicName, TopicPartition};

/// How long a manifest is taken for the newest: bounds how late a commit of
/// another process is seen, and costs one small request per partition and time.
pub const FRESH_FOR: Duration = Duration::from_secs(2);
/// The same for a reader at the end of what is known, who waits for growth: many
/// consumers that poll there must not become as many requests to the store.
const FRESH_AT_END_FOR: Duration = Duration::from_millis(100);
/// Partitions whose manifests are kept: at most 32 KiB each.
const PARTITIONS_KEPT: usize = 4_096;

type Key = (TopicPartition, Option<u32>);

#[derive(Clone, Debug)]
struct Seen {
    snapshot: Arc<Snapshot>,
    at: Duration,
}

/// Newest manifests, by partition.
#[derive(Debug)]
pub struct Snapshots {
    catalog: Arc<Catalog>,
    clock: Arc<dyn Clock>,
    seen: Cache<Key, Seen>,
}

impl Snapshots {
    /// Nothing seen yet of what `catalog` has.
    #[must_use]
    pub fn new(catalog: Arc<Catalog>, clock: Arc<dyn Clock>) -> Self {
        Self { catalog, clock, seen: Cache::new(PARTITIONS_KEPT) }
    }

    /// A manifest that was the newest at most [`FRESH_FOR`] ago.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub async fn get(
        &self,
        tp: &TopicPartition,
        incarnation: Option<u32>,
    ) -> Result<Option<Arc<Snapshot>>, CatalogError> {
        self.within(FRESH_FOR, tp, incarnation).await
    }

    /// The same for a reader at the end of what is known.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub async fn grown(
        &self,
        tp: &TopicPartition,
        incarnation: Option<u32>,
    ) -> Result<Option<Arc<Snapshot>>, CatalogError> {
        self.within(FRESH_AT_END_FOR, tp, incarnation).await
    }

    async fn within(
        &self,
        fresh_for: Duration,
        tp: &TopicPartition,
        incarnation: Option<u32>,
    ) -> Result<Option<Arc<Snapshot>>, CatalogError> {
        let key = (tp.clone(), incarnation);
        let now = self.clock.monotonic();
        if let Some(seen) = self.seen.get(&key)
            && now.saturating_sub(seen.at) < fresh_for
        {
            return Ok(Some(seen.snapshot));
        }
        self.refresh(tp, incarnation).await
    }

    /// The newest manifest, asked for now.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub async fn refresh(
        &self,
        tp: &TopicPartition,
        incarnation: Option<u32>,
    ) -> Result<Option<Arc<Snapshot>>, CatalogError> {
        let key = (tp.clone(), incarnation);
        let at = self.clock.monotonic();
        let known = self.seen.get(&key).map(|seen| seen.snapshot);
        let newest = match known {
            Some(known) if incarnation.is_some() || !self.catalog.is_outlived(&known).await? => {
                Some(self.catalog.newer(&known).await?)
            }
            _ => self.catalog.load(tp, incarnation).await?,
        };
        if let Some(snapshot) = &newest {
            self.seen.insert(key, Seen { snapshot: Arc::clone(snapshot), at });
        }
        Ok(newest)
    }

    /// Manifest `number` of a partition: one small request where it is not the one
    /// that is known. `None` where it was collected.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub async fn at(
        &self,
        tp: &TopicPartition,
        incarnation: u32,
        number: u64,
    ) -> Result<Option<Arc<Snapshot>>, CatalogError> {
        let known = self.seen.get(&(tp.clone(), Some(incarnation)));
        let known = known.or_else(|| self.seen.get(&(tp.clone(), None)));
        match known {
            Some(Seen { snapshot, .. })
                if snapshot.incarnation() == incarnation && snapshot.number() == number =>
            {
                Ok(Some(snapshot))
            }
            _ => self.catalog.generation(tp, incarnation, number).await,
        }
    }

    /// Every partition, or those of `topic`, in every life of its topic, ascending.
    ///
    /// # Errors
    /// When the store cannot be listed.
    pub async fn partitions(
        &self,
        topic: Option<&TopicName>,
    ) -> Result<Vec<(TopicPartition, u32)>, CatalogError> {
        match topic {
            Some(topic) => self.catalog.partitions_of(topic.clone()).await,
            None => self.catalog.partitions().await,
        }
    }
}
