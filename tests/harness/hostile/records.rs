//! Bytes as what a producer sends: keys, values and headers that an index is made of.

use bytes::Bytes;
use tierd::archive::{ArchiveIdentity, ArchiveOptions, IndexLevel};
use tierd::record::{BatchHeader, CanonicalRecord, CanonicalRecordEntry, Header};

use super::archives::verify;
use crate::world::{build, tp};

/// What parts records, and the fields of one. Neither stands in JSON.
const RECORD: u8 = 0x1e;
const FIELD: u8 = 0x1f;
/// Records of one batch: more is only more of the same.
const RECORDS_MAX: usize = 50;

/// The first byte chooses the index level; the others are records of key, value and
/// header. The archive of them is whole, and leaves none out of its index.
pub fn records(bytes: &[u8]) {
    let Some((level, bytes)) = bytes.split_first() else { return };
    let level = IndexLevel::ALL[usize::from(*level) % IndexLevel::ALL.len()];
    let batch = batch(bytes);
    let options = ArchiveOptions { index_level: level, ..Default::default() };
    let identity = ArchiveIdentity { tp: tp("t", 0), incarnation: 0 };
    let folder = tempfile::tempdir().expect("a folder");
    let built = build(folder.path(), &identity, 0, std::slice::from_ref(&batch), options);
    let object = std::fs::read(&built.path).expect("its file");
    let verified = verify(&object).expect("what tierd wrote");
    assert_eq!((verified.summary.batches, verified.summary.unindexed), (1, 0));
    assert_eq!(verified.summary.index_level, level);
    let chunk = verified.toc.chunks_of(verified.toc.log().expect("its log"))[0];
    let packed = Bytes::copy_from_slice(&object[chunk.place as usize..chunk.end() as usize]);
    let log = chunk.unpack(packed).expect("its chunk");
    assert_eq!(log, batch.to_kafka_batch().expect("its bytes"), "bytes in are bytes out");
}

fn batch(bytes: &[u8]) -> CanonicalRecord {
    let fields = |record: &[u8]| -> Vec<Option<Bytes>> {
        let fields = record.split(|byte| *byte == FIELD);
        // A field of one zero byte is null.
        fields.map(|field| (field != [0]).then(|| Bytes::copy_from_slice(field))).collect()
    };
    let records = bytes.split(|byte| *byte == RECORD).take(RECORDS_MAX);
    let entries = records.enumerate().map(|(number, record)| {
        let mut fields = fields(record).into_iter();
        CanonicalRecordEntry {
            offset: number as i64,
            timestamp: 1_700_000_000_000 + number as i64,
            attributes: 0,
            key: fields.next().flatten(),
            value: fields.next().flatten(),
            headers: fields
                .map(|value| Header { name: value.clone().unwrap_or_default(), value })
                .collect(),
        }
    });
    let entries: Vec<_> = entries.collect();
    let header = BatchHeader {
        base_offset: 0,
        batch_length: 0,
        partition_leader_epoch: 0,
        crc: 0,
        attributes: 0,
        last_offset_delta: entries.len() as i32 - 1,
        base_timestamp: 1_700_000_000_000,
        max_timestamp: 1_700_000_000_000 + entries.len() as i64 - 1,
        producer_id: -1,
        producer_epoch: -1,
        base_sequence: -1,
        record_count: 0,
    };
    let made = CanonicalRecord::from_entries(header, entries).expect("a batch");
    CanonicalRecord::from_wire(made.to_kafka_batch().expect("its bytes")).expect("the same")
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let records = [
        "key-1\x1f{\"city\":\"Berlin\",\"amount\":100.5,\"at\":\"2024-03-01T00:00:00Z\"}\x1ftrace",
        "\0\x1f\0",
        "k\x1f{\"a\":{\"b\":[1,2,{\"c\":null}]},\"n\":-9223372036854775808,\"u\":18446744073709551615}",
        "k\x1fnot paid, \u{65e5}\u{672c}\u{8a9e}",
        "k\x1f[[[[[[[[[[1]]]]]]]]]]",
        "k\x1f{\"a\\u0000b\":{\"\\u0001\":\"\\u0000\"},\"\":true}",
    ];
    let all = records.join("\x1e");
    (0..IndexLevel::ALL.len() as u8).map(|level| [&[level], all.as_bytes()].concat()).collect()
}
