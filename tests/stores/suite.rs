//! What every store must do, whoever serves it.

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use tierd::error::{Classify, ErrorKind};
use tierd::record::{OffsetRange, TopicName, TopicPartition};
use tierd::store::{Create, ObjectKey, Op, PART_BYTES, PartitionKey, Store, StoreError};

use crate::servers::names;

/// Creators that race, and how often.
const RACERS: u8 = 16;
const RACES: u64 = 20;

/// More names than any provider lists in one answer of a thousand.
const MANY: u64 = 1_050;

fn partition(topic: &str) -> PartitionKey {
    PartitionKey {
        cluster: names().0,
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

async fn listed(store: &Store, folder: &str) -> Vec<(String, u64)> {
    let listed: Vec<_> = store.list(folder).try_collect().await.unwrap();
    let mut found: Vec<_> = listed.into_iter().map(|one| (one.name, one.length)).collect();
    found.sort();
    found
}

/// Holds the stores that `open` makes, one for each folder, to all of it.
pub async fn conforms(open: impl Fn(&str) -> Store) {
    a_probe_leaves_nothing_behind(&open("probe")).await;
    what_is_put_is_got_whole_and_in_ranges(&open("ranges")).await;
    an_empty_object_is_an_object(&open("empty")).await;
    what_is_absent_is_told_by_name(&open("absent")).await;
    a_copy_outlives_the_original(&open("copy")).await;
    names_in_any_script_come_back(&open("names/日本 1%20")).await;
    a_long_listing_is_whole(&open("long")).await;
    a_large_file_goes_in_parts(&open("large")).await;
    create_makes_an_object_once(&open("create")).await;
    many_creators_have_one_winner(&open("race")).await;
}

async fn a_probe_leaves_nothing_behind(store: &Store) {
    let (cluster, writer) = names();
    store.probe(&cluster, &writer, [1; 16]).await.unwrap();
    store.probe(&cluster, &writer, [1; 16]).await.unwrap();
    assert_eq!(listed(store, "").await, []);
}

async fn what_is_put_is_got_whole_and_in_ranges(store: &Store) {
    let key = archive(1);
    store.put(&key, Bytes::from_static(b"before")).await.unwrap();
    store.put(&key, Bytes::from_static(b"0123456789")).await.unwrap();
    assert_eq!(store.get(&key, 10).await.unwrap(), "0123456789");
    assert_eq!(store.get_range(&key, 2..5).await.unwrap(), "234");
    assert_eq!(store.get_range(&key, 9..10).await.unwrap(), "9");
    assert_eq!(store.get_range(&key, 0..10).await.unwrap(), "0123456789");
    assert_eq!(store.get_range(&key, 4..4).await.unwrap(), "");
    assert_eq!(store.head(&key).await.unwrap(), Some(10));
    for range in [8..11, 10..12, 50..60] {
        let error = store.get_range(&key, range.clone()).await.unwrap_err();
        let wanted = range.end;
        assert!(
            matches!(error, StoreError::Length { found: 10, expected, .. } if expected == wanted),
            "{error}"
        );
        assert_eq!(error.kind(), ErrorKind::Corrupt);
    }
    let error = store.get(&key, 9).await.unwrap_err();
    assert!(matches!(error, StoreError::TooLarge { max: 9, found: 10, .. }), "{error}");
}

async fn an_empty_object_is_an_object(store: &Store) {
    let key = manifest(1);
    assert_eq!(store.create(&key, Bytes::new()).await.unwrap(), Create::Done);
    assert_eq!(store.create(&key, Bytes::new()).await.unwrap(), Create::Exists);
    store.put(&archive(1), Bytes::new()).await.unwrap();
    for key in [key, archive(1)] {
        assert_eq!(store.get(&key, 10).await.unwrap(), "");
        assert_eq!(store.head(&key).await.unwrap(), Some(0));
        let error = store.get_range(&key, 0..1).await.unwrap_err();
        assert!(matches!(error, StoreError::Length { found: 0, expected: 1, .. }), "{error}");
    }
    assert!(listed(store, "").await.iter().all(|(_, len)| *len == 0));
}

async fn what_is_absent_is_told_by_name(store: &Store) {
    let key = manifest(3);
    let before = store.requests();
    for error in [
        store.get(&key, 10).await.unwrap_err(),
        store.get_range(&key, 0..1).await.unwrap_err(),
        store.copy(&key, &manifest(4)).await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
        assert!(error.to_string().starts_with(&key.to_string()), "{error}");
    }
    assert_eq!(store.head(&key).await.unwrap(), None);
    store.delete(&key).await.unwrap();
    assert_eq!(store.requests().since(&before).total(), 5, "an answer is not asked for again");
    assert_eq!(listed(store, "default").await, []);
    assert_eq!(store.list_folders("default").await.unwrap(), [""; 0]);
}

async fn a_copy_outlives_the_original(store: &Store) {
    store.put(&archive(1), Bytes::from_static(b"abc")).await.unwrap();
    store.put(&manifest(2), Bytes::from_static(b"to be replaced")).await.unwrap();
    store.copy(&archive(1), &manifest(2)).await.unwrap();
    store.delete(&archive(1)).await.unwrap();
    assert_eq!(store.get(&manifest(2), 99).await.unwrap(), "abc");
    assert_eq!(store.head(&archive(1)).await.unwrap(), None);
}

async fn names_in_any_script_come_back(store: &Store) {
    let long = "日".repeat(83);
    let topics = ["clicks.日本_1", "orders", "...", "-x", "ÆØÅ", long.as_str(), "writers"];
    for topic in topics {
        let key = ObjectKey::Manifest { of: partition(topic), number: 1 };
        assert_eq!(
            store.create(&key, Bytes::copy_from_slice(topic.as_bytes())).await.unwrap(),
            Create::Done
        );
        assert_eq!(store.get(&key, 999).await.unwrap(), topic.as_bytes());
        let folder = format!("default/{}", key.to_string().split('/').nth(1).unwrap());
        assert_eq!(listed(store, &folder).await, [(key.to_string(), topic.len() as u64)]);
    }
    let found: Vec<_> = listed(store, "default")
        .await
        .into_iter()
        .map(|(name, _)| match ObjectKey::decode(&name).unwrap() {
            ObjectKey::Manifest { of, .. } => of.tp.topic().to_string(),
            other => panic!("{other}"),
        })
        .collect();
    let mut wanted = topics.map(str::to_owned).to_vec();
    let mut sorted = found.clone();
    sorted.sort();
    wanted.sort();
    assert_eq!(sorted, wanted);
    assert_eq!(store.list_folders("default").await.unwrap().len(), topics.len());
}

async fn a_long_listing_is_whole(store: &Store) {
    futures::stream::iter(1..=MANY)
        .for_each_concurrent(16, |number| async move {
            store.put(&manifest(number), Bytes::from_static(b"x")).await.unwrap();
        })
        .await;
    let wanted: Vec<_> = (1..=MANY).map(|number| (manifest(number).to_string(), 1)).collect();
    assert_eq!(listed(store, "default").await, wanted);
}

async fn a_large_file_goes_in_parts(store: &Store) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("scratch");
    for (len, parts) in [(0, 0), (1000, 0), (PART_BYTES, 0), (PART_BYTES * 5 + 77, 6)] {
        let body: Vec<u8> = (0..len).map(|at| (at.wrapping_mul(0x9e37_79b9) >> 13) as u8).collect();
        std::fs::write(&file, &body).unwrap();
        let before = store.requests();
        assert_eq!(store.put_file(&archive(1), &file).await.unwrap(), len);
        assert_eq!(store.requests().since(&before).of(Op::PutPart).requests, parts);
        assert_eq!(store.head(&archive(1)).await.unwrap(), Some(len));
        assert!(store.get(&archive(1), len).await.unwrap() == body, "{len} bytes differ");
        if parts > 0 {
            let across = PART_BYTES - 3..PART_BYTES * 2 + 3;
            let wanted = &body[across.start as usize..across.end as usize];
            assert!(store.get_range(&archive(1), across).await.unwrap() == wanted);
        }
    }
}

/// Begins uploads until one is left half-way, as a killed writer leaves it; its name.
pub async fn an_upload_is_left_half_way(store: &Store) -> String {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("scratch");
    std::fs::write(&file, vec![7; 12 * PART_BYTES as usize]).unwrap();
    for number in 1.. {
        let (key, before) = (archive(number), store.requests());
        let sent = || store.requests().since(&before).of(Op::PutPart).requests;
        let upload = store.put_file(&key, &file);
        // Dropped in the middle of its parts: nobody is there to abort it.
        tokio::select! {
            ended = upload => drop(ended.unwrap()),
            () = async { while sent() < 6 { tokio::task::yield_now().await } } => {}
        }
        if store.head(&key).await.unwrap().is_none() {
            return key.to_string();
        }
    }
    unreachable!("numbers do not end")
}

async fn create_makes_an_object_once(store: &Store) {
    let key = manifest(1);
    assert_eq!(store.create(&key, Bytes::from_static(b"a")).await.unwrap(), Create::Done);
    assert_eq!(store.create(&key, Bytes::from_static(b"b")).await.unwrap(), Create::Exists);
    assert_eq!(store.create(&key, Bytes::from_static(b"a")).await.unwrap(), Create::Exists);
    assert_eq!(store.get(&key, 1).await.unwrap(), "a");
    store.settle(&key).await.unwrap();
    assert_eq!(store.requests().of(Op::Create).failures, 0);
}

async fn many_creators_have_one_winner(store: &Store) {
    for race in 1..=RACES {
        let racing = (0..RACERS).map(|who| {
            let store = store.clone();
            tokio::spawn(async move {
                let body = Bytes::from(vec![who; 100]);
                (who, store.create(&manifest(race), body).await.unwrap())
            })
        });
        let outcomes = futures::future::join_all(racing).await;
        let winners: Vec<u8> = outcomes
            .into_iter()
            .map(Result::unwrap)
            .filter_map(|(who, outcome)| (outcome == Create::Done).then_some(who))
            .collect();
        assert_eq!(winners.len(), 1, "race {race}: {winners:?}");
        assert_eq!(store.get(&manifest(race), 100).await.unwrap(), vec![winners[0]; 100]);
    }
}
