//! Giving archives another index level: killed at every change, beside others who
//! write, merge and reindex, and from the command line. Whatever happens, no batch
//! changes, and every search is exact for the index that each archive has.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use object_store::ObjectStore;
use object_store::memory::InMemory;
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::Value;
use tierd::archive::IndexLevel;
use tierd::catalog::Edit;
use tierd::clock::ManualClock;
use tierd::compact::gc::Grace;
use tierd::compact::reindex::{Reindexed, plan};
use tierd::compact::{CompactError, Compactor};
use tierd::error::{Classify, ErrorKind};
use tierd::record::TopicPartition;
use tierd::task::Pace;
use tierd_tests::audit::contents;
use tierd_tests::faults::FaultStore;
use tierd_tests::fixture;
use tierd_tests::mortal::{Death, MortalStore};
use tierd_tests::process::Tierd;
use tierd_tests::world::{self, BEGAN_MS, Known, Size, World};

use crate::TIERD;
use crate::merging::{self, Process};
use crate::search::{ask, compare};
use crate::values::{Facts, asking, json_query, of_values, offsets};

fn level(word: &str) -> IndexLevel {
    word.parse().unwrap()
}

fn tp() -> TopicPartition {
    world::tp("orders", 0)
}

fn compactor(world: &World) -> Compactor {
    let catalog = Arc::clone(&world.catalog);
    Compactor::new(catalog, world.store.clone(), ManualClock::at(BEGAN_MS), Box::new(|| [9; 16]))
}

/// Reindexes everything that can be read; how many archives were, and how many not.
async fn reindex_all(world: &World, to: IndexLevel) -> Result<(u64, u64), CompactError> {
    let compactor = compactor(world);
    let base = world.catalog.load(&tp(), None).await?.unwrap();
    let mut work = compactor.reindex(base, to).await?;
    let (mut done, mut left) = (0, 0);
    while let Some(step) = work.step(world.scratch.path(), &Pace::unlimited()).await? {
        match step {
            Reindexed::Committed { .. } => done += 1,
            Reindexed::Left { .. } => left += 1,
            Reindexed::Overtaken => {}
        }
    }
    Ok((done, left))
}

/// The batches of every archive, served and beneath, by a reader that is not ours.
async fn batches(world: &World) -> Vec<(Vec<Bytes>, Vec<Bytes>)> {
    let newest = world.catalog.load(&tp(), None).await.unwrap().unwrap();
    let mut all = Vec::new();
    for entry in newest.entries().await.unwrap() {
        all.push(contents(&world.store, &entry).await.unwrap());
    }
    all
}

/// Searches of every kind equal brute force, and queries over values what it finds in
/// the archives that have them indexed; the others are named.
async fn check_searches(world: &World, what: &str) {
    let searcher = world.searcher();
    compare(world, &searcher, 7, 1).await;
    let newest = world.catalog.load(&tp(), None).await.unwrap().unwrap();
    let entries = newest.entries().await.unwrap();
    let (known, others): (Vec<_>, Vec<_>) =
        entries.iter().partition(|entry| entry.summary.index_level == level("full:json"));
    let mut rng = StdRng::seed_from_u64(3);
    for _ in 0..12 {
        let (query, means) = json_query(&mut rng);
        let answer = ask(&searcher, asking(&query)).await.unwrap();
        let indexed = |offset| known.iter().any(|entry| entry.summary.range.contains(offset));
        let records = world.logs[0].records.iter().rev();
        let wanted =
            records.filter(|known| means(&Facts::of(known))).map(|known| known.entry.offset);
        let wanted: Vec<i64> = wanted.filter(|offset| indexed(*offset)).collect();
        assert_eq!(offsets(&answer), wanted, "{query}, {what}");
        assert_eq!(answer.summary.archives.not_searchable, others.len() as u64, "{query}, {what}");
        assert_eq!(answer.summary.complete, others.is_empty(), "{query}, {what}");
    }
}

/// Archives with and without an index, and one that supersedes a batch.
async fn prepare() -> (InMemory, World) {
    let objects = InMemory::new();
    let below: Arc<dyn ObjectStore> = Arc::new(objects.fork());
    let size = Size { partitions: vec![("orders", 0, 4)], records: 60, one_without_index_in: 3 };
    let mut world = World::over(Arc::clone(&below), 842, &size).await;
    let base = world.catalog.load(&tp(), None).await.unwrap().unwrap();
    let from = base.archived_through();
    let values: [&[u8]; 2] = [br#"{"city":"Berlin","amount":7}"#, b"no json"];
    let batch = of_values(from, &values);
    let beneath = of_values(from, &[br#"{"city":"Bonn"}"#]);
    let chain = std::slice::from_ref(&batch);
    world.commit_over(&tp(), Some(base), chain, &[beneath], IndexLevel::Keys).await;
    let whole = Arc::new(batch.clone());
    world.logs[0].records.extend(batch.decode().unwrap().into_iter().map(|entry| Known {
        tp: tp(),
        timestamp: entry.timestamp,
        entry,
        batch: Arc::clone(&whole),
    }));
    let kept = InMemory::new();
    copy(&below, &kept).await;
    (kept, world)
}

async fn copy(from: &Arc<dyn ObjectStore>, to: &InMemory) {
    use futures::TryStreamExt;
    use object_store::ObjectStoreExt;
    let all: Vec<_> = from.list(None).try_collect().await.unwrap();
    for object in all {
        let bytes = from.get(&object.location).await.unwrap().bytes().await.unwrap();
        to.put(&object.location, bytes.into()).await.unwrap();
    }
}

/// Table: F1 F21 I3 I4 I7 I10 | before and after every change of a reindexing
#[tokio::test]
async fn killed_at_every_change_of_a_reindexing_no_batch_changes_and_it_goes_on_where_it_was() {
    let (objects, original) = prepare().await;
    let written = batches(&original).await;
    assert_eq!((written.len(), written[4].1.len()), (5, 1));
    check_searches(&original, "before").await;
    let to = level("full:json");
    for (raced, after) in [(false, false), (false, true), (true, false), (true, true)] {
        for at in 1.. {
            let below: Arc<dyn ObjectStore> = Arc::new(objects.fork());
            let here = original.on(Arc::clone(&below), "witness");
            let mortal = MortalStore::new(Arc::clone(&below), Death { at, after });
            let worker = original.on(Arc::clone(&mortal) as Arc<dyn ObjectStore>, "w");
            let ended = async {
                let compactor = compactor(&worker);
                let base = worker.catalog.load(&tp(), None).await?.unwrap();
                let mut work = compactor.reindex(Arc::clone(&base), to).await?;
                if raced {
                    // Another takes the number: the object is copied to the next.
                    here.catalog.commit(&tp(), 0, Some(base), Edit::default()).await?;
                }
                let mut done = 0;
                while let Some(step) = work.step(worker.scratch.path(), &Pace::unlimited()).await? {
                    assert!(matches!(step, Reindexed::Committed { .. }), "{step:?}");
                    done += 1;
                }
                Ok::<_, CompactError>(done)
            };
            let ended = ended.await;
            let what = format!("killed at change {at}, after it: {after}, raced: {raced}");
            assert!(batches(&here).await == written, "{what}");
            check_searches(&here, &what).await;
            let over = !mortal.died();
            if over {
                assert_eq!(ended.unwrap(), 5);
                assert!(at > 10, "{at}");
            }
            let (_, left) = reindex_all(&here, to).await.unwrap();
            assert_eq!(left, 0, "{what}");
            let newest = here.catalog.load(&tp(), None).await.unwrap().unwrap();
            assert_eq!(plan(&newest, to).await.unwrap(), [], "{what}");
            // What is done stays as it is.
            assert_eq!(reindex_all(&here, to).await.unwrap(), (0, 0));
            let after_that = here.catalog.load(&tp(), None).await.unwrap().unwrap();
            assert_eq!(after_that.number(), newest.number());
            let grace = Grace { now_ms: i64::MAX / 2, grace: Duration::ZERO };
            let survey = compactor(&here).survey(&tp(), 0, grace).await.unwrap();
            compactor(&here).sweep(survey, grace).await.unwrap();
            assert!(batches(&here).await == written, "resumed, {what}");
            here.catalog.verify_history(&newest).await.unwrap();
            if over {
                check_searches(&here, "after").await;
                break;
            }
        }
    }
}

#[tokio::test]
async fn through_every_level_and_back_no_batch_changes_and_what_each_can_answer_is_exact() {
    let (_, world) = prepare().await;
    let written = batches(&world).await;
    let objects = async || {
        let newest = world.catalog.load(&tp(), None).await.unwrap().unwrap();
        let entries = newest.entries().await.unwrap();
        entries.iter().map(|entry| entry.summary.clone()).collect::<Vec<_>>()
    };
    assert_eq!(reindex_all(&world, IndexLevel::Keys).await.unwrap(), (2, 0));
    let keys = objects().await;
    for to in IndexLevel::ALL.into_iter().rev() {
        reindex_all(&world, to).await.unwrap();
        assert!(objects().await.iter().all(|summary| summary.index_level == to));
        assert!(batches(&world).await == written, "{to}");
        check_searches(&world, to.as_str()).await;
    }
    reindex_all(&world, IndexLevel::Keys).await.unwrap();
    assert_eq!(objects().await, keys, "the same archives to the byte");
}

async fn reindex_on(worker: &Process, to: IndexLevel) {
    for _ in 0..400 {
        tokio::task::yield_now().await;
        let work = async {
            let base = worker.look().await?;
            let mut work = worker.compactor.reindex(base, to).await?;
            let mut left = 0;
            while let Some(step) = work.step(worker.scratch.path(), &Pace::unlimited()).await? {
                left += u32::from(matches!(step, Reindexed::Left { .. }));
                tokio::task::yield_now().await;
            }
            Ok::<_, CompactError>(left)
        };
        match work.await {
            Ok(0) => return,
            // What the store refused to read this time, it may give the next time.
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::Retry => {}
            Err(error) if error.kind() == ErrorKind::Exhausted => {}
            Err(error) => panic!("{error}"),
        }
    }
    panic!("it does not come to an end");
}

/// Table: F2 F6 F12 F22 I3 I4 I8 | requests of two that reindex, one that merges and one that
/// writes
#[tokio::test]
async fn whatever_the_store_answers_two_who_reindex_a_merger_and_a_writer_lose_and_double_nothing()
{
    let all = merging::batches(60);
    let (front, back) = all.split_at(40);
    let target = merging::bytes_of(front) / 2;
    let to = level("full:text");
    for seed in 0..16 {
        let below: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let witness = merging::witness(&below, front).await;
        let chance = if seed % 3 == 0 { 0.0 } else { 0.06 };
        let faulty = |n: u64| FaultStore::seeded(Arc::clone(&below), seed * 3 + n, chance);
        let (one, two) = (merging::over(faulty(0), "one"), merging::over(faulty(1), "two"));
        let merger = merging::over(faulty(2), "merger");
        let merge = async {
            for _ in 0..60 {
                match merger.merge(target).await {
                    Err(error) if error.kind() == ErrorKind::Retry => {}
                    Err(error) if error.kind() == ErrorKind::Exhausted => {}
                    merged => drop(merged.unwrap()),
                }
                tokio::task::yield_now().await;
            }
        };
        let write = async {
            for part in back.chunks(5) {
                witness.archive(part).await;
                for _ in 0..20 {
                    tokio::task::yield_now().await;
                }
            }
        };
        futures::join!(reindex_on(&one, to), reindex_on(&two, to), merge, write);
        assert!(witness.log().await == all, "seed {seed}");
        // What was written after the last look has its writer's level.
        reindex_on(&witness, to).await;
        witness.merge(target).await.unwrap();
        let newest = witness.newest().await;
        assert_eq!(plan(&newest, to).await.unwrap(), [], "seed {seed}");
        assert!(newest.totals().entries <= 6, "seed {seed}: {}", newest.totals().entries);
        witness.gc(Duration::ZERO).await.unwrap();
        assert!(witness.log().await == all, "seed {seed}");
        let newest = witness.newest().await;
        witness.catalog.verify_history(&newest).await.unwrap();
    }
}

/// What `tierd fetch --overlaps all` gives of every partition.
fn fetched(tierd: &Tierd) -> Vec<Vec<u8>> {
    let partitions = fixture::batches().into_keys();
    let fetch = |(topic, partition): (String, i32)| {
        let partition = partition.to_string();
        let of = ["fetch", &topic, &partition, "--offset", "0"];
        let how = ["--overlaps", "all", "--format", "raw"];
        tierd.run(&[&of[..], &how].concat()).ok().stdout
    };
    partitions.map(fetch).collect()
}

/// The archives of a topic's partition 0, as `tierd ls` lists them.
fn listed(tierd: &Tierd, topic: &str) -> Vec<Value> {
    lines(&tierd.run(&["ls", topic, "0", "--json"]).ok().text())
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn the_command_shows_first_changes_by_pattern_and_names_what_it_cannot_read() {
    let folder = tempfile::tempdir().unwrap();
    let tierd = Tierd::new(TIERD, folder.path());
    let _ = tierd.archive(&fixture::wal()).ok();
    let before = fetched(&tierd);
    assert!(before.iter().map(Vec::len).sum::<usize>() > 10_000);
    let refused = tierd.run(&["reindex"]);
    assert!(refused.code == 2 && refused.stderr.contains("--level"), "{refused:?}");

    let was = listed(&tierd, "orders");
    let orders = ["reindex", "--index", "orders=full:text,*=keys"];
    let shown = tierd.run(&orders).ok().text();
    assert!(shown.contains("full:text") && shown.contains("add --confirm"), "{shown}");
    assert_eq!(listed(&tierd, "orders"), was, "a dry run");
    let done = tierd.run(&[&orders[..], &["--confirm"]].concat()).ok().text();
    assert!(done.contains("tierd gc frees"), "{done}");
    assert!(listed(&tierd, "orders").iter().all(|one| one["index_level"] == "full:text"));
    assert!(fetched(&tierd) == before);
    let again = tierd.run(&[&orders[..], &["--confirm"]].concat()).ok();
    assert_eq!(again.text(), "nothing to do\n");

    // A word of a value finds the records that have it, and no others.
    let all = tierd.run(&["fetch", "orders", "0", "--offset", "0"]).ok().text();
    let word = "order";
    let has = |line: &Value| {
        let text = line["value"].as_str().unwrap_or_default().to_lowercase();
        text.split(|c: char| !c.is_alphanumeric()).any(|one| one == word)
    };
    let wanted: Vec<Value> = lines(&all).into_iter().filter(has).collect();
    let search = ["search", "orders", "0", "--query", word, "--order", "oldest", "--limit", "0"];
    assert_eq!(lines(&tierd.run(&search).ok().text()), wanted);
    let _ = tierd.run(&["verify", "--deep"]).ok();

    // One archive is damaged: it is named, stays, and the others go on.
    let object = was_damaged(&tierd, folder.path());
    let none = ["reindex", "--level", "none", "--confirm", "--json"];
    let ended = tierd.run(&none);
    assert_eq!(ended.code, 1, "{ended:?}");
    assert!(ended.stderr.contains(&object), "{}", ended.stderr);
    assert!(ended.stderr.contains("verify --deep"), "{}", ended.stderr);
    let done = lines(&ended.text());
    assert!(done.len() > 3 && done.iter().all(|one| one["object"] != object.as_str()));
    assert!(done.iter().all(|one| one["becomes"] == "none" && one["new_object"].is_string()));
    let orders = listed(&tierd, "orders");
    assert!(orders.iter().any(|one| one["index_level"] == "none" || orders.len() == 1));
}

/// Flips a byte of the first archive of orders; its name.
fn was_damaged(tierd: &Tierd, folder: &std::path::Path) -> String {
    let object = listed(tierd, "orders")[0]["object"].as_str().unwrap().to_owned();
    let path = folder.join("store").join(&object);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[4_000] ^= 1;
    std::fs::write(path, bytes).unwrap();
    object
}
