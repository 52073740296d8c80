//! Following watermarks.

use tierd_proto::v1;

use super::server::{Act, Script, play};
use crate::{ArchiveError, TopicPartition, WatchItem, Watermark};

fn mark(partition: i32, generation: u64) -> v1::Watermark {
    v1::Watermark {
        topic: "orders".into(),
        partition,
        incarnation: 1,
        generation,
        archived_through: generation as i64 * 100,
        releasable_through: generation as i64 * 50,
    }
}

fn message(partitions: Vec<v1::Watermark>, initial_complete: bool) -> v1::WatchArchivedResponse {
    v1::WatchArchivedResponse { partitions, initial_complete }
}

fn told(partition: i32, generation: u64) -> WatchItem {
    WatchItem::Watermark(Watermark {
        topic: "orders".into(),
        partition,
        incarnation: 1,
        generation,
        archived_through: generation as i64 * 100,
        releasable_through: generation as i64 * 50,
    })
}

fn answer(
    script: &Script,
    streams: impl IntoIterator<Item = Result<Vec<v1::WatchArchivedResponse>, tonic::Status>>,
) {
    script.watch.lock().unwrap().extend(streams);
}

#[tokio::test]
async fn what_is_known_comes_first_and_a_restart_repeats_nothing() {
    let (script, client) = play(Vec::<Vec<Act>>::new()).await;
    let first = vec![message(vec![mark(0, 1)], false), message(vec![mark(1, 1)], true)];
    // The daemon restarts: it tells all it knows again, one partition of it news.
    let second =
        vec![message(vec![mark(0, 1), mark(1, 2)], true), message(vec![mark(0, 3)], false)];
    let refused = tonic::Status::unavailable("starting");
    answer(&script, [Ok(first), Err(refused), Ok(second)]);
    let mut watch = client.watch(&[TopicPartition::new("orders", 0)]);
    let mut items = Vec::new();
    for _ in 0..5 {
        items.push(watch.next().await.unwrap());
    }
    let complete = WatchItem::InitialComplete;
    assert_eq!(items, [told(0, 1), told(1, 1), complete, told(1, 2), told(0, 3)]);
    assert!(client.counters().retries >= 2, "{:?}", client.counters());
}

#[tokio::test]
async fn a_daemon_that_archives_nothing_is_an_error_and_not_silence() {
    let (script, client) = play(Vec::<Vec<Act>>::new()).await;
    let refused = || Err(tonic::Status::failed_precondition("this tierd archives nothing"));
    answer(&script, [refused(), refused()]);
    let mut watch = client.watch(&[]);
    for _ in 0..2 {
        let error = watch.next().await.unwrap_err();
        assert!(matches!(error, ArchiveError::Invalid { .. }), "{error}");
    }
}
