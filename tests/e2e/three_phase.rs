//! A broker whose old WAL files are gone reads through tierd, over the Kafka
//! protocol, and answers as if it had them. Real Kafka clients do the same in the
//! peer suite.

use std::path::Path;

use bytes::Bytes;
use kafka_protocol::messages::fetch_response::PartitionData;
use sha2::{Digest, Sha256};
use tierd::record::Codec;
use tierd_client::{GapKind, OffsetRange};
use tierd_tests::chronik::{WalWriter, sample_batch};
use tierd_tests::fixture::{self, Batch};
use tierd_tests::three_phase::client::KafkaClient;
use tierd_tests::three_phase::ledger::{self, ABORTED, END, STABLE, TOPIC};
use tierd_tests::three_phase::scene::{Life, Scene, Stop};
use tierd_tests::three_phase::{Counts, GapPolicy};

use crate::TIERD;

const STORAGE_ERROR: i16 = 56;
const OFFSET_OUT_OF_RANGE: i16 = 1;

/// Base, last and SHA-256 of every batch in `wire`.
fn rows_of(mut wire: &[u8]) -> Vec<(i64, i64, String)> {
    let mut found = Vec::new();
    while !wire.is_empty() {
        let base = i64::from_be_bytes(wire[0..8].try_into().unwrap());
        let len = 12 + i32::from_be_bytes(wire[8..12].try_into().unwrap()) as usize;
        let delta = i32::from_be_bytes(wire[23..27].try_into().unwrap());
        let digest = Sha256::digest(&wire[..len]);
        let hex = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        found.push((base, base + i64::from(delta), hex));
        wire = &wire[len..];
    }
    found
}

fn rows(batches: &[Batch]) -> Vec<(i64, i64, String)> {
    batches.iter().map(|b| (b.base, b.last, b.sha256.clone())).collect()
}

fn records(answer: &PartitionData) -> &[u8] {
    answer.records.as_deref().unwrap_or_default()
}

/// Reads a partition from 0 to `end`, answer by answer.
fn read_all(
    client: &mut KafkaClient,
    (topic, partition): (&str, i32),
    end: i64,
    committed: bool,
    max_bytes: i32,
) -> Vec<(i64, i64, String)> {
    let (mut offset, mut found) = (0, Vec::new());
    while offset < end {
        let answer = client.fetch(topic, partition, offset, committed, max_bytes).unwrap();
        assert_eq!(answer.error_code, 0, "{topic}-{partition} at {offset}");
        assert_eq!(answer.aborted_transactions.is_some(), committed, "at {offset}");
        let got = rows_of(records(&answer));
        let last = got.last().unwrap_or_else(|| panic!("{topic}-{partition} ends at {offset}"));
        offset = last.1 + 1;
        found.extend(got);
    }
    found
}

#[test]
fn the_three_phases_together_are_the_log() {
    let scene = Scene::of_fixtures(TIERD).unwrap();
    let mut client = KafkaClient::connect(&scene.broker.bootstrap()).unwrap();
    let (mut from_buffer, mut from_wal) = (0, 0);
    for ((topic, partition), batches) in fixture::batches() {
        let wanted = rows(&fixture::served(&batches));
        let end = wanted.last().unwrap().1 + 1;
        for (committed, max_bytes) in [(false, 1), (true, 1), (false, 1 << 20), (true, 20_000)] {
            let partition = (&*topic, partition);
            let got = read_all(&mut client, partition, end, committed, max_bytes);
            assert_eq!(got, wanted, "{partition:?} {committed} {max_bytes}");
        }
        let Counts { buffer, wal, archive, fallbacks, errors, .. } =
            scene.broker.counts(&topic, partition);
        assert!(archive > 0 && fallbacks == archive, "{topic}: {archive} of {fallbacks}");
        // Of the topic with overlaps nothing is left.
        assert_eq!(buffer + wal > 0, !topic.starts_with("clicks"), "{topic}");
        (from_buffer, from_wal) = (from_buffer + buffer, from_wal + wal);
        assert!(errors.is_empty(), "{errors:?}");
        let beyond = client.fetch(&topic, partition, end + 1, false, 1).unwrap();
        assert_eq!(beyond.error_code, OFFSET_OUT_OF_RANGE);
    }
    assert!(from_buffer > 0 && from_wal > 0, "{from_buffer} {from_wal}");
    let counters = scene.broker.archive_counters();
    assert_eq!((counters.fallbacks, counters.errors), (counters.hits, 0));
}

#[test]
fn an_archive_that_is_away_is_a_retriable_error_and_never_a_skip() {
    let mut scene = Scene::of_fixtures(TIERD).unwrap();
    let mut client = KafkaClient::connect(&scene.broker.bootstrap()).unwrap();
    for how in [Stop::Terminate, Stop::Kill] {
        scene.stop(how);
        for committed in [false, true] {
            for offset in [0, 5, 498] {
                let away = client.fetch("orders", 0, offset, committed, 1 << 20).unwrap();
                assert_eq!(away.error_code, STORAGE_ERROR, "at {offset}");
                assert_eq!(records(&away), b"", "at {offset}");
            }
            let local = client.fetch("orders", 0, 499, committed, 1 << 20).unwrap();
            assert_eq!(rows_of(records(&local))[0].0, 499);
            // One partition's error is none of another's.
            let both = [("orders", 1, 0), ("payments", 0, 29)];
            let both = client.fetch_many(&both, committed, 1 << 20).unwrap();
            assert_eq!((both[0].error_code, both[1].error_code), (STORAGE_ERROR, 0));
            assert_eq!(rows_of(records(&both[1]))[0].0, 29);
        }
        scene.start();
        let back = client.fetch("orders", 0, 5, true, 1 << 20).unwrap();
        assert_eq!((back.error_code, rows_of(records(&back))[0].0), (0, 0));
    }
    let errors = scene.broker.counts("orders", 0).errors;
    assert_eq!(errors, [(STORAGE_ERROR, 12)].into());
}

#[test]
fn several_partitions_share_one_budget_and_one_excused_batch() {
    let scene = Scene::of_fixtures(TIERD).unwrap();
    let mut client = KafkaClient::connect(&scene.broker.bootstrap()).unwrap();
    let asked = [("orders", 0, 0), ("busy", 0, 0), ("payments", 0, 0)];
    for committed in [false, true] {
        let tight = client.fetch_many(&asked, committed, 1).unwrap();
        let sent: Vec<usize> = tight.iter().map(|one| rows_of(records(one)).len()).collect();
        assert_eq!(sent, [1, 0, 0], "only the first is sent whatever its size");
        // And from the buffer and the WAL.
        let local = [("busy", 0, 1438), ("orders", 0, 499), ("payments", 0, 29)];
        let tight = client.fetch_many(&local, committed, 1).unwrap();
        let sent: Vec<usize> = tight.iter().map(|one| rows_of(records(one)).len()).collect();
        assert_eq!(sent, [1, 0, 0], "only the first is sent whatever its size");
        let wide = client.fetch_many(&asked, committed, 1 << 20).unwrap();
        assert!(wide.iter().all(|one| one.error_code == 0 && !records(one).is_empty()));
    }
}

fn segment(wal: &Path, topic: &str, id: u64, batches: &[Bytes]) {
    let mut writer = WalWriter::create(wal, topic, 0, id).unwrap();
    for batch in batches {
        writer.append(batch).unwrap();
    }
    writer.finish().unwrap();
}

fn plain(base: i64, count: i32) -> Bytes {
    sample_batch(base, count, 30, Codec::None).unwrap()
}

#[test]
fn a_declared_gap_stops_consumers_or_is_crossed_with_a_note() {
    let wal = tempfile::tempdir().unwrap();
    segment(wal.path(), "holey", 0, &[plain(0, 5), plain(10, 5)]);
    segment(wal.path(), "holey", 1, &[plain(15, 5)]);
    let life = [Life { topic: "holey".to_owned(), partition: 0, from: 1, end: 15 }];
    for policy in [GapPolicy::Refuse, GapPolicy::GoOn] {
        let scene = Scene::set(TIERD, wal.path(), &life, policy).unwrap();
        let mut client = KafkaClient::connect(&scene.broker.bootstrap()).unwrap();
        let before = client.fetch("holey", 0, 0, false, 1 << 20).unwrap();
        assert_eq!(rows_of(records(&before)).len(), 1, "the answer ends before the gap");
        for (committed, offset) in [(false, 5), (true, 9)] {
            let inside = client.fetch("holey", 0, offset, committed, 1 << 20).unwrap();
            if policy == GapPolicy::Refuse {
                assert_eq!((inside.error_code, records(&inside)), (STORAGE_ERROR, &b""[..]));
            } else {
                assert_eq!((inside.error_code, rows_of(records(&inside))[0].0), (0, 10));
            }
        }
        let gaps = scene.broker.counts("holey", 0).gaps;
        assert_eq!(gaps.len(), if policy == GapPolicy::GoOn { 2 } else { 0 });
        for gap in gaps {
            assert_eq!(
                (gap.range, gap.kind),
                (OffsetRange { first: 5, last: 9 }, GapKind::Missing)
            );
        }
    }
}

#[test]
fn a_transaction_that_ends_in_the_wal_is_listed_with_its_archived_records() {
    let wal = tempfile::tempdir().unwrap();
    let life = [ledger::write(wal.path()).unwrap()];
    let scene = Scene::set(TIERD, wal.path(), &life, GapPolicy::Refuse).unwrap();
    let mut client = KafkaClient::connect(&scene.broker.bootstrap()).unwrap();
    let got = read_all(&mut client, (TOPIC, 0), STABLE, true, 1);
    assert_eq!(got.iter().map(|row| row.0).collect::<Vec<_>>(), [0, 3, 5, 7, 8, 10, 11, 13]);
    for offset in 0..STABLE {
        for max_bytes in [1, 1 << 20] {
            let answer = client.fetch(TOPIC, 0, offset, true, max_bytes).unwrap();
            let got = rows_of(records(&answer));
            let (first, last) = (got[0].0, got[got.len() - 1].1);
            let among = ABORTED.iter().filter(|(_, from, to)| *from <= last && first <= *to);
            let wanted: Vec<(i64, i64)> = among.map(|(id, from, _)| (*id, *from)).collect();
            let listed = answer.aborted_transactions.unwrap();
            let listed: Vec<_> = listed.iter().map(|a| (a.producer_id.0, a.first_offset)).collect();
            assert_eq!(listed, wanted, "at {offset} up to {last}");
        }
    }
    let stable = client.fetch(TOPIC, 0, STABLE, true, 1 << 20).unwrap();
    assert_eq!((stable.error_code, records(&stable)), (0, &b""[..]), "open: nothing to read");
    assert_eq!((stable.last_stable_offset, stable.high_watermark), (STABLE, END));
    let dirty = client.fetch(TOPIC, 0, STABLE, false, 1 << 20).unwrap();
    assert_eq!(rows_of(records(&dirty))[0].0, STABLE);
    assert!(dirty.aborted_transactions.is_none());
}
