//! Random histories of a WAL against a log that answers by brute force: what is
//! served, what is a gap, where every answer begins and ends, which transactions were
//! aborted, what a read_committed consumer sees of it all, and what is found by time
//! and by leader epoch. Now and then manifests are lost, and the catalog is rebuilt.

mod consumer;
mod history;
mod log;
mod lookups;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tierd::archive::ArchiveOptions;
use tierd::catalog::Snapshots;
use tierd::clock::{ManualClock, SystemClock};
use tierd::compact::gc::Grace;
use tierd::config::Config;
use tierd::daemon::Rooms;
use tierd::fetch::{
    Aborted, AbortedTransaction, EndReason, FetchEvent, FetchRequest, Fetcher, Isolation, Overlaps,
    PartitionRequest, Status,
};
use tierd::indexer::{Indexer, LiveIndexer};
use tierd::read::{ArchiveReader, ReadOptions, ReadStats};
use tierd::record::{OffsetRange, TopicName, TopicPartition};
use tierd::store::{ObjectKey, Store, keys};
use tierd::upkeep::Rebuild;
use tierd::wal::{WalDir, WalFormat};
use tierd_tests::compacting::merge_all;
use tierd_tests::reads::all_from;

use self::history::Broker;
use self::log::{Answer, Fate, Limits, Log};

/// Histories tried; each archives a WAL in up to four runs, some of them with the topic
/// deleted and made anew.
const HISTORIES: u64 = 60;
/// Bytes after which an archive is full: small, so that answers cross archives.
const ARCHIVE_BYTES: u64 = 2_000;
/// Bytes of a batch's header: an answer with less room than that is full.
const HEADER_BYTES: u64 = 61;

/// What the fetcher answers.
#[derive(Debug)]
struct Got {
    wire: Vec<u8>,
    next: i64,
    why: &'static str,
    aborted: Option<Aborted>,
}

async fn fetch(rooms: &Rooms, request: PartitionRequest) -> Got {
    let (sink, mut events) = tokio::sync::mpsc::channel(10_000);
    let stats = ReadStats::default();
    let request = FetchRequest { partitions: vec![request], max_bytes: u64::MAX };
    rooms.fetcher.fetch(request, &sink, &stats).await.unwrap();
    drop(sink);
    let mut wire = Vec::new();
    while let Some(event) = events.recv().await {
        match event {
            FetchEvent::Header(header) => assert!(header.state.is_some()),
            FetchEvent::Data(data) => wire.extend_from_slice(&data.wire),
            FetchEvent::Trailer(trailer) => {
                assert_eq!(trailer.status, Status::Ok, "{}", trailer.message);
                let why = match trailer.end {
                    EndReason::EndOfArchive => "end",
                    EndReason::Gap(gap) => {
                        assert!(gap.range.contains(trailer.next_offset));
                        "gap"
                    }
                    EndReason::OffsetsGoBack => "back",
                    EndReason::Limit => "limit",
                    EndReason::UpperBound => "bound",
                    EndReason::Failed => "failed",
                };
                let (next, aborted) = (trailer.next_offset, trailer.aborted);
                return Got { wire, next, why, aborted };
            }
        }
    }
    panic!("no trailer came");
}

fn request(bench: &Bench, offset: i64) -> PartitionRequest {
    PartitionRequest { incarnation: bench.incarnation, ..all_from(&bench.tp, offset) }
}

/// The state of one history.
struct Bench {
    rooms: Rooms,
    tp: TopicPartition,
    /// Which life of the topic is asked for: the newest, or an older one.
    incarnation: Option<u32>,
    log: Log,
    random: StdRng,
}

impl Bench {
    /// Compares every answer at every offset with the log.
    async fn compare(&mut self) {
        for offset in 0..self.log.through {
            for isolation in [Isolation::ReadUncommitted, Isolation::ReadCommitted] {
                let asked = PartitionRequest { isolation, ..request(self, offset) };
                self.check(asked.clone()).await;
                let max_bytes = self.random.random_range(0..ARCHIVE_BYTES * 2);
                let min_one_batch = self.random.random_bool(0.5);
                let bound = self.random.random_range(0..=self.log.through + 3);
                let upper_bound = self.random.random_bool(0.5).then_some(bound);
                let limited = PartitionRequest { max_bytes, min_one_batch, upper_bound, ..asked };
                self.check(limited).await;
            }
        }
        self.read_committed().await;
        self.look_up().await;
        self.list_aborted().await;
        self.all_batches().await;
    }

    /// Asks and compares one answer; gives it.
    async fn check(&self, asked: PartitionRequest) -> Got {
        let log = &self.log;
        let (mut bound, mut says) = (log.through, "end");
        if asked.isolation == Isolation::ReadCommitted && asked.upper_bound.is_none() {
            bound = log.last_stable_offset();
        }
        if let Some(upper) = asked.upper_bound
            && upper < log.through
        {
            (bound, says) = (upper, "bound");
        }
        let PartitionRequest { max_bytes, min_one_batch, .. } = asked;
        let limits = Limits { bound, says, max_bytes, min_one_batch };
        let expected = log.answer(asked.offset, limits);
        let got = fetch(&self.rooms, asked.clone()).await;
        let ranges = |wire: &[u8]| -> Vec<_> {
            consumer::batches(wire).iter().map(|batch| log.find(batch)).collect()
        };
        let wire = log.wire(&expected);
        assert_eq!((ranges(&got.wire), got.next), (ranges(&wire), expected.next), "{asked:?}");
        assert!(got.wire == wire, "{asked:?}");
        // An answer that has no room for a header need not look what comes next.
        let room = max_bytes.saturating_sub(got.wire.len() as u64);
        let is_full = room < HEADER_BYTES && (!min_one_batch || !got.wire.is_empty());
        assert!(got.why == expected.why || (is_full && got.why == "limit"), "{asked:?} {got:?}");
        match (asked.isolation, &got.aborted) {
            (Isolation::ReadUncommitted, None) => {}
            (Isolation::ReadCommitted, Some(aborted)) => self.check_aborted(&expected, aborted),
            _ => panic!("a list belongs to read_committed alone: {asked:?}"),
        }
        got
    }

    /// Compares the list that came with an answer.
    fn check_aborted(&self, answer: &Answer, list: &Aborted) {
        let batches = &answer.batches;
        let Some((&(_, base, _), &(_, _, last))) = batches.first().zip(batches.last()) else {
            assert_eq!((list.transactions.len(), list.complete), (0, true), "{list:?}");
            return;
        };
        let range = OffsetRange::new(base, last).unwrap();
        self.check_list(list, range, batches.iter().map(|(_, first, _)| *first));
    }

    /// Every aborted transaction that has one of `offsets`, all in `range`, must be
    /// listed, and nothing that is not one.
    fn check_list(&self, list: &Aborted, range: OffsetRange, offsets: impl Iterator<Item = i64>) {
        let log = &self.log;
        for offset in offsets {
            if let Fate::Aborted { producer, marker } = log.fate(offset) {
                let is_it = |one: &&AbortedTransaction| {
                    (one.producer_id, one.last_offset) == (producer, marker)
                        && one.first_offset <= offset
                };
                let listed = list.transactions.iter().find(is_it);
                assert!(listed.is_some(), "{producer} at {offset} to {marker}: {list:?}");
            }
        }
        for one in &list.transactions {
            let first = log.first_of(one.producer_id, one.last_offset);
            assert!(first.is_some_and(|first| first <= one.first_offset), "{one:?}, {first:?}");
            let touches = one.first_offset <= range.last() && one.last_offset >= range.base();
            assert!(touches, "{one:?} {range}");
            let (producer, marker) = (one.producer_id, one.last_offset);
            assert_eq!(log.fate(one.first_offset), Fate::Aborted { producer, marker });
            assert!(one.last_offset < list.searched_to, "{list:?}");
        }
        assert!(list.transactions.is_sorted_by_key(|one| one.last_offset), "{list:?}");
        let is_settled = (0..=range.last()).all(|at| log.fate(at) != Fate::Open);
        assert_eq!(list.complete, is_settled && range.last() < log.through, "{list:?}");
        if !is_settled {
            assert_eq!(list.searched_to, log.through);
        }
        let least = range.end().min(log.through);
        assert!((least..=log.through).contains(&list.searched_to), "{list:?} {range}");
    }

    /// Reads as a consumer does, with answers of random size, over the gaps.
    async fn read_committed(&mut self) {
        let stable = self.log.last_stable_offset();
        let mut seen = Vec::new();
        let mut next = 0;
        loop {
            let max_bytes = self.random.random_range(0..ARCHIVE_BYTES * 2);
            let isolation = Isolation::ReadCommitted;
            if next >= self.log.through {
                break;
            }
            let asked = PartitionRequest { max_bytes, isolation, ..request(self, next) };
            let got = fetch(&self.rooms, asked).await;
            let aborted = got.aborted.unwrap();
            assert!(aborted.complete, "below the last stable offset nothing is open");
            seen.extend(consumer::consume(&self.log, &got.wire, &aborted.transactions, next));
            next = got.next;
            match got.why {
                "gap" => next = (next..).find(|n| !self.log.gaps.contains(n)).unwrap(),
                "end" => break,
                _ => {}
            }
        }
        assert_eq!(seen, self.log.committed_records(stable));
    }

    /// Every batch that was ever written comes back, by base offset.
    async fn all_batches(&self) {
        let log = &self.log;
        let all = PartitionRequest { overlaps: Overlaps::All, ..request(self, 0) };
        let mut found: Vec<Bytes> = Vec::new();
        let mut offset = 0;
        while offset <= log.through {
            let got = fetch(&self.rooms, PartitionRequest { offset, ..all.clone() }).await;
            found.extend(consumer::batches(&got.wire));
            match got.why {
                "gap" => offset = (got.next..).find(|n| !log.gaps.contains(n)).unwrap(),
                "end" => break,
                other => panic!("{other}"),
            }
        }
        let base = |wire: &Bytes| i64::from_be_bytes(wire[0..8].try_into().unwrap());
        assert!(found.is_sorted_by_key(base), "bases go back");
        let found_once: BTreeSet<&Bytes> = found.iter().collect();
        assert_eq!(found.len(), found_once.len(), "a batch came twice");
        let written: BTreeSet<&Bytes> = log.wal.iter().map(|batch| &batch.wire).collect();
        assert_eq!(found_once, written);
    }
}

/// Merges in all histories.
static MERGED: AtomicU64 = AtomicU64::new(0);

impl Bench {
    /// Merges, collects what is left over, and compares every answer again: it is the
    /// same log.
    async fn merge(&mut self, store: &Store, config: &Config, folder: &Path) {
        if self.random.random_bool(0.2) {
            return;
        }
        let target = self.random.random_range(1..ARCHIVE_BYTES * 4);
        let stale = self.stale(store, 6).await;
        let compactor = self.rooms.compactor();
        let merged = merge_all(&compactor, &self.rooms.catalog, &self.tp, target, folder).await;
        let merged = merged.unwrap().committed;
        if merged == 0 {
            return;
        }
        MERGED.fetch_add(merged, Ordering::Relaxed);
        if self.random.random_bool(0.5) {
            let now_ms = compactor.store_now_ms().await.unwrap();
            let grace = Grace { now_ms, grace: Duration::ZERO };
            let newest = self.rooms.catalog.load(&self.tp, None).await.unwrap().unwrap();
            let survey = compactor.survey(&self.tp, newest.incarnation(), grace).await.unwrap();
            compactor.sweep(survey, grace).await.unwrap();
        }
        self.rooms = Rooms::over(store.clone(), config).unwrap();
        self.compare().await;
        for fetcher in stale {
            self.rooms.fetcher = fetcher;
            match self.random.random_range(0..4) {
                0 => self.look_up().await,
                1 => self.list_aborted().await,
                2 => self.all_batches().await,
                _ => {
                    let offset = self.random.random_range(0..self.log.through);
                    let isolation = Isolation::ReadCommitted;
                    self.check(PartitionRequest { isolation, ..request(self, offset) }).await;
                }
            }
        }
    }

    /// Processes that take the manifest of this moment for the newest until what it
    /// lists is gone, and have nothing else in memory.
    async fn stale(&self, store: &Store, count: usize) -> Vec<Fetcher> {
        let mut stale = Vec::new();
        for _ in 0..count {
            let catalog = Arc::clone(&self.rooms.catalog);
            let snapshots = Arc::new(Snapshots::new(catalog, ManualClock::at(0)));
            let reader = ArchiveReader::new(store.clone(), ReadOptions::default());
            let fetcher = Fetcher::new(snapshots, reader);
            fetcher.snapshot(&self.tp, None).await.unwrap().unwrap();
            stale.push(fetcher);
        }
        stale
    }
}

/// Loses the newest manifest or all of them, and rebuilds the catalog from what is
/// left. Where a gap ends the log, nothing but the last manifest knew of it.
async fn lose_and_rebuild(bench: &Bench, store: &Store, lives: usize, random: &mut StdRng) {
    if bench.log.gaps.contains(&(bench.log.through - 1)) {
        return;
    }
    let (catalog, tp) = (&bench.rooms.catalog, &bench.tp);
    let life = lives as u32;
    let newest = catalog.load(tp, Some(life)).await.unwrap().unwrap();
    let all = random.random_bool(0.5);
    let mut listed = Box::pin(store.list(&keys::manifest_folder(newest.of())));
    while let Some(object) = listed.try_next().await.unwrap() {
        let key = ObjectKey::decode(&object.name).unwrap();
        let ObjectKey::Manifest { number, .. } = key else { panic!("{key}") };
        if all || number == newest.number() {
            store.delete(&key).await.unwrap();
        }
    }
    // As after a restart: nothing is remembered of what is lost.
    let config = Config { writer_id: Some("w".to_owned()), ..Config::default() };
    let rooms = Rooms::over(store.clone(), &config).unwrap();
    let mut rebuild = Rebuild::new(store.clone(), rooms.catalog, rooms.reader);
    let rebuilt = rebuild.confirm(tp, life, true).await.unwrap();
    assert_eq!(rebuilt.archived_through, bench.log.through, "{rebuilt:?}");
    assert!(rebuilt.gaps.is_empty() || !bench.log.gaps.is_empty(), "{rebuilt:?}");
}

/// A process that has just started beside a stopped broker's WAL.
fn indexer(rooms: &Rooms, folder: &Path) -> Arc<LiveIndexer> {
    let format = WalFormat::Chronik;
    let options = ArchiveOptions { target_log_bytes: ARCHIVE_BYTES, ..ArchiveOptions::default() };
    let indexer = Indexer::new(
        format,
        Arc::clone(&rooms.catalog),
        rooms.store.clone(),
        rooms.reader.clone(),
        folder.join("scratch"),
        options,
        rooms.metrics.clone(),
    );
    let wal = WalDir::open(&folder.join("wal"), format).unwrap();
    let offline = Config::default().live(true).unwrap();
    let live = LiveIndexer::new(indexer, wal, offline, SystemClock::new(), Arc::new(|| 1.0));
    Arc::new(live)
}

async fn history(seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let folder = tempfile::tempdir().unwrap();
    let wal = folder.path().join("wal");
    let config = Config { writer_id: Some("w".to_owned()), ..Config::default() };
    let store = Store::open("memory:").unwrap();
    let tp = TopicPartition::new(TopicName::new("t").unwrap(), 0).unwrap();
    let mut broker = Broker::new(&mut random);
    let rooms = Rooms::over(store.clone(), &config).unwrap();
    let mut bench = Bench { rooms, tp, incarnation: None, log: Log::default(), random };
    let mut losses = StdRng::seed_from_u64(seed ^ 0x10_55);
    let mut earlier = Vec::new();
    let (mut archived, mut releasable) = (0, 0);
    for run in 0..bench.random.random_range(1..5) {
        // Where nothing is archived at offset 0, its first batch would fill a gap.
        let may_tell = run > 0 && !bench.log.gaps.contains(&0);
        if may_tell && bench.random.random_bool(0.15) {
            broker.make_anew(&wal);
            earlier.push(std::mem::take(&mut bench.log));
            (archived, releasable) = (0, 0);
        }
        for _ in 0..bench.random.random_range(1..3) {
            broker.write_segment(&mut bench.log, &wal, &mut bench.random);
        }
        let report = indexer(&bench.rooms, folder.path()).run_once(|_| {}).await.unwrap();
        assert!(!report.failed(), "{:?}", report.partitions[0].error);
        bench.log.archive();

        let told = &report.partitions[0];
        assert_eq!(told.incarnation as usize, earlier.len());
        assert_eq!(told.archived_through, bench.log.through);
        assert!(told.archived_through >= archived, "archived_through moved back");
        // All that the WAL holds is archived.
        assert!(told.releasable_through <= told.archived_through);
        assert!(told.releasable_through >= releasable, "releasable_through moved back");
        assert!(told.releasable_through >= bench.log.end(), "{told:?}");
        (archived, releasable) = (told.archived_through, told.releasable_through);
        broker.delete(&wal, &told.releasable, &mut bench.random);

        if losses.random_bool(0.3) {
            lose_and_rebuild(&bench, &store, earlier.len(), &mut losses).await;
        }
        // A process that knows nothing: caches of an older state would be in the way.
        bench.rooms = Rooms::over(store.clone(), &config).unwrap();
        let snapshot = bench.rooms.fetcher.snapshot(&bench.tp, None).await.unwrap().unwrap();
        assert_eq!(snapshot.archived_through(), archived);
        let ledger = bench.rooms.catalog.ledger(&bench.tp).await.unwrap().unwrap();
        assert_eq!(ledger.releasable_through(), releasable);
        let open = snapshot.open_transactions();
        assert_eq!(snapshot.last_stable_offset(), bench.log.last_stable_offset(), "{open:?}");
        bench.compare().await;
        bench.merge(&store, &config, folder.path()).await;
    }
    for (life, log) in earlier.into_iter().enumerate() {
        bench.incarnation = Some(life as u32);
        bench.log = log;
        bench.compare().await;
    }
}

/// Table: F16 F28 F30 I3 I4 I14 | WALs of every kind of trouble; then manifests, lost |
/// HISTORIES TIERD_TEST_HISTORIES
#[tokio::test(flavor = "multi_thread")]
async fn every_answer_equals_a_log_that_answers_by_brute_force() {
    let histories = std::env::var("TIERD_TEST_HISTORIES").ok();
    let histories = histories.map_or(HISTORIES, |text| text.parse().unwrap());
    let first = std::env::var("TIERD_TEST_SEED").map_or(0, |text| text.parse().unwrap());
    for seed in first..first + histories {
        let ended = tokio::spawn(history(seed)).await;
        assert!(
            ended.is_ok(),
            "seed {seed} fails: {ended:?}\n\
             TIERD_TEST_SEED={seed} TIERD_TEST_HISTORIES=1 cargo test -p tierd-tests --test e2e \
             every_answer_equals"
        );
    }
    let merged = MERGED.load(Ordering::Relaxed);
    assert!(histories < HISTORIES || merged >= histories / 4, "{merged} merges");
}
