//! One step of a live indexer after the other, on a real directory, with a clock
//! that the test moves: when what is archived, and what is waited for.

mod standby;
mod told;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use tierd::archive::ArchiveOptions;
use tierd::catalog::{Catalog, ClusterName, Snapshot, WriterId};
use tierd::clock::{Clock, ManualClock};
use tierd::indexer::{Indexer, LiveIndexer, LiveOptions, Progress, STANDBY_WAIT};
use tierd::metrics::Metrics;
use tierd::read::{ArchiveReader, ReadOptions};
use tierd::record::{Codec, OffsetRange, TopicName, TopicPartition};
use tierd::reports::{Report, Reports, Role};
use tierd::store::Store;
use tierd::task::Leave;
use tierd::wal::classify::Rules;
use tierd::wal::{BrokerStart, WalDir, WalFormat};
use tierd_tests::chronik::{WalWriter, sample_batch};

/// When the broker started, milliseconds since 1970.
const STARTED: i64 = 1_700_000_000_000;
const SETTLE: Duration = Duration::from_secs(30);
const IDLE: Duration = Duration::from_secs(600);
const GAP_TIMEOUT: Duration = Duration::from_secs(3600);
/// From here on a segment may pass for rotated; a batch's frame is some 3 KB.
const ROTATED_BYTES_MIN: u64 = 8 << 10;

struct Bench {
    folder: tempfile::TempDir,
    clock: Arc<ManualClock>,
    store: Store,
    metrics: Metrics,
    reports: Arc<Reports>,
    live: Arc<LiveIndexer>,
}

fn live(
    folder: &tempfile::TempDir,
    clock: &Arc<ManualClock>,
    store: &Store,
    metrics: &Metrics,
    reports: &Arc<Reports>,
    writer: &str,
) -> Arc<LiveIndexer> {
    static SEED: AtomicU8 = AtomicU8::new(0);
    let seed = SEED.fetch_add(1, Ordering::Relaxed);
    let next = AtomicU8::new(0);
    let nonce = move || {
        let mut nonce = [seed; 16];
        nonce[0] = next.fetch_add(1, Ordering::Relaxed);
        nonce
    };
    let time: Arc<dyn Clock> = Arc::<ManualClock>::clone(clock);
    let (cluster, writer) = (ClusterName::new("c").unwrap(), WriterId::new(writer).unwrap());
    let catalog =
        Arc::new(Catalog::new(store.clone(), cluster, writer, Arc::clone(&time), Box::new(nonce)));
    let indexer = Indexer::new(
        WalFormat::Chronik,
        catalog,
        store.clone(),
        ArchiveReader::new(store.clone(), ReadOptions::default()),
        folder.path().join("scratch"),
        ArchiveOptions::default(),
        metrics.clone(),
    );
    let rules = Rules { rotated_bytes_min: ROTATED_BYTES_MIN, ..Rules::default() };
    let options = LiveOptions {
        broker: BrokerStart::At(STARTED),
        rules,
        gap_timeout: GAP_TIMEOUT,
        standby_wait: STANDBY_WAIT,
        reclaim: false,
    };
    let wal = WalDir::open(&folder.path().join("wal"), WalFormat::Chronik).unwrap();
    let live = LiveIndexer::new(indexer, wal, options, time, Arc::new(|| 1.0));
    Arc::new(live.heeding(Arc::clone(reports)))
}

impl Bench {
    fn new() -> Self {
        Self::on(Store::open("memory:").unwrap())
    }

    fn on(store: Store) -> Self {
        Self::over(store, ManualClock::at(STARTED + 1_000_000), "me")
    }

    fn over(store: Store, clock: Arc<ManualClock>, writer: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("wal")).unwrap();
        let time: Arc<dyn Clock> = Arc::<ManualClock>::clone(&clock);
        let metrics = Metrics::new(time).unwrap();
        let reports = Arc::<Reports>::default();
        let live = live(&folder, &clock, &store, &metrics, &reports, writer);
        Self { folder, clock, store, metrics, reports, live }
    }

    /// Writes a segment anew, last modified `at` seconds after the broker's start.
    fn segment(&self, id: u64, at: i64, batches: &[&Bytes]) {
        let mut segment = WalWriter::create(&self.folder.path().join("wal"), "t", 0, id).unwrap();
        for batch in batches {
            segment.append(batch).unwrap();
        }
        segment.finish().unwrap();
        self.touch(id, at);
    }

    fn report(&self, report: Report) {
        self.reports.report(&tp(), report).unwrap();
    }

    fn touch(&self, id: u64, at: i64) {
        let time = UNIX_EPOCH + Duration::from_millis((STARTED + at * 1000) as u64);
        let file = File::options().append(true).open(self.path(id)).unwrap();
        file.set_modified(time).unwrap();
    }

    fn path(&self, id: u64) -> std::path::PathBuf {
        self.folder.path().join(format!("wal/t/0/wal_0_{id}.log"))
    }

    fn due(&self) -> bool {
        !self.live.look().unwrap().due.is_empty()
    }

    /// A look, and a step where one is due.
    async fn round(&self) -> Option<Progress> {
        if !self.due() {
            return None;
        }
        Some(self.live.step(&tp()).await.1)
    }

    fn catalog(&self, writer: &str) -> Catalog {
        let nonce = || [99; 16];
        let (cluster, writer) = (ClusterName::new("c").unwrap(), WriterId::new(writer).unwrap());
        let clock: Arc<dyn Clock> = Arc::<ManualClock>::clone(&self.clock);
        Catalog::new(self.store.clone(), cluster, writer, clock, Box::new(nonce))
    }

    async fn snapshot(&self) -> Option<Arc<Snapshot>> {
        self.catalog("r").load(&tp(), None).await.unwrap()
    }

    /// What `writer` was told that it may delete.
    async fn releasable(&self, writer: &str) -> i64 {
        let ledger = self.catalog(writer).ledger(&tp()).await.unwrap();
        ledger.map_or(0, |ledger| ledger.releasable_through())
    }

    async fn through(&self) -> i64 {
        self.snapshot().await.map_or(0, |snapshot| snapshot.archived_through())
    }

    async fn gaps(&self) -> Vec<OffsetRange> {
        let Some(snapshot) = self.snapshot().await else { return Vec::new() };
        snapshot.gaps().await.unwrap().iter().map(|gap| gap.range).collect()
    }

    /// Batches beneath others, over all archives.
    async fn overlaps(&self) -> u32 {
        let Some(snapshot) = self.snapshot().await else { return 0 };
        snapshot.entries().await.unwrap().iter().map(|entry| entry.summary.overlaps).sum()
    }
}

fn tp() -> TopicPartition {
    TopicPartition::new(TopicName::new("t").unwrap(), 0).unwrap()
}

/// Ten records from `base` on.
fn batch(base: i64) -> Bytes {
    sample_batch(base, 10, 100, Codec::None).unwrap()
}

/// Other records at the same offsets.
fn other(base: i64) -> Bytes {
    sample_batch(base, 10, 90, Codec::None).unwrap()
}

fn waits_for(base: i64, last: i64) -> Option<Progress> {
    Some(Progress::Waiting(OffsetRange::new(base, last).unwrap()))
}

#[tokio::test]
async fn what_was_written_before_the_broker_started_is_archived_at_once() {
    let bench = Bench::new();
    bench.segment(0, -10, &[&batch(0), &batch(10)]);
    bench.segment(1, 10, &[&batch(20)]);
    assert_eq!(bench.round().await, Some(Progress::Done));
    assert_eq!(bench.through().await, 20);
}

/// Table: F16 I3 | a segment that grows and one that is torn
#[tokio::test]
async fn a_segment_that_may_grow_is_taken_when_it_was_idle_for_long_without_its_torn_tail() {
    let bench = Bench::new();
    bench.segment(0, 10, &[&batch(0), &batch(10)]);
    assert_eq!(bench.round().await, None);
    bench.clock.advance(IDLE - Duration::from_secs(1));
    OpenOptions::new()
        .append(true)
        .open(bench.path(0))
        .unwrap()
        .write_all(b"\x7e\xca\x02")
        .unwrap();
    bench.touch(0, 20);
    assert_eq!(bench.round().await, None, "it grew");
    bench.clock.advance(IDLE);
    assert_eq!(bench.round().await, Some(Progress::Done));
    assert_eq!(bench.through().await, 20);

    // It was not closed: what comes later is taken when it is idle again.
    bench.segment(0, 30, &[&batch(0), &batch(10), &batch(20)]);
    assert_eq!(bench.round().await, None);
    bench.clock.advance(IDLE);
    assert_eq!(bench.round().await, Some(Progress::Done));
    assert_eq!((bench.through().await, bench.overlaps().await), (30, 0));
}

#[tokio::test]
async fn a_rotated_segment_is_taken_once_it_has_settled() {
    let bench = Bench::new();
    bench.segment(0, 10, &[&batch(0), &batch(10), &batch(20), &batch(30)]);
    assert!(fs::metadata(bench.path(0)).unwrap().len() > ROTATED_BYTES_MIN);
    bench.segment(1, 11, &[&batch(40)]);
    assert_eq!(bench.round().await, None);
    bench.clock.advance(SETTLE);
    assert_eq!(bench.round().await, Some(Progress::Done));
    assert_eq!(bench.through().await, 40);
}

#[tokio::test]
async fn where_nothing_changes_nothing_is_due_and_nothing_is_asked_of_the_store() {
    let bench = Bench::new();
    bench.segment(0, -10, &[&batch(0)]);
    bench.segment(1, 10, &[&batch(10)]);
    assert_eq!(bench.round().await, Some(Progress::Done));
    let before = bench.store.requests();
    for second in 0..100 {
        bench.clock.advance(Duration::from_secs(1));
        bench.segment(1, 11 + second, &[&batch(10), &batch(20)]);
        assert!(!bench.due(), "a segment that grows is no news");
    }
    assert_eq!(bench.store.requests().since(&before).total(), 0);
}

#[tokio::test]
async fn a_hole_is_waited_for_and_filled_by_the_segment_that_has_it() {
    let bench = Bench::new();
    bench.segment(0, -10, &[&batch(0), &batch(20)]);
    bench.segment(1, 10, &[&batch(10), &batch(30)]);
    assert_eq!(bench.round().await, waits_for(10, 19));
    assert_eq!(bench.through().await, 10);
    assert!(!bench.due(), "time alone brings nothing yet");
    bench.clock.advance(IDLE);
    assert_eq!(bench.round().await, Some(Progress::Done));
    assert_eq!((bench.through().await, bench.gaps().await), (40, vec![]));
}

#[tokio::test]
async fn a_hole_becomes_a_gap_once_what_was_there_and_a_later_segment_are_closed() {
    let bench = Bench::new();
    let rotated = |from: i64| [batch(from), batch(from + 10), batch(from + 20), batch(from + 30)];
    bench.segment(0, -10, &[&batch(0), &batch(20)]);
    assert_eq!(bench.round().await, waits_for(10, 19));
    bench.segment(1, 10, &rotated(30).each_ref());
    bench.segment(2, 11, &[]);
    assert_eq!(bench.round().await, waits_for(10, 19), "a segment came, which is not closed");
    bench.clock.advance(SETTLE);
    assert_eq!(bench.round().await, Some(Progress::Done));
    assert_eq!(bench.gaps().await, [OffsetRange::new(10, 19).unwrap()]);
    assert_eq!(bench.through().await, 70);

    // It turns up all the same: the gap is filled.
    bench.segment(2, 12, &[&batch(10)]);
    assert_eq!(bench.round().await, None);
    bench.clock.advance(IDLE);
    assert_eq!(bench.round().await, Some(Progress::Done));
    assert_eq!((bench.gaps().await, bench.overlaps().await), (vec![], 0));
}

#[tokio::test]
async fn a_hole_that_nothing_fills_becomes_a_gap_after_the_timeout() {
    let bench = Bench::new();
    bench.segment(0, -10, &[&batch(0), &batch(20)]);
    assert_eq!(bench.round().await, waits_for(10, 19));
    bench.clock.advance(GAP_TIMEOUT - Duration::from_secs(1));
    assert_eq!(bench.round().await, None);
    bench.clock.advance(Duration::from_secs(1));
    assert_eq!(bench.round().await, Some(Progress::Done));
    assert_eq!((bench.through().await, bench.gaps().await.len()), (30, 1));
}

/// Table: F12 I3 I8 | two daemons of which one has a hole
#[tokio::test]
async fn a_hole_is_the_last_committers_to_declare_until_he_is_silent() {
    let bench = Bench::new();
    bench.segment(0, -10, &[&batch(0)]);
    let theirs =
        live(&bench.folder, &bench.clock, &bench.store, &bench.metrics, &bench.reports, "they");
    theirs.look().unwrap();
    assert_eq!(theirs.step(&tp()).await.1, Progress::Done);

    bench.segment(0, -9, &[&batch(0), &batch(20)]);
    assert_eq!(bench.round().await, Some(Progress::Standby));
    bench.clock.advance(STANDBY_WAIT);
    assert_eq!(bench.round().await, waits_for(10, 19));
    bench.segment(1, -8, &[&batch(30)]);
    assert_eq!(bench.round().await, waits_for(10, 19), "ours to declare, were it not theirs");
    bench.clock.advance(GAP_TIMEOUT);
    assert_eq!(bench.round().await, Some(Progress::Done));
    assert_eq!((bench.through().await, bench.gaps().await.len()), (40, 1));
}

/// Table: F15 I3 | a segment that is emptied and filled again
#[tokio::test]
async fn a_segment_emptied_and_filled_again_adds_and_takes_nothing_away() {
    let bench = Bench::new();
    bench.segment(0, 10, &[&batch(0), &batch(10)]);
    bench.due();
    bench.clock.advance(IDLE);
    assert_eq!(bench.round().await, Some(Progress::Done));
    bench.segment(0, 20, &[&other(10), &batch(20)]);
    assert_eq!(bench.round().await, None);
    bench.clock.advance(IDLE);
    assert_eq!(bench.round().await, Some(Progress::Done));
    assert_eq!((bench.through().await, bench.overlaps().await), (30, 1));
}

/// Table: F15 I3 | segments between the look and the step
#[tokio::test]
async fn a_segment_that_vanished_or_changed_since_the_look_is_a_retry_and_no_failure() {
    let bench = Bench::new();
    bench.segment(0, -10, &[&batch(0)]);
    bench.segment(1, -9, &[&batch(10)]);
    assert!(bench.due());
    fs::remove_file(bench.path(1)).unwrap();
    let (report, progress) = bench.live.step(&tp()).await;
    assert_eq!((progress, report.error.is_none()), (Progress::Changed, true));
    bench.segment(2, -8, &[&batch(10)]);
    bench.clock.advance(Duration::from_secs(1));
    assert!(bench.due());
    bench.segment(2, -8, &[&batch(10), &batch(20)]);
    assert_eq!(bench.live.step(&tp()).await.1, Progress::Changed);
    bench.clock.advance(Duration::from_secs(1));
    assert_eq!(bench.round().await, Some(Progress::Done));
    assert_eq!(bench.through().await, 30);
}

#[tokio::test]
async fn what_fails_is_left_alone_for_a_while_and_then_done() {
    let bench = Bench::new();
    bench.segment(0, -10, &[&batch(0)]);
    // A file where the scratch folder should be.
    fs::write(bench.folder.path().join("scratch"), "").unwrap();
    let Some(Progress::Failed(leave)) = bench.round().await else { panic!("it did not fail") };
    assert!(!bench.due());
    bench.clock.advance(leave.time());
    fs::remove_file(bench.folder.path().join("scratch")).unwrap();
    assert_eq!(bench.round().await, Some(Progress::Done));
    assert!(matches!(leave, Leave::Briefly(_) | Leave::Quarantined(_)));
}

#[tokio::test]
async fn a_topic_that_is_deleted_and_made_anew_is_looked_at_anew() {
    let bench = Bench::new();
    bench.segment(0, -10, &[&batch(0)]);
    assert_eq!(bench.round().await, Some(Progress::Done));
    fs::remove_dir_all(bench.folder.path().join("wal/t")).unwrap();
    assert_eq!(bench.round().await, None);
    assert_eq!(bench.live.step(&tp()).await.1, Progress::Idle);
    bench.segment(0, -5, &[&batch(0), &batch(10)]);
    assert_eq!(bench.round().await, Some(Progress::Done));
    assert_eq!(bench.through().await, 20);
}

#[tokio::test]
async fn a_topic_made_anew_one_partition_after_the_other_is_a_life_of_its_own() {
    let bench = Bench::new();
    let wal = bench.folder.path().join("wal");
    let beside = |batch: &Bytes| {
        let mut segment = WalWriter::create(&wal, "t", 1, 0).unwrap();
        segment.append(batch).unwrap();
        segment.finish().unwrap();
        let time = UNIX_EPOCH + Duration::from_millis((STARTED - 10_000) as u64);
        let file = File::options().append(true).open(wal.join("t/1/wal_1_0.log")).unwrap();
        file.set_modified(time).unwrap();
    };
    bench.segment(0, -10, &[&batch(0), &batch(10)]);
    beside(&batch(0));
    assert_eq!(bench.round().await, Some(Progress::Done));

    // Seen when one partition is deleted and the other is not.
    fs::remove_dir_all(wal.join("t/0")).unwrap();
    bench.live.look().unwrap();
    fs::remove_dir_all(wal.join("t/1")).unwrap();
    bench.segment(0, -9, &[&other(0), &other(10), &other(20)]);
    beside(&other(0));
    assert_eq!(bench.round().await, Some(Progress::Done));
    let snapshot = bench.snapshot().await.unwrap();
    assert_eq!((snapshot.incarnation(), snapshot.archived_through()), (1, 30));
}
