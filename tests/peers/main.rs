//! Foreign programs against the real daemon: grpcurl, Python's gRPC through
//! reflection, jq, GNU tar, gzip, Python's tarfile, promtool, kubernetes-validate, and
//! Kafka clients in front of a broker that reads through it. `TIERD_PEERS` names the
//! folder where `tests/peers/install.sh` put them; without it every test says so.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "a failed test should panic")]

mod kafka;
mod operations;
mod search;

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tierd_tests::fixture;
use tierd_tests::process::{Served, Tierd};

const TIERD: &str = env!("CARGO_BIN_EXE_tierd-under-test");

/// A program of the peers' folder; `None`, with a line, when it is not installed.
fn peer(name: &str) -> Option<PathBuf> {
    match std::env::var_os("TIERD_PEERS") {
        Some(folder) => Some(Path::new(&folder).join("bin").join(name)),
        None => {
            eprintln!("skipped: run tests/peers/install.sh and set TIERD_PEERS to use {name}");
            None
        }
    }
}

fn output(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {text}{complaint}");
    text
}

struct Bench {
    folder: tempfile::TempDir,
    tierd: Tierd,
}

fn archived() -> Bench {
    let folder = tempfile::tempdir().unwrap();
    let tierd = Tierd::new(TIERD, folder.path());
    let _ = tierd.archive(&fixture::wal()).ok();
    Bench { folder, tierd }
}

/// The served batches of a partition, as the CLI reads them from the store.
fn served(bench: &Bench, topic: &str, partition: i32) -> Vec<u8> {
    let partition = partition.to_string();
    bench.tierd.run(&["fetch", topic, &partition, "--offset", "0", "--format", "raw"]).ok().stdout
}

fn grpcurl(program: &Path, daemon: &Served, args: &[&str]) -> String {
    let (last, flags) = args.split_last().unwrap();
    output(
        Command::new(program)
            .arg("-plaintext")
            .args(flags)
            .arg(&daemon.address)
            .args(last.split(' ')),
    )
}

#[test]
fn grpcurl_lists_describes_and_fetches_the_same_bytes() {
    use base64::Engine;
    let Some(program) = peer("grpcurl") else { return };
    let bench = archived();
    let daemon = bench.tierd.serve(&[]);
    let services = grpcurl(&program, &daemon, &["list"]);
    for service in ["tierd.v1.Archive", "grpc.health.v1.Health", "grpc.reflection.v1alpha"] {
        assert!(services.contains(service), "{services}");
    }
    let described = grpcurl(&program, &daemon, &["describe tierd.v1.Archive"]);
    assert!(described.contains("rpc FetchArchived"), "{described}");
    let healthy = grpcurl(&program, &daemon, &["grpc.health.v1.Health/Check"]);
    assert!(healthy.contains("SERVING"), "{healthy}");

    for (topic, partition) in fixture::batches().into_keys() {
        let mut offset = 0;
        let mut got = Vec::new();
        // Go on where an answer ends before offsets that go back.
        for _ in 0..10 {
            let body = format!(
                r#"{{"partitions":[{{"topic":"{topic}","partition":{partition},"fetch_offset":{offset}}}]}}"#
            );
            let call = "tierd.v1.Archive/FetchArchived";
            let answer = grpcurl(&program, &daemon, &["-d", &body, call]);
            let frames = serde_json::Deserializer::from_str(&answer).into_iter::<Value>();
            let mut end = String::new();
            for frame in frames {
                let frame = frame.unwrap();
                if let Some(batches) = frame["data"]["batches"].as_str() {
                    got.extend(base64::engine::general_purpose::STANDARD.decode(batches).unwrap());
                }
                if let Some(reason) = frame["trailer"]["endReason"].as_str() {
                    end = reason.to_owned();
                    offset = frame["trailer"]["nextOffset"].as_str().unwrap().parse().unwrap();
                }
            }
            match end.as_str() {
                "END_REASON_OFFSETS_GO_BACK" => {}
                "END_REASON_END_OF_ARCHIVE" => break,
                other => panic!("{topic}-{partition} ended with {other:?}"),
            }
        }
        assert_eq!(got, served(&bench, &topic, partition), "{topic}-{partition}");
    }
}

#[test]
fn python_reads_the_same_bytes_through_reflection() {
    let Some(python) = peer("python") else { return };
    let bench = archived();
    let daemon = bench.tierd.serve(&[]);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/fetch_by_reflection.py");
    for (topic, partition) in fixture::batches().into_keys() {
        let file = bench.folder.path().join("read");
        let said = output(
            Command::new(&python)
                .arg(&script)
                .args([&daemon.address, &topic, &partition.to_string()])
                .arg(&file),
        );
        assert!(said.contains("tierd.v1.Archive"), "{said}");
        assert_eq!(std::fs::read(&file).unwrap(), served(&bench, &topic, partition));
    }
}

fn archives(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(archives(&path));
        } else if path.to_string_lossy().ends_with(".tar.gz") {
            found.push(path);
        }
    }
    found
}

#[test]
fn gzip_tar_and_python_read_every_archive_whole() {
    let Some(python) = peer("python") else { return };
    let bench = archived();
    let archives = archives(&bench.folder.path().join("store"));
    assert!(archives.len() >= 5, "{archives:?}");
    for archive in archives {
        output(Command::new("gzip").arg("-t").arg(&archive));
        let target = tempfile::tempdir().unwrap();
        output(Command::new("tar").arg("-xzf").arg(&archive).arg("-C").arg(target.path()));
        let metadata = std::fs::read_to_string(target.path().join("metadata.json")).unwrap();
        assert!(serde_json::from_str::<Value>(&metadata).is_ok(), "{metadata}");
        let read = "import sys,tarfile\n\
                    names=[[(m.name,len(t.extractfile(m).read())) for m in t] for mode in ('r:gz','r|gz') \
                    for t in [tarfile.open(sys.argv[1],mode)]]\n\
                    assert names[0]==names[1] and len(names[0])>4, names\nprint(names[0])";
        let names = output(Command::new(&python).args(["-c", read]).arg(&archive));
        assert!(names.contains(".tierd/footer") && names.contains("index/meta.json"), "{names}");
    }
}
