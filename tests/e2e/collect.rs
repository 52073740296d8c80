//! Retention and gc against a store: what goes and what stays, killed at every
//! request that changes something, two at once, under faults, and from the command
//! line of a real process.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::ObjectStore;
use object_store::memory::InMemory;
use tierd::archive::{
    ArchiveIdentity, ArchiveSummary, Encoding, FOOTER_DISTANCE, IndexLevel, TocPlace,
};
use tierd::catalog::{
    ArchiveEntry, BLOCK, Catalog, ClusterName, Edit, Gap, GapKind, Snapshot, WriterId,
};
use tierd::clock::ManualClock;
use tierd::compact::gc::{Grace, PartitionSurvey, Swept, When, Why};
use tierd::compact::retention::Limits;
use tierd::compact::{Compactor, Policy, Retained};
use tierd::error::{Classify, ErrorKind};
use tierd::record::{OffsetRange, TopicName, TopicPartition};
use tierd::store::{ObjectKey, PartitionKey, Store};
use tierd_tests::counting::Op;
use tierd_tests::faults::{Fault, FaultStore};
use tierd_tests::fixture;
use tierd_tests::mortal::{Death, MortalStore};
use tierd_tests::process::Tierd;

use crate::TIERD;

const ARCHIVE_BYTES: u64 = FOOTER_DISTANCE + 1;
/// The time of every clock here: long after the objects were written, so that all
/// have had their grace.
const DAY_MS: i64 = 24 * 3600 * 1000;

fn partition() -> PartitionKey {
    let tp = TopicPartition::new(TopicName::new("clicks.日本_1").unwrap(), 0).unwrap();
    PartitionKey { cluster: ClusterName::new("default").unwrap(), tp, incarnation: 0 }
}

fn range(base: i64, last: i64) -> OffsetRange {
    OffsetRange::new(base, last).unwrap()
}

/// An archive in name and length only. Timestamps are offsets.
fn entry(built_for: u64, base: i64, last: i64, tiles: bool) -> ArchiveEntry {
    let seed = format!("{built_for} {base} {last} {tiles}");
    let summary = ArchiveSummary {
        range: range(base, last),
        tiles,
        batches: tiles.into(),
        records: 1,
        log_bytes: 100,
        overlaps: (!tiles).into(),
        overlap_bytes: 0,
        bad_crcs: 0,
        unindexed: 0,
        min_timestamp: base,
        max_timestamp: last,
        leader_epochs: (0, 0),
        index_level: IndexLevel::None,
        index_bytes: 0,
        transactions: 0,
        length: ARCHIVE_BYTES,
        digest: *blake3::hash(seed.as_bytes()).as_bytes(),
        toc: TocPlace { offset: 0, length: 1, raw: 1, encoding: Encoding::Stored, digest: [0; 16] },
    };
    let of = partition();
    let identity = ArchiveIdentity { tp: of.tp, incarnation: 0 };
    ArchiveEntry::new(&of.cluster, &identity, built_for, summary)
}

/// A process at work on a store: its catalog and its compactor.
struct Process {
    store: Store,
    catalog: Arc<Catalog>,
    compactor: Compactor,
}

fn process(objects: Arc<dyn ObjectStore>, name: &str) -> Process {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let store = Store::new(objects, "").with_backoff(Duration::ZERO);
    let nonce = || {
        let mut nonce = [0; 16];
        nonce[..8].copy_from_slice(&NEXT.fetch_add(1, Ordering::Relaxed).to_le_bytes());
        nonce
    };
    let clock = ManualClock::at(i64::MAX);
    let (cluster, writer) = (partition().cluster, WriterId::new(name).unwrap());
    let catalog = Arc::new(Catalog::new(
        store.clone(),
        cluster,
        writer,
        Arc::clone(&clock) as _,
        Box::new(nonce),
    ));
    let compactor = Compactor::new(Arc::clone(&catalog), store.clone(), clock, Box::new(nonce));
    Process { store, catalog, compactor }
}

impl Process {
    async fn newest(&self) -> Arc<Snapshot> {
        self.catalog.load(&partition().tp, None).await.unwrap().unwrap()
    }

    async fn land(&self, entry: &ArchiveEntry) {
        self.store.put(&entry.key(), vec![0; ARCHIVE_BYTES as usize].into()).await.unwrap();
    }

    async fn commit(&self, base: Option<Arc<Snapshot>>, edit: Edit) -> Arc<Snapshot> {
        for one in &edit.add {
            self.land(one).await;
        }
        let made = self.catalog.commit(&partition().tp, 0, base, edit).await.unwrap();
        Arc::clone(made.snapshot())
    }

    /// Names below the partition's folder.
    async fn objects(&self) -> BTreeSet<String> {
        let listed: Vec<_> = self.store.list(&partition().to_string()).try_collect().await.unwrap();
        listed.into_iter().map(|one| one.name).collect()
    }

    /// As if all that is there had been written long ago, or just now.
    async fn survey(&self, grace: Grace) -> PartitionSurvey {
        self.compactor.survey(&partition().tp, 0, grace).await.unwrap()
    }

    async fn gc(&self) -> Swept {
        let grace = self.long_after().await;
        let survey = self.survey(grace).await;
        self.compactor.sweep(survey, grace).await.unwrap()
    }

    async fn now(&self) -> i64 {
        self.compactor.store_now_ms().await.unwrap()
    }

    async fn long_after(&self) -> Grace {
        Grace { now_ms: self.now().await + 2 * DAY_MS, grace: Duration::from_secs(24 * 3600) }
    }

    async fn soon(&self) -> Grace {
        Grace { now_ms: self.now().await, grace: Duration::from_secs(24 * 3600) }
    }
}

/// Twenty archives with an overlap and a gap between, in more than one manifest;
/// what killed and beaten writers left beside them.
async fn litter(process: &Process) {
    let mut base = None;
    for number in 1..=20u64 {
        let from = number as i64 * 10 + if number > 12 { 10 } else { 0 };
        let mut edit = Edit { add: vec![entry(number, from, from + 9, true)], ..Edit::default() };
        match number {
            1 => edit.log_start = Some(10),
            5 => edit.add.push(entry(number, 22, 31, false)),
            13 => edit.gaps.push(Gap { range: range(130, 139), kind: GapKind::Missing }),
            _ => {}
        }
        base = Some(process.commit(base, edit).await);
    }
    // Beaten, and killed before the commit, and made for a number nobody took yet.
    for number in [3, 20, 21] {
        process.land(&entry(number, 5, 6, true)).await;
    }
}

fn policy() -> Policy {
    Policy { limits: Limits { offsets: Some(95), ..Limits::default() }, ..Policy::default() }
}

/// Retention by [`policy`], then gc.
async fn compact(process: &Process) -> Result<(), tierd::compact::CompactError> {
    let Some(base) = process.catalog.load(&partition().tp, None).await? else { return Ok(()) };
    let plan = |base| process.compactor.plan_retention(base, policy(), 0);
    let planned = plan(base).await?;
    process.compactor.retain(planned, plan).await?;
    let now_ms = process.compactor.store_now_ms().await? + 2 * DAY_MS;
    let grace = Grace { now_ms, grace: Duration::from_secs(24 * 3600) };
    let survey = process.compactor.survey(&partition().tp, 0, grace).await?;
    process.compactor.sweep(survey, grace).await?;
    Ok(())
}

/// What every run must come to: the log from 125 on, its objects and no others.
async fn assert_done(process: &Process, why: &str) {
    let newest = process.newest().await;
    assert_eq!((newest.log_start(), newest.archived_through()), (125, 220), "{why}");
    process.catalog.verify_history(&newest).await.unwrap();
    let entries = newest.entries().await.unwrap();
    let served: Vec<_> = entries.iter().map(|entry| entry.summary.range.base()).collect();
    assert_eq!(served, [120, 140, 150, 160, 170, 180, 190, 200, 210], "{why}");
    let needed = newest.references().await.unwrap();
    for name in process.objects().await {
        let key = ObjectKey::decode(&name).unwrap();
        let waits = matches!(key, ObjectKey::Manifest { .. });
        assert!(needed.contains(&key) || waits, "{why}: {name} is left");
    }
    for key in needed {
        assert!(process.store.head(&key).await.unwrap().is_some(), "{why}: {key} is missing");
    }
}

#[tokio::test]
async fn nothing_goes_before_its_time_and_all_of_it_goes_then() {
    let process = process(Arc::new(InMemory::new()), "w");
    litter(&process).await;
    let before = process.objects().await;
    let soon = process.soon().await;
    let survey = process.survey(soon).await;
    assert!(survey.litter.iter().all(|one| one.when != When::Now), "{:?}", survey.litter);
    assert_eq!(process.compactor.sweep(survey, soon).await.unwrap(), Swept::default());
    assert_eq!(process.objects().await, before);

    // The dry run tells what the real run does, but for what has to be taken first.
    let later = process.long_after().await;
    let survey = process.survey(later).await;
    let tells = |when| survey.litter.iter().filter(|one| one.when == when).count();
    assert_eq!((tells(When::Now), tells(When::OnceTaken)), (2, 1));
    assert!(survey.litter.iter().all(|one| one.why != Why::Dropped));
    assert_eq!(process.objects().await, before, "a survey deletes nothing");
    let swept = process.compactor.sweep(survey, later).await.unwrap();
    assert_eq!(swept, Swept { objects: 3, bytes: 3 * ARCHIVE_BYTES });
    assert_eq!(process.newest().await.number(), 21, "an empty manifest took the number");
    assert_eq!(process.gc().await, Swept::default());

    compact(&process).await.unwrap();
    assert_done(&process, "in one piece").await;
}

/// Table: F23 I5 I9 | an older manifest, read after it was replaced
#[tokio::test]
async fn what_was_dropped_stays_for_those_who_still_read_it() {
    let process = process(Arc::new(InMemory::new()), "w");
    litter(&process).await;
    let old = process.newest().await;
    let planned = process.compactor.plan_retention(Arc::clone(&old), policy(), 0).await.unwrap();
    assert_eq!((planned.drop.len(), planned.log_start), (12, 125));
    let plan = |base| process.compactor.plan_retention(base, policy(), 0);
    process.compactor.retain(planned, plan).await.unwrap();
    let soon = process.soon().await;
    let survey = process.survey(soon).await;
    assert_eq!(process.compactor.sweep(survey, soon).await.unwrap(), Swept::default());
    for entry in old.entries().await.unwrap() {
        assert!(process.store.head(&entry.key()).await.unwrap().is_some(), "{}", entry.key());
    }
    // Shown before it happens, with the hour.
    let survey = process.survey(process.soon().await).await;
    let dropped = survey.litter.iter().filter(|one| one.why == Why::Dropped);
    let hours: Vec<_> = dropped.map(|one| one.when).collect();
    assert!(hours.len() >= 12 && hours.iter().all(|when| matches!(when, When::At(_))), "{hours:?}");
}

/// Table: F1 F21 I3 I7 I9 I10 | before and after every change that retention and gc make
#[tokio::test]
async fn killed_at_every_change_and_resumed_it_comes_to_the_same() {
    for after in [false, true] {
        for at in 1.. {
            let below: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
            let witness = process(Arc::clone(&below), "witness");
            litter(&witness).await;
            let mortal = MortalStore::new(Arc::clone(&below), Death { at, after });
            let killed = compact(&process(Arc::clone(&mortal) as _, "w")).await;
            if !mortal.died() {
                killed.unwrap();
                assert!(at > 20, "every commit and deletion was met: {at}");
                assert_done(&witness, "never killed").await;
                break;
            }
            // Whatever it left is a log that reads, and the next run ends the work.
            let left = witness.newest().await;
            witness.catalog.verify_history(&left).await.unwrap();
            for entry in left.entries().await.unwrap() {
                assert!(witness.store.head(&entry.key()).await.unwrap().is_some());
            }
            compact(&process(Arc::clone(&below), "w2")).await.unwrap();
            assert_done(&witness, &format!("killed at change {at}, after: {after}")).await;
        }
    }
}

/// Table: F12 I8 I9 | two that collect and one that writes, their requests in any order
#[tokio::test]
async fn two_at_once_and_a_writer_beside_them_do_no_damage() {
    for seed in 0..30 {
        let below: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let witness = process(Arc::clone(&below), "witness");
        litter(&witness).await;
        // No faults: the seed orders the requests.
        let faulty = |n: u64| FaultStore::seeded(Arc::clone(&below), seed * 3 + n, 0.0);
        let (one, two) = (process(faulty(0), "one"), process(faulty(1), "two"));
        let writer = process(faulty(2), "writer");
        let writes = async {
            loop {
                let base = writer.newest().await;
                let add = entry(base.number() + 1, 220, 229, true);
                writer.land(&add).await;
                let edit = Edit { add: vec![add], ..Edit::default() };
                if writer.catalog.commit(&partition().tp, 0, Some(base), edit).await.is_ok() {
                    break;
                }
            }
        };
        let (first, second, ()) = futures::join!(compact(&one), compact(&two), writes);
        first.unwrap();
        second.unwrap();
        let newest = witness.newest().await;
        assert_eq!(newest.archived_through(), 230, "seed {seed}");
        assert!(newest.log_start() >= 125, "seed {seed}");
        for key in newest.references().await.unwrap() {
            assert!(witness.store.head(&key).await.unwrap().is_some(), "seed {seed}: {key}");
        }
    }
}

/// Table: F2 F6 I9 I13 | requests of retention and gc
#[tokio::test]
async fn a_store_that_fails_now_and_then_delays_and_damages_nothing() {
    for seed in 0..40 {
        let below: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let witness = process(Arc::clone(&below), "witness");
        litter(&witness).await;
        let faulty = FaultStore::seeded(Arc::clone(&below), seed, 0.2);
        let worker = process(Arc::clone(&faulty) as _, "w");
        for _ in 0..20 {
            // An error is for the next round.
            let _ = compact(&worker).await;
            for key in witness.newest().await.references().await.unwrap() {
                assert!(witness.store.head(&key).await.unwrap().is_some(), "seed {seed}: {key}");
            }
        }
        faulty.heal();
        compact(&worker).await.unwrap();
        compact(&worker).await.unwrap();
        assert_done(&witness, &format!("seed {seed}")).await;
    }
}

/// Table: F10 I9 I13 | every listing of gc: names are missing, the others in another order
#[tokio::test]
async fn a_listing_that_lacks_names_and_shuffles_them_hides_garbage_and_makes_none() {
    for seed in 0..40 {
        let below: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let witness = process(Arc::clone(&below), "witness");
        litter(&witness).await;
        let faulty = FaultStore::new(Arc::clone(&below));
        let worker = process(Arc::clone(&faulty) as _, "w");
        for round in 0..8 {
            faulty.inject(Op::List, "", Fault::Stale(seed * 8 + round), u32::MAX);
            compact(&worker).await.unwrap();
            faulty.heal();
            let newest = witness.newest().await;
            witness.catalog.verify_history(&newest).await.unwrap();
            for key in newest.references().await.unwrap() {
                assert!(witness.store.head(&key).await.unwrap().is_some(), "seed {seed}: {key}");
            }
        }
        assert!(!faulty.injected().is_empty(), "nobody listed anything");
        compact(&worker).await.unwrap();
        assert_done(&witness, &format!("seed {seed}")).await;
    }
}

/// Table: F13 I8 I9 | a commit that waits over a collection by gc itself
#[tokio::test]
async fn manifests_go_by_blocks_and_a_writer_that_slept_cannot_bring_one_back() {
    let process = process(Arc::new(InMemory::new()), "w");
    let mut base = process.commit(None, Edit::default()).await;
    let slept = Arc::clone(&base);
    let last = 2 * BLOCK + 9;
    while base.number() < last {
        base = process.commit(Some(base), Edit::default()).await;
    }
    let soon = process.survey(process.soon().await).await;
    assert!(soon.litter.iter().all(|one| one.when == When::WithItsBlock) && !soon.to_end);
    // The third block is ended too, since so many of the second wait for it.
    let swept = process.gc().await;
    assert_eq!(swept.objects, last + 1);
    assert_eq!(process.gc().await, Swept::default());
    let last = 3 * BLOCK;
    assert_eq!(process.newest().await.number(), last);
    process.catalog.verify_history(&*process.newest().await).await.unwrap();
    // Number 2 is free again, and taking it is void.
    let late = entry(2, 0, 9, true);
    process.land(&late).await;
    let edit = Edit { add: vec![late.clone()], ..Edit::default() };
    let lost = process.catalog.commit(&partition().tp, 0, Some(slept), edit).await.unwrap_err();
    assert!(
        matches!(lost, tierd::catalog::CatalogError::Lost { newest } if newest.number() == last)
    );
    assert_eq!(process.gc().await, Swept { objects: 1, bytes: ARCHIVE_BYTES });
    // Killed before it undid that, it leaves a manifest nobody reads.
    let key = ObjectKey::Manifest { of: partition(), number: 2 };
    process.store.put(&key, Bytes::from_static(b"void")).await.unwrap();
    assert_eq!(process.newest().await.number(), last);
    assert_eq!(process.gc().await, Swept { objects: 1, bytes: 4 });
}

/// Manifests of one partition: so many that gc ends their block.
const MANY: u64 = 150;
/// Commits of a writer beside gc, at most.
const WRITTEN_BESIDE: usize = 40;

/// A partition of one archive and [`MANY`] manifests, and the one made at `sleeps`.
async fn many_manifests(below: &InMemory, sleeps: u64) -> Arc<Snapshot> {
    let process = process(Arc::new(below.clone()), "w");
    let edit = Edit { add: vec![entry(1, 0, 9, true)], ..Edit::default() };
    let mut base = process.commit(None, edit).await;
    let mut slept = Arc::clone(&base);
    while base.number() < MANY {
        base = process.commit(Some(base), Edit::default()).await;
        if base.number() == sleeps {
            slept = Arc::clone(&base);
        }
    }
    slept
}

/// What is left of [`many_manifests`] once all is collected: at most so many manifests,
/// the archive, and a partition that works.
async fn assert_few_are_left(witness: &Process, slept: &Arc<Snapshot>, most: usize, why: &str) {
    for _ in 0..3 {
        witness.gc().await;
    }
    let newest = witness.newest().await;
    assert_eq!(witness.gc().await, Swept::default(), "{why}");
    let mut numbers: Vec<u64> = Vec::new();
    for name in witness.objects().await {
        if let ObjectKey::Manifest { number, .. } = ObjectKey::decode(&name).unwrap() {
            numbers.push(number);
        }
    }
    assert!(numbers.len() <= most && numbers.contains(&newest.number()), "{why}: {numbers:?}");
    assert!(newest.number() >= BLOCK, "{why}: {numbers:?}");
    assert_eq!(newest.entries().await.unwrap(), [entry(1, 0, 9, true)], "{why}");
    witness.catalog.verify_history(&newest).await.unwrap();
    assert_eq!(witness.catalog.newer(slept).await.unwrap().number(), newest.number(), "{why}");
    // The number behind the one that slept is free again, and taking it is void.
    let late = entry(slept.next_number(), 10, 19, true);
    witness.land(&late).await;
    let edit = Edit { add: vec![late], ..Edit::default() };
    let base = Some(Arc::clone(slept));
    let lost = witness.catalog.commit(&partition().tp, 0, base, edit).await.unwrap_err();
    assert!(matches!(lost, tierd::catalog::CatalogError::Lost { .. }), "{why}: {lost}");
    // And life goes on.
    let number = newest.next_number();
    let next = entry(number, 10, 19, true);
    let edit = Edit { add: vec![next.clone()], ..Edit::default() };
    let made = witness.commit(Some(newest), edit).await;
    assert_eq!((made.number(), made.archived_through()), (number, 20), "{why}");
    assert_eq!(witness.newest().await.number(), made.number(), "{why}");
    witness.catalog.verify_history(&made).await.unwrap();
    witness.gc().await;
    assert_eq!(witness.newest().await.entries().await.unwrap().last(), Some(&next), "{why}");
}

/// Table: F1 F21 I7 I9 I10 | before and after every change by which gc ends, closes and
/// empties a block of manifests
#[tokio::test]
async fn killed_while_a_block_is_ended_closed_and_emptied_it_goes_on() {
    let below = InMemory::new();
    let slept = many_manifests(&below, 70).await;
    for after in [false, true] {
        for at in 1.. {
            let objects: Arc<dyn ObjectStore> = Arc::new(below.fork());
            let mortal = MortalStore::new(Arc::clone(&objects), Death { at, after });
            let worker = process(Arc::clone(&mortal) as Arc<dyn ObjectStore>, "w");
            let ended = async {
                for _ in 0..3 {
                    let grace = Grace { now_ms: DAY_MS * 365 * 200, grace: Duration::ZERO };
                    let survey = worker.compactor.survey(&partition().tp, 0, grace).await?;
                    worker.compactor.sweep(survey, grace).await?;
                }
                Ok::<_, tierd::compact::CompactError>(())
            };
            let ended = ended.await;
            let why = format!("killed at change {at}, after it: {after}");
            assert_few_are_left(&process(objects, "w"), &slept, 2, &why).await;
            if !mortal.died() {
                ended.unwrap();
                assert!(at > MANY, "{at}");
                break;
            }
        }
    }
}

/// Table: F2 F6 F12 I8 I9 | two that end and close blocks of manifests, and one that writes
#[tokio::test]
async fn two_that_end_and_close_blocks_over_a_store_that_fails_do_no_damage() {
    let below = InMemory::new();
    let slept = many_manifests(&below, MANY - 1).await;
    for seed in 0..20 {
        let objects: Arc<dyn ObjectStore> = Arc::new(below.fork());
        let chance = if seed % 4 == 0 { 0.0 } else { 0.05 };
        let faulty = |n: u64| FaultStore::seeded(Arc::clone(&objects), seed * 3 + n, chance);
        let [one, two, writer] = [0, 1, 2].map(|n| process(faulty(n), "w"));
        let collect = async |worker: &Process| {
            for _ in 0..12 {
                let grace = Grace { now_ms: DAY_MS * 365 * 200, grace: Duration::ZERO };
                let done = async {
                    let survey = worker.compactor.survey(&partition().tp, 0, grace).await?;
                    worker.compactor.sweep(survey, grace).await
                };
                if let Err(error) = done.await {
                    // For the next round; what it read may have been collected meanwhile.
                    let passes = [ErrorKind::Retry, ErrorKind::Exhausted, ErrorKind::NotFound];
                    assert!(passes.contains(&error.kind()), "seed {seed}: {error}");
                }
            }
        };
        let write = async {
            let mut committed = 0;
            for _ in 0..WRITTEN_BESIDE {
                let Ok(base) = writer.catalog.load(&partition().tp, None).await else { continue };
                let made = writer.catalog.commit(&partition().tp, 0, base, Edit::default()).await;
                committed += u32::from(made.is_ok());
            }
            committed
        };
        let ((), (), committed) = futures::join!(collect(&one), collect(&two), write);
        assert!(committed > 0, "seed {seed}");
        let most = 2 + WRITTEN_BESIDE;
        assert_few_are_left(&process(objects, "w"), &slept, most, &format!("seed {seed}")).await;
    }
}

/// Table: F5 I9 | objects of a writer who was killed before he committed
#[tokio::test]
async fn what_a_writer_left_before_his_first_commit_waits_for_him() {
    let process = process(Arc::new(InMemory::new()), "w");
    let first = entry(1, 0, 9, true);
    process.land(&first).await;
    assert_eq!(process.gc().await, Swept::default());
    let edit = Edit { add: vec![first], ..Edit::default() };
    process.catalog.commit(&partition().tp, 0, None, edit).await.unwrap();
    assert_eq!(process.gc().await, Swept::default());
}

#[tokio::test]
async fn probes_of_the_killed_go_by_their_age() {
    let process = process(Arc::new(InMemory::new()), "w");
    let (cluster, writer) = (partition().cluster, WriterId::new("w").unwrap());
    let key = ObjectKey::Probe { cluster, writer, nonce: [1; 16] };
    process.store.put(&key, Bytes::new()).await.unwrap();
    for (grace, gone) in [(process.soon().await, 0), (process.long_after().await, 1)] {
        let strays = process.compactor.strays(grace).await.unwrap();
        assert_eq!((strays.litter.len(), strays.lists_unfinished), (1, false));
        assert_eq!(process.compactor.sweep_strays(&strays).await.unwrap().objects, gone);
    }
    assert!(process.store.head(&key).await.unwrap().is_none());
}

#[tokio::test]
async fn an_old_life_goes_once_a_newer_one_is_old_enough() {
    let process = process(Arc::new(InMemory::new()), "w");
    let base =
        process.commit(None, Edit { add: vec![entry(1, 0, 9, true)], ..Edit::default() }).await;
    let kept = Some(Duration::from_secs(60));
    let policy = Policy { old_incarnations: kept, ..Policy::default() };
    let plan = |now| process.compactor.plan_retention(Arc::clone(&base), policy, now);
    assert!(!plan(i64::MAX).await.unwrap().is_needed(), "the only life");
    let next = process.catalog.begin_incarnation(partition().tp.topic(), 1, None).await.unwrap();
    assert!(!plan(next.created_at_ms).await.unwrap().is_needed());
    let planned = Retained::cut(Arc::clone(&base), i64::MAX).await.unwrap();
    assert_eq!((planned.log_start, planned.drop.len()), (10, 1));
}

/// How many archives a folder of a directory that is a store holds.
fn archives(folder: &std::path::Path) -> usize {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries
        .map(|path| match path.is_dir() {
            true => archives(&path),
            false => usize::from(path.to_str().unwrap().ends_with(".tar.gz")),
        })
        .sum()
}

#[test]
fn the_command_line_shows_first_and_does_it_when_told() {
    let folder = tempfile::tempdir().unwrap();
    let tierd = Tierd::new(TIERD, folder.path());
    let _ = tierd.archive(&fixture::wal()).ok();
    let store = folder.path().join("store");
    let all = archives(&store);
    let nothing = tierd.run(&["gc", "--grace", "0s"]).ok().text();
    assert!(
        nothing.contains("nothing to delete") || nothing.contains("with its block"),
        "{nothing}"
    );

    let dry = tierd.run(&["compact", "--once", "--retention-offsets", "10"]).ok().text();
    assert!(
        dry.contains("orders") && dry.contains("offsets") && dry.contains("--confirm"),
        "{dry}"
    );
    let again = tierd.run(&["compact", "--once", "--retention-offsets", "10"]).ok().text();
    assert_eq!(dry, again, "a dry run changes nothing");
    let real =
        tierd.run(&["compact", "--once", "--retention-offsets", "10", "--confirm"]).ok().text();
    let rows = |text: &str| {
        text.lines().filter(|line| line.contains("offsets")).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(rows(&dry), rows(&real), "dry run and real run agree");
    assert_eq!(archives(&store), all, "nothing is deleted yet");
    let ls = tierd.run(&["ls", "--json"]).ok().text();
    for line in ls.lines() {
        let row: serde_json::Value = serde_json::from_str(line).unwrap();
        let (start, end) =
            (row["log_start"].as_i64().unwrap(), row["archived_through"].as_i64().unwrap());
        assert_eq!(end - start, 10, "{line}");
    }
    let done = tierd.run(&["compact", "--once", "--retention-offsets", "10"]).ok().text();
    assert_eq!(done, "nothing to do\n");

    let gone = tierd.run(&["delete", "orders", "--confirm"]).ok().text();
    assert!(gone.contains("committed"), "{gone}");
    let waits = tierd.run(&["gc"]).ok().text();
    assert!(waits.contains("may go now: 0 objects") && waits.contains("dropped"), "{waits}");
    let _ = tierd.run(&["gc", "--confirm"]).ok();
    assert_eq!(archives(&store), all, "its grace is a day");
    let _ = tierd.run(&["gc", "--grace", "0s", "--confirm"]).ok();
    assert!(archives(&store) < all);
    let _ = tierd.run(&["verify", "--deep"]).ok();
    let wrong = tierd.run(&["delete", "nobody"]);
    assert!(wrong.code == 2 && wrong.stderr.contains("nobody"), "{}", wrong.stderr);
    let wrong = tierd.run(&["compact", "--once", "--retention-bytes", "lots"]);
    assert!(wrong.code == 2 && wrong.stderr.contains("lots"), "{}", wrong.stderr);
}
