//! The client a broker embeds, against a real daemon: what comes through it is
//! what the broker wrote, over cut connections too, and a daemon that is gone is
//! never "no data".

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tierd_client::{
    ArchiveClient, ArchiveError, BlockingArchiveClient, ClientOptions, End, FetchArgs, FetchStream,
    Isolation, ListArgs, Overlaps, Phase3, StreamItem, TopicPartition, batches_in,
};
use tierd_tests::fixture::{self, Batch};
use tierd_tests::process::{Served, Tierd};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::TIERD;

/// Base, last, length and SHA-256 of a batch.
type Row = (i64, i64, usize, String);

fn rows(batches: Bytes) -> Vec<Row> {
    let row = |batch: tierd_client::Batch| {
        let digest = Sha256::digest(&batch.bytes);
        let hex = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        (batch.base_offset, batch.last_offset, batch.bytes.len(), hex)
    };
    batches_in(batches).map(|batch| row(batch.unwrap())).collect()
}

fn wanted(batches: &[Batch]) -> Vec<Row> {
    batches.iter().map(|b| (b.base, b.last, b.length, b.sha256.clone())).collect()
}

/// The fixtures, archived and served.
fn served() -> (tempfile::TempDir, Served) {
    let folder = tempfile::tempdir().unwrap();
    let tierd = Tierd::new(TIERD, folder.path());
    let _ = tierd.archive(&fixture::wal()).ok();
    let daemon = tierd.serve(&[]);
    (folder, daemon)
}

/// Every batch of a stream, going on behind gaps.
async fn drain(mut open: impl FnMut(i64) -> FetchStream) -> Vec<Row> {
    let mut found = Vec::new();
    let mut stream = open(0);
    loop {
        match stream.next().await.unwrap().unwrap() {
            StreamItem::Batches(set) => found.extend(rows(set.batches)),
            StreamItem::End(end) => match end.end {
                End::Gap(gap) => stream = open(gap.range.last + 1),
                other => {
                    assert_eq!(other, End::EndOfArchive);
                    return found;
                }
            },
        }
    }
}

#[tokio::test]
async fn a_brokers_phase_3_reads_the_served_log_fetch_by_fetch() {
    let (_folder, daemon) = served();
    let phase3 = Phase3::connect_lazy(Some(&daemon.address)).unwrap();
    for ((topic, partition), batches) in fixture::batches() {
        let (mut offset, mut found) = (0, Vec::new());
        loop {
            match phase3.fetch(&topic, partition, offset, i64::MAX, 16 << 10).await {
                Ok(Some(answer)) => {
                    let answer = rows(answer.into());
                    offset = answer.last().unwrap().1 + 1;
                    found.extend(answer);
                }
                Ok(None) => break,
                Err(ArchiveError::Gap(gap)) => offset = gap.range.last + 1,
                Err(error) => panic!("{topic}-{partition} at {offset}: {error}"),
            }
        }
        assert_eq!(found, wanted(&fixture::served(&batches)), "{topic}-{partition}");
    }
    let counters = phase3.counters();
    assert!(counters.hits > 10 && counters.misses == 5, "{counters:?}");
}

#[tokio::test]
async fn every_kind_of_stream_holds_the_same_log() {
    let (_folder, daemon) = served();
    let client = ArchiveClient::connect_lazy(&daemon.address).unwrap();
    for ((topic, partition), mut batches) in fixture::batches() {
        let args = |offset| FetchArgs::new(topic.as_str(), partition, offset);
        let log = wanted(&fixture::served(&batches));
        assert_eq!(drain(|offset| client.fetch_stream(args(offset))).await, log, "{topic}");

        let isolation = Isolation::ReadCommitted;
        let committed = |offset| FetchArgs { isolation, ..args(offset) };
        assert_eq!(drain(|offset| client.fetch_stream(committed(offset))).await, log, "{topic}");

        batches.sort_by_key(|batch| (batch.base, batch.order));
        let all = |offset| FetchArgs { overlaps: Overlaps::All, ..args(offset) };
        let found = drain(|offset| client.fetch_stream(all(offset))).await;
        assert_eq!(found, wanted(&batches), "{topic}-{partition} with overlaps");
    }
}

/// Table: F24 I3 I4 | connections of a client, cut at any byte
#[tokio::test]
async fn connections_that_are_cut_again_and_again_lose_and_double_nothing() {
    let (_folder, daemon) = served();
    let endpoint = cutting_relay(daemon.address.clone()).await;
    let options = ClientOptions {
        retries: 20,
        backoff: Duration::from_millis(1),
        backoff_max: Duration::from_millis(1),
        ..ClientOptions::default()
    };
    let client = ArchiveClient::with_options(&endpoint, options).unwrap();
    for isolation in [Isolation::ReadUncommitted, Isolation::ReadCommitted] {
        for ((topic, partition), batches) in fixture::batches() {
            let args = |offset| FetchArgs {
                isolation,
                ..FetchArgs::new(topic.as_str(), partition, offset)
            };
            let found = drain(|offset| client.fetch_stream(args(offset))).await;
            assert_eq!(found, wanted(&fixture::served(&batches)), "{topic}-{partition}");
        }
    }
    assert!(client.counters().retries > 0, "no connection was cut");
}

/// Cuts a connection after some bytes of answers: at first 8 KiB, then twice as
/// many each time, up to 1 MiB, and so on from the beginning.
async fn cutting_relay(daemon: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        for turn in 0_u32.. {
            let Ok((outside, _)) = listener.accept().await else { return };
            let Ok(inside) = TcpStream::connect(&daemon).await else { return };
            let (mut requests, mut to_client) = outside.into_split();
            let (from_daemon, mut to_daemon) = inside.into_split();
            let mut answers = from_daemon.take((8 << 10) << (turn % 8));
            tokio::spawn(async move {
                // The first of the two to end drops both sockets.
                tokio::select! {
                    _ = tokio::io::copy(&mut requests, &mut to_daemon) => {}
                    _ = tokio::io::copy(&mut answers, &mut to_client) => {}
                }
                let _ = to_client.shutdown().await;
            });
        }
    });
    endpoint
}

/// Table: F24 I6 | a daemon that is gone
#[tokio::test]
async fn a_daemon_that_is_gone_is_a_retriable_error_and_never_no_data() {
    let (_folder, daemon) = served();
    let client = ArchiveClient::connect_lazy(&daemon.address).unwrap();
    let phase3 = Phase3::new(Arc::new(client));
    assert!(phase3.fetch("orders", 0, 0, i64::MAX, 1).await.unwrap().is_some());
    drop(daemon);
    let error = phase3.fetch("orders", 0, 0, i64::MAX, 1).await.unwrap_err();
    assert!(error.is_retryable() && !error.is_miss(), "{error}");
    assert_eq!((phase3.counters().hits, phase3.counters().errors), (1, 1));
}

#[tokio::test]
async fn what_is_archived_can_be_told() {
    let (_folder, daemon) = served();
    let client = ArchiveClient::connect_lazy(&daemon.address).unwrap();
    let described = client.describe(&[]).await.unwrap();
    assert_eq!(described.len(), fixture::batches().len());
    for of in &described {
        let topic = &of.topic;
        let batches = &fixture::batches()[&(topic.clone(), of.partition)];
        let chain = fixture::served(batches);
        let description = of.result.as_ref().unwrap();
        assert_eq!(description.bounds.archived_through, chain.last().unwrap().last + 1, "{topic}");
        assert_eq!(description.batches, chain.len() as u64, "{topic}");
        assert_eq!(description.overlaps, (batches.len() - chain.len()) as u64, "{topic}");

        let args = ListArgs {
            topic: Some(topic.clone()),
            partition: Some(of.partition),
            ..ListArgs::default()
        };
        let mut list = client.list(args).await.unwrap();
        let (mut archives, mut bytes) = (0, 0);
        while let Some(archive) = list.next().await {
            archives += 1;
            bytes += archive.unwrap().length;
        }
        assert_eq!((archives, bytes), (description.archives, description.bytes), "{topic}");

        let explained =
            client.explain(&FetchArgs::new(topic.as_str(), of.partition, 0)).await.unwrap();
        assert!(explained.result.is_ok() && !explained.reads.is_empty(), "{explained:?}");
    }
}

#[tokio::test]
async fn what_is_not_archived_is_told_by_every_call() {
    let (_folder, daemon) = served();
    let client = ArchiveClient::connect_lazy(&daemon.address).unwrap();
    let unknown =
        |error: &ArchiveError| matches!(error, ArchiveError::UnknownTopicOrPartition { .. });
    let error = client.fetch(FetchArgs::new("nope", 0, 0)).await.unwrap_err();
    assert!(unknown(&error), "{error}");
    let described = client.describe(&[TopicPartition::new("orders", 77)]).await.unwrap();
    assert!(unknown(described[0].result.as_ref().unwrap_err()), "{described:?}");
    for partition in [None, Some(0)] {
        let args = ListArgs { topic: Some("nope".into()), partition, ..ListArgs::default() };
        let error = match client.list(args).await {
            Ok(mut list) => list.next().await.unwrap().unwrap_err(),
            Err(error) => error,
        };
        assert!(unknown(&error), "{error}");
    }
    let above = client.fetch(FetchArgs::new("orders", 0, 1 << 40)).await.unwrap_err();
    assert!(matches!(above, ArchiveError::NotArchivedYet { .. }), "{above}");
    let below = client.fetch(FetchArgs::new("orders", 0, -1)).await.unwrap_err();
    assert!(matches!(below, ArchiveError::Invalid { .. }), "{below}");
}

#[test]
fn a_broker_without_an_async_runtime_reads_the_same() {
    let (_folder, daemon) = served();
    let client = BlockingArchiveClient::connect_lazy(&daemon.address).unwrap();
    let wanted = wanted(&fixture::served(&fixture::batches()[&("busy".to_owned(), 0)]));
    let mut found = Vec::new();
    for item in client.fetch_stream(FetchArgs::new("busy", 0, 0)) {
        if let StreamItem::Batches(set) = item.unwrap() {
            found.extend(rows(set.batches));
        }
    }
    assert_eq!(found, wanted);
}

#[test]
fn the_clients_public_face_names_no_grpc_type() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../client/src");
    let mut seen = 0;
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        if path.is_dir() {
            continue;
        }
        let code = std::fs::read_to_string(&path).unwrap();
        // A public item's face: from `pub` to its body, its end, or for a field or
        // a variant the end of its line.
        for (at, _) in code.match_indices("pub ") {
            let face = code[at..].split(['{', ';']).next().unwrap_or_default();
            let face = if face.starts_with("pub fn") || face.starts_with("pub async fn") {
                face
            } else {
                face.lines().next().unwrap_or_default()
            };
            seen += 1;
            for hidden in ["tonic", "prost", "v1::", "Channel", "GrpcClient"] {
                assert!(!face.contains(hidden), "{}: {face}", path.display());
            }
        }
    }
    assert!(seen > 100, "the client's sources were not found");
}
