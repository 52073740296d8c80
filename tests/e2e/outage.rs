//! Reads while the store is silent or refuses: what is in memory goes on, what
//! nobody can know is an error, and the store gets no storm.

use std::sync::Arc;
use std::time::Duration;

use object_store::ObjectStore;
use object_store::memory::InMemory;
use tierd::catalog::Snapshots;
use tierd::clock::{Clock, ManualClock};
use tierd::config::Config;
use tierd::daemon::Rooms;
use tierd::fetch::{EndReason, FetchEvent, FetchRequest, Fetcher, PartitionTrailer, Status};
use tierd::read::ReadStats;
use tierd::record::{TopicName, TopicPartition};
use tierd::store::Store;
use tierd::wal::{WalDir, WalFormat};
use tierd_tests::counting::Op;
use tierd_tests::faults::{Fault, FaultStore};
use tierd_tests::fixture;
use tierd_tests::reads::all_from;
use tokio::sync::Semaphore;

/// What every read needs to know the newest manifest.
const QUESTIONS: [Op; 2] = [Op::Get, Op::Head];

struct Bench {
    _folder: tempfile::TempDir,
    faults: Arc<FaultStore>,
    rooms: Rooms,
    clock: Arc<ManualClock>,
    fetcher: Fetcher,
}

fn tp(topic: &str) -> TopicPartition {
    TopicPartition::new(TopicName::new(topic).unwrap(), 0).unwrap()
}

impl Bench {
    /// The fixtures, archived.
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let data_dir = Some(folder.path().join("data"));
        let config = Config { writer_id: Some("w".to_owned()), data_dir, ..Config::default() };
        let faults = FaultStore::new(Arc::new(InMemory::new()));
        let as_store: Arc<dyn ObjectStore> = Arc::<FaultStore>::clone(&faults);
        let store = Store::new(as_store, "").with_backoff(Duration::from_millis(1));
        let rooms = Rooms::over(store, &config).unwrap();
        let wal = WalDir::open(&fixture::wal(), WalFormat::Chronik).unwrap();
        let (indexer, _data) = rooms.indexer(&config, wal, config.live(true).unwrap()).unwrap();
        assert!(!indexer.run_once(|_| {}).await.unwrap().failed());
        let clock = ManualClock::at(0);
        let time: Arc<dyn Clock> = Arc::<ManualClock>::clone(&clock);
        let snapshots = Arc::new(Snapshots::new(Arc::clone(&rooms.catalog), time));
        let fetcher = Fetcher::new(snapshots, rooms.reader.clone());
        Self { _folder: folder, faults, rooms, clock, fetcher }
    }

    /// All that one fetch brings: its bytes and its trailer.
    async fn fetch(&self, topic: &str, offset: i64) -> (usize, PartitionTrailer) {
        let request =
            FetchRequest { partitions: vec![all_from(&tp(topic), offset)], max_bytes: u64::MAX };
        let (sink, mut events) = tokio::sync::mpsc::channel(1);
        let (fetcher, stats) = (self.fetcher.clone(), ReadStats::default());
        let fetching = tokio::spawn(async move { fetcher.fetch(request, &sink, &stats).await });
        let (mut bytes, mut trailer) = (0, None);
        while let Some(event) = events.recv().await {
            match event {
                FetchEvent::Header(_) => {}
                FetchEvent::Data(data) => bytes += data.wire.len(),
                FetchEvent::Trailer(ended) => trailer = Some(ended),
            }
        }
        fetching.await.unwrap().unwrap();
        (bytes, trailer.unwrap())
    }

    async fn through(&self, topic: &str) -> i64 {
        self.rooms.catalog.load(&tp(topic), None).await.unwrap().unwrap().archived_through()
    }
}

/// Table: F6 I2 I6 | a store that says nothing, while it is read
#[tokio::test]
async fn while_the_store_is_silent_what_is_in_memory_is_read_and_the_end_is_not_guessed() {
    let bench = Bench::new().await;
    let through = bench.through("busy").await;
    let (bytes, warm) = bench.fetch("busy", 0).await;
    assert_eq!((warm.status, warm.next_offset), (Status::Ok, through));

    let gate = Arc::new(Semaphore::new(0));
    for op in QUESTIONS {
        bench.faults.inject(op, "", Fault::Hold(Arc::clone(&gate)), u32::MAX);
    }
    bench.clock.advance(Duration::from_secs(3));
    let before = bench.rooms.store.requests();
    // The first waits a moment for the store, the others do not.
    for _ in 0..50 {
        let (cached, trailer) = bench.fetch("busy", 0).await;
        assert_eq!((cached, trailer.status), (bytes, Status::Ok));
        assert_eq!((trailer.end, trailer.next_offset), (EndReason::EndOfArchive, through));
        bench.clock.advance(Duration::from_secs(1));
    }
    for _ in 0..50 {
        let (_, end) = bench.fetch("busy", through).await;
        assert_eq!(end.status, Status::Unavailable, "{}", end.message);
        assert!(end.message.contains("try again"), "{}", end.message);
    }
    assert_eq!(bench.rooms.store.requests().since(&before).total(), 1, "all ask by one request");

    gate.close();
    bench.faults.heal();
    let (_, end) = bench.fetch("busy", through).await;
    assert_eq!(end.status, Status::NotArchivedYet, "{}", end.message);
    let (again, _) = bench.fetch("busy", 0).await;
    assert_eq!(again, bytes);
}

/// Table: F6 I12 I13 | a store that refuses, while it is read
#[tokio::test]
async fn a_store_that_refuses_is_asked_again_after_a_while_and_not_by_every_read() {
    let bench = Bench::new().await;
    let through = bench.through("busy").await;
    let (bytes, _) = bench.fetch("busy", 0).await;
    for op in QUESTIONS {
        bench.faults.inject(op, "", Fault::Unavailable, u32::MAX);
    }
    bench.clock.advance(Duration::from_secs(3));
    let before = bench.rooms.store.requests();
    for _ in 0..50 {
        let (cached, trailer) = bench.fetch("busy", 0).await;
        assert_eq!((cached, trailer.status), (bytes, Status::Ok));
        assert_eq!(bench.fetch("busy", through).await.1.status, Status::Unavailable);
    }
    let attempts = u64::from(tierd::store::ATTEMPTS_MAX);
    let sent = || bench.rooms.store.requests().since(&before).total();
    assert_eq!(sent(), attempts, "one question, repeated as often as any");
    bench.clock.advance(Duration::from_secs(6));
    assert_eq!(bench.fetch("busy", through).await.1.status, Status::Unavailable);
    assert_eq!(sent(), 2 * attempts);

    // What was never read is not known, which is another answer than "not there".
    let (_, unknown) = bench.fetch("orders", 0).await;
    assert_eq!(unknown.status, Status::Unavailable, "{}", unknown.message);

    bench.faults.heal();
    bench.clock.advance(Duration::from_secs(6));
    assert_eq!(bench.fetch("busy", through).await.1.status, Status::NotArchivedYet);
    assert_eq!(bench.fetch("orders", 0).await.1.status, Status::Ok);
    assert_eq!(bench.fetch("nobody", 0).await.1.status, Status::UnknownTopicOrPartition);
}
