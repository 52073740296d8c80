//! Owns the walk over record batches by their headers. Knows nothing of the
//! records inside, and checks no CRC: a batch that was wrong in the broker's log
//! is served as it was written, and its consumer has the last word.
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
//!  big-endian; whole batch = 12 + batch length
//! ```

use bytes::{Buf, Bytes};

use crate::error::ArchiveError;

/// Bytes of a batch before its records.
const HEADER_BYTES: usize = 61;
/// Bytes of a batch up to and with its length field.
pub(crate) const LENGTH_PREFIX_BYTES: usize = 12;

/// One record batch: the header fields a broker looks at, and the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Offset of its first record, as the producer sent it.
    pub base_offset: i64,
    /// The last offset it takes.
    pub last_offset: i64,
    /// Epoch of the leader that appended it; -1 when unknown.
    pub leader_epoch: i32,
    /// Codec, timestamp type, transaction and control flags.
    pub attributes: i16,
    /// Highest timestamp of its records; -1 without.
    pub max_timestamp: i64,
    /// Records in it.
    pub record_count: i32,
    /// The whole batch, header included.
    pub bytes: Bytes,
}

/// Walks `bytes`, whole record batches one after the other, without copying.
#[must_use]
pub fn batches_in(bytes: Bytes) -> BatchIter {
    BatchIter { rest: bytes }
}

/// Record batches, in order. After an error it ends.
#[derive(Clone, Debug)]
pub struct BatchIter {
    rest: Bytes,
}

impl Iterator for BatchIter {
    type Item = Result<Batch, ArchiveError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let batch = take_batch(&mut self.rest);
        if batch.is_err() {
            self.rest = Bytes::new();
        }
        Some(batch)
    }
}

/// The length of the whole batch that `bytes` begin with; `None` while they are
/// too few to tell.
pub(crate) fn batch_len(bytes: &[u8]) -> Result<Option<usize>, ArchiveError> {
    let Some(mut prefix) = bytes.get(..LENGTH_PREFIX_BYTES) else { return Ok(None) };
    let base_offset = prefix.get_i64();
    let length = prefix.get_i32();
    match usize::try_from(length).map(|length| LENGTH_PREFIX_BYTES + length) {
        Ok(whole) if whole >= HEADER_BYTES => Ok(Some(whole)),
        _ => Err(broken(base_offset, format!("has length {length}"))),
    }
}

fn take_batch(rest: &mut Bytes) -> Result<Batch, ArchiveError> {
    let whole = match batch_len(rest)? {
        Some(whole) if whole <= rest.len() => whole,
        _ => return Err(ArchiveError::protocol("a record batch is cut short")),
    };
    let bytes = rest.split_to(whole);
    let mut header = &bytes[..HEADER_BYTES];
    let base_offset = header.get_i64();
    let _batch_length = header.get_i32();
    let leader_epoch = header.get_i32();
    let magic = header.get_i8();
    let _crc = header.get_u32();
    let attributes = header.get_i16();
    let last_offset_delta = header.get_i32();
    let _base_timestamp = header.get_i64();
    let max_timestamp = header.get_i64();
    let _producer_id = header.get_i64();
    let _producer_epoch = header.get_i16();
    let _base_sequence = header.get_i32();
    let record_count = header.get_i32();
    if magic != 2 {
        return Err(broken(base_offset, format!("has magic {magic}, not 2")));
    }
    let last_offset = base_offset.checked_add(i64::from(last_offset_delta));
    // i64::MAX has no offset behind it to go on at.
    let Some(last_offset) =
        last_offset.filter(|last| base_offset >= 0 && last_offset_delta >= 0 && *last < i64::MAX)
    else {
        return Err(broken(base_offset, format!("has last offset delta {last_offset_delta}")));
    };
    Ok(Batch {
        base_offset,
        last_offset,
        leader_epoch,
        attributes,
        max_timestamp,
        record_count,
        bytes,
    })
}

fn broken(base_offset: i64, why: String) -> ArchiveError {
    ArchiveError::protocol(format!("the record batch at offset {base_offset} {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::batch_bytes;

    #[test]
    fn batches_come_one_by_one_with_their_offsets_and_bytes() {
        let first = batch_bytes(10, 3, 7);
        let second = batch_bytes(20, 1, 0);
        let both = Bytes::from([first.clone(), second.clone()].concat());
        let batches: Vec<Batch> = batches_in(both).map(Result::unwrap).collect();
        assert_eq!(batches.len(), 2);
        assert_eq!((batches[0].base_offset, batches[0].last_offset), (10, 12));
        assert_eq!((batches[1].base_offset, batches[1].last_offset), (20, 20));
        assert_eq!(batches[0].record_count, 3);
        assert_eq!(batches[0].bytes, first);
        assert_eq!(batches[1].bytes, second);
    }

    #[test]
    fn every_cut_of_a_batch_is_an_error_and_the_end() {
        let whole = batch_bytes(10, 3, 7);
        for cut in 1..whole.len() {
            let mut walk = batches_in(whole.slice(..cut));
            assert!(walk.next().unwrap().is_err(), "{cut} bytes");
            assert!(walk.next().is_none());
        }
    }

    #[test]
    fn headers_that_no_broker_writes_are_refused() {
        let broken = |at: usize, byte: u8| {
            let mut bytes = batch_bytes(10, 3, 7).to_vec();
            bytes[at] = byte;
            batches_in(Bytes::from(bytes)).next().unwrap().unwrap_err().to_string()
        };
        assert!(broken(16, 1).contains("magic 1"));
        assert!(broken(8, 0xff).contains("length -"));
        assert!(broken(11, 3).contains("length 3"));
        assert!(broken(23, 0xff).contains("last offset delta -"));
        assert!(broken(0, 0xff).contains("offset -"));
    }
}
