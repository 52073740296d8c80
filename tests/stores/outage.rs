//! A store that stops answering and comes back: calls end within their limits
//! with an error that says so, without a storm of requests, and work again after.

use std::time::{Duration, Instant};

use bytes::Bytes;
use tierd::error::{Classify, ErrorKind};
use tierd::record::{OffsetRange, TopicName, TopicPartition};
use tierd::store::{
    ATTEMPTS_MAX, BACKOFF, ObjectKey, Op, PART_BYTES, PartitionKey, Store, StoreError,
};

use crate::block_on;
use crate::servers::{Server, names, peers};

/// Longest wait for one attempt here; the daemon's own is a minute.
const TIMEOUT: Duration = Duration::from_millis(500);

/// Rounds of calls while the server stands still: five seconds and more.
const ROUNDS: u64 = 4;

fn archive(number: u64) -> ObjectKey {
    let tp = TopicPartition::new(TopicName::new("orders").unwrap(), 0).unwrap();
    let of = PartitionKey { cluster: names().0, tp, incarnation: 0 };
    let range = OffsetRange::new(0, 9).unwrap();
    ObjectKey::Archive { of, number, range, digest: [7; 16] }
}

fn body(number: u64) -> Bytes {
    Bytes::from(number.to_string())
}

/// A call that must end by its own limits, with an error that says why.
async fn times_out<T: std::fmt::Debug>(
    attempts: u32,
    call: impl Future<Output = Result<T, StoreError>>,
) {
    let start = Instant::now();
    let error = call.await.unwrap_err();
    assert!(matches!(error, StoreError::Timeout { .. }), "{error}");
    assert_eq!(error.kind(), ErrorKind::Retry);
    // Generous to a busy machine, and far from waiting for the server.
    let limit = attempts * TIMEOUT + 2 * (1 << attempts) * BACKOFF + Duration::from_secs(5);
    assert!(start.elapsed() < limit, "{:?}: {error}", start.elapsed());
}

async fn works(store: &Store, number: u64) {
    store.put(&archive(number), body(number)).await.unwrap();
    assert_eq!(store.get(&archive(number), 99).await.unwrap(), body(number));
}

/// Table: F6 I12 I13 | a real server that is stopped
#[test]
fn a_store_that_stands_still_gets_no_storm_and_is_used_again_when_it_moves() {
    let Some(peers) = peers("SeaweedFS") else { return };
    let server = Server::seaweedfs(&peers);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), vec![7; 3 * PART_BYTES as usize]).unwrap();
    let store = server.open("outage");
    block_on(async {
        for number in 0..20 {
            works(&store, number).await;
        }
        let hurried = store.clone().with_timeout(TIMEOUT);
        server.signal("-STOP");
        for round in 0..ROUNDS {
            times_out(ATTEMPTS_MAX, hurried.put(&archive(100 + round), body(round))).await;
            times_out(ATTEMPTS_MAX, hurried.get(&archive(round), 99)).await;
            times_out(ATTEMPTS_MAX, hurried.get_range(&archive(round), 0..1)).await;
            times_out(1, hurried.create(&archive(200 + round), body(round))).await;
        }
        times_out(ATTEMPTS_MAX, hurried.put_file(&archive(300), file.path())).await;
        let sent = hurried.requests();
        let repeated = u64::from(ATTEMPTS_MAX);
        assert_eq!(sent.of(Op::Put).requests, (ROUNDS + 1) * repeated);
        assert_eq!(sent.of(Op::Get).requests, ROUNDS * repeated);
        assert_eq!(sent.of(Op::GetRange).requests, ROUNDS * repeated);
        assert_eq!(sent.of(Op::Create).requests, ROUNDS, "a create is sent once");
        assert_eq!(sent.of(Op::PutPart).requests, 0, "parts of an upload that never began");
        assert_eq!(sent.total(), ((ROUNDS * 3) + 1) * repeated + ROUNDS);
        eprintln!("requests of {} calls while nothing answered: {}", ROUNDS * 4 + 1, sent.total());

        server.signal("-CONT");
        for number in 20..40 {
            works(&store, number).await;
        }
        assert_eq!(store.put_file(&archive(300), file.path()).await.unwrap(), 3 * PART_BYTES);
        for number in 0..40 {
            assert_eq!(store.get(&archive(number), 99).await.unwrap(), body(number));
        }
        // A create that nobody answered landed whole or not at all.
        for round in 0..ROUNDS {
            match store.get(&archive(200 + round), 99).await {
                Ok(found) => assert_eq!(found, body(round)),
                Err(error) => assert_eq!(error.kind(), ErrorKind::NotFound, "{error}"),
            }
        }
        assert_eq!(store.requests().of(Op::Put).failures, 0);
    });
}
