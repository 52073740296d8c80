//! Owns the 61 bytes in front of every magic-2 record batch.
//!
//! Source: Apache Kafka, "Record Batch" of the protocol guide; KIP-98.
//! Everything is big-endian.
//!
//! ```text
//!  0        8         12             16    17     21          23
//!  | base   | batch   | leader       | mag | crc  | attributes| last offset
//!  | offset | length  | epoch        | ic 2| 32c  |           | delta
//!  | i64    | i32     | i32          | i8  | u32  | i16       | i32
//!
//!  27         35         43         51        53        57       61
//!  | base     | max      | producer | producer| base    | record | records
//!  | timestamp| timestamp| id       | epoch   | sequence| count  | section
//!  | i64      | i64      | i64      | i16     | i32     | i32    |
//!
//!  batch length counts the bytes after itself: whole batch = 12 + batch length
//!  crc is CRC-32C over bytes 21 to the end; base offset and leader epoch lie outside it
//!
//!  attributes: bits 0-2 codec | 3 timestamp type | 4 transactional | 5 control
//!              | 6 base timestamp is a delete horizon (KIP-534) | 7-15 unused, kept
//! ```

use bytes::{Buf, BufMut};

use super::name::OffsetRange;
use crate::error::{Classify, ErrorKind};

/// Bytes of a batch before its records section.
pub const BATCH_HEADER_BYTES: usize = 61;
/// Bytes of a batch that its length field does not count.
pub const BATCH_LENGTH_PREFIX_BYTES: usize = 12;
/// Where the bytes begin that a batch's CRC-32C covers.
pub const BATCH_CRC_START: usize = 21;
/// Largest batch accepted, in bytes on the wire. Brokers refuse requests far
/// below this; a length field above it is damage, not data.
pub const BATCH_BYTES_MAX: usize = 128 << 20;

const CODEC_MASK: i16 = 0x07;
pub(super) const LOG_APPEND_TIME: i16 = 0x08;
const TRANSACTIONAL: i16 = 0x10;
const CONTROL: i16 = 0x20;
const DELETE_HORIZON: i16 = 0x40;

/// Why bytes are not a record batch, or a batch cannot be decoded or built.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BatchError {
    /// Fewer bytes than the field needs.
    #[error("record batch is cut short at {field}")]
    Truncated {
        /// The field that does not fit.
        field: &'static str,
    },
    /// A field holds a value that no writer puts there.
    #[error("record batch field {field} is invalid: {why}")]
    Invalid {
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// Magic 0, 1, or one from the future.
    #[error("record batch has magic {magic}; only magic 2 is understood")]
    Magic {
        /// The magic byte found.
        magic: i8,
    },
    /// The checksum of the batch is not that of its bytes.
    #[error(
        "record batch at offset {base_offset} has CRC-32C {computed:08x}, its header says {stored:08x}"
    )]
    Crc {
        /// Base offset of the batch.
        base_offset: i64,
        /// The checksum in the header.
        stored: u32,
        /// The checksum of the bytes.
        computed: u32,
    },
    /// The codec refused the records section.
    #[error("record batch at offset {base_offset} does not decompress ({codec}): {why}")]
    Decompress {
        /// Base offset of the batch.
        base_offset: i64,
        /// The codec that refused.
        codec: Codec,
        /// The codec's reason.
        why: String,
    },
    /// The records section inflates beyond the limit given.
    #[error("record batch at offset {base_offset} inflates beyond {limit} bytes")]
    TooLarge {
        /// Base offset of the batch.
        base_offset: i64,
        /// The limit, in bytes.
        limit: usize,
    },
}

impl Classify for BatchError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::TooLarge { .. } => ErrorKind::Exhausted,
            _ => ErrorKind::Corrupt,
        }
    }
}

/// How the records section is compressed: bits 0-2 of the attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Codec {
    /// Not compressed.
    None,
    /// RFC 1952.
    Gzip,
    /// Snappy, raw or in the framing of `snappy-java`.
    Snappy,
    /// The LZ4 frame format.
    Lz4,
    /// RFC 8878 (KIP-110).
    Zstd,
}

impl Codec {
    /// The codec of attribute bits 0-2; an unknown number is an error, never "none".
    ///
    /// # Errors
    /// For numbers 5 to 7.
    pub fn from_attributes(attributes: i16) -> Result<Self, BatchError> {
        match attributes & CODEC_MASK {
            0 => Ok(Self::None),
            1 => Ok(Self::Gzip),
            2 => Ok(Self::Snappy),
            3 => Ok(Self::Lz4),
            4 => Ok(Self::Zstd),
            other => Err(BatchError::Invalid {
                field: "attributes",
                why: format!("codec {other} is unknown"),
            }),
        }
    }

    /// The number of the codec in the attributes.
    #[must_use]
    pub const fn bits(self) -> i16 {
        match self {
            Self::None => 0,
            Self::Gzip => 1,
            Self::Snappy => 2,
            Self::Lz4 => 3,
            Self::Zstd => 4,
        }
    }
}

impl std::fmt::Display for Codec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Snappy => "snappy",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        })
    }
}

/// The header of a batch, field by field as on the wire. Plain data: nothing is
/// derived and nothing corrected, so that encoding it gives the bytes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    /// Offset of the first record the producer put in the batch.
    pub base_offset: i64,
    /// Bytes that follow this field.
    pub batch_length: i32,
    /// Epoch of the leader that appended the batch; -1 when unknown.
    pub partition_leader_epoch: i32,
    /// CRC-32C as stored.
    pub crc: u32,
    /// Attribute bits as stored.
    pub attributes: i16,
    /// Last offset minus base offset, true to gaps that compaction left.
    pub last_offset_delta: i32,
    /// Milliseconds; record timestamps are deltas to it.
    pub base_timestamp: i64,
    /// Milliseconds; for log-append time the timestamp of every record.
    pub max_timestamp: i64,
    /// Idempotent or transactional producer; -1 for none.
    pub producer_id: i64,
    /// Epoch of that producer; -1 for none.
    pub producer_epoch: i16,
    /// Sequence number of the first record; -1 for none.
    pub base_sequence: i32,
    /// Records in the batch.
    pub record_count: i32,
}

impl BatchHeader {
    /// Reads a header and checks what can be checked from it alone: magic,
    /// length, offset arithmetic, codec, count. `bytes` may go on after it.
    ///
    /// # Errors
    /// Names the first field that is wrong.
    pub fn decode(mut bytes: &[u8]) -> Result<Self, BatchError> {
        if bytes.len() < BATCH_HEADER_BYTES {
            return Err(BatchError::Truncated { field: "header" });
        }
        let base_offset = bytes.get_i64();
        let batch_length = bytes.get_i32();
        let partition_leader_epoch = bytes.get_i32();
        let magic = bytes.get_i8();
        if magic != 2 {
            return Err(BatchError::Magic { magic });
        }
        let header = Self {
            base_offset,
            batch_length,
            partition_leader_epoch,
            crc: bytes.get_u32(),
            attributes: bytes.get_i16(),
            last_offset_delta: bytes.get_i32(),
            base_timestamp: bytes.get_i64(),
            max_timestamp: bytes.get_i64(),
            producer_id: bytes.get_i64(),
            producer_epoch: bytes.get_i16(),
            base_sequence: bytes.get_i32(),
            record_count: bytes.get_i32(),
        };
        header.check()?;
        Ok(header)
    }

    /// Refuses every header that [`Self::decode`] refuses.
    pub(super) fn check(&self) -> Result<(), BatchError> {
        let invalid = |field, why: String| Err(BatchError::Invalid { field, why });
        let least = (BATCH_HEADER_BYTES - BATCH_LENGTH_PREFIX_BYTES) as i32;
        if self.batch_length < least || self.wire_len() > BATCH_BYTES_MAX {
            return invalid("batch_length", format!("{} bytes", self.batch_length));
        }
        if self.last_offset_delta < 0 {
            return invalid("last_offset_delta", self.last_offset_delta.to_string());
        }
        let last = self.base_offset.checked_add(i64::from(self.last_offset_delta));
        if last.and_then(|last| OffsetRange::new(self.base_offset, last)).is_none() {
            return invalid("base_offset", self.base_offset.to_string());
        }
        if self.record_count < 0 {
            return invalid("record_count", self.record_count.to_string());
        }
        Codec::from_attributes(self.attributes).map(|_| ())
    }

    /// Writes the 61 bytes.
    pub fn encode(&self, out: &mut impl BufMut) {
        out.put_i64(self.base_offset);
        out.put_i32(self.batch_length);
        out.put_i32(self.partition_leader_epoch);
        out.put_i8(2);
        out.put_u32(self.crc);
        out.put_i16(self.attributes);
        out.put_i32(self.last_offset_delta);
        out.put_i64(self.base_timestamp);
        out.put_i64(self.max_timestamp);
        out.put_i64(self.producer_id);
        out.put_i16(self.producer_epoch);
        out.put_i32(self.base_sequence);
        out.put_i32(self.record_count);
    }

    /// Bytes of the whole batch on the wire.
    #[must_use]
    pub fn wire_len(&self) -> usize {
        // check() refuses negative lengths before anyone asks.
        BATCH_LENGTH_PREFIX_BYTES + usize::try_from(self.batch_length).unwrap_or(0)
    }

    /// The offsets the batch takes, by its own header.
    #[must_use]
    pub fn range(&self) -> OffsetRange {
        OffsetRange::new(self.base_offset, self.last_offset())
            .unwrap_or_else(|| unreachable!("check() refuses headers without a range"))
    }

    /// The last offset the batch takes.
    #[must_use]
    pub fn last_offset(&self) -> i64 {
        self.base_offset + i64::from(self.last_offset_delta)
    }

    /// The codec of the records section.
    #[must_use]
    pub fn codec(&self) -> Codec {
        Codec::from_attributes(self.attributes)
            .unwrap_or_else(|_| unreachable!("check() refuses unknown codecs"))
    }

    /// Whether every record carries the broker's append time ([`Self::max_timestamp`]).
    #[must_use]
    pub fn is_log_append_time(&self) -> bool {
        self.attributes & LOG_APPEND_TIME != 0
    }

    /// Whether the batch belongs to a transaction.
    #[must_use]
    pub fn is_transactional(&self) -> bool {
        self.attributes & TRANSACTIONAL != 0
    }

    /// Whether the batch holds a transaction marker instead of data.
    #[must_use]
    pub fn is_control(&self) -> bool {
        self.attributes & CONTROL != 0
    }

    /// Whether the base timestamp is a delete horizon (KIP-534).
    #[must_use]
    pub fn has_delete_horizon(&self) -> bool {
        self.attributes & DELETE_HORIZON != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> BatchHeader {
        BatchHeader {
            base_offset: 5,
            batch_length: 61,
            partition_leader_epoch: -1,
            crc: 0x1234_5678,
            attributes: 0x1b,
            last_offset_delta: 3,
            base_timestamp: 1_700_000_000_000,
            max_timestamp: 1_700_000_000_009,
            producer_id: 7,
            producer_epoch: 2,
            base_sequence: 11,
            record_count: 4,
        }
    }

    fn bytes_of(header: &BatchHeader) -> Vec<u8> {
        let mut bytes = Vec::new();
        header.encode(&mut bytes);
        bytes
    }

    #[test]
    fn a_header_survives_encoding_and_decoding() {
        let bytes = bytes_of(&header());
        assert_eq!(bytes.len(), BATCH_HEADER_BYTES);
        let decoded = BatchHeader::decode(&bytes).unwrap();
        assert_eq!(decoded, header());
        assert_eq!(decoded.codec(), Codec::Lz4);
        assert!(decoded.is_log_append_time() && decoded.is_transactional());
        assert!(!decoded.is_control() && !decoded.has_delete_horizon());
        assert_eq!(decoded.range(), OffsetRange::new(5, 8).unwrap());
    }

    #[test]
    fn every_cut_of_a_header_is_refused() {
        let bytes = bytes_of(&header());
        for end in 0..BATCH_HEADER_BYTES {
            assert!(BatchHeader::decode(&bytes[..end]).is_err(), "{end} bytes");
        }
    }

    #[test]
    fn fields_that_no_writer_makes_are_refused_by_name() {
        let refuse = |field: &str, broken: BatchHeader| {
            let error = BatchHeader::decode(&bytes_of(&broken)).unwrap_err().to_string();
            assert!(error.contains(field), "{error}");
        };
        refuse("batch_length", BatchHeader { batch_length: 48, ..header() });
        refuse("batch_length", BatchHeader { batch_length: i32::MAX, ..header() });
        refuse("last_offset_delta", BatchHeader { last_offset_delta: -1, ..header() });
        refuse("base_offset", BatchHeader { base_offset: -1, ..header() });
        refuse("base_offset", BatchHeader { base_offset: i64::MAX - 2, ..header() });
        refuse("record_count", BatchHeader { record_count: -1, ..header() });
        refuse("codec 7", BatchHeader { attributes: 7, ..header() });
        let mut magic_1 = bytes_of(&header());
        magic_1[16] = 1;
        assert_eq!(BatchHeader::decode(&magic_1), Err(BatchError::Magic { magic: 1 }));
    }
}
