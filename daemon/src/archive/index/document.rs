//! Owns what Tantivy is told of a record: the schema, the terms, the document.
//!
//! ```text
//!  offset     i64    fast        the record's offset
//!  timestamp  i64    fast        milliseconds, as a consumer sees it
//!  key        bytes  indexed     the key; no term for a null key, an empty one for an empty key
//!  header     bytes  indexed     one term for each header:
//!                                | name length u16 BE | name | 0 null, 1 value | value |
//!  producer   i64    indexed     the producer's id, where it has one
//!
//!  A term longer than 1024 bytes is its first 1008 bytes and the BLAKE3-128 of
//!  all of it: still exact by all odds, still found by prefix. Who searches checks
//!  the hit in the batch. (A name of 65,535 bytes or more has the length 65,535.)
//! ```

use std::iter::Empty;

use tantivy::schema::document::{ReferenceValue, ReferenceValueLeaf};
use tantivy::schema::{BytesOptions, Field, NumericOptions, Schema, Value};

use crate::archive::chunk::digest128;
use crate::record::EntryRef;

/// Longest term, in bytes. Keys are short; long ones must not fill the index.
pub const TERM_BYTES_MAX: usize = 1024;
/// Bytes of a longer term that are kept as they are.
pub const TERM_PREFIX_BYTES: usize = TERM_BYTES_MAX - 16;

/// The field of the record's offset.
pub const OFFSET_FIELD: &str = "offset";
/// The field of the record's time.
pub const TIMESTAMP_FIELD: &str = "timestamp";
/// The field of [`key_term`].
pub const KEY_FIELD: &str = "key";
/// The field of [`header_term`].
pub const HEADER_FIELD: &str = "header";
/// The field of the producer's id.
pub const PRODUCER_FIELD: &str = "producer";

/// The term of the field `key` for a key.
#[must_use]
pub fn key_term(key: &[u8]) -> Vec<u8> {
    let mut term = Vec::with_capacity(key.len().min(TERM_BYTES_MAX));
    put_bounded(key, &mut term);
    term
}

/// The term of the field `header` for a header.
#[must_use]
pub fn header_term(name: &[u8], value: Option<&[u8]>) -> Vec<u8> {
    let mut term = Vec::new();
    put_header(name, value, &mut term);
    term
}

/// What the terms of all headers called `name` begin with, as far as they are exact.
#[must_use]
pub fn header_name_prefix(name: &[u8]) -> Vec<u8> {
    let mut prefix = header_term(name, None);
    // A term that is cut is exact in front; of one that is not, the last byte says null.
    let exact = if prefix.len() == TERM_BYTES_MAX { TERM_PREFIX_BYTES } else { prefix.len() - 1 };
    prefix.truncate(exact);
    prefix
}

fn put_bounded(bytes: &[u8], out: &mut Vec<u8>) {
    if bytes.len() <= TERM_BYTES_MAX {
        out.extend_from_slice(bytes);
    } else {
        out.extend_from_slice(&bytes[..TERM_PREFIX_BYTES]);
        out.extend_from_slice(&digest128(bytes));
    }
}

fn put_header(name: &[u8], value: Option<&[u8]>, out: &mut Vec<u8>) {
    let start = out.len();
    let name_len = u16::try_from(name.len()).unwrap_or(u16::MAX);
    out.extend_from_slice(&name_len.to_be_bytes());
    out.extend_from_slice(name);
    out.push(u8::from(value.is_some()));
    out.extend_from_slice(value.unwrap_or_default());
    if out.len() - start > TERM_BYTES_MAX {
        let digest = digest128(&out[start..]);
        out.truncate(start + TERM_PREFIX_BYTES);
        out.extend_from_slice(&digest);
    }
}

/// The fields. Their numbers are their places in the schema.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fields {
    offset: Field,
    timestamp: Field,
    key: Field,
    header: Field,
    producer: Field,
}

impl Fields {
    /// The schema of level `keys`.
    pub(super) fn schema() -> (Schema, Self) {
        let mut builder = Schema::builder();
        let fast = NumericOptions::default().set_fast();
        let fields = Self {
            offset: builder.add_i64_field(OFFSET_FIELD, fast.clone()),
            timestamp: builder.add_i64_field(TIMESTAMP_FIELD, fast),
            key: builder.add_bytes_field(KEY_FIELD, BytesOptions::default().set_indexed()),
            header: builder.add_bytes_field(HEADER_FIELD, BytesOptions::default().set_indexed()),
            producer: builder
                .add_i64_field(PRODUCER_FIELD, NumericOptions::default().set_indexed()),
        };
        (builder.build(), fields)
    }
}

/// One record, as Tantivy reads it: its terms in one buffer, so that a record
/// without headers costs one allocation.
#[derive(Debug)]
pub(super) struct RecordDocument {
    fields: Fields,
    offset: i64,
    timestamp: i64,
    producer: Option<i64>,
    /// Whether the first term is the key's.
    has_key: bool,
    terms: Vec<u8>,
    /// Where each term ends.
    ends: Ends,
}

/// The ends of the terms; nearly always there is one, the key's.
#[derive(Debug)]
enum Ends {
    One(usize),
    Many(Vec<usize>),
}

impl Ends {
    fn as_slice(&self) -> &[usize] {
        match self {
            Self::One(end) => std::slice::from_ref(end),
            Self::Many(ends) => ends,
        }
    }
}

impl RecordDocument {
    /// The document of `entry`, seen by consumers at `timestamp`.
    pub(super) fn new(
        fields: Fields,
        entry: &EntryRef<'_>,
        timestamp: i64,
        producer_id: i64,
    ) -> Self {
        let key_len = entry.key.map_or(0, |key| key.len().min(TERM_BYTES_MAX));
        let mut terms = Vec::with_capacity(key_len);
        if let Some(key) = entry.key {
            put_bounded(key, &mut terms);
        }
        let headers = entry.headers();
        let ends = if headers.len() == 0 && entry.key.is_some() {
            Ends::One(terms.len())
        } else {
            let mut ends = Vec::with_capacity(headers.len() + 1);
            if entry.key.is_some() {
                ends.push(terms.len());
            }
            for (name, value) in headers {
                put_header(name, value, &mut terms);
                ends.push(terms.len());
            }
            Ends::Many(ends)
        };
        Self {
            fields,
            offset: entry.offset,
            timestamp,
            producer: (producer_id >= 0).then_some(producer_id),
            has_key: entry.key.is_some(),
            terms,
            ends,
        }
    }

    /// Bytes of its terms.
    pub(super) fn term_bytes(&self) -> usize {
        self.terms.len()
    }
}

impl tantivy::Document for RecordDocument {
    type Value<'a> = FieldValue<'a>;
    type FieldsValuesIter<'a> = FieldValues<'a>;

    fn iter_fields_and_values(&self) -> FieldValues<'_> {
        FieldValues { document: self, next: 0 }
    }
}

/// Walks a document: offset, timestamp, producer, then the terms.
#[derive(Clone, Debug)]
pub(super) struct FieldValues<'a> {
    document: &'a RecordDocument,
    next: usize,
}

/// Values in front of the terms.
const NUMBERS: usize = 3;

impl<'a> Iterator for FieldValues<'a> {
    type Item = (Field, FieldValue<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let RecordDocument { fields, offset, timestamp, producer, .. } = self.document;
        let at = self.next;
        self.next += 1;
        match at {
            0 => Some((fields.offset, FieldValue::Number(*offset))),
            1 => Some((fields.timestamp, FieldValue::Number(*timestamp))),
            2 => match producer {
                Some(producer) => Some((fields.producer, FieldValue::Number(*producer))),
                None => self.next(),
            },
            _ => {
                let ends = self.document.ends.as_slice();
                let term = at - NUMBERS;
                let end = *ends.get(term)?;
                let start = term.checked_sub(1).map_or(0, |before| ends[before]);
                let is_key = term == 0 && self.document.has_key;
                let field = if is_key { fields.key } else { fields.header };
                Some((field, FieldValue::Term(&self.document.terms[start..end])))
            }
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let all = NUMBERS + self.document.ends.as_slice().len();
        (all.saturating_sub(self.next + 1), Some(all.saturating_sub(self.next)))
    }
}

/// One value of a document.
#[derive(Clone, Copy, Debug)]
pub(super) enum FieldValue<'a> {
    Number(i64),
    Term(&'a [u8]),
}

impl<'a> Value<'a> for FieldValue<'a> {
    type ArrayIter = Empty<Self>;
    type ObjectIter = Empty<(&'a str, Self)>;

    fn as_value(&self) -> ReferenceValue<'a, Self> {
        ReferenceValue::Leaf(match self {
            Self::Number(number) => ReferenceValueLeaf::I64(*number),
            Self::Term(bytes) => ReferenceValueLeaf::Bytes(bytes),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_term_is_exact_up_to_its_bound_and_hashed_beyond() {
        assert_eq!(key_term(b""), b"");
        assert_eq!(key_term(&[7; 1024]), [7; 1024]);
        let long = key_term(&[7; 1025]);
        assert_eq!(long.len(), TERM_BYTES_MAX);
        assert_eq!(long[..TERM_PREFIX_BYTES], [7; TERM_PREFIX_BYTES]);
        assert_eq!(long[TERM_PREFIX_BYTES..], digest128(&[7; 1025]));
        assert_ne!(key_term(&[7; 1026]), long);
    }

    #[test]
    fn a_header_term_tells_name_null_and_value_apart() {
        assert_eq!(header_term(b"n", Some(b"v")), b"\0\x01n\x01v");
        assert_eq!(header_term(b"n", Some(b"")), b"\0\x01n\x01");
        assert_eq!(header_term(b"n", None), b"\0\x01n\x00");
        assert_eq!(header_term(b"", None), b"\0\0\0");
        let long = header_term(b"n", Some(&[1; 5000]));
        assert_eq!(long.len(), TERM_BYTES_MAX);
        assert_ne!(header_term(b"n", Some(&[1; 5001])), long);
        let names = (header_term(&[1; 70_000], None), header_term(&[1; 70_001], None));
        assert_ne!(names.0, names.1);
    }
}
