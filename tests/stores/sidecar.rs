//! The daemon's process beside a broker that writes, on a server that stands still:
//! reads from memory go on, archiving resumes by itself, memory stays flat, the
//! server gets no storm; and a stop in the middle of it is in order.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::StdRng;
use tierd::record::Codec;
use tierd_proto::v1::Status;
use tierd_proto::v1::archive_client::ArchiveClient;
use tierd_tests::beside::{Beside, PATIENCE, write_for};
use tierd_tests::broker::Broker;
use tierd_tests::chronik::{WalWriter, sample_batch};
use tierd_tests::process::{Served, resident_memory};
use tierd_tests::reads::{Answer, connect, fetch, request};

use crate::TIERD;
use crate::servers::{Server, peers};

/// How long the server stands still; minutes by `TIERD_TEST_OUTAGE`.
const OUTAGE_SECONDS: u64 = 20;
/// Requests of any sort in a minute of outage. Two partitions are archived at a time
/// and one is read, each by one request of a minute or one that is refused at once
/// and then left alone for seconds.
const REQUESTS_PER_MINUTE_MAX: f64 = 30.0;
/// What a daemon may hold more of in an outage than before it: what an archive takes
/// that is built and cannot be uploaded.
const GROWTH_BYTES_MAX: u64 = 64 << 20;

/// The topic that is read.
const STEADY: &str = "steady";

const MIB: u64 = 1 << 20;

fn beside(server: &Server, folder: &str) -> Beside {
    Beside::new(TIERD).unwrap().on_store(&server.url(folder), &server.environment)
}

/// A segment without holes of the topic that is read: 1.5 MB from `base` on.
fn steady(bench: &Beside, id: u64, base: i64) {
    let mut segment = WalWriter::create(&bench.wal(), STEADY, 0, id).unwrap();
    for base in (base..).step_by(100).take(150) {
        segment.append(&sample_batch(base, 100, 100, Codec::None).unwrap()).unwrap();
    }
    segment.finish().unwrap();
}

/// A daemon that archived what a broker wrote, and has nothing to do now.
fn settled(bench: &Beside, seed: u64) -> (Broker, StdRng, Served) {
    let (mut broker, mut random) = (bench.broker(seed).unwrap(), StdRng::seed_from_u64(seed));
    steady(bench, 0, 0);
    broker.start().unwrap();
    let daemon = bench.daemon("1s", "1s");
    write_for(&mut broker, &mut random, Duration::from_secs(6)).unwrap();
    broker.kill().unwrap();
    broker.start().unwrap();
    until("everything is archived", || {
        let now = daemon.metrics();
        now["tierd_archive_lag_bytes"] == 0.0 && now["tierd_partitions"] == 4.0
    });
    (broker, random, daemon)
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The whole of a partition, as a consumer reads it.
async fn whole(daemon: &Served) -> Answer {
    let answer = fetch(daemon, request(STEADY, 0)).await.unwrap();
    let trailer = &answer.trailers[0];
    assert_eq!(trailer.status(), Status::Ok, "{}", trailer.message);
    answer
}

fn resident(daemon: &Served) -> u64 {
    resident_memory(daemon.id()).unwrap()
}

/// Requests to the store so far, by sort.
fn requests(daemon: &Served) -> BTreeMap<String, f64> {
    let of = |name: String| Some(name.strip_prefix("tierd_store_requests_total")?.to_owned());
    let all = daemon.metrics().into_iter();
    all.filter_map(|(name, value)| Some((of(name)?, value))).collect()
}

/// Table: F6 I12 I13 | a real server that is stopped under the process
#[test]
fn an_outage_stops_archiving_alone_and_for_no_longer_than_it_lasts() {
    let Some(peers) = peers("SeaweedFS") else { return };
    let seconds = std::env::var("TIERD_TEST_OUTAGE").ok();
    let seconds = seconds.map_or(OUTAGE_SECONDS, |text| text.parse().unwrap());
    let server = Server::seaweedfs(&peers);
    let bench = beside(&server, "outage");
    let (mut broker, mut random, daemon) = settled(&bench, 31);
    crate::block_on(async {
        // Twice, so that the second is of the newest manifest.
        let _ = whole(&daemon).await;
        tokio::time::sleep(Duration::from_secs(3)).await;
        let warm = whole(&daemon).await;
        assert!(warm.wire.len() > 1_000_000, "hardly anything is archived");
        let next = warm.trailers[0].next_offset;
        let before = resident(&daemon);
        let commits = || daemon.metrics()["tierd_committed_archives_total"];
        let committed = commits();

        server.signal("-STOP");
        steady(&bench, 1, next);
        let (start, mut minute) = (Instant::now(), (Instant::now(), requests(&daemon)));
        let (mut peak, mut reads, mut slowest) = (before, 0, Duration::ZERO);
        while start.elapsed() < Duration::from_secs(seconds) {
            write_for(&mut broker, &mut random, Duration::from_millis(200)).unwrap();
            let asked = Instant::now();
            let answer = whole(&daemon).await;
            slowest = slowest.max(asked.elapsed());
            reads += 1;
            assert_eq!(answer.wire, warm.wire, "read {reads}");
            let end = fetch(&daemon, request(STEADY, next)).await.unwrap();
            let end = &end.trailers[0];
            // Nobody knows whether more is archived.
            assert_eq!(end.status(), Status::Unavailable, "{}", end.message);
            for probe in ["/livez", "/readyz", "/startupz"] {
                assert_eq!(daemon.get(probe).unwrap().0, 200, "{probe}");
            }
            peak = peak.max(resident(&daemon));
            let last = start.elapsed() >= Duration::from_secs(seconds);
            if last || minute.0.elapsed() >= Duration::from_secs(60) {
                let now = requests(&daemon);
                let sent: f64 = now.iter().map(|(op, count)| count - minute.1[op]).sum();
                let took = minute.0.elapsed();
                eprintln!("requests in {:.0} s of outage: {sent}", took.as_secs_f64());
                let most = REQUESTS_PER_MINUTE_MAX * (took.as_secs_f64() / 60.0).max(1.0);
                assert!(sent <= most, "a storm of {sent} requests: {now:?}");
                minute = (Instant::now(), now);
            }
        }
        assert_eq!(commits(), committed, "something was committed to a store that stands still");
        assert!(daemon.metrics()["tierd_archive_lag_bytes"] > 0.0);
        let during = resident(&daemon);

        server.signal("-CONT");
        let recovery = Instant::now();
        tokio::task::block_in_place(|| until("archiving resumes", || commits() > committed));
        eprintln!(
            "first commit {:.1} s after the end of the outage",
            recovery.elapsed().as_secs_f64()
        );
        broker.kill().unwrap();
        broker.start().unwrap();
        broker.produce().unwrap();
        tokio::task::block_in_place(|| bench.expect_everything(&broker));
        // What was read from memory is the beginning of what is read now.
        let mut read = warm.wire.len();
        until("reads see what was archived since", || {
            let answer = tokio::task::block_in_place(|| {
                tokio::runtime::Handle::current().block_on(whole(&daemon))
            });
            assert_eq!(answer.wire[..warm.wire.len()], warm.wire);
            read = answer.wire.len();
            read > warm.wire.len()
        });
        let after = resident(&daemon);
        eprintln!(
            "an outage of {seconds} s: {reads} reads of {} KiB from memory, the slowest {} ms; \
             resident before {} MiB, at most {} MiB, at its end {} MiB, after {} MiB",
            warm.wire.len() >> 10,
            slowest.as_millis(),
            before / MIB,
            peak / MIB,
            during / MIB,
            after / MIB,
        );
        assert!(peak < before + GROWTH_BYTES_MAX, "memory grew to {} MiB", peak / MIB);
    });
    daemon.terminate();
    assert_eq!(daemon.wait(), 0);
}

/// A daemon with an upload under way that hangs, and a stream that is not read.
async fn under_load(
    server: &Server,
    bench: &Beside,
) -> (Broker, Served, Answer, tonic::Streaming<tierd_proto::v1::FetchArchivedResponse>) {
    let (mut broker, mut random, daemon) = settled(bench, 32);
    let _ = whole(&daemon).await;
    server.signal("-STOP");
    write_for(&mut broker, &mut random, Duration::from_secs(2)).unwrap();
    broker.kill().unwrap();
    broker.start().unwrap();
    until("a step hangs", || daemon.metrics()["tierd_archive_in_flight_steps"] >= 1.0);
    let mut client = ArchiveClient::new(connect(&daemon).await.unwrap());
    let mut stream = client.fetch_archived(request(STEADY, 0)).await.unwrap().into_inner();
    let mut answer = Answer::default();
    answer.take(stream.message().await.unwrap().unwrap());
    (broker, daemon, answer, stream)
}

/// Table: F5 F29 I10 | the process, over a real server that hangs
#[test]
fn a_stop_under_load_says_so_drains_the_streams_and_drops_the_upload_that_hangs() {
    let Some(peers) = peers("SeaweedFS") else { return };
    let server = Server::seaweedfs(&peers);
    let bench = beside(&server, "stop");
    let broker = crate::block_on(async {
        let (broker, daemon, mut answer, mut stream) = under_load(&server, &bench).await;
        daemon.terminate();
        until("health turns", || daemon.get("/readyz").unwrap().0 == 503);
        assert_eq!(daemon.get("/livez").unwrap().0, 200);
        answer.take_all(&mut stream).await.unwrap();
        assert!(answer.ended, "the stream was cut");
        assert_eq!(answer.trailers[0].status(), Status::Ok);
        drop(stream);
        let ended = tokio::task::spawn_blocking(move || daemon.wait()).await.unwrap();
        assert_eq!(ended, 0);
        broker
    });
    server.signal("-CONT");
    let daemon = bench.daemon("1s", "1s");
    bench.expect_everything(&broker);
    daemon.terminate();
    assert_eq!(daemon.wait(), 0);
}

#[test]
fn a_second_signal_waits_neither_for_streams_nor_for_uploads() {
    let Some(peers) = peers("SeaweedFS") else { return };
    let server = Server::seaweedfs(&peers);
    let bench = beside(&server, "skip");
    let broker = crate::block_on(async {
        let (broker, daemon, mut answer, mut stream) = under_load(&server, &bench).await;
        daemon.terminate();
        until("health turns", || daemon.get("/readyz").unwrap().0 == 503);
        daemon.terminate();
        let ended = tokio::task::spawn_blocking(move || daemon.wait()).await.unwrap();
        assert_eq!(ended, 0);
        assert!(answer.take_all(&mut stream).await.is_err() && !answer.ended, "it waited");
        broker
    });
    server.signal("-CONT");
    let daemon = bench.daemon("1s", "1s");
    bench.expect_everything(&broker);
    drop(daemon);
}
