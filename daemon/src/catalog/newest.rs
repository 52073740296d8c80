//! Owns finding the newest manifest without a listing.
//!
//! Manifests are numbered densely from 1 and form blocks of 1024. Before a
//! manifest of block *k* is deleted, `closed/{k}` is created and stays for ever,
//! and that only once block *k+1* is full; blocks close in order. So:
//!
//! - Closed blocks are a prefix 0..K. The newest manifest is in a block that is
//!   not closed, and from `1024 K` on what exists is a prefix: it can be galloped
//!   through and bisected.
//! - That manifest *n+1* is absent says that *n* is the newest only if the block
//!   of *n+1* is not closed **afterwards**: otherwise *n+1* may have been there
//!   and deleted, and the one who asks has slept for a thousand commits.

use std::future::Future;

use crate::store::{ObjectKey, PartitionKey, Store, StoreError};

use super::error::CatalogError;

/// Manifests in a block.
pub const BLOCK: u64 = 1024;

/// Manifests followed one by one before the search gallops.
const STEPS_MAX: u64 = 4;

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

/// The number of the newest manifest, `None` where there is none. `known` is a
/// number that exists or has existed, 0 where none is known.
pub(super) async fn newest(
    store: &Store,
    of: &PartitionKey,
    known: u64,
) -> Result<Option<u64>, CatalogError> {
    let exists = |number| async move {
        let key = ObjectKey::Manifest { of: of.clone(), number };
        Ok::<_, StoreError>(store.head(&key).await?.is_some())
    };
    if known > 0 {
        for number in known + 1..=known + STEPS_MAX {
            if !exists(number).await? {
                if is_closed(store, of, block_of(number)).await? {
                    break;
                }
                return Ok(Some(number - 1));
            }
        }
    }
    for _ in 0..RESTARTS_MAX {
        let open = prefix_len(0, |block| is_closed(store, of, block)).await?;
        let from = (open * BLOCK).max(1);
        let end = prefix_len(from, exists).await?;
        if is_closed(store, of, block_of(end)).await? {
            continue;
        }
        if end == from && open > 0 {
            // A block closes only where a manifest lies behind it.
            let key = ObjectKey::Manifest { of: of.clone(), number: from };
            return Err(CatalogError::Gone { object: key.to_string() });
        }
        return Ok(end.checked_sub(1).filter(|number| *number > 0));
    }
    Err(CatalogError::Unsettled { what: of.to_string() })
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
            let found = newest(&store, &partition(), 0).await.unwrap();
            assert_eq!(found, (count > 0).then_some(count));
            let requests = store.requests().since(&before).total();
            assert!(requests <= 3 + 2 * u64::from((count + 2).ilog2() + 1), "{count}: {requests}");
        }
    }

    #[tokio::test]
    async fn deleted_blocks_are_passed_over() {
        for (closed, newest_number) in [(1, 2047), (1, 2048), (1, 3071), (3, 5119), (3, 6000)] {
            let store = store(closed * BLOCK..=newest_number, closed).await;
            for known in [0, 1, 17, closed * BLOCK - 1, closed * BLOCK, newest_number] {
                let found = newest(&store, &partition(), known).await.unwrap();
                assert_eq!(found, Some(newest_number), "{closed} closed, from {known}");
            }
        }
    }

    #[tokio::test]
    async fn who_is_up_to_date_needs_two_requests() {
        let store = store(1..=50, 0).await;
        let before = store.requests();
        assert_eq!(newest(&store, &partition(), 50).await.unwrap(), Some(50));
        assert_eq!(store.requests().since(&before).total(), 2);
    }

    #[tokio::test]
    async fn who_is_behind_catches_up() {
        let store = store(1..=900, 0).await;
        for known in [1, 500, 897, 898, 899] {
            assert_eq!(newest(&store, &partition(), known).await.unwrap(), Some(900));
        }
    }

    #[tokio::test]
    async fn closed_blocks_with_nothing_behind_them_are_damage_and_no_empty_partition() {
        let store = store([6], 2).await;
        let found = newest(&store, &partition(), 0).await;
        assert!(matches!(found, Err(CatalogError::Gone { .. })), "{found:?}");
    }

    #[tokio::test]
    async fn a_void_manifest_in_a_closed_block_is_not_the_newest() {
        // A writer that slept created number 6 again, after it was collected.
        let store = store((BLOCK..=2 * BLOCK + 5).chain([6]), 1).await;
        for known in [4, 5, 6] {
            let found = newest(&store, &partition(), known).await.unwrap();
            assert_eq!(found, Some(2 * BLOCK + 5), "from {known}");
        }
    }
}
