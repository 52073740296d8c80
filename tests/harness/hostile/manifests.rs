//! Bytes as an object of the catalog.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::memory::InMemory;
use object_store::{ObjectStore, ObjectStoreExt};
use tierd::archive::{ArchiveIdentity, ArchiveOptions, IndexLevel};
use tierd::catalog::{
    ArchiveEntry, Catalog, Edit, Items, Ledger, Manifest, Page, PageRef, PartitionKey, Recorded,
    Snapshot,
};
use tierd::record::{CanonicalRecord, Codec, OffsetRange};
use tierd::store::{ObjectKey, Store};
use tokio::runtime::{Builder, Runtime};

use crate::chronik::sample_batch;
use crate::world::{build, catalog, tp};

/// Archives of the first commit: more than a manifest holds, so that there are pages.
const ARCHIVES: i64 = 300;
/// Bytes of the digest that ends every object of the catalog.
const DIGEST_BYTES: usize = 16;

/// A catalog of one partition: its objects but the archives.
struct Base {
    objects: InMemory,
    of: PartitionKey,
    newest: u64,
    leaf: PageRef,
}

/// The first byte chooses the object: a manifest, a page, a ledger, an incarnation.
/// Its digest is mended, and it takes the place of the good one.
pub fn manifests(bytes: &[u8]) {
    let Some((kind, body)) = bytes.split_first() else { return };
    let mut object = body.to_vec();
    if let Some(end) = object.len().checked_sub(DIGEST_BYTES) {
        let digest = blake3::hash(&object[..end]);
        object[end..].copy_from_slice(&digest.as_bytes()[..DIGEST_BYTES]);
    }
    match kind % 4 {
        0 => manifest(object.into()),
        1 => page(&object),
        2 => read_in_place(
            |of| ObjectKey::Ledger {
                cluster: of.cluster.clone(),
                writer: writer(),
                tp: of.tp.clone(),
            },
            object.into(),
            async |catalog, of| {
                if let Ok(Some(ledger)) = catalog.ledger(&of.tp).await {
                    assert!(ledger.releasable_through() >= 0);
                    assert!(ledger.segments().is_sorted_by_key(|segment| segment.id));
                }
            },
        ),
        _ => read_in_place(
            |of| {
                let (cluster, topic) = (of.cluster.clone(), of.tp.topic().clone());
                ObjectKey::Incarnation { cluster, topic, number: 0 }
            },
            object.into(),
            async |catalog, of| {
                if let Ok(lives) = catalog.incarnations(of.tp.topic()).await {
                    assert!(lives.iter().all(|life| life.topic == *of.tp.topic()));
                }
            },
        ),
    }
}

fn manifest(bytes: Bytes) {
    let of = &base().of;
    if let Ok(manifest) = Manifest::decode(&bytes, &of.cluster) {
        items(&manifest.recent);
        let _ = manifest.totals();
    }
    let key = |of: &PartitionKey| ObjectKey::Manifest { of: of.clone(), number: base().newest };
    read_in_place(key, bytes, async |catalog, of| {
        let Ok(Some(snapshot)) = catalog.load(&of.tp, None).await else { return };
        assert!(snapshot.log_start() >= 0);
        walk(&snapshot).await;
    });
}

/// Everything a reader may ask of a snapshot.
async fn walk(snapshot: &Snapshot) {
    let all = OffsetRange::new(0, i64::MAX - 1).expect("all offsets");
    let _ = (snapshot.totals(), snapshot.last_stable_offset());
    if let Ok(entries) = snapshot.entries().await {
        let bases: Vec<i64> = entries.iter().map(|entry| entry.summary.range.base()).collect();
        assert!(bases.is_sorted(), "archives are listed in order");
    }
    let _ = snapshot.gaps_in(all).await.is_ok();
    let _ = snapshot.find_by_offset_range(all).await.is_ok();
}

fn page(bytes: &[u8]) {
    let Base { of, leaf, .. } = base();
    let mut at = leaf.clone();
    at.length = bytes.len() as u32;
    if let Some(digest) = bytes.last_chunk() {
        at.digest = *digest;
    }
    if let Ok(Page::Leaf(found)) = Page::decode(bytes, of, &at) {
        items(&found);
    }
}

fn items(items: &Items) {
    let bases = |ranges: Vec<i64>| assert!(ranges.is_sorted(), "in order");
    bases(items.entries.iter().map(|entry| entry.summary.range.base()).collect());
    bases(items.gaps.iter().map(|gap| gap.range.base()).collect());
}

/// Reads with the object in the place of the good one.
fn read_in_place(
    key: impl Fn(&PartitionKey) -> ObjectKey,
    bytes: Bytes,
    read: impl AsyncFn(&Catalog, &PartitionKey),
) {
    let base = base();
    runtime().block_on(async {
        let store = Store::new(Arc::new(base.objects.fork()), "");
        store.put(&key(&base.of), bytes).await.expect("into memory");
        read(&catalog(&store, "world"), &base.of).await;
    });
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

fn writer() -> tierd::catalog::WriterId {
    tierd::catalog::WriterId::new("world").expect("an id")
}

fn base() -> &'static Base {
    static BASE: OnceLock<Base> = OnceLock::new();
    BASE.get_or_init(|| runtime().block_on(make()))
}

/// Two commits: so many archives that they need pages, then three more.
async fn make() -> Base {
    let objects = Arc::new(InMemory::new());
    let store = Store::new(Arc::<InMemory>::clone(&objects), "");
    let catalog = catalog(&store, "world");
    let identity = ArchiveIdentity { tp: tp("t", 0), incarnation: 0 };
    let wire = sample_batch(0, 10, 20, Codec::None).expect("a batch");
    let batch = CanonicalRecord::from_wire(wire).expect("a batch");
    let folder = tempfile::tempdir().expect("a folder");
    let options = ArchiveOptions { index_level: IndexLevel::None, ..Default::default() };
    let like = build(folder.path(), &identity, 0, &[batch], options).summary;
    let mut snapshot = None;
    for (number, archives) in [(1, 0..ARCHIVES), (2, ARCHIVES..ARCHIVES + 3)] {
        let mut edit = Edit::default();
        for archive in archives {
            let mut summary = like.clone();
            summary.range = OffsetRange::new(archive * 10, archive * 10 + 9).expect("a range");
            summary.digest = *blake3::hash(&archive.to_le_bytes()).as_bytes();
            let entry = ArchiveEntry::new(catalog.cluster(), &identity, number, summary);
            let body = Bytes::from(vec![0; like.length as usize]);
            store.put(&entry.key(), body).await.expect("into memory");
            edit.add.push(entry);
        }
        let committed = catalog.commit(&identity.tp, 0, snapshot, edit).await.expect("committed");
        snapshot = Some(Arc::clone(committed.snapshot()));
    }
    let recorded = Recorded { id: 3, first_base: 7, first_crc32c: 9 };
    let mut ledger = Ledger::new(0);
    ledger.record(&[recorded]);
    catalog.put_ledger(&identity.tp, &ledger).await.expect("into memory");
    let snapshot = snapshot.expect("two commits");
    let leaf = snapshot.manifest().pages.iter().find(|page| page.height == 0);
    let (of, leaf) = (snapshot.of().clone(), leaf.expect("a page").clone());
    let kept = InMemory::new();
    let all: Vec<_> = objects.list(None).try_collect().await.expect("a list");
    for object in all.into_iter().filter(|object| !object.location.as_ref().ends_with(".tar.gz")) {
        let bytes = objects.get(&object.location).await.expect("there").bytes().await;
        kept.put(&object.location, bytes.expect("in memory").into()).await.expect("into memory");
    }
    Base { objects: kept, of, newest: snapshot.number(), leaf }
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let Base { objects, of, newest, leaf } = base();
    runtime().block_on(async {
        let store = Store::new(Arc::new(objects.fork()), "");
        let cluster = of.cluster.clone();
        let keys = [
            (0, ObjectKey::Manifest { of: of.clone(), number: *newest }),
            (1, leaf.key(of)),
            (
                2,
                ObjectKey::Ledger { cluster: cluster.clone(), writer: writer(), tp: of.tp.clone() },
            ),
            (3, ObjectKey::Incarnation { cluster, topic: of.tp.topic().clone(), number: 0 }),
        ];
        let mut seeds = Vec::new();
        for (kind, key) in keys {
            let bytes = store.get(&key, u64::MAX).await.expect("there");
            seeds.push([&[kind], &bytes[..]].concat());
        }
        seeds
    })
}
