//! Kafka clients of others and the three-phase broker: librdkafka and aiokafka read
//! a log whose old part lies in the archive, record by record, and a Bytewax
//! dataflow sums it up.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Lines, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tierd::record::Codec;
use tierd_tests::chronik::{FrameParts, Style, WalWriter, sample_batch};
use tierd_tests::fixture;
use tierd_tests::three_phase::scene::{Life, Scene, Stop};
use tierd_tests::three_phase::{GapPolicy, ledger};

use crate::{TIERD, output, peer};

pub const CLIENTS: [&str; 2] = ["consume_librdkafka.py", "consume_aiokafka.py"];
const ISOLATIONS: [&str; 2] = ["read_uncommitted", "read_committed"];
/// For this topic the broker of the fixtures answered with both of two overlapping
/// batches; tierd serves the chain.
const OVERLAPPING: &str = "clicks.日本_1";
/// Kafka's number for an archive that does not answer; consumers ask again.
const STORAGE_ERROR: i16 = 56;
/// Records after which a consumer pauses: in the middle of every phase 3.
const PAUSE_AFTER: usize = 40;
/// Looks, 50 ms apart, before an error that does not come is given up.
const LOOKS_MAX: u32 = 600;

/// Records by partition, as the lines of `expected/` write them.
pub type Records = BTreeMap<(String, i32), Vec<Value>>;

fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("peers")
}

/// A consumer under way; killed when dropped.
pub struct Consumer {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    records: Records,
}

impl Consumer {
    pub fn start(
        python: &Path,
        script: &str,
        scene: &Scene,
        isolation: &str,
        pause_after: usize,
        partitions: &[(String, i32)],
    ) -> Self {
        let mut child = Command::new(python)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .arg(scripts().join(script))
            .args([&scene.broker.bootstrap(), isolation, &pause_after.to_string()])
            .args(partitions.iter().map(|(topic, partition)| format!("{topic}/{partition}")))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines, records: Records::new() }
    }

    /// Reads on until it pauses, or to its end. Whether it paused.
    fn read_on(&mut self) -> bool {
        for line in self.lines.by_ref() {
            let line = line.unwrap();
            if line == "paused" {
                return true;
            }
            let mut record: Value = serde_json::from_str(&line).unwrap();
            let topic = record.as_object_mut().unwrap().remove("topic").unwrap();
            let partition = record["partition"].as_i64().unwrap() as i32;
            let key = (topic.as_str().unwrap().to_owned(), partition);
            self.records.entry(key).or_default().push(record);
        }
        false
    }

    fn go_on(&mut self) {
        self.child.stdin.as_mut().unwrap().write_all(b"go on\n").unwrap();
    }

    /// Reads to its end, which must be a good one.
    pub fn finish(mut self) -> Records {
        assert!(!self.read_on());
        assert!(self.child.wait().unwrap().success());
        std::mem::take(&mut self.records)
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        // It may have ended by itself; either way it is reaped.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the clients must get: what one got from the real broker, and of the
/// overlapping topic the chain.
fn expected(isolation: &str) -> Records {
    let mut wanted = Records::new();
    for (topic, partition) in fixture::batches().into_keys() {
        let records = if topic == OVERLAPPING {
            chain_of_the_overlapping_topic()
        } else {
            fixture::expected(&topic, isolation).remove(&partition).unwrap()
        };
        wanted.insert((topic, partition), records);
    }
    wanted
}

/// The newest batch at each offset, with the records that the broker itself decoded
/// when it wrote them.
fn chain_of_the_overlapping_topic() -> Vec<Value> {
    let partition = (OVERLAPPING.to_owned(), 0);
    let chain = fixture::served(&fixture::batches()[&partition]);
    let bytes = std::fs::read(fixture::wal().join(OVERLAPPING).join("0/wal_0_0.log")).unwrap();
    let (mut rest, mut frames) = (&bytes[..], BTreeMap::new());
    while !rest.is_empty() {
        let (frame, len) = FrameParts::decode(rest).unwrap();
        let digest = Sha256::digest(frame.options[2].as_ref().unwrap());
        frames.insert(hex(&digest), frame);
        rest = &rest[len..];
    }
    let entries = chain.iter().flat_map(|batch| &frames[&batch.sha256].entries);
    let text = |bytes: &Option<bytes::Bytes>| bytes.as_ref().map(|bytes| hex(bytes));
    let records = entries.map(|entry| {
        let headers = entry.headers.iter();
        let headers: Vec<Value> = headers
            .map(|header| json!([String::from_utf8_lossy(&header.name), text(&header.value)]))
            .collect();
        json!({
            "partition": 0, "offset": entry.offset, "timestamp": entry.timestamp,
            "key": text(&entry.key), "value": text(&entry.value), "headers": headers,
        })
    });
    let records: Vec<Value> = records.collect();
    // The chain is a part of what the real client read, with every offset once.
    let read = fixture::expected(OVERLAPPING, "read_committed").remove(&0).unwrap();
    let read: BTreeSet<String> = read.iter().map(Value::to_string).collect();
    assert!(records.iter().all(|record| read.contains(&record.to_string())));
    assert!(records.iter().map(|record| &record["offset"]).eq((0..147).collect::<Vec<_>>().iter()));
    records
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn same(got: &Records, wanted: &Records, case: &str) {
    assert_eq!(got.keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>(), "{case}");
    for (partition, wanted) in wanted {
        let got = &got[partition];
        for (got, wanted) in got.iter().zip(wanted) {
            assert_eq!(got, wanted, "{case} {partition:?}");
        }
        assert_eq!(got.len(), wanted.len(), "{case} {partition:?}");
    }
}

#[test]
fn kafka_clients_read_the_whole_log_through_three_phases() {
    let Some(python) = peer("python") else { return };
    let scene = Scene::of_fixtures(TIERD).unwrap();
    let partitions: Vec<_> = fixture::batches().into_keys().collect();
    for script in CLIENTS {
        for isolation in ISOLATIONS {
            let before: Vec<_> =
                partitions.iter().map(|(t, p)| scene.broker.counts(t, *p)).collect();
            let got = Consumer::start(&python, script, &scene, isolation, 0, &partitions).finish();
            same(&got, &expected(isolation), &format!("{script} {isolation}"));
            for ((topic, partition), before) in partitions.iter().zip(before) {
                let counts = scene.broker.counts(topic, *partition);
                let archived = counts.archive - before.archive;
                assert!(archived > 0, "{script} {isolation}: {topic}-{partition} without phase 3");
                assert!(counts.errors.is_empty(), "{topic}-{partition}: {:?}", counts.errors);
                println!(
                    "{script} {isolation} {topic}-{partition}: {} records; reads: {} buffer, {} \
                     WAL, {archived} archive",
                    got[&(topic.clone(), *partition)].len(),
                    counts.buffer - before.buffer,
                    counts.wal - before.wal,
                );
            }
        }
    }
    println!("{:?}", scene.broker.archive_counters());
}

#[test]
fn a_consumer_waits_for_an_archive_that_is_away_and_skips_nothing() {
    let Some(python) = peer("python") else { return };
    let mut scene = Scene::of_fixtures(TIERD).unwrap();
    let partitions = [("busy".to_owned(), 0), ("orders".to_owned(), 0)];
    for (script, how) in CLIENTS.into_iter().zip([Stop::Kill, Stop::Terminate]) {
        for isolation in ISOLATIONS {
            let errors = |scene: &Scene| {
                let all = partitions.iter().map(|(t, p)| scene.broker.counts(t, *p).errors);
                all.map(|errors| errors.get(&STORAGE_ERROR).copied().unwrap_or(0)).sum::<u64>()
            };
            let before = errors(&scene);
            let mut consumer =
                Consumer::start(&python, script, &scene, isolation, PAUSE_AFTER, &partitions);
            assert!(consumer.read_on());
            scene.stop(how);
            consumer.go_on();
            let mut looks = 0;
            while errors(&scene) < before + 3 {
                looks += 1;
                assert!(looks < LOOKS_MAX, "{script}: no error was answered");
                std::thread::sleep(Duration::from_millis(50));
            }
            scene.start();
            let got = consumer.finish();
            let mut wanted = expected(isolation);
            wanted.retain(|partition, _| partitions.contains(partition));
            same(&got, &wanted, &format!("{script} {isolation} {how:?}"));
            println!("{script} {isolation}: {} errors on the way", errors(&scene) - before);
        }
    }
}

#[test]
fn kafka_clients_drop_archived_records_whose_transaction_was_aborted_in_the_wal() {
    let Some(python) = peer("python") else { return };
    let wal = tempfile::tempdir().unwrap();
    let life = [ledger::write(wal.path()).unwrap()];
    let scene = Scene::set(TIERD, wal.path(), &life, GapPolicy::Refuse).unwrap();
    let partition = (ledger::TOPIC.to_owned(), 0);
    for script in CLIENTS {
        for isolation in ISOLATIONS {
            let partitions = std::slice::from_ref(&partition);
            let got = Consumer::start(&python, script, &scene, isolation, 0, partitions).finish();
            let offsets = got[&partition].iter().map(|record| record["offset"].as_i64().unwrap());
            let wanted: &[i64] = match isolation {
                "read_committed" => &ledger::COMMITTED,
                _ => &ledger::UNCOMMITTED,
            };
            assert_eq!(offsets.collect::<Vec<_>>(), wanted, "{script} {isolation}");
        }
    }
    assert!(scene.broker.counts(ledger::TOPIC, 0).archive > 0);
}

/// The archive serves verbatim, so what a producer or a broker got wrong is the
/// consumer's to see; and these consumers do look.
#[test]
fn kafka_clients_notice_a_batch_whose_checksum_was_wrong_in_the_wal() {
    let Some(python) = peer("python") else { return };
    let wal = tempfile::tempdir().unwrap();
    let [good, fine, newest] =
        [0, 5, 10].map(|base| sample_batch(base, 5, 30, Codec::None).unwrap());
    let mut wrong = fine.to_vec();
    *wrong.last_mut().unwrap() ^= 1;
    let mut frame = FrameParts::of_batch("wrong", 0, &fine, Style::CURRENT).unwrap();
    frame.options[2] = Some(wrong.into());
    let mut old = WalWriter::create(wal.path(), "wrong", 0, 0).unwrap();
    old.append(&good).unwrap();
    old.append_raw(&frame.encode()).unwrap();
    old.finish().unwrap();
    let mut new = WalWriter::create(wal.path(), "wrong", 0, 1).unwrap();
    new.append(&newest).unwrap();
    new.finish().unwrap();
    let life = [Life { topic: "wrong".to_owned(), partition: 0, from: 1, end: 10 }];
    let scene = Scene::set(TIERD, wal.path(), &life, GapPolicy::Refuse).unwrap();
    for script in CLIENTS {
        let ended = Command::new(&python)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .arg(scripts().join(script))
            .args([&scene.broker.bootstrap(), "read_committed", "0", "wrong/0"])
            .output()
            .unwrap();
        let complaint = String::from_utf8_lossy(&ended.stderr);
        assert!(!ended.status.success() && complaint.contains("CRC"), "{script}: {complaint}");
        // What stands before it may have been handed out, nothing of it.
        let records = String::from_utf8_lossy(&ended.stdout).lines().count();
        assert!(records <= 5, "{script}: {records}");
    }
}

#[test]
fn kafka_clients_find_offsets_by_time_in_the_archive_and_behind_it() {
    let Some(python) = peer("python") else { return };
    let scene = Scene::of_fixtures(TIERD).unwrap();
    let mut local = 0;
    // With the ends of their archives.
    for (topic, partition, end) in [("orders", 0, 499), ("orders", 1, 461), ("busy", 0, 960)] {
        let records = fixture::expected(topic, "read_uncommitted").remove(&partition).unwrap();
        let pair = |record: &Value| {
            (record["timestamp"].as_i64().unwrap(), record["offset"].as_i64().unwrap())
        };
        let pairs: Vec<(i64, i64)> = records.iter().map(pair).collect();
        let disorder = pairs.windows(2).filter(|two| two[0].0 > two[1].0).count();
        assert!(disorder > 0, "{topic}-{partition} is in order of time");
        // Times of records all over the log, and around them; before and after all.
        let step = pairs.len() / 8;
        let near = pairs.iter().step_by(step).flat_map(|(time, _)| [time - 1, *time, time + 1]);
        let greatest = pairs.iter().map(|(time, _)| *time).max().unwrap();
        let times: Vec<i64> = near.chain([0, greatest, greatest + 1]).collect();
        let first = |wanted: &i64| {
            pairs.iter().find(|(time, _)| time >= wanted).map_or(-1, |(_, offset)| *offset)
        };
        let mut wanted: Vec<i64> = times.iter().map(first).collect();
        wanted.push(first(&greatest));
        let archived = wanted.iter().filter(|offset| (0..end).contains(*offset)).count();
        assert!(archived > 10 && wanted.contains(&-1), "{wanted:?}");
        local += wanted.iter().filter(|offset| **offset >= end).count();
        for client in ["librdkafka", "aiokafka"] {
            let said = output(
                Command::new(&python)
                    .arg(scripts().join("offsets_by_time.py"))
                    .args([client, &scene.broker.bootstrap(), topic, &partition.to_string()])
                    .args(times.iter().map(ToString::to_string)),
            );
            let got: Vec<i64> = serde_json::from_str(&said).unwrap();
            assert_eq!(got[..times.len()], wanted[..times.len()], "{client} {topic}-{partition}");
            // librdkafka alone can ask for the record with the greatest timestamp.
            assert!(client == "aiokafka" || got[times.len()..] == wanted[times.len()..]);
            println!("{client} {topic}-{partition}: {} offsets by time", times.len());
        }
    }
    assert!(local > 0, "no time led behind the archive");
}

/// Records, those without a value, and the sum of amounts in cents.
type Totals = BTreeMap<String, (u64, u64, i64)>;

/// The dataflow's work by hand, over what a client got from the real broker.
fn totals(topic: &str, isolation: &str) -> Totals {
    let mut totals = Totals::new();
    for record in fixture::expected(topic, isolation).into_values().flatten() {
        let key = record["key"].as_str().map_or("null".to_owned(), |key| format!("key {key}"));
        let total = totals.entry(key).or_default();
        total.0 += 1;
        let digits = record["value"].as_str().unwrap_or_default();
        if digits.is_empty() {
            total.1 += 1;
            continue;
        }
        let pairs = (0..digits.len()).step_by(2).map(|at| &digits[at..at + 2]);
        let value: Vec<u8> = pairs.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect();
        let value: Value = serde_json::from_slice(&value).unwrap();
        total.2 += (value["amount"].as_f64().unwrap_or(0.0) * 100.0).round() as i64;
    }
    totals
}

#[test]
fn a_bytewax_dataflow_sums_up_a_topic_whose_history_is_archived() {
    let Some(python) = peer("python") else { return };
    let scene = Scene::of_fixtures(TIERD).unwrap();
    for topic in ["orders", "payments", "busy"] {
        for isolation in ISOLATIONS {
            let sink = tempfile::NamedTempFile::new().unwrap();
            output(
                Command::new(&python)
                    .args(["-m", "bytewax.run", "aggregate_bytewax:flow"])
                    .current_dir(scripts())
                    .env("PYTHONDONTWRITEBYTECODE", "1")
                    .env("BOOTSTRAP", scene.broker.bootstrap())
                    .env("ISOLATION", isolation)
                    .env("TOPIC", topic)
                    .env("OUTPUT", sink.path()),
            );
            let lines = std::fs::read_to_string(sink.path()).unwrap();
            let pairs = lines.lines().map(|line| serde_json::from_str(line).unwrap());
            let got: Vec<(String, (u64, u64, i64))> = pairs.collect();
            let keys = got.len();
            let got: Totals = got.into_iter().collect();
            assert_eq!(got.len(), keys, "a key is summed up once");
            assert_eq!(got, totals(topic, isolation), "{topic} {isolation}");
            let counts = scene.broker.counts(topic, 0);
            assert!(counts.archive > 0 && counts.errors.is_empty(), "{counts:?}");
            let all = got.values().fold((0, 0, 0), |a, b| (a.0 + b.0, a.1 + b.1, a.2 + b.2));
            println!(
                "bytewax {topic} {isolation}: {keys} keys, {} records, {} without a value, sum \
                 {}; {} reads from the archive",
                all.0, all.1, all.2, counts.archive
            );
        }
    }
}
