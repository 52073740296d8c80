//! The words of `tierd verify` for every object, as a library and from the command line.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use object_store::memory::InMemory;
use object_store::{ObjectStore, ObjectStoreExt};
use serde_json::Value;
use tierd::read::{ArchiveReader, ReadOptions};
use tierd::store::Store;
use tierd::upkeep::{Check, Health, verify_partition};
use tierd_tests::fixture;
use tierd_tests::process::Tierd;
use tierd_tests::world::{Size, World, catalog, tp};

use crate::TIERD;

const HOUR_MS: i64 = 3600 * 1000;

async fn check(objects: &Arc<dyn ObjectStore>, deep: bool, later_ms: i64) -> Check {
    let store = Store::new(Arc::clone(objects), "");
    let (catalog, reader) =
        (catalog(&store, "reader"), ArchiveReader::new(store.clone(), ReadOptions::default()));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let now = now.as_millis() as i64 + later_ms;
    verify_partition(&store, &catalog, &reader, &tp("t", 0), 0, deep, now).await.unwrap()
}

fn words(check: &Check) -> BTreeMap<&'static str, usize> {
    let counts = Health::ALL.map(|health| (health.as_str(), check.count(health)));
    counts.into_iter().filter(|(_, count)| *count > 0).collect()
}

/// Table: F5 F9 F11 I6 | stored objects
#[tokio::test(flavor = "multi_thread")]
async fn every_object_has_the_word_that_fits() {
    let objects: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let size = Size { partitions: vec![("t", 0, 6)], records: 40, one_without_index_in: 2 };
    let world = World::over(Arc::clone(&objects), 3, &size).await;
    let snapshot = world.catalog.load(&tp("t", 0), None).await.unwrap().unwrap();
    let entries = snapshot.entries().await.unwrap();
    let beneath = entries.iter().filter(|entry| entry.summary.overlaps > 0).count();
    for deep in [false, true] {
        let clean = check(&objects, deep, 0).await;
        assert_eq!(clean.count(Health::Ok) + clean.count(Health::Overlap), 6, "{clean:?}");
        assert_eq!(clean.count(Health::Overlap), beneath);
        assert_eq!(clean.problems().count(), 0);
    }
    // What waits for the next manifest, now and for too long.
    let path = |entry: &tierd::catalog::ArchiveEntry| {
        object_store::path::Path::from(entry.key().to_string())
    };
    let next = entries[0].rebased(snapshot.number() + 1);
    let bytes = objects.get(&path(&entries[0])).await.unwrap().bytes().await.unwrap();
    objects.put(&path(&next), bytes.into()).await.unwrap();
    assert_eq!(words(&check(&objects, false, 0).await)["UPLOADING"], 1);
    let late = check(&objects, false, 2 * HOUR_MS).await;
    assert_eq!((late.count(Health::Delayed), late.worst()), (1, Health::Delayed));
    assert_eq!(late.problems().count(), 0, "nothing archived is missing");
    // One that is gone, one that is flipped where only a deep look sees it.
    objects.delete(&path(&entries[1])).await.unwrap();
    let mut flipped =
        objects.get(&path(&entries[2])).await.unwrap().bytes().await.unwrap().to_vec();
    flipped[600] ^= 1;
    objects.put(&path(&entries[2]), Bytes::from(flipped).into()).await.unwrap();
    let shallow = check(&objects, false, 0).await;
    assert_eq!((shallow.count(Health::Lost), shallow.count(Health::Corrupt)), (1, 0));
    let deep = check(&objects, true, 0).await;
    assert_eq!((deep.count(Health::Lost), deep.count(Health::Corrupt)), (1, 1), "{deep:?}");
    let named: Vec<_> = deep.problems().map(|problem| problem.range.unwrap()).collect();
    assert_eq!(named, [entries[1].summary.range, entries[2].summary.range]);
    assert_eq!(deep.worst(), Health::Corrupt);
}

#[test]
fn the_command_line_says_it_in_text_and_in_json() {
    let folder = tempfile::tempdir().unwrap();
    let tierd = Tierd::new(TIERD, folder.path());
    let _ = tierd.archive(&fixture::wal()).ok();
    let json = |args: &[&str]| -> Vec<Value> {
        let text = tierd.run(&[&["verify", "--json"], args].concat()).text();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let clean = json(&["--deep"]);
    assert_eq!(clean.len(), 5);
    for row in &clean {
        let objects = row["objects"].as_array().unwrap();
        assert_eq!(objects.len() as u64, row["archives"].as_u64().unwrap());
        let health = row["health"].as_str().unwrap();
        // Overlaps are told where the manifest counts them, and are no problem.
        let beneath = row["overlaps"].as_u64().unwrap() > 0;
        assert_eq!(health, if beneath { "OVERLAP" } else { "OK" });
        assert!(objects.iter().all(|one| one["length"].as_u64().is_some()));
    }
    assert!(clean.iter().any(|row| row["counts"]["overlap"] == 1), "the fixtures overlap");
    assert!(tierd.run(&["verify", "--all"]).ok().text().contains("archive/"));
    assert!(!tierd.run(&["verify"]).ok().text().contains("archive/"));

    // A killed upload leaves a part of a file behind.
    let archive = archives(&folder.path().join("store")).pop().unwrap();
    let part = format!("{}#1", archive.display());
    std::fs::write(&part, b"half").unwrap();
    let text = tierd.run(&["verify"]).ok().text();
    assert!(text.contains("UPLOADING") && text.contains("has not ended"), "{text}");
    std::fs::remove_file(&part).unwrap();
    std::fs::remove_file(&archive).unwrap();
    let lost = tierd.run(&["verify"]);
    assert_eq!(lost.code, 1);
    assert!(lost.text().contains("LOST") && lost.stderr.contains("LOST"), "{}", lost.text());
    let rows = json(&[]);
    let row = rows.iter().find(|row| row["health"] == "LOST").unwrap();
    assert_eq!(
        (row["counts"]["lost"].as_u64(), row["problems"].as_array().unwrap().len()),
        (Some(1), 1)
    );
}

fn archives(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let found = entries.flat_map(|path| match path.is_dir() {
        true => archives(&path),
        false => vec![path],
    });
    let mut found: Vec<_> =
        found.filter(|path| path.to_str().unwrap().ends_with(".tar.gz")).collect();
    found.sort();
    found
}
