//! Owns finding the newest manifest without a listing.
//!
//! Manifests are numbered densely from 1 and form blocks of 1024. A manifest may say
//! that it ends its block: then the one behind it is the first of the next block. So
//! a collector need not wait for a thousand commits, and whoever read the last one
//! knows which number follows. Before a manifest of block *k* is deleted, `closed/{k}`
//! is created and stays for ever, and that only once block *k+1* has ended; blocks
//! close in order. So:
//!
//! - Closed blocks are a prefix 0..K. From K on the blocks that have begun, which is
//!   that their first manifest exists, are without a hole, and so is what exists in
//!   each: both can be galloped through and bisected. The newest manifest is the last
//!   of the last block that has begun.
//! - That a manifest is absent says so only if its block is not closed **afterwards**:
//!   otherwise it may have been there and deleted, and the one who asks has slept.

use std::future::Future;

use crate::store::{ObjectKey, PartitionKey, Store, StoreError};

use super::error::CatalogError;

/// Manifests in a block.
pub const BLOCK: u64 = 1024;

/// Times a search begins again because blocks closed under it.
const RESTARTS_MAX: u32 = 8;

/// The block of manifest `number`.
pub(super) fn block_of(number: u64) -> u64 {
    number / BLOCK
}

/// Whether block `block` of `of` is closed.
pub(super) async fn is_closed(
    store: &Store,
    of: &PartitionKey,
    block: u64,
) -> Result<bool, StoreError> {
    Ok(store.head(&ObjectKey::Closed { of: of.clone(), block }).await?.is_some())
}

/// The number of the newest manifest, `None` where there is none. With `next`, the
/// number that follows on a manifest that is known, `None` where nothing is newer than
/// that one.
pub(super) async fn newest(
    store: &Store,
    of: &PartitionKey,
    next: Option<u64>,
) -> Result<Option<u64>, CatalogError> {
    let known = next.map_or(0, block_of);
    if let Some(next) = next
        && !exists(store, of, next).await?
        && !is_closed(store, of, known).await?
    {
        return Ok(None);
    }
    let first = |block: u64| (block * BLOCK).max(next.unwrap_or(1));
    for _ in 0..RESTARTS_MAX {
        let open = prefix_len(known, |block| is_closed(store, of, block)).await?;
        let begun = prefix_len(open, |block| exists(store, of, first(block))).await?;
        let last = begun.saturating_sub(1).max(open);
        let end = end_of(store, of, first(last)).await?;
        if is_closed(store, of, last).await? {
            continue;
        }
        if end > first(last) {
            return Ok(Some(end - 1));
        }
        if open > 0 || next.is_some() {
            // A block closes only where a manifest lies behind it.
            let key = ObjectKey::Manifest { of: of.clone(), number: end };
            return Err(CatalogError::Gone { object: key.to_string() });
        }
        return Ok(None);
    }
    Err(CatalogError::Unsettled { what: of.to_string() })
}

async fn exists(store: &Store, of: &PartitionKey, number: u64) -> Result<bool, StoreError> {
    Ok(store.head(&ObjectKey::Manifest { of: of.clone(), number }).await?.is_some())
}

/// The number behind the last manifest of the block of `from`, which is the first of it
/// that is kept; `from` itself where that is not there.
pub(super) async fn end_of(store: &Store, of: &PartitionKey, from: u64) -> Result<u64, StoreError> {
    let is_there = |number| async move {
        Ok(block_of(number) == block_of(from) && exists(store, of, number).await?)
    };
    prefix_len(from, is_there).await
}

/// The first number from `from` on that does not exist, where what exists is a
/// prefix: doubles the step, then bisects.
pub(super) async fn prefix_len<F>(from: u64, exists: impl Fn(u64) -> F) -> Result<u64, StoreError>
where
    F: Future<Output = Result<bool, StoreError>>,
{
    if !exists(from).await? {
        return Ok(from);
    }
    let (mut there, mut step) = (from, 1);
    let mut absent = loop {
        let next = there.saturating_add(step);
        if !exists(next).await? {
            break next;
        }
        (there, step) = (next, step.saturating_mul(2));
    };
    while absent - there > 1 {
        let middle = there + (absent - there) / 2;
        if exists(middle).await? { there = middle } else { absent = middle }
    }
    Ok(absent)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::catalog::testing::partition;

    async fn store(manifests: impl IntoIterator<Item = u64>, closed: u64) -> Store {
        let store = Store::open("memory:").unwrap();
        for number in manifests {
            let key = ObjectKey::Manifest { of: partition(), number };
            store.put(&key, Bytes::from_static(b"x")).await.unwrap();
        }
        for block in 0..closed {
            let key = ObjectKey::Closed { of: partition(), block };
            store.put(&key, Bytes::new()).await.unwrap();
        }
        store
    }

    #[tokio::test]
    async fn every_count_of_manifests_is_found_with_few_requests() {
        for count in [0, 1, 2, 3, 7, 8, 9, 100, 1023, 1024, 1025, 3000] {
            let store = store(1..=count, 0).await;
            let before = store.requests();
            let found = newest(&store, &partition(), None).await.unwrap();
            assert_eq!(found, (count > 0).then_some(count));
            let requests = store.requests().since(&before).total();
            assert!(requests <= 4 + 2 * u64::from((count + 2).ilog2() + 1), "{count}: {requests}");
        }
    }

    #[tokio::test]
    async fn deleted_blocks_are_passed_over() {
        for (closed, newest_number) in [(1, 2047), (1, 2048), (1, 3071), (3, 5119), (3, 6000)] {
            let store = store(closed * BLOCK..=newest_number, closed).await;
            for next in [2, 18, closed * BLOCK, closed * BLOCK + 1, newest_number] {
                for next in [None, Some(next)] {
                    let found = newest(&store, &partition(), next).await.unwrap();
                    assert_eq!(found, Some(newest_number), "{closed} closed, from {next:?}");
                }
            }
            let found = newest(&store, &partition(), Some(newest_number + 1)).await.unwrap();
            assert_eq!(found, None, "{closed} closed");
        }
    }

    #[tokio::test]
    async fn who_is_up_to_date_needs_two_requests() {
        let store = store(1..=50, 0).await;
        let before = store.requests();
        assert_eq!(newest(&store, &partition(), Some(51)).await.unwrap(), None);
        assert_eq!(store.requests().since(&before).total(), 2);
    }

    #[tokio::test]
    async fn who_is_behind_catches_up() {
        let store = store(1..=900, 0).await;
        for next in [2, 501, 898, 899, 900] {
            assert_eq!(newest(&store, &partition(), Some(next)).await.unwrap(), Some(900));
        }
    }

    #[tokio::test]
    async fn closed_blocks_with_nothing_behind_them_are_damage_and_no_empty_partition() {
        let store = store([6], 2).await;
        let found = newest(&store, &partition(), None).await;
        assert!(matches!(found, Err(CatalogError::Gone { .. })), "{found:?}");
    }

    #[tokio::test]
    async fn where_blocks_ended_early_the_newest_is_found() {
        for count in [1, 2, 3, 161, 500, 700, 1023] {
            let newest_number = 2 * BLOCK + 9;
            let blocks = [1..=count, BLOCK..=BLOCK, 2 * BLOCK..=newest_number];
            let ends = blocks.each_ref().map(|block| (*block.start(), *block.end() + 1));
            let store = store(blocks.into_iter().flatten(), 0).await;
            let known = [1, count, BLOCK, 2 * BLOCK, newest_number].map(Some);
            for next in known.into_iter().chain([None]) {
                let found = newest(&store, &partition(), next).await.unwrap();
                assert_eq!(found, Some(newest_number), "{count}, from {next:?}");
            }
            for (first, end) in ends {
                assert_eq!(end_of(&store, &partition(), first).await.unwrap(), end);
                // Who read the last of a full block knows that the next begins there.
                let newer = (end == BLOCK).then_some(newest_number);
                assert_eq!(newest(&store, &partition(), Some(end)).await.unwrap(), newer);
            }
        }
    }

    #[tokio::test]
    async fn a_void_manifest_in_a_closed_block_is_not_the_newest() {
        // A writer that slept created number 6 again, after it was collected.
        let store = store((BLOCK..=2 * BLOCK + 5).chain([6]), 1).await;
        for next in [5, 6, 7] {
            let found = newest(&store, &partition(), Some(next)).await.unwrap();
            assert_eq!(found, Some(2 * BLOCK + 5), "from {next}");
        }
    }
}
