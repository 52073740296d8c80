//! A disk that cannot keep what was written: each sync of a run fails once and takes
//! with it what it should have kept, and then for a while all of them do. Nothing that
//! was told to be archived is lost; what was not is archived again.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use tierd::store::Store;
use tierd_proto::v1::Status;
use tierd_tests::audit::audit;
use tierd_tests::beside::Beside;
use tierd_tests::process::{Ended, Served};
use tierd_tests::world::{catalog, tp};

use super::{broker_starts, expect_whole, read, segment, stop, tens, until_whole};
use crate::{TIERD, block_on};

/// How long every sync fails.
const FAILING: Duration = Duration::from_secs(4);

/// Builds what stands before fsync.
fn preload(folder: &Path) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("e2e/environment/fsync.c");
    let library = folder.join("fsync.so");
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source).arg("-ldl");
    let made = cc.output().expect("a C compiler is there, as building needs one");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    library
}

/// What is archived of `orders`, by an independent reader; it is what was written.
fn archived(bench: &Beside, written: &[u8], what: &str) -> usize {
    let url = format!("file://{}", bench.folder().join("store").display());
    // The folder itself could not be made.
    let Ok(store) = Store::open(&url) else { return 0 };
    let found = block_on(audit(&store, &catalog(&store, "auditor"), &tp("orders", 0)));
    let Some(found) = found.unwrap_or_else(|error| panic!("{what}: {error:#}")) else { return 0 };
    let served = found.served.concat();
    assert!(written.starts_with(&served) && found.beneath.is_empty(), "{what}");
    served.len()
}

/// Table: F19 I1 I3 I7 I10 | every fsync of a run once, which loses what was written
#[test]
fn every_sync_that_fails_costs_time_and_no_batch() {
    let tools = tempfile::tempdir().unwrap();
    let library = preload(tools.path());
    let mut failed = Vec::new();
    for at in 1.. {
        let bench = Beside::new(TIERD).unwrap();
        let written = segment(&bench, "orders", 0, &tens(20));
        let told = bench.folder().join("told");
        let mut run = bench.tierd.command();
        run.args(["run", "--once", "--offline", "--wal-dir"]).arg(bench.wal());
        run.env("LD_PRELOAD", &library).env("TIERD_TEST_FSYNC_AT", at.to_string());
        run.env("TIERD_TEST_FSYNC_TOLD", &told);
        let ended: Ended = run.output().unwrap().into();
        let what = format!("sync {at} failed: {}{}", ended.text(), ended.stderr);
        assert!([0, 2].contains(&ended.code), "{what}");
        let kept = archived(&bench, &written, &what);
        assert!(ended.code != 0 || kept == written.len(), "{what}");
        let _ = bench.tierd.archive(&bench.wal()).ok();
        assert_eq!(archived(&bench, &written, &what), written.len(), "{what}");
        let _ = bench.tierd.run(&["verify", "--deep"]).ok();
        let Ok(told) = std::fs::read_to_string(&told) else { break };
        let told = Path::new(told.trim_end()).strip_prefix(bench.folder()).unwrap().to_owned();
        failed.push(told.display().to_string());
    }
    // Among them an archive, a manifest and what a writer remembers, as they are called
    // before they have their names, and the folders in which they get them.
    for end in [
        "/archive",
        ".tar.gz#1",
        "/manifest",
        "/manifest/00000000000000000001#1",
        "/ledger/orders",
        "/ledger/orders/0000000000#1",
    ] {
        assert!(failed.iter().any(|path| path.ends_with(end)), "{end} in {failed:#?}");
    }
    println!("{} syncs, each failed once", failed.len());
}

/// Table: F19 I1 I5 I13 | every fsync for seconds, each losing what was written
#[test]
fn while_nothing_can_be_synced_nothing_is_told_archived_and_all_is_read() {
    let bench = Beside::new(TIERD).unwrap();
    let library = preload(bench.folder());
    let before = segment(&bench, "before", 0, &tens(50));
    let _ = bench.tierd.archive(&bench.wal()).ok();
    let orders = segment(&bench, "orders", 0, &tens(20));
    broker_starts(&bench);
    let (during, told) = (bench.folder().join("failing"), bench.folder().join("told"));
    std::fs::write(&during, "").unwrap();
    let mut run = bench.tierd.command();
    run.args(["run", "--listen", "127.0.0.1:0", "--settle", "0s", "--wal-dir"]).arg(bench.wal());
    run.arg("--broker-started-at").arg(bench.started());
    run.env("LD_PRELOAD", library).env("TIERD_TEST_FSYNC_WHILE", &during);
    run.env("TIERD_TEST_FSYNC_TOLD", &told);
    let daemon = Served::start(run);
    let begun = Instant::now();
    while begun.elapsed() < FAILING || !told.is_file() {
        expect_whole(&daemon, "before", &before);
        let answer = read(&daemon, "orders");
        assert!(answer.wire.is_empty() && answer.trailers[0].status() != Status::Ok);
        assert_eq!(daemon.get("/livez").unwrap().0, 200);
    }
    assert_eq!(archived(&bench, &orders, "while syncs fail"), 0);
    std::fs::remove_file(during).unwrap();
    until_whole(&daemon, "orders", &orders);
    expect_whole(&daemon, "before", &before);
    stop(daemon);
    assert_eq!(archived(&bench, &orders, "when syncs work"), orders.len());
    let _ = bench.tierd.run(&["verify", "--deep"]).ok();
}
