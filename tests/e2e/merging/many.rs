//! A thousand small archives become few: what is left after gc, how often a byte is
//! rewritten, and that every batch and every search is what it was.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tierd::catalog::Snapshot;
use tierd::compact::gc::Grace;
use tierd::compact::merge::{Merged, plan};
use tierd::record::{CanonicalRecord, Codec, Selection, TopicName};
use tierd::search::{Scope, SearchRequest};
use tierd::store::Store;
use tierd::task::Pace;
use tierd_tests::chronik::sample_batch;
use tierd_tests::compacting::merge_all;
use tierd_tests::world::{Size, World};

use super::{Process, partition, process};
use crate::search::{ask, compare};

const ARCHIVES: usize = 1000;
/// Bytes of each where nothing else is said: the long mode has 1 MiB.
const ARCHIVE_BYTES: usize = 16 << 10;
const RECORDS: i64 = 8;

/// A batch of some bytes that do not compress, with keys that no other has.
fn batch(number: i64, bytes: usize) -> Bytes {
    let mut random = StdRng::seed_from_u64(number as u64);
    let sample = sample_batch(number * RECORDS, RECORDS as i32, 1, Codec::None).unwrap();
    let sample = CanonicalRecord::from_wire(sample).unwrap();
    let mut entries = sample.decode().unwrap();
    for (at, entry) in entries.iter_mut().enumerate() {
        let mut value = vec![0; bytes / RECORDS as usize];
        random.fill_bytes(&mut value);
        entry.key = Some(Bytes::from(format!("key-{number}-{at}")));
        entry.value = Some(value.into());
    }
    CanonicalRecord::from_entries(*sample.header(), entries).unwrap().to_kafka_batch().unwrap()
}

/// Archives and how often the bytes of each were rewritten.
#[derive(Default)]
struct Rewrites {
    /// By number; archive `n` begins at offset `n * RECORDS`.
    times: Vec<u32>,
    jobs: usize,
}

impl Rewrites {
    /// Carries out all that is to do.
    async fn merge(&mut self, process: &Process, target: u64) {
        loop {
            let base = process.newest().await;
            let entries = base.entries().await.unwrap();
            let jobs = plan(&base, &entries, target, &HashSet::new());
            let Some(job) = jobs.first() else { return };
            let (scratch, pace) = (process.scratch.path(), Pace::unlimited());
            let merged = process.compactor.merge(base, job, scratch, &pace).await.unwrap();
            let Merged::Committed(_, made) = merged else { panic!("{merged:?}") };
            let of = |offset: i64| (offset / RECORDS) as usize;
            let range = made.summary.range;
            for times in &mut self.times[of(range.base())..=of(range.last())] {
                *times += 1;
            }
            self.jobs += 1;
        }
    }
}

/// BLAKE3 of the served log.
async fn digest(process: &Process) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    for batch in process.log().await {
        hasher.update(&batch);
    }
    hasher.finalize()
}

/// Looks up keys from all over the log.
async fn look_up(process: &Process) {
    let searcher = tierd::search::Searcher::new(
        Arc::new(tierd::catalog::Snapshots::new(
            Arc::clone(&process.catalog),
            tierd::clock::SystemClock::new(),
        )),
        tierd::read::ArchiveReader::new(process.store.clone(), Default::default()),
    );
    for number in (0..ARCHIVES as i64).step_by(37) {
        let at = number % RECORDS;
        let key = Some(Bytes::from(format!("key-{number}-{at}")));
        let topic = Some(TopicName::new("orders").unwrap());
        let scope = Scope { topic, partition: Some(0), incarnation: None };
        let selection = Selection { key, ..Selection::default() };
        let request = SearchRequest { scope, selection, limit: 10, ..SearchRequest::default() };
        let answer = ask(&searcher, request).await.unwrap();
        let offsets: Vec<i64> = answer.hits.iter().map(|hit| hit.2).collect();
        assert_eq!(offsets, [number * RECORDS + at]);
        assert!(answer.summary.complete);
    }
}

/// A thousand archives; merged after every `step`, or once at the end. Returns how many
/// objects were left, and how often a byte was rewritten at most.
async fn merged_every(step: usize) -> (u64, u32) {
    let bytes = std::env::var("TIERD_TEST_MERGE_BYTES").ok();
    let bytes = bytes.map_or(ARCHIVE_BYTES, |text| text.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let store = match bytes > ARCHIVE_BYTES {
        true => Store::open_or_create(&format!("file://{}", folder.path().display())).unwrap(),
        false => Store::open("memory:").unwrap(),
    };
    let process = process(store, "w");
    // Two full ones, and a rest that is no longer small.
    let target = (ARCHIVES * bytes / 5 * 2) as u64;
    let (mut rewrites, mut written) = (Rewrites::default(), blake3::Hasher::new());
    for number in 0..ARCHIVES {
        let batch = batch(number as i64, bytes);
        written.update(&batch);
        process.archive(&[batch]).await;
        rewrites.times.push(0);
        if (number + 1) % step == 0 {
            if number + 1 == ARCHIVES {
                look_up(&process).await;
            }
            rewrites.merge(&process, target).await;
        }
    }
    let written = written.finalize();
    assert_eq!(digest(&process).await, written);
    look_up(&process).await;

    // The first ends the block of manifests, the second closes and empties it.
    for _ in 0..2 {
        process.gc(std::time::Duration::ZERO).await.unwrap();
    }
    assert_eq!(digest(&process).await, written);
    look_up(&process).await;
    let objects = left_over(&process).await;
    let newest: Arc<Snapshot> = process.newest().await;
    process.catalog.verify_history(&newest).await.unwrap();
    let (most, jobs) = (rewrites.times.iter().max().copied().unwrap(), rewrites.jobs);
    let archives = newest.totals().entries;
    println!(
        "every {step}: {jobs} merges leave {archives} archives, {objects} objects in all, a byte \
         rewritten {most} times"
    );
    assert!(objects <= archives + 8, "{objects} objects for {archives} archives");
    (objects, most)
}

/// How many objects lie in the store. All of them are needed.
async fn left_over(process: &Process) -> u64 {
    let grace = Grace {
        now_ms: process.compactor.store_now_ms().await.unwrap(),
        grace: std::time::Duration::ZERO,
    };
    let survey = process.compactor.survey(&partition(), 0, grace).await.unwrap();
    assert_eq!(survey.litter, [], "garbage is left");
    let listed: Vec<_> = process.store.list("default").try_collect().await.unwrap();
    listed.len() as u64
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_archives_become_few_and_no_byte_is_rewritten_three_times() {
    let (objects, rewrites) = merged_every(ARCHIVES).await;
    assert!(objects <= 20 && rewrites == 1, "{objects} objects, {rewrites} rewrites");
    if std::env::var_os("TIERD_TEST_MERGE_BYTES").is_none() {
        let (objects, rewrites) = merged_every(4).await;
        assert!(objects <= 72 && rewrites <= 2, "{objects} objects, {rewrites} rewrites");
    }
}

#[tokio::test]
async fn every_search_finds_in_merged_archives_what_it_found_before() {
    for (seed, one_without_index_in) in [(1, 1), (2, 7)] {
        let partitions = vec![("orders", 0, 40), ("\u{65e5}", 7, 30)];
        let size = Size { partitions, records: 50, one_without_index_in };
        let world = World::of(seed, &size).await;
        let before = compare(&world, &world.searcher(), 7, 30).await;
        let merger = process(world.store.clone(), "merger");
        for log in &world.logs {
            let newest = merger.catalog.load(&log.tp, None).await.unwrap().unwrap();
            let target = newest.totals().log_bytes / 3;
            let scratch = merger.scratch.path();
            let merged = merge_all(&merger.compactor, &merger.catalog, &log.tp, target, scratch);
            assert!(merged.await.unwrap().committed > 1);
            let grace = std::time::Duration::ZERO;
            let grace = Grace { now_ms: i64::MAX / 2, grace };
            let survey = merger.compactor.survey(&log.tp, 0, grace).await.unwrap();
            let swept = merger.compactor.sweep(survey, grace).await.unwrap();
            assert!(swept.objects > 10, "{swept:?}");
        }
        let after = compare(&world, &world.searcher(), 7, 30).await;
        assert_eq!(after, before);
        assert!(after.1 > after.0, "searches that find nothing prove nothing");
    }
}
