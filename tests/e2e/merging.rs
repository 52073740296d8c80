//! Merging whole archives in a store: killed at every change, two at once, and
//! beside readers of a real process while what they read is swapped and deleted.

mod daemon;
mod many;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use object_store::ObjectStore;
use object_store::memory::InMemory;
use tierd::archive::{ArchiveIdentity, ArchiveOptions, ArchiveWriter, WalRank, batches_in};
use tierd::catalog::{ArchiveEntry, Catalog, CatalogError, ClusterName, Edit, Snapshot, WriterId};
use tierd::clock::SystemClock;
use tierd::compact::gc::Grace;
use tierd::compact::merge::{Merged, plan};
use tierd::compact::{CompactError, Compactor, Retained};
use tierd::error::{Classify, ErrorKind};
use tierd::read::{ArchiveReader, ReadOptions, ReadStats};
use tierd::record::{CanonicalRecord, TopicName, TopicPartition};
use tierd::store::Store;
use tierd::task::Pace;
use tierd_client::{ArchiveClient, FetchArgs, StreamItem};
use tierd_tests::batches::Batches;
use tierd_tests::compacting::{Merges, merge_all};
use tierd_tests::faults::FaultStore;
use tierd_tests::mortal::{Death, MortalStore};
use tierd_tests::process::Tierd;

use crate::TIERD;

pub fn partition() -> TopicPartition {
    TopicPartition::new(TopicName::new("orders").unwrap(), 0).unwrap()
}

pub struct Process {
    pub store: Store,
    pub catalog: Arc<Catalog>,
    pub compactor: Compactor,
    pub scratch: tempfile::TempDir,
}

fn process(store: Store, name: &str) -> Process {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let nonce = || {
        let mut nonce = [7; 16];
        nonce[..8].copy_from_slice(&NEXT.fetch_add(1, Ordering::Relaxed).to_le_bytes());
        nonce
    };
    let clock = SystemClock::new();
    let (cluster, writer) = (ClusterName::new("default").unwrap(), WriterId::new(name).unwrap());
    let (one, two) = (Arc::clone(&clock), clock);
    let catalog = Arc::new(Catalog::new(store.clone(), cluster, writer, one, Box::new(nonce)));
    let compactor = Compactor::new(Arc::clone(&catalog), store.clone(), two, Box::new(nonce));
    Process { store, catalog, compactor, scratch: tempfile::tempdir().unwrap() }
}

pub fn over(objects: Arc<dyn ObjectStore>, name: &str) -> Process {
    process(Store::new(objects, "").with_backoff(Duration::ZERO), name)
}

impl Process {
    /// The newest manifest, if the store tells.
    pub async fn look(&self) -> Result<Arc<Snapshot>, CatalogError> {
        Ok(self.catalog.load(&partition(), None).await?.unwrap())
    }

    pub async fn newest(&self) -> Arc<Snapshot> {
        self.catalog.load(&partition(), None).await.unwrap().unwrap()
    }

    /// Archives `batches` as one archive behind the last.
    pub async fn archive(&self, batches: &[Bytes]) {
        let base = self.catalog.load(&partition(), None).await.unwrap();
        let start = base.as_deref().map_or(0, Snapshot::archived_through);
        let identity = ArchiveIdentity { tp: partition(), incarnation: 0 };
        let options = ArchiveOptions::default();
        let mut writer =
            ArchiveWriter::create(self.scratch.path(), identity.clone(), start, options).unwrap();
        for batch in batches {
            let batch = CanonicalRecord::from_wire(batch.clone()).unwrap();
            writer.push(&batch, WalRank::default()).unwrap();
        }
        let built = writer.finish().unwrap();
        let number = base.as_deref().map_or(1, Snapshot::next_number);
        let cluster = self.catalog.cluster();
        let mut entry = ArchiveEntry::new(cluster, &identity, number, built.summary.clone());
        let mut base = base;
        loop {
            self.store.put_file(&entry.key(), &built.path).await.unwrap();
            let edit = Edit { add: vec![entry.clone()], ..Edit::default() };
            match self.catalog.commit(&partition(), 0, base, edit).await {
                Ok(_) => return,
                // Somebody merges meanwhile.
                Err(CatalogError::Lost { newest }) => {
                    entry = entry.rebased(newest.next_number());
                    base = Some(newest);
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    pub async fn merge(&self, target: u64) -> Result<Merges, CompactError> {
        let scratch = self.scratch.path();
        merge_all(&self.compactor, &self.catalog, &partition(), target, scratch).await
    }

    /// Carries out the first merge that was to do when `base` was the newest.
    async fn merge_late(&self, base: Arc<Snapshot>, target: u64) -> Result<Merged, CompactError> {
        let jobs = plan(&base, &base.entries().await?, target, &HashSet::new());
        let job = jobs.first().expect("something is to do");
        self.compactor.merge(base, job, self.scratch.path(), &Pace::unlimited()).await
    }

    pub async fn gc(&self, grace: Duration) -> Result<u64, CompactError> {
        let grace = Grace { now_ms: self.compactor.store_now_ms().await?, grace };
        let survey = self.compactor.survey(&partition(), 0, grace).await?;
        Ok(self.compactor.sweep(survey, grace).await?.objects)
    }

    /// Every batch as it is served.
    pub async fn log(&self) -> Vec<Bytes> {
        let reader = ArchiveReader::new(self.store.clone(), ReadOptions::default());
        let (newest, stats, mut found) = (self.newest().await, ReadStats::default(), Vec::new());
        for entry in newest.entries().await.unwrap() {
            let toc = reader.toc(&entry, &stats).await.unwrap();
            let wanted = toc.log().unwrap().chunks.clone();
            let wanted = wanted.start as usize..wanted.end as usize;
            let chunks = reader.chunks(&entry, &toc, wanted, &stats);
            let chunks: Vec<Bytes> = futures::TryStreamExt::try_collect(chunks).await.unwrap();
            let batches = chunks.into_iter().flat_map(batches_in);
            found.extend(batches.map(|batch| batch.unwrap().to_kafka_batch().unwrap()));
        }
        found
    }
}

pub fn batches(count: usize) -> Vec<Bytes> {
    Batches::new(6, 0).take(count).map(|batch| batch.wire).collect()
}

/// Archives of five batches each, by a process that only looks on afterwards.
pub async fn witness(below: &Arc<dyn ObjectStore>, batches: &[Bytes]) -> Process {
    let witness = over(Arc::clone(below), "witness");
    for part in batches.chunks(5) {
        witness.archive(part).await;
    }
    witness
}

/// Bytes of log of `batches`.
pub fn bytes_of(batches: &[Bytes]) -> u64 {
    batches.iter().map(|batch| batch.len() as u64).sum()
}

/// Table: F1 F21 I3 I4 I7 I10 | before and after every change of a merge and the collection
/// behind it
#[tokio::test]
async fn killed_at_every_change_of_a_merge_and_resumed_it_comes_to_the_same() {
    let batches = batches(40);
    // Seven archives are one, and the eighth waits for more.
    let target = bytes_of(&batches[..35]);
    for (raced, after) in [(false, false), (false, true), (true, false), (true, true)] {
        for at in 1.. {
            let below: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
            let witness = witness(&below, &batches[..35]).await;
            let base = witness.newest().await;
            let mortal = MortalStore::new(Arc::clone(&below), Death { at, after });
            let worker = over(Arc::clone(&mortal) as Arc<dyn ObjectStore>, "w");
            let late = raced.then_some(base);
            witness.archive(&batches[35..]).await;
            let ended = async {
                if let Some(base) = late {
                    // The writer took the number: the object is copied to the next.
                    let merged = worker.merge_late(base, target).await?;
                    assert!(matches!(merged, Merged::Committed(..)), "{merged:?}");
                }
                worker.merge(target).await?;
                worker.gc(Duration::ZERO).await
            };
            let ended = ended.await;
            let what = format!("killed at change {at}, after it: {after}, raced: {raced}");
            assert_eq!(witness.log().await, batches, "{what}");
            let over = !mortal.died();
            if over {
                ended.unwrap();
                assert!(at > 6, "{at}");
            }
            witness.merge(target).await.unwrap();
            witness.gc(Duration::ZERO).await.unwrap();
            witness.gc(Duration::ZERO).await.unwrap();
            assert_eq!(witness.log().await, batches, "resumed, {what}");
            let newest = witness.newest().await;
            witness.catalog.verify_history(&newest).await.unwrap();
            assert_eq!(newest.totals().entries, 2, "{what}");
            if over {
                break;
            }
        }
    }
}

/// Table: F2 F6 F12 F22 I3 I4 I8 | requests of two that merge and one that writes
#[tokio::test]
async fn whatever_the_store_answers_two_mergers_and_a_writer_lose_and_double_nothing() {
    let batches = batches(60);
    let (front, back) = batches.split_at(40);
    let target = bytes_of(front) / 2;
    for seed in 0..24 {
        let below: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let witness = witness(&below, front).await;
        // Without faults at first: only the order of requests differs.
        let chance = if seed % 3 == 0 { 0.0 } else { 0.08 };
        let faulty = |n: u64| FaultStore::seeded(Arc::clone(&below), seed * 3 + n, chance);
        let one = over(faulty(0), "one");
        let two = over(faulty(1), "two");
        let merge = async |worker: &Process| {
            let mut made = 0;
            for _ in 0..200 {
                match worker.merge(target).await {
                    Ok(done) => made += done.committed,
                    // The store's own time-outs and refusals: the next round.
                    Err(error) if error.kind() == ErrorKind::Retry => {}
                    Err(error) if error.kind() == ErrorKind::Exhausted => {}
                    Err(error) => panic!("seed {seed}: {error}"),
                }
                tokio::task::yield_now().await;
            }
            made
        };
        let write = async {
            for part in back.chunks(5) {
                witness.archive(part).await;
                for _ in 0..20 {
                    tokio::task::yield_now().await;
                }
            }
        };
        let (first, second, ()) = futures::join!(merge(&one), merge(&two), write);
        assert!(first + second > 0, "seed {seed}");
        assert_eq!(witness.log().await, batches, "seed {seed}");
        witness.merge(target).await.unwrap();
        witness.gc(Duration::ZERO).await.unwrap();
        assert_eq!(witness.log().await, batches, "seed {seed}");
        let newest = witness.newest().await;
        witness.catalog.verify_history(&newest).await.unwrap();
        assert!(newest.totals().entries <= 6, "seed {seed}: {}", newest.totals().entries);
    }
}

/// Reads the log from `from` on again and again through the daemon at `address`.
/// Every batch must follow on the one before, and be the one that was written.
async fn read_on(address: &str, written: &[Bytes], start: &AtomicU64, done: &AtomicBool) -> u64 {
    let mut rounds = 0;
    while !done.load(Ordering::SeqCst) || rounds == 0 {
        let from = start.load(Ordering::SeqCst) as i64;
        let client = ArchiveClient::connect_lazy(address).unwrap();
        let mut stream = client.fetch_stream(FetchArgs::new("orders", 0, from));
        let mut at: Option<usize> = None;
        while let Some(item) = stream.next().await {
            // Retention may overtake a reader: then it is told, and begins anew.
            let item = match item {
                Ok(item) => item,
                Err(error) if start.load(Ordering::SeqCst) as i64 > from => {
                    assert!(error.to_string().contains("start"), "{error}");
                    break;
                }
                Err(error) => panic!("a reader from {from} met: {error}"),
            };
            let StreamItem::Batches(set) = item else { continue };
            for batch in batches_in(set.batches) {
                let wire = batch.unwrap().to_kafka_batch().unwrap();
                let found = match at {
                    Some(before) => before + 1,
                    None => written.iter().position(|one| *one == wire).unwrap(),
                };
                assert_eq!(written[found], wire, "a batch is missing or doubled");
                at = Some(found);
            }
        }
        rounds += 1;
    }
    rounds
}

/// Table: F23 I5 I9 | the process, while what it reads is merged and deleted
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_readers_stream_through_a_hundred_swaps_and_deletions() {
    let folder = tempfile::tempdir().unwrap();
    let tierd = Tierd::new(TIERD, folder.path());
    let url = format!("file://{}", folder.path().join("store").display());
    let worker = process(Store::open_or_create(&url).unwrap(), "w");
    let written = batches(640);
    worker.archive(&written[..4]).await;
    // Two of the archives to come make one of this size, more or less.
    let target = bytes_of(&written) / written.len() as u64 * 3;
    let daemon = tierd.serve(&[]);
    let (start, done) = (AtomicU64::new(0), AtomicBool::new(false));
    let swaps = async {
        let mut swaps = 0;
        for part in written[4..].chunks(2) {
            worker.archive(part).await;
            swaps += worker.merge(target).await.unwrap().committed;
            if swaps % 10 == 9 {
                let newest = worker.newest().await;
                let cut = newest.log_start() + (newest.archived_through() - newest.log_start()) / 4;
                start.store(cut as u64, Ordering::SeqCst);
                let planned = Retained::cut(newest, cut).await.unwrap();
                let plan = |base| Retained::cut(base, cut);
                worker.compactor.retain(planned, plan).await.unwrap();
                swaps += 1;
            }
            worker.gc(Duration::from_secs(3)).await.unwrap();
        }
        done.store(true, Ordering::SeqCst);
        swaps
    };
    let reader = || read_on(&daemon.address, &written, &start, &done);
    let (swaps, one, two) = futures::join!(swaps, reader(), reader());
    assert!(swaps >= 100, "{swaps} swaps");
    assert!(one > 1 && two > 1, "{one} and {two} rounds");
    worker.gc(Duration::ZERO).await.unwrap();
    let _ = tierd.run(&["verify", "--deep"]).ok();
}
