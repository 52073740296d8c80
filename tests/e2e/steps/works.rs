//! The pieces of work that are killed, and what must hold whatever was killed where.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use object_store::ObjectStore;
use object_store::memory::InMemory;
use tierd::archive::{ArchiveOptions, IndexLevel};
use tierd::catalog::{BLOCK, Catalog, CatalogError, ClusterName, Edit, Snapshot, WriterId};
use tierd::clock::{Clock, ManualClock};
use tierd::config::Config;
use tierd::indexer::{Indexer, LiveIndexer};
use tierd::metrics::Metrics;
use tierd::read::{ArchiveReader, ReadOptions};
use tierd::record::{Codec, TopicName, TopicPartition};
use tierd::store::{ObjectKey, PartitionKey, Store};
use tierd::wal::{WalDir, WalFormat};
use tierd_tests::audit::audit;
use tierd_tests::chronik::{WalWriter, noise_batch, sample_batch, transactional_batch};
use tierd_tests::counting::{CountingStore, Op};

/// More archives than a root holds without a page.
const ENTRIES: i64 = 140;
/// Archives whose commits are killed: the root gets its first page in one of them.
const LAST_ENTRIES: usize = 3;
/// Open transactions that a root holds, and a few more.
const TRANSACTIONS: i64 = 140;
/// More than an upload in one piece.
const LARGE_BYTES: usize = 9 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// The first archive of a new topic.
    First,
    /// Growth by several archives.
    Growth,
    /// An archive that is uploaded in parts.
    Large,
    /// A commit whose root no longer holds all entries.
    Pages,
    /// A commit with more open transactions than a root holds.
    Transactions,
    /// A commit whose number was collected while the writer slept.
    Void,
}

impl Work {
    pub(super) const ALL: [Self; 6] =
        [Self::First, Self::Growth, Self::Large, Self::Pages, Self::Transactions, Self::Void];

    /// Does it, or what a killed one left of it.
    pub(super) async fn run(self, site: &Site, store: Store) {
        if self != Self::Void {
            return site.archive(store).await;
        }
        let catalog = catalog(&store, "sleeper");
        let lost = catalog.commit(&tp(), 0, site.base.clone(), Edit::default()).await;
        assert!(matches!(lost, Err(CatalogError::Lost { .. })), "{lost:?}");
    }

    fn before(self) -> Vec<Bytes> {
        match self {
            Self::Growth => vec![batch(0), batch(10)],
            _ => Vec::new(),
        }
    }

    fn written(self) -> Vec<Bytes> {
        match self {
            Self::First => vec![batch(0), batch(10)],
            Self::Growth => (2..8).map(|n| batch(10 * n)).collect(),
            Self::Large => (0..9).map(large).collect(),
            Self::Pages => (0..ENTRIES).map(|n| batch(10 * n)).collect(),
            Self::Transactions => (0..TRANSACTIONS).map(transactional).collect(),
            Self::Void => Vec::new(),
        }
    }

    fn archive_bytes(self) -> u64 {
        match self {
            Self::Growth | Self::Pages => 1,
            _ => ArchiveOptions::default().target_log_bytes,
        }
    }
}

fn tp() -> TopicPartition {
    TopicPartition::new(TopicName::new("t").unwrap(), 0).unwrap()
}

fn batch(base: i64) -> Bytes {
    sample_batch(base, 10, 20, Codec::None).unwrap()
}

fn large(base: i64) -> Bytes {
    noise_batch(base, LARGE_BYTES / 9).unwrap()
}

fn transactional(base: i64) -> Bytes {
    transactional_batch(base).unwrap()
}

fn catalog(store: &Store, writer: &str) -> Catalog {
    static NONCE: AtomicU64 = AtomicU64::new(1);
    let nonce = || {
        let mut nonce = [0; 16];
        nonce[..8].copy_from_slice(&NONCE.fetch_add(1, Ordering::Relaxed).to_le_bytes());
        nonce
    };
    let (cluster, writer) = (ClusterName::new("c").unwrap(), WriterId::new(writer).unwrap());
    let clock: Arc<dyn Clock> = ManualClock::at(1_700_000_000_000);
    Catalog::new(store.clone(), cluster, writer, clock, Box::new(nonce))
}

/// Where a piece of work is done: a WAL, and what was stored before it begins.
pub(super) struct Site {
    folder: tempfile::TempDir,
    objects: InMemory,
    /// The manifest from which a sleeper goes on.
    base: Option<Arc<Snapshot>>,
    archive_bytes: u64,
    all: BTreeSet<Bytes>,
}

impl Site {
    pub(super) async fn prepare(of: Work) -> Self {
        let (mut before, mut written) = (of.before(), of.written());
        let mut site = Self {
            folder: tempfile::tempdir().unwrap(),
            objects: InMemory::new(),
            base: None,
            archive_bytes: of.archive_bytes(),
            all: BTreeSet::new(),
        };
        if of == Work::Pages {
            let page = site.commits_before_a_page(&written).await;
            written.truncate(page - 1 + LAST_ENTRIES);
            before = written.drain(..page - 1).collect();
        }
        site.all = before.iter().chain(&written).cloned().collect();
        site.segment(0, &before);
        let objects: Arc<dyn ObjectStore> = Arc::new(site.objects.fork());
        let store = Store::new(Arc::clone(&objects), "");
        if of == Work::Void {
            site.base = Some(sleep_through_a_block(&store).await);
        } else if !before.is_empty() {
            site.archive(store).await;
        }
        site.objects = copy(&objects).await;
        site.segment(1, &written);
        site
    }

    /// The store as the work finds it.
    pub(super) fn fork(&self) -> Arc<dyn ObjectStore> {
        Arc::new(self.objects.fork())
    }

    fn wal(&self) -> std::path::PathBuf {
        self.folder.path().join("wal")
    }

    fn segment(&self, id: u64, batches: &[Bytes]) {
        std::fs::create_dir_all(self.wal()).unwrap();
        if batches.is_empty() {
            return;
        }
        let mut segment = WalWriter::create(&self.wal(), "t", 0, id).unwrap();
        for batch in batches {
            segment.append(batch).unwrap();
        }
        segment.finish().unwrap();
    }

    /// How many commits of an archive each it takes until one writes a page.
    async fn commits_before_a_page(&self, batches: &[Bytes]) -> usize {
        self.segment(0, batches);
        let counting = CountingStore::new(Arc::new(InMemory::new()));
        let objects: Arc<dyn ObjectStore> = Arc::<CountingStore>::clone(&counting);
        self.archive(Store::new(objects, "")).await;
        let requests = counting.requests();
        let page = requests.iter().position(|request| request.path.contains("/page/"));
        let before = &requests[..page.expect("a page is written")];
        let commits = before.iter().filter(|request| request.op == Op::Create);
        commits.filter(|request| request.path.contains("/manifest/")).count()
    }

    /// A process that archives everything and ends.
    async fn archive(&self, store: Store) {
        let catalog = Arc::new(catalog(&store, "me"));
        let options = ArchiveOptions {
            target_log_bytes: self.archive_bytes,
            index_level: IndexLevel::None,
            ..ArchiveOptions::default()
        };
        let reader = ArchiveReader::new(store.clone(), ReadOptions::default());
        let scratch = self.folder.path().join("scratch");
        let format = WalFormat::Chronik;
        let metrics = Metrics::new(ManualClock::at(0)).unwrap();
        let indexer = Indexer::new(format, catalog, store, reader, scratch, options, metrics);
        let wal = WalDir::open(&self.wal(), format).unwrap();
        let (offline, clock) = (Config::default().live(true).unwrap(), ManualClock::at(0));
        let live = LiveIndexer::new(indexer, wal, offline, clock, Arc::new(|| 1.0));
        let report = Arc::new(live).run_once(|_| {}).await.unwrap();
        assert!(!report.failed(), "{:?}", report.partitions[0].error);
    }

    /// What is stored is whole at any moment.
    pub(super) async fn check_whole(&self, objects: &Arc<dyn ObjectStore>, when: &str) {
        let store = Store::new(Arc::clone(objects), "");
        let found = audit(&store, &catalog(&store, "auditor"), &tp()).await;
        let found = found.unwrap_or_else(|error| panic!("{when}: {error:#}"));
        let Some(found) = found else { return };
        let archived: BTreeSet<&Bytes> = found.served.iter().collect();
        assert_eq!(archived.len(), found.served.len(), "{when}: a batch twice");
        assert!(archived.iter().all(|wire| self.all.contains(*wire)), "{when}: nobody wrote this");
    }

    /// Everything is archived, once.
    pub(super) async fn check_done(&self, of: Work, objects: &Arc<dyn ObjectStore>, when: &str) {
        self.check_whole(objects, when).await;
        let store = Store::new(Arc::clone(objects), "");
        let found = audit(&store, &catalog(&store, "auditor"), &tp()).await.unwrap().unwrap();
        let archived: BTreeSet<Bytes> = found.served.iter().cloned().collect();
        assert_eq!(archived.len(), self.all.len(), "{when}: in neither tier");
        assert!(found.beneath.is_empty() && found.gaps.is_empty(), "{when}");
        if of == Work::Void {
            // Whether or not the void manifest is still there, nobody takes it for one.
            assert_eq!(found.snapshot.number(), 2 * BLOCK - 1, "{when}");
        }
    }
}

fn partition() -> PartitionKey {
    PartitionKey { cluster: ClusterName::new("c").unwrap(), tp: tp(), incarnation: 0 }
}

/// Commits until the first block is collected; gives the first manifest.
async fn sleep_through_a_block(store: &Store) -> Arc<Snapshot> {
    let (sleeper, others) = (catalog(store, "sleeper"), catalog(store, "others"));
    let first = sleeper.commit(&tp(), 0, None, Edit::default()).await.unwrap();
    let mut newest = Arc::clone(first.snapshot());
    while newest.number() < 2 * BLOCK - 1 {
        let next = others.commit(&tp(), 0, Some(newest), Edit::default()).await.unwrap();
        newest = Arc::clone(next.snapshot());
    }
    let closed = ObjectKey::Closed { of: partition(), block: 0 };
    store.create(&closed, Bytes::new()).await.unwrap();
    for number in 1..BLOCK {
        store.delete(&ObjectKey::Manifest { of: partition(), number }).await.unwrap();
    }
    Arc::clone(first.snapshot())
}

/// A store with the same objects.
async fn copy(objects: &Arc<dyn ObjectStore>) -> InMemory {
    use futures::TryStreamExt;
    use object_store::ObjectStoreExt;
    let copy = InMemory::new();
    let all: Vec<_> = objects.list(None).try_collect().await.unwrap();
    for object in all {
        let bytes = objects.get(&object.location).await.unwrap().bytes().await.unwrap();
        copy.put(&object.location, bytes.into()).await.unwrap();
    }
    copy
}
