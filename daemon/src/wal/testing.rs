//! Owns making Chronik frames for the unit tests of this room. The full writer,
//! checked against what a broker wrote, is in the tests' harness.

use std::io::Cursor;

use bytes::Bytes;

use super::scan::scan_chronik;
use super::window::Window;
use super::{SegmentScan, chronik};
use crate::record::{
    BatchHeader, CanonicalRecord, CanonicalRecordEntry, Header, TopicName, TopicPartition,
};

/// A whole frame from the WAL specification, made by another implementation:
/// topic `t`, partition 3, offset 5, one record.
pub(super) const VECTOR: &str = "\
7eca0200fa0000008bb342ba01007403000000db0000000500000000000000ffffffffffffffffffffffffffffffffffff\
000000000000000000000068e5cf8b0100000068e5cf8b010000010000000000000005000000000000000068e5cf8b0100\
000101000000000000006b0101000000000000007601000000000000000100000000000000680000010c00000000000000\
16000000026b0276020268010001490000000000000000000000000000050000003dffffffff02ecc46c11000000000000\
0000018bcfe568000000018bcfe56800ffffffffffffffffffffffffffff0000000116000000026b027602026801050000\
0000000000050000000000000001000000";

/// The partition of [`VECTOR`].
pub(super) fn tp() -> TopicPartition {
    TopicPartition::new(TopicName::new("t").unwrap(), 3).unwrap()
}

pub(super) fn vector() -> Vec<u8> {
    let digit = |d: u8| (d as char).to_digit(16).unwrap() as u8;
    VECTOR.as_bytes().chunks(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}

/// A batch of `values` at `base`, the second value under a key, with a header.
pub(super) fn batch(base: i64, values: &[&[u8]]) -> Bytes {
    let header = BatchHeader {
        base_offset: base,
        batch_length: 0,
        partition_leader_epoch: -1,
        crc: 0,
        attributes: 0,
        last_offset_delta: values.len() as i32 - 1,
        base_timestamp: 1_700_000_000_000,
        max_timestamp: 1_700_000_000_000,
        producer_id: -1,
        producer_epoch: -1,
        base_sequence: -1,
        record_count: 0,
    };
    CanonicalRecord::from_entries(header, entries(base, values)).unwrap().to_kafka_batch().unwrap()
}

pub(super) fn entries(base: i64, values: &[&[u8]]) -> Vec<CanonicalRecordEntry> {
    let entry = |(i, value): (usize, &&[u8])| CanonicalRecordEntry {
        offset: base + i as i64,
        timestamp: 1_700_000_000_000,
        attributes: 0,
        key: (i == 1).then(|| Bytes::from_static(b"key")),
        value: Some(Bytes::copy_from_slice(value)),
        headers: (i == 1)
            .then(|| Header { name: Bytes::from_static(b"h"), value: None })
            .into_iter()
            .collect(),
    };
    values.iter().enumerate().map(entry).collect()
}

/// A payload, field by field.
#[derive(Clone, Debug)]
pub(super) struct Payload {
    pub(super) base: i64,
    pub(super) entries: Vec<CanonicalRecordEntry>,
    /// Fields 13 to 15; the outer `None` leaves the field out with its tag.
    pub(super) section: Option<Option<Bytes>>,
    pub(super) legacy: Option<Option<Bytes>>,
    pub(super) batch: Option<Option<Bytes>>,
}

impl Payload {
    /// What v2.2.0 and later write for `batch`.
    pub(super) fn of(batch: &Bytes) -> Self {
        let record = CanonicalRecord::from_wire(batch.clone()).unwrap();
        Self {
            base: record.header().base_offset,
            entries: record.decode().unwrap(),
            section: Some(Some(batch.slice(61..))),
            legacy: Some(None),
            batch: Some(Some(batch.clone())),
        }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = self.base.to_le_bytes().to_vec();
        out.extend((-1_i32).to_le_bytes());
        out.extend((-1_i64).to_le_bytes());
        out.extend((-1_i16).to_le_bytes());
        out.extend((-1_i32).to_le_bytes());
        out.extend([0; 10]);
        out.extend(1_700_000_000_000_i64.to_le_bytes());
        out.extend(1_700_000_000_000_i64.to_le_bytes());
        out.extend((self.entries.len() as u64).to_le_bytes());
        for entry in &self.entries {
            out.extend(entry.offset.to_le_bytes());
            out.extend(entry.timestamp.to_le_bytes());
            option(&mut out, entry.key.as_ref());
            option(&mut out, entry.value.as_ref());
            out.extend((entry.headers.len() as u64).to_le_bytes());
            for header in &entry.headers {
                out.extend((header.name.len() as u64).to_le_bytes());
                out.extend(&header.name);
                option(&mut out, header.value.as_ref());
            }
            out.push(entry.attributes as u8);
        }
        for field in [&self.section, &self.legacy, &self.batch].into_iter().flatten() {
            option(&mut out, field.as_ref());
        }
        out
    }
}

fn option(out: &mut Vec<u8>, value: Option<&Bytes>) {
    out.push(u8::from(value.is_some()));
    if let Some(value) = value {
        out.extend((value.len() as u64).to_le_bytes());
        out.extend(value);
    }
}

/// A frame around `payload`, made for [`tp`]. `extra`: `length` minus topic and
/// payload; 30 adds `trailer`. `zeroed`: the checksum of brokers before v2.4.0.
pub(super) fn frame_with(
    payload: &[u8],
    extra: u32,
    trailer: (i64, i64, i32),
    zeroed: bool,
) -> Vec<u8> {
    let mut out = vec![0x7e, 0xca, 2, 0];
    out.extend((1 + payload.len() as u32 + extra).to_le_bytes());
    out.extend([0; 4]);
    out.extend([1, 0, b't', 3, 0, 0, 0]);
    out.extend((payload.len() as u32).to_le_bytes());
    out.extend(payload);
    if extra == 30 {
        out.extend(trailer.0.to_le_bytes());
        out.extend(trailer.1.to_le_bytes());
        out.extend(trailer.2.to_le_bytes());
    }
    seal(&mut out, zeroed);
    out
}

/// Puts the right checksum into a frame.
pub(super) fn seal(frame: &mut [u8], zeroed: bool) {
    let mut hashed = frame[..8].to_vec();
    if zeroed {
        hashed[4..].fill(0);
    }
    hashed.extend(&frame[12..]);
    frame[8..12].copy_from_slice(&crc32fast::hash(&hashed).to_le_bytes());
}

/// The frame that a v2.4.0 broker writes for `batch`.
pub(super) fn frame(batch: &Bytes) -> Vec<u8> {
    let header = BatchHeader::decode(batch).unwrap();
    let trailer = (header.base_offset, header.last_offset(), header.record_count);
    frame_with(&Payload::of(batch).encode(), 30, trailer, false)
}

/// Scans `bytes` as a segment of [`tp`].
pub(super) fn scan(bytes: &[u8]) -> SegmentScan {
    let tp = tp();
    scan_chronik(&tp, &mut window(bytes)).unwrap()
}

pub(super) fn window(bytes: &[u8]) -> Window<Cursor<&[u8]>> {
    Window::new(Cursor::new(bytes), bytes.len() as u64)
}

/// Judges the first frame of `bytes`.
pub(super) fn judge(bytes: &[u8]) -> chronik::Verdict {
    let tp = tp();
    chronik::Judge::new(&tp).at(&mut window(bytes), 0).unwrap()
}
