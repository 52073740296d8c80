//! A read_committed consumer as Kafka's own client is: it drops the records of a
//! producer from the first offset of an aborted transaction on, until it meets that
//! producer's abort marker. It reads batch headers by hand.

use std::collections::{BTreeSet, HashSet};

use bytes::Bytes;
use tierd::fetch::AbortedTransaction;

use super::log::{Log, Told};

const TRANSACTIONAL: i16 = 0x10;
const CONTROL: i16 = 0x20;

fn i64_at(wire: &[u8], at: usize) -> i64 {
    i64::from_be_bytes(wire[at..at + 8].try_into().unwrap())
}

fn i32_at(wire: &[u8], at: usize) -> i32 {
    i32::from_be_bytes(wire[at..at + 4].try_into().unwrap())
}

/// The batches of an answer, cut by their length fields.
pub(super) fn batches(wire: &[u8]) -> Vec<Bytes> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < wire.len() {
        let end = at + 12 + usize::try_from(i32_at(wire, at + 8)).unwrap();
        found.push(Bytes::copy_from_slice(&wire[at..end]));
        at = end;
    }
    found
}

/// The records that the client gives to its user of one answer, from `position` on.
/// What is in a batch is looked up in `log`, by its bytes.
pub(super) fn consume(
    log: &Log,
    wire: &[u8],
    aborted: &[AbortedTransaction],
    position: i64,
) -> Vec<Told> {
    let mut waiting: BTreeSet<(i64, i64)> =
        aborted.iter().map(|aborted| (aborted.first_offset, aborted.producer_id)).collect();
    let mut dropped: HashSet<i64> = HashSet::new();
    let mut records = Vec::new();
    for batch in batches(wire) {
        let last = i64_at(&batch, 0) + i64::from(i32_at(&batch, 23));
        let attributes = i16::from_be_bytes(batch[21..23].try_into().unwrap());
        let producer = i64_at(&batch, 43);
        while let Some((first, producer)) = waiting.first().copied()
            && first <= last
        {
            waiting.pop_first();
            dropped.insert(producer);
        }
        let found = log.wal.iter().find(|written| written.wire == batch).unwrap();
        if attributes & CONTROL != 0 {
            // A marker's key: version, then type; 0 aborts.
            let key = found.records[0].key.as_ref().unwrap();
            if key[2..4] == [0, 0] {
                dropped.remove(&producer);
            }
            continue;
        }
        if attributes & TRANSACTIONAL != 0 && dropped.contains(&producer) {
            continue;
        }
        records.extend(found.records.iter().filter(|record| record.offset >= position).cloned());
    }
    records
}
