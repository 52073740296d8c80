//! Owns what a collector of garbage must know and may mark: which objects a
//! manifest needs, an older manifest by its number, a partition's newest as a
//! proof, and the closing of blocks.
//!
//! Closing comes before deleting: once `closed/{block}` exists no reader looks for
//! a manifest in that block and a create in it is void, so its manifests can go in
//! any order and a crash between leaves nothing wrong. Blocks close ascending, and
//! only once the block behind has ended, which it does when it is full, or when a
//! manifest says so; else only to begin a partition anew (`remains`).

use std::collections::HashSet;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};

use crate::record::TopicPartition;
use crate::store::{ObjectKey, PartitionKey};

use super::commit::Committed;
use super::entry::ArchiveEntry;
use super::error::CatalogError;
use super::manifest::Open;
use super::newest::{BLOCK, block_of, is_closed, prefix_len};
use super::page::{Page, PageRef};
use super::snapshot::Snapshot;
use super::{Catalog, manifest_key};

/// Pages read at a time for a list of references.
const PAGES_IN_FLIGHT: usize = 8;

impl Snapshot {
    /// Every object that this manifest needs: itself, its pages, its archives, its
    /// side object. Reads every page.
    ///
    /// # Errors
    /// When a page cannot be read.
    pub async fn references(&self) -> Result<HashSet<ObjectKey>, CatalogError> {
        let of = self.of();
        let mut found: HashSet<_> = [manifest_key(of, self.number())].into();
        if let Open::Side(side) = &self.manifest().open {
            found.insert(side.key(of));
        }
        let mut next = self.manifest().pages.clone();
        while !next.is_empty() {
            found.extend(next.iter().map(|page| page.key(of)));
            let reads: Vec<_> = next.into_iter().map(|at| self.inner_refs(at)).collect();
            next = futures::stream::iter(reads).buffered(PAGES_IN_FLIGHT).try_concat().await?;
        }
        found.extend(self.entries().await?.iter().map(ArchiveEntry::key));
        Ok(found)
    }

    async fn inner_refs(&self, at: PageRef) -> Result<Vec<PageRef>, CatalogError> {
        if at.height == 0 {
            return Ok(Vec::new());
        }
        match &*self.page(&at).await? {
            Page::Inner(refs) => Ok(refs.clone()),
            Page::Leaf(_) => Ok(Vec::new()),
        }
    }
}

impl Catalog {
    /// The newest manifest of a partition, as the proof that it is committed.
    ///
    /// # Errors
    /// As [`Catalog::load`].
    pub async fn newest(
        &self,
        tp: &TopicPartition,
        incarnation: u32,
    ) -> Result<Option<Committed>, CatalogError> {
        let found = self.load(tp, Some(incarnation)).await?;
        Ok(found.map(Committed::of))
    }

    /// Manifest `number` of the partition of `newest`, which must not be younger.
    ///
    /// # Errors
    /// [`CatalogError::Gone`] where it was collected; as [`Catalog::load`].
    pub async fn older(
        &self,
        newest: &Committed,
        number: u64,
    ) -> Result<Arc<Snapshot>, CatalogError> {
        if number == newest.snapshot().number() {
            return Ok(Arc::clone(newest.snapshot()));
        }
        self.read(newest.snapshot().of(), number).await
    }

    /// The first manifest of a partition whose block is not closed; all before it
    /// may be deleted.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn first_open(&self, of: &PartitionKey) -> Result<u64, CatalogError> {
        let closed = prefix_len(0, |block| is_closed(&self.store, of, block)).await?;
        Ok(closed * BLOCK)
    }

    /// Closes every block that lies before manifest `before` and may close, and
    /// returns as [`Self::first_open`].
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn close_blocks(&self, newest: &Committed, before: u64) -> Result<u64, CatalogError> {
        let snapshot = newest.snapshot();
        let mut open = self.first_open(snapshot.of()).await?;
        while open < closable(snapshot.next_number(), before) {
            self.close_block(snapshot.of(), block_of(open)).await?;
            open += BLOCK;
        }
        Ok(open)
    }

    /// Closes one block, where all before it are closed.
    pub(super) async fn close_block(
        &self,
        of: &PartitionKey,
        block: u64,
    ) -> Result<(), CatalogError> {
        let key = ObjectKey::Closed { of: of.clone(), block };
        // Who else created it meant the same.
        self.store.create(&key, bytes::Bytes::new()).await?;
        Ok(())
    }
}

/// The first manifest of the first block that may not close, where `next` is the
/// number that follows on the newest and nothing from `before` on may be deleted.
#[must_use]
pub fn closable(next: u64, before: u64) -> u64 {
    // The block behind must have ended: its last manifest is there.
    let ended = block_of(next).saturating_sub(1);
    ended.min(block_of(before)) * BLOCK
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::testing::{beside, catalog, entry, gap, land, partition};
    use crate::catalog::{Edit, INLINE_ENTRIES_MAX};
    use crate::store::Store;

    #[test]
    fn a_block_closes_once_the_one_behind_is_full_and_nothing_of_it_is_wanted() {
        assert_eq!(closable(2, 1), 0);
        assert_eq!(closable(2 * BLOCK - 1, 2 * BLOCK - 2), 0);
        assert_eq!(closable(2 * BLOCK, 2 * BLOCK - 1), BLOCK);
        assert_eq!(closable(2 * BLOCK, BLOCK), BLOCK);
        assert_eq!(closable(2 * BLOCK, BLOCK - 1), 0);
        assert_eq!(closable(10 * BLOCK + 1, 5 * BLOCK + 3), 5 * BLOCK);
        assert_eq!(closable(10 * BLOCK + 1, 10 * BLOCK), 9 * BLOCK);
    }

    #[tokio::test]
    async fn references_are_every_object_a_reader_may_need() {
        let store = Store::open("memory:").unwrap();
        let catalog = catalog(&store, "w", 1);
        let of = partition();
        let count = INLINE_ENTRIES_MAX as i64 + 40;
        let mut add: Vec<_> = (0..count).map(|n| entry(1, n * 10, n * 10 + 9)).collect();
        add.push(beside(1, 5, 25));
        land(&store, &add).await;
        let edit = Edit {
            add: add.clone(),
            gaps: vec![gap(count * 10, count * 10 + 9)],
            open_transactions: Some(
                (0..500)
                    .map(|n| crate::archive::OpenTransaction { producer_id: n, first_offset: 1 })
                    .collect(),
            ),
            ..Edit::default()
        };
        catalog.commit(&of.tp, 0, None, edit).await.unwrap();
        let newest = catalog.newest(&of.tp, 0).await.unwrap().unwrap();
        let found = newest.snapshot().references().await.unwrap();
        for one in &add {
            assert!(found.contains(&one.key()), "{}", one.key());
        }
        let listed: Vec<_> = store.list("default").try_collect().await.unwrap();
        let ours = listed.iter().map(|one| ObjectKey::decode(&one.name).unwrap());
        let lives = |key: &ObjectKey| matches!(key, ObjectKey::Incarnation { .. });
        let ours: HashSet<_> = ours.filter(|key| !lives(key)).collect();
        assert_eq!(found, ours, "what was written for a manifest is what it needs");

        let base = Some(Arc::clone(newest.snapshot()));
        let remove = add[..4].to_vec();
        let edit = Edit { remove, log_start: Some(40), ..Edit::default() };
        catalog.commit(&of.tp, 0, base, edit).await.unwrap();
        let newer = catalog.newest(&of.tp, 0).await.unwrap().unwrap();
        let less = newer.snapshot().references().await.unwrap();
        assert!(!less.contains(&add[3].key()) && less.contains(&add[4].key()));
        let older = catalog.older(&newer, 1).await.unwrap();
        assert_eq!(older.references().await.unwrap(), found);
    }

    #[tokio::test]
    async fn blocks_close_in_order_and_the_newest_is_found_without_them() {
        let store = Store::open("memory:").unwrap();
        let catalog = catalog(&store, "w", 1);
        let of = partition();
        let mut base = None;
        let last = 3 * BLOCK + 5;
        for number in 1..=last {
            let made = catalog.commit(&of.tp, 0, base, Edit::default()).await.unwrap();
            base = Some(Arc::clone(made.snapshot()));
            if number == 2 * BLOCK - 2 {
                assert_eq!(catalog.close_blocks(&made, number).await.unwrap(), 0);
            }
        }
        let newest = catalog.newest(&of.tp, 0).await.unwrap().unwrap();
        assert_eq!(catalog.close_blocks(&newest, BLOCK + 7).await.unwrap(), BLOCK);
        assert_eq!(catalog.close_blocks(&newest, last).await.unwrap(), 2 * BLOCK);
        assert_eq!(catalog.close_blocks(&newest, last).await.unwrap(), 2 * BLOCK);
        assert_eq!(catalog.first_open(&of).await.unwrap(), 2 * BLOCK);
        for number in 1..2 * BLOCK {
            store.delete(&ObjectKey::Manifest { of: of.clone(), number }).await.unwrap();
        }
        let found = catalog.newest(&of.tp, 0).await.unwrap().unwrap();
        assert_eq!(found.snapshot().number(), last);
        catalog.verify_history(found.snapshot()).await.unwrap();
    }
}
