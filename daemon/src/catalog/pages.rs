//! Owns pages in memory: read once, verified, kept while there is room.
//!
//! Pages never change and their digests name them, so nothing here can be stale.

use std::fmt;
use std::sync::Arc;

use quick_cache::Weighter;
use quick_cache::sync::Cache;

use crate::store::{PartitionKey, Store, StoreError};

use super::entry::{ENTRY_BYTES, GAP_BYTES};
use super::error::CatalogError;
use super::page::{PAGE_BYTES_MAX, Page, PageRef};

/// Bytes of pages kept in memory, all partitions together. Holds the paths to a
/// million archives' worth of hot pages; the rest is one request away.
pub const PAGES_BYTES_MAX: u64 = 32 << 20;

type Digest = [u8; 16];

/// Weighs pages by what they take in memory, roughly twice their bytes.
#[derive(Clone, Debug)]
struct Weight;

impl Weighter<Digest, Arc<Page>> for Weight {
    fn weight(&self, _: &Digest, page: &Arc<Page>) -> u64 {
        let bytes = match &**page {
            Page::Leaf(items) => items.entries.len() * ENTRY_BYTES + items.gaps.len() * GAP_BYTES,
            Page::Inner(refs) => size_of_val(refs.as_slice()),
        };
        2 * bytes as u64 + 256
    }
}

/// The pages of a store.
#[derive(Clone)]
pub(super) struct Pages {
    store: Store,
    cache: Arc<Cache<Digest, Arc<Page>, Weight>>,
}

impl fmt::Debug for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pages").field("kept", &self.cache.len()).finish_non_exhaustive()
    }
}

impl Pages {
    pub(super) fn new(store: Store) -> Self {
        let typical = PAGES_BYTES_MAX as usize / PAGE_BYTES_MAX;
        let cache = Cache::with_weighter(typical, PAGES_BYTES_MAX, Weight);
        Self { store, cache: Arc::new(cache) }
    }

    /// The page that `at` refers to. Asked for by many at once, it is read once.
    pub(super) async fn get(
        &self,
        of: &PartitionKey,
        at: &PageRef,
    ) -> Result<Arc<Page>, CatalogError> {
        let guard = match self.cache.get_value_or_guard_async(&at.digest).await {
            Ok(page) => return Ok(page),
            Err(guard) => guard,
        };
        let key = at.key(of);
        let bytes = match self.store.get(&key, PAGE_BYTES_MAX as u64).await {
            Ok(bytes) => bytes,
            Err(StoreError::NotFound { path, .. }) => {
                return Err(CatalogError::Gone { object: path });
            }
            Err(error) => return Err(error.into()),
        };
        let page =
            Page::decode(&bytes, of, at).map_err(|error| CatalogError::format(&key, error))?;
        let page = Arc::new(page);
        // A guard fails to insert only when the entry was evicted meanwhile.
        let _ = guard.insert(Arc::clone(&page));
        Ok(page)
    }

    /// Keeps a page that was just made.
    pub(super) fn keep(&self, at: &PageRef, page: Page) {
        self.cache.insert(at.digest, Arc::new(page));
    }
}
