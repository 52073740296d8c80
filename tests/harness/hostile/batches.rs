//! Bytes as a record batch, or as what brokers before magic 2 kept.

use bytes::Bytes;
use tierd::record::{BatchError, CanonicalRecord, Codec, decode_message_set};

use crate::batches::Batches;
use crate::chronik::sample_batch;

/// Bytes of entries that a batch may decompress to here: a tenth of what a daemon
/// allows, so that a bomb shows as memory and time.
const SECTION_BYTES_MAX: usize = 8 << 20;
/// Entries that are encoded once more: beyond it the work is only more of the same.
const ENTRIES_MAX: usize = 10_000;
/// Where the fields lie that are mended.
const LENGTH: std::ops::Range<usize> = 8..12;
const MAGIC: usize = 16;
const CRC: std::ops::Range<usize> = 17..21;
const HEADER_BYTES: usize = 61;

/// The first byte chooses: a message set, a batch as it is, or a batch whose length,
/// magic and checksum are mended.
pub fn batches(bytes: &[u8]) {
    let Some((mode, bytes)) = bytes.split_first() else { return };
    match mode % 3 {
        0 => message_set(bytes),
        1 => batch(Bytes::copy_from_slice(bytes)),
        _ => batch(mend(bytes).into()),
    }
}

fn mend(bytes: &[u8]) -> Vec<u8> {
    let mut wire = bytes.to_vec();
    wire.resize(wire.len().max(HEADER_BYTES), 0);
    let length = (wire.len() - LENGTH.end) as i32;
    wire[LENGTH].copy_from_slice(&length.to_be_bytes());
    wire[MAGIC] = 2;
    let crc = crc32c::crc32c(&wire[CRC.end..]);
    wire[CRC].copy_from_slice(&crc.to_be_bytes());
    wire
}

fn batch(wire: Bytes) {
    let Ok(batch) = CanonicalRecord::from_wire(wire.clone()) else { return };
    assert_eq!(batch.to_kafka_batch().expect("wire bytes"), wire, "a batch is kept as it is");
    let mut header = [0; HEADER_BYTES];
    batch.header().encode(&mut &mut header[..]);
    assert_eq!(header, wire[..HEADER_BYTES], "a header says all of its bytes");
    // Neither may do more than refuse.
    let _ = (batch.verify_crc().is_ok(), batch.marker().is_ok());
    let Ok(entries) = batch.entries_within(SECTION_BYTES_MAX) else { return };
    let entries: Result<Vec<_>, BatchError> = entries.take(ENTRIES_MAX).collect();
    let Ok(entries) = entries else { return };
    if entries.len() == ENTRIES_MAX {
        return;
    }
    let Ok(made) = CanonicalRecord::from_entries(*batch.header(), entries.clone()) else { return };
    let made = CanonicalRecord::from_wire(made.to_kafka_batch().expect("its bytes"))
        .expect("what tierd encodes is a batch");
    made.verify_crc().expect("with its checksum");
    assert_eq!(made.decode().expect("and decodes"), entries, "to the entries it was made of");
    assert_eq!(made.range(), batch.range());
}

fn message_set(bytes: &[u8]) {
    let Ok(set) = decode_message_set(bytes, 7) else { return };
    let entries = set.entries.clone();
    let Ok(batch) = set.into_record() else { return };
    assert_eq!(batch.decode().expect("what tierd made"), entries);
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let seed = |mode: u8, wire: &[u8]| [&[mode], wire].concat();
    let codecs = [Codec::None, Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd];
    let plain = codecs.map(|codec| sample_batch(0, 3, 30, codec).expect("a batch"));
    let mut seeds: Vec<Vec<u8>> = plain.iter().map(|wire| seed(1, wire)).collect();
    seeds.extend(Batches::new(7, 0).take(12).map(|made| seed(2, &made.wire)));
    // A set of one message of magic 1 and one of magic 0, without codec.
    let message = |magic: u8, time: &[u8]| {
        let body = [&[magic, 0], time, &[0, 0, 0, 1, b'k', 0, 0, 0, 1, b'v']].concat();
        let crc = crc32fast::hash(&body).to_be_bytes();
        let size = (body.len() + crc.len()) as u32;
        [&[0; 8][..], &size.to_be_bytes(), &crc, &body].concat()
    };
    seeds.push(seed(0, &[message(1, &[0; 8]), message(0, &[])].concat()));
    seeds
}
