//! Stored bytes that change behind our back: flipped, cut, swapped, zeroed, taken from
//! another object, gone. No answer holds a wrong byte or fewer batches than it says;
//! a partition that cannot be answered names the object; what lies elsewhere is
//! answered still; and `verify --deep` finds every one.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use tierd::archive::ArchiveOptions;
use tierd::clock::SystemClock;
use tierd::config::Config;
use tierd::daemon::Rooms;
use tierd::fetch::{EndReason, FetchEvent, FetchRequest, Status};
use tierd::indexer::{Indexer, LiveIndexer};
use tierd::read::ReadStats;
use tierd::record::{Codec, TopicName, TopicPartition};
use tierd::store::Store;
use tierd::upkeep::verify_partition;
use tierd::wal::{WalDir, WalFormat};
use tierd_tests::audit::range_of;
use tierd_tests::chronik::{WalWriter, sample_batch};
use tierd_tests::reads::all_from;

/// Corruptions of every change.
const CORRUPTIONS: u64 = 300;
/// Bytes after which an archive is full: several of them, of several chunks' kinds.
const ARCHIVE_BYTES: u64 = 20_000;
/// Bytes of each record's value there.
const VALUE_BYTES: usize = 300;
/// Batches of each of the two runs.
const BATCHES: i64 = 12;

/// What is stored, and the log it holds.
struct Stored {
    objects: Vec<(Path, Bytes)>,
    batches: Vec<Bytes>,
    newest: Path,
}

fn tp() -> TopicPartition {
    TopicPartition::new(TopicName::new("t").unwrap(), 0).unwrap()
}

fn rooms(objects: &Arc<dyn ObjectStore>) -> Rooms {
    let config = Config { writer_id: Some("w".to_owned()), ..Config::default() };
    let store = Store::new(Arc::clone(objects), "").with_backoff(Duration::ZERO);
    Rooms::over(store, &config).unwrap()
}

/// Archives two runs of records with values of `value_bytes`, `archive_bytes` to an
/// archive: compressed and other batches, and some beneath others.
async fn archive(value_bytes: usize, archive_bytes: u64) -> Stored {
    let folder = tempfile::tempdir().unwrap();
    let objects: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let mut batches = Vec::new();
    for run in 0..2 {
        let wal = folder.path().join("wal");
        let mut segment = WalWriter::create(&wal, "t", 0, run).unwrap();
        let codecs = [Codec::None, Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd];
        for number in 0..BATCHES {
            let base = 10 * (BATCHES * run as i64 + number);
            let codec = codecs[number as usize % codecs.len()];
            let wire = sample_batch(base, 10, value_bytes, codec).unwrap();
            if number % 5 == 2 {
                segment.append(&sample_batch(base, 10, value_bytes / 2, codec).unwrap()).unwrap();
            }
            segment.append(&wire).unwrap();
            batches.push(wire);
        }
        segment.finish().unwrap();
        let rooms = rooms(&objects);
        let options = ArchiveOptions { target_log_bytes: archive_bytes, ..Default::default() };
        let indexer = Indexer::new(
            WalFormat::Chronik,
            Arc::clone(&rooms.catalog),
            rooms.store.clone(),
            rooms.reader.clone(),
            folder.path().join("scratch"),
            options,
            rooms.metrics.clone(),
        );
        let wal = WalDir::open(&wal, WalFormat::Chronik).unwrap();
        let offline = Config::default().live(true).unwrap();
        let live = LiveIndexer::new(indexer, wal, offline, SystemClock::new(), Arc::new(|| 1.0));
        let report = Arc::new(live).run_once(|_| {}).await.unwrap();
        assert!(!report.failed());
    }
    let mut stored = Vec::new();
    let all: Vec<_> = objects.list(None).try_collect().await.unwrap();
    for object in all {
        let bytes = objects.get(&object.location).await.unwrap().bytes().await.unwrap();
        stored.push((object.location, bytes));
    }
    stored.sort();
    let manifests = stored.iter().filter(|(path, _)| path.as_ref().contains("/manifest/"));
    let newest = manifests.map(|(path, _)| path.clone()).max().unwrap();
    Stored { objects: stored, batches, newest }
}

/// What an object is after something happened to it; `None` when it is gone.
fn corrupt(bytes: &Bytes, other: &Bytes, random: &mut StdRng) -> (&'static str, Option<Bytes>) {
    let mut changed = bytes.to_vec();
    let len = changed.len();
    let at = random.random_range(0..len);
    let span = random.random_range(1..=len.min(600)).min(len - at);
    match random.random_range(0..9) {
        0..3 => {
            changed[at] ^= 1 << random.random_range(0..8);
            ("a bit flipped", Some(changed.into()))
        }
        3 => {
            changed[at..at + span].fill(0);
            ("zeroed", Some(changed.into()))
        }
        4 => {
            changed.truncate(at);
            ("cut off", Some(changed.into()))
        }
        5 => {
            let to = random.random_range(0..=len - span);
            let piece: Vec<u8> = changed[at..at + span].to_vec();
            changed.splice(at..at + span, bytes[to..to + span].iter().copied());
            changed.splice(to..to + span, piece);
            ("ranges swapped", Some(changed.into()))
        }
        6 => {
            changed[at..at + span].shuffle(random);
            ("shuffled", Some(changed.into()))
        }
        7 => ("another object's bytes", Some(other.clone())),
        _ => ("gone", None),
    }
}

/// Reads the whole log; says which batches could not be read. Panics at a wrong one.
async fn read(rooms: &Rooms, stored: &Stored, object: &Path) -> Vec<bool> {
    let mut lost = Vec::new();
    let mut at = 0;
    while at < stored.batches.len() {
        let offset = range_of(&stored.batches[at]).0;
        let (sink, mut events) = tokio::sync::mpsc::channel(1_000);
        let request =
            FetchRequest { partitions: vec![all_from(&tp(), offset)], max_bytes: u64::MAX };
        rooms.fetcher.fetch(request, &sink, &ReadStats::default()).await.unwrap();
        drop(sink);
        let mut wire = Vec::new();
        let mut ended = None;
        while let Some(event) = events.recv().await {
            match event {
                FetchEvent::Header(_) => {}
                FetchEvent::Data(data) => wire.extend_from_slice(&data.wire),
                FetchEvent::Trailer(trailer) => ended = Some(trailer),
            }
        }
        let ended = ended.expect("an answer ends");
        let mut rest = &wire[..];
        while !rest.is_empty() {
            let next = &stored.batches[at];
            assert!(rest.starts_with(next), "a wrong byte in batch {at}, {object} is damaged");
            rest = &rest[next.len()..];
            lost.push(false);
            at += 1;
        }
        match ended.status {
            Status::Ok => {
                assert_eq!(ended.end, EndReason::EndOfArchive, "{object}");
                assert_eq!(at, stored.batches.len(), "fewer batches than there are, {object}");
            }
            // Unavailable where a byte says that a later version wrote it.
            Status::DataLoss | Status::Unavailable => {
                let named = ended.object.as_deref() == Some(object.as_ref())
                    || ended.message.contains(object.as_ref());
                assert!(named, "{object} is damaged: {} {:?}", ended.message, ended.object);
                lost.push(true);
                at += 1;
            }
            other => panic!("{object} is damaged: {other:?} {}", ended.message),
        }
    }
    lost
}

/// What `verify --deep` finds.
async fn verify(rooms: &Rooms) -> Vec<String> {
    let (store, catalog, reader) = (&rooms.store, &rooms.catalog, &rooms.reader);
    let now = rooms.clock.now_ms();
    let check = match verify_partition(store, catalog, reader, &tp(), 0, true, now).await {
        Ok(check) => check,
        // A byte that says which version it is: it cannot be read, and is named.
        Err(error) => return vec![error.to_string()],
    };
    check.problems().map(|problem| format!("{} {}", problem.object, problem.why)).collect()
}

/// Offsets of an archive, by its name.
fn range_in(object: &Path) -> Option<(i64, i64)> {
    let name = object.filename()?.strip_suffix(".tar.gz")?;
    let mut parts = name.split('-').skip(1);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

async fn one(stored: &Stored, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let which = random.random_range(0..stored.objects.len());
    let other = random.random_range(0..stored.objects.len());
    let (object, bytes) = &stored.objects[which];
    let (how, changed) = corrupt(bytes, &stored.objects[other].1, &mut random);
    // Whether the newest manifest was ever there, only what tells of it can say.
    let untold = *object == stored.newest && changed.is_none();
    // What a writer remembers is no part of what can be read.
    let own = object.as_ref().contains("/writers/");
    if changed.as_ref() == Some(bytes) || untold || own {
        return;
    }
    let rooms = with(stored, object, changed.clone()).await;
    // Manifests and incarnations are found by what is there: without one, what comes
    // behind it is not known to a reader. Only a listing tells, which `verify` asks for.
    let leads = ["/incarnations/", "/manifest/"].iter().any(|part| object.as_ref().contains(part));
    if changed.is_some() || !leads {
        let lost = read(&rooms, stored, object).await;
        if let Some((base, last)) = range_in(object) {
            for (wire, lost) in stored.batches.iter().zip(lost) {
                let inside = (base..=last).contains(&range_of(wire).0);
                assert!(inside || !lost, "{object} {how}: what it does not hold is lost");
            }
        }
    }
    let found = verify(&rooms).await;
    assert!(!found.is_empty(), "{object} {how}: verify --deep finds nothing");
}

/// The objects of `stored`, with `object` as `changed`.
async fn with(stored: &Stored, object: &Path, changed: Option<Bytes>) -> Rooms {
    let objects: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    for (path, bytes) in &stored.objects {
        let bytes = if path == object { changed.clone() } else { Some(bytes.clone()) };
        if let Some(bytes) = bytes {
            objects.put(path, bytes.into()).await.unwrap();
        }
    }
    rooms(&objects)
}

/// Table: F9 F11 I6 | each chunk of stored archives, one after the other
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_chunk_costs_its_own_batches_and_no_others() {
    let stored = archive(30_000, 1 << 30).await;
    let clean = with(&stored, &Path::from("none"), None).await;
    let snapshot = clean.catalog.load(&tp(), None).await.unwrap().unwrap();
    let mut chunks = 0;
    for entry in snapshot.entries().await.unwrap() {
        let object = Path::from(entry.key().to_string());
        let bytes = &stored.objects.iter().find(|(path, _)| *path == object).unwrap().1;
        let toc = clean.reader.toc(&entry, &ReadStats::default()).await.unwrap();
        for chunk in toc.log().map_or(&[][..], |log| toc.chunks_of(log)) {
            let mut flipped = bytes.to_vec();
            flipped[(chunk.place + u64::from(chunk.packed / 2)) as usize] ^= 1;
            let rooms = with(&stored, &object, Some(flipped.into())).await;
            let lost = read(&rooms, &stored, &object).await;
            let held = stored.batches.iter().map(|wire| range_of(wire).0);
            let wanted: Vec<bool> =
                held.map(|base| (chunk.first..=chunk.last).contains(&base)).collect();
            assert_eq!(lost, wanted, "chunk {}..={} of {object}", chunk.first, chunk.last);
            let listed = rooms.reader.quarantine().entries();
            assert_eq!(listed, std::slice::from_ref(&entry), "what reads found is in quarantine");
            chunks += 1;
        }
        let rooms = with(&stored, &object, None).await;
        let lost = read(&rooms, &stored, &object).await.iter().filter(|lost| **lost).count();
        assert_eq!(lost as u32, entry.tile().map_or(0, |_| entry.summary.batches));
        assert_eq!(rooms.reader.quarantine().count(), u64::from(lost > 0));
    }
    assert!(chunks > 5, "{chunks} chunks");
    assert_eq!(clean.reader.quarantine().count(), 0);
}

/// Table: F9 F11 I6 | stored objects, one damaged at a time | CORRUPTIONS
/// TIERD_TEST_CORRUPTIONS
#[test]
fn every_corruption_is_found_before_a_wrong_byte_leaves() {
    let corruptions = std::env::var("TIERD_TEST_CORRUPTIONS").ok();
    let corruptions = corruptions.map_or(CORRUPTIONS, |text| text.parse().unwrap());
    let first: u64 = std::env::var("TIERD_TEST_SEED").map_or(0, |text| text.parse().unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let stored = archive(VALUE_BYTES, ARCHIVE_BYTES).await;
        // No false alarm.
        let clean = with(&stored, &Path::from("none"), None).await;
        assert!(read(&clean, &stored, &Path::from("none")).await.iter().all(|lost| !lost));
        assert_eq!(verify(&clean).await, Vec::<String>::new());
        let stored = Arc::new(stored);
        for seed in first..first + corruptions {
            let stored = Arc::clone(&stored);
            let ended = tokio::spawn(async move { one(&stored, seed).await }).await;
            assert!(ended.is_ok(), "TIERD_TEST_SEED={seed} TIERD_TEST_CORRUPTIONS=1: {ended:?}");
        }
    });
}
