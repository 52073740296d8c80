//! What a broker may delete, and which life of a topic a WAL belongs to: tried on
//! segments with real frames.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::Value;
use tierd::config::Config;
use tierd::daemon::Rooms;
use tierd::grpc;
use tierd::indexer::{PartitionReport, RunReport};
use tierd::listen::ListenAddress;
use tierd::record::{Codec, TopicName, TopicPartition};
use tierd::store::Store;
use tierd::wal::{WalDir, WalFormat};
use tierd_client::{ArchiveClient, ArchiveError, WatchItem};
use tierd_tests::chronik::{WalWriter, damage, sample_batch};
use tierd_tests::fixture;
use tierd_tests::process::Tierd;
use tokio_util::sync::CancellationToken;

use crate::TIERD;

const TOPIC: &str = "orders";

/// A WAL directory and a store in memory.
struct Bench {
    folder: tempfile::TempDir,
    store: Store,
}

impl Bench {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), store: Store::open("memory:").unwrap() }
    }

    fn wal(&self) -> PathBuf {
        let wal = self.folder.path().join("wal");
        std::fs::create_dir_all(&wal).unwrap();
        wal
    }

    /// A process that has just started: nothing is remembered but in the store.
    fn rooms(&self, writer: &str) -> (Rooms, Config) {
        let config = Config {
            writer_id: Some(writer.to_owned()),
            store: Some("memory:".to_owned()),
            data_dir: Some(self.folder.path().join("data")),
            ..Config::default()
        };
        (Rooms::over(self.store.clone(), &config).unwrap(), config)
    }

    async fn run_as(&self, writer: &str) -> RunReport {
        let (rooms, config) = self.rooms(writer);
        archive(&rooms, &config, &self.wal()).await
    }

    async fn run(&self) -> RunReport {
        self.run_as("one").await
    }

    /// The one partition of a WAL that has one.
    async fn run_one(&self) -> PartitionReport {
        let mut report = self.run().await;
        assert_eq!(report.partitions.len(), 1);
        let partition = report.partitions.remove(0);
        assert!(partition.error.is_none(), "{:?}", partition.error);
        partition
    }
}

async fn archive(rooms: &Rooms, config: &Config, wal: &Path) -> RunReport {
    let wal = WalDir::open(wal, WalFormat::Chronik).unwrap();
    let (indexer, _data) = rooms.indexer(config, wal, config.live(true).unwrap()).unwrap();
    indexer.run_once(|_| {}).await.unwrap()
}

/// Ten records from `base` on; `salt` makes other bytes at the same offsets.
fn ten(base: i64, salt: usize) -> Bytes {
    sample_batch(base, 10, 20 + salt, Codec::None).unwrap()
}

/// Writes a segment of batches of ten offsets at `bases`.
fn segment(wal: &Path, partition: i32, id: u64, bases: &[i64], salt: usize) -> PathBuf {
    let mut writer = WalWriter::create(wal, TOPIC, partition, id).unwrap();
    for base in bases {
        writer.append(&ten(*base, salt)).unwrap();
    }
    writer.finish().unwrap()
}

#[tokio::test]
async fn what_is_archived_whole_may_be_deleted_and_a_second_run_says_the_same() {
    let bench = Bench::new();
    segment(&bench.wal(), 0, 0, &[0, 10], 0);
    segment(&bench.wal(), 0, 1, &[30, 20], 0);
    segment(&bench.wal(), 0, 2, &[], 0);
    for run in 0..2 {
        let found = bench.run_one().await;
        assert_eq!((found.archived_through, found.releasable_through), (40, 40), "run {run}");
        assert_eq!(found.releasable, [0, 1, 2]);
    }
    // A copy of a committed batch is proven as well as the batch.
    segment(&bench.wal(), 0, 3, &[10], 0);
    assert_eq!(bench.run_one().await.releasable, [0, 1, 2, 3]);
}

/// Table: F16 I1 | every part of a segment
#[tokio::test]
async fn a_damaged_segment_is_never_told_releasable_wherever_the_damage_lies() {
    let layout: [&[i64]; 4] = [&[0, 10], &[40, 20], &[30, 50], &[60, 70]];
    for victim in 0..layout.len() {
        for nth in 0..2 {
            let bench = Bench::new();
            let wal = bench.wal();
            let mut paths = Vec::new();
            for (id, bases) in layout.iter().enumerate() {
                paths.push(segment(&wal, 0, id as u64, bases, 0));
            }
            let len = std::fs::metadata(&paths[victim]).unwrap().len();
            // Somewhere in the middle of the first or the second frame.
            damage(&paths[victim], len / 4 + nth * len / 2, 0x10).unwrap();
            let left = layout[victim][1 - nth as usize];
            let case = format!("frame {nth} of segment {victim}");
            for run in 0..2 {
                let found = bench.run_one().await;
                assert!(!found.releasable.contains(&(victim as u64)), "{case}, run {run}");
                assert_eq!(found.releasable.len(), 3, "{case}, run {run}");
                assert_eq!(found.releasable_through, left, "{case}, run {run}");
            }
        }
    }
}

#[tokio::test]
async fn a_torn_tail_is_the_end_of_a_closed_segment() {
    let bench = Bench::new();
    let mut writer = WalWriter::create(&bench.wal(), TOPIC, 0, 0).unwrap();
    writer.append(&ten(0, 0)).unwrap();
    writer.append_torn(&ten(10, 0), 40).unwrap();
    writer.finish().unwrap();
    let found = bench.run_one().await;
    assert_eq!((found.archived_through, found.releasable_through), (10, 10));
    assert_eq!(found.releasable, [0]);
}

/// Table: F6 I1 I2 | the commit of one batch
#[tokio::test]
async fn a_batch_that_could_not_be_committed_holds_its_segment() {
    let bench = Bench::new();
    segment(&bench.wal(), 0, 0, &[0, 10], 0);
    assert_eq!(bench.run_one().await.releasable_through, 20);
    segment(&bench.wal(), 0, 1, &[20], 0);
    // A file where the folder of scratch should be.
    let scratch = bench.folder.path().join("data/scratch");
    std::fs::remove_dir_all(&scratch).unwrap();
    std::fs::write(&scratch, "").unwrap();
    let (rooms, config) = bench.rooms("one");
    let mut report = archive(&rooms, &config, &bench.wal()).await;
    let found = report.partitions.remove(0);
    assert!(found.error.is_some());
    assert_eq!((found.releasable_through, found.releasable), (20, vec![]));
    assert_eq!(rooms.watermarks.get(&found.tp), None, "nothing was found out, nothing is told");
    let ledger = rooms.catalog.ledger(&found.tp).await.unwrap().unwrap();
    assert_eq!(ledger.releasable_through(), 20);
    std::fs::remove_file(&scratch).unwrap();
    assert_eq!(bench.run_one().await.releasable, [0, 1]);
}

/// A frame of version 1: a record with empty key and value, at an offset that no
/// broker assigned.
fn v1_frame() -> Vec<u8> {
    let mut frame = [&[0x7e, 0xca, 1, 0, 40, 0, 0, 0][..], &[0; 32]].concat();
    let crc = crc32fast::hash(&[&frame[..24], &frame[28..]].concat());
    frame[24..28].copy_from_slice(&crc.to_le_bytes());
    frame
}

#[tokio::test]
async fn frames_that_are_not_archived_hold_their_segment() {
    let bench = Bench::new();
    segment(&bench.wal(), 0, 0, &[0, 10], 0);
    let mut writer = WalWriter::create(&bench.wal(), TOPIC, 0, 1).unwrap();
    writer.append(&ten(20, 0)).unwrap();
    writer.append_raw(&v1_frame()).unwrap();
    writer.append(&ten(30, 0)).unwrap();
    writer.finish().unwrap();
    let found = bench.run_one().await;
    assert_eq!(found.archived_through, 40);
    assert_eq!((found.releasable_through, found.releasable), (20, vec![0]));
}

/// Table: F12 I1 I8 | two writers of one partition
#[tokio::test]
async fn what_another_writer_committed_is_proven_and_its_ledger_is_not_ours() {
    let bench = Bench::new();
    segment(&bench.wal(), 0, 0, &[0, 10], 0);
    segment(&bench.wal(), 0, 1, &[20], 0);
    assert_eq!(bench.run_as("other").await.partitions[0].archives, 1);
    // Our broker has yet to write segment 1: what is released ends where ours does.
    std::fs::remove_file(bench.wal().join("orders/0/wal_0_1.log")).unwrap();
    let found = bench.run_one().await;
    assert_eq!((found.archives, found.archived_through), (0, 30));
    assert_eq!((found.releasable_through, found.releasable), (20, vec![0]));
    let tp = &found.tp;
    let of = async |writer| bench.rooms(writer).0.catalog.ledger(tp).await.unwrap().unwrap();
    assert_eq!(of("other").await.releasable_through(), 30);
    assert_eq!(of("one").await.releasable_through(), 20);
    // It then writes other bytes there: they lie beneath, committed all the same.
    segment(&bench.wal(), 0, 1, &[20], 5);
    let found = bench.run_one().await;
    assert_eq!((found.overlaps, found.releasable_through), (1, 30));
    assert_eq!(found.releasable, [0, 1]);
}

/// Table: F30 I1 I2 I14 | the data folder and the WAL
#[tokio::test]
async fn a_mark_that_was_told_outlives_the_segments_and_the_disk() {
    let bench = Bench::new();
    segment(&bench.wal(), 0, 0, &[0, 10], 0);
    segment(&bench.wal(), 0, 1, &[20], 0);
    assert_eq!(bench.run_one().await.releasable_through, 30);
    // The broker deletes what it may; what it writes next is damaged.
    std::fs::remove_file(bench.wal().join("orders/0/wal_0_0.log")).unwrap();
    std::fs::remove_file(bench.wal().join("orders/0/wal_0_1.log")).unwrap();
    let path = segment(&bench.wal(), 0, 2, &[30], 0);
    damage(&path, 60, 0xFF).unwrap();
    let _ = std::fs::remove_dir_all(bench.folder.path().join("data"));
    let found = bench.run_one().await;
    assert_eq!((found.releasable_through, found.releasable), (30, vec![]));
    assert_eq!(found.incarnation, 0, "a segment of a later number is no new life");
}

/// Table: F9 I1 I2 | what a writer remembers
#[tokio::test]
async fn a_damaged_ledger_is_told_and_begun_anew() {
    let bench = Bench::new();
    segment(&bench.wal(), 0, 0, &[0, 10], 0);
    let tp = bench.run_one().await.tp;
    let (rooms, _) = bench.rooms("one");
    let key = tierd::store::ObjectKey::Ledger {
        cluster: rooms.catalog.cluster().clone(),
        writer: rooms.catalog.writer().clone(),
        tp,
    };
    let mut bytes = bench.store.get(&key, 1 << 20).await.unwrap().to_vec();
    bytes[30] ^= 1;
    bench.store.put(&key, bytes.into()).await.unwrap();
    let found = bench.run_one().await;
    assert!(found.findings.iter().any(|f| f.damage && f.line.contains("ledger")));
    assert_eq!((found.incarnation, found.releasable_through), (0, 20));
    assert!(bench.run_one().await.findings.is_empty());
}

/// What `tierd fetch` gives of a partition.
fn fetched(tierd: &Tierd, more: &[&str]) -> Vec<u8> {
    let fetch = ["fetch", TOPIC, "0", "--format", "raw"];
    tierd.run(&[&fetch[..], more].concat()).ok().stdout
}

#[test]
fn a_topic_made_anew_is_a_life_of_its_own_and_both_stay_readable() {
    let folder = tempfile::tempdir().unwrap();
    let (tierd, wal) = (Tierd::new(TIERD, folder.path()), folder.path().join("wal"));
    for partition in 0..2 {
        segment(&wal, partition, 0, &[0, 10], 0);
        segment(&wal, partition, 1, &[20], 0);
    }
    let _ = tierd.archive(&wal).ok();
    let old = fetched(&tierd, &[]);
    assert_eq!(old, [ten(0, 0), ten(10, 0), ten(20, 0)].concat());

    // Deleted and made again: the numbers and the offsets begin anew. Its second
    // partition has no bytes that tell.
    std::fs::remove_dir_all(wal.join(TOPIC)).unwrap();
    segment(&wal, 0, 0, &[0, 10], 7);
    segment(&wal, 1, 0, &[], 7);
    let daemon = tierd.serve(&[]);
    let through = ["--endpoint", daemon.address.as_str()];
    assert_eq!(fetched(&tierd, &through), old);
    let _ = tierd.archive(&wal).ok();
    let new = [ten(0, 7), ten(10, 7)].concat();
    assert_eq!(fetched(&tierd, &[]), new);
    assert_eq!(fetched(&tierd, &["--incarnation", "1"]), new);
    assert_eq!(fetched(&tierd, &["--incarnation", "0"]), old);
    for (life, bytes) in [("0", &old), ("1", &new)] {
        let of = [&["--incarnation", life][..], &through].concat();
        assert_eq!(&fetched(&tierd, &of), bytes, "life {life} through the daemon");
    }

    // Another run finds the same life; it goes on.
    segment(&wal, 0, 1, &[20], 7);
    segment(&wal, 1, 1, &[0], 7);
    let _ = tierd.archive(&wal).ok();
    let listed = tierd.run(&["ls", "--json", "--writer-id", "test"]).ok().text();
    let listed: Vec<Value> =
        listed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let facts = |name: &str| listed.iter().map(|line| line[name].clone()).collect::<Vec<_>>();
    assert_eq!(facts("partition"), [0, 0, 1, 1]);
    assert_eq!(facts("incarnation"), [0, 1, 0, 1]);
    assert_eq!(facts("archived_through"), [30, 30, 30, 10]);
    let known = |through: i64| Value::from(through);
    let wanted = [Value::Null, known(30), Value::Null, known(10)];
    assert_eq!(facts("releasable_through"), wanted, "what was told of a life ends with it");
    let other = tierd.run(&["ls", "--json", "--writer-id", "nobody"]).ok().text();
    assert!(other.lines().all(|line| line.contains("\"releasable_through\":null")), "{other}");
    let _ = tierd.run(&["verify", "--deep"]).ok();
    let archives = |life| tierd.run(&["ls", TOPIC, "0", "--json", "--incarnation", life]).ok();
    assert_eq!(archives("0").text().lines().count(), 1);
    assert_eq!(archives("1").text().lines().count(), 2);
}

#[tokio::test]
async fn a_life_that_was_begun_before_a_crash_is_joined_and_not_counted_again() {
    let bench = Bench::new();
    for partition in 0..2 {
        segment(&bench.wal(), partition, 0, &[0, 10], 0);
    }
    bench.run().await;
    std::fs::remove_dir_all(bench.wal().join(TOPIC)).unwrap();
    for partition in 0..2 {
        segment(&bench.wal(), partition, 0, &[0], 7);
    }
    let topic = TopicName::new(TOPIC).unwrap();
    let (rooms, _) = bench.rooms("one");
    rooms.catalog.begin_incarnation(&topic, 1, None).await.unwrap();
    let lives = async || {
        let report = bench.run().await;
        report.partitions.iter().map(|p| (p.incarnation, p.archived_through)).collect::<Vec<_>>()
    };
    assert_eq!(lives().await, [(1, 10), (1, 10)]);
    assert_eq!(lives().await, [(1, 10), (1, 10)]);
    assert_eq!(rooms.catalog.newest_incarnation(&topic).await.unwrap(), Some(1));
    // A writer that never saw the topic takes the life it is in.
    assert_eq!(bench.run_as("other").await.partitions[0].incarnation, 1);
}

#[tokio::test]
async fn offsets_issued_again_beside_the_same_files_are_overlaps() {
    let bench = Bench::new();
    segment(&bench.wal(), 0, 0, &[0, 10], 0);
    segment(&bench.wal(), 0, 1, &[20, 30], 0);
    bench.run_one().await;
    // After a crash the broker goes on at 20, in a file of its own.
    segment(&bench.wal(), 0, 2, &[20, 30, 40], 7);
    let found = bench.run_one().await;
    assert_eq!((found.incarnation, found.archived_through, found.overlaps), (0, 50, 2));
    assert_eq!((found.releasable_through, found.releasable), (50, vec![0, 1, 2]));
}

#[tokio::test]
async fn one_file_left_or_the_same_bytes_make_no_new_life() {
    // One partition of two still has its file.
    let bench = Bench::new();
    for partition in 0..2 {
        segment(&bench.wal(), partition, 0, &[0, 10], 0);
    }
    bench.run().await;
    segment(&bench.wal(), 0, 0, &[0, 10], 7);
    let report = bench.run().await;
    assert!(report.partitions.iter().all(|partition| partition.incarnation == 0));
    assert_eq!(report.partitions[0].overlaps, 2);

    // The number came again, on a file whose bytes are committed all the same.
    let bench = Bench::new();
    segment(&bench.wal(), 0, 0, &[0, 10], 0);
    bench.run_one().await;
    segment(&bench.wal(), 0, 0, &[10, 20], 0);
    let found = bench.run_one().await;
    assert_eq!((found.incarnation, found.archived_through, found.overlaps), (0, 30, 0));
}

/// Everything a watch tells up to the end of what was known, or one change.
async fn told(watch: &mut tierd_client::ArchiveWatch) -> Vec<(i32, u32, u64, i64, i64)> {
    let mut marks = Vec::new();
    loop {
        match watch.next().await.unwrap() {
            WatchItem::InitialComplete => return marks,
            WatchItem::Watermark(mark) => {
                assert_eq!(mark.topic, TOPIC);
                let through = (mark.archived_through, mark.releasable_through);
                marks.push((
                    mark.partition,
                    mark.incarnation,
                    mark.generation,
                    through.0,
                    through.1,
                ));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_follows_what_it_may_delete() {
    let bench = Bench::new();
    segment(&bench.wal(), 0, 0, &[0, 10], 0);
    segment(&bench.wal(), 1, 0, &[0], 0);
    let (rooms, config) = bench.rooms("one");
    let address: ListenAddress = "127.0.0.1:0".parse().unwrap();
    let bound = address.bind().await.unwrap();
    let (endpoint, stop) = (bound.to_string(), CancellationToken::new());
    let (fetcher, metrics) = (rooms.fetcher.clone(), rooms.metrics.clone());
    let marks = Some(rooms.watermarks.clone());
    let searcher = rooms.searcher.clone();
    let room = grpc::FETCHES_BYTES_MAX;
    let serving = grpc::serve(fetcher, searcher, marks, metrics, room, vec![bound], stop.clone());
    let server = tokio::spawn(serving);

    let client = Arc::new(ArchiveClient::connect_lazy(&endpoint).unwrap());
    let mut all = client.watch(&[]);
    assert_eq!(told(&mut all).await, [], "nothing is known yet");
    archive(&rooms, &config, &bench.wal()).await;
    // From the commits on; the last of each partition is the whole truth.
    let mut newest = std::collections::BTreeMap::new();
    while newest.get(&0) != Some(&(20, 20)) || newest.get(&1) != Some(&(10, 10)) {
        let WatchItem::Watermark(mark) = all.next().await.unwrap() else { panic!("told once") };
        assert!(mark.releasable_through <= mark.archived_through);
        newest.insert(mark.partition, (mark.archived_through, mark.releasable_through));
    }
    let mut one = client.watch(&[tierd_client::TopicPartition::new(TOPIC, 0)]);
    assert_eq!(told(&mut one).await, [(0, 0, 1, 20, 20)]);

    // What cannot be proven moves one mark and not the other.
    let path = segment(&bench.wal(), 0, 1, &[20, 30], 0);
    let len = std::fs::metadata(&path).unwrap().len();
    damage(&path, len / 4, 0x10).unwrap();
    archive(&rooms, &config, &bench.wal()).await;
    let WatchItem::Watermark(mark) = one.next().await.unwrap() else { panic!("told once") };
    assert_eq!((mark.archived_through, mark.generation), (40, 2));
    let tp = TopicPartition::new(TopicName::new(TOPIC).unwrap(), 0).unwrap();
    let released = rooms.watermarks.get(&tp).unwrap().releasable_through;
    assert_eq!(released, 30, "the damaged segment holds 30, which is committed");

    let of_a_life = tierd_client::TopicPartition {
        incarnation: Some(0),
        ..tierd_client::TopicPartition::new(TOPIC, 0)
    };
    let error = client.watch(&[of_a_life]).next().await.unwrap_err();
    assert!(matches!(error, ArchiveError::Invalid { .. }), "{error}");
    // A watch does not hold up a daemon that stops.
    stop.cancel();
    server.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_process_without_a_wal_says_that_it_archives_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let tierd = Tierd::new(TIERD, folder.path());
    let _ = tierd.archive(&fixture::wal()).ok();
    let daemon = tierd.serve(&[]);
    let client = ArchiveClient::connect_lazy(&daemon.address).unwrap();
    let error = client.watch(&[]).next().await.unwrap_err();
    assert!(error.to_string().contains("archives nothing"), "{error}");
}

#[test]
fn the_fixtures_may_be_deleted_as_far_as_they_are_archived() {
    let folder = tempfile::tempdir().unwrap();
    let tierd = Tierd::new(TIERD, folder.path());
    let wal = fixture::wal();
    let run = ["--json", "run", "--once", "--offline", "--wal-dir", wal.to_str().unwrap()];
    let summary: Value = serde_json::from_str(&tierd.run(&run).ok().text()).unwrap();
    for partition in summary["partitions"].as_array().unwrap() {
        assert_eq!(partition["releasable_through"], partition["archived_through"], "{partition}");
        let segments = partition["segments"].as_u64().unwrap() as usize;
        assert_eq!(partition["releasable_segments"].as_array().unwrap().len(), segments);
    }
}

/// Waits until `is` holds.
fn wait_until(what: &str, is: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Line by line what `tierd ls --json` says: partition, incarnation, through.
fn listed(tierd: &Tierd) -> Vec<(i64, i64, i64)> {
    let lines = tierd.run(&["ls", "--json"]).text();
    let number = |line: &Value, name: &str| line[name].as_i64().unwrap();
    let line = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap();
        let through = number(&line, "archived_through");
        (number(&line, "partition"), number(&line, "incarnation"), through)
    };
    lines.lines().map(line).collect()
}

#[test]
fn beside_the_running_daemon_lives_stay_apart_and_offsets_issued_again_are_overlaps() {
    let folder = tempfile::tempdir().unwrap();
    let (tierd, wal) = (Tierd::new(TIERD, folder.path()), folder.path().join("wal"));
    let started = folder.path().join("broker-started");
    let broker_starts = || {
        // Stamps of the file system lag by a tick.
        std::thread::sleep(Duration::from_millis(25));
        std::fs::write(&started, "").unwrap();
    };
    let run = || {
        let started = started.to_str().unwrap();
        tierd.live(&wal, &["--broker-started-at", started, "--settle", "100ms"])
    };
    let served = |more: &[&str]| {
        tierd.run(&[&["fetch", TOPIC, "0", "--format", "raw"][..], more].concat()).stdout
    };
    for partition in 0..2 {
        segment(&wal, partition, 0, &[0, 10], 0);
        segment(&wal, partition, 1, &[20], 0);
    }
    broker_starts();
    let daemon = run();
    let old = [ten(0, 0), ten(10, 0), ten(20, 0)].concat();
    wait_until("archiving", || listed(&tierd) == [(0, 0, 30), (1, 0, 30)]);

    // Deleted and made again under the daemon's eyes, longer than before.
    std::fs::remove_dir_all(wal.join(TOPIC)).unwrap();
    segment(&wal, 0, 0, &[0, 10, 20, 30], 7);
    segment(&wal, 1, 0, &[0], 7);
    broker_starts();
    let new = [ten(0, 7), ten(10, 7), ten(20, 7), ten(30, 7)].concat();
    let both = [(0, 0, 30), (0, 1, 40), (1, 0, 30), (1, 1, 10)];
    wait_until("the new life", || listed(&tierd) == both);
    let through = ["--endpoint", daemon.address.as_str()];
    for (life, bytes) in [("0", &old), ("1", &new)] {
        let of = [&["--incarnation", life][..], &through].concat();
        assert_eq!(&served(&of), bytes, "life {life}");
    }
    assert_eq!(served(&through), new);

    // Killed, deleted and made again without a witness: the ledger is the witness.
    drop(daemon);
    std::fs::remove_dir_all(wal.join(TOPIC)).unwrap();
    segment(&wal, 0, 0, &[0, 10], 9);
    segment(&wal, 1, 0, &[0], 9);
    broker_starts();
    let daemon = run();
    let third = [(0, 0, 30), (0, 1, 40), (0, 2, 20), (1, 0, 30), (1, 1, 10), (1, 2, 10)];
    wait_until("the third life", || listed(&tierd) == third);

    // The broker crashes, and issues 10 to 19 again beside the same files.
    segment(&wal, 0, 1, &[10, 20], 3);
    broker_starts();
    let mut wanted = third;
    wanted[2].2 = 30;
    wait_until("the overlap", || listed(&tierd) == wanted);
    assert_eq!(served(&[]), [ten(0, 9), ten(10, 9), ten(20, 3)].concat(), "committed stays served");
    let all = [ten(0, 9), ten(10, 9), ten(10, 3), ten(20, 3)].concat();
    assert_eq!(served(&["--overlaps", "all"]), all);
    assert_eq!(served(&["--incarnation", "0"]), old);
    let _ = tierd.run(&["verify", "--deep"]).ok();
    drop(daemon);
}
