//! Record batches made byte by byte, without tierd's encoder: what the golden
//! archive is built from must not change when that does.

use bytes::Bytes;
use tierd::record::CanonicalRecord;

/// Attribute bits.
pub(super) const SNAPPY: i16 = 2;
pub(super) const LOG_APPEND_TIME: i16 = 0x08;
pub(super) const TRANSACTIONAL: i16 = 0x10;
pub(super) const CONTROL: i16 = 0x20;

/// The time of offset 0, in milliseconds.
pub(super) const EPOCH_MS: i64 = 1_700_000_000_000;

/// A batch before it is bytes.
#[derive(Clone)]
pub(super) struct Batch {
    pub(super) base: i64,
    pub(super) leader_epoch: i32,
    pub(super) attributes: i16,
    pub(super) producer_id: i64,
    pub(super) records: Vec<Record>,
    /// Greater than the last record's where the tail of the batch was compacted away.
    pub(super) last_delta: Option<i32>,
}

/// A record before it is bytes.
#[derive(Clone, Default)]
pub(super) struct Record {
    pub(super) delta: i64,
    pub(super) key: Option<Vec<u8>>,
    pub(super) value: Option<Vec<u8>>,
    pub(super) headers: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

impl Batch {
    /// A batch of `count` records with keys, values and a header on every third.
    pub(super) fn of(base: i64, count: i64) -> Self {
        let record = |delta: i64| Record {
            delta,
            key: Some(format!("key-{}", base + delta).into_bytes()),
            value: Some(format!("{{\"n\":{},\"city\":\"Berlin\"}}", base + delta).into_bytes()),
            headers: if delta % 3 == 0 {
                vec![(b"trace".to_vec(), Some(format!("t-{}", base + delta).into_bytes()))]
            } else {
                Vec::new()
            },
        };
        Self {
            base,
            leader_epoch: 0,
            attributes: 0,
            producer_id: -1,
            records: (0..count).map(record).collect(),
            last_delta: None,
        }
    }

    /// A batch of a transaction.
    pub(super) fn transactional(base: i64, count: i64, producer_id: i64) -> Self {
        Self { attributes: TRANSACTIONAL, producer_id, ..Self::of(base, count) }
    }

    /// The marker that ends a transaction: 0 aborts, 1 commits.
    pub(super) fn marker(base: i64, producer_id: i64, kind: i16) -> Self {
        let mut key = vec![0, 0];
        key.extend_from_slice(&kind.to_be_bytes());
        let record = Record { key: Some(key), value: Some(vec![0; 6]), ..Record::default() };
        Self {
            attributes: TRANSACTIONAL | CONTROL,
            producer_id,
            records: vec![record],
            ..Self::of(base, 0)
        }
    }

    /// One record with a value of `len` bytes that nothing compresses.
    pub(super) fn huge(base: i64, len: usize) -> Self {
        let record =
            Record { key: Some(b"huge".to_vec()), value: Some(noise(len)), ..Record::default() };
        Self { records: vec![record], ..Self::of(base, 0) }
    }

    /// The bytes on the wire.
    pub(super) fn wire(&self) -> Bytes {
        let mut section = Vec::new();
        for record in &self.records {
            let mut body = vec![0];
            put_varint(record.delta * 7, &mut body);
            put_varint(record.delta, &mut body);
            put_nullable(record.key.as_deref(), &mut body);
            put_nullable(record.value.as_deref(), &mut body);
            put_varint(record.headers.len() as i64, &mut body);
            for (name, value) in &record.headers {
                put_varint(name.len() as i64, &mut body);
                body.extend_from_slice(name);
                put_nullable(value.as_deref(), &mut body);
            }
            put_varint(body.len() as i64, &mut section);
            section.extend_from_slice(&body);
        }
        if self.attributes & 7 == SNAPPY {
            section = snappy(&section);
        }
        let last = self.records.last().map_or(0, |record| record.delta);
        let last_delta = self.last_delta.unwrap_or(last as i32);
        let base_timestamp = EPOCH_MS + self.base;
        let mut covered = Vec::new();
        covered.extend_from_slice(&self.attributes.to_be_bytes());
        covered.extend_from_slice(&last_delta.to_be_bytes());
        covered.extend_from_slice(&base_timestamp.to_be_bytes());
        covered.extend_from_slice(&(base_timestamp + last * 7).to_be_bytes());
        covered.extend_from_slice(&self.producer_id.to_be_bytes());
        covered.extend_from_slice(&i16::from(self.producer_id < 0).wrapping_neg().to_be_bytes());
        covered.extend_from_slice(&(-1i32).to_be_bytes());
        covered.extend_from_slice(&(self.records.len() as i32).to_be_bytes());
        covered.extend_from_slice(&section);
        let mut wire = Vec::new();
        wire.extend_from_slice(&self.base.to_be_bytes());
        wire.extend_from_slice(&(covered.len() as i32 + 9).to_be_bytes());
        wire.extend_from_slice(&self.leader_epoch.to_be_bytes());
        wire.push(2);
        wire.extend_from_slice(&crc32c::crc32c(&covered).to_be_bytes());
        wire.extend_from_slice(&covered);
        Bytes::from(wire)
    }

    /// The batch as tierd takes it from a log.
    pub(super) fn record(&self) -> CanonicalRecord {
        CanonicalRecord::from_wire(self.wire()).unwrap()
    }

    /// The same with a byte of its last value or header changed: its CRC is wrong.
    pub(super) fn damaged(&self) -> CanonicalRecord {
        let mut wire = self.wire().to_vec();
        let at = wire.len() - 2;
        wire[at] ^= 1;
        CanonicalRecord::from_wire(wire.into()).unwrap()
    }

    /// The same with its records overwritten: nothing decodes, the CRC is wrong.
    pub(super) fn garbage(&self) -> CanonicalRecord {
        let mut wire = self.wire().to_vec();
        wire[61..].fill(0xee);
        CanonicalRecord::from_wire(wire.into()).unwrap()
    }
}

/// Bytes that nothing compresses, always the same.
pub(super) fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..len).map(|_| next()).collect()
}

/// Raw snappy that holds its input as literals.
fn snappy(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut len = bytes.len();
    while len >= 0x80 {
        out.push(len as u8 | 0x80);
        len >>= 7;
    }
    out.push(len as u8);
    for literal in bytes.chunks(60) {
        out.push((literal.len() as u8 - 1) << 2);
        out.extend_from_slice(literal);
    }
    out
}

fn put_nullable(bytes: Option<&[u8]>, out: &mut Vec<u8>) {
    match bytes {
        None => put_varint(-1, out),
        Some(bytes) => {
            put_varint(bytes.len() as i64, out);
            out.extend_from_slice(bytes);
        }
    }
}

fn put_varint(value: i64, out: &mut Vec<u8>) {
    let mut zigzag = ((value << 1) ^ (value >> 63)) as u64;
    while zigzag >= 0x80 {
        out.push(zigzag as u8 | 0x80);
        zigzag >>= 7;
    }
    out.push(zigzag as u8);
}
