//! The scrub: what it finds, what it lets go again, and that it takes nothing for damage
//! that is none; step by step with a clock by hand, and under a running daemon whose
//! objects are flipped beneath it.

use std::collections::BTreeSet;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use tierd::catalog::{ArchiveEntry, Edit};
use tierd::clock::{Clock, ManualClock};
use tierd::metrics::Metrics;
use tierd::read::{ArchiveReader, ReadOptions};
use tierd::store::Store;
use tierd::upkeep::{Health, Scrub, ScrubOptions, ScrubStep};
use tierd_proto::v1;
use tierd_tests::fixture;
use tierd_tests::process::{Served, Tierd};
use tierd_tests::reads::{fetch, request};
use tierd_tests::world::{Size, World, catalog, tp};

use crate::TIERD;

const DAY: Duration = Duration::from_secs(24 * 3600);
const MINUTES: Duration = Duration::from_secs(11 * 60);

/// What the bench's world has.
const PARTITIONS: [(&str, i32); 3] = [("t", 0), ("t", 1), ("u", 0)];

struct Bench {
    objects: Arc<dyn ObjectStore>,
    world: World,
    reader: ArchiveReader,
    metrics: Metrics,
    clock: Arc<ManualClock>,
    scrub: Scrub,
}

impl Bench {
    /// Where nobody waits: a second is worth more than all there is.
    async fn new() -> Self {
        Self::at(NonZeroU64::new(1 << 40).unwrap()).await
    }

    async fn at(bytes_per_second: NonZeroU64) -> Self {
        let objects: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let partitions = vec![("t", 0, 4), ("t", 1, 3), ("u", 0, 2)];
        let size = Size { partitions, records: 30, one_without_index_in: 3 };
        let world = World::over(Arc::clone(&objects), 5, &size).await;
        let store = Store::new(Arc::clone(&objects), "");
        let clock = ManualClock::at(1_800_000_000_000);
        let as_clock: Arc<dyn Clock> = Arc::<ManualClock>::clone(&clock);
        let metrics = Metrics::new(Arc::clone(&as_clock)).unwrap();
        let reader = ArchiveReader::new(store.clone(), ReadOptions::default());
        let options = ScrubOptions { bytes_per_second, every: Some(DAY) };
        let catalog = catalog(&store, "scrub");
        let scrub = Scrub::new(store, catalog, reader.clone(), metrics.clone(), as_clock, options);
        Self { objects, world, reader, metrics, clock, scrub }
    }

    /// Steps until nothing is due; what was looked at, and whether a round ended.
    async fn rest(&mut self) -> (Vec<(String, Health)>, bool) {
        let (mut checked, mut ended) = (Vec::new(), false);
        loop {
            match self.scrub.step().await.unwrap() {
                ScrubStep::Checked(one) => checked.push((one.object, one.health)),
                ScrubStep::Ended => ended = true,
                ScrubStep::Listed => {}
                ScrubStep::Rests(_) => return (checked, ended),
            }
        }
    }

    async fn entries(&self, topic: &str, partition: i32) -> Vec<ArchiveEntry> {
        let snapshot = self.world.catalog.load(&tp(topic, partition), None).await.unwrap().unwrap();
        snapshot.entries().await.unwrap()
    }

    async fn flip(&self, entry: &ArchiveEntry) -> Bytes {
        let path = Path::from(entry.key().to_string());
        let whole = self.objects.get(&path).await.unwrap().bytes().await.unwrap();
        let mut flipped = whole.to_vec();
        flipped[700] ^= 8;
        self.objects.put(&path, flipped.into()).await.unwrap();
        whole
    }

    async fn put(&self, entry: &ArchiveEntry, bytes: Bytes) {
        self.objects.put(&Path::from(entry.key().to_string()), bytes.into()).await.unwrap();
    }

    fn quarantined(&self) -> BTreeSet<String> {
        let entries = self.reader.quarantine().entries();
        entries.iter().map(|entry| entry.key().to_string()).collect()
    }

    fn shows(&self, line: &str) {
        let page = self.metrics.page().unwrap();
        assert!(page.lines().any(|found| found == line), "no {line:?} in\n{page}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_round_reads_everything_once_and_finds_nothing_where_nothing_is() {
    let mut bench = Bench::new().await;
    assert_eq!(bench.rest().await, (Vec::new(), false), "not right after the start");
    bench.shows("tierd_scrub_last_success_timestamp_seconds 0");
    bench.clock.advance(MINUTES);
    let (checked, ended) = bench.rest().await;
    let names: BTreeSet<_> = checked.iter().map(|(name, _)| name.clone()).collect();
    assert_eq!((checked.len(), names.len(), ended), (9, 9, true));
    assert!(checked.iter().all(|(_, health)| !health.is_problem()), "{checked:?}");
    assert!(bench.quarantined().is_empty());
    bench.shows("tierd_scrub_archives_total{result=\"well\"} 9");
    bench.shows("tierd_scrub_archives_total{result=\"damaged\"} 0");
    bench.shows("tierd_scrub_last_success_timestamp_seconds 1800000660");
    // The next round comes in its time, and not before.
    bench.clock.advance(DAY / 2);
    assert_eq!(bench.rest().await.0.len(), 0);
    bench.clock.advance(DAY / 2);
    assert_eq!(bench.rest().await.0.len(), 9);
}

/// Table: F9 F11 I6 | stored archives that nobody reads
#[tokio::test(flavor = "multi_thread")]
async fn what_is_damaged_is_in_quarantine_until_it_is_well_again() {
    let mut bench = Bench::new().await;
    let entries = bench.entries("t", 0).await;
    let (flipped, lost) = (&entries[1], &entries[3]);
    let whole = bench.flip(flipped).await;
    let path = Path::from(lost.key().to_string());
    let held = bench.objects.get(&path).await.unwrap().bytes().await.unwrap();
    bench.objects.delete(&path).await.unwrap();
    bench.clock.advance(MINUTES);
    let (checked, ended) = bench.rest().await;
    assert!(ended, "damage does not end a round");
    let bad: BTreeSet<_> =
        checked.into_iter().filter(|(_, health)| health.is_problem()).map(|one| one.0).collect();
    assert_eq!(bad, BTreeSet::from([flipped.key().to_string(), lost.key().to_string()]));
    assert_eq!(bench.quarantined(), bad);
    // Looked at again long before the next round; one is restored.
    bench.put(flipped, whole).await;
    bench.clock.advance(MINUTES);
    assert_eq!(bench.rest().await.0.len(), 2);
    assert_eq!(bench.quarantined(), BTreeSet::from([lost.key().to_string()]));
    bench.put(lost, held).await;
    bench.clock.advance(MINUTES);
    assert_eq!(bench.rest().await.0.len(), 1);
    assert!(bench.quarantined().is_empty());
}

/// Table: F23 I6 | archives deleted behind the scrub
#[tokio::test(flavor = "multi_thread")]
async fn what_was_dropped_while_it_was_looked_for_is_no_loss() {
    let mut bench = Bench::new().await;
    bench.clock.advance(MINUTES);
    // The round knows the archives of the first partition, and then they go.
    while bench.scrub.step().await.unwrap() == ScrubStep::Listed {}
    for (topic, partition) in PARTITIONS {
        let entries = bench.entries(topic, partition).await;
        let tp = tp(topic, partition);
        let base = bench.world.catalog.load(&tp, None).await.unwrap();
        let end = base.as_ref().unwrap().archived_through();
        let edit = Edit { remove: entries.clone(), log_start: Some(end), ..Edit::default() };
        bench.world.catalog.commit(&tp, 0, base, edit).await.unwrap();
        for entry in entries {
            bench.objects.delete(&Path::from(entry.key().to_string())).await.unwrap();
        }
    }
    let (checked, ended) = bench.rest().await;
    assert!(ended && checked.iter().any(|(_, health)| *health == Health::Lost), "{checked:?}");
    assert!(bench.quarantined().is_empty(), "{:?}", bench.quarantined());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_restarted_more_often_than_a_round_takes_comes_to_everything() {
    let bench = Bench::new().await;
    let mut first = BTreeSet::new();
    for minute in 0..200 {
        let clock = ManualClock::at(1_800_000_000_000 + 61_234 * minute);
        let as_clock: Arc<dyn Clock> = Arc::<ManualClock>::clone(&clock);
        let store = Store::new(Arc::clone(&bench.objects), "");
        let catalog = catalog(&store, "scrub");
        let options = ScrubOptions { bytes_per_second: NonZeroU64::MAX, every: Some(DAY) };
        let (reader, metrics) = (bench.reader.clone(), bench.metrics.clone());
        let mut scrub = Scrub::new(store, catalog, reader, metrics, as_clock, options);
        clock.advance(MINUTES);
        let one = loop {
            match scrub.step().await.unwrap() {
                ScrubStep::Listed => {}
                ScrubStep::Checked(one) => break one,
                other => panic!("{other:?}"),
            }
        };
        first.insert(one.object);
    }
    assert_eq!(first.len(), 9, "{first:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_round_is_not_faster_than_its_rate() {
    const RATE: u64 = 100_000;
    let mut bench = Bench::at(NonZeroU64::new(RATE).unwrap()).await;
    bench.clock.advance(MINUTES);
    let began = Instant::now();
    assert_eq!(bench.rest().await.0.len(), 9);
    let took = began.elapsed();
    let mut lengths = Vec::new();
    for (topic, partition) in PARTITIONS {
        let entries = bench.entries(topic, partition).await;
        lengths.extend(entries.iter().map(|entry| entry.summary.length));
    }
    let (bytes, largest) = (lengths.iter().sum::<u64>(), *lengths.iter().max().unwrap());
    bench.shows(&format!("tierd_scrub_bytes_total {bytes}"));
    assert!(bytes > 3 * largest, "{lengths:?}");
    // What is read last is paid for by what would come next.
    let least = Duration::from_secs_f64((bytes - largest) as f64 / RATE as f64);
    assert!(took >= least, "{bytes} bytes in {took:?}");
}

/// Table: F6 I6 I13 | requests of the scrub
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_does_not_answer_ends_no_round_and_accuses_nobody() {
    use tierd_tests::counting::Op;
    use tierd_tests::faults::{Fault, FaultStore};
    let below: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let size = Size { partitions: vec![("t", 0, 3)], records: 10, one_without_index_in: 1 };
    let _world = World::over(Arc::clone(&below), 6, &size).await;
    let faulty = FaultStore::new(below);
    let objects: Arc<dyn ObjectStore> = Arc::<FaultStore>::clone(&faulty);
    let store = Store::new(objects, "").with_backoff(Duration::ZERO);
    let clock = ManualClock::at(0);
    let as_clock: Arc<dyn Clock> = Arc::<ManualClock>::clone(&clock);
    let metrics = Metrics::new(Arc::clone(&as_clock)).unwrap();
    let reader = ArchiveReader::new(store.clone(), ReadOptions::default());
    let options = ScrubOptions { bytes_per_second: NonZeroU64::MAX, every: Some(DAY) };
    let catalog = catalog(&store, "scrub");
    let mut scrub = Scrub::new(store, catalog, reader.clone(), metrics, as_clock, options);
    clock.advance(MINUTES);
    let (mut failed, mut checked) = (0, 0);
    faulty.inject(Op::GetRange, "archive/", Fault::Unavailable, 7);
    faulty.inject(Op::Head, "archive/", Fault::Unavailable, 4);
    loop {
        match scrub.step().await {
            Err(_) => failed += 1,
            Ok(ScrubStep::Checked(one)) => {
                assert!(!one.health.is_problem(), "{one:?}");
                checked += 1;
            }
            Ok(ScrubStep::Ended) => break,
            Ok(_) => {}
        }
    }
    assert!(failed > 1, "{failed} steps failed");
    assert_eq!((checked, reader.quarantine().count()), (3, 0));
}

/// Waits until `series` has `value`.
fn wait_for(daemon: &Served, series: &str, value: f64) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let found = daemon.metrics()[series];
        if found == value {
            return;
        }
        assert!(Instant::now() < deadline, "{series} is {found} and not {value}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Table: F9 I6 | files of a directory under the process
#[tokio::test(flavor = "multi_thread")]
async fn bits_that_flip_under_a_running_daemon_are_found_told_and_never_served() {
    let folder = tempfile::tempdir().unwrap();
    let tierd = Tierd::new(TIERD, folder.path());
    // Two archives of one partition: the broker's segments one after the other.
    let wal = folder.path().join("wal");
    let from = fixture::wal().join("busy/0");
    std::fs::create_dir_all(wal.join("busy/0")).unwrap();
    let mut segments: Vec<_> =
        std::fs::read_dir(from).unwrap().map(|entry| entry.unwrap().path()).collect();
    segments.sort();
    for segment in &segments {
        std::fs::copy(segment, wal.join("busy/0").join(segment.file_name().unwrap())).unwrap();
        let _ = tierd.archive(&wal).ok();
    }
    let settings = folder.path().join("tierd.toml");
    std::fs::write(&settings, "[scrub]\nrate = '1GiB'\nevery = '1s'\n").unwrap();
    let mut command = tierd.command();
    command.arg("--config").arg(&settings).args(["serve", "--listen", "127.0.0.1:0"]);
    let daemon = Served::start(command);
    let before = fetch(&daemon, request("busy", 0)).await.unwrap();
    let listed = tierd.run(&["ls", "busy", "0", "--json"]).ok().text();
    let rows: Vec<serde_json::Value> =
        listed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let first = |row: &serde_json::Value| row["first"].as_i64();
    let victim =
        rows.iter().filter(|row| first(row).is_some()).max_by_key(|row| first(row)).unwrap();
    let range = (victim["first"].as_i64().unwrap(), victim["last"].as_i64().unwrap());
    assert!(range.0 > 0, "{listed}");
    let object = folder.path().join("store").join(victim["object"].as_str().unwrap());
    let whole = std::fs::read(&object).unwrap();
    let mut flipped = whole.clone();
    for at in (600..flipped.len() - 4096).step_by(4096) {
        flipped[at] ^= 0x10;
    }
    // In place: the object is never away.
    std::fs::write(&object, &flipped).unwrap();
    // Nobody has to read it for it to be found.
    wait_for(&daemon, "tierd_quarantined_archives", 1.0);
    assert!(daemon.metrics()["tierd_scrub_archives_total{result=\"damaged\"}"] >= 1.0);

    // A daemon with empty caches gives what is whole, and says of the rest that it is
    // damaged: never wrong bytes, never fewer batches without a word.
    let fresh = tierd.serve(&[]);
    let whole_part = fetch(&fresh, request("busy", 0)).await.unwrap();
    let trailer = &whole_part.trailers[0];
    assert_eq!(trailer.status, v1::Status::DataLoss as i32, "{trailer:?}");
    assert!(before.wire.starts_with(&whole_part.wire) && !whole_part.wire.is_empty());
    assert!(trailer.next_offset >= range.0 && trailer.next_offset <= range.1, "{trailer:?}");
    assert_eq!(fresh.metrics()["tierd_quarantined_archives"], 1.0);

    std::fs::write(&object, &whole).unwrap();
    wait_for(&daemon, "tierd_quarantined_archives", 0.0);
    let after = fetch(&fresh, request("busy", 0)).await.unwrap();
    assert_eq!(after.wire, before.wire);
    assert!(daemon.metrics()["tierd_scrub_last_success_timestamp_seconds"] > 1.7e9);
}
