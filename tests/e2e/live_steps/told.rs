//! What a live indexer tells of itself: the backlog of each partition and why it
//! does not get on, and whether the whole gets on, at the live endpoint.

use object_store::memory::InMemory;
use tierd::health::Health;
use tierd::http::Site;
use tierd::indexer::Watched;
use tierd::listen::{Bound, ListenAddress};
use tierd::metrics::{Backlog, Stall};
use tierd::task::Ticker;
use tierd_tests::counting::Op;
use tierd_tests::faults::{Fault, FaultStore};
use tierd_tests::process::http_get;
use tokio::sync::{Notify, Semaphore};

use super::*;

/// How long a test waits for what should come.
const PATIENCE: Duration = Duration::from_secs(60);

impl Bench {
    fn backlog(&self) -> Backlog {
        self.metrics.backlog(&tp()).unwrap().0
    }

    fn series(&self, name: &str) -> f64 {
        let page = self.metrics.page().unwrap();
        let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in:\n{page}")).parse().unwrap()
    }
}

#[tokio::test]
async fn the_backlog_of_a_partition_is_told_with_the_reason_why_it_stays() {
    let bench = Bench::new();
    let len = |id| fs::metadata(bench.path(id)).unwrap().len();
    bench.segment(1, 10, &[&batch(40), &batch(50)]);
    assert_eq!(bench.round().await, None);
    let grows = bench.backlog();
    assert_eq!((grows.stall, grows.bytes), (Some(Stall::NotClosed), len(1)));
    assert_eq!((grows.offsets, grows.segments), (0, [0, 0, 1]), "it is not scanned");
    assert_eq!(grows.oldest_ms, Some(STARTED + 10_000));

    // Closed, with a hole: what lies before it is archived, the rest waits.
    bench.segment(0, -10, &[&batch(0), &batch(20)]);
    assert!(bench.due());
    assert_eq!(bench.backlog().stall, None, "something can be archived");
    assert_eq!(bench.live.step(&tp()).await.1, waits_for(10, 19).unwrap());
    let waits = bench.backlog();
    assert_eq!((waits.stall, waits.archived_through), (Some(Stall::Hole), 10));
    assert_eq!((waits.offsets, waits.bytes), (20, len(0) + len(1)));
    assert_eq!((waits.oldest_ms, waits.segments), (Some(STARTED - 10_000), [1, 0, 1]));
    assert_eq!(bench.series("tierd_partitions_stalled{reason=\"hole\"}"), 1.0);
    assert_eq!(bench.series("tierd_archive_lag_worst_seconds"), 1010.0);

    // The hole is filled, but archives cannot be built.
    fs::remove_dir_all(bench.folder.path().join("scratch")).unwrap();
    bench.segment(2, -5, &[&batch(10), &batch(30)]);
    let Some(Progress::Failed(leave)) = bench.round().await else { panic!("it did not fail") };
    assert_eq!(bench.backlog().stall, Some(Stall::Scratch));
    assert_eq!(bench.series("tierd_archive_steps_total{outcome=\"failed\"}"), 1.0);
    fs::create_dir(bench.folder.path().join("scratch")).unwrap();
    bench.clock.advance(leave.time());
    assert_eq!(bench.round().await, Some(Progress::Done));
    let left = bench.backlog();
    assert_eq!((left.stall, left.bytes), (Some(Stall::NotClosed), len(1)), "what grows is left");

    bench.clock.advance(IDLE);
    assert_eq!(bench.round().await, Some(Progress::Done));
    let none = bench.backlog();
    assert_eq!((none.stall, none.bytes, none.offsets, none.oldest_ms), (None, 0, 0, None));
    assert_eq!(none.archived_through, 60);
    assert_eq!(bench.series("tierd_committed_batches_total"), 6.0);
    assert_eq!(bench.series("tierd_committed_archives_total"), 3.0);
    assert!(bench.series("tierd_last_commit_timestamp_seconds") > STARTED as f64 / 1e3);
    for stage in ["scan", "compare", "build", "upload", "commit"] {
        let count = format!("tierd_archive_stage_duration_seconds_count{{stage=\"{stage}\"}}");
        assert!(bench.series(&count) >= 3.0, "{stage}");
    }

    // It grows again: only by that.
    bench.segment(1, 20, &[&batch(40), &batch(50), &batch(60)]);
    let before = bench.backlog().bytes;
    bench.due();
    assert_eq!((before, bench.backlog().bytes), (0, len(1) / 3));
    fs::remove_dir_all(bench.folder.path().join("wal/t")).unwrap();
    assert!(!bench.due());
    assert!(bench.metrics.backlog(&tp()).is_none());
    assert_eq!(bench.series("tierd_partitions"), 0.0);
}

#[tokio::test]
async fn after_a_restart_what_is_archived_is_no_backlog() {
    let bench = Bench::new();
    bench.segment(0, -10, &[&batch(0), &batch(10)]);
    assert_eq!(bench.round().await, Some(Progress::Done));
    let again =
        live(&bench.folder, &bench.clock, &bench.store, &bench.metrics, &bench.reports, "me");
    again.look().unwrap();
    let unread = bench.backlog();
    assert_eq!((unread.offsets, unread.archived_through), (0, 0), "nothing is known yet");
    assert!(unread.bytes > 0);
    assert_eq!(again.step(&tp()).await.1, Progress::Done);
    let known = bench.backlog();
    assert_eq!((known.offsets, known.bytes, known.archived_through), (0, 0, 20));
}

/// A live indexer in its loop, and the endpoint of its daemon.
struct Running {
    bench: Bench,
    faults: Arc<FaultStore>,
    address: String,
    wake: Arc<Notify>,
    stop: tokio_util::sync::CancellationToken,
}

impl Running {
    async fn start() -> Self {
        let faults = FaultStore::new(Arc::new(InMemory::new()));
        let as_store: Arc<dyn object_store::ObjectStore> = Arc::<FaultStore>::clone(&faults);
        let store = Store::new(as_store, "").with_backoff(Duration::from_millis(1));
        let bench = Bench::on(store);
        let time: Arc<dyn Clock> = Arc::<ManualClock>::clone(&bench.clock);
        let health = Health::new(time);
        health.serves();
        let bound = "127.0.0.1:0".parse::<ListenAddress>().unwrap().bind().await.unwrap();
        let Bound::Tcp(_, address) = &bound else { panic!("not TCP") };
        let (address, stop) = (address.to_string(), tokio_util::sync::CancellationToken::new());
        let site = Site { health: health.clone(), metrics: bench.metrics.clone() };
        tokio::spawn(tierd::http::serve(bound, site, stop.clone()));
        let wake = Arc::new(Notify::new());
        // Only the test makes it go round.
        let hour = Duration::from_secs(3600);
        let ticker = Ticker::new(hour, Arc::new(|| 0.5), Arc::clone(&wake));
        let live = Arc::clone(&bench.live);
        tokio::spawn(live.run(ticker, Watched::by(&health), stop.clone()));
        Self { bench, faults, address, wake, stop }
    }

    fn livez(&self) -> (u16, String) {
        http_get(&self.address, "/livez").unwrap()
    }

    /// Lets the loop go round until `until` holds.
    async fn rounds(&self, what: &str, mut until: impl FnMut() -> bool) {
        let round = async {
            while !until() {
                self.wake.notify_one();
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        assert!(tokio::time::timeout(PATIENCE, round).await.is_ok(), "{what}: {:?}", self.livez());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn livez_tells_a_loop_that_stands_still_from_one_that_waits_for_its_store() {
    let running = Running::start().await;
    let bench = &running.bench;
    let commits = || bench.series("tierd_committed_archives_total");
    bench.segment(0, -10, &[&batch(0)]);
    running.rounds("the first archive", || commits() == 1.0).await;
    assert_eq!(running.livez().0, 200);

    // Nobody looks any more.
    bench.clock.advance(Duration::from_secs(301));
    let (status, body) = running.livez();
    assert_eq!(status, 503);
    assert!(body.starts_with("looking at the WAL made no progress for 301 s"), "{body}");
    running.rounds("another look", || running.livez().0 == 200).await;

    // It looks, and its only step hangs.
    let gate = Arc::new(Semaphore::new(0));
    running.faults.inject(Op::Put, "", Fault::Hold(Arc::clone(&gate)), 1);
    bench.segment(1, -9, &[&batch(10)]);
    running.rounds("a step that hangs", || !running.faults.injected().is_empty()).await;
    running
        .rounds("a step without a pulse", || {
            bench.clock.advance(Duration::from_secs(200));
            let (status, body) = running.livez();
            status == 503 && body.starts_with("archiving made no progress")
        })
        .await;
    gate.add_permits(1);
    running.rounds("the second archive", || commits() == 2.0).await;
    running.rounds("a pulse again", || running.livez().0 == 200).await;

    // An outage of the store for an hour: every step fails, none hangs.
    for op in [Op::Get, Op::Head, Op::Put, Op::Create] {
        running.faults.inject(op, "", Fault::Unavailable, u32::MAX);
    }
    bench.segment(2, -8, &[&batch(20)]);
    let failed = || bench.series("tierd_archive_steps_total{outcome=\"failed\"}");
    for round in 1..=18 {
        running.rounds("a step that fails", || failed() >= f64::from(round)).await;
        bench.clock.advance(Duration::from_secs(200));
        running.rounds("a look after it", || running.livez().0 == 200).await;
        for probe in ["/readyz", "/startupz"] {
            assert_eq!(http_get(&running.address, probe).unwrap().0, 200, "{probe}");
        }
    }
    assert_eq!(bench.series("tierd_partitions_stalled{reason=\"store\"}"), 1.0);
    running.faults.heal();
    bench.clock.advance(Duration::from_secs(61));
    running.rounds("the third archive", || commits() == 3.0).await;
    running
        .rounds("no stall", || bench.series("tierd_partitions_stalled{reason=\"store\"}") == 0.0)
        .await;
    running.stop.cancel();
}

#[tokio::test]
async fn what_the_broker_has_not_committed_is_told_as_held() {
    let bench = Bench::new();
    bench.segment(0, -10, &[&batch(0), &batch(10)]);
    let high = |offset| Report { high_watermark: Some(offset), ..Report::default() };
    bench.report(high(10));
    assert_eq!(bench.round().await, Some(Progress::Done));
    assert_eq!((bench.backlog().stall, bench.through().await), (Some(Stall::Held), 10));
    assert_eq!(bench.series("tierd_partitions_stalled{reason=\"held\"}"), 1.0);
    bench.report(high(20));
    assert_eq!(bench.round().await, Some(Progress::Done));
    assert_eq!((bench.backlog().stall, bench.through().await), (None, 20));
}
