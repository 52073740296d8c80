//! The store's own server stopped where it stands, killed with SIGKILL and started again on
//! its data, again and again, beside a broker that writes and the daemon's process: what the
//! store answered for is still there, and is everything. A store that loses what it answered for is
//! named, and `verify` says so too.

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tierd_tests::beside::{Beside, write_for};
use tierd_tests::broker::Broker;

use crate::TIERD;
use crate::servers::{Server, peers};

/// Times that a server is killed; more by `TIERD_TEST_CRASHES`.
const CRASHES: u32 = 3;
/// How long what is missing may still come.
const PATIENCE: Duration = Duration::from_secs(60);
/// The same where it may be lost.
const LITTLE_PATIENCE: Duration = Duration::from_secs(15);

/// What became of the batches of a broker.
#[derive(Debug, Default, PartialEq, Eq)]
struct Kept {
    written: usize,
    missing: usize,
    twice: usize,
    foreign: usize,
}

/// Compares what is archived with what the broker wrote to segments that are closed.
fn kept(bench: &Beside, broker: &Broker) -> Kept {
    let mut kept = Kept::default();
    for (topic, number) in broker.partitions() {
        let (closed, written) = (broker.closed(&topic, number), broker.written(&topic, number));
        let archived = bench.archived(&topic, number);
        kept.written += closed.len();
        kept.missing += closed.iter().filter(|b| archived.binary_search(b).is_err()).count();
        kept.twice += archived.windows(2).filter(|two| two[0] == two[1]).count();
        kept.foreign += archived.iter().filter(|b| written.binary_search(b).is_err()).count();
    }
    kept
}

/// A load under which the server is killed; what is archived when all is over, and
/// whether a deep verify is clean.
fn crash(server: &mut Server, seed: u64, patience: Duration) -> (Kept, bool, String) {
    let crashes = std::env::var("TIERD_TEST_CRASHES").ok();
    let crashes = crashes.map_or(CRASHES, |text| text.parse().unwrap());
    let bench = Beside::new(TIERD).unwrap();
    let bench = bench.on_store(&server.url("crash"), &server.environment);
    let (mut broker, mut random) = (bench.broker(seed).unwrap(), StdRng::seed_from_u64(seed));
    broker.start().unwrap();
    let daemon = bench.daemon("200ms", "1s");
    for _ in 0..crashes {
        let before = Duration::from_millis(random.random_range(500..2_500));
        write_for(&mut broker, &mut random, before).unwrap();
        server.signal("-STOP");
        let silent = Duration::from_millis(random.random_range(300..1_500));
        write_for(&mut broker, &mut random, silent).unwrap();
        server.signal("-CONT");
        let between = Duration::from_millis(random.random_range(0..800));
        write_for(&mut broker, &mut random, between).unwrap();
        server.crash();
        let down = Duration::from_millis(random.random_range(100..1_500));
        write_for(&mut broker, &mut random, down).unwrap();
        server.revive();
    }
    broker.kill().unwrap();
    broker.start().unwrap();
    broker.produce().unwrap();
    let begun = Instant::now();
    let mut now = kept(&bench, &broker);
    while now.missing > 0 && begun.elapsed() < patience {
        std::thread::sleep(Duration::from_millis(500));
        now = kept(&bench, &broker);
    }
    let stalls = daemon
        .metrics()
        .into_iter()
        .filter(|(name, value)| name.contains("stalled") && *value > 0.0);
    let stalls: Vec<_> = stalls.map(|(name, _)| name).collect();
    daemon.terminate();
    assert_eq!(daemon.wait(), 0);
    let deep = bench.tierd.run(&["verify", "--deep"]);
    eprintln!(
        "{crashes} times SIGKILL under load: {now:?}, {stalls:?}, verify --deep ends with {}",
        deep.code
    );
    (now, deep.code == 0, deep.text() + &deep.stderr)
}

/// The store keeps what it answered for.
fn keeps(mut server: Server, seed: u64) {
    let (now, clean, deep) = crash(&mut server, seed, PATIENCE);
    assert!(now.written > 100, "hardly anything was written: {now:?}");
    assert_eq!((now.missing, now.twice, now.foreign), (0, 0, 0), "{deep}");
    assert!(clean, "{deep}");
}

/// Table: F6 I1 I3 I10 I13 | SIGKILL of SeaweedFS under load | CRASHES TIERD_TEST_CRASHES
#[test]
fn seaweedfs_killed_under_load_keeps_what_it_answered_for() {
    let Some(peers) = peers("SeaweedFS") else { return };
    keeps(Server::seaweedfs(&peers), 41);
}

/// Table: F6 I1 I3 I10 I13 | SIGKILL of what is behind the front of Google Cloud Storage | CRASHES
/// TIERD_TEST_CRASHES
#[test]
fn the_google_cloud_storage_front_killed_under_load_keeps_what_it_answered_for() {
    let Some(peers) = peers("the Google Cloud Storage front") else { return };
    keeps(Server::gcs(&peers), 42);
}

/// Table: F6 F11 I3 I6 | SIGKILL of azurite under load, which may lose what it answered for
/// | CRASHES TIERD_TEST_CRASHES
#[test]
fn azurite_killed_under_load_keeps_what_it_answered_for_or_verify_tells() {
    let Some(peers) = peers("azurite") else { return };
    let mut server = Server::azurite(&peers);
    let (now, clean, deep) = crash(&mut server, 43, LITTLE_PATIENCE);
    assert!(now.written > 100, "hardly anything was written: {now:?}");
    assert_eq!((now.twice, now.foreign), (0, 0), "{deep}");
    if now.missing > 0 || !clean {
        eprintln!("azurite lost what it had answered for; verify says:\n{deep}");
        assert!(!clean, "{} batches are gone and verify is content:\n{deep}", now.missing);
    }
}
