//! Batches for the tests of this room.

use bytes::Bytes;

use crate::record::{BatchHeader, CanonicalRecord, CanonicalRecordEntry, Header};

/// A header of an uncompressed batch without a producer.
pub(super) fn header(base: i64, last: i64) -> BatchHeader {
    BatchHeader {
        base_offset: base,
        batch_length: 0,
        partition_leader_epoch: 0,
        crc: 0,
        attributes: 0,
        last_offset_delta: i32::try_from(last - base).unwrap(),
        base_timestamp: 1_700_000_000_000 + base,
        max_timestamp: 1_700_000_000_000 + last,
        producer_id: -1,
        producer_epoch: -1,
        base_sequence: -1,
        record_count: 0,
    }
}

/// The record at `offset`: keyed by it, with a header when it is even.
pub(super) fn entry(offset: i64) -> CanonicalRecordEntry {
    let headers = if offset % 2 == 0 {
        vec![Header { name: Bytes::from("trace"), value: Some(Bytes::from(offset.to_string())) }]
    } else {
        Vec::new()
    };
    CanonicalRecordEntry {
        offset,
        timestamp: 1_700_000_000_000 + offset,
        attributes: 0,
        key: Some(Bytes::from(format!("key-{offset}"))),
        value: Some(Bytes::from(format!("{{\"offset\":{offset},\"city\":\"Berlin\"}}"))),
        headers,
    }
}

/// A batch with `count` records from `base` on.
pub(super) fn data(base: i64, count: i64) -> CanonicalRecord {
    with(header(base, base + count - 1))
}

/// A batch with a record at every offset of `header`.
pub(super) fn with(header: BatchHeader) -> CanonicalRecord {
    let entries = (header.base_offset..=header.last_offset()).map(entry).collect();
    on_the_wire(&CanonicalRecord::from_entries(header, entries).unwrap())
}

/// The same batch, as it comes from a log.
pub(super) fn on_the_wire(batch: &CanonicalRecord) -> CanonicalRecord {
    CanonicalRecord::from_wire(batch.to_kafka_batch().unwrap()).unwrap()
}

/// A batch of a transaction.
pub(super) fn transactional(base: i64, count: i64, producer_id: i64) -> CanonicalRecord {
    let header = header(base, base + count - 1);
    with(BatchHeader { attributes: 0x10, producer_id, producer_epoch: 0, ..header })
}

/// A marker: kind 0 aborts, 1 commits.
pub(super) fn control(offset: i64, producer_id: i64, kind: i16) -> CanonicalRecord {
    let mut key = vec![0, 0];
    key.extend_from_slice(&kind.to_be_bytes());
    let entry = CanonicalRecordEntry {
        key: Some(Bytes::from(key)),
        value: Some(Bytes::from_static(&[0, 0, 0, 0, 0, 0])),
        headers: Vec::new(),
        ..entry(offset)
    };
    let header =
        BatchHeader { attributes: 0x30, producer_id, producer_epoch: 0, ..header(offset, offset) };
    on_the_wire(&CanonicalRecord::from_entries(header, vec![entry]).unwrap())
}
