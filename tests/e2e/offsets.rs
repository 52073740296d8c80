//! Offsets by time and ends of leader epochs against a log that answers by brute
//! force: timestamps out of order, several codecs, log-append time, records that
//! compaction took out, gaps, overlaps, many archives and many chunks.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tierd::archive::{ArchiveOptions, IndexLevel};
use tierd::clock::SystemClock;
use tierd::config::Config;
use tierd::daemon::Rooms;
use tierd::fetch::{FoundOffset, Isolation, OffsetQuery, ProducerState, Status};
use tierd::indexer::{Indexer, LiveIndexer};
use tierd::record::{
    BatchHeader, CanonicalRecord, CanonicalRecordEntry, Codec, TopicName, TopicPartition,
};
use tierd::store::Store;
use tierd::wal::{WalDir, WalFormat};
use tierd_client::{
    ArchiveClient, ArchiveError, BlockingArchiveClient, EpochArgs, OffsetArgs, OffsetSpec,
};
use tierd_tests::chronik::WalWriter;
use tierd_tests::fixture;
use tierd_tests::process::Tierd;

use crate::TIERD;

/// Histories tried; each asks some hundred times.
const HISTORIES: u64 = 24;
const TIME: i64 = 1_700_000_000_000;
const LOG_APPEND_TIME: i16 = 0x08;
const TRANSACTIONAL: i16 = 0x10;
const TRANSACTIONAL_CONTROL: i16 = 0x30;

/// A record as a consumer sees it.
#[derive(Clone, Copy, Debug)]
struct Seen {
    offset: i64,
    timestamp: i64,
}

/// A batch and what it holds.
#[derive(Clone, Debug)]
struct Made {
    base: i64,
    last: i64,
    epoch: i32,
    wire: Bytes,
    records: Vec<Seen>,
    header: BatchHeader,
    /// Of a marker: what its value says of the coordinator.
    coordinator: Option<i32>,
}

fn make(base: i64, epoch: i32, random: &mut StdRng) -> Made {
    let span = random.random_range(1..8_i64);
    let codecs = [Codec::None, Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd];
    let codec = codecs[random.random_range(0..codecs.len())];
    let mut attributes = codec.bits();
    let log_append = random.random_bool(0.2);
    if log_append {
        attributes |= LOG_APPEND_TIME;
    }
    let control = random.random_bool(0.1);
    let value = if random.random_bool(0.1) { 100 << 10 } else { random.random_range(0..60) };
    let mut entries = Vec::new();
    for delta in 0..span {
        // Compaction leaves holes, also at both ends. A WAL keeps no batch without records.
        let is_needed = delta == span - 1 && entries.is_empty();
        if !control && !is_needed && random.random_bool(0.2) {
            continue;
        }
        let bytes: Vec<u8> = (0..value).map(|_| random.random()).collect();
        entries.push(CanonicalRecordEntry {
            offset: base + delta,
            timestamp: TIME + random.random_range(0..500_i64),
            attributes: 0,
            key: Some(Bytes::from_static(&[0, 0, 0, 1])),
            value: Some(bytes.into()),
            headers: Vec::new(),
        });
        if control {
            break;
        }
    }
    let last = if control { base } else { base + span - 1 };
    if control {
        attributes |= TRANSACTIONAL_CONTROL;
    }
    let greatest = entries.iter().map(|entry| entry.timestamp).max().unwrap_or(TIME);
    let header = BatchHeader {
        base_offset: base,
        batch_length: 0,
        partition_leader_epoch: epoch,
        crc: 0,
        attributes,
        last_offset_delta: (last - base) as i32,
        base_timestamp: TIME,
        max_timestamp: greatest,
        producer_id: if control { random.random_range(1..4) } else { -1 },
        producer_epoch: if control { random.random_range(0..3) } else { -1 },
        base_sequence: -1,
        record_count: 0,
    };
    let mut header = header;
    if !control && random.random_bool(0.7) {
        header.producer_id = random.random_range(1..4);
        header.producer_epoch = random.random_range(0..3);
        header.base_sequence = random.random_range(0..1_000);
        header.attributes |= if random.random_bool(0.5) { TRANSACTIONAL } else { 0 };
    }
    let marker = entries.first().filter(|_| control).and_then(|entry| entry.value.clone());
    let coordinator = marker.filter(|value| value.len() >= 6);
    let coordinator =
        coordinator.map(|value| i32::from_be_bytes([value[2], value[3], value[4], value[5]]));
    let seen = |entry: &CanonicalRecordEntry| Seen {
        offset: entry.offset,
        timestamp: if log_append { greatest } else { entry.timestamp },
    };
    let records = entries.iter().map(seen).collect();
    let batch = CanonicalRecord::from_entries(header, entries).unwrap();
    let wire = batch.to_kafka_batch().unwrap();
    Made { base, last, epoch, wire, records, header, coordinator }
}

/// What serves each offset, by the rule of the served log.
#[derive(Debug, Default)]
struct Log {
    /// Offset and the batch that serves it.
    served: Vec<(i64, Made)>,
    through: i64,
}

impl Log {
    fn of(written: &[Made]) -> Self {
        let through = written.iter().map(|made| made.last + 1).max().unwrap_or(0);
        let mut log = Self { served: Vec::new(), through };
        let mut next = 0;
        while next < through {
            match written.iter().rev().find(|made| made.base <= next && next <= made.last) {
                Some(made) => {
                    log.served.extend((next..=made.last).map(|offset| (offset, made.clone())));
                    next = made.last + 1;
                }
                None => next += 1,
            }
        }
        log
    }

    fn records(&self, from: i64, to: i64) -> impl Iterator<Item = FoundOffset> + '_ {
        let within = self.served.iter().filter(move |(offset, _)| (from..to).contains(offset));
        within.filter_map(|(offset, made)| {
            let record = made.records.iter().find(|record| record.offset == *offset)?;
            let timestamp = record.timestamp;
            Some(FoundOffset { offset: *offset, timestamp, leader_epoch: made.epoch })
        })
    }

    fn first(&self, wanted: i64, from: i64, to: i64) -> Option<FoundOffset> {
        self.records(from, to).find(|record| record.timestamp >= wanted)
    }

    fn greatest(&self, from: i64, to: i64) -> Option<FoundOffset> {
        self.records(from, to).max_by_key(|record| (record.timestamp, -record.offset))
    }

    /// The leader epochs below `end` with their first offsets.
    fn epochs(&self, end: i64) -> Vec<(i32, i64)> {
        let mut epochs: Vec<(i32, i64)> = Vec::new();
        for (offset, made) in self.served.iter().filter(|(offset, _)| *offset < end) {
            if made.epoch >= 0 && epochs.last().is_none_or(|(last, _)| *last < made.epoch) {
                epochs.push((made.epoch, *offset));
            }
        }
        epochs
    }

    /// The producers below `end`, batch by batch: Kafka's `ProducerStateManager`.
    fn producers(&self, end: i64) -> Vec<ProducerState> {
        let mut states: BTreeMap<i64, ProducerState> = BTreeMap::new();
        let mut batches: Vec<&Made> = Vec::new();
        for (_, made) in &self.served {
            if batches.last().is_none_or(|last| last.base != made.base) {
                batches.push(made);
            }
        }
        for made in batches.into_iter().filter(|made| made.last < end) {
            let header = &made.header;
            if header.producer_id < 0 {
                continue;
            }
            let before = states.get(&header.producer_id).copied();
            let same = before.filter(|of| of.producer_epoch == header.producer_epoch);
            let control = header.attributes & 0x20 != 0;
            let open = before.and_then(|of| of.open_since);
            let begins = (header.attributes & TRANSACTIONAL != 0).then_some(made.base);
            let (kept, greatest) = (before.map_or(-1, |of| of.coordinator_epoch), &made.records);
            let state = ProducerState {
                producer_id: header.producer_id,
                producer_epoch: header.producer_epoch,
                last_sequence: match same {
                    _ if !control => header.base_sequence + header.last_offset_delta,
                    same => same.map_or(-1, |of| of.last_sequence),
                },
                last_offset: match same {
                    _ if !control => made.last,
                    same => same.map_or(-1, |of| of.last_offset),
                },
                offset_delta: match same {
                    _ if !control => header.last_offset_delta,
                    same => same.map_or(0, |of| of.offset_delta),
                },
                timestamp: greatest.iter().map(|seen| seen.timestamp).max().unwrap_or(TIME),
                coordinator_epoch: made.coordinator.unwrap_or(kept),
                open_since: if control { None } else { open.or(begins) },
            };
            states.insert(header.producer_id, state);
        }
        states.into_values().collect()
    }

    /// Kafka's `LeaderEpochFileCache.endOffsetFor`.
    fn epoch_end(&self, epoch: i32) -> (i32, i64) {
        let epochs = self.epochs(i64::MAX);
        if epochs.last().is_some_and(|(last, _)| *last == epoch) {
            return (epoch, self.through);
        }
        let floor = epochs.iter().rev().find(|(known, _)| *known <= epoch);
        match epochs.iter().find(|(known, _)| *known > epoch) {
            Some((_, start)) if epoch >= 0 => (floor.map_or(epoch, |(known, _)| *known), *start),
            _ => (-1, -1),
        }
    }
}

/// The batches in WAL order, for a failure to show.
fn rows(written: &[Made]) -> Vec<(i64, i64, i64, i16)> {
    let row = |made: &Made| (made.base, made.last, made.header.producer_id, made.header.attributes);
    written.iter().map(row).collect()
}

/// Writes a random WAL; with `overlaps`, batches repeat offsets of others.
fn write(wal: &Path, overlaps: bool, random: &mut StdRng) -> Vec<Made> {
    let mut written: Vec<Made> = Vec::new();
    let (mut end, mut epoch) = (0, if random.random_bool(0.3) { -1 } else { 0 });
    for id in 0..3 {
        let mut segment = WalWriter::create(wal, "t", 0, id).unwrap();
        // A broker that knows of no epochs may follow on one that does.
        let is_unaware = random.random_bool(0.3);
        for _ in 0..random.random_range(1..20) {
            if random.random_bool(0.15) {
                epoch += random.random_range(1..3);
            }
            let base = match random.random_range(0..10) {
                0 => end + random.random_range(1..7),
                1 | 2 if overlaps => (end - random.random_range(0..9)).max(0),
                _ => end,
            };
            let made = make(base, if is_unaware { -1 } else { epoch }, random);
            segment.append(&made.wire).unwrap();
            end = end.max(made.last + 1);
            written.push(made);
        }
        segment.finish().unwrap();
    }
    written
}

async fn archive(rooms: &Rooms, folder: &Path, random: &mut StdRng) {
    let levels = [IndexLevel::Keys, IndexLevel::None];
    let options = ArchiveOptions {
        target_log_bytes: if random.random_bool(0.5) { 2_000 } else { 2 << 20 },
        index_level: levels[random.random_range(0..levels.len())],
        ..ArchiveOptions::default()
    };
    let indexer = Indexer::new(
        WalFormat::Chronik,
        Arc::clone(&rooms.catalog),
        rooms.store.clone(),
        rooms.reader.clone(),
        folder.join("scratch"),
        options,
        rooms.metrics.clone(),
    );
    let wal = WalDir::open(&folder.join("wal"), WalFormat::Chronik).unwrap();
    let offline = Config::default().live(true).unwrap();
    let live = LiveIndexer::new(indexer, wal, offline, SystemClock::new(), Arc::new(|| 1.0));
    let report = Arc::new(live).run_once(|_| {}).await.unwrap();
    assert!(!report.failed(), "{:?}", report.partitions[0].error);
}

async fn history(seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let folder = tempfile::tempdir().unwrap();
    let config = Config { writer_id: Some("w".to_owned()), ..Config::default() };
    let rooms = Rooms::over(Store::open("memory:").unwrap(), &config).unwrap();
    let tp = TopicPartition::new(TopicName::new("t").unwrap(), 0).unwrap();
    let overlaps = random.random_bool(0.5);
    let written = write(&folder.path().join("wal"), overlaps, &mut random);
    archive(&rooms, folder.path(), &mut random).await;
    let log = Log::of(&written);

    let query = |timestamp, starting_offset, upper_bound| OffsetQuery {
        tp: tp.clone(),
        incarnation: None,
        timestamp,
        starting_offset,
        upper_bound,
        isolation: Isolation::ReadUncommitted,
        leader_epoch: None,
    };
    let mut asked = Vec::new();
    for _ in 0..120 {
        let from = random.random_bool(0.5).then(|| random.random_range(0..=log.through));
        let to = random.random_bool(0.5).then(|| random.random_range(0..=log.through + 2));
        let (low, high) = (from.unwrap_or(0), to.unwrap_or(i64::MAX));
        let wanted = TIME + random.random_range(-2..503_i64);
        asked.push((query(wanted, from, to), log.first(wanted, low, high)));
        asked.push((query(-3, from, to), log.greatest(low, high)));
    }
    let queries: Vec<_> = asked.iter().map(|(query, _)| query.clone()).collect();
    let answers = rooms.fetcher.offsets(&queries).await;
    for ((query, expected), answer) in asked.iter().zip(answers) {
        assert_eq!(answer.result.as_ref().unwrap(), expected, "{query:?}");
        assert_eq!(answer.state.unwrap().archived_through, log.through, "{:?}", rows(&written));
    }

    let special = [-2, -5, -6, -1, -4, -7].map(|timestamp| query(timestamp, None, None));
    let bounds = rooms.fetcher.offsets(&special).await;
    let offset = |at: usize| bounds[at].result.as_ref().unwrap().unwrap().offset;
    assert_eq!([offset(0), offset(1), offset(2)], [0, log.through - 1, log.through]);
    let status = |at: usize| bounds[at].result.as_ref().unwrap_err().status;
    assert_eq!([status(3), status(4)], [Status::NotReported; 2]);
    assert_eq!(status(5), Status::InvalidRequest);

    if !overlaps {
        for epoch in -2..40 {
            let end = rooms.fetcher.epoch_end(&tp, None, None, epoch).await.result.unwrap();
            assert_eq!((end.leader_epoch, end.end_offset), log.epoch_end(epoch), "epoch {epoch}");
        }
        for offset in 0..=log.through {
            let state = rooms.fetcher.replica_state(&tp, None, Some(offset)).await.result.unwrap();
            assert_eq!(state.leader_epochs, log.epochs(offset), "offset {offset}");
            assert_eq!(state.producers, log.producers(offset), "offset {offset}");
            assert!(state.complete && state.offset == offset);
        }
        let beyond = rooms.fetcher.replica_state(&tp, None, Some(log.through + 1)).await;
        assert_eq!(beyond.result.unwrap_err().status, Status::NotArchivedYet);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_beneath_say_nothing_of_where_epochs_end() {
    let mut random = StdRng::seed_from_u64(1);
    let folder = tempfile::tempdir().unwrap();
    let config = Config { writer_id: Some("w".to_owned()), ..Config::default() };
    let rooms = Rooms::over(Store::open("memory:").unwrap(), &config).unwrap();
    let old = make(0, 0, &mut random);
    let new = make(old.last + 1, 1, &mut random);
    // Far behind it batches of no known epoch, each over one of epoch 0.
    let (start, mut end) = (new.base, new.last + 1);
    let mut unaware = Vec::new();
    while end < 4 * (new.last + 1) {
        let beneath = make(end, 0, &mut random);
        let mut above = make(end, -1, &mut random);
        while above.last < beneath.last {
            above = make(end, -1, &mut random);
        }
        end = above.last + 1;
        unaware.extend([beneath, above]);
    }
    let last = make(end, 1, &mut random);
    for (id, batches) in (0..).zip([vec![old, new], unaware, vec![last]]) {
        let wal = folder.path().join("wal");
        let mut segment = WalWriter::create(&wal, "t", 0, id).unwrap();
        for made in &batches {
            segment.append(&made.wire).unwrap();
        }
        segment.finish().unwrap();
        archive(&rooms, folder.path(), &mut random).await;
    }
    let tp = TopicPartition::new(TopicName::new("t").unwrap(), 0).unwrap();
    let ends = rooms.fetcher.epoch_end(&tp, None, None, 0).await.result.unwrap();
    assert_eq!((ends.leader_epoch, ends.end_offset), (0, start));
}

#[tokio::test(flavor = "multi_thread")]
async fn lookups_by_time_and_epoch_equal_brute_force() {
    let histories = std::env::var("TIERD_TEST_HISTORIES").ok();
    let histories = histories.map_or(HISTORIES, |text| text.parse().unwrap());
    let first = std::env::var("TIERD_TEST_SEED").map_or(0, |text| text.parse().unwrap());
    for seed in first..first + histories {
        let ended = tokio::spawn(history(seed)).await;
        assert!(ended.is_ok(), "TIERD_TEST_SEED={seed} TIERD_TEST_HISTORIES=1 fails: {ended:?}");
    }
}

/// Offsets and timestamps of one partition, as a Kafka client read them.
fn expected(topic: &str, partition: i32) -> Vec<Seen> {
    let records = &fixture::expected(topic, "read_uncommitted")[&partition];
    let number = |record: &serde_json::Value, name: &str| record[name].as_i64().unwrap();
    let seen = |record: &serde_json::Value| Seen {
        offset: number(record, "offset"),
        timestamp: number(record, "timestamp"),
    };
    records.iter().map(seen).collect()
}

#[tokio::test]
async fn a_real_log_is_found_by_time_through_the_client() {
    let folder = tempfile::tempdir().unwrap();
    let tierd = Tierd::new(TIERD, folder.path());
    let _ = tierd.archive(&fixture::wal()).ok();
    let daemon = tierd.serve(&[]);
    let client = ArchiveClient::connect_lazy(&daemon.address).unwrap();
    for (topic, partition) in [("orders", 0), ("orders", 1), ("busy", 0)] {
        let log = expected(topic, partition);
        let disorder = log.windows(2).filter(|pair| pair[0].timestamp > pair[1].timestamp).count();
        assert!(topic != "orders" || disorder > 0, "the fixture tells nothing");
        let mut queries = vec![OffsetArgs::new(topic, partition, OffsetSpec::MaxTimestamp)];
        let greatest = log.iter().max_by_key(|seen| (seen.timestamp, -seen.offset)).unwrap();
        let mut wanted = vec![Some((greatest.offset, greatest.timestamp))];
        for target in log.iter().step_by(7).map(|seen| seen.timestamp) {
            for ms in [target, target + 1] {
                let first = log.iter().find(|seen| seen.timestamp >= ms);
                queries.push(OffsetArgs::new(topic, partition, OffsetSpec::At(ms)));
                wanted.push(first.map(|seen| (seen.offset, seen.timestamp)));
            }
        }
        let answers = client.list_offsets(&queries).await.unwrap();
        let found: Vec<_> = answers
            .into_iter()
            .map(|answer| answer.result.unwrap().map(|found| (found.offset, found.timestamp)))
            .collect();
        assert_eq!(found, wanted, "{topic}-{partition}");
    }
}

#[test]
fn what_the_archive_cannot_know_is_an_error_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let tierd = Tierd::new(TIERD, folder.path());
    let _ = tierd.archive(&fixture::wal()).ok();
    let daemon = tierd.serve(&[]);
    let client = BlockingArchiveClient::connect_lazy(&daemon.address).unwrap();
    let asked = [
        OffsetArgs::new("orders", 0, OffsetSpec::Latest),
        OffsetArgs::new("nope", 0, OffsetSpec::Earliest),
        OffsetArgs::new("orders", 0, OffsetSpec::Earliest),
    ];
    let answers = client.list_offsets(&asked).unwrap();
    let error = answers[0].result.as_ref().unwrap_err();
    assert!(matches!(error, ArchiveError::NotReported { .. }), "{error}");
    assert_eq!(error.kafka_error_code(), 78);
    let error = answers[1].result.as_ref().unwrap_err();
    assert!(matches!(error, ArchiveError::UnknownTopicOrPartition { .. }), "{error}");
    assert_eq!(answers[2].result.as_ref().unwrap().unwrap().offset, 0);
    assert!(answers[2].bounds.is_some());

    let epoch = |topic: &str, leader_epoch| EpochArgs {
        topic: topic.to_owned(),
        partition: 0,
        incarnation: None,
        leader_epoch,
        current_leader_epoch: None,
    };
    let ends = client.offset_for_leader_epoch(&[epoch("orders", 1_000), epoch("nope", 0)]).unwrap();
    assert_eq!(ends[0].result, Ok(None));
    assert!(ends[1].result.is_err());
    let error = client.list_offsets(&[]).unwrap_err();
    assert!(matches!(error, ArchiveError::Invalid { .. }), "{error}");
}
