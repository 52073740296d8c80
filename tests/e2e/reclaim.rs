//! Deleting segments of the broker's, with `--reclaim`: a segment with one batch that
//! is damaged, not committed or not proven is never told releasable and never
//! deleted. Tested by trying.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tierd::archive::ArchiveOptions;
use tierd::clock::{Clock, ManualClock};
use tierd::config::Config;
use tierd::daemon::Rooms;
use tierd::indexer::{Indexer, LiveIndexer, LiveOptions, Progress};
use tierd::read::ReadStats;
use tierd::record::{Codec, TopicName, TopicPartition};
use tierd::store::Store;
use tierd::wal::classify::Rules;
use tierd::wal::{BrokerStart, WalDir, WalFormat};
use tierd_tests::broker::Broker;
use tierd_tests::chronik::{FrameParts, WalWriter, damage, sample_batch};
use tierd_tests::process::Tierd;

use crate::TIERD;

/// When the broker started, milliseconds since 1970.
const STARTED: i64 = 1_700_000_000_000;
/// Random WALs of every change.
const RECLAIMS: u64 = 150;

/// A segment as the test wrote it.
#[derive(Debug, Default)]
struct Written {
    batches: Vec<Bytes>,
    /// Whether the broker will never write to it again.
    closed: bool,
    /// Whether a byte of it was changed.
    damaged: bool,
    /// Whether it was changed before it was first read.
    damaged_unread: bool,
}

struct Trial {
    folder: tempfile::TempDir,
    clock: Arc<ManualClock>,
    rooms: Rooms,
    live: Arc<LiveIndexer>,
    wal: BTreeMap<u64, Written>,
    mark: i64,
}

fn tp() -> TopicPartition {
    TopicPartition::new(TopicName::new("t").unwrap(), 0).unwrap()
}

fn identity(wire: &Bytes) -> (i64, usize, u32) {
    (i64::from_be_bytes(wire[..8].try_into().unwrap()), wire.len(), crc32c::crc32c(wire))
}

impl Trial {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("wal")).unwrap();
        let config = Config { writer_id: Some("me".to_owned()), ..Config::default() };
        let rooms = Rooms::over(Store::open("memory:").unwrap(), &config).unwrap();
        let clock = ManualClock::at(STARTED + 1_000_000);
        let live = live(&rooms, folder.path(), &clock);
        Self { folder, clock, rooms, live, wal: BTreeMap::new(), mark: 0 }
    }

    fn path(&self, id: u64) -> PathBuf {
        self.folder.path().join(format!("wal/t/0/wal_0_{id}.log"))
    }

    fn write(&mut self, id: u64, batches: Vec<Bytes>, closed: bool) {
        let mut writer = WalWriter::create(&self.folder.path().join("wal"), "t", 0, id).unwrap();
        for batch in &batches {
            writer.append(batch).unwrap();
        }
        writer.finish().unwrap();
        stamp(&self.path(id), if closed { -60 } else { 60 });
        self.wal.insert(id, Written { batches, closed, ..Written::default() });
    }

    /// Changes one byte, with no trace but that.
    fn rot(&mut self, id: u64, random: &mut StdRng) {
        let path = self.path(id);
        let Ok(metadata) = fs::metadata(&path) else { return };
        if metadata.len() == 0 {
            return;
        }
        damage(&path, random.random_range(0..metadata.len()), 0x20).unwrap();
        File::options()
            .append(true)
            .open(&path)
            .unwrap()
            .set_modified(metadata.modified().unwrap())
            .unwrap();
        self.wal.get_mut(&id).unwrap().damaged = true;
    }

    /// Looks and steps until nothing is due, checking after each.
    async fn settle(&mut self) {
        let mut last = None;
        for _ in 0..20 {
            if self.live.look().unwrap().due.is_empty() {
                return;
            }
            let (report, progress) = self.live.step(&tp()).await;
            let archived = self.archived().await;
            for id in &report.releasable {
                let segment = &self.wal[id];
                assert!(segment.closed, "{id} may still grow");
                // What rots after it was read is found before it is deleted.
                assert!(!segment.damaged_unread, "{id} is damaged");
                assert!(
                    segment.batches.iter().all(|one| archived.contains(&identity(one))),
                    "{id} holds a batch that is not archived"
                );
            }
            self.check().await;
            last = Some((report, progress));
            if matches!(progress, Progress::Failed(_) | Progress::Changed) {
                self.clock.advance(Duration::from_secs(61));
            }
        }
        panic!("it does not come to rest: {last:?}");
    }

    /// Every batch in the archive, by its bytes' checksum.
    async fn archived(&self) -> BTreeSet<(i64, usize, u32)> {
        let snapshot = self.rooms.catalog.load(&tp(), Some(0)).await.unwrap();
        let mut all = BTreeSet::new();
        let Some(snapshot) = snapshot else { return all };
        for entry in snapshot.entries().await.unwrap() {
            let list = self.rooms.reader.batch_list(&entry, &ReadStats::default()).await.unwrap();
            let batches = list.chain().chain(list.overlaps());
            all.extend(batches.map(|one| (one.base, one.len as usize, one.crc32c)));
        }
        all
    }

    async fn check(&mut self) {
        let archived = self.archived().await;
        let there: BTreeSet<u64> =
            self.wal.keys().copied().filter(|id| self.path(*id).try_exists().unwrap()).collect();
        for (id, segment) in &self.wal {
            let missing = segment.batches.iter().find(|one| !archived.contains(&identity(one)));
            if !there.contains(id) {
                assert!(segment.closed && !segment.damaged, "{id} was deleted: {segment:?}");
                assert_eq!(missing, None, "{id} was deleted with a batch nobody has");
                assert!(there.iter().any(|one| one > id), "{id} was the newest");
            }
        }
        let ledger = self.rooms.catalog.ledger(&tp()).await.unwrap();
        let mark = ledger.map_or(0, |ledger| ledger.releasable_through());
        assert!(mark >= self.mark, "{mark} is behind {}", self.mark);
        self.mark = mark;
        for segment in self.wal.values().filter(|segment| !segment.damaged) {
            for batch in &segment.batches {
                let identity = identity(batch);
                let proven = archived.contains(&identity);
                assert!(proven || identity.0 >= mark, "{mark} passed {identity:?}");
            }
        }
    }
}

fn stamp(path: &Path, seconds: i64) {
    let time = UNIX_EPOCH + Duration::from_millis((STARTED + seconds * 1000) as u64);
    File::options().append(true).open(path).unwrap().set_modified(time).unwrap();
}

fn live(rooms: &Rooms, folder: &Path, clock: &Arc<ManualClock>) -> Arc<LiveIndexer> {
    let indexer = Indexer::new(
        WalFormat::Chronik,
        Arc::clone(&rooms.catalog),
        rooms.store.clone(),
        rooms.reader.clone(),
        folder.join("scratch"),
        ArchiveOptions::default(),
        rooms.metrics.clone(),
    );
    let options = LiveOptions {
        broker: BrokerStart::At(STARTED),
        rules: Rules::default(),
        gap_timeout: Duration::from_secs(3600),
        standby_wait: Duration::from_secs(3600),
        reclaim: true,
    };
    let wal = WalDir::open(&folder.join("wal"), WalFormat::Chronik).unwrap();
    let clock: Arc<dyn Clock> = Arc::<ManualClock>::clone(clock);
    Arc::new(LiveIndexer::new(indexer, wal, options, clock, Arc::new(|| 1.0)))
}

/// One random WAL, and what befalls it. Returns how many segments were deleted and how
/// many that are damaged or hold what is not archived stayed.
async fn trial(seed: u64) -> (usize, usize) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut trial = Trial::new();
    let count = random.random_range(3..7_u64);
    // Ten offsets a batch, some never written, some out of order, some written twice.
    let mut next = 0;
    for id in 0..count {
        let mut batches = Vec::new();
        for _ in 0..random.random_range(0..5) {
            if random.random_bool(0.08) {
                next += 10;
            }
            let base = if random.random_bool(0.1) { next.max(10) - 10 } else { next };
            batches.push(sample_batch(base, 10, random.random_range(20..90), Codec::None).unwrap());
            next += 10;
        }
        if batches.len() > 1 && random.random_bool(0.4) {
            let last = batches.len() - 1;
            batches.swap(0, last);
        }
        let closed = id + 1 < count && random.random_bool(0.85);
        trial.write(id, batches, closed);
        if random.random_bool(0.25) {
            trial.rot(id, &mut random);
            trial.wal.get_mut(&id).unwrap().damaged_unread = trial.wal[&id].damaged;
        }
    }
    // Some trials begin too soon after the start of the broker: read now, deleted later.
    let early = random.random_bool(0.5);
    if early {
        trial.clock.set_wall_ms(STARTED + 120_000);
    }
    trial.settle().await;
    if early {
        let gone = trial.wal.keys().any(|id| !trial.path(*id).try_exists().unwrap());
        assert!(!gone, "deleted while the broker may still read its old files");
        if random.random_bool(0.5) {
            trial.rot(random.random_range(0..count), &mut random);
        }
        trial.clock.set_wall_ms(STARTED + 2_000_000);
        trial.clock.advance(Duration::from_secs(2_000));
        trial.settle().await;
    }
    if random.random_bool(0.5) {
        // Killed and started again, with nothing but the store.
        trial.live = live(&trial.rooms, trial.folder.path(), &trial.clock);
        trial.settle().await;
    }
    trial.clock.advance(Duration::from_secs(3_700));
    trial.settle().await;
    let deleted = trial.wal.keys().filter(|id| !trial.path(**id).try_exists().unwrap()).count();
    let kept = trial.wal.values().filter(|segment| segment.damaged).count();
    (deleted, kept)
}

/// Table: F15 F16 I1 I2 | segments before and after they are read | RECLAIMS
/// TIERD_TEST_RECLAIMS
#[tokio::test]
async fn what_is_damaged_uncommitted_or_unproven_is_never_told_and_never_deleted() {
    let trials =
        std::env::var("TIERD_TEST_RECLAIMS").map_or(RECLAIMS, |text| text.parse().unwrap());
    let (mut deleted, mut damaged) = (0, 0);
    for seed in 0..trials {
        println!("seed {seed}");
        let (gone, kept) = trial(seed).await;
        deleted += gone;
        damaged += kept;
    }
    println!("{trials} trials: {deleted} segments deleted, {damaged} damaged ones kept");
    assert!(deleted > trials as usize / 2 && damaged > trials as usize / 4);
}

/// Moves the last change of every file below `folder` into the past.
fn age(folder: &Path, by: Duration) {
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            age(&entry.path(), by);
        } else {
            let file = File::options().append(true).open(entry.path()).unwrap();
            file.set_modified(SystemTime::now() - by).unwrap();
        }
    }
}

/// Every whole batch in the files of a partition.
fn on_disk(folder: &Path) -> Vec<Bytes> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let bytes = fs::read(entry.path()).unwrap();
        let mut rest = &bytes[..];
        while let Ok((parts, len)) = FrameParts::decode(rest) {
            all.extend(parts.options.get(2).cloned().flatten());
            rest = &rest[len..];
        }
    }
    all
}

/// Table: F15 I1 I3 | segments deleted beside a broker that writes
#[test]
fn beside_a_broker_that_writes_the_wal_and_the_archives_stay_whole() {
    let folder = tempfile::tempdir().unwrap();
    let tierd = Tierd::new(TIERD, folder.path());
    let (wal, started) = (folder.path().join("wal"), folder.path().join("started"));
    let partitions = [("orders", 0), ("orders", 1)];
    let mut broker = Broker::new(&wal, &started, &partitions, 48 << 10, 31).unwrap();
    for _ in 0..3 {
        broker.start().unwrap();
        (0..60).for_each(|_| broker.produce().unwrap());
        broker.kill().unwrap();
    }
    // What these processes wrote is half an hour old; the last one began after it.
    broker.start().unwrap();
    age(&wal, Duration::from_secs(1800));
    let began = File::options().append(true).open(&started).unwrap();
    began.set_modified(SystemTime::now() - Duration::from_secs(1200)).unwrap();
    let files = |number: i32| fs::read_dir(wal.join(format!("orders/{number}"))).unwrap().count();
    let before = files(0) + files(1);
    let started = started.to_str().unwrap();
    let flags =
        ["--reclaim", "--broker-started-at", started, "--settle", "100ms", "--gap-timeout", "1s"];
    let mut random = StdRng::seed_from_u64(5);
    for round in 0..6 {
        let daemon = tierd.live(&wal, &flags);
        let end = Instant::now()
            + Duration::from_millis(if round < 5 { random.random_range(50..900) } else { 4000 });
        while Instant::now() < end {
            broker.produce().unwrap();
            std::thread::sleep(Duration::from_millis(20));
        }
        drop(daemon); // SIGKILL.
    }
    broker.stop().unwrap();
    let mut deleted = 0;
    for (topic, number) in broker.partitions() {
        let number_text = number.to_string();
        let all = [
            "fetch",
            &topic,
            &number_text,
            "--offset",
            "0",
            "--format",
            "raw",
            "--overlaps",
            "all",
        ];
        let mut wire = Bytes::from(tierd.run(&all).stdout);
        let mut held = on_disk(&wal.join(&topic).join(&number_text));
        let left = held.len();
        while !wire.is_empty() {
            let len = 12 + i32::from_be_bytes(wire[8..12].try_into().unwrap()) as usize;
            held.push(wire.split_to(len));
        }
        held.sort_unstable();
        let written = broker.surviving(&topic, number);
        let lost = written.iter().filter(|one| held.binary_search(one).is_err()).count();
        assert_eq!(lost, 0, "{topic}-{number}: batches that nobody has any more");
        deleted += written.len().saturating_sub(left);
    }
    println!("{before} files of earlier processes; {deleted} batches are in the archive alone");
    assert!(deleted > 100, "hardly anything was deleted: {deleted}");
    let _ = tierd.run(&["verify", "--deep"]).ok();
}

#[test]
fn deleting_without_knowing_when_the_broker_started_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let wal = folder.path().join("wal");
    fs::create_dir(&wal).unwrap();
    let tierd = Tierd::new(TIERD, folder.path());
    let refused = tierd.run(&["run", "--once", "--reclaim", "--wal-dir", wal.to_str().unwrap()]);
    assert_eq!(refused.code, 2);
    assert!(refused.stderr.contains("--broker-started-at"), "{}", refused.stderr);
}
