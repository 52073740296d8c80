//! Owns a small world to search: partitions of archives in a store, made without a
//! WAL, and every record that their served logs hold, to be looked through by brute
//! force.
//!
//! The records are as awkward as Kafka allows: null, empty, binary and long keys,
//! tombstones, doubled headers and null ones, times that go back, log-append time,
//! offsets that compaction left out, batches that overlap, transactions with their
//! markers, five codecs.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use object_store::ObjectStore;
use object_store::memory::InMemory;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tierd::archive::{ArchiveIdentity, ArchiveOptions, ArchiveWriter, IndexLevel, WalRank};
use tierd::catalog::{ArchiveEntry, Catalog, ClusterName, Edit, Snapshot, Snapshots, WriterId};
use tierd::clock::ManualClock;
use tierd::read::{ArchiveReader, ReadOptions};
use tierd::record::{
    BatchHeader, CanonicalRecord, CanonicalRecordEntry, Header, TopicName, TopicPartition,
};
use tierd::search::Searcher;
use tierd::store::Store;

/// When the first record was made.
pub const BEGAN_MS: i64 = 1_700_000_000_000;

/// How large a world is.
#[derive(Clone, Debug)]
pub struct Size {
    /// Topic and partition of each, with how many archives it has.
    pub partitions: Vec<(&'static str, i32, usize)>,
    /// Records of one archive, about.
    pub records: usize,
    /// Of one archive in how many there is no index.
    pub one_without_index_in: usize,
}

/// One record of a served log, and what of its batch can be searched for.
#[derive(Clone, Debug)]
pub struct Known {
    /// Topic and partition.
    pub tp: TopicPartition,
    /// As in the batch.
    pub entry: CanonicalRecordEntry,
    /// As a consumer sees it.
    pub timestamp: i64,
    /// The batch that it came in.
    pub batch: Arc<CanonicalRecord>,
}

/// A partition and its served records, ascending by offset.
#[derive(Clone, Debug)]
pub struct Log {
    /// Topic and partition.
    pub tp: TopicPartition,
    /// Its records.
    pub records: Vec<Known>,
}

/// A world.
#[derive(Debug)]
pub struct World {
    /// Where the archives are.
    pub store: Store,
    /// What is committed.
    pub catalog: Arc<Catalog>,
    /// By topic and partition.
    pub logs: Vec<Log>,
    /// A folder for files that come and go.
    pub scratch: tempfile::TempDir,
}

/// A catalog over `store` whose clock stands still.
#[must_use]
pub fn catalog(store: &Store, writer: &str) -> Arc<Catalog> {
    let (next, name) = (AtomicU64::new(0), writer.to_owned());
    let nonce = move || {
        let seed = format!("{name} {}", next.fetch_add(1, Ordering::Relaxed));
        let mut nonce = [0; 16];
        nonce.copy_from_slice(&blake3::hash(seed.as_bytes()).as_bytes()[..16]);
        nonce
    };
    let cluster = ClusterName::new("default").expect("a name");
    let writer = WriterId::new(writer).expect("an id");
    let clock = ManualClock::at(BEGAN_MS);
    Arc::new(Catalog::new(store.clone(), cluster, writer, clock, Box::new(nonce)))
}

/// Topic and partition.
#[must_use]
pub fn tp(topic: &str, partition: i32) -> TopicPartition {
    TopicPartition::new(TopicName::new(topic).expect("a topic"), partition).expect("a partition")
}

impl World {
    /// A world of `size` in memory, the same for the same seed.
    pub async fn of(seed: u64, size: &Size) -> Self {
        Self::over(Arc::new(InMemory::new()), seed, size).await
    }

    /// As [`Self::of`], in `objects`.
    pub async fn over(objects: Arc<dyn ObjectStore>, seed: u64, size: &Size) -> Self {
        Self::indexed(objects, seed, size, IndexLevel::Keys).await
    }

    /// As [`Self::over`], with another index level where there is an index.
    pub async fn indexed(
        objects: Arc<dyn ObjectStore>,
        seed: u64,
        size: &Size,
        indexed: IndexLevel,
    ) -> Self {
        let store = Store::new(objects, "");
        let catalog = catalog(&store, "world");
        let scratch = tempfile::tempdir().expect("a folder");
        let mut world = Self { store, catalog, logs: Vec::new(), scratch };
        for (number, (topic, partition, archives)) in size.partitions.iter().enumerate() {
            let mut maker = Maker::new(seed + number as u64, tp(topic, *partition));
            let mut base = None;
            for archive in 0..*archives {
                let level = match archive % size.one_without_index_in {
                    0 if size.one_without_index_in > 1 => IndexLevel::None,
                    _ => indexed,
                };
                let batches = maker.archive(size.records);
                base = Some(world.commit(&maker.tp, base, &batches, level).await);
            }
            world.logs.push(Log { tp: maker.tp, records: maker.served });
        }
        world.logs.sort_by(|a, b| a.tp.cmp(&b.tp));
        world
    }

    /// The same world in another store, which holds the same.
    #[must_use]
    pub fn on(&self, objects: Arc<dyn ObjectStore>, writer: &str) -> Self {
        let store = Store::new(objects, "").with_backoff(Duration::ZERO);
        let (catalog, scratch) = (catalog(&store, writer), tempfile::tempdir().expect("a folder"));
        Self { store, catalog, logs: self.logs.clone(), scratch }
    }

    /// Archives `batches` behind `base` and commits them.
    pub async fn commit(
        &self,
        tp: &TopicPartition,
        base: Option<Arc<Snapshot>>,
        batches: &[CanonicalRecord],
        level: IndexLevel,
    ) -> Arc<Snapshot> {
        self.commit_over(tp, base, batches, &[], level).await
    }

    /// As [`Self::commit`], with batches `beneath` that those supersede.
    pub async fn commit_over(
        &self,
        tp: &TopicPartition,
        base: Option<Arc<Snapshot>>,
        batches: &[CanonicalRecord],
        beneath: &[CanonicalRecord],
        level: IndexLevel,
    ) -> Arc<Snapshot> {
        let identity = ArchiveIdentity { tp: tp.clone(), incarnation: 0 };
        let options = ArchiveOptions { index_level: level, ..ArchiveOptions::default() };
        let number = base.as_deref().map_or(0, Snapshot::number) + 1;
        let start = base.as_deref().map_or(0, Snapshot::archived_through);
        let (scratch, batches) = (self.scratch.path(), (batches, beneath));
        let built = build_over(scratch, &identity, start, batches, options);
        let entry =
            ArchiveEntry::new(self.catalog.cluster(), &identity, number, built.summary.clone());
        self.store.put_file(&entry.key(), &built.path).await.expect("stored");
        let edit = Edit { add: vec![entry], ..Edit::default() };
        let committed = self.catalog.commit(tp, 0, base, edit).await.expect("committed");
        Arc::clone(committed.snapshot())
    }

    /// A searcher with nothing cached.
    #[must_use]
    pub fn searcher(&self) -> Searcher {
        let clock = ManualClock::at(BEGAN_MS);
        let snapshots = Arc::new(Snapshots::new(Arc::clone(&self.catalog), clock));
        Searcher::new(snapshots, ArchiveReader::new(self.store.clone(), ReadOptions::default()))
    }
}

/// Builds an archive of `batches`, which tiles from `start` on, below `scratch`.
#[must_use]
pub fn build(
    scratch: &Path,
    identity: &ArchiveIdentity,
    start: i64,
    batches: &[CanonicalRecord],
    options: ArchiveOptions,
) -> tierd::archive::BuiltArchive {
    build_over(scratch, identity, start, (batches, &[]), options)
}

/// As [`build`], with batches `beneath` that those supersede.
fn build_over(
    scratch: &Path,
    identity: &ArchiveIdentity,
    start: i64,
    (batches, beneath): (&[CanonicalRecord], &[CanonicalRecord]),
    options: ArchiveOptions,
) -> tierd::archive::BuiltArchive {
    let mut writer = ArchiveWriter::create(scratch, identity.clone(), start, options)
        .expect("an archive begins");
    for (number, batch) in batches.iter().enumerate() {
        let rank = WalRank { segment: 1, position: number as u64 };
        let _ = writer.push(batch, rank).expect("a batch of the chain");
    }
    for (number, batch) in beneath.iter().enumerate() {
        let rank = WalRank { segment: 0, position: number as u64 };
        let _ = writer.push_overlap(batch, rank).expect("a batch beneath");
    }
    writer.finish().expect("an archive")
}

/// Makes the log of one partition.
struct Maker {
    rng: StdRng,
    tp: TopicPartition,
    next: i64,
    now: i64,
    served: Vec<Known>,
}

impl Maker {
    fn new(seed: u64, tp: TopicPartition) -> Self {
        Self { rng: StdRng::seed_from_u64(seed), tp, next: 0, now: BEGAN_MS, served: Vec::new() }
    }

    /// Batches with about `records` records, from the next offset on.
    fn archive(&mut self, records: usize) -> Vec<CanonicalRecord> {
        let mut batches = Vec::new();
        let mut made = 0;
        while made < records {
            let batch = self.batch();
            made += batch.header().record_count as usize;
            batches.push(batch);
        }
        batches
    }

    fn batch(&mut self) -> CanonicalRecord {
        let rng = &mut self.rng;
        // Now and then a batch reaches back over the one before, and is served
        // only behind it.
        let back = if rng.random_bool(0.03) { rng.random_range(1..4).min(self.next) } else { 0 };
        let base = self.next - back;
        let control = rng.random_bool(0.02);
        let count = if control { 1 } else { rng.random_range(1..=120) };
        let compacted = rng.random_bool(0.2);
        let mut offset = base;
        let mut entries = Vec::new();
        self.now += rng.random_range(0..2_000);
        for _ in 0..count {
            offset += if compacted { rng.random_range(0..3) } else { 0 };
            entries.push(record(rng, offset, self.now, control));
            offset += 1;
        }
        // It must reach beyond what is served already.
        let last = (offset - 1 + rng.random_range(0..3)).max(self.next);
        let mut attributes = rng.random_range(0..5);
        let producer_id = if rng.random_bool(0.5) { rng.random_range(0..12) } else { -1 };
        let times = entries.iter().map(|entry| entry.timestamp);
        let greatest = times.clone().max().unwrap_or(self.now);
        if control {
            attributes = 0x30;
        } else if rng.random_bool(0.1) {
            attributes |= 0x08;
        } else if producer_id >= 0 && rng.random_bool(0.3) {
            attributes |= 0x10;
        }
        let header = BatchHeader {
            base_offset: base,
            batch_length: 0,
            partition_leader_epoch: 0,
            crc: 0,
            attributes,
            last_offset_delta: (last - base) as i32,
            base_timestamp: times.min().unwrap_or(self.now),
            max_timestamp: greatest,
            producer_id: if control { producer_id.max(0) } else { producer_id },
            producer_epoch: 0,
            base_sequence: -1,
            record_count: 0,
        };
        let made = CanonicalRecord::from_entries(header, entries.clone()).expect("a batch");
        let wire = made.to_kafka_batch().expect("its bytes");
        let batch = CanonicalRecord::from_wire(wire).expect("the same batch");
        if !control {
            let whole = Arc::new(batch.clone());
            for entry in entries.into_iter().filter(|entry| entry.offset >= self.next) {
                let timestamp = if attributes & 8 == 0 { entry.timestamp } else { greatest };
                let (tp, batch) = (self.tp.clone(), Arc::clone(&whole));
                self.served.push(Known { tp, entry, timestamp, batch });
            }
        }
        self.next = last + 1;
        batch
    }
}

/// Keys of which many records are, fewer of the later ones.
#[must_use]
pub fn customer(rng: &mut StdRng) -> String {
    let most = 1 << rng.random_range(1..12);
    format!("c-{:05}", rng.random_range(0..most))
}

fn record(rng: &mut StdRng, offset: i64, now: i64, control: bool) -> CanonicalRecordEntry {
    let key = match rng.random_range(0..100) {
        _ if control => Some(Bytes::from_static(&[0, 0, 0, 1])),
        0..3 => None,
        3 => Some(Bytes::new()),
        4..7 => Some(Bytes::from(vec![0xff, rng.random_range(0..3), 0xff])),
        // Longer than the index keeps, alike in front.
        7 => {
            let mut key = vec![b'k'; rng.random_range(1_020..1_030)];
            key.push(rng.random_range(b'a'..b'f'));
            Some(Bytes::from(key))
        }
        _ => Some(Bytes::from(customer(rng))),
    };
    let mut headers = Vec::new();
    for _ in 0..rng.random_range(0..6_u8).saturating_sub(3) {
        let name = ["trace", "source", "h", "", "\u{65e5}"][rng.random_range(0..5)];
        let value = match rng.random_range(0..20) {
            0 => None,
            1 => Some(Bytes::new()),
            2 => Some(Bytes::from(vec![b'v'; rng.random_range(1_015..1_030)])),
            _ => Some(Bytes::from(format!("v-{}", rng.random_range(0..50)))),
        };
        headers.push(Header { name: Bytes::from(name), value });
    }
    let value = match rng.random_range(0..50) {
        0 => None,
        1 => Some(Bytes::new()),
        2 => Some(Bytes::from_static(&[0xde, 0xad])),
        _ => Some(Bytes::from(value(rng))),
    };
    let timestamp = now + rng.random_range(-500..500);
    CanonicalRecordEntry { offset, timestamp, attributes: 0, key, value, headers }
}

/// Words of values.
pub const WORDS: [&str; 12] = [
    "red", "green", "blue", "order", "paid", "late", "open", "closed", "gift", "fast", "slow",
    "new",
];
/// Cities of values.
pub const CITIES: [&str; 5] = ["Berlin", "Bonn", "New York", "Sankt P\u{f6}lten", "Rom"];

fn value(rng: &mut StdRng) -> String {
    let words = (0..rng.random_range(1..6)).map(|_| WORDS[rng.random_range(0..WORDS.len())]);
    let words: Vec<&str> = words.collect();
    let city = CITIES[rng.random_range(0..CITIES.len())];
    let amount = rng.random_range(-50..500);
    let at =
        format!("2024-03-{:02}T{:02}:00:00Z", rng.random_range(1..32), rng.random_range(0..24));
    // Numbers of both sorts under one name, and a list.
    let price = match rng.random_range(0..3) {
        0 => amount.to_string(),
        _ => format!("{amount}.{}", rng.random_range(1..10)),
    };
    let tags: Vec<String> = words.iter().take(2).map(|word| format!("\"{word}\"")).collect();
    format!(
        r#"{{"city":"{city}","amount":{amount},"price":{price},"at":"{at}","in":{{"tags":[{}]}},"note":"{}"}}"#,
        tags.join(","),
        words.join(" ")
    )
}
