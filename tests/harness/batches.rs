//! Owns a seeded generator of Kafka record batches: five codecs, transactions,
//! markers, idempotent producers, log-append time, offset gaps, delete horizons,
//! headers, nulls, bytes that are no text.
//!
//! Nothing here uses tierd's own encoder. Half of the batches come from the
//! `kafka-protocol` crate, with the header fields patched that it cannot set; the
//! rest are written down from the protocol guide, byte by byte, and packed by
//! that crate's codecs, because it cannot write duplicate header names, record
//! attributes, negative time deltas or a first record that is not at the base.
//!
//! Does not own: what a WAL or an archive around the batches looks like.

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::compression::{self, Compressor};
use kafka_protocol::indexmap::IndexMap;
use kafka_protocol::protocol::StrBytes;
use kafka_protocol::records::{
    Compression, Record, RecordBatchEncoder, RecordEncodeOptions, TimestampType,
};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const LOG_APPEND_TIME: i16 = 0x08;
const TRANSACTIONAL: i16 = 0x10;
const CONTROL: i16 = 0x20;
const DELETE_HORIZON: i16 = 0x40;
/// Bytes of a batch before its records.
const HEADER_BYTES: usize = 61;
/// Most records of a generated batch.
const RECORDS_MAX: i32 = 24;

/// What a batch was made to say: every field of its header that does not follow
/// from its bytes, and its records.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Base offset.
    pub base_offset: i64,
    /// Partition leader epoch.
    pub leader_epoch: i32,
    /// Attributes, codec included.
    pub attributes: i16,
    /// Last offset delta.
    pub last_offset_delta: i32,
    /// Base timestamp, or the delete horizon.
    pub base_timestamp: i64,
    /// Max timestamp.
    pub max_timestamp: i64,
    /// Producer id; -1 for none.
    pub producer_id: i64,
    /// Producer epoch; -1 for none.
    pub producer_epoch: i16,
    /// Base sequence; -1 for none.
    pub base_sequence: i32,
    /// The records.
    pub records: Vec<PlannedRecord>,
}

impl Plan {
    /// The batch on the wire. The crate can write no plan without records, and sets the
    /// base timestamp to the least of the records'.
    #[must_use]
    pub fn wire(&self, maker: Maker) -> Bytes {
        match maker {
            Maker::KafkaProtocol => by_kafka_protocol(self),
            Maker::Guide => by_guide(self, false),
        }
    }
}

/// One record of a [`Plan`].
#[derive(Clone, Debug)]
pub struct PlannedRecord {
    /// Offset minus base offset.
    pub delta: i32,
    /// Milliseconds.
    pub timestamp: i64,
    /// Record attributes.
    pub attributes: i8,
    /// Key.
    pub key: Option<Bytes>,
    /// Value.
    pub value: Option<Bytes>,
    /// Names and values of headers, in order.
    pub headers: Vec<(Bytes, Option<Bytes>)>,
}

/// Who wrote the bytes of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Maker {
    /// The encoder of the `kafka-protocol` crate.
    KafkaProtocol,
    /// This module, from the protocol guide.
    Guide,
}

/// A batch and what it was made to say.
#[derive(Clone, Debug)]
pub struct GeneratedBatch {
    /// The whole batch.
    pub wire: Bytes,
    /// What it says.
    pub plan: Plan,
    /// Who wrote it.
    pub maker: Maker,
}

/// An endless run of batches of one partition, ascending by offset; the same for
/// the same seed.
#[derive(Debug)]
pub struct Batches {
    rng: StdRng,
    next_offset: i64,
}

impl Batches {
    /// Batches from `base_offset` on.
    #[must_use]
    pub fn new(seed: u64, base_offset: i64) -> Self {
        Self { rng: StdRng::seed_from_u64(seed), next_offset: base_offset }
    }
}

impl Iterator for Batches {
    type Item = GeneratedBatch;

    fn next(&mut self) -> Option<GeneratedBatch> {
        let rng = &mut self.rng;
        if rng.random_bool(0.05) {
            self.next_offset += rng.random_range(1..1000);
        }
        let maker = if rng.random_bool(0.5) { Maker::KafkaProtocol } else { Maker::Guide };
        let plan = plan(rng, self.next_offset, maker);
        let wire = match maker {
            Maker::Guide => by_guide(&plan, rng.random_bool(0.5)),
            Maker::KafkaProtocol => plan.wire(maker),
        };
        self.next_offset += i64::from(plan.last_offset_delta) + 1;
        Some(GeneratedBatch { wire, plan, maker })
    }
}

fn plan(rng: &mut StdRng, base_offset: i64, maker: Maker) -> Plan {
    let codec = rng.random_range(0..=4_i16);
    let log_append = if rng.random_bool(0.2) { LOG_APPEND_TIME } else { 0 };
    let now = rng.random_range(-1..2_000_000_000_000_i64);
    let mut plan = Plan {
        base_offset,
        leader_epoch: rng.random_range(-1..50),
        attributes: codec | log_append,
        last_offset_delta: 0,
        base_timestamp: now,
        max_timestamp: now,
        producer_id: -1,
        producer_epoch: -1,
        base_sequence: -1,
        records: Vec::new(),
    };
    match rng.random_range(0..10) {
        0 => return marker(rng, plan),
        1..=3 => produced(rng, &mut plan, 0),
        4..=5 => produced(rng, &mut plan, TRANSACTIONAL),
        _ => {}
    }
    let guide = maker == Maker::Guide;
    if rng.random_bool(0.1) {
        plan.attributes |= DELETE_HORIZON;
    }
    // An unused bit, which must survive.
    if guide && rng.random_bool(0.05) {
        plan.attributes |= 0x100;
    }
    // The crate cannot write an empty batch.
    let count = rng.random_range(i32::from(!guide)..=RECORDS_MAX);
    let compacted = rng.random_bool(0.3);
    let mut delta = if guide && compacted { rng.random_range(0..5) } else { 0 };
    for _ in 0..count {
        plan.records.push(record(rng, delta, now, guide));
        delta += 1 + if compacted { rng.random_range(0..4) } else { 0 };
    }
    // Compaction also drops the last records of a batch; its range stays.
    let last = (delta - 1).max(0);
    plan.last_offset_delta = last + if compacted { rng.random_range(0..9) } else { 0 };
    let times = || plan.records.iter().map(|record| record.timestamp);
    if !guide {
        plan.base_timestamp = times().min().unwrap_or(now);
    }
    let greatest = times().max().unwrap_or(now);
    plan.max_timestamp = greatest + if log_append == 0 { 0 } else { rng.random_range(0..5000) };
    plan
}

fn produced(rng: &mut StdRng, plan: &mut Plan, attributes: i16) {
    plan.attributes |= attributes;
    plan.producer_id = rng.random_range(0..1 << 40);
    plan.producer_epoch = rng.random_range(0..=i16::MAX);
    // Sequences wrap after 2^31-1: make that happen.
    plan.base_sequence =
        if rng.random_bool(0.05) { i32::MAX - 2 } else { rng.random_range(0..=i32::MAX) };
}

fn marker(rng: &mut StdRng, mut plan: Plan) -> Plan {
    produced(rng, &mut plan, TRANSACTIONAL | CONTROL);
    plan.attributes &= !0x07;
    plan.base_sequence = -1;
    let kind = rng.random_range(0..=1_u8);
    plan.records = vec![PlannedRecord {
        delta: 0,
        timestamp: plan.base_timestamp,
        attributes: 0,
        key: Some(Bytes::copy_from_slice(&[0, 0, 0, kind])),
        value: Some(Bytes::from_static(&[0, 0, 0, 0, 0, 3])),
        headers: vec![],
    }];
    plan
}

fn record(rng: &mut StdRng, delta: i32, now: i64, guide: bool) -> PlannedRecord {
    let back = if guide { -10_000 } else { 0 };
    let mut headers = Vec::new();
    for number in 0..rng.random_range(0..4_u8).saturating_sub(1) {
        let name = match rng.random_range(0..20) {
            // Duplicate, and empty, and no UTF-8: only the guide's own writer can.
            0..=3 if guide => Bytes::from_static(b"trace"),
            4 if guide => Bytes::new(),
            5 if guide => Bytes::from_static(b"\xff\xfe"),
            _ => Bytes::from(format!("h{number}-\u{65e5}")),
        };
        headers.push((name, nullable(rng, 30)));
    }
    PlannedRecord {
        delta,
        timestamp: now + rng.random_range(back..10_000),
        attributes: if guide && rng.random_bool(0.1) { rng.random() } else { 0 },
        key: nullable(rng, 20),
        value: nullable(rng, 200),
        headers,
    }
}

/// Null, empty, text that compresses, or noise.
fn nullable(rng: &mut StdRng, longest: usize) -> Option<Bytes> {
    let length = rng.random_range(1..=longest);
    match rng.random_range(0..10) {
        0..=1 => None,
        2 => Some(Bytes::new()),
        3..=7 => {
            Some(b"{\"id\":42,\"state\":\"open\"}".iter().copied().cycle().take(length).collect())
        }
        _ => {
            let mut noise = vec![0; length];
            rng.fill(&mut noise[..]);
            // Now and then beyond one block of snappy and lz4.
            if longest > 100 && rng.random_bool(0.01) {
                noise = noise.repeat(70_000 / length + 1);
            }
            Some(Bytes::from(noise))
        }
    }
}

fn by_kafka_protocol(plan: &Plan) -> Bytes {
    let has = |bit| plan.attributes & bit != 0;
    let records: Vec<Record> = plan
        .records
        .iter()
        .map(|record| Record {
            transactional: has(TRANSACTIONAL),
            control: has(CONTROL),
            delete_horizon: has(DELETE_HORIZON),
            partition_leader_epoch: plan.leader_epoch,
            producer_id: plan.producer_id,
            producer_epoch: plan.producer_epoch,
            timestamp_type: TimestampType::Creation,
            offset: plan.base_offset + i64::from(record.delta),
            sequence: plan.base_sequence.wrapping_add(record.delta),
            timestamp: record.timestamp,
            key: record.key.clone(),
            value: record.value.clone(),
            headers: headers_of(record).unwrap_or_default(),
        })
        .collect();
    let options = RecordEncodeOptions { version: 2, compression: codec(plan.attributes) };
    let mut wire = BytesMut::new();
    let encoded = RecordBatchEncoder::encode(&mut wire, &records, &options);
    assert!(encoded.is_ok(), "{encoded:?}");
    // What the crate does not set: the time type, and what reaches beyond the records.
    wire[21..23].copy_from_slice(&plan.attributes.to_be_bytes());
    wire[23..27].copy_from_slice(&plan.last_offset_delta.to_be_bytes());
    wire[35..43].copy_from_slice(&plan.max_timestamp.to_be_bytes());
    seal(wire)
}

/// The headers of a record as the crate keeps them: of equal names the last
/// value, in the place of the first. `None` where a name is not UTF-8.
#[must_use]
pub fn headers_of(record: &PlannedRecord) -> Option<IndexMap<StrBytes, Option<Bytes>>> {
    let headers = record.headers.iter();
    headers
        .map(|(name, value)| Some((StrBytes::try_from(name.clone()).ok()?, value.clone())))
        .collect()
}

/// The codec of attribute bits 0-2, in the crate's words.
#[must_use]
pub fn codec(attributes: i16) -> Compression {
    match attributes & 0x07 {
        0 => Compression::None,
        1 => Compression::Gzip,
        2 => Compression::Snappy,
        3 => Compression::Lz4,
        4 => Compression::Zstd,
        other => unreachable!("no plan has codec {other}"),
    }
}

fn by_guide(plan: &Plan, raw_snappy: bool) -> Bytes {
    let mut section = Vec::new();
    for record in &plan.records {
        let mut body = Vec::new();
        body.put_i8(record.attributes);
        varint(&mut body, i128::from(record.timestamp - plan.base_timestamp));
        varint(&mut body, i128::from(record.delta));
        string(&mut body, record.key.as_ref());
        string(&mut body, record.value.as_ref());
        varint(&mut body, record.headers.len() as i128);
        for (name, value) in &record.headers {
            string(&mut body, Some(name));
            string(&mut body, value.as_ref());
        }
        varint(&mut section, body.len() as i128);
        section.extend_from_slice(&body);
    }

    let mut wire = BytesMut::new();
    wire.put_i64(plan.base_offset);
    wire.put_i32(0);
    wire.put_i32(plan.leader_epoch);
    wire.put_i8(2);
    wire.put_u32(0);
    wire.put_i16(plan.attributes);
    wire.put_i32(plan.last_offset_delta);
    wire.put_i64(plan.base_timestamp);
    wire.put_i64(plan.max_timestamp);
    wire.put_i64(plan.producer_id);
    wire.put_i16(plan.producer_epoch);
    wire.put_i32(plan.base_sequence);
    wire.put_i32(plan.records.len() as i32);
    assert_eq!(wire.len(), HEADER_BYTES);

    let fill = |out: &mut BytesMut| {
        out.put_slice(&section);
        Ok(())
    };
    let packed = match codec(plan.attributes) {
        Compression::None => {
            wire.put_slice(&section);
            Ok(())
        }
        Compression::Gzip => compression::Gzip::compress(&mut wire, fill),
        Compression::Snappy if raw_snappy => snap::raw::Encoder::new()
            .compress_vec(&section)
            .map(|block| wire.put_slice(&block))
            .map_err(Into::into),
        Compression::Snappy => compression::Snappy::compress(&mut wire, fill),
        Compression::Lz4 => compression::Lz4::compress(&mut wire, fill),
        Compression::Zstd => compression::Zstd::compress(&mut wire, fill),
    };
    assert!(packed.is_ok(), "{packed:?}");
    seal(wire)
}

/// Zigzag by its definition, not by shifts: 0, -1, 1, -2 are 0, 1, 2, 3.
fn varint(out: &mut Vec<u8>, value: i128) {
    let mut rest = if value < 0 { -2 * value - 1 } else { 2 * value };
    while rest > 127 {
        out.push((rest % 128) as u8 + 128);
        rest /= 128;
    }
    out.push(rest as u8);
}

fn string(out: &mut Vec<u8>, bytes: Option<&Bytes>) {
    match bytes {
        None => varint(out, -1),
        Some(bytes) => {
            varint(out, bytes.len() as i128);
            out.extend_from_slice(bytes);
        }
    }
}

/// Puts the length and the checksum in.
fn seal(mut wire: BytesMut) -> Bytes {
    let length = (wire.len() - 12) as u32;
    wire[8..12].copy_from_slice(&length.to_be_bytes());
    let crc = crc32c::crc32c(&wire[21..]);
    wire[17..21].copy_from_slice(&crc.to_be_bytes());
    wire.freeze()
}
