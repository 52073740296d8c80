//! Owns what Tantivy is told of a record: the schema, the terms, the document.
//!
//! ```text
//!  offset     i64    fast        the record's offset
//!  timestamp  i64    fast        milliseconds, as a consumer sees it
//!  key        bytes  indexed     the key; no term for a null key, an empty one for an empty key
//!  header     bytes  indexed     one term for each header:
//!                                | name length u16 BE | name | 0 null, 1 value | value |
//!  producer   i64    indexed     the producer's id, where it has one
//!  value                         levels `full`:
//!             text   indexed     the value, where it is UTF-8; positions unless `raw`
//!             json   indexed,    the value, where it is a JSON object; its fields by path,
//!                    fast        dots in their names as well as between them; a text that is
//!                                a time of RFC 3339 is that time too
//!
//!  A value of more than 1 MiB, and JSON that is nested or has numbers beyond what can be
//!  read, is not indexed, and counted in the payload of `meta.json`. Words of more than
//!  1024 bytes and fields with longer names are left out: no query asks for them.
//!
//!  A term longer than 1024 bytes is its first 1008 bytes and the BLAKE3-128 of
//!  all of it: still exact by all odds, still found by prefix. Who searches checks
//!  the hit in the batch. (A name of 65,535 bytes or more has the length 65,535.)
//! ```

use std::slice;

use tantivy::DateTime;
use tantivy::schema::document::{ReferenceValue, ReferenceValueLeaf};
use tantivy::schema::{
    BytesOptions, Field, IndexRecordOption, JsonObjectOptions, NumericOptions, Schema,
    SchemaBuilder, TextFieldIndexing, TextOptions, Value,
};
use tantivy::time::format_description::well_known::Rfc3339;
use tantivy::time::{OffsetDateTime, UtcOffset};
use tantivy::tokenizer::{
    LowerCaser, RawTokenizer, RemoveLongFilter, SimpleTokenizer, TextAnalyzer, TokenizerManager,
    WhitespaceTokenizer,
};

use crate::archive::chunk::digest128;
use crate::archive::{Tokenizer, ValueIndex};
use crate::record::EntryRef;

/// Longest term, in bytes. Keys are short; long ones must not fill the index.
pub const TERM_BYTES_MAX: usize = 1024;
/// Longest word of a value that is indexed, in bytes, and longest name of a field.
pub const WORD_BYTES_MAX: usize = TERM_BYTES_MAX;
/// Longest value that is indexed, in bytes: Kafka's usual limit of a whole batch.
const VALUE_BYTES_MAX: usize = 1 << 20;
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
/// The field of the value.
pub const VALUE_FIELD: &str = "value";
/// The field of the producer's id.
pub const PRODUCER_FIELD: &str = "producer";

/// What cuts values into words: Tantivy's own, by their names, but for its default,
/// which drops words of more than 40 bytes, digests for one.
#[must_use]
pub fn tokenizers() -> TokenizerManager {
    let short = || RemoveLongFilter::limit(WORD_BYTES_MAX + 1);
    let manager = TokenizerManager::default();
    let words = TextAnalyzer::builder(SimpleTokenizer::default()).filter(short());
    manager.register(Tokenizer::Default.as_str(), words.filter(LowerCaser).build());
    let whitespace = TextAnalyzer::builder(WhitespaceTokenizer::default()).filter(short());
    manager.register(Tokenizer::Whitespace.as_str(), whitespace.build());
    let raw = TextAnalyzer::builder(RawTokenizer::default()).filter(short());
    manager.register(Tokenizer::Raw.as_str(), raw.build());
    manager
}

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
    value: Option<(Field, ValueIndex)>,
}

impl Fields {
    /// The schema of an index, with values where they are asked for.
    pub(super) fn schema(values: Option<ValueIndex>) -> (Schema, Self) {
        let mut builder = Schema::builder();
        let fast = NumericOptions::default().set_fast();
        let mut fields = Self {
            offset: builder.add_i64_field(OFFSET_FIELD, fast.clone()),
            timestamp: builder.add_i64_field(TIMESTAMP_FIELD, fast),
            key: builder.add_bytes_field(KEY_FIELD, BytesOptions::default().set_indexed()),
            header: builder.add_bytes_field(HEADER_FIELD, BytesOptions::default().set_indexed()),
            producer: builder
                .add_i64_field(PRODUCER_FIELD, NumericOptions::default().set_indexed()),
            value: None,
        };
        fields.value = values.map(|values| (value_field(&mut builder, values), values));
        (builder.build(), fields)
    }
}

fn value_field(builder: &mut SchemaBuilder, values: ValueIndex) -> Field {
    let words = |tokenizer: Tokenizer| {
        // A whole value as one word has no order of words.
        let option = match tokenizer {
            Tokenizer::Raw => IndexRecordOption::Basic,
            _ => IndexRecordOption::WithFreqsAndPositions,
        };
        TextFieldIndexing::default()
            .set_tokenizer(tokenizer.as_str())
            .set_index_option(option)
            .set_fieldnorms(false)
    };
    match values {
        ValueIndex::Text(tokenizer) => builder.add_text_field(
            VALUE_FIELD,
            TextOptions::default().set_indexing_options(words(tokenizer)),
        ),
        ValueIndex::Json => builder.add_json_field(
            VALUE_FIELD,
            JsonObjectOptions::default()
                .set_indexing_options(words(Tokenizer::Default))
                // Ranges need columns.
                .set_fast("raw")
                .set_expand_dots_enabled(),
        ),
    }
}

/// A value as it is indexed.
#[derive(Debug)]
pub(super) enum IndexedValue {
    Text(String),
    Json(serde_json::Value),
}

/// One record, as Tantivy reads it: its terms in one buffer, so that a record
/// without headers costs one allocation.
#[derive(Debug)]
pub(super) struct RecordDocument {
    fields: Fields,
    offset: i64,
    timestamp: i64,
    producer: Option<i64>,
    value_bytes: usize,
    /// Whether the first term is the key's.
    has_key: bool,
    terms: Vec<u8>,
    /// Where each term ends.
    ends: Ends,
    value: Option<IndexedValue>,
    /// Whether the value was too much.
    skipped: bool,
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
            Self::One(end) => slice::from_ref(end),
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
        let (value, skipped) = match fields.value {
            Some((_, values)) => indexed_value(entry.value, values),
            None => (None, false),
        };
        let value_bytes = value.as_ref().map_or(0, |_| entry.value.map_or(0, <[u8]>::len));
        Self {
            fields,
            value_bytes,
            offset: entry.offset,
            timestamp,
            producer: (producer_id >= 0).then_some(producer_id),
            has_key: entry.key.is_some(),
            terms,
            ends,
            value,
            skipped,
        }
    }

    /// Whether its value is too much to be indexed.
    pub(super) fn is_skipped(&self) -> bool {
        self.skipped
    }

    /// Bytes of its terms, about: a value's are those of its text.
    pub(super) fn term_bytes(&self) -> usize {
        self.terms.len() + self.value_bytes
    }
}

impl tantivy::Document for RecordDocument {
    type Value<'a> = FieldValue<'a>;
    type FieldsValuesIter<'a> = FieldValues<'a>;

    fn iter_fields_and_values(&self) -> FieldValues<'_> {
        FieldValues { document: self, next: 0 }
    }
}

/// Walks a document: offset, timestamp, producer, value, then the terms.
#[derive(Clone, Debug)]
pub(super) struct FieldValues<'a> {
    document: &'a RecordDocument,
    next: usize,
}

/// Values in front of the terms.
const NUMBERS: usize = 4;

impl<'a> Iterator for FieldValues<'a> {
    type Item = (Field, FieldValue<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let RecordDocument { fields, offset, timestamp, producer, value, .. } = self.document;
        let at = self.next;
        self.next += 1;
        match at {
            0 => Some((fields.offset, FieldValue::Number(*offset))),
            1 => Some((fields.timestamp, FieldValue::Number(*timestamp))),
            2 => match producer {
                Some(producer) => Some((fields.producer, FieldValue::Number(*producer))),
                None => self.next(),
            },
            3 => match (fields.value, value) {
                (Some((field, _)), Some(IndexedValue::Text(text))) => {
                    Some((field, FieldValue::Text(text)))
                }
                (Some((field, _)), Some(IndexedValue::Json(json))) => {
                    Some((field, FieldValue::Json(json)))
                }
                _ => self.next(),
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
    Text(&'a str),
    Json(&'a serde_json::Value),
    Time(DateTime),
}

impl<'a> Value<'a> for FieldValue<'a> {
    type ArrayIter = JsonArray<'a>;
    type ObjectIter = JsonObject<'a>;

    fn as_value(&self) -> ReferenceValue<'a, Self> {
        ReferenceValue::Leaf(match self {
            Self::Number(number) => ReferenceValueLeaf::I64(*number),
            Self::Term(bytes) => ReferenceValueLeaf::Bytes(bytes),
            Self::Text(text) => ReferenceValueLeaf::Str(text),
            Self::Time(time) => ReferenceValueLeaf::Date(*time),
            Self::Json(json) => return json_value(json),
        })
    }
}

/// What of a value is indexed, and whether it is too much to be.
fn indexed_value(value: Option<&[u8]>, values: ValueIndex) -> (Option<IndexedValue>, bool) {
    let Some(value) = value else { return (None, false) };
    if value.len() > VALUE_BYTES_MAX {
        return (None, true);
    }
    match values {
        ValueIndex::Text(_) => {
            let text = std::str::from_utf8(value).ok();
            (text.map(|text| IndexedValue::Text(text.to_owned())), false)
        }
        ValueIndex::Json => match serde_json::from_slice(value) {
            Ok(json @ serde_json::Value::Object(_)) => (Some(IndexedValue::Json(json)), false),
            Ok(_) => (None, false),
            Err(error) => (None, is_too_much(&error)),
        },
    }
}

/// Whether JSON was not read because of what it holds, not because it is none: nested
/// deeper than 128, or with a number beyond 1.8e308. serde_json tells it in words only.
fn is_too_much(error: &serde_json::Error) -> bool {
    let why = error.to_string();
    why.starts_with("recursion limit exceeded") || why.starts_with("number out of range")
}

fn json_value<'a>(json: &'a serde_json::Value) -> ReferenceValue<'a, FieldValue<'a>> {
    use serde_json::Value as Json;
    ReferenceValue::Leaf(match json {
        Json::Null => ReferenceValueLeaf::Null,
        Json::Bool(bool) => ReferenceValueLeaf::Bool(*bool),
        Json::String(text) => match time_of(text) {
            Some(time) => return ReferenceValue::Array(JsonArray::Time(Some(time), Some(text))),
            None => ReferenceValueLeaf::Str(text),
        },
        Json::Number(number) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
            (Some(number), _, _) => ReferenceValueLeaf::I64(number),
            (None, Some(number), _) => ReferenceValueLeaf::U64(number),
            (None, None, Some(number)) => ReferenceValueLeaf::F64(number),
            (None, None, None) => ReferenceValueLeaf::Null,
        },
        Json::Array(items) => return ReferenceValue::Array(JsonArray::Items(items.iter())),
        Json::Object(fields) => return ReferenceValue::Object(JsonObject(fields.iter())),
    })
}

/// The time that a text is by RFC 3339, as far as Tantivy knows times: 1677 to 2262.
#[must_use]
pub fn time_of(text: &str) -> Option<DateTime> {
    // `2024-03-01T00:00:00Z` at least; nearly all texts are told by this alone.
    if text.len() < 20 || text.as_bytes()[4] != b'-' {
        return None;
    }
    let time = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    DateTime::try_from_utc(time.to_offset(UtcOffset::UTC))
}

/// The items of a JSON array, or the two sides of a text that is a time.
#[derive(Clone, Debug)]
pub(super) enum JsonArray<'a> {
    Items(slice::Iter<'a, serde_json::Value>),
    Time(Option<DateTime>, Option<&'a str>),
}

impl<'a> Iterator for JsonArray<'a> {
    type Item = FieldValue<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::Items(items) => items.next().map(FieldValue::Json),
            Self::Time(time, text) => {
                time.take().map(FieldValue::Time).or_else(|| text.take().map(FieldValue::Text))
            }
        }
    }
}

/// The fields of a JSON object.
#[derive(Clone, Debug)]
pub(super) struct JsonObject<'a>(serde_json::map::Iter<'a>);

impl<'a> Iterator for JsonObject<'a> {
    type Item = (&'a str, FieldValue<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let (name, value) = self.0.find(|(name, _)| name.len() <= WORD_BYTES_MAX)?;
        Some((name.as_str(), FieldValue::Json(value)))
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
