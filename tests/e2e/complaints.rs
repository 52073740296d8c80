//! Bad input: one clear line each that says what, where and what to do; the other
//! partitions go on; the exit code tells a check from an error.

use std::fs;
use std::path::{Path, PathBuf};

use tierd_tests::fixture;
use tierd_tests::process::{Ended, Tierd};

use crate::TIERD;

/// A copy of the fixtures' WAL that a test may damage, and a store.
struct Bench {
    folder: tempfile::TempDir,
    tierd: Tierd,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let tierd = Tierd::new(TIERD, folder.path());
        copy(&fixture::wal(), &folder.path().join("wal"));
        Self { folder, tierd }
    }

    fn wal(&self) -> PathBuf {
        self.folder.path().join("wal")
    }

    fn segment(&self, path: &str) -> PathBuf {
        self.wal().join(path)
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// The one line that complains; panics when there are none or several.
fn line(ended: &Ended) -> &str {
    let mut lines = ended.stderr.lines();
    let line = lines.next().unwrap_or_default();
    assert!(line.starts_with("tierd: "), "{}", ended.stderr);
    assert_eq!(lines.next(), None, "more than one line: {}", ended.stderr);
    assert!(line.len() < 400, "too long to read at night: {line}");
    line
}

#[track_caller]
fn complains(ended: &Ended, code: i32, words: &[&str]) {
    assert_eq!(ended.code, code, "{}", ended.stderr);
    let line = line(ended);
    for word in words {
        assert!(line.contains(word), "{word:?} is missing in: {line}");
    }
}

#[test]
fn a_missing_wal_directory_is_named_and_no_store_is_made() {
    let bench = Bench::new();
    let ended = bench.tierd.archive(Path::new("/nowhere/wal"));
    complains(&ended, 2, &["/nowhere/wal", "does not exist", "give the folder"]);
    assert!(!bench.folder.path().join("store").try_exists().unwrap());
}

#[test]
fn a_mistyped_store_url_is_refused_with_what_is_understood() {
    let bench = Bench::new();
    let wal = bench.wal();
    for url in ["flie:///x", "file:/x", "file://x/y", "/var/x", "s3:/bucket", ""] {
        let run =
            ["run", "--once", "--offline", "--store", url, "--wal-dir", wal.to_str().unwrap()];
        complains(&bench.tierd.run(&run), 2, &["file:///"]);
    }
}

#[test]
fn a_store_that_cannot_be_written_is_named() {
    let bench = Bench::new();
    // Root may write anywhere, but not below a file.
    fs::write(bench.folder.path().join("store"), b"a file").unwrap();
    let ended = bench.tierd.archive(&bench.wal());
    complains(&ended, 2, &["store"]);
}

/// Table: F27 I6 | the address of the store
#[test]
fn a_store_that_is_not_there_is_no_empty_archive() {
    let bench = Bench::new();
    complains(&bench.tierd.run(&["ls"]), 2, &["store"]);
}

#[test]
fn unknown_topics_and_offsets_outside_are_told_with_the_bounds() {
    let bench = Bench::new();
    let tierd = &bench.tierd;
    let _ = tierd.archive(&bench.wal()).ok();
    let daemon = tierd.serve(&[]);
    for endpoint in [&[][..], &["--endpoint", &daemon.address]] {
        let fetch = |args: &[&str]| tierd.run(&[&["fetch"], args, endpoint].concat());
        complains(&fetch(&["nothing", "0"]), 2, &["nothing"]);
        complains(&fetch(&["orders", "7"]), 2, &["orders"]);
        complains(&fetch(&["busy", "0", "--offset", "99999"]), 2, &["99999", "not archived yet"]);
        complains(&fetch(&["busy", "0", "--offset", "-5"]), 2, &["-5"]);
        complains(&fetch(&["a/b", "0"]), 2, &["a/b"]);
    }
}

#[test]
fn an_endpoint_where_nobody_listens_is_named() {
    let bench = Bench::new();
    let ended = bench.tierd.run(&["fetch", "orders", "0", "--endpoint", "127.0.0.1:1"]);
    complains(&ended, 2, &["127.0.0.1:1"]);
}

#[test]
fn a_torn_tail_is_normal_and_everything_before_it_is_archived() {
    let bench = Bench::new();
    let victim = bench.segment("orders/0/wal_0_2.log");
    let bytes = fs::read(&victim).unwrap();
    fs::write(&victim, &bytes[..bytes.len() - 7]).unwrap();
    let ended = bench.tierd.archive(&bench.wal());
    complains(&ended, 0, &["wal_0_2.log", "torn"]);
}

/// Table: F16 I3 I6 | a frame of a closed segment
#[test]
fn a_damaged_frame_is_reported_and_the_rest_of_it_and_others_go_on() {
    let bench = Bench::new();
    let victim = bench.segment("orders/0/wal_0_1.log");
    let mut bytes = fs::read(&victim).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    fs::write(&victim, bytes).unwrap();
    let ended = bench.tierd.archive(&bench.wal());
    complains(&ended, 1, &["wal_0_1.log", "damaged", "keep the file"]);
    let listed = bench.tierd.run(&["ls", "--json"]).ok().text();
    assert_eq!(listed.lines().count(), 5, "all partitions are archived: {listed}");
    let damaged = listed.lines().find(|line| line.contains("\"kind\":\"damaged\""));
    assert!(damaged.is_some_and(|line| line.contains("orders")), "{listed}");

    // The reader meets the gap and is told, on stderr, and goes on behind it.
    let read = bench.tierd.run(&["fetch", "orders", "0", "--offset", "0"]).ok();
    assert!(read.stderr.contains("declared gap (damaged)"), "{}", read.stderr);
    let batches = &fixture::batches()[&("orders".to_owned(), 0)];
    let last = batches.iter().map(|batch| batch.last).max().unwrap();
    assert!(read.text().lines().last().unwrap().contains(&format!("\"offset\":{last}")));
}

/// Table: F16 I6 | a frame of a closed segment
#[test]
fn frames_of_an_unknown_magic_are_damage() {
    let bench = Bench::new();
    let victim = bench.segment("payments/0/wal_0_1.log");
    let mut bytes = fs::read(&victim).unwrap();
    bytes[0] = 0x55;
    fs::write(&victim, bytes).unwrap();
    let ended = bench.tierd.archive(&bench.wal());
    complains(&ended, 1, &["wal_0_1.log", "damaged"]);
}

#[test]
fn bad_usage_exits_with_two_and_names_the_flag() {
    let bench = Bench::new();
    let ended = bench.tierd.run(&["fetch", "orders", "0", "--offsett", "3"]);
    assert_eq!(ended.code, 2);
    assert!(ended.stderr.contains("--offset"), "{}", ended.stderr);
    let settings = bench.folder.path().join("tierd.toml");
    fs::write(&settings, "stoer = 'memory:'\n").unwrap();
    let ended = bench.tierd.run(&["ls", "--config", settings.to_str().unwrap()]);
    assert_eq!(ended.code, 2);
    assert!(ended.stderr.contains("stoer"), "{}", ended.stderr);
}

#[test]
fn an_address_that_is_taken_or_routable_is_refused() {
    let bench = Bench::new();
    let _ = bench.tierd.archive(&bench.wal()).ok();
    let daemon = bench.tierd.serve(&[]);
    complains(
        &bench.tierd.run(&["serve", "--listen", &daemon.address]),
        2,
        &[&daemon.address, "--listen"],
    );
    complains(&bench.tierd.run(&["serve", "--listen", "0.0.0.0:0"]), 2, &["0.0.0.0:0", "loopback"]);
}
