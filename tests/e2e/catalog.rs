//! The commit protocol under races and faults: many writers, lost answers, lying
//! answers, a writer that sleeps. One winner, nothing twice, nothing dangling.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use proptest::prelude::*;
use tierd::archive::{
    ArchiveIdentity, ArchiveSummary, Encoding, FOOTER_DISTANCE, IndexLevel, TocPlace,
};
use tierd::catalog::{
    ArchiveEntry, BLOCK, Catalog, CatalogError, ClusterName, Edit, Snapshot, WriterId,
};
use tierd::clock::ManualClock;
use tierd::error::{Classify, ErrorKind};
use tierd::record::{OffsetRange, TopicName, TopicPartition};
use tierd::store::{ObjectKey, PartitionKey, Store, StoreError};
use tierd_tests::counting::{self, CountingStore};
use tierd_tests::faults::{Fault, FaultStore};
use tokio::sync::Semaphore;

const ARCHIVE_BYTES: u64 = FOOTER_DISTANCE + 1;

fn partition() -> PartitionKey {
    let tp = TopicPartition::new(TopicName::new("clicks.日本_1").unwrap(), 0).unwrap();
    PartitionKey { cluster: ClusterName::new("default").unwrap(), tp, incarnation: 0 }
}

/// An archive in name and length only, told apart by who made it.
fn entry(built_for: u64, base: i64, last: i64, maker: &str) -> ArchiveEntry {
    let seed = format!("{maker} {base} {last}");
    let summary = ArchiveSummary {
        range: OffsetRange::new(base, last).unwrap(),
        tiles: true,
        batches: 1,
        records: (last - base + 1) as u64,
        log_bytes: 100,
        overlaps: 0,
        overlap_bytes: 0,
        bad_crcs: 0,
        unindexed: 0,
        min_timestamp: base,
        max_timestamp: last,
        leader_epochs: (0, 0),
        index_level: IndexLevel::None,
        index_bytes: 0,
        transactions: 0,
        length: ARCHIVE_BYTES,
        digest: *blake3::hash(seed.as_bytes()).as_bytes(),
        toc: TocPlace { offset: 0, length: 1, raw: 1, encoding: Encoding::Stored, digest: [0; 16] },
    };
    let of = partition();
    let identity = ArchiveIdentity { tp: of.tp, incarnation: 0 };
    ArchiveEntry::new(&of.cluster, &identity, built_for, summary)
}

fn store_over(objects: Arc<dyn ObjectStore>) -> Store {
    Store::new(objects, "").with_backoff(Duration::ZERO)
}

fn catalog(store: &Store, writer: &str) -> Catalog {
    let (next, name) = (AtomicU64::new(0), writer.to_owned());
    let nonce = move || {
        let seed = format!("{name} {}", next.fetch_add(1, Ordering::Relaxed));
        let mut nonce = [0; 16];
        nonce.copy_from_slice(&blake3::hash(seed.as_bytes()).as_bytes()[..16]);
        nonce
    };
    let (cluster, writer) = (partition().cluster, WriterId::new(writer).unwrap());
    let clock = ManualClock::at(1_700_000_000_000);
    Catalog::new(store.clone(), cluster, writer, clock, Box::new(nonce))
}

async fn load(catalog: &Catalog) -> Result<Option<Arc<Snapshot>>, CatalogError> {
    catalog.load(&partition().tp, Some(0)).await
}

/// Uploads an archive of ten offsets behind `base` and commits it.
async fn append(
    store: &Store,
    catalog: &Catalog,
    base: Option<Arc<Snapshot>>,
) -> Result<Arc<Snapshot>, CatalogError> {
    let number = base.as_deref().map_or(0, Snapshot::number) + 1;
    let from = base.as_deref().map_or(0, Snapshot::archived_through);
    let one = entry(number, from, from + 9, catalog.writer().as_str());
    store.put(&one.key(), Bytes::from(vec![0; ARCHIVE_BYTES as usize])).await?;
    let edit = Edit { add: vec![one], ..Edit::default() };
    let committed = catalog.commit(&partition().tp, 0, base, edit).await?;
    Ok(Arc::clone(committed.snapshot()))
}

/// The entries of the newest manifest, after checking everything behind it.
async fn verified(store: &Store) -> Vec<ArchiveEntry> {
    let reader = catalog(store, "reader");
    let newest = load(&reader).await.unwrap().unwrap();
    reader.verify_history(&newest).await.unwrap();
    let entries = newest.entries().await.unwrap();
    let mut next = newest.log_start();
    for entry in &entries {
        assert_eq!(entry.summary.range.base(), next);
        next = entry.summary.range.end();
        assert_eq!(store.head(&entry.key()).await.unwrap(), Some(ARCHIVE_BYTES));
    }
    assert_eq!(next, newest.archived_through());
    entries
}

async fn race_of_sixteen(objects: Arc<dyn ObjectStore>) {
    const WRITERS: usize = 16;
    let store = store_over(objects);
    let racing = (0..WRITERS).map(|who| {
        let store = store.clone();
        tokio::spawn(async move {
            let catalog = catalog(&store, &format!("writer-{who}"));
            let (mut base, mut lost) = (None, 0);
            loop {
                let before = base.as_deref().map_or(0, Snapshot::number);
                match append(&store, &catalog, base.clone()).await {
                    Ok(snapshot) => return (snapshot.number(), lost),
                    Err(CatalogError::Lost { newest }) => {
                        assert!(newest.number() > before);
                        base = Some(newest);
                        lost += 1;
                    }
                    Err(error) => panic!("{error}"),
                }
            }
        })
    });
    let done = futures::future::join_all(racing).await;
    let done: Vec<(u64, u32)> = done.into_iter().map(Result::unwrap).collect();
    let numbers: BTreeSet<u64> = done.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, (1..=WRITERS as u64).collect());
    assert!(done.iter().any(|(_, lost)| *lost > 0), "nobody met anybody");
    assert_eq!(verified(&store).await.len(), WRITERS);
}

/// Table: F12 I3 I8 | commits that race, in memory
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn sixteen_writers_in_memory_win_one_by_one() {
    race_of_sixteen(Arc::new(InMemory::new())).await;
    // With pauses of every length between their requests.
    for seed in 0..8 {
        race_of_sixteen(FaultStore::seeded(Arc::new(InMemory::new()), seed, 0.0)).await;
    }
}

/// Table: F12 I3 I8 | commits that race, in a directory
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn sixteen_writers_on_files_win_one_by_one() {
    for _ in 0..3 {
        let dir = tempfile::tempdir().unwrap();
        let files = LocalFileSystem::new_with_prefix(dir.path()).unwrap().with_fsync(true);
        race_of_sixteen(Arc::new(files)).await;
    }
}

/// A store that fails as told, over memory.
fn faulty() -> (Arc<FaultStore>, Store) {
    let faults = FaultStore::new(Arc::new(InMemory::new()));
    let store = store_over(Arc::clone(&faults) as Arc<dyn ObjectStore>);
    (faults, store)
}

/// Table: F2 F3 I7 I8 | the answer to the commit itself
#[tokio::test]
async fn whoever_finds_his_own_bytes_has_won() {
    for fault in [Fault::LostResponse, Fault::ConflictAfterLanding] {
        let (faults, store) = faulty();
        let catalog = catalog(&store, "one");
        let first = append(&store, &catalog, None).await.unwrap();
        faults.inject(counting::Op::Create, "/manifest/", fault.clone(), 1);
        let second = append(&store, &catalog, Some(first)).await.unwrap();
        assert_eq!(faults.injected().len(), 1);
        assert_eq!(second.number(), 2, "{fault:?}");
        assert_eq!(verified(&store).await.len(), 2);
    }
}

/// Table: F4 I7 I8 | the answer to the commit itself
#[tokio::test]
async fn an_answer_that_says_nothing_is_asked_again() {
    for fault in [Fault::Conflict, Fault::Unavailable] {
        let (faults, store) = faulty();
        let catalog = catalog(&store, "one");
        let first = append(&store, &catalog, None).await.unwrap();
        faults.inject(counting::Op::Create, "/manifest/", fault.clone(), 2);
        let second = append(&store, &catalog, Some(first)).await.unwrap();
        assert_eq!(faults.injected().len(), 2);
        assert_eq!(second.number(), 2, "{fault:?}");
        assert_eq!(verified(&store).await.len(), 2);
    }
}

/// Table: F4 F12 F13 I3 I8 | a commit that waits while another writer goes on
#[tokio::test]
async fn whoever_finds_other_bytes_has_lost_and_learns_the_newest() {
    for fault in [Fault::Unavailable, Fault::Conflict] {
        let (faults, store) = faulty();
        let (one, two) = (catalog(&store, "one"), catalog(&store, "two"));
        let base = append(&store, &one, None).await.unwrap();
        // One's create waits; meanwhile two commits twice; then one's create
        // fails without effect and is sent again.
        let gate = Arc::new(Semaphore::new(0));
        faults.inject(counting::Op::Create, "/manifest/", Fault::Hold(Arc::clone(&gate)), 1);
        let slow = {
            let (store, base) = (store.clone(), Arc::clone(&base));
            tokio::spawn(async move { append(&store, &one, Some(base)).await })
        };
        while faults.injected().is_empty() {
            tokio::task::yield_now().await;
        }
        let second = append(&store, &two, Some(base)).await.unwrap();
        append(&store, &two, Some(second)).await.unwrap();
        faults.inject(counting::Op::Create, "/manifest/", fault.clone(), 1);
        gate.add_permits(1);
        let error = slow.await.unwrap().unwrap_err();
        let CatalogError::Lost { newest } = error else { panic!("{fault:?}: {error}") };
        assert_eq!((newest.number(), newest.writer().as_str()), (3, "two"));
        assert_eq!(verified(&store).await.len(), 3);
    }
}

/// Table: F6 I5 I13 | each request of a commit, until it ends
#[tokio::test]
async fn an_outage_commits_nothing_or_all_of_it_and_passes() {
    let (faults, store) = faulty();
    let catalog = catalog(&store, "one");
    let first = append(&store, &catalog, None).await.unwrap();
    for (op, part) in [
        (counting::Op::Put, "/archive/"),
        (counting::Op::Head, "/archive/"),
        (counting::Op::Create, "/manifest/"),
    ] {
        faults.inject(op, part, Fault::Unavailable, u32::MAX);
        let error = append(&store, &catalog, Some(Arc::clone(&first))).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Retry, "{error}");
        faults.heal();
        assert_eq!(load(&catalog).await.unwrap().unwrap().number(), 1);
    }
    // Created, but whether its block is closed cannot be learned: it may have
    // happened, and loading tells that it did.
    faults.inject(counting::Op::Head, "/closed/", Fault::Unavailable, u32::MAX);
    let error = append(&store, &catalog, Some(Arc::clone(&first))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Retry, "{error}");
    faults.heal();
    let found = load(&catalog).await.unwrap().unwrap();
    assert_eq!(found.number(), 2);
    // To commit the same again is to lose against oneself.
    let error = append(&store, &catalog, Some(first)).await.unwrap_err();
    assert!(matches!(error, CatalogError::Lost { newest } if newest.number() == 2));
    append(&store, &catalog, Some(found)).await.unwrap();
    assert_eq!(verified(&store).await.len(), 3);
}

/// Table: F13 I8 I9 | a commit that waits while its block is closed and collected
#[tokio::test]
async fn a_writer_that_slept_through_a_collection_commits_nothing() {
    let (faults, store) = faulty();
    let (sleeper, others) = (catalog(&store, "sleeper"), catalog(&store, "others"));
    let base = append(&store, &sleeper, None).await.unwrap();
    let gate = Arc::new(Semaphore::new(0));
    faults.inject(counting::Op::Create, "/manifest/", Fault::Hold(Arc::clone(&gate)), 1);
    let asleep = {
        let (store, base) = (store.clone(), Arc::clone(&base));
        tokio::spawn(async move { append(&store, &sleeper, Some(base)).await })
    };
    while faults.injected().is_empty() {
        tokio::task::yield_now().await;
    }
    let mut newest = append(&store, &others, Some(base)).await.unwrap();
    while newest.number() < 2 * BLOCK - 1 {
        let next = others.commit(&partition().tp, 0, Some(newest), Edit::default()).await.unwrap();
        newest = Arc::clone(next.snapshot());
    }
    // The block after the sleeper's is full: its own is closed and collected.
    let of = partition();
    let closed = ObjectKey::Closed { of: of.clone(), block: 0 };
    store.create(&closed, Bytes::new()).await.unwrap();
    for number in 1..BLOCK {
        let of = of.clone();
        store.delete(&ObjectKey::Manifest { of, number }).await.unwrap();
    }
    let orphan = entry(2, 10, 19, "sleeper");
    store.delete(&orphan.key()).await.unwrap();

    gate.add_permits(1);
    let error = asleep.await.unwrap().unwrap_err();
    let CatalogError::Lost { newest: told } = error else { panic!("{error}") };
    assert_eq!(told.number(), newest.number());
    assert_eq!(store.head(&ObjectKey::Manifest { of, number: 2 }).await.unwrap(), None);
    assert!(verified(&store).await.iter().all(|entry| entry.key() != orphan.key()));
}

/// Table: F8 I6 | manifests and ranges of archives
#[tokio::test]
async fn a_short_body_is_asked_for_again_and_never_taken_for_whole() {
    let (faults, store) = faulty();
    let catalog = catalog(&store, "one");
    append(&store, &catalog, None).await.unwrap();
    faults.inject(counting::Op::Get, "/manifest/", Fault::ShortBody, 2);
    assert_eq!(load(&catalog).await.unwrap().unwrap().number(), 1);
    assert_eq!(faults.injected().len(), 2);
    faults.inject(counting::Op::Get, "/manifest/", Fault::ShortBody, u32::MAX);
    let error = load(&catalog).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Retry, "{error}");
    assert!(error.to_string().contains("ended after"), "{error}");

    let key = entry(1, 0, 9, "one").key();
    faults.inject(counting::Op::GetRange, "/archive/", Fault::ShortBody, 1);
    assert_eq!(store.get_range(&key, 100..200).await.unwrap().len(), 100);
    faults.inject(counting::Op::GetRange, "/archive/", Fault::ShortBody, u32::MAX);
    assert_eq!(store.get_range(&key, 100..200).await.unwrap_err().kind(), ErrorKind::Retry);
}

/// Table: F11 I6 | manifests that are not found
#[tokio::test]
async fn a_manifest_that_vanishes_is_never_an_empty_partition() {
    let (faults, store) = faulty();
    let catalog = catalog(&store, "one");
    let mut base = append(&store, &catalog, None).await.unwrap();
    for _ in 0..5 {
        base = append(&store, &catalog, Some(base)).await.unwrap();
    }
    faults.inject(counting::Op::Get, "/manifest/", Fault::Vanished, u32::MAX);
    let error = load(&catalog).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    faults.heal();
    faults.inject(counting::Op::Get, "/manifest/", Fault::Vanished, 1);
    assert_eq!(load(&catalog).await.unwrap().unwrap().number(), 6);
}

/// Table: F5 I5 I7 | a part, and the end of an upload
#[tokio::test]
async fn a_failed_upload_leaves_no_object_and_its_repetition_does() {
    let (faults, store) = faulty();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("archive");
    std::fs::write(&file, vec![7; 20 << 20]).unwrap();
    let key = entry(1, 0, 9, "one").key();
    for op in [counting::Op::Part, counting::Op::Complete] {
        faults.inject(op, "/archive/", Fault::Unavailable, 1);
        let error = store.put_file(&key, &file).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Retry, "{error}");
        assert_eq!(store.head(&key).await.unwrap(), None);
    }
    assert_eq!(store.put_file(&key, &file).await.unwrap(), 20 << 20);
    assert_eq!(store.head(&key).await.unwrap(), Some(20 << 20));
}

/// Table: F27 I8 | the probe before the first write
#[tokio::test]
async fn a_store_that_does_not_honour_create_only_is_refused() {
    let (faults, store) = faulty();
    let catalog = catalog(&store, "one");
    catalog.probe().await.unwrap();
    // Answers that say nothing, or what a repetition inside a client gets, in passing.
    for fault in [Fault::Conflict, Fault::ConflictAfterLanding, Fault::PreconditionAfterLanding] {
        faults.inject(counting::Op::Create, "/probe/", fault, 1);
        catalog.probe().await.unwrap();
        faults.heal();
    }
    // One says "exists" to everything; the other replaces what is there.
    for fault in [Fault::Conflict, Fault::Overwrite] {
        faults.inject(counting::Op::Create, "/probe/", fault, 2);
        let error = catalog.probe().await.unwrap_err();
        assert!(matches!(&error, CatalogError::Store(StoreError::NotCreateOnly { .. })), "{error}");
        assert_eq!(error.kind(), ErrorKind::Invalid);
        faults.heal();
    }
}

#[tokio::test]
async fn a_steady_commit_is_four_requests_and_no_listing() {
    let counted = CountingStore::new(Arc::new(InMemory::new()));
    let store = store_over(Arc::clone(&counted) as Arc<dyn ObjectStore>);
    let catalog = catalog(&store, "one");
    let mut base = append(&store, &catalog, None).await.unwrap();
    for _ in 0..50 {
        counted.reset();
        base = append(&store, &catalog, Some(base)).await.unwrap();
        let sent: Vec<_> = counted.requests().into_iter().map(|request| request.op).collect();
        assert_eq!(
            sent,
            [
                counting::Op::Put,    // the archive
                counting::Op::Head,   // it is there
                counting::Op::Create, // the manifest
                counting::Op::Head,   // its block is open
            ]
        );
        assert!(counted.count(counting::Op::Create, "/manifest/").1 <= 32 << 10);
    }
}

/// Three writers on one partition while requests fail at random: each archives
/// what is next until it has committed its share.
async fn survive(seed: u64) {
    const WRITERS: usize = 3;
    const SHARE: usize = 12;
    let below: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let faults = FaultStore::seeded(Arc::clone(&below), seed, 0.15);
    let store = store_over(Arc::clone(&faults) as Arc<dyn ObjectStore>);
    let working = (0..WRITERS).map(|who| {
        let store = store.clone();
        async move {
            let catalog = catalog(&store, &format!("writer-{who}"));
            let (mut base, mut proven) = (None, Vec::new());
            for _ in 0..400 {
                if proven.len() == SHARE {
                    break;
                }
                match append(&store, &catalog, base.clone()).await {
                    Ok(snapshot) => {
                        let range = OffsetRange::new(
                            snapshot.archived_through() - 10,
                            snapshot.archived_through() - 1,
                        );
                        proven.push((who, range.unwrap()));
                        base = Some(snapshot);
                    }
                    Err(CatalogError::Lost { newest }) => base = Some(newest),
                    Err(error) => {
                        // Also NotFound: a manifest may be gone again by the time
                        // it is read; here nothing is collected, so it is not.
                        assert_eq!(error.kind(), ErrorKind::Retry, "seed {seed}: {error}");
                        if let Ok(newest) = load(&catalog).await {
                            base = newest;
                        }
                    }
                }
            }
            proven
        }
    });
    let proven = futures::future::join_all(working).await.concat();
    faults.heal();
    // Every commit that was proven is in the history, its writer's, once.
    let entries = verified(&store).await;
    for (who, range) in &proven {
        let committed = entries.iter().find(|entry| entry.summary.range == *range).unwrap();
        let built =
            entry(committed.built_for, range.base(), range.last(), &format!("writer-{who}"));
        assert_eq!(committed, &built, "seed {seed}");
    }
    assert!(entries.len() >= proven.len(), "seed {seed}");
    // Once faults stop, work goes on.
    let healed = catalog(&store, "healed");
    let newest = load(&healed).await.unwrap();
    append(&store, &healed, newest).await.unwrap();
    assert_eq!(proven.len(), WRITERS * SHARE, "seed {seed} did not get done");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Table: F2 F3 F4 F6 F8 F12 I3 I8 I13 | one request of seven of three writers
    #[test]
    fn three_writers_survive_a_store_that_fails_at_random(seed in any::<u64>()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(survive(seed));
    }
}
