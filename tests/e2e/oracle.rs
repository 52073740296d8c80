//! Random histories of a WAL against a log that answers by brute force: what is
//! served, what is a gap, and where every answer begins and ends.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use tierd::archive::{ArchiveOptions, batches_in};
use tierd::clock::SystemClock;
use tierd::config::Config;
use tierd::daemon::Rooms;
use tierd::fetch::{
    EndReason, FetchEvent, FetchRequest, Isolation, Overlaps, PartitionRequest, Status,
};
use tierd::indexer::{Indexer, LiveIndexer};
use tierd::read::ReadStats;
use tierd::record::{Codec, TopicName, TopicPartition};
use tierd::store::Store;
use tierd::wal::{WalDir, WalFormat};
use tierd_tests::chronik::{WalWriter, sample_batch};

/// Histories tried; each archives a WAL in up to three runs.
const HISTORIES: u64 = 40;
/// Bytes after which an archive is full: small, so that answers cross archives.
const ARCHIVE_BYTES: u64 = 2_000;

/// A batch of the WAL, in WAL order.
#[derive(Clone, Debug)]
struct Written {
    base: i64,
    last: i64,
    wire: Bytes,
    committed: bool,
}

/// What the archive should hold, offset by offset.
#[derive(Debug, Default)]
struct Model {
    wal: Vec<Written>,
    /// Which batch serves an offset.
    served: BTreeMap<i64, usize>,
    gaps: BTreeSet<i64>,
    through: i64,
}

impl Model {
    /// The rule of the served log, with no cleverness: at each offset that nothing
    /// serves yet, the newest batch not committed before, and on behind it.
    fn archive(&mut self) {
        let end = self.wal.iter().map(|b| b.last).max().unwrap_or(-1).max(self.through - 1);
        let fresh: Vec<usize> =
            (0..self.wal.len()).filter(|&index| !self.wal[index].committed).collect();
        let mut next = 0;
        while next <= end {
            if self.served.contains_key(&next) {
                next += 1;
                continue;
            }
            let holds =
                |index: &&usize| self.wal[**index].base <= next && next <= self.wal[**index].last;
            match fresh.iter().filter(holds).max() {
                Some(&newest) => {
                    // As far as it reaches, or to what is committed already.
                    while next <= self.wal[newest].last && !self.served.contains_key(&next) {
                        self.served.insert(next, newest);
                        self.gaps.remove(&next);
                        next += 1;
                    }
                }
                None => {
                    self.gaps.insert(next);
                    next += 1;
                }
            }
        }
        self.through = self.through.max(end + 1);
        for batch in &mut self.wal {
            batch.committed = true;
        }
    }

    /// The bytes of an answer without limits, where it ends and why.
    fn answer(&self, offset: i64) -> (Vec<u8>, i64, &'static str) {
        let (mut wire, mut next) = (Vec::new(), offset);
        loop {
            if next >= self.through {
                return (wire, next, "end");
            }
            if self.gaps.contains(&next) {
                return (wire, next, "gap");
            }
            let batch = &self.wal[self.served[&next]];
            if batch.base < next && !wire.is_empty() {
                return (wire, next, "back");
            }
            wire.extend_from_slice(&batch.wire);
            next = batch.last + 1;
        }
    }
}

/// Appends random batches as one more segment: in and out of order, with holes,
/// overlaps and copies.
fn write_segment(model: &mut Model, wal: &Path, id: u64, random: &mut StdRng) {
    let mut segment = WalWriter::create(wal, "t", 0, id).unwrap();
    let mut end = model.wal.iter().map(|batch| batch.last + 1).max().unwrap_or(0);
    for _ in 0..random.random_range(1..14) {
        let count = random.random_range(1..6);
        let base = match random.random_range(0..10) {
            0 => end + random.random_range(1..7),
            1 | 2 => (end - random.random_range(0..12)).max(0),
            _ => end,
        };
        let copy = random.random_range(0..12) == 0 && !model.wal.is_empty();
        let wire = if copy {
            let which = random.random_range(0..model.wal.len());
            model.wal[which].wire.clone()
        } else {
            let value = 20 + (random.next_u32() % 200) as usize;
            sample_batch(base, count, value, Codec::None).unwrap()
        };
        segment.append(&wire).unwrap();
        let (base, last) = range_of(&wire);
        // The same bytes exist once: a copy makes the batch as new as itself, unless
        // it is committed.
        if let Some(at) = model.wal.iter().position(|batch| batch.wire == wire) {
            if !model.wal[at].committed {
                let batch = model.wal.remove(at);
                model.wal.push(batch);
                model.renumber(at);
            }
        } else {
            model.wal.push(Written { base, last, wire, committed: false });
        }
        end = end.max(last + 1);
    }
    segment.finish().unwrap();
}

impl Model {
    /// Batch `removed` went to the end of the list.
    fn renumber(&mut self, removed: usize) {
        for index in self.served.values_mut() {
            assert_ne!(*index, removed, "a served batch is committed and does not move");
            if *index > removed {
                *index -= 1;
            }
        }
    }
}

fn range_of(wire: &[u8]) -> (i64, i64) {
    let base = i64::from_be_bytes(wire[0..8].try_into().unwrap());
    (base, base + i64::from(i32::from_be_bytes(wire[23..27].try_into().unwrap())))
}

/// What the fetcher answers: bytes, next offset, why it ends.
async fn fetch(rooms: &Rooms, request: PartitionRequest) -> (Vec<u8>, i64, &'static str) {
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
                return (wire, trailer.next_offset, why);
            }
        }
    }
    panic!("no trailer came");
}

fn request(tp: &TopicPartition, offset: i64) -> PartitionRequest {
    PartitionRequest {
        tp: tp.clone(),
        incarnation: None,
        offset,
        max_bytes: u64::MAX,
        min_one_batch: true,
        upper_bound: None,
        isolation: Isolation::ReadUncommitted,
        overlaps: Overlaps::Served,
    }
}

/// Compares every offset of the archive with the model.
async fn compare(rooms: &Rooms, tp: &TopicPartition, model: &Model, random: &mut StdRng) {
    for offset in 0..model.through {
        let whole = model.answer(offset);
        let got = fetch(rooms, request(tp, offset)).await;
        assert_eq!(got, whole, "offset {offset}");

        let lens: Vec<usize> = batches_in(whole.0.clone().into())
            .map(|batch| batch.unwrap().header().wire_len())
            .collect();
        let max_bytes = random.random_range(0..=whole.0.len() as u64 + 1);
        let min_one_batch = random.random_bool(0.5);
        let limited =
            fetch(rooms, PartitionRequest { max_bytes, min_one_batch, ..request(tp, offset) })
                .await;
        let mut fits = 0;
        for (index, len) in lens.iter().enumerate() {
            if (fits + len) as u64 > max_bytes && !(index == 0 && min_one_batch) {
                break;
            }
            fits += len;
        }
        assert_eq!(limited.0, whole.0[..fits], "offset {offset}, {max_bytes} bytes");
        if fits < whole.0.len() {
            assert_eq!(limited.2, "limit", "offset {offset}, {max_bytes} bytes");
        }

        let bound = random.random_range(offset..=model.through);
        let bounded =
            fetch(rooms, PartitionRequest { upper_bound: Some(bound), ..request(tp, offset) })
                .await;
        let below: usize = batches_in(whole.0.clone().into())
            .map(Result::unwrap)
            .take_while(|batch| batch.range().last() < bound)
            .map(|batch| batch.header().wire_len())
            .sum();
        assert_eq!(bounded.0, whole.0[..below], "offset {offset} below {bound}");
    }
    // Every batch that was ever written comes back, by base offset.
    let all = PartitionRequest { overlaps: Overlaps::All, ..request(tp, 0) };
    let mut found = Vec::new();
    let mut offset = 0;
    while offset <= model.through {
        let (wire, next, why) = fetch(rooms, PartitionRequest { offset, ..all.clone() }).await;
        let batches = batches_in(wire.into()).map(|batch| batch.unwrap().to_kafka_batch().unwrap());
        found.extend(batches);
        match why {
            "gap" => offset = (next..).find(|n| !model.gaps.contains(n)).unwrap(),
            "end" => break,
            other => panic!("{other}"),
        }
    }
    assert!(found.is_sorted_by_key(|wire| range_of(wire).0), "bases go back");
    let found_once: BTreeSet<Bytes> = found.iter().cloned().collect();
    assert_eq!(found.len(), found_once.len(), "a batch came twice");
    let written: BTreeSet<Bytes> = model.wal.iter().map(|batch| batch.wire.clone()).collect();
    assert_eq!(found_once, written);
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
    let rooms = Rooms::over(Store::open("memory:").unwrap(), &config).unwrap();
    let tp = TopicPartition::new(TopicName::new("t").unwrap(), 0).unwrap();
    let mut model = Model::default();
    for run in 0..random.random_range(1..4) {
        write_segment(&mut model, &wal, run, &mut random);
        let report = indexer(&rooms, folder.path()).run_once(|_| {}).await.unwrap();
        assert!(!report.failed(), "{:?}", report.partitions[0].error);
        model.archive();
        // A reader that knows nothing: caches of an older state would be in the way.
        let fresh = Rooms::over(rooms.store.clone(), &config).unwrap();
        let snapshot = fresh.fetcher.snapshot(&tp, None).await.unwrap().unwrap();
        assert_eq!(snapshot.archived_through(), model.through);
        compare(&fresh, &tp, &model, &mut random).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_equals_a_log_that_answers_by_brute_force() {
    let histories = std::env::var("TIERD_TEST_HISTORIES").ok();
    let histories = histories.map_or(HISTORIES, |text| text.parse().unwrap());
    let first = std::env::var("TIERD_TEST_SEED").map_or(0, |text| text.parse().unwrap());
    for seed in first..first + histories {
        let ended = tokio::spawn(history(seed)).await;
        assert!(ended.is_ok(), "TIERD_TEST_SEED={seed} TIERD_TEST_HISTORIES=1 fails: {ended:?}");
    }
}
