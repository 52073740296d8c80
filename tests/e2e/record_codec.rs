//! Many generated batches through the record room: bytes in equal bytes out, and
//! a batch made again of its entries keeps every field, as an independent
//! decoder reads it.
//!
//! `TIERD_TEST_BATCHES=1000000` for the long run; the default takes seconds.
//!
//! The independent decoder (`kafka-protocol`) does not tell the max timestamp,
//! the last offset delta, unused attribute bits or record attributes; keeps one
//! header of each name; and refuses names that are not UTF-8. The first three are
//! compared in the header's bytes, the rest through tierd's own decoder, which
//! the generator's plan checks.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use kafka_protocol::records::{Record, RecordBatchDecoder, TimestampType};
use tierd::record::{
    CanonicalRecord, CanonicalRecordEntry, Codec, Header, Marker, MarkerKind, OffsetRange,
};
use tierd::wal::{SegmentReader, WalDir, WalFormat, scan};
use tierd_tests::batches::{Batches, GeneratedBatch, Plan, PlannedRecord, codec, headers_of};
use tierd_tests::fixture;

/// Batches of one seed.
const CHUNK: u64 = 500;
const DEFAULT_BATCHES: u64 = 20_000;

/// Where a failure is: enough to make the batch again.
#[derive(Clone, Copy)]
struct Case {
    seed: u64,
    number: u64,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "batch {} of seed {}", self.number, self.seed)
    }
}

/// Table: I4 | batches of every kind | DEFAULT_BATCHES TIERD_TEST_BATCHES
#[test]
fn generated_batches_come_out_as_they_went_in_and_rebuilt_ones_keep_every_field() {
    let batches = match std::env::var("TIERD_TEST_BATCHES") {
        Ok(count) => count.parse().expect("TIERD_TEST_BATCHES is a number"),
        Err(_) => DEFAULT_BATCHES,
    };
    let chunks = batches.div_ceil(CHUNK);
    let next = AtomicU64::new(0);
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= chunks {
                        break;
                    }
                    let base = if seed.is_multiple_of(2) { 0 } else { (seed as i64) << 33 };
                    for (number, batch) in (0..CHUNK).zip(Batches::new(seed, base)) {
                        check(Case { seed, number }, &batch);
                    }
                }
            });
        }
    });
}

fn check(case: Case, batch: &GeneratedBatch) {
    let plan = &batch.plan;
    let read = CanonicalRecord::from_wire(batch.wire.clone());
    let read = read.unwrap_or_else(|error| panic!("{case}: {error}"));
    assert_eq!(read.to_kafka_batch().as_ref(), Ok(&batch.wire), "{case}: bytes out");
    assert_eq!(read.wire(), Some(&batch.wire), "{case}: wire bytes");
    assert_eq!(read.verify_crc(), Ok(()), "{case}");

    let last = plan.base_offset + i64::from(plan.last_offset_delta);
    assert_eq!(Some(read.range()), OffsetRange::new(plan.base_offset, last), "{case}: range");
    assert_eq!(read.marker(), Ok(marker(plan)), "{case}: marker");
    let expected: Vec<_> = plan.records.iter().map(|record| entry(plan, record)).collect();
    let entries = read.decode().unwrap_or_else(|error| panic!("{case}: {error}"));
    assert_eq!(entries, expected, "{case}: entries");
    for entry in &entries {
        let timestamp = read.timestamp(entry);
        let append = plan.attributes & 0x08 != 0;
        assert_eq!(timestamp, if append { plan.max_timestamp } else { entry.timestamp }, "{case}");
    }

    let rebuilt = CanonicalRecord::from_entries(*read.header(), entries.clone());
    let rebuilt = rebuilt.unwrap_or_else(|error| panic!("{case}: {error}"));
    let bytes = rebuilt.to_kafka_batch().unwrap_or_else(|error| panic!("{case}: {error}"));
    check_header(case, &bytes, &batch.wire);
    if read.header().codec() == Codec::None {
        assert_eq!(bytes, batch.wire, "{case}: without a codec there is one encoding");
    }
    let again = CanonicalRecord::from_wire(bytes.clone());
    let again = again.and_then(|record| record.decode());
    assert_eq!(again.as_ref(), Ok(&expected), "{case}: entries of the rebuilt batch");
    check_independently(case, plan, bytes);
}

fn entry(plan: &Plan, record: &PlannedRecord) -> CanonicalRecordEntry {
    CanonicalRecordEntry {
        offset: plan.base_offset + i64::from(record.delta),
        timestamp: record.timestamp,
        attributes: record.attributes,
        key: record.key.clone(),
        value: record.value.clone(),
        headers: record
            .headers
            .iter()
            .map(|(name, value)| Header { name: name.clone(), value: value.clone() })
            .collect(),
    }
}

fn marker(plan: &Plan) -> Option<Marker> {
    let control = plan.attributes & 0x20 != 0;
    let key = plan.records.first().and_then(|record| record.key.as_ref()).filter(|_| control)?;
    let kind = if key[3] == 0 { MarkerKind::Abort } else { MarkerKind::Commit };
    Some(Marker { kind, producer_id: plan.producer_id })
}

/// All 61 bytes but length and CRC are those of the original; these two are right.
fn check_header(case: impl fmt::Display, bytes: &[u8], original: &[u8]) {
    for kept in [0..8, 12..17, 21..61] {
        assert_eq!(bytes[kept.clone()], original[kept.clone()], "{case}: header bytes {kept:?}");
    }
    let field =
        |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    assert_eq!(field(8) as usize, bytes.len() - 12, "{case}: batch length");
    assert_eq!(field(17), crc32c::crc32c(&bytes[21..]), "{case}: crc");
}

#[test]
fn every_batch_that_a_broker_wrote_survives_and_a_rebuilt_one_keeps_every_field() {
    let listing = WalDir::open(&fixture::wal(), WalFormat::Chronik).unwrap();
    let mut batches = 0;
    for dir in listing.partitions().unwrap().partitions {
        for segment in &dir.segments {
            let found = scan(WalFormat::Chronik, &dir.tp, segment).unwrap();
            let mut reader = SegmentReader::open(WalFormat::Chronik, &dir.tp, segment).unwrap();
            for frame in &found.frames {
                let case = format!("{} at byte {}", segment.path.display(), frame.position);
                check_real(&case, &reader.batch(frame).unwrap());
                batches += 1;
            }
        }
    }
    assert_eq!(batches, fixture::batches().values().map(Vec::len).sum::<usize>());
}

/// `batch` as it was read against itself made again of its entries, both as the
/// independent decoder reads them.
fn check_real(case: &str, batch: &CanonicalRecord) {
    let wire = batch.wire().unwrap().clone();
    assert_eq!(batch.to_kafka_batch().as_ref(), Ok(&wire), "{case}: bytes out");
    assert_eq!(CanonicalRecord::from_wire(wire.clone()).unwrap().header(), batch.header());
    let entries = batch.decode().unwrap();
    let rebuilt = CanonicalRecord::from_entries(*batch.header(), entries.clone()).unwrap();
    let bytes = rebuilt.to_kafka_batch().unwrap();
    check_header(case, &bytes, &wire);
    assert_eq!(CanonicalRecord::from_wire(bytes.clone()).unwrap().decode(), Ok(entries), "{case}");
    let independently = |wire: &Bytes| {
        let mut rest = wire.clone();
        let decoded = RecordBatchDecoder::decode(&mut rest).unwrap();
        assert!(rest.is_empty(), "{case}: bytes after the batch");
        (decoded.compression, decoded.records)
    };
    assert_eq!(independently(&bytes), independently(&wire), "{case}");
}

fn check_independently(case: Case, plan: &Plan, mut bytes: Bytes) {
    let headers: Option<Vec<_>> = plan.records.iter().map(headers_of).collect();
    // Names that are not UTF-8: the crate refuses the batch.
    let Some(headers) = headers else { return };
    let append = plan.attributes & 0x08 != 0;
    let expected: Vec<Record> = plan
        .records
        .iter()
        .zip(headers)
        .map(|(record, headers)| Record {
            transactional: plan.attributes & 0x10 != 0,
            control: plan.attributes & 0x20 != 0,
            delete_horizon: plan.attributes & 0x40 != 0,
            partition_leader_epoch: plan.leader_epoch,
            producer_id: plan.producer_id,
            producer_epoch: plan.producer_epoch,
            timestamp_type: if append { TimestampType::LogAppend } else { TimestampType::Creation },
            offset: plan.base_offset + i64::from(record.delta),
            sequence: plan.base_sequence.wrapping_add(record.delta),
            timestamp: record.timestamp,
            key: record.key.clone(),
            value: record.value.clone(),
            headers,
        })
        .collect();
    let decoded = RecordBatchDecoder::decode(&mut bytes);
    let decoded = decoded.unwrap_or_else(|error| panic!("{case}: {error:#}"));
    assert_eq!(decoded.compression, codec(plan.attributes), "{case}: codec");
    assert_eq!(decoded.records, expected, "{case}: records as the independent decoder reads them");
    assert!(bytes.is_empty(), "{case}: bytes after the batch");
}

#[test]
fn the_generator_makes_every_kind_of_batch() {
    let batches: Vec<_> = Batches::new(7, 0).take(1000).collect();
    let some = |what: &str, is: &dyn Fn(&GeneratedBatch) -> bool| {
        let count = batches.iter().filter(|batch| is(batch)).count();
        assert!(count >= 5, "{what}: {count} of 1000");
    };
    for codec in 0..=4 {
        some("codec", &|batch| batch.plan.attributes & 0x07 == codec);
    }
    for bit in [0x08, 0x10, 0x20, 0x40] {
        some("attribute", &|batch| batch.plan.attributes & bit != 0);
    }
    some("empty batch", &|batch| batch.plan.records.is_empty());
    some("gap at the end", &|batch| {
        let last = batch.plan.records.last();
        last.is_some_and(|record| record.delta < batch.plan.last_offset_delta)
    });
    some("gap at the base", &|batch| batch.plan.records.first().is_some_and(|r| r.delta > 0));
    some("idempotent", &|batch| batch.plan.producer_id >= 0 && batch.plan.attributes & 0x30 == 0);
    some("time going back", &|batch| {
        batch.plan.records.iter().any(|record| record.timestamp < batch.plan.base_timestamp)
    });
    some("name twice", &|batch| {
        batch.plan.records.iter().any(|record| {
            headers_of(record).is_some_and(|headers| headers.len() < record.headers.len())
        })
    });
    some("name not UTF-8", &|batch| {
        batch.plan.records.iter().any(|record| headers_of(record).is_none())
    });
    some("raw snappy", &|batch| {
        batch.plan.attributes & 0x07 == 2 && !batch.wire[61..].starts_with(b"\x82SNAPPY\0")
    });
    some("larger than a block", &|batch| batch.wire.len() > 65_536);
    let same: Vec<_> = Batches::new(7, 0).take(1000).map(|batch| batch.wire).collect();
    assert!(same.iter().eq(batches.iter().map(|batch| &batch.wire)), "one seed, one run");
}
