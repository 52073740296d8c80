//! Fetches with a selection against brute force: what is left of the served log, and
//! where the reader goes on.

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;
use tierd::archive::batches_in;
use tierd::catalog::Snapshots;
use tierd::clock::ManualClock;
use tierd::fetch::{
    EndReason, FetchEvent, FetchRequest, Fetcher, Overlaps, PartitionRequest, PartitionTrailer,
    Status,
};
use tierd::read::{ArchiveReader, ReadOptions, ReadStats};
use tierd::record::{
    CanonicalRecord, CanonicalRecordEntry, Codec, HeaderCondition, Selection, TopicPartition,
};
use tierd_tests::chronik::{WalWriter, sample_batch};
use tierd_tests::fixture;
use tierd_tests::process::Tierd;
use tierd_tests::reads::all_from;
use tierd_tests::three_phase::ledger;
use tierd_tests::world::{BEGAN_MS, Known, Log, Size, World};

use crate::TIERD;

fn fetcher(world: &World) -> Fetcher {
    let clock = ManualClock::at(BEGAN_MS);
    let snapshots = Snapshots::new(std::sync::Arc::clone(&world.catalog), clock);
    let reader = ArchiveReader::new(world.store.clone(), ReadOptions::default());
    Fetcher::new(std::sync::Arc::new(snapshots), reader)
}

fn request(tp: &TopicPartition, offset: i64, selection: Selection) -> PartitionRequest {
    PartitionRequest { selection: Some(selection), ..all_from(tp, offset) }
}

/// One answer: its batches, its end, what it cost.
async fn fetch(
    fetcher: &Fetcher,
    request: PartitionRequest,
) -> (Vec<CanonicalRecord>, PartitionTrailer, ReadStats) {
    let (sink, mut events) = tokio::sync::mpsc::channel(1_000);
    let (request, stats) =
        (FetchRequest { partitions: vec![request], max_bytes: u64::MAX }, ReadStats::default());
    fetcher.fetch(request, &sink, &stats).await.unwrap();
    drop(sink);
    let (mut batches, mut trailer) = (Vec::new(), None);
    while let Some(event) = events.recv().await {
        match event {
            FetchEvent::Data(data) => batches.extend(batches_in(data.wire).map(Result::unwrap)),
            FetchEvent::Trailer(found) => trailer = Some(found),
            FetchEvent::Header(_) => {}
        }
    }
    (batches, trailer.unwrap(), stats)
}

/// Condition by condition, said once more.
fn wanted(selection: &Selection, known: &Known) -> bool {
    let Known { entry, timestamp, batch, .. } = known;
    let has = |condition: &HeaderCondition| {
        entry.headers.iter().any(|header| {
            header.name == condition.name
                && (condition.value.is_none() || condition.value == header.value)
        })
    };
    let key = entry.key.as_ref();
    (selection.key.is_none() || selection.key.as_ref() == key)
        && selection.key_prefix.as_ref().is_none_or(|p| key.is_some_and(|k| k.starts_with(p)))
        && selection.headers.iter().all(has)
        && (selection.from_ms.unwrap_or(i64::MIN)..selection.until_ms.unwrap_or(i64::MAX))
            .contains(timestamp)
        && (selection.from_offset.unwrap_or(0)..selection.until_offset.unwrap_or(i64::MAX))
            .contains(&entry.offset)
        && selection.producer_id.is_none_or(|id| id == batch.header().producer_id)
}

/// A random selection of what there is.
fn selection(rng: &mut StdRng, log: &Log) -> Selection {
    let known = &log.records[rng.random_range(0..log.records.len())];
    let entry = &known.entry;
    let mut picked = Selection::default();
    let kind = rng.random_range(0..7);
    if kind == 0 || kind == 6 {
        picked.key = entry.key.clone();
    }
    if kind == 1 {
        picked.key_prefix = entry.key.as_ref().map(|key| key.slice(..key.len().min(5)));
    }
    if kind == 2
        && let Some(header) = entry.headers.first()
    {
        let value = header.value.clone().filter(|_| rng.random_bool(0.5));
        picked.headers = vec![HeaderCondition { name: header.name.clone(), value }];
    }
    if kind == 3 || kind == 6 {
        picked.from_ms = Some(known.timestamp - rng.random_range(0..3_000));
        picked.until_ms = picked.from_ms.map(|from| from + rng.random_range(1..90_000));
    }
    if kind == 4 {
        picked.from_offset = Some(entry.offset);
        picked.until_offset = Some(entry.offset + rng.random_range(1..500));
    }
    if kind == 5 {
        picked.producer_id = Some(rng.random_range(0..13));
    }
    picked
}

/// Every entry of `batches`, each of which must be as it says.
fn entries(batches: &[CanonicalRecord]) -> Vec<CanonicalRecordEntry> {
    let decode = |batch: &CanonicalRecord| {
        batch.verify_crc().unwrap();
        batch.decode().unwrap()
    };
    batches.iter().flat_map(decode).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_selection_leaves_equals_brute_force_wherever_and_however_it_is_read() {
    let partitions = vec![("clicks", 0, 5), ("orders", 0, 5)];
    let world = World::of(77, &Size { partitions, records: 600, one_without_index_in: 3 }).await;
    let mut rng = StdRng::seed_from_u64(5);
    let (mut found, mut empty, mut answers) = (0, 0, 0);
    for _ in 0..150 {
        // Some with warm caches, some with none.
        let fetcher = fetcher(&world);
        for _ in 0..2 {
            let log = &world.logs[rng.random_range(0..world.logs.len())];
            let picked = selection(&mut rng, log);
            let end = log.records.last().unwrap().entry.offset + 1;
            let start = rng.random_range(0..end);
            let bound = if rng.random_bool(0.3) { rng.random_range(start..=end) } else { i64::MAX };
            let max_bytes =
                if rng.random_bool(0.5) { rng.random_range(1..40_000) } else { u64::MAX };
            let due = log.records.iter().filter(|known| known.entry.offset >= start);
            let due = due.filter(|known| known.batch.range().last() < bound);
            let due: Vec<_> = due
                .filter(|known| wanted(&picked, known))
                .map(|known| known.entry.clone())
                .collect();
            let (mut got, mut next) = (Vec::new(), start);
            loop {
                let upper_bound = Some(bound).filter(|bound| *bound < i64::MAX);
                let asked = PartitionRequest {
                    max_bytes,
                    upper_bound,
                    ..request(&log.tp, next, picked.clone())
                };
                let (batches, trailer, _) = fetch(&fetcher, asked).await;
                assert_eq!(trailer.status, Status::Ok, "{}", trailer.message);
                let bytes: usize = batches.iter().map(|batch| batch.header().wire_len()).sum();
                assert_eq!((trailer.bytes, trailer.batches), (bytes as u64, batches.len() as u64));
                assert!(trailer.bytes <= max_bytes || batches.len() == 1);
                // No decoder meets offsets that go back, nor the same batch twice.
                let ranges = batches.iter().map(CanonicalRecord::range);
                assert!(ranges.clone().zip(ranges.skip(1)).all(|(a, b)| a.last() < b.base()));
                let through = batches.last().map_or(next, |batch| batch.range().end());
                assert!(trailer.next_offset >= through);
                got.extend(entries(&batches));
                answers += 1;
                empty += usize::from(batches.is_empty());
                match trailer.end {
                    EndReason::Limit | EndReason::OffsetsGoBack => {
                        assert!(trailer.next_offset > next, "{picked:?} from {next}");
                        next = trailer.next_offset;
                    }
                    EndReason::EndOfArchive | EndReason::UpperBound => break,
                    other => panic!("{other:?}"),
                }
            }
            assert_eq!(got, due, "{picked:?} from {start}");
            found += got.len();
        }
    }
    assert!(found > 5_000 && answers > 400 && empty > 5, "{found} {answers} {empty}");
}

#[tokio::test]
async fn archives_that_cannot_hold_it_are_not_opened() {
    let partitions = vec![("orders", 0, 8)];
    let world = World::of(3, &Size { partitions, records: 200, one_without_index_in: 1 }).await;
    let (log, fetcher) = (&world.logs[0], fetcher(&world));
    let nobody = Selection { key: Some(Bytes::from("nobody")), ..Selection::default() };
    let opened = async |selection: &Selection| {
        let (batches, trailer, stats) =
            fetch(&fetcher, request(&log.tp, 0, selection.clone())).await;
        assert_eq!(trailer.end, EndReason::EndOfArchive);
        (batches.len(), stats.totals())
    };
    let (batches, cold) = opened(&nobody).await;
    assert!(batches == 0 && cold.archives <= 1, "{cold:?}");
    let (_, warm) = opened(&nobody).await;
    assert_eq!((warm.chunk_requests, warm.toc_requests), (0, 0), "filters are kept: {warm:?}");
    let latest = log.records.iter().map(|known| known.timestamp).max().unwrap();
    let (batches, late) =
        opened(&Selection { from_ms: Some(latest), ..Selection::default() }).await;
    assert!(batches == 1 && late.archives <= 2, "{late:?}");
}

#[tokio::test]
async fn what_makes_no_sense_is_refused() {
    let partitions = vec![("orders", 0, 1)];
    let world = World::of(3, &Size { partitions, records: 50, one_without_index_in: 1 }).await;
    let (tp, fetcher) = (&world.logs[0].tp, fetcher(&world));
    let refused = async |asked: PartitionRequest, with: &str| {
        let (batches, trailer, _) = fetch(&fetcher, asked).await;
        assert!(batches.is_empty() && trailer.status == Status::InvalidRequest);
        assert!(trailer.message.contains(with), "{}", trailer.message);
    };
    let inside_out = Selection { from_ms: Some(5), until_ms: Some(5), ..Selection::default() };
    refused(request(tp, 0, inside_out), "ends where or before").await;
    let all = request(tp, 0, Selection::default());
    refused(PartitionRequest { overlaps: Overlaps::All, ..all }, "served log").await;
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A real broker's log, straight from the store and through a daemon and its client,
/// under both isolation levels: the same as picking from everything.
#[test]
fn fixtures_are_picked_from_alike_by_every_way() {
    let folder = tempfile::tempdir().unwrap();
    let tierd = Tierd::new(TIERD, folder.path());
    let _ = tierd.archive(&fixture::wal()).ok();
    let daemon = tierd.serve(&[]);
    let mut picked = 0;
    for (topic, partition) in fixture::batches().into_keys() {
        let number = partition.to_string();
        for isolation in ["read_uncommitted", "read_committed"] {
            let fetch = ["fetch", &topic, &number, "--isolation", isolation];
            let all = lines(&tierd.run(&fetch).ok().text());
            let has =
                |line: &Value| line["key"].as_str().is_some_and(|key| key.starts_with("c-00"));
            let due: Vec<Value> = all.into_iter().filter(has).collect();
            let prefix = [&fetch[..], &["--key-prefix", "c-00"]].concat();
            assert_eq!(lines(&tierd.run(&prefix).ok().text()), due, "{topic} {isolation}");
            let through = [&prefix[..], &["--endpoint", &daemon.address]].concat();
            assert_eq!(lines(&tierd.run(&through).ok().text()), due, "{topic} {isolation}");
            let little = [&through[..], &["--max-bytes", "2000", "--explain"]].concat();
            let little = tierd.run(&little).ok();
            assert!(due.starts_with(&lines(&little.text())), "{topic} {isolation}");
            assert!(due.is_empty() || little.stderr.contains("data"), "{little:?}");
            picked += due.len();
        }
    }
    assert!(picked > 500, "{picked}");
}

#[test]
fn aborted_records_do_not_come_and_open_transactions_end_the_answer() {
    let (folder, wal) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    ledger::write(wal.path()).unwrap();
    let tierd = Tierd::new(TIERD, folder.path());
    let _ = tierd.archive(wal.path()).ok();
    let daemon = tierd.serve(&[]);
    let all = ["fetch", ledger::TOPIC, "0", "--from", "0"];
    for (isolation, due) in
        [("read_committed", &ledger::COMMITTED[..]), ("read_uncommitted", &ledger::UNCOMMITTED[..])]
    {
        for endpoint in [&[][..], &["--endpoint", &daemon.address]] {
            let args = [&all[..], &["--isolation", isolation], endpoint].concat();
            let got = lines(&tierd.run(&args).ok().text());
            let got: Vec<i64> = got.iter().map(|line| line["offset"].as_i64().unwrap()).collect();
            assert_eq!(got, due, "{isolation}");
        }
    }
}

#[test]
fn a_gap_is_told_where_a_selection_comes_by() {
    let (folder, wal) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut segment = WalWriter::create(wal.path(), "holey", 0, 0).unwrap();
    for base in [0, 5, 20] {
        segment.append(&sample_batch(base, 5, 30, Codec::None).unwrap()).unwrap();
    }
    segment.finish().unwrap();
    let tierd = Tierd::new(TIERD, folder.path());
    let _ = tierd.archive(wal.path()).ok();
    let daemon = tierd.serve(&[]);
    let all = lines(&tierd.run(&["fetch", "holey", "0"]).ok().text());
    let last = all.last().unwrap();
    let (key, time) = (last["key"].as_str().unwrap(), last["timestamp"].to_string());
    for pick in [["--key", key], ["--from", &time], ["--key", "nobody"]] {
        for endpoint in [&[][..], &["--endpoint", &daemon.address]] {
            let args = [&["fetch", "holey", "0"], &pick[..], endpoint].concat();
            let got = tierd.run(&args).ok();
            assert!(got.stderr.contains("10..19") || got.stderr.contains("10-19"), "{got:?}");
            let found = lines(&got.text());
            assert_eq!(found.contains(last), pick[1] != "nobody", "{got:?}");
        }
    }
}
