//! The main job on a real WAL: what the broker wrote goes in, the same bytes come
//! out, on every path.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tierd_tests::fixture::{self, Batch};
use tierd_tests::process::Tierd;

use crate::TIERD;

/// Offsets, length and SHA-256 of every batch in `wire`.
fn batches_of(mut wire: &[u8]) -> Vec<(i64, i64, usize, String)> {
    let mut found = Vec::new();
    while !wire.is_empty() {
        let base = i64::from_be_bytes(wire[0..8].try_into().unwrap());
        let len = 12 + i32::from_be_bytes(wire[8..12].try_into().unwrap()) as usize;
        let delta = i32::from_be_bytes(wire[23..27].try_into().unwrap());
        let digest = Sha256::digest(&wire[..len]);
        let hex = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        found.push((base, base + i64::from(delta), len, hex));
        wire = &wire[len..];
    }
    found
}

fn rows(batches: &[Batch]) -> Vec<(i64, i64, usize, String)> {
    batches.iter().map(|b| (b.base, b.last, b.length, b.sha256.clone())).collect()
}

/// Name, length and time of every file below `folder`.
fn objects(folder: &Path) -> BTreeMap<String, (u64, std::time::SystemTime)> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let entry = entry.unwrap();
            let meta = entry.metadata().unwrap();
            if meta.is_dir() {
                folders.push(entry.path());
            } else {
                let name = entry.path().display().to_string();
                found.insert(name, (meta.len(), meta.modified().unwrap()));
            }
        }
    }
    found
}

/// The fixtures archived into a fresh store.
fn archived() -> (tempfile::TempDir, Tierd) {
    let folder = tempfile::tempdir().unwrap();
    let tierd = Tierd::new(TIERD, folder.path());
    let _ = tierd.archive(&fixture::wal()).ok();
    (folder, tierd)
}

#[test]
fn every_batch_of_the_wal_comes_back_by_base_offset_then_wal_order() {
    let (_folder, tierd) = archived();
    for ((topic, partition), mut batches) in fixture::batches() {
        batches.sort_by_key(|batch| (batch.base, batch.order));
        let partition = partition.to_string();
        let all = tierd
            .run(&[
                "fetch",
                &topic,
                &partition,
                "--offset",
                "0",
                "--format",
                "raw",
                "--overlaps",
                "all",
            ])
            .ok();
        assert_eq!(batches_of(&all.stdout), rows(&batches), "{topic}-{partition}");
    }
}

#[test]
fn the_served_log_is_the_chain_of_newest_batches() {
    let (_folder, tierd) = archived();
    let daemon = tierd.serve(&[]);
    for ((topic, partition), batches) in fixture::batches() {
        let wanted = rows(&fixture::served(&batches));
        let partition = partition.to_string();
        let fetch = ["fetch", &topic, &partition, "--offset", "0", "--format", "raw"];
        let direct = tierd.run(&fetch).ok();
        assert_eq!(batches_of(&direct.stdout), wanted, "{topic}-{partition} from the store");
        let through = tierd.run(&[&fetch[..], &["--endpoint", &daemon.address]].concat()).ok();
        assert_eq!(batches_of(&through.stdout), wanted, "{topic}-{partition} over gRPC");
    }
}

#[test]
fn a_fetch_from_any_offset_begins_with_the_first_batch_that_ends_at_or_above_it() {
    let (_folder, tierd) = archived();
    let batches = &fixture::batches()[&("busy".to_owned(), 0)];
    let served = rows(&fixture::served(batches));
    for offset in [1, 2, 99, 777, 1000, 1439] {
        let fetch = ["fetch", "busy", "0", "--format", "raw", "--max-bytes", "1", "--offset"];
        let got = tierd.run(&[&fetch[..], &[&offset.to_string()]].concat()).ok();
        let wanted = served.iter().find(|batch| batch.1 >= offset).cloned();
        assert_eq!(batches_of(&got.stdout), Vec::from_iter(wanted), "offset {offset}");
    }
}

#[test]
fn a_second_run_writes_no_object() {
    let (folder, tierd) = archived();
    let before = objects(&folder.path().join("store"));
    assert!(before.len() >= 10, "{before:?}");
    let again = tierd.archive(&fixture::wal()).ok();
    assert_eq!(objects(&folder.path().join("store")), before);
    assert!(again.stderr.lines().all(|line| line.contains("torn")), "{}", again.stderr);
}

/// Our JSON's bytes as the fixtures write them: hex, null for null.
fn hex(bytes: &Value) -> Value {
    use base64::Engine;
    let raw = match bytes {
        Value::Null => return Value::Null,
        Value::String(text) => text.clone().into_bytes(),
        other => {
            let text = other["base64"].as_str().unwrap();
            base64::engine::general_purpose::STANDARD.decode(text).unwrap()
        }
    };
    raw.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into()
}

fn as_expected(line: &str) -> Value {
    let record: Value = serde_json::from_str(line).unwrap();
    let headers = record["headers"].as_array().unwrap().iter();
    let headers: Vec<Value> = headers.map(|h| json!([h[0].clone(), hex(&h[1])])).collect();
    json!({
        "partition": record["partition"], "offset": record["offset"],
        "timestamp": record["timestamp"], "key": hex(&record["key"]),
        "value": hex(&record["value"]), "headers": headers,
    })
}

#[test]
fn records_equal_what_a_kafka_client_read_from_the_broker() {
    let (_folder, tierd) = archived();
    let daemon = tierd.serve(&[]);
    for ((topic, partition), _) in fixture::batches() {
        // For this topic the broker answered with both of two overlapping batches.
        if topic == "clicks.日本_1" {
            continue;
        }
        for isolation in ["read_uncommitted", "read_committed"] {
            let number = partition.to_string();
            let fetch = ["fetch", &topic, &number, "--offset", "0", "--isolation", isolation];
            let wanted = &fixture::expected(&topic, isolation)[&partition];
            for endpoint in [&[][..], &["--endpoint", &daemon.address]] {
                let got = tierd.run(&[&fetch[..], endpoint].concat()).ok();
                let got: Vec<Value> = got.text().lines().map(as_expected).collect();
                assert_eq!(got.len(), wanted.len(), "{topic}-{partition} {isolation}");
                for (ours, theirs) in got.iter().zip(wanted) {
                    assert_eq!(ours, theirs, "{topic}-{partition} {isolation}");
                }
            }
        }
    }
}

#[test]
fn verify_finds_a_clean_archive_clean_and_a_flipped_byte_corrupt() {
    let (folder, tierd) = archived();
    for depth in [&["verify"][..], &["verify", "--deep"]] {
        let clean = tierd.run(depth).ok();
        assert!(!clean.text().contains("CORRUPT"), "{}", clean.text());
    }
    let mut archives = objects(&folder.path().join("store"));
    archives.retain(|name, _| name.ends_with(".tar.gz"));
    let (victim, _) = archives.iter().max_by_key(|(_, (len, _))| *len).unwrap();
    let mut bytes = std::fs::read(victim).unwrap();
    let middle = bytes.len() / 3;
    bytes[middle] ^= 1;
    std::fs::write(victim, bytes).unwrap();
    let deep = tierd.run(&["verify", "--deep"]);
    assert_eq!(deep.code, 1, "{}", deep.stderr);
    assert!(deep.stderr.contains("CORRUPT"), "{}", deep.stderr);
    std::fs::remove_file(victim).unwrap();
    let lost = tierd.run(&["verify"]);
    assert_eq!(lost.code, 1, "{}", lost.stderr);
    assert!(lost.stderr.contains("LOST"), "{}", lost.stderr);
}
