//! The fixtures: WALs that a real broker wrote, what an independent reader found
//! in them, and what a real Kafka client read from that broker.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The folder of the fixtures.
#[must_use]
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/chronik-2.10.4")
}

/// The WAL directory of the fixtures.
#[must_use]
pub fn wal() -> PathBuf {
    folder().join("wal")
}

/// One line of `batches.tsv`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Segment id and line, which is WAL order.
    pub order: (u64, usize),
    /// First offset.
    pub base: i64,
    /// Last offset.
    pub last: i64,
    /// Bytes on the wire.
    pub length: usize,
    /// SHA-256 of them, in hex.
    pub sha256: String,
}

/// The batches of `batches.tsv` by partition, in file order.
#[must_use]
pub fn batches() -> BTreeMap<(String, i32), Vec<Batch>> {
    let text =
        std::fs::read_to_string(folder().join("batches.tsv")).expect("the fixtures are there");
    let mut found: BTreeMap<_, Vec<Batch>> = BTreeMap::new();
    for (number, line) in text.lines().enumerate().skip(1) {
        let cells: Vec<&str> = line.split('\t').collect();
        let number_at = |index: usize| cells[index].parse::<i64>().expect("a number");
        let batch = Batch {
            order: (cells[2].parse().expect("a segment id"), number),
            base: number_at(3),
            last: number_at(4),
            length: cells[9].parse().expect("a length"),
            sha256: cells[10].to_owned(),
        };
        let partition = cells[1].parse().expect("a partition");
        found.entry((cells[0].to_owned(), partition)).or_default().push(batch);
    }
    assert_eq!(found.len(), 5, "the fixtures hold five partitions");
    found
}

/// What a Kafka client read of `topic`, by partition: the lines of
/// `expected/TOPIC.ISOLATION.jsonl`, keys and values in hex.
#[must_use]
pub fn expected(topic: &str, isolation: &str) -> BTreeMap<i32, Vec<serde_json::Value>> {
    let file = folder().join(format!("expected/{topic}.{isolation}.jsonl"));
    let text = std::fs::read_to_string(file).expect("the fixtures are there");
    let mut found: BTreeMap<i32, Vec<serde_json::Value>> = BTreeMap::new();
    for line in text.lines() {
        let record: serde_json::Value = serde_json::from_str(line).expect("JSON");
        let partition = record["partition"].as_i64().expect("a partition") as i32;
        found.entry(partition).or_default().push(record);
    }
    found
}

/// The rule of the served log, by brute force: at each offset the newest batch
/// that holds it, then on behind that batch.
#[must_use]
pub fn served(batches: &[Batch]) -> Vec<Batch> {
    let end = batches.iter().map(|batch| batch.last).max().unwrap_or(-1);
    let mut chain = Vec::new();
    let mut next = 0;
    while next <= end {
        let holds = |batch: &&Batch| batch.base <= next && next <= batch.last;
        match batches.iter().filter(holds).max_by_key(|batch| batch.order) {
            Some(newest) => {
                chain.push(newest.clone());
                next = newest.last + 1;
            }
            None => next += 1,
        }
    }
    chain
}
