//! A WAL whose transactions cross the border between the broker's two lives: one is
//! aborted behind it, one is committed behind it, one stays open. One more was
//! aborted before it.

use std::path::Path;

use anyhow::Result;
use bytes::Bytes;
use tierd::record::{CanonicalRecord, Codec};

use super::scene::Life;
use crate::chronik::{WalWriter, sample_batch};

/// The topic; it has one partition.
pub const TOPIC: &str = "ledger";
/// The last stable offset: where the open transaction begins.
pub const STABLE: i64 = 14;
/// The high watermark.
pub const END: i64 = 16;
/// Producer, first offset and marker of what was aborted.
pub const ABORTED: [(i64, i64, i64); 2] = [(7, 0, 10), (8, 5, 7)];
/// Offsets of the records of committed transactions and of none.
pub const COMMITTED: [i64; 6] = [3, 4, 8, 9, 11, 12];
/// Offsets of all records but control records.
pub const UNCOMMITTED: [i64; 13] = [0, 1, 2, 3, 4, 5, 6, 8, 9, 11, 12, 14, 15];

const TRANSACTIONAL: i16 = 0x10;
const CONTROL: i16 = 0x20;

/// Writes it below `wal`.
///
/// # Errors
/// When the file system refuses.
pub fn write(wal: &Path) -> Result<Life> {
    let old = [
        transactional(0, 3, 7)?,
        plain(3, 2)?,
        transactional(5, 2, 8)?,
        marker(7, 8, false)?,
        transactional(8, 2, 9)?,
    ];
    let new =
        [marker(10, 7, false)?, plain(11, 2)?, marker(13, 9, true)?, transactional(14, 2, 7)?];
    for (id, batches) in [&old[..], &new[..]].into_iter().enumerate() {
        let mut writer = WalWriter::create(wal, TOPIC, 0, id as u64)?;
        for batch in batches {
            writer.append(batch)?;
        }
        writer.finish()?;
    }
    Ok(Life { topic: TOPIC.to_owned(), partition: 0, from: 1, end: 10 })
}

fn plain(base: i64, count: i32) -> Result<Bytes> {
    sample_batch(base, count, 30, Codec::None)
}

fn transactional(base: i64, count: i32, producer: i64) -> Result<Bytes> {
    of_producer(plain(base, count)?, producer, TRANSACTIONAL, None)
}

/// The marker that ends a transaction.
fn marker(base: i64, producer: i64, commits: bool) -> Result<Bytes> {
    let key = [0, 0, 0, u8::from(commits)];
    of_producer(plain(base, 1)?, producer, TRANSACTIONAL | CONTROL, Some(key))
}

fn of_producer(wire: Bytes, producer: i64, attributes: i16, key: Option<[u8; 4]>) -> Result<Bytes> {
    let record = CanonicalRecord::from_wire(wire)?;
    let mut header = *record.header();
    header.attributes |= attributes;
    header.producer_id = producer;
    header.producer_epoch = 0;
    let mut entries = record.decode()?;
    if let Some(key) = key {
        entries[0].key = Some(Bytes::copy_from_slice(&key));
        entries[0].value = Some(Bytes::from_static(&[0; 6]));
    }
    Ok(CanonicalRecord::from_entries(header, entries)?.to_kafka_batch()?)
}
