//! A disk with no room: a small file system in a mount namespace that the daemon alone
//! lives in, filled up but for a little.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use tierd_proto::v1::Status;
use tierd_tests::beside::Beside;
use tierd_tests::process::{Ended, Served};

use super::{
    broker_starts, expect_whole, noise, read, say, segment, stalled, stop, tens, until,
    until_whole, within,
};
use crate::TIERD;

/// Size of the disk, in KiB.
const DISK_KIB: u64 = 96 << 10;
/// What is free on it at first.
const FREE_KIB: u64 = 12 << 10;
/// Batches that together are more than that, and with all that is made of them less
/// than the disk.
const BATCHES: i64 = 96;
/// How long what does not fit stands still, and then everything.
const FULL: Duration = Duration::from_secs(3);
/// The files that fill it.
const BALLAST: &str = "ballast";
const FILLER: &str = "filler";

/// Mounts at `$0`, fills the disk and becomes what is named behind.
const ON_A_DISK: &str = r#"
set -e
mount -t tmpfs -o size="$1k" tmpfs "$0"
head -c "$(($2 * 1024))" /dev/zero > "$0/ballast"
shift 2
exec "$@"
"#;

fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|id| id.stdout == b"0\n")
}

/// A shell in a mount namespace of its own.
fn inside(script: &str) -> Command {
    let mut unshare = Command::new("unshare");
    if !is_root() {
        unshare.arg("--map-root-user");
    }
    unshare.args(["--mount", "sh", "-c", script]);
    unshare
}

/// Whether a disk can be mounted here.
fn can_mount(at: &Path) -> bool {
    let tried = inside(r#"mount -t tmpfs -o size=64k tmpfs "$0""#).arg(at).output();
    let why = match tried {
        Ok(tried) if tried.status.success() => return true,
        Ok(tried) => String::from_utf8_lossy(&tried.stderr).trim().to_owned(),
        Err(error) => format!("unshare: {error}"),
    };
    say(&format!("skipped: no small disk can be mounted here, in a namespace of its own: {why}"));
    false
}

/// A daemon with a disk of its own, which is full.
struct OnADisk {
    daemon: Served,
    /// The disk, as this process sees it.
    disk: PathBuf,
}

impl OnADisk {
    fn start(bench: &Beside, at: &Path) -> Self {
        let mut outer = inside(ON_A_DISK);
        outer.arg(at).args([DISK_KIB, DISK_KIB - FREE_KIB].map(|kib| kib.to_string()));
        let daemon = Served::start(within(outer, &daemon(bench)));
        let root = PathBuf::from(format!("/proc/{}/root", daemon.id()));
        let disk = root.join(at.strip_prefix("/").unwrap());
        assert!(disk.join(BALLAST).is_file(), "the disk is not there");
        Self { daemon, disk }
    }

    /// A command that sees the disk as the daemon does.
    fn beside(&self, inner: &Command) -> Command {
        let mut enter = Command::new("nsenter");
        enter.args(["--target", &self.daemon.id().to_string(), "--mount"]);
        if !is_root() {
            enter.args(["--user", "--preserve-credentials"]);
        }
        within(enter, inner)
    }

    /// Takes what is left of the disk, to the last byte.
    fn fill(&self) {
        let options = OpenOptions::new().create(true).append(true).open(self.disk.join(FILLER));
        let mut filler = options.unwrap();
        let full = loop {
            if let Err(error) = filler.write_all(&[0; 4096]) {
                break error;
            }
        };
        assert_eq!(full.kind(), ErrorKind::StorageFull, "{full}");
    }

    fn free(&self) {
        for file in [BALLAST, FILLER] {
            std::fs::remove_file(self.disk.join(file)).unwrap();
        }
    }
}

/// What archives and serves.
fn daemon(bench: &Beside) -> Command {
    let mut daemon = bench.tierd.command();
    daemon.args(["run", "--listen", "127.0.0.1:0", "--settle", "0s", "--wal-dir"]);
    daemon.arg(bench.wal()).arg("--broker-started-at").arg(bench.started());
    daemon
}

/// Archiving stands still for what does not fit, and for nothing else; reads go on, by a
/// daemon that starts meanwhile too; when there is room the rest is archived.
fn pauses_archiving_and_never_fetching(bench: &Beside, at: &Path, reason: &str) {
    let steady = segment(bench, "steady", 0, &tens(300));
    let large = segment(bench, "large", 0, &(0..BATCHES).map(noise).collect::<Vec<_>>());
    broker_starts(bench);
    let full = OnADisk::start(bench, at);
    let daemon = &full.daemon;
    until_whole(daemon, "steady", &steady);
    until(&format!("large stalls by {reason}"), || stalled(daemon, reason) == 1.0);

    let mut reads = 0;
    let mut reads_go_on = |begun: Instant, daemon: &Served| {
        while begun.elapsed() < FULL {
            expect_whole(daemon, "steady", &steady);
            reads += 1;
            assert_eq!(daemon.get("/livez").unwrap().0, 200);
            let answer = read(daemon, "large");
            assert!(answer.wire.is_empty(), "something of it is archived");
            let status = answer.trailers[0].status();
            assert_ne!(status, Status::Ok, "{}", answer.trailers[0].message);
        }
    };
    // What comes meanwhile and fits is archived too.
    let small = segment(bench, "small", 0, &tens(3));
    broker_starts(bench);
    reads_go_on(Instant::now(), daemon);
    until_whole(daemon, "small", &small);

    // Now nothing fits. What a step under way gives back is taken too.
    full.fill();
    let late = segment(bench, "late", 0, &tens(3));
    broker_starts(bench);
    for _ in 0..10 {
        reads_go_on(Instant::now() - FULL * 9 / 10, daemon);
        full.fill();
    }
    assert!(stalled(daemon, reason) >= 1.0 && daemon.metrics()["tierd_archive_lag_bytes"] > 0.0);
    let mut other = self::daemon(bench);
    other.args(["--writer-id", "other", "--data-dir"]).arg(at.join("other"));
    let other = Served::start(full.beside(&other));
    reads_go_on(Instant::now(), &other);
    stop(other);

    full.free();
    for (topic, written) in [("large", &large), ("late", &late), ("small", &small)] {
        until_whole(daemon, topic, written);
    }
    expect_whole(daemon, "steady", &steady);
    until("nothing stalls", || stalled(daemon, reason) == 0.0);
    println!("{reason}: {reads} reads of {} KiB while the disk was full", steady.len() >> 10);
    let mut verify = bench.tierd.command();
    let deep: Ended = full.beside(verify.args(["verify", "--deep"])).output().unwrap().into();
    let _ = deep.ok();
    stop(full.daemon);
}

/// Table: F18 I1 I12 I13 | a small file system for scratch, full
#[test]
fn a_full_disk_for_scratch_pauses_archiving_and_never_fetching() {
    let bench = Beside::new(TIERD).unwrap();
    let data = bench.folder().join("data");
    std::fs::create_dir(&data).unwrap();
    if can_mount(&data) {
        pauses_archiving_and_never_fetching(&bench, &data, "scratch");
    }
}

/// Table: F18 I1 I12 I13 | a small file system for a directory that is the store, full
#[test]
fn a_full_disk_for_the_store_pauses_archiving_and_never_fetching() {
    let bench = Beside::new(TIERD).unwrap();
    let store = bench.folder().join("store");
    std::fs::create_dir(&store).unwrap();
    if can_mount(&store) {
        pauses_archiving_and_never_fetching(&bench, &store, "store");
    }
}
