//! Compaction of a running daemon: by itself, within its budget, one of several.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use object_store::ObjectStore;
use object_store::memory::InMemory;
use tierd::clock::ManualClock;
use tierd::compact::merge::{MergeJob, plan};
use tierd::compact::{Background, Left, Policy};
use tierd::metrics::Metrics;
use tierd::record::Codec;
use tierd::task::Pace;
use tierd_tests::chronik::{WalWriter, sample_batch};
use tierd_tests::process::Tierd;

use super::{Process, batches, bytes_of, over, witness};
use crate::TIERD;

/// The longest that a daemon may take to do what it does every 200 ms.
const PATIENCE: Duration = Duration::from_secs(60);

fn background(process: Process, target: u64, metrics: &Metrics) -> (Background, tempfile::TempDir) {
    let policy = Policy { merge_target: Some(target), ..Policy::default() };
    let Process { compactor, scratch, .. } = process;
    let folder = scratch.path().to_owned();
    let (pace, grace) = (Pace::unlimited(), Duration::ZERO);
    let policies = Box::new(move |_: &_| policy);
    (Background::new(compactor, policies, grace, folder, pace, metrics.clone()), scratch)
}

#[tokio::test]
async fn of_two_daemons_the_last_committer_merges_and_the_other_rests() {
    let batches = batches(40);
    let below: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let witness = witness(&below, &batches).await;
    let metrics = || Metrics::new(ManualClock::at(0)).unwrap();
    let target = bytes_of(&batches) / 3;
    let (ours, theirs) = (metrics(), metrics());
    let (mut standby, _kept) = background(over(Arc::clone(&below), "other"), target, &theirs);
    let before = witness.newest().await.number();
    assert_eq!(standby.round().await.unwrap(), Left::default());
    assert_eq!(witness.newest().await.number(), before, "another writer is at work there");

    let (mut leader, _kept) = background(over(Arc::clone(&below), "witness"), target, &ours);
    assert_eq!(leader.round().await.unwrap(), Left::default(), "all was done");
    let newest = witness.newest().await;
    assert!(newest.number() > before && newest.totals().entries < 5);
    assert_eq!(witness.log().await, batches);
    let swept = leader.collect().await.unwrap();
    assert!(swept.objects >= 6, "two merges of three: {swept:?}");
    assert_eq!(witness.log().await, batches);
    let text = ours.page().unwrap();
    assert!(text.contains("tierd_compaction_todo_jobs 0"), "{text}");
    assert!(!text.contains("tierd_compacted_bytes_total 0"), "{text}");
}

#[tokio::test]
async fn what_cannot_be_merged_stays_and_stops_nothing_behind_it() {
    let batches = batches(80);
    let below: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let witness = witness(&below, &batches).await;
    let metrics = Metrics::new(ManualClock::at(0)).unwrap();
    let target = bytes_of(&batches) / 5;
    let (mut leader, _kept) = background(over(Arc::clone(&below), "witness"), target, &metrics);
    let newest = witness.newest().await;
    let before = newest.entries().await.unwrap();
    let jobs = plan(&newest, &before, target, &HashSet::new());
    let [first, second, behind @ ..] = jobs.as_slice() else { panic!("{} jobs", jobs.len()) };
    assert!(!behind.is_empty(), "nothing lies behind");
    // Of one an input is lost, of the other it is another one's bytes.
    let (lost, damaged) = (first.inputs[0].key(), second.inputs[1].key());
    let whole = async |key| witness.store.get(key, u64::MAX).await.unwrap();
    let (of_lost, of_damaged) = (whole(&lost).await, whole(&damaged).await);
    witness.store.delete(&lost).await.unwrap();
    let mut other = of_damaged.to_vec();
    other[99] ^= 1;
    witness.store.put(&damaged, other.into()).await.unwrap();

    let left = leader.round().await.unwrap();
    assert_eq!(left, Left { jobs: 2, bytes: first.bytes() + second.bytes() });
    let after = witness.newest().await.entries().await.unwrap();
    let failed = || first.inputs.iter().chain(&second.inputs);
    assert!(failed().all(|one| after.contains(one)), "what failed stays");
    let gone = |jobs: &[MergeJob]| jobs.iter().map(|job| job.inputs.len() - 1).sum::<usize>();
    assert_eq!(after.len(), before.len() - gone(behind), "what lies behind is merged");
    let failures = || {
        let text = metrics.page().unwrap();
        let line =
            text.lines().find_map(|line| line.strip_prefix("tierd_compaction_failures_total "));
        line.unwrap().parse::<u32>().unwrap()
    };
    assert_eq!(failures(), 2);
    assert_eq!(leader.round().await.unwrap(), Left::default(), "left alone for a while");
    assert_eq!(failures(), 2);

    witness.store.put(&lost, of_lost).await.unwrap();
    witness.store.put(&damaged, of_damaged).await.unwrap();
    leader.collect().await.unwrap();
    assert_eq!(leader.round().await.unwrap(), Left::default(), "tried again");
    assert_eq!(witness.newest().await.totals().entries as usize, before.len() - gone(&jobs));
    assert_eq!((failures(), witness.log().await), (2, batches));
}

#[test]
fn a_running_daemon_merges_by_itself_and_status_says_what_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let (tierd, wal) = (Tierd::new(TIERD, folder.path()), folder.path().join("wal"));
    std::fs::create_dir_all(&wal).unwrap();
    let mut written: Vec<Bytes> = Vec::new();
    for id in 0..6 {
        let mut segment = WalWriter::create(&wal, "t", 0, id).unwrap();
        let batch = sample_batch(id as i64 * 10, 10, 20, Codec::None).unwrap();
        segment.append(&batch).unwrap();
        segment.finish().unwrap();
        written.push(batch);
        let _ = tierd.archive(&wal).ok();
    }
    let settings = folder.path().join("tierd.toml");
    let target = bytes_of(&written);
    let text = format!(
        "[compaction]\nevery = '200ms'\n[[compaction.topics]]\ntopics = '*'\n\
         merge-target = '{target}'\n"
    );
    std::fs::write(&settings, text).unwrap();
    let settings = settings.to_str().unwrap();
    let status = || {
        let status = tierd.run(&["--config", settings, "compact", "status", "--json"]).ok().text();
        serde_json::from_str::<serde_json::Value>(&status).unwrap()
    };
    let before = status();
    assert_eq!((&before["archives"], &before["merge"]["archives"]), (&6.into(), &6.into()));
    let text = tierd.run(&["--config", settings, "compact", "status"]).ok().text();
    assert!(text.contains("6 into 1") && text.contains("become 1"), "{text}");
    assert_eq!(status(), before, "status changes nothing");

    let daemon = tierd.live(&wal, &["--config", settings]);
    let began = Instant::now();
    while status()["archives"] != 1 {
        assert!(began.elapsed() < PATIENCE, "{}", status());
        std::thread::sleep(Duration::from_millis(100));
    }
    let merged = |metrics: &std::collections::BTreeMap<String, f64>| {
        metrics["tierd_compacted_bytes_total"] > 0.0 && metrics["tierd_compaction_todo_jobs"] == 0.0
    };
    while !merged(&daemon.metrics()) {
        assert!(began.elapsed() < PATIENCE, "{:?}", daemon.metrics());
        std::thread::sleep(Duration::from_millis(100));
    }
    let after = status();
    assert_eq!(after["merge"]["archives"], 0, "{after}");
    let fetched = tierd.run(&["fetch", "t", "0", "--offset", "0", "--format", "raw"]).ok().stdout;
    assert_eq!(fetched, written.concat());
    let text = tierd.run(&["--config", settings, "compact", "status"]).ok().text();
    assert!(text.contains("nothing to merge"), "{text}");
    drop(daemon);
    let _ = tierd.run(&["verify", "--deep"]).ok();
}
