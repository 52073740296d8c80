//! The pieces of work of which each is one process that is killed, and how the bucket
//! and the WAL are before it begins.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use futures::{FutureExt, StreamExt, TryStreamExt};
use object_store::memory::InMemory;
use object_store::{ObjectStore, ObjectStoreExt};
use tierd::archive::IndexLevel;
use tierd::catalog::{BLOCK, Edit, Snapshot};
use tierd::record::{CanonicalRecord, Codec};
use tierd::store::{ObjectKey, PartitionKey, Store};
use tierd_tests::bucket::{Bucket, Kill, Lived};
use tierd_tests::chronik::{noise_batch, sample_batch, transactional_batch};
use tierd_tests::world::{Size, World, catalog, tp};

use super::site::Site;
use super::{ends, live};
use crate::block_on;

/// More than an upload in one piece.
const LARGE_BYTES: usize = 9 << 20;
/// More open transactions than a root holds.
const TRANSACTIONS: i64 = 140;
/// Fewer bytes of log than the archives of a partition have together.
const MERGE_TARGET: &str = "1KiB";
/// Archives by which a root surely has a page.
const ENTRIES: i64 = 200;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// The first archives of new topics, and segments deleted.
    Archive,
    /// An archive that is uploaded in parts.
    Large,
    /// A commit whose root no longer holds all entries.
    Pages,
    /// Commits with more open transactions than a root holds.
    Transactions,
    /// A commit whose number was collected while the writer slept.
    Void,
    /// Retention, then merging.
    Compact,
    /// A merge whose number another writer took.
    Raced,
    /// Archives get another index.
    Reindex,
    /// What compaction dropped is deleted.
    Collect,
    /// Pages and lists that were replaced are deleted.
    CollectPages,
    /// A block of manifests is closed and deleted.
    Block,
    /// A log start is moved.
    Cut,
    /// A topic is deleted.
    Delete,
    /// Catalogs that lost manifests are rebuilt.
    Rebuild,
    /// A daemon that stays archives, moves a log start, deletes a partition.
    Live,
}

impl Work {
    pub(super) const ALL: [Self; 15] = [
        Self::Archive,
        Self::Large,
        Self::Pages,
        Self::Transactions,
        Self::Void,
        Self::Compact,
        Self::Raced,
        Self::Reindex,
        Self::Collect,
        Self::CollectPages,
        Self::Block,
        Self::Cut,
        Self::Delete,
        Self::Rebuild,
        Self::Live,
    ];

    /// Whether what was archived can be read while it is under way.
    pub(super) fn reads_meanwhile(self) -> bool {
        self != Self::Rebuild
    }

    pub(super) fn prepare(self, bucket: &Bucket) -> Prepared {
        let archive = &["run", "--once", "--offline"][..];
        let gc = &["gc", "--confirm", "--grace", "0s"][..];
        bucket.restore(&InMemory::new());
        let mut site = Site::new();
        let made = |site: Site, args: &'static [&'static str]| Prepared {
            of: self,
            objects: bucket.copy(),
            site,
            args,
            meanwhile: None,
        };
        match self {
            Self::Archive => {
                for (topic, partition) in TOPICS {
                    site.segment(topic, partition, 0, &[batch(0), batch(20), batch(10)]);
                    site.segment(topic, partition, 1, &[batch(30)]);
                }
                made(site, &["run", "--once", "--offline", "--reclaim"])
            }
            Self::Large => {
                let noise: Vec<_> = (0..9).map(noise).collect();
                site.segment("large", 0, 0, &noise);
                made(site, archive)
            }
            Self::Pages => {
                let (objects, through) = block_on(before_a_page(&mut site));
                bucket.restore(&objects);
                site.segment("paged", 0, 7, &[batch(through)]);
                made(site, archive)
            }
            Self::Transactions => {
                transactions(&mut site, bucket);
                site.segment("open", 0, 1, &[transactional(TRANSACTIONS)]);
                made(site, archive)
            }
            Self::Void => {
                site.segment("slept", 0, 0, &[batch(0)]);
                let _ = ends(bucket, site.command(bucket, archive), None, "before the sleep");
                let slept = Arc::new(bucket.copy());
                block_on(collect_a_block(&Arc::clone(&slept), "slept"));
                site.segment("slept", 0, 1, &[batch(10)]);
                Prepared { meanwhile: Some(Meanwhile::Becomes(slept)), ..made(site, archive) }
            }
            Self::Compact => {
                rounds(&mut site, bucket);
                let mut prepared = made(
                    site,
                    &[
                        "compact",
                        "--once",
                        "--confirm",
                        "--retention-offsets",
                        "35",
                        "--merge-target",
                        MERGE_TARGET,
                    ],
                );
                prepared.site.keep_last(35);
                prepared
            }
            Self::Raced => {
                rounds(&mut site, bucket);
                let args = &[
                    "compact",
                    "--once",
                    "--confirm",
                    "--strategy",
                    "merge",
                    "--merge-target",
                    MERGE_TARGET,
                    "--topic",
                    "orders",
                    "--partition",
                    "0",
                ];
                Prepared { meanwhile: Some(Meanwhile::Commits("orders")), ..made(site, args) }
            }
            Self::Reindex => {
                rounds(&mut site, bucket);
                made(site, &["reindex", "--level", "full:text", "--confirm"])
            }
            Self::Collect => {
                let compact = Self::Compact.prepare(bucket);
                let mut site = compact.begin(bucket);
                let _ = compact.work(bucket, &mut site, None, "before a collection");
                site.check_done(bucket, "before a collection");
                block_on(litter(&*bucket.objects()));
                made(site, gc)
            }
            Self::CollectPages => {
                let (objects, through) = block_on(before_a_page(&mut site));
                bucket.restore(&objects);
                site.segment("paged", 0, 7, &[batch(through)]);
                let _ = ends(bucket, site.command(bucket, archive), None, "a page");
                site.cut("paged", 0, 25);
                let cut = ["delete", "paged", "--before-offset", "25", "--confirm"];
                let _ = ends(bucket, site.command(bucket, &cut), None, "another page");
                transactions(&mut site, bucket);
                site.segment("open", 0, 1, &[transactional(TRANSACTIONS)]);
                let _ = ends(bucket, site.command(bucket, archive), None, "two lists");
                made(site, gc)
            }
            Self::Block => {
                site.segment("slept", 0, 0, &[batch(0)]);
                let _ = ends(bucket, site.command(bucket, archive), None, "before a block");
                let objects: Arc<dyn ObjectStore> = Arc::new(bucket.copy());
                block_on(commits(&objects, "slept", 2 * BLOCK + 3));
                bucket.restore(&block_on(copy(&*objects)));
                made(site, gc)
            }
            Self::Cut => {
                rounds(&mut site, bucket);
                site.cut("orders", 0, 25);
                made(site, &["delete", "orders", "0", "--before-offset", "25", "--confirm"])
            }
            Self::Delete => {
                rounds(&mut site, bucket);
                site.cut("orders", 0, i64::MAX);
                site.cut("orders", 1, i64::MAX);
                made(site, &["delete", "orders", "--confirm"])
            }
            Self::Rebuild => {
                rounds(&mut site, bucket);
                block_on(lose_manifests(&*bucket.objects()));
                made(site, &["rebuild-manifest", "--confirm"])
            }
            Self::Live => {
                for (topic, partition) in TOPICS {
                    site.segment(topic, partition, 0, &[batch(0), batch(20), batch(10)]);
                    site.segment(topic, partition, 1, &[batch(30)]);
                }
                site.cut("orders", 0, live::LOG_START);
                site.cut("orders", 1, i64::MAX);
                made(site, &[])
            }
        }
    }
}

/// The partitions of most works.
pub(super) const TOPICS: [(&str, i32); 3] = [("orders", 0), ("orders", 1), ("日志", 0)];

/// What another does while a process is at its first commit.
#[derive(Clone)]
enum Meanwhile {
    /// The bucket becomes this one.
    Becomes(Arc<InMemory>),
    /// Somebody commits nothing to partition 0 of a topic.
    Commits(&'static str),
}

/// A piece of work, ready to begin as often as wanted.
pub(super) struct Prepared {
    of: Work,
    objects: InMemory,
    site: Site,
    args: &'static [&'static str],
    meanwhile: Option<Meanwhile>,
}

impl Prepared {
    pub(super) fn begin(&self, bucket: &Bucket) -> Site {
        bucket.restore(&self.objects);
        if let Some(meanwhile) = self.meanwhile.clone() {
            bucket.interpose("Create Manifest", |objects| meanwhile.happen(objects).boxed());
        }
        self.site.copy()
    }

    /// Does it, or goes on with what a killed one left of it.
    pub(super) fn work(
        &self,
        bucket: &Bucket,
        site: &mut Site,
        kill: Option<Kill>,
        what: &str,
    ) -> Lived {
        match self.of {
            Work::Live => live::work(bucket, site, kill, what),
            _ => ends(bucket, site.command(bucket, self.args), kill, what),
        }
    }
}

impl Meanwhile {
    async fn happen(self, objects: Arc<dyn ObjectStore>) {
        match self {
            Self::Commits(topic) => {
                let store = Store::new(objects, "");
                let other = catalog(&store, "other");
                let base = other.load(&tp(topic, 0), None).await.unwrap();
                other.commit(&tp(topic, 0), 0, base, Edit::default()).await.unwrap();
            }
            Self::Becomes(wanted) => {
                let names = |objects: Vec<object_store::ObjectMeta>| {
                    objects.into_iter().map(|one| one.location).collect::<BTreeSet<_>>()
                };
                let now = names(objects.list(None).try_collect().await.unwrap());
                let then = names(wanted.list(None).try_collect().await.unwrap());
                for path in then.difference(&now) {
                    let bytes = wanted.get(path).await.unwrap().bytes().await.unwrap();
                    objects.put(path, bytes.into()).await.unwrap();
                }
                let manifests =
                    now.difference(&then).filter(|path| path.as_ref().contains("/manifest/"));
                for path in manifests {
                    objects.delete(path).await.unwrap();
                }
            }
        }
    }
}

fn batch(base: i64) -> Bytes {
    sample_batch(base, 10, 20, Codec::None).unwrap()
}

fn noise(base: i64) -> Bytes {
    noise_batch(base, LARGE_BYTES / 9).unwrap()
}

fn transactional(base: i64) -> Bytes {
    transactional_batch(base).unwrap()
}

/// Six archives of each of three partitions, and no WAL any more.
fn rounds(site: &mut Site, bucket: &Bucket) {
    for round in 0..6 {
        for (topic, partition) in TOPICS {
            site.segment(topic, partition, round, &[batch(10 * round as i64)]);
        }
        let run = site.command(bucket, &["run", "--once", "--offline"]);
        let _ = ends(bucket, run, None, "six rounds");
    }
    site.drop_segments();
}

/// Open transactions, archived.
fn transactions(site: &mut Site, bucket: &Bucket) {
    let batches: Vec<_> = (0..TRANSACTIONS).map(transactional).collect();
    site.segment("open", 0, 0, &batches);
    let run = site.command(bucket, &["run", "--once", "--offline"]);
    let _ = ends(bucket, run, None, "open transactions");
}

/// Archives of one batch each.
async fn archives(
    objects: &Arc<dyn ObjectStore>,
    topic: &'static str,
    count: i64,
    site: &mut Site,
) {
    let size = Size { partitions: Vec::new(), records: 0, one_without_index_in: 1 };
    let world = World::over(Arc::clone(objects), 0, &size).await;
    let mut base = None;
    for number in 0..count {
        let wire = batch(10 * number);
        let batches = [CanonicalRecord::from_wire(wire.clone()).unwrap()];
        base = Some(world.commit(&tp(topic, 0), base, &batches, IndexLevel::None).await);
        site.archived_only(topic, 0, &[wire]);
    }
}

/// As many archives as a root holds, and the offset behind them.
async fn before_a_page(site: &mut Site) -> (InMemory, i64) {
    let objects: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let mut all = Site::new();
    archives(&objects, "paged", ENTRIES, &mut all).await;
    let listed = objects.list(None).map_ok(|one| one.location.to_string());
    let pages: Vec<String> = listed
        .try_filter(|name| futures::future::ready(name.contains("/page/")))
        .try_collect()
        .await
        .unwrap();
    let numbers = pages.iter().map(|name| match ObjectKey::decode(name).unwrap() {
        ObjectKey::Page { number, .. } => number as i64,
        other => panic!("{other:?}"),
    });
    let before = numbers.min().expect("a page is written") - 1;
    let objects: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    archives(&objects, "paged", before, site).await;
    (copy(&*objects).await, 10 * before)
}

/// Empty commits by somebody up to `number`.
async fn commits(objects: &Arc<dyn ObjectStore>, topic: &str, number: u64) {
    let other = catalog(&Store::new(Arc::clone(objects), ""), "other");
    let mut base = other.load(&tp(topic, 0), None).await.unwrap();
    while base.as_deref().map_or(0, Snapshot::number) < number {
        let next = other.commit(&tp(topic, 0), 0, base, Edit::default()).await.unwrap();
        base = Some(Arc::clone(next.snapshot()));
    }
}

/// Commits by somebody until the first block is full, closed and deleted.
async fn collect_a_block(objects: &Arc<InMemory>, topic: &str) {
    let objects = Arc::clone(objects) as Arc<dyn ObjectStore>;
    commits(&objects, topic, 2 * BLOCK - 1).await;
    let store = Store::new(objects, "");
    let cluster = catalog(&store, "other").cluster().clone();
    let of = PartitionKey { cluster, tp: tp(topic, 0), incarnation: 0 };
    let closed = ObjectKey::Closed { of: of.clone(), block: 0 };
    store.create(&closed, Bytes::new()).await.unwrap();
    for number in 1..BLOCK {
        store.delete(&ObjectKey::Manifest { of: of.clone(), number }).await.unwrap();
    }
}

/// What killed writers left: a copy of every archive under a name that nobody
/// references.
async fn litter(objects: &dyn ObjectStore) {
    let all: Vec<_> = objects.list(None).try_collect().await.unwrap();
    let archives = all.iter().filter(|one| one.location.as_ref().ends_with(".tar.gz"));
    for archive in archives {
        let ObjectKey::Archive { of, number, range, .. } =
            ObjectKey::decode(archive.location.as_ref()).unwrap()
        else {
            panic!("{} is no archive", archive.location)
        };
        let orphan = ObjectKey::Archive { of, number, range, digest: [7; 16] }.to_string();
        let orphan = object_store::path::Path::parse(orphan).unwrap();
        objects.copy(&archive.location, &orphan).await.unwrap();
    }
}

/// All manifests of one partition are lost, and the newest of another.
async fn lose_manifests(objects: &dyn ObjectStore) {
    let mut lost: Vec<(i32, u64, object_store::path::Path)> = Vec::new();
    let mut all = objects.list(None);
    while let Some(object) = all.next().await {
        let path = object.unwrap().location;
        if let Ok(ObjectKey::Manifest { of, number }) = ObjectKey::decode(path.as_ref())
            && of.tp.topic().as_str() == "orders"
        {
            lost.push((of.tp.partition(), number, path));
        }
    }
    let newest = lost.iter().filter(|(partition, ..)| *partition == 1).map(|(_, n, _)| *n).max();
    for (partition, number, path) in lost {
        if partition == 0 || Some(number) == newest {
            objects.delete(&path).await.unwrap();
        }
    }
}

/// A store with the same objects.
async fn copy(objects: &dyn ObjectStore) -> InMemory {
    let copy = InMemory::new();
    let mut all = objects.list(None);
    while let Some(object) = all.next().await {
        let path = object.unwrap().location;
        let bytes = objects.get(&path).await.unwrap().bytes().await.unwrap();
        copy.put(&path, bytes.into()).await.unwrap();
    }
    copy
}
