//! Owns the message sets of magic 0 and 1, which Kafka clients sent before 0.11:
//! reading only. They become entries, and those a magic-2 batch.
//!
//! Source: Apache Kafka, "Old Message Format"; KIP-31, KIP-32, KIP-57.
//! Everything is big-endian.
//!
//! ```text
//!  message:  | offset | size | crc | magic  | attributes | timestamp    | key    | key | value  | value
//!            | i64    | i32  | u32 | i8 0/1 | i8         | i64, magic 1 | length |     | length |
//!                                                                       | i32    |     | i32    |
//!  size counts the bytes after itself; a length of -1 is null
//!  crc is CRC-32 (IEEE) over magic to the end
//!  attributes: bits 0-2 codec (not zstd) | 3 log-append time (magic 1)
//!  a message with a codec is a wrapper: its value is a compressed message set
//!  of the same magic, not compressed again; a wrapper's log-append time is that
//!  of all its messages
//! ```
//!
//! The offsets in the bytes mean little (a broker patches the first one only):
//! messages are numbered one after the other from the base offset given.

use bytes::{Buf, Bytes};

use super::batch::{BatchError, BatchHeader, Codec, LOG_APPEND_TIME};
use super::{CanonicalRecord, CanonicalRecordEntry, DECODED_BATCH_BYTES_MAX, compression};

/// Timestamp of messages that have none (magic 0).
pub const NO_TIMESTAMP: i64 = -1;

/// Bytes of a message that its size does not count.
const PREFIX_BYTES: usize = 12;
/// Fewest bytes of a message after its size: crc, magic, attributes, two lengths.
const MESSAGE_BYTES_MIN: usize = 14;

/// A decoded message set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MessageSet {
    /// The messages, numbered from the base offset; timestamps are the effective
    /// ones, -1 where there is none.
    pub entries: Vec<CanonicalRecordEntry>,
    /// Whether all timestamps are one log-append time.
    pub log_append_time: bool,
    /// The codec of the first wrapper, else none.
    pub codec: Codec,
    /// Messages and wrappers whose CRC-32 is wrong; they are decoded all the same.
    pub bad_crcs: u32,
}

/// Decodes a whole message set of magic 0 or 1.
///
/// # Errors
/// When the bytes are not whole messages of one of these magics, or inflate
/// beyond [`DECODED_BATCH_BYTES_MAX`].
pub fn decode_message_set(bytes: &[u8], base_offset: i64) -> Result<MessageSet, BatchError> {
    decode_within(bytes, base_offset, DECODED_BATCH_BYTES_MAX)
}

fn decode_within(bytes: &[u8], base_offset: i64, limit: usize) -> Result<MessageSet, BatchError> {
    let mut set =
        Decoder { base_offset, entries: Vec::new(), bad_crcs: 0, codec: Codec::None, left: limit };
    // One copy, so that keys and values are slices of it.
    let mut rest = Bytes::copy_from_slice(bytes);
    let (mut messages, mut log_appends) = (0_usize, 0_usize);
    while !rest.is_empty() {
        let message = Message::take(&mut rest)?;
        messages += 1;
        log_appends += usize::from(message.log_append_time());
        set.outer(message, limit)?;
    }
    let timestamp = set.entries.first().map(|entry| entry.timestamp);
    let same = set.entries.iter().all(|entry| Some(entry.timestamp) == timestamp);
    Ok(MessageSet {
        log_append_time: same && messages > 0 && log_appends == messages,
        entries: set.entries,
        codec: set.codec,
        bad_crcs: set.bad_crcs,
    })
}

impl MessageSet {
    /// The set as one magic-2 batch without producer, as a broker converts it:
    /// base timestamp of the first message, leader epoch -1, the codec kept.
    ///
    /// # Errors
    /// When the set is empty, or too large for a batch.
    pub fn into_record(self) -> Result<CanonicalRecord, BatchError> {
        let (Some(first), Some(last)) = (self.entries.first(), self.entries.last()) else {
            return Err(BatchError::Invalid { field: "message set", why: "it is empty".into() });
        };
        let delta = last.offset - first.offset;
        let header = BatchHeader {
            base_offset: first.offset,
            batch_length: 0,
            partition_leader_epoch: -1,
            crc: 0,
            attributes: self.codec.bits() | if self.log_append_time { LOG_APPEND_TIME } else { 0 },
            last_offset_delta: i32::try_from(delta).map_err(|_| BatchError::Invalid {
                field: "last_offset_delta",
                why: delta.to_string(),
            })?,
            base_timestamp: first.timestamp,
            max_timestamp: self.entries.iter().map(|entry| entry.timestamp).fold(-1, i64::max),
            producer_id: -1,
            producer_epoch: -1,
            base_sequence: -1,
            record_count: 0,
        };
        CanonicalRecord::from_entries(header, self.entries)
    }
}

struct Decoder {
    base_offset: i64,
    entries: Vec<CanonicalRecordEntry>,
    bad_crcs: u32,
    codec: Codec,
    /// Bytes that wrappers may still inflate to.
    left: usize,
}

impl Decoder {
    fn outer(&mut self, message: Message, limit: usize) -> Result<(), BatchError> {
        self.bad_crcs += u32::from(!message.crc_ok);
        let codec = Codec::from_attributes(i16::from(message.attributes))?;
        if codec == Codec::None {
            return self.push(message.key, message.value, message.timestamp);
        }
        if codec == Codec::Zstd {
            return Err(invalid("attributes", "zstd before magic 2"));
        }
        if self.codec == Codec::None {
            self.codec = codec;
        }
        let Some(packed) = &message.value else {
            return Err(invalid("value length", "a wrapper message without a value"));
        };
        let mut inner = compression::decompress_legacy(codec, packed, self.left)
            .map_err(|refusal| refusal.of_batch(self.base_offset, codec, limit))?;
        self.left -= inner.len();
        while !inner.is_empty() {
            let one = Message::take(&mut inner)?;
            self.bad_crcs += u32::from(!one.crc_ok);
            if one.magic != message.magic {
                return Err(invalid("magic", "a message of another magic inside a wrapper"));
            }
            if Codec::from_attributes(i16::from(one.attributes))? != Codec::None {
                return Err(invalid("attributes", "a wrapper inside a wrapper"));
            }
            let timestamp =
                if message.log_append_time() { message.timestamp } else { one.timestamp };
            self.push(one.key, one.value, timestamp)?;
        }
        Ok(())
    }

    fn push(
        &mut self,
        key: Option<Bytes>,
        value: Option<Bytes>,
        timestamp: i64,
    ) -> Result<(), BatchError> {
        let offset = i64::try_from(self.entries.len())
            .ok()
            .and_then(|index| self.base_offset.checked_add(index))
            .ok_or_else(|| invalid("offset", "offsets run out"))?;
        let headers = Vec::new();
        self.entries.push(CanonicalRecordEntry {
            offset,
            timestamp,
            attributes: 0,
            key,
            value,
            headers,
        });
        Ok(())
    }
}

struct Message {
    magic: i8,
    attributes: i8,
    timestamp: i64,
    key: Option<Bytes>,
    value: Option<Bytes>,
    crc_ok: bool,
}

impl Message {
    fn take(bytes: &mut Bytes) -> Result<Self, BatchError> {
        if bytes.len() < PREFIX_BYTES {
            return Err(BatchError::Truncated { field: "message" });
        }
        bytes.advance(8); // offset: see the module
        let size = bytes.get_i32();
        let size = usize::try_from(size)
            .ok()
            .filter(|size| *size >= MESSAGE_BYTES_MIN)
            .ok_or_else(|| invalid("message size", size))?;
        if size > bytes.len() {
            return Err(BatchError::Truncated { field: "message" });
        }
        let mut message = bytes.split_to(size);
        let crc = message.get_u32();
        let crc_ok = crc32fast::hash(&message) == crc;
        let magic = message.get_i8();
        let attributes = message.get_i8();
        let timestamp = match magic {
            0 => NO_TIMESTAMP,
            1 if message.len() >= 8 => message.get_i64(),
            1 => return Err(BatchError::Truncated { field: "timestamp" }),
            other => return Err(BatchError::Magic { magic: other }),
        };
        let key = nullable(&mut message, "key length")?;
        let value = nullable(&mut message, "value length")?;
        if !message.is_empty() {
            return Err(invalid("message size", format!("{} bytes too many", message.len())));
        }
        Ok(Self { magic, attributes, timestamp, key, value, crc_ok })
    }

    fn log_append_time(&self) -> bool {
        self.magic == 1 && i16::from(self.attributes) & LOG_APPEND_TIME != 0
    }
}

fn nullable(message: &mut Bytes, field: &'static str) -> Result<Option<Bytes>, BatchError> {
    if message.len() < 4 {
        return Err(BatchError::Truncated { field });
    }
    let length = message.get_i32();
    if length == -1 {
        return Ok(None);
    }
    let Ok(length) = usize::try_from(length) else {
        return Err(invalid(field, length));
    };
    if length > message.len() {
        return Err(BatchError::Truncated { field });
    }
    Ok(Some(message.split_to(length)))
}

fn invalid(field: &'static str, why: impl ToString) -> BatchError {
    BatchError::Invalid { field, why: why.to_string() }
}

#[cfg(test)]
mod tests {
    use bytes::BufMut;

    use super::*;

    struct Plain<'a> {
        magic: i8,
        attributes: i8,
        timestamp: i64,
        key: Option<&'a [u8]>,
        value: Option<&'a [u8]>,
    }

    impl Plain<'_> {
        fn bytes(&self, offset: i64) -> Vec<u8> {
            let mut body = Vec::new();
            body.put_i8(self.magic);
            body.put_i8(self.attributes);
            if self.magic == 1 {
                body.put_i64(self.timestamp);
            }
            for part in [self.key, self.value] {
                body.put_i32(part.map_or(-1, |part| part.len() as i32));
                body.put_slice(part.unwrap_or_default());
            }
            let mut message = Vec::new();
            message.put_i64(offset);
            message.put_i32(body.len() as i32 + 4);
            message.put_u32(crc32fast::hash(&body));
            message.put_slice(&body);
            message
        }
    }

    fn three(magic: i8) -> Vec<u8> {
        let message = |timestamp, key, value| Plain { magic, attributes: 0, timestamp, key, value };
        [
            message(30, Some(&b"a"[..]), Some(&b"x"[..])).bytes(0),
            message(10, None, Some(b"")).bytes(77),
            message(20, Some(b""), None).bytes(1),
        ]
        .concat()
    }

    fn wrapped(magic: i8, codec: Codec, log_append: bool, inner: &[u8]) -> Vec<u8> {
        let mut value = Vec::new();
        compression::compress(codec, inner, &mut value).unwrap();
        let attributes = codec.bits() as i8 | if log_append { 8 } else { 0 };
        Plain { magic, attributes, timestamp: 99, key: None, value: Some(&value) }.bytes(2)
    }

    type Fields = (i64, i64, Option<Vec<u8>>, Option<Vec<u8>>);

    fn fields(set: &MessageSet) -> Vec<Fields> {
        let part = |part: &Option<Bytes>| part.as_ref().map(|part| part.to_vec());
        set.entries.iter().map(|e| (e.offset, e.timestamp, part(&e.key), part(&e.value))).collect()
    }

    fn expected(timestamps: [i64; 3]) -> Vec<Fields> {
        let bytes = |text: &str| Some(text.as_bytes().to_vec());
        vec![
            (500, timestamps[0], bytes("a"), bytes("x")),
            (501, timestamps[1], None, bytes("")),
            (502, timestamps[2], bytes(""), None),
        ]
    }

    #[test]
    fn messages_are_numbered_from_the_base_whatever_their_offsets_say() {
        let set = decode_message_set(&three(1), 500).unwrap();
        assert_eq!(fields(&set), expected([30, 10, 20]));
        assert_eq!((set.log_append_time, set.codec, set.bad_crcs), (false, Codec::None, 0));
        let set = decode_message_set(&three(0), 500).unwrap();
        assert_eq!(fields(&set), expected([-1, -1, -1]));
    }

    #[test]
    fn wrappers_of_every_codec_are_opened() {
        for magic in [0, 1] {
            for codec in [Codec::Gzip, Codec::Snappy, Codec::Lz4] {
                let set = decode_message_set(&wrapped(magic, codec, false, &three(magic)), 500);
                let set = set.unwrap();
                let times = if magic == 1 { [30, 10, 20] } else { [-1; 3] };
                assert_eq!(fields(&set), expected(times), "{codec}");
                assert_eq!((set.log_append_time, set.codec), (false, codec));
            }
        }
    }

    #[test]
    fn an_lz4_wrapper_with_kafkas_own_checksum_is_opened() {
        let mut frame = Vec::new();
        compression::compress(Codec::Lz4, &three(0), &mut frame).unwrap();
        frame[6] = (twox_hash::XxHash32::oneshot(0, &frame[..6]) >> 8) as u8;
        let value = Some(&frame[..]);
        let set = Plain { magic: 0, attributes: 3, timestamp: 0, key: None, value }.bytes(0);
        assert_eq!(decode_message_set(&set, 0).unwrap().entries.len(), 3);
    }

    #[test]
    fn a_wrappers_log_append_time_is_that_of_its_messages() {
        let set = wrapped(1, Codec::Gzip, true, &three(1));
        let set = decode_message_set(&set, 500).unwrap();
        assert_eq!(fields(&set), expected([99; 3]));
        assert!(set.log_append_time);
        let record = set.into_record().unwrap();
        assert!(record.header().is_log_append_time());
        assert_eq!(record.header().max_timestamp, 99);
    }

    #[test]
    fn a_set_becomes_a_batch_with_the_same_entries() {
        let set = decode_message_set(&wrapped(1, Codec::Snappy, false, &three(1)), 500).unwrap();
        let record = set.clone().into_record().unwrap();
        let header = record.header();
        assert_eq!(
            (header.codec(), header.producer_id, header.record_count),
            (Codec::Snappy, -1, 3)
        );
        assert_eq!((header.base_offset, header.last_offset()), (500, 502));
        assert_eq!((header.base_timestamp, header.max_timestamp), (30, 30));
        let again = CanonicalRecord::from_wire(record.to_kafka_batch().unwrap()).unwrap();
        again.verify_crc().unwrap();
        assert_eq!(again.decode().unwrap(), set.entries);
    }

    #[test]
    fn a_wrong_checksum_is_counted_and_the_message_kept() {
        let mut set = three(1);
        set[12] ^= 1;
        let set = decode_message_set(&set, 500).unwrap();
        assert_eq!((set.bad_crcs, set.entries.len()), (1, 3));
    }

    #[test]
    fn sets_that_no_client_sends_are_refused() {
        let refuse = |set: Vec<u8>, with: &str| {
            let error = decode_message_set(&set, 0).unwrap_err().to_string();
            assert!(error.contains(with), "{error}");
        };
        refuse(wrapped(1, Codec::Zstd, false, &three(1)), "zstd");
        refuse(wrapped(1, Codec::Gzip, false, &three(0)), "another magic");
        let twice = wrapped(1, Codec::Gzip, false, &three(1));
        refuse(wrapped(1, Codec::Gzip, false, &twice), "inside a wrapper");
        let mut future = three(1);
        future[16] = 2;
        refuse(future, "magic 2");
        let empty = Plain { magic: 1, attributes: 1, timestamp: 0, key: None, value: None };
        refuse(empty.bytes(0), "without a value");
        assert!(decode_message_set(&[], 0).unwrap().into_record().is_err());
    }

    #[test]
    fn cuts_are_refused_and_flipped_bytes_never_panic() {
        let set = [three(1), wrapped(1, Codec::Lz4, false, &three(1))].concat();
        let whole = decode_message_set(&set, 0).unwrap().entries.len();
        for end in 0..set.len() {
            if let Ok(cut) = decode_message_set(&set[..end], 0) {
                assert!(cut.entries.len() < whole, "{end}");
            }
        }
        for at in 0..set.len() {
            for flip in [0x01, 0x80, 0xff] {
                let mut bad = set.clone();
                bad[at] ^= flip;
                let _ = decode_message_set(&bad, 0);
            }
        }
    }

    #[test]
    fn wrappers_share_one_limit() {
        let inner =
            Plain { magic: 1, attributes: 0, timestamp: 0, key: None, value: Some(&[0; 900]) };
        let one = wrapped(1, Codec::Gzip, false, &inner.bytes(0));
        assert!(decode_within(&one, 0, 1000).is_ok());
        let error = decode_within(&one.repeat(2), 7, 1000).unwrap_err();
        assert_eq!(error, BatchError::TooLarge { base_offset: 7, limit: 1000 });
    }
}
