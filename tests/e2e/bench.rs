//! The benchmarks on tiny data: they run, prove their own answers and say what they
//! promise to say.

use std::process::{Command, Stdio};

use serde_json::Value;
use tierd_tests::process::{Ended, Tierd};

use crate::TIERD;

/// Runs `tierd bench` with scratch below a folder of its own, which must be empty
/// when it ends.
fn bench(args: &[&str]) -> Ended {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Tierd::new(TIERD, folder.path()).command();
    let scratch = tempfile::tempdir().unwrap();
    command.env("TMPDIR", scratch.path()).arg("bench").args(args);
    let ended = Ended::from(command.output().unwrap()).ok();
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0, "scratch is left");
    ended
}

fn json(args: &[&str]) -> Value {
    serde_json::from_str(&bench(&[args, &["--json"]].concat()).text()).unwrap()
}

const LOOKUP: &[&str] = &[
    "lookup",
    "--archives",
    "12",
    "--archive-size",
    "64KiB",
    "--lookups",
    "3",
    "--latency",
    "2ms",
    "--bandwidth",
    "1GiB",
];
const SCAN: &[&str] = &[
    "scan",
    "--sizes",
    "64KiB,256KiB",
    "--archive-size",
    "64KiB",
    "--lookups",
    "2",
    "--scans",
    "1",
];

#[test]
fn lookups_are_timed_and_counted_by_kind() {
    let found = json(LOOKUP);
    assert_eq!((&found["bench"], &found["archives"]), (&"lookup".into(), &12.into()));
    assert_eq!(
        (found["latency_ms"].as_f64(), found["bandwidth"].as_u64()),
        (Some(2.0), Some(1 << 30))
    );
    let rows = found["rows"].as_array().unwrap();
    let kinds: Vec<_> = rows.iter().map(|row| row["by"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["key", "absent_key", "time", "key_in_time"]);
    for row in rows {
        let of = |name: &str| row[name].as_f64().unwrap_or_else(|| panic!("{name} of {row}"));
        assert_eq!(of("lookups"), 3.0);
        assert!(of("median_ms") <= of("p99_ms") && of("p99_ms") <= of("max_ms"), "{row}");
        let share = of("bytes_max") / found["stored_bytes"].as_f64().unwrap() * 100.0;
        assert!((of("bytes_max_percent") - share).abs() < 1e-9, "{row}");
    }
    // Of 12 archives each key is in 6; the index of each is asked for at the pace of
    // the model.
    let key = &rows[0];
    assert_eq!(key["hits_mean"], 6.0);
    assert!(key["requests_mean"].as_f64() >= Some(6.0), "{key}");
    assert!(key["median_ms"].as_f64() >= Some(2.0), "{key}");
    let time = &rows[2];
    assert_eq!(time["opened_in_vain_mean"], 0.0, "a time range opens what overlaps it alone");
}

#[test]
fn scans_are_compared_at_every_size() {
    let found = json(SCAN);
    assert_eq!(found["bench"], "scan");
    let rows = found["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 2);
    for (row, archives) in rows.iter().zip([1, 4]) {
        assert_eq!(row["archives"], archives);
        let of = |name: &str| row[name].as_f64().unwrap_or_else(|| panic!("{name} of {row}"));
        assert!(of("bytes") >= 65_536.0 * f64::from(archives) && of("records") > 60.0, "{row}");
        let ratio = of("scan_median_ms") / of("index_median_ms");
        assert!((of("ratio") - ratio).abs() < ratio / 10.0, "{row}");
    }
}

#[test]
fn merges_are_compared_with_copies_and_leave_few_objects() {
    let sizes = ["--archives", "60", "--archive-size", "64KiB", "--searches", "3"];
    let pace = ["--latency", "1ms", "--bandwidth", "1GiB"];
    let merge = |more: &[&str]| json(&[&["merge"], &sizes[..], &pace[..], more].concat());
    let all_at_once = merge(&["--target", "4MiB"]);
    let as_they_come = merge(&["--target", "4MiB", "--every", "3"]);
    for (found, rewrites) in [(&all_at_once, 1), (&as_they_come, 2)] {
        assert_eq!((&found["bench"], &found["archives"]), (&"merge".into(), &60.into()));
        assert_eq!(found["rewrites_max"], rewrites, "{found}");
        assert_eq!(found["latency_ms"], 1.0);
        let of = |field: &Value| field.as_f64().unwrap();
        assert!(of(&found["rewrites_mean"]) <= f64::from(rewrites), "{found}");
        // Copied before each merge and after.
        assert_eq!(of(&found["copied"]["bytes"]), 2.0 * of(&found["merged"]["bytes"]));
        let (copied, merged) = (&found["copied"]["seconds"], &found["merged"]["seconds"]);
        let ratio = of(copied) / 2.0 / of(merged);
        assert!((of(&found["ratio"]) - ratio).abs() < ratio / 1e3, "{found}");
        let (before, after) = (&found["before_gc"], &found["after_gc"]);
        assert_eq!(before["archives"], after["archives"]);
        assert!(of(&after["archives"]) <= 8.0, "{after}");
        assert_eq!(after["sorts"]["archives"], after["archives"], "no archive is left over");
        assert!(of(&before["sorts"]["archives"]) >= 60.0, "{before}");
        let sorts = after["sorts"].as_object().unwrap().values().map(of).sum::<f64>();
        assert_eq!(of(&after["objects"]), sorts);
    }
    assert_eq!(all_at_once["fetched_digest"], as_they_come["fetched_digest"]);
}

#[test]
fn people_get_a_table_and_mistakes_get_an_answer() {
    let text = bench(SCAN).text();
    assert!(text.contains("TIMES FASTER") && text.lines().count() == 5, "{text}");
    let folder = tempfile::tempdir().unwrap();
    let tierd = Tierd::new(TIERD, folder.path());
    for (args, with) in [
        (&["scan", "--sizes", "much"][..], "no number of bytes"),
        (&["scan", "--scans", "0"][..], "nothing to compare"),
        (&["lookup", "--archives", "0"][..], "no archives"),
        (&["merge", "--every", "0"][..], "no archives come"),
    ] {
        let refused = tierd.run(&[&["bench"], args].concat());
        assert!(refused.code == 2 && refused.stderr.contains(with), "{refused:?}");
    }
}

#[test]
fn nothing_is_left_behind_after_ctrl_c() {
    let folder = tempfile::tempdir().unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let mut command = Tierd::new(TIERD, folder.path()).command();
    command.env("TMPDIR", scratch.path()).args(["bench", "lookup", "--archives", "100000"]);
    let mut bench = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let entries = || std::fs::read_dir(scratch.path()).unwrap().count();
    while entries() == 0 {
        assert!(bench.try_wait().unwrap().is_none(), "it ended by itself");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let kill = format!("kill -INT {}", bench.id());
    assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    let ended = bench.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(2), "{ended:?}");
    assert_eq!(entries(), 0, "scratch is left");
}
