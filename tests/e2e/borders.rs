//! Reads at borders: batches larger than a frame, limits, transactions over
//! archives, runs that were killed, batches that reach over archives.

use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use kafka_protocol::records::{
    Compression, Record, RecordBatchEncoder, RecordEncodeOptions, TimestampType,
};
use tierd::record::{CanonicalRecord, Codec};
use tierd_client::{ArchiveClient, FetchArgs, Isolation, StreamItem, batches_in};
use tierd_tests::chronik::{WalWriter, sample_batch};
use tierd_tests::process::Tierd;

use crate::TIERD;

const MIB: usize = 1 << 20;

/// A WAL and a store of a test's own.
struct Bench {
    folder: tempfile::TempDir,
    tierd: Tierd,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let tierd = Tierd::new(TIERD, folder.path());
        Self { folder, tierd }
    }

    fn wal(&self) -> PathBuf {
        self.folder.path().join("wal")
    }

    /// Writes segment `id` of topic `t`, partition 0.
    fn segment(&self, id: u64, batches: &[Bytes]) {
        let mut segment = WalWriter::create(&self.wal(), "t", 0, id).unwrap();
        for batch in batches {
            segment.append(batch).unwrap();
        }
        segment.finish().unwrap();
    }

    fn archive(&self) {
        let _ = self.tierd.archive(&self.wal()).ok();
    }

    fn fetch(&self, more: &[&str]) -> Vec<u8> {
        self.tierd.run(&[&["fetch", "t", "0", "--format", "raw"], more].concat()).ok().stdout
    }

    /// Bases and last offsets of what a fetch answers.
    fn ranges(&self, more: &[&str]) -> Vec<(i64, i64)> {
        ranges(self.fetch(more))
    }

    /// Forgets the newest manifest, as if the run had been killed before its commit.
    fn lose_last_commit(&self) {
        let mut manifests = Vec::new();
        files(&self.folder.path().join("store"), &mut manifests);
        manifests.retain(|path| path.parent().unwrap().ends_with("manifest"));
        std::fs::remove_file(manifests.iter().max().unwrap()).unwrap();
    }
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files(&path, found) } else { found.push(path) }
    }
}

fn ranges(wire: Vec<u8>) -> Vec<(i64, i64)> {
    let batches = batches_in(wire.into()).map(Result::unwrap);
    batches.map(|batch| (batch.base_offset, batch.last_offset)).collect()
}

fn batch(base: i64, count: i32) -> Bytes {
    sample_batch(base, count, 20, Codec::None).unwrap()
}

/// A batch of one record of `bytes` bytes that do not compress.
fn large(base: i64, bytes: usize) -> Bytes {
    let sample = CanonicalRecord::from_wire(batch(base, 1)).unwrap();
    let mut entries = sample.decode().unwrap();
    let mut value = vec![0; bytes];
    blake3::Hasher::new().update(b"large").finalize_xof().fill(&mut value);
    entries[0].value = Some(value.into());
    CanonicalRecord::from_entries(*sample.header(), entries).unwrap().to_kafka_batch().unwrap()
}

/// A batch of producer 7's transaction: data, or the marker that aborts it.
fn transactional(offset: i64, marker: bool) -> Bytes {
    let (key, value): (&[u8], &[u8]) = if marker { (&[0; 4], &[0; 6]) } else { (b"k", b"v") };
    let record = Record {
        transactional: true,
        control: marker,
        delete_horizon: false,
        partition_leader_epoch: 0,
        producer_id: 7,
        producer_epoch: 1,
        timestamp_type: TimestampType::Creation,
        offset,
        sequence: if marker { -1 } else { 0 },
        timestamp: 1_700_000_000_000,
        key: Some(Bytes::copy_from_slice(key)),
        value: Some(Bytes::copy_from_slice(value)),
        headers: Default::default(),
    };
    let options = RecordEncodeOptions { version: 2, compression: Compression::None };
    let mut wire = BytesMut::new();
    RecordBatchEncoder::encode(&mut wire, &[record], &options).unwrap();
    wire.freeze()
}

#[tokio::test]
async fn batches_of_three_and_six_mib_arrive_whole() {
    let bench = Bench::new();
    let batches = [batch(0, 5), large(5, 3 * MIB), large(6, 6 * MIB), batch(7, 5)];
    bench.segment(0, &batches);
    bench.archive();
    let daemon = bench.tierd.serve(&[]);

    let client = ArchiveClient::connect_lazy(&daemon.address).unwrap();
    for isolation in [Isolation::ReadUncommitted, Isolation::ReadCommitted] {
        let args = FetchArgs { isolation, ..FetchArgs::new("t", 0, 0) };
        let mut stream = client.fetch_stream(args);
        let mut found = Vec::new();
        while let Some(item) = stream.next().await {
            if let StreamItem::Batches(set) = item.unwrap() {
                found.extend(batches_in(set.batches).map(|batch| batch.unwrap().bytes));
            }
        }
        assert_eq!(found, batches, "{isolation:?}");
    }
    // Alone, over a limit that it does not fit.
    let args = FetchArgs { max_bytes: Some(1), ..FetchArgs::new("t", 0, 6) };
    assert_eq!(client.fetch(args).await.unwrap().batches, batches[2]);

    for endpoint in [&[][..], &["--endpoint", &daemon.address]] {
        let got = bench.fetch(&[&["--offset", "5", "--max-bytes", "1"], endpoint].concat());
        assert_eq!(got, batches[1], "{endpoint:?}");
    }
}

#[test]
fn a_limit_is_met_to_the_byte_and_never_passed() {
    let bench = Bench::new();
    let batches: Vec<Bytes> = (0..20).map(|i| batch(i * 5, 5)).collect();
    bench.segment(0, &batches);
    bench.archive();
    let daemon = bench.tierd.serve(&[]);
    let two = batches[0].len() + batches[1].len();
    for endpoint in [&[][..], &["--endpoint", &daemon.address]] {
        for (limit, count) in [(1, 1), (two - 1, 1), (two, 2), (two + 1, 2)] {
            for overlaps in ["served", "all"] {
                let limit = limit.to_string();
                let fetch = ["--max-bytes", &limit, "--overlaps", overlaps];
                let got = bench.ranges(&[&fetch[..], endpoint].concat());
                assert_eq!(got.len(), count, "{limit} bytes, {overlaps}, {endpoint:?}: {got:?}");
            }
        }
    }
}

#[tokio::test]
async fn data_that_fills_a_gap_behind_its_abort_marker_is_hidden() {
    let bench = Bench::new();
    bench.segment(0, &[batch(0, 5), transactional(9, true), batch(10, 5)]);
    bench.archive();
    let stable = bench.ranges(&["--offset", "9", "--isolation", "read_committed"]);
    assert_eq!(stable, [(9, 9), (10, 14)]);
    // Offsets 5 to 8 are a declared gap. One of them turns up, with data of the
    // transaction that the archived marker ends.
    bench.segment(1, &[transactional(6, false)]);
    bench.archive();
    let daemon = bench.tierd.serve(&[]);
    let client = ArchiveClient::connect_lazy(&daemon.address).unwrap();
    let isolation = Isolation::ReadCommitted;
    let args = FetchArgs { isolation, ..FetchArgs::new("t", 0, 6) };
    let aborted = client.fetch(args).await.unwrap().aborted.unwrap();
    let told = aborted.transactions.iter().map(|t| (t.producer_id, t.first_offset, t.last_offset));
    assert_eq!((told.collect::<Vec<_>>(), aborted.complete), (vec![(7, 6, 9)], true));

    // Another of them: data behind the marker's next, whose own marker never came.
    bench.segment(2, &[transactional(16, false)]);
    bench.archive();
    bench.segment(3, &[transactional(15, true)]);
    bench.archive();
    let stable = bench.ranges(&["--offset", "10", "--isolation", "read_committed"]);
    assert_eq!(stable, [(10, 14), (15, 15)], "a marker that fills a gap in front ends nothing");
}

#[tokio::test]
async fn an_abort_marker_archives_later_hides_the_records_of_its_transaction() {
    let bench = Bench::new();
    bench.segment(0, &[batch(0, 5), transactional(5, false), batch(6, 4)]);
    bench.archive();
    // The transaction is open: nothing from it on is stable.
    assert_eq!(bench.ranges(&["--isolation", "read_committed"]), [(0, 4)]);
    assert_eq!(bench.ranges(&[]), [(0, 4), (5, 5), (6, 9)]);

    bench.segment(1, &[batch(10, 5)]);
    bench.archive();
    assert_eq!(bench.ranges(&["--isolation", "read_committed"]), [(0, 4)]);
    bench.segment(2, &[transactional(15, true), batch(16, 4)]);
    bench.archive();
    let listed = bench.tierd.run(&["ls", "t", "0", "--json"]).ok().text();
    assert_eq!(listed.lines().count(), 3, "one archive a run: {listed}");

    let daemon = bench.tierd.serve(&[]);
    let client = ArchiveClient::connect_lazy(&daemon.address).unwrap();
    let isolation = Isolation::ReadCommitted;
    // The list comes from two archives on, also for an answer that ends right
    // behind the data, and is empty for one that begins behind the marker.
    let args = FetchArgs { isolation, upper_bound: Some(6), ..FetchArgs::new("t", 0, 5) };
    let aborted = client.fetch(args).await.unwrap().aborted.unwrap();
    assert!(aborted.complete, "{aborted:?}");
    let told: Vec<_> = aborted
        .transactions
        .iter()
        .map(|t| (t.producer_id, t.first_offset, t.last_offset))
        .collect();
    assert_eq!(told, [(7, 5, 15)]);
    let args = FetchArgs { isolation, ..FetchArgs::new("t", 0, 16) };
    let aborted = client.fetch(args).await.unwrap().aborted.unwrap();
    assert!(aborted.transactions.is_empty() && aborted.complete, "{aborted:?}");

    for endpoint in [&[][..], &["--endpoint", &daemon.address]] {
        let fetch = ["fetch", "t", "0", "--isolation", "read_committed"];
        let lines = bench.tierd.run(&[&fetch[..], endpoint].concat()).ok().text();
        let offsets: Vec<i64> = lines
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
            .map(|record| record["offset"].as_i64().unwrap())
            .collect();
        let wanted: Vec<i64> = (0..20).filter(|offset| ![5, 15].contains(offset)).collect();
        assert_eq!(offsets, wanted, "{endpoint:?}");
    }
}

#[test]
fn read_committed_has_no_meaning_for_superseded_batches() {
    let bench = Bench::new();
    bench.segment(0, &[batch(0, 5)]);
    bench.archive();
    let fetch = ["fetch", "t", "0", "--isolation", "read_committed", "--overlaps", "all"];
    let ended = bench.tierd.run(&fetch);
    assert_eq!(ended.code, 2);
    assert!(ended.stderr.contains("read_uncommitted"), "{}", ended.stderr);
}

/// Table: F1 I3 I7 I10 | the process, before its commit
#[test]
fn a_run_killed_before_its_commit_is_made_up_for_by_the_next() {
    let bench = Bench::new();
    bench.segment(0, &[batch(0, 5), batch(5, 5)]);
    bench.archive();
    bench.segment(1, &[batch(10, 5)]);
    bench.archive();
    bench.lose_last_commit();
    assert_eq!(bench.ranges(&[]), [(0, 4), (5, 9)]);
    bench.archive();
    assert_eq!(bench.ranges(&["--overlaps", "all"]), [(0, 4), (5, 9), (10, 14)]);
    let _ = bench.tierd.run(&["verify", "--deep"]).ok();
}

/// Table: F1 I3 I7 I10 | between two commits of one batch
#[test]
fn a_batch_that_fills_a_gap_and_grows_the_log_survives_a_kill_between_the_two() {
    let bench = Bench::new();
    bench.segment(0, &[batch(0, 5), batch(10, 5)]);
    bench.archive();
    // Fills 8 and 9, and grows the log from 15 on.
    bench.segment(1, &[batch(8, 13)]);
    bench.archive();
    bench.lose_last_commit();
    bench.segment(2, &[batch(30, 5)]);
    bench.archive();
    let listed = bench.tierd.run(&["ls", "--json"]).ok().text();
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    let gaps: Vec<_> = listed["gaps"]
        .as_array()
        .unwrap()
        .iter()
        .map(|gap| (gap["first"].as_i64().unwrap(), gap["last"].as_i64().unwrap()))
        .collect();
    assert_eq!(gaps, [(5, 7), (21, 29)]);
    assert_eq!(bench.ranges(&["--offset", "15"]), [(8, 20), (30, 34)]);
    // It lies in two archives and is told once.
    let all = [(0, 4), (8, 20), (10, 14), (30, 34)];
    assert_eq!(bench.ranges(&["--overlaps", "all"]), all);
}

#[test]
fn superseded_batches_that_reach_over_older_archives_come_in_order() {
    let bench = Bench::new();
    bench.segment(0, &[batch(0, 5), batch(5, 1), batch(6, 4)]);
    bench.archive();
    bench.segment(1, &[batch(10, 10)]);
    bench.archive();
    // The longer one lies beneath the log from 20 on, and reaches back to 5.
    bench.segment(2, &[batch(5, 21), batch(20, 10)]);
    bench.archive();
    let all = [(0, 4), (5, 5), (5, 25), (6, 9), (10, 19), (20, 29)];
    assert_eq!(bench.ranges(&["--overlaps", "all"]), all);
    let daemon = bench.tierd.serve(&[]);
    let through = ["--overlaps", "all", "--endpoint", &daemon.address];
    assert_eq!(bench.ranges(&through), all);
    assert_eq!(bench.ranges(&["--overlaps", "all", "--offset", "7"]), all[2..]);
}

#[test]
fn latecomers_of_a_second_run_are_kept_and_not_served() {
    let bench = Bench::new();
    bench.segment(0, &[batch(0, 10)]);
    bench.archive();
    bench.segment(1, &[batch(0, 4), batch(10, 5)]);
    bench.archive();
    bench.archive();
    assert_eq!(bench.ranges(&[]), [(0, 9), (10, 14)]);
    assert_eq!(bench.ranges(&["--overlaps", "all"]), [(0, 9), (0, 3), (10, 14)]);
    assert_eq!(bench.tierd.run(&["ls", "t", "0", "--json"]).ok().text().lines().count(), 3);
}
