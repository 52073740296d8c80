//! One suite over every kind of store, then what is particular to directories.

use super::*;
use crate::error::{Classify, ErrorKind};
use crate::record::{OffsetRange, TopicName, TopicPartition};

fn partition(topic: &str) -> PartitionKey {
    PartitionKey {
        cluster: ClusterName::new("default").unwrap(),
        tp: TopicPartition::new(TopicName::new(topic).unwrap(), 0).unwrap(),
        incarnation: 0,
    }
}

fn manifest(number: u64) -> ObjectKey {
    ObjectKey::Manifest { of: partition("clicks.日本_1"), number }
}

fn archive(number: u64) -> ObjectKey {
    let range = OffsetRange::new(0, 9).unwrap();
    ObjectKey::Archive { of: partition("orders"), number, range, digest: [7; 16] }
}

/// Every kind of store, with the directory that must outlive it.
fn stores() -> Vec<(Store, Option<tempfile::TempDir>)> {
    let dir = tempfile::tempdir().unwrap();
    let local = Store::open(&format!("file://{}", dir.path().display())).unwrap();
    vec![
        (Store::open("memory:").unwrap(), None),
        (Store::new(Arc::new(InMemory::new()), "some/prefix/"), None),
        (local, Some(dir)),
    ]
    .into_iter()
    .map(|(store, dir)| (store.with_backoff(Duration::ZERO), dir))
    .collect()
}

/// Requests must be able to move between threads.
async fn spawned<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> T {
    tokio::spawn(work).await.unwrap()
}

#[tokio::test]
async fn what_is_put_is_got_whole_and_in_ranges() {
    for (store, _dir) in stores() {
        spawned(async move {
            let key = archive(1);
            store.put(&key, Bytes::from_static(b"0123456789")).await.unwrap();
            assert_eq!(store.get(&key, 10).await.unwrap(), "0123456789");
            assert_eq!(store.get_range(&key, 2..5).await.unwrap(), "234");
            assert_eq!(store.get_range(&key, 0..10).await.unwrap(), "0123456789");
            assert_eq!(store.get_range(&key, 4..4).await.unwrap(), "");
            assert_eq!(store.head(&key).await.unwrap(), Some(10));
            store.put(&key, Bytes::new()).await.unwrap();
            assert_eq!(store.get(&key, 10).await.unwrap(), "");
        })
        .await;
    }
}

#[tokio::test]
async fn a_range_that_the_object_does_not_hold_is_a_damaged_object() {
    for (store, _dir) in stores() {
        let key = archive(1);
        store.put(&key, Bytes::from_static(b"0123456789")).await.unwrap();
        for range in [8..11, 10..12, 50..60] {
            let error = store.get_range(&key, range.clone()).await.unwrap_err();
            assert!(
                matches!(error, StoreError::Length { found: 10, expected, .. } if expected == range.end),
                "{error}"
            );
            assert_eq!(error.kind(), ErrorKind::Corrupt);
        }
    }
}

#[tokio::test]
async fn an_object_larger_than_it_can_be_is_not_read() {
    for (store, _dir) in stores() {
        store.put(&manifest(1), Bytes::from(vec![0; 100])).await.unwrap();
        let error = store.get(&manifest(1), 99).await.unwrap_err();
        assert!(matches!(error, StoreError::TooLarge { max: 99, found: 100, .. }), "{error}");
        assert_eq!(store.requests().of(Op::Get).bytes, 0);
    }
}

#[tokio::test]
async fn what_is_absent_is_told_by_name_and_deleting_it_succeeds() {
    for (store, _dir) in stores() {
        let key = manifest(3);
        let error = store.get(&key, 10).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.to_string().starts_with(&key.to_string()), "{error}");
        assert_eq!(store.get_range(&key, 0..1).await.unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(store.head(&key).await.unwrap(), None);
        store.delete(&key).await.unwrap();
        assert_eq!(store.copy(&key, &manifest(4)).await.unwrap_err().kind(), ErrorKind::NotFound);
    }
}

#[tokio::test]
async fn create_makes_an_object_once() {
    for (store, _dir) in stores() {
        let key = manifest(1);
        assert_eq!(store.create(&key, Bytes::from_static(b"a")).await.unwrap(), Create::Done);
        assert_eq!(store.create(&key, Bytes::from_static(b"b")).await.unwrap(), Create::Exists);
        assert_eq!(store.get(&key, 1).await.unwrap(), "a");
        store.settle(&key).await.unwrap();
    }
}

#[tokio::test]
async fn sixteen_creators_have_one_winner() {
    for (store, _dir) in stores() {
        let racing = (0..16u8).map(|who| {
            let store = store.clone();
            tokio::spawn(async move {
                let body = Bytes::from(vec![who; 100]);
                (who, store.create(&manifest(1), body).await.unwrap())
            })
        });
        let outcomes = futures::future::join_all(racing).await;
        let winners: Vec<u8> = outcomes
            .into_iter()
            .map(Result::unwrap)
            .filter_map(|(who, outcome)| (outcome == Create::Done).then_some(who))
            .collect();
        assert_eq!(winners.len(), 1);
        assert_eq!(store.get(&manifest(1), 100).await.unwrap(), vec![winners[0]; 100]);
    }
}

#[tokio::test]
async fn names_in_any_script_come_back_from_a_listing() {
    for (store, _dir) in stores() {
        for key in [manifest(1), manifest(2), archive(1)] {
            store.put(&key, Bytes::from_static(b"xy")).await.unwrap();
        }
        let mut listed: Vec<_> = store.list("default").try_collect().await.unwrap();
        listed.sort();
        assert_eq!(
            listed.iter().map(|one| ObjectKey::decode(&one.name).unwrap()).collect::<Vec<_>>(),
            [manifest(1), manifest(2), archive(1)]
        );
        assert!(listed.iter().all(|one| one.length == 2 && one.modified_ms > 1_600_000_000_000));
        let mut topics = store.list_folders("default/").await.unwrap();
        topics.sort();
        assert_eq!(topics, ["clicks.日本_1", "orders"]);
        let of_topic: Vec<_> = store.list("default/orders/").try_collect::<Vec<_>>().await.unwrap();
        assert_eq!(of_topic.len(), 1);
        assert!(store.list("absent").try_collect::<Vec<_>>().await.unwrap().is_empty());
        assert!(store.list_folders("absent").await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn a_copy_has_the_same_bytes_and_outlives_the_original() {
    for (store, _dir) in stores() {
        store.put(&archive(1), Bytes::from_static(b"abc")).await.unwrap();
        store.copy(&archive(1), &archive(2)).await.unwrap();
        store.delete(&archive(1)).await.unwrap();
        assert_eq!(store.get(&archive(2), 3).await.unwrap(), "abc");
        assert_eq!(store.head(&archive(1)).await.unwrap(), None);
    }
}

#[tokio::test]
async fn a_small_file_is_one_request_and_a_large_one_is_parts() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("scratch");
    for (store, _dir) in stores() {
        for (len, puts, parts) in [(0, 1, 0), (1000, 1, 0), (PART_BYTES * 5 + 77, 1, 6)] {
            let body: Vec<u8> = (0..len).map(|at| ((at * 31) >> 7) as u8).collect();
            std::fs::write(&file, &body).unwrap();
            let before = store.requests();
            assert_eq!(store.put_file(&archive(1), &file).await.unwrap(), len);
            let sent = store.requests().since(&before);
            assert_eq!(sent.of(Op::PutPart).requests, parts);
            assert!(sent.of(Op::Put).requests >= puts);
            assert_eq!(sent.of(Op::Put).bytes + sent.of(Op::PutPart).bytes, len);
            assert_eq!(store.get(&archive(1), len).await.unwrap(), body);
        }
    }
}

#[tokio::test]
async fn a_file_that_is_not_there_leaves_no_object() {
    for (store, _dir) in stores() {
        let error =
            store.put_file(&archive(1), FilePath::new("/nonexistent/file")).await.unwrap_err();
        assert!(matches!(error, StoreError::Source { .. }), "{error}");
        assert_eq!(store.head(&archive(1)).await.unwrap(), None);
    }
}

#[tokio::test]
async fn a_probe_leaves_nothing_behind() {
    for (store, _dir) in stores() {
        let cluster = ClusterName::new("default").unwrap();
        let writer = WriterId::new("host").unwrap();
        store.probe(&cluster, &writer, [1; 16]).await.unwrap();
        store.probe(&cluster, &writer, [1; 16]).await.unwrap();
        assert!(store.list("").try_collect::<Vec<_>>().await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn a_store_tells_its_own_time_and_leaves_nothing_behind() {
    for (store, _dir) in stores() {
        let cluster = ClusterName::new("default").unwrap();
        let writer = WriterId::new("host").unwrap();
        store.put(&manifest(1), Bytes::new()).await.unwrap();
        let written = store.modified_ms(&manifest(1)).await.unwrap().unwrap();
        let now = store.now_ms(&cluster, &writer, [1; 16]).await.unwrap();
        assert!(written > 1_600_000_000_000 && now >= written, "{written} {now}");
        assert_eq!(store.modified_ms(&manifest(2)).await.unwrap(), None);
        assert_eq!(store.list("").try_collect::<Vec<_>>().await.unwrap().len(), 1);
    }
}

#[tokio::test]
async fn requests_are_counted_by_sort() {
    let store = Store::open("memory:").unwrap();
    store.create(&manifest(1), Bytes::from_static(b"abc")).await.unwrap();
    store.create(&manifest(1), Bytes::from_static(b"abc")).await.unwrap();
    store.head(&manifest(2)).await.unwrap();
    store.get(&manifest(1), 9).await.unwrap();
    let counted = store.requests();
    assert_eq!(counted.of(Op::Create), Count { requests: 2, failures: 0, bytes: 3 });
    assert_eq!(counted.of(Op::Head), Count { requests: 1, failures: 0, bytes: 0 });
    assert_eq!(counted.of(Op::Get), Count { requests: 1, failures: 0, bytes: 3 });
    assert_eq!(counted.total(), 4);
}

#[tokio::test]
async fn a_topic_is_a_folder_of_its_own_name_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&format!("file://{}", dir.path().display())).unwrap();
    let long = "日".repeat(83);
    assert_eq!(long.len(), 249);
    for topic in ["clicks.日本_1", "...", "-x", long.as_str(), "writers"] {
        let key = ObjectKey::Manifest { of: partition(topic), number: 1 };
        store.create(&key, Bytes::from_static(b"a")).await.unwrap();
        let folder = if topic == "writers" { "%77riters" } else { topic };
        let file = format!("default/{folder}/0000000000/0000000000/manifest/{:020}", 1);
        assert_eq!(std::fs::read(dir.path().join(&file)).unwrap(), b"a");
        assert_eq!(store.get(&key, 9).await.unwrap(), "a");
        let listed: Vec<_> = store.list("default").try_collect::<Vec<_>>().await.unwrap();
        assert!(listed.iter().any(|one| one.name == file && one.length == 1), "{listed:?}");
    }
}

#[test]
fn a_directory_that_is_not_there_is_made_only_for_a_writer() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("a/b");
    let url = format!("file://{}", missing.display());
    let error = Store::open(&url).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("a/b cannot be opened"), "{error}");
    assert!(!missing.try_exists().unwrap());
    Store::open_or_create(&url).unwrap();
    Store::open(&url).unwrap();
}

#[test]
fn a_file_in_place_of_the_directory_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "x").unwrap();
    for url in [format!("file://{}", file.display()), format!("file://{}/below", file.display())] {
        for error in [Store::open(&url).unwrap_err(), Store::open_or_create(&url).unwrap_err()] {
            let line = error.to_string();
            assert!(line.contains("cannot be opened") && line.contains("ot a directory"), "{line}");
            assert!(!line.contains('\n'));
        }
    }
}

#[tokio::test]
async fn a_store_that_cannot_be_written_is_told_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&format!("file://{}", dir.path().display())).unwrap();
    // A file where the cluster's folder should be: also root cannot write below.
    std::fs::write(dir.path().join("default"), "x").unwrap();
    let cluster = ClusterName::new("default").unwrap();
    let error = store.probe(&cluster, &WriterId::new("w").unwrap(), [0; 16]).await.unwrap_err();
    let line = error.to_string();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{line}");
    assert!(line.starts_with("cannot create default/writers/w/probe/"), "{line}");
    assert!(line.contains("check permissions") && !line.contains('\n'), "{line}");
}

/// A put on a directory must be synced; whether it is can only be seen in the
/// library's own options.
#[test]
fn a_directory_is_opened_with_syncing_on() {
    let dir = tempfile::tempdir().unwrap();
    let local = open_directory(dir.path()).unwrap();
    assert!(format!("{local:?}").contains("fsync: true"), "{local:?}");
}

#[test]
fn waits_double_and_jitter_takes_up_to_half_of_them_away() {
    let waits = |jitter: f64| {
        let store = Store::open("memory:").unwrap().with_jitter(Arc::new(move || jitter));
        [1, 2, 3].map(|attempts| store.inner.wait(attempts).as_millis())
    };
    assert_eq!(waits(1.0), [100, 200, 400]);
    assert_eq!(waits(0.0), [50, 100, 200]);
    assert_eq!(waits(0.5), [75, 150, 300]);
    assert_eq!(waits(7.0), [100, 200, 400], "never longer than told");
}
