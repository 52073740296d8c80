use tierd_proto::v1;
use tierd_proto::v1::fetch_archived_response::Frame;

use super::server::{Act, broken, complete, play};
use super::{batch_bytes, data, header, trailer};
use crate::{ArchiveError, BatchSet, End, FetchArgs, FetchStream, Isolation, StreamItem};

fn args() -> FetchArgs {
    FetchArgs::new("orders", 0, 0)
}

fn open() -> Frame {
    header("orders", 0)
}

fn ten(base: i64) -> bytes::Bytes {
    batch_bytes(base, 10, 39)
}

fn close(next_offset: i64, batches: u32, reason: v1::EndReason) -> Frame {
    let Frame::Trailer(mut closed) = trailer(next_offset, 100 * u64::from(batches), batches) else {
        unreachable!("trailer() gives trailers")
    };
    closed.end_reason = reason.into();
    Frame::Trailer(closed)
}

fn listing(frame: Frame, producer_id: i64) -> Frame {
    let Frame::Trailer(mut closed) = frame else { panic!("no trailer: {frame:?}") };
    closed.aborted = Some(v1::AbortedTransactions {
        transactions: vec![v1::AbortedTransaction {
            producer_id,
            ..v1::AbortedTransaction::default()
        }],
        searched_to: closed.next_offset,
        complete: true,
    });
    Frame::Trailer(closed)
}

/// All sets of a stream, and its end.
async fn drain(mut stream: FetchStream) -> (Vec<BatchSet>, Result<End, ArchiveError>) {
    let mut sets = Vec::new();
    loop {
        match stream.next().await.expect("an item, an end or an error") {
            Ok(StreamItem::Batches(set)) => sets.push(set),
            Ok(StreamItem::End(end)) => {
                assert_eq!(sets.last().map_or(0, |set| set.next_offset), end.next_offset);
                assert!(stream.next().await.is_none());
                return (sets, Ok(end.end));
            }
            Err(error) => {
                assert!(stream.next().await.is_none());
                return (sets, Err(error));
            }
        }
    }
}

fn bytes_of(sets: &[BatchSet]) -> Vec<u8> {
    sets.iter().flat_map(|set| set.batches.clone()).collect()
}

#[tokio::test]
async fn a_stream_goes_on_over_breaks_and_limits_of_the_daemon() {
    use v1::EndReason::{EndOfArchive, Limit};
    let (script, client) = play([
        broken([open(), data(ten(0))]),
        complete([open(), data(ten(10)), close(20, 1, Limit)]),
        broken([open(), data(ten(20))]),
        vec![Act::Fail(tonic::Code::Unavailable)],
        complete([open(), data(ten(30)), close(40, 1, EndOfArchive)]),
    ])
    .await;
    let (sets, end) = drain(client.fetch_stream(args())).await;
    assert_eq!(bytes_of(&sets), [ten(0), ten(10), ten(20), ten(30)].concat());
    assert_eq!(end, Ok(End::EndOfArchive));
    let asked: Vec<i64> = script.requests().iter().map(|of| of.fetch_offset).collect();
    assert_eq!(asked, [0, 10, 20, 30, 30]);
    let counters = client.counters();
    assert_eq!((counters.retries, counters.bytes, counters.fallbacks), (3, 400, 0));
}

#[tokio::test]
async fn a_stream_survives_more_breaks_than_a_call_as_long_as_it_gets_on() {
    let mut calls: Vec<_> = (0..20).map(|n| broken([open(), data(ten(10 * n))])).collect();
    calls.push(complete([open(), close(200, 0, v1::EndReason::EndOfArchive)]));
    let (_, client) = play(calls).await;
    let (sets, end) = drain(client.fetch_stream(args())).await;
    assert_eq!((sets.len(), end), (20, Ok(End::EndOfArchive)));
}

#[tokio::test]
async fn offsets_that_go_back_open_a_set_of_their_own() {
    use v1::EndReason::{EndOfArchive, OffsetsGoBack};
    let (_, client) = play([
        complete([open(), data(ten(0)), close(10, 1, OffsetsGoBack)]),
        complete([open(), data(ten(5)), close(15, 1, EndOfArchive)]),
    ])
    .await;
    let (sets, end) = drain(client.fetch_stream(args())).await;
    assert_eq!((sets[0].next_offset, sets[1].next_offset, end), (10, 15, Ok(End::EndOfArchive)));
    assert_eq!(sets[1].batches, ten(5));
}

#[tokio::test]
async fn a_stream_keeps_its_limit_over_several_answers() {
    use v1::EndReason::Limit;
    let (script, client) = play([
        complete([open(), data(ten(0)), close(10, 1, Limit)]),
        complete([open(), data(ten(10)), close(20, 1, Limit)]),
        complete([open(), close(20, 0, Limit)]),
    ])
    .await;
    let limited = FetchArgs { max_bytes: Some(250), ..args() };
    let (sets, end) = drain(client.fetch_stream(limited)).await;
    assert_eq!((sets.len(), end), (2, Ok(End::Limit)));
    let left: Vec<_> =
        script.requests().iter().map(|of| (of.max_bytes, of.min_one_batch)).collect();
    assert_eq!(left, [(Some(250), true), (Some(150), false), (Some(50), false)]);
}

#[tokio::test]
async fn a_read_committed_stream_gives_every_set_its_list() {
    use v1::EndReason::{EndOfArchive, Limit};
    let (script, client) = play([
        complete([open(), data(ten(0)), data(ten(10)), listing(close(20, 2, Limit), 7)]),
        broken([open(), data(ten(20))]),
        complete([open(), data(ten(20)), listing(close(30, 1, EndOfArchive), 8)]),
    ])
    .await;
    let committed = FetchArgs { isolation: Isolation::ReadCommitted, ..args() };
    let (sets, end) = drain(client.fetch_stream(committed)).await;
    assert_eq!(bytes_of(&sets), [ten(0), ten(10), ten(20)].concat());
    assert_eq!(end, Ok(End::EndOfArchive));
    let producers: Vec<i64> =
        sets.iter().map(|set| set.aborted.as_ref().unwrap().transactions[0].producer_id).collect();
    assert_eq!(producers, [7, 8]);
    assert!(script.requests().iter().all(|of| of.min_one_batch));
}

#[tokio::test]
async fn a_read_committed_stream_keeps_its_limit_although_a_window_may_exceed_it() {
    use v1::EndReason::Limit;
    let large = batch_bytes(10, 10, 6 << 20);
    let length = large.len() as u64;
    let mut pieces: Vec<Frame> = Vec::new();
    for start in (0..large.len()).step_by(1 << 20) {
        let end = large.len().min(start + (1 << 20));
        let continued = end < large.len();
        let batches = large.slice(start..end);
        pieces.push(Frame::Data(v1::Data { batches, continued }));
    }
    let Frame::Trailer(mut closed) = listing(trailer(20, length, 1), 8) else { unreachable!() };
    closed.end_reason = Limit.into();
    let second = [vec![open()], pieces, vec![Frame::Trailer(closed)]].concat();
    let (script, client) =
        play([complete([open(), data(ten(0)), listing(close(10, 1, Limit), 7)]), complete(second)])
            .await;
    let max_bytes = Some(5 << 20);
    let committed = FetchArgs { max_bytes, isolation: Isolation::ReadCommitted, ..args() };
    let (sets, end) = drain(client.fetch_stream(committed)).await;
    assert_eq!((bytes_of(&sets), end), (ten(0).to_vec(), Ok(End::Limit)));
    assert_eq!(script.requests()[1].max_bytes, Some(4 << 20));
}

#[tokio::test]
async fn a_stream_that_cannot_go_on_ends_with_the_error() {
    let lost = {
        let Frame::Trailer(mut closed) = trailer(10, 100, 1) else { unreachable!() };
        closed.status = v1::Status::DataLoss.into();
        Frame::Trailer(closed)
    };
    let (_, client) = play([complete([open(), data(ten(0)), lost])]).await;
    let (sets, end) = drain(client.fetch_stream(args())).await;
    assert_eq!(sets.len(), 1);
    assert!(matches!(end, Err(ArchiveError::DataLoss { offset: Some(10), .. })), "{end:?}");
}

#[tokio::test]
async fn a_stream_stops_before_a_gap_and_says_which() {
    let gap = {
        let Frame::Trailer(mut closed) = close(10, 1, v1::EndReason::Gap) else { unreachable!() };
        let range = Some(v1::OffsetRange { first: 10, last: 14 });
        closed.gap = Some(v1::Gap { range, kind: v1::GapKind::Damaged.into() });
        Frame::Trailer(closed)
    };
    let (_, client) = play([complete([open(), data(ten(0)), gap])]).await;
    let (sets, end) = drain(client.fetch_stream(args())).await;
    let Ok(End::Gap(gap)) = end else { panic!("{end:?}") };
    assert_eq!((sets.len(), gap.range.first, gap.range.last), (1, 10, 14));
}
