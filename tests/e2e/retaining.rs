//! Retention in a store: random logs with gaps, archives beneath, odd times and clocks
//! that step back, under random policies, step after step. What is shown before is what
//! happens, and what happens is what the rules say, told here once more by brute force.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use object_store::memory::InMemory;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tierd::archive::{
    ArchiveIdentity, ArchiveSummary, Encoding, FOOTER_DISTANCE, IndexLevel, TocPlace,
};
use tierd::catalog::{ArchiveEntry, Catalog, ClusterName, Edit, Gap, GapKind, Snapshot, WriterId};
use tierd::clock::ManualClock;
use tierd::compact::retention::Limits;
use tierd::compact::{Compactor, Policy, Retained};
use tierd::record::{OffsetRange, TopicName, TopicPartition};
use tierd::store::Store;

const DAY_MS: i64 = 24 * 3600 * 1000;
const BEGAN_MS: i64 = 1_700_000_000_000;
/// Histories tried, each of several commits and policies, where nothing else is said.
const HISTORIES: u64 = 150;

/// An archive as the rules see it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Known {
    base: i64,
    last: i64,
    bytes: u64,
    serves: bool,
    /// Greatest timestamp of its records.
    newest: i64,
}

struct Bench {
    random: StdRng,
    store: Store,
    clock: Arc<ManualClock>,
    catalog: Arc<Catalog>,
    compactor: Compactor,
    known: Vec<Known>,
    end: i64,
    now: i64,
    /// What the clock showed at the last commit.
    committed_at: i64,
}

fn tp() -> TopicPartition {
    TopicPartition::new(TopicName::new("t").unwrap(), 0).unwrap()
}

impl Bench {
    fn new(seed: u64) -> Self {
        let store = Store::new(Arc::new(InMemory::new()), "");
        let clock = ManualClock::at(BEGAN_MS);
        let (cluster, writer) = (ClusterName::new("c").unwrap(), WriterId::new("w").unwrap());
        let (one, two) = (Arc::clone(&clock), Arc::clone(&clock));
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let nonce = || {
            let mut nonce = [0; 16];
            nonce[..8].copy_from_slice(&NEXT.fetch_add(1, Ordering::Relaxed).to_le_bytes());
            nonce
        };
        let catalog = Arc::new(Catalog::new(store.clone(), cluster, writer, one, Box::new(nonce)));
        let compactor = Compactor::new(Arc::clone(&catalog), store.clone(), two, Box::new(nonce));
        let random = StdRng::seed_from_u64(seed);
        let (known, end) = (Vec::new(), 0);
        let (now, committed_at) = (BEGAN_MS, BEGAN_MS);
        Self { random, store, clock, catalog, compactor, known, end, now, committed_at }
    }

    async fn newest(&self) -> Arc<Snapshot> {
        self.catalog.load(&tp(), None).await.unwrap().unwrap()
    }

    /// Commits some archives, with gaps between and archives beneath.
    async fn grow(&mut self) {
        let base = self.catalog.load(&tp(), None).await.unwrap();
        let number = base.as_deref().map_or(0, Snapshot::number) + 1;
        let mut edit = Edit::default();
        // A partition may be empty.
        for _ in 0..self.random.random_range(0..4) {
            if self.random.random_bool(0.25) {
                let last = self.end + self.random.random_range(0..9);
                let range = OffsetRange::new(self.end, last).unwrap();
                edit.gaps.push(Gap { range, kind: GapKind::Missing });
                self.end = last + 1;
            }
            let last = self.end + self.random.random_range(0..30);
            let archive = self.archive(self.end, last, true);
            if self.random.random_bool(0.25) {
                let from = (self.end - self.random.random_range(0..20)).max(0);
                let beneath = self.archive(from, last, false);
                self.known.push(beneath);
            }
            self.known.push(archive);
            self.end = last + 1;
        }
        let listed = match base.as_deref() {
            Some(base) => base.entries().await.unwrap().len(),
            None => 0,
        };
        for archive in &self.known[self.known.len().min(listed)..] {
            let entry = entry(number, archive);
            let object = vec![0; archive.bytes as usize];
            self.store.put(&entry.key(), object.into()).await.unwrap();
            edit.add.push(entry);
        }
        self.catalog.commit(&tp(), 0, base, edit).await.unwrap();
        self.committed_at = self.now;
    }

    fn archive(&mut self, base: i64, last: i64, serves: bool) -> Known {
        // Now and then one is huge.
        let huge = if self.random.random_bool(0.1) { 20_000 } else { 300 };
        let bytes = FOOTER_DISTANCE + 1 + self.random.random_range(0..huge);
        let newest = match self.random.random_range(0..8) {
            0 => -1,
            // Microseconds taken for milliseconds.
            1 => BEGAN_MS * 1000,
            2 => self.now + self.random.random_range(-2..3) * DAY_MS / 2,
            _ => self.now - self.random.random_range(0..10) * DAY_MS,
        };
        Known { base, last, bytes, serves, newest }
    }

    fn policy(&mut self) -> Policy {
        let random = &mut self.random;
        let mut maybe = |most: u64| random.random_bool(0.5).then(|| random.random_range(0..most));
        let limits = Limits {
            time: maybe(10).map(|days| Duration::from_millis(days * DAY_MS as u64)),
            bytes: maybe(30_000),
            offsets: maybe(150),
        };
        Policy { limits, ..Policy::default() }
    }

    /// Where the log begins by the rules: every end of an archive is tried.
    fn begins(&self, start: i64, policy: &Policy) -> i64 {
        let served =
            |from: i64| self.known.iter().filter(move |one| one.serves && one.last >= from);
        let mut begins = start;
        if let Some(limit) = policy.limits.bytes {
            let may = |end: &i64| {
                let rest = self.known.iter().filter(|one| one.last >= *end);
                rest.map(|one| one.bytes).sum::<u64>() >= limit
            };
            begins = served(start).map(|one| one.last + 1).filter(may).fold(begins, i64::max);
        }
        if let Some(limit) = policy.limits.offsets {
            begins = begins.max(self.end - limit as i64);
        }
        if let Some(limit) = policy.limits.time {
            let (limit, from) = (limit.as_millis() as i64, begins);
            let latest = self.now.max(self.committed_at) + DAY_MS;
            let tells = |one: &Known| one.newest >= 0 && one.newest <= latest;
            let old = |one: &Known| tells(one) && self.now - one.newest > limit;
            let may = |end: &i64| {
                let front = || served(from).filter(|one| one.last < *end);
                front().all(|one| old(one) || !tells(one)) && front().next_back().is_some_and(old)
            };
            begins = served(from).map(|one| one.last + 1).filter(may).fold(begins, i64::max);
        }
        begins
    }

    /// Shows what `policy` does, does it, and compares both with the rules.
    async fn apply(&mut self, policy: Policy) {
        let before = self.newest().await;
        let plan = |base| self.compactor.plan_retention(base, policy, self.now);
        let shown = plan(Arc::clone(&before)).await.unwrap();
        assert_eq!(self.newest().await.number(), before.number(), "what is shown is not done");
        let start = self.begins(before.log_start(), &policy);
        assert_eq!(shown.log_start, start, "{policy:?} at {}: {:#?}", self.now, self.known);
        let done = self.compactor.retain(shown.clone(), plan).await.unwrap();
        let told = |one: &Retained| (one.log_start, one.limit, one.drop.clone());
        assert_eq!(told(&done), told(&shown), "dry run and real run");
        let (gone, kept): (Vec<_>, Vec<_>) =
            self.known.iter().cloned().partition(|one| one.last < start);
        assert_eq!(done.drop.len(), gone.len());
        let after = self.newest().await;
        if gone.is_empty() && start == before.log_start() {
            assert_eq!(after.number(), before.number(), "nothing to do is not done");
        }
        self.committed_at = after.manifest().committed_at_ms;
        assert_eq!((after.log_start(), after.archived_through()), (start, self.end));
        let mut listed = after.entries().await.unwrap();
        listed.sort_by_key(|entry| {
            let summary = &entry.summary;
            (summary.range.base(), !summary.tiles, summary.range.last())
        });
        let mut left: Vec<_> = kept.iter().collect();
        left.sort_by_key(|one| (one.base, !one.serves, one.last));
        let ranges = |one: &ArchiveEntry| (one.summary.range.base(), one.summary.range.last());
        let listed: Vec<_> = listed.iter().map(ranges).collect();
        let left: Vec<_> = left.iter().map(|one| (one.base, one.last)).collect();
        assert_eq!(listed, left, "a live one went, or an expired one stayed");
        // Readers of the older manifest go on.
        for entry in &done.drop {
            assert!(self.store.head(&entry.key()).await.unwrap().is_some());
        }
        self.known = kept;
        // A clock that steps back takes for the future what it has seen.
        if self.now >= before.manifest().committed_at_ms {
            let again = plan(after).await.unwrap();
            assert!(!again.is_needed(), "done is done: {again:?}");
        }
    }
}

/// An archive in name and length only.
fn entry(built_for: u64, known: &Known) -> ArchiveEntry {
    let seed = format!("{built_for} {known:?}");
    let summary = ArchiveSummary {
        range: OffsetRange::new(known.base, known.last).unwrap(),
        tiles: known.serves,
        batches: known.serves.into(),
        records: 1,
        log_bytes: 100,
        overlaps: (!known.serves).into(),
        overlap_bytes: 0,
        bad_crcs: 0,
        unindexed: 0,
        min_timestamp: known.newest.min(0),
        max_timestamp: known.newest,
        leader_epochs: (0, 0),
        index_level: IndexLevel::None,
        index_bytes: 0,
        transactions: 0,
        length: known.bytes,
        digest: *blake3::hash(seed.as_bytes()).as_bytes(),
        toc: TocPlace { offset: 0, length: 1, raw: 1, encoding: Encoding::Stored, digest: [0; 16] },
    };
    let identity = ArchiveIdentity { tp: tp(), incarnation: 0 };
    ArchiveEntry::new(&ClusterName::new("c").unwrap(), &identity, built_for, summary)
}

#[tokio::test]
async fn random_policies_do_what_was_shown_and_what_brute_force_says() {
    let (mut moved, mut dropped) = (0, 0);
    let histories = std::env::var("TIERD_TEST_RETENTIONS").ok();
    let histories = histories.map_or(HISTORIES, |count| count.parse().unwrap());
    for seed in 0..histories {
        let mut bench = Bench::new(seed);
        bench.grow().await;
        for _ in 0..6 {
            bench.grow().await;
            // Clocks step back, too.
            bench.now += bench.random.random_range(-3..8) * DAY_MS;
            bench.clock.set_wall_ms(bench.now);
            let (policy, before) = (bench.policy(), bench.newest().await);
            let archives = bench.known.len();
            bench.apply(policy).await;
            moved += u32::from(bench.newest().await.log_start() > before.log_start());
            dropped += archives - bench.known.len();
        }
    }
    println!("{histories} histories, {moved} moves of a log start, {dropped} archives dropped");
    assert!(moved > 200 && dropped > 400, "{moved} moves, {dropped} archives dropped");
}
