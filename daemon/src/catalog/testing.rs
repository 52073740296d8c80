//! Owns what the room's tests make: partitions, entries, and archives in name
//! and length only.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use crate::archive::{
    ArchiveIdentity, ArchiveSummary, Encoding, FOOTER_DISTANCE, IndexLevel, TocPlace,
};
use crate::clock::ManualClock;
use crate::record::{OffsetRange, TopicName, TopicPartition};
use crate::store::{ClusterName, PartitionKey, Store, WriterId};

use super::{ArchiveEntry, Catalog, Gap, GapKind, NonceSource};

/// Length of the objects that stand for archives.
pub(super) const ARCHIVE_BYTES: u64 = FOOTER_DISTANCE + 1;

pub(super) fn cluster() -> ClusterName {
    ClusterName::new("default").unwrap()
}

pub(super) fn partition() -> PartitionKey {
    let tp = TopicPartition::new(TopicName::new("clicks.日本_1").unwrap(), 3).unwrap();
    PartitionKey { cluster: cluster(), tp, incarnation: 0 }
}

pub(super) fn range(base: i64, last: i64) -> OffsetRange {
    OffsetRange::new(base, last).unwrap()
}

pub(super) fn gap(base: i64, last: i64) -> Gap {
    Gap { range: range(base, last), kind: GapKind::Missing }
}

/// An entry that tiles `base..=last`; timestamps follow offsets.
pub(super) fn entry(built_for: u64, base: i64, last: i64) -> ArchiveEntry {
    of_kind(built_for, base, last, true)
}

/// An entry that tiles nothing.
pub(super) fn beside(built_for: u64, base: i64, last: i64) -> ArchiveEntry {
    of_kind(built_for, base, last, false)
}

fn of_kind(built_for: u64, base: i64, last: i64, tiles: bool) -> ArchiveEntry {
    let seed = format!("{built_for} {base} {last} {tiles}");
    let digest = *blake3::hash(seed.as_bytes()).as_bytes();
    let summary = ArchiveSummary {
        range: range(base, last),
        tiles,
        batches: tiles.into(),
        records: if tiles { (last - base + 1) as u64 } else { 0 },
        log_bytes: if tiles { 100 } else { 0 },
        overlaps: (!tiles).into(),
        overlap_bytes: if tiles { 0 } else { 100 },
        bad_crcs: 0,
        unindexed: 0,
        min_timestamp: 1_000 + base * 10,
        max_timestamp: 1_000 + last * 10 + 5,
        leader_epochs: (0, 3),
        index_level: IndexLevel::Keys,
        index_bytes: 10,
        transactions: (base % 3) as u32,
        length: ARCHIVE_BYTES,
        digest,
        toc: TocPlace { offset: 0, length: 1, raw: 1, encoding: Encoding::Stored, digest: [9; 16] },
    };
    let of = partition();
    let identity = ArchiveIdentity { tp: of.tp, incarnation: of.incarnation };
    ArchiveEntry::new(&of.cluster, &identity, built_for, summary)
}

/// Puts something of the right length under the name of each archive.
pub(super) async fn land(store: &Store, entries: &[ArchiveEntry]) {
    let body = Bytes::from(vec![0; ARCHIVE_BYTES as usize]);
    for entry in entries {
        store.put(&entry.key(), body.clone()).await.unwrap();
    }
}

/// Nonces that differ between calls and between sources with another `seed`.
pub(super) fn nonces(seed: u8) -> NonceSource {
    let next = AtomicU64::new(0);
    Box::new(move || {
        let mut nonce = [seed; 16];
        nonce[..8].copy_from_slice(&next.fetch_add(1, Ordering::Relaxed).to_le_bytes());
        nonce
    })
}

/// A catalog over `store` in the name of `writer`.
pub(super) fn catalog(store: &Store, writer: &str, seed: u8) -> Arc<Catalog> {
    let writer = WriterId::new(writer).unwrap();
    let clock = ManualClock::at(1_700_000_000_000);
    Arc::new(Catalog::new(store.clone(), cluster(), writer, clock, nonces(seed)))
}

/// Compares `bytes` with a stored file of an earlier build. A file is made once,
/// with `TIERD_BLESS=1`, and then never again: released formats do not change.
pub(super) fn assert_golden(name: &str, bytes: &[u8]) {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/manifest/");
    let path = std::path::Path::new(root).join(name);
    if std::env::var_os("TIERD_BLESS").is_some() && !path.try_exists().unwrap() {
        std::fs::create_dir_all(root).unwrap();
        std::fs::write(&path, bytes).unwrap();
    }
    let golden = std::fs::read(&path).unwrap();
    assert!(golden == bytes, "{name} is no longer what was released");
}
