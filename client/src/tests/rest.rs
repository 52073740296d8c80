//! The other shapes of the client: the drop-in, the socket file, the blocking
//! face, and the calls that describe.

use std::sync::Arc;

use tierd_proto::v1;
use tierd_proto::v1::fetch_archived_response::Frame;

use super::server::{Script, complete, play, serve, serve_unix};
use super::{batch_bytes, data, hasty, header, trailer};
use crate::{
    ArchiveClient, ArchiveError, BlockingArchiveClient, End, FetchArgs, GapKind, IndexLevel,
    ListArgs, OffsetRange, Phase3, ReadPurpose, SearchArgs, SearchItem, StreamItem, TopicPartition,
};

fn ten(base: i64) -> bytes::Bytes {
    batch_bytes(base, 10, 39)
}

fn hit() -> Vec<super::server::Act> {
    complete([header("orders", 0), data(ten(0)), trailer(10, 100, 1)])
}

fn status(status: v1::Status) -> Vec<super::server::Act> {
    let Frame::Trailer(mut closed) = trailer(0, 0, 0) else { unreachable!() };
    closed.status = status.into();
    complete([header("orders", 0), Frame::Trailer(closed)])
}

fn empty() -> Vec<super::server::Act> {
    complete([header("orders", 0), trailer(0, 0, 0)])
}

fn gap() -> Vec<super::server::Act> {
    let Frame::Trailer(mut closed) = trailer(0, 0, 0) else { unreachable!() };
    closed.end_reason = v1::EndReason::Gap.into();
    let range = Some(v1::OffsetRange { first: 0, last: 4 });
    closed.gap = Some(v1::Gap { range, kind: v1::GapKind::BeforeFirst.into() });
    complete([header("orders", 0), Frame::Trailer(closed)])
}

#[tokio::test]
async fn the_drop_in_tells_data_from_no_data_from_errors() {
    let (script, client) = play([
        hit(),
        empty(),
        status(v1::Status::NotArchivedYet),
        status(v1::Status::UnknownTopicOrPartition),
        gap(),
        status(v1::Status::BelowLogStart),
        status(v1::Status::DataLoss),
    ])
    .await;
    let phase3 = Phase3::new(Arc::new(client));
    let fetch = async || phase3.fetch("orders", 0, 0, 50, 1 << 20).await;
    assert_eq!(fetch().await, Ok(Some(ten(0).to_vec())));
    for _ in 0..3 {
        assert_eq!(fetch().await, Ok(None));
    }
    assert!(matches!(fetch().await, Err(ArchiveError::Gap(_))));
    assert!(matches!(fetch().await, Err(ArchiveError::BelowLogStart { .. })));
    assert!(matches!(fetch().await, Err(ArchiveError::DataLoss { .. })));
    // The script is over, as if another service listened there.
    assert!(matches!(fetch().await, Err(ArchiveError::Protocol { .. })));

    let counters = phase3.counters();
    assert_eq!((counters.fallbacks, counters.hits, counters.misses, counters.errors), (8, 1, 3, 4));
    let request = &script.requests()[0];
    assert_eq!((request.upper_bound, request.max_bytes), (Some(50), Some(1 << 20)));
    assert!(request.min_one_batch);
    let named = counters.named();
    assert!(named.contains(&("tierd_client_hits_total", 1)), "{named:?}");
}

#[tokio::test]
async fn without_an_endpoint_nothing_is_in_the_archive() {
    for endpoint in [None, Some(""), Some(" ")] {
        let phase3 = Phase3::connect_lazy(endpoint).unwrap();
        assert_eq!(phase3.fetch("orders", 0, 0, 50, 1024).await, Ok(None));
        assert_eq!(phase3.counters(), crate::CounterValues::default());
    }
    assert!(Phase3::connect_lazy(Some("https://tierd:9095")).is_err());
}

#[tokio::test]
async fn a_stopped_daemon_is_an_error_and_never_no_data() {
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = free.local_addr().unwrap().to_string();
    drop(free);
    let phase3 = Phase3::new(Arc::new(ArchiveClient::with_options(&endpoint, hasty()).unwrap()));
    let error = phase3.fetch("orders", 0, 0, 50, 1024).await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
    assert_eq!((error.kafka_error_code(), phase3.counters().errors), (56, 1));
}

#[tokio::test]
async fn a_socket_file_is_an_endpoint() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tierd.sock");
    let script = Script::new([hit(), hit()]);
    serve_unix(&script, &path);
    for scheme in ["unix:", "unix://"] {
        let endpoint = format!("{scheme}{}", path.display());
        let client = ArchiveClient::connect_lazy(&endpoint).unwrap();
        let outcome = client.fetch(FetchArgs::new("orders", 0, 0)).await.unwrap();
        assert_eq!(outcome.batches, ten(0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_blocking_client_works_on_any_thread() {
    let script = Script::new([hit(), hit(), hit(), hit()]);
    let endpoint = serve(&script).await;
    let client = BlockingArchiveClient::with_options(&endpoint, hasty()).unwrap();
    // A worker of this runtime is the hardest place: block_on would panic here.
    assert_eq!(client.phase3("orders", 0, 0, 50, 1024), Ok(Some(ten(0).to_vec())));

    let on_a_thread = std::thread::spawn(move || {
        let outcome = client.fetch(FetchArgs::new("orders", 0, 0)).unwrap();
        let items: Vec<StreamItem> =
            client.fetch_stream(FetchArgs::new("orders", 0, 0)).map(Result::unwrap).collect();
        (outcome, items, client)
    });
    let (outcome, items, client) = on_a_thread.join().unwrap();
    assert_eq!(outcome.batches, ten(0));
    let [StreamItem::Batches(set), StreamItem::End(end)] = &items[..] else { panic!("{items:?}") };
    assert_eq!((&set.batches, &end.end), (&ten(0), &End::EndOfArchive));
    assert_eq!(client.counters().hits, 2);
    // Dropped on a worker too.
    drop(client);
}

#[tokio::test]
async fn a_description_is_told_partition_by_partition() {
    let (script, client) = play([]).await;
    let Frame::Header(v1::PartitionHeader { bounds, .. }) = header("orders", 0) else {
        unreachable!()
    };
    let range = Some(v1::OffsetRange { first: 0, last: 4 });
    let known = v1::PartitionDescription {
        topic: "orders".into(),
        status: v1::Status::Ok.into(),
        bounds,
        gaps: vec![v1::Gap { range, kind: v1::GapKind::BeforeFirst.into() }],
        archives: 3,
        records: 995,
        ..v1::PartitionDescription::default()
    };
    let unknown = v1::PartitionDescription {
        topic: "orders".into(),
        partition: 9,
        status: v1::Status::UnknownTopicOrPartition.into(),
        backlog: Some(v1::Backlog {
            offsets: 7,
            bytes: 900,
            age_ms: 1_500,
            stall: "store".into(),
            quarantined: false,
        }),
        ..v1::PartitionDescription::default()
    };
    script.describe.lock().unwrap().extend([
        Err(tonic::Status::unavailable("starting")),
        Ok(v1::DescribeArchiveResponse { partitions: vec![known, unknown] }),
    ]);
    let asked = [TopicPartition::new("orders", 0), TopicPartition::new("orders", 9)];
    let described = client.describe(&asked).await.unwrap();
    let first = described[0].result.as_ref().unwrap();
    assert_eq!((first.bounds.archived_through, first.archives, first.records), (1_000, 3, 995));
    assert_eq!(first.gaps[0].kind, GapKind::BeforeFirst);
    let topic = "orders".into();
    let unknown = ArchiveError::UnknownTopicOrPartition { topic, partition: Some(9) };
    assert_eq!(described[1].result, Err(unknown));
    assert_eq!(described[0].backlog, None);
    let age = std::time::Duration::from_millis(1_500);
    let stall = Some("store".to_owned());
    let backlog = crate::Backlog { offsets: 7, bytes: 900, age, stall, quarantined: false };
    assert_eq!(described[1].backlog, Some(backlog));
    assert_eq!(client.counters().retries, 1);
}

#[tokio::test]
async fn archives_are_listed_as_they_come() {
    let (script, client) = play([]).await;
    let archive = |first: i64, last: i64| v1::ListArchivesResponse {
        topic: "orders".into(),
        object: format!("default/orders/{first}"),
        range: Some(v1::OffsetRange { first, last }),
        tiles: true,
        index_level: v1::IndexLevel::Keys.into(),
        ..v1::ListArchivesResponse::default()
    };
    let inverted = archive(9, 8);
    script.list.lock().unwrap().extend([
        Ok(vec![archive(0, 9), archive(10, 19), inverted]),
        Err(tonic::Status::not_found("no such topic")),
    ]);
    let mut list = client.list(ListArgs::default()).await.unwrap();
    for first in [0, 10] {
        let archive = list.next().await.unwrap().unwrap();
        assert_eq!(archive.range, OffsetRange { first, last: first + 9 });
        assert_eq!(archive.index_level, IndexLevel::Keys);
    }
    assert!(matches!(list.next().await, Some(Err(ArchiveError::Protocol { .. }))));
    assert!(list.next().await.is_none());

    let args = ListArgs { topic: Some("nope".into()), ..ListArgs::default() };
    let error = client.list(args).await.unwrap_err();
    assert!(matches!(error, ArchiveError::UnknownTopicOrPartition { .. }), "{error}");
}

#[tokio::test]
async fn a_fetch_is_explained() {
    let (script, client) = play([]).await;
    let read = |purpose: v1::ReadPurpose, cached| v1::ExplainedRead {
        object: "default/orders/0".into(),
        offset: 512,
        length: 4096,
        purpose: purpose.into(),
        cached,
    };
    let partition = v1::PartitionExplanation {
        topic: "orders".into(),
        status: v1::Status::Ok.into(),
        end_reason: v1::EndReason::Limit.into(),
        archives: vec![v1::ExplainedArchive {
            object: "default/orders/0".into(),
            range: Some(v1::OffsetRange { first: 0, last: 99 }),
            chunks: 4,
            raw_bytes: 1 << 20,
        }],
        reads: vec![read(v1::ReadPurpose::Toc, true), read(v1::ReadPurpose::Data, false)],
        store_bytes: 4096,
        store_requests: 1,
        ..v1::PartitionExplanation::default()
    };
    let partitions = vec![partition];
    script.explain.lock().unwrap().push_back(v1::ExplainFetchResponse { partitions });
    let explained = client.explain(&FetchArgs::new("orders", 0, 7)).await.unwrap();
    assert_eq!((explained.result, explained.end), (Ok(()), Some(End::Limit)));
    assert_eq!((explained.store_bytes, explained.store_requests), (4096, 1));
    assert_eq!(explained.archives[0].chunks, 4);
    let reads: Vec<_> = explained.reads.iter().map(|read| (read.purpose, read.cached)).collect();
    assert_eq!(reads, [(ReadPurpose::Toc, true), (ReadPurpose::Data, false)]);
}

fn piece(piece: v1::search_response::Piece) -> v1::SearchResponse {
    v1::SearchResponse { piece: Some(piece) }
}

fn part(batch: &'static [u8], continued: bool) -> v1::SearchResponse {
    let batch = bytes::Bytes::from_static(batch);
    piece(v1::search_response::Piece::Batch(v1::SearchBatch {
        topic: "orders".to_owned(),
        batch,
        continued,
        ..v1::SearchBatch::default()
    }))
}

#[tokio::test]
async fn a_search_joins_the_pieces_of_a_batch_and_needs_its_end() {
    let (script, client) = play([]).await;
    let end = v1::SearchEnd { hits: 2, complete: true, ..v1::SearchEnd::default() };
    let whole = vec![
        part(b"ab", true),
        // A piece that is younger than this client.
        v1::SearchResponse { piece: None },
        part(b"c", false),
        part(b"d", false),
        piece(v1::search_response::Piece::End(end)),
    ];
    let broken = vec![part(b"d", false)];
    script.search.lock().unwrap().extend([Ok(whole), Ok(broken)]);
    let mut answer = client.search(SearchArgs::default()).await.unwrap();
    let mut batches = Vec::new();
    loop {
        match answer.next().await.unwrap().unwrap() {
            SearchItem::Batch { batch, .. } => batches.push(batch),
            SearchItem::End(end) => {
                assert_eq!((end.hits, end.complete, end.next_page), (2, true, None));
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(batches, ["abc", "d"]);
    assert!(answer.next().await.is_none());
    let mut answer = client.search(SearchArgs::default()).await.unwrap();
    assert!(answer.next().await.unwrap().is_ok());
    let cut = answer.next().await.unwrap().unwrap_err();
    assert!(matches!(cut, ArchiveError::Unavailable { .. }), "{cut}");
    assert!(answer.next().await.is_none());
}

#[tokio::test]
async fn a_search_of_what_is_not_archived_and_one_that_makes_no_sense_say_so() {
    let (script, client) = play([]).await;
    let refused = [
        Err(tonic::Status::not_found("nothing")),
        Err(tonic::Status::invalid_argument("a limit of 0 hits")),
    ];
    script.search.lock().unwrap().extend(refused);
    let args = SearchArgs { topic: Some("x".to_owned()), ..SearchArgs::default() };
    let unknown = client.search(args.clone()).await.unwrap_err();
    assert!(matches!(unknown, ArchiveError::UnknownTopicOrPartition { .. }), "{unknown}");
    let invalid = client.search(args).await.unwrap_err();
    assert!(invalid.to_string().contains("a limit of 0 hits"), "{invalid}");
}
