//! Owns the records section of a batch: its entries, decoded one at a time and
//! encoded again.
//!
//! Source: Apache Kafka, "Record" of the protocol guide; KIP-82 for headers.
//!
//! ```text
//!  record:  | length | attributes | timestamp delta | offset delta | key length | key
//!           | varint | i8         | varlong         | varint       | varint     |
//!           | value length | value | header count | header | header | …
//!           | varint       |       | varint       |
//!  header:  | name length | name | value length | value
//!           | varint      |      | varint       |
//!
//!  length counts the bytes after itself; a length of -1 is null (not for names)
//!  offset deltas ascend and stay within 0..=last offset delta
//! ```
//!
//! The decoder rejects what no Kafka writer makes: lengths beyond the bytes that
//! remain, records that are not used up, offsets that repeat or go back, a count
//! that is not the header's, bytes after the last record.

use std::sync::Arc;

use bytes::Bytes;

use super::batch::{BatchError, BatchHeader};
use super::varint::{Input, len_i64, put, put_len, put_nullable, varint_len};
use super::{CanonicalRecordEntry, Header};

/// Fewest bytes a record takes: length, attributes, two deltas, key, value and
/// header count, one byte each.
const RECORD_BYTES_MIN: usize = 7;
/// Fewest bytes a record header takes: two lengths.
const HEADER_BYTES_MIN: usize = 2;

/// The entries of one batch, decoded as they are asked for. Ends after the
/// first error.
///
/// As an iterator it yields entries whose keys and values are slices of one
/// buffer and keep it alive; [`Self::next_ref`] lends them and allocates nothing.
#[derive(Clone, Debug)]
pub struct Entries(Source);

#[derive(Clone, Debug)]
enum Source {
    Section { section: Bytes, at: Position },
    Listed { entries: Arc<[CanonicalRecordEntry]>, next: usize },
}

/// One entry, borrowed. Fields as in [`CanonicalRecordEntry`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryRef<'a> {
    /// Absolute offset.
    pub offset: i64,
    /// Milliseconds as encoded; see
    /// [`CanonicalRecord::effective_timestamp`](super::CanonicalRecord::effective_timestamp).
    pub timestamp: i64,
    /// Record attributes.
    pub attributes: i8,
    /// Key; null and empty differ.
    pub key: Option<&'a [u8]>,
    /// Value; null and empty differ.
    pub value: Option<&'a [u8]>,
    headers: HeaderRefs<'a>,
}

/// One header of an entry, borrowed: its name, and its value or null.
pub type HeaderRef<'a> = (&'a [u8], Option<&'a [u8]>);

/// The headers of an entry in order, borrowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeaderRefs<'a>(HeaderSource<'a>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HeaderSource<'a> {
    /// Encoded, already walked once: `count` of them are there and fit.
    Encoded {
        bytes: &'a [u8],
        count: usize,
    },
    Listed(&'a [Header]),
}

impl<'a> EntryRef<'a> {
    /// The headers, in order, duplicates kept.
    #[must_use]
    pub fn headers(&self) -> HeaderRefs<'a> {
        self.headers
    }

    fn to_owned_in(self, section: &Bytes) -> CanonicalRecordEntry {
        CanonicalRecordEntry {
            offset: self.offset,
            timestamp: self.timestamp,
            attributes: self.attributes,
            key: self.key.map(|key| section.slice_ref(key)),
            value: self.value.map(|value| section.slice_ref(value)),
            headers: self
                .headers
                .map(|(name, value)| Header {
                    name: section.slice_ref(name),
                    value: value.map(|value| section.slice_ref(value)),
                })
                .collect(),
        }
    }
}

impl<'a> Iterator for HeaderRefs<'a> {
    type Item = HeaderRef<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        match &mut self.0 {
            HeaderSource::Encoded { count: 0, .. } => None,
            HeaderSource::Encoded { bytes, count } => {
                *count -= 1;
                let mut input = Input(bytes);
                let header = input.header().ok();
                *bytes = input.0;
                header
            }
            HeaderSource::Listed(headers) => {
                let (first, rest) = headers.split_first()?;
                *headers = rest;
                Some((&first.name, first.value.as_deref()))
            }
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let count = match self.0 {
            HeaderSource::Encoded { count, .. } => count,
            HeaderSource::Listed(headers) => headers.len(),
        };
        (count, Some(count))
    }
}

impl ExactSizeIterator for HeaderRefs<'_> {}

/// How far the decoding of a section has come.
#[derive(Clone, Copy, Debug)]
struct Position {
    base_offset: i64,
    base_timestamp: i64,
    last_offset_delta: i32,
    record_count: i32,
    byte: usize,
    /// Records decoded.
    decoded: i32,
    /// Offset delta of the last record decoded; -1 before the first.
    delta: i32,
    ended: bool,
}

impl Position {
    // Generic over nothing and in one piece: this is the hot loop of indexing.
    fn step<'a>(&mut self, section: &'a [u8]) -> Option<Result<EntryRef<'a>, BatchError>> {
        if self.ended {
            return None;
        }
        let rest = section.get(self.byte..).unwrap_or_default();
        if self.decoded == self.record_count {
            self.ended = true;
            let why = format!("{} bytes follow the last record", rest.len());
            return (!rest.is_empty()).then_some(Err(invalid("records", why)));
        }
        let mut input = Input(rest);
        match self.record(&mut input) {
            Ok(entry) => {
                self.byte = section.len() - input.0.len();
                self.decoded += 1;
                Some(Ok(entry))
            }
            Err(error) => {
                self.ended = true;
                Some(Err(self.of_record(error)))
            }
        }
    }

    fn record<'a>(&mut self, input: &mut Input<'a>) -> Result<EntryRef<'a>, BatchError> {
        let length = input.varint("length")?;
        let mut record = Input(input.slice(length, "length")?);
        let attributes = record.byte("attributes")?.cast_signed();
        let timestamp_delta = record.varlong("timestamp delta")?;
        let Some(timestamp) = self.base_timestamp.checked_add(timestamp_delta) else {
            return Err(invalid("timestamp delta", timestamp_delta.to_string()));
        };
        let delta = record.varint("offset delta")?;
        if delta <= self.delta || delta > self.last_offset_delta {
            let why = format!(
                "{delta} follows {}, last offset delta is {}",
                self.delta, self.last_offset_delta
            );
            return Err(invalid("offset delta", why));
        }
        let key = record.nullable("key length")?;
        let value = record.nullable("value length")?;
        let count = record.varint("header count")?;
        let count = usize::try_from(count)
            .ok()
            .filter(|count| *count <= record.0.len() / HEADER_BYTES_MIN)
            .ok_or_else(|| invalid("header count", count.to_string()))?;
        let headers = HeaderRefs(HeaderSource::Encoded { bytes: record.0, count });
        for _ in 0..count {
            record.header()?;
        }
        if !record.0.is_empty() {
            return Err(invalid("length", format!("{} bytes too many", record.0.len())));
        }
        self.delta = delta;
        let offset = self.base_offset + i64::from(delta);
        Ok(EntryRef { offset, timestamp, attributes, key, value, headers })
    }

    fn of_record(&self, error: BatchError) -> BatchError {
        match error {
            BatchError::Invalid { field, why } => invalid(
                field,
                format!("{why} (record {} of batch {})", self.decoded, self.base_offset),
            ),
            other => other,
        }
    }
}

impl Entries {
    /// The entries of `section`, decompressed, under `header`.
    pub(super) fn of_section(header: &BatchHeader, section: Bytes) -> Self {
        let at = Position {
            base_offset: header.base_offset,
            base_timestamp: header.base_timestamp,
            last_offset_delta: header.last_offset_delta,
            record_count: header.record_count,
            byte: 0,
            decoded: 0,
            delta: -1,
            ended: false,
        };
        Self(Source::Section { section, at })
    }

    pub(super) fn of_list(entries: Arc<[CanonicalRecordEntry]>) -> Self {
        Self(Source::Listed { entries, next: 0 })
    }

    /// The next entry, borrowed from the batch: no allocation, no reference count.
    pub fn next_ref(&mut self) -> Option<Result<EntryRef<'_>, BatchError>> {
        match &mut self.0 {
            Source::Section { section, at } => at.step(section),
            Source::Listed { entries, next } => {
                let entry = entries.get(*next)?;
                *next += 1;
                Some(Ok(EntryRef {
                    offset: entry.offset,
                    timestamp: entry.timestamp,
                    attributes: entry.attributes,
                    key: entry.key.as_deref(),
                    value: entry.value.as_deref(),
                    headers: HeaderRefs(HeaderSource::Listed(&entry.headers)),
                }))
            }
        }
    }
}

impl Iterator for Entries {
    type Item = Result<CanonicalRecordEntry, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        match &mut self.0 {
            Source::Section { section, at } => {
                Some(at.step(section)?.map(|entry| entry.to_owned_in(section)))
            }
            Source::Listed { entries, next } => {
                let entry = entries.get(*next)?.clone();
                *next += 1;
                Some(Ok(entry))
            }
        }
    }

    /// The lower bound is what the bytes at hand can hold, not what the header
    /// claims, so that `collect` allocates no more than that.
    fn size_hint(&self) -> (usize, Option<usize>) {
        match &self.0 {
            Source::Section { at: Position { ended: true, .. }, .. } => (0, Some(0)),
            Source::Section { section, at } => {
                let claimed = usize::try_from(at.record_count - at.decoded).unwrap_or(0);
                let fitting = section.len().saturating_sub(at.byte) / RECORD_BYTES_MIN;
                (claimed.min(fitting), Some(claimed.saturating_add(1)))
            }
            Source::Listed { entries, next } => {
                let left = entries.len() - next;
                (left, Some(left))
            }
        }
    }
}

fn invalid(field: &'static str, why: String) -> BatchError {
    BatchError::Invalid { field, why }
}

/// Appends the records section of `entries` under `header`, uncompressed.
///
/// # Errors
/// When an entry lies outside the batch's range or not after the one before it,
/// when its timestamp has no delta to the base timestamp, when a part of it is
/// longer than 2^31-1 bytes, or when `out` grows beyond `limit` bytes.
pub(super) fn encode(
    header: &BatchHeader,
    entries: &[CanonicalRecordEntry],
    limit: usize,
    out: &mut Vec<u8>,
) -> Result<(), BatchError> {
    let range = header.range();
    let mut last = None;
    for entry in entries {
        if !range.contains(entry.offset) || last >= Some(entry.offset) {
            let why = match last {
                Some(last) => format!("{} follows {last} in {range}", entry.offset),
                None => format!("{} in {range}", entry.offset),
            };
            return Err(invalid("entry offset", why));
        }
        last = Some(entry.offset);
        let Some(timestamp_delta) = entry.timestamp.checked_sub(header.base_timestamp) else {
            return Err(invalid("entry timestamp", entry.timestamp.to_string()));
        };
        // Fits: the range spans at most i32::MAX.
        let offset_delta = entry.offset - header.base_offset;
        let length = body_len(entry, timestamp_delta, offset_delta);
        if i32::try_from(length).is_err() || length > limit.saturating_sub(out.len()) {
            return Err(BatchError::TooLarge { base_offset: header.base_offset, limit });
        }
        put_len(out, length);
        out.push(entry.attributes.cast_unsigned());
        put(out, timestamp_delta);
        put(out, offset_delta);
        put_nullable(out, entry.key.as_deref());
        put_nullable(out, entry.value.as_deref());
        put_len(out, entry.headers.len());
        for header in &entry.headers {
            put_nullable(out, Some(&header.name));
            put_nullable(out, header.value.as_deref());
        }
    }
    Ok(())
}

/// Bytes of a record after its length. Saturates: `encode` refuses such lengths.
fn body_len(entry: &CanonicalRecordEntry, timestamp_delta: i64, offset_delta: i64) -> usize {
    let nullable = |bytes: Option<&Bytes>| match bytes {
        None => 1,
        Some(bytes) => varint_len(len_i64(bytes.len())).saturating_add(bytes.len()),
    };
    let headers = entry.headers.iter().fold(0_usize, |sum, header| {
        sum.saturating_add(nullable(Some(&header.name)))
            .saturating_add(nullable(header.value.as_ref()))
    });
    (1 + varint_len(timestamp_delta) + varint_len(offset_delta))
        .saturating_add(nullable(entry.key.as_ref()))
        .saturating_add(nullable(entry.value.as_ref()))
        .saturating_add(varint_len(len_i64(entry.headers.len())))
        .saturating_add(headers)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(record_count: i32) -> BatchHeader {
        BatchHeader {
            base_offset: 1000,
            batch_length: 49,
            partition_leader_epoch: -1,
            crc: 0,
            attributes: 0,
            last_offset_delta: 9,
            base_timestamp: 500,
            max_timestamp: 700,
            producer_id: -1,
            producer_epoch: -1,
            base_sequence: -1,
            record_count,
        }
    }

    fn decoded(count: i32, section: &[u8]) -> Result<Vec<CanonicalRecordEntry>, BatchError> {
        Entries::of_section(&header(count), Bytes::copy_from_slice(section)).collect()
    }

    fn refused(count: i32, section: &[u8], with: &str) {
        let error = decoded(count, section).unwrap_err().to_string();
        assert!(error.contains(with), "{error}");
    }

    /// A record of one-byte fields: length, attributes, deltas, key, value, headers.
    const PLAIN: &[u8] = &[16, 5, 7, 4, 2, b'k', 1, 0];

    #[test]
    fn a_record_is_read_field_by_field() {
        let mut section = PLAIN.to_vec();
        section[0] = 14;
        let entries = decoded(1, &section).unwrap();
        let expected = CanonicalRecordEntry {
            offset: 1002,
            timestamp: 496,
            attributes: 5,
            key: Some(Bytes::from_static(b"k")),
            value: None,
            headers: vec![],
        };
        assert_eq!(entries, [expected]);
    }

    #[test]
    fn records_that_no_writer_makes_are_refused_by_field() {
        refused(1, PLAIN, "cut short at length");
        refused(1, &[13, 0, 0, 0, 1, 1, 0], "length");
        refused(1, &[16, 0, 0, 0, 1, 1, 0, 9, 9], "2 bytes too many");
        refused(1, &[12, 0, 0, 0, 1, 1, 0, 9], "1 bytes follow");
        refused(2, &[12, 0, 0, 0, 1, 1, 0], "cut short at length");
        refused(2, &[12, 0, 0, 0, 1, 1, 0, 12, 0, 0, 0, 1, 1, 0], "0 follows 0");
        refused(2, &[12, 0, 0, 4, 1, 1, 0, 12, 0, 0, 2, 1, 1, 0], "1 follows 2");
        refused(1, &[12, 0, 0, 20, 1, 1, 0], "last offset delta is 9");
        refused(1, &[12, 0, 0, 1, 1, 1, 0], "offset delta");
        refused(1, &[12, 0, 0, 0, 3, 1, 0], "key length is invalid: -2");
        refused(1, &[12, 0, 0, 0, 1, 4, 0], "cut short at value length");
        refused(1, &[12, 0, 0, 0, 1, 1, 1], "header count is invalid: -1");
        refused(1, &[14, 0, 0, 0, 1, 1, 2, 0], "header count is invalid: 1");
        refused(1, &[16, 0, 0, 0, 1, 1, 2, 1, 0], "header name length is invalid: -1");
        refused(1, &[16, 0, 0, 0, 1, 1, 2, 0, 3], "header value length is invalid: -2");
        refused(1, &[0xff; 12], "varint");
        refused(1, &[0x80, 0x80, 0x80, 0x80, 0x10, 0], "beyond 32 bits");
        refused(0, PLAIN, "8 bytes follow the last record");
    }

    #[test]
    fn a_timestamp_beyond_64_bits_is_refused() {
        let far = BatchHeader { base_timestamp: i64::MAX, ..header(1) };
        let section = Bytes::from_static(&[12, 0, 2, 0, 1, 1, 0]);
        let error = Entries::of_section(&far, section).next().unwrap().unwrap_err();
        assert!(error.to_string().contains("timestamp delta"), "{error}");
    }

    #[test]
    fn iteration_ends_after_the_first_error() {
        let mut entries = Entries::of_section(&header(3), Bytes::from_static(&[13, 0]));
        assert!(entries.next().unwrap().is_err());
        assert!(entries.next().is_none() && entries.next_ref().is_none());
    }

    #[test]
    fn the_size_hint_follows_the_bytes_and_not_the_claim() {
        let section = Bytes::from_static(&[12, 0, 0, 0, 1, 1, 0]);
        let entries = Entries::of_section(&header(i32::MAX), section);
        assert_eq!(entries.size_hint().0, 1);
    }

    #[test]
    fn a_borrowed_entry_is_the_owned_one() {
        let owned = CanonicalRecordEntry {
            offset: 1009,
            timestamp: -3,
            attributes: -1,
            key: Some(Bytes::new()),
            value: None,
            headers: ["a", "b", "a"]
                .map(|name| Header {
                    name: Bytes::from_static(name.as_bytes()),
                    value: (name == "a").then(Bytes::new),
                })
                .into(),
        };
        let mut section = Vec::new();
        encode(&header(1), std::slice::from_ref(&owned), 100, &mut section).unwrap();
        let from_bytes = Entries::of_section(&header(1), Bytes::from(section));
        let from_list = Entries::of_list(Arc::from([owned.clone()]));
        for mut entries in [from_bytes, from_list] {
            assert_eq!(entries.clone().next().unwrap().unwrap(), owned);
            let entry = entries.next_ref().unwrap().unwrap();
            assert_eq!((entry.offset, entry.timestamp, entry.attributes), (1009, -3, -1));
            assert_eq!((entry.key, entry.value), (Some(&b""[..]), None));
            assert_eq!(entry.headers().len(), 3);
            let headers: Vec<_> = entry.headers().collect();
            assert_eq!(headers, [(&b"a"[..], Some(&b""[..])), (b"b", None), (b"a", Some(b""))]);
            assert!(entries.next_ref().is_none());
        }
    }

    #[test]
    fn entries_that_do_not_fit_the_batch_are_refused() {
        let at = |offset, timestamp| CanonicalRecordEntry {
            offset,
            timestamp,
            attributes: 0,
            key: None,
            value: None,
            headers: vec![],
        };
        let refuse = |entries: &[CanonicalRecordEntry], limit, with: &str| {
            let error =
                encode(&header(0), entries, limit, &mut Vec::new()).unwrap_err().to_string();
            assert!(error.contains(with), "{error}");
        };
        refuse(&[at(999, 0)], 99, "999 in 1000..1009");
        refuse(&[at(1010, 0)], 99, "1010 in 1000..1009");
        refuse(&[at(1001, 0), at(1001, 0)], 99, "1001 follows 1001");
        refuse(&[at(1000, i64::MIN)], 99, "entry timestamp");
        refuse(&[at(1000, 0), at(1001, 0)], 12, "beyond 12 bytes");
    }

    proptest! {
        #[test]
        fn noise_never_panics(noise in prop::collection::vec(any::<u8>(), 0..200)) {
            for byte_count in [1, 3, i32::MAX] {
                let _ = decoded(byte_count, &noise);
            }
        }
    }
}
