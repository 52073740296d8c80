use std::time::Duration;

use bytes::Bytes;
use tierd_proto::v1;
use tierd_proto::v1::fetch_archived_response::Frame;
use tonic::Code;

use super::server::{Act, broken, complete, play, play_with};
use super::{batch_bytes, data, hasty, header, piece, trailer};
use crate::{
    ArchiveError, ClientOptions, End, FetchArgs, GapKind, Isolation, OffsetRange, Overlaps,
};

fn args() -> FetchArgs {
    FetchArgs::new("orders", 0, 0)
}

fn committed() -> FetchArgs {
    FetchArgs { isolation: Isolation::ReadCommitted, ..args() }
}

fn open() -> Frame {
    header("orders", 0)
}

/// Ten offsets from `base` on, and their length.
fn ten(base: i64) -> Bytes {
    batch_bytes(base, 10, 39)
}

fn close(next_offset: i64, batches: u32) -> Frame {
    trailer(next_offset, 100 * u64::from(batches), batches)
}

/// The trailer `frame`, changed.
fn with(frame: Frame, change: impl FnOnce(&mut v1::PartitionTrailer)) -> Frame {
    let Frame::Trailer(mut trailer) = frame else { panic!("no trailer: {frame:?}") };
    change(&mut trailer);
    Frame::Trailer(trailer)
}

fn failed(frame: Frame, status: v1::Status) -> Frame {
    with(frame, |trailer| {
        trailer.status = status.into();
        trailer.end_reason = v1::EndReason::Unspecified.into();
        trailer.message = "the script says so".into();
    })
}

fn ending(frame: Frame, reason: v1::EndReason) -> Frame {
    with(frame, |trailer| trailer.end_reason = reason.into())
}

fn at_gap(frame: Frame, first: i64, last: i64) -> Frame {
    with(ending(frame, v1::EndReason::Gap), |trailer| {
        let range = Some(v1::OffsetRange { first, last });
        trailer.gap = Some(v1::Gap { range, kind: v1::GapKind::Missing.into() });
    })
}

fn listing(frame: Frame, producers: &[i64]) -> Frame {
    let transaction = |producer_id: &i64| v1::AbortedTransaction {
        producer_id: *producer_id,
        first_offset: 2,
        last_offset: 9,
    };
    with(frame, |trailer| {
        trailer.aborted = Some(v1::AbortedTransactions {
            transactions: producers.iter().map(transaction).collect(),
            searched_to: 20,
            complete: true,
        });
    })
}

#[tokio::test]
async fn an_answer_comes_back_byte_for_byte_with_its_bounds() {
    let (script, client) =
        play([complete([open(), data(ten(0)), data(ten(10)), close(20, 2)])]).await;
    let wanted =
        FetchArgs { upper_bound: Some(20), max_bytes: Some(4096), incarnation: Some(3), ..args() };
    let outcome = client.fetch(wanted).await.unwrap();
    assert_eq!(outcome.batches, [ten(0), ten(10)].concat());
    assert_eq!((outcome.batch_count, outcome.next_offset), (2, 20));
    assert_eq!((outcome.end, outcome.aborted), (End::EndOfArchive, None));
    assert_eq!(outcome.bounds.unwrap().archived_through, 1_000);
    let request = &script.requests()[0];
    assert_eq!((request.upper_bound, request.max_bytes), (Some(20), Some(4096)));
    assert_eq!((request.incarnation, request.min_one_batch), (Some(3), true));
}

#[tokio::test]
async fn a_broken_stream_is_resumed_behind_the_last_whole_batch() {
    let (script, client) = play([
        broken([open(), data(ten(0)), data(ten(10))]),
        vec![Act::Fail(Code::Unavailable)],
        complete([open(), data(ten(20)), close(30, 1)]),
    ])
    .await;
    let outcome = client.fetch(FetchArgs { max_bytes: Some(1000), ..args() }).await.unwrap();
    assert_eq!(outcome.batches, [ten(0), ten(10), ten(20)].concat());
    assert_eq!((outcome.batch_count, outcome.next_offset), (3, 30));
    let requests = script.requests();
    assert_eq!(requests.len(), 3);
    for resumed in &requests[1..] {
        assert_eq!((resumed.fetch_offset, resumed.max_bytes), (20, Some(800)));
        assert!(!resumed.min_one_batch);
    }
    assert_eq!(client.counters().retries, 2);
}

#[tokio::test]
async fn a_cut_connection_loses_and_doubles_nothing() {
    // Whether the batch got through before the cut decides where it goes on.
    let cut = [Act::Send(open()), Act::Send(data(ten(0))), Act::Cut].to_vec();
    let (script, client) = play([cut, vec![Act::Tens(30)]]).await;
    let outcome = client.fetch(args()).await.unwrap();
    assert_eq!(outcome.batches, [ten(0), ten(10), ten(20)].concat());
    assert_eq!((outcome.next_offset, outcome.end), (30, End::EndOfArchive));
    assert_eq!(script.requests().len(), 2);
}

#[tokio::test]
async fn a_batch_larger_than_a_frame_arrives_whole() {
    let large = batch_bytes(10, 10, 3 << 20);
    let mut frames = vec![open(), data(ten(0))];
    let last = large.len() - large.len() % v1::DATA_FRAME_BYTES_MAX;
    for start in (0..last).step_by(v1::DATA_FRAME_BYTES_MAX) {
        frames.push(piece(large.slice(start..start + v1::DATA_FRAME_BYTES_MAX)));
    }
    frames.extend([data(large.slice(last..)), trailer(20, 100 + large.len() as u64, 2)]);
    let (_, client) = play([complete(frames)]).await;
    let outcome = client.fetch(args()).await.unwrap();
    assert_eq!(outcome.batch_count, 2);
    assert!(outcome.batches == [ten(0), large].concat());
}

#[tokio::test]
async fn half_a_batch_before_a_break_is_never_handed_out() {
    let (script, client) = play([
        broken([open(), data(ten(0)), piece(ten(10).slice(..70))]),
        complete([open(), piece(ten(10).slice(..70)), data(ten(10).slice(70..)), close(20, 1)]),
    ])
    .await;
    let outcome = client.fetch(args()).await.unwrap();
    assert_eq!(outcome.batches, [ten(0), ten(10)].concat());
    assert_eq!(script.requests()[1].fetch_offset, 10);
}

#[tokio::test]
async fn a_trailer_inside_a_piece_voids_it_and_what_came_before_stands() {
    let lost = with(failed(close(10, 1), v1::Status::DataLoss), |trailer| {
        trailer.object = "orders/archive/7".into();
    });
    let (_, client) =
        play([complete([open(), data(ten(0)), piece(ten(10).slice(..70)), lost])]).await;
    let outcome = client.fetch(args()).await.unwrap();
    assert_eq!((outcome.batches, outcome.next_offset), (ten(0), 10));
    assert_eq!(
        outcome.end,
        End::Failed(ArchiveError::DataLoss {
            offset: Some(10),
            object: "orders/archive/7".into(),
            message: "the script says so".into(),
        })
    );
}

#[tokio::test]
async fn unavailable_inside_a_piece_is_asked_again_from_before_it() {
    let stumbled = failed(close(10, 1), v1::Status::Unavailable);
    let (script, client) = play([
        complete([open(), data(ten(0)), piece(ten(10).slice(..70)), stumbled]),
        complete([open(), data(ten(10)), close(20, 1)]),
    ])
    .await;
    let outcome = client.fetch(args()).await.unwrap();
    assert_eq!(outcome.batches, [ten(0), ten(10)].concat());
    assert_eq!((outcome.end, script.requests()[1].fetch_offset), (End::EndOfArchive, 10));
}

#[tokio::test]
async fn the_deadline_ends_a_call_that_is_not_answered() {
    let after = Duration::from_millis(20);
    let hurried = || FetchArgs { deadline: Some(after), ..args() };
    let (_, client) = play([vec![Act::Hang]]).await;
    assert_eq!(client.fetch(hurried()).await, Err(ArchiveError::Deadline { after }));
    assert_eq!(client.counters().errors, 1);
}

#[tokio::test]
async fn what_came_is_handed_out_although_the_archive_cannot_go_on() {
    let mut calls = vec![vec![Act::Fail(Code::Unavailable)]; 9];
    calls[0] = broken([open(), data(ten(0))]);
    let (script, client) = play(calls).await;
    let outcome = client.fetch(args()).await.unwrap();
    assert_eq!((outcome.batches, outcome.next_offset), (ten(0), 10));
    assert!(matches!(outcome.end, End::Failed(ArchiveError::Unavailable { .. })));
    assert_eq!(script.requests().len(), 1 + hasty().retries as usize);
    assert_eq!(client.counters().hits, 1);
}

#[tokio::test]
async fn unavailable_is_tried_again_and_then_told() {
    let refusal = || vec![Act::Fail(Code::Unavailable)];
    let loading = || complete([open(), failed(close(0, 0), v1::Status::Unavailable)]);
    let (_, client) =
        play([refusal(), loading(), complete([open(), data(ten(0)), close(10, 1)])]).await;
    assert!(client.fetch(args()).await.unwrap().is_hit());

    let calls = [refusal(), loading(), refusal(), loading(), refusal(), refusal()];
    let (script, client) = play(calls).await;
    let error = client.fetch(args()).await.unwrap_err();
    assert!(matches!(error, ArchiveError::Unavailable { .. }), "{error}");
    assert_eq!(script.requests().len(), 1 + hasty().retries as usize);
}

#[tokio::test]
async fn a_daemon_that_asks_for_more_time_than_there_is_is_not_waited_for() {
    let later = with(failed(close(0, 0), v1::Status::Unavailable), |trailer| {
        trailer.retry_after_ms = Some(90_000);
    });
    let (script, client) = play([complete([open(), later])]).await;
    let error = client.fetch(args()).await.unwrap_err();
    let retry_after = Some(Duration::from_secs(90));
    let message = "the script says so".into();
    assert_eq!(error, ArchiveError::Unavailable { message, retry_after });
    assert_eq!(script.requests().len(), 1);
}

#[tokio::test]
async fn nobody_listening_is_unavailable_and_names_the_endpoint() {
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = free.local_addr().unwrap().to_string();
    drop(free);
    let client = crate::ArchiveClient::with_options(&endpoint, hasty()).unwrap();
    let error = client.fetch(args()).await.unwrap_err();
    assert!(matches!(error, ArchiveError::Unavailable { .. }), "{error}");
    assert!(error.to_string().contains(&endpoint), "{error}");
}

#[tokio::test]
async fn every_status_of_a_partition_has_its_error() {
    use v1::Status;
    let message = || "the script says so".to_owned();
    let table = [
        (
            Status::BelowLogStart,
            ArchiveError::BelowLogStart { offset: 0, log_start: 0, archived_through: 1_000 },
        ),
        (
            Status::NotArchivedYet,
            ArchiveError::NotArchivedYet { offset: 0, archived_through: 1_000 },
        ),
        (
            Status::UnknownTopicOrPartition,
            ArchiveError::UnknownTopicOrPartition { topic: "orders".into(), partition: Some(0) },
        ),
        (
            Status::DataLoss,
            ArchiveError::DataLoss { offset: Some(0), object: String::new(), message: message() },
        ),
        (Status::InvalidRequest, ArchiveError::Invalid { message: message() }),
        (Status::Internal, ArchiveError::Internal { message: message() }),
    ];
    for (status, expected) in table {
        let (script, client) = play([complete([open(), failed(close(0, 0), status)])]).await;
        assert_eq!(client.fetch(args()).await, Err(expected));
        assert_eq!(script.requests().len(), 1, "{status:?} was asked again");
    }
    for status in [Status::Unspecified.into(), 99] {
        let unknown = with(close(0, 0), |trailer| trailer.status = status);
        let (_, client) = play([complete([open(), unknown])]).await;
        let error = client.fetch(args()).await.unwrap_err();
        assert!(matches!(error, ArchiveError::Protocol { .. }), "{error}");
    }
}

#[tokio::test]
async fn every_grpc_error_of_a_call_has_its_error() {
    let kind = async |code| {
        let options = ClientOptions { retries: 0, ..hasty() };
        let (_, client) = play_with([vec![Act::Fail(code)]], options).await;
        client.fetch(args()).await.unwrap_err()
    };
    for code in [Code::InvalidArgument, Code::PermissionDenied, Code::FailedPrecondition] {
        assert!(matches!(kind(code).await, ArchiveError::Invalid { .. }), "{code:?}");
    }
    for code in [Code::Unavailable, Code::ResourceExhausted, Code::Internal, Code::Unknown] {
        assert!(matches!(kind(code).await, ArchiveError::Unavailable { .. }), "{code:?}");
    }
    for code in [Code::Unimplemented, Code::OutOfRange] {
        assert!(matches!(kind(code).await, ArchiveError::Protocol { .. }), "{code:?}");
    }
    assert!(matches!(kind(Code::DataLoss).await, ArchiveError::DataLoss { .. }));
}

#[tokio::test]
async fn a_gap_at_the_offset_is_an_error_and_behind_data_an_end() {
    let (_, client) = play([
        complete([open(), at_gap(close(0, 0), 0, 9)]),
        complete([open(), data(ten(0)), at_gap(close(10, 1), 10, 19)]),
    ])
    .await;
    let Err(ArchiveError::Gap(gap)) = client.fetch(args()).await else { panic!("no gap") };
    assert_eq!((gap.range, gap.kind), (OffsetRange { first: 0, last: 9 }, GapKind::Missing));
    let outcome = client.fetch(args()).await.unwrap();
    assert_eq!(outcome.next_offset, 10);
    let End::Gap(gap) = outcome.end else { panic!("{:?}", outcome.end) };
    assert_eq!(gap.range, OffsetRange { first: 10, last: 19 });
}

#[tokio::test]
async fn a_break_right_before_the_trailer_still_ends_at_the_end() {
    let (_, client) = play([
        broken([open(), data(ten(0))]),
        complete([open(), failed(close(10, 0), v1::Status::NotArchivedYet)]),
    ])
    .await;
    let outcome = client.fetch(args()).await.unwrap();
    assert_eq!((outcome.batches, outcome.end), (ten(0), End::EndOfArchive));

    let bounded = || FetchArgs { upper_bound: Some(10), ..args() };
    let (script, client) = play([broken([open(), data(ten(0))])]).await;
    assert_eq!(client.fetch(bounded()).await.unwrap().end, End::UpperBound);
    assert_eq!(script.requests().len(), 1);
}

#[tokio::test]
async fn a_resumed_answer_never_goes_back() {
    let (_, client) =
        play([broken([open(), data(ten(0))]), complete([open(), data(ten(5)), close(15, 1)])])
            .await;
    let outcome = client.fetch(args()).await.unwrap();
    assert_eq!((outcome.batches, outcome.next_offset), (ten(0), 10));
    assert_eq!(outcome.end, End::OffsetsGoBack);
}

#[tokio::test]
async fn a_read_committed_answer_comes_with_its_own_list_or_begins_anew() {
    let (script, client) = play([
        broken([open(), data(ten(0))]),
        complete([open(), data(ten(0)), data(ten(10)), listing(close(20, 2), &[7, 8])]),
    ])
    .await;
    let outcome = client.fetch(committed()).await.unwrap();
    assert_eq!(outcome.batches, [ten(0), ten(10)].concat());
    let aborted = outcome.aborted.unwrap();
    let producers: Vec<i64> = aborted.transactions.iter().map(|of| of.producer_id).collect();
    assert_eq!((producers, aborted.searched_to, aborted.complete), (vec![7, 8], 20, true));
    assert_eq!(script.requests()[1].fetch_offset, 0);
}

#[tokio::test]
async fn an_empty_list_of_aborted_transactions_is_not_none() {
    let (_, client) = play([
        complete([open(), data(ten(0)), listing(close(10, 1), &[])]),
        complete([open(), data(ten(0)), close(10, 1)]),
        complete([open(), data(ten(0)), listing(close(10, 1), &[7])]),
    ])
    .await;
    assert_eq!(client.fetch(committed()).await.unwrap().aborted.unwrap().transactions, []);
    let missing = client.fetch(committed()).await.unwrap_err();
    assert!(missing.to_string().contains("without a list"), "{missing}");
    assert_eq!(client.fetch(args()).await.unwrap().aborted, None);
}

#[tokio::test]
async fn a_read_committed_answer_that_fails_with_its_list_stands() {
    let (_, client) = play([complete([
        open(),
        data(ten(0)),
        listing(failed(close(10, 1), v1::Status::DataLoss), &[7]),
    ])])
    .await;
    let outcome = client.fetch(committed()).await.unwrap();
    assert_eq!((outcome.batches, outcome.aborted.unwrap().transactions.len()), (ten(0), 1));
    assert!(matches!(outcome.end, End::Failed(ArchiveError::DataLoss { .. })));
}

#[tokio::test]
async fn read_committed_that_breaks_every_time_gives_up() {
    let calls = vec![broken([open(), data(ten(0))]); 9];
    let (script, client) = play(calls).await;
    let error = client.fetch(committed()).await.unwrap_err();
    assert!(matches!(error, ArchiveError::Unavailable { .. }), "{error}");
    assert_eq!(script.requests().len(), 1 + hasty().retries as usize);
}

#[tokio::test]
async fn superseded_batches_are_read_in_one_answer_or_anew() {
    let all = FetchArgs { overlaps: Overlaps::All, ..args() };
    let (script, client) = play([
        broken([open(), data(ten(0))]),
        complete([open(), data(ten(0)), data(ten(0)), data(ten(5)), close(15, 3)]),
    ])
    .await;
    let outcome = client.fetch(all).await.unwrap();
    assert_eq!(outcome.batches, [ten(0), ten(0), ten(5)].concat());
    assert_eq!((outcome.next_offset, script.requests()[1].fetch_offset), (15, 0));
}

#[tokio::test]
async fn more_than_was_asked_for_is_refused() {
    let two = || complete([open(), data(ten(0)), data(ten(10)), close(20, 2)]);
    let (_, client) = play([two(), two(), complete([open(), data(ten(0)), close(10, 1)])]).await;
    // The first batch is excused, the second is not.
    for max_bytes in [0, 150] {
        let error = client.fetch(FetchArgs { max_bytes: Some(max_bytes), ..args() }).await;
        let end = error.unwrap().end;
        assert!(matches!(end, End::Failed(ArchiveError::Protocol { .. })), "{end:?}");
    }
    let strict = FetchArgs { max_bytes: Some(50), min_one_batch: false, ..args() };
    let error = client.fetch(strict).await.unwrap_err();
    assert!(matches!(error, ArchiveError::Protocol { .. }), "{error}");
}

#[tokio::test]
async fn nothing_within_the_limit_is_an_answer_only_where_nothing_was_insisted_on() {
    let limit = || complete([open(), ending(close(0, 0), v1::EndReason::Limit)]);
    let (_, client) = play([limit(), limit()]).await;
    let outcome = client.fetch(FetchArgs { min_one_batch: false, ..args() }).await.unwrap();
    assert_eq!((outcome.is_hit(), outcome.next_offset, outcome.end), (false, 0, End::Limit));
    let error = client.fetch(args()).await.unwrap_err();
    assert!(error.to_string().contains("at least one batch"), "{error}");
}
