//! Whole batches: out of entries, onto the wire and back; foreign, cut and
//! spoiled ones. The large, seeded run against an independent encoder is in the
//! `tests` crate.

use kafka_protocol::records::RecordBatchDecoder;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::*;

/// Field 15 of the frame in section 3.8 of the WAL specification: one record,
/// offset 5, key `k`, value `v`, header `h` = null.
const VECTOR: &str = "00000000000000050000003dffffffff02ecc46c110000000000000000018bcfe568\
                      000000018bcfe56800ffffffffffffffffffffffffffff0000000116000000026b02\
                      760202680 1";

fn vector() -> Bytes {
    let digits: Vec<u32> = VECTOR.chars().filter_map(|c| c.to_digit(16)).collect();
    digits.chunks(2).map(|pair| (pair[0] * 16 + pair[1]) as u8).collect()
}

fn header(attributes: i16) -> BatchHeader {
    BatchHeader {
        base_offset: 4_000_000_000,
        batch_length: 0,
        partition_leader_epoch: 7,
        crc: 0,
        attributes,
        last_offset_delta: 99,
        base_timestamp: 1_700_000_000_000,
        max_timestamp: 1_700_000_000_500,
        producer_id: 9001,
        producer_epoch: 3,
        base_sequence: 12,
        record_count: 0,
    }
}

fn entry(offset: i64, value: &'static [u8]) -> CanonicalRecordEntry {
    CanonicalRecordEntry {
        offset,
        timestamp: 1_700_000_000_000,
        attributes: 0,
        key: None,
        value: Some(Bytes::from_static(value)),
        headers: vec![],
    }
}

fn any_bytes() -> impl Strategy<Value = Option<Bytes>> {
    option::of(vec(any::<u8>(), 0..40).prop_map(Bytes::from))
}

prop_compose! {
    fn any_batch()(
        codec in 0..=4_i16,
        flags in 0..16_i16,
        unused in prop_oneof![Just(0_i16), Just(i16::MIN), Just(0x80)],
        base_offset in prop_oneof![Just(0), 0..i64::MAX / 2],
        base_timestamp in prop_oneof![Just(-1), Just(0), 0..4_000_000_000_000_i64],
        tail_gap in 0..5_i32,
        fields in (any::<i32>(), any::<i64>(), any::<i64>(), any::<i16>(), any::<i32>()),
        rows in vec(
            (
                1..4_i64,
                -1000..100_000_i64,
                any::<i8>(),
                any_bytes(),
                any_bytes(),
                vec((vec(any::<u8>(), 0..4), any_bytes()), 0..4),
            ),
            0..30,
        ),
    ) -> (BatchHeader, Vec<CanonicalRecordEntry>) {
        let mut next = base_offset;
        let mut entries = Vec::new();
        for (step, delta, attributes, key, value, headers) in rows {
            let headers = headers
                .into_iter()
                .map(|(name, value)| Header { name: Bytes::from(name), value })
                .collect();
            let timestamp = base_timestamp + delta;
            entries.push(CanonicalRecordEntry {
                offset: next + step - 1, timestamp, attributes, key, value, headers,
            });
            next += step;
        }
        let header = BatchHeader {
            base_offset,
            batch_length: -5,
            partition_leader_epoch: fields.0,
            crc: 17,
            attributes: codec | flags << 3 | unused,
            last_offset_delta: (next - base_offset) as i32 + tail_gap,
            base_timestamp,
            max_timestamp: fields.1,
            producer_id: fields.2,
            producer_epoch: fields.3,
            base_sequence: fields.4,
            record_count: -1,
        };
        (header, entries)
    }
}

/// `expected` with the fields that follow from the bytes.
fn but_computed(expected: BatchHeader, actual: &BatchHeader) -> BatchHeader {
    BatchHeader {
        batch_length: actual.batch_length,
        crc: actual.crc,
        record_count: actual.record_count,
        ..expected
    }
}

proptest! {
    #[test]
    fn a_batch_built_of_entries_reads_back_as_them((header, entries) in any_batch()) {
        let built = CanonicalRecord::from_entries(header, entries.clone()).unwrap();
        prop_assert!(built.wire().is_none());
        built.verify_crc().unwrap();
        prop_assert_eq!(&built.decode().unwrap(), &entries);

        let bytes = built.to_kafka_batch().unwrap();
        let read = CanonicalRecord::from_wire(bytes.clone()).unwrap();
        read.verify_crc().unwrap();
        prop_assert_eq!(read.header(), built.header());
        prop_assert_eq!(*read.header(), but_computed(header, read.header()));
        prop_assert_eq!(read.header().record_count as usize, entries.len());
        prop_assert_eq!(&read.decode().unwrap(), &entries);
        prop_assert_eq!(read.to_kafka_batch().unwrap(), &bytes);

        let again = CanonicalRecord::from_entries(*read.header(), read.decode().unwrap()).unwrap();
        prop_assert_eq!(again.to_kafka_batch().unwrap(), bytes);
    }

    #[test]
    fn no_cut_batch_is_taken((header, entries) in any_batch()) {
        let built = CanonicalRecord::from_entries(header, entries).unwrap();
        let bytes = built.to_kafka_batch().unwrap();
        for end in 0..bytes.len() {
            prop_assert!(CanonicalRecord::from_wire(bytes.slice(..end)).is_err());
        }
        let longer = [&bytes[..], b"x"].concat();
        prop_assert!(CanonicalRecord::from_wire(Bytes::from(longer)).is_err());
    }

    #[test]
    fn a_spoiled_batch_never_panics_and_never_grows(
        (header, entries) in any_batch(),
        spoil in vec((any::<prop::sample::Index>(), 1..=255_u8), 1..4),
    ) {
        let built = CanonicalRecord::from_entries(header, entries).unwrap();
        let mut bytes = built.to_kafka_batch().unwrap().to_vec();
        for (at, flip) in spoil {
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
        }
        let Ok(record) = CanonicalRecord::from_wire(Bytes::from(bytes.clone())) else {
            return Ok(());
        };
        prop_assert_eq!(record.to_kafka_batch().unwrap(), &bytes);
        let _ = (record.verify_crc(), record.marker());
        if let Ok(entries) = record.entries_within(1 << 20) {
            prop_assert!(entries.size_hint().0 <= 1 << 18);
            for entry in entries {
                let Ok(entry) = entry else { break };
                prop_assert!(record.range().contains(entry.offset));
            }
        }
    }
}

#[test]
fn the_batch_of_the_wal_specification_reads_field_by_field() {
    let wire = vector();
    assert_eq!(wire.len(), 73);
    let record = CanonicalRecord::from_wire(wire.clone()).unwrap();
    record.verify_crc().unwrap();
    assert_eq!(record.range(), OffsetRange::new(5, 5).unwrap());
    let expected = CanonicalRecordEntry {
        offset: 5,
        timestamp: 1_700_000_000_000,
        attributes: 0,
        key: Some(Bytes::from_static(b"k")),
        value: Some(Bytes::from_static(b"v")),
        headers: vec![Header { name: Bytes::from_static(b"h"), value: None }],
    };
    assert_eq!(record.decode().unwrap(), std::slice::from_ref(&expected));
    let built = CanonicalRecord::from_entries(*record.header(), vec![expected]).unwrap();
    assert_eq!(built.to_kafka_batch().unwrap(), wire);
}

#[test]
fn the_wire_bytes_are_handed_out_and_not_copied() {
    let wire = vector();
    let record = CanonicalRecord::from_wire(wire.clone()).unwrap();
    assert_eq!(record.wire().unwrap().as_ptr(), wire.as_ptr());
    assert_eq!(record.to_kafka_batch().unwrap().as_ptr(), wire.as_ptr());
    let entry = record.entries().unwrap().next().unwrap().unwrap();
    let inside = wire.as_ptr_range();
    assert!(inside.contains(&entry.value.unwrap().as_ptr()), "values are slices of the batch");
}

#[test]
fn a_wrong_crc_is_told_and_the_batch_stays_readable() {
    let mut wire = vector().to_vec();
    wire[20] ^= 1;
    let record = CanonicalRecord::from_wire(Bytes::from(wire)).unwrap();
    let error = record.verify_crc().unwrap_err();
    let BatchError::Crc { base_offset: 5, stored, computed } = error else {
        panic!("{error}");
    };
    assert_eq!(stored ^ computed, 1);
    assert_eq!(record.decode().unwrap().len(), 1);
}

#[test]
fn another_decoder_reads_every_codec_we_write() {
    let values: [&'static [u8]; 3] = [b"", b"one", &[b'x'; 100_000]];
    for codec in 0..=4 {
        let base = header(0).base_offset;
        let entries: Vec<_> = (base..).step_by(2).zip(values).map(|(o, v)| entry(o, v)).collect();
        let built = CanonicalRecord::from_entries(header(codec), entries.clone()).unwrap();
        let set = RecordBatchDecoder::decode(&mut built.to_kafka_batch().unwrap()).unwrap();
        assert_eq!(set.records.len(), 3, "codec {codec}");
        for (theirs, ours) in set.records.iter().zip(&entries) {
            assert_eq!((theirs.offset, theirs.timestamp), (ours.offset, ours.timestamp));
            assert_eq!((&theirs.key, &theirs.value), (&ours.key, &ours.value));
            assert_eq!((theirs.producer_id, theirs.producer_epoch), (9001, 3));
        }
    }
}

#[test]
fn a_batch_that_compaction_emptied_is_kept() {
    for codec in 0..=4 {
        let empty = CanonicalRecord::from_entries(header(codec | 0x20), vec![]).unwrap();
        let wire = empty.to_kafka_batch().unwrap();
        let read = CanonicalRecord::from_wire(wire).unwrap();
        assert_eq!(read.decode().unwrap(), vec![]);
        assert_eq!(read.range(), OffsetRange::new(4_000_000_000, 4_000_000_099).unwrap());
        assert_eq!(read.marker().unwrap(), None);
    }
    // The way a broker writes it: no codec's stream at all.
    let mut wire = Vec::new();
    BatchHeader { batch_length: 49, ..header(1) }.encode(&mut wire);
    let read = CanonicalRecord::from_wire(Bytes::from(wire)).unwrap();
    assert_eq!(read.decode().unwrap(), vec![]);
}

#[test]
fn log_append_time_is_the_time_of_every_entry() {
    let entry = entry(4_000_000_000, b"v");
    for (attributes, expected) in [(0, 1_700_000_000_000), (8, 1_700_000_000_500)] {
        let record =
            CanonicalRecord::from_entries(header(attributes), vec![entry.clone()]).unwrap();
        assert_eq!(record.timestamp(&entry), expected);
        assert_eq!(record.decode().unwrap()[0].timestamp, 1_700_000_000_000);
    }
}

#[test]
fn a_marker_says_what_it_ends() {
    let marker = |attributes, key: Option<&'static [u8]>| {
        let entry =
            CanonicalRecordEntry { key: key.map(Bytes::from_static), ..entry(4_000_000_000, b"") };
        CanonicalRecord::from_entries(header(attributes), vec![entry]).unwrap().marker()
    };
    let of = |kind| Ok(Some(Marker { kind, producer_id: 9001 }));
    assert_eq!(marker(0x30, Some(&[0, 0, 0, 0])), of(MarkerKind::Abort));
    assert_eq!(marker(0x30, Some(&[0, 0, 0, 1])), of(MarkerKind::Commit));
    assert_eq!(marker(0x20, Some(&[0, 9, 0, 2, 7])), of(MarkerKind::Other(2)));
    assert_eq!(marker(0x10, Some(&[0, 0, 0, 1])), Ok(None));
    for key in [None, Some(&[0, 0, 0][..]), Some(&[0xff, 0xff, 0, 0])] {
        let error = marker(0x30, key).unwrap_err().to_string();
        assert!(error.contains("control record key"), "{error}");
    }
}

#[test]
fn a_batch_that_inflates_beyond_the_limit_is_refused() {
    static ZEROS: [u8; 1 << 20] = [0; 1 << 20];
    for codec in 1..=4 {
        let entries = vec![entry(4_000_000_000, &ZEROS)];
        let built = CanonicalRecord::from_entries(header(codec), entries).unwrap();
        let read = CanonicalRecord::from_wire(built.to_kafka_batch().unwrap()).unwrap();
        let error = read.entries_within(1 << 20).map(drop).unwrap_err();
        let expected = BatchError::TooLarge { base_offset: 4_000_000_000, limit: 1 << 20 };
        assert_eq!(error, expected, "codec {codec}");
        assert_eq!(read.decode().unwrap().len(), 1);
    }
}

#[test]
fn a_codec_that_refuses_is_named() {
    for codec in 1..=4 {
        let entries = vec![entry(4_000_000_000, b"value")];
        let built = CanonicalRecord::from_entries(header(codec), entries).unwrap();
        let mut wire = built.to_kafka_batch().unwrap().to_vec();
        let end = wire.len();
        wire[61..end].fill(0x55);
        let read = CanonicalRecord::from_wire(Bytes::from(wire)).unwrap();
        let error = read.entries().map(drop).unwrap_err().to_string();
        let name = built.header().codec().to_string();
        assert!(error.contains(&name) && error.contains("4000000000"), "{error}");
    }
}

#[test]
fn a_header_that_cannot_be_is_refused_before_anything_is_built() {
    for bad in [
        BatchHeader { attributes: 6, ..header(0) },
        BatchHeader { last_offset_delta: -1, ..header(0) },
        BatchHeader { base_offset: -1, ..header(0) },
    ] {
        assert!(CanonicalRecord::from_entries(bad, vec![]).is_err());
    }
}
