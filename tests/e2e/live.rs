//! The daemon beside a broker that writes, as a process: everything that is ready
//! is archived, once, whatever the broker and whoever kills the daemon do.

use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tierd::config::Config;
use tierd::daemon::Rooms;
use tierd::record::{Codec, TopicName, TopicPartition};
use tierd_tests::beside::{Beside, PATIENCE, ROTATE_BYTES, write_for};
use tierd_tests::chronik::{WalWriter, sample_batch};
use tierd_tests::process::Served;

use crate::TIERD;

/// Times the process is killed, in every change.
const KILLS: u64 = 10;
/// Times it sleeps over what others do.
const SLEEPS: u64 = 6;

fn beside() -> Beside {
    Beside::new(TIERD).unwrap()
}

/// What the store in the bench's folder holds.
fn rooms(bench: &Beside) -> Rooms {
    let store = format!("file://{}", bench.folder().join("store").display());
    let writer_id = Some("reader".to_owned());
    Rooms::open(&Config { store: Some(store), writer_id, ..Config::default() }).unwrap()
}

fn modified_ms(path: &Path) -> i64 {
    let modified = std::fs::metadata(path).unwrap().modified().unwrap();
    modified.duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as i64
}

/// Stops a daemon in order; its exit code.
fn stop(daemon: Served) -> i32 {
    daemon.terminate();
    daemon.wait()
}

#[test]
fn everything_that_is_ready_is_archived_beside_a_broker_that_writes() {
    let bench = beside();
    let (mut broker, mut random) = (bench.broker(11).unwrap(), StdRng::seed_from_u64(12));
    broker.start().unwrap();
    broker.produce().unwrap();
    let daemon = bench.daemon("1s", "3s");
    write_for(&mut broker, &mut random, Duration::from_secs(6)).unwrap();
    // Rotated segments are there without any end of the broker.
    let (topic, number) = &broker.partitions()[0];
    assert!(!bench.archived(topic, *number).is_empty(), "nothing was archived meanwhile");

    broker.kill().unwrap();
    broker.start().unwrap();
    broker.produce().unwrap();
    bench.expect_everything(&broker);
    // The start closed what was there; the last of it may have waited for its holes.
    let closed_at = modified_ms(&bench.started());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for (topic, number) in broker.partitions() {
        let tp = TopicPartition::new(TopicName::new(&topic).unwrap(), number).unwrap();
        let newest = runtime.block_on(rooms(&bench).catalog.load(&tp, None)).unwrap().unwrap();
        let took = newest.manifest().committed_at_ms - closed_at;
        println!("{topic}-{number}: all committed {took} ms after the broker's start closed it");
        assert!(took < 11_000, "{took} ms, with a settle time of 1000 ms");
    }
    assert_eq!(stop(daemon), 0);
    broker.stop().unwrap();
    // What the WAL still holds alone is the rest: archived by the next, offline.
    let _ = bench.tierd.archive(&bench.wal()).ok();
    for (topic, number) in broker.partitions() {
        let archived = bench.archived(&topic, number);
        for batch in broker.surviving(&topic, number) {
            assert!(archived.binary_search(&batch).is_ok(), "{topic}-{number} lost a batch");
        }
    }
}

#[test]
fn a_rotated_segment_is_committed_within_the_settle_time_and_ten_seconds() {
    let bench = beside();
    let wire = |base| sample_batch(base, 100, 100, Codec::None).unwrap();
    let mut segment = WalWriter::create(&bench.wal(), "steady", 0, 0).unwrap();
    let mut base = 0;
    while segment.position() < ROTATE_BYTES {
        segment.append(&wire(base)).unwrap();
        base += 100;
    }
    let closed = segment.finish().unwrap();
    let daemon = bench.daemon("1s", "1h");
    std::thread::sleep(Duration::from_millis(20));
    let mut next = WalWriter::create(&bench.wal(), "steady", 0, 1).unwrap();
    next.append(&wire(base)).unwrap();
    next.finish().unwrap();

    let tp = TopicPartition::new(TopicName::new("steady").unwrap(), 0).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let deadline = Instant::now() + PATIENCE;
    let snapshot = loop {
        // The store's folder comes with the daemon.
        let rooms = rooms(&bench);
        if let Some(snapshot) = runtime.block_on(rooms.catalog.load(&tp, None)).unwrap() {
            break snapshot;
        }
        assert!(Instant::now() < deadline, "the segment was not archived");
        std::thread::sleep(Duration::from_millis(50));
    };
    assert_eq!(snapshot.archived_through(), base, "the segment that grows is not touched");
    let took = snapshot.manifest().committed_at_ms - modified_ms(&closed);
    println!("closed to committed: {took} ms, with a settle time of 1000 ms");
    assert!((1000..11_000).contains(&took), "{took} ms");
    assert_eq!(stop(daemon), 0);
}

/// Table: F1 F16 I3 I7 I10 | the process, at random moments beside a broker that writes | KILLS
/// TIERD_TEST_KILLS
#[test]
fn a_daemon_killed_at_random_moments_archives_every_batch_once() {
    let rounds = std::env::var("TIERD_TEST_KILLS").map_or(KILLS, |text| text.parse().unwrap());
    let bench = beside();
    let (mut broker, mut random) = (bench.broker(21).unwrap(), StdRng::seed_from_u64(22));
    broker.start().unwrap();
    for _ in 0..rounds {
        let daemon = bench.daemon("100ms", "1s");
        let life = Duration::from_millis(random.random_range(10..900));
        write_for(&mut broker, &mut random, life).unwrap();
        // SIGKILL.
        drop(daemon);
    }
    broker.kill().unwrap();
    broker.start().unwrap();
    broker.produce().unwrap();
    let daemon = bench.daemon("100ms", "1s");
    bench.expect_everything(&broker);
    assert_eq!(stop(daemon), 0);
    let scratch = bench.folder().join("data/scratch");
    // Beside the folders of archives lies the lock of who is at work.
    let left = std::fs::read_dir(scratch).unwrap().map(Result::unwrap);
    let left = left.filter(|entry| entry.file_type().unwrap().is_dir()).count();
    assert_eq!(left, 0, "killed daemons left their scratch behind");
}

/// Table: F12 F13 I3 I7 I8 I9 | the process, stopped where it stands while another one takes
/// over and gc deletes without any grace | SLEEPS
#[test]
fn a_daemon_that_slept_over_a_takeover_and_a_collection_adds_nothing_twice() {
    let bench = beside();
    let (mut broker, mut random) = (bench.broker(31).unwrap(), StdRng::seed_from_u64(32));
    broker.start().unwrap();
    let sleeper = bench.daemon("50ms", "1s");
    let (wal, data) = (bench.wal(), bench.folder().join("other"));
    let (wal, data) = (wal.to_str().unwrap(), data.to_str().unwrap());
    for _ in 0..SLEEPS {
        let awake = Duration::from_millis(random.random_range(100..1200));
        write_for(&mut broker, &mut random, awake).unwrap();
        sleeper.signal("STOP");
        broker.kill().unwrap();
        let other = ["--writer-id", "other", "--data-dir", data];
        let once = ["run", "--once", "--offline", "--wal-dir", wal];
        let _ = bench.tierd.run(&[&once[..], &other].concat()).ok();
        let _ = bench.tierd.run(&["gc", "--grace", "0s", "--confirm"]).ok();
        broker.start().unwrap();
        sleeper.signal("CONT");
    }
    write_for(&mut broker, &mut random, Duration::from_secs(1)).unwrap();
    assert_eq!(stop(sleeper), 0);
    broker.stop().unwrap();
    let _ = bench.tierd.archive(&bench.wal()).ok();
    bench.expect_everything(&broker);
}

/// Table: F28 I3 I4 | a WAL that goes back, beside the process
#[test]
fn offsets_issued_again_after_a_crash_are_overlaps_and_no_new_incarnation() {
    let bench = beside();
    let batch = |base, len| sample_batch(base, 10, len, Codec::None).unwrap();
    let segment = |id, batches: &[&Bytes]| {
        let mut segment = WalWriter::create(&bench.wal(), "again", 0, id).unwrap();
        for batch in batches {
            segment.append(batch).unwrap();
        }
        segment.finish().unwrap()
    };
    // Out of order around a rotation: the highest segment ends below the one before.
    let (first, second, third) = (batch(0, 50), batch(10, 50), batch(20, 50));
    segment(0, &[&first, &third]);
    segment(1, &[&second]);
    std::thread::sleep(Duration::from_millis(25));
    std::fs::write(bench.started(), "").unwrap();
    // So the restarted broker issues 20 to 29 again.
    let (again, fourth) = (batch(20, 60), batch(30, 60));
    segment(2, &[&again, &fourth]);

    let (wal, started) = (bench.wal(), bench.started());
    let once = ["run", "--once", "--wal-dir", wal.to_str().unwrap()];
    let beside = ["--settle", "0s", "--broker-started-at", started.to_str().unwrap()];
    let _ = bench.tierd.run(&[&once[..], &beside].concat()).ok();
    let mut expected = vec![first.clone(), second.clone(), third.clone()];
    assert_eq!(bench.archived("again", 0), expected, "only what is closed");

    let _ = bench.tierd.run(&[&once[..], &["--offline"]].concat()).ok();
    expected.extend([again.clone(), fourth.clone()]);
    expected.sort_unstable();
    assert_eq!(bench.archived("again", 0), expected, "both versions are kept");
    let served = bench.tierd.run(&["fetch", "again", "0", "--offset", "0", "--format", "raw"]).ok();
    assert_eq!(served.stdout, [first, second, third, fourth].concat(), "committed stays served");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let partitions = runtime.block_on(rooms(&bench).catalog.partitions()).unwrap();
    let incarnations: Vec<u32> = partitions.iter().map(|(_, incarnation)| *incarnation).collect();
    assert_eq!(incarnations, [0]);
}

#[test]
fn a_second_daemon_in_the_same_data_folder_is_refused() {
    let bench = beside();
    std::fs::create_dir_all(bench.wal()).unwrap();
    let daemon = bench.daemon("1s", "1h");
    let second = bench.tierd.archive(&bench.wal());
    assert_eq!(second.code, 2);
    assert!(second.stderr.contains("--data-dir"), "{}", second.stderr);
    assert_eq!(stop(daemon), 0);
}
