//! Owns how fresh a manifest must be to answer from.
//!
//! Manifests are immutable, so an old one is never wrong, only behind. A reader
//! asks for the next number at most once per [`FRESH_FOR`] and partition.

use std::sync::Arc;
use std::time::Duration;

use quick_cache::sync::Cache;

use crate::catalog::{Catalog, CatalogError, Snapshot};
use crate::clock::Clock;
use crate::record::TopicPartition;

/// How long a manifest is taken for the newest: bounds how late a commit of
/// another process is seen, and costs one small request per partition and time.
pub(super) const FRESH_FOR: Duration = Duration::from_secs(2);
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
pub(super) struct Snapshots {
    catalog: Arc<Catalog>,
    clock: Arc<dyn Clock>,
    seen: Cache<Key, Seen>,
}

impl Snapshots {
    pub(super) fn new(catalog: Arc<Catalog>, clock: Arc<dyn Clock>) -> Self {
        Self { catalog, clock, seen: Cache::new(PARTITIONS_KEPT) }
    }

    /// A manifest that was the newest at most [`FRESH_FOR`] ago.
    pub(super) async fn get(
        &self,
        tp: &TopicPartition,
        incarnation: Option<u32>,
    ) -> Result<Option<Arc<Snapshot>>, CatalogError> {
        self.within(FRESH_FOR, tp, incarnation).await
    }

    /// The same for a reader at the end of what is known.
    pub(super) async fn grown(
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
    pub(super) async fn refresh(
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

    /// Every partition in every life of its topic, ascending.
    pub(super) async fn partitions(&self) -> Result<Vec<(TopicPartition, u32)>, CatalogError> {
        self.catalog.partitions().await
    }
}
