//! Catalogs that lose objects and are rebuilt from the bucket alone: what they list
//! before and after is the same, whatever is lost, killed at every change, beside a
//! writer, and from the command line. What random histories answer after a loss is
//! compared in `oracle`.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::TryStreamExt;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use tierd::catalog::{ArchiveEntry, BLOCK, CatalogError, Edit, Gap, GapKind, Snapshot};
use tierd::compact::Compactor;
use tierd::compact::gc::Grace;
use tierd::read::{ArchiveReader, ReadOptions};
use tierd::record::TopicPartition;
use tierd::store::{ObjectKey, Store};
use tierd::upkeep::{Rebuild, Rebuilt};
use tierd_tests::audit::audit;
use tierd_tests::fixture;
use tierd_tests::mortal::{Death, MortalStore};
use tierd_tests::process::Tierd;
use tierd_tests::world::{Size, World, catalog, tp};

use crate::TIERD;

/// More archives than a root holds without pages.
const ARCHIVES: usize = 150;

async fn world(objects: &Arc<dyn ObjectStore>, archives: usize) -> World {
    let size = Size { partitions: vec![("t", 0, archives)], records: 8, one_without_index_in: 2 };
    World::over(Arc::clone(objects), 7, &size).await
}

fn partition() -> TopicPartition {
    tp("t", 0)
}

fn memory() -> Arc<dyn ObjectStore> {
    Arc::new(InMemory::new())
}

async fn fork(objects: &Arc<dyn ObjectStore>) -> Arc<dyn ObjectStore> {
    let copy = memory();
    for path in names(objects).await {
        let bytes = objects.get(&path).await.unwrap().bytes().await.unwrap();
        copy.put(&path, bytes.into()).await.unwrap();
    }
    copy
}

async fn names(objects: &Arc<dyn ObjectStore>) -> Vec<Path> {
    let listed: Vec<_> = objects.list(None).try_collect().await.unwrap();
    let mut names: Vec<_> = listed.into_iter().map(|object| object.location).collect();
    names.sort();
    names
}

/// Deletes what `lost` says of.
async fn lose(objects: &Arc<dyn ObjectStore>, lost: impl Fn(&ObjectKey) -> bool) -> usize {
    let mut count = 0;
    for path in names(objects).await {
        if lost(&ObjectKey::decode(path.as_ref()).unwrap()) {
            objects.delete(&path).await.unwrap();
            count += 1;
        }
    }
    count
}

fn rebuild(objects: &Arc<dyn ObjectStore>, writer: &str) -> Rebuild {
    let store = Store::new(Arc::clone(objects), "");
    let reader = ArchiveReader::new(store.clone(), ReadOptions::default());
    let catalog = catalog(&store, writer);
    Rebuild::new(store, catalog, reader)
}

async fn confirm(objects: &Arc<dyn ObjectStore>) -> Rebuilt {
    rebuild(objects, "operator").confirm(&partition(), 0, false).await.unwrap()
}

/// What a catalog says of the log, whoever wrote it and in what pages.
#[derive(Debug, PartialEq)]
struct Logical {
    log_start: i64,
    through: i64,
    entries: Vec<ArchiveEntry>,
    gaps: Vec<Gap>,
}

async fn newest(objects: &Arc<dyn ObjectStore>) -> Arc<Snapshot> {
    let store = Store::new(Arc::clone(objects), "");
    catalog(&store, "witness").load(&partition(), None).await.unwrap().unwrap()
}

async fn logical(objects: &Arc<dyn ObjectStore>) -> Logical {
    let newest = newest(objects).await;
    let store = Store::new(Arc::clone(objects), "");
    // Every object is there and is what was committed; the history is whole.
    let audited = audit(&store, &catalog(&store, "auditor"), &partition()).await.unwrap().unwrap();
    Logical {
        log_start: newest.log_start(),
        through: newest.archived_through(),
        entries: newest.entries().await.unwrap(),
        gaps: audited.gaps,
    }
}

/// Table: F11 F30 I3 I14 | manifests, pages and lives of a topic, gone in every combination
#[tokio::test(flavor = "multi_thread")]
async fn whatever_of_a_catalog_is_lost_comes_back_from_the_archives() {
    let objects = memory();
    world(&objects, ARCHIVES).await;
    let before = logical(&objects).await;
    assert_eq!(before.entries.len(), ARCHIVES);
    let last = newest(&objects).await.number();
    let is_manifest = |key: &ObjectKey| matches!(key, ObjectKey::Manifest { .. });
    let is_page = |key: &ObjectKey| matches!(key, ObjectKey::Page { .. });
    let is_life = |key: &ObjectKey| matches!(key, ObjectKey::Incarnation { .. });
    let at = move |key: &ObjectKey, range: std::ops::RangeInclusive<u64>| matches!(key, ObjectKey::Manifest { number, .. } if range.contains(number));
    type Lost<'a> = Box<dyn Fn(&ObjectKey) -> bool + Send + Sync + 'a>;
    let losses: Vec<(&str, Lost<'_>)> = vec![
        ("the last manifests", Box::new(move |key| at(key, last - 2..=last))),
        ("one behind which others are", Box::new(move |key| at(key, last - 9..=last - 9))),
        ("the oldest manifests", Box::new(move |key| at(key, 1..=40))),
        ("all manifests", Box::new(is_manifest)),
        ("all pages", Box::new(is_page)),
        ("all manifests and pages", Box::new(move |key| is_manifest(key) || is_page(key))),
        ("the life of the topic", Box::new(is_life)),
        ("all but archives", Box::new(move |key| is_manifest(key) || is_page(key) || is_life(key))),
    ];
    for (what, lost) in losses {
        let objects = fork(&objects).await;
        assert!(lose(&objects, lost).await > 0, "{what}");
        let dry = rebuild(&objects, "operator").plan(&partition(), 0, false).await.unwrap();
        assert!(dry.is_needed(), "{what}");
        let found = names(&objects).await;
        let rebuilt = confirm(&objects).await;
        assert_eq!(dry.taken_in, rebuilt.taken_in, "{what}");
        assert_eq!((rebuilt.left_out.len(), rebuilt.gaps.len()), (0, 0), "{what}: {rebuilt:?}");
        assert_eq!(logical(&objects).await, before, "{what}");
        // Nothing that was there is gone, and once rebuilt nothing is wrong.
        let now: BTreeSet<_> = names(&objects).await.into_iter().collect();
        assert!(found.iter().all(|name| now.contains(name)), "{what}");
        let again = rebuild(&objects, "operator").confirm(&partition(), 0, false).await.unwrap();
        assert_eq!((again.damage, again.committed), (Vec::new(), None), "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_be_read_is_left_alone_unless_told() {
    let objects = memory();
    world(&objects, 3).await;
    let (before, found) = (logical(&objects).await, names(&objects).await);
    let left = confirm(&objects).await;
    assert_eq!((left.committed, left.base, left.damage), (None, Some(3), Vec::new()));
    assert_eq!(names(&objects).await, found);
    // A dry run writes nothing either, whatever it is told.
    let mut told = rebuild(&objects, "operator");
    let dry = told.plan(&partition(), 0, true).await.unwrap();
    assert_eq!((dry.kept, dry.committed), (3, None));
    assert_eq!(names(&objects).await, found);
    let done = told.confirm(&partition(), 0, true).await.unwrap();
    assert_eq!(done.committed, Some(BLOCK));
    assert_eq!(logical(&objects).await, before);
}

/// The bytes of the object at `key` with one bit changed.
async fn flip(objects: &Arc<dyn ObjectStore>, key: &str) {
    let path = Path::from(key);
    let mut bytes = objects.get(&path).await.unwrap().bytes().await.unwrap().to_vec();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    objects.put(&path, bytes.into()).await.unwrap();
}

/// Table: F9 F30 I6 I14 | manifests and archives that are damaged
#[tokio::test(flavor = "multi_thread")]
async fn damaged_manifests_and_archives_are_passed_over_and_told() {
    let objects = memory();
    world(&objects, 6).await;
    let before = logical(&objects).await;
    let of = newest(&objects).await.of().clone();
    let key = |number| ObjectKey::Manifest { of: of.clone(), number }.to_string();
    for number in 4..=6 {
        flip(&objects, &key(number)).await;
    }
    let archive = &before.entries[4];
    flip(&objects, &archive.key().to_string()).await;
    let rebuilt = confirm(&objects).await;
    assert_eq!((rebuilt.base, rebuilt.kept, rebuilt.taken_in.len()), (Some(3), 3, 2));
    assert_eq!(rebuilt.left_out[0].object, archive.key().to_string());
    let gap = Gap { range: archive.summary.range, kind: GapKind::Damaged };
    assert_eq!(rebuilt.gaps, [gap]);
    assert!(rebuilt.unknown.iter().any(|text| text.contains("behind 3")), "{rebuilt:?}");
    let after = logical(&objects).await;
    let mut expected = before.entries.clone();
    expected.remove(4);
    assert_eq!((after.entries, after.gaps), (expected, vec![gap]));
    assert_eq!(after.through, before.through);
}

/// Table: F30 I14 | manifests behind a deletion
#[tokio::test(flavor = "multi_thread")]
async fn what_retention_removed_stays_away_where_a_manifest_tells_of_it() {
    let objects = memory();
    let world = world(&objects, 6).await;
    let base = newest(&objects).await;
    let entries = base.entries().await.unwrap();
    let log_start = entries[2].summary.range.base();
    let remove = entries[..2].to_vec();
    let edit = Edit { remove, log_start: Some(log_start), ..Edit::default() };
    let cut = world.catalog.commit(&partition(), 0, Some(base), edit).await.unwrap();
    let cut = Arc::clone(cut.snapshot());
    let next = world.catalog.commit(&partition(), 0, Some(cut), Edit::default()).await.unwrap();
    let before = logical(&objects).await;
    assert_eq!((before.log_start, before.entries.len()), (log_start, 4));

    let last = next.snapshot().number();
    let one = fork(&objects).await;
    let damaged =
        |key: &ObjectKey| matches!(key, ObjectKey::Manifest { number, .. } if *number == last);
    assert_eq!(lose(&one, damaged).await, 1);
    let mut told = rebuild(&one, "operator");
    assert!(told.confirm(&partition(), 0, true).await.unwrap().unknown.is_empty());
    assert_eq!(logical(&one).await, before);

    // Without any manifest they are back, and that is said.
    lose(&objects, |key| matches!(key, ObjectKey::Manifest { .. })).await;
    let rebuilt = confirm(&objects).await;
    assert!(rebuilt.unknown[0].contains("retention dropped"), "{rebuilt:?}");
    let after = logical(&objects).await;
    assert_eq!((after.log_start, after.entries), (0, entries));
}

/// Table: F1 F30 I7 I10 I14 | before and after every change of a rebuild
#[tokio::test(flavor = "multi_thread")]
async fn killed_at_every_change_it_is_done_by_doing_it_again() {
    let objects = memory();
    world(&objects, ARCHIVES).await;
    let before = logical(&objects).await;
    lose(&objects, |key| matches!(key, ObjectKey::Manifest { .. } | ObjectKey::Incarnation { .. }))
        .await;
    let mut kills = 0;
    for after in [false, true] {
        for at in 1.. {
            let objects = fork(&objects).await;
            let mortal = MortalStore::new(Arc::clone(&objects), Death { at, after });
            let below: Arc<dyn ObjectStore> = Arc::<MortalStore>::clone(&mortal);
            let killed = rebuild(&below, "killed").confirm(&partition(), 0, false).await;
            if !mortal.died() {
                killed.unwrap();
                assert_eq!(logical(&objects).await, before);
                break;
            }
            kills += 1;
            // Between the fence and the commit nobody takes it for an empty partition.
            let store = Store::new(Arc::clone(&objects), "");
            match catalog(&store, "witness").load(&partition(), Some(0)).await {
                Ok(None) => {
                    let closed = |key: &ObjectKey| matches!(key, ObjectKey::Closed { .. });
                    assert_eq!(lose(&objects, closed).await, 0, "killed at {at}, after: {after}");
                }
                Ok(Some(_)) => assert_eq!(logical(&objects).await, before, "{at} {after}"),
                Err(error) => assert!(matches!(error, CatalogError::Gone { .. }), "{error}"),
            }
            let _ = confirm(&objects).await;
            assert_eq!(logical(&objects).await, before, "killed at {at}, after: {after}");
        }
    }
    // Fence, life, pages, manifest: before and after each.
    assert!(kills >= 8, "{kills}");
}

/// Table: F12 F30 I8 I14 | a writer beside a rebuild
#[tokio::test(flavor = "multi_thread")]
async fn who_commits_beside_it_loses_and_goes_on_from_what_was_rebuilt() {
    let objects = memory();
    let world = world(&objects, 3).await;
    let base = newest(&objects).await;
    let before = logical(&objects).await;
    lose(&objects, |key| matches!(key, ObjectKey::Manifest { number: 1, .. })).await;
    let _ = confirm(&objects).await;
    // It read its base before, and sends its manifest after.
    let edit = Edit { topic_id: Some([7; 16]), ..Edit::default() };
    let lost = world.catalog.commit(&partition(), 0, Some(base), edit.clone()).await.unwrap_err();
    let CatalogError::Lost { newest: rebuilt } = lost else { panic!("{lost}") };
    assert_eq!(rebuilt.number(), BLOCK);
    let next = world.catalog.commit(&partition(), 0, Some(rebuilt), edit).await.unwrap();
    assert_eq!(next.snapshot().number(), BLOCK + 1);
    assert_eq!(logical(&objects).await, before);
    assert_eq!(newest(&objects).await.manifest().topic_id, Some([7; 16]));
}

/// Table: F30 I9 I14 | gc behind a rebuild
#[tokio::test(flavor = "multi_thread")]
async fn gc_deletes_nothing_that_was_taken_in() {
    let objects = memory();
    world(&objects, ARCHIVES).await;
    let before = logical(&objects).await;
    lose(&objects, |key| matches!(key, ObjectKey::Manifest { number, .. } if *number > 90)).await;
    let _ = confirm(&objects).await;
    let store = Store::new(Arc::clone(&objects), "");
    let clock = tierd::clock::ManualClock::at(0);
    let compactor =
        Compactor::new(catalog(&store, "gc"), store.clone(), clock, Box::new(|| [9; 16]));
    let day = std::time::Duration::from_secs(24 * 3600);
    for days in [0, 2, 4] {
        let now_ms = compactor.store_now_ms().await.unwrap() + days * 24 * 3600 * 1000;
        let grace = Grace { now_ms, grace: day };
        let survey = compactor.survey(&partition(), 0, grace).await.unwrap();
        compactor.sweep(survey, grace).await.unwrap();
        assert_eq!(logical(&objects).await, before, "{days} days later");
    }
    // Superseded pages and manifests went.
    assert!(names(&objects).await.len() < ARCHIVES + 10, "{}", names(&objects).await.len());
}

#[test]
fn the_command_line_shows_first_and_rebuilds_when_told() {
    let folder = tempfile::tempdir().unwrap();
    let tierd = Tierd::new(TIERD, folder.path());
    let _ = tierd.archive(&fixture::wal()).ok();
    let read = || {
        let of = [("orders", "0"), ("orders", "1"), ("payments", "0"), ("clicks.日本_1", "0")];
        of.map(|(topic, partition)| {
            let whole = ["fetch", topic, partition, "--offset", "0", "--format", "raw"];
            let all = [&whole[..], &["--overlaps", "all"][..]].concat();
            (tierd.run(&whole).ok().stdout, tierd.run(&all).ok().stdout)
        })
    };
    let before = read();
    let left = tierd.run(&["rebuild-manifest", "--confirm"]).ok().text();
    assert!(left.contains("left alone") && left.contains("nothing to rebuild"), "{left}");
    let mut lost = 0;
    remove_manifests(&folder.path().join("store"), &mut lost);
    assert!(lost >= 5, "{lost} manifests");
    let empty = tierd.run(&["fetch", "orders", "0", "--offset", "0"]);
    assert_ne!(empty.stdout, before[0].0);

    let dry = tierd.run(&["rebuild-manifest"]).ok();
    assert!(dry.text().contains("no manifest can be read"), "{}", dry.text());
    assert!(dry.text().contains("--confirm") && dry.stderr.contains("not known"), "{}", dry.stderr);
    let json = tierd.run(&["rebuild-manifest", "orders", "--json"]).ok().text();
    for line in json.lines() {
        let row: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(row["committed"].is_null() && !row["taken_in"].as_array().unwrap().is_empty());
    }
    let done = tierd.run(&["rebuild-manifest", "--confirm"]).ok().text();
    assert!(done.contains("rebuilt as manifest 1024"), "{done}");
    assert_eq!(read(), before);
    let _ = tierd.run(&["verify", "--deep"]).ok();
    // The daemon goes on from there, and finds all of the WAL archived.
    let _ = tierd.archive(&fixture::wal()).ok();
    assert_eq!(read(), before);
    let wrong = tierd.run(&["rebuild-manifest", "nobody"]);
    assert!(wrong.code == 2 && wrong.stderr.contains("no such partition"), "{}", wrong.stderr);
}

fn remove_manifests(folder: &std::path::Path, lost: &mut usize) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            remove_manifests(&path, lost);
        } else if path.parent().unwrap().ends_with("manifest") {
            std::fs::remove_file(&path).unwrap();
            *lost += 1;
        }
    }
}
