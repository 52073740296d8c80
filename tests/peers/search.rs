//! Searches as the README has them, against the demo, read by jq and by grpcurl; and
//! rebuilt batches in the hands of Kafka clients of others, checksums checked.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use tierd_tests::chronik::WalWriter;
use tierd_tests::fixture;
use tierd_tests::three_phase::GapPolicy;
use tierd_tests::three_phase::scene::{Life, Scene};

use crate::kafka::{CLIENTS, Consumer};
use crate::{TIERD, archived, output, peer};

/// Where the README and the demo serve.
const ADDRESS: &str = "127.0.0.1:9095";
/// How the README runs tierd.
const RUN: &str = "cargo run --bin tierd --";

/// `tierd demo`, killed when dropped.
struct Demo {
    child: Child,
    address: String,
    /// What it says to try.
    to_try: Vec<String>,
}

impl Demo {
    fn start() -> Self {
        let mut command = Command::new(TIERD);
        command.args(["demo", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let mut demo = Self { child, address: String::new(), to_try: Vec::new() };
        for line in stdout.lines() {
            let line = line.unwrap();
            if let Some(rest) = line.strip_prefix("Serving on ") {
                demo.address = rest.split(' ').next().unwrap().to_owned();
            } else if !demo.address.is_empty() && !line.is_empty() {
                demo.to_try.push(line.trim().to_owned());
            }
            if line.contains("/metrics") {
                return demo;
            }
        }
        panic!("the demo ended by itself");
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a line, pasted into a shell, prints.
fn pasted(line: &str) -> String {
    let mut shell = Command::new("sh");
    if let Some(programs) = peer("grpcurl").as_deref().and_then(Path::parent) {
        let path = std::env::var("PATH").unwrap();
        shell.env("PATH", format!("{}:{path}", programs.display()));
    }
    output(shell.args(["-ec", line]))
}

fn readme() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    std::fs::read_to_string(root.join("README.md")).unwrap()
}

/// The README's commands that contain all of `words`, as they run here.
fn commands(demo: &Demo, words: &[&str]) -> Vec<String> {
    let readme = readme();
    let found = readme.lines().filter(|line| words.iter().all(|word| line.contains(word)));
    let found = found.filter(|line| line.starts_with("cargo run") || line.starts_with("grpcurl"));
    let here = |line: &str| line.replace(RUN, TIERD).replace(ADDRESS, &demo.address);
    let found: Vec<String> = found.map(here).collect();
    assert!(!found.is_empty(), "the README has no command with {words:?}");
    found
}

/// The records that the README's key has, by the client that read them from the
/// real broker.
fn promised() -> Vec<(i64, i64)> {
    let readme = readme();
    let key = readme.split("search orders --key ").nth(1).unwrap();
    let key: String = key.split_whitespace().next().unwrap().bytes().map(hex).collect();
    let all = fixture::expected("orders", "read_uncommitted");
    let found = all.into_values().flatten().filter(|record| record["key"] == key);
    let place =
        |record: Value| (record["partition"].as_i64().unwrap(), record["offset"].as_i64().unwrap());
    let mut found: Vec<_> = found.map(place).collect();
    found.sort_unstable();
    assert!(!found.is_empty(), "the README's key is in no record");
    found
}

fn hex(byte: u8) -> String {
    format!("{byte:02x}")
}

/// Pairs of numbers, one pair a line as jq writes it compactly.
fn pairs(lines: &str) -> Vec<(i64, i64)> {
    let mut found: Vec<(i64, i64)> =
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    found.sort_unstable();
    found
}

#[test]
fn the_readme_finds_what_it_promises_and_jq_reads_it() {
    if peer("grpcurl").is_none() {
        return;
    }
    let demo = Demo::start();
    let promised = promised();
    for line in commands(&demo, &[" search ", "--key "]) {
        assert_eq!(pairs(&pasted(&format!("{line} | jq -c '[.partition, .offset]'"))), promised);
        // For people: a table of as many rows below its head.
        let table = pasted(&format!("{line} --format refs"));
        let mut rows = table.lines();
        let head = rows.next().unwrap();
        let begins = ["TIME", "TOPIC", "ARCHIVE"].map(|column| head.find(column).unwrap());
        let aligned = |row: &str| {
            begins
                .iter()
                .all(|&at| at == 0 || row.as_bytes()[at - 1] == b' ' && row.as_bytes()[at] != b' ')
        };
        assert!(rows.clone().all(aligned) && rows.count() == promised.len(), "{table}");
    }
    let of = |partition| promised.iter().rev().filter(move |found| found.0 == partition);
    let of = |partition| {
        of(partition).map(|found| found.1.to_string()).collect::<Vec<_>>().join(" and ")
    };
    let words = format!("offsets {} of partition 0, {} of partition 1", of(0), of(1));
    let said = readme().split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(said.contains(&words), "the README does not promise {words}");
    for line in commands(&demo, &["grpcurl", "tierd.v1.Archive/Search"]) {
        let hits = r#".hit | select(.) | [.partition // 0, (.offset // "0" | tonumber)]"#;
        assert_eq!(pairs(&pasted(&format!("{line} | jq -c '{hits}'"))), promised);
        let keys = pasted(&format!("{line} | jq -r '.hit | select(.) | .record.key | @base64d'"));
        assert!(keys.lines().all(|key| readme().contains(&format!("--key {key}"))), "{keys}");
        let ends = pasted(&format!("{line} | jq -c 'select(.end) | .end.complete'"));
        assert_eq!(ends, "true\n");
    }
}

#[test]
fn what_the_demo_says_to_try_works() {
    if peer("grpcurl").is_none() {
        return;
    }
    let demo = Demo::start();
    let mut searched = 0;
    for line in &demo.to_try {
        let line = match line.strip_prefix("tierd ") {
            Some(rest) => format!("{TIERD} {rest}"),
            None => line.clone(),
        };
        let said = pasted(&line);
        assert!(!said.is_empty(), "{line}");
        if line.contains(" search ") {
            assert_eq!(said.lines().count(), promised().len(), "{said}");
            searched += 1;
        }
    }
    assert!(searched == 1 && demo.to_try.len() >= 6, "{:?}", demo.to_try);
}

/// Batches of a search, as a log of their own: archived, its files deleted, and read
/// through the broker by others. What lies between them is gaps, which that broker
/// leads consumers across.
#[test]
fn kafka_clients_read_rebuilt_batches_and_check_their_sums() {
    let Some(python) = peer("python") else { return };
    let bench = archived();
    let prefix = "c-00";
    let search = ["search", "orders", "0", "--key-prefix", prefix, "--order", "oldest"];
    let raw = ["--limit", "0", "--format", "raw"];
    let found = bench.tierd.run(&[&search[..], &raw].concat()).ok().stdout;
    let batches: Vec<_> =
        tierd::archive::batches_in(found.into()).map(|batch| batch.unwrap()).collect();
    // The second life begins where one follows right upon the other: a hole there
    // would be the broker's own to explain.
    let follows = |&at: &usize| batches[at - 1].range().end() == batches[at].range().base();
    let border = (batches.len() / 2..batches.len()).find(follows).expect("two neighbours");
    let (topic, folder) = ("found", tempfile::tempdir().unwrap());
    let mut rebuilt = 0;
    for (id, life) in [&batches[..border], &batches[border..]].into_iter().enumerate() {
        let mut segment = WalWriter::create(folder.path(), topic, 0, id as u64).unwrap();
        for batch in life {
            let header = batch.header();
            rebuilt += usize::from(header.record_count <= header.last_offset_delta);
            segment.append(&batch.to_kafka_batch().unwrap()).unwrap();
        }
        segment.finish().unwrap();
    }
    assert!(rebuilt > 5, "{rebuilt} of {} batches lack records", batches.len());
    let end = batches[border - 1].range().end();
    let life = [Life { topic: topic.to_owned(), partition: 0, from: 1, end }];
    let scene = Scene::set(TIERD, folder.path(), &life, GapPolicy::GoOn).unwrap();

    let prefix: String = prefix.bytes().map(hex).collect();
    let mut wanted = fixture::expected("orders", "read_uncommitted").remove(&0).unwrap();
    wanted.retain(|record| record["key"].as_str().is_some_and(|key| key.starts_with(&prefix)));
    assert!(wanted.len() > batches.len(), "{} records", wanted.len());
    let partition = [(topic.to_owned(), 0)];
    for script in CLIENTS {
        let consumer = Consumer::start(&python, script, &scene, "read_uncommitted", 0, &partition);
        let got = consumer.finish().remove(&partition[0]).unwrap();
        for (got, wanted) in got.iter().zip(&wanted) {
            assert_eq!(got, wanted, "{script}");
        }
        assert_eq!(got.len(), wanted.len(), "{script}");
        println!("{script}: {} records of {} rebuilt batches", got.len(), rebuilt);
    }
    let counts = scene.broker.counts(topic, 0);
    assert!(counts.archive > 0 && counts.errors.is_empty(), "{counts:?}");
}
